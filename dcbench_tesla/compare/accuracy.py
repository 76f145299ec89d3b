"""The accuracy of every method under every evaluator, from the rows of finished cells (``dcbench compare accuracy``).

Each line of the table is a method with its settings, and each column an evaluator with its recipe. Two standard
deviations are given separately: over the networks trained on one distilled set, which the papers print, and over the
seeds of the condensation. The interval of a mean, and which methods are level with the best of their column, are those
of :mod:`dcbench_tesla.compare.statistics`.
"""

import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dcbench_tesla.compare.changes import RATES, ROUNDING, by_holders, is_own_command, with_letters, without_effect
from dcbench_tesla.compare.statistics import (
    MOST_SEEDS,
    NAMES,
    How,
    Interval,
    Networks,
    Standing,
    interval,
    standings,
)
from dcbench_tesla.compare.table import NARROW, bullet, in_widths, paragraph
from dcbench_tesla.config import OWN_LABELS, TEACHER_LABELS, settings_given, with_sets
from dcbench_tesla.errors import DcbenchError
from dcbench_tesla.records.progress import duration, size
from dcbench_tesla.records.rows import STATISTICS, stage_rows, tell_contents_apart
from dcbench_tesla.records.store import content_key
from dcbench_tesla.records.text import on_one_line
from dcbench_tesla.records.workspace import MARK, SHIPPED, Workspace

_DIGITS = 6  # of fractions that statistics are made of
_LEVEL = "`*`"
SECTION = ["dataset", "ipc", "preset", "data"]
"""The columns in which the tables differ."""
_OF_LABELS = {"regime": "labels", "epochs": "teacher_epochs", "temperature": "temperature", "experts": "teacher"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The rows to compare; an empty collection means all. ``labels``: those of ``evaluation.labels``."""

    datasets: Collection[str] = ()
    methods: Collection[str] = ()
    ipcs: Collection[int] = ()
    evaluators: Collection[str] = ()
    presets: Collection[str] = ()
    labels: Collection[str] = ()

    def has(self, row: dict[str, Any]) -> bool:
        """Return whether an evaluation's row is among them."""
        asked = (
            (self.datasets, row["dataset"]),
            (self.methods, row["method"]),
            (self.ipcs, row["ipc"]),
            (self.evaluators, row["evaluator"]),
            (self.presets, row["preset"]),
            (self.labels, row.get("labels", {}).get("regime", OWN_LABELS)),
        )
        return all(not names or value in names for names, value in asked)


def accuracies(workspace: Workspace, wanted: Wanted, *, by: How = "t") -> pd.DataFrame:
    """Return one tidy row for every method, settings and evaluator, over all seeds that were run.

    Accuracies are fractions of the test set. For each statistic there are these columns:

    - ``<statistic>``: the mean over seeds of the means over networks.
    - ``<statistic>_networks``: how many networks were trained on that set (snapshots have fewer than the final set).
    - ``<statistic>_std_networks``: the standard deviation over the networks of one seed (population standard
      deviations, root mean square over seeds); empty for one network.
    - ``<statistic>_std_seeds``: the population standard deviation of the seeds' means; empty for one seed.
    - ``<statistic>_low``, ``<statistic>_high``, ``<statistic>_unit``: the ends of the interval of the mean at 95 %, and
      what it is over: ``seeds``, or the ``networks`` of one set, of which alone it then speaks. Empty for one value.
    - ``<statistic>_to_best``, ``<statistic>_to_best_low``, ``<statistic>_to_best_high``: the difference to the best
      method of the column of the table, in pairs of seeds or networks, with its interval; empty for the best itself.
    - ``<statistic>_p``: its p, corrected for all pairs of the column; ``<statistic>_level``: whether the method is the
      best or not decidedly worse; ``<statistic>_seeds_needed``: how many seeds would decide between the two.

    ``condense_seconds`` and ``peak_bytes`` are means over the seeds that ran by one commit on one machine, as most did,
    and empty if they were not measured. If committed rows are read too, ``origin`` tells them from the user's own.
    ``labels``, if it is there, has the label regime of rows whose networks were trained with other labels than the
    set's own.

    Args:
        workspace: the results folder.
        wanted: which rows to compare.
        by: how intervals are made: by Student t, or by a bootstrap.

    Raises:
        DcbenchError: no finished evaluation is among the wanted ones.
    """
    groups = found(workspace, wanted)
    summaries = [summary(rows, by) for rows in groups]
    table = pd.DataFrame(summaries).join(pd.DataFrame(_standings(summaries, groups)))
    table = table.astype({f"{name}_level": object for name in STATISTICS})
    table["ipc"] = table["ipc"].astype("Int64")
    return table.sort_values([*SECTION, "evaluator", "recipe", "last", "method", "condensation"], ignore_index=True)


def curves(workspace: Workspace, wanted: Wanted) -> pd.DataFrame:
    """Return the rows of :func:`accuracies`, each repeated for every evaluated distilled set: one row per point.

    Adds ``evaluation`` (a key that all points of an evaluation share), ``iteration``, ``test`` (mean over seeds of the
    means over networks), and ``test_std_networks``, ``test_std_seeds`` and ``test_networks``, defined as there.

    Raises:
        DcbenchError: no finished evaluation is among the wanted ones.
    """
    table = pd.DataFrame([point for rows in found(workspace, wanted) for point in _curve(rows)])
    table["ipc"] = table["ipc"].astype("Int64")
    by = [*SECTION, "evaluator", "recipe", "method", "condensation", "iteration"]
    return table.sort_values(by, ignore_index=True)


def found(workspace: Workspace, wanted: Wanted) -> list[list[dict[str, Any]]]:
    """Return the groups of :func:`evaluations`.

    Raises:
        DcbenchError: there are none.
    """
    groups = evaluations(workspace, wanted)
    if not groups:
        raise DcbenchError(
            f"no finished evaluation under {workspace.root} matches: dcbench list cells shows those that exist, "
            "dcbench run and dcbench evaluate add more; in a checkout, --shipped adds the committed ones."
        )
    return groups


def evaluations(workspace: Workspace, wanted: Wanted) -> list[list[dict[str, Any]]]:
    """Return the rows of the wanted evaluations in groups; rows of a group differ in their seed only.

    Own and committed rows are in different groups. Each row holds the row of its condensation under ``made``, which is
    ``None`` for a set that was evaluated from a file.
    """
    made, tested = stage_rows(workspace, "condense"), stage_rows(workspace, "evaluate")
    tested = [row for row in tested if wanted.has(row)]  # by the names that were given
    tell_contents_apart(workspace, [*made, *tested])
    condensed = {row["key"]: row for row in made}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in tested:
        of_a_file = "set" in row
        row["made"] = None if of_a_file else condensed.get(row["condense_key"])
        groups[_group_key(row)].append(row)
    return list(groups.values())


def _group_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that is equal for rows that differ in their seed only, and in what changes results by rounding."""
    schedule = [(e["iteration"], len(e["test"])) for e in row["evaluated"]]
    settings = {name: value for name, value in row["settings"].items() if name not in ROUNDING}
    how = [row["recipe"], settings, row.get("evaluator_version", 1), row["dataset_fingerprint"], schedule]
    how += [row["labels"]] if "labels" in row else []
    return (row.get("origin"), condensation_key(row), row["evaluator"], content_key(how))


def condensation_key(row: Mapping[str, Any]) -> str:
    """Return a key of the condensation without its seed.

    The origin of a file is not known, so its key is made from the set itself and the seed of the evaluation.
    """
    if row["made"] is None:
        return content_key([row.get("set", row["condense_key"]), row.get("evaluation_seed", row["seed"])])
    return content_key({k: v for k, v in row["made"]["identity"].items() if k != "seed"})


def _standings(
    summaries: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Return the columns of where the lines of a table stand beside the best of their columns, for every statistic.

    Args:
        summaries: the tidy rows.
        groups: the rows of the evaluations that each of them is of.
    """
    columns: dict[tuple[Any, ...], dict[str, int]] = defaultdict(dict)
    named = _records(labelled(pd.DataFrame(summaries).assign(place=range(len(groups)))), "place", "line", "column")
    for row in sorted(named, key=lambda row: summaries[row["place"]]["evaluated_sets"]):
        own = summaries[row["place"]]
        column = columns[*(own[name] for name in SECTION), row["column"]]
        column.pop(row["line"], None)  # of several evaluations of one set by one recipe, that of most snapshots counts
        column[row["line"]] = row["place"]
    nothing = Standing(behind=None, p=None, level=None)
    found = [{key: value for name in STATISTICS for key, value in _standing(name, nothing).items()} for _ in groups]
    for name, column in product(STATISTICS, columns.values()):
        places = [place for place in column.values() if summaries[place][name] is not None]
        standing = standings([networks_of(groups[place], name) for place in places]) if places else []
        for place, own in zip(places, standing, strict=True):
            found[place] |= _standing(name, own)
    return found


def networks_of(rows: Sequence[Mapping[str, Any]], name: str) -> Networks:
    """Return the accuracies of the networks by the seed that theirs are drawn from."""
    return {row.get("evaluation_seed", row["seed"]): row["accuracy"][name]["values"] for row in rows}


def _standing(name: str, standing: Standing) -> dict[str, Any]:
    """Return the columns of a method's standing in one statistic."""
    behind = standing.behind
    ends = (None, None, None) if behind is None else (behind.difference, behind.low, behind.high)
    names = (f"{name}_to_best{end}" for end in ("", "_low", "_high"))
    return {
        **{column: None if end is None else round(end, _DIGITS) for column, end in zip(names, ends, strict=True)},
        f"{name}_p": None if standing.p is None else float(f"{standing.p:.3g}"),
        f"{name}_level": standing.level,
        f"{name}_seeds_needed": standing.seeds_needed,
    }


def summary(rows: Sequence[Mapping[str, Any]], by: How = "t") -> dict[str, Any]:
    """Return the tidy row of one method, settings and evaluator from the rows of its seeds (:func:`evaluations`).

    Args:
        rows: the rows.
        by: how intervals are made.
    """
    first = rows[0]
    made, timed = _made(rows), costed(rows)
    data, settings = _changed_settings(made[0]) if made else ("", _of_a_file(first))
    columns = {
        "dataset": first["dataset"],
        "ipc": first["ipc"],
        "preset": first["preset"],
        "data": data,
        "method": first["method"],
        "settings": settings,
        "condensation": condensation_key(first),
        "protocol": with_sets(made[0]["protocol"] if made else first["protocol"], len(rows)),
        "evaluator": first["evaluator"],
        "recipe": f"{first['recipe']}{told_labels(first)}",
        "evaluator_settings": network_settings(first, without_effect(first, first["made"])),
        "evaluated_sets": len(first["evaluated"]),
        "networks": first["networks"],
        "seeds": len(rows),
    }
    for name in STATISTICS:
        found = [row["accuracy"][name]["values"] for row in rows if row["accuracy"][name]]
        columns |= _over_seeds(name, found if len(found) == len(rows) else [], by)
    return columns | {
        "interval": f"95 % by {NAMES[by]}",
        "diverged_networks": sum(row["diverged_networks"] for row in rows),
        "condense_seconds": _mean(row.get("condense_seconds") for row in timed),
        "peak_bytes": _mean(row.get("peak_bytes") for row in timed),
        "evaluate_seconds": _mean(row["evaluate_seconds"] for row in rows),
        "hardware": _machines(made, rows),
        "commit": ", ".join(sorted({str(row["environment"]["commit"]) for row in rows})),
        "command": first["command"],
        **({"labels": first["labels"]["regime"]} if "labels" in first else {}),
        **_energy(timed),
        **({"origin": first["origin"]} if "origin" in first else {}),
    }


def costed(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the condensations of the seeds whose cost is that of a method, from its rows (:func:`evaluations`).

    They are those that ran by one commit on one machine, as most did; of equally many, the last seed's. What another
    code or machine needed is no sample of the same cost.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in sorted(_made(rows), key=lambda made: made["seed"], reverse=True):
        groups[row["environment"]["commit"], row["hardware"], bool(row.get("compiled"))].append(row)
    return max(groups.values(), key=len, default=[])


def _made(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of the condensations of evaluations; a set that was evaluated from a file has none."""
    return [row["made"] for row in rows if row["made"] is not None]


def _energy(made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns of the condensations' energy; none where it was not measured for every seed."""
    if not made or any(row.get("energy_joules") is None for row in made):
        return {}
    by = "; ".join(sorted({row["energy_by"] for row in made}))
    return {"energy_joules": _mean(row["energy_joules"] for row in made), "energy_by": by}


def network_settings(row: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Return the settings of an evaluation's network as text, ``without`` some."""
    told = {name: value for name, value in row["settings"].items() if name not in without}
    labels = {_OF_LABELS[name]: value for name, value in row.get("labels", {}).items() if name in _OF_LABELS}
    return _as_text({**told, **labels, "version": row.get("evaluator_version", 1)})


def told_labels(row: Mapping[str, Any]) -> str:
    """Return the label regime of an evaluation to stand after its recipe; nothing for a set's own labels."""
    labels = row.get("labels")
    if labels is None:
        return ""
    if labels["regime"] != TEACHER_LABELS:
        return f", {labels['regime']} labels"
    return f", labels of a teacher ({labels['epochs']} epochs, temperature {labels['temperature']:g})"


def _machines(made: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the machines of the evaluations, and if they differ also those that the condensation was timed on."""
    condensed, evaluated = ({row["hardware"] for row in of_stage} for of_stage in (made, rows))
    told = ", ".join(sorted(evaluated))
    if not condensed or condensed == evaluated:
        return told
    return f"{', '.join(sorted(condensed))} (condensation), {told} (evaluation)"


def _over_seeds(name: str, values: Sequence[Sequence[float]], by: How = "t") -> dict[str, Any]:
    """Return mean, spreads, number of networks and interval of ``values[seed][network]``; ``None`` if it is empty."""
    ends = ("", "_std_networks", "_std_seeds", "_networks", "_low", "_high", "_unit")
    columns: dict[str, Any] = dict.fromkeys(f"{name}{end}" for end in ends)
    if not values:
        return columns
    means = [statistics.fmean(v) for v in values]
    fewest = min(map(len, values))
    columns[name], columns[f"{name}_networks"] = float(np.mean(means)), fewest
    if fewest > 1:
        columns[f"{name}_std_networks"] = float(np.mean([statistics.pstdev(v) ** 2 for v in values])) ** 0.5
    columns[f"{name}_std_seeds"] = float(np.std(means)) if len(values) > 1 else None
    return columns | _ends(name, interval(values, by=by))


def _ends(name: str, found: Interval | None) -> dict[str, Any]:
    """Return the columns of an interval, rounded: the last digits of SciPy's numbers are not those of every machine."""
    if found is None:
        return {}
    low, high = round(found.low, _DIGITS), round(found.high, _DIGITS)
    return {f"{name}_low": low, f"{name}_high": high, f"{name}_unit": found.unit}


def _curve(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of one method and evaluator, whose seeds were all evaluated at the same iterations."""
    shared = {**summary(rows), "evaluation": content_key(_group_key(rows[0]))}
    at_iteration = zip(*(row["evaluated"] for row in rows), strict=True)
    return [
        {**shared, "iteration": of_seeds[0]["iteration"], **_over_seeds("test", [e["test"] for e in of_seeds])}
        for of_seeds in at_iteration
    ]


def _changed_settings(made: Mapping[str, Any]) -> tuple[str, str]:
    """Return the settings of the data and of the method that the command changed, as the user wrote them."""
    given = sorted(f"{name}={value}".replace(" ", "_") for name, value in settings_given(made["command"]).items())
    sections = {text: text.partition("=")[0].rpartition(".")[0] for text in given}
    data = [text for text, section in sections.items() if section == "data"]
    own = [text for text, section in sections.items() if section in ("", "network", "experts")]
    return " ".join(data), " ".join(own if is_own_command(made) else ())


def _of_a_file(row: Mapping[str, Any]) -> str:
    seed = row.get("evaluation_seed", 0)
    return _as_text({"file": row["cell"]} | ({"evaluation_seed": seed} if seed else {}))


def _as_text(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}".replace(" ", "_") for name, value in sorted(settings.items()))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


class Cell(NamedTuple):
    """A cell of a table: its text, and the number in it, or ``None``."""

    text: str
    number: float | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """The table of one data set, IPC, preset and changes of the data, with a line per method, a column per evaluator.

    Args:
        title: the heading.
        about: what the numbers are.
        head: the names of the columns.
        body: the cells of every line.
        notes: the recipe of every column, and what the lines changed of the preset.
        rows: the tidy rows that the table shows, with the columns of :func:`labelled`.
    """

    title: str
    about: str
    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    notes: Sequence[str]
    rows: pd.DataFrame


def markdown(table: pd.DataFrame, statistic: str = "last", *, width: int | None = None) -> str:
    """Return the ``table`` of :func:`accuracies` as Markdown, with a section for every data set, IPC and preset.

    Args:
        table: the rows.
        statistic: the accuracy to show.
        width: the columns of the terminal: a wider table is broken into several. ``None``: it stays one.
    """
    return in_markdown(sections(table, statistic), width=width)


def in_markdown(sections: Iterable[Section], *, width: int | None = None) -> str:
    """Return several sections as Markdown; see :func:`markdown`."""
    return "\n".join(as_markdown(section, width) for section in sections)


def as_markdown(section: Section, width: int | None) -> str:
    """Return a section as Markdown; a table wider than ``width`` columns is broken into several."""
    texts = [[cell.text for cell in line] for line in section.body]
    tables = in_widths(section.head, texts, sys.maxsize if width is None else width)
    notes = [line for note in section.notes for line in bullet(note)]
    shown = [line for part in tables for line in (*part, "")]
    about = paragraph(section.about)
    return "\n".join([f"### {on_one_line(section.title)}", "", *about, "", *shown, *notes, ""])


def sections(table: pd.DataFrame, statistic: str = "last") -> list[Section]:
    """Return the ``table`` of :func:`accuracies` in sections, with lines in ascending order of ``statistic``."""
    # of several evaluations of one set by one recipe, the one that evaluated most snapshots is shown
    groups = labelled(table).sort_values("evaluated_sets", kind="stable").groupby(SECTION, dropna=False, sort=True)
    return [_section(key, group, statistic) for key, group in groups]


_Row = Mapping[Any, Any]


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return ``table`` with the names of its lines (methods) and columns (evaluators), unique within a section.

    Adds ``line`` and ``column``. Settings that are too long for a name have a letter there, the same one in all of the
    table, and stand in ``line_told`` and ``column_told``.
    """
    place = table.groupby(SECTION, dropna=False, sort=True).ngroup().to_numpy()
    table = table.iloc[place.argsort(kind="stable")]
    named_by = ("method", "settings", "evaluator", "evaluator_settings", "condensation", "networks", "origin")
    rows = iter(_records(table, *(name for name in named_by if name in table)))
    groups = [list(islice(rows, size)) for _, size in sorted(Counter(place.tolist()).items())]
    found: dict[str, list[str]] = {}
    for name, settings, names in (("line", _line_settings, _lines), ("column", _column_settings, _columns)):
        told = [settings(group) for group in groups]
        found[f"{name}_told"] = [text for of_group in told for text in of_group]
        letters = with_letters(found[f"{name}_told"])
        of_groups = (names(*both) for both in zip(groups, ([letters[t] for t in ts] for ts in told), strict=True))
        found[name] = [text for of_group in of_groups for text in of_group]
    return table.assign(**found)


def _section(key: tuple[Any, ...], group: pd.DataFrame, statistic: str) -> Section:
    dataset, ipc, preset, data = key
    rows = _records(group, *_TOLD, *_numbers(statistic), *_BESIDE)
    columns = _in_order(rows)
    marked = {row["column"] for row in rows if row[f"{statistic}_level"] is True}
    cells: dict[tuple[str, str], Cell] = {}
    for row in rows:
        line = row["line"]
        text = _with_interval(row, statistic, marked=row["column"] in marked)
        cells[line, row["column"]] = Cell(text, _known(row[statistic]))
        for name, show in _BESIDE.items():
            known = _known(row[name])
            cells[line, name] = Cell("" if known is None else show(known), known)

    def accuracy(line: str) -> float:
        number = cells.get((line, columns[0]), Cell("")).number
        return -1.0 if number is None else number

    lines = sorted(dict.fromkeys(line for line, _ in cells), key=accuracy)
    names = [*columns, *_BESIDE]
    title, beside = title_of(dataset, ipc, preset, data)
    return Section(
        title=title,
        about=_about(rows, statistic),
        head=["method", *(_TITLES.get(name, name) for name in names)],
        body=[[Cell(line), *(cells.get((line, name), Cell("")) for name in names)] for line in lines],
        notes=[*beside, *_recipes(rows, statistic), *_statistics(rows, statistic), *_notes(rows, preset)],
        rows=group,
    )


def _about(rows: Sequence[_Row], statistic: str) -> str:
    """Return what the numbers of a section are."""
    spread = " ± over seeds (how many)" if any(row["seeds"] > 1 for row in rows) else ""
    ends = " [interval of the mean, 95 %]" if any(_has(row, f"{statistic}_low") for row in rows) else ""
    level = any(row[f"{statistic}_level"] is True for row in rows)
    mark = f" {_LEVEL}: the best, and what is not decidedly worse." if level else ""
    return f"Test accuracy `{statistic}` in %: mean ± standard deviation over networks{spread}{ends}.{mark}"


def _statistics(rows: Sequence[_Row], statistic: str) -> list[str]:
    """Return what the intervals of a section are over, what is level with the best, and what would decide it."""
    last: dict[tuple[str, str], _Row] = {}
    for row in rows:
        last.pop((row["line"], row["column"]), None)
        last[row["line"], row["column"]] = row
    shown = [row for row in last.values() if _has(row, statistic)]
    known = [row for row in shown if _has(row, f"{statistic}_low")]
    if not known:
        return []
    over: dict[str, list[_Row]] = defaultdict(list)
    for row in known:
        over[row[f"{statistic}_unit"]].append(row)
    told = []
    if "seeds" in over:
        counts = sorted({int(row["seeds"]) for row in over["seeds"]})
        told.append(f"over the means of {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds")
    if "networks" in over:
        lines = dict.fromkeys(row["line"] for row in over["networks"])
        whose = f"{', '.join(lines)}: " if "seeds" in over else ""
        told.append(f"{whose}over the networks of one set, and they speak of this set only")
    notes = [f"intervals: {known[0]['interval']}, {'; '.join(told)}"]
    if statistic == "best_on_test":
        notes.append("the sets were chosen by the test images: intervals and marks leave that out, and are too narrow")
    if any(row[f"{statistic}_level"] is True for row in shown):
        notes.append(
            f"{_LEVEL}: no difference from the best is decided at 5 % (t tests in pairs of seeds, or of networks where "
            "every method of the column has one seed; corrected by Benjamini and Hochberg for all pairs of the column)"
        )
    return [*notes, *_undecided(shown, statistic)]


def _undecided(shown: Sequence[_Row], statistic: str) -> list[str]:
    """Return for every column which differences to the best are not decisive, and how many seeds would decide them."""
    to_best, notes = f"{statistic}_to_best", []
    for column in dict.fromkeys(row["column"] for row in shown):
        level = [row for row in shown if row["column"] == column and row[f"{statistic}_level"] is True]
        behind = sorted((row for row in level if _has(row, to_best)), key=lambda row: row[to_best], reverse=True)
        if behind:
            best = next(row["line"] for row in level if not _has(row, to_best))
            told = ", over ".join(_open(row, statistic) for row in behind)
            notes.append(f"not decisive ({column}): {best} over {told}")
    if notes:
        few = any(row[f"{statistic}_unit"] == "networks" for row in shown)
        least = ", at least: networks do not show how sets differ" if few else ""
        notes.append(
            f"in brackets: seeds that decide such a difference between two methods with a probability of 80 %{least}"
        )
    return notes


def _open(row: _Row, statistic: str) -> str:
    """Return by how much a method that is level with the best is behind it, and how many seeds would decide that.

    It can be ahead in the seeds that both have, where one of them has others too.
    """
    needed, behind = row[f"{statistic}_seeds_needed"], -100 * row[f"{statistic}_to_best"]
    if not _has(row, f"{statistic}_seeds_needed"):
        return f"{row['line']}: equal"
    seeds = f"more than {MOST_SEEDS}" if needed == float("inf") else f"{int(needed)}"
    how = f"by {behind:.1f} points" if behind >= 0 else f"that is ahead by {-behind:.1f} points in what both ran"
    return f"{row['line']} {how} ({seeds})"


def shown_interval(row: Mapping[Any, Any], statistic: str) -> str:
    """Return the text of the interval of an accuracy, in percent, or an empty text if there is none."""
    low, high = row[f"{statistic}_low"], row[f"{statistic}_high"]
    return "" if pd.isna(low) else f"[{100 * low:.1f}, {100 * high:.1f}]"


def _with_interval(row: Mapping[Any, Any], statistic: str, *, marked: bool) -> str:
    """Return the text of an accuracy with its interval; in a ``marked`` column also with the place of the mark."""
    text = " ".join(filter(None, [shown(row, statistic), shown_interval(row, statistic)]))
    return text + ((" *" if row[f"{statistic}_level"] is True else "  ") if marked and text else "")


def title_of(dataset: str, ipc: Any, preset: str, data: str) -> tuple[str, list[str]]:
    """Return the title of a section; changes of the data that make it too long are a note."""
    title = f"{dataset}, IPC {'all' if pd.isna(ipc) else ipc}, preset {preset}"
    if not data or len(title) + len(data) + 6 <= NARROW:
        return title + (f", {data}" if data else ""), []
    return f"{title}, other data", [f"data: {data}"]


def _recipes(rows: Sequence[_Row], statistic: str) -> list[str]:
    """Return the recipe of every column, and how many networks the accuracies of a statistic are of."""
    counts: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        if _has(row, statistic):
            told = f"{row['column']}: {_letter_told(row, 'column')}{row['recipe']}"
            counts[told].add(int(row[f"{statistic}_networks"]))
    return [f"{told}; {' or '.join(map(str, sorted(own)))} networks" for told, own in counts.items()]


def _notes(rows: Sequence[_Row], preset: str) -> list[str]:
    """Return what the methods changed of the preset, and what letters stand for."""
    lent: dict[str, dict[str, None]] = defaultdict(dict)
    given: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        lent[row["protocol"].partition(", changed: ")[0]][row["line"]] = None
        given[row["method"]].append(row["settings"])
    others = {whose: lines for whose, lines in sorted(lent.items()) if whose != preset}
    changed = by_holders((f"`{method}`", _common(texts)) for method, texts in given.items())
    return [
        *(f"protocol {whose}: {', '.join(lines)}" for whose, lines in others.items()),
        *([f"changed: {'; '.join(changed)}"] if changed else []),
        *_letters(rows),
    ]


def letters(rows: pd.DataFrame) -> list[str]:
    """Return what the letters in the names of lines stand for, from rows of :func:`labelled`."""
    return _letters(_records(rows, "line", "line_told"))


def _letters(rows: Iterable[_Row]) -> list[str]:
    told = ((row["line"], _letter_told(row, "line")) for row in rows)
    return list(dict.fromkeys(f"{line}: {text.removesuffix('; ')}" for line, text in told if text))


def _letter_told(row: _Row, name: str) -> str:
    """Return what the letter in the name of a line or of a column stands for, as the first part of a note."""
    return f"{row[f'{name}_told']}; " if row[f"{name}_told"] not in row[name] else ""


def _common(settings: Iterable[str]) -> list[str]:
    """Return the settings that all rows of a method have changed alike."""
    given = [_words(text) for text in settings]
    return [word for word in given[0] if all(word in words for words in given)]


def _words(settings: str) -> list[str]:
    """Return settings word by word, without those that change a result by rounding only."""
    return [word for word in settings.split() if word.partition("=")[0].rpartition(".")[2] not in ROUNDING]


def _records(rows: pd.DataFrame, *columns: str) -> list[dict[Any, Any]]:
    return rows[list(columns)].to_dict("records")


def _numbers(statistic: str) -> list[str]:
    """Return the columns that the text of an accuracy is made of."""
    spread = ("_networks", "_std_networks", "_std_seeds", "_low", "_high", "_unit")
    ends = ("", *spread, "_level", "_to_best", "_seeds_needed")
    return [f"{statistic}{end}" for end in ends]


def _has(row: _Row, name: str) -> bool:
    return not pd.isna(row[name])


def _known(number: Any) -> float | None:
    return None if pd.isna(number) else float(number)


def _in_order(rows: Sequence[_Row]) -> list[str]:
    """Return the columns of a section: the ConvNet's first, and of one evaluator those first that most methods have."""
    counts = Counter(row["column"] for row in rows)

    def place(row: _Row) -> tuple[str, int]:
        return "" if row["evaluator"] == "convnet" else row["evaluator"], -counts[row["column"]]

    return list(dict.fromkeys(row["column"] for row in sorted(rows, key=place)))


def _lines(rows: Sequence[_Row], told: Sequence[str]) -> list[str]:
    """Return the line of every row: method, the settings in which the lines of the method differ, and ``(shipped)``."""
    named = [
        _beside(f"`{row['method']}`", text) + (MARK if row.get("origin") == SHIPPED else "")
        for row, text in zip(rows, told, strict=True)
    ]
    # they differ if a preset or a method changed
    return _apart(named, [row["condensation"] for row in rows], " ({:.6})")


def _columns(rows: Sequence[_Row], told: Sequence[str]) -> list[str]:
    """Return the column of every row: evaluator, and the settings in which the columns of the evaluator differ."""
    named = [_beside(row["evaluator"], text) for row, text in zip(rows, told, strict=True)]
    return _apart(named, [row["networks"] for row in rows], ", {} networks")


def _apart(names: Sequence[str], values: Sequence[Any], form: str) -> list[str]:
    """Return names with their values behind, written by ``form``, where several values have one name."""
    of: dict[str, set[Any]] = defaultdict(set)
    for name, value in zip(names, values, strict=True):
        of[name].add(value)
    return [n if len(of[n]) == 1 else n + form.format(v) for n, v in zip(names, values, strict=True)]


def _beside(name: str, told: str) -> str:
    return f"{name} {told}" if told else name


def _line_settings(rows: Sequence[_Row]) -> list[str]:
    """Return the settings in which every row differs from others of its method."""
    return _told_apart([(row["method"], row["settings"]) for row in rows])


def _column_settings(rows: Sequence[_Row]) -> list[str]:
    """Return the settings in which every row's network differs from others of its name."""
    of_a_teacher = [name for name in _OF_LABELS.values() if name != "labels"]
    own = [(row["evaluator"], row["evaluator_settings"]) for row in rows]
    return _told_apart(own, may_lack=(*RATES, *of_a_teacher))


def _told_apart(own: Iterable[tuple[str, str]], *, may_lack: Collection[str] = ()) -> list[str]:
    """Return for every name and settings, as text, the settings in which they differ from others of the name.

    A row that lacks one of ``may_lack`` does not differ in it: it has no effect there.
    """
    rows = [(name, _words(text)) for name, text in own]
    given: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, words in rows:
        for word in words:
            given[name, word.partition("=")[0]].append(word)
    counts = Counter(name for name, _ in rows)

    def differs(name: str, word: str) -> bool:
        setting = word.partition("=")[0]
        alike = given[name, setting]
        return len(set(alike)) > 1 or (len(alike) < counts[name] and setting not in may_lack)

    return [" ".join(word for word in words if differs(name, word)) for name, words in rows]


def shown(row: Mapping[Any, Any], statistic: str) -> str:
    """Return the text of an accuracy in percent: mean ± deviation over networks ± over seeds (number of seeds)."""
    if pd.isna(row[statistic]):
        return ""
    text = f"{100 * row[statistic]:.1f}"
    if not pd.isna(row[f"{statistic}_std_networks"]):
        text += f" ± {100 * row[f'{statistic}_std_networks']:.1f}"
    if row["seeds"] > 1:
        text += f" ± {100 * row[f'{statistic}_std_seeds']:.1f} ({int(row['seeds'])})"
    return text


_BESIDE: dict[str, Callable[[float], str]] = {"condense_seconds": duration, "peak_bytes": size}
_TITLES = {"condense_seconds": "condensation", "peak_bytes": "peak"}
_TOLD = ["line", "column", "line_told", "column_told", "evaluator", "recipe", "networks", "seeds", "method"]
_TOLD += ["protocol", "settings", "interval"]
