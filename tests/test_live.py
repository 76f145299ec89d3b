"""Metrics besides ``metrics.jsonl``: TensorBoard's and trackio's files say the same, also after ``kill -9``."""

import dataclasses
import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dcbench_tesla.api import run
from dcbench_tesla.backends.base import FrozenJob, Job
from dcbench_tesla.backends.worker import run_frozen
from dcbench_tesla.cells import loop
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cli import main
from dcbench_tesla.config import overrides_from, resolve
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.records import live
from dcbench_tesla.records.live import check_logs, open_log

SMALL: dict[str, Any] = {
    **{"data.train_images": 100, "convnet.width": 4, "convnet.epochs": 1, "evaluation.networks": 1},
    **{"network.width": 4, "evaluation.every": 0, "iterations": 5},
}
needs_trackio = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


pytestmark = pytest.mark.usefixtures("one_thread")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a cell: its scalars by name, each with its step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def check_same(folder: Path) -> None:
    """Check that the event files hold every number of ``metrics.jsonl``, once, in float32."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == SMALL["iterations"]
    found = scalars(folder)
    assert found.keys() == lines[0].keys() - {"iteration"}
    for name, values in found.items():
        assert [step for step, _ in values] == [line["iteration"] for line in lines]
        assert [value for _, value in values] == pytest.approx([line[name] for line in lines], rel=1e-6)


@needs_tensorboard
def test_event_files_hold_the_metrics_and_change_no_row(tmp_path: Path) -> None:
    what: dict[str, Any] = {"preset": "smoke", "settings": SMALL, "device": "cpu", "quiet": True}
    logged = run("dm", out=tmp_path / "logged", log=["tensorboard"], **what)
    plain = run("dm", out=tmp_path / "plain", **what)
    check_same(logged.folder)
    assert not (plain.folder / "tensorboard").exists()
    for one, other in ((logged, plain), (plain, logged)):
        rows = [json.loads(path.read_text()) for path in sorted(one.cell.workspace.rows.iterdir())]
        names = [path.name for path in sorted(other.cell.workspace.rows.iterdir())]
        assert [f"{row['stage']}-{row['key']}.json" for row in rows] == names
    columns = [json.loads(next(r.cell.workspace.rows.glob("condense-*")).read_text()) for r in (logged, plain)]
    assert columns[0].keys() == columns[1].keys()
    assert "tensorboard" not in json.dumps(columns[0])


class Killed(BaseException):
    """As ``kill -9`` leaves things: the events are on the disk, the checkpoint is behind them."""


@needs_tensorboard
@pytest.mark.parametrize("checkpoint", [True, False], ids=["after a checkpoint", "before any checkpoint"])
def test_iterations_made_again_stand_there_once(
    checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due, write = iter([checkpoint, False, False, False]), live.TensorBoard.write

    def killed_later(self: live.TensorBoard, iteration: int, metrics: Any) -> None:
        write(self, iteration, dict.fromkeys(metrics, 100.0))  # what must not be seen afterwards
        if iteration == 3:
            raise Killed

    what: dict[str, Any] = {"preset": "smoke", "settings": SMALL, "device": "cpu", "quiet": True, "out": tmp_path}
    with monkeypatch.context() as patched:
        patched.setattr(loop.CondenseLoop, "_is_due", lambda self: next(due))
        patched.setattr(live.TensorBoard, "write", killed_later)
        with pytest.raises(Killed):
            run("dm", log=["tensorboard"], **what)
    (folder,) = (tmp_path / "cells").iterdir()
    assert [step for step, _ in scalars(folder)["loss"]] == [0, 1, 2, 3]
    run("dm", log=["tensorboard"], **what)
    found = scalars(folder)["loss"]
    assert [step for step, _ in found] == [0, 1, 2, 3, 4]
    assert [value for _, value in found].count(100.0) == (1 if checkpoint else 0)  # iteration 0 was not made again


def test_checkpoint_flushes_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Told:
        def __init__(self, *_: object) -> None:
            said.append("open")

        def write(self, iteration: int, metrics: Any) -> None:
            said.append(f"write {iteration}")

        def flush(self) -> None:
            said.append("flush")

        def close(self) -> None:
            said.append("close")

    monkeypatch.setattr(live, "TensorBoard", Told)
    monkeypatch.setattr(live, "_installed", lambda name: True)
    monkeypatch.setattr(loop.CondenseLoop, "_is_due", lambda self: True)
    run("dm", preset="smoke", settings=SMALL | {"iterations": 2}, log=["tensorboard"] * 2, out=tmp_path, quiet=True)
    assert said == ["open", "write 0", "flush", "write 1", "flush", "close"]


@needs_tensorboard
def test_option_reaches_the_worker(tmp_path: Path) -> None:
    session = Session(tmp_path, execution=Execution("cpu", 1, "local", ("tensorboard",)), quiet=True)
    cell = session.cell(resolve("dm", "digits", 1, preset="smoke", overrides=overrides_from(SMALL)))
    plain = dataclasses.replace(cell.execution, logs=())
    assert Session(tmp_path, execution=plain).cell(cell.config).key == cell.key
    frozen = Job(cell).freeze().write()
    outcome = run_frozen(FrozenJob.read(frozen.file))
    assert outcome.ok, outcome.reason
    check_same(cell.place.folder)


def dcbench(*words: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


@needs_tensorboard
def test_command(tmp_path: Path) -> None:
    words = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    done = dcbench("run", "--method", "dm", "--no-baseline", "--preset", "smoke", *words, "--device", "cpu",
                   "--log", "tensorboard", "--out", tmp_path)  # fmt: skip
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "cells").iterdir()
    check_same(folder)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tensorboard", "pip install dcbench-tesla[tensorboard]"),
        ("trackio", "pip install trackio"),
        ("wandb", "pip install wandb"),
        ("tensorbord", "Did"),
    ],
)
def test_not_installed(name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    result = dcbench("run", "--method", "dm", "--log", name, "--out", tmp_path / "out")
    assert result.exit_code == 2
    (message,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert remedy in message
    assert not (tmp_path / "out").exists()


WANDB = """
class Error(Exception): pass
class Run:
    def log(self, metrics, step): calls.append(("log", metrics, step))
    def finish(self): calls.append(("finish",))
calls = []
def init(**how):
    if how["name"] == "refused":
        raise Error("no key")
    calls.append(("init", how))
    return Run()
"""


def test_wandb_is_asked_for_one_run_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    log = open_log("wandb", tmp_path, "a cell", {"seed": 0}, key="abc", results=tmp_path, start=7)
    log.write(7, {"loss": 0.5})
    log.flush()
    log.close()
    open_log("wandb", tmp_path, "a cell", {}, key="abc", results=tmp_path)
    with pytest.raises(DcbenchError, match="no key"):
        open_log("wandb", tmp_path, "refused", {}, key="abc", results=tmp_path)
    how = {"project": "dcbench", "name": "a cell", "dir": str(tmp_path), "id": "abc"}
    fresh: dict[str, Any] = how | {"resume": None, "config": {}}
    resumed = how | {"resume": "allow", "config": {"seed": 0}}
    calls = sys.modules["wandb"].calls
    assert calls == [("init", resumed), ("log", {"loss": 0.5}, 7), ("finish",), ("init", fresh)]
    del sys.modules["wandb"]


def test_folder_that_wandb_leaves_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match="pip install wandb"):
        check_logs(["wandb"])


# ---- trackio ---------------------------------------------------------------------------------------------------------

TRACKIO = """
import os
calls = [("folder", os.environ["TRACKIO_DIR"])]
runs = []
class Run:
    def __init__(self, name): self.name = name
    def log(self, metrics, step): calls.append(("log", metrics, step))
    def delete(self): runs.remove(self); calls.append(("delete", self.name))
class Api:
    def runs(self, project):
        if not runs:
            raise ValueError("Project 'dcbench' does not exist")
        return runs
def init(**how):
    print("* Created new run")
    calls.append(("init", how))
    runs.append(Run(how["name"]))
    return runs[-1]
def finish(): calls.append(("finish",))
"""


def test_trackio_is_told_the_whole_run_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "trackio.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.setenv("TRACKIO_DIR", "")
    monkeypatch.delenv("TRACKIO_DIR")
    importlib.invalidate_caches()
    lines = [{"iteration": i, "loss": i / 10} for i in range(4)]  # the last two are after the checkpoint
    (tmp_path / live.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for start in (0, 2):
        log = open_log("trackio", tmp_path, "a cell", {"seed": 0}, key="abc", results=tmp_path / "out", start=start)
        log.write(start, {"loss": 0.5})
        log.flush()
        log.close()
    quiet = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    begun = ("init", {"project": "dcbench", "name": "a cell", "config": {"seed": 0}, **quiet})
    assert sys.modules["trackio"].calls == [
        ("folder", str(tmp_path / "out" / "trackio")),
        *(begun, ("log", {"loss": 0.5}, 0), ("finish",), ("delete", "a cell"), begun),
        *(("log", {"loss": 0.0}, 0), ("log", {"loss": 0.1}, 1), ("log", {"loss": 0.5}, 2), ("finish",)),
    ]
    assert capsys.readouterr().out == ""
    del sys.modules["trackio"]


@needs_trackio
def test_trackio_holds_the_metrics_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    due, write = iter([True, False, False, False]), live.Trackio.write

    def killed_later(self: live.Trackio, iteration: int, metrics: Any) -> None:
        write(self, iteration, dict.fromkeys(metrics, 100.0))  # what must not be seen afterwards
        if iteration == 3:
            self._run.finish()  # so that it has arrived
            raise Killed

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    what: dict[str, Any] = {"preset": "smoke", "settings": SMALL, "device": "cpu", "quiet": True, "out": tmp_path}
    with monkeypatch.context() as patched:
        patched.setattr(loop.CondenseLoop, "_is_due", lambda self: next(due))
        patched.setattr(live.Trackio, "write", killed_later)
        patched.setattr(live.Trackio, "close", lambda self: None)
        with pytest.raises(Killed):
            run("dm", log=["trackio"], **what)
    folder = run("dm", log=["trackio"], **what).folder
    from trackio.sqlite_storage import SQLiteStorage

    assert [record["name"] for record in SQLiteStorage.get_run_records("dcbench")] == [folder.name]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = SQLiteStorage.get_logs("dcbench", folder.name)
    assert len(lines) == SMALL["iterations"]
    assert [entry["step"] for entry in found] == [line["iteration"] for line in lines]
    for name in lines[0].keys() - {"iteration"}:
        assert [entry[name] for entry in found] == [line[name] for line in lines]
