# SPDX-License-Identifier: Apache-2.0
"""Chooses the points of the arm by which the guard tells how low it reaches, and says what they miss.

    python -m benchmarks.guard_points

Menagerie's meshes have thousands of vertices. For the parts that can come near the table, the few are kept that together come
closest to the height of the lowest vertex, over random poses within the joint ranges. Writes
processors/src/lerobot_processor_so101/guard/geometry.json, with the frames of the joints; some two minutes.
"""

import json
from pathlib import Path

import mujoco
import numpy as np
from scipy.spatial import ConvexHull

from lerobot_processor_so101.arm_model import arm_model_path

from .report import table

# How many points of each; parts that are always higher than the table or than another part are left out.
PARTS = {"lower_arm": 8, "gripper": 16, "camera_mount": 8, "moving_jaw_so101_v1": 12}
LINKS = ("shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "moving_jaw_so101_v1")
OUT = Path("processors/src/lerobot_processor_so101/guard/geometry.json")


def corners(model: mujoco.MjModel, body: str) -> np.ndarray:
    """Corners of the convex hull of a body's meshes, (N, 3) in its frame [m]."""
    points = []
    for geom in np.flatnonzero(model.geom_bodyid == model.body(body).id):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        first, count = (
            model.mesh_vertadr[model.geom_dataid[geom]],
            model.mesh_vertnum[model.geom_dataid[geom]],
        )
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, model.geom_quat[geom])
        points.append(model.mesh_vert[first : first + count] @ turn.reshape(3, 3).T + model.geom_pos[geom])
    joined = np.concatenate(points)
    return joined[ConvexHull(joined).vertices]


def heights(model: mujoco.MjModel, poses: np.ndarray, body: str, points: np.ndarray) -> np.ndarray:
    """Heights of points of a body in each pose, (P, N) [m]."""
    data, found = mujoco.MjData(model), []
    for pose in poses:
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        place = data.body(body)
        found.append((points @ place.xmat.reshape(3, 3)[2] + place.xpos[2]).astype(np.float32))
    return np.stack(found)


def choose(heights: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """The points that together are closest to the lowest, one after another, and what they miss in each pose [m]."""
    lowest, seen, chosen = heights.min(1), np.full(len(heights), np.inf, np.float32), []
    for _ in range(count):
        missed = np.minimum(seen[:, None], heights) - lowest[:, None]
        chosen.append(int(np.square(missed).mean(0).argmin()))
        seen = np.minimum(seen, heights[:, chosen[-1]])
    return chosen, seen - lowest


def main() -> None:
    model = mujoco.MjModel.from_xml_path(str(arm_model_path()))
    poses = np.random.default_rng(0).uniform(*model.jnt_range.T, (6000, model.nq))
    points, rows = {}, []
    for body, count in PARTS.items():
        candidates = corners(model, body)
        chosen, missed = choose(heights(model, poses, body, candidates), count)
        points[body] = candidates[chosen].round(4).tolist()
        figures = (np.quantile(missed, 0.99), missed.max())
        rows.append([body, str(len(candidates)), str(count), *(f"{1000 * figure:.1f}" for figure in figures)])
    print(table(["part", "corners", "kept", "missed p99 [mm]", "at most [mm]"], rows))
    frames = [[model.body(link).pos.tolist(), model.body(link).quat.tolist()] for link in LINKS]
    on_gripper = points["gripper"] + points["camera_mount"]  # the mount is part of the gripper
    geometry = {
        "frames": frames,
        "points": {"2": points["lower_arm"], "4": on_gripper, "5": points["moving_jaw_so101_v1"]},
    }
    OUT.write_text(json.dumps(geometry) + "\n")
    print("written to", OUT)


if __name__ == "__main__":
    main()
