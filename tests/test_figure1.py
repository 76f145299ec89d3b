"""Figure 1: its rows from those of memory and time, and the paper's ratios beside."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dcbench_tesla.compare.timing import KEY
from dcbench_tesla.progress import size
from dcbench_tesla.reports import figure1


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


def test_the_readme_says_what_was_measured() -> None:
    root = Path(__file__).parents[1]
    table = pd.read_csv(root / "results" / "figures" / "figure1b.csv")
    readme = (root / "README.md").read_text(encoding="utf-8")
    for row in table.to_dict("records"):
        start = f"| {row['dataset']} | `{row['method']}` | {size(row['peak_bytes'])} | {row['memory_ratio']:.1f} |"
        assert start in readme
    assert table["iteration_seconds"].isna().all()  # as the README says
    seconds = pd.read_csv(root / "results" / "figures" / "time.csv").query("matching_steps == 10")
    of = seconds.set_index("method")["iteration_seconds"]
    assert f"`tesla` takes {of['tesla'] / of['mtt']:.2f} and" in readme
    assert f"`tesla-exact` {of['tesla-exact'] / of['mtt']:.2f} times as long" in readme
