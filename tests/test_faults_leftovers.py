"""Temporary files of killed processes are removed, and those of running ones stay."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dcbench_tesla.records import leftovers
from dcbench_tesla.records.leftovers import sweep, temporary_path
from dcbench_tesla.records.store import atomic_path, load_tensors, save_tensors, write_text

KILLED = {
    "text": (
        "from dcbench_tesla.records.store import atomic_path\n"
        "with atomic_path(path) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    ),
    "tensors": (
        "import torch, safetensors.torch\n"
        "from dcbench_tesla.records.store import save_tensors\n"
        "def half(tensors, file, metadata):\n"
        "    (Path(file).parent / '.tmpAbCdEf').write_bytes(b'half')  # as safetensors names what it writes\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "safetensors.torch.save_file = half\n"
        "save_tensors(path, {'x': torch.zeros(3)}, {})\n"
    ),
}


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_swept", set())


def killed(kind: str, path: Path) -> None:
    """Write ``path`` in a process that is killed on the way."""
    code = f"import os, signal\nfrom pathlib import Path\npath = Path({str(path)!r})\n{KILLED[kind]}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", KILLED)
def test_what_a_killed_process_left_is_removed_by_the_next_one(kind: str, tmp_path: Path) -> None:
    killed(kind, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] != []
    write_text(tmp_path / "b", "")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_tensors_leave_nothing_else(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", {"x": torch.ones(3)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert load_tensors(tmp_path / "a")[0]["x"].tolist() == [1, 1, 1]


@pytest.fixture
def another() -> Iterator[int]:
    """The number of a process that runs."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def leftover(folder: Path, pid: int, *, place: str | None = None, age_s: float = 0) -> Path:
    """Make a temporary file of process ``pid``."""
    own = temporary_path(folder / "row.json")
    number = re.sub(r"\.\d+\.", f".{pid}.", own.name)
    path = own.with_name(number if place is None else f".row.json.{pid}.{place}")
    path.write_text("half")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_file_of_a_running_process_stays(another: int, tmp_path: Path) -> None:
    mine, theirs = leftover(tmp_path, os.getpid()), leftover(tmp_path, another)
    with atomic_path(tmp_path / "c"):
        pass
    assert mine.exists()
    assert theirs.exists()


def test_number_that_was_given_to_another_process(another: int, tmp_path: Path) -> None:
    old = leftover(tmp_path, another, age_s=3600)  # older than the process of this number
    sweep(tmp_path)
    assert not old.exists()


@pytest.mark.parametrize("place", ["0" * 16, "0" * 8])
def test_process_that_cannot_be_seen_from_here(place: str, tmp_path: Path) -> None:
    nobody = 2**22 + 1  # more than any process has
    fresh, old = (leftover(tmp_path, nobody + i, place=place, age_s=i * 25 * 3600) for i in (0, 1))
    sweep(tmp_path)
    assert fresh.exists()
    assert not old.exists()


@pytest.mark.parametrize("name", [".hidden", "row.json", ".tmpAbCdEf", ".a.12.txt", ".a.x.0123456789abcdef", ".a.1.0"])
def test_files_of_others_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    os.utime(tmp_path / name, (0, 0))
    sweep(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").write_text("")
    link = re.sub(r"\.\d+\.", f".{2**22 + 1}.", temporary_path(tmp_path / "a").name)
    (tmp_path / link).symlink_to(tmp_path / "target")
    sweep(tmp_path)
    assert not (tmp_path / link).is_symlink()
    assert (tmp_path / "target" / "kept").exists()


def test_folder_that_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    sweep(tmp_path / "nothing")
