"""Plots: every method has a look of its own, names do not overlap, and what is drawn is what was measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.container import ErrorbarContainer

from dcbench_tesla import registry
from dcbench_tesla.cli import main
from dcbench_tesla.compare.accuracy import Wanted, accuracies
from dcbench_tesla.compare.accuracy_plots import against_cost, against_ipc, front
from dcbench_tesla.compare.looks import LOOKS, apart, look
from dcbench_tesla.compare.plots import colours, memory_figure
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.declarations import declarations
from dcbench_tesla.reports.plots import table_figure
from dcbench_tesla.reports.tables import runs, table

RESULTS = Workspace(Path(__file__).resolve().parents[1] / "results")


def test_no_two_methods_share_colour_and_marker() -> None:
    methods = registry.names("methods")
    assert {*methods} == {*LOOKS}
    assert len({look(name) for name in methods}) == len(methods)
    plugins = [f"plugin-{i}" for i in range(50)]
    assert not {look(name) for name in plugins} & {*LOOKS.values()}
    assert colours(["tesla", "mtt"]) == {"tesla": look("tesla").colour, "mtt": look("mtt").colour}


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.3, 0.5, 0.5, 0.58], [0.3, 0.42667, 0.52667, 0.62667]),
        ([0.0, 0.01, 1.0, 1.0], [0.0, 0.1, 0.9, 1.0]),
    ],
)
def test_names_move_apart_as_little_as_need_be(heights: list[float], expected: list[float]) -> None:
    assert apart(heights, 0.1) == pytest.approx(expected, abs=1e-4)


def test_curves_on_each_other_are_told_apart() -> None:
    rows = [
        {"method": name, "matching_steps": steps, "peak_bytes": 2**30, "dataset": "digits", "width": 4}
        for name in ("tesla", "tesla-exact")
        for steps in (1, 5, 20)
    ]
    (axes,) = memory_figure(pd.DataFrame(rows).assign(meter="predicted", status="ok"), "matching_steps").axes
    under, over = (line for line in axes.get_lines() if len(np.asarray(line.get_xdata())) == 3)
    assert under.get_linewidth() > over.get_linewidth()
    assert under.get_markersize() > over.get_markersize()
    assert under.get_marker() != over.get_marker()
    assert list(axes.get_xticks()) == [1, 5, 20]
    assert axes.get_yscale() == "log"
    heights = [text.get_position()[1] for text in axes.texts]
    assert {text.get_text() for text in axes.texts} == {"tesla", "tesla-exact"}
    assert abs(heights[0] - heights[1]) > 0.05


def test_the_pareto_front_has_what_nothing_beats() -> None:
    costs, values = pd.Series([3.0, 1.0, 2.0, 2.0, 4.0]), pd.Series([9.0, 5.0, 7.0, 6.0, 8.0])
    assert front(zip(costs, values, strict=True)) == [(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]


def test_accuracy_is_drawn_against_ipc_and_cost() -> None:
    wanted = Wanted(datasets=["fashion-mnist"], evaluators=["convnet"], presets=["quick"], labels=["set"])
    found = accuracies(RESULTS, wanted)
    by_ipc, by_cost = against_ipc(found), against_cost(found)
    assert by_ipc is not None
    assert by_cost is not None
    (axes,) = by_ipc.axes
    assert list(axes.get_xticks()) == [1, 10]
    assert {"mtt", "tesla", "tesla-exact", "random"} <= {text.get_text() for text in axes.texts}
    seconds, gib = by_cost.axes[-2:]
    assert seconds.get_title() == "fashion-mnist, IPC 10, preset quick, convnet"
    assert (seconds.get_xscale(), gib.get_xscale()) == ("log", "log")
    legend = gib.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert {"tesla", "mtt", "random (no cost)", "Pareto front"} <= {*names}
    tesla = found[(found["method"] == "tesla") & (found["ipc"] == 10)].iloc[0]
    (point,) = (c.lines[0] for c in gib.containers if isinstance(c, ErrorbarContainer) and c.get_label() == "tesla")
    drawn = [np.asarray(values).tolist() for values in (point.get_xdata(), point.get_ydata())]
    assert drawn == [[tesla["peak_bytes"] / 2**30], [100 * tesla["last"]]]


def test_no_place_is_empty_and_a_line_alone_is_drawn_only_where_there_is_no_other() -> None:
    wanted = Wanted(datasets=["fashion-mnist"], presets=["quick"])
    drawn = against_ipc(accuracies(RESULTS, wanted))
    alone = against_ipc(accuracies(RESULTS, replace(wanted, methods=["kip"], evaluators=["kernel-ridge"])))
    assert drawn is not None
    assert alone is not None
    for figure, titles in ((drawn, {"convnet", "resnet18"}), (alone, {"kernel-ridge"})):
        shown = [axes for axes in figure.axes if axes.axison]
        assert {axes.get_title().rpartition(" ")[2] for axes in shown} == titles
        assert all(axes.has_data() for axes in shown)


def test_labels_of_the_sets_are_drawn_and_others_where_they_are_asked_for() -> None:
    wanted = Wanted(datasets=["fashion-mnist"], presets=["quick"], evaluators=["convnet"])
    for labels, named in (((), ""), (("teacher",), ", teacher labels"), (("hard", "teacher"), ", hard labels")):
        drawn = against_ipc(accuracies(RESULTS, replace(wanted, labels=labels)))
        assert drawn is not None
        assert drawn.axes[0].get_title() == f"fashion-mnist, preset quick, convnet{named}"


def test_without_enough_results_the_command_says_what_a_plot_needs(tmp_path: Path) -> None:
    words = ["compare", "accuracy", "--plot", "--shipped", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*words, "--dataset", "fashion-mnist", "--method", "tesla", "--ipc", "1"])
    assert result.exit_code == 0, result.output
    assert "accuracy-ipc is not drawn: it needs a data set with several IPCs" in result.stderr
    assert "accuracy-cost is not drawn" in result.stderr
    assert not (tmp_path / "figures").exists()


def test_panels_of_published_numbers_alone_are_named_and_not_drawn() -> None:
    declaration = declarations()["table1"]
    found = table(declaration, runs(declaration, RESULTS), [])
    titles = [axes.get_title() for axes in table_figure(declaration, found).axes if axes.axison]
    ran = found[found["status"] == "run"][["dataset", "ipc"]].drop_duplicates()
    assert titles == [f"{dataset}, IPC {ipc}" for dataset, ipc in ran.itertuples(index=False)]
    assert {"fashion-mnist, IPC 1", "mnist, IPC 10"} <= set(titles)
    (legend,) = table_figure(declaration, found).legends
    assert "published numbers only, not drawn: cifar10, IPC 1;" in legend.get_title().get_text()
    alone = table(declaration, [], [])
    assert len([axes for axes in table_figure(declaration, alone).axes if axes.axison]) == 10
