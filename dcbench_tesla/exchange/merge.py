"""Merges results folders of several machines. Equal results count as one, and conflicts are reported, not overwritten.

Two rows with the same key are equal if their results are (:data:`RESULTS`), whichever machine, time and commit computed
them. Two distilled sets of one cell are equal if their digests are. Threads, hardware and a method's execution settings
are part of no key: where they differ, results that are equal up to rounding count as equal, one of them is kept, and
the merge says so.
"""

import math
import os
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock, Timeout

from dcbench_tesla.compare import gradient, memory, timing
from dcbench_tesla.compare.files import merge_csv, read_csv
from dcbench_tesla.distilled import FORMAT
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.records.rows import is_settled, read_row
from dcbench_tesla.records.store import atomic_path, load_tensors, read_meta, writing
from dcbench_tesla.records.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

RESULTS: Mapping[str, Sequence[str]] = {
    "condense": ("iterations", "distilled_images", "final_loss", "learned_lr"),
    "evaluate": ("accuracy", "evaluated"),
    "experts": ("experts", "epochs"),
    "failed": (),
    "trial": ("values", "validation"),
}
"""The columns of a stage's row that are results. The others hold the request, which is in the key, or its execution."""

TABLES: Mapping[str, Sequence[str]] = {"memory.csv": memory.KEY, "time.csv": timing.KEY, "gradient.csv": gradient.KEY}
"""The comparisons under ``figures/``, with the columns that identify their rows."""

_REMEDY = "delete the one here and merge again to take the other"
_ABOUT = ("commit", "torch")  # columns of comparisons that say which code measured, and are no results
_DISTILLED = "distilled.safetensors"
# of a cell: not what an interrupted run goes on from, on its own device, nor what it said on the way
_OF_A_CELL = (_DISTILLED, "config.json", "environment.json", "metrics.jsonl", "sheet.png", "snapshots/*.safetensors")
_OF_AN_EXPERT = ("epoch_*",)
_OF_A_RECIPE, _OF_PREPROCESSING = ("recipe.json", "imported.json"), ("*.safetensors", "fit-*.json")
# results of one key that other threads, another machine or other execution settings computed: equal to rounding
_CLOSE = {"final_loss": 1e-3, "learned_lr": 1e-3}  # relative
_CLOSE_TENSOR = 1e-3  # of the largest value
_CLOSE_ACCURACY = 0.005  # a fraction, besides two standard errors: rounding leads a network to another end

Row = Mapping[str, Any]


@dataclass
class Merged:
    """The result of merging one source.

    Args:
        new: rows that were copied, those of comparisons included.
        here: rows that the target had already.
        conflicts: rows and sets that contradict the target.
        sets: cells that were copied with their distilled sets.
        experts: experts that were copied.
        damaged: the reason for each file that was left out.
    """

    new: int = 0
    here: int = 0
    conflicts: int = 0
    sets: int = 0
    experts: int = 0
    damaged: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything was merged, without conflicts and damaged files."""
        return not self.conflicts and not self.damaged

    def __str__(self) -> str:
        conflicts = f"{self.conflicts} conflict{'s' * (self.conflicts != 1)}"
        sets = f"{self.sets} set{'s' * (self.sets != 1)}"
        experts = f" and {self.experts} expert{'s' * (self.experts != 1)}" if self.experts else ""
        rows = f"{self.new} row{'s' * (self.new != 1)}"
        return f"{rows} new, {self.here} already here, {conflicts}; {sets}{experts} copied"


def check_source(source: Workspace, target: Workspace) -> None:
    """Check that ``source`` is a results folder other than ``target``.

    Raises:
        UsageError: ``source`` has no rows and no comparisons, or is the target.
    """
    if source.root.resolve() == target.root.resolve():
        raise UsageError(f"{source.root} is --out: it cannot be merged into itself.")
    if not any(source.rows.glob("*.json")) and not any((source.figures / name).is_file() for name in TABLES):
        raise UsageError(f"{source.root} holds no rows: name a results folder of dcbench.")


def merge(
    source: Workspace,
    target: Workspace,
    *,
    tensors: bool = True,
    experts: bool = False,
    tell: Callable[[str], None],
) -> Merged:
    """Copy the results of ``source`` that ``target`` lacks. Existing results are not overwritten.

    Conflicts and damaged files are reported, and everything else is merged.

    Args:
        source: the results to copy.
        target: where to copy them.
        tensors: copy the folders of cells whose distilled set is not in ``target``.
        experts: copy expert trajectories and whitenings.
        tell: called with messages about conflicts and damaged files.

    Raises:
        UsageError: see :func:`check_source`.
        DcbenchError: the target cannot be written.
    """
    check_source(source, target)
    merging = _Merge(source, target, tell)
    merging.rows_and_sets(tensors=tensors)
    for name, key in TABLES.items():
        merging.table(name, key)
    merging.tell_rounded()
    if experts:
        merging.experts()
    if merging.result.damaged:
        tell(f"left out: {'; '.join(merging.result.damaged)}")
    return merging.result


class _Merge:
    """The merge of one source; ``disputed`` are keys of condensations with different results in source and target."""

    def __init__(self, source: Workspace, target: Workspace, tell: Callable[[str], None]) -> None:
        self.source, self.target, self.tell = source, target, tell
        self.result = Merged()
        self.disputed: set[str] = set()
        self.otherwise: dict[str, str] = {}  # how a condensation was computed here and there, where that differs
        self.rounded: dict[str, str] = {}  # the same, of those whose results differ, and are equal to rounding

    def rows_and_sets(self, *, tensors: bool) -> None:
        theirs, ours = list(self._rows(self.source, told=True)), list(self._rows(self.target, told=False))
        for row in theirs:
            if row["stage"] == "condense":
                self._row(row)
        sets = self._sets()  # which evaluations are copied depends on disputed sets
        for row in theirs:
            if row["stage"] in ("evaluate", "experts", "trial"):
                self._row(row)
        self._failures(theirs, ours)
        for key, folder in sets.items():
            if tensors and key not in self.disputed:
                self._copy_cell(folder)
        self._copy_sheets(sets, theirs)

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _rows(self, workspace: Workspace, *, told: bool) -> Iterator[Row]:
        """Yield the rows of a workspace; with ``told``, record damaged files."""
        for path in self._own(workspace, _visible(workspace.rows), told=told):
            try:
                yield _read_row(path)
            except CorruptFileError as error:
                self.result.damaged += [str(error)] * told

    def _own(self, workspace: Workspace, paths: Iterable[Path], *, told: bool = True) -> Iterator[Path]:
        """Yield the paths that lie in a workspace; what a link leads to elsewhere is nobody's result."""
        root = os.path.realpath(workspace.root)
        for path in paths:
            if Path(os.path.realpath(path)).is_relative_to(root):
                yield path
            elif told:
                self.result.damaged.append(f"{path} is a link out of {workspace.root}")

    def _row(self, row: Row) -> None:
        """Copy a row of a finished stage, unless the target has one or the row's distilled set is disputed."""
        name = _name(row)
        mine, other = self.target.rows / name, self.source.rows / name
        if mine.exists():
            self._compare(mine, other, row)
        elif row.get("condense_key") in self.disputed:
            self._conflict(f"{other} evaluates another distilled set than the one here: left out while that one stays")
        else:
            _copy(other, mine)
            self.result.new += 1

    def _compare(self, mine: Path, other: Path, row: Row) -> None:
        try:
            here = _read_row(mine)
        except CorruptFileError as error:
            self.result.damaged.append(str(error))
            return
        columns = RESULTS[row["stage"]]
        difference = _difference({c: here[c] for c in columns}, {c: row[c] for c in columns})
        other_way = self._computed_otherwise(here, row)
        if row["stage"] == "condense":
            self.otherwise[row["key"]] = other_way
        if not difference or (other_way and _is_rounding(here, row)):
            self.result.here += 1
            if difference:
                self.rounded[row.get("condense_key", row["key"])] = other_way
            return
        self._conflict(f"{mine} and {other} differ: {difference}. The one here stays; {_REMEDY}")
        if row["stage"] == "condense":
            self.disputed.add(row["key"])

    def _computed_otherwise(self, here: Row, there: Row) -> str:
        """Return in which execution settings two rows of one key differ, those of their condensation counted in."""
        if told := _difference(_execution(here), _execution(there)):
            return told
        return self.otherwise.get(there.get("condense_key", ""), "")

    def tell_rounded(self) -> None:
        """Say what was computed otherwise here and there, and is equal to rounding."""
        if self.rounded:
            count, how = len(self.rounded), next(iter(self.rounded.values()))
            results = f"{count} result{'s' * (count != 1)}"
            self.tell(
                f"{results} here and there {'are' if count > 1 else 'is'} equal to rounding; the one here stays ({how})"
            )

    def _conflict(self, text: str, count: int = 1) -> None:
        self.result.conflicts += count
        self.tell(f"conflict: {text}.")

    def _failures(self, theirs: Iterable[Row], ours: Iterable[Row]) -> None:
        """Merge the rows of failures; drop a failure if all the evaluations that it names are now in the target.

        A failure of an older version names no evaluations. It is dropped if the other side has finished rows of its
        cell that its own side lacks.
        """
        theirs, ours = list(theirs), list(ours)
        done_there, done_here = _finished(theirs), _finished(ours)

        def falls(row: Row, other_side: Mapping[str, set[str]], its_side: Mapping[str, set[str]]) -> bool:
            if "evaluations" in row:
                return is_settled(self.target, row)
            return bool(other_side[row["key"]] - its_side[row["key"]]) and row["key"] not in self.disputed

        for row in (r for r in ours if r["stage"] == "failed"):
            if falls(row, done_there, done_here):
                self.target.drop_row("failed", row["key"])
        for row in (r for r in theirs if r["stage"] == "failed"):
            if falls(row, done_here, done_there):
                continue
            mine = self.target.rows / _name(row)
            if mine.exists():
                self.result.here += 1
            else:
                _copy(self.source.rows / _name(row), mine)
                self.result.new += 1

    # ---- distilled sets --------------------------------------------------------------------------------------------

    def _sets(self) -> dict[str, Path]:
        """Return the source's cells with a distilled set, by key; sets that differ from the target's are disputed."""
        found = {}
        for path in self._own(self.source, sorted(self.source.cells.glob(f"*/{_DISTILLED}"))):
            mine = self.target.cells / path.parent.name / _DISTILLED
            try:
                theirs, here = _meta(path), _meta(mine) if mine.exists() else None
            except CorruptFileError as error:
                self.result.damaged.append(str(error))
                continue
            key = str(theirs.get("provenance", {}).get("key") or path.parent.name)
            found[key] = path.parent
            if here is None or here.get("digest") == theirs.get("digest"):
                continue
            if self.otherwise.get(key) and _are_close(mine, path):
                self.rounded[key] = self.otherwise[key]
            else:
                self.disputed.add(key)
                self._conflict(f"{mine} and {path} hold different images. The one here stays; {_REMEDY}")
        return found

    def _copy_cell(self, folder: Path) -> None:
        """Copy a cell's folder, unless its set is here. The set goes last, so that a cell with a set is complete."""
        mine = self.target.cells / folder.name
        if (mine / _DISTILLED).exists():
            return
        try:
            _, meta = load_tensors(folder / _DISTILLED)
            self._copy_whitening(folder, meta.get("preprocessing", {}).get("shared"))
        except CorruptFileError as error:
            self.result.damaged.append(str(error))
            return
        with writing(mine):
            mine.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(mine / ".lock", timeout=0):
                self._copy_tree(folder, mine, _OF_A_CELL, last=_DISTILLED)
        except Timeout:
            self.result.damaged.append(f"{mine} is running here: merge again when it has ended")
            return
        self.result.sets += 1

    def _copy_whitening(self, folder: Path, key: str | None) -> None:
        """Copy the whitening that a distilled set needs, if it is in a separate file."""
        if key is None:
            return
        path = self.source.preprocessing / f"{key}.safetensors"
        if not any(path.name == p.name for p in self._own(self.source, _visible(path.parent), told=False)):
            raise CorruptFileError(f"{folder / _DISTILLED} needs {path}, which is not there")
        _copy_missing(path, self.target.preprocessing / path.name)

    def _copy_sheets(self, sets: Mapping[str, Path], rows: Iterable[Row]) -> None:
        """Copy the pictures of sets that are not disputed."""
        cells = {r["cell"] for r in rows if r["stage"] == "condense" and r["key"] in self.disputed}
        cells |= {folder.name for key, folder in sets.items() if key in self.disputed}
        for path in self._own(self.source, _visible(self.source.sheets)):
            if path.stem not in cells and path.suffix == ".png":
                _copy_missing(path, self.target.sheets / path.name)

    # ---- comparisons, experts --------------------------------------------------------------------------------------

    def table(self, name: str, key: Sequence[str]) -> None:
        """Add the rows of a comparison whose key the target lacks, or that were measured in the source only."""
        mine, other = self.target.figures / name, self.source.figures / name
        if not other.exists() or not list(self._own(self.source, [other])):
            return
        try:
            theirs, here = read_csv(other, key), read_csv(mine, key)
        except CorruptFileError as error:
            self.result.damaged.append(str(error))
            return
        known = {_key(row, key): row for row in _records(here)}
        rows = [(row, known.get(_key(row, key))) for row in _records(theirs)]
        differing = [f"{_of(row, key)}: {told}" for row, at in rows if at is not None and (told := _differing(at, row))]
        if differing:
            more = f", and {len(differing) - 1} more rows" if len(differing) > 1 else ""
            remedy = _REMEDY.replace("the one", "the row")
            told = f"{mine} and {other} differ in {differing[0]}{more}. What is here stays; {remedy}"
            self._conflict(told, len(differing))
        new = theirs[[at is None or (_is_measured(row) and not _is_measured(at)) for row, at in rows]]
        self.result.new += len(new)
        self.result.here += len(rows) - len(new) - len(differing)
        if len(new):
            merge_csv(mine, new, key)

    def experts(self) -> None:
        """Copy whitenings and experts, except experts that exist here: trajectories of two machines do not mix."""
        for recipe in self._own(self.source, _folders(self.source.experts)):
            for expert in self._own(self.source, _folders(recipe)):
                mine = self.target.experts / recipe.name / expert.name
                if not mine.exists():
                    self._copy_expert(expert, mine)
                    self.result.experts += 1
            for path in self._own(self.source, _visible(recipe)):
                if path.name in _OF_A_RECIPE:
                    _copy_missing(path, self.target.experts / recipe.name / path.name)
        # a .json file refers to a whitening, which is therefore copied first
        fits = sorted(_visible(self.source.preprocessing), key=lambda p: p.suffix == ".json")
        for path in self._own(self.source, fits):
            if any(path.match(pattern) for pattern in _OF_PREPROCESSING):
                _copy_missing(path, self.target.preprocessing / path.name)

    def _copy_expert(self, expert: Path, mine: Path) -> None:
        """Copy an expert's snapshots, all or none: a part of a trajectory would be trained on by this machine."""
        unfinished = mine.with_name(f".{mine.name}.merging")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._copy_tree(expert, unfinished, _OF_AN_EXPERT)
        with writing(mine):
            if unfinished.exists():
                unfinished.rename(mine)

    def _copy_tree(self, source: Path, target: Path, patterns: Sequence[str], *, last: str = "") -> None:
        """Copy the files of a folder that match one of ``patterns``, in order, the one named ``last`` last."""
        found = {path for pattern in patterns for path in source.glob(pattern)}
        paths = [p for p in self._own(self.source, sorted(found)) if p.is_file() and not p.name.startswith(".")]
        for path in sorted(paths, key=lambda p: p.name == last):
            _copy(path, target / path.relative_to(source))


def _read_row(path: Path) -> Row:
    """Read a row.

    Raises:
        CorruptFileError: the file does not hold a row, or holds one of another name.
    """
    stage = path.stem.partition("-")[0]
    if stage not in RESULTS or path.suffix != ".json":
        raise CorruptFileError(f"{path} is not a row of dcbench")
    row = read_row(path, stage, remedy="It is left out.")
    if lacking := [name for name in RESULTS[stage] if name not in row]:
        raise CorruptFileError(f"{path} is incomplete: it has no {lacking[0]}")
    return row


def _name(row: Row) -> str:
    return f"{row['stage']}-{row.get('key')}.json"


def _finished(rows: Iterable[Row]) -> dict[str, set[str]]:
    """Return the names of the finished rows of every condensation, by the key of the condensation."""
    finished: dict[Any, set[str]] = defaultdict(set)
    for row in rows:
        if row["stage"] in ("condense", "evaluate"):
            finished[row["key"] if row["stage"] == "condense" else row.get("condense_key")].add(_name(row))
    return finished


def _difference(here: Any, there: Any, where: str = "") -> str:
    """Return a text that names the first difference of two JSON values, or an empty text if they are equal."""
    if isinstance(here, dict) and isinstance(there, dict) and here.keys() == there.keys():
        pairs = [(f"{where}.{name}".lstrip("."), here[name], there[name]) for name in here]
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(here, there, strict=True))]
    else:
        return "" if here == there else f"{where} is {here} here and {there} there"
    return next((told for name, a, b in pairs if (told := _difference(a, b, name))), "")


def _execution(row: Row) -> dict[str, Any]:
    """Return how a row was computed: what is part of no key, and can change the last digits."""
    environment = row["environment"]
    own = {name: row["settings"].get(name) for name in _execution_settings(row)}
    about = {name: environment.get(name) for name in ("device", "threads")}
    return {"hardware": row["hardware"], **about, "compiled": row.get("compiled", False), "settings": own}


def _execution_settings(row: Row) -> Iterable[str]:
    """Return the settings of a condensation that are not in its identity; the others are equal, as the keys are."""
    identity = row.get("identity", {}).get("settings") if row["stage"] == "condense" else None
    return sorted(row["settings"].keys() - identity.keys()) if isinstance(identity, dict) else ()


def _is_rounding(here: Row, there: Row) -> bool:
    """Return whether the results of two rows of one key are as close as two ways of computing them make them."""
    if here["stage"] == "condense":
        exact = [name for name in RESULTS["condense"] if name not in _CLOSE]
        return all(here[name] == there[name] for name in exact) and all(
            _is_close(here[name], there[name], relative) for name, relative in _CLOSE.items()
        )
    if here["stage"] == "trial":
        own, other = here["validation"], there["validation"]
        return here["values"] == there["values"] and 0 < len(own) == len(other) and _is_level(own, other)
    if here["stage"] != "evaluate" or [*map(_schedule, here["evaluated"])] != [*map(_schedule, there["evaluated"])]:
        return False
    tests = zip(here["evaluated"], there["evaluated"], strict=True)
    return all(_is_level(a["test"], b["test"]) for a, b in tests)


def _is_level(here: Sequence[float], there: Sequence[float]) -> bool:
    """Return whether the mean accuracies of equally many networks differ by no more than training them again would."""
    error = math.sqrt((statistics.pvariance(here) + statistics.pvariance(there)) / len(here))
    return abs(statistics.fmean(here) - statistics.fmean(there)) <= _CLOSE_ACCURACY + 2 * error


def _schedule(evaluated: Row) -> tuple[int, int]:
    return evaluated["iteration"], len(evaluated["test"])


def _is_close(here: float | None, there: float | None, relative: float) -> bool:
    if here is None or there is None:
        return here is there
    return math.isclose(here, there, rel_tol=relative, abs_tol=1e-12)


def _are_close(mine: Path, other: Path) -> bool:
    """Return whether two distilled sets hold the same tensors to rounding."""
    (here, _), (there, _) = load_tensors(mine), load_tensors(other)
    return here.keys() == there.keys() and all(_same_tensor(here[name], there[name]) for name in here)


def _same_tensor(here: "Tensor", there: "Tensor") -> bool:
    if (here.shape, here.dtype) != (there.shape, there.dtype):
        return False
    if not here.is_floating_point():
        return bool((here == there).all())
    largest = float(here.double().abs().max()) if here.numel() else 0.0
    return bool(((here.double() - there.double()).abs() <= _CLOSE_TENSOR * largest).all())


def _meta(path: Path) -> dict[str, Any]:
    meta = read_meta(path)
    if meta.get("format") != FORMAT:
        raise CorruptFileError(f"{path} is not a distilled set of dcbench")
    return meta


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as plain values, with ``None`` for empty ones, so that 1 equals 1.0 whatever type the column has."""
    plain = table.astype(object)
    return [{str(k): v for k, v in row.items()} for row in plain.where(plain.notna(), None).to_dict("records")]


def _key(row: Row, key: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in key)


def _of(row: Row, key: Sequence[str]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in key if row[name] is not None)


def _is_measured(row: Row) -> bool:
    return bool(row.get("status", "ok") == "ok")


def _differing(here: Row, there: Row) -> str:
    """Return a text that names the first difference of two rows in the columns of both files, or an empty text.

    A measured row does not contradict one that is not, and two rows that were not run do not contradict each other.
    """
    not_run = all(str(row.get("status")).startswith("not run") for row in (here, there))
    if not_run or _is_measured(here) != _is_measured(there):
        return ""
    shared = [name for name in here if name in there and name not in _ABOUT]
    return _difference({name: here[name] for name in shared}, {name: there[name] for name in shared})


def _visible(folder: Path) -> list[Path]:
    """Return the files in a folder except hidden ones, which are locks and unfinished files; none without a folder."""
    return [path for path in sorted(folder.glob("*")) if path.is_file() and not path.name.startswith(".")]


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*")) if path.is_dir()]


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _copy_missing(source: Path, target: Path) -> None:
    if not target.exists():
        _copy(source, target)
