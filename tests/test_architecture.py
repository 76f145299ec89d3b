"""The house stays one that a stranger finds his way in: few files in every folder of the core."""

from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[1] / "dcbench_tesla"
ROOT_FILES = 10
MODULES_A_FOLDER = 15
LINKED = ("methods", "evaluators")


def folders() -> list[str]:
    """The folders of the core that hold modules; methods and evaluators are plugins, and grow as they like."""
    found = {path.parent.relative_to(CORE) for path in CORE.glob("*/**/*.py")}
    return sorted(str(folder) for folder in found if folder.parts[0] not in LINKED)


def test_few_files_at_the_root() -> None:
    assert len(list(CORE.glob("*.py"))) <= ROOT_FILES


def test_the_wings_are_found() -> None:
    assert {"cli", "reports", "cells", "data", "records"} <= set(folders())


@pytest.mark.parametrize("folder", folders())
def test_no_folder_has_more_modules_than_one_can_look_over(folder: str) -> None:
    modules = [path.name for path in (CORE / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MODULES_A_FOLDER, (
        f"{folder}: {len(modules)} modules; move what belongs together into a subfolder"
    )
