"""The user's own data: what is decided is told and kept, and messages end with the lines that convert other arrays."""

import doctest
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dcbench_tesla.api import run
from dcbench_tesla.cli import main
from dcbench_tesla.data.augmentation import STRATEGY, STRATEGY_NO_FLIP
from dcbench_tesla.data.files import OPTIONAL_KEYS, REQUIRED_KEYS, dataset_from, load_npz, save_npz
from dcbench_tesla.data.own.decisions import mirrored_recognised
from dcbench_tesla.errors import CorruptFileError
from tests import fixtures_data as fixtures

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "own-data.md").read_text(encoding="utf-8")


def arrays(**changes: Any) -> dict[str, Any]:
    return {**fixtures.npz_arrays(), **changes}


def both(key: str, **values: Any) -> dict[str, Any]:
    return {f"{key}_{part}": value for part, value in values.items()}


PIXELS = {part: fixtures.npz_arrays()[f"x_{part}"] for part in ("train", "test")}
LABELS = {part: fixtures.npz_arrays()[f"y_{part}"] for part in ("train", "test")}
WORDS = np.array(["ant", "bee", "cat"])

OTHERS: dict[str, dict[str, Any]] = {
    "floats in [0, 1]": both("x", **{p: (x / 255).astype(np.float32) for p, x in PIXELS.items()}),
    "floats in [-1, 1]": both("x", **{p: x / 127.5 - 1 for p, x in PIXELS.items()}),
    "int16": both("x", **{p: x.astype(np.int16) for p, x in PIXELS.items()}),
    "whole floats": both("x", **{p: x.astype(np.float64) for p, x in PIXELS.items()}),
    "PyTorch's layout": both("x", **{p: x.transpose(0, 3, 1, 2) for p, x in PIXELS.items()}),
    "floats in PyTorch's layout": both("x", **{p: x.transpose(0, 3, 1, 2) / 255 for p, x in PIXELS.items()}),
    "labels from 1": both("y", **{p: y + 1 for p, y in LABELS.items()}),
    "named labels from 1": both("y", **{p: y + 1 for p, y in LABELS.items()}) | {"class_names": WORDS},
    "labels with gaps": both("y", **{p: 2 * y for p, y in LABELS.items()}),
    "strings": both("y", **{p: WORDS[y] for p, y in LABELS.items()}),
    "one-hot": both("y", **{p: np.eye(3)[y] for p, y in LABELS.items()}),
    "a column": both("y", **{p: y[:, None] for p, y in LABELS.items()}),
}


def lines_of(error: pytest.ExceptionInfo[CorruptFileError]) -> str:
    """The lines of Python at the end of a message, whose first line is a sentence."""
    first, announced, *code = str(error.value).splitlines()
    assert first.endswith(".")
    assert announced == "These lines of Python convert them:"
    assert len(code) <= 4
    return "\n".join(line.removeprefix("    ") for line in code)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_lines_of_the_message_convert_the_archive(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(**OTHERS[kind]))
    with pytest.raises(CorruptFileError) as error:
        load_npz(path)
    exec(lines_of(error), {})
    converted, expected = load_npz(tmp_path / "mine-converted.npz"), dataset_from(arrays(), "mine")
    np.testing.assert_array_equal(converted.x_train, expected.x_train)
    np.testing.assert_array_equal(converted.x_test, expected.x_test)
    np.testing.assert_array_equal(converted.y_train, expected.y_train)
    np.testing.assert_array_equal(converted.y_test, expected.y_test)
    names = dict.fromkeys(("strings", "named labels from 1"), ("ant", "bee", "cat"))
    names |= {"labels from 1": ("1", "2", "3"), "labels with gaps": ("0", "2", "4")}
    assert converted.class_names == names.get(kind, ("0", "1", "2"))


def test_other_ranges_are_scaled_and_arrays_in_memory_get_their_own_lines() -> None:
    given = arrays(**both("x", **{p: x.astype(np.float32) * 16 - 99 for p, x in PIXELS.items()}))
    with pytest.raises(CorruptFileError) as error:
        dataset_from(given, "mine")
    scope: dict[str, Any] = {"data": given}
    exec(lines_of(error), scope)
    made = dataset_from(scope["a"], "mine")
    assert (made.x_train.min(), made.x_train.max()) == (PIXELS["train"].min() * 0, 255)


@pytest.mark.parametrize(
    "changes",
    [
        both("x", **{p: np.full(x.shape, np.nan) for p, x in PIXELS.items()}),
        both(
            "x", train=PIXELS["train"], test=PIXELS["test"] / 255
        ),  # two ranges: nothing says how they belong together
        both("y", train=LABELS["train"] * 1j, test=LABELS["test"]),
        {"y_train": LABELS["train"] + 1, "y_test": LABELS["test"] + 1, "class_names": np.array(["a", "b"])},
        {"y_test": np.array([0, 1, 5])},  # a class without training images is no matter of numbering
    ],
)
def test_what_no_lines_can_convert_gets_none(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptFileError) as error:
        dataset_from(arrays(**changes), "mine")
    assert "\n" not in str(error.value)


def test_an_archive_that_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    facts = {"mean": np.array([0.1, 0.2, 1 / 3]), "std": np.ones(3), "flippable": np.array(True)}
    made = dataset_from(arrays(**facts, class_names=WORDS, redistributable=np.array(True)), "mine")
    save_npz(made, tmp_path / "mine.npz")
    again = load_npz(tmp_path / "mine.npz")
    assert again.fingerprint == made.fingerprint
    for fact in ("name", "mean", "std", "flippable", "redistributable", "max_value", "class_names"):
        assert getattr(again, fact) == getattr(made, fact)
    with np.load(tmp_path / "mine.npz") as archive:
        assert {*archive.files} == {*REQUIRED_KEYS, *OPTIONAL_KEYS}


# --- what is decided -------------------------------------------------------------------------------------------------


def dcbench(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


SMALL = ["--preset", "smoke", "--device", "cpu", "--no-baseline", "--set", "data.train_images=0"]
SMALL += ["--set", "convnet.epochs=1", "--set", "convnet.width=4", "--set", "evaluation.networks=1"]


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "mine.npz", **arrays(class_names=WORDS))
    return tmp_path / "mine.npz"


def test_decisions_are_told_before_a_run_and_kept(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"convnet.epochs": 1, "convnet.width": 4, "evaluation.networks": 1, "data.validation": 0}
    cell: dict[str, Any] = {"preset": "smoke", "device": "cpu", "settings": settings | {"data.train_images": 0}}
    run("random", npz, out=tmp_path / "out", **cell)
    told = capsys.readouterr().err
    assert "mirrored        no" in told
    assert "(key flippable, or data.augmentation=color_crop_cutout_flip_scale_rotate)" in told
    (config,) = (tmp_path / "out" / "cells").glob("*/config.json")
    kept = json.loads(config.read_text())["images"]
    assert kept | {"preprocessing": None} == {
        "shape": [3, 8, 8],
        "class_names": ["ant", "bee", "cat"],
        "train_images": 6,
        "validation_images": 0,
        "test_images": len(PIXELS["test"]),
        "max_value": 255,
        "preprocessing": None,
        "augmentation": STRATEGY_NO_FLIP,
        "mirrored": False,
        "redistributable": False,
    }
    assert len(kept["preprocessing"]["mean"]) == 3
    assert (config.parent / "sheet.png").is_file()
    assert not (tmp_path / "out" / "sheets").exists()
    run("random", npz, out=tmp_path / "out", **cell)
    assert capsys.readouterr().err == ""  # done already


def test_a_changed_decision_is_told_as_it_is(npz: Path, tmp_path: Path) -> None:
    words = ["run", "--method", "random", "--dataset", f"npz:{npz}", *SMALL, "--out", tmp_path, "--dry-run"]
    told = dcbench(*words, "--set", f"data.augmentation={STRATEGY}", "--set", "data.zca=true").stderr
    assert "mirrored        yes" in told
    assert "ZCA whitening" in told
    assert "Decided" not in dcbench("run", "--method", "random", *SMALL, "--out", tmp_path, "--dry-run").stderr


def test_info_shows_own_data_before_a_run(npz: Path, tmp_path: Path) -> None:
    shown = dcbench("info", f"npz:{npz}", "--picture", tmp_path / "mine.png")
    assert shown.exit_code == 0, shown.output
    assert "npz:mine: 6 training and 3 test images, colour, 8 x 8 pixels, 3 classes." in shown.stdout
    assert "ant           2         1" in shown.stdout
    assert "mirrored: the nearest other image" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines() if "picture" not in line and "(key" not in line)
    assert Image.open(tmp_path / "mine.png").size[0] > 2 * 8


def test_info_shows_a_folder_and_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    root = fixtures.write_image_folder(tmp_path / "pets")
    shown = dcbench("info", f"folder:{root}").stdout
    assert "the names of the folders" in shown
    assert "key flippable" not in shown  # a folder has none
    refused = dcbench("info", f"folder:{root}", "--picture", "pets.jpg")
    assert "name one, such as pets.png" in refused.stderr
    assert "--picture is for your own data" in dcbench("info", "digits", "--picture", "x.png").stderr
    assert "npz: names no file" in dcbench("info", "npz:").stderr


def test_what_the_page_shows_is_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = doctest.script_from_examples(PAGE.partition("## From Python")[0])
    exec(code, {})
    with np.load("my_images.npz") as archive:
        labelled = {**archive, "y_train": WORDS[archive["y_train"] % 3], "y_test": WORDS[archive["y_test"] % 3]}
    np.savez("labels.npz", **{key: value.astype("<U5") if key[0] == "y" else value for key, value in labelled.items()})
    refused, decided = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert dcbench("info", "npz:labels.npz").stderr == refused
    assert dcbench("info", "npz:my_images.npz").stdout.startswith(decided)


def test_mirroring_is_seen_to_mislead_or_not() -> None:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 60, (80, 8, 8, 1), dtype=np.uint8)
    y = np.arange(80) % 2
    for image, side in zip(x, y, strict=True):
        image[:, 4 * side : 4 * side + 4] += 150  # bright on the left, or on the right: mirrored, they change places
    sides = dataset_from({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, "sides")
    found = mirrored_recognised(sides)
    assert found[:2] == (1.0, 0.0)
    assert "mirroring would mislead" in str(found)
    turned = x.transpose(0, 2, 1, 3)  # bright above, or below
    kept = mirrored_recognised(dataset_from({"x_train": turned, "y_train": y, "x_test": turned, "y_test": y}, "ends"))
    assert kept[:2] == (1.0, 1.0)
    assert not kept.differs
