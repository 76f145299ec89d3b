"""The inner loop's engine against autograd through one plain graph: optimisers, objectives, rates, pieces, windows.

References are written out here once more, in the simplest way: the loop as one graph, with the optimisers' formulas.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from dcbench_tesla.compute.networks import ConvNet, FlatNetwork, largest_activation
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Sizes
from dcbench_tesla.methods.inner import (
    SGD,
    Adam,
    inner_gradient,
    matching_gradient,
    micro_batch_error,
    stream_inner_gradient,
)
from dcbench_tesla.methods.inner.batches import check_independent, fitting
from dcbench_tesla.methods.inner.engine import Mode
from dcbench_tesla.methods.inner.optimisers import InnerOptimiser
from dcbench_tesla.methods.inner.students import Weights
from dcbench_tesla.profilers import LiveBytes

T, BATCH, CLASSES, SIDE = 6, 7, 4, 8
OPTIMISERS: dict[str, InnerOptimiser] = {"sgd": SGD(), "momentum": SGD(momentum=0.9), "adam": Adam()}
RATES = {"scalar": torch.tensor(0.05).double(), "vector": torch.linspace(0.02, 0.08, T).double()}
PLACES: tuple[Weights, ...] = ("device", "host", "restep")


def normal(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def build(*, normed: bool = False) -> nn.Module:
    """A ConvNet with softplus in place of ReLU, which is smooth.

    Without instance norm every parameter has a gradient. With it a bias has but rounding, which Adam would enlarge.
    """
    network = ConvNet(3, CLASSES, SIDE, width=5)
    kept = [m for m in network.features if normed or not isinstance(m, nn.GroupNorm)]
    network.features = nn.Sequential(*(nn.Softplus() if isinstance(m, nn.ReLU) else m for m in kept))
    return network


NETWORK = FlatNetwork(build)
NORMED = FlatNetwork(lambda: build(normed=True))
START = NETWORK.initial(0).double()
TARGET = START + 0.05 * normal("way", len(START))
INPUTS = [normal(f"inputs {k}", BATCH, 3, SIDE, SIDE) for k in range(T)]
LABELS = [normal(f"labels {k}", BATCH, CLASSES).softmax(1).requires_grad_() for k in range(T)]
HELD_OUT = normal("held out", 5, 3, SIDE, SIDE), torch.tensor([0, 1, 2, 3, 0])


def distance(w: Tensor) -> Tensor:
    return (w - TARGET).square().sum() / (START - TARGET).square().sum()


def held_out(w: Tensor) -> Tensor:
    return F.cross_entropy(NETWORK(w, HELD_OUT[0]), HELD_OUT[1])


OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {"distance": distance, "held out": held_out}


def plain_loop(
    optimiser: InnerOptimiser,
    rates: Tensor,
    inputs: list[Tensor],
    labels: list[Tensor],
    *,
    window: int = 0,
    hold: bool = False,
) -> Tensor:
    """The last weights as one graph; ``hold``: every w_k is a constant where its gradient is taken."""
    w = START.clone().requires_grad_()
    v = m = s = torch.zeros_like(START)
    for k, (x, y) in enumerate(zip(inputs, labels, strict=True)):
        if window and k == T - window:
            w, v, m, s = w.detach().requires_grad_(), v.detach(), m.detach(), s.detach()
        at = w.detach().requires_grad_() if hold else w
        (g,) = grad(NETWORK.loss(at, x, y), at, create_graph=True)
        b = rates[k] if rates.ndim else rates
        if isinstance(optimiser, SGD):
            v = optimiser.momentum * v + g
            w = w - b * v
        else:
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
            w = w - b * (m / (1 - 0.9 ** (k + 1))) / ((s / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
    return w


def reference(
    optimiser: InnerOptimiser, rates: Tensor, objective: Callable[[Tensor], Tensor], **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """The objective, and autograd's gradients of all inputs, labels and rates."""
    inputs, labels = [x.clone().requires_grad_() for x in INPUTS], [y.detach().requires_grad_() for y in LABELS]
    rates = rates.clone().requires_grad_()
    value = objective(plain_loop(optimiser, rates, inputs, labels, **options))
    leaves = [*inputs, *labels, rates]
    return value.detach(), [*grad(value, leaves, allow_unused=True, materialize_grads=True)]


def agree(optimiser: InnerOptimiser, rates: Tensor, objective: str, expected: Any, **options: Any) -> None:
    result = inner_gradient(
        NETWORK.loss, START, INPUTS, LABELS, rates, objective=OBJECTIVES[objective], optimiser=optimiser, **options
    )
    value, gradients = expected
    assert relative(result.loss, value) <= 1e-10
    for got, want in zip([*result.inputs, *result.labels, result.lr], gradients, strict=True):
        assert got is not None
        assert got.shape == want.shape
        assert relative(got, want) <= 1e-10


def relative(value: Tensor, expected: Tensor) -> float:
    size = float(expected.norm())
    return float((value - expected).norm()) / size if size else float(value.norm())


# ---- against one plain graph -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimiser", "objective", "rate"), [*product(OPTIMISERS, OBJECTIVES, RATES)])
@pytest.mark.parametrize("window", [0, 4])
def test_exact_and_unrolled_are_the_gradient_of_one_plain_graph(
    optimiser: str, objective: str, rate: str, window: int
) -> None:
    o, b = OPTIMISERS[optimiser], RATES[rate]
    expected = reference(o, b, OBJECTIVES[objective], window=window)
    for micro_batch in (0, 3, 1, 9):
        agree(o, b, objective, expected, window=window, micro_batch=micro_batch)
    agree(o, b, objective, expected, window=window, mode="unrolled")


@pytest.mark.parametrize(("optimiser", "rate"), [*product(OPTIMISERS, RATES)])
@pytest.mark.parametrize("window", [0, 4])
def test_frozen_is_the_gradient_with_every_student_held_constant(optimiser: str, rate: str, window: int) -> None:
    o, b = OPTIMISERS[optimiser], RATES[rate]
    expected = reference(o, b, distance, window=window, hold=True)
    for micro_batch, keep in ((0, 0), (3, 0), (0, 2), (3, 2)):
        agree(o, b, "distance", expected, window=window, mode="frozen", micro_batch=micro_batch, keep=keep)


@pytest.mark.parametrize(("optimiser", "place"), [*product(OPTIMISERS, PLACES)])
def test_students_come_back_from_every_place(optimiser: str, place: Weights) -> None:
    o, b = OPTIMISERS[optimiser], RATES["vector"]
    expected = reference(o, b, held_out)
    for micro_batch, keep in ((0, 0), (0, 2), (3, 0), (3, 2), (3, T)):
        agree(o, b, "held out", expected, weights=place, micro_batch=micro_batch, keep=keep)


def test_a_window_of_all_steps_or_more_is_no_window() -> None:
    expected = reference(SGD(), RATES["scalar"], distance)
    for window in (T, T + 3):
        agree(SGD(), RATES["scalar"], "distance", expected, window=window)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_central_differences_agree(optimiser: str) -> None:
    o, b, eps = OPTIMISERS[optimiser], RATES["vector"], 1e-5
    result = inner_gradient(NETWORK.loss, START, INPUTS, LABELS, b, objective=held_out, optimiser=o, micro_batch=3)
    moves = {
        "inputs": [normal(f"move {k}", *INPUTS[0].shape) for k in range(T)],
        "labels": [normal(f"move of labels {k}", *LABELS[0].shape) for k in range(T)],
        "lr": [normal("move of rates", T)],
    }

    def value(name: str, size: float) -> Tensor:
        move = moves[name]
        inputs = [x + size * d for x, d in zip(INPUTS, move, strict=True)] if name == "inputs" else INPUTS
        labels = [y + size * d for y, d in zip(LABELS, move, strict=True)] if name == "labels" else LABELS
        rates = b + size * move[0] if name == "lr" else b
        return held_out(plain_loop(o, rates, inputs, [y.detach() for y in labels])).detach()

    for name, found in (("inputs", result.inputs), ("labels", result.labels), ("lr", (result.lr,))):
        slope = (value(name, eps) - value(name, -eps)) / (2 * eps)
        along = sum((g * d).sum() for g, d in zip(found, moves[name], strict=True) if g is not None)
        assert isinstance(along, Tensor)
        assert relative(along, slope) <= 1e-6, name


# ---- optimisers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "torchs"),
    [
        (SGD(), lambda w, lr: torch.optim.SGD([w], lr)),
        (SGD(momentum=0.9), lambda w, lr: torch.optim.SGD([w], lr, momentum=0.9)),
        (Adam(), lambda w, lr: torch.optim.Adam([w], lr)),
        (Adam(0.5, 0.9, 1e-3), lambda w, lr: torch.optim.Adam([w], lr, (0.5, 0.9), 1e-3)),
    ],
)
def test_steps_are_those_of_torch(
    own: InnerOptimiser, torchs: Callable[[Tensor, float], torch.optim.Optimizer]
) -> None:
    w = START.clone().requires_grad_()
    optimiser = torchs(w, 0.05)
    for x, y in zip(INPUTS, LABELS, strict=True):
        optimiser.zero_grad()
        NETWORK.loss(w, x, y.detach()).backward()
        optimiser.step()
    result = inner_gradient(NETWORK.loss, START, INPUTS, LABELS, 0.05, objective=distance, optimiser=own)
    assert relative(result.end, w.detach()) <= 1e-13


@pytest.mark.parametrize("mode", ["exact", "frozen", "unrolled"])
def test_adam_leaves_parameters_without_gradient_where_they_are(mode: Mode) -> None:
    """A plain graph gives NaN there: the root of the second moment has no derivative at zero."""

    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return ((x @ w[:2]).sin() - y).square().mean()

    start = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    x, y = [normal(f"x {k}", 4, 2) for k in range(3)], [normal(f"y {k}", 4) for k in range(3)]
    options: dict[str, Any] = {"objective": lambda w: w.exp().sum(), "optimiser": Adam()}
    result = inner_gradient(loss, start, x, y, 0.05, mode=mode, **options)
    assert result.end[2] == 0.3
    assert torch.stack(result.inputs).isfinite().all()
    two = inner_gradient(loss, start[:2], x, y, 0.05, mode=mode, **options)
    assert relative(torch.stack(result.inputs), torch.stack(two.inputs)) <= 1e-14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(momentum=1.0), r"momentum must lie in \[0, 1\), not 1"),
        (lambda: Adam(beta1=1.0), "Adam needs beta1 and beta2 in"),
        (lambda: Adam(eps=0.0), "positive eps"),
    ],
)
def test_optimisers_refuse_what_they_cannot_do(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


# ---- micro-batches ---------------------------------------------------------------------------------------------------


def peak(mode: Mode, *, batch: int = 20, micro_batch: int = 0, steps: int = 3, weights: Weights = "device") -> int:
    """Peak live bytes of one inner loop on a ConvNet besides the weights and the inputs; counted, nothing computed."""
    network = FlatNetwork(lambda: ConvNet(3, 10, 16, width=16))
    start, target = (torch.empty(network.parameter_count, device="meta") for _ in range(2))
    steps_of = _Zeros(steps, batch)
    with LiveBytes(count=[start, target]) as meter:
        stream_inner_gradient(
            network.loss,
            start,
            steps_of,
            0.01,
            objective=lambda w: (w - target).square().sum(),
            mode=mode,
            micro_batch=micro_batch,
            weights=weights,
        )
    return meter.peak_bytes("meta")


class _Zeros:
    """Batches that exist while they are used, and nothing that takes their gradients."""

    def __init__(self, steps: int, batch: int) -> None:
        self._steps, self._batch = steps, batch

    def __len__(self) -> int:
        return self._steps

    def size(self, k: int) -> int:
        return self._batch

    def batch(self, k: int, rows: slice) -> tuple[Tensor, Tensor]:
        count = len(range(self._batch)[rows])
        return torch.empty(count, 3, 16, 16, device="meta"), torch.empty(count, dtype=torch.int64, device="meta")

    def accumulate(self, k: int, rows: slice, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        assert len(input_gradient) == len(range(self._batch)[rows])


@pytest.mark.parametrize("mode", ["exact", "frozen"])
def test_memory_is_flat_in_the_batch(mode: Mode) -> None:
    small, large = (peak(mode, batch=batch, micro_batch=10, weights="host") for batch in (20, 60))
    assert large <= 1.0001 * small
    assert peak(mode, batch=60) > 3 * large


def test_memory_is_flat_in_steps_and_batch_together() -> None:
    few = peak("exact", batch=20, micro_batch=10, steps=3, weights="host")
    many = peak("exact", batch=40, micro_batch=10, steps=9, weights="host")
    assert many <= 1.0001 * few


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_pieces_of_any_size_change_rounding_only(dtype: torch.dtype, error: float) -> None:
    start = NORMED.initial(0).to(dtype)
    inputs, labels = [x.to(dtype) for x in INPUTS], [y.detach().to(dtype) for y in LABELS]
    whole, *pieces = (
        inner_gradient(NORMED.loss, start, inputs, labels, 0.05, objective=lambda w: w.square().sum(), micro_batch=m)
        for m in (0, 1, 3, 6)
    )
    for piece in pieces:
        assert relative(torch.stack(piece.inputs), torch.stack(whole.inputs)) <= error
        assert relative(piece.lr, whole.lr) <= error


def test_the_error_of_pieces_tells_coupled_images() -> None:
    x, y = INPUTS[0], LABELS[0].detach()
    with pytest.raises(UsageError, match="micro_batch must be at least 1, not 0"):
        micro_batch_error(NORMED.loss, START, x, y, 0)
    assert micro_batch_error(NORMED.loss, NORMED.initial(0).double(), x, y, 3) <= 1e-14

    def coupled(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return NETWORK.loss(w, x - x.mean(0), y)

    assert micro_batch_error(coupled, START, x, y, 3) > 1e-2


def test_batch_norm_refuses_micro_batches_with_the_reason() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(UsageError, match=r"batch norm \(1\): its mean and variance are those of the whole batch"):
        check_independent(network, 5, 10)
    check_independent(network, 0, 10)
    check_independent(network, 10, 10)
    check_independent(network.eval(), 5, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 2, "mode": "unrolled"}, "micro_batch would save nothing"),
        ({"micro_batch": -1}, "micro_batch must not be negative, but is -1"),
        ({"window": -1}, "window must not be negative, but is -1"),
        ({"lr": torch.ones(2)}, r"a scalar or a rate for each of 6 steps, not \(2,\)"),
        ({"objective": lambda w: w}, r"must return a scalar, not a tensor of shape"),
        ({"objective": lambda w: torch.tensor(1.0)}, "has no gradient"),
        ({"objective": lambda w: w, "mode": "unrolled"}, r"the objective must return a scalar"),
        ({"loss": lambda w, x, y: w}, r"the inner loss must return a scalar, not a tensor of shape"),
        ({"loss": lambda w, x, y: w, "mode": "unrolled"}, r"the inner loss must return a scalar"),
        ({"start": START.view(1, -1)}, "start must be a vector"),
        ({"start": START.long()}, "a vector of floating-point numbers, not torch.int64"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "loss": NETWORK.loss,
        "start": START,
        "inputs": INPUTS,
        "labels": LABELS,
        "lr": 0.05,
        "objective": distance,
    }
    with pytest.raises(UsageError, match=message):
        inner_gradient(**arguments | change)


def test_matching_takes_the_engines_options() -> None:
    expected = inner_gradient(
        NETWORK.loss, START, INPUTS, LABELS, 0.05, objective=distance, optimiser=SGD(0.5), window=3, micro_batch=2
    )
    found = matching_gradient(
        NETWORK.loss, START, TARGET, INPUTS, LABELS, 0.05, optimiser=SGD(0.5), window=3, micro_batch=2
    )
    assert torch.equal(torch.stack(found.inputs), torch.stack(expected.inputs))
    assert not torch.stack(found.inputs)[:3].any()


# ---- what the device chooses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "activation", "chosen"),
    [
        (100, 128 * 32 * 32, 10),  # as many as the caches hold
        (20, 128 * 32 * 32, 10),
        (97, 128 * 32 * 32, 10),  # no divisor is near
        (12, 128 * 32 * 32, 6),
        (10, 32 * 8 * 8, 10),  # all of them fit
        (100, 128 * 256 * 256, 1),
    ],
)
def test_a_cpu_takes_what_its_caches_hold(batch: int, activation: int, chosen: int) -> None:
    sizes = Sizes(smallest_class=10, images=batch, activation=activation)
    assert fitting(batch, sizes, torch.device("cpu")) == chosen
    assert fitting(batch, sizes, torch.device("cuda")) == batch
    assert fitting(batch, replace(sizes, coupled=True), torch.device("cpu")) == batch


def test_the_largest_activation_is_that_of_the_first_block() -> None:
    with torch.device("meta"):
        assert largest_activation(ConvNet(3, 10, 32, width=16), 3, 32) == 16 * 32 * 32
        assert largest_activation(ConvNet(3, 10, 32, width=2), 3, 32) == 3 * 32 * 32
