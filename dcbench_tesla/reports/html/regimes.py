"""The part with `dcbench compare regimes`: accuracy by the labels that networks were trained with."""

from dcbench_tesla.compare.accuracy import Section, Wanted
from dcbench_tesla.compare.regimes import REGIMES, missing, regimes, sections
from dcbench_tesla.config import OWN_LABELS
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.html.lines import made_of
from dcbench_tesla.reports.html.parts import Figure, Part, Table


def regimes_part(workspace: Workspace) -> Part:
    """Return the part with a table for every data set, IPC, preset and evaluator that has several label regimes.

    Commands make what is missing. Without a row of other labels than the sets' own there are no tables.
    """
    table = regimes(workspace, Wanted())
    told = {section.title: section for section in sections(table)}
    shown = {title: own for title, own in told.items() if set(own.rows["regime"]) - {OWN_LABELS}}
    return Part(
        id="regimes",
        title="Label regimes",
        short="Labels by regime",
        about="What networks learn from a set's images depends on the labels they are given: `hard` are the classes of "
        f"the set's labels, `{REGIMES[OWN_LABELS]}` the set's own, and with `teacher` a trained network labels every "
        "augmented batch. Methods are compared with `random` under the same labels.",
        make="dcbench run --method random --set evaluation.labels=teacher",
        figures=[_figure(section) for section in shown.values()],
    )


def _figure(section: Section) -> Figure:
    body = [[cell._replace(text=cell.text.replace("`", "")) for cell in line] for line in section.body]
    lacking = [f"missing: `{command}`" for command in missing(section.rows)]
    return Figure(
        title=section.title,
        caption=section.about,
        made=made_of(section.rows),
        table=Table(head=section.head, body=body),
        notes=[*section.notes, *lacking],
    )
