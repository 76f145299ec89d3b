"""A cell from data to tested accuracy: what it leaves, how it is resumed after kill -9, and how it fails."""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcbench_tesla import registry
from dcbench_tesla.api import run
from dcbench_tesla.cells import loop
from dcbench_tesla.cells import stages as runner
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.session import Session
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import CorruptFileError, DcbenchError, DivergedError, UsageError
from dcbench_tesla.interface import IterationRecord
from dcbench_tesla.records.store import read_json, read_meta
from tests import fixtures_data as fixtures
from tests.fixtures_cells import NONE, Settings, command, configured, ran, words

SELECTED: Settings = {"data.train_images": 200, "convnet.width": 8, "convnet.epochs": 4, "evaluation.networks": 2}
TINY: Settings = {
    **SELECTED,
    "network.width": 8,
    "experts.count": 2,
    "evaluation.every": 2,
    "evaluation.networks_on_the_way": 1,
    "iterations": 4,
    "steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 2,
}

ONLY_AT_THE_END: Settings = {k: v for k, v in TINY.items() if k != "evaluation.networks_on_the_way"} | {
    "evaluation.every": 0
}


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(
    out: Path,
    changes: Settings = NONE,
    *,
    method: str = "tesla",
    dataset: str = "digits",
    base: Settings = TINY,
    force: bool = False,
) -> CellResult:
    return ran(out, method, {**base, **changes}, dataset=dataset, force=force)


def times(folder: Path) -> dict[str, int]:
    """When every file under ``folder`` was last written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def snapshots(folder: Path) -> dict[str, int]:
    """When every file of tensors was last written."""
    return {name: when for name, when in times(folder).items() if name.endswith(".safetensors")}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The numbers of every iteration, but for the seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def accuracies(result: CellResult) -> Any:
    return result.rows["convnet"]["evaluated"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> CellResult:
    """A finished cell."""
    torch.set_num_threads(1)
    return tiny(tmp_path_factory.mktemp("done"))


@pytest.fixture
def copy(done: CellResult, tmp_path: Path) -> Path:
    """A copy of all results, free to be damaged."""
    return shutil.copytree(done.cell.workspace.root, tmp_path / "copy")


# ------------------------------------------------------------------------------------------------- what a run leaves


def test_files_of_a_cell(done: CellResult) -> None:
    files = {str(p.relative_to(done.folder)) for p in done.folder.rglob("*") if p.is_file()}
    expected = {"config.json", "environment.json", "execution.json", "metrics.jsonl", "checkpoint.safetensors"}
    expected |= {"distilled.safetensors", "sheet.png", "snapshots/000002.safetensors"}
    assert expected <= files
    assert not [name for name in files if ".tmp" in name or name.count("safetensors.")]
    config = read_json(done.folder / "config.json")
    assert (config["method"], config["ipc"], config["settings"]["steps"], config["key"]) == (
        "tesla",
        1,
        3,
        done.cell.key,
    )
    assert "torch" in read_json(done.folder / "environment.json")["versions"]


def test_rows(done: CellResult) -> None:
    rows = [read_json(path) for path in done.cell.workspace.rows.iterdir()]
    by_stage = {row["stage"]: row for row in rows}
    assert sorted(row["stage"] for row in rows) == ["condense", "evaluate", "experts"]
    for row in rows:
        assert row["dataset_fingerprint"] == done.cell.dataset.fingerprint
        assert row["hardware"]
        assert row["environment"]["threads"] == 1
        assert row["protocol"].startswith("smoke, changed: ")
    evaluate, condense = by_stage["evaluate"], by_stage["condense"]
    assert condense["learned_lr"] == done.distilled.lr
    assert condense["iterations"] == 4
    assert evaluate["condense_key"] == condense["key"] == done.cell.key
    assert [len(e["test"]) for e in evaluate["evaluated"]] == [1, 2]
    assert [e["iteration"] for e in evaluate["evaluated"]] == [2, 4]
    assert set(evaluate["accuracy"]) == {"last", "best_on_validation", "best_on_test"}
    assert evaluate["test_images"] == len(done.cell.dataset.y_test)
    assert evaluate["validation_images"] == pytest.approx(0.1 * len(done.cell.dataset.y_train), abs=5)
    assert by_stage["experts"]["epochs"] == 2


def test_one_line_an_iteration(done: CellResult) -> None:
    lines = metrics(done.folder)
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert all(line["loss"] > 0 and line["student_lr"] > 0 for line in lines)


def test_distilled_set_is_complete(done: CellResult) -> None:
    distilled = done.distilled
    assert distilled.images.shape == (10, 1, 8, 8)
    assert distilled.class_names == tuple("0123456789")
    facts = {"method": "tesla", "dataset": "digits", "ipc": 1, "seed": 0, "iteration": 4, "key": done.cell.key}
    assert distilled.provenance.items() >= facts.items()
    on_the_way = DistilledSet.load(done.cell.place.snapshot(2))
    assert on_the_way.provenance["iteration"] == 2
    assert not torch.equal(on_the_way.images, distilled.images)


def test_accuracy_by_name(done: CellResult) -> None:
    last = done.accuracy()
    assert last is not None
    assert (last.iteration, len(last.values)) == (4, 2)
    assert 0.05 < last.mean <= 1
    best = done.accuracy(name="best_on_test")
    assert best is not None
    assert best.mean >= last.mean


# ---------------------------------------------------------------------------------------------------- again and again


def test_second_run_does_nothing(done: CellResult) -> None:
    root = done.cell.workspace.root
    before = times(root)
    again = tiny(root)
    assert times(root) == before
    assert again.accuracy() == done.accuracy()


def test_force_does_it_again_with_the_same_experts(copy: Path, done: CellResult) -> None:
    before = times(copy)
    again = tiny(copy, force=True)
    after = times(copy)
    remade = {name for name in before if after[name] != before[name]}
    assert {name.partition("/")[0] for name in remade} == {"cells", "rows", "sheets"}
    assert any(name.endswith("distilled.safetensors") for name in remade)
    assert again.cell.place.distilled.read_bytes() == done.cell.place.distilled.read_bytes()
    assert accuracies(again) == accuracies(done)


def test_other_evaluation_condenses_nothing(copy: Path, done: CellResult) -> None:
    before = times(copy / "cells")
    other = tiny(copy, {"convnet.epochs": 3})
    assert other.cell.key == done.cell.key
    after = times(copy / "cells")
    for name in ("distilled.safetensors", "checkpoint.safetensors", "metrics.jsonl", "sheet.png"):
        assert after[f"{done.folder.name}/{name}"] == before[f"{done.folder.name}/{name}"]
    assert len(list((copy / "rows").glob("evaluate-*"))) == 2


def test_snapshots_that_were_not_kept_cannot_be_evaluated(copy: Path) -> None:
    with pytest.raises(UsageError, match=r"condensed without a snapshot of iteration 1: .*--force"):
        tiny(copy, {"evaluation.every": 1})


def test_rows_of_another_machine_count_as_done(done: CellResult, tmp_path: Path) -> None:
    shutil.copytree(done.cell.workspace.rows, tmp_path / "rows")
    result = tiny(tmp_path)
    assert result.accuracy() == done.accuracy()
    assert not (tmp_path / "cells").exists()
    with pytest.raises(DcbenchError, match="its set is not on this machine: --force makes it again"):
        _ = result.distilled


def test_methods_share_experts(copy: Path) -> None:
    before = snapshots(copy / "experts")
    tiny(copy, method="mtt")
    tiny(copy, {"student_lr": 0.03})
    assert snapshots(copy / "experts") == before
    assert len(before) == 2 * 3


def test_cell_goes_on_with_the_threads_it_was_begun_with(tmp_path: Path) -> None:
    config = configured("tesla", TINY)
    session = Session(tmp_path, device="cpu", quiet=True)
    folder = session.cell(config).place.folder
    folder.mkdir(parents=True)
    (folder / "execution.json").write_text('{"device": "cpu", "threads": 2}')
    assert session.cell(config).execution == Execution("cpu", 2)


# --------------------------------------------------------------------------------------------------------- kill -9


LONG: Settings = {
    **TINY,
    "data.train_images": 1000,
    "network.width": 16,
    "experts.batch_size": 16,
    "iterations": 40,
    "steps": 10,
    "expert_epochs": 2,
    "max_start_epoch": 3,
    "evaluation.every": 20,
    "evaluation.networks": 3,
    "convnet.epochs": 60,
}


def _dcbench(arguments: list[str], log: str, checkpoint_every_s: float) -> None:
    """Do what ``python -m dcbench_tesla ARGUMENTS`` does, in a process of its own that has PyTorch imported."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    torch.set_num_threads(1)
    loop._CHECKPOINT_EVERY_S = checkpoint_every_s
    sys.argv = ["dcbench", *arguments]
    runpy.run_module("dcbench_tesla", run_name="__main__", alter_sys=True)


def started(arguments: list[str], log: Path, checkpoint_every_s: float = 30.0) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcbench_tesla.api", "sklearn.datasets"])  # torch is imported once
    process = context.Process(target=_dcbench, args=(arguments, str(log), checkpoint_every_s))
    process.start()
    return process


def kill_when(seen: Callable[[], bool], process: Any, log: Path) -> None:
    """Send SIGKILL as soon as ``seen``."""
    deadline = time.monotonic() + 300
    while process.is_alive() and not seen() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"ended before it was killed:\n{log.read_text()}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CellResult:
    """A longer cell that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    return run("tesla", settings=LONG, preset="smoke", out=out, device="cpu", quiet=True)


def same_result(out: Path, whole: CellResult) -> None:
    """Finish the cell under ``out`` here, and compare it with the uninterrupted one, byte for byte."""
    result = run("tesla", settings=LONG, preset="smoke", out=out, device="cpu", quiet=True)
    for name in ("distilled.safetensors", "snapshots/000020.safetensors"):
        assert (result.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert metrics(result.folder) == metrics(whole.folder)
    assert accuracies(result) == accuracies(whole)
    assert result.accuracy() == whole.accuracy()
    stages = sorted(path.name.partition("-")[0] for path in (out / "rows").iterdir())
    assert stages == ["condense", "evaluate", "experts"]
    experts, others = (r.cell.materials.expert_store.folder for r in (result, whole))
    for path in experts.rglob("*.safetensors"):
        assert path.read_bytes() == (others / path.relative_to(experts)).read_bytes()


def test_killed_in_every_stage_and_resumed_to_the_same_bytes(whole: CellResult, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = words(LONG, out)
    experts = out / "experts" / whole.cell.materials.expert_store.folder.name
    folder = out / "cells" / whole.folder.name
    checkpoint = folder / "checkpoint.safetensors"

    kill_when((experts / "expert_0000" / "epoch_002.safetensors").exists, started(arguments, log), log)
    kept = snapshots(experts)
    assert not (experts / "expert_0001" / "epoch_004.safetensors").exists()

    process = started(arguments, log, checkpoint_every_s=0.0)
    kill_when(lambda: checkpoint.exists() and read_meta(checkpoint)["iteration"] > 3, process, log)
    assert snapshots(experts).items() >= kept.items()
    after = read_meta(checkpoint)["iteration"]
    assert after < 40
    assert not (folder / "distilled.safetensors").exists()

    process = started(arguments, log)
    kill_when(lambda: any(folder.glob("evaluations/*/000040.json")), process, log)
    assert f"continuing after iteration {after} of 40" in log.read_text()
    assert not list((out / "rows").glob("evaluate-*"))
    tested = [path.stat().st_mtime_ns for path in folder.glob("evaluations/*/000020.json")]

    same_result(out, whole)
    assert [path.stat().st_mtime_ns for path in folder.glob("evaluations/*/000020.json")] == tested


def test_killed_before_the_first_checkpoint(whole: CellResult, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(whole.cell.workspace.experts, out / "experts")
    shutil.copytree(whole.cell.workspace.rows, out / "rows", ignore=shutil.ignore_patterns("condense*", "evaluate*"))
    folder = out / "cells" / whole.folder.name
    kill_when((folder / "snapshots" / "000020.safetensors").exists, started(words(LONG, out), log), log)
    assert not (folder / "checkpoint.safetensors").exists()
    same_result(out, whole)


def test_interrupted_iterations_after_a_checkpoint_are_noted_once(
    done: CellResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = registry.load_method("tesla")
    iterate = method.iterate

    def interrupted(self: Any, iteration: int) -> IterationRecord:
        if iteration == 3:
            raise KeyboardInterrupt
        return iterate(self, iteration)

    due = iter([True, False])  # a checkpoint after the first iteration only
    with monkeypatch.context() as patched:
        patched.setattr(method, "iterate", interrupted)
        patched.setattr(loop.CondenseLoop, "_is_due", lambda self: next(due, False))
        with pytest.raises(KeyboardInterrupt):
            tiny(tmp_path)
    folder = tmp_path / "cells" / done.folder.name
    assert read_meta(folder / "checkpoint.safetensors")["iteration"] == 1
    assert len(metrics(folder)) == 3
    result = tiny(tmp_path)
    assert metrics(result.folder) == metrics(done.folder)
    assert result.cell.place.distilled.read_bytes() == done.cell.place.distilled.read_bytes()


def test_two_processes_want_the_same_cell(done: CellResult, tmp_path: Path) -> None:
    out, logs = tmp_path / "out", [tmp_path / "1", tmp_path / "2"]
    processes = [started(words(TINY, out), log) for log in logs]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0], [log.read_text() for log in logs]
    result = tiny(out)
    assert result.cell.place.distilled.read_bytes() == done.cell.place.distilled.read_bytes()
    assert accuracies(result) == accuracies(done)
    assert metrics(result.folder) == metrics(done.folder)


def test_interrupted_between_the_set_and_its_row(
    done: CellResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner, "write_png", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny(tmp_path)
    result = tiny(tmp_path)
    assert (result.folder / "sheet.png").exists()
    assert result.cell.workspace.row("condense", result.cell.key) is not None
    assert result.cell.place.distilled.read_bytes() == done.cell.place.distilled.read_bytes()


# ---------------------------------------------------------------------------------------------------- what goes wrong


def undone(root: Path, done: CellResult) -> Path:
    """Forget that the cell was condensed; return its checkpoint."""
    for row in [*(root / "rows").glob("condense-*"), *(root / "rows").glob("evaluate-*")]:
        row.unlink()
    folder = root / "cells" / done.folder.name
    (folder / "distilled.safetensors").unlink()
    return folder / "checkpoint.safetensors"


@pytest.mark.parametrize("damage", [b"", b"no tensors at all", None])
def test_corrupt_checkpoint_is_named_and_can_be_deleted(damage: bytes | None, copy: Path, done: CellResult) -> None:
    checkpoint = undone(copy, done)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage is None else damage)
    with pytest.raises(CorruptFileError, match=rf"{checkpoint} is damaged.*Delete it: dcbench run makes"):
        tiny(copy)
    checkpoint.unlink()
    assert tiny(copy).cell.place.distilled.read_bytes() == done.cell.place.distilled.read_bytes()


def test_checkpoint_of_another_cell(copy: Path, done: CellResult) -> None:
    other = tiny(copy, {"student_lr": 0.03})
    checkpoint = undone(copy, done)
    shutil.copy(other.folder / "checkpoint.safetensors", checkpoint)
    with pytest.raises(CorruptFileError, match=r"checkpoint\.safetensors belongs to another cell\. Delete it"):
        tiny(copy)


def test_damaged_distilled_set_and_rows_are_named(copy: Path, done: CellResult) -> None:
    (copy / "cells" / done.folder.name / "distilled.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"distilled\.safetensors is damaged"):
        tiny(copy, {"convnet.epochs": 3})
    (row,) = (copy / "rows").glob("evaluate-*")
    row.write_text("{")
    with pytest.raises(CorruptFileError, match=rf"{row.name} is not valid JSON"):
        tiny(copy)


def test_divergence_is_a_failure_that_keeps_what_there_was(copy: Path) -> None:
    before = times(copy)
    for _ in range(2):  # the second time it goes on, and ends the same way
        with pytest.raises(DivergedError, match=r"tesla diverged: the loss of iteration \d is (nan|inf)\. Lower"):
            tiny(copy, {"lr_images": 1e30})
    after = times(copy)
    assert {name for name in before if after.get(name) != before[name]} <= {n for n in before if n.endswith(".lock")}
    new = after.keys() - before.keys()
    assert not [name for name in new if name.startswith("rows/") or name.endswith("distilled.safetensors")]


@pytest.mark.parametrize("changes", [{"iterations": 1}, {"iterations": 2, "evaluation.every": 1}])
def test_divergence_in_the_last_iteration_is_a_divergence(changes: Settings, copy: Path) -> None:
    base = {**ONLY_AT_THE_END, "lr_images": 1e39}  # the loss is finite, the images after it are not
    with pytest.raises(DivergedError):
        tiny(copy, changes, base=base)


def test_what_the_method_notes_stands_in_the_row(copy: Path) -> None:
    cells = [tiny(copy, {"lr_student_lr": rate}) for rate in (0.0, 1e30)]
    rows = [r.cell.workspace.row("condense", r.cell.key) for r in cells]
    assert [bool(row and row["notes"]) for row in rows] == [False, True]


def test_networks_that_diverge_count_as_chance(tmp_path: Path) -> None:
    result = tiny(tmp_path, {"convnet.lr": 1e30}, method="random", base=SELECTED)
    last = result.accuracy()
    assert last is not None
    assert last.values == pytest.approx([0.1, 0.1])
    assert result.rows["convnet"]["diverged_networks"] == 2


# --------------------------------------------------------------------------------------------- several cells, baseline


def test_failing_cell_does_not_stop_the_others(copy: Path, done: CellResult) -> None:
    undone(copy, done).write_bytes(b"damaged")
    arguments = words(TINY, copy)
    result = command(*arguments[:3], "--method", "mtt", *arguments[3:])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert f"{done.cell.name}: " in result.stderr
    assert "checkpoint.safetensors is damaged" in result.stderr
    assert "1 of 2 cells failed" in result.stderr
    assert "mtt" in result.stdout
    assert len(list((copy / "rows").glob("evaluate-*"))) == 1


def test_cell_that_needs_too_much_memory_does_not_stop_the_others(tmp_path: Path) -> None:
    arguments = words({**TINY, "network.width": 10**12}, tmp_path)
    result = command(*arguments[:3], "--method", "random", *arguments[3:])
    assert result.exit_code == 1
    assert "out of memory" in result.stderr
    assert "1 of 2 cells failed" in result.stderr
    assert len(list((tmp_path / "rows").glob("evaluate-*"))) == 1


def test_force_says_how_long_it_will_take_too(copy: Path) -> None:
    result = command(*words(TINY, copy), "--force")
    assert result.exit_code == 0, result.output
    assert "condensation" in result.stderr
    assert "in all" in result.stderr


def test_random_is_run_beside_and_only_once(copy: Path) -> None:
    arguments = [word for word in words(TINY, copy) if word != "--no-baseline"]
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    (cell,) = (copy / "cells").glob("random-*")
    row = next(r for r in map(read_json, (copy / "rows").glob("evaluate-*")) if r["method"] == "random")
    assert row["settings"] == {**row["settings"], "width": 8, "epochs": 4}  # evaluated as the method was
    assert row["networks"] == 2
    assert "points" in result.stdout
    before = times(cell)
    again = command(*arguments, "--seed", "0")
    assert again.stdout == result.stdout
    assert "done already" in again.stderr
    assert times(cell) == before


def test_baseline_can_be_left_out(copy: Path) -> None:
    result = command(*words(TINY, copy))
    assert result.exit_code == 0, result.output
    assert not list((copy / "cells").glob("random-*"))
    assert "random-" not in result.output


# ----------------------------------------------------------------------------------------------- one's own data, ZCA


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, **fixtures.npz_arrays(train_per_class=12))
    return f"npz:{path}"


def own(out: Path, dataset: str, changes: Settings = NONE, method: str = "tesla") -> CellResult:
    base = SELECTED if method == "random" else {**ONLY_AT_THE_END, "iterations": 2}
    return tiny(out, {"data.train_images": 0, **changes}, method=method, dataset=dataset, base=base)


def test_the_picture_of_images_that_may_not_be_passed_on_stays_in_the_cell(colours: str, tmp_path: Path) -> None:
    result = own(tmp_path, colours)
    assert result.distilled.images.shape == (3, 3, 8, 8)
    assert list(tmp_path.rglob("*.png")) == [result.folder / "sheet.png"]
    row = result.cell.workspace.row("condense", result.cell.key)
    assert row is not None
    assert row["images_may_be_passed_on"] is False
    assert result.distilled.provenance["redistributable"] is False
    for path in (tmp_path / "rows").iterdir():
        assert "pytest-of" not in path.read_text(), "a row, which is committed, names a folder of this machine"


def test_whitening_is_stored_once_and_named_by_the_sets(colours: str, tmp_path: Path) -> None:
    cells = [own(tmp_path, colours, {"data.zca": True}), own(tmp_path, colours, {"data.zca": True}, "random")]
    (shared,) = (tmp_path / "preprocessing").glob("*.safetensors")
    written = shared.stat().st_mtime_ns
    cells.append(own(tmp_path, colours, {"data.zca": True, "student_lr": 0.03}))
    assert list((tmp_path / "preprocessing").glob("*.safetensors")) == [shared]
    assert shared.stat().st_mtime_ns == written
    for result in cells:
        assert read_meta(result.cell.place.distilled)["preprocessing"] == {"shared": shared.stem}
        assert result.cell.place.distilled.stat().st_size < shared.stat().st_size
        distilled = DistilledSet.load(result.cell.place.distilled)
        assert distilled.preprocessing.kind == "zca"
        assert distilled.preprocessing.key == shared.stem
        assert distilled.pixels().shape == (3, 3, 8, 8)
    alone = tmp_path.parent / f"{tmp_path.name}-alone" / "set.safetensors"
    alone.parent.mkdir()
    shutil.copy(cells[0].cell.place.distilled, alone)
    with pytest.raises(CorruptFileError, match="copy it from the results folder"):
        DistilledSet.load(alone)


def test_lost_whitening_is_fitted_again(colours: str, tmp_path: Path) -> None:
    own(tmp_path, colours, {"data.zca": True}, "random")
    (shared,) = (tmp_path / "preprocessing").glob("*.safetensors")
    shared.unlink()
    assert own(tmp_path, colours, {"data.zca": True}).distilled.preprocessing.key == shared.stem
    assert shared.exists()
