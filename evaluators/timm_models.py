"""Classification models of timm as evaluators, ``timm:<name>``: adapted to small images, never pretrained.

The models are made for 224 pixels and reduce the image's side by a factor of 16 or 32. At 32 pixels this would leave
one pixel, so the stem of every model is changed to keep the resolution, like that of the papers' ResNet18.
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
_LEAST_TOKENS = 8  # per side, before later stages reduce their number
_LARGEST_PATCH = 16
_LEAST_MAP = {"stem": 2, "patches": 4}  # side of the last feature map in pixels


@dataclass(frozen=True, kw_only=True)
class TimmSettings(CrossSettings):
    """:class:`CrossSettings` with ``batch_size`` of at least 2, for batch norm.

    If the last batch has one image, it joins the batch before.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < _LEAST_BATCH:
            raise UsageError("batch_size must be at least 2: batch norm cannot train on one image.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to make a model for small images: timm's ``arguments``, and whether to change its ``stem`` afterwards.

    ``parameters`` is the number of parameters of the result, known once the plan was tried.
    """

    stem: bool = False
    arguments: Mapping[str, int] = field(default_factory=dict)
    parameters: int = 0

    def __str__(self) -> str:
        if self.stem:
            return "its first strided convolution with stride 1, no max-pooling behind it"
        return ", ".join(f"{name} {value}" for name, value in self.arguments.items())

    def make(self, name: str, channels: int, classes: int) -> nn.Module:
        """Return a fresh network of timm's model ``name`` with timm's initialisation; nothing is downloaded."""
        import timm

        arguments: dict[str, Any] = dict(self.arguments)
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=channels, **arguments
        )
        return keep_resolution(network) if self.stem else network


def keep_resolution(network: nn.Module) -> nn.Module:
    """Make a network's stem keep the resolution, in place; a network without strided convolutions stays unchanged.

    The first strided convolution gets stride 1, and a 3 x 3 kernel if it has a larger one (ResNet's 7 x 7, ConvNeXt's
    4 x 4 patches). The max-pool that follows in the same stem becomes the identity.
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
        # of the same class: some standardise their weights, some pad the input themselves
        bias, kind = conv.bias is not None, type(conv)
        made = kind(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, groups=conv.groups, bias=bias)
        network.set_submodule(first, made)
    names = list(modules)
    for name in names[names.index(first) + 1 :]:
        # only a max-pool of the stem, which holds the convolution: within a block, a parallel branch has the same size
        holds_conv = first.startswith(name.rpartition(".")[0])
        if "MaxPool" in type(modules[name]).__name__ and holds_conv:
            network.set_submodule(name, nn.Identity())
            break
    return network


def _plans(name: str, side: int) -> Iterator[Plan]:
    """Yield the plans to try: the stem; or, for a fixed image size, patches that leave enough tokens, largest first."""
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
    """Return what is wrong with ``network`` on ``side`` x ``side`` images, empty if it works; the network is changed.

    It works if two random images have finite logits ``(2, classes)`` in training and in evaluation mode, which differ
    in evaluation mode, and if the last feature map has at least ``least`` x ``least`` pixels.
    """
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # statistics as after training; with initial ones signals fade with depth
    for mode in (True, False):
        logits = network.train(mode)(images)
        where = "in training mode" if mode else "in evaluation mode"
        if not isinstance(logits, Tensor) or logits.shape != (2, classes):
            return f"{where} it gives no logits (N, K)"
        if not torch.isfinite(logits).all():
            return f"{where} its logits are not finite"
    positions = _positions(network, images)
    if positions < least**2:
        return f"its last feature map has {positions} pixels, but needs {least} x {least}"
    if float((logits[0] - logits[1]).abs().max()) <= 1e-5 * float(logits.abs().max()):
        return "untrained, its logits are almost the same for all images"
    return ""


def _positions(network: nn.Module, images: Tensor) -> int:
    """Return the number of pixels (or tokens) of an image's last feature map, in any layout."""
    maps: Any = network.forward_features(images)  # type: ignore[operator]
    return int(maps.numel()) // (len(images) * int(network.num_features))  # type: ignore[arg-type]


@cache
def plan_for(name: str, channels: int, classes: int, side: int) -> Plan:
    """Return the plan for timm's model ``name`` and ``side`` x ``side`` images, tried on a network that is discarded.

    Raises:
        UsageError: the model cannot be adapted to such small images; the message says what was tried.
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
        except Exception as error:  # 1,371 models, made for other sizes, can raise anything: it becomes the problem
            problem = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": .")
        if not problem:
            return replace(plan, parameters=sum(p.numel() for p in network.parameters()))
        tried.setdefault(problem, []).append(str(plan))
    found = "; ".join(f"with {' or '.join(plans)}: {problem}" for problem, plans in tried.items())
    raise UsageError(f"timm's {name} cannot be adapted to images of {side} x {side}. Tried {found}. Choose another.")


class TimmModel(CrossArchitecture):
    """A model of timm, adapted to small images; subclasses name the model."""

    Settings = TimmSettings
    settings: TimmSettings
    model: ClassVar[str]

    def recipe_for(self, distilled: DistilledSet) -> Recipe:
        """Return the recipe, in which every batch has at least two images.

        Raises:
            UsageError: the distilled set has only one image.
        """
        if distilled.training_images < _LEAST_BATCH:
            raise UsageError(f"timm:{self.model} cannot train on one image: batch norm needs two.")
        return replace(super().recipe_for(distilled), least_batch=_LEAST_BATCH)

    def build_for(self, channels: int, classes: int, side: int) -> nn.Module:
        """Return a fresh network for images of ``side`` pixels, with timm's initialisation.

        Raises:
            UsageError: the model cannot be adapted to this size.
        """
        return plan_for(self.model, channels, classes, side).make(self.model, channels, classes)


class TimmFamily:
    """Any classification model of timm, adapted to small images and trained from scratch, for instance timm:resnet26d.

    In a model with a convolutional stem, the first strided convolution gets stride 1 (and a 3 x 3 kernel if it has a
    larger one), and the max-pool behind it is removed. In a model of patches, img_size is the images' side, and
    patch_size the largest one of at most 16 that divides it and leaves 8 x 8 tokens (4 x 4 after the last stage). Every
    model is first tried on two random images; a model that cannot be adapted is refused with the reason. timm's
    initialisation is kept. Models are named by their architecture: a name with a tag would mean pretrained weights, and
    nothing is downloaded.
    """

    version = 1
    Settings = TimmSettings

    @staticmethod
    @cache
    def member(name: str) -> type[TimmModel]:
        """Return the evaluator of timm's model ``name``.

        Raises:
            UsageError: timm has no such model, the name has a tag, or the model cannot be adapted to 32 x 32 images.
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
            nearest = f" Similar: {', '.join(near)}." if near else ""
            raise UsageError(f"timm {__version__} has no model {name!r}.{nearest} Write timm:<name>.")
        plan = plan_for(name, 3, 10, 32)
        doc = (
            f"{name} of timm {__version__}, trained from scratch, adapted to small images.\n\n"
            f"At 32 x 32: {plan}. {plan.parameters:,} parameters for ten classes at 3 x 32 x 32."
        )
        return type(f"Timm_{name}", (TimmModel,), {"model": name, "version": 1, "__doc__": doc, "__module__": __name__})
