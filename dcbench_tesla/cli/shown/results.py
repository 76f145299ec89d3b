"""What a finished run shows: a table of accuracies, or the same as JSON."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from dcbench_tesla.cli.common import terminal_width

if TYPE_CHECKING:
    from dcbench_tesla.backends.base import Outcome
    from dcbench_tesla.cells.cell import Cell
    from dcbench_tesla.cells.result import CellResult
    from dcbench_tesla.cli.shown import output

_KEYS = ("method", "data set", "IPC", "seed", "evaluator", "preset")
_NUMBERS = ("last", "best on validation", "best on test", "points over random")
_SAME = ("best on validation", "best on test")  # as last, where one set was tested


def show_results(results: "Sequence[CellResult]", baselines: "Mapping[str, Cell]") -> None:
    """Print the accuracies of finished cells beside their baselines, and where the cells are."""
    if not results:
        return
    for line in table([row for result in results for row in _rows(result, baselines)], terminal_width()):
        click.echo(line)
    click.echo()
    for result in results:
        if result.cell.place.distilled.exists():
            click.echo(f"{result.cell.config.method}: {result.folder}")
        else:
            click.echo(f"{result.cell.config.method}: its rows are here, but not its images; --force makes them again")


def table(rows: "Sequence[Mapping[str, Any]]", width: int) -> list[str]:
    """Return the lines of the table of results.

    What all rows share stands once above it; a row has only what differs. A column that says nothing is left out.

    Args:
        rows: texts by the names of the columns, and ``changes``: what the cell changed of its preset.
        width: the columns of the terminal.
    """
    from dcbench_tesla.compare.changes import differing, in_words, shared
    from dcbench_tesla.compare.table import fitted, wrapped

    same = {name for name in _KEYS if len({row[name] for row in rows}) == 1 and name != "method"}
    keys = [name for name in _KEYS if name not in same]
    numbers = [name for name in _NUMBERS if _says_something(rows, name)]
    changes = [row["changes"] for row in rows]
    above = [f"{name} {rows[0][name]}" for name in _KEYS if name in same]
    above += [f"changed: {in_words(shared(changes))}"] if shared(changes) else []
    one_set = [] if set(_SAME) & set(numbers) else [", of the only set that was tested"]
    head = f"Test accuracy in %: mean ± standard deviation over networks{''.join(one_set)}"
    body = [[row[name] for name in (*keys, *numbers)] for row in rows]
    shown = fitted([*keys, *numbers], body, width, keys=len(keys), told=differing(changes), told_as="changed")
    return [*wrapped(head, width), *wrapped(", ".join(above), width), "", *shown]


def _says_something(rows: "Sequence[Mapping[str, Any]]", name: str) -> bool:
    """Return whether a column is shown: of accuracies ``last`` alone where all are the same, as one set was tested."""
    if name in _SAME and all(row[other] in ("", row["last"]) for row in rows for other in _SAME):
        return False
    return name == "last" or any(row[name] for row in rows)


def _rows(result: "CellResult", baselines: "Mapping[str, Cell]") -> list[dict[str, Any]]:
    """Return a row of the table for each evaluator of a finished cell."""
    from dcbench_tesla.compare.changes import changes_of, own_protocol

    c = result.cell.config
    made = result.cell.workspace.row("condense", result.cell.key)
    return [
        {
            "method": c.method,
            "data set": result.cell.dataset.name,
            "IPC": str(c.ipc) if result.cell.method.uses_ipc else "all",
            "seed": str(c.seed),
            "evaluator": _with_recipe(result, name),
            "preset": own_protocol(c.protocol),
            "changes": changes_of(result.rows[name], made),
            "last": _percent(result.rows[name]["accuracy"]["last"]),
            "best on validation": _percent(result.rows[name]["accuracy"]["best_on_validation"]),
            "best on test": _percent(result.rows[name]["accuracy"]["best_on_test"]),
            "points over random": "" if (lead := _lead(result, baselines, name)) is None else f"{100 * lead:+.1f}",
        }
        for name in c.evaluators
        if name in result.rows
    ]


def _percent(accuracy: Mapping[str, Any] | None) -> str:
    """Return an accuracy in percent; one of a single network says so."""
    if accuracy is None:
        return ""
    text = f"{100 * accuracy['mean']:.1f}"
    return f"{text} (n=1)" if len(accuracy["values"]) == 1 else f"{text} ± {100 * accuracy['std']:.1f}"


def _with_recipe(result: "CellResult", evaluator: str) -> str:
    """Return an evaluator's name, with the authors' recipe if its networks were trained by one."""
    recipe: str = result.rows[evaluator]["recipe"] if evaluator in result.rows else ""
    return f"{evaluator} by {recipe.partition(':')[0]}" if recipe.startswith("authors") else evaluator


def _lead(result: "CellResult", baselines: "Mapping[str, Cell]", evaluator: str) -> float | None:
    """Return a cell's accuracy minus its baseline's, or ``None`` if the baseline is not finished."""
    baseline = baselines.get(result.cell.key)
    other = type(result)(baseline) if baseline else None
    if other is None or evaluator not in other.rows:
        return None
    if _with_recipe(result, evaluator) != _with_recipe(other, evaluator):
        return None  # trained by other recipes: nothing to compare
    own, beside = result.accuracy(evaluator), other.accuracy(evaluator)
    return own.mean - beside.mean if own and beside else None


# ---- JSON ------------------------------------------------------------------------------------------------------------


def emit_results(cells: "Sequence[tuple[Cell, Outcome]]", baselines: "Mapping[str, Cell]") -> None:
    """Print how every cell of a run ended, with the accuracies, as JSON."""
    from dcbench_tesla.cli.shown.output import Run, emit

    emit(Run(cells=[_as_json(cell, outcome, baselines) for cell, outcome in cells]))


def _as_json(cell: "Cell", outcome: "Outcome", baselines: "Mapping[str, Cell]") -> "output.Cell":
    from dcbench_tesla.cells.result import CellResult
    from dcbench_tesla.cli.shown import output
    from dcbench_tesla.compare.changes import changes_of

    result = CellResult(cell)
    made = cell.workspace.row("condense", cell.key)
    acting = {n: v for row in result.rows.values() for n, v in changes_of(row, made).given.items()}
    c = cell.config
    return output.Cell(
        name=cell.name,
        method=c.method,
        dataset=cell.dataset.name,
        ipc=c.ipc if cell.method.uses_ipc else None,
        seed=c.seed,
        preset=c.preset,
        settings=acting if result.rows else c.changes,
        status=outcome.status,
        reason=outcome.reason,
        folder=str(result.folder) if result.folder.exists() else None,
        evaluations=[
            output.evaluation_of(row, changes_of(row, made).given, _lead(result, baselines, name))
            for name, row in result.rows.items()
        ],
    )
