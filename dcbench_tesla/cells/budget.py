"""Memory budgets: predicts whether a cell fits before it runs, makes it fit, and uses memory that is left.

A condensation over the budget is made smaller where that changes its result by rounding only: first by micro-batches,
then by where it keeps the students' weights. What the user set himself stays. Memory that is left then holds graphs.

A predicted peak covers the tensors of a stage, and the preprocessed training images if they are kept on the run's
device. It comes from the meter ``predicted``, which computes nothing. Memory that CUDA and its libraries take is not
included, and evaluations are not predicted.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from dcbench_tesla import registry
from dcbench_tesla.cells.cell import TEACHER, Cell
from dcbench_tesla.cells.identity import hashed_settings
from dcbench_tesla.cells.workload import Shape, expert_workload, workload
from dcbench_tesla.compute.networks import has_batch_norm
from dcbench_tesla.config import ExpertSettings, NetworkSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.experts.teacher import teacher_training
from dcbench_tesla.profilers.memory import MemoryMeter, Prepare
from dcbench_tesla.records.progress import size

_EXPERTS, _TEACHER, _CONDENSATION = "training experts", "training the teacher", "condensation"
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{infix}b": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}
_LOWERED = ("window", "steps", "batch_size", "class_chunk", "keep_graphs")  # settings of methods that increase memory
_INTERPOLATIONS = 4


def parse_size(text: str) -> int:
    """Return the bytes of a memory size such as ``40GiB``, ``1.5 GB``, ``512MiB`` or ``1000000``.

    Raises:
        UsageError: the text is not a memory size, or is less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    found = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if found < 1:
        raise UsageError(
            f"{text!r} is not a memory size: give a number and KiB, MiB, GiB, TiB (of 1024) or KB, MB, GB, TB (of "
            "1000), for instance 40GiB, or plain bytes."
        )
    return found


@dataclass(frozen=True)
class Remedy:
    """A change that makes a stage fit: the option to add to the command line, and the predicted peak with it."""

    option: str
    peak_bytes: int


@dataclass(frozen=True)
class Need:
    """The predicted peak of a stage, and changes that would make it fit if it is over the budget."""

    stage: str
    peak_bytes: int
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True)
class Kept:
    """The number of matching steps that keep their graphs from pass 1 to pass 2, of ``steps`` in all, and the peak."""

    graphs: int
    steps: int
    peak_bytes: int


@dataclass(frozen=True)
class Fit:
    """The predicted memory of a cell's stages, compared with a budget.

    Args:
        budget_bytes: the budget.
        images_bytes: bytes of the training images, which are part of every peak.
        needs: one entry per predicted stage; empty if there is nothing to predict. The peak of a condensation is that
            with the settings ``chosen``.
        kept: the graphs to keep. ``None`` if the cell does not fit, the method cannot keep graphs, or the user chose
            their number.
        narrower: the setting that makes the network narrower; empty if the network has none.
        chosen: the execution settings of the method that make the condensation smaller, by name; empty if it fits
            without, or if nothing makes it fit.
    """

    budget_bytes: int
    images_bytes: int
    needs: tuple[Need, ...] = ()
    kept: Kept | None = None
    narrower: str = "network.width"
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether every stage fits the budget."""
        return not self._too_large

    @property
    def settings(self) -> Mapping[str, Any]:
        """The execution settings of the method to run with, by name."""
        return {**self.chosen, **({"keep_graphs": self.kept.graphs} if self.kept else {})}

    @property
    def condensation_bytes(self) -> int | None:
        """The peak of the condensation, with the graphs that are kept; ``None`` if no condensation was predicted."""
        predicted = [need.peak_bytes for need in self.needs if need.stage == _CONDENSATION]
        return self.kept.peak_bytes if self.kept else next(iter(predicted), None)

    @property
    def _too_large(self) -> list[Need]:
        return [need for need in self.needs if need.peak_bytes > self.budget_bytes]

    def __str__(self) -> str:
        """Return one line: the largest peak and what was chosen; or why the cell does not fit, and what would."""
        if not self.fits:
            return " And ".join(map(self._refusal, self._too_large))
        if not self.needs:
            return "nothing to predict"
        most = max(self.needs, key=lambda need: need.peak_bytes)
        text = f"{size(most.peak_bytes)} of {size(self.budget_bytes)} (predicted, {most.stage})"
        if self.chosen:
            text += f", with {_told(self.chosen)} to fit"
        if self.kept is None:
            return text
        kept = self.kept
        return f"{text}; keeps the graphs of {kept.graphs} of {kept.steps} steps: {size(kept.peak_bytes)}"

    def _refusal(self, need: Need) -> str:
        images = f", {size(self.images_bytes)} of it the training images" if self.images_bytes else ""
        text = f"{size(need.peak_bytes)} are needed for {need.stage} (predicted{images}), "
        text += f"but the memory budget is {size(self.budget_bytes)}."
        if not need.remedies:
            lower = " or ".join(filter(None, [self.narrower, "data.train_images" if images else ""]))
            return f"{text} Neither fewer steps nor smaller batches suffice{lower and f': lower {lower}'}."
        return f"{text} What fits: {', '.join(f'{r.option} ({size(r.peak_bytes)})' for r in need.remedies)}."


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def predicted_peak(cell: Cell, meter: MemoryMeter, **changes: Any) -> int:
    """Return the predicted peak of one iteration of a cell's condensation, in bytes.

    Args:
        cell: the cell.
        meter: the meter ``predicted``. Predictions are faster if they share one meter.
        changes: settings of the method to change, by name.

    Raises:
        UsageError: the method's memory depends on values in a way that cannot be predicted.
    """
    return _peak(cell, meter, cell.config.method, dataclasses.replace(cell.config.settings, **changes))


def _peak(cell: Cell, meter: MemoryMeter, method: str, settings: Any) -> int:
    what = _What(
        method,
        settings,
        _shape(cell),
        cell.config.ipc,
        cell.config.network,
        cell.materials.augmentation,
        cell.materials.smallest_class,
    )
    known = _predicted.setdefault(meter, {})
    if what not in known:
        known[what] = meter.measure(what.prepare(meter.device)).peak_bytes
    return known[what] + cell.materials.prepared_bytes


class _What(NamedTuple):
    """What the predicted peak of an iteration depends on."""

    method: str
    settings: Any
    shape: Shape
    ipc: int
    network: NetworkSettings
    augmentation: Augmentation
    per_class: int

    def prepare(self, device: torch.device) -> Prepare:
        return workload(
            self.method,
            self.shape,
            ipc=self.ipc,
            network=self.network,
            device=device,
            settings={f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)},
            augmentation=self.augmentation,
            per_class=self.per_class,
            shortened=True,
        )


# the peaks that a meter has predicted: fitting a cell asks for some of them again and again
_predicted: WeakKeyDictionary[MemoryMeter, dict[_What, int]] = WeakKeyDictionary()


def predicted_expert_peak(cell: Cell, meter: MemoryMeter, **changes: int) -> int:
    """Return the predicted peak of training a cell's experts, in bytes; ``changes`` are of their settings, by name."""
    settings = dataclasses.replace(cell.config.experts, **changes)  # type: ignore[arg-type]
    return _expert_peak(cell, meter, settings, cell.config.network)


def _expert_peak(cell: Cell, meter: MemoryMeter, settings: ExpertSettings, network: NetworkSettings) -> int:
    prepare = expert_workload(
        _shape(cell),
        settings,
        network=network,
        device=meter.device,
        augmentation=cell.materials.augmentation,
    )
    return meter.measure(prepare).peak_bytes + cell.materials.prepared_bytes


def _shape(cell: Cell) -> Shape:
    return Shape(cell.dataset.name, cell.dataset.channels, cell.dataset.side, cell.dataset.classes)


def fit(cell: Cell, budget_bytes: int, meter: MemoryMeter, stages: Collection[str] | None = None) -> Fit:
    """Predict whether a cell fits a budget, if need be made smaller; find how many graphs it can keep, or what fits.

    Every number in the result is predicted, none is interpolated.

    Args:
        cell: the cell.
        budget_bytes: the budget.
        meter: the meter ``predicted``.
        stages: the stages to predict; by default those that are pending.

    Raises:
        UsageError: the method's memory depends on values in a way that cannot be predicted.
    """
    stages = cell.pending() if stages is None else stages
    smaller = _smaller(cell, budget_bytes, meter) if _condenses(cell, stages) else {}
    cell = cell.planned(smaller, cell.memory_facts)
    found = Fit(
        budget_bytes,
        cell.materials.prepared_bytes,
        tuple(_needs(cell, budget_bytes, meter, stages)),
        narrower="network.width" if "width" in cell.config.network.options() else "",
    )
    if not found.fits or found.condensation_bytes is None:
        return found
    kept = _kept(cell, found.condensation_bytes, budget_bytes, meter)
    return dataclasses.replace(found, kept=kept, chosen=smaller)


def largest_peak(cell: Cell, meter: MemoryMeter, stages: Collection[str]) -> int | None:
    """Return the largest predicted peak of ``stages`` in bytes, or ``None`` if none of them can be predicted.

    Raises:
        UsageError: the method's memory depends on values in a way that cannot be predicted.
    """
    return max((need.peak_bytes for need in _needs(cell, sys.maxsize, meter, stages)), default=None)


def fitted(cell: Cell, budget_bytes: int, meter: MemoryMeter, stages: Collection[str] | None = None) -> Cell:
    """Return the cell with the settings for a budget: micro-batches, weights and kept graphs. Its key does not change.

    Raises:
        UsageError: the cell does not fit; the message says what would.
    """
    found = fit(cell, budget_bytes, meter, stages)
    if not found.fits:
        taken_up = ", ".join(f"{name}={value}" for name, value in cell.taken_up.items())
        begun = f" It was started with {taken_up}, which only --force changes." if taken_up else ""
        raise UsageError(f"{cell.config.method}: {found}{begun}")
    if not found.needs:
        return cell
    cell.say(f"{cell.name}: {found}")
    if found.condensation_bytes is None:
        return cell
    facts = {"memory_budget_bytes": budget_bytes, "predicted_peak_bytes": found.condensation_bytes}
    return cell.planned(found.settings, facts)


# ---- what makes a condensation smaller -------------------------------------------------------------------------------


def _smaller(cell: Cell, budget: int, meter: MemoryMeter) -> Mapping[str, Any]:
    """Return the first settings with which the condensation fits, in the order of what they cost.

    They are empty if it fits as it is. If nothing fits they are those of the smallest peak.
    """
    least: tuple[int, dict[str, Any]] | None = None
    for changes in _thrifty(cell, cell.config.settings, _left_open(cell)):
        peak = predicted_peak(cell, meter, **changes)
        if peak <= budget:
            return changes
        least = (peak, changes) if least is None or peak < least[0] else least
    assert least is not None, "one of them is the cell as it is"
    return least[1]


def _thrifty(cell: Cell, settings: Any, open_: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield changes of a method's settings that the user left open: nothing, smaller micro-batches, other weights.

    On a GPU the students' weights go to main memory. On a CPU they lie there already, and are computed again.
    """
    yield {}
    whole = has_batch_norm(cell.materials.network_skeleton) and not cell.identity.method.divides_batch_norm
    divisible = "micro_batch" in open_ and not whole
    pieces = list(_halved(settings.micro_batch or _batch(cell, settings))) if divisible else []
    yield from ({"micro_batch": piece} for piece in pieces)
    place = "restep" if cell.device.type == "cpu" else "host"
    if "weights" in open_ and settings.weights in ("auto", "device"):
        yield {"weights": place}
        yield from ({"micro_batch": piece, "weights": place} for piece in pieces)


def _left_open(cell: Cell) -> set[str]:
    """Return the settings of the method that neither the user nor the run that is continued has chosen."""
    return set(vars(cell.config.settings)) - set(cell.config.changed) - set(cell.taken_up)


def _training_images(cell: Cell, settings: Any) -> int:
    """Return how many images a network is trained on: each synthetic one may hold ``factor`` x ``factor`` of them."""
    return int(cell.config.ipc * cell.dataset.classes * getattr(settings, "factor", 1) ** 2)


def _batch(cell: Cell, settings: Any) -> int:
    """Return the most images that a method shows its network at once: synthetic ones, or real ones."""
    images = _training_images(cell, settings)
    if hasattr(settings, "class_chunk"):
        return int(settings.real_batch * settings.class_chunk)
    return min(getattr(settings, "batch_size", 0) or images, images)


def _halved(whole: int) -> Iterator[int]:
    """Yield the largest of 2, 4, 8, ... nearly equal pieces, down to 1."""
    parts = 2
    while parts < 2 * whole:
        yield math.ceil(whole / parts)
        parts *= 2


# ---- what a stage needs, and what would fit --------------------------------------------------------------------------


def _needs(cell: Cell, budget: int, meter: MemoryMeter, stages: Collection[str]) -> Iterator[Need]:
    if "experts" in stages:
        yield _experts_need(cell, budget, meter)
    if TEACHER in stages:
        yield _teacher_need(cell, budget, meter)
    if _condenses(cell, stages):
        yield _condensation_need(cell, budget, meter)


def _condenses(cell: Cell, stages: Collection[str]) -> bool:
    return "condense" in stages and bool(cell.identity.iterations)


def _experts_need(cell: Cell, budget: int, meter: MemoryMeter) -> Need:
    """Return what training experts needs; where it is too much, the largest micro-batch that fits is a remedy.

    With batch norm it is the largest batch, because experts then need whole batches.
    """
    batch, whole = min(cell.config.experts.batch_size, cell.materials.train_images), cell.config.experts.micro_batch
    name = "batch_size" if has_batch_norm(cell.materials.network_skeleton) else "micro_batch"
    most = min(whole or batch, batch) if name == "micro_batch" else batch
    peak = cache(lambda size: predicted_expert_peak(cell, meter, **{"batch_size": batch, name: size}))
    found = _largest(peak, 1, (most, peak(most)), budget) if peak(most) > budget else None
    remedies = () if found is None else (Remedy(f"--set experts.{name}={found[0]}", found[1]),)
    return Need(_EXPERTS, peak(most), remedies)


def _teacher_need(cell: Cell, budget: int, meter: MemoryMeter) -> Need:
    """Return what training the teacher needs; where it is too much, the largest micro-batch that fits is a remedy."""
    settings = teacher_training(cell.config.experts)
    batch = min(settings.batch_size, cell.materials.train_images)

    def predicted(micro_batch: int) -> int:
        training = dataclasses.replace(settings, batch_size=batch, micro_batch=micro_batch)
        return _expert_peak(cell, meter, training, cell.materials.teacher_network)

    peak, most = cache(predicted), min(settings.micro_batch or batch, batch)
    found = _largest(peak, 1, (most, peak(most)), budget) if peak(most) > budget else None
    remedies = () if found is None else (Remedy(f"--set experts.micro_batch={found[0]}", found[1]),)
    return Need(_TEACHER, peak(most), remedies)


def _condensation_need(cell: Cell, budget: int, meter: MemoryMeter) -> Need:
    needed = predicted_peak(cell, meter)
    if needed <= budget:
        return Need(_CONDENSATION, needed)
    lowered = (_lowered(cell, name, needed, budget, meter) for name in _LOWERED)
    remedies = [*filter(None, lowered), *_other_methods(cell, budget, meter)]
    return Need(_CONDENSATION, needed, tuple(remedies))


def _lowered(cell: Cell, name: str, needed: int, budget: int, meter: MemoryMeter) -> Remedy | None:
    """Return the largest value of a setting that fits, or ``None`` if none fits or the method has no such setting."""
    images = _training_images(cell, cell.config.settings)
    everything = {"batch_size": images, "class_chunk": cell.dataset.classes}.get(name, 0)  # what 0 stands for
    most = getattr(cell.config.settings, name, 0) or everything
    if not hasattr(cell.config.settings, name) or most < 2:
        return None
    predicted = cache(lambda value: predicted_peak(cell, meter, **{name: value}))

    def taken(value: int) -> int:  # even batches: otherwise a batch of all images but one would leave a batch of one
        return math.ceil(images / math.ceil(images / value)) if name == "batch_size" else value

    least = getattr(cell.config.settings, "window", 1) if name == "steps" else 1  # a loop is as long as its window
    if least >= most:
        return None
    found = _largest(lambda value: predicted(taken(value)), least, (most, needed), budget)
    return Remedy(f"--set {name}={taken(found[0])}", found[1]) if found else None


def _other_methods(cell: Cell, budget: int, meter: MemoryMeter) -> Iterator[Remedy]:
    """Yield the other methods that use expert trajectories, have the same settings, and fit with those of this cell."""
    if cell.materials.expert_request is None:
        return
    own = hashed_settings(cell.config.settings, ())
    for name in registry.names("methods"):
        if name == cell.config.method or not registry.has("methods", name):  # itself, or a family
            continue
        try:
            kind = registry.load_method(name)
            if own.keys() != hashed_settings(kind.Settings(), ()).keys():
                continue
            settings = kind.Settings(**own)
            if not kind.expert_request(settings):
                continue
            ways = _thrifty(cell, settings, vars(settings))
            peaks = (_peak(cell, meter, name, dataclasses.replace(settings, **changes)) for changes in ways)
            if peak := next((peak for peak in peaks if peak <= budget), None):
                yield Remedy(f"--method {name}", peak)
        except (DcbenchError, UsageError):  # a plugin that is broken or refuses these values is no remedy
            continue


def _kept(cell: Cell, needed: int, budget: int, meter: MemoryMeter) -> Kept | None:
    """Return the largest number of graphs that fit, or ``None`` if the method or the user leaves no choice."""
    settings = cell.config.settings
    if not hasattr(settings, "steps") or "keep_graphs" not in _left_open(cell):
        return None
    steps, now = settings.steps, settings.keep_graphs
    peak = cache(lambda graphs: needed if graphs == now else predicted_peak(cell, meter, keep_graphs=graphs))
    found = (steps, peak(steps)) if peak(steps) <= budget else _largest(peak, 0, (steps, peak(steps)), budget)
    return Kept(found[0], steps, found[1]) if found else None


def _largest(peak: Callable[[int], int], least: int, over: tuple[int, int], budget: int) -> tuple[int, int] | None:
    """Return the largest number that fits the budget, and its peak; ``None`` if not even ``least`` fits.

    Peaks grow with the number, nearly always linearly, so interpolation usually finds the answer at once; after
    ``_INTERPOLATIONS`` attempts the search continues by halving.

    Args:
        peak: returns the peak of a number.
        least: the smallest number.
        over: a number that is too large, and its peak.
        budget: the budget in bytes.
    """
    under = (least, peak(least))
    if under[1] > budget:
        return None
    for tried in count():
        (low, low_peak), (high, high_peak) = under, over
        if high - low < 2:
            break
        share = (budget - low_peak) / (high_peak - low_peak) if tried < _INTERPOLATIONS else 0.5
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        found = (middle, peak(middle))
        under, over = (found, over) if found[1] <= budget else (under, found)
    return under
