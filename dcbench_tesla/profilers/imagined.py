"""Run a program without its numbers: :class:`ImaginedBytes` counts the bytes that tensors without memory would hold.

PyTorch's ``meta`` tensors have a shape and no memory, and operations on them compute shapes only. They stand for the
tensors of the device whose memory is predicted. Everything that a program keeps in main memory stays real, so its
random numbers, indices and drawn augmentations are those of a real run, and its bytes are counted separately. (Fake
tensors are similar, but not suitable: fake CUDA tensors cannot run a backward pass without a driver, and fake CPU
tensors would mix both kinds of memory.)

A program that asks a ``meta`` tensor for its value gets a harmless answer.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from dcbench_tesla.errors import UsageError
from dcbench_tesla.profilers.live_bytes import LiveBytes

IMAGINED = torch.device("meta")
"""The device on which a program runs whose memory is predicted."""

_aten = torch.ops.aten


class ImaginedBytes(LiveBytes):
    """:class:`LiveBytes` for a program on :data:`IMAGINED`: counts the bytes that it would need on a real device.

    Questions about values are answered so that the program continues as if its numbers were in order: ``isfinite`` and
    ``all`` are true, every other condition is false, other floating-point values are 1, and integers 0. A mask selects
    everything, which gives the largest possible result. A copy to the CPU is filled with zeros.

    Args:
        round_to: see :class:`LiveBytes`.
        remembered: results of operations by their argument shapes. Many of PyTorch's ``meta`` operations are slow
            Python code, so meters can share one dictionary to run each of them once; ``None`` remembers nothing.

    Raises:
        UsageError: (raised by an operation) the size of a result depends on values in an unsupported way.
    """

    def __init__(self, *, round_to: int = 1, remembered: "Remembered | None" = None) -> None:
        super().__init__(round_to=round_to)
        self._remembered = remembered

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        if (answer := _ANSWERS.get(func)) is not None and (told := answer(func, args, kwargs)) is not NotImplemented:
            return told
        if self._remembered is None or not _makes_new_tensors(func):
            return _imagine(func, args, kwargs)
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())))
            recipe = self._remembered.get(key)
        except (TypeError, _RealError):  # an argument is not hashable, or is a real tensor, whose values matter
            return _imagine(func, args, kwargs)
        if recipe is not None:
            return recipe.make()
        result = _imagine(func, args, kwargs)
        if (recipe := _recipe(result)) is not None:
            self._remembered[key] = recipe
        return result


def _imagine(func: Any, args: Any, kwargs: Any) -> Any:
    try:
        return func(*args, **kwargs)
    except NotImplementedError as error:
        raise UsageError(f"memory cannot be predicted through {func}: {str(error).splitlines()[0]}") from error


# ---- answers ---------------------------------------------------------------------------------------------------------
# Answers for operations that ask for values. NotImplemented means: handle this call like any other operation.


def _value(func: Any, args: Any, kwargs: Any) -> object:
    (tensor,) = args
    if not tensor.is_meta:
        return NotImplemented
    if tensor.dtype == torch.bool:
        return getattr(tensor, "_holds", False)
    return 1.0 if tensor.is_floating_point() or tensor.is_complex() else 0


def _holds(func: Any, args: Any, kwargs: Any) -> Any:
    """Return a condition that is true, for ``all`` and for the product of two conditions, which makes ``isfinite``."""
    if not args[0].is_meta or args[0].dtype != torch.bool:
        return NotImplemented
    result = func(*args, **kwargs)
    result._holds = True
    return result


def _equal(func: Any, args: Any, kwargs: Any) -> object:
    return False if args[0].is_meta or args[1].is_meta else NotImplemented


def _to_copy(func: Any, args: Any, kwargs: Any) -> Any:
    source, device = args[0], kwargs.get("device")
    if not source.is_meta or device is None or torch.device(device).type == "meta":
        return NotImplemented
    return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device)


def _copy_into(func: Any, args: Any, kwargs: Any) -> Any:
    target, source = args[:2]
    return target if source.is_meta and not target.is_meta else NotImplemented


def _nonzero(func: Any, args: Any, kwargs: Any) -> Any:
    return _positions(args[0]) if args[0].is_meta else NotImplemented


def _masked_select(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, mask = args
    if not tensor.is_meta:
        return NotImplemented
    return tensor.new_empty(prod(torch.broadcast_shapes(tensor.shape, mask.shape)))


def _index(func: Any, args: Any, kwargs: Any) -> Any:
    """Index with masks replaced by the positions that they select, one index per dimension of the mask."""
    tensor, indices = args
    if not tensor.is_meta or not any(i is not None and i.dtype == torch.bool for i in indices):
        return NotImplemented
    spread: list[Tensor | None] = []
    for i in indices:
        spread += _positions(i.to(IMAGINED)).unbind(1) if i is not None and i.dtype == torch.bool else [i]
    return func(tensor, spread)


def _positions(mask: Tensor) -> Tensor:
    return torch.empty((mask.numel(), mask.ndim), dtype=torch.int64, device=IMAGINED)


_ANSWERS: dict[Any, Callable[[Any, Any, Any], Any]] = {
    _aten._local_scalar_dense.default: _value,
    _aten.all.default: _holds,
    _aten.mul.Tensor: _holds,
    _aten.equal.default: _equal,
    _aten._to_copy.default: _to_copy,
    _aten.copy_.default: _copy_into,
    _aten.nonzero.default: _nonzero,
    _aten.masked_select.default: _masked_select,
    _aten.index.Tensor: _index,
}


# ---- results by shapes -----------------------------------------------------------------------------------------------


class _RealError(Exception):
    """An argument is a tensor with values."""


class _Recipe(NamedTuple):
    """How to make an operation's results: shape, strides and dtype of each, ``None`` for a result that is ``None``."""

    parts: tuple[tuple[Any, tuple[int, ...], torch.dtype] | None, ...]
    single: bool

    def make(self) -> Any:
        made = [p and torch.empty_strided(p[0], p[1], dtype=p[2], device=IMAGINED) for p in self.parts]
        return made[0] if self.single else tuple(made)


Remembered = dict[Any, _Recipe]
"""How to make the results of operations, by operation and arguments."""


@cache
def _makes_new_tensors(func: Any) -> bool:
    """Return whether an operation leaves its arguments unchanged and returns tensors that share no memory with them."""
    schema = func._schema
    returns_tensors = bool(schema.returns) and all(isinstance(r.type, torch.TensorType) for r in schema.returns)
    return returns_tensors and not any(part.alias_info for part in (*schema.arguments, *schema.returns))


def _key(value: Any) -> Any:
    """Return the properties of an argument that the result of a ``meta`` operation can depend on.

    Raises:
        _RealError: the argument is a tensor with values.
        TypeError: (when hashed) the argument is not hashable.
    """
    kind = type(value)
    if kind is Tensor or kind is Parameter:
        if not value.is_meta:
            raise _RealError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_key, value))
    if isinstance(value, Tensor):  # a subclass of Tensor may behave in any way
        raise _RealError
    return kind, value  # with the type, because 1, 1.0 and True are equal


def _recipe(result: Any) -> _Recipe | None:
    """Describe an operation's results; ``None`` unless all are plain tensors that each have their own memory."""
    single = isinstance(result, Tensor)
    tensors = (result,) if single else result
    if not isinstance(tensors, tuple):
        return None
    parts: list[tuple[Any, tuple[int, ...], torch.dtype] | None] = []
    for tensor in tensors:
        if tensor is None:
            parts.append(None)
        elif type(tensor) is Tensor and tensor.is_meta and _fills_its_storage(tensor):
            parts.append((tensor.shape, tensor.stride(), tensor.dtype))
        else:
            return None
    shared = len({t.untyped_storage()._cdata for t in tensors if t is not None}) < sum(p is not None for p in parts)
    return None if shared else _Recipe(tuple(parts), single)


def _fills_its_storage(tensor: Tensor) -> bool:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=IMAGINED)
    return bool(made.untyped_storage().nbytes() == tensor.untyped_storage().nbytes() and tensor.storage_offset() == 0)
