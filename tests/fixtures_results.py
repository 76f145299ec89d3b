"""How the pages of results show a row."""

from typing import Any


def gain(row: dict[Any, Any]) -> str:
    """Return points over `random` with their interval, and a star where they are decided."""
    points, low, high = (100 * row[f"over_random{end}"] for end in ("", "_low", "_high"))
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]" + (" *" if row["over_random_p"] <= 0.05 else "")
