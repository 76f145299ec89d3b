"""The paper's tables: published numbers by their names here, and tables checked cell by cell from rows of the test."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from scipy import stats  # type: ignore[import-untyped]

from dcbench_tesla import registry
from dcbench_tesla.cli import main
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.records.store import content_key
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.declarations import Part, cells, declarations, row_name
from dcbench_tesla.reports.failed import failures
from dcbench_tesla.reports.files import report
from dcbench_tesla.reports.published import _resolved, external, published, references
from dcbench_tesla.reports.tables import missing, runs, table

TESLA = {"labels": "hard", "last_epoch": 50, "label_space": "logits", "lr_labels": 1.0, "lr_images": 100.0}
TESLA |= {"iterations": 5000, "lr_student_lr": 1e-5}


@dataclass
class Written:
    """Writes the rows of finished cells under ``root``, as `dcbench run` leaves them."""

    root: Path

    def __call__(self, method: str, values: Sequence[float], dataset: str = "cifar10", **changes: Any) -> None:
        """Write a cell: ``values`` are the test accuracies of the last set's networks, those ``before`` on the way."""
        o: dict[str, Any] = {
            "ipc": 10,
            "evaluator": "convnet",
            "preset": "paper",
            "protocol": "",
            "sets": {},
            "seed": 0,
        }
        o |= changes
        defaults: dict[str, Any] = {"tesla": TESLA, "random": {}, "whole": {}}.get(method, {"iterations": 300})
        settings = {**defaults, **o.get("settings", {})}
        data = {"train_images": o.get("train_images", 0), "validation": 0.0, "fingerprint": dataset}
        identity = {"method": method, "settings": settings, "data": data, "ipc": o["ipc"], "seed": o["seed"]}
        identity |= {"version": o.get("version", 1), "network": {"width": o.get("width", 128)} if settings else None}
        words = [f"dcbench run --method {o.get('command_of', method)} --dataset {dataset} --preset {o['preset']}"]
        words += [f"--set {name}={value}" for name, value in o["sets"].items()]
        protocol = o["protocol"] or o["preset"]
        if o["sets"] and "command_of" not in o:
            protocol += f", changed: {', '.join(sorted(o['sets']))}"
        shared = {
            **{name: o[name] for name in ("ipc", "seed", "preset")},
            **{
                "cell": f"{method}-{dataset}",
                "method": method,
                "dataset": dataset,
                "protocol": protocol,
                "command": " ".join(words),
            },
            "hardware": "a machine",
            "environment": {"commit": "0123456789ab"},
        }
        key = content_key(identity)
        made = {
            "identity": identity,
            "settings": settings,
            "distilled_images": o.get("images", 10 * (o["ipc"] or 5000)),
        }
        made |= {"condense_seconds": 10.0, "peak_bytes": 2**20}
        evaluated = [{"iteration": i, "test": test} for i, test in o.get("before", {}).items()]
        evaluated.append({"iteration": 5000, "test": list(values)})
        best = max(evaluated, key=lambda e: sum(e["test"]) / len(e["test"]))
        tested = {
            "condense_key": key,
            "evaluator": o["evaluator"],
            "recipe": o.get("recipe", "published, width 128"),
            "settings": {"epochs": o.get("epochs", 1000)},
            "networks": len(values),
            "dataset_fingerprint": dataset,
            "evaluated": evaluated,
            "accuracy": {
                "last": accuracy(evaluated[-1]),
                "best_on_validation": None,
                "best_on_test": accuracy(best),
            },
            "diverged_networks": 0,
            "evaluate_seconds": 1.0,
        }
        workspace = Workspace(self.root)
        workspace.write_row("condense", key, {**shared, **made})
        workspace.write_row("evaluate", content_key([key, tested]), {**shared, **tested})

    def table(self, name: str = "table1") -> pd.DataFrame:
        """Return a table made of the rows."""
        declared, workspace = declarations()[name], Workspace(self.root)
        return table(declared, runs(declared, workspace), failures(workspace, declared.methods))


HIDDEN = ("kip", "frepo")


@pytest.fixture(autouse=True)
def hidden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods of the paper's tables are not installed, unless a test asks for ``installed``."""
    everything: Callable[[Any], dict[str, EntryPoint]] = registry._points
    if "installed" not in request.fixturenames:
        kept = {
            kind: {n: p for n, p in everything(kind).items() if n not in HIDDEN} for kind in get_args(registry.Kind)
        }
        monkeypatch.setattr(registry, "_points", lambda kind: kept[kind])


@pytest.fixture
def installed() -> None:
    """All methods are installed."""


def accuracy(evaluated: dict[str, Any]) -> dict[str, Any]:
    values = evaluated["test"]
    mean = sum(values) / len(values)
    std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    return {"mean": mean, "std": std, "values": values, "iteration": evaluated["iteration"]}


def one_line_each(text: str) -> str:
    """Markdown with each note on one line."""
    return re.sub(r"\n {2}(?=\S)", " ", text)


@pytest.fixture
def write(tmp_path: Path) -> Written:
    return Written(tmp_path)


def one(found: pd.DataFrame, **where: Any) -> dict[Any, Any]:
    """The one row of a table with these values."""
    for name, value in where.items():
        found = found[found[name] == value]
    (row,) = found.to_dict("records")
    return row


def dcbench(*words: object) -> Result:
    torch.set_num_threads(1)
    return CliRunner().invoke(main, [str(word) for word in words])


# ---------------------------------------------------------------------------------------------- published numbers


def rows_of(file: str) -> list[dict[str, str]]:
    """A reference file, read by other means than the package's."""
    text = files("dcbench_tesla.reports.reference").joinpath(file).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_every_reference_row_is_of_a_known_data_set_and_a_known_or_external_method() -> None:
    table = references()
    sizes = [len(rows_of(f"paper_table{n}.csv")) for n in (1, 2)]
    assert len(table) == sum(sizes) + 3 * len(rows_of("paper_table3.csv")) + len(rows_of("published_accuracy.csv"))
    assert set(table["dataset"]) <= set(registry.names("datasets"))
    assert set(table["method"]) <= {*registry.names("methods"), *external()}
    assert set(table["evaluator"]) <= {*registry.names("evaluators"), ""}
    assert table["mean"].between(0, 1).all()
    assert (table["source"].str.len() > 4).all()


def test_declared_methods_are_here_or_external_and_networks_and_data_sets_are_here() -> None:
    for declared in declarations().values():
        assert set(declared.methods) <= {*registry.names("methods"), *external()}
        assert set(declared.further) <= set(declared.methods)
        assert set(declared.evaluators) <= set(registry.names("evaluators"))
        assert set(declared.datasets) <= set(registry.names("datasets"))


@pytest.mark.parametrize("wrong", [{"method": "TESLAA"}, {"dataset": "CIFAR11"}])
def test_a_reference_row_of_another_name_is_refused(wrong: dict[str, str]) -> None:
    aliases: dict[str, Any] = {"methods": {"TESLA": "tesla"}, "datasets": {"CIFAR10": "cifar10"}, "external": {}}
    row = {"method": "TESLA", "dataset": "CIFAR10", "labels": ""}
    assert _resolved(row, aliases) == {"method": "tesla", "dataset": "cifar10", "labels": ""}
    with pytest.raises(UsageError, match=r"unknown published .*Did you mean"):
        _resolved({**row, **wrong}, aliases)


@pytest.mark.parametrize(
    ("where", "shown", "source"),
    [
        (("paper_table1.csv", "cifar10", 10, "tesla", "convnet"), "66.4 ± 0.8", "TESLA Table 1"),
        (("paper_table1.csv", "cifar100", 10, "random", "convnet"), "18.6 ± 0.25", "TESLA Table 1"),
        (("paper_table1.csv", "cifar100", None, "whole", "convnet"), "56.7 ± 0.2", "TESLA Table 1"),
        (("paper_table1.csv", "imagenet1k-64", 50, "tesla", "convnet"), "27.9 ± 1.2", "TESLA Table 1"),
        (("paper_table2.csv", "imagenet1k-64", 1, "tesla", "convnet", "hard"), "0.7 ± 0.1", "TESLA Table 2"),
        (("paper_table2.csv", "imagenet1k-64", 1, "tesla", "convnet", "target"), "7.7 ± 0.2", "TESLA Table 2"),
        (("paper_table3.csv", "cifar10", 10, "mtt", "vit"), "34.6 ± 0.6", "TESLA Table 3"),
        (("paper_table3.csv", "cifar10", 10, "dsa", "convnet"), "53.0 ± 0.4", "TESLA Table 3"),
        (("paper_table1.csv", "fashion-mnist", 10, "dsa", "convnet"), "84.6 ± 0.3", "Zhao&Bilen 2021 DSA"),
        (("paper_table1.csv", "tiny-imagenet", 1, "mtt", "convnet"), "8.8 ± 0.3", "DATM README"),
    ],
)
def test_a_published_number_is_found(where: tuple[Any, ...], shown: str, source: str) -> None:
    found = published(*where)
    assert found is not None
    assert str(found) == shown
    assert found.source.startswith(source)


@pytest.mark.parametrize(
    "where",
    [
        ("paper_table1.csv", "imagenet1k-64", 10, "dm", "convnet"),  # the paper leaves it empty
        ("paper_table1.csv", "cifar10", 10, "dc", "convnet"),  # others print it, the paper's table does not
        ("paper_table1.csv", "fashion-mnist", 1, "tesla", "convnet"),
        ("paper_table1.csv", "imagenet1k-64", 10, "sre2l", "convnet"),  # at 224 pixels, by a network of its own
    ],
)
def test_what_was_not_published_stands_beside_nothing(where: tuple[Any, ...]) -> None:
    assert published(*where) is None


def test_other_sources_and_other_networks_are_told() -> None:
    mtt = published("paper_table1.csv", "tiny-imagenet", 1, "mtt", "convnet")
    kip = published("paper_table1.csv", "fashion-mnist", 1, "kip", "convnet")
    assert mtt is not None
    assert kip is not None
    assert mtt.others == ("8.27 (DC-bench leaderboard html (best over augmentations; 2022-09))",)
    assert "width 1024" in kip.note


# ------------------------------------------------------------------------------------------------ tables, cell by cell


def test_a_cell_beside_what_was_published(write: Written) -> None:
    write("tesla", [0.64, 0.66], before={1000: [0.67, 0.69]})
    write("whole", [0.80, 0.84], ipc=None)
    row = one(write.table(), dataset="cifar10", ipc=10, method="tesla")
    assert (row["status"], row["protocol"], row["cell_protocol"]) == ("run", "paper", "paper")
    assert (row["last"], row["best_on_test"]) == pytest.approx((0.65, 0.68))
    assert row["best_on_test_std_networks"] == pytest.approx(0.01)
    assert (row["published"], row["published_std"]) == (0.664, 0.008)
    assert row["difference_points"] == pytest.approx(1.6)  # the best on test, which was published: not the last
    low, high = stats.t.interval(0.95, 1, 0.68, stats.sem([0.67, 0.69]))
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((100 * low - 66.4, 100 * high - 66.4))
    assert (row["last_low"], row["last_high"]) == pytest.approx(
        stats.t.interval(0.95, 1, 0.65, stats.sem([0.64, 0.66]))
    )
    assert row["share_of_whole"] == pytest.approx(0.68 / 0.82)
    assert row["published_share_of_whole"] == pytest.approx(66.4 / 86.0)
    assert row["share_of_images"] == row["published_share_of_images"] == pytest.approx(100 / 50_000)
    assert (row["last_networks"], row["seeds"], row["hardware"]) == (2, 1, "a machine")


def test_what_was_not_run_is_empty(write: Written) -> None:
    write("tesla", [0.64, 0.66])
    found = write.table()
    others = found[(found["method"] != "tesla") | (found["ipc"] != 10) | (found["dataset"] != "cifar10")]
    assert set(others["status"]) == {"not run", "not implemented"}
    measured = ["last", "last_low", "best_on_test", "difference_points", "difference_low", "share_of_whole"]
    measured += ["share_of_images", "hardware"]
    assert others[measured].isna().all(axis=None)
    assert set(found.loc[found["status"] == "not implemented", "method"]) == {"kip", "frepo"}


def test_all_published_numbers_of_the_paper_are_in_its_tables(write: Written) -> None:
    for name, columns in (("table1", ["mean"]), ("table3", ["convnet_mean", "resnet18_mean", "vit_mean"])):
        printed = [float(row[column]) for row in rows_of(f"paper_{name}.csv") if row["ipc"] for column in columns]
        found = write.table(name)
        shown = found.loc[(found["method"] != "whole") & found["published"].notna(), "published"]
        assert sorted(100 * shown) == pytest.approx(sorted(printed))


def test_protocols_are_never_mixed(write: Written) -> None:
    write("tesla", [0.60])
    write("tesla", [0.50], preset="quick", settings={"steps": 20})
    write("tesla", [0.40], preset="quick", sets={"steps": 10}, settings={"steps": 10})
    found = write.table()
    rows = found[(found["dataset"] == "cifar10") & (found["ipc"] == 10) & (found["method"] == "tesla")]
    assert dict(zip(rows["protocol"], rows["last"], strict=True)) == {
        "paper": 0.60,
        "quick": 0.50,
        "quick, changed: steps=10": 0.40,
    }
    text = report(declarations()["table1"], Workspace(write.root)).text
    assert "| reduced protocol: quick " in text
    assert "| reduced protocol: quick, changed (a) " in text
    assert (
        "reduced protocol: quick, changed (a), not comparable with published numbers: changed: steps=10"
        in one_line_each(text)
    )


def test_a_baseline_stands_under_every_protocol_of_its_data_and_evaluation(write: Written) -> None:
    write("tesla", [0.5], preset="quick", sets={"steps": 10, "data.zca": "true"}, settings={"steps": 10})
    write("tesla", [0.4], preset="quick", sets={"steps": 9, "data.zca": "true"}, settings={"steps": 9})
    write("random", [0.3], preset="quick", sets={"steps": 10, "data.zca": "true"}, command_of="tesla")
    write("random", [0.2], preset="quick", version=2)
    found = write.table()
    random = found[(found["method"] == "random") & (found["dataset"] == "cifar10") & (found["ipc"] == 10)]
    assert dict(zip(random["protocol"], random["last"], strict=True)) == {
        "quick": 0.2,
        "quick, changed: data.zca=true steps=10": 0.3,
        "quick, changed: data.zca=true steps=9": 0.3,
    }


def test_of_two_baselines_the_one_by_its_own_protocol_is_shown(write: Written) -> None:
    write("tesla", [0.5])
    write("random", [0.4], protocol="paper, data and evaluation as tesla", version=2)
    write("random", [0.3])
    assert one(write.table(), dataset="cifar10", ipc=10, method="random")["last"] == 0.3


def test_one_value_written_in_several_ways_is_one_protocol(write: Written) -> None:
    ways = ((0, {"data.zca": "true", "lr_images": "5e3"}), (1, {"data.zca": "True", "lr_images": "5000"}))
    for seed, sets in ways:
        write("tesla", [0.5], preset="quick", sets=sets, settings={"lr_images": 5000.0}, seed=seed, epochs=seed + 1)
    found = write.table()
    assert set(found.loc[found["status"] == "run", "protocol"]) == {"quick, changed: data.zca=true lr_images=5000.0"}


def test_a_value_with_spaces_is_one_value(write: Written) -> None:
    write("tesla", [0.5], preset="quick", sets={"experts.imported": "my own"}, settings={"steps": 10})
    (row,) = (path for path in write.root.glob("rows/*") if path.stem.startswith("evaluate"))
    row.write_text(row.read_text().replace("--set experts.imported=my own", "--set 'experts.imported=my own'"))
    assert "quick, changed: experts.imported=my own" in set(write.table()["protocol"])


def test_another_version_of_a_method_is_a_row_of_its_own(write: Written) -> None:
    write("tesla", [0.5])
    write("tesla", [0.6], version=2)
    found = write.table()
    rows = found[(found["method"] == "tesla") & (found["status"] == "run")]
    assert sorted(rows["last"]) == [0.5, 0.6]
    assert all(re.fullmatch(r"paper \([0-9a-f]{6}\)", name) for name in rows["protocol"])


def test_further_seeds_are_no_further_rows(write: Written) -> None:
    write("tesla", [0.5, 0.6])
    write("tesla", [0.6, 0.7], seed=1)
    row = one(write.table(), dataset="cifar10", ipc=10, method="tesla")
    assert (row["last"], row["seeds"], row["last_std_seeds"]) == pytest.approx((0.6, 2, 0.05))


def test_settings_of_others_are_told(write: Written) -> None:
    write("tesla", [0.5], protocol="paper, settings of MTT")
    assert "paper: `convnet` published, width 128; `tesla` by paper, settings of MTT;" in (
        report(declarations()["table1"], Workspace(write.root)).text
    )


def test_a_data_set_outside_the_paper_is_a_row_of_its_own(write: Written) -> None:
    write("dsa", [0.70, 0.72], "fashion-mnist", preset="quick", ipc=10, train_images=20_000)
    write("herding", [0.75], "fashion-mnist", preset="quick", ipc=10)
    write("dsa", [0.1], "npz:mine", preset="quick", ipc=10, train_images=400)
    found = write.table()
    row = one(found, dataset="fashion-mnist", method="dsa")
    assert (row["published"], row["difference_points"]) == (0.846, pytest.approx(71.0 - 84.6))
    assert (row["share_of_images"], row["published_share_of_images"]) == pytest.approx((100 / 20_000, 100 / 60_000))
    own = one(found, dataset="npz:mine", method="dsa")
    assert pd.isna(own["published"])
    assert own["share_of_images"] == 0.25
    assert set(found.loc[found["method"] == "herding", "dataset"]) == {
        "fashion-mnist"
    }  # not the paper's: where it was run


def test_table_2_compares_labels(write: Written) -> None:
    write("tesla", [0.006], "imagenet1k-64", ipc=1, sets={"labels": "hard"})
    write("tesla", [0.070], "imagenet1k-64", ipc=1, settings={"labels": "target"})
    write("tesla", [0.5], "digits", ipc=1, preset="smoke")  # one strategy compares nothing
    found = write.table("table2")
    hard, target = (one(found, ipc=1, labels=name, protocol="paper") for name in ("hard", "target"))
    assert (hard["last"], hard["published"], hard["difference_points"]) == pytest.approx((0.006, 0.007, -0.1))
    assert (target["last"], target["published"], target["difference_points"]) == pytest.approx((0.07, 0.077, -0.7))
    assert set(found["dataset"]) == {"imagenet1k-64"}


def test_table_3_compares_networks(write: Written) -> None:
    for name, values in (("convnet", [0.66]), ("resnet18", [0.49]), ("vit", [0.35])):
        write("tesla", values, evaluator=name, recipe=f"recipe of {name}")
    write("tesla", [0.5], ipc=1, dataset="digits")  # by one network
    found = write.table("table3")
    differences = {
        name: one(found, dataset="cifar10", method="tesla", evaluator=name)["difference_points"]
        for name in ("convnet", "resnet18", "vit")
    }
    assert differences == pytest.approx({"convnet": -0.4, "resnet18": 0.1, "vit": 0.2})
    assert "digits" not in set(found["dataset"])


def test_label_strategies_of_figure_2_are_not_in_table_1(write: Written) -> None:
    write("tesla", [0.5], "digits", settings={"labels": "last"}, sets={"labels": "last"})
    assert "digits" not in set(write.table()["dataset"])


def test_sets_that_came_as_files_are_not_ours(write: Written, tmp_path: Path) -> None:
    write("tesla", [0.5])
    for path in tmp_path.glob("rows/evaluate-*.json"):
        path.write_text(path.read_text().replace('"stage"', '"set": "digest",\n "stage"'))
    assert "run" not in set(write.table()["status"])


# ------------------------------------------------------------------------------------------ cells and what is missing


def test_the_cells_of_table_1_are_those_the_paper_printed() -> None:
    configs = cells(declarations()["table1"])
    found = sorted((c.dataset, "" if c.method == "whole" else str(c.ipc), c.method) for c in configs)
    printed = [row for row in rows_of("paper_table1.csv") if row["method"] not in ("kip", "frepo")]
    ipcs = {row["method"]: "" for row in printed if row["method"] == "whole"}
    assert found == sorted((row["dataset"], ipcs.get(row["method"], row["ipc"]), row["method"]) for row in printed)
    assert {config.preset for config in configs} == {"paper"}


@pytest.mark.parametrize(("name", "count"), [("table2", 8), ("table3", 12), ("figure2", 14)])
def test_the_number_of_cells(name: str, count: int) -> None:
    assert len(cells(declarations()[name])) == count


def test_table_3_has_three_networks_and_table_2_changes_only_what_the_preset_has_not() -> None:
    assert {tuple(c.evaluators) for c in cells(declarations()["table3"])} == {("convnet", "resnet18", "vit")}
    changed = {(c.settings.labels, c.changed) for c in cells(declarations()["table2"])}
    assert changed == {("hard", ("labels",)), ("target", ())}


def test_figure_2_has_four_strategies_and_ten_epochs_of_labels_alone() -> None:
    configs = cells(declarations()["figure2"])
    alone = [c.settings for c in configs if c.settings.lr_images == 0]
    assert [s.last_epoch for s in alone] == list(range(10))
    assert {(s.labels, s.iterations, s.lr_student_lr) for s in alone} == {("last", 1, 0.0)}
    assert {c.settings.labels for c in configs if c.settings.lr_images} == {"hard", "learned", "last", "target"}


def test_a_part_of_the_cells() -> None:
    part = Part(datasets=("fashion-mnist",), ipcs=(1, 10), preset="quick")
    found = [(c.method, c.ipc, c.protocol) for c in cells(declarations()["table1"], part)]
    methods = ["random", "dsa", "dm", "mtt", "tesla"]
    assert sorted(found) == sorted([(m, i, "quick") for m in methods for i in (1, 10)] + [("whole", 1, "quick")])
    named = Part(
        datasets=("cifar10",), ipcs=(1,), methods=("tesla-exact", "kip")
    )  # one is not the paper's, one not here
    assert [c.method for c in cells(declarations()["table1"], named)] == ["tesla-exact"]


def test_what_is_missing(write: Written) -> None:
    declaration, part = declarations()["table1"], Part(datasets=("digits",), ipcs=(1,), preset="smoke")
    write("tesla", [0.9], "digits", ipc=1, preset="smoke", settings={"labels": "hard"})
    write("dm", [0.9], "digits", ipc=1, preset="smoke", sets={"iterations": 3})  # another protocol
    write("whole", [0.9], "digits", ipc=None, preset="smoke")
    absent = missing(declaration, cells(declaration, part), runs(declaration, Workspace(write.root)))
    assert [(config.method, evaluator) for config, evaluator in absent] == [
        (name, "convnet") for name in ("random", "dsa", "dm", "mtt")
    ]


def test_what_is_missing_of_labels(write: Written) -> None:
    declaration, part = declarations()["table2"], Part(datasets=("digits",), ipcs=(1,), preset="smoke")
    write("tesla", [0.9], "digits", ipc=1, preset="smoke", sets={"labels": "hard"})  # as the preset has it anyway
    absent = missing(declaration, cells(declaration, part), runs(declaration, Workspace(write.root)))
    assert [config.settings.labels for config, _ in absent] == ["target"]


@pytest.mark.parametrize(
    ("given", "name"), [("npz:/a/b/mine.npz", "npz:mine"), ("folder:/a/b", "folder:b"), ("cifar10", "cifar10")]
)
def test_a_data_set_is_called_as_in_its_rows(given: str, name: str) -> None:
    assert row_name(given) == name


@pytest.mark.usefixtures("installed")
def test_every_method_of_the_papers_tables_is_implemented(write: Written) -> None:
    assert set(write.table()["status"]) == {"not run"}
    assert set(HIDDEN) < {config.method for config in cells(declarations()["table1"])}
    assert "not implemented" not in report(declarations()["table1"], Workspace(write.root)).text


# ------------------------------------------------------------------------------------------------------- related work


def test_every_method_of_this_repository_is_in_one_family() -> None:
    families = declarations()["related"].families
    named = [name for methods in families.values() for name in methods]
    assert len(named) == len(set(named))
    own = {name for name in registry.names("methods") if registry.load_method(name).__module__.startswith("dcbench_")}
    assert own <= set(named)
    assert list(families) == ["hard labels on fixed pixels", "soft or learned labels", "parametrised"]


@pytest.mark.parametrize(
    ("method", "settings", "family"),
    [
        ("tesla", {"labels": "hard"}, 0),
        ("tesla", {"labels": "target"}, 1),
        ("dm", {"factor": 2}, 2),
        ("dm", {"factor": 1}, 0),
        ("idc", {}, 2),
        ("idc", {"factor": 1}, 0),
        ("rded", {"labels": "hard"}, 1),
        ("datm", {"labels": "learned"}, 1),
    ],
)
def test_settings_can_make_a_cell_one_of_another_family(method: str, settings: dict[str, Any], family: int) -> None:
    declared = declarations()["related"]
    assert declared.family(method, settings) == [*declared.families][family]


def test_related_work_has_families_with_numbered_sources(write: Written) -> None:
    write("tesla", [0.7, 0.72], ipc=1)
    write("dm", [0.3], ipc=1)
    write("ld", [0.5], ipc=1)
    write("dm", [0.9], ipc=1, sets={"lr_images": 5.0}, settings={"lr_images": 5.0})  # changed: Table 1 has it
    made = report(declarations()["related"], Workspace(write.root), Part(datasets=("cifar10",), ipcs=(1,)))
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in made.text.splitlines() if line.startswith("|")]
    assert lines[0] == ["data set", "family", "method", "accuracy", "IPC 1", "source"]
    notes = " ".join(made.text.split()).split(" - ")  # broken at 80 columns
    sources = {f"- {note.split(': ', 1)[0]}": note.split(": ", 1)[1] for note in notes if ": " in note}
    by_method: dict[str, list[list[str]]] = {}
    method = ""
    for line in lines[2:]:
        method = line[2] or method
        by_method.setdefault(method, []).append(line[3:])
    assert by_method["`tesla`"][1][:2] == ["paper, best on test", "71.0 ± 1.0"]
    assert [line[1] for line in by_method["`dm`"]] == ["26.0 ± 0.8", "30.0", "30.0"]
    (printed, *own) = by_method["`ld`"]
    assert printed[1] == "25.7 ± 0.7"
    assert sources[f"- source {printed[2]}"].endswith("the network is another one, AlexNet")
    assert [line[1] for line in own] == ["50.0", "50.0"]
    assert by_method["`rded`"][0][1] == "23.5 ± 0.3"
    assert "79.5" not in made.text  # DD's on MNIST is from memory, and is not printed
    families = [line[1] for line in lines[2:] if line[1]]
    assert families == list(declarations()["related"].families)
    rows = made.rows[Workspace(write.root).tables / "related.csv"]
    ld = one(rows[rows["published"].notna()], dataset="cifar10", ipc=1, method="ld")
    assert (ld["status"], ld["published"]) == ("run", 0.257)
    assert pd.isna(ld["difference_points"])  # of another network


# ----------------------------------------------------------------------------------------------------------- a plugin


@pytest.fixture
def kip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's package registers a method ``kip``."""
    registered: Callable[[Any], dict[str, EntryPoint]] = registry._points
    point = EntryPoint("kip", "dcbench_tesla.methods.classwise.dm:DM", "dcbench.methods")
    monkeypatch.setattr(
        registry, "_points", lambda kind: {**registered(kind), **({"kip": point} if kind == "methods" else {})}
    )


@pytest.mark.usefixtures("kip")
def test_a_plugin_fills_its_column(write: Written) -> None:
    assert one(write.table(), dataset="cifar10", ipc=10, method="kip")["status"] == "not run"
    write("kip", [0.5])
    row = one(write.table(), dataset="cifar10", ipc=10, method="kip")
    assert (row["status"], row["last"], row["difference_points"]) == ("run", 0.5, pytest.approx(50.0 - 47.2))
    assert "kip" in {config.method for config in cells(declarations()["table1"])}
    text = report(declarations()["table1"], Workspace(write.root)).text
    assert "`kip`: KIP" not in text  # no longer told as not implemented
    assert "`frepo`: FRePo" in text


@pytest.fixture
def broken_kip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's package registers a method ``kip`` that cannot be imported."""
    registered: Callable[[Any], dict[str, EntryPoint]] = registry._points
    point = EntryPoint("kip", "no_such_package:KIP", "dcbench.methods")
    monkeypatch.setattr(
        registry, "_points", lambda kind: {**registered(kind), **({"kip": point} if kind == "methods" else {})}
    )


@pytest.mark.usefixtures("broken_kip")
def test_a_broken_plugin_is_a_status_and_its_cells_are_left_out(write: Written) -> None:
    write("tesla", [0.5])
    found = write.table()
    status = one(found, dataset="cifar10", ipc=10, method="kip")["status"]
    assert status.startswith("cannot be imported: ModuleNotFoundError: No module named 'no_such_package'")
    assert one(found, dataset="cifar10", ipc=10, method="tesla")["status"] == "run"
    assert "kip" not in {config.method for config in cells(declarations()["table1"])}
    text = report(declarations()["table1"], Workspace(write.root)).text
    assert "- `kip`: cannot be imported: ModuleNotFoundError" in text
    head, *lines = lines_of(text, "`cifar10`", "10", "paper")
    assert lines[0][head.index("`kip`")] == "cannot be imported"


# ----------------------------------------------------------------------------------------------------- what failed


def failed(write: Written, command: str, status: str = "out of memory", **changes: Any) -> None:
    """Write the row of a cell that failed."""
    row = {"method": "tesla", "dataset": "cifar10", "ipc": 10, "seed": 0, "preset": "paper", "protocol": "paper"}
    row |= {"command": f"dcbench run --method tesla {command}", "status": status, "reason": "there was no room for it"}
    row |= {"cell": "tesla-cifar10", "hardware": "CPU", "environment": {"commit": "abc"}}
    Workspace(write.root).write_row("failed", content_key([command, changes]), {**row, **changes})


def test_what_failed_is_told_in_the_table_and_among_what_is_missing(write: Written) -> None:
    failed(write, "--ipc 10")
    failed(write, "--ipc 1", "failed", ipc=1, reason="the experts are damaged. " + "word " * 99)
    failed(write, "--ipc 50 --set steps=3", "diverged", ipc=50)
    found = write.table()
    status = {ipc: one(found, dataset="cifar10", ipc=ipc, method="tesla")["status"] for ipc in (1, 10)}
    assert status[10] == "failed: out of memory"
    assert status[1].startswith("failed: the experts are damaged. word")
    assert len(status[1]) < 80
    changed = one(found, dataset="cifar10", ipc=50, method="tesla", protocol="paper, changed: steps=3")
    assert changed["status"] == "failed: diverged"
    assert one(found, dataset="cifar10", ipc=10, method="dm")["status"] == "not run"
    text = report(declarations()["table1"], Workspace(write.root)).text
    head, *lines = lines_of(text, "`cifar10`", "10", "paper")
    assert lines[0][head.index("`tesla`")] == "failed: out of memory"
    assert "tesla (failed: out of memory: there was no room for it)" in one_line_each(text)
    assert "- paper, changed (a): changed: steps=3" in text
    (missing_of_50,) = [line for line in text.splitlines() if line.startswith("- `cifar10` IPC 50")]
    assert "failed" not in missing_of_50  # another protocol than the wanted one


def test_what_was_run_since_did_not_fail(write: Written) -> None:
    failed(write, "--ipc 10", seed=1)
    write("tesla", [0.5])
    assert one(write.table(), dataset="cifar10", ipc=10, method="tesla")["status"] == "run"


def test_what_failed_is_told_by_labels_and_by_network(write: Written) -> None:
    failed(write, "--set labels=hard", dataset="imagenet1k-64", ipc=1)
    found = write.table("table2")
    status = {name: one(found, ipc=1, labels=name)["status"] for name in ("hard", "target")}
    assert status == {"hard": "failed: out of memory", "target": "not run"}
    failed(write, "--evaluator vit")
    found = write.table("table3")
    status = {
        name: one(found, dataset="cifar10", method="tesla", evaluator=name)["status"] for name in ("convnet", "vit")
    }
    assert status == {"convnet": "not run", "vit": "failed: out of memory"}
    text = report(declarations()["figure2"], Workspace(write.root)).text
    assert (
        "hard (failed: out of memory: there was no room for it), learned, last, target, labels alone (epochs 0 to 9)"
        in one_line_each(text)
    )


def test_a_baseline_that_the_changes_do_not_touch_says_so(write: Written) -> None:
    for name in ("convnet", "resnet18"):
        write("tesla", [0.5], evaluator=name, settings={"labels": "target"}, sets={"labels": "target"})
        write("random", [0.3], evaluator=name)
    text = report(declarations()["table3"], Workspace(write.root)).text
    (told,) = [line for line in one_line_each(text).splitlines() if line.startswith("- paper, changed (a)")]
    assert "`random` by paper" in told
    assert "`tesla` by" not in told


# ------------------------------------------------------------------------------------------------- for people, as files


def lines_of(text: str, *starts: str) -> list[list[str]]:
    """The lines of a Markdown table, its head first, each with the cells left empty below others filled in."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    for above, line in pairwise(rows[1:]):
        for i in range(3):
            line[i] = line[i] or above[i]
    return [rows[0], *(row for row in rows if row[: len(starts)] == list(starts))]


def test_markdown_has_ours_and_published_beside_each_other(write: Written) -> None:
    write("tesla", [0.64, 0.66], before={1000: [0.67, 0.69]})
    write("random", [0.31, 0.31])
    write("whole", [0.80, 0.84], ipc=None)
    head, *lines = lines_of(report(declarations()["table1"], Workspace(write.root)).text, "`cifar10`", "10")
    tesla, random, kip, whole = (head.index(f"`{name}`") for name in ("tesla", "random", "kip", "whole"))
    differences = ["paper", "", "best on test - published"]
    assert [[*line[2:5], line[random], line[kip], line[tesla], line[whole]] for line in lines] == [
        ["published", "0.2 %", "as printed", "31.0 ± 0.5", "47.2 ± 0.7", "66.4 ± 0.8", "86.0 ± 0.1"],
        ["published", "", "share of whole", "36.0", "54.9", "77.2", ""],
        ["paper", "0.2 %", "last", "31.0 ± 0.0", "not implemented", "65.0 ± 1.0", "82.0 ± 2.0"],
        ["paper", "", "interval of last", "[31.0, 31.0]", "", "[52.3, 77.7]", "[56.6, 100.0]"],
        ["paper", "", "best on test", "31.0 ± 0.0", "", "68.0 ± 1.0", "82.0 ± 2.0"],
        [*differences, "+0.0 [+0.0, +0.0]", "", "+1.6 [-11.1, +14.3]", "-4.0 [-29.4, +14.0]"],
        ["paper", "", "share of whole", "37.8", "", "82.9", ""],
    ]


@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_latex_is_balanced(write: Written, name: str) -> None:
    write("tesla", [0.5], "npz:a_b", preset="quick", sets={"steps": 10, "data.zca": "true"}, settings={"steps": 10})
    (text,) = (t for p, t in report(declarations()[name], Workspace(write.root)).texts.items() if p.suffix == ".tex")
    bare = re.sub(r"\\[{}&%$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not set(bare) & set("%#_±^~")
    assert bare.isascii()
    for kind in ("table", "tabular"):
        assert text.count(rf"\begin{{{kind}}}") == text.count(rf"\end{{{kind}}}") == 1
    (across,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert len(rows) > 4
    assert {row.count("&") for row in rows} == {len(across) - 1}


def test_the_same_rows_are_the_same_bytes(write: Written, tmp_path: Path) -> None:
    write("tesla", [0.005, 0.007], "imagenet1k-64", ipc=1, sets={"labels": "hard"})
    written = []
    for _ in range(2):
        paths = report(declarations()["table2"], Workspace(write.root)).write()
        written.append({path.name: path.read_bytes() for path in paths})
    assert written[0].keys() == {f"table2.{kind}" for kind in ("csv", "md", "tex", "png", "svg")}
    assert written[0] == written[1]


# ------------------------------------------------------------------------------------------------------------ Figure 2


ALONE = {"labels": "last", "iterations": 1, "lr_images": 0.0, "lr_student_lr": 0.0}


def strategies(write: Written) -> None:
    """Two strategies with tests on the way, and labels alone at two epochs, on a data set that is not the paper's."""
    where: dict[str, Any] = {"dataset": "npz:mine", "ipc": 1, "preset": "quick"}
    write("tesla", [0.03, 0.05], before={50: [0.05], 100: [0.02]}, **where)
    soft: dict[str, Any] = {"settings": {"labels": "target"}, "sets": {"labels": "target", "evaluation.every": 50}}
    write("tesla", [0.09, 0.11], before={50: [0.02], 100: [0.06]}, **soft, **where)
    for epoch, values in ((3, [0.03, 0.05]), (0, [0.01, 0.01])):
        own: dict[str, Any] = {**ALONE, "last_epoch": epoch}
        write("tesla", values, settings=own, sets=own, **where)


def test_best_accuracy_so_far_is_a_running_maximum(write: Written) -> None:
    strategies(write)
    made = report(declarations()["figure2"], Workspace(write.root))
    a = next(rows for path, rows in made.rows.items() if path.name == "figure2a.csv")
    hard, target = (a[a["labels"] == name] for name in ("hard", "target"))
    assert list(hard["iteration"]) == list(target["iteration"]) == [50, 100, 5000]
    assert list(hard["best_so_far"]) == pytest.approx([0.05, 0.05, 0.05])
    assert list(target["best_so_far"]) == pytest.approx([0.02, 0.06, 0.10])
    assert list(target["accuracy"]) == pytest.approx([0.02, 0.06, 0.10])
    assert list(target["networks"]) == [1, 1, 2]
    assert set(a["labels"]) == {"hard", "target"}  # labels alone are the other panel's
    assert a["panel"].nunique() == 1


def test_labels_alone_by_the_epoch_of_their_teacher(write: Written) -> None:
    strategies(write)
    made = report(declarations()["figure2"], Workspace(write.root))
    b = next(rows for path, rows in made.rows.items() if path.name == "figure2b.csv")
    assert list(b["last_epoch"]) == [0, 3]
    assert list(b["accuracy"]) == pytest.approx([0.01, 0.04])
    assert list(b["std_networks"]) == pytest.approx([0.0, 0.01])
    assert set(b["protocol"]) == {"quick"}  # what the figure is about is no other protocol
    assert "labels alone reach about 5.3 %, TESLA 7.7 %" in made.text
    assert len(made.figures) == 2


@pytest.mark.parametrize("other", [{"recipe": "another", "epochs": 300}, {"width": 32}, {"train_images": 100}])
def test_a_panel_shares_recipe_network_and_data(write: Written, other: dict[str, Any]) -> None:
    for labels in ("hard", "target"):
        for changes in ({}, other):
            write("tesla", [0.1], "npz:mine", ipc=1, preset="quick", settings={"labels": labels}, **changes)
    a = next(iter(report(declarations()["figure2"], Workspace(write.root)).rows.values()))
    assert dict(a.groupby("panel")["strategy"].agg(sorted)) == {key: ["hard", "target"] for key in a["panel"]}
    assert a["panel"].nunique() == 2


def test_other_settings_share_a_panel_and_are_told(write: Written) -> None:
    where: dict[str, Any] = {"dataset": "npz:mine", "ipc": 1, "preset": "quick"}
    write("tesla", [0.1], **where)
    write(
        "tesla",
        [0.2],
        settings={"labels": "target", "lr_images": 9.0},
        sets={"labels": "target", "lr_images": 9.0},
        **where,
    )
    made = report(declarations()["figure2"], Workspace(write.root))
    a = next(iter(made.rows.values()))
    assert a["panel"].nunique() == 1
    assert set(a["protocol"]) == {"quick", "quick, changed: lr_images=9.0"}
    assert "changed: lr_images=9.0" in made.text


def test_a_protocol_has_one_letter_in_both_panels_and_below_them(write: Written) -> None:
    for dataset, changes in (("npz:mine", ((1.0, 0.1), (2.0, 0.2))), ("npz:other", ((2.0, 0.2), (3.0, 0.3)))):
        for rate, value in changes:
            for labels in ("hard", "target"):
                own: dict[str, Any] = {"labels": labels, "lr_teacher": rate}
                write("tesla", [value], dataset, ipc=1, preset="quick", settings=own, sets=own)
    made = report(declarations()["figure2"], Workspace(write.root))
    (figure,) = made.figures.values()
    letters = {f"quick, changed ({letter})": 1.0 + i for i, letter in enumerate("abc")}
    drawn = {
        (str(line.get_label()).partition(", reduced protocol: ")[2], float(np.asarray(line.get_ydata())[-1]))
        for axes in figure.axes
        for line in axes.get_lines()
    }
    assert drawn == {(name, 10 * rate) for name, rate in letters.items()}
    below = figure.get_supxlabel()
    assert all(f"{name}, not comparable" in below for name in letters)
    assert all(f"{name}, not comparable" in made.text for name in letters)


def test_one_strategy_is_no_comparison(write: Written) -> None:
    write("tesla", [0.1], "npz:mine", ipc=1, preset="quick")
    made = report(declarations()["figure2"], Workspace(write.root))
    assert [len(rows) for rows in made.rows.values()] == [0, 0]
    assert not made.figures


# --------------------------------------------------------------------------------------------------- the command line


def test_an_empty_folder_gives_the_published_table_and_says_how_to_fill_it(tmp_path: Path) -> None:
    result = dcbench("reproduce", "table1", "--no-shipped", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (head, *lines) = lines_of(result.stdout, "`imagenet1k-64`", "1")
    assert lines[0][head.index("`tesla`")] == "7.7 ± 0.2"
    assert lines[-1][head.index("`tesla`")] == ""
    count = len([row for row in rows_of("paper_table1.csv") if row["method"] not in ("kip", "frepo")])
    assert f"{count} of {count} cells by preset `paper` are missing: `dcbench reproduce table1 --run`" in result.stdout
    assert "`dcbench plan table1` says how long it takes" in result.stdout
    assert {path.name for path in tmp_path.glob("tables/*")} == {
        f"table1.{k}" for k in ("csv", "md", "tex", "png", "svg")
    }
    assert (tmp_path / "tables" / "table1.png").read_bytes().startswith(b"\x89PNG")
    assert "run" not in set(pd.read_csv(tmp_path / "tables" / "table1.csv")["status"])


def test_a_part_is_shown_and_the_whole_is_written(write: Written, tmp_path: Path) -> None:
    write("tesla", [0.5], "digits", ipc=1, preset="smoke")
    write("dm", [0.5], "digits", ipc=1, preset="smoke")
    write("tesla", [0.5], "digits", ipc=1, preset="quick")
    words = ["--dataset", "digits", "--method", "tesla", "--preset", "smoke", "--ipc", 1]
    result = dcbench("reproduce", "table1", *words, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    head, *_ = lines_of(result.stdout)
    assert head[-1] == "`tesla`"
    assert "`dm`" not in result.stdout
    assert "cifar10" not in result.stdout
    assert "smoke" in result.stdout
    assert "quick" not in result.stdout
    assert "published" not in "".join(line for line in result.stdout.splitlines() if line.startswith("|"))
    written = pd.read_csv(tmp_path / "tables" / "table1.csv")
    assert {"cifar10", "digits"} <= set(written["dataset"])
    assert {"smoke", "quick"} <= set(written["protocol"])


def test_a_fuller_table_is_not_replaced_unasked(write: Written, tmp_path: Path) -> None:
    write("tesla", [0.5])
    assert dcbench("reproduce", "table2", "--out", tmp_path).exit_code == 0
    write("tesla", [0.6], "imagenet1k-64", ipc=1, settings={"labels": "target"})
    assert dcbench("reproduce", "table2", "--out", tmp_path).exit_code == 0
    before = (tmp_path / "tables" / "table2.csv").read_bytes()
    for path in tmp_path.glob("rows/*"):
        path.unlink()
    result = dcbench("reproduce", "table2", "--out", tmp_path)
    assert result.exit_code == 1
    assert "table2.csv stays as it is: 1 of its rows were run, but are not on record" in result.stderr
    assert "--force replaces it" in result.stderr
    assert (tmp_path / "tables" / "table2.csv").read_bytes() == before
    assert dcbench("reproduce", "table2", "--out", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "tables" / "table2.csv").read_bytes() != before


def test_a_table_that_lacks_what_was_run_replaces_none_though_it_has_as_many_rows(write: Written) -> None:
    write("tesla", [0.5])
    made = report(declarations()["table1"], Workspace(write.root))
    made.write()
    for path in write.root.glob("rows/*"):
        path.unlink()
    write("tesla", [0.3], "cifar100")
    other = report(declarations()["table1"], Workspace(write.root))
    with pytest.raises(DcbenchError, match=r"table1.csv stays as it is: .*, for instance cifar10, 10, tesla, convnet"):
        other.write()
    other.write(force=True)


def test_what_has_another_name_beside_new_rows_is_not_lost(write: Written) -> None:
    """A baseline moves to the protocol of a cell that comes, and a second version gets digits behind its protocol."""
    write("tesla", [0.5])
    write("random", [0.3], preset="quick")
    report(declarations()["table1"], Workspace(write.root)).write()
    write("tesla", [0.6], version=2)
    write("tesla", [0.4], preset="quick", sets={"steps": 9}, settings={"steps": 9})
    found = write.table()
    assert "quick" not in set(found.loc[found["method"] == "random", "protocol"])
    report(declarations()["table1"], Workspace(write.root)).write()


def test_force_does_not_replace_what_is_no_table_of_ours(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "table1.csv").write_text("my,own\n1,2\n")
    result = dcbench("reproduce", "table1", "--out", tmp_path, "--force")
    assert result.exit_code == 1
    assert "table1.csv is another table: it has no column status. Move it away." in result.stderr
    assert (tmp_path / "tables" / "table1.csv").read_text() == "my,own\n1,2\n"


def test_all_of_them_and_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "table2.csv").write_text("my,own\n1,2\n")
    result = dcbench("reproduce", "all", "--no-shipped", "--dataset", "digits", "--out", tmp_path)
    assert result.exit_code == 1
    assert "figure1 has nothing of digits" in result.stderr
    assert "table2.csv is another table: it has no column status. Move it away." in result.stderr
    assert result.stderr.splitlines()[-1] == "Error: 1 of 6 failed, see above."
    assert {"table1.csv", "table3.csv", "figure2.md"} <= {path.name for path in tmp_path.glob("tables/*")}
    assert {path.name for path in tmp_path.glob("figures/*")} == {"figure2a.csv", "figure2b.csv"}
    assert (tmp_path / "tables" / "table2.csv").read_text() == "my,own\n1,2\n"


def test_all_of_a_method_that_some_have_not(tmp_path: Path) -> None:
    result = dcbench("reproduce", "all", "--method", "dsa", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "table2 has no dsa" in result.stderr
    assert "figure1 has nothing of dsa" in result.stderr
    assert {path.stem for path in tmp_path.glob("tables/*")} == {"related", "table1", "table3"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "cifar11"], "unknown data set 'cifar11'. Did you mean 'cifar10'?"),
        (["--method", "tesl"], "unknown method 'tesl'. Did you mean 'tesla'?"),
        (["--preset", "papr"], "unknown preset 'papr'. Did you mean 'paper'?"),
        (["--ipc", "0"], "--ipc must be at least 1, not 0."),
    ],
)
def test_usage(words: list[str], message: str, tmp_path: Path) -> None:
    result = dcbench("reproduce", "table1", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table2", "--method", "mtt"], "table2 has no mtt: it has tesla."),
        (["table1", "--method", "kip", "--run"], "kip is not implemented here (KIP"),
        (["table2", "--ipc", "5", "--run"], "table2 has no IPC 5: the paper's data sets have 1, 2, 10, 50 there."),
        (
            ["figure1", "--dataset", "digits"],
            "figure1 has nothing of digits: it has cifar100, imagenet1k-64, mtt, tesla",
        ),
        (["all", "--method", "dc", "--dataset", "cifar10", "--ipc", "1", "--preset", ""], "--preset is empty"),
        (["table1", "--backend", "nonsense"], "--backend has no effect without --run: leave it out, or add --run."),
        (["table1", "--jobs", "-3"], "--jobs has no effect without --run"),
        (["table2", "--timeout", "abc"], "--timeout has no effect without --run"),
        (["figure2", "--device", "zzz"], "--device has no effect without --run"),
        (["all", "--log", "tensorboard"], "--log has no effect without --run"),
        (["table1", "--run", "--backend", "nonsense"], "unknown backend 'nonsense'"),
        (["table1", "--run", "--log", "nonsense"], "unknown log 'nonsense'"),
    ],
)
def test_what_cannot_be_or_has_no_effect_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    result = dcbench("reproduce", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_ipc_that_the_paper_has_not_has_the_cells_of_any_data_set(write: Written) -> None:
    part = Part(datasets=("cifar10",), ipcs=(3,))
    found = [config.method for config in cells(declarations()["table1"], part)]
    assert found == ["random", "dsa", "dm", "mtt", "tesla", "whole"]
    result = dcbench("reproduce", "table1", "--dataset", "cifar10", "--ipc", 3, "--out", write.root)
    assert result.exit_code == 0, result.output
    assert "the paper has no IPC 3 of cifar10 in its Table 1 (it has 1, 10, 50)" in result.stderr
    assert {c.dataset for c in cells(declarations()["table1"], Part(ipcs=(2,)))} == {"imagenet1k-64"}


def test_what_was_run_stands_beside_the_baseline_on_record_and_is_told_apart(tmp_path: Path) -> None:
    words = ["--dataset", "digits", "--ipc", 1, "--preset", "smoke", "--out", tmp_path, "--device", "cpu", "--run"]
    first = dcbench("reproduce", "table1", "--method", "dm", *words)
    assert first.exit_code == 0, first.output
    assert "points over random" not in first.stdout
    assert dcbench("reproduce", "table1", "--method", "random", *words).exit_code == 0
    result = dcbench("reproduce", "table2", "--log", "tensorboard", *words)
    assert result.exit_code == 0, result.output
    head, *_ = [line for line in result.stdout.splitlines() if "points over random" in line]
    assert "changed" in head
    assert "labels=target" in re.sub(r"\s+", " ", result.stdout)
    assert list(tmp_path.glob("cells/tesla*/**/events.out.tfevents*"))


def test_what_is_missing_is_run_and_what_is_there_is_used(tmp_path: Path) -> None:
    words = ["--dataset", "digits", "--dataset", f"npz:{tmp_path}/absent.npz", "--ipc", 1, "--preset", "smoke"]
    words += ["--method", "random", "--method", "kip", "--out", tmp_path, "--device", "cpu", "--run"]
    result = dcbench("reproduce", "table1", *words)
    assert result.exit_code == 1  # of the data set that is not here
    assert result.stderr.count("absent.npz: no such file") == 1
    assert "random, ipc 1: evaluation by convnet" in result.stderr
    ran = pd.read_csv(tmp_path / "tables" / "table1.csv").query("status == 'run'")
    assert list(ran["method"]) == ["random"]
    again = dcbench("reproduce", "table1", *words[:2], *words[4:])
    assert again.exit_code == 0, again.output
    assert "nothing of it is missing" in again.stderr
    assert f"{100 * ran['last'].iloc[0]:.1f} ± " in again.stdout
