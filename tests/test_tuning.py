"""``dcbench tune``: trials on held-out images, equal budgets, a search that goes on, and what is run afterwards."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcbench_tesla import registry
from dcbench_tesla.backends import local, make_backend
from dcbench_tesla.backends.base import FrozenJob, Outcome
from dcbench_tesla.backends.worker import run_frozen
from dcbench_tesla.cells import session as sessions
from dcbench_tesla.cells.stages import run_cell
from dcbench_tesla.config import CellConfig, Tuned, overrides_from, resolve, resolved_again, tuned_in
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.datasets import load_dataset
from dcbench_tesla.errors import DcbenchError, DivergedError, UsageError
from dcbench_tesla.exchange.merge import merge
from dcbench_tesla.records import schema
from dcbench_tesla.records.rows import damaged_rows
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.reports.finished import by_protocol, finished
from dcbench_tesla.tuning import running as runs
from dcbench_tesla.tuning.chosen import Asked, tuned
from dcbench_tesla.tuning.draws import draw
from dcbench_tesla.tuning.running import Running, run_search, search_for
from dcbench_tesla.tuning.space import Choices, Range, parse_search, space_of
from dcbench_tesla.tuning.trials import Row, Search, best_first, score
from tests.fixtures_cells import SELECTION, Settings, command, rows, set_words

pytest.importorskip("optuna", reason="the extra `tune` is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: Settings = {
    **SELECTION,
    **{"data.validation": 0.2, "network.width": 4, "convnet.width": 8, "convnet.epochs": 40, "evaluation.every": 0},
    "iterations": 2,
}
PLACES = ("seconds", "condense_seconds")


def small(method: str = "dm", **changes: Any) -> CellConfig:
    return resolve(method, "digits", 1, preset="smoke", overrides=overrides_from({**SMALL, **changes}))


def with_epochs(epochs: int) -> CellConfig:
    return resolved_again(small(), overrides_from({"convnet.epochs": epochs}))


def at(out: Path, backend: str = "serial", **options: Any) -> Running:
    where = make_backend(backend, device="cpu", out=out, **options)
    return Running(results=Workspace(out), backend=where, compile="off")


def searched(out: Path, trials: int = 5, config: CellConfig | None = None, **options: Any) -> list[Row]:
    running = at(out, **options)
    search = search_for(config or small(), running, {}, batch=2, command="dcbench tune dm")
    return run_search(search, trials, running)


def told(trials: list[Row]) -> list[Any]:
    return [(row["values"], row["validation"]) for row in trials]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A search of five trials, undisturbed."""
    out = tmp_path_factory.mktemp("five")
    return out, searched(out)


# ---- what a trial is ------------------------------------------------------------------------------------------------


def test_trials_are_rows_and_nothing_else_stays(five: tuple[Path, list[Row]]) -> None:
    out, found = five
    assert sorted(row["number"] for row in rows(out, "trial")) == [0, 1, 2, 3, 4]
    assert {path.name.partition("-")[0] for path in (out / "rows").iterdir()} == {"trial"}
    assert [path.name for path in out.iterdir()] == ["rows"]
    assert damaged_rows(Workspace(out)) == []
    row = found[0]
    assert (row["budget"], row["batch"], row["seed"], row["status"]) == (5, 2, 0, "ok")
    assert (row["evaluator"], row["networks"], row["validation_images"]) == ("convnet", 1, 288)
    assert row["seconds"] > 0
    assert row["environment"]["commit"] is not None
    assert row["command"] == "dcbench tune dm"


def test_the_first_trial_has_the_values_of_the_preset(five: tuple[Path, list[Row]]) -> None:
    _, found = five
    assert found[0]["values"] == {"lr_images": 1.0, "real_batch": 32}
    for row in found:
        assert 0.1 <= row["values"]["lr_images"] <= 100
        assert 16 <= row["values"]["real_batch"] <= 256
        assert float(f"{row['values']['lr_images']:.3g}") == row["values"]["lr_images"]


def test_a_value_of_the_preset_is_not_rounded() -> None:
    first, *others = draw({"lr": Range(1e-6, 1.0, log=True)}, [], 3, 0, {"lr": 7.65625e-06})
    assert first == {"lr": 7.65625e-06}
    assert all(float(f"{drawn['lr']:.3g}") == drawn["lr"] for drawn in others)


class Poison:
    """Test images that nobody may touch."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"a test image was touched: {name}")

    def __len__(self) -> int:
        raise AssertionError("test images were counted")

    def __getitem__(self, index: object) -> Any:
        raise AssertionError("a test image was read")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a test image was read")


def loading(dataset: Dataset) -> Callable[..., Dataset]:
    return lambda name, data_dir=None: dataset


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits, whose test images nobody may touch."""
    digits = load_dataset("digits")
    poison: Any = {"x_test": Poison(), "y_test": Poison(), "known_fingerprint": digits.fingerprint}
    monkeypatch.setattr(sessions, "load_dataset", loading(dataclasses.replace(digits, **poison)))


def test_a_search_touches_no_test_image(five: tuple[Path, list[Row]], poisoned: None, tmp_path: Path) -> None:
    assert told(searched(tmp_path)) == told(five[1])


def test_the_poison_works(poisoned: None, tmp_path: Path) -> None:
    session = sessions.Session(tmp_path, device="cpu", quiet=True)
    with pytest.raises(AssertionError, match="test image"):
        run_cell(session.cell(small()))


def test_other_test_images_make_the_same_rows_to_the_byte(
    five: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = five
    digits = load_dataset("digits")
    other = dataclasses.replace(digits, x_test=16 - digits.x_test[:50], y_test=np.roll(digits.y_test[:50], 1))
    assert other.fingerprint != digits.fingerprint
    monkeypatch.setattr(sessions, "load_dataset", loading(other))
    searched(tmp_path)

    def timeless(folder: Path) -> list[str]:
        files = sorted((folder / "rows").iterdir())
        contents = [json.loads(path.read_text()) | dict.fromkeys(PLACES) for path in files]
        return [path.name for path in files] + [json.dumps(content) for content in contents]

    assert timeless(tmp_path) == timeless(out)


# ---- a search goes on ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As ``kill -9`` leaves things."""


def test_a_killed_search_goes_on_and_computes_nothing_twice(
    five: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcbench_tesla.cells.loop import CondenseLoop

    run = CondenseLoop.run
    condensed: list[str] = []

    def counted(self: CondenseLoop, device: Any) -> None:
        if len(condensed) == 3:  # in the second batch
            condensed.append("killed")
            raise Killed
        run(self, device)
        condensed.append("condensed")

    monkeypatch.setattr(CondenseLoop, "run", counted)
    with pytest.raises(Killed):
        searched(tmp_path)
    assert len(rows(tmp_path, "trial")) == 3
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    assert told(searched(tmp_path)) == told(five[1])
    assert condensed.count("condensed") == 5
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    searched(tmp_path)
    assert condensed.count("condensed") == 5


def test_more_trials_later_are_those_of_a_larger_budget(five: tuple[Path, list[Row]], tmp_path: Path) -> None:
    assert told(searched(tmp_path, 3)) == told(five[1])[:3]
    assert told(searched(tmp_path, 5)) == told(five[1])
    assert sorted(row["budget"] for row in rows(tmp_path, "trial")) == [3, 3, 3, 5, 5]


class Worker:
    """A worker in this process; what it is given and what it does are those of one in its own."""

    def __init__(self, job: FrozenJob, gpu: str | None) -> None:
        self._outcome = run_frozen(FrozenJob.read(job.file))

    def ended(self) -> bool:
        return True

    def outcome(self) -> Outcome:
        return self._outcome


def test_workers_make_the_same_trials_and_touch_no_test_image(
    five: tuple[Path, list[Row]], poisoned: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "WorkerProcess", Worker)
    assert told(searched(tmp_path, backend="local", jobs=2)) == told(five[1])
    assert {row["environment"]["backend"] for row in rows(tmp_path, "trial")} == {"local"}


def test_another_seed_space_or_batch_is_another_search(tmp_path: Path) -> None:
    running = at(tmp_path)

    def search(config: CellConfig, asked: Mapping[str, Any] | None = None, batch: int = 2) -> Search:
        return search_for(config, running, asked or {}, batch=batch, command="")

    base = search(small())
    others = [search(dataclasses.replace(small(), seed=1)), search(small(), batch=3), search(small(iterations=3))]
    others += [search(small(), {"lr_images": {"low": 1.0, "high": 2.0}}), search(with_epochs(3))]
    assert len({each.key for each in (base, *others)}) == 6
    assert [each.base == base.base for each in others] == [True, True, False, True, True]


def test_values_that_were_tried_are_not_tried_again(tmp_path: Path) -> None:
    running = at(tmp_path)
    asked = {"start": {"choices": ["real", "noise"]}}
    config = small(lr_images=1.0, real_batch=32)
    found = run_search(search_for(config, running, asked, batch=2, command=""), 4, running)
    assert found[0]["values"]["start"] == "real"
    again = [row for row in found if "same_as" in row]
    assert len(again) >= 2
    for row in again:
        assert row["seconds"] == 0
        assert told([row]) == told([found[row["same_as"]]])
    assert (schema.fault("trial row", json.dumps({**found[0], "same_as": None})) or "").startswith("same_as: ")


# ---- trials that fail ------------------------------------------------------------------------------------------------


def test_a_trial_that_diverges_counts_with_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcbench_tesla.cells.loop import CondenseLoop

    run, calls = CondenseLoop.run, iter(range(9))

    def diverging(self: CondenseLoop, device: Any) -> None:
        if next(calls) == 1:
            raise DivergedError("dm diverged.")
        run(self, device)

    monkeypatch.setattr(CondenseLoop, "run", diverging)
    found = searched(tmp_path, 3)
    assert [row["status"] for row in found] == ["ok", "diverged", "ok"]
    assert (score(found[1]), found[1]["validation"], found[1]["reason"]) == (0.1, [], "dm diverged.")
    assert told(searched(tmp_path, 3)) == told(found)


def test_settings_that_exclude_each_other_are_a_lost_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = at(tmp_path)
    asked = {"window": {"choices": [10, 20]}, "steps": {"choices": [10, 20]}}
    config = small("rat-bptt", lr_images=0.03, student_lr=0.003)
    search = search_for(config, running, asked, batch=1, command="")
    monkeypatch.setattr(runs, "draw", lambda *_: [{"window": 20, "steps": 10}])
    (row,) = run_search(search, 1, running)
    assert (row["status"], row["validation"], score(row)) == ("failed", [], 0.1)
    assert "window" in row["reason"]


def test_what_fails_otherwise_ends_the_search_and_is_tried_again(
    five: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcbench_tesla.cells.loop import CondenseLoop

    with monkeypatch.context() as broken:
        broken.setattr(CondenseLoop, "run", lambda self, device: 1 / 0)
        with pytest.raises(DcbenchError, match=r"trial 0 of dm failed: ZeroDivisionError.*the same command goes on"):
            searched(tmp_path, 2)
    assert rows(tmp_path, "trial") == []
    assert told(searched(tmp_path, 2)) == told(five[1])[:2]


# ---- spaces ----------------------------------------------------------------------------------------------------------


def learning() -> Iterator[str]:
    for name in registry.names("methods"):
        method = registry.load_method(name)
        if method.__module__.startswith("dcbench_tesla.") and method(method.Settings()).iterations:
            yield name


CELLS = [("smoke", "digits", 1), ("quick", "fashion-mnist", 1), ("quick", "fashion-mnist", 10)]
CELLS += [("paper", dataset, ipc) for dataset in ("mnist", "cifar10", "cifar100") for ipc in (1, 10, 50)]


@pytest.mark.parametrize("method", [*learning()])
def test_every_method_that_learns_has_a_space_with_the_values_of_all_presets(method: str) -> None:
    configs = [resolve(method, dataset, ipc, preset=preset) for preset, dataset, ipc in CELLS]
    for space in (space_of(configs[0], {}), space_of(configs[-1], {})):
        assert 2 <= len(space) <= 3
        for config in configs:
            assert {n: config.value(n) for n, found in space.items() if not found.holds(config.value(n))} == {}


def test_settings_that_are_given_are_not_searched() -> None:
    assert [*space_of(small(lr_images=3.0), {})] == ["real_batch"]
    assert space_of(small(), {"real_batch": {"low": "8", "high": "16"}})["real_batch"] == Range(8, 16)
    assert space_of(small(), {"start": {"choices": ["real", "noise"]}})["start"] == Choices(("real", "noise"))
    with pytest.raises(UsageError, match="lr_images is given by --set and searched by --search: leave out one"):
        space_of(small(lr_images=3.0), {"lr_images": {"low": 1, "high": 2}})


def test_a_plugin_brings_its_own_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    method = registry.load_method("dm")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(method.Settings):  # type: ignore[name-defined,misc]
        momentum: float = dataclasses.field(default=0.5, metadata={"search": {"low": 0.1, "high": 0.9}})

    monkeypatch.setattr(method, "Settings", Own)
    assert space_of(small(), {})["momentum"] == Range(0.1, 0.9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr_images", "--search takes a range or choices, for instance"),
        ("lr_images=1", "--search takes a range or choices"),
        ("lr_images=1:2:lin", "--search takes a range or choices"),
        ("lr_images=2:1", "range 2 to 1 of a search is empty"),
        ("lr_images=0:1:log", "has no logarithm"),
        ("lr_images=a:1", "lr_images takes a value of type float"),
        ("real_batch=1.5:8", "real_batch takes a value of type int"),
        ("lr_images=-1:8", "must not be negative"),
        ("start=1:2", "start is no number: name the values to choose from, start=A,B"),
        ("start=real,real", "at least two values"),
        ("start=real,nois", "unknown"),
        ("lr_image=1:2", "Did you mean 'lr_images'"),
        ("convnet.epochs=1:9", "a search is for settings of the method and of its network"),
        ("experts.count=1:9", "experts.count is not searched"),
    ],
)
def test_ranges_that_are_none(text: str, said: str, tmp_path: Path) -> None:
    done = command("tune", "dm", "--preset", "smoke", *set_words(SMALL), "--search", text, "--out", tmp_path / "out")
    assert done.exit_code == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert said in line
    assert not (tmp_path / "out" / "rows").exists()


def test_a_range_is_written_as_it_is_read() -> None:
    for text in ("lr_images=0.1:100.0:log", "real_batch=8:16", "start=real,noise"):
        label, entry = parse_search(text)
        assert f"{label}={space_of(small(), {label: entry})[label]}" == text


# ---- the command -----------------------------------------------------------------------------------------------------

WORDS = ("--preset", "smoke", *set_words(SMALL), "--device", "cpu", "--compile", "off")


def tune(out: Path, *words: object) -> Any:
    return command("tune", *words, *WORDS, "--out", out)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Two methods, with as many trials each."""
    out = tmp_path_factory.mktemp("two")
    return out, tune(out, "dm", "ld", "--trials", 3, "--batch", 3)


def test_two_methods_have_the_same_budget(two: tuple[Path, Any]) -> None:
    out, done = two
    assert done.exit_code == 0, done.output
    table = done.stdout.split("\n\n")[1].splitlines()
    assert [line.split()[:2] for line in table[2:]] == [["dm", "3"], ["ld", "3"]]
    assert "3 trials each" in done.stdout
    assert "no test image is seen" in done.stdout
    numbers = [(row["method"], row["number"]) for row in rows(out, "trial")]
    assert sorted(numbers) == [(method, n) for method in ("dm", "ld") for n in range(3)]


def test_the_best_trial_is_shown_first_with_its_command(two: tuple[Path, Any]) -> None:
    out, done = two
    for method in ("dm", "ld"):
        best = best_first([row for row in rows(out, "trial") if row["method"] == method])[0]
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{method}: dcbench run"))
        assert f"--method {method} --dataset digits --ipc 1 --preset smoke --tuned 3" in line
        assert line.endswith(f"--out {out}")
        for label, value in best["values"].items():
            assert f"--set {label}={value}" in line
        top = done.stdout.partition(f"{method}: all trials\n")[2].splitlines()[2]
        assert top.split()[0] == str(best["number"])


def test_json_has_every_trial(two: tuple[Path, Any]) -> None:
    out, _ = two
    again = tune(out, "dm", "ld", "--trials", 3, "--batch", 3, "--json", "-q")
    found = json.loads(again.stdout)
    assert (found["kind"], found["trials"], found["dataset"]) == ("tune", 3, "digits")
    for search in found["searches"]:
        assert len(search["trials"]) == 3
        means = [sum(trial["validation"]) / len(trial["validation"]) for trial in search["trials"]]
        assert means == sorted(means, reverse=True)
        assert search["chosen"] == search["trials"][0]["values"]
        assert "--tuned 3" in search["command"]


def test_what_was_chosen_is_run_under_a_protocol_that_says_so(two: tuple[Path, Any]) -> None:
    out, _ = two
    asked = ["--evaluator", "convnet", "--device", "cpu", "--compile", "off", *set_words(SMALL), "--out", out, "-q"]
    plain = ["run", "--method", "dm", "--preset", "smoke", *asked]
    for words in ([*plain, "--tuned", 3], plain):
        ran = command(*words)
        assert ran.exit_code == 0, ran.output
    best = best_first([row for row in rows(out, "trial") if row["method"] == "dm"])[0]
    made = (row for row in rows(out, "condense") if row["method"] == "dm")
    protocols = {row["settings"]["lr_images"]: row["protocol"] for row in made}
    name = protocols[best["values"]["lr_images"]]
    assert name.startswith("smoke, tuned (3 trials), changed: data.train_images, data.validation, iterations")
    assert "lr_images" not in name
    if best["number"]:  # else the preset's own settings were the best, and there is one cell
        assert sorted(tuned_in(p) for p in protocols.values()) == ["", ", tuned (3 trials)"]
        tables = by_protocol(finished(Workspace(out), ["dm", "random"], ["convnet"]))
        assert sum("tuned (3 trials)" in name for name in tables) == 1
        (own,) = (cells for name, cells in tables.items() if "tuned (3 trials)" in name)
        assert {cell.method for cell in own} == {"dm", "random"}  # the baseline stands beside both
    assert "tuned (3 trials)" in command("compare", "accuracy", "--out", out).stdout


def test_tuned_takes_the_first_trials_of_a_search(five: tuple[Path, list[Row]]) -> None:
    out, found = five
    digits, workspace = load_dataset("digits"), Workspace(out)
    for trials in (1, 3, 5):
        config = tuned(dataclasses.replace(small(), seed=7), digits, workspace, Asked(trials))
        best = best_first(found[:trials])[0]
        assert {label: config.value(label) for label in best["values"]} == best["values"]
        assert config == resolved_again(dataclasses.replace(small(), seed=7), tuned=Tuned(trials, best["values"]))
        assert f"--tuned {trials}" in config.command
        assert tuned(config, digits, workspace, Asked(trials)) == config  # the command with --set says the same
    chance = resolve("random", "digits", 1, preset="smoke")
    assert tuned(chance, digits, workspace, Asked(5)) == chance  # there is nothing to search


@pytest.mark.parametrize(
    ("changes", "asked", "said"),
    [
        ({}, "6", "dm has 5 of 6 trials on digits, IPC 1, preset smoke: dcbench tune dm --trials 6"),
        ({"iterations": 3}, "5", "dm has no trials with these settings"),
        ({"lr_images": 77.0}, "5", "leave out one"),
        ({}, "5:zz", "dm has 5 of 5 trials"),
        ({}, "five", "--tuned takes the number of trials, for instance 20, not 'five'"),
        ({}, "0", "--tuned takes the number of trials"),
    ],
)
def test_tuned_settings_that_there_are_not(
    changes: Settings, asked: str, said: str, five: tuple[Path, list[Row]]
) -> None:
    with pytest.raises(UsageError) as error:
        tuned(small(**changes), load_dataset("digits"), Workspace(five[0]), Asked.parse(asked))
    assert said in str(error.value)


def test_of_several_searches_one_is_named(five: tuple[Path, list[Row]], tmp_path: Path) -> None:
    other = dataclasses.replace(small(), seed=1)
    searched(tmp_path, 2, other)
    merged = merge(Workspace(five[0]), Workspace(tmp_path), tell=print)
    assert (merged.new, merged.conflicts, merged.whole) == (5, 0, True)
    workspace, digits = Workspace(tmp_path), load_dataset("digits")
    with pytest.raises(UsageError, match=r"dm was searched 2 times here; --tuned names one: 2:\w{6} \(seed \d\), 2:"):
        tuned(small(), digits, workspace, Asked(2))
    key = five[1][0]["search"]
    assert tuned(small(), digits, workspace, Asked(2, key[:6])).changed
    assert tuned(small(), digits, workspace, Asked(3)).changed  # only one has three


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dm", "--set", "data.validation=0"], "holds out none: add --set data.validation=0.05"),
        (["random"], "nothing is searched of random: name a range by --search"),
        (["dm", "--trials", "0"], "--trials must be at least 1, not 0"),
        (["dm", "--batch", "0"], "--batch must be at least 1, not 0"),
        (["dn"], "unknown method 'dn'. Did you mean"),
        (["dm", "--set", "evaluation.sets=2"], "every trial condenses one set"),
        (["dm", "--jobs", "2"], "--jobs has no effect on backend serial"),
    ],
)
def test_messages(words: list[str], said: str, tmp_path: Path) -> None:
    done = command("tune", *words, "--preset", "smoke", "--out", tmp_path / "out")
    assert done.exit_code == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert said in line
    assert not (tmp_path / "out").exists()


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    done = command("tune", "dm", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "pip install 'dcbench-tesla[tune]'" in done.stderr


def test_a_search_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(search: Search, trials: int, running: Running) -> list[Row]:
        if search.config.method == "dm":
            raise DcbenchError("trial 0 of dm failed.")
        return searched_two[:trials]

    searched_two = searched(tmp_path / "two", 2, small("ld"))
    monkeypatch.setattr(runs, "run_search", failing)
    done = tune(tmp_path / "out", "dm", "ld", "--trials", 2)
    assert done.exit_code == 1
    assert "1 of 2 searches failed, see above. The same command goes on." in done.stderr
    assert "ld: dcbench run" in done.stdout
