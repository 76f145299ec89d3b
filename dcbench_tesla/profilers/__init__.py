"""Meters of memory and clocks, for a run or a part of it.

:class:`LiveBytes` counts the memory of live tensors, and :func:`origin` labels what they are for.
:mod:`~dcbench_tesla.profilers.memory` offers three meters of a run's peak memory, and
:mod:`~dcbench_tesla.profilers.clocks` the clocks. :class:`PhaseClock` times a block and its passes, where the code
marks them by :class:`phase`. Workloads to measure come from :mod:`~dcbench_tesla.cells.workload`.
"""

from dcbench_tesla.profilers.live_bytes import LiveBytes
from dcbench_tesla.profilers.origins import ORIGINS, Origin, origin
from dcbench_tesla.profilers.phases import Phase, PhaseClock, phase

__all__ = ["ORIGINS", "LiveBytes", "Origin", "Phase", "PhaseClock", "origin", "phase"]
