"""The committed results: rows are readable and complete, and README and docs/results/ show what they hold."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
from click.testing import CliRunner

from dcbench_tesla.cli import main
from dcbench_tesla.compare import memory
from dcbench_tesla.compare.accuracy import Wanted, accuracies, markdown, networks_of
from dcbench_tesla.compare.files import read_csv
from dcbench_tesla.compare.regimes import regimes
from dcbench_tesla.compare.statistics import Networks, compare
from dcbench_tesla.records.progress import size
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports import figure1, figure2, growth
from dcbench_tesla.reports.declarations import declarations
from dcbench_tesla.reports.files import report
from dcbench_tesla.reports.tables import runs
from tests.fixtures_results import ROOT, ROWS, gain, read, rows

PAGES = ROOT / "docs" / "results"
METHODS = ("random", "herding", "k-center", "dc", "dsa", "dm", "mtt", "tesla", "tesla-exact")


def first_seed() -> list[dict[str, Any]]:
    """Return the evaluations of the first seed on Fashion-MNIST, of networks that had the set's own labels."""
    found = [row for row in rows("evaluate") if row["dataset"] == "fashion-mnist" and "labels" not in row]
    return [row for row in found if row["seed"] == 0]


def quick_table(**wanted: Any) -> pd.DataFrame:
    """Return the accuracies on Fashion-MNIST by `quick`, of networks that had the set's own labels."""
    only = Wanted(datasets=["fashion-mnist"], presets=["quick"], labels=["set"], **wanted)
    return accuracies(Workspace(ROOT / "results"), only)


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_row_says_where_it_comes_from(path: Path) -> None:
    row = read(path)
    assert path.stem == f"{row['stage']}-{row['key']}"
    assert row["hardware"]
    assert row["protocol"]
    assert row["dataset_fingerprint"]
    assert row["environment"]["versions"]["torch"]
    assert row["environment"]["commit"]
    assert "+changes" not in row["environment"]["commit"]  # made by code that is in the history


def test_the_page_shows_the_committed_accuracies() -> None:
    text = page("fashion-mnist.md")
    quick = [r for r in first_seed() if r["protocol"] == "quick" and r["ipc"] == 1 and r["evaluator"] == "convnet"]
    assert quick
    for row in quick:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{row['method']}` | ![")]
        for name in ("last", "best_on_validation", "best_on_test"):
            accuracy = row["accuracy"][name]
            assert f" {100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f} |" in line
        sheet = ROOT / "results" / "sheets" / f"{row['cell']}.png"
        assert f"(../../results/sheets/{sheet.name})" in line
        assert sheet.is_file()


def test_the_page_shows_the_table_of_the_rows() -> None:
    text = page("fashion-mnist.md")
    lines = [line for line in markdown(quick_table(ipcs=[10])).splitlines() if line.startswith(("| ", "- "))]
    assert len(lines) > 4
    assert [line for line in lines if line not in text.splitlines()] == []


def test_the_page_says_of_other_ways_of_training_what_the_rows_say() -> None:
    text = " ".join(page("fashion-mnist.md").split())
    told = [row for row in first_seed() if row["preset"] == "quick"]

    def last(method: str, ipc: int, evaluator: str = "convnet", recipe: str = "published") -> dict[str, Any]:
        (row,) = [
            row
            for row in told
            if (row["method"], row["ipc"], row["evaluator"]) == (method, ipc, evaluator)
            and row["recipe"].startswith(recipe)
        ]
        accuracy: dict[str, Any] = row["accuracy"]
        return accuracy

    authors, frepo = last("frepo", 1, recipe="authors, frepo")["last"], last("frepo", 1)["last"]
    reached = f"reach {100 * authors['mean']:.1f} ± {100 * authors['std']:.1f} % on the set that gives"
    assert f"{reached} {100 * frepo['mean']:.1f} % here" in text
    one, ten = (100 * last("kip", ipc, "kernel-ridge", "kernel fc")["last"]["mean"] for ipc in (1, 10))
    assert f"predicts {one:.1f} % of the test images from the ten ({ten:.1f} % from a hundred)" in text
    assert f"trained on them reach {100 * last('kip', 1)['last']['mean']:.1f} %" in text
    by_labels, plain = last("ld", 1)["last"]["mean"], last("random", 1)["last"]["mean"]
    assert f"their labels alone bring {100 * (by_labels - plain):.1f} points over `random`" in text
    cafe = last("cafe", 1)
    assert cafe["best_on_test"]["iteration"] == 20
    assert f"below its set of iteration 20 ({100 * cafe['best_on_test']['mean']:.1f} %)" in text
    assert cafe["last"]["mean"] < cafe["best_on_test"]["mean"]
    assert last("idc", 1)["last"]["mean"] == max(last(r["method"], 1)["last"]["mean"] for r in told if r["ipc"] == 1)
    assert last("rded", 1)["last"]["mean"] > plain


@pytest.fixture(scope="module")
def over_random() -> dict[tuple[str, int, str], dict[Any, Any]]:
    """Return the rows of `compare regimes` with the sets' own labels, by method, IPC and network."""
    wanted = Wanted(datasets=["fashion-mnist"], presets=["quick"], evaluators=["convnet", "resnet18"])
    table = regimes(Workspace(ROOT / "results"), wanted)
    own = table[(table["regime"] == "set") & table["column"].isin(["convnet", "resnet18"])]
    return {(row["method"], row["ipc"], row["column"]): row for row in own.to_dict("records")}


def test_the_page_shows_the_points_over_random_of_three_seeds(
    over_random: dict[tuple[str, int, str], dict[Any, Any]],
) -> None:
    text, methods = page("fashion-mnist.md").splitlines(), set[str]()
    for method in {method for method, *_ in over_random}:
        shown = [over_random.get((method, ipc, net)) for ipc in (1, 10) for net in ("convnet", "resnet18")]
        if method == "random" or any(row is None or row["over_random_pairs"] != 3 for row in shown):
            continue
        cells = [gain(row) for row in shown if row is not None]
        assert f"| `{method}` | {' | '.join(cells)} |" in text
        methods.add(method)
    assert methods == {"herding", "k-center", "class-means", "rded", "dm", "dc", "dsa", "tesla"}


def test_what_stands_out_does(over_random: dict[tuple[str, int, str], dict[Any, Any]]) -> None:
    text = " ".join(page("fashion-mnist.md").split())

    def points(ipc: int, net: str, *, decided: bool = False) -> dict[str, float]:
        """Return the points over `random` of the methods with three seeds, the largest first."""
        own = {m: r for (m, i, n), r in over_random.items() if (i, n) == (ipc, net) and r["over_random_pairs"] == 3}
        found = {m: 100 * r["over_random"] for m, r in own.items() if r["over_random_p"] <= 0.05 or not decided}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    one, ten = points(1, "convnet"), points(10, "convnet")
    assert set(one) - {m for m, gained in points(1, "convnet", decided=True).items() if gained > 0} == {
        "class-means",
        "rded",
    }
    best = next(iter(one))
    assert f"`{best}` gains most there, {one[best]:.1f} points" in text
    above = {m: gained for m, gained in points(10, "convnet", decided=True).items() if gained > 0}
    (first, most), (second, more) = above.items()
    assert 0.2 < most / one[best] < 0.3
    assert f"Under the ConvNet `{first}` ({most:.1f} points) and `{second}` ({more:.1f}) are decidedly above" in text
    assert max(points(10, "resnet18", decided=True).values()) < 0
    assert ten["k-center"] < -10
    assert f"gains {ten['dsa']:.1f} points over `random` with ten images, which are not decided" in text
    assert "dsa" not in points(10, "convnet", decided=True)

    def networks(method: str, ipc: int) -> Networks:
        own = [r for r in rows("evaluate") if (r["method"], r["ipc"]) == (method, ipc) and r["evaluator"] == "convnet"]
        own = [r for r in own if r["dataset"] == "fashion-mnist" and r["preset"] == "quick" and "labels" not in r]
        return networks_of(own, "last")

    assert (compare(networks(first, 10), networks(second, 10)).p or 0) > 0.05
    means = [[100 * sum(own) / len(own) for own in networks("random", ipc).values()] for ipc in (1, 10)]
    (low, high), (lower, higher) = ((min(seeds), max(seeds)) for seeds in means)
    assert f"{low:.1f} to {high:.1f} % with one image a class, {lower:.1f} to {higher:.1f} % with ten" in text
    behind = compare(networks("tesla", 10), networks("herding", 10))
    ends = f"(interval {100 * behind.low:.1f} to {100 * behind.high:.1f}, of this one comparison)"
    assert f"is {100 * behind.difference:.1f} points behind `tesla` with ten images {ends}" in text
    assert {"rded", "dc"}.isdisjoint(points(10, "convnet", decided=True))
    assert points(10, "convnet")["rded"] <= 0
    for ipc in (1, 10):
        highest = max(quick_table(ipcs=[ipc], evaluators=["convnet"]).to_dict("records"), key=lambda row: row["last"])
        assert (highest["method"], highest["seeds"], highest["last_level"]) == ("idc", 1, None)
        for method in ("herding", "k-center"):
            (chosen,), (again,) = (ROOT.glob(f"results/sheets/{method}-*-ipc{ipc}-seed{seed}-*.png") for seed in (1, 2))
            assert chosen.read_bytes() == again.read_bytes()
    peaks = quick_table(ipcs=[10], evaluators=["convnet"]).set_index("method")["peak_bytes"]
    assert f"{peaks['dsa'] / 2**20:.1f} MiB against {peaks['tesla'] / 2**20:.1f} with ten images a class" in text


def test_the_readme_shows_the_table_of_the_rows() -> None:
    """Accuracies at both IPC; time and peak memory at ten images a class; the best method first."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    cells: dict[int, dict[str, list[str]]] = {}
    for ipc in (1, 10):
        table = markdown(quick_table(ipcs=[ipc])).splitlines()
        found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("| `")]
        cells[ipc] = {row[0].strip("`"): [row[1], *row[-2:]] for row in found}
    expected = [
        f"| `{method}` | {cells[1][method][0]} | {' | '.join(values)} |".replace("  |", " |")
        for method, values in reversed(cells[10].items())
        if method in (*METHODS, "idc")
    ]
    assert len(expected) == len(METHODS) + 1
    start = lines.index(expected[0])
    assert lines[start : start + len(expected) + 1] == [*expected, ""]
    means, tesla = (cells[1][method][0].partition(" ")[0] for method in ("class-means", "tesla"))
    told = f"it reaches {means} % with one image a class, and `tesla` {tesla} %"
    assert told in " ".join(lines)


def test_the_page_shows_the_whole_training_set_and_the_shares_of_it() -> None:
    last: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for row in first_seed():
        if row["protocol"] == "quick" and row["evaluator"] == "convnet":
            last[row["method"], row["ipc"]] = row["accuracy"]
    best = {key: accuracy["best_on_test"]["mean"] for key, accuracy in last.items()}
    ((_, whole),) = [(key, accuracy["last"]) for key, accuracy in last.items() if key[0] == "whole"]
    text = " ".join(page("fashion-mnist.md").split())
    assert f"The whole training set gives {100 * whole['mean']:.1f} ± {100 * whole['std']:.1f} %." in text
    one, ten = (round(100 * best["tesla", ipc] / whole["mean"]) for ipc in (1, 10))
    assert f"With one image a class `tesla`'s best sets on the way reach {one} % of that, with ten {ten} %" in text


def test_the_page_of_figure_1_shows_the_peaks_of_the_rows() -> None:
    text = [re.sub(r" +", " ", line) for line in page("figure1.md").splitlines()]
    kept = read_csv(ROOT / "results" / "figures" / "memory.csv", memory.KEY)
    kept = kept[(kept["meter"] == "predicted") & (kept["status"] == "ok")]
    for point in figure1.panel_b().points:
        (row,) = figure1.of_points(kept, [point]).to_dict("records")
        ratio = peak_of_mtt(kept, row) / row["peak_bytes"]
        name = ", ".join(filter(None, (point.method, point.settings)))
        start = f"| {point.dataset} | `{name}` | {size(row['peak_bytes'])} | {ratio:.1f} |"
        assert any(line.startswith(start) for line in text), start
    shown = [line for line in text if "micro_batch=10 weights=host` |" in line and "`tesla-exact, " not in line]
    found = []
    for line in shown:
        dataset, steps, batch, ipc, settings, peak, ratio = (cell.strip(" `") for cell in line.split("|")[1:-1])
        here = kept[(kept["method"] == "tesla-exact") & (kept["dataset"] == dataset) & (kept["settings"] == settings)]
        here = here[
            (here["matching_steps"] == int(steps)) & (here["batch_size"] == int(batch)) & (here["ipc"] == int(ipc))
        ]
        (row,) = here.to_dict("records")
        assert peak == size(row["peak_bytes"])
        assert ratio == (f"{peak_of_mtt(kept, row) / row['peak_bytes']:.0f}" if ratio else "")
        found.append((row["dataset"], row["matching_steps"], ratio, row["peak_bytes"]))
    (small, _, least, _), (large, _, next_least, _), (_, longest, _, datm) = found
    assert (small, large, longest) == ("cifar100", "imagenet1k-64", 80)
    assert int(least) >= 180
    assert int(next_least) >= 120
    assert datm < 2**30


def peak_of_mtt(table: pd.DataFrame, row: dict[Any, Any]) -> float:
    """Return the peak of `mtt` at the shapes of a row."""
    same = table[(table["method"] == "mtt") & (table["settings"] == "")]
    for name in ("dataset", "matching_steps", "batch_size", "ipc", "width", "depth"):
        same = same[same[name] == row[name]]
    (peak,) = same["peak_bytes"]
    return float(peak)


def test_the_page_shows_the_label_strategies_of_the_rows() -> None:
    text = page("labels.md").splitlines()
    declaration, workspace = declarations()["figure2"], Workspace(ROOT / "results")
    ran = runs(declaration, workspace)
    shown = 0
    for line in figure2.on_the_way(declaration, ran):
        if len(line.points) > 1:
            name = f"`{line.labels}`" + (f" (epoch {line.last_epoch})" if line.labels == "last" else "")
            expected = f"| {name} | {line.best} | {line.points[-1]} |"
        else:
            expected = f"| `tesla` labels={line.labels} | {line.points[-1]} |"
        assert expected in text
        shown += 1
    assert shown == 6
    alone = figure2.labels_alone(declaration, ran)
    between = [100 * line.points[-1].accuracy for line in alone if 2 <= line.last_epoch <= 7]
    assert f"{min(between):.1f} to {max(between):.1f} %" in "\n".join(text)
    random = accuracies(workspace, Wanted(datasets=["npz:tinyimagenet32"], methods=["random"]))
    last, spread = (100 * float(random[name].iloc[0]) for name in ("last", "last_std_networks"))
    assert f"| `random` | {last:.1f} ± {spread:.1f} |" in text


def test_the_committed_tables_are_those_of_the_rows() -> None:
    """`dcbench compare accuracy` makes them."""
    table, folder = accuracies(Workspace(ROOT / "results"), Wanted()), ROOT / "results" / "tables"
    assert (folder / "accuracy.csv").read_text(encoding="utf-8") == table.to_csv(index=False)
    assert (folder / "accuracy.md").read_text(encoding="utf-8") == markdown(table)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "related", "figure2"])
def test_the_committed_tables_of_the_paper_are_those_of_the_rows(name: str) -> None:
    """`dcbench reproduce` makes them; plots are left out, whose bytes are another's with another matplotlib."""
    made = report(declarations()[name], Workspace(ROOT / "results"))
    wanted = {**made.texts, **{path: rows.to_csv(index=False) for path, rows in made.rows.items()}}
    committed = [path for path in wanted if path.exists()]
    assert len(committed) == len(wanted) or (not committed and name in ("table2", "figure2"))
    for path in committed:
        assert path.read_text(encoding="utf-8") == wanted[path]


def methods_of_regimes() -> list[str]:
    """Return the methods of the command on the page of the labels."""
    first = page("regimes.md").partition("$ dcbench compare regimes")[0]
    return re.findall(r"--method (\S+?)[\s\"]", first)


def test_the_folder_of_committed_results_rebuilds_every_table_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `--out`: byte for byte, nothing marked. Plots are compared where matplotlib is the one that drew them."""
    out = tmp_path / "results"
    shutil.copytree(ROOT / "results", out, ignore=shutil.ignore_patterns("cells", "experts", "jobs", "preprocessing"))
    kept = read_csv(out / "figures" / "memory.csv", memory.KEY)
    grown = pd.read_csv(out / "tables" / "growth.csv").astype({"matching_steps": "Int64", "batch_size": "Int64"})
    # what is predicted is what stands there: here it is only to be written again
    monkeypatch.setattr(memory, "measure", lambda *given, **named: kept[kept["meter"] == "predicted"])
    monkeypatch.setattr(growth, "predict", lambda **named: grown)
    before = {path: path.read_bytes() for path in (*out.glob("tables/*"), *out.glob("figures/*"))}
    remade = {path for path in before if re.match(r"(table|figure|accuracy|regimes|scores)", path.name)}
    for path in remade:
        path.unlink()
    nine = [word for method in methods_of_regimes() for word in ("--method", method)]
    of_labels = ["--dataset", "fashion-mnist", "--preset", "quick", "--evaluator", "convnet", "--evaluator", "resnet18"]
    for words in (
        ["reproduce", "all"],
        ["compare", "accuracy", "--plot"],
        ["compare", "scores"],
        ["compare", "regimes", *nine, *of_labels],
    ):
        result = CliRunner().invoke(main, [*words, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert "shipped" not in result.output.replace("--shipped", "")
    drawn = f"Matplotlib v{matplotlib.__version__}," in before[out / "figures" / "figure1a.svg"].decode()
    for path, content in before.items():
        if drawn or path.suffix not in (".png", ".svg"):
            assert path.read_bytes() == content, path
        assert path.is_file()
    assert {path for path in out.rglob("*") if path.is_file() and path.parent.name in ("tables", "figures")} == set(
        before
    )


def test_the_whole_table_of_the_field_was_run() -> None:
    """Nine methods at two IPC by `convnet`, and by three networks at IPC 10: none is left out because it did badly."""
    found = {
        (row["method"], row["ipc"], row["evaluator"], row["networks"])
        for row in rows("evaluate")
        if row["dataset"] == "fashion-mnist" and row["protocol"] == "quick"
    }
    for method in METHODS:
        assert {(method, ipc, "convnet", 5) for ipc in (1, 10)} <= found
        assert {(method, 10, name, 3) for name in ("resnet18", "vit")} <= found


def test_every_evaluated_set_was_condensed_on_record() -> None:
    condensed = {row["key"] for row in rows("condense")}
    assert {row["condense_key"] for row in rows("evaluate")} <= condensed


@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize("method", ["tesla", "tesla-exact", "mtt", "random", "dm", "dc", "dsa", "herding", "k-center"])
def test_the_program_recognises_what_is_committed(method: str, ipc: int) -> None:
    """A key that changes makes every committed row an orphan, and the page's command starts over."""
    from dcbench_tesla import registry
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.config import resolve
    from dcbench_tesla.datasets import default_data_dir

    if registry.load_source("fashion-mnist").find(default_data_dir()) is None:
        pytest.skip("Fashion-MNIST is not here (apt-get install dataset-fashion-mnist)")
    evaluators = ("convnet", "resnet18", "vit")[: 3 if ipc == 10 else 1]
    config = resolve(method, "fashion-mnist", ipc, preset="quick", evaluators=evaluators)
    assert Session(ROOT / "results", device="cpu", quiet=True).cell(config).pending() == []


def speeds(hardware: str) -> pd.DataFrame:
    """The ratios of ``uv run pytest tests/benchmarks --save-baseline`` on some hardware, work by measure."""
    table = pd.read_csv(ROOT / "results" / "benchmarks.csv")
    table = table[table["hardware"] == hardware]
    assert list(table["threads"].unique()) == [1]
    return table.pivot_table(index="work", columns="measure", values="value")


def test_the_page_shows_the_speeds_on_record() -> None:
    text, table = page("speed.md").splitlines(), speeds("AMD EPYC, 2 cores")

    def value(work: str, measure: str, table: pd.DataFrame = table) -> str:
        found = table[measure].get(work, math.nan)
        return "" if math.isnan(found) else f"{found:.2f}"

    def share(work: str) -> str:
        of = table["share of the machine's limit"]
        return f"{100 * of[work]:.0f} %"

    for work, plain, shown in (
        ("tesla", "tesla, plain", "`tesla`, T = 10 | two passes"),
        ("tesla", "mtt, plain", "`tesla`, T = 10 | unrolled"),
        ("tesla-exact", "mtt, plain", "`tesla-exact`, T = 4 | unrolled"),
        ("expert epoch", "expert epoch, plain", "epoch of an expert | the same"),
        ("evaluation", "evaluation, plain", "five networks on 100 images | the same"),
        ("dm", "dm, plain", "`dm` | class by class"),
        ("dsa", "dsa, plain", "`dsa` | class by class"),
    ):
        measure = f"times as fast as {plain}"
        assert f"| {shown} | {value(work, measure)} | {value(f'{work}, compiled', measure)} |" in text
    passes = ("pass 1, compiled", "pass 2, compiled", "pass 2, exact, compiled")
    first, second, exact = map(share, passes)
    shown = f"convolutions: pass 1 to {first}, pass 2 to {second} ({exact} with the curvature that `tesla-exact` needs)"
    assert shown in " ".join(" ".join(text).split())
    whole = "times as fast as tesla-exact, whole batches"
    xeon = speeds("Intel(R) Xeon(R) Processor, 2 cores")
    eager, compiled = (value(f"tesla-exact{how}", f"{whole}{how}", xeon) for how in ("", ", compiled"))
    assert f"{eager} times as fast as with whole batches eager, {compiled} times" in " ".join(text)
