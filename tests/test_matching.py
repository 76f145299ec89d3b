"""The condenser of trajectory matching: labels, updates, batches and settings."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.session import Session
from dcbench_tesla.compute.networks import FlatNetwork
from dcbench_tesla.config import overrides_from, resolve
from dcbench_tesla.errors import UsageError
from dcbench_tesla.experts.store import StoredExperts
from dcbench_tesla.interface import IterationRecord, Problem
from dcbench_tesla.methods.inner import stream_matching_gradient
from dcbench_tesla.methods.trajectory.matching import (
    ExactSettings,
    InnerBatches,
    MatchingSettings,
    TrajectoryMatching,
    TwoPassSettings,
)
from dcbench_tesla.methods.trajectory.mtt import MTT
from dcbench_tesla.methods.trajectory.tesla import TESLA
from dcbench_tesla.methods.trajectory.tesla_exact import TESLAExact
from dcbench_tesla.records.progress import Bar

METHODS: dict[str, type[TrajectoryMatching]] = {"mtt": MTT, "tesla": TESLA, "tesla-exact": TESLAExact}
CPU = torch.device("cpu")
IPC, EPOCHS = 2, 4
BASE: Mapping[str, Any] = {
    "iterations": 4,
    "steps": 4,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "lr_images": 10.0,
    "student_lr": 0.02,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Digits, two images a class, with two small experts of four epochs."""
    torch.set_num_threads(1)
    changes = {"data.train_images": 300, "network.width": 6, "experts.batch_size": 50}
    config = resolve("tesla", "digits", IPC, preset="smoke", overrides=overrides_from(changes))
    cell: Cell = Session(tmp_path_factory.mktemp("matching"), device="cpu", quiet=True).cell(config)
    cell.materials.expert_store.ensure(2, EPOCHS, cell.splits.train, Bar("", 0, 0, ""))
    return cell.problem(StoredExperts(cell.materials.expert_store, 2, CPU))


def start(problem: Problem, method: str = "tesla", **changes: Any) -> TrajectoryMatching:
    kind = METHODS[method]
    condenser = kind(kind.Settings(**{**BASE, **changes}))
    condenser.setup(problem)
    return condenser


def run(condenser: TrajectoryMatching, first: int = 0, last: int | None = None) -> list[IterationRecord]:
    return [condenser.iterate(i) for i in range(first, condenser.iterations if last is None else last)]


def softmax_of_expert(problem: Problem, expert: float, epoch: float, images: Tensor) -> Tensor:
    """What an expert says of images, by a module that holds its snapshot."""
    assert problem.experts is not None
    network = problem.build_network()
    torch.nn.utils.vector_to_parameters(problem.experts.snapshot(int(expert), int(epoch)).clone(), network.parameters())
    with torch.no_grad():
        odds: Tensor = network(images).exp()
    return odds.div(odds.sum(1, keepdim=True))


# ----------------------------------------------------------------------------------------------------------- labels


LABELS = [
    {"labels": "hard"},
    {"labels": "target"},
    {"labels": "last", "last_epoch": EPOCHS},
    {"labels": "learned", "label_space": "logits"},
    {"labels": "learned", "label_space": "probabilities", "lr_labels": 0.01},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("changes", LABELS, ids=lambda c: "-".join(map(str, c.values())))
def test_every_kind_of_labels_runs(method: str, changes: dict[str, Any], problem: Problem) -> None:
    condenser = start(problem, method, **changes)
    before = condenser.distilled()
    records = run(condenser)
    after = condenser.distilled()
    assert all(0 < record.loss < 10 for record in records)
    assert not torch.equal(before.images, after.images)
    assert after.lr != before.lr
    if changes["labels"] == "hard":
        assert torch.equal(after.labels, torch.arange(10).repeat_interleave(IPC))
    else:
        assert after.labels.shape == (10 * IPC, 10)
        assert torch.allclose(after.labels.sum(1), torch.ones(10 * IPC), atol=1e-5)
        assert (after.labels >= 0).all()


def test_images_start_as_real_ones_of_their_class(problem: Problem) -> None:
    distilled = start(problem).distilled()
    for image, label in zip(distilled.images, distilled.labels, strict=True):
        members = problem.train.inputs(problem.train.members[int(label)])
        assert (members == image).flatten(1).all(1).any()
    assert len(distilled.images.unique(dim=0)) == 10 * IPC


def test_target_labels_of_the_saved_set(problem: Problem) -> None:
    condenser = start(problem, labels="target")
    records = run(condenser)
    distilled, last = condenser.distilled(), records[-1].metrics
    teacher = {"expert": last["expert"], "epoch": last["start_epoch"] + BASE["expert_epochs"]}
    assert distilled.provenance["label_teacher"] == teacher
    expected = softmax_of_expert(problem, teacher["expert"], teacher["epoch"], distilled.images)
    assert torch.allclose(distilled.labels, expected, atol=1e-6)


def test_target_labels_of_every_iteration(problem: Problem) -> None:
    condenser = start(problem, labels="target")
    for iteration in range(4):
        images, labels = condenser.distilled().images, condenser.labels(iteration)
        metrics = condenser.iterate(iteration).metrics
        expected = softmax_of_expert(problem, metrics["expert"], metrics["start_epoch"] + 1, images)
        assert torch.allclose(labels, expected, atol=1e-6)


def test_last_labels_come_from_the_last_epoch(problem: Problem) -> None:
    condenser = start(problem, labels="last", last_epoch=EPOCHS)
    expert = run(condenser)[-1].metrics["expert"]
    distilled = condenser.distilled()
    assert distilled.provenance["label_teacher"] == {"expert": expert, "epoch": EPOCHS}
    assert torch.allclose(distilled.labels, softmax_of_expert(problem, expert, EPOCHS, distilled.images), atol=1e-6)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_learned_labels_start_nearly_one_hot_and_move(space: str, problem: Problem) -> None:
    condenser = start(problem, "tesla-exact", labels="learned", label_space=space, lr_labels=0.05)
    first = condenser.distilled().labels
    right = first[range(10 * IPC), torch.arange(10).repeat_interleave(IPC)]
    assert (right > 0.98).all()
    run(condenser)
    assert (condenser.distilled().labels - first).abs().max() > 1e-6


@pytest.mark.parametrize("rate", [1.0, 1e3, 1e9])
def test_learned_probabilities_stay_probabilities(rate: float, problem: Problem) -> None:
    condenser = start(problem, iterations=8, labels="learned", label_space="probabilities", lr_labels=rate)
    for iteration in range(8):
        condenser.iterate(iteration)
        labels = condenser.labels(iteration)
        assert (labels >= 0).all()
        assert torch.allclose(labels.sum(1), torch.ones(10 * IPC), atol=1e-5)


def test_learned_labels_stay_when_their_rate_is_zero(problem: Problem) -> None:
    condenser = start(problem, labels="learned", lr_labels=0.0)
    first = condenser.distilled().labels
    run(condenser)
    assert torch.equal(condenser.distilled().labels, first)


def test_experts_asked_for_are_those_read(problem: Problem) -> None:
    def epochs(**changes: Any) -> int:
        return TESLA.expert_request(MatchingSettings(**{**BASE, **changes})).epochs

    assert epochs(max_start_epoch=3, expert_epochs=2) == 4  # starts at 0, 1, 2; the last target is 4
    assert epochs(labels="last", last_epoch=9) == 9
    assert epochs(labels="last", last_epoch=1) == 2
    assert epochs(labels="target") == 2


# ---------------------------------------------------------------------------------------------------------- updates


def reference(problem: Problem, settings: MatchingSettings, learned: bool) -> list[dict[str, Tensor]]:
    """Run the method with torch.optim.SGD for its updates; return images, b and label logits after every iteration."""
    condenser = start(problem, **dataclasses.asdict(settings))
    images, hard = condenser.distilled().images.requires_grad_(), problem.hard_labels()
    lr = torch.tensor(settings.student_lr, requires_grad=True)
    one_hot = torch.nn.functional.one_hot(hard, 10).float()
    logits = (one_hot * torch.tensor(0.99 / 0.01 * 9).log()).requires_grad_()
    groups = [(images, settings.lr_images), (lr, settings.lr_student_lr)] + [(logits, settings.lr_labels)] * learned
    optimiser = torch.optim.SGD([{"params": [p], "lr": rate} for p, rate in groups], momentum=settings.momentum)
    network, states = FlatNetwork(problem.build_network), []
    assert problem.experts is not None
    for iteration in range(settings.iterations):
        chosen = condenser.iterate(iteration).metrics
        expert, epoch = int(chosen["expert"]), int(chosen["start_epoch"])
        labels = logits.softmax(1) if learned else hard
        batches = InnerBatches(problem, images.detach(), labels, settings, iteration)
        begin, target = (problem.experts.snapshot(expert, e) for e in (epoch, epoch + settings.expert_epochs))
        result = stream_matching_gradient(network.loss, begin, target, batches, lr, "frozen")
        images.grad, lr.grad = batches.image_gradient, result.lr
        if learned:
            (logits.grad,) = torch.autograd.grad(labels, logits, batches.label_gradient)
        optimiser.step()
        now = {"images": images, "lr": lr, "labels": logits.softmax(1)}
        states.append({name: value.detach().clone() for name, value in now.items()})
    return states


@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_updates_are_those_of_sgd_with_momentum(labels: str, problem: Problem) -> None:
    settings = MatchingSettings(**{**BASE, "iterations": 5, "momentum": 0.7, "labels": labels, "lr_student_lr": 1e-6})
    condenser = start(problem, **dataclasses.asdict(settings))
    for iteration, expected in enumerate(reference(problem, settings, learned=labels == "learned")):
        condenser.iterate(iteration)
        distilled = condenser.distilled()
        assert distilled.lr is not None
        assert torch.allclose(distilled.images, expected["images"], atol=1e-5)
        assert distilled.lr == pytest.approx(float(expected["lr"]), rel=1e-5)
        if labels == "learned":
            assert torch.allclose(distilled.labels, expected["labels"], atol=1e-6)


def test_momentum_matters(problem: Problem) -> None:
    with_, without = start(problem), start(problem, momentum=0.0)
    run(with_, last=2)
    run(without, last=2)
    assert not torch.equal(with_.distilled().images, without.distilled().images)


@pytest.mark.parametrize("method", METHODS)
def test_zero_rates_leave_things_as_they_are(method: str, problem: Problem) -> None:
    condenser = start(problem, method, lr_images=0.0)
    before = condenser.distilled()
    run(condenser)
    assert torch.equal(condenser.distilled().images, before.images)
    assert condenser.distilled().lr != before.lr
    condenser = start(problem, method, lr_student_lr=0.0)
    run(condenser)
    assert condenser.distilled().lr == before.lr
    assert not torch.equal(condenser.distilled().images, before.images)


def test_student_lr_stays_positive_and_clamps_are_counted(problem: Problem) -> None:
    condenser = start(problem, iterations=6, lr_student_lr=1e-3, min_student_lr=0.001)
    clamps: list[int] = []
    for record in run(condenser):
        now = record.metrics["student_lr"]
        assert now >= 0.001 * (1 - 1e-6)
        clamped = now == pytest.approx(0.001)
        clamps.append((clamps[-1] if clamps else 0) + clamped)
        assert record.metrics["student_lr_clamps"] == clamps[-1]
    assert clamps[-1] > 0
    assert any(f"in {clamps[-1]} of 6 iterations" in note for note in condenser.notes())
    assert start(problem).notes() == []


def test_counted_clamps_survive_resuming(problem: Problem) -> None:
    whole = start(problem, iterations=6, lr_student_lr=1e-3)
    run(whole)
    first = start(problem, iterations=6, lr_student_lr=1e-3)
    run(first, last=3)
    resumed = start(problem, iterations=6, lr_student_lr=1e-3)
    resumed.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    run(resumed, first=3)
    assert resumed.notes() == whole.notes()
    assert torch.equal(resumed.distilled().images, whole.distilled().images)


# -------------------------------------------------------------------------------------------------- the three methods


def test_one_step_is_the_same_for_all_methods(problem: Problem) -> None:
    ends = []
    for method in METHODS:
        condenser = start(problem, method, steps=1, iterations=1)
        run(condenser)
        ends.append(condenser.distilled().images)
    assert torch.allclose(ends[0], ends[1], atol=1e-5)
    assert torch.allclose(ends[0], ends[2], atol=1e-5)


def test_exact_is_unrolled_and_frozen_is_not(problem: Problem) -> None:
    moved = {}
    for method in METHODS:
        condenser = start(problem, method, steps=6, iterations=1, student_lr=0.1)
        before = condenser.distilled().images
        run(condenser)
        moved[method] = condenser.distilled().images - before
    exact, frozen = (float((moved[m] - moved["mtt"]).norm() / moved["mtt"].norm()) for m in ("tesla-exact", "tesla"))
    assert exact < 1e-2  # float32 and ReLU
    assert frozen > 10 * exact


def test_where_weights_are_kept_changes_no_byte(problem: Problem) -> None:
    ends = []
    for place in ("auto", "device", "host", "restep"):
        condenser = start(problem, "tesla-exact", steps=5, iterations=2, weights=place)
        run(condenser)
        ends.append(condenser.distilled().images)
    assert all(torch.equal(end, ends[0]) for end in ends)


@pytest.mark.parametrize("method", ["tesla", "tesla-exact"])
def test_kept_graphs_save_batches_and_change_rounding_only(
    method: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    batch = InnerBatches.batch

    def counted(self: InnerBatches, k: int, rows: slice) -> tuple[Tensor, Tensor]:
        asked.append(k)
        return batch(self, k, rows)

    monkeypatch.setattr(InnerBatches, "batch", counted)
    moved = []
    for keep, made in ((0, 10), (3, 7), (5, 5), (99, 5)):
        condenser = start(problem, method, steps=5, iterations=1, keep_graphs=keep)
        before = condenser.distilled().images
        asked.clear()
        run(condenser)
        assert len(asked) == made
        moved.append(condenser.distilled().images - before)
    for other in moved[1:]:
        assert float((other - moved[0]).norm() / moved[0].norm()) < 1e-2  # float32 and ReLU


def test_the_unrolled_method_has_no_graphs_to_choose() -> None:
    with pytest.raises(UsageError, match="unknown setting 'keep_graphs'"):
        resolve("mtt", "digits", IPC, preset="smoke", overrides=overrides_from({"keep_graphs": 2}))


@pytest.mark.parametrize("method", ["tesla", "tesla-exact"])
def test_kept_graphs_are_part_of_no_key(method: str, tmp_path: Path) -> None:
    session = Session(tmp_path, device="cpu", quiet=True)
    keys = {
        session.cell(resolve(method, "digits", IPC, preset="smoke", overrides=overrides_from(changes))).key
        for changes in ({}, {"keep_graphs": 3})
    }
    assert len(keys) == 1


def test_mtt_keeps_every_graph_and_has_nothing_to_choose() -> None:
    assert "keep_graphs" not in {f.name for f in dataclasses.fields(MTT.Settings)}
    assert issubclass(TESLA.Settings, TwoPassSettings)
    assert issubclass(TESLAExact.Settings, TwoPassSettings)


# ---------------------------------------------------------------------------------------------------------- batches


def plain(problem: Problem) -> Problem:
    """The same problem without augmentation, so that a batch's images can be recognised."""
    task = dataclasses.replace(problem.task, augmentation=type(problem.task.augmentation)("none"))
    return dataclasses.replace(problem, task=task)


def chosen_in(batches: InnerBatches, images: Tensor, k: int) -> list[int]:
    """Which images step k shows."""
    shown, labels = batches.batch(k, slice(None))
    found = [int((images == image).flatten(1).all(1).nonzero()) for image in shown]
    assert torch.equal(labels, torch.arange(10).repeat_interleave(IPC)[found])
    return found


@pytest.mark.parametrize(("size", "sizes"), [(0, [20]), (8, [8, 8, 4]), (10, [10, 10]), (50, [20]), (1, [1] * 20)])
def test_batches_are_chunks_of_permutations(size: int, sizes: list[int], problem: Problem) -> None:
    condenser = start(problem)
    images = condenser.distilled().images
    settings = MatchingSettings(**{**BASE, "steps": 3 * len(sizes), "batch_size": size})
    batches = InnerBatches(plain(problem), images, problem.hard_labels(), settings, iteration=0)
    orders = []
    for permutation in range(3):
        steps = range(permutation * len(sizes), (permutation + 1) * len(sizes))
        chunks = [chosen_in(batches, images, k) for k in steps]
        assert [len(chunk) for chunk in chunks] == sizes
        orders.append([i for chunk in chunks for i in chunk])
        assert sorted(orders[-1]) == list(range(10 * IPC))  # every image once
    assert len({tuple(order) for order in orders}) == 3  # a new permutation when one is used up


def test_batches_differ_between_iterations_and_repeat_when_asked_again(problem: Problem) -> None:
    images = start(problem).distilled().images
    settings = MatchingSettings(**BASE)
    one, again, other = (InnerBatches(problem, images, problem.hard_labels(), settings, i) for i in (1, 1, 2))
    for k in (3, 0):
        assert torch.equal(one.batch(k, slice(None))[0], again.batch(k, slice(None))[0])
        assert not torch.equal(one.batch(k, slice(None))[0], other.batch(k, slice(None))[0])


def test_gradients_are_pulled_back_through_the_augmentation(problem: Problem) -> None:
    images = start(problem).distilled().images
    batches = InnerBatches(problem, images, problem.hard_labels(), MatchingSettings(**BASE), iteration=3)
    generator, eps = torch.Generator().manual_seed(0), 1e-2
    for k in range(4):
        shown, _ = batches.batch(k, slice(None))
        gradient = torch.randn(shown.shape, generator=generator)
        before = batches.image_gradient.clone()
        batches.accumulate(k, slice(None), gradient, None)
        direction = torch.randn(images.shape, generator=generator)
        moved = InnerBatches(problem, images + eps * direction, problem.hard_labels(), MatchingSettings(**BASE), 3)
        difference = ((moved.batch(k, slice(None))[0] - shown) * gradient).sum() / eps  # augmentations are affine
        assert float(((batches.image_gradient - before) * direction).sum()) == pytest.approx(
            float(difference), abs=0.05
        )


# --------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iterations": 0}, "iterations must be at least 1, not 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"expert_epochs": 0}, "expert_epochs must be at least 1"),
        ({"max_start_epoch": 0}, "max_start_epoch must be at least 1"),
        ({"lr_images": -1.0}, "lr_images must be finite and not negative, but is -1"),
        ({"lr_images": float("nan")}, "lr_images must be finite and not negative, but is nan"),
        ({"lr_images": float("inf")}, "lr_images must be finite and not negative, but is inf"),
        ({"lr_student_lr": -1e-9}, "lr_student_lr must be finite and not negative"),
        ({"lr_labels": -1.0}, "lr_labels must be finite and not negative"),
        ({"batch_size": -1}, "batch_size must be finite and not negative"),
        ({"student_lr": -0.01}, "student_lr must be positive"),
        ({"student_lr": 0.0}, "student_lr must be positive"),
        ({"student_lr": float("nan")}, "student_lr must be positive"),
        ({"min_student_lr": 0.0}, "student_lr must be positive"),
        ({"student_lr": 0.01, "min_student_lr": 0.1}, "at least min_student_lr = 0.1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"momentum": -0.1}, "momentum"),
        ({"labels": "sfot"}, "unknown kind of labels 'sfot'.* Known: hard, last, learned, target"),
        ({"labels": "learnd"}, "Did you mean 'learned'"),
        ({"label_space": "logit"}, "Did you mean 'logits'"),
        ({"weights": "hots"}, "unknown place for the weights 'hots'.* Did you mean 'host'"),
        ({"keep_graphs": -1}, "keep_graphs must not be negative, but is -1"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ExactSettings(**changes)


def test_probe_measures_few_steps() -> None:
    settings, factor = TESLA.probe(MatchingSettings(steps=30))
    assert (settings.steps, factor) == (2, 15)
    assert TESLA.probe(MatchingSettings(steps=1))[1] == 1


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (3, 0), (15, 1), (28, 2), (30, 2), (99, 2)])
def test_probe_keeps_the_share_of_graphs(keep: int, kept: int) -> None:
    settings, factor = TESLA.probe(TwoPassSettings(steps=30, keep_graphs=keep))
    assert (settings.steps, settings.keep_graphs, factor) == (2, kept, 15)
