"""Files that are whole or absent, digests that notice every changed byte, and distilled sets that are complete."""

import dataclasses
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import CorruptFileError, DcbenchError, UsageError
from dcbench_tesla.records.store import (
    atomic_path,
    content_key,
    load_tensors,
    read_json,
    read_meta,
    save_tensors,
    write_json,
    write_text,
)


def hidden(folder: Path) -> list[str]:
    """Names of everything in ``folder``, temporary files too."""
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------------------------------------------- atomic writes


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert hidden(path.parent) == ["note.txt"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the ne")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert hidden(tmp_path) == ["note.txt"]


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # the same file system, or the last step is no rename
        assert not path.exists()
    assert path.read_text() == "new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {})
        write_text(tmp_path / "b.txt", "")
    finally:
        os.umask(before)
    assert [(tmp_path / n).stat().st_mode & 0o777 for n in ("a.safetensors", "b.txt")] == [0o640, 0o640]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below" / "a.txt"
    with pytest.raises(DcbenchError, match=r"cannot write .*a\.txt: .*/file is a file, not a folder\. Choose .*--out"):
        write_text(path, "")


# ------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def write_large_text(path: Path) -> None:
    write_text(path, "x" * 100_000)


def write_large_tensor(path: Path) -> None:
    save_tensors(path, {"x": torch.zeros(100_000)}, {})


WRITERS = [write_large_text, write_large_tensor]


@pytest.mark.parametrize("write", WRITERS)
def test_full_disk_is_one_message_and_keeps_the_old_file(write: Callable[[Path], None], small_disk: Path) -> None:
    path = small_disk / "kept"
    path.write_text("old")
    with pytest.raises(
        DcbenchError, match=r"cannot write .*kept: .*No space left on device.* Free space there"
    ) as error:
        write(path)
    assert "\n" not in str(error.value)
    assert path.read_text() == "old"
    assert hidden(small_disk) == ["kept"]


def test_full_disk_without_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "kept"
    path.write_text("old")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DcbenchError, match=r"cannot write .*kept: No space left on device\. Free space there"):
        write_json(path, {})
    assert path.read_text() == "old"
    assert hidden(tmp_path) == ["kept"]


# ------------------------------------------------------------------------------------------------- tensors and JSON


def test_tensors_and_meta_come_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"part": base[:, 1], "turned": base.t(), "same": base, "bytes": base.to(torch.uint8), "one": base.sum()}
    save_tensors(tmp_path / "a.safetensors", tensors, {"lr": 0.1, "names": ["ä", "b"], "none": None})
    loaded, meta = load_tensors(tmp_path / "a.safetensors")
    assert meta == {"lr": 0.1, "names": ["ä", "b"], "none": None}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert read_meta(tmp_path / "a.safetensors")["lr"] == 0.1


def test_same_content_same_bytes(tmp_path: Path) -> None:
    a, b = torch.ones(2), torch.zeros(3)
    save_tensors(tmp_path / "1", {"a": a, "b": b}, {"x": 1, "y": 2})
    save_tensors(tmp_path / "2", {"b": b, "a": a}, {"y": 2, "x": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def reading(path: Path) -> str:
    """How reading ``path`` ends: the name of the error, or nothing."""
    try:
        load_tensors(path)
    except Exception as error:
        return type(error).__name__
    return ""


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.safetensors", tmp_path / "whole"
    save_tensors(whole, {"theta": torch.arange(5.0)}, {"format": "a test", "iteration": 12, "lr": 0.25})
    content = whole.read_bytes()
    ends: dict[str, list[bytes]] = {}
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        ends.setdefault(reading(path), []).append(content[max(0, position - 9) : position + 1])
    assert {end: where[:3] for end, where in ends.items() if end != "CorruptFileError"} == {}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"theta": torch.arange(1000.0)}, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for read in (load_tensors, read_meta):
        with pytest.raises(CorruptFileError, match=r"a\.safetensors is damaged .*--force") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(CorruptFileError, match=r"a\.safetensors was not written by dcbench"):
            load_tensors(path)
    path.write_text("not a tensor at all")
    with pytest.raises(CorruptFileError, match="damaged or not a safetensors file"):
        load_tensors(path)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "a.safetensors")


def test_damaged_json(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    write_json(path, {"b": 1, "a": [1, 2]})
    assert json.loads(path.read_text()) == read_json(path) == {"a": [1, 2], "b": 1}
    for content in (b"", path.read_bytes()[:9], b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"row\.json is not valid JSON .*Delete it"):
            read_json(path)


def test_content_key_depends_on_content_alone() -> None:
    assert content_key({"a": 1, "b": [1, 2.5]}) == content_key({"b": (1, 2.5), "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert len(content_key({})) == 16


# --------------------------------------------------------------------------------------------------- distilled sets


def standardised() -> Preprocessing:
    return Preprocessing("standardise", torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.5]))


def whitened() -> Preprocessing:
    torch.manual_seed(0)
    matrix = torch.eye(12) + 0.01 * torch.randn(12, 12)
    return Preprocessing("zca", torch.full((12,), 0.5), matrix=matrix, inverse_matrix=matrix.inverse(), eps=0.1)


def make(
    images: Tensor | None = None, labels: Tensor | None = None, preprocessing: Preprocessing | None = None
) -> DistilledSet:
    torch.manual_seed(1)
    return DistilledSet(
        images=torch.randn(4, 3, 2, 2) if images is None else images,
        labels=torch.tensor([0, 0, 1, 1]) if labels is None else labels,
        class_names=("cat", "dog"),
        preprocessing=preprocessing or standardised(),
        augmentation="flip_crop",
        lr=0.0123,
        max_value=16,
        provenance={"method": "test", "seed": 3, "nested": {"expert": 1}},
    )


PIXELS = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2) % 17
SETS = {
    "hard": make(),
    "soft": make(labels=torch.tensor([[0.9, 0.1]] * 4)),
    "pixels": make(images=PIXELS),
    "zca": make(preprocessing=whitened()),
    "zca pixels": make(images=PIXELS, preprocessing=whitened()),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("embed", [True, False])
def test_distilled_set_comes_back_whole(name: str, embed: bool, tmp_path: Path) -> None:
    (tmp_path / "preprocessing").mkdir()
    path, distilled = tmp_path / "cells" / "a" / "set.safetensors", SETS[name]
    distilled.save(path, embed_preprocessing=embed)
    loaded = DistilledSet.load(path)
    assert torch.equal(loaded.images, distilled.images)
    assert torch.equal(loaded.labels, distilled.labels)
    assert (loaded.images.dtype, loaded.labels.dtype) == (distilled.images.dtype, distilled.labels.dtype)
    for field in ("class_names", "augmentation", "lr", "max_value", "provenance"):
        assert getattr(loaded, field) == getattr(distilled, field)
    assert loaded.preprocessing.key == distilled.preprocessing.key
    assert torch.equal(loaded.pixels(), distilled.pixels())
    assert torch.equal(loaded.inputs(), distilled.inputs())
    assert hidden(tmp_path / "preprocessing") == ([] if embed else [f"{distilled.preprocessing.key}.safetensors"])


def test_pixels_and_inputs_are_two_ends_of_the_preprocessing() -> None:
    chosen = make(images=PIXELS)
    assert torch.equal(chosen.pixels(), PIXELS / 16)
    assert torch.allclose(chosen.inputs(), standardised().forward(PIXELS / 16))
    learned = make(images=standardised().forward(PIXELS / 16))
    assert torch.allclose(learned.pixels(), PIXELS / 16, atol=1e-6)


def test_whitening_is_stored_once_and_must_be_there(tmp_path: Path) -> None:
    shared = tmp_path / "preprocessing"
    shared.mkdir()
    SETS["zca"].save(tmp_path / "one.safetensors", embed_preprocessing=False)
    (file,) = shared.iterdir()
    before = file.stat().st_mtime_ns
    SETS["zca"].save(tmp_path / "two.safetensors", embed_preprocessing=False)
    assert file.stat().st_mtime_ns == before
    assert (tmp_path / "one.safetensors").stat().st_size < file.stat().st_size
    file.unlink()
    with pytest.raises(CorruptFileError, match=rf"needs the whitening preprocessing/{file.name}.* copy it"):
        DistilledSet.load(tmp_path / "one.safetensors")
    shared.rmdir()
    with pytest.raises(CorruptFileError, match="copy it"):
        DistilledSet.load(tmp_path / "two.safetensors")


def test_damaged_whitening(tmp_path: Path) -> None:
    shared = tmp_path / "preprocessing"
    shared.mkdir()
    SETS["zca"].save(tmp_path / "one.safetensors", embed_preprocessing=False)
    (file,) = shared.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptFileError, match="is damaged"):
        DistilledSet.load(tmp_path / "one.safetensors")


def test_other_file_is_no_distilled_set(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", {"x": torch.zeros(1)}, {"format": "dcbench checkpoint"})
    with pytest.raises(CorruptFileError, match="is not a distilled set of dcbench"):
        DistilledSet.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(3, 3, 2, 2), None, r"images \(N, C, H, W\) with N labels"),
        (torch.zeros(4, 12), None, r"images \(N, C, H, W\)"),
        (torch.zeros(4, 3, 2, 2, dtype=torch.float64), None, "float32 .* or uint8"),
        (None, torch.zeros(4, dtype=torch.int32), "labels must be int64"),
        (None, torch.zeros(4, 2, dtype=torch.int64), "labels must be int64"),
        (None, torch.zeros(4, 3), "soft labels of 3 classes for 2 class names"),
        (torch.full((4, 3, 2, 2), torch.nan), None, "NaN or infinity"),
        (None, torch.full((4, 2), torch.inf), "NaN or infinity"),
    ],
)
def test_parts_that_do_not_fit(images: Tensor | None, labels: Tensor | None, words: str) -> None:
    with pytest.raises((UsageError, DcbenchError), match=words):
        make(images, labels)


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), 0.0, -0.1])
def test_learning_rate_that_cannot_be_used(lr: float) -> None:
    with pytest.raises((UsageError, DcbenchError)):
        dataclasses.replace(make(), lr=lr)
