"""A memory budget: predictions against real runs, what is proposed against every other value, and the command line."""

import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from dcbench_tesla import registry
from dcbench_tesla.api import run
from dcbench_tesla.cells.budget import (
    Fit,
    Kept,
    Need,
    Remedy,
    _largest,
    fit,
    fitted,
    parse_size,
    predicted_expert_peak,
    predicted_peak,
)
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.cli import main
from dcbench_tesla.config import overrides_from, parse_set, resolve
from dcbench_tesla.data import images
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.experts.training import train_epoch
from dcbench_tesla.profilers import LiveBytes
from dcbench_tesla.profilers.memory import PredictedMeter
from dcbench_tesla.records.store import read_json
from tests import fixtures_data as fixtures

Settings = Mapping[str, Any]
NONE: Settings = MappingProxyType({})
QUICK: Settings = {"iterations": 1, "evaluation.every": 0, "convnet.epochs": 1, "evaluation.networks": 1}
T = 6
WHOLE: Mapping[str, Settings] = {  # what a budget would choose, chosen: the whole batch at once, weights on the device
    "tesla": {"micro_batch": 1000},
    "tesla-exact": {"micro_batch": 1000, "weights": "device"},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def meter() -> PredictedMeter:
    """One meter for all: what it has once seen it need not work out again."""
    return PredictedMeter()


@pytest.fixture(scope="module")
def exact() -> PredictedMeter:
    """A meter that rounds nothing, as main memory does not."""
    return PredictedMeter(round_to=1)


Make = Callable[..., Cell]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a cell whose experts are there as far as `condense` alone is asked for."""

    def cell(method: str, changes: Settings = NONE, *, ipc: int = 2, dataset: str = "digits") -> Cell:
        config = resolve(method, dataset, ipc, preset="smoke", overrides=overrides_from(changes))
        return Session(tmp_path, device="cpu", quiet=True).cell(config)

    return cell


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40GiB", 40 * 2**30),
        ("40 gib", 40 * 2**30),
        (" 8GB ", 8 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5MB", 1_500_000),
        ("0.5KiB", 512),
        ("2TB", 2 * 10**12),
        ("1TiB", 2**40),
        ("1000", 1000),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "40 bananas", "40G", "GiB", "-1GiB", "0", "0.1", "1e9", "4 0GiB", "1,5GiB"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is not a memory size: give a number and KiB, MiB, GiB"):
        parse_size(text)


# ---- predictions against what is measured ----------------------------------------------------------------------------


def finished(
    method: str, changes: Settings, out: Path, dataset: str = "digits", ipc: int = 3, **more: Any
) -> CellResult:
    changes = {**QUICK, **changes}
    return run(method, dataset, ipc, preset="smoke", settings=changes, out=out, device="cpu", quiet=True, **more)


def condense_row(result: CellResult) -> dict[str, Any]:
    row = result.cell.workspace.row("condense", result.cell.key)
    assert row is not None
    return row


@pytest.mark.parametrize(
    ("method", "changes", "within"),
    [
        ("mtt", {}, 0.001),
        ("tesla", {"labels": "target"}, 0.001),
        ("tesla-exact", {"keep_graphs": 5}, 0.001),
        # predicted by its memory probe, of two rounds: a warp among the draws of the others keeps a grid (8 kB)
        ("dsa", {"outer": 4, "inner": 3}, 0.002),
    ],
)
def test_the_predicted_peak_is_that_of_the_runs_first_iteration(
    method: str, changes: Settings, within: float, exact: PredictedMeter, meter: PredictedMeter, tmp_path: Path
) -> None:
    result = finished(method, changes, tmp_path)
    prepared = result.cell.splits.train._prepared
    assert prepared is not None
    assert result.cell.materials.prepared_bytes == prepared.untyped_storage().nbytes() == 1000 * 8 * 8 * 4
    measured = condense_row(result)["peak_bytes"]
    predicted = predicted_peak(result.cell, exact) - result.cell.materials.prepared_bytes
    assert predicted == pytest.approx(measured, rel=within)
    by_default = predicted_peak(result.cell, meter) - result.cell.materials.prepared_bytes
    assert measured < by_default < 1.03 * measured  # of 512 bytes


def test_ones_own_images_with_fewer_of_a_class_than_a_real_batch(exact: PredictedMeter, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **fixtures.npz_arrays(train_per_class=12))
    changes = {"real_batch": 32, "data.augmentation": "none", "network.width": 8}
    result = finished("dm", changes, tmp_path, dataset=f"npz:{tmp_path / 'mine.npz'}", ipc=2)
    predicted = predicted_peak(result.cell, exact) - result.cell.materials.prepared_bytes
    assert predicted == pytest.approx(condense_row(result)["peak_bytes"], rel=0.001)


def test_training_experts_is_predicted_too(make: Make, exact: PredictedMeter) -> None:
    cell = make("tesla", {"data.train_images": 64, "data.validation": 0.0})
    train, network = cell.splits.train, cell.materials.build_network()
    train.inputs(torch.arange(1))

    def epoch(number: int) -> None:
        train_epoch(network, train, cell.config.experts, cell.materials.augmentation, 0, number)

    with LiveBytes(network.parameters()) as live:
        epoch(0)  # leaves gradients behind
        live.reset_peak()
        epoch(1)
    predicted = predicted_expert_peak(cell, exact, batch_size=64) - cell.materials.prepared_bytes
    assert predicted == pytest.approx(live.peak_bytes("cpu"), rel=0.01)
    needs = fit(cell, 2**40, exact, ["experts"]).needs  # a batch of 256, but there are 64 images
    assert needs == (Need("training experts", predicted + cell.materials.prepared_bytes),)


def test_images_that_do_not_lie_on_the_device_take_nothing_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make("tesla")
    for limit, lie_there in ((cell.materials.prepared_bytes, True), (cell.materials.prepared_bytes - 1, False)):
        monkeypatch.setattr(images, "_PREPARE_AT_ONCE_BYTES", limit)
        train = make("tesla").splits.train
        train.inputs(torch.arange(1))
        assert (train._prepared is not None) == (cell.materials.prepared_bytes > 0) == lie_there


SMALL = Shape("small", 3, 16, 10)


@pytest.mark.parametrize("method", ["dc", "dsa"])
@pytest.mark.parametrize(
    ("ipc", "settings"),
    [
        (3, {"outer": 4, "inner": 3, "real_batch": 8}),
        (30, {"outer": 3, "inner": 1, "real_batch": 1, "class_chunk": 1}),  # training the network needs the most
        (1, {"real_batch": 8, "class_chunk": 1}),  # published: one round, which trains nothing
    ],
)
def test_a_short_loop_has_the_peak_of_a_long_one(
    method: str, ipc: int, settings: dict[str, Any], exact: PredictedMeter
) -> None:
    def peak(shortened: bool) -> int:
        made = workload(method, SMALL, ipc=ipc, width=8, device=exact.device, settings=settings, shortened=shortened)
        return exact.measure(made).peak_bytes

    kind = registry.load_method(method)
    whole, short = kind.Settings(**settings), kind.memory_probe(kind.Settings(**settings), ipc)
    assert (short.outer, short.inner) == ((2, 1) if ipc > 1 else (1, 1))
    assert {**vars(short), "outer": 0, "inner": 0} == {**vars(whole), "outer": 0, "inner": 0}
    # dsa: the augmentation that needs the most may be drawn in a later round
    assert peak(shortened=True) == pytest.approx(peak(shortened=False), rel=0 if method == "dc" else 0.005)


# ---- the largest that fits -------------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[int], int]] = {
    "linear": lambda n: 100 + 10 * n,
    "first one free": lambda n: 100 + 10 * max(n, 1),
    "nearly linear": lambda n: 100 + 10 * n + (n * 7919 % 3),
    "convex": lambda n: n**3,
    "concave": lambda n: int(1000 * n**0.2),
    "in steps": lambda n: 50 * (n // 17),
    "flat, then not": lambda n: 10 + 1000 * (n > 90),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_largest_that_fits_is_found_in_few_predictions(name: str) -> None:
    shape, asked = SHAPES[name], []

    def peak(n: int) -> int:
        asked.append(n)
        return shape(n)

    for budget in range(0, shape(100), max(shape(100) // 97, 1)):
        asked.clear()
        found = _largest(peak, 1, (100, shape(100)), budget)
        expected = max((n for n in range(1, 100) if shape(n) <= budget), default=None)
        assert found == (None if expected is None else (expected, shape(expected)))
        assert len(asked) == len(set(asked)) <= (4 if name.endswith("linear") else 12)


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tesla", "tesla-exact"])
def test_as_many_graphs_are_kept_as_fit(method: str, make: Make, meter: PredictedMeter) -> None:
    cell = make(method, {"steps": T, **WHOLE[method]})
    peaks = [predicted_peak(cell, meter, keep_graphs=k) for k in range(T + 1)]
    assert peaks[0] < peaks[2] < peaks[T]
    for budget in {peak + change for peak, change in product(peaks, (-1, 0, 1))}:
        found = fit(cell, budget, meter, ["condense"])
        assert found.fits == (peaks[0] <= budget)
        if found.fits:
            most = max(k for k in range(T + 1) if peaks[k] <= budget)
            assert found.kept == Kept(most, T, peaks[most])
        else:
            assert found.kept is None


def test_the_planned_cell_is_the_same_cell(make: Make, meter: PredictedMeter) -> None:
    cell = make("tesla-exact", {"steps": T})
    budget = predicted_peak(cell, meter, keep_graphs=4)
    planned = fitted(cell, budget, meter, ["condense"])
    assert planned.config.settings.keep_graphs == 4
    assert cell.config.settings.keep_graphs == 0
    assert (planned.key, planned.identity.content) == (cell.key, cell.identity.content)
    assert planned.place.folder == cell.place.folder
    for name in ("changed", "protocol", "condense_protocol", "command"):
        assert getattr(planned.config, name) == getattr(cell.config, name)
    assert planned.memory_facts == {"memory_budget_bytes": budget, "predicted_peak_bytes": budget}


def test_what_the_user_chose_stays(make: Make, meter: PredictedMeter) -> None:
    cell = make("tesla", {"steps": T, "keep_graphs": 2})
    planned = fitted(cell, 2**40, meter, ["condense"])
    assert planned.config.settings.keep_graphs == 2
    assert planned.memory_facts["predicted_peak_bytes"] == predicted_peak(cell, meter)
    assert fit(make("mtt", {"steps": T}), 2**40, meter).kept is None
    assert fit(make("dm"), 2**40, meter).kept is None


def test_kept_graphs_change_rounding_only(tmp_path: Path) -> None:
    """The same set to rounding, not bit for bit: group norm's gradient has another formula where a graph is kept."""
    plain = finished("tesla-exact", {"steps": T}, tmp_path / "plain")
    roomy = finished("tesla-exact", {"steps": T}, tmp_path / "roomy", memory_budget="1GiB")
    assert roomy.cell.name == plain.cell.name
    row, without = condense_row(roomy), condense_row(plain)
    assert row["settings"] == {**without["settings"], "keep_graphs": T}
    assert row.keys() - without.keys() == {"memory_budget_bytes", "predicted_peak_bytes"}
    assert row["memory_budget_bytes"] == 2**30
    assert row["peak_bytes"] > 1.5 * without["peak_bytes"]
    assert row["peak_bytes"] + roomy.cell.materials.prepared_bytes == pytest.approx(
        row["predicted_peak_bytes"], rel=0.03
    )
    assert {name: row[name] for name in ("protocol", "command", "identity")} == {
        name: without[name] for name in ("protocol", "command", "identity")
    }
    start = plain.cell.problem(None)
    before = start.train.inputs(start.draw_real("start images"))
    moved, other = plain.distilled.images - before, roomy.distilled.images - before
    assert float(moved.norm()) > 0
    assert float((other - moved).norm() / moved.norm()) < 1e-2


# ---- what makes it fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tesla", "tesla-exact"])
def test_micro_batches_come_first_and_graphs_take_what_is_left(method: str, make: Make, meter: PredictedMeter) -> None:
    cell = make(method, {"steps": T})
    assert cell.config.settings.micro_batch == 20  # small images: a CPU's caches hold the whole batch
    whole = predicted_peak(cell, meter)
    for pieces in (10, 5, 3):
        budget = predicted_peak(cell, meter, micro_batch=pieces)
        assert budget < whole
        found = fit(cell, budget, meter, ["condense"])
        assert found.fits
        assert found.chosen == {"micro_batch": pieces}
        assert found.kept is not None
        assert found.kept.peak_bytes <= budget
        assert f"with micro_batch={pieces} to fit; keeps the graphs of" in str(found)
    roomy = fit(cell, budget + whole, meter, ["condense"])
    assert roomy.chosen == {}
    assert roomy.kept is not None
    assert roomy.kept.graphs >= 1


@pytest.mark.parametrize(("device", "place"), [("cpu", "restep"), ("cuda", "host")])
def test_then_the_weights_go_where_they_take_no_room(
    device: str, place: str, make: Make, meter: PredictedMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make("tesla-exact", {"steps": 9, "batch_size": 4})
    monkeypatch.setattr(cell, "device", torch.device(device))
    smallest = predicted_peak(cell, meter, micro_batch=1)
    found = fit(cell, smallest - 1, meter, ["condense"])
    assert found.fits
    assert found.chosen["weights"] == place
    assert found.condensation_bytes is not None
    assert found.condensation_bytes < smallest
    least = predicted_peak(cell, meter, micro_batch=1, weights=place)
    assert not fit(cell, least - 1, meter, ["condense"]).fits
    assert fit(cell, least, meter, ["condense"]).fits


def test_what_the_user_set_is_not_made_smaller(make: Make, meter: PredictedMeter) -> None:
    for chosen in ({"micro_batch": 20}, {"weights": "device"}):
        cell = make("tesla-exact", {"steps": 4, **chosen})
        least = predicted_peak(cell, meter, **{"micro_batch": 1, "weights": "restep", **chosen})
        found = fit(cell, least, meter, ["condense"])
        assert found.fits
        assert not set(found.chosen) & set(chosen)


def test_the_planned_cell_computes_in_micro_batches(make: Make, meter: PredictedMeter) -> None:
    cell = make("tesla-exact", {"steps": T})
    planned = fitted(cell, predicted_peak(cell, meter, micro_batch=5), meter, ["condense"])
    assert planned.config.settings.micro_batch == 5
    assert (planned.key, planned.config.changed) == (cell.key, cell.config.changed)


@pytest.mark.parametrize("method", ["tesla", "tesla-exact"])
@pytest.mark.parametrize(("batch", "micro_batch"), [(30, 4), (0, 7), (30, 20), (10, 5)])
def test_two_micro_batches_have_the_peak_of_all(
    method: str, batch: int, micro_batch: int, exact: PredictedMeter
) -> None:
    settings = {"steps": 3, "batch_size": batch, "micro_batch": micro_batch}

    def peak(shortened: bool) -> int:
        made = workload(method, SMALL, ipc=6, width=8, device=exact.device, settings=settings, shortened=shortened)
        return exact.measure(made).peak_bytes

    kind = registry.load_method(method)
    short = kind.memory_probe(kind.Settings(**settings), 6)
    assert (short.batch_size < (batch or 60)) == (2 * micro_batch < (batch or 60))
    # not to the byte: a step's indices are as many as its images
    assert peak(shortened=True) == pytest.approx(peak(shortened=False), abs=16 * 60)
    kept = kind.Settings(**{**settings, "keep_graphs": 1})
    assert kind.memory_probe(kept, 6) is kept


# ---- what would fit --------------------------------------------------------------------------------------------------


def remedied(cell: Cell, remedy: Remedy, make: Make) -> Cell:
    """Make the cell anew, with the remedy as the command line takes it."""
    changes = {label: value for label in cell.config.changed if (value := setting(cell, label)) is not None}
    option, text = remedy.option.split()
    if option == "--method":
        return make(text, changes, ipc=cell.config.ipc)
    given = parse_set(text)
    return make(cell.config.method, {**changes, given.label: given.value}, ipc=cell.config.ipc)


def setting(cell: Cell, label: str) -> Any:
    section, _, name = label.rpartition(".")
    return getattr(getattr(cell.config, section or "settings"), name)


def test_what_would_fit_in_place_of_mtt_does(make: Make, meter: PredictedMeter) -> None:
    cell = make("mtt", {"steps": T, "batch_size": 0})
    assert fit(cell, 2**40, meter, ["condense"]) == Fit(
        2**40, cell.materials.prepared_bytes, (Need("condensation", predicted_peak(cell, meter)),)
    )
    budget = predicted_peak(cell, meter, steps=3) + 1000
    found = fit(cell, budget, meter, ["condense"])
    (need,) = found.needs
    assert not found.fits
    options = {remedy.option: remedy for remedy in need.remedies}
    assert list(options) == ["--set steps=3", "--set batch_size=10", "--method tesla", "--method tesla-exact"]
    for remedy in need.remedies:
        anew = remedied(cell, remedy, make)
        assert predicted_peak(anew, meter) == remedy.peak_bytes <= budget
        assert fit(anew, budget, meter, ["condense"]).fits
    for larger in ({"steps": 4}, {"batch_size": 20}):  # 11 to 19 of 20 images would leave a smaller second batch
        assert predicted_peak(cell, meter, **larger) > budget
    needed = r"[\d.]+ MiB are needed for condensation \(predicted, 0\.2 MiB of it the training images\), but the memory"
    fits = r"What fits: --set steps=3 \([\d.]+ MiB\), .*--method tesla-exact \([\d.]+ MiB\)\."
    with pytest.raises(UsageError, match=rf"^mtt: {needed} budget is [\d.]+ MiB\. {fits}$"):
        fitted(cell, budget, meter, ["condense"])


def test_the_batch_is_the_largest_even_one(make: Make, meter: PredictedMeter) -> None:
    """60 images: of the sizes that leave no odd rest, the largest for which the peak fits."""
    cell = make("tesla", {"steps": 2, "batch_size": 60, **WHOLE["tesla"]}, ipc=6)
    even = sorted({-(-60 // n) for n in range(1, 61)})
    peaks = {size: predicted_peak(cell, meter, batch_size=size) for size in even}
    for fitting in (7, 15, 30):
        (need,) = fit(cell, peaks[fitting], meter, ["condense"]).needs
        assert Remedy(f"--set batch_size={fitting}", peaks[fitting]) in need.remedies
        assert peaks[even[even.index(fitting) + 1]] > peaks[fitting]


def test_fewer_graphs_and_fewer_classes_at_once(make: Make, meter: PredictedMeter) -> None:
    cell = make("tesla-exact", {"steps": T, "keep_graphs": 5, **WHOLE["tesla-exact"]})
    budget = predicted_peak(cell, meter, keep_graphs=2)
    (need,) = fit(cell, budget, meter, ["condense"]).needs
    assert Remedy("--set keep_graphs=2", budget) in need.remedies
    cell = make("dm", {"micro_batch": 1000})
    budget = predicted_peak(cell, meter, class_chunk=4)
    (need,) = fit(cell, budget, meter).needs
    assert need.remedies == (Remedy("--set class_chunk=4", budget),)
    assert predicted_peak(cell, meter, class_chunk=5) > budget


def test_the_stage_that_needs_the_most_is_named(make: Make, meter: PredictedMeter) -> None:
    cell = make("tesla", {"steps": 2})
    experts, condensation = predicted_expert_peak(cell, meter), predicted_peak(cell, meter)
    assert experts > condensation
    assert re.match(r"[\d.]+ MiB of 1\.00 GiB \(predicted, training experts\); keeps", str(fit(cell, 2**30, meter)))
    assert str(fit(cell, 2**30, meter, ["condense"])).startswith(f"{condensation / 2**20:.1f} MiB of 1.00 GiB")
    found = fit(cell, condensation, meter)
    assert not found.fits
    first, second = found.needs
    (remedy,) = first.remedies
    assert second == Need("condensation", condensation)
    size = int(remedy.option.removeprefix("--set experts.micro_batch="))
    assert fit(remedied(cell, remedy, make), condensation, meter).fits
    assert predicted_expert_peak(cell, meter, micro_batch=size + 1) > condensation
    assert str(found).count("What fits") == 1


def test_a_selection_has_experts_and_no_iterations(make: Make, meter: PredictedMeter) -> None:
    cell = make("herding")
    peak = predicted_expert_peak(cell, meter)
    assert fit(cell, peak, meter).needs == (Need("training experts", peak),)
    assert fitted(cell, peak, meter).memory_facts == {}  # columns of the condensation's row
    with pytest.raises(UsageError, match=r"^herding: .* What fits: --set experts\.micro_batch="):
        fitted(cell, peak - 1, meter)


def test_nothing_fits_where_the_images_do_not(make: Make, meter: PredictedMeter) -> None:
    found = fit(make("mtt"), 10_000, meter, ["condense"])
    assert found.needs[0].remedies == ()
    assert str(found).endswith("nor smaller batches suffice: lower network.width or data.train_images.")


def test_a_plugin_that_is_broken_is_no_remedy(
    make: Make, meter: PredictedMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, load = make("mtt", {"steps": T}), registry.load_method

    def broken(name: str) -> Any:
        if name == "tesla":
            raise DcbenchError("cannot be imported")
        return load(name)

    monkeypatch.setattr(registry, "load_method", broken)
    (need,) = fit(cell, predicted_peak(cell, meter, steps=2), meter, ["condense"]).needs
    assert [r.option for r in need.remedies if "method" in r.option] == ["--method tesla-exact"]


def test_nothing_is_predicted_of_what_is_done_or_computes_nothing(make: Make, meter: PredictedMeter) -> None:
    for cell, stages in ((make("random"), None), (make("tesla"), []), (make("tesla"), ["evaluate by convnet"])):
        found = fit(cell, 1, meter, stages)
        assert (found.needs, found.fits, str(found)) == ((), True, "nothing to predict")
        assert fitted(cell, 1, meter, stages) is cell


# ---- the command line, and Python ------------------------------------------------------------------------------------


def dcbench(out: Path, *words: object) -> Result:
    sets = [word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")]
    words = ("run", *words, *sets, "--preset", "smoke", "--device", "cpu", "--out", out)
    return CliRunner().invoke(main, [str(word) for word in words])


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_the_only_cell_does_not_fit(dry: list[str], tmp_path: Path) -> None:
    result = dcbench(tmp_path, "--method", "mtt", "--memory-budget", "1.9MiB", *dry)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    stage = r"[\d.]+ MiB are needed for {} \(.*\), but the memory budget is 1\.9 MiB\. What fits: --set {}=\d+ .*"
    both = f"{stage.format('training experts', 'experts.micro_batch')} And {stage.format('condensation', 'steps')}"
    assert re.fullmatch(f"Error: mtt: {both}", last), last
    assert files(tmp_path) == []  # nor is a baseline run for nothing


def test_cells_that_fit_go_on_and_say_what_they_keep(tmp_path: Path) -> None:
    small = ["--set", "experts.batch_size=32", "--set", "experts.count=1"]
    words = ["--method", "mtt", "--method", "tesla", *small, "--memory-budget", "1MiB"]
    result = dcbench(tmp_path, *words)
    assert result.exit_code == 1, result.output
    lines = result.stderr.splitlines()
    (refusal,) = (line for line in lines if line.startswith("Error: mtt-digits-ipc1-seed0-"))
    (told,) = (i for i, line in enumerate(lines) if "graphs" in line)
    kept = re.fullmatch(
        r"tesla-digits-ipc1-seed0-\w+: 0\.\d MiB of 1\.0 MiB \(predicted, .*\); "
        r"keeps the graphs of (\d) of 10 steps: \d\.\d MiB",
        lines[told],
    )
    assert kept is not None, lines[told]
    assert "--method tesla (" in refusal
    assert lines.index(refusal) < told < next(i for i, line in enumerate(lines) if "measuring a few steps" in line)
    assert lines[-1] == "Error: 1 of 3 cells failed, see above; the others are done. The same command retries."
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "cells").iterdir()) == ["random", "tesla"]
    (row,) = (row for row in map(read_json, tmp_path.glob("rows/condense-*")) if row["method"] == "tesla")
    assert row["settings"]["keep_graphs"] == int(kept[1]) > 1
    assert row["predicted_peak_bytes"] <= row["memory_budget_bytes"] == 2**20


def test_what_is_done_is_not_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--method", "tesla", "--set", "experts.count=1"]
    assert dcbench(tmp_path, *words).exit_code == 0
    monkeypatch.setattr(PredictedMeter, "measure", lambda self, prepare: pytest.fail("there is nothing to predict"))
    result = dcbench(tmp_path, *words, "--memory-budget", "1KiB")
    assert result.exit_code == 0, result.output
    assert "graphs" not in result.stderr
    monkeypatch.undo()
    result = dcbench(tmp_path, *words, "--memory-budget", "1KiB", "--force")
    assert result.exit_code == 2, result.output
    assert len(list(tmp_path.glob("rows/condense-*"))) == 2  # what was there still is


def test_a_size_that_is_none_stops_before_anything(tmp_path: Path) -> None:
    result = dcbench(tmp_path / "out", "--method", "tesla", "--memory-budget", "40 bananas")
    assert result.exit_code == 2
    assert "'40 bananas' is not a memory size" in result.stderr
    assert not (tmp_path / "out").exists()


def test_from_python(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are needed for condensation"):
        finished("mtt", {}, tmp_path, memory_budget=2**20)
    assert files(tmp_path) == []
    with pytest.raises(UsageError, match="is not a memory size"):
        finished("mtt", {}, tmp_path, memory_budget="much")
