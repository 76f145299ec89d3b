"""The three meters of peak memory: against hand counts, against each other, and on the methods they are made for."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla import registry
from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.compute.networks import flatten_parameters
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Condenser, DistilledSet, IterationRecord, Problem, Settings
from dcbench_tesla.profilers import ORIGINS, LiveBytes, origin
from dcbench_tesla.profilers.imagined import IMAGINED, ImaginedBytes, Remembered
from dcbench_tesla.profilers.memory import (
    AllocatedMeter,
    CudaMeter,
    MemoryMeter,
    Peak,
    PredictedMeter,
    memory_meter,
)

CPU = torch.device("cpu")
SMALL = Shape("small", 3, 16, 10), {"width": 8, "steps": 3, "batch_size": 10}
LARGER = Shape("larger", 1, 32, 4), {"width": 16, "steps": 6, "batch_size": 6, "ipc": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def predicted() -> PredictedMeter:
    """One meter for all: what it has once seen it need not work out again."""
    return PredictedMeter(round_to=1)


def measured(meter: MemoryMeter, method: str, shape: Shape, **arguments: Any) -> Peak:
    return meter.measure(workload(method, shape, device=meter.device, **arguments))


# ---- origins ---------------------------------------------------------------------------------------------------------


def test_a_storage_has_the_origin_it_was_made_under() -> None:
    with LiveBytes() as meter:
        with origin("parameters"):
            w = torch.zeros(100)
            with origin("inputs"):
                x = torch.zeros(10)
            v = torch.zeros(1)  # the outer label is in force again
        with origin("trajectory"):
            row, same = w[:50], w.detach()  # views: made before
        rest = torch.zeros(1000)
    assert meter.breakdown("cpu") == {"parameters": 404, "inputs": 40, "other": 4000}
    assert meter.breakdown("meta") == {}
    del w, x, v, row, same, rest


def test_an_error_ends_a_label_and_an_unknown_one_is_refused() -> None:
    with pytest.raises(ZeroDivisionError), origin("graph"):
        _ = 1 / 0
    with pytest.raises(ValueError, match=r"unknown origin 'weights'; known: parameters, inputs"):
        origin("weights")  # type: ignore[arg-type]
    with LiveBytes() as meter:
        x = torch.zeros(1)
    assert meter.breakdown("cpu") == {"other": 4}
    del x


def test_backward_inherits_the_label_it_runs_under() -> None:
    x = torch.zeros(1000, requires_grad=True)
    with LiveBytes() as meter:
        with origin("graph"):
            y = x.exp().sum()
        with origin("optimiser"):
            y.backward()
    assert meter.breakdown("cpu") == {"graph": 4004, "optimiser": meter.peak_bytes("cpu") - 4004}
    assert meter.peak_bytes("cpu") >= 8004


def test_the_breakdown_is_that_of_the_peak_and_adds_up_to_it() -> None:
    with LiveBytes(round_to=512) as meter:
        with origin("inputs"):
            x = torch.zeros(1000)
        with origin("graph"):
            large = torch.zeros(10_000)
            del large
        with origin("optimiser"):
            v = torch.zeros(2000)
        x.resize_(3000)  # what grows keeps its label
    assert meter.breakdown("cpu") == {"inputs": 4096, "graph": 40448}
    assert sum(meter.breakdown("cpu").values()) == meter.peak_bytes("cpu")
    meter.reset_peak()
    assert meter.breakdown("cpu") == {"inputs": 12288, "optimiser": 8192}
    assert meter.peak_bytes("cpu") == meter.live_bytes("cpu") == 20480
    del x, v


# ---- the interface, on hand counts -----------------------------------------------------------------------------------


def toy(device: torch.device) -> Callable[[], Callable[[], object]]:
    """4,000 bytes of weights, 8,000 in passing while they are made; a run takes 2 x 400 more."""

    def prepare() -> Callable[[], object]:
        passing = torch.zeros(2000, device=device)
        with origin("parameters"):
            weights = torch.ones(1000, device=device) * passing.sum()

        def run() -> object:
            with origin("graph"):
                return (weights[:100] + 1).exp()

        return run

    return prepare


@pytest.mark.parametrize("meter", [AllocatedMeter(CPU), PredictedMeter(round_to=1)], ids=lambda m: m.name)
def test_state_counts_and_what_was_there_in_passing_does_not(meter: MemoryMeter) -> None:
    peak = meter.measure(toy(meter.device))
    assert peak == Peak(meter.name, 4800, None, "ok", {"parameters": 4000, "graph": 800})


def test_rounding_is_that_of_the_allocator_that_is_predicted() -> None:
    peak = PredictedMeter().measure(toy(IMAGINED))
    assert peak.breakdown == {"parameters": 4096, "graph": 1024}
    assert AllocatedMeter(CPU, round_to=512).measure(toy(CPU)).breakdown == peak.breakdown


@pytest.mark.parametrize("meter", [AllocatedMeter(CPU), PredictedMeter(round_to=1)], ids=lambda m: m.name)
def test_what_the_first_run_leaves_behind_is_there_in_the_run_that_counts(meter: MemoryMeter) -> None:
    def prepare() -> Callable[[], object]:
        state: list[Tensor] = []
        runs: list[int] = []

        def run() -> None:
            runs.append(1)
            assert len(runs) <= 2
            passing = torch.zeros(1000, device=meter.device)
            if not state:
                del passing
                with origin("optimiser"):
                    state.append(torch.zeros(500, device=meter.device))

        return run

    assert meter.measure(prepare).breakdown == {"optimiser": 2000, "other": 4000}


def test_a_real_gpus_memory_ends_and_that_is_a_result() -> None:
    def prepare() -> Callable[[], object]:
        x = torch.zeros(100)

        def run() -> None:
            y = x + 1
            raise torch.OutOfMemoryError(f"CUDA out of memory, with {len(y)} there")

        return run

    peak = AllocatedMeter(CPU).measure(prepare)
    assert (peak.status, peak.peak_bytes) == ("out of memory", 800)


def test_measuring_leaves_the_garbage_collector_as_it_was() -> None:
    before = gc.get_freeze_count()
    AllocatedMeter(CPU).measure(toy(CPU))
    with pytest.raises(RuntimeError, match="broken"):
        AllocatedMeter(CPU).measure(lambda: lambda: (_ for _ in ()).throw(RuntimeError("broken")))
    assert gc.get_freeze_count() == before == 0


def test_meters_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(memory_meter("predicted"), PredictedMeter)
    assert isinstance(memory_meter("allocated", "cpu"), AllocatedMeter)
    assert memory_meter("allocated", "cuda:1").device == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(memory_meter("auto"), PredictedMeter)
    with pytest.raises(UsageError, match="needs a GPU"):
        memory_meter("cuda")
    with pytest.raises(UsageError, match=r"unknown memory meter 'predict'. Did you mean 'predicted'"):
        memory_meter("predict")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert isinstance(memory_meter("auto"), CudaMeter)
    assert memory_meter("cuda", "cuda:1").device == torch.device("cuda:1")


# ---- CUDA's allocator, played ----------------------------------------------------------------------------------------


class Allocator:
    """Stands in for ``torch.cuda``: bytes that are handed out, cached and remembered, and what was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
        self.live = self.cached = self.peak = self.peak_reserved = 0
        self.capacity = capacity
        self.calls: list[str] = []
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: self._called(name))
        monkeypatch.setattr(
            torch._C, "_cuda_clearCublasWorkspaces", lambda: self._called("clear_workspaces"), raising=False
        )
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: self.peak_reserved)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == "empty_cache":
            self.cached = 0
        if name == "reset_peak_memory_stats":
            self.peak, self.peak_reserved = self.live, self.live + self.cached

    def take(self, size: int) -> None:
        if self.live + size > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.live += size
        self.cached = max(self.cached - size, 0)
        self.peak = max(self.peak, self.live)
        self.peak_reserved = max(self.peak_reserved, self.live + self.cached)

    def release(self, size: int) -> None:
        self.live -= size
        self.cached += size


def played(gpu: Allocator) -> Callable[[], Callable[[], object]]:
    """State of 100, made with 500 in passing; a first run of 900 more, later ones of 200."""

    def prepare() -> Callable[[], object]:
        gpu.take(600)
        gpu.release(500)
        sizes = iter([900, 200, 200])

        def run() -> None:
            gpu.calls.append("run")
            gpu.take(size := next(sizes))
            gpu.release(size)

        return run

    return prepare


def test_cuda_counts_the_second_run_after_everything_cached_was_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Allocator(monkeypatch, capacity=10_000)
    peak = CudaMeter(torch.device("cuda")).measure(played(gpu))
    assert peak == Peak("cuda", 300, 300, "ok", {})
    between = gpu.calls[gpu.calls.index("run") + 1 :]
    assert between == [
        *("synchronize", "clear_workspaces", "empty_cache", "reset_peak_memory_stats"),
        *("run", "synchronize"),
    ]


@pytest.mark.parametrize(("capacity", "runs", "reached"), [(599, 0, 0), (600, 1, 600), (999, 1, 600), (1000, 2, 300)])
def test_cuda_running_out_of_memory_is_a_result(
    monkeypatch: pytest.MonkeyPatch, capacity: int, runs: int, reached: int
) -> None:
    """There is no room for the state; none for the first run; room for everything."""
    gpu = Allocator(monkeypatch, capacity)
    peak = CudaMeter(torch.device("cuda")).measure(played(gpu))
    assert peak.status == ("ok" if runs == 2 else "out of memory")
    assert (peak.peak_bytes, peak.reserved_bytes) == (reached, reached)
    assert gpu.calls.count("run") == runs


def test_cudas_libraries_say_in_words_that_memory_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    Allocator(monkeypatch, capacity=1)

    def failing(text: str) -> Peak:
        def prepare() -> Callable[[], object]:
            raise RuntimeError(text)

        return CudaMeter(torch.device("cuda")).measure(prepare)

    assert failing("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate").status == "out of memory"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        failing("CUDA error: an illegal memory access was encountered")


# ---- programs without numbers ----------------------------------------------------------------------------------------


def test_values_that_are_asked_for() -> None:
    with ImaginedBytes():
        x = torch.randn(4, 3, device=IMAGINED)
        assert float(x.sum()) == x[0, 0].item() == 1.0
        assert int(x.argmax()) == 0
        assert x.argmax(1).tolist() == [0, 0, 0, 0]
        assert torch.isfinite(x).all()
        assert torch.isfinite(x.sum())
        assert not torch.isnan(x).any()
        assert not x.sum() > 3
        assert not torch.equal(x, x)
        assert x.cpu().tolist() == [[0.0] * 3] * 4
        assert torch.ones(4, 3).copy_(x).sum() == 12
        assert x.half().to("cpu", torch.float64).dtype == torch.float64


def test_real_tensors_keep_their_values() -> None:
    with ImaginedBytes(remembered={}):
        x = torch.tensor([3.0, 4.0])
        mask = torch.tensor([True, False])
        assert x.norm().item() == 5.0
        assert bool(mask.all()) is False
        assert bool((mask * mask).any()) is True
        assert torch.equal(x, x)
        assert x[mask].tolist() == x.masked_select(mask).tolist() == [3.0]
        assert mask.nonzero().tolist() == [[0]]
        assert [(x * 2).tolist(), (x * 3).tolist()] == [[6.0, 8.0], [9.0, 12.0]]


def test_a_mask_lets_everything_through() -> None:
    with ImaginedBytes():
        x = torch.zeros(4, 3, 2, device=IMAGINED)
        assert x[x > 0].shape == (24,)
        assert x[x[:, :, 0] > 0].shape == (12, 2)
        assert x.masked_select(x[:, :, :1] > 0).shape == (24,)
        assert (x > 0).nonzero().shape == (24, 3)
        assert [i.shape for i in torch.where(x[0] > 0)] == [(6,), (6,)]


def test_sizes_that_values_decide_are_refused() -> None:
    with ImaginedBytes(), pytest.raises(UsageError, match=r"memory cannot be predicted through aten\..*unique"):
        torch.zeros(4, device=IMAGINED).unique()


def results(x: Tensor, y: Tensor) -> list[Any]:
    w = torch.ones(6, 3, 3, 3, device=x.device, requires_grad=True)
    with torch.enable_grad():
        features = F.avg_pool2d(F.group_norm(F.conv2d(x, w, padding=1), 6).relu(), 2)
        loss = F.cross_entropy(features.flatten(1), y)
        (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), w)
    plain = [x * 2, x * 2.5, x > 0, x.sum(1), x.sum((2, 3), keepdim=True), x.mean(0), x.to(torch.float64) + x]
    plain += [torch.cat([x, x]), x.transpose(1, 2) + 1, x.contiguous(memory_format=torch.channels_last) + 1]
    plain += [*x.max(1), *x.topk(2, 2), *torch.var_mean(x), y.new_zeros(3), y[:, None] + y]
    return [features, loss, gradient, second, *plain]


def test_what_is_remembered_is_what_was_worked_out() -> None:
    remembered: Remembered = {}
    said = []
    for memory in (None, remembered, remembered):
        with ImaginedBytes(remembered=memory) as meter:
            x, y = torch.zeros(5, 3, 8, 8, device=IMAGINED), torch.zeros(5, dtype=torch.int64, device=IMAGINED)
            got = results(x, y)
            facts = [(t.shape, t.stride(), t.dtype, t.requires_grad) for t in got]
            said.append((facts, meter.peak_bytes(IMAGINED), meter.live_bytes(IMAGINED)))
    assert len(remembered) > 30
    assert said[0] == said[1] == said[2]


# ---- the methods -----------------------------------------------------------------------------------------------------

METHODS = [
    ("mtt", {}),
    ("tesla", {}),
    ("tesla", {"labels": "learned"}),
    ("tesla-exact", {"weights": "device"}),
    ("tesla-exact", {"weights": "restep"}),
    ("dm", {"real_batch": 8}),
    ("dsa", {"real_batch": 8, "outer": 2, "inner": 1}),
    ("dc", {"real_batch": 8, "outer": 2, "inner": 1}),
]


@pytest.mark.parametrize(("shape", "arguments"), [SMALL, LARGER], ids=["small", "larger"])
@pytest.mark.parametrize(("method", "settings"), METHODS, ids=lambda value: str(value))
def test_predicted_is_allocated(
    predicted: PredictedMeter, method: str, settings: dict[str, Any], shape: Shape, arguments: dict[str, Any]
) -> None:
    real = measured(AllocatedMeter(CPU), method, shape, **arguments, settings=settings)
    imagined = measured(predicted, method, shape, **arguments, settings=settings)
    assert imagined.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    assert real.peak_bytes > 400_000
    for peak in (real, imagined):
        assert peak.status == "ok"
        assert sum(peak.breakdown.values()) == peak.peak_bytes
        assert set(peak.breakdown) <= set(ORIGINS)
        assert peak.breakdown["inputs"] > 0


def test_weights_in_main_memory_are_no_memory_of_the_device(predicted: PredictedMeter) -> None:
    shape, arguments = LARGER
    device, host = (
        measured(predicted, "tesla-exact", shape, **arguments, settings={"weights": weights}).peak_bytes
        for weights in ("device", "host")
    )
    tesla = measured(predicted, "tesla", shape, **arguments).peak_bytes
    assert host == pytest.approx(tesla, rel=0.001)
    assert device > 1.01 * host


def test_cifar_100_at_full_size_without_computing_anything(predicted: PredictedMeter) -> None:
    shape = Shape.of("cifar100")
    assert shape == Shape("cifar100", 3, 32, 100)

    def bytes_at(method: str, steps: int) -> int:
        peak = measured(predicted, method, shape, steps=steps, batch_size=100)
        assert sum(peak.breakdown.values()) == peak.peak_bytes
        return peak.peak_bytes

    assert bytes_at("tesla", 50) == pytest.approx(bytes_at("tesla", 5), rel=0.01)
    steps = [1, 5, 10]
    mtt = [bytes_at("mtt", t) for t in steps]
    assert np.corrcoef(steps, mtt)[0, 1] ** 2 > 0.999
    assert mtt[-1] > 5 * mtt[0]
    # the adjoint recursion keeps a weight vector a step; the first has no adjoint before it
    vector = 504_420 * 4
    grown = bytes_at("tesla-exact", 10) - bytes_at("tesla-exact", 5)
    assert grown == pytest.approx(5 * vector, rel=0.01)


def test_imagenet_on_any_machine(predicted: PredictedMeter) -> None:
    shape = Shape.of("imagenet1k-64")
    mtt, tesla = (measured(predicted, m, shape, steps=50, batch_size=100).peak_bytes for m in ("mtt", "tesla"))
    assert mtt > 50e9
    assert mtt / tesla >= 15


def test_synthetic_inputs_are_what_the_task_says() -> None:
    seen: list[Problem] = []
    shape = Shape("s", 3, 8, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            registry, "load_method", lambda name: type("Seeing", (Plain,), {"setup": lambda s, p: seen.append(p)})
        )
        workload("seeing", shape, ipc=300, width=8, device="cpu")()
    (problem,) = seen
    train = problem.train
    assert [len(members) for members in train.members] == [300] * 4
    assert all((train.labels[members] == c).all() for c, members in enumerate(train.members))
    images = train.inputs(torch.tensor([0, 1, 299]))
    assert images.shape == (3, 3, 8, 8)
    assert not torch.equal(images[0], images[1])
    torch.testing.assert_close(images, train._prepare(train.pixels[[0, 1, 299]]))
    assert train.pixels.untyped_storage().nbytes() < 1500  # of 230,400 pixels
    assert problem.experts is not None
    moved = problem.experts.snapshot(0, 0), problem.experts.snapshot(0, 2), problem.experts.snapshot(1, 0)
    assert moved[0].shape == flatten_parameters(problem.build_network()).shape
    assert not torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])


def test_what_cannot_be_measured_is_said() -> None:
    for method in ("random", "whole", "herding"):
        with pytest.raises(UsageError, match=f"^{method} has no iterations to measure"):
            workload(method, SMALL[0], device="cpu")
    with pytest.raises(UsageError, match=r"unknown setting of mtt 'step'\. Did you mean 'steps'"):
        workload("mtt", SMALL[0], device="cpu", settings={"step": 3})
    with pytest.raises(UsageError, match="steps must be at least 1"):
        workload("mtt", SMALL[0], steps=0, device="cpu")
    with pytest.raises(UsageError, match="ipc must be at least 1"):
        workload("dm", SMALL[0], ipc=0, device="cpu")
    with pytest.raises(UsageError, match="unknown data set"):
        Shape.of("cifar")


# ---- anyone's method -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlainSettings(Settings):
    iterations: int = 5


class Plain(Condenser):
    """A method of somebody who has never heard of meters."""

    Settings = PlainSettings

    @classmethod
    def expert_request(cls, settings: Any) -> Any:
        return object()

    def setup(self, problem: Problem) -> None:
        self.problem = problem
        self.images = problem.train.inputs(problem.draw_real("start")).clone().requires_grad_()
        self.optimiser = torch.optim.Adam([self.images])

    def iterate(self, iteration: int) -> IterationRecord:
        network = self.problem.build_network().to(self.problem.device)
        chosen = torch.randperm(len(self.images), generator=self.problem.generator("order", iteration))[:20]
        labels = self.problem.hard_labels()[chosen].to(self.problem.device)
        losses = F.cross_entropy(network(self.images[chosen]), labels, reduction="none")
        loss = losses[losses > -1].mean()
        if not torch.isfinite(loss) or bool(torch.isnan(losses).any()):
            raise ValueError("no number")
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        worst = int(losses.detach().cpu().argmax())
        metrics = {"worst": int(chosen[worst]), "some": losses.detach().tolist()[0]}
        return IterationRecord(loss=float(loss.detach()), metrics=metrics)

    def distilled(self) -> DistilledSet:
        return self.problem.distilled(self.images, self.problem.hard_labels())


def test_a_third_partys_method_is_measured_as_it_is(predicted: PredictedMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load_method", lambda name: Plain)
    shape = Shape("s", 3, 16, 10)
    real, imagined = (measured(m, "plain", shape, ipc=10, width=16) for m in (AllocatedMeter(CPU), predicted))
    assert imagined.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    # images, their gradient and Adam's two moments are there at the peak, though the moments came after it at first
    images = 10 * 10 * 3 * 16 * 16 * 4
    assert real.breakdown["inputs"] == pytest.approx(images, rel=0.01)
    assert real.breakdown["graph"] > 3 * images
