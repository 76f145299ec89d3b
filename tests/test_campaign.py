"""The campaign's own parts: operators that damage and repeat themselves, and a judge that sees what falls."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcbench_tesla.records.store import save_tensors
from tests.campaign import operators
from tests.campaign.judge import Results, Trial, changed_fields, results, symptoms
from tests.campaign.kinds import KINDS
from tests.campaign.operators import Operator
from tests.campaign.processes import Ran, run
from tests.fixtures_data import npz_arrays

ROW = {"stage": "evaluate", "key": "k", "accuracy": {"last": {"mean": 0.5}}, "hardware": "a machine"}


def make(path: Path) -> Path:
    """Write a sound file of the kind its suffix names."""
    if path.suffix == ".json":
        path.write_text(json.dumps(ROW))
    elif path.suffix == ".safetensors":
        save_tensors(path, {"theta": torch.ones(4)}, {"epoch": 1, "identity": {"a": [1, 2]}})
    elif path.suffix == ".csv":
        path.write_text("method,seconds\ntesla,1.5\nmtt,2.5\n")
    elif path.suffix == ".toml":
        path.write_text('preset = "smoke"\n[settings]\nsteps = 3\n')
    elif path.suffix == ".png":
        Image.new("RGB", (8, 8), "gray").save(path)
    elif path.suffix == ".npz":
        np.savez(path, **npz_arrays())
    else:
        torch.save(torch.zeros(2), path)
    return path


FORMATS: dict[str, dict[str, Operator]] = {
    "a.json": operators.JSON,
    "a.safetensors": operators.TENSORS,
    "a.csv": operators.CSV,
    "a.toml": operators.TOML,
    "a.png": operators.PICTURE,
    "a.npz": operators.NPZ,
    "a.pt": operators.TORCH,
}


@pytest.mark.parametrize(("name", "operator"), [(n, o) for n, found in FORMATS.items() for o in found])
def test_an_operator_says_what_it_did_and_does_the_same_again(name: str, operator: str, tmp_path: Path) -> None:
    said = []
    for place in ("one", "two"):
        folder = tmp_path / place / "here"
        folder.mkdir(parents=True)
        path, sibling = make(folder / name), make(folder / f"other-{name}")
        said.append(FORMATS[name][operator](path, random.Random(f"5/{operator}"), [sibling]))
    assert said[0] == said[1]
    assert said[0]


def test_every_kind_has_a_name_of_its_own_and_the_operators_of_any_file() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(kind.operators.keys() >= operators.ANY.keys() for kind in KINDS)


def ran(code: int = 0, out: str = "", err: str = "", *, hung: bool = False) -> Ran:
    return Ran(code, out, err, 0.1, hung)


def judged(folder: Path, how: Ran, *, free: bool = False) -> list[str]:
    """Judge a command that should show 50 % and keep the row; ``row.json`` is the damaged file."""
    expected = Results(results(folder).files, shown=Counter(["50.0 ± 1.0 %"]))
    return symptoms(Trial(folder, "runs/rows/row.json", expected, expected, free), how)


@pytest.mark.parametrize(
    ("how", "symptom"),
    [
        (ran(out="tesla 50.0 ± 1.0 %"), None),
        (ran(1, err="Error: row.json is no row. Delete it."), None),
        (ran(1, err="Error: something is wrong."), "refused without naming the file"),
        (ran(1, err="Traceback (most recent call last):\n row.json"), "traceback"),
        (ran(1, err="row.json: This is a defect of the program or a plugin"), "told as a defect of the program"),
        (ran(-9, hung=True), "hang"),
        (ran(-11), "ended by signal 11"),
        (ran(out="tesla 55.0 ± 1.0 %"), "wrong value shown: 55.0 ± 1.0 %"),
        (ran(out="nothing"), "a result is left out without a word"),
        (ran(out="\x1b[31m 50.0 ± 1.0 %"), "control characters in the output"),
    ],
)
def test_the_judge_sees(how: Ran, symptom: str | None, tmp_path: Path) -> None:
    assert judged(tmp_path, how) == ([symptom] if symptom else [])


def test_the_judge_sees_a_lost_and_a_changed_result(tmp_path: Path) -> None:
    rows = tmp_path / "runs" / "rows"
    rows.mkdir(parents=True)
    for name in ("evaluate-a", "evaluate-b"):
        (rows / f"{name}.json").write_text(json.dumps(ROW))
    before = results(tmp_path)
    trial = Trial(tmp_path, "runs/rows/other.json", before, before)
    assert symptoms(trial, ran()) == []
    (rows / "evaluate-a.json").write_text(json.dumps({**ROW, "hardware": "another machine"}))
    assert symptoms(trial, ran()) == []
    (rows / "evaluate-a.json").write_text(json.dumps({**ROW, "accuracy": {"last": {"mean": 0.6}}}))
    assert symptoms(trial, ran()) == [
        "lost: runs/rows/evaluate-a.json is changed",
        "wrong value accepted: runs/rows/evaluate-a.json",
    ]
    (rows / "evaluate-a.json").unlink()
    assert symptoms(trial, ran())[0] == "lost: runs/rows/evaluate-a.json is gone"


def test_the_judge_knows_experts_under_another_key(tmp_path: Path) -> None:
    def expert(key: str, value: float) -> Path:
        path = tmp_path / "runs" / "experts" / key / "expert_0000" / "epoch_000.safetensors"
        save_tensors(path, {"theta": torch.full((3,), value)}, {"identity": key})
        return path

    expected_file = expert("0" * 16, 1.0)
    expected, before = results(tmp_path), Results()
    expected_file.unlink()
    trial = Trial(tmp_path, "buffer.pt", before, expected)
    missing = "not made, without a word: runs/experts/expert_0000/epoch_000.safetensors"
    assert symptoms(trial, ran()) == [missing]
    other = expert("1" * 16, 2.0)
    assert symptoms(trial, ran()) == [missing]
    other.unlink()
    expert("1" * 16, 1.0)
    assert symptoms(trial, ran()) == []


def test_changed_fields() -> None:
    old = json.dumps({"a": [1, 2], "b": {"c": "x"}})
    assert changed_fields(old, json.dumps({"a": [1, 3], "b": {"c": "x"}})) == [("a", 3)]
    assert changed_fields(old, json.dumps({"a": [1, 2], "b": {}})) == [("b.c", None)]
    assert changed_fields(old, old) == []
    assert changed_fields(old, "{") is None


def test_a_command_that_hangs_is_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "pipe.txt").write_text("said")

    def work() -> None:
        print(Path("pipe.txt").read_text(), flush=True)
        raise SystemExit(3)

    assert (run(work, folder).code, run(work, folder).out) == (3, "said\n")
    assert run(lambda: time.sleep(60), folder, limit_s=0.3).hung
