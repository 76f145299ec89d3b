"""What Python offers: names, data in memory, networks of one's own, sweeps, tables, and what a notebook shows."""

import io
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import dcbench_tesla as dcbench
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.compute.networks import seeded
from dcbench_tesla.records import notebook, pictures

SMALL = {"convnet.epochs": 30, "convnet.width": 4, "evaluation.networks": 1}
QUIET: dict[str, Any] = {"preset": "smoke", "device": "cpu", "quiet": True}


def arrays() -> dict[str, Any]:
    """Forty grey images of four classes that a network can tell apart, and as many to test on."""
    draw = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for part in ("train", "test"):
        y = np.arange(40) % 4
        x = draw.integers(0, 60, (40, 8, 8), dtype=np.uint8)
        for i, c in enumerate(y):
            x[i, 2 * c : 2 * c + 2] += 180
        found |= {f"x_{part}": x, f"y_{part}": y}
    return found


KEYS = ("x_train", "y_train", "x_test", "y_test")


class Own(nn.Sequential):
    """A network that names all sizes, with batch norm."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        size = channels * side**2
        super().__init__(nn.Flatten(), nn.BatchNorm1d(size), nn.Linear(size, classes))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def result(out: Path) -> CellResult:
    """A cell of data in memory, tested by an evaluator and by a network of one's own."""
    both: list[Any] = ["convnet", Own]
    return dcbench.run("random", arrays(), evaluators=both, settings=SMALL | {"data.train_images": 0}, out=out, **QUIET)


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_package_lists_what_it_offers_without_torch() -> None:
    asked = "import sys, dcbench_tesla as d; print(*dir(d)); print(*d.__all__); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    listed, public, torch_is_there = (line.split() for line in done.stdout.splitlines())
    assert set(public) == {*dcbench.__all__} <= {*listed}
    assert "__version__" in listed
    assert torch_is_there == ["False"]


@pytest.mark.parametrize("name", dcbench.__all__)
def test_every_name_exists_and_is_documented(name: str) -> None:
    assert getattr(dcbench, name).__doc__
    assert f"``{name}``" in (dcbench.__doc__ or "")


# --- data in memory --------------------------------------------------------------------------------------------------


def torch_sets() -> tuple[Any, Any]:
    given = arrays()
    made = [(torch.from_numpy(given[f"x_{p}"])[:, None], torch.from_numpy(given[f"y_{p}"])) for p in ("train", "test")]
    train, test = (TensorDataset(x.float() / 255, y) for x, y in made)
    return train, test


FORMS: dict[str, Callable[[], Any]] = {
    "mapping": arrays,
    "tuple": lambda: tuple(arrays()[key] for key in KEYS),
    "tensors": lambda: {k: torch.from_numpy(v)[:, None] if v.ndim == 3 else v for k, v in arrays().items()},
    "data sets of PyTorch": torch_sets,
}


@pytest.mark.parametrize("form", FORMS)
def test_data_in_memory_is_the_same_in_every_form(form: str, out: Path, result: CellResult) -> None:
    loaded = dcbench.load_dataset(FORMS[form](), name="mine")
    assert (loaded.name, loaded.flippable) == ("npz:mine", False)
    assert loaded.fingerprint == result.cell.dataset.fingerprint
    assert "40 training and 40 test images of 1 x 8 x 8, 4 classes" in repr(loaded)


def test_data_in_memory_is_kept_beside_the_results(out: Path, result: CellResult) -> None:
    (kept,) = (out / "datasets").rglob("*.npz")
    again = dcbench.run("random", kept, settings=SMALL | {"data.train_images": 0}, out=out, **QUIET)
    assert again.cell.key == result.cell.key
    assert again.rows == result.rows


def test_a_loaded_set_is_taken_with_its_facts(out: Path) -> None:
    facts = {"mean": np.array([0.25]), "std": np.array([0.5]), "flippable": True, "max_value": 250}
    loaded = dcbench.load_dataset(arrays() | {k: np.asarray(v) for k, v in facts.items()})
    ran = dcbench.run("random", loaded, settings=SMALL | {"data.train_images": 0}, out=out, **QUIET).cell.dataset
    assert (ran.mean, ran.std, ran.flippable, ran.max_value) == ((0.25,), (0.5,), True, 250)
    assert ran.fingerprint == loaded.fingerprint


def test_a_registered_set_stays_what_it_is(out: Path) -> None:
    digits = dcbench.load_dataset("digits")
    assert dcbench.run("random", digits, settings=SMALL, out=out, **QUIET).cell.config.dataset == "digits"


class Pairs(torch.utils.data.Dataset[Any]):
    """The items it is given."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Any:
        return self._items[i]


def test_pictures_and_the_names_of_classes_are_taken() -> None:
    images = [(Image.fromarray(np.full((8, 8, 3), v, np.uint8)), i % 2) for i, v in enumerate((0, 90, 180, 250))]
    train = Pairs(*images)
    train.classes = ["night", "day"]  # type: ignore[attr-defined]
    loaded = dcbench.load_dataset((train, train))
    assert (loaded.name, loaded.class_names, loaded.channels) == ("npz:Pairs", ("night", "day"), 3)
    assert loaded.x_train[:, 0, 0, 0].tolist() == [0, 90, 180, 250]


GREY = torch.zeros(1, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: Pairs((GREY, 0)), "a Pairs holds one split: give two, .train, test."),
        (lambda: (Pairs(GREY), Pairs(GREY)), r"item 0 of the training set is Tensor of shape .1, 8, 8.; expected"),
        (lambda: (Pairs((GREY - 0.5, 0)), Pairs()), "leave Normalize and random transforms out"),
        (lambda: (Pairs((GREY, 0.5)), Pairs()), "the class of item 0 of the training set is float"),
        (lambda: (Pairs((GREY, 0)), Pairs()), "the test set is empty"),
        (lambda: (Pairs((GREY, 0), (torch.zeros(1, 9, 9), 1)), Pairs()), "images of 8 x 8 x 1 and of 9 x 9 x 1"),
        (lambda: {"x_train": 1}, "the arrays lack y_train, x_test, y_test"),
        (lambda: arrays() | {"y_train": np.arange(40) % 4 + 1.0}, "# then give a in place of data"),
    ],
)
def test_other_data_is_one_clear_error(given: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((dcbench.UsageError, dcbench.DcbenchError), match=message):
        dcbench.run("random", given(), out=tmp_path, **QUIET)


# --- networks of one's own -------------------------------------------------------------------------------------------


def test_a_network_of_ones_own_is_trained_beside_evaluators(result: CellResult) -> None:
    assert result.evaluators == ("convnet", "Own")
    assert list(result.rows) == ["convnet"]  # it has no version, and therefore no row
    own = result.accuracy("Own")
    assert own is not None
    assert 0 <= own.mean <= 1


def test_evaluate_trains_the_same_networks_as_a_run(result: CellResult) -> None:
    assert dcbench.evaluate(result, quiet=True) == result.accuracy()
    assert dcbench.evaluate(result, Own, quiet=True) == result.accuracy("Own")
    by_hand = dcbench.evaluate(result.distilled, partial(Own, 1), arrays(), networks=1, settings={"convnet.epochs": 30})
    assert by_hand == result.accuracy("Own")


def test_more_training_makes_a_network_of_ones_own_better(result: CellResult) -> None:
    trained = dcbench.evaluate(result, lambda: Own(1, 4, 8), settings={"convnet.epochs": 300}, quiet=True)
    assert trained.mean > 0.9


WRONG: list[tuple[Any, str]] = [
    (Own(1, 4, 8), "this is one: give Own, or a lambda"),
    (lambda: nn.Linear(3, 2), "network does not take images of 1 x 8 x 8"),
    (lambda: nn.Flatten(), r"returns shape .2, 64. for two images of 1 x 8 x 8; expected logits .2, 4."),
    (lambda: 3, "network returned int; expected a torch.nn.Module"),
    (lambda width: Own(1, 4, 8), "network needs width: give a callable that takes nothing"),
    ([Own, Own], "two evaluators are called 'Own'"),
    ({"convnet": Own}, "two evaluators are called 'convnet'"),
    ("convnt", "Did you mean 'convnet'?"),
    (3, "each of evaluators must be a string, or a callable"),
]


@pytest.mark.parametrize(("evaluators", "message"), WRONG)
def test_wrong_networks_are_refused_before_anything_is_made(evaluators: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(dcbench.UsageError, match=message):
        dcbench.run("random", arrays(), evaluators=evaluators, out=tmp_path, **QUIET)
    assert not (tmp_path / "cells").exists()


def test_evaluate_says_what_it_lacks(result: CellResult) -> None:
    with pytest.raises(dcbench.UsageError, match="was made from npz:arrays: give it by dataset="):
        dcbench.evaluate(result.distilled)
    with pytest.raises(dcbench.UsageError, match=r"setting data\.zca has no effect here"):
        dcbench.evaluate(result, settings={"data.zca": True})
    with pytest.raises(dcbench.UsageError, match="Known: Own, convnet"):
        result.accuracy("vit")
    with pytest.raises(dcbench.UsageError, match="best_on_tests"):
        result.accuracy(name="best_on_tests")


# --- sweeps and tables -----------------------------------------------------------------------------------------------


def test_a_sweep_is_a_table_and_a_failure_stops_no_other_cell(tmp_path: Path) -> None:
    every = {"settings": SMALL | {"data.train_images": 0}, "out": tmp_path, **QUIET}
    table = dcbench.sweep(["random", "class-means"], arrays(), ipc=(1, 99), seed=range(2), **every)
    assert list(table["ipc"]) == [1] * 4 + [99] * 4
    assert table["last"].notna().tolist() == [True] * 4 + [False] * 4
    assert "IPC 99 is more than the 9 training images" in table["error"].iloc[-1]
    alone = dcbench.run("class-means", arrays(), seed=1, **every).to_frame()
    assert alone.columns.tolist() == table.columns.drop("error").tolist()
    assert alone["last"].tolist() == table[(table.method == "class-means") & (table.seed == 1)]["last"].tolist()[:1]


def test_run_takes_one_value_and_names_what_takes_several(tmp_path: Path) -> None:
    with pytest.raises(dcbench.UsageError, match=r"not \[1, 2\] \(list\)\. dcbench\.sweep takes several\."):
        dcbench.run("random", ipc=[1, 2], out=tmp_path, **QUIET)  # type: ignore[arg-type]


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_reprs_are_short_and_say_what_it_is(result: CellResult) -> None:
    assert repr(result).startswith("CellResult(random on npz:arrays, IPC 1, seed 0: convnet ")
    assert repr(result.distilled) == ("DistilledSet(4 images of 1 x 8 x 8, 4 classes, random on npz:arrays, IPC 1)")
    html = result._repr_html_()
    assert "data:image/png;base64," in html
    assert str(result.accuracy()) in html


def test_the_torch_data_set_is_what_networks_are_trained_on(result: CellResult) -> None:
    made = result.distilled.as_torch_dataset()
    pairs = [made[i] for i in range(len(made))]
    assert torch.equal(torch.stack([image for image, _ in pairs]), result.distilled.inputs())
    assert [int(label) for _, label in pairs] == result.distilled.labels.tolist()


def test_the_picture_lies_in_the_cells_folder_only(out: Path, result: CellResult) -> None:
    drawn = io.BytesIO((result.folder / "sheet.png").read_bytes())
    assert Image.open(drawn).tobytes() == result.distilled.picture().tobytes()
    assert not list(out.glob("sheets/random-npz-*"))  # the images may not be passed on


def test_without_a_screen_it_is_said_how_to_keep_the_picture(
    result: CellResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    result.show()
    shown = capsys.readouterr()
    assert shown.out == f"{result!r}\n"
    assert ".picture().save('set.png')" in shown.err


def test_a_picture_in_characters_fits_the_terminal() -> None:
    with seeded(0):
        text = pictures.as_text(pictures.sheet(torch.rand(12, 3, 8, 8), [1] * 12), 40)
    lines = text.plain.splitlines()
    assert lines
    assert {len(line) for line in lines} == {40}


NOTEBOOK = (
    "import dcbench_tesla as dcbench\nresult = dcbench.run('random', preset='smoke', device='cpu', settings="
    "{'convnet.epochs': 1, 'convnet.width': 4, 'evaluation.networks': 1})",
    "result",
    "result.distilled.show()",
    "result.to_frame()",
)


def test_a_notebook_shows_bars_images_and_tables(tmp_path: Path) -> None:
    assert not notebook.in_notebook()
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in NOTEBOOK])  # type: ignore[no-untyped-call]
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    ran, result, picture, table = ([o.get("data", {}) for o in cell.outputs] for cell in book.cells)
    bars = [data["text/html"] for data in ran if "text/html" in data]
    assert any('<progress value="1" max="1">' in bar for bar in bars)  # as it stood in the end
    assert "data:image/png;base64," in result[0]["text/html"]
    assert "image/png" in picture[0]
    assert "best_on_validation" in table[0]["text/html"]
