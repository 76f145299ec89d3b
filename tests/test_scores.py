"""`dcbench compare scores`: formulas against hand values, and scores of rows written by the test."""

import json
import math
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats  # type: ignore[import-untyped]

from dcbench_tesla.cli import main
from dcbench_tesla.compare.accuracy import Wanted
from dcbench_tesla.compare.regimes import regimes
from dcbench_tesla.compare.scores import (
    Images,
    augmentation_robust_score,
    label_robust_score,
    markdown,
    random_images,
    rank_correlation,
    scores,
)
from dcbench_tesla.errors import DcbenchError
from dcbench_tesla.records.workspace import Workspace

ENVIRONMENT = {"commit": "0123456789ab", "versions": {}}


# ---- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ior", "hlr", "wanted"), [(0.20, 0.30, 0.24819), (0.10, 0, 0.29076), (0, 0, 0.26894)])
def test_the_label_robust_score_has_its_hand_values(ior: float, hlr: float, wanted: float) -> None:
    assert label_robust_score(ior, hlr) == pytest.approx(wanted, abs=5e-6)
    assert augmentation_robust_score(ior, -hlr) == pytest.approx(wanted, abs=5e-6)  # of the same mean


def test_the_scores_reach_from_0_to_1_and_take_weights() -> None:
    assert (label_robust_score(-1, 1), label_robust_score(1, -1)) == pytest.approx((0, 1))
    assert label_robust_score(0.2, 0.9, weight=1.0) == label_robust_score(0.4, 0.0)
    assert augmentation_robust_score(0.2, 0.9, weight=1.0) == augmentation_robust_score(0.2, 0.2)


def test_random_images_lie_between_those_that_were_run_in_the_logarithm() -> None:
    of_random = {1: 0.5, 10: 0.7, 50: 0.8}
    between = [random_images(accuracy, of_random) for accuracy in (0.6, 0.75, 0.7)]
    assert [one.per_class for one in between if one] == pytest.approx([10**0.5, (10 * 50) ** 0.5, 10])
    assert [one.bound for one in between if one] == ["", "", ""]
    assert random_images(0.49, of_random) == Images(1, "<")
    assert random_images(0.81, of_random) == Images(50, ">")
    assert random_images(0.6, {1: 0.5}) is None
    assert [str(Images(50, ">")), str(Images(9.2134))] == ["> 50", "9.21"]


def test_random_images_are_monotone_where_accuracy_is_not() -> None:
    dip = {1: 0.4, 10: 0.62, 20: 0.58, 50: 0.8}  # pooled: 0.60 at 10 and at 20
    found = [random_images(accuracy, dip) for accuracy in (0.5, 0.59, 0.61, 0.7)]
    counts = [one.per_class for one in found if one is not None]
    assert counts[0] == pytest.approx(10**0.5)
    assert counts == sorted(counts)
    assert counts[1] < 10 < 20 < counts[2]
    assert counts[3] == pytest.approx(1000**0.5)


def test_the_rank_correlation_is_that_of_scipy() -> None:
    ours, theirs = [0.50, 0.55, 0.61, 0.58, 0.65], [0.80, 0.84, 0.83, 0.86, 0.90]
    found = rank_correlation(ours, theirs)
    assert found is not None
    assert found.value == pytest.approx(0.7)  # by hand: 1 - 6 (1 + 4 + 1) / (5 * 24)
    assert found.value == pytest.approx(stats.spearmanr(ours, theirs).statistic)
    ends = [math.tanh(math.atanh(0.7) + sign * 1.959964 / 2**0.5) for sign in (-1, 1)]  # Fisher: 1 / sqrt(n - 3)
    assert [found.low, found.high] == pytest.approx(ends, abs=1e-6)
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0] * 4, [1.0, 2.0, 3.0, 4.0]) is None
    whole = rank_correlation([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4])
    assert whole is not None
    assert (whole.low, whole.high, whole.networks, round(whole.value, 6)) == (None, None, 4, 1.0)


# ---- from rows -------------------------------------------------------------------------------------------------------


def stage(root: Path, method: str, values: list[float], *, ipc: int | None = 1, seed: int = 0, **changes: Any) -> None:
    """Write the rows of one cell and evaluation."""
    made = {"augmentation": "color_crop", **changes.get("made", {})}
    own = {"labels": changes["own_labels"]} if "own_labels" in changes else {}
    settings = {"epochs": 100, "width": 32, "depth": 0, **changes.get("settings", {})}
    accuracy = {"mean": fmean(values), "std": pstdev(values), "values": values, "iteration": 9}
    words = "".join(f" --set convnet.{name}={value}" for name, value in changes.get("settings", {}).items())
    key = f"{method}{ipc}{seed}{''.join(map(str, own.values()))}"
    shared = {
        **{"cell": f"{method}-digits", "dataset": "digits", "ipc": ipc, "method": method, "seed": seed},
        **{"protocol": "quick", "preset": "quick", "hardware": "a machine", "environment": ENVIRONMENT},
        "command": f"dcbench run --method {method} --dataset digits"
        + (f" --ipc {ipc}" if ipc else "")
        + f" --preset quick{words}",
    }
    identity = {"method": method, "seed": seed, "ipc": ipc, "network": None, "data": {"train_images": 0}, **made}
    condense = {"identity": {**identity, "settings": own}, "settings": own, "distilled_images": 10}
    evaluate = {
        **{"dataset_fingerprint": "f", "condense_key": key, "evaluator": "convnet", "recipe": "published"},
        **{"settings": settings, "networks": len(values), "evaluated": [{"iteration": 9, "test": values}]},
        "accuracy": {"last": accuracy, "best_on_validation": None, "best_on_test": accuracy},
        **{"diverged_networks": 0, "evaluate_seconds": 1.0, **changes.get("extra", {})},
    }
    workspace = Workspace(root)
    workspace.write_row("condense", key, {**shared, **condense})
    told = f"{key}{words}{changes.get('extra', {})}"
    row = "".join(character for character in told if character.isalnum())
    workspace.write_row("evaluate", row, {**shared, **evaluate})


def found(root: Path, method: str, **wanted: Any) -> dict[Any, Any]:
    """Return the scores of one method."""
    table = scores(Workspace(root), Wanted(**wanted)).table
    (row,) = table[table["method"] == method].to_dict("records")
    return row


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dm` with everything that its scores need: random images at three IPC, all real ones, augmentations, networks."""
    root = tmp_path_factory.mktemp("full")
    stage(root, "dm", [0.69, 0.71])
    stage(root, "random", [0.50, 0.50])
    stage(root, "random", [0.80, 0.80], ipc=10)
    stage(root, "random", [0.90, 0.90], ipc=50)
    stage(root, "whole", [0.99, 1.00], ipc=None, settings={"epochs": 20})
    for method, plain in (("dm", 0.60), ("random", 0.45)):
        stage(root, method, [plain, plain], settings={"augmentation": "none"})
    stage(root, "dm", [0.65, 0.67], settings={"augmentation": "flip"})
    for width, ours, whole in ((8, 0.50, 0.80), (16, 0.60, 0.90), (64, 0.65, 0.97)):
        stage(root, "dm", [ours], settings={"width": width})
        stage(root, "whole", [whole], ipc=None, settings={"epochs": 20, "width": width})
    stage(root, "tesla", [0.75, 0.77], own_labels="target")
    return root


def test_the_scores_of_rows(full: Path) -> None:
    row = found(full, "dm")
    assert (row["accuracy"], row["random"], row["ior"]) == pytest.approx((0.7, 0.5, 0.2))
    assert (row["whole"], row["hard"], row["hlr"]) == pytest.approx((0.995, 0.7, 0.295))  # its labels are hard
    assert row["lrs"] == pytest.approx(label_robust_score(0.2, 0.295))
    assert row["ars"] == pytest.approx(augmentation_robust_score(0.2, 0.15))
    assert row["random_images"] == pytest.approx(10 ** (2 / 3))
    assert row["compression"] == pytest.approx(10 ** (2 / 3))
    assert (row["augmentations"], row["lowest"], row["highest"]) == ("set flip none", 0.6, pytest.approx(0.7))
    assert (row["rank_correlation"], row["rank_networks"]) == (pytest.approx(1.0), 4)
    assert pd.isna(row["rank_low"])
    wanted = stats.ttest_rel([0.69, 0.71], [0.5, 0.5]).confidence_interval(0.95)
    assert (row["ior_low"], row["ior_high"]) == pytest.approx(tuple(wanted))


def test_soft_labels_need_a_row_with_hard_ones_and_regimes_are_not_mixed(full: Path, tmp_path: Path) -> None:
    assert pd.isna(found(full, "tesla")["hlr"])
    told = scores(Workspace(full), Wanted(methods=["tesla"])).missing
    wanted = "dcbench run --method tesla --dataset digits --ipc 1 --preset quick --evaluator convnet"
    assert f"HLR, LRS (hard labels): {wanted} --set evaluation.labels=hard" in told
    stage(tmp_path, "whole", [1.0], ipc=None)
    stage(tmp_path, "tesla", [0.7], own_labels="target")
    stage(tmp_path, "tesla", [0.4], own_labels="target", extra={"labels": {"regime": "hard"}})
    row = found(tmp_path, "tesla")
    assert (row["accuracy"], row["hard"], row["hlr"]) == pytest.approx((0.7, 0.4, 0.6))


def test_what_is_missing_is_told_by_the_command_that_makes_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        stage(tmp_path, "dm", [0.7, 0.6], ipc=10, seed=seed)
        stage(tmp_path, "dsa", [0.7, 0.6], ipc=10, seed=seed)
    lines, missing = scores(Workspace(tmp_path), Wanted())
    assert lines[["ior", "hlr", "lrs", "ars", "random_images", "rank_correlation"]].isna().all(axis=None)
    where = "--seed 0 --seed 1 --preset quick --evaluator convnet"
    both = "dcbench run --method dm --method dsa"
    assert missing == [
        f"IOR, LRS, ARS: dcbench run --method random --dataset digits --ipc 10 {where}",
        f"HLR, LRS: dcbench run --method whole --dataset digits {where}",
        f"random images: dcbench run --method random --dataset digits --ipc 1 --ipc 10 --ipc 50 {where}",
        f"ARS, augmentations: {both} --dataset digits --ipc 10 {where} --set convnet.augmentation=none",
        f"ranks (four or more of W and D): {both} --method whole --dataset digits --ipc 10 {where} "
        "--set convnet.width=W --set convnet.depth=D",
    ]
    for seed in (0, 1):
        stage(tmp_path, "dm", [0.6, 0.6], ipc=10, seed=seed, settings={"augmentation": "none"})
    told = scores(Workspace(tmp_path), Wanted(methods=["dm"])).missing
    random = f"dcbench run --method random --dataset digits --ipc 10 {where} --set convnet.augmentation=none"
    assert f"ARS: {random}" in told


def test_random_images_of_another_recipe_are_not_compared_with(tmp_path: Path) -> None:
    stage(tmp_path, "dm", [0.7, 0.6])
    changed = {"protocol": "quick, changed: convnet.epochs"}
    stage(tmp_path, "random", [0.5, 0.5], settings={"epochs": 7}, extra=changed)
    assert pd.isna(found(tmp_path, "dm")["ior"])
    stage(tmp_path, "random", [0.4, 0.4], settings={"epochs": 9})  # a preset gives random images a recipe of their own
    assert found(tmp_path, "dm")["random"] == pytest.approx(0.4)
    stage(tmp_path, "random", [0.3, 0.3])
    assert found(tmp_path, "dm")["random"] == pytest.approx(0.3)


HARD = {"labels": {"regime": "hard"}}


def test_rows_that_lack_a_setting_of_rounding_are_compared_with_those_that_have_it(tmp_path: Path) -> None:
    stage(tmp_path, "dm", [0.7, 0.7])
    stage(tmp_path, "random", [0.5, 0.5], settings={"micro_batch": 0})
    stage(tmp_path, "random", [0.4, 0.4], extra=HARD)
    assert found(tmp_path, "dm")["ior"] == pytest.approx(0.2)
    assert not [command for command in scores(Workspace(tmp_path), Wanted()).missing if command.startswith("IOR")]


def test_the_improvement_over_random_images_is_that_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.40, 0.50, 0.60)):
        stage(tmp_path, "random", [accuracy, accuracy + 0.02], seed=seed)
    stage(tmp_path, "idc", [0.70, 0.74])
    for seed, accuracy in ((1, 0.71), (2, 0.75), (3, 0.99)):
        stage(tmp_path, "dm", [accuracy, accuracy], seed=seed)
    stage(tmp_path, "dsa", [0.7, 0.7], seed=5)
    one, several, none = (found(tmp_path, method) for method in ("idc", "dm", "dsa"))
    assert (one["random"], one["ior"], one["ior_unit"]) == (pytest.approx(0.41), pytest.approx(0.31), "networks")
    ends = stats.ttest_rel([0.70, 0.74], [0.40, 0.42]).confidence_interval(0.95)
    assert (one["ior_low"], one["ior_high"]) == pytest.approx(tuple(ends))
    assert (several["random"], several["ior"]) == pytest.approx((0.56, 0.17))
    assert several["ior_unit"] == "seeds"
    ends = stats.ttest_rel([0.71, 0.75], [0.51, 0.61]).confidence_interval(0.95)
    assert (several["ior_low"], several["ior_high"]) == pytest.approx(tuple(ends))
    beside = regimes(Workspace(tmp_path), Wanted()).set_index("method")["over_random"]
    assert (one["ior"], several["ior"]) == (beside["idc"], beside["dm"])
    assert pd.isna([none["random"], none["ior"], beside["dsa"]]).all()
    told = scores(Workspace(tmp_path), Wanted(methods=["dsa"])).missing
    assert any(c.startswith("IOR, LRS, ARS: dcbench run --method random") and "--seed 5 " in c for c in told)


def test_both_differences_of_the_augmentation_robust_score_are_of_the_same_seeds(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.4, 0.6)):
        stage(tmp_path, "random", [accuracy], seed=seed)
        stage(tmp_path, "dm", [0.9], seed=seed)
        stage(tmp_path, "dm", [0.8 - 0.3 * seed], seed=seed, settings={"augmentation": "none"})
    stage(tmp_path, "random", [0.45], settings={"augmentation": "none"})
    row = found(tmp_path, "dm")
    assert (row["plain"], row["random_plain"]) == pytest.approx((0.8, 0.45))
    assert row["ars"] == pytest.approx(augmentation_robust_score(0.9 - 0.4, 0.8 - 0.45))


def test_the_recovery_of_hard_labels_is_that_of_all_seeds_of_the_accuracy(tmp_path: Path) -> None:
    stage(tmp_path, "whole", [0.9, 0.92], ipc=None)
    stage(tmp_path, "dm", [0.1, 0.1], extra=HARD)  # its labels are hard: this has nothing new, and fewer seeds
    stage(tmp_path, "tesla", [0.4, 0.4], own_labels="target", extra=HARD)
    for seed, accuracy in enumerate((0.5, 0.6)):
        stage(tmp_path, "dm", [accuracy, accuracy], seed=seed)
        stage(tmp_path, "tesla", [accuracy, accuracy], seed=seed, own_labels="target")
    row = found(tmp_path, "dm")
    assert (row["accuracy"], row["hard"], row["hlr"]) == pytest.approx((0.55, 0.55, 0.91 - 0.55))
    assert pd.isna(row["hlr_low"]), "all real images lack a seed of the set"
    assert pd.isna([found(tmp_path, "tesla")[name] for name in ("hard", "hlr")]).all()
    told = scores(Workspace(tmp_path), Wanted(methods=["tesla"])).missing
    assert any(c.startswith("HLR, LRS (hard labels)") and "--seed 0 --seed 1" in c for c in told)
    for seed, accuracy in ((1, 0.93), (2, 0.2)):
        stage(tmp_path, "whole", [accuracy, accuracy], ipc=None, seed=seed)
        stage(tmp_path, "tesla", [accuracy - 0.5] * 2, own_labels="target", seed=seed, extra=HARD)
    row, soft = found(tmp_path, "dm"), found(tmp_path, "tesla")
    assert (row["whole"], row["hlr"], row["hlr_unit"]) == (pytest.approx(0.92), pytest.approx(0.37), "seeds")
    ends = stats.ttest_rel([0.91, 0.93], [0.5, 0.6]).confidence_interval(0.95)
    assert (row["hlr_low"], row["hlr_high"]) == pytest.approx(tuple(ends))
    assert (soft["hard"], soft["hlr"]) == pytest.approx((0.415, 0.505))


def test_of_an_authors_recipe_nothing_is_told_that_would_be_refused(tmp_path: Path) -> None:
    stage(tmp_path, "random", [0.5, 0.5])
    stage(tmp_path, "frepo", [0.7, 0.7], settings={"recipe": "authors", "most_steps": 9})
    assert pd.isna([found(tmp_path, "frepo")[name] for name in ("ior", "ars", "random_images")]).all()
    told = scores(Workspace(tmp_path), Wanted(methods=["frepo"])).missing
    own = "--set convnet.recipe=authors --set convnet.most_steps=9"
    where = "--preset quick --evaluator convnet"
    assert told == [  # random images and all real ones have no such recipe, which brings its own augmentation
        f"HLR, LRS: dcbench run --method whole --dataset digits {where}",
        f"HLR, LRS (hard labels): dcbench run --method frepo --dataset digits --ipc 1 {where} {own} "
        "--set evaluation.labels=hard",
        f"ranks (four or more of W and D): dcbench run --method frepo --method whole --dataset digits --ipc 1 {where} "
        f"{own} --set convnet.width=W --set convnet.depth=D",
    ]


def test_the_table_and_the_files_of_the_command(full: Path) -> None:
    result = CliRunner().invoke(main, ["compare", "scores", "--out", str(full), "--method", "dm"])
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("| `dm`"))
    ends = f"+20.0 [{100 * (0.2 - 12.7062 * 0.01):.1f}, {100 * (0.2 + 12.7062 * 0.01):.1f}]"
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:3] == ["`dm`", "70.0", ends]
    assert cells[5:] == ["0.350", "4.64", "60.0 to 70.0 (3)", "1.00 (4)"]
    assert (full / "tables" / "scores.md").read_text() in result.stdout
    assert list(pd.read_csv(full / "tables" / "scores.csv")["ars"]) == [pytest.approx(0.3503, abs=1e-4)]
    assert "missing" not in result.stderr
    as_json = CliRunner().invoke(main, ["compare", "scores", "--out", str(full), "--json"])
    content = json.loads(as_json.stdout)
    assert content["kind"] == "compare scores"
    assert {row["method"] for row in content["rows"]} == {"dm", "random", "tesla"}
    assert "missing for HLR, LRS (hard labels): dcbench run --method tesla" in as_json.stderr


def test_a_narrow_terminal_breaks_the_table_and_not_its_words(full: Path) -> None:
    shown = markdown(scores(Workspace(full), Wanted()).table, width=80)
    assert max(map(len, shown.splitlines())) <= 80


def test_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DcbenchError, match="no finished evaluation"):
        scores(Workspace(tmp_path), Wanted())
