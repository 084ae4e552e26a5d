# SPDX-License-Identifier: Apache-2.0
"""The arm's model and meshes, taken from the installed wheel of `so101-nexus` and simplified once.

The wheel carries MuJoCo Menagerie's `robotstudio_so101` (Apache-2.0). Its visual meshes have about 350,000
triangles, which makes software rendering slow. Welded to a 1 mm grid and simplified, the visible ones have
19,000 and deviate by less than 1 mm on the jaws. They are stored in the user's cache
(`SO101_WORKBENCH_CACHE` sets another folder).
"""

import hashlib
import os
from pathlib import Path

import fast_simplification
import numpy as np
import trimesh

from lerobot_processor_so101.arm import arm_model_path
from lerobot_processor_so101.atomic import atomic_path

_RECIPE = "weld1mm-v2"  # part of the cache key: change it with the procedure
_FACES, _JAW_FACES = 1000, 2000
_FINGER_SOURCE = "wrist_roll_follower_so101_v1"
JAW_MESHES = (_FINGER_SOURCE, "moving_jaw_so101_v1")
FINGER_MESH = "static_finger"


def visual_mesh(name: str) -> Path:
    """Return the path of a simplified visual mesh by its name in `so101.xml`, created on first use.

    `static_finger` is cut out of the wrist-roll follower's mesh, to be a geom, hence a class, of its own.
    """
    source = arm_model_path().parent / "assets" / f"{_FINGER_SOURCE if name == FINGER_MESH else name}.stl"
    digest = hashlib.sha256(source.read_bytes() + _RECIPE.encode()).hexdigest()[:12]
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "so101_workbench"
    cache = Path(os.environ.get("SO101_WORKBENCH_CACHE", default)).expanduser()
    path = cache / f"{name}-{digest}.stl"
    if not path.is_file():
        with atomic_path(path) as temporary:  # parallel environments may build the cache at the same time
            _simplified(source, name).export(temporary, file_type="stl")
    return path


def _simplified(source: Path, name: str) -> trimesh.Trimesh:
    mesh = trimesh.load_mesh(source)
    # Welding first: the CAD export repeats vertices, and the simplifier stalls on the seams.
    mesh.merge_vertices(merge_tex=True, merge_norm=True, digits_vertex=3)
    mesh.update_faces(mesh.nondegenerate_faces())
    target = _JAW_FACES if source.stem in JAW_MESHES else _FACES
    if len(mesh.faces) > target:
        points, faces = fast_simplification.simplify(
            mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), target_count=target
        )
        mesh = trimesh.Trimesh(points, faces, process=False)
    if source.stem == _FINGER_SOURCE:
        centres = mesh.triangles_center
        finger = (centres[:, 2] > 0.0397) & (centres[:, 0] < -0.0078)
        mesh.update_faces(finger if name == FINGER_MESH else ~finger)
    mesh.remove_unreferenced_vertices()
    return mesh
