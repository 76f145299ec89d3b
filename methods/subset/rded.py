"""RDED: the crops of real images that a trained network is surest of, put together, with its labels.

For every class, of each image in a pool several random crops are drawn. A trained network, the teacher, scores a crop z
by its cross-entropy with the class, after z was shrunk to a tile's size and enlarged again to the image's::

    s(z) = CE(teacher(z), class)

An image stands for its crop of least s. Of these the f^2 IPC with the least s are put together in the order of s, f x f
to an image. Nothing is optimised. Labels are ``softmax(teacher(x) / t)`` of
the finished images, stored once, or the classes.

Shapes: C channels, H = W = side, K classes, f the crops along a side.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.compute.networks import seeded
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.interface import Condenser, DistilledSet, ExpertRequest, Problem, Settings

from .trained import trained_network

_BATCH = 512
_LABELS = ("soft", "hard")
_ASPECTS = (3 / 4, 4 / 3)
_LARGE_SIDE = 64  # from here on an image is put together of 2 x 2 crops


@dataclass(frozen=True, kw_only=True)
class RDEDSettings(Settings):
    """Settings of RDED.

    Args:
        teacher_epochs: the teacher is expert 0 after so many epochs of training on the real images.
        pool: images of a class that crops are drawn from, at random; 0: all. At least as many as crops are needed.
        crops: crops drawn of each.
        least_area: the least area of a crop, as a share of the image's; the largest is 1.
        grid: f, crops along each side of an image; 0: 1 below 64 pixels, and 2 from there on.
        labels: ``soft``, the teacher's probabilities, or ``hard``.
        temperature: t, by which the teacher's outputs are divided.
    """

    teacher_epochs: int = 20
    pool: int = 300
    crops: int = 5
    least_area: float = 0.08
    grid: int = 0
    labels: str = "soft"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.teacher_epochs < 1 or self.crops < 1 or min(self.pool, self.grid) < 0:
            raise UsageError("teacher_epochs and crops must be at least 1, pool and grid not negative.")
        if not 0 < self.least_area <= 1 or not 0 < self.temperature < float("inf"):
            raise UsageError("least_area must lie in (0, 1], and temperature must be positive and finite.")
        if self.labels not in _LABELS:
            raise unknown_name("kind of labels", self.labels, _LABELS)

    def inert(self) -> dict[str, str]:
        """Return the temperature where labels are hard."""
        return {"temperature": "labels are hard"} if self.labels == "hard" else {}


class RDED(Condenser):
    """The best crops of real images by a trained network, with its labels; nothing is optimised.

    Sun, Shi, Yu, Lin, "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm"
    (RDED), CVPR 2024.
    """

    Settings = RDEDSettings
    settings: RDEDSettings
    evaluation_recipe = "rded"

    @classmethod
    def expert_request(cls, settings: Any) -> ExpertRequest:
        """Request one trained network, the teacher."""
        return ExpertRequest(epochs=settings.teacher_epochs, count=1, asked_by=("teacher_epochs",))

    @torch.no_grad()
    def setup(self, problem: Problem) -> None:
        """Choose the crops of every class, and label the images made of them.

        Raises:
            UsageError: a class has fewer images than crops are needed.
        """
        teacher, grid = trained_network(problem, self.settings.teacher_epochs), self._grid(problem.task.side)
        images = torch.cat([self._of_class(problem, teacher, c, grid) for c in range(problem.task.classes)])
        labels = problem.hard_labels()
        if self.settings.labels == "soft":
            outputs = torch.cat([teacher(part) for part in images.split(_BATCH)])
            labels = (outputs / self.settings.temperature).softmax(1)
        self._made = problem.distilled(images, labels)

    def _grid(self, side: int) -> int:
        grid = self.settings.grid or (2 if side >= _LARGE_SIDE else 1)
        if grid > side:
            raise UsageError(f"grid={grid} leaves less than a pixel of {side} for a crop.")
        return grid

    def _of_class(self, problem: Problem, teacher: nn.Module, c: int, grid: int) -> Tensor:
        """Return the images of class ``c``, ``(IPC, C, H, W)`` in network space."""
        members, needed = problem.train.members[c], grid**2 * problem.ipc
        if len(members) < needed:
            raise UsageError(
                f"class {problem.task.class_names[c]} has {len(members)} training images, and rded needs {needed}, "
                f"{grid} x {grid} for each of {problem.ipc}: give --set grid=1, or a smaller --ipc."
            )
        size = max(self.settings.pool or len(members), needed)
        pool = members[torch.randperm(len(members), generator=problem.generator("pool", c))[:size]]
        tiles = crops_of(problem, pool, self.settings, grid, problem.seed_for("crops", c))
        scores = torch.cat([self._scores(problem, teacher, part, c) for part in tiles.split(_BATCH)])
        least, which = scores.view(len(pool), -1).min(1)
        order = least.argsort(stable=True)[:needed]
        best = tiles.view(len(pool), -1, *tiles.shape[1:])[order, which[order].to(order)]
        return problem.train.preprocessing.forward(put_together(best, grid, problem.task.side))

    def _scores(self, problem: Problem, teacher: nn.Module, tiles: Tensor, c: int) -> Tensor:
        """Return the teacher's cross-entropy with class ``c`` for every tile, ``(n,)``."""
        outputs = teacher(problem.train.preprocessing.forward(_resized(tiles, problem.task.side)))
        return F.cross_entropy(outputs, torch.full((len(tiles),), c, device=outputs.device), reduction="none")

    def distilled(self) -> DistilledSet:
        """Return the images with the teacher's labels."""
        return self._made


def crops_of(problem: Problem, pool: Tensor, settings: RDEDSettings, grid: int, seed: int) -> Tensor:
    """Return the random crops of the images ``pool``, as tiles of pixels in [0, 1], ``(len(pool) crops, C, h, h)``.

    h = ceil(H / f). Places, areas and aspects are drawn as for random resized crops.
    """
    from torchvision.transforms import RandomResizedCrop

    tile = -(-problem.task.side // grid)
    scale, tiles = [settings.least_area, 1.0], []
    with seeded(seed):
        for image in problem.train.pixels[pool].to(problem.device).float() / problem.train.max_value:
            for _ in range(settings.crops):
                top, left, height, width = RandomResizedCrop.get_params(image, scale, list(_ASPECTS))
                tiles.append(_resized(image[None, :, top : top + height, left : left + width], tile))
    return torch.cat(tiles)


def put_together(tiles: Tensor, grid: int, side: int) -> Tensor:
    """Return images ``(n / f^2, C, side, side)`` of ``tiles`` ``(n, C, h, h)``, f x f each, row by row."""
    channels, tile = tiles.shape[1], tiles.shape[-1]
    rows = tiles.view(-1, grid, grid, channels, tile, tile).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(-1, channels, grid * tile, grid * tile)[:, :, :side, :side]


def _resized(images: Tensor, side: int) -> Tensor:
    """Return ``images`` with ``side`` pixels a side, bilinearly, averaged where they shrink."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
