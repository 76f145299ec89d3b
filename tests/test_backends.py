"""Backends: a sweep survives ``kill -9`` of workers and of itself; failures become rows, and the others go on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from dcbench_tesla.backends import local, make_backend
from dcbench_tesla.backends.base import Backend, FrozenJob, Job, Outcome, record_failure
from dcbench_tesla.backends.local import Local
from dcbench_tesla.backends.process import WorkerProcess
from dcbench_tesla.backends.serial import Serial
from dcbench_tesla.backends.sweep import sweep
from dcbench_tesla.backends.worker import run_frozen
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.config import CellConfig, resolve
from dcbench_tesla.data.splits import Splits, cut
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.records.progress import parse_duration
from dcbench_tesla.records.store import read_meta
from tests.fixtures_cells import SELECTION, Settings, command, configured, rows, set_words

TESLA: Settings = {
    **SELECTION,
    "network.width": 4,
    "experts.count": 2,
    "evaluation.every": 0,
    "iterations": 4,
    "steps": 2,
    "expert_epochs": 1,
    "max_start_epoch": 1,
}
DIVERGES: Settings = {**TESLA, "lr_images": 1e30}
TOO_LARGE: Settings = {**TESLA, "network.width": 10**12}
ENDLESS: Settings = {**TESLA, "iterations": 10**6}


@pytest.fixture(autouse=True)
def one_thread_everywhere(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread here and in workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def a_job(out: Path, method: str = "random", settings: Settings = SELECTION, execution: Execution | None = None) -> Job:
    session = Session(out, execution=execution or Execution("cpu", 1), quiet=True)
    return Job(session.cell(configured(method, settings)))


# --------------------------------------------------------------------------------------------- the sweep, and kill -9


SWEEP = ["--method", "random", "--method", "dm", "--method", "tesla", "--preset", "smoke", "--no-baseline"]
SWEEP += [word for seed in range(3) for word in ("--seed", str(seed))]
SWEEP += set_words({**TESLA, "iterations": 30, "steps": 10})
CELLS = 9
ATTEMPT = re.compile(r"^\S+ \S+ (?P<cell>\S+): .* \((?P<backend>\S+), cpu, threads 1, process (?P<pid>\d+) on \S+\)$")


def wait_for(seen: Callable[[], bool], log: Path, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until ``seen``, which has to happen while something is ``alive``."""
    deadline = time.monotonic() + 600
    while not seen():
        assert alive(), log.read_text()
        assert time.monotonic() < deadline, log
        time.sleep(0.005)


class Running:
    """``dcbench run`` with words, in a process of its own, which ends with the test."""

    started: ClassVar[list["subprocess.Popen[bytes]"]] = []

    def __init__(self, out: Path, log: Path, *words: str) -> None:
        self.log = log
        line = [sys.executable, "-m", "dcbench_tesla", "run", "--device", "cpu", "--out", str(out), *words]
        with log.open("a") as file:
            self.process = subprocess.Popen(line, stdout=file, stderr=file)
        self.started.append(self.process)

    def wait_for(self, seen: Callable[[], bool]) -> None:
        """Wait until ``seen``, which has to happen before the process ends."""
        wait_for(seen, self.log, lambda: self.process.poll() is None)


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    while Running.started:
        Running.started.pop().kill()


def attempts(log: Path) -> list[re.Match[str]]:
    """The attempts of a cell, as its log has them."""
    return [found for found in map(ATTEMPT.match, log.read_text().splitlines()) if found]


def at_work(out: Path, backend: str = "local") -> dict[str, int]:
    """The process of every cell that is being worked on."""
    logs = [path for path in (out / "jobs").glob("*.log") if attempts(path)]
    last = {log.stem: (attempts(log)[-1], log.read_text().splitlines()[-1]) for log in logs}
    found = {
        name: int(attempt["pid"])
        for name, (attempt, line) in last.items()
        if attempt["backend"] == backend and " ended: " not in line
    }
    return {name: pid for name, pid in found.items() if alive(pid)}


def at_work_for(out: Path) -> list[int]:
    """The processes of all workers of a folder, those among them that have said nothing yet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(out).encode() in path.read_bytes() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def records(out: Path) -> dict[str, int]:
    """When every file was last written, but for what belongs to no cell."""
    files = [path for folder in ("rows", "cells", "jobs") for path in (out / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_sweep_survives_kill_of_two_workers_and_of_itself(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    words = [*SWEEP, "--backend", "local", "--jobs", "2"]
    killed: dict[str, int] = {}

    def two_are_killed() -> bool:
        ended_before = [row["cell"] for row in rows(out, "evaluate") if any(row["cell"] in name for name in killed)]
        for name, pid in at_work(out).items():
            if len(killed) < 2 + len(ended_before) and name not in killed:
                killed[name] = pid
                os.kill(pid, signal.SIGKILL)
        return len(rows(out, "failed")) >= 2

    first = Running(out, log, *words)
    first.wait_for(two_are_killed)
    for row in rows(out, "failed"):
        assert (row["status"], row["reason"]) == ("killed", "killed (SIGKILL; perhaps out of memory)")
        assert (row["attempts"], row["environment"]["backend"]) == (1, "local")
    lost = {row["cell"] for row in rows(out, "failed")}
    first.wait_for(lambda: len(rows(out, "evaluate")) >= 3 and len(at_work(out)) > 0)
    first.process.kill()
    first.process.wait()
    wait_for(lambda: not at_work_for(out), log)  # they notice it

    finished = {row["cell"] for row in rows(out, "evaluate")}
    assert 3 <= len(finished) < CELLS - len(lost)
    before = records(out)
    begun = {path: len(attempts(path)) for path in (out / "jobs").glob("*.log")}
    second = Running(out, log, *words)
    assert second.process.wait() == 0, log.read_text()

    assert len(rows(out, "evaluate")) == len(rows(out, "condense")) == CELLS
    assert {row["cell"] for row in rows(out, "evaluate")} == {row["cell"] for row in rows(out, "condense")}
    assert rows(out, "failed") == []
    after = records(out)
    keys = {row["key"] for stage in ("evaluate", "condense") for row in rows(out, stage) if row["cell"] in finished}
    of_finished = [name for name in before if any(part in name for part in (*finished, *keys))]
    assert {name: before[name] for name in of_finished} == {name: after[name] for name in of_finished}
    for path in (out / "jobs").glob("*.log"):
        (cell,) = {attempt["cell"] for attempt in attempts(path)}
        assert len(attempts(path)) == begun.get(path, 0) + (cell not in finished), path.read_text()
        *_, last = path.read_text().splitlines()
        assert cell in finished or " ended: ok" in last
    for path in out.glob("cells/*/metrics.jsonl"):
        iterations = [json.loads(line)["iteration"] for line in path.read_text().splitlines()]
        assert iterations == list(range(30))  # none is on record twice


def test_stopped_sweep_stops_its_workers_in_order(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    sets = [word for key, value in ENDLESS.items() for word in ("--set", f"{key}={value}")]
    words = ["--method", "tesla", "--seed", "0", "--seed", "1", "--preset", "smoke", "--no-baseline", *sets]
    running = Running(out, log, *words, "--backend", "local", "--jobs", "1")
    running.wait_for(lambda: any(path.stat().st_size > 0 for path in out.glob("cells/*/metrics.jsonl")))
    (pid,) = at_work(out).values()
    running.process.terminate()
    assert running.process.wait() == 130
    assert not alive(pid)
    (checkpoint,) = out.glob("cells/*/checkpoint.safetensors")
    assert read_meta(checkpoint)["iteration"] > 0
    assert "stopping 1 worker" in log.read_text()
    assert "2 cells: 2 not finished." in log.read_text()
    assert log.read_text().endswith("Error: interrupted. What was done is kept: the same command goes on.\n")
    assert "Traceback" not in log.read_text()
    assert rows(out, "failed") == []  # nothing failed


# ------------------------------------------------------------------------------------------------- failures are rows


def test_every_failure_becomes_its_row_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = Local("cpu", jobs=2, timeout_s=900)
    made = {
        "endless": a_job(tmp_path, "tesla", ENDLESS, backend.execution),
        "diverges": a_job(tmp_path, "tesla", DIVERGES, backend.execution),
        "too large": a_job(tmp_path, "tesla", TOO_LARGE, backend.execution),
        "fine": a_job(tmp_path, "random", SELECTION, backend.execution),
    }
    jobs = list(made.values())

    def kill_the_endless() -> None:
        name = made["endless"].freeze().name
        wait_for(lambda: name in at_work(tmp_path), tmp_path)
        os.kill(at_work(tmp_path)[name], signal.SIGKILL)

    threading.Thread(target=kill_the_endless, daemon=True).start()
    outcomes = dict(zip(made, sweep([*jobs, jobs[-1]], backend), strict=False))
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "endless": "killed",
        "diverges": "diverged",
        "too large": "out of memory",
        "fine": "ok",
    }
    by_cell = {row["cell"]: row for row in rows(tmp_path, "failed")}
    for name in ("endless", "diverges", "too large"):
        row = by_cell.pop(made[name].cell.name)
        assert (row["status"], row["reason"]) == (outcomes[name].status, outcomes[name].reason)
        assert (row["key"], row["attempts"]) == (made[name].cell.key, 1)
        assert (row["method"], row["dataset"], row["ipc"], row["seed"]) == ("tesla", "digits", 1, 0)
        assert row["command"].startswith("dcbench run --method tesla --dataset digits")
        assert row["environment"]["versions"]["torch"]
        assert f"Error: {row['cell']}: {row['reason']}" in capsys.readouterr().err or name != "endless"
    assert by_cell == {}
    (row,) = rows(tmp_path, "evaluate")
    assert (row["method"], row["environment"]["backend"], row["environment"]["threads"]) == ("random", "local", 1)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["workers", "serial"])
def test_estimates_leave_the_memory_to_the_workers(
    elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others compute, nothing of the images that were prepared for estimating is left in this process."""
    prepared: list[weakref.ref[Any]] = []
    emptied: list[bool] = []
    left: list[bool] = []

    def cut_and_noted(*given: Any) -> Splits:
        splits = cut(*given)
        prepared.append(weakref.ref(splits.train))
        return splits

    def run_none(_: object, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        left.extend(reference() is not None for reference in prepared)
        yield from ((job, Outcome("killed", "killed (by the test)", 1)) for job in jobs)

    monkeypatch.setattr("dcbench_tesla.cells.materials.cut", cut_and_noted)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(Local if elsewhere else Serial, "run", run_none)
    words = ["run", "--method", "tesla", "--preset", "smoke", "--device", "cpu", "--out", tmp_path]
    words += set_words(TESLA)
    result = command(*words, "--backend", "local" if elsewhere else "serial")
    assert "killed (by the test)" in result.stderr
    assert left == [not elsewhere] * len(prepared)
    assert left
    assert emptied == [True] * elsewhere


def test_cell_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    backend = Local("cpu", jobs=1, timeout_s=0.5)
    (outcome,) = sweep([a_job(tmp_path, "tesla", ENDLESS, backend.execution)], backend)
    assert outcome == Outcome("timed out", "timed out after 0 s (--timeout). What was done is kept.", 1)
    (row,) = rows(tmp_path, "failed")
    assert row["status"] == "timed out"


def test_failure_of_serial_is_a_row_that_success_drops(tmp_path: Path) -> None:
    words = ["run", "--method", "tesla", "--method", "random", "--preset", "smoke", "--device", "cpu", "--no-baseline"]
    words += [word for key, value in DIVERGES.items() for word in ("--set", f"{key}={value}")]
    for attempt in (1, 2):
        result = command(*words, "--out", tmp_path)
        assert result.exit_code == 1, result.output
        assert "1 of 2 cells failed, see above; the others are done. The same command retries." in result.stderr
        (row,) = rows(tmp_path, "failed")
        assert (row["status"], row["attempts"], row["environment"]["backend"]) == ("diverged", attempt, "serial")
        assert row["reason"].startswith("tesla diverged: the loss of iteration")
    listed = command("list", "cells", "--out", tmp_path).stdout.splitlines()
    first = next(i for i, line in enumerate(listed) if line.startswith("─")) + 1
    assert re.search(rf"^tesla +diverged +{row['cell']}", listed[first])  # what failed stands first
    assert "tesla diverged: the loss" in " ".join(listed[first:])
    compared = command("compare", "accuracy", "--out", tmp_path).stdout
    assert "random" in compared
    assert "tesla" not in compared

    job = a_job(tmp_path)  # the row of a process that was killed after its last stage
    record_failure(job.freeze(), Outcome("killed", "killed (SIGKILL)", 1))
    assert len(rows(tmp_path, "failed")) == 2
    assert sweep([job], Serial("cpu")) == [Outcome()]
    assert [row["method"] for row in rows(tmp_path, "failed")] == ["tesla"]


def test_retry_of_a_failure_drops_its_row(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    job.cell.place.folder.mkdir(parents=True)
    (job.cell.place.folder / "checkpoint.safetensors").write_bytes(b"damaged")
    (outcome,) = sweep([job], Serial("cpu"))
    assert outcome.status == "failed"
    (row,) = rows(tmp_path, "failed")
    assert row["reason"].startswith("checkpoint.safetensors is damaged")
    assert str(tmp_path) in outcome.reason
    assert str(tmp_path) not in json.dumps(row), "a row, which is committed, names a folder of this machine"
    (job.cell.place.folder / "checkpoint.safetensors").unlink()
    assert sweep([job], Serial("cpu")) == [Outcome()]
    assert rows(tmp_path, "failed") == []


def test_failure_stays_until_what_it_names_is_done(tmp_path: Path) -> None:
    """A success of another job of the same set, by another evaluation, says nothing of the one that failed."""
    short, long = (a_job(tmp_path, settings={**SELECTION, "convnet.epochs": epochs}) for epochs in (2, 3))
    assert short.cell.key == long.cell.key
    record_failure(long.freeze(), Outcome("killed", "killed (SIGKILL)", 1))
    for _ in range(2):  # run, and found done
        assert sweep([short], Serial("cpu")) == [Outcome()]
        assert len(rows(tmp_path, "failed")) == 1
    record_failure(short.freeze(), Outcome("killed", "killed (SIGKILL)", 1))
    assert sweep([short], Serial("cpu")) == [Outcome()]
    (row,) = rows(tmp_path, "failed")  # of two failures, the one that is not made good
    assert row["attempts"] == 2
    assert sweep([long], Serial("cpu")) == [Outcome()]
    assert rows(tmp_path, "failed") == []


def test_a_row_that_is_none_is_told(tmp_path: Path) -> None:
    words = ["run", "--method", "random", "--preset", "smoke", "--device", "cpu", "--no-baseline", "--out", tmp_path]
    words += set_words(SELECTION)
    assert command(*words).exit_code == 0
    (path,) = tmp_path.glob("rows/evaluate-*.json")
    path.write_text("[]")
    result = command(*words)
    assert result.exit_code == 1
    assert f"{path.name} is not a row of dcbench. Delete it: the same command makes it again." in result.stderr
    path.unlink()
    assert command(*words).exit_code == 0


def test_defect_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_job(tmp_path)
    monkeypatch.setattr(job.cell.method, "setup", lambda *_: 1 / 0)
    (outcome,) = sweep([job], Serial("cpu"))
    assert "ZeroDivisionError: division by zero. This is a defect of the program or a plugin" in outcome.reason
    assert "Traceback" in (job.cell.place.folder / "error.txt").read_text()


def test_reason_on_record_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    job = a_job(tmp_path).freeze()
    record_failure(job, Outcome("failed", "npz:/home/me/my data/x.npz is gone; see https://a.org/b/c and 1/2 of it", 1))
    (row,) = rows(tmp_path, "failed")
    assert row["reason"] == "npz:my data/x.npz is gone; see https://a.org/b/c and 1/2 of it"


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("method", ["tesla", "dm", "random", "herding"])
def test_frozen_configuration_comes_back_equal(method: str) -> None:
    for preset in ("paper", "quick", "smoke"):
        config = resolve(method, "cifar10", 10, seed=3, preset=preset, evaluators=("convnet", "vit"))
        assert CellConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_configuration_of_another_version_is_refused() -> None:
    content = resolve("tesla", "digits", 1, preset="smoke").as_dict()
    content["settings"]["gone"] = 1
    with pytest.raises(UsageError, match=r"written by another version of dcbench.*gone"):
        CellConfig.from_dict(content)


def worker(file: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dcbench_tesla.backends.worker", str(file)]
    return subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_worker_by_hand_prints_one_line_of_json(tmp_path: Path) -> None:
    job = a_job(tmp_path).freeze().write()
    done = worker(job.file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"status": "ok", "reason": "", "exit_code": 0}
    assert done.stdout.count("\n") == 1
    assert "condense, evaluate by convnet" in done.stderr
    assert a_job(tmp_path).cell.pending() == []


def test_worker_refuses_data_that_changed(tmp_path: Path) -> None:
    job = a_job(tmp_path).freeze()
    FrozenJob(**{**vars(job), "key": "0" * 16}).write()
    done = worker(job.file)
    assert done.returncode == 2
    assert json.loads(done.stdout)["status"] == "failed"
    assert "has other data or another version here" in json.loads(done.stdout)["reason"]
    assert rows(tmp_path, "evaluate") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": 3}, "is not a job of dcbench: config"),
        ({"config": {"settings": []}}, "is not a job of dcbench: config.settings"),
        ({"threads": "1"}, "is not a job of dcbench: threads"),
        ({"name": "another"}, "holds another job, another"),
        ({"config": {"method": "none"}}, "unknown method 'none'"),
        ({"config": {"network": {"width": "4", "depth": 0}}}, r"written by another version .*network\.width"),
        ({"config": {"network": {"width": 4, "deepness": 0}}}, r"written by another version .*deepness"),
    ],
)
def test_a_job_that_was_changed_is_named(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    job = a_job(tmp_path).freeze().write()
    stored = json.loads(job.file.read_text())
    config = change.get("config")
    changed = {"config": {**stored["config"], **config}} if isinstance(config, dict) else change
    job.file.write_text(json.dumps({**stored, **changed}))
    try:
        reason = run_frozen(FrozenJob.read(job.file)).reason
    except CorruptFileError as error:
        reason = str(error)
    assert re.search(rf"{job.file.name}.*{told}", reason), reason
    assert "defect" not in reason


def test_file_that_is_no_job(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"cell": 1}')
    with pytest.raises(CorruptFileError, match=r"x\.json is not a job of dcbench: it has no name\. Delete it"):
        FrozenJob.read(tmp_path / "x.json")
    for name, message in (("x.json", "is not a job of dcbench"), ("y.json", "No such file")):
        done = worker(tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr.splitlines()[-1]


# --------------------------------------------------------------------------------------------------- what is shared out


class FakeWorker:
    """A worker that ends when it is told to."""

    made: list["FakeWorker"]

    def __init__(self, job: FrozenJob, gpu: str | None) -> None:
        self.job, self.gpu, self.done = job, gpu, False
        self.made.append(self)

    def ended(self) -> bool:
        """End every other worker at a time, the youngest first."""
        alive = [worker for worker in self.made if not worker.done]
        assert len({w.gpu for w in alive}) >= min(2, len(alive)), "two on one GPU while the other is free"
        self.done = self is alive[-1]
        return self.done

    def outcome(self) -> Outcome:
        """Nothing went wrong."""
        return Outcome()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[FakeWorker]:
    """A machine with two GPUs, on which nothing is computed."""
    monkeypatch.setattr(Execution, "resolve", lambda *_: Execution("cuda", 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(local, "WorkerProcess", FakeWorker)
    monkeypatch.setattr(local, "POLL_S", 0.0)
    FakeWorker.made = []
    return FakeWorker.made


def test_every_worker_has_a_gpu_of_its_own(gpus: list[FakeWorker], tmp_path: Path) -> None:
    backend = Local("cuda")
    assert backend.at_once == 2
    jobs = [a_job(tmp_path, settings={**SELECTION, "data.validation": share}) for share in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert len(list(backend.run(jobs))) == 5
    assert {worker.gpu for worker in gpus} == {"0", "1"}


def test_gpus_are_those_that_this_process_may_use(
    gpus: list[FakeWorker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    jobs = [a_job(tmp_path, settings={**SELECTION, "data.validation": share}) for share in (0.1, 0.2, 0.3, 0.4)]
    assert len(list(Local("cuda", jobs=4).run(jobs))) == 4
    assert sorted(worker.gpu or "" for worker in gpus) == ["5", "5", "7", "7"]


@pytest.mark.parametrize(("device", "seen"), [("cuda", "1"), ("cuda:1", "0,1"), ("cpu", "0,1")])
def test_worker_sees_the_gpu_it_is_given(
    device: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Mapping[str, str]] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: started.append(env))
    job = a_job(tmp_path, execution=Execution(device, 3, "local")).freeze()
    WorkerProcess(job.write(), "1")
    assert (started[0]["CUDA_VISIBLE_DEVICES"], started[0]["OMP_NUM_THREADS"]) == (seen, "3")


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_cores", lambda: 8)
    assert Local("cpu", jobs=2).execution == Execution("cpu", 1, "local")  # as OMP_NUM_THREADS says
    assert Local("cpu").at_once == 8
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Local("cpu", jobs=3).execution == Execution("cpu", 2, "local")
    assert Local("cpu", jobs=99).execution.threads == 1
    torch.set_num_threads(4)
    backend = Local("cpu")
    assert (backend.at_once, backend.execution.threads) == (2, 4)


def test_equal_cells_run_once(tmp_path: Path) -> None:
    ran: list[Job] = []

    class Fake(Serial):
        def _run(self, job: Job) -> Outcome:
            ran.append(job)
            return Outcome()

    jobs = [a_job(tmp_path), a_job(tmp_path), a_job(tmp_path, settings={**SELECTION, "convnet.epochs": 3})]
    assert sweep(jobs, Fake("cpu")) == [Outcome()] * 3
    assert ran == [jobs[1], jobs[2]]
    assert jobs[1].cell.key == jobs[2].cell.key  # one condensation, evaluated in two ways: both are wanted


# ---------------------------------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30min", 1800), ("2h", 7200), ("1.5 d", 129600), ("1 day", 86400), ("5m", 300)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "lcal"], "unknown backend 'lcal'. Did you mean 'local'?"),
        (["--backend", "local", "--jobs", "0"], "--jobs must be at least 1, not 0."),
        (["--jobs", "2"], "--jobs has no effect on backend serial: choose --backend local or slurm."),
        (["--timeout", "2h"], "--timeout has no effect on backend serial"),
        (["--backend", "local", "--timeout", "2"], "a duration is a number with its unit"),
        (["--backend", "local", "--timeout", "0s"], "a duration is a number with its unit"),
        (["--backend", "local", "--backend-option", "partition=x"], "--backend-option has no effect on backend local"),
        (["--backend", "slurm", "--backend-option", "partition"], "--backend-option takes KEY=VALUE"),
        (["--backend", "slurm", "--device", "cuda:1"], "backend slurm takes --device cpu or cuda, not cuda:1"),
    ],
)
def test_usage_is_refused_with_one_message(words: Sequence[str], message: str, tmp_path: Path) -> None:
    result = command("run", "--method", "random", "--preset", "smoke", "--out", tmp_path / "out", *words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_backends_keep_the_contract(tmp_path: Path) -> None:
    backends: list[Backend] = [make_backend(name, device="cpu", out=tmp_path) for name in ("serial", "local")]
    assert [backend.execution.backend for backend in backends] == ["serial", "local"]
    assert all(list(backend.run([])) == [] for backend in backends)


def test_worker_process_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (outcome,) = sweep([a_job(tmp_path)], Local("cpu", jobs=1))
    assert outcome.status == "failed"
    assert "ended with exit code 1 and no answer; see" in outcome.reason
