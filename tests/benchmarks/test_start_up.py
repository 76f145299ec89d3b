"""How long the command line takes to start: help imports no torch, and comparing accuracies neither."""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests import fixtures_report
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


CELLS = 100
LIBRARIES = [sys.executable, "-c", "import pandas, rich.console, rich.table, rich.progress"]


def test_comparing_a_hundred_cells_takes_little_more_than_its_libraries(
    benchmark: BenchmarkFixture, record: Record, tmp_path: Path
) -> None:
    for seed in range(CELLS):
        method, ipc = ("tesla", "dm")[seed % 2], 1 + seed % 5
        fixtures_report.write_cell(tmp_path, method, ipc, {50: [0.5], 100: [0.6, 0.64]}, seed=seed)
    command = [sys.executable, "-m", "dcbench_tesla", "compare", "accuracy", "--out", str(tmp_path)]
    times: list[tuple[float, float]] = []
    cpu_seconds(LIBRARIES)

    def once() -> None:
        times.append((cpu_seconds(command), cpu_seconds(LIBRARIES)))

    benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
    share = statistics.median(ours / libraries for ours, libraries in times[1:])
    record.note(f"dcbench compare accuracy, {CELLS} cells", "in parts of importing pandas and rich", share, ROUNDS)
    assert share <= 2
