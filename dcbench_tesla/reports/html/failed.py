"""The cells that failed, and why; a success drops its row."""

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
    """Return the table of the failed cells' ``rows``; without a figure where there are none."""
    return Part(
        id="failed",
        title="Failed cells",
        about="What did not end with a result, and why. The same command tries again, and goes on where it was.",
        make="dcbench run",
        figures=[_figure(pd.DataFrame(rows))] if rows else [],
    )


def _figure(rows: pd.DataFrame) -> Figure:
    rows = rows.assign(ipc=rows["ipc"].astype("Int64")).sort_values(["dataset", "method", "ipc", "seed", "command"])
    commit = [environment["commit"] for environment in rows["environment"]]
    return Figure(
        title=f"{len(rows)} cell{'s' * (len(rows) != 1)}",
        caption="None of them is in a table or a plot, but for the parts of it that were done before.",
        made=Made(facts=facts(rows.assign(commit=commit)), commands=values(rows, "command")),
        table=table_of(rows, _COLUMNS),
    )
