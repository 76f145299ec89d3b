"""Plugins by entry point, found without importing them.

A method, evaluator or data set joins by an entry point in its package's ``pyproject.toml``::

    [project.entry-points."dcbench.methods"]
    mine = "my_package.mine:Mine"

A *family* is an entry point whose name ends with a colon, ``"mine:" = "my_package.mine:MyFamily"``: the object it leads
to makes the plugin ``mine:x`` when asked for its :meth:`~Family.member` ``x``. A family is listed as ``mine:<name>``.

Listing reads names and the first line of the source file's docstrings, and imports nothing heavy. A plugin that
cannot be imported is a status with its reason, and never stops the others.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from dcbench_tesla.errors import DcbenchError, UsageError, unknown_name

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import DatasetSource
    from dcbench_tesla.interface import Condenser, Evaluator, Settings

Kind = Literal["methods", "evaluators", "datasets"]
_SINGULAR = {"methods": "method", "evaluators": "evaluator", "datasets": "data set"}
_ANY = "<name>"  # how a family's members are listed


@dataclass(frozen=True)
class Plugin:
    """A registered plugin as far as it is known without importing it; ``problem`` is empty where it can be found."""

    name: str
    package: str
    summary: str
    problem: str = ""


class Family(Protocol):
    """Plugins made by name; its docstring says which there are, and ``Settings`` what all of them can be told."""

    version: ClassVar[int]
    Settings: "ClassVar[type[Settings]]"

    def member(self, name: str) -> Any:
        """Return the plugin ``name`` (what stands behind the colon): always the same class for the same name.

        Raises:
            UsageError: there is none; says which names are near.
        """
        ...


@cache
def _points(kind: Kind) -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"dcbench.{kind}"):
        points.setdefault(point.name, point)
    return points


def names(kind: Kind) -> list[str]:
    """Return the registered names of one kind, sorted; a family is ``mine:<name>``."""
    return sorted(_shown(name) for name in _points(kind))


def _shown(name: str) -> str:
    return f"{name}{_ANY}" if name.endswith(":") else name


def describe(kind: Kind) -> list[Plugin]:
    """Return every registered plugin of one kind with its summary, without importing any of them."""
    return [_describe(_points(kind)[name.removesuffix(_ANY)]) for name in names(kind)]


def _describe(point: EntryPoint) -> Plugin:
    package = point.dist.name if point.dist else "?"
    try:
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None:
            return Plugin(_shown(point.name), package, "", f"module {point.module} was not found")
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        lacking = _lacking(tree)
        if lacking:
            return Plugin(_shown(point.name), package, "", f"it needs {lacking}, which is not installed")
    except Exception as error:  # a foreign package may raise anything while its parent is imported
        return Plugin(_shown(point.name), package, "", f"{type(error).__name__}: {error}")
    return Plugin(_shown(point.name), package, _summary(tree, point.attr))


def _lacking(tree: ast.Module) -> str:
    """Return the first package a module imports at its top that is not installed: the commonest breakage."""
    for node in tree.body:
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            named = [node.module]
        for name in named:
            root = name.partition(".")[0]
            if root not in sys.modules and importlib.util.find_spec(root) is None:
                return root
    return ""


def _summary(tree: ast.Module, attribute: str) -> str:
    """First line of the class's docstring, or the ``summary=`` of the call that makes the object."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            named = any(isinstance(t, ast.Name) and t.id == attribute for t in node.targets)
            for keyword in node.value.keywords if named else []:
                if keyword.arg == "summary" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
    return ""


def has(kind: Kind, name: str) -> bool:
    """Whether ``name`` is registered, or is one that a registered family may make; imports nothing."""
    head, colon, member = name.partition(":")
    return head + colon in _points(kind) and (not colon or member not in ("", _ANY))


def family(kind: Kind, name: str) -> Family | None:
    """Import the family that ``name`` (``mine``, ``mine:`` or ``mine:<name>``) names; ``None`` where it names none.

    Raises:
        DcbenchError: it cannot be imported; says why.
    """
    registered = f"{name.removesuffix(_ANY).removesuffix(':')}:"
    if has(kind, name) or registered not in _points(kind):
        return None
    found: Family = _import(kind, registered)
    return found


def _load(kind: Kind, name: str) -> Any:
    if not has(kind, name):
        raise unknown_name(_SINGULAR[kind], name, names(kind))
    head, colon, member = name.partition(":")
    found = _import(kind, head + colon)
    if not colon:
        return found
    try:
        return found.member(member)
    except (DcbenchError, UsageError):
        raise
    except Exception as error:
        raise DcbenchError(f"{_SINGULAR[kind]} {name!r} cannot be made: {type(error).__name__}: {error}.") from error


def _import(kind: Kind, name: str) -> Any:
    try:
        return _points(kind)[name].load()
    except Exception as error:
        origin = _points(kind)[name].value
        raise DcbenchError(
            f"{_SINGULAR[kind]} {name!r} is registered ({origin}) but cannot be imported: "
            f"{type(error).__name__}: {error}. Repair or uninstall its package."
        ) from error


def load_method(name: str) -> "type[Condenser]":
    """Import the method ``name``.

    Raises:
        UsageError: the name is unknown, or its family makes none of that name; says which is near.
        DcbenchError: it cannot be imported; says why.
    """
    method: type[Condenser] = _load("methods", name)
    return method


def load_evaluator(name: str) -> "type[Evaluator]":
    """Import the evaluator ``name``; raises as :func:`load_method`."""
    evaluator: type[Evaluator] = _load("evaluators", name)
    return evaluator


def load_source(name: str) -> "DatasetSource":
    """Import the data set source ``name``; raises as :func:`load_method`."""
    source: DatasetSource = _load("datasets", name)
    return source


def check_names(kind: Kind, wanted: Iterable[str]) -> None:
    """Raise :class:`~dcbench_tesla.errors.UsageError` for the first name that is not registered, or in no family.

    A family is asked, and so imported; the others are not.
    """
    for name in wanted:
        if ":" in name or not has(kind, name):
            _load(kind, name)
