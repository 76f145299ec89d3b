"""The scripts of `results/` as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

RESULTS = Path(__file__).parents[1] / "results"


def script(folder: str, name: str) -> ModuleType:
    """Return a script of a folder of `results` as a module, under its own name, by which the others import it."""
    spec = importlib.util.spec_from_file_location(name, RESULTS / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
