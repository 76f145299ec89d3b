"""``dcbench merge``: equal results are one, contradictions are told, and what is here stays."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from dcbench_tesla.api import run
from dcbench_tesla.cli import main
from dcbench_tesla.compare.memory import KEY
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.records import store
from dcbench_tesla.records.store import read_json, write_json

SMALL = {"data.train_images": 100, "convnet.width": 4, "convnet.epochs": 1, "evaluation.networks": 1}
POINT: dict[str, Any] = dict.fromkeys(KEY, 1) | {"method": "mtt", "dataset": "digits", "meter": "predicted"}


ABOUT: dict[str, Any] = {"dataset": "digits", "hardware": "a machine", "environment": {"commit": ""}}
EXPERTS: dict[str, Any] = {"stage": "experts", "key": "77", "experts": 1, "epochs": 2, **ABOUT}
FAILED: dict[str, Any] = {
    "stage": "failed",
    "status": "killed",
    "cell": "a cell",
    "reason": "killed",
    "method": "random",
    **ABOUT,
}
FAILED |= {"ipc": 1, "seed": 0, "preset": "smoke", "protocol": "smoke", "command": "dcbench run"}


def score(row: dict[str, Any], value: float) -> None:
    """Give the networks of an evaluation's row another accuracy, everywhere where it stands."""
    for part in row["evaluated"]:
        part["test"] = [value] * len(part["test"])
    for part in filter(None, row["accuracy"].values()):
        part |= {"mean": value, "std": 0.0, "values": [value] * len(part["values"])}


def merge(out: Path, *words: object) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, words), "--out", str(out)])


def summary(result: Result, source: Path) -> str:
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{source}: "))
    return line.removeprefix(f"{source}: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with one finished cell."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("made") / "results"
    run("random", "digits", 1, preset="smoke", settings=SMALL, out=out, device="cpu", quiet=True)
    return out


@pytest.fixture
def other(made: Path, tmp_path: Path) -> Path:
    """The same on another machine: computed elsewhere, later, by another commit."""
    shutil.copytree(made, tmp_path / "other")
    elsewhere = {"hardware": "a GPU", "environment": {"commit": "0" * 12}, "condense_seconds": 9e9, "command": "?"}
    for path in (tmp_path / "other").glob("rows/*.json"):
        write_json(path, read_json(path) | elsewhere)
    return tmp_path / "other"


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    row = read_json(path)
    change(row)
    write_json(path, row)


def contents(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "figures").mkdir(exist_ok=True, parents=True)
    pd.DataFrame([POINT | row for row in rows]).to_csv(folder / "figures" / "memory.csv", index=False)
    return folder / "figures" / "memory.csv"


def test_what_is_absent_is_copied_and_once_only(other: Path, tmp_path: Path) -> None:
    cell = only(other, "cells/*")
    (cell / "checkpoint.safetensors").write_text("an interrupted run's")
    (cell / "tensorboard").mkdir()
    (cell / "tensorboard" / "events").write_text("a log")
    out = tmp_path / "out"
    result = merge(out, other)
    assert result.exit_code == 0, result.output
    assert summary(result, other) == "2 rows new, 0 already here, 0 conflicts; 1 set copied"
    assert contents(out / "rows") == contents(other / "rows")
    assert contents(out / "sheets") == contents(other / "sheets")
    mine = out / "cells" / cell.name
    assert {"distilled.safetensors", "config.json", "environment.json"} <= contents(mine).keys()
    assert not {"checkpoint.safetensors", "execution.json", "tensorboard", "evaluations"} & {
        p.name for p in mine.iterdir()
    }
    assert torch.equal(
        DistilledSet.load(mine / "distilled.safetensors").images,
        DistilledSet.load(cell / "distilled.safetensors").images,
    )
    before = contents(out)
    assert summary(merge(out, other), other) == "0 rows new, 2 already here, 0 conflicts; 0 sets copied"
    assert contents(out) == before
    # nothing is to be done of the cell: the run finds it finished
    again = run("random", "digits", 1, preset="smoke", settings=SMALL, out=out, device="cpu", quiet=True)
    assert again.distilled.images.shape[0] == 10
    assert {name: content for name, content in contents(out).items() if name.startswith("rows/")} == {
        name: content for name, content in before.items() if name.startswith("rows/")
    }


def test_equal_results_of_another_machine_are_one(made: Path, other: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    result = merge(out, other)
    assert result.exit_code == 0, result.output
    assert summary(result, other) == "0 rows new, 2 already here, 0 conflicts; 0 sets copied"
    assert contents(out) == contents(made)


def test_another_accuracy_is_a_conflict_and_the_rest_is_merged(made: Path, other: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    row = only(other, "rows/evaluate-*.json")
    was = read_json(row)["accuracy"]["last"]["mean"]
    edit(row, lambda r: score(r, 0.25))
    third = tmp_path / "third"
    write_json(third / "rows" / "experts-77.json", EXPERTS)
    result = merge(out, other, third)
    assert result.exit_code == 1
    assert summary(result, other) == "0 rows new, 1 already here, 1 conflict; 0 sets copied"
    assert summary(result, third) == "1 row new, 0 already here, 0 conflicts; 0 sets copied"
    (told,) = (line for line in result.stderr.splitlines() if line.startswith("conflict: "))
    assert str(row) in told
    assert str(out / "rows" / row.name) in told
    assert f"accuracy.best_on_test.mean is {was} here and 0.25 there" in told
    assert told.endswith("The one here stays; delete the one here and merge again to take the other.")
    (out / "rows" / row.name).unlink()
    assert summary(merge(out, other), other) == "1 row new, 1 already here, 0 conflicts; 0 sets copied"
    shutil.copy(made / "rows" / row.name, out / "rows" / row.name)
    assert {n: c for n, c in contents(out).items() if "77" not in n} == contents(made)
    assert (out / "rows" / "experts-77.json").exists()


def test_another_distilled_set_is_a_conflict_and_brings_no_evaluations(made: Path, other: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    path = only(other, "cells/*/distilled.safetensors")
    tensors, meta = store.load_tensors(path)
    store.save_tensors(path, tensors | {"images": tensors["images"].flip(0)}, meta)
    further = read_json(only(other, "rows/evaluate-*.json")) | {"key": "5" * 16}
    write_json(other / "rows" / f"evaluate-{'5' * 16}.json", further)
    (other / "sheets" / f"{path.parent.name}.png").write_bytes(b"other images")
    only(out, "sheets/*.png").unlink()
    before = contents(out)
    result = merge(out, other)
    assert result.exit_code == 1
    assert summary(result, other) == "0 rows new, 2 already here, 2 conflicts; 0 sets copied"
    assert "hold different images" in result.stderr
    assert f"evaluate-{'5' * 16}.json evaluates another distilled set than the one here" in result.stderr
    assert contents(out) == before


def test_set_of_a_condensation_with_another_loss_is_not_put_beside_the_row_here(
    made: Path, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "rows", out / "rows")  # as a checkout has them: no tensors
    edit(only(other, "rows/condense-*.json"), lambda r: r.update(final_loss=0.5))
    result = merge(out, other)
    assert result.exit_code == 1
    assert "final_loss is None here and 0.5 there" in result.stderr
    assert not (out / "cells").exists()
    assert not (out / "sheets").exists()


def test_failures_fall_where_the_other_side_has_finished(made: Path, other: Path, tmp_path: Path) -> None:
    name = only(made, "rows/condense-*.json").name.replace("condense", "failed")
    key = name.removeprefix("failed-").removesuffix(".json")
    failed = FAILED | {"key": key}
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (out, elsewhere):
        write_json(folder / "rows" / name, failed)
    write_json(elsewhere / "rows" / "failed-88.json", failed | {"key": "88"})
    assert summary(merge(out, elsewhere), elsewhere) == "1 row new, 1 already here, 0 conflicts; 0 sets copied"
    assert merge(out, other).exit_code == 0
    assert sorted(p.name for p in out.glob("rows/failed-*")) == ["failed-88.json"]
    assert merge(out, elsewhere).exit_code == 0  # finished here, failed there
    assert sorted(p.name for p in out.glob("rows/failed-*")) == ["failed-88.json"]


def test_failures_fall_when_the_evaluations_they_name_are_here(made: Path, other: Path, tmp_path: Path) -> None:
    condensed, evaluated = (
        only(made, f"rows/{stage}-*.json").stem.partition("-")[2] for stage in ("condense", "evaluate")
    )
    failed = FAILED | {"key": condensed}
    for evaluations, left in (([evaluated], 0), (["another", evaluated], 1)):
        row = failed | {"evaluations": evaluations}
        here, there = tmp_path / f"here{left}", tmp_path / f"there{left}"
        write_json(here / "rows" / f"failed-{condensed}.json", row)
        assert merge(here, other).exit_code == 0  # failed here, finished there
        assert len(list(here.glob("rows/failed-*"))) == left
        write_json(there / "rows" / f"failed-{condensed}.json", row)
        out = shutil.copytree(made, tmp_path / f"out{left}")
        assert merge(out, there).exit_code == 0  # finished here, failed there
        assert len(list(out.glob("rows/failed-*"))) == left


def test_comparisons(other: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine = table(out, {"ipc": 1, "peak_bytes": 10, "commit": "a"}, {"ipc": 2, "peak_bytes": 20, "commit": "a"})
    theirs: list[dict[str, Any]] = [
        {"ipc": 1, "peak_bytes": 10},
        {"ipc": 2, "peak_bytes": 21},
        {"ipc": 3, "peak_bytes": None},
    ]
    path = table(other, *(row | {"commit": "b"} for row in theirs))
    result = merge(out, other)
    assert result.exit_code == 1
    assert summary(result, other) == "3 rows new, 1 already here, 1 conflict; 1 set copied"
    (told,) = (line for line in result.stderr.splitlines() if line.startswith("conflict: "))
    assert str(path) in told
    assert str(mine) in told
    assert told.endswith("What is here stays; delete the row here and merge again to take the other.")
    assert re.search(r"ipc 2, .*peak_bytes is 20 here and 21(\.0)? there", told)
    found = pd.read_csv(mine)
    assert list(found["ipc"]) == [1, 2, 3]
    assert found["peak_bytes"].fillna(-1).tolist() == [10, 20, -1]
    assert found["commit"].tolist() == ["a", "a", "b"]


def test_what_was_measured_wins_over_what_was_not_run(tmp_path: Path) -> None:
    """Comparisons alone are something to merge; a busy machine's row without a value contradicts nothing."""
    out, other = tmp_path / "out", tmp_path / "other"
    not_run = "not run: needs 58 GiB, 20 GiB are free"
    measured, lacking = ({"peak_bytes": 10, "status": "ok"}, {"peak_bytes": None, "status": not_run})
    mine = table(out, {"ipc": 1} | lacking, {"ipc": 2} | measured, {"ipc": 3} | lacking)
    also_lacking = lacking | {"status": "not run: needs 58 GiB, 1 GiB is free"}
    table(other, {"ipc": 1} | measured, {"ipc": 2} | lacking, {"ipc": 3} | also_lacking)
    result = merge(out, other)
    assert result.exit_code == 0, result.output
    assert summary(result, other) == "1 row new, 2 already here, 0 conflicts; 0 sets copied"
    assert pd.read_csv(mine)["peak_bytes"].fillna(-1).tolist() == [10, 10, -1]
    assert pd.read_csv(mine)["status"].tolist() == ["ok", "ok", not_run]


def test_damaged_and_foreign_files_are_named_in_one_message(other: Path, tmp_path: Path) -> None:
    (other / "rows" / "evaluate-0.json").write_text('{"half": ')
    (other / "rows" / "notes.txt").write_text("mine")
    write_json(other / "rows" / "evaluate-1.json", {"stage": "evaluate", "key": "2"})
    write_json(other / "rows" / "evaluate-3.json", {"stage": "evaluate", "key": "3"})
    (other / "figures").mkdir()
    (other / "figures" / "time.csv").write_text("a,b\n1,2\n")
    path = only(other, "cells/*/distilled.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")  # the high byte of a label
    table(other, {"peak_bytes": 1})
    out = tmp_path / "out"
    result = merge(out, other)
    assert result.exit_code == 1
    assert summary(result, other) == "3 rows new, 0 already here, 0 conflicts; 0 sets copied"
    (told,) = (line for line in result.stderr.splitlines() if line.startswith("left out"))
    for name in ("evaluate-0.json", "notes.txt", "evaluate-1.json", "evaluate-3.json", "time.csv", str(path)):
        assert name in told
    assert len(list(out.glob("rows/*"))) == 2
    assert not list(out.glob("cells/*/distilled.safetensors"))


def test_no_tensors(other: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert summary(merge(out, other, "--no-tensors"), other).endswith("; 0 sets copied")
    assert sorted(p.name for p in out.iterdir()) == ["rows", "sheets"]
    assert merge(out, other, "--no-tensors", "--experts").exit_code == 2


def test_a_whitening_comes_with_the_set_that_needs_it(other: Path, tmp_path: Path) -> None:
    path = only(other, "cells/*/distilled.safetensors")
    tensors, meta = store.load_tensors(path)
    named = {name: t for name, t in tensors.items() if "." not in name}
    own = {name.partition(".")[2]: t for name, t in tensors.items() if "." in name}
    key = Preprocessing.from_state(own, meta["preprocessing"]).key
    store.save_tensors(path, named, meta | {"preprocessing": {"shared": key}})
    store.save_tensors(other / "preprocessing" / f"{key}.safetensors", own, meta["preprocessing"])
    out = tmp_path / "out"
    assert merge(out, other).exit_code == 0
    assert len(DistilledSet.load(out / path.relative_to(other))) == 10
    (other / "preprocessing" / f"{key}.safetensors").unlink()
    result = merge(tmp_path / "second", other)
    assert result.exit_code == 1
    assert f"{key}.safetensors, which is not there" in result.stderr


def test_experts_are_copied_whole_and_when_asked(other: Path, tmp_path: Path) -> None:
    for name in ("recipe.json", "expert_0000/epoch_000", "expert_0001/epoch_000", "expert_0001/epoch_001"):
        path = other / "experts" / "abc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    write_json(other / "preprocessing" / "fit-1.json", {"preprocessing": "w"})
    out = tmp_path / "out"
    begun = out / "experts" / "abc" / "expert_0001" / "epoch_000"
    begun.parent.mkdir(parents=True)
    begun.write_text("mine")
    assert merge(out, other).exit_code == 0
    assert contents(out / "experts") == {"abc/expert_0001/epoch_000": b"mine"}
    assert summary(merge(out, other, "--experts"), other).endswith("; 0 sets and 1 expert copied")
    found = {"abc/recipe.json": b"theirs", "abc/expert_0000/epoch_000": b"theirs", "abc/expert_0001/epoch_000": b"mine"}
    assert contents(out / "experts") == found
    assert json.loads((out / "preprocessing" / "fit-1.json").read_text()) == {"preprocessing": "w"}


@pytest.mark.parametrize("source", ["out", "out/../out", "empty", "none"])
def test_nothing_to_merge(source: str, made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    (tmp_path / "empty" / "rows").mkdir(parents=True)
    result = merge(out, made, tmp_path / source)
    assert result.exit_code == 2
    assert result.stderr.count("Error: ") == 1
    assert ("merged into itself" if "out" in source else "holds no rows") in result.stderr
    assert contents(out) == contents(made)
