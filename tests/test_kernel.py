"""`kip` and `frepo`: kernels against finite networks and sampling, gradients against plain graphs and differences."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.cells.budget import _thrifty
from dcbench_tesla.cells.evaluation import network_count
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.compute.kernels import (
    Covariances,
    RandomFeatures,
    Ridge,
    conv_vec_kernels,
    fc_kernels,
    gram,
    kernel_named,
)
from dcbench_tesla.compute.named_networks import FrePoNet
from dcbench_tesla.compute.networks import Network, has_batch_norm
from dcbench_tesla.config import EvaluationSettings, overrides_from, resolve
from dcbench_tesla.conformance import tiny_problem, tiny_sets
from dcbench_tesla.data.preprocessing import fit_share_zca
from dcbench_tesla.distilled import CENTRED
from dcbench_tesla.errors import DivergedError, UsageError
from dcbench_tesla.evaluators.kernel_ridge import KernelRidge, KernelRidgeSettings
from dcbench_tesla.methods.kernel.frepo import FrePo
from dcbench_tesla.methods.kernel.kip import KIP
from dcbench_tesla.methods.kernel.lamb import Learned, cosine, lamb_step
from dcbench_tesla.profilers.memory import memory_meter

CPU = torch.device("cpu")
K, IPC = 3, 2


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, seed: int, channels: int = 2, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, generator=rng(seed), dtype=torch.float64)


# ---- kernels ---------------------------------------------------------------------------------------------------------


def test_a_relus_kernels_against_sampling() -> None:
    """E[relu(u) relu(v)] and E[relu'(u) relu'(v)] over four million pairs (u, v)."""
    own, others, between = 1.3, 0.7, -0.4
    found = Covariances(*(torch.full((1, 1), v, dtype=torch.float64) for v in (between, 1.0, own, others))).relu()
    pairs = torch.randn(2, 4_000_000, generator=rng(0))
    u = math.sqrt(own) * pairs[0]
    v = between / math.sqrt(own) * pairs[0] + math.sqrt(others - between**2 / own) * pairs[1]
    assert float(found.nngp) == pytest.approx(float((u.relu() * v.relu()).mean()), rel=0.01)
    assert float(found.ntk) == pytest.approx(float(((u > 0) & (v > 0)).float().mean()), rel=0.01)
    assert (float(found.own), float(found.others)) == (own / 2, others / 2)


def test_equal_and_opposite_images_have_finite_gradients() -> None:
    x = images(2, 0).requires_grad_()
    both = fc_kernels(x, torch.cat([x, -x]), 2)
    torch.testing.assert_close(both.nngp.diagonal(), both.own[:, 0])
    (gradient,) = torch.autograd.grad(both.ntk.sum(), x)
    assert torch.isfinite(gradient).all()
    k = float(x.detach()[0].square().mean())
    assert float(fc_kernels(x, x).nngp[0, 0].detach()) == pytest.approx(2 * (2 * k + 0.01) / 2 + 0.01)


def finite(layers: list[Tensor], x: Tensor, *, convolutions: bool) -> tuple[Tensor, Tensor]:
    """The output of a finite network in NTK's parametrisation, and what enters its last layer, for one image."""
    hidden = x[None] if convolutions else x.reshape(1, -1)
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        scale = math.sqrt(2 / weight[0].numel())
        if convolutions:
            hidden = F.conv2d(hidden, scale * weight, 0.1 * bias, padding=1).relu()
        else:
            hidden = F.linear(hidden, scale * weight, 0.1 * bias).relu()
    hidden = hidden.flatten()
    return math.sqrt(2 / len(hidden)) * layers[-2] @ hidden + 0.1 * layers[-1], hidden


@pytest.mark.parametrize(
    ("kernels", "width", "draws", "seed"), [(fc_kernels, 1024, 150, 2), (conv_vec_kernels, 256, 40, 3)]
)
def test_kernels_against_finite_networks(
    kernels: Callable[[Tensor, Tensor, int], Covariances], width: int, draws: int, seed: int
) -> None:
    """The mean of many wide networks of two hidden layers: NNGP within 1 %, NTK within 3 %.

    A mean of so many has a standard error of up to 1 %; the seeds are such that it is closer.
    """
    x = images(3, 1).float()
    x[1] += 0.7 * x[0]  # otherwise all are about orthogonal
    convolutions, depth, generator = kernels is conv_vec_kernels, 2, rng(seed)
    nngp, ntk = torch.zeros(3, 3), torch.zeros(3, 3)
    for _ in range(draws):
        sizes = [2 if convolutions else x[0].numel(), *[width] * depth]
        window = (3, 3) if convolutions else ()
        shapes: list[tuple[int, ...]] = []
        for before, after in pairwise(sizes):
            shapes += [(after, before, *window), (after,)]
        shapes += [(width * (x[0, 0].numel() if convolutions else 1),), ()]
        layers = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        gradients, hidden = [], []
        for image in x:
            out, last = finite(layers, image, convolutions=convolutions)
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(out, layers, retain_graph=True)]))
            hidden.append(last.detach())
        stacked, last_layer = torch.stack(gradients), torch.stack(hidden)
        ntk += stacked @ stacked.T / draws
        nngp += (2 * last_layer @ last_layer.T / last_layer.shape[1] + 0.01) / draws
    found = kernels(x.double(), x.double(), depth)
    assert float((nngp / found.nngp - 1).abs().max()) < 0.01
    assert float((ntk / found.ntk - 1).abs().max()) < 0.03


def test_random_features_approximate_one_kernel() -> None:
    """Two independent draws of many features agree, and their kernel is 2 <phi, phi'> + 0.01."""
    x = images(4, 3, channels=1)
    made = [RandomFeatures(1, 8, count=8, width=128, depth=1, seed=seed, device=CPU) for seed in (0, 1)]
    first, second = (features.kernel(x, x) for features in made)
    assert float((first / second - 1).abs().max()) < 0.1
    assert not torch.equal(first, second)
    phi = made[0](x)
    torch.testing.assert_close(first, 2 * phi @ phi.T + 0.01)
    assert phi.shape == (4, 8 * 128 * 16)


def test_ridge_and_its_gradients_against_autograd() -> None:
    phi = torch.randn(5, 7, generator=rng(0), dtype=torch.float64).requires_grad_()
    y = torch.randn(5, K, generator=rng(1), dtype=torch.float64).requires_grad_()
    of_weights = torch.randn(5, K, generator=rng(2), dtype=torch.float64)
    kernel = phi @ phi.T
    kernel.retain_grad()
    matrix = kernel + 0.1 * kernel.trace() / 5 * torch.eye(5, dtype=torch.float64)
    weights = torch.linalg.solve(matrix, y)
    (weights * of_weights).sum().backward()
    ridge = Ridge(gram(phi.detach()), y.detach(), 0.1)
    of_labels = ridge.solve(of_weights)
    torch.testing.assert_close(ridge.weights, weights.detach())
    for found, wanted in (
        (of_labels, y.grad),
        (ridge.kernel_gradient(of_labels), kernel.grad),
        (ridge.feature_gradient(of_labels, phi.detach()), phi.grad),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    with pytest.raises(DivergedError, match="is not positive definite"):
        Ridge(-torch.eye(3).double(), torch.zeros(3, K), 0.1)


# ---- kip -------------------------------------------------------------------------------------------------------------


def kip(**settings: Any) -> KIP:
    shape: dict[str, Any] = {"real_batch": 18, "width": 4, "random_networks": 2, "labels": "learned"}
    method = KIP(KIP.Settings(**{**shape, **settings}))
    method.setup(tiny_problem(False))
    method.values = {name: tuple(t.double() for t in state) for name, state in method.values.items()}
    return method


def kip_loss(method: KIP, support: Tensor, labels: Tensor) -> Tensor:
    """KIP's formula, with one matrix for all targets."""
    rows = torch.cat([method.problem.train.members[c][torch.randperm(12, generator=g)[:6]] for c, g in draws(method)])
    real, wanted = method.problem.train.inputs(rows).double(), method.problem.train.labels[rows]
    kernel = method.kernel(2)
    own = kernel(support, support)
    own = own + method._ridge * own.trace() / len(own) * torch.eye(len(own), dtype=torch.float64)
    predicted = kernel(real, support) @ torch.linalg.solve(own, labels)
    loss: Tensor = ((predicted - F.one_hot(wanted, K).double() + 1 / K) ** 2).sum(1).mean() / 2
    return loss


def draws(method: KIP) -> list[tuple[int, torch.Generator]]:
    return [(c, method.problem.generator("real images", 2, c)) for c in range(K)]


@pytest.mark.parametrize("kernel", ["fc", "conv-vec", "random-conv"])
def test_kips_gradient_against_a_plain_graph_and_finite_differences(kernel: str) -> None:
    method = kip(kernel=kernel, micro_batch=4, ridge=1e-3)
    record, found = method.gradients(2)
    leaves = [method.images.clone().requires_grad_(), method.labels.clone().requires_grad_()]
    loss = kip_loss(method, *leaves)
    assert record.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for name, wanted in zip(("images", "labels"), torch.autograd.grad(loss, leaves), strict=True):
        assert float((found[name] - wanted).norm() / wanted.norm()) < 1e-9
    way, step = torch.randn(method.images.shape, generator=rng(7), dtype=torch.float64), 1e-5
    ends = [float(kip_loss(method, method.images + sign * step * way, method.labels)) for sign in (1, -1)]
    assert float((found["images"] * way).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
    whole = kip(kernel=kernel, micro_batch=0, ridge=1e-3).gradients(2)[1]
    assert all(float((whole[name] - g).norm() / g.norm()) < 1e-12 for name, g in found.items())


def test_kips_update_is_adams_and_its_sets_say_what_their_labels_are() -> None:
    method = kip(lr_images=0.04, lr_labels=0.04)
    before = {name: state[0].clone() for name, state in method.values.items()}
    _, gradients = method.gradients(0)
    method.iterate(0)
    for name, value in before.items():  # Adam's first step is the sign of the gradient
        wanted = value - 0.04 * gradients[name] / (gradients[name].abs() + 1e-8)
        torch.testing.assert_close(method.values[name][0], wanted)
    learned, hard = method, kip(labels="hard")
    hard.values = {"images": tuple(t.float() for t in hard.values["images"])}
    assert hard.distilled().labels.tolist() == [0, 0, 1, 1, 2, 2]
    learned.values = {name: tuple(t.float() for t in state) for name, state in learned.values.items()}
    assert learned.distilled().label_space == CENTRED
    torch.testing.assert_close(kip().labels[0], torch.tensor([2 / 3, -1 / 3, -1 / 3]).double())


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (KIP, {"kernel": "fcn"}, "unknown kernel 'fcn'. Did you mean 'fc'"),
        (KIP, {"labels": "soft"}, "unknown kind of labels 'soft'"),
        (KIP, {"real_batch": 0}, "real_batch must be at least 1"),
        (KIP, {"ridge": -1.0}, "depth, micro_batch and ridge must not be negative"),
        (KIP, {"lr_images": 0.0}, "lr_images must be finite and positive"),
        (FrePo, {"networks": 0}, "networks must be at least 1"),
        (FrePo, {"ridge": math.inf}, "ridge must be finite and positive"),
        (FrePo, {"micro_batch": -1}, "micro_batch must not be negative"),
    ],
)
def test_settings_that_cannot_be(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        kind.Settings(**settings)


def test_kips_settings_without_effect() -> None:
    assert set(KIP.Settings().inert()) == {"lr_labels", "random_networks", "width"}
    assert KIP.Settings(kernel="random-conv", labels="learned").inert() == {}
    with pytest.raises(UsageError, match="unknown kernel"):
        kernel_named("ntk", 0, lambda: pytest.fail("no features are asked for"))


# ---- frepo -----------------------------------------------------------------------------------------------------------


def frepo(norm: str = "batch", **settings: Any) -> FrePo:
    def build() -> Network:
        return FrePoNet(1, K, 8, width=3, depth=2, norm=norm)

    shape: dict[str, Any] = {"iterations": 50, "real_batch": 20, "networks": 3, "oldest": 6, "ridge": 1e-3}
    method = FrePo(FrePo.Settings(**{**shape, **settings}))
    method.setup(replace(tiny_problem(False), build_network=build))
    method.values = {name: Learned(*(t.double() for t in state)) for name, state in method.values.items()}
    pool = method.pool
    pool.students = [tuple(t.double() for t in student) for student in pool.students]
    pool.statistics = [1 + torch.rand(s.shape, generator=rng(5)).double() for s in pool.statistics]
    method.values["labels"].value.add_(0.1 * torch.randn(K * IPC, K, generator=rng(6)))
    return method


def module_of(method: FrePo, number: int) -> Network:
    """Network ``number`` of the pool as a module of its own, in evaluation mode."""
    network = method.problem.build_network().double().eval()
    torch.nn.utils.vector_to_parameters(method.pool.students[number][0], network.parameters())
    buffers = [b for b in network.buffers() if b.is_floating_point()]
    sizes = [b.numel() for b in buffers]
    for buffer, part in zip(buffers, method.pool.statistics[number].split(sizes) if sizes else (), strict=True):
        buffer.copy_(part)
    return network


def frepo_loss(method: FrePo, iteration: int, support: Tensor, labels: Tensor) -> Tensor:
    """FrePo's formula, all images in one graph."""
    phi, train = module_of(method, method._network(iteration)).features, method.problem.train
    rows = torch.randperm(len(train), generator=method.problem.generator("real images", iteration))[:20]
    shown, given = support, labels
    if method.settings.flip:
        shown, given = torch.cat([support, support.flip(3)]), torch.cat([labels, labels])
    features, real = phi(shown), phi(train.inputs(rows).double()).detach()
    kernel = features @ features.T
    kernel = kernel + 1e-3 * kernel.trace() / len(kernel) * torch.eye(len(kernel), dtype=torch.float64)
    predicted = real @ features.T @ torch.linalg.solve(kernel, given)
    ranked = labels.sort(1, descending=True).values
    margin = (ranked[:, 0] - ranked[:, 1]).clamp(max=1 / K).mean()
    squared: Tensor = ((predicted - F.one_hot(train.labels[rows], K).double() + 1 / K) ** 2).sum(1).mean()
    return squared / 2 - margin


@pytest.mark.parametrize(("norm", "flip"), [("batch", False), ("batch", True), ("instance", False)])
def test_frepos_gradient_against_a_plain_graph_and_finite_differences(norm: str, flip: bool) -> None:
    method = frepo(norm, flip=flip)
    record, found = method.gradients(3)
    leaves = [method.images.clone().requires_grad_(), method.labels.clone().requires_grad_()]
    loss = frepo_loss(method, 3, *leaves)
    assert record.loss == pytest.approx(float(loss.detach()), rel=1e-10)
    for name, wanted in zip(("images", "labels"), torch.autograd.grad(loss, leaves), strict=True):
        assert float((found[name] - wanted).norm() / wanted.norm()) < 1e-9
    way, step = torch.randn(method.images.shape, generator=rng(7), dtype=torch.float64), 1e-6
    ends = [float(frepo_loss(method, 3, method.images + sign * step * way, method.labels)) for sign in (1, -1)]
    assert float((found["images"] * way).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
    for micro_batch in (1, 4):
        pieces = frepo(norm, flip=flip, micro_batch=micro_batch).gradients(3)[1]
        assert all(float((pieces[name] - g).norm() / g.norm()) < 1e-12 for name, g in found.items())


@pytest.mark.parametrize(("norm", "micro_batch"), [("batch", 0), ("batch", 2), ("none", 2)])
def test_a_networks_own_step_is_torchs_adam_on_the_updated_images(norm: str, micro_batch: int) -> None:
    method = frepo(norm, lr_network=0.01, micro_batch=micro_batch, network_batch=5)
    number = method._network(0)
    network = module_of(method, number)
    method.iterate(0)
    network.train()
    chosen = torch.randperm(6, generator=method.problem.generator("images of the network", 0))[:5]
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    (0.5 * (network(method.images[chosen]) - method.labels[chosen]).square().sum(1).mean()).backward()
    optimiser.step()
    wanted = torch.cat([p.detach().flatten() for p in network.parameters()])
    torch.testing.assert_close(method.pool.students[number][0], wanted, rtol=1e-8, atol=1e-10)
    buffers = [b.flatten() for b in network.buffers() if b.is_floating_point()]
    assert len(buffers) == (2 if norm == "batch" else 0)
    if buffers:
        torch.testing.assert_close(method.pool.statistics[number], torch.cat(buffers))


def test_networks_have_different_ages_and_are_drawn_anew_when_old() -> None:
    method = frepo(networks=3, oldest=6)
    pool = method.pool
    assert pool.counts.tolist() == [[0, 0], [2, 0], [4, 0]]
    batch = (method.images, method.labels)
    weights = []
    for iteration in range(4):
        pool.grow(2, iteration, *batch, 0.01, 0)
        weights.append(pool.students[2][0])
    assert pool.counts.tolist()[2] == [0, 0]  # aged 5, 6, 7, and then drawn anew
    fresh = pool._fresh(2, 3)[0].double()
    assert torch.equal(weights[3], fresh)
    assert not torch.equal(pool._fresh(2, 4)[0].double(), fresh)
    assert float(pool.statistics[2].unique().max()) == 1.0
    pool.grow(2, 4, *batch, 0.01, 0)
    assert pool.counts.tolist()[2] == [1, 1]
    state = pool.state_dict()
    state["counts"] = torch.tensor([[8, 0], [0, 0], [0, 0]])
    with pytest.raises(ValueError, match="ages and steps"):
        pool.load_state_dict(state)


def test_lamb_by_its_definition() -> None:
    x, m, v = np.array([3.0, 4.0]), np.zeros(2), np.zeros(2)
    state = Learned.begin(torch.tensor(x).clone())
    for k, g in enumerate(([0.1, -2.0], [0.3, 0.5], [-1.0, 0.2])):
        gradient = np.array(g)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        u = (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-6)
        x = x - 0.05 * np.linalg.norm(x) / np.linalg.norm(u) * u
        lamb_step(k, state, torch.tensor(gradient), 0.05)
        np.testing.assert_allclose(state.value.numpy(), x, rtol=1e-12)
    nothing = Learned.begin(torch.zeros(2).double())
    lamb_step(0, nothing, torch.tensor([2.0, -3.0]).double(), 0.05)  # no norm: a step of Adam
    np.testing.assert_allclose(nothing.value.numpy(), [-0.05, 0.05], rtol=1e-5)
    assert [round(cosine(k, 10, 0.1), 6) for k in (0, 5, 10)] == [1.0, 0.55, 0.1]


def test_images_and_labels_are_tensors_of_their_own_for_lamb() -> None:
    method = frepo(lr_images=0.01)
    before = {name: state.value.clone() for name, state in method.values.items()}
    method.iterate(0)
    for name, value in before.items():  # a step has the length of the tensor times the rate
        assert float((method.values[name].value - value).norm()) == pytest.approx(0.01 * float(value.norm()))


def test_frepos_labels_start_scaled_by_the_number_of_classes() -> None:
    method = FrePo(FrePo.Settings(iterations=1))
    method.setup(tiny_problem(False))
    wanted = torch.tensor([2 / 3, -1 / 3, -1 / 3]) / math.sqrt(0.3)
    torch.testing.assert_close(method.labels[0], wanted)
    assert method.distilled().label_space == CENTRED


def test_frepos_pieces_take_less_memory_and_are_predicted() -> None:
    shape, predicted, allocated = Shape("small", 1, 8, 5), memory_meter("predicted"), memory_meter("allocated")

    def peak(meter: Any, micro_batch: int, ipc: int = 40) -> int:
        settings = {"micro_batch": micro_batch, "real_batch": 50, "networks": 2, "network_batch": 20}
        how: dict[str, Any] = {"ipc": ipc, "width": 16, "device": meter.device, "settings": settings}
        return int(meter.measure(workload("frepo", shape, **how)).peak_bytes)

    whole, pieces = peak(predicted, 0), peak(predicted, 20)
    assert pieces < 0.5 * whole
    assert peak(allocated, 20) == pytest.approx(pieces, rel=0.02)
    assert not has_batch_norm(tiny_problem(False).build_network())


# ---- preprocessing and evaluator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
def test_whitening_of_frepo_and_kip(normalise: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 4, 4)).astype(np.uint8)
    pixels[:, :, 1:] = pixels[:, :, 1:] // 2 + pixels[:, :, :1] // 2
    fitted = fit_share_zca(pixels, 255, normalise=normalise)
    x = pixels / 255
    u = ((x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)).reshape(60, -1)
    norms = np.linalg.norm(u - u.mean(1, keepdims=True), axis=1, keepdims=True)
    u = (u - u.mean(1, keepdims=True)) / norms if normalise else u - u.mean(0)
    values, vectors = np.linalg.eigh(u.T @ u / 60)
    wanted = u @ (vectors / np.sqrt(values + 0.1 * values.mean())) @ vectors.T
    found = fitted.forward(torch.from_numpy(x).float())
    np.testing.assert_allclose(found.flatten(1).numpy(), wanted, atol=2e-4)
    back = fitted.inverse(found).numpy()
    if not normalise:
        np.testing.assert_allclose(back, x, atol=1e-4)
    else:  # up to the mean and the norm of an image
        flat = ((back - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)).reshape(60, -1)
        np.testing.assert_allclose(flat, u * norms.mean(), atol=1e-3)
    assert type(fitted).from_state(*fitted.state()).key == fitted.key


def test_the_kernels_own_predictions_are_ridge_regression() -> None:
    distilled = tiny_sets()["3 x 32 x 32"]
    (network,) = KernelRidge(KernelRidgeSettings(ridge=1e-2)).train(distilled, [1], CPU)
    x, t = distilled.inputs().double(), images(5, 0, channels=3, side=32)
    own, cross = (fc_kernels(a, x).ntk.numpy() for a in (x, t))
    matrix = own + 1e-2 * np.trace(own) / len(own) * np.eye(len(own))
    wanted = cross @ np.linalg.solve(matrix, distilled.centred_labels().double().numpy())
    np.testing.assert_allclose(network(t).numpy(), wanted, atol=1e-5)


def test_a_kernel_without_seeds_is_tested_once() -> None:
    once = EvaluationSettings(networks=5)
    assert network_count("kernel-ridge", KernelRidgeSettings(), once) == 1
    assert network_count("kernel-ridge", KernelRidgeSettings(kernel="random-conv"), once) == 5
    assert resolve("kip", "digits", 1, evaluators=["kernel-ridge"]).evaluators["kernel-ridge"].inert() != {}


def test_kernels_of_random_networks_differ_by_their_seed() -> None:
    distilled = tiny_sets()["1 x 8 x 8"]
    settings = KernelRidgeSettings(kernel="random-conv", width=4, random_networks=1)
    found = KernelRidge(settings).train(distilled, [1, 2, 1], CPU)
    first, other, again = (network(distilled.inputs()) for network in found)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("method", "pieces"), [("frepo", [5, 3, 2, 1]), ("rat-bptt", [])])
def test_a_memory_budget_takes_pieces_with_batch_norm_where_they_are_exact(
    method: str, pieces: list[int], tmp_path: Path
) -> None:
    config = resolve(method, "digits", 1, preset="smoke", overrides=overrides_from({"network.norm": "batch"}))
    cell = Session(tmp_path, device="cpu", quiet=True).cell(config)
    found = list(_thrifty(cell, config.settings, {"micro_batch"}))
    assert found == [{}, *({"micro_batch": piece} for piece in pieces)]
