"""A distilled set evaluated by any network, without a row."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch

from dcbench_tesla import registry
from dcbench_tesla.api import arguments
from dcbench_tesla.api.networks import RECIPE, Factory, evaluator_of, told_apart
from dcbench_tesla.cells.evaluation import Accuracy, Labels, labels_content, network_count, train_and_test
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.saved import check_overrides, config_of, images_to_test_on
from dcbench_tesla.cells.stages import labels_of
from dcbench_tesla.compute.seeds import seed_for
from dcbench_tesla.compute.state import plain_torch
from dcbench_tesla.config import TEACHER_LABELS, CellConfig, Override, restored
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.datasets import PREFIXES, load_dataset
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Evaluator
from dcbench_tesla.records.progress import bar, say


@plain_torch()
def evaluate(
    distilled: DistilledSet | CellResult | str | os.PathLike[str],
    model: str | Factory = "convnet",
    dataset: Any = None,
    *,
    networks: SupportsIndex | None = None,
    seed: SupportsIndex | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    device: str | torch.device = "auto",
    quiet: bool = False,
) -> Accuracy:
    """Train fresh networks on a distilled set and return their accuracy on all test images; no row is written.

    ``dcbench evaluate`` does the same for a file and writes rows. The same seed gives the same networks as there.

    Args:
        distilled: a distilled set, its file, or the result of a run, whose settings are then taken.
        model: a registered evaluator (``dcbench list evaluators``); or any callable that returns a fresh
            ``torch.nn.Module`` with logits ``(N, K)`` for inputs ``(N, C, H, W)``, called with those of ``channels``,
            ``classes`` and ``side`` that it names, and trained by the recipe of ``convnet``.
        dataset: what to test on, as :func:`dcbench_tesla.load_dataset` takes it; by default the data set that the set
            was made from.
        networks: number of networks; by default as the preset says.
        seed: the seed of the networks; by default that of the run, or 0.
        preset: ``paper``, ``quick`` or ``smoke``; by default that of the run, or ``paper``.
        settings: what differs from the preset: ``{"convnet.epochs": 300}``.
        data_dir: where data sets lie; default ``$DCBENCH_DATA`` or the platform's cache folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        quiet: show no progress.

    Raises:
        UsageError: the set, the data set or the network do not fit together, or a setting has no effect here.
        DcbenchError: a file is missing or damaged.
    """
    result = distilled if isinstance(distilled, CellResult) else None
    made, called = _set(distilled)
    (name,), own = _one(model)
    base = RECIPE if own else name
    changes = arguments.overrides(settings)
    check_overrides(changes, (base,))
    execution = Execution.resolve(str(device))
    tested = _tested(made, called, dataset, result, data_dir)
    if result is not None and (preset, seed) == (None, None):
        config = restored(result.cell.config.as_dict(), (base,), changes)
    else:
        about = (arguments.text("preset", preset or "paper"), arguments.whole_number("seed", seed or 0, least=0))
        config = config_of(made, tested.name, (base,), changes, preset=about[0], seed=about[1])
    test = images_to_test_on(called, made, tested, torch.device(execution.device))
    execution.apply()
    kind = evaluator_of(name, own[name], _sizes(made)) if own else registry.load_evaluator(name)
    count = None if networks is None else arguments.whole_number("networks", networks, least=1)
    labels = _labels(result, config, test.device)
    return accuracy_of(name, kind, config, base, made, test, labels=labels, networks=count, quiet=quiet)


def accuracy_of(
    name: str,
    kind: type[Evaluator],
    config: CellConfig,
    base: str,
    distilled: DistilledSet,
    test: LabelledImages,
    *,
    labels: Labels,
    networks: int | None,
    quiet: bool,
) -> Accuracy:
    """Train and test networks one after the other, with the settings that ``config`` has for ``base``."""
    evaluator, values = labels.taught(kind(config.evaluators[base])), list[float]()
    distilled = labels.of(distilled)
    networks = networks or network_count(base, evaluator.settings, config.evaluation)
    iteration = int(distilled.provenance.get("iteration") or 0)
    with bar(f"evaluate by {name}", networks, unit="network", quiet=quiet) as shown:
        for i in range(networks):
            seed = seed_for(config.seed, "evaluation network", i)
            found, _, reason = train_and_test(evaluator, distilled, seed, test, None)
            if reason and not quiet:
                say(reason)
            values.append(found)
            shown.advance(note=str(Accuracy.of(values, iteration)))
    return Accuracy.of(values, iteration)


def _labels(result: CellResult | None, config: CellConfig, device: torch.device) -> Labels:
    """Return the labels to train with; those of a teacher only where a cell was evaluated by it.

    Raises:
        UsageError: there is no such teacher.
    """
    if config.evaluation.labels != TEACHER_LABELS:
        return Labels(content=labels_content(config.evaluation))
    if result is None or result.cell.config.evaluation != config.evaluation:
        raise UsageError(
            "evaluation.labels=teacher needs the training images: give it to run(), or to dcbench evaluate with the "
            "set's file."
        )
    return labels_of(result.cell, device)


def _one(model: Any) -> tuple[Sequence[str], dict[str, Factory]]:
    """Return the name of the model, and the callable by this name if it is the caller's own."""
    names, own = told_apart(model)
    if len(names) + len(own) != 1:
        raise UsageError(
            f"evaluate takes one model, not {len(names) + len(own)}: run and sweep take several evaluators."
        )
    return names or tuple(own), own


def _set(given: Any) -> tuple[DistilledSet, str]:
    """Return the distilled set, and what messages call it."""
    if isinstance(given, DistilledSet):
        return given, "in memory"
    if isinstance(given, CellResult):
        return given.distilled, given.cell.name
    if isinstance(given, (str, os.PathLike)):
        return DistilledSet.load(Path(given)), str(given)
    expected = "a DistilledSet, its file, or the result of a run"
    raise UsageError(f"evaluate takes {expected}, not {given!r:.80} ({type(given).__name__}).")


def _tested(
    made: DistilledSet, called: str, dataset: Any, result: CellResult | None, data_dir: Path | str | None
) -> Dataset:
    """Return the data set to test on."""
    if dataset is not None:
        return load_dataset(dataset, data_dir)
    if result is not None:
        return result.cell.dataset
    named = str(made.provenance.get("dataset") or "")
    if not named or named.startswith(PREFIXES):
        raise UsageError(f"the set {called} was made from {named or 'an unknown data set'}: give it by dataset=.")
    return load_dataset(named, data_dir)


def own_accuracies(
    result: CellResult, own: Mapping[str, Factory], changes: Sequence[Override], *, quiet: bool
) -> dict[str, Accuracy]:
    """Return the accuracies of the caller's own networks on a finished cell's set.

    Args:
        result: the result of the cell, whose settings are taken.
        own: the networks.
        changes: changed settings of their recipe.
        quiet: show no progress.
    """
    if not own:
        return {}
    cell, made = result.cell, result.distilled
    config, test = restored(cell.config.as_dict(), (RECIPE,), changes), cell.splits.test
    cell.execution.apply()
    kinds = {name: evaluator_of(name, factory, _sizes(made)) for name, factory in own.items()}
    labels = labels_of(cell)
    return {
        name: accuracy_of(name, kind, config, RECIPE, made, test, labels=labels, networks=None, quiet=quiet)
        for name, kind in kinds.items()
    }


def _sizes(distilled: DistilledSet) -> tuple[int, int, int]:
    """Return channels, classes and side."""
    _, channels, side, _ = distilled.images.shape
    return channels, len(distilled.class_names), side
