"""The paper's tables as Markdown and LaTeX, in the paper's arrangement, with notes on how the numbers were made."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dcbench_tesla.compare.accuracy import shown, shown_interval
from dcbench_tesla.compare.changes import letters_in_order
from dcbench_tesla.compare.table import aligned, bullet, paragraph
from dcbench_tesla.config import CellConfig, settings_given, shown_dataset
from dcbench_tesla.reports.declarations import Declaration, Part, cells, preset_of
from dcbench_tesla.reports.failed import FAILED, Failed
from dcbench_tesla.reports.finished import Finished, parts_of
from dcbench_tesla.reports.published import PAPER, Published, external
from dcbench_tesla.reports.tables import BROKEN, COMPARED, NOT_IMPLEMENTED, RUN, WHOLE, Row, grouped, missing, records

_CITED = "Cui, Wang, Si, Hsieh, ICML 2023"
_PUBLISHED = "published"
_FULL = "paper"
_REDUCED = "reduced protocol: "


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table as text.

    Args:
        title: the title.
        head: the names of the columns.
        body: the lines.
        keys: number of leading columns that identify a line.
        legend: notes on the numbers.
        lacking: lines of text about cells that were not run.
    """

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]
    keys: int
    legend: Sequence[str]
    lacking: Sequence[str]

    def markdown(self) -> str:
        """Return it as Markdown."""
        legend = [line for text in self.legend for line in bullet(text)]
        lacking = ["", *paragraphs(self.lacking)] if self.lacking else []
        table = aligned(self.head, _without_repetition(self.body, self.keys - 1), left=self.keys)
        return "\n".join([f"### {self.title}", "", *table, "", *legend, *lacking, ""])

    def latex(self) -> str:
        """Return the table as a LaTeX ``table``, which needs no package."""
        lines = _without_repetition(self.body, self.keys - 1)
        rows = [(r"\hline " if line[1] else "") + _latex_row(line) for line in lines]
        across = "l" * self.keys + "r" * (len(self.head) - self.keys)
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{latex_text(self.title)}}}",
                r"\centering\footnotesize",
                rf"\begin{{tabular}}{{{across}}}",
                rf"\hline {_latex_row(self.head)}",
                *rows,
                r"\hline",
                r"\end{tabular}",
                *(rf"\par {latex_text(text)}" for text in (*self.legend, *self.lacking)),
                r"\end{table}",
                "",
            ]
        )


def paragraphs(texts: Iterable[str]) -> Iterator[str]:
    """Yield paragraphs and bullets of Markdown in lines that fit a terminal."""
    for text in texts:
        yield from paragraph(text, indent="  " if text.startswith("- ") else "") or [""]


_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "<": r"$<$", ">": r"$>$"}
_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def latex_text(text: str) -> str:
    """Return Markdown text as LaTeX, with special characters escaped and code in typewriter font."""
    escaped = "".join(_SPECIAL.get(c, c) for c in text)
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", escaped)


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"


def _without_repetition(body: Sequence[Sequence[str]], keys: int) -> list[list[str]]:
    """Return the lines with leading cells emptied if they repeat the line above."""
    found = []
    for above, line in zip([[""] * keys, *body], body, strict=False):
        same = next((i for i in range(keys) if line[i] != above[i]), keys)
        found.append([*[""] * same, *line[same:]])
    return found


def sheet(declaration: Declaration, found: pd.DataFrame, lacking: Sequence[str], part: Part) -> Sheet:
    """Return a part of a table as text. Columns that are not in the paper are included if they were run.

    Args:
        declaration: the declaration of the table.
        found: the rows of :func:`~dcbench_tesla.reports.tables.table`.
        lacking: the lines of :func:`lacking`.
        part: the part.
    """
    rows = [row for row in records(found) if part.has(row["dataset"], row["ipc"], row["method"])]
    ours = [row for row in rows if part.shows(row["protocol"])]
    names = protocol_names(found["protocol"])
    columns = [name for name in declaration.across if any(row[declaration.columns] == name for row in rows)]
    keys = ["data set", "IPC", *_down(declaration)[2:], "protocol", *["images"] * declaration.shares, "accuracy"]
    blocks = grouped(rows, _down(declaration)).values()
    return Sheet(
        title=f"{declaration.paper}: {declaration.title}, %",
        head=[*keys, *(f"`{name}`" for name in columns)],
        body=[line for block in blocks for line in _block(declaration, block, part, columns, names)],
        keys=len(keys),
        legend=list(_legend(declaration, rows, ours, names)),
        lacking=lacking,
    )


def protocol_names(protocols: Iterable[str]) -> dict[str, str]:
    """Return the short name of every protocol, with a letter for changed settings and a prefix if it is reduced."""
    names = {}
    letters = iter(letters_in_order())
    for protocol in dict.fromkeys(protocols):
        preset, changed, _ = protocol.partition(", changed: ")
        name = f"{preset}, changed ({next(letters)})" if changed else protocol
        names[protocol] = name if preset_of(protocol) == _FULL else f"{_REDUCED}{name}"
    return names


def is_reduced(name: str) -> bool:
    """Return whether a name of :func:`protocol_names` is that of a reduced protocol."""
    return name.startswith(_REDUCED)


def not_comparable(names: Iterable[str]) -> str:
    """Return a sentence on the reduced protocols among ``names``, or an empty text if there are none."""
    reduced = [name for name in dict.fromkeys(names) if is_reduced(name)]
    return f"Not comparable with published numbers: {'; '.join(reduced)}. " if reduced else ""


def _down(declaration: Declaration) -> list[str]:
    """Return the columns whose values begin the lines of a table."""
    return ["dataset", "ipc", *(["method"] if declaration.columns == "evaluator" else [])]


def _block(
    declaration: Declaration, rows: Sequence[Row], part: Part, columns: Sequence[str], names: Mapping[str, str]
) -> Iterator[list[str]]:
    """Yield the lines of one data set and IPC: published numbers, then the lines of every protocol."""
    if not any(
        row["status"] == RUN or row["status"].startswith(FAILED) or row["published"] is not None for row in rows
    ):
        return
    front = [_key_text(rows[0][name]) for name in _down(declaration)]
    sections = [(_PUBLISHED, rows, _PUBLISHED_LINES)]
    by_protocol = grouped((row for row in rows if part.shows(row["protocol"])), ["protocol"])
    sections += [(names[protocol], own, _OUR_LINES) for (protocol,), own in by_protocol.items()]
    for name, own, lines in sections:
        across = {row[declaration.columns]: row for row in own}
        keys = [*front, name, *([_images(own, name)] if declaration.shares else [])]
        for title, show in lines.items():
            texts = [show(across[column]) if column in across else "" for column in columns]
            if any(texts) or title == _LAST:
                yield [*keys, title, *texts]


def _key_text(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else str(value)


def _images(rows: Sequence[Row], name: str) -> str:
    """Return the share of the images that the condensed sets of one line have."""
    column = "published_share_of_images" if name == _PUBLISHED else "share_of_images"
    found = {row[column] for row in rows if row["method"] != WHOLE and row[column] is not None}
    return ", ".join(f"{100 * share:.2g} %" for share in sorted(found))


def _printed(row: Row) -> str:
    mean, std, source = (row[name] for name in ("published", "published_std", "published_source"))
    return "" if mean is None else str(Published(mean=mean, std=std, source=source))


def _last(row: Row) -> str:
    """Return the accuracy, or why there is none. (The legend says why a method cannot be imported.)"""
    status = BROKEN if row["status"].startswith(BROKEN) else row["status"]
    return status if status in (NOT_IMPLEMENTED, BROKEN) or status.startswith(FAILED) else shown(row, "last")


def _difference(row: Row) -> str:
    if row["difference_points"] is None:
        return ""
    low, high = row["difference_low"], row["difference_high"]
    return f"{row['difference_points']:+.1f}" + ("" if low is None else f" [{low:+.1f}, {high:+.1f}]")


def _share(column: str) -> Callable[[Row], str]:
    return lambda row: "" if row[column] is None or row["method"] == WHOLE else f"{100 * row[column]:.1f}"


_LAST = "last"
_PUBLISHED_LINES = {"as printed": _printed, "share of whole": _share("published_share_of_whole")}
_OUR_LINES = {
    _LAST: _last,
    "interval of last": lambda row: shown_interval(row, _LAST),
    "best on test": lambda row: shown(row, COMPARED),
    "best on test - published": _difference,
    "share of whole": _share("share_of_whole"),
}


# ----------------------------------------------------------------------------------------------------------- notes


def _legend(
    declaration: Declaration, rows: Sequence[Row], ours: Sequence[Row], names: Mapping[str, str]
) -> Iterator[str]:
    """Yield notes on what the lines mean, how cells were run, and where the published numbers come from."""
    yield (
        "`last`: test accuracy after the last epoch on the last distilled set, mean ± standard deviation over "
        "networks. `best on test`: of the set that the test images choose among those tested on the way. Published "
        "numbers are such maxima: differences (in points) and shares of the whole set's accuracy are of `best on test`."
    )
    if any(row["last_low"] is not None for row in ours):
        yield (
            "intervals: of the mean, 95 % by Student t; over the means of seeds where there are several (their number "
            "in parentheses), else over the networks of one set, and then they speak of this set only. Those of "
            "differences take the published number as exact, and leave out that the test images chose."
        )
    if declaration.note:
        yield declaration.note
    if declaration.shares:
        yield "`images`: the share of the training images that the condensed set is, of those that its protocol uses."
    yield from about_protocols({protocol: own for (protocol,), own in grouped(ours, ["protocol"]).items()}, names)
    absent = dict.fromkeys(row["method"] for row in rows if row["status"] == NOT_IMPLEMENTED)
    yield from (f"`{name}`: {external()[name]}; not implemented, a plugin of that name fills it" for name in absent)
    broken = dict.fromkeys((row["method"], row["status"]) for row in rows if row["status"].startswith(BROKEN))
    yield from (f"`{name}`: {problem}" for name, problem in broken)
    yield from _sources(rows)


def about_protocols(rows: Mapping[str, Sequence[Row]], names: Mapping[str, str]) -> list[str]:
    """Return notes on protocols: the changed settings, recipes, number of networks, and machine.

    What all of them share is said once, before them.

    Args:
        rows: the rows of a table by protocol.
        names: the protocols' short names in the table.
    """
    changes = [settings for _, settings in map(parts_of, rows)]
    told = {protocol: _facts(protocol, own) for protocol, own in rows.items()}
    ran = [facts for facts in told.values() if facts]
    same = [fact for fact in (ran[0] if len(ran) > 1 else ()) if all(fact in facts for facts in ran)]
    common = _common(changes)
    notes = [f"all protocols: {'; '.join([*_changed(common), *same])}"] if common or same else []
    for (protocol, facts), own in zip(told.items(), changes, strict=True):
        beyond = {label: value for label, value in own.items() if label not in common}
        parts = [*_changed(beyond), *(fact for fact in facts if fact not in same)]
        reduced = ", not comparable with published numbers" if is_reduced(names[protocol]) and facts else ""
        if parts or reduced:
            notes.append(f"{names[protocol]}{reduced}{': ' * bool(parts)}{'; '.join(parts)}")
    return notes


def _common(changes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the settings that all of several protocols change alike."""
    first = changes[0].items() if len(changes) > 1 else ()
    return {label: value for label, value in first if all(c.get(label) == value for c in changes)}


def _changed(settings: Mapping[str, str]) -> list[str]:
    return [f"changed: {' '.join(f'{label}={value}' for label, value in sorted(settings.items()))}"] if settings else []


def _facts(protocol: str, rows: Sequence[Row]) -> list[str]:
    """Return how the cells of a protocol were run; nothing if none was."""
    rows = [row for row in rows if row["status"] == RUN]
    if not rows:
        return []
    recipes = grouped(rows, ["evaluator"])
    facts = [f"`{e}` {' or '.join(dict.fromkeys(r['recipe'] for r in own))}" for (e,), own in recipes.items()]
    changed = changed_settings(protocol)
    others = (row for row in rows if row["cell_protocol"] != preset_of(protocol) or not _is_changed(row, changed))
    lent = grouped(others, ["cell_protocol", "method"])
    facts += [f"`{method}` by {whose}" for whose, method in sorted(lent)]
    return [*facts, *ran_on(rows), "commit " + ", ".join(sorted({c for r in rows for c in r["commit"].split(", ")}))]


def _is_changed(row: Row, changed: str) -> bool:
    """Return whether a row's own command made any of the changes of its protocol, which baselines may lack."""
    names = {word.partition("=")[0] for word in changed.split() if "=" in word}
    return not names or bool(names & settings_given(row["command"]).keys())


def changed_settings(protocol: str) -> str:
    """Return the changed settings in the name of a protocol, as text."""
    return protocol.partition(", changed: ")[2]


def ran_on(rows: Sequence[Row]) -> list[str]:
    """Return the numbers of networks and of seeds of ``rows`` and their machines, as texts."""
    machines = "; ".join(dict.fromkeys(row["hardware"] for row in rows))
    networks = f"networks {_span(rows, 'last_networks')} (best on test: {_span(rows, f'{COMPARED}_networks')})"
    return [networks, f"seeds {_span(rows, 'seeds')}", machines]


def _span(rows: Sequence[Row], column: str) -> str:
    values = sorted({int(row[column]) for row in rows})
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _sources(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the sources of the published numbers, and notes on them."""
    printed = [row for row in rows if row["published"] is not None]
    for (source, note), own in grouped(printed, ["published_source", "published_note"]).items():
        if note or source not in PAPER.values():
            where = grouped(own, ["method", "dataset"])
            cells = [f"`{m}` {d} IPC {', '.join(_ipcs(found))}" for (m, d), found in where.items()]
            yield f"published, {'; '.join(cells)}: {'; '.join(filter(None, [note, source]))}"
    own_table = dict.fromkeys(row["published_source"] for row in printed if row["published_source"] in PAPER.values())
    yield from (f"published, all others: {source} ({_CITED})" for source in own_table)


def _ipcs(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["ipc"]) for row in rows))


def lacking(declaration: Declaration, part: Part, ran: Sequence[Finished], failed: Sequence[Failed] = ()) -> list[str]:
    """Return lines of text about the cells of a part that were not run, and the command that runs them.

    Cells that failed are given with the reason. The list is empty if no cell is missing.
    """
    wanted = cells(declaration, part)
    absent = missing(declaration, wanted, ran)
    if not absent:
        return []
    words = [*(f" --dataset {d}" for d in part.datasets), *(f" --ipc {ipc}" for ipc in part.ipcs)]
    words += [*(f" --method {m}" for m in part.methods), *([f" --preset {part.preset}"] if part.preset else [])]
    words += [" --shipped"] * any(cell.is_shipped for cell in ran)
    what = declaration.name + "".join(words)
    head = (
        f"{len(absent)} of {sum(len(cell.evaluators) for cell in wanted)} cells by preset `{wanted[0].preset}` are "
        f"missing: `dcbench reproduce {what} --run` runs them; `dcbench plan {what}` says how long it takes."
    )
    groups: dict[str, list[tuple[CellConfig, str]]] = {}
    for cell, evaluator in absent:
        where = f"`{shown_dataset(cell.dataset)}` IPC {cell.ipc}"
        where += f" `{cell.method}`" if declaration.columns == "evaluator" else ""
        groups.setdefault(where, []).append((cell, evaluator))
    lines = (f"- {where}: {', '.join(_called(declaration, own, failed))}" for where, own in groups.items())
    return [head, "", *lines]


def _called(
    declaration: Declaration, absent: Iterable[tuple[CellConfig, str]], failed: Sequence[Failed]
) -> Iterator[str]:
    """Yield the names of the missing cells of one line, with the reason of those that failed."""
    epochs: dict[tuple[str, str], list[int]] = {}
    for cell, evaluator in absent:
        why = next((f.reason for f in failed if f.is_cell(cell, evaluator)), "")
        called = {"method": cell.method, "labels": getattr(cell.settings, "labels", ""), "evaluator": evaluator}
        alone = declaration.is_alone(vars(cell.settings))
        own = epochs.setdefault(("labels alone" if alone else called[declaration.columns], why), [])
        own += [cell.settings.last_epoch] if alone else []
    for (name, why), found in epochs.items():
        about = [f"epoch{'s' * (len(found) > 1)} {_ranges(found)}"] if found else []
        about += [why] if why else []
        yield f"{name} ({'; '.join(about)})" if about else name


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ranges: ``0 to 3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
