"""Meters for what a piece of a run needs. So far one: :class:`LiveBytes`, the memory that tensors hold.

A tensor is a view of a *storage*; storages are what is allocated and released, so the meter follows those.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Device = str | torch.device


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
        self._live: Counter[str] = Counter()
        self._peak: Counter[str] = Counter()
        for tensor in count:
            if (storage := _storage(tensor)) is not None:
                self._follow(storage, tensor.device.type)

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def live_bytes(self, device: Device) -> int:
        """Return what the counted tensors of this device type hold now; releases are seen after the context too."""
        for followed in list(self._followed.values()):
            if (storage := followed.reference()) is not None:
                self._follow(storage, followed.device)
        return self._live[_type(device)]

    def peak_bytes(self, device: Device) -> int:
        """Return the most that the counted tensors of this device type have held at once."""
        return self._peak[_type(device)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the dispatch below unwrapped: torch's wrapper would import its compiler first, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # A storage that was given was there before: views and in-place results are not new, only perhaps of a new
        # size. Except for lift_fresh, the first operation to see what torch.tensor(...) has made outside of any.
        lifted = func is torch.ops.aten.lift_fresh.default
        given = set()
        for leaf in tree_leaves((args, kwargs)):
            if not lifted and (storage := _storage(leaf)) is not None:
                given.add(storage._cdata)
                self._follow(storage, leaf.device.type, only_known=True)
        for leaf in tree_leaves(result):
            if (storage := _storage(leaf)) is not None:
                self._follow(storage, leaf.device.type, only_known=storage._cdata in given)
        return result

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
            self._followed[address] = _Followed(reference, device, size)
            self._change(device, size)
        elif known.size != size:
            self._followed[address] = known._replace(size=size)
            self._change(known.device, size - known.size)

    def _forget(self, address: int, reference: "weakref.ref[UntypedStorage]") -> None:
        released = self._followed.pop(address)
        self._change(released.device, -released.size)

    def _change(self, device: str, size: int) -> None:
        self._live[device] += size
        self._peak[device] = max(self._peak[device], self._live[device])


class _Followed(NamedTuple):
    """A live storage: the reference that tells when it is released, its tensors' device type, the bytes counted."""

    reference: "weakref.ref[UntypedStorage]"
    device: str
    size: int


def _storage(leaf: Any) -> UntypedStorage | None:
    """Return the storage of a tensor; ``None`` for one that has none of its own (sparse), and for anything else."""
    if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
        return None
    return leaf.untyped_storage()


def _type(device: Device) -> str:
    return torch.device(device).type
