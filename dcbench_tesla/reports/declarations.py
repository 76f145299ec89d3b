"""The declarations of the paper's tables and figures in ``tables.toml``, and the cells that they consist of."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Literal

from dcbench_tesla import registry
from dcbench_tesla.config import CellConfig, overrides_from, resolve
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.reports.published import external, published, published_datasets


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One table or figure of the paper.

    Args:
        name: its name on the command line.
        title: its title.
        paper: its name in the paper.
        columns: what the columns of the table are.
        methods: the methods, in the paper's order.
        evaluators: the networks.
        published: the file of the paper's numbers.
        datasets: the paper's data sets, each with its IPCs. Any other data set that was run has its own rows.
        ipcs: the IPCs of data sets outside the paper, unless ``--ipc`` is given.
        labels: the label strategies of cells in it, for methods with this setting. They are compared if they are the
            columns.
        further: those of ``methods`` that are not in the paper. They have a column if they were run, and are run only
            if ``--method`` names them.
        shares: whether to show shares of the whole set's accuracy and of its images.
        alone: for Figure 2b, the settings of cells that change the labels only; a list holds the values to compare.
        note: what the paper's text says about it.
        families: for a table of families, the methods of each; ``methods`` are then all of them. Each line is a method,
            and the columns are IPCs. Published numbers are those of any network, and only cells by unchanged presets
            are shown.
    """

    name: str
    title: str
    paper: str
    columns: Literal["method", "labels", "evaluator"]
    methods: Sequence[str] = ()
    evaluators: Sequence[str]
    published: str
    datasets: Mapping[str, Sequence[int]]
    ipcs: Sequence[int]
    labels: Sequence[str]
    further: Sequence[str] = ()
    shares: bool = False
    alone: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    families: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.families:
            object.__setattr__(self, "methods", tuple(name for methods in self.families.values() for name in methods))

    def family(self, method: str, settings: Mapping[str, Any]) -> str:
        """Return the family of a cell: that of the method, unless its settings make it one of another family.

        Labels that are not ``hard`` make the second family of the first, a stored form of several images the third, and
        a stored form of one image the first of the third.
        """
        hard, soft, stored = self.families
        own = next(family for family, methods in self.families.items() if method in methods)
        if settings.get("factor", 1 + (own == stored)) > 1:
            return stored
        return own if own == soft else hard if settings.get("labels", "hard") == "hard" else soft

    @property
    def variants(self) -> list[dict[str, Any]]:
        """The settings in which the cells of one method differ; one empty entry if they do not."""
        fixed: list[dict[str, Any]] = [{"labels": name} for name in self.compared] or [{}]
        lists = [value if isinstance(value, list) else [value] for value in self.alone.values()]
        return fixed + [dict(zip(self.alone, values, strict=True)) for values in product(*lists) if self.alone]

    @property
    def compared(self) -> Sequence[str]:
        """The label strategies that are compared; none if they are not the columns."""
        return self.labels if self.columns == "labels" else ()

    @property
    def varied(self) -> frozenset[str]:
        """The settings that are compared, which therefore do not count as changes of the protocol."""
        strategy = {"label_space", "lr_labels"} if "learned" in self.compared else set()
        return frozenset({name for variant in self.variants for name in variant} | strategy)

    def is_alone(self, settings: Mapping[str, Any]) -> bool:
        """Return whether a cell with these settings changes the labels only (Figure 2b)."""
        fixed = {name: value for name, value in self.alone.items() if not isinstance(value, list)}
        return bool(fixed) and all(settings.get(name) == value for name, value in fixed.items())

    @property
    def across(self) -> Sequence[str]:
        """The columns, in order."""
        return {"method": self.methods, "labels": self.labels, "evaluator": self.evaluators}[self.columns]


@cache
def declarations() -> dict[str, Declaration]:
    """Return the declared tables and figures by name."""
    text = resources.files("dcbench_tesla.reports").joinpath("tables.toml").read_text(encoding="utf-8")
    return {name: Declaration(name=name, **content) for name, content in tomllib.loads(text).items()}


@dataclass(frozen=True, kw_only=True)
class Part:
    """The part of a table to run and to show; an empty field means all, except that an empty preset runs ``paper``."""

    datasets: Sequence[str] = ()
    ipcs: Sequence[int] = ()
    methods: Sequence[str] = ()
    preset: str = ""

    def has(self, dataset: str, ipc: int | None, method: str) -> bool:
        """Return whether a cell belongs to the part, whatever its protocol."""
        names = [row_name(name) for name in self.datasets]
        asked = ((names, dataset), (self.ipcs, ipc), (self.methods, method))
        return all(not wanted or value in wanted for wanted, value in asked)

    def shows(self, protocol: str) -> bool:
        """Return whether a protocol belongs to the part."""
        return not self.preset or preset_of(protocol) == self.preset


def preset_of(protocol: str) -> str:
    """Return the preset in the name of a protocol: ``quick`` for ``quick, changed: steps=20``."""
    return re.split(r"[, ]", protocol, maxsplit=1)[0]


def row_name(dataset: str) -> str:
    """Return the name of a data set in rows; the user's own data have neither folders nor ``.npz`` in it."""
    prefix, colon, path = dataset.partition(":")
    if not colon:
        return dataset
    return f"{prefix}:{Path(path).stem if path.endswith('.npz') else Path(path).name}"


def cells(declaration: Declaration, part: Part | None = None) -> list[CellConfig]:
    """Return the cells of a table or of a part of it, without methods that are not installed or cannot be imported.

    For data sets and IPCs of the paper, these are the cells with a published number, and all cells of methods that
    ``part`` names. For other data sets and IPCs they are all cells.

    Raises:
        UsageError: a preset, data set or method is unknown.
    """
    part = part or Part()
    preset = part.preset or "paper"
    found = []
    for dataset, ipcs in _asked_datasets(declaration, part).items():
        for method in implemented(_asked_methods(declaration, part)):
            fitting = [ipc for ipc in ipcs if _is_asked(declaration, part, dataset, ipc, method)]
            once = fitting if registry.load_method(method).uses_ipc else fitting[:1]
            found += [_cell(declaration, preset, dataset, ipc, method, v) for ipc in once for v in declaration.variants]
    return found


def implemented(methods: Sequence[str]) -> Iterator[str]:
    """Yield those of ``methods`` that are registered and can be imported."""
    return (name for name in methods if registry.has("methods", name) and not import_problem(name))


def import_problem(method: str) -> str:
    """Return why a registered method cannot be imported, or an empty text if it can."""
    try:
        registry.load_method(method)
    except DcbenchError as error:
        return str(error).partition("cannot be imported: ")[2] or str(error)
    return ""


class NotInTableError(UsageError):
    """A table has no cells of the requested part. The message says what it has."""


def check_methods(declaration: Declaration, methods: Sequence[str]) -> None:
    """Raise :class:`NotInTableError` if a table has none of the requested ``methods``."""
    if methods and not set(methods) & set(declaration.methods):
        raise NotInTableError(
            f"{declaration.name} has no {' and no '.join(methods)}: it has {', '.join(declaration.methods)}."
        )


def nothing_to_run(declaration: Declaration, part: Part) -> NotInTableError:
    """Return the error for a part of a table without cells; its message says what is missing and what there is."""
    absent = [name for name in part.methods if name in declaration.methods and name not in {*implemented([name])}]
    if absent:
        why = "; ".join(f"{name} {_why_absent(name)}" for name in absent)
        return NotInTableError(f"{why}. {declaration.name} has here: {', '.join(implemented(declaration.methods))}.")
    ipcs = sorted({ipc for ipcs in declaration.datasets.values() for ipc in ipcs})
    return NotInTableError(
        f"{declaration.name} has no IPC {', '.join(map(str, part.ipcs))}: the paper's data sets have "
        f"{', '.join(map(str, ipcs))} there. --dataset NAME --ipc N asks for another one."
    )


def _why_absent(method: str) -> str:
    if registry.has("methods", method):
        return f"cannot be imported: {import_problem(method)}"
    return f"is not implemented here ({external()[method]}): a plugin of that name adds it"


def beyond_the_paper(declaration: Declaration, part: Part) -> list[str]:
    """Return a message for each requested IPC that the paper does not have for its own data set."""
    return [
        f"the paper has no IPC {ipc} of {dataset} in its {declaration.paper} (it has {', '.join(map(str, own))}): its "
        "cells are those of a data set outside the paper"
        for dataset, own in declaration.datasets.items()
        if dataset in part.datasets
        for ipc in part.ipcs
        if ipc not in own
    ]


def _asked_datasets(declaration: Declaration, part: Part) -> dict[str, Sequence[int]]:
    """Return the requested data sets with their IPCs.

    If data sets or methods are named, the requested IPCs count for all of them. Otherwise every data set has those of
    its own IPCs that were requested.
    """
    if part.datasets or part.methods:
        names = part.datasets or tuple(declaration.datasets)
        return {name: part.ipcs or declaration.datasets.get(name, declaration.ipcs) for name in names}
    return {
        name: [ipc for ipc in ipcs if not part.ipcs or ipc in part.ipcs] for name, ipcs in declaration.datasets.items()
    }


def _asked_methods(declaration: Declaration, part: Part) -> Sequence[str]:
    if part.methods:
        return [name for name in declaration.methods if name in part.methods]
    return [name for name in declaration.methods if name not in declaration.further]


def _is_asked(declaration: Declaration, part: Part, dataset: str, ipc: int, method: str) -> bool:
    of_the_paper = dataset in published_datasets(declaration.published) and ipc in declaration.datasets.get(dataset, ())
    if method in part.methods or not of_the_paper:
        return True
    own_ipc = ipc if registry.load_method(method).uses_ipc else None
    pairs = product(declaration.evaluators, declaration.compared or ("",))
    return any(published(declaration.published, dataset, own_ipc, method, *pair) for pair in pairs)


def _cell(
    declaration: Declaration, preset: str, dataset: str, ipc: int, method: str, variant: Mapping[str, Any]
) -> CellConfig:
    """Resolve one cell; settings that equal the preset's are no overrides, since these would change the protocol."""
    about: dict[str, Any] = {"preset": preset, "evaluators": declaration.evaluators}
    plain = resolve(method, dataset, ipc, **about)
    changed = {name: value for name, value in variant.items() if getattr(plain.settings, name) != value}
    return resolve(method, dataset, ipc, **about, overrides=overrides_from(changed)) if changed else plain
