"""Seconds that steps took on this machine, kept in a results folder so that they are not measured twice in a day."""

from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from dcbench_tesla.errors import CorruptFileError, DcbenchError
from dcbench_tesla.records.environment import hardware, versions
from dcbench_tesla.records.store import content_key, read_json, write_json

NAME = "measured.json"


class Measured:
    """Measured seconds by what was measured, on this hardware and with these versions.

    They are those of one day: what was measured while the machine was busy does not stay. A file that is damaged or
    cannot be written stops nothing: the steps are measured again.

    Args:
        path: the file; ``None`` for none.
        keep: write what is measured to the file, at once, so that an interruption loses nothing.
    """

    def __init__(self, path: Path | None = None, *, keep: bool = False) -> None:
        self._path, self._keep = path, keep
        self._seconds = self._stored()

    def seconds(self, device: str, threads: int, of: Mapping[str, Any], measure: Callable[[], float]) -> float:
        """Return the seconds of the work that ``of`` describes: those on record, or what ``measure`` returns."""
        found = versions()
        here = [hardware(device), device, threads, found["torch"], found["dcbench-tesla"]]
        key = content_key([here, of])
        if key not in self._seconds:
            self._seconds[key] = measure()
            self._write()
        return self._seconds[key]

    def _stored(self) -> dict[str, float]:
        try:
            stored = read_json(self._path, "measured times") if self._path else {}
            return dict(stored["seconds"]) if stored.get("day") == _today() else {}
        except (FileNotFoundError, CorruptFileError):
            return {}

    def _write(self) -> None:
        if self._path is None or not self._keep:
            return
        try:
            write_json(self._path, {"day": _today(), "seconds": {**self._stored(), **self._seconds}})
        except DcbenchError:
            self._keep = False


def _today() -> int:
    """Return the day as a number."""
    return date.today().toordinal()
