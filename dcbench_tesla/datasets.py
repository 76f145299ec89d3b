"""Data sets by name: registered ones, and the user's own as ``npz:PATH`` or ``folder:PATH``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

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


def load_dataset(name: str | os.PathLike[str], data_dir: Path | str | None = None) -> "Dataset":
    """Load a data set by its registered name, or the user's own as ``npz:PATH`` or ``folder:PATH``.

    Args:
        name: ``digits``, ``fashion-mnist`` ... (``dcbench list datasets``), ``npz:PATH`` or ``folder:PATH``; also the
            path of a ``.npz`` file or of a folder.
        data_dir: the folder with the files of registered data sets; by default :func:`default_data_dir`.

    Raises:
        UsageError: the name is unknown.
        DataMissingError: the files are not here and could not be downloaded.
        CorruptFileError: the files are damaged.
    """
    from dcbench_tesla.data import files  # imports numpy, which checking a name does not need

    name = dataset_name(name)
    check_dataset_name(name)
    if name.startswith("npz:"):
        return files.load_npz(Path(name.removeprefix("npz:")).expanduser())
    if name.startswith("folder:"):
        return files.load_folder(Path(name.removeprefix("folder:")).expanduser())
    return registry.load_source(name).load(Path(data_dir) if data_dir else default_data_dir())
