"""The contract of a method, checked on a tiny problem made on the spot: ``dcbench check-method NAME``.

The same checks run over every registered method in this project's tests.
"""

import dataclasses
import inspect
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla import registry
from dcbench_tesla.config import resolve
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing, fit_standardise
from dcbench_tesla.interface import Condenser, DistilledSet, Problem, Settings, Task
from dcbench_tesla.networks import ConvNet, flatten_parameters, seeded

_CLASSES, _PER_CLASS, _IPC, _ITERATIONS = 3, 12, 2, 3


@dataclass(frozen=True)
class Outcome:
    """One checked point of the contract; ``problem`` is empty where it is kept."""

    name: str
    problem: str = ""


class _Experts:
    """Two small experts that walk away from their initialisation."""

    def __init__(self, build: Callable[[], torch.nn.Module]) -> None:
        self._build = build

    def __len__(self) -> int:
        return 2

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        with seeded(expert):
            return flatten_parameters(self._build()) * (1 + 0.05 * epoch)


def tiny_problem(request: bool, seed: int = 0) -> Problem:
    """Return a problem of three classes of 8 x 8 noise, with experts where ``request`` says so."""
    rng = torch.Generator().manual_seed(1)
    count = _CLASSES * _PER_CLASS
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)
    labels = torch.arange(_CLASSES).repeat(_PER_CLASS)
    names = tuple("abc"[:_CLASSES])
    arrays: dict[str, Any] = {"x_train": pixels.numpy(), "y_train": labels.numpy()}
    arrays |= {"x_test": pixels.numpy(), "y_test": labels.numpy()}
    dataset = Dataset(name="noise", class_names=names, **arrays)
    device, preprocessing = torch.device("cpu"), fit_standardise(dataset, dataset.x_train)

    def build() -> ConvNet:
        return ConvNet(1, _CLASSES, 8, width=4)

    return Problem(
        task=_task(dataset, preprocessing),
        train=LabelledImages(
            pixels, labels, classes=_CLASSES, max_value=255, preprocessing=preprocessing, device=device
        ),
        ipc=_IPC,
        seed=seed,
        device=device,
        build_network=build,
        experts=_Experts(build) if request else None,
    )


def _task(dataset: Dataset, preprocessing: Preprocessing) -> Task:
    return Task(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        channels=1,
        side=8,
        class_names=dataset.class_names,
        preprocessing=preprocessing,
        augmentation=Augmentation.for_dataset(flippable=True),
    )


class _Suite:
    """The checks; each method named ``check_...`` is one point, and its first docstring line the point's name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.method = registry.load_method(name)

    @cached_property
    def settings(self) -> Any:
        """The method's settings under preset ``smoke``; resolved by the checks, which report what breaks here."""
        return resolve(self.name, "digits", _IPC, preset="smoke").settings

    def _start(self, seed: int = 0) -> Condenser:
        wants = self.method.expert_request(self.settings) is not None
        condenser = self.method(self.settings)
        condenser.setup(tiny_problem(wants, seed))
        return condenser

    def _run(self, condenser: Condenser, first: int = 0, last: int = _ITERATIONS) -> DistilledSet:
        for iteration in range(first, min(last, condenser.iterations)):
            condenser.iterate(iteration)
        return condenser.distilled()

    def check_class(self) -> None:
        """it is a documented Condenser with a version"""
        derives = inspect.isclass(self.method) and issubclass(self.method, Condenser)
        _require(derives, "it does not derive from Condenser")
        _require(bool(self.method.__dict__.get("__doc__")), "the class has no docstring")
        _require(isinstance(self.method.version, int) and self.method.version >= 1, "version must be an integer >= 1")

    def check_settings(self) -> None:
        """its settings are a frozen, keyword-only dataclass of plain values"""
        kind = self.method.Settings
        derives = inspect.isclass(kind) and issubclass(kind, Settings) and "__dataclass_params__" in kind.__dict__
        _require(derives, "Settings is no dataclass that derives from dcbench's Settings")
        _require(kind.__dataclass_params__.frozen, "Settings is not frozen")  # type: ignore[attr-defined]
        for f in dataclasses.fields(kind):
            _require(f.kw_only is True, f"{f.name} is not keyword-only")
            _require(isinstance(f.default, (bool, int, float, str)), f"{f.name} has no plain default value")

    def check_distilled(self) -> None:
        """its distilled set is complete and of the right size, before the first iteration and later"""
        condenser = self._start()
        for distilled in (condenser.distilled(), self._run(condenser)):
            size = _CLASSES * (_IPC if self.method.uses_ipc else _PER_CLASS)
            _require(len(distilled) == size, f"{len(distilled)} images instead of {size}")
            _require(distilled.images.shape[1:] == (1, 8, 8), f"images of shape {tuple(distilled.images.shape)}")
            _require(distilled.class_names == ("a", "b", "c"), "the class names are not the problem's")
            _require(distilled.lr is None or 0 < distilled.lr < math.inf, f"its learning rate is {distilled.lr}")

    def check_records(self) -> None:
        """every iteration reports a finite loss and plain numbers"""
        condenser = self._start()
        for iteration in range(min(_ITERATIONS, condenser.iterations)):
            record = condenser.iterate(iteration)
            _require(math.isfinite(record.loss), f"the loss of iteration {iteration} is {record.loss}")
            wrong = [k for k, v in record.metrics.items() if not isinstance(v, (int, float))]
            _require(not wrong, f"metrics that are no plain numbers: {', '.join(wrong)}")

    def check_repeatable(self) -> None:
        """the same seed gives the same bytes, whatever the global generator's state"""
        torch.manual_seed(1)
        first = self._run(self._start())
        torch.manual_seed(2)
        _require_equal(first, self._run(self._start()), "two runs with one seed differ")

    def check_resumable(self) -> None:
        """going on from its state gives the bytes of an uninterrupted run"""
        whole = self._run(self._start())
        interrupted = self._start()
        self._run(interrupted, last=1)
        state = {name: value.clone() for name, value in interrupted.state_dict().items()}
        resumed = self._start()
        resumed.load_state_dict(state)
        _require_equal(whole, self._run(resumed, first=1), "a resumed run differs from an uninterrupted one")

    def check_snapshot(self) -> None:
        """a distilled set it handed over does not change when it goes on"""
        condenser = self._start()
        before = condenser.distilled()
        images, labels = before.images.clone(), before.labels.clone()
        self._run(condenser)
        same = torch.equal(before.images, images) and torch.equal(before.labels, labels)
        _require(same, "later iterations wrote into a set that was handed over")

    def check_file(self) -> None:
        """its distilled set survives being saved and loaded"""
        distilled = self._run(self._start())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "set.safetensors"
            distilled.save(path)
            _require_equal(distilled, DistilledSet.load(path), "the loaded set differs from the saved one")

    def check_probe(self) -> None:
        """its probe for estimates gives settings of its own kind that run"""
        settings, factor = self.method.probe(self.settings)
        _require(isinstance(settings, self.method.Settings), "probe returns settings of another kind")
        _require(factor > 0, f"probe's factor is {factor}")
        condenser = self.method(settings)
        condenser.setup(tiny_problem(self.method.expert_request(settings) is not None))
        for _ in range(2 if condenser.iterations else 0):  # an estimate warms up on the iteration it then times
            condenser.iterate(0)

    def check_notes(self) -> None:
        """its notes are sentences, and its settings without effect are settings"""
        condenser = self._start()
        self._run(condenser)
        _require(all(isinstance(note, str) for note in condenser.notes()), "notes must be text")
        fields = {f.name for f in dataclasses.fields(self.method.Settings)}
        strangers = set(self.settings.inert()) - fields
        _require(not strangers, f"inert() names no settings of the method: {', '.join(strangers)}")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise AssertionError(problem)


def _require_equal(a: DistilledSet, b: DistilledSet, problem: str) -> None:
    same = torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.lr == b.lr
    _require(same and a.class_names == b.class_names and a.augmentation == b.augmentation, problem)


def check_method(name: str) -> Iterator[Outcome]:
    """Check the method ``name`` against every point of the contract, yielding one outcome each.

    Raises:
        UsageError: there is no such method.
        DcbenchError: it cannot be imported.
    """
    suite = _Suite(name)
    for attribute in sorted(name for name in vars(_Suite) if name.startswith("check_")):
        check = getattr(suite, attribute)
        point = (inspect.getdoc(check) or attribute).partition("\n")[0]
        try:
            check()
        except Exception as error:  # a foreign method may raise anything: that is the finding
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            yield Outcome(point, text)
        else:
            yield Outcome(point)
