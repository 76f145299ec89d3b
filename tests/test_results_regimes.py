"""docs/results/regimes.md shows what the rows of `results/fashion-mnist.sh` and the draws of `teacher.py` hold."""

import dataclasses
import json
import math
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dcbench_tesla.compare.accuracy import Wanted
from dcbench_tesla.compare.regimes import regimes
from dcbench_tesla.compare.statistics import compare
from dcbench_tesla.conformance import tiny_sets
from dcbench_tesla.interface import Teacher
from dcbench_tesla.records.workspace import Workspace
from tests.fixtures_results import gain, rows
from tests.fixtures_scripts import script

RESULTS = Path(__file__).parents[1] / "results"
EVALUATED = [row for row in rows("evaluate") if (row["dataset"], row["preset"]) == ("fashion-mnist", "quick")]
METHODS = ("random", "herding", "k-center", "class-means", "rded", "dm", "dc", "dsa", "tesla")
IPCS, NETWORKS, GOOD, WEAK = (1, 10), ("convnet", "resnet18"), 100, 20
LINES = (RESULTS.parent / "docs" / "results" / "regimes.md").read_text(encoding="utf-8").splitlines()
TEXT = " ".join(" ".join(LINES).split())


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    wanted = Wanted(datasets=["fashion-mnist"], presets=["quick"], methods=METHODS, evaluators=NETWORKS)
    return regimes(Workspace(RESULTS), wanted)


Found = dict[tuple[int, str, str, str], dict[Any, Any]]


@pytest.fixture(scope="module")
def found(table: pd.DataFrame) -> Found:
    """Return the rows by IPC, network, regime and method, with the good teacher."""
    told = table[table["teacher_epochs"].isna() | (table["teacher_epochs"] == GOOD)].to_dict("records")
    by_place = {(row["ipc"], row["column"], row["regime"], row["method"]): row for row in told}
    assert len(by_place) == len(told)
    return by_place


def test_every_method_has_three_seeds_under_every_regime_and_network(found: Found) -> None:
    places = [(i, n, r, m) for i in IPCS for n in NETWORKS for r in ("set", "hard", "teacher") for m in METHODS]
    assert [place for place in places if found[place]["seed_numbers"] != "0 1 2"] == []


@pytest.mark.parametrize("ipc", IPCS)
def test_the_page_shows_the_points_over_random_by_labels(ipc: int, found: Found) -> None:
    start = LINES.index(f"### IPC {ipc}")
    shown = [line for line in LINES[start + 1 : start + 4 + len(METHODS)] if line.startswith("| `")]
    places = [(network, regime) for network in NETWORKS for regime in ("set", "teacher")]
    for method in METHODS:
        rows = [found[ipc, network, regime, method] for network, regime in places]
        cells = [f"{100 * row['last']:.1f}" if method == "random" else gain(row) for row in rows]
        assert f"| `{method}` | {' | '.join(cells)} |" in shown
    assert len(shown) == len(METHODS)


def test_the_page_says_what_is_left_of_the_gains(found: Found) -> None:
    def points(method: str, ipc: int, regime: str = "teacher", network: str = "convnet") -> float:
        return 100 * float(found[ipc, network, regime, method]["over_random"])

    def better(method: str, ipc: int) -> str:
        own, taught = (found[ipc, "convnet", regime, method]["last"] for regime in ("set", "teacher"))
        return f"{100 * (taught - own):.1f}"

    def above(network: str, ipc: int) -> set[str]:
        rows = [found[ipc, network, "teacher", method] for method in METHODS[1:]]
        return {row["method"] for row in rows if row["over_random_p"] <= 0.05 and row["over_random"] > 0}

    by_labels = [better(method, ipc) for method in ("random", "tesla") for ipc in IPCS]
    told = "`random` becomes {} points better by them with one image a class and {} with ten, `tesla` {} and {}."
    assert told.format(*by_labels) in TEXT
    own, taught = ([f"{points('tesla', ipc, regime):.1f}" for ipc in IPCS] for regime in ("set", "teacher"))
    left = f"Of `tesla`'s {own[0]} points over `random` {taught[0]} are left with one image, and of {own[1]} with ten"
    assert f"{left} {taught[1]}." in TEXT
    gains: dict[str, dict[int, list[float]]] = {"set": {}, "teacher": {}}
    for regime, seed in ((regime, seed) for regime in gains for seed in (0, 1, 2)):
        means = [fmean(values(method, 10, "convnet", regime, seed)) for method in ("tesla", "random")]
        gains[regime][seed] = [means[0] - means[1]]
    loss = compare(gains["set"], gains["teacher"])
    ends = f"between {100 * loss.low:.1f} and {100 * loss.high:.1f} (interval of this one comparison)"
    assert f"That loss of {100 * loss.difference:.1f} lies {ends}" in TEXT
    assert above("convnet", 10) == {"dm", "tesla", "herding"}
    assert "With ten images `dm`, `tesla` and `herding` are decidedly above `random` under the ConvNet." in TEXT
    chosen = points("herding", 10, network="resnet18")
    assert f"`herding`, which learns nothing, is {chosen:.1f} points above `random` under `resnet18` with ten" in TEXT
    assert "herding" in above("resnet18", 10)
    assert chosen >= max(points(method, 10, network="resnet18") for method in METHODS[1:])
    for method, told in (
        ("dc", "`dc`'s images are {} points below `random` with ten, where they are {} below with their own labels"),
        ("k-center", "with ten images their own labels leave it {1} points below `random`, and a teacher's {0}"),
    ):
        below = [f"{-points(method, 10, regime):.1f}" for regime in ("teacher", "set")]
        assert told.format(*below) in TEXT
    near = found[10, "resnet18", "teacher", "dc"]["last"]
    assert f"`resnet18` stays near chance on them ({100 * near:.1f} %)" in TEXT
    assert near < 0.15


def values(method: str, ipc: int, network: str, regime: str, seed: int, epochs: int = GOOD) -> list[float]:
    """Return the accuracies of the networks of one set."""
    own: list[list[float]] = []
    for row in EVALUATED:
        place = (row["method"], row["ipc"], row["evaluator"], row["seed"])
        labels = row.get("labels", {"regime": "set"})
        if place == (method, ipc, network, seed) and labels["regime"] == regime:
            own += [row["accuracy"]["last"]["values"]] if labels.get("epochs", epochs) == epochs else []
    (only,) = own
    return only


def test_the_page_says_which_sets_were_made_twice() -> None:
    made: dict[str, set[str]] = {}
    for row in (row for row in EVALUATED if row["seed"] == 0 and "labels" not in row and row["method"] in METHODS):
        path = RESULTS / "rows" / f"condense-{row['condense_key']}.json"
        made.setdefault(row["method"], set()).add(json.loads(path.read_text(encoding="utf-8"))["hardware"])
    assert "`random`, `class-means` and `rded` with their own labels were made and judged" in TEXT
    elsewhere = {method for method, machines in made.items() if any("EPYC" in machine for machine in machines)}
    assert elsewhere - {"random"} == {*METHODS} - {"random", "class-means", "rded"}  # chosen images have no rounding


def test_the_page_says_what_hard_labels_change(found: Found) -> None:
    for method, ipc, network in ((method, ipc, network) for method in METHODS for ipc in IPCS for network in NETWORKS):
        own, hard = (found[ipc, network, regime, method]["last"] for regime in ("set", "hard"))
        assert own == pytest.approx(hard, abs=1e-12) or method == "rded"
    one, ten = (f"{100 * found[ipc, 'convnet', 'hard', 'rded']['last']:.1f}" for ipc in IPCS)
    assert f"the ConvNet reaches {one} % with one image a class and {ten} % with ten" in TEXT
    one, ten = (f"{100 * found[ipc, 'convnet', 'set', 'rded']['last']:.1f}" for ipc in IPCS)
    assert f"and with them {one} and {ten} %." in TEXT
    regimes_of = [
        {ipc: {s: values("rded", ipc, "convnet", r, s) for s in (0, 1, 2)} for ipc in IPCS} for r in ("set", "hard")
    ]
    first, second = (compare(*(own[ipc] for own in regimes_of)) for ipc in IPCS)
    assert first.p is not None
    assert second.p is not None
    assert first.p > 0.05 >= second.p
    assert (
        f"With ten the difference is {100 * second.low:.1f} to {100 * second.high:.1f} points, which is decided" in TEXT
    )


def test_the_page_shows_both_teachers(table: pd.DataFrame) -> None:
    def cell(method: str, regime: str, epochs: int = GOOD) -> str:
        own = [100 * value for value in values(method, 10, "convnet", regime, 0, epochs)]
        return f"{fmean(own):.1f} ± {pstdev(own):.1f}"

    weak = [method for method in METHODS if method != "rded"]  # which reads the good one
    for method in weak:
        assert (
            f"| `{method}` | {cell(method, 'set')} | {cell(method, 'teacher', WEAK)} | {cell(method, 'teacher')} |"
            in LINES
        )
    for epochs, told in (
        (GOOD, "The teacher is the ConvNet after 100 epochs of plain SGD: {:.1f} % of the test images"),
        (WEAK, "It is right on {:.1f} % of the test images"),
    ):
        (test,) = set(table.loc[table["teacher_epochs"] == epochs, "teacher_test"].dropna())
        assert told.format(100 * test) in TEXT
    for epochs, told in (
        (WEAK, "With the teacher of 20 epochs `dm` stands {:.1f} points below `random` and `tesla` {:.1f} above"),
        (GOOD, "with the good one they stand {:.1f} and {:.1f} above"),
    ):
        means = [fmean(values(m, 10, "convnet", "teacher", 0, epochs)) for m in ("dm", "tesla", "random")]
        dm, tesla = (100 * (mean - means[2]) for mean in means[:2])
        assert told.format(-dm if epochs == WEAK else dm, tesla) in TEXT


def test_the_page_shows_what_the_teacher_sees() -> None:
    drawn = pd.read_csv(RESULTS / "regimes" / "teacher.csv")
    assert set(drawn.value_counts(["method", "ipc", "seed"])) == {1}
    known = 100 * drawn.groupby(["method", "ipc"])["augmented"].mean().unstack()
    one, ten = (known[ipc].to_dict() for ipc in IPCS)
    assert list(drawn.groupby("method").size()) == [6] * len(METHODS)
    for method in METHODS:
        assert f"| `{method}` | {one[method]:.1f} | {ten[method]:.1f} |" in LINES
    order = sorted(METHODS, key=lambda method: float(ten[method]))
    assert {*order[:2]} == {"dc", "k-center"}
    assert order.index("tesla") > order.index("random")


# ---- what the teacher sees -----------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """A network whose logit of class 1 is the mean of an image, and whose logit of class 0 is 0."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(mean), 10 * mean], 1)


def test_known_counts_the_images_that_a_teacher_gives_their_class() -> None:
    """By hand: images of brightness 1, -1, 1, -1 and classes 1, 0, 0, 1; a turn leaves brightness, and crops do not."""
    known = script("regimes", "teacher").known
    bright = torch.tensor([1.0, -1.0, 1.0, -1.0])
    made = dataclasses.replace(
        tiny_sets()["1 x 8 x 8"],
        images=bright[:, None, None, None].expand(4, 1, 8, 8).clone(),
        labels=torch.tensor([1, 0, 0, 1]),
        augmentation="flip",
    )
    sure = 1 / (1 + math.exp(-10))
    teacher = Teacher(network=Brightness())
    assert known(made, teacher) == pytest.approx({"plain": 0.5, "augmented": 0.5, "probability": 0.5})
    right = dataclasses.replace(made, labels=torch.tensor([1, 0, 1, 0]))
    assert known(right, teacher) == pytest.approx({"plain": 1.0, "augmented": 1.0, "probability": sure})
    cropped = known(dataclasses.replace(right, augmentation="crop"), teacher)
    assert (cropped["plain"], cropped["augmented"]) == (1.0, 1.0)
    assert cropped["probability"] < sure
