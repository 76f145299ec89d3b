"""The gradient of an inner loop: exact in the memory of one step's graph, for any objective and inner optimiser.

:func:`inner_gradient` takes the batches of all steps at once, :func:`stream_inner_gradient` asks for them step by step;
:func:`matching_gradient` and :func:`stream_matching_gradient` are the same with trajectory matching's distance.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batches import micro_batch_error as micro_batch_error
    from .engine import inner_gradient as inner_gradient
    from .engine import stream_inner_gradient as stream_inner_gradient
    from .matching import matching_gradient as matching_gradient
    from .matching import stream_matching_gradient as stream_matching_gradient
    from .optimisers import SGD as SGD
    from .optimisers import Adam as Adam

_WHERE = {
    "inner_gradient": "engine",
    "stream_inner_gradient": "engine",
    "matching_gradient": "matching",
    "stream_matching_gradient": "matching",
    "micro_batch_error": "batches",
    "SGD": "optimisers",
    "Adam": "optimisers",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    """Import the engine when it is asked for: methods are listed without PyTorch."""
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
