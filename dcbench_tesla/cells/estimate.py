"""How long a cell will take on this machine, measured on its first steps before anything long begins."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcbench_tesla import registry
from dcbench_tesla.cells.cell import EVALUATE, Cell
from dcbench_tesla.cells.evaluation import accuracy
from dcbench_tesla.cells.loop import CondenseLoop
from dcbench_tesla.compute.networks import flatten_parameters, seeded
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.experts.training import train_epoch
from dcbench_tesla.records.progress import duration

LONG_S = 24 * 3600.0
_COMPILING_S = 120.0
_SAVED_SHARE = 0.1  # of a step, at least: test_compiled_against_eager in tests/benchmarks
_SHORT_STEPS = 500  # so few save nothing, however long each takes: not worth measuring one


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of the stages that are still to be done, by stage."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """All stages together, in seconds."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{stage} {duration(s)}" for stage, s in self.seconds.items())
        return f"{parts}; {duration(self.total)} in all"


class _StandIns:
    """Experts that were never trained, for measuring before there are any."""

    def __init__(self, cell: Cell) -> None:
        with seeded(0):
            self._start = flatten_parameters(cell.materials.build_network()).to(cell.device)

    def __len__(self) -> int:
        return 1

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return a start, a little moved every epoch."""
        return self._start * (1 + 0.001 * epoch)


def estimate(cell: Cell, stages: Collection[str], *, expert_epochs: int, from_scratch: bool = False) -> Estimate:
    """Measure a few steps of each of ``stages`` and extrapolate; takes seconds, leaves nothing behind.

    ``expert_epochs``: how many the stage ``experts`` is to train; 0 where other cells do.
    ``from_scratch``: the condensation starts over, and does not go on from its checkpoint.
    """
    cell.execution.apply()
    seconds = {}
    for stage in stages:
        if stage == "experts":
            if expert_epochs:
                seconds["experts"] = _expert_epoch(cell) * expert_epochs
        elif stage == "condense":
            if cell.identity.iterations:
                done = 0 if from_scratch else CondenseLoop.iterations_done(cell.place.folder)
                seconds["condensation"] = _iteration(cell) * (cell.identity.iterations - done)
        else:
            name = stage.removeprefix(EVALUATE)
            seconds[f"evaluation by {name}"] = _evaluation(cell, name)
    return Estimate(seconds)


def compilation_decided(cell: Cell, stages: Collection[str], *, expert_epochs: int | None = None) -> Cell:
    """Return ``cell`` with its setting ``auto`` of compilation made ``on`` or ``off``, and say so where it is ``on``.

    Compiling takes a minute or so and saves a part of every step: it pays for what takes long. ``auto`` is ``off`` on a
    GPU, where neither has been measured. ``stages``: what is to be done. ``expert_epochs``: how many the stage
    ``experts`` has in all; those that are there count too, so that what was interrupted is decided alike.
    """
    if cell.execution.compile != "auto":
        return cell
    eager = cell.with_compilation("off")
    epochs = _all_epochs(cell) if expert_epochs is None and "experts" in stages else expert_epochs or 0
    steps = {stage: _steps(cell, stage, epochs) for stage in stages if _compiles(cell, stage)}
    if cell.device.type != "cpu" or sum(steps.values()) < _SHORT_STEPS:
        return eager
    saved = _SAVED_SHARE * estimate(eager, steps, expert_epochs=epochs).total
    if saved < _COMPILING_S:
        return eager
    cell.say(f"compiling steps: takes a minute or two, saves about {duration(saved)} (--compile off: not)")
    return cell.with_compilation("on")


def _compiles(cell: Cell, stage: str) -> bool:
    if stage == "experts":
        return True
    if stage == "condense":
        return cell.method.compiles
    return registry.load_evaluator(stage.removeprefix(EVALUATE)).compiles


def _steps(cell: Cell, stage: str, expert_epochs: int) -> int:
    """How many SGD or matching steps a stage is to take."""
    if stage == "experts":
        return expert_epochs * -(-cell.materials.train_images // cell.config.experts.batch_size)
    if stage == "condense":
        left = cell.identity.iterations - CondenseLoop.iterations_done(cell.place.folder)
        return left * int(getattr(cell.config.settings, "steps", 1))
    name = stage.removeprefix(EVALUATE)
    evaluator = registry.load_evaluator(name)(cell.config.evaluators[name])
    return evaluator.cost(cell.stand_in_set()) * sum(networks for _, networks in cell.identity.schedule(name))


def _all_epochs(cell: Cell) -> int:
    assert cell.materials.expert_request is not None, "only a method that requests experts has this stage"
    return cell.materials.expert_count * cell.materials.expert_request.epochs


def _timed(cell: Cell, work: Callable[[], object]) -> float:
    """Seconds of ``work``, after one run to warm up."""
    work()
    _wait(cell)
    start = time.perf_counter()
    work()
    _wait(cell)
    return time.perf_counter() - start


def _wait(cell: Cell) -> None:
    if cell.device.type == "cuda":
        torch.cuda.synchronize(cell.device)


def _first(images: LabelledImages, count: int) -> LabelledImages:
    count = min(count, len(images))
    return LabelledImages(
        images.pixels[:count],
        images.labels[:count],
        classes=images.classes,
        max_value=images.max_value,
        preprocessing=images.preprocessing,
        device=images.device,
    )


def _expert_epoch(cell: Cell) -> float:
    settings = cell.config.experts
    few = _first(cell.splits.train, settings.batch_size)
    network = cell.materials.build_network().to(cell.device)
    spent = _timed(cell, lambda: train_epoch(network, few, settings, cell.materials.augmentation, 0, 0))
    return spent / len(few) * len(cell.splits.train)


def _iteration(cell: Cell) -> float:
    settings, factor = cell.method.probe(cell.config.settings)
    condenser = cell.method(settings)
    condenser.setup(cell.problem(_StandIns(cell) if cell.materials.expert_request else None))
    spent = _timed(cell, lambda: condenser.iterate(0))
    return spent * factor


def _evaluation(cell: Cell, name: str) -> float:
    kind = registry.load_evaluator(name)
    settings = cell.config.evaluators[name]
    whole = cell.stand_in_set()
    batch = _first_images(whole, 256)
    probe = kind(kind.probe(settings))
    trained: list[nn.Module] = []
    spent = _timed(cell, lambda: trained.extend(probe.train(batch, [0], cell.device)))
    steps = spent / probe.cost(batch) * kind(settings).cost(whole)
    few, network = _first(cell.splits.test, 512), trained[-1]
    tested = len(cell.splits.test) + (len(cell.splits.validation) if cell.splits.validation else 0)
    test = _timed(cell, lambda: accuracy(network, few)) / len(few) * tested
    return (steps + test) * sum(networks for _, networks in cell.identity.schedule(name))


def _first_images(distilled: DistilledSet, count: int) -> DistilledSet:
    chosen = torch.randperm(len(distilled), generator=torch.Generator().manual_seed(0))[:count]
    return distilled.choose(chosen)
