"""dcbench: a benchmark harness for dataset condensation.

:func:`run` runs one cell (a method on a data set), and :func:`load_dataset` loads a data set. A
:class:`~dcbench_tesla.distilled.DistilledSet` is what a method makes. Methods derive from
:class:`~dcbench_tesla.interface.Condenser`, evaluators from :class:`~dcbench_tesla.interface.Evaluator`.

>>> import dcbench_tesla as dcbench                                                         # doctest: +SKIP
>>> result = dcbench.run("tesla", dataset="digits", ipc=1, preset="smoke")                  # doctest: +SKIP
>>> result.accuracy().mean, result.distilled.images.shape                                   # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcbench_tesla.api import run as run
    from dcbench_tesla.datasets import load_dataset as load_dataset
    from dcbench_tesla.interface import Condenser as Condenser
    from dcbench_tesla.interface import DistilledSet as DistilledSet
    from dcbench_tesla.interface import Evaluator as Evaluator

    __version__: str

_PUBLIC = {
    "Condenser": "dcbench_tesla.interface",
    "DistilledSet": "dcbench_tesla.interface",
    "Evaluator": "dcbench_tesla.interface",
    "load_dataset": "dcbench_tesla.datasets",
    "run": "dcbench_tesla.api",
}
__all__ = ["Condenser", "DistilledSet", "Evaluator", "load_dataset", "run"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: listing plugins and printing help need no torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dcbench-tesla")
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
