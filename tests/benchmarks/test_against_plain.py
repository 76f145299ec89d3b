"""How much faster than a plain loop (:mod:`.plain`) everything is that a user waits for; as ratios within one run.

    uv run pytest tests/benchmarks/test_against_plain.py -s

One thread each, in processes that take turns. ``DCBENCH_BENCHMARK_STEPS=4`` takes fewer matching steps than ten.
"""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.benchmarks.turns import Worker, ratio

ROUNDS = 3
CLASSES = ("dm", "dsa")

Compare = Callable[..., dict[str, Worker]]


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Compare:
    """Let pieces of work take turns; the first one is what pytest-benchmark shows."""

    def run(*names: str) -> dict[str, Worker]:
        with ExitStack() as stack:
            workers = {name: stack.enter_context(Worker(name)) for name in names}
            first, *others = workers.values()
            for worker in workers.values():
                worker()
                worker.forget()

            def others_first() -> None:
                for worker in others:
                    worker()

            benchmark.pedantic(first, setup=others_first, rounds=ROUNDS)  # type: ignore[no-untyped-call]
        ratios = {f"{name} / {first.name}": ratio(worker, first) for name, worker in workers.items() if worker != first}
        benchmark.extra_info |= ratios
        for what, times in ratios.items():
            print(f"\n{what}: {times:.2f}")
        return workers

    return run


@pytest.mark.parametrize("how", ["", ", compiled"])
def test_tesla(compare: Compare, how: str) -> None:
    found = compare(f"tesla{how}", "tesla, plain", "mtt, plain")
    ours, two_pass, unrolled = found.values()
    assert ratio(two_pass, ours) >= 1.6
    assert ratio(unrolled, ours) >= 1


@pytest.mark.parametrize("how", ["", ", compiled"])
def test_tesla_exact(compare: Compare, how: str) -> None:
    ours, frozen, unrolled = compare(f"tesla-exact{how}", f"tesla{how}", "mtt, plain").values()
    assert ratio(ours, frozen) <= 1.3
    assert ratio(unrolled, ours) >= 1


def test_mtt(compare: Compare) -> None:
    ours, theirs = compare("mtt", "mtt, plain").values()
    assert ratio(theirs, ours) >= 1


@pytest.mark.parametrize("method", ["tesla", "tesla-exact"])
def test_compiled_against_eager(compare: Compare, method: str) -> None:
    compiled, eager = compare(f"{method}, compiled", method).values()
    assert ratio(eager, compiled) >= 1.05
    peaks = [worker.laps[-1].peak_resident_bytes for worker in (compiled, eager)]
    print(f"peak resident bytes: {peaks[0] / 2**20:.0f} MiB compiled, {peaks[1] / 2**20:.0f} MiB eager")


# measured on two cores of an AMD EPYC: dm 1.1, dsa 0.6; fewer classes at once (class_chunk) are what to try
ALL_AT_ONCE = pytest.mark.xfail(reason="4,096 real images at once do not fit a processor's caches", strict=False)


@pytest.mark.parametrize("work", ["expert epoch", "evaluation", *(pytest.param(w, marks=ALL_AT_ONCE) for w in CLASSES)])
def test_the_rest(compare: Compare, work: str) -> None:
    ours, theirs = compare(work, f"{work}, plain").values()
    assert ratio(theirs, ours) >= 1.5
