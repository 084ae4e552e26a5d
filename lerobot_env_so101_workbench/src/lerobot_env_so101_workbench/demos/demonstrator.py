# SPDX-License-Identifier: Apache-2.0
"""The scripted expert's episodes as dataset frames."""

from collections.abc import Iterator

import numpy as np
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from ..sim.cameras import CameraSetup
from ..sim.expert import Disturbance, Expert
from ..sim.initial_states import training_initial_state
from ..sim.world import World

INTERVENTION = "intervention"  # as in LeRobot's DAgger recordings


class Demonstrator:
    """Runs the expert and turns observations and commands into dataset frames; an `EpisodeSource`.

    Args:
        disturbance: strength [deg], 0 for none.
        every: record each n-th control period.
    """

    first_seed, is_needed = 0, True

    def __init__(self, world: World, cameras: CameraSetup, disturbance: float, every: int = 1) -> None:
        self.world, self.expert = world, Expert(world)
        self.identity = {"task": world.task.name, "level": world.level}
        self._cameras, self._strength, self._every = cameras, disturbance, every

    @property
    def succeeded(self) -> bool:
        return self.world.is_success()

    def close(self) -> None:
        self.world.close()

    def reset(self, seed: int) -> None:
        """Reset the world to the training initial state of `seed`."""
        self.world.reset(training_initial_state(self.world.task.name, self.world.level, seed))

    def episode(self, seed: int) -> Iterator[dict]:
        """Demonstrate the task from the training initial state of `seed`, frame by frame."""
        self.reset(seed)
        yield from self.demonstrate(np.random.default_rng(seed), self.world.task.time_limit_ticks)

    def demonstrate(self, rng: np.random.Generator, ticks: int, intervention: bool = False) -> Iterator[dict]:
        """Demonstrate the task from the present state, for at most `ticks` control periods."""
        world, disturbance = self.world, Disturbance(self.expert, rng, self._strength)
        for tick in range(ticks):
            if world.is_success() or not world.is_finite():
                return
            decision = self.expert.decide()
            if tick % self._every == 0:
                yield self.frame(self.capture(), decision.action, intervention)
            world.step(decision.action, disturbance.sample(decision) if self._strength > 0 else None)

    def capture(self) -> dict[str, np.ndarray]:
        """Render the images to record."""
        return self._cameras.capture(self.world)

    def frame(self, images: dict[str, np.ndarray], action: np.ndarray, intervention: bool = False) -> dict:
        """Return a dataset frame of the present state, labelled with `action` (6,) in LeRobot's units."""
        return {
            OBS_STATE: self.world.joints().astype(np.float32),
            ACTION: action.astype(np.float32),
            **{f"{OBS_IMAGES}.{name}": image for name, image in images.items()},
            INTERVENTION: np.array([intervention]),
            "task": self.world.instruction(),
        }
