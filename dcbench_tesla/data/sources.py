"""The registered data sets: their facts, where their files are looked for, and how they are read.

Every source looks below ``data_dir`` (``--data-dir`` or ``$DCBENCH_DATA``) for the layout of torchvision or of the
public archive. It downloads the files where that is possible without an account. Neither this module nor those it
imports import torch or numpy at the top, so that listing data sets is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcbench_tesla.data import imagenet, small
from dcbench_tesla.data.checks import verify
from dcbench_tesla.data.dataset import Dataset, DatasetSource
from dcbench_tesla.data.download import DATA_FOLDER, Archive, Files

# ------------------------------------------------------------------------------------------------------ digits


def _find_digits(data_dir: Path) -> Path | None:
    spec = find_spec("sklearn")  # finds without importing
    return Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else None


def _load_digits(data_dir: Path) -> Dataset:
    """Split scikit-learn's digits: in every class, images 5, 10, 15 ... of the original order are the test set.

    There is no official split. This one is balanced and uses no random numbers, so it never changes.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images.astype(np.uint8)[:, np.newaxis], digits.target.astype(np.int64)
    test = np.zeros(len(y), bool)
    for digit in range(10):
        test[np.flatnonzero(y == digit)[4::5]] = True
    contents = small.Contents(x[~test], y[~test], x[test], y[test])
    return Dataset(name="digits", **contents._asdict(), max_value=16, flippable=False, redistributable=True)


DIGITS = DatasetSource(
    name="digits",
    summary="handwritten digits that come with scikit-learn, every 5th of a class for test (CC BY 4.0)",
    channels=1,
    side=8,
    classes=10,
    train_images=1442,
    test_images=355,
    find=_find_digits,
    load=_load_digits,
    remedy="pip install scikit-learn",
    redistributable=True,
)

# ------------------------------------------------------------------------------------------ sets of small images


def _source(
    files: Files | Archive,
    read: Callable[[Path], small.Contents],
    summary: str,
    *,
    size: tuple[int, int, int],
    images: tuple[int, int],
    **facts: Any,
) -> DatasetSource:
    """Declare a data set.

    Args:
        files: where its files are found.
        read: reads them from a folder.
        summary: one line about the data set and its licence.
        size: channels, side in pixels, number of classes.
        images: number of training and test images.
        facts: further fields of :class:`Dataset`.
    """

    def load(data_dir: Path) -> Dataset:
        folder = files.get(data_dir)
        return verify(Dataset(name=files.name, **{**read(folder)._asdict(), **facts}), folder, images)

    known: dict[str, Any] = {"channels": size[0], "side": size[1], "classes": size[2]}
    known |= {"train_images": images[0], "test_images": images[1], "find": files.find, "load": load}
    free = facts.get("redistributable", False)
    return DatasetSource(name=files.name, summary=summary, remedy=files.remedy, redistributable=free, **known)


FASHION_MNIST = _source(
    Files(
        name="fashion-mnist",
        folders=("FashionMNIST/raw", "fashion-mnist"),
        base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5s={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        remedy="apt-get install dataset-fashion-mnist (Debian, Ubuntu), or put the four *-ubyte.gz files of "
        f"https://github.com/zalandoresearch/fashion-mnist into fashion-mnist/ in {DATA_FOLDER}",
    ),
    small.read_idx_set,
    "articles of clothing, 28x28 grey (MIT)",
    size=(1, 28, 10),
    images=(60_000, 10_000),
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=(0.2861,),
    std=(0.3530,),
    redistributable=True,
)

MNIST = _source(
    Files(
        name="mnist",
        folders=("MNIST/raw", "mnist"),
        base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5s={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        remedy="put the four *-ubyte.gz files (https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"
        f" and the like) into mnist/ in {DATA_FOLDER}",
    ),
    small.read_idx_set,
    "handwritten digits, 28x28 grey (CC BY-SA 3.0)",
    size=(1, 28, 10),
    images=(60_000, 10_000),
    mean=(0.1307,),
    std=(0.3081,),
    flippable=False,
    redistributable=True,
)


def _cifar(archive: Archive, classes: int, kind: str = "") -> DatasetSource:
    return _source(
        archive,
        partial(small.read_cifar, files=archive.members, classes=classes, kind=kind),
        f"photographs of {classes} kinds of things, 32x32 (no licence stated)",
        size=(3, 32, classes),
        images=(50_000, 10_000),
        # CIFAR-100 uses CIFAR-10's statistics too: the published code does so, and results depend on it
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    )


_CIFAR10 = Archive(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    members=(*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
)
_CIFAR100 = Archive(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    members=("train", "test", "meta"),
)

CIFAR10 = _cifar(_CIFAR10, classes=10)
CIFAR100 = _cifar(_CIFAR100, classes=100, kind="fine_")

SVHN = _source(
    Files(
        name="svhn",
        folders=("", "svhn"),
        base_url="http://ufldl.stanford.edu/housenumbers/",
        md5s={
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
        remedy=f"put train_32x32.mat and test_32x32.mat (http://ufldl.stanford.edu/housenumbers/) into {DATA_FOLDER}",
    ),
    small.read_svhn,
    "house numbers cut from street views, 32x32 (non-commercial use only)",
    size=(3, 32, 10),
    images=(73_257, 26_032),
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    flippable=False,
)

# ------------------------------------------------------------------------------------ ImageNet's, 64 x 64 pixels

TINY_IMAGENET = DatasetSource(
    name="tiny-imagenet",
    summary="photographs of 200 ImageNet classes, 64x64 (ImageNet's terms: non-commercial research)",
    channels=3,
    side=64,
    classes=200,
    train_images=100_000,
    test_images=10_000,
    find=imagenet.find_tiny,
    load=imagenet.load_tiny,
    remedy=imagenet.TINY_REMEDY,
)

IMAGENET1K_64 = DatasetSource(
    name="imagenet1k-64",
    summary="ImageNet-1K shrunk to 64x64 with a box filter (ImageNet's terms: non-commercial research)",
    channels=3,
    side=64,
    classes=1000,
    train_images=1_281_167,
    test_images=50_000,
    find=imagenet.find_imagenet,
    load=imagenet.load_imagenet,
    remedy=imagenet.IMAGENET_REMEDY,
)
