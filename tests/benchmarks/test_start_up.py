"""How long the command line takes to start: help and the refusal of a wrong name import no torch."""

import resource
import statistics
import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.benchmarks.conftest import Record

ROUNDS = 7
IMPORTS = [sys.executable, "-c", "import torch"]  # what any script of the field does first


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]], ids=" ".join)
def test_the_command_line_starts_faster_than_torch_is_imported(
    benchmark: BenchmarkFixture, record: Record, words: list[str]
) -> None:
    command = [sys.executable, "-m", "dcbench_tesla", *words]
    times: list[tuple[float, float]] = []
    cpu_seconds(IMPORTS)

    def once() -> None:
        times.append((cpu_seconds(command), cpu_seconds(IMPORTS)))

    benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
    speed = statistics.median(torch / ours for ours, torch in times[1:])
    record.note(f"dcbench {' '.join(words)}", "times as fast as importing torch", speed, ROUNDS)
    assert speed >= 5
