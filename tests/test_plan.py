"""`dcbench plan`: what is done, what the rest takes; against the predictor, the stages and a run of one cell."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dcbench_tesla.backends.base import Job
from dcbench_tesla.cells.budget import predicted_expert_peak, predicted_peak
from dcbench_tesla.cells.estimate import Estimate
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import train_experts
from dcbench_tesla.cli import main
from dcbench_tesla.cli.reproduce import _pending
from dcbench_tesla.cli.shown.planned import totals
from dcbench_tesla.config import overrides_from, resolve
from dcbench_tesla.errors import UsageError
from dcbench_tesla.profilers.memory import PredictedMeter
from dcbench_tesla.reports import plan as planning
from dcbench_tesla.reports.declarations import Part, cells, declarations
from dcbench_tesla.reports.plan import PlannedCell, open_cells, plan

SMALL = {"data.train_images": 100, "network.width": 4, "experts.count": 2, "expert_epochs": 1, "max_start_epoch": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


def dcbench(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def job(out: Path, method: str, **changes: Any) -> Job:
    settings = {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    config = resolve(method, "digits", 1, preset="smoke", overrides=overrides_from(settings), leave_out=True)
    return Job(Session(out, device="cpu", quiet=True).cell(config))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs of experts that every estimate is asked for; nothing is measured."""
    asked: list[int] = []

    def estimate(cell: object, stages: object, *, expert_epochs: int, **_: object) -> Estimate:
        asked.append(expert_epochs)
        return Estimate({"experts": float(expert_epochs)})

    monkeypatch.setattr(planning, "estimate", estimate)
    return asked


def test_shared_experts_are_counted_once_and_what_one_needs_more_with_it(tmp_path: Path, counted: list[int]) -> None:
    jobs = [job(tmp_path, "mtt"), job(tmp_path, "tesla"), job(tmp_path, "tesla", max_start_epoch=4)]
    jobs += [job(tmp_path, "tesla", experts__count=3, max_start_epoch=4), job(tmp_path, "tesla", network__width=5)]
    wanted = [
        j.cell.materials.expert_count * j.cell.materials.expert_request.epochs
        for j in jobs
        if j.cell.materials.expert_request
    ]
    found = list(plan(jobs))
    assert counted == [wanted[0], 0, wanted[2] - wanted[0], wanted[3] - wanted[2], wanted[4]]
    assert all(cell.stages and cell.stages[0] == "experts" for cell in found)


def test_experts_that_are_trained_are_not_counted(tmp_path: Path, counted: list[int]) -> None:
    one = job(tmp_path, "tesla")
    assert one.cell.materials.expert_request
    train_experts(one.cell, 1, one.cell.materials.expert_request.epochs)
    list(plan([one]))
    assert counted == [one.cell.materials.expert_request.epochs]


def test_experts_of_a_cell_that_fails_are_counted_with_the_next(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = vars(planning)["estimate"]

    def fails(cell: Any, *given: Any, **named: Any) -> Estimate:
        if cell.config.method == "mtt":
            raise UsageError("it cannot be")
        found: Estimate = counts(cell, *given, **named)
        return found

    monkeypatch.setattr(planning, "estimate", fails)
    first, second = plan([job(tmp_path, "mtt"), job(tmp_path, "tesla")])
    assert (first.estimate, first.reason) == (None, "it cannot be")
    assert second.estimate
    assert second.estimate.total > 0


def test_peak_is_the_predicted_one_of_what_is_to_be_done(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name) for name in ("tesla", "dm", "random")]
    tesla, dm, random = plan(jobs, measure=False, meter=PredictedMeter())
    meter = PredictedMeter()
    cell = jobs[0].cell
    experts = predicted_expert_peak(cell, meter, batch_size=min(cell.config.experts.batch_size, 100))
    assert tesla.peak_bytes == max(experts, predicted_peak(cell, meter))
    assert dm.peak_bytes == predicted_peak(jobs[1].cell, meter)
    assert random.peak_bytes is None  # nothing but an evaluation
    assert tesla.estimate is None


# ---------------------------------------------------------------------------------------------------- command line


def table(result: Result) -> Mapping[str, list[str]]:
    """Return the rows of the printed table by cell: time, memory, what is to be done."""
    lines = result.stdout.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("─"))
    assert lines[rule - 1].split() == ["cell", "time", "peak", "memory", "to", "do"]
    rows = [re.split(r" {2,}", line) for line in lines[rule + 1 : lines.index("", rule)]]
    return {row[0]: row[1:] for row in rows}


def test_what_is_done_and_what_the_rest_takes(tmp_path: Path) -> None:
    part = ["--dataset", "digits", "--ipc", 1, "--preset", "smoke"]
    ran = dcbench("run", "--method", "random", *part, "--device", "cpu", "--out", tmp_path)
    assert ran.exit_code == 0, ran.output
    words = ["--method", "random", "--method", "tesla", "--dataset", f"npz:{tmp_path}/absent.npz"]
    before = sorted(tmp_path.rglob("*"))
    result = dcbench("plan", "table1", *part, *words, "--device", "cpu", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = table(result)
    assert found["random, digits, ipc 1"] == ["done"]
    time, peak, todo = found["tesla, digits, ipc 1"]
    assert todo == "experts, condense, evaluate by convnet"
    assert re.fullmatch(r"\d+ (s|min)", time)
    assert re.fullmatch(r"\d+\.\d MiB", peak)
    assert found["tesla, npz:absent.npz, ipc 1"] == found["random, npz:absent.npz, ipc 1"] == []
    assert result.stderr.count("no such file") == 1
    totals = result.stdout.splitlines()[-1]
    assert re.match(rf"3 of 4 cells to do, about {time} on .*, 1 thread, 2 of them not estimated; ", totals)
    assert totals.endswith(f"the largest needs {peak}")
    assert sorted(tmp_path.rglob("*")) == before


def testtotals() -> None:
    config = resolve("random", "digits", 1)
    done = PlannedCell(config=config, stages=())
    todo = [
        PlannedCell(config=config, stages=("condense",), estimate=Estimate({"a": 3600.0}), peak_bytes=5 * 2**20),
        PlannedCell(config=config, stages=("condense",), estimate=Estimate({"a": 3600.0, "b": 3600.0})),
    ]
    assert totals([done, *todo], "X") == "2 of 3 cells to do, about 3.0 h on X; the largest needs 5.0 MiB"
    assert totals([done], "X") == "0 of 1 cells to do"


def test_a_damaged_file_stops_its_own_cell_alone(tmp_path: Path) -> None:
    """A folder that was begun, its execution.json damaged, and a row that is no JSON."""
    declared = declarations()["table1"]
    part = Part(datasets=("digits",), ipcs=(1,), methods=("random", "dm", "tesla"), preset="smoke")
    session = Session(tmp_path, device="cpu", quiet=True)
    begun, broken_row, sound = (session.cell(config) for config in cells(declared, part))
    begun.place.folder.mkdir(parents=True)
    (begun.place.folder / "execution.json").write_text("{")
    row = session.workspace.rows / f"evaluate-{broken_row.identity.evaluation_key('convnet')}.json"
    row.parent.mkdir()
    row.write_text("[")
    opened, failed = open_cells(cells(declared, part), session)
    assert [cell.config.method for cell in opened] == [broken_row.config.method, sound.config.method]
    assert [(cell.config.method, "execution.json is not valid JSON" in cell.reason) for cell in failed] == [
        (begun.config.method, True)
    ]
    todo, count = _pending(cells(declared, part), session, session.workspace)
    assert [cell.config.method for cell in todo] == [sound.config.method]
    assert count == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabel1"], "unknown table 'tabel1'. Did you mean 'table1'?"),
        (["table1", "--method", "tesl"], "unknown method 'tesl'. Did you mean 'tesla'?"),
        (["table1", "--ipc", "0"], "--ipc must be at least 1, not 0."),
    ],
)
def test_usage(words: list[str], message: str, tmp_path: Path) -> None:
    result = dcbench("plan", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table2", "--method", "random"], "table2 has no random: it has tesla."),
        (["table1", "--ipc", "7"], "table1 has no IPC 7: the paper's data sets have 1, 2, 10, 50 there."),
        (["figure1"], "figure1 has no cells to plan: dcbench reproduce figure1 makes it"),
        (["table1", "--preset", ""], "--preset is empty: give paper, quick or smoke"),
    ],
)
def test_a_part_that_cannot_be_is_refused_with_what_there_is(words: list[str], message: str, tmp_path: Path) -> None:
    result = dcbench("plan", *words, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
