"""How much faster than a plain loop (:mod:`.plain`) everything is that a user waits for, and how near to the machine.

    uv run pytest tests/benchmarks/test_against_plain.py -s [--save-baseline]

Ratios within one run: processes take turns. ``DCBENCH_BENCHMARK_STEPS=4`` takes fewer matching steps than ten,
``DCBENCH_BENCHMARK_THREADS=2`` more threads than one.
"""

import pytest

from tests.benchmarks.conftest import Compare


@pytest.mark.parametrize(("how", "least"), [("", 1.3), (", compiled", 1.6)])
def test_tesla(compare: Compare, how: str, least: float) -> None:
    found = compare(f"tesla{how}", "tesla, plain", "mtt, plain")
    assert found.speed("tesla, plain") >= least
    assert found.speed("mtt, plain") >= 1


@pytest.mark.parametrize("how", ["", ", compiled"])
def test_tesla_exact(compare: Compare, how: str) -> None:
    found = compare(f"tesla-exact{how}", f"tesla{how}", "mtt, plain")
    assert found.speed(f"tesla{how}") >= 1 / 1.3
    assert found.speed("mtt, plain") >= 1


def test_mtt(compare: Compare) -> None:
    assert compare("mtt", "mtt, plain").speed("mtt, plain") >= 1


@pytest.mark.parametrize("method", ["tesla", "tesla-exact"])
def test_compiled_against_eager(compare: Compare, method: str) -> None:
    found = compare(f"{method}, compiled", method)
    assert found.speed(method) >= 1.05
    assert found.peak_share(method) <= 1


@pytest.mark.parametrize("how", ["", ", compiled"])
def test_micro_batches_cost_no_time(compare: Compare, how: str) -> None:
    found = compare(f"tesla-exact{how}", f"tesla-exact, whole batches{how}")
    assert found.speed(f"tesla-exact, whole batches{how}") >= 0.97


@pytest.mark.parametrize("method", ["dm", "dsa"])
def test_compiled_class_matching_against_plain(compare: Compare, method: str) -> None:
    found = compare(f"{method}, compiled", method, f"{method}, plain")
    assert found.speed(method) >= 1.05
    assert found.speed(f"{method}, plain") >= 1.5


@pytest.mark.parametrize("work", ["pass 1", "pass 2", "pass 2, exact"])
def test_a_pass_of_one_step_against_the_machine(compare: Compare, work: str) -> None:
    found = compare(f"{work}, compiled", work, rounds=7)
    assert found.of_limit >= 0.5


@pytest.mark.parametrize("work", ["expert epoch", "evaluation"])
def test_training(compare: Compare, work: str) -> None:
    found = compare(f"{work}, compiled", work, f"{work}, plain")
    assert found.speed(work) >= 1.05
    assert found.speed(f"{work}, plain") >= 1.5


# of evaluation it takes compiled steps to reach 1.5, above
@pytest.mark.parametrize(("work", "least"), [("expert epoch", 1.5), ("evaluation", 1.3), ("dm", 1.5), ("dsa", 1.5)])
def test_eager_work_against_plain(compare: Compare, work: str, least: float) -> None:
    assert compare(work, f"{work}, plain").speed(f"{work}, plain") >= least
