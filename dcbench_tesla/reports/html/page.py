"""The page: its parts in order, the facts at its head, and the template."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from dcbench_tesla.compare.accuracy import Wanted, accuracies, curves
from dcbench_tesla.compare.plots import colours
from dcbench_tesla.errors import DcbenchError
from dcbench_tesla.records.rows import STAGES, mark, stage_rows
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.html.accuracy import curves_part, ipc_part, tables_part
from dcbench_tesla.reports.html.cost import memory_part, time_part
from dcbench_tesla.reports.html.drift import gradient_part
from dcbench_tesla.reports.html.failed import failed_part
from dcbench_tesla.reports.html.gallery import gallery_part
from dcbench_tesla.reports.html.labels import labels_part
from dcbench_tesla.reports.html.parts import Part, joined
from dcbench_tesla.reports.html.peaks import Peaks
from dcbench_tesla.reports.html.published import published_part
from dcbench_tesla.reports.html.regimes import regimes_part
from dcbench_tesla.reports.html.tradeoff import tradeoff_part
from dcbench_tesla.reports.html.verified import verified_part
from dcbench_tesla.reports.plots import LABEL_COLOURS

_HERE = Path(__file__).parent


def page(workspace: Workspace, *, all_pictures: bool = False) -> str:
    """Return the report on all results of ``workspace`` as HTML.

    For results that are missing the page shows the command that makes them. Images that may not be passed on are left
    out unless ``all_pictures`` is set.

    Raises:
        DcbenchError: there are no results at all.
        CorruptFileError: a CSV file or an image is damaged.
    """
    rows = [row for stage in STAGES for row in stage_rows(workspace, stage)]
    parts = _parts(workspace, all_pictures)
    if not any(part.figures for part in parts):
        raise DcbenchError(
            f"there are no results under {workspace.root}: dcbench run and dcbench compare make them; "
            "in a checkout, --shipped shows the committed ones."
        )
    parts.append(verified_part())
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            parts=parts,
            facts=_facts(rows),
            data=_plots(parts) | {"frames": _frames(parts)},
            style=_file("style.css"),
            # the licence of Chart.js must be part of every copy
            scripts=[
                f"/*\n{_file('vendor/LICENSE-chart.js.md')}*/\n{_file('vendor/chart.umd.min.js')}",
                _file("page.js"),
            ],
        )
    )


def _parts(workspace: Workspace, all_pictures: bool) -> list[Part]:
    evaluated = bool(stage_rows(workspace, "evaluate"))
    table = accuracies(workspace, Wanted()) if evaluated else None
    peaks = Peaks(workspace if evaluated else None)
    failed = failed_part(stage_rows(workspace, "failed"))
    labels = [part for part in ([regimes_part(workspace)] if evaluated else []) if part.figures]
    return [
        tables_part(table, peaks),
        gallery_part(workspace, all_pictures=all_pictures),
        tradeoff_part(table, peaks),
        curves_part(curves(workspace, Wanted()) if evaluated else None),
        ipc_part(table),
        published_part(workspace),
        *labels,
        labels_part(workspace),
        memory_part(workspace),
        time_part(workspace),
        gradient_part(workspace),
        *([failed] if failed.figures else []),
    ]


def _facts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the facts at the head of the page: counts of rows, data sets, methods, hardware, versions and commits."""
    environments = [row.get("environment", {}) for row in rows]
    versions = [environment.get("versions", {}) for environment in environments]
    found = {
        "cells condensed": _count(rows, "condense"),
        "evaluations": _count(rows, "evaluate"),
        "sets of experts": _count(rows, "experts"),
        "failed cells": _count(rows, "failed"),
        "trials of searches": _count(rows, "trial"),
        "rows shipped by the repository": str(sum(bool(mark(row)) for row in rows) or ""),
        "data sets": _different(row.get("dataset") for row in rows),
        "methods": _different(row.get("method") for row in rows),
        "hardware": _different(row.get("hardware") for row in rows),
        "dcbench": _different(v.get("dcbench-tesla") for v in versions),
        "PyTorch": _different(v.get("torch") for v in versions),
        "commits": _different(environment.get("commit") for environment in environments),
    }
    return {name: text for name, text in found.items() if text}


def _count(rows: Iterable[Mapping[str, Any]], stage: str) -> str:
    return str(sum(row.get("stage") == stage for row in rows) or "")


def _different(values: Iterable[str | None]) -> str:
    return joined(sorted({value for value in values if value}))


def _plots(parts: Iterable[Part]) -> dict[str, Any]:
    """Return the data that the script draws: plots by the figure's id, and a colour for every method and strategy."""
    drawn = {
        f"{part.id}-{number}": asdict(figure.plot)
        for part in parts
        for number, figure in enumerate(part.figures, 1)
        if figure.plot
    }
    names = sorted({line["method"] for plot in drawn.values() for line in plot["lines"] if not line["front"]})
    found = colours(name for name in names if name not in LABEL_COLOURS)
    return {"colours": found | {name: LABEL_COLOURS[name] for name in names if name in LABEL_COLOURS}, "plots": drawn}


def _frames(parts: Iterable[Part]) -> dict[str, Any]:
    """Return the images over the iterations, by the figure's id and the picture's number."""
    return {
        f"{part.id}-{number}-{i}": [frame._asdict() for frame in picture.frames]
        for part in parts
        for number, figure in enumerate(part.figures, 1)
        for i, picture in enumerate(figure.pictures, 1)
        if picture.frames
    }


# ----------------------------------------------------------------------------------------------------------- template


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": _code, "plain": _plain, "digest": _digest, "raw": Markup}
    return environment


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _code(text: str) -> Markup:
    """Return ``text`` escaped for HTML, with text between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _plain(text: str) -> str:
    return text.replace("`", "")


def _digest(text: str) -> str:
    """Return the hash of a style or script, which the page's content security policy allows, and nothing else."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
