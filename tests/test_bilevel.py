"""`dd`, `rat-bptt` and `ld` against plain loops kept as one graph, and what is particular to each."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F

from dcbench_tesla.compute.networks import ConvNet, FlatNetwork
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.data.augmentation import STRATEGY, STRATEGY_NO_FLIP, Augmentation, apply
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Condenser, Problem, Task
from dcbench_tesla.methods.bilevel.dd import DD
from dcbench_tesla.methods.bilevel.ld import LD, Restarts
from dcbench_tesla.methods.bilevel.rat_bptt import RaTBPTT
from dcbench_tesla.methods.bilevel.through_time import ThroughTime
from dcbench_tesla.profilers import LiveBytes

CLASSES, SIDE, IPC, REAL = 3, 8, 2, 9
CPU = torch.device("cpu")


def problem(strategy: str = STRATEGY) -> Problem:
    preprocessing = Preprocessing("standardise", torch.zeros(1), torch.ones(1))
    task = Task(
        dataset="toy",
        fingerprint="toy",
        channels=1,
        side=SIDE,
        class_names=tuple("abc"),
        preprocessing=preprocessing,
        augmentation=Augmentation(strategy),
    )
    pixels = torch.randint(0, 256, (20, 1, SIDE, SIDE), generator=generator(0, "pixels"), dtype=torch.uint8)
    labels = torch.arange(20) % CLASSES
    train = LabelledImages(pixels, labels, classes=CLASSES, max_value=255, preprocessing=preprocessing, device=CPU)
    return Problem(
        task=task, train=train, ipc=IPC, seed=0, device=CPU, build_network=lambda: ConvNet(1, CLASSES, SIDE, width=4)
    )


def started(
    kind: type[ThroughTime], strategy: str = STRATEGY, dtype: torch.dtype = torch.float64, **settings: Any
) -> Any:
    method = kind(kind.Settings(real_batch=REAL, **settings))
    method.setup(problem(strategy))
    method.values = {name: tuple(t.to(dtype) for t in state) for name, state in method.values.items()}
    return method


def turned(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror and then rotate a batch."""
    for name in ("flip", "rotate"):
        images = apply(images, Augmentation(name).draw(len(images), SIDE, rng))
    return images


def real_batch(method: Any, iteration: int, *, augmented: bool = False) -> tuple[Tensor, Tensor]:
    rng, train = method.problem.generator("real images", iteration), method.problem.train
    chosen = torch.randperm(len(train), generator=rng)[:REAL]
    images = train.inputs(chosen).double()
    if augmented:
        images = turned(images, method.problem.generator("real augmentation", iteration))
    return images, train.labels[chosen]


def check(found: Mapping[str, Tensor], leaves: Mapping[str, Tensor], value: Tensor) -> None:
    for (name, leaf), want in zip(leaves.items(), grad(value, list(leaves.values())), strict=True):
        assert want.norm() > 0
        assert float((found[name] - want).norm() / want.norm()) <= 1e-10, (name, leaf.shape)
    assert found.keys() == leaves.keys()


@pytest.mark.parametrize("micro_batch", [0, 2])
@pytest.mark.parametrize("init", ["xavier", "default"])
def test_dd_is_the_gradient_of_one_plain_graph(init: str, micro_batch: int) -> None:
    method = started(DD, networks=2, epochs=2, network_init=init, micro_batch=micro_batch)
    record, found = method.gradients(3)
    leaves = {name: state[0].clone().requires_grad_() for name, state in method.values.items()}
    images, rates = leaves["images"], F.softplus(leaves["raw_rates"])
    labels, net = torch.arange(CLASSES), FlatNetwork(method.problem.build_network)
    value = torch.zeros((), dtype=torch.float64)
    for number in range(2):
        w = method.initial(3, number).double().requires_grad_()
        for k in range(4):
            x = torch.stack([images[c * IPC + k % IPC] for c in range(CLASSES)])
            w = w - rates[k] * grad(net.loss(w, x, labels), w, create_graph=True)[0]
        value = value + net.loss(w, *real_batch(method, 3)) / 2
    check(found, leaves, value)
    assert record.loss == pytest.approx(float(value.detach()), rel=1e-12)


@pytest.mark.parametrize(("optimiser", "labels"), [("adam", "hard"), ("adam", "learned"), ("sgd", "learned")])
def test_rat_bptt_is_the_gradient_of_one_plain_graph(optimiser: str, labels: str) -> None:
    shape: dict[str, Any] = {"steps": 6, "window": 3, "batch_size": 4, "student_lr": 0.05, "micro_batch": 3}
    method = started(RaTBPTT, labels=labels, inner_optimiser=optimiser, inner_momentum=0.9, **shape)
    record, found = method.gradients(1)
    before = int(record.metrics["steps_before_window"])
    assert before == int(torch.randint(4, (), generator=method.problem.generator("window", 1, 0)))
    leaves = {name: state[0].clone().requires_grad_() for name, state in method.values.items()}
    shown = leaves.get("labels", torch.arange(CLASSES).repeat_interleave(IPC))
    net = FlatNetwork(method.problem.build_network)
    w = method.initial(1, 0).double().requires_grad_()
    v = m = s = torch.zeros_like(w)
    for k in range(before + 3):
        if k == before:
            w, v, m, s = w.detach().requires_grad_(), v.detach(), m.detach(), s.detach()
        order = torch.randperm(6, generator=method.problem.generator("inner batches", 1, 0, k // 2))
        chosen = order.split(4)[k % 2]
        rng = method.problem.generator("inner augmentation", 1, 0, k)
        x = turned(leaves["images"][chosen], rng)
        (g,) = grad(net.loss(w, x, shown[chosen]), w, create_graph=True)
        v, m, s = 0.9 * v + g, 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
        adam = (m / (1 - 0.9 ** (k + 1))) / ((s / (1 - 0.999 ** (k + 1))).clamp(min=1e-60).sqrt() + 1e-8)
        w = w - 0.05 * (adam if optimiser == "adam" else v)
    check(found, leaves, net.loss(w, *real_batch(method, 1, augmented=True)))


def test_dd_shows_its_batches_in_order_and_starts_at_its_rate() -> None:
    method = started(DD, epochs=3, student_lr=0.03)
    batches = method.inner_loop(0, 0).batches
    assert [batches.indices(k).tolist() for k in range(4)] == [[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5]]
    torch.testing.assert_close(method.rates, torch.full((6,), 0.03, dtype=torch.float64))
    found = started(DD, dtype=torch.float32, epochs=2, student_lr=0.03).distilled()
    assert found.augmentation == "none"
    assert found.steps is not None
    assert found.steps.batches.tolist() == [[0, 2, 4], [1, 3, 5]] * 2
    torch.testing.assert_close(found.steps.rates, torch.full((4,), 0.03))


def test_dds_learning_rate_decays() -> None:
    method = started(DD, lr_images=0.01, decay=0.5, decay_every=3)
    assert [method.learning_rate(i) for i in (0, 2, 3, 6)] == [0.01, 0.01, 0.005, 0.0025]
    assert started(DD, decay_every=0).learning_rate(10**6) == 0.01


def test_updates_are_those_of_torchs_adam() -> None:
    method = started(DD, networks=1, epochs=1)
    leaves = {name: state[0].clone() for name, state in method.values.items()}
    optimiser = torch.optim.Adam(leaves.values(), 0.01, betas=(0.5, 0.999))
    for iteration in range(3):
        _, gradients = method.gradients(iteration)
        for name, leaf in leaves.items():
            leaf.grad = gradients[name].clone()
        optimiser.step()
        method.iterate(iteration)
        for name, leaf in leaves.items():
            torch.testing.assert_close(method.values[name][0], leaf, rtol=1e-6, atol=1e-9)


def test_rat_bptt_clips_by_the_moving_average_of_the_norm() -> None:
    method = started(RaTBPTT, steps=2, window=1, clip=2.0, clip_decay=0.9)
    average = weight = 0.0
    for size in (1.0, 3.0, 1.0, 10.0, 0.0):
        kept = float(method.limited({"images": torch.tensor([size])})["images"])
        most = 2 * average / weight if weight else size
        assert kept == pytest.approx(min(size, most))
        average, weight = 0.9 * average + 0.1 * kept, 0.9 * weight + 0.1
    free = started(RaTBPTT, steps=2, window=1, clip=0.0)
    assert [float(free.limited({"images": torch.tensor([x])})["images"]) for x in (1.0, 99.0)] == [1.0, 99.0]


def test_rat_bptt_starts_from_noise_of_norm_one_and_mirrors_only_where_it_may() -> None:
    method = started(RaTBPTT, steps=2, window=1)
    torch.testing.assert_close(method.images.flatten(1).norm(dim=1), torch.ones(CLASSES * IPC).double())
    assert [a.strategy for a in method._augmentations] == ["flip", "rotate"]
    assert [a.strategy for a in started(RaTBPTT, STRATEGY_NO_FLIP, steps=2, window=1)._augmentations] == ["rotate"]


def test_learned_labels_stay_probabilities() -> None:
    method = started(RaTBPTT, steps=2, window=2, labels="learned", lr_images=0.5, dtype=torch.float32)
    for iteration in range(3):
        method.iterate(iteration)
    labels = method.distilled().labels
    assert labels.shape == (CLASSES * IPC, CLASSES)
    assert (labels > 0).all()
    torch.testing.assert_close(labels.sum(1), torch.ones(CLASSES * IPC))


@pytest.mark.parametrize("kind", [DD, RaTBPTT])
def test_a_resumed_run_goes_on_with_the_same_numbers(kind: type[ThroughTime]) -> None:
    settings = {"networks": 1} | ({"epochs": 1} if kind is DD else {"steps": 3, "window": 2, "labels": "learned"})

    def run(method: Condenser, iterations: range) -> Condenser:
        for iteration in iterations:
            method.iterate(iteration)
        return method

    whole = run(started(kind, **settings), range(4)).state_dict()
    half = {name: value.clone() for name, value in run(started(kind, **settings), range(2)).state_dict().items()}
    again = started(kind, **settings)
    assert half.keys() == again.state_dict().keys()
    again.load_state_dict(half)
    for name, value in run(again, range(2, 4)).state_dict().items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DD, {"epochs": 0}, "epochs must be at least 1"),
        (DD, {"network_init": "xaver"}, "unknown initialisation 'xaver'. Did you mean 'xavier'"),
        (DD, {"student_lr": 0.0}, "student_lr must be finite and positive"),
        (DD, {"networks": 0}, "networks must be at least 1"),
        (RaTBPTT, {"window": 300}, r"window must lie in 1 .. steps = 200, but is 300"),
        (RaTBPTT, {"inner_optimiser": "adm"}, "unknown inner optimiser 'adm'"),
        (RaTBPTT, {"labels": "soft"}, "unknown kind of labels 'soft'"),
        (RaTBPTT, {"inner_momentum": 1.0}, "momentum must lie in"),
        (RaTBPTT, {"weights": "hosts"}, "unknown place for the weights 'hosts'"),
        (RaTBPTT, {"micro_batch": -1}, "micro_batch must not be negative"),
        (RaTBPTT, {"clip": -1.0}, "clip must not be negative"),
    ],
)
def test_wrong_settings_are_refused(kind: type[ThroughTime], settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind.Settings(**settings)


def test_a_short_loop_has_the_peak_of_a_long_one() -> None:
    def peak(settings: Any) -> int:
        method = RaTBPTT(settings)
        with LiveBytes() as meter:
            method.setup(problem())
            method.iterate(0)
        return meter.peak_bytes("cpu")

    long = RaTBPTT.Settings(steps=6, window=6, real_batch=20, micro_batch=3)
    longer = replace(long, steps=9)
    assert RaTBPTT.memory_probe(longer, IPC) == replace(long, real_batch=6)
    assert peak(RaTBPTT.memory_probe(longer, IPC)) == pytest.approx(peak(longer), rel=0.02)


def test_time_is_that_of_a_mean_window() -> None:
    few, factor = RaTBPTT.probe(RaTBPTT.Settings(steps=200, window=60))
    assert (few.steps, few.window) == (60, 60)
    assert factor == pytest.approx(1 + 70 / 240)


# ---- ld --------------------------------------------------------------------------------------------------------------


def label_method(dtype: torch.dtype = torch.float64, **settings: Any) -> LD:
    """LD with labels that differ, as they are after some iterations."""
    method = LD(LD.Settings(real_batch=REAL, batch_size=4, **settings))
    method.setup(problem())
    labels = (torch.randn(CLASSES * IPC, CLASSES, generator=generator(0, "labels"))).softmax(1)
    method._labels = method.adam.begin(labels)
    method.images = method.images.to(dtype)
    for name in ("_labels", "_network", "_factor"):
        setattr(method, name, tuple(t.to(dtype) for t in getattr(method, name)))
    last = torch.randn(method._last.shape, generator=generator(0, "last"))
    method._last = last.to(dtype)
    return method


def label_batch(method: LD, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
    """The labels as a leaf, and the inputs and labels of an iteration's batch of fixed images."""
    leaf = method.labels.clone().requires_grad_()
    order = torch.randperm(CLASSES * IPC, generator=method.problem.generator("inner batches", iteration, 0))[:4]
    return leaf, method.images[order], leaf[order]


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    soft = F.one_hot(labels, CLASSES).to(logits) if labels.ndim == 1 else labels
    return -(soft * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_the_gradient_of_one_step_is_that_of_autograd(micro_batch: int) -> None:
    method = label_method(student_lr=0.3, micro_batch=micro_batch)
    record, found = method.gradients(5)
    leaf, images, labels = label_batch(method, 5)
    net, real = FlatNetwork(method.problem.build_network), real_batch(method, 5)
    w = method._network[0].clone().requires_grad_()
    (g,) = grad(mean_cross_entropy(net(w, images), labels), w, create_graph=True)
    value = mean_cross_entropy(net(w - 0.3 * g, real[0]), real[1])
    check(found, {"labels": leaf}, value)
    assert record.loss == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(method._found(5).network, g.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_the_gradient_through_ridge_regression_is_that_of_autograd(micro_batch: int) -> None:
    method = label_method(inner="ridge", ridge=0.7, local_share=0.2, micro_batch=micro_batch)
    _, found = method.gradients(5)
    leaf, images, labels = label_batch(method, 5)
    net, real = FlatNetwork(method.problem.build_network), real_batch(method, 5)
    w = method._network[0].clone().requires_grad_()

    def features(x: Tensor, theta: Tensor) -> Tensor:
        return torch.cat([net.features(theta, x), torch.ones(len(x), 1).double()], 1)

    factor, f = torch.ones(1).double().requires_grad_(), features(images, w.detach())
    inverse = torch.linalg.inv(f @ f.T + 0.7 * torch.eye(4).double())
    last = 0.8 * method._last + 0.2 * f.T @ inverse @ labels
    check(
        found,
        {"labels": leaf, "factor": factor},
        mean_cross_entropy(factor * (features(real[0], w.detach()) @ last), real[1]),
    )
    inner = mean_cross_entropy(features(images, w) @ last.detach(), labels.detach())
    torch.testing.assert_close(method._found(5).network, grad(inner, w)[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(method._found(5).last, last.detach())


@pytest.mark.parametrize("inner", ["step", "ridge"])
def test_labels_alone_are_learned_by_torchs_adam_and_stay_probabilities(inner: str) -> None:
    method = LD(LD.Settings(real_batch=REAL, batch_size=4, lr_labels=0.2, inner=inner))
    method.setup(problem())
    images, before = method.images.clone(), method.distilled()
    torch.testing.assert_close(before.labels, torch.full((CLASSES * IPC, CLASSES), 1 / CLASSES))
    leaf = method.labels.clone()
    optimiser = torch.optim.Adam([leaf], 0.2)
    for iteration in range(4):
        leaf.grad = method.gradients(iteration)[1]["labels"].clone()
        optimiser.step()
        leaf.clamp_(0, 1)
        leaf.div_(leaf.sum(1, keepdim=True))
        method.iterate(iteration)
        torch.testing.assert_close(method.labels, leaf, rtol=1e-5, atol=1e-6)
    after = method.distilled()
    assert torch.equal(method.images, images)
    assert after.images.dtype == torch.uint8
    assert torch.equal(after.images, before.images)
    assert not torch.equal(after.labels, before.labels)
    torch.testing.assert_close(after.labels.sum(1), torch.ones(CLASSES * IPC))


def test_a_row_of_labels_that_falls_to_zero_becomes_uniform() -> None:
    method = label_method(torch.float32)
    method.labels.copy_(torch.tensor([[-1.0, -2.0, 0.0]] * 3 + [[3.0, 1.0, -1.0]] * 3))
    method._project()
    torch.testing.assert_close(method.labels[[0, 3]], torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0.0]]))


def test_a_network_starts_anew_when_the_mean_of_the_losses_stops_falling() -> None:
    restarts = Restarts(2)
    losses = [5.0, 4.0, 3.0, 2.0, 9.0, 9.0]  # means 4.5, 3.5, 2.5, 5.5, 9: best after four steps
    assert [restarts.after(x) for x in losses] == [False] * 5 + [True]
    assert (restarts.counts, restarts.age, restarts.networks, restarts.steps) == ([4], 0, 1, 4)
    again = Restarts(2)
    again.load_state_dict(restarts.state_dict())
    for count in (2, 3, 2, 3):
        falling = [float(10 - i) for i in range(count)]
        assert [again.after(x) for x in [*falling, 99.0, 99.0]] == [False] * (count + 1) + [True]
    assert (again.counts, again.networks, again.steps) == ([3, 2, 3], 5, 3)
    assert restarts.networks == 1


def test_a_new_network_is_another_one_and_a_resumed_run_goes_on_with_it() -> None:
    def run(method: LD, iterations: range) -> LD:
        for iteration in iterations:
            method.iterate(iteration)
        return method

    settings: dict[str, Any] = {"patience": 1, "lr_network": 0.5, "inner": "ridge"}
    whole = run(label_method(torch.float32, **settings), range(12))
    assert whole.restarts.networks > 0
    assert not torch.equal(whole._fresh(), label_method(torch.float32)._fresh())
    assert "started anew" in whole.notes()[0]
    half = {
        name: value.clone()
        for name, value in run(label_method(torch.float32, **settings), range(7)).state_dict().items()
    }
    again = label_method(torch.float32, **settings)
    again.load_state_dict(half)
    for name, value in run(again, range(7, 12)).state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert again.distilled().training_steps == whole.restarts.steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": "steps"}, "unknown inner solution 'steps'. Did you mean 'step'"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"ridge": 0.0}, "ridge must be finite and positive"),
        ({"local_share": 0.0}, r"local_share must lie in \(0, 1\]"),
    ],
)
def test_wrong_settings_of_ld_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LD.Settings(**settings)
