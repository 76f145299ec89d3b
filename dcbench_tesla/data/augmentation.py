"""Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021) with parameters that can be replayed.

A call draws exactly one operation of the strategy, uniformly, then its parameters; applying the drawn parameters is a
second step, so that TESLA's two passes and the siamese matching of DSA and DM see the same transform. All numbers are
drawn on the CPU, in float32, so that every device gets the same ones. Images live in preprocessed space; nothing is
clamped.

Shapes: N images, C channels, H = W = side; P parameter sets, one an image (P = N) or one for all (P = 1, siamese).
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

STRATEGY = "color_crop_cutout_flip_scale_rotate"  # the field's choice for natural images and clothes
STRATEGY_NO_FLIP = "color_crop_cutout_scale_rotate"  # for digits, whose mirror image is another thing
NO_STRATEGY = "none"

BRIGHTNESS = 1.0  # width of the interval of the offset, centred on 0
SATURATION = 2.0  # upper end of the factor, from 0
CONTRAST = 0.5  # lower end of the factor, up to 1 more
CROP_FRACTION = 0.125  # largest translation, of the side
CUTOUT_FRACTION = 0.5  # side of the erased square, of the side
FLIP_PROBABILITY = 0.5
SCALE_RATIO = 1.2  # factors from 1 / ratio to ratio
ROTATE_DEGREES = 15.0  # angles to both sides

Parameters = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Draw:
    """One drawn operation: its name (``"none"``: leave the images as they are) and its parameters on the CPU.

    Every tensor in ``parameters`` has shape ``(P,)``. It can be applied any number of times, on any device.
    """

    operation: str
    parameters: Parameters


@dataclass(frozen=True)
class Augmentation:
    """A DSA strategy: operation names joined by ``_``; ``"none"`` or ``""`` augments nothing and is falsy.

    Raises :class:`~dcbench_tesla.errors.UsageError` for an unknown operation.
    """

    strategy: str = STRATEGY

    def __post_init__(self) -> None:
        if not self.strategy:  # one spelling, so that equal strategies compare and hash equal
            object.__setattr__(self, "strategy", NO_STRATEGY)
        for name in self.operations:
            if name not in _OPERATIONS:
                raise unknown_name("augmentation", name, [*_OPERATIONS, NO_STRATEGY])

    @classmethod
    def for_dataset(cls, flippable: bool) -> "Augmentation":
        """Return the field's strategy for images that may (or may not) be mirrored."""
        return cls(STRATEGY if flippable else STRATEGY_NO_FLIP)

    @property
    def operations(self) -> tuple[str, ...]:
        """The names that an operation is drawn from."""
        return () if self.strategy == NO_STRATEGY else tuple(self.strategy.split("_"))

    def __bool__(self) -> bool:
        return bool(self.operations)

    def draw(self, count: int, side: int, generator: Generator, siamese: bool = False) -> Draw:
        """Draw one operation uniformly, then its parameters for ``count`` images of ``side`` pixels.

        With ``siamese`` one parameter set is drawn and serves batches of any size. How many numbers are taken from
        the CPU ``generator`` depends on the operation and ``count`` alone.
        """
        if not self:
            return Draw(NO_STRATEGY, {})
        name = self.operations[_choose(len(self.operations), generator)]
        return Draw(name, _OPERATIONS[name].draw(1 if siamese else count, side, generator))

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        """Apply ``draw`` to ``images``: see :func:`apply`."""
        return apply(images, draw)


def apply(images: Tensor, draw: Draw) -> Tensor:
    """Apply ``draw`` to floating ``images`` (N, C, H, W); returns the same shape, differentiable in the images.

    Every operation is affine in the images. ``scale`` and ``rotate`` rest on ``grid_sample``, whose second derivative
    older versions of torch lack. No device is waited for: parameters travel to the images, none comes back. Raises
    ``ValueError`` where the parameters are for another number of images.
    """
    if draw.operation == NO_STRATEGY:
        return images
    sets = next(iter(draw.parameters.values())).shape[0]
    if sets not in (1, images.shape[0]):
        raise ValueError(f"the augmentation was drawn for {sets} images and cannot be applied to {images.shape[0]}")
    return _OPERATIONS[draw.operation].apply(images, draw.parameters)


def siamese(draws: Sequence[Draw], count: int) -> Draw:
    """Join draws of one operation, each of a single parameter set that serves ``count`` images, into one for them all.

    Raises ``ValueError`` where they are of several operations.
    """
    (operation,) = {draw.operation for draw in draws}
    if len(draws) == 1:
        return draws[0]
    names = draws[0].parameters
    joined = {name: torch.cat([d.parameters[name] for d in draws]).repeat_interleave(count) for name in names}
    return Draw(operation, joined)


def _choose(options: int, generator: Generator) -> int:
    """Draw an index below ``options``, also inside a fake-tensor mode, where a drawn tensor would have no value."""
    with _disable_current_modes():
        return int(torch.randint(options, (), generator=generator))


def _uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _integers(low: int, end: int, count: int, generator: Generator) -> Tensor:
    return torch.randint(low, end, (count,), generator=generator)


def _round(value: float) -> int:
    return int(value + 0.5)  # half up, as the original does: round() would go to even


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
    """Brightness b, then saturation s, then contrast c, as one affine map.

    x1 = x + b; x2 = s (x1 - grey(x1)) + grey(x1), grey the mean over channels; x3 = c (x2 - mean x2) + mean x2, the
    mean over the image. As grey(x1) = grey(x) + b and mean x2 = mean x + b:
    x3 = c s x + [c (1 - s) grey(x) + (1 - c) mean x + b].
    One pass over the batch in place of six.
    """
    b, s, c = (_per_image(parameters[name], images) for name in ("brightness", "saturation", "contrast"))
    grey = images.mean(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    return torch.addcmul(c * (1 - s) * grey + ((1 - c) * mean + b), images, c * s)


def _draw_crop(count: int, side: int, generator: Generator) -> Parameters:
    reach = _round(side * CROP_FRACTION)
    return {name: _integers(-reach, reach + 1, count, generator) for name in ("rows", "columns")}


def _crop(images: Tensor, parameters: Parameters) -> Tensor:
    """Move by (rows, columns), zeros coming in: out[y, x] = image[y - rows, x - columns].

    One gather over flattened pixels: the fastest of eleven variants on the CPU, backward included. Sources outside
    are clamped and masked; of the gradients meeting in a border pixel all but one are zero, so that their order does
    not matter and the backward pass is deterministic on every device.
    """
    n, channels, height, width = images.shape
    y, in_y = _sources(parameters["rows"], height, images)
    x, in_x = _sources(parameters["columns"], width, images)
    source = (y[:, :, None] * width + x[:, None, :]).flatten(1)[:, None]
    moved = images.flatten(2).gather(2, source.expand(n, channels, -1)).view_as(images)
    return moved * (in_y[:, :, None] & in_x[:, None, :])[:, None].to(images.dtype)


def _sources(shift: Tensor, length: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of ``length`` positions reads from under ``shift`` (P,), clamped; and whether that is inside."""
    source = torch.arange(length, device=images.device) - shift.to(images.device)[:, None]
    return source.clamp(0, length - 1), (source >= 0) & (source < length)


def _draw_cutout(count: int, side: int, generator: Generator) -> Parameters:
    even = 1 - _round(side * CUTOUT_FRACTION) % 2  # an even square has one more place to be, as in the original
    return {name: _integers(0, side + even, count, generator) for name in ("rows", "columns")}


def _cutout(images: Tensor, parameters: Parameters) -> Tensor:
    """Erase a square of ``size`` around (rows, columns): centre - size // 2 and the ``size - 1`` pixels after it."""
    size = _round(images.shape[2] * CUTOUT_FRACTION)
    in_y = _covered(parameters["rows"], size, images.shape[2], images)
    in_x = _covered(parameters["columns"], size, images.shape[3], images)
    return images * (~(in_y[:, :, None] & in_x[:, None, :]))[:, None].to(images.dtype)


def _covered(centre: Tensor, size: int, length: int, images: Tensor) -> Tensor:
    """Return which of ``length`` positions the square covers, (P, length)."""
    offset = torch.arange(length, device=images.device) - (centre.to(images.device)[:, None] - size // 2)
    return (offset >= 0) & (offset < size)


def _draw_flip(count: int, side: int, generator: Generator) -> Parameters:
    return {"flip": torch.rand(count, generator=generator) < FLIP_PROBABILITY}


def _flip(images: Tensor, parameters: Parameters) -> Tensor:
    """Mirror left and right where ``flip`` is true."""
    return torch.where(parameters["flip"].to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def _draw_scale(count: int, side: int, generator: Generator) -> Parameters:
    return {name: _uniform(1 / SCALE_RATIO, SCALE_RATIO, count, generator) for name in ("x", "y")}


def _scale(images: Tensor, parameters: Parameters) -> Tensor:
    """Read at (x sx, y sy) from the centre: a factor above 1 shrinks what is seen and lets zeros in."""
    x, y = parameters["x"], parameters["y"]
    zero = torch.zeros_like(x)
    return _warp(images, torch.stack([x, zero, zero, zero, y, zero], 1))


def _draw_rotate(count: int, side: int, generator: Generator) -> Parameters:
    return {"degrees": _uniform(-ROTATE_DEGREES, ROTATE_DEGREES, count, generator)}


def _rotate(images: Tensor, parameters: Parameters) -> Tensor:
    """Read at (x cos a - y sin a, x sin a + y cos a) from the centre, y pointing down: the picture turns by -a."""
    angle = parameters["degrees"].double() * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _warp(images, torch.stack([cos, -sin, zero, sin, cos, zero], 1))


def _warp(images: Tensor, rows: Tensor) -> Tensor:
    """Sample ``images`` bilinearly, zeros outside, where the 2 x 3 matrices in ``rows`` (P, 6) say.

    ``align_corners=True`` is what the original results were made with: -1 and 1 are the centres of the outer pixels.
    """
    theta = rows.to(images).view(-1, 2, 3)
    grid = F.affine_grid(theta, [theta.shape[0], *images.shape[1:]], align_corners=True)
    return F.grid_sample(images, grid.expand(images.shape[0], -1, -1, -1), align_corners=True)


class _Operation(NamedTuple):
    """How the parameters of one operation are drawn (count, side, generator), and how they act on images."""

    draw: Callable[[int, int, Generator], Parameters]
    apply: Callable[[Tensor, Parameters], Tensor]


_OPERATIONS = {
    "color": _Operation(_draw_color, _color),
    "crop": _Operation(_draw_crop, _crop),
    "cutout": _Operation(_draw_cutout, _cutout),
    "flip": _Operation(_draw_flip, _flip),
    "scale": _Operation(_draw_scale, _scale),
    "rotate": _Operation(_draw_rotate, _rotate),
}
