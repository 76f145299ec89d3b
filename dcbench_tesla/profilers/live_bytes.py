"""The memory that tensors hold: :class:`LiveBytes`.

A tensor is a view of a *storage*; storages are what is allocated and released, so the meter follows those.
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
    """Count the bytes of live tensors a device type, and their peak, while the context is entered.

    Every storage that an operation makes is followed until it is released, whoever holds it: a Python name, a view,
    autograd. It counts once, however many tensors use it. Tensors from before the context count only where they are
    handed over in ``count``. ``round_to`` rounds each storage up to a multiple (CUDA's allocator: 512 bytes).

    It works for tensors with memory, for ``meta`` tensors (no memory, but a size), and for fake ones, which count
    under the device they pretend to be on; enter the meter inside the ``FakeTensorMode``.

    What it describes is the tensors of the eager program. Not seen: what a kernel takes and returns within one call
    (workspaces), tensors without one storage (sparse ones), the allocator's fragmentation. A size changed by
    ``untyped_storage().resize_``, which is no operation, is noticed by the next operation on that storage and by
    :meth:`live_bytes`. Under any dispatch mode autograd adds gradients up in a new tensor where it would else reuse
    one, so that the peak of a plain backward pass can be one such gradient too high.

    :meth:`breakdown` says what the peak was made of, where code labels what it allocates with
    :func:`~dcbench_tesla.profilers.origins.origin`.

    Example:
        >>> with LiveBytes() as meter:
        ...     x = torch.zeros(100)  # 400 bytes
        ...     y = (x + 1).exp()  # 400, and for a moment 400 more
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
        """Return what the counted tensors of this device type hold now; releases are seen after the context too."""
        self._look_again()
        return self._counts[_type(device)].live

    def peak_bytes(self, device: Device) -> int:
        """Return the most that the counted tensors of this device type have held at once."""
        return self._counts[_type(device)].peak

    def breakdown(self, device: Device) -> dict[str, int]:
        """Return the bytes by origin at the peak, those that had any; they add up to :meth:`peak_bytes`."""
        at_peak = self._counts[_type(device)].at_peak
        return {name: at_peak[name] for name in ORIGINS if at_peak.get(name)}

    def reset_peak(self) -> None:
        """Forget the peaks: from now on they are those of what lives now and of what comes."""
        self._look_again()
        for count in self._counts.values():
            count.reset_peak()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the dispatch below unwrapped: torch's wrapper would import its compiler first, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._call(func, args, kwargs)
        # A storage that was given was there before: views and in-place results are not new, only perhaps of a new
        # size. Except for lift_fresh, the first operation to see what torch.tensor(...) has made outside of any.
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
        """Run the operation."""
        return func(*args, **kwargs)

    def _look_again(self) -> None:
        """Take note of sizes that were changed by no operation."""
        for followed in list(self._followed.values()):
            if (storage := followed.reference()) is not None:
                self._follow(storage, followed.device)

    def _follow(self, storage: UntypedStorage, device: str, *, only_known: bool = False) -> None:
        """Start to follow ``storage``, or take note of its size if it is followed already."""
        address = storage._cdata
        known = self._followed.get(address)
        if known is None and only_known:
            return
        size = -(-storage.nbytes() // self._round_to) * self._round_to
        if known is None:
            # While C++ (another tensor, autograd) still uses the storage, torch keeps its Python object alive: one
            # weak reference speaks for all users, and its callback comes before the address can be used anew.
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
    """A live storage: what tells when it is released, its tensors' device type, its label, the bytes counted."""

    reference: "weakref.ref[UntypedStorage]"
    device: str
    origin: Origin
    size: int


class _Count:
    """The live bytes of one device type, by origin, and what they were when they were most."""

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
    """Yield the tensors in what an operation takes or returns: a third of the time of torch's general tree walk."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _storage(tensor: Tensor) -> UntypedStorage | None:
    """Return the storage of a tensor, ``None`` for one that has none of its own (sparse)."""
    return tensor.untyped_storage() if tensor.layout == torch.strided else None


def _type(device: Device) -> str:
    return torch.device(device).type
