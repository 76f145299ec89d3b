"""The harness from Python: run cells, sweep over settings, evaluate distilled sets by any network."""

from dcbench_tesla.api.evaluations import evaluate
from dcbench_tesla.api.runs import run, sweep

__all__ = ["evaluate", "run", "sweep"]
