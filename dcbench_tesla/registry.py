"""The registry of plugins: methods, evaluators, data sets and networks, found by their entry points.

A package registers a plugin by an entry point in its ``pyproject.toml``::

    [project.entry-points."dcbench.methods"]
    mine = "my_package.mine:Mine"

An entry point whose name ends with a colon registers a *family* of plugins, ``"mine:" = "my_package.mine:MyFamily"``.
The plugin ``mine:x`` is then the result of the family's :meth:`~Family.member` for ``x``. Lists show a family as
``mine:<name>``.

Listing plugins imports none of them: it reads the names of the entry points and the first docstring line in the source
file. A plugin that cannot be imported is listed with the reason, and does not stop the others.
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
    from dcbench_tesla.compute.networks import Network
    from dcbench_tesla.data.dataset import DatasetSource
    from dcbench_tesla.interface import Condenser, Evaluator, Settings

Kind = Literal["methods", "evaluators", "datasets", "networks"]
_SINGULAR = {"methods": "method", "evaluators": "evaluator", "datasets": "data set", "networks": "network"}
_ANY = "<name>"  # stands for the members of a family in a list


@dataclass(frozen=True)
class Plugin:
    """What is known of a plugin without importing it; ``problem`` says why it cannot be used, or is empty."""

    name: str
    package: str
    summary: str
    problem: str = ""


class Family(Protocol):
    """A family of plugins, made by name.

    Its docstring says which members there are; ``Settings`` are the settings that all members have.
    """

    version: ClassVar[int]
    Settings: "ClassVar[type[Settings]]"

    def member(self, name: str) -> Any:
        """Return the plugin ``name`` (the part after the colon). The same name always gives the same class.

        Raises:
            UsageError: the family has no such plugin; the message names similar ones.
        """
        ...


@cache
def _points(kind: Kind) -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"dcbench.{kind}"):
        points.setdefault(point.name, point)
    return points


def names(kind: Kind) -> list[str]:
    """Return the registered names of one kind, sorted. A family is listed as ``mine:<name>``."""
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
    """Return the first package that the module imports at its top and that is not installed, or an empty string."""
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
    """Return the first line of the class's docstring, or the ``summary=`` of the call that makes the object."""
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
    """Return whether ``name`` is registered, or belongs to a registered family. Imports nothing.

    The family is not asked, so it may still have no such member.
    """
    head, colon, member = name.partition(":")
    return head + colon in _points(kind) and (not colon or member not in ("", _ANY))


def family(kind: Kind, name: str) -> Family | None:
    """Import the family called ``name`` (``mine``, ``mine:`` or ``mine:<name>``); ``None`` if there is no such family.

    Raises:
        DcbenchError: the family cannot be imported; the message says why.
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
        UsageError: the name is unknown, also to its family; the message names a similar one.
        DcbenchError: the method cannot be imported; the message says why.
    """
    method: type[Condenser] = _load("methods", name)
    return method


def load_evaluator(name: str) -> "type[Evaluator]":
    """Import the evaluator ``name``; raises the errors of :func:`load_method`."""
    evaluator: type[Evaluator] = _load("evaluators", name)
    return evaluator


def load_source(name: str) -> "DatasetSource":
    """Import the source of the data set ``name``; raises the errors of :func:`load_method`."""
    source: DatasetSource = _load("datasets", name)
    return source


def load_network(name: str) -> "type[Network]":
    """Import the network of condensation ``name``; raises the errors of :func:`load_method`."""
    network: type[Network] = _load("networks", name)
    return network


def check_names(kind: Kind, wanted: Iterable[str]) -> None:
    """Check that every name is registered, or a member of a registered family.

    Only families are imported, because only they know their members.

    Raises:
        UsageError: a name is unknown; the message is about the first one.
    """
    for name in wanted:
        if ":" in name or not has(kind, name):
            _load(kind, name)
