"""What all benchmarks share: work that takes turns, and a record of ratios that a later run is compared with."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dcbench_tesla.compare.files import keys, merge_csv, read_csv
from dcbench_tesla.records.environment import environment
from tests.benchmarks.turns import ROOT, THREADS, Worker, ratio, share
from tests.benchmarks.work import STEPS

BASELINE = ROOT / "results" / "benchmarks.csv"
KEY = ["work", "measure", "steps", "threads", "hardware"]
LIMIT = "limit"
OF_LIMIT = "share of the machine's limit"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes this run the one that later runs are compared with."""
    parser.addoption("--save-baseline", action="store_true", help=f"keep the ratios in {BASELINE.relative_to(ROOT)}")


@dataclass
class Record:
    """The ratios of a run, and those of an earlier one on this hardware."""

    baseline: Path
    save: bool
    rows: list[dict[str, Any]] = field(default_factory=list)

    def note(self, work: str, measure: str, value: float, rounds: int) -> None:
        """Keep one figure, and print it beside the baseline's."""
        here = environment("cpu", THREADS)
        about = {"commit": here["commit"], "torch": here["versions"]["torch"]}
        row = {"work": work, "measure": measure, "steps": STEPS, "threads": THREADS, "hardware": here["hardware"]}
        before = self._before(row)
        self.rows.append({**row, "value": round(value, 3), "rounds": rounds, **about})
        if self.save:  # at once: what stops the run takes nothing back
            merge_csv(self.baseline, pd.DataFrame(self.rows[-1:]), KEY)
        print(f"\n{work}: {measure}: {value:.2f}" + ("" if math.isnan(before) else f" (baseline {before:.2f})"))

    def _before(self, row: dict[str, Any]) -> float:
        table = read_csv(self.baseline, KEY)
        wanted = keys(pd.DataFrame([row]), KEY)[0]
        found = [v for k, v in zip(keys(table, KEY), table.get("value", []), strict=True) if k == wanted]
        return float(found[0]) if found else math.nan


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Record:
    """Where ratios are noted."""
    return Record(BASELINE, save=bool(request.config.getoption("--save-baseline")))


@dataclass(frozen=True)
class Found:
    """What came of taking turns: the first piece of work, and the others."""

    first: Worker
    others: dict[str, Worker]

    def speed(self, other: str) -> float:
        """Return how many times as fast the first is as another."""
        return ratio(self.others[other], self.first)

    @property
    def of_limit(self) -> float:
        """The first one's share of the machine's limit."""
        return share(self.first, self.others[LIMIT])

    def peak_share(self, other: str) -> float:
        """Return the first one's peak resident bytes in parts of another's."""
        return self.first.laps[-1].peak_resident_bytes / self.others[other].laps[-1].peak_resident_bytes


Compare = Callable[..., Found]


@pytest.fixture
def compare(benchmark: BenchmarkFixture, record: Record) -> Compare:
    """Let pieces of work take turns, the machine's limit among them; the first one is what pytest-benchmark shows."""

    def run(first: str, *others: str, rounds: int = 3) -> Found:
        with ExitStack() as stack:
            found = Found(
                stack.enter_context(Worker(first)),
                {name: stack.enter_context(Worker(name)) for name in (*others, LIMIT)},
            )
            everyone = [found.first, *found.others.values()]
            for worker in everyone:
                worker()
                worker.forget()

            def others_first() -> None:
                for worker in found.others.values():
                    worker()

            benchmark.pedantic(found.first, setup=others_first, rounds=rounds)  # type: ignore[no-untyped-call]
        for other in others:
            record.note(first, f"times as fast as {other}", found.speed(other), rounds)
            record.note(first, f"peak memory against {other}", found.peak_share(other), rounds)
        record.note(first, OF_LIMIT, found.of_limit, rounds)
        benchmark.extra_info |= {r["measure"]: r["value"] for r in record.rows if r["work"] == first}
        return found

    return run
