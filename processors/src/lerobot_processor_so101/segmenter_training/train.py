# SPDX-License-Identifier: Apache-2.0
"""`so101-train-segmenter`: train the suite's own segmenter on annotated frames.

The weights with the best mean IoU on held-out recordings are written to <output_dir>/best, a folder that
transformers' Auto classes load, and their metrics to <output_dir>/metrics.json. After an interrupt, the same
command with --resume=true continues from the last finished epoch.

    so101-train-segmenter --data='[data/dataset_v0]' --output_dir=outputs/segmenter
    so101-train-segmenter --data='[outputs/demos]' --height=84 --width=84 --batch_size=16
"""

import json
import logging
import math
import shlex
import sys
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from transformers import EarlyStoppingCallback, SegformerImageProcessor, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.logging import disable_progress_bar

from ..atomic import atomic_path, write_json
from ..cli import run_command
from ..models.efficientvit_fpn import EfficientViTFPNConfig, EfficientViTFPNForSemanticSegmentation
from ..models.efficientvit_fpn.initial_weights import RANDOM, initialise
from .augment import make_augmentation
from .config import DTYPES, MIN_LR, TrainConfig
from .data import FrameDataset, Frames, class_table, load_frames, split_by_recording
from .metrics import (
    EpochTable,
    ValidationMetrics,
    full_size_predictions,
    mean_disparity_error,
    metrics_table,
)
from .sources import open_source

logger = logging.getLogger(__name__)

_MAY_CHANGE = ("resume", "workers", "dtype", "patience", "output_dir")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, write the best weights and their metrics, and return the content of metrics.json.

    Raises:
        ValueError: if an option or a file is invalid.
        FileExistsError: if `output_dir` contains a training and `resume` is false.
        FileNotFoundError: if there is nothing to resume.
    """
    config.check()
    checkpoint = _checkpoint_to_resume(config)
    finished = config.output_dir / "metrics.json"
    if config.resume and finished.is_file():
        logger.warning("%s: this training has finished.", config.output_dir)
        return json.loads(finished.read_text())
    set_seed(config.seed)
    model = make_model(config, RANDOM if checkpoint else config.init_from)
    data = _prepare_data(config)
    trainer = make_trainer(config, model, data)
    trainer.train(resume_from_checkpoint=checkpoint)
    _round_weights(model, DTYPES[config.dtype])
    result = _report(config, trainer.evaluate(), data, trainer)
    model.config.training = {
        **{key: result[key] for key in ("command", "seed", "iou", "classes_iou", "frames")},
        "recordings": {side: len(names) for side, names in result["recordings"].items()},
    }
    _save(config, model, trainer.processing_class)
    write_json(config.output_dir / "metrics.json", result)
    return result


def make_model(config: TrainConfig, init_from: str) -> EfficientViTFPNForSemanticSegmentation:
    """Build a model with the classes of this training and the weights of `init_from`."""
    model = EfficientViTFPNForSemanticSegmentation(
        EfficientViTFPNConfig(
            disparity_head=config.disparity_head,
            loss=config.loss,
            single_objects=list(config.single_objects),
            id2label=dict(enumerate(config.classes)),
            label2id={name: id_ for id_, name in enumerate(config.classes)},
        )
    )
    initialise(model, init_from)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # 25 % faster on a CPU


class TrainingData(NamedTuple):
    """All frames, and the rows of both sides of the split."""

    frames: Frames
    training: list[int]
    validation: list[int]


def make_trainer(
    config: TrainConfig, model: EfficientViTFPNForSemanticSegmentation, data: TrainingData
) -> Trainer:
    """Set up transformers' Trainer."""
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
    augment = make_augmentation(config.augment, config.size)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=FrameDataset(data.frames, data.training, augment),
        eval_dataset=FrameDataset(data.frames, data.validation),
        processing_class=SegformerImageProcessor(size={"height": config.height, "width": config.width}),
        compute_metrics=ValidationMetrics(config.classes),  # type: ignore[arg-type]  # per batch
        preprocess_logits_for_metrics=full_size_predictions,  # type: ignore[arg-type]  # of two outputs
        callbacks=[EarlyStoppingCallback(config.patience), EpochTable(config.classes)],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _prepare_data(config: TrainConfig) -> TrainingData:
    sources = [open_source(path, config.every, config.disparity_head) for path in config.data]
    if not sources:
        raise ValueError("--data: found none, expected at least one folder.")
    infos = [info for source in sources for info in source.frames]
    training, validation = split_by_recording(infos, config.val_share, config.seed)
    tables = [class_table(config.classes, config.class_ids, source.class_names) for source in sources]
    frames = load_frames(sources, config.size, tables, config.disparity_head, config.output_dir / "cache")
    _store_options(config, [infos[row].name for row in validation])
    return TrainingData(frames, training, validation)


def _checkpoint_to_resume(config: TrainConfig) -> str | None:
    """Return the last complete checkpoint if `resume` is set; the Trainer writes trainer_state.json last."""
    complete = [path.parent for path in config.checkpoints.glob("checkpoint-*/trainer_state.json")]
    complete.sort(key=lambda path: int(path.name.rpartition("-")[2]))
    if not config.resume:
        if complete or (config.output_dir / "best").exists():
            raise FileExistsError(
                f"--output_dir: {config.output_dir} contains a training already and was left as it is. "
                "Choose another folder, or continue with --resume=true."
            )
        return None
    if not complete:
        raise FileNotFoundError(
            f"--resume: found no finished epoch in {config.checkpoints}; leave out --resume."
        )
    return str(complete[-1])


def _store_options(config: TrainConfig, validation: list[str]) -> None:
    """Write the options of this training; those of a resumed one must be equal."""
    path = config.output_dir / "training.json"
    now = json.loads(json.dumps({**asdict(config), "validation": validation}, default=str))
    if config.resume and path.is_file():
        # An option that is newer than the training has its default there.
        defaults = asdict(TrainConfig(config.data))
        before = json.loads(json.dumps(defaults, default=str)) | json.loads(path.read_text())
        for key in now.keys() - set(_MAY_CHANGE):
            if before[key] != now[key]:
                raise ValueError(
                    f"--resume: {config.output_dir} was started with another --{key}: found "
                    f"{str(now[key])[:80]}, expected {str(before[key])[:80]}."
                )
    write_json(path, now)


def _round_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round to the stored dtype, so that the metrics are those of the stored weights."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            rounded = tensor.to(dtype).to(tensor.dtype)
            if not bool(rounded.isfinite().all()):
                raise ValueError(f"--dtype: {name} does not fit {dtype}; train with --dtype=float32.")
            tensor.copy_(rounded)


def _report(
    config: TrainConfig, metrics: dict[str, float], data: TrainingData, trainer: Trainer
) -> dict[str, Any]:
    def by_class(kind: str) -> dict[str, float | None]:
        values = {name: metrics[f"eval_{kind}_{name}"] for name in config.classes}
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    sides = {"training": data.training, "validation": data.validation}
    infos = data.frames.infos
    result: dict[str, Any] = {
        "command": shlex.join(["so101-train-segmenter", *sys.argv[1:]]),
        "seed": config.seed,
        "iou": metrics["eval_iou"],
        "classes_iou": by_class("iou"),
        "misplaced": by_class("misplaced"),
        "false": by_class("false"),
        "frames": {side: len(rows) for side, rows in sides.items()},
        "recordings": {side: sorted({infos[row].recording for row in rows}) for side, rows in sides.items()},
        "epochs": trainer.state.epoch,
        "device": str(trainer.args.device),
        "torch": torch.__version__,
    }
    if config.disparity_head:
        result["disparity_error"] = {
            "model": metrics["eval_disparity_error"],
            "mean of the training frames of that camera": mean_disparity_error(*data),
            "unit": "mean absolute error, 0..255",
        }
    return result


def _save(config: TrainConfig, model: EfficientViTFPNForSemanticSegmentation, processor: Any) -> None:
    """Write <output_dir>/best atomically. Weights are stored in `dtype`, and loaded in float32."""
    dtype = DTYPES[config.dtype]
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    with atomic_path(config.output_dir / "best") as folder:
        model.save_pretrained(folder, state_dict=state)
        processor.save_pretrained(folder)


def main() -> None:
    """Run `so101-train-segmenter`."""
    disable_progress_bar()  # of files; the training has its own

    def command(config: TrainConfig) -> str:
        result = train(config)
        frames = result["frames"]["validation"]
        columns = {"  IoU": "classes_iou", "misplaced": "misplaced", "false": "false"}
        lines = [
            metrics_table({heading: result[key] for heading, key in columns.items()}),
            f"mean IoU {result['iou']:.3f} on {frames} frames of held-out recordings",
        ]
        if "disparity_error" in result:
            lines.append(f"disparity: {result['disparity_error']}")
        return "\n".join([*lines, f"weights in {config.output_dir / 'best'}"])

    run_command("so101-train-segmenter", TrainConfig, command, "stopped; continue with --resume=true.")


if __name__ == "__main__":
    main()
