"""Backend ``slurm``: submitit's debug executor, a Slurm of fake commands, and a real one on this machine."""

import math
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dcbench_tesla.backends import slurm
from dcbench_tesla.backends.base import Job, Outcome
from dcbench_tesla.backends.local import Local
from dcbench_tesla.backends.process import run_job
from dcbench_tesla.backends.slurm import Slurm
from dcbench_tesla.backends.sweep import sweep
from dcbench_tesla.cells.budget import largest_peak
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.profilers.memory import PredictedMeter
from tests.fixtures_cells import SELECTION, command, rows
from tests.test_backends import DIVERGES, ENDLESS, TESLA, a_job, at_work, one_thread_everywhere, wait_for

__all__ = ["one_thread_everywhere"]  # a fixture of every test here


# ---------------------------------------------------------------------------------------------- without any Slurm


def test_by_the_debug_executor(tmp_path: Path) -> None:
    backend = Slurm(tmp_path / "jobs" / "slurm", options={"cluster": "debug"})
    fine, diverges = (a_job(tmp_path, m, s, backend.execution) for m, s in (("random", SELECTION), ("tesla", DIVERGES)))
    outcomes = sweep([fine, diverges], backend)
    assert [outcome.status for outcome in outcomes] == ["ok", "diverged"]
    (row,) = rows(tmp_path, "evaluate")
    assert row["environment"]["backend"] == "slurm"
    (row,) = rows(tmp_path, "failed")
    assert (row["cell"], row["status"], row["attempts"]) == (diverges.cell.name, "diverged", 1)


def test_signal_of_the_time_limit_stops_the_worker_in_order(tmp_path: Path) -> None:
    job = a_job(tmp_path, "tesla", ENDLESS).freeze(timeout_s=900).write()
    metrics = job.workspace.cells / job.cell / "metrics.jsonl"

    def limit_is_near() -> None:
        wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, job.log)
        for pid in (*at_work(tmp_path, "serial").values(), os.getpid()):  # as Slurm does: every process of the job
            os.kill(pid, signal.SIGUSR2)

    threading.Thread(target=limit_is_near, daemon=True).start()
    outcome = run_job(str(job.file))
    assert outcome.status == "timed out"
    assert "its time limit is near" in outcome.reason
    assert (metrics.parent / "checkpoint.safetensors").exists()
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


# ----------------------------------------------------------------------------------------------- with fake commands


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with Slurm's commands: the queue says what stands in ``states``, what is submitted is kept."""
    folder = tmp_path / "commands"
    folder.mkdir()
    scripts = {
        "srun": "",
        "sbatch": f'cp "$1" {folder}/submitted; echo Submitted batch job 77',
        "squeue": f"cat {folder}/states",
        "scancel": f'echo "$@" >> {folder}/cancelled',
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "_RESULTS_EVERY_S", 0.01)
    monkeypatch.setattr(slurm, "_QUEUE_EVERY_S", 0.0)
    return folder


def on_gpus(out: Path, **options: object) -> tuple[Slurm, list[Job]]:
    """A backend that asks for GPUs, of which there is none here, and three jobs."""
    backend = Slurm(out / "jobs" / "slurm", "cuda", jobs=2, options=options)
    settings = ({**SELECTION, "data.validation": share} for share in (0.1, 0.2, 0.3))
    return backend, [a_job(out, settings=given, execution=backend.execution) for given in settings]


def test_requests_are_the_largest_of_the_jobs(commands: Path, tmp_path: Path) -> None:
    (commands / "states").write_text("77_0 PENDING\n77_1 PENDING\n77_2 PENDING\n")
    backend, (first, second, third) = on_gpus(tmp_path, partition="gpu", cpus_per_task=4)
    needed = (100 * 2**20, 3 * 2**30, 200 * 2**20)
    jobs = [replace(j, memory_bytes=memory) for j, memory in zip((first, second, third), needed, strict=True)]
    with closing(backend.run(jobs)) as ended, pytest.raises(KeyboardInterrupt):
        interrupt_when((commands / "submitted").exists, lambda: next(ended))
    script = (commands / "submitted").read_text()
    lines = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"mem=3072M", "gpus-per-node=1", "array=0-2%2", "partition=gpu", "cpus-per-task=4"} <= lines
    assert "srun " in script
    assert " --cpus-per-task=4 " in script
    assert (commands / "cancelled").read_text() == "77\n"
    assert [job.cell.execution.threads for job in jobs] == [4] * 3
    assert rows(tmp_path, "failed") == []


def interrupt_when(seen: Callable[[], bool], work: Callable[[], object]) -> None:
    """Do ``work``, and press Ctrl-C as soon as ``seen``."""

    def press() -> None:
        wait_for(seen, Path())
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    hearing = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        threading.Thread(target=press, daemon=True).start()
        work()
    finally:
        signal.signal(signal.SIGINT, hearing)


def test_time_limit_is_that_of_the_partition_or_follows_the_timeout(commands: Path, tmp_path: Path) -> None:
    (commands / "states").write_text("")
    for timeout_s, expected in ((None, None), (7200.0, "time=125")):
        backend = Slurm(tmp_path / "jobs" / "slurm", timeout_s=timeout_s)
        job = a_job(tmp_path, execution=backend.execution)
        backend._submit([job])
        limits = [line[10:] for line in (commands / "submitted").read_text().splitlines() if "SBATCH --time" in line]
        assert limits == ([expected] if expected else [])
        assert job.freeze(timeout_s).timeout_s == timeout_s


def test_memory_is_asked_for_as_planned_unless_the_user_asks(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_LOST_AFTER_S", 0.0)
    (commands / "states").write_text("77_0 FAILED\n")
    changes = [word for name, value in TESLA.items() for word in ("--set", f"{name}={value}")]
    words = ["run", "--method", "tesla", "--preset", "smoke", *changes, "--no-baseline", "--backend", "slurm"]

    def asked(*options: str) -> list[str]:
        result = command(*words, *options, "--out", tmp_path)
        assert result.exit_code == 1, result.output  # Slurm ends it
        return [line[10:] for line in (commands / "submitted").read_text().splitlines() if "SBATCH --mem" in line]

    cell = a_job(tmp_path, "tesla", TESLA).cell
    peak = largest_peak(cell, PredictedMeter(), cell.pending())
    assert peak
    needed = 2 * 2**30 + cell.dataset.x_train.nbytes + 1.4 * peak
    assert asked() == [f"mem={math.ceil(int(needed) / 2**20)}M"]
    assert asked("--device", "cuda") == [f"mem={math.ceil((needed - 1.4 * peak) / 2**20)}M"]
    assert asked("--backend-option", "mem=9G") == ["mem=9G"]
    assert asked("--backend-option", "mem_per_cpu=3G") == ["mem-per-cpu=3G"]


def test_no_memory_is_asked_for_where_that_of_a_job_is_not_known(commands: Path, tmp_path: Path) -> None:
    backend, (first, second, third) = on_gpus(tmp_path)
    backend._submit([replace(first, memory_bytes=2**30), replace(second, memory_bytes=3 * 2**30), third])
    assert "SBATCH --mem" not in (commands / "submitted").read_text()


def test_threads_are_a_number(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("abc", "0", "-1", "1.5"):
        with pytest.raises(
            UsageError, match=rf"--backend-option cpus_per_task must be a positive whole number, not '{value}'"
        ):
            Slurm(tmp_path, options={"cpus_per_task": value})
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # a number a level of nested loops: the outer one's is meant
    assert Slurm(tmp_path).execution.threads == 4
    assert Slurm(tmp_path, options={"cpus_per_task": 3}).execution.threads == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(UsageError, match="OMP_NUM_THREADS must be a positive whole number, not 'many'"):
        Slurm(tmp_path)


def test_unknown_cluster(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown cluster 'debgu'. Did you mean 'debug'\? Known: debug, slurm"):
        Slurm(tmp_path, options={"cluster": "debgu"})


def test_tasks_that_slurm_ends_become_rows(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_LOST_AFTER_S", 0.1)
    (commands / "states").write_text("77_0 TIMEOUT\n77_1 OUT_OF_MEMORY\n12 RUNNING\n")
    backend, jobs = on_gpus(tmp_path)
    outcomes = sweep(jobs, backend)
    assert outcomes == [
        Outcome("timed out", "timed out (Slurm: TIMEOUT)", 1),
        Outcome("out of memory", "out of memory (Slurm: OUT_OF_MEMORY)", 1),
        Outcome("killed", "killed (Slurm: the job is gone)", 1),
    ]
    assert not (commands / "cancelled").exists()
    for row in rows(tmp_path, "failed"):
        assert row["hardware"] == row["environment"]["hardware"] == "unknown: a node of the cluster"
        assert (row["environment"]["device"], row["environment"]["backend"]) == ("cuda", "slurm")


def test_queue_that_does_not_answer_loses_nothing(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_LOST_AFTER_S", 0.0)
    backend, jobs = on_gpus(tmp_path)
    assert not (commands / "states").exists()  # squeue fails
    with closing(backend.run(jobs)) as ended, pytest.raises(KeyboardInterrupt):
        interrupt_when((commands / "submitted").exists, lambda: next(ended))
    assert rows(tmp_path, "failed") == []


def test_slurm_that_refuses(commands: Path, tmp_path: Path) -> None:
    (commands / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2; exit 1\n")
    backend, jobs = on_gpus(tmp_path, partition="x")
    with pytest.raises(DcbenchError, match=r"Slurm rejected the jobs: .*invalid partition specified: x"):
        sweep(jobs, backend)


def test_unknown_option_and_no_slurm_at_all(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--backend-option: Unavailable parameter\(s\): \['partitoin'\]"):
        Slurm(tmp_path, options={"partitoin": "x"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no Slurm here \(no srun\): choose --backend local"):
        Slurm(tmp_path)


# --------------------------------------------------------------------------------------------------- a real one


CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def real_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a Slurm of one node, this machine, without accounting; Debian's slurm-wlm and munge."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "srun", "sbatch") if shutil.which(name) is None]
    if "DCBENCH_TEST_SLURM" not in os.environ:  # it starts daemons, for minutes
        pytest.skip("starts a Slurm of one node: asked for by DCBENCH_TEST_SLURM=1")
    if missing:
        pytest.skip(f"no {', '.join(missing)} here (apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("only root can start Slurm's daemons")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, file, log = folder / "munge.key", folder / "slurm.conf", folder / "log"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    file.write_text(CONFIGURATION.format(folder=folder, host=host, ports=free_ports(2)))
    environment = {**os.environ, "SLURM_CONF": str(file)}
    munge = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    munge |= {"seed-file": folder / "munged.seed"}
    daemons = [
        ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in munge.items())],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D"],
    ]
    running = []
    try:
        with log.open("w") as output:
            for daemon in daemons:
                running.append(subprocess.Popen(daemon, stdout=output, stderr=output, env=environment))
                wait_for((folder / "munge.socket").exists, log)
        idle = ["sinfo", "--noheader", "--format=%T"]
        wait_for(lambda: subprocess.run(idle, env=environment, capture_output=True).stdout == b"idle\n", log)
        yield file
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def test_real_slurm_gives_what_local_gives(real_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(real_slurm))
    on_cluster = Slurm(tmp_path / "slurm" / "jobs" / "slurm", jobs=2, timeout_s=900)
    here = Local("cpu", jobs=2)
    assert on_cluster.execution.threads == here.execution.threads == 1
    wanted = [("random", SELECTION), ("dm", {**SELECTION, "iterations": 3}), ("tesla", TESLA), ("tesla", DIVERGES)]
    found: dict[str, list[Outcome]] = {}
    for name, backend in (("local", here), ("slurm", on_cluster)):
        jobs = [a_job(tmp_path / name, m, s, backend.execution) for m, s in wanted]
        endless = a_job(tmp_path / name, "tesla", ENDLESS, backend.execution)
        if name == "slurm":
            threading.Thread(target=cancel_first, args=(tmp_path / name,), daemon=True).start()
            killed, *found[name] = sweep([endless, *jobs], backend)
        else:
            found[name] = sweep(jobs, backend)
    assert found["slurm"] == found["local"]
    assert [outcome.status for outcome in found["slurm"]] == ["ok", "ok", "ok", "diverged"]
    assert killed.status == "killed"  # the one that was cancelled: scancel takes no other with it
    evaluated = [{r["key"]: (r["cell"], r["accuracy"]) for r in rows(tmp_path / n, "evaluate")} for n in found]
    assert len(evaluated[0]) == 3
    assert evaluated[0] == evaluated[1]
    for path in (tmp_path / "local" / "cells").glob("*/distilled.safetensors"):
        assert path.read_bytes() == (tmp_path / "slurm" / path.relative_to(tmp_path / "local")).read_bytes()
    statuses = {row["cell"]: row["status"] for row in rows(tmp_path / "slurm", "failed")}
    assert sorted(statuses.values()) == ["diverged", "killed"]


def cancel_first(out: Path) -> None:
    """Cancel the first task of the array as soon as it computes."""
    wait_for(lambda: any("tesla" in name for name in at_work(out, "slurm")), out)
    shown = subprocess.run(["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True)
    (first,) = (task for task in shown.stdout.split() if task.endswith("_0"))
    subprocess.run(["scancel", first], check=True)
