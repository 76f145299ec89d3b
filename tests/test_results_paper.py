"""docs/results/paper.md shows the committed rows of preset `paper` beside published numbers."""

from typing import Any

from dcbench_tesla.reports.published import published
from tests.fixtures_results import ROOT, of_one_set, rows

LINES = (ROOT / "docs" / "results" / "paper.md").read_text(encoding="utf-8").splitlines()
TEXT = " ".join(" ".join(LINES).split())
PAPER = [row for row in rows("evaluate") if row["preset"] == "paper"]


def line(row: dict[str, Any]) -> str:
    """Return the line of a row in the table of the page."""
    own, ends = of_one_set(row["accuracy"]["last"])
    printed = published("paper_table1.csv", row["dataset"], row["ipc"], row["method"], row["evaluator"])
    beside = ["", ""]
    if printed is not None:
        points = [100 * (value - printed.mean) for value in (ends.mean, ends.low, ends.high)]
        beside = [str(printed), "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points)]
    return f"| `{row['dataset']}` | {row['ipc']} | `{row['method']}` | {own} | {' | '.join(beside)} |".replace(
        "  |", " |"
    )


def test_the_page_shows_every_row_beside_what_is_published() -> None:
    order = sorted(PAPER, key=lambda row: (row["dataset"], row["ipc"], -row["accuracy"]["last"]["mean"]))
    assert [text for text in LINES if text.startswith("| `")] == [line(row) for row in order]


def test_the_protocol_is_the_published_one() -> None:
    for row in PAPER:
        assert row["protocol"] in ("paper", "paper, 1 of 5 sets")
        assert len(row["accuracy"]["last"]["values"]) == (5 if row["method"] == "random" else 20)
        assert row["seed"] == 0


def test_dc_reaches_what_its_authors_print() -> None:
    (row,) = [row for row in PAPER if row["method"] == "dc"]
    _, ends = of_one_set(row["accuracy"]["last"])
    printed = published("paper_table1.csv", "fashion-mnist", 1, "dc", "convnet")
    assert printed is not None
    assert ends.low <= printed.mean <= ends.high
    assert "the interval of the one set made here holds the published mean" in TEXT
    (made,) = [made for made in rows("condense") if made["key"] == row["condense_key"]]
    assert f"`dc` took {made['condense_seconds'] / 3600:.1f} hours" in TEXT
