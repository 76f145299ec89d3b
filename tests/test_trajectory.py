"""The matching engine against plain autograd, central differences and counted bytes: the tests of its derivation.

References are written out here once more, in the simplest way: the whole pipeline from the synthetic images to the
loss, kept as one graph.
"""

import gc
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode

from dcbench_tesla.compute.networks import ConvNet, FlatNetwork
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.data.augmentation import NO_STRATEGY, STRATEGY, Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Problem, Task
from dcbench_tesla.methods.inner import matching_gradient, stream_matching_gradient
from dcbench_tesla.methods.inner.engine import Mode, StreamedGradient
from dcbench_tesla.methods.inner.step import Loss
from dcbench_tesla.methods.inner.students import Weights
from dcbench_tesla.methods.inner.synthetic import ShuffledBatches
from dcbench_tesla.methods.trajectory.matching import InnerBatches, MatchingSettings
from dcbench_tesla.profilers import LiveBytes

CLASSES, SIDE, COUNT, BATCH = 4, 8, 7, 3  # 7 images in batches of 3, 3 and 1: an image comes back every third step
ITERATION = 5
MODES: tuple[Mode, ...] = ("unrolled", "frozen", "exact")
TWO_PASSES: tuple[Mode, ...] = ("frozen", "exact")
WAYS: list[tuple[Mode, int]] = [*((mode, 0) for mode in MODES), *((mode, 1) for mode in TWO_PASSES)]
PLACES: tuple[Weights, ...] = ("device", "host", "restep")
LEAVES = ("images", "labels", "lr")


def problem(strategy: str = NO_STRATEGY, *, side: int = SIDE, classes: int = CLASSES) -> Problem:
    preprocessing = Preprocessing("standardise", torch.zeros(3), torch.ones(3))
    task = Task(
        dataset="toy",
        fingerprint="toy",
        channels=3,
        side=side,
        class_names=tuple(map(str, range(classes))),
        preprocessing=preprocessing,
        augmentation=Augmentation(strategy),
    )
    cpu = torch.device("cpu")
    pixels = torch.zeros(classes, 3, side, side, dtype=torch.uint8)
    train = LabelledImages(
        pixels, torch.arange(classes), classes=classes, max_value=255, preprocessing=preprocessing, device=cpu
    )
    return Problem(task=task, train=train, ipc=1, seed=0, device=cpu, build_network=lambda: ConvNet(3, classes, side))


def network(*, smooth: bool = False, normed: bool = True) -> FlatNetwork:
    """A small ConvNet; ``smooth`` with softplus in place of ReLU; without its group norm where not ``normed``."""

    def build() -> nn.Module:
        net = ConvNet(3, CLASSES, SIDE, width=6)
        if not normed:
            net.features = nn.Sequential(*(m for m in net.features if not isinstance(m, nn.GroupNorm)))
        if smooth:
            net.features = nn.Sequential(*(nn.Softplus() if isinstance(m, nn.ReLU) else m for m in net.features))
        return net

    return FlatNetwork(build)


def normal(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def segment(net: FlatNetwork) -> tuple[Tensor, Tensor]:
    """Start and target of a student, in float64."""
    start = net.initial(0).double()
    return start, start + 0.05 * normal("way", len(start))


def synthetic() -> tuple[Tensor, Tensor]:
    """Images and soft labels."""
    return normal("images", COUNT, 3, SIDE, SIDE), normal("labels", COUNT, CLASSES).softmax(1)


def relative(value: Tensor | None, expected: Tensor) -> float:
    assert value is not None
    return float((value - expected).norm() / expected.norm())


def matching_loss(
    loss: Loss,
    start: Tensor,
    target: Tensor,
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    lr: Tensor,
    *,
    hold: bool = False,
) -> Tensor:
    """L as one graph; with ``hold`` every w_k is a constant where its gradient is taken."""
    w = start.clone().requires_grad_()
    for x, y in zip(inputs, labels, strict=True):
        at = w.detach().requires_grad_() if hold else w
        w = w - lr * grad(loss(at, x, y), at, create_graph=True)[0]
    return (w - target).square().sum() / (start - target).square().sum()


def pipeline_loss(
    net: FlatNetwork, problem: Problem, steps: int, images: Tensor, labels: Tensor, lr: Tensor, *, hold: bool = False
) -> Tensor:
    """L as one graph from the images on: index, augment, T steps."""
    inputs, chosen, chunks = [], [], math.ceil(COUNT / BATCH)
    for k in range(steps):
        order = torch.randperm(COUNT, generator=problem.generator("inner batches", ITERATION, k // chunks))
        indices = order.split(BATCH)[k % chunks]
        rng = problem.generator("inner augmentation", ITERATION, k)
        draw = problem.task.augmentation.draw(len(indices), SIDE, rng)
        inputs.append(problem.task.augmentation(images[indices], draw))
        chosen.append(labels[indices])
    return matching_loss(net.loss, *segment(net), inputs, chosen, lr, hold=hold)


def pipeline_gradients(
    net: FlatNetwork, problem: Problem, steps: int, lr: float, *, hold: bool = False
) -> dict[str, Tensor]:
    """The loss, and autograd's gradients of the images, the labels and b."""
    images, labels = (tensor.requires_grad_() for tensor in synthetic())
    rate = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
    value = pipeline_loss(net, problem, steps, images, labels, rate, hold=hold)
    return dict(zip(LEAVES, grad(value, [images, labels, rate]), strict=True)) | {"loss": value.detach()}


def streamed(
    net: FlatNetwork, problem: Problem, steps: int, lr: float, mode: Mode, weights: Weights = "auto", keep: int = 0
) -> dict[str, Tensor]:
    """The same from the engine, in the streaming form."""
    images, labels = synthetic()
    settings = MatchingSettings(steps=steps, batch_size=BATCH, labels="learned")
    batches = InnerBatches(problem, images, labels, settings, ITERATION)
    result = stream_matching_gradient(net.loss, *segment(net), batches, lr, mode, weights=weights, keep=keep)
    gradients = (batches.image_gradient, batches.label_gradient, result.lr)
    return dict(zip(LEAVES, gradients, strict=True)) | {"loss": result.loss}


def sequences(steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and labels of T steps; each image is in several of them, and may be twice in one."""
    images, labels = synthetic()
    indices = torch.randint(COUNT, (steps, BATCH), generator=generator(0, "batches"))
    return [images[i] for i in indices], [labels[i].requires_grad_() for i in indices]


# --- 1. frozen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_frozen_is_the_gradient_with_every_student_held_constant(steps: int) -> None:
    net, (inputs, labels) = network(), sequences(steps)
    leaves = [x.clone().requires_grad_() for x in inputs]
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    value = matching_loss(net.loss, *segment(net), leaves, labels, lr, hold=True)
    expected = grad(value, [*leaves, *labels, lr])

    result = matching_gradient(net.loss, *segment(net), inputs, labels, 0.05, "frozen")
    assert relative(result.loss, value.detach()) <= 1e-12
    for got, want in zip([*result.inputs, *result.labels, result.lr], expected, strict=True):
        assert relative(got, want) <= 1e-12


def test_frozen_streamed_is_the_gradient_with_every_student_held_constant() -> None:
    expected = pipeline_gradients(network(), problem(STRATEGY), 9, 0.05, hold=True)
    result = streamed(network(), problem(STRATEGY), 9, 0.05, "frozen")
    for name, gradient in expected.items():
        assert relative(result[name], gradient) <= 1e-12, name


def test_frozen_is_unrolled_at_one_step_and_at_no_other() -> None:
    for steps, low, high in ((1, 0.0, 1e-12), (9, 1e-2, math.inf)):
        frozen, unrolled = (
            streamed(network(), problem(STRATEGY), steps, 0.05, mode) for mode in ("frozen", "unrolled")
        )
        assert low <= relative(frozen["images"], unrolled["images"]) <= high


# --- 2. exact and unrolled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [NO_STRATEGY, STRATEGY])
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 11])  # squares and others
def test_exact_and_unrolled_are_the_gradient_of_the_whole_pipeline(steps: int, strategy: str) -> None:
    expected = pipeline_gradients(network(), problem(strategy), steps, 0.05)
    for weights in ("auto", *PLACES):
        result = streamed(network(), problem(strategy), steps, 0.05, "exact", weights)
        for name, gradient in expected.items():
            assert relative(result[name], gradient) <= 1e-10, (weights, name)
    result = streamed(network(), problem(strategy), steps, 0.05, "unrolled")
    for name, gradient in expected.items():
        assert relative(result[name], gradient) <= 1e-10, name


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_exact_and_unrolled_of_sequences(steps: int) -> None:
    net, (inputs, labels) = network(), sequences(steps)
    leaves = [x.clone().requires_grad_() for x in inputs]
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    value = matching_loss(net.loss, *segment(net), leaves, labels, lr)
    expected = grad(value, [*leaves, *labels, lr])

    ways: list[tuple[Mode, Weights]] = [("unrolled", "auto"), *(("exact", place) for place in PLACES)]
    for mode, weights in ways:
        result = matching_gradient(net.loss, *segment(net), inputs, labels, lr, mode, weights=weights)
        for got, want in zip([*result.inputs, *result.labels, result.lr], expected, strict=True):
            assert relative(got, want) <= 1e-10, (mode, weights)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_the_place_of_the_weights_changes_no_bit(steps: int) -> None:
    device, *others = (streamed(network(), problem(STRATEGY), steps, 0.05, "exact", place) for place in PLACES)
    for other in others:
        assert all(torch.equal(other[name], device[name]) for name in device)


# --- 3. central differences --------------------------------------------------------------------------------------


def test_central_differences_agree_with_exact_and_not_with_frozen() -> None:
    net, task, steps, lr, eps = network(smooth=True), problem(STRATEGY), 10, 0.05, 1e-5
    exact, frozen = (streamed(net, task, steps, lr, mode) for mode in ("exact", "frozen"))
    at = dict(zip(LEAVES, (*synthetic(), torch.tensor(lr, dtype=torch.float64)), strict=True))

    def value(name: str, shift: Tensor) -> Tensor:
        moved = at | {name: at[name] + shift}
        return pipeline_loss(net, task, steps, moved["images"], moved["labels"], moved["lr"]).detach()

    for number, name in enumerate(("images", "images", "images", "labels", "labels", "lr")):
        direction = normal(f"direction {number}", *at[name].shape)
        slope = (value(name, eps * direction) - value(name, -eps * direction)) / (2 * eps)
        assert relative((exact[name] * direction).sum(), slope) <= 1e-6, name
        assert relative((frozen[name] * direction).sum(), slope) >= 0.1, name


# --- 4. live tensor bytes ----------------------------------------------------------------------------------------


@cache
def peaks(
    mode: Mode, steps: int, weights: Weights = "device", device: str = "meta", keep: int = 0
) -> tuple[int, int, int]:
    """Peak bytes on the device and on the host of one iteration of ConvNet-D3, ten 32 x 32 images; and 4 P."""
    task = problem(STRATEGY, side=32, classes=10)
    net = FlatNetwork(task.build_network)
    start, target = net.initial(0).to(device), net.initial(1).to(device)
    images, labels = torch.zeros(10, 3, 32, 32, device=device), torch.arange(10, device=device)
    settings = MatchingSettings(steps=steps, batch_size=10)
    with LiveBytes(count=[start, target, images, labels]) as meter:
        before = meter.live_bytes(device)
        batches = InnerBatches(task, images, labels, settings, ITERATION)
        result = stream_matching_gradient(net.loss, start, target, batches, 0.01, mode, weights=weights, keep=keep)
        outcome = (result.loss, result.lr, result.end, batches.image_gradient, batches.label_gradient)
        gc.collect()  # a compiler that ran before, in another test, leaves frames in circles
        assert meter.live_bytes(device) - before == sum(tensor.nbytes for tensor in outcome)  # and no graph
    return meter.peak_bytes(device), meter.peak_bytes("cpu"), 4 * net.parameter_count


@pytest.mark.parametrize("mode", ["frozen", "exact", "unrolled"])
def test_bytes_on_meta_are_those_of_a_real_computation(mode: Mode) -> None:
    assert peaks(mode, 2)[0] == pytest.approx(peaks(mode, 2, device="cpu")[0], rel=1e-4)


def test_frozen_is_flat_in_the_number_of_steps() -> None:
    assert peaks("frozen", 40)[0] <= 1.01 * peaks("frozen", 5)[0]
    single, _, vector = peaks("frozen", 1)
    # the student besides its start, a rate's gradient a step, and nothing of the step before
    assert peaks("frozen", 5)[0] <= single + vector + 4 * 4


def test_exact_grows_by_one_weight_vector_a_step() -> None:
    few, many = peaks("exact", 5)[0], peaks("exact", 20)[0]
    vector = peaks("exact", 5)[2]
    assert 0.99 * vector <= (many - few) / 15 <= vector + 4  # and its rate's gradient
    assert few <= peaks("frozen", 5)[0] + 5 * vector


def test_exact_with_weights_on_the_host_is_flat_on_the_device() -> None:
    (few, few_on_host, vector), (many, many_on_host, _) = peaks("exact", 5, "host"), peaks("exact", 20, "host")
    assert many <= 1.01 * few
    assert many <= 1.01 * peaks("frozen", 5)[0]
    assert (many_on_host - few_on_host) / 15 == pytest.approx(vector, rel=1e-3)


def test_exact_with_re_stepping_grows_with_the_root_of_the_steps() -> None:
    vector = peaks("exact", 20, "restep")[2]
    grown = peaks("exact", 20, "restep")[0] - peaks("frozen", 5)[0]
    # every fifth is kept, the first being the start, and a stretch of five re-stepped: 3 + 5, one of them the student
    assert grown <= 7 * vector
    assert grown <= 0.5 * (peaks("exact", 20)[0] - peaks("frozen", 5)[0])


def test_unrolled_grows_by_a_graph_a_step() -> None:
    second, fourth, sixth, eighth = (peaks("unrolled", steps)[0] for steps in (2, 4, 6, 8))
    assert eighth - sixth == pytest.approx(fourth - second, rel=1e-3)
    assert sixth - fourth == pytest.approx(fourth - second, rel=1e-3)
    assert fourth - second >= 20 * peaks("unrolled", 2)[2]  # far more than the weights


# --- 5. kept graphs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", TWO_PASSES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_kept_graphs_change_the_result_by_rounding_at_most(mode: Mode, steps: int) -> None:
    expected = streamed(network(), problem(STRATEGY), steps, 0.05, mode)
    for keep in {1, 2, steps // 2, steps - 1, steps, steps + 3}:
        for weights in PLACES if mode == "exact" else PLACES[:1]:
            result = streamed(network(), problem(STRATEGY), steps, 0.05, mode, weights, keep)
            for name, value in expected.items():
                assert relative(result[name], value) <= 1e-14, (keep, weights, name)


@pytest.mark.parametrize("mode", TWO_PASSES)
def test_kept_graphs_change_no_bit_where_a_gradient_is_the_same_with_and_without_graph(mode: Mode) -> None:
    """Group norm has two formulas for its gradient, one of them for when it is to be differentiated again."""
    net, (inputs, labels) = network(normed=False), sequences(5)
    plain, *others = (
        matching_gradient(net.loss, *segment(net), inputs, labels, 0.05, mode, keep=keep) for keep in range(6)
    )
    for other in others:
        assert torch.equal(other.end, plain.end)
        assert torch.equal(torch.stack(other.inputs), torch.stack(plain.inputs))
        for got, want in zip(other.labels, plain.labels, strict=True):
            assert got is not None
            assert want is not None
            assert torch.equal(got, want)
        # frozen takes the kept steps first, and so adds up in another order
        assert relative(other.lr, plain.lr) <= (0 if mode == "exact" else 1e-15)


@pytest.mark.parametrize("mode", TWO_PASSES)
@pytest.mark.parametrize("keep", [0, 1, 4, 6, 7, 9])
def test_a_kept_step_is_built_once(mode: Mode, keep: int) -> None:
    steps, evaluations = Counted(7), 0

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return quadratic(theta, x, y)

    stream_matching_gradient(loss, torch.zeros(2), torch.ones(2), steps, 0.1, mode, weights="device", keep=keep)
    kept = min(keep, 7)
    assert evaluations == 14 - kept
    assert [steps.asked.count(k) for k in range(7)] == [2] * (7 - kept) + [1] * kept  # the last ones
    assert sorted(steps.taken) == list(range(7))


class Convolutions(TorchDispatchMode):
    """Count the convolutions that are computed, their backward passes among them."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "convolution" in str(func)
        return func(*args, **(kwargs or {}))


def convolutions(mode: Mode, keep: int = 0) -> int:
    """How many convolutions an iteration of four steps takes."""
    net, (inputs, labels) = network(), sequences(4)
    with Convolutions() as counter:  # type: ignore[no-untyped-call]
        matching_gradient(net.loss, *segment(net), inputs, labels, 0.05, mode, keep=keep)
    return int(counter.count)


def test_with_all_graphs_kept_exact_computes_what_unrolled_does() -> None:
    none, *some, whole = (convolutions("exact", keep) for keep in range(5))
    saved = 2  # a step: a network of one convolution goes forwards and backwards once less
    assert whole == convolutions("unrolled")
    assert [*some, whole] == [none - keep * saved for keep in (1, 2, 3, 4)]
    assert convolutions("frozen", 4) == convolutions("frozen") - 4 * saved


@pytest.mark.parametrize("mode", TWO_PASSES)
def test_memory_is_linear_in_the_kept_graphs(mode: Mode) -> None:
    by_keep = [peaks(mode, 6, keep=keep)[0] for keep in range(6)]
    graph = (peaks("unrolled", 6)[0] - peaks("unrolled", 2)[0]) / 4
    assert by_keep[1] <= by_keep[0]  # pass 2 begins with that graph anyway
    for fewer, more in pairwise(by_keep[1:]):
        assert more - fewer == pytest.approx(by_keep[2] - by_keep[1], rel=0.01)
        assert 0.95 * graph <= more - fewer <= graph
    assert peaks(mode, 6, keep=6) == peaks(mode, 6, keep=9)
    assert by_keep[5] < peaks(mode, 6, keep=6)[0] <= peaks("unrolled", 6)[0]


def test_kept_graphs_leave_fewer_weights_to_keep() -> None:
    _, none, vector = peaks("exact", 6, "host")
    _, some, _ = peaks("exact", 6, "host", keep=4)
    assert (none - some) / 4 == pytest.approx(vector, rel=1e-3)


# --- form --------------------------------------------------------------------------------------------------------


def quadratic(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (x @ theta - y).square().mean()


def small(steps: int = 3) -> dict[str, Any]:
    return {
        "loss": quadratic,
        "start": torch.zeros(2),
        "target": torch.ones(2),
        "inputs": [torch.eye(2)] * steps,
        "labels": [torch.ones(2)] * steps,
        "lr": 0.5,
    }


@pytest.mark.parametrize("mode", ["frozen", "exact", "unrolled"])
def test_result_fields(mode: Mode) -> None:
    asking = torch.ones(2, requires_grad=True)
    arguments = small() | {"labels": [torch.ones(2), asking, torch.ones(2)], "lr": torch.tensor(0.5)}
    result = matching_gradient(**arguments, mode=mode)
    # each step halves the way to (1, 1): g = w - 1
    torch.testing.assert_close(result.end, torch.full((2,), 0.875))
    torch.testing.assert_close(result.loss, torch.tensor(1 / 64))
    assert [None if y is None else y.shape for y in result.labels] == [None, (2,), None]
    assert [x.shape for x in result.inputs] == [(2, 2)] * 3
    assert result.lr.shape == ()
    tensors = [result.loss, result.end, result.lr, *result.inputs, *(y for y in result.labels if y is not None)]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert asking.grad is None
    assert arguments["lr"] == 0.5


class Counted:
    """Steps that count their calls."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.asked: list[int] = []
        self.taken: list[int] = []

    def __len__(self) -> int:
        return self.steps

    def size(self, k: int) -> int:
        return 2

    def batch(self, k: int, rows: slice) -> tuple[Tensor, Tensor]:
        self.asked.append(k)
        return (k + 1) * torch.eye(2), torch.ones(2)

    def accumulate(self, k: int, rows: slice, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        assert input_gradient.shape == (2, 2)
        assert label_gradient is None
        self.taken.append(k)


@pytest.mark.parametrize("weights", PLACES)
@pytest.mark.parametrize("mode", ["frozen", "exact", "unrolled"])
def test_every_step_hands_its_gradients_over_once(mode: Mode, weights: Weights) -> None:
    steps = Counted(7)
    result = stream_matching_gradient(quadratic, torch.zeros(2), torch.ones(2), steps, 0.1, mode, weights=weights)
    assert isinstance(result, StreamedGradient)
    assert sorted(steps.taken) == list(range(7))


@pytest.mark.parametrize("mode", ["frozen", "exact", "unrolled"])
def test_float32_is_finite_and_near_float64(mode: Mode) -> None:
    net = network(smooth=True)
    start, target = segment(net)
    inputs, labels = sequences(5)
    double = matching_gradient(net.loss, start, target, inputs, labels, 0.05, mode)
    single = matching_gradient(
        net.loss, start.float(), target.float(), [x.float() for x in inputs], [y.float() for y in labels], 0.05, mode
    )
    for got, want in zip(
        [*single.inputs, *single.labels, single.lr, single.loss, single.end],
        [*double.inputs, *double.labels, double.lr, double.loss, double.end],
        strict=True,
    ):
        assert got is not None
        assert want is not None
        assert got.dtype == torch.float32
        assert got.isfinite().all()
        assert relative(got.double(), want) <= 1e-4


def test_hard_labels_and_the_default_mode() -> None:
    net = network()
    inputs, labels = sequences(3)
    hard = [y.argmax(1) for y in labels]
    result = matching_gradient(net.loss, *segment(net), inputs, hard, 0.05)
    expected = matching_gradient(net.loss, *segment(net), inputs, hard, 0.05, "unrolled")
    assert result.labels == expected.labels == (None, None, None)
    assert relative(torch.stack(result.inputs), torch.stack(expected.inputs)) <= 1e-10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "exakt"}, "unknown mode 'exakt'. Did you mean 'exact'\\? Known: exact, frozen, unrolled"),
        ({"weights": "hosts"}, "unknown place for the weights 'hosts'. Did you mean 'host'\\?"),
        ({"labels": [torch.ones(2)]}, "3 inputs but 1 labels"),
        ({"inputs": [], "labels": []}, "no inner steps"),
        ({"target": torch.zeros(2)}, "start and target are equal"),
        ({"target": torch.ones(3)}, r"vectors of one length, not \(2,\) and \(3,\)"),
        ({"start": torch.zeros(1, 2), "target": torch.ones(1, 2)}, "vectors of one length"),
        ({"keep": -1}, "keep must not be negative, but is -1"),
        ({"keep": 1, "mode": "unrolled"}, "give keep with mode exact or frozen only"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        matching_gradient(**small() | change)


@pytest.mark.parametrize(("mode", "keep"), WAYS)
def test_a_caller_without_grad_mode_gets_the_same(mode: Mode, keep: int) -> None:
    start, target = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    inputs, labels = [torch.eye(3, dtype=torch.float64)] * 2, [torch.ones(3, dtype=torch.float64)] * 2

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return ((x @ theta).sin() - y).square().sum()

    expected = matching_gradient(loss, start, target, inputs, labels, 0.1, mode, keep=keep)
    with torch.no_grad():
        found = matching_gradient(loss, start, target, inputs, labels, 0.1, mode, keep=keep)
    assert torch.equal(torch.stack(found.inputs), torch.stack(expected.inputs))


@pytest.mark.parametrize(("mode", "keep"), WAYS)
def test_labels_that_do_not_enter_the_gradient_get_zeros(mode: Mode, keep: int) -> None:
    start, target = torch.zeros(3), torch.ones(3)
    labels = [torch.ones(3, requires_grad=True)] * 2
    result = matching_gradient(
        lambda theta, x, y: (x @ theta).exp().sum() + y.sum(),
        start,
        target,
        [torch.eye(3)] * 2,
        labels,
        0.1,
        mode,
        keep=keep,
    )
    assert all(g is not None and not g.any() for g in result.labels)


@pytest.mark.parametrize(("mode", "keep"), WAYS)
def test_it_runs_on_fake_tensors(mode: Mode, keep: int) -> None:
    with FakeTensorMode():
        x, y = [torch.empty(4, 3)] * 2, [torch.empty(4)] * 2
        result = matching_gradient(quadratic, torch.empty(3), torch.empty(3), x, y, 0.1, mode, keep=keep)
    assert result.inputs[1].shape == (4, 3)


def test_the_shorter_batch_can_come_first() -> None:
    """Five images in batches of two: 1, 2, 2 of every permutation, as released code takes them from the end."""
    found = problem()
    images, labels = torch.zeros(5, 1, 8, 8), torch.zeros(5, dtype=torch.long)
    how: dict[str, Any] = {"steps": 6, "batch_size": 2, "repetition": (0,)}
    for first, sizes in ((True, [1, 2, 2]), (False, [2, 2, 1])):
        batches = ShuffledBatches(found, images, labels, **how, short_first=first)
        assert [batches.size(k) for k in range(6)] == sizes * 2
        for permutation in (0, 1):
            order = torch.randperm(5, generator=found.generator("inner batches", 0, permutation))
            shown = [batches.indices(3 * permutation + k) for k in range(3)]
            assert [len(b) for b in shown] == sizes
            assert torch.equal(torch.cat(shown), order)
    even = ShuffledBatches(found, images[:4], labels[:4], **how, short_first=True)
    assert [even.size(k) for k in range(6)] == [2] * 6
