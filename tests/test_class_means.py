"""The baseline `class-means` against a plain loop over the images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dcbench_tesla
from dcbench_tesla.conformance import tiny_problem
from dcbench_tesla.interface import DistilledSet, Problem
from dcbench_tesla.methods.subset.class_means import ClassMeans


def problem(ipc: int = 1, seed: int = 0) -> Problem:
    return replace(tiny_problem(request=False, seed=seed), ipc=ipc)


def means(of: Problem) -> DistilledSet:
    method = ClassMeans(ClassMeans.Settings())
    method.setup(of)
    return method.distilled()


def members(of: Problem, k: int) -> list[torch.Tensor]:
    """The preprocessed images of class k, one by one: 12 of them."""
    labels = of.train.labels.tolist()
    return [of.train.inputs(torch.tensor([i]))[0] for i in range(len(labels)) if labels[i] == k]


def test_one_image_a_class_is_the_mean_of_the_class() -> None:
    of = problem(ipc=1)
    found = means(of)
    assert found.images.dtype == torch.float32
    assert found.labels.tolist() == [0, 1, 2]
    for k in range(3):
        total, images = torch.zeros(1, 8, 8, dtype=torch.float64), members(of, k)
        for image in images:
            total += image.double()
        torch.testing.assert_close(found.images[k].double(), total / len(images), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ipc", [2, 5, 12])
def test_the_parts_of_a_class_are_a_partition_of_nearly_equal_sizes(ipc: int) -> None:
    """The means times the sizes, larger parts first, are the sum over the class; with IPC = 12 they are the images."""
    of = problem(ipc)
    found = means(of)
    assert found.labels.tolist() == [k for k in range(3) for _ in range(ipc)]
    for k in range(3):
        sizes = [12 // ipc + (p < 12 % ipc) for p in range(ipc)]
        own = found.images[k * ipc : (k + 1) * ipc].double()
        total = sum(size * mean for size, mean in zip(sizes, own, strict=True))
        torch.testing.assert_close(total, torch.stack(members(of, k)).double().sum(0), rtol=1e-5, atol=1e-5)
    if ipc == 12:
        own, real = found.images[:12].flatten(1), torch.stack(members(of, 0)).flatten(1)
        assert sorted(own.tolist()) == sorted(real.tolist())


def test_the_parts_are_drawn_by_the_seed() -> None:
    first, again, other = (means(problem(3, seed)).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_classes_of_more_images_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = means(problem(2)).images
    monkeypatch.setattr("dcbench_tesla.methods.subset.class_means._BATCH", 4)
    torch.testing.assert_close(means(problem(2)).images, whole)


def test_digits_at_smoke_are_far_above_random(tmp_path: Path) -> None:
    result = dcbench_tesla.run("class-means", dataset="digits", ipc=1, preset="smoke", out=tmp_path, quiet=True)
    accuracy = result.accuracy()
    assert accuracy is not None
    assert accuracy.mean > 0.85
