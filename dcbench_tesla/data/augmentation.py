"""Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021) with parameters that can be replayed.

A draw takes one operation of the strategy, uniformly, and then its parameters. Applying the draw is a second step, so
that TESLA's two passes, and the real and synthetic batches that DSA and DM compare, get the same transform. All
numbers are drawn on the CPU in float32, so that every device gets the same ones. Images are in preprocessed space, and
nothing is clamped. IDC draws several operations: its strategies have stages, joined by ``+``.

Shapes: N images, C channels, H = W = side; P sets of parameters: one per image (P = N), or one for all images (P = 1,
siamese).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dcbench_tesla.errors import unknown_name

STRATEGY = "color_crop_cutout_flip_scale_rotate"  # the published strategy for natural images and clothes
STRATEGY_NO_FLIP = "color_crop_cutout_scale_rotate"  # for digits, whose mirror images are not digits
NO_STRATEGY = "none"
_STAGE = "+"

BRIGHTNESS = 1.0  # width of the interval of the offset, centred on 0
SATURATION = 2.0  # largest factor; the smallest one is 0
CONTRAST = 0.5  # smallest factor; the largest one is this plus 1
CROP_FRACTION = 0.125  # largest translation, as a fraction of the side
CUTOUT_FRACTION = 0.5  # side of the erased square, as a fraction of the image's side
FLIP_PROBABILITY = 0.5
SCALE_RATIO = 1.2  # factors lie between 1 / ratio and ratio
ROTATE_DEGREES = 15.0  # largest angle in either direction

# DC's own augmentation of digits, no part of DSA: one of three operations for every image
EACH_CROP = 4  # largest translation in pixels
EACH_SCALE = 0.2  # factors lie between 1 minus this and 1 plus this
EACH_DEGREES = 45.0  # largest angle in either direction

Parameters = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Draw:
    """One drawn operation: its name (``"none"`` leaves images unchanged) and its parameters on the CPU.

    Every tensor in ``parameters`` has shape ``(P,)``. A draw can be applied any number of times, on any device. That of
    several stages has their operations joined by ``+``, and names of parameters like ``0.brightness``.
    """

    operation: str
    parameters: Parameters

    def of(self, rows: slice) -> "Draw":
        """Return the draw for the images ``rows`` of the batch; a siamese draw is that of every image."""
        if all(len(values) == 1 for values in self.parameters.values()):
            return self
        return Draw(self.operation, {name: values[rows] for name, values in self.parameters.items()})


@dataclass(frozen=True)
class Augmentation:
    """A DSA strategy: names of operations joined by ``_``. The strategies ``"none"`` and ``""`` are falsy.

    One operation is drawn. A strategy of several stages, such as ``color+crop_scale``, draws one in each, and they are
    applied in this order: here color, and then crop or scale.

    Raises:
        UsageError: an operation is unknown.
    """

    strategy: str = STRATEGY

    def __post_init__(self) -> None:
        if not self.strategy:  # one spelling for no strategy, so that equal strategies compare and hash equal
            object.__setattr__(self, "strategy", NO_STRATEGY)
        for name in self.operations:
            if name not in _OPERATIONS:
                raise unknown_name("augmentation", name, [*_OPERATIONS, NO_STRATEGY])

    @classmethod
    def for_dataset(cls, flippable: bool) -> "Augmentation":
        """Return the published strategy for images that may be mirrored (``flippable``) or may not."""
        return cls(STRATEGY if flippable else STRATEGY_NO_FLIP)

    @property
    def operations(self) -> tuple[str, ...]:
        """The names of the operations to draw from, of all stages."""
        return tuple(name for stage in self._stages for name in stage)

    @property
    def _stages(self) -> tuple[tuple[str, ...], ...]:
        if self.strategy == NO_STRATEGY:
            return ()
        return tuple(tuple(stage.split("_")) for stage in self.strategy.split(_STAGE))

    def __bool__(self) -> bool:
        return bool(self.operations)

    def within(self, other: "Augmentation") -> "Augmentation":
        """Return the strategy with those of its operations only that ``other`` has too."""
        stages = ("_".join(name for name in stage if name in other.operations) for stage in self._stages)
        return Augmentation(_STAGE.join(filter(None, stages)))

    def draw(self, count: int, side: int, generator: Generator, siamese: bool = False) -> Draw:
        """Draw one operation uniformly, then its parameters for ``count`` images of ``side`` pixels; of each stage.

        With ``siamese`` one set of parameters is drawn, which can be applied to a batch of any size. The operation and
        ``count`` alone determine how many numbers are taken from the CPU ``generator``.
        """
        if not self:
            return Draw(NO_STRATEGY, {})
        drawn: list[Draw] = []
        for stage in self._stages:
            name = stage[_choose(len(stage), generator)]
            drawn.append(Draw(name, _OPERATIONS[name].draw(1 if siamese else count, side, generator)))
        return drawn[0] if len(drawn) == 1 else _in_a_row(drawn)

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        """Apply ``draw`` to ``images``; see :func:`apply`."""
        return apply(images, draw)


def apply(images: Tensor, draw: Draw) -> Tensor:
    """Apply ``draw`` to floating-point ``images`` (N, C, H, W); the result has the same shape.

    The result is differentiable in the images; every operation is affine in them. ``scale`` and ``rotate`` use
    ``grid_sample``, whose second derivative older versions of PyTorch lack. Applying never waits for the device:
    parameters are copied to it, and nothing is copied back.

    Raises:
        ValueError: the parameters were drawn for another number of images.
    """
    if draw.operation == NO_STRATEGY:
        return images
    if _STAGE in draw.operation:
        for stage in _one_by_one(draw):
            images = apply(images, stage)
        return images
    sets = next(iter(draw.parameters.values())).shape[0]
    if sets not in (1, images.shape[0]):
        raise ValueError(f"the augmentation was drawn for {sets} images and cannot be applied to {images.shape[0]}")
    return _OPERATIONS[draw.operation].apply(images, draw.parameters)


def _in_a_row(draws: Sequence[Draw]) -> Draw:
    """Join the draws of several stages into one."""
    parameters = {f"{stage}.{name}": values for stage, d in enumerate(draws) for name, values in d.parameters.items()}
    return Draw(_STAGE.join(d.operation for d in draws), parameters)


def _one_by_one(draw: Draw) -> list[Draw]:
    """Return the draws that :func:`_in_a_row` joined."""
    found = [Draw(operation, {}) for operation in draw.operation.split(_STAGE)]
    for name, values in draw.parameters.items():
        stage, _, own = name.partition(".")
        found[int(stage)].parameters[own] = values
    return found


def siamese(draws: Sequence[Draw], count: int) -> Draw:
    """Join siamese draws of one operation, each for ``count`` images, into one draw for all of them.

    Raises:
        ValueError: the draws are of different operations.
    """
    (operation,) = {draw.operation for draw in draws}
    if len(draws) == 1:
        return draws[0]
    names = draws[0].parameters
    joined = {name: torch.cat([d.parameters[name] for d in draws]).repeat_interleave(count) for name in names}
    return Draw(operation, joined)


def _choose(options: int, generator: Generator) -> int:
    """Draw an index below ``options``. In a fake-tensor mode a drawn tensor would have no value, so modes are off."""
    with _disable_current_modes():
        return int(torch.randint(options, (), generator=generator))


def _uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _integers(low: int, end: int, count: int, generator: Generator) -> Tensor:
    return torch.randint(low, end, (count,), generator=generator)


def _round(value: float) -> int:
    return int(value + 0.5)  # half up, like the original code; round() would round half to even


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Bring values (P,) to the images' device and type as (P, 1, 1, 1)."""
    return values.to(images).view(-1, 1, 1, 1)


def _draw_color(count: int, side: int, generator: Generator) -> Parameters:
    return {
        "brightness": _uniform(-BRIGHTNESS / 2, BRIGHTNESS / 2, count, generator),
        "saturation": _uniform(0.0, SATURATION, count, generator),
        "contrast": _uniform(CONTRAST, CONTRAST + 1.0, count, generator),
    }


def _color(images: Tensor, parameters: Parameters) -> Tensor:
    """Change brightness by b, then saturation by s, then contrast by c, in one affine map.

    x1 = x + b; x2 = s (x1 - grey(x1)) + grey(x1); x3 = c (x2 - mean x2) + mean x2. Here grey is the mean over channels
    and mean the mean over the image. As grey(x1) = grey(x) + b and mean x2 = mean x + b:
    x3 = c s x + [c (1 - s) grey(x) + (1 - c) mean x + b].
    This takes one pass over the batch in place of six.
    """
    b, s, c = (_per_image(parameters[name], images) for name in ("brightness", "saturation", "contrast"))
    grey = images.mean(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    return torch.addcmul(c * (1 - s) * grey + ((1 - c) * mean + b), images, c * s)


def _draw_crop(count: int, side: int, generator: Generator) -> Parameters:
    reach = _round(side * CROP_FRACTION)
    return {name: _integers(-reach, reach + 1, count, generator) for name in ("rows", "columns")}


def _crop(images: Tensor, parameters: Parameters) -> Tensor:
    """Move each image by (rows, columns) and fill with zeros: out[y, x] = image[y - rows, x - columns].

    One gather over flattened pixels is the fastest of eleven variants on the CPU, backward pass included. Source
    positions outside the image are clamped, and their values masked. Of the gradients that meet in a border pixel all
    but one are zero, so their order does not matter, and the backward pass is deterministic on every device.
    """
    n, channels, height, width = images.shape
    y, in_y = _sources(parameters["rows"], height, images)
    x, in_x = _sources(parameters["columns"], width, images)
    source = (y[:, :, None] * width + x[:, None, :]).flatten(1)[:, None]
    moved = images.flatten(2).gather(2, source.expand(n, channels, -1)).view_as(images)
    return moved * (in_y[:, :, None] & in_x[:, None, :])[:, None].to(images.dtype)


def _sources(shift: Tensor, length: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clamped source of each of ``length`` positions under ``shift`` (P,), and whether it is inside."""
    source = torch.arange(length, device=images.device) - shift.to(images.device)[:, None]
    return source.clamp(0, length - 1), (source >= 0) & (source < length)


def _draw_cutout(count: int, side: int, generator: Generator) -> Parameters:
    even = 1 - _round(side * CUTOUT_FRACTION) % 2  # an even square has one more position, as in the original code
    return {name: _integers(0, side + even, count, generator) for name in ("rows", "columns")}


def _cutout(images: Tensor, parameters: Parameters) -> Tensor:
    """Erase ``size`` x ``size`` pixels, starting ``size // 2`` before the centre (rows, columns)."""
    size = _round(images.shape[2] * CUTOUT_FRACTION)
    in_y = _covered(parameters["rows"], size, images.shape[2], images)
    in_x = _covered(parameters["columns"], size, images.shape[3], images)
    return images * (~(in_y[:, :, None] & in_x[:, None, :]))[:, None].to(images.dtype)


def _covered(centre: Tensor, size: int, length: int, images: Tensor) -> Tensor:
    """Return which of ``length`` positions the square covers, as booleans (P, length)."""
    offset = torch.arange(length, device=images.device) - (centre.to(images.device)[:, None] - size // 2)
    return (offset >= 0) & (offset < size)


def _draw_flip(count: int, side: int, generator: Generator) -> Parameters:
    return {"flip": torch.rand(count, generator=generator) < FLIP_PROBABILITY}


def _flip(images: Tensor, parameters: Parameters) -> Tensor:
    """Mirror images left to right where ``flip`` is true."""
    return torch.where(parameters["flip"].to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def _draw_scale(count: int, side: int, generator: Generator) -> Parameters:
    return {name: _uniform(1 / SCALE_RATIO, SCALE_RATIO, count, generator) for name in ("x", "y")}


def _scale(images: Tensor, parameters: Parameters) -> Tensor:
    """Sample at (x sx, y sy) relative to the centre: a factor above 1 shrinks the picture and shows zeros around it."""
    x, y = parameters["x"], parameters["y"]
    zero = torch.zeros_like(x)
    return _warp(images, torch.stack([x, zero, zero, zero, y, zero], 1))


def _draw_rotate(count: int, side: int, generator: Generator) -> Parameters:
    return {"degrees": _uniform(-ROTATE_DEGREES, ROTATE_DEGREES, count, generator)}


def _rotate(images: Tensor, parameters: Parameters) -> Tensor:
    """Sample at (x cos a - y sin a, x sin a + y cos a) from the centre, y pointing down: the picture turns by -a."""
    angle = parameters["degrees"].double() * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _warp(images, torch.stack([cos, -sin, zero, sin, cos, zero], 1))


def _warp(images: Tensor, rows: Tensor) -> Tensor:
    """Sample ``images`` bilinearly, with zeros outside, at the positions given by 2 x 3 matrices ``rows`` (P, 6).

    ``align_corners=True``, as in the original code: -1 and 1 are the centres of the outermost pixels.
    """
    theta = rows.to(images).view(-1, 2, 3)
    grid = F.affine_grid(theta, [theta.shape[0], *images.shape[1:]], align_corners=True)
    return F.grid_sample(images, grid.expand(images.shape[0], -1, -1, -1), align_corners=True)


def _draw_each(count: int, side: int, generator: Generator) -> Parameters:
    low, high = 1 - EACH_SCALE, 1 + EACH_SCALE
    return {
        "kind": _integers(0, 3, count, generator),
        **{name: _integers(-EACH_CROP, EACH_CROP + 1, count, generator) for name in ("rows", "columns")},
        **{name: 1 / _uniform(low, high, count, generator) for name in ("x", "y")},
        "degrees": _uniform(-EACH_DEGREES, EACH_DEGREES, count, generator),
    }


def _each(images: Tensor, parameters: Parameters) -> Tensor:
    """Move, scale or turn each image, as its ``kind`` 0, 1 or 2 says, as DC augments digits when it evaluates."""
    ways = torch.stack([f(images, parameters) for f in (_crop, _scale, _rotate)])
    return ways[parameters["kind"].to(images.device), torch.arange(len(images), device=images.device)]


class _Operation(NamedTuple):
    """One operation: ``draw(count, side, generator)`` draws its parameters, ``apply`` uses them on images."""

    draw: Callable[[int, int, Generator], Parameters]
    apply: Callable[[Tensor, Parameters], Tensor]


_OPERATIONS = {
    "color": _Operation(_draw_color, _color),
    "crop": _Operation(_draw_crop, _crop),
    "cutout": _Operation(_draw_cutout, _cutout),
    "flip": _Operation(_draw_flip, _flip),
    "scale": _Operation(_draw_scale, _scale),
    "rotate": _Operation(_draw_rotate, _rotate),
    "each": _Operation(_draw_each, _each),
}


# ---- CutMix ----------------------------------------------------------------------------------------------------------


def cutmix(images: Tensor, labels: Tensor, generator: Generator, probability: float) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of each image into another one of the batch, and mix their labels by area.

    Yun et al., "CutMix" (ICCV 2019), with beta 1: lambda is uniform in [0, 1); the rectangle is sqrt(1 - lambda) of the
    image high and wide and lies around a uniform centre, cut off at the borders. One rectangle and one permutation are
    drawn for the batch; how many numbers are drawn depends on the shapes alone.

    Args:
        images: ``(N, C, H, W)``.
        labels: probabilities ``(N, K)``.
        generator: a CPU generator.
        probability: of changing the batch at all.

    Returns:
        Images and labels of the same shapes.
    """
    n, _, height, width = images.shape
    chance, share = torch.rand(2, generator=generator).tolist()
    centre = [int(torch.randint(length, (), generator=generator)) for length in (height, width)]
    others = torch.randperm(n, generator=generator).to(images.device)
    if chance >= probability:
        return images, labels
    top, bottom = _cut(centre[0], height, 1 - share)
    left, right = _cut(centre[1], width, 1 - share)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, kept * labels + (1 - kept) * labels[others]


def _cut(centre: int, length: int, area: float) -> tuple[int, int]:
    """Return the ends of a rectangle of ``area`` around ``centre`` in one dimension, cut off at the borders."""
    half = int(length * math.sqrt(area)) // 2
    return max(centre - half, 0), min(centre + half, length)
