"""DM, DC and DSA against references written out here: distances, siamese draws, loops, chunks."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.compute.networks import flatten_parameters
from dcbench_tesla.conformance import tiny_problem
from dcbench_tesla.interface import Problem, Sizes
from dcbench_tesla.methods.classwise.dc import DC
from dcbench_tesla.methods.classwise.dm import DM, mean_distance
from dcbench_tesla.methods.classwise.dsa import DSA
from dcbench_tesla.methods.classwise.gradient_matching import GradientMatching, gradient_distance, published_loops
from dcbench_tesla.methods.classwise.matching import ClassMatching

METHODS: list[type[ClassMatching]] = [DM, DSA, DC]


def started(kind: type[ClassMatching], problem: Problem | None = None, **settings: float | str) -> ClassMatching:
    method = kind(kind.Settings(**settings))  # type: ignore[arg-type]
    method.setup(problem or tiny_problem(request=False))
    return method


def test_dms_distance_on_fixed_features() -> None:
    real, synthetic = torch.randn(4, 9, 6), torch.randn(4, 2, 6)
    expected = 0.0
    for c in range(4):
        expected += float(((real[c].mean(0) - synthetic[c].mean(0)) ** 2).sum())
    assert float(mean_distance(real.mean(1), synthetic.mean(1))) == pytest.approx(expected, rel=1e-5)


def test_gradient_distance_by_its_formula() -> None:
    real = {"weight": torch.randn(2, 3, 4, 2, 2), "linear": torch.randn(2, 3, 5), "bias": torch.randn(2, 3)}
    synthetic = {name: torch.randn_like(g) for name, g in real.items()}
    expected = 0.0
    for name in ("weight", "linear"):  # one-dimensional tensors count nothing
        for c in range(2):
            for out in range(3):
                a, b = real[name][c, out].flatten().tolist(), synthetic[name][c, out].flatten().tolist()
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
                expected += 1 - dot / (norms + 1e-6)
    assert float(gradient_distance(real, synthetic)) == pytest.approx(expected, rel=1e-5)


def test_class_gradients_are_those_of_each_class_alone() -> None:
    method = started(DSA, real_batch=4)
    assert isinstance(method, GradientMatching)
    network = method.fresh_network(0)
    (chunk,) = method.chunks(0, 0)
    parameters = method.network.unflatten(flatten_parameters(network))
    stacked = method._class_gradients(parameters, chunk.real, torch.arange(3))
    for c in range(3):
        loss = F.cross_entropy(network(chunk.real[c]), torch.full((4,), c))
        alone = torch.autograd.grad(loss, list(network.parameters()))
        for (name, _), expected in zip(network.named_parameters(), alone, strict=True):
            torch.testing.assert_close(stacked[name][c], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", METHODS)
def test_chunks_of_classes_change_nothing_but_rounding(kind: type[ClassMatching]) -> None:
    steps = []
    for chunk in (0, 1, 2):
        method = started(kind, class_chunk=chunk, lr_images=1.0, momentum=0.0)
        before = method.images.clone()
        method.iterate(0)
        steps.append(method.images - before)
    for step in steps[1:]:
        assert float((step - steps[0]).norm() / steps[0].norm()) < 1e-5


@pytest.mark.parametrize("kind", METHODS)
def test_pieces_of_the_real_batch_change_nothing_but_rounding(kind: type[ClassMatching]) -> None:
    steps = []
    for micro_batch in (0, 1, 7, 1000):  # 7 images of three classes: two of each at once, and one that is left
        method = started(kind, real_batch=5, class_chunk=3, micro_batch=micro_batch, lr_images=1.0, momentum=0.0)
        before = method.images.clone()
        method.iterate(0)
        steps.append(method.images - before)
    for step in steps[1:]:
        assert float((step - steps[0]).norm() / steps[0].norm()) < 1e-5


@pytest.mark.parametrize("kind", [DM, DSA])
def test_both_batches_of_a_class_see_the_same_transform(kind: type[ClassMatching]) -> None:
    method = started(kind)
    for chunk in method.chunks(3, 1):
        _, synthetic = method.synthetic(chunk)
        for position, draw in enumerate(chunk.draws):
            c = chunk.first + position
            assert all(len(values) == 1 for values in draw.parameters.values())  # one for the whole batch
            members = method.problem.train.members[c]
            order = torch.randperm(len(members), generator=method.problem.generator("real batch", 3, 1, c))
            real = method.problem.train.inputs(members[order[: chunk.real.shape[1]]])
            assert torch.equal(chunk.real[position], method.augmentation(real, draw))
            own = method.images[c * 2 : c * 2 + 2]
            assert torch.equal(synthetic[position], method.augmentation(own, draw))


def test_classes_of_one_operation_are_augmented_together_each_by_its_own_parameters() -> None:
    method = started(DSA)
    rng = torch.Generator().manual_seed(3)
    draws = [method.augmentation.draw(1, 16, rng, siamese=True) for _ in range(40)]
    assert 3 < len({d.operation for d in draws}) < 40
    images = torch.randn(40, 5, 3, 16, 16, requires_grad=True)
    alone = torch.stack([method.augmentation(x, d) for x, d in zip(images, draws, strict=True)])
    weights = torch.randn_like(alone)
    together = method.augmented(images, draws)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    for found, expected in zip(*(torch.autograd.grad(x, images, weights) for x in (together, alone)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_how_many_classes_go_through_the_network_at_once() -> None:
    settings = DM.Settings(real_batch=100)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    many, few = (Sizes(smallest_class=count, images=10, activation=131072) for count in (5000, 20))
    assert DM.for_device(settings, cpu, many).class_chunk == 2
    assert DM.for_device(settings, cuda, many).class_chunk == 40
    assert DM.for_device(settings, cpu, few).class_chunk == 12  # no class has more: others may come along
    assert DM.for_device(DM.Settings(real_batch=5000), cuda, many).class_chunk == 1
    assert DM.for_device(settings, cpu, many).micro_batch == 10  # what the caches hold
    assert DM.for_device(settings, cuda, many).micro_batch == 0
    assert DM.for_device(DM.Settings(real_batch=10), cpu, many).micro_batch == 0
    chosen = DM.Settings(real_batch=100, class_chunk=7, micro_batch=3)
    assert DM.for_device(chosen, cpu, many) == chosen
    method = started(DM, real_batch=100)
    assert [chunk.count for chunk in method.chunks(0)] == [3]


def test_classes_do_not_share_a_draw() -> None:
    method = started(DSA)
    operations = {d.operation for i in range(12) for chunk in method.chunks(i) for d in chunk.draws}
    assert len(operations) > 3


def test_dm_iteration_by_a_plain_loop() -> None:
    method = started(DM, lr_images=0.5, momentum=0.0, real_batch=5)
    images = method.images.clone().requires_grad_()
    network = method.fresh_network(0)
    loss = torch.zeros(())
    for chunk in method.chunks(0):
        for c, draw in enumerate(chunk.draws):
            real = network.features(chunk.real[c]).mean(0).detach()
            fake = network.features(method.augmentation(images[2 * c : 2 * c + 2], draw)).mean(0)
            loss = loss + ((real - fake) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, images)
    record = method.iterate(0)
    assert record.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(method.images, images.detach() - 0.5 * gradient, rtol=1e-4, atol=1e-6)


def test_momentum_is_sgds() -> None:
    method = started(DM, lr_images=0.1, momentum=0.5)
    parameter = method.images.clone().requires_grad_()
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.5)
    for _ in range(3):
        gradient = torch.randn_like(parameter)
        parameter.grad = gradient
        optimiser.step()
        method.step(gradient)
    torch.testing.assert_close(method.images, parameter.detach())


@pytest.mark.parametrize(("ipc", "loops"), [(1, (1, 1)), (10, (10, 50)), (50, (50, 10)), (2, (1, 1)), (100, (50, 10))])
def test_published_loops(ipc: int, loops: tuple[int, int]) -> None:
    assert published_loops(ipc) == loops


def test_the_network_is_trained_between_the_rounds_but_not_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    method = started(DSA, outer=3, inner=2)
    assert isinstance(method, GradientMatching)
    trained: list[tuple[int, int, int]] = []
    monkeypatch.setattr(method, "_train", lambda _network, *rest: trained.append(rest))
    method.iterate(7)
    assert trained == [(7, 0, 2), (7, 1, 2)]


def test_starts_and_augmentation_of_dc_and_dsa() -> None:
    dc, dsa = started(DC), started(DSA)
    assert not dc.augmentation
    assert dsa.augmentation
    real: Tensor = dsa.problem.train.inputs(dsa.problem.draw_real("start images"))
    assert torch.equal(dsa.images, real)
    assert not torch.equal(dc.images, real)
    assert dc.distilled().augmentation == "none"
    assert dsa.distilled().augmentation != "none"


def test_a_class_smaller_than_the_batch_gives_all_its_images() -> None:
    problem = tiny_problem(request=False)
    method = started(DM, problem, real_batch=256)
    (chunk,) = method.chunks(0)
    assert chunk.real.shape[1] == min(len(m) for m in problem.train.members)


def test_other_seeds_make_other_sets() -> None:
    first, second = (started(DM, replace(tiny_problem(request=False), seed=s)) for s in (0, 1))
    first.iterate(0)
    second.iterate(0)
    assert not torch.equal(first.images, second.images)


def test_compiled_gives_the_eager_numbers() -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    states = []
    for compile in (False, True):
        method = started(DSA, real_batch=4, lr_images=1.0)
        again = type(method)(method.settings)
        again.setup(replace(method.problem, compile=compile))
        again.iterate(0)
        assert again.compiled is compile
        states.append(again.state_dict()["images"])
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)
