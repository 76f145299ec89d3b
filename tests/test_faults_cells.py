"""Faults around a cell: what may be lost, mixed or believed when a run fails, is killed, or its files are damaged."""

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dcbench_tesla.api import run
from dcbench_tesla.cells import staging
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.evaluation import Evaluation
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.loop import CondenseLoop
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import CellResult, run_cell
from dcbench_tesla.cli import main
from dcbench_tesla.config import CellConfig, overrides_from, resolve
from dcbench_tesla.errors import CorruptFileError, DivergedError
from dcbench_tesla.interface import IterationRecord
from dcbench_tesla.records.store import read_json, write_json

Settings = Mapping[str, Any]
NONE: Settings = MappingProxyType({})
SMALL: Settings = {
    "data.train_images": 100,
    "convnet.width": 4,
    "convnet.epochs": 2,
    "evaluation.networks": 1,
    "evaluation.every": 1,
    "evaluation.networks_on_the_way": 1,
    "network.width": 4,
    "iterations": 2,
}
EXPERTS: Settings = {**SMALL, "experts.count": 1, "steps": 3, "expert_epochs": 1, "max_start_epoch": 1}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small(out: Path, method: str = "dm", changes: Settings = NONE, **options: Any) -> CellResult:
    settings = {**(EXPERTS if method == "tesla" else SMALL), **changes}
    return run(method, "digits", 1, preset="smoke", settings=settings, out=out, device="cpu", quiet=True, **options)


def config_of(method: str = "dm", changes: Settings = NONE) -> CellConfig:
    settings = {**(EXPERTS if method == "tesla" else SMALL), **changes}
    return resolve(method, "digits", 1, preset="smoke", overrides=overrides_from(settings))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CellResult:
    """A finished cell of dm."""
    torch.set_num_threads(1)
    return small(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def out(finished: CellResult, tmp_path: Path) -> Path:
    """A copy of the finished cell's results folder."""
    return shutil.copytree(finished.cell.workspace.root, tmp_path / "out")


def content(root: Path) -> dict[str, bytes]:
    """Every file under ``root``, but for locks."""
    files = (p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != ".lock")
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def results(root: Path) -> dict[str, Any]:
    """The sets of a results folder, and what its rows result in."""
    files = content(root).items()
    tensors = {n: data for n, data in files if n.endswith(".safetensors") and not n.endswith("checkpoint.safetensors")}
    rows = {path.name: json.loads(path.read_text()) for path in (root / "rows").glob("*.json")}
    return tensors | {name: [row.get("accuracy"), row.get("final_loss")] for name, row in rows.items()}


def stop_at(monkeypatch: pytest.MonkeyPatch, error: BaseException, iteration: int = 1) -> None:
    """Let every condensation end with ``error`` in ``iteration``."""
    whole = CondenseLoop._iterate

    def stopped(self: CondenseLoop, number: int, device: torch.device) -> IterationRecord:
        if number == iteration:
            raise error
        return whole(self, number, device)

    monkeypatch.setattr(CondenseLoop, "_iterate", stopped)


# ----------------------------------------------------------------------------------------- 1: a result outlives --force


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DivergedError("it diverged"), RuntimeError("a defect")])
def test_a_failing_force_leaves_the_finished_result(
    out: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(out)
    with monkeypatch.context() as patched:
        stop_at(patched, error)
        with pytest.raises(type(error)):
            small(out, force=True)
    assert content(out) == before
    assert small(out).accuracy() is not None


def test_a_force_that_fails_in_its_evaluation_leaves_the_finished_result(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(out)
    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, "run", lambda *_: pytest.fail("no evaluation here"))
        with pytest.raises(BaseException, match="no evaluation here"):
            small(out, force=True)
    assert content(out) == before


def test_force_with_a_damaged_expert_leaves_the_finished_result(tmp_path: Path) -> None:
    result = small(tmp_path, "tesla")
    expert = result.cell.materials.expert_store.path(0, 0)
    whole = expert.read_bytes()
    expert.write_bytes(whole[:-1])
    before = content(tmp_path)
    with pytest.raises(CorruptFileError, match="epoch_000"):
        small(tmp_path, "tesla", force=True)
    assert content(tmp_path) == before
    expert.write_bytes(whole)
    assert small(tmp_path, "tesla", force=True).distilled.images.shape == result.distilled.images.shape


def test_a_finished_force_takes_the_place_of_the_old_result(out: Path, finished: CellResult) -> None:
    stale = finished.cell.place.at(out / "cells" / finished.cell.name, finished.cell.workspace)
    (stale.folder / "error.txt").write_text("of an earlier run")
    stale.distilled.write_bytes(b"damaged")
    result = small(out, force=True)
    assert results(out) == results(finished.cell.workspace.root)
    assert not (result.folder / "error.txt").exists()
    assert not result.cell.place.staging.exists()
    assert content(out).keys() == content(finished.cell.workspace.root).keys()


@pytest.mark.parametrize("after", range(12))
def test_a_kill_in_the_exchange_is_healed_by_the_next_start(
    after: int, out: Path, finished: CellResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = 0
    move = staging._move

    def killed(source: Path, target: Path) -> None:
        nonlocal moved
        if moved == after:
            raise KeyboardInterrupt
        moved += 1
        move(source, target)

    name = finished.cell.name
    (out / "cells" / name / "distilled.safetensors").write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(staging, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            small(out, force=True)
    assert (out / "cells" / name / "config.json").is_file()
    result = small(out)
    assert results(out) == results(finished.cell.workspace.root)
    assert content(out).keys() == content(finished.cell.workspace.root).keys()
    assert not result.cell.place.staging.exists()


def test_what_a_killed_force_left_is_not_taken_for_a_result(out: Path, finished: CellResult) -> None:
    before = results(out)
    left = out / "cells" / finished.cell.name / ".new"
    shutil.copytree(out / "cells" / finished.cell.name, left)
    (left / "distilled.safetensors").write_bytes(b"half a set")
    assert small(out).accuracy() is not None
    assert {name: value for name, value in results(out).items() if ".new" not in name} == before
    small(out, force=True)
    assert not left.exists()
    assert results(out) == before


def test_a_force_without_a_result_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, KeyboardInterrupt())
        patched.setattr(CondenseLoop, "_is_due", lambda _: True)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path, force=True)
    cell = Session(tmp_path, device="cpu", quiet=True).cell(config_of())
    assert CondenseLoop.iterations_done(cell.place.folder) == 1


# ------------------------------------------------------------ 2, 3: one key, one result: how a begun run computes stays


def begin(out: Path, monkeypatch: pytest.MonkeyPatch, method: str, changes: Settings, **options: Any) -> None:
    """Interrupt a cell after its first iteration, with a checkpoint."""
    with monkeypatch.context() as patched:
        stop_at(patched, KeyboardInterrupt())
        patched.setattr(CondenseLoop, "_is_due", lambda _: True)
        with pytest.raises(KeyboardInterrupt):
            small(out, method, changes, **options)


@pytest.mark.parametrize(("method", "name"), [("dm", "class_chunk"), ("tesla", "keep_graphs")])
def test_execution_settings_of_a_begun_cell_are_taken_up_again(
    method: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, monkeypatch, method, {name: 3})
    session = Session(tmp_path, device="cpu")
    cell = session.cell(config_of(method, {name: 2}))
    assert read_json(cell.place.execution)["settings"][name] == 3
    result = run_cell(cell)
    assert f"was started with {name}=3 and continues with it (--force starts over)" in capsys.readouterr().err
    row = cell.workspace.row("condense", cell.key)
    assert row is not None
    assert row["settings"][name] == 3
    assert result.distilled.images.equal(small(tmp_path / "whole", method, {name: 3}).distilled.images)


def test_what_a_memory_budget_chose_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch, "tesla", NONE, memory_budget="1GiB")
    result = small(tmp_path, "tesla")
    row = result.cell.workspace.row("condense", result.cell.key)
    assert row is not None
    assert row["settings"]["keep_graphs"] == 3
    assert row["memory_budget_bytes"] == 2**30


def test_a_budget_cannot_change_what_a_begun_cell_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch, "tesla", {"keep_graphs": 1})
    result = small(tmp_path, "tesla", memory_budget="1GiB")
    row = result.cell.workspace.row("condense", result.cell.key)
    assert row is not None
    assert row["settings"]["keep_graphs"] == 1


def test_a_cell_without_a_checkpoint_takes_the_settings_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, MemoryError(), iteration=0)
        with pytest.raises(MemoryError):
            small(tmp_path, changes={"class_chunk": 10})
    result = small(tmp_path, changes={"class_chunk": 2})
    row = result.cell.workspace.row("condense", result.cell.key)
    assert row is not None
    assert row["settings"]["class_chunk"] == 2


def test_an_evaluation_does_not_change_how_the_set_was_made_on_record(out: Path, finished: CellResult) -> None:
    made = read_json(finished.cell.place.execution)["settings"]
    result = small(out, changes={"convnet.epochs": 3, "class_chunk": 1})
    assert read_json(result.cell.place.execution)["settings"] == made


def test_a_process_that_waited_continues_as_the_first_one_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cell(threads: int, chunk: int) -> Cell:
        session = Session(tmp_path, execution=Execution("cpu", threads), quiet=True)
        return session.cell(config_of(changes={"class_chunk": chunk}))

    late = cell(2, 2)  # it has read that there is nothing yet
    begin(tmp_path, monkeypatch, "dm", {"class_chunk": 5})
    with staging.alone(late.place, late.name, print):
        waiting = threading.Thread(target=run_cell, args=(late,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join(60)
    stored, row = read_json(late.place.execution), late.workspace.row("condense", late.key)
    assert row is not None
    assert (stored["threads"], row["environment"]["threads"], row["settings"]["class_chunk"]) == (1, 1, 5)


# ------------------------------------------------------------------------------------ 11: one bad file stops no others

DAMAGED = [b'{"device": "cpu", "thr', b"\xff\xfe", b"[]", b'{"device": 1, "threads": "x"}', b'{"settings": []}']


@pytest.mark.parametrize("damage", DAMAGED)
def test_the_damaged_execution_of_a_finished_cell_matters_to_nobody(damage: bytes, out: Path) -> None:
    (folder,) = (out / "cells").iterdir()
    (folder / "execution.json").write_bytes(damage)
    assert small(out).accuracy() is not None
    assert small(out, changes={"convnet.epochs": 3}).accuracy() is not None


@pytest.mark.parametrize("damage", DAMAGED)
def test_the_damaged_execution_of_a_begun_cell_stops_its_cell_alone(
    damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, monkeypatch, "dm", NONE)
    (folder,) = (tmp_path / "cells").iterdir()
    (folder / "execution.json").write_bytes(damage)
    words = [w for name, value in SMALL.items() if "." in name for w in ("--set", f"{name}={value}")]
    words += ["--set", "iterations=2", "--method", "dm", "--method", "random", "--preset", "smoke", "--device", "cpu"]
    found = CliRunner().invoke(main, ["run", *words, "--out", str(tmp_path)])
    assert found.exit_code == 1
    assert "execution.json" in found.stderr
    assert "1 of 2 cells failed" in found.stderr
    assert len(list((tmp_path / "rows").glob("evaluate-*.json"))) == 1
    (folder / "execution.json").unlink()  # the remedy
    assert small(tmp_path).accuracy() is not None


@pytest.mark.parametrize("chunk", ["many", -1, None])
def test_execution_settings_of_another_kind_are_told(
    chunk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, monkeypatch, "dm", NONE)
    (path,) = (tmp_path / "cells").glob("*/execution.json")
    write_json(path, read_json(path) | {"settings": {"class_chunk": chunk}})
    with pytest.raises(CorruptFileError, match=r"execution\.json is damaged"):
        small(tmp_path)
