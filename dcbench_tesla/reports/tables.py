"""The paper's tables as tidy rows: own results beside published numbers, and the cells that are missing.

Published numbers are maxima on the test set. Therefore ``difference_points`` is ``best_on_test`` minus the published
number, and shares of the whole set's accuracy are those of ``best_on_test``. ``difference_low`` and ``difference_high``
are the ends of the interval of ``best_on_test`` at 95 %, minus the published number, which counts as exact: few papers
say what theirs varies over. Accuracies and shares are fractions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import pandas as pd

from dcbench_tesla import registry
from dcbench_tesla.config import CellConfig, resolve, with_sets
from dcbench_tesla.records.rows import STATISTICS
from dcbench_tesla.records.workspace import MARK, Workspace
from dcbench_tesla.reports.declarations import Declaration, implemented, import_problem, row_name
from dcbench_tesla.reports.failed import Failed
from dcbench_tesla.reports.finished import Finished, by_protocol, chosen, finished, training_images
from dcbench_tesla.reports.published import Published, published

Row = Mapping[Any, Any]
COMPARED = "best_on_test"
RUN, NOT_RUN, NOT_IMPLEMENTED = "run", "not run", "not implemented"
BROKEN = "cannot be imported"  # followed by the reason
WHOLE = "whole"

_SPREADS = ("", "_std_networks", "_std_seeds", "_networks", "_low", "_high", "_unit")
_KEY = ["dataset", "ipc", "protocol", "method", "evaluator", "labels"]
_MEASURED = [f"{name}{spread}" for name in STATISTICS for spread in _SPREADS]
_PUBLISHED = ["published", "published_std", "published_source", "published_note", "other_published"]
_SHARES = ["share_of_whole", "published_share_of_whole", "share_of_images", "published_share_of_images"]
_ABOUT = ["cell_protocol", "recipe", "condense_seconds", "peak_bytes", "hardware", "commit", "command"]
_DIFFERENCE = ["difference_points", "difference_low", "difference_high"]
COLUMNS = [*_KEY, "status", *_MEASURED, "seeds", *_PUBLISHED, *_DIFFERENCE, *_SHARES, *_ABOUT]


def runs(declaration: Declaration, workspace: Workspace) -> list[Finished]:
    """Return the finished evaluations with a table's methods, networks and label strategies."""
    ran = finished(workspace, declaration.methods, declaration.evaluators)
    if declaration.families:
        return [cell for cell in ran if ", changed: " not in cell.name()]
    return [cell for cell in ran if cell.settings.get("labels") in (None, *declaration.labels)]


def table(declaration: Declaration, ran: Sequence[Finished], failed: Sequence[Failed] = ()) -> pd.DataFrame:
    """Return tidy rows, with ``COLUMNS``, for every cell of a table and every protocol by which it was run or failed.

    Data sets of the paper come first, with a row for every cell, run or not. Other data sets follow if they were run.
    ``protocol`` is the preset with the changed settings, and ``cell_protocol`` says whose settings the cell has, like
    the protocol of ``dcbench run``. A baseline has a row for every protocol with the same data and evaluation, and the
    whole data set has one for every IPC.
    """
    lines = [line for where in _rows(declaration, ran) for line in _lines(declaration, *where, ran, failed)]
    further = ["family", "published_family"] if declaration.families else []
    found = _with_shares(pd.DataFrame(lines, columns=[*COLUMNS, *further]))
    return found.astype({name: "Int64" for name in found.columns if name.endswith("_networks") and "std" not in name})


def records(found: pd.DataFrame) -> list[Row]:
    """Return a table's rows as dictionaries, with ``None`` for missing values."""
    rows = found.to_dict("records")
    return [{name: None if pd.isna(value) else value for name, value in row.items()} for row in rows]


def grouped(rows: Iterable[Row], columns: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Return a table's rows by their values in ``columns``, in order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in columns), []).append(row)
    return groups


def _rows(declaration: Declaration, ran: Iterable[Finished]) -> Iterator[tuple[str, int]]:
    """Yield data set and IPC of every row: those of the paper, then others with enough results to compare."""
    filled: dict[tuple[str, int], set[Any]] = {}
    for cell in ran:
        if cell.ipc is not None:
            filled.setdefault((cell.dataset, cell.ipc), set()).add(_column(declaration, cell))
    least = 1 if declaration.columns == "method" else 2  # a comparison of labels or of networks needs two
    enough = {where for where, columns in filled.items() if len(columns) >= least}
    own = {(dataset, ipc) for dataset, ipcs in declaration.datasets.items() for ipc in ipcs}
    order = list(declaration.datasets)
    yield from sorted(own | enough, key=lambda w: (order.index(w[0]) if w[0] in order else len(order), *w))


def _column(declaration: Declaration, cell: Finished) -> Any:
    across = {"method": cell.method, "labels": cell.settings.get("labels"), "evaluator": cell.evaluator}
    return across[declaration.columns]


def _lines(
    declaration: Declaration, dataset: str, ipc: int, ran: Iterable[Finished], failed: Iterable[Failed]
) -> Iterator[dict[str, Any]]:
    here = [cell for cell in ran if cell.dataset == dataset and cell.ipc in (ipc, None)]
    lost = [f for f in failed if f.row["dataset"] == dataset and f.row["ipc"] in (ipc, None)]
    across = (declaration.evaluators, declaration.compared or ("",), declaration.methods)
    for protocol, cells in _protocols(declaration, here, lost).items():
        for evaluator, labels, method in product(*across):
            fitting = [c for c in cells if (c.evaluator, c.method) == (evaluator, method)]
            cell = chosen([c for c in fitting if not labels or c.settings.get("labels") == labels])
            where = dict(zip(_KEY, (dataset, ipc, protocol, method, evaluator, labels), strict=True))
            failure = next((f for f in lost if _is_at(declaration, f, where)), None)
            if cell is not None or failure is not None or method not in declaration.further:
                yield _line(declaration, where, cell, failure)


def _protocols(
    declaration: Declaration, ran: Sequence[Finished], failed: Iterable[Failed]
) -> dict[str, Sequence[Finished]]:
    """Return finished evaluations by protocol, including protocols by which all cells failed.

    If there is no protocol, the result is ``paper`` without evaluations.
    """
    found: dict[str, Sequence[Finished]] = {**by_protocol(ran, declaration.varied)}
    for f in (f for f in failed if _belongs(declaration, f)):
        if not any(f.is_under(name, declaration.varied) for name in found):
            found[f.name(declaration.varied)] = []
    return found or {"paper": []}


def _belongs(declaration: Declaration, failed: Failed) -> bool:
    """Return whether a failed cell has networks and label strategies of the table, like those of :func:`runs`."""
    labels = failed.changes.get("labels")
    return bool(set(failed.evaluators) & set(declaration.evaluators)) and labels in (None, *declaration.labels)


def _is_at(declaration: Declaration, failed: Failed, where: Mapping[str, Any]) -> bool:
    return (
        failed.is_in(where["dataset"], where["ipc"], where["method"], where["evaluator"])
        and failed.is_under(where["protocol"], declaration.varied)
        and (not where["labels"] or failed.has_labels(where["labels"]))
    )


def _line(
    declaration: Declaration, where: Mapping[str, Any], cell: Finished | None, failure: Failed | None
) -> dict[str, Any]:
    dataset, ipc, method = where["dataset"], where["ipc"], where["method"]
    own_ipc = None if method == WHOLE else ipc
    what = (declaration.published, dataset, own_ipc, method, where["evaluator"], where["labels"])
    printed = published(*what, any_network=bool(declaration.families))
    line = {**where, "status": _status(method, cell, failure), **_printed(printed)}
    if declaration.families:
        line["family"] = declaration.family(method, cell.settings if cell else {})
        line["published_family"] = declaration.family(method, _settings_of_paper(dataset, ipc, method))
    if printed is not None:
        whole = published(declaration.published, dataset, None, WHOLE, where["evaluator"])
        line["published_share_of_whole"] = _ratio(printed.mean, whole.mean) if whole else None
        line["published_share_of_images"] = 1.0 if method == WHOLE else _published_share_of_images(dataset, ipc)
    if cell is not None:
        line |= _measured(cell)
    if cell is not None and printed is not None and not (declaration.families and printed.note):
        own = [cell.summary[f"{COMPARED}{end}"] for end in ("", "_low", "_high")]
        points = (None if value is None else round(100 * (value - printed.mean), 6) for value in own)
        line |= dict(zip(_DIFFERENCE, points, strict=True))
    return line


@cache
def _settings_of_paper(dataset: str, ipc: int, method: str) -> Mapping[str, Any]:
    """Return a method's settings under preset ``paper``; none if it is not installed."""
    return vars(resolve(method, dataset, ipc).settings) if [*implemented([method])] else {}


def _status(method: str, cell: Finished | None, failure: Failed | None) -> str:
    if cell is not None:
        return RUN
    if not registry.has("methods", method):
        return NOT_IMPLEMENTED
    if problem := import_problem(method):
        return f"{BROKEN}: {problem}"
    return failure.status if failure else NOT_RUN


def _printed(printed: Published | None) -> dict[str, Any]:
    if printed is None:
        return {}
    values = (printed.mean, printed.std, printed.source, printed.note, "; ".join(printed.others))
    return dict(zip(_PUBLISHED, values, strict=True))


def _measured(cell: Finished) -> dict[str, Any]:
    s = cell.summary
    return {
        **{name: s[name] for name in (*_MEASURED, "seeds", *_ABOUT[1:])},
        "cell_protocol": with_sets(cell.protocol, len(cell.rows)),
        "share_of_images": _ratio(cell.made["distilled_images"], cell.training_images),
    }


def _published_share_of_images(dataset: str, ipc: int) -> float | None:
    images = training_images(dataset)
    return _ratio(ipc * registry.load_source(dataset).classes, images) if images else None


def _ratio(part: float, whole: float | None) -> float | None:
    return round(part / whole, 9) if whole else None


def _with_shares(found: pd.DataFrame) -> pd.DataFrame:
    """Return the table with accuracies as shares of the whole data set's, for the same protocol and network."""
    same = ["dataset", "ipc", "protocol", "evaluator"]
    whole = found[found["method"] == WHOLE].set_index(same)[COMPARED].astype(float)
    beside = [whole.get(tuple(key)) for key in found[same].itertuples(index=False)]
    shares = (found[COMPARED].astype(float) / pd.Series(beside, index=found.index, dtype=float)).round(9)
    return found.assign(share_of_whole=shares)


def missing(
    declaration: Declaration, wanted: Iterable[CellConfig], ran: Iterable[Finished]
) -> list[tuple[CellConfig, str]]:
    """Return those of the cells ``wanted`` that were not run by their own unchanged preset, each with a network."""
    ran = [cell for cell in ran if cell.name(declaration.varied) == cell.preset + MARK * cell.is_shipped]
    return [(c, e) for c in wanted for e in c.evaluators if not any(_is_it(declaration, c, e, cell) for cell in ran)]


def _is_it(declaration: Declaration, wanted: CellConfig, evaluator: str, cell: Finished) -> bool:
    protocol, _, _ = wanted.protocol.partition(", changed: ")
    asked = declaration.varied - set(wanted.settings.inert())
    return (
        (cell.dataset, cell.method, cell.evaluator) == (row_name(wanted.dataset), wanted.method, evaluator)
        and cell.ipc in (wanted.ipc, None)
        and (cell.preset, cell.protocol) == (wanted.preset, protocol)
        and all(cell.settings.get(name) == getattr(wanted.settings, name, None) for name in asked)
    )
