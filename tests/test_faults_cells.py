"""Faults around a cell: what may be lost, mixed or believed when a run fails, is killed, or its files are damaged."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dcbench_tesla.api import run
from dcbench_tesla.backends.base import Job
from dcbench_tesla.cells import expert_processes, loop, place, saved, stages
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.evaluation import Accuracy, Evaluation, notes_on, records_name
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.loop import CondenseLoop
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.saved import evaluate_saved
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import run_cell
from dcbench_tesla.cli import main
from dcbench_tesla.compute.processes import GRACE_S
from dcbench_tesla.config import CellConfig, Override
from dcbench_tesla.errors import CorruptFileError, DcbenchError, DivergedError
from dcbench_tesla.experts.imported import IMPORTED, _find_imported, read_index
from dcbench_tesla.interface import IterationRecord
from dcbench_tesla.records.rows import stage_rows
from dcbench_tesla.records.store import content_key, load_tensors, read_json, save_tensors, write_json
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.finished import finished as finished_of
from tests.fixtures_cells import NONE, SELECTION, Settings, command, configured, ran, words
from tests.fixtures_data import pictures

SMALL: Settings = {
    **SELECTION,
    "evaluation.every": 1,
    "evaluation.networks_on_the_way": 1,
    "network.width": 4,
    "iterations": 2,
}
EXPERTS: Settings = {**SMALL, "experts.count": 1, "steps": 3, "expert_epochs": 1, "max_start_epoch": 1}
SETTINGS: Mapping[str, Settings] = {"dm": SMALL, "tesla": EXPERTS, "random": SELECTION}


pytestmark = pytest.mark.usefixtures("one_thread")


def small(out: Path, method: str = "dm", changes: Settings = NONE, **options: Any) -> CellResult:
    return ran(out, method, {**SETTINGS[method], **changes}, **options)


def config_of(method: str = "dm", changes: Settings = NONE) -> CellConfig:
    return configured(method, {**SETTINGS[method], **changes})


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
    move = place._move

    def killed(source: Path, target: Path) -> None:
        nonlocal moved
        if moved == after:
            raise KeyboardInterrupt
        moved += 1
        move(source, target)

    name = finished.cell.name
    (out / "cells" / name / "distilled.safetensors").write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(place, "_move", killed)
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
    told = capsys.readouterr().err
    assert told.count(f"was started with {name}=3 and continues with it (--force starts over)") == 1
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
    with place.alone(late.place, late.name, print):
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


# ------------------------------------------------------------------------------- 4: files that belong to something else


def test_another_experts_snapshot_is_refused(tmp_path: Path) -> None:
    changes: Settings = {"experts.count": 2}
    store = small(tmp_path, "tesla", changes).cell.materials.expert_store
    other = small(tmp_path, "tesla", {**changes, "experts.lr": 0.02}).cell.materials.expert_store
    path = store.path(1, 1)
    whole = path.read_bytes()
    for source, message in (
        (store.path(0, 1), "holds epoch 1 of expert 0"),
        (store.path(1, 0), "holds epoch 0 of expert 1"),
        (other.path(1, 1), "holds an expert of other data, another network or another recipe"),
    ):
        shutil.copy(source, path)
        with pytest.raises(CorruptFileError, match=rf"expert_0001/epoch_001\.safetensors {message}\. Delete it"):
            store.snapshot(1, 1)
        with pytest.raises(CorruptFileError, match=message):
            small(tmp_path, "tesla", {**changes, "iterations": 3})
    path.unlink()
    small(tmp_path, "tesla", {**changes, "iterations": 3})
    assert path.read_bytes() == whole


def test_a_checkpoint_in_the_place_of_a_snapshot_is_refused(tmp_path: Path) -> None:
    result = small(tmp_path, "tesla")
    store = result.cell.materials.expert_store
    shutil.copy(result.folder / "checkpoint.safetensors", store.path(0, 1))
    with pytest.raises(CorruptFileError, match="is not a snapshot of an expert"):
        store.snapshot(0, 1)


def test_the_set_of_another_cell_or_iteration_is_refused(out: Path, finished: CellResult) -> None:
    other = small(out, changes={"lr_images": 0.2})
    result = CellResult(Session(out, device="cpu", quiet=True).cell(config_of()))
    path = result.cell.place.distilled
    for source in (other.cell.place.distilled, result.cell.place.snapshot(1)):
        shutil.copy(source, path)
        with pytest.raises(CorruptFileError, match=r"distilled\.safetensors holds another set: .* with --force"):
            _ = result.distilled
        with pytest.raises(CorruptFileError, match=r"distilled\.safetensors holds another set"):
            small(out, changes={"convnet.epochs": 3})
    small(out, force=True)
    assert path.read_bytes() == finished.cell.place.distilled.read_bytes()


@pytest.fixture(scope="module")
def whitened(tmp_path_factory: pytest.TempPathFactory) -> CellResult:
    """A finished cell with ZCA."""
    torch.set_num_threads(1)
    return small(tmp_path_factory.mktemp("whitened"), changes={"data.zca": True, "data.train_images": 200})


def test_a_whitening_under_anothers_name_is_refused(whitened: CellResult, tmp_path: Path) -> None:
    root = shutil.copytree(whitened.cell.workspace.root, tmp_path / "out")
    changes: Settings = {"data.zca": True, "data.train_images": 200}
    other = small(root, changes={"data.zca": True}).distilled.preprocessing.key
    own = whitened.distilled.preprocessing.key
    folder = root / "preprocessing"
    shutil.copy(folder / f"{other}.safetensors", folder / f"{own}.safetensors")
    message = rf"{own}\.safetensors holds another whitening than its name says\. Delete it"
    with pytest.raises(CorruptFileError, match=message):
        small(root, changes={**changes, "convnet.epochs": 3})
    with pytest.raises(CorruptFileError, match=message):
        _ = small(root, changes=changes).distilled


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"preprocessing": 3}', '{"preprocessing": "../../x"}'])
def test_a_damaged_fit_is_named_and_can_be_deleted(damage: str, whitened: CellResult, tmp_path: Path) -> None:
    root = shutil.copytree(whitened.cell.workspace.root, tmp_path / "out")
    (fit,) = (root / "preprocessing").glob("fit-*.json")
    fit.write_text(damage)
    changes: Settings = {"data.zca": True, "data.train_images": 200, "convnet.epochs": 3}
    with pytest.raises(CorruptFileError, match=rf"{fit.name} is not .*Delete it"):
        small(root, changes=changes)
    fit.unlink()
    assert small(root, changes=changes).accuracy() is not None


# ----------------------------------------------------------------------------------------- 5: records of evaluations


def begun_evaluation(out: Path) -> Path:
    """Undo the last network of the evaluation of the finished cell; return the record that is left."""
    for row in (out / "rows").glob("evaluate-*.json"):
        row.unlink()
    record = sorted((out / "cells").glob("*/evaluations/*/*.json"))[0]
    assert record.name == "000001.json"
    return record


@pytest.mark.parametrize(
    "change",
    [
        {"test": [7.5]},
        {"test": [-0.1]},
        {"test": [True]},
        {"test": ["0.5"]},
        {"test": 0.5},
        {"test": []},
        {"test": [0.5, 0.5, 0.5], "validation": [0.5, 0.5, 0.5]},
        {"validation": []},
        {"validation": [2.0]},
        {"iteration": 999},
        {"iteration": "1"},
        {"diverged": -3},
        {"diverged": 2},
        {"more": 1},
        {"test": None},
    ],
)
@pytest.mark.parametrize("signed", [True, False])
def test_a_record_of_an_evaluation_that_cannot_be_is_refused(change: Settings, signed: bool, out: Path) -> None:
    record = begun_evaluation(out)
    whole = read_json(record)
    if not signed:
        del whole["digest"]
    write_json(record, {**whole, **change})
    with pytest.raises(CorruptFileError, match=r"000001\.json is not the record of .*Delete it"):
        small(out)
    record.unlink()
    assert small(out).accuracy() is not None


def test_a_record_that_could_be_but_is_not_its_own_is_refused(out: Path) -> None:
    record = begun_evaluation(out)
    whole = read_json(record)
    write_json(record, {**whole, "test": [1.0]})
    with pytest.raises(CorruptFileError, match="is not the record"):
        small(out)
    small(out, changes={"convnet.epochs": 3})
    others = [p for p in (out / "cells").glob("*/evaluations/*/000001.json") if p.parent != record.parent]
    shutil.copy(others[0], record)
    with pytest.raises(CorruptFileError, match="is not the record"):
        small(out)


@pytest.mark.parametrize("damage", [b"\xff", b"[1]", b"null", b'"text"', b"{"])
def test_a_record_that_is_none_is_named(damage: bytes, out: Path) -> None:
    record = begun_evaluation(out)
    record.write_bytes(damage)
    with pytest.raises(CorruptFileError, match=r"000001\.json is not"):
        small(out)


def test_a_record_without_digest_is_continued(out: Path, finished: CellResult) -> None:
    record = begun_evaluation(out)
    write_json(record, {name: value for name, value in read_json(record).items() if name != "digest"})
    assert small(out).accuracy() == finished.accuracy()


# -------------------------------------------------------------------------------------------------- 7: share of images


def own_images(folder: Path, per_class: int) -> str:
    images, labels = pictures(per_class, 3, 1, 8)
    path = folder / "own.npz"
    np.savez(path, x_train=images[:, 0], y_train=labels, x_test=images[:, 0], y_test=labels)
    return f"npz:{path}"


def test_the_share_of_images_is_of_those_that_there_are(tmp_path: Path) -> None:
    settings = {"convnet.epochs": 1, "convnet.width": 4, "evaluation.networks": 1}
    dataset = own_images(tmp_path, 30)
    result = run("random", dataset, 1, preset="smoke", settings=settings, out=tmp_path / "out", quiet=True)
    row = result.cell.workspace.row("condense", result.cell.key)
    assert row is not None
    assert (row["identity"]["data"]["train_images"], row["train_images"]) == (1000, 81)
    (found,) = finished_of(result.cell.workspace, ["random"], ["convnet"])
    assert found.training_images == 81


# ------------------------------------------------------------------------------------ 13, 15: damaged files of a cell


def begun_cell(out: Path, monkeypatch: pytest.MonkeyPatch, method: str = "dm") -> Path:
    begin(out, monkeypatch, method, NONE)
    (folder,) = (out / "cells").iterdir()
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\n",
        b"{}\n",
        b"[]\n",
        b'{"iteration": "x"}\n',
        b'{"iteration": 0, "loss": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
        b'{"iteration": 0, "loss": NaN}\n',
    ],
)
def test_damaged_metrics_are_named_and_can_be_deleted(
    damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = begun_cell(tmp_path, monkeypatch) / "metrics.jsonl"
    metrics.write_bytes(damage)
    with pytest.raises(CorruptFileError, match=r"metrics\.jsonl is damaged in line 1\. Delete the file"):
        small(tmp_path)
    metrics.unlink()
    assert small(tmp_path).accuracy() is not None
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == [1]


@pytest.mark.parametrize(
    "put", [lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()]
)
def test_metrics_that_are_no_file_are_named(
    put: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = begun_cell(tmp_path, monkeypatch) / "metrics.jsonl"
    metrics.unlink()
    put(metrics)
    with pytest.raises(CorruptFileError, match=r"metrics\.jsonl is a .*not a regular file\. Delete the file"):
        small(tmp_path)


def test_metrics_cut_off_by_a_kill_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = begun_cell(tmp_path, monkeypatch) / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'{"iteration": 1, "lo')
    small(tmp_path)
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"iteration": None},
        {"iteration": "1"},
        {"iteration": -1},
        {"iteration": 99},
        {"seconds": "long"},
        {"loss": []},
        {"peak_bytes": {}},
        {"key": None},
    ],
)
def test_a_checkpoint_with_wrong_facts_is_named_and_can_be_deleted(
    change: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = begun_cell(tmp_path, monkeypatch) / "checkpoint.safetensors"
    state, meta = load_tensors(checkpoint)
    facts = {name: value for name, value in {**meta, **change}.items() if value is not None}
    save_tensors(checkpoint, state, facts)
    with pytest.raises(CorruptFileError, match=r"checkpoint\.safetensors .*Delete it"):
        small(tmp_path)
    checkpoint.unlink()
    assert small(tmp_path).accuracy() is not None


@pytest.mark.parametrize("method", ["dm", "tesla"])
def test_a_checkpoint_with_another_state_is_named(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = begun_cell(tmp_path, monkeypatch, method) / "checkpoint.safetensors"
    state, meta = load_tensors(checkpoint)
    images = next(name for name, value in state.items() if value.ndim == 4)
    for wrong in (
        {name: value for name, value in state.items() if name != images},
        {**state, images: state[images][:, :, :4]},
        {**state, images: state[images] * float("nan")},
        {**state, images: state[images].double()},
        {**state, "more": state[images]},
    ):
        save_tensors(checkpoint, wrong, meta)
        with pytest.raises(CorruptFileError, match=r"checkpoint\.safetensors .*Delete it"):
            small(tmp_path, method)


@pytest.mark.parametrize(
    ("label_space", "name"),
    [("logits", "value.student_lr"), ("logits", "counters"), ("probabilities", "value.labels")],
)
def test_a_checkpoint_with_a_value_that_the_method_never_has_is_named(
    label_space: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: Settings = {"label_space": label_space, "labels": "learned"}
    begin(tmp_path, monkeypatch, "tesla", changes)
    (checkpoint,) = (tmp_path / "cells").glob("*/checkpoint.safetensors")
    state, meta = load_tensors(checkpoint)
    save_tensors(checkpoint, {**state, name: -1 - state[name].abs()}, meta)
    with pytest.raises(CorruptFileError, match=r"checkpoint\.safetensors is not the state of tesla .*Delete it"):
        small(tmp_path, "tesla", changes)
    save_tensors(checkpoint, state, meta)
    assert small(tmp_path, "tesla", changes).accuracy() is not None


@pytest.mark.parametrize(
    "change",
    [
        {"ipc": "1"},
        {"seed": None},
        {"settings": []},
        {"settings": {"iterations": "2"}},
        {"settings": {"lr_images": None}},
        {"data": {"zca": "no"}},
        {"network": 3},
        {"evaluation": {"networks": 1.5}},
        {"evaluators": []},
        {"evaluators": {"convnet": 3}},
        {"evaluators": {"convnet": {"epochs": "2"}}},
        {"changed": [3]},
        {"changed": ["convnet.no_such"]},
        {"command": 1},
        {"preset": {}},
    ],
)
def test_a_configuration_changed_by_hand_is_named(change: Settings, out: Path) -> None:
    (path,) = (out / "cells").glob("*/config.json")
    stored = read_json(path)
    for name, value in change.items():
        whole = stored.get(name)
        stored[name] = {**whole, **value} if isinstance(whole, dict) and isinstance(value, dict) else value
    write_json(path, stored)
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        evaluate_saved(path.parent, quiet=True)


# --------------------------------------------------------------------------- 20: workers, read-only folders, names


def test_a_worker_whose_parent_died_leaves_no_traceback(tmp_path: Path) -> None:
    job = Job(Session(tmp_path, device="cpu", quiet=True).cell(config_of("random"))).freeze().write()
    command = [sys.executable, "-m", "dcbench_tesla.backends.worker", str(job.file)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    worker.stdout.close()  # nobody reads the answer
    _, told = worker.communicate(timeout=120) if worker.stderr is None else ("", worker.stderr.read())
    worker.wait(60)
    assert "ended: ok" in told
    assert "Traceback" not in told


def test_a_finished_cell_is_read_without_writing(whitened: CellResult) -> None:
    root = whitened.cell.workspace.root
    locks = [path for path in root.rglob("*.lock") if path.is_file()]
    for lock in locks:
        lock.unlink()
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert evaluate_saved(whitened.folder, quiet=True).keys() == {"convnet"}
    fresh = Session(root, device="cpu", quiet=True).cell(whitened.cell.config)
    assert run_cell(fresh).accuracy() is not None
    assert fresh.splits.train is not None  # which needs the whitening
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


@pytest.mark.parametrize("zca", [False, True])
def test_a_cell_in_a_folder_that_cannot_be_written_is_evaluated_elsewhere(
    zca: bool, finished: CellResult, whitened: CellResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = whitened if zca else finished
    before = content(source.cell.workspace.root)
    monkeypatch.setattr(saved, "_writable", lambda _: False)
    changes = [Override("convnet", "epochs", 3)]
    rows = evaluate_saved(source.folder, overrides=changes, out=tmp_path, quiet=True)
    assert content(source.cell.workspace.root) == before
    written = [row["key"] for row in stage_rows(Workspace(tmp_path), "evaluate")]
    assert written == [rows["convnet"]["key"]]
    assert [row["key"] for row in stage_rows(Workspace(tmp_path), "condense")] == [source.cell.key]
    with pytest.raises(DcbenchError, match="cannot be written: --out names"):
        evaluate_saved(source.folder, overrides=[Override("convnet", "epochs", 4)], out=source.cell.workspace.root)


def test_whether_a_folder_can_be_written(tmp_path: Path) -> None:
    assert saved._writable(tmp_path)
    assert not saved._writable(tmp_path / "missing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b", "timm:hf_hub:x/y", "..", "n" * 300, "a\\b"])
def test_an_evaluators_name_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    folder = records_name(name, "0123456789abcdef")
    assert Path(folder).name == folder
    (tmp_path / folder).mkdir()
    assert records_name("timm:resnet26d", "key") == "timm-resnet26d-key"


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file be made, as in a read-only folder; permissions do not stop root, who may run this."""

    def refused(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", refused)


@pytest.mark.usefixtures("unwritable")
def test_what_is_done_in_a_folder_that_cannot_be_written_is_reported(out: Path, finished: CellResult) -> None:
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    ran = command(*words(SMALL, out, "dm"))
    assert ran.exit_code == 0, ran.output
    assert f"{100 * finished.rows['convnet']['accuracy']['last']['mean']:.1f}" in ran.stdout
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


@pytest.mark.usefixtures("unwritable")
@pytest.mark.parametrize("more", [["--force"], ["--seed", "1"], ["--set", "convnet.epochs=3"], ["--method", "random"]])
def test_what_is_to_be_done_in_a_folder_that_cannot_be_written_is_refused_at_once(more: list[str], out: Path) -> None:
    ran = command(*words(SMALL, out, "dm"), *more)
    assert ran.exit_code == 1
    assert ran.stderr.splitlines()[-1] == (
        f"Error: cannot write {out / '.writable'}: Read-only file system. Free space there, or choose another folder "
        "by --out."
    )
    assert "measuring" not in ran.stderr


@pytest.mark.usefixtures("unwritable")
def test_a_baseline_to_be_run_in_a_folder_that_cannot_be_written_is_refused_at_once(out: Path) -> None:
    ran = command(*[word for word in words(SMALL, out, "dm") if word != "--no-baseline"])
    assert (ran.exit_code, "Read-only file system" in ran.stderr, "measuring" in ran.stderr) == (1, True, False)


# -------------------------------------------------------------------------------------- kills and signals at any stage


def test_a_kill_before_the_row_of_experts_is_healed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two: Settings = {"experts.count": 2}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "_record_experts", killed)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path, "tesla", two)
    assert stage_rows(Workspace(tmp_path), "experts") == []
    cell = small(tmp_path, "tesla", two).cell
    (row,) = stage_rows(Workspace(tmp_path), "experts")
    assert (row["experts"], row["epochs"], row["trained_epochs"], row["train_seconds"]) == (2, 1, 0, 0)
    assert content_key(row["identity"]) == cell.materials.expert_store.recipe.key
    small(tmp_path, "tesla")  # reads one of these experts: nothing to record
    small(tmp_path, "tesla", two, force=True)
    assert stage_rows(Workspace(tmp_path), "experts") == [row]


def test_a_kill_before_the_row_of_more_experts_is_healed_beside_the_row_of_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path, "tesla")
    more: Settings = {"experts.count": 2}
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "write_row", lambda *_: pytest.fail("killed"))
        with pytest.raises(BaseException, match="killed"):
            small(tmp_path, "tesla", more)
    small(tmp_path, "tesla", more)
    assert sorted(row["experts"] for row in stage_rows(Workspace(tmp_path), "experts")) == [1, 2]


def test_a_signal_that_the_shell_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with loop._asked_to_stop() as asked:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked()
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_heard_stops_the_loop_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with loop._asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("there", [False, True])
def test_divergence_says_what_is_kept(there: bool, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CondenseLoop, "_iterate", lambda *_: IterationRecord(loss=math.nan))
    with pytest.raises(DivergedError) as error:
        small(out if there else tmp_path / "nothing yet", force=True)
    told = str(error.value)
    assert ("the result that was there before stays" in told) == there
    assert ("everything up to the last checkpoint is kept" in told) != there


def test_workers_that_train_experts_have_as_long_to_stop_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    class Worker:
        def terminate(self) -> None: ...

        def communicate(self, timeout: float | None = None) -> None:
            waited.append(timeout)

    expert_processes._stop([Worker()])  # type: ignore[list-item]
    assert waited == [GRACE_S]


# ------------------------------------------------------------------------------------------------------- 22: chance


def test_a_run_at_the_level_of_chance_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: Settings = {"convnet.lr": 1e-9, "evaluation.networks": 2}
    config = config_of("random", changes)
    result = run_cell(Session(tmp_path, device="cpu").cell(config))
    (note,) = result.rows["convnet"]["notes"]
    assert note.startswith("at the level of chance: ")
    assert f"note: {note}" in capsys.readouterr().err


def test_a_run_better_than_chance_has_no_note(tmp_path: Path) -> None:
    changes: Settings = {"convnet.epochs": 60, "convnet.width": 16}
    result = small(tmp_path, "random", changes)
    assert "notes" not in result.rows["convnet"]


def test_the_limit_of_chance() -> None:
    limit = 0.1 + 2 * math.sqrt(0.1 * 0.9 / 100)
    assert notes_on(Accuracy.of([limit - 1e-6], 0), 10, 100)
    assert not notes_on(Accuracy.of([limit + 1e-6], 0), 10, 100)
    spread = 0.02  # of two networks: the variance is spread^2 / 2, that of their mean half of it
    wider = 0.1 + 2 * math.sqrt(0.1 * 0.9 / 100 + spread**2 / 4)
    assert notes_on(Accuracy.of([wider - 1e-6 - spread / 2, wider - 1e-6 + spread / 2], 0), 10, 100)
    assert not notes_on(Accuracy.of([wider + 1e-6 - spread / 2, wider + 1e-6 + spread / 2], 0), 10, 100)
    assert notes_on(None, 10, 100) == []


# ----------------------------------------------------------------------------------------------------- neighbours


def test_the_damaged_index_of_another_import_stops_nobody(tmp_path: Path) -> None:
    identity = {"data": {}, "network": {}, "imported": "0"}
    key = content_key(identity)
    whole: dict[str, Any] = {"key": key, "name": "mine", "epochs": [1], "files": [], "identity": identity}
    other = {**whole, "identity": {**identity, "imported": "1"}}
    for folder, index in (("a", "{"), ("b", "[]"), ("c", json.dumps(other)), (key, json.dumps(whole))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / IMPORTED).write_text(index)
    assert _find_imported(tmp_path, "mine") == whole
    with pytest.raises(CorruptFileError, match=r"a/imported\.json"):
        _find_imported(tmp_path, "other")


@pytest.mark.parametrize("change", [{"train_images": None}, {"train_images": 5}, {"validation": "0.1"}, {"more": 1}])
def test_an_index_of_imported_experts_is_held_to_its_key(change: Settings, tmp_path: Path) -> None:
    identity: dict[str, Any] = {"data": {"train_images": 9, "validation": 0.1}, "network": {}, "imported": "0"}
    key = content_key(identity)
    index = {"key": key, "name": "mine", "epochs": [1], "files": [], "identity": identity}
    path = tmp_path / key / IMPORTED
    write_json(path, index)
    assert read_index(path) == index
    data = {name: value for name, value in {**identity["data"], **change}.items() if value is not None}
    write_json(path, {**index, "identity": {**identity, "data": data}})
    with pytest.raises(CorruptFileError, match=r"imported\.json describes other experts .*Delete the folder"):
        read_index(path)


@pytest.mark.parametrize(
    ("put", "told"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device"),
        (lambda path: os.mkfifo(path), "is a pipe, a socket or a device"),
        (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
        (lambda path: path.write_text("[]"), "is not the configuration of a cell"),
        (lambda path: path.write_text('{"key": "0"}'), "it has no identity"),
    ],
)
def test_a_configuration_that_is_none_is_named(put: Callable[[Path], object], told: str, out: Path) -> None:
    (path,) = (out / "cells").glob("*/config.json")
    path.unlink()
    put(path)
    for target in (path.parent, path.parent.name):
        with pytest.raises(CorruptFileError, match=rf"config\.json .*{told}.* --force"):
            evaluate_saved(target, out=out, quiet=True)


def test_the_configuration_of_another_cell_is_refused(out: Path) -> None:
    (own,) = (out / "cells").glob("*/config.json")
    small(out, "random")
    (other,) = (out / "cells").glob("random-*/config.json")
    shutil.copy(other, own)
    with pytest.raises(CorruptFileError, match=r"config\.json is the configuration of another cell"):
        evaluate_saved(own.parent, quiet=True)
    write_json(other, {**read_json(other), "key": "0" * 16})
    with pytest.raises(CorruptFileError, match=r"config\.json is the configuration of another cell"):
        evaluate_saved(other.parent, quiet=True)
