"""timm's classification models as evaluators, ``timm:<name>``: adapted to small images, never pretrained.

timm's models are made for 224 pixels and shrink an image 16 or 32 times. At 32 pixels one pixel would be left. So a
model's stem keeps the resolution: as the field's ResNet18 has it, for every model.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcbench_tesla.compute.networks import seeded
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import DistilledSet

from .cross_architecture import CrossArchitecture, CrossSettings
from .training import Recipe

_LEAST_BATCH = 2
_LEAST_TOKENS = 8  # a side, at the patches' own resolution
_LARGEST_PATCH = 16
_LEAST_MAP = {"stem": 2, "patches": 4}  # pixels a side of the last map


@dataclass(frozen=True, kw_only=True)
class TimmSettings(CrossSettings):
    """:class:`CrossSettings`; ``batch_size`` is at least 2, for batch norm.

    A last batch of one image joins the batch before it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < _LEAST_BATCH:
            raise UsageError("batch_size must be at least 2: batch norm cannot train on one image.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is made for small images: its ``arguments``, and whether its ``stem`` is changed afterwards.

    ``parameters``: how many it then has, once it was tried.
    """

    stem: bool = False
    arguments: Mapping[str, int] = field(default_factory=dict)
    parameters: int = 0

    def __str__(self) -> str:
        if self.stem:
            return "its first strided convolution with stride 1, no max-pooling behind it"
        return ", ".join(f"{name} {value}" for name, value in self.arguments.items())

    def make(self, name: str, channels: int, classes: int) -> nn.Module:
        """Return a fresh network of timm's ``name``, in timm's initialisation; nothing is downloaded."""
        import timm

        arguments: dict[str, Any] = dict(self.arguments)
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=channels, **arguments
        )
        return keep_resolution(network) if self.stem else network


def keep_resolution(network: nn.Module) -> nn.Module:
    """Take the shrinking out of a network's stem, in place; a network without strided convolutions stays as it is.

    The first strided convolution gets stride 1, and 3 x 3 where it has a larger kernel (ResNet's 7 x 7, ConvNeXt's
    4 x 4 patches); the max-pool that follows in the same stem becomes the identity.
    """
    modules = dict(network.named_modules())
    named = [name for name, m in modules.items() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    if not named:
        return network
    first = named[0]
    conv = modules[first]
    assert isinstance(conv, nn.Conv2d)
    conv.stride = (1, 1)
    if max(conv.kernel_size) not in (1, 3):
        # of its own class: some standardise their weights, some pad by themselves
        bias, kind = conv.bias is not None, type(conv)
        made = kind(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, groups=conv.groups, bias=bias)
        network.set_submodule(first, made)
    names = list(modules)
    for name in names[names.index(first) + 1 :]:
        # within a block a max-pool has a branch beside it, of the same size: only a stem's, which holds the convolution
        holds_conv = first.startswith(name.rpartition(".")[0])
        if "MaxPool" in type(modules[name]).__name__ and holds_conv:
            network.set_submodule(name, nn.Identity())
            break
    return network


def _plans(name: str, side: int) -> Iterator[Plan]:
    """Return what to try: the stem, or patches as large as leave enough tokens where the image size is built in."""
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size:
        yield Plan(stem=True)
        return
    for patch in range(min(_LARGEST_PATCH, side // _LEAST_TOKENS), 0, -1):
        if side % patch == 0:
            yield Plan(arguments={"img_size": side, "patch_size": patch})


@torch.no_grad()
def problem_of(network: nn.Module, channels: int, classes: int, side: int, least: int) -> str:
    """Return what is wrong with ``network`` on ``side`` x ``side`` images, empty where it works; it is used up.

    It works if two random images have finite logits ``(2, classes)`` in training and in evaluation mode, different ones
    in the latter, and a last map of at least ``least`` x ``least`` pixels.
    """
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # statistics as after training; those of a fresh network let signals fade in depth
    for mode in (True, False):
        logits = network.train(mode)(images)
        where = "in training mode" if mode else "in evaluation mode"
        if not isinstance(logits, Tensor) or logits.shape != (2, classes):
            return f"{where} it gives no logits (N, K)"
        if not torch.isfinite(logits).all():
            return f"{where} its logits are not finite"
    positions = _positions(network, images)
    if positions < least**2:
        return f"its last map has {positions} of at least {least} x {least} pixels"
    if float((logits[0] - logits[1]).abs().max()) <= 1e-5 * float(logits.abs().max()):
        return "untrained, its logits are almost the same for all images"
    return ""


def _positions(network: nn.Module, images: Tensor) -> int:
    """Pixels (or tokens) of an image's last map, wherever it keeps its channels."""
    maps: Any = network.forward_features(images)  # type: ignore[operator]
    return int(maps.numel()) // (len(images) * int(network.num_features))  # type: ignore[arg-type]


@cache
def plan_for(name: str, channels: int, classes: int, side: int) -> Plan:
    """Return how timm's ``name`` is made for ``side`` x ``side`` images, found out on a network that is thrown away.

    Raises:
        UsageError: it cannot be made for so small images; says what was tried and what came of it.
    """
    tried: dict[str, list[str]] = {}
    for plan in _plans(name, side):
        least = _LEAST_MAP["stem" if plan.stem else "patches"]
        try:
            with seeded(0):
                network = plan.make(name, channels, classes)
                problem = problem_of(network, channels, classes, side, least)
        except MemoryError:
            raise
        except Exception as error:  # 1,371 models, made for other sizes: whatever one raises is the finding
            problem = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": .")
        if not problem:
            return replace(plan, parameters=sum(p.numel() for p in network.parameters()))
        tried.setdefault(problem, []).append(str(plan))
    found = "; ".join(f"with {' or '.join(plans)}: {problem}" for problem, plans in tried.items())
    raise UsageError(f"timm's {name} cannot be adapted to images of {side} x {side}. Tried {found}. Choose another.")


class TimmModel(CrossArchitecture):
    """A model of timm, adapted to small images; a subclass says which."""

    Settings = TimmSettings
    settings: TimmSettings
    model: ClassVar[str]

    def recipe_for(self, distilled: DistilledSet) -> Recipe:
        """Return the recipe; no batch has fewer than two images.

        Raises:
            UsageError: the set has one image only.
        """
        if len(distilled) < _LEAST_BATCH:
            raise UsageError(f"timm:{self.model} cannot train on one image: batch norm needs two.")
        return replace(super().recipe_for(distilled), least_batch=_LEAST_BATCH)

    def cost(self, distilled: DistilledSet) -> int:
        """Return the number of SGD steps of one training."""
        whole, rest = divmod(len(distilled), self.settings.batch_size)
        return self.settings.epochs * max(1, whole + (rest >= _LEAST_BATCH))

    def build_for(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a fresh network for images of ``side`` pixels, in timm's initialisation.

        Raises:
            UsageError: the model cannot be adapted to this size.
        """
        return plan_for(self.model, channels, classes, side).make(self.model, channels, classes)


class TimmFamily:
    """Any classification model of timm, adapted to small images and trained from scratch, for instance timm:resnet26d.

    A model with a convolutional stem: its first strided convolution gets stride 1 (a kernel larger than 3 x 3 becomes
    3 x 3), the max-pool behind it goes. A model of patches: img_size is the images' side, patch_size the largest one of
    at most 16 that divides it and leaves 8 x 8 tokens (4 x 4 after the last stage). Every model is tried on two random
    images first; one that cannot be adapted is refused with the reason. timm's initialisation is kept. Models are
    known by their architecture: a name with a tag would mean pretrained weights, and nothing is downloaded.
    """

    version = 1
    Settings = TimmSettings

    @staticmethod
    @cache
    def member(name: str) -> type[TimmModel]:
        """Return the evaluator of timm's model ``name``.

        Raises:
            UsageError: timm has no such model, the name has a tag, or the model does not take 32 x 32 images.
        """
        from timm import __version__, list_models

        architecture, dot, tag = name.partition(".")
        if dot:
            raise UsageError(
                f"timm:{name} names the pretrained weights {tag!r}; evaluators are trained from scratch, and nothing "
                f"is downloaded. Leave the tag out: timm:{architecture}."
            )
        known = list_models()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
            nearest = f" Near: {', '.join(near)}." if near else ""
            raise UsageError(f"timm {__version__} has no model {name!r}.{nearest} Write timm:<name>.")
        plan = plan_for(name, 3, 10, 32)
        doc = (
            f"{name} of timm {__version__}, trained from scratch, adapted to small images.\n\n"
            f"At 32 x 32: {plan}. {plan.parameters:,} parameters for ten classes at 3 x 32 x 32."
        )
        return type(f"Timm_{name}", (TimmModel,), {"model": name, "version": 1, "__doc__": doc, "__module__": __name__})
