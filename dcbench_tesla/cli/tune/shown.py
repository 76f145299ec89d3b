"""What `dcbench tune` prints: the trials of every method, best first, and the command that runs the best settings."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from dcbench_tesla.cells.evaluation import Accuracy
from dcbench_tesla.cli.common import terminal_width
from dcbench_tesla.cli.shown import output
from dcbench_tesla.compare.changes import in_words
from dcbench_tesla.compare.table import fitted, wrapped
from dcbench_tesla.config import Tuned, as_text, resolved_again, shown_dataset
from dcbench_tesla.records.progress import duration
from dcbench_tesla.records.workspace import DEFAULT_OUT
from dcbench_tesla.tuning.trials import Row, Search, best_first

_SHOWN = 10


class Searched(NamedTuple):
    """A search and its trials, by number; ``reason`` says why it failed, or is empty."""

    search: Search
    rows: Sequence[Row]
    reason: str = ""

    @property
    def best(self) -> Row:
        """The best trial."""
        return best_first(self.rows)[0]

    @property
    def command(self) -> str:
        """The command that runs the best settings."""
        return resolved_again(self.search.config, tuned=Tuned(len(self.rows), self.best["values"])).command


def show_searches(found: Sequence[Searched], trials: int, out: Path) -> None:
    """Print a table of all methods, one of the best trials of each, and the commands."""
    if not found:
        return
    width, first = terminal_width(), found[0].search
    c = first.config
    about = f"data set {shown_dataset(c.dataset)}, IPC {c.ipc}, preset {c.preset}, seed {c.seed}, {trials} trials each"
    head = f"Validation accuracy in %: mean ± standard deviation over {first.evaluator} networks; no test image is seen"
    for line in (*wrapped(head, width), *wrapped(about, width), "", *_methods(found, width)):
        click.echo(line)
    for each in found:
        click.echo()
        for line in _trials(each, width):
            click.echo(line)
    click.echo()
    elsewhere = f" --out {shlex.quote(str(out))}" if out != Path(DEFAULT_OUT) else ""
    for each in found:
        click.echo(f"{each.search.config.method}: {each.command}{elsewhere}")


def _methods(found: Sequence[Searched], width: int) -> list[str]:
    """Return the lines of the table with a row for every method: that each had as many trials, and what it won."""
    body = []
    for each in found:
        own = each.rows[0] if each.search.preset_values is not None else None
        took = sum(row["seconds"] for row in each.rows)
        texts = [str(len(each.rows)), "" if own is None else _accuracy(own), _accuracy(each.best), duration(took)]
        body.append([each.search.config.method, *texts])
    told = [_words(each.best["values"]) for each in found]
    head = ["method", "trials", "of the preset", "of the best trial", "time"]
    return fitted(head, body, width, told=told, told_as="chosen")


def _trials(each: Searched, width: int) -> list[str]:
    """Return the lines of the table of a method's best trials."""
    rows = best_first(each.rows)[:_SHOWN]
    body = [[str(row["number"]), _accuracy(row), duration(row["seconds"])] for row in rows]
    told = [" ".join([_words(row["values"]), *_notes(row)]) for row in rows]
    shown = fitted(["trial", "accuracy", "time"], body, width, told=told)
    return [f"{each.search.config.method}: {'all' if len(rows) == len(each.rows) else 'the best'} trials", *shown]


def _notes(row: Row) -> list[str]:
    return [f"(as trial {row['same_as']})"] if "same_as" in row else []


def _accuracy(row: Row) -> str:
    """Return a trial's accuracy in percent, or why it has none."""
    if not row["validation"]:
        return str(row["status"])
    return str(Accuracy.of(row["validation"], 0)).removesuffix(" %")


def _words(values: Mapping[str, Any]) -> str:
    return in_words({label: as_text(value) for label, value in values.items()})


def emit_searches(found: Sequence[Searched], trials: int) -> None:
    """Print the searches as JSON."""
    c = found[0].search.config
    output.emit(
        output.Tune(
            dataset=shown_dataset(c.dataset),
            ipc=c.ipc,
            preset=c.preset,
            seed=c.seed,
            evaluator=found[0].search.evaluator,
            trials=trials,
            searches=[_as_json(each) for each in found],
        )
    )


def _as_json(each: Searched) -> output.Search:
    names = ("number", "values", "status", "validation", "seconds", "reason", "same_as")
    return output.Search(
        method=each.search.config.method,
        key=each.search.key,
        space=each.search.described,
        reason=each.reason,
        chosen=each.best["values"] if each.rows else {},
        command=each.command if each.rows else "",
        trials=[output.Trial(**{n: row[n] for n in names if n in row}) for row in best_first(each.rows)],
    )
