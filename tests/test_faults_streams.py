"""Standard streams that are closed, full, gone, or limited to ASCII stop no work."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dcbench_tesla.records import progress
from dcbench_tesla.records.streams import Lasting, lasting_streams

ROOT = Path(__file__).resolve().parents[1]
RUN = "run --method random --dataset digits --preset smoke --no-baseline --device cpu --set data.train_images=100"
RUN += " --set convnet.epochs=1 --set convnet.width=4 --set evaluation.networks=1 --out {out}"
COMMANDS = {
    "info": "info tesla",
    "list": f"list cells --out {ROOT / 'results'}",
    "run": RUN,
    "compare": "compare accuracy --shipped --dataset fashion-mnist --ipc 1 --out {out}",
}
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def shell(command: str, streams: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``dcbench COMMAND`` in a shell that redirects its streams."""
    words = command.format(out=tmp_path / "out")
    return subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m dcbench_tesla {words} {streams}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        check=False,
        timeout=300,
    )


def check_kept(name: str, out: Path) -> None:
    """Check that a command's work is kept under ``out``."""
    if name == "run":
        assert len(list(out.glob("rows/evaluate-*.json"))) == 1
        assert not list(out.glob("rows/failed-*.json"))
    if name == "compare":
        assert (out / "tables" / "accuracy.md").is_file()


@pytest.mark.parametrize("name", COMMANDS)
def test_closed_streams(name: str, tmp_path: Path) -> None:
    done = shell(COMMANDS[name], ">&- 2>&- <&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    check_kept(name, tmp_path / "out")


@pytest.mark.parametrize(("streams", "there"), [(">&-", "stderr"), ("2>&-", "stdout")])
def test_one_stream_is_closed(streams: str, there: str, tmp_path: Path) -> None:
    done = shell("info nothing-of-this-name", streams, tmp_path)
    assert done.returncode == 2
    said = b"unknown method, evaluator, data set or network" in done.stderr
    assert said == (there == "stderr")
    assert done.stdout == b""  # a message never ends up among results


def test_what_is_opened_next_is_no_standard_stream(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from dcbench_tesla.records.streams import lasting_streams\n"
        "with lasting_streams():\n"
        f"    file = open({str(tmp_path / 'row')!r}, 'w')\n"
        "    os.write(1, b'what a library prints')\n"
        "    os._exit(0 if file.fileno() > 2 else 9)\n"
    )
    done = subprocess.run(["sh", "-c", f'exec {sys.executable} -c "$1" >&- 2>&- <&-', "sh", code], check=False)
    assert done.returncode == 0
    assert (tmp_path / "row").read_text() == ""


@needs_full
@pytest.mark.parametrize("name", ["info", "list", "compare"])
def test_full_standard_output_keeps_the_work_and_fails(name: str, tmp_path: Path) -> None:
    done = shell(COMMANDS[name], "> /dev/full", tmp_path)
    assert done.returncode == 1
    errors = [line for line in done.stderr.decode().splitlines() if "rror" in line or "Traceback" in line]
    assert errors == ["Error: standard output cannot be written: No space left on device. What was done is kept."]
    check_kept(name, tmp_path / "out")


@needs_full
def test_full_streams_stop_no_run(tmp_path: Path) -> None:
    done = shell(RUN, "> /dev/full 2> /dev/full", tmp_path)
    assert done.returncode == 1  # the table that was asked for is nowhere
    check_kept("run", tmp_path / "out")


@needs_full
def test_full_standard_error_loses_messages_only(tmp_path: Path) -> None:
    done = shell(COMMANDS["compare"], "2> /dev/full", tmp_path)
    assert done.returncode == 0
    assert "fashion-mnist" in done.stdout.decode()
    check_kept("compare", tmp_path / "out")


ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


@pytest.mark.parametrize(("name", "environment"), [("list", ASCII[0]), ("list", ASCII[1]), ("run", ASCII[0])])
def test_output_that_can_only_be_ascii(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    done = shell(COMMANDS[name], "", tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert " ? " in done.stdout.decode("ascii")  # accuracies with their spread
    assert b"Traceback" not in done.stderr
    check_kept(name, tmp_path / "out")


def test_reader_that_has_enough(tmp_path: Path) -> None:
    done = shell("list methods", "| head -n 1", tmp_path)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == b""


# ------------------------------------------------------------------------------------------------------- the mechanism


class Broken(io.StringIO):
    """A stream that cannot be written."""

    def write(self, text: str, /) -> int:
        raise OSError(5, "Input/output error")


def test_first_error_is_kept_and_none_is_raised() -> None:
    stream = Lasting(Broken())
    assert stream.write("one") == 3
    first = stream.error
    stream.write("two")
    stream.flush()
    assert isinstance(first, OSError)
    assert stream.error is first


def test_closed_stream() -> None:
    inner = io.StringIO()
    inner.close()
    stream = Lasting(inner)
    print("one", file=stream, flush=True)
    assert isinstance(stream.error, ValueError)
    assert not stream.isatty()


def test_only_what_cannot_be_encoded_is_replaced() -> None:
    inner = io.BytesIO()
    stream = Lasting(io.TextIOWrapper(inner, encoding="latin-1"))
    print("73.8 ± 1.0 → ok", file=stream, flush=True)
    assert inner.getvalue().decode("latin-1") == "73.8 ± 1.0 ? ok\n"


@pytest.mark.parametrize("stream", [None, Broken()])
def test_python_without_a_console(stream: Broken | None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", written)
    progress.say("a line")
    with progress.bar("work", 2) as shown:
        shown.advance()
    assert written.getvalue() == ""  # progress is no result


def test_terminal_that_is_gone_stops_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Broken):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Gone())
    with progress.bar("work", 2) as shown:
        shown.advance(2)
    assert shown.done == 2


def test_streams_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with lasting_streams() as streams:
        assert sys.stdout is streams.output
    assert (sys.stdout, sys.stderr) == before


# ------------------------------------------------------------------------------------------------- the tests themselves


def pytest_with(test: str, folder: Path, *words: str) -> str:
    """Run a test file with this project's configuration where SIGINT is ignored, as in a shell's background."""
    (folder / "test_made.py").write_text(test)
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), *words]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = subprocess.run([*command, "test_made.py"], capture_output=True, text=True, cwd=folder, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("words", [(), ("-q",), ("-q", "-q")])
def test_reasons_of_skips_are_printed(words: tuple[str, ...], tmp_path: Path) -> None:
    test = "import pytest\n\n@pytest.mark.skip(reason='no unicorn is here')\ndef test_it(): ...\n"
    assert "no unicorn is here" in pytest_with(test, tmp_path, *words)


def test_ctrl_c_is_heard_where_the_shell_ignores_it(tmp_path: Path) -> None:
    test = (
        "import signal, subprocess, sys, pytest\n"
        "def test_here():\n"
        "    with pytest.raises(KeyboardInterrupt):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "def test_in_a_process():\n"
        "    code = 'import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)'\n"
        "    assert subprocess.check_output([sys.executable, '-c', code], text=True) == 'True\\n'\n"
    )
    assert "2 passed" in pytest_with(test, tmp_path)
