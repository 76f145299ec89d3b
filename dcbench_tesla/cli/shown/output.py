"""What the commands print with ``--json``: one JSON object on standard output, which names its kind.

Accuracies are fractions of the test set, times are in seconds and memory is in bytes. Fields are added in later
versions of dcbench; :attr:`Output.schema_version` is raised when one is removed or changes its meaning.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import click
from pydantic import BaseModel, ConfigDict, JsonValue


class Part(BaseModel):
    """A part of an output."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Output(Part):
    """What all outputs have."""

    schema_version: int = 1
    """The version of this format."""


class Accuracy(Part):
    """The test accuracy of the networks trained on one distilled set."""

    mean: float
    """Their mean."""
    std: float
    """Their population standard deviation."""
    values: Sequence[float]
    """The accuracy of every network."""
    iteration: int | None
    """The iteration of the condensation that the set is from."""


class Evaluation(Part):
    """The evaluation of a cell by one evaluator."""

    evaluator: str
    """The name of the network."""
    recipe: str
    """How the networks were trained."""
    settings: Mapping[str, str]
    """The settings that the command changed and that act on this evaluation, as text."""
    networks: int
    """The number of networks trained on the last set."""
    last: Accuracy
    """The accuracy of the last set."""
    best_on_validation: Accuracy | None
    """The accuracy of the set that held-out training images choose."""
    best_on_test: Accuracy | None
    """The accuracy of the set that the test images choose."""
    seconds: float
    """The time of the evaluation."""
    lead_over_random: float | None = None
    """The mean of ``last`` minus that of the random selection, with ``dcbench run``."""


class Cell(Part):
    """One cell: a method on a data set with a number of images per class and a seed."""

    name: str
    """The name of its folder."""
    method: str
    """The method."""
    dataset: str
    """The data set."""
    ipc: int | None
    """Images per class; ``null`` for a method that takes all images."""
    seed: int
    """The seed."""
    preset: str
    """The preset."""
    settings: Mapping[str, str]
    """The settings that the command changed and that act on the result, as text."""
    status: str
    """``ok``, ``unfinished``, ``failed``, ``diverged``, ``out of memory``, ``timed out`` or ``killed``."""
    reason: str = ""
    """Why it failed."""
    origin: Literal["own", "shipped"] = "own"
    """Whether the repository came with the result."""
    folder: str | None = None
    """Its folder, if it is on this machine."""
    evaluations: Sequence[Evaluation] = ()
    """Its evaluations."""


class Run(Output):
    """``dcbench run --json``: the cells of the command."""

    kind: Literal["run"] = "run"
    """``run``."""
    cells: Sequence[Cell]
    """The cells, with the random selections that they are compared with."""


class Cells(Output):
    """``dcbench list cells --json``."""

    kind: Literal["cells"] = "cells"
    """``cells``."""
    cells: Sequence[Cell]
    """The cells, failed ones first."""


class Plugin(Part):
    """A method, an evaluator or a network of condensation."""

    name: str
    """The name on the command line."""
    summary: str
    """One line about it."""
    package: str
    """The package that has it."""
    problem: str = ""
    """Why it cannot be used."""


class Plugins(Output):
    """``dcbench list methods --json``, also ``evaluators`` and ``networks``."""

    kind: Literal["methods", "evaluators", "networks"]
    """What is listed."""
    plugins: Sequence[Plugin]
    """The plugins, by name."""


class DatasetFacts(Part):
    """A data set."""

    name: str
    """The name on the command line."""
    shape: Sequence[int] | None = None
    """Channels, height and width of an image."""
    classes: int | None = None
    """The number of classes."""
    train_images: int | None = None
    """The number of training images."""
    test_images: int | None = None
    """The number of test images."""
    here: bool = False
    """Whether the files are on this machine."""
    problem: str = ""
    """Why it cannot be used."""


class Datasets(Output):
    """``dcbench list datasets --json``."""

    kind: Literal["datasets"] = "datasets"
    """``datasets``."""
    datasets: Sequence[DatasetFacts]
    """The registered data sets, by name."""


class File(Part):
    """A file of a cell."""

    name: str
    """The path within the cell's folder."""
    bytes: int
    """The size."""


class Point(Part):
    """A point of a curve."""

    iteration: int
    """The number of finished iterations."""
    value: float
    """The test accuracy, or the loss."""


class Show(Output):
    """``dcbench show --json``: everything about one cell."""

    kind: Literal["show"] = "show"
    """``show``."""
    cell: Cell
    """The cell and its accuracies."""
    curve_of: Literal["test accuracy", "loss"] | None
    """What the curve shows."""
    curve: Sequence[Point]
    """The test accuracy of the sets on the way, or where none was tested the loss."""
    condensation: Mapping[str, JsonValue]
    """``seconds``, ``peak_bytes``, ``iterations``, ``learned_lr``, ``final_loss``, ``images``, ``energy_joules`` and
    ``energy_by``; known ones only."""
    made: Mapping[str, JsonValue]
    """How it was made: ``command``, ``hardware``, ``commit``, ``versions``, ``device``, ``threads``."""
    files: Sequence[File]
    """The files in its folder."""


Compared = Literal[
    "compare accuracy",
    "compare regimes",
    "compare scores",
    "compare memory",
    "compare time",
    "compare gradient",
]
"""What ``dcbench compare`` compares."""


class Compare(Output):
    """``dcbench compare accuracy --json``, also ``regimes``, ``scores``, ``memory``, ``time`` and ``gradient``."""

    kind: Compared
    """What is compared."""
    rows: Sequence[Mapping[str, JsonValue]]
    """The rows of the comparison with the columns of its CSV file; what is not known is ``null``."""


class PlannedCell(Part):
    """A cell that is planned."""

    name: str
    """The name of its folder; empty if its data set cannot be read."""
    method: str
    """The method."""
    dataset: str
    """The data set."""
    ipc: int | None
    """Images per class."""
    seed: int
    """The seed."""
    preset: str
    """The preset."""
    stages: Sequence[str] | None
    """The stages that are to be run; empty for a finished cell, ``null`` if they are not known."""
    seconds: Mapping[str, float] | None
    """The estimated time of every stage on this machine."""
    peak_bytes: int | None
    """The predicted peak of condensation and expert training."""
    reason: str = ""
    """Why a value is not known."""
    shipped: bool = False
    """Whether it is done because the repository has the result."""
    config: Mapping[str, JsonValue]
    """All settings."""


class Plan(Output):
    """``dcbench plan --json`` and ``dcbench run --dry-run --json``."""

    kind: Literal["plan"] = "plan"
    """``plan``."""
    machine: str
    """The machine that the times are for."""
    cells: Sequence[PlannedCell]
    """The cells."""


class Setting(Part):
    """A setting."""

    name: str
    """The name that ``--set`` takes."""
    default: JsonValue
    """Its default; presets change it."""


class Info(Output):
    """``dcbench info --json``."""

    kind: Literal["info"] = "info"
    """``info``."""
    name: str
    """The name."""
    type: Literal["method", "evaluator", "data set", "network", "family"]
    """What has this name."""
    text: str
    """What ``dcbench info`` prints without ``--json``."""
    settings: Sequence[Setting] = ()
    """The settings."""
    dataset: DatasetFacts | None = None
    """The data set."""


class Env(Output):
    """``dcbench env --json``."""

    kind: Literal["env"] = "env"
    """``env``."""
    processor: str
    """The processor."""
    threads: int
    """PyTorch's threads."""
    gpus: Sequence[str]
    """The GPUs."""
    versions: Mapping[str, str]
    """Versions of Python and of packages; empty for a package that is not installed."""
    commit: str
    """The commit of the checkout."""
    data_dir: str
    """The folder of the data sets."""


class Taken(Part):
    """What takes room in a results folder."""

    what: str
    """What ``dcbench clean`` calls it: ``experts``, ``snapshots`` ..."""
    name: str
    """The key of the experts, or the name of the cell; empty for what is one whole."""
    bytes: int
    """The bytes that it takes."""
    about: str
    """What it is, in words."""


class Clean(Output):
    """``dcbench clean --json``."""

    kind: Literal["clean"] = "clean"
    """``clean``."""
    taken: Sequence[Taken]
    """What takes room, the largest first."""
    removed_bytes: int
    """The bytes of what was removed."""


class Trial(Part):
    """A trial of a search."""

    number: int
    """Its number, from 0."""
    values: Mapping[str, JsonValue]
    """The values of the searched settings."""
    status: str
    """``ok``, or why it has no accuracies: ``diverged``, ``out of memory``, ``timed out`` or ``failed``."""
    validation: Sequence[float]
    """The accuracy of every network on the held-out training images."""
    seconds: float
    """The time of condensation and evaluation."""
    reason: str = ""
    """Why it has no accuracies, in words."""
    same_as: int | None = None
    """The number of the earlier trial with the same values, which was not repeated."""


class Search(Part):
    """The search for the settings of one method."""

    method: str
    """The method."""
    key: str
    """The key of the search."""
    space: Mapping[str, JsonValue]
    """What was searched: ``low``, ``high`` and ``log``, or ``choices``, by setting."""
    chosen: Mapping[str, JsonValue]
    """The values of the best trial; empty if the search failed."""
    command: str
    """The command that runs them; empty if the search failed."""
    reason: str = ""
    """Why it failed."""
    trials: Sequence[Trial]
    """The trials, the best first."""


class Tune(Output):
    """``dcbench tune --json``."""

    kind: Literal["tune"] = "tune"
    """``tune``."""
    dataset: str
    """The data set."""
    ipc: int
    """Images per class."""
    preset: str
    """The preset."""
    seed: int
    """The seed of the searches."""
    evaluator: str
    """The network that trials were judged by."""
    trials: int
    """The trials of every method."""
    searches: Sequence[Search]
    """The searches, in the order of the methods."""


OUTPUTS: Sequence[type[Output]] = (Run, Cells, Plugins, Datasets, Show, Compare, Plan, Info, Env, Clean, Tune)


def emit(output: Output) -> None:
    """Print an output on standard output."""
    click.echo(output.model_dump_json(indent=1))


def evaluation_of(row: Mapping[str, Any], settings: Mapping[str, str], lead: float | None = None) -> Evaluation:
    """Return an evaluation from its row, with the changed settings and the lead over the random selection."""
    found: dict[str, Any] = {
        name: None if row["accuracy"][name] is None else {f: row["accuracy"][name][f] for f in Accuracy.model_fields}
        for name in ("last", "best_on_validation", "best_on_test")
    }
    found |= {name: row[name] for name in ("evaluator", "recipe", "networks")}
    found |= {"settings": settings, "seconds": row["evaluate_seconds"], "lead_over_random": lead}
    return Evaluation.model_validate(found)


def rows_of(table: Any) -> list[dict[str, JsonValue]]:
    """Return the rows of a pandas table as values that JSON has; what is not known is ``None``."""
    import json

    found: list[dict[str, JsonValue]] = json.loads(table.to_json(orient="records", double_precision=15))
    return found
