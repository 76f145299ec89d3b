"""The accuracy of every method by the labels that networks are trained with, beside ``random`` with the same labels.

``dcbench compare regimes`` reads rows. A line is a method, and columns are label regimes: ``hard``, the classes of the
set's labels; ``stored``, the set's own labels; ``teacher``, the labels of a trained network on every augmented batch.
The difference to ``random`` is that of pairs with the same seed, evaluator, recipe and regime.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd

from dcbench_tesla import registry
from dcbench_tesla.compare.accuracy import (
    SECTION,
    Cell,
    Section,
    Wanted,
    found,
    in_markdown,
    labelled,
    letters,
    network_settings,
    networks_of,
    shown,
    summary,
    title_of,
    told_labels,
)
from dcbench_tesla.compare.changes import without_effect
from dcbench_tesla.compare.statistics import Comparison, compare, corrected, decided
from dcbench_tesla.config import BASELINE, OWN_LABELS, TEACHER_LABELS
from dcbench_tesla.records.store import content_key
from dcbench_tesla.records.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGIMES = {"hard": "hard", OWN_LABELS: "stored", TEACHER_LABELS: "teacher"}
"""The regimes in the order of the columns, each with its name there."""

_Row = Mapping[str, Any]
_DECIDED = " *"
_OF_LABELS = re.compile(r" --set evaluation\.(?:labels|teacher_epochs|temperature)=\S+")
_OF_THE_TEACHER = re.compile(r" --set evaluation\.(?:teacher_epochs|temperature)=\S+")
_PANEL = (5.6, 0.32, 1.3)  # inches: width, height of a line, of the rest
_APART = 0.22  # of the height of a line


def regimes(workspace: Workspace, wanted: Wanted) -> pd.DataFrame:
    """Return one tidy row for every method, settings, evaluator and label regime, over all seeds that were run.

    The columns are those of :func:`~dcbench_tesla.compare.accuracy.accuracies`, and ``regime``, ``teacher`` (its epochs
    and temperature; empty for other regimes), ``teacher_epochs``, ``teacher_key``, ``teacher_test`` (its own accuracy
    on the test images, as a fraction; empty in older rows), ``seed_numbers``, ``over_random`` (the mean difference to
    ``random`` in pairs of seeds, or of networks where one seed is shared, as a fraction), ``over_random_low`` and
    ``over_random_high`` (the ends of its interval at 95 %), ``over_random_p`` (corrected for all methods compared with
    the same ``random`` in pairs of the same unit), ``over_random_pairs``, and ``over_random_unit``, of what the pairs
    are; all of these are empty where ``random`` has no such row.

    Raises:
        DcbenchError: no finished evaluation is among the wanted ones.
    """
    groups = found(workspace, wanted)
    table = labelled(pd.DataFrame([_columns(rows) for rows in groups])).sort_index()
    table = table.astype({"ipc": "Int64", "teacher_epochs": "Int64"})
    places = [_place(row) for row in table.to_dict("records")]
    random = {}
    for i, place in enumerate(places):
        if table["method"].iloc[i] == BASELINE:
            random[place, _data(groups[i][0])] = groups[i]
    of_random = [random.get((place, _data(rows[0]))) for rows, place in zip(groups, places, strict=True)]
    table = table.join(pd.DataFrame(_over(groups, of_random, places)))
    order = table["regime"].map({name: number for number, name in enumerate(REGIMES)})
    by = [*SECTION, "column", "recipe", "method", "condensation", "order"]
    return table.assign(order=order).sort_values(by, ignore_index=True).drop(columns="order")


def _columns(rows: Sequence[_Row]) -> dict[str, Any]:
    """Return the columns of a group of evaluations; recipe and settings of the network are without the labels."""
    first = rows[0]
    plain = {name: value for name, value in first.items() if name != "labels"}
    labels = first.get("labels", {})
    return {name: value for name, value in summary(rows).items() if name != "labels"} | {
        "recipe": first["recipe"],
        "evaluator_settings": network_settings(plain, without_effect(first, first["made"])),
        "regime": labels.get("regime", OWN_LABELS),
        "teacher": told_labels(first).removeprefix(", ") if "epochs" in labels else "",
        "teacher_epochs": labels.get("epochs"),
        "teacher_key": labels.get("experts", ""),
        "teacher_test": max((row["teacher_test"] for row in rows if "teacher_test" in row), default=None),
        "seed_numbers": " ".join(map(str, sorted(row["seed"] for row in rows))),
    }


def _place(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Return what a method and ``random`` must share to be compared, besides seeds and data."""
    ipc = None if pd.isna(row["ipc"]) else int(row["ipc"])
    names = ("dataset", "preset", "data", "column", "regime", "teacher", "teacher_key")
    return (ipc, row.get("origin"), *(row[name] for name in names))


def _data(row: _Row) -> str:
    """Return the key of the images that a method was given: their split and preprocessing."""
    return content_key(row["made"]["identity"]["data"]) if row["made"] else ""


def _over(
    groups: Sequence[Sequence[_Row]], randoms: Sequence[Sequence[_Row] | None], places: Sequence[tuple[Any, ...]]
) -> list[dict[str, Any]]:
    """Return the columns of the paired difference of every group to ``random``.

    p is corrected by place and by what pairs are of: networks of one set do not speak of the same as seeds.
    """
    pairs = [
        None if random is None or random is rows else compare(networks_of(rows, "last"), networks_of(random, "last"))
        for rows, random in zip(groups, randoms, strict=True)
    ]
    together: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        together[place, (pair := pairs[i]) and pair.unit].append(i)
    p: dict[int, float | None] = {}
    for own in together.values():
        p |= zip(own, corrected([pair.p if (pair := pairs[i]) else None for i in own]), strict=True)
    return [_difference_columns(pair, p[i]) for i, pair in enumerate(pairs)]


def _difference_columns(pair: Comparison | None, p: float | None) -> dict[str, Any]:
    known = pair if pair is not None and pair.pairs else None
    return {
        "over_random": known and known.difference,
        "over_random_low": known and known.low,
        "over_random_high": known and known.high,
        "over_random_p": p,
        "over_random_pairs": known and known.pairs,
        "over_random_unit": known and known.unit,
    }


# ---- the tables ------------------------------------------------------------------------------------------------------


def markdown(table: pd.DataFrame, *, width: int | None = None) -> str:
    """Return the ``table`` of :func:`regimes` as Markdown; one wider than ``width`` is broken into several."""
    return in_markdown(sections(table), width=width)


def sections(table: pd.DataFrame) -> list[Section]:
    """Return a table for every data set, IPC, preset, evaluator and recipe, with a line for every method."""
    groups = table.groupby([*SECTION, "column"], dropna=False, sort=True)
    return [_section(tuple(key), rows) for key, rows in groups]


def _section(key: tuple[Any, ...], rows: pd.DataFrame) -> Section:
    dataset, ipc, preset, data, column = key
    title, beside = title_of(dataset, ipc, preset, data)
    rows = _named(rows)
    cells: dict[tuple[str, str], Cell] = {}
    for row in _shown(rows):
        number = float(row["last"])
        cells[row["line"], row["name"]] = Cell(shown(row, "last"), number)
        cells[row["line"], f"{row['name']} - random"] = _difference(row)
    names = _names(rows)
    names += [f"{name} - random" for name in names if any((line, name) in cells for line, _ in cells)]
    lines = sorted(dict.fromkeys(line for line, _ in cells), key=lambda line: _best(cells, line))
    several = " ± over seeds (how many)" if (rows["seeds"] > 1).any() else ""
    return Section(
        title=f"{title}: {column}",
        about="Test accuracy `last` in % by the labels that networks were trained with: mean ± standard deviation over "
        f"networks{several}; and the points over `random` with the same labels, in pairs of seeds, or of networks "
        "where one seed is shared [their interval, 95 %].",
        head=["method", *names],
        body=[[Cell(line), *(cells.get((line, name), Cell("")) for name in names)] for line in lines],
        notes=[*beside, *_notes(rows, column)],
        rows=rows,
    )


def _shown(rows: pd.DataFrame) -> Iterator[dict[Any, Any]]:
    """Yield the rows of a table; of several of one set, the one that evaluated most snapshots comes last."""
    yield from rows.sort_values("evaluated_sets", kind="stable").to_dict("records")


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table with the ``name`` of their columns; of several teachers that of fewest epochs is 1."""
    names = rows["regime"].map(REGIMES)
    taught = rows[rows["regime"] == TEACHER_LABELS]
    number = taught.groupby(["teacher_epochs", "teacher", "teacher_key"]).ngroup() + 1
    if number.nunique() > 1:
        names = names.where(rows["regime"] != TEACHER_LABELS, names + " " + number.astype(str))
    return rows.assign(name=names)


def _names(rows: pd.DataFrame) -> list[str]:
    """Return the columns of accuracies in order; those of regimes without a row are there, and stay empty."""
    there = [(list(REGIMES).index(row["regime"]), row["name"]) for row in rows.to_dict("records")]
    known = set(rows["regime"])
    lacking = [(number, name) for number, (regime, name) in enumerate(REGIMES.items()) if regime not in known]
    return [name for _, name in sorted({*there, *lacking})]


def _difference(row: Mapping[Any, Any]) -> Cell:
    if pd.isna(row["over_random"]):
        return Cell("")
    text = f"{100 * row['over_random']:+.1f}"
    if not pd.isna(row["over_random_low"]):
        text += f" [{100 * row['over_random_low']:+.1f}, {100 * row['over_random_high']:+.1f}]"
    return Cell(text + (_DECIDED if _is_decided(row["over_random_p"]) else ""), float(row["over_random"]))


def _best(cells: Mapping[tuple[str, str], Cell], line: str) -> float:
    """Return the accuracy by which lines are ordered: that of the set's own labels, else any."""
    found = [cells.get((line, name), Cell("")).number for name in ("stored", *REGIMES.values())]
    return next((number for number in found if number is not None), -1.0)


def _notes(rows: pd.DataFrame, column: str) -> list[str]:
    recipes = dict.fromkeys(f"{column}: {row['recipe']}; {row['networks']} networks" for row in rows.to_dict("records"))
    taught = [row for row in rows.to_dict("records") if row["teacher"]]
    teachers: dict[str, dict[str, None]] = defaultdict(dict)
    for row in sorted(taught, key=lambda row: row["name"]):
        own = teachers[f"{row['name']}: {row['teacher']}, expert 0 of {row['teacher_key']}"]
        own |= {} if pd.isna(row["teacher_test"]) else {f"{100 * row['teacher_test']:.1f}": None}
    whose = [f"{told}, {' or '.join(own)} % of the test images" if own else told for told, own in teachers.items()]
    return [*recipes, *whose, *_told_differences(rows), *letters(rows)]


def _told_differences(rows: pd.DataFrame) -> list[str]:
    """Return how many differences to ``random`` are decided, by column, and what their pairs are of."""
    notes = []
    compared = rows.dropna(subset=["over_random"])
    for name in _names(rows):
        told = [_decided_of(unit, own) for unit, own in compared[compared["name"] == name].groupby("over_random_unit")]
        notes += [f"{name}: {'; '.join(reversed(told))}"] if told else []
    if notes:
        notes.append(
            "`*`: decided at 5 % (paired t test, corrected by Benjamini and Hochberg for all pairs of seeds of the "
            "column, and for all pairs of networks, which speak of these sets only)"
        )
    return notes


def _decided_of(unit: Any, own: pd.DataFrame) -> str:
    """Return how many differences to ``random`` are decided of those whose pairs are of ``unit``."""
    is_decided = own["over_random_p"].map(_is_decided)
    higher, lower = (int((is_decided & side).sum()) for side in (own["over_random"] > 0, own["over_random"] < 0))
    return f"{higher} of {len(own)} decidedly over `random`, {lower} decidedly below (pairs of {unit})"


def _is_decided(p: float | None) -> bool:
    return p is not None and not pd.isna(p) and decided(p)


# ---- what is missing -------------------------------------------------------------------------------------------------


def missing(table: pd.DataFrame) -> list[str]:
    """Return the commands that make the regimes and seeds that ``table`` lacks beside those it has, each once.

    A regime that an evaluator cannot have is not missing. Of several teachers, the one with most epochs is wanted.
    """
    wanted: dict[tuple[str, tuple[int, ...]], dict[str, None]] = defaultdict(dict)
    for _, rows in table.groupby([*SECTION, "column"], dropna=False, sort=True):
        taught = rows[rows["teacher"] != ""].sort_values("teacher_epochs", kind="stable")
        teacher = "".join(_OF_THE_TEACHER.findall(taught["command"].iloc[-1])) if len(taught) else ""
        wanted_teacher = taught["teacher_epochs"].max()
        options = {regime: f" --set evaluation.labels={regime}" for regime in REGIMES} | {OWN_LABELS: ""}
        options[TEACHER_LABELS] += teacher
        for _, own in rows.groupby("line", sort=False):
            rest, method = _without_method(_OF_LABELS.sub("", str(own["command"].iloc[0])))
            for regime, seeds in _lacking(own, wanted_teacher):
                wanted[f"{rest}{options[regime]}", seeds if method else ()][method] = None
    return [_command(rest, list(methods), seeds) for (rest, seeds), methods in wanted.items()]


def _lacking(own: pd.DataFrame, epochs: int | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the regimes that lack seeds of a line, and these seeds; ``epochs`` are those of the teacher."""
    have, run = {regime: set[int]() for regime in REGIMES}, set[int]()
    for row in own.to_dict("records"):
        seeds = set(map(int, str(row["seed_numbers"]).split()))
        run |= seeds
        if row["regime"] != TEACHER_LABELS or row["teacher_epochs"] == epochs:
            have[row["regime"]] |= seeds
    for regime, seeds in have.items():
        lacking = run - seeds
        if lacking and _can_have(own.to_dict("records")[0], regime):
            yield regime, tuple(sorted(lacking))


def _can_have(row: Mapping[Any, Any], regime: str) -> bool:
    """Return whether an evaluator can be given labels of a regime."""
    if regime != TEACHER_LABELS:
        return True
    known = registry.has("evaluators", row["evaluator"])
    return known and registry.load_evaluator(row["evaluator"]).learns_from_teacher and ": mse" not in row["recipe"]


def _without_method(command: str) -> tuple[str, str]:
    """Return a command of ``dcbench run`` without its method and its seed, and the method; others as they are."""
    words = shlex.split(command)
    if "&&" in words or words[:2] != ["dcbench", "run"]:
        return command, ""
    method = next((value for name, value in pairwise(words) if name == "--method"), "")
    return re.sub(r" --(?:method|seed) \S+", "", command), method


def _command(rest: str, methods: Sequence[str], seeds: Sequence[int]) -> str:
    words = [f"--method {method}" for method in methods if method]
    words += [f"--seed {seed}" for seed in seeds] if [*seeds] != [0] else []
    return f"dcbench run {' '.join(words)}{rest.removeprefix('dcbench run')}" if words else rest


# ---- the figure ------------------------------------------------------------------------------------------------------


def figure(table: pd.DataFrame) -> "Figure | None":
    """Draw accuracy by method and regime, with a panel for every table; ``None`` if no table has two regimes.

    Bars are standard deviations over seeds, or over networks where there is one seed; dashed lines are ``random``.
    """
    from matplotlib.figure import Figure

    panels = [rows for _, rows in table.groupby([*SECTION, "column"], dropna=False, sort=True)]
    panels = [rows for rows in panels if rows["regime"].nunique() > 1]
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = max(rows["line"].nunique() for rows in panels)
    height = (_PANEL[1] * lines + _PANEL[2]) * -(-len(panels) // columns)
    drawn = Figure(figsize=(_PANEL[0] * columns, height), layout="constrained")
    places = list(drawn.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for axes, rows in zip(places, panels, strict=False):
        _draw(axes, rows)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    return drawn


def _draw(axes: "Axes", rows: pd.DataFrame) -> None:
    from dcbench_tesla.compare.looks import PALETTE

    section, rows = sections(rows)[0], _named(rows)
    lines = [line[0].text for line in section.body]
    for number, name in enumerate(_names(rows)):
        own = {row["line"]: row for row in _shown(rows) if row["name"] == name}
        colour, offset = PALETTE[number % len(PALETTE)], (number - 1) * _APART
        points = [(float(row["last"]), lines.index(line) - offset, _spread(row)) for line, row in own.items()]
        if not points:
            continue
        x, y, spread = zip(*points, strict=True)
        style: dict[str, Any] = {"fmt": "os^DvP"[number % 6], "color": colour, "capsize": 2, "markersize": 4}
        row = next(iter(own.values()))
        label = (
            f"{name}: {row['teacher_epochs']} epochs" if row["teacher"] and name != REGIMES[TEACHER_LABELS] else name
        )
        axes.errorbar([100 * v for v in x], y, xerr=[100 * s for s in spread], label=label, **style)
        for row in own.values():
            if row["method"] == BASELINE:
                axes.axvline(100 * float(row["last"]), color=colour, linestyle="--", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [line.replace("`", "") for line in lines], fontsize=8)
    axes.set_title(section.title, fontsize=9)
    axes.set_xlabel("test accuracy, % (last)")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8, title="labels", title_fontsize=8)


def _spread(row: Mapping[Any, Any]) -> float:
    std = row["last_std_seeds"] if row["seeds"] > 1 else row["last_std_networks"]
    return 0.0 if std is None or pd.isna(std) else float(std)
