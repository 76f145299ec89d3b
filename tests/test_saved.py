"""`dcbench evaluate`: further evaluators on a finished cell, and any distilled set's file."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dcbench_tesla.api import run
from dcbench_tesla.cells.evaluation import Evaluation
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.saved import evaluate_saved
from dcbench_tesla.cli import main
from dcbench_tesla.config import Override
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.records.store import read_json
from tests import fixtures_data as fixtures

SETTINGS = {
    "data.train_images": 200,
    "convnet.width": 4,
    "convnet.epochs": 2,
    "evaluation.networks": 2,
    "evaluation.every": 2,
    "evaluation.networks_on_the_way": 1,
    "network.width": 4,
    "iterations": 4,
    "real_batch": 8,
}
SMALL_RESNET = [Override("resnet18", "width", 2), Override("resnet18", "epochs", 1)]


pytestmark = pytest.mark.usefixtures("one_thread")


def run_dm(out: Path) -> CellResult:
    torch.set_num_threads(1)
    return run("dm", "digits", 1, preset="smoke", settings=SETTINGS, out=out, device="cpu", quiet=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    run_dm(out)
    return out


@pytest.fixture
def cell(made: Path, tmp_path: Path) -> CellResult:
    """A finished cell in a folder of the test's own."""
    shutil.copytree(made, tmp_path / "out")
    return run_dm(tmp_path / "out")  # on record: nothing is done


def evaluate(target: Any, evaluators: Any = (), **options: Any) -> dict[str, dict[str, Any]]:
    return evaluate_saved(target, evaluators, device="cpu", quiet=True, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_further_evaluator_condenses_nothing_and_is_the_stage_that_run_would_add(
    cell: CellResult, tmp_path: Path
) -> None:
    before = files(cell.folder)
    rows = evaluate(cell.folder, ["resnet18"], overrides=SMALL_RESNET)
    after = files(cell.folder)
    assert {name: after[name] for name in before if name != "execution.json"} == {
        name: content for name, content in before.items() if name != "execution.json"
    }
    row = rows["resnet18"]
    assert row["condense_key"] == cell.cell.key
    assert [e["iteration"] for e in row["evaluated"]] == [4]  # the last set only
    assert row["networks"] == 2  # as the cell was run
    again = run(
        "dm",
        "digits",
        1,
        preset="smoke",
        evaluators=("resnet18",),
        settings={k: v for k, v in SETTINGS.items() if not k.startswith("convnet")}
        | {"resnet18.width": 2, "resnet18.epochs": 1},
        out=tmp_path / "out",
        device="cpu",
        quiet=True,
    )
    assert again.rows["resnet18"] == row


def test_a_cell_is_found_by_its_name_and_keeps_what_it_was_run_with(cell: CellResult, tmp_path: Path) -> None:
    rows = evaluate(cell.cell.name, out=tmp_path / "out")
    assert rows == cell.rows  # on record: nothing was done
    more = evaluate(cell.cell.name, out=tmp_path / "out", overrides=[Override("evaluation", "networks", "3")])[
        "convnet"
    ]
    assert more["networks"] == 3
    assert more["accuracy"]["last"]["values"][:2] == cell.rows["convnet"]["accuracy"]["last"]["values"]
    assert [e["iteration"] for e in more["evaluated"]] == [2, 4]
    assert "--set evaluation.networks=3" in more["command"]
    assert "--set convnet.width=4" in more["command"]
    assert more["protocol"].startswith("smoke, changed: ")
    condensed = read_json(tmp_path / "out" / "rows" / f"condense-{cell.cell.key}.json")
    assert "evaluation" not in condensed["protocol"]
    assert "iterations" in condensed["protocol"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": [Override("settings", "iterations", 9)]}, "iterations has no effect here"),
        ({"overrides": [Override("data", "validation", 0.5)]}, "data.validation has no effect here"),
        ({"preset": "quick"}, "own preset and seed"),
        ({"seed": 1}, "own preset and seed"),
    ],
)
def test_what_made_a_cell_cannot_be_changed(cell: CellResult, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(cell.folder, **options)


def test_a_cell_of_other_images_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **fixtures.npz_arrays(train_per_class=12))
    settings = {"convnet.epochs": 1, "convnet.width": 4, "evaluation.networks": 1}
    done = run("random", f"npz:{path}", 1, preset="smoke", settings=settings, out=tmp_path, device="cpu", quiet=True)
    np.savez(path, **fixtures.npz_arrays(train_per_class=13))
    with pytest.raises(UsageError, match="was made from other images than"):
        evaluate(done.folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (Override("convnet", "epocs", 5), "unknown setting 'convnet.epocs'"),
        (Override("convnet", "learned_lr", False), "the method learns no learning rate"),
        (Override("evaluation", "netwoks", 2), "Did you mean 'evaluation.networks'"),
    ],
)
def test_a_wrong_setting_is_not_dropped(cell: CellResult, override: Override, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(cell.folder, overrides=[override])


def test_a_baseline_is_evaluated_as_it_was(tmp_path: Path) -> None:
    """Its evaluators are those of the method it stands beside, not those of the preset."""
    out = tmp_path / "out"
    words = [w for name, value in SETTINGS.items() for w in ("--set", f"{name}={value}")]
    arguments = ["run", "--method", "dm", "--preset", "smoke", "--device", "cpu", "--out", str(out), *words]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    (folder,) = (out / "cells").glob("random-*")
    (before,) = (row for row in map(read_json, (out / "rows").glob("evaluate-*")) if row["method"] == "random")
    assert before["settings"]["width"] == 4
    assert evaluate(folder) == {"convnet": before}
    three = evaluate(folder, overrides=[Override("evaluation", "networks", "3")])["convnet"]
    assert three["settings"] == before["settings"]
    assert three["protocol"] == "smoke, data and evaluation as dm, changed: evaluation.networks"


def test_a_folder_that_is_no_cell_does_not_stop_the_others(cell: CellResult, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CorruptFileError, match="is not the configuration of a cell of dcbench"):
        evaluate(foreign)
    result = CliRunner().invoke(main, ["evaluate", str(foreign), str(cell.folder), "--device", "cpu"])
    assert result.exit_code == 1
    assert "is not the configuration of a cell of dcbench" in result.stderr
    assert "1 of 2 sets could not be evaluated, see above; the others are done" in result.stderr
    assert f"{cell.cell.name}: convnet: " in result.stdout


def test_moved_images_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **fixtures.npz_arrays(train_per_class=12))
    settings = {"convnet.epochs": 1, "convnet.width": 4, "evaluation.networks": 1}
    done = run("random", f"npz:{path}", 1, preset="smoke", settings=settings, out=tmp_path, device="cpu", quiet=True)
    (tmp_path / "there").mkdir()
    moved = path.rename(tmp_path / "there" / "mine.npz")
    with pytest.raises(UsageError, match="say where they are: --dataset"):
        evaluate(done.folder)
    assert evaluate(done.folder, dataset=f"npz:{moved}") == done.rows
    other = moved.rename(tmp_path / "there" / "yours.npz")
    with pytest.raises(UsageError, match="under another name"):
        evaluate(done.folder, dataset=f"npz:{other}")


@pytest.mark.parametrize(
    ("lr", "override", "message"),
    [
        (0.02, Override("convnet", "lr", 0.5), "the learned rate is used"),
        (None, Override("convnet", "learned_lr", False), "learns no learning rate"),
        (None, Override("evaluation", "every", 2), "a file holds one set"),
    ],
)
def test_what_has_no_effect_on_a_file_is_refused(
    cell: CellResult, tmp_path: Path, lr: float | None, override: Override, message: str
) -> None:
    dataclasses.replace(cell.distilled, lr=lr).save(tmp_path / "set.safetensors")
    with pytest.raises(UsageError, match=message):
        evaluate(tmp_path / "set.safetensors", overrides=[override], preset="smoke", out=tmp_path)


def test_interrupted_force_keeps_what_was_there(cell: CellResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(cell.folder, force=True)
    assert evaluate(cell.folder) == cell.rows


def test_an_unfinished_cell_is_told(cell: CellResult) -> None:
    (cell.folder / "distilled.safetensors").unlink()
    with pytest.raises(UsageError, match=r"is not finished: dcbench run --method dm"):
        evaluate(cell.folder, ["resnet18"], overrides=SMALL_RESNET)


def test_neither_cell_nor_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cell of that name"):
        evaluate("nothing", out=tmp_path)


def test_a_file_leaves_a_row_that_is_not_made_twice(
    cell: CellResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cell.folder / "distilled.safetensors"
    changes = [Override("convnet", "epochs", 2), Override("convnet", "width", 4), Override("evaluation", "networks", 2)]
    options = {"overrides": changes, "preset": "smoke", "out": tmp_path / "elsewhere"}
    row = evaluate(file, **options)["convnet"]
    # the same networks on the same set and test images as the cell's own evaluation
    assert row["accuracy"]["last"]["values"] == cell.rows["convnet"]["accuracy"]["last"]["values"]
    assert (row["method"], row["ipc"], row["dataset"]) == ("dm", 1, "digits")
    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("it was done again"))
    assert evaluate(file, **options)["convnet"] == row


def test_a_killed_evaluation_of_a_file_goes_on(
    cell: CellResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cell.folder / "distilled.safetensors"
    changes = [Override("convnet", "epochs", 1), Override("convnet", "width", 4), Override("evaluation", "networks", 3)]
    options = {"overrides": changes, "preset": "smoke", "out": tmp_path / "elsewhere"}
    from dcbench_tesla.cells import evaluation

    trained: list[int] = []
    whole = evaluation.train_and_test

    def killed_at_the_third(*arguments: Any) -> Any:
        if len(trained) == 2:
            trained.append(0)
            raise KeyboardInterrupt
        trained.append(0)
        return whole(*arguments)

    monkeypatch.setattr(evaluation, "train_and_test", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(file, **options)
    row = evaluate(file, **options)["convnet"]
    assert len(trained) == 4  # two, the interrupted one, and the third
    assert len(row["accuracy"]["last"]["values"]) == 3


def test_force_does_it_again(cell: CellResult, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    whole = Evaluation.run

    def noted(self: Evaluation, *arguments: Any) -> dict[str, Any]:
        done.append(self.name)
        return whole(self, *arguments)

    monkeypatch.setattr(Evaluation, "run", noted)
    condensed = (cell.folder / "distilled.safetensors").stat().st_mtime_ns
    assert evaluate(cell.folder, force=True)["convnet"]["accuracy"] == cell.rows["convnet"]["accuracy"]
    assert done == ["convnet"]
    assert (cell.folder / "distilled.safetensors").stat().st_mtime_ns == condensed


def test_an_unknown_method_of_a_file_is_only_a_name(cell: CellResult, tmp_path: Path) -> None:
    foreign = cell.distilled.with_provenance(method="somebody's", ipc=None)
    foreign.save(tmp_path / "foreign.safetensors")
    changes = [Override("convnet", "epochs", 1), Override("convnet", "width", 4), Override("evaluation", "networks", 1)]
    row = evaluate(tmp_path / "foreign.safetensors", overrides=changes, preset="smoke", out=tmp_path)["convnet"]
    assert (row["method"], row["ipc"]) == ("somebody's", 1)
    assert "random" not in row["command"]
