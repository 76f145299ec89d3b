"""Estimates of how long a cell will take on this machine, measured on its first steps before anything long starts."""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcbench_tesla import registry
from dcbench_tesla.cells.cell import EVALUATE, TEACHER, Cell
from dcbench_tesla.cells.evaluation import Labels, accuracy
from dcbench_tesla.cells.identity import describe_data
from dcbench_tesla.cells.loop import CondenseLoop
from dcbench_tesla.compute.compiling import compiles_training
from dcbench_tesla.compute.networks import flatten_parameters, seeded
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.experts.store import ExpertStore
from dcbench_tesla.experts.training import train_epoch
from dcbench_tesla.interface import Teacher
from dcbench_tesla.records.progress import duration

LONG_S = 24 * 3600.0
_COMPILING_S = 120.0
_SAVED_SHARE = 0.1  # share of a step that compilation saves at least: test_compiled_against_eager in tests/benchmarks
_SHORT_STEPS = 500  # for fewer steps compilation never pays, however long each takes, so none is measured


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of the stages that are not finished, by stage."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{stage} {duration(s)}" for stage, s in self.seconds.items())
        return f"{parts}; {duration(self.total)} in all"


class _StandIns:
    """Experts that were never trained, for measurements before any expert exists."""

    def __init__(self, cell: Cell) -> None:
        with seeded(0):
            self._start = flatten_parameters(cell.materials.build_network()).to(cell.device)

    def __len__(self) -> int:
        return 1

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return the initial parameters, moved a little for every epoch."""
        return self._start * (1 + 0.001 * epoch)


def estimate(
    cell: Cell,
    stages: Collection[str],
    *,
    expert_epochs: int,
    teacher_epochs: int | None = None,
    from_scratch: bool = False,
) -> Estimate:
    """Measure a few steps of each of ``stages`` and extrapolate, which takes seconds.

    Steps that are alike are measured once: ``cell.times`` has them, whatever the seed.

    Args:
        cell: the cell.
        stages: the stages to estimate.
        expert_epochs: number of epochs that the stage ``experts`` trains; 0 if other cells train them.
        teacher_epochs: the same of the stage ``teacher``; by default those that are missing.
        from_scratch: the condensation starts over, even if there is a checkpoint.
    """
    cell.execution.apply()
    seconds = {}
    for stage in stages:
        if stage == "experts":
            if expert_epochs:
                seconds["experts"] = (
                    _once(cell, _of_experts(cell.materials.expert_store), _expert_epoch) * expert_epochs
                )
        elif stage == TEACHER:
            epochs = _missing_of_teacher(cell) if teacher_epochs is None else teacher_epochs
            if epochs:
                seconds[TEACHER] = _once(cell, _of_experts(cell.materials.teacher_store), _teacher_epoch) * epochs
        elif stage == "condense":
            if cell.identity.iterations:
                done = 0 if from_scratch else CondenseLoop.iterations_done(cell.place.folder)
                of = _of_condensation(cell)
                seconds["condensation"] = _once(cell, of, _iteration) * (cell.identity.iterations - done)
        else:
            name = stage.removeprefix(EVALUATE)
            seconds[f"evaluation by {name}"] = _evaluation(cell, name)
    return Estimate(seconds)


def compilation_decided(cell: Cell, stages: Collection[str], *, expert_epochs: int | None = None) -> Cell:
    """Return ``cell`` with compilation ``auto`` replaced by ``on`` or ``off``; a line on the terminal reports ``on``.

    Compiling takes about a minute and saves a part of every step, so it pays for long runs. On a GPU ``auto`` is
    ``off``, because neither has been measured there.

    Args:
        cell: the cell.
        stages: the stages to run.
        expert_epochs: number of epochs of the stage ``experts``, those that exist included, so that an interrupted run
            makes the same choice; by default what the method requests.
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
    cell.say(f"compiling the steps takes a minute or two and saves about {duration(saved)} (--compile off skips it)")
    return cell.with_compilation("on")


def _compiles(cell: Cell, stage: str) -> bool:
    if stage == "experts":
        return compiles_training(cell.materials.network_skeleton)
    if stage == TEACHER:
        with torch.device("meta"):
            return compiles_training(cell.materials.build_teacher())
    if stage == "condense":
        return cell.method.compiles
    return registry.load_evaluator(stage.removeprefix(EVALUATE)).compiles


def _steps(cell: Cell, stage: str, expert_epochs: int) -> int:
    """Return the number of SGD steps or matching steps of a stage."""
    if stage in ("experts", TEACHER):
        experts, epochs = cell.config.experts, expert_epochs if stage == "experts" else _missing_of_teacher(cell)
        gradients = 2 if experts.gsam_rho and stage == "experts" else 1  # each as long as a plain step
        return epochs * gradients * -(-cell.materials.train_images // experts.batch_size)
    if stage == "condense":
        left = cell.identity.iterations - CondenseLoop.iterations_done(cell.place.folder)
        return left * int(getattr(cell.config.settings, "steps", 1))
    name = stage.removeprefix(EVALUATE)
    evaluator = registry.load_evaluator(name)(cell.config.evaluators[name])
    return evaluator.cost(evaluator.given(cell.stand_in_set())) * sum(
        networks for _, networks in cell.identity.schedule(name)
    )


def _all_epochs(cell: Cell) -> int:
    assert cell.materials.expert_request is not None, "only a method that requests experts has this stage"
    return cell.materials.expert_count * cell.materials.expert_request.epochs


def _missing_of_teacher(cell: Cell) -> int:
    return cell.materials.teacher_store.missing_epochs(1, cell.config.evaluation.teacher_epochs)


def _timed(cell: Cell, work: Callable[[], object]) -> float:
    """Return the seconds of the second of two runs of ``work``."""
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
    return _epoch(cell, cell.materials.expert_store.recipe)


def _teacher_epoch(cell: Cell) -> float:
    return _epoch(cell, cell.materials.teacher_store.recipe)


def _epoch(cell: Cell, recipe: ExpertRecipe) -> float:
    few = _first(cell.splits.train, recipe.settings.batch_size)
    network = recipe.build_network().to(cell.device)
    spent = _timed(cell, lambda: train_epoch(network, few, recipe.settings, recipe.augmentation, 0, 0))
    return spent / len(few) * len(cell.splits.train)


def _iteration(cell: Cell) -> float:
    settings, factor = cell.method.probe(cell.config.settings)
    condenser = cell.method(settings)
    condenser.setup(cell.problem(_StandIns(cell) if cell.materials.expert_request else None))
    spent = _timed(cell, lambda: condenser.iterate(0))
    return spent * factor


def _evaluation(cell: Cell, name: str) -> float:
    kind = registry.load_evaluator(name)
    whole = _stand_in_labels(cell).of(kind(cell.config.evaluators[name]).given(cell.stand_in_set()))
    seconds = _once(cell, _of_evaluation(cell, name, whole), lambda cell: _network(cell, name, whole))
    return seconds * sum(networks for _, networks in cell.identity.schedule(name))


def _stand_in_labels(cell: Cell) -> Labels:
    """Return the labels of the cell's evaluations, by a teacher that was never trained."""
    teacher = None
    if cell.materials.is_taught:
        network = cell.materials.build_teacher().to(cell.device).eval()
        teacher = Teacher(network=network, temperature=cell.config.evaluation.temperature)
    return Labels(content=cell.identity.labels, teacher=teacher)


def _network(cell: Cell, name: str, whole: DistilledSet) -> float:
    """Return the seconds of training one network on a set ``whole``, and of testing it."""
    kind = registry.load_evaluator(name)
    settings = cell.config.evaluators[name]
    batch = whole if whole.steps else _first_images(whole, 256)
    probe = _stand_in_labels(cell).taught(kind(kind.probe(settings)))
    trained: list[nn.Module] = []
    spent = _timed(cell, lambda: trained.extend(probe.train(batch, [0], cell.device)))
    steps = spent / probe.cost(batch) * kind(settings).cost(whole)
    few, network = _first(cell.splits.test, 512), trained[-1]
    tested = len(cell.splits.test) + (len(cell.splits.validation) if cell.splits.validation else 0)
    return steps + _timed(cell, lambda: accuracy(network, few)) / len(few) * tested


# ---- what is alike, and measured once --------------------------------------------------------------------------------


def _once(cell: Cell, of: Mapping[str, Any], measure: Callable[[Cell], float]) -> float:
    of = {**of, "compile": cell.execution.compile == "on"}
    return cell.times.seconds(cell.execution.device, cell.execution.threads, of, lambda: measure(cell))


def _of_experts(store: ExpertStore) -> Mapping[str, Any]:
    return {"experts": store.recipe.identity}


def _of_condensation(cell: Cell) -> Mapping[str, Any]:
    alike = {name: value for name, value in cell.identity.content.items() if name not in ("seed", "experts")}
    return {"iteration": alike, "settings": dataclasses.asdict(cell.config.settings)}


def _of_evaluation(cell: Cell, name: str, whole: DistilledSet) -> Mapping[str, Any]:
    return {
        "evaluation": name,
        "version": registry.load_evaluator(name).version,
        "settings": dataclasses.asdict(cell.config.evaluators[name]),
        "data": describe_data(cell.dataset, cell.config.data),
        "set": [len(whole), list(whole.labels.shape), whole.augmentation, whole.evaluation_recipe],
        "learned": [whole.lr is not None, len(whole.steps or ())],
        **({"labels": cell.identity.labels} if cell.identity.labels else {}),
    }


def _first_images(distilled: DistilledSet, count: int) -> DistilledSet:
    chosen = torch.randperm(len(distilled), generator=torch.Generator().manual_seed(0))[:count]
    return distilled.choose(chosen)
