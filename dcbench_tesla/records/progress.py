"""Progress for people: a bar with rate and time left, or an occasional line where there is no terminal."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html import escape
from typing import IO, cast

from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.notebook import Area, in_notebook
from dcbench_tesla.records.streams import messages
from dcbench_tesla.records.text import printable

_LINE_EVERY_S = 30.0
_DRAW_EVERY_S = 0.25  # a notebook's bar
QUIET, NORMAL, VERBOSE = -1, 0, 1
_level = NORMAL


def speak(level: int) -> None:
    """Set how much this process says: errors alone (``QUIET``), ``NORMAL``, or details too (``VERBOSE``)."""
    global _level
    _level = level


def duration(seconds: float) -> str:
    """Return a duration as text: ``45 s``, ``12 min``, ``3.5 h``, ``4.2 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``30min``, ``2h`` or ``1.5 days``.

    Raises:
        UsageError: the text is not a duration, has no unit, or is not positive.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|days?|d)", text.strip())
    if not found or not float(found[1]):
        raise UsageError(f"a duration is a number with its unit, for instance 90s, 30min, 2h or 1.5d, not {text!r}.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2][0]]


def size(count: float) -> str:
    """Return a number of bytes as text: ``23.2 MiB``, ``1.84 GiB``."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def small_size(count: float) -> str:
    """Return a number of bytes of a file as text: ``3.4 KiB``, else as :func:`size` does."""
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else size(count)


def rate(units: float, seconds: float, unit: str) -> str:
    """Return a rate as text: ``12.3 it/s``, or ``4.1 s/it`` if there is less than one unit per second."""
    if units <= 0 or seconds <= 0:
        return ""
    return f"{units / seconds:.1f} {unit}/s" if units >= seconds else f"{seconds / units:.1f} s/{unit}"


def say(text: str) -> None:
    """Print a line on standard error, so that standard output holds results only.

    A standard error that is closed, full or gone stops no work: the line is lost. Nothing is said under ``QUIET``.
    """
    if _level > QUIET:
        _print(text)


def detail(text: str) -> None:
    """Print a line like :func:`say` under ``VERBOSE`` only."""
    if _level >= VERBOSE:
        _print(text)


def complain(text: str) -> None:
    """Print an error as a line on standard error, under ``QUIET`` too."""
    _print(f"Error: {text}")


def _print(text: str) -> None:
    print(printable(text), file=messages(), flush=True)


@cache
def say_once(text: str) -> None:
    """Print a line like :func:`say`, once in a process, however many readers of a file have something to say of it."""
    say(text)


class Bar:
    """Counts finished units of one piece of work; subclasses show the count."""

    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self._first, self._start = done, time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count ``amount`` further units as done; ``note`` is shown beside the count."""
        self.done += amount
        self._show(note)

    def _show(self, note: str) -> None:
        """Show nothing; subclasses override this."""

    def status(self) -> str:
        """Return rate and time left, measured since the bar was created; before the first unit the time spent."""
        elapsed, units = time.monotonic() - self._start, self.done - self._first
        if not units:
            return f"{duration(elapsed)} so far" if elapsed >= _LINE_EVERY_S else ""
        left = duration(elapsed / units * (self.total - self.done))
        return f"{rate(units, elapsed, self.unit)}, {left} left"


class _Lines(Bar):
    """Prints a line every half minute, for log files, whether or not a unit has been finished since."""

    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        super().__init__(label, total, done, unit)
        self._shown, self._note = time.monotonic(), ""
        self._alone, self._over = threading.Lock(), threading.Event()

    def _show(self, note: str) -> None:
        self._note = note
        self._tell_if_due()

    def _tell_if_due(self) -> None:
        with self._alone:
            if not self._over.is_set() and time.monotonic() - self._shown >= _LINE_EVERY_S:
                self._shown = time.monotonic()
                words = [f"{self.label}: {self.done}/{self.total}", self.status(), self._note]
                say(", ".join(filter(None, words)))

    def beat(self) -> None:
        """Print lines until :meth:`end` is called; for a thread of its own."""
        while not self._over.wait(max(0.0, self._shown + _LINE_EVERY_S - time.monotonic())):
            self._tell_if_due()

    def end(self) -> None:
        """Print no further line."""
        self._over.set()


class _InNotebook(Bar):
    """A bar in the output of a notebook's cell."""

    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        super().__init__(label, total, done, unit)
        self._area, self._drawn, self._note = Area(), 0.0, ""
        self.draw()

    def _show(self, note: str) -> None:
        self._note = note
        if time.monotonic() - self._drawn >= _DRAW_EVERY_S:
            self.draw()

    def draw(self) -> None:
        """Draw the bar as it stands."""
        self._drawn = time.monotonic()
        words = [f"{self.done}/{self.total}", self.status(), self._note]
        counted = f'<progress value="{self.done}" max="{max(self.total, 1)}"></progress>'
        self._area.show(f"<div>{escape(self.label)} {counted} {escape(', '.join(filter(None, words)))}</div>")


@contextmanager
def bar(label: str, total: int, *, done: int = 0, unit: str = "it", quiet: bool = False) -> Iterator[Bar]:
    """Show the progress of ``total`` units of work, of which ``done`` were finished earlier."""
    if quiet or _level <= QUIET:
        yield Bar(label, total, done, unit)
    elif in_notebook():
        shown_there = _InNotebook(label, total, done, unit)
        try:
            yield shown_there
        finally:
            shown_there.draw()
    elif not messages().isatty():
        with _lines(label, total, done, unit) as shown:
            yield shown
    else:
        with _terminal_bar(label, total, done, unit) as shown:
            yield shown


@contextmanager
def _lines(label: str, total: int, done: int, unit: str) -> Iterator[Bar]:
    shown = _Lines(label, total, done, unit)
    beating = threading.Thread(target=shown.beat, daemon=True)
    beating.start()
    try:
        yield shown
    finally:
        shown.end()
        beating.join()


@contextmanager
def _terminal_bar(label: str, total: int, done: int, unit: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(file=cast(IO[str], messages()))) as progress:
        task = progress.add_task(label, total=total, completed=done, note="")

        class Rich(Bar):
            def _show(self, note: str) -> None:
                text = ", ".join(filter(None, [self.status(), note]))
                progress.update(task, completed=self.done, note=text)

        yield Rich(label, total, done, unit)
