"""The recipes of methods' authors: each against a loop written out here, and which evaluation follows one."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import dcbench_tesla
from dcbench_tesla import registry
from dcbench_tesla.cells.saved import _SavedSet, evaluate_saved
from dcbench_tesla.cli import main
from dcbench_tesla.compare.accuracy import Wanted, accuracies, sections
from dcbench_tesla.compute.compiling import squared_error
from dcbench_tesla.compute.named_networks import FrePoNet
from dcbench_tesla.compute.networks import ConvNet, flatten_parameters, seeded
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.config import baseline_of, overrides_from, resolve, resolve_all
from dcbench_tesla.data.augmentation import Augmentation, Draw, cutmix
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import CENTRED, Decoder, DistilledSet, Steps
from dcbench_tesla.errors import UsageError
from dcbench_tesla.evaluators.convnet import ConvNetEvaluator, ConvNetSettings
from dcbench_tesla.evaluators.training import TrainedNetwork
from dcbench_tesla.interface import Condenser
from dcbench_tesla.methods.subset.random import RandomSelection
from dcbench_tesla.presets import recipes
from dcbench_tesla.records.workspace import Workspace

CPU = torch.device("cpu")
K, N, SEED = 3, 6, 5
STEPS = Steps(torch.tensor([0.05, 0.3, 0.1, 0.2]), torch.tensor([[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5]]))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def made(recipe: str, **changed: Any) -> DistilledSet:
    facts: dict[str, Any] = {
        "images": torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.arange(K).repeat_interleave(N // K),
        "class_names": ("a", "b", "c"),
        "preprocessing": Preprocessing("standardise", torch.zeros(1), torch.ones(1)),
        "augmentation": "none",
        "evaluation_recipe": recipe,
    }
    return DistilledSet(**{**facts, **changed})


def evaluator(**settings: Any) -> ConvNetEvaluator:
    return ConvNetEvaluator(ConvNetSettings(recipe="authors", width=4, **settings))


def trained(distilled: DistilledSet, **settings: Any) -> Tensor:
    (network,) = evaluator(**settings).train(distilled, [SEED], CPU)
    return flatten_parameters(network)


def start(width: int = 4, norm: str = "instance", kind: type[ConvNet | FrePoNet] = ConvNet) -> nn.Module:
    with seeded(SEED):
        return kind(1, K, 8, width, norm=norm)


def batches(size: int, images: int = N) -> Iterator[Tensor]:
    """The batches of shuffled epochs, without end; nothing but the order is drawn without augmentation."""
    epoch = 0
    while True:
        yield from torch.randperm(images, generator=generator(SEED, "evaluation epoch", epoch)).split(size)
        epoch += 1


def step(network: nn.Module, loss: Tensor, state: list[Tensor], lr: float, momentum: float, decay: float) -> None:
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for p, g, v in zip(network.parameters(), gradients, state, strict=True):
            v.mul_(momentum).add_(g + decay * p)
            p.sub_(lr * v)


def zeros(network: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) for p in network.parameters()]


# ---- each recipe -----------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_file() -> None:
    assert recipes.names() == ["cafe", "datm", "dd", "frepo", "idc", "kip", "ld", "mtt", "rat-bptt", "rded"]


def test_dd_follows_its_steps_in_order_with_their_rates() -> None:
    distilled = made("dd", steps=STEPS, augmentation="flip_crop")  # which it does not use
    network = start()
    for rate, batch in zip(STEPS.rates.tolist(), STEPS.batches, strict=True):
        loss = -network(distilled.images[batch]).log_softmax(1)[torch.arange(3), distilled.labels[batch]].mean()
        step(network, loss, zeros(network), rate, 0.0, 0.0)
    assert torch.allclose(trained(distilled), flatten_parameters(network), atol=1e-6)
    assert evaluator().cost(distilled) == 4


def test_another_recipe_takes_the_mean_of_the_rates() -> None:
    own = ConvNetEvaluator(ConvNetSettings(epochs=3, width=4))
    assert own.recipe_for(made("dd", steps=STEPS)).lr == pytest.approx(0.1625)
    assert own.recipe_for(made("dd", steps=STEPS)).learned is None


def test_datm_is_mtts_with_its_batch_and_soft_labels() -> None:
    soft = torch.rand(N, K, generator=torch.Generator().manual_seed(1)).softmax(1)
    found = evaluator().recipe_for(made("datm", labels=soft, lr=0.02))
    common = ConvNetEvaluator(ConvNetSettings(schedule="released")).own_recipe(made("", labels=soft, lr=0.02))
    assert found == dataclasses.replace(common, batch_size=N)  # of 128 that there are
    many = made("datm", images=torch.randn(300, 1, 8, 8), labels=torch.arange(300) % K)
    assert evaluator().recipe_for(many).batch_size == 128
    assert evaluator().recipe_for(many).lr == 0.01
    assert evaluator().recipe_for(dataclasses.replace(many, evaluation_recipe="mtt")).batch_size == 256


def test_soft_labels_reach_the_cross_entropy() -> None:
    soft = torch.rand(N, K, generator=torch.Generator().manual_seed(1)).softmax(1)
    network, distilled = start(), made("datm", labels=soft, lr=0.3)
    state = zeros(network)
    for batch, _ in zip(batches(128), range(3), strict=False):
        loss = -(soft[batch] * network(distilled.images[batch]).log_softmax(1)).sum(1).mean()
        step(network, loss, state, 0.3, 0.9, 5e-4)
    assert torch.allclose(trained(distilled, most_steps=3), flatten_parameters(network), atol=1e-6)


def test_frepo_against_a_loop_written_out() -> None:
    """Adam at 3e-4 (k + 1) / 500 in the warm-up, then a cosine from 3e-4 to 1 % of it; half the squared error.

    What is tested is the mean of the weights after every step, those k steps back with the weight 0.995^k.
    """
    values = torch.randn(N, K, generator=torch.Generator().manual_seed(1))
    distilled = made("frepo", labels=values, label_space=CENTRED)
    network, steps, average = start(norm="none", kind=FrePoNet), 7, torch.zeros(())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in network.parameters()]
    for k, batch in zip(range(steps), batches(500), strict=False):
        logits = network(distilled.images[batch])
        loss = sum(((logits[i] - values[batch[i]]) ** 2).sum() / 2 for i in range(N)) / N
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for p, g, (m, v) in zip(network.parameters(), gradients, moments, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g**2)
                root = (v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8
                p.sub_(3e-4 * (k + 1) / 500 * m / (1 - 0.9 ** (k + 1)) / root)
        average = average + 0.995 ** (steps - 1 - k) * flatten_parameters(network)
    average = average / sum(0.995**k for k in range(steps))
    found = trained(distilled, most_steps=steps)
    assert float((found - average).norm()) < 0.02 * float((found - flatten_parameters(network)).norm())
    recipe = evaluator().recipe_for(distilled)
    assert recipe.rate(0, 499) == pytest.approx(3e-4)
    assert recipe.rate(0, 500) == pytest.approx(3e-4)
    assert recipe.rate(0, 750) == pytest.approx(3e-4 * (0.01 + 0.99 * 0.5))  # half of the 500 steps after the warm-up
    assert recipe.rate(0, 999) == pytest.approx(3e-6, rel=0.01)


@pytest.mark.parametrize(
    ("images", "steps"),
    [(10, 1000), (100, 2000), (200, 20000), (400, 5000), (500, 5000), (1000, 10000), (5000, 40000), (1, 1000)],
)
def test_frepos_steps_by_the_number_of_images(images: int, steps: int) -> None:
    recipe = recipes.authors_recipe("frepo")
    assert recipe.steps_for(images) == steps
    large = made("frepo", images=torch.zeros(images, 1, 8, 8), labels=torch.zeros(images, dtype=torch.int64))
    assert evaluator().cost(large) == steps
    assert evaluator().recipe_for(large).batch_size == min(images, 500)


def test_decoded_images_count() -> None:
    stored = made("frepo", images=torch.zeros(25, 1, 8, 8), labels=torch.arange(25) % K, decoder=Decoder(2))
    assert evaluator().cost(stored) == 2000
    assert evaluator().recipe_for(stored).batch_size == 100


def test_kip_against_a_loop_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Momentum at the setting's rate along a cosine to 0, on labels minus 1/K; the width is the recipe's."""
    small = dataclasses.replace(recipes.authors_recipe("kip"), width=6)
    monkeypatch.setattr("dcbench_tesla.evaluators.training.authors_recipe", lambda name: small)
    network, distilled = start(width=6, norm="none"), made("kip")
    state, targets = zeros(network), torch.eye(K)[distilled.labels] - 1 / 3
    for k, batch in zip(range(5), batches(100), strict=False):
        loss = ((network(distilled.images[batch]) - targets[batch]) ** 2).sum(1).mean() / 2
        step(network, loss, state, 0.2 * (1 + math.cos(math.pi * k / 5000)) / 2, 0.9, 1e-3)
    assert torch.allclose(trained(distilled, lr=0.2, most_steps=5), flatten_parameters(network), atol=1e-6)


def test_kips_published_size() -> None:
    recipe = evaluator(lr=0.2).recipe_for(made("kip"))
    assert (recipe.total(N), recipe.lr, recipe.augmentation) == (5000, 0.2, False)
    network = evaluator().network_for(made("kip"))
    assert next(network.parameters()).shape[0] == 1024


def test_squared_error_by_its_formula() -> None:
    assert float(squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))) == 1.75


def test_a_compiled_step_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from dcbench_tesla.compute import compiling

    eager = trained(made("kip"), lr=0.05, most_steps=2)
    asked: list[object] = []

    class Follower(compiling.CompiledFunctions):
        def run(self, name: object, function: Any, *arguments: Tensor, backward: bool = False) -> Any:
            asked.append(name)
            found = function(*arguments)
            return (*torch.autograd.grad(found, arguments[0]), found[0].detach())

    monkeypatch.setattr(compiling, "CompiledFunctions", Follower)
    monkeypatch.setattr(compiling, "_training_is_compiled", True)
    monkeypatch.setattr(compiling, "_of_networks", {})
    torch.testing.assert_close(trained(made("kip"), lr=0.05, most_steps=2), eager, rtol=1e-4, atol=1e-6)
    assert len(asked) == 2


def test_idc_against_a_loop_written_out() -> None:
    """A fifth of the rate after 2/3 and 5/6 of the epochs, CutMix of every other batch; operations of the set's DSA."""
    distilled = made("idc", augmentation="color_cutout")
    network = start()
    state, color = zeros(network), Augmentation("color")
    for epoch in range(3):
        rng = generator(SEED, "evaluation epoch", epoch)
        batch = torch.randperm(N, generator=rng)
        images = color(distilled.images[batch], Draw("color", _drawn_color(N, rng)))
        images, labels = cutmix(images, torch.eye(K)[distilled.labels[batch]], rng, 0.5)
        loss = -(labels * network(images).log_softmax(1)).sum(1).mean()
        step(network, loss, state, 0.01, 0.9, 5e-4)
    assert torch.allclose(trained(distilled, most_steps=3), flatten_parameters(network), atol=1e-6)
    recipe = evaluator().recipe_for(distilled)
    rates = [recipe.rate(epoch, 0) for epoch in (0, 665, 666, 832, 833, 999)]
    assert rates == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.0004, 0.0004])
    assert evaluator().cost(made("idc", images=torch.zeros(100, 1, 8, 8), labels=torch.arange(100) % K)) == 2000


def _drawn_color(count: int, rng: torch.Generator) -> dict[str, Tensor]:
    torch.randint(1, (), generator=rng)  # the choice of the operation
    names = {"brightness": (-0.5, 1.0), "saturation": (0.0, 2.0), "contrast": (0.5, 1.0)}
    return {name: low + width * torch.rand(count, generator=rng) for name, (low, width) in names.items()}


def test_cafes_epochs_by_the_sets_augmentation() -> None:
    assert evaluator().recipe_for(made("cafe")).epochs == 600
    assert evaluator().recipe_for(made("cafe", augmentation="color_crop")).epochs == 1000
    assert "600 epochs (1000 with DSA)" in str(recipes.authors_recipe("cafe"))


def test_what_was_added_later_changes_no_key_of_other_recipes() -> None:
    later = {"strategy", "cutmix", "augmented_epochs"}
    assert not any(
        later & recipes.authors_recipe(name).content.keys() for name in ("mtt", "datm", "frepo", "kip", "dd")
    )
    assert {"strategy", "cutmix"} <= recipes.authors_recipe("idc").content.keys()


# ---- what cannot be followed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("", "the set names no recipe of its authors: leave recipe=authors out"),
        ("datn", "unknown evaluation recipe 'datn'. Did you mean 'datm'"),
        ("rded", "recipe=authors cannot be followed for rded: its loss is the KL divergence to a teacher"),
        ("dd", "the recipe dd follows learned steps, and the set has none"),
    ],
)
def test_one_clear_error(recipe: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        trained(made(recipe))


def other(name: str, **settings: Any) -> TrainedNetwork:
    kind: Any = registry.load_evaluator(name)
    found = kind(kind.Settings(recipe="authors", **settings))
    assert isinstance(found, TrainedNetwork)
    return found


def test_another_network_follows_all_but_a_width() -> None:
    resnet = other("resnet18", width=8, most_steps=2)
    (network,) = resnet.train(made("frepo"), [1], CPU)
    assert network(made("").images).shape == (N, K)
    assert resnet.recipe_of("frepo").startswith("authors, frepo: mse, adam")
    with pytest.raises(UsageError, match="trains a ConvNet of width 1024, and this evaluator another network"):
        resnet.train(made("kip"), [1], CPU)


def test_a_recipe_that_there_is_not() -> None:
    with pytest.raises(UsageError, match=r"unknown recipe 'author'\. Did you mean 'authors'"):
        ConvNetSettings(recipe="author")


def test_ld_is_adam_at_a_constant_rate_for_the_sets_own_steps() -> None:
    soft = torch.rand(N, K, generator=torch.Generator().manual_seed(1)).softmax(1)
    distilled = made("ld", labels=soft, training_steps=7, augmentation="flip")  # which it does not use
    network = start()
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for batch, _ in zip(batches(50), range(7), strict=False):
        optimiser.zero_grad()
        (-(soft[batch] * network(distilled.images[batch]).log_softmax(1)).sum(1).mean()).backward()
        optimiser.step()
    assert torch.allclose(trained(distilled), flatten_parameters(network), atol=1e-6)
    assert evaluator().cost(distilled) == 7
    assert evaluator().cost(dataclasses.replace(distilled, training_steps=0)) == 1000
    assert distilled.plain().training_steps == 0


# ---- sets of format 2 by other recipes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": torch.randn(N, K, generator=torch.Generator().manual_seed(2)), "label_space": CENTRED},
        {"decoder": Decoder(2)},
        {"steps": STEPS},
    ],
    ids=["centred", "decoder", "steps"],
)
def test_the_published_recipe_trains_on_the_plain_form(changed: dict[str, Any]) -> None:
    own = ConvNetEvaluator(ConvNetSettings(epochs=2, width=4))
    whole = made("", **changed)
    (a,), (b,) = (own.train(given, [SEED], CPU) for given in (whole, whole.plain()))
    assert torch.equal(flatten_parameters(a), flatten_parameters(b))
    assert own.cost(whole) == own.cost(whole.plain())


def test_an_evaluator_that_knows_format_1_only_is_given_that() -> None:
    whole = made("dd", steps=STEPS)
    assert evaluator().given(whole) is whole

    class Simple(ConvNetEvaluator):
        """One that says nothing of format 2."""

        whole_sets = False

    assert Simple(ConvNetSettings()).given(whole).version == 1


# ---- cells -----------------------------------------------------------------------------------------------------------

ASKED = {"convnet.recipe": "authors"}


def test_a_baseline_without_authors_is_evaluated_by_the_published_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.load_method("dm"), "evaluation_recipe", "datm")
    (config,) = resolve_all(["dm"], ["digits"], [1], [0], overrides=overrides_from(ASKED))
    assert config.evaluators["convnet"].recipe == "authors"
    assert baseline_of(config).evaluators["convnet"].recipe == "published"
    both = resolve_all(["dm", "random"], ["digits"], [1], [0], overrides=overrides_from(ASKED))
    assert [c.evaluators["convnet"].recipe for c in both] == ["authors", "published"]
    with pytest.raises(UsageError, match=r"convnet\.recipe has no effect: .* authors follow the common one"):
        resolve("random", "digits", 1, overrides=overrides_from(ASKED))


@pytest.mark.parametrize("setting", ["convnet.epochs", "convnet.batch_size", "convnet.learned_lr"])
def test_settings_that_the_authors_recipe_brings(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomSelection, "evaluation_recipe", "datm")
    with pytest.raises(UsageError, match=f"{setting} has no effect: recipe authors brings its own"):
        resolve("random", "digits", 1, overrides=overrides_from({**ASKED, setting: 1}))
    with pytest.raises(UsageError, match=r"convnet\.most_steps has no effect: it is for recipe authors"):
        resolve("random", "digits", 1, overrides=overrides_from({"convnet.most_steps": 3}))


def run(out: Path, **settings: Any) -> dict[str, Any]:
    given = {f"convnet.{name}": value for name, value in settings.items()}
    result = dcbench_tesla.run("random", dataset="digits", ipc=1, preset="smoke", settings=given, out=out, quiet=True)
    return {**result.rows["convnet"], "recipe_in_set": result.distilled.evaluation_recipe}


def test_a_row_says_which_recipe_it_is_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published = run(tmp_path, epochs=2)
    assert "recipe" not in published["settings"]  # as in the rows on record
    assert published["recipe"].startswith("published")
    monkeypatch.setattr(RandomSelection, "evaluation_recipe", "datm")
    assert run(tmp_path, epochs=2)["key"] == published["key"]
    row = run(tmp_path, recipe="authors", most_steps=2)
    assert row["recipe"] == "authors, datm: cross-entropy, sgd, batch 128, 1000 epochs, at most 2 steps"
    assert row["settings"]["recipe"] == "authors"
    assert row["protocol"] == "smoke, changed: convnet.most_steps, convnet.recipe"
    monkeypatch.setattr(RandomSelection, "evaluation_recipe", "frepo")
    other = run(tmp_path, recipe="authors", most_steps=2)
    assert other["key"] != row["key"]
    assert "not theirs: augmentation" in other["recipe"]


def test_tables_tell_the_recipes_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`run` and `compare accuracy`: authors' and published accuracies are never in one column, nor subtracted."""
    monkeypatch.setattr(registry.load_method("class-means"), "evaluation_recipe", "datm")
    words = "run --method class-means --dataset digits --ipc 1 --preset smoke --set convnet.recipe=authors"
    words += f" --set convnet.most_steps=2 --out {tmp_path}"
    printed = CliRunner().invoke(main, words.split(), catch_exceptions=False).output
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert "convnet by authors, datm" in lines["class-means"]
    assert "authors" not in lines["random"]
    assert "points over random" not in printed
    (section,) = sections(accuracies(Workspace(tmp_path), Wanted()), "last")
    columns = [name for name in section.head if name.startswith("convnet")]
    assert len(columns) == 2
    told = [note for note in section.notes if "authors, datm: cross-entropy" in note]
    assert [note.partition(":")[0] for note in told] == [name for name in columns if "recipe=authors" in name]


def test_a_cell_writes_the_recipe_into_its_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(RandomSelection, "evaluation_recipe", "datm")
    row = run(tmp_path, recipe="authors", most_steps=2)
    assert row["recipe_in_set"] == "datm"
    (path,) = tmp_path.glob("cells/*/distilled.safetensors")
    monkeypatch.undo()  # the file alone says it
    asked = overrides_from({**ASKED, "convnet.most_steps": 2})
    rows = evaluate_saved(path, overrides=asked, out=tmp_path, preset="smoke", quiet=True)
    assert rows["convnet"]["recipe"].startswith("authors, datm")


def test_the_key_of_an_evaluated_file_covers_what_networks_see() -> None:
    def digest(**changed: Any) -> str:
        file = _SavedSet.__new__(_SavedSet)
        file.distilled = dataclasses.replace(made(""), **changed)
        return file._digest

    values = torch.eye(K)[torch.arange(K).repeat_interleave(N // K)]
    in_another_order = dataclasses.replace(STEPS, batches=STEPS.batches.flip(1))
    others: list[dict[str, Any]] = [{"steps": STEPS}, {"steps": in_another_order}, {"decoder": Decoder(2)}]
    others += [{"labels": values}, {"labels": values, "label_space": CENTRED}]
    assert len({digest(), *(digest(**changed) for changed in others)}) == 1 + len(others)
    assert digest(evaluation_recipe="datm") == digest()  # the settings and the recipe's content are hashed beside it


def test_an_estimate_has_what_a_recipe_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from dcbench_tesla.cells.estimate import estimate
    from dcbench_tesla.cells.session import Session

    monkeypatch.setattr(RandomSelection, "evaluation_recipe", "dd")
    assert Condenser.stand_in(None, made("dd")).steps is None

    def with_steps(settings: object, distilled: DistilledSet) -> DistilledSet:
        batch = torch.arange(len(distilled))[None]
        return dataclasses.replace(distilled, steps=Steps(torch.full((3,), 0.1), batch.repeat(3, 1)))

    monkeypatch.setattr(RandomSelection, "stand_in", with_steps)
    config = resolve("random", "digits", 1, preset="smoke", overrides=overrides_from(ASKED))
    cell = Session("unused", quiet=True).cell(config)
    assert estimate(cell, ["evaluate by convnet"], expert_epochs=0).total > 0
