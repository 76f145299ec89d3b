"""`dcbench report`: what is on the page, against the numbers it was made of; `test_report_browser` opens it."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from dcbench_tesla.cli import main
from dcbench_tesla.errors import CorruptFileError, DcbenchError
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports import html
from dcbench_tesla.reports.html import page
from dcbench_tesla.reports.html.frames import frames
from dcbench_tesla.reports.html.parts import made_by
from tests import fixtures_report as fixtures

ROOT = Path(__file__).parents[1]
EMPTY_ELEMENTS = {"meta", "link", "img", "br", "input", "hr"}
OWN, COMPARED = ["accuracy", "images", "tradeoff", "curves", "ipc"], ["published", "labels"]
PARTS = [*OWN, *COMPARED, "memory", "time", "gradient", "failed"]


class Reader(HTMLParser):
    """The page as a browser has it: ids, links, texts by element; refuses what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.rows: list[list[str]] = []
        self.code: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.loads += [found[name] or "" for name in ("src", "href", "data", "srcset") if name in found]
        self.handlers += [name for name in found if name.startswith("on") or name == "style"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "code":
            self.code.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "code" in self.open:
            self.code[-1] += data


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    fixtures.write_results(root)
    return root


@pytest.fixture(scope="module")
def made_up(results: Path) -> str:
    return page(Workspace(results))


def plots(text: str) -> dict[str, Any]:
    (data,) = re.findall(r'<script type="application/json" id="plots">(.*)</script>', text)
    found: dict[str, Any] = json.loads(data)["plots"]
    return found


def lines(plot: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """The lines of a plot by name, as ``[x, y, low, high]``."""
    return {n["name"]: [[p["x"], p["y"], p["low"], p["high"]] for p in n["points"]] for n in plot["lines"]}


# ------------------------------------------------------------------------------------------------------- the whole page


@pytest.mark.parametrize("source", ["made up", "committed"])
def test_the_page_is_whole_and_loads_nothing(source: str, made_up: str) -> None:
    text = made_up if source == "made up" else page(Workspace(ROOT / "results"))
    read = Reader(text)
    assert len(read.ids) == len(set(read.ids))
    assert [i for i in read.ids if i in PARTS] == PARTS[: None if source == "made up" else -1]
    assert [load for load in read.loads if not load.startswith(("data:", "#"))] == []
    assert read.handlers == []
    assert not re.search(r"@import|url\(|sourceMappingURL", text)
    assert """<meta http-equiv="Content-Security-Policy" content="default-src 'none';""" in text


def test_the_same_results_are_the_same_bytes(results: Path, made_up: str, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "elsewhere")
    assert page(Workspace(tmp_path / "elsewhere")) == made_up


def test_text_from_rows_stays_text(made_up: str) -> None:
    read = Reader(made_up)  # an element that breaks out would not be closed, or be open at the end
    assert read.handlers == []
    assert "document.title='broken'" not in made_up
    assert made_up.count("<script>") == 2
    assert "&lt;/script&gt;&lt;script&gt;document.title=&#39;broken&#39;" in made_up


def test_the_head_counts_what_there_is(made_up: str) -> None:
    facts = dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", made_up.partition("<section")[0]))
    assert facts["cells condensed"] == facts["evaluations"] == "10"
    assert facts["failed cells"] == "1"
    assert (facts["methods"], facts["data sets"]) == ("dm, mtt, random, tesla", "cifar10, digits, npz:mine")
    assert (facts["commits"], facts["PyTorch"], facts["dcbench"]) == ("0123456789ab", "2.15.0", "0.1")


def test_what_was_not_measured_has_its_command(tmp_path: Path) -> None:
    fixtures.write_cell(tmp_path, "tesla", 1, {100: [0.6, 0.7]}, dataset="mine", sets={"labels": "learned"})
    text = page(Workspace(tmp_path))
    missing = re.findall(r'<p class="missing">Not measured: <code>(.*?)</code></p>', text)
    assert [" ".join(command.split()[:3]) for command in missing] == [
        "dcbench run --method",
        "dcbench run --method",
        "dcbench run --method",
        "dcbench reproduce table1",
        "dcbench reproduce figure2",
        "dcbench compare memory",
        "dcbench compare time",
        "dcbench compare gradient",
    ]
    assert plots(text) == {}


# ------------------------------------------------------------------------------------------------------ what it shows


def test_accuracies_stand_in_the_tables(made_up: str) -> None:
    rows = Reader(made_up).rows
    assert ["tesla", "62.0 ± 2.0 [36.6, 87.4] *", "2 min", "1.0 MiB"] in rows  # IPC 1: two networks, t = 12.7
    assert ["tesla", "81.0 ± 1.0 [68.3, 93.7] *", "17 min", "1.0 MiB"] in rows  # IPC 10
    assert ["random", "30.0 ± 0.0 [30.0, 30.0] *", "2 min", "1.0 MiB"] in rows


def test_the_committed_accuracies_are_those_of_the_page() -> None:
    found = [row[:2] for row in Reader(page(Workspace(ROOT / "results"))).rows]
    shown = (ROOT / "docs" / "results" / "fashion-mnist.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([\w-]+)` \| !\[.*?\) \| (\S+ ± \S+) \|", shown, re.MULTILINE)
    assert len(table) >= 13
    files = (ROOT / "results" / "rows").glob("condense-*.json")
    made = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    several = {row["method"] for row in made if row["seed"] and row["dataset"] == "fashion-mnist"}
    alone = [list(row) for row in table if row[0] not in several]  # the page shows the first seed, the report all
    assert alone
    assert [row for row in alone if row not in found] == []


def test_learning_curves_and_accuracy_against_ipc(made_up: str) -> None:
    drawn = plots(made_up)
    curve = lines(drawn["curves-1"])
    assert curve["tesla"] == [pytest.approx([50, 42, 40, 44]), pytest.approx([100, 62, 60, 64])]
    assert [n["name"] for n in drawn["curves-1"]["lines"] if n["flat"]] == ["random"]
    against = lines(drawn["ipc-1"])
    t = 12.7062  # of two networks
    assert against["tesla"] == [
        pytest.approx([ipc, mean, mean - t * error, mean + t * error], abs=0.01)
        for ipc, mean, error in ((1, 62, 2), (10, 81, 1))
    ]
    assert against["dm"] == [pytest.approx([1, 56, 56 - t, 56 + t], abs=0.01)]
    assert (drawn["ipc-1"]["scaled"], drawn["ipc-1"]["log"]) == ("x", True)


def test_memory(made_up: str) -> None:
    plot = plots(made_up)["memory-1"]
    assert lines(plot)["mtt"] == [[1, 1, None, None], [10, 10, None, None], [50, 50, None, None]]
    reached = {n["name"]: [p["reached"] for p in n["points"]] for n in plot["lines"]}
    assert reached == {"dm": [False], "mtt": [False, False, True], "tesla": [False] * 3}
    assert {n["name"] for n in plot["lines"] if n["flat"]} == {"dm"}
    command = (
        "dcbench compare memory --method dm --method mtt --method tesla --dataset cifar100 "
        "--steps 1 --steps 10 --steps 50 --ipc 1 --batch-size 100 --width 128 --depth 0 --meter cuda"
    )
    assert command in Reader(made_up).code


def test_settings_of_methods_are_part_of_the_commands() -> None:
    rows = pd.DataFrame({"method": ["mtt", "tesla-exact"], "settings": ["", "micro_batch=10 weights=host"]})
    assert made_by(rows, "compare memory", {"method": "--method"}).commands == [
        "dcbench compare memory --method mtt",
        "dcbench compare memory --method tesla-exact --set micro_batch=10 --set weights=host",
    ]


def test_the_commands_are_commands() -> None:
    """What the page says made the committed figures is understood by the command line."""
    commands = [c for c in Reader(page(Workspace(ROOT / "results"))).code if re.match("dcbench compare .* --", c)]
    assert commands
    parent = main.make_context("dcbench", [commands[0].split()[1]], resilient_parsing=True)
    for command in commands:
        _, group, name, *words = command.split()
        # the parent says how help is asked for, which a command remembers
        main.commands[group].commands[name].make_context(name, words, parent=parent)  # type: ignore[attr-defined]


def test_memory_against_ipc(tmp_path: Path) -> None:
    rows = [{**row, "ipc": ipc} for ipc in (1, 10) for row in fixtures.memory() if row["matching_steps"] in (10, None)]
    fixtures.write_csv(tmp_path / "figures" / "memory.csv", rows)
    drawn = plots(page(Workspace(tmp_path)))
    assert list(drawn) == ["memory-1"]
    assert drawn["memory-1"]["x"] == "images per class (IPC)"
    assert {name: [x for x, *_ in points] for name, points in lines(drawn["memory-1"]).items()} == {
        "dm": [1, 10],
        "mtt": [1, 10],
        "tesla": [1, 10],
    }


def test_machines_are_not_drawn_together(tmp_path: Path) -> None:
    rows = [{**row, "hardware": machine} for machine in ("one", "another") for row in fixtures.time()]
    fixtures.write_csv(tmp_path / "figures" / "time.csv", rows)
    assert sorted(plots(page(Workspace(tmp_path)))) == ["time-1", "time-2"]


def test_time_has_its_spread_and_says_what_was_not_run(made_up: str) -> None:
    found = lines(plots(made_up)["time-1"])
    assert found["tesla"][1] == pytest.approx([10, 3, 2.9, 3.1])
    assert [x for x, *_ in found["mtt"]] == [1, 10]
    assert "Without a point: <code>mtt</code> at T = 50 (not run: needs 58 GiB)." in made_up


def test_gradient_drift_is_the_median_over_repetitions(made_up: str) -> None:
    drawn = plots(made_up)
    least = 2.0**-52
    assert drawn["gradient-1"]["log"]
    assert lines(drawn["gradient-1"])["tesla"][2] == pytest.approx([50, 0.02, 0.01, 0.04])
    assert lines(drawn["gradient-2"])["tesla"][1] == pytest.approx([10, 0.2, 0.1, 0.4])
    assert lines(drawn["gradient-1"])["tesla-exact"][0] == [1, least, least, least]  # drawn at the rounding
    assert drawn["gradient-1"]["lines"][1]["points"][0]["text"] == "0"  # and told as it is


def part_of(text: str, name: str) -> str:
    """The part of the page with this id."""
    return text.partition(f'<h2 id="{name}">')[2].partition("</section>")[0]


def tables(text: str, name: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a part by the titles of their figures, as rows by column."""
    return {
        re.findall("<h3 id=.*?>(.*?)</h3>", article)[0]: cells(article)
        for article in part_of(text, name).split("<article")[1:]
    }


def cells(text: str) -> list[dict[str, str]]:
    """The first table of a text, as rows by column."""
    head, *body = Reader(text[text.index("<table>") : text.index("</table>") + 8]).rows
    return [dict(zip(head, row, strict=True)) for row in body]


def folded(text: str, name: str) -> dict[str, dict[str, list[dict[str, str]]]]:
    """What a part folds away: by the titles of figures and of what opens it, its first table."""
    return {
        re.findall("<h3 id=.*?>(.*?)</h3>", article)[0]: {
            re.findall("<summary>(.*?)</summary>", part)[0]: cells(part)
            for part in article.split("<details>")[1:]
            if "<table>" in part
        }
        for article in part_of(text, name).split("<article")[1:]
    }


def test_published_numbers_stand_beside_ours(made_up: str) -> None:
    found = tables(made_up, "published")
    cifar10 = {(row["method"], row["IPC"]): row for row in found["Table 1, methods: cifar10"]}
    assert cifar10["tesla", "1"] == {
        **{"method": "tesla", "IPC": "1", "best on test": "47.0 ± 0.5", "published": "48.5 ± 0.8"},
        **{"difference": "-1.5", "difference: from": "-7.9", "difference: to": "+4.9"},  # 47.0 ± 12.7 * 0.5 - 48.5
        **{"last": "47.0 ± 0.5", "networks (last)": "2", "networks (best on test)": "2"},
        **{"seeds": "1", "share of whole, published": "56.4 %", "images": "1 %", "images, published": "0.02 %"},
        **{"protocol": "paper", "source": "TESLA Table 1"},
    }
    assert len(cifar10) == 1
    assert "<li>network: convnet</li>" in made_up  # said once


def test_published_numbers_of_what_was_not_run_are_folded_away(made_up: str) -> None:
    found = folded(made_up, "published")
    ((title, absent),) = found["Table 1, methods: cifar10"].items()
    assert title == f"Not run: {len(absent)} rows"
    kip = next(row for row in absent if (row["method"], row["IPC"]) == ("kip", "1"))
    assert (kip["published"], kip["status"]) == ("40.6 ± 1.0", "not run")
    ((_, cifar100),) = found["Table 1, methods: data sets that were not run"].items()
    assert cifar100[8]["published"] == "18.6 ± 0.25"  # as it was printed


def test_a_reduced_protocol_is_called_so_beside_published_numbers(made_up: str) -> None:
    found = tables(made_up, "published")
    assert {row["protocol"] for row in found["Table 1, methods: digits"]} == {"reduced protocol: smoke"}
    text = part_of(made_up, "published")
    assert "<p>Not comparable with published numbers: reduced protocol: smoke. Mean" in text
    assert "<li>reduced protocol: smoke, not comparable with published numbers: <code>convnet</code>" in text
    assert text.count("paper, not comparable") == 0


def test_what_was_not_run_stands_once_and_not_under_every_protocol(tmp_path: Path) -> None:
    for iterations in (100, 200):
        sets = {"iterations": iterations}
        fixtures.write_cell(tmp_path, "tesla", 1, {100: [0.6, 0.7]}, dataset="mine", preset="quick", sets=sets)
    text = page(Workspace(tmp_path))
    rows = tables(text, "published")["Table 1, methods: mine"]
    changed = [f"reduced protocol: quick, changed ({letter})" for letter in "ab"]
    assert [(row["method"], row["protocol"]) for row in rows] == [("tesla", name) for name in changed]
    ((_, absent),) = folded(text, "published")["Table 1, methods: mine"].items()
    methods = [row["method"] for row in absent]
    assert methods
    assert len(set(methods) - {"tesla"}) == len(methods)


def test_spreads_over_networks_and_over_seeds_stand_apart(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.46, 0.48)):
        fixtures.write_cell(tmp_path, "tesla", 1, {100: [accuracy]}, dataset="cifar10", preset="paper", seed=seed)
    (row,) = (r for r in tables(page(Workspace(tmp_path)), "published")["Table 1, methods: cifar10"] if r["seeds"])
    assert (row["last"], row["last: ± over seeds"], row["seeds"]) == ("47.0", "1.0", "2")


def test_label_strategies_are_drawn_from_the_rows(made_up: str) -> None:
    drawn = plots(made_up)
    a, b = drawn["labels-1"], drawn["labels-2"]
    assert lines(a)["hard"] == [[x, pytest.approx(5), None, None] for x in (50, 100, 150)]
    assert lines(a)["target"] == [[x, pytest.approx(y), None, None] for x, y in ((50, 2), (100, 6), (150, 10))]
    assert a["stepped"]
    assert lines(b)["labels alone"] == [pytest.approx([0, 1, 1, 1]), pytest.approx([3, 4, 3, 5])]
    assert {n["name"]: n["points"][0]["y"] for n in b["lines"] if n["flat"]} == pytest.approx(
        {"best of hard": 5, "best of target": 10}
    )
    first, second = tables(made_up, "labels").values()
    assert [row["best so far, %"] for row in first if row["labels"] == "target"] == ["2.0", "6.0", "10.0"]
    assert [row["test accuracy, %"] for row in second] == ["1.0 ± 0.0", "4.0 ± 1.0"]
    text = part_of(made_up, "labels")
    assert "dcbench reproduce figure2" in Reader(text.partition("</h2>")[2]).code
    assert "Not comparable with published numbers: reduced protocol: quick" in text


def test_failed_cells_have_their_reason_and_command(made_up: str) -> None:
    (rows,) = tables(made_up, "failed").values()
    assert rows == [
        {
            **{"method": "mtt", "data set": "digits", "IPC": "1", "seed": "0", "status": "diverged", "attempts": "2"},
            **{"reason": "the loss is NaN", "protocol": "smoke"},
            "command": "dcbench run --method mtt --dataset digits",
        }
    ]


def test_a_learning_curve_mixes_no_two_evaluations(tmp_path: Path) -> None:
    """A second evaluation of the same set, by other iterations, adds no points to the line of the fuller one."""
    fixtures.write_cell(tmp_path, "tesla", 1, {50: [0.4], 100: [0.6], 150: [0.7]})
    fixtures.write_cell(tmp_path, "tesla", 1, {75: [0.1], 150: [0.2]}, evaluation="another")
    assert [point[:2] for point in lines(plots(page(Workspace(tmp_path)))["curves-1"])["tesla"]] == [
        pytest.approx([50, 40]),
        pytest.approx([100, 60]),
        pytest.approx([150, 70]),
    ]


def test_sheets_stand_with_their_accuracy(made_up: str) -> None:
    assert made_up.count('<img src="data:image/png;base64,iVBOR') == len(fixtures.CURVES) + 5
    assert re.search(r"<h4>tesla</h4>\s*<p>convnet 62.0 ± 2.0 %</p>", made_up)


@pytest.fixture(scope="module")
def with_costs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of cells that cost differently, of which some have no peak, and one kept snapshots."""
    root = tmp_path_factory.mktemp("costs")
    for method, accuracy, made in (
        ("dm", 0.5, {"condense_seconds": 10.0, "peak_bytes": 2**30}),
        ("mtt", 0.7, {"condense_seconds": 100.0, "peak_bytes": 2**33}),
        ("tesla", 0.6, {"condense_seconds": 200.0, "peak_bytes": 2**31}),
        ("dc", 0.4, {"condense_seconds": 50.0, "peak_bytes": None, "compiled": True}),
    ):
        fixtures.write_cell(root, method, 1, {100: [accuracy]}, made=made)
    chosen = {"condense_seconds": 0.0, "peak_bytes": None, "iterations": 0}
    fixtures.write_cell(root, "random", 1, {0: [0.3]}, made=chosen)
    for iteration, grey in ((30, 0), (60, 255)):
        fixtures.write_snapshot(
            root / "cells" / "mtt-digits-ipc1-seed0" / "snapshots" / f"{iteration:06}.safetensors", grey
        )
    return page(Workspace(root))


def test_accuracy_against_cost_has_its_front(with_costs: str) -> None:
    seconds, gib = (plots(with_costs)[f"tradeoff-{i}"] for i in (1, 2))
    front = {plot["x"]: [tuple(point[:2]) for point in lines(plot)["Pareto front"]] for plot in (seconds, gib)}
    assert front == {
        "time of the condensation, s": [(10, 50), (100, pytest.approx(70))],
        "peak memory of the condensation, GiB": [(1, 50), (2, 60), (8, pytest.approx(70))],
    }
    assert (seconds["scaled"], seconds["log"], gib["log"]) == ("x", True, True)
    assert [n["name"] for n in gib["lines"] if n["flat"]] == ["random"]
    assert lines(seconds)["dc"][0][:2] == [50, 40]
    assert "dc" not in lines(gib)
    assert "Without a point: <code>dc</code> (compiled)." in part_of(with_costs, "tradeoff")


def test_seconds_of_different_machines_have_no_front(tmp_path: Path) -> None:
    for method, machine in (("dm", "one"), ("mtt", "another")):
        fixtures.write_cell(tmp_path, method, 1, {100: [0.6]}, made={"hardware": machine})
    seconds, memory = (plots(page(Workspace(tmp_path)))[f"tradeoff-{i}"] for i in (1, 2))
    assert (list(lines(seconds)), list(lines(memory))) == (["dm", "mtt"], ["dm", "mtt", "Pareto front"])


def test_an_empty_peak_says_why(with_costs: str) -> None:
    (rows,) = tables(with_costs, "accuracy").values()
    assert {row["method"]: row["peak"] for row in rows} == {
        **{"random": "no iterations", "dc": "compiled", "dm": "1.00 GiB", "mtt": "8.00 GiB", "tesla": "2.00 GiB"}
    }
    assert "<li>peak: compiled: the meter cannot see into compiled code;" in part_of(with_costs, "accuracy")
    assert "compiled: the meter cannot see" in part_of(with_costs, "images")


def test_images_over_the_iterations(with_costs: str) -> None:
    (data,) = re.findall(r'id="plots">(.*)</script>', with_costs)
    ((name, frames),) = json.loads(data)["frames"].items()
    assert f'data-frames="{name}" data-of="mtt"' in with_costs
    assert [frame["iteration"] for frame in frames] == [30, 60, 100]
    dark, light = (Image.open(BytesIO(base64.b64decode(frame["data"]))) for frame in frames[:2])
    assert (dark.format, dark.getpixel((20, 20)), light.getpixel((20, 20))) == ("WEBP", (0, 0, 0), (255, 255, 255))
    assert frames[2]["data"] is None  # the sheet itself


def test_own_results_come_before_shipped_ones(tmp_path: Path) -> None:
    fixtures.write_cell(tmp_path / "own", "tesla", 1, {100: [0.6]}, dataset="z")
    fixtures.write_cell(tmp_path / "shipped", "tesla", 1, {100: [0.6]}, dataset="a")
    text = page(Workspace(tmp_path / "own", tmp_path / "shipped"))
    for part in ("accuracy", "images"):
        titles = re.findall("<h3 id=.*?>(.*?)</h3>", part_of(text, part))
        assert titles == [f"{name}, IPC 1, preset smoke" for name in ("z", "a")]


def test_many_snapshots_are_few_frames(tmp_path: Path) -> None:
    for iteration in range(30):
        fixtures.write_snapshot(tmp_path / "snapshots" / f"{iteration:06}.safetensors", 0)
    assert [frame.iteration for frame in frames(tmp_path, 25, 4)] == [0, 8, 16, 24, 25]
    assert frames(tmp_path, 25, 0) == []


def test_sheets_that_may_not_be_passed_on_are_named(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    (row,) = tmp_path.glob("rows/condense-dm-*.json")
    row.write_text(json.dumps({**json.loads(row.read_text()), "dataset": "mine", "images_may_be_passed_on": False}))
    (sheet,) = tmp_path.glob("sheets/dm-*.png")
    cell = tmp_path / "cells" / sheet.stem
    cell.mkdir(parents=True, exist_ok=True)
    shutil.move(sheet, cell / "sheet.png")
    left_out, shown = (part_of(page(Workspace(tmp_path), all_pictures=every), "images") for every in (False, True))
    assert "may not be passed on: mine." in left_out
    assert "Distilled images of mine by dm" not in left_out
    assert "Distilled images of mine by dm" in shown
    assert "This page is for your own eyes: images of mine may not be passed on." in shown


# ------------------------------------------------------------------------------------------------ the command, errors


def test_the_command_says_where_the_page_is(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "results")
    for options, path in (([], "results/report.html"), (["--output", str(tmp_path / "p.html")], "p.html")):
        done = CliRunner().invoke(main, ["report", "--out", str(tmp_path / "results"), *options])
        assert done.exit_code == 0, done.output
        assert re.fullmatch(rf"{re.escape(str(tmp_path / path))} \(0\.\d MiB\)\n", done.output)
        assert (tmp_path / path).read_text(encoding="utf-8") == page(Workspace(results))


def test_without_results_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(DcbenchError, match=r"there are no results under .*: dcbench run"):
        page(Workspace(tmp_path))
    done = CliRunner().invoke(main, ["report", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["figures/memory.csv", "figures/time.csv", "figures/gradient.csv"])
def test_another_table_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    for content, message in (("a,b\n1,2\n", "is another table: it has no column"), ("", "is not a CSV file")):
        path.write_text(content)
        with pytest.raises(CorruptFileError, match=message):
            page(Workspace(tmp_path))


def test_a_damaged_sheet_is_left_out_and_told(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sheets" / "broken.png").write_text("no picture")
    shown = page(Workspace(tmp_path))
    assert "broken.png is not an image. Delete it." in capsys.readouterr().err
    assert "Left out, as the files are damaged or too large: broken.png." in shown
    assert shown.count('<img src="data:image/png;base64,iVBOR') == len(fixtures.CURVES) + 5


def test_a_commit_that_looks_like_a_number_stays_one(tmp_path: Path) -> None:
    rows = [{**row, "commit": "12345e678901"} for row in fixtures.memory()]
    fixtures.write_csv(tmp_path / "figures" / "memory.csv", rows)
    assert "<dd>12345e678901</dd>" in page(Workspace(tmp_path))


def test_the_vendored_library_is_what_its_readme_says() -> None:
    folder = Path(html.__file__).parent / "vendor"
    (version,) = re.findall(r"chart\.js@([\d.]+)", (folder / "README.md").read_text(encoding="utf-8"))
    library = (folder / "chart.umd.min.js").read_text(encoding="utf-8")
    assert f"Chart.js v{version}\n" in library
    assert "</script" not in library.lower()
    assert len(library) < 250_000
    assert "MIT" in (folder / "LICENSE-chart.js.md").read_text(encoding="utf-8")
