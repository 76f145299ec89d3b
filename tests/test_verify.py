"""`dcbench verify`: a claimed accuracy, what is measured, and the change that closes the gap."""

import dataclasses
import re
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from dcbench_tesla.cells.saved import evaluate_saved
from dcbench_tesla.config import Override, overrides_from
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.datasets import load_dataset
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import UsageError
from dcbench_tesla.exchange.verify import TOLERANCE, Claim, Measured, Suspect, Verdict, suspects, verify
from dcbench_tesla.reports.html.verified import verified_part
from dcbench_tesla.reports.verified import verified
from tests.fixtures_cells import command, ran, rows, set_words

HOW = {"convnet.epochs": 30, "convnet.width": 8, "evaluation.networks": 4}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whitened set with a learned rate, as it was made."""
    out = tmp_path_factory.mktemp("published")
    made = ran(out, "class-means", {**HOW, "evaluation.networks": 1, "data.zca": True}).distilled
    path = out / "set.safetensors"
    dataclasses.replace(made, lr=0.03).save(path)
    return path


@pytest.fixture(scope="module")
def claim(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Claim:
    """What its authors print: the accuracy of networks of another seed."""
    out = tmp_path_factory.mktemp("authors")
    row = evaluate_saved(published, preset="smoke", seed=9, overrides=overrides_from(HOW), out=out, quiet=True)
    values = row["convnet"]["accuracy"]["last"]["values"]
    return Claim(printed=f"{100 * fmean(values):.1f}", std=100 * pstdev(values), networks=len(values))


def judged(path: Path, claim: Claim, out: Path) -> Verdict:
    return verify(path, claim, preset="smoke", overrides=overrides_from(HOW), out=out, device="cpu")


def test_a_true_claim_is_consistent_and_nothing_else_is_tried(published: Path, claim: Claim, tmp_path: Path) -> None:
    found = judged(published, claim, tmp_path)
    assert (found.outcome, found.tried) == ("consistent", ())
    assert len(rows(tmp_path, "evaluate")) == 1
    assert "consistent with the claim" in found.lines()[0]


def test_a_wrong_claim_is_not_explained_by_any_change(published: Path, claim: Claim, tmp_path: Path) -> None:
    found = judged(published, dataclasses.replace(claim, printed="99.5"), tmp_path)
    assert (found.outcome, found.closing) == ("below", None)
    assert found.lines()[-1] == f"none of these {len(found.tried)} changes closes the gap"


def test_a_missing_learned_rate_is_named_and_the_next_call_trains_nothing(
    published: Path, claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "without-rate.safetensors"
    dataclasses.replace(DistilledSet.load(published), lr=None).save(path)
    words = ["verify", path, "--claim", claim.printed, "--std", claim.std, "--claim-networks", 4, "--preset", "smoke"]
    words += ["--networks", 4, "--device", "cpu", "--out", tmp_path / "out"]
    words += set_words({name: value for name, value in HOW.items() if name.startswith("convnet")})
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("below the claim by ")
    assert re.search(r"closes? the gap.*: learned rate 0.03. The file lacks the learned rate", result.stdout)
    monkeypatch.setattr("dcbench_tesla.cells.evaluation.train_and_test", lambda *_: pytest.fail("it was trained again"))
    again = command(*words)
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    assert all(row["command"].startswith("dcbench evaluate ") for row in rows(tmp_path / "out", "evaluate"))


def test_a_wrong_whitening_is_named(published: Path, claim: Claim, tmp_path: Path) -> None:
    whitened = DistilledSet.load(published)
    path = tmp_path / "standardised.safetensors"
    wrong = ran(tmp_path / "plain", "random", {**HOW, "convnet.epochs": 1}).distilled.preprocessing
    dataclasses.replace(whitened, preprocessing=wrong).save(path)
    found = judged(path, claim, tmp_path / "out")
    assert found.outcome == "below"
    assert found.closing is not None
    assert found.closing.name == "zca"
    assert "another preprocessing than the file says: zca" in found.lines()[-1]


# ---- what is tried, and what counts as consistent ----------------------------------------------------------------


def test_one_thing_at_a_time_is_changed(published: Path) -> None:
    made, digits = DistilledSet.load(published), load_dataset("digits")
    soft = dataclasses.replace(made, labels=dataclasses.replace(made).centred_labels().softmax(1))
    found = {suspect.name: suspect.made() for suspect in suspects(soft, digits)}
    rates = ["no-lr", "lr-0.001", "lr-0.003", "lr-0.1"]  # 0.03 is the set's own
    assert list(found) == ["no-augmentation", *rates, "standardise", "zca", "zca-frepo", "zca-kip", "hard-labels"]
    for name, changed in found.items():
        differ = [
            part
            for part in ("augmentation", "lr", "preprocessing", "labels", "images")
            if not _same(getattr(soft, part), getattr(changed, part))
        ]
        expected = {"no-a": "augmentation", "lr-0": "lr", "no-l": "lr", "hard": "labels"}.get(name[:4], "preprocessing")
        assert differ == [expected], name
    plain = dataclasses.replace(made, augmentation="none", lr=None)
    names = [suspect.name for suspect in suspects(plain, digits)]
    assert names[:5] == ["augmentation", "lr-0.001", "lr-0.003", "lr-0.03", "lr-0.1"]
    assert "hard-labels" not in names


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Preprocessing):
        return bool(one.key == other.key)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def measured(*percent: float) -> Measured:
    return Measured(values=[value / 100 for value in percent], recipe="published")


def test_outcomes_are_those_of_scipy_with_the_printed_number_as_it_is_rounded() -> None:
    found, claim = measured(70.0, 71.0, 72.0), Claim(printed="72.0", std=0.5, networks=5)
    for printed, least in (("72.0", 71.95), ("73.4", 73.35)):  # all numbers from there on round to the printed one
        p = stats.ttest_ind_from_stats(71.0, 1.0, 3, least, 0.5, 5, equal_var=False).pvalue
        assert found.outcome(dataclasses.replace(claim, printed=printed)) == ("consistent" if p > 0.05 else "below")
    assert found.outcome(dataclasses.replace(claim, printed="76.0")) == "below"
    assert found.outcome(dataclasses.replace(claim, printed="66.0")) == "above"
    for printed, least in (("73.4", 73.35), ("73.6", 73.55)):
        p = stats.ttest_1samp([70, 71, 72], least).pvalue
        assert found.outcome(Claim(printed=printed)) == ("consistent" if p > 0.05 else "below")
    assert measured(71.04, 71.04).outcome(Claim(printed="71.0")) == "consistent"  # within what rounds to it
    assert measured(71.06, 71.06).outcome(Claim(printed="71.0")) == "above"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"printed": "seventy"}, "--claim takes an accuracy in percent"),
        ({"printed": "101"}, "--claim takes an accuracy in percent"),
        ({"printed": "71.6", "std": -1.0}, "--std must be finite and not negative"),
        ({"printed": "71.6", "networks": 1}, "--claim-networks must be at least 2"),
    ],
)
def test_a_claim_that_is_none_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Claim(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--networks", 1], "give --networks 2 or more"),
        (
            ["--evaluator", "kernel-ridge", "--networks", 5],
            "kernel-ridge cannot be verified: its networks do not depend",
        ),
        (["--evaluator", "kernel-ridge"], r"These can: alexnet, convnet, resnet18, timm:<name>, vgg11, vit\."),
    ],
)
def test_one_network_is_refused_before_it_is_trained(
    given: list[Any], told: str, published: Path, tmp_path: Path
) -> None:
    result = command("verify", published, "--claim", "80", "--out", tmp_path, "--preset", "smoke", *given)
    assert result.exit_code == 2
    assert re.search(told, result.stderr)
    assert rows(tmp_path, "evaluate") == []


# ---- too few networks, or too widely spread ones -----------------------------------------------------------------


def test_a_measurement_too_coarse_for_the_claim_leaves_it_undecided() -> None:
    found, claim = measured(60.0, 70.0), Claim(printed="90")
    low, high = stats.t.interval(0.95, 1, 65.0, 5.0)  # s / sqrt(2) = 5
    assert found.half_width(claim) == pytest.approx((high - low) / 2)
    assert found.outcome(claim) == "undecided"
    needed = found.needed(claim)
    assert needed == 11
    assert found.half_width(claim, needed) <= TOLERANCE < found.half_width(claim, needed - 1)
    told = Verdict(claim=claim, measured=found).lines()
    assert told[0].startswith("undecided, the measurement is too coarse to judge the claim: 65.0 [1.5, 100.0] %")
    assert told[-1].endswith("± 63.5 points only, more than ± 5: train more networks, about --networks 11")


def test_the_half_width_is_that_of_welch() -> None:
    found, claim = measured(70.0, 71.0, 72.0), Claim(printed="72.0", std=1.5, networks=4)
    authors = [70.5, 71.5, 72.5, 73.5]  # the same mean; their deviation is scaled to the claimed one
    authors = [72 + (value - 72) * 1.5 / stdev(authors) for value in authors]
    expected = stats.ttest_ind([70, 71, 72], authors, equal_var=False).confidence_interval(0.95)
    assert found.half_width(claim) == pytest.approx((expected.high - expected.low) / 2)


def test_a_mean_within_the_claims_own_deviation_is_consistent_however_coarse() -> None:
    assert measured(84.0, 90.0).outcome(Claim(printed="89.0", std=2.0)) == "consistent"
    assert measured(84.0, 90.0).outcome(Claim(printed="90.0", std=2.0)) == "undecided"
    assert measured(84.0, 90.0).outcome(Claim(printed="87.0")) == "consistent"


def test_a_claim_whose_own_spread_leaves_everything_open_asks_for_no_networks() -> None:
    found = Verdict(claim=Claim(printed="80", std=15.0), measured=measured(64.0, 64.1, 63.9))
    assert (found.outcome, found.measured.needed(found.claim)) == ("undecided", None)
    assert found.lines()[-1].endswith("the claim's own spread is too wide for any number of networks")


def test_an_undecided_change_closes_no_gap() -> None:
    coarse, fine = (
        Suspect(name=name, told=name, remedy="", made=lambda: pytest.fail("it is made")) for name in ("coarse", "fine")
    )
    found = Verdict(
        claim=Claim(printed="90"), measured=measured(50, 50.1, 50.2), tried=[(coarse, measured(80.0, 90.0))]
    )
    assert (found.outcome, found.closing) == ("below", None)
    *_, too_coarse, last = found.lines()
    assert too_coarse == "too coarse to judge: 1 of 1 changes; train more networks, about --networks 11"
    assert last == "none of these 1 changes closes the gap"
    found = dataclasses.replace(found, tried=[*found.tried, (fine, measured(89.0, 90.0, 90.0))])
    assert found.closing is fine
    assert found.lines()[-1].startswith("closes the gap: fine")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of every evaluation that is asked for; each is answered by the same two networks."""
    calls: list[dict[str, Any]] = []

    def answered(file: Path, evaluators: list[str], *, overrides: list[Override], **about: Any) -> dict[str, Any]:
        calls.append({o.label: o.value for o in overrides})
        return {name: {"accuracy": {"last": {"values": [0.6, 0.7]}}, "recipe": "published"} for name in evaluators}

    monkeypatch.setattr("dcbench_tesla.exchange.verify.evaluate_saved", answered)
    return calls


def test_nothing_is_tried_of_a_claim_that_is_undecided(
    published: Path, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = verify(published, Claim(printed="90"), networks=2, preset="smoke", out=tmp_path)
    assert (found.outcome, found.tried, len(asked)) == ("undecided", (), 1)


def test_the_number_of_networks_counts_where_a_preset_gives_an_evaluator_its_own(
    published: Path, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    for evaluator, expected in (("resnet18", {"resnet18.networks": 7}), ("convnet", {})):
        verify(published, Claim(printed="90"), evaluator=evaluator, networks=7, preset="quick", out=tmp_path)
        assert asked.pop() == {"evaluation.networks": 7, **expected}


# ---- the registry ------------------------------------------------------------------------------------------------


def test_the_registry_has_sets_of_every_outcome_and_says_whose_they_are() -> None:
    entries = verified()
    assert [entry.verdict for entry in entries] == [
        "consistent",
        "below; no change tried closes the gap",
        "below; learned rate 0.03",
        "below; preprocessing zca",
    ]
    for entry in entries:
        assert entry.source.startswith("own set, not published: ")
        assert f"--claim {entry.claim.printed} " in entry.command
        assert f"--networks {len(entry.measured.values)} " in entry.command
    assert dataclasses.replace(entries[1], measured=measured(60.0, 90.0), closing="").verdict == "undecided"
    (figure,) = verified_part().figures
    assert figure.table is not None
    assert [row[4].text for row in figure.table.body] == [entry.verdict for entry in entries]
