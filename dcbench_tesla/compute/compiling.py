"""Compilation with ``torch.compile``: functions of tensors that a run calls many times, one graph per input shape.

The matching steps of the methods and :class:`TrainingStep` both use :class:`CompiledFunctions`. Compiled code is kept
on disk between runs, in the folder ``compiled`` of the cache of dcbench, or where ``TORCHINDUCTOR_CACHE_DIR`` points.
"""

import copy
import os
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dcbench_tesla.compute.folders import compiled_folder
from dcbench_tesla.compute.networks import FlatNetwork, Network, cross_entropy, has_batch_norm
from dcbench_tesla.errors import UsageError, is_out_of_memory

CUDA_WARM_UP = 3
"""Number of calls until a CUDA graph is replayed: the first call compiles it, the second one records it."""

Function = Callable[..., tuple[Tensor, ...]]
Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of logits ``(N, K)`` and labels over images."""


class CompiledFunctions:
    """Runs functions compiled; each new combination of input shapes is compiled at its first call.

    If the compiler fails (none is installed, or it does not support an operation), one warning says so. From then on
    ``given_up`` is true and nothing is compiled any more.

    Args:
        what: name of the functions in that warning.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.compiled: dict[object, Function] = {}
        self._calls: Counter[object] = Counter()
        self.given_up = False

    def run(
        self, name: object, function: Function, *arguments: Tensor, backward: bool = False
    ) -> tuple[Tensor, ...] | None:
        """Run ``function`` compiled; return ``None`` where it cannot be compiled.

        Args:
            name: identifies the function among those of this object.
            function: the function to run.
            arguments: its inputs.
            backward: the function returns one scalar; return its gradient with respect to the first argument, followed
                by the scalar itself. PyTorch compiles this as two graphs, which is faster than a single graph of both
                (``torch.func.grad_and_value``).
        """
        if self.given_up:
            return None
        key = (name, *((t.shape, t.dtype, t.device) for t in arguments))
        graphs = arguments[0].is_cuda
        try:
            if graphs:
                torch.compiler.cudagraph_mark_step_begin()
            found = self.compiled[key](*arguments) if key in self.compiled else self._first(key, function, *arguments)
            if backward:
                found = (*torch.autograd.grad(found, arguments[0]), found[0].detach())
            self._calls[key] += 1
        except Exception as error:  # a compiler may raise anything; CUDA graphs fail when recorded, at a later call
            worked = self._calls[key] >= (CUDA_WARM_UP if graphs else 1)
            if worked or is_out_of_memory(error) or (error.__cause__ and is_out_of_memory(error.__cause__)):
                raise
            self.given_up = True
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            warnings.warn(f"{self.what} could not be compiled and runs eagerly: {reason}", stacklevel=2)
            return None
        # the results of a CUDA graph lie in memory that the next call overwrites
        return tuple(t.clone() for t in found) if graphs else found

    def _first(self, key: object, function: Function, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Compile ``function`` and run it. On a GPU it becomes a CUDA graph, which launches all kernels at once."""
        _keep_between_runs()
        mode = "reduce-overhead" if arguments[0].is_cuda else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch warns of its own modules
            compiled = torch.compile(_with_own_code(function), fullgraph=True, dynamic=False, mode=mode)
            found: tuple[Tensor, ...] = compiled(*arguments)
        self.compiled[key] = compiled
        return found


class LossAndGradient:
    """A scalar loss that a method repeats, and its gradient in the first argument, compiled where that is asked for.

    It runs eagerly if the compiler fails, which one warning tells, and under a meter of live tensors.

    Args:
        loss: ``loss(first, *others)``, a scalar, differentiable in the first tensor.
        what: name of the loss in that warning.
        compile: whether to compile; :attr:`dcbench_tesla.interface.Problem.compile` says so for a run.

    Attributes:
        loss: the loss alone, which can be differentiated further.

    Example:
        >>> import torch
        >>> square = LossAndGradient(lambda x, scale: scale * x.square().sum(), "the square", compile=False)
        >>> square(torch.tensor([1.0, 2.0]), torch.tensor(3.0))
        (tensor(15.), tensor([ 6., 12.]))
    """

    def __init__(self, loss: Callable[..., Tensor], what: str, *, compile: bool) -> None:
        self.loss = loss
        self._functions = CompiledFunctions(what) if compile else None

    @property
    def compiled(self) -> bool:
        """Whether the loss is compiled; it is not if the compiler failed."""
        return self._functions is not None and not self._functions.given_up

    def __call__(self, first: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and its gradient in the shape of ``first``, both detached."""
        leaf = first.detach().requires_grad_()
        if self._functions is not None and not is_in_torch_dispatch_mode():
            with torch.enable_grad():
                found = self._functions.run("loss", lambda *given: (self.loss(*given),), leaf, *others, backward=True)
            if found is not None:
                return found[1], found[0]
        with torch.enable_grad():
            value = self.loss(leaf, *others)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient


class WithoutGradient:
    """A function of tensors that a method repeats, without a gradient, compiled where that is asked for.

    It runs eagerly if the compiler fails, which one warning tells, and under a meter of live tensors.

    Args:
        function: ``function(*tensors)``, a tuple of tensors.
        what: name of the function in that warning.
        compile: whether to compile; :attr:`dcbench_tesla.interface.Problem.compile` says so for a run.
    """

    def __init__(self, function: Function, what: str, *, compile: bool) -> None:
        self._function = function
        self._functions = CompiledFunctions(what) if compile else None

    @property
    def compiled(self) -> bool:
        """Whether the function is compiled; it is not if the compiler failed."""
        return self._functions is not None and not self._functions.given_up

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the function's values, without a graph."""
        with torch.no_grad():
            found = None
            if self._functions is not None and not is_in_torch_dispatch_mode():
                found = self._functions.run("value", self._function, *given)
            return self._function(*given) if found is None else found


def _with_own_code(function: Function) -> Function:
    """Return ``function`` under a new code object: dynamo counts compilations by code object and stops after eight."""

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        return function(*given)

    run.__code__ = run.__code__.replace()
    return run


def _keep_between_runs() -> None:
    """Let PyTorch keep compiled code in a permanent folder; its default is a temporary one."""
    folder = compiled_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


# ---- training --------------------------------------------------------------------------------------------------------

# Plain variables of the module, like PyTorch's own switches: Execution.apply sets the first one.
_training_is_compiled = False
_of_networks: dict[str, CompiledFunctions] = {}


def compile_training(on: bool) -> None:
    """Set whether training steps that are created from now on are compiled."""
    global _training_is_compiled
    _training_is_compiled = on


def training_is_compiled() -> bool:
    """Return whether training steps are compiled and the compiler has not failed so far."""
    return _training_is_compiled and not any(functions.given_up for functions in _of_networks.values())


def compiles_training(network: nn.Module) -> bool:
    """Return whether training steps of ``network`` can be compiled.

    It is a :class:`~dcbench_tesla.compute.networks.Network` without batch norm, whose running statistics are a state
    besides its parameters that training changes.
    """
    return isinstance(network, Network) and not has_batch_norm(network)


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return half the squared distance of logits and labels, both ``(N, K)``, mean over images."""
    return 0.5 * (logits - labels).square().sum(1).mean()


class TrainingStep:
    """Computes the mean loss of a network on a batch, and its gradient, which it leaves in ``p.grad``.

    The step is compiled if :func:`compile_training` is on and the network allows it (:func:`compiles_training`).
    Networks of one shape share the compiled code. Under a meter of live tensors the step runs eagerly, because meters
    follow the eager program.

    With ``micro_batch`` the network sees so many images at once, and memory does not grow with the rest of the batch.
    The loss is a mean over images, so that its gradient is the mean of those of the pieces, weighted by their sizes.

    Args:
        network: the network.
        loss: the mean loss of logits and labels.
        micro_batch: images in the network at once; 0: all.

    Raises:
        UsageError: there are micro-batches, and the network has batch norm, which couples the images of a batch.
    """

    def __init__(self, network: nn.Module, loss: Loss = cross_entropy, *, micro_batch: int = 0) -> None:
        if micro_batch and has_batch_norm(network):
            raise UsageError(
                f"micro_batch={micro_batch} cannot be used for a network with batch norm: its mean and variance are "
                "those of the whole batch. Leave it out."
            )
        self._network, self._mean_loss, self._micro_batch = network, loss, micro_batch
        self._parameters = list(network.parameters())
        self._functions: CompiledFunctions | None = None
        if _training_is_compiled and compiles_training(network):
            name = f"{loss.__name__} of {network!r}"
            self._functions = _of_networks.setdefault(name, CompiledFunctions("the step of training"))
            flat = FlatNetwork(lambda: copy.deepcopy(network).to("meta"))
            self._loss: Function = lambda theta, images, labels: (loss(flat(theta, images), labels),)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of ``images`` ``(N, C, H, W)`` with their labels, detached."""
        if not 0 < self._micro_batch < len(images):
            return self._whole(images, labels)
        mean, total = torch.zeros((), device=images.device), [torch.zeros_like(p) for p in self._parameters]
        for piece, of_piece in zip(images.split(self._micro_batch), labels.split(self._micro_batch), strict=True):
            share = len(piece) / len(images)
            mean += share * self._whole(piece, of_piece)
            for part, p in zip(total, self._parameters, strict=True):
                if p.grad is not None:
                    part.add_(p.grad, alpha=share)
        for part, p in zip(total, self._parameters, strict=True):
            p.grad = part
        return mean

    def _whole(self, images: Tensor, labels: Tensor) -> Tensor:
        if self._functions is not None and not is_in_torch_dispatch_mode():
            theta = torch.cat([p.detach().reshape(-1) for p in self._parameters]).requires_grad_()
            found = self._functions.run("training", self._loss, theta, images, labels, backward=True)
            if found is not None:
                return self._take(*found)
        for p in self._parameters:
            p.grad = None
        loss = self._mean_loss(self._network(images), labels)
        loss.backward()
        return loss.detach()

    def _take(self, gradient: Tensor, loss: Tensor) -> Tensor:
        parts = gradient.split([p.numel() for p in self._parameters])
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = part.view_as(p)
        return loss
