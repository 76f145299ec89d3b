"""The part with the paper's tables: own results beside published numbers, with the differences."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.declarations import Declaration, declarations
from dcbench_tesla.reports.html.parts import Column, Figure, Made, Part, facts, joined, table_of, told, values
from dcbench_tesla.reports.published import percent
from dcbench_tesla.reports.tables import RUN, WHOLE, grouped, records, runs, table
from dcbench_tesla.reports.text import about_protocols, not_comparable, protocol_names

_TABLES = ("table1", "table2", "table3")
_ABOUT = {"method": "methods", "labels": "labels", "evaluator": "networks"}
_CELL = ["dataset", "ipc", "method", "evaluator", "labels"]
_SHARES = ("share_of_whole", "published_share_of_whole", "share_of_images", "published_share_of_images")


def _percent(fraction: Any) -> str:
    return f"{100 * fraction:.1f}"


def _share(fraction: Any) -> str:
    return f"{_percent(fraction)} %"


def _images(fraction: Any) -> str:
    return f"{100 * fraction:.2g} %"


def _accuracy(name: str, title: str) -> list[Column]:
    """Return the columns of an own accuracy. The two deviations have columns of their own, as one can be missing."""
    return [
        Column(name, title, _percent, [f"{name}_std_networks"]),
        Column(f"{name}_std_seeds", f"{title}: ± over seeds", _percent),
    ]


_COLUMNS = (
    Column("method", "method"),
    Column("labels", "labels"),
    Column("evaluator", "network"),
    Column("ipc", "IPC"),
    *_accuracy("best_on_test", "best on test"),
    Column("published", "published", percent, ["published_std"]),
    Column("difference_points", "difference", "{:+.1f}".format),
    Column("difference_low", "difference: from", "{:+.1f}".format),
    Column("difference_high", "difference: to", "{:+.1f}".format),
    *_accuracy("last", "last"),
    *_accuracy("best_on_validation", "best on validation"),
    Column("last_networks", "networks (last)"),
    Column("best_on_test_networks", "networks (best on test)"),
    Column("seeds", "seeds"),
    Column("share_of_whole", "share of whole", _share),
    Column("published_share_of_whole", "share of whole, published", _share),
    Column("share_of_images", "images", _images),
    Column("published_share_of_images", "images, published", _images),
    Column("status", "status"),
    Column("shown_protocol", "protocol"),
    Column("published_source", "source"),
    Column("published_note", "note"),
)


def published_part(workspace: Workspace) -> Part:
    """Return the part with those tables of the paper of which anything was run, one per data set."""
    return Part(
        id="published",
        title="Published numbers",
        short="Published",
        about="Test accuracy in %: own results beside published numbers. Published numbers are maxima over "
        "checkpoints, measured on the test set, so differences (in points) and shares of the whole set's accuracy are "
        "those of `best_on_test`. `from` and `to` are the ends of the interval of the mean at 95 %, minus the "
        "published number, which counts as exact. A reduced protocol is not comparable with published numbers. What "
        "was not run is folded away.",
        make="dcbench reproduce table1",
        figures=[figure for name in _TABLES for figure in _figures(declarations()[name], workspace)],
    )


def _figures(declaration: Declaration, workspace: Workspace) -> Iterator[Figure]:
    found = table(declaration, runs(declaration, workspace))
    if not (found["status"] == RUN).any():
        return
    names = protocol_names(found["protocol"])
    shown = _once(found.assign(shown_protocol=found["protocol"].map(names)))
    shown.loc[shown["method"] == WHOLE, list(_SHARES)] = None  # shares of the whole set are always 1
    if not declaration.shares:
        shown = shown.drop(columns=["share_of_images", "published_share_of_images"])
    title, groups = f"{declaration.paper}, {_ABOUT[declaration.columns]}", shown.groupby("dataset", sort=False)
    for dataset, rows in groups:
        if (rows["status"] == RUN).any():
            yield _figure(f"{title}: {dataset}", f"dcbench reproduce {declaration.name}", rows, declaration)
    others = [(str(dataset), rows) for dataset, rows in groups if not (rows["status"] == RUN).any()]
    if others:
        yield _folded(f"{title}: data sets that were not run", others)


def _folded(title: str, others: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    return Figure(
        title=title,
        caption=f"Published numbers of {joined([dataset for dataset, _ in others])}.",
        numbers=[table_of(rows, _COLUMNS, dataset) for dataset, rows in others],
        numbers_title=_not_run(pd.concat([rows for _, rows in others])),
    )


def _once(found: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which a cell that was not run has one row without protocol, not one for every protocol."""
    run = found["status"] == RUN
    cells = found.set_index(_CELL).index
    absent = found[~run & ~cells.isin(cells[run])].drop_duplicates(_CELL)
    return pd.concat([found[run], absent.assign(shown_protocol=None)]).sort_index()


def _figure(title: str, command: str, rows: pd.DataFrame, declaration: Declaration) -> Figure:
    # values that all lines share are given once, in the notes
    ran, others = (rows[is_one] for is_one in (rows["status"] == RUN, rows["status"] != RUN))
    shared = [c for c in _COLUMNS if c.name in ("labels", "evaluator") and _is_one(rows, c.name)]
    columns = [column for column in _COLUMNS if column not in shared]
    shares = " `images`: the share of the training images that the condensed set is." if declaration.shares else ""
    return Figure(
        title=title,
        caption=not_comparable(ran["shown_protocol"])
        + f"Mean ± standard deviation over networks; if there are several seeds, the "
        f"deviation of their means has its own column.{shares}",
        made=Made(facts=facts(ran.assign(protocol=ran["shown_protocol"])), commands=[command, *values(ran, "command")]),
        table=table_of(ran, [column for column in columns if column.name != "status"]),
        numbers=[table_of(others, columns)] if len(others) else (),
        numbers_title=_not_run(others),
        notes=[*_protocols(ran), *(f"{c.title}: {told(rows, c.name)}" for c in shared if told(rows, c.name))],
    )


def _not_run(rows: pd.DataFrame) -> str:
    return f"Not run: {len(rows)} row{'s' * (len(rows) != 1)}"


def _protocols(ran: pd.DataFrame) -> Sequence[str]:
    groups = grouped(records(ran), ["protocol", "shown_protocol"])
    rows = {protocol: own for (protocol, _), own in groups.items()}
    return about_protocols(rows, dict(groups.keys()))


def _is_one(rows: pd.DataFrame, name: str) -> bool:
    return name in rows and bool(rows[name].notna().all()) and rows[name].nunique() == 1
