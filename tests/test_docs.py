"""The documentation does what it says: examples run, and tables agree with the code."""

import doctest
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from string import Template
from xml.etree import ElementTree

import click
import numpy as np
import pytest

from dcbench_tesla import registry
from dcbench_tesla.cli import main
from dcbench_tesla.compute.networks import ConvNet
from dcbench_tesla.config import CellConfig, resolve
from dcbench_tesla.data.augmentation import STRATEGY
from dcbench_tesla.data.files import OPTIONAL_KEYS, REQUIRED_KEYS, dataset_from

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("results/*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language on a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table(page: str, first_column: str) -> list[list[str]]:
    """The rows of the table whose head begins with ``first_column``, without the head."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


# --- the README, and links ---------------------------------------------------------------------------------------


def test_the_readme_is_short_and_shows_a_picture_soon() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 170
    assert any("![" in line for line in lines[:40])


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names by which code hosts and the site know a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if path.startswith("https://"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


# --- commands ----------------------------------------------------------------------------------------------------


def console_commands(page: Path) -> Iterator[list[str]]:
    """The dcbench commands of a page as words, its shell variables put in; loops are left out."""
    variables: dict[str, str] = {}
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command = Template(line.removeprefix("$ ")).safe_substitute(variables)
            if assigned := re.fullmatch(r'(\w)="(.*)"', command):
                variables[assigned[1]] = assigned[2]
            words = shlex.split(command, comments=True)
            if words[:2] == ["uv", "run"]:
                words = words[2:]
            if words[:1] == ["dcbench"]:
                yield words[1:]


def check_options(words: list[str], where: Path) -> None:
    """Let click parse a command and run nothing; files that it asks for are made beforehand."""
    group: click.Command = main
    context = click.Context(main, info_name="dcbench", **main.context_settings)
    while isinstance(group, click.Group):
        _, command, words = group.resolve_command(context, words)
        assert command is not None
        group, context = command, click.Context(command, parent=context, info_name=command.name)
    for word in words:
        if not word.startswith("-") and re.search(r"\.\w+$", word) and ":" not in word:
            (where / word).parent.mkdir(parents=True, exist_ok=True)
            (where / word).touch()
    group.parse_args(context, list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_they_name(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in console_commands(page):
        try:
            check_options(words, tmp_path)
        except click.ClickException as error:
            pytest.fail(f"dcbench {' '.join(words)}: {error.format_message()}")


def test_commands_of_the_pages_are_found() -> None:
    found = [" ".join(words) for page in PAGES for words in console_commands(page)]
    assert len(found) > 80
    assert any(words.endswith("--set convnet.epochs=300 --set labels=hard") for words in found)
    with pytest.raises(click.ClickException):
        check_options(["run", "--methods", "tesla"], ROOT)


# --- the drawings of architecture --------------------------------------------------------------------------------


def statements(drawing: str) -> tuple[dict[str, list[str]], list[str]]:
    """A drawing's nodes with the lines of their labels, and its edges, each ``a->b``, from its text."""
    text = (DOCS / "drawings" / f"{drawing}.dot").read_text(encoding="utf-8")
    nodes = re.findall(r'^  (\w+) \[label="(.*?)"', text, re.MULTILINE)
    edges = re.findall(r"^  (\w+) -> (\w+)", text, re.MULTILINE)
    return {name: label.split("\\n") for name, label in nodes}, [f"{a}->{b}" for a, b in edges]


@pytest.mark.parametrize("drawing", ["wings", "cell"])
def test_a_drawing_is_that_of_its_text(drawing: str) -> None:
    nodes, edges = statements(drawing)
    picture = ElementTree.parse(DOCS / "drawings" / f"{drawing}.svg").getroot()
    names = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(filter(None, names)) == sorted([drawing, *nodes, *edges])
    words = [" ".join((e.text or "").split()) for e in picture.iter("{http://www.w3.org/2000/svg}text")]
    labels = [" ".join(line.split()) for lines in nodes.values() for line in lines]
    assert [label for label in labels if label not in words] == []


def test_the_wings_are_drawn_as_the_contract_has_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    _, edges = statements("wings")
    below = dict(edge.split("->") for edge in edges if "plugins" not in edge)
    (drawn,) = set(below) - set(below.values())
    order = [drawn]
    while order[-1] in below:
        order.append(below[order[-1]])
    assert order == ["contracts" if " : " in layer else layer for layer in contract["layers"]]


def test_architecture_names_every_wing_and_what_is_there() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    wings = [row[0] for row in table("architecture.md", "wing")]
    named = {name for row in wings for name in re.findall(r"`([\w.]+/?)`", row)}
    package = ROOT / "dcbench_tesla"
    found = {path.name + "/" * path.is_dir() for path in package.iterdir() if not path.name.startswith("_")}
    plugins = {"methods/", "evaluators/", "py.typed"}
    assert named == found - plugins
    for path in re.findall(
        r"`((?:cli|reports|exchange|compare|backends|cells|experts|profilers|data|records)/\S+?\.\w+)`", page
    ):
        assert (package / path).is_file(), path


# --- the doctest -------------------------------------------------------------------------------------------------


def test_the_example_of_the_gradients() -> None:
    result = doctest.testfile(str(DOCS / "gradients.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


# --- the method and the evaluator of adding-a-method -------------------------------------------------------------


def call(folder: Path, *words: str, path: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the page (a method, an evaluator, a network), installed offline into a folder of their own."""
    for needed in ("pip", "setuptools"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: the package cannot be built")
    target = tmp_path_factory.mktemp("installed")
    modules, projects = blocks("adding-a-method.md", "python"), blocks("adding-a-method.md", "toml")
    del modules[1]  # the test of the method, which test_new.py holds to the template
    for name, module, project in zip(
        ("dcbench_k_means", "dcbench_linear", "dcbench_tanh"), modules, projects, strict=True
    ):
        source = tmp_path_factory.mktemp("source")
        (source / f"{name}.py").write_text(module, encoding="utf-8")
        (source / "pyproject.toml").write_text(project, encoding="utf-8")
        options = ("--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check")
        call(source, "-m", "pip", "install", "--quiet", *options, "--target", str(target), ".")
    return target


def commands(plugin: str) -> list[list[str]]:
    """The dcbench commands of the page for its method, evaluator or network, as the words behind ``dcbench``."""
    console = blocks("adding-a-method.md", "console")[("method", "evaluator", "network").index(plugin)]
    lines = [line.partition("#")[0].split() for line in console.splitlines()]
    return [words[2:] for words in lines if words[:2] == ["$", "dcbench"]]


def test_the_method_of_the_page_is_listed_and_keeps_the_contract(installed: Path, tmp_path: Path) -> None:
    _, listing, check, _ = commands("method")
    assert listing == ["list", "methods"]
    shown = call(tmp_path, "-m", "dcbench_tesla", *listing, path=installed)
    assert re.search(r"^k-means +Mini-batch k-means: .* \[dcbench-k-means\]$", shown, re.MULTILINE)

    assert check == ["check-method", "k-means"]
    points = call(tmp_path, "-m", "dcbench_tesla", *check, path=installed).splitlines()
    assert points
    assert all(point.startswith("ok ") for point in points)


def test_the_method_of_the_page_runs(installed: Path, tmp_path: Path) -> None:
    run = commands("method")[-1]
    assert run[:3] == ["run", "--method", "k-means"]
    shown = call(tmp_path, "-m", "dcbench_tesla", *run, path=installed)
    assert "k-means" in shown
    (cell,) = (tmp_path / "runs" / "cells").glob("k-means-digits-ipc2-seed0-*")

    # the file can be read without dcbench, as protocols.md says
    (reader,) = blocks("protocols.md", "python")
    facts = call(cell, "-c", f"{reader}\nprint(images.shape, labels.shape, facts['provenance']['method'])")
    assert facts.split("\n")[0] == "torch.Size([20, 1, 8, 8]) torch.Size([20]) k-means"


def test_the_evaluator_of_the_page_is_listed_keeps_the_contract_and_runs(installed: Path, tmp_path: Path) -> None:
    check, run = commands("evaluator")
    shown = call(tmp_path, "-m", "dcbench_tesla", "list", "evaluators", path=installed)
    assert re.search(r"^linear +Softmax regression .* \[dcbench-linear\]$", shown, re.MULTILINE)

    assert check == ["check-evaluator", "linear"]
    points = call(tmp_path, "-m", "dcbench_tesla", *check, path=installed).splitlines()
    assert points
    assert all(point.startswith("ok ") for point in points)

    assert run[-4:] == ["--evaluator", "linear", "--set", "linear.steps=50"]
    shown = call(tmp_path, "-m", "dcbench_tesla", *run, path=installed)
    assert "evaluator linear" in shown
    (row,) = (json.loads(path.read_text()) for path in (tmp_path / "runs" / "rows").glob("evaluate-*.json"))
    assert (row["evaluator"], row["recipe"]) == ("linear", "adam, 50 steps, lr 0.01")
    assert row["accuracy"]["last"]["mean"] > 0.3  # ten images teach it something


def test_the_network_of_the_page_is_listed_and_runs(installed: Path, tmp_path: Path) -> None:
    listing, run = commands("network")
    assert listing == ["list", "networks"]
    shown = call(tmp_path, "-m", "dcbench_tesla", *listing, path=installed)
    assert re.search(r"^tanh +One hidden layer of tanh units. +\[dcbench-tanh\]$", shown, re.MULTILINE)

    assert "network.name=tanh" in run
    call(tmp_path, "-m", "dcbench_tesla", *run, path=installed)
    (row,) = (json.loads(path.read_text()) for path in (tmp_path / "runs" / "rows").glob("condense-*.json"))
    assert row["identity"]["network"] == {"name": "tanh", "width": 64}


# --- the keys of own data -----------------------------------------------------------------------------------------


def test_every_key_of_an_archive_is_described() -> None:
    keys = [re.findall(r"`(\w+)`", row[0]) for row in table("own-data.md", "key")]
    rows = zip(table("own-data.md", "key"), keys, strict=True)
    optional = [name for row, names in rows for name in names if "optional" in row[0]]
    assert sorted(name for names in keys for name in names) == sorted((*REQUIRED_KEYS, *OPTIONAL_KEYS))
    assert sorted(optional) == sorted(OPTIONAL_KEYS)
    x, y = np.zeros((2, 8, 8), np.uint8), np.arange(2)
    made = dataset_from({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, "mine")
    assert (made.flippable, made.redistributable, made.max_value) == (False, False, 255)  # as the page says
    page = (DOCS / "own-data.md").read_text(encoding="utf-8")
    assert f"--set data.augmentation={STRATEGY}\n" in page


# --- the numbers of protocols ------------------------------------------------------------------------------------


def test_parameter_counts_are_those_of_the_network() -> None:
    rows = table("protocols.md", "images")
    assert rows
    for images, classes, depth, parameters in rows:
        channels, side = (int(n) for n in images.split(" x ")[:2])
        for k, count in zip(classes.split(", "), parameters.split("; "), strict=True):
            network = ConvNet(channels, int(k), side)
            assert sum(p.numel() for p in network.parameters()) == int(count.replace(",", ""))
            assert len(network.features) == 4 * int(depth) + 1


def test_parameter_counts_are_those_of_the_named_networks() -> None:
    rows = table("protocols.md", "`network.name`")
    assert {name.split("`")[1] for name, *_ in rows} == {*registry.names("networks")} - {"convnet"}
    for name, _, images, weights in rows:
        channels, side = (int(n) for n in images.split(" x ")[:2])
        network = registry.load_network(name.split("`")[1])(channels, 10, side)
        assert sum(p.numel() for p in network.parameters()) == int(weights.replace(",", ""))


def hyper_parameters(config: CellConfig) -> list[float | str]:
    s = config.settings
    batch = s.batch_size or "all"
    return [s.steps, s.expert_epochs, s.max_start_epoch, s.lr_images, s.lr_student_lr, s.student_lr, batch]


def test_hyper_parameters_are_those_of_the_preset() -> None:
    rows = table("protocols.md", "data set")
    assert rows
    for dataset, ipcs, methods, *values, zca, _ in rows:
        for method in methods.split(", "):
            for ipc in ipcs.split(", "):
                config = resolve(method, dataset, int(ipc))
                told = [value if value == "all" else float(value) for value in values]
                assert told == hyper_parameters(config), (method, dataset, ipc)
                assert (zca == "yes") == config.data.zca, (method, dataset, ipc)
                assert config.data.validation == 0.0
