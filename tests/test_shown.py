"""What commands show: tables that fit under ten changed settings, JSON by its schema, cells, completion."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import BashComplete, ShellComplete
from click.testing import CliRunner, Result

from dcbench_tesla import registry
from dcbench_tesla.cells import estimate as estimating
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cli import completion, main
from dcbench_tesla.cli.shown import output
from dcbench_tesla.cli.shown.cells import drawn
from dcbench_tesla.cli.shown.output import OUTPUTS
from dcbench_tesla.cli.shown.results import table as results_table
from dcbench_tesla.compare.accuracy import Wanted, accuracies, markdown
from dcbench_tesla.compare.changes import ROUNDING, Changes, differing, shared, with_letters
from dcbench_tesla.compare.table import fitted
from dcbench_tesla.config import SECTIONS, overrides_from, resolve
from dcbench_tesla.records import progress
from dcbench_tesla.records.measured import NAME, Measured
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.html.page import page
from tests import fixtures_report
from tests.fixtures_cells import SELECTION, set_words

# ten settings, of which the last three differ between the cells of `written`
TEN: Mapping[str, Any] = {
    "convnet.epochs": 20,
    "convnet.weight_decay": 0.0005,
    "data.train_images": 1000,
    "data.validation": 0.1,
    "evaluation.networks": 2,
    "evaluation.networks_on_the_way": 2,
    "experts.batch_size": 32,
    "network.width": 8,
    "lr_student_lr": 1e-5,
    "lr_images": 100.0,
}
OTHER: Mapping[str, Any] = {**TEN, "network.width": 16, "lr_student_lr": 1e-6, "lr_images": 1000.0}


def dcbench(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], env=environment)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of two sweeps with ten changed settings, two seeds each, and one that failed."""
    root = tmp_path_factory.mktemp("ten")
    for seed in (0, 1):
        for sets in (TEN, OTHER):
            fixtures_report.write_cell(root, "tesla", 1, {50: [0.4], 100: [0.6, 0.64]}, sets=sets, seed=seed)
    fixtures_report.write_failure(root)
    return root


def words_of(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def check_width(lines: Sequence[str], width: int) -> None:
    """No line is wider than the terminal, but one that is a single word."""
    for line in lines:
        assert len(line) <= width or len(line.split()) == 1, line


# ---------------------------------------------------------------------------------------------------- one mechanism


def changed(acts: Sequence[str] = (), **given: str) -> Changes:
    return Changes(given, lambda label: label in given or label in acts)


def test_what_acts_on_a_part_of_the_results_is_shared_by_these() -> None:
    tesla = changed(steps="3", iterations="8")
    dm = changed(iterations="8")
    assert shared([tesla, dm]) == {"iterations": "8", "steps": "3"}
    assert differing([tesla, dm]) == ["", ""]


def test_what_acts_and_was_not_changed_is_a_difference() -> None:
    first, second = changed(steps="3", iterations="8"), changed(acts=["steps"], iterations="8")
    assert shared([first, second]) == {"iterations": "8"}
    assert differing([first, second]) == ["steps=3", ""]


def test_what_changes_a_result_by_rounding_only_makes_no_protocol() -> None:
    """The names are those of the settings marked so; the number of networks is told beside each accuracy."""
    kinds: list[type] = [registry.load_method(name).Settings for name in registry.names("methods")]
    kinds += [registry.load_evaluator(name).Settings for name in registry.names("evaluators") if "<" not in name]
    kinds += SECTIONS.values()
    marked = {field.name for kind in kinds for field in fields(kind) if field.metadata.get("execution")}
    assert marked - {"networks"} == set(ROUNDING)


def test_long_texts_have_letters_and_equal_ones_the_same() -> None:
    long, other = "a=1 " * 10, "b=2 " * 10
    assert with_letters([long, "c=3", other, long]) == {long: "(a)", "c=3": "c=3", other: "(b)"}
    assert list(with_letters([f"{i} {long}" for i in range(28)]).values())[25:] == ["(z)", "(aa)", "(ab)"]


# ---------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_word_is_broken_and_nothing_is_lost(width: int) -> None:
    head = ["method", "IPC", "last", "best on validation", "points over random"]
    body = [["tesla-exact", "10", "61.0 ± 3.2", "60.0 ± 1.0", "+15.9"], ["dm", "1", "6.0 ± 3.2", "60.0 ± 1.0", ""]]
    told = [" ".join(words_of(TEN)), "steps=3"]
    lines = fitted(head, body, width, keys=2, told=told)
    check_width(lines, width)
    text = " ".join(lines)
    for word in [*words_of(TEN), "steps=3", *(cell for row in body for cell in row), *" ".join(head).split()]:
        assert word in text


@pytest.mark.parametrize("width", [80, 200])
def test_the_last_table_of_run(width: int) -> None:
    about = {"data set": "fashion-mnist", "seed": "0", "evaluator": "convnet", "preset": "smoke"}
    numbers = {"last": "61.0 ± 3.2", "best on validation": "61.0 ± 3.2", "best on test": "61.0 ± 3.2"}
    row = {**about, **numbers, "points over random": "+15.9", "IPC": "10"}
    ten = {name: str(value) for name, value in TEN.items()}
    without = {name: value for name, value in ten.items() if "." in name}
    acts = without.__contains__
    rows = [
        {**row, "method": "tesla-exact", "changes": Changes(ten, ten.__contains__)},
        {**row, "method": "random", "changes": Changes(without, acts), "points over random": ""},
    ]
    lines = results_table(rows, width)
    check_width(lines, width)
    text = " ".join(lines)
    for word in words_of(TEN):
        assert text.count(word) == 1  # once above, though lr_images has no effect on random
    assert "best on test" not in text  # it says nothing where one set was tested
    assert next(line for line in lines if line.startswith("random")).split() == ["random", "61.0", "±", "3.2"]


@pytest.mark.parametrize("width", [80, 200])
def test_compare_accuracy_and_list_cells_fit(written: Path, width: int) -> None:
    for words in (["compare", "accuracy"], ["list", "cells"]):
        result = dcbench(*words, "--out", written, COLUMNS=str(width))
        assert result.exit_code == 0, result.output
        check_width(result.stdout.splitlines(), width)
        text = " ".join(result.stdout.split())
        assert text.count("convnet.epochs=20") <= 1  # shared: once above, or told by the recipe
        assert "network.width=16" in text
        assert "network.width=8" in text


def test_a_line_has_a_letter_for_many_settings_and_a_note_says_which(written: Path) -> None:
    text = markdown(accuracies(Workspace(written), Wanted()))
    assert re.search(r"^\| `tesla` \(a\) ", text, re.MULTILINE)
    assert re.search(r"^- `tesla` \(a\): lr_images=\S+ lr_student_lr=\S+ network.width=\d+$", text, re.MULTILINE)
    assert "experts.batch_size=32" in text  # shared by all lines: once
    assert text.count("experts.batch_size=32") == 1


def test_a_wide_table_is_broken_into_several(tmp_path: Path) -> None:
    for name in ("convnet", "resnet18", "vit", "alexnet", "vgg11"):
        fixtures_report.write_cell(tmp_path, "tesla", 1, {100: [0.5, 0.6]}, evaluation=name)
        path = next(tmp_path.glob(f"rows/evaluate-*{name}.json"))
        path.write_text(path.read_text().replace('"evaluator": "convnet"', f'"evaluator": "{name}"'))
    table = accuracies(Workspace(tmp_path), Wanted())
    narrow, whole = markdown(table, width=60), markdown(table)
    check_width(narrow.splitlines(), 80)
    assert narrow.count("| method ") > 1 == whole.count("| method ")
    for name in ("resnet18", "vit", "alexnet", "vgg11"):
        assert name in narrow


def test_a_method_in_the_report_has_few_words(written: Path) -> None:
    text = page(Workspace(written)).partition('<section aria-labelledby="verified"')[0]  # whose sets have long names
    assert re.search(r">tesla \(a\)<", text)
    assert "tesla (a): lr_images=" in re.sub(r"</?code>", "", text)
    cells = re.findall(r"<th scope=\"row\"[^>]*>([^<]*)<|<td[^>]*>(tesla[^<]*)<", text)
    assert max(len(name) for pair in cells for name in pair) < 40


def test_a_curve_is_drawn_between_its_extremes() -> None:
    lines = drawn([(1, 0.5), (50, 0.7), (100, 0.6)], percent=True)
    assert lines[0].startswith("70.0 ┤")
    assert lines[-3].startswith("50.0 ┤•")
    assert sum(line.count("•") for line in lines) == 3
    check_width(lines, 80)


# ------------------------------------------------------------------------------------------------------------ cells


def test_the_list_is_chosen_and_what_failed_stands_first(written: Path) -> None:
    def names(*words: object) -> list[str]:
        result = dcbench("list", "cells", "--json", *words, "--out", written)
        assert result.exit_code == 0, result.output
        return [cell["name"] for cell in json.loads(result.stdout)["cells"]]

    everything = names()
    assert len(everything) == 5
    assert everything[0] == "mtt-digits"
    assert names("--status", "failed") == names("--method", "mtt") == ["mtt-digits"]
    assert len(names("--status", "ok")) == 4
    assert names("--dataset", "cifar10") == []
    now = time.time()
    for path in written.glob("rows/*.json"):
        os.utime(path, (now, now + ("seed1" in path.name)))
    assert all("seed1" in name for name in names("--last", 2))
    refused = dcbench("list", "methods", "--last", 2)
    assert refused.exit_code == 2
    assert "choose cells" in refused.stderr


def test_an_unfinished_cell_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "cells" / "tesla-digits-ipc1-seed0-0123456789"
    folder.mkdir(parents=True)
    config = {**resolve("tesla", "digits", 1).as_dict(), "key": "k", "identity": {"ipc": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    (cell,) = json.loads(dcbench("list", "cells", "--json", "--out", tmp_path).stdout)["cells"]
    assert (cell["name"], cell["status"]) == (folder.name, "unfinished")
    assert "unfinished" in dcbench("show", "0123", "--out", tmp_path).stdout


def test_show_tells_everything_of_one_cell(written: Path) -> None:
    name = next(path.stem for path in written.glob("sheets/*seed0-20-*100.0.png"))
    result = dcbench("show", name, "--out", written, COLUMNS="80")
    assert result.exit_code == 0, result.output
    check_width(result.stdout.splitlines(), 80)
    text = " ".join(result.stdout.split())
    for told in ("experts.batch_size 32", "62.0 ± 2.0", "100 iterations", "dcbench run --method tesla", "peak of the"):
        assert told in text
    several = dcbench("show", "tesla", "--out", written)
    assert several.exit_code == 2
    assert "stands for 4 cells" in several.stderr
    assert (
        "unknown cell 'mtt-digit5'. Did you mean 'mtt-digits'?"
        in dcbench("show", "mtt-digit5", "--out", written).stderr
    )
    assert "the loss is NaN" in dcbench("show", "mtt", "--out", written).stdout


def test_clean_removes_what_is_named_and_no_result(written: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    fixtures_report.write_cell(root, "tesla", 1, {100: [0.5]})
    kept = {path for path in root.rglob("*") if path.is_file()}
    experts, others = root / "experts" / "0123", root / "experts" / "4567"
    snapshots = root / "cells" / "tesla-digits" / "snapshots"
    for folder in (experts / "expert_0000", others / "expert_0000", snapshots):
        folder.mkdir(parents=True)
        (folder / "epoch_000.safetensors").write_bytes(b"0" * 2000)
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "nothing")}
    shown = dcbench("clean", "--out", root, **environment)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^experts +3\.9 KiB +2 of them: 1 experts$", shown.stdout, re.MULTILINE)
    assert "never removed" in shown.stdout
    assert (
        "nothing was removed" in CliRunner().invoke(main, ["clean", "experts", "--out", str(root)], input="n\n").stderr
    )
    assert experts.exists()
    assert dcbench("clean", "experts:01", "--yes", "--out", root).exit_code == 0
    assert (experts.exists(), others.exists()) == (False, True)
    told = json.loads(dcbench("clean", "snapshots", "experts", "--yes", "--json", "--out", root, **environment).stdout)
    assert told["removed_bytes"] == 4000
    assert {path for path in root.rglob("*") if path.is_file()} == kept
    for words, message in ((["results"], "unknown thing to remove 'results'"), (["experts:9"], "unknown experts '9'")):
        refused = dcbench("clean", *words, "--yes", "--out", root)
        assert refused.exit_code == 2
        assert message in refused.stderr


# ------------------------------------------------------------------------------------------------------------- JSON


def checked(result: Result) -> Any:
    """Check that standard output is one JSON object of a documented kind with no other field; return it."""
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    fitting = [
        kind for kind in OUTPUTS if content["kind"] in json.dumps(kind.model_json_schema()["properties"]["kind"])
    ]
    (kind,) = [k for k in fitting if content["kind"] in _kinds(k)]
    return kind.model_validate_json(result.stdout)


def _kinds(kind: type[output.Output]) -> list[str]:
    about = kind.model_json_schema()["properties"]["kind"]
    return [about["const"]] if "const" in about else list(about["enum"])


@pytest.mark.parametrize(
    "words",
    [
        *(["list", what] for what in ("methods", "evaluators", "networks", "datasets", "cells")),
        *(["info", name] for name in ("tesla", "convnet", "lenet", "digits", "timm:")),
        ["env"],
        ["clean"],
        ["show", "mtt"],
        ["compare", "accuracy"],
        ["compare", "memory", "--method", "dm", "--dataset", "digits", "--width", "4"],
        ["plan", "--method", "random", "--ipc", "1", "--ipc", "2", "--preset", "smoke", "--set", "convnet.epochs=2"],
    ],
    ids=" ".join,
)
def test_json_of_every_command_follows_its_schema(written: Path, words: list[str], tmp_path: Path) -> None:
    reads = words[0] in ("clean", "show") or words[-1] in ("cells", "accuracy")
    writes = words[0] == "plan" or words[:2] == ["compare", "memory"]
    where = ["--out", written if reads else tmp_path] if reads or writes else []
    found = checked(dcbench(*words, *where, "--json"))
    assert found.schema_version == 1


def test_json_of_time_follows_its_schema(tmp_path: Path) -> None:
    words = ["--method", "dm", "--dataset", "digits", "--width", 4, "--steps", 1, "--repetitions", 1, "--device", "cpu"]
    (row,) = checked(dcbench("compare", "time", *words, "--out", tmp_path, "--json")).rows
    assert row["method"] == "dm"
    assert row["iteration_seconds"] > 0


def test_a_run_tells_each_cell_and_prints_json(tmp_path: Path) -> None:
    words = ["run", "--method", "random", "--preset", "smoke", "--device", "cpu", "--ipc", 1, "--ipc", 2]
    words += [*set_words(SELECTION), "--out", tmp_path]
    result = dcbench(*words, "--json")
    found = checked(result)
    assert [(cell.method, cell.ipc, cell.status) for cell in found.cells] == [("random", 1, "ok"), ("random", 2, "ok")]
    assert found.cells[0].evaluations[0].settings["convnet.epochs"] == "2"
    for ipc in (1, 2):
        assert re.search(rf"^random, ipc {ipc}: [\d.]+ % \(n=1\) in \d+ s$", result.stderr, re.MULTILINE)
    assert (tmp_path / NAME).exists()
    quiet = dcbench(*words, "--quiet")
    assert quiet.stderr == ""
    assert "random" in quiet.stdout
    assert "random-digits-ipc1" in dcbench(*words, "-v").stderr


def test_plan_of_a_table_takes_settings(tmp_path: Path) -> None:
    words = ["plan", "table1", "--method", "dm", "--dataset", "digits", "--ipc", 1, "--preset", "smoke", "--json"]
    (cell,) = checked(dcbench(*words, "--set", "iterations=3", "--out", tmp_path)).cells
    assert cell.config["settings"]["iterations"] == 3
    idle = dcbench(*words, "--set", "experts.count=3", "--out", tmp_path)
    assert idle.exit_code == 2
    assert "has no effect" in idle.stderr
    assert dcbench(*words, "--seed", 1, "--out", tmp_path).exit_code == 2


# ------------------------------------------------------------------------------------------------ before and during


def test_what_is_measured_is_kept_and_not_repeated_for_what_is_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str) -> Callable[..., float]:
        def measure(*given: object) -> float:
            calls.append(name)
            return 1.0

        return measure

    for name in ("_iteration", "_network"):
        monkeypatch.setattr(estimating, name, counted(name))
    session = Session(tmp_path, device="cpu", quiet=True, keep_times=True)

    def measure(session: Session, seed: int, **settings: Any) -> float:
        given = {"network.width": 4, "data.train_images": 100, **settings}
        config = resolve("dm", "digits", 1, seed=seed, preset="smoke", overrides=overrides_from(given))
        found = estimating.estimate(session.cell(config), ["condense", "evaluate by convnet"], expert_epochs=0)
        return found.total

    first = measure(session, 0)
    assert measure(session, 1) == first
    assert sorted(calls) == ["_iteration", "_network"]
    measure(session, 0, lr_images=5.0)  # another iteration, the same evaluation
    assert sorted(calls) == ["_iteration", "_iteration", "_network"]
    calls.clear()
    later = Session(tmp_path, device="cpu", quiet=True)
    assert measure(later, 2) == first
    assert calls == []


def test_an_interruption_loses_no_measurement(tmp_path: Path) -> None:
    def stop() -> float:
        raise KeyboardInterrupt

    times = Measured(tmp_path / NAME, keep=True)
    assert times.seconds("cpu", 1, {"a": 1}, lambda: 2.0) == 2.0
    with pytest.raises(KeyboardInterrupt):
        times.seconds("cpu", 1, {"a": 2}, stop)
    assert Measured(tmp_path / NAME).seconds("cpu", 1, {"a": 1}, stop) == 2.0
    assert Measured(tmp_path / NAME).seconds("cpu", 2, {"a": 1}, lambda: 3.0) == 3.0  # with other threads
    stored = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps({**stored, "day": stored["day"] - 1}))  # of another day
    assert Measured(tmp_path / NAME).seconds("cpu", 1, {"a": 1}, lambda: 5.0) == 5.0
    (tmp_path / NAME).write_text("{")
    assert Measured(tmp_path / NAME).seconds("cpu", 1, {"a": 1}, lambda: 4.0) == 4.0


def test_a_line_comes_though_nothing_is_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.02)
    with progress.bar("tesla: condense", 10) as shown:
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert all(re.fullmatch(r"tesla: condense: 0/10, \d s so far", line) for line in lines)
    shown.advance()  # after the end: no line
    assert capsys.readouterr().err == ""


def test_version_and_help_of_the_whole(written: Path) -> None:
    assert dcbench("-V").stdout == dcbench("--version").stdout
    assert dcbench("-q", "list", "cells", "--out", written).stderr == ""


# ------------------------------------------------------------------------------------------------------- completion


def completed(words: Sequence[str], incomplete: str) -> list[str]:
    found = ShellComplete(main, {}, "dcbench", "_DCBENCH_COMPLETE").get_completions(list(words), incomplete)
    return [item.value for item in found]


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        (["run", "--method"], "tesla", ["tesla", "tesla-exact"]),
        (["run", "--dataset"], "cifar", ["cifar10", "cifar100"]),
        (["run", "--evaluator"], "res", ["resnet18"]),
        (["run", "--preset"], "", ["paper", "quick", "smoke"]),
        (["list"], "c", ["cells"]),
        (["info"], "fa", ["fashion-mnist"]),
        (["plan", "--method"], "rat", ["rat-bptt"]),
    ],
)
def test_names_are_completed(words: list[str], incomplete: str, found: list[str]) -> None:
    assert completed(words, incomplete) == found


def test_settings_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert completed(["run", "--method", "tesla", "--set"], "max_st") == ["max_start_epoch="]
    assert completed(["run", "--method", "dm", "--set"], "max_st") == []
    assert completed(["run", "--method", "dm", "--set"], "network.w") == ["network.width="]
    assert completed(["run", "--method", "dm", "--set"], "convnet.ep") == ["convnet.epochs="]
    monkeypatch.setattr(completion, "_read_settings", dict)  # from the cache: no plugin is imported
    assert completed(["run", "--method", "tesla", "--set"], "max_st") == ["max_start_epoch="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script_and_its_answers(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BashComplete, "_check_version", lambda *_: None)

    def asked(how: str, **environment: str) -> str:
        variables = {"_DCBENCH_COMPLETE": f"{shell}_{how}", **environment}
        result = CliRunner().invoke(main, [], env=variables, prog_name="dcbench")
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "_DCBENCH_COMPLETE" in asked("source")
    word = "tesla-" if shell == "fish" else "3"
    assert "tesla-exact" in asked("complete", COMP_WORDS="dcbench run --method tesla-", COMP_CWORD=word)
