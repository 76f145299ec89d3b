"""Experts of other people, which ``dcbench import experts`` put into the store: read like any others, never trained."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.experts.store import ExpertStore, Ticker
from dcbench_tesla.records.store import content_key, load_tensors, read_json, write_json

IMPORTED = "imported.json"  # the index in a folder of imported experts; written last, so it marks a finished import
_HOW_TO_SAY = {
    ("data", "fingerprint"): "the data set's fingerprint",
    ("data", "preprocessing"): "the preprocessing (data.zca)",
    ("data", "train_images"): "data.train_images",
    ("data", "validation"): "data.validation",
    ("network", "name"): "network.name",
    ("network", "norm"): "network.norm",
    ("network", "width"): "network.width",
    ("network", "depth"): "network.depth",
}


class ImportedStore(ExpertStore):
    """The store of experts that were imported: they are read like any others, and never trained.

    Args:
        root: the folder of all experts.
        recipe: what identifies the experts.
        epochs: the last epoch of each expert.
    """

    def __init__(self, root: Path, recipe: ExpertRecipe, epochs: Sequence[int]) -> None:
        super().__init__(root, recipe)
        self.epochs = tuple(epochs)

    def unlisted(self) -> Path | None:
        """Return the first snapshot beyond those that :attr:`epochs` lists; ``None`` if there is none."""
        beyond = [self.path(len(self.epochs), 0), *(self.path(i, epoch + 1) for i, epoch in enumerate(self.epochs))]
        return next((path for path in beyond if path.exists()), None)

    def bounded(self, count: int | None, epochs: int, asked_by: Sequence[str] = ()) -> int:
        """Return the number of experts to read, after checking that each has snapshots up to ``epochs``.

        Args:
            count: number of experts wanted; ``None`` for all.
            epochs: last epoch wanted of each expert.
            asked_by: the settings that ask for so many epochs.

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
            remedy = f"lower {' or '.join(asked_by)}" if asked_by else "let the method read fewer"
            raise UsageError(
                f"epochs 0 to {epochs} of every expert are wanted, but imported expert {shortest} ({self.recipe.key}) "
                f"ends at {self.epochs[shortest]}: {remedy}. Imported experts cannot be trained further."
            )
        return wanted

    def ensure(self, count: int, epochs: int, train: LabelledImages, ticker: Ticker) -> float:
        """Check that the first ``count`` experts are complete up to ``epochs``; return 0, the seconds of training.

        Raises:
            UsageError: more experts or more epochs than were imported.
            CorruptFileError: imported snapshots are missing.
        """
        self.bounded(count, epochs)
        gone = [i for i in range(count) if not self.complete_expert(i, epochs)]
        if gone:
            raise CorruptFileError(
                f"{self.path(gone[0], 0).parent} does not hold what {IMPORTED} lists. {self._remedy}"
            )
        return 0.0

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Read one snapshot: parameters ``(P,)``, float32 on the CPU.

        Raises:
            CorruptFileError: the snapshot is damaged, is that of another expert, or is missing.
        """
        path = self.path(expert, epoch)
        try:
            tensors, meta = load_tensors(path)
        except (FileNotFoundError, CorruptFileError) as error:
            raise CorruptFileError(f"{path} is damaged or gone. {self._remedy}") from error
        if fault := self.mistaken(tensors, meta, expert, epoch):
            raise CorruptFileError(f"{path} {fault}. {self._remedy}")
        return self.checked(path, tensors, self._remedy)

    @property
    def _remedy(self) -> str:
        return f"Delete the folder {self.folder} and import the experts again (dcbench import experts)."


def write_index(folder: Path, recipe: ExpertRecipe, *, name: str, epochs: Sequence[int], files: Any) -> None:
    """Write the index by which :func:`open_imported` finds imported experts. It completes the import."""
    facts = {"key": recipe.key, "name": name, "epochs": list(epochs), "files": files, "identity": recipe.identity}
    write_json(folder / "recipe.json", recipe.identity)
    write_json(folder / IMPORTED, {"format": "dcbench imported experts", **facts})


def read_index(path: Path) -> dict[str, Any]:
    """Return the index that :func:`write_index` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is damaged, or the experts that it describes are not those that its key stands for.
    """
    remedy = f"Delete the folder {path.parent} and import the experts again (dcbench import experts)."
    index: dict[str, Any] = read_json(path, "imported experts", remedy=remedy)
    if not index["key"] == content_key(index["identity"]) == path.parent.name:
        raise CorruptFileError(f"{path} describes other experts than its key and its folder stand for. {remedy}")
    return index


def open_imported(root: Path, wanted: str, recipe: ExpertRecipe) -> ImportedStore:
    """Return the store of the imported experts ``wanted`` for the run that ``recipe`` describes.

    Args:
        root: the folder of all experts.
        wanted: key of the imported experts, a beginning of the key, or their name.
        recipe: data, preprocessing and network of the run.

    Raises:
        UsageError: no import or several imports match ``wanted``, or the experts belong to other data, another
            preprocessing or another network.
        CorruptFileError: the index of the import is damaged.
    """
    index = _find_imported(root, wanted)
    identity: Mapping[str, Any] = index["identity"]
    facts = json.loads(json.dumps(recipe.facts))  # turns tuples into lists, as in the stored index
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
    if (more := store.unlisted()) is not None:
        raise CorruptFileError(f"{root / index['key'] / IMPORTED} does not list {more}. {store._remedy}")
    return store


def _indices(root: Path) -> tuple[dict[str, dict[str, Any]], list[CorruptFileError]]:
    """Return the indices of all imports by key, and errors about those that are damaged."""
    found: dict[str, dict[str, Any]] = {}
    damaged = []
    for path in sorted(root.glob(f"*/{IMPORTED}")):
        try:
            index = read_index(path)
            found[index["key"]] = index
        except CorruptFileError as error:
            damaged.append(error)
    return found, damaged


def _find_imported(root: Path, wanted: str) -> dict[str, Any]:
    """Return the index of the one import that ``wanted`` names."""
    found, damaged = _indices(root)
    exact = [i for key, i in found.items() if wanted in (key, i["name"])]
    matching = exact or [i for key, i in found.items() if key.startswith(wanted)]
    if len(matching) == 1:
        return dict(matching[0])
    shown = ", ".join(f"{i['key']} ({i['name']})" if i["name"] else i["key"] for i in matching or found.values())
    if damaged and not matching:  # it may be the one that is wanted
        raise damaged[0]
    if matching:
        raise UsageError(f"experts.imported={wanted} matches several imports: {shown}. Give more of the key.")
    raise UsageError(
        f"no imported experts {wanted!r} under {root}; imported: {shown or 'none'}. dcbench import experts FILES "
        "--dataset NAME puts them there."
    )
