"""Meters and clocks for what a piece of a run needs.

:class:`LiveBytes` counts the memory that tensors hold, and :func:`origin` tells it what they are for.
:mod:`~dcbench_tesla.profilers.memory` has the three meters of a run's peak, :mod:`~dcbench_tesla.profilers.clocks`
the clocks, and :mod:`~dcbench_tesla.cells.workload` one iteration of any method, on shapes alone, to measure.
:class:`PhaseClock` times a piece and, where code marks them by :class:`phase`, its passes.
"""

from dcbench_tesla.profilers.live_bytes import LiveBytes
from dcbench_tesla.profilers.origins import ORIGINS, Origin, origin
from dcbench_tesla.profilers.phases import Phase, PhaseClock, phase

__all__ = ["ORIGINS", "LiveBytes", "Origin", "Phase", "PhaseClock", "origin", "phase"]
