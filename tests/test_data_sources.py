"""Every named data set read from fixtures in its true layout, and every way its files can be wrong."""

import dataclasses
import gzip
import hashlib
import http.client
import io
import json
import logging
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import textwrap
import urllib.error
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcbench_tesla.data import cache, download, sources
from dcbench_tesla.data.dataset import Dataset, DatasetSource
from dcbench_tesla.data.files import load_folder, load_npz
from dcbench_tesla.data.pickles import read_batch
from dcbench_tesla.errors import CorruptFileError, DataMissingError, DcbenchError, UsageError
from tests import fixtures_data as fixtures

ALL = [
    sources.DIGITS,
    sources.FASHION_MNIST,
    sources.MNIST,
    sources.CIFAR10,
    sources.CIFAR100,
    sources.SVHN,
    sources.TINY_IMAGENET,
    sources.IMAGENET1K_64,
]
DIGITS_FINGERPRINT = "b5bd42a06afede6b"  # changes only if the split or scikit-learn's digits do
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every download fail as it does without a network, whatever this machine has."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SYSTEM_FOLDERS", {})


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: object) -> None:
    """Check that a message is one line, before lines of Python if there are any, and holds all ``parts``."""
    message, announced, code = str(error.value).partition("\nThese lines of Python convert them:\n")
    assert "\n" not in message
    assert bool(announced) == (len(code.splitlines()) in (3, 4))  # what they do: test_own_data.py
    compile(textwrap.dedent(code), "lines", "exec")
    for part in parts:
        assert str(part) in message, message


def check(dataset: Dataset, source: DatasetSource, train: int, test: int) -> None:
    """Check types, shapes and facts of a loaded set against what its source promises."""
    size = (source.channels, source.side, source.side)
    assert dataset.name == source.name
    assert (dataset.x_train.shape, dataset.x_test.shape) == ((train, *size), (test, *size))
    assert (dataset.y_train.shape, dataset.y_test.shape) == ((train,), (test,))
    assert {a.dtype for a in (dataset.x_train, dataset.x_test)} == {np.dtype(np.uint8)}
    assert {a.dtype for a in (dataset.y_train, dataset.y_test)} == {np.dtype(np.int64)}
    for array in (dataset.x_train, dataset.x_test, dataset.y_train, dataset.y_test):
        assert array.flags.writeable, "torch.from_numpy warns of read-only arrays"
    assert dataset.classes == source.classes
    assert dataset.redistributable == source.redistributable
    for numbers in (dataset.mean, dataset.std):
        assert numbers is None or len(numbers) == source.channels


# ------------------------------------------------------------------------------------------------- all sources


def test_importing_the_sources_imports_nothing_heavy() -> None:
    code = (
        "import sys, dcbench_tesla.data.sources, dcbench_tesla.data.files;"
        "print([m for m in ('torch', 'torchvision', 'numpy', 'sklearn', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_entry_points_name_the_sources() -> None:
    registered = {point.name: point.value for point in entry_points(group="dcbench.datasets")}
    for source in ALL:
        module, _, name = registered[source.name].partition(":")
        assert module == "dcbench_tesla.data.sources"
        assert getattr(sources, name) is source


@pytest.mark.parametrize("source", ALL[1:], ids=lambda source: source.name)
@pytest.mark.usefixtures("no_debian")
def test_missing_data_is_one_line_with_places_and_remedy(
    source: DatasetSource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "data"
    assert source.find(data_dir) is None
    with pytest.raises(DataMissingError) as error:
        source.load(data_dir)
    one_line(error, source.name, f"looked for {data_dir}/", "Remedy: ", source.remedy, "--data-dir", "$DCBENCH_DATA")
    assert "http" in source.remedy
    assert capfd.readouterr() == ("", "")
    assert not data_dir.exists(), "a failed download leaves nothing behind"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (
            sources.FASHION_MNIST,
            ["FashionMNIST/raw/train-images-idx3-ubyte.gz", "apt-get install dataset-fashion-mnist"],
        ),
        (sources.MNIST, ["MNIST/raw/train-images-idx3-ubyte.gz", "https://ossci-datasets"]),
        (sources.CIFAR10, ["cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz failed"]),
        (sources.CIFAR100, ["cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz failed"]),
        (sources.SVHN, ["train_32x32.mat", "http://ufldl.stanford.edu/housenumbers/train_32x32.mat failed"]),
        (sources.TINY_IMAGENET, ["tiny-imagenet-200.zip", "http://cs231n.stanford.edu/tiny-imagenet-200.zip"]),
        (sources.IMAGENET1K_64, ["Imagenet64_train_part1.zip", "https://image-net.org", "imagenet/train/<wnid>"]),
    ],
    ids=lambda value: value.name if isinstance(value, DatasetSource) else "",
)
@pytest.mark.usefixtures("no_debian")
def test_missing_data_names_files_and_addresses(source: DatasetSource, wanted: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as error:
        source.load(tmp_path)
    one_line(error, *wanted)


# --------------------------------------------------------------------------------------------------- downloads


class Response(io.BytesIO):
    """What ``urlopen`` returns, from memory."""


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], io.BytesIO]) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: answer(request.full_url))


def test_download_of_something_else_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, lambda url: Response(b"<html>please log in</html>"))
    with pytest.raises(DataMissingError) as error:
        sources.CIFAR10.load(tmp_path)
    one_line(error, "MD5", "c58f30108f718f92721af3b95e74349a", "cifar-10-python.tar.gz")
    assert list(tmp_path.iterdir()) == []


def test_download_broken_off_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(10)
            if not data:
                raise http.client.IncompleteRead(b"")
            return data

    serve(monkeypatch, lambda url: Breaking(bytes(100)))
    with pytest.raises(DataMissingError) as error:
        sources.SVHN.load(tmp_path)
    one_line(error, "IncompleteRead")
    assert list(tmp_path.iterdir()) == []


def test_download_is_checked_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fixtures.write_cifar10(tmp_path / "elsewhere")
    archive = pack(folder, tmp_path / "archive.tar.gz")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    asked: list[str] = []

    def answer(url: str) -> io.BytesIO:
        asked.append(url)
        return Response(archive.read_bytes())

    serve(monkeypatch, answer)
    source = sources._cifar(dataclasses.replace(sources._CIFAR10, md5=md5), classes=10)
    data_dir = tmp_path / "new" / "data"
    first = source.load(data_dir)
    assert source.load(data_dir).fingerprint == first.fingerprint
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"], "the second load finds the files"
    assert sorted(path.name for path in data_dir.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_silent_server_is_given_up_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true urlopen, against a server on this machine that never answers
    monkeypatch.setattr(download, "NETWORK_TIMEOUT_S", 0.2)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        files = download.Files(name="x", folders=("",), base_url=url[:-1], md5s={"x": ""}, remedy="wait")
        with pytest.raises(DataMissingError) as error:
            files.get(tmp_path)
    one_line(error, url, "timed out", "Remedy: wait.")
    assert socket.getdefaulttimeout() is None


# ------------------------------------------------------------------------------------------------------ digits


def test_digits_split_is_fixed_and_balanced(tmp_path: Path) -> None:
    data = sources.DIGITS.load(tmp_path)
    check(data, sources.DIGITS, 1442, 355)
    assert sources.DIGITS.find(tmp_path) is not None
    assert (data.max_value, int(data.x_train.max()), data.flippable) == (16, 16, False)
    assert data.mean is None
    assert np.bincount(data.y_test).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert data.fingerprint == DIGITS_FINGERPRINT


# ------------------------------------------------------------------------------------------ MNIST, Fashion-MNIST


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("source", "place"),
    [
        (sources.MNIST, "MNIST/raw"),
        (sources.MNIST, "mnist"),
        (sources.FASHION_MNIST, "FashionMNIST/raw"),
        (sources.FASHION_MNIST, "fashion-mnist"),
    ],
)
def test_idx_sets(
    source: DatasetSource, place: str, packed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fixtures.write_idx_set(tmp_path / place, packed=packed)
    assert source.find(tmp_path) == folder
    data = source.load(tmp_path)
    check(data, source, 30, 10)
    images, labels = fixtures.pictures(3, 10, 1, 28, seed=3)
    np.testing.assert_array_equal(data.x_train, images)
    np.testing.assert_array_equal(data.y_train, labels)
    assert "30 + 10 images, the original 60000 + 10000" in caplog.text


def test_mnist_facts(tmp_path: Path) -> None:
    fixtures.write_idx_set(tmp_path / "mnist")
    data = sources.MNIST.load(tmp_path)
    assert (data.mean, data.std, data.flippable, data.class_names[3]) == ((0.1307,), (0.3081,), False, "3")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"{DEBIAN} is not there (apt-get install dataset-fashion-mnist)")
def test_fashion_mnist_from_debian(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert sources.FASHION_MNIST.find(tmp_path) == DEBIAN
    data = sources.FASHION_MNIST.load(tmp_path)
    check(data, sources.FASHION_MNIST, 60_000, 10_000)
    assert (data.mean, data.std, data.flippable) == ((0.2861,), (0.3530,), True)
    assert (data.x_train / 255).mean() == pytest.approx(0.2861, abs=1e-4)
    assert data.class_names[data.y_train[0]] == "Ankle boot"
    assert caplog.text == ""


def test_data_dir_goes_before_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fixtures.write_idx_set(tmp_path / "system")
    monkeypatch.setattr(download, "SYSTEM_FOLDERS", {"fashion-mnist": (system,)})
    assert sources.FASHION_MNIST.find(tmp_path) == system
    own = fixtures.write_idx_set(tmp_path / "fashion-mnist")
    assert sources.FASHION_MNIST.find(tmp_path) == own


def test_incomplete_idx_set_names_the_missing_file(tmp_path: Path) -> None:
    folder = fixtures.write_idx_set(tmp_path / "MNIST/raw")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert sources.MNIST.find(tmp_path) is None
    with pytest.raises(DataMissingError) as error:
        sources.MNIST.load(tmp_path)
    one_line(error, folder / "t10k-labels-idx1-ubyte.gz", "mnist/t10k-labels-idx1-ubyte.gz failed")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def not_gzip(path: Path) -> None:
    path.write_bytes(b"<html>")


def repacked(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(gzip.compress(data))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, "cannot be read"),
        (not_gzip, "cannot be read"),
        (repacked(b"no idx file"), "not an IDX file"),
        (repacked(b"\0\0\x08\x03\0\0"), "not an IDX file"),
        (repacked(fixtures.idx_bytes(np.zeros((5, 28, 28)))[:-1]), "its header promises 3920"),
        (repacked(fixtures.idx_bytes(np.zeros((5, 20, 20)))), "expected (N, 28, 28)"),
    ],
)
def test_damaged_idx_file(damage: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    path = fixtures.write_idx_set(tmp_path / "mnist") / "train-images-idx3-ubyte.gz"
    damage(path)
    with pytest.raises(CorruptFileError) as error:
        sources.MNIST.load(tmp_path)
    one_line(error, path, words, "again")


def test_images_without_labels(tmp_path: Path) -> None:
    folder = fixtures.write_idx_set(tmp_path / "mnist")
    repacked(fixtures.idx_bytes(np.zeros(7)))(folder / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(CorruptFileError) as error:
        sources.MNIST.load(tmp_path)
    one_line(error, folder, "10 test images but 7 test labels")


# ------------------------------------------------------------------------------------------------------- CIFAR


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def test_cifar10(tmp_path: Path) -> None:
    folder = fixtures.write_cifar10(tmp_path, train_per_class=5, test_per_class=2)
    assert sources.CIFAR10.find(tmp_path) == folder
    data = sources.CIFAR10.load(tmp_path)
    check(data, sources.CIFAR10, 50, 20)
    images, labels = fixtures.pictures(5, 10, 3, 32)
    np.testing.assert_array_equal(data.x_train, images)
    np.testing.assert_array_equal(data.y_train, labels)
    assert data.class_names == tuple(fixtures.CIFAR10_NAMES)
    assert (data.mean, data.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert data.flippable
    assert not data.redistributable


def test_cifar100_has_fine_labels_and_cifar10s_numbers(tmp_path: Path) -> None:
    fixtures.write_cifar100(tmp_path)
    data = sources.CIFAR100.load(tmp_path)
    check(data, sources.CIFAR100, 200, 100)
    assert data.class_names[42] == "kind 42"
    assert (data.mean, data.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_cifar_archive_put_there_by_hand_is_unpacked(tmp_path: Path) -> None:
    folder = fixtures.write_cifar10(tmp_path / "elsewhere")
    archive = pack(folder, tmp_path / "cifar-10-python.tar.gz")
    assert sources.CIFAR10.find(tmp_path) == archive
    check(sources.CIFAR10.load(tmp_path), sources.CIFAR10, 50, 20)
    assert sources.CIFAR10.find(tmp_path) == tmp_path / "cifar-10-batches-py"


@pytest.mark.parametrize("damage", [truncated, not_gzip])
def test_damaged_cifar_archive(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = fixtures.write_cifar10(tmp_path / "elsewhere")
    archive = pack(folder, tmp_path / "cifar-10-python.tar.gz")
    damage(archive)
    with pytest.raises(CorruptFileError) as error:
        sources.CIFAR10.load(tmp_path)
    one_line(error, archive, "delete it", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz")


def test_cifar_archive_without_a_batch(tmp_path: Path) -> None:
    folder = fixtures.write_cifar10(tmp_path / "elsewhere")
    (folder / "data_batch_3").unlink()
    archive = pack(folder, tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(CorruptFileError) as error:
        sources.CIFAR10.load(tmp_path)
    one_line(error, archive, "cifar-10-batches-py/data_batch_3")


class Evil:
    """Unpickling this with ``pickle.load`` would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


BATCH: dict[str, Any] = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a batch"),
        (pickle.dumps(BATCH)[:-100], "not a batch"),
        (pickle.dumps([1]), "holds a list, expected a dict"),
        (pickle.dumps({"labels": [0]}), "no 'data' among its keys ['labels']"),
        (pickle.dumps({**BATCH, "labels": [0]}), "labels is int64 of shape (1,), expected 2 integers"),
        (pickle.dumps({**BATCH, "labels": [0.5, 1]}), "labels is float64"),
        (pickle.dumps({**BATCH, "data": [1]}), "data is list"),
        (pickle.dumps({**BATCH, "data": np.zeros((2, 3))}), "data is float64 of shape (2, 3), expected uint8 of shape"),
        (pickle.dumps({**BATCH, "data": np.array([[None]])}), "it asks for arrays of 'O8'"),
        (pickle.dumps({"data": Path}), "it asks for pathlib"),
    ],
)
def test_damaged_cifar_batch(content: bytes, words: str, tmp_path: Path) -> None:
    path = fixtures.write_cifar10(tmp_path) / "data_batch_2"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as error:
        sources.CIFAR10.load(tmp_path)
    one_line(error, path, words, "get it again")


def test_batch_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    with pytest.raises(CorruptFileError, match="it asks for"):
        read_batch(io.BytesIO(pickle.dumps({"data": Evil(target)})), "evil")
    assert not target.exists()


class Pointer:
    """Unpickling this with numpy's own classes makes an array of objects wherever the bytes point to."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return np.ndarray, ((1,), "O", b"A" * 8)


def test_batch_with_a_pointer_is_refused() -> None:
    with pytest.raises(CorruptFileError, match="not a batch of images"):
        read_batch(io.BytesIO(pickle.dumps({"data": Pointer()})), "pointer")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<i4", ">i4", "u1", "f8", "?"])
def test_batch_arrays_keep_type_and_order(order: Any, kind: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(kind, order=order)
    for protocol in range(6):
        read = read_batch(io.BytesIO(pickle.dumps({"data": array}, protocol=protocol)), "batch")["data"]
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype


@pytest.mark.parametrize("protocol", range(6))
def test_batches_of_every_protocol(protocol: int) -> None:
    batch = read_batch(io.BytesIO(pickle.dumps({**BATCH, "x": b"\xff"}, protocol=protocol)), "batch")
    np.testing.assert_array_equal(batch["data"], BATCH["data"])


def test_cifar_names_missing(tmp_path: Path) -> None:
    path = fixtures.write_cifar10(tmp_path) / "batches.meta"
    path.write_bytes(pickle.dumps({"label_names": ["cat"]}))
    with pytest.raises(CorruptFileError) as error:
        sources.CIFAR10.load(tmp_path)
    one_line(error, path, "no list 'label_names' of 10 names")


def test_label_out_of_range_and_class_absent(tmp_path: Path) -> None:
    folder = fixtures.write_cifar10(tmp_path)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(BATCH))
    check(sources.CIFAR10.load(tmp_path), sources.CIFAR10, 42, 2)
    (folder / "test_batch").write_bytes(pickle.dumps({**BATCH, "labels": [0, 10]}))
    with pytest.raises(CorruptFileError, match=r"test labels from 0 to 10; expected 0\.\.9 for 10 classes"):
        sources.CIFAR10.load(tmp_path)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(BATCH))
    (folder / "test_batch").write_bytes(pickle.dumps(BATCH))
    with pytest.raises(CorruptFileError, match=r"8 of 10 classes have no training image, the first is 2 \(bird\)"):
        sources.CIFAR10.load(tmp_path)


# -------------------------------------------------------------------------------------------------------- SVHN


@pytest.mark.parametrize("place", ["", "svhn"])
def test_svhn(place: str, tmp_path: Path) -> None:
    folder = fixtures.write_svhn(tmp_path / place)
    assert sources.SVHN.find(tmp_path) == folder
    data = sources.SVHN.load(tmp_path)
    check(data, sources.SVHN, 30, 10)
    images, labels = fixtures.pictures(3, 10, 3, 32, seed=3)
    np.testing.assert_array_equal(data.x_train, images)
    np.testing.assert_array_equal(data.y_train, labels)
    assert not data.flippable
    assert (data.mean, data.std) == ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))


def test_damaged_svhn(tmp_path: Path) -> None:
    from scipy.io import savemat  # type: ignore[import-untyped]

    path = fixtures.write_svhn(tmp_path) / "train_32x32.mat"
    truncated(path)
    with pytest.raises(CorruptFileError) as error:
        sources.SVHN.load(tmp_path)
    one_line(error, path, "not SVHN's .mat file, or damaged", "get it again")
    savemat(path, {"X": np.zeros((2, 2)), "y": np.zeros((1, 1))})
    with pytest.raises(CorruptFileError) as error:
        sources.SVHN.load(tmp_path)
    one_line(error, path, "expected X uint8 (32, 32, 3, N) and y (N, 1)")


# ----------------------------------------------------------------------------------------------- Tiny-ImageNet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_tiny_imagenet(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """Return a data folder of its own, where files may be added and taken away."""
    shutil.copytree(tiny, tmp_path / tiny.name)
    return tmp_path / tiny.name


def test_tiny_imagenet_folder_and_zip_are_the_same(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200").symlink_to(tiny)
    (tmp_path / "other").mkdir()
    archive = fixtures.zip_folder(tiny, tmp_path / "other" / "tiny-imagenet-200.zip")
    assert sources.TINY_IMAGENET.find(tmp_path) == tmp_path / "tiny-imagenet-200"
    assert sources.TINY_IMAGENET.find(tmp_path / "other") == archive
    data = sources.TINY_IMAGENET.load(tmp_path)
    check(data, sources.TINY_IMAGENET, 200, 200)
    assert data.fingerprint == sources.TINY_IMAGENET.load(tmp_path / "other").fingerprint
    wnids = sorted(fixtures.tiny_wnids())
    assert data.class_names[7] == f"name of {wnids[7]}"
    assert data.y_train.tolist() == list(range(200)), "classes are numbered by sorted WordNet ids"
    true = Image.open(next((tiny / "train" / wnids[7] / "images").iterdir()))
    np.testing.assert_array_equal(data.x_train[7], np.asarray(true.convert("RGB")).transpose(2, 0, 1))


def test_tiny_imagenet_is_decoded_once(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    link = tmp_path / "tiny-imagenet-200"
    link.symlink_to(tiny)
    first = sources.TINY_IMAGENET.load(tmp_path)
    assert "decoding" in caplog.text
    caplog.clear()
    link.unlink()
    cache = tmp_path / "tiny-imagenet-200-npy"
    assert sources.TINY_IMAGENET.find(tmp_path) == cache
    again = sources.TINY_IMAGENET.load(tmp_path)
    assert "decoding" not in caplog.text
    assert isinstance(again.x_train, np.memmap)
    assert again.fingerprint == first.fingerprint
    truncated(cache / "x_train.npy")
    with pytest.raises(CorruptFileError) as error:
        sources.TINY_IMAGENET.load(tmp_path)
    one_line(error, cache, "delete this folder")


def test_fingerprint_of_a_cache_is_kept_and_equals_the_computed_one(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200").symlink_to(tiny)
    data = sources.TINY_IMAGENET.load(tmp_path)
    meta = json.loads((tmp_path / "tiny-imagenet-200-npy" / "meta.json").read_text())
    assert meta["fingerprint"] == data.known_fingerprint == data.fingerprint
    assert dataclasses.replace(data, known_fingerprint="").fingerprint == data.fingerprint


def test_writing_to_a_mapped_image_leaves_its_file_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200").symlink_to(tiny)
    data = sources.TINY_IMAGENET.load(tmp_path)
    before = int(data.x_train[0, 0, 0, 0])
    data.x_train[0, 0, 0, 0] = before ^ 255
    assert sources.TINY_IMAGENET.load(tmp_path).x_train[0, 0, 0, 0] == before


def test_cache_larger_than_memory_is_mapped_read_only(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-imagenet-200").symlink_to(tiny)
    load = np.load

    def small_machine(path: Path, mmap_mode: Any = None) -> object:
        if mmap_mode == "c":
            raise OSError(12, "Cannot allocate memory")
        return load(path, mmap_mode=mmap_mode)

    monkeypatch.setattr(np, "load", small_machine)
    data = sources.TINY_IMAGENET.load(tmp_path)
    assert isinstance(data.x_train, np.memmap)
    assert not data.x_train.flags.writeable


def test_zip_with_a_member_outside_is_refused(tiny: Path, tmp_path: Path) -> None:
    archive = fixtures.zip_folder(tiny, tmp_path / "tiny-imagenet-200.zip")
    with zipfile.ZipFile(archive, "a") as target:
        target.writestr("tiny-imagenet-200/../../evil", b"")
    with pytest.raises(CorruptFileError) as error:
        sources.TINY_IMAGENET.load(tmp_path)
    one_line(error, archive, "refused", "../../evil")
    assert not (tmp_path / "tiny-imagenet-200-npy").exists()


def test_truncated_zip(tiny: Path, tmp_path: Path) -> None:
    archive = fixtures.zip_folder(tiny, tmp_path / "tiny-imagenet-200.zip")
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(CorruptFileError) as error:
        sources.TINY_IMAGENET.load(tmp_path)
    one_line(error, archive, "not a zip archive, or cut short")


def test_tiny_imagenet_with_parts_missing(tiny_copy: Path) -> None:
    def message() -> str:
        with pytest.raises(CorruptFileError) as error:
            sources.TINY_IMAGENET.load(tiny_copy.parent)
        one_line(error, tiny_copy)
        left = {path.name for path in tiny_copy.parent.iterdir()}
        assert left <= {tiny_copy.name, "tiny-imagenet-200-npy.lock"}, "a failed decode leaves nothing behind"
        return str(error.value)

    image = next((tiny_copy / "train" / "n00000014" / "images").iterdir())
    data = image.read_bytes()
    image.write_bytes(data[:-300])
    assert f"{image}: cannot be read as an image" in message()
    fixtures.write_image(image, np.zeros((3, 32, 64), np.uint8))
    assert f"{image}: 64 x 32 pixels, expected 64 x 64" in message()
    image.unlink()
    assert "no training images of 1 classes (n00000014)" in message()
    image.write_bytes(data)
    (tiny_copy / "val" / "images" / "val_3.JPEG").unlink()
    assert "names 'val_3.JPEG' of class" in message()
    annotations = tiny_copy / "val" / "val_annotations.txt"
    annotations.write_text("")
    assert "no validation images" in message()
    annotations.unlink()
    assert "val/val_annotations.txt is missing" in message()
    (tiny_copy / "wnids.txt").write_text("n00000001\n")
    assert "names 1 classes, expected 200" in message()


def test_two_at_once_decode_once(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "tiny-imagenet-200").symlink_to(tiny)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(sources.TINY_IMAGENET.load, [tmp_path] * 2)
    assert first.fingerprint == second.fingerprint
    assert caplog.text.count("decoding") == 2, "once train and once val"


def test_cache_that_cannot_be_written(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny-imagenet-200").symlink_to(tiny)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write_arrays", full)
    with pytest.raises(DcbenchError) as error:
        sources.TINY_IMAGENET.load(tmp_path)
    one_line(error, tmp_path / "tiny-imagenet-200-npy", "No space left on device", "--data-dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200-npy.lock"]


# -------------------------------------------------------------------------------------------- ImageNet-1K, 64 x 64


@pytest.fixture(scope="module")
def batches() -> dict[str, dict[str, Any]]:
    return fixtures.imagenet_batches()


def put_pickles(folder: Path, batches: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in batches.items():
        (folder / name).write_bytes(pickle.dumps(content))


def put_npz(folder: Path, batches: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in batches.items():
        np.savez(folder / f"{name}.npz", **content)


def put_zips(data_dir: Path, batches: dict[str, dict[str, Any]], suffix: str = "") -> None:
    """Write the release's three archives: batches 1 to 5, batches 6 to 10, validation."""
    names = list(batches)
    parts = {"train_part1": names[:5], "train_part2": names[5:10], "val": names[10:]}
    for part, members in parts.items():
        stem = f"Imagenet64_{part}{suffix}"
        folder = data_dir / "unpacked" / stem
        (put_npz if suffix else put_pickles)(folder, {name: batches[name] for name in members})
        fixtures.zip_folder(folder, data_dir / f"{stem}.zip")


@pytest.mark.parametrize(
    ("put", "found"),
    [
        (lambda d, b: put_pickles(d / "imagenet64", b), "imagenet64/train_data_batch_1"),
        (put_pickles, "train_data_batch_1"),
        (lambda d, b: put_npz(d / "Imagenet64_npz", b), "Imagenet64_npz/train_data_batch_1.npz"),
        (put_zips, "Imagenet64_train_part1.zip"),
        (lambda d, b: put_zips(d, b, "_npz"), "Imagenet64_train_part1_npz.zip"),
    ],
    ids=["imagenet64", "data_dir", "npz", "zip", "npz-zip"],
)
def test_imagenet_batches(
    put: Callable[[Path, dict[str, dict[str, Any]]], None],
    found: str,
    tmp_path: Path,
    batches: dict[str, dict[str, Any]],
) -> None:
    put(tmp_path, batches)
    assert sources.IMAGENET1K_64.find(tmp_path) == tmp_path / found
    data = sources.IMAGENET1K_64.load(tmp_path)
    check(data, sources.IMAGENET1K_64, 1000, 1000)
    assert isinstance(data.x_train, np.memmap)
    np.testing.assert_array_equal(data.x_train[123].ravel(), batches["train_data_batch_2"]["data"][23])
    assert data.y_train.tolist() == list(range(1000))
    assert (data.class_names[0], data.class_names[-1]) == ("1", "1000")
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert sources.IMAGENET1K_64.find(tmp_path) == tmp_path / "imagenet1k-64-npy"


def test_imagenet_names_from_the_releases_map(tmp_path: Path, batches: dict[str, dict[str, Any]]) -> None:
    put_pickles(tmp_path, batches)
    lines = [f"n{9999 - number:08d} {number} name_{number}\n" for number in range(1, 1001)]
    (tmp_path / "map_clsloc.txt").write_text("".join(lines))
    assert sources.IMAGENET1K_64.load(tmp_path).class_names[:2] == ("n00009998", "n00009997")


def test_imagenet_batches_missing_or_wrong(tmp_path: Path, batches: dict[str, dict[str, Any]]) -> None:
    put_pickles(tmp_path, batches)
    path = tmp_path / "val_data"

    path.write_bytes(pickle.dumps({**batches["val_data"], "labels": [0] * 1000}))
    with pytest.raises(CorruptFileError) as error:
        sources.IMAGENET1K_64.load(tmp_path)
    one_line(error, path, "labels from 0 to 0, expected labels 1..1000")
    path.write_bytes(pickle.dumps({"data": np.zeros((0, 12288), np.uint8), "labels": np.zeros(0, int)}))
    with pytest.raises(CorruptFileError) as error:
        sources.IMAGENET1K_64.load(tmp_path)
    one_line(error, path, "no images")
    path.write_bytes(pickle.dumps({"data": Evil(tmp_path / "touched")}))
    with pytest.raises(CorruptFileError) as error:
        sources.IMAGENET1K_64.load(tmp_path)
    one_line(error, path, "it asks for")
    assert not (tmp_path / "touched").exists()
    path.unlink()
    (tmp_path / "train_data_batch_7").unlink()
    with pytest.raises(DataMissingError) as missing:
        sources.IMAGENET1K_64.load(tmp_path)
    one_line(missing, "imagenet1k-64: train_data_batch_7, val_data: not found", tmp_path, "https://image-net.org")
    assert not list(tmp_path.glob("imagenet1k-64-npy*/"))


def test_imagenet_zip_damaged_inside(tmp_path: Path, batches: dict[str, dict[str, Any]]) -> None:
    for suffix in ("", "_npz"):
        data_dir = tmp_path / f"data{suffix}"
        put_zips(data_dir, batches, suffix)
        archive = data_dir / f"Imagenet64_val{suffix}.zip"
        data = bytearray(archive.read_bytes())
        data[len(data) // 2] ^= 0xFF
        archive.write_bytes(data)
        with pytest.raises(CorruptFileError) as error:
            sources.IMAGENET1K_64.load(data_dir)
        one_line(error, archive, "CRC")


def test_imagenet_folder_is_box_filtered(tmp_path: Path) -> None:
    folder = fixtures.write_imagenet_folder(tmp_path)
    assert sources.IMAGENET1K_64.find(tmp_path) == folder / "train"
    data = sources.IMAGENET1K_64.load(tmp_path)
    check(data, sources.IMAGENET1K_64, 1000, 1000)
    assert data.class_names[5] == "n00000005"
    true = Image.open(folder / "train" / "n00000005" / "n00000005_1.JPEG").resize((64, 64), Image.Resampling.BOX)
    np.testing.assert_array_equal(data.x_train[5], np.asarray(true).transpose(2, 0, 1))


def test_part_of_imagenet_is_refused(tmp_path: Path) -> None:
    folder = fixtures.write_imagenet_folder(tmp_path, classes=3)
    with pytest.raises(CorruptFileError) as error:
        sources.IMAGENET1K_64.load(tmp_path)
    one_line(error, folder / "train", "3 class folders with images, expected 1000", "folder:PATH")


def test_flat_validation_folder_is_refused(tmp_path: Path) -> None:
    folder = fixtures.write_imagenet_folder(tmp_path)
    image = next((folder / "val" / "n00000000").iterdir())
    image.rename(folder / "val" / image.name)
    with pytest.raises(CorruptFileError) as error:
        sources.IMAGENET1K_64.load(tmp_path)
    one_line(error, folder / "val" / image.name, "not in a folder of one of train's classes")


# ---------------------------------------------------------------------------------------------------- npz:PATH


def save(path: Path, **changes: Any) -> Path:
    """Write a sound archive with ``changes``; a key set to ``...`` is left out."""
    arrays = {key: value for key, value in {**fixtures.npz_arrays(), **changes}.items() if value is not ...}
    np.savez(path, **arrays)
    return path


def test_npz(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz")
    data = load_npz(path)
    arrays = fixtures.npz_arrays()
    assert (data.name, data.class_names) == ("npz:mine", ("0", "1", "2"))
    np.testing.assert_array_equal(data.x_train.transpose(0, 2, 3, 1), arrays["x_train"])
    np.testing.assert_array_equal(data.y_test, arrays["y_test"])
    assert data.y_train.dtype == np.int64
    assert data.x_train.flags.c_contiguous
    assert (data.mean, data.std, data.flippable, data.redistributable) == (None, None, False, False)


def test_npz_with_everything(tmp_path: Path) -> None:
    extra = {"class_names": np.array(["a", "b", "c"]), "mean": np.array([0.5, 0.4, 0.3]), "std": np.ones(3)}
    flags = {"flippable": np.array(True), "redistributable": np.array(True), "unknown": np.arange(3)}
    flags |= {"max_value": np.array(255)}
    data = load_npz(save(tmp_path / "all.npz", y_train=np.array([0, 1, 2, 0, 1, 2], np.uint8), **extra, **flags))
    assert (data.class_names, data.mean, data.std) == (("a", "b", "c"), (0.5, 0.4, 0.3), (1.0, 1.0, 1.0))
    assert (data.flippable, data.redistributable, data.max_value) == (True, True, 255)


def test_npz_grey(tmp_path: Path) -> None:
    arrays = fixtures.npz_arrays(channels=1)
    flat = {key: value[..., 0] for key, value in arrays.items() if key.startswith("x")}
    data = load_npz(save(tmp_path / "grey.npz", **flat))
    assert data.x_train.shape == (6, 1, 8, 8)
    assert data.fingerprint == load_npz(save(tmp_path / "grey4.npz", **arrays)).fingerprint


X = fixtures.npz_arrays()["x_train"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_test": ..., "y_test": ...}, "lacks x_test, y_test, found x_train, y_train; expected x_train, y_train"),
        ({"x_train": X.astype(np.float32)}, "x_train is float32 of shape (6, 8, 8, 3); expected uint8"),
        ({"x_train": X[0, 0]}, "x_train is uint8 of shape (8, 3); expected uint8 N x H x W x C"),
        ({"x_train": X[:, :, :7]}, "of shape (6, 8, 7, 3); expected uint8 N x H x W x C or N x H x W, H = W"),
        ({"x_train": X[..., :2]}, "C 1 or 3"),
        ({"x_train": X[:, :0, :0]}, "of shape (6, 0, 0, 3)"),
        ({"x_train": X.transpose(0, 3, 1, 2)}, "looks like N x C x H x W: transpose(0, 2, 3, 1) first"),
        ({"x_test": X[:, :4, :4]}, "x_train has images of 8 x 8 x 3, x_test of 4 x 4 x 3"),
        ({"x_test": X[..., :1]}, "x_test of 8 x 8 x 1"),
        ({"x_train": X[:0], "y_train": np.zeros(0, int)}, "highest label 2 with 0 training images"),
        ({"x_test": X[:0], "y_test": np.zeros(0, int)}, "no test images"),
        ({"y_train": np.zeros(6)}, "y_train is float64 of shape (6,); expected integers of shape (N,)"),
        ({"y_train": np.zeros((6, 1), int)}, "y_train is int64 of shape (6, 1)"),
        ({"y_train": np.zeros(5, int)}, "6 train images but 5 train labels"),
        ({"y_train": np.array([-1, 0, 1, 2, 0, 1])}, "train labels from -1 to 2; expected 0..2"),
        ({"y_test": np.array([0, 1, 10**12])}, "highest label 1000000000000 with 6 training images"),
        ({"y_train": np.array([0, 2, 0, 2, 0, 2])}, "1 of 3 classes have no training image, the first is 1 (1)"),
        ({"class_names": np.array(["a", "b"])}, "train labels from 0 to 2; expected 0..1 for 2 classes"),
        ({"class_names": np.array([1, 2, 3])}, "class_names is int64 of shape (3,); expected strings"),
        ({"class_names": np.array(["a", None, "c"], object)}, "class_names is an object array"),
        ({"x_train": np.array([None])}, "x_train is an object array"),
        ({"mean": np.ones(3)}, "std is missing; expected mean and std together, 3 finite"),
        ({"mean": np.ones(2), "std": np.ones(3)}, "mean is float64 of shape (2,)"),
        ({"mean": np.full(3, np.nan), "std": np.ones(3)}, "mean is float64 of shape (3,)"),
        ({"mean": np.ones(3), "std": np.zeros(3)}, "expected numbers above 0"),
        ({"redistributable": np.array([True])}, "redistributable is bool of shape (1,); expected one bool"),
        ({"flippable": np.array("no")}, "flippable is <U2 of shape (); expected one bool"),
        ({"max_value": np.array(1)}, "max_value is int64 of shape (); expected one integer from the largest pixel, "),
        ({"max_value": np.array(256)}, " to 255"),
        ({"max_value": np.array([255])}, "max_value is int64 of shape (1,)"),
    ],
)
def test_npz_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = save(tmp_path / "bad.npz", **changes)
    with pytest.raises(CorruptFileError) as error:
        load_npz(path)
    one_line(error, path, words)


def test_npz_not_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    sound = save(tmp_path / "good.npz").read_bytes()
    for content in (b"", b"no archive", sound[:-50], pickle.dumps({"x_train": Evil(tmp_path / "touched")})):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError) as error:
            load_npz(path)
        one_line(error, path, "not a .npz archive, or cut short")
    damaged = bytearray(sound)
    damaged[300] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(CorruptFileError) as error:
        load_npz(path)
    one_line(error, path, "damaged", "CRC")
    assert not (tmp_path / "touched").exists()


def test_npz_with_a_member_that_is_no_array(tmp_path: Path) -> None:
    path = save(tmp_path / "bad.npz", y_test=...)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y_test", "0 1 2")
    with pytest.raises(CorruptFileError) as error:
        load_npz(path)
    one_line(error, path, "y_test is not an array")


def test_npz_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as missing:
        load_npz(tmp_path / "none.npz")
    one_line(missing, tmp_path / "none.npz", "no such file", "numpy.savez")
    with pytest.raises(UsageError) as folder:
        load_npz(tmp_path)
    one_line(folder, tmp_path, f"write folder:{tmp_path}")


# ------------------------------------------------------------------------------------------------- folder:PATH


@pytest.mark.parametrize("test_split", ["test", "val"])
def test_folder(test_split: str, tmp_path: Path) -> None:
    root = fixtures.write_image_folder(tmp_path / "pets", test=test_split)
    (root / "train" / ".DS_Store").write_bytes(b"")
    (root / "train" / "cat" / ".hidden").write_bytes(b"")
    data = load_folder(root)
    assert (data.name, data.class_names, data.redistributable) == ("folder:pets", ("cat", "dog"), False)
    assert not data.flippable
    assert (data.x_train.shape, data.x_test.shape) == ((4, 3, 8, 8), (2, 3, 8, 8))
    assert data.y_train.tolist() == [0, 0, 1, 1]
    images, _ = fixtures.pictures(2, 2, 3, 8, seed=2)
    np.testing.assert_array_equal(data.x_train, images[[0, 2, 1, 3]])


def test_folder_given_as_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fixtures.write_image_folder(tmp_path / "pets"))
    assert load_folder(Path(".")).name == "folder:pets"


def test_folder_grey_only_where_all_are(tmp_path: Path) -> None:
    root = fixtures.write_image_folder(tmp_path, channels=1)
    Image.fromarray(np.eye(8, dtype=bool)).save(root / "train" / "cat" / "z.png")  # mode 1
    data = load_folder(root)
    assert data.x_train.shape == (5, 1, 8, 8)
    assert set(data.x_train[2].ravel()) == {0, 255}
    fixtures.write_image(root / "test" / "cat" / "colour.png", np.zeros((3, 8, 8), np.uint8))
    mixed = load_folder(root)
    assert mixed.x_train.shape == (5, 3, 8, 8)
    np.testing.assert_array_equal(mixed.x_train, np.repeat(data.x_train, 3, axis=1))


def test_folder_reads_every_format(tmp_path: Path) -> None:
    root = fixtures.write_image_folder(tmp_path)
    for suffix in ("jpg", "JPEG", "webp", "bmp"):
        fixtures.write_image(root / "train" / "cat" / f"a.{suffix}", np.full((3, 8, 8), 77, np.uint8))
    Image.new("RGBA", (8, 8), (77, 77, 77, 0)).save(root / "train" / "cat" / "b.png")
    Image.new("P", (8, 8)).save(root / "train" / "cat" / "c.png")
    assert load_folder(root).x_train.shape == (10, 3, 8, 8)


def wrong_size(root: Path) -> Path:
    fixtures.write_image(root / "test" / "dog" / "x.png", np.zeros((3, 9, 9), np.uint8))
    return root / "test" / "dog" / "x.png"


def not_square(root: Path) -> Path:
    fixtures.write_image(root / "train" / "cat" / "0.png", np.zeros((3, 8, 9), np.uint8))
    return root / "train" / "cat" / "0.png"


def sixteen_bits(root: Path) -> Path:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "train" / "cat" / "0.png")
    return root / "train" / "cat" / "0.png"


def cut_image(root: Path) -> Path:
    path = root / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-100])
    return path


def no_image(root: Path) -> Path:
    (root / "train" / "dog" / "1.png").write_bytes(b"text")
    return root / "train" / "dog" / "1.png"


def other_file(root: Path) -> Path:
    (root / "train" / "dog" / "notes.txt").write_text("text")
    return root / "train" / "dog" / "notes.txt"


def nested(root: Path) -> Path:
    (root / "train" / "dog" / "puppies.png").mkdir()
    return root / "train" / "dog" / "puppies.png"


def loose(root: Path) -> Path:
    fixtures.write_image(root / "train" / "x.png", np.zeros((3, 8, 8), np.uint8))
    return root / "train" / "x.png"


def empty_class(root: Path) -> Path:
    (root / "train" / "cow").mkdir()
    return root / "train" / "cow"


def extra_class(root: Path) -> Path:
    fixtures.write_image(root / "train" / "cow" / "x.png", np.zeros((3, 8, 8), np.uint8))
    return root


def no_classes(root: Path) -> Path:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    return root / "train"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (wrong_size, ["9 x 9 pixels, where", "0.png has 8 x 8", "one square size: resize the folder first"]),
        (not_square, ["9 x 8 pixels; expected one square size", "resize the folder first"]),
        (sixteen_bits, ["more than 8 bits a channel (mode I;16); convert"]),
        (cut_image, ["cannot be read as an image", "replace or remove it"]),
        (no_image, ["cannot be read as an image (not an image)"]),
        (other_file, ["not an image; expected files ending in .png, .jpg, .jpeg, .webp, .bmp"]),
        (nested, ["not an image"]),
        (loose, ["a file beside the class folders; expected train/<class>/<image>"]),
        (empty_class, ["no images"]),
        (extra_class, ["class 'cow' is in train but not in test"]),
        (no_classes, ["empty; expected train/<class>/<image>"]),
    ],
)
def test_folder_refused(damage: Callable[[Path], Path], words: list[str], tmp_path: Path) -> None:
    root = fixtures.write_image_folder(tmp_path / "pets")
    culprit = damage(root)
    with pytest.raises(CorruptFileError) as error:
        load_folder(root)
    one_line(error, culprit, *words)


def test_folder_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as missing:
        load_folder(tmp_path / "none")
    one_line(missing, tmp_path / "none", "no such folder; expected one with train/<class>/<image>")
    with pytest.raises(DataMissingError) as no_train:
        load_folder(tmp_path)
    one_line(no_train, tmp_path / "train", "expected train/<class>/<image>")
    path = save(tmp_path / "mine.npz")
    with pytest.raises(UsageError) as a_file:
        load_folder(path)
    one_line(a_file, path, "is a file", "npz:PATH")
