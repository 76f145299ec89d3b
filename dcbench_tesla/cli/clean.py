"""`dcbench clean`: what takes room beside results, and its removal."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcbench_tesla.cli.common import json_option, options, out_option, terminal_width
from dcbench_tesla.cli.completion import one_of
from dcbench_tesla.records.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dcbench_tesla.cli.shown.output import Taken
    from dcbench_tesla.cli.shown.room import Room

_KINDS = ("experts", "snapshots", "checkpoints", "compiled", "preprocessing", "jobs", "tuning")


@click.command()
@options(
    click.argument("what", nargs=-1, shell_complete=one_of(_KINDS)),
    out_option,
    click.option("-y", "--yes", is_flag=True, help="Remove without asking."),
    click.option("--all", "every", is_flag=True, help="Show every one of a kind, not the kinds alone."),
    json_option,
)
def clean(what: tuple[str, ...], out: Path, yes: bool, every: bool, as_json: bool) -> None:
    """Show what takes how much room, and remove what is named.

    WHAT is experts, snapshots (distilled sets on the way), checkpoints (of finished condensations), compiled (code of
    compiled steps, shared by all results folders), preprocessing, jobs or tuning (searches that were not finished);
    experts:KEY and snapshots:CELL name one of them. Without WHAT nothing is removed. Results are never removed: rows,
    distilled sets, sheets, tables, figures.
    Experts that are removed are trained again where a run needs them; a cell without its snapshots is not evaluated on
    the way any more.

    \b
    Examples:
      dcbench clean
      dcbench clean --all
      dcbench clean checkpoints compiled
      dcbench clean snapshots:tesla-digits-ipc1-seed0-0123456789 --yes
    """
    from dcbench_tesla.cli.shown import room
    from dcbench_tesla.records.progress import say, small_size

    found = room.taken(Workspace(out))
    wanted = room.named(found, what)
    freed = sum(one.bytes for one in wanted)
    content = _content(found) if as_json else []
    if as_json and wanted and not yes:
        raise click.UsageError("--json asks nothing: give --yes to remove what is named.")
    if not as_json and (every or not what):
        _show(found, out, every=every)
    if wanted and (yes or click.confirm(f"Remove {', '.join(_names(wanted))} ({small_size(freed)})?", default=False)):
        for one in wanted:
            room.remove(one)
        say(f"removed: {small_size(freed)}")
    elif what:
        freed = 0
        say("nothing was removed")
    if as_json:
        from dcbench_tesla.cli.shown.output import Clean, emit

        emit(Clean(taken=content, removed_bytes=freed))


def _names(rooms: "Sequence[Room]") -> list[str]:
    labels = [room.label for room in rooms]
    return labels if len(labels) < 6 else [*labels[:5], f"{len(labels) - 5} more"]


def _show(rooms: "Sequence[Room]", out: Path, *, every: bool) -> None:
    from dcbench_tesla.compare.table import fitted
    from dcbench_tesla.records.progress import small_size

    if every:
        rows = [(room.label, room.bytes, room.about) for room in rooms]
    else:
        kinds = dict.fromkeys(room.what for room in rooms)
        rows = [_kind([room for room in rooms if room.what == kind]) for kind in kinds]
    rows.sort(key=lambda row: -row[1])
    body = [[name, small_size(count)] for name, count, _ in rows]
    lines = fitted(["what", "takes"], body, terminal_width(), told=[about for *_, about in rows], told_as="that is")
    for line in lines if rows else [f"nothing under {out}"]:
        click.echo(line)


def _kind(rooms: "Sequence[Room]") -> tuple[str, int, str]:
    several = sorted({room.about for room in rooms})
    about = (
        several[0]
        if len(rooms) == 1
        else f"{len(rooms)} of them: {', '.join(several[:3])}" + " ..." * (len(several) > 3)
    )
    return rooms[0].what, sum(room.bytes for room in rooms), about


def _content(rooms: "Sequence[Room]") -> "list[Taken]":
    from dcbench_tesla.cli.shown.output import Taken

    taken = [Taken(what=room.what, name=room.name, bytes=room.bytes, about=room.about) for room in rooms]
    return sorted(taken, key=lambda one: -one.bytes)
