# SPDX-License-Identifier: Apache-2.0
"""Choose the points of the arm by which the guard computes its lowest height, and report what they miss.

    python -m benchmarks.safety.guard_points

Menagerie's meshes have thousands of vertices. For the parts that can come near the table, this keeps the few
that together come closest to the height of the lowest vertex, over random poses within the joint ranges.
Writes processors/src/lerobot_processor_so101/guard/points.json; two minutes.
"""

import json
from pathlib import Path

import mujoco
import numpy as np
from scipy.spatial import ConvexHull

from lerobot_processor_so101.arm import arm_model_path

from ..lib.report import table

# Points kept of each; parts that are always higher than the table or than another part are left out.
PARTS = {"lower_arm": 8, "gripper": 16, "camera_mount": 8, "moving_jaw_so101_v1": 12}
OUT = Path("processors/src/lerobot_processor_so101/guard/points.json")


def corners(model: mujoco.MjModel, body: str) -> np.ndarray:
    """Return the corners of the convex hull of a body's meshes, (N, 3) in its frame [m]."""
    points = []
    for geom in np.flatnonzero(model.geom_bodyid == model.body(body).id):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        mesh, rotation = model.geom_dataid[geom], np.zeros(9)
        first = model.mesh_vertadr[mesh]
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
        points.append(vertices @ rotation.reshape(3, 3).T + model.geom_pos[geom])
    joined = np.concatenate(points)
    return joined[ConvexHull(joined).vertices]


def heights(model: mujoco.MjModel, poses: np.ndarray, body: str, points: np.ndarray) -> np.ndarray:
    """Return the heights of points of a body in each pose, (P, N) [m]."""
    data, found = mujoco.MjData(model), []
    for pose in poses:
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        frame = data.body(body)
        found.append((points @ frame.xmat.reshape(3, 3)[2] + frame.xpos[2]).astype(np.float32))
    return np.stack(found)


def choose(heights: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """Choose the points that together are closest to the lowest, and return how far they are above it [m]."""
    lowest, reached, chosen = heights.min(1), np.full(len(heights), np.inf, np.float32), []
    for _ in range(count):
        missed = np.minimum(reached[:, None], heights) - lowest[:, None]
        chosen.append(int(np.square(missed).mean(0).argmin()))
        reached = np.minimum(reached, heights[:, chosen[-1]])
    return chosen, reached - lowest


def main() -> None:
    model = mujoco.MjModel.from_xml_path(str(arm_model_path()))
    poses = np.random.default_rng(0).uniform(*model.jnt_range.T, (6000, model.nq))
    points, rows = {}, []
    for body, count in PARTS.items():
        candidates = corners(model, body)
        chosen, missed = choose(heights(model, poses, body, candidates), count)
        points[body] = candidates[chosen].round(4).tolist()
        p99, largest = 1000 * np.quantile(missed, 0.99), 1000 * missed.max()
        rows.append([body, len(candidates), count, f"{p99:.1f}", f"{largest:.1f}"])
    print(table(["part", "corners", "kept", "missed p99 [mm]", "at most [mm]"], rows))
    on_gripper = points["gripper"] + points["camera_mount"]  # the mount is part of the gripper
    kept = {"2": points["lower_arm"], "4": on_gripper, "5": points["moving_jaw_so101_v1"]}
    OUT.write_text(json.dumps(kept) + "\n")
    print("written to", OUT)


if __name__ == "__main__":
    main()
