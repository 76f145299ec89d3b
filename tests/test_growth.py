"""Section 3.3: how memory grows with T, batch and IPC."""

import pandas as pd
import pytest

from dcbench_tesla.reports import growth


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
    assert grown(table, "frepo, micro_batch=100", "ipc") < 1.7


def test_the_table_for_people(table: pd.DataFrame) -> None:
    shown = growth.markdown(table)
    frepo = next(line for line in shown.splitlines() if "`frepo`" in line)
    assert [cell.strip() for cell in frepo.split("|")][5:7] == ["", ""]  # it has neither T nor B
    tesla = next(line for line in shown.splitlines() if line.startswith("| `tesla` "))
    assert "x 1.00" in tesla
