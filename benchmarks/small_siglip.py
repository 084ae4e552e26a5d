# SPDX-License-Identifier: Apache-2.0
"""A small SigLIP-shaped encoder trained on workbench frames, for benchmarks where SigLIP2 itself is not at hand.

    python -m benchmarks.small_siglip --roots outputs/a outputs/b --output=outputs/small_siglip

The class is transformers' own (`SiglipVisionModel`), the picture 96x96 in 144 patches, the width 48, four layers. It learns from
the simulator's masks: the mean of the patches in each of 4x4 cells has to tell, by one linear layer, which classes are in the
cell and where in it. Its patches thus know places, as `vision_grid=4` reads them, in as many numbers as SigLIP2 pools a view
to (768). Its pooled answer is never trained. Unlike SigLIP2 it knows nothing outside the workbench. Recordings need
colours and masks of the same cameras at 96x96 (`so101-demos --seg=true --height=96 --width=96`).
"""

import argparse
import math
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

SIDE, PATCH, GRID, WIDTH = 96, 8, 4, 48
CELL = SIDE // GRID
CLASSES = ("table", "static_finger", "moving_finger", "red cube", "blue bowl", "post", "pad")


class Teacher(nn.Module):
    """The encoder with what it is taught through, which is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        config: Any = hf.SiglipVisionConfig  # its generated constructor confuses mypy
        sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4}
        self.encoder: Any = hf.SiglipVisionModel(
            config(**sizes, num_attention_heads=4, image_size=SIDE, patch_size=PATCH)
        )
        self.encoder.vision_model.embeddings.position_embedding.weight.data.copy_(
            positions(SIDE // PATCH, WIDTH)
        )
        self.places = nn.Linear(WIDTH, 3 * len(CLASSES))

    def forward(self, pictures: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and how far places are from where they are said to be [pixels].

        Args:
            pictures: (B, 3, 96, 96) in [0, 1].
            masks: (B, C, 96, 96) of zeros and ones.
        """
        patches = self.encoder(pixel_values=2 * pictures - 1).last_hidden_state
        cells = F.adaptive_avg_pool2d(patches.mT.unflatten(2, (SIDE // PATCH, -1)), GRID)
        presence, found_x, found_y = self.places(cells.movedim(1, -1)).movedim(-1, 1).chunk(3, 1)
        mass = F.avg_pool2d(masks, CELL)  # (B, C, 4, 4)
        line = torch.linspace(-1, 1, CELL).repeat(GRID)
        x, y = (F.avg_pool2d(masks * at, CELL) / mass.clamp(min=1e-6) for at in (line, line[:, None]))
        there = (mass > 0).float()
        away = (((found_x - x).abs() + (found_y - y).abs()) * there).sum((0, 2, 3))
        away = (away / there.sum((0, 2, 3)).clamp(min=1)).mean()  # every class counts alike
        loss = F.binary_cross_entropy_with_logits(presence, there)
        return loss + away, away.detach() * CELL / 4


def positions(side: int, width: int) -> Tensor:
    """What the embedding of places begins from, (side * side, width): waves along both axes, the longest twice the picture."""
    frequencies = math.pi / 2 / side * 2 ** (4 * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # (side, width / 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves.expand(side, -1, -1)
    return 0.3 * torch.cat([rows, columns], -1).flatten(0, 1)


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
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    pictures, ids = (torch.cat(parts) for parts in zip(*map(load, options.roots), strict=True))
    print(f"{len(pictures)} pictures", flush=True)
    teacher, begin = Teacher(), time.monotonic()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, options.steps, pct_start=0.1)
    running = torch.zeros(2)
    for step in range(1, options.steps + 1):
        batch = torch.randint(len(pictures), (options.batch_size,))
        bright = 0.8 + 0.4 * torch.rand(options.batch_size, 3, 1, 1)  # that colours are not all it goes by
        shown = (pictures[batch].float() / 255 * bright).clamp(0, 1)
        loss, pixels = teacher(shown, class_masks(ids[batch], range(len(CLASSES))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        now = torch.stack([loss.detach(), pixels])
        running = now if step == 1 else running.lerp(now, 0.02)
        if step % 200 == 0:
            told = "loss {:.4f}, places off by {:.2f} pixels".format(*running.tolist())
            print(f"step {step}: {told}, {time.monotonic() - begin:.0f} s", flush=True)
    teacher.encoder.save_pretrained(options.output)


if __name__ == "__main__":
    main()
