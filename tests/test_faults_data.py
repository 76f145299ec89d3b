"""What comes in from outside: damaged, hostile and unlucky data sets, distilled sets, experts and settings."""

import gzip
import json
import math
import os
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from dcbench_tesla import registry
from dcbench_tesla.cli.run import experts, run
from dcbench_tesla.config import (
    ExpertSettings,
    NetworkSettings,
    overrides_from,
    parse_set,
    read_config_file,
    resolve,
    setting_names,
)
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.checks import reading
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.datasets import check_dataset_name, load_dataset
from dcbench_tesla.distilled import FORMAT, DistilledSet
from dcbench_tesla.errors import CorruptFileError, DcbenchError, UsageError
from dcbench_tesla.exchange import Given, export_set, import_experts, import_set
from dcbench_tesla.exchange.files import load_torch
from dcbench_tesla.experts.imported import ImportedStore
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.presets.released import NAMES
from dcbench_tesla.records.store import load_tensors, save_tensors
from dcbench_tesla.records.workspace import Workspace

# ------------------------------------------------------------------------------------------ distilled sets when read


def distilled(**changed: Any) -> DistilledSet:
    facts: dict[str, Any] = {
        "images": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 0, 1, 1]),
        "class_names": ("cat", "dog"),
        "preprocessing": Preprocessing("standardise", torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.5])),
        "augmentation": "flip_crop",
        "lr": 0.01,
        "provenance": {"method": "dm", "dataset": "toys", "ipc": 2, "seed": 0, "redistributable": True},
    }
    return DistilledSet(**{**facts, **changed})


WHITENED = distilled(
    preprocessing=Preprocessing("zca", torch.zeros(192), matrix=torch.eye(192), inverse_matrix=torch.eye(192), eps=0.1)
)
NAN, INF = math.nan, math.inf
SOFT = torch.tensor([[0.9, 0.1]] * 4)


def hostile(path: Path, *, of: DistilledSet | None = None, **changed: Any) -> Path:
    """Write a set with a right digest in which ``changed`` fields are others; ``a__b`` stands for b in a."""
    tensors, meta = (of or distilled()).state()
    for name, value in changed.items():
        *outer, last = name.split("__")
        if isinstance(value, Tensor):
            tensors[".".join([*outer, last])] = value
            continue
        place: Any = meta
        for key in outer:
            place = place[key]
        place[last] = value
        if value is ...:
            del place[last]
    save_tensors(path, tensors, {"format": FORMAT, "version": 1, **meta})
    return path


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"images": torch.randn(4, 3, 8, 8).half()}, "images are float16; expected float32"),
    ({"images": torch.randn(4, 3, 8, 8).double()}, "images are float64"),
    ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.bool)}, "images are bool"),
    ({"images": torch.randn(0, 3, 8, 8), "labels": torch.zeros(0, dtype=torch.int64)}, "at least one image"),
    ({"images": torch.randn(4, 3, 8, 7)}, "H = W"),
    ({"images": torch.randn(4, 192)}, "images have shape"),
    ({"images": torch.randn(3, 3, 8, 8)}, r"labels are int64 of shape \(4,\); expected int64 \(3,\)"),
    ({"images": torch.full((4, 3, 8, 8), NAN)}, "images hold NaN or infinity"),
    ({"images": torch.full((4, 3, 8, 8), 17, dtype=torch.uint8), "max_value": 16}, "pixels up to 17"),
    ({"labels": torch.tensor([0, 0, 1, -1])}, r"labels lie in -1 \.\. 1; expected classes 0 \.\. 1"),
    ({"labels": torch.tensor([0, 0, 1, 10**12])}, r"labels lie in 0 \.\. 1000000000000"),
    ({"labels": torch.tensor([0, 0, 1, 1], dtype=torch.int32)}, "labels are int32"),
    ({"labels": torch.tensor([[0.9, 0.2]] * 4)}, "labels of image 0 are no probabilities"),
    ({"labels": torch.tensor([[1.5, -0.5]] * 4)}, "labels of image 0 are no probabilities"),
    ({"labels": torch.tensor([[NAN, 1.0]] * 4)}, "labels of image 0 are no probabilities"),
    ({"labels": torch.rand(4, 3).softmax(1)}, r"float32 \(4, 2\)"),
    ({"class_names": [None]}, r"class_names is \[None\]; expected a list of strings"),
    ({"class_names": []}, "class_names"),
    ({"class_names": "ab"}, "class_names is 'ab'"),
    ({"class_names": ["a", "a"]}, "class_names holds 'a' twice"),
    ({"class_names": ["a", "b"] * 100_000}, "twice"),
    ({"class_names": ...}, "class_names is missing"),
    ({"augmentation": "explode"}, "augmentation is 'explode'"),
    ({"augmentation": None}, "augmentation is None"),
    ({"augmentation": ["flip"]}, "augmentation"),
    ({"max_value": 0}, "max_value is 0"),
    ({"max_value": True}, "max_value is True"),
    ({"max_value": "255"}, "max_value"),
    ({"lr": 0}, "lr is 0; expected a positive number, or null"),
    ({"lr": "0.1"}, "lr is '0.1'"),
    ({"lr": True}, "lr is True"),
    ({"lr": ...}, "lr is missing"),
    ({"preprocessing": None}, "preprocessing is None"),
    ({"preprocessing": []}, "preprocessing is"),
    ({"preprocessing": {"kind": ["zca"]}}, "preprocessing is"),
    ({"preprocessing": {"kind": "pca"}}, "preprocessing is"),
    ({"preprocessing__eps": "x"}, r"preprocessing\.eps is 'x'"),
    ({"preprocessing__mean": torch.zeros(2)}, r"preprocessing\.mean is float32 of shape \(2,\)"),
    ({"preprocessing__mean": torch.zeros(())}, r"preprocessing\.mean"),
    ({"preprocessing__mean": torch.tensor([0.0, NAN, 0.0])}, r"preprocessing\.mean holds others; expected finite"),
    ({"preprocessing__mean": torch.zeros(3, dtype=torch.int64)}, r"preprocessing\.mean is int64"),
    ({"preprocessing__std": torch.zeros(3)}, r"preprocessing\.std holds others; expected positive"),
    ({"preprocessing__std": torch.tensor([1.0, INF, 1.0])}, r"preprocessing\.std"),
    ({"preprocessing": {"kind": "zca", "eps": 0.1}}, r"preprocessing\.mean is float32 of shape \(3,\)"),
    ({"provenance": None}, "provenance is None"),
    ({"provenance": [1]}, "provenance is"),
    ({"provenance__dataset": 7}, r"provenance\.dataset is 7; expected a string"),
    ({"provenance__ipc": "x"}, r"provenance\.ipc is 'x'"),
    ({"provenance__ipc": -1}, r"provenance\.ipc is -1"),
    ({"provenance__seed": 1.5}, r"provenance\.seed"),
    ({"provenance__key": "0123456789abcdef"}, r"provenance\.dataset_fingerprint is missing"),
    ({"provenance__iteration": []}, r"provenance\.iteration"),
    ({"provenance__redistributable": "yes"}, r"provenance\.redistributable"),
]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"class_names": ["a", "\ud800"]}, "surrogates not allowed"),
        ({"lr": NAN}, "NaN is no finite number"),
        ({"lr": INF}, "Infinity is no finite number"),
        ({"lr": 10**400}, "an integer of 401 digits"),
    ],
)
def test_set_whose_facts_are_no_json(changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = hostile(tmp_path / "set.safetensors", **changed)
    with pytest.raises(CorruptFileError, match=rf"metadata is not JSON \(.*{reason}") as error:
        DistilledSet.load(path)
    assert str(error.value).startswith(f"{path} is damaged, or is no distilled set")


@pytest.mark.parametrize(("changed", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_set_with_a_right_digest_and_wrong_contents(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = hostile(tmp_path / "set.safetensors", **changed)
    with pytest.raises(CorruptFileError, match=words) as error:
        DistilledSet.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "--force makes it again; otherwise get it anew." in str(error.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"preprocessing__matrix": torch.eye(191)}, r"matrix is float32 of shape \(191, 191\)"),
        ({"preprocessing__inverse_matrix": torch.full((192, 192), NAN)}, "inverse_matrix holds others"),
        ({"preprocessing__mean": torch.zeros(3)}, r"mean is float32 of shape \(3,\); expected float32 \(192,\)"),
    ],
)
def test_wrong_whitening_of_a_set(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=words):
        DistilledSet.load(hostile(tmp_path / "set.safetensors", of=WHITENED, **changed))


@pytest.mark.parametrize("right", [{}, {"lr": None}, {"labels": SOFT}, {"provenance": {}}, {"augmentation": "none"}])
def test_right_sets_are_read(right: dict[str, Any], tmp_path: Path) -> None:
    assert len(DistilledSet.load(hostile(tmp_path / "set.safetensors", **right))) == 4


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_of_a_type_that_is_never_written(kind: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    tensors, meta = distilled().state()
    head = json.dumps({"format": FORMAT, "version": 1, **meta, "digest": "0" * 64})
    safetensors.torch.save_file({**tensors, "images": tensors["images"].to(kind)}, path, {"dcbench": head})
    with pytest.raises(CorruptFileError, match=r"set\.safetensors is damaged, or is no distilled set"):
        DistilledSet.load(path)


@pytest.mark.parametrize("head", ["[1]", "7", '"x"', "null", "[" * 100_000, "{"])
def test_metadata_that_is_no_object(head: str, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"dcbench": head})
    with pytest.raises(CorruptFileError, match=r"set\.safetensors"):
        load_tensors(path)
    with pytest.raises(CorruptFileError, match=r"set\.safetensors is damaged, or is no distilled set"):
        DistilledSet.load(path)


def test_whitening_under_another_name(tmp_path: Path) -> None:
    shared = tmp_path / "preprocessing"
    shared.mkdir()
    WHITENED.save(tmp_path / "one.safetensors", embed_preprocessing=False)
    (file,) = shared.iterdir()
    other = Preprocessing("zca", torch.ones(192), matrix=torch.eye(192), inverse_matrix=torch.eye(192), eps=0.1)
    save_tensors(file, other.state()[0], {"format": "dcbench preprocessing", **other.state()[1]})
    with pytest.raises(CorruptFileError, match=rf"{file.name} holds another whitening than its name"):
        DistilledSet.load(tmp_path / "one.safetensors")


@pytest.mark.parametrize("key", ["../secret", 7, None, "../../../../etc/passwd", "A" * 16])
def test_name_of_a_whitening_cannot_lead_out_of_its_folder(key: object, tmp_path: Path) -> None:
    (tmp_path / "preprocessing").mkdir()
    path = hostile(tmp_path / "set.safetensors", preprocessing={"shared": key})
    with pytest.raises(CorruptFileError, match=r"preprocessing\.shared is not a key of 16 hex digits"):
        DistilledSet.load(path)


# ------------------------------------------------------------------------------- sizes before memory, regular files


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """End a test that waits for a pipe or reads without end."""

    def end(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def arrays(**changed: Any) -> dict[str, Any]:
    """The arrays of an npz data set of two classes, five training and two test images each."""
    pixels = np.random.default_rng(0).integers(0, 256, (14, 8, 8), np.uint8)
    facts = {"x_train": pixels[:10], "y_train": np.arange(10) % 2, "x_test": pixels[10:], "y_test": np.arange(4) % 2}
    return {**facts, **changed}


def npz(path: Path, **changed: Any) -> Path:
    np.savez(path, **arrays(**changed))
    return path


def picture_folder(root: Path, train: int = 3, test: int = 2, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), 40 * i).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("assignment", ["iterations=999999999", "iterations=4611686018427387903"])
def test_more_snapshots_than_anybody_stores(assignment: str) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.every=\d+ asks for \d+ snapshots .*Raise evaluation\.every"):
        resolve("tesla", "digits", 1, preset="smoke", overrides=[parse_set(assignment)])


def test_many_iterations_with_few_snapshots() -> None:
    every = [parse_set("iterations=999999999"), parse_set("evaluation.every=0")]
    assert resolve("tesla", "digits", 1, preset="smoke", overrides=every).settings.iterations == 999_999_999


@pytest.mark.parametrize("value", ["9" * 30, "9" * 5000, 10**400, 10**30])
@pytest.mark.parametrize("label", ["iterations", "experts.count"])
def test_whole_numbers_beyond_counting(label: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{label} takes a value of type int, not") as error:
        resolve("tesla", "digits", 1, overrides=overrides_from({label: value}))
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(("value", "words"), [(10**400, "takes a value of type float"), ("1e400", "finite")])
@pytest.mark.parametrize("label", ["lr_images", "experts.lr"])
def test_rates_beyond_floats(label: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=f"{label} .*{words}"):
        resolve("tesla", "digits", 1, overrides=overrides_from({label: value}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("a = " + "{b = " * 5000 + "1" + "}" * 5000, "nested too deep"),
        ("ipc = " + "9" * 5000, "not valid TOML"),
        ("#" * (1 << 20) + "\n", "expected at most 1048576"),
    ],
    ids=["lists", "tables", "digits", "size"],
)
def test_hostile_configuration(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UsageError, match=rf"a\.toml .*{words}"):
        read_config_file(tmp_path / "a.toml")


def test_deep_names_in_a_configuration_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f"[settings]\niterations{'.a' * 5000} = 1\n")
    _, overrides = read_config_file(tmp_path / "a.toml")
    with pytest.raises(UsageError, match="iterations takes a value of type int") as error:
        resolve("tesla", "digits", 1, overrides=overrides)
    assert len(str(error.value)) < 200


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nowhere(path: Path) -> None:
    path.symlink_to("gone")


@pytest.mark.parametrize("place", [pipe, endless])
def test_only_regular_files_are_read(place: Callable[[Path], None], tmp_path: Path) -> None:
    place(tmp_path / "a.npz")
    with pytest.raises(CorruptFileError, match=r"a\.npz is a pipe, a socket or a device, not a regular file"):
        load_dataset(f"npz:{tmp_path}/a.npz")
    place(tmp_path / "a.toml")
    with pytest.raises(UsageError, match=r"a\.toml is a pipe, a socket or a device"):
        read_config_file(tmp_path / "a.toml")
    place(tmp_path / "a.safetensors")
    with pytest.raises(CorruptFileError, match=r"a\.safetensors .*is a pipe, a socket or a device"):
        DistilledSet.load(tmp_path / "a.safetensors")
    place(tmp_path / "images_best.pt")
    with pytest.raises(CorruptFileError, match=r"images_best\.pt is a pipe, a socket or a device"):
        load_torch(tmp_path / "images_best.pt")
    folder = picture_folder(tmp_path / "pictures")
    place(folder / "train" / "cat" / "9.png")
    with pytest.raises(CorruptFileError, match=r"9\.png: not a regular file; expected files"):
        load_dataset(f"folder:{folder}")


def test_a_picture_whose_pixels_do_not_fit_their_checksum_is_refused(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures")
    path = folder / "train" / "cat" / "0.png"
    with Image.open(path) as image:
        side = image.width
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    start = whole.index(b"IDAT") + 4
    size = int.from_bytes(whole[start - 8 : start - 4], "big")
    assert size > 50
    for place in range(start, start + size):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match=r"0\.png: cannot be read as an image"):
            load_dataset(f"folder:{folder}")
    path.write_bytes(whole)
    assert load_dataset(f"folder:{folder}").x_train.size


@pytest.mark.parametrize("place", [pipe, endless])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "mnist/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("svhn", "train_32x32.mat"),
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
        ("tiny-imagenet", "tiny-imagenet-200/wnids.txt"),
        ("tiny-imagenet", "tiny-imagenet-200-npy/meta.json"),
        ("imagenet1k-64", "imagenet64/map_clsloc.txt"),
    ],
)
def test_only_regular_files_of_registered_sets(
    place: Callable[[Path], None], name: str, file: str, tmp_path: Path
) -> None:
    beside = {
        "mnist": [f"mnist/{a}-{b}-ubyte" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")],
        "cifar10": [f"cifar-10-batches-py/{m}" for m in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")],
        "svhn": ["test_32x32.mat"],
        "imagenet1k-64": [*(f"imagenet64/train_data_batch_{i}" for i in range(1, 11)), "imagenet64/val_data"],
    }.get(name, [])
    for path in (tmp_path / other for other in (beside if not file.endswith(".gz") else []) if other != file):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / file).parent.mkdir(exist_ok=True)
    place(tmp_path / file)
    with pytest.raises(CorruptFileError, match="a pipe, a socket or a device, not a regular file"):
        load_dataset(name, tmp_path)


def with_header(path: Path, shape: tuple[int, ...], *, key: str = "x_train", kind: str = "|u1") -> Path:
    """Write an npz archive in which ``key`` promises ``shape`` and holds a few bytes."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    npz(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[f"{key}.npy"] = header.getvalue() + bytes(64)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("key", ["x_train", "y_test", "class_names", "mean"])
@pytest.mark.parametrize("shape", [(10**12, 8, 8), (10**30,), (3,)])
def test_header_that_promises_more_than_there_is(shape: tuple[int, ...], key: str, tmp_path: Path) -> None:
    path = with_header(tmp_path / "a.npz", shape, key=key)
    with pytest.raises(CorruptFileError, match=rf"a\.npz: {key}\.npy promises \d+ bytes and holds 64; get it"):
        load_dataset(f"npz:{path}")


def test_archive_that_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path / "a.npz")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1000))
    with pytest.raises(DcbenchError, match=r"a\.npz: its images take .* GB decoded, and this machine has .*smaller"):
        load_dataset(f"npz:{path}")
    with pytest.raises(DcbenchError, match=r"pictures: its images take .* GB decoded"):
        load_dataset(f"folder:{picture_folder(tmp_path / 'pictures', train=8, test=8)}")


def test_idx_file_that_promises_more_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for split in ("train", "t10k"):
        for name in ("images-idx3", "labels-idx1"):
            head = b"\0\0\x08\x03" + b"\xff\xff\xff\xff" + bytes([0, 0, 0, 28, 0, 0, 0, 28])
            (tmp_path / "mnist" / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(head + bytes(100)))
    with pytest.raises(CorruptFileError, match="100 bytes, its header promises 3367254359280 "):
        load_dataset("mnist", tmp_path)


def test_array_of_a_cache_that_promises_more_than_there_is(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-imagenet-200-npy"
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"class_names": ["a", "b"], "fingerprint": "0" * 16}))
    for split in ("train", "test"):
        for name, shape, kind in (("x", (2, 3, 64, 64), np.uint8), ("y", (2,), np.int64)):
            np.save(folder / f"{name}_{split}.npy", np.arange(2, dtype=kind) if name == "y" else np.zeros(shape, kind))
    with open(folder / "y_train.npy", "r+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)})
    with pytest.raises(CorruptFileError, match=r"tiny-imagenet-200-npy: damaged .*delete this folder"):
        load_dataset("tiny-imagenet", tmp_path)


def test_reader_that_asks_for_more_memory_than_there_is(tmp_path: Path) -> None:
    words = r"a file: damaged \(it asks for more memory than there is\); get it again"
    with pytest.raises(CorruptFileError, match=words), reading("a file: damaged"):
        raise MemoryError


# ---------------------------------------------------------------------------------------------------- grey and upright

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3


def grey_palette(values: Any = GREY) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image.putpalette([channel for value in range(256) for channel in (value, value, value)])
    return image


def with_alpha() -> Image.Image:
    image = Image.fromarray(GREY)
    image.putalpha(128)
    return image


def palette_with_transparency() -> Image.Image:
    image = grey_palette()
    image.info["transparency"] = bytes(range(256))
    return image


@pytest.mark.parametrize("make", [grey_palette, with_alpha, palette_with_transparency, lambda: Image.fromarray(GREY)])
def test_grey_pictures_are_grey(make: Callable[[], Image.Image], tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures")
    make().save(folder / "train" / "cat" / "0.png")
    dataset = load_dataset(f"folder:{folder}")
    assert dataset.channels == 1
    assert np.array_equal(dataset.x_train[0, 0], GREY)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp"])
def test_colours_stay_colours(suffix: str, tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures")
    image = grey_palette(np.where(GREY == 0, np.uint8(255), GREY))
    palette = image.getpalette()
    assert palette is not None
    palette[3 * 255 :] = [255, 0, 0]
    image.putpalette(palette)
    (image.convert("RGB") if suffix == "webp" else image).save(folder / "train" / "cat" / f"9.{suffix}", lossless=True)
    dataset = load_dataset(f"folder:{folder}")
    assert dataset.channels == 3
    assert dataset.x_train[3, :, 0, 0].tolist() == [255, 0, 0]
    assert np.array_equal(dataset.x_train[3, 1, 1:], GREY[1:])


def oriented(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY).save(path, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, GREY),
        (2, GREY[:, ::-1]),
        (3, np.rot90(GREY, 2)),
        (4, GREY[::-1]),
        (5, GREY.T),
        (6, np.rot90(GREY, -1)),
        (7, np.rot90(GREY, 2).T),
        (8, np.rot90(GREY)),
        (77, GREY),
    ],
)
def test_pictures_are_upright_as_viewers_show_them(orientation: int, shown: Any, tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures")
    oriented(folder / "train" / "cat" / "0.png", orientation)
    assert np.array_equal(load_dataset(f"folder:{folder}").x_train[0, 0], shown)


def test_damaged_orientation_is_no_orientation(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures")
    Image.fromarray(GREY).save(folder / "train" / "cat" / "0.png", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert np.array_equal(load_dataset(f"folder:{folder}").x_train[0, 0], GREY)


# ------------------------------------------------------------------------------------------------- classes and labels


def test_class_without_test_images_is_refused_in_both_forms(tmp_path: Path) -> None:
    words = r"1 of 2 classes have no test image, the first is 1 \(1\); expected some of every class, or leave these"
    with pytest.raises(CorruptFileError, match=rf"a\.npz: {words} classes out of both splits\."):
        load_dataset(f"npz:{npz(tmp_path / 'a.npz', y_test=np.zeros(4, int))}")
    folder = picture_folder(tmp_path / "pictures")
    shutil.rmtree(folder / "test" / "dog")
    with pytest.raises(CorruptFileError, match=r"pictures: class 'dog' is in train but not in test; expected the same"):
        load_dataset(f"folder:{folder}")
    (folder / "test" / "dog").mkdir()
    with pytest.raises(CorruptFileError, match=r"test/dog: no images"):
        load_dataset(f"folder:{folder}")


def test_class_without_training_images_is_refused_in_both_forms(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"1 of 2 classes have no training image, the first is 1 \(1\)"):
        load_dataset(f"npz:{npz(tmp_path / 'a.npz', y_train=np.zeros(10, int))}")
    folder = picture_folder(tmp_path / "pictures")
    shutil.rmtree(folder / "train" / "dog")
    with pytest.raises(CorruptFileError, match=r"class 'dog' is in test but not in train"):
        load_dataset(f"folder:{folder}")


def test_one_class_only_is_said_when_the_data_are_read(tmp_path: Path) -> None:
    nothing = {"y_train": np.zeros(10, int), "y_test": np.zeros(4, int)}
    words = r"holds one class \(0\); expected two or more, which condensing and testing tell apart"
    with pytest.raises(CorruptFileError, match=rf"a\.npz: {words}"):
        load_dataset(f"npz:{npz(tmp_path / 'a.npz', **nothing)}")
    with pytest.raises(CorruptFileError, match=r"pictures: holds one class \(cat\); expected two or more"):
        load_dataset(f"folder:{picture_folder(tmp_path / 'pictures', classes=('cat',))}")


@pytest.mark.parametrize("names", [{}, {"class_names": np.array(["cat", "dog"])}])
def test_labels_that_start_at_1(names: dict[str, Any], tmp_path: Path) -> None:
    labels = {"y_train": np.arange(10) % 2 + 1, "y_test": np.arange(4) % 2 + 1}
    with pytest.raises(CorruptFileError, match=r"\(labels seem to start at 1: subtract 1 from all of them\)\."):
        load_dataset(f"npz:{npz(tmp_path / 'a.npz', **labels, **names)}")


def test_class_names_are_distinct(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"a\.npz: 2 classes are called 'cat'; expected distinct names"):
        load_dataset(f"npz:{npz(tmp_path / 'a.npz', class_names=np.array(['cat', 'cat']))}")


# ---------------------------------------------------------------------------------------------- names and what is meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CIFAR10", "cifar10"),
        ("CIFAR-100", "cifar100"),
        ("FashionMNIST", "fashion-mnist"),
        ("Tiny_ImageNet", "tiny-imagenet"),
        ("Digits", "digits"),
    ],
)
def test_data_sets_by_the_names_of_others(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown data set '{name}'\. Did you mean '{meant}'\?"):
        check_dataset_name(name)


def test_paths_without_what_stands_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    npz(Path("mine.npz"))
    Path("pictures").mkdir()
    for name in ("mine.npz", "gone/other.npz", str(tmp_path / "mine.npz")):
        with pytest.raises(UsageError, match=rf"unknown data set '{name}'\. Did you mean 'npz:{name}'\?"):
            check_dataset_name(name)
    for name in ("pictures", "./pictures", "gone/pictures", str(tmp_path)):
        with pytest.raises(UsageError, match=rf"unknown data set '{name}'\. Did you mean 'folder:{name}'\?"):
            check_dataset_name(name)
    for name in ("npz:", "folder:"):
        with pytest.raises(UsageError, match=f"{name} names no file: write {name}PATH"):
            check_dataset_name(name)


@pytest.mark.parametrize(
    ("method", "name", "meant"),
    [
        ("mtt", "lr_teacher", r"student_lr \(in distill\.py\) or experts\.lr \(in buffer\.py\)"),
        ("tesla", "lr_img", r"lr_images \(for method tesla half of its value\)"),
        ("tesla", "syn_steps", "steps"),
        ("mtt", "Iteration", "iterations"),
        ("mtt", "lr-lr", "lr_student_lr"),
        ("dm", "batch_real", "real_batch"),
        ("dc", "lr_net", r"lr_network \(while condensing\) or convnet\.lr \(in the evaluation\)"),
        ("dm", "lr_net", r"convnet\.lr \(in the evaluation\)"),
        ("dm", "settings.num_eval", r"evaluation\.networks"),
        ("mtt", "data.dsa_strategy", r"data\.augmentation"),
        ("mtt", "ipc", "--ipc"),
    ],
)
def test_settings_by_the_names_of_released_code(method: str, name: str, meant: str) -> None:
    called = name.rpartition(".")[2].replace("-", "_").lower()
    with pytest.raises(
        UsageError,
        match=rf"unknown setting '{name.removeprefix('settings.')}'\. What released code "
        rf"calls {called} is here {meant}[. ]",
    ):
        resolve(method, "digits", 1, overrides=[parse_set(f"{name}=1")])


@pytest.mark.parametrize("name", ["syn_steps", "eval_it2", "wdth"])
def test_other_unknown_settings_are_told_as_before(name: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown setting '{name}'\..* Known: convnet\.augmentation, "):
        resolve("random", "digits", 1, overrides=[parse_set(f"{name}=1")])


def test_what_released_names_stand_for_exists() -> None:
    settings = {name for method in registry.names("methods") for name in setting_names(method, ["convnet"])}
    options = {option for command in (run, experts) for p in command.params for option in p.opts}
    meant = {own for here in NAMES.values() for own in here}
    assert meant <= settings | options
    assert {name for name in NAMES if name in settings} == {"dsa"}  # of CAFE alone


@pytest.mark.parametrize(
    ("assignments", "remedy"),
    [
        (["labels=last", "last_epoch=9"], "lower last_epoch"),
        (["max_start_epoch=9", "expert_epochs=1"], "lower max_start_epoch or expert_epochs"),
        (
            ["labels=last", "last_epoch=3", "max_start_epoch=9", "expert_epochs=1"],
            "lower max_start_epoch or expert_epochs",
        ),
    ],
)
def test_imported_experts_that_are_too_short(assignments: list[str], remedy: str, tmp_path: Path) -> None:
    settings = resolve("mtt", "digits", 1, preset="smoke", overrides=[parse_set(a) for a in assignments]).settings
    request = registry.load_method("mtt").expert_request(settings)
    assert request is not None
    recipe = ExpertRecipe(
        facts={}, settings=ExpertSettings(), augmentation=Augmentation(), build_network=torch.nn.Flatten, imported="x"
    )
    store = ImportedStore(tmp_path, recipe, [4, 5])
    with pytest.raises(UsageError, match=rf"epochs 0 to 9 .*imported expert 0 .*ends at 4: {remedy}\. Imported"):
        store.bounded(None, request.epochs, request.asked_by)


# ---------------------------------------------------------------------------------------------------- sets of others

WHOLE = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(10).repeat_interleave(2)
SAID: dict[str, Any] = {"dataset": "digits", "preprocessing": "standardise"}


def foreign(folder: Path, **contents: Any) -> list[Path]:
    """Write files of ``torch.save`` by their names without suffix."""
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    return [folder / f"{name}.pt" for name in contents]


@pytest.mark.parametrize("name", ["lr_best", "syn_lr_best", "learned_lr_best"])
@pytest.mark.parametrize("content", [torch.tensor(0.0123), torch.tensor([0.0123]), 0.0123])
def test_learned_rate_beside_the_images_is_used(name: str, content: object, tmp_path: Path) -> None:
    images, *_ = foreign(tmp_path, images_best=WHOLE, labels_best=LABELS, **{name: content})
    for said in (None, 0.0123):
        found, notes = import_set(images, Given(**SAID, lr=said))
        assert found.lr == pytest.approx(0.0123)
        assert f"learned rate 0.0123, read from {name}.pt" in notes
        assert found.provenance["imported"]["lr_file"] == f"{name}.pt"


@pytest.mark.parametrize("said", [{"lr": 0.02}, {"no_lr": True}])
def test_learned_rate_that_contradicts_what_is_said(said: dict[str, Any], tmp_path: Path) -> None:
    images, *_ = foreign(tmp_path, images_best=WHOLE, labels_best=LABELS, lr_best=torch.tensor(0.0123))
    with pytest.raises(UsageError, match=r"lr_best\.pt holds the learned rate 0\.0123, which contradicts --(no-)?lr"):
        import_set(images, Given(**SAID, **said))


@pytest.mark.parametrize(
    "content", [torch.zeros(3), torch.tensor(NAN), torch.tensor(-1.0), torch.tensor(1), "0.1", True]
)
def test_file_that_is_no_learned_rate(content: object, tmp_path: Path) -> None:
    images, *_ = foreign(tmp_path, images_best=WHOLE, labels_best=LABELS, lr_best=content)
    with pytest.raises((UsageError, CorruptFileError), match=r"lr_best\.pt"):
        import_set(images, Given(**SAID))


def test_files_of_one_set_named_together(tmp_path: Path) -> None:
    files = foreign(tmp_path, images_2=WHOLE[10:], images_1=WHOLE[:10], labels_2=LABELS[10:], labels_1=LABELS[:10])
    rate = foreign(tmp_path, lr_all=torch.tensor(0.5))
    found, notes = import_set([*files, *rate], Given(**SAID))
    assert torch.equal(found.images, WHOLE)
    assert torch.equal(found.labels, LABELS)
    assert found.lr == 0.5
    assert "2 files of images joined: images_1.pt, images_2.pt" in notes
    whole = foreign(tmp_path, images_best=WHOLE, labels_best=LABELS)
    assert torch.equal(import_set(whole, Given(**SAID, no_lr=True))[0].images, WHOLE)
    joined, _ = import_set(files[:2], Given(**SAID, hard_labels=True, no_lr=True))
    assert torch.equal(joined.labels, LABELS)


def test_files_that_are_no_one_set(tmp_path: Path) -> None:
    images, labels, other, small = foreign(
        tmp_path, images_1=WHOLE, labels_1=LABELS, labels_2=LABELS, images_2=WHOLE[..., :4]
    )
    for files, words in (
        ([labels, other], "0 files of images, 2 of labels"),
        ([images, labels, other], "1 files of images, 2 of labels"),
        ([images, small], "images of different sizes"),
        ([images, tmp_path / "images_3.pt"], "there is no file or folder"),
    ):
        with pytest.raises(UsageError, match=words):
            import_set(files, Given(**SAID, no_lr=True))
    with pytest.raises(UsageError, match=r"labels_1\.pt holds the labels: leave out"):
        import_set([images, labels], Given(**SAID, hard_labels=True))


@pytest.mark.parametrize("name", ["labels_best", "lr_best"])
@pytest.mark.parametrize(
    ("put", "told"), [(pipe, "is a pipe"), (endless, "is a pipe"), (Path.mkdir, "is a folder"), (nowhere, "is a link")]
)
def test_a_file_beside_the_images_that_is_none_is_named(
    name: str, put: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    images, *_ = foreign(tmp_path, images_best=WHOLE, **({} if name == "labels_best" else {"labels_best": LABELS}))
    put(tmp_path / f"{name}.pt")
    with pytest.raises(CorruptFileError, match=rf"{name}\.pt {told}"):
        import_set(images, Given(**SAID))


@pytest.mark.parametrize("labels", [LABELS[:-1], LABELS + 1, LABELS.float(), torch.zeros(20, 10)])
def test_labels_that_cannot_be_are_told_by_their_own_file(labels: torch.Tensor, tmp_path: Path) -> None:
    images, *_ = foreign(tmp_path, images_best=WHOLE, labels_best=labels)
    with pytest.raises(UsageError, match=r"labels_best\.pt: (soft )?label"):
        import_set(images, Given(**SAID, no_lr=True))


@pytest.mark.parametrize(("layout", "name"), [("tensors", "distilled.safetensors"), ("authors", "dcbench.safetensors")])
@pytest.mark.parametrize(
    ("put", "told"), [(pipe, "is a pipe"), (endless, "is a pipe"), (Path.mkdir, "is a folder"), (nowhere, "is a link")]
)
def test_the_set_of_an_export_that_is_none_is_named(
    layout: str, name: str, put: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    images, *_ = foreign(tmp_path, images_best=WHOLE, labels_best=LABELS)
    export_set(import_set(images, Given(**SAID, no_lr=True))[0], layout, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    put(tmp_path / "out" / name)
    with pytest.raises(CorruptFileError, match=rf"{name}.* {told}"):
        import_set(tmp_path / "out", Given())


def test_part_of_a_set_is_not_taken_for_a_whole(tmp_path: Path) -> None:
    part, _ = foreign(tmp_path, images_best=WHOLE[:10], labels_best=LABELS)
    with pytest.raises(UsageError, match=r"10 images and labels_best\.pt 20 labels: this is a part of a set"):
        import_set(part, Given(**SAID, hard_labels=True, no_lr=True))
    for name in ("images_part0", "images_1_of_2", "images_class3"):
        (named,) = foreign(tmp_path, **{name: WHOLE[:10]})
        with pytest.raises(UsageError, match=f"{name}.pt is a part of a set by its name: name all of its files"):
            import_set(named, Given(**SAID, hard_labels=True, no_lr=True))


def test_lists_and_buffers_get_a_sentence_that_helps(tmp_path: Path) -> None:
    pair, states, single, nested = foreign(
        tmp_path,
        images_pair=[WHOLE, LABELS],
        states=[[{"weight": WHOLE}, {"weight": WHOLE}]],
        single=[[WHOLE, LABELS], [WHOLE, LABELS]],
        nested={"weight": WHOLE},
    )
    with pytest.raises(UsageError, match=r"a list \[images, labels\]: save each on its own, torch\.save\(content\[0\]"):
        import_set(pair, Given(**SAID))
    for path, words in (
        (pair, r"a list \[images, labels\], which is a distilled set"),
        (states, "holds state dicts, where a buffer has lists of parameters: save"),
        (nested, "holds state dicts"),
        (single, "holds a single trajectory, where a buffer is a list of them"),
    ):
        with pytest.raises(CorruptFileError, match=words):
            import_experts([path], load_dataset("digits"), Workspace(tmp_path), data=DataSettings(), network=NETWORK)


NETWORK = NetworkSettings(width=4, depth=1)


def test_bit_that_flipped_in_a_file_of_torch(tmp_path: Path) -> None:
    path, images = tmp_path / "images_best.pt", torch.arange(48.0).reshape(4, 3, 2, 2)
    torch.save(images, path)
    assert torch.equal(load_torch(path), images)
    content = bytearray(path.read_bytes())
    content[content.index(images.numpy().tobytes()) + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"images_best\.pt is damaged: .*data/0 is not what its checksum says"):
        load_torch(path)
