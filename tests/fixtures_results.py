"""The committed rows, and how the pages of results show them."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dcbench_tesla.compare.statistics import Interval, interval

ROOT = Path(__file__).parents[1]
ROWS = sorted((ROOT / "results" / "rows").glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    """Return a row."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@cache
def rows(stage: str) -> Sequence[dict[str, Any]]:
    """Return the committed rows of a stage."""
    return tuple(row for row in map(read, ROWS) if row["stage"] == stage)


def gain(row: dict[Any, Any]) -> str:
    """Return points over `random` with their interval, and a star where they are decided."""
    points, low, high = (100 * row[f"over_random{end}"] for end in ("", "_low", "_high"))
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]" + (" *" if row["over_random_p"] <= 0.05 else "")


def of_one_set(accuracy: dict[str, Any]) -> tuple[str, Interval]:
    """Return the accuracy of one set with its spread and interval over networks, in percent, and the interval."""
    ends = interval([accuracy["values"]])
    assert ends is not None
    mean, std, low, high = (100 * value for value in (accuracy["mean"], accuracy["std"], ends.low, ends.high))
    return f"{mean:.1f} ± {std:.1f} [{low:.1f}, {high:.1f}]", ends
