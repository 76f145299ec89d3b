"""Distilled sets and experts to and from the files other people have: ``dcbench import`` and ``dcbench export``."""

from dcbench_tesla.exchange.buffers import ImportedExperts, import_experts
from dcbench_tesla.exchange.folders import FORMATS, export_set, find_set
from dcbench_tesla.exchange.sets import Given, import_set

__all__ = ["FORMATS", "Given", "ImportedExperts", "export_set", "find_set", "import_experts", "import_set"]
