"""The exchange of results: ``dcbench import`` and ``export`` for other people's files, ``dcbench merge`` for rows."""

from dcbench_tesla.exchange.buffers import ImportedExperts, import_experts
from dcbench_tesla.exchange.folders import FORMATS, export_set, find_set
from dcbench_tesla.exchange.sets import Given, import_set

__all__ = ["FORMATS", "Given", "ImportedExperts", "export_set", "find_set", "import_experts", "import_set"]
