"""The compiled matching step: the eager numbers, one graph an operation, eager where the compiler fails."""

import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcbench_tesla.api import run
from dcbench_tesla.cells import estimate
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.cells.session import Session
from dcbench_tesla.compute import compiling, folders
from dcbench_tesla.compute.compiling import TrainingStep, compile_training
from dcbench_tesla.compute.networks import ConvNet, FlatNetwork
from dcbench_tesla.compute.seeds import generator
from dcbench_tesla.config import Override, resolve
from dcbench_tesla.errors import UsageError
from dcbench_tesla.methods.inner import matching_gradient
from dcbench_tesla.methods.inner.engine import InnerGradient, Mode
from dcbench_tesla.methods.inner.step import CompiledStep, InnerStep, Loss
from dcbench_tesla.profilers import LiveBytes
from dcbench_tesla.records.store import read_json

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
STEPS, CLASSES, SIDE, BATCH = 20, 4, 8, 3


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def gradients(step: Loss | InnerStep, mode: Mode, dtype: torch.dtype, *, soft: bool) -> InnerGradient:
    start = NETWORK.initial(0).to(dtype)
    target = start + (0.05 * draw("way", len(start))).to(dtype)
    inputs = [draw(f"images {k}", BATCH, 3, SIDE, SIDE).to(dtype) for k in range(STEPS)]
    labels = [draw(f"labels {k}", BATCH, CLASSES).softmax(1).to(dtype).requires_grad_() for k in range(STEPS)]
    if not soft:
        labels = [y.detach().argmax(1) for y in labels]
    return matching_gradient(step, start, target, inputs, labels, 0.05, mode)


NETWORK = FlatNetwork(lambda: ConvNet(3, CLASSES, SIDE, width=6))


def found(of: InnerGradient) -> list[Tensor]:
    return [of.loss, of.lr, of.end, *of.inputs, *(y for y in of.labels if y is not None)]


def error(of: InnerGradient, reference: InnerGradient) -> float:
    """The largest relative error of what is found."""
    pairs = zip(found(of), found(reference), strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


@needs_compiler
@pytest.mark.parametrize(("mode", "soft"), [("frozen", False), ("exact", True)])
def test_float64_compiled_is_eager(mode: Mode, soft: bool) -> None:
    compiled = CompiledStep(NETWORK.loss)
    of_compiled = gradients(compiled, mode, torch.float64, soft=soft)
    assert not compiled._functions.given_up
    assert error(of_compiled, gradients(NETWORK.loss, mode, torch.float64, soft=soft)) < 1e-9
    # one graph for pass 1, and one for pass 2; exact has another for step 0, whose start is a constant
    assert len(compiled._functions.compiled) == (3 if mode == "exact" else 2)


@needs_compiler
def test_the_same_twice_and_float32_is_as_near_to_float64_as_eager_is() -> None:
    compiled = CompiledStep(NETWORK.loss)
    reference = gradients(NETWORK.loss, "frozen", torch.float64, soft=False)
    first, second = (gradients(compiled, "frozen", torch.float32, soft=False) for _ in range(2))
    assert not compiled._functions.given_up
    assert all(torch.equal(a, b) for a, b in zip(found(first), found(second), strict=True))
    eager = gradients(NETWORK.loss, "frozen", torch.float32, soft=False)
    assert error(first, reference) <= 1.5 * error(eager, reference) + 1e-6


@needs_compiler
def test_many_cells_of_one_process_compile_each() -> None:
    x, y, w, a = torch.randn(3, 2), torch.randn(3), torch.randn(2), torch.randn(2)
    for scale in range(1, 11):  # dynamo gives up a function at its ninth compilation
        step = CompiledStep(lambda w, x, y, scale=scale: scale * ((x @ w - y) ** 2).mean())  # type: ignore[misc]
        back = step.back(w, x, y, a, through_weights=True)
        assert not step._functions.given_up
        assert back.curvature is not None
        torch.testing.assert_close(back.curvature, scale * 2 / 3 * x.T @ (x @ a))


def test_where_the_compiler_fails_one_warning_and_the_eager_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler is installed\nfor a reason")

    monkeypatch.setattr(torch, "compile", none_here)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fallen_back = gradients(CompiledStep(NETWORK.loss), "frozen", torch.float64, soft=False)
    (said,) = [str(w.message) for w in heard if "eagerly" in str(w.message)]
    assert "no compiler is installed" in said
    eager = gradients(NETWORK.loss, "frozen", torch.float64, soft=False)
    assert all(torch.equal(a, b) for a, b in zip(found(fallen_back), found(eager), strict=True))


def test_what_is_compiled_is_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    taken = tmp_path / "a file"
    taken.write_text("no folder")
    monkeypatch.setattr(folders, "user_cache_path", lambda name: taken)
    compiling._keep_between_runs()  # where there is no room for it, PyTorch's own folder
    assert name not in os.environ
    monkeypatch.setattr(folders, "user_cache_path", lambda name: tmp_path / name)
    compiling._keep_between_runs()
    assert os.environ[name] == str(tmp_path / "dcbench" / "compiled")
    monkeypatch.setattr(folders, "user_cache_path", lambda name: tmp_path / "another")
    compiling._keep_between_runs()
    assert os.environ[name] == str(tmp_path / "dcbench" / "compiled")  # what is named stands


def test_live_tensors_of_compiled_steps_are_not_counted() -> None:
    with LiveBytes([]), pytest.raises(UsageError, match="--compile off"):
        gradients(CompiledStep(NETWORK.loss), "frozen", torch.float64, soft=False)


SMALL: dict[str, Any] = {
    **{"network.width": 4, "experts.count": 1, "max_start_epoch": 1, "expert_epochs": 1, "steps": 2, "iterations": 2},
    **{"batch_size": 5, "convnet.epochs": 2, "convnet.width": 4, "evaluation.networks": 1, "evaluation.every": 0},
}


def small(out: Path, **how: Any) -> CellResult:
    return run("tesla", dataset="digits", preset="smoke", settings=SMALL, out=out, quiet=True, **how)


def rows_of(result: CellResult, stage: str) -> list[dict[str, Any]]:
    return [read_json(path) for path in result.cell.workspace.rows.glob(f"{stage}-*.json")]


def recorded(result: CellResult) -> str:
    return str(read_json(result.folder / "execution.json")["compile"])


@needs_compiler
def test_a_compiled_run_is_the_same_cell_and_says_so(tmp_path: Path) -> None:
    on, off = small(tmp_path / "on", compile="on"), small(tmp_path / "off", compile="off")
    assert (recorded(on), recorded(off)) == ("on", "off")
    assert on.cell.key == off.cell.key
    torch.testing.assert_close(on.distilled.images, off.distilled.images, rtol=1e-3, atol=1e-3)
    for stage, key in (("evaluate", on.cell.identity.evaluation_key("convnet")), ("experts", None)):
        said = [[r.get("compiled") for r in rows_of(result, stage) if key in (None, r["key"])] for result in (on, off)]
        assert said == [[True], [None]]
    accuracies = [result.accuracy() for result in (on, off)]
    assert None not in accuracies
    rows = [r.cell.workspace.row("condense", r.cell.key) for r in (on, off)]
    assert rows[0] is not None
    assert rows[1] is not None
    assert (rows[0]["compiled"], rows[0]["peak_bytes"]) == (True, None)  # the meter cannot see into compiled code
    assert "compiled" not in rows[1]
    assert rows[1]["peak_bytes"] > 0


def decided(method: str, out: Path, *stages: str, **settings: Any) -> str:
    overrides = [Override("settings", name, value) for name, value in settings.items()]
    cell = Session(out, quiet=True).cell(resolve(method, "digits", 1, preset="smoke", overrides=overrides))
    return estimate.compilation_decided(cell.with_compilation("auto"), stages).execution.compile


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, "off"), (1e6, "on")])
def test_auto_compiles_where_it_pays(
    seconds: float, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_iteration", "_expert_epoch"):
        monkeypatch.setattr(estimate, name, lambda cell: seconds)
    monkeypatch.setattr(estimate, "_evaluation", lambda cell, name: seconds)
    monkeypatch.setattr(estimate, "_SHORT_STEPS", 10)
    everything = ("experts", "condense", "evaluate by convnet")
    assert decided("tesla", tmp_path, *everything) == expected
    for stage in everything:
        assert decided("tesla", tmp_path, stage) == expected
    assert decided("mtt", tmp_path, "condense") == "off"  # one graph of all T
    assert decided("mtt", tmp_path, "condense", "experts") == expected
    assert decided("dm", tmp_path, "condense") == expected


def test_auto_measures_nothing_of_what_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_iteration", "_expert_epoch", "_evaluation"):
        monkeypatch.setattr(estimate, name, None)
    assert decided("tesla", tmp_path, "condense", **{"iterations": 2, "steps": 3}) == "off"


@pytest.fixture
def training() -> Iterator[None]:
    compiling._of_networks.clear()
    compile_training(True)
    yield
    compile_training(False)
    compiling._of_networks.clear()


def trained(network: nn.Module) -> list[Tensor]:
    """The loss and the gradients of one batch, in float64."""
    step = TrainingStep(network.double())
    loss = step(draw("images", BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % CLASSES)
    return [loss, *(p.grad for p in network.parameters() if p.grad is not None)]


def test_micro_batches_of_a_training_step_are_the_whole_batch() -> None:
    network = ConvNet(3, CLASSES, SIDE, width=6).double()
    images, labels = draw("images", BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % CLASSES
    found = []
    for micro_batch in (0, 3, BATCH):
        loss = TrainingStep(network, micro_batch=micro_batch)(images, labels)
        found.append([loss, *(p.grad for p in network.parameters())])
    for pieces in found[1:]:
        for a, b in zip(pieces, found[0], strict=True):
            assert a is not None
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_batch_norm_refuses_micro_batches_of_a_training_step() -> None:
    with pytest.raises(UsageError, match="micro_batch=3 cannot be used for a network with batch norm"):
        TrainingStep(ConvNet(3, CLASSES, SIDE, width=6, norm="batch"), micro_batch=3)


@needs_compiler
def test_a_compiled_step_of_training_is_the_eager_one(training: None) -> None:
    networks = [ConvNet(3, CLASSES, SIDE, width=6) for _ in range(2)]
    compiled = [trained(network) for network in networks]
    (functions,) = compiling._of_networks.values()
    assert len(functions.compiled) == 1  # both networks share it
    compile_training(False)
    for network, found in zip(networks, compiled, strict=True):
        expected = trained(network)
        assert len(found) == len(expected) > 4
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_training_goes_on_eagerly_where_it_cannot_be_compiled(training: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler is installed")

    monkeypatch.setattr(torch, "compile", none_here)
    network = ConvNet(3, CLASSES, SIDE, width=6)
    with pytest.warns(UserWarning, match="step of training could not be compiled and runs eagerly"):
        found = trained(network)
    assert all(torch.equal(a, b) for a, b in zip(found, trained(network), strict=True))


def test_other_networks_and_metered_ones_are_trained_eagerly(training: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    assert len(trained(linear)) == 3
    with LiveBytes([]):
        assert len(trained(ConvNet(3, CLASSES, SIDE, width=6))) > 4


def test_a_cell_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    done = small(tmp_path)
    assert recorded(done) == "off"  # auto: too short to gain
    done.cell.place.distilled.unlink()
    for name in done.cell.config.evaluators:
        done.cell.workspace.drop_row("evaluate", done.cell.identity.evaluation_key(name))
    wanted = replace(Execution.resolve("cpu"), compile="on")
    again = Session(tmp_path, execution=wanted, quiet=True).cell(done.cell.config)
    assert again.execution.compile == "off"


def test_an_unknown_word_for_compile(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto"):
        small(tmp_path, compile="always")
