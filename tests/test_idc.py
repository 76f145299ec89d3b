"""IDC against plain loops: its distance, a step for every class, networks on real images, CutMix, and its pixels."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.compute.compiling import TrainingStep
from dcbench_tesla.compute.networks import Network, flatten_parameters
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.config import resolve
from dcbench_tesla.conformance import tiny_problem
from dcbench_tesla.data.augmentation import STRATEGY_NO_FLIP, Augmentation, cutmix
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Problem
from dcbench_tesla.methods.classwise.idc import IDC, weight_distance


def started(problem: Problem | None = None, **settings: Any) -> IDC:
    method = IDC(IDC.Settings(**{"real_batch": 4, "lr_images": 0.05, **settings}))
    method.setup(problem or tiny_problem(request=False))
    return method


@pytest.mark.parametrize("squared", [True, False])
def test_the_distance_by_its_formula(squared: bool) -> None:
    real = {"conv": torch.randn(2, 3, 4, 2, 2), "linear": torch.randn(2, 3, 5), "bias": torch.randn(2, 3)}
    synthetic = {name: torch.randn_like(g) for name, g in real.items()}
    differences = (real["conv"] - synthetic["conv"]).flatten().tolist()  # biases and Linear layers count nothing
    expected = sum(d * d if squared else abs(d) for d in differences)
    assert float(weight_distance(real, synthetic, squared=squared)) == pytest.approx(expected, rel=1e-5)


def class_loss(method: IDC, network: Network, pixels: Tensor, c: int, round_: int = 0, iteration: int = 0) -> Tensor:
    """The distance of one class at ``pixels`` ``(N, 1, 8, 8)``, written out."""
    task, train = method.problem.task, method.problem.train
    draw = method._draw(iteration, round_, c)
    real = train.inputs(method._real_indices(iteration, round_, c))
    assert train.preprocessing.std is not None
    own = (pixels[2 * c : 2 * c + 2] - float(train.preprocessing.mean)) / float(train.preprocessing.std)
    tiles = torch.cat([own[n : n + 1, :, y : y + 4, x : x + 4] for n in (0, 1) for y in (0, 4) for x in (0, 4)])
    shown = F.interpolate(tiles, size=(8, 8), mode="bilinear")
    kernels = [p for p in network.parameters() if p.ndim == 4]
    assert len(kernels) < len(list(network.parameters()))
    assert draw.operation == "color+crop+cutout"
    gradients = []
    for images in (real, shown):
        loss = F.cross_entropy(network(Augmentation("color+crop+cutout")(images, draw)), torch.full((len(images),), c))
        gradients.append(torch.autograd.grad(loss, kernels, create_graph=True))
    assert task.classes == 3
    return torch.stack([(a.detach() - b).square().sum() for a, b in zip(*gradients, strict=True)]).sum()


@pytest.mark.parametrize("class_chunk", [1, 2, 3])
def test_a_step_of_sgd_for_every_class(class_chunk: int) -> None:
    """One optimiser over all images, of which a class's step gives a gradient to its own only, in two iterations."""
    method = started(class_chunk=class_chunk, rounds=1, momentum=0.5)
    pixels = method.images.clone().requires_grad_()
    optimiser = torch.optim.SGD([pixels], lr=0.05, momentum=0.5)
    for iteration in range(2):
        with torch.no_grad():
            pixels.clamp_(0, 1)
        network, total = method.fresh_network(iteration), 0.0
        for c in range(3):
            loss = class_loss(method, network, pixels, c, iteration=iteration)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach())
        assert method.iterate(iteration).loss == pytest.approx(total / 3, rel=1e-4)
        torch.testing.assert_close(method.images, pixels.detach(), rtol=1e-4, atol=1e-6)


def test_the_network_is_trained_on_real_images() -> None:
    method = started(network_images=10, network_batch=4, cutmix=1.0)
    network, plain = method.fresh_network(0), method.fresh_network(0)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    own = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    train = method.problem.train
    for round_ in (0, 1):
        method._train(TrainingStep(network), optimiser, 0, round_)
        rng = method.problem.generator("network training", 0, round_)
        for chosen in torch.randperm(36, generator=rng)[:10].split(4):
            strategy = Augmentation("color+crop")
            images = strategy(train.inputs(chosen), strategy.draw(len(chosen), 8, rng))
            images, labels = cutmix(images, F.one_hot(train.labels[chosen], 3).float(), rng, 1.0)
            own.zero_grad()
            (-(labels * plain(images).log_softmax(1)).sum(1).mean()).backward()
            own.step()
    torch.testing.assert_close(flatten_parameters(network), flatten_parameters(plain), rtol=1e-4, atol=1e-6)
    assert not torch.equal(flatten_parameters(network), flatten_parameters(method.fresh_network(0)))


def test_it_is_trained_between_the_rounds_but_not_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    method, trained = started(rounds=3), []
    monkeypatch.setattr(method, "_train", lambda _step, _optimiser, *rest: trained.append(rest))
    method.iterate(7)
    assert trained == [(7, 0), (7, 1)]


def test_pixels_are_clamped_by_every_iteration_and_in_every_set() -> None:
    method = started(rounds=1, lr_images=0.0)
    before = method.images.clone()
    assert 0 <= float(before.min()) < float(before.max()) <= 1
    method.images.add_(10)
    distilled = method.distilled()
    torch.testing.assert_close(distilled.preprocessing.inverse(distilled.images), torch.ones_like(before))
    method.iterate(0)
    assert torch.equal(method.images, torch.ones_like(before))


def test_tiles_start_as_real_images_of_their_class() -> None:
    method = started()
    real = method.problem.draw_real("start images", per_class=8)
    pixels = method.problem.train.pixels[real].float() / 255
    for n in range(6):
        for tile in range(4):
            y, x = 4 * (tile // 2), 4 * (tile % 2)
            held = method.images[n, :, y : y + 4, x : x + 4]
            torch.testing.assert_close(held, pixels[4 * n + tile, :, ::2, ::2], rtol=1e-5, atol=1e-6)
    assert torch.equal(method.problem.train.labels[real], torch.arange(3).repeat_interleave(8))


def test_of_many_training_images_some_are_drawn() -> None:
    method = started(synthetic_batch=3, class_chunk=2)
    found = []
    for chunk in method.chunks(4, 1):
        shown = torch.arange(8.0).view(1, 8, 1, 1, 1) + 10 * torch.arange(chunk.count).view(-1, 1, 1, 1, 1)
        found += [[int(v) % 10 for v in row.flatten()] for row in method.chosen(chunk, shown)]
    orders = [torch.randperm(8, generator=method.problem.generator("decoded images", 4, 1, c)) for c in range(3)]
    assert found == [order[:3].tolist() for order in orders]


def test_its_augmentation_is_what_the_task_has_of_it() -> None:
    assert started().augmentation.strategy == "color+crop+cutout"
    assert started(cutout=False).augmentation.strategy == "color+crop"
    problem = tiny_problem(request=False)
    for strategy, own in (("none", "none"), ("flip_crop", "crop"), (STRATEGY_NO_FLIP, "color+crop+cutout")):
        other = replace(problem, task=replace(problem.task, augmentation=Augmentation(strategy)))
        assert started(other).augmentation.strategy == own
        assert started(other).distilled().augmentation == strategy


# ---- strategies of several stages, and CutMix ------------------------------------------------------------------------


def test_stages_are_drawn_and_applied_one_after_another() -> None:
    strategy, images = Augmentation("flip+color+crop_scale_rotate"), torch.randn(5, 3, 8, 8)
    assert strategy.operations == ("flip", "color", "crop", "scale", "rotate")
    last = set()
    for seed in range(12):
        draw, rng = strategy.draw(5, 8, generator(0, "draw", seed)), generator(0, "draw", seed)
        expected = images
        for stage in ("flip", "color", "crop_scale_rotate"):
            own = Augmentation(stage)
            names = stage.split("_")
            operation = names[int(torch.randint(len(names), (), generator=rng))]
            expected = Augmentation(operation)(expected, _drawn(own, operation, rng))
        assert torch.equal(strategy(images, draw), expected)
        assert torch.equal(strategy(images[1:3], draw.of(slice(1, 3))), expected[1:3])
        last.add(draw.operation.rpartition("+")[2])
    assert last == {"crop", "scale", "rotate"}
    assert Augmentation("flip+color+crop_scale").within(Augmentation(STRATEGY_NO_FLIP)).strategy == "color+crop_scale"
    with pytest.raises(UsageError, match="unknown augmentation 'colour'"):
        Augmentation("crop+colour")


def _drawn(strategy: Augmentation, operation: str, rng: torch.Generator) -> Any:
    """The draw of ``operation``, whose choice was already drawn."""
    from dcbench_tesla.data.augmentation import _OPERATIONS, Draw

    assert operation in strategy.operations
    return Draw(operation, _OPERATIONS[operation].draw(5, 8, rng))


def test_cutmix_by_hand() -> None:
    images, labels = torch.randn(4, 2, 8, 8), torch.eye(4)
    changed, areas = 0, set()
    for seed in range(40):
        rng = generator(0, "cutmix", seed)
        chance, share = torch.rand(2, generator=rng).tolist()
        y, x = (int(torch.randint(8, (), generator=rng)) for _ in range(2))
        others = torch.randperm(4, generator=rng)
        found, mixed = cutmix(images, labels, generator(0, "cutmix", seed), 0.5)
        half = int(8 * (1 - share) ** 0.5) // 2
        inside = torch.zeros(8, 8, dtype=torch.bool)
        for row in range(8):
            for column in range(8):
                inside[row, column] = chance < 0.5 and y - half <= row < y + half and x - half <= column < x + half
        area = int(inside.sum()) / 64
        assert torch.equal(found, torch.where(inside, images[others], images))
        torch.testing.assert_close(mixed, (1 - area) * labels + area * labels[others])
        changed += chance < 0.5
        areas.add(area)
    assert 10 < changed < 30
    assert len(areas) > 8
    assert cutmix(images, labels, generator(0, "cutmix", 0), 0.0)[0] is images


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "ipc", "lr", "distance", "network_images", "cutmix_probability"),
    [
        ("cifar10", 1, 5e-4, "squared", 2000, 0.5),
        ("cifar10", 50, 2.5e-2, "squared", 2000, 0.5),
        ("cifar100", 20, 1e-2, "squared", 2000, 0.5),
        ("svhn", 10, 5e-3, "squared", 500, 0.5),
        ("mnist", 50, 5e-4, "absolute", 500, 0.0),
        ("fashion-mnist", 10, 1e-4 * (28 / 32) ** 2, "absolute", 500, 0.5),
    ],
)
def test_published_settings(
    dataset: str, ipc: int, lr: float, distance: str, network_images: int, cutmix_probability: float
) -> None:
    config = resolve("idc", dataset, ipc, preset="paper")
    s: Any = config.settings
    assert (config.protocol, s.iterations, s.rounds, s.factor) == ("paper", 2000, 100, 2)
    assert (s.distance, s.network_images, s.cutmix) == (distance, network_images, cutmix_probability)
    assert s.lr_images == pytest.approx(lr)
    assert s.cutout is (dataset != "mnist")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distance": "square"}, "unknown distance 'square'. Did you mean 'squared'"),
        ({"rounds": 0}, "rounds must be at least 1, not 0"),
        ({"cutmix": 1.5}, "cutmix a probability"),
        ({"lr_network": 0.0}, "lr_network must be positive"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        IDC.Settings(**settings)


def test_time_of_an_iteration_counts_rounds_and_trainings() -> None:
    few, factor = IDC.probe(IDC.Settings(rounds=100))
    assert few.rounds == 2
    assert factor == pytest.approx(199 / 3)
