# SPDX-License-Identifier: Apache-2.0
"""Turn the segmentation scores of one camera into cues: tokens, their evidence on the patches, and geometry.

What is unusual compared with a mean over the image:
- A class keeps its token. The task's classes (or those in the instruction) always have a token each, the
  largest other classes take the rest, and an embedding tells the policy which class a token stands for.
- Pooling is a mean of patch features weighted by evidence and normalised. An absent class gets a learned
  vector, neither zeros nor the mean of the image.
- The tokens of the image and of its regions pool only the patches of the task's classes.
- Everything is a few matrix products over the batch: no loop over samples, no wait for the device.

Shapes: B samples, C classes, h x w pixels of the scores, N patches, D their width, S class tokens, R regions,
T = 1 + S + R tokens, K geometry classes, G length of the geometry vector.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_segvla import PER_CLASS, SegVLAConfig
from .patch_grid import pool_to_patches, region_patches

RELATION = 5  # numbers of geometry of the first two: dx, dy, distance, sine and cosine of the direction
EPSILON = 1e-6


class CameraInput(NamedTuple):
    """The image of one camera with its scores.

    Attributes:
        pixels: (B, 3, H, W) letterboxed, in [-1, 1].
        scores: (B, h, w) class ids, or (B, C, h, w) scores, covering the camera image before letterboxing.
        image_size: (H, W) of the camera image before letterboxing.
        mentioned: (B, K) ids of the classes in the instruction, in its order, -1 for none; or None.
    """

    pixels: Tensor
    scores: Tensor
    image_size: tuple[int, int]
    mentioned: Tensor | None = None


class Cues(NamedTuple):
    """The cues of one camera.

    Attributes:
        tokens: (B, T, D): the image, classes, regions.
        presence: (B, T) in [0, 1]: 0 if nothing supports a token.
        evidence: (B, T, N): the share of each patch that belongs to each token.
        class_ids: (B, S) of the class tokens, -1 for none.
        geometry: (B, G), zeros for absent classes; None without geometry classes.
    """

    tokens: Tensor
    presence: Tensor
    evidence: Tensor
    class_ids: Tensor
    geometry: Tensor | None

    def summary(self) -> Tensor:
        """Average the tokens, weighted by presence: (B, T, D) -> (B, D)."""
        weights = self.presence / (self.presence.sum(1, keepdim=True) + EPSILON)
        return (weights[..., None] * self.tokens).sum(1)


class SegmentationCueBuilder(nn.Module):
    """Pool patch features by class and measure where classes are. All cameras share it.

    Args:
        dim: D.
        grid: (gh, gw) patches; N = gh * gw.
        box: (H, W) pixels of the letterboxed image.
    """

    regions: Tensor
    task_ids: Tensor
    geometry_ids: Tensor

    def __init__(self, config: SegVLAConfig, dim: int, grid: tuple[int, int], box: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.box, self.kind = grid, box, config.segmentation_kind
        self.task_slots, self.geometry_slots = config.task_slots, config.geometry_slots
        self.geometry_dim = config.segmentation_geometry_state_dim
        self.num_classes = len(config.class_map.names)
        free = config.class_tokens - self.task_slots
        self.others = min(config.segmentation_top_k_classes, free, self.num_classes)
        self.empty = free - self.others
        # With `segmentation_from_instruction`, the ids come with each sample (`CameraInput.mentioned`).
        fixed = not config.segmentation_from_instruction
        task, geometry = (config.task_ids, config.geometry_ids) if fixed else ([], [])
        regions = config.segmentation_region_specs
        full_image = [0.0, 1.0, 0.0, 1.0]
        self.register_buffer("regions", torch.tensor([full_image, *regions]), persistent=False)
        self.register_buffer("task_ids", torch.tensor(task, dtype=torch.long), persistent=False)
        self.register_buffer("geometry_ids", torch.tensor(geometry, dtype=torch.long), persistent=False)
        self.norm = nn.LayerNorm(dim)
        self.class_embedding = nn.Embedding(self.num_classes + 1, dim)  # the last row: no class
        self.picture_embedding = nn.Parameter(torch.randn(dim))  # of the image token
        self.task_embedding = nn.Parameter(torch.randn(self.task_slots, dim))
        self.region_embedding = nn.Parameter(torch.randn(len(regions), dim))
        self.absent = nn.Parameter(torch.zeros(dim))

    def forward(self, patches: Tensor, camera: CameraInput) -> Cues:
        """Build the cues of one camera from its scores and its patch features, (B, N, D)."""
        # 1. scores to probabilities: (B, C, h, w) in [0, 1]; ids (B, h, w) stay ids
        scores = camera.scores.long() if camera.scores.ndim == 3 else camera.scores.float()
        if self.kind in ("logits", "log_scores"):
            scores = scores.softmax(1)

        # 2. choose the classes that get a token: (B, S)
        class_ids = self._choose_classes(scores, camera.mentioned)

        # 3. evidence of each token on each patch, (B, T, N): classes where they are, image and regions where
        #    the task's classes are (everywhere if the task has none)
        maps = self._class_maps(scores, class_ids)  # (B, S, h, w)
        classes = pool_to_patches(maps, camera.image_size, self.box, self.grid)  # (B, S, N)
        regions = region_patches(self.regions, camera.image_size, self.box, self.grid)  # (1 + R, N)
        task = regions[:1].expand(len(classes), 1, -1)  # (B, 1, N)
        if self.task_slots:
            task = classes[:, : self.task_slots].sum(1, keepdim=True).clamp(max=1)
        evidence = torch.cat([task, classes, task * regions[1:]], 1)

        # 4. weighted mean of the patch features: (B, T, N) @ (B, N, D) -> (B, T, D); one patch full of
        #    evidence is enough for presence 1
        total = evidence.sum(-1, keepdim=True)
        pooled = evidence @ patches.to(evidence.dtype) / (total + EPSILON)
        present = total.clamp(max=1)

        # 5. blend with the vector for "absent", and add what each token stands for: (B, T, D)
        tokens = present * self.norm(pooled) + (1 - present) * self.absent + self._meanings(class_ids)
        geometry = self._geometry(scores, camera.mentioned)
        return Cues(tokens, present[..., 0], evidence, class_ids, geometry)

    def _choose_classes(self, scores: Tensor, mentioned: Tensor | None) -> Tensor:
        """Return the classes of the tokens: the task's, then the largest others, -1 for none; (B, S)."""
        batch = len(scores)
        if scores.ndim == 3:
            pixels = scores.flatten(1)
            share = torch.zeros(batch, self.num_classes, device=scores.device)  # a histogram per sample
            share.scatter_add_(1, pixels, torch.ones_like(pixels, dtype=share.dtype))
        else:
            share = scores.mean((-2, -1))
        task = self.task_ids.expand(batch, -1) if mentioned is None else mentioned
        # The column after the last class absorbs -1, so that no index has to be filtered out.
        taken = torch.zeros(batch, self.num_classes + 1, dtype=torch.bool, device=scores.device)
        taken.scatter_(1, torch.where(task < 0, self.num_classes, task), True)
        largest = share.masked_fill(taken[:, :-1], -1.0).topk(self.others, 1)
        others = torch.where(largest.values > 0, largest.indices, -1)
        return torch.cat([task, others, others.new_full((batch, self.empty), -1)], 1)

    def _class_maps(self, scores: Tensor, class_ids: Tensor) -> Tensor:
        """Return the maps of some classes, (B, S, h, w); zeros for class -1."""
        if scores.ndim == 3:
            return (scores[:, None] == class_ids[..., None, None]).float()
        index = class_ids.clamp(min=0)[..., None, None].expand(-1, -1, *scores.shape[-2:])
        return scores.gather(1, index) * (class_ids >= 0)[..., None, None]

    def _meanings(self, class_ids: Tensor) -> Tensor:
        """Embed what each token stands for, (B, T, D)."""
        batch, slots = class_ids.shape
        classes = self.class_embedding(torch.where(class_ids < 0, self.num_classes, class_ids))  # (B, S, D)
        classes = classes + F.pad(self.task_embedding, (0, 0, 0, slots - self.task_slots))
        image, regions = self.picture_embedding, self.region_embedding
        return torch.cat([image.expand(batch, 1, -1), classes, regions.expand(batch, -1, -1)], 1)

    def _geometry(self, scores: Tensor, mentioned: Tensor | None) -> Tensor | None:
        """Measure presence, position and size of the geometry classes, and the first two's relation, (B, G).

        Positions run from -1 to 1, left to right and top to bottom of the camera image. All numbers of an
        absent class are 0: presence distinguishes it from a class in the centre.
        """
        if not self.geometry_slots:
            return None
        ids = self.geometry_ids.expand(len(scores), -1) if mentioned is None else mentioned
        maps = self._class_maps(scores, ids[:, : self.geometry_slots])  # (B, K, h, w)
        height, width = maps.shape[-2:]
        mass, presence = maps.sum((-2, -1)), maps.amax((-2, -1))  # (B, K)
        x = (maps.sum(-2) @ _pixel_centres(width, maps)) / (mass + EPSILON)
        y = (maps.sum(-1) @ _pixel_centres(height, maps)) / (mass + EPSILON)
        size = (mass / (height * width)).sqrt()
        numbers = torch.stack([presence, presence * x, presence * y, size], -1).flatten(1)  # (B, 4 K)
        if 2 <= self.geometry_slots <= (self.geometry_dim - RELATION) // PER_CLASS:  # if there is room for it
            both = presence[:, 0] * presence[:, 1]
            dx, dy = x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]
            distance = (dx.square() + dy.square() + EPSILON).sqrt()
            relation = torch.stack([dx, dy, distance, dy / distance, dx / distance], -1)
            numbers = torch.cat([numbers, both[:, None] * relation], -1)
        return F.pad(numbers, (0, self.geometry_dim - numbers.shape[1]))


def _pixel_centres(count: int, like: Tensor) -> Tensor:
    """Return the centre of each pixel, from -1 to 1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * 2 / count - 1
