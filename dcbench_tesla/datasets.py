"""Data sets by name: registered ones, and the user's own as ``npz:PATH`` or ``folder:PATH``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dcbench_tesla import registry
from dcbench_tesla.errors import unknown_name

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
        UsageError: it is neither.
    """
    if not name.startswith(PREFIXES) and name not in registry.names("datasets"):
        raise unknown_name("data set", name, [*registry.names("datasets"), "npz:PATH", "folder:PATH"])


def load_dataset(name: str, data_dir: Path | None = None) -> "Dataset":
    """Load a data set by its registered name, or the user's own as ``npz:PATH`` or ``folder:PATH``.

    Args:
        name: ``digits``, ``fashion-mnist`` ... (``dcbench list datasets``), ``npz:PATH`` or ``folder:PATH``.
        data_dir: the folder with the files of registered data sets; by default :func:`default_data_dir`.

    Raises:
        UsageError: the name is unknown.
        DataMissingError: the files are not here and could not be downloaded.
        CorruptFileError: the files are damaged.
    """
    from dcbench_tesla.data import files  # imports numpy, which checking a name does not need

    check_dataset_name(name)
    if name.startswith("npz:"):
        return files.load_npz(Path(name.removeprefix("npz:")).expanduser())
    if name.startswith("folder:"):
        return files.load_folder(Path(name.removeprefix("folder:")).expanduser())
    return registry.load_source(name).load(data_dir or default_data_dir())
