"""`dcbench compare time`: who runs when, what does not fit, what its rows hold, and how they are shown."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from click.testing import CliRunner
from matplotlib.container import ErrorbarContainer

from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cli import main
from dcbench_tesla.compare import timing
from dcbench_tesla.compare.files import merge_csv
from dcbench_tesla.compare.plots import time_figure
from dcbench_tesla.compare.points import Point, points
from dcbench_tesla.compare.timing import KEY, markdown, measure, passes_table, seconds_table
from dcbench_tesla.config import parse_set
from dcbench_tesla.errors import UsageError
from dcbench_tesla.profilers import free, phase
from dcbench_tesla.profilers.free import free_bytes

CPU = Execution("cpu", 1)
SMALL: dict[str, Any] = {"batch_sizes": (10,), "width": 8}


BACKENDS: tuple[tuple[Any, str, bool], ...] = (  # as a run sets them
    (torch.backends.cudnn, "deterministic", True),
    (torch.backends.cudnn, "allow_tf32", False),
    (torch.backends.cuda.matmul, "allow_tf32", False),
)


@pytest.fixture(autouse=True)
def _settings_of_torch() -> Iterator[None]:
    """Begin with the opposite of a run's settings; put them back afterwards."""
    threads, before = torch.get_num_threads(), [getattr(backend, name) for backend, name, _ in BACKENDS]
    for backend, name, value in BACKENDS:
        setattr(backend, name, not value)
    yield
    torch.set_num_threads(threads)
    for (backend, name, _), value in zip(BACKENDS, before, strict=True):
        setattr(backend, name, value)


class Ran(NamedTuple):
    """One run of a point: who, with how many steps."""

    method: str
    matching_steps: int | None


class Played:
    """Stands in for the methods: their iterations take played seconds, and are predicted to need ``bytes``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[str, int], tuple[float, float]]) -> None:
        self.ran: list[Ran] = []
        self.now_s = 0.0
        self.bytes = 1000
        self._seconds = seconds
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(Point, "workload", lambda point, device, **how: self._workload(point, device))

    def _workload(self, point: Point, device: torch.device) -> Callable[[], Callable[[], object]]:
        def run() -> None:
            if device.type == "meta":
                _ = torch.zeros(self.bytes, dtype=torch.uint8, device=device)
            else:
                self._iterate(point)

        return lambda: run

    def _iterate(self, point: Point) -> None:
        self.ran.append(ran := Ran(point.method, point.matching_steps))
        first, second = self._seconds(point.method, self.ran.count(ran))
        with phase("pass 1"):
            self.now_s += first
        with phase("pass 2"):
            self.now_s += second
        self.now_s += 0.5  # in no pass


def test_methods_on_the_same_shapes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, lambda method, turn: (1, 1))
    wanted = points(["mtt", "tesla", "dm"], ["digits"], steps=(1, 5), **SMALL)
    calls: list[None] = []
    measure(wanted, CPU, repetitions=2, done=lambda: calls.append(None))
    short = [Ran("mtt", 1), Ran("tesla", 1)]
    warm, long = ([Ran("mtt", steps), Ran("tesla", steps)] for steps in (2, 5))  # a CPU is warm after two steps
    assert played.ran == [*short * 3, *warm, *long * 2, *[Ran("dm", None)] * 3]
    assert len(calls) == len(wanted) * 3


def test_points_of_all_steps_take_turns_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, lambda method, turn: (1, 1))
    wanted = points(["mtt", "tesla"], ["digits"], steps=(1, 5), **SMALL)
    table = measure(wanted, CPU, repetitions=1, all_steps=True)
    warm, turn = ([Ran(method, steps) for method in ("mtt", "tesla") for steps in (1, most)] for most in (2, 5))
    assert played.ran == [*warm, *turn]
    assert table["turns"].nunique() == 1


def test_a_method_with_settings_takes_turns_with_the_others_and_has_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = Played(monkeypatch, lambda method, turn: (1, 1))
    wanted = points(["mtt", "tesla"], ["digits"], steps=(1,), overrides=[parse_set("micro_batch=2")], **SMALL)
    table = measure(wanted, CPU, repetitions=1)
    assert played.ran == [Ran("mtt", 1), Ran("tesla", 1)] * 2
    assert list(table["settings"]) == ["", "micro_batch=2"]
    assert list(timing.named(table)["method"]) == ["mtt", "tesla, micro_batch=2"]
    assert "tesla, micro_batch=2" in markdown(table)


def test_what_cannot_be_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PhaseClock", None)
    wanted = points(["mtt", "random"], ["digits"], steps=(1,), **SMALL)
    with pytest.raises(UsageError, match="random has no iterations to measure"):
        measure(wanted, CPU, repetitions=1)


def test_a_point_that_is_asked_for_twice_is_one() -> None:
    assert len(points(["mtt", "mtt"], ["digits"], steps=(1, 1), **SMALL)) == 1


def test_medians_spreads_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"mtt": [(1, 10), (2, 30), (30, 20), (4, 40)], "tesla": [(5, 5)] * 4}
    Played(monkeypatch, lambda method, turn: taken[method][turn - 1])
    # two steps are as many as the warm-up has: the first of the four runs is one
    first, second = measure(points(["mtt", "tesla"], ["digits"], steps=(2,), **SMALL), CPU, repetitions=3).to_dict(
        "records"
    )
    seconds = {
        "iteration_seconds": 44.5,  # of 32.5, 50.5 and 44.5
        "iteration_spread_seconds": 9.0,
        "step_seconds": 22.25,
        "pass1_seconds": 4.0,  # of 2, 30 and 4: no sum of the two has to be the median of the whole
        "pass2_seconds": 30.0,
    }
    assert {name: first[name] for name in seconds} == seconds
    assert (second["iteration_seconds"], second["iteration_spread_seconds"]) == (10.5, 0.0)
    assert (first["repetitions"], first["status"], first["inputs"], first["meter"], first["threads"]) == (
        *(3, "ok", "synthetic", "perf_counter", 1),
    )


def test_what_does_not_fit_is_a_row_and_runs_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, lambda method, turn: (1, 1))
    played.bytes = 57 * 2**30
    monkeypatch.setattr(timing, "free_bytes", lambda device: 20 * 2**30)
    calls: list[None] = []
    wanted = points(["mtt", "tesla"], ["digits"], steps=(1,), **SMALL)
    table = measure(wanted, CPU, repetitions=2, done=lambda: calls.append(None))
    assert played.ran == []
    assert len(calls) == len(wanted) * 3
    for row in table.to_dict("records"):
        assert row["status"] == "not run: needs 57.00 GiB, 20.00 GiB are free"
        assert row["repetitions"] == 0
        assert all(pd.isna(row[name]) for name in row if str(name).endswith("_seconds"))
    assert set(measure(wanted, CPU, repetitions=1, unchecked=True)["status"]) == {"ok"}
    played.bytes = 20 * 2**30  # exactly so much is free
    assert set(measure(wanted, CPU, repetitions=1)["status"]) == {"ok"}


def test_a_gpus_memory_may_end_on_the_way_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(method: str, turn: int) -> tuple[float, float]:
        if method == "mtt" and turn == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1, 1

    played = Played(monkeypatch, seconds)
    table = measure(points(["mtt", "tesla"], ["digits"], steps=(1,), **SMALL), CPU, repetitions=4)
    mtt, tesla = table.to_dict("records")
    assert (mtt["status"], mtt["repetitions"]) == ("out of memory", 0)
    assert pd.isna(mtt["iteration_seconds"])
    assert (tesla["status"], tesla["repetitions"], tesla["iteration_seconds"]) == ("ok", 4, 2.5)
    assert [ran.method for ran in played.ran].count("mtt") == 3


def test_other_errors_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(method: str, turn: int) -> tuple[float, float]:
        raise RuntimeError("an illegal memory access was encountered")

    Played(monkeypatch, seconds)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(points(["mtt"], ["digits"], steps=(1,), **SMALL), CPU, repetitions=1)


def test_every_method_is_timed_with_the_settings_of_a_run() -> None:
    wanted = points(["mtt", "tesla", "tesla-exact", "dm"], ["digits"], steps=(3,), batch_sizes=(10,), width=4)
    table = measure(wanted, CPU, repetitions=2)
    assert all(getattr(backend, name) == value for backend, name, value in BACKENDS)
    assert list(table.columns[: len(KEY)]) == KEY
    assert (table["iteration_seconds"] > 0).all()
    *matching, dm = table.to_dict("records")
    for found in matching:
        assert found["step_seconds"] == pytest.approx(found["iteration_seconds"] / 3)
        assert min(found["pass1_seconds"], found["pass2_seconds"]) > 0
        assert found["matching_steps"] == 3
    assert all(pd.isna(dm[name]) for name in ("matching_steps", "step_seconds", "pass1_seconds", "pass2_seconds"))


@pytest.mark.parametrize("repetitions", [0, -1])
def test_something_must_be_counted(repetitions: int) -> None:
    with pytest.raises(UsageError, match="repetitions must be at least 1"):
        measure([], CPU, repetitions=repetitions)


def test_free_bytes_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory(NamedTuple):
        available: int

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(1000))
    monkeypatch.setattr(free, "kept_bytes", lambda: 200)
    assert free_bytes(torch.device("cpu")) == 840
    on_device = {"mem_get_info": (500, 9000), "memory_reserved": 300, "memory_allocated": 100}
    for name, told in on_device.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, told=told: told)
    assert free_bytes(torch.device("cuda:1")) == 500 + 300 - 100  # what lies in the allocator's cache can be had


# ---- rows and tables -------------------------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"method": "mtt", "dataset": "cifar100", "matching_steps": 5, "ipc": 1, "batch_size": 100}
    found |= {"width": 128, "depth": 0, "compiled": False, "meter": "perf_counter", "hardware": "a CPU", "threads": 2}
    found |= {"iteration_seconds": 2.0, "iteration_spread_seconds": 0.5, "step_seconds": 0.4, "pass1_seconds": 1.25}
    return found | {"pass2_seconds": 0.625, "repetitions": 3, "status": "ok", **changes}


WITHOUT_STEPS = {"method": "dm", "matching_steps": None, "batch_size": None, "step_seconds": None}
NO_PASSES = {"pass1_seconds": None, "pass2_seconds": None}
NOT_RUN = {name: None for name in row() if name.endswith("_seconds")} | {"status": "not run: it is large"}


def rows(*changes: dict[str, Any]) -> pd.DataFrame:
    kinds = {"matching_steps": "Int64"} | {name: "float64" for name in row() if name.endswith("_seconds")}
    return pd.DataFrame([row(**changed) for changed in changes]).astype(kinds)


def test_a_line_through_smaller_steps_has_an_interval() -> None:
    exact = rows(*({"matching_steps": t, "iteration_seconds": 1 + 2.0 * t} for t in (2, 4, 8)))
    line = timing.extrapolated(exact, 50)
    assert line is not None
    assert line[:3] == pytest.approx((101, 101, 101))
    assert line.steps == (2, 4, 8)
    rough = exact.assign(iteration_seconds=[5.5, 8.0, 17.5])
    found = timing.extrapolated(rough, 50)
    assert found is not None
    t, s = np.array([2, 4, 8]), np.array([5.5, 8.0, 17.5])
    design = np.stack([np.ones(3), t], 1)
    weights, (squares,), *_ = np.linalg.lstsq(design, s, rcond=None)
    at = np.array([1, 50])
    error = np.sqrt(squares * at @ np.linalg.inv(design.T @ design) @ at)  # one degree of freedom
    value, half = at @ weights, 12.7062047 * error
    assert found[:3] == pytest.approx((value, value - half, value + half))
    assert timing.extrapolated(exact.assign(status=["ok", "ok", "out of memory"]), 50) is None
    assert timing.extrapolated(exact.assign(matching_steps=[2, 2, 4]), 50) is None


def test_a_second_run_replaces_equal_rows_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "time.csv"
    merge_csv(path, rows({}, NOT_RUN | {"matching_steps": 50}), KEY)
    merge_csv(path, rows({"threads": 1, "iteration_seconds": 3.0}), KEY)
    merge_csv(path, rows(WITHOUT_STEPS | NO_PASSES | {"iteration_seconds": 7.0}), KEY)
    merge_csv(path, rows({"hardware": "a GPU", "meter": "cuda events", "iteration_seconds": 0.1}), KEY)
    merge_csv(path, rows({"iteration_seconds": 1.5}), KEY)
    merge_csv(path, rows(WITHOUT_STEPS | NO_PASSES | {"iteration_seconds": 8.0}), KEY)
    found = pd.read_csv(path)
    assert sorted(found["iteration_seconds"].dropna()) == [0.1, 1.5, 3.0, 8.0]
    assert list(found[found["iteration_seconds"].isna()]["status"]) == ["not run: it is large"]


def test_rows_from_before_anything_was_compiled_are_read(tmp_path: Path) -> None:
    path = tmp_path / "time.csv"
    rows({}).drop(columns="compiled").to_csv(path, index=False)
    found = merge_csv(path, rows({"compiled": True}, {"iteration_seconds": 1.0}), KEY)
    assert sorted(found["compiled"]) == [False, True]


def test_the_table_sets_every_method_in_relation_to_mtt() -> None:
    table = rows(
        {"method": "tesla", "matching_steps": 1, "iteration_seconds": 0.03, "iteration_spread_seconds": 0.001},
        {"method": "tesla", "iteration_seconds": 3.0},
        {"matching_steps": 1, "iteration_seconds": 0.02, "iteration_spread_seconds": 0.0},
        NOT_RUN,
        WITHOUT_STEPS | NO_PASSES | {"iteration_seconds": 123.456},
    )
    assert seconds_table(table, "mtt") == [
        ["matching steps", "tesla", "mtt", "dm"],
        ["1", "0.0300 ± 0.0005 (1.50x)", "0.0200 ± 0.0000 (1.00x)", "123 ± 0"],
        ["5", "3.00 ± 0.25", "not run: it is large", "123 ± 0"],
    ]
    shown = markdown(table)
    assert "a CPU, threads: 2, by perf_counter" in shown
    assert "as a multiple of mtt" in shown
    assert shown.count("| matching steps |") == 2
    assert "as a multiple of tesla" in markdown(table[table["method"] == "tesla"])


def test_passes_are_shown_a_step_where_there_are_any() -> None:
    table = rows({}, {"method": "tesla", "matching_steps": 1, "pass1_seconds": 0.01, "pass2_seconds": 0.02})
    assert passes_table(table) == [
        ["matching steps", "mtt", "tesla"],
        ["1", "", "0.0100 + 0.0200"],
        ["5", "0.250 + 0.125", ""],
    ]
    alone = markdown(rows(WITHOUT_STEPS | NO_PASSES))
    assert "pass 1" not in alone
    assert "| any " in alone


def test_compiled_rows_say_so_and_stand_beside() -> None:
    table = rows({}, {"method": "tesla"}, {"method": "tesla", "compiled": True, "iteration_seconds": 1.0})
    assert seconds_table(timing.named(table), "mtt")[0] == ["matching steps", "mtt", "tesla", "tesla, compiled"]
    assert "1.00 ± 0.25 (0.50x)" in markdown(table)
    axes = time_figure(table).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["mtt", "tesla", "tesla, compiled"]
    colours = [
        container.lines[0].get_color() for container in axes.containers if isinstance(container, ErrorbarContainer)
    ]
    assert colours[0] != colours[1] == colours[2]


def test_what_cannot_be_compiled_is_timed_once() -> None:
    mtt, tesla = points(["mtt", "tesla"], ["digits"], steps=(1,), **SMALL)
    assert timing.variants([mtt, tesla], [False, True]) == [(mtt, False), (tesla, False), (tesla, True)]
    assert timing.variants([mtt, tesla], [True]) == [(mtt, False), (tesla, True)]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_point_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_, compilations = torch.compile, []

    def noted(function: Any, **how: Any) -> Any:
        compilations.append(how)
        return compile_(function, **how)

    monkeypatch.setattr(torch, "compile", noted)
    wanted = points(["tesla"], ["digits"], steps=(2,), batch_sizes=(10,), width=4)
    table = measure(wanted, CPU, repetitions=3, compiled=[False, True])
    assert list(table["compiled"]) == [False, True]
    assert (table["iteration_seconds"] > 0).all()
    assert len(compilations) == 2  # pass 1, pass 2


def test_steps_that_could_not_be_compiled_have_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any, **how: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    wanted = points(["tesla"], ["digits"], steps=(1,), batch_sizes=(10,), width=4)
    eager, compiled = measure(wanted, CPU, repetitions=1, compiled=[False, True]).to_dict("records")
    assert eager["status"] == "ok"
    assert compiled["status"].startswith("not run: the inner step could not be compiled")
    assert compiled["status"].endswith("RuntimeError: no compiler")
    assert compiled["repetitions"] == 0


def test_against_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    Played(monkeypatch, lambda method, turn: (1, 1))
    wanted = points(["mtt", "tesla"], ["digits"], steps=(2,), batch_sizes=(5, 10), width=4)
    table = measure(wanted, CPU, repetitions=1)
    assert [line[0] for line in seconds_table(table, "mtt", "batch_size")] == ["batch size", "5", "10"]
    assert "| batch size |" in markdown(table, "batch_size")
    assert time_figure(table, "batch_size").axes[0].get_xlabel() == "synthetic images in a step"


# ---- the command -----------------------------------------------------------------------------------------------------


def dcbench(*words: object) -> Any:
    torch.set_num_threads(1)
    return CliRunner().invoke(main, ["compare", "time", "--device", "cpu", *map(str, words)])


def test_the_command_writes_rows_and_plots(tmp_path: Path) -> None:
    words = ["--method", "tesla", "--method", "mtt", "--dataset", "digits", "--steps", 1, "--steps", 2, "--width", 4]
    words += ["--batch-size", 10, "--repetitions", 1, "--out", tmp_path]
    result = dcbench(*words)
    assert result.exit_code == 0, result.output
    assert "### Seconds of one iteration, digits" in result.stdout
    figures = tmp_path / "figures"
    assert {path.name for path in figures.iterdir()} == {
        "time.csv",
        "time-steps-digits.png",
        "time-steps-digits.svg",
    }
    assert (figures / "time-steps-digits.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (figures / "time-steps-digits.svg").read_bytes()
    before = pd.read_csv(figures / "time.csv")
    assert dcbench(*words).exit_code == 0
    after = pd.read_csv(figures / "time.csv")
    assert list(before.columns) == list(after.columns)
    assert after[KEY].equals(before[KEY])
    assert not after["iteration_seconds"].equals(before["iteration_seconds"])


def test_without_a_single_time_there_is_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "free_bytes", lambda device: 1000)
    result = dcbench("--dataset", "digits", "--method", "tesla", "--steps", 1, "--width", 4, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "not run: needs" in result.stdout
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["time.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "tesl"], "Did you mean 'tesla'"),
        (["--dataset", "cifar1000"], "cifar100"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--ipc", "0"], "--ipc must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--batch-size", "5", "--batch-size", "10"], "several --batch-size need --against batch-size"),
        (["--steps", "2", "--against", "batch-size"], "several --steps need --against steps"),
        (["--repetitions", "0"], "repetitions must be at least 1"),
        (["--device", "meta"], "is not supported"),
        (["--method", "random"], "random has no iterations to measure"),
    ],
)
def test_what_cannot_be_is_told(words: list[str], message: str, tmp_path: Path) -> None:
    result = dcbench("--steps", 1, "--out", tmp_path, *words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_what_was_timed_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    Played(monkeypatch, lambda method, turn: (1, 1))
    kept: list[pd.DataFrame] = []
    runs = iter(range(6))  # two methods, warm-up and a repetition at T = 1; and half of T = 5

    def done() -> None:
        if next(runs) == 5:
            raise KeyboardInterrupt

    wanted = points(["mtt", "tesla"], ["digits"], steps=(1, 5), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        measure(wanted, CPU, repetitions=1, done=done, keep=kept.append)
    (rows,) = kept
    assert list(rows["matching_steps"]) == [1, 1]


def test_the_turns_before_an_interruption_are_kept_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [1, 3, 5, 7]
    Played(monkeypatch, lambda method, turn: (taken[turn - 1], 0))
    kept, runs = list[pd.DataFrame](), iter(range(8))  # two methods: warm-up, two repetitions, and half of the third

    def done() -> None:
        if next(runs) == 7:
            raise KeyboardInterrupt

    wanted = points(["mtt", "tesla"], ["digits"], steps=(2,), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        measure(wanted, CPU, repetitions=3, done=done, keep=kept.append, every_turn=True)
    assert [list(rows["repetitions"]) for rows in kept] == [[1, 1], [2, 2]]
    assert [list(rows["iteration_seconds"]) for rows in kept] == [[3.5, 3.5], [4.5, 4.5]]  # of 3.5 and 5.5
    assert set(kept[-1]["status"]) == {"ok"}
