"""The yardstick of the speed benchmarks does what the harness does: the same numbers from the same draws."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dcbench_tesla import registry
from dcbench_tesla.cells.evaluation import accuracy
from dcbench_tesla.compute.networks import ConvNet, flatten_parameters, seeded
from dcbench_tesla.config import ExpertSettings
from dcbench_tesla.conformance import tiny_problem
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.experts.training import train_epoch
from dcbench_tesla.interface import Condenser, Problem
from dcbench_tesla.methods.classwise.dm import DM
from dcbench_tesla.methods.classwise.dsa import DSA
from tests.benchmarks import plain

Matching = Callable[..., tuple[float, Tensor, Tensor]]


def same(ours: Tensor, theirs: Tensor) -> None:
    """To rounding: float32, in another order of operations."""
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5 * float(theirs.abs().max()))


def network() -> ConvNet:
    with seeded(0):
        return ConvNet(1, 3, 8, width=4)


def started(method: str, problem: Problem, **settings: float) -> Condenser:
    kind = registry.load_method(method)
    condenser = kind(kind.Settings(**settings))
    condenser.setup(problem)
    return condenser


@pytest.mark.parametrize(("method", "loop"), [("mtt", plain.unrolled), ("tesla", plain.two_pass)])
def test_matching_iterations(method: str, loop: Matching) -> None:
    problem = tiny_problem(request=True)
    condenser = started(method, problem, steps=5, batch_size=4, student_lr=0.05)
    images = condenser.state_dict()["value.images"]
    record, found = condenser.gradients(0)
    assert problem.experts is not None
    expert, epoch = int(record.metrics["expert"]), int(record.metrics["start_epoch"])
    segment = (problem.experts.snapshot(expert, epoch), problem.experts.snapshot(expert, epoch + 2))
    loss, gradient, lr = loop(problem, images, problem.hard_labels(), *segment, 0.05, 4, 5)
    assert record.loss == pytest.approx(loss, rel=1e-4)
    same(found["images"], gradient)
    same(found["student_lr"], lr)


@pytest.mark.parametrize(("kind", "loop"), [(DM, plain.distribution_matching), (DSA, plain.gradient_matching)])
def test_class_matching_iterations(kind: type[Condenser], loop: Callable[..., tuple[float, Tensor]]) -> None:
    problem = tiny_problem(request=False)
    loops = {"outer": 1, "inner": 1} if kind is DSA else {}
    condenser = kind(kind.Settings(real_batch=4, **loops))  # type: ignore[call-arg]
    condenser.setup(problem)
    loss, gradient = loop(problem, condenser.state_dict()["images"].clone(), 4)
    record = condenser.iterate(0)
    ours = record.loss * (problem.task.classes if kind is DSA else 1)  # DSA tells the mean over classes
    assert ours == pytest.approx(loss, rel=1e-4)
    same(condenser.state_dict()["velocity"], gradient)  # that of the first step


def test_an_expert_epoch() -> None:
    train = tiny_problem(request=False).train
    ours, theirs = network(), network()
    settings = ExpertSettings(lr=0.05, batch_size=4)
    loss = train_epoch(ours, train, settings, Augmentation(), 0, 0)
    images = train.inputs(torch.arange(len(train)))
    assert plain.expert_epoch(theirs, images, train.labels, Augmentation(), 0.05, 4) == pytest.approx(loss, rel=1e-5)
    same(flatten_parameters(theirs), flatten_parameters(ours))


def test_the_networks_of_an_evaluation() -> None:
    problem = tiny_problem(request=False)
    distilled = problem.distilled(problem.train.inputs(problem.draw_real("images")), problem.hard_labels())
    evaluator = registry.load_evaluator("convnet")
    settings: Any = evaluator.Settings
    settings = settings(width=4, epochs=6, batch_size=4, lr=0.05)
    ours = evaluator(settings).train(distilled, [3, 4], torch.device("cpu"))
    theirs = []
    for seed in (3, 4):
        with seeded(seed):
            theirs.append(ConvNet(1, 3, 8, width=4))
    augmentation = Augmentation(distilled.augmentation)
    plain.train_networks(
        theirs, [3, 4], distilled.images, distilled.labels, augmentation, epochs=6, lr=0.05, batch_size=4
    )
    images = problem.train.inputs(torch.arange(len(problem.train)))
    for a, b in zip(ours, theirs, strict=True):
        same(flatten_parameters(a), flatten_parameters(b))
        assert accuracy(a, problem.train) == plain.accuracy(b, images, problem.train.labels)
