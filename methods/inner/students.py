"""Pass 1 of the engine: the students of one iteration, kept for pass 2 and handed out backwards."""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dcbench_tesla.profilers import origin
from dcbench_tesla.profilers.free import free_bytes

from .batches import Batches
from .optimisers import InnerOptimiser, Student
from .step import Built

Weights = Literal["auto", "device", "host", "restep"]

_AUTO_SHARE_OF_FREE_MEMORY = 0.1


class Loop(NamedTuple):
    """What an inner loop consists of: its batches, its optimiser, and the rate ``b_k`` of every step, ``(T,)``."""

    batches: Batches
    optimiser: InnerOptimiser
    rates: Tensor

    def at(self, start: Tensor, k: int) -> Student:
        """Return the student before step k, which began at the weights ``start``; nothing is kept of its way."""
        with origin("trajectory"):
            student = self.optimiser.begin(start)
        for before in range(k):
            student = self.advance(before, student)
        return student

    def advance(self, k: int, student: Student) -> Student:
        """Return the student after step k, keeping no graph."""
        return self.moved(k, student, self.batches.gradient(k, student[0]))

    def moved(self, k: int, student: Student, gradient: Tensor) -> Student:
        """Return the student after a step along ``gradient``."""
        with origin("trajectory"):
            return self.optimiser.step(k, student, gradient, self.rates[k])

    def keep(self, student: Student, span: range) -> tuple[list[tuple[Student, list[Built]]], Student]:
        """Take the steps of ``span`` from ``student``; return each with its graph, and the student at the end."""
        kept: list[tuple[Student, list[Built]]] = []
        for k in span:
            built = self.batches.build(k, student[0])
            kept.append((student, built))
            student = self.moved(k, student, self.batches.gradient_of(k, built))
        return kept, student


class Students:
    """Takes the steps of ``span``, and hands the students before them out backwards.

    The last ``keep`` steps stay built. The others are to be built again, at the students that ``weights`` keeps or
    re-steps; see :mod:`~dcbench_tesla.methods.inner.engine`.

    Attributes:
        end: the student after the last step.
    """

    def __init__(self, loop: Loop, student: Student, span: range, weights: Weights, keep: int) -> None:
        self._loop = loop
        first = max(len(span) - keep, 0)  # of the steps that stay built
        self._again, built = span[:first], span[first:]
        place = resolved(weights, student, first)
        self._on_host = place == "host"
        self._stride = math.ceil(math.sqrt(first)) if place == "restep" and first else 1
        self._kept: dict[int, Student] = {}
        self._device = student[0].device
        for number, k in enumerate(self._again):
            if number % self._stride == 0:
                with origin("trajectory"):
                    self._kept[k] = tuple(map(_to_host, student)) if self._on_host else student
            student = loop.advance(k, student)
        self._built, self.end = loop.keep(student, built)
        self._last_built = built

    def backwards(self) -> Iterator[tuple[int, Student, list[Built] | None]]:
        """Yield every step k from the last to the first, the student before it, and its graphs if they were kept.

        All are let go of as they are handed out.
        """
        for k in reversed(self._last_built):
            yield k, *self._built.pop()
        for begin in reversed(range(0, len(self._again), self._stride)):
            stretch = self._again[begin : begin + self._stride]
            segment = {stretch[0]: self._kept.pop(stretch[0])}
            for k in stretch[:-1]:
                segment[k + 1] = self._loop.advance(k, segment[k])
            for k in reversed(stretch):
                with origin("trajectory"):
                    student = tuple(vector.to(self._device, non_blocking=True) for vector in segment.pop(k))
                yield k, student, None
                del student


def resolved(weights: Weights, student: Student, count: int) -> Weights:
    """Return where ``count`` students are kept: for ``auto`` on the device if they take a tenth of its free memory."""
    if weights != "auto":
        return weights
    device = student[0].device
    if device.type != "cuda":
        return "device"
    needed = count * sum(vector.nbytes for vector in student)
    return "device" if needed <= _AUTO_SHARE_OF_FREE_MEMORY * free_bytes(device) else "host"


def _to_host(vector: Tensor) -> Tensor:
    if vector.is_meta:  # nothing to copy: the empty vector stands for it where memory is predicted
        return torch.empty(vector.shape, dtype=vector.dtype, device="cpu")
    host = torch.empty(vector.shape, dtype=vector.dtype, device="cpu", pin_memory=vector.device.type == "cuda")
    return host.copy_(vector)
