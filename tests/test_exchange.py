"""Files of others: layouts in and out without loss, what they lack is asked for, and nothing of theirs is run."""

import csv
import dataclasses
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dcbench_tesla.api import run
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.session import Session
from dcbench_tesla.compute.networks import ConvNet, flatten_parameters
from dcbench_tesla.config import NetworkSettings, parse_set, resolve
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.preprocessing import Preprocessing, fit_standardise, fit_zca
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.datasets import load_dataset
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import CorruptFileError, DcbenchError, UsageError
from dcbench_tesla.exchange import FORMATS, Given, export_set, find_set, import_experts, import_set
from dcbench_tesla.exchange.folders import png_names
from dcbench_tesla.records.store import load_tensors, read_json, save_tensors, write_json
from dcbench_tesla.records.workspace import Workspace
from tests.test_cli import dcbench, refused

DIGITS = Given(dataset="digits", preprocessing="standardise", lr=0.02)
SMOKE = {"data.train_images": 200, "network.width": 4, "convnet.width": 4, "convnet.epochs": 20, "iterations": 3}
SMOKE |= {"evaluation.every": 0, "evaluation.networks": 2, "experts.count": 2}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def same(a: DistilledSet, b: DistilledSet) -> bool:
    """Whether two sets are equal in every field, bit for bit."""
    (tensors, meta), (others, other_meta) = a.state(), b.state()
    types = {name: t.dtype for name, t in tensors.items()} == {name: t.dtype for name, t in others.items()}
    return types and meta == other_meta and all(torch.equal(t, others[name]) for name, t in tensors.items())


# -------------------------------------------------------------------------------------------- own sets, out and back in


def whitened(size: int) -> Preprocessing:
    torch.manual_seed(0)
    matrix = torch.eye(size) + 0.01 * torch.randn(size, size)
    return Preprocessing("zca", torch.full((size,), 0.5), matrix=matrix, inverse_matrix=matrix.inverse(), eps=0.1)


def make(**changed: Any) -> DistilledSet:
    torch.manual_seed(1)
    standardised = Preprocessing("standardise", torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.5]))
    facts: dict[str, Any] = {
        "images": torch.randn(6, 3, 4, 4),
        "labels": torch.tensor([0, 0, 0, 1, 1, 1]),
        "class_names": ("cat/dog", 'a "bird", big'),
        "preprocessing": standardised,
        "augmentation": "flip_crop",
        "lr": 0.012345678,
        "max_value": 255,
        "provenance": {"method": "test", "dataset": "toys", "ipc": 3, "redistributable": True, "nested": {"a": [1]}},
    }
    return DistilledSet(**{**facts, **changed})


PIXELS = torch.arange(288, dtype=torch.int64).remainder(251).to(torch.uint8).view(6, 3, 4, 4)
SOFT = torch.rand(6, 2, generator=torch.Generator().manual_seed(2)).softmax(1)
SETS = {
    "hard": make(),
    "no rate": make(lr=None),
    "soft": make(labels=SOFT),
    "grey": make(images=make().images[:, :1], preprocessing=Preprocessing("standardise", torch.ones(1), torch.ones(1))),
    "zca": make(preprocessing=whitened(48)),
    "pixels": make(images=PIXELS, lr=None, provenance={}),
    "pixels of 16, soft": make(images=PIXELS % 17, max_value=16, labels=SOFT),
    "zca pixels, not by class": make(
        images=PIXELS, preprocessing=whitened(48), labels=torch.tensor([1, 0, 0, 0, 1, 0])
    ),
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", SETS)
def test_round_trip_loses_nothing(name: str, layout: str, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    export_set(SETS[name], layout, output)
    back, notes = import_set(output, Given())
    assert same(back, SETS[name])
    assert notes == []
    assert [path.name for path in output.parent.iterdir()] == ["out"]  # nothing temporary is left


@pytest.mark.parametrize("name", SETS)
def test_authors_files_are_what_their_code_loads(name: str, tmp_path: Path) -> None:
    wanted = SETS[name]
    export_set(wanted, "authors", tmp_path / "out")
    images, labels = (torch.load(tmp_path / "out" / f"{n}_best.pt", weights_only=True) for n in ("images", "labels"))
    assert torch.equal(images, wanted.inputs())
    assert images.dtype == torch.float32
    assert torch.equal(labels, wanted.labels)
    assert labels.dtype == wanted.labels.dtype
    for path in ("images_best.pt", "dcbench.safetensors"):  # each of the two names the same export
        assert same(import_set(tmp_path / "out" / path, Given())[0], wanted)


def test_exported_view_is_no_larger_than_its_numbers(tmp_path: Path) -> None:
    images = torch.randn(6000, 3, 4, 4)[:6]
    export_set(make(images=images), "authors", tmp_path / "out")
    assert (tmp_path / "out" / "images_best.pt").stat().st_size < 4000


def test_whitening_of_a_run_is_in_the_export(tmp_path: Path) -> None:
    (tmp_path / "preprocessing").mkdir()
    path = tmp_path / "cells" / "a" / "distilled.safetensors"
    SETS["zca"].save(path, embed_preprocessing=False)
    result = dcbench("export", path.parent, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (tmp_path / "out").rename(tmp_path.parent / "elsewhere")
    assert same(DistilledSet.load(tmp_path.parent / "elsewhere" / "distilled.safetensors"), SETS["zca"])


@pytest.mark.parametrize("which", ["images_best.pt", "labels_best.pt"])
def test_changed_file_of_the_authors_is_not_taken_for_ours(which: str, tmp_path: Path, digits: Dataset) -> None:
    distilled = foreign_set(digits)
    export_set(distilled, "authors", tmp_path / "out")
    path = tmp_path / "out" / which
    torch.save(torch.load(path).flip(0), path)
    with pytest.raises(UsageError, match=rf"{which} was changed after the export.*--ignore-side-file"):
        import_set(tmp_path / "out", Given())
    side = str(tmp_path / "out" / "dcbench.safetensors")
    given = Given(dataset="digits", lr=0.5, preprocessing=side, ignore_side_file=True)
    back, _ = import_set(tmp_path / "out" / "images_best.pt", given)
    assert back.preprocessing.key == distilled.preprocessing.key
    assert back.lr == 0.5
    images = torch.load(tmp_path / "out" / "images_best.pt")  # with other labels, they are sorted by class
    order = torch.argsort(torch.load(tmp_path / "out" / "labels_best.pt"), stable=True)
    assert torch.equal(back.images, images[order])


def test_own_export_needs_no_options_and_takes_none(tmp_path: Path) -> None:
    export_set(SETS["soft"], "authors", tmp_path / "out")
    with pytest.raises(UsageError, match="lacks nothing: leave out --lr, --ipc"):
        import_set(tmp_path / "out", Given(lr=0.1, ipc=3))
    with pytest.raises(UsageError, match="other classes or another image size than digits"):
        import_set(tmp_path / "out", Given(dataset="digits"))


def test_damaged_export(tmp_path: Path) -> None:
    export_set(SETS["soft"], "authors", tmp_path / "out")
    side = tmp_path / "out" / "dcbench.safetensors"
    content = side.read_bytes()
    side.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match=r"dcbench\.safetensors is damaged"):
        import_set(tmp_path / "out", Given())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="not an export of dcbench: name the file of images in it"):
        import_set(tmp_path / "empty", Given())
    with pytest.raises(UsageError, match="there is no file or folder"):
        import_set(tmp_path / "none", Given())


# --------------------------------------------------------------------------------------------------------------- as PNG


@pytest.mark.parametrize("name", ["soft", "pixels", "pixels of 16, soft", "grey"])
def test_png_folder_shows_the_pixels(name: str, tmp_path: Path) -> None:
    wanted, out = SETS[name], tmp_path / "out"
    export_set(wanted, "png", out)
    rows = list(csv.reader((out / "labels.csv").read_text().splitlines()))
    assert rows[0] == ["file", "class", "class_name"] + ["p0", "p1"] * (wanted.labels.ndim == 2)
    assert {row[0] for row in rows[1:]} == {str(p.relative_to(out)) for p in out.rglob("*.png")}
    for i, row in enumerate(rows[1:]):
        assert re.fullmatch(rf"[01]_[\w-]+/{i}\.png", row[0])
        assert (int(row[1]), row[2]) == (int(wanted.hard[i]), wanted.class_names[int(row[1])])
        if wanted.labels.ndim == 2:  # in full: they come back as the same float32
            assert torch.equal(torch.tensor([float(p) for p in row[3:]]), wanted.labels[i])
        with Image.open(out / row[0]) as image:
            shown = np.asarray(image)
        assert shown.dtype == np.uint8
        assert shown.shape == ((4, 4) if name == "grey" else (4, 4, 3))
        expected = wanted.pixels()[i].permute(1, 2, 0).squeeze(-1).numpy() * 255
        assert np.abs(shown - expected).max() <= 0.5
        if name == "pixels":
            assert np.array_equal(shown, PIXELS[i].permute(1, 2, 0).numpy())


def test_dataset_card(tmp_path: Path) -> None:
    export_set(SETS["soft"], "png", tmp_path / "free")
    card = (tmp_path / "free" / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert 'pretty_name: "toys, 6 images by test"\n' in head
    assert "task_categories:\n- image-classification\n" in head
    assert "size_categories:\n- n<1K\n" in head
    for part in ("| labels | soft |", "0.012345678, learned", "flip_crop", "(IPC) | 3 |", '"nested"'):
        assert part in body
    assert "Do not publish" not in card
    for provenance, words in (({"redistributable": False}, "they may not be"), ({}, "it is not known whether")):
        export_set(make(provenance=provenance), "png", tmp_path / "kept", force=True)
        assert words in " ".join((tmp_path / "kept" / "README.md").read_text().split())


def test_png_that_was_edited_is_said_not_to_count(tmp_path: Path) -> None:
    export_set(SETS["hard"], "png", tmp_path / "out")
    first, second = (tmp_path / "out" / name for name in png_names(SETS["hard"])[:2])
    Image.new("RGB", (4, 4)).save(first)
    second.write_bytes(b"no picture")
    back, (note,) = import_set(tmp_path / "out", Given())
    assert same(back, SETS["hard"])
    assert note.startswith("2 PNG files are missing or differ")


def test_images_that_are_no_png(tmp_path: Path) -> None:
    two = make(images=make().images[:, :2], preprocessing=Preprocessing("standardise", torch.ones(2), torch.ones(2)))
    with pytest.raises(UsageError, match="PNG cannot hold images of 2 channels"):
        export_set(two, "png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------- folders of others


def test_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_set(SETS["hard"], "png", out)  # empty: fine
    with pytest.raises(UsageError, match="is not empty: name another folder, or replace an earlier export by --force"):
        export_set(SETS["hard"], "authors", out)
    export_set(SETS["soft"], "authors", out, force=True)
    assert {p.name for p in out.iterdir()} == {"images_best.pt", "labels_best.pt", "dcbench.safetensors"}
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds notes\.txt, so it is not an export of dcbench and stays"):
        export_set(SETS["hard"], "png", out, force=True)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="is a file"):
        export_set(SETS["hard"], "png", out / "notes.txt", force=True)


def test_files_of_the_authors_are_no_earlier_export(tmp_path: Path) -> None:
    torch.save(torch.zeros(1), tmp_path / "images_best.pt")
    with pytest.raises(UsageError, match="not an export of dcbench"):
        export_set(SETS["hard"], "authors", tmp_path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["images_best.pt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("write failed")])
def test_export_that_fails_leaves_the_earlier_one(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_set(SETS["hard"], "authors", tmp_path / "out")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(DcbenchError, match="cannot write"):
        export_set(SETS["soft"], "authors", tmp_path / "out", force=True)
    assert same(import_set(tmp_path / "out", Given())[0], SETS["hard"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_export_is_asked_for_wrongly(tmp_path: Path) -> None:
    make().save(tmp_path / "set.safetensors")
    out = ["--output", tmp_path / "out"]
    refused(dcbench("export", tmp_path / "set.safetensors", *out, "--format", "pngs"), 2, "Did you mean 'png'?")
    refused(dcbench("export", tmp_path / "none", *out), 2, "there is no file or folder")
    refused(dcbench("export", tmp_path, *out), 2, "the folder of a finished cell")
    assert find_set(tmp_path / "set.safetensors") == tmp_path / "set.safetensors"
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ MTT and TESLA's files


def foreign_images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(3)).to(dtype)


HARD = torch.arange(10).repeat_interleave(2)


def foreign_set(digits: Dataset) -> DistilledSet:
    return make(
        images=foreign_images(),
        labels=HARD,
        class_names=digits.class_names,
        preprocessing=fit_standardise(digits),
        augmentation="crop",
        max_value=16,
    )


def save(folder: Path, images: object = None, labels: object = HARD, name: str = "best", **options: Any) -> Path:
    """Write images and labels as the authors' code does; return the file of images."""
    torch.save(foreign_images() if images is None else images, folder / f"images_{name}.pt", **options)
    if labels is not None:
        torch.save(labels, folder / f"labels_{name}.pt")
    return folder / f"images_{name}.pt"


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", ["best", "5000"])
def test_files_of_mtt(soft: bool, name: str, tmp_path: Path, digits: Dataset) -> None:
    labels = torch.rand(20, 10).softmax(1) if soft else HARD
    path = save(tmp_path, labels=labels, name=name)
    found, notes = import_set(path, dataclasses.replace(DIGITS, method="mtt", ipc=2))
    assert torch.equal(found.images, foreign_images())
    assert torch.equal(found.labels, labels)
    assert (found.lr, found.class_names, found.max_value) == (0.02, digits.class_names, 16)
    assert found.augmentation == "color_crop_cutout_scale_rotate"  # no flip for digits
    assert found.preprocessing.key == fit_standardise(digits).key
    assert notes == []
    assert {**found.provenance, "imported": None} == {
        "method": "mtt",
        "dataset": "digits",
        "dataset_fingerprint": digits.fingerprint,
        "ipc": 2,
        "redistributable": True,
        "imported": None,
    }
    facts = found.provenance["imported"]
    assert facts["file"] == f"images_{name}.pt"
    assert facts["labels_file"] == f"labels_{name}.pt"
    assert re.fullmatch(r"[0-9a-f]{64}", facts["sha256"])
    assert facts["options"] == {"lr": 0.02, "ipc": 2, "preprocessing": "standardise"}
    assert str(tmp_path) not in json.dumps(found.provenance)


@pytest.mark.parametrize(
    "stored",
    [
        torch.nn.Parameter(foreign_images()),
        foreign_images().requires_grad_(),
        foreign_images().to(memory_format=torch.channels_last),
        foreign_images(torch.float64),
        torch.cat([torch.zeros(5, 1, 8, 8), foreign_images()])[5:],
    ],
    ids=["parameter", "requires grad", "channels last", "float64", "view"],
)
def test_images_however_they_were_saved(stored: Tensor, tmp_path: Path) -> None:
    found, notes = import_set(save(tmp_path, stored), DIGITS)
    assert type(found.images) is Tensor
    assert not found.images.requires_grad
    assert found.images.is_contiguous()
    assert torch.equal(found.images, foreign_images())
    assert bool(notes) == (stored.dtype == torch.float64)


def test_images_in_half_precision(tmp_path: Path) -> None:
    found, (note,) = import_set(save(tmp_path, foreign_images(torch.float16)), DIGITS)
    assert torch.equal(found.images, foreign_images(torch.float16).float())
    assert note == "images were converted from float16 to float32"
    assert found.provenance["imported"]["notes"] == [note]


def moved_to_gpu(content: bytes) -> bytes:
    """A pickle of torch.save as it would be if its tensors had lain on a GPU."""
    moved = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert moved != content
    return moved


@pytest.mark.parametrize("legacy", [False, True])
def test_images_saved_on_a_gpu(legacy: bool, tmp_path: Path) -> None:
    path = save(tmp_path, _use_new_zipfile_serialization=not legacy)
    if legacy:
        path.write_bytes(moved_to_gpu(path.read_bytes()))
    else:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, moved_to_gpu(content) if name.endswith("data.pkl") else content)
    found, _ = import_set(path, DIGITS)
    assert torch.equal(found.images, foreign_images())
    assert found.images.device.type == "cpu"


def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    path = save(tmp_path, labels=None)
    message = refused(dcbench("import", "set", path, "--output", tmp_path / "o"), 2, path, "(1)", "(4)")
    for part in ("--dataset", "--labels FILE, or --hard-labels", "--lr 0.02", "--no-lr", "--preprocessing standardise"):
        assert part in message
    given = ["--dataset", "digits", "--hard-labels", "--no-lr", "--output", tmp_path / "o"]
    message = refused(dcbench("import", "set", path, *given), 2, "(1) the preprocessing")
    assert "(2)" not in message
    assert not (tmp_path / "o").exists()
    assert dcbench("import", "set", path, *given, "--preprocessing", "standardise").exit_code == 0
    found = DistilledSet.load(tmp_path / "o")
    assert torch.equal(found.labels, HARD)
    assert found.lr is None


def test_output_that_is_there(tmp_path: Path) -> None:
    path, out = save(tmp_path), tmp_path / "set.safetensors"
    words = ["import", "set", path, "--dataset", "digits", "--lr", 0.1, "--preprocessing", "standardise", "--output"]
    out.write_text("mine")
    refused(dcbench(*words, out), 2, "exists already")
    assert out.read_text() == "mine"
    refused(dcbench(*words, tmp_path), 2, "is a folder: --output names the file to write")
    result = dcbench(*words, out, "--force")
    assert result.exit_code == 0, result.output
    assert "20 images of 10 classes, hard labels, learned rate 0.1, standardise" in result.stdout
    assert f"Next: dcbench evaluate {out}" in result.stdout


@pytest.mark.parametrize(
    ("images", "labels", "given", "words"),
    [
        (torch.zeros(20, 3, 8, 8), HARD, {}, r"images of shape \(20, 3, 8, 8\), .*digits are \(N, 1, 8, 8\)"),
        (torch.zeros(20, 64), HARD, {}, "is this the right --dataset"),
        (torch.zeros(15, 1, 8, 8), HARD[:15], {}, "15 images, which is not a multiple of digits's 10 classes"),
        (torch.zeros(0, 1, 8, 8), HARD[:0], {}, "0 images"),
        (torch.zeros(20, 1, 8, 8, dtype=torch.uint8), HARD, {}, "images of type torch.uint8, expected float32"),
        (torch.zeros(20, 1, 8, 8, dtype=torch.complex64), HARD, {}, "images of type torch.complex64"),
        (torch.full((20, 1, 8, 8), torch.nan), HARD, {}, r"image 0 holds NaN or infinity \(20 of 20"),
        (torch.full((20, 1, 8, 8), 1e300, dtype=torch.float64), HARD, {}, "NaN or infinity"),
        (None, HARD[:19], {}, r"shape \(19,\), expected whole numbers \(20,\)"),
        (None, HARD.float(), {}, "labels of type torch.float32"),
        (None, HARD + 1, {}, "labels from 1 to 10, but digits has classes 0 to 9"),
        (None, HARD.clamp(max=8), {}, r"0 of class 9 \(\w+\), up to 4 of others"),
        (None, torch.randn(20, 10), {}, r"not a probability distribution .*torch\.softmax\(labels, 1\)"),
        (None, torch.full((20, 10), torch.nan), {}, "not a probability distribution"),
        (None, torch.rand(20, 9).softmax(1), {}, r"probabilities \(20, 10\)"),
        (None, HARD, {"ipc": 3}, "holds 2 images for each of 10 classes, not --ipc 3"),
        (None, HARD, {"index": 0}, "holds one set of images: leave out --index"),
        (None, HARD, {"augmentation": "flipp"}, "unknown augmentation 'flipp'"),
        (None, HARD, {"preprocessing": "whiten"}, "takes standardise, zca or a safetensors file"),
        (None, HARD, {"dataset": "digit"}, "Did you mean 'digits'"),
        (None, HARD, {"labels": Path("none.pt")}, "there is no file none.pt"),
        ([[[torch.zeros(1)]]], HARD, {}, "dcbench import experts reads those"),
    ],
)
def test_files_that_do_not_fit(images: Any, labels: Any, given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        import_set(save(tmp_path, images, labels), dataclasses.replace(DIGITS, **given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": 0.1, "no_lr": True}, "--lr and --no-lr exclude each other"),
        ({"lr": -0.1}, "--lr must be positive and finite, not -0.1"),
        ({"lr": float("nan")}, "--lr must be positive"),
        ({"labels": Path("a"), "hard_labels": True}, "--labels and --hard-labels exclude each other"),
    ],
)
def test_options_that_exclude_each_other(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Given(**given)


def test_images_in_another_order_are_sorted_by_class(tmp_path: Path) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    found, (note,) = import_set(save(tmp_path, foreign_images()[order], HARD[order]), DIGITS)
    assert torch.equal(found.labels, HARD)
    for c in range(10):  # those of a class stay as they stood
        assert torch.equal(found.images[2 * c : 2 * c + 2], foreign_images()[order][HARD[order] == c])
    assert "sorted" in note


def test_images_with_the_whitening_undone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"for viewing; .* images_best\.pt: import that one"):
        import_set(save(tmp_path, name="zca_best"), DIGITS)


def test_pixels_are_suspected(tmp_path: Path) -> None:
    _, (note,) = import_set(save(tmp_path, foreign_images().sigmoid()), DIGITS)
    assert "all values lie in [0, 1]: if these are pixels" in note


# -------------------------------------------------------------------------------------------------------- preprocessing


def test_zca_is_fitted_as_a_run_fits_it(tmp_path: Path, digits: Dataset) -> None:
    found, _ = import_set(save(tmp_path), dataclasses.replace(DIGITS, preprocessing="zca"))
    assert found.preprocessing.key == fit_zca(digits.x_train, 16).key
    assert found.preprocessing.eps == 0.1
    settings = {**SMOKE, "data.zca": True, "data.validation": 0.0, "data.train_images": 0}
    overrides = [parse_set(f"{k}={v}") for k, v in settings.items() if k.startswith("data.")]
    config = resolve("random", "digits", 1, preset="smoke", overrides=overrides)
    fitted = Session(tmp_path / "out", device="cpu", quiet=True).cell(config).materials.preprocessing
    assert fitted.key == found.preprocessing.key


def test_preprocessing_from_a_file(tmp_path: Path, digits: Dataset) -> None:
    whitening = fit_zca(digits.x_train[:100], 16)
    tensors, facts = whitening.state()
    (tmp_path / "preprocessing").mkdir()
    save_tensors(tmp_path / "plain.safetensors", tensors, facts)  # as in results/preprocessing
    own = dataclasses.replace(foreign_set(digits), preprocessing=whitening)
    own.save(tmp_path / "whole.safetensors")
    own.save(tmp_path / "shared.safetensors", embed_preprocessing=False)
    export_set(own, "authors", tmp_path / "exported")
    path = save(tmp_path)
    for name in ("plain.safetensors", "whole.safetensors", "shared.safetensors", "exported/dcbench.safetensors"):
        found, _ = import_set(path, dataclasses.replace(DIGITS, preprocessing=str(tmp_path / name)))
        assert found.preprocessing.key == whitening.key
        options = found.provenance["imported"]["options"]
        assert options["preprocessing"] == Path(name).name
        assert len(options["preprocessing_sha256"]) == 64
    make().save(tmp_path / "toys.safetensors")
    with pytest.raises(UsageError, match=r"\(standardise\) whose mean has 3 numbers, but digits needs 1"):
        import_set(path, dataclasses.replace(DIGITS, preprocessing=str(tmp_path / "toys.safetensors")))
    with pytest.raises(CorruptFileError, match="damaged or not a safetensors file"):
        import_set(path, dataclasses.replace(DIGITS, preprocessing=str(path)))


# ----------------------------------------------------------------------------------------------- DC, DSA and DM's files


def results_of_dc(experiments: int = 3) -> dict[str, Any]:
    data = [[foreign_images() + i, HARD.clone()] for i in range(experiments)]
    scalars = [np.float64(0.5), np.float32(0.25), np.int64(3), np.bool_(True)]
    return {"data": data, "accs_all_exps": {"ConvNet": scalars}, "mean": np.float64(0.1)}


def test_file_of_dc(tmp_path: Path) -> None:
    path = tmp_path / "res_DM_digits.pt"
    torch.save(results_of_dc(), path)
    given = Given(dataset="digits", preprocessing="standardise")  # these methods learn no rate: none is asked for
    found, (note, about_augmentation) = import_set(path, given)
    assert "DC's sets are trained without (--augmentation none)" in about_augmentation
    assert found.augmentation == "color_crop_cutout_scale_rotate"
    of_dc, (_, told) = import_set(path, dataclasses.replace(given, method="dc"))
    assert of_dc.augmentation == "none"
    assert "trained without augmentation" in told
    said, (_,) = import_set(path, dataclasses.replace(given, method="dc", augmentation="crop"))
    assert said.augmentation == "crop"
    assert torch.equal(found.images, foreign_images() + 2)
    assert found.lr is None
    assert note == "res_DM_digits.pt holds 3 experiments; this is number 2 (--index)"
    assert found.provenance["imported"]["index"] == 2
    first, _ = import_set(path, dataclasses.replace(given, index=0))
    assert torch.equal(first.images, foreign_images())
    with pytest.raises(UsageError, match=r"holds 3 experiments: --index must lie in 0 \.\. 2"):
        import_set(path, dataclasses.replace(given, index=3))
    with pytest.raises(UsageError, match="holds its labels"):
        import_set(path, dataclasses.replace(given, hard_labels=True))


@pytest.mark.parametrize("numpy_1", [False, True])
def test_numpy_scalars_of_either_numpy(numpy_1: bool, tmp_path: Path) -> None:
    path = tmp_path / "res.pt"
    torch.save(results_of_dc(1), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    modern = b"numpy._core.multiarray" in content
    names = (b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(content.replace(*(names if numpy_1 else reversed(names))))
    assert names[numpy_1] in path.read_bytes()
    assert modern == (int(np.__version__[0]) > 1)
    found, _ = import_set(path, Given(dataset="digits", preprocessing="standardise"))
    assert torch.equal(found.images, foreign_images())


@pytest.mark.parametrize(
    "content",
    [{}, {"data": []}, {"data": [[torch.zeros(1)]]}, {"state_dict": 3}, {"data": [["a", "b"]]}],
)
def test_dict_that_is_not_of_dc(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "res.pt")
    with pytest.raises(CorruptFileError, match=r"not what DC, DSA and DM write|expected a tensor"):
        import_set(tmp_path / "res.pt", DIGITS)


# -------------------------------------------------------------------------------------------- hostile, damaged, foreign


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class BuiltinTrap(Trap):
    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("trap", [Trap, BuiltinTrap])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("hide", ["alone", "labels", "dict", "buffer"])
def test_nothing_of_a_hostile_file_is_run(trap: type[Trap], legacy: bool, hide: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bad = trap(marker)
    hidden: Any = {"alone": bad, "dict": {**results_of_dc(), "x": bad}, "buffer": [[[torch.zeros(2), bad]]]}.get(hide)
    path = save(tmp_path, hidden, bad if hide == "labels" else HARD, _use_new_zipfile_serialization=not legacy)
    words = ["--dataset", "digits", "--lr", 1, "--preprocessing", "standardise", "--output", tmp_path / "o"]
    result = dcbench("import", "set", path, *words)
    refused(result, 1, "refused, and nothing of it was run", "asks for ")
    refused(dcbench("import", "experts", path, "--dataset", "digits", "--out", tmp_path / "r"), 1 if hidden else 2)
    assert not marker.exists()
    torch.load(tmp_path / ("labels_best.pt" if hide == "labels" else "images_best.pt"), weights_only=False)
    assert marker.exists()  # the trap works: it was the refusal that kept it shut


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file(share: float, legacy: bool, tmp_path: Path) -> None:
    path = save(tmp_path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorruptFileError, match=r"images_best\.pt .*(damaged|asks for)") as error:
        import_set(path, DIGITS)
    assert "\n" not in str(error.value)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"data": [1]}, protocol=4))


def text(path: Path) -> None:
    path.write_text("<html>404</html>")


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")


def packed_bomb(path: Path) -> None:
    stored = io.BytesIO()
    torch.save(torch.zeros(1 << 22), stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


def endless_view(path: Path) -> None:
    torch.save(torch.zeros(1, 1, 1, 1).expand(10**9, 1, 8, 8), path)


def sparse(path: Path) -> None:
    torch.save(torch.eye(4).to_sparse(), path)


def without_values(path: Path) -> None:
    torch.save(torch.zeros(20, 1, 8, 8, device="meta"), path)


def number(path: Path) -> None:
    torch.save(3, path)


@pytest.mark.parametrize(
    "write", [plain_pickle, text, other_zip, packed_bomb, endless_view, sparse, without_values, number]
)
def test_foreign_and_swollen_files(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "images_best.pt")
    words = ["--dataset", "digits", "--lr", 1, "--preprocessing", "standardise", "--hard-labels"]
    refused(dcbench("import", "set", tmp_path / "images_best.pt", *words, "--output", tmp_path / "o"), 1, "images_best")
    assert not (tmp_path / "o").exists()


def test_packed_archive_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_bomb(tmp_path / "images_best.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: 1 / 0)
    with pytest.raises(CorruptFileError, match=r"is a packed archive, which torch\.save never writes"):
        import_set(tmp_path / "images_best.pt", DIGITS)


# -------------------------------------------------------------------------------------------------------------- experts

SMALL = NetworkSettings(width=4)
TINY = DataSettings(train_images=200, validation=0.1)


def trajectory(epochs: int = 3, seed: int = 0, **network: Any) -> list[list[Tensor]]:
    torch.manual_seed(seed)
    facts = {"channels": 1, "classes": 10, "side": 8, "width": 4, **network}
    return [[p.detach().clone() for p in ConvNet(**facts).parameters()] for _ in range(epochs + 1)]


def buffer(folder: Path, experts: Any, number: int = 0) -> Path:
    torch.save(experts, folder / f"replay_buffer_{number}.pt")
    return folder / f"replay_buffer_{number}.pt"


def tesla(out: Path, *assignments: str, method: str = "tesla") -> Cell:
    kept = {k: v for k, v in SMOKE.items() if k not in ("experts.count", "iterations") and not k.startswith("eval")}
    overrides = [parse_set(f"{key}={value}") for key, value in kept.items()] + [parse_set(a) for a in assignments]
    return Session(out, device="cpu", quiet=True).cell(
        resolve(method, "digits", 1, preset="smoke", overrides=overrides)
    )


def test_imported_experts_give_the_same_set_to_the_last_bit(tmp_path: Path, digits: Dataset) -> None:
    torch.set_num_threads(1)
    own = run("tesla", preset="smoke", settings=SMOKE, out=tmp_path / "own", device="cpu", quiet=True)
    store = own.cell.materials.expert_store
    assert own.cell.materials.expert_request is not None
    epochs = own.cell.materials.expert_request.epochs
    shapes = [p.shape for p in own.cell.materials.build_network().parameters()]
    sizes = [shape.numel() for shape in shapes]
    files = []
    for i in range(2):
        thetas = [store.snapshot(i, epoch) for epoch in range(epochs + 1)]
        split = [[p.view(s) for p, s in zip(t.split(sizes), shapes, strict=True)] for t in thetas]
        files.append(buffer(tmp_path, [[[p.clone() for p in epoch] for epoch in split]], i))
    words = ["--width", 4, "--train-images", 200, "--validation", 0.1, "--name", "colleague", "--out", tmp_path / "in"]
    result = dcbench("import", "experts", *files, "--dataset", "digits", *words)
    assert result.exit_code == 0, result.output
    first, following = result.stdout.splitlines()
    assert first.startswith(f"2 experts of {epochs} epochs: ")
    assert following.startswith("Next: dcbench run --method mtt --dataset digits --set experts.imported=")
    theirs = {k: v for k, v in SMOKE.items() if k != "experts.count"} | {"experts.imported": "colleague"}
    other = run("tesla", preset="smoke", settings=theirs, out=tmp_path / "in", device="cpu", quiet=True)
    assert torch.equal(other.distilled.images, own.distilled.images)
    assert torch.equal(other.distilled.labels, own.distilled.labels)
    assert other.distilled.lr == own.distilled.lr
    assert other.accuracy() == own.accuracy()
    assert other.cell.key != own.cell.key
    assert not list((tmp_path / "in" / "rows").glob("experts-*"))  # none were trained
    (folder,) = (tmp_path / "in" / "experts").iterdir()
    assert folder.name in following
    assert read_json(folder / "imported.json")["files"][0]["name"] == "replay_buffer_0.pt"
    theta, meta = load_tensors(folder / "expert_0001" / "epoch_002.safetensors")
    assert torch.equal(theta["theta"], store.snapshot(1, 2))
    assert meta["identity"] == read_json(folder / "recipe.json")

    # the printed line works as it stands
    shown = following.removeprefix("Next: dcbench ").split()
    small = [w for k, v in SMOKE.items() if k.startswith(("conv", "iter", "eval")) for w in ("--set", f"{k}={v}")]
    again = dcbench(*shown, *small, "--preset", "smoke", "--device", "cpu", "--no-baseline")
    assert again.exit_code == 0, again.output


def imported(out: Path, experts: Any, name: str = "", number: int = 0) -> str:
    path = buffer(out, experts, number)
    return import_experts([path], load_dataset("digits"), Workspace(out), data=TINY, network=SMALL, name=name).key


def test_imported_experts_are_chosen_by_key_beginning_or_name(tmp_path: Path) -> None:
    one = imported(tmp_path, [trajectory(4)], "one")
    two = imported(tmp_path, [trajectory(4, seed=1), trajectory(5, seed=2)], "two", 1)
    assert one != two
    for wanted, key in ((one, one), (one[:6], one), ("one", one), ("two", two)):
        assert tesla(tmp_path, f"experts.imported={wanted}").materials.expert_store.recipe.key == key
    keys = {tesla(tmp_path, f"experts.imported={wanted}").key for wanted in (one, one[:6], "one")}
    assert len(keys) == 1  # however it is written, it is the same cell
    assert keys.isdisjoint({tesla(tmp_path).key, tesla(tmp_path, "experts.imported=two").key})
    with pytest.raises(UsageError, match=rf"no imported experts 'three' under .*{one} \(one\)"):
        tesla(tmp_path, "experts.imported=three")
    with pytest.raises(UsageError, match=r"imported: none\. dcbench import experts FILES"):
        tesla(tmp_path / "other", "experts.imported=one")
    imported(tmp_path, [trajectory(4, seed=7)], "one", 3)
    with pytest.raises(UsageError, match=r"experts\.imported=one matches several imports: "):
        tesla(tmp_path, "experts.imported=one")


def test_as_many_imported_experts_as_there_are(tmp_path: Path) -> None:
    key = imported(tmp_path, [trajectory(4), trajectory(6, seed=1)])
    assert tesla(tmp_path, f"experts.imported={key}").materials.expert_count == 2  # not the preset's three
    one = tesla(tmp_path, f"experts.imported={key}", "experts.count=1")
    assert one.materials.expert_count == 1
    assert one.key != tesla(tmp_path, f"experts.imported={key}").key
    with pytest.raises(UsageError, match=r"3 experts are wanted, but 2 were imported .*experts\.count=2"):
        tesla(tmp_path, f"experts.imported={key}", "experts.count=3")
    with pytest.raises(UsageError, match=r"epochs 0 to 8 .* imported expert 0 .*ends at 4: lower max_start_epoch"):
        tesla(tmp_path, f"experts.imported={key}", "max_start_epoch=5")
    assert tesla(tmp_path, f"experts.imported={key}", method="herding").materials.expert_count == 1


def test_imported_experts_are_never_trained(tmp_path: Path) -> None:
    key = imported(tmp_path, [trajectory(4)])
    made = tesla(tmp_path, f"experts.imported={key}")
    store = made.materials.expert_store
    assert made.pending()[0] == "condense"
    with pytest.raises(UsageError, match="cannot be trained further"):
        store.ensure(1, 5, made.splits.train, None)  # type: ignore[arg-type]
    assert store.ensure(1, 4, made.splits.train, None) == 0.0  # type: ignore[arg-type]
    store.path(0, 1).write_bytes(store.path(0, 1).read_bytes()[:-1])
    with pytest.raises(
        CorruptFileError, match=r"epoch_001\.safetensors is damaged or gone\. Delete the folder .*again"
    ):
        store.snapshot(0, 1)
    store.path(0, 1).unlink()
    with pytest.raises(CorruptFileError, match="import the experts again"):
        store.ensure(1, 4, made.splits.train, None)  # type: ignore[arg-type]
    for name in ("experts.lr=0.1", "experts.batch_size=3"):
        with pytest.raises(UsageError, match=r"has no effect: imported experts are not trained here"):
            tesla(tmp_path, f"experts.imported={key}", name)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("data.train_images=210", "data.train_images is 210 here, 200 there"),
        ("data.validation=0.2", "data.validation is 0.2 here, 0.1 there"),
        ("data.zca=true", r"the preprocessing \(data.zca\) is 'zca' here, 'standardise' there"),
        ("network.width=5", "network.width is 5 here, 4 there"),
    ],
)
def test_imported_experts_of_another_task(assignment: str, words: str, tmp_path: Path) -> None:
    key = imported(tmp_path, [trajectory(4)])
    with pytest.raises(UsageError, match=f"do not belong to this run: .*{words}"):
        tesla(tmp_path, f"experts.imported={key}", assignment)


def test_index_that_was_edited(tmp_path: Path) -> None:
    key = imported(tmp_path, [trajectory(4)])
    path = tmp_path / "experts" / key / "imported.json"
    path.write_text(path.read_text().replace('"width": 4', '"width": 5'))
    with pytest.raises(CorruptFileError, match=r"imported\.json describes other experts than its key .*Delete"):
        tesla(tmp_path, f"experts.imported={key}", "network.width=5")


@pytest.mark.parametrize("epochs", [[4], [4, 3]])
def test_index_that_lists_fewer_than_there_are(epochs: list[int], tmp_path: Path) -> None:
    key = imported(tmp_path, [trajectory(4), trajectory(4, seed=2)])
    path = tmp_path / "experts" / key / "imported.json"
    assert tesla(tmp_path, f"experts.imported={key}").materials.expert_store.recipe.key == key
    write_json(path, {**read_json(path), "epochs": epochs})
    with pytest.raises(CorruptFileError, match=r"imported\.json does not list .*epoch_00[04]\.safetensors\. Delete"):
        _ = tesla(tmp_path, f"experts.imported={key}").materials.expert_store


def test_import_twice_and_order_of_files(tmp_path: Path, digits: Dataset) -> None:
    files = [buffer(tmp_path, [trajectory(4, seed=n)], n) for n in (10, 9, 2)]
    done = [
        import_experts(order, digits, Workspace(tmp_path), data=TINY, network=SMALL) for order in (files, files[::-1])
    ]
    assert done[0].key == done[1].key
    assert [d.new for d in done] == [True, False]
    assert done[0].epochs == done[1].epochs == (4, 4, 4)
    store = tesla(tmp_path, f"experts.imported={done[0].key}").materials.expert_store
    for expert, seed in enumerate((2, 9, 10)):
        assert torch.equal(store.snapshot(expert, 0), torch.cat([p.flatten() for p in trajectory(0, seed=seed)[0]]))
    with pytest.raises(UsageError, match="are the same: each expert counts once"):
        import_experts([files[0], files[0]], digits, Workspace(tmp_path), data=TINY, network=SMALL)


def test_parameters_are_in_the_networks_order(tmp_path: Path) -> None:
    torch.manual_seed(5)
    network = ConvNet(1, 10, 8, 4)
    names = [name for name, _ in network.named_parameters()]
    assert names == [*(f"features.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")), *names[-2:]]
    named = dict(network.named_parameters())
    key = imported(tmp_path, [[[named[name].detach() for name in names], *trajectory(3)]])
    read = tesla(tmp_path, f"experts.imported={key}").materials.expert_store.snapshot(0, 0)
    assert torch.equal(read, flatten_parameters(network))


def shared_snapshots() -> list[list[list[Tensor]]]:
    (parameters,) = trajectory(0)
    return [[parameters] * 4]


def repeated() -> list[list[list[Tensor]]]:
    (parameters,) = trajectory(0)
    return [[[p.clone() for p in parameters] for _ in range(3)]]


def spoilt() -> list[list[list[Tensor]]]:
    experts = [trajectory(3), trajectory(3)]
    experts[1][2][0][0] = torch.nan
    return experts


@pytest.mark.parametrize(
    ("experts", "error", "words"),
    [
        (
            [trajectory(width=6)],
            UsageError,
            r"expert 0 of this file, epoch 0: tensor 0 \(features\.0\.weight\) is \(6, 1, 3, 3\), "
            r"the network's is \(4, 1, 3, 3\)\. They fit a ConvNet of width 6 and depth 1 for 10 classes and "
            r"1 channels of about 8 pixels: --width 6",
        ),
        ([trajectory(side=16)], UsageError, "width 4 and depth 2 .* --width 4 --depth 2"),
        (
            [trajectory(classes=7)],
            UsageError,
            r"for 7 classes .*another --dataset than digits \(1 channels, 10 classes",
        ),
        ([trajectory(channels=3)], UsageError, "3 channels .*another --dataset"),
        ([[e[:-1] for e in trajectory()]], UsageError, "5 tensors, the network has 6. They are not those of a ConvNet"),
        ([[e[::-1] for e in trajectory()]], UsageError, "They are not those of a ConvNet"),
        (spoilt(), CorruptFileError, "expert 1 of this file, epoch 2: holds NaN"),
        ([[[p.long() for p in e] for e in trajectory()]], CorruptFileError, "of type torch.int64, expected float32"),
        (shared_snapshots(), CorruptFileError, "names more numbers than it holds"),
        (repeated(), CorruptFileError, "is the same after epochs 0 and 1"),
        ([trajectory(0)], CorruptFileError, "has 1 snapshots; matching needs two"),
        ([], CorruptFileError, "is no expert buffer"),
        ({"a": 1}, CorruptFileError, "is no expert buffer"),
        ([torch.zeros(3)], CorruptFileError, "is no expert buffer"),
        ([[torch.zeros(3)]], CorruptFileError, "its entry 0 is not a list|its entry 0 is not each a list"),
        ([[["a"] * 6, ["b"] * 6]], CorruptFileError, "tensor 0 is a str, expected a tensor"),
        (torch.zeros(3), UsageError, "dcbench import set reads those"),
    ],
)
def test_buffers_that_do_not_fit(experts: Any, error: type[Exception], words: str, tmp_path: Path) -> None:
    good = buffer(tmp_path, [trajectory(3, seed=8)])
    bad = buffer(tmp_path, experts, 1)
    with pytest.raises(error, match=words):
        import_experts([good, bad], load_dataset("digits"), Workspace(tmp_path), data=TINY, network=SMALL)
    assert not [p for p in (tmp_path / "experts").rglob("*") if p.is_file()]  # all or nothing


def test_buffer_of_an_old_torch(tmp_path: Path) -> None:
    experts, path = [trajectory(3, seed=4)], tmp_path / "replay_buffer_0.pt"
    torch.save(experts, path, _use_new_zipfile_serialization=False)
    done = import_experts([path], load_dataset("digits"), Workspace(tmp_path), data=TINY, network=SMALL)
    theta, _ = load_tensors(done.folder / "expert_0000" / "epoch_003.safetensors")
    assert torch.equal(theta["theta"], torch.cat([p.flatten() for p in experts[0][3]]))


def test_truncated_buffer(tmp_path: Path) -> None:
    path = buffer(tmp_path, [trajectory(3)])
    path.write_bytes(path.read_bytes()[:-200])
    refused(dcbench("import", "experts", path, "--dataset", "digits", "--out", tmp_path), 1, path, "damaged")
    refused(dcbench("import", "experts", tmp_path / "no.pt", "--dataset", "digits", "--out", tmp_path), 2, "no file")
    assert not (tmp_path / "experts").exists()


def test_options_of_import_experts(tmp_path: Path) -> None:
    path = buffer(tmp_path, [trajectory(3)])
    words = ["import", "experts", path, "--dataset", "digits", "--out", tmp_path, "--width", 4]
    refused(dcbench(*words, "--name", "a/b"), 2, "--name takes letters")
    refused(dcbench(*words, "--zca", "--preprocessing", "standardise"), 2, "exclude each other")
    refused(dcbench(*words, "--validation", 1), 2, "data.validation must be a share")
    refused(dcbench("import", "expert"), 2, "Did you mean 'experts'?")
    result = dcbench(*words, "--zca")
    assert "--set data.zca=true --set data.train_images=0 --set data.validation=0 " in result.stdout
    assert f"--out {tmp_path}" in result.stdout
    assert "there already" in dcbench(*words, "--preprocessing", "zca").stdout


@pytest.mark.parametrize("words", [["import", "set"], ["import", "experts"], ["import"], ["export"]])
def test_help_has_examples(words: list[str]) -> None:
    result = dcbench(*words, "--help")
    assert result.exit_code == 0
    assert re.search(r"Examples:\n +dcbench ", result.stdout)


# ----------------------------------------------------------------------------------------------------------- end to end


def test_exported_for_the_authors_and_imported_again_the_accuracy_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    made = run("tesla", preset="smoke", settings=SMOKE, out=tmp_path / "results", device="cpu", quiet=True)
    out = tmp_path / "authors"
    result = dcbench("export", made.folder, "--format", "authors", "--output", out)
    assert result.exit_code == 0, result.output
    back, foreign = tmp_path / "back.safetensors", tmp_path / "foreign.safetensors"
    result = dcbench("import", "set", out / "images_best.pt", "--output", back)
    assert result.exit_code == 0, result.output
    assert same(DistilledSet.load(back), made.distilled)

    # and as somebody who has the two files only, and asked for the rest
    side = out / "dcbench.safetensors"
    side.rename(tmp_path / "whitening.safetensors")
    words = ["--dataset", "digits", "--lr", repr(made.distilled.lr), "--method", "tesla"]
    words += ["--preprocessing", str(tmp_path / "whitening.safetensors"), "--output", str(foreign)]
    result = dcbench("import", "set", out / "images_best.pt", *words)
    assert result.exit_code == 0, result.output

    accuracies = []
    for i, path in enumerate((made.cell.place.distilled, back, foreign)):
        (tmp_path / str(i)).mkdir()
        monkeypatch.chdir(tmp_path / str(i))
        (tmp_path / str(i) / "set.safetensors").write_bytes(path.read_bytes())
        small = [w for k, v in SMOKE.items() if k.startswith("conv") for w in ("--set", f"{k}={v}")]
        small += ["--set", "evaluation.networks=2"]
        result = dcbench("evaluate", "set.safetensors", "--preset", "smoke", "--device", "cpu", *small)
        assert result.exit_code == 0, result.output
        accuracies += re.findall(r"\d+\.\d ± \d+\.\d %", result.stdout)
    assert len(accuracies) == 3
    assert len(set(accuracies)) == 1
    assert accuracies[0] == str(made.accuracy())
