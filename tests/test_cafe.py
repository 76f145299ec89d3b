"""CAFE: its four losses on fixed features, a step against a plain loop, and loops that end by accuracy."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.compute.networks import ConvNet, Network
from dcbench_tesla.config import resolve
from dcbench_tesla.conformance import tiny_problem
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Problem
from dcbench_tesla.methods.classwise.cafe import (
    CAFE,
    alignment,
    centre_distance,
    discrimination,
    real_cross_entropy,
    spread,
)


def started(problem: Problem | None = None, **settings: Any) -> CAFE:
    method = CAFE(CAFE.Settings(**{"real_batch": 5, "judged": 4, **settings}))
    method.setup(problem or tiny_problem(request=False))
    return method


# ---- the losses ------------------------------------------------------------------------------------------------------


def squares(a: Tensor, b: Tensor) -> float:
    return math.fsum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))


def test_alignment_weighs_the_layers() -> None:
    shapes = [(3, 4, 2, 2), (3, 5, 2, 2), (3, 6, 1, 1), (3, 6)]
    real, synthetic = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    parts = [squares(a, b) for a, b in zip(real, synthetic, strict=True)]
    expected = 0.1 * parts[0] + 0.1 * parts[1] + parts[2] + parts[3]
    assert float(alignment(real, synthetic)) == pytest.approx(expected, rel=1e-5)
    assert float(alignment(real[-1:], synthetic[-1:])) == pytest.approx(parts[3], rel=1e-5)


REAL, CENTRES = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)), torch.randn(3, 6)


def test_discrimination_is_the_summed_cross_entropy_of_inner_products() -> None:
    expected = 0.0
    for c in range(3):
        for feature in REAL[c]:
            logits = [sum(f * m for f, m in zip(feature.tolist(), CENTRES[k].tolist(), strict=True)) for k in range(3)]
            expected += math.log(sum(math.exp(value) for value in logits)) - logits[c]
    assert float(discrimination(REAL, CENTRES)) == pytest.approx(expected, rel=1e-5)


def test_the_distance_of_the_centres() -> None:
    means = torch.stack([sum(REAL[c], torch.zeros(6)) / 4 for c in range(3)])
    assert float(centre_distance(REAL, CENTRES)) == pytest.approx(squares(means, CENTRES), rel=1e-5)


def test_the_cross_entropy_of_real_images() -> None:
    classifier, expected = nn.Linear(6, 3).requires_grad_(False), 0.0
    for c in range(3):
        for feature in REAL[c]:
            expected -= float(classifier(feature).log_softmax(0)[c]) / 12
    assert float(real_cross_entropy(REAL, classifier)) == pytest.approx(expected, rel=1e-5)


# ---- one step --------------------------------------------------------------------------------------------------------


def outputs(network: Network, images: Tensor) -> list[Tensor]:
    """The outputs of the ReLUs and of the last pooling of a ConvNet of one block, by hand."""
    convolution, norm, relu, pool, flatten = network.features.children()
    after = relu(norm(convolution(images)))
    return [after, flatten(pool(after))]


@pytest.mark.parametrize("settings", [{}, {"dsa": True, "class_chunk": 1}, {"factor": 2, "class_chunk": 2}])
def test_a_step_by_a_plain_loop(settings: Any) -> None:
    method = started(most_outer=1, lr_images=0.1, momentum=0.0, **settings)
    stored = method.images.clone().requires_grad_()
    network, shown = method.fresh_network(0), method.form.decode(stored).unflatten(0, (3, -1))
    of_real, of_synthetic = [], []
    for c in range(3):
        draw = method._draw(0, 0, c)
        real = method.problem.train.inputs(method._real_indices(0, 0, c))
        of_real.append([o.detach() for o in outputs(network, method.augmentation(real, draw))])
        of_synthetic.append(outputs(network, method.augmentation(shown[c], draw)))
    loss = torch.zeros(())
    for layer in (0, 1):  # the last ReLU and the pooled features, whose weight is 1
        for c in range(3):
            loss = loss + (of_real[c][layer].mean(0) - of_synthetic[c][layer].mean(0)).square().sum()
    centres = torch.stack([layers[1].mean(0) for layers in of_synthetic])
    features = [layers[1] for layers in of_real]
    for c in range(3):
        loss = loss + 0.01 * F.cross_entropy(features[c] @ centres.T, torch.full((5,), c), reduction="sum")
        loss = loss + (features[c].mean(0) - centres[c]).square().sum()
    (gradient,) = torch.autograd.grad(loss, stored)
    real_loss = F.cross_entropy(network.classifier(torch.cat(features)), torch.arange(3).repeat_interleave(5))
    assert method.iterate(0).loss == pytest.approx(float((loss + real_loss).detach()), rel=1e-4)
    torch.testing.assert_close(method.images, stored.detach() - 0.1 * gradient, rtol=1e-4, atol=1e-5)


class Branched(Network):
    """Features that are no sequence of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = ConvNet(1, 3, 8, width=4)
        self.classifier = nn.Linear(3, 3)


def test_another_networks_features_are_aligned_alone() -> None:
    method = started(replace(tiny_problem(request=False), build_network=Branched), most_outer=1)
    before = method.images.clone()
    method.iterate(0)
    assert not torch.equal(method.images, before)


# ---- the loops -------------------------------------------------------------------------------------------------------


def test_the_spread_of_the_last_accuracies() -> None:
    assert spread([0.1, 0.9], 3) is None
    assert spread([0.9, 0.1, 0.2, 0.4], 3) == pytest.approx(0.3)


def loops(monkeypatch: pytest.MonkeyPatch, accuracies: list[float], **settings: Any) -> tuple[list[int], CAFE]:
    """Run an iteration with the given accuracies, the last one for ever; return the epochs after every step."""
    method, epochs, told = started(window=2, **settings), list[int](), iter(accuracies)

    def match(*_: object) -> float:
        epochs.append(0)
        return 0.0

    def train(*_: object) -> None:
        epochs[-1] += 1

    monkeypatch.setattr(method, "_match", match)
    monkeypatch.setattr(method, "train_epoch", train)
    monkeypatch.setattr(method, "_accuracy", lambda *_: next(told, accuracies[-1]))
    record = method.iterate(0)
    assert (record.metrics["outer_steps"], record.metrics["inner_epochs"]) == (len(epochs), sum(epochs))
    return epochs, method


def test_the_outer_loop_ends_when_accuracies_settle_and_the_inner_one_when_they_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = {"outer_spread": 0.04, "inner_spread": 0.03}
    # after a step 0.1; epochs 0.20, 0.22, 0.30 (they differ by 0.08); a step 0.3; 0.3, 0.4; a step 0.31: settled
    told = [0.10, 0.20, 0.22, 0.30, 0.30, 0.30, 0.40, 0.31]
    assert loops(monkeypatch, told, **steps)[0] == [3, 2, 0]


def test_both_loops_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    never = {"outer_spread": 0.0, "inner_spread": 1.0}
    assert loops(monkeypatch, [0.5], most_outer=4, most_inner=3, **never)[0] == [3, 3, 3, 0]
    assert loops(monkeypatch, [0.5], most_outer=2, most_inner=0, **never)[0] == [0, 0]


def test_accuracy_is_the_share_of_the_judged_images() -> None:
    method = started()
    network, judged = method.fresh_network(0), method._judged(0)
    assert judged.shape == (12,)
    assert torch.equal(method.problem.train.labels[judged], torch.arange(3).repeat_interleave(4))
    right = [int(network(method.problem.train.inputs(judged[i : i + 1])).argmax()) == i // 4 for i in range(12)]
    assert method._accuracy(network, judged) == pytest.approx(sum(right) / 12)


def test_the_rate_is_halved_three_times() -> None:
    method = started(iterations=2000, lr_images=0.1)
    found = [method.learning_rate(i) for i in (0, 1199, 1200, 1600, 1800, 1999)]
    assert found == pytest.approx([0.1, 0.1, 0.05, 0.025, 0.0125, 0.0125])


def test_an_estimate_is_of_loops_that_end_when_their_window_is_full() -> None:
    few, factor = CAFE.probe(CAFE.Settings(window=10, most_outer=50, most_inner=50))
    assert (few.most_outer, few.most_inner) == (2, 2)
    assert factor == pytest.approx((10 + 9 * 10) / (2 + 2))


# ---- settings --------------------------------------------------------------------------------------------------------


def test_dsa_is_a_setting() -> None:
    assert started().distilled().augmentation == started().augmentation.strategy == "none"
    with_dsa = started(dsa=True)
    assert with_dsa.distilled().augmentation == with_dsa.problem.task.augmentation.strategy != "none"
    assert with_dsa.augmentation == with_dsa.problem.task.augmentation


def test_published_settings() -> None:
    config = resolve("cafe", "cifar10", 10, preset="paper")
    s: Any = config.settings
    assert (config.protocol, s.iterations, s.lr_images, s.momentum, s.real_batch) == ("paper", 2000, 0.1, 0.5, 256)
    assert (s.start, s.dsa, s.discrimination, s.outer_spread, s.inner_spread) == ("noise", False, 0.01, 0.04, 0.03)
    assert (s.judged, s.window) == (128, 10)
    assert config.evaluators["convnet"].epochs == 600
    assert resolve("cafe", "cifar100", 10, preset="paper").protocol == "paper, settings of CAFE on CIFAR-10"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"inner_spread": -1.0}, "inner_spread and most_inner must not be negative"),
        ({"lr_network": 0.0}, "lr_network must be positive"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CAFE.Settings(**settings)
