"""Splitting a data set into training, validation and test images, identically for every cell and seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Indices:
    """Positions in the data set's training images: those for experts and matching, and those held out."""

    train: Tensor
    validation: Tensor


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The training, validation and test images of a cell; ``validation`` is ``None`` if none are held out.

    Of a data set without test images, ``test`` are the held-out images: networks are judged by those.
    """

    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages


def choose(labels: Tensor, classes: int, settings: DataSettings) -> Indices:
    """Choose validation and training images at random, stratified by class and identically for all seeds.

    Args:
        labels: training labels of the data set, int64 ``(N,)``.
        classes: number of classes.
        settings: ``validation`` and ``train_images`` say how many images to choose.

    Raises:
        UsageError: a class is left without training images.
    """
    train, validation = [], []
    for c in range(classes):
        members = (labels == c).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator(0, "validation split", c))]
        held = round(settings.validation * len(members))
        quota = settings.train_images // classes + (c < settings.train_images % classes)
        kept = members[held:][: quota if settings.train_images else None]
        if not len(kept):
            raise UsageError(
                f"class {c} is left without training images: lower data.validation ({settings.validation:g}) "
                f"or raise data.train_images ({settings.train_images})."
            )
        train.append(kept)
        validation.append(members[:held])
    return Indices(train=torch.cat(train).sort().values, validation=torch.cat(validation).sort().values)


def cut(dataset: Dataset, chosen: Indices, preprocessing: Preprocessing, device: torch.device) -> Splits:
    """Return the training, validation and test images of ``dataset``, preprocessed, on ``device``."""

    def images(pixels: Tensor, labels: Tensor) -> LabelledImages:
        return LabelledImages(
            pixels,
            labels,
            classes=dataset.classes,
            max_value=dataset.max_value,
            preprocessing=preprocessing,
            device=device,
        )

    pixels, labels = torch.from_numpy(dataset.x_train), torch.from_numpy(dataset.y_train)
    everything = len(chosen.train) == len(labels)  # then nothing is copied: a memory-mapped set stays on the disk
    train = images(pixels, labels) if everything else images(pixels[chosen.train], labels[chosen.train])
    held_out = images(pixels[chosen.validation], labels[chosen.validation]) if len(chosen.validation) else None
    if held_out is not None and not len(dataset.y_test):
        return Splits(train=train, validation=None, test=held_out)
    test = images(torch.from_numpy(dataset.x_test), torch.from_numpy(dataset.y_test))
    return Splits(train=train, validation=held_out, test=test)
