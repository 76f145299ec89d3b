"""A method in somebody else's package: one file and three lines of packaging; and packages that are broken."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from dcbench_tesla import registry
from dcbench_tesla.cli import main

METHOD = '''
"""A method of a third party."""

import torch

from dcbench_tesla.interface import Condenser, DistilledSet, Problem


class Brightest(Condenser):
    """The brightest real images of every class."""

    uses_network = False

    def setup(self, problem: Problem) -> None:
        """Choose them."""
        light = problem.train.pixels.float().mean(dim=(1, 2, 3))
        chosen = torch.cat([m[light[m].argsort(descending=True)[: problem.ipc]] for m in problem.train.members])
        self._chosen = problem.distilled(problem.train.pixels[chosen], problem.train.labels[chosen])

    def distilled(self) -> DistilledSet:
        """Return them."""
        return self._chosen
'''
PACKAGING = """
[project]
name = "somebodys-dcbench-brightest"
version = "0.1"

[project.entry-points."dcbench.methods"]
brightest = "somebodys_brightest:Brightest"

[tool.setuptools]
py-modules = ["somebodys_brightest"]
"""
SMALL = ["--preset", "smoke", "--device", "cpu", "--set", "data.train_images=100"]
SMALL += ["--set", "convnet.epochs=2", "--set", "convnet.width=4", "--set", "evaluation.networks=1"]


def python(*words: object, path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages in ``path`` installed beside the others."""
    before = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([str(path), *([before] if before else [])])
    environment = {**os.environ, "PYTHONPATH": joined, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def listed(path: Path, kind: str = "methods") -> dict[str, str]:
    """What ``dcbench list`` says of every name, in a process of its own."""
    done = python("-m", "dcbench_tesla", "list", kind, path=path)
    assert done.returncode == 0, done.stderr
    return {name: text for name, _, text in (line.partition(" ") for line in done.stdout.splitlines())}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that somebody's package was installed into, by pip and without a network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "somebodys_brightest.py").write_text(METHOD.lstrip())
    (source / "pyproject.toml").write_text(PACKAGING)
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    done = python("-m", "pip", "install", *offline, "--target", target, source, path=target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def importable(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, in this process too."""
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(installed)
    registry._points.cache_clear()
    yield
    registry._points.cache_clear()


def dcbench(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_it_is_listed_with_its_package(installed: Path) -> None:
    found = listed(installed)
    assert found["brightest"].split() == [
        *["The", "brightest", "real", "images", "of", "every", "class."],
        "[somebodys-dcbench-brightest]",
    ]
    assert {"tesla", "mtt", "random"} <= found.keys()


def test_it_runs_in_a_process_of_its_own(installed: Path, tmp_path: Path) -> None:
    words = ["run", "--method", "brightest", "--ipc", 2, *SMALL, "--out", tmp_path / "out"]
    done = python("-m", "dcbench_tesla", *words, path=installed)
    assert done.returncode == 0, done.stderr
    assert "brightest" in done.stdout
    assert "random" in done.stdout  # the baseline beside it
    assert len(list(tmp_path.glob("out/cells/brightest-digits-ipc2-*/distilled.safetensors"))) == 1


@pytest.mark.usefixtures("importable")
def test_it_runs_by_the_smoke_preset_beside_others(tmp_path: Path) -> None:
    result = dcbench("run", "--method", "brightest", "--method", "random", *SMALL, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "rows").glob("evaluate-*"))) == 2


@pytest.mark.usefixtures("importable")
def test_it_keeps_the_contract() -> None:
    result = dcbench("check-method", "brightest")
    assert result.exit_code == 0, result.output
    assert "FAIL" not in result.stdout


@pytest.mark.usefixtures("importable")
def test_it_is_described_and_suggested() -> None:
    assert "The brightest real images of every class." in dcbench("info", "brightest").stdout
    assert "Did you mean 'brightest'?" in dcbench("run", "--method", "brigtest").stderr


# ---------------------------------------------------------------------------------------------------- broken packages


def register(path: Path, name: str, target: str, group: str = "methods") -> None:
    """Write what pip leaves of a package, without its code."""
    folder = path / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[dcbench.{group}]\n{name} = {target}\n")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods, an evaluator and a data set that cannot be imported, each in its own way."""
    path = tmp_path_factory.mktemp("broken")
    register(path, "raising", "raising_package.method:Method")
    (path / "raising_package").mkdir()
    (path / "raising_package" / "__init__.py").write_text('raise RuntimeError("the driver is too old")\n')
    (path / "raising_package" / "method.py").write_text(METHOD)
    register(path, "lacking", "lacking_module:Brightest")
    (path / "lacking_module.py").write_text(f"import no_such_dependency\n{METHOD}")
    register(path, "garbled", "garbled_module:Brightest")
    (path / "garbled_module.py").write_text("class Brightest(\n")
    register(path, "absent", "module_that_is_not_there:Brightest")
    register(path, "absent-evaluator", "module_that_is_not_there:Evaluator", "evaluators")
    register(path, "absent-dataset", "module_that_is_not_there:DATA", "datasets")
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raising", "the driver is too old"),
        ("lacking", "no_such_dependency"),
        ("garbled", "SyntaxError"),
        ("absent", "module_that_is_not_there"),
    ],
)
def test_broken_method_is_listed_with_its_reason(name: str, reason: str, broken: Path) -> None:
    found = listed(broken)
    assert "cannot be imported" in found[name]
    assert reason in found[name]
    assert f"[{name}]" in found[name]
    assert {"tesla", "mtt", "random"} <= found.keys()
    assert not any("cannot be imported" in found[other] for other in ("tesla", "mtt", "random"))


def test_broken_evaluator_and_data_set_are_listed_too(broken: Path) -> None:
    evaluators, datasets = listed(broken, "evaluators"), listed(broken, "datasets")
    assert "module_that_is_not_there" in evaluators["absent-evaluator"]
    assert "module_that_is_not_there" in datasets["absent-dataset"]
    assert {"convnet"} <= evaluators.keys()
    assert {"digits", "cifar10"} <= datasets.keys()


@pytest.fixture
def beside_broken(broken: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(broken)
    registry._points.cache_clear()
    yield
    registry._points.cache_clear()


@pytest.mark.usefixtures("beside_broken")
@pytest.mark.parametrize("name", ["raising", "lacking", "garbled", "absent"])
def test_using_a_broken_method_is_one_message(name: str, tmp_path: Path) -> None:
    for words in (["run", "--method", name, "--out", str(tmp_path)], ["info", name], ["check-method", name]):
        result = dcbench(*words)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: method '{name}' is registered (")
        assert line.endswith("Repair or uninstall its package.")


@pytest.mark.usefixtures("beside_broken")
def test_the_others_work_beside_broken_ones(tmp_path: Path) -> None:
    result = dcbench("run", "--method", "random", *SMALL, "--out", tmp_path)
    assert result.exit_code == 0, result.output
