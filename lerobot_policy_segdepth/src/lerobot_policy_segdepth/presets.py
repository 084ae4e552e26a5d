# SPDX-License-Identifier: Apache-2.0
"""Presets: named sets of defaults for `SegDepthConfig`.

`handoff` follows the handoff note of pick-101, and `pick101` follows the training of that project's networks;
the two differ in fourteen points (docs/segdepth.md). `recommended` is this package's own. Every difference is
a field of the configuration and can be set by itself.
"""

from typing import Any

CENTRAL_SQUARE = [0.0, 0.125, 1.0, 0.75]  # 480 x 480 of 640 x 480

_RECOMMENDED: dict[str, Any] = {
    "cameras": ["top", "wrist"],
    "n_obs_steps": 1,
    "fps": 30,
    "stack_period": 1 / 30,
    "class_values": [],
    "crop": [],
    "crop_first": False,
    "interpolation": "area",
    "whole_disparity": False,
    "encoder": "both",
    "pixel_offset": 0.0,
    "random_shift": 6,
    "state_noise": 0.03,
    "proprioception": "joints",
    "action_space": "joints",
    "chunk_size": 4,
    "n_action_steps": 4,
    "action_repeat": 1,
    "optimizer_lr": 4e-3,
}

_HANDOFF: dict[str, Any] = {
    **_RECOMMENDED,
    "cameras": ["wrist"],
    "n_obs_steps": 3,
    "class_values": [0, 1, 2, 3, 4, 5],
    "crop": CENTRAL_SQUARE,
    "interpolation": "linear",
    "whole_disparity": True,
    "encoder": "drqv2",
    "random_shift": 4,
    "state_noise": 0.0,
    "proprioception": "none",
    "action_space": "joint_deltas",
    "chunk_size": 1,
    "n_action_steps": 1,
    "action_repeat": 2,
    "optimizer_lr": 1e-4,
}

_PICK101: dict[str, Any] = {
    **_HANDOFF,
    "fps": 50,
    "stack_period": 0.02,
    "class_values": [0, 0, 1, 2, 3, 4],
    "interpolation": "area",
    "pixel_offset": 0.5,
    "proprioception": "joints_velocities_tool",
    "action_space": "tool_deltas",
    "action_repeat": 1,
}

PRESETS = {"recommended": _RECOMMENDED, "handoff": _HANDOFF, "pick101": _PICK101}
