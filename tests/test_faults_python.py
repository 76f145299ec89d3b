"""From Python: integers of any kind, paths, and whatever state PyTorch is in; and messages that name what is wrong."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dcbench_tesla as dcbench
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.compute.state import plain_torch
from dcbench_tesla.datasets import dataset_name
from dcbench_tesla.errors import UsageError

RANDOM = {"convnet.epochs": 1, "convnet.width": 4, "evaluation.networks": 1}
TESLA = {"network.width": 4, "experts.count": 1, "iterations": 1, "steps": 1, "evaluation.every": 0}


def run(out: Path, method: str = "random", settings: dict[str, Any] | None = None, **given: Any) -> CellResult:
    settings = RANDOM | (TESLA if method == "tesla" else {}) | (settings or {})
    if "dataset" not in given:
        settings["data.train_images"] = 100
    about = {"preset": "smoke", "device": "cpu", "quiet": True, "out": out, "settings": settings}
    return dcbench.run(method, **{**about, **given})


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def rough_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def state() -> tuple[Any, ...]:
    """PyTorch's state that a caller may have chosen."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_float32_matmul_precision(),
    )


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad switched off": lambda: torch.set_grad_enabled(False),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device of a block": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "matmul precision": rough_products,
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> CellResult:
    """A cell of tesla, run in the state that PyTorch starts in."""
    return run(tmp_path_factory.mktemp("usual"), "tesla")


@pytest.mark.parametrize("name", STATES)
def test_state_of_the_caller_changes_no_result_and_stays(name: str, usual: CellResult, tmp_path: Path) -> None:
    with STATES[name]():
        before = state()
        result = run(tmp_path, "tesla")
        found = result.distilled
        assert state() == before
    assert result.cell.key == usual.cell.key
    assert torch.equal(found.images, usual.distilled.images)
    assert found.lr == usual.distilled.lr
    assert result.rows["convnet"]["accuracy"] == usual.rows["convnet"]["accuracy"]


def test_state_is_given_back_after_a_failure(tmp_path: Path) -> None:
    with torch.no_grad(), default_dtype(torch.float64):
        before = state()
        with pytest.raises(UsageError, match="IPC 11 is more"):
            run(tmp_path, ipc=11)
        assert state() == before


def test_inputs_are_float32_whatever_the_default_is(tmp_path: Path) -> None:
    chosen = run(tmp_path).distilled
    assert chosen.images.dtype == torch.uint8
    with default_dtype(torch.float64):
        assert chosen.inputs().dtype == torch.float32


def test_new_settings_of_precision_are_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mixed() -> str:
        raise RuntimeError("you have used mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    with pytest.raises(UsageError, match=r"fp32_precision is set in this process"):
        run(tmp_path)


def test_plain_torch_computes_in_float32_with_gradients() -> None:
    with torch.inference_mode(), default_dtype(torch.float64), plain_torch():
        x = torch.ones(2, requires_grad=True)
        x.sum().backward()
    assert x.dtype == torch.float32
    assert x.grad is not None


# ------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("two", [np.int64(2), np.uint8(2), torch.tensor(2)])
def test_integers_of_any_kind(two: Any, tmp_path: Path) -> None:
    result = run(tmp_path, ipc=two, seed=two, settings={"convnet.epochs": two})
    assert (result.cell.config.ipc, result.cell.config.seed) == (2, 2)
    assert result.cell.key == run(tmp_path, ipc=2, seed=2, settings={"convnet.epochs": 2}).cell.key
    assert "--set convnet.epochs=2" in result.rows["convnet"]["command"]


def test_numbers_of_numpy_as_settings(tmp_path: Path) -> None:
    result = run(tmp_path, settings={"convnet.lr": np.float64(0.01), "data.zca": np.bool_(False)})
    assert result.cell.config.evaluators["convnet"].lr == 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ipc": 1.0}, r"ipc must be an integer, not 1\.0 \(float\)"),
        ({"ipc": True}, r"ipc must be an integer, not True \(bool\)"),
        ({"ipc": "1"}, r"ipc must be an integer, not '1' \(str\)"),
        ({"ipc": np.array([1, 2])}, r"ipc must be an integer, not array\(\[1, 2\]\) \(ndarray\)"),
        ({"ipc": 0}, r"ipc must be at least 1, not 0"),
        ({"seed": -1}, r"seed must be at least 0, not -1"),
        ({"seed": None}, r"seed must be an integer, not None"),
        ({"method": 3}, r"method must be a string, not 3 \(int\)"),
        ({"preset": Path("smoke")}, r"preset must be a string"),
        ({"evaluators": [1]}, r"each of evaluators must be a string, or a callable .*, not 1"),
        ({"settings": {1: 2}}, r"the name of a setting must be a string, not 1"),
        ({"dataset": 7}, r"a data set is given by its name, a path, arrays .*, not by 7 \(int\)"),
    ],
)
def test_wrong_arguments_are_one_clear_error(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_one_name_in_place_of_several(tmp_path: Path) -> None:
    assert list(run(tmp_path, evaluators="convnet").rows) == ["convnet"]


def test_device_of_torch_and_folders_as_text(tmp_path: Path) -> None:
    result = run(tmp_path, device=torch.device("cpu"), data_dir=str(tmp_path))
    assert result.rows["convnet"]["environment"]["device"] == "cpu"


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0).integers
    arrays: dict[str, Any] = {f"x_{part}": draw(0, 255, (20, 8, 8, 1), dtype=np.uint8) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.arange(20) % 4 for part in ("train", "test")}
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    return path


def test_path_of_a_data_set(npz: Path, tmp_path: Path) -> None:
    by_path, by_name = (run(tmp_path / "out", dataset=given) for given in (npz, f"npz:{npz}"))
    assert by_path.cell.key == by_name.cell.key
    assert by_path.rows["convnet"]["dataset"] == "npz:mine"
    assert dcbench.load_dataset(npz).fingerprint == dcbench.load_dataset(f"npz:{npz}").fingerprint


def test_names_of_paths(npz: Path, tmp_path: Path) -> None:
    assert dataset_name(tmp_path) == f"folder:{tmp_path}"
    assert dataset_name(npz) == f"npz:{npz}"
    assert dataset_name(tmp_path / "not-there.npz") == f"npz:{tmp_path / 'not-there.npz'}"
    assert type(dataset_name(np.str_("digits"))) is str


def test_what_is_no_number_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"convnet\.lr takes a value of type float, not None"):
        run(tmp_path, settings={"convnet.lr": None})
