"""Timing the passes of an iteration: code marks them, and a clock sums up their seconds.

A mark costs a microsecond if no clock is running.
"""

from collections import defaultdict
from itertools import pairwise
from typing import Any, Literal, Self

import torch

from dcbench_tesla.profilers.clocks import clock

Phase = Literal["pass 1", "pass 2"]
"""``pass 1``: the matching steps up to the student's final weights. ``pass 2``: from there back to the gradients,
through kept graphs or through steps that are computed again."""

# A plain variable of the module, as for origins: only one program is timed at a time.
_running: "PhaseClock | None" = None


class PhaseClock:
    """Sums up the seconds of the block by :class:`phase`, in the time of ``device``.

    When the block has been left, ``total_s`` holds the seconds of the whole block, and ``phases_s`` those of each phase
    that was entered; time outside of phases is part of ``total_s`` only. On a GPU the clock never waits inside the
    block, so it does not change how program and device overlap. In nested clocks only the inner one counts phases.

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
        self._clock.wait()  # for earlier work of the device
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
        """Count the time from now on as ``name``; return the phase that was in effect."""
        before, _ = self._marks[-1]
        self._marks.append((name, self._clock.mark()))
        return before


class phase:
    """Mark the block as a phase for the running :class:`PhaseClock`, if there is one.

    The seconds of a phase that is entered several times add up; in nested blocks time counts for the innermost phase.
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
