"""Judging a trial: what counts as a result, and what may not happen to it."""

import hashlib
import json
import math
import re
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.processes import Ran

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "experts": ("stage", "key", "identity", "epochs", "experts"),
    "condense": ("stage", "key", "identity", "iterations", "final_loss", "learned_lr", "distilled_images"),
    "evaluate": ("stage", "key", "condense_key", "accuracy", "evaluated", "networks", "diverged_networks", "method"),
}
"""The columns of rows that carry results; the others say where, when and how long."""

_ACCURACY = re.compile(r"(\S+ ± \S+ %|\S+ % \(n=\d+\))")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_KEPT = (
    "runs/rows/*.json",
    "runs/cells/*/distilled.safetensors",
    "runs/cells/*/snapshots/*.safetensors",
    "runs/experts/*/*/*.safetensors",
    "runs/preprocessing/*.safetensors",
    "set.safetensors",
    "new.safetensors",
)


@dataclass(frozen=True)
class Results:
    """What a command left and showed: files by name with a digest of what counts in them, and accuracies.

    ``experts`` are the tensors of experts, by their names without the key of their folder.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    experts: frozenset[tuple[str, str]] = frozenset()
    shown: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def results(folder: Path, ran: Ran | None = None) -> Results:
    """Return the results under ``folder``, and the accuracies that were printed."""
    found = [path for pattern in _KEPT for path in sorted(folder.glob(pattern))]
    files = {str(path.relative_to(folder)): digest(path) for path in found if not path.name.startswith("failed-")}
    of_experts = (path for path in found if "experts" in path.relative_to(folder).parts)
    experts = frozenset((_kind(str(path.relative_to(folder))), _digest(_tensors(path))) for path in of_experts)
    shown = Counter(_ACCURACY.findall(ran.out)) if ran else Counter[str]()
    return Results(files, experts, shown, ran.seconds if ran else 0.0)


def digest(path: Path) -> str:
    """Return a digest of what counts in a file: of a row its results, of a set its tensors."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a file"
        if path.suffix == ".json":
            return _digest(_row(json.loads(path.read_text())))
        return _digest(path.read_bytes() if path.name not in ("set.safetensors", "new.safetensors") else _tensors(path))
    except (OSError, ValueError, RecursionError) as error:
        return f"unreadable: {type(error).__name__}"


def _row(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {name: row.get(name) for name in COLUMNS.get(str(row.get("stage")), tuple(row))}


def _tensors(path: Path) -> bytes:
    from dcbench_tesla.errors import DcbenchError
    from dcbench_tesla.records.store import load_tensors

    try:
        tensors, meta = load_tensors(path)
    except DcbenchError as error:
        return str(error).encode()
    head = json.dumps([meta.get("lr"), meta.get("class_names"), meta.get("augmentation")]).encode()
    return head + b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


def _digest(content: Any) -> str:
    data = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:12]


@dataclass(frozen=True)
class Trial:
    """What the judge has to know of a trial.

    ``before``: the results in the folder before the command. ``expected``: those that the command leaves and shows
    where nothing is damaged. ``damaged``: the damaged file, relative to the folder. ``free``: the damage may change
    results honestly, because what it changed is no result, or says of itself what it is. ``named``: whether a refusal
    has to name the file. ``others``: the results may be fewer, as where a file is not there.
    """

    folder: Path
    damaged: str
    before: Results
    expected: Results
    free: bool = False
    named: bool = True
    fewer: bool = False


Check = Callable[[Trial, Ran, Results], str | None]


def symptoms(trial: Trial, ran: Ran) -> list[str]:
    """Return what went wrong in a trial, the worst first."""
    after = results(trial.folder, ran)
    checks: tuple[Check, ...] = (_code_ran, _hung, _died, _traceback, _lost, _wrong, _unnamed, _control)
    return [found for check in checks if (found := check(trial, ran, after))]


def _code_ran(trial: Trial, ran: Ran, after: Results) -> str | None:
    return "code in a file was run" if (trial.folder / "planted.txt").exists() else None


def _hung(trial: Trial, ran: Ran, after: Results) -> str | None:
    return "hang" if ran.hung else None


def _died(trial: Trial, ran: Ran, after: Results) -> str | None:
    return f"ended by signal {-ran.code}" if ran.code < 0 and not ran.hung else None


def _traceback(trial: Trial, ran: Ran, after: Results) -> str | None:
    if "Traceback (most recent call last)" in ran.text:
        return "traceback"
    return "told as a defect of the program" if "defect of the program" in ran.text else None


def _lost(trial: Trial, ran: Ran, after: Results) -> str | None:
    for name, old in trial.before.files.items():
        if name != trial.damaged and after.files.get(name) != old:
            return f"lost: {name} is {'changed' if name in after.files else 'gone'}"
    return None


def _wrong(trial: Trial, ran: Ran, after: Results) -> str | None:
    """Find a result that is not the one of the undamaged folder."""
    if trial.free or ran.hung or ran.code < 0:
        return None
    if odd := after.shown - trial.expected.shown:
        return f"wrong value shown: {next(iter(odd))}"
    wrong = [n for n, d in after.files.items() if n != trial.damaged and trial.expected.files.get(n, d) != d]
    if wrong:
        return f"wrong value accepted: {_kind(wrong[0])}"
    if ran.code or trial.fewer:
        return None
    if trial.expected.shown - after.shown:
        return "a result is left out without a word"
    missing = [n for n in trial.expected.files if n not in after.files and n != trial.damaged]
    if trial.expected.experts <= after.experts:  # the key of imported experts is that of their file, byte for byte
        missing = [name for name in missing if "/experts/" not in name]
    return f"not made, without a word: {_kind(missing[0])}" if missing else None


def _kind(name: str) -> str:
    return re.sub(r"-[0-9a-f]{10,}|[0-9a-f]{16}/", "", name)


def _unnamed(trial: Trial, ran: Ran, after: Results) -> str | None:
    if not trial.named or ran.code <= 0 or ran.hung or "Traceback" in ran.text:
        return None
    return None if Path(trial.damaged).name in ran.text else "refused without naming the file"


def _control(trial: Trial, ran: Ran, after: Results) -> str | None:
    return "control characters in the output" if _CONTROL.search(ran.text) else None


def changed_fields(before: str, after: str) -> list[tuple[str, Any]] | None:
    """Return the fields in which two JSON texts differ, with their new values; ``None`` if the second is no JSON."""
    try:
        old, new = json.loads(before), json.loads(after)
    except (ValueError, RecursionError):
        return None
    return list(_differences(old, new, ""))


def _differences(old: Any, new: Any, at: str) -> "list[tuple[str, Any]]":
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{at}.{n}" if at else n)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for a, b in zip(old, new, strict=True) for d in _differences(a, b, at)]
    same = old == new or (isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new))
    return [] if same else [(at, new)]
