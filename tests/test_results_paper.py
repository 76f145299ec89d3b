"""docs/results/paper.md shows the committed rows of preset `paper` beside published numbers."""

import json
from pathlib import Path
from typing import Any

from dcbench_tesla.compare.statistics import interval
from dcbench_tesla.reports.published import published

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "results" / "paper.md").read_text(encoding="utf-8").splitlines()
TEXT = " ".join(" ".join(LINES).split())
ROWS = [
    row
    for row in (
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("results/rows/evaluate-*.json"))
    )
    if row["preset"] == "paper"
]


def line(row: dict[str, Any]) -> str:
    """Return the line of a row in the table of the page."""
    last = row["accuracy"]["last"]
    ends = interval([last["values"]])
    assert ends is not None
    own = f"{100 * last['mean']:.1f} ± {100 * last['std']:.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]"
    printed = published("paper_table1.csv", row["dataset"], row["ipc"], row["method"], row["evaluator"])
    beside = ["", ""]
    if printed is not None:
        points = [100 * (value - printed.mean) for value in (last["mean"], ends.low, ends.high)]
        beside = [str(printed), "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points)]
    return f"| `{row['dataset']}` | {row['ipc']} | `{row['method']}` | {own} | {' | '.join(beside)} |".replace(
        "  |", " |"
    )


def test_the_page_shows_every_row_beside_what_is_published() -> None:
    order = sorted(ROWS, key=lambda row: (row["dataset"], row["ipc"], -row["accuracy"]["last"]["mean"]))
    assert [text for text in LINES if text.startswith("| `")] == [line(row) for row in order]


def test_the_protocol_is_the_published_one() -> None:
    for row in ROWS:
        assert row["protocol"] in ("paper", "paper, 1 of 5 sets")
        assert len(row["accuracy"]["last"]["values"]) == (5 if row["method"] == "random" else 20)
        assert row["seed"] == 0


def test_dc_reaches_what_its_authors_print() -> None:
    (row,) = [row for row in ROWS if row["method"] == "dc"]
    ends = interval([row["accuracy"]["last"]["values"]])
    printed = published("paper_table1.csv", "fashion-mnist", 1, "dc", "convnet")
    assert ends is not None
    assert printed is not None
    assert ends.low <= printed.mean <= ends.high
    assert "the interval of the one set made here holds the published mean" in TEXT
    made = json.loads((ROOT / "results" / "rows" / f"condense-{row['condense_key']}.json").read_text(encoding="utf-8"))
    assert f"`dc` took {made['condense_seconds'] / 3600:.1f} hours" in TEXT
