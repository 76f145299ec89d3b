"""One cell from data to tested accuracy: experts, then condensation, then an evaluation by every evaluator.

A stage that is done leaves a row (``rows/<stage>-<key>.json``) and is not done again, whoever made it. A stage that was
interrupted goes on where it was: experts after the last epoch, condensation after the last checkpoint, evaluation
after the last network. A *key* hashes what defines a result and nothing else; device, threads and paths are recorded.
"""

import dataclasses
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from dcbench_tesla import registry
from dcbench_tesla.config import CellConfig
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.preprocessing import Preprocessing, fit_standardise, fit_zca
from dcbench_tesla.data.splits import Splits, choose, cut
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.environment import environment
from dcbench_tesla.errors import DcbenchError, UsageError
from dcbench_tesla.evaluation import Accuracy, Evaluated, accuracy, summarise
from dcbench_tesla.experts import ExpertRecipe, ExpertStore, StoredExperts
from dcbench_tesla.interface import Condenser, Evaluator, ExpertRequest, ExpertSource, Problem, Task
from dcbench_tesla.loop import CondenseLoop
from dcbench_tesla.networks import ConvNet
from dcbench_tesla.progress import bar, say
from dcbench_tesla.seeds import seed_for
from dcbench_tesla.sheet import write_sheet
from dcbench_tesla.store import content_key, load_tensors, read_json, save_tensors, write_json


@dataclass(frozen=True)
class Workspace:
    """The folders under ``--out``: rows to be committed, and cells, experts and whitenings that are not."""

    root: Path

    @property
    def rows(self) -> Path:
        """One small file a finished stage."""
        return self.root / "rows"

    @property
    def cells(self) -> Path:
        """One folder a cell: tensors, checkpoints, logs."""
        return self.root / "cells"

    @property
    def experts(self) -> Path:
        """Expert trajectories, shared by all cells."""
        return self.root / "experts"

    @property
    def preprocessing(self) -> Path:
        """ZCA whitenings, once each."""
        return self.root / "preprocessing"

    def row(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return a finished stage's row, ``None`` where it is not finished."""
        path = self.rows / f"{stage}-{key}.json"
        return read_json(path) if path.exists() else None

    def write_row(self, stage: str, key: str, content: Mapping[str, Any]) -> None:
        """Write a finished stage's row."""
        write_json(self.rows / f"{stage}-{key}.json", {"stage": stage, "key": key, **content})

    def drop_row(self, stage: str, key: str) -> None:
        """Forget that a stage was finished."""
        (self.rows / f"{stage}-{key}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class Execution:
    """Where a cell computes: recorded with its results, part of no key. Equal settings promise equal bytes."""

    device: str
    threads: int

    @classmethod
    def resolve(cls, device: str = "auto") -> "Execution":
        """Choose the device (``auto``: CUDA where there is one) and take the number of threads as it is.

        Raises:
            UsageError: the device's name is unknown, or there is none such here.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            kind = torch.device(device).type
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"device {device!r} cannot be used here; try cpu. ({reason})") from error
        if kind == "meta":
            raise UsageError("device 'meta' computes nothing; try cpu.")
        return cls(device, torch.get_num_threads())


class Cell:
    """One cell of a benchmark, bound to its data and its folder; see the module for what it does."""

    def __init__(
        self,
        config: CellConfig,
        dataset: Dataset,
        workspace: Workspace,
        execution: Execution,
        *,
        quiet: bool = False,
    ) -> None:
        self.config, self.dataset, self.workspace, self.quiet = config, dataset, workspace, quiet
        self.method: type[Condenser] = registry.load_method(config.method)
        self.request: ExpertRequest | None = self.method.expert_request(config.settings)
        self.execution = self._stored_execution() or execution
        self.device = torch.device(self.execution.device)
        self.check()

    def check(self) -> None:
        """Check what can be checked before anything runs.

        Raises:
            UsageError: IPC is less than 1, or more than the smallest class has images.
        """
        if not self.method.uses_ipc:
            return
        if self.config.ipc < 1:
            raise UsageError(f"IPC (images per class) must be at least 1, not {self.config.ipc}.")
        smallest = min(len(members) for members in self._train_members)
        if self.config.ipc > smallest:
            raise UsageError(
                f"IPC {self.config.ipc} is more than the {smallest} training images of {self.dataset.name}'s smallest "
                "class: choose a smaller --ipc."
            )

    # ---- what defines the result -----------------------------------------------------------------------------------

    @property
    def data_facts(self) -> dict[str, Any]:
        """What the images are: the data set's contents, how it is cut, and how it is preprocessed."""
        d = self.config.data
        return {
            "fingerprint": self.dataset.fingerprint,
            "train_images": d.train_images,
            "validation": d.validation,
            "preprocessing": "zca" if d.zca else "standardise",
        }

    @property
    def augmentation(self) -> Augmentation:
        """The DSA strategy of experts, matching and evaluation."""
        named = self.config.data.augmentation
        return Augmentation.for_dataset(self.dataset.flippable) if named == "auto" else Augmentation(named)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that defines the distilled set."""
        experts = {"key": self.expert_store.recipe.key, "count": self.config.experts.count}
        return {
            "method": self.config.method,
            "version": self.method.version,
            "settings": hashed_settings(self.config.settings),
            "data": self.data_facts,
            "augmentation": self.augmentation.strategy,
            "ipc": self.config.ipc if self.method.uses_ipc else None,
            "seed": self.config.seed,
            "network": dataclasses.asdict(self.config.network) if self.method.uses_network else None,
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
                "settings": hashed_settings(self.config.evaluators[evaluator]),
                "schedule": self.schedule,
            }
        )

    @property
    def schedule(self) -> list[tuple[int, int]]:
        """Which iterations' distilled sets are evaluated, each with how many networks; the last one is last."""
        e, total = self.config.evaluation, self.iterations
        on_the_way = range(e.every, total, e.every) if e.every else ()
        return [(i, e.networks_on_the_way) for i in on_the_way] + [(total, e.networks)]

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

    def snapshot_path(self, iteration: int) -> Path:
        """Return where the distilled set of an iteration lies."""
        if iteration == self.iterations:
            return self.distilled_path
        return self.folder / "snapshots" / f"{iteration:06d}.safetensors"

    def _stored_execution(self) -> Execution | None:
        """Device and threads of a cell that was begun: a resumed run keeps them, so that its bytes do not change."""
        path = self.folder / "execution.json"
        if not path.exists() or self.distilled_path.exists():
            return None
        stored = read_json(path)
        return Execution(stored["device"], stored["threads"])

    # ---- data ------------------------------------------------------------------------------------------------------

    @cached_property
    def _indices(self) -> Any:
        return choose(torch.from_numpy(self.dataset.y_train), self.dataset.classes, self.config.data)

    @cached_property
    def _train_members(self) -> list[torch.Tensor]:
        labels = torch.from_numpy(self.dataset.y_train)[self._indices.train]
        return [(labels == c).nonzero() for c in range(self.dataset.classes)]

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The fitted preprocessing; a ZCA fit is kept under ``preprocessing/`` and read back."""
        if not self.config.data.zca:
            return fit_standardise(self.dataset, self.dataset.x_train[self._indices.train.numpy()])
        fit = self.workspace.preprocessing / f"fit-{content_key(self.data_facts)}.json"
        if fit.exists():
            tensors, facts = load_tensors(fit.with_name(read_json(fit)["preprocessing"] + ".safetensors"))
            return Preprocessing.from_state(tensors, facts)
        fitted = fit_zca(self.dataset.x_train[self._indices.train.numpy()], self.dataset.max_value)
        tensors, facts = fitted.state()
        save_tensors(fit.with_name(f"{fitted.key}.safetensors"), tensors, facts)
        write_json(fit, {"preprocessing": fitted.key, "data": self.data_facts})
        return fitted

    @cached_property
    def splits(self) -> Splits:
        """Training, validation and test images on the device."""
        return cut(self.dataset, self._indices, self.preprocessing, self.device)

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

    def build_network(self) -> nn.Module:
        """Return a fresh network of experts and matching."""
        n, d = self.config.network, self.dataset
        return ConvNet(d.channels, d.classes, d.side, n.width, n.depth)

    @cached_property
    def expert_store(self) -> ExpertStore:
        """The experts this cell's settings describe."""
        network = {"name": "convnet", **dataclasses.asdict(self.config.network)}
        recipe = ExpertRecipe(
            facts={"data": self.data_facts, "network": network},
            settings=self.config.experts,
            augmentation=self.augmentation,
            build_network=self.build_network,
        )
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
        )

    # ---- the stages ------------------------------------------------------------------------------------------------

    def pending(self) -> list[str]:
        """Return the stages that are to be done: ``experts``, ``condense``, ``evaluate by <name>``."""
        todo = [f"evaluate by {e}" for e in self.config.evaluators if not self._evaluated(e)]
        if not todo or self._condensed():
            return todo
        e = self.config.experts.count
        experts = self.request and not self.expert_store.complete(e, self.request.epochs)
        return ["experts"] * bool(experts) + ["condense", *todo]

    def _condensed(self) -> bool:
        if not self.distilled_path.exists():
            return False
        lacking = [i for i, _ in self.schedule if not self.snapshot_path(i).exists()]
        if lacking:
            raise UsageError(
                f"{self.name} was condensed without a snapshot of iteration {lacking[0]}: choose an evaluation.every "
                "that fits the snapshots it kept, or condense again with --force."
            )
        return True

    def iterations_done(self) -> int:
        """Return the iteration a condensation would go on with."""
        return CondenseLoop.iterations_done(self.folder)

    def stand_in_set(self) -> DistilledSet:
        """Return a set of real images, as many as the distilled set has or will have: for measuring."""
        problem = self.problem(None)
        train = problem.train
        indices = problem.draw_real("stand-in") if self.method.uses_ipc else torch.arange(len(train))
        return problem.distilled(train.pixels[indices], train.labels[indices])

    def _evaluated(self, evaluator: str) -> bool:
        return self.workspace.row("evaluate", self.evaluation_key(evaluator)) is not None

    def run(self, *, force: bool = False) -> "CellResult":
        """Do what is not done yet, and return the result.

        Raises:
            DivergedError: a loss became NaN or infinite.
            CorruptFileError: a checkpoint or an expert is damaged.
            DcbenchError: a folder cannot be written.
        """
        if force:
            self._forget()
        if self.pending():
            with self._alone():
                torch.set_num_threads(self.execution.threads)
                self._record_start()
                for stage in self.pending():
                    self._run_stage(stage)
        return CellResult(self)

    def _forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.workspace.drop_row("condense", self.key)
        for evaluator in self.config.evaluators:
            self.workspace.drop_row("evaluate", self.evaluation_key(evaluator))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the cell's lock: of two processes that want the same cell, one works and the other finds it done."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self.say(f"another process is at work on {self.name}; waiting for it")
                lock.acquire()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DcbenchError(f"cannot write to {self.workspace.root}: {reason}. Choose another --out.") from error
        try:
            yield
        finally:
            lock.release()

    def _record_start(self) -> None:
        write_json(self.folder / "execution.json", dataclasses.asdict(self.execution))
        write_json(self.folder / "config.json", {"key": self.key, "identity": self.identity, **self.config.as_dict()})
        write_json(self.folder / "environment.json", self.environment)

    @property
    def environment(self) -> dict[str, Any]:
        """Hardware, versions and commit."""
        return environment(self.execution.device, self.execution.threads)

    def say(self, text: str) -> None:
        """Tell the user something, unless the cell is quiet."""
        if not self.quiet:
            say(text)

    def _run_stage(self, stage: str) -> None:
        if stage == "experts":
            self._train_experts()
        elif stage == "condense":
            self._condense()
        else:
            self._evaluate(stage.removeprefix("evaluate by "))

    def _train_experts(self) -> None:
        assert self.request is not None
        count, epochs = self.config.experts.count, self.request.epochs
        train_experts(self, count, epochs)

    def row_facts(self) -> dict[str, Any]:
        """Return the columns every row of the cell has."""
        c = self.config
        return {
            "cell": self.name,
            "method": c.method,
            "dataset": self.dataset.name,
            "dataset_fingerprint": self.dataset.fingerprint,
            "ipc": c.ipc if self.method.uses_ipc else None,
            "seed": c.seed,
            "protocol": c.protocol,
            "protocol_source": c.source,
            "preset": c.preset,
            "command": c.command,
            "hardware": self.environment["hardware"],
            "environment": self.environment,
        }

    # ---- condensation ----------------------------------------------------------------------------------------------

    def _condense(self) -> None:
        experts = None
        if self.request:
            experts = StoredExperts(self.expert_store, self.config.experts.count, self.device)
        condenser = self.method(self.config.settings)
        condenser.setup(self.problem(experts))
        loop = CondenseLoop(
            condenser,
            self.folder,
            label=self.config.method,
            key=self.key,
            snapshots={i for i, _ in self.schedule if i < self.iterations},
            keep_snapshot=lambda iteration: self._keep_snapshot(condenser, iteration),
            quiet=self.quiet,
        )
        loop.run(self.device)
        final = self._finish(condenser.distilled(), self.iterations)
        final.save(self.distilled_path, embed_preprocessing=not self.config.data.zca)
        if self.dataset.redistributable:
            write_sheet(final, self.folder / "sheet.png")
        self.workspace.write_row(
            "condense",
            self.key,
            {
                **self.row_facts(),
                "settings": dataclasses.asdict(self.config.settings),
                "identity": self.identity,
                "iterations": self.iterations,
                "condense_seconds": round(loop.seconds, 3),
                "learned_lr": final.lr,
                "distilled_images": len(final),
                "final_loss": loop.last_loss,
                "images_may_be_passed_on": self.dataset.redistributable,
            },
        )

    def _finish(self, distilled: DistilledSet, iteration: int) -> DistilledSet:
        return distilled.with_provenance(
            **{
                "method": self.config.method,
                "dataset": self.dataset.name,
                "dataset_fingerprint": self.dataset.fingerprint,
                "ipc": self.config.ipc if self.method.uses_ipc else None,
                "seed": self.config.seed,
                "protocol": self.config.protocol,
                "iteration": iteration,
                "key": self.key,
                "redistributable": self.dataset.redistributable,
            }
        )

    def _keep_snapshot(self, condenser: Condenser, iteration: int) -> None:
        """Keep the distilled set of an iteration that is to be evaluated."""
        self.workspace.preprocessing.mkdir(parents=True, exist_ok=True)
        distilled = self._finish(condenser.distilled(), iteration)
        distilled.save(self.snapshot_path(iteration), embed_preprocessing=not self.config.data.zca)

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def _evaluate(self, name: str) -> None:
        evaluator = registry.load_evaluator(name)(self.config.evaluators[name])
        start = time.perf_counter()
        total = sum(networks for _, networks in self.schedule)
        with bar(f"{self.config.method}: evaluate by {name}", total, unit="network", quiet=self.quiet) as shown:
            results = [
                self._evaluate_set(evaluator, name, iteration, networks, shown) for iteration, networks in self.schedule
            ]
        seconds = time.perf_counter() - start
        self.workspace.write_row("evaluate", self.evaluation_key(name), self._evaluation_row(name, results, seconds))

    def _evaluate_set(self, evaluator: Evaluator, name: str, iteration: int, networks: int, shown: Any) -> Evaluated:
        """Train and test the networks of one distilled set, going on after those already on record."""
        path = self.folder / "evaluations" / f"{name}-{self.evaluation_key(name)}" / f"{iteration:06d}.json"
        done = Evaluated(iteration=iteration, test=(), validation=())
        if path.exists():
            done = Evaluated.from_dict(read_json(path))
        shown.advance(len(done.test))
        if len(done.test) >= networks:
            return done
        distilled = DistilledSet.load(self.snapshot_path(iteration))
        for i in range(len(done.test), networks):
            (network,) = evaluator.train(distilled, [seed_for(self.config.seed, "evaluation network", i)], self.device)
            validation = self.splits.validation
            done = Evaluated(
                iteration=iteration,
                test=(*done.test, accuracy(network, self.splits.test)),
                validation=(*done.validation, accuracy(network, validation)) if validation else (),
            )
            write_json(path, done.as_dict())
            shown.advance(note=f"iteration {iteration}: {Accuracy.of(done.test, iteration)}")
        return done

    def _evaluation_row(self, name: str, results: list[Evaluated], seconds: float) -> dict[str, Any]:
        evaluator = registry.load_evaluator(name)(self.config.evaluators[name])
        summary = summarise(results)
        return {
            **self.row_facts(),
            "condense_key": self.key,
            "evaluator": name,
            "recipe": evaluator.recipe,
            "settings": dataclasses.asdict(self.config.evaluators[name]),
            "validation_images": len(self.splits.validation) if self.splits.validation else 0,
            "test_images": len(self.splits.test),
            "evaluate_seconds": round(seconds, 3),
            "accuracy": {n: dataclasses.asdict(a) if a else None for n, a in summary.items()},
            "on_the_way": [e.as_dict() for e in results],
        }


def train_experts(cell: Cell, count: int, epochs: int) -> None:
    """Train the first ``count`` experts of a cell's recipe up to ``epochs``, with a row when they are there."""
    store = cell.expert_store
    total = count * epochs
    done = total - store.missing_epochs(count, epochs)
    with bar("experts", total, done=done, unit="epoch", quiet=cell.quiet) as shown:
        seconds = store.ensure(count, epochs, cell.splits.train, shown)
    key = content_key({"experts": store.recipe.key, "count": count, "epochs": epochs})
    facts = {k: v for k, v in cell.row_facts().items() if k not in ("cell", "method", "ipc", "seed", "command")}
    content = {**facts, "identity": store.recipe.identity, "experts": count, "epochs": epochs}
    if cell.workspace.row("experts", key) is None:
        cell.workspace.write_row("experts", key, {**content, "train_seconds": round(seconds, 3)})


def hashed_settings(settings: Any) -> dict[str, Any]:
    """Return the settings that define a result: all fields but those marked ``execution`` in their metadata."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if not f.metadata.get("execution")}


@dataclass
class CellResult:
    """What a finished cell has to show: its rows, its accuracies by evaluator, its folder, its distilled set."""

    cell: Cell = field(repr=False)

    @property
    def folder(self) -> Path:
        """The cell's folder; empty of tensors where only the rows came with the checkout."""
        return self.cell.folder

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The evaluation rows by evaluator."""
        found = {}
        for name in self.cell.config.evaluators:
            row = self.cell.workspace.row("evaluate", self.cell.evaluation_key(name))
            assert row is not None, "a finished cell has its rows"
            found[name] = row
        return found

    def accuracy(self, evaluator: str = "convnet", name: str = "last") -> Accuracy | None:
        """Return ``last``, ``best_on_validation`` or ``best_on_test`` of one evaluator, as fractions."""
        content = self.rows[evaluator]["accuracy"][name]
        return Accuracy(**content) if content else None

    @property
    def distilled(self) -> DistilledSet:
        """The distilled set.

        Raises:
            DcbenchError: its file is not on this machine; running with ``force`` makes it again.
        """
        if not self.cell.distilled_path.exists():
            raise DcbenchError(f"{self.cell.name} was done elsewhere and its set is not here: --force makes it again.")
        return DistilledSet.load(self.cell.distilled_path)
