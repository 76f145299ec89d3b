"""The part with Figure 2: label strategies by iteration, and labels alone by the teacher's epoch."""

from collections.abc import Iterator, Sequence

import pandas as pd

from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports import figure2
from dcbench_tesla.reports.declarations import Declaration, declarations
from dcbench_tesla.reports.html.parts import Column, Figure, Line, Made, Part, Plot, Point, facts, table_of, values
from dcbench_tesla.reports.tables import runs
from dcbench_tesla.reports.text import not_comparable, protocol_names

_ACCURACY = Column("accuracy", "test accuracy, %", "{:.1f}".format, ["std_networks"])
_BAR = "the bar is one standard deviation over networks."
_A = (
    Column("strategy", "labels"),
    Column("protocol", "protocol"),
    Column("iteration", "iteration"),
    Column("best_so_far", "best so far, %", "{:.1f}".format),
    _ACCURACY,
    Column("networks", "networks"),
    Column("seeds", "seeds"),
)
_B = (
    Column("last_epoch", "epoch of the teacher"),
    Column("protocol", "protocol"),
    _ACCURACY,
    Column("networks", "networks"),
    Column("seeds", "seeds"),
)


def labels_part(workspace: Workspace) -> Part:
    """Return the part with the panels of Figure 2 that were run."""
    declaration = declarations()["figure2"]
    ran = runs(declaration, workspace)
    a, b = figure2.on_the_way(declaration, ran), figure2.labels_alone(declaration, ran)
    names = protocol_names(line.protocol for line in (*a, *b))
    return Part(
        id="labels",
        title=f"Label strategies ({declaration.paper})",
        short="Labels",
        about="The labels of the synthetic images. `hard`: one class each; `target`: the expert's predictions at the "
        "target epoch; `last`: its predictions at one fixed epoch; `learned`: optimised with the images.",
        make="dcbench reproduce figure2",
        figures=[*_on_the_way(declaration, a, names), *_labels_alone(declaration, b, a, names)],
    )


def _on_the_way(declaration: Declaration, lines: Sequence[figure2.Line], names: dict[str, str]) -> Iterator[Figure]:
    for panel in figure2.panels(lines):
        drawn = [
            Line(name=name, method=line.labels, points=list(map(_best, line.points)), variant=variant)
            for variant, (line, name) in enumerate(figure2.labelled(panel, names))
        ]
        yield Figure(
            title=f"{declaration.paper}a: {panel[0].title}",
            caption=not_comparable(names[line.protocol] for line in panel)
            + "Best test accuracy so far against iteration, by label strategy: the "
            "running maximum of the mean over networks, chosen on the test images, as in the paper.",
            made=_made(figure2.rows_a(panel), names),
            plot=Plot(x="iteration", y="best test accuracy so far, %", lines=drawn, scaled="x", stepped=True),
            notes=[*figure2.protocols(panel, names), declaration.note],
            numbers=[table_of(_in_percent(figure2.rows_a(panel), names), _A)],
        )


def _labels_alone(
    declaration: Declaration, lines: Sequence[figure2.Line], beside: Sequence[figure2.Line], names: dict[str, str]
) -> Iterator[Figure]:
    for panel in figure2.panels(lines):
        best = [line for line in beside if line.panel == panel[0].panel]
        flat = [
            Line(name=f"best of {name}", method=line.labels, points=[_best(line.best)], variant=variant, flat=True)
            for variant, (line, name) in enumerate(figure2.labelled(best, names))
        ]
        yield Figure(
            title=f"{declaration.paper}b: {panel[0].title}",
            caption=not_comparable(names[line.protocol] for line in panel)
            + f"Test accuracy of labels alone, on real images that stay as they "
            f"are, by the epoch of the teacher; {_BAR}{' Dashed: the best that a strategy reached.' if flat else ''}",
            made=_made(figure2.rows_b(panel), names),
            plot=Plot(x="epoch of the teacher", y="test accuracy, %", lines=[*_by_epoch(panel, names), *flat]),
            notes=[*figure2.protocols(panel, names), declaration.note],
            numbers=[table_of(_in_percent(figure2.rows_b(panel), names), _B)],
        )


def _by_epoch(panel: Sequence[figure2.Line], names: dict[str, str]) -> Iterator[Line]:
    """Yield a line for every protocol of labels alone."""
    protocols = dict.fromkeys(line.protocol for line in panel)
    for variant, protocol in enumerate(protocols):
        points = [_alone(line) for line in panel if line.protocol == protocol]
        called = "labels alone" + (f", {names[protocol]}" if len(protocols) > 1 else "")
        yield Line(name=called, method=panel[0].labels, points=points, variant=variant)


def _best(point: figure2.Point) -> Point:
    best = 100 * point.best_so_far
    return Point(point.iteration, best, f"{best:.1f} % (this set {point} %)")


def _alone(line: figure2.Line) -> Point:
    last = line.points[-1]
    mean, std = 100 * last.accuracy, 100 * last.std_networks
    ends = (mean - std, mean + std) if last.networks > 1 else (None, None)
    return Point(line.last_epoch, mean, f"{last} %", *ends)


def _made(rows: pd.DataFrame, names: dict[str, str]) -> Made:
    found = facts(rows.assign(protocol=rows["protocol"].map(names)))
    return Made(facts=found, commands=["dcbench reproduce figure2", *values(rows, "command")])


def _in_percent(rows: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Return tidy rows in percent, with short names of protocols, and without a deviation if there was one network."""
    spread = (100 * rows["std_networks"]).where(rows["networks"] > 1)
    scaled = {name: 100 * rows[name] for name in ("accuracy", "best_so_far") if name in rows}
    return rows.assign(**scaled, std_networks=spread, protocol=rows["protocol"].map(names))
