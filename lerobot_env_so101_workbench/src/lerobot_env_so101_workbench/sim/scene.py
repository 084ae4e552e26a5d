# SPDX-License-Identifier: Apache-2.0
"""Builds the MuJoCo model: Menagerie's SO-101 on a table, its cameras, and the props of one task.

World frame: origin at the arm's base on the table top, x forward, y left, z up, metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from mujoco import mjtBuiltin, mjtGeom, mjtMark

from lerobot_processor_so101 import arm
from lerobot_processor_so101.arm import arm_model_path
from lerobot_processor_so101.perception.class_map import CLASS_NAMES

from . import assets, servos

CUBE_HALF = 0.015  # m
BOWL_RADIUS = 0.055  # m, inner radius at the rim
BOWL_HEIGHT = 0.030  # m
LIT_POINT = (0.2, 0.0, 0.0)  # m, where the lamp points
SUBSTEPS = 6  # physics steps in one control period of 1/30 s

_VISUAL = 2  # Menagerie's geom group of visible parts

# Surfaces of the table, grey patterns that are tinted by a colour: pattern and repetitions, and marks.
_SURFACES = {
    "plain": (mjtBuiltin.mjBUILTIN_FLAT, 1),
    "checker": (mjtBuiltin.mjBUILTIN_CHECKER, 6),
    "stripes": (mjtBuiltin.mjBUILTIN_GRADIENT, 5),
    "speckles": (mjtBuiltin.mjBUILTIN_FLAT, 3),
    "tiles": (mjtBuiltin.mjBUILTIN_CHECKER, 5),
}
_MARKS: dict[str, dict] = {
    "speckles": {"mark": mjtMark.mjMARK_RANDOM, "random": 0.05, "markrgb": [0.45, 0.45, 0.45]},
    "tiles": {"rgb2": [0.9, 0.9, 0.9], "mark": mjtMark.mjMARK_EDGE, "markrgb": [0.5, 0.5, 0.5]},
}
TABLE_MATERIALS = tuple(_SURFACES)

# Type and size [m] of every shape but the bowl, which consists of several geoms.
_SHAPES: dict[str, tuple[mjtGeom, list[float]]] = {
    "cube": (mjtGeom.mjGEOM_BOX, [CUBE_HALF] * 3),
    "brick": (mjtGeom.mjGEOM_BOX, [0.010, 0.020, 0.010]),
    "can": (mjtGeom.mjGEOM_CYLINDER, [0.014, 0.018, 0]),
    "ball": (mjtGeom.mjGEOM_ELLIPSOID, [0.016, 0.016, 0.010]),  # flattened: it does not roll away
    "post": (mjtGeom.mjGEOM_CYLINDER, [0.012, 0.065, 0]),  # not fixed: contact topples it
    "pad": (mjtGeom.mjGEOM_CYLINDER, [0.02, 0.0015, 0]),
}
# Height of a resting prop's origin above the table [m]: half its height, but 0 for a bowl.
REST_HEIGHT = {
    name: size[1 if kind == mjtGeom.mjGEOM_CYLINDER else 2] for name, (kind, size) in _SHAPES.items()
}
REST_HEIGHT["bowl"] = 0.0


@dataclass(frozen=True)
class Prop:
    """An object on the table. `name` is also its class name in the masks, unless it is a distractor."""

    name: str
    shape: str  # a key of REST_HEIGHT
    rgb: tuple[float, float, float]
    mass: float = 0.03  # kg
    distractor: bool = False


@dataclass(frozen=True)
class Camera:
    """A camera at `pos` [m] directed at `target` [m], on `body` (empty: the world), `fovy` in degrees."""

    pos: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy: float
    body: str = ""
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)


CAMERAS = {
    # Menagerie's camera mount on the gripper; the field of view of the usual 1080p UVC module at 4:3.
    "wrist": Camera((0.0, 0.055, -0.045), (0.0, 0.0154, -0.1068), 70.0, body="gripper", up=(0, 1, 0)),
    # Angled: from straight above, the gripper hides the cube during the grasp.
    "top": Camera((0.62, 0.0, 0.52), (0.17, 0.0, 0.03), 42.0),
    "front": Camera((0.80, 0.0, 0.24), (0.17, 0.0, 0.10), 36.0),
}

DISTRACTORS = (
    Prop("brick", "brick", (0.2, 0.7, 0.3), mass=0.03, distractor=True),
    Prop("can", "can", (0.3, 0.4, 0.9), mass=0.03, distractor=True),
    Prop("ball", "ball", (0.9, 0.8, 0.2), mass=0.03, distractor=True),
)


def class_names(props: Sequence[Prop]) -> tuple[str, ...]:
    """Return the class names of a scene, position = id: the base classes, then the task's props by name."""
    return CLASS_NAMES + tuple(p.name for p in props if not p.distractor and p.name not in CLASS_NAMES)


def build(props: Sequence[Prop], shadows: bool = False) -> mujoco.MjModel:
    """Compile the scene with the given props on the table."""
    spec = mujoco.MjSpec.from_file(str(arm_model_path()))
    _set_options(spec, shadows)
    _lighten_arm(spec)
    _set_servos(spec)
    _add_room(spec)
    _add_cameras(spec)
    for prop in props:
        _add_prop(spec, prop)
    return spec.compile()


def classes_of_geoms(model: mujoco.MjModel, props: Sequence[Prop]) -> np.ndarray:
    """Return the class id of every geom, (ngeom,) uint8; arm, floor and distractors are background."""
    names = class_names(props)
    classes = np.full(model.ngeom, names.index("background"), dtype=np.uint8)
    for name in ("table", "static_finger", "moving_finger"):
        classes[model.geom(name).id] = names.index(name)
    for prop in props:
        if not prop.distractor:
            classes[model.geom_bodyid == model.body(prop.name).id] = names.index(prop.name)
    return classes


def camera_pose(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Return position (3,) and quaternion (4,) of a camera in its body's frame; its optical axis is -z."""
    pos, back = np.array(camera.pos), np.array(camera.pos) - np.array(camera.target)
    z = back / np.linalg.norm(back)
    x = np.cross(camera.up, z)
    x /= np.linalg.norm(x)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([x, np.cross(z, x), z]).ravel())
    return pos, quat


def _set_options(spec: mujoco.MjSpec, shadows: bool) -> None:
    spec.option.timestep = 1.0 / (arm.FPS * SUBSTEPS)
    # A diverged state must reach the environment, which then ends the episode.
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    spec.stat.extent = 1.0
    spec.stat.center = [0.2, 0.0, 0.1]
    spec.visual.map.znear = 0.01
    spec.visual.map.zfar = 5.0
    spec.visual.quality.offsamples = 0  # multi-sampling and shadow maps are slow in software renderers
    spec.visual.quality.shadowsize = 1024 if shadows else 0
    spec.visual.map.shadowclip = 0.7  # half a side of what the shadow map covers [m]: the table
    # Menagerie leaves ambient light to the viewer.
    spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
    spec.visual.headlight.diffuse = [0.25, 0.25, 0.25]
    spec.visual.headlight.specular = [0.0, 0.0, 0.0]


def _lighten_arm(spec: mujoco.MjSpec) -> None:
    """Replace the visual meshes by the simplified ones and make each finger a geom of its own."""
    used = {geom.meshname for geom in spec.geoms if geom.meshname}
    for mesh in spec.meshes:
        if mesh.name in used and "_part" not in mesh.name:
            mesh.file = str(assets.visual_mesh(mesh.name))
    spec.add_mesh(name=assets.FINGER_MESH, file=str(assets.visual_mesh(assets.FINGER_MESH)))
    follower, jaw = (next(g for g in spec.geoms if g.meshname == name) for name in assets.JAW_MESHES)
    jaw.name = "moving_finger"
    spec.body("gripper").add_geom(
        follower.classname,
        name="static_finger",
        type=mjtGeom.mjGEOM_MESH,
        meshname=assets.FINGER_MESH,
        pos=follower.pos,
        quat=follower.quat,
        material=follower.material,
    )


def _set_servos(spec: mujoco.MjSpec) -> None:
    """Set torque limits, and speed limits as back-EMF damping that equals the torque at no-load speed."""
    for name in arm.JOINTS:
        joint, actuator = spec.joint(name), spec.actuator(name)
        torque = servos.GRIPPER_TORQUE if name == "gripper" else servos.STALL_TORQUE
        actuator.forcerange = [-torque, torque]
        joint.damping[0] = (servos.STALL_TORQUE - joint.frictionloss) / servos.NO_LOAD_SPEED


def _add_room(spec: mujoco.MjSpec) -> None:
    world = spec.worldbody
    direction = np.array([-0.1, 0.3, -1.2])
    light = world.add_light(name="lamp", pos=LIT_POINT - direction, dir=direction)
    light.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    light.diffuse, light.specular = [0.55, 0.55, 0.55], [0.05, 0.05, 0.05]
    light.castshadow = spec.visual.quality.shadowsize > 0
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.75, 0.78, 0.82],
        rgb2=[0.45, 0.47, 0.50],
        width=64,
        height=64,
    )
    for name, (pattern, repeat) in _SURFACES.items():
        greys = {"rgb1": [0.95, 0.95, 0.95], "rgb2": [0.7, 0.7, 0.7], **_MARKS.get(name, {})}
        kind, texture = mujoco.mjtTexture.mjTEXTURE_2D, f"table_{name}"
        spec.add_texture(name=texture, type=kind, builtin=pattern, width=128, height=128, **greys)
        material = spec.add_material(name=texture, rgba=[0.82, 0.76, 0.66, 1], texrepeat=[repeat, repeat])
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture
    world.add_geom(
        name="table",
        type=mjtGeom.mjGEOM_BOX,
        size=[0.35, 0.45, 0.02],
        pos=[0.25, 0.0, -0.02],
        material="table_plain",
        group=_VISUAL,
        friction=[1.0, 0.005, 0.0001],
    )
    world.add_geom(
        name="floor",
        type=mjtGeom.mjGEOM_PLANE,
        size=[3, 3, 0.1],
        pos=[0, 0, -0.75],
        rgba=[0.42, 0.40, 0.38, 1],
        group=_VISUAL,
        contype=0,
        conaffinity=0,
    )


def _add_cameras(spec: mujoco.MjSpec) -> None:
    spec.delete(spec.camera("wrist_cam"))  # Menagerie's, replaced by ours
    for name, camera in CAMERAS.items():
        pos, quat = camera_pose(camera)
        body = spec.body(camera.body) if camera.body else spec.worldbody
        body.add_camera(name=name, pos=pos, quat=quat, fovy=camera.fovy)


def _add_prop(spec: mujoco.MjSpec, prop: Prop) -> None:
    body = spec.worldbody.add_body(name=prop.name, pos=[0.25, 0.0, 0.2])
    body.add_freejoint(name=prop.name)
    if prop.shape == "bowl":
        _add_bowl(body, prop)
    else:
        geom_type, size = _SHAPES[prop.shape]
        _add_geom(body, prop, type=geom_type, size=size, mass=prop.mass)


def _add_geom(body: mujoco.MjsBody, prop: Prop, **kwargs) -> None:
    body.add_geom(
        rgba=[*prop.rgb, 1.0],
        group=_VISUAL,
        condim=4,
        friction=[1.0, 0.005, 0.0001],
        solref=[0.01, 1.0],
        **kwargs,
    )


def _add_bowl(body: mujoco.MjsBody, prop: Prop) -> None:
    """Add a low bowl: a disc and twelve walls that lean outwards by 20 deg; its origin is the underside."""
    n_walls, lean, thickness = 12, np.radians(20.0), 0.0025
    foot = BOWL_RADIUS - BOWL_HEIGHT * np.tan(lean)
    disc = {"type": mjtGeom.mjGEOM_CYLINDER, "size": [foot, thickness, 0], "pos": [0, 0, thickness]}
    _add_geom(body, prop, **disc, mass=prop.mass / 2)
    slant = BOWL_HEIGHT / np.cos(lean) / 2
    middle = (foot + BOWL_RADIUS) / 2
    for angle in np.arange(n_walls) * 2 * np.pi / n_walls:
        turn, tilt, quat = np.zeros(4), np.zeros(4), np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, [0, 0, 1], angle)
        mujoco.mju_axisAngle2Quat(tilt, [0, 1, 0], lean)
        mujoco.mju_mulQuat(quat, turn, tilt)
        _add_geom(
            body,
            prop,
            type=mjtGeom.mjGEOM_BOX,
            size=[thickness, middle * np.tan(np.pi / n_walls) * 1.15, slant],
            pos=[middle * np.cos(angle), middle * np.sin(angle), BOWL_HEIGHT / 2],
            quat=quat,
            mass=prop.mass / 2 / n_walls,
        )
