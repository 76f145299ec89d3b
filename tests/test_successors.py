"""`ftd` and `datm`: flat experts, averaged images, the window, labels from experts, ATT's and PAD's settings."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcbench_tesla.cells.budget import predicted_expert_peak
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.estimate import _steps
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.compute.compiling import TrainingStep
from dcbench_tesla.compute.networks import ConvNet, FlatNetwork, flatten_parameters, seeded
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.config import ExpertSettings, overrides_from, parse_set, resolve
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.errors import UsageError
from dcbench_tesla.experts.store import StoredExperts
from dcbench_tesla.experts.training import gsam_direction, train_epoch
from dcbench_tesla.interface import Problem
from dcbench_tesla.methods.trajectory.datm import DATM, DATMSettings
from dcbench_tesla.methods.trajectory.ftd import FTD, FTDSettings
from dcbench_tesla.methods.trajectory.matching import TrajectoryMatching
from dcbench_tesla.methods.trajectory.successors import SuccessorSettings, WorstDistance
from dcbench_tesla.methods.trajectory.tesla import TESLA
from dcbench_tesla.methods.trajectory.tesla_exact import TESLAExact
from dcbench_tesla.profilers import LiveBytes
from dcbench_tesla.profilers.memory import PredictedMeter
from dcbench_tesla.records.progress import Bar

IPC, EPOCHS, EXPERTS = 2, 5, 3
BASE: Mapping[str, Any] = {
    "iterations": 6,
    "steps": 4,
    "expert_epochs": 1,
    "max_start_epoch": 3,
    "lr_images": 10.0,
    "student_lr": 0.02,
    "batch_size": 8,
}
OF_DATM = {"last_epoch": EPOCHS, "largest_loss": 100.0, "lr_labels": 1.0}
TINY: Mapping[str, Any] = {"data.train_images": 300, "network.width": 6, "experts.batch_size": 50}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    torch.set_num_threads(1)
    config = resolve("datm", "digits", IPC, preset="smoke", overrides=overrides_from(TINY))
    made: Cell = Session(tmp_path_factory.mktemp("successors"), device="cpu", quiet=True).cell(config)
    made.materials.expert_store.ensure(EXPERTS, EPOCHS, made.splits.train, Bar("", 0, 0, ""))
    return made


@pytest.fixture(scope="module")
def problem(cell: Cell) -> Problem:
    """Digits, two images a class, three small experts of five epochs with GSAM, no augmentation."""
    made = cell.problem(StoredExperts(cell.materials.expert_store, EXPERTS, torch.device("cpu")))
    return dataclasses.replace(made, task=dataclasses.replace(made.task, augmentation=Augmentation("none")))


def start(kind: type[TrajectoryMatching], problem: Problem, **changes: Any) -> Any:
    own = OF_DATM if kind is DATM else {}
    condenser = kind(kind.Settings(**{**BASE, **own, **changes}))
    condenser.setup(problem)
    return condenser


def copied(condenser: TrajectoryMatching) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in condenser.state_dict().items()}


def module(problem: Problem, expert: int, epoch: int) -> nn.Module:
    assert problem.experts is not None
    network = problem.build_network()
    torch.nn.utils.vector_to_parameters(problem.experts.snapshot(expert, epoch).clone(), network.parameters())
    return network.eval()


# ------------------------------------------------------------------------------------------------------------ GSAM


def plain_gsam(loss: Callable[[Tensor], Tensor], w: Tensor, rho: float, alpha: float) -> Tensor:
    """The direction of one adaptive GSAM step, element by element in one vector of all parameters."""

    def gradient(at: Tensor) -> list[float]:
        at = at.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(at), at)
        return [float(x) for x in found]

    def length(x: list[float]) -> float:
        return float(sum(value * value for value in x) ** 0.5)

    at = [float(x) for x in w]
    g = gradient(w)
    scale = length([abs(x) * y for x, y in zip(at, g, strict=True)]) + 1e-12
    moved = [x + rho * y * x * x / scale for x, y in zip(at, g, strict=True)]
    h = gradient(torch.tensor(moved, dtype=w.dtype))
    cosine = sum(x * y for x, y in zip(g, h, strict=True)) / (length(g) * length(h) + 1e-12)
    along = [y / (length(h) + 1e-12) for y in h]
    v = [x - cosine * length(g) * y for x, y in zip(g, along, strict=True)]
    return torch.tensor([y - alpha * z for y, z in zip(h, v, strict=True)], dtype=w.dtype)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_one_gsam_step_in_double_precision(alpha: float) -> None:
    with seeded(1):
        network = ConvNet(1, 3, 8, width=3).double()
        images, labels = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    flat, before = FlatNetwork(lambda: ConvNet(1, 3, 8, width=3)), flatten_parameters(network)
    parameters, step = list(network.parameters()), TrainingStep(network)
    loss = gsam_direction(parameters, lambda: step(images, labels), 0.05, alpha)
    found = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    expected = plain_gsam(lambda w: flat.loss(w, images, labels), before, 0.05, alpha)
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    assert torch.equal(flatten_parameters(network), before)  # the weights are back where they were
    assert float(loss) == pytest.approx(float(flat.loss(before, images, labels)), rel=1e-12)
    (plain,) = torch.autograd.grad(flat.loss(w := before.clone().requires_grad_(), images, labels), w)
    assert float((found - plain).norm() / plain.norm()) > 1e-3  # it is another direction


def test_an_epoch_of_gsam_is_a_loop_of_such_steps(cell: Cell) -> None:
    settings, augmentation = ExpertSettings(lr=0.1, batch_size=100, gsam_rho=0.05, gsam_alpha=0.5), Augmentation()
    train = cell.splits.train
    torch.manual_seed(0)
    network = cell.materials.build_network()
    flat, w = FlatNetwork(cell.materials.build_network), flatten_parameters(network).double()
    train_epoch(network, train, settings, augmentation, 2, 3)
    rng = generator(0, "expert epoch", 2, 3)
    for chunk in torch.randperm(len(train), generator=rng).split(100):
        images = augmentation(train.inputs(chunk), augmentation.draw(len(chunk), 8, rng)).double()
        labels = train.labels[chunk]
        w = w - 0.1 * plain_gsam(lambda at, x=images, y=labels: flat.loss(at, x, y), w, 0.05, 0.5)  # type: ignore[misc]
    assert torch.allclose(flatten_parameters(network).double(), w, atol=1e-5)


def test_gsam_is_part_of_the_experts_key_only_where_it_is_on(tmp_path: Path) -> None:
    def made(method: str, *assignments: str) -> Any:
        config = resolve(method, "digits", 1, preset="smoke", overrides=[parse_set(text) for text in assignments])
        return Session(tmp_path, device="cpu", quiet=True).cell(config).materials.expert_store.recipe

    plain = made("tesla")
    assert plain.key == "f9c927dd991996f6"  # as before there was a choice
    assert plain.identity["recipe"] == {"lr": 0.01, "batch_size": 256}
    assert made("ftd", "experts.gsam_rho=0").key == plain.key  # whatever alpha the preset has
    flat = made("tesla", "experts.gsam_rho=0.01", "experts.gsam_alpha=0.3")
    assert flat.identity["recipe"] == {"lr": 0.01, "batch_size": 256, "gsam_rho": 0.01, "gsam_alpha": 0.3}
    assert flat.key == made("ftd").key == made("datm").key
    keys = {plain.key, flat.key, made("ftd", "experts.gsam_alpha=1").key, made("ftd", "experts.gsam_rho=0.1").key}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["experts.gsam_alpha=0.3"], "experts.gsam_alpha has no effect: experts.gsam_rho is 0"),
        (["experts.gsam_rho=-1"], "experts.gsam_rho must be finite and not negative"),
        (["experts.gsam_rho=0.1", "experts.gsam_alpha=nan"], "experts.gsam_alpha must be finite"),
    ],
)
def test_settings_of_gsam_are_checked(assignments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve("tesla", "digits", 1, preset="smoke", overrides=[parse_set(text) for text in assignments])


def test_memory_and_time_of_gsam_are_foreseen(cell: Cell) -> None:
    meter = PredictedMeter(round_to=1)
    train = cell.splits.train
    train.inputs(torch.arange(1))
    with LiveBytes() as live:
        network = cell.materials.build_network()
        train_epoch(network, train, cell.config.experts, cell.materials.augmentation, 0, 0)
        live.reset_peak()
        train_epoch(network, train, cell.config.experts, cell.materials.augmentation, 0, 1)
    predicted = predicted_expert_peak(cell, meter, batch_size=50) - cell.materials.prepared_bytes
    assert predicted == pytest.approx(live.peak_bytes("cpu"), rel=0.02)
    assert _steps(cell, "experts", 4) == 2 * 4 * -(-cell.materials.train_images // 50)


# ------------------------------------------------------------------------------------------------------------- FTD


def test_the_set_is_the_average_of_the_images(problem: Problem) -> None:
    condenser = start(FTD, problem, ema=0.7)
    average = condenser.distilled().images.double()
    assert torch.equal(average.float(), condenser.state_dict()["value.images"])
    for iteration in range(4):
        condenser.iterate(iteration)
        average = 0.7 * average + 0.3 * condenser.state_dict()["value.images"].double()
        distilled = condenser.distilled()
        assert torch.allclose(distilled.images.double(), average, atol=1e-5)
        assert distilled.lr == float(condenser.state_dict()["value.student_lr"])  # as it is, not averaged
    assert not torch.allclose(distilled.images, condenser.state_dict()["value.images"], atol=1e-2)


@pytest.mark.parametrize(("gradient", "other"), [("exact", TESLAExact), ("frozen", TESLA)])
def test_without_an_average_it_is_matching(gradient: str, other: type[TrajectoryMatching], problem: Problem) -> None:
    mine, theirs = start(FTD, problem, ema=0.0, gradient=gradient), start(other, problem)
    for iteration in range(3):
        mine.iterate(iteration)
        theirs.iterate(iteration)
    assert torch.equal(mine.distilled().images, theirs.distilled().images)
    assert mine.distilled().lr == theirs.distilled().lr


def test_a_teacher_labels_the_averaged_images(problem: Problem) -> None:
    condenser = start(FTD, problem, ema=0.5, labels="target")
    for iteration in range(3):
        record = condenser.iterate(iteration)
    teacher = module(problem, int(record.metrics["expert"]), int(record.metrics["start_epoch"]) + 1)
    distilled = condenser.distilled()
    with torch.no_grad():
        assert torch.allclose(distilled.labels, teacher(distilled.images).softmax(1), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(FTD, {"ema": 0.7}), (DATM, {"largest_loss": 0.999, "current_start": 1, "growth_end": 4, "lr_labels": 5.0})],
)
def test_going_on_from_a_checkpoint_gives_equal_bytes(
    kind: type[TrajectoryMatching], changes: dict[str, Any], problem: Problem
) -> None:
    whole, first = start(kind, problem, **changes), start(kind, problem, **changes)
    for iteration in range(6):
        whole.iterate(iteration)
    for iteration in range(3):
        first.iterate(iteration)
    resumed = start(kind, problem, **changes)
    resumed.load_state_dict(copied(first))
    for iteration in range(3, 6):
        resumed.iterate(iteration)
    assert resumed.notes() == whole.notes()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    one, other = resumed.distilled(), whole.distilled()
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)


# ------------------------------------------------------------------------------------------------- DATM: the window


@pytest.mark.parametrize(
    ("changes", "bounds"),
    [
        ({"min_start_epoch": 2, "max_start_epoch": 7}, {0: 7, 3: 7, 1000: 7}),  # it does not grow
        (
            {"max_start_epoch": 20, "current_start": 10, "growth_end": 1000},
            {0: 10, 99: 10, 100: 11, 550: 15, 999: 19, 1000: 20, 5000: 20},
        ),
        (
            {"min_start_epoch": 4, "max_start_epoch": 50, "current_start": 30, "growth_end": 7},
            {0: 30, 1: 32, 6: 47, 7: 50},
        ),
        ({"max_start_epoch": 9, "current_start": 9, "growth_end": 5}, {0: 9, 4: 9, 5: 9}),
    ],
)
def test_the_bound_of_the_window(changes: dict[str, Any], bounds: dict[int, int]) -> None:
    condenser = DATM(DATMSettings(**changes))
    for iteration, bound in bounds.items():
        assert condenser.start_epochs(iteration) == (changes.get("min_start_epoch", 0), bound)


def test_start_epochs_fill_the_window_and_stay_in_it(problem: Problem) -> None:
    condenser = start(DATM, problem, min_start_epoch=1, max_start_epoch=4, current_start=3, growth_end=100)
    drawn = [condenser._draw_segment(iteration)[1] for iteration in range(400)]
    assert set(drawn[:100]) == {1, 2}  # 3 + floor(i / 100)
    assert all(80 < drawn[100:].count(epoch) < 120 for epoch in (1, 2, 3))


def test_experts_asked_for_reach_the_labels_epoch() -> None:
    def epochs(**changes: Any) -> int:
        return DATM.expert_request(DATMSettings(**{**BASE, **changes})).epochs

    assert epochs() == 100
    assert epochs(last_epoch=2) == 3  # the last target is later
    assert epochs(labels="hard", start="real", last_epoch=50) == 3
    assert epochs(labels="hard", last_epoch=50) == epochs(start="real", last_epoch=50) == 50


# -------------------------------------------------------------------------------------------- DATM: images and labels


def test_images_start_as_those_that_experts_classify_rightly(problem: Problem) -> None:
    distilled = start(DATM, problem).distilled()
    first = module(problem, 0, EPOCHS)
    with torch.no_grad():
        right = first(distilled.images).argmax(1) == problem.hard_labels()
        everything = first(problem.train.inputs(torch.arange(len(problem.train)))).argmax(1) == problem.train.labels
    assert not everything.all()  # so it is a choice
    for c, members in enumerate(problem.train.members):
        own = slice(c * IPC, (c + 1) * IPC)
        there = problem.train.inputs(members)
        assert all((there == image).flatten(1).all(1).any() for image in distilled.images[own])
        if everything[members].sum() >= IPC:
            assert right[own].all()
        rng = generator(problem.seed, "start images", c)  # the first that are met in random order
        order = members[torch.randperm(len(members), generator=rng)]
        wanted = problem.train.inputs(order[everything[order]][:IPC])
        assert torch.equal(distilled.images[own][: len(wanted)], wanted)
    assert len(distilled.images.unique(dim=0)) == 10 * IPC


class Toy:
    """Experts of a known opinion: only the bias of the classifier differs from zero, so every image gets its values."""

    def __init__(self, problem: Problem, biases: list[list[float]]) -> None:
        self._zero = torch.zeros(sum(p.numel() for p in problem.build_network().parameters()))
        self._biases = [torch.tensor(bias) for bias in biases]

    def __len__(self) -> int:
        return len(self._biases)

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        theta = self._zero.clone()
        theta[-len(self._biases[expert]) :] = self._biases[expert]
        return theta


def test_start_labels_are_the_mean_of_those_who_are_right(problem: Problem) -> None:
    for_0 = [[5.0, 1, 0, 0, 0, 0, 0, 0, 0, 0], [3.0, 0, 2, 0, 0, 0, 0, 0, 0, 0]]
    for_1 = [[0.0, 4, 1, 0, 0, 0, 0, 0, 0, 0]]
    toy = dataclasses.replace(problem, experts=Toy(problem, [for_1[0], *for_0]))
    condenser = start(DATM, toy)
    labels = condenser.state_dict()["value.labels"]
    assert torch.allclose(labels[:IPC], torch.tensor([4.0, 0.5, 1, 0, 0, 0, 0, 0, 0, 0]).expand(IPC, 10))
    assert torch.allclose(labels[IPC : 2 * IPC], torch.tensor(for_1).expand(IPC, 10))
    assert torch.allclose(labels[2 * IPC :], torch.tensor(for_1).expand(8 * IPC, 10))  # nobody is right: expert 0
    assert torch.allclose(condenser.distilled().labels, labels.softmax(1))
    assert any(f"{8 * IPC} of {10 * IPC} images" in note for note in condenser.notes())
    real = start(DATM, toy, start="real")
    assert torch.allclose(real.state_dict()["value.labels"], torch.tensor(for_1).expand(10 * IPC, 10))
    assert torch.equal(real.distilled().images, problem.train.inputs(problem.draw_real("start images")))
    assert real.notes() == []


def test_start_labels_of_trained_experts(problem: Problem) -> None:
    condenser = start(DATM, problem)
    images, hard = condenser.distilled().images, problem.hard_labels()
    networks = [module(problem, e, EPOCHS) for e in range(EXPERTS)]
    with torch.no_grad():
        for i, (image, label) in enumerate(zip(images, hard, strict=True)):
            said = [network(image[None])[0] for network in networks]
            right = [logits for logits in said if int(logits.argmax()) == int(label)] or said[:1]
            mean = torch.stack(right).mean(0)
            assert torch.allclose(condenser.state_dict()["value.labels"][i], mean, atol=1e-5)
    simplex = start(DATM, problem, label_space="probabilities")
    assert torch.allclose(simplex.distilled().labels, condenser.distilled().labels, atol=1e-4)


# ----------------------------------------------------------------------------------------------- DATM: the updates


def test_updates_are_those_of_an_unrolled_program(problem: Problem) -> None:
    """Soft cross-entropy on softmax of logits, T steps in one graph, and three optimisers with their own momentum."""
    s = DATMSettings(**{**BASE, **OF_DATM, "batch_size": 0, "lr_student_lr": 1e-5, "momentum": 0.5})
    condenser = start(DATM, problem, batch_size=0, lr_student_lr=1e-5)
    images, lr, logits = (condenser.state_dict()[f"value.{n}"].clone() for n in ("images", "student_lr", "labels"))
    updates = [(images, 10.0, 0.5), (lr, 1e-5, 0.5), (logits, 1.0, 0.9)]
    optimiser = torch.optim.SGD(
        [{"params": [value.requires_grad_()], "lr": rate, "momentum": m} for value, rate, m in updates], lr=1.0
    )
    network = FlatNetwork(problem.build_network)
    assert problem.experts is not None
    for iteration in range(3):
        record = condenser.iterate(iteration)
        expert, epoch = int(record.metrics["expert"]), int(record.metrics["start_epoch"])
        begin, target = problem.experts.snapshot(expert, epoch), problem.experts.snapshot(expert, epoch + 1)
        w = begin.clone().requires_grad_()
        for _ in range(s.steps):
            loss = -(logits.softmax(1) * network(w, images).log_softmax(1)).sum(1).mean()
            (g,) = torch.autograd.grad(loss, w, create_graph=True)
            w = w - lr * g
        loss = (w - target).square().sum() / (begin - target).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        now = condenser.state_dict()
        assert record.loss == pytest.approx(float(loss.detach()), rel=1e-4)
        assert torch.allclose(now["value.images"], images, atol=2e-3)
        assert torch.allclose(now["value.labels"], logits, atol=2e-4)
        assert float(now["value.student_lr"]) == pytest.approx(float(lr.detach()), rel=1e-4)
    assert not torch.allclose(logits, start(DATM, problem).state_dict()["value.labels"], atol=1e-3)


def test_iterations_above_the_bound_update_nothing(problem: Problem) -> None:
    losses = [start(DATM, problem, lr_labels=0.0).gradients(i)[0].loss for i in range(6)]
    bound = sorted(losses)[2]
    condenser = start(DATM, problem, largest_loss=bound)
    skipped = 0
    for iteration in range(6):
        before = copied(condenser)
        record = condenser.iterate(iteration)
        after = condenser.state_dict()
        learned = [name for name in before if name.startswith(("value.", "momentum."))]
        assert len(learned) == 6
        same = [torch.equal(before[name], after[name]) for name in learned]
        assert all(same) if record.loss > bound else not any(same)
        skipped += record.loss > bound
        assert record.metrics["skipped"] == skipped
    assert 0 < skipped < 6
    (note,) = (note for note in condenser.notes() if "updated nothing" in note)
    assert note.startswith(f"{skipped} of 6 iterations updated nothing")


# ------------------------------------------------------------------------------------------- ATT's and PAD's settings


def test_the_nearest_student_is_matched(problem: Problem) -> None:
    """With a rate so large that the last student has gone past the target, an earlier one is nearer."""
    assert problem.experts is not None
    network, nearest = FlatNetwork(problem.build_network), []
    for iteration in range(3):
        condenser = start(FTD, problem, student="nearest", student_lr=0.6, steps=6, batch_size=0)
        record, found = condenser.gradients(iteration)
        expert, epoch = int(record.metrics["expert"]), int(record.metrics["start_epoch"])
        begin, target = problem.experts.snapshot(expert, epoch), problem.experts.snapshot(expert, epoch + 1)
        images = condenser.distilled().images.requires_grad_()
        students = [begin.clone().requires_grad_()]
        for _ in range(6):
            loss = F.cross_entropy(network(students[-1], images), problem.hard_labels())
            (g,) = torch.autograd.grad(loss, students[-1], create_graph=True)
            students.append(students[-1] - 0.6 * g)
        distances = [float((w - target).abs().sum()) for w in students[1:]]
        nearest.append(1 + distances.index(min(distances)))
        loss = (students[nearest[-1]] - target).square().sum() / (begin - target).square().sum()
        (expected,) = torch.autograd.grad(loss, images)
        assert record.loss == pytest.approx(float(loss), rel=1e-3)
        assert float((found["images"] - expected).norm() / expected.norm()) < 1e-2
    assert min(nearest) < 6


def test_parameters_with_the_smallest_errors_are_left_out(problem: Problem) -> None:
    rng = generator(0, "pad")
    begin, target, w = (torch.randn(40, generator=rng, dtype=torch.float64) for _ in range(3))
    at = w.clone().requires_grad_()
    loss = WorstDistance(begin, target, 0.25)(at)
    (gradient,) = torch.autograd.grad(loss, at)
    worst = sorted(range(40), key=lambda i: -abs(float(w[i] - target[i])))[:30]
    scale = sum(float(begin[i] - target[i]) ** 2 for i in worst)
    assert float(loss) == pytest.approx(sum(float(w[i] - target[i]) ** 2 for i in worst) / scale, rel=1e-12)
    for i in range(40):
        assert float(gradient[i]) == pytest.approx(2 * float(w[i] - target[i]) / scale if i in worst else 0, rel=1e-12)
    some, all_ = (start(DATM, problem, left_out=share).gradients(0)[1]["images"] for share in (0.25, 0.0))
    assert float((some - all_).norm() / all_.norm()) > 1e-3
    same = start(DATM, problem, left_out=1e-9).gradients(0)[1]["images"]
    assert torch.allclose(same, all_, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (FTDSettings, {"ema": 1.0}, "ema must lie"),
        (SuccessorSettings, {"gradient": "unrolled"}, "unrolled"),
        (SuccessorSettings, {"student": "first"}, "first"),
        (SuccessorSettings, {"left_out": 1.0}, "left_out must lie"),
        (DATMSettings, {"min_start_epoch": 20}, "min_start_epoch must be"),
        (DATMSettings, {"min_start_epoch": 5, "current_start": 5}, "current_start must be"),
        (DATMSettings, {"current_start": 21}, "current_start must be"),
        (DATMSettings, {"growth_end": 0}, "growth_end must be"),
        (DATMSettings, {"start": "noise"}, "noise"),
        (DATMSettings, {"label_momentum": 1.0}, "label_momentum must lie"),
        (DATMSettings, {"largest_loss": 0.0}, "largest_loss must be positive"),
    ],
)
def test_settings_are_checked(kind: type[SuccessorSettings], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        kind(**changes)


def test_settings_without_effect() -> None:
    assert set(DATMSettings().inert()) == {"growth_end"}
    assert set(DATMSettings(current_start=5, labels="hard").inert()) == {"label_space", "lr_labels", "label_momentum"}
    assert "last_epoch" in DATMSettings(labels="hard", start="real").inert()


@pytest.mark.parametrize(
    ("method", "settings"), [("ftd", {"student": "nearest"}), ("datm", {}), ("datm", {"left_out": 0.5})]
)
def test_memory_can_be_predicted(method: str, settings: dict[str, Any]) -> None:
    meter, shape = PredictedMeter(), Shape("small", 3, 16, 10)
    peaks = [
        meter.measure(workload(method, shape, steps=steps, width=8, device=meter.device, settings=settings)).peak_bytes
        for steps in (2, 4)
    ]
    theta = 4 * FlatNetwork(lambda: ConvNet(3, 10, 16, 8)).parameter_count
    assert peaks[1] - peaks[0] == pytest.approx(2 * theta, rel=0.2)  # two further students, and no graph


# --------------------------------------------------------------------------------------------------------- presets

ALL = 0
# T, M, max start, batch, lr of the images, of b, b, alpha, d, ZCA (that of MTT's cell)
FTD_CELLS: dict[tuple[str, int], tuple[Any, ...]] = {
    ("cifar10", 1): (50, 2, 2, ALL, 100, 1e-7, 0.01, 0.3, 0.9999, True),
    ("cifar10", 10): (30, 2, 20, ALL, 100, 1e-5, 0.001, 0.3, 0.9995, True),
    ("cifar10", 50): (30, 2, 40, ALL, 1000, 1e-5, 0.01, 1, 0.999, False),
    ("cifar100", 1): (40, 3, 20, ALL, 1000, 1e-5, 0.01, 1, 0.9995, True),
    ("cifar100", 10): (20, 2, 40, ALL, 1000, 1e-5, 0.01, 1, 0.9995, False),
    ("cifar100", 50): (80, 2, 40, 1000, 1000, 1e-5, 0.01, 1, 0.999, True),
    ("tiny-imagenet", 1): (30, 2, 10, ALL, 1e4, 1e-4, 0.01, 1, 0.999, False),
    ("tiny-imagenet", 10): (20, 2, 40, 500, 1e4, 1e-4, 0.01, 1, 0.999, False),
}
# T, M, batch, min and max start, U at the start and where it ends (0: it does not grow), lr of images, labels and b
DATM_CELLS: dict[tuple[str, int], tuple[Any, ...]] = {
    ("cifar10", 1): (80, 2, 10, 0, 4, 0, 0, 100, 5, 1e-7),
    ("cifar10", 10): (80, 2, 100, 0, 20, 10, 1000, 100, 2, 1e-5),
    ("cifar10", 50): (80, 2, 500, 0, 40, 20, 2000, 1000, 2, 1e-5),
    ("cifar10", 500): (40, 2, 1000, 40, 60, 0, 0, 50, 10, 1e-5),
    ("cifar10", 1000): (100, 2, 1000, 40, 60, 0, 0, 50, 10, 1e-5),
    ("cifar100", 1): (40, 3, ALL, 0, 20, 10, 1000, 1000, 10, 1e-5),
    ("cifar100", 10): (80, 2, 1000, 0, 50, 30, 2000, 1000, 10, 1e-5),
    ("cifar100", 50): (80, 2, 1000, 20, 70, 0, 0, 1000, 10, 1e-5),
    ("cifar100", 100): (80, 2, 1000, 30, 70, 0, 0, 50, 10, 1e-5),
    ("tiny-imagenet", 1): (40, 2, ALL, 0, 20, 15, 2000, 1e4, 10, 1e-4),
    ("tiny-imagenet", 10): (40, 2, 500, 10, 50, 0, 0, 100, 10, 1e-4),
    ("tiny-imagenet", 50): (20, 2, 1000, 40, 70, 0, 0, 100, 10, 1e-4),
}


@pytest.mark.parametrize(("dataset", "ipc"), FTD_CELLS)
def test_published_cells_of_ftd(dataset: str, ipc: int) -> None:
    config = resolve("ftd", dataset, ipc)
    s, experts = config.settings, config.experts
    found = (s.steps, s.expert_epochs, s.max_start_epoch, s.batch_size, s.lr_images, s.lr_student_lr, s.student_lr)
    assert (*found, experts.gsam_alpha, s.ema, config.data.zca) == FTD_CELLS[dataset, ipc]
    assert (experts.count, experts.gsam_rho, s.iterations, s.momentum) == (100, 0.01, 5000, 0.5)
    assert (s.labels, s.gradient, s.student, config.data.validation) == ("hard", "exact", "last", 0)
    assert config.protocol == "paper"


@pytest.mark.parametrize(("dataset", "ipc"), DATM_CELLS)
def test_published_cells_of_datm(dataset: str, ipc: int) -> None:
    config = resolve("datm", dataset, ipc)
    s = config.settings
    found = (s.steps, s.expert_epochs, s.batch_size, s.min_start_epoch, s.max_start_epoch, s.current_start)
    end = s.growth_end if s.current_start else 0
    assert (*found, end, s.lr_images, s.lr_labels, s.lr_student_lr) == DATM_CELLS[dataset, ipc]
    assert (config.experts.gsam_rho, config.experts.gsam_alpha, s.last_epoch, s.student_lr) == (0.01, 0.3, 100, 0.01)
    assert (s.iterations, s.momentum, s.label_momentum, s.labels, s.gradient) == (10000, 0.5, 0.9, "learned", "exact")
    assert s.largest_loss == (1.1 if (dataset, ipc) == ("cifar10", 1) else 1.0)
    assert s.start == ("real" if (dataset, ipc) == ("cifar100", 50) else "classified")
    assert config.evaluators["convnet"].batch_size == 128
    whitened = dataset != "tiny-imagenet"  # from 64 pixels on whitening is refused
    assert (config.data.zca, config.protocol) == (whitened, "paper" if whitened else "paper, settings of DATM")


@pytest.mark.parametrize("method", ["ftd", "datm"])
def test_cells_that_nobody_published_have_flat_experts_too(method: str) -> None:
    config = resolve(method, "fashion-mnist", 1)
    assert (config.protocol, config.experts.gsam_rho) == ("defaults", 0.01)


def documented(name: str) -> dict[tuple[str, int], list[str]]:
    """The rows of a method's table in docs/protocols.md, by data set and IPC."""
    lines = (Path(__file__).parent.parent / "docs" / "protocols.md").read_text(encoding="utf-8").splitlines()
    (head,) = (i for i, line in enumerate(lines) if line.startswith(f"| `{name}` on |"))
    found = {}
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        dataset, ipc, *values = (cell.strip() for cell in line.strip("|").split("|"))
        found[dataset, int(ipc)] = values
    return found


def test_documented_cells_are_the_published_ones() -> None:
    def number(text: str) -> float:
        return ALL if text == "all" else float(text)

    assert {cell: tuple(map(number, values)) for cell, values in documented("ftd").items()} == {
        cell: values[:-1] for cell, values in FTD_CELLS.items()
    }
    for cell, (*values, start) in documented("datm").items():
        steps, epochs, batch, least, most, growing, *rates = values
        grows = tuple(map(number, growing.split(","))) if growing else (0, 0)
        before = tuple(map(number, (steps, epochs, batch, least, most)))
        assert (*before, *grows, *map(number, rates)) == DATM_CELLS[cell]
        assert start == resolve("datm", *cell).settings.start
    assert set(documented("datm")) == set(DATM_CELLS)


def test_datm_refuses_batch_norm_where_experts_are_asked() -> None:
    assert "experts choose its images" in DATM.refuses_batch_norm(DATMSettings())
    assert DATM.refuses_batch_norm(DATMSettings(start="real", labels="hard")) == ""
