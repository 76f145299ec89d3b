"""The files of comparisons: tidy CSV files that grow row by row, and plots as PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.store import atomic_path, write_text
from dcbench_tesla.records.workspace import MARK, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# the twelve hexadecimal digits of a commit can look like a number: 350885915961, or 12345e678901
_HEXADECIMAL = {"commit": "string", "dataset_fingerprint": "string"}
_OF_THE_CODE = ("commit", "torch")  # these columns say which code measured a row, and are no part of its result


def merge_csv(path: Path, new: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    """Merge ``new`` into the CSV file at ``path`` and return the result; rows with the same ``key`` are replaced.

    A row whose ``status`` is not ``ok`` does not replace one that is, so that a busy machine destroys no measurement. A
    row that repeats an existing result, as predictions do, leaves the old row with the commit that first produced it.

    Raises:
        CorruptFileError: the file is not a CSV file, or is another table.
        DcbenchError: the file cannot be written.
    """
    if path.exists():
        old = read_csv(path, key)
        if "status" in old and "status" in new:
            measured = set(keys(old[old["status"] == "ok"], key))
            new = new[[s == "ok" or k not in measured for s, k in zip(new["status"], keys(new, key), strict=True)]]
        found = [name for name in new.columns if name in old.columns and name not in _OF_THE_CODE]
        said = set(keys(old, found)) if set(new.columns) <= set(old.columns) else set()
        new = new[[k not in said for k in keys(new, found)]]
        taken = set(keys(new, key))
        kept = old[[k not in taken for k in keys(old, key)]]
        new = pd.concat([kept, new.convert_dtypes()], ignore_index=True)
    new = new.sort_values(list(key), ignore_index=True)
    write_text(path, new.to_csv(index=False))
    return new


def read_csv(path: Path, key: Sequence[str]) -> pd.DataFrame:
    """Return the comparison at ``path``, or an empty one if there is no file; ``key`` are the columns of its key.

    Raises:
        CorruptFileError: the file is not a CSV file, or lacks a column of ``key``.
    """
    if not path.exists():
        return pd.DataFrame(columns=list(key))
    try:
        table = pd.read_csv(path, dtype=_HEXADECIMAL).convert_dtypes()
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is not a CSV file ({error}). Move it away.") from error
    if "compiled" in key and "compiled" not in table:  # the file is older than compilation
        table["compiled"] = False
    if lacking := sorted(set(key) - set(table.columns)):
        raise CorruptFileError(f"{path} is another table: it has no column {lacking[0]}. Move it away.")
    return table


def add_shipped(own: pd.DataFrame, workspace: Workspace, name: str, key: Sequence[str]) -> pd.DataFrame:
    """Return the comparison ``own`` with the committed rows added, if ``workspace`` includes committed results.

    The hardware of committed rows is followed by ``(shipped)``, so that they are not taken for the user's machine. If
    an own and a committed row have the same key, the own row is kept.

    Args:
        own: the rows of the user.
        workspace: where to look for committed results.
        name: name of the file under ``figures/``.
        key: the columns of the key.

    Raises:
        CorruptFileError: the committed file is not a CSV file, or is another table.
    """
    if workspace.shipped is None:
        return own
    shipped = read_csv(workspace.shipped / "figures" / name, key)
    shared = [name for name in key if name in own]
    taken = set(keys(own, shared))
    others = shipped.loc[[k not in taken for k in keys(shipped, shared)]]
    others = others.assign(hardware=others["hardware"] + MARK)
    return pd.concat([own, others], ignore_index=True) if len(own) and len(others) else max(own, others, key=len)


def keys(table: pd.DataFrame, key: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every row's key as text, so that a number equals the same number read back from a file."""
    columns = table[list(key)].convert_dtypes().astype("string").fillna("")
    return [tuple(row) for row in columns.itertuples(index=False)]


def save_figure(figure: "Figure", stem: Path) -> list[Path]:
    """Write a plot as ``stem.png`` and ``stem.svg``, atomically; return both paths.

    Raises:
        DcbenchError: a file cannot be written.
    """
    import matplotlib

    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "dcbench"}):
            # without a date and random names, the same figure gives the same file
            date = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(temporary, format=path.suffix[1:], dpi=160, metadata=date, bbox_inches="tight")
    return paths
