"""The committed results: rows are readable and complete, and the README shows what they hold."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROWS = sorted((ROOT / "results" / "rows").glob("*.json"))


def rows(stage: str) -> list[dict[str, Any]]:
    return [row for row in map(read, ROWS) if row["stage"] == stage]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_row_says_where_it_comes_from(path: Path) -> None:
    row = read(path)
    assert path.stem == f"{row['stage']}-{row['key']}"
    assert row["hardware"]
    assert row["protocol"]
    assert row["dataset_fingerprint"]
    assert row["environment"]["versions"]["torch"]
    assert row["environment"]["commit"]
    assert "+changes" not in row["environment"]["commit"]  # made by code that is in the history


def test_the_readme_shows_the_committed_accuracies() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    quick = [r for r in rows("evaluate") if r["protocol"] == "quick" and r["ipc"] == 1 and r["evaluator"] == "convnet"]
    assert quick
    for row in quick:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{row['method']}` | ![")]
        for name in ("last", "best_on_validation", "best_on_test"):
            accuracy = row["accuracy"][name]
            assert f" {100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f} |" in line
        sheet = ROOT / "results" / "sheets" / f"{row['cell']}.png"
        assert f"(results/sheets/{sheet.name})" in line
        assert sheet.is_file()


def test_every_evaluated_set_was_condensed_on_record() -> None:
    condensed = {row["key"] for row in rows("condense")}
    assert {row["condense_key"] for row in rows("evaluate")} <= condensed


@pytest.mark.parametrize("method", ["tesla", "tesla-exact", "mtt", "random"])
def test_the_program_recognises_what_is_committed(method: str) -> None:
    """A key that changes makes every committed row an orphan, and the README's command starts over."""
    from dcbench_tesla import registry
    from dcbench_tesla.api import Session
    from dcbench_tesla.config import resolve
    from dcbench_tesla.data import default_data_dir

    if registry.load_source("fashion-mnist").find(default_data_dir()) is None:
        pytest.skip("Fashion-MNIST is not here (apt-get install dataset-fashion-mnist)")
    config = resolve(method, "fashion-mnist", 1, preset="quick")
    assert Session(ROOT / "results", device="cpu", quiet=True).cell(config).pending() == []
