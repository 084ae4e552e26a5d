# SPDX-License-Identifier: Apache-2.0
"""Read RoboBase's `*_snapshot.pt` without running code in it.

A snapshot is a pickle with tensors and a configuration of OmegaConf's classes. PyTorch's restricted unpickler
reads it; every class of OmegaConf becomes an inert record of its attributes, and any other class is refused
by name. It contains 98 tensors, of which the actor is 22; the rest are critics, unused hidden states and a
copy of the actor.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The only supported input: three frames of ids and disparity, and 18 joint values each.
FRAMES, PLANES, STATE = 3, 2, 18
_HARMLESS = {"typing.Any", "collections.defaultdict"} | {
    f"builtins.{name}" for name in ("dict", "list", "tuple", "set", "int", "float", "str", "bool", "bytes")
}
_IGNORED = ("critic.", "critic_target.", "actor_model.")
_ACTOR = "actor.actor_model"
_INPUT = f"{_ACTOR}.input_preprocess_modules"
_NAMES = {  # names in `DrQv2Model` by RoboBase's, without .weight and .bias
    **{f"encoder.convs_per_cam.0.{3 * i}": f"encoder.convs.{i}" for i in range(4)},
    **{f"{_INPUT}.fused_view_feats.{i}": f"actor.see.{i}" for i in (0, 1)},
    **{f"{_INPUT}.low_dim_obs.{i}": f"actor.feel.{i}" for i in (0, 1)},
    f"{_ACTOR}.main_mlp.0": "actor.trunk.0",
    f"{_ACTOR}.main_mlp.3": "actor.trunk.2",
    f"{_ACTOR}.out_mlp.0": "actor.head",
}


class Inert(dict):
    """Replace an object whose class is not imported, keeping its saved state."""

    def __init__(self, *args: Any) -> None:
        self.saved: Any = args

    def __setstate__(self, state: Any) -> None:
        self.saved = state


def read_snapshot(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a snapshot file.

    Returns:
        The actor's tensors, by the names of `DrQv2Model`, and the flat configuration:
        {"env.obs_type": "seg_depth", …}.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a snapshot, or contains objects of other classes or a network of another
            layout; the message names the key.
    """
    saved = _unpickle(path)
    agent = saved.get("agent")
    if not isinstance(agent, dict) or not all(isinstance(value, Tensor) for value in agent.values()):
        raise ValueError(
            f"{path}: found the keys {sorted(map(str, saved))[:8]}, expected 'agent', a flat dictionary of "
            "tensors, as RoboBase's workspace saves it."
        )
    config, kinds = flatten(saved.get("cfg")), ("weight", "bias")
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _NAMES.items() for kind in kinds}
    _check_names(path, agent, set(names))
    _check_inputs(path, agent, config)
    return {ours: agent[name] for name, ours in names.items()}, config


def _unpickle(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise ValueError(f"{path}: found no file of PyTorch ({type(error).__name__}).") from None
    foreign = [name for name in classes if not name.startswith("omegaconf.") and name not in _HARMLESS]
    if foreign:
        raise ValueError(
            f"{path}: refused. Found objects of {foreign[:5]}, expected only tensors and OmegaConf's "
            "configuration. No code of it was run."
        )
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in classes]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: refused, it is damaged ({str(error).splitlines()[0][:160]}).") from None
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path}: found a {type(saved).__name__}, expected a dictionary with the key 'agent'."
        )
    return saved


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Collect the plain values of an inert OmegaConf configuration by dotted name."""
    if isinstance(node, Inert) and isinstance(node.saved, dict):
        node = node.saved.get("_content", node.saved.get("_val"))
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        plain = isinstance(node, (str, int, float, bool)) or node is None
        return {prefix: node} if plain and prefix else {}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _check_names(path: Path, agent: dict[str, Tensor], needed: set[str]) -> None:
    """Refuse missing and unknown tensors, and two different copies of the actor."""
    missing = sorted(needed - set(agent))
    if missing:
        raise ValueError(
            f"{path}: found no {missing[0]!r} in 'agent', expected RoboBase's DrQ-v2 with one camera."
        )
    for key in agent:
        if key not in needed and not key.startswith(_IGNORED) and not key.endswith("hidden_state"):
            raise ValueError(f"{path}: found {key!r} in 'agent', expected only tensors of a known layout.")
    for key in sorted(needed):
        other = agent.get(key.removeprefix("actor."))
        if key.startswith(_ACTOR) and other is not None and not torch.equal(other, agent[key]):
            raise ValueError(f"{path}: found two different {key!r}, expected equal copies of 'actor_model'.")


def _check_inputs(path: Path, agent: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Refuse networks with other inputs or outputs, by the shapes of their tensors."""
    channels = agent["encoder.convs_per_cam.0.0.weight"].shape[1]
    if channels != FRAMES * PLANES:
        content = {3: "class ids alone", 9: "RGB"}.get(channels, "unknown")
        raise ValueError(
            f"{path}: found {channels} input channels ({content}) in 'encoder.convs_per_cam.0.0.weight', "
            f"expected {FRAMES * PLANES}, ids and disparity of {FRAMES} frames."
        )
    kind = config.get("env.obs_type", "seg_depth")
    if kind != "seg_depth":
        raise ValueError(f"{path}: found env.obs_type {kind!r} in 'cfg', expected 'seg_depth'.")
    numbers = agent[f"{_INPUT}.low_dim_obs.0.weight"].shape[1]
    if numbers == FRAMES * (STATE + 3):
        raise ValueError(
            f"{path}: found {numbers} numbers of state, 21 per frame: the last three are the position of the "
            f"simulator's cube, which no arm measures. Expected {FRAMES * STATE}; train without it."
        )
    shapes = {
        f"{_INPUT}.low_dim_obs.0.weight": (50, FRAMES * STATE),
        f"{_INPUT}.fused_view_feats.0.weight": (50, 32 * 35 * 35),
        f"{_ACTOR}.main_mlp.0.weight": (256, 100),
        f"{_ACTOR}.out_mlp.0.weight": (4, 256),
    }
    for key, shape in shapes.items():
        if tuple(agent[key].shape) != shape:
            raise ValueError(f"{path}: found {key!r} of shape {tuple(agent[key].shape)}, expected {shape}.")
