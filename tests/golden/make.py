# SPDX-License-Identifier: Apache-2.0
"""Write the golden files: `python -m tests.golden.make`. Documents how they were made; overwrites none.

    PYTHONHASHSEED=0 OMP_NUM_THREADS=1 .venv/bin/python -m tests.golden.make

The files prove that checkpoints, datasets, guard behaviour and imports of this version still load later, with
the same numbers.
"""

import json
import lzma
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from lerobot_policy_segvla.small_vlm import save_small_vlm
from lerobot_processor_so101 import CLASS_NAMES
from tests.golden import replay
from tests.golden.make_guard import BATCH, HOME, guard, guard_step
from tests.tiny import robot_features, tiny_siglip
from tests.tiny_dataset import tiny_dataset

TASK = "Lift the cube."
TICKS = 3
COMMON = {"device": "cpu", "push_to_hub": False}
RNG = np.random.default_rng(0)


def main() -> None:
    """Write all golden files; refuse to overwrite any."""
    if replay.DATA.exists():
        raise SystemExit(
            f"{replay.DATA} exists already: golden files are written once. Remove it to start over."
        )
    register_third_party_plugins()
    replay.DATA.mkdir(parents=True)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # names of models in the checkpoints are relative
        save_small_vlm("vlm", [TASK], 32, 4, width=32, layers=1, vision_width=16, vision_layers=1)
        tiny_siglip("siglip")
        Path("made").mkdir()
        for write in (segdepth, segvla, imf, hlrp_laq, hlrp, guard, guard_step, dataset, drqv2):
            write()
            print(write.__name__, flush=True)
        os.chdir(before)


# -- checkpoints ---------------------------------------------------------------------------------------------


def segdepth() -> None:
    """Masks that come with the observation, and masks of the packaged segmenter."""
    small = {"hidden_dim": 8, "n_layers": 1, "conv_channels": 2, "image_size": 42, "state_noise": 0.03}
    size = (16, 24)
    masks = {
        f"observation.images.{camera}_{kind}": PolicyFeature(FeatureType.VISUAL, (1, *size))
        for camera in replay.CAMERAS
        for kind in ("seg", "depth")
    }
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    action = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    observed = make_policy_config(
        "segdepth", input_features={**state, **masks}, output_features=action, **small, **COMMON
    )
    planes = {key: (blocks(len(CLASS_NAMES), size) if key.endswith("_seg") else depth(size)) for key in masks}
    trained = {key: value[0] for key, value in planes.items()}
    save("segdepth", observed, planes, {**trained, **actions(observed.chunk_size)})

    workbench = make_policy_config(
        "segdepth",
        **robot_features(size, ("top",)),
        cameras=["top"],
        segmenter="workbench",
        depth="segmenter",
        **{**small, "encoder": "geometry"},
        **COMMON,
    )
    images = {"observation.images.top": frames(size)}
    trained = {"observation.images.top": images["observation.images.top"][0]}
    save("segdepth_workbench", workbench, images, {**trained, **actions(workbench.chunk_size)})


def small_vla() -> dict[str, Any]:
    """Fields that make SmolVLA as small as it gets."""
    return {
        "vlm_model_name": "vlm",
        "num_vlm_layers": 1,
        "expert_width_multiplier": 0.5,
        "resize_imgs_with_padding": (32, 32),
        "chunk_size": 4,
        "n_action_steps": 2,
        "num_steps": 2,
        "max_state_dim": 32,
        "max_action_dim": 8,
        "tokenizer_max_length": 12,
        "optimizer_lr": 1e-4,
        **COMMON,
    }


def segvla() -> None:
    """All cues, classes chosen by the sentence, observed masks."""
    size = (16, 24)
    names = ["background", "table", "red cube", "cube", "blue bowl"]
    config = make_policy_config(
        "segvla",
        **robot_features(size, ("top",)),
        **small_vla(),
        segmenter="observation",
        segmentation_class_names=names,
        segmentation_from_instruction=True,
        segmentation_synonyms={"blue bowl": ["dish"]},
        segmentation_max_mentions=2,
        segmentation_top_k_classes=2,
        segmentation_max_tokens=10,
    )
    images = {
        "observation.images.top": frames(size),
        "observation.images.top_seg": blocks(len(names), size),
    }
    trained = {key: value[0] for key, value in images.items()}
    save("segvla", config, images, {**trained, **actions(4)}, task=[TASK, "Lift the dish."])


def imf() -> None:
    """Two views, the instruction, attention over patch cells, averaged weights."""
    size = (16, 24)
    config = make_policy_config(
        "imf",
        **robot_features(size),
        vision_model_name="siglip",
        vision_grid=2,
        instruction=True,
        per_view_output_dim=4,
        cond_dim=8,
        n_emb=8,
        n_layer=2,
        n_head=2,
        horizon=6,
        n_action_steps=2,
        flow_matching_steps=1,
        **COMMON,
    )
    images = {f"observation.images.{camera}": frames(size) for camera in replay.CAMERAS}
    trained = {key: torch.stack([value[0], value[1]], 1) for key, value in images.items()}
    training = {**trained, **actions(6)}
    training["observation.state"] = torch.stack([states()[0], states()[1]], 1)
    save("imf", config, images, training, task=[TASK, "lift the bowl"])


def hlrp_laq() -> None:
    """Latent actions of one camera, with pixels weighted by observed masks."""
    size = (16, 24)
    config = make_policy_config(
        "hlrp_laq",
        input_features={
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, *size)),
        },
        gap_s=0.1,
        image_size=16,
        patch_size=4,
        width=8,
        heads=2,
        spatial_layers=1,
        temporal_layers=1,
        decoder_layers=1,
        codes=4,
        levels=[3, 3],
        mask_classes=["cube"],
        **COMMON,
    )
    pair = {
        "observation.images.top": frames(size).transpose(0, 1)[:, :2],
        "observation.images.top_seg": blocks(len(CLASS_NAMES), size).transpose(0, 1)[:, :2],
    }
    pads = torch.tensor([[False, False], [False, False]])
    save("hlrp_laq", config, {}, {**pair, "observation.images.top_is_pad": pads})


def hlrp() -> None:
    """The action expert of stage 3 that still learns latent actions, and the pooled heads of stage 2."""
    size = (16, 24)
    heads: dict[str, dict[str, Any]] = {
        "hlrp": {"training_mode": "multitask"},
        "hlrp_pooled": {
            "stage": "foundation",
            "head": "pooled_mlp",
            "pooled_width": 8,
            "action_kind": "delta",
        },
    }
    for name, fields in heads.items():
        config = make_policy_config(
            "hlrp", **robot_features(size, ("top",)), **small_vla(), gap_s=0.1, laq="made/hlrp_laq", **fields
        )
        images = {"observation.images.top": frames(size)}
        trained = {key: torch.stack([value[0], value[1]], 1) for key, value in images.items()}
        training = {**trained, **actions(4), "observation.state": torch.stack([states()[0], states()[1]], 1)}
        training |= {"index": torch.arange(BATCH), "episode_index": torch.arange(BATCH)}
        save(name, config, images, training, task=[TASK] * BATCH, laq="hlrp_laq")


def save(
    name: str, config: Any, images: dict[str, Tensor], training: dict[str, Tensor], **options: Any
) -> None:
    """Save a policy with weights that are not initial ones, its pipelines, inputs and results.

    Args:
        name: of the folder.
        config: of the policy.
        images: (TICKS, BATCH, ...) what the cameras give in some control periods; empty for no controller.
        training: a batch of the data loader.
        options: for `inputs.json`.
    """
    folder = Path("made") / name
    torch.manual_seed(0)
    policy: Any = get_policy_class(config.type)(config)
    for _ in range(2):
        with torch.no_grad():
            for parameter in policy.model.parameters():
                noisy = parameter + 0.1 * torch.randn_like(parameter)
                parameter.copy_((64 * noisy).round() / 64)  # few digits: the packed file is small
        if hasattr(policy, "update"):
            policy.update()
    if config.type in ("segvla", "hlrp"):
        policy.model.vlm_with_expert.vlm.lm_head.weight.data.zero_()  # writes text, which no policy asks for
    pipelines = make_pre_post_processors(policy.config, dataset_stats=statistics())
    task = {"task": options["task"]} if "task" in options else {}
    policy.train()(pipelines[0](decoded({**training, **task})))  # fills running statistics
    policy.save_pretrained(folder)
    for pipeline in pipelines:
        pipeline.save_pretrained(folder)
    observed = {**images, "observation.state": states()} if images else {}
    inputs = {f"tick/{key}": value for key, value in observed.items()}
    inputs |= {f"training/{key}": value for key, value in training.items()}
    save_file(
        {key: value.clone().contiguous() for key, value in inputs.items()}, folder / "inputs.safetensors"
    )
    (folder / "inputs.json").write_text(json.dumps(options, indent=2) + "\n")
    (folder / "README.md").unlink(missing_ok=True)
    save_file(replay.policy_results(folder), folder / "expected.safetensors")
    pack(folder, replay.DATA / name)


def pack(folder: Path, target: Path) -> None:
    """Copy a checkpoint to the golden files, with packed weights."""
    shutil.copytree(folder, target)
    weights = target / "model.safetensors"
    weights.with_suffix(".safetensors.xz").write_bytes(packed(weights))
    weights.unlink()


def packed(path: Path) -> bytes:
    """Contents of a file, compressed."""
    return lzma.compress(path.read_bytes(), preset=9)


def decoded(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with floats, as a data loader gives it."""
    return {key: replay.decoded(value) if torch.is_tensor(value) else value for key, value in batch.items()}


def statistics() -> dict[str, dict[str, Tensor]]:
    """Of joint positions around HOME."""
    mean, std = torch.tensor(HOME), torch.tensor([12.0, 15, 14, 10, 8, 20])
    joints = {"mean": mean, "std": std, "min": mean - 2 * std, "max": mean + 2 * std}
    return {"observation.state": joints, "action": joints}


def frames(size: tuple[int, int]) -> Tensor:
    """(TICKS, BATCH, 3, H, W) bytes of random blocks."""
    blocks = RNG.integers(0, 256, (TICKS, BATCH, 3, size[0] // 8, size[1] // 8), dtype=np.uint8)
    return torch.from_numpy(blocks.repeat(8, 3).repeat(8, 4))


def blocks(classes: int, size: tuple[int, int]) -> Tensor:
    """(TICKS, BATCH, 1, H, W) class ids of random blocks."""
    ids = RNG.integers(0, classes, (TICKS, BATCH, 1, size[0] // 8, size[1] // 8)).astype(np.int16)
    return torch.from_numpy(ids.repeat(8, 3).repeat(8, 4))


def depth(size: tuple[int, int]) -> Tensor:
    """(TICKS, BATCH, 1, H, W) millimetres."""
    return torch.from_numpy(RNG.integers(200, 900, (TICKS, BATCH, 1, *size)).astype(np.int16))


def states() -> Tensor:
    """(TICKS, BATCH, 6) joint positions [deg; gripper in percent]."""
    generator = torch.Generator().manual_seed(2)
    return torch.tensor(HOME) + 8 * torch.randn(TICKS, BATCH, 6, generator=generator)


def actions(chunk: int) -> dict[str, Tensor]:
    """State and actions of a training batch."""
    generator = torch.Generator().manual_seed(3)
    pads = torch.zeros(BATCH, chunk, dtype=torch.bool)
    pads[1, -1] = True
    values = torch.tensor(HOME) + 8 * torch.randn(BATCH, chunk, 6, generator=generator)
    return {"observation.state": states()[0], "action": values, "action_is_pad": pads}


# -- dataset and import --------------------------------------------------------------------------------------


def dataset() -> None:
    """A small dataset, and what `so101-precompute` makes of it with the packaged segmenter."""
    folder = replay.DATA / "dataset"
    folder.mkdir()
    source, output = tiny_dataset("source", lengths=(2, 1), size=(48, 64)), Path("perceived")
    replay.precompute(source, output)
    with tarfile.open(folder / "datasets.tar.xz", "w:xz", preset=9) as archive:
        for root in (source, output):
            archive.add(root)
    save_file(replay.planes(output), folder / "expected.safetensors")
    features = replay.perception_features(output)
    (folder / "expected.json").write_text(json.dumps(features, indent=1) + "\n")


def drqv2() -> None:
    """A snapshot of the original project's layout, what is imported from it, and its actions.

    The layout has 6 million weights. They repeat, so that the file is small when packed.
    """
    snapshot, checkpoint = Path("snapshot.pt"), Path("made") / "drqv2"
    env = {"obs_type": "seg_depth", "lock_wrist": False, "image_size": 84}
    config = OmegaConf.create({"env": env, "frame_stack": 3, "tags": ["a", None]})
    torch.save({"_main_loop_iterations": 75000, "agent": _agent(), "cfg": config}, snapshot)
    replay.import_snapshot(snapshot, checkpoint)
    masks = {
        "observation.images.wrist_seg": blocks(6, (24, 32)),
        "observation.images.wrist_depth": depth((24, 32)),
    }
    inputs = {f"tick/{key}": value for key, value in {**masks, "observation.state": states()}.items()}
    save_file(inputs, checkpoint / "inputs.safetensors")
    (checkpoint / "inputs.json").write_text('{"single": true}\n')  # actions are single ones
    save_file(replay.policy_results(checkpoint), checkpoint / "expected.safetensors")
    pack(checkpoint, replay.DATA / "drqv2")
    (replay.DATA / "drqv2" / "snapshot.pt.xz").write_bytes(packed(snapshot))


def _agent() -> dict[str, Tensor]:
    """The 98 tensors of RoboBase's DrQ-v2; critics share their values."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, channels in zip((0, 3, 6, 9), (6, 32, 32, 32), strict=True):
        shapes[f"encoder.convs_per_cam.0.{layer}.weight"] = (32, channels, 3, 3)
        shapes[f"encoder.convs_per_cam.0.{layer}.bias"] = (32,)
    shapes |= _layers("actor.actor_model", 4, 0)
    for critic in ("critic", "critic_target"):
        for number in (0, 1):
            shapes |= _layers(f"{critic}.qs.{number}", 1, 4)
    agent: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        first = key.replace("critic_target", "critic").replace("qs.1", "qs.0")
        agent[key] = agent[first] if first in agent else _weights(key, shape)
    twice = {key.removeprefix("actor."): value for key, value in agent.items() if key.startswith("actor.")}
    return {**agent, **twice}


def _layers(prefix: str, out: int, extra: int) -> dict[str, tuple[int, ...]]:
    inputs = f"{prefix}.input_preprocess_modules"
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.hidden_state": (1, 9, 128)}
    for name, width in (("fused_view_feats", 39200), ("low_dim_obs", 54)):
        shapes |= {f"{inputs}.{name}.0.weight": (50, width), f"{inputs}.{name}.0.bias": (50,)}
        shapes |= {f"{inputs}.{name}.1.weight": (50,), f"{inputs}.{name}.1.bias": (50,)}
    sizes = {"main_mlp.0": (256, 100 + extra), "main_mlp.3": (256, 256), "out_mlp.0": (out, 256)}
    for name, shape in sizes.items():
        shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
    return shapes


def _weights(key: str, shape: tuple[int, ...]) -> Tensor:
    """Values of a trained network's size, from a table of 997 numbers that repeats."""
    if key.endswith("hidden_state"):
        return torch.zeros(shape)
    table = torch.randn(997, generator=torch.Generator().manual_seed(0))
    count, fan_in = int(np.prod(shape)), int(np.prod(shape[1:])) if len(shape) > 1 else 4
    values = table.repeat(-(-count // 997))[:count].reshape(shape) * (2 / fan_in) ** 0.5
    return values + 1 if ".1.weight" in key else values


if __name__ == "__main__":
    main()
