"""The files of comparisons: tidy CSV files that grow row by row, and plots as PNG and SVG."""

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.progress import say
from dcbench_tesla.records.store import atomic_path, read_bytes, write_text
from dcbench_tesla.records.text import guarded, unguarded
from dcbench_tesla.records.workspace import MARK, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# the twelve hexadecimal digits of a commit can look like a number: 350885915961, or 12345e678901
_HEXADECIMAL = {"commit": "string", "dataset_fingerprint": "string"}
_WORDS = {"compiled": ("True", "False"), "dtype": ("float16", "float32", "float64")}


class _Kind(NamedTuple):
    """The numbers that a column can hold."""

    least: float
    most: float
    whole: bool = False


_COUNTS = "matching_steps|ipc|batch_size|width|depth|threads|repetitions|iteration|expert|start_epoch"
_NUMBERS = {
    _COUNTS: _Kind(0, 2**53, whole=True),
    "seed": _Kind(-(2**53), 2**53, whole=True),
    r"\w+_(bytes|seconds)": _Kind(0, 1e18),
    "cosine": _Kind(-1.001, 1.001),
    "norm_ratio|relative_error": _Kind(0, 1e30),
    "student_lr|matching_loss": _Kind(-1e30, 1e30),
}
"""What the columns of a comparison hold, by a pattern of their names; other columns hold text."""
_OF_METHODS = ("matching_steps", "batch_size")  # a method has these settings in all of its rows, or in none
_OF_THE_CODE = ("commit", "torch")  # these columns say which code measured a row, and are no part of its result


def merge_csv(path: Path, new: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    """Merge ``new`` into the CSV file at ``path`` and return the result; rows with the same ``key`` are replaced.

    A row whose ``status`` is not ``ok`` does not replace one that is, so that a busy machine destroys no measurement. A
    row that repeats an existing result, as predictions do, leaves the old row with the commit that first produced it.

    Raises:
        CorruptFileError: the file is not a CSV file, or is another table.
        DcbenchError: the file cannot be written.
    """
    new = _with_settings(new, key)
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
    odd = _odd_rows(path)  # they are shown nowhere, and stay in the file until somebody corrects them
    write_text(path, csv_text(pd.concat([new.astype(object), odd], ignore_index=True) if len(odd) else new))
    return new


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV, in which no text is a formula (see :func:`dcbench_tesla.records.text.guarded`)."""
    texts = [str(name) for name, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    safe = {name: [guarded(v) if isinstance(v, str) else v for v in table[name]] for name in texts}
    columns = {name: pd.Series(values, table.index, dtype=object) for name, values in safe.items()}
    return table.assign(**columns).rename(columns=lambda name: guarded(str(name))).to_csv(index=False)


def table_of(path: Path) -> pd.DataFrame:
    """Return the CSV at ``path``, a regular file of bounded size, its texts as they were before :func:`csv_text`.

    Raises:
        ValueError: it is no CSV.
        CorruptFileError: it is no regular file, or too large.
    """
    raw = read_bytes(path, remedy="Move it away.")
    table = pd.read_csv(BytesIO(raw), dtype=_HEXADECIMAL)
    for name in table.select_dtypes(["object", "string"]):
        table[name] = table[name].map(lambda value: unguarded(value) if isinstance(value, str) else value)
    return table


def _odd_rows(path: Path) -> pd.DataFrame:
    """Return the rows of the CSV at ``path`` that :func:`read_csv` leaves out, as texts."""
    if not path.exists():
        return pd.DataFrame()
    table = table_of(path)
    return table[[bool(fault) for fault in _faults(table)]].astype(object)


def _faults(table: pd.DataFrame) -> list[str]:
    """Return for every row of a comparison what is wrong with it: the first cell of another type or out of range."""
    found = [""] * len(table)
    for name in reversed([str(name) for name in table]):
        for i in (~_fits(name, table[name])).to_numpy().nonzero()[0]:
            found[i] = f"{name} is {str(table[name].iloc[i])[:60]!r}"
    for name in _OF_METHODS:
        if {name, "method"} <= set(table):
            has = table.groupby("method", dropna=False)[name].transform(lambda own: own.notna().any())
            for i in (has & table[name].isna()).to_numpy().nonzero()[0]:
                found[i] = found[i] or f"{name} is empty, and other rows of {table['method'].iloc[i]} have one"
    return found


def _fits(name: str, column: "pd.Series[Any]") -> "pd.Series[bool]":
    """Return which cells of a column have its type and range; empty ones do, if the column holds numbers."""
    if name in _WORDS:
        return column.astype(str).isin(_WORDS[name])
    kind = next((bounds for pattern, bounds in _NUMBERS.items() if re.fullmatch(pattern, name)), None)
    if kind is None:
        return pd.Series(True, index=column.index)
    plain = pd.Series([None if isinstance(value, bool) else value for value in column], index=column.index)
    numbers = pd.to_numeric(plain, errors="coerce").astype(float)
    fits = numbers.between(kind.least, kind.most) & ((numbers % 1 == 0) | (not kind.whole))
    return pd.Series([bool(cell) for cell in column.isna() | fits], index=column.index)


def read_csv(path: Path, key: Sequence[str]) -> pd.DataFrame:
    """Return the comparison at ``path``, or an empty one if there is no file; ``key`` are the columns of its key.

    Raises:
        CorruptFileError: the file is not a CSV file, or lacks a column of ``key``.
    """
    if not path.exists():
        return pd.DataFrame(columns=list(key))
    try:
        table = _without_odd_rows(path, table_of(path)).convert_dtypes()
    except ValueError as error:
        raise CorruptFileError(f"{path} is not a CSV file ({error}). Move it away.") from error
    if "compiled" in key and "compiled" not in table:  # the file is older than compilation
        table["compiled"] = False
    table = _with_settings(table, key)
    if lacking := sorted(set(key) - set(table.columns)):
        raise CorruptFileError(f"{path} is another table: it has no column {lacking[0]}. Move it away.")
    return table


def _with_settings(table: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    """Return ``table`` with a text in every cell of ``settings``, if the key has it: empty in older files and rows."""
    if "settings" not in key:
        return table
    given = table["settings"] if "settings" in table else pd.Series("", table.index)
    return table.assign(settings=given.astype("string").fillna(""))


def _without_odd_rows(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return a comparison without the rows that have a cell of another type or out of range, and say which."""
    faults = _faults(table)
    odd = [(i, fault) for i, fault in enumerate(faults) if fault]
    if not odd:
        return table
    i, fault = odd[0]
    more = f", and {len(odd) - 1} more rows" if len(odd) > 1 else ""
    say(f"{path}: row {i + 2} is left out, its {fault}{more}: correct or delete it")
    kept = table[[not fault for fault in faults]].copy()
    for name in (str(name) for name in kept):
        if any(re.fullmatch(pattern, name) for pattern in _NUMBERS):
            kept[name] = pd.to_numeric(kept[name])
    return kept


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
