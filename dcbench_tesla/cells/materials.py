"""The materials of a cell: its images, split and preprocessed, its network, and the experts it reads."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor

from dcbench_tesla import registry
from dcbench_tesla.cells.identity import ExpertsRead, augmentation_of, describe_data, describe_network
from dcbench_tesla.compute.networks import Network, has_batch_norm, why_unfit
from dcbench_tesla.config import TEACHER_LABELS, CellConfig, ExpertSettings, NetworkSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.images import prepared_bytes
from dcbench_tesla.data.own.decisions import Decided
from dcbench_tesla.data.preprocessing import WHITENINGS, Preprocessing, check_zca_size, fit_standardise
from dcbench_tesla.data.splits import Indices, Splits, choose, cut
from dcbench_tesla.distilled import load_whitening
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.experts.imported import ImportedStore, open_imported
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.experts.store import ExpertStore, StoredExperts
from dcbench_tesla.experts.teacher import teacher_network, teacher_of, teacher_training
from dcbench_tesla.interface import ExpertRequest, Task, Teacher
from dcbench_tesla.records.progress import say
from dcbench_tesla.records.store import content_key, read_json, save_tensors, write_json
from dcbench_tesla.records.workspace import Workspace

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Pixels


def _stored_fit(fit: Path, facts: Mapping[str, Any]) -> Preprocessing | None:
    """Return the whitening that the record ``fit`` names; ``None`` if it has not been fitted, or its file is gone.

    Raises:
        CorruptFileError: the record is damaged or is that of other images, or the whitening's file is damaged.
    """
    if not fit.exists():
        return None
    remedy = "Delete it: the whitening is fitted again."
    stored = read_json(fit, "fit", remedy=remedy)
    if content_key(stored.get("data")) != content_key(facts):
        raise CorruptFileError(f"{fit} is not the record of this data's whitening. {remedy}")
    try:
        return Preprocessing.from_state(*load_whitening(fit.parent, stored["preprocessing"]))
    except FileNotFoundError:
        return None


class Materials:
    """The data, the network and the experts of a configuration, each made when it is first needed.

    Args:
        config: the cell's configuration.
        dataset: its data set.
        workspace: the results folder with whitenings and experts.
        shared_splits: preprocessed images by key, shared between cells that use the same ones.
        quiet: print nothing.

    Raises:
        UsageError: IPC is less than 1, or more than the smallest class has training images; the images are too large
            for ZCA whitening; or the network does not fit the images or the method.
    """

    def __init__(
        self,
        config: CellConfig,
        dataset: Dataset,
        workspace: Workspace,
        *,
        shared_splits: dict[str, Splits],
        quiet: bool = False,
    ) -> None:
        self.config, self.dataset, self._workspace = config, dataset, workspace
        self._shared_splits, self._quiet = shared_splits, quiet
        self.augmentation: Augmentation = augmentation_of(dataset, config.data)
        self._method = registry.load_method(config.method)
        self._check_ipc()
        self._check_network()
        if config.data.zca:
            check_zca_size(dataset.channels, dataset.side, dataset.side)
        if self.is_taught and isinstance(self.teacher_store, ImportedStore):
            self.teacher_store.bounded(1, config.evaluation.teacher_epochs, ("evaluation.teacher_epochs",))

    def _check_ipc(self) -> None:
        if not self._method.uses_ipc:
            return
        if self.config.ipc < 1:
            raise UsageError(f"IPC (images per class) must be at least 1, not {self.config.ipc}.")
        if self.config.ipc > self.smallest_class:
            raise UsageError(
                f"IPC {self.config.ipc} is more than the {self.smallest_class} training images of "
                f"{self.dataset.name}'s smallest class: choose a smaller --ipc."
            )

    # ---- images ----------------------------------------------------------------------------------------------------

    @cached_property
    def _indices(self) -> Indices:
        return choose(torch.from_numpy(self.dataset.y_train), self.dataset.classes, self.config.data)

    @property
    def _train_labels(self) -> Tensor:
        return torch.from_numpy(self.dataset.y_train)[self._indices.train]

    @property
    def _train_pixels(self) -> "Pixels":
        chosen, pixels = self._indices.train, self.dataset.x_train
        return pixels if len(chosen) == len(pixels) else pixels[chosen.numpy()]

    @property
    def train_images(self) -> int:
        """Number of training images for experts and matching."""
        return len(self._indices.train)

    @cached_property
    def smallest_class(self) -> int:
        """Number of these training images in the smallest class."""
        return int(torch.bincount(self._train_labels, minlength=self.dataset.classes).min())

    @property
    def prepared_bytes(self) -> int:
        """Bytes of the preprocessed training images on the device; 0 if they are too large to be kept there."""
        return prepared_bytes(self.train_images * self.dataset.channels * self.dataset.side**2)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The fitted preprocessing. A ZCA fit is stored under ``preprocessing/`` and loaded from there."""
        if not self.config.data.zca:
            mean, std = self.config.data.moments(self.dataset.name, self.dataset.mean, self.dataset.std)
            known = dataclasses.replace(self.dataset, mean=mean, std=std)
            return fit_standardise(known, None if mean else self._train_pixels)
        facts = describe_data(self.dataset, self.config.data)
        fit = self._workspace.preprocessing / f"fit-{content_key(facts)}.json"
        if (stored := _stored_fit(fit, facts)) is not None:
            return stored
        fit.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(fit.with_suffix(".lock")):  # two fits can differ in their last bits, so only one is made
            if (stored := _stored_fit(fit, facts)) is not None:
                return stored
            if not self._quiet:
                say("fitting the ZCA whitening (once for this data set) ...")
            fitted = WHITENINGS[self.config.data.whitening](self._train_pixels, self.dataset.max_value)
            tensors, about = fitted.state()
            save_tensors(fit.with_name(f"{fitted.key}.safetensors"), tensors, about)
            write_json(fit, {"preprocessing": fitted.key, "data": facts})
            return fitted

    def decided(self, *, fit: bool = False) -> Decided:
        """Return what is decided for the images; with ``fit`` a whitening is fitted that has not been yet."""
        fitted = self.preprocessing if fit or not self.config.data.zca else None
        held = len(self._indices.validation)
        return Decided(self.dataset, self.config.data, self.train_images, held, fitted, self.augmentation)

    def whitening_files(self, key: str) -> list[Path]:
        """Return the record of this data's whitening and the files of the whitening ``key`` and of the recorded one."""
        folder = self._workspace.preprocessing
        record = folder / f"fit-{content_key(describe_data(self.dataset, self.config.data))}.json"
        return [record, *(folder / f"{name}.safetensors" for name in {key, self.preprocessing.key})]

    def splits(self, device: torch.device) -> Splits:
        """Return training, validation and test images on a device, shared between cells that use the same ones."""
        key = content_key([describe_data(self.dataset, self.config.data), str(device)])
        if key not in self._shared_splits:
            self._shared_splits[key] = cut(self.dataset, self._indices, self.preprocessing, device)
        return self._shared_splits[key]

    @cached_property
    def task(self) -> Task:
        """The task: what every network of the cell is given."""
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

    # ---- networks --------------------------------------------------------------------------------------------------

    def build_network(self) -> Network:
        """Return a freshly initialised network, as experts and matching use it."""
        d = self.dataset
        return self.config.network.build(d.channels, d.classes, d.side)

    @cached_property
    def network_skeleton(self) -> Network:
        """The network without values, on device ``meta``."""
        with torch.device("meta"):
            return self.build_network()

    def _check_network(self) -> None:
        if not self._method.uses_network:
            return
        name = self.config.network.name
        if why := why_unfit(self.network_skeleton):
            raise UsageError(f"network {name} cannot be used for condensation: {why}.")
        if not has_batch_norm(self.network_skeleton):
            return
        if why := self._method.refuses_batch_norm(self.config.settings):
            raise UsageError(
                f"method {self.config.method} cannot be used with the batch norm of network {name}: {why}. Choose "
                "another norm, such as network.norm=instance."
            )

    @cached_property
    def expert_request(self) -> ExpertRequest | None:
        """The experts that the method requests; ``None`` if it reads none."""
        return self._method.expert_request(self.config.settings)

    @cached_property
    def expert_store(self) -> ExpertStore:
        """The store of the experts that the settings describe, or of imported experts.

        Raises:
            UsageError: there are no such imported experts, or they belong to other data or another network.
        """
        c = self.config
        imported = c.experts.imported if self.expert_request else ""
        return self._store(c.network, c.experts, self.build_network, imported)

    def _store(
        self, network: NetworkSettings, training: ExpertSettings, build: Callable[[], Network], imported: str
    ) -> ExpertStore:
        recipe = ExpertRecipe(
            facts={
                "data": describe_data(self.dataset, self.config.data),
                "network": describe_network(self.dataset, network),
            },
            settings=training,
            augmentation=self.augmentation,
            build_network=build,
        )
        if imported:
            return open_imported(self._workspace.experts, imported, recipe)
        return ExpertStore(self._workspace.experts, recipe)

    @property
    def expert_count(self) -> int:
        """The number of experts that the method reads: its request, else the setting, else all that were imported.

        Raises:
            UsageError: more experts or more of their epochs are needed than were imported.
        """
        request = self.expert_request
        requested = request.count if request else None
        if request and isinstance(self.expert_store, ImportedStore):
            asked = self.config.experts.count if "experts.count" in self.config.changed else None
            return self.expert_store.bounded(requested or asked, request.epochs, request.asked_by)
        return requested or self.config.experts.count

    def experts(self, device: torch.device) -> StoredExperts | None:
        """Return the experts that the method reads, on a device; ``None`` if it reads none."""
        return StoredExperts(self.expert_store, self.expert_count, device) if self.expert_request else None

    @property
    def experts_read(self) -> ExpertsRead | None:
        """The experts that are part of the cell's identity; ``None`` if the method reads none."""
        return ExpertsRead(self.expert_store.recipe.key, self.expert_count) if self.expert_request else None

    @property
    def experts_complete(self) -> bool:
        """Whether all snapshots that the method reads exist."""
        request = self.expert_request
        return request is None or self.expert_store.complete(self.expert_count, request.epochs)

    # ---- the teacher of evaluations --------------------------------------------------------------------------------

    @property
    def is_taught(self) -> bool:
        """Whether a teacher gives the labels of the evaluations."""
        return self.config.evaluation.labels == TEACHER_LABELS

    @cached_property
    def teacher_network(self) -> NetworkSettings:
        """The network of the teacher."""
        return teacher_network(self.config.network, self.network_skeleton)

    def build_teacher(self) -> Network:
        """Return a freshly initialised network of the teacher."""
        d = self.dataset
        return self.teacher_network.build(d.channels, d.classes, d.side)

    @cached_property
    def teacher_store(self) -> ExpertStore:
        """The store whose expert 0 is the teacher.

        Raises:
            UsageError: there are no such imported experts, or they belong to other data or another network.
        """
        training = teacher_training(self.config.experts)
        return self._store(self.teacher_network, training, self.build_teacher, training.imported)

    @property
    def teacher_key(self) -> str:
        """The key of the teacher's recipe; empty if there is no teacher."""
        return self.teacher_store.recipe.key if self.is_taught else ""

    @property
    def teacher_complete(self) -> bool:
        """Whether the teacher is trained, or there is none."""
        return not self.is_taught or self.teacher_store.complete(1, self.config.evaluation.teacher_epochs)

    def teacher(self, device: torch.device) -> Teacher | None:
        """Return the teacher, trained, on a device; ``None`` if there is none."""
        return teacher_of(self.teacher_store, self.config.evaluation, device) if self.is_taught else None
