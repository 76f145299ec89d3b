"""The tables and the figure of docs/results/exact.md, from the rows of results/exact/run.sh.

    uv run python results/exact/summary.py
    uv run python results/exact/summary.py tesla 20 0.05     # prints the chosen lr_images of a method, T and b

Writes ``table.md``, ``table.csv`` and ``exact`` (PNG and SVG) beside this file. Comparisons are those of ``dcbench
compare accuracy``: in pairs of seeds, with intervals at 95 % by Student t.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from dcbench_tesla.compare.files import csv_text, save_figure
from dcbench_tesla.compare.looks import look, ticks_at
from dcbench_tesla.compare.statistics import Comparison, Networks, compare, corrected, interval
from dcbench_tesla.compare.table import aligned
from dcbench_tesla.config import settings_given
from dcbench_tesla.records.rows import stage_rows
from dcbench_tesla.records.store import write_text
from dcbench_tesla.records.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
TRUNCATED, EXACT, UNROLLED = "tesla", "tesla-exact", "mtt"


class Setting(NamedTuple):
    """A number of matching steps T and a rate b of the student."""

    steps: int
    student_lr: float


class Cell(NamedTuple):
    """What distinguishes the cells of a setting."""

    method: str
    lr_images: float
    seed: int


class Accuracies(NamedTuple):
    """The accuracies of a cell's networks: on test images by iteration, and of the last set on validation images."""

    test: dict[int, list[float]]
    validation: float


Found = dict[Setting, dict[Cell, Accuracies]]


def read(folder: Path = HERE) -> Found:
    """Return the accuracies of all evaluations in a results folder."""
    found: Found = defaultdict(dict)
    for row in stage_rows(Workspace(folder), "evaluate"):
        given = settings_given(row["command"])
        setting = Setting(int(given["steps"]), float(given["student_lr"]))
        cell = Cell(row["method"], float(given["lr_images"]), row["seed"])
        tests = {one["iteration"]: one["test"] for one in row["evaluated"]}
        found[setting][cell] = Accuracies(tests, fmean(row["evaluated"][-1]["validation"]))
    return dict(sorted(found.items()))


def chosen(cells: dict[Cell, Accuracies], method: str) -> float:
    """Return the rate of images with which the last set of seed 0 has the best accuracy on validation images."""
    tried = {cell.lr_images: own.validation for cell, own in cells.items() if (cell.method, cell.seed) == (method, 0)}
    return max(tried, key=lambda rate: tried[rate])


def networks(cells: dict[Cell, Accuracies], method: str, rate: float, iteration: int) -> Networks:
    """Return the test accuracies of a method's networks, by seed."""
    own = ((cell.seed, of.test[iteration]) for cell, of in cells.items() if cell[:2] == (method, rate))
    return dict(sorted(own))


def rows(found: Found) -> pd.DataFrame:
    """Return a row for every setting and iteration: both methods' means, and ``tesla-exact`` minus ``tesla`` in pairs.

    ``p`` is corrected for the number of rows. Settings in which a method lacks its second seed are left out.
    """
    lines = []
    for setting, cells in found.items():
        if not {(TRUNCATED, 1), (EXACT, 1)} <= {(cell.method, cell.seed) for cell in cells}:
            continue
        rates = {method: chosen(cells, method) for method in (TRUNCATED, EXACT)}
        for iteration in next(iter(cells.values())).test:
            both = {method: networks(cells, method, rate, iteration) for method, rate in rates.items()}
            pair = compare(both[EXACT], both[TRUNCATED])
            lines.append(_row(setting, iteration, rates, both, pair))
    after = corrected([line["p"] for line in lines])
    return pd.DataFrame([line | {"p": p} for line, p in zip(lines, after, strict=True)])


def _row(
    setting: Setting, iteration: int, rates: dict[str, float], both: dict[str, Networks], pair: Comparison
) -> dict[str, Any]:
    columns: dict[str, Any] = {"steps": setting.steps, "student_lr": setting.student_lr, "iteration": iteration}
    for method, name in ((TRUNCATED, "tesla"), (EXACT, "exact")):
        own = interval(list(both[method].values()))
        assert own is not None, "two seeds have an interval"
        columns |= {
            f"{name}_lr_images": rates[method],
            name: own.mean,
            f"{name}_low": own.low,
            f"{name}_high": own.high,
        }
    return columns | {
        "seeds": pair.pairs,
        "difference": pair.difference,
        "low": pair.low,
        "high": pair.high,
        "p": pair.p,
    }


def grid(found: Found) -> pd.DataFrame:
    """Return the accuracies of the last set of seed 0 at every rate of the images, on test and on validation images."""
    lines = [
        {
            "steps": setting.steps,
            "student_lr": setting.student_lr,
            "method": cell.method,
            "lr_images": cell.lr_images,
            "test": fmean(list(own.test.values())[-1]),
            "validation": own.validation,
        }
        for setting, cells in found.items()
        for cell, own in sorted(cells.items())
        if cell.seed == 0
    ]
    return pd.DataFrame(lines)


def markdown(table: pd.DataFrame, tried: pd.DataFrame) -> str:
    """Return both tables as Markdown."""
    head = ["T", "b", "iteration", "`tesla`", "`tesla-exact`", "difference in points [95 %]", "p"]
    body = [
        [
            f"{row['steps']}",
            f"{row['student_lr']:g}",
            f"{row['iteration']}",
            f"{100 * row['tesla']:.1f} ({row['tesla_lr_images']:g})",
            f"{100 * row['exact']:.1f} ({row['exact_lr_images']:g})",
            f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]",
            f"{row['p']:.2g}",
        ]
        for row in table.to_dict("records")
    ]
    rates = sorted(tried["lr_images"].unique()) if len(tried) else []
    told = [
        [f"{steps}", f"{b:g}", f"`{method}`", *(_of_rate(own, rate) for rate in rates)]
        for (steps, b, method), own in tried.groupby(["steps", "student_lr", "method"])
        if len(own) > 1
    ]
    return "\n".join(
        [
            f"Test accuracy in %, means over {_counts(table)} seeds; `lr_images` in brackets.",
            "p: paired t test, corrected for the lines of the table.",
            "",
            *aligned(head, body),
            "",
            "Seed 0 at every `lr_images`: test accuracy of the last set, validation accuracy in brackets.",
            "",
            *aligned(["T", "b", "method", *(f"{rate:g}" for rate in rates)], told),
            "",
        ]
    )


def _of_rate(own: pd.DataFrame, rate: float) -> str:
    found = own[own["lr_images"] == rate].to_dict("records")
    return f"{100 * found[0]['test']:.1f} ({100 * found[0]['validation']:.1f})" if found else ""


def _counts(table: pd.DataFrame) -> str:
    return " to ".join(map(str, sorted(table["seeds"].unique()))) if len(table) else "no"


def figure(table: pd.DataFrame) -> "Figure":
    """Draw accuracy against b, a panel for every T: dashed in the middle of the condensation, solid at its end."""
    from matplotlib.figure import Figure as NewFigure

    steps: Sequence[int] = sorted(table["steps"].unique())
    drawn = NewFigure(figsize=(4.6 * len(steps), 3.6), layout="constrained")
    panels = drawn.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    for axes, T in zip(panels, steps, strict=True):
        panel = table[table["steps"] == T]
        for iteration, rows_then in panel.groupby("iteration"):
            last = iteration == panel["iteration"].max()
            for method, name in ((TRUNCATED, "tesla"), (EXACT, "exact")):
                low, high = (
                    100 * (rows_then[name] - rows_then[f"{name}_low"]),
                    100 * (rows_then[f"{name}_high"] - rows_then[name]),
                )
                axes.errorbar(
                    rows_then["student_lr"],
                    100 * rows_then[name],
                    [low, high] if last else None,
                    color=look(method).colour,
                    marker=look(method).marker,
                    linestyle="-" if last else "--",
                    capsize=2,
                    label=f"{method}, iteration {iteration}",
                )
        ticks_at(axes, panel["student_lr"], log=True)
        axes.set_title(f"T = {T}")
        axes.set_xlabel("rate b of the student")
    panels[0].set_ylabel("test accuracy, %")
    panels[-1].legend(fontsize="small")
    return drawn


def main(words: Sequence[str]) -> None:
    """Write the tables and the figure; print the rate that was chosen if ``words`` name a method, T and b."""
    found = read()
    if words:
        method, steps, student_lr = words
        sys.stdout.write(f"{chosen(found[Setting(int(steps), float(student_lr))], method):g}\n")
        return
    table = rows(found)
    text = markdown(table, grid(found))
    write_text(HERE / "table.md", text)
    write_text(HERE / "table.csv", csv_text(table))
    if len(table):
        save_figure(figure(table), HERE / "exact")
    sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
