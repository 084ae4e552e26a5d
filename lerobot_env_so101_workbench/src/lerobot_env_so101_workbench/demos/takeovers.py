# SPDX-License-Identifier: Apache-2.0
"""Takeovers: a policy acts, and the expert continues from where the policy has brought the scene.

What the expert then does is recorded, with clean labels, until the task is done. So a dataset shows the
states that the policy gets into, and the way out of them. The policy's observations are those of
`lerobot-eval`: the images that it was trained on, or that its segmenter takes, whatever is recorded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_processor_so101.arm import FPS
from lerobot_processor_so101.config_checks import check_device
from lerobot_processor_so101.env_observations import as_observation
from lerobot_processor_so101.policy.trained_policy import batch_of_one, load_policy

from ..env_config import SO101SimEnvConfig
from ..policy_check import fingerprint, needed_images, read_config
from ..sim.world import World
from .demonstrator import Demonstrator

FIRST_SEED = 1_000_000  # training seeds from here on are for takeovers, those below for demonstrations
# Ticks that the policy acts before the takeover: uniform in these ranges.
EARLY, LATE = (15, 75), (100, 180)
EXPERT_TICKS = 250  # that the expert may take to finish
_RISE = 0.01  # of the progress; a smaller one counts as stalled


@dataclass
class PolicyOptions:
    """A policy and its device.

    Args:
        path: its `pretrained_model` folder.
        device: cpu or cuda.
    """

    path: Path | None = None
    device: str = "cpu"


@dataclass
class TakeoverOptions:
    """When the expert takes over, and what is recorded.

    Args:
        late: share of late takeovers, after 3.3 to 6 s; the others are early, after 0.5 to 2.5 s.
        stall_s: take over earlier if the progress has not risen for this time [s]; 0 for never.
        relabel: also record the policy's own frames, each labelled with the expert's command (DAgger).
    """

    late: float = 0.5
    stall_s: float = 0.0
    relabel: bool = False

    def check(self) -> None:
        """Raise ValueError if a number is out of range."""
        if not 0.0 <= self.late <= 1.0:
            raise ValueError(f"--takeover.late: found {self.late}, expected a share, 0 to 1.")
        if not 0.0 <= self.stall_s < np.inf:
            raise ValueError(f"--takeover.stall_s: found {self.stall_s}, expected 0 or more seconds.")


class Actor:
    """A trained policy with its pipelines, acting in a world as it does in `lerobot-eval`.

    Args:
        task, level: of the worlds that it acts in.
        size: (h, w) of its images if it was trained on none, and its segmenter takes any.

    Raises:
        ValueError: if the policy is of another robot or rate, or needs images that the workbench lacks.
    """

    def __init__(
        self, options: PolicyOptions, task: str, level: str, size: tuple[int, int] | None = None
    ) -> None:
        assert options.path is not None
        self.cameras = needed_images(read_config(options.path), options.path, size)
        check_device(options.device, "--policy.device")
        env = SO101SimEnvConfig(task=task, level=level, **vars(self.cameras))
        self._policy, self._preprocessor, self._postprocessor = load_policy(options.path, options.device)
        self._env_preprocessor, _ = env.get_env_processors()
        config = self._policy.config
        self.name = f"{config.type} {fingerprint(options.path)}"
        self._device, self._use_amp = torch.device(options.device).type, config.use_amp

    def reset(self, seed: int) -> None:
        """Begin an episode; `seed` is that of the policy's own noise."""
        torch.manual_seed(seed)
        self._policy.reset()
        self._preprocessor.reset()
        self._postprocessor.reset()

    def act(self, world: World) -> np.ndarray:
        """Return the policy's command (6,) in LeRobot's units."""
        batch: dict[str, Any] = batch_of_one(as_observation(world.joints(), self.cameras.capture(world)))
        batch = self._preprocessor(self._env_preprocessor({**batch, "task": [world.instruction()]}))
        with torch.inference_mode(), torch.autocast(self._device, enabled=self._use_amp):
            action = self._policy.select_action(batch)
        return self._postprocessor(action)[0].to("cpu").numpy()


class Takeovers:
    """Episodes that a policy begins and the expert ends; an `EpisodeSource`."""

    first_seed = FIRST_SEED

    def __init__(self, demonstrator: Demonstrator, actor: Actor, options: TakeoverOptions) -> None:
        self._demonstrator, self._actor, self._options = demonstrator, actor, options
        policy = {"policy.path": actor.name, "takeover.relabel": options.relabel}
        self.identity, self.is_needed = {**demonstrator.identity, **policy}, True

    @property
    def succeeded(self) -> bool:
        return self._demonstrator.succeeded

    def close(self) -> None:
        self._demonstrator.close()

    def try_policy(self) -> None:
        """Let the policy act once, so that what is wrong with it shows before anything is recorded.

        Raises:
            ValueError: if the policy lacks an observation.
        """
        world = self._demonstrator.world
        self._demonstrator.reset(FIRST_SEED)
        self._actor.reset(FIRST_SEED)
        try:
            world.step(self._actor.act(world))
        except KeyError as error:
            raise ValueError(
                f"--policy.path: the policy needs the observation {error}, which the workbench does not have."
            ) from error

    def episode(self, seed: int) -> Iterator[dict]:
        """Run an episode from the training initial state of `seed`, and yield the frames to record."""
        demonstrator, world = self._demonstrator, self._demonstrator.world
        rng = np.random.default_rng(seed)
        demonstrator.reset(seed)
        self._actor.reset(seed)
        ticks = LATE if rng.random() < self._options.late else EARLY
        best, best_tick = 0.0, 0
        for tick in range(rng.integers(*ticks, endpoint=True)):
            progress = world.progress()
            if progress > best + _RISE:
                best, best_tick = progress, tick
            if 0 < self._options.stall_s * FPS <= tick - best_tick:
                break
            if self._options.relabel:
                yield demonstrator.frame(demonstrator.capture(), demonstrator.expert.decide().action)
            world.step(self._actor.act(world))
            self.is_needed = not world.is_success()
            if not self.is_needed or not world.is_finite():
                return
        yield from demonstrator.demonstrate(rng, EXPERT_TICKS, intervention=True)
