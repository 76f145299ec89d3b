"""dcbench: a benchmark harness for dataset condensation.

A *cell* is a method on a data set, with a number of images per class (IPC) and a seed.

- ``run`` runs one cell, ``sweep`` many; a result has ``accuracy()``, ``distilled``, ``to_frame()`` and ``show()``.
- ``evaluate`` trains any network on a distilled set, and tests it.
- ``load_dataset`` loads a data set: by name, from a file or a folder, from arrays or data sets of PyTorch.
- ``DistilledSet`` is what a method makes: ``DistilledSet.load(path)``, ``as_torch_dataset()``, ``show()``.
- Methods derive from ``Condenser``, evaluators from ``Evaluator``.
- What a user can get wrong raises ``DcbenchError`` or ``UsageError``, whose message says what to do.

>>> import dcbench_tesla as dcbench                                                         # doctest: +SKIP
>>> result = dcbench.run("tesla", dataset="digits", ipc=1, preset="smoke")                  # doctest: +SKIP
>>> result.accuracy().mean, result.distilled.images.shape                                   # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcbench_tesla.api import evaluate as evaluate
    from dcbench_tesla.api import run as run
    from dcbench_tesla.api import sweep as sweep
    from dcbench_tesla.datasets import load_dataset as load_dataset
    from dcbench_tesla.errors import DcbenchError as DcbenchError
    from dcbench_tesla.errors import UsageError as UsageError
    from dcbench_tesla.interface import Condenser as Condenser
    from dcbench_tesla.interface import DistilledSet as DistilledSet
    from dcbench_tesla.interface import Evaluator as Evaluator

    __version__: str

_PUBLIC = {
    "Condenser": "dcbench_tesla.interface",
    "DcbenchError": "dcbench_tesla.errors",
    "DistilledSet": "dcbench_tesla.interface",
    "Evaluator": "dcbench_tesla.interface",
    "UsageError": "dcbench_tesla.errors",
    "evaluate": "dcbench_tesla.api",
    "load_dataset": "dcbench_tesla.datasets",
    "run": "dcbench_tesla.api",
    "sweep": "dcbench_tesla.api",
}
__all__ = [  # noqa: RUF022  (what one begins with comes first)
    "run",
    "sweep",
    "evaluate",
    "load_dataset",
    "DistilledSet",
    "Condenser",
    "Evaluator",
    "DcbenchError",
    "UsageError",
]


def __dir__() -> list[str]:
    """List the public names, which are imported when they are asked for."""
    return sorted([*__all__, "__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"])


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: listing plugins and printing help need no torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dcbench-tesla")
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
