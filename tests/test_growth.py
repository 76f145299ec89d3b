"""Section 3.3: how memory grows with T, batch and IPC, and what stands for FrePo in it."""

import numpy as np
import pandas as pd
import pytest
import torch

from dcbench_tesla.cells.workload import Shape
from dcbench_tesla.profilers.memory import memory_meter
from dcbench_tesla.reports import growth
from dcbench_tesla.reports.frepo import frepo_loss, frepo_workload


def test_frepos_loss_is_kernel_ridge_regression() -> None:
    """Against the textbook's form, in NumPy."""
    rng = np.random.default_rng(0)
    phi_s, phi_t = rng.normal(size=(4, 7)), rng.normal(size=(5, 7))
    y_s, y_t = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    kernel = phi_s @ phi_s.T
    inverse = np.linalg.inv(kernel + 1e-6 * np.trace(kernel) / 4 * np.eye(4))
    expected = 0.5 * np.mean(np.sum((phi_t @ phi_s.T @ inverse @ y_s - y_t) ** 2, axis=1))
    found = frepo_loss(*(torch.from_numpy(value) for value in (phi_s, y_s, phi_t, y_t)))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_frepos_prediction_is_what_its_tensors_take() -> None:
    shape = Shape("small", 1, 8, 3)
    allocated = memory_meter("allocated")
    predicted = memory_meter("predicted")
    peaks = [
        m.measure(frepo_workload(shape, ipc=40, width=8, device=m.device)).peak_bytes for m in (allocated, predicted)
    ]
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return growth.predict(datasets=("cifar100",))


def grown(table: pd.DataFrame, method: str, name: str) -> float:
    """How many times more memory ``method`` needs with ``name`` doubled."""
    rows = table[table["method"] == method].reset_index(drop=True)
    base = rows.loc[0]
    (doubled,) = rows[rows[name] == 2 * base[name]]["peak_bytes"]
    return float(doubled / base["peak_bytes"])


def test_memory_grows_as_the_formulas_say(table: pd.DataFrame) -> None:
    assert grown(table, "mtt", "matching_steps") == pytest.approx(2, rel=0.05)
    assert grown(table, "tesla", "matching_steps") == pytest.approx(1, rel=0.001)
    assert 1 < grown(table, "tesla-exact", "matching_steps") < 1.15  # its weight vectors
    for method in ("mtt", "tesla", "tesla-exact"):
        assert 1.8 < grown(table, method, "batch_size") < 2
        assert grown(table, method, "ipc") < 1.1
    assert grown(table, "frepo", "ipc") == pytest.approx(2, rel=0.05)


def test_the_table_for_people(table: pd.DataFrame) -> None:
    shown = growth.markdown(table)
    frepo = next(line for line in shown.splitlines() if "`frepo`" in line)
    assert [cell.strip() for cell in frepo.split("|")][5:7] == ["", ""]  # it has neither T nor B
    tesla = next(line for line in shown.splitlines() if line.startswith("| `tesla` "))
    assert "x 1.00" in tesla
