"""The command line: its names, its help, one message for everything a user can get wrong, and Ctrl-C."""

import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from dcbench_tesla import registry
from dcbench_tesla.cli import main
from dcbench_tesla.cli.common import short_lived
from dcbench_tesla.records.store import read_meta, save_tensors
from tests import fixtures_data as fixtures

COMMAND_LINE = {
    "run": [
        "--method",
        "--dataset",
        "--ipc",
        "--evaluator",
        "--seed",
        "--preset",
        "--set",
        "--config",
        "--tuned",
        "--device",
        "--data-dir",
        "--out",
        "--memory-budget",
        "--backend",
        "--jobs",
        "--timeout",
        "--backend-option",
        "--log",
        "--compile",
        "--energy",
        "--force",
        "--no-baseline",
        "--dry-run",
        "--json",
        "-q",
        "-v",
    ],
    "experts": [
        "--dataset",
        "--count",
        "--epochs",
        "--method",
        "--ipc",
        "--preset",
        "--set",
        "--device",
        "--data-dir",
        "--out",
        "--compile",
    ],
    "tune": [
        *("methods", "--dataset", "--ipc", "--trials", "--search", "--evaluator", "--seed", "--batch", "--preset"),
        *("--set", "--device", "--data-dir", "--out", "--backend", "--jobs", "--timeout", "--backend-option"),
        *("--compile", "--json", "-q", "-v"),
    ],
    "evaluate": [
        *("targets", "--evaluator", "--dataset", "--seed", "--preset", "--set", "--device", "--data-dir"),
        *("--out", "--force"),
    ],
    "verify": [
        *("file", "--claim", "--std", "--claim-networks", "--networks", "--evaluator", "--dataset", "--seed"),
        *("--preset", "--set", "--device", "--data-dir", "--out"),
    ],
    "list": [
        *("what", "--method", "--dataset", "--status", "--last", "--sort", "--data-dir", "--out", "--shipped"),
        "--json",
    ],
    "show": ["cell", "--out", "--shipped", "--json"],
    "clean": ["what", "--out", "-y", "--all", "--json"],
    "info": ["name", "--data-dir", "--picture", "--json"],
    "new": [],
    "new method": ["name", "--folder"],
    "env": ["--data-dir", "--json"],
    "check-method": ["name"],
    "check-evaluator": ["name"],
    "compare": [],
    "compare accuracy": [
        "--dataset",
        "--method",
        "--ipc",
        "--evaluator",
        "--preset",
        "--labels",
        "--statistic",
        "--interval",
        "--plot",
        "--out",
        "--shipped",
        "--json",
    ],
    "compare regimes": [
        *("--dataset", "--method", "--ipc", "--evaluator", "--preset", "--out", "--shipped", "--json"),
    ],
    "compare scores": [
        *("--dataset", "--method", "--ipc", "--evaluator", "--preset", "--out", "--shipped", "--json"),
    ],
    "compare memory": [
        *("--method", "--dataset", "--steps", "--batch-size", "--width", "--depth", "--set", "--ipc", "--against"),
        *("--meter", "--device", "--out", "--json"),
    ],
    "compare time": [
        *("--method", "--dataset", "--steps", "--batch-size", "--width", "--depth", "--set", "--ipc", "--against"),
        *("--compile", "--repetitions", "--device", "--out", "--json"),
    ],
    "compare gradient": [
        *("--method", "--dataset", "--ipc", "--steps", "--student-lr", "--repetitions", "--preset", "--set"),
        *("--device", "--data-dir", "--out", "--json"),
    ],
    "plan": [
        *("table", "--dataset", "--ipc", "--method", "--preset", "--evaluator", "--seed", "--set", "--config"),
        *("--device", "--data-dir", "--out", "--shipped", "--json", "-q", "-v"),
    ],
    "report": ["--out", "--shipped", "--output", "--all-pictures"],
    "merge": ["sources", "--out", "--no-tensors", "--experts"],
    "reproduce": [],
    "reproduce figure1": [
        *("--dataset", "--method", "--run", "--compile", "--extrapolate", "--device", "--out", "--shipped", "--force"),
    ],
    **{
        f"reproduce {what}": [
            *("--dataset", "--ipc", "--method", "--preset", "--run", "--device", "--data-dir", "--out"),
            *("--shipped", "--backend", "--jobs", "--timeout", "--backend-option", "--log", "--compile", "--force"),
        ]
        for what in ("table1", "table2", "table3", "related", "figure2", "all")
    },
    "import": [],
    "import set": [
        *("files", "--output", "--dataset", "--labels", "--hard-labels", "--index", "--lr", "--no-lr"),
        *("--preprocessing", "--augmentation", "--method", "--ipc", "--ignore-side-file", "--force", "--data-dir"),
    ],
    "import experts": [
        *("files", "--dataset", "--zca", "--preprocessing", "--width", "--depth", "--train-images", "--validation"),
        *("--name", "--data-dir", "--out"),
    ],
    "export": ["source", "--format", "--output", "--force", "--out"],
}
SMALL = ["--preset", "smoke", "--device", "cpu", "--set", "data.train_images=100"]
SMALL += ["--set", "convnet.epochs=2", "--set", "convnet.width=4", "--set", "evaluation.networks=1"]


def dcbench(*words: object) -> Result:
    torch.set_num_threads(1)
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(result: Result, exit_code: int, *parts: object) -> str:
    """Check that a command ended in one message with ``parts`` in it and no traceback; return the message."""
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]  # one line, and the last one
    for part in parts:
        assert str(part) in errors[0]
    return errors[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with one finished cell in them."""
    out = tmp_path_factory.mktemp("results")
    result = dcbench("run", "--method", "random", *SMALL, "--out", out)
    assert result.exit_code == 0, result.output
    return out


# ---------------------------------------------------------------------------------------------------- names and help


def every_command(group: click.Group = main, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield the commands with their names, those of groups within the group too: ``compare accuracy``."""
    for name, command in group.commands.items():
        yield before + name, command
        if isinstance(command, click.Group):
            yield from every_command(command, f"{before}{name} ")


def test_names_of_commands_and_options_stay() -> None:
    found = {
        name: [p.opts[0] if isinstance(p, click.Option) else str(p.name) for p in command.params]
        for name, command in every_command()
    }
    assert found == COMMAND_LINE


@pytest.mark.parametrize("option", ["method", "dataset", "ipc", "evaluator", "seed", "set", "backend-option", "log"])
def test_options_that_may_be_given_several_times(option: str) -> None:
    (found,) = (p for p in main.commands["run"].params if f"--{option}" in p.opts)
    assert isinstance(found, click.Option)
    assert found.multiple


@pytest.mark.parametrize(
    "words", [[], *(name.split() for name in COMMAND_LINE)], ids=lambda words: " ".join(words) or "dcbench"
)
def test_help_has_examples(words: list[str]) -> None:
    for option in ("--help", "-h"):
        result = dcbench(*words, option)
        assert result.exit_code == 0
        assert re.search(r"Examples?:\n +dcbench ", result.stdout)


@pytest.mark.parametrize("width", [80, 50])
@pytest.mark.parametrize("words", [[], *(name.split() for name, c in every_command() if isinstance(c, click.Group))])
def test_help_shows_whole_summaries_of_commands(words: list[str], width: int) -> None:
    """In a line each where the terminal has 80 columns, and never cut off by dots."""
    result = CliRunner().invoke(main, [*words, "--help"], terminal_width=width)
    lines = result.stdout.partition("\nCommands:\n")[2].splitlines()
    group: click.Group = main
    for word in words:
        found = group.commands[word]
        assert isinstance(found, click.Group)
        group = found
    assert lines
    assert not any(line.endswith("...") for line in lines)
    told = re.split(r"\n {2}(?=\S)", "\n" + "\n".join(lines))[1:]
    assert len(told) == len(group.commands)
    for text, name in zip(told, sorted(group.commands), strict=True):
        summary = " ".join(text.split()[1:])
        assert (group.commands[name].help or "").replace("\n", " ").startswith(summary)
        assert summary.endswith(".")
    assert width < 80 or len(lines) == len(told)


def test_every_option_is_explained() -> None:
    for _, command in every_command():
        for p in command.params:
            assert not isinstance(p, click.Option) or p.help, (command.name, p.name)


def test_version() -> None:
    assert re.match(r"dcbench, version \d", dcbench("--version").stdout)


LIGHT = [
    ["--help"],
    ["run", "--help"],
    ["list", "methods"],
    ["list", "evaluators"],
    ["list", "networks"],
    ["list", "datasets"],
    ["info", "cifar10"],
]


def test_help_and_listings_import_nothing_heavy() -> None:
    code = f"""
import json, sys
from dcbench_tesla.cli import main
from dcbench_tesla.cli.common import short_lived
for words in {LIGHT}:
    try:
        main(words, standalone_mode=False)
    except SystemExit:
        pass
    heavy = {{"torch", "torchvision", "kornia", "sklearn", "scipy", "numpy"}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "tesla-exact" in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.5 * len(LIGHT)


# ------------------------------------------------------------------------------------------------------ unknown names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--method", "tesl"], "unknown method 'tesl'. Did you mean 'tesla'?"),
        (["run", "--method", "random", "--dataset", "digit"], "unknown data set 'digit'. Did you mean 'digits'?"),
        (["run", "--method", "random", "--evaluator", "convnt"], "unknown evaluator 'convnt'. Did you mean 'convnet'?"),
        (["run", "--method", "random", "--preset", "smok"], "unknown preset 'smok'. Did you mean 'smoke'?"),
        (["run", "--method", "tesla", "--set", "stpes=3"], "unknown setting 'stpes'. Did you mean 'steps'?"),
        (["run", "--method", "tesla", "--set", "network.widht=3"], "Did you mean 'network.width'?"),
        (["run", "--method", "tesla", "--set", "steps"], "--set takes key=value"),
        (["run", "--method", "tesla", "--set", "student_lr=-0.1"], "student_lr must be positive"),
        (["run", "--method", "tesla", "--set", "experts.lr=-0.1"], "experts.lr must be positive and finite, not -0.1."),
        (["run", "--method", "random", "--set", "experts.count=3"], "setting experts.count has no effect"),
        (["run", "--method", "random", "--device", "cdua"], "device 'cdua' is not supported: cpu and cuda are."),
        (["run", "--method", "random", "--device", "meta"], "device 'meta' is not supported: cpu and cuda are."),
        (["run", "--method", "random", "--ipc", "ten"], "'ten' is not a valid integer"),
        (["run", "--methd", "random"], "No such option"),
        (
            ["run"],
            "no method: give --method NAME. Known: cafe, class-means, datm, dc, dd, dm, dsa, frepo, ftd",
        ),
        (["rnu"], "unknown command 'rnu'. Did you mean 'run'?"),
        (["list", "method"], "unknown listing 'method'. Did you mean 'methods'?"),
        (["list"], "Missing argument"),
        (["info", "tesl"], "unknown method, evaluator, data set or network 'tesl'. Did you mean 'tesla'?"),
        (["check-method", "tesl"], "unknown method 'tesl'. Did you mean 'tesla'?"),
        (["experts", "--dataset", "digit"], "unknown data set 'digit'. Did you mean 'digits'?"),
        (["experts", "--method", "random"], "method random uses no experts"),
        (["experts", "--count", "0"], "experts.count must be at least 1, not 0."),
        (["experts", "--epochs", "0"], "--epochs must be at least 1, not 0."),
        (
            ["evaluate", "no-such-file.safetensors"],
            "there is no file no-such-file.safetensors, and no cell of that name",
        ),
        (["evaluate", "pyproject.toml", "--preset", "smok"], "Did you mean 'smoke'?"),
    ],
)
def test_usage_is_refused_with_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if words[0] in ("run", "experts") else []
    refused(dcbench(*words, *out), 2, message)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_where_there_is_none(tmp_path: Path) -> None:
    refused(dcbench("run", "--method", "random", "--device", "cuda", "--out", tmp_path), 2, "try cpu")


@pytest.mark.parametrize(
    ("ipc", "message"), [(0, "at least 1, not 0"), (-3, "at least 1, not -3"), (999, "IPC 999 is more")]
)
@pytest.mark.parametrize("method", ["random", "tesla"])
def test_ipc_out_of_range(ipc: int, message: str, method: str, tmp_path: Path) -> None:
    refused(dcbench("run", "--method", method, "--ipc", ipc, "--preset", "smoke", "--out", tmp_path), 2, message)


def test_ipc_of_exactly_the_smallest_class(tmp_path: Path) -> None:
    arguments = ["run", "--method", "random", *SMALL, "--out", tmp_path, "--dry-run"]
    assert dcbench(*arguments, "--ipc", 10).exit_code == 0
    message = refused(dcbench(*arguments, "--ipc", 11), 2, "choose a smaller --ipc")
    assert "the 10 training images of digits's smallest class" in message


# ------------------------------------------------------------------------------------------------------ what can fail


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data sets and without a network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("DCBENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "tiny-imagenet", "imagenet1k-64"])
def test_data_set_without_files(name: str, no_data: Path, tmp_path: Path) -> None:
    result = dcbench("run", "--method", "tesla", "--dataset", name, "--ipc", 10, "--out", tmp_path / "out")
    refused(result, 1, name, no_data, "emedy")
    assert not list(tmp_path.rglob("*.json"))
    assert dcbench("info", name).exit_code == 0


def test_default_data_folder_is_named(no_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCBENCH_DATA")
    refused(
        dcbench("run", "--method", "tesla", "--dataset", "cifar10", "--out", tmp_path), 1, tmp_path / "home" / "cache"
    )


def test_npz_that_is_damaged_or_missing(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **fixtures.npz_arrays())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    arguments = ("run", "--method", "random", "--out", tmp_path / "out", "--dataset")
    refused(dcbench(*arguments, f"npz:{path}"), 1, path)
    refused(dcbench(*arguments, f"npz:{tmp_path / 'other.npz'}"), 1, "no such file")
    refused(dcbench(*arguments, f"folder:{tmp_path / 'none'}"), 1, tmp_path / "none")
    refused(dcbench(*arguments, f"npz:{tmp_path}"), 2, "is a folder")


def test_zca_of_large_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    np.savez(path, **fixtures.npz_arrays(side=64, train_per_class=4))
    arguments = ("run", "--method", "random", "--dataset", f"npz:{path}", "--set", "data.zca=true")
    refused(dcbench(*arguments, "--out", tmp_path / "out", "--preset", "smoke"), 2, "ZCA is not offered for 64 x 64")


@pytest.mark.parametrize(
    "command", [["run", "--method", "random", *SMALL], ["experts", "--preset", "smoke", "--count", "1"]]
)
def test_folder_for_results_that_cannot_be_written(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/dcbench")):
        message = refused(dcbench(*command, "--out", out), 1, out)
        assert "--out" in message
        assert (f"{tmp_path / 'file'} is a file, not a folder" in message) == (out.parts[1] != "proc")
        assert "Free space" not in message or out.parts[1] == "proc"
    assert (tmp_path / "file").read_text() == ""


@pytest.fixture(params=[8, 32, 64])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={request.param}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk(small_disk: Path) -> None:
    settings = ["network.width=4", "experts.count=2", "iterations=3", "steps=2", "evaluation.every=1"]
    sets = [word for text in settings for word in ("--set", text)]
    result = dcbench("run", "--method", "tesla", "--no-baseline", *SMALL, *sets, "--out", small_disk)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (message,) = (line for line in result.stderr.splitlines() if "No space left on device" in line)
    assert str(small_disk) in message
    assert "Free space there" in message


def test_missing_or_foreign_distilled_set(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("no tensors")
    save_tensors(tmp_path / "b", {"x": torch.zeros(1)}, {"format": "something else"})
    refused(dcbench("evaluate", tmp_path / "a"), 1, "is damaged, or is no distilled set of dcbench")
    refused(dcbench("evaluate", tmp_path / "b"), 1, "is not a distilled set of dcbench")


# ---------------------------------------------------------------------------------------------------------- commands


def test_dry_run_shows_time_and_memory_and_does_nothing(tmp_path: Path) -> None:
    words = ["run", "--method", "tesla", *SMALL, "--dry-run", "--out", tmp_path / "out"]
    result = dcbench(*words)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("tesla, ipc 1")]
    assert re.search(r"tesla, ipc 1 +\d+ (s|min) +[\d.]+ MiB +experts, condense, evaluate by convnet", line)
    assert "random, ipc 1" in result.stdout  # the baseline
    assert "data.train_images=100" in result.stdout
    shown = json.loads(dcbench(*words, "--json").stdout)["cells"]
    assert [cell["config"]["data"]["train_images"] for cell in shown] == [100, 100]
    assert shown[0]["stages"] == ["experts", "condense", "evaluate by convnet"]
    assert not (tmp_path / "out").exists()


def test_evaluate_prints_the_accuracy(results: Path, tmp_path: Path) -> None:
    (path,) = results.glob("cells/*/distilled.safetensors")
    arguments = [
        "evaluate",
        path,
        "--device",
        "cpu",
        "--preset",
        "smoke",
        "--set",
        "convnet.epochs=2",
        "--out",
        tmp_path,
    ]
    result = dcbench(*arguments, "--set", "evaluation.networks=2")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"convnet: \d+\.\d ± \d+\.\d % test accuracy over 2 networks \(.*, 2 epochs\)\n", result.stdout)
    np.savez(tmp_path / "other.npz", **fixtures.npz_arrays())
    told = f"has other classes or another image size than the distilled set {path}."
    refused(dcbench(*arguments, "--dataset", f"npz:{tmp_path / 'other.npz'}"), 2, told)
    refused(dcbench(*arguments, "--set", "steps=3"), 2, "setting steps has no effect here: only settings of the")


def test_set_of_ones_own_images_asks_for_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **fixtures.npz_arrays(train_per_class=12))
    arguments = ["--preset", "smoke", "--device", "cpu", "--set", "convnet.epochs=2"]
    result = dcbench("run", "--method", "random", "--dataset", f"npz:{path}", *arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (made,) = tmp_path.glob("cells/*/distilled.safetensors")
    refused(dcbench("evaluate", made, *arguments), 2, "give the files by --dataset")
    result = dcbench("evaluate", made, *arguments, "--dataset", f"npz:{path}", "--out", tmp_path)
    assert result.exit_code == 0, result.output


def test_experts_are_trained_once(tmp_path: Path) -> None:
    arguments = ["experts", "--dataset", "digits", "--count", 2, "--epochs", 1, "--preset", "smoke", "--device", "cpu"]
    arguments += ["--set", "data.train_images=100", "--set", "network.width=4", "--out", tmp_path]
    result = dcbench(*arguments)
    assert result.exit_code == 0, result.output
    files = sorted(tmp_path.rglob("epoch_*"))
    assert [path.name for path in files] == ["epoch_000.safetensors", "epoch_001.safetensors"] * 2
    assert str(files[0].parents[1]) in result.stdout
    before = [path.stat().st_mtime_ns for path in files]
    assert dcbench(*arguments).exit_code == 0
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("epoch_*"))] == before


@pytest.mark.parametrize("kind", ["methods", "evaluators", "networks"])
def test_lists_of_plugins(kind: registry.Kind) -> None:
    lines = dcbench("list", kind).stdout.splitlines()
    assert [line.split()[0] for line in lines] == registry.names(kind)
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_list_of_data_sets(no_data: Path) -> None:
    lines = {line.split()[0]: line for line in dcbench("list", "datasets").stdout.splitlines()}
    assert {*registry.names("datasets"), "npz:PATH", "folder:PATH"} <= lines.keys()
    assert "here" in lines["digits"]
    assert "not here" in lines["cifar10"]


def test_a_cell_is_found_by_its_name_under_out(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = (results / "cells").iterdir()
    shutil.copytree(results, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for words in (["evaluate", cell.name], ["export", cell.name, "--output", "exported"]):
        result = dcbench(*words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "exported" / "distilled.safetensors").is_file()
    assert dcbench("export", cell.name, "--output", "again", "--out", results).exit_code == 0
    told = "--out names another folder"
    refused(dcbench("evaluate", cell.name, "--out", "elsewhere"), 2, "no cell of that name under elsewhere", told)
    refused(dcbench("export", cell.name, "--output", "x", "--out", "elsewhere"), 2, "under elsewhere", told)


def test_list_of_cells(results: Path, tmp_path: Path) -> None:
    *_, line, _ = dcbench("list", "cells", "--out", results).stdout.splitlines()
    assert line.split()[:6] == ["random", "digits", "1", "0", "convnet", "smoke"]
    assert "convnet.epochs=2" in line
    assert "no finished cells" in dcbench("list", "cells", "--out", tmp_path).stdout
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "evaluate-0.json").write_text('{"half": ')
    damaged = dcbench("list", "cells", "--out", tmp_path)
    assert damaged.exit_code == 1  # though one damaged row does not hide the others
    assert "no finished cells" in damaged.stdout
    assert "evaluate-0.json is not valid JSON" in damaged.stderr


@pytest.mark.parametrize("kind", ["methods", "evaluators", "datasets", "networks"])
def test_info_of_every_plugin(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        result = dcbench("info", name)
        assert result.exit_code == 0, result.output
        assert "data set: " in result.stdout if kind == "datasets" else "version 1" in result.stdout
    assert re.search(r"steps +=", dcbench("info", "tesla").stdout)
    assert re.search(r"convnet\.epochs +=", dcbench("info", "convnet").stdout)


def test_env_names_what_a_bug_report_needs(tmp_path: Path) -> None:
    shown = dcbench("env", "--data-dir", tmp_path).stdout
    for part in ("processor", "threads", "GPU", "python", "torch ", torch.__version__.partition("+")[0], str(tmp_path)):
        assert part in shown


def test_check_method_reports_every_point() -> None:
    result = dcbench("check-method", "random")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) >= 8
    assert all(line.startswith("ok ") for line in lines)


# ------------------------------------------------------------------------------------------------------------- Ctrl-C


class Running:
    """``python -m dcbench_tesla ...`` in a process of its own, which ends with the test."""

    started: ClassVar[list["subprocess.Popen[bytes]"]] = []

    def __init__(self, log: Path, data_dir: Path, *words: object) -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DCBENCH_DATA": str(data_dir)}
        command = [sys.executable, "-m", "dcbench_tesla", *map(str, words)]
        with log.open("w") as file:
            # a shell starts what runs in its background deaf to Ctrl-C, and children inherit that
            hearing = signal.signal(signal.SIGINT, signal.default_int_handler)
            self._process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=log.parent)
            signal.signal(signal.SIGINT, hearing)
        self.started.append(self._process)

    def wait_for(self, seen: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``seen``, for so many seconds at most."""
        deadline = time.monotonic() + seconds
        while not seen() and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return seen()

    def says(self, pattern: str) -> bool:
        return re.search(pattern, self.log.read_text()) is not None

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit code."""
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(120)
        finally:
            self._process.kill()


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    while Running.started:
        Running.started.pop().kill()


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar10")
    fixtures.write_cifar10(folder, train_per_class=12)
    return folder


def test_ctrl_c_keeps_what_was_done_and_the_same_command_goes_on(cifar10: Path, tmp_path: Path) -> None:
    small = ["network.width=4", "convnet.width=4", "data.zca=false", "experts.batch_size=4", "steps=2"]
    words = ["run", "--method", "tesla", "--dataset", "cifar10", "--ipc", 1, "--no-baseline"]
    words += [word for text in small for word in ("--set", text)]

    def epochs() -> list[Path]:
        return sorted(tmp_path.glob("runs/experts/*/*/epoch_*.safetensors"))

    first = Running(tmp_path / "log1", cifar10, *words)
    started = first.wait_for(lambda: len(epochs()) > 2, 300)
    code = first.interrupt()
    assert started, first.log.read_text()
    assert code == 130
    assert first.says(r"tesla, ipc 1: experts .+, condensation .+, evaluation by convnet .+ in all")
    assert first.log.read_text().endswith("Error: interrupted. What was done is kept: the same command goes on.\n")
    assert not first.says("Traceback")
    kept = {path: path.stat().st_mtime_ns for path in epochs()}

    second = Running(tmp_path / "log2", cifar10, *words)
    went_on = second.wait_for(lambda: len(epochs()) > len(kept), 300)
    assert second.interrupt() == 130
    assert went_on, second.log.read_text()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_ctrl_c_in_the_condensation_keeps_the_iterations_that_are_done(tmp_path: Path) -> None:
    words = ["run", "--method", "tesla", "--preset", "smoke", "--no-baseline", "--set", "iterations=20000"]
    words += ["--set", "evaluation.every=0", "--set", "experts.count=1", "--set", "network.width=4", "--compile", "off"]
    running = Running(tmp_path / "log", tmp_path, *words)
    assert running.wait_for(lambda: any(tmp_path.glob("runs/cells/*/metrics.jsonl")), 300), running.log.read_text()
    time.sleep(1.5)  # some iterations, and far from the half minute of the next checkpoint
    assert running.interrupt() == 130
    (checkpoint,) = tmp_path.glob("runs/cells/*/checkpoint.safetensors")
    done = read_meta(checkpoint)["iteration"]
    assert 0 < done < 20000
    assert len(checkpoint.with_name("metrics.jsonl").read_text().splitlines()) == done


def test_the_papers_command_says_how_long_it_will_take_before_it_begins(cifar10: Path, tmp_path: Path) -> None:
    running = Running(tmp_path / "log", cifar10, "run", "--method", "tesla", "--dataset", "cifar10", "--ipc", 10)
    told = running.wait_for(lambda: running.says(r"That is more than a day\. --preset quick takes minutes"), 300)
    code = running.interrupt()
    assert told, running.log.read_text()
    assert code == 130
    assert running.says(r"protocol paper, settings of MTT")
    assert running.says(r"tesla, ipc 10: experts .+, condensation .+, evaluation by convnet .+ in all")
    assert not running.says("Traceback")


def test_a_short_command_leaves_the_garbage_collector_as_it_was() -> None:
    for was_on in (True, False):
        (gc.enable if was_on else gc.disable)()
        try:
            with short_lived():
                assert not gc.isenabled()
            assert gc.isenabled() == was_on
            assert gc.get_freeze_count() == 0
        finally:
            gc.enable()
