"""Running a program without its numbers: :class:`ImaginedBytes`, which counts what tensors without memory would hold.

Torch's ``meta`` tensors have a shape and no memory, and operations on them compute shapes alone. They stand for the
tensors of the device whose memory is to be predicted; what a program keeps in main memory stays real, so that its
random numbers, indices and drawn augmentations are those of a real run, and its bytes are counted apart. (Torch's
fake tensors are the same, pretending to be elsewhere; pretended CUDA tensors cannot go backward without a driver, and
pretended CPU tensors would mix both memories.)

Where a program asks such a tensor for its value, it is told something harmless.
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
"""The device a program to be imagined runs on."""

_aten = torch.ops.aten


class ImaginedBytes(LiveBytes):
    """:class:`LiveBytes` for a program that runs on :data:`IMAGINED`: the bytes it would need on a real device.

    Values are answered so that a program goes on as one whose numbers are in order: ``isfinite`` and ``all`` hold and
    every other condition does not; other numbers are 1, and indices 0. A mask lets everything through, which is the
    most that it can; a copy to the CPU is zeros.

    What operations return for given shapes is kept in ``remembered``, since many of torch's operations without memory
    are slow programs in Python; meters that share one dictionary learn from each other. ``None`` remembers nothing.

    Raises:
        UsageError: (from the operation) the size of a result depends on values in a way that is not known here.
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
        except (TypeError, _RealError):  # an argument is no dictionary's key, or a real tensor, whose values matter
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
# What a program is told that asks for values; NotImplemented: it does not ask, the operation is as any other.


def _value(func: Any, args: Any, kwargs: Any) -> object:
    (tensor,) = args
    if not tensor.is_meta:
        return NotImplemented
    if tensor.dtype == torch.bool:
        return getattr(tensor, "_holds", False)
    return 1.0 if tensor.is_floating_point() or tensor.is_complex() else 0


def _holds(func: Any, args: Any, kwargs: Any) -> Any:
    """``all``, and the product of two conditions, which is how torch makes ``isfinite``: a condition that holds."""
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
    """A mask among the indices is the positions it lets through, in each of its dimensions."""
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
    """An argument is a tensor that has values."""


class _Recipe(NamedTuple):
    """How to make an operation's results: shape, strides and type of each, ``None`` where it returns none."""

    parts: tuple[tuple[Any, tuple[int, ...], torch.dtype] | None, ...]
    single: bool

    def make(self) -> Any:
        made = [p and torch.empty_strided(p[0], p[1], dtype=p[2], device=IMAGINED) for p in self.parts]
        return made[0] if self.single else tuple(made)


Remembered = dict[Any, _Recipe]
"""Results of operations, by operation and arguments."""


@cache
def _makes_new_tensors(func: Any) -> bool:
    """Whether an operation changes nothing it was given, and returns tensors that share no memory with it."""
    schema = func._schema
    returns_tensors = bool(schema.returns) and all(isinstance(r.type, torch.TensorType) for r in schema.returns)
    return returns_tensors and not any(part.alias_info for part in (*schema.arguments, *schema.returns))


def _key(value: Any) -> Any:
    """What of an argument its operation's result can depend on.

    Raises:
        _RealError: its values.
        TypeError: (when hashed) it cannot be a dictionary's key.
    """
    kind = type(value)
    if kind is Tensor or kind is Parameter:
        if not value.is_meta:
            raise _RealError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_key, value))
    if isinstance(value, Tensor):  # of a class of its own, which may do as it likes
        raise _RealError
    return kind, value  # the kind too: 1, 1.0 and True are equal


def _recipe(result: Any) -> _Recipe | None:
    """Describe an operation's results; ``None`` where they are no plain tensors each with memory of its own."""
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
