"""`dcbench new`: the files of a package of one's own, to begin with."""

import keyword
import os
import re
from pathlib import Path
from string import Template

import click

from dcbench_tesla.cli.common import Group, options
from dcbench_tesla.errors import UsageError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TEMPLATES = Path(__file__).resolve().parent / "templates"
_SOURCE = """
[tool.uv.sources]
dcbench-tesla = {{ path = "{path}", editable = true }}
"""


@click.group(cls=Group)
def new() -> None:
    """Begin a package of your own.

    \b
    Example:
      dcbench new method my-method
    """


@new.command()
@options(
    click.argument("name"),
    click.option("--folder", type=click.Path(path_type=Path), help="The new folder.  [default: dcbench-NAME]"),
)
def method(name: str, folder: Path | None) -> None:
    """Write the package of a new method: code, packaging, test.

    The method works and is to be replaced: mini-batch k-means, as docs/adding-a-method.md explains it.

    \b
    Example:
      dcbench new method my-method
    """
    folder = folder or Path(f"dcbench-{name}")
    _check(name, folder)
    files = package(name, folder)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    for path in files:
        click.echo(f"written: {path}")
    click.echo("The method works already. Next, in an environment of its own, which `uv sync` keeps:")
    click.echo(f"  cd {folder} && uv sync")
    click.echo(f"  uv run dcbench check-method {name}")
    click.echo("  uv run pytest")
    click.echo(f"Or in the environment that dcbench is installed in: pip install -e {folder}")


def _check(name: str, folder: Path) -> None:
    """Check that a package of this name can be written.

    Raises:
        UsageError: the name is no name of a method or is taken, or the folder exists.
    """
    from dcbench_tesla import registry

    if not _NAME.fullmatch(name) or keyword.iskeyword(_class_name(name)):
        raise UsageError(f"{name!r} is no name of a method: small letters, digits and single hyphens, like my-method.")
    if name in registry.names("methods"):
        raise UsageError(f"there is a method {name!r} already: choose another name.")
    if folder.exists():
        raise UsageError(f"{folder} exists already: remove it, or name another folder by --folder.")


def package(name: str, folder: Path) -> dict[Path, str]:
    """Return the files of the package of a method, by path."""
    module = f"dcbench_{name.replace('-', '_')}"
    names = {"method": name, "class": _class_name(name), "module": module, "package": f"dcbench-{name}"}
    method, packaging, test = (
        Template((_TEMPLATES / f"{kind}.txt").read_text(encoding="utf-8")).substitute(names)
        for kind in ("method.py", "pyproject.toml", "test.py")
    )
    return {
        folder / f"{module}.py": method,
        folder / "pyproject.toml": packaging + _source(folder),
        folder / "tests" / f"test_{name.replace('-', '_')}.py": test,
    }


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def _source(folder: Path) -> str:
    """Return where uv finds the checkout that this program runs from; nothing if it runs from an installed package."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "pyproject.toml").is_file():
        return ""
    return _SOURCE.format(path=Path(os.path.relpath(checkout, folder.resolve())).as_posix())
