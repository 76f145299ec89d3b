"""What is built and installed: every folder of code, no generic package at the top, presets, and one version."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest

import dcbench_tesla

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
    shared = {"__init__", "matching", "selection", "training", "gradient_matching", "coreset", "cross_architecture"}
    shared |= {"stored", "successors", "through_time", "pool", "lamb", "real_loss", "trained"}
    shared |= {path.stem for path in (ROOT / "methods" / "inner").glob("*.py")}
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


# --- one version ---------------------------------------------------------------------------------------------------


def test_one_version_everywhere() -> None:
    """pyproject.toml has it; what is installed, the citation and the changelog say the same."""
    version = PROJECT["project"]["version"]
    assert dcbench_tesla.__version__ == version  # or the editable install is older than pyproject.toml
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert released[0][0] == version
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version]
    assert re.findall(r'^date-released: "(.+)"$', citation, re.MULTILINE) == [released[0][1]]


def test_asking_for_the_version_loads_no_torch() -> None:
    question = "import sys, dcbench_tesla; print(dcbench_tesla.__version__, 'torch' in sys.modules)"
    assert run(sys.executable, "-c", question).split() == [PROJECT["project"]["version"], "False"]


# --- what is built -------------------------------------------------------------------------------------------------

OFFLINE = ("--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check")
BUILD = """
import sys
from setuptools import build_meta
target = sys.argv[1]  # read once: building overwrites sys.argv
build_meta.build_sdist(target)
build_meta.build_wheel(target)
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints, on both of its streams; it has to succeed."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


class Built(NamedTuple):
    """The sources that were copied, what was built from them, and what setuptools said meanwhile."""

    source: Path
    sdist: Path
    wheel: Path
    log: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An sdist and a wheel, built offline from a copy of the sources: building leaves folders behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("dcbench_tesla", "tests", *LINKED):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    log = run(sys.executable, "-c", BUILD, target, cwd=source)
    (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
    return Built(source, sdist, wheel, log)


@pytest.fixture(scope="module")
def wheel_of_sdist(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the sdist."""
    target = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", target, built.sdist)
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(built: Built) -> Iterator[zipfile.ZipFile]:
    """The wheel, open."""
    with zipfile.ZipFile(built.wheel) as archive:
        yield archive


def test_setuptools_has_nothing_to_complain_about(built: Built) -> None:
    """Such as a package that is missing from the list, an ambiguous one, or a file that MANIFEST.in names in vain."""
    assert "copying dcbench_tesla/__init__.py" in built.log
    assert not re.findall(r"^.*(?:Warning|ambiguous|no files found|no previously-included).*$", built.log, re.MULTILINE)


def test_sdist_builds_the_same_wheel(wheel: zipfile.ZipFile, wheel_of_sdist: Path) -> None:
    with zipfile.ZipFile(wheel_of_sdist) as other:
        assert {i.filename: i.CRC for i in other.infolist()} == {i.filename: i.CRC for i in wheel.infolist()}


def test_sdist_holds_what_a_build_and_a_reader_need_and_no_link(built: Built) -> None:
    """Methods and evaluators lie at the top, as in a checkout, and package-dir maps them: the links are not needed."""
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"} <= names
    assert {str(p.relative_to(ROOT)) for name in LINKED for p in (ROOT / name).rglob("*.py")} <= names
    tops = {name.split("/")[0] for name in names if "/" in name}
    assert tops == {"dcbench_tesla", "dcbench_tesla.egg-info", *LINKED}


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
    assert not [name for name in names if "test" in Path(name).name and not name.endswith(".txt")]


def test_wheel_carries_its_entry_points_and_license(wheel: zipfile.ZipFile) -> None:
    (entries,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(entries).decode()
    assert "dcbench = dcbench_tesla.cli:main" in text
    assert "tesla-exact = dcbench_tesla.methods.trajectory.tesla_exact:TESLAExact" in text
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


# --- what is installed ---------------------------------------------------------------------------------------------

# One process imports PyTorch once: the import of a family of methods, then the command itself, by its installed script.
ASK = """
import importlib.util, runpy, sys
import dcbench_tesla.methods.trajectory as trajectory
print(trajectory.__file__)
print(trajectory.matching_gradient.__name__, trajectory.stream_matching_gradient.__name__)
print([name for name in ("methods", "evaluators", "tests") if importlib.util.find_spec(name)])
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


class Environment(NamedTuple):
    """A fresh environment that sees the dependencies of this one, but not its dcbench."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return Path(sysconfig.get_path("scripts", "venv", {"base": str(self.folder)}))

    @property
    def packages(self) -> Path:
        paths = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", "venv", paths))

    def install(self, *what: str | Path) -> None:
        # what another environment has is none of pip's business here
        python = self.scripts / "python"
        run(sys.executable, "-m", "pip", "--python", python, "install", "--ignore-installed", *OFFLINE, *what)

    def installed(self) -> set[str]:
        """What lies in site-packages, but for the file that leads to the dependencies."""
        return {path.name for path in self.packages.iterdir()} - {"dependencies.pth", "__pycache__"}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path / "environment")
    run(sys.executable, "-m", "venv", "--without-pip", made.folder)
    # a .pth file in the folder this leads to is not read, so the editable install that tests run in is not seen
    (made.packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return made


def works(environment: Environment, elsewhere: Path, home: Path) -> None:
    """Ask an installed dcbench, from a folder that is not the checkout; its code has to lie below ``home``."""
    script = environment.scripts / "dcbench"
    assert run(script, "--version", cwd=elsewhere).strip() == f"dcbench, version {PROJECT['project']['version']}"
    lines = run(environment.scripts / "python", "-c", ASK, script, "list", "methods", cwd=elsewhere).splitlines()
    assert Path(lines[0]).resolve().is_relative_to(home.resolve())
    assert lines[1:3] == ["matching_gradient stream_matching_gradient", "[]"]
    assert {line.split()[0] for line in lines[3:]} >= set(PROJECT["project"]["entry-points"]["dcbench.methods"])


def test_wheel_works_where_it_is_installed(environment: Environment, built: Built, tmp_path: Path) -> None:
    environment.install(built.wheel)
    assert environment.installed() == {"dcbench_tesla", f"dcbench_tesla-{PROJECT['project']['version']}.dist-info"}
    works(environment, tmp_path, home=environment.packages / "dcbench_tesla")


def test_sdist_works_where_it_is_installed(environment: Environment, built: Built, tmp_path: Path) -> None:
    environment.install(built.sdist)
    assert environment.installed() == {"dcbench_tesla", f"dcbench_tesla-{PROJECT['project']['version']}.dist-info"}
    works(environment, tmp_path, home=environment.packages / "dcbench_tesla")


def test_editable_install_works_and_puts_no_folder_beside(
    environment: Environment, built: Built, tmp_path: Path
) -> None:
    environment.install("--editable", built.source)
    assert not [name for name in environment.installed() if not name.startswith(("__editable__", "dcbench_tesla-"))]
    works(environment, tmp_path, home=built.source)
