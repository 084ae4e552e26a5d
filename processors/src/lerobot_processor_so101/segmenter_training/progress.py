# SPDX-License-Identifier: Apache-2.0
"""A progress bar over the entire training, and one line per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState


class EpochTable(TrainerCallback):
    """Print IoU per class, instead of the dictionaries that the Trainer's progress bar prints.

    Args:
        class_names: names of the classes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)
        self.bar: tqdm | None = None
        self.loss = float("nan")

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.loss = kwargs["logs"].get("loss", self.loss)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.bar is None:
            return
        metrics = kwargs["metrics"]
        scores = {name: metrics[f"eval_iou_{name}"] for name in self.class_names}
        line = "  ".join(f"{name} {score:.3f}" for name, score in scores.items() if score == score)
        if "eval_disparity_error" in metrics:
            line += f"  disparity error {metrics['eval_disparity_error']:.1f}"
        epoch = round(state.epoch or 0)
        self.bar.write(f"epoch {epoch:>3}  loss {self.loss:.4f}  IoU {metrics['eval_iou']:.3f}:  {line}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
