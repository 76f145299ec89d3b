"""The clocks, against clocks that are played."""

import time
from collections.abc import Iterator

import pytest
import torch

from dcbench_tesla.profilers.clocks import Timing, time_repeatedly

CPU = torch.device("cpu")


class Clock:
    """Time that passes only where a run takes its share of it."""

    def __init__(self, durations_s: list[float]) -> None:
        self.now_s, self.runs = 0.0, 0
        self._durations: Iterator[float] = iter(durations_s)

    def run(self) -> None:
        self.runs += 1
        self.now_s += next(self._durations)


def test_median_and_interquartile_range_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock([100.0, 50.0, 1.0, 2.0, 3.0, 4.0, 90.0])
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now_s)
    assert time_repeatedly(clock.run, CPU, warm_up=2, repetitions=5) == Timing(3.0, 2.0, 5)
    assert clock.runs == 7


def test_a_single_run_has_no_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock([7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now_s)
    assert time_repeatedly(clock.run, CPU, warm_up=0, repetitions=1) == Timing(7.0, 0.0, 1)


def test_a_gpu_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock([9.0, 1.0, 3.0])
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at_s = -1.0

        def record(self) -> None:
            calls.append("mark")
            self.at_s = clock.now_s

        def elapsed_time(self, end: "Event") -> float:
            assert calls[-1] == "wait", "the end may not have been passed yet"
            return (end.at_s - self.at_s) * 1000

    class OnDevice:
        def __init__(self, device: torch.device) -> None:
            calls.append(f"on {device}")

        def __enter__(self) -> None: ...

        def __exit__(self, *exception: object) -> None: ...

    def run() -> None:
        calls.append("run")
        clock.run()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", OnDevice)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    timing = time_repeatedly(run, torch.device("cuda:1"), repetitions=2)
    assert timing == Timing(2.0, 1.0, 2)
    assert calls == ["run", *["on cuda:1", "wait", "mark", "run", "mark", "wait"] * 2]


@pytest.mark.parametrize(("warm_up", "repetitions"), [(-1, 5), (1, 0)])
def test_runs_must_be_counted(warm_up: int, repetitions: int) -> None:
    with pytest.raises(ValueError, match="repetitions at least 1"):
        time_repeatedly(lambda: None, CPU, warm_up=warm_up, repetitions=repetitions)
