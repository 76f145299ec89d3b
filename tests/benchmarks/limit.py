"""The machine's own limit: operations counted over the code as run, and the best rate of the network's convolutions."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_REPETITIONS = 3
_convolution_backward = torch.ops.aten.convolution_backward.default


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products in the block, ``count``.

    Everything else (norms, pooling, updates) moves memory and does next to nothing; it counts as nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if (formula := flop_registry.get(function.overloadpacket)) is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=found)
        return found


def best_rate(network: nn.Module, images: Tensor, clock: Callable[[], float] = time.process_time) -> float:
    """Return the operations a second of the fastest convolution of ``network`` on ``images``, forward or backward."""
    pieces: list[Callable[[], object]] = []

    def note(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pieces.extend(_convolutions(layer, inputs[0].detach(), torch.randn_like(output)))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return max(_rate(piece, clock) for piece in pieces)


def _convolutions(layer: nn.Conv2d, x: Tensor, gradient: Tensor) -> list[Callable[[], object]]:
    """A layer's forward pass, and the backward pass in its input and in its weight."""
    weight, stride, padding, dilation = layer.weight.detach(), layer.stride, layer.padding, layer.dilation
    assert not isinstance(padding, str)

    def forward() -> Tensor:
        return torch.conv2d(x, weight, None, stride, padding, dilation)

    def backward(*, in_input: bool) -> Callable[[], object]:
        wanted = [in_input, not in_input, False]
        how = (None, stride, padding, dilation, False, [0, 0], layer.groups, wanted)
        return lambda: _convolution_backward(gradient, x, weight, *how)

    return [forward, backward(in_input=True), backward(in_input=False)]


def _rate(piece: Callable[[], object], clock: Callable[[], float]) -> float:
    counted = Operations()
    with counted:
        piece()
    times_s: list[float] = []
    for _ in range(_REPETITIONS):
        start = clock()
        piece()
        times_s.append(clock() - start)
    return float(counted.count / statistics.median(times_s))
