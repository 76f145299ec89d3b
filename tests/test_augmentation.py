"""DSA against numpy, plain Python and formulas written down once more."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.data.augmentation import STRATEGY, Augmentation, Draw, apply
from dcbench_tesla.errors import UsageError

OPERATIONS = STRATEGY.split("_")
Array = NDArray[np.float64]


def images(n: int = 3, channels: int = 3, side: int = 8) -> Tensor:
    return torch.rand(n, channels, side, side, dtype=torch.float64, generator=generator(0, "images", n, channels, side))


def manual(operation: str, **parameters: list[float] | list[int] | list[bool]) -> Draw:
    return Draw(operation, {name: torch.tensor(values) for name, values in parameters.items()})


def shifted(plane: Array, dy: int, dx: int) -> Array:
    out = np.zeros_like(plane)
    side = len(plane)
    for y in range(side):
        for x in range(side):
            if 0 <= y - dy < side and 0 <= x - dx < side:
                out[y, x] = plane[y - dy, x - dx]
    return out


def bilinear(plane: Array, matrix: Array) -> Array:
    """Read at matrix @ (x, y), measured in pixels from the centre, zeros outside."""
    side = len(plane)
    centre = (side - 1) / 2
    out = np.zeros_like(plane)
    for y in range(side):
        for x in range(side):
            sx, sy = matrix @ np.array([x - centre, y - centre]) + centre
            for v in (math.floor(sy), math.floor(sy) + 1):
                for u in (math.floor(sx), math.floor(sx) + 1):
                    if 0 <= u < side and 0 <= v < side:
                        out[y, x] += (1 - abs(sx - u)) * (1 - abs(sy - v)) * plane[v, u]
    return out


def per_plane(batch: Tensor, transform: list[Array]) -> Tensor:
    planes = [
        [bilinear(plane, matrix) for plane in image] for image, matrix in zip(batch.numpy(), transform, strict=True)
    ]
    return torch.from_numpy(np.array(planes))


def a_draw(operation: str, count: int, side: int, siamese: bool = False) -> Draw:
    return Augmentation(operation).draw(count, side, generator(1, operation), siamese=siamese)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_is_brightness_then_saturation_then_contrast(channels: int) -> None:
    batch = images(2, channels, 4)
    b, s, c = [0.3, -0.5], [1.7, 0.2], [0.6, 1.4]
    result = apply(batch, manual("color", brightness=b, saturation=s, contrast=c))
    for n, image in enumerate(batch.numpy()):
        x = image + b[n]
        x = np.stack([(plane - x.mean(axis=0)) * s[n] + x.mean(axis=0) for plane in x])
        x = (x - x.mean()) * c[n] + x.mean()
        np.testing.assert_allclose(result[n].numpy(), x, rtol=1e-6)


def test_crop_moves_the_image_and_fills_with_zeros() -> None:
    batch = images(3)
    moves = [(1, -2), (0, 0), (-1, 1)]
    result = apply(batch, manual("crop", rows=[m[0] for m in moves], columns=[m[1] for m in moves]))
    for image, moved, (dy, dx) in zip(batch.numpy(), result.numpy(), moves, strict=True):
        for plane, got in zip(image, moved, strict=True):
            np.testing.assert_array_equal(got, shifted(plane, dy, dx))
    np.testing.assert_array_equal(result[0, :, 0].numpy(), 0)
    assert torch.equal(result[0, :, 1:, :6], batch[0, :, :7, 2:])


@pytest.mark.parametrize(("side", "size"), [(8, 4), (5, 3), (28, 14)])
def test_cutout_erases_a_square_clipped_to_the_image(side: int, size: int) -> None:
    last = side if size % 2 == 0 else side - 1
    centres = [(0, 0), (last, 2), (side // 2, last)]
    batch = images(3, 2, side)
    result = apply(batch, manual("cutout", rows=[c[0] for c in centres], columns=[c[1] for c in centres]))
    for n, (row, column) in enumerate(centres):
        expected = batch[n].numpy().copy()
        for y in range(row - size // 2, row - size // 2 + size):
            for x in range(column - size // 2, column - size // 2 + size):
                if 0 <= y < side and 0 <= x < side:
                    expected[:, y, x] = 0
        np.testing.assert_array_equal(result[n].numpy(), expected)


def test_flip_mirrors_left_and_right_where_drawn() -> None:
    batch = images(2)
    result = apply(batch, manual("flip", flip=[True, False]))
    np.testing.assert_array_equal(result[0].numpy(), batch[0].numpy()[:, :, ::-1])
    assert torch.equal(result[1], batch[1])


def test_scale_reads_at_scaled_positions() -> None:
    batch = images(2, 2, 7)
    x, y = [1.2, 0.85], [0.9, 1.1]
    result = apply(batch, manual("scale", x=x, y=y))
    expected = per_plane(batch, [np.diag([a, b]) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_rotation_reads_at_rotated_positions() -> None:
    batch = images(3, 2, 8)
    degrees = [14.0, -7.5, 90.0]
    result = apply(batch, manual("rotate", degrees=degrees))
    turns = [(math.cos(math.radians(d)), math.sin(math.radians(d))) for d in degrees]
    expected = per_plane(batch, [np.array([[cos, -sin], [sin, cos]]) for cos, sin in turns])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result[2], torch.rot90(batch[2], 1, (1, 2)), rtol=0, atol=1e-6)


def test_factor_one_and_angle_zero_change_nothing() -> None:
    batch = images()
    torch.testing.assert_close(apply(batch, manual("scale", x=[1.0], y=[1.0])), batch)
    torch.testing.assert_close(apply(batch, manual("rotate", degrees=[0.0])), batch)
    neutral = manual("color", brightness=[0.0], saturation=[1.0], contrast=[1.0])
    torch.testing.assert_close(apply(batch, neutral), batch)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_siamese_parameters_serve_every_image_of_every_batch(operation: str) -> None:
    draw = a_draw(operation, 5, 8, siamese=True)
    assert all(values.shape == (1,) for values in draw.parameters.values())
    one = images(1)
    alone = apply(one, draw)
    for n in (2, 7):
        torch.testing.assert_close(apply(one.expand(n, -1, -1, -1), draw), alone.expand(n, -1, -1, -1))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_image_is_transformed_by_its_own_parameters(operation: str) -> None:
    batch, draw = images(5), a_draw(operation, 5, 8)
    together = apply(batch, draw)
    for n in range(5):
        alone = Draw(operation, {name: values[n : n + 1] for name, values in draw.parameters.items()})
        torch.testing.assert_close(apply(batch[n : n + 1], alone)[0], together[n])
    with pytest.raises(ValueError, match="drawn for 5 images"):
        apply(batch[:4], draw)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_replay_is_identical_and_leaves_the_images_alone(operation: str) -> None:
    batch, draw = images().float(), a_draw(operation, 3, 8)
    before = batch.clone()
    first, second = Augmentation(operation)(batch, draw), apply(batch, draw)
    assert torch.equal(first, second)
    assert torch.equal(batch, before)
    assert first.dtype == torch.float32
    torch.testing.assert_close(apply(batch.double(), draw).float(), first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_with_respect_to_the_images(operation: str) -> None:
    batch, draw = images(2, 2, 5).requires_grad_(), a_draw(operation, 2, 5)
    assert torch.autograd.gradcheck(lambda x: apply(x, draw), (batch,))
    try:
        assert torch.autograd.gradgradcheck(lambda x: apply(x, draw), (batch,))
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        pytest.skip("this torch has no second derivative of grid_sample")


def test_every_operation_is_drawn_equally_often() -> None:
    numbers = generator(0, "frequency")
    counts = Counter(Augmentation().draw(1, 8, numbers).operation for _ in range(6000))
    assert set(counts) == set(OPERATIONS)
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 20.5  # the 0.999 quantile with 5 degrees of freedom


@pytest.mark.parametrize(("side", "reach", "centre_end"), [(32, 4, 32), (28, 4, 28), (8, 1, 8), (5, 1, 4)])
def test_integer_parameters_fill_their_range(side: int, reach: int, centre_end: int) -> None:
    for values in a_draw("crop", 2000, side).parameters.values():
        assert set(values.tolist()) == set(range(-reach, reach + 1))
    for values in a_draw("cutout", 2000, side).parameters.values():
        assert set(values.tolist()) == set(range(centre_end + 1))


@pytest.mark.parametrize(
    ("operation", "name", "low", "high"),
    [
        ("color", "brightness", -0.5, 0.5),
        ("color", "saturation", 0.0, 2.0),
        ("color", "contrast", 0.5, 1.5),
        ("scale", "x", 1 / 1.2, 1.2),
        ("scale", "y", 1 / 1.2, 1.2),
        ("rotate", "degrees", -15.0, 15.0),
    ],
)
def test_real_parameters_are_uniform_on_their_range(operation: str, name: str, low: float, high: float) -> None:
    values = a_draw(operation, 20000, 32).parameters[name].double()
    assert low <= values.min() <= low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) <= values.max() <= high
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    expected = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64) * (high - low) + low
    torch.testing.assert_close(quartiles, expected, rtol=0, atol=0.02 * (high - low))


def test_parameters_are_independent_of_each_other() -> None:
    for operation in ("color", "crop", "cutout", "scale"):
        values = torch.stack([v.double() for v in a_draw(operation, 20000, 32).parameters.values()])
        off_diagonal = torch.corrcoef(values) - torch.eye(len(values), dtype=torch.float64)
        assert off_diagonal.abs().max() < 0.04


def test_half_of_the_images_are_flipped() -> None:
    assert abs(a_draw("flip", 10000, 8).parameters["flip"].double().mean() - 0.5) < 0.02


@pytest.mark.parametrize("operation", OPERATIONS)
def test_numbers_taken_depend_on_operation_and_count_alone(operation: str) -> None:
    states = []
    for side in (8, 32):
        numbers = generator(3, "consumption")
        Augmentation(operation).draw(4, side, numbers)
        states.append(numbers.get_state())
    assert torch.equal(*states)


def test_the_same_seed_draws_the_same() -> None:
    for repetition in range(20):
        first, second = (Augmentation().draw(6, 8, generator(7, "augmentation", repetition)) for _ in range(2))
        assert first.operation == second.operation
        assert all(torch.equal(values, second.parameters[name]) for name, values in first.parameters.items())


def test_strategies_of_the_field() -> None:
    assert Augmentation.for_dataset(flippable=True).strategy == "color_crop_cutout_flip_scale_rotate"
    digits = Augmentation.for_dataset(flippable=False)
    assert digits.operations == ("color", "crop", "cutout", "scale", "rotate")


@pytest.mark.parametrize("strategy", ["", "none"])
def test_no_strategy_is_falsy_and_the_identity(strategy: str) -> None:
    nothing, batch, numbers = Augmentation(strategy), images(), generator(0, "none")
    before = numbers.get_state()
    draw = nothing.draw(3, 8, numbers)
    assert not nothing
    assert Augmentation()
    assert nothing == Augmentation("none")
    assert nothing(batch, draw) is batch
    assert torch.equal(numbers.get_state(), before)


def test_an_unknown_operation_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"'rotat'.*Did you mean 'rotate'"):
        Augmentation("color_rotat")


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_meta_and_fake_tensors_are_augmented_without_values(operation: str, siamese: bool) -> None:
    on_meta = torch.empty(4, 3, 8, 8, device="meta", requires_grad=True)
    result = apply(on_meta, a_draw(operation, 4, 8, siamese))
    assert result.shape == on_meta.shape
    assert torch.autograd.grad(result.sum(), on_meta)[0].device.type == "meta"
    with FakeTensorMode():
        fake = torch.empty(4, 3, 8, 8, requires_grad=True)
        result = apply(fake, a_draw(operation, 4, 8, siamese))
        assert torch.autograd.grad(result.sum(), fake)[0].shape == fake.shape


def test_dcs_own_augmentation_makes_one_of_three_operations_with_each_image() -> None:
    """At most 4 pixels, a factor between 0.8 and 1.2 and 45 degrees, against the operations of DSA on single images."""
    batch, draw = images(60, 1, 28), a_draw("each", 60, 28)
    p = draw.parameters
    assert p["kind"].bincount().tolist() == pytest.approx([20, 20, 20], abs=12)
    assert (int(p["rows"].min()), int(p["columns"].max())) == (-4, 4)
    for name, least, most in (("x", 1 / 1.2, 1 / 0.8), ("y", 1 / 1.2, 1 / 0.8), ("degrees", -45.0, 45.0)):
        assert least <= float(p[name].min()) < least + 0.1 * (most - least)
        assert most - 0.1 * (most - least) < float(p[name].max()) <= most
    found = apply(batch, draw)
    for i in range(60):
        operation = ("crop", "scale", "rotate")[int(p["kind"][i])]
        alone = Draw(operation, {name: values[i : i + 1] for name, values in p.items()})
        torch.testing.assert_close(found[i], apply(batch[i : i + 1], alone)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_cuda_agrees_with_the_cpu(operation: str) -> None:
    batch, draw = images(4, 3, 32).float(), a_draw(operation, 4, 32)
    torch.testing.assert_close(apply(batch.cuda(), draw).cpu(), apply(batch, draw), rtol=1e-5, atol=1e-5)
