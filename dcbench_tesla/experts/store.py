"""Expert trajectories: networks trained on the real images, a snapshot of all parameters an epoch.

An expert is identified by data, preprocessing, augmentation, network, recipe and its number, by nothing else: not by
how many epochs it was trained, so whoever needs more extends it, and not by a cell's seed, so all share it. Each
snapshot is a file of its own (``<root>/<key>/expert_0003/epoch_007.safetensors``, float32 ``(P,)``): writing is
atomic, a killed process loses the running epoch only, and matching reads just the two snapshots it needs.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from dcbench_tesla.compute.compiling import TrainingStep
from dcbench_tesla.compute.networks import flatten_parameters, seeded
from dcbench_tesla.compute.seeds import generator, seed_for
from dcbench_tesla.config import ExpertSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.errors import CorruptFileError, DivergedError, UsageError
from dcbench_tesla.records.store import content_key, load_tensors, read_json, save_tensors, write_json

IMPORTED = "imported.json"  # in the folder of experts of others; written last
_VERSION = 1
_CACHED_SNAPSHOTS = 8
_HOW_TO_SAY = {
    ("data", "fingerprint"): "the data set's fingerprint",
    ("data", "preprocessing"): "the preprocessing (data.zca)",
    ("data", "train_images"): "data.train_images",
    ("data", "validation"): "data.validation",
    ("network", "width"): "network.width",
    ("network", "depth"): "network.depth",
}


class Ticker(Protocol):
    """Takes note of finished units of work, as progress bars do."""

    def advance(self, amount: int = 1) -> None:
        """Note ``amount`` further units as done."""
        ...


@dataclass(frozen=True, kw_only=True)
class ExpertRecipe:
    """What identifies a set of experts, besides their number: hashed into ``key``.

    ``facts`` are those of data, preprocessing and network, as plain JSON. ``imported``: the digest of the files they
    were read from, for experts of others.
    """

    facts: Mapping[str, Any]
    settings: ExpertSettings
    augmentation: Augmentation
    build_network: Callable[[], nn.Module]
    imported: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """Return everything that defines expert i, but i."""
        if self.imported:  # how they were trained is not known here; their contents stand for it
            return {"version": _VERSION, "imported": self.imported, **self.facts}
        recipe = {"lr": self.settings.lr, "batch_size": self.settings.batch_size}
        return {
            "version": _VERSION,
            "recipe": recipe,
            "augmentation": self.augmentation.strategy,
            **self.facts,
        }

    @property
    def key(self) -> str:
        """Return the content key of :attr:`identity`."""
        return content_key(self.identity)


class ExpertStore:
    """The experts of one recipe on disk; trains what is missing, extends what is short.

    Several processes may want the same experts: each expert is trained under a lock, by one of them.
    """

    def __init__(self, root: Path, recipe: ExpertRecipe) -> None:
        self.recipe = recipe
        self.folder = root / recipe.key

    def path(self, expert: int, epoch: int) -> Path:
        """Return where the snapshot of one expert after ``epoch`` epochs lies."""
        return self.folder / f"expert_{expert:04d}" / f"epoch_{epoch:03d}.safetensors"

    def missing_epochs(self, count: int, epochs: int) -> int:
        """Return how many epochs of training the first ``count`` experts lack."""
        return sum(epochs - self.trained(i, epochs) for i in range(count))

    def trained(self, expert: int, epochs: int) -> int:
        """Return up to which epoch an expert is trained, ``epochs`` at most."""
        done = 0
        while done < epochs and self.path(expert, done + 1).exists():
            done += 1
        return done

    def complete(self, count: int, epochs: int) -> bool:
        """Whether snapshots 0 .. ``epochs`` of the first ``count`` experts are there."""
        return all(self.complete_expert(i, epochs) for i in range(count))

    def ensure(self, count: int, epochs: int, train: LabelledImages, ticker: Ticker) -> float:
        """Train the first ``count`` experts up to ``epochs``; return the seconds this took.

        What another process is training is left to it: first come the free ones, then those it holds are waited for.

        Raises:
            DivergedError: a loss became NaN or infinite.
            CorruptFileError: the snapshot to go on from is damaged.
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
        """Whether one expert has snapshots 0 .. ``epochs``."""
        return all(self.path(expert, e).exists() for e in range(epochs + 1))

    def _lock(self, expert: int, *, wait: bool) -> AbstractContextManager[Any]:
        folder = self.path(expert, 0).parent
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock", timeout=-1 if wait else 0)

    def _train(self, expert: int, epochs: int, train: LabelledImages, ticker: Ticker) -> None:
        """Train one expert on from its last snapshot."""
        network = self._network(expert).to(train.device)
        if not self.path(expert, 0).exists():
            self.write(expert, 0, flatten_parameters(network), {})
        done = self.trained(expert, epochs)
        torch.nn.utils.vector_to_parameters(self.snapshot(expert, done).to(train.device), network.parameters())
        for epoch in range(done, epochs):
            loss = train_epoch(network, train, self.recipe.settings, self.recipe.augmentation, expert, epoch)
            if not torch.isfinite(torch.tensor(loss)):
                raise DivergedError(f"expert {expert} diverged in epoch {epoch + 1}: lower experts.lr.")
            self.write(expert, epoch + 1, flatten_parameters(network), {"train_loss": loss})
            ticker.advance()

    def _network(self, expert: int) -> nn.Module:
        with seeded(seed_for(0, "expert initialisation", expert)):
            return self.recipe.build_network()

    def write(self, expert: int, epoch: int, theta: Tensor, facts: Mapping[str, Any]) -> None:
        """Write one snapshot ``(P,)`` with further ``facts`` beside what identifies it."""
        meta = {"format": "dcbench expert snapshot", "expert": expert, "epoch": epoch, **facts}
        save_tensors(self.path(expert, epoch), {"theta": theta}, {**meta, "identity": self.recipe.identity})

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Read one snapshot ``(P,)``, float32 on the CPU.

        Raises:
            CorruptFileError: it is damaged, or was deleted meanwhile.
        """
        path = self.path(expert, epoch)
        try:
            tensors, _ = load_tensors(path)
        except FileNotFoundError as error:
            raise CorruptFileError(f"{path} is gone. Run the same command again: it trains the expert anew.") from error
        except CorruptFileError as error:
            raise CorruptFileError(
                f"{path} is damaged. Delete it and run the same command again: the expert is trained on from the "
                "epoch before."
            ) from error
        return tensors["theta"]


class ImportedStore(ExpertStore):
    """Experts of others, put into the store by ``dcbench import experts``: read as any, and never trained.

    ``epochs``: the last epoch of each. Raises ``CorruptFileError`` where the folder's index belongs to other experts.
    """

    def __init__(self, root: Path, recipe: ExpertRecipe, epochs: Sequence[int]) -> None:
        super().__init__(root, recipe)
        self.epochs = tuple(epochs)

    def bounded(self, count: int | None, epochs: int) -> int:
        """Return how many experts to read, all there are if ``count`` is ``None``, each up to ``epochs``.

        Raises:
            UsageError: more experts or more epochs than were imported.
        """
        there = len(self.epochs)
        wanted = there if count is None else count
        if wanted > there:
            raise UsageError(
                f"{wanted} experts are wanted, but {there} were imported ({self.recipe.key}): --set "
                f"experts.count={there}, or import more files. Imported experts are not trained here."
            )
        shortest = min(range(wanted), key=lambda i: self.epochs[i])
        if self.epochs[shortest] < epochs:
            raise UsageError(
                f"epochs 0 to {epochs} of every expert are wanted, but imported expert {shortest} ({self.recipe.key}) "
                f"ends at {self.epochs[shortest]}: lower max_start_epoch or expert_epochs. Imported experts cannot be "
                "trained further."
            )
        return wanted

    def ensure(self, count: int, epochs: int, train: LabelledImages, ticker: Ticker) -> float:
        """Check that the first ``count`` experts are there up to ``epochs``; return the seconds of training, 0.

        Raises:
            UsageError: more experts or more epochs than were imported.
            CorruptFileError: snapshots that were imported are gone.
        """
        self.bounded(count, epochs)
        gone = [i for i in range(count) if not self.complete_expert(i, epochs)]
        if gone:
            raise CorruptFileError(f"{self.path(gone[0], 0).parent} is no longer whole. {self._remedy}")
        return 0.0

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Read one snapshot ``(P,)``, float32 on the CPU; raises ``CorruptFileError`` if it is damaged or gone."""
        path = self.path(expert, epoch)
        try:
            tensors, _ = load_tensors(path)
        except (FileNotFoundError, CorruptFileError) as error:
            raise CorruptFileError(f"{path} is damaged or gone. {self._remedy}") from error
        return tensors["theta"]

    @property
    def _remedy(self) -> str:
        return f"Delete the folder {self.folder} and import the experts again (dcbench import experts)."


def write_index(folder: Path, recipe: ExpertRecipe, *, name: str, epochs: Sequence[int], files: Any) -> None:
    """Write what :func:`open_imported` finds imported experts by: it makes the folder a finished import."""
    facts = {"key": recipe.key, "name": name, "epochs": list(epochs), "files": files, "identity": recipe.identity}
    write_json(folder / "recipe.json", recipe.identity)
    write_json(folder / IMPORTED, {"format": "dcbench imported experts", **facts})


def open_imported(root: Path, wanted: str, recipe: ExpertRecipe) -> ImportedStore:
    """Return the imported experts ``wanted`` (key, its beginning, or name) for a run described by ``recipe``.

    Raises:
        UsageError: there are none of this name, or several; or they belong to other data, another preprocessing or
            another network.
        CorruptFileError: the index of the import is damaged.
    """
    index = _find_imported(root, wanted)
    identity: Mapping[str, Any] = index["identity"]
    facts = json.loads(json.dumps(recipe.facts))  # tuples become lists, as in what was stored
    differences = [
        f"{_HOW_TO_SAY.get((part, name), name)} is {facts[part].get(name)!r} here, {identity[part].get(name)!r} there"
        for part in sorted(facts)
        for name in sorted({*facts[part], *identity[part]})
        if facts[part].get(name) != identity[part].get(name)
    ]
    if differences:
        raise UsageError(
            f"the imported experts {index['key']} do not belong to this run: {'; '.join(differences)}. Set the run to "
            "what they were trained on, or import them for this."
        )
    store = ImportedStore(root, replace(recipe, imported=identity["imported"]), index["epochs"])
    if store.recipe.key != index["key"]:
        raise CorruptFileError(f"{root / index['key'] / IMPORTED} is not what was imported. {store._remedy}")
    return store


def _find_imported(root: Path, wanted: str) -> dict[str, Any]:
    """The index of the one import that ``wanted`` names."""
    found = {index["key"]: index for index in map(read_json, sorted(root.glob(f"*/{IMPORTED}")))}
    exact = [i for key, i in found.items() if wanted in (key, i["name"])]
    matching = exact or [i for key, i in found.items() if key.startswith(wanted)]
    if len(matching) == 1:
        return dict(matching[0])
    shown = ", ".join(f"{i['key']} ({i['name']})" if i["name"] else i["key"] for i in matching or found.values())
    if matching:
        raise UsageError(f"experts.imported={wanted} could be each of {shown}: give more of the key.")
    raise UsageError(
        f"no imported experts {wanted!r} under {root}; there: {shown or 'none'}. dcbench import experts FILES "
        "--dataset NAME puts them there."
    )


class StoredExperts:
    """The first ``count`` experts of a store, read when asked for: the :class:`ExpertSource` of a run."""

    def __init__(self, store: ExpertStore, count: int, device: torch.device) -> None:
        self._count = count
        self._device = device
        self._read = lru_cache(maxsize=_CACHED_SNAPSHOTS)(store.snapshot)

    def __len__(self) -> int:
        return self._count

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return the parameters of one expert after ``epoch`` epochs, on the run's device."""
        return self._read(expert, epoch).to(self._device)


def train_epoch(
    network: nn.Module,
    train: LabelledImages,
    settings: ExpertSettings,
    augmentation: Augmentation,
    expert: int,
    epoch: int,
) -> float:
    """Train one epoch of plain SGD with DSA on the real images; return the mean loss.

    Every random number comes from (expert, epoch), so an expert resumes or is extended as if never interrupted.
    """
    optimiser = torch.optim.SGD(network.parameters(), lr=settings.lr)
    rng = generator(0, "expert epoch", expert, epoch)
    step, losses = TrainingStep(network), []
    for indices in torch.randperm(len(train), generator=rng).split(settings.batch_size):
        images = train.inputs(indices)
        images = augmentation(images, augmentation.draw(len(images), images.shape[-1], rng))
        loss = step(images, train.labels[indices].to(images.device))
        optimiser.step()
        losses.append(loss * len(indices))
    return float(torch.stack(losses).sum() / len(train))
