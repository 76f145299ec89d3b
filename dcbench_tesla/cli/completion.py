"""What a shell completes: names of methods, data sets, evaluators, cells, and of settings.

Names are read from entry points, which imports no plugin. The settings of methods and evaluators are known to their
classes alone: they are read once, and kept in the cache of dcbench until a plugin changes.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from dcbench_tesla.records.workspace import DEFAULT_OUT

if TYPE_CHECKING:
    from dcbench_tesla.registry import Kind

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def one_of(names: Sequence[str]) -> Complete:
    """Return what completes one of some names."""
    return lambda ctx, option, incomplete: _items(names, incomplete)


def _plugins(*kinds: "Kind") -> Complete:
    def complete(ctx: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from dcbench_tesla import registry

        found = {p.name: p.summary for kind in kinds for p in registry.describe(kind) if not p.name.endswith(">")}
        return [CompletionItem(n, help=about) for n, about in sorted(found.items()) if n.startswith(incomplete)]

    return complete


METHODS = _plugins("methods")
EVALUATORS = _plugins("evaluators")
DATASETS = _plugins("datasets")
PLUGINS = _plugins("methods", "evaluators", "datasets", "networks")
PRESETS = one_of(("paper", "quick", "smoke"))


def CELLS(ctx: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a cell under ``--out``."""
    out = Path(ctx.params.get("out") or DEFAULT_OUT)
    return _items(sorted(path.parent.name for path in out.glob("cells/*/config.json")), incomplete)


def SETTINGS(ctx: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a setting of the methods and evaluators that the command names, up to ``=``."""
    if "=" in incomplete:
        return []
    known = _known_settings()
    asked = [*_given(ctx, "methods"), *_given(ctx, "method"), *_given(ctx, "evaluators")]
    names = {name for plugin in asked or known for name in known.get(plugin, ())} | set(known[""])
    if "evaluators" in ctx.params and not _given(ctx, "evaluators"):
        names |= set(known.get("convnet", ()))
    return _items((f"{name}=" for name in sorted(names)), incomplete)


def _given(ctx: click.Context, name: str) -> Sequence[str]:
    value = ctx.params.get(name) or ()
    return (value,) if isinstance(value, str) else value


def _known_settings() -> dict[str, list[str]]:
    """Return the settings that ``--set`` takes by plugin; those of every run under an empty name."""
    import json

    from platformdirs import user_cache_path

    from dcbench_tesla.records.store import content_key

    path = user_cache_path("dcbench") / f"settings-{content_key(_plugin_files())}.json"
    with suppress(OSError, ValueError):
        known: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        return known
    known = _read_settings()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("settings-*.json"):
            old.unlink()
        path.write_text(json.dumps(known), encoding="utf-8")
    return known


def _plugin_files() -> list[Any]:
    """Return what changes when a plugin does: the files that entry points name, with their times."""
    import importlib.util
    from importlib.metadata import entry_points

    found: list[Any] = []
    for kind in ("methods", "evaluators"):
        for point in entry_points(group=f"dcbench.{kind}"):
            with suppress(Exception):  # a foreign package may raise anything while its parent is imported
                spec = importlib.util.find_spec(point.module)
                folder = Path(str(spec.origin)).parent if spec else Path()
                found.append([point.value, max(file.stat().st_mtime for file in folder.glob("*.py"))])
    return found


def _read_settings() -> dict[str, list[str]]:
    import dataclasses

    from dcbench_tesla import registry
    from dcbench_tesla.config import SECTIONS

    known = {"": [f"{section}.{f.name}" for section, s in SECTIONS.items() for f in dataclasses.fields(s)]}
    for name in registry.names("methods"):
        with suppress(Exception):  # a plugin that cannot be imported has no settings to complete
            known[name] = [f.name for f in dataclasses.fields(registry.load_method(name).Settings)]
    for name in registry.names("evaluators"):
        with suppress(Exception):
            known[name] = [f"{name}.{f.name}" for f in dataclasses.fields(registry.load_evaluator(name).Settings)]
    return known
