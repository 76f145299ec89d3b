"""Accuracies counted by hand, the three names they have, and the evaluator's recipe against a plain loop."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from dcbench_tesla.cells.evaluation import Accuracy, Evaluated, accuracy, summarise
from dcbench_tesla.compute.networks import flatten_parameters
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import DivergedError
from dcbench_tesla.evaluators.convnet import ConvNetEvaluator, ConvNetSettings
from dcbench_tesla.evaluators.training import Recipe, TrainingSet, train

CPU = torch.device("cpu")
PLAIN = Preprocessing("standardise", torch.zeros(1), torch.ones(1))


# ------------------------------------------------------------------------------------------------------- accuracies


class Threshold(nn.Module):
    """Says class 1 for images whose mean is over one half."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], 1)


def grey(levels: list[int], labels: list[int]) -> LabelledImages:
    pixels = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return LabelledImages(
        pixels, torch.tensor(labels), classes=2, max_value=255, preprocessing=PLAIN, device=torch.device("cpu")
    )


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert accuracy(Threshold(), grey([0, 50, 200, 255, 10], [0, 1, 1, 0, 0])) == 3 / 5


def test_accuracy_over_several_batches_and_without_training_mode() -> None:
    levels = [0, 255, 255] * 700
    network = nn.Sequential(nn.Dropout(0.99), Threshold()).train()
    assert accuracy(network, grey(levels, [0, 1, 0] * 700)) == pytest.approx(2 / 3)


def test_mean_and_population_deviation() -> None:
    found = Accuracy.of([0.5, 0.7, 0.9], iteration=4)
    assert found.mean == pytest.approx(0.7)
    assert found.std == pytest.approx(math.sqrt((0.04 + 0 + 0.04) / 3))
    assert (found.values, found.iteration) == ((0.5, 0.7, 0.9), 4)
    assert str(found) == "70.0 ± 16.3 %"
    assert Accuracy.of([0.5], 0).std == 0


def evaluated(*rows: tuple[int, list[float], list[float]]) -> list[Evaluated]:
    return [Evaluated(iteration=i, test=test, validation=validation) for i, test, validation in rows]


def test_three_names() -> None:
    on_the_way = evaluated((10, [0.9, 0.7], [0.2]), (20, [0.5], [0.6]), (30, [0.6, 0.6], [0.5]))
    chosen = summarise(on_the_way)
    assert {name: (a.iteration, a.mean) for name, a in chosen.items() if a} == {
        "last": (30, 0.6),
        "best_on_validation": (20, 0.5),  # its test accuracy, though the validation images chose it
        "best_on_test": (10, pytest.approx(0.8)),
    }


def test_of_equals_the_later_wins() -> None:
    chosen = summarise(evaluated((10, [0.5], [0.4]), (20, [0.5], [0.4]), (30, [0.1], [0.1])))
    assert [a.iteration for a in chosen.values() if a] == [30, 20, 20]


def test_nothing_is_chosen_without_validation_images() -> None:
    chosen = summarise(evaluated((10, [0.5], []), (20, [0.4], [])))
    assert chosen["best_on_validation"] is None
    assert chosen["best_on_test"] == Accuracy.of([0.5], 10)


def test_single_set_is_last_and_best() -> None:
    assert {a.mean for a in summarise(evaluated((0, [0.25, 0.75], [0.1, 0.2]))).values() if a} == {0.5}


def test_networks_are_added_one_by_one() -> None:
    record = Evaluated(iteration=3).with_network(0.5, 0.4).with_network(0.7, 0.6)
    assert (record.test, record.validation) == ((0.5, 0.7), (0.4, 0.6))
    assert Evaluated(iteration=3).with_network(0.5, None).validation == ()


# ----------------------------------------------------------------------------------------------------------- recipe


def learnable(count: int = 10, **changes: object) -> DistilledSet:
    """Bright images of class 1, dark ones of class 0."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 8, 8, generator=rng) + labels.view(-1, 1, 1, 1)
    made = DistilledSet(
        images=images, labels=labels, class_names=("dark", "bright"), preprocessing=PLAIN, augmentation="none"
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


RECIPE = Recipe(epochs=5, lr=0.05, batch_size=4, momentum=0.9, weight_decay=5e-4)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))


def by_hand(network: nn.Module, made: DistilledSet, recipe: Recipe, seed: int) -> Tensor:
    """Run the published recipe, written out; soft or hard labels."""
    parameters = list(network.parameters())
    targets = made.labels if made.labels.ndim == 2 else nn.functional.one_hot(made.labels, 2).float()
    augmentation = Augmentation(made.augmentation)
    for epoch in range(recipe.epochs):
        if epoch in (0, recipe.epochs // 2):
            velocities = [torch.zeros_like(p) for p in parameters]
        lr = recipe.lr if epoch < recipe.epochs // 2 else recipe.lr / 10
        rng = generator(seed, "evaluation epoch", epoch)
        for chunk in torch.randperm(len(made), generator=rng).split(recipe.batch_size):
            images = augmentation(made.images[chunk], augmentation.draw(len(chunk), 8, rng))
            loss = -(targets[chunk] * network(images).log_softmax(1)).sum(1).mean()
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocities, strict=True):
                    v.mul_(recipe.momentum).add_(g + recipe.weight_decay * p)
                    p.sub_(lr * v)
    return flatten_parameters(network)


@pytest.mark.parametrize("epochs", [2, 5, 6])
def test_recipe_against_a_loop_written_out(epochs: int) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=epochs)
    network = train(small_network(), TrainingSet(learnable(), CPU, RECIPE), recipe, seed=7)
    assert torch.allclose(flatten_parameters(network), by_hand(small_network(), learnable(), recipe, 7), atol=1e-6)
    assert not network.training


@pytest.mark.parametrize("strategy", ["flip", "color_crop_cutout_scale_rotate"])
def test_recipe_with_augmentation_and_soft_labels(strategy: str) -> None:
    soft = torch.rand(10, 2, generator=torch.Generator().manual_seed(3)).softmax(1)
    made = learnable(labels=soft, augmentation=strategy)
    network = train(small_network(), TrainingSet(made, CPU, RECIPE), RECIPE, seed=7)
    assert torch.allclose(flatten_parameters(network), by_hand(small_network(), made, RECIPE, 7), atol=1e-6)


@pytest.mark.parametrize(("epochs", "at_full_rate"), [(4, 4), (5, 4), (6, 5)])
def test_released_code_makes_one_epoch_more_and_lowers_the_rate_two_later(epochs: int, at_full_rate: int) -> None:
    """E + 1 epochs, E // 2 + 2 of them at the full rate, then a new optimiser: written out by other recipes."""
    made, counted = learnable(), dataclasses.replace(RECIPE, epochs=epochs, schedule="released")
    longer = dataclasses.replace(RECIPE, epochs=2 * at_full_rate, schedule="halves")  # halves at that epoch
    visits = list(counted.visits(10, 7))
    assert len(visits) == counted.total(10) == sum(v.epoch <= epochs for v in longer.visits(10, 7))
    network, other = small_network(), small_network()
    rates = [o.param_groups[0]["lr"] / RECIPE.lr for e in range(epochs + 1) if (o := counted.start(other, e))]
    assert rates == pytest.approx([1.0, 0.1])
    assert [e for e in range(epochs + 1) if counted.start(other, e)] == [0, at_full_rate]
    cut = dataclasses.replace(longer, most_steps=len(visits))
    a, b = (
        flatten_parameters(train(n, TrainingSet(made, CPU, r), r, 7)) for n, r in ((network, counted), (other, cut))
    )
    assert torch.equal(a, b)


def test_one_epoch_is_all_at_the_full_rate() -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1, momentum=0.0, weight_decay=0.0, batch_size=10)
    start = flatten_parameters(small_network())
    full = flatten_parameters(train(small_network(), TrainingSet(learnable(), CPU, RECIPE), recipe, 0)) - start
    tenth = dataclasses.replace(recipe, lr=recipe.lr / 10)
    small = flatten_parameters(train(small_network(), TrainingSet(learnable(), CPU, RECIPE), tenth, 0)) - start
    assert torch.allclose(full, 10 * small, rtol=1e-3, atol=1e-6)


def test_real_pixels_train_as_their_inputs_do() -> None:
    pixels = torch.randint(0, 256, (10, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    chosen = learnable(images=pixels)
    learned = learnable(images=pixels.float() / 255)
    a, b = (
        flatten_parameters(train(small_network(), TrainingSet(m, CPU, RECIPE), RECIPE, 0)) for m in (chosen, learned)
    )
    assert torch.allclose(a, b, atol=1e-6)


def test_divergence_is_one_message() -> None:
    recipe = dataclasses.replace(RECIPE, lr=1e30)
    with pytest.raises(DivergedError, match=r"diverged \(loss (nan|inf), lr 1e\+30\): lower .* learning rate"):
        train(small_network(), TrainingSet(learnable(), CPU, RECIPE), recipe, 0)


# -------------------------------------------------------------------------------------------------- ConvNetEvaluator


def settings(**changes: object) -> ConvNetSettings:
    return dataclasses.replace(ConvNetSettings(epochs=6, width=4), **changes)  # type: ignore[arg-type]


def end(made: DistilledSet, chosen: ConvNetSettings, seed: int = 1) -> Tensor:
    (network,) = ConvNetEvaluator(chosen).train(made, [seed], CPU)
    return flatten_parameters(network)


def test_learned_rate_is_used_where_there_is_one() -> None:
    learned = learnable(lr=0.2)
    assert torch.equal(end(learned, settings()), end(learnable(), settings(lr=0.2)))
    assert torch.equal(end(learned, settings(learned_lr=False)), end(learnable(), settings()))
    assert not torch.equal(end(learned, settings()), end(learnable(), settings()))


def test_seed_decides_everything() -> None:
    torch.manual_seed(1)
    first = end(learnable(), settings())
    torch.manual_seed(2)
    assert torch.equal(first, end(learnable(), settings()))
    assert not torch.equal(first, end(learnable(), settings(), seed=2))


def test_networks_of_several_seeds_are_those_of_each() -> None:
    networks = ConvNetEvaluator(settings()).train(learnable(), [1, 2], CPU)
    for network, seed in zip(networks, (1, 2), strict=True):
        assert torch.equal(flatten_parameters(network), end(learnable(), settings(), seed))


def test_it_learns() -> None:
    (network,) = ConvNetEvaluator(settings(epochs=60, lr=0.05)).train(learnable(20), [0], CPU)
    images = learnable(20)
    assert (network(images.images).argmax(1) == images.labels).float().mean() > 0.9


def test_cost_counts_steps() -> None:
    costs = [ConvNetEvaluator(settings(batch_size=b)).cost(learnable(10)) for b in (256, 10, 9, 5, 1)]
    assert costs == [6, 6, 12, 12, 60]


def test_recipe_names_what_is_not_published() -> None:
    assert ConvNetEvaluator(ConvNetSettings()).recipe == "published, 1000 epochs"
    assert ConvNetEvaluator(ConvNetSettings(epochs=300)).recipe == "published, 300 epochs"
    assert ConvNetEvaluator(settings(lr=0.5)).recipe == "published, lr 0.5, width 4, 6 epochs"
