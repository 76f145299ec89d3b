"""The loop around every method's iterations: progress, checkpoints, snapshots, metrics, and a check for NaN."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from dcbench_tesla.errors import CorruptFileError, DivergedError
from dcbench_tesla.interface import Condenser, IterationRecord
from dcbench_tesla.profilers import LiveBytes
from dcbench_tesla.records.live import METRICS, MetricLog
from dcbench_tesla.records.progress import bar, say
from dcbench_tesla.records.store import (
    load_tensors,
    parse_json,
    read_bytes,
    read_meta,
    save_tensors,
    write_text,
    writing,
)

CHECKPOINT = "checkpoint.safetensors"
_LARGEST_METRICS = 2**30  # bytes
_DELETE = "Delete it, or start over with --force."
_CHECKPOINT_EVERY_S = 30.0
_CHECKPOINT_SHARE = 50  # checkpoints take at most one fiftieth of the time


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Let the running iteration finish after Ctrl-C or SIGTERM, so that the loop can save; a second one stops at once.

    A signal that this process ignores stays ignored: a shell starts processes in the background so (``nohup ... &``).
    Yields a function that returns whether a stop was requested.
    """
    asked = False

    def note(number: int, _: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield lambda: False
        return
    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checked(path: Path, meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the facts of a checkpoint.

    Raises:
        CorruptFileError: one is missing or of another kind.
    """
    numbers = (int, float, type(None))
    kinds = {"iteration": (int,), "seconds": (int, float), "loss": numbers, "peak_bytes": (int, type(None))}
    present = {"peak_bytes": None, **meta}
    wrong = [name for name, kind in kinds.items() if name not in present or type(present[name]) not in kind]
    if wrong or meta["iteration"] < 0:
        raise CorruptFileError(
            f"{path} is damaged: {wrong[0] if wrong else 'iteration'} is missing or wrong. {_DELETE}"
        )
    return meta


def _metrics_before(path: Path, done: int) -> Iterator[str]:
    """Yield the lines of the first ``done`` iterations.

    Raises:
        CorruptFileError: a line before the last one is not what an iteration writes.
    """
    remedy = "Delete the file: the run continues, and its metrics begin anew."
    lines = read_bytes(path, limit=_LARGEST_METRICS, remedy=remedy).split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            iteration = parse_json(line)["iteration"] if line else done
            if iteration >= done:
                continue
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) or number > done:  # cut off by a kill
                continue
            raise CorruptFileError(f"{path} is damaged in line {number}. {remedy}") from error
        yield line.decode() + "\n"


class CondenseLoop:
    """Runs a condenser's iterations in a folder, from the last checkpoint there or from the first iteration.

    A checkpoint is written after an iteration if the last one is half a minute old (older where writing is slow), and
    on Ctrl-C; a killed process loses what came after it. All random numbers are derived from their iteration, so a
    resumed run gives the bytes of an uninterrupted one.

    After :meth:`run`, ``seconds`` is the time of all iterations, over all processes, and ``last_loss`` the last loss.
    ``peak_bytes`` is the largest number of bytes that the condenser's state and the tensors of one iteration held on
    the device at once (:class:`~dcbench_tesla.profilers.LiveBytes`). ``last_loss`` and ``peak_bytes`` are ``None`` for
    a method without iterations. ``peak_bytes`` is also ``None`` if the run is not ``metered``, because the meter cannot
    see into compiled code.

    Args:
        condenser: the condenser, set up for its problem.
        folder: where the checkpoint and ``metrics.jsonl`` go.
        label: name of the method, for progress and messages.
        key: key of the cell, which its checkpoints must have.
        snapshots: numbers of finished iterations after which ``keep_snapshot`` is called.
        keep_snapshot: called with the number of finished iterations.
        logs: receive the metrics of every iteration, in addition to ``metrics.jsonl``.
        metered: measure ``peak_bytes`` in the first iteration.
        kept: what stays if the run diverges, for the message.
        quiet: print nothing.
    """

    def __init__(
        self,
        condenser: Condenser,
        folder: Path,
        *,
        label: str,
        key: str,
        snapshots: Collection[int],
        keep_snapshot: Callable[[int], object],
        logs: Sequence[MetricLog] = (),
        metered: bool = True,
        kept: str = "everything up to the last checkpoint is kept",
        quiet: bool = False,
    ) -> None:
        self._condenser, self._label, self._key, self._quiet, self._kept = condenser, label, key, quiet, kept
        self._checkpoint, self._metrics = folder / CHECKPOINT, folder / METRICS
        self._snapshots, self._keep_snapshot, self._logs, self._metered = snapshots, keep_snapshot, logs, metered
        self._saved_at, self._saving_took = 0.0, 0.0
        self.seconds = 0.0
        self.last_loss: float | None = None
        self.peak_bytes: int | None = None

    @staticmethod
    def iterations_done(folder: Path) -> int:
        """Return the number of iterations that the checkpoint in ``folder`` covers; 0 without a checkpoint.

        Raises:
            CorruptFileError: the checkpoint is damaged.
        """
        path = folder / CHECKPOINT
        return int(_checked(path, read_meta(path))["iteration"]) if path.exists() else 0

    def run(self, device: torch.device) -> None:
        """Run the remaining iterations.

        Raises:
            KeyboardInterrupt: the user or the system asked to stop; the finished iterations are saved.
            DivergedError: the loss or the state of an iteration is NaN or infinite.
            CorruptFileError: the checkpoint is damaged or belongs to another cell.
        """
        start, total = self._resume(device), self._condenser.iterations
        if start == total:
            return
        with (
            _asked_to_stop() as asked_to_stop,
            bar(f"{self._label}: condense", total, done=start, quiet=self._quiet) as shown,
            writing(self._metrics),
            self._metrics.open("a", encoding="utf-8") as log,
        ):
            began, before = time.perf_counter(), self.seconds
            self._saved_at = began
            for iteration in range(start, total):
                record = self._iterate(iteration, device)
                self.seconds = before + time.perf_counter() - began
                self._note(log, iteration, record.loss, record.metrics)
                if iteration + 1 in self._snapshots:
                    self._keep_snapshot(iteration + 1)
                if iteration + 1 == total or self._is_due() or asked_to_stop():
                    self._save(iteration + 1, log)
                if asked_to_stop():
                    raise KeyboardInterrupt
                shown.advance(note=f"loss {record.loss:.4f}")

    def _iterate(self, iteration: int, device: torch.device) -> IterationRecord:
        """Run one iteration; the first one is metered, which takes time and changes no number."""
        if self.peak_bytes is not None or not self._metered:
            return self._condenser.iterate(iteration)
        with LiveBytes(self._condenser.state_dict().values()) as meter:
            record = self._condenser.iterate(iteration)
        self.peak_bytes = meter.peak_bytes(device)
        return record

    def _note(self, log: IO[str], iteration: int, loss: float, metrics: Mapping[str, float]) -> None:
        if not math.isfinite(loss):
            raise DivergedError(self._divergence(f"the loss of iteration {iteration} is {loss}"))
        self.last_loss = loss
        noted = {"loss": loss, **metrics, "seconds": round(self.seconds, 4)}
        log.write(json.dumps({"iteration": iteration, **noted}) + "\n")
        for other in self._logs:
            other.write(iteration, noted)

    def _divergence(self, how: str) -> str:
        remedy = f"Lower its learning rates (--set, see dcbench info {self._label})"
        return f"{self._label} diverged: {how}. {remedy}; {self._kept}."

    def _is_due(self) -> bool:
        since = time.perf_counter() - self._saved_at
        return since > max(_CHECKPOINT_EVERY_S, _CHECKPOINT_SHARE * self._saving_took)

    def _save(self, done: int, log: IO[str]) -> None:
        began = time.perf_counter()
        state = self._condenser.state_dict()
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            raise DivergedError(self._divergence(f"iteration {done - 1} produced NaN or infinity"))
        log.flush()
        os.fsync(log.fileno())  # metrics reach the disk before the checkpoint that covers their iterations
        for other in self._logs:
            other.flush()
        meta = {
            "iteration": done,
            "seconds": self.seconds,
            "loss": self.last_loss,
            "peak_bytes": self.peak_bytes,
            "key": self._key,
        }
        save_tensors(self._checkpoint, state, meta)
        self._saved_at = time.perf_counter()
        self._saving_took = self._saved_at - began

    def _load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the condenser the state of a checkpoint, which must be one of its own: the same tensors, finite."""
        own, there = (
            {name: (tuple(value.shape), str(value.dtype)) for name, value in values.items()}
            for values in (self._condenser.state_dict(), state)
        )
        if odd := sorted(dict(own.items() ^ there.items())):
            raise CorruptFileError(f"{self._checkpoint} is not the state of {self._label} ({odd[0]}). {_DELETE}")
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            raise CorruptFileError(f"{self._checkpoint} holds NaN or infinity. {_DELETE}")
        try:
            self._condenser.load_state_dict(state)
        except ValueError as error:  # a value that the method never has
            raise CorruptFileError(
                f"{self._checkpoint} is not the state of {self._label} ({error}). {_DELETE}"
            ) from error

    def _resume(self, device: torch.device) -> int:
        """Load the last checkpoint, if there is one; return the iteration to continue with."""
        if not self._checkpoint.exists():
            self._metrics.unlink(missing_ok=True)
            return 0
        state, meta = load_tensors(self._checkpoint)
        if meta.get("key") != self._key:
            raise CorruptFileError(f"{self._checkpoint} belongs to another cell. Delete it, or run with --force.")
        done = int(_checked(self._checkpoint, meta)["iteration"])
        if done > self._condenser.iterations:
            raise CorruptFileError(f"{self._checkpoint} is after iteration {done}, which there is not. {_DELETE}")
        self._load({k: v.to(device) for k, v in state.items()})
        self.seconds, self.last_loss, self.peak_bytes = meta["seconds"], meta["loss"], meta.get("peak_bytes")
        if self._metrics.exists():  # iterations after the checkpoint will be run and recorded again
            write_text(self._metrics, "".join(_metrics_before(self._metrics, done)))
        if not self._quiet:
            say(f"{self._label}: continuing after iteration {done} of {self._condenser.iterations}")
        return done
