"""Temporary files of killed processes are removed, those of running ones stay, and no export is lost by a kill."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dcbench_tesla.data import cache
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import UsageError
from dcbench_tesla.exchange import Given, export_set, find_set, import_set
from dcbench_tesla.exchange.folders import SET, read_export
from dcbench_tesla.records import leftovers
from dcbench_tesla.records.leftovers import bring_back, exchange, sweep, temporary_path
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


EXPORT = """
from dcbench_tesla.exchange import export_set
from dcbench_tesla.records import leftovers
from tests.test_faults_leftovers import a_set
count, rename = iter(range(9)), Path.rename
def killed(source, target):
    if next(count) == after:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target)
Path.rename = killed
export_set(a_set(2.0), 'tensors', path, force=True)
"""


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


# ------------------------------------------------------------------------------------------ exports that are replaced


def a_set(value: float) -> DistilledSet:
    """A set of two images whose pixels have one value."""
    return DistilledSet(
        images=torch.full((2, 1, 4, 4), value),
        labels=torch.arange(2),
        class_names=("a", "b"),
        preprocessing=Preprocessing("standardise", torch.zeros(1), torch.ones(1)),
        augmentation="none",
    )


def killed_export(path: Path, after: int) -> int:
    """Replace an export in a process that is killed before its renaming number ``after``."""
    code = f"import os, signal\nfrom pathlib import Path\npath, after = Path({str(path)!r}), {after}\n{EXPORT}"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def value_in(path: Path) -> float:
    return float(read_export(path)[0].images.mean())


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("by", ["export", "import of the folder", "import of its file", "the file as a source"])
def test_export_whose_replacement_was_killed_is_found_again(after: int, by: str, tmp_path: Path) -> None:
    out = tmp_path / "an [export]"
    export_set(a_set(1.0), "tensors", out)
    assert killed_export(out, after) == -signal.SIGKILL
    assert out.exists() == (after == 0)
    if by == "import of the folder":
        assert import_set(out, Given())[0].images.mean() == 1.0
    elif by == "import of its file":
        assert import_set(out / SET, Given())[0].images.mean() == 1.0
    elif by == "the file as a source":
        assert DistilledSet.load(find_set(out / SET)).images.mean() == 1.0
    with pytest.raises(UsageError, match="is not empty"):
        export_set(a_set(3.0), "tensors", out)  # there is an export, which only --force replaces
    assert value_in(out) == 1.0
    leftovers._swept.clear()  # the new export that was not finished is swept by another process than this one
    export_set(a_set(3.0), "tensors", out, force=True)
    assert value_in(out) == 3.0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_export_that_was_replaced_before_the_kill_is_the_new_one(tmp_path: Path) -> None:
    out = tmp_path / "export"
    export_set(a_set(1.0), "tensors", out)
    shutil.copytree(out, leftover_folder(out))
    export_set(a_set(2.0), "tensors", out, force=True)
    assert value_in(out) == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def leftover_folder(path: Path) -> Path:
    """Return where a process that is gone had moved ``path`` aside."""
    return path.with_name(re.sub(r"\.\d+\.", f".{2**22 + 1}.", temporary_path(path).name) + ".old")


def test_export_that_a_running_process_replaces_is_left_to_it(another: int, tmp_path: Path) -> None:
    aside = tmp_path / re.sub(r"\.\d+\.", f".{another}.", f"{temporary_path(tmp_path / 'export').name}.old")
    aside.mkdir()
    bring_back(tmp_path / "export")
    assert aside.exists()
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("name", ["export.old", ".export.old", ".export.1.2.old", ".b.4194305.0123456789abcdef.old"])
def test_folders_of_others_are_no_exports_moved_aside(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    os.utime(tmp_path / name, (0, 0))
    bring_back(tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_exchange_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept").write_text("")
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "never made", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "kept").exists()


# ------------------------------------------------------------------------------------------- the cache of large images


def test_cache_of_a_killed_process_is_swept_and_those_of_others_stay(another: int, tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom dcbench_tesla.data import cache\n"
        "def half(folder, split):\n    folder.mkdir()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"cache._write = half\ncache.make(Path({str(tmp_path / 'data')!r}), lambda: None)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.iterdir() if path.name != "data.lock")
    theirs = tmp_path / re.sub(r"\.\d+\.", f".{another}.", temporary_path(tmp_path / "data").name)
    theirs.mkdir()
    image = np.zeros((2, 1, 4, 4), dtype=np.uint8), np.arange(2, dtype=np.int64)
    cache.make(tmp_path / "data", lambda: cache.Split([image], [image], ["a", "b"]))
    assert not left.exists()
    assert theirs.exists()
    assert (tmp_path / "data" / "meta.json").exists()
