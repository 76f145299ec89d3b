"""The clocks, against clocks that are played; and the phases they tell apart."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

from dcbench_tesla.methods.inner import stream_matching_gradient
from dcbench_tesla.methods.inner.engine import Mode, StreamedGradient
from dcbench_tesla.profilers import LiveBytes, Phase, PhaseClock, phase, phases
from dcbench_tesla.profilers.clocks import Timing, clock

CPU = torch.device("cpu")
WAYS: list[tuple[Mode, int]] = [("unrolled", 0), ("frozen", 0), ("frozen", 2), ("exact", 0), ("exact", 2), ("exact", 9)]


class Hands:
    """Time that passes only where it is told to."""

    now_s = 0.0

    def move(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(time, "perf_counter", lambda: hands.now_s)
    return hands


def test_median_and_interquartile_range() -> None:
    assert Timing.of([1.0, 90.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 5)
    assert Timing.of([7.0]) == Timing(7.0, 0.0, 1)
    with pytest.raises(ValueError, match="repetitions must be at least 1"):
        Timing.of([])


# ---- phases ----------------------------------------------------------------------------------------------------------


def test_phases_add_up_and_the_innermost_counts(hands: Hands) -> None:
    with PhaseClock(CPU) as lap:
        hands.move(1)
        with phase("pass 1"):
            hands.move(2)
            with phase("pass 2"):
                hands.move(4)
                with phase("pass 2"):
                    hands.move(8)
            hands.move(16)
        hands.move(32)
        with phase("pass 1"):
            hands.move(64)
    hands.move(128)
    assert lap.phases_s == {"pass 1": 2 + 16 + 64, "pass 2": 4 + 8}
    assert lap.total_s == 127


def test_an_error_ends_a_phase_and_a_clock(hands: Hands) -> None:
    lap = PhaseClock(CPU)

    def fail() -> None:
        with lap, phase("pass 1"):
            hands.move(1)
            _ = 1 / 0

    with PhaseClock(CPU) as outer:
        with pytest.raises(ZeroDivisionError):
            fail()
        with phase("pass 2"):
            hands.move(2)
    assert (lap.total_s, lap.phases_s) == (1, {"pass 1": 1})
    assert (outer.total_s, outer.phases_s) == (3, {"pass 2": 2})
    assert phases._running is None


def test_without_a_clock_a_phase_asks_for_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> float:
        raise AssertionError("nobody listens")

    monkeypatch.setattr(time, "perf_counter", asked)
    with phase("pass 1"), phase("pass 2"):
        pass


def test_a_phase_that_was_entered_before_its_clock_is_not_heard(hands: Hands) -> None:
    with phase("pass 1"):
        hands.move(1)
        with PhaseClock(CPU) as lap:
            hands.move(2)
    assert (lap.total_s, lap.phases_s) == (2, {})


# ---- a GPU's queue, played -------------------------------------------------------------------------------------------


def test_a_gpu_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is put into a queue, in no time; its seconds pass when somebody waits for it."""
    queue: list[Callable[[], None]] = []
    hands, calls = Hands(), []

    def wait(device: torch.device) -> None:
        calls.append(f"wait for {device}")
        while queue:
            queue.pop(0)()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at_s = -1.0

        def record(self, stream: str) -> None:
            assert stream == "stream of cuda:1"
            calls.append("mark")
            queue.append(lambda: setattr(self, "at_s", hands.now_s))

        def elapsed_time(self, end: "Event") -> float:
            assert 0 <= self.at_s <= end.at_s, "the end may not have been passed yet"
            return (end.at_s - self.at_s) * 1000

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", wait)

    def work(seconds: float) -> None:
        queue.append(lambda: hands.move(seconds))

    work(100)  # of somebody before
    with PhaseClock(torch.device("cuda:1")) as lap:
        work(1)
        with phase("pass 1"):
            work(2)
        with phase("pass 2"):
            work(4)
    assert (lap.total_s, lap.phases_s) == (7, {"pass 1": 2, "pass 2": 4})
    assert calls == ["wait for cuda:1", *["mark"] * 6, "wait for cuda:1"]  # none within
    assert clock(torch.device("cuda:1")).name == "cuda events"
    assert clock(CPU).name == "perf_counter"


# ---- the passes of trajectory matching -------------------------------------------------------------------------------


class Batches:
    """Steps whose gradients take a quarter of a second each to be taken."""

    def __init__(self, steps: int, hands: Hands, device: str = "cpu") -> None:
        rng = torch.Generator().manual_seed(0)
        self._inputs = torch.randn(steps, 5, 3, generator=rng).to(device)
        self._labels = torch.randn(steps, 5, generator=rng).to(device).requires_grad_()
        self._hands = hands
        self.taken: dict[int, tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self._inputs)

    def size(self, k: int) -> int:
        return 5

    def batch(self, k: int, rows: slice) -> tuple[Tensor, Tensor]:
        return self._inputs[k], self._labels[k]

    def accumulate(self, k: int, rows: slice, input_gradient: Tensor, label_gradient: Tensor | None) -> None:
        self._hands.move(0.25)
        self.taken[k] = input_gradient, label_gradient


def matched(mode: Mode, keep: int, hands: Hands, device: str = "cpu") -> tuple[StreamedGradient, Batches]:
    """Match four steps of a network of one layer, whose loss takes a second each time."""

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        hands.move(1)
        return ((x @ theta).tanh() - y).square().mean()

    batches = Batches(4, hands, device)
    start, target = torch.full((3,), 0.1, device=device), torch.full((3,), 0.7, device=device)
    return stream_matching_gradient(loss, start, target, batches, 0.3, mode, weights="device", keep=keep), batches


class Heard:
    """Stands in for a clock, and writes down what it hears."""

    def __init__(self) -> None:
        self.phases: list[Phase | None] = [None]

    def switch(self, name: Phase | None) -> Phase | None:
        self.phases.append(name)
        return self.phases[-2]


@pytest.mark.parametrize(("mode", "keep"), WAYS)
def test_pass_1_is_followed_by_pass_2_once_each(
    mode: Mode, keep: int, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    monkeypatch.setattr(phases, "_running", heard)
    matched(mode, keep, hands)
    assert heard.phases == [None, "pass 1", None, "pass 2", None]


@pytest.mark.parametrize(("mode", "keep"), WAYS)
def test_time_goes_to_the_pass_that_takes_it(mode: Mode, keep: int, hands: Hands) -> None:
    """A step's loss is asked for in pass 1, and again in pass 2 where no graph was kept; then its gradient goes out."""
    with PhaseClock(CPU) as lap:
        matched(mode, keep, hands)
    built_again = 0 if mode == "unrolled" else max(4 - keep, 0)
    assert lap.phases_s == {"pass 1": 4, "pass 2": built_again + 4 * 0.25}
    assert lap.total_s == sum(lap.phases_s.values())


@pytest.mark.parametrize(("mode", "keep"), WAYS)
def test_a_clock_changes_no_bit(mode: Mode, keep: int) -> None:
    plain, steps = matched(mode, keep, Hands())
    with PhaseClock(CPU):
        timed, timed_steps = matched(mode, keep, Hands())
    for name in ("loss", "lr", "end"):
        assert torch.equal(getattr(timed, name), getattr(plain, name))
    for k, gradients in steps.taken.items():
        assert all(_equal(*pair) for pair in zip(timed_steps.taken[k], gradients, strict=True))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    assert one is not None
    assert other is not None
    return torch.equal(one, other) and bool(one.any())


@pytest.mark.parametrize(("mode", "keep"), WAYS)
def test_a_clock_changes_no_byte(mode: Mode, keep: int, hands: Hands) -> None:
    """Under a meter too: tensors without memory, and a dispatch mode around everything."""

    def peak(listener: AbstractContextManager[object]) -> int:
        with LiveBytes() as meter, listener:
            matched(mode, keep, hands, "meta")
        return meter.peak_bytes("meta")

    lap = PhaseClock(CPU)
    assert peak(lap) == peak(nullcontext()) > 0
    assert list(lap.phases_s) == ["pass 1", "pass 2"]
