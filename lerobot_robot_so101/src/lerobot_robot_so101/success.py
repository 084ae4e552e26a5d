# SPDX-License-Identifier: Apache-2.0
"""Named checks that see whether the goal is met, by masks and depth of one camera."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError

from lerobot_processor_so101.segmenters import make_segmenter

_LEAST_PIXELS = 12
_LIFTED = 30.0  # mm nearer to the camera than what lay there before


@dataclass(frozen=True)
class Seen:
    """A camera's picture, understood.

    Attributes:
        target, container: masks, (H, W) bool; the container's is empty if there is none.
        depth: (H, W) [mm]; None where the camera has none.
        before: depth when the episode began.
    """

    target: np.ndarray
    container: np.ndarray
    depth: np.ndarray | None
    before: np.ndarray | None


def inside(seen: Seen) -> bool:
    """Most of the target lies within the container's outline."""
    if min(seen.target.sum(), seen.container.sum()) < _LEAST_PIXELS:
        return False
    try:
        hull = ConvexHull(np.argwhere(seen.container))
    except QhullError:
        return False
    pixels = np.argwhere(seen.target)
    within = (pixels @ hull.equations[:, :2].T + hull.equations[:, 2] <= 1e-6).all(1)
    return bool(within.mean() > 0.8)


def lifted(seen: Seen) -> bool:
    """The target is nearer to the camera than what was seen in its place when the episode began.

    Raises:
        ValueError: the camera gives no depth.
    """
    if seen.depth is None or seen.before is None:
        raise ValueError(
            "--env.success=lifted: found no depth from this camera, expected one with `use_depth: true`; or judge by "
            "`--env.success=key`."
        )
    known = seen.target & (seen.depth > 0) & (seen.before > 0)
    return bool(known.sum() >= _LEAST_PIXELS and np.median((seen.before - seen.depth)[known]) > _LIFTED)


CHECKS: dict[str, Callable[[Seen], bool]] = {"inside": inside, "lifted": lifted}


class SuccessCheck:
    """Looks at every so many ticks, and believes what it has seen twice in a row.

    Args:
        name: of `CHECKS`.
        camera: whose pictures.
        segmenter: a name that `make_segmenter` knows.
        target, container: class names of that segmenter; the container may be empty for `lifted`.
        every: ticks.

    Raises:
        ValueError: an unknown class.
    """

    def __init__(
        self, name: str, camera: str, segmenter: str, target: str, container: str, every: int = 10
    ) -> None:
        self._check, self._camera, self._every = CHECKS[name], camera, every
        self._segmenter: Any = make_segmenter(segmenter)
        names = list(self._segmenter.class_names)
        wanted = [target] + ([container] if container else [])
        missing = [word for word in wanted if word not in names]
        if missing:
            raise ValueError(
                f"--env.target, --env.container: found {missing}, expected classes of {segmenter!r}: {names}."
            )
        self._ids = [names.index(word) for word in wanted]
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self._ticks, self._in_a_row = 0, 0
        self._before: np.ndarray | None = None

    @torch.no_grad()
    def __call__(self, observation: dict[str, Any]) -> bool:
        """Whether the goal is met, by a robot's observation."""
        depth = observation.get(f"{self._camera}_depth")
        depth = None if depth is None else np.asarray(depth, dtype=np.float32)[..., 0]
        if self._before is None:
            self._before = depth
        self._ticks += 1
        if self._ticks % self._every:
            return False
        picture = torch.from_numpy(np.ascontiguousarray(observation[self._camera]))
        ids = self._segmenter(picture.permute(2, 0, 1)[None].float() / 255).ids(
            (picture.shape[0], picture.shape[1])
        )
        masks = [ids[0].numpy() == id_ for id_ in self._ids] + [np.zeros(picture.shape[:2], bool)]
        met = self._check(Seen(masks[0], masks[1], depth, self._before))
        self._in_a_row = self._in_a_row + 1 if met else 0
        return self._in_a_row >= 2
