"""ConvNet as published, and networks as functions of one flat vector."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcbench_tesla.compute.networks import (
    ConvNet,
    FlatNetwork,
    convnet_depth,
    cross_entropy,
    flatten_parameters,
    seeded,
)
from dcbench_tesla.errors import UsageError


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("side", "classes", "parameters"),
    [(32, 10, 320_010), (32, 100, 504_420), (64, 200, 857_160), (64, 1000, 2_496_360)],
)
def test_parameter_counts_as_published(side: int, classes: int, parameters: int) -> None:
    assert count(ConvNet(3, classes, side)) == parameters
    assert FlatNetwork(lambda: ConvNet(3, classes, side)).parameter_count == parameters


@pytest.mark.parametrize(("side", "depth"), [(8, 1), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_follows_the_side(side: int, depth: int) -> None:
    assert convnet_depth(side) == depth
    blocks = [m for m in ConvNet(1, 2, side, width=2).modules() if isinstance(m, nn.Conv2d)]
    assert len(blocks) == depth


def test_depth_can_be_chosen() -> None:
    assert count(ConvNet(3, 10, 32, width=4, depth=2)) != count(ConvNet(3, 10, 32, width=4))
    with pytest.raises(UsageError, match="depth 4 pools 8 x 8 images away; use a smaller depth"):
        ConvNet(1, 10, 8, depth=4)
    with pytest.raises(UsageError, match="at least 8 x 8 pixels, not 4 x 4"):
        ConvNet(1, 10, 4)


def test_layers_are_the_published_ones() -> None:
    kinds = [type(m).__name__ for m in ConvNet(3, 10, 32).features]
    assert kinds == ["Conv2d", "GroupNorm", "ReLU", "AvgPool2d"] * 3 + ["Flatten"]
    norm = ConvNet(3, 10, 32).features[1]
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels, norm.eps, norm.affine) == (128, 128, 1e-5, True)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_logits_are_distinct_and_finite(channels: int, side: int) -> None:
    torch.manual_seed(0)
    logits = ConvNet(channels, 7, side, width=8)(torch.randn(5, channels, side, side))
    assert logits.shape == (5, 7)
    assert torch.isfinite(logits).all()
    assert (torch.pdist(logits) > 1e-4).all()


def test_28_pixels_are_padded_to_32() -> None:
    small, large = ConvNet(1, 10, 28, width=8), ConvNet(1, 10, 32, width=8)
    large.load_state_dict(small.state_dict())
    images = torch.randn(4, 1, 28, 28)
    assert torch.allclose(small(images), large(F.pad(images, (2, 2, 2, 2))), atol=1e-6)


def test_hard_and_soft_labels_have_one_loss() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    by_hand = -logits.log_softmax(1)[range(6), labels].mean()
    assert torch.allclose(cross_entropy(logits, labels), by_hand)
    assert torch.allclose(cross_entropy(logits, F.one_hot(labels).float()), by_hand)


# ------------------------------------------------------------------------------------------------- flat parameters


def build() -> ConvNet:
    return ConvNet(1, 3, 8, width=4)


@pytest.fixture
def flat() -> FlatNetwork:
    return FlatNetwork(build)


def test_flat_network_equals_the_module(flat: FlatNetwork) -> None:
    network, images = build(), torch.randn(5, 1, 8, 8)
    theta = flatten_parameters(network)
    assert torch.equal(flat(theta, images), network(images))
    labels = torch.tensor([0, 1, 2, 0, 1])
    loss = cross_entropy(network(images), labels)
    loss.backward()
    theta.requires_grad_()
    (gradient,) = torch.autograd.grad(flat.loss(theta, images, labels), theta)
    assert torch.allclose(gradient, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))


def test_vector_is_split_into_views_in_the_order_of_parameters(flat: FlatNetwork) -> None:
    theta = torch.arange(float(flat.parameter_count))
    parts = flat.unflatten(theta)
    assert [(n, p.shape) for n, p in parts.items()] == [(n, p.shape) for n, p in build().named_parameters()]
    assert torch.equal(torch.cat([p.flatten() for p in parts.values()]), theta)
    theta.zero_()
    assert all(not part.any() for part in parts.values())


def test_round_trip_through_a_module(flat: FlatNetwork) -> None:
    theta, network = torch.randn(flat.parameter_count), build()
    torch.nn.utils.vector_to_parameters(theta.clone(), network.parameters())
    flattened = flatten_parameters(network)
    assert torch.equal(flattened, theta)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    assert torch.equal(flattened, theta)  # a copy


def test_second_derivatives_reach_images_and_parameters(flat: FlatNetwork) -> None:
    theta = flat.initial(0).requires_grad_()
    images = torch.randn(2, 1, 8, 8, requires_grad=True)
    (g,) = torch.autograd.grad(flat.loss(theta, images, torch.tensor([0, 1])), theta, create_graph=True)
    for gradient in torch.autograd.grad(g.square().sum(), [theta, images]):
        assert gradient.abs().max() > 0


def test_initial_is_reproducible_and_pytorchs(flat: FlatNetwork) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    theta = flat.initial(3)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is as it was
    torch.manual_seed(3)
    assert torch.equal(theta, flatten_parameters(build()))
    assert torch.equal(theta, flat.initial(3))
    assert not torch.equal(theta, flat.initial(4))


def test_initial_values_are_pytorchs_default() -> None:
    parts = FlatNetwork(lambda: ConvNet(3, 10, 32)).unflatten(FlatNetwork(lambda: ConvNet(3, 10, 32)).initial(0))
    for name, fan_in in {"features.4": 128 * 9, "classifier": 2048}.items():
        bound = 1 / math.sqrt(fan_in)
        weight = parts[f"{name}.weight"]
        assert weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # uniform
        assert parts[f"{name}.bias"].abs().max() <= bound
    assert (parts["features.1.weight"] == 1).all()
    assert (parts["features.1.bias"] == 0).all()


def test_seeded_restores_the_generator_after_an_error() -> None:
    state = torch.get_rng_state()

    def fail() -> None:
        with seeded(1):
            torch.rand(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(torch.get_rng_state(), state)
