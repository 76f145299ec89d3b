"""Kills: a command of every stage ended at any moment, run again, and compared with a run that nothing disturbed."""

import csv
import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaign import scenes as s
from tests.campaign.findings import Finding, Tally
from tests.campaign.judge import digest
from tests.campaign.processes import Kill, Ran, dcbench, run
from tests.campaign.scenes import Scenes

LIMIT_S = 120.0
_TIMES = re.compile(r"seconds|peak_bytes|environment|hardware|command|attempts|logs|trained_epochs|commit")
_TEMPORARY = re.compile(r"^\..+\.\d+\.[0-9a-f]{8}")
_VOLATILE = (".lock", ".out", ".err", ".log", "report.html")


@dataclass(frozen=True)
class Stage:
    """A command to be killed, and the folder it begins with.

    Args:
        name: what it is called in the table.
        scene: the folder to begin with.
        command: what is run, killed, and run again.
        weight: how often it is chosen, in comparison with others.
        done: what the command says when it is run again though it was finished; that is no failure.
        has_workers: whether it starts processes of its own, which are killed as well.
    """

    name: str
    scene: str
    command: Sequence[str]
    weight: int = 3
    done: str = "(?!)"
    has_workers: bool = False


EXPERTS = ["experts", "--preset", "smoke", "--device", "cpu", "--count", "2", "--epochs", "3"]
EXPERTS += s.words({k: v for k, v in s.SETTINGS.items() if k in ("data.train_images", "network.width")})
SMALL = {
    "resnet18": {"resnet18.width": 4, "resnet18.epochs": 1},
    "vit": {"vit.width": 16, "vit.epochs": 1},
    "alexnet": {"alexnet.epochs": 1},
    "vgg11": {"vgg11.epochs": 1},
}
EXPORT = ["export", "set.safetensors", "--format"]
THERE = "is there already|exists already|is not empty"
STAGES: tuple[Stage, ...] = (
    Stage("experts", "empty", EXPERTS),
    Stage("whole run", "empty", s.TESLA, weight=5),
    Stage("condensation", "trained", s.TESLA, weight=5),
    Stage("whitening and random", "empty", s.cell("random", s.SELECTION | s.ZCA)),
    Stage("evaluation by convnet", "tested", s.HALF),
    *(
        Stage(f"evaluation by {name}", "done", ["evaluate", "{cell}", "--evaluator", name, *s.words(settings)], 2)
        for name, settings in SMALL.items()
    ),
    Stage("merge", "done", ["merge", "runs", "--out", "merged", "--experts"]),
    Stage("report", "done", ["report"], 2),
    Stage("compare accuracy", "done", ["compare", "accuracy"], 2),
    Stage("reproduce table2", "done", ["reproduce", "table2", "--preset", "smoke", "--no-shipped"], 2),
    Stage("compare memory", "done", s.MEMORY, 2),
    Stage("import of experts", "inputs", ["import", "experts", "replay_buffer_0.pt", *s.IMPORT]),
    Stage(
        "import of a set",
        "inputs",
        ["import", "set", "exported-png", "--output", "new.safetensors"],
        2,
        THERE,
    ),
    *(
        Stage(f"export as {layout}", "inputs", [*EXPORT, layout, "--output", "new"], 2, THERE)
        for layout in ("tensors", "png", "authors")
    ),
    Stage("workers of backend local", "trained", [*s.TESLA, "--backend", "local", "--jobs", "1"], 2, has_workers=True),
)


@dataclass(frozen=True)
class Undisturbed:
    """What a stage leaves when nothing disturbs it, its seconds, and how many files it puts in place."""

    files: Mapping[str, str]
    seconds: float
    renames: int


class Kills:
    """Trials of kills; the arguments are those of :class:`~tests.campaign.mutations.Mutations`."""

    def __init__(self, seed: int, scenes: Scenes, work: Path, tally: Tally) -> None:
        self._seed, self._scenes, self._work, self._tally = seed, scenes, work, tally
        self._undisturbed: dict[str, Undisturbed] = {}

    def run(self, names: Sequence[str], deadline: float) -> None:
        """Go round the stages, as often as they weigh, until ``deadline``; every stage is killed once at least."""
        stages = [stage for stage in STAGES if stage.name.startswith(tuple(names) or ("",))]
        turns = [stage for turn in range(5) for stage in stages if turn < stage.weight]
        for number in itertools.count():
            for i, stage in enumerate(turns):
                if (number or i >= len(stages)) and time.monotonic() > deadline:
                    return
                self.trial(stage.name, "moment" if (number + i) % 2 else "rename", 100 * number + i)

    def trial(self, name: str, how: str, number: int) -> list[str]:
        """Kill one stage, run it again, and return what went wrong."""
        (stage,) = (found for found in STAGES if found.name == name)
        trial = f"{name}/{how}/{number}"
        generator = random.Random(f"{self._seed}/{trial}")
        whole = self._whole(stage)
        folder = self._scenes.copy(stage.scene, self._work / "killed")
        before = contents(folder)
        number_of_signal = generator.choice([signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT])
        work = partial(dcbench, command(stage, folder))
        if how == "rename":
            place, after = generator.randrange(max(1, whole.renames)), generator.random() < 0.5
            said = f"{number_of_signal.name} {'after' if after else 'before'} rename {place} of {whole.renames}"
            killed = run(_killed_at(work, place, number_of_signal, after=after), folder, limit_s=LIMIT_S)
        else:
            seconds = generator.random() * whole.seconds
            of_worker = stage.has_workers and generator.random() < 0.5
            said = f"{number_of_signal.name} {'to the worker ' * of_worker}after {seconds:.3f} of {whole.seconds:.3f} s"
            killed = run(work, folder, limit_s=LIMIT_S, kill=Kill(number_of_signal, seconds, of_worker))
        between = contents(folder)
        again = run(work, folder, limit_s=LIMIT_S)
        self._tally.passed(stage.name, how)
        found = _after_kill(killed, before, between, whole) + _after_all(stage, again, contents(folder), whole, folder)
        if found:
            texts = f"killed ({killed.code}):\n{killed.text[-700:]}\nagain ({again.code}):\n{again.text[-700:]}"
            line = " ".join(command(stage, folder))
            finding = Finding(trial, self._seed, "", said, line, found, again.code, texts)
            self._tally.add(stage.name, how, finding, folder)
        return found

    def _whole(self, stage: Stage) -> Undisturbed:
        """Run a stage with nothing to disturb it."""
        if stage.name not in self._undisturbed:
            folder = self._scenes.copy(stage.scene, self._work / "whole")
            work = partial(dcbench, command(stage, folder))
            ran = run(_counted(work), folder, limit_s=LIMIT_S)
            if ran.code:
                raise RuntimeError(f"{stage.name} fails undisturbed:\n{ran.text}")
            count = folder / "renames.count"
            renames = len(count.read_text()) if count.exists() else 0
            count.unlink(missing_ok=True)
            self._undisturbed[stage.name] = Undisturbed(contents(folder), ran.seconds, renames)
            shutil.rmtree(folder)
        return self._undisturbed[stage.name]


def command(stage: Stage, folder: Path) -> list[str]:
    """Return a stage's command, with the name of the cell it works on."""
    name = next((path.name for path in folder.glob("runs/cells/tesla-*")), "")
    return [word.format(cell=name) if word == "{cell}" else word for word in stage.command]


def contents(folder: Path) -> dict[str, str]:
    """Return all files under ``folder``, each with a digest of what two runs must have in common."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(_VOLATILE)]
    return {str(p.relative_to(folder)): _comparable(p) for p in files if "/jobs/" not in str(p)}


def _comparable(path: Path) -> str:
    if path.suffix == ".json":
        try:
            return _hash(json.dumps(_without_times(json.loads(path.read_text())), sort_keys=True).encode())
        except ValueError:
            return f"no JSON: {path.stat().st_size} bytes"
    if path.name == "metrics.jsonl":
        return _hash(re.sub(rb'"seconds": [^,}]*', b"", path.read_bytes()))
    if path.name == "checkpoint.safetensors":  # its metadata have seconds
        return "there"
    if path.suffix == ".csv" and "figures" in path.parts:
        return _hash(_without_commit(path.read_text()).encode())
    if path.suffix in (".csv", ".md", ".tex", ".png", ".svg") and "tables" in path.parts:  # show seconds
        return "there"
    return digest(path) if path.name == "new.safetensors" else _hash(path.read_bytes())


def _without_commit(text: str) -> str:
    rows = csv.DictReader(io.StringIO(text))
    return json.dumps([{name: value for name, value in row.items() if name != "commit"} for row in rows])


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {n: _without_times(v) for n, v in content.items() if not _TIMES.search(n)}
    return [_without_times(v) for v in content] if isinstance(content, list) else content


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _after_kill(killed: Ran, before: Mapping[str, str], between: Mapping[str, str], whole: Undisturbed) -> list[str]:
    """Return what a killed run spoilt: results from before it, and files that are there and not whole."""
    found = []
    if "Traceback (most recent call last)" in killed.text:
        found.append("traceback of the killed command")
    if killed.hung:
        found.append("the killed command did not end")
    lost = [name for name, old in before.items() if between.get(name) not in (old, whole.files.get(name))]
    found += [f"lost by the kill: {name}" for name in lost[:3]]
    half = [n for n, d in between.items() if n not in before and _is_result(n) and d != whole.files.get(n, d)]
    return found + [f"half a file after the kill: {name}" for name in half[:3]]


def _is_result(name: str) -> bool:
    """Return whether a file, once there, is what it will be; a record of an evaluation grows."""
    return not _TEMPORARY.match(Path(name).name) and name.endswith(".safetensors") and "checkpoint" not in name


def _after_all(stage: Stage, again: Ran, after: Mapping[str, str], whole: Undisturbed, folder: Path) -> list[str]:
    """Return what is not as an undisturbed run leaves it."""
    found = []
    if again.hung:
        found.append("the same command again hangs")
    elif again.code and not re.search(stage.done, again.text):
        found.append(f"the same command again ends with {again.code}")
    if "Traceback (most recent call last)" in again.text:
        found.append("traceback of the second command")
    lacking = [name for name, d in whole.files.items() if after.get(name) != d]
    found += [f"{'other bytes' if name in after else 'not there'} in the end: {name}" for name in lacking[:3]]
    left = [path for path in folder.rglob(".*") if _TEMPORARY.match(path.name)]
    return found + [f"a temporary file stays: {path.relative_to(folder)}" for path in left[:1]]


def _counted(work: Callable[[], None]) -> Callable[[], None]:
    """Return ``work`` that leaves a mark in ``renames.count`` whenever a file is put in its place."""

    def note(number: int, path: Path) -> None:
        with open("renames.count", "a") as file:
            file.write("x")

    return _watched(work, lambda number: None, note)


def _killed_at(work: Callable[[], None], place: int, by: signal.Signals, *, after: bool) -> Callable[[], None]:
    def strike(number: int) -> None:
        if number == place:
            os.kill(os.getpid(), by)

    return _watched(work, lambda n: None if after else strike(n), lambda n, _: strike(n) if after else None)


def _watched(
    work: Callable[[], None], before: Callable[[int], None], after: Callable[[int, Path], None]
) -> Callable[[], None]:
    """Return ``work`` with functions called before and after each time a file is put in its place."""

    def watched() -> None:
        replace, numbers = Path.replace, itertools.count()

        def counted(path: Path, target: Path) -> Path:
            number = next(numbers)
            before(number)
            done = replace(path, target)
            after(number, target)
            return done

        Path.replace = counted  # type: ignore[method-assign, assignment]
        work()

    return watched
