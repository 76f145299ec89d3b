"""The caller's own networks as evaluators: any callable that returns a freshly initialised module.

Shapes: C channels, H = W = side, K classes.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcbench_tesla import registry
from dcbench_tesla.compute.networks import seeded
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Evaluator

RECIPE = "convnet"
"""The evaluator whose settings and recipe the caller's own networks are trained by."""

Factory = Callable[..., nn.Module]
_SIZES = ("channels", "classes", "side")


def told_apart(evaluators: Any) -> tuple[tuple[str, ...], dict[str, Factory]]:
    """Return the names of registered evaluators, and the caller's own networks by name.

    Args:
        evaluators: a name, a callable, several of both, or a mapping from names to callables.

    Raises:
        UsageError: one is neither; a name is unknown, or is that of two networks.
    """
    if isinstance(evaluators, Mapping):
        pairs = [(str(name), thing) for name, thing in evaluators.items()]
    else:
        one = isinstance(evaluators, str) or callable(evaluators) or not isinstance(evaluators, Iterable)
        pairs = [("", thing) for thing in ([evaluators] if one else evaluators)]
    names = tuple(str(thing) for _, thing in pairs if isinstance(thing, str))
    registry.check_names("evaluators", names)
    own: dict[str, Factory] = {}
    for given, thing in ((given, thing) for given, thing in pairs if not isinstance(thing, str)):
        name = given or name_of(thing)
        if name in own or registry.has("evaluators", name):
            raise UsageError(f"two evaluators are called {name!r}: give names, evaluators={{'name': network, ...}}.")
        own[name] = thing
    return names, own


def name_of(factory: Any) -> str:
    """Return what a callable that makes networks is called.

    Raises:
        UsageError: it is a network, and not what makes one, or no callable.
    """
    if isinstance(factory, nn.Module):
        kind = type(factory).__name__
        raise UsageError(f"each of evaluators must make fresh networks, and this is one: give {kind}, or a lambda.")
    if not callable(factory):
        kind = type(factory).__name__
        told = "each of evaluators must be a string, or a callable that returns a torch.nn.Module"
        raise UsageError(f"{told}, not {factory!r:.80} ({kind}).")
    while isinstance(factory, partial):
        factory = factory.func
    name = getattr(factory, "__name__", type(factory).__name__)
    return "network" if name == "<lambda>" else str(name)


def evaluator_of(name: str, factory: Factory, sizes: tuple[int, int, int]) -> type[Evaluator]:
    """Return the evaluator that trains the networks of ``factory`` by the recipe of ``convnet``.

    Args:
        name: what it is called.
        factory: called with those of ``channels``, ``classes`` and ``side`` that it names.
        sizes: channels, classes and side of the images to try it on.

    Raises:
        UsageError: it needs further arguments, returns no module, or the module does not take the images.
    """
    taken = _taken(name, factory)

    def build(*sizes: int) -> nn.Module:
        return factory(**{key: value for key, value in zip(_SIZES, sizes, strict=True) if key in taken})

    with seeded(0):
        _check(name, build, sizes)
    return registry.load_evaluator(RECIPE).for_networks(name, build)


def _taken(name: str, factory: Factory) -> set[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # of some callables in C
        return set()
    empty, variadic = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is empty and p.kind not in variadic and p.name not in _SIZES]
    if needed:
        raise UsageError(
            f"{name} needs {', '.join(needed)}: give a callable that takes nothing, or some of channels, classes and "
            f"side, such as lambda channels, classes, side: {name}(...)."
        )
    return {p.name for p in parameters if p.name in _SIZES}


@torch.no_grad()
def _check(name: str, build: Callable[..., nn.Module], sizes: tuple[int, int, int]) -> None:
    """Check that a network maps two images to two rows of logits."""
    channels, classes, side = sizes
    shape, network = (channels, side, side), build(*sizes)
    if not isinstance(network, nn.Module):
        raise UsageError(f"{name} returned {type(network).__name__}; expected a torch.nn.Module.")
    size = " x ".join(map(str, shape))
    try:
        logits = network.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"{name} does not take images of {size}: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"{name} returns {found} for two images of {size}; expected logits (2, {classes}).")
