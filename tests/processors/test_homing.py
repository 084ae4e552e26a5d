# SPDX-License-Identifier: Apache-2.0
"""Ways home from folded poses near the table."""

import numpy as np
import pytest

from lerobot_processor_so101.arm import HOME
from lerobot_processor_so101.guard import Guard, GuardLimits, reach, way_home

LIMITS = GuardLimits()
TICK = 1 / 30


def poses_near_the_table(count):
    """Random poses whose lowest point is at most 3.5 cm above the guard's table."""
    rng, box, found = np.random.default_rng(0), np.array(LIMITS.workspace), []
    while len(found) < count:
        poses = rng.uniform(LIMITS.lower, LIMITS.upper, (2000, 6))
        tool, lowest = reach(poses)
        near = (lowest > LIMITS.table) & (lowest < 0.03)
        found += list(poses[near & (tool > box[:3]).all(1) & (tool < box[3:]).all(1)])
    return found[:count]


def arrives(pose, way):
    """Whether an arm that is always at its goal comes home along these poses under the guard."""
    now = [0.0]
    guard = Guard(LIMITS, lambda: now[0])
    guard.initialise(pose)
    at = begin = pose
    for corner in way:
        ticks = int(np.ceil(np.max(np.abs(corner - begin) / (0.8 * LIMITS.velocities)) / TICK)) + 1
        for tick in range(1, ticks + 1):
            now[0] += TICK
            at = guard.check(begin + (corner - begin) * tick / ticks)
        begin = corner
    return np.abs(at - HOME).max() < 1


@pytest.mark.slow
def test_most_folded_poses_come_home():
    poses = poses_near_the_table(100)
    straight = sum(arrives(pose, [HOME]) for pose in poses)
    ways = [way_home(pose, HOME, LIMITS) for pose in poses]
    assert straight < 87
    assert all(arrives(pose, way) for pose, way in zip(poses, ways, strict=True) if way is not None)
    assert sum(way is not None for way in ways) >= 96


def test_a_free_way_is_straight():
    np.testing.assert_array_equal(way_home(HOME + [30, 0, 0, 0, 0, 0], HOME, LIMITS), HOME[None])
