# SPDX-License-Identifier: Apache-2.0
"""Variations of `randomised` worlds: lights, textures, colours, camera poses, mass, friction and latency.

A variation is plain numbers, so it can be frozen in a JSON file; `VariationApplier` writes it into a model.
"""

import colorsys
from dataclasses import dataclass, field

import mujoco
import numpy as np

from .scene import CAMERAS, LIT_POINT, TABLE_MATERIALS, Prop

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Variation:
    """Everything that `randomised` varies; the defaults are the values of the scene."""

    lamp_direction: tuple[float, float, float] = (-0.1, 0.3, -1.2)
    lamp_brightness: float = 0.55
    ambient: float = 0.35
    table_material: str = "plain"
    table_rgb: Rgb = (0.82, 0.76, 0.66)
    floor_rgb: Rgb = (0.42, 0.40, 0.38)
    arm_rgb: Rgb = (1.0, 0.82, 0.12)
    prop_rgb: dict[str, Rgb] = field(default_factory=dict)
    # Per camera: shift x, y, z [m]; turn about x, y, z [deg]; change of the field of view [deg].
    cameras: dict[str, tuple[float, ...]] = field(default_factory=dict)
    mass_scale: float = 1.0
    friction_scale: float = 1.0
    latency_ticks: int = 0  # control periods by which every command is delayed


def sample(props: tuple[Prop, ...], rng: np.random.Generator) -> Variation:
    """Draw a variation for a scene with these props."""
    return Variation(
        lamp_direction=(rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), -1.0),
        lamp_brightness=rng.uniform(0.3, 0.8),
        ambient=rng.uniform(0.2, 0.45),
        table_material=TABLE_MATERIALS[rng.integers(len(TABLE_MATERIALS))],
        table_rgb=_any_colour(rng, saturation=0.5, value=(0.35, 1.0)),
        floor_rgb=_any_colour(rng, saturation=0.3, value=(0.2, 0.7)),
        arm_rgb=_any_colour(rng, saturation=1.0, value=(0.3, 1.0)),
        prop_rgb={prop.name: _prop_colour(prop, rng) for prop in props},
        cameras={name: _camera_offset(bool(camera.body), rng) for name, camera in CAMERAS.items()},
        mass_scale=rng.uniform(0.6, 1.6),
        friction_scale=rng.uniform(0.7, 1.3),
        latency_ticks=int(rng.integers(0, 3)),
    )


def _any_colour(rng: np.random.Generator, saturation: float, value: tuple[float, float]) -> Rgb:
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, saturation), rng.uniform(*value))


def _prop_colour(prop: Prop, rng: np.random.Generator) -> Rgb:
    """Draw any vivid colour, or a shade of the colour in the prop's name."""
    if prop.distractor or prop.name == prop.shape:
        return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0))
    hue, saturation, value = colorsys.rgb_to_hsv(*prop.rgb)
    hue = (hue + rng.uniform(-0.025, 0.025)) % 1.0
    saturation = float(np.clip(saturation * rng.uniform(0.85, 1.1), 0, 1))
    return colorsys.hsv_to_rgb(hue, saturation, float(np.clip(value * rng.uniform(0.75, 1.2), 0, 1)))


def _camera_offset(on_arm: bool, rng: np.random.Generator) -> tuple[float, ...]:
    shift, turn = (0.004, 2.0) if on_arm else (0.02, 3.0)
    return (*rng.uniform(-shift, shift, 3), *rng.uniform(-turn, turn, 3), rng.uniform(-2.0, 2.0))


class VariationApplier:
    """Writes variations into a model, each relative to the model's original values."""

    _VARIED = (
        *("geom_rgba", "geom_matid", "geom_friction", "mat_rgba", "body_mass", "body_inertia"),
        *("cam_pos", "cam_quat", "cam_fovy", "light_pos", "light_dir", "light_diffuse"),
    )

    def __init__(self, model: mujoco.MjModel, props: tuple[Prop, ...]) -> None:
        self._model, self._props = model, props
        self._original = {name: getattr(model, name).copy() for name in self._VARIED}
        self._ambient = model.vis.headlight.ambient.copy()
        self._scratch = mujoco.MjData(model)

    def apply(self, variation: Variation | None) -> None:
        """Set the model to `variation`; None restores its original values."""
        for name, value in self._original.items():
            getattr(self._model, name)[:] = value
        self._model.vis.headlight.ambient[:] = self._ambient
        if variation is not None:
            self._apply_appearance(variation)
            self._apply_cameras(variation)
            self._apply_physics(variation)
        # Contact stiffness depends on masses: without this call a heavier cube bounces off the table.
        mujoco.mj_setConst(self._model, self._scratch)

    def _apply_appearance(self, variation: Variation) -> None:
        model = self._model
        model.light_dir[0] = np.array(variation.lamp_direction) / np.linalg.norm(variation.lamp_direction)
        # Light is parallel: the position only centres the shadow map, without which surfaces become striped.
        model.light_pos[0] = np.subtract(LIT_POINT, variation.lamp_direction)
        model.light_diffuse[0] = variation.lamp_brightness
        model.vis.headlight.ambient[:] = variation.ambient
        material = model.material(f"table_{variation.table_material}").id
        model.geom_matid[model.geom("table").id] = material
        model.mat_rgba[material, :3] = variation.table_rgb
        model.geom_rgba[model.geom("floor").id, :3] = variation.floor_rgb
        printed = [i for i in range(model.nmat) if model.material(i).name.endswith("_material")]
        dark = model.mat_rgba[printed, :3].max(axis=1) < 0.3  # the servos stay black
        model.mat_rgba[np.array(printed)[~dark], :3] = variation.arm_rgb
        for name, rgb in variation.prop_rgb.items():
            model.geom_rgba[model.geom_bodyid == model.body(name).id, :3] = rgb

    def _apply_cameras(self, variation: Variation) -> None:
        for name, offset in variation.cameras.items():
            camera = self._model.camera(name).id
            turn, quat = np.zeros(4), np.zeros(4)
            mujoco.mju_euler2Quat(turn, np.radians(offset[3:6]), "xyz")
            mujoco.mju_mulQuat(quat, self._model.cam_quat[camera], turn)
            self._model.cam_pos[camera] += offset[:3]
            self._model.cam_quat[camera] = quat
            self._model.cam_fovy[camera] += offset[6]

    def _apply_physics(self, variation: Variation) -> None:
        bodies = [self._model.body(prop.name).id for prop in self._props]
        self._model.body_mass[bodies] *= variation.mass_scale
        self._model.body_inertia[bodies] *= variation.mass_scale
        self._model.geom_friction[:, 0] *= variation.friction_scale
