"""The cells of a results folder: which there are, and everything about one of them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcbench_tesla.compare.changes import (
    Changes,
    changes_of,
    changes_of_failure,
    differing,
    in_words,
    own_protocol,
    shared,
)
from dcbench_tesla.compare.table import fitted, wrapped
from dcbench_tesla.errors import CorruptFileError, UsageError, unknown_name
from dcbench_tesla.records.progress import duration, size, small_size
from dcbench_tesla.records.rows import mark, stage_rows, tell_contents_apart
from dcbench_tesla.records.store import parse_json, read_json
from dcbench_tesla.records.text import printable
from dcbench_tesla.records.workspace import OWN, Workspace

if TYPE_CHECKING:
    from dcbench_tesla.cli.shown import output

OK, UNFINISHED = "ok", "unfinished"
SORTS = ("cell", "accuracy", "time")
_KEYS = ("method", "data set", "IPC", "seed", "evaluator", "preset")
_CURVE_WIDTH, _CURVE_HEIGHT = 60, 10

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """One cell by what is on record of it: its evaluations, the row of a failure, or the configuration of a begun one.

    Args:
        workspace: where it is.
        rows: the rows of its evaluations, or one other row.
        made: the row of its condensation.
        status: ``ok``, ``unfinished``, or how it failed.
    """

    workspace: Workspace
    rows: Sequence[Row]
    made: Row | None
    status: str

    @property
    def row(self) -> Row:
        """The first row."""
        return self.rows[0]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return str(self.row["cell"])

    @property
    def folder(self) -> Path:
        """Its folder, which need not be on this machine."""
        return self.workspace.cells / self.name

    @property
    def reason(self) -> str:
        """Why it failed, or an empty text."""
        return str(self.row.get("reason", ""))

    @cached_property
    def changes(self) -> Mapping[str, str]:
        """The settings that its command changed and that act on a result."""
        return {label: value for row in self.rows for label, value in self.changes_by(row).given.items()}

    def changes_by(self, row: Row) -> Changes:
        """Return what one of its rows changed."""
        return changes_of(row, self.made) if self.status == OK else changes_of_failure(row)

    @cached_property
    def written(self) -> float:
        """When its last row or its configuration was written, in seconds since 1970."""
        return max(_written(self, row) for row in self.rows)

    @property
    def accuracy(self) -> float:
        """The mean of ``last`` by its first evaluator; -1 without one."""
        return float(self.row["accuracy"]["last"]["mean"]) if self.status == OK else -1.0


def _written(cell: Found, row: Row) -> float:
    root = cell.workspace.root
    if mark(row) and cell.workspace.shipped:
        root = cell.workspace.shipped
    file = root / "rows" / f"{row.get('stage')}-{row.get('key')}.json"
    for path in (cell.folder / "config.json",) if cell.status == UNFINISHED else (file,):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def found_cells(workspace: Workspace) -> list[Found]:
    """Return all cells: failed ones, then unfinished ones, then the others, each by method, data set, IPC and seed.

    Data sets of one name and several contents get different names, like in tables.
    """
    tested, made, failed = (stage_rows(workspace, stage) for stage in ("evaluate", "condense", "failed"))
    begun = list(_begun(workspace, {row["cell"] for row in (*tested, *failed)}))
    tell_contents_apart(workspace, [*tested, *made, *failed])
    condensed = {row["key"]: row for row in made}
    together: dict[tuple[str, str], list[Row]] = {}
    for row in tested:
        together.setdefault((row["cell"], row.get("origin", OWN)), []).append(row)
    finished = [Found(workspace, rows, _made(rows[0], condensed), OK) for rows in together.values()]
    return [
        *sorted((Found(workspace, [row], None, row["status"]) for row in failed), key=_order),
        *sorted((Found(workspace, [row], None, UNFINISHED) for row in begun), key=_order),
        *sorted(finished, key=_order),
    ]


def _made(row: Row, condensed: Mapping[str, Row]) -> Row | None:
    return None if "set" in row else condensed.get(row["condense_key"])


def _begun(workspace: Workspace, known: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the configurations of cells that have no row yet; damaged ones are told when the cell is run."""
    for path in sorted(workspace.cells.glob("*/config.json")):
        if path.parent.name not in known:
            with suppress(CorruptFileError, FileNotFoundError):
                config = read_json(path, "config")
                yield {**config, "cell": path.parent.name, "ipc": config["identity"].get("ipc", config["ipc"])}


def _order(cell: Found) -> tuple[Any, ...]:
    row = cell.row
    return (row["method"], row["dataset"], row["ipc"] or 0, row["seed"], cell.name)


def chosen(
    cells: Sequence[Found],
    *,
    methods: Collection[str] = (),
    datasets: Collection[str] = (),
    statuses: Collection[str] = (),
    last: int | None = None,
    sort: str = SORTS[0],
) -> list[Found]:
    """Return the cells that are asked for; failed ones stay first.

    Args:
        cells: all cells.
        methods: only these methods; empty: all.
        datasets: only these data sets; empty: all.
        statuses: only these; ``failed`` stands for every way to fail. Empty: all.
        last: only so many, those whose results were written last.
        sort: one of :data:`SORTS`.
    """
    asked = ((methods, "method"), (datasets, "dataset"))
    kept = [c for c in cells if all(not names or c.row[name] in names for names, name in asked)]
    kept = [c for c in kept if not statuses or c.status in statuses or ("failed" in statuses and _has_failed(c))]
    if last is not None:
        latest = sorted(kept, key=lambda c: -c.written)[:last]
        kept = [c for c in kept if c in latest]
    if sort == "time":
        kept.sort(key=lambda c: -c.written)
    if sort == "accuracy":
        kept.sort(key=lambda c: -c.accuracy)
    return sorted(kept, key=lambda c: 0 if _has_failed(c) else 1)


def _has_failed(cell: Found) -> bool:
    return cell.status not in (OK, UNFINISHED)


# ---- the list --------------------------------------------------------------------------------------------------------


def listed(cells: Sequence[Found], width: int) -> list[str]:
    """Return the lines of the list of cells: what all share above it, and of each only what differs."""
    rows = [(cell, row) for cell in cells for row in cell.rows]
    texts = [_texts(cell, row) for cell, row in rows]
    same = [name for name in _KEYS if len({text[name] for text in texts}) == 1 and len(texts) > 1]
    changes = [cell.changes_by(row) for cell, row in rows]
    alike = shared(changes) if len(rows) > 1 else {}
    keys = [name for name in _KEYS if name not in same]
    above = [f"{name} {texts[0][name]}" for name in same if texts[0][name]]
    above += [f"changed: {in_words(alike)}"] if alike else []
    results = [text["last"] for text in texts]
    longest = max(map(len, results))
    body = [[*(t[name] for name in keys), t["last"].rjust(longest), t["cell"]] for t in texts]
    told = differing(changes) if len(rows) > 1 else [in_words(change.given) for change in changes]
    told = [" ".join(filter(None, [text, cell.reason])) for text, (cell, _) in zip(told, rows, strict=True)]
    head = [*keys, "last, %", "cell"]
    about = "changed, why it failed" if any(cell.reason for cell in cells) else "changed"
    shown = fitted(head, body, width, keys=len(keys) or 1, left=len(head), told=told, told_as=about)
    return [*(wrapped(", ".join(above), width) if above else []), *([""] if above else []), *shown]


def _texts(cell: Found, row: Row) -> dict[str, str]:
    last = row["accuracy"]["last"] if cell.status == OK else None
    return {
        "method": row["method"],
        "data set": row["dataset"],
        "IPC": "all" if row["ipc"] is None else str(row["ipc"]),
        "seed": str(row["seed"]),
        "evaluator": row.get("evaluator", ""),
        "preset": own_protocol(row["protocol"]),
        "last": cell.status if last is None else f"{100 * last['mean']:.1f} ± {100 * last['std']:.1f}",
        "cell": cell.name + mark(row),
    }


# ---- one cell --------------------------------------------------------------------------------------------------------


def find(cells: Sequence[Found], asked: str) -> Found:
    """Return the cell of a name, the beginning of one or of its key, or a folder.

    Raises:
        UsageError: no cell or several cells are meant.
    """
    name = Path(asked).name or asked
    for fitting in (
        [c for c in cells if c.name == name],
        [c for c in cells if name and (c.name.startswith(name) or c.name.rpartition("-")[2].startswith(name))],
    ):
        if len(fitting) > 1 and len({c.name for c in fitting}) > 1:
            raise UsageError(f"{asked!r} stands for {len(fitting)} cells: {', '.join(c.name for c in fitting[:4])} ...")
        if fitting:
            return fitting[-1]  # of one that failed and was finished before, what is finished
    if not cells:
        raise UsageError("there are no cells here: dcbench run makes them, --out names another folder.")
    raise unknown_name("cell", asked, sorted({c.name for c in cells}))


def curve(cell: Found) -> tuple[str | None, list[tuple[int, float]]]:
    """Return what is known over the iterations: the test accuracy where sets were tested on the way, else the loss."""
    evaluated = cell.row.get("evaluated", ())
    if len(evaluated) > 1:
        return "test accuracy", [(e["iteration"], sum(e["test"]) / len(e["test"])) for e in evaluated]
    losses = list(_losses(cell.folder / "metrics.jsonl"))
    return ("loss", losses) if len(losses) > 1 else (None, [])


def _losses(path: Path) -> Iterator[tuple[int, float]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            noted = parse_json(line)
            yield int(noted["iteration"]) + 1, float(noted["loss"])


def drawn(points: Sequence[tuple[int, float]], *, percent: bool) -> list[str]:
    """Return a curve as lines of text: the y axis on the left, the iterations below."""
    xs, ys = [x for x, _ in points], [100 * y if percent else y for _, y in points]
    low, high = min(ys), max(ys)
    across, up = max(xs[-1] - xs[0], 1), (high - low) or 1.0
    grid = [[" "] * _CURVE_WIDTH for _ in range(_CURVE_HEIGHT)]
    for x, y in zip(xs, ys, strict=True):
        column = round((x - xs[0]) / across * (_CURVE_WIDTH - 1))
        grid[_CURVE_HEIGHT - 1 - round((y - low) / up * (_CURVE_HEIGHT - 1))][column] = "•"
    form = ".1f" if percent else ".4g"
    names = [f"{high:{form}}", *[""] * (_CURVE_HEIGHT - 2), f"{low:{form}}"]
    left = max(map(len, names))
    lines = [f"{name.rjust(left)} ┤{''.join(row).rstrip()}" for name, row in zip(names, grid, strict=True)]
    begin, end = str(xs[0]), f"{xs[-1]} iterations"
    axis = f"{' ' * left} └{'─' * _CURVE_WIDTH}"
    return [*lines, axis, f"{' ' * (left + 2)}{begin}{end.rjust(_CURVE_WIDTH - len(begin))}"]


def files(cell: Found) -> list[tuple[str, int]]:
    """Return the files of a cell with their bytes; those in its subfolders are counted together, by folder."""
    sizes: dict[str, int] = {}
    for path in sorted(cell.folder.rglob("*")):
        parts = path.relative_to(cell.folder).parts
        if not parts[0].startswith(".") and path.is_file():
            name = parts[0] if len(parts) == 1 else f"{parts[0]}/"
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return list(sizes.items())


def described(cell: Found, width: int) -> list[str]:
    """Return everything about one cell as lines of text."""
    what, points = curve(cell)
    lines = [f"{cell.name}{mark(cell.row)}", *_pairs(_about(cell), width)]
    lines += ["", "settings that differ from the preset:", *_pairs(cell.changes.items() or [("none", "")], width)]
    if cell.status == OK:
        lines += ["", "test accuracy in %:", *_accuracies(cell, width)]
    if what:
        lines += ["", f"{what}{' in %' if what == 'test accuracy' else ''}:", *drawn(points, percent=what != "loss")]
    lines += ["", "how it was made:", *_pairs(_made_by(cell), width)]
    if told := files(cell):
        lines += ["", f"files in {cell.folder}:", *_pairs([(name, small_size(count)) for name, count in told], width)]
    return [printable(line) for line in lines]


def _pairs(pairs: Any, width: int) -> list[str]:
    pairs = [(str(name), str(value)) for name, value in pairs]
    left = max(len(name) for name, _ in pairs)
    return [
        line
        for name, value in pairs
        for line in (
            wrapped(value, max(width, left + 20), first=f"  {name.ljust(left)}  ", indent=" " * (left + 4))
            or [f"  {name}"]
        )
    ]


def _about(cell: Found) -> list[tuple[str, str]]:
    row = cell.row
    told = [
        ("status", cell.status if not cell.reason else f"{cell.status}: {cell.reason}"),
        ("method", row["method"]),
        ("data set", row["dataset"]),
        ("images per class", "all" if row["ipc"] is None else str(row["ipc"])),
        ("seed", str(row["seed"])),
        ("protocol", row["protocol"].partition(", changed: ")[0]),
    ]
    source = row.get("protocol_source")
    return [*told, ("source", source)] if source else told


def _accuracies(cell: Found, width: int) -> list[str]:
    body = []
    for row in cell.rows:
        found = [row["accuracy"][name] for name in ("last", "best_on_validation", "best_on_test")]
        texts = ["" if a is None else f"{100 * a['mean']:.1f} ± {100 * a['std']:.1f}" for a in found]
        body.append([row["evaluator"], *texts, str(row["networks"])])
    head = ["evaluator", "last", "best on validation", "best on test", "networks"]
    recipes = [row["recipe"] for row in cell.rows]
    return [f"  {line}" for line in fitted(head, body, width - 2, told=recipes, told_as="recipe")]


def _made_by(cell: Found) -> list[tuple[str, str]]:
    facts = condensation(cell)
    shown = {"seconds": duration, "peak_bytes": size, "learned_lr": "{:.4g}".format, "final_loss": "{:.4g}".format}
    shown["energy_joules"] = "{:.0f} J".format
    names = {
        "seconds": "condensation",
        "energy_joules": "energy",
        "energy_by": "energy by",
        "peak_bytes": "peak of the tensors",
        "learned_lr": "learned learning rate",
    }
    told = [(names.get(n, n.replace("_", " ")), shown[n](v) if n in shown else str(v)) for n, v in facts.items()]
    evaluated = sum(row["evaluate_seconds"] for row in cell.rows) if cell.status == OK else None
    told += [("evaluation", duration(evaluated))] if evaluated is not None else []
    made = origin(cell)
    versions = made.pop("versions", {})
    told += [(name, str(value)) for name, value in made.items() if value not in ("", None)]
    told += [("versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v))] if versions else []
    return told


def condensation(cell: Found) -> dict[str, Any]:
    """Return the known facts of the condensation by name."""
    made = cell.made or {}
    names = {"condense_seconds": "seconds", "peak_bytes": "peak_bytes", "iterations": "iterations"}
    names |= {"energy_joules": "energy_joules", "energy_by": "energy_by"}
    names |= {"learned_lr": "learned_lr", "final_loss": "final_loss", "distilled_images": "images"}
    return {name: made[key] for key, name in names.items() if made.get(key) is not None}


def origin(cell: Found) -> dict[str, Any]:
    """Return how a cell was made: command, hardware, commit, versions, device and threads."""
    row, where = cell.row, cell.row.get("environment", {})
    told = {"command": row["command"], "hardware": row.get("hardware", "")}
    return told | {name: where[name] for name in ("commit", "device", "threads", "versions") if name in where}


# ---- JSON ------------------------------------------------------------------------------------------------------------


def as_json(cell: Found) -> "output.Cell":
    """Return a cell as ``--json`` prints it."""
    from dcbench_tesla.cli.shown import output

    row = cell.row
    return output.Cell(
        name=cell.name,
        method=row["method"],
        dataset=row["dataset"],
        ipc=row["ipc"],
        seed=row["seed"],
        preset=row["preset"],
        settings=cell.changes,
        status=cell.status,
        reason=cell.reason,
        origin="shipped" if mark(row) else "own",
        folder=str(cell.folder) if cell.folder.exists() else None,
        evaluations=[output.evaluation_of(found, cell.changes_by(found).given) for found in cell.rows]
        if cell.status == OK
        else [],
    )


def show_as_json(cell: Found) -> "output.Show":
    """Return everything about a cell as ``--json`` prints it."""
    from dcbench_tesla.cli.shown import output

    what, points = curve(cell)
    return output.Show(
        cell=as_json(cell),
        curve_of="loss" if what == "loss" else "test accuracy" if what else None,
        curve=[output.Point(iteration=x, value=y) for x, y in points],
        condensation=condensation(cell),
        made=origin(cell),
        files=[output.File(name=name, bytes=count) for name, count in files(cell)],
    )
