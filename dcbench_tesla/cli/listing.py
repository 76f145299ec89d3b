"""The content of ``dcbench list``, ``info`` and ``env``."""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcbench_tesla import registry
from dcbench_tesla.config import SECTIONS, NetworkSettings
from dcbench_tesla.datasets import default_data_dir
from dcbench_tesla.errors import unknown_name
from dcbench_tesla.records.text import printable

if TYPE_CHECKING:
    from dcbench_tesla.cli.shown import output

Row = tuple[str, ...]
_PluginKind = Literal["methods", "evaluators", "networks"]
_KINDS: dict[str, _PluginKind] = {"methods": "methods", "evaluators": "evaluators", "networks": "networks"}


def columns(rows: Sequence[Row]) -> list[str]:
    """Return rows as lines with aligned columns."""
    if not rows:
        return []
    rows = [tuple(printable(" ".join(cell.splitlines())) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def plugins(kind: registry.Kind) -> list[Row]:
    """Return name, summary and package of every plugin of a kind; for a broken one the error is the summary."""
    shown: list[Row] = []
    for p in registry.describe(kind):
        package = "" if p.package == "dcbench-tesla" else f"[{p.package}]"
        shown.append((p.name, f"cannot be imported: {p.problem}" if p.problem else p.summary, package))
    return shown


def datasets(data_dir: Path | None) -> list[Row]:
    """Return name, shape of the images, sizes and whether the files were found, for every data set."""
    rows: list[Row] = [("name", "images", "classes", "train", "test", "files")]
    for name in registry.names("datasets"):
        try:
            s = registry.load_source(name)
            found = "here" if s.find(data_dir or default_data_dir()) else "not here (see dcbench info)"
            shape = f"{s.channels} x {s.side} x {s.side}"
            rows.append((name, shape, str(s.classes), f"{s.train_images:,}", f"{s.test_images:,}", found))
        except Exception as error:  # one broken plugin does not hide the others
            rows.append((name, "", "", "", "", str(error)))
    return [*rows, ("npz:PATH", "", "", "", "", "your own arrays"), ("folder:PATH", "", "", "", "", "your own images")]


def info(name: str, data_dir: Path | None) -> list[str]:
    """Return the description of a method, an evaluator, a family of evaluators, a data set or a network.

    Where an evaluator and a network of condensation share a name, both are described.

    Raises:
        UsageError: no plugin has this name.
    """
    if registry.has("methods", name):
        return _describe("method", registry.load_method(name))
    if registry.has("evaluators", name):
        lines = _describe("evaluator", registry.load_evaluator(name), prefix=f"{name}.")
        return [*lines, "", *_describe_network(name)] if registry.has("networks", name) else lines
    if registry.has("datasets", name):
        return _describe_dataset(name, data_dir)
    if registry.has("networks", name):
        return _describe_network(name)
    family = registry.family("evaluators", name)
    if family is not None:
        return _describe("family of evaluators", family, prefix=f"{name.partition(':')[0]}:<name>.")
    known = [
        *registry.names("methods"),
        *registry.names("evaluators"),
        *registry.names("datasets"),
        *registry.names("networks"),
    ]
    raise unknown_name("method, evaluator, data set or network", name, known)


def _describe(kind: str, plugin: Any, prefix: str = "") -> list[str]:
    lines = [f"{kind}, version {plugin.version}: {_plain(plugin)}", ""]
    fields = dataclasses.fields(plugin.Settings)
    if fields:
        from dcbench_tesla.interface import Settings

        described = [s for s in plugin.Settings.__mro__ if issubclass(s, Settings) and s is not Settings]
        lines += [line for s in described for line in (f"{s.__name__}: {_plain(s)}", "")]
        lines += ["Settings and their defaults (--set):"]
        lines += columns([(f"  {prefix}{f.name}", f"= {f.default}") for f in fields])
    if kind == "method":
        common = [f"{section}.{f.name}" for section, s in SECTIONS.items() for f in dataclasses.fields(s)]
        lines += ["", f"Settings of every run: {', '.join(common)}; of its evaluators: dcbench info convnet."]
    return lines


def _describe_network(name: str) -> list[str]:
    network = registry.load_network(name)
    options = NetworkSettings(name=name).options()
    lines = [f"network of condensation, version {network.version}: {_plain(network)}", ""]
    lines += [f"Chosen by --set network.name={name}; options and their defaults (--set):" if options else ""]
    lines += columns([(f"  network.{option}", f"= {default}") for option, default in options.items()])
    return lines if options else [*lines[:-1], f"Chosen by --set network.name={name}; it has no options."]


def _plain(documented: object) -> str:
    """Return a docstring without its markup."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", inspect.getdoc(documented) or "")
    return text.replace("``", "")


def _describe_dataset(name: str, data_dir: Path | None) -> list[str]:
    s = registry.load_source(name)
    folder = data_dir or default_data_dir()
    found = s.find(folder)
    lines = [
        f"data set: {s.summary}",
        f"{s.classes} classes, {s.train_images:,} training and {s.test_images:,} test images of "
        f"{s.channels} x {s.side} x {s.side}",
        f"images may be passed on: {'yes' if s.redistributable else 'no'}",
        f"files: {found if found else f'not found, data directory {folder}'}",
    ]
    return lines + ([s.remedy] if s.remedy and not found else [])


def environment_lines(data_dir: Path | None) -> list[Row]:
    """Return hardware, versions and folders."""
    import torch

    from dcbench_tesla.records import environment

    rows: list[Row] = [("processor", environment.hardware()), ("threads", str(torch.get_num_threads()))]
    gpus = [environment.hardware(f"cuda:{i}") for i in range(torch.cuda.device_count())]
    rows += [("GPU", name) for name in gpus] or [("GPU", "none")]
    rows += list(environment.versions().items())
    return [*rows, ("commit", environment.commit()), ("data directory", str(data_dir or default_data_dir()))]


# ---- JSON ------------------------------------------------------------------------------------------------------------


def as_json(what: str, data_dir: Path | None) -> "output.Output":
    """Return the list of methods, evaluators, networks or data sets as ``--json`` prints it."""
    from dcbench_tesla.cli.shown import output

    if what == "datasets":
        return output.Datasets(datasets=[_dataset(name, data_dir) for name in registry.names("datasets")])
    found = [
        output.Plugin(name=p.name, summary=p.summary, package=p.package, problem=p.problem)
        for p in registry.describe(_KINDS[what])
    ]
    return output.Plugins(kind=_KINDS[what], plugins=found)


def _dataset(name: str, data_dir: Path | None) -> "output.DatasetFacts":
    from dcbench_tesla.cli.shown import output

    try:
        s = registry.load_source(name)
        return output.DatasetFacts(
            name=name,
            shape=[s.channels, s.side, s.side],
            classes=s.classes,
            train_images=s.train_images,
            test_images=s.test_images,
            here=bool(s.find(data_dir or default_data_dir())),
        )
    except Exception as error:  # one broken plugin does not hide the others
        return output.DatasetFacts(name=name, problem=str(error))


def info_as_json(name: str, data_dir: Path | None) -> "output.Info":
    """Return the description of a plugin or a data set as ``--json`` prints it; raises the errors of :func:`info`."""
    from dcbench_tesla.cli.shown import output

    text = "\n".join(info(name, data_dir))
    if registry.has("methods", name):
        return output.Info(name=name, type="method", text=text, settings=_settings(registry.load_method(name)))
    if registry.has("evaluators", name):
        found = _settings(registry.load_evaluator(name), prefix=f"{name}.")
        return output.Info(name=name, type="evaluator", text=text, settings=found)
    if registry.has("networks", name):
        options = NetworkSettings(name=name).options()
        own = [output.Setting(name=f"network.{option}", default=value) for option, value in options.items()]
        return output.Info(name=name, type="network", text=text, settings=own)
    if registry.family("evaluators", name) is not None:
        return output.Info(name=name, type="family", text=text)
    known = registry.has("datasets", name)
    return output.Info(name=name, type="data set", text=text, dataset=_dataset(name, data_dir) if known else None)


def _settings(plugin: Any, prefix: str = "") -> "list[output.Setting]":
    from dcbench_tesla.cli.shown import output

    defaults: dict[str, Any] = {f"{prefix}{f.name}": f.default for f in dataclasses.fields(plugin.Settings)}
    return [output.Setting(name=name, default=value) for name, value in defaults.items()]


def environment_as_json(data_dir: Path | None) -> "output.Env":
    """Return hardware, versions and folders as ``--json`` prints them."""
    import torch

    from dcbench_tesla.cli.shown import output
    from dcbench_tesla.records import environment

    return output.Env(
        processor=environment.hardware(),
        threads=torch.get_num_threads(),
        gpus=[environment.hardware(f"cuda:{i}") for i in range(torch.cuda.device_count())],
        versions=environment.versions(),
        commit=environment.commit(),
        data_dir=str(data_dir or default_data_dir()),
    )
