"""Small cells of the digits: their settings, how they are run from Python and by the command line, and their rows."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from click.testing import CliRunner, Result

from dcbench_tesla.api import run
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cli import main
from dcbench_tesla.config import CellConfig, overrides_from, resolve
from dcbench_tesla.records.store import read_json

Settings = Mapping[str, Any]
NONE: Settings = MappingProxyType({})
SELECTION: Settings = {"data.train_images": 100, "convnet.width": 4, "convnet.epochs": 2, "evaluation.networks": 1}


def configured(method: str, settings: Settings) -> CellConfig:
    """The configuration of a cell with one image per class."""
    return resolve(method, "digits", 1, preset="smoke", overrides=overrides_from(settings))


def ran(out: Path, method: str, settings: Settings, *, dataset: str = "digits", **options: Any) -> CellResult:
    """Run a cell with one image per class."""
    return run(method, dataset, 1, preset="smoke", settings=settings, out=out, device="cpu", quiet=True, **options)


def words(settings: Settings, out: Path, method: str = "tesla") -> list[str]:
    """The command that :func:`ran` stands for."""
    about = ["run", "--method", method, "--preset", "smoke", "--device", "cpu", "--no-baseline", "--out", str(out)]
    return about + set_words(settings)


def set_words(settings: Settings) -> list[str]:
    """The options of a command that give ``settings``."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def command(*words: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(word) for word in words])


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage, by the names of their files."""
    return [read_json(path) for path in sorted((out / "rows").glob(f"{stage}-*.json"))]
