# SPDX-License-Identifier: Apache-2.0
"""Train a small SigLIP-shaped encoder on workbench frames, for benchmarks on machines without SigLIP2.

    python -m benchmarks.lib.small_siglip --roots outputs/a outputs/b --output=outputs/small_siglip

It is trained on the simulator's masks: from the mean of the patches in each of 4x4 cells, one linear layer
predicts which classes are in the cell and their position in it. Its patches thus encode positions, as
`vision_grid=4` reads them, in as many numbers as SigLIP2 pools a view to (768). Its pooled output is never
trained. Recordings need RGB and masks of the same cameras (`so101-demos --seg=true --height=96 --width=96`).
"""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers as hf
from lerobot.datasets import LeRobotDataset
from torch import Tensor, nn

from lerobot_processor_so101 import class_masks
from lerobot_processor_so101.perception.stored import decode_ids

from .report import arguments
from .study import Study, flags

SIDE, PATCH, GRID, WIDTH = 96, 8, 4, 48
CELL = SIDE // GRID
CLASSES = ("table", "static_finger", "moving_finger", "red cube", "blue bowl", "post", "pad")


class Training(nn.Module):
    """The encoder with the linear layer it is trained through, which is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = siglip()
        embedding = self.encoder.vision_model.embeddings.position_embedding
        embedding.weight.data.copy_(initial_positions(SIDE // PATCH, WIDTH))
        self.head = nn.Linear(WIDTH, 3 * len(CLASSES))

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of images (B, 3, 96, 96) in [0, 1] with masks (B, C, 96, 96) of zeros and ones."""
        patches = self.encoder(pixel_values=2 * images - 1).last_hidden_state
        cells = F.adaptive_avg_pool2d(patches.mT.unflatten(2, (SIDE // PATCH, -1)), GRID)
        presence, found_x, found_y = self.head(cells.movedim(1, -1)).movedim(-1, 1).chunk(3, 1)
        mass = F.avg_pool2d(masks, CELL)  # (B, C, 4, 4)
        line = torch.linspace(-1, 1, CELL).repeat(GRID)
        x, y = (F.avg_pool2d(masks * at, CELL) / mass.clamp(min=1e-6) for at in (line, line[:, None]))
        present = (mass > 0).float()
        error = (((found_x - x).abs() + (found_y - y).abs()) * present).sum((0, 2, 3))
        error = (error / present.sum((0, 2, 3)).clamp(min=1)).mean()  # every class has the same weight
        return F.binary_cross_entropy_with_logits(presence, present) + error


def siglip() -> hf.SiglipVisionModel:
    """Build a small vision half of SigLIP with random weights."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH}
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**sizes))


def initial_positions(side: int, width: int) -> Tensor:
    """Return the initial embedding of positions, (side * side, width): waves along both axes."""
    frequencies = math.pi / 2 / side * 2 ** (4 * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # (side, width / 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves.expand(side, -1, -1)
    return 0.3 * torch.cat([rows, columns], -1).flatten(0, 1)


def load(root: Path) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 96, 96) uint8 of all cameras, and ids (N, 96, 96), 255 outside `CLASSES`."""
    dataset = LeRobotDataset("local/frames", root=root)
    images, ids = [], []
    for key in [key for key in dataset.features if key.endswith("_seg")]:
        names = dataset.features[key]["info"]["class_names"]
        table = torch.tensor([CLASSES.index(name) if name in CLASSES else 255 for name in names])
        for row in dataset.hf_dataset.select_columns([key, key.removesuffix("_seg")]):
            images.append((255 * row[key.removesuffix("_seg")]).byte())
            ids.append(table[decode_ids(row[key]).long()].byte())
    return torch.stack(images), torch.stack(ids)


def small_encoder(study: Study, roots: list[Path]) -> Path:
    """Train the encoder on recordings, as a step of a study, and return its folder."""
    out = study.out / "encoder"
    command = ["python", "-m", "benchmarks.lib.small_siglip", "--roots", *map(str, roots)]
    command += flags(output=out, steps=study.options.encoder_steps)
    return study.step("encoder", command, out / "model.safetensors").parent


def cached_features(study: Study, root: Path, encoder: Path) -> Path:
    """Replace the images of a recording by the encoder's features, and return the new dataset."""
    options = {"root": root, "drop_rgb": True, "vision_model_name": encoder, "vision_grid": GRID}
    return study.dataset(f"{root.name}_features", ["so101-cache-vision", *flags(**options)])


def main() -> None:
    folders = {"roots": [Path("outputs/demos")], "output": Path("outputs/small_siglip")}
    options = arguments(__doc__, **folders, steps=1500)
    torch.manual_seed(0)
    images, ids = (torch.cat(parts) for parts in zip(*map(load, options.roots), strict=True))
    print(f"{len(images)} images", flush=True)
    model, begin = Training(), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, options.steps, pct_start=0.1)
    for step in range(1, options.steps + 1):
        batch = torch.randint(len(images), (64,))
        brightness = 0.8 + 0.4 * torch.rand(64, 3, 1, 1)  # augmentation, so that colour is not sufficient
        augmented = (images[batch].float() / 255 * brightness).clamp(0, 1)
        loss = model(augmented, class_masks(ids[batch], range(len(CLASSES))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss:.4f}, {time.monotonic() - begin:.0f} s", flush=True)
    model.encoder.save_pretrained(options.output)


if __name__ == "__main__":
    main()
