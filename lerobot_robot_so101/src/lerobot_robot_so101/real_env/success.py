# SPDX-License-Identifier: Apache-2.0
"""Automatic success checks, from masks and depth of one camera."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError

_MIN_PIXELS = 12
_LIFTED_MM = 30.0


@dataclass(frozen=True)
class SceneMasks:
    """One camera frame, segmented.

    Attributes:
        target, container: masks, (H, W) bool; the container's is empty if there is none.
        depth: (H, W) [mm]; None if the camera has no depth.
        initial_depth: depth at the beginning of the episode.
    """

    target: np.ndarray
    container: np.ndarray
    depth: np.ndarray | None
    initial_depth: np.ndarray | None


def inside(scene: SceneMasks) -> bool:
    """Check that more than 80 % of the target lies within the container's outline."""
    if min(scene.target.sum(), scene.container.sum()) < _MIN_PIXELS:
        return False
    try:
        hull = ConvexHull(np.argwhere(scene.container))
    except QhullError:
        return False
    pixels = np.argwhere(scene.target)
    within = (pixels @ hull.equations[:, :2].T + hull.equations[:, 2] <= 1e-6).all(1)
    return bool(within.mean() > 0.8)


def lifted(scene: SceneMasks) -> bool:
    """Check that the target is 3 cm nearer to the camera than its pixels were when the episode began.

    Raises:
        ValueError: if the camera has no depth.
    """
    if scene.depth is None or scene.initial_depth is None:
        raise ValueError(
            "--env.success=lifted: found no depth from this camera, expected one with `use_depth: true`; or "
            "judge by `--env.success=key`."
        )
    known = scene.target & (scene.depth > 0) & (scene.initial_depth > 0)
    risen = (scene.initial_depth - scene.depth)[known]
    return bool(risen.size >= _MIN_PIXELS and np.median(risen) > _LIFTED_MM)


CHECKS: dict[str, Callable[[SceneMasks], bool]] = {"inside": inside, "lifted": lifted}


class SuccessCheck:
    """Segment every n-th frame, and report success when two frames in a row meet the goal.

    Args:
        name: of `CHECKS`.
        segmenter: see `make_segmenter`.
        target, container: class names of the segmenter; `lifted` needs no container.
        every: control periods between checks.

    Raises:
        ValueError: if the segmenter lacks a class.
    """

    def __init__(
        self, name: str, camera: str, segmenter: str, target: str, container: str, every: int = 10
    ) -> None:
        from lerobot_processor_so101.models import make_segmenter  # takes seconds, and `key` needs no model

        self._check, self._camera, self._every = CHECKS[name], camera, every
        self._segmenter: Any = make_segmenter(segmenter)
        names = list(self._segmenter.class_names)
        classes = [target] + ([container] if container else [])
        if missing := [name for name in classes if name not in names]:
            raise ValueError(
                f"--env.target, --env.container: found {missing}, expected classes of {segmenter!r}: {names}."
            )
        self._ids = [names.index(name) for name in classes]
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._ticks, self._in_a_row = 0, 0
        self._initial_depth: np.ndarray | None = None

    @torch.no_grad()
    def __call__(self, observation: dict[str, Any]) -> bool:
        """Return whether a robot's observation meets the goal."""
        depth = observation.get(f"{self._camera}_depth")
        depth = None if depth is None else np.asarray(depth, dtype=np.float32)[..., 0]  # (H, W)
        if self._initial_depth is None:
            self._initial_depth = depth
        self._ticks += 1
        if self._ticks % self._every:
            return False
        image = torch.from_numpy(np.ascontiguousarray(observation[self._camera]))  # (H, W, 3) uint8
        size = (image.shape[0], image.shape[1])
        ids = self._segmenter(image.permute(2, 0, 1)[None].float() / 255).ids(size)[0].numpy()
        masks = [ids == class_id for class_id in self._ids] + [np.zeros(size, bool)]
        met = self._check(SceneMasks(masks[0], masks[1], depth, self._initial_depth))
        self._in_a_row = self._in_a_row + 1 if met else 0
        return self._in_a_row >= 2
