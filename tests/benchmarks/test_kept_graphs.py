"""What kept graphs cost and buy: with those of all T steps ``tesla-exact`` takes no more time than ``mtt``.

    uv run pytest tests/benchmarks

Plain ``pytest`` leaves this folder out: times are measured here, and a busy machine can spoil them. It takes a minute
or two on two cores. The methods take turns; the median of their ratios counts, and ``--benchmark-json`` keeps it.
"""

import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.profilers import PhaseClock
from dcbench_tesla.profilers.memory import PredictedMeter, Prepare

CPU = torch.device("cpu")
STEPS, ROUNDS = 10, 9
CIFAR: dict[str, Any] = {"shape": Shape.of("cifar100"), "steps": STEPS, "batch_size": 50, "width": 64}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several threads wait for each other where a core is taken, which would be a part of the ratio."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact(keep_graphs: int, device: torch.device) -> Prepare:
    return workload("tesla-exact", **CIFAR, device=device, settings={"keep_graphs": keep_graphs})


def test_with_all_graphs_kept_exact_takes_at_most_a_tenth_more_than_mtt(benchmark: BenchmarkFixture) -> None:
    prepare_mtt, prepare_exact = workload("mtt", **CIFAR, device=CPU), exact(STEPS, CPU)
    of_mtt: list[float] = []
    of_exact: list[float] = []

    def take(run: Callable[[], object], times_s: list[float]) -> None:
        with PhaseClock(CPU) as lap:
            run()
        times_s.append(lap.total_s)

    def mtt_first() -> tuple[tuple[Any, ...], dict[str, Any]]:
        run = prepare_mtt()
        gc.collect()
        take(run, of_mtt)
        run = prepare_exact()
        gc.collect()
        return (run, of_exact), {}

    benchmark.pedantic(take, setup=mtt_first, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
    ratios = [e / m for e, m in zip(of_exact[1:], of_mtt[1:], strict=True)]  # but for the warm-up
    ratio = statistics.median(ratios)
    benchmark.extra_info |= {"seconds of mtt, median": statistics.median(of_mtt[1:]), "ratio to mtt, median": ratio}
    print(f"\n{STEPS} of {STEPS} graphs kept: tesla-exact takes {ratio:.3f} times as long as mtt (median of {ROUNDS})")
    assert ratio <= 1.1


def test_memory_is_linear_in_the_kept_graphs() -> None:
    meter = PredictedMeter()
    peaks = [meter.measure(exact(keep, meter.device)).peak_bytes for keep in range(STEPS + 1)]
    assert peaks[1] <= peaks[0]  # pass 2 begins by building the graph of the last step anyway
    keeps = np.arange(1, STEPS + 1)
    assert np.corrcoef(keeps, peaks[1:])[0, 1] ** 2 > 0.999
    assert peaks[-1] > 5 * peaks[0]
