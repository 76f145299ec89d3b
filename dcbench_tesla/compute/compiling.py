"""What is compiled with ``torch.compile``: functions of tensors that a run repeats, one graph for every shape.

:class:`CompiledFunctions` is what the methods' matching steps and :class:`TrainingStep` share. What was compiled is
kept on disk between runs, in the folder ``compiled`` of dcbench's cache, or where ``TORCHINDUCTOR_CACHE_DIR`` says.
"""

import copy
import os
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from platformdirs import user_cache_path
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dcbench_tesla.compute.networks import ConvNet, FlatNetwork, cross_entropy
from dcbench_tesla.errors import is_out_of_memory

CUDA_WARM_UP = 3
"""Calls until a CUDA graph is replayed: it is compiled at the first, and recorded at the second."""

Function = Callable[..., tuple[Tensor, ...]]


class CompiledFunctions:
    """Runs functions compiled for the shapes of their first call; other shapes are compiled when they come.

    Where the compiler fails (none is installed, an operation it does not know) one warning says so, and from then on
    nothing is run compiled (``given_up``). ``what``: their name in that warning.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.compiled: dict[object, Function] = {}
        self._calls: Counter[object] = Counter()
        self.given_up = False

    def run(
        self, name: object, function: Function, *arguments: Tensor, backward: bool = False
    ) -> tuple[Tensor, ...] | None:
        """Run ``function``, which ``name`` tells from others, compiled; ``None`` where it cannot be.

        ``backward``: of the scalar that is its one result, return the gradient in the first argument, then itself.
        PyTorch compiles that as two graphs, which beats a single one of both (``torch.func.grad_and_value``).
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
        except Exception as error:  # whatever a compiler may raise, and CUDA graphs, which are recorded at a later call
            worked = self._calls[key] >= (CUDA_WARM_UP if graphs else 1)
            if worked or is_out_of_memory(error) or (error.__cause__ and is_out_of_memory(error.__cause__)):
                raise
            self.given_up = True
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            warnings.warn(f"{self.what} could not be compiled and runs eagerly: {reason}", stacklevel=2)
            return None
        # the next call writes where a CUDA graph left its results
        return tuple(t.clone() for t in found) if graphs else found

    def _first(self, key: object, function: Function, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Compile ``function`` and run it; on a GPU as CUDA graphs, which launch all kernels of a step at once."""
        _keep_between_runs()
        mode = "reduce-overhead" if arguments[0].is_cuda else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what PyTorch says of its own modules
            compiled = torch.compile(_with_own_code(function), fullgraph=True, dynamic=False, mode=mode)
            found: tuple[Tensor, ...] = compiled(*arguments)
        self.compiled[key] = compiled
        return found


def _with_own_code(function: Function) -> Function:
    """Return ``function`` under a code object of its own: dynamo counts compilations by code, and gives up at eight."""

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        return function(*given)

    run.__code__ = run.__code__.replace()
    return run


def _keep_between_runs() -> None:
    """Name a folder that outlives the machine's next start; PyTorch's own is a temporary one."""
    folder = user_cache_path("dcbench") / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


# ---- training --------------------------------------------------------------------------------------------------------

# Plain variables of the module, as PyTorch's own switches are: see Execution.apply.
_training_is_compiled = False
_of_networks: dict[str, CompiledFunctions] = {}


def compile_training(on: bool) -> None:
    """Say whether steps of training that are made from now on are compiled."""
    global _training_is_compiled
    _training_is_compiled = on


def training_is_compiled() -> bool:
    """Whether it is, and the compiler never failed."""
    return _training_is_compiled and not any(functions.given_up for functions in _of_networks.values())


class TrainingStep:
    """The mean cross-entropy of a network on a batch, and its gradient, left in the parameters' ``grad``.

    Compiled where :func:`compile_training` says so and the network is a
    :class:`~dcbench_tesla.compute.networks.ConvNet`, which has parameters and nothing else that training would
    change; networks of one shape share what is compiled. Under a meter of live tensors it is eager: meters follow the
    eager program.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._parameters = list(network.parameters())
        self._functions: CompiledFunctions | None = None
        if _training_is_compiled and isinstance(network, ConvNet):
            self._functions = _of_networks.setdefault(repr(network), CompiledFunctions("the step of training"))
            flat = FlatNetwork(lambda: copy.deepcopy(network).to("meta"))
            self._loss: Function = lambda theta, images, labels: (flat.loss(theta, images, labels),)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, detached."""
        if self._functions is not None and not is_in_torch_dispatch_mode():
            theta = torch.cat([p.detach().reshape(-1) for p in self._parameters]).requires_grad_()
            found = self._functions.run("training", self._loss, theta, images, labels, backward=True)
            if found is not None:
                return self._take(*found)
        for p in self._parameters:
            p.grad = None
        loss = cross_entropy(self._network(images), labels)
        loss.backward()
        return loss.detach()

    def _take(self, gradient: Tensor, loss: Tensor) -> Tensor:
        parts = gradient.split([p.numel() for p in self._parameters])
        for p, part in zip(self._parameters, parts, strict=True):
            p.grad = part.view_as(p)
        return loss
