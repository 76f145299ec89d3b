"""Progress on the terminal: a bar with rate and time left; a line now and then where there is no terminal."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dcbench_tesla.errors import UsageError

_LINE_EVERY_S = 30.0


def duration(seconds: float) -> str:
    """Return a duration for people: ``45 s``, ``12 min``, ``3.5 h``, ``4.2 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def parse_duration(text: str) -> float:
    """Return the seconds of a duration as people write it: ``90s``, ``30min``, ``2h``, ``1.5 days``.

    Raises:
        UsageError: it is none, has no unit, or is not positive.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|days?|d)", text.strip())
    if not found or not float(found[1]):
        raise UsageError(f"a duration is a number with its unit, for instance 90s, 30min, 2h or 1.5d, not {text!r}.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2][0]]


def size(count: float) -> str:
    """Return bytes for people: ``23.2 MiB``, ``1.84 GiB``."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def rate(units: float, seconds: float, unit: str) -> str:
    """Return a rate for people: ``12.3 it/s``, or ``4.1 s/it`` where that reads better."""
    if units <= 0 or seconds <= 0:
        return ""
    return f"{units / seconds:.1f} {unit}/s" if units >= seconds else f"{seconds / units:.1f} s/{unit}"


def say(text: str) -> None:
    """Tell the user something on standard error, which results do not go to."""
    print(text, file=sys.stderr, flush=True)


class Bar:
    """Counts finished units of one piece of work, and shows them."""

    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self._first, self._start = done, time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Note ``amount`` further units as done; ``note`` is shown beside them."""
        self.done += amount
        self._show(note)

    def _show(self, note: str) -> None:
        """Show nothing: subclasses do."""

    def status(self) -> str:
        """Return rate and time left, from what was done since the bar was made."""
        elapsed, units = time.monotonic() - self._start, self.done - self._first
        if not units:
            return ""
        left = duration(elapsed / units * (self.total - self.done))
        return f"{rate(units, elapsed, self.unit)}, {left} left"


class _Lines(Bar):
    """A line every half minute, for logs."""

    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        super().__init__(label, total, done, unit)
        self._shown = time.monotonic()

    def _show(self, note: str) -> None:
        now = time.monotonic()
        if now - self._shown >= _LINE_EVERY_S:
            self._shown = now
            words = [f"{self.label}: {self.done}/{self.total}", self.status(), note]
            say(", ".join(filter(None, words)))


@contextmanager
def bar(label: str, total: int, *, done: int = 0, unit: str = "it", quiet: bool = False) -> Iterator[Bar]:
    """Show the progress of ``total`` units of work, ``done`` of which are there already."""
    if quiet:
        yield Bar(label, total, done, unit)
    elif not sys.stderr.isatty():
        yield _Lines(label, total, done, unit)
    else:
        with _terminal_bar(label, total, done, unit) as shown:
            yield shown


@contextmanager
def _terminal_bar(label: str, total: int, done: int, unit: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=done, note="")

        class Rich(Bar):
            def _show(self, note: str) -> None:
                text = ", ".join(filter(None, [self.status(), note]))
                progress.update(task, completed=self.done, note=text)

        yield Rich(label, total, done, unit)
