"""Every evaluator: published sizes, all image sizes, and that training teaches it something."""

import pytest
import torch
from torch import nn

from dcbench_tesla import registry
from dcbench_tesla.compute.networks import seeded
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.evaluators.cross_architecture import CrossArchitecture, network_side
from dcbench_tesla.evaluators.training import Recipe, TrainedNetwork

PUBLISHED = {"convnet": 320_010, "resnet18": 11_173_962, "vit": 9_523_722, "alexnet": 1_872_202, "vgg11": 9_231_114}
NARROW = {"convnet": {"width": 8}, "resnet18": {"width": 8}, "vit": {"width": 32}}
EVALUATORS = [  # families: test_timm; what trains no network: test_kernel
    name for name in registry.names("evaluators") if ":" not in name and name != "kernel-ridge"
]


def evaluator(name: str, **settings: object) -> TrainedNetwork:
    kind = registry.load_evaluator(name)
    made = kind(kind.Settings(**settings))
    assert isinstance(made, TrainedNetwork)
    return made


def small(name: str, **settings: object) -> TrainedNetwork:
    return evaluator(name, **NARROW.get(name, {}), **settings)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_every_evaluator_has_a_published_size_here() -> None:
    assert set(EVALUATORS) == set(PUBLISHED)


@pytest.mark.parametrize("name", EVALUATORS)
def test_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        assert count(evaluator(name).build(3, 10, 32)) == PUBLISHED[name]


@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EVALUATORS)
def test_logits_differ_between_images_of_every_size(name: str, channels: int, side: int) -> None:
    with seeded(0):
        network = small(name).build(channels, 7, side).eval()
        images = torch.randn(4, channels, side, side)
    logits = network(images)
    assert logits.shape == (4, 7)
    assert float(logits.detach().std(0).min()) > 1e-4  # a norm over one pixel would make them equal


@pytest.mark.parametrize(("side", "seen"), [(8, 32), (16, 32), (27, 32), (28, 32), (32, 32), (33, 36), (64, 64)])
def test_size_a_network_sees(side: int, seen: int) -> None:
    assert network_side(side) == seen


def two_classes() -> DistilledSet:
    """Bright and dark images: whoever learns anything learns this."""
    images = torch.cat([torch.full((4, 1, 8, 8), 1.0), torch.full((4, 1, 8, 8), -1.0)])
    images += 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return DistilledSet(
        images=images,
        labels=torch.arange(2).repeat_interleave(4),
        class_names=("bright", "dark"),
        preprocessing=Preprocessing("standardise", torch.zeros(1), torch.ones(1)),
        augmentation="none",
        lr=0.02,
    )


@pytest.mark.parametrize("name", [n for n in EVALUATORS if n not in ("alexnet", "vgg11")])
def test_training_learns_and_repeats_itself(name: str) -> None:
    distilled = two_classes()
    made = small(name, epochs=12)
    first, again, other = made.train(distilled, [1, 1, 2], torch.device("cpu"))
    assert made.cost(distilled) == 12
    predicted = first(distilled.images)
    # instance norm removes the brightness but not the pattern: it is the noise that is learned there
    assert float((predicted.argmax(1) == distilled.labels).float().mean()) >= 0.75
    assert torch.equal(predicted, again(distilled.images))
    assert not torch.equal(predicted, other(distilled.images))


@pytest.mark.parametrize("name", [n for n in EVALUATORS if n != "convnet"])
def test_only_the_recipe_learned_lr_looks_at_the_sets_rate(name: str) -> None:
    distilled = two_classes()
    usual, learned = small(name), small(name, recipe="learned-lr")
    assert isinstance(usual, CrossArchitecture)
    assert usual.recipe_for(distilled).lr == usual.settings.lr
    assert learned.recipe_for(distilled).lr == 0.02
    assert learned.recipe.startswith("learned-lr")
    assert usual.recipe.startswith("adam-cosine")


@pytest.mark.parametrize(
    ("images", "batch_size", "least", "sizes"),
    [
        (5, 2, 1, [2, 2, 1]),
        (5, 2, 2, [2, 3]),
        (4, 2, 2, [2, 2]),
        (3, 8, 2, [3]),
        (1, 8, 2, [1]),  # nothing it could join
        (257, 256, 1, [256, 1]),
        (257, 256, 2, [257]),
        (10, 4, 3, [4, 6]),
    ],
)
def test_a_last_batch_that_is_too_small_joins_the_one_before(
    images: int, batch_size: int, least: int, sizes: list[int]
) -> None:
    recipe = Recipe(epochs=1, lr=0.1, batch_size=batch_size, weight_decay=0.0, least_batch=least)
    order = torch.randperm(images)
    batches = recipe.batches(order)
    assert [len(batch) for batch in batches] == sizes
    assert torch.equal(torch.cat(batches), order)


@pytest.mark.parametrize("name", EVALUATORS)
def test_named_evaluators_split_as_their_stored_results_did(name: str) -> None:
    made = small(name)
    assert made.recipe_for(two_classes()).least_batch == 1
