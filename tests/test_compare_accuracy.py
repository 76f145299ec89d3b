"""`dcbench compare accuracy`, against numbers worked out by hand from rows written by the test."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dcbench_tesla.cli import main
from dcbench_tesla.compare.accuracy import Wanted, accuracies, curves, markdown
from dcbench_tesla.errors import DcbenchError
from dcbench_tesla.records.workspace import Workspace

ENVIRONMENT = {"commit": "0123456789ab", "versions": {}}


def summarised(values: list[float]) -> dict[str, Any]:
    """Return the accuracies of networks as the summary that a row has."""
    mean = sum(values) / len(values)
    std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    return {"mean": mean, "std": std, "values": values, "iteration": 9}


def stage(root: Path, method: str, seed: int, values: list[float], **changes: Any) -> None:
    """Write the rows of one finished cell and evaluator."""
    options = {"evaluator": "convnet", "recipe": "published", "ipc": 1, "set": "", "version": 1, **changes}
    extra = options.get("extra", {})
    key = f"{method}{seed}{options['ipc']}{options['version']}{options['set']}".replace(" ", "")
    accuracy = summarised(values)
    shared = {
        "cell": f"{method}-digits",
        "dataset": "digits",
        "ipc": options["ipc"],
        "method": method,
        "seed": seed,
        "protocol": "smoke",
        "preset": "smoke",
        "hardware": options.get("hardware", "a machine"),
        "environment": {**ENVIRONMENT, "commit": options.get("commit", ENVIRONMENT["commit"])},
        "command": f"dcbench run --method {options.get('method_of_the_command', method)}"
        + (f" --set {options['set']}" if options["set"] else ""),
    }
    condense = {
        "identity": {
            "method": method,
            "seed": seed,
            "settings": options["set"],
            "version": options["version"],
            "ipc": options["ipc"],
            "network": None,
            "data": {"train_images": 0},
        },
        "settings": {},
        "distilled_images": 10,
        "condense_seconds": 10.0,
        "peak_bytes": 2**20 * (1 + seed),
    }
    evaluate = {
        "dataset_fingerprint": "f",
        "condense_key": key,
        "evaluator": options["evaluator"],
        "evaluator_version": options.get("evaluator_version", 1),
        "recipe": options["recipe"],
        "settings": options.get("settings", {}),
        "networks": len(values),
        "evaluated": [{"iteration": i, "test": [0.0]} for i in options.get("on_the_way", ())]
        + [{"iteration": 9, "test": values}],
        "accuracy": {"last": accuracy, "best_on_validation": None, "best_on_test": accuracy},
        "diverged_networks": 0,
        "evaluate_seconds": 1.0,
    }
    workspace = Workspace(root)
    workspace.write_row("condense", key, {**shared, **condense})
    workspace.write_row("evaluate", options.get("key", f"{key}{options['evaluator']}"), {**shared, **evaluate, **extra})


def test_a_curve_has_a_point_for_every_set_on_the_way(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.50, 0.60], on_the_way=(3, 6))
    stage(tmp_path, "dm", 1, [0.70, 0.72], on_the_way=(3, 6))
    stage(tmp_path, "random", 0, [0.2])
    points = curves(Workspace(tmp_path), Wanted())
    dm = points[points["method"] == "dm"]
    assert list(dm["iteration"]) == [3, 6, 9]
    assert list(dm["test"]) == pytest.approx([0, 0, 0.63])
    assert list(dm["test_networks"]) == [1, 1, 2]
    assert dm["test_std_networks"].isna().tolist() == [True, True, False]
    assert dm["test_std_networks"].iloc[-1] == pytest.approx(((0.05**2 + 0.01**2) / 2) ** 0.5)
    assert dm["test_std_seeds"].iloc[-1] == pytest.approx(0.08)
    assert list(points[points["method"] == "random"]["iteration"]) == [9]
    with pytest.raises(DcbenchError, match="no finished evaluation"):
        curves(Workspace(tmp_path), Wanted(methods=["mtt"]))


def test_spreads_over_networks_and_over_seeds_stand_apart(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.50, 0.60])  # mean 0.55, std 0.05
    stage(tmp_path, "dm", 1, [0.70, 0.72])  # mean 0.71, std 0.01
    (row,) = accuracies(Workspace(tmp_path), Wanted()).to_dict("records")
    assert row["last"] == pytest.approx(0.63)
    assert row["last_std_networks"] == pytest.approx(((0.05**2 + 0.01**2) / 2) ** 0.5)
    assert row["last_std_seeds"] == pytest.approx(0.08)
    assert (row["seeds"], row["networks"]) == (2, 2)
    assert (row["condense_seconds"], row["peak_bytes"]) == (10.0, 1.5 * 2**20)
    assert row["best_on_validation"] is None


def test_the_cost_of_a_method_is_that_of_one_code_on_one_machine(tmp_path: Path) -> None:
    def peak() -> float:
        (row,) = accuracies(Workspace(tmp_path), Wanted()).to_dict("records")
        return float(row["peak_bytes"] / 2**20)

    stage(tmp_path, "tesla", 3, [0.5, 0.6], commit="older")
    stage(tmp_path, "tesla", 6, [0.5, 0.6])
    assert peak() == 7.0  # of equally many, the last seed's
    stage(tmp_path, "tesla", 4, [0.5, 0.6], commit="older")
    assert peak() == 4.5
    stage(tmp_path, "tesla", 8, [0.5, 0.6], hardware="another machine")
    assert peak() == 4.5


def test_one_seed_has_no_spread_over_seeds(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5, 0.6])
    shown = markdown(accuracies(Workspace(tmp_path), Wanted()))
    assert "| `dm`   | 55.0 ± 5.0 [0.0, 100.0] |         10 s | 1.0 MiB |" in shown.splitlines()
    assert "over seeds" not in shown


def test_what_is_not_decidedly_worse_than_the_best_is_marked(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.80, 0.82, 0.81, 0.83])
    stage(tmp_path, "dsa", 0, [0.80, 0.80, 0.82, 0.82])
    stage(tmp_path, "dc", 0, [0.61, 0.60, 0.60, 0.62])
    stage(tmp_path, "dc", 0, [0.5, 0.6, 0.7, 0.6], evaluator="vit")
    table = accuracies(Workspace(tmp_path), Wanted())
    lines = markdown(table).splitlines()
    cells = {line.split("`")[1]: line.split("|")[2:4] for line in lines if line.startswith("| `")}
    assert cells["dm"][0] == " 81.5 ± 1.1 [79.4, 83.6] * "
    assert cells["dsa"][0].rstrip().endswith("] *")
    assert cells["dc"][0] == " 60.7 ± 0.8 [59.2, 62.3]   "
    assert "*" not in cells["dc"][1]  # alone in its column: nothing to be level with
    text = " ".join(" ".join(lines).split())
    assert "`*`: the best, and what is not decidedly worse." in text
    assert "- intervals: 95 % by Student t, over the networks of one set, and they speak of this set only" in text
    assert "- not decisive (convnet): `dm` over `dsa` by 0.5 points (16)" in text
    assert "at least: networks do not show how sets differ" in text
    row = table[(table["method"] == "dsa")].iloc[0]
    assert (row["last_unit"], row["last_to_best"], row["last_level"], row["interval"]) == (
        *("networks", pytest.approx(-0.005), True, "95 % by Student t"),
    )
    other = accuracies(Workspace(tmp_path), Wanted(), by="percentile")
    assert "95 % by bootstrap (percentiles)" in markdown(other)
    assert (other["last_high"] <= 0.83).all()


def test_a_method_of_other_seeds_is_compared_with_none(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 1, [0.1, 0.2])
    stage(tmp_path, "dsa", 0, [0.7, 0.71])
    stage(tmp_path, "dc", 0, [0.7, 0.70])
    table = accuracies(Workspace(tmp_path), Wanted()).set_index("method")
    assert table["last_level"].to_dict() == {"dm": None, "dsa": True, "dc": True}
    assert table["last_to_best"].isna().to_dict() == {"dm": True, "dsa": True, "dc": False}
    assert "not decisive (convnet): `dsa` over `dc` by 0.5 points" in markdown(table.reset_index())


def test_of_two_equal_methods_one_is_the_best_and_the_other_equal(tmp_path: Path) -> None:
    stage(tmp_path, "herding", 0, [0.7, 0.8])
    stage(tmp_path, "k-center", 0, [0.7, 0.8])
    text = markdown(accuracies(Workspace(tmp_path), Wanted()))
    assert re.search(r"not decisive \(convnet\): `(herding|k-center)` over `(?!\1)(herding|k-center)`: equal", text)


def test_a_method_that_is_ahead_in_what_both_ran_is_told_so(tmp_path: Path) -> None:
    """The best by the mean of its seeds, of which the other one has the first two only."""
    stage(tmp_path, "tesla", 0, [0.60, 0.61, 0.62])
    stage(tmp_path, "tesla", 1, [0.62, 0.63, 0.61])
    stage(tmp_path, "tesla", 2, [0.72, 0.73, 0.74])
    stage(tmp_path, "dm", 0, [0.60, 0.63, 0.615])
    stage(tmp_path, "dm", 1, [0.63, 0.62, 0.635])
    text = " ".join(markdown(accuracies(Workspace(tmp_path), Wanted())).split())
    assert re.search(r"not decisive \(convnet\): `tesla` over `dm` that is ahead by 0.7 points in what both ran", text)


def test_with_several_seeds_intervals_and_tests_are_over_seeds(tmp_path: Path) -> None:
    """A difference of three points: the note says how many seeds decide it, and with these it is decided."""
    theirs = [0.70, 0.66, 0.72, 0.71, 0.69, 0.74, 0.70, 0.68]
    ours = [a + b for a, b in zip(theirs, (0.05, 0.02, 0.01, 0.04, 0.03, 0.03, 0.02, 0.04), strict=True)]

    def seeds(count: int) -> str:
        for seed in range(count):
            stage(tmp_path, "dm", seed, [ours[seed] - 0.001, ours[seed] + 0.001])
            stage(tmp_path, "dc", seed, [theirs[seed] - 0.002, theirs[seed] + 0.002])
        return " ".join(markdown(accuracies(Workspace(tmp_path), Wanted())).split())

    few = seeds(3)
    assert "- intervals: 95 % by Student t, over the means of 3 seeds" in few
    (needed,) = re.findall(r"not decisive \(convnet\): `dm` over `dc` by 2.7 points \((\d+)\)", few)
    assert "at least" not in few
    enough = seeds(int(needed))
    assert "not decisive" not in enough
    assert "| `dc`" in enough
    assert re.search(r"`dc` \| [^|*]+ \|", enough)
    assert re.search(r"`dm` \| [^|*]+\* \|", enough)


def test_the_condensing_machine_is_named_where_it_is_another(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.3])
    stage(tmp_path, "dsa", 0, [0.4], extra={"hardware": "EPYC"})
    table = accuracies(Workspace(tmp_path), Wanted())
    assert list(table["hardware"]) == ["a machine", "a machine (condensation), EPYC (evaluation)"]


def test_other_settings_are_another_line_and_no_other_seed(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5, 0.6])
    stage(tmp_path, "dm", 0, [0.7, 0.8], set="iterations=9")
    table = accuracies(Workspace(tmp_path), Wanted())
    assert list(table["seeds"]) == [1, 1]
    shown = markdown(table)
    assert "| `dm` iterations=9 |" in shown
    assert "| `dm`              |" in shown


def test_lines_tell_only_in_what_they_differ(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5], set="iterations=9 --set lr_images=1")
    stage(tmp_path, "dm", 0, [0.7], set="iterations=9 --set lr_images=2")
    lines = markdown(accuracies(Workspace(tmp_path), Wanted())).splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| `")] == [
        "`dm` lr_images=1",
        "`dm` lr_images=2",
    ]


def test_other_data_are_another_section_and_a_baseline_takes_only_those_of_its_method(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5], set="data.zca=true --set iterations=9")
    stage(tmp_path, "dm", 0, [0.6])
    stage(tmp_path, "random", 0, [0.4], set="data.zca=true --set iterations=9", method_of_the_command="dm")
    shown = markdown(accuracies(Workspace(tmp_path), Wanted()))
    titles = [line for line in shown.splitlines() if line.startswith("###")]
    assert titles == ["### digits, IPC 1, preset smoke", "### digits, IPC 1, preset smoke, data.zca=true"]
    beside = shown.partition("data.zca=true")[2]
    assert "| `random` |" in beside
    assert "| `dm`     |" in beside


def test_equal_settings_of_other_versions_are_kept_apart(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5])
    stage(tmp_path, "dm", 0, [0.6], version=2)
    lines = markdown(accuracies(Workspace(tmp_path), Wanted())).splitlines()
    assert len([line for line in lines if re.match(r"\| `dm` \([0-9a-f]{6}\) \|", line)]) == 2


def test_other_schedules_versions_and_settings_of_an_evaluation_are_no_further_seeds(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5, 0.6], on_the_way=[3])
    stage(tmp_path, "dm", 0, [0.5, 0.6], key="without")
    stage(tmp_path, "dm", 0, [0.7, 0.8], key="new", evaluator_version=2)
    stage(tmp_path, "dm", 0, [0.2, 0.3], key="wide", settings={"width": 4})
    table = accuracies(Workspace(tmp_path), Wanted())
    assert list(table["seeds"]) == [1, 1, 1, 1]
    (line,) = (line for line in markdown(table).splitlines() if line.startswith("| `dm`"))
    shown = [cell.strip() for cell in line.split("|")[2:-1]]
    ends = ("[0.0, 88.5]", "[0.0, 100.0]", "[11.5, 100.0]")  # 12.7 times 5 points on both sides
    assert sorted(shown[:3]) == [
        f"{mean} ± 5.0 {end}" for mean, end in zip(("25.0", "55.0", "75.0"), ends, strict=True)
    ]


def test_settings_that_change_a_result_by_rounding_only_separate_no_seeds(tmp_path: Path) -> None:
    """Rows that are older than such a setting do not have it."""
    for seed, rounding in enumerate(({}, {"micro_batch": 0}, {"micro_batch": 5})):
        stage(tmp_path, "dm", seed, [0.2, 0.3], settings={"width": 4, **rounding})
    assert list(accuracies(Workspace(tmp_path), Wanted())["seeds"]) == [3]


def test_a_file_of_a_cell_is_no_seed_of_it_and_its_evaluation_seeds_are_not_seeds_of_the_set(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5, 0.6])
    for seed in (0, 1):
        of_a_file = {"set": "digest", "cell": "distilled.safetensors", "evaluation_seed": seed}
        stage(tmp_path, "dm", 0, [0.5, 0.7], key=f"file{seed}", extra=of_a_file)
    table = accuracies(Workspace(tmp_path), Wanted())
    assert list(table["seeds"]) == [1, 1, 1]
    shown = markdown(table).splitlines()
    lines = [line.split("|")[1].strip() for line in shown if line.startswith("| `dm`")]
    assert lines == ["`dm`", "`dm` file=distilled.safetensors", "`dm` (a)"]
    assert "- `dm` (a): evaluation_seed=1 file=distilled.safetensors" in shown


def test_settings_with_a_decimal_point_are_shown(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5], set="lr_images=0.5 --set convnet.lr=0.1")
    stage(tmp_path, "dm", 0, [0.7], set="lr_images=2.5 --set convnet.lr=0.1")
    assert list(accuracies(Workspace(tmp_path), Wanted())["settings"]) == ["lr_images=0.5", "lr_images=2.5"]


def test_what_test_images_chose_says_so_and_of_how_many_networks_it_is(tmp_path: Path) -> None:
    """The set of iteration 3, tested by two networks, is better than the last one, which three test."""
    values, best = [0.5, 0.6, 0.7], {**summarised([0.7, 0.8]), "iteration": 3}
    on_record = {
        "accuracy": {"last": summarised(values), "best_on_validation": None, "best_on_test": best},
        "evaluated": [{"iteration": 3, "test": [0.7, 0.8]}, {"iteration": 9, "test": values}],
    }
    stage(tmp_path, "dm", 0, values, extra=on_record)
    table = accuracies(Workspace(tmp_path), Wanted())
    last, chosen = (" ".join(markdown(table, statistic).split()) for statistic in ("last", "best_on_test"))
    assert "convnet: published; 3 networks" in last
    assert "convnet: published; 2 networks" in chosen
    told = "the sets were chosen by the test images: intervals and marks leave that out, and are too narrow"
    assert told in chosen
    assert told not in last


def test_a_statistic_that_nobody_has_is_empty(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5, 0.6])
    stage(tmp_path, "random", 0, [0.5, 0.6])
    shown = markdown(accuracies(Workspace(tmp_path), Wanted()), "best_on_validation")
    assert "| `dm`     |         |" in shown


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not valid JSON"),
        (b'{"stage": "eval', "is not valid JSON"),
        (b"\x89PNG\xff\xfe", "is not valid JSON"),
        (b"[]", "is not a row of dcbench. Delete it: the command that made it, dcbench run or"),
        (b'{"stage": "evaluate"}', "is not a row of dcbench: it has no condense_key. Delete it"),
        (None, "is a folder, not a regular file. Delete it: the command that made it"),
    ],
)
@pytest.mark.parametrize("words", [["compare", "accuracy"], ["reproduce", "table1"], ["report"], ["list", "cells"]])
def test_a_damaged_row_is_told_and_the_others_are_shown(
    words: list[str], content: bytes | None, told: str, tmp_path: Path
) -> None:
    stage(tmp_path, "dm", 0, [0.5, 0.6])
    bad = tmp_path / "rows" / "evaluate-x.json"
    if content is None:
        bad.mkdir()
    else:
        bad.write_bytes(content)
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert f"Error: {bad} {told}" in result.stderr
    assert result.stderr.endswith("Error: a file among the rows is left out, see above.\n")
    written = tmp_path / "report.html"
    assert "55.0 ± 5.0" in (written.read_text() if words == ["report"] else result.stdout)


def test_a_row_whose_parts_lack_something_is_told(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5, 0.6])
    stage(tmp_path, "dsa", 0, [0.5, 0.6], extra={"accuracy": {"best_on_validation": None, "best_on_test": None}})
    stage(tmp_path, "dc", 0, [0.5, 0.6], extra={"evaluated": [{"iteration": 9}]})
    result = CliRunner().invoke(main, ["list", "cells", "--out", str(tmp_path)])
    assert "it has no accuracy.last." in result.stderr
    assert "it has no evaluated.test." in result.stderr
    assert "2 files among the rows are left out, see above." in result.stderr
    assert len(result.stdout.splitlines()) == 3  # the head, a rule and the cell


def test_methods_are_lines_and_evaluators_columns_the_condensing_network_first(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.6, 0.6])
    stage(tmp_path, "dm", 0, [0.3, 0.3, 0.3], evaluator="alexnet", recipe="adam")
    stage(tmp_path, "random", 0, [0.5, 0.5])
    lines = markdown(accuracies(Workspace(tmp_path), Wanted())).splitlines()
    (head,) = (line for line in lines if line.startswith("| method"))
    assert [name.strip() for name in head.split("|")[1:4]] == ["method", "convnet", "alexnet"]
    order = [line for line in lines if line.startswith("| `")]
    assert [line.split("`")[1] for line in order] == ["random", "dm"]  # by the first column
    assert order[0].split("|")[3].strip() == ""  # was not run: empty
    assert order[1].split("|")[3].strip() == "30.0 ± 0.0 [30.0, 30.0]"
    assert "- alexnet: adam; 3 networks" in lines


def test_two_recipes_of_an_evaluator_are_two_columns(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.3], evaluator="vit", recipe="adam", settings={"recipe": "adam"})
    stage(tmp_path, "random", 0, [0.2], evaluator="vit", recipe="learned-lr", settings={"recipe": "learned-lr"})
    shown = markdown(accuracies(Workspace(tmp_path), Wanted()))
    assert "vit recipe=adam | vit recipe=learned-lr" in shown
    assert "| 30.0 |" in " ".join(shown.split())  # one network: no spread


def test_sections_by_ipc_and_what_is_wanted(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.3])
    stage(tmp_path, "dm", 0, [0.4], ipc=10)
    stage(tmp_path, "whole", 0, [0.9], ipc=None)
    shown = markdown(accuracies(Workspace(tmp_path), Wanted()))
    titles = [line for line in shown.splitlines() if line.startswith("###")]
    assert titles == [f"### digits, IPC {ipc}, preset smoke" for ipc in ("1", "10", "all")]
    assert list(accuracies(Workspace(tmp_path), Wanted(ipcs=[10]))["last"]) == [0.4]
    assert list(accuracies(Workspace(tmp_path), Wanted(methods=["whole"]))["last"]) == [0.9]
    with pytest.raises(DcbenchError, match="no finished evaluation"):
        accuracies(Workspace(tmp_path), Wanted(presets=["paper"]))


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    stage(tmp_path, "dm", 0, [0.5, 0.6])
    result = CliRunner().invoke(main, ["compare", "accuracy", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "| `dm`   | 55.0 ± 5.0 [0.0, 100.0] |" in result.stdout
    assert (tmp_path / "tables" / "accuracy.md").read_text(encoding="utf-8") in result.stdout
    head, line = (tmp_path / "tables" / "accuracy.csv").read_text(encoding="utf-8").splitlines()
    assert head.startswith("dataset,ipc,preset,data,method,settings,condensation,protocol,evaluator,recipe,")
    assert line.startswith("digits,1,smoke,,dm,,")
    assert ",smoke,convnet,published,version=1,1,2,1,0.55," in line
    assert json.loads(next((tmp_path / "rows").glob("evaluate-*")).read_text())["method"] == "dm"


def test_an_empty_folder_is_told_how_to_fill_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["compare", "accuracy", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "dcbench run" in result.stderr
    assert not (tmp_path / "tables").exists()
