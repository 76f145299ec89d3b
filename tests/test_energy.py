"""``--energy``: what counters say becomes two columns, what they do not say is empty, and no result depends on it."""

import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dcbench_tesla.backends.base import FrozenJob, Job
from dcbench_tesla.backends.worker import run_frozen
from dcbench_tesla.cells import loop, stages
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.profilers import energy
from dcbench_tesla.profilers.energy import Energy, EnergyMeter
from dcbench_tesla.records.store import read_meta
from tests.fixtures_cells import SELECTION, Settings, command, configured, rows, set_words

pytestmark = pytest.mark.usefixtures("one_thread")
needs_codecarbon = pytest.mark.skipif(find_spec("codecarbon") is None, reason="codecarbon is not installed")

SMALL: Settings = {**SELECTION, "network.width": 4, "evaluation.every": 0, "iterations": 3}


class Meter:
    """A counter that says what it is told to."""

    def __init__(self, name: str, *joules: float) -> None:
        self.name, self._joules, self.started, self.readings = name, iter(joules), 0, 0

    def start(self) -> None:
        self.started += 1

    def joules(self) -> float:
        self.readings += 1
        return next(self._joules, 0.0)


def test_a_block_has_the_sum_of_its_counters() -> None:
    both = [Meter("RAPL", 2.0), Meter("NVML", 40.5)]
    with EnergyMeter(both) as meter:
        within = meter.energy
    assert (within, meter.energy) == (None, Energy(42.5, "NVML, RAPL"))
    assert [counter.started for counter in both] == [1, 1]


def test_counters_are_read_on_the_way() -> None:
    counter = Meter("RAPL", *[1.0] * 5)
    with EnergyMeter([counter], every_s=0.001):
        while counter.readings < 5:
            pass
    assert counter.readings >= 6


@pytest.mark.parametrize("read", [0.0, math.nan, math.inf])
def test_what_is_no_energy_is_none(read: float) -> None:
    with EnergyMeter([Meter("RAPL", read)]) as meter:
        pass
    assert meter.energy is None
    with EnergyMeter([]) as meter:
        pass
    assert meter.energy is None


# ---- in a run --------------------------------------------------------------------------------------------------------


def condensed(out: Path, *, measured: bool, method: str = "dm", settings: Settings = SMALL) -> dict[str, Any]:
    """The row of a condensation, and the digest of its set."""
    execution = Execution("cpu", 1, energy=measured)
    cell = Session(out, execution=execution, quiet=True).cell(configured(method, settings))
    stages.run_cell(cell)
    (row,) = rows(out, "condense")
    return {**row, "digest": read_meta(cell.place.distilled)["digest"]}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "counters_for", lambda device: [Meter("RAPL", 12.25)])


def test_energy_is_in_the_row_and_changes_nothing_else(counted: None, tmp_path: Path) -> None:
    with_it, without = condensed(tmp_path / "a", measured=True), condensed(tmp_path / "b", measured=False)
    assert (with_it.pop("energy_joules"), with_it.pop("energy_by")) == (12.25, "RAPL")
    assert with_it.keys() == without.keys()
    times = {"condense_seconds"}
    assert {n: v for n, v in with_it.items() if n not in times} == {n: v for n, v in without.items() if n not in times}


def test_a_machine_without_counters_has_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "counters_for", lambda device: [])
    assert not condensed(tmp_path, measured=True).keys() & {"energy_joules", "energy_by"}


def test_a_method_without_iterations_has_no_energy(counted: None, tmp_path: Path) -> None:
    assert "energy_joules" not in condensed(tmp_path, measured=True, method="random", settings=SELECTION)


class Killed(BaseException):
    """As ``kill -9`` leaves things."""


def test_a_condensation_that_goes_on_has_no_energy(
    counted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, due = loop.CondenseLoop._note, iter([True])

    def killed(self: loop.CondenseLoop, log: Any, iteration: int, *rest: Any) -> None:
        if iteration == 1:
            raise Killed
        note(self, log, iteration, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(loop.CondenseLoop, "_is_due", lambda self: next(due))
        patched.setattr(loop.CondenseLoop, "_note", killed)
        with pytest.raises(Killed):
            condensed(tmp_path, measured=True)
    assert "energy_joules" not in condensed(tmp_path, measured=True)


def test_workers_measure_too(counted: None, tmp_path: Path) -> None:
    session = Session(tmp_path, execution=Execution("cpu", 1, "local", energy=True), quiet=True)
    frozen = Job(session.cell(configured("dm", SMALL))).freeze().write()
    outcome = run_frozen(FrozenJob.read(frozen.file))
    assert outcome.ok, outcome.reason
    assert rows(tmp_path, "condense")[0]["energy_joules"] == 12.25


# ---- the command -----------------------------------------------------------------------------------------------------


def dcbench(out: Path, *words: object, method: str = "dm") -> Any:
    about = ["run", "--method", method, "--preset", "smoke", "--device", "cpu", "--no-baseline", *set_words(SMALL)]
    return command(*about, "--out", out, *words)


def test_columns_of_the_comparison(counted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "check_installed", lambda: None)
    monkeypatch.setattr(energy, "counters_for", lambda device: [Meter("RAPL")])
    assert dcbench(tmp_path).exit_code == 0
    assert command("compare", "accuracy", "--out", tmp_path).exit_code == 0
    assert "energy_joules" not in pd.read_csv(tmp_path / "tables" / "accuracy.csv")
    done = dcbench(tmp_path, "--energy", "--set", "lr_images=2")
    assert done.exit_code == 0, done.output
    assert "energy is not measured" not in done.stderr
    assert command("compare", "accuracy", "--out", tmp_path).exit_code == 0
    table = pd.read_csv(tmp_path / "tables" / "accuracy.csv")
    known = table[table["settings"].str.contains("lr_images=2")]
    assert [*known["energy_joules"]] == [12.25]
    assert [*known["energy_by"]] == ["RAPL"]
    assert int(table["energy_joules"].isna().sum()) == 1
    name = next(row["cell"] for row in rows(tmp_path, "condense") if "energy_joules" in row)
    assert "12 J" in command("show", name, "--out", tmp_path).stdout


@needs_codecarbon
def test_a_machine_without_counters_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codecarbon.core.cpu.is_rapl_available", lambda: False)
    done = dcbench(tmp_path, "--energy")
    assert done.exit_code == 0, done.output
    assert "energy is not measured: this machine shows no counter (RAPL of the processor, NVML of a GPU)" in done.stderr
    assert not rows(tmp_path, "condense")[0].keys() & {"energy_joules", "energy_by"}


def test_without_codecarbon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    done = dcbench(tmp_path / "out", "--energy")
    assert done.exit_code == 2
    assert "--energy needs codecarbon: pip install 'dcbench-tesla[energy]'." in done.stderr
    assert not (tmp_path / "out").exists()


# ---- what codecarbon reads -------------------------------------------------------------------------------------------


@needs_codecarbon
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RAPL is read from Linux")
def test_joules_of_the_counter_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree like ``/sys/class/powercap/intel-rapl``; the counter is in microjoules, and begins anew at its largest."""
    from codecarbon.core.cpu import IntelRAPL, is_rapl_available

    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    for file, content in {"name": "package-0", "energy_uj": "1000000", "max_energy_range_uj": "262143328850"}.items():
        (package / file).write_text(f"{content}\n")
    monkeypatch.setattr("codecarbon.core.cpu.is_rapl_available", lambda: is_rapl_available(str(tmp_path)))
    monkeypatch.setattr(
        "codecarbon.external.hardware.IntelRAPL", lambda **how: IntelRAPL(**{**how, "rapl_dir": str(tmp_path)})
    )
    (counter,) = energy.counters_for("cpu")
    assert counter.name == "RAPL"
    counter.start()
    for before, after, joules in ((1_000_000, 6_500_000, 5.5), (6_500_000, 6_600_000, 0.1)):
        assert (package / "energy_uj").read_text() == f"{before}\n"
        (package / "energy_uj").write_text(f"{after}\n")
        assert counter.joules() == pytest.approx(joules, rel=1e-6)
