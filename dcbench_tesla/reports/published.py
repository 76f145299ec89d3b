"""Published accuracies, with the names that data sets, methods, networks and label strategies have here.

Sources can disagree on a cell. For data sets in the paper's own table, that table alone is compared with own results.
For other data sets, it is the first row of ``published_accuracy.csv``, which lists original papers before reprints and
leaderboards. Numbers that differ are kept in :attr:`Published.others`.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

from dcbench_tesla import registry
from dcbench_tesla.errors import unknown_name

PAPER = {"paper_table1.csv": "TESLA Table 1", "paper_table2.csv": "TESLA Table 2", "paper_table3.csv": "TESLA Table 3"}
ELSEWHERE = "published_accuracy.csv"
_NETWORKS_OF_TABLE_3 = ("convnet", "resnet18", "vit")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published test accuracy as a fraction; ``others`` are texts for the sources that print other numbers."""

    mean: float
    std: float | None
    source: str
    note: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return percent(self.mean) + ("" if self.std is None else f" ± {percent(self.std)}")


def percent(share: float) -> str:
    """Return a published fraction in percent as it was printed."""
    return f"{100 * share:.2f}".removesuffix("0")  # two decimals if two were printed


@cache
def references() -> pd.DataFrame:
    """Return all published accuracies as tidy rows, in the order of the files.

    Columns: ``file``; ``dataset``, ``ipc`` (missing for the whole data set), ``method``, ``evaluator`` (empty for
    networks without an evaluator) and ``labels`` by their names here; ``mean`` and ``std`` as fractions; ``source`` and
    ``note``; ``network``, as ``published_accuracy.csv`` names it.

    Raises:
        UsageError: a name in a file is neither an alias nor registered nor external.
    """
    aliases = _aliases()
    rows = [*_table1(), *_table2(), *_table3(), *_elsewhere(aliases)]
    table = pd.DataFrame([{**row, **_resolved(row, aliases)} for row in rows])
    for name in ("mean", "std"):
        table[name] = (pd.to_numeric(table[name]) / 100).round(6)
    table["ipc"] = pd.to_numeric(table["ipc"]).astype("Int64")
    return table


def external() -> Mapping[str, str]:
    """Return the methods of the published tables that are not implemented here, with descriptions."""
    found: Mapping[str, str] = _aliases()["external"]
    return found


def published_datasets(file: str) -> frozenset[str]:
    """Return the data sets of one of the paper's tables."""
    table = references()
    return frozenset(table.loc[table["file"] == file, "dataset"])


@cache
def published(
    file: str,
    dataset: str,
    ipc: int | None,
    method: str,
    evaluator: str,
    labels: str = "",
    *,
    any_network: bool = False,
) -> Published | None:
    """Return the published accuracy to compare with a cell of the paper's table ``file``, or ``None``.

    Args:
        file: name of the file of the table.
        dataset: name of the data set.
        ipc: images per class, or ``None`` for the whole data set.
        method: name of the method.
        evaluator: name of the network.
        labels: the label strategy, if the table compares them.
        any_network: if nothing is published for the network ``evaluator``, take the number of another one, with a note.
    """
    table = references()
    fits = table["ipc"].isna() if ipc is None else table["ipc"] == ipc
    for name, value in (("dataset", dataset), ("method", method), ("labels", labels)):
        fits &= table[name] == value
    of_any = table[fits.fillna(False)]
    of_any = of_any[of_any["file"] == (file if dataset in published_datasets(file) else ELSEWHERE)]
    found = table[(fits & (table["evaluator"] == evaluator)).fillna(False)]
    beside = of_any[of_any["evaluator"] == evaluator]
    if beside.empty and any_network:
        found = beside = of_any.assign(note="the network is another one, " + of_any["network"].astype(str))
    if beside.empty:
        return None
    chosen, *others = map(_published, [beside.iloc[0], *(row for _, row in found.iterrows())])
    told = dict.fromkeys(f"{o} ({o.source})" for o in others if o.mean != chosen.mean)
    return Published(**{**vars(chosen), "others": tuple(told)})


def _published(row: "pd.Series[Any]") -> Published:
    std = None if pd.isna(row["std"]) else float(row["std"])
    return Published(mean=float(row["mean"]), std=std, source=row["source"], note=row["note"])


@cache
def _aliases() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_folder().joinpath("aliases.toml").read_text(encoding="utf-8"))


def _folder() -> Any:
    return resources.files("dcbench_tesla.reports.reference")


def _read(file: str) -> Iterator[dict[str, Any]]:
    with resources.as_file(_folder().joinpath(file)) as path:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    common = {"file": file, "source": PAPER.get(file), "note": "", "labels": "", "evaluator": "convnet"}
    for row in table.to_dict("records"):
        yield {**common, **{str(name): value for name, value in row.items()}}


def _table1() -> Iterator[dict[str, Any]]:
    return _read("paper_table1.csv")


def _table2() -> Iterator[dict[str, Any]]:
    return ({**row, "method": "tesla"} for row in _read("paper_table2.csv"))


def _table3() -> Iterator[dict[str, Any]]:
    for row in _read("paper_table3.csv"):
        for name in _NETWORKS_OF_TABLE_3:
            kept = {key: row[key] for key in ("file", "source", "note", "labels", "dataset", "ipc", "method")}
            yield {**kept, "evaluator": name, "mean": row[f"{name}_mean"], "std": row[f"{name}_std"]}


def _elsewhere(aliases: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for row in _read(ELSEWHERE):
        network = aliases["networks"].get(row["arch"])
        if network is None:
            raise unknown_name("published network", row["arch"], aliases["networks"])
        known = network if isinstance(network, dict) else {"evaluator": network}
        kept = {key: row[key] for key in ("file", "source", "labels", "dataset", "method", "mean", "std")}
        yield {**kept, "note": "", "network": row["arch"], "ipc": row["ipc"].replace("whole", ""), **known}


def _resolved(row: Mapping[str, Any], aliases: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of a row whose values have other names here."""
    method = aliases["methods"].get(row["method"], row["method"])
    named = method if isinstance(method, dict) else {"method": method}
    dataset = aliases["datasets"].get(row["dataset"], row["dataset"])
    if dataset not in registry.names("datasets"):
        raise unknown_name("published data set", row["dataset"], aliases["datasets"])
    if not registry.has("methods", named["method"]) and named["method"] not in aliases["external"]:
        raise unknown_name("published method", row["method"], aliases["methods"])
    labels = row["labels"] and aliases["labels"][row["labels"]]
    return {"dataset": dataset, "labels": labels, **named}
