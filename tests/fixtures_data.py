"""Small data sets written to disk in the layouts the public archives have, for tests without a network.

Pictures are a colour of their class with noise, so that a network can learn them. Labels go round the classes.
"""

import gzip
import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pictures(per_class: int, classes: int, channels: int, side: int, seed: int = 0) -> tuple[Pixels, Labels]:
    """Draw learnable uint8 images (N, C, H, W) and labels (N,), N = per_class * classes."""
    random = np.random.default_rng(seed)
    colours = np.random.default_rng(classes).integers(40, 216, (classes, channels, 1, 1))  # train's and test's agree
    labels = np.tile(np.arange(classes), per_class)
    noise = random.integers(-40, 40, (len(labels), channels, side, side))
    return (colours[labels] + noise).astype(np.uint8), labels.astype(np.int64)


def python2_pickle(content: Mapping[str, Any]) -> bytes:
    """Pickle as Python 2 did for the public archives: byte strings for text, arrays by numpy.core.multiarray."""

    def save_text(pickler: Any, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        pickler.write(b"T" + len(data).to_bytes(4, "little") + data)  # the opcode BINSTRING
        pickler.memoize(text)

    dispatch = {**pickle._Pickler.dispatch, str: save_text, bytes: save_text}
    python2_pickler: Any = type("Python2Pickler", (pickle._Pickler,), {"dispatch": dispatch})
    file = io.BytesIO()
    python2_pickler(file, protocol=2).dump(dict(content))
    return file.getvalue().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")


def write_cifar10(root: Path, train_per_class: int = 5, test_per_class: int = 2, seed: int = 0) -> Path:
    """Write ``root/cifar-10-batches-py`` with its five training batches, test batch and names; returns the folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    x, y = pictures(train_per_class, 10, 3, 32, seed)
    parts = np.array_split(np.arange(len(y)), 5)
    batches = {f"data_batch_{number}": (x[part], y[part]) for number, part in enumerate(parts, 1)}
    batches["test_batch"] = pictures(test_per_class, 10, 3, 32, seed + 1)
    for name, (images, labels) in batches.items():
        content = {"batch_label": name, "labels": labels.tolist(), "data": images.reshape(len(images), -1)}
        content["filenames"] = [f"picture_{number:05d}.png" for number in range(len(labels))]
        (folder / name).write_bytes(python2_pickle(content))
    meta = {"num_cases_per_batch": 10000, "label_names": CIFAR10_NAMES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return folder


def write_cifar100(root: Path, train_per_class: int = 2, test_per_class: int = 1, seed: int = 0) -> Path:
    """Write ``root/cifar-100-python``: train, test, meta; returns the folder."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, per_class in (("train", train_per_class), ("test", test_per_class)):
        images, labels = pictures(per_class, 100, 3, 32, seed + (name == "test"))
        content = {"fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()}
        (folder / name).write_bytes(python2_pickle({**content, "data": images.reshape(len(images), -1)}))
    names = [f"kind {label}" for label in range(100)]
    meta = {"fine_label_names": names, "coarse_label_names": [f"group {label}" for label in range(20)]}
    (folder / "meta").write_bytes(python2_pickle(meta))
    return folder


def idx_bytes(array: NDArray[np.generic]) -> bytes:
    """Write unsigned bytes of any shape as an IDX file."""
    head = b"\0\0\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx_set(folder: Path, train_per_class: int = 3, test_per_class: int = 1, packed: bool = True) -> Path:
    """Write MNIST's four files into ``folder``, gzipped if ``packed``; returns the folder."""
    folder.mkdir(parents=True)
    for split, per_class in (("train", train_per_class), ("t10k", test_per_class)):
        images, labels = pictures(per_class, 10, 1, 28, seed=per_class)
        for name, array in ((f"{split}-images-idx3-ubyte", images[:, 0]), (f"{split}-labels-idx1-ubyte", labels)):
            data = idx_bytes(array)
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return folder


def write_svhn(folder: Path, train_per_class: int = 3, test_per_class: int = 1) -> Path:
    """Write ``train_32x32.mat`` and ``test_32x32.mat``, where class 10 is the digit 0; returns the folder."""
    from scipy.io import savemat  # type: ignore[import-untyped]

    folder.mkdir(parents=True, exist_ok=True)
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        images, labels = pictures(per_class, 10, 3, 32, seed=per_class)
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, np.newaxis]
        savemat(folder / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": y}, do_compression=True)
    return folder


def write_image(path: Path, pixels: Pixels, **options: Any) -> None:
    """Write one image (C, H, W) in the format the name of ``path`` asks for (``.JPEG`` too)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(array)).save(path, **options)


def tiny_wnids() -> list[str]:
    """Return 200 WordNet ids, not sorted, as in the public archive."""
    return [f"n{(label * 7) % 200:08d}" for label in range(200)]


def write_tiny_imagenet(root: Path, train_per_class: int = 1) -> Path:
    """Write ``root/tiny-imagenet-200`` with 200 classes and one validation image each; returns the folder."""
    folder = root / "tiny-imagenet-200"
    images, labels = pictures(train_per_class, 200, 3, 64)
    wnids = tiny_wnids()
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        shape = pixels[:1] if number == 0 else pixels  # the archive has a few grey ones
        write_image(folder / "train" / wnids[label] / "images" / f"{wnids[label]}_{number}.JPEG", shape)
    lines = []
    for label, pixels in enumerate(pictures(1, 200, 3, 64, seed=1)[0]):
        write_image(folder / "val" / "images" / f"val_{label}.JPEG", pixels)
        lines.append(f"val_{label}.JPEG\t{wnids[label]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("".join(f"{wnid}\tname of {wnid}, another name\n" for wnid in wnids))
    return folder


def zip_folder(folder: Path, archive: Path) -> Path:
    """Pack ``folder``, with its own name as first folder, into the zip ``archive``."""
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(folder.rglob("*")):
            target.write(path, path.relative_to(folder.parent))
    return archive


def write_imagenet_folder(root: Path, classes: int = 1000) -> Path:
    """Write ``root/imagenet/{train,val}/<wnid>/*.JPEG``, one image of 70 x 90 a class and split; returns the folder."""
    folder = root / "imagenet"
    pixels = np.arange(3 * 70 * 90, dtype=np.uint8).reshape(3, 70, 90)
    for label in range(classes):
        wnid = f"n{label:08d}"
        write_image(folder / "train" / wnid / f"{wnid}_1.JPEG", pixels)
        write_image(folder / "val" / wnid / f"ILSVRC2012_val_{label:08d}.JPEG", pixels)
    return folder


def imagenet_batches() -> dict[str, dict[str, Any]]:
    """Return the batches of the 64 x 64 release: ten of train, 100 classes each, and ``val_data`` with all 1000."""
    pixels, _ = pictures(1, 1000, 3, 64)
    rows = pixels.reshape(1000, -1)
    batches: dict[str, dict[str, Any]] = {}
    for number in range(10):
        labels = np.arange(100 * number, 100 * number + 100)
        content = {"data": rows[labels], "labels": (labels + 1).tolist(), "mean": rows[0]}
        batches[f"train_data_batch_{number + 1}"] = content
    batches["val_data"] = {"data": rows, "labels": list(range(1, 1001))}
    return batches


def npz_arrays(side: int = 8, channels: int = 3, classes: int = 3, train_per_class: int = 2) -> dict[str, Any]:
    """Return the arrays of a sound ``npz:`` archive; images N x H x W x C."""
    x_train, y_train = pictures(train_per_class, classes, channels, side)
    x_test, y_test = pictures(1, classes, channels, side, seed=1)
    x_train, x_test = x_train.transpose(0, 2, 3, 1), x_test.transpose(0, 2, 3, 1)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def write_image_folder(
    root: Path, classes: Sequence[str] = ("cat", "dog"), side: int = 8, channels: int = 3, test: str = "test"
) -> Path:
    """Write ``root/train/<class>/*.png`` (two a class) and ``root/<test>/<class>/*.png`` (one); returns ``root``."""
    for split, per_class in (("train", 2), (test, 1)):
        images, labels = pictures(per_class, len(classes), channels, side, seed=per_class)
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            write_image(root / split / classes[label] / f"{number}.png", pixels)
    return root
