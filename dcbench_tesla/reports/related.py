"""The table of related work as text: the methods in families, a line each, with published numbers and their sources."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import pandas as pd

from dcbench_tesla.compare.accuracy import shown
from dcbench_tesla.reports.declarations import Declaration, Part
from dcbench_tesla.reports.published import Published, external
from dcbench_tesla.reports.tables import COMPARED, NOT_IMPLEMENTED, RUN, Row, grouped, records
from dcbench_tesla.reports.text import Sheet, about_protocols, protocol_names

_PUBLISHED = "published"
_OUR_LINES = {"best on test": COMPARED, "last": "last"}
_ABOUT = (
    "Only lines of one family are comparable: soft labels hold more than their images' classes, and a parametrised set "
    "trains on more images than it stores. A cell whose settings are those of another family stands there.",
    "`published`: as printed, by the sources that are numbered beside; maxima over checkpoints, measured on the test "
    "set, if the method is evaluated on the way. Compare them with `best on test`, which the test images choose; "
    "`last` is the last set. Own numbers are of cells by an unchanged preset.",
)


def related_sheet(declaration: Declaration, found: pd.DataFrame, lacking: Sequence[str], part: Part) -> Sheet:
    """Return a part of the table as text: data set, family, method and kind of number before an accuracy for each IPC.

    Args:
        declaration: the declaration of the table.
        found: the rows of :func:`~dcbench_tesla.reports.tables.table`.
        lacking: the lines of :func:`~dcbench_tesla.reports.text.lacking`.
        part: the part.
    """
    rows = [row for row in records(found) if part.has(row["dataset"], row["ipc"], row["method"])]
    rows = [row for row in rows if row["status"] == RUN or row["published"] is not None]
    ipcs = sorted({row["ipc"] for row in rows})
    names = protocol_names(found["protocol"])
    ours = [row for row in rows if row["status"] == RUN and part.shows(row["protocol"])]
    sources = {told: n for n, told in enumerate(dict.fromkeys(_source(r) for r in rows if r["published"]), 1)}
    return Sheet(
        title=f"{declaration.paper}: {declaration.title}, %",
        head=["data set", "family", "method", "accuracy", *(f"IPC {ipc}" for ipc in ipcs), "source"],
        body=[
            line
            for (dataset,), own in grouped(rows, ["dataset"]).items()
            for line in _of_dataset(declaration, dataset, own, ipcs, part, names, sources)
        ],
        keys=4,
        legend=[
            *_ABOUT,
            *_protocols(ours, names),
            *_nowhere(declaration, found, rows),
            *(f"source {n}: {told}" for told, n in sources.items()),
        ],
        lacking=lacking,
    )


def _of_dataset(
    declaration: Declaration,
    dataset: str,
    rows: Sequence[Row],
    ipcs: Sequence[int],
    part: Part,
    names: Mapping[str, str],
    sources: Mapping[str, int],
) -> Iterator[list[str]]:
    for family in declaration.families:
        for method in declaration.methods:
            own = [row for row in rows if row["method"] == method]
            keys = [f"`{dataset}`", family, f"`{method}`"]
            printed = {row["ipc"]: row for row in own if row["published_family"] == family and row["published"]}
            if printed:
                yield [*keys, _PUBLISHED, *_across(ipcs, printed, _printed), _numbered(printed.values(), sources)]
            ran = [row for row in own if row["status"] == RUN and row["family"] == family]
            for (protocol,), cells in grouped((r for r in ran if part.shows(r["protocol"])), ["protocol"]).items():
                by_ipc = {row["ipc"]: row for row in cells}
                for title, statistic in _OUR_LINES.items():
                    texts = _across(ipcs, by_ipc, partial(shown, statistic=statistic))
                    yield [*keys, f"{names[protocol]}, {title}", *texts, ""]


def _across(ipcs: Sequence[int], rows: Mapping[int, Row], show: Callable[[Row], str]) -> list[str]:
    return [show(rows[ipc]) if ipc in rows else "" for ipc in ipcs]


def _printed(row: Row) -> str:
    return str(Published(mean=row["published"], std=row["published_std"], source=""))


def _source(row: Row) -> str:
    """Return the source of a published number, with the note on it."""
    return "; ".join(filter(None, [row["published_source"], row["published_note"]]))


def _numbered(rows: Iterable[Row], sources: Mapping[str, int]) -> str:
    """Return the numbers of the sources of some published numbers, with their IPCs if there are several sources."""
    ipcs: dict[int, list[str]] = {}
    for row in rows:
        ipcs.setdefault(sources[_source(row)], []).append(str(row["ipc"]))
    several = len(ipcs) > 1
    return ", ".join(f"{n} (IPC {', '.join(own)})" if several else str(n) for n, own in ipcs.items())


def _protocols(ours: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    yield from about_protocols({protocol: own for (protocol,), own in grouped(ours, ["protocol"]).items()}, names)


def _nowhere(declaration: Declaration, found: pd.DataFrame, rows: Sequence[Row]) -> Iterator[str]:
    """Yield notes on methods without a number, by family, and on those that are not installed."""
    seen = {row["method"] for row in rows}
    for family, methods in declaration.families.items():
        absent = [f"`{name}`" for name in methods if name not in seen]
        if absent:
            yield f"{family}, without a number here: {', '.join(absent)}"
    missing = dict.fromkeys(found.loc[found["status"] == NOT_IMPLEMENTED, "method"])
    yield from (f"`{name}`: {external()[name]}; not installed, a plugin of that name runs it" for name in missing)
