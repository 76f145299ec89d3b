"""Data sets by name: registered ones, and the user's own as ``npz:PATH`` or ``folder:PATH``, arrays or PyTorch's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcbench_tesla import registry
from dcbench_tesla.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Dataset

PREFIXES = ("npz:", "folder:")


def default_data_dir() -> Path:
    """Return ``$DCBENCH_DATA``, or the platform's cache folder for this program."""
    from platformdirs import user_cache_path

    named = os.environ.get("DCBENCH_DATA")
    return Path(named).expanduser() if named else user_cache_path("dcbench") / "data"


def check_dataset_name(name: str) -> None:
    """Check that ``name`` is a registered data set, or starts with ``npz:`` or ``folder:``.

    Raises:
        UsageError: it is neither; the message says so where ``npz:`` or ``folder:`` was left out.
    """
    if name in PREFIXES:
        raise UsageError(f"{name} names no file: write {name}PATH.")
    if name.startswith(PREFIXES) or name in registry.names("datasets"):
        return
    if prefix := _prefix_for(Path(name).expanduser()):
        raise UsageError(f"unknown data set {name!r}. Did you mean '{prefix}{name}'? {prefix} stands before a path.")
    raise unknown_name("data set", name, [*registry.names("datasets"), "npz:PATH", "folder:PATH"])


def _prefix_for(path: Path) -> str:
    """Return what should stand before a path that was given in place of a name; nothing if it looks like a name."""
    if path.suffix == ".npz" or path.is_file():
        return "npz:"
    return "folder:" if path.is_dir() or len(path.parts) > 1 else ""


def dataset_name(given: str | os.PathLike[str]) -> str:
    """Return the name of a data set that is given by its name, or by the path of a ``.npz`` file or of a folder.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(given, str):
        return str(given)  # also for strings of NumPy
    if not isinstance(given, os.PathLike):
        raise UsageError(f"a data set is given by its name or by a path, not by {given!r} ({type(given).__name__}).")
    path = Path(given)
    return f"{'npz' if path.is_file() or path.suffix == '.npz' else 'folder'}:{path}"


def load_dataset(given: Any, data_dir: Path | str | None = None, *, name: str | None = None) -> "Dataset":
    """Load a data set by its registered name, or the user's own: a file, a folder, arrays or data sets of PyTorch.

    Args:
        given: ``digits``, ``fashion-mnist`` ... (``dcbench list datasets``), ``npz:PATH`` or ``folder:PATH``; the path
            of a ``.npz`` file or of a folder; the arrays ``(x_train, y_train, x_test, y_test)``, or a mapping with
            these and the optional keys of an archive; or two data sets of PyTorch, ``(train, test)``. NumPy's images
            are uint8 ``(N, H, W, C)`` or ``(N, H, W)``, PyTorch's ``(N, C, H, W)`` or ``(N, H, W)``. A loaded data set
            is returned as it is.
        data_dir: the folder with the files of registered data sets; by default :func:`default_data_dir`.
        name: a name for arrays or data sets of PyTorch; by default ``arrays``, or the name of their class.

    Raises:
        UsageError: the name is unknown, or ``given`` is none of these.
        DataMissingError: the files are not here and could not be downloaded.
        CorruptFileError: the files are damaged, or arrays are not as described.
    """
    from dcbench_tesla.data import files  # imports numpy, which checking a name does not need
    from dcbench_tesla.data.dataset import Dataset

    if isinstance(given, Dataset):
        return given
    if not isinstance(given, (str, os.PathLike)):
        return _from_memory(given, name)
    named = dataset_name(given)
    check_dataset_name(named)
    if named.startswith("npz:"):
        return files.load_npz(Path(named.removeprefix("npz:")).expanduser())
    if named.startswith("folder:"):
        return files.load_folder(Path(named.removeprefix("folder:")).expanduser())
    return registry.load_source(named).load(Path(data_dir) if data_dir else default_data_dir())


def _from_memory(given: Any, name: str | None) -> "Dataset":
    """Return the data set of arrays or of data sets of PyTorch.

    Raises:
        UsageError: it is neither, or a part is missing.
        CorruptFileError: the arrays are not as described.
    """
    from dcbench_tesla.data import files
    from dcbench_tesla.data.own import torch_sets

    if torch_sets.is_torch_set(given):
        told = f"a {type(given).__name__} holds one split: give two, (train, test). torch.utils.data.random_split makes"
        raise UsageError(f"{told} two of one.")
    parts = list(given.values()) if isinstance(given, Mapping) else list(given) if isinstance(given, tuple) else []
    if len(parts) == 2 and all(map(torch_sets.is_torch_set, parts)):
        arrays = torch_sets.arrays_of(*parts)
    elif isinstance(given, Mapping):
        arrays = torch_sets.as_arrays(given)
    elif len(parts) == len(files.REQUIRED_KEYS):
        arrays = torch_sets.as_arrays(dict(zip(files.REQUIRED_KEYS, parts, strict=True)))
    else:
        expected = "its name, a path, arrays (x_train, y_train, x_test, y_test), a mapping of them, or (train, test)"
        found = f"{given!r:.80} ({type(given).__name__})"
        raise UsageError(f"a data set is given by {expected} of PyTorch, not by {found}.")
    if missing := [key for key in files.REQUIRED_KEYS if key not in arrays]:
        raise UsageError(f"the arrays lack {', '.join(missing)}; expected {', '.join(files.REQUIRED_KEYS)}.")
    return files.dataset_from(arrays, name or torch_sets.named(parts))


def kept(dataset: "Dataset", folder: Path) -> str:
    """Return the name ``npz:PATH`` of a data set in memory, which is written below ``folder`` if it is not there yet.

    Runs can then be continued and evaluated by another process.
    """
    from dcbench_tesla.data import files
    from dcbench_tesla.records.store import content_key

    facts = [dataset.fingerprint, dataset.mean, dataset.std, dataset.flippable, dataset.redistributable]
    path = folder / content_key(facts) / f"{dataset.name.rpartition(':')[2]}.npz"
    if not path.exists():
        files.save_npz(dataset, path)
    return f"npz:{path}"
