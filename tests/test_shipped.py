"""Own and shipped results: own ones go to ``runs``, the repository's are added by ``--shipped``, and marked."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from dcbench_tesla.api import run
from dcbench_tesla.cells.saved import evaluate_saved
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cli import main
from dcbench_tesla.compare import memory, timing
from dcbench_tesla.compare.accuracy import Wanted, accuracies
from dcbench_tesla.compare.files import add_shipped, merge_csv, read_csv
from dcbench_tesla.config import resolve
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records import workspace as workspaces
from dcbench_tesla.records.rows import damaged_rows, stage_rows
from dcbench_tesla.records.workspace import DEFAULT_OUT, Workspace, with_shipped
from dcbench_tesla.reports import figure1
from dcbench_tesla.reports.figure1b.rows import figure_b, lost
from dcbench_tesla.reports.figure1b.shown import markdown_b
from dcbench_tesla.reports.html import page
from tests import fixtures_report as fixtures

ROOT = Path(__file__).resolve().parents[1]


def dcbench(*words: object) -> Result:
    torch.set_num_threads(1)
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results folder of a checkout in which nothing is; the package runs from there."""
    checkout = tmp_path / "checkout"
    (checkout / "results" / "rows").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(workspaces, "_CHECKOUT", checkout)
    return checkout / "results"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package runs from a folder that is no checkout, though something there is called results."""
    (tmp_path / "site-packages" / "results" / "rows").mkdir(parents=True)
    monkeypatch.setattr(workspaces, "_CHECKOUT", tmp_path / "site-packages")


def cell(root: Path, method: str, accuracy: float, **changes: Any) -> None:
    fixtures.write_cell(root, method, 1, {100: [accuracy, accuracy]}, **changes)


# ---------------------------------------------------------------------------------------------------- the default


def commands_with(option: str, group: click.Group = main) -> dict[str, click.Parameter]:
    found: dict[str, click.Parameter] = {}
    for name, command in group.commands.items():
        found.update((name, p) for p in command.params if option in p.opts)
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": p for inner, p in commands_with(option, command).items()}
    return found


def test_results_go_to_one_folder_that_git_ignores() -> None:
    options = commands_with("--out")
    assert len(options) > 15
    assert {str(option.default) for option in options.values()} == {DEFAULT_OUT} == {"runs"}
    functions: list[Callable[..., Any]] = [run, Session, evaluate_saved]
    assert {inspect.signature(function).parameters["out"].default for function in functions} == {DEFAULT_OUT}
    assert f"/{DEFAULT_OUT}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_reads_rows_reads_shipped_ones_if_asked() -> None:
    assert set(commands_with("--shipped")) == {
        *("compare accuracy", "compare scores", "compare regimes", "list", "plan", "report", "show"),
        *(f"reproduce {name}" for name in ("table1", "table2", "table3", "related", "figure1", "figure2", "all")),
    }


# -------------------------------------------------------------------------------------------------------- the rows


def test_an_own_row_counts_before_the_shipped_one_with_its_key(shipped: Path, out: Path) -> None:
    cell(shipped, "dm", 0.5)
    cell(shipped, "tesla", 0.6)
    cell(out, "dm", 0.7)
    found = {row["method"]: row for row in stage_rows(with_shipped(out), "evaluate")}
    assert {m: (row["origin"], row["accuracy"]["last"]["mean"]) for m, row in found.items()} == {
        "dm": ("own", 0.7),
        "tesla": ("shipped", 0.6),
    }
    assert len(stage_rows(with_shipped(out), "evaluate")) == 2
    (own,) = stage_rows(Workspace(out), "evaluate")
    assert "origin" not in own


def test_a_damaged_shipped_row_is_told(shipped: Path, out: Path) -> None:
    (shipped / "rows" / "evaluate-x.json").write_text("[]")
    (told,) = damaged_rows(with_shipped(out))
    assert str(shipped) in told
    assert damaged_rows(Workspace(out)) == []
    result = dcbench("list", "cells", "--shipped", "--out", out)
    assert result.exit_code == 1
    assert "a file among the rows is left out" in result.stderr


def failure(root: Path, **changes: Any) -> None:
    fixtures.write_failure(root)
    path = root / "rows" / "failed-mtt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_shipped_failure_is_marked_and_falls_where_the_cell_is_done(shipped: Path, out: Path) -> None:
    failure(shipped, evaluations=["one"])
    listed = dcbench("list", "cells", "--shipped", "--out", out).stdout
    assert "mtt-digits (shipped)" in listed
    assert "the loss is NaN" in listed
    assert "mtt-digits" not in dcbench("list", "cells", "--out", out).stdout
    assert [row["origin"] for row in stage_rows(with_shipped(out), "failed")] == ["shipped"]
    for name in ("condense-mtt.json", "evaluate-one.json"):
        (out / "rows").mkdir(parents=True, exist_ok=True)
        (out / "rows" / name).write_text("{}")
    assert stage_rows(with_shipped(out), "failed") == []
    failure(out, evaluations=["one"])
    assert [row["origin"] for row in stage_rows(with_shipped(out), "failed")] == ["own"]


def test_the_shipped_folder_itself_is_read_as_it_is(shipped: Path) -> None:
    cell(shipped, "dm", 0.5)
    assert with_shipped(shipped) == Workspace(shipped)
    result = dcbench("compare", "accuracy", "--shipped", "--out", shipped)
    assert "`dm`" in result.stdout
    assert "shipped" not in result.stdout
    assert "origin" not in (shipped / "tables" / "accuracy.csv").read_text()


def test_an_installed_package_says_where_the_results_are(installed: None, out: Path) -> None:
    with pytest.raises(UsageError, match="a checkout of the repository has: clone it and run dcbench there"):
        with_shipped(out)
    for words in (
        ["list", "cells"],
        ["compare", "accuracy"],
        ["report"],
        ["reproduce", "table2"],
        ["reproduce", "all"],
    ):
        result = dcbench(*words, "--shipped", "--out", out)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: --shipped: the installed package has no committed results")
        assert len(result.stderr.splitlines()) == 1
        assert not out.exists()
    result = dcbench("reproduce", "table2", "--out", out)
    assert result.exit_code == 0
    assert "no results under" not in result.stderr


# ---------------------------------------------------------------------------------------------------- where they show


def test_own_and_shipped_lines_stand_apart_in_the_table_of_accuracies(shipped: Path, out: Path) -> None:
    """Even where they differ by their seed only, and would be one line otherwise."""
    cell(shipped, "dm", 0.5)
    cell(shipped, "random", 0.2)
    cell(out, "dm", 0.7, seed=1)
    result = dcbench("compare", "accuracy", "--shipped", "--out", out)
    lines = [line.split("|")[1:3] for line in result.stdout.splitlines() if line.startswith("| `")]
    assert [[text.strip() for text in line] for line in lines] == [
        ["`random` (shipped)", "20.0 ± 0.0 [20.0, 20.0]"],
        ["`dm` (shipped)", "50.0 ± 0.0 [50.0, 50.0]"],
        ["`dm`", "70.0 ± 0.0 [70.0, 70.0]"],
    ]
    assert (out / "tables" / "accuracy.md").read_text() == result.stdout.removesuffix("\n")
    written = pd.read_csv(out / "tables" / "accuracy.csv")
    assert dict(zip(written["last"], written["origin"], strict=True)) == {0.2: "shipped", 0.5: "shipped", 0.7: "own"}
    assert not (shipped / "tables").exists()
    own = accuracies(Workspace(out), Wanted())
    assert "origin" not in own
    assert list(own["last"]) == [0.7]


def test_listed_cells_are_marked(shipped: Path, out: Path) -> None:
    cell(shipped, "dm", 0.5)
    cell(out, "random", 0.2)
    other, own = dcbench("list", "cells", "--shipped", "--out", out).stdout.splitlines()[-2:]
    assert own.endswith("random-digits-ipc1-seed0")
    assert other.endswith("dm-digits-ipc1-seed0 (shipped)")
    assert "dm" not in dcbench("list", "cells", "--out", out).stdout


def test_where_nothing_is_the_way_to_what_is_shipped_is_told(shipped: Path, out: Path) -> None:
    cell(shipped, "dm", 0.5)
    for words in (["list", "cells"], ["compare", "accuracy"], ["report"]):
        result = dcbench(*words, "--out", out)
        assert "in a checkout, --shipped " in result.output
        assert "dm-digits" not in result.output


def test_the_page_marks_lines_sheets_failures_and_comparisons(shipped: Path, out: Path) -> None:
    fixtures.write_results(shipped)
    cell(out, "herding", 0.4)
    text = page(with_shipped(out))
    plots = json.loads(re.search(r'<script type="application/json" id="plots">(.*?)</script>', text)[1])  # type: ignore[index]
    names = {line["name"] for plot in plots["plots"].values() for line in plot["lines"]}
    assert {"tesla (shipped)", "random (shipped)"} <= names
    assert "<h4>herding</h4>" in text
    assert "<h4>tesla (shipped)</h4>" in text
    titles = re.findall(r"<h3[^>]*>(.*?)</h3>", text)
    for start in ("Peak memory against", "Time against", "Direction of the images"):
        own = [title for title in titles if title.startswith(start)]
        assert own
        assert all(title.endswith("(shipped)") for title in own)
    failed = text[text.index('id="failed"') :]
    assert '<td data-head="origin">shipped</td>' in failed
    assert "rows shipped by the repository" in text
    assert "shipped" not in page(Workspace(shipped))
    assert "<h4>tesla" not in page(Workspace(out))


def test_comparisons_are_told_apart_by_their_machine(shipped: Path, out: Path) -> None:
    key = timing.KEY
    rows = pd.DataFrame(fixtures.time())
    merge_csv(shipped / "figures" / "time.csv", rows, key)
    own = rows[(rows["method"] == "mtt") & (rows["matching_steps"] == 1)].assign(iteration_seconds=9.0)
    merge_csv(out / "figures" / "time.csv", own, key)
    table = read_csv(out / "figures" / "time.csv", key)
    found = add_shipped(table, with_shipped(out), "time.csv", key)
    assert len(found) == len(rows)
    assert dict(found["hardware"].value_counts()) == {"a machine (shipped)": len(rows) - 1, "a machine": 1}
    assert list(found.loc[found["hardware"] == "a machine", "iteration_seconds"]) == [9.0]
    assert add_shipped(table, Workspace(out), "time.csv", key) is table
    nothing = read_csv(out / "figures" / "none.csv", key)
    assert len(add_shipped(nothing, with_shipped(out), "time.csv", key)) == len(rows)
    assert add_shipped(table, with_shipped(out), "none.csv", key) is table


def test_figure_1_takes_shipped_measurements_and_does_not_miss_them_later(shipped: Path, out: Path) -> None:
    points = figure1.panel_b().points
    where = {"hardware": "a GPU", "status": "ok", "meter": "cuda"}
    peaks = [{**vars(p), **where, "peak_bytes": 100 if p.method == "mtt" else 4} for p in points]
    merge_csv(shipped / "figures" / "memory.csv", pd.DataFrame(peaks), memory.KEY)
    none = read_csv(out / "figures" / "memory.csv", memory.KEY)
    best = figure1.best(add_shipped(none, with_shipped(out), "memory.csv", memory.KEY))
    nothing = pd.DataFrame(columns=timing.KEY)
    table = figure_b(best, nothing)
    assert set(table["memory_hardware"]) == {"a GPU (shipped)"}
    assert "meter cuda (a GPU (shipped))" in markdown_b(table)
    assert lost(table, table.iloc[:0]) == []
    own = table.assign(memory_hardware="a GPU")
    assert len(lost(own, table.iloc[:0])) == len(table)


# -------------------------------------------------------------------------------------------------------- the paper's


def protocols(out: Path) -> set[str]:
    table = pd.read_csv(out / "tables" / "table1.csv").query("status == 'run'")
    return set(table["protocol"])


def test_reproduce_shows_what_is_shipped_where_there_is_nothing_of_ones_own(shipped: Path, out: Path) -> None:
    cell(shipped, "tesla", 0.5, dataset="cifar10", preset="paper")
    cell(shipped, "random", 0.2, dataset="cifar10", preset="paper")
    first = dcbench("reproduce", "table1", "--out", out)
    assert first.exit_code == 0, first.output
    (said,) = [line for line in first.stderr.splitlines() if line.startswith("no results under")]
    assert said.endswith("showing the repository's, marked (shipped); --no-shipped leaves them out")
    assert "| paper (shipped) " in first.stdout
    assert "`dcbench reproduce table1 --shipped --run` runs them; `dcbench plan table1 --shipped`" in " ".join(
        first.stdout.split()
    )
    assert protocols(out) == {"paper (shipped)"}

    cell(out, "tesla", 0.7, dataset="cifar10", preset="paper", seed=1)
    own = dcbench("reproduce", "table1", "--out", out)
    assert own.exit_code == 0, own.output  # what was shipped is not lost: no --force
    assert "shipped" not in own.stdout
    assert protocols(out) == {"paper"}

    both = dcbench("reproduce", "table1", "--shipped", "--out", out)
    assert both.exit_code == 0, both.output
    assert protocols(out) == {"paper", "paper (shipped)"}
    table = pd.read_csv(out / "tables" / "table1.csv").query("status == 'run'")
    found = {(row.method, row.protocol): row.last for row in table.itertuples()}
    assert found == {
        ("tesla", "paper"): 0.7,
        ("tesla", "paper (shipped)"): 0.5,
        ("random", "paper (shipped)"): 0.2,
    }  # a shipped baseline is none of an own method
    again = dcbench("reproduce", "table1", "--no-shipped", "--out", out)
    assert again.exit_code == 0
    assert protocols(out) == {"paper"}
    assert not (shipped / "tables").exists()


def test_an_own_result_that_is_gone_is_still_missed(shipped: Path, out: Path) -> None:
    cell(shipped, "tesla", 0.5, dataset="cifar10", preset="paper")
    cell(out, "tesla", 0.7, dataset="cifar10", preset="paper", seed=1)
    assert dcbench("reproduce", "table1", "--shipped", "--out", out).exit_code == 0
    shutil.rmtree(out / "rows")
    result = dcbench("reproduce", "table1", "--out", out)
    assert result.exit_code == 1
    assert "table1.csv stays as it is: 1 of its rows were run" in result.stderr


def test_all_says_once_that_what_is_shipped_is_shown(shipped: Path, out: Path) -> None:
    cell(shipped, "dsa", 0.5, dataset="cifar10", preset="paper")
    result = dcbench("reproduce", "all", "--method", "dsa", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("no results under") == 1
    assert protocols(out) == {"paper (shipped)"}
    result = dcbench("reproduce", "all", "--dataset", "cifar11", "--out", out)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_shipped_cells_are_done_where_they_count(shipped: Path, out: Path) -> None:
    config = resolve("random", "digits", 1, preset="smoke")
    made = Session(out, device="cpu", quiet=True).cell(config)
    content = fixtures_evaluation(shipped)
    Workspace(shipped).write_row("evaluate", made.identity.evaluation_key("convnet"), content)
    words = ["--dataset", "digits", "--ipc", 1, "--preset", "smoke", "--method", "random", "--out", out]
    own = dcbench("plan", "table1", *words, "--device", "cpu")
    assert "1 of 1 cells to do" in own.stdout
    both = dcbench("plan", "table1", *words, "--shipped", "--device", "cpu")
    assert "done (shipped)" in both.stdout
    assert "0 of 1 cells to do" in both.stdout
    result = dcbench("reproduce", "table1", *words, "--shipped", "--run", "--device", "cpu")
    assert "nothing of it is missing" in result.stderr
    assert not (out / "rows").exists()


def fixtures_evaluation(root: Path) -> dict[str, Any]:
    """The row of an evaluation, as a run leaves it."""
    cell(root, "random", 0.2)
    path = root / "rows" / "evaluate-random-digits-ipc1-seed0.json"
    content: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return {name: value for name, value in content.items() if name not in ("stage", "key")}


# ------------------------------------------------------------------------------------------------------- a fresh clone

_COMMANDS = [
    ["run", "--method", "random", "--dataset", "digits", "--ipc", "1", "--preset", "smoke", "--device", "cpu"],
    ["list", "cells"],
    ["compare", "accuracy"],
    ["report"],
    ["reproduce", "all", "--dataset", "digits"],
    ["reproduce", "all", "--dataset", "digits", "--shipped"],
    ["compare", "accuracy", "--shipped"],
    ["report", "--shipped"],
    ["compare", "memory", "--method", "dm"],
]


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "core.excludesFile=/dev/null"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the files of this one as they are now."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: git cannot say which files are the repository's")
    folder = tmp_path / "clone"
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        if name and ((ROOT / name).exists() or (ROOT / name).is_symlink()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it is")
    return folder


def test_a_fresh_clone_stays_clean(clone: Path) -> None:
    code = f"""
import dcbench_tesla
from pathlib import Path
from dcbench_tesla.cli import main
assert Path(dcbench_tesla.__file__).is_relative_to(Path.cwd()), dcbench_tesla.__file__
for words in {_COMMANDS}:
    print("$", *words, flush=True)
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert git(clone, "status", "--porcelain") == ""
    shown = dict(part.split("\n", 1) for part in done.stdout.split("$ ")[1:])
    assert sum("-digits-" in line for line in shown["list cells"].splitlines()) == 1  # the one cell that was run
    assert "fashion-mnist" not in shown["compare accuracy"]
    assert "`tesla` (shipped)" in shown["compare accuracy --shipped"]
    assert (clone / "runs" / "tables" / "table1.csv").is_file()
    assert git(clone, "status", "--porcelain", "--ignored").split() == ["!!", "runs/"]
