"""docs/results/data-sets.md shows what the rows of `results/data-sets.sh` hold."""

from typing import Any

import pytest

from tests.fixtures_results import ROOT, of_one_set, rows

LINES = (ROOT / "docs" / "results" / "data-sets.md").read_text(encoding="utf-8").splitlines()
TEXT = " ".join(" ".join(LINES).split())
TITLES = {"mnist": "## MNIST"}
IPCS = (1, 10)
GRADIENTS = ("mtt", "tesla", "tesla-exact")
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


def evaluated(dataset: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the evaluations of a data set's first seed by ConvNets, with the sets' own labels, by method and IPC."""
    wanted = (dataset, 0, "quick", "quick", "convnet")
    names = ("dataset", "seed", "preset", "protocol", "evaluator")
    here = [row for row in rows("evaluate") if tuple(row[name] for name in names) == wanted and "labels" not in row]
    found = {(row["method"], row["ipc"]): row for row in here}
    assert len(found) == len(here)
    return found


def line(dataset: str, method: str) -> str:
    """Return the line of a method in the table of a data set."""
    found, cells = evaluated(dataset), []
    for ipc in IPCS:
        own, beside = (found[name, ipc]["accuracy"]["last"] for name in (method, "random"))
        over = 100 * (own["mean"] - beside["mean"])
        cells += [of_one_set(own)[0], "" if method == "random" else f"{over:+.1f}"]
    sheet = f"![{method}](../../results/sheets/{found[method, 1]['cell']}.png)"
    return f"| `{method}` | {sheet} | {' | '.join(cells)} |"


def shown(dataset: str) -> list[str]:
    start = LINES.index(TITLES[dataset])
    after = next((i for i in range(start + 1, len(LINES)) if LINES[i].startswith("## ")), len(LINES))
    return [text for text in LINES[start:after] if text.startswith("| `")]


@pytest.mark.parametrize("dataset", TITLES)
def test_the_page_shows_the_accuracies(dataset: str) -> None:
    found = evaluated(dataset)
    order = sorted(METHODS, key=lambda method: -found[method, 1]["accuracy"]["last"]["mean"])
    assert shown(dataset) == [line(dataset, method) for method in order]
    assert all((ROOT / "results" / "sheets" / f"{row['cell']}.png").is_file() for row in found.values() if row["ipc"])


def last(dataset: str) -> dict[tuple[str, int], float]:
    """Return the accuracies in percent, by method and IPC."""
    return {key: 100 * row["accuracy"]["last"]["mean"] for key, row in evaluated(dataset).items()}


def test_what_is_said_of_mnist_holds() -> None:
    mnist, fashion = last("mnist"), last("fashion-mnist")
    one, ten = (sorted(METHODS, key=lambda method: -mnist[method, ipc]) for ipc in IPCS)
    assert one[0] == ten[0] == "dm"
    assert min(fashion[method, 1] for method in GRADIENTS) > fashion["dm", 1]
    assert ten[1] == "herding"
    assert f"behind `dm` alone: {mnist['herding', 10]:.1f} % against {mnist['dm', 10]:.1f}." in TEXT
    assert f"are {mnist['mtt', 1] - mnist['tesla-exact', 1]:.1f} points apart with one image a class" in TEXT
    assert max(mnist["mtt", 10], mnist["tesla-exact", 10]) < mnist["random", 10] < mnist["tesla", 10]
    level = [fashion[method, 10] for method in GRADIENTS]
    assert f"the three differ by {max(level) - min(level):.1f} points." in TEXT
    assert max(data["dc", 10] - data["random", 10] for data in (mnist, fashion)) < 0
    better = mnist["class-means", 1] - mnist["random", 1]
    assert f"is worth {better:.1f} points more than one random image" in TEXT
    assert f"fall {mnist['random', 10] - mnist['class-means', 10]:.1f} points behind" in TEXT
