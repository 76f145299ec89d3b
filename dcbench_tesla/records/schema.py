"""What the JSON files of a run hold: one strict schema for each kind of file.

Types are strict (``"1"`` and ``true`` are no numbers), further fields are allowed, and what later versions added may
be absent. Absent is not null: only fields that are written as null take it. :func:`fault` says what is wrong with a
file's text; :func:`dcbench_tesla.records.store.read_json` calls it for every file that it reads with a kind.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

_ROUNDING = 1e-6
_LARGEST = 2**63 - 1

Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(min_length=1, max_length=240, pattern=r"^[^/\\\x00]+$")]
"""A part of a file's name: it cannot lead out of its folder."""

Values = Mapping[str, Any]

_ABSENT: Any = None
"""The default of a field that may be absent, but is never written as null: null is not of its type, and is refused."""


class Part(BaseModel):
    """A part of a file: strict types, finite numbers, further fields allowed."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


# ---- rows ------------------------------------------------------------------------------------------------------------


class Environment(Part):
    """Where something was computed."""

    commit: Text
    hardware: Text = ""
    device: Text = "cpu"
    threads: Positive = 1
    backend: Text = ""
    platform: Text = ""
    versions: dict[str, str] = {}


class Data(Part):
    """The images of a condensation, as its identity describes them."""

    train_images: Count
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fingerprint: Text = ""
    preprocessing: Text = ""


class Identity(Part):
    """What a condensation's key is made from."""

    network: Values | None
    data: Data
    method: Text = ""
    seed: int = 0
    ipc: Positive | None = None
    settings: Any = None


class MethodSettings(Part):
    """The settings of a method; those that the reports read have a type."""

    labels: str | None = None
    last_epoch: Count | None = None
    label_space: str | None = None
    lr_labels: float | None = None
    iterations: Count | None = None


class Shared(Part):
    """What the rows of all stages have."""

    dataset: Text
    hardware: Text
    environment: Environment
    dataset_fingerprint: Text = ""
    preset: Text = ""
    protocol: Text = ""


class OfCell(Shared):
    """What the rows of a cell have."""

    cell: Name
    method: Name
    ipc: Positive | None
    seed: int
    preset: Text
    protocol: Text
    command: Text
    compiled: bool = False


class ExpertsRow(Shared):
    """The row of trained experts."""

    key: Name
    experts: Count = 0
    epochs: Count = 0
    trained_epochs: Count = 0
    train_seconds: Seconds = 0.0
    processes: Positive = 1


class CondenseRow(OfCell):
    """The row of a condensation."""

    key: Name
    settings: MethodSettings
    distilled_images: Count
    identity: Identity
    iterations: Count | None = None
    condense_seconds: Seconds | None = None
    peak_bytes: Count | None = None
    energy_joules: Annotated[float, Field(ge=0)] | None = None
    energy_by: Text = ""
    learned_lr: float | None = None
    final_loss: float | None = None
    notes: list[str] = []
    images_may_be_passed_on: bool = False


class Evaluated(Part):
    """The networks that were trained on the distilled set of one iteration: accuracies as fractions."""

    iteration: Count
    test: Annotated[list[Fraction], Field(min_length=1)]
    validation: list[Fraction] = []
    diverged: Count = 0

    @model_validator(mode="after")
    def _counts(self) -> Self:
        _agree(len(self.validation) in (0, len(self.test)), "validation has not as many accuracies as test")
        _agree(self.diverged <= len(self.test), f"diverged is {self.diverged} of {len(self.test)} networks")
        return self


class EvaluationRecord(Evaluated):
    """The record of an evaluation that goes on: networks trained so far, which may be none, and how long they took."""

    test: list[Fraction]
    seconds: Seconds = 0.0


class Accuracy(Part):
    """Accuracies of the networks of one distilled set, as fractions, with their mean and population deviation."""

    mean: Fraction
    std: Fraction
    values: Annotated[list[Fraction], Field(min_length=1)]
    iteration: Count | None

    @model_validator(mode="after")
    def _of_its_values(self) -> Self:
        mean = statistics.fmean(self.values)
        std = math.sqrt(statistics.fmean((value - mean) ** 2 for value in self.values))  # pstdev takes ten times longer
        for name, value in (("mean", mean), ("std", std)):
            stored = getattr(self, name)
            told = f"{name} is {stored}, that of its values is {value:.6g}"
            _agree(math.isclose(stored, value, rel_tol=0, abs_tol=_ROUNDING), told)
        return self


class Accuracies(Part):
    """The accuracy by each rule of choosing the set."""

    best_on_validation: Accuracy | None
    best_on_test: Accuracy | None
    last: Accuracy


class Labels(Part):
    """The labels of an evaluation that are not the set's own."""

    regime: Literal["hard", "teacher"]
    expert: Count = _ABSENT
    epochs: Positive = _ABSENT
    experts: Text = ""
    temperature: Annotated[float, Field(gt=0)] = _ABSENT
    loss: Text = ""

    @model_validator(mode="after")
    def _of_a_teacher(self) -> Self:
        whole = self.regime != "teacher" or {"epochs", "temperature"} <= self.model_fields_set
        _agree(whole, "labels of a teacher need epochs, temperature")
        return self


class EvaluateRow(OfCell):
    """The row of an evaluation."""

    condense_key: Annotated[str, Field(max_length=240, pattern=r"^[^/\\\x00]*$")]
    evaluator: Name
    recipe: Text
    settings: Values
    networks: Positive
    diverged_networks: Count
    evaluate_seconds: Seconds
    dataset_fingerprint: Text
    evaluated: Annotated[list[Evaluated], Field(min_length=1)]
    accuracy: Accuracies
    labels: Labels = _ABSENT
    teacher_test: Fraction = _ABSENT
    evaluator_version: Count = 1
    evaluation_seed: int = 0
    test_images: Count = 0
    validation_images: Count = 0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        steps = [e.iteration for e in self.evaluated]
        _agree(sorted(set(steps)) == steps, f"evaluated has the iterations {steps}, which do not ascend")
        trained = sum(len(e.test) for e in self.evaluated)
        _agree(self.diverged_networks <= trained, f"diverged_networks is {self.diverged_networks} of {trained}")
        _same(self.networks, len(self.evaluated[-1].test), "networks", "networks of the last set")
        _same(self.accuracy.last.values, self.evaluated[-1].test, "accuracy.last.values", "the last set's accuracies")
        for name in ("last", "best_on_validation", "best_on_test"):
            self._is_of_a_set(name, getattr(self.accuracy, name))
        return self

    def _is_of_a_set(self, name: str, accuracy: Accuracy | None) -> None:
        """Check that an accuracy that names its iteration has the values of the set of that iteration."""
        if accuracy is None or accuracy.iteration is None:
            return
        tests = {e.iteration: e.test for e in self.evaluated}
        _agree(accuracy.iteration in tests, f"accuracy.{name}.iteration is {accuracy.iteration}, which was not tested")
        test = tests[accuracy.iteration]
        _same(accuracy.values, test, f"accuracy.{name}.values", f"the accuracies at iteration {accuracy.iteration}")


class FailedRow(OfCell):
    """The row of a cell that failed."""

    key: Name
    status: Text
    reason: Text
    evaluations: list[Name] = []
    attempts: Count = 0


class TrialRow(Part):
    """The row of a trial of a search: what it tried, and the accuracies on held-out training images, as fractions."""

    key: Name
    search: Name
    base: Name
    number: Count
    budget: Positive
    batch: Positive
    space: Values
    values: Values
    status: Text
    validation: list[Fraction]
    chance: Fraction
    method: Name
    dataset: Text
    train_fingerprint: Text
    ipc: Positive | None
    preset: Text
    protocol: Text
    seed: int
    evaluator: Name
    networks: Positive
    seconds: Seconds
    command: Text
    hardware: Text
    environment: Environment
    reason: Text = ""
    same_as: Count = _ABSENT

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _agree((self.status == "ok") == bool(self.validation), f"a trial that is {self.status} has wrong accuracies")
        _same(len(self.validation) or self.networks, self.networks, "networks", "the accuracies")
        _agree(self.values.keys() == self.space.keys(), "values and space have different settings")
        return self


def _agree(holds: bool, told: str) -> None:
    if not holds:
        raise ValueError(told)


def _same(stored: Any, found: Any, name: str, other: str) -> None:
    """Check that two numbers or two lists of numbers are equal to rounding."""
    pairs = zip(stored, found, strict=False) if isinstance(stored, list) else [(stored, found)]
    lengths = not isinstance(stored, list) or len(stored) == len(found)
    equal = lengths and all(math.isclose(a, b, rel_tol=0, abs_tol=_ROUNDING) for a, b in pairs)
    _agree(equal, f"{name} contradicts {other}")


# ---- files of a cell and of a results folder -------------------------------------------------------------------------


class Execution(Part):
    """``execution.json``: how a cell was begun, with the execution settings of its method."""

    device: Text
    threads: Positive
    backend: Text = "serial"
    logs: list[str] = []
    compile: Literal["on", "off"] = "off"
    settings: Values = {}
    memory_facts: dict[str, int] = {}


class Resolved(Part):
    """The resolved settings of a cell. Those of a method and of evaluators depend on their plugins."""

    command: Text
    method: Text
    dataset: Text
    ipc: Positive
    seed: int
    preset: Text
    protocol: Text
    settings: Values
    data: Values
    network: Values
    experts: Values
    evaluation: Values
    evaluators: dict[str, Values]
    changed: list[str]
    condense_protocol: Text
    source: Text


class Config(Resolved):
    """``config.json``: the resolved settings of a cell, what it is, and what was decided for its images."""

    key: Name
    identity: Values
    images: Values = {}


class JobFile(Part):
    """A job for a worker."""

    name: Name
    cell: Name
    key: Name
    evaluations: list[Name]
    out: Text
    data_dir: Text | None
    device: Text
    threads: Positive
    backend: Text
    logs: list[str]
    compile: Text
    force: bool
    timeout_s: Annotated[float, Field(ge=0)] | None
    config: Resolved
    facts: Values
    memory_facts: dict[str, int]
    energy: bool = False
    trials_of: Text | None = None


class ImportedIdentity(Part):
    """What imported experts were trained on."""

    data: Values
    network: Values
    imported: Any


class Imported(Part):
    """``imported.json``: the index of imported experts."""

    key: Name
    name: Text
    epochs: Annotated[list[Count], Field(min_length=1)]
    files: list[Values]
    identity: ImportedIdentity


class Finished(Part):
    """``finished.json``: the files and folders of a new result that takes the place of an old one."""

    entries: list[Name]


class MeasuredTimes(Part):
    """``measured.json``: seconds by what was measured, on one day."""

    day: Count
    seconds: dict[str, Seconds]


class Fit(Part):
    """``fit-*.json``: which whitening a data set has."""

    preprocessing: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


_KINDS: Mapping[str, tuple[type[Part], str]] = {
    "experts row": (ExpertsRow, "a row"),
    "condense row": (CondenseRow, "a row"),
    "evaluate row": (EvaluateRow, "a row"),
    "failed row": (FailedRow, "a row"),
    "trial row": (TrialRow, "a row"),
    "execution": (Execution, "a record of an execution"),
    "config": (Config, "the configuration of a cell"),
    "job": (JobFile, "a job"),
    "evaluation record": (EvaluationRecord, "the record of an evaluation"),
    "imported experts": (Imported, "an index of imported experts"),
    "finished": (Finished, "a list of a new result"),
    "measured times": (MeasuredTimes, "a list of measured times"),
    "fit": (Fit, "a preprocessing fit"),
}
KINDS: Sequence[str] = tuple(_KINDS)


def title(kind: str | type) -> str:
    """Return what messages call a file of a kind: ``a row``."""
    return _KINDS[kind][1] if isinstance(kind, str) else f"a file of {kind.__name__}"


def fault(kind: str | type, text: str | bytes) -> str | None:
    """Return what is wrong with the JSON ``text`` of a file, in words that name the field; ``None`` if nothing is.

    ``kind``: one of :data:`KINDS`, or a dataclass whose fields' types the content must have. The words are empty where
    the content as a whole is of another type.
    """
    model = _KINDS[kind][0] if isinstance(kind, str) else kind
    try:
        _adapter(model).validate_json(text, strict=True)  # JSON, so that a list can stand for a tuple
    except ValidationError as error:
        return _words(error, own=model.__annotations__)
    return None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _words(error: ValidationError, own: Mapping[str, Any]) -> str:
    """Return the first of several faults; one in a field of the kind's ``own`` before one in a field that all share."""
    order = {name: place for place, name in enumerate(own)}
    first = min(
        error.errors(include_url=False), key=lambda e: order.get(str(e["loc"][0]), len(order)) if e["loc"] else 0
    )
    if first["type"] == "missing":
        return f"it has no {'.'.join(part for part in first['loc'] if isinstance(part, str))}"
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {_lower(message)}" if where else ("" if first["type"].endswith("_type") else message)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
