"""The contracts of methods and evaluators as checks, run on tiny problems made in memory.

``dcbench check-method NAME`` and ``dcbench check-evaluator NAME`` run them for the author of a plugin. The tests of
this project run them for every registered method and evaluator.
"""

import dataclasses
import inspect
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from dcbench_tesla import registry
from dcbench_tesla.compute.networks import ConvNet, flatten_parameters, seeded
from dcbench_tesla.config import resolve
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing, fit_standardise
from dcbench_tesla.interface import Condenser, DistilledSet, Evaluator, Problem, Settings, Task, Teacher
from dcbench_tesla.presets.recipes import authors_recipe
from dcbench_tesla.profilers import LiveBytes

_CLASSES, _PER_CLASS, _IPC, _ITERATIONS = 3, 12, 2, 3


@dataclass(frozen=True)
class Outcome:
    """The result of one check: the point of the contract, and the ``problem``, empty if the plugin fulfils it."""

    name: str
    problem: str = ""


class _Experts:
    """Two small expert trajectories: random initialisations whose parameters grow with every epoch."""

    def __init__(self, build: Callable[[], torch.nn.Module]) -> None:
        self._build = build

    def __len__(self) -> int:
        return 2

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        with seeded(expert):
            return flatten_parameters(self._build()) * (1 + 0.05 * epoch)


def tiny_problem(request: bool, seed: int = 0) -> Problem:
    """Return a problem of three classes of random 8 x 8 images, with experts if ``request`` is true."""
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
    """The checks of a method. Every ``check_...`` is one point of the contract, named by its first docstring line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.method = registry.load_method(name)

    @cached_property
    def settings(self) -> Any:
        """The method's settings under preset ``smoke``; resolved inside the checks, so that failures are reported."""
        return resolve(self.name, "digits", _IPC, preset="smoke").settings

    def _start(self, seed: int = 0, settings: Any = None) -> Condenser:
        settings = settings or self.settings
        wants = self.method.expert_request(settings) is not None
        condenser = self.method(settings)
        condenser.setup(tiny_problem(wants, seed))
        return condenser

    def _run(self, condenser: Condenser, first: int = 0, last: int = _ITERATIONS) -> DistilledSet:
        for iteration in range(first, min(last, condenser.iterations)):
            condenser.iterate(iteration)
        return condenser.distilled()

    def check_class(self) -> None:
        """it is a documented Condenser with a version"""
        _require_class(self.method, Condenser)

    def check_settings(self) -> None:
        """its settings are a frozen, keyword-only dataclass of plain values"""
        _require_settings(self.method.Settings)

    def check_distilled(self) -> None:
        """its distilled set is complete and of the right size, before the first iteration and later"""
        condenser = self._start()
        for distilled in (condenser.distilled(), self._run(condenser)):
            size = _CLASSES * (_IPC if self.method.uses_ipc else _PER_CLASS)
            _require(len(distilled) == size, f"{len(distilled)} images instead of {size}")
            _require(distilled.images.shape[1:] == (1, 8, 8), f"images of shape {tuple(distilled.images.shape)}")
            _require(distilled.class_names == ("a", "b", "c"), "the class names are not the problem's")
            _require(distilled.lr is None or 0 < distilled.lr < math.inf, f"its learning rate is {distilled.lr}")

    def check_evaluation_recipe(self) -> None:
        """the recipe of its authors, if it names one, is known, and estimates can follow it"""
        name = self.method.evaluation_recipe
        if name:
            recipe, real = authors_recipe(name), replace(tiny_sets()["real images (uint8)"], evaluation_recipe=name)
            stand_in = self.method.stand_in(self.settings, real)
            _require(recipe.schedule != "learned" or stand_in.steps is not None, "its stand_in has no learned steps")

    def check_records(self) -> None:
        """every iteration reports a finite loss and plain numbers"""
        condenser = self._start()
        for iteration in range(min(_ITERATIONS, condenser.iterations)):
            record = condenser.iterate(iteration)
            _require(math.isfinite(record.loss), f"the loss of iteration {iteration} is {record.loss}")
            wrong = [k for k, v in record.metrics.items() if not isinstance(v, (int, float))]
            _require(not wrong, f"metrics that are not plain numbers: {', '.join(wrong)}")

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
        condenser = self._start(settings=settings)
        for _ in range(2 if condenser.iterations else 0):  # an estimate warms up on the iteration it then times
            condenser.iterate(0)

    def check_memory_probe(self) -> None:
        """its probe for predicting memory gives settings of its own kind, with the same peak"""
        settings = self.method.memory_probe(self.settings, _IPC)
        _require(isinstance(settings, self.method.Settings), "memory_probe returns settings of another kind")
        if settings != self.settings:
            whole, probed = _peak(self._start()), _peak(self._start(settings=settings))
            _require(abs(probed - whole) <= 0.05 * whole, f"its peak is {probed} bytes in place of {whole}")

    def check_notes(self) -> None:
        """its notes are sentences, and its settings without effect are settings"""
        condenser = self._start()
        self._run(condenser)
        _require(all(isinstance(note, str) for note in condenser.notes()), "notes must be text")
        fields = {f.name for f in dataclasses.fields(self.method.Settings)}
        strangers = set(self.settings.inert()) - fields
        _require(not strangers, f"inert() names no settings of the method: {', '.join(strangers)}")


def _peak(condenser: Condenser) -> int:
    """Return the peak memory of the first iteration in bytes, the condenser's state included."""
    with LiveBytes(condenser.state_dict().values()) as meter:
        condenser.iterate(0)
    return meter.peak_bytes("cpu")


_EVALUATED = 3  # the seed of the networks that the checks look at


def tiny_sets() -> dict[str, DistilledSet]:
    """Return four distilled sets of six images and three classes, by description.

    They differ in image size, colour, hard or soft labels and a learned rate; one holds real uint8 images.
    """
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(_CLASSES).repeat_interleave(_IPC)

    def made(channels: int, side: int) -> DistilledSet:
        statistics = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
        return DistilledSet(
            images=torch.randn(len(labels), channels, side, side, generator=rng),
            labels=labels,
            class_names=("a", "b", "c"),
            preprocessing=Preprocessing("standardise", *statistics),
            augmentation=Augmentation.for_dataset(flippable=True).strategy,
        )

    grey, colour, soft, real = made(1, 8), made(3, 32), made(1, 8), made(1, 8)
    probabilities = torch.randn(len(labels), _CLASSES, generator=rng).softmax(1)
    pixels = torch.randint(0, 256, real.images.shape, generator=rng, dtype=torch.uint8)
    return {
        "1 x 8 x 8": grey,
        "3 x 32 x 32": colour,
        "soft labels and a learned rate": replace(soft, labels=probabilities, lr=0.01),
        "real images (uint8)": replace(real, images=pixels),
    }


class _EvaluatorSuite:
    """The checks of an evaluator, with the conventions of :class:`_Suite`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.evaluator = registry.load_evaluator(name)
        self.sets = tiny_sets()

    @cached_property
    def settings(self) -> Any:
        """The evaluator's settings under preset ``smoke``."""
        return resolve("random", "digits", _IPC, preset="smoke", evaluators=[self.name]).evaluators[self.name]

    @cached_property
    def short(self) -> Evaluator:
        """The evaluator with the settings of its probe, which take few steps."""
        return self.evaluator(self.evaluator.probe(self.settings))

    def _train(self, distilled: DistilledSet, *seeds: int) -> list[nn.Module]:
        return self.short.train(distilled, seeds, torch.device("cpu"))

    @cached_property
    def trained(self) -> dict[str, nn.Module]:
        """One trained network for each of the distilled sets."""
        return {name: self._train(distilled, _EVALUATED)[0] for name, distilled in self.sets.items()}

    def check_class(self) -> None:
        """it is a documented Evaluator with a version"""
        _require_class(self.evaluator, Evaluator)

    def check_settings(self) -> None:
        """its settings are a frozen, keyword-only dataclass of plain values"""
        _require_settings(self.evaluator.Settings)

    def check_recipe(self) -> None:
        """its recipe has a name"""
        recipe = self.evaluator(self.settings).recipe
        _require(isinstance(recipe, str) and bool(recipe.strip()), f"the recipe is {recipe!r}")

    def check_cost(self) -> None:
        """its cost is a positive number of steps"""
        for distilled in self.sets.values():
            cost = self.evaluator(self.settings).cost(distilled)
            _require(type(cost) is int and cost > 0, f"the cost is {cost!r}")

    def check_probe(self) -> None:
        """its probe for estimates gives settings of its own kind that take no more steps"""
        settings = self.evaluator.probe(self.settings)
        _require(isinstance(settings, self.evaluator.Settings), "probe returns settings of another kind")
        (distilled, *_) = self.sets.values()
        short, whole = self.evaluator(settings).cost(distilled), self.evaluator(self.settings).cost(distilled)
        _require(short <= whole, f"the probe takes {short} steps, more than the {whole} it stands for")

    def check_without_effect(self) -> None:
        """its settings without effect are settings"""
        fields = {f.name for f in dataclasses.fields(self.evaluator.Settings)}
        for learned_lr in (True, False):
            strangers = set(self.evaluator.without_effect(self.settings, learned_lr=learned_lr)) - fields
            _require(not strangers, f"without_effect() names no settings of it: {', '.join(strangers)}")

    def check_networks(self) -> None:
        """it returns a network a seed, in evaluation mode, on the device"""
        (distilled, *_) = self.sets.values()
        networks = self._train(distilled, 1, 2)
        _require(len(networks) == 2, f"{len(networks)} networks for 2 seeds")
        for network in networks:
            _require(isinstance(network, nn.Module), f"a {type(network).__name__} is not a network")
            _require(not any(m.training for m in network.modules()), "a network is not in evaluation mode")
            devices = {t.device.type for t in (*network.parameters(), *network.buffers())}
            _require(devices <= {"cpu"}, f"a network for the CPU is on {', '.join(sorted(devices))}")

    def check_teacher(self) -> None:
        """by a teacher, if it learns from one, its networks do not depend on the labels of the set"""
        if not self.evaluator.learns_from_teacher:
            return
        made = self.sets["1 x 8 x 8"]
        with seeded(_EVALUATED):
            taught = self.short.with_teacher(Teacher(network=ConvNet(1, _CLASSES, 8, width=4).eval()))
        _require(self.short.teacher is None, "with_teacher changes the evaluator itself")
        others = replace(made, labels=made.labels.flip(0))
        networks = [taught.train(labelled, [_EVALUATED], torch.device("cpu"))[0] for labelled in (made, others)]
        inputs = made.inputs()
        with torch.no_grad():
            (first, second), own = (n(inputs) for n in networks), self.trained["1 x 8 x 8"](inputs)
        _require(torch.equal(first, second), "the labels of the set change a network that a teacher labels batches for")
        _require(not torch.equal(first, own), "a teacher changes nothing")

    def check_logits(self) -> None:
        """its logits are (N, K), finite and different between images, whatever the set"""
        for name, distilled in self.sets.items():
            logits = _logits(self.trained[name], distilled.inputs())
            found = tuple(logits.shape)
            _require(found == (len(distilled), _CLASSES), f"{name}: logits of shape {found}")
            _require(bool(torch.isfinite(logits).all()), f"{name}: logits that are not finite")
            differ = float((logits - logits[0]).abs().max()) > 1e-6 * float(logits.abs().max())
            _require(differ, f"{name}: the same logits for all images")

    def check_batches(self) -> None:
        """an image's logits do not depend on the other images of its batch"""
        for name, distilled in self.sets.items():
            network, images = self.trained[name], distilled.inputs()
            together, alone = _logits(network, images), torch.cat([_logits(network, image[None]) for image in images])
            far = float((together - alone).abs().max())
            _require(far <= 1e-3 * max(1.0, float(together.abs().max())), f"{name}: logits change by {far:.3g}")

    def check_repeatable(self) -> None:
        """the same seed gives the same network, whatever was drawn or trained before; another seed another, if used"""
        for name, distilled in self.sets.items():
            images = distilled.inputs()
            first = _logits(self.trained[name], images)
            torch.manual_seed(1)
            other, again = self._train(distilled, _EVALUATED + 1, _EVALUATED)
            _require(torch.equal(first, _logits(again, images)), f"{name}: two networks of one seed differ")
            same = torch.equal(first, _logits(other, images))
            if self.evaluator.uses_seed(self.short.settings):
                _require(not same, f"{name}: networks of two seeds are the same")
            else:
                _require(same, f"{name}: networks of two seeds differ, but uses_seed is false")

    def check_innocent(self) -> None:
        """it leaves the global random numbers and the distilled set as they were"""
        for name, distilled in self.sets.items():
            images, labels = distilled.images.clone(), distilled.labels.clone()
            torch.manual_seed(1)  # otherwise setting the same seed again would go unnoticed
            np.random.seed(1)
            random.seed(1)
            before = _global_generators()
            self._train(distilled, _EVALUATED)
            moved = [generator for generator, state in _global_generators().items() if state != before[generator]]
            _require(not moved, f"{name}: it draws from the global generator of {', '.join(moved)}")
            same = torch.equal(distilled.images, images) and torch.equal(distilled.labels, labels)
            _require(same, f"{name}: it wrote into the distilled set")


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = network(images)
    return logits


def _global_generators() -> dict[str, bytes]:
    """Return the states of the global random generators, by library."""
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state(legacy=False)).encode(),
        "random": repr(random.getstate()).encode(),
    }


def _require_class(plugin: type, base: type) -> None:
    derives = inspect.isclass(plugin) and issubclass(plugin, base)
    _require(derives, f"it does not derive from {base.__name__}")
    _require(bool(plugin.__dict__.get("__doc__")), "the class has no docstring")
    version: Any = plugin.version  # type: ignore[attr-defined]
    _require(isinstance(version, int) and version >= 1, "version must be an integer >= 1")


def _require_settings(kind: Any) -> None:
    derives = inspect.isclass(kind) and issubclass(kind, Settings) and "__dataclass_params__" in kind.__dict__
    _require(derives, "Settings is not a dataclass that derives from dcbench's Settings")
    _require(kind.__dataclass_params__.frozen, "Settings is not frozen")
    types = get_type_hints(kind)
    for f in dataclasses.fields(kind):
        _require(f.kw_only is True, f"{f.name} is not keyword-only")
        _require(isinstance(f.default, (bool, int, float, str)), f"{f.name} has no plain default value")
        _require(
            types[f.name] in (bool, int, float, str), f"{f.name} is of type {types[f.name]}: --set cannot reach it"
        )


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise AssertionError(problem)


def _require_equal(a: DistilledSet, b: DistilledSet, problem: str) -> None:
    (tensors, facts), (others, other_facts) = a.state(), b.state()
    same = tensors.keys() == others.keys() and all(torch.equal(t, others[name]) for name, t in tensors.items())
    _require(same and facts == other_facts, problem)


def check_method(name: str) -> Iterator[Outcome]:
    """Check the method ``name`` against every point of the contract; yield one outcome for each.

    Raises:
        UsageError: there is no such method.
        DcbenchError: the method cannot be imported.
    """
    return _outcomes(_Suite(name))


def check_evaluator(name: str) -> Iterator[Outcome]:
    """Check the evaluator ``name`` against every point of the contract; yield one outcome for each.

    Raises:
        UsageError: there is no such evaluator.
        DcbenchError: the evaluator cannot be imported.
    """
    return _outcomes(_EvaluatorSuite(name))


def _outcomes(suite: object) -> Iterator[Outcome]:
    for attribute in sorted(name for name in vars(type(suite)) if name.startswith("check_")):
        check = getattr(suite, attribute)
        point = (inspect.getdoc(check) or attribute).partition("\n")[0]
        try:
            check()
        except Exception as error:  # a foreign plugin may raise anything: that is the finding
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            yield Outcome(point, text)
        else:
            yield Outcome(point)
