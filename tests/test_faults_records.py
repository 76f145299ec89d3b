"""Damaged, hostile and contradictory files of results: each is told, none is believed, and none stops the others."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from dcbench_tesla.cli import main
from dcbench_tesla.compare.accuracy import Wanted, accuracies, markdown
from dcbench_tesla.compare.files import csv_text, merge_csv, read_csv, table_of
from dcbench_tesla.compare.memory import KEY
from dcbench_tesla.compare.table import aligned
from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.exchange.merge import Merged, _is_level, merge
from dcbench_tesla.records import schema
from dcbench_tesla.records.progress import say, say_once
from dcbench_tesla.records.rows import STAGES, damaged_rows, stage_rows
from dcbench_tesla.records.store import load_tensors, read_json, save_tensors
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports import figure2
from dcbench_tesla.reports.declarations import declarations
from dcbench_tesla.reports.failed import failures
from dcbench_tesla.reports.html import page
from dcbench_tesla.reports.tables import runs, table
from tests import fixtures_report as fixtures

RESULTS = Path(__file__).parents[1] / "results"
NAME = "tesla-digits-ipc1-seed0"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A results folder with one finished cell: two sets tested by two networks each."""
    fixtures.write_cell(tmp_path / "out", "tesla", 1, {50: [0.40, 0.44], 100: [0.60, 0.64]})
    edit(row_of(tmp_path / "out", "condense"), lambda r: r.update(final_loss=0.5))
    return tmp_path / "out"


def row_of(out: Path, stage: str = "evaluate") -> Path:
    return out / "rows" / f"{stage}-{NAME}.json"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    row = json.loads(path.read_text())
    change(row)
    path.write_text(json.dumps(row))


# ------------------------------------------------------------------------------------------------- reading one file


def test_all_committed_rows_and_tables_pass_and_keep_their_bytes() -> None:
    workspace = Workspace(RESULTS)
    assert damaged_rows(workspace) == []
    assert {stage: len(stage_rows(workspace, stage)) for stage in STAGES if stage != "failed"} == {
        stage: len(list(RESULTS.glob(f"rows/{stage}-*.json"))) for stage in STAGES if stage != "failed"
    }
    for path in RESULTS.glob("figures/*.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(path), table_of(path).astype(pd.read_csv(path).dtypes.to_dict()))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff", "is not valid JSON"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": -Infinity}', "-Infinity is no finite number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "an integer of 5000 digits"),
        (b"[" * 200_000 + b"]" * 200_000, "nested"),
        (b"[" * 100 + b"]" * 100, "nested more than 64 levels deep"),
        (rb'{"a": "\ud800"}', "surrogates not allowed"),
    ],
)
def test_json_that_is_none(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=told) as error:
        read_json(path)
    assert "Delete it" in str(error.value)
    assert "\n" not in str(error.value)


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**26 + 1)
    for name, told in (
        ("pipe", "is a pipe, a socket or a device, not a regular file"),
        ("zero", "is a pipe, a socket or a device, not a regular file"),
        ("circle", "cannot be read"),
        ("nowhere", "is a link that leads nowhere"),
        ("folder", "is a folder, not a regular file"),
        ("large", "has 67108865 bytes, expected at most 67108864"),
    ):
        with pytest.raises(CorruptFileError, match=rf"{name} {told}.*Delete it"):
            read_json(tmp_path / name)
        if name != "large":  # tensors may be as many as they are
            with pytest.raises(CorruptFileError, match=rf"{name} {told}.*Delete it"):
                load_tensors(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "gone")


@pytest.mark.parametrize("kind", schema.KINDS)
def test_no_kind_takes_any_content(kind: str) -> None:
    contents: list[Any] = [[], "text", 3, None, True, {}, {"key": 1}, {"preprocessing": "../out"}, {"threads": True}]
    for content in contents:
        assert schema.fault(kind, json.dumps(content)) is not None


@pytest.mark.parametrize("value", ["1", True, 1.5, [1], {}, -1, 2**70])
def test_a_dataclass_is_a_kind(value: Any) -> None:
    from dcbench_tesla.config import NetworkSettings

    assert schema.fault(NetworkSettings, json.dumps({"width": 32, "depth": 0})) is None
    if value not in (-1, 2**70):
        assert "width" in (schema.fault(NetworkSettings, json.dumps({"width": value, "depth": 0})) or "")
    record = {"iteration": value, "test": [0.5], "validation": [], "diverged": 0}
    assert "iteration" in (schema.fault("evaluation record", json.dumps(record)) or "")


# ------------------------------------------------------------------------------------------- rows that are not believed


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "evaluator": (lambda r: r.update(evaluator=1.5), "evaluator: "),
    "settings": (lambda r: r.update(settings=[]), "settings: "),
    "environment": (lambda r: r["environment"].update(commit={}), "environment.commit: "),
    "ipc": (lambda r: r.update(ipc="1"), "ipc: "),
    "path": (lambda r: r.update(cell="../../x"), "cell: "),
    "percent": (lambda r: r["evaluated"][0].update(test=[7.5, 0.4]), "evaluated.0.test.0: "),
    "diverged": (lambda r: r["evaluated"][0].update(diverged=-3), "evaluated.0.diverged: "),
    "all diverged": (lambda r: r["evaluated"][0].update(diverged=3), "diverged is 3 of 2 networks"),
    "count": (lambda r: r.update(diverged_networks=9), "diverged_networks is 9 of 4"),
    "networks": (lambda r: r.update(networks=3), "networks contradicts"),
    "mean": (lambda r: r["accuracy"]["last"].update(mean=0.9), "mean is 0.9, that of its values is 0.62"),
    "std": (lambda r: r["accuracy"]["last"].update(std=0.5), "std is 0.5, that of its values is 0.02"),
    "values": (lambda r: r["evaluated"][1].update(test=[0.1, 0.2]), "accuracy.last.values contradicts"),
    "order": (lambda r: r["evaluated"][0].update(iteration=100), "do not ascend"),
    "iteration": (lambda r: r["evaluated"][1].update(iteration=999), "iteration is 100, which was not tested"),
    "key": (lambda r: r.update(key="another"), "holds the row of another"),
    "no labels": (lambda r: r.update(labels=None), "labels: "),
    "no teacher's accuracy": (lambda r: r.update(teacher_test=None), "teacher_test: "),
    "no epochs": (lambda r: r.update(labels={"regime": "hard", "epochs": None}), "labels.epochs: "),
    "a teacher of no epochs": (lambda r: r.update(labels={"regime": "teacher", "temperature": 4.0}), "need epochs"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_cannot_be_is_told(name: str, out: Path) -> None:
    change, told = WRONG[name]
    edit(row_of(out), change)
    (message,) = damaged_rows(Workspace(out))
    assert str(row_of(out)) in message
    assert told in message
    assert "Delete it" in message
    assert stage_rows(Workspace(out), "evaluate") == []
    with pytest.raises(CorruptFileError):
        Workspace(out).row("evaluate", NAME)


@pytest.mark.parametrize("kind", ["accuracy", "regimes", "scores"])
def test_comparisons_name_a_row_whose_labels_are_null(kind: str, out: Path) -> None:
    edit(row_of(out), lambda r: r.update(labels=None))
    result = CliRunner().invoke(main, ["compare", kind, "--out", str(out)])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.count(row_of(out).name) == 1


def test_an_evaluation_of_more_iterations_than_were_made_is_told(out: Path) -> None:
    edit(row_of(out, "condense"), lambda r: r.update(iterations=77))
    (message,) = damaged_rows(Workspace(out))
    assert "its last iteration is 100, that of its condensation is 77" in message


def test_origin_in_a_row_is_nobodys_word(out: Path) -> None:
    edit(row_of(out), lambda r: r.update(origin="shipped"))
    (row,) = stage_rows(Workspace(out), "evaluate")
    assert "origin" not in row


HOSTILE: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "link to nowhere": lambda path: path.symlink_to("gone"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "deep": lambda path: path.write_text("[" * 200_000),
    "types": lambda path: path.write_text('{"stage": "x", "key": {}, "evaluations": 3, "attempts": "many"}'),
    "number": lambda path: path.write_text("3"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("stage", ["evaluate", "condense", "failed"])
def test_one_bad_file_among_the_rows_stops_nothing(kind: str, stage: str, out: Path) -> None:
    HOSTILE[kind](out / "rows" / f"{stage}-0.json")
    workspace = Workspace(out)
    (message,) = damaged_rows(workspace)
    assert f"{stage}-0.json" in message
    assert len(accuracies(workspace, Wanted())) == 1
    assert failures(workspace, ["tesla"]) == []


def test_listing_tells_bad_rows_and_shows_the_others(out: Path) -> None:
    (out / "rows" / "failed-0.json").write_text('{"evaluations": 3}')
    os.mkfifo(out / "rows" / "evaluate-0.json")
    result = CliRunner().invoke(main, ["list", "cells", "--out", str(out)])
    assert result.exit_code == 1
    assert "62.0 ± 2.0" in result.stdout
    assert "2 files among the rows are left out" in result.stderr
    assert "Traceback" not in result.output


def test_a_bad_failure_stops_no_merge_and_is_not_taken(out: Path, tmp_path: Path) -> None:
    for where in (out, tmp_path / "target"):
        (where / "rows").mkdir(parents=True, exist_ok=True)
        (where / "rows" / "failed-0.json").write_text('{"stage": "failed", "key": "0", "evaluations": 3}')
    result, told = merged(out, tmp_path / "target")
    assert result.new == 2
    assert "failed-0.json" in told
    assert len(result.damaged) == 1


# --------------------------------------------------------------------------------------------------- several contents


def two_contents(root: Path) -> None:
    for method, fingerprint, values in (("tesla", "a" * 16, [0.5, 0.5]), ("random", "b" * 16, [0.9, 0.9])):
        fixtures.write_cell(root, method, 1, {100: values}, dataset="npz:data")
        for path in (root / "rows").glob(f"*-{method}-*.json"):
            edit(path, lambda r, f=fingerprint: r.update(dataset_fingerprint=f))  # type: ignore[misc]


def test_data_sets_of_one_name_never_share_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_contents(tmp_path)
    workspace = Workspace(tmp_path)
    found = accuracies(workspace, Wanted(datasets=["npz:data"]))
    assert dict(zip(found["dataset"], found["last"], strict=True)) == {
        "npz:data (aaaaaaaa)": 0.5,
        "npz:data (bbbbbbbb)": 0.9,
    }
    assert markdown(found).count("### npz:data (") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "npz:data is the name of 2 data sets of different contents: npz:data (aaaaaaaa), npz:data (bbbb" in line
    declared = declarations()["table1"]
    rows = table(declared, runs(declared, workspace), [])
    ran = rows[rows["status"] == "run"]
    assert set(ran["dataset"]) == {"npz:data (aaaaaaaa)", "npz:data (bbbbbbbb)"}
    assert capsys.readouterr().err == ""


def test_one_content_keeps_its_name(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(accuracies(Workspace(out), Wanted())["dataset"]) == ["digits"]
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------------- merge


def merged(source: Path, target: Path, **options: Any) -> tuple[Merged, str]:
    told: list[str] = []
    result = merge(Workspace(source), Workspace(target), tell=told.append, **options)
    return result, "\n".join(told)


def test_merge_copies_nothing_through_links_out_of_the_source(out: Path, tmp_path: Path) -> None:
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.mkdir()
    for name in ("key.png", "w.safetensors", "epoch_000.safetensors", "evaluate-1.json"):
        (secret / name).write_text("secret")
    save_tensors(secret / "distilled.safetensors", {"x": torch.zeros(1)}, {"format": "dcbench distilled set"})
    (out / "sheets" / "key.png").symlink_to(secret / "key.png")
    (out / "rows" / "evaluate-1.json").symlink_to(secret / "evaluate-1.json")
    (out / "cells").mkdir()
    (out / "cells" / "cell").symlink_to(secret)
    (out / "preprocessing").mkdir()
    (out / "preprocessing" / "w.safetensors").symlink_to(secret / "w.safetensors")
    (out / "experts").mkdir()
    (out / "experts" / "abc").symlink_to(secret)
    (out / "experts" / "own" / "expert_0000").mkdir(parents=True)
    (out / "experts" / "own" / "expert_0000" / "epoch_000.safetensors").symlink_to(secret / "epoch_000.safetensors")
    result, told = merged(out, target, experts=True)
    assert result.new == 2
    copied = [path for path in target.rglob("*") if path.is_file()]
    assert {path.parent.name for path in copied} == {"rows", "sheets"}
    assert all("secret" not in path.read_text(errors="replace") for path in copied)
    for name in ("key.png", "evaluate-1.json", "w.safetensors", "abc", "epoch_000"):
        assert name in told


def test_merge_copies_its_own_layout_only(out: Path, tmp_path: Path) -> None:
    (out / "sheets" / "notes.txt").write_text("mine")
    (out / "experts" / "own" / "expert_0000").mkdir(parents=True)
    for name in ("recipe.json", "notes.txt", "expert_0000/epoch_000.safetensors", "expert_0000/key.pem"):
        (out / "experts" / "own" / name).write_text("theirs")
    os.mkfifo(out / "experts" / "own" / "expert_0000" / "epoch_001.safetensors")
    merged(out, tmp_path / "target", experts=True)
    found = {str(p.relative_to(tmp_path / "target")) for p in (tmp_path / "target").glob("experts/**/*") if p.is_file()}
    assert found == {"experts/own/recipe.json", "experts/own/expert_0000/epoch_000.safetensors"}
    assert not (tmp_path / "target" / "sheets" / "notes.txt").exists()


def copies(tmp_path: Path, **settings: Any) -> tuple[Path, Path]:
    """Two results folders with the same cell, whose method has execution settings, and a loss."""
    for name in ("here", "there"):
        fixtures.write_cell(tmp_path / name, "tesla", 1, {100: [0.60, 0.64]})
        edit(row_of(tmp_path / name, "condense"), lambda r: r["settings"].update(class_chunk=1))
        edit(row_of(tmp_path / name, "condense"), lambda r: r.update(final_loss=0.5))
    edit(row_of(tmp_path / "here", "condense"), lambda r: r["settings"].update(settings))
    return tmp_path / "here", tmp_path / "there"


def test_other_execution_settings_are_equal_to_rounding_and_told(tmp_path: Path) -> None:
    here, there = copies(tmp_path, class_chunk=4)
    edit(row_of(there, "condense"), lambda r: r.update(final_loss=0.500001))
    result, told = merged(there, here)
    assert (result.here, result.conflicts) == (2, 0)
    assert "1 result here and there is equal to rounding; the one here stays (settings.class_chunk is 4 here" in told
    assert json.loads(row_of(here, "condense").read_text())["final_loss"] == 0.5


def test_real_contradictions_are_still_told(tmp_path: Path) -> None:
    here, there = copies(tmp_path)
    edit(row_of(there, "condense"), lambda r: r.update(final_loss=0.500001))
    result, told = merged(there, here)  # the same execution gives the same bytes
    assert result.conflicts == 1
    assert "final_loss is 0.5 here and 0.500001 there" in told
    edit(row_of(there, "condense"), lambda r: r["environment"].update(threads=2))
    edit(row_of(there, "condense"), lambda r: r.update(final_loss=0.7))
    result, told = merged(there, here)  # that is no rounding
    assert result.conflicts == 1
    assert "final_loss is 0.5 here and 0.7 there" in told


@pytest.mark.parametrize(
    ("there", "level"),
    [([0.50, 0.52], True), ([0.51, 0.53], True), ([0.54, 0.56], False), ([0.10, 0.12], False)],
)
def test_accuracies_are_level_within_their_standard_errors(there: list[float], level: bool) -> None:
    assert _is_level([0.50, 0.52], there) is level  # two standard errors are 0.02 here
    assert not _is_level([0.5], [0.51])  # one network has no spread


# ------------------------------------------------------------------------------------------------- report, CSV, text


def picture(size: tuple[int, int]) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def oversized() -> bytes:
    """A PNG that declares 100,000 x 100,000 pixels."""
    content = bytearray(picture((4, 4)))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (picture((40, 40))[:-1500], "is damaged"),
        (oversized(), "pixels|is damaged"),
        (b"", "not an image"),
    ],
)
def test_a_bad_sheet_is_left_out_of_the_report(
    content: bytes, told: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "sheets" / "bad.png").write_bytes(content)
    shown = page(Workspace(out))
    assert "Left out, as the files are damaged or too large: bad.png." in shown
    assert shown.count('<img src="data:image/png;base64,') == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if "bad.png" in line)
    assert any(word in line for word in told.split("|"))


ODD: dict[str, dict[str, Any]] = {
    "text": {"peak_bytes": "a lot"},
    "infinite": {"peak_bytes": float("inf")},
    "negative": {"peak_bytes": -1},
    "half": {"ipc": 1.5},
    "boolean": {"width": True},
    "huge": {"matching_steps": 1e300},
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_cell_leaves_its_row_out_and_in_the_file(
    name: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, rows = out / "figures" / "memory.csv", fixtures.memory()
    fixtures.write_csv(path, [*rows, {**rows[0], "method": "odd", **ODD[name]}])
    shown = page(Workspace(out))
    (column,) = ODD[name]
    told = capsys.readouterr().err
    assert f"memory.csv: row {len(rows) + 2} is left out, its {column} is " in told
    assert "Peak memory against" in shown
    known = read_csv(path, KEY)
    assert len(known) == len(rows)
    assert pd.api.types.is_numeric_dtype(known["peak_bytes"])
    merge_csv(path, known.iloc[:1].assign(commit="fedcba987654", peak_bytes=7), KEY)
    assert len(read_csv(path, KEY)) == len(rows)
    assert "odd" in path.read_text()  # nothing of a user is thrown away


def test_formulas_in_a_csv_are_text_and_come_back(tmp_path: Path) -> None:
    texts = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "plain", "-0.5", "'=quoted"]
    rows = pd.DataFrame({"text": texts, "number": [-1.5, 2, 3, 4, 5, 6, -7]})
    (tmp_path / "a.csv").write_text(csv_text(rows))
    raw = pd.read_csv(tmp_path / "a.csv", dtype=str)
    assert not [text for text in raw["text"] if text[0] in "=+-@" and text != "-0.5"]
    assert list(raw["number"]) == ["-1.5", "2.0", "3.0", "4.0", "5.0", "6.0", "-7.0"]
    assert list(table_of(tmp_path / "a.csv")["text"])[:6] == texts[:6]


def test_cells_of_markdown_tables_stay_cells() -> None:
    lines = aligned(["a", "b"], [["x | y\n| z |", "\x1b[31mred\x9b"]])
    assert len(lines) == 3
    assert lines[2] == r"| x \| y \| z \| | \x1b[31mred\x9b |"
    assert len({len(line) for line in lines}) == 1


def test_nothing_steers_the_terminal(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b]0;title\x07 b\u202ec\ttab")
    assert capsys.readouterr().err == "a\\x1b]0;title\\x07 b\\u202ec\ttab\n"
    for stage in ("condense", "evaluate"):
        edit(row_of(out, stage), lambda r: r.update(protocol="\x1b[2J\nforged line", dataset="a|b\x1b[2J"))
    for words in (["list", "cells"], ["compare", "accuracy"]):
        result = CliRunner().invoke(main, [*words, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        assert "\\x1b[2J" in result.output
        assert "\nforged line" not in result.output


# ------------------------------------------------------------------------------------------------------------ tensors


def test_tensors_of_strange_types_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        save_file({"images": torch.zeros(4).to(dtype)}, path, metadata={"dcbench": '{"digest": "x"}'})
        with pytest.raises(CorruptFileError, match=r"a\.safetensors holds tensors that dcbench never writes"):
            load_tensors(path)
    for meta in ("[1]", "3", "[" * 100_000, '{"lr": NaN}'):
        save_file({"images": torch.zeros(4)}, path, metadata={"dcbench": meta})
        with pytest.raises(CorruptFileError, match=r"a\.safetensors is damaged: its metadata is not JSON"):
            load_tensors(path)


# --------------------------------------------------------------- rows that contradict one another, or lack a setting


@pytest.mark.parametrize(
    ("name", "value"), [("method", "dm"), ("seed", 7), ("ipc", 10), ("dataset_fingerprint", "another"), ("ipc", None)]
)
def test_evaluation_that_contradicts_its_condensation_is_left_out(name: str, value: Any, out: Path) -> None:
    assert len(stage_rows(Workspace(out), "evaluate")) == 1
    edit(row_of(out), lambda row: row.update({name: value}))
    assert stage_rows(Workspace(out), "evaluate") == []
    (told,) = damaged_rows(Workspace(out))
    assert str(row_of(out)) in told
    assert f"its {name} is {value}, that of its condensation is " in told
    shown = CliRunner().invoke(main, ["list", "cells", "--out", str(out)])
    assert (shown.exit_code, "its " + name in shown.stderr) == (1, True)


def test_evaluation_of_a_file_may_have_other_data_than_its_condensation(out: Path) -> None:
    edit(row_of(out), lambda row: row.update(set="0123", dataset_fingerprint="another", seed=7))
    assert len(stage_rows(Workspace(out), "evaluate")) == 1


@pytest.mark.parametrize(
    ("labels", "name", "wrong"),
    [
        *(("learned", name, wrong) for name in ("label_space", "lr_labels") for wrong in (None, "gone", [1])),
        *(("last", "last_epoch", wrong) for wrong in (None, "gone", "three", -1)),
        ("hard", "labels", None),
        ("hard", "labels", 3),
    ],
)
def test_figure2_without_a_setting_of_a_row(labels: str, name: str, wrong: Any, tmp_path: Path) -> None:
    fixtures.write_labels(tmp_path)
    fixtures.write_cell(tmp_path, "tesla", 1, {100: [0.5, 0.5]}, dataset="npz:mine", sets={"labels": labels})
    declaration = declarations()["figure2"]
    before = [line.title for line in figure2.on_the_way(declaration, runs(declaration, Workspace(tmp_path)))]
    (path,) = (p for p in tmp_path.glob("rows/condense-*.json") if p.stem.endswith(f"seed0-{labels}"))

    def spoil(row: dict[str, Any]) -> None:
        row["settings"][name] = wrong
        if wrong == "gone":
            del row["settings"][name]

    edit(path, spoil)
    say_once.cache_clear()
    shown = CliRunner().invoke(main, ["reproduce", "figure2", "--out", str(tmp_path), "--no-shipped"])
    assert not isinstance(shown.exception, (KeyError, TypeError, ValueError)), shown.exception
    assert path.name in shown.stderr
    assert name in shown.stderr
    after = [line.title for line in figure2.on_the_way(declaration, runs(declaration, Workspace(tmp_path)))]
    assert len(after) == len(before) - 1
    assert len(after) >= 2
    assert "Figure 2" in page(Workspace(tmp_path))


def test_list_cells_tells_contents_of_one_name_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        fixtures.write_cell(tmp_path, "tesla", 1, {100: [0.5]}, dataset="npz:mine", seed=seed)
    for path in tmp_path.glob("rows/*-seed1.json"):
        edit(path, lambda row: row.update(dataset_fingerprint="f2" * 8))
    failed = {"dataset": "npz:mine", "dataset_fingerprint": "f3" * 8}
    fixtures.write_failure(tmp_path)
    edit(tmp_path / "rows" / "failed-mtt.json", lambda row: row.update(failed))
    shown = CliRunner().invoke(main, ["list", "cells", "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    for name in ("npz:mine (f1)", "npz:mine (f2f2f2f2)", "npz:mine (f3f3f3f3)"):
        assert shown.stdout.count(name) == 1
    assert "npz:mine is the name of 3 data sets of different contents: npz:mine (f1), " in shown.stderr


def test_list_cells_leaves_names_of_one_content_alone(out: Path) -> None:
    fixtures.write_cell(out, "tesla", 1, {100: [0.5]}, seed=1)
    shown = CliRunner().invoke(main, ["list", "cells", "--out", str(out)])
    assert "digits (" not in shown.stdout
    assert "different contents" not in shown.stderr


@pytest.mark.parametrize("cell", ["True", "", "3", "text", "2020-01-01"])
def test_a_csv_cut_off_anywhere_is_read_or_named(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "time.csv"
    path.write_text(f"method,compiled,note\ntesla,{cell},x\ndm,,'=1+1\ntesla")
    table = table_of(path)
    assert list(table["method"]) == ["tesla", "dm", "tesla"]
    assert list(table["note"])[1] == "=1+1"
    read_csv(path, ["method"])


# --------------------------------------------------------------------------------------- found by the campaign, seed 10


def test_accuracy_without_its_iteration_is_left_out(out: Path) -> None:
    edit(row_of(out), lambda row: row["accuracy"]["last"].pop("iteration"))
    assert stage_rows(Workspace(out), "evaluate") == []
    (told,) = damaged_rows(Workspace(out))
    assert str(row_of(out)) in told
    assert "accuracy.last.iteration" in told


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("memory", "matching_steps", "matching_steps is empty, and other rows of tesla have one"),
        ("time", "compiled", "compiled is 'nan'"),
    ],
)
def test_rows_of_comparisons_that_lack_what_others_have_are_left_out(
    name: str, column: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{name}.csv"
    shipped = pd.read_csv(Path(__file__).parents[1] / "results/figures" / path.name).query(
        "method == 'tesla' and matching_steps == 5"
    )
    table = pd.concat([shipped.iloc[:1]] * 3, ignore_index=True).astype(object)
    table.loc[1, column] = None
    table.to_csv(path, index=False)
    assert len(read_csv(path, ["method"])) == 2
    assert f"{path}: row 3 is left out, its {said}" in capsys.readouterr().err
