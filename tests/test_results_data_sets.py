"""docs/results/data-sets.md shows what the rows of `results/data-sets.sh` hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from dcbench_tesla.compare.statistics import interval

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "results" / "data-sets.md").read_text(encoding="utf-8").splitlines()
TEXT = " ".join(" ".join(LINES).split())
TITLES = {"mnist": "## MNIST"}
IPCS = (1, 10)
METHODS = (
    "random",
    "herding",
    "k-center",
    "class-means",
    "dm",
    "tesla",
    "dc",
    "dsa",
    "tesla-exact",
    "mtt",
    "kip",
    "frepo",
)


def rows(dataset: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the evaluations of a data set's first seed by ConvNets, with the sets' own labels, by method and IPC."""
    read = (json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("results/rows/evaluate-*.json"))
    wanted = (dataset, 0, "quick", "quick", "convnet")
    names = ("dataset", "seed", "preset", "protocol", "evaluator")
    here = [row for row in read if tuple(row[name] for name in names) == wanted and "labels" not in row]
    found = {(row["method"], row["ipc"]): row for row in here}
    assert len(found) == len(here)
    return found


def line(dataset: str, method: str) -> str:
    """Return the line of a method in the table of a data set."""
    found, cells = rows(dataset), []
    for ipc in IPCS:
        row, beside = found.get((method, ipc)), found["random", ipc]
        if row is None:
            cells += ["", ""]
            continue
        last = row["accuracy"]["last"]
        ends = interval([last["values"]])
        assert ends is not None
        cells.append(
            f"{100 * last['mean']:.1f} ± {100 * last['std']:.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]"
        )
        over = 100 * (last["mean"] - beside["accuracy"]["last"]["mean"])
        cells.append("" if method == "random" else f"{over:+.1f}")
    sheet = f"![{method}](../../results/sheets/{found[method, 1]['cell']}.png)"
    return f"| `{method}` | {sheet} | {' | '.join(cells)} |"


def shown(dataset: str) -> list[str]:
    start = LINES.index(TITLES[dataset])
    after = next((i for i in range(start + 1, len(LINES)) if LINES[i].startswith("## ")), len(LINES))
    return [text for text in LINES[start:after] if text.startswith("| `")]


@pytest.mark.parametrize("dataset", TITLES)
def test_the_page_shows_the_accuracies(dataset: str) -> None:
    found = rows(dataset)
    order = sorted(METHODS, key=lambda method: -found[method, 1]["accuracy"]["last"]["mean"])
    assert shown(dataset) == [line(dataset, method) for method in order]
    assert all((ROOT / "results" / "sheets" / f"{row['cell']}.png").is_file() for row in found.values() if row["ipc"])


def last(dataset: str) -> dict[tuple[str, int], float]:
    """Return the accuracies in percent, by method and IPC."""
    return {key: 100 * row["accuracy"]["last"]["mean"] for key, row in rows(dataset).items()}


def test_what_is_said_of_mnist_holds() -> None:
    mnist, fashion = last("mnist"), last("fashion-mnist")
    one, ten = (sorted(METHODS, key=lambda method: -mnist[method, ipc]) for ipc in IPCS)
    assert one[0] == ten[0] == "dm"
    assert min(fashion[method, 1] for method in ("mtt", "tesla", "tesla-exact")) > fashion["dm", 1]
    assert ten[1] == "herding"
    assert f"behind `dm` alone: {mnist['herding', 10]:.1f} % against {mnist['dm', 10]:.1f}." in TEXT
    assert f"are {mnist['mtt', 1] - mnist['tesla-exact', 1]:.1f} points apart with one image a class" in TEXT
    assert max(mnist["mtt", 10], mnist["tesla-exact", 10]) < mnist["random", 10] < mnist["tesla", 10]
    assert max(data["dc", 10] - data["random", 10] for data in (mnist, fashion)) < 0
    better = mnist["class-means", 1] - mnist["random", 1]
    assert f"is worth {better:.1f} points more than one random image" in TEXT
    assert f"fall {mnist['random', 10] - mnist['class-means', 10]:.1f} points behind" in TEXT
