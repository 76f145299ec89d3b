"""A cell: one (method, data set, IPC, seed) with all its settings; what defines it, its data, and where it lies.

A *key* hashes what defines a result and nothing else: the method and its version, the settings, the data set's
fingerprint, IPC, seed, network, and the key of the experts. Device, threads and paths are recorded, not hashed.
"""

import copy
import dataclasses
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor

from dcbench_tesla import registry
from dcbench_tesla.cells.evaluation import network_count, records_name
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.compute.networks import ConvNet, convnet_depth
from dcbench_tesla.config import CellConfig, NetworkSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.images import prepared_bytes
from dcbench_tesla.data.preprocessing import Preprocessing, check_zca_size, fit_standardise, fit_zca
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.data.splits import Indices, Splits, choose, cut
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import UsageError
from dcbench_tesla.experts.imported import ImportedStore, open_imported
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.experts.store import ExpertStore
from dcbench_tesla.interface import Condenser, ExpertRequest, ExpertSource, Problem, Settings, Task
from dcbench_tesla.records.environment import environment
from dcbench_tesla.records.progress import say
from dcbench_tesla.records.store import content_key, load_tensors, read_json, save_tensors, write_json
from dcbench_tesla.records.workspace import Workspace

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Pixels


EVALUATE = "evaluate by "
"""What the name of an evaluation's stage begins with, its evaluator following."""


class Cell:
    """One cell of a benchmark, bound to its data and its folders. :func:`dcbench_tesla.cells.stages.run_cell` runs it.

    ``execution``: where to compute; a cell that was begun keeps what it was begun with, unless it is to run
    ``from_scratch``. ``shared_splits``: prepared images by key, for cells that use the same ones.
    ``data_dir``: where the data set lies, for other processes.

    Raises:
        UsageError: IPC is less than 1, or more than the smallest class has training images; the images are too large
            to be whitened; or the cell was begun on a device that is not here.
    """

    def __init__(
        self,
        config: CellConfig,
        dataset: Dataset,
        workspace: Workspace,
        execution: Execution,
        *,
        quiet: bool = False,
        from_scratch: bool = False,
        shared_splits: dict[str, Splits] | None = None,
        data_dir: Path | None = None,
    ) -> None:
        self.config, self.dataset, self.workspace, self.quiet = config, dataset, workspace, quiet
        self.data_dir = data_dir
        self.method: type[Condenser] = registry.load_method(config.method)
        self.request: ExpertRequest | None = self.method.expert_request(config.settings)
        self._check_ipc()
        if config.data.zca:
            check_zca_size(dataset.channels, dataset.side, dataset.side)
        self.execution = execution if from_scratch else self._begun_with(execution)
        self.device = torch.device(self.execution.device)
        settings = self.method.for_device(config.settings, self.device, self.smallest_class)
        self.config = dataclasses.replace(config, settings=settings)
        self._shared_splits = {} if shared_splits is None else shared_splits
        self.memory_facts: Mapping[str, int] = {}  # columns for its row, once it is planned within a budget

    def planned(self, changes: Mapping[str, Any], memory_facts: Mapping[str, int]) -> "Cell":
        """Return this cell with ``changes`` of its method's execution settings, and what its row is to say of memory.

        What is computed stays the same, and so does the key.
        """
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, settings=dataclasses.replace(self.config.settings, **changes))
        other.memory_facts = memory_facts
        return other

    def with_compilation(self, compile: str) -> "Cell":
        """Return this cell with its compilation decided, ``on`` or ``off``; the key stays the same."""
        other = copy.copy(self)
        other.execution = dataclasses.replace(self.execution, compile=compile)
        return other

    def _check_ipc(self) -> None:
        if not self.method.uses_ipc:
            return
        if self.config.ipc < 1:
            raise UsageError(f"IPC (images per class) must be at least 1, not {self.config.ipc}.")
        if self.config.ipc > self.smallest_class:
            raise UsageError(
                f"IPC {self.config.ipc} is more than the {self.smallest_class} training images of "
                f"{self.dataset.name}'s smallest class: choose a smaller --ipc."
            )

    # ---- what defines the result -----------------------------------------------------------------------------------

    @property
    def data_facts(self) -> dict[str, Any]:
        """What the images are: the data set's contents, how it is cut, and how it is preprocessed."""
        return describe_data(self.dataset, self.config.data)

    @property
    def network_facts(self) -> dict[str, Any]:
        """The network of experts and matching, its depth as it is."""
        return describe_network(self.dataset, self.config.network)

    @property
    def augmentation(self) -> Augmentation:
        """The DSA strategy of experts, matching and evaluation."""
        named = self.config.data.augmentation
        return Augmentation.for_dataset(self.dataset.flippable) if named == "auto" else Augmentation(named)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that defines the distilled set."""
        experts = {"key": self.expert_store.recipe.key, "count": self.expert_count}
        return {
            "method": self.config.method,
            "version": self.method.version,
            "settings": hashed_settings(self.config.settings, self.config.settings.inert()),
            "data": self.data_facts,
            "augmentation": self.augmentation.strategy,
            "ipc": self.config.ipc if self.method.uses_ipc else None,
            "seed": self.config.seed,
            "network": self.network_facts if self.method.uses_network else None,
            "experts": experts if self.request else None,
        }

    @cached_property
    def key(self) -> str:
        """The key of the condensation."""
        return content_key(self.identity)

    def evaluation_key(self, evaluator: str) -> str:
        """Return the key of one evaluator's stage."""
        return content_key(
            {
                "condense": self.key,
                "evaluator": evaluator,
                "version": registry.load_evaluator(evaluator).version,
                "settings": hashed_settings(self.config.evaluators[evaluator], self._without_effect(evaluator)),
                "schedule": self.schedule(evaluator),
            }
        )

    def _without_effect(self, evaluator: str) -> Collection[str]:
        settings = self.config.evaluators[evaluator]
        return registry.load_evaluator(evaluator).without_effect(settings, learned_lr=self.method.learns_lr)

    def schedule(self, evaluator: str) -> list[tuple[int, int]]:
        """Return which iterations' sets an evaluator tests, each with how many networks; the last one is last."""
        networks_on_the_way = self.config.evaluation.networks_on_the_way
        on_the_way = self.snapshots if registry.load_evaluator(evaluator).on_the_way else ()
        at_the_end = network_count(self.config.evaluators[evaluator], self.config.evaluation)
        return [(i, networks_on_the_way) for i in on_the_way] + [(self.iterations, at_the_end)]

    @property
    def snapshots(self) -> range:
        """The iterations on the way whose distilled sets are kept."""
        every = self.config.evaluation.every
        return range(every, self.iterations, every) if every else range(0)

    @cached_property
    def iterations(self) -> int:
        """Number of iterations of the condensation."""
        return self.method(self.config.settings).iterations

    # ---- where things lie ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The cell's folder: readable, unique by the key behind it."""
        ipc = f"ipc{self.config.ipc}" if self.method.uses_ipc else "all"
        name = f"{self.config.method}-{self.dataset.name}-{ipc}-seed{self.config.seed}-{self.key[:10]}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name)

    @property
    def folder(self) -> Path:
        """Where the cell's tensors, checkpoints and logs lie."""
        return self.workspace.cells / self.name

    @property
    def distilled_path(self) -> Path:
        """The final distilled set."""
        return self.folder / "distilled.safetensors"

    def records(self, evaluator: str) -> Path:
        """Return the folder of an evaluation's records, a file a distilled set."""
        return self.folder / "evaluations" / records_name(evaluator, self.evaluation_key(evaluator))

    def snapshot_path(self, iteration: int) -> Path:
        """Return where the distilled set of an iteration lies."""
        if iteration == self.iterations:
            return self.distilled_path
        return self.folder / "snapshots" / f"{iteration:06d}.safetensors"

    def _begun_with(self, wanted: Execution) -> Execution:
        """Return device, threads and compilation of a cell that was begun, for the same bytes; else those wanted."""
        path = self.folder / "execution.json"
        half_evaluated = (n for n in self.config.evaluators if self.records(n).exists() and not self._evaluated(n))
        if not path.exists():
            return wanted
        stored = read_json(path)
        if self.distilled_path.exists() and not any(half_evaluated):  # what comes may come elsewhere
            decided = stored.get("compile", "off") if wanted.compile == "auto" else wanted.compile
            return dataclasses.replace(wanted, compile=decided)
        if stored["device"] != wanted.device:
            self.say(f"{self.name} was begun on {stored['device']} and goes on there (--force starts over)")
            Execution.resolve(stored["device"])
        began_with = {name: stored[name] for name in ("device", "threads", "compile") if name in stored}
        return dataclasses.replace(wanted, **{"compile": "off", **began_with})

    # ---- data ------------------------------------------------------------------------------------------------------

    @cached_property
    def _indices(self) -> Indices:
        return choose(torch.from_numpy(self.dataset.y_train), self.dataset.classes, self.config.data)

    @property
    def _train_labels(self) -> Tensor:
        return torch.from_numpy(self.dataset.y_train)[self._indices.train]

    @property
    def train_images(self) -> int:
        """How many training images experts and matching see."""
        return len(self._indices.train)

    @cached_property
    def smallest_class(self) -> int:
        """How many of them the smallest class has."""
        return int(torch.bincount(self._train_labels, minlength=self.dataset.classes).min())

    @property
    def prepared_bytes(self) -> int:
        """What they take on the device, preprocessed; 0 where they are too many to lie there."""
        return prepared_bytes(self.train_images * self.dataset.channels * self.dataset.side**2)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The fitted preprocessing; a ZCA fit is kept under ``preprocessing/`` and read back."""
        if not self.config.data.zca:
            return fit_standardise(self.dataset, None if self.dataset.mean else self._train_pixels)
        fit = self.workspace.preprocessing / f"fit-{content_key(self.data_facts)}.json"
        fit.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(fit.with_suffix(".lock")):  # two fits can differ in their last bits: there is one
            if fit.exists():
                whitening = fit.with_name(read_json(fit)["preprocessing"] + ".safetensors")
                if whitening.exists():
                    return Preprocessing.from_state(*load_tensors(whitening))
            self.say("fitting the ZCA whitening (once for this data set) ...")
            fitted = fit_zca(self._train_pixels, self.dataset.max_value)
            tensors, facts = fitted.state()
            save_tensors(fit.with_name(f"{fitted.key}.safetensors"), tensors, facts)
            write_json(fit, {"preprocessing": fitted.key, "data": self.data_facts})
            return fitted

    @property
    def _train_pixels(self) -> "Pixels":
        chosen, pixels = self._indices.train, self.dataset.x_train
        return pixels if len(chosen) == len(pixels) else pixels[chosen.numpy()]

    @property
    def splits(self) -> Splits:
        """Training, validation and test images on the device; made once for all cells that use the same."""
        key = content_key([self.data_facts, str(self.device)])
        if key not in self._shared_splits:
            self._shared_splits[key] = cut(self.dataset, self._indices, self.preprocessing, self.device)
        return self._shared_splits[key]

    @cached_property
    def task(self) -> Task:
        """What every network of the cell sees."""
        return Task(
            dataset=self.dataset.name,
            fingerprint=self.dataset.fingerprint,
            channels=self.dataset.channels,
            side=self.dataset.side,
            class_names=self.dataset.class_names,
            preprocessing=self.preprocessing,
            augmentation=self.augmentation,
            redistributable=self.dataset.redistributable,
        )

    def build_network(self) -> ConvNet:
        """Return a fresh network of experts and matching."""
        n, d = self.config.network, self.dataset
        return ConvNet(d.channels, d.classes, d.side, n.width, n.depth)

    @property
    def expert_count(self) -> int:
        """How many experts the method reads: what it requests, else the setting, else all that were imported.

        Raises:
            UsageError: more experts or more epochs of them than were imported.
        """
        requested = self.request.count if self.request else None
        if self.request and isinstance(self.expert_store, ImportedStore):
            asked = self.config.experts.count if "experts.count" in self.config.changed else None
            return self.expert_store.bounded(requested or asked, self.request.epochs)
        return requested or self.config.experts.count

    @cached_property
    def expert_store(self) -> ExpertStore:
        """The experts this cell's settings describe, or those that were imported.

        Raises:
            UsageError: there are no such imported experts, or they do not belong to this cell's data and network.
        """
        recipe = ExpertRecipe(
            facts={"data": self.data_facts, "network": self.network_facts},
            settings=self.config.experts,
            augmentation=self.augmentation,
            build_network=self.build_network,
        )
        if self.request and self.config.experts.imported:
            return open_imported(self.workspace.experts, self.config.experts.imported, recipe)
        return ExpertStore(self.workspace.experts, recipe)

    def problem(self, experts: ExpertSource | None) -> Problem:
        """Return what the condenser is given."""
        return Problem(
            task=self.task,
            train=self.splits.train,
            ipc=self.config.ipc,
            seed=self.config.seed,
            device=self.device,
            build_network=self.build_network,
            experts=experts,
            compile=self.execution.compile == "on",
        )

    # ---- what is done ----------------------------------------------------------------------------------------------

    def check_snapshots(self, done: int) -> None:
        """Check that the first ``done`` iterations left the snapshots that some evaluator is to test.

        Raises:
            UsageError: the condensation was begun with another ``evaluation.every``.
        """
        wanted = {i for name in self.config.evaluators for i, _ in self.schedule(name)}
        lacking = {i for i in wanted if i <= done and not self.snapshot_path(i).exists()}
        if lacking:
            raise UsageError(
                f"{self.name} was condensed without a snapshot of iteration {min(lacking)}: choose an evaluation.every "
                "that fits the snapshots it kept, or condense again with --force."
            )

    @property
    def environment(self) -> dict[str, Any]:
        """Hardware, versions, commit and backend."""
        return environment(self.execution.device, self.execution.threads, self.execution.backend)

    def say(self, text: str) -> None:
        """Tell the user something, unless the cell is quiet."""
        if not self.quiet:
            say(text)

    def pending(self) -> list[str]:
        """Return the stages that are to be done: ``experts``, ``condense``, ``evaluate by <name>``."""
        todo = [f"{EVALUATE}{e}" for e in self.config.evaluators if not self._evaluated(e)]
        return todo if not todo or self.condensed() else self._from_condensation(todo)

    def stages_from_scratch(self) -> list[str]:
        """Return the stages of a run that starts over; experts that are there are kept."""
        return self._from_condensation([f"{EVALUATE}{e}" for e in self.config.evaluators])

    def _from_condensation(self, evaluations: list[str]) -> list[str]:
        experts = self.request and not self.expert_store.complete(self.expert_count, self.request.epochs)
        return ["experts"] * bool(experts) + ["condense", *evaluations]

    def condensed(self) -> bool:
        """Whether the distilled set and its row are here, with the snapshots the schedule asks for.

        Raises:
            UsageError: it was condensed with other snapshots.
        """
        if not self.distilled_path.exists() or self.workspace.row("condense", self.key) is None:
            return False
        self.check_snapshots(self.iterations)
        return True

    def stand_in_set(self) -> DistilledSet:
        """Return a set of real images, as many as the distilled set has or will have: for measuring."""
        problem = self.problem(None)
        train = problem.train
        indices = problem.draw_real("stand-in") if self.method.uses_ipc else torch.arange(len(train))
        return problem.distilled(train.pixels[indices], train.labels[indices])

    def _evaluated(self, evaluator: str) -> bool:
        return self.workspace.row("evaluate", self.evaluation_key(evaluator)) is not None


def describe_data(dataset: Dataset, settings: DataSettings) -> dict[str, Any]:
    """Return what the images of a cell or of experts are: contents, how they are cut and preprocessed; plain JSON."""
    facts = {
        "fingerprint": dataset.fingerprint,
        "train_images": settings.train_images,
        "validation": settings.validation,
    }
    if settings.zca:
        return {**facts, "preprocessing": "zca"}
    # not said by the fingerprint: a named set has published statistics, the same pixels as npz: have computed ones
    return {**facts, "preprocessing": "standardise", "mean": dataset.mean, "std": dataset.std}


def describe_network(dataset: Dataset, settings: NetworkSettings) -> dict[str, Any]:
    """Return what the network of experts and matching is, its depth as it is; plain JSON."""
    return {"name": "convnet", "width": settings.width, "depth": settings.depth or convnet_depth(dataset.side)}


def hashed_settings(settings: Settings, without_effect: Collection[str]) -> dict[str, Any]:
    """Return the settings that define a result: not those marked ``execution``, not those without effect.

    Those marked ``later`` came when there were results already: they count where they are not as they were before.
    """
    found = {}
    for field in dataclasses.fields(settings):
        value, about = getattr(settings, field.name), field.metadata
        as_before = about.get("later") and value == field.default
        if not about.get("execution") and not as_before and field.name not in without_effect:
            found[field.name] = value
    return found
