"""Precisions below float32: asked for, part of the key, and what they do to a gradient is measured."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.cli import main
from dcbench_tesla.compute.networks import ConvNet, FlatNetwork
from dcbench_tesla.compute.precision import check_precision, lowered, tf32_within
from dcbench_tesla.config import parse_set, resolve
from dcbench_tesla.errors import UsageError
from dcbench_tesla.methods.inner.step import InnerStep
from dcbench_tesla.profilers.memory import AllocatedMeter

CPU = torch.device("cpu")
NETWORK = FlatNetwork(lambda: ConvNet(3, 4, 8, width=6))


def curvature(precision: str, dtype: torch.dtype) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 8, 8, generator=rng).to(dtype)
    w, a = NETWORK.initial(0).to(dtype), torch.randn(NETWORK.parameter_count, generator=rng).to(dtype)
    step = InnerStep(lowered(NETWORK.loss, precision, CPU))
    back = step.back(w, x, torch.arange(5) % 4, a, through_weights=True)
    assert back.curvature is not None
    return back.curvature


def test_bf16_is_rougher_than_float32_and_changes_no_float64() -> None:
    true = curvature("float32", torch.float64)
    errors = [
        float((curvature(precision, torch.float32).double() - true).norm() / true.norm())
        for precision in ("float32", "bf16")
    ]
    assert errors[0] < 1e-4 < 1e-3 < errors[1] < 0.5
    assert curvature("bf16", torch.float32).dtype == torch.float32
    assert torch.equal(curvature("bf16", torch.float64), true)


def test_images_are_augmented_in_float32_and_memory_stays_flat() -> None:
    """Autocast keeps a copy of every step's inputs, where it may."""
    peaks = [
        AllocatedMeter(CPU).measure(
            workload("tesla", Shape.of("digits"), width=4, steps=steps, device=CPU, settings={"precision": "bf16"})
        )
        for steps in (2, 8)
    ]
    assert peaks[0].peak_bytes == pytest.approx(peaks[1].peak_bytes, rel=0.01)
    augmented = []

    def noted(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        augmented.append((x.dtype, torch.is_autocast_enabled("cpu")))
        return NETWORK.loss(w, x, y)

    x, y = torch.randn(5, 3, 8, 8), torch.arange(5) % 4
    lowered(noted, "bf16", CPU)(NETWORK.initial(0), x, y)
    assert augmented == [(torch.float32, True)]
    assert not torch.is_autocast_enabled("cpu")  # outside of the loss, where images are augmented


def test_tf32_is_there_in_its_block_alone() -> None:
    def now() -> list[Any]:
        return [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]

    def fail() -> None:
        with tf32_within("tf32"):
            assert now() == [True, True]
            raise RuntimeError("on the way")

    before = now()
    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert now() == before
    with tf32_within("bf16"):
        assert now() == before


def test_what_a_device_does_not_have_is_refused() -> None:
    check_precision("tf32", torch.device("cuda"))
    check_precision("tf32")
    with pytest.raises(UsageError, match="tf32 needs a GPU"):
        check_precision("tf32", CPU)
    with pytest.raises(UsageError, match="Did you mean 'bf16'"):
        check_precision("bf61")
    with pytest.raises(UsageError, match="tf32 needs a GPU"):
        workload("tesla", Shape.of("digits"), width=4, device="cpu", settings={"precision": "tf32"})()


def cell(out: Path, *assignments: str) -> Cell:
    config = resolve("tesla", "digits", 1, preset="smoke", overrides=[parse_set(text) for text in assignments])
    return Session(out, device="cpu", quiet=True).cell(config)


def test_it_is_part_of_the_key_and_float32_changes_none(tmp_path: Path) -> None:
    plain = cell(tmp_path)
    assert "precision" not in plain.identity.content["settings"]  # rows from before there was a choice stay as they are
    assert cell(tmp_path, "precision=float32").key == plain.key
    rough = cell(tmp_path, "precision=bf16")
    assert rough.identity.content["settings"]["precision"] == "bf16"
    assert rough.key != plain.key
    assert "precision" in rough.config.command
    assert rough.config.protocol != plain.config.protocol


def test_its_effect_on_a_gradient_is_measured_by_the_command(tmp_path: Path) -> None:
    words = ["compare", "gradient", "--steps", "2", "--student-lr", "0.01", "--repetitions", "1", "--preset", "smoke"]
    words += ["--set", "network.width=4", "--set", "data.train_images=100", "--device", "cpu", "--out", str(tmp_path)]
    for assignments in ([], ["--set", "precision=bf16"]):
        result = CliRunner().invoke(main, [*words, *assignments])
        assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "figures" / "gradient.csv")
    chosen = rows[(rows["dtype"] == "float32") & (rows["of"] == "images") & (rows["method"] == "tesla-exact")]
    of = {"bf16" in row["protocol"]: row["relative_error"] for row in chosen.to_dict("records")}
    assert of[False] < 1e-3 < of[True]
