"""Which part of an iteration time goes to: marks that code puts around its passes, and a clock that sums them up.

Where no clock runs, a mark costs a microsecond.
"""

from collections import defaultdict
from itertools import pairwise
from typing import Any, Literal, Self

import torch

from dcbench_tesla.profilers.clocks import clock

Phase = Literal["pass 1", "pass 2"]
"""``pass 1``: the matching steps, until it is known where the student arrives. ``pass 2``: from there to the gradients,
through kept graphs or through steps that are built again."""

# A plain variable of the module, as for origins: one program at a time is timed.
_running: "PhaseClock | None" = None


class PhaseClock:
    """Sum up the seconds of the block by :class:`phase`, in the time of ``device``.

    ``total_s``: seconds of the whole block. ``phases_s``: by phase, those that were entered; time in none of them is in
    ``total_s`` only. Both are there when the block has been left. On a GPU nothing waits inside of the block, so that
    the clock changes no overlap of program and device. Of two nested clocks the inner one alone hears the phases.

    Example:
        >>> import torch
        >>> from dcbench_tesla.profilers import PhaseClock, phase
        >>> with PhaseClock(torch.device("cpu")) as clock:
        ...     with phase("pass 1"):
        ...         x = torch.ones(10, 10) @ torch.ones(10, 10)
        >>> list(clock.phases_s), 0 < clock.phases_s["pass 1"] <= clock.total_s
        (['pass 1'], True)
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = clock(device)
        self._marks: list[tuple[Phase | None, Any]] = []
        self.total_s = 0.0
        self.phases_s: dict[Phase, float] = {}

    def __enter__(self) -> Self:
        global _running
        self._outer, _running = _running, self
        self._clock.wait()  # for what was asked of the device before
        self._marks = [(None, self._clock.mark())]
        return self

    def __exit__(self, *exception: object) -> None:
        global _running
        _running = self._outer
        self.switch(None)
        self._clock.wait()
        sums: defaultdict[Phase | None, float] = defaultdict(float)
        for (name, start), (_, end) in pairwise(self._marks):
            sums[name] += self._clock.seconds(start, end)
        self._marks.clear()
        self.total_s = sum(sums.values())
        self.phases_s = {name: seconds for name, seconds in sums.items() if name is not None}

    def switch(self, name: Phase | None) -> Phase | None:
        """Count what comes as ``name``; return the phase that was in force."""
        before, _ = self._marks[-1]
        self._marks.append((name, self._clock.mark()))
        return before


class phase:
    """Name the phase that the block is, for a :class:`PhaseClock` if one runs.

    A phase that is entered several times adds up; where blocks are nested, time counts for the innermost only.
    """

    __slots__ = ("_before", "_clock", "_name")

    def __init__(self, name: Phase) -> None:
        self._name: Phase = name

    def __enter__(self) -> None:
        self._clock = _running
        if self._clock is not None:
            self._before = self._clock.switch(self._name)

    def __exit__(self, *exception: object) -> None:
        if self._clock is not None:
            self._clock.switch(self._before)
