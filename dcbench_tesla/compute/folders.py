"""Folders of the program outside the results; imports no torch."""

from pathlib import Path

from platformdirs import user_cache_path


def compiled_folder() -> Path:
    """Return the folder where compiled code is kept between runs, unless ``TORCHINDUCTOR_CACHE_DIR`` names another."""
    return user_cache_path("dcbench") / "compiled"
