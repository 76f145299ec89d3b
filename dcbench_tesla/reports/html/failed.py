"""The part on failed cells, with the reasons. A cell that succeeds later is no longer shown."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dcbench_tesla.reports.html.parts import Column, Figure, Made, Part, facts, table_of, values

_COLUMNS = (
    Column("method", "method"),
    Column("dataset", "data set"),
    Column("ipc", "IPC"),
    Column("seed", "seed"),
    Column("status", "status"),
    Column("reason", "reason"),
    Column("origin", "origin"),
    Column("attempts", "attempts"),
    Column("protocol", "protocol"),
    Column("command", "command"),
)


def failed_part(rows: Sequence[Mapping[str, Any]]) -> Part:
    """Return the part with the table of the failed cells; without ``rows`` it has no figure."""
    return Part(
        id="failed",
        title="Failed cells",
        short="Failed",
        about="Cells that failed, with the reasons. The same command tries again and continues where it stopped.",
        make="dcbench run",
        figures=[_figure(pd.DataFrame(rows))] if rows else [],
    )


def _figure(rows: pd.DataFrame) -> Figure:
    rows = rows.assign(ipc=rows["ipc"].astype("Int64")).sort_values(["dataset", "method", "ipc", "seed", "command"])
    commit = [environment["commit"] for environment in rows["environment"]]
    return Figure(
        title=f"{len(rows)} cell{'s' * (len(rows) != 1)}",
        caption="Tables and plots show only those results of these cells that were finished before the failure.",
        made=Made(facts=facts(rows.assign(commit=commit)), commands=values(rows, "command")),
        table=table_of(rows, _COLUMNS),
    )
