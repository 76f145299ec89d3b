"""`docs/results/exact.md` and the files of `results/exact`: what they say is what the rows there give."""

from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from dcbench_tesla.compare.files import csv_text
from dcbench_tesla.compare.statistics import compare
from tests.fixtures_scripts import script

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "exact"
PAGE = ROOT / "docs" / "results" / "exact.md"


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    return script("exact", "summary")


@pytest.fixture(scope="module")
def table(summary: ModuleType) -> pd.DataFrame:
    found: pd.DataFrame = summary.rows(summary.read())
    return found


def test_tables_are_what_the_rows_give(summary: ModuleType, table: pd.DataFrame) -> None:
    text = summary.markdown(table, summary.grid(summary.read()))
    assert (FOLDER / "table.md").read_text(encoding="utf-8") == text
    assert (FOLDER / "table.csv").read_text(encoding="utf-8") == csv_text(table)
    page = PAGE.read_text(encoding="utf-8")
    for line in text.splitlines():
        assert line in page


def test_a_difference_is_that_of_the_chosen_rates_in_pairs(summary: ModuleType, table: pd.DataFrame) -> None:
    """By hand: T = 20, b = 0.05, the last sets."""
    cells = summary.read()[summary.Setting(20, 0.05)]
    values: dict[str, dict[int, list[float]]] = {}
    for method in ("tesla", "tesla-exact"):
        first = {cell.lr_images: own.validation for cell, own in cells.items() if cell[::2] == (method, 0)}
        (rate,) = (lr for lr, validation in first.items() if validation == max(first.values()))
        values[method] = {c.seed: own.test[300] for c, own in cells.items() if c[:2] == (method, rate)}
    assert set(values["tesla"]) == set(values["tesla-exact"]) == {0, 1, 2}
    found = table[(table["steps"] == 20) & (table["student_lr"] == 0.05) & (table["iteration"] == 300)].iloc[0]
    wanted = compare(values["tesla-exact"], values["tesla"])
    assert (found["difference"], found["low"], found["high"]) == (wanted.difference, wanted.low, wanted.high)


def test_the_page_says_why_in_the_numbers_of_the_draws() -> None:
    page = PAGE.read_text(encoding="utf-8")
    drawn = pd.read_csv(FOLDER / "why.csv")
    loss = {}
    for (b, images), own in drawn.groupby(["student_lr", "images"]):
        tesla, exact = (own.set_index("method").loc[name] for name in ("tesla", "tesla-exact"))
        ratio = exact["mean_norm"] / tesla["mean_norm"]
        numbers = f"{tesla['noise']:.1f} | {exact['noise']:.1f} | {ratio:.2f} | {exact['cosine']:.2f}"
        where = str(images).replace("tesla-exact", "`tesla-exact`").replace("of tesla", "of `tesla`")
        assert f"| {b:g} | {where} | {numbers} | {exact['fresh_loss']:.3f} |" in page
        loss[b, images] = exact["fresh_loss"]
    for b in (0.01, 0.02, 0.05):
        assert loss[b, "end of tesla-exact"] < loss[b, "end of tesla"]
    for b, quieter in ((0.01, True), (0.05, False)):
        noise = drawn[drawn["student_lr"] == b].pivot(index="images", columns="method", values="noise")
        assert ((noise["tesla-exact"] < noise["tesla"]) == quieter).all()
    late = drawn.dropna(subset=["late_loss"])
    assert f"by at most {(late['late_loss'] - late['fresh_loss']).abs().max():.3f}" in " ".join(page.split())


def test_what_the_page_concludes_holds(table: pd.DataFrame) -> None:
    assert set(table["steps"]) == {20}
    assert (table["p"] > 0.05).all()  # nothing is decided
    ends = table[table["iteration"] == 300].set_index("student_lr")["difference"]
    early = table[table["iteration"] == 150].set_index("student_lr")["difference"]
    assert [f"{100 * ends[b]:+.1f}" for b in (0.01, 0.02, 0.05)] == ["+1.0", "+0.1", "-1.0"]
    assert [f"{100 * early[b]:+.1f}" for b in (0.01, 0.05)] == ["+1.8", "-2.2"]


def test_noise_and_signal_are_estimated_without_bias(summary: ModuleType) -> None:
    """Draws around a known mean: |E g|^2 = 9 and E|g - E g|^2 = 400 in 100 dimensions, on average over many."""
    why = script("exact", "why")
    draw = torch.Generator().manual_seed(0)
    mean = torch.zeros(100, dtype=torch.float64)
    mean[0] = 3.0
    noise = 2 * torch.randn(4000, 12, 100, generator=draw, dtype=torch.float64)
    found = torch.tensor([why.spread(mean + one) for one in noise]).mean(0)
    assert found.tolist() == pytest.approx([9.0, 400.0], rel=0.03)
