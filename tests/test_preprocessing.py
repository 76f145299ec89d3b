"""Preprocessing against published numbers and closed forms in numpy's float64."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.preprocessing import Preprocessing, fit_standardise, fit_zca
from dcbench_tesla.errors import CorruptFileError, UsageError

EPS = 0.1


def pixels(n: int = 200, channels: int = 3, side: int = 4, max_value: int = 255) -> NDArray[np.uint8]:
    """Random images whose neighbouring pixels go together, so that whitening has something to do."""
    rng = np.random.default_rng([n, channels, side])
    rough = rng.integers(0, max_value + 1, (n, channels, side, side))
    return ((rough + rough[:, :, ::-1] + rough[:, :1]) // 3).astype(np.uint8)


def dataset(x: NDArray[np.uint8], max_value: int = 255, **published: tuple[float, ...]) -> Dataset:
    y = np.zeros(len(x), dtype=np.int64)
    return Dataset(
        name="made", x_train=x, y_train=y, x_test=x, y_test=y, class_names=("a",), max_value=max_value,
        mean=published.get("mean"), std=published.get("std"),
    )  # fmt: skip


def unit(x: NDArray[np.uint8], max_value: int = 255) -> Tensor:
    return torch.from_numpy(x / max_value).float()


def both_kinds(channels: int) -> list[Preprocessing]:
    x = pixels(channels=channels)
    return [fit_standardise(dataset(x)), fit_zca(x, 255)]


def test_published_mean_and_std_are_used() -> None:
    x = pixels()
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    fitted = fit_standardise(dataset(x, mean=mean, std=std))
    expected = (x / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    np.testing.assert_allclose(fitted.forward(unit(x)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("channels", "max_value"), [(3, 255), (1, 16)])
def test_moments_are_computed_where_none_are_published(channels: int, max_value: int) -> None:
    x = pixels(5000, channels, 4, max_value)  # more than two chunks
    fitted = fit_standardise(dataset(x, max_value))
    assert fitted.std is not None
    np.testing.assert_allclose(fitted.mean.numpy(), (x / max_value).mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(fitted.std.numpy(), (x / max_value).std(axis=(0, 2, 3)), rtol=1e-6)
    result = fitted.forward(unit(x, max_value))
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.std((0, 2, 3)), torch.ones(channels), rtol=0, atol=1e-3)


def test_moments_come_from_the_pixels_given() -> None:
    x = pixels()
    assert fit_standardise(dataset(x), x[:50]).key == fit_standardise(dataset(x[:50])).key
    assert fit_standardise(dataset(x), x[:50]).key != fit_standardise(dataset(x)).key


def test_a_constant_channel_is_centred_and_not_divided_by_zero() -> None:
    x = np.full((3, 1, 4, 4), 51, dtype=np.uint8)
    assert fit_standardise(dataset(x)).forward(unit(x)).abs().max() < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_zca_agrees_with_the_closed_form(channels: int) -> None:
    x = pixels(channels=channels)
    fitted = fit_zca(x, 255, EPS)
    flat = x.reshape(len(x), -1) / 255
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    matrix = vectors @ np.diag((values + EPS) ** -0.5) @ vectors.T
    assert fitted.matrix is not None
    assert fitted.inverse_matrix is not None
    assert fitted.matrix.dtype == torch.float32
    np.testing.assert_allclose(fitted.mean.numpy(), flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(fitted.matrix.numpy(), matrix, atol=1e-5)
    np.testing.assert_allclose(fitted.inverse_matrix.numpy(), np.linalg.inv(matrix), atol=1e-5)
    expected = ((flat - flat.mean(axis=0)) @ matrix).reshape(x.shape)
    np.testing.assert_allclose(fitted.forward(unit(x)).numpy(), expected, atol=1e-4)


def test_zca_whitens_up_to_eps() -> None:
    x = pixels(400)
    flat = x.reshape(len(x), -1) / 255
    white = fit_zca(x, 255, EPS).forward(unit(x)).flatten(1).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    expected = vectors @ np.diag(values / (values + EPS)) @ vectors.T
    np.testing.assert_allclose(np.cov(white, rowvar=False), expected, atol=1e-4)
    nearly_all = fit_zca(x, 255, 1e-6).forward(unit(x)).flatten(1).double().numpy()
    rank = (values > 1e-3).sum()
    np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(nearly_all, rowvar=False))[-rank:], 1, atol=1e-2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_undoes_forward(channels: int, dtype: torch.dtype) -> None:
    x = unit(pixels(channels=channels)).to(dtype)
    for fitted in both_kinds(channels):
        image = fitted.forward(x)
        assert image.shape == x.shape
        assert image.dtype == dtype
        torch.testing.assert_close(fitted.inverse(image), x, rtol=0, atol=1e-5)
        torch.testing.assert_close(fitted.forward(fitted.inverse(image)), image, rtol=0, atol=1e-4)


def test_inverse_is_not_clamped() -> None:
    for fitted in both_kinds(3):
        assert fitted.inverse(torch.full((1, 3, 4, 4), 50.0)).max() > 1


@pytest.mark.parametrize("channels", [1, 3])
def test_state_round_trip_keeps_everything(channels: int) -> None:
    x = unit(pixels(channels=channels))
    for fitted in both_kinds(channels):
        tensors, meta = fitted.state()
        again = Preprocessing.from_state({**tensors, "images": x}, json.loads(json.dumps(meta)))
        assert torch.equal(again.forward(x), fitted.forward(x))
        assert torch.equal(again.inverse(x), fitted.inverse(x))
        assert again.key == fitted.key
        assert again.describe() == fitted.describe()


def test_a_state_that_lacks_something_is_refused() -> None:
    for fitted in both_kinds(1):
        tensors, meta = fitted.state()
        del tensors["mean"]
        with pytest.raises(CorruptFileError, match="lacks mean"):
            Preprocessing.from_state(tensors, meta)
    with pytest.raises(CorruptFileError, match="unknown kind 'pca'"):
        Preprocessing.from_state({}, {"kind": "pca"})


def test_key_follows_kind_and_content() -> None:
    standardise, zca = both_kinds(3)
    assert standardise.key == both_kinds(3)[0].key
    assert len(zca.key) == 16
    assert int(zca.key, 16) >= 0
    assert standardise.std is not None
    other = Preprocessing("standardise", standardise.mean, standardise.std + 1e-6)
    assert len({standardise.key, zca.key, other.key}) == 3


def test_to_moves_the_tensors() -> None:
    for fitted in both_kinds(1):
        moved = fitted.to("meta").forward(torch.empty(2, 1, 4, 4, device="meta"))
        assert moved.shape == (2, 1, 4, 4)
        assert fitted.to("cpu").key == fitted.key


def test_describe_is_small_json() -> None:
    standardise, zca = both_kinds(3)
    assert zca.describe() == {"kind": "zca", "key": zca.key, "dimensions": 48, "eps": EPS}
    assert json.loads(json.dumps(standardise.describe()))["mean"] == standardise.mean.tolist()


def test_zca_is_refused_at_64_pixels() -> None:
    with pytest.raises(UsageError, match=r"12288 x 12288, 604 MB in float32.*64 times the work"):
        fit_zca(np.zeros((2, 3, 64, 64), dtype=np.uint8), 255)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown preprocessing 'whiten'"):
        Preprocessing("whiten", torch.zeros(3))
