"""Expert trajectories: networks trained on the real images, with a snapshot of all parameters after every epoch.

An expert is identified by data, preprocessing, augmentation, network, training recipe and its number, and by nothing
else. It can be trained for more epochs later, and cells with different seeds share it. Each snapshot is a file of its
own (``<root>/<key>/expert_0003/epoch_007.safetensors``, float32 ``(P,)``): writing is atomic, a killed process loses
only the running epoch, and matching reads just the two snapshots it needs.
"""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from dcbench_tesla.compute.networks import flatten_parameters, seeded
from dcbench_tesla.compute.seeds import seed_for
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.errors import CorruptFileError, DivergedError
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.experts.training import train_epoch
from dcbench_tesla.records.store import content_key, load_tensors, save_tensors, write_json

_CACHED_SNAPSHOTS = 8
_FORMAT = "dcbench expert snapshot"
_RETRAINED = "Delete it and run the same command again: the expert is trained on from the epoch before."


class Ticker(Protocol):
    """Counts finished units of work, like a progress bar."""

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` further units as done."""
        ...


class ExpertStore:
    """The experts of one recipe on disk; trains missing experts, and trains experts further that lack epochs.

    Several processes may use the same store: a lock ensures that one process at a time trains an expert.
    """

    def __init__(self, root: Path, recipe: ExpertRecipe) -> None:
        self.recipe = recipe
        self.folder = root / recipe.key

    def path(self, expert: int, epoch: int) -> Path:
        """Return the file of one expert's snapshot after ``epoch`` epochs."""
        return self.folder / f"expert_{expert:04d}" / f"epoch_{epoch:03d}.safetensors"

    def missing_epochs(self, count: int, epochs: int) -> int:
        """Return how many epochs of training the first ``count`` experts lack."""
        return sum(epochs - self.trained(i, epochs) for i in range(count))

    def trained(self, expert: int, epochs: int) -> int:
        """Return the last epoch up to which an expert is trained without gaps, ``epochs`` at most."""
        done = 0
        while done < epochs and self.path(expert, done + 1).exists():
            done += 1
        return done

    def complete(self, count: int, epochs: int) -> bool:
        """Return whether the first ``count`` experts have all snapshots 0 .. ``epochs``."""
        return all(self.complete_expert(i, epochs) for i in range(count))

    def ensure(self, count: int, epochs: int, train: LabelledImages, ticker: Ticker) -> float:
        """Train the first ``count`` experts up to ``epochs``; return the seconds this took.

        Experts that another process is training are left for last, and then waited for.

        Raises:
            DivergedError: a loss became NaN or infinite.
            CorruptFileError: the snapshot to continue from is damaged.
        """
        start = time.perf_counter()
        write_json(self.folder / "recipe.json", self.recipe.identity)
        wanted = [i for i in range(count) if not self.complete_expert(i, epochs)]
        for wait in (False, True):
            for i in list(wanted):
                try:
                    with self._lock(i, wait=wait):
                        self._train(i, epochs, train, ticker)
                except Timeout:
                    continue
                wanted.remove(i)
        return time.perf_counter() - start

    def complete_expert(self, expert: int, epochs: int) -> bool:
        """Return whether one expert has all snapshots 0 .. ``epochs``."""
        return all(self.path(expert, e).exists() for e in range(epochs + 1))

    def _lock(self, expert: int, *, wait: bool) -> AbstractContextManager[Any]:
        folder = self.path(expert, 0).parent
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock", timeout=-1 if wait else 0)

    def _train(self, expert: int, epochs: int, train: LabelledImages, ticker: Ticker) -> None:
        """Train one expert up to ``epochs``, starting from its last snapshot."""
        network = self._network(expert).to(train.device)
        if not self.path(expert, 0).exists():
            self.write(expert, 0, flatten_parameters(network), {})
        done = self.trained(expert, epochs)
        torch.nn.utils.vector_to_parameters(self.snapshot(expert, done).to(train.device), network.parameters())
        for epoch in range(done, epochs):
            loss = train_epoch(network, train, self.recipe.settings, self.recipe.augmentation, expert, epoch)
            theta = flatten_parameters(network)
            if not math.isfinite(loss) or not bool(torch.isfinite(theta).all()):
                raise DivergedError(f"expert {expert} diverged in epoch {epoch + 1}: lower experts.lr.")
            self.write(expert, epoch + 1, theta, {"train_loss": loss})
            ticker.advance()

    def _network(self, expert: int) -> nn.Module:
        with seeded(seed_for(0, "expert initialisation", expert)):
            return self.recipe.build_network()

    def write(self, expert: int, epoch: int, theta: Tensor, facts: Mapping[str, Any]) -> None:
        """Write one snapshot: parameters ``theta`` ``(P,)``, with ``facts`` in addition to what identifies it."""
        meta = {"format": _FORMAT, "expert": expert, "epoch": epoch, **facts}
        save_tensors(self.path(expert, epoch), {"theta": theta}, {**meta, "identity": self.recipe.identity})

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Read one snapshot: parameters ``(P,)``, float32 on the CPU.

        Raises:
            CorruptFileError: the snapshot is damaged, is that of another expert, or was deleted during the run.
        """
        path = self.path(expert, epoch)
        try:
            tensors, meta = load_tensors(path)
        except FileNotFoundError as error:
            raise CorruptFileError(f"{path} is gone. Run the same command again: it trains the expert anew.") from error
        except CorruptFileError as error:
            raise CorruptFileError(f"{path} is damaged. {_RETRAINED}") from error
        if fault := self.mistaken(tensors, meta, expert, epoch):
            raise CorruptFileError(f"{path} {fault}. {_RETRAINED}")
        return self.checked(path, tensors, _RETRAINED)

    def checked(self, path: Path, tensors: Mapping[str, Tensor], remedy: str) -> Tensor:
        """Return the parameters ``(P,)`` of the snapshot that ``path`` holds.

        Raises:
            CorruptFileError: they are not those of the recipe's network, or not finite.
        """
        theta = tensors.get("theta")
        if theta is None or theta.dtype != torch.float32 or theta.shape != (self.parameters,):
            found = "no parameters" if theta is None else f"{theta.dtype} {tuple(theta.shape)}"
            wanted = f"the network of this run has {self.parameters} parameters in float32"
            raise CorruptFileError(f"{path} holds {found}, but {wanted}. {remedy}")
        if not np.isfinite(theta.numpy()).all():  # by NumPy: a meter of tensors does not count it
            raise CorruptFileError(f"{path} holds parameters that are NaN or infinite. {remedy}")
        return theta

    @cached_property
    def parameters(self) -> int:
        """The number of parameters P of the recipe's network."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.recipe.build_network().parameters())

    def mistaken(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], expert: int, epoch: int) -> str:
        """Return why the content of a file is not the snapshot that its place says; empty if it is."""
        if meta.get("format") != _FORMAT or set(tensors) != {"theta"}:
            return "is not a snapshot of an expert"
        if (meta.get("expert"), meta.get("epoch")) != (expert, epoch):
            return f"holds epoch {meta.get('epoch')} of expert {meta.get('expert')}"
        if content_key(meta.get("identity")) != self.recipe.key:
            return "holds an expert of other data, another network or another recipe"
        return ""


class StoredExperts:
    """The first ``count`` experts of a store, read when needed; the :class:`ExpertSource` of a run."""

    def __init__(self, store: ExpertStore, count: int, device: torch.device) -> None:
        self._count = count
        self._device = device
        _ = store.parameters  # found now: within a run, meters of memory would count the network that this takes
        self._read = lru_cache(maxsize=_CACHED_SNAPSHOTS)(store.snapshot)

    def __len__(self) -> int:
        return self._count

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return the parameters ``(P,)`` of one expert after ``epoch`` epochs, on the run's device."""
        return self._read(expert, epoch).to(self._device)
