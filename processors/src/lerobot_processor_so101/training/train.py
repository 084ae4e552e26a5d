# SPDX-License-Identifier: Apache-2.0
"""`so101-train-segmenter`: train the suite's own segmenter on annotated frames (seed 001).

The best weights by mean IoU on recordings held out go to <output_dir>/best, a folder that transformers' Auto classes
load, and what they reached to <output_dir>/metrics.json. Killed at any moment, the same command with --resume=true
goes on from the last finished epoch.

    so101-train-segmenter --data='[data/dataset_v0]' --output_dir=outputs/segmenter
    so101-train-segmenter --data='[outputs/demos]' --height=84 --width=84 --batch_size=16
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import draccus
import torch
from draccus.utils import DraccusException
from transformers import (
    EarlyStoppingCallback,
    SegformerImageProcessor,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.logging import disable_progress_bar

from ..efficientvit_fpn import EfficientViTFPNConfig, EfficientViTFPNForSemanticSegmentation
from ..efficientvit_fpn.initial_weights import RANDOM, initialise
from .augment import make_augmentation
from .config import DTYPES, MIN_LR, TrainConfig
from .data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrameDataset,
    Frames,
    class_table,
    load_frames,
    split_by_recording,
)
from .metrics import ValidationMetrics, full_size_predictions, iou_table, mean_disparity_error
from .progress import EpochTable
from .sources import open_source

logger = logging.getLogger(__name__)

_MAY_CHANGE = ("resume", "workers", "dtype", "patience", "output_dir")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, write the best weights and their metrics.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: bad input; the message names the flag or file.
        FileExistsError: `output_dir` holds a training and `resume` is false.
        FileNotFoundError: there is nothing to resume.
    """
    config.check()
    checkpoint = _checkpoint_to_resume(config)
    finished = config.output_dir / "metrics.json"
    if config.resume and finished.is_file():
        logger.warning("%s: this training has finished.", config.output_dir)
        return json.loads(finished.read_text())
    set_seed(config.seed)
    model = make_model(config, RANDOM if checkpoint else config.init_from)  # a checkpoint brings its weights
    frames, training, validation = _prepare_data(config)
    trainer = make_trainer(config, model, frames, training, validation)
    trainer.train(resume_from_checkpoint=checkpoint)
    _round_weights(model, DTYPES[config.dtype])
    metrics = trainer.evaluate()
    result = _report(config, metrics, frames, training, validation, trainer)
    model.config.training = {
        **{key: result[key] for key in ("command", "seed", "iou", "classes_iou", "frames")},
        "recordings": {side: len(names) for side, names in result["recordings"].items()},
    }
    _save(config, model, trainer.processing_class)
    _write_json(config.output_dir / "metrics.json", result)
    return result


def make_model(config: TrainConfig, init_from: str) -> EfficientViTFPNForSemanticSegmentation:
    """A model with the classes of this training and the weights of `init_from`."""
    model = EfficientViTFPNForSemanticSegmentation(
        EfficientViTFPNConfig(
            disparity_head=config.disparity_head,
            loss=config.loss,
            id2label=dict(enumerate(config.classes)),
            label2id={name: id_ for id_, name in enumerate(config.classes)},
        )
    )
    initialise(model, init_from)
    # A quarter faster on a CPU.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]


def make_trainer(
    config: TrainConfig,
    model: EfficientViTFPNForSemanticSegmentation,
    frames: Frames,
    training: list[int],
    validation: list[int],
) -> Trainer:
    """Set transformers' Trainer up for the seed's recipe."""
    arguments = TrainingArguments(
        output_dir=str(config.checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": MIN_LR},
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="iou",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        batch_eval_metrics=True,
        remove_unused_columns=False,
        label_names=["labels", "disparity_labels"] if config.disparity_head else ["labels"],
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=config.seed,
        report_to="none",
    )
    # The Trainer's annotations know neither metrics of one batch at a time nor models with two answers.
    measure: Any = ValidationMetrics(config.classes)
    predict: Any = full_size_predictions
    trainer = Trainer(
        model,
        arguments,
        train_dataset=FrameDataset(frames, training, make_augmentation(config.augment, config.size)),
        eval_dataset=FrameDataset(frames, validation),
        processing_class=SegformerImageProcessor(
            size={"height": config.height, "width": config.width},
            image_mean=list(IMAGENET_MEAN),
            image_std=list(IMAGENET_STD),
        ),
        compute_metrics=measure,
        preprocess_logits_for_metrics=predict,
        callbacks=[EarlyStoppingCallback(config.patience), EpochTable(config.classes)],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


# --- before and after -----------------------------------------------------------------------------------------


def _prepare_data(config: TrainConfig) -> tuple[Frames, list[int], list[int]]:
    sources = [open_source(path, config.every, config.disparity_head) for path in config.data]
    if not sources:
        raise ValueError("--data: found none, expected at least one folder.")
    infos = [info for source in sources for info in source.frames]
    training, validation = split_by_recording(infos, config.val_share, config.seed)
    tables = [class_table(config.classes, config.class_ids, source.class_names) for source in sources]
    frames = load_frames(sources, config.size, tables, config.disparity_head, config.output_dir / "cache")
    _remember(config, [infos[row].name for row in validation])
    return frames, training, validation


def _checkpoint_to_resume(config: TrainConfig) -> str | None:
    """The last whole checkpoint, if asked for; the Trainer writes trainer_state.json last."""
    whole = sorted(
        (path.parent for path in config.checkpoints.glob("checkpoint-*/trainer_state.json")),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    if not config.resume:
        if whole or (config.output_dir / "best").exists():
            raise FileExistsError(
                f"--output_dir: {config.output_dir} holds a training already and was left as it is. Choose another "
                "folder, or go on with --resume=true."
            )
        return None
    if not whole:
        raise FileNotFoundError(
            f"--resume: found no finished epoch in {config.checkpoints}; leave out --resume."
        )
    return str(whole[-1])


def _remember(config: TrainConfig, validation: list[str]) -> None:
    """Write down what this training is; a resumed one must be the same."""
    path = config.output_dir / "training.json"
    now = json.loads(json.dumps({**asdict(config), "validation": validation}, default=str))
    if config.resume and path.is_file():
        before = json.loads(path.read_text())
        for key in now.keys() - set(_MAY_CHANGE):
            if before.get(key) != now[key]:
                raise ValueError(
                    f"--resume: {config.output_dir} was begun with another --{key}: found {_short(now[key])}, "
                    f"expected {_short(before.get(key))}."
                )
    _write_json(path, now)


def _round_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round to what will be stored, so that what is measured is what is shipped."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            rounded = tensor.to(dtype).to(tensor.dtype)
            if not bool(rounded.isfinite().all()):
                raise ValueError(f"--dtype: {name} does not fit {dtype}; train with --dtype=float32.")
            tensor.copy_(rounded)


def _report(
    config: TrainConfig,
    metrics: dict[str, float],
    frames: Frames,
    training: list[int],
    validation: list[int],
    trainer: Trainer,
) -> dict[str, Any]:
    infos = frames.infos
    result: dict[str, Any] = {
        "command": shlex.join(["so101-train-segmenter", *sys.argv[1:]]),
        "seed": config.seed,
        "iou": metrics["eval_iou"],
        "classes_iou": {name: _number(metrics[f"eval_iou_{name}"]) for name in config.classes},
        "frames": {"training": len(training), "validation": len(validation)},
        "recordings": {
            "training": sorted({infos[row].recording for row in training}),
            "validation": sorted({infos[row].recording for row in validation}),
        },
        "epochs": trainer.state.epoch,
        "device": str(trainer.args.device),
        "torch": torch.__version__,
    }
    if config.disparity_head:
        result["disparity_error"] = {
            "model": metrics["eval_disparity_error"],
            "mean of the training frames of that camera": mean_disparity_error(frames, training, validation),
            "unit": "mean absolute error, 0..255",
        }
    return result


def _save(config: TrainConfig, model: EfficientViTFPNForSemanticSegmentation, processor: Any) -> None:
    """Write <output_dir>/best whole or not at all.

    Rounded weights are stored in `dtype`, while the configuration says float32: that is what they are loaded as.
    """
    best, part = config.output_dir / "best", config.output_dir / "best.part"
    shutil.rmtree(part, ignore_errors=True)
    dtype = DTYPES[config.dtype]
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(part, state_dict=state)
    processor.save_pretrained(part)
    shutil.rmtree(best, ignore_errors=True)
    os.replace(part, best)


def _write_json(path: Path, content: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, path)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def main() -> None:
    logging.basicConfig(format="%(message)s")
    disable_progress_bar()  # of files being written; the training has a bar of its own
    try:
        config = draccus.parse(TrainConfig)
        result = train(config)
    except (ValueError, OSError, DraccusException) as error:
        print(f"so101-train-segmenter: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("so101-train-segmenter: stopped; go on with --resume=true.", file=sys.stderr)
        raise SystemExit(130) from None
    print(iou_table(result["classes_iou"]))
    print(f"mean IoU {result['iou']:.3f} on {result['frames']['validation']} frames of recordings held out")
    if "disparity_error" in result:
        print(f"disparity: {result['disparity_error']}")
    print(f"weights in {config.output_dir / 'best'}")


if __name__ == "__main__":
    main()
