"""The paper's tables: ours beside the published numbers, with the differences, from the CSV files under ``tables``."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from dcbench_tesla.compare.files import read_csv
from dcbench_tesla.reports.html.parts import Column, Figure, Made, Part, facts, table_of, told, values
from dcbench_tesla.workspace import Workspace

_TABLES = {"table1": "Table 1, methods", "table2": "Table 2, labels", "table3": "Table 3, networks"}


def _percent(fraction: Any) -> str:
    return f"{100 * fraction:.1f}"


def _accuracy(name: str, title: str) -> Column:
    return Column(name, title, _percent, [f"{name}_std_networks", f"{name}_std_seeds"])


_COLUMNS = (
    Column("method", "method"),
    Column("labels", "labels"),
    Column("evaluator", "network"),
    Column("ipc", "IPC"),
    _accuracy("best_on_test", "best on test"),
    Column("published", "published", _percent, ["published_std"]),
    Column("difference_points", "difference", "{:+.1f}".format),
    _accuracy("last", "last"),
    _accuracy("best_on_validation", "best on validation"),
    Column("status", "status"),
    Column("protocol", "protocol"),
    Column("published_source", "source"),
    Column("published_note", "note"),
)


def published_part(workspace: Workspace) -> Part:
    """Return the paper's tables, as far as they were made, one a data set; columns that a file lacks are left out.

    Raises:
        CorruptFileError: a file of such a name is another table.
    """
    return Part(
        id="published",
        title="Published numbers",
        about="Test accuracy in %, ours beside what the papers print. Their numbers are maxima over checkpoints, "
        "measured on the test set, so the difference is that of `best_on_test`, in points. What was not run has no "
        "number.",
        make="dcbench reproduce table1",
        figures=list(_figures(workspace)),
    )


def _figures(workspace: Workspace) -> Iterator[Figure]:
    for name, title in _TABLES.items():
        path = workspace.tables / f"{name}.csv"
        if path.exists():
            for dataset, rows in read_csv(path, ["dataset"]).groupby("dataset", sort=False):
                yield _figure(f"{title}: {dataset}", f"dcbench reproduce {name}", rows)


def _figure(title: str, command: str, rows: pd.DataFrame) -> Figure:
    # what is the same in all lines is said once
    shared = [c for c in _COLUMNS if c.name in ("labels", "evaluator", "status", "protocol") and _is_one(rows, c.name)]
    return Figure(
        title=title,
        caption="Mean ± standard deviation over networks, and ± over seeds where there are several.",
        made=Made(facts=facts(rows), commands=[command, *values(rows, "command")]),
        table=table_of(rows, [column for column in _COLUMNS if column not in shared]),
        notes=[f"{column.title}: {told(rows, column.name)}" for column in shared],
    )


def _is_one(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and bool(rows[name].notna().all()) and rows[name].nunique() == 1
