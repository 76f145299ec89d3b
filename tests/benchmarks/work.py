"""The pieces of work that are timed, each as ``plain`` (what people run today) and as ours, on the same draws.

``WORK[name]()`` makes everything ready and returns what is to be timed. The shapes are those of the published settings
on CIFAR-10: ConvNet-D3 of width 128, 100 synthetic images; images are noise and experts random, which changes no time.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dcbench_tesla import registry
from dcbench_tesla.cells.workload import Shape, _network, _Noise, _problem, workload
from dcbench_tesla.compute.compiling import compile_training
from dcbench_tesla.compute.networks import ConvNet, FlatNetwork, seeded
from dcbench_tesla.config import ExpertSettings, NetworkSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.experts.training import train_epoch
from dcbench_tesla.interface import Condenser, Problem
from dcbench_tesla.methods.inner.step import CompiledStep, InnerStep
from tests.benchmarks import plain
from tests.benchmarks.limit import best_rate
from tests.benchmarks.turns import THREADS

CPU = torch.device("cpu")
CIFAR = Shape.of("cifar10")
WIDTH, BATCH, REAL = 128, 100, 256
STEPS = int(os.environ.get("DCBENCH_BENCHMARK_STEPS", "10"))  # fewer: sooner done, the same ratios
EXPERT_IMAGES = 2048
NETWORKS, EPOCHS = 5, 4

STILL = {"lr_images": 0.0, "lr_student_lr": 0.0}  # every repetition has the same images before it

Run = Callable[[], object]


def _condenser(method: str, *, ipc: int, compile: bool = False, **settings: Any) -> Condenser:
    kind = registry.load_method(method)
    chosen = kind.Settings(**settings)
    train = _Noise(CIFAR, REAL, CPU)
    condenser = kind(chosen)
    build = _network(CIFAR, NetworkSettings(width=WIDTH))
    condenser.setup(_problem(kind, chosen, CIFAR, ipc, build, train, Augmentation(), compile))
    return condenser


def matching(method: str, *, compile: bool = False, **settings: Any) -> Run:
    """One iteration of trajectory matching, as ``dcbench compare time`` runs it."""
    sizes = {"ipc": BATCH // CIFAR.classes, "batch_size": BATCH, "width": WIDTH, "steps": STEPS}
    return workload(method, CIFAR, **sizes, device=CPU, settings=STILL | settings, compile=compile)()  # type: ignore[arg-type]


def one_pass(number: int, *, compile: bool = False, exact: bool = False) -> Run:
    """Pass 1 of one matching step, or pass 2; ``exact``: with the curvature that ``tesla-exact`` needs."""
    network = FlatNetwork(_fresh)
    step = (CompiledStep if compile else InnerStep)(network.loss)
    rng = torch.Generator().manual_seed(0)
    w, y = network.initial(0), torch.arange(BATCH) % CIFAR.classes
    x = torch.randn(BATCH, CIFAR.channels, CIFAR.side, CIFAR.side, generator=rng)
    adjoint = torch.randn(len(w), generator=rng)
    if number == 1:
        return lambda: step.gradient(w, x, y)
    return lambda: step.back(w, x, y, adjoint, through_weights=exact)


def limit() -> Run:
    """The best rate of the network's convolutions, in operations a second."""
    images = torch.randn(BATCH, CIFAR.channels, CIFAR.side, CIFAR.side)
    network, clock = _fresh(), time.process_time if THREADS == 1 else time.perf_counter
    return lambda: best_rate(network, images, clock)


def plain_matching(method: str) -> Run:
    """The same iteration in a plain loop: ``mtt`` unrolled, ``tesla`` in two passes."""
    condenser = _condenser(method, ipc=BATCH // CIFAR.classes, steps=STEPS, batch_size=BATCH)
    problem: Problem = condenser.problem  # type: ignore[attr-defined]
    images, labels = condenser.state_dict()["value.images"], problem.hard_labels()
    assert problem.experts is not None
    start, target = problem.experts.snapshot(0, 0), problem.experts.snapshot(0, 2)
    loop = plain.unrolled if method == "mtt" else plain.two_pass
    return lambda: loop(problem, images, labels, start, target, 0.01, BATCH, STEPS)


def _fresh() -> ConvNet:
    with seeded(0):
        return ConvNet(CIFAR.channels, CIFAR.classes, CIFAR.side, WIDTH)


def expert_epoch(*, compile: bool = False) -> Run:
    """An epoch of an expert on 2,048 images."""
    compile_training(compile)
    train = _Noise(CIFAR, EXPERT_IMAGES // CIFAR.classes + 1, CPU)
    network, settings = _fresh(), ExpertSettings()
    return lambda: train_epoch(network, train, settings, Augmentation(), 0, 0)


def plain_expert_epoch() -> Run:
    """The same epoch in a plain loop."""
    train = _Noise(CIFAR, EXPERT_IMAGES // CIFAR.classes + 1, CPU)
    network, settings = _fresh(), ExpertSettings()
    images = train.inputs(torch.arange(len(train)))
    return lambda: plain.expert_epoch(network, images, train.labels, Augmentation(), settings.lr, settings.batch_size)


def _distilled() -> DistilledSet:
    """A hundred noise images as a distilled set."""
    problem: Problem = _condenser("dm", ipc=BATCH // CIFAR.classes).problem  # type: ignore[attr-defined]
    return problem.distilled(problem.train.inputs(problem.draw_real("images")), problem.hard_labels())


def evaluation(*, compile: bool = False) -> Run:
    """Five networks trained on 100 images, four epochs each."""
    compile_training(compile)
    distilled, kind = _distilled(), registry.load_evaluator("convnet")
    make: Any = kind.Settings
    evaluator = kind(make(width=WIDTH, epochs=EPOCHS, lr=0.01))
    return lambda: evaluator.train(distilled, list(range(NETWORKS)), CPU)


def plain_evaluation() -> Run:
    """The same five networks in a plain loop."""
    distilled = _distilled()
    images, labels, augmentation = distilled.images, distilled.labels, Augmentation(distilled.augmentation)

    def run() -> None:
        networks: list[nn.Module] = [_fresh() for _ in range(NETWORKS)]
        plain.train_networks(networks, list(range(NETWORKS)), images, labels, augmentation, epochs=EPOCHS, lr=0.01)

    return run


def class_matching(method: str, *, compile: bool = False) -> Run:
    """One iteration of DM, or of DSA, at IPC 1 with 256 real images a class."""
    loops: dict[str, Any] = {"outer": 1, "inner": 1} if method == "dsa" else {}
    condenser = _condenser(method, ipc=1, compile=compile, lr_images=0.0, real_batch=REAL, **loops)
    return lambda: condenser.iterate(0)


def plain_class_matching(method: str) -> Run:
    """The same iteration in a plain loop."""
    condenser = _condenser(method, ipc=1, real_batch=REAL)
    problem: Problem = condenser.problem  # type: ignore[attr-defined]
    images = condenser.state_dict()["images"]
    loop = plain.distribution_matching if method == "dm" else plain.gradient_matching
    return lambda: loop(problem, images, REAL)


WORK: dict[str, Callable[[], Run]] = {
    "limit": limit,
    "pass 1": lambda: one_pass(1),
    "pass 1, compiled": lambda: one_pass(1, compile=True),
    "pass 2": lambda: one_pass(2),
    "pass 2, compiled": lambda: one_pass(2, compile=True),
    "pass 2, exact": lambda: one_pass(2, exact=True),
    "pass 2, exact, compiled": lambda: one_pass(2, exact=True, compile=True),
    "mtt": lambda: matching("mtt"),
    "mtt, plain": lambda: plain_matching("mtt"),
    "tesla": lambda: matching("tesla"),
    "tesla, compiled": lambda: matching("tesla", compile=True),
    "tesla, plain": lambda: plain_matching("tesla"),
    "tesla-exact": lambda: matching("tesla-exact"),
    "tesla-exact, compiled": lambda: matching("tesla-exact", compile=True),
    "tesla-exact, whole batches": lambda: matching("tesla-exact", micro_batch=BATCH),
    "tesla-exact, whole batches, compiled": lambda: matching("tesla-exact", compile=True, micro_batch=BATCH),
    "expert epoch": expert_epoch,
    "expert epoch, compiled": lambda: expert_epoch(compile=True),
    "expert epoch, plain": plain_expert_epoch,
    "evaluation": evaluation,
    "evaluation, compiled": lambda: evaluation(compile=True),
    "evaluation, plain": plain_evaluation,
    "dm": lambda: class_matching("dm"),
    "dm, compiled": lambda: class_matching("dm", compile=True),
    "dm, plain": lambda: plain_class_matching("dm"),
    "dsa": lambda: class_matching("dsa"),
    "dsa, compiled": lambda: class_matching("dsa", compile=True),
    "dsa, plain": lambda: plain_class_matching("dsa"),
}
