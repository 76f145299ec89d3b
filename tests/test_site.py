"""What the documentation site is made of is complete: pages, commands and public names. (`.ci/run` builds it.)"""

import fnmatch
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from dcbench_tesla.cli import main

DOCS = Path(__file__).resolve().parents[1] / "docs"
REFERENCE = DOCS / "reference"
MODULES = ("dcbench_tesla", "dcbench_tesla.interface", "dcbench_tesla.methods.trajectory")
WHOLE = ("api", "config", "conformance", "distilled", "errors", "registry")


def toctree_entries(page: Path) -> Iterator[str]:
    """The entries of a page's toctrees, from ``docs/``, as patterns."""
    text = page.read_text(encoding="utf-8")
    folder = page.parent.relative_to(DOCS)
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        entries = (line.strip() for line in block.splitlines() if line.strip() and not line.startswith(":"))
        yield from (str(folder / entry) for entry in entries)


def test_every_page_is_in_a_toctree() -> None:
    pages = list(DOCS.rglob("*.md"))
    entries = [entry for page in pages for entry in toctree_entries(page)]
    names = {page.relative_to(DOCS).with_suffix("").as_posix() for page in pages} - {"index"}
    assert names
    assert [name for name in sorted(names) if not any(fnmatch.fnmatch(name, entry) for entry in entries)] == []


def commands(group: click.Group, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name)


def test_the_command_line_reference_names_every_command() -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(#([\w-]+)\)", page))
    assert linked == {"-".join(words) for words in commands(main, ("dcbench",))}
    assert re.search(r"^\.\. click:: dcbench_tesla\.cli:main\n   :prog: dcbench\n   :nested: full$", page, re.MULTILINE)


def described() -> set[str]:
    """The full names that the Python reference describes or links to a description of."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in (REFERENCE / "python").glob("*.md"))
    whole = {f"dcbench_tesla.{name}" for name in WHOLE}  # these pages describe everything of their modules
    linked = re.findall(r"\[`([\w.]+)`\]\(#([\w.]+)\)", text)
    return set(re.findall(r"^\.\. auto(?:class|function|data):: ([\w.]+)", text, re.MULTILINE)) | {
        name for name, target in linked if f":: {target}" in text or target.rpartition(".")[0] in whole
    }


@pytest.mark.parametrize("module", MODULES)
def test_the_python_reference_has_every_public_name(module: str) -> None:
    names = import_module(module).__all__
    assert names
    assert [name for name in names if f"{module}.{name}" not in described()] == []


@pytest.mark.parametrize("name", WHOLE)
def test_the_python_reference_has_a_page_for_every_public_module(name: str) -> None:
    page = (REFERENCE / "python" / f"{name}.md").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. automodule:: dcbench_tesla\.{name}$", page, re.MULTILINE)


def test_help_is_shown_as_click_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason="the group `docs` is not installed")
    monkeypatch.setattr(sys, "path", [str(DOCS / "_ext"), *sys.path])
    as_rst = import_module("command_line").as_rst
    shown = as_rst("Take `a_b` of c_d.\n\n\b\nExamples:\n  dcbench x_*.pt\n    more")
    assert "\n".join(shown) == (
        "Take ``a_b`` of c\\_d.\n\nExamples:\n\n.. code-block:: text\n\n   dcbench x_*.pt\n     more\n"
    )
