"""The memory of live tensors: :class:`LiveBytes`.

A tensor is a view of a *storage*. Memory is allocated and released by storage, so the meter follows storages.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from dcbench_tesla.profilers import origins
from dcbench_tesla.profilers.origins import ORIGINS, Origin

Device = str | torch.device

_LIFT_FRESH = torch.ops.aten.lift_fresh.default


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors by device type, and their peak, while the context is entered.

    Every storage that an operation creates is followed until it is released, whether a Python name, a view or autograd
    holds it. It counts once, however many tensors use it. Tensors that are older than the context count only if they
    are given in ``count``.

    The meter works for tensors with memory, for ``meta`` tensors (which have a size but no memory), and for fake
    tensors, which count under the device they stand for; enter the meter inside the ``FakeTensorMode``.

    The counts are those of the eager program. The meter does not see memory that a kernel takes and returns within one
    call (workspaces), tensors without a single storage (sparse ones), and the allocator's fragmentation. A size changed
    by ``untyped_storage().resize_``, which is not an operation, is noticed by the next operation on that storage and by
    :meth:`live_bytes`. Under any dispatch mode autograd adds up gradients in a new tensor where it would otherwise
    reuse one, so the peak of a plain backward pass can be one such gradient too high.

    :meth:`breakdown` splits the peak by the labels that code sets by :func:`~dcbench_tesla.profilers.origins.origin`.

    Args:
        count: older tensors that count as well.
        round_to: round each storage up to a multiple of so many bytes (CUDA's allocator: 512).

    Raises:
        ValueError: ``round_to`` is less than 1.

    Example:
        >>> with LiveBytes() as meter:
        ...     x = torch.zeros(100)  # 400 bytes
        ...     y = (x + 1).exp()  # 400, and 400 more until x + 1 is released
        ...     z = y[:50]  # a view: nothing
        >>> meter.live_bytes("cpu"), meter.peak_bytes("cpu")
        (800, 1200)
    """

    def __init__(self, count: Iterable[Tensor] = (), *, round_to: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if round_to < 1:
            raise ValueError(f"round_to must be at least 1, not {round_to}.")
        self._round_to = round_to
        self._followed: dict[int, _Followed] = {}  # by the address of the C++ storage, until it is released
        self._counts: defaultdict[str, _Count] = defaultdict(_Count)  # by device type
        for tensor in count:
            if (storage := _storage(tensor)) is not None:
                self._follow(storage, tensor.device.type)

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def live_bytes(self, device: Device) -> int:
        """Return the bytes that the counted tensors of this device type hold now, also after the context is left."""
        self._look_again()
        return self._counts[_type(device)].live

    def peak_bytes(self, device: Device) -> int:
        """Return the largest number of bytes that the counted tensors of this device type have held at once."""
        return self._counts[_type(device)].peak

    def breakdown(self, device: Device) -> dict[str, int]:
        """Return the bytes at the peak by origin, without zeros; they add up to :meth:`peak_bytes`."""
        at_peak = self._counts[_type(device)].at_peak
        return {name: at_peak[name] for name in ORIGINS if at_peak.get(name)}

    def reset_peak(self) -> None:
        """Start the peaks anew from the tensors that live now."""
        self._look_again()
        for count in self._counts.values():
            count.reset_peak()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from wrapping the dispatch below: the wrapper would import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._call(func, args, kwargs)
        # The storages of arguments existed before: views and in-place results are not new, but may have a new size.
        # The exception is lift_fresh: it is the first operation to see the result of torch.tensor(...).
        given = set()
        if func is not _LIFT_FRESH:
            for tensor in _tensors((args, kwargs)):
                if (storage := _storage(tensor)) is not None:
                    given.add(storage._cdata)
                    self._follow(storage, tensor.device.type, only_known=True)
        for tensor in _tensors((result,)):
            if (storage := _storage(tensor)) is not None:
                self._follow(storage, tensor.device.type, only_known=storage._cdata in given)
        return result

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operation; subclasses may answer in its place."""
        return func(*args, **kwargs)

    def _look_again(self) -> None:
        """Notice sizes that changed without an operation."""
        for followed in list(self._followed.values()):
            if (storage := followed.reference()) is not None:
                self._follow(storage, followed.device)

    def _follow(self, storage: UntypedStorage, device: str, *, only_known: bool = False) -> None:
        """Start to follow ``storage``, or update its size if it is followed already."""
        address = storage._cdata
        known = self._followed.get(address)
        if known is None and only_known:
            return
        size = -(-storage.nbytes() // self._round_to) * self._round_to
        if known is None:
            # While C++ (another tensor, autograd) uses the storage, torch keeps its Python object alive. One weak
            # reference therefore covers all users, and its callback runs before the address can be reused.
            reference = weakref.ref(storage, partial(self._forget, address))
            label = origins.current()
            self._followed[address] = _Followed(reference, device, label, size)
            self._counts[device].add(label, size)
        elif known.size != size:
            self._followed[address] = known._replace(size=size)
            self._counts[known.device].add(known.origin, size - known.size)

    def _forget(self, address: int, reference: "weakref.ref[UntypedStorage]") -> None:
        released = self._followed.pop(address)
        self._counts[released.device].add(released.origin, -released.size)


class _Followed(NamedTuple):
    """A live storage: a reference that reports its release, the device type, the label, and the bytes counted."""

    reference: "weakref.ref[UntypedStorage]"
    device: str
    origin: Origin
    size: int


class _Count:
    """The live bytes of one device type by origin, now and at the peak."""

    __slots__ = ("_by_origin", "at_peak", "live", "peak")

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._by_origin: dict[Origin, int] = {}
        self.at_peak: dict[Origin, int] = {}

    def add(self, origin: Origin, size: int) -> None:
        by_origin = self._by_origin
        by_origin[origin] = by_origin.get(origin, 0) + size
        self.live += size
        if self.live > self.peak:
            self.reset_peak()

    def reset_peak(self) -> None:
        self.peak, self.at_peak = self.live, self._by_origin.copy()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments or results, in a third of the time of torch's tree walk."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _storage(tensor: Tensor) -> UntypedStorage | None:
    """Return the storage of a tensor, or ``None`` for a sparse tensor, which has no single storage."""
    return tensor.untyped_storage() if tensor.layout == torch.strided else None


def _type(device: Device) -> str:
    return torch.device(device).type
