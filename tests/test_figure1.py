"""Figure 1: its rows from those of memory and time, and the paper's ratios beside."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dcbench_tesla.cli import main
from dcbench_tesla.compare import memory as memories
from dcbench_tesla.compare.files import merge_csv
from dcbench_tesla.compare.plots import memory_figure
from dcbench_tesla.compare.timing import KEY
from dcbench_tesla.errors import CorruptFileError, DcbenchError
from dcbench_tesla.records.progress import size
from dcbench_tesla.reports import figure1, growth
from dcbench_tesla.reports.figure1 import Panel
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
    where["compiled"] = False
    return pd.DataFrame(
        {**vars(point), **where, "iteration_seconds": seconds[point.method]}
        for point in figure1.panel_b().points
        if point.dataset == "cifar100" and point.method in seconds
    )


def of(table: pd.DataFrame, method: str) -> dict[Any, Any]:
    """Return the one row of a method on CIFAR-100."""
    (row,) = table[(table["dataset"] == "cifar100") & (table["method"] == method)].to_dict("records")
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
    table = figure1.figure_b(memory(mtt=100, tesla=4, tesla_exact=5), times(mtt=2.0, tesla=3.0))
    row = of(table, "tesla")
    assert (row["memory_ratio"], row["paper_memory_ratio"]) == (25, 5)
    assert (row["time_ratio"], row["paper_time_ratio"]) == (1.5, 1.27)
    shown = figure1.markdown_b(table)
    (line,) = [line for line in shown.splitlines() if line.startswith("| cifar100") and "`tesla` " in line]
    assert [cell.strip() for cell in line.split("|")][4:] == ["25.0", "about 5", "3", "1.50", "about 1.27", ""]
    assert "a CPU, threads: 2" in shown


def test_what_was_not_timed_is_empty() -> None:
    table = figure1.figure_b(memory(mtt=100, tesla=4, tesla_exact=5), NOTHING)
    assert table["iteration_seconds"].isna().all()
    assert table["time_ratio"].isna().all()
    assert "not measured here" in figure1.markdown_b(table)
    figure1.draw_b(table)
    table = figure1.figure_b(memory(mtt=100, tesla=4, tesla_exact=5), times(tesla=3.0))
    row = of(table, "tesla")
    assert row["iteration_seconds"] == 3
    assert pd.isna(row["time_ratio"])  # nothing to set it in relation to


def test_machines_are_not_mixed() -> None:
    both = pd.concat([times(mtt=2.0, tesla=3.0), times("a GPU", 1, mtt=0.2)])
    table = figure1.figure_b(memory(mtt=100, tesla=4, tesla_exact=5), both)
    ratios = table[(table["method"] == "tesla") & (table["dataset"] == "cifar100")].set_index("time_hardware")
    assert ratios["time_ratio"].to_dict() == pytest.approx({"a CPU": 1.5, "a GPU": float("nan")}, nan_ok=True)


def test_one_machine_is_drawn_also_where_it_was_timed_with_several_threads() -> None:
    both = pd.concat([times(threads=1, mtt=4.0, tesla=5.0), times(threads=2, mtt=2.0, tesla=3.0)])
    table = figure1.figure_b(memory(mtt=100, tesla=4, tesla_exact=5), both)
    shown = {text.get_text() for axes in figure1.draw_b(table).axes for text in axes.texts}
    assert {"4", "5"} <= shown
    assert not {"2", "3"} & shown
    on_gpu = memory(mtt=100, tesla=4, tesla_exact=5).assign(hardware="a GPU", meter="cuda")
    table = figure1.figure_b(on_gpu, pd.concat([both, times("a GPU", 1, mtt=0.2)]))
    assert "a GPU" in figure1.draw_b(table).axes[1].get_title()


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
    table = figure1.figure_b(best, NOTHING)
    assert of(table, "mtt")["memory_ratio"] == 1
    assert pd.isna(of(table, "tesla")["memory_ratio"])  # two meters make no ratio
    shown = figure1.markdown_b(table)
    assert "meter cuda (a GPU), predicted (none: predicted)" in shown
    assert {line.split("|")[-2].strip() for line in shown.splitlines() if line.startswith("| cifar100")} == {
        "cuda",
        "predicted",
    }
    assert "cuda" in "".join(text.get_text() for text in figure1.draw_b(table).axes[0].texts)


def test_a_figure_with_measured_points_is_not_replaced_by_a_predicted_one(tmp_path: Path) -> None:
    predicted = memory(mtt=100, tesla=4, tesla_exact=5)
    fuller = figure1.figure_b(figure1.best(pd.concat([predicted, a_gpu(predicted, tesla=6)])), times(mtt=2.0))
    emptier = figure1.figure_b(predicted, times(mtt=2.0))
    path = tmp_path / "figures" / "figure1b.csv"

    def made(table: pd.DataFrame) -> Report:
        return Report(text="", rows={path: table}, texts={}, column="paper_time_ratio", lost=figure1.lost)

    made(fuller).write()
    with pytest.raises(
        DcbenchError, match=r"figure1b.csv stays as it is: 2 of its rows .* peak, cifar100, tesla, a GPU"
    ):
        made(emptier).write()
    assert figure1.lost(fuller, figure1.figure_b(predicted, NOTHING)) == [
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
    assert "nothing on record" in figure1.markdown_a(rows)


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
    shown = figure1.markdown_b(figure1.figure_b(memory(mtt=100, tesla=4, tesla_exact=5), both))
    lines = [line for line in shown.splitlines() if line.startswith("| imagenet1k-64")]
    assert len(set(lines)) == len(lines) == 6


def test_nothing_timed_starts_at_zero() -> None:
    table = figure1.figure_b(memory(mtt=100, tesla=4, tesla_exact=5), NOTHING)
    assert figure1.draw_b(table).axes[1].get_ylim()[0] == 0


def test_what_is_still_to_be_timed() -> None:
    done = times("a CPU", 2, mtt=2.0, tesla=3.0)
    left = [(p.dataset, p.method) for p in figure1.untimed(done, "a CPU", 2)]
    assert ("cifar100", "mtt") not in left
    assert ("cifar100", "tesla-exact") in left
    assert len(left) == 4
    assert len(figure1.untimed(done, "a CPU", 1)) == 6
    assert len(figure1.untimed(NOTHING, "a CPU", 2)) == 6
    failed = done.assign(status="not run: needs 57.2 GiB, 20.1 GiB are free")
    assert len(figure1.untimed(failed, "a CPU", 2)) == 6


@pytest.mark.parametrize("name", ["memory_ratio", "time_ratio"])
def test_mtt_is_one(name: str) -> None:
    table = figure1.figure_b(memory(mtt=100, tesla=4, tesla_exact=5), times(mtt=2.0, tesla=3.0))
    mtt = table[(table["method"] == "mtt") & (table["dataset"] == "cifar100")]
    assert list(mtt[name]) == [1.0]


def test_the_page_says_what_was_measured() -> None:
    root = Path(__file__).parents[1]
    table = pd.read_csv(root / "results" / "figures" / "figure1b.csv")
    shown = (root / "docs" / "results" / "figure1.md").read_text(encoding="utf-8")
    for row in table.to_dict("records"):
        start = f"| {row['dataset']} | `{row['method']}` | {size(row['peak_bytes'])} | {row['memory_ratio']:.1f} |"
        assert start in shown
    assert table["iteration_seconds"].isna().all()  # as the page says
    seconds = pd.read_csv(root / "results" / "figures" / "time.csv").query("matching_steps == 10")
    seconds = seconds[~seconds["compiled"]]
    of = seconds.set_index("method")["iteration_seconds"]
    assert f"`tesla` takes {of['tesla'] / of['mtt']:.2f} and" in shown
    assert f"`tesla-exact` {of['tesla-exact'] / of['mtt']:.2f} times as long" in shown
