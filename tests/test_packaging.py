"""What is installed: every folder of code, no generic package at the top, and presets in the wheel."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINKED = ("methods", "evaluators")


def packages() -> Iterator[str]:
    """Every folder with an ``__init__.py`` under dcbench_tesla, following the links."""
    for folder, _, files in os.walk(ROOT / "dcbench_tesla", followlinks=True):
        if "__init__.py" in files:
            yield ".".join(Path(folder).relative_to(ROOT).parts)


def test_every_folder_of_code_is_in_the_list_of_packages() -> None:
    assert sorted(packages()) == sorted(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_to_the_folders_at_the_top(name: str) -> None:
    link = ROOT / "dcbench_tesla" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"dcbench_tesla.{name}"] == name


@pytest.mark.parametrize("name", LINKED)
def test_bare_name_cannot_be_imported(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: import this package as dcbench_tesla.{name}, not as {name}" in done.stderr


def test_every_plugin_file_is_registered() -> None:
    """A method's file without its entry point would be found by nobody."""
    shared = {"__init__", "gradients", "step", "matching", "selection", "training"}
    shared |= {"gradient_matching", "coreset", "cross_architecture"}
    for kind, folder in (("methods", "methods"), ("evaluators", "evaluators")):
        registered = {point.module.rpartition(".")[2] for point in entry_points(group=f"dcbench.{kind}")}
        assert {path.stem for path in (ROOT / folder).rglob("*.py")} - shared <= registered


def test_entry_points_name_things_that_exist() -> None:
    for group in ("methods", "evaluators", "datasets"):
        declared = PROJECT["project"]["entry-points"][f"dcbench.{group}"]
        installed = {
            p.name: p.value for p in entry_points(group=f"dcbench.{group}") if p.value.startswith("dcbench_tesla.")
        }
        assert installed == declared  # or the editable install is older than pyproject.toml
        for point in entry_points(group=f"dcbench.{group}"):
            assert point.load() is not None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built offline from a copy of the sources: building leaves folders behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("dcbench_tesla", *LINKED):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = target.iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_everything_inside_the_package(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dcbench_tesla"}
    expected = [
        "methods/trajectory/tesla.py",
        "methods/__init__.py",
        "evaluators/convnet.py",
        "data/sources.py",
        "py.typed",
    ]
    expected += [f"presets/{preset}.toml" for preset in ("paper", "quick", "smoke")]
    expected += [f"reports/html/{name}" for name in ("page.html.j2", "style.css", "page.js")]
    expected += [f"reports/html/vendor/{name}" for name in ("chart.umd.min.js", "LICENSE-chart.js.md")]
    expected += [
        "reports/tables.toml",
        "reports/figure1.toml",
        "reports/reference/aliases.toml",
        "reports/reference/published_accuracy.csv",
    ]
    expected += [f"reports/reference/paper_table{number}.csv" for number in (1, 2, 3)]
    assert {f"dcbench_tesla/{name}" for name in expected} <= set(names)
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "dcbench_tesla").rglob("*.py")}
    sources |= {f"dcbench_tesla/{p.relative_to(ROOT)}" for name in LINKED for p in (ROOT / name).rglob("*.py")}
    assert sources <= set(names)
    assert not [name for name in names if "test" in Path(name).name]


def test_wheel_carries_its_entry_points_and_license(wheel: zipfile.ZipFile) -> None:
    (entries,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(entries).decode()
    assert "dcbench = dcbench_tesla.cli:main" in text
    assert "tesla-exact = dcbench_tesla.methods.trajectory.tesla_exact:TESLAExact" in text
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
