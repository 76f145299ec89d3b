"""Where comparisons are kept: tidy CSV files that grow row by row, and plots as PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.store import atomic_path, write_text
from dcbench_tesla.records.workspace import MARK, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# twelve digits of a commit can look like a number: 350885915961, or 12345e678901
_HEXADECIMAL = {"commit": "string", "dataset_fingerprint": "string"}
_OF_THE_CODE = ("commit", "torch")  # by what a row was found, not what it says


def merge_csv(path: Path, new: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    """Write ``new`` into the CSV at ``path`` and return all it holds then: equal keys are replaced, others kept.

    A row whose ``status`` is not ``ok`` replaces none whose is: a busy machine takes nothing away. A row that says
    again what is there, as a prediction does, leaves the old one with the commit that first found it.

    Raises:
        CorruptFileError: the file there is another table.
        DcbenchError: it cannot be written.
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
    """Return the comparison at ``path``, whose rows ``key`` tells apart; an empty one where there is none.

    Raises:
        CorruptFileError: the file there is another table, or none.
    """
    if not path.exists():
        return pd.DataFrame(columns=list(key))
    try:
        table = pd.read_csv(path, dtype=_HEXADECIMAL).convert_dtypes()
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is no CSV ({error}). Move it away.") from error
    if "compiled" in key and "compiled" not in table:  # from before there was anything compiled
        table["compiled"] = False
    if lacking := sorted(set(key) - set(table.columns)):
        raise CorruptFileError(f"{path} is another table: it has no column {lacking[0]}. Move it away.")
    return table


def add_shipped(own: pd.DataFrame, workspace: Workspace, name: str, key: Sequence[str]) -> pd.DataFrame:
    """Return a comparison of ``workspace`` with what the repository ships of it, if that is to be read.

    Shipped rows have ``(shipped)`` behind their hardware, so that nothing takes them for the user's own machine. Of an
    own and a shipped row with equal keys the own one counts.

    Raises:
        CorruptFileError: the shipped file is another table.
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
    """Return every row's key as text: a number and the number read back from a file are the same then."""
    columns = table[list(key)].convert_dtypes().astype("string").fillna("")
    return [tuple(row) for row in columns.itertuples(index=False)]


def save_figure(figure: "Figure", stem: Path) -> list[Path]:
    """Write a plot as ``stem.png`` and ``stem.svg``, atomically; return both.

    Raises:
        DcbenchError: they cannot be written.
    """
    import matplotlib

    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "dcbench"}):
            # no date and no random names in it: the same figure is the same file
            date = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(temporary, format=path.suffix[1:], dpi=160, metadata=date, bbox_inches="tight")
    return paths
