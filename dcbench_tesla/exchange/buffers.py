"""Imports expert buffers of MTT and TESLA into the expert store, snapshot by snapshot.

``replay_buffer_{n}.pt`` is a list of experts, each a list of epochs 0 .. E, each a list of parameter tensors in
``parameters()`` order. It does not say which data, network or recipe the experts were trained with. The user gives
data and network, which are stored with the experts, and a run with other data or another network refuses them.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcbench_tesla.cells.identity import describe_data, describe_network
from dcbench_tesla.config import ExpertSettings, NetworkSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.preprocessing import check_zca_size
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.exchange.files import load_torch, named, natural, plain_tensor, sha256_of
from dcbench_tesla.experts.imported import IMPORTED, read_index, write_index
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.experts.store import ExpertStore
from dcbench_tesla.records.leftovers import sweep, temporary_path
from dcbench_tesla.records.store import content_key, writing
from dcbench_tesla.records.workspace import Workspace

_Shapes = list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class ImportedExperts:
    """Imported experts in the store.

    Args:
        key: their key.
        folder: their folder.
        epochs: the last epoch of each expert.
        settings: the values of ``--set`` that a run needs to use them.
        new: whether this import added them to the store.
    """

    key: str
    folder: Path
    epochs: tuple[int, ...]
    settings: tuple[str, ...]
    new: bool


def import_experts(
    files: Sequence[Path],
    dataset: Dataset,
    workspace: Workspace,
    *,
    data: DataSettings,
    network: NetworkSettings,
    name: str = "",
) -> ImportedExperts:
    """Import the experts of ``files``, in the order of the files' names: either all of them or none.

    Args:
        files: the buffers.
        dataset: the data set that the experts were trained on.
        workspace: where the expert store is.
        data: how the data set was split and preprocessed.
        network: the network of the experts.
        name: a name that ``experts.imported`` accepts in place of the key.

    Raises:
        UsageError: a file does not exist or is given twice, its parameters are not those of ``network``, ``name`` is
            invalid, or ZCA is not offered for the size of the images.
        CorruptFileError: a file is damaged, is not an expert buffer, contains other objects than tensors, numbers and
            lists, holds NaN, or has no trajectory in it.
    """
    if data.zca:
        check_zca_size(dataset.channels, dataset.side, dataset.side)
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--name takes letters, digits, dots, dashes and underscores, not {name!r}.")
    files = sorted(files, key=natural)
    digests = _digests(files)
    recipe = ExpertRecipe(
        facts={"data": describe_data(dataset, data), "network": describe_network(dataset, network)},
        settings=ExpertSettings(),
        augmentation=Augmentation(),
        build_network=lambda: network.build(dataset.channels, dataset.classes, dataset.side),
        imported=content_key(digests),
    )
    final = workspace.experts / recipe.key
    settings = _settings(recipe, data)
    if (final / IMPORTED).exists():
        index = read_index(final / IMPORTED)
        epochs = tuple(index["epochs"])
        if name:  # the new name replaces the old one
            write_index(final, recipe, name=name, epochs=epochs, files=index["files"])
        return ImportedExperts(key=recipe.key, folder=final, epochs=epochs, settings=settings, new=False)
    temporary = temporary_path(workspace.experts / "import")
    sweep(workspace.experts)
    try:
        store = ExpertStore(temporary, recipe)
        epochs = tuple(_write(files, store, dataset))
        listed = [{"name": path.name, "sha256": digest} for path, digest in zip(files, digests, strict=True)]
        write_index(store.folder, recipe, name=name, epochs=epochs, files=listed)
        with writing(final):
            store.folder.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ImportedExperts(key=recipe.key, folder=final, epochs=epochs, settings=settings, new=True)


def _digests(files: Sequence[Path]) -> list[str]:
    digests = [sha256_of(named(path)) for path in files]
    for i, digest in enumerate(digests):
        if digest in digests[:i]:
            raise UsageError(f"{files[i]} and {files[digests.index(digest)]} are the same: each expert counts once.")
    return digests


def _settings(recipe: ExpertRecipe, data: DataSettings) -> tuple[str, ...]:
    """Return the settings that a run needs to use the experts, whatever its preset says."""
    network = recipe.facts["network"]
    return (
        f"experts.imported={recipe.key}",
        f"data.zca={str(data.zca).lower()}",
        f"data.train_images={data.train_images}",
        f"data.validation={data.validation:g}",
        *(f"network.{option}={value}" for option, value in network.items() if (option, value) != ("name", "convnet")),
    )


def _write(files: Sequence[Path], store: ExpertStore, dataset: Dataset) -> Iterator[int]:
    """Write the snapshots of all experts to the store; yield the last epoch of each expert."""
    expected = [(name, tuple(p.shape)) for name, p in store.recipe.build_network().named_parameters()]
    expert = 0
    for path in files:
        for i, trajectory in enumerate(_experts(path)):
            previous = None
            for epoch, parameters in enumerate(trajectory):
                theta = _flat(path, f"expert {i} of this file, epoch {epoch}", parameters, expected, dataset)
                if previous is not None and torch.equal(theta, previous):
                    raise CorruptFileError(
                        f"{path}: expert {i} of this file is the same after epochs {epoch - 1} and {epoch}: its "
                        "snapshots were taken without copying the parameters. There is no trajectory in it."
                    )
                store.write(expert, epoch, theta, {"file": path.name})
                previous = theta
            yield len(trajectory) - 1
            expert += 1


def _experts(path: Path) -> list[list[Any]]:
    """Return the experts of a file, each a list of at least two epochs."""
    content = load_torch(path, mapped=True)
    shape = "a list of experts, each a list of epochs, each a list of parameter tensors"
    if isinstance(content, Tensor):
        raise UsageError(f"{path} holds one tensor, as images_best.pt does: dcbench import set reads those.")
    if fault := _near_buffer(content):
        raise CorruptFileError(f"{path} {fault}")
    if not isinstance(content, list) or not content or not all(isinstance(e, list) for e in content):
        raise CorruptFileError(f"{path} is no expert buffer, which is {shape}.")
    for i, expert in enumerate(content):
        if not all(isinstance(parameters, (list, tuple)) for parameters in expert):
            raise CorruptFileError(f"{path} is no expert buffer: its entry {i} is not {shape.partition(', ')[2]}.")
        if len(expert) < 2:
            raise CorruptFileError(f"{path}: expert {i} of this file has {len(expert)} snapshots; matching needs two.")
    _check_size(path, content)
    return content


def _near_buffer(content: object) -> str:
    """What to do about contents that are nearly a buffer; nothing about others."""
    first = content[0] if isinstance(content, (list, tuple)) and content else None
    second = first[0] if isinstance(first, (list, tuple)) and first else None
    state = next((part for part in (content, first, second) if isinstance(part, dict)), {})
    if any(isinstance(value, Tensor) for value in state.values()):
        return (
            "holds state dicts, where a buffer has lists of parameters: save [[[p for p in sd.values()] for sd in "
            "expert] for expert in content], without running statistics, in the order of parameters()."
        )
    if isinstance(first, Tensor) and first.ndim == 4 and len(content) <= 3:  # type: ignore[arg-type]
        return "holds a list [images, labels], which is a distilled set: dcbench import set reads those, saved apart."
    if isinstance(second, Tensor) and isinstance(first, (list, tuple)) and len(first) > 1:
        return "holds a single trajectory, where a buffer is a list of them: torch.save([content], path) makes it one."
    return ""


def _check_size(path: Path, content: list[list[Any]]) -> None:
    """Refuse a file whose snapshots share their tensors: written out, they would be far larger than the file."""
    size, claimed = path.stat().st_size, 0
    for tensor in (t for expert in content for parameters in expert for t in parameters if isinstance(t, Tensor)):
        claimed += tensor.numel() * tensor.element_size()
        if claimed > size:
            raise CorruptFileError(
                f"{path} names more numbers than it holds, so its snapshots share them: they were taken without "
                "copying the parameters. There is no trajectory in it."
            )


def _flat(
    path: Path, where: str, parameters: Sequence[Any], expected: Sequence[tuple[str, tuple[int, ...]]], dataset: Dataset
) -> Tensor:
    """Return a snapshot's parameters as a flat float32 vector ``(P,)``, checked against the network's shapes."""
    tensors = [plain_tensor(p, path, f"{where}, tensor {i}") for i, p in enumerate(parameters)]
    shapes = [tuple(t.shape) for t in tensors]
    if shapes != [shape for _, shape in expected]:
        raise UsageError(f"{path}, {where}: {_difference(shapes, expected)} {_what_fits(shapes, dataset)}")
    for (name, _), tensor in zip(expected, tensors, strict=True):
        if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            raise CorruptFileError(f"{path}, {where}: {name} is of type {tensor.dtype}, expected float32.")
    theta = torch.cat([t.float().reshape(-1) for t in tensors])
    if not torch.isfinite(theta).all():
        raise CorruptFileError(f"{path}, {where}: holds NaN or infinity; this expert diverged.")
    return theta


def _difference(shapes: _Shapes, expected: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    for i, (shape, (name, wanted)) in enumerate(zip(shapes, expected, strict=False)):
        if shape != wanted:
            return f"tensor {i} ({name}) is {shape}, the network's is {wanted}."
    return f"{len(shapes)} tensors, the network has {len(expected)}."


def _what_fits(shapes: _Shapes, dataset: Dataset) -> str:
    """Return a sentence that names the ConvNet with these shapes, so that the user sees what to change."""
    kinds = [(4, 1, 1, 1)] * max(0, (len(shapes) - 2) // 4)
    ranks = [rank for block in kinds for rank in block] + [2, 1]
    if [len(shape) for shape in shapes] != ranks or not kinds:
        return "They are not those of a ConvNet (convolution, norm, ... , classifier), so they cannot be used here."
    width, channels = shapes[0][:2]
    classes, inputs = shapes[-2]
    depth = len(kinds)
    side = round((inputs / width) ** 0.5) << depth
    remedy = f"--width {width} --depth {depth}"
    if (channels, classes) != (dataset.channels, dataset.classes):
        remedy = f"another --dataset than {dataset.name} ({dataset.channels} channels, {dataset.classes} classes)"
    return (
        f"They fit a ConvNet of width {width} and depth {depth} for {classes} classes and {channels} channels of about "
        f"{side} pixels: {remedy}."
    )
