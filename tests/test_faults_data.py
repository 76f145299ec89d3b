"""What comes in from outside: damaged, hostile and unlucky data sets, distilled sets, experts and settings."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import FORMAT, DistilledSet
from dcbench_tesla.errors import CorruptFileError
from dcbench_tesla.records.store import load_tensors, save_tensors

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
    ({"class_names": ["a", "\ud800"]}, "class_names"),
    ({"class_names": ["a", "b"] * 100_000}, "twice"),
    ({"class_names": ...}, "class_names is missing"),
    ({"augmentation": "explode"}, "augmentation is 'explode'"),
    ({"augmentation": None}, "augmentation is None"),
    ({"augmentation": ["flip"]}, "augmentation"),
    ({"max_value": 0}, "max_value is 0"),
    ({"max_value": True}, "max_value is True"),
    ({"max_value": "255"}, "max_value"),
    ({"lr": 0}, "lr is 0; expected a positive number, or null"),
    ({"lr": NAN}, "lr is nan"),
    ({"lr": INF}, "lr is inf"),
    ({"lr": 10**400}, "lr is 1000"),
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
    ({"provenance__iteration": []}, r"provenance\.iteration"),
    ({"provenance__redistributable": "yes"}, r"provenance\.redistributable"),
]


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
    with pytest.raises(CorruptFileError, match=rf"{file.name} holds another whitening \({other.key}\) than its name"):
        DistilledSet.load(tmp_path / "one.safetensors")


@pytest.mark.parametrize("key", ["../secret", 7, None, "../../../../etc/passwd", "A" * 16])
def test_name_of_a_whitening_cannot_lead_out_of_its_folder(key: object, tmp_path: Path) -> None:
    (tmp_path / "preprocessing").mkdir()
    path = hostile(tmp_path / "set.safetensors", preprocessing={"shared": key})
    with pytest.raises(CorruptFileError, match=r"preprocessing\.shared is not a key of 16 hex digits"):
        DistilledSet.load(path)
