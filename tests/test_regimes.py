"""Label regimes: a set's own labels, its classes, and those of a teacher for every augmented batch."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla import registry
from dcbench_tesla.api import evaluate, run
from dcbench_tesla.cells.evaluation import NEAR, Accuracy, Evaluation, notes_on_teacher
from dcbench_tesla.cells.saved import evaluate_saved
from dcbench_tesla.cli.compare import accuracy as cli_accuracy
from dcbench_tesla.compare.accuracy import Wanted, accuracies, markdown
from dcbench_tesla.compute.networks import ConvNet, flatten_parameters, seeded
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.config import REGIMES, Override, baseline_of, overrides_from, resolve
from dcbench_tesla.conformance import tiny_sets
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.distilled import CENTRED, Decoder, DistilledSet
from dcbench_tesla.errors import UsageError
from dcbench_tesla.evaluators.convnet import ConvNetEvaluator, ConvNetSettings
from dcbench_tesla.evaluators.training import TrainingSet, distillation_loss, train
from dcbench_tesla.interface import Teacher
from dcbench_tesla.presets import PRESETS
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.finished import finished
from tests.fixtures_cells import SELECTION, command, configured, ran, rows, set_words

CPU, SEED = torch.device("cpu"), 7
SETTINGS: dict[str, Any] = {**SELECTION, "evaluation.networks": 2}
TAUGHT = {"evaluation.labels": "teacher", "evaluation.teacher_epochs": 2, "network.width": 4}

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- against plain loops -----------------------------------------------------------------------------------------


def soft_set() -> DistilledSet:
    return tiny_sets()["soft labels and a learned rate"]


def teacher(temperature: float = 3.0) -> Teacher:
    with seeded(1):
        return Teacher(network=ConvNet(1, 3, 8, width=4).eval(), temperature=temperature)


def convnet() -> ConvNetEvaluator:
    return ConvNetEvaluator(ConvNetSettings(epochs=6, width=4, batch_size=4))


def plain_loop(images: Tensor, labels_of: Callable[[Tensor, Tensor], Tensor], loss: Callable[..., Tensor]) -> Tensor:
    """The published recipe by hand: SGD with momentum, half of the epochs at the learned rate, half at a tenth."""
    with seeded(SEED):
        network = ConvNet(1, 3, 8, width=4).to(images.dtype).train()
    augmentation = Augmentation(soft_set().augmentation)
    for epoch in range(6):
        rng = generator(SEED, "evaluation epoch", epoch)
        if epoch in (0, 3):
            lr = 0.01 if epoch == 0 else 0.1 * 0.01
            optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        for batch in torch.randperm(len(images), generator=rng).split(4):
            seen = augmentation(images[batch], augmentation.draw(len(batch), 8, rng))
            optimiser.zero_grad()
            loss(network(seen), labels_of(batch, seen)).backward()
            optimiser.step()
    return flatten_parameters(network)


def test_own_and_hard_labels_are_those_of_a_plain_loop_bit_by_bit() -> None:
    made = soft_set()
    (own,), (hard,) = (convnet().train(d, [SEED], CPU) for d in (made, made.with_hard_labels()))
    assert torch.equal(
        flatten_parameters(own), plain_loop(made.images, lambda i, _: made.labels[i], nn.CrossEntropyLoss())
    )
    classes = made.labels.argmax(1)
    expected = plain_loop(made.images, lambda i, _: classes[i], nn.CrossEntropyLoss())
    assert torch.equal(flatten_parameters(hard), expected)
    assert not torch.equal(flatten_parameters(own), expected)


def kl(logits: Tensor, p: Tensor) -> Tensor:
    return 9 * (p * (p.log() - (logits / 3).log_softmax(1))).sum(1).mean()


def test_a_teacher_labels_every_augmented_batch_as_in_a_plain_loop() -> None:
    made, taught = soft_set(), teacher()

    def labels(_: Tensor, seen: Tensor) -> Tensor:
        with torch.no_grad():
            return F.softmax(taught.network(seen) / 3, dim=1)

    (found,) = convnet().with_teacher(taught).train(made, [SEED], CPU)
    torch.testing.assert_close(flatten_parameters(found), plain_loop(made.images, labels, kl), rtol=0, atol=1e-6)


def test_a_teacher_is_followed_to_1e_12_in_float64() -> None:
    made, taught = soft_set(), teacher()
    evaluator, double = convnet(), Teacher(network=taught.network.double(), temperature=3.0)
    recipe = evaluator.recipe_for(made)
    data = TrainingSet(made, CPU, recipe, double)
    data._images = data._images.double()
    with seeded(SEED):
        found = train(ConvNet(1, 3, 8, width=4).double(), data, recipe, SEED)

    def labels(_: Tensor, seen: Tensor) -> Tensor:
        with torch.no_grad():
            return F.softmax(double.network(seen) / 3, dim=1)

    expected = plain_loop(made.images.double(), labels, kl)
    torch.testing.assert_close(flatten_parameters(found), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_times_the_square_of_the_temperature(temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    p = torch.randn(5, 3, generator=rng, dtype=torch.float64).softmax(1)
    loss = distillation_loss(temperature)(logits, p)
    terms = p * (p.log() - F.log_softmax(logits / temperature, 1))
    torch.testing.assert_close(loss, temperature**2 * terms.sum(1).mean(), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    by_hand = temperature / 5 * ((logits / temperature).softmax(1) - p)
    torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-12)


def test_hard_labels_of_stored_and_of_centred_sets_are_the_largest_values_classes() -> None:
    made = tiny_sets()["1 x 8 x 8"]
    centred = torch.tensor([[0.1, 0.4, -0.2], [-0.5, -0.4, -0.6]] * 3)
    decoder = Decoder(factor=2)
    stored = dataclasses.replace(made, labels=centred, label_space=CENTRED, decoder=decoder, evaluation_recipe="frepo")
    hard = stored.with_hard_labels()
    assert hard.labels.tolist() == [1, 1] * 3
    assert hard.label_space == "probabilities"
    assert (hard.decoder, hard.evaluation_recipe) == (decoder, "frepo")
    assert hard.decoded().labels.tolist() == [1] * 24  # that of the stored image
    torch.testing.assert_close(hard.centred_labels()[0], torch.tensor([-1 / 3, 2 / 3, -1 / 3]))
    assert hard.with_hard_labels() is hard


def test_an_evaluator_without_a_teacher_says_so() -> None:
    kind = registry.load_evaluator("kernel-ridge")
    with pytest.raises(UsageError, match="KernelRidge does not learn from a teacher"):
        kind(kind.Settings()).with_teacher(teacher())
    with pytest.raises(UsageError, match="a loss of centred labels takes no labels by a teacher"):
        TrainingSet(soft_set(), CPU, dataclasses.replace(convnet().recipe_for(soft_set()), loss="mse"), teacher())


# ---- cells -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell of soft labels and one of classes, each under two regimes; the teacher was trained for the first one."""
    out = tmp_path_factory.mktemp("regimes") / "out"
    ran(out, "rded", {**SETTINGS, "teacher_epochs": 2, "network.width": 4, "pool": 4})
    ran(out, "random", {**SETTINGS, **TAUGHT})
    ran(out, "random", SETTINGS)
    return out


def test_cells_share_the_teacher_with_one_another_and_with_the_methods(made: Path) -> None:
    (row,) = rows(made, "experts")  # what rded read; that of random was there
    assert (row["experts"], row["epochs"], row["trained_epochs"]) == (1, 2, 2)
    taught = [row for row in rows(made, "evaluate") if "labels" in row]
    (folder,) = (made / "experts").iterdir()
    about = {"regime": "teacher", "expert": 0, "epochs": 2, "experts": folder.name, "temperature": 1.0, "loss": "kl"}
    assert [row["labels"] for row in taught] == [about]
    assert len({row["condense_key"] for row in taught} | {rows(made, "condense")[0]["key"]}) <= 2


def test_a_row_says_how_good_the_teacher_is_and_a_note_where_it_is_no_better_than_the_set(made: Path) -> None:
    (row,) = [row for row in rows(made, "evaluate") if "labels" in row]
    cell = _cell(made, {**SETTINGS, **TAUGHT})
    taught, test = cell.materials.teacher(CPU), cell.materials.splits(CPU).test
    labels = taught.labels(test.inputs(torch.arange(len(test))))
    assert row["teacher_test"] == pytest.approx(float((labels.argmax(1) == test.labels).double().mean()))
    last = Accuracy.of([0.7, 0.8], 0)
    (note,) = notes_on_teacher(last, 0.8)
    assert "the teacher itself is right on 80.0 % of the test images" in note
    assert notes_on_teacher(last, 0.81) == notes_on_teacher(last, None) == notes_on_teacher(None, 0.8) == []
    assert any("the teacher itself" in note for note in row.get("notes", [])) == (
        row["accuracy"]["last"]["mean"] >= row["teacher_test"] - NEAR
    )


def test_a_regime_is_part_of_the_evaluations_key_only_where_it_is_another(made: Path) -> None:
    keys = {}
    for name, more in (("set", {}), ("hard", {"evaluation.labels": "hard"}), ("teacher", TAUGHT)):
        cell = _cell(made, {**SETTINGS, **more})
        keys[name] = (cell.key, cell.identity.evaluation_key("convnet"))
    assert len({condensed for condensed, _ in keys.values()}) == 1
    assert len({evaluated for _, evaluated in keys.values()}) == 3
    warm = _cell(made, {**SETTINGS, **TAUGHT, "evaluation.temperature": 2})
    assert warm.identity.evaluation_key("convnet") not in {evaluated for _, evaluated in keys.values()}


def _cell(out: Path, settings: dict[str, Any]) -> Any:
    from dcbench_tesla.cells.session import Session

    return Session(out, device="cpu", quiet=True).cell(configured("random", settings))


def test_classes_are_their_own_hard_labels_and_nothing_is_trained_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    (cell,) = (out / "cells").glob("random-*")
    monkeypatch.setattr(Evaluation, "run", lambda *_: pytest.fail("networks were trained"))
    row = evaluate_saved(cell, overrides=[Override("evaluation", "labels", "hard")], device="cpu")["convnet"]
    assert "its labels are classes already" in capsys.readouterr().err
    own = next(r for r in rows(out, "evaluate") if "labels" not in r and r["method"] == "random")
    assert row["labels"] == {"regime": "hard"}
    assert (row["accuracy"], row["environment"]) == (own["accuracy"], own["environment"])
    assert row["command"].endswith("--set evaluation.labels=hard")


def test_the_row_of_the_same_labels_is_taken_where_the_cell_kept_no_snapshot(tmp_path: Path) -> None:
    settings = {**SETTINGS, "iterations": 4, "evaluation.every": 2, "evaluation.networks_on_the_way": 1}
    own = ran(tmp_path, "dm", settings)
    shutil.rmtree(own.cell.place.folder / "snapshots")
    hard = ran(tmp_path, "dm", {**settings, "evaluation.labels": "hard"})
    assert hard.accuracy("convnet") == own.accuracy("convnet")
    with pytest.raises(UsageError, match="condensed without a snapshot of iteration 2"):
        ran(tmp_path, "dm", {**settings, "evaluation.networks": 3})


def test_soft_labels_made_hard_give_another_row(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    (cell,) = (out / "cells").glob("rded-*")
    row = evaluate_saved(cell, overrides=[Override("evaluation", "labels", "hard")], device="cpu")["convnet"]
    (path,) = cell.glob("distilled.safetensors")
    expected = evaluate(DistilledSet.load(path).with_hard_labels(), preset="smoke", settings=_own(SETTINGS), quiet=True)
    assert row["accuracy"]["last"]["values"] == list(expected.values)
    file = evaluate_saved(
        path, preset="smoke", overrides=overrides_from({**_own(SETTINGS), "evaluation.labels": "hard"}), out=tmp_path
    )
    assert file["convnet"]["accuracy"]["last"]["values"] == list(expected.values)
    assert file["convnet"]["labels"] == {"regime": "hard"}


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith("data.")}


def test_an_evaluation_by_a_teacher_goes_on_where_it_was_killed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = next(row for row in rows(made, "evaluate") if "labels" in row)
    from dcbench_tesla.cells import evaluation

    class Killed(BaseException):
        pass

    test, tested = evaluation.train_and_test, list[int]()

    def killed_after_one(*given: Any) -> Any:
        if len(tested) == 1:
            raise Killed
        tested.append(1)
        time.sleep(0.3)
        return test(*given)

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "train_and_test", killed_after_one)
        with pytest.raises(Killed):
            ran(tmp_path, "random", {**SETTINGS, **TAUGHT})
    (row,) = ran(tmp_path, "random", {**SETTINGS, **TAUGHT}).rows.values()
    assert row["key"] == whole["key"]
    assert row["accuracy"] == whole["accuracy"]
    assert row["evaluate_seconds"] >= 0.3  # with what was there before


def test_the_baseline_of_a_cell_has_its_regime_and_its_teacher() -> None:
    config = resolve(
        "dm", "digits", 1, preset="smoke", overrides=overrides_from({**TAUGHT, "evaluation.temperature": 2.0})
    )
    plain = baseline_of(config)
    assert (plain.evaluation.labels, plain.evaluation.temperature) == ("teacher", 2.0)
    assert (plain.network, plain.experts) == (config.network, config.experts)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_teacher_that_rded_reads(preset: str) -> None:
    rded = resolve("rded", "digits", 1, preset=preset)
    assert rded.settings.teacher_epochs == rded.evaluation.teacher_epochs
    assert resolve("random", "digits", 1, preset=preset).evaluation.teacher_epochs == rded.settings.teacher_epochs


def test_methods_with_other_experts_or_batch_norm_have_the_same_teacher(tmp_path: Path) -> None:
    from dcbench_tesla.cells.session import Session

    session = Session(tmp_path, device="cpu", quiet=True)
    about = {"network.width": 8, "network.depth": 2, "evaluation.labels": "teacher"}  # at depth 1 frepo's has no norm
    keys = {session.cell(configured(m, about)).materials.teacher_key for m in ("random", "ftd", "frepo", "dm")}
    assert len(keys) == 1


def test_a_file_has_the_teacher_of_its_own_preprocessing_or_none(tmp_path: Path) -> None:
    settings = _own(SETTINGS)
    path = ran(tmp_path, "random", settings).cell.place.distilled
    about = overrides_from({**settings, "evaluation.labels": "teacher", "evaluation.teacher_epochs": 1})
    row = evaluate_saved(path, preset="smoke", overrides=about, out=tmp_path)["convnet"]
    assert row["labels"]["epochs"] == 1
    assert (tmp_path / "experts" / row["labels"]["experts"]).is_dir()
    found = DistilledSet.load(path)
    other = dataclasses.replace(found.preprocessing, mean=found.preprocessing.mean + 1)
    dataclasses.replace(found, preprocessing=other).save(tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="its images are preprocessed in another way"):
        evaluate_saved(tmp_path / "other.safetensors", preset="smoke", overrides=about, out=tmp_path)
    with pytest.raises(UsageError, match="teacher needs the training images"):
        evaluate(path, preset="smoke", settings={"evaluation.labels": "teacher"})


def test_ones_own_network_has_the_regime_of_the_cell(made: Path) -> None:
    def network(channels: int, classes: int, side: int) -> nn.Module:
        return ConvNet(channels, classes, side, width=4)

    def own(settings: dict[str, Any]) -> Any:
        found = run(
            "random", "digits", 1, preset="smoke", evaluators={"mine": network}, settings=settings, out=made,
            device="cpu", quiet=True,
        )  # fmt: skip
        return found.accuracy("mine")

    longer = {**SETTINGS, "convnet.epochs": 40}
    assert own({**longer, **TAUGHT}).values != own(longer).values


# ---- messages, estimates and tables ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "told"),
    [
        ("random", {"evaluation.labels": "sets"}, "unknown evaluation.labels 'sets'. Did you mean 'set'"),
        ("random", {"evaluation.temperature": 2}, "has no effect: evaluation.labels is set: there is no teacher"),
        ("random", {"evaluation.labels": "hard", "evaluation.teacher_epochs": 2}, "evaluation.labels is hard"),
        ("random", {**TAUGHT, "experts.count": 3}, "the teacher is expert 0"),
        ("random", {**TAUGHT, "experts.gsam_rho": 0.1}, "the teacher is trained by plain SGD"),
        ("random", {"network.width": 4}, "method random uses no network"),
        ("random", {**TAUGHT, "evaluation.temperature": 0}, "evaluation.temperature must be positive"),
        ("random", {**TAUGHT, "evaluation.teacher_epochs": 0}, "evaluation.teacher_epochs must be at least 1"),
        ("kip", {"evaluation.labels": "teacher", "convnet.recipe": "authors"}, "whose loss is of centred labels"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(method: str, settings: dict[str, Any], told: str) -> None:
    result = command("run", "--method", method, *set_words(settings))
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_an_evaluator_that_cannot_learn_from_a_teacher_is_refused() -> None:
    result = command("run", "--method", "random", "--evaluator", "kernel-ridge", "--set", "evaluation.labels=teacher")
    assert result.exit_code == 2
    assert "evaluator kernel-ridge, which does not learn from a teacher" in " ".join(result.stderr.split())


def test_a_dry_run_and_a_memory_budget_count_the_teacher(tmp_path: Path) -> None:
    words = ["run", "--method", "random", "--preset", "smoke", "--device", "cpu", "--out", tmp_path]
    words += set_words({**SETTINGS, **TAUGHT})
    (planned,) = json.loads(command(*words, "--dry-run", "--json").stdout)["cells"]
    assert planned["stages"] == ["condense", "teacher", "evaluate by convnet"]
    assert planned["seconds"].keys() == {"teacher", "evaluation by convnet"}
    assert planned["peak_bytes"] > 0
    over = command(*words, "--memory-budget", planned["peak_bytes"] - 1000)
    assert "are needed for training the teacher" in over.stderr
    assert "--set experts.micro_batch=" in over.stderr


def test_evaluate_names_the_labels(made: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    (cell,) = (out / "cells").glob("random-*")
    shown = command("evaluate", cell, "--device", "cpu", "--set", "evaluation.labels=hard").stdout
    assert shown.rstrip().endswith(", 2 epochs, hard labels)")


def test_tables_name_the_regime_and_those_of_papers_take_own_labels_only(made: Path) -> None:
    table = accuracies(Workspace(made), Wanted(methods=("random",)))
    assert set(table["labels"].dropna()) == {"teacher"}
    assert len(table) == 2
    told = " ".join(markdown(table).split())
    assert "convnet labels=teacher" in told
    assert "labels of a teacher (2 epochs, temperature 1)" in told
    assert len(accuracies(Workspace(made), Wanted(methods=("random",), labels=("teacher",)))) == 1
    own = command("compare", "accuracy", "--out", made, "--method", "random", "--labels", "set")
    assert "labels=" not in own.stdout
    assert "| `random` |" in own.stdout
    (option,) = (o for o in cli_accuracy.params if o.name == "labels")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == REGIMES
    assert ["labels" in cell.rows[0] for cell in finished(Workspace(made), ("random",), ("convnet",))] == [False]


# ---- compare regimes ---------------------------------------------------------------------------------------------

ACCURACIES = {
    ("random", "set"): ([0.60, 0.61], [0.62, 0.63]),
    ("random", "teacher"): ([0.70, 0.71], [0.70, 0.73]),
    ("dm", "set"): ([0.70, 0.71], [0.73, 0.73]),
    ("dm", "hard"): ([0.65, 0.66], [0.66, 0.69]),
    ("dm", "teacher"): ([0.71, 0.71], [0.71, 0.72]),
}


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """Rows of two methods under several regimes, with the accuracies above by seed and network."""
    for (method, regime), by_seed in ACCURACIES.items():
        for seed, values in enumerate(by_seed):
            labels = {"regime": regime} | (
                {"epochs": 3, "temperature": 2.0, "experts": "e"} if regime == "teacher" else {}
            )
            more: dict[str, Any] = {"labels": labels} if regime != "set" else {}
            more |= {"teacher_test": 0.886} if regime == "teacher" and seed else {}  # an older row has none
            word = f" --set evaluation.labels={regime} --set evaluation.teacher_epochs=3" if regime == "teacher" else ""
            stage(tmp_path, method, seed, values, extra=more, also=word, key=f"{method}{regime}{seed}")
    return tmp_path


def stage(out: Path, method: str, seed: int, values: list[float], *, extra: Any, also: str, key: str) -> None:
    shared = {
        "dataset": "digits",
        "dataset_fingerprint": "f",
        "method": method,
        "ipc": 1,
        "seed": seed,
        "preset": "smoke",
        "protocol": "smoke",
        "cell": f"{method}-{seed}",
        "command": f"dcbench run --method {method} --dataset digits --ipc 1 --preset smoke"
        f"{f' --seed {seed}' if seed else ''}{also}",
        "hardware": "a machine",
        "environment": {"commit": "c"},
    }
    identity = {"network": None, "data": {"train_images": 9}, "method": method, "seed": seed}
    workspace, made = Workspace(out), f"{method}{seed}"
    workspace.write_row("condense", made, {**shared, "settings": {}, "distilled_images": 10, "identity": identity})
    last = dataclasses.asdict(Accuracy.of(values, 0))
    evaluated = {
        "condense_key": made,
        "evaluator": "convnet",
        "recipe": "published",
        "settings": {"epochs": 5},
        "networks": len(values),
        "diverged_networks": 0,
        "evaluate_seconds": 1.0,
        "evaluated": [{"iteration": 0, "test": values, "validation": [], "diverged": 0}],
        "accuracy": {"last": last, "best_on_test": last, "best_on_validation": None},
    }
    workspace.write_row("evaluate", key, {**shared, **evaluated, **extra})


def test_methods_stand_beside_random_with_the_same_labels(compared: Path) -> None:
    from scipy import stats  # type: ignore[import-untyped]

    from dcbench_tesla.compare.regimes import regimes

    records = regimes(Workspace(compared), Wanted()).to_dict("records")
    table = {(row["method"], row["regime"]): row for row in records}
    means = {key: [sum(values) / 2 for values in by_seed] for key, by_seed in ACCURACIES.items()}
    for regime in ("set", "teacher"):
        row, test = table["dm", regime], stats.ttest_rel(means["dm", regime], means["random", regime])
        assert row["over_random"] == pytest.approx(
            sum(a - b for a, b in zip(means["dm", regime], means["random", regime], strict=True)) / 2
        )
        assert (row["over_random_p"], row["over_random_pairs"]) == (pytest.approx(test.pvalue), 2)
        ends = test.confidence_interval(0.95)
        assert (row["over_random_low"], row["over_random_high"]) == pytest.approx((ends.low, ends.high))
    assert pd.isna(table["dm", "hard"]["over_random"])  # random has no such row


def test_networks_of_one_set_do_not_count_among_the_seeds(compared: Path) -> None:
    """p of pairs of seeds is that without the method of one seed, whose own is corrected apart and told apart."""
    from dcbench_tesla.compare.regimes import regimes

    def p() -> dict[Any, Any]:
        table = regimes(Workspace(compared), Wanted())
        return table[table["regime"] == "set"].set_index("method")["over_random_p"].to_dict()

    before = p()
    stage(compared, "herding", 0, [0.65, 0.67], extra={}, also="", key="herding alone")
    assert p()["dm"] == before["dm"]
    assert p()["herding"] > 0
    text = " ".join(command("compare", "regimes", "--out", compared).stdout.split())
    told = "decidedly over `random`, 0 decidedly below (pairs of"
    assert f"stored: 1 of 1 {told} seeds); 0 of 1 {told} networks)" in text


def test_the_command_shows_every_regime_and_names_the_commands_for_what_is_missing(compared: Path) -> None:
    result = command("compare", "regimes", "--out", compared)
    assert result.exit_code == 0, result.output
    (line,) = (text for text in result.stdout.splitlines() if text.startswith("| `dm`") and "±" in text)
    assert [cell.strip().split(" ")[0] for cell in line.split("|")[2:5]] == ["66.5", "71.8", "71.2"]
    assert "teacher: labels of a teacher (3 epochs, temperature 2)" in result.stdout
    assert "88.6 % of the test images" in " ".join(result.stdout.split())
    missing = [text.removeprefix("missing: ") for text in result.stderr.splitlines() if text.startswith("missing")]
    about = "--dataset digits --ipc 1 --preset smoke"
    assert missing == [f"dcbench run --method random --seed 0 --seed 1 {about} --set evaluation.labels=hard"]
    found = json.loads(command("compare", "regimes", "--out", compared, "--json").stdout)
    assert found["kind"] == "compare regimes"
    assert len(found["rows"]) == len(ACCURACIES)
    for name in ("tables/regimes.csv", "tables/regimes.md", "figures/regimes.png", "figures/regimes.svg"):
        assert (compared / name).stat().st_size > 0


def test_of_two_teachers_the_shorter_one_is_the_first_and_the_longer_one_is_asked_for(compared: Path) -> None:
    labels = {"regime": "teacher", "epochs": 12, "temperature": 2.0, "experts": "e"}
    word = " --set evaluation.labels=teacher --set evaluation.teacher_epochs=12"
    for method, values in (("random", [0.50, 0.51]), ("dm", [0.80, 0.811])):
        stage(compared, method, 0, values, extra={"labels": labels}, also=word, key=f"{method}longer")
    result = command("compare", "regimes", "--out", compared)
    text = " ".join(result.stdout.split())
    (head,) = (line for line in result.stdout.splitlines() if line.startswith("| method"))
    assert [cell.strip() for cell in head.split("|")[4:6]] == ["teacher 1", "teacher 2"]
    assert text.index("teacher 1: labels of a teacher (3 epochs") < text.index(
        "teacher 2: labels of a teacher (12 epochs"
    )
    assert "teacher 1: 0 of 1 decidedly over `random`, 0 decidedly below (pairs of seeds)" in text
    assert "teacher 2: 1 of 1 decidedly over `random`, 0 decidedly below (pairs of networks)" in text
    assert (
        f"missing: dcbench run --method dm --method random --seed 1 --dataset digits --ipc 1 --preset smoke{word}"
        in (result.stderr)
    )


def test_the_report_has_a_table_of_the_regimes_where_there_are_several(compared: Path, tmp_path: Path) -> None:
    from dcbench_tesla.reports.html.regimes import regimes_part

    (figure,) = regimes_part(Workspace(compared)).figures
    assert figure.table is not None
    assert figure.table.head[:4] == ["method", "hard", "stored", "teacher"]
    assert any("missing: `dcbench run --method random" in note for note in figure.notes)
    for path in (compared / "rows").glob("evaluate-*.json"):
        if "set" not in path.name:
            path.unlink()
    assert not regimes_part(Workspace(compared)).figures
