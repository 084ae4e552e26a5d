# SPDX-License-Identifier: Apache-2.0
"""A small SigLIP-shaped encoder trained on workbench frames, for benchmarks where SigLIP2 itself is not at hand.

    python -m benchmarks.small_siglip --roots outputs/a outputs/b --output=outputs/small_siglip

The class is transformers' own (`SiglipVisionModel`), the picture 96x96 in 64 patches, the width 128, four layers. It learns from
the simulator's masks: its patches which classes they show, and its pooled answer where in the picture each class is. So
unlike SigLIP2's its pooled answer knows places, and nothing outside the workbench. Recordings need colours and masks
of the same cameras at 96x96 (`so101-demos --seg=true --height=96 --width=96`).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from lerobot.datasets import LeRobotDataset
from torch import Tensor, nn

from lerobot_processor_so101 import class_masks
from lerobot_processor_so101.stored import decode_ids

SIDE, PATCH = 96, 12
CLASSES = ("table", "static_finger", "moving_finger", "red cube", "blue bowl", "post", "pad")


class Teacher(nn.Module):
    """The encoder with what it is taught through, which is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        config: Any = hf.SiglipVisionConfig  # its generated constructor confuses mypy
        self.encoder = hf.SiglipVisionModel(
            config(
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=SIDE,
                patch_size=PATCH,
            )
        )
        self.patches = nn.Linear(128, len(CLASSES))
        self.places = nn.Linear(128, 3 * len(CLASSES))

    def forward(self, pictures: Tensor, masks: Tensor) -> Tensor:
        """The loss.

        Args:
            pictures: (B, 3, 96, 96) in [0, 1].
            masks: (B, C, 96, 96) of zeros and ones.
        """
        seen = self.encoder(pixel_values=2 * pictures - 1)
        shares = F.avg_pool2d(masks, PATCH).flatten(2).mT  # (B, 64, C)
        loss = F.binary_cross_entropy_with_logits(self.patches(seen.last_hidden_state), shares)
        mass = masks.mean((2, 3))  # (B, C)
        line = torch.linspace(-1, 1, SIDE) / SIDE
        x, y = (masks.mean(axis) @ line / mass.clamp(min=1e-6) for axis in (2, 3))  # centres, (B, C)
        there = (mass > 0).float()
        presence, found_x, found_y = self.places(seen.pooler_output).chunk(3, -1)
        loss = loss + F.binary_cross_entropy_with_logits(presence, there)
        away = (found_x - x).abs() + (found_y - y).abs()
        return loss + 2 * (away * there).sum() / there.sum()


def load(root: Path) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 96, 96) uint8 of all cameras, and their class ids (N, 96, 96) as positions in `CLASSES`, others 255."""
    dataset = LeRobotDataset("local/frames", root=root)
    pictures, ids = [], []
    for key in [key for key in dataset.features if key.endswith("_seg")]:
        names = dataset.features[key]["info"]["class_names"]
        table = torch.full((256,), 255, dtype=torch.uint8)
        for position, name in enumerate(names):
            if name in CLASSES:
                table[position] = CLASSES.index(name)
        columns = dataset.hf_dataset.select_columns([key, key.removesuffix("_seg")])
        for row in columns:
            pictures.append((255 * row[key.removesuffix("_seg")]).byte())
            ids.append(table[decode_ids(row[key]).long()])
    return torch.stack(pictures), torch.stack(ids)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--roots", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch_size", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    pictures, ids = (torch.cat(parts) for parts in zip(*map(load, options.roots), strict=True))
    print(f"{len(pictures)} pictures", flush=True)
    teacher, begin = Teacher(), time.monotonic()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=5e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=options.steps)
    running = 0.0
    for step in range(1, options.steps + 1):
        batch = torch.randint(len(pictures), (options.batch_size,))
        bright = 0.8 + 0.4 * torch.rand(options.batch_size, 3, 1, 1)  # that colours are not all it goes by
        shown = (pictures[batch].float() / 255 * bright).clamp(0, 1)
        loss = teacher(shown, class_masks(ids[batch], range(len(CLASSES))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 200 == 0:
            print(f"step {step}: loss {running:.4f}, {time.monotonic() - begin:.0f} s", flush=True)
    teacher.encoder.save_pretrained(options.output)


if __name__ == "__main__":
    main()
