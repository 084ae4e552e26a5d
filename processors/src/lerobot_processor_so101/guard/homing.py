# SPDX-License-Identifier: Apache-2.0
"""Find a way home around the table and the workspace boundary, where the straight way is blocked.

The three joints that raise and lower the hand are searched on a grid, best first, until the rest of the way
is straight. It takes two seconds at most, and nothing where the way is free.
"""

import heapq
import itertools

import numpy as np

from .core import excess
from .limits import GuardLimits

_STEPS = (6.0, 3.0)  # deg, of the grid; the finer one finds narrow ways
_LIFT = slice(1, 4)
_MOVES = np.array([move for move in itertools.product((-1, 0, 1), repeat=3) if any(move)])  # (26, 3)
_LARGEST_SEARCH = 5000  # poses
_MARGIN = 0.001  # m; commands on the way are rounded to encoder steps


def way_home(pose: np.ndarray, home: np.ndarray, limits: GuardLimits) -> np.ndarray | None:
    """Find poses to move through, each in a straight line of joint positions.

    Args:
        pose, home: present positions and those to move to, (6,) [deg; gripper in percent].
        limits: table and workspace; if the arm is outside, it goes no further out.

    Returns:
        (K, 6) poses, the last one is home; None if none were found.
    """
    ways = (_search(pose, home, limits, step) for step in _STEPS)
    return next((way for way in ways if way is not None), None)


def _search(pose: np.ndarray, home: np.ndarray, limits: GuardLimits, step: float) -> np.ndarray | None:
    bound = np.maximum(excess(pose[None], limits)[0], -_MARGIN)

    def poses_of(cells: np.ndarray) -> np.ndarray:
        """Return the poses (K, 6) of cells (K, 3)."""
        poses = np.repeat(pose[None], len(cells), 0)
        poses[:, _LIFT] += step * cells
        return poses

    def is_free(begin: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether the straight ways from a pose (6,) to others (K, 6) are in bounds, (K,)."""
        n = int(np.ceil(np.abs(ends - begin).max() / 2)) + 1  # every 2 deg
        path = begin + (ends - begin) * np.linspace(0, 1, n)[:, None, None]
        return (excess(path.reshape(-1, 6), limits) <= bound).all(1).reshape(n, len(ends)).all(0)

    low, high = np.minimum(limits.lower, pose)[_LIFT], np.maximum(limits.upper, pose)[_LIFT]
    start: tuple[int, ...] = (0, 0, 0)
    parents, queue = {start: start}, [(0.0, start)]
    while queue and len(parents) < _LARGEST_SEARCH:
        key = heapq.heappop(queue)[1]
        begin = poses_of(np.array([key]))[0]
        if is_free(begin, home[None])[0]:
            way = [home]
            while key != start:
                way.append(poses_of(np.array([key]))[0])
                key = parents[key]
            return np.array(way[::-1])
        cells = key + _MOVES
        ends = poses_of(cells)
        inside = ((ends[:, _LIFT] >= low) & (ends[:, _LIFT] <= high)).all(1)
        inside &= [tuple(found) not in parents for found in cells.tolist()]
        free = np.flatnonzero(inside)
        free = free[is_free(begin, ends[free])] if len(free) else free
        for index in free:
            new = tuple(cells[index].tolist())
            parents[new] = key
            heapq.heappush(queue, (float(np.abs(ends[index] - home)[_LIFT].sum()), new))
    return None
