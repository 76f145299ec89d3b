"""Evaluating what exists already: a finished cell with further evaluators, or the file of any distilled set.

Both write one row per evaluator beside the rows of ``dcbench run``. An evaluation whose row exists is not repeated.
"""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from dcbench_tesla import registry
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.evaluation import (
    OTHER_LABELS,
    SAME_LABELS,
    Evaluation,
    Labels,
    as_regime,
    authors_content,
    is_hard,
    labels_content,
    network_count,
    records_name,
    settings_on_record,
)
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import labels_of, run_cell
from dcbench_tesla.compute.state import plain_torch
from dcbench_tesla.config import (
    BASELINE,
    TEACHER_LABELS,
    CellConfig,
    Override,
    resolve,
    restored,
    set_word,
    shown_dataset,
    wrong_setting,
)
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.settings import WHITENINGS
from dcbench_tesla.datasets import PREFIXES
from dcbench_tesla.distilled import PROBABILITIES, DistilledSet
from dcbench_tesla.errors import CorruptFileError, DataMissingError, DcbenchError, UsageError
from dcbench_tesla.records.environment import environment
from dcbench_tesla.records.progress import bar, say
from dcbench_tesla.records.store import atomic_path, content_key, read_json
from dcbench_tesla.records.workspace import DEFAULT_OUT, Workspace

_CHANGED_BY_HAND = "If it was changed by hand, undo that; else the cell's own command with --force makes it again."


@plain_torch()
def evaluate_saved(
    target: Path | str,
    evaluators: Sequence[str] = (),
    *,
    overrides: Sequence[Override] = (),
    preset: str | None = None,
    seed: int | None = None,
    dataset: str | None = None,
    out: Path | str = DEFAULT_OUT,
    data_dir: Path | None = None,
    device: str = "auto",
    force: bool = False,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train networks on a saved distilled set, test them, and return the rows by evaluator.

    A cell keeps its own preset, seed and schedule: the evaluations and their rows are those that ``dcbench run
    --evaluator`` would add to it. A cell in a folder that cannot be written is copied to ``out`` first. For a file,
    only networks after their last epoch are tested, on all test images; the rows go to ``out``, under a key made from
    the content of the set.

    Args:
        target: a cell's folder, a cell's name under ``out``, or the file of a distilled set.
        evaluators: names of the evaluators; by default those of the cell, or ``convnet`` for a file.
        overrides: settings of the evaluation and of the evaluators.
        preset: preset of the evaluators' settings, for a file; by default ``paper``.
        seed: seed of the evaluation, for a file; by default 0.
        dataset: data set to test on; by default the one the set was made from.
        out: the results folder.
        data_dir: the folder of the data sets' files.
        device: PyTorch's name of the device, or ``auto``.
        force: repeat evaluations whose rows exist; each row is replaced when its evaluation is finished.
        quiet: print nothing.

    Raises:
        UsageError: there is no such cell or file; the data set does not match it; a setting does not belong to the
            evaluation, or has no effect; a preset or a seed is given for a cell; the seed is negative.
        CorruptFileError: the file is damaged or not a distilled set, or the folder is not a cell.
    """
    path, folder = Path(target), _cell_folder(target, Path(out))
    if folder is not None:
        if preset is not None or seed is not None:
            raise UsageError("a cell is evaluated with its own preset and seed: leave out --preset and --seed.")
        session = Session(folder.parent.parent, data_dir=data_dir, device=device, quiet=quiet)
        return _evaluate_cell(session, folder, evaluators, overrides, dataset, Path(out), force=force)
    if not path.is_file():
        raise UsageError(
            f"there is no file {path}, and no cell of that name under {out}: dcbench list cells shows those "
            "that are there, --out names another folder."
        )
    session = Session(out, data_dir=data_dir, device=device, quiet=quiet)
    evaluators = tuple(evaluators) or ("convnet",)
    check_overrides(overrides, evaluators)
    file = _SavedSet(session, path, dataset, evaluators, overrides, preset or "paper", seed or 0)
    return {name: file.evaluate(name, force=force) for name in file.config.evaluators}


def check_overrides(overrides: Sequence[Override], evaluators: Iterable[str]) -> None:
    """Check that only settings of the evaluation and of its evaluators are changed.

    Raises:
        UsageError: another setting is.
    """
    for override in overrides:
        if override.section not in {"evaluation", *evaluators}:
            raise UsageError(
                f"setting {override.label} has no effect here: only settings of the evaluation and of its evaluators "
                "can be changed for a set that exists."
            )


def _cell_folder(target: Path | str, out: Path) -> Path | None:
    for folder in (Path(target), out / "cells" / str(target)):
        if os.path.lexists(folder / "config.json"):  # what it is, is seen when it is read
            return folder.resolve()
    return None


def _evaluate_cell(
    session: Session,
    folder: Path,
    evaluators: Sequence[str],
    overrides: Sequence[Override],
    dataset: str | None,
    out: Path,
    *,
    force: bool,
) -> dict[str, dict[str, Any]]:
    stored = _configuration(folder)
    check_overrides(overrides, evaluators or stored["evaluators"])
    config = _restored(folder, stored, evaluators, overrides)
    words = [f"{stored['command']} && dcbench evaluate {folder.name}"]
    words += [f"--evaluator {name}" for name in config.evaluators]
    words += [set_word(o) for o in overrides]
    as_it_was = not overrides and set(config.evaluators) <= set(stored["evaluators"])
    config = dataclasses.replace(config, command=stored["command"] if as_it_was else " ".join(words))
    try:
        cell = session.cell(dataclasses.replace(config, dataset=dataset) if dataset else config)
    except (UsageError, DataMissingError) as error:
        if dataset is None and config.dataset.startswith(PREFIXES):
            raise UsageError(f"{error} If the files have moved, say where they are: --dataset.") from error
        raise
    if cell.key != stored["key"]:
        raise UsageError(
            f"{folder.name} was made from other images than {cell.dataset.name}'s here, or by another version of "
            f"{config.method}: run it again ({stored['command']})."
        )
    if cell.place.folder.resolve() != folder:
        raise UsageError(f"{folder.name} was made from the same images under another name than {cell.dataset.name}.")
    if not cell.place.condensed():
        raise UsageError(f"{folder.name} is not finished: {stored['command']} continues it.")
    if (force or cell.pending()) and not (_writable(folder) and _writable(folder.parent.parent)):
        cell = _copied(session, cell, out)
    return run_cell(cell, evaluate_again=force).rows


def _writable(folder: Path) -> bool:
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _copied(session: Session, cell: Cell, out: Path) -> Cell:
    """Return a finished cell with its files and rows copied to the results folder ``out``.

    Raises:
        DcbenchError: the cell lies in ``out`` itself, or ``out`` cannot be written.
    """
    source, target = cell.workspace, Workspace(out)
    if source.root.resolve() == out.resolve():
        raise DcbenchError(f"{cell.place.folder} cannot be written: --out names a folder for the new evaluation.")
    cell.say(f"{cell.place.folder} cannot be written: its set is copied to {out} and evaluated there")
    keys = [f"condense-{cell.key}", *(f"evaluate-{cell.identity.evaluation_key(n)}" for n in cell.config.evaluators)]
    files = [source.rows / f"{key}.json" for key in keys]
    files += [cell.place.folder / name for name in ("config.json", "environment.json", "distilled.safetensors")]
    files += sorted((cell.place.folder / "snapshots").glob("*.safetensors"))
    if cell.config.data.zca:
        files += cell.materials.whitening_files(cell.distilled_set(cell.identity.iterations).preprocessing.key)
    for path in files:
        copy = target.root / path.relative_to(source.root)
        if path.is_file() and not copy.exists():
            with atomic_path(copy) as temporary:
                shutil.copyfile(path, temporary)
    there = Session(out, data_dir=cell.data_dir, execution=session.execution, quiet=session.quiet)
    return there.cell(cell.config)


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    stored: dict[str, Any] = read_json(path, "config", remedy=_CHANGED_BY_HAND)
    if stored["key"] != content_key(stored["identity"]) or not folder.name.endswith(stored["key"][:10]):
        raise CorruptFileError(f"{path} is the configuration of another cell. {_CHANGED_BY_HAND}")
    if wrong := wrong_setting(stored):
        raise CorruptFileError(f"{path}: {wrong}. {_CHANGED_BY_HAND}")
    return stored


def _restored(
    folder: Path, stored: Mapping[str, Any], evaluators: Sequence[str], overrides: Sequence[Override]
) -> CellConfig:
    try:
        return restored(stored, evaluators, overrides)
    except (KeyError, TypeError, AttributeError) as error:
        path = folder / "config.json"
        raise CorruptFileError(f"{path} is not what a run wrote ({error!r}). {_CHANGED_BY_HAND}") from error


def config_of(
    distilled: DistilledSet,
    dataset: str,
    evaluators: Sequence[str],
    overrides: Sequence[Override],
    *,
    preset: str,
    seed: int,
) -> CellConfig:
    """Return the configuration by which networks are trained on a distilled set that belongs to no cell here."""
    facts = distilled.provenance
    method = str(facts.get("method") or "")
    return resolve(
        method if method in registry.names("methods") else BASELINE,
        dataset,
        int(facts.get("ipc") or max(1, len(distilled) // len(distilled.class_names))),
        seed=seed,
        preset=preset,
        evaluators=evaluators,
        overrides=overrides,
        learned_lr=distilled.lr is not None,
        evaluation_recipe=distilled.evaluation_recipe,
    )


class _SavedSet:
    """The file of a distilled set, with the test images for it and the place of its rows."""

    def __init__(
        self,
        session: Session,
        path: Path,
        dataset: str | None,
        evaluators: Sequence[str],
        overrides: Sequence[Override],
        preset: str,
        seed: int,
    ) -> None:
        self.session, self.path, self.overrides = session, path, tuple(overrides)
        self.distilled = DistilledSet.load(path)
        self.facts = self.distilled.provenance
        named = dataset or str(self.facts.get("dataset") or "")
        if not named or (dataset is None and named.startswith(PREFIXES)):
            raise UsageError(f"{path} was made from {named or 'an unknown data set'}: give the files by --dataset.")
        if seed < 0:
            raise UsageError(f"--seed must be at least 0, not {seed}.")
        for override in overrides:
            if override.label in ("evaluation.every", "evaluation.networks_on_the_way"):
                raise UsageError(f"setting {override.label} has no effect: a file holds one set. Leave it out.")
        method = str(self.facts.get("method") or "")
        known = method in registry.names("methods")
        self.config = config_of(self.distilled, named, evaluators, overrides, preset=preset, seed=seed)
        self.method = method or "unknown"
        self._named, self._has_ipc = dataset, not known or registry.load_method(method).uses_ipc
        self.dataset = session.dataset(named)
        self.test = images_to_test_on(path, self.distilled, self.dataset, torch.device(session.execution.device))

    def evaluate(self, name: str, *, force: bool) -> dict[str, Any]:
        """Train and test the networks that are not recorded yet; return the row."""
        workspace, settings = self.session.workspace, self.config.evaluators[name]
        networks = network_count(name, settings, self.config.evaluation)
        key = self._key(name, self._content)
        records = workspace.root / "evaluations" / records_name(name, key)
        if force:
            shutil.rmtree(records, ignore_errors=True)
        elif (row := workspace.row("evaluate", key) or self._same_labels(name, key)) is not None:
            return row
        self.session.execution.apply()
        evaluation = Evaluation(
            name=name,
            settings=settings,
            seed=self.config.seed,
            test=self.test,
            validation=None,
            records=records,
            tell=say,
            evaluation_recipe=self.distilled.evaluation_recipe,
            labels=self._labels,
        )
        with bar(f"evaluate by {name}", networks, unit="network", quiet=self.session.quiet) as shown:
            columns = evaluation.run([(int(self.facts.get("iteration") or 0), networks, lambda: self.distilled)], shown)
        workspace.write_row("evaluate", key, {**self._columns(name), **columns})
        shutil.rmtree(records, ignore_errors=True)
        return self._written(key)

    def _key(self, name: str, labels: Mapping[str, Any]) -> str:
        settings = self.config.evaluators[name]
        identity = {
            "set": self._digest,
            "test": self.dataset.fingerprint,
            "evaluator": name,
            "version": registry.load_evaluator(name).version,
            "settings": settings_on_record(settings),
            "networks": network_count(name, settings, self.config.evaluation),
            "seed": self.config.seed,
            **authors_content(settings, self.distilled.evaluation_recipe),
            **({"labels": labels} if labels else {}),
        }
        return content_key(identity)

    def _written(self, key: str) -> dict[str, Any]:
        written = self.session.workspace.row("evaluate", key)
        assert written is not None, "it was written just now"
        return written

    @cached_property
    def _labels(self) -> Labels:
        """The labels of the regime; a teacher that is not trained yet is trained now."""
        cell = self._teaching_cell
        return Labels(content=self._content) if cell is None else labels_of(cell)

    @property
    def _content(self) -> dict[str, Any]:
        """What of the labels defines the evaluation."""
        cell = self._teaching_cell
        return labels_content(self.config.evaluation) if cell is None else cell.identity.labels

    @cached_property
    def _teaching_cell(self) -> Cell | None:
        """A cell of the same settings whose networks see images as those of the set do; ``None`` without a teacher.

        Raises:
            UsageError: the set's preprocessing is none that is fitted here.
        """
        if self.config.evaluation.labels != TEACHER_LABELS:
            return None
        wanted, data = self.distilled.preprocessing, self.config.data
        zca = wanted.kind == "zca"
        for whitening in dict.fromkeys((data.whitening, *WHITENINGS)) if zca else (data.whitening,):
            tried = dataclasses.replace(data, zca=zca, whitening=whitening)
            cell = self.session.cell(dataclasses.replace(self.config, data=tried))
            if cell.materials.preprocessing.key == wanted.key:
                return cell
        raise UsageError(
            f"evaluation.labels=teacher cannot be used with {self.path}: its images are preprocessed in another way "
            f"({wanted.key}) than {self.dataset.name} is here with --preset {self.config.preset}, so that no teacher "
            "can label them. Give the preset that it was made with, or evaluation.labels=hard."
        )

    def _same_labels(self, name: str, key: str) -> dict[str, Any] | None:
        """Return the row under ``key`` made of that of another regime with the same labels, if there is one."""
        regime = self.config.evaluation.labels
        if regime == TEACHER_LABELS or not is_hard(self.distilled):
            return None
        other = dataclasses.replace(self.config.evaluation, labels=OTHER_LABELS[regime])
        twin = self.session.workspace.row("evaluate", self._key(name, labels_content(other)))
        if twin is None:
            return None
        say(f"{self.path.name}: {SAME_LABELS}")
        computed = {name: twin[name] for name in ("hardware", "environment")}
        row = {**as_regime(twin, self._content), **self._columns(name), **computed}
        self.session.workspace.write_row("evaluate", key, row)
        return self._written(key)

    @cached_property
    def _digest(self) -> str:
        """Key of what networks are trained on: images, labels, rates, preprocessing, augmentation; no provenance."""
        d, digest = self.distilled, hashlib.sha256()
        for tensor in (d.images, d.labels, *((d.steps.rates, d.steps.batches) if d.steps else ())):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        facts: list[Any] = [digest.hexdigest(), d.lr, d.preprocessing.key, d.augmentation, d.max_value]
        facts += [d.label_space] if d.label_space != PROBABILITIES else []
        facts += [dataclasses.asdict(d.decoder)] if d.decoder else []
        return content_key(facts)

    def _columns(self, name: str) -> dict[str, Any]:
        execution, c = self.session.execution, self.config
        here = environment(execution.device, execution.threads)
        made_from = self.facts.get("dataset_fingerprint")
        words = [f"dcbench evaluate {self.path.name}", f"--evaluator {name}", f"--preset {c.preset}"]
        words += [f"--seed {c.seed}"] if c.seed else []
        words += [f"--dataset {shown_dataset(self._named)}"] if self._named else []
        words += [set_word(o) for o in self.overrides]
        return {
            "cell": self.path.name,
            "method": self.method,
            "ipc": c.ipc if self._has_ipc else None,
            "seed": self.facts.get("seed", c.seed),
            "evaluation_seed": c.seed,
            "dataset": self.dataset.name,
            "dataset_fingerprint": self.dataset.fingerprint,
            "made_from": made_from,
            "protocol": f"set: {self.facts.get('protocol') or 'unknown'}; evaluation: {c.protocol}",
            "protocol_source": c.source,
            "preset": c.preset,
            "command": " ".join(words),
            "hardware": here["hardware"],
            "environment": here,
            "condense_key": str(self.facts.get("key") or ""),
            "set": self._digest,
        }


def images_to_test_on(
    path: Path | str, distilled: DistilledSet, dataset: Dataset, device: torch.device
) -> LabelledImages:
    """Return the test images of ``dataset``, with the preprocessing of the distilled set, which messages call ``path``.

    Raises:
        UsageError: they have other classes or another size than the set.
    """
    if dataset.class_names != distilled.class_names or dataset.x_test.shape[1:] != distilled.images.shape[1:]:
        raise UsageError(f"{dataset.name} has other classes or another image size than the distilled set {path}.")
    made_from = distilled.provenance.get("dataset_fingerprint")
    if made_from not in (None, dataset.fingerprint):
        say(f"note: {dataset.name} here is not byte for byte the data that the set was made from ({made_from})")
    return LabelledImages(
        torch.from_numpy(dataset.x_test),
        torch.from_numpy(dataset.y_test),
        classes=dataset.classes,
        max_value=dataset.max_value,
        preprocessing=distilled.preprocessing,
        device=device,
    )
