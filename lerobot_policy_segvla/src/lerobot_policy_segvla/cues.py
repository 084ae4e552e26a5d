# SPDX-License-Identifier: Apache-2.0
"""From scores of one camera to cues: tokens, a picture of the classes on the patches, geometry and context.

What is unusual about it:
- Classes keep their places. The task's classes (or those the instruction mentions) always have a token each; the
  rest of the tokens go to the largest other classes, and every token says which class it is.
- Pooling is a mean of patch features weighted by evidence, and normalised. An absent class is a learned vector, not
  zeros and not a mean over the picture.
- The tokens of the picture and of its regions look where the task's classes are.
- Everything is a few matrix products over the batch: no loop over samples, and nothing waits for the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .patch_grid import pool_to_patches, region_patches

PER_CLASS = 4  # numbers of geometry per class: presence, x, y, size
RELATION = 5  # dx, dy, distance, sine and cosine between the first two classes
NOTHING = 1e-6


class View(NamedTuple):
    """One camera's picture with its scores.

    Attributes:
        pixels: (B, 3, H, W) letterboxed, in [-1, 1].
        scores: (B, h, w) class ids, or (B, C, h, w) evidence on the camera's whole picture.
        picture: (H, W) of the camera's picture before it was letterboxed.
        mentioned: (B, K) ids of the classes the instruction mentions, in its order, -1 for none; or None.
    """

    pixels: Tensor
    scores: Tensor
    picture: tuple[int, int]
    mentioned: Tensor | None = None


class Cues(NamedTuple):
    """What a policy is told about one camera.

    Attributes:
        tokens: (B, T, D): the picture, classes, regions.
        presence: (B, T) in [0, 1]: how sure it is that a token shows something.
        where: (B, T, N): the evidence of each token on the patches.
        class_ids: (B, S) of the class tokens, -1 for none.
        geometry: (B, G), zeros for what is absent; None if no class is asked for.
    """

    tokens: Tensor
    presence: Tensor
    where: Tensor
    class_ids: Tensor
    geometry: Tensor | None

    def summary(self) -> Tensor:
        """Mean of the tokens that show something, (B, D)."""
        weights = self.presence / (self.presence.sum(1, keepdim=True) + NOTHING)
        return (weights[..., None] * self.tokens).sum(1)


class SegmentationCueBuilder(nn.Module):
    """Pools patch features by class and measures where classes are. Shared by all cameras.

    Args:
        dim: D, width of the patch features.
        grid: (gh, gw) patches.
        box: (H, W) pixels of the letterboxed picture.
        num_classes: C.
        kind: of the scores, as in `SegVLAConfig.segmentation_kind`.
        task_ids: classes that always have a token; empty if the instruction names them.
        task_slots: how many there are.
        class_tokens: S, tokens for classes, the task's first.
        top_k: at most this many of the other classes.
        regions: (x0, x1, y0, y1) each.
        geometry_ids: classes whose geometry is told.
        geometry_slots: how many there are; without ids the instruction names them.
        geometry_dim: G.
    """

    task_ids: Tensor
    geometry_ids: Tensor
    places: Tensor

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        box: tuple[int, int],
        num_classes: int,
        kind: str,
        task_ids: list[int],
        task_slots: int,
        class_tokens: int,
        top_k: int,
        regions: list[list[float]],
        geometry_ids: list[int],
        geometry_slots: int,
        geometry_dim: int,
    ) -> None:
        super().__init__()
        self.grid, self.box, self.kind = grid, box, kind
        self.num_classes, self.geometry_dim = num_classes, geometry_dim
        self.task_slots, self.geometry_slots = task_slots, geometry_slots
        self.others = min(top_k, class_tokens - task_slots, num_classes)
        self.empty = class_tokens - task_slots - self.others
        # The whole picture comes first; fractions of it.
        places = torch.tensor([[0.0, 1.0, 0.0, 1.0], *regions])
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("task_ids", torch.tensor(task_ids, dtype=torch.long), persistent=False)
        self.register_buffer("geometry_ids", torch.tensor(geometry_ids, dtype=torch.long), persistent=False)
        self.norm = nn.LayerNorm(dim)
        self.class_embedding = nn.Embedding(num_classes + 1, dim)  # the last one: no class
        self.picture_embedding = nn.Parameter(torch.randn(dim))
        self.task_embedding = nn.Parameter(torch.randn(task_slots, dim))
        self.region_embedding = nn.Parameter(torch.randn(len(regions), dim))
        self.absent = nn.Parameter(torch.zeros(dim))

    def forward(self, patches: Tensor, view: View) -> Cues:
        """Build the cues of one camera.

        Args:
            patches: (B, N, D) features of the vision tower.
            view: the camera's scores.
        """
        scores = self._evidence(view.scores)
        class_ids = self._choose(scores, view.mentioned)  # (B, S)
        maps = self._maps(scores, class_ids)  # (B, S, h, w)
        of_classes = pool_to_patches(maps, view.picture, self.box, self.grid)  # (B, S, N)
        places = region_patches(self.places, view.picture, self.box, self.grid)  # (1 + R, N)
        of_task = self._task_patches(of_classes, places[:1])[:, None]  # (B, 1, N)
        where = torch.cat([of_task, of_classes, of_task * places[1:]], 1)  # (B, T, N)
        presence = where.sum(-1).clamp(max=1)  # one patch full of evidence is enough to be sure
        seen = where @ patches.to(where.dtype) / (where.sum(-1, keepdim=True) + NOTHING)  # (B, T, D)
        sure = presence[..., None]
        tokens = sure * self.norm(seen) + (1 - sure) * self.absent + self._identities(class_ids)
        return Cues(tokens, presence, where, class_ids, self._geometry(scores, view.mentioned))

    def _evidence(self, scores: Tensor) -> Tensor:
        """Class ids as they are, scores as (B, C, h, w) float32 in [0, 1]."""
        if scores.ndim == 3:
            return scores.long()
        if self.kind in ("logits", "log_scores"):
            return scores.float().softmax(1)
        return scores.float()

    def _maps(self, scores: Tensor, class_ids: Tensor) -> Tensor:
        """Evidence of some classes, (B, S, h, w); zero for class -1."""
        if scores.ndim == 3:
            return (scores[:, None] == class_ids[..., None, None]).float()
        index = class_ids.clamp(min=0)[..., None, None].expand(-1, -1, *scores.shape[-2:])
        return scores.gather(1, index) * (class_ids >= 0)[..., None, None]

    def _choose(self, scores: Tensor, mentioned: Tensor | None) -> Tensor:
        """Classes of the tokens: the task's, the largest others, -1 for none; (B, S)."""
        batch = len(scores)
        if scores.ndim == 3:
            pixels = scores.flatten(1)
            share = torch.zeros(batch, self.num_classes, device=scores.device)
            share.scatter_add_(1, pixels, torch.ones_like(pixels, dtype=share.dtype))
        else:
            share = scores.mean((-2, -1))
        task = self.task_ids.expand(batch, -1) if mentioned is None else mentioned
        taken = torch.zeros(batch, self.num_classes + 1, dtype=torch.bool, device=scores.device)
        taken.scatter_(1, torch.where(task < 0, self.num_classes, task), True)
        largest = share.masked_fill(taken[:, :-1], -1.0).topk(self.others, 1)
        others = torch.where(largest.values > 0, largest.indices, -1)
        empty = others.new_full((batch, self.empty), -1)
        return torch.cat([task, others, empty], 1)

    def _task_patches(self, of_classes: Tensor, picture: Tensor) -> Tensor:
        """Where the task's classes are, (B, N); the whole picture where the task has none."""
        if self.task_slots:
            return of_classes[:, : self.task_slots].sum(1).clamp(max=1)
        return picture.expand(len(of_classes), -1)

    def _identities(self, class_ids: Tensor) -> Tensor:
        """What each token stands for, (B, T, D)."""
        classes = self.class_embedding(torch.where(class_ids < 0, self.num_classes, class_ids))  # (B, S, D)
        tasks = nn.functional.pad(self.task_embedding, (0, 0, 0, classes.shape[1] - self.task_slots))
        batch = len(class_ids)
        return torch.cat(
            [
                self.picture_embedding.expand(batch, 1, -1),
                classes + tasks,
                self.region_embedding.expand(batch, -1, -1),
            ],
            1,
        )

    def _geometry(self, scores: Tensor, mentioned: Tensor | None) -> Tensor | None:
        """Presence, place and size of the geometry classes, and how the second lies from the first, (B, G).

        Places are -1 to 1 from left to right and top to bottom of the camera's picture. All numbers of an absent
        class are 0: the middle, but not present.
        """
        if not self.geometry_slots:
            return None
        ids = self.geometry_ids.expand(len(scores), -1) if mentioned is None else mentioned
        maps = self._maps(scores, ids[:, : self.geometry_slots])  # (B, K, h, w)
        height, width = maps.shape[-2:]
        mass = maps.sum((-2, -1))
        presence = maps.amax((-2, -1))
        x = (maps.sum(-2) @ _centres(width, maps)) / (mass + NOTHING)
        y = (maps.sum(-1) @ _centres(height, maps)) / (mass + NOTHING)
        size = (mass / (height * width)).sqrt()
        numbers = torch.stack([presence, presence * x, presence * y, size], -1).flatten(1)
        if 2 <= self.geometry_slots <= (self.geometry_dim - RELATION) // PER_CLASS:
            both = presence[:, 0] * presence[:, 1]
            dx, dy = x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]
            distance = (dx.square() + dy.square() + NOTHING).sqrt()
            relation = torch.stack([dx, dy, distance, dy / distance, dx / distance], -1)
            numbers = torch.cat([numbers, both[:, None] * relation], -1)
        return nn.functional.pad(numbers, (0, self.geometry_dim - numbers.shape[1]))


def _centres(count: int, like: Tensor) -> Tensor:
    """Middle of each pixel, from -1 to 1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * 2 / count - 1
