"""Figure 1: its rows from those of memory and time, and the paper's ratios beside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cli import main
from dcbench_tesla.compare import memory as memories
from dcbench_tesla.compare import timing
from dcbench_tesla.compare.files import merge_csv, read_csv
from dcbench_tesla.compare.plots import memory_figure
from dcbench_tesla.compare.points import Point
from dcbench_tesla.compare.timing import KEY
from dcbench_tesla.errors import CorruptFileError, DcbenchError
from dcbench_tesla.profilers.memory import memory_meter
from dcbench_tesla.records.environment import hardware
from dcbench_tesla.reports import figure1, growth
from dcbench_tesla.reports.figure1 import Panel
from dcbench_tesla.reports.figure1b.rows import figure_b, lost
from dcbench_tesla.reports.figure1b.runtimes import Plan, to_time
from dcbench_tesla.reports.figure1b.shown import draw_b, markdown_b
from dcbench_tesla.reports.files import Report


def memory(**peaks: float) -> pd.DataFrame:
    """Return rows of Figure 1b's memory, every method with its peak, the same on both data sets."""
    rows = []
    for point in figure1.panel_b().points:
        where = {"meter": "predicted", "hardware": "none: predicted", "status": "ok"}
        rows.append({**vars(point), **where, "peak_bytes": peaks[point.method.replace("-", "_")]})
    return pd.DataFrame(rows)


def times(hardware: str = "a CPU", threads: int = 2, **seconds: float) -> pd.DataFrame:
    """Return rows of the time of Figure 1b's points on CIFAR-100."""
    where: dict[str, Any] = {"meter": "perf_counter", "hardware": hardware, "threads": threads, "status": "ok"}
    where |= {"compiled": False, "repetitions": 3}
    return pd.DataFrame(
        {**vars(point), **where, "iteration_seconds": seconds[point.method]}
        for point in figure1.panel_b().points
        if point.dataset == "cifar100" and point.method in seconds
    )


def of(table: pd.DataFrame, method: str) -> dict[Any, Any]:
    """Return the one row of a method without settings on CIFAR-100."""
    own = table[table["settings"].fillna("") == ""]
    (row,) = own[(own["dataset"] == "cifar100") & (own["method"] == method)].to_dict("records")
    return row


NOTHING = pd.DataFrame(columns=[*KEY, "iteration_seconds", "status"])


def test_the_panels_are_the_papers() -> None:
    a, b = figure1.panel_a().points, figure1.panel_b().points
    assert {(p.dataset, p.batch_size) for p in a} == {("cifar100", 100)}
    assert {(p.method, p.settings) for p in a if p.settings} == {("tesla-exact", "micro_batch=10 weights=host")}
    assert {(p.dataset, p.batch_size, p.matching_steps) for p in b} == {
        ("cifar100", 100, 50),
        ("imagenet1k-64", 100, 50),
    }


def test_ratios_stand_beside_the_papers() -> None:
    table = figure_b(memory(mtt=100, tesla=4, tesla_exact=5), times(mtt=2.0, tesla=3.0))
    row = of(table, "tesla")
    assert (row["memory_ratio"], row["paper_memory_ratio"]) == (25, 5)
    assert (row["time_ratio"], row["paper_time_ratio"]) == (1.5, 1.27)
    shown = markdown_b(table)
    (line,) = [line for line in shown.splitlines() if line.startswith("| cifar100") and "`tesla` " in line]
    assert [cell.strip() for cell in line.split("|")][4:] == ["25.0", "about 5", "3", "1.50", "about 1.27", ""]
    assert "a CPU, threads: 2" in shown


def test_what_was_not_timed_is_empty() -> None:
    table = figure_b(memory(mtt=100, tesla=4, tesla_exact=5), NOTHING)
    assert table["iteration_seconds"].isna().all()
    assert table["time_ratio"].isna().all()
    assert "not measured here" in (shown := markdown_b(table))
    assert "- seconds not measured: cifar100, imagenet1k-64; `dcbench reproduce figure1 --run` measures them" in shown
    assert draw_b(table).axes[1].texts[-1].get_text() == "not measured: dcbench reproduce figure1 --run"
    table = figure_b(memory(mtt=100, tesla=4, tesla_exact=5), times(tesla=3.0))
    assert "- seconds not measured: cifar100 (mtt, tesla-exact, " in markdown_b(table)
    row = of(table, "tesla")
    assert row["iteration_seconds"] == 3
    assert pd.isna(row["time_ratio"])  # nothing to set it in relation to


def test_machines_are_not_mixed() -> None:
    both = pd.concat([times(mtt=2.0, tesla=3.0), times("a GPU", 1, mtt=0.2)])
    table = figure_b(memory(mtt=100, tesla=4, tesla_exact=5), both)
    ratios = table[(table["method"] == "tesla") & (table["dataset"] == "cifar100")].set_index("time_hardware")
    assert ratios["time_ratio"].to_dict() == pytest.approx({"a CPU": 1.5, "a GPU": float("nan")}, nan_ok=True)


def test_one_machine_is_drawn_also_where_it_was_timed_with_several_threads() -> None:
    both = pd.concat([times(threads=1, mtt=4.0, tesla=5.0), times(threads=2, mtt=2.0, tesla=3.0)])
    table = figure_b(memory(mtt=100, tesla=4, tesla_exact=5), both)
    shown = {text.get_text().split()[0] for axes in draw_b(table).axes for text in axes.texts}
    assert {"4", "5,"} <= shown
    assert not {"2", "3", "3,"} & shown
    on_gpu = memory(mtt=100, tesla=4, tesla_exact=5).assign(hardware="a GPU", meter="cuda")
    table = figure_b(on_gpu, pd.concat([both, times("a GPU", 1, mtt=0.2)]))
    assert "a GPU" in draw_b(table).axes[1].get_title()


def a_gpu(table: pd.DataFrame, name: str = "a GPU", **peaks: float) -> pd.DataFrame:
    """Return the rows of some methods as a GPU measured them."""
    measured = {method.replace("_", "-"): peak for method, peak in peaks.items()}
    rows = table[table["method"].isin(measured)]
    return rows.assign(meter="cuda", hardware=name, peak_bytes=rows["method"].map(measured))


def test_of_every_point_the_best_meter_on_record_is_shown() -> None:
    predicted = memory(mtt=100, tesla=4, tesla_exact=5)
    alone = a_gpu(predicted, "another GPU", tesla=9)
    out = a_gpu(predicted, "a GPU", mtt=80).assign(status="out of memory")
    best = figure1.best(pd.concat([predicted, alone, a_gpu(predicted, tesla=6, tesla_exact=7), out]))
    found = {row["method"]: (row["peak_bytes"], row["hardware"]) for row in best.to_dict("records")}
    assert found == {"mtt": (100, "none: predicted"), "tesla": (6, "a GPU"), "tesla-exact": (7, "a GPU")}
    table = figure_b(best, NOTHING)
    assert of(table, "mtt")["memory_ratio"] == 1
    assert pd.isna(of(table, "tesla")["memory_ratio"])  # two meters make no ratio
    shown = markdown_b(table)
    assert "meter cuda (a GPU), predicted (none: predicted)" in shown
    assert {line.split("|")[-2].strip() for line in shown.splitlines() if line.startswith("| cifar100")} == {
        "cuda",
        "predicted",
    }
    assert "cuda" in "".join(text.get_text() for text in draw_b(table).axes[0].texts)


def test_a_figure_with_measured_points_is_not_replaced_by_a_predicted_one(tmp_path: Path) -> None:
    predicted = memory(mtt=100, tesla=4, tesla_exact=5)
    fuller = figure_b(figure1.best(pd.concat([predicted, a_gpu(predicted, tesla=6)])), times(mtt=2.0))
    emptier = figure_b(predicted, times(mtt=2.0))
    path = tmp_path / "figures" / "figure1b.csv"

    def made(table: pd.DataFrame) -> Report:
        return Report(text="", rows={path: table}, texts={}, column="paper_time_ratio", lost=lost)

    made(fuller).write()
    with pytest.raises(
        DcbenchError, match=r"figure1b.csv stays as it is: 2 of its rows .* peak, cifar100, tesla, a GPU"
    ):
        made(emptier).write()
    assert lost(fuller, figure_b(predicted, NOTHING)) == [
        "peak, cifar100, tesla, a GPU",
        "peak, imagenet1k-64, tesla, a GPU",
        "time, cifar100, mtt, a CPU, 2",
    ]
    made(fuller).write()
    made(emptier).write(force=True)
    path.write_text("my,own\n1,2\n")
    with pytest.raises(CorruptFileError, match="is another table"):
        made(fuller).write(force=True)


def test_the_command_takes_what_a_gpu_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure1, "panel_a", lambda: Panel("Figure 1a", figure1.panel_b().points[:3]))
    predicted = memory(mtt=100, tesla=4, tesla_exact=5)
    monkeypatch.setattr(memories, "measure", lambda *given, **named: predicted)
    monkeypatch.setattr(growth, "predict", lambda **named: pd.DataFrame())
    monkeypatch.setattr(growth, "markdown", lambda table: "")
    path = tmp_path / "figures" / "memory.csv"
    merge_csv(path, a_gpu(predicted, mtt=90, tesla=6), memories.KEY)
    result = CliRunner().invoke(main, ["reproduce", "figure1", "--no-shipped", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    written = pd.read_csv(tmp_path / "figures" / "figure1b.csv")
    assert of(written, "tesla")["memory_ratio"] == 15
    assert of(written, "tesla")["memory_hardware"] == "a GPU"
    assert of(written, "tesla-exact")["meter"] == "predicted"
    assert set(pd.read_csv(path)["meter"]) == {"cuda", "predicted"}
    told = result.stderr.splitlines()[-1]
    assert all(name in told for name in ("memory.csv", "growth.csv", "figure1b.csv", "figure1.md"))


def test_the_second_panel_is_memory_against_the_batch() -> None:
    points = figure1.panel_batch().points
    assert {p.batch_size for p in points} == {10, 100, 300, 1000}
    assert min(p.ipc * 100 for p in points) >= 1000  # a batch has no more images than there are
    where = {"meter": "predicted", "hardware": "none: predicted", "status": "ok"}
    peaks = [2**20 if p.settings else 2**20 * (p.batch_size or 0) for p in points]
    rows = pd.DataFrame([{**vars(p), **where, "peak_bytes": peak} for p, peak in zip(points, peaks, strict=True)])
    lines = figure1.markdown_batch(rows).splitlines()
    (widest,) = (line for line in lines if line.startswith("| 1000 "))
    assert [cell.strip() for cell in widest.split("|")][-2] == "1.0 MiB (1,000x)"
    left, right = figure1.draw_a(rows).axes
    assert not left.get_lines()
    assert [line.get_label() for line in right.get_lines() if len(np.asarray(line.get_xdata())) == 4] == [
        "mtt",
        "tesla",
        "tesla-exact",
        "tesla-exact, micro_batch=10 weights=host",
    ]
    assert (right.get_xscale(), right.get_yscale()) == ("log", "log")
    assert "nothing on record; `dcbench compare memory` measures it" in figure1.markdown_a(rows)
    assert [text.get_text() for text in left.texts] == ["not measured: dcbench compare memory"]


def test_predicted_points_among_measured_ones_are_told_and_drawn_open() -> None:
    points = figure1.panel_a().points
    rows = pd.DataFrame([{**vars(p), "status": "ok", "peak_bytes": 2**30} for p in points])
    rows["meter"] = ["predicted" if p.method == "mtt" and p.matching_steps in (30, 50) else "cuda" for p in points]
    rows["hardware"] = ["none: predicted" if meter == "predicted" else "a GPU" for meter in rows["meter"]]
    text = figure1.markdown_a(rows)
    assert "meter cuda (a GPU), predicted (none: predicted)" in text
    assert text.endswith("\n\n- predicted: `mtt` at 30, 50\n")
    (axes,) = memory_figure(rows, "matching_steps").axes
    assert axes.get_title().endswith("meter cuda, predicted (open)")
    drawn = [list(np.asarray(line.get_xdata())) for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    assert drawn[0] == [30, 50]
    assert "predicted:" not in figure1.markdown_a(rows.assign(meter="predicted", hardware="none: predicted"))


def test_two_machines_have_lines_that_say_which() -> None:
    both = pd.concat([times(mtt=2.0, tesla=3.0), times(threads=1, mtt=4.0)])
    shown = markdown_b(figure_b(memory(mtt=100, tesla=4, tesla_exact=5), both))
    lines = [line for line in shown.splitlines() if line.startswith("| imagenet1k-64")]
    assert len(set(lines)) == len(lines) == 8  # four methods


def test_nothing_timed_starts_at_zero() -> None:
    table = figure_b(memory(mtt=100, tesla=4, tesla_exact=5), NOTHING)
    assert draw_b(table).axes[1].get_ylim()[0] == 0


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare a Figure 1 of small shapes, one data set, and T = 6 in Figure 1b."""
    declared = figure1.declared()
    micro = {"settings": {"micro_batch": 2, "weights": "host"}, "steps": 1, "ipc": 1, "batch_sizes": [5]}
    paper = {"digits": {"memory_ratio": 5.0, "time_ratio": 1.27, "note": "measured"}}
    parts: list[tuple[Any, dict[str, Any]]] = [
        (declared, {"width": 4, "batch_size": 5}),
        (declared["a"], {"dataset": "digits", "steps": [1]}),
        (declared["micro_batches"], micro),
        (declared["b"], {"paper": paper, "steps": 6, "extrapolate_from": [1, 2, 3, 4]}),
    ]
    for part, values in parts:
        for name, value in values.items():
            monkeypatch.setitem(part, name, value)


def free(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let mtt need a GiB a step and the others one, and let so many steps be free."""

    def needed(point: Point, *meters: object) -> int:
        return ((point.matching_steps or 0) if point.method == "mtt" else 1) * 2**30

    monkeypatch.setattr(timing, "needed_bytes", needed)
    monkeypatch.setattr(timing, "free_bytes", lambda device: steps * 2**30)


def of_tiny(*, compiled: bool, turns: str = "a", **seconds: float) -> pd.DataFrame:
    """Return rows of the tiny Figure 1b as this machine measures them, of methods with their seconds a step."""
    rows: list[dict[str, Any]] = []
    for point in figure1.panel_b().points:
        for how in [False, True] if compiled and point.method != "mtt" else [False]:
            where = {"meter": "perf_counter", "hardware": hardware(), "threads": 1, "compiled": how, "turns": turns}
            taken = seconds[point.method.replace("-", "_")] * (point.matching_steps or 0)
            rows.append({**vars(point), **where, "iteration_seconds": taken, "repetitions": 3, "status": "ok"})
    return pd.DataFrame(rows)


CPU = Execution("cpu", 1)


def test_a_data_set_is_timed_whole_or_not_at_all(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 6)
    whole = of_tiny(compiled=False, mtt=2, tesla=3, tesla_exact=4)
    everything = figure1.panel_b().points
    assert to_time(NOTHING, CPU).points == everything
    assert to_time(whole, CPU, compiled=[False]).points == []
    assert to_time(whole, CPU).points == everything  # the compiled steps are missing
    assert to_time(of_tiny(compiled=True, mtt=2, tesla=3, tesla_exact=4), CPU).points == []
    assert to_time(whole, Execution("cpu", 2), compiled=[False]).points == everything
    assert to_time(whole, CPU, datasets=["cifar100"]).points == []
    mixed = whole.assign(turns=["b", *["a"] * (len(whole) - 1)])  # mtt did not take turns with the others
    assert to_time(mixed, CPU, compiled=[False]).points == everything
    assert figure_b(memory(mtt=100, tesla=4, tesla_exact=5), mixed)["time_ratio"].dropna().tolist() == [1.0]


def test_turns_that_were_interrupted_are_made_again(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 3)
    whole = extrapolated_rows()
    assert to_time(whole, CPU, compiled=[False], repetitions=3) == Plan([], [])
    for method, steps in (("tesla", 6), ("mtt", 2)):  # a measured time, and one that a line goes through
        short = whole.copy()
        short.loc[(short["method"] == method) & (short["matching_steps"] == steps), "repetitions"] = 2
        assert to_time(short, CPU, compiled=[False], repetitions=2) == Plan([], [])
        assert len(to_time(short, CPU, compiled=[False], repetitions=3).points) == 7


def test_what_does_not_fit_is_timed_at_smaller_steps(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(plan: Plan) -> list[int | None]:
        return [p.matching_steps for p in plan.points if p.method == "mtt"]

    free(monkeypatch, 3)
    plan = to_time(NOTHING, CPU)
    assert steps(plan) == [1, 2, 3, 6]  # the row of the last says why it did not run
    (told,) = plan.told
    assert told == (
        "digits, mtt: T = 6 needs 6.00 GiB, 3.00 GiB are free: timed at T = 1, 2, 3 and extrapolated; "
        "--extrapolate never runs it all the same"
    )
    assert to_time(NOTHING, CPU, extrapolate="never") == Plan(figure1.panel_b().points, [])
    free(monkeypatch, 2)
    (told,) = (plan := to_time(NOTHING, CPU)).told
    assert (steps(plan), told.rpartition("; ")[2]) == ([6], "nor do 3 smaller T fit, so it stays without a time")
    free(monkeypatch, 6)
    plan = to_time(NOTHING, CPU, extrapolate="always")
    assert steps(plan) == [1, 2, 3, 4]
    assert plan.told == [
        "digits, mtt: T = 6 is not run (always): timed at T = 1, 2, 3, 4 and extrapolated; "
        "--extrapolate auto measures it"
    ]


def small_steps(seconds: Mapping[int, float], turns: str = "a") -> pd.DataFrame:
    """Return rows of mtt in the tiny Figure 1b at smaller T, and one that says that T = 6 does not fit."""
    mtt = of_tiny(compiled=False, mtt=0, tesla=0, tesla_exact=0).query("method == 'mtt'").to_dict("records")[0]
    ran = [mtt | {"matching_steps": t, "iteration_seconds": s, "turns": turns} for t, s in seconds.items()]
    lacks = {
        "iteration_seconds": None,
        "repetitions": 0,
        "status": "not run: needs 57 GiB, 9 GiB are free",
        "turns": turns,
    }
    return pd.DataFrame([*ran, mtt | lacks])


def extrapolated_rows() -> pd.DataFrame:
    others = of_tiny(compiled=False, mtt=0, tesla=2.5, tesla_exact=4).query("method != 'mtt'")
    return pd.concat([others, small_steps({1: 2.0, 2: 4.1, 3: 5.9})])


def test_an_extrapolated_time_is_one_of_its_own_kind(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    table = figure_b(memory(mtt=100, tesla=4, tesla_exact=5), extrapolated_rows())
    mtt, tesla, *_ = table.to_dict("records")
    line = timing.extrapolated(small_steps({1: 2.0, 2: 4.1, 3: 5.9}), 6)
    assert line is not None
    assert (mtt["time_kind"], mtt["extrapolated_from"]) == ("extrapolated", "1 2 3")
    assert (mtt["iteration_seconds"], mtt["iteration_low_seconds"], mtt["iteration_high_seconds"]) == line[:3]
    assert (tesla["time_kind"], tesla["time_ratio_kind"]) == ("measured", "extrapolated")
    assert tesla["time_ratio"] == pytest.approx(15 / line.seconds)
    assert tesla["time_ratio_low"] == pytest.approx(15 / line.high)
    shown = markdown_b(table)
    assert "through T = 1, 2, 3; in brackets its interval at 95 %" in shown
    assert "; T = 6 was not run: needs 57 GiB, 9 GiB are free" in shown
    (line_of_tesla,) = [text for text in shown.splitlines() if "`tesla` " in text]
    assert ", mtt extrapolated " in line_of_tesla
    right = draw_b(table).axes[1]
    assert [patch.get_hatch() for patch in right.patches] == ["///", "", "", ""]
    first, second = (text.get_text() for text in right.texts[:2])
    assert first == f" {line.seconds:.3g} extrapolated"
    assert second == f" 15, {15 / line.seconds:.3g}x of extrapolated (paper 1.27x)"
    of_all = pd.concat([extrapolated_rows(), of_tiny(compiled=False, mtt=2, tesla=0, tesla_exact=0).iloc[:1]])
    assert figure_b(memory(mtt=100, tesla=4, tesla_exact=5), of_all)["time_kind"].tolist() == ["measured"] * 4
    two = pd.concat([small_steps({1: 2.0, 2: 4.0}), small_steps({3: 6.0}, turns="earlier")])
    assert figure_b(memory(mtt=100, tesla=4, tesla_exact=5), two)["iteration_seconds"].isna().all()


def test_the_command_times_what_fits_and_names_what_it_extrapolates(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "predict", lambda **named: pd.DataFrame())
    monkeypatch.setattr(growth, "markdown", lambda table: "")
    monkeypatch.setattr(growth, "count", lambda: 0)
    free(monkeypatch, 3)
    words = ["reproduce", "figure1", "--no-shipped", "--device", "cpu", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*words, "--run", "--compile", "off"])
    assert result.exit_code == 0, result.output
    assert "timed at T = 1, 2, 3 and extrapolated" in result.stderr
    table = pd.read_csv(tmp_path / "figures" / "figure1b.csv")
    assert table["time_kind"].tolist() == ["extrapolated", "measured", "measured", "measured"]
    assert table["time_ratio_kind"].tolist() == ["extrapolated"] * 4
    assert table["paper_time_ratio"].dropna().tolist() == [1.27]
    kept = read_csv(tmp_path / "figures" / "time.csv", KEY)
    assert sorted(kept[kept["method"] == "mtt"]["matching_steps"]) == [1, 2, 3, 6]
    assert kept["turns"].nunique() == 1
    assert set(kept["repetitions"]) == {0, 3}
    assert to_time(kept, Execution.resolve("cpu"), compiled=[False]) == Plan([], [])  # nothing is missing
    refused = CliRunner().invoke(main, [*words, "--extrapolate", "never"])
    assert "--extrapolate has no effect without --run" in refused.stderr


def test_predictions_are_those_on_record() -> None:
    kept = read_csv(Path(__file__).parents[1] / "results" / "figures" / "memory.csv", memories.KEY)
    point = Point(method="tesla", dataset="cifar100", matching_steps=1, ipc=1, batch_size=100)
    rows = figure1.of_points(kept[kept["meter"] == "predicted"], [point])
    meter = memory_meter("predicted")
    assert rows["peak_bytes"].tolist() == [meter.measure(point.workload(meter.device, shortened=True)).peak_bytes]


@pytest.mark.parametrize("name", ["memory_ratio", "time_ratio"])
def test_mtt_is_one(name: str) -> None:
    table = figure_b(memory(mtt=100, tesla=4, tesla_exact=5), times(mtt=2.0, tesla=3.0))
    mtt = table[(table["method"] == "mtt") & (table["dataset"] == "cifar100")]
    assert list(mtt[name]) == [1.0]


def test_the_page_says_what_was_measured() -> None:
    root = Path(__file__).parents[1]
    shown = (root / "docs" / "results" / "figure1.md").read_text(encoding="utf-8")
    told = (root / "results" / "tables" / "figure1.md").read_text(encoding="utf-8")
    told = told.partition("### Figure 1b")[2].partition("\n### ")[0]
    lines = [line for line in told.splitlines() if line.startswith("| ")]
    assert len(lines) == 13
    for line in lines:
        assert line in shown
    timed = pd.read_csv(root / "results" / "figures" / "figure1b.csv").dropna(subset=["iteration_seconds"])
    assert set(timed["dataset"]) == {"cifar100"}  # as the page says
    of = timed[~timed["compiled"] & timed["settings"].isna()].set_index("method")["time_ratio"]
    assert f"On this CPU `tesla` takes {of['tesla']:.2f} of the time of `mtt`" in shown
    shares = timed["iteration_spread_seconds"] / timed["iteration_seconds"]
    assert f"Interquartile ranges are {100 * shares.min():.0f} to {100 * shares.max():.0f} % of the medians" in shown
    compiled = timed[timed["compiled"]]["time_ratio"]
    assert f"the methods take {compiled.min():.2f} to {compiled.max():.2f} of the time of `mtt`" in shown
    seconds = pd.read_csv(root / "results" / "figures" / "time.csv").query("matching_steps == 10")
    seconds = seconds[~seconds["compiled"]]
    of = seconds.set_index("method")["iteration_seconds"]
    shown = " ".join(shown.split())
    assert f"`tesla` takes {of['tesla'] / of['mtt']:.2f} and" in shown
    assert f"`tesla-exact` {of['tesla-exact'] / of['mtt']:.2f} times as long" in shown
