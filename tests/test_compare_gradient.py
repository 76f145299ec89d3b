"""`dcbench compare gradient`: how far each gradient of trajectory matching is from the unrolled one in float64."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cli import main
from dcbench_tesla.cli.shown.output import Compare
from dcbench_tesla.compare import gradient
from dcbench_tesla.config import overrides_from
from dcbench_tesla.experts.store import StoredExperts
from dcbench_tesla.records.progress import Bar

CHANGES: dict[str, Any] = {"data.train_images": 200, "network.width": 6, "experts.batch_size": 50}
WORDS = [word for name, value in CHANGES.items() for word in ("--set", f"{name}={value}")]


def made(out: Path, *methods: str) -> dict[str, Cell]:
    torch.set_num_threads(1)
    session = Session(out, device="cpu", quiet=True)
    cells = gradient.cells(session, methods, "digits", 2, preset="smoke", overrides=overrides_from(CHANGES))
    reference = cells["mtt"]
    request = reference.materials.expert_request
    assert request is not None
    count, train = reference.materials.expert_count, reference.splits.train
    reference.materials.expert_store.ensure(count, request.epochs, train, Bar("", 0, 0, ""))
    return cells


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    return made(tmp_path_factory.mktemp("gradient"), *gradient.METHODS)


@pytest.fixture(scope="module")
def table(cells: dict[str, Cell]) -> pd.DataFrame:
    return gradient.measure(cells, gradient.points((1, 3, 8), (0.02, 0.1), 2))


def chosen(
    table: pd.DataFrame, method: str, dtype: str, value: str = "relative_error", **where: Any
) -> "pd.Series[Any]":
    rows = table[(table["method"] == method) & (table["dtype"] == dtype)]
    for name, wanted in where.items():
        rows = rows[rows[name] == wanted]
    assert len(rows)
    return rows[value]


def test_hand_values() -> None:
    found = gradient.compared(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
    assert found == pytest.approx({"cosine": 0.6, "norm_ratio": 5 / 3, "relative_error": 4 / 3})
    assert gradient.compared(torch.tensor(-2.0), torch.tensor(1.0)) == {
        "cosine": -1.0,
        "norm_ratio": 2.0,
        "relative_error": 3.0,
    }


def test_the_exact_gradient_is_the_unrolled_one_everywhere(table: pd.DataFrame) -> None:
    assert chosen(table, "tesla-exact", "float64").max() < 1e-12
    assert chosen(table, "tesla-exact", "float64", "cosine").min() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("of", gradient.LEARNED)
def test_the_frozen_one_is_for_a_single_step_only_and_drifts(table: pd.DataFrame, of: str) -> None:
    assert chosen(table, "tesla", "float64", of=of, matching_steps=1).max() < 1e-12
    drift = [chosen(table, "tesla", "float64", of=of, matching_steps=t, student_lr=0.1).median() for t in (3, 8)]
    assert 1e-3 < drift[0] < drift[1]
    gentle = chosen(table, "tesla", "float64", of=of, matching_steps=8, student_lr=0.02).median()
    assert gentle < drift[1]


def test_float32_stands_beside_its_own_error(table: pd.DataFrame) -> None:
    """The exact gradient in float32 is off by no other order than the unrolled one in float32."""
    own = chosen(table, "mtt", "float32", of="images").median()
    assert 1e-9 < own < 1e-3
    assert chosen(table, "tesla-exact", "float32", of="images").median() < 10 * own


def test_rows_tell_where_they_were_measured(table: pd.DataFrame) -> None:
    assert len(table) == 12 * 5 * 2  # points, (method, dtype) but the reference itself, images and b
    assert not table.duplicated(gradient.KEY).any()
    assert set(table["batch_size"]) <= {20}
    assert set(table["protocol"]) == {"smoke, data.train_images=200, experts.batch_size=50, network.width=6"}
    assert {"hardware", "meter", "dataset", "expert", "start_epoch", "experts", "commit"} <= set(table.columns)
    assert len(table.groupby("iteration")[["expert", "start_epoch"]].nunique().query("expert > 1")) == 0


@pytest.mark.parametrize("name", gradient.METHODS)
def test_what_is_compared_is_what_an_iteration_descends_along(cells: dict[str, Cell], name: str) -> None:
    cell = cells[name]
    experts = StoredExperts(cell.materials.expert_store, cell.materials.expert_count, cell.device)
    condenser = cell.method(cell.config.settings)
    condenser.setup(cell.problem(experts))
    before = {key: value.clone() for key, value in condenser.state_dict().items()}
    _, found = condenser.gradients(0)
    assert all(torch.equal(value, before[key]) for key, value in condenser.state_dict().items())
    condenser.iterate(0)
    expected = before["value.images"] - cell.config.settings.lr_images * found["images"]
    assert torch.equal(condenser.state_dict()["value.images"], expected)


def test_the_summary_shows_medians(table: pd.DataFrame) -> None:
    head, body = gradient.summary(table, "images")
    assert head[:5] == ["student lr", "T", "tesla cosine", "tesla norm ratio", "tesla error, float64"]
    assert "tesla-exact cosine" not in head
    assert [line[:2] for line in body] == [[b, t] for b in ("0.02", "0.1") for t in ("1", "3", "8")]
    expected = chosen(table, "tesla", "float64", "norm_ratio", of="images", matching_steps=8, student_lr=0.1).median()
    assert math.isclose(float(body[-1][3]), expected, abs_tol=0.005)
    assert head[-1] == "mtt error, float32"


def dcbench(*words: object) -> Result:
    return CliRunner().invoke(main, ["compare", "gradient", *map(str, words)])


def test_the_command_trains_experts_and_writes_rows_and_plots(tmp_path: Path) -> None:
    words = ["--preset", "smoke", *WORDS, "--steps", 2, "--student-lr", 0.05, "--repetitions", 1, "--out", tmp_path]
    as_json, result = dcbench(*words, "--json"), dcbench(*words)
    for ran in (as_json, result):
        assert ran.exit_code == 0, ran.output
    assert Compare.model_validate_json(as_json.stdout).kind == "compare gradient"
    assert "### Gradient of the images against the unrolled one" in result.stdout
    figures = tmp_path / "figures"
    assert sorted(path.name for path in figures.iterdir()) == [
        "gradient-digits-ipc1.png",
        "gradient-digits-ipc1.svg",
        "gradient.csv",
    ]
    found = pd.read_csv(figures / "gradient.csv")
    assert len(found) == 10  # the second run replaced those of the first
    assert not list((tmp_path / "rows").glob("condense*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "tesl"], "Did you mean 'tesla'"),
        (["--method", "dm"], "dm has no gradient of trajectory matching"),
        (["--dataset", "digit"], "Did you mean 'digits'"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--student-lr", "-1"], "--student-lr must be positive"),
        (["--set", "steps=3"], "give --steps"),
        (["--set", "nothing=3"], "nothing"),
        (["--preset", "papers"], "Did you mean 'paper'"),
    ],
)
def test_what_cannot_be_is_told(words: list[str], message: str, tmp_path: Path) -> None:
    result = dcbench("--out", tmp_path, *words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_what_does_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gradient, "free_bytes", lambda device: 2**20)
    result = dcbench("--preset", "smoke", *WORDS, "--steps", 20, "--out", tmp_path)
    assert result.exit_code == 2
    assert "20 steps, unrolled in float64, need" in result.stderr
    assert "--set network.width" in result.stderr
    assert not (tmp_path / "experts").exists()


def test_the_page_says_what_was_measured() -> None:
    root = Path(__file__).parents[1]
    rows = pd.read_csv(root / "results" / "figures" / "gradient.csv")
    found = rows[(rows["dataset"] == "fashion-mnist") & (rows["ipc"] == 10)]

    def median(value: str, steps: int, lr: float) -> float:
        where = {"of": "images", "matching_steps": steps, "student_lr": lr}
        return float(chosen(found, "tesla", "float64", value, **where).median())

    cosines = [median("cosine", t, b) for t, b in ((5, 0.01), (20, 0.01), (50, 0.01), (20, 0.05))]
    assert [f"{c:.2f}" for c in cosines] == ["0.94", "0.93", "0.83", "0.24"]
    assert f"{median('norm_ratio', 50, 0.01):.1f}" == "1.5"
    assert f"{chosen(found, 'tesla-exact', 'float64').max():.1e}" == "1.2e-13"
    for steps, shown in ((1, "1.3e-06"), (50, "3.6e-02")):
        for method in ("mtt", "tesla-exact"):
            errors = chosen(found, method, "float32", of="images", matching_steps=steps)
            assert f"{errors.median():.1e}" == shown
    page = " ".join((root / "docs" / "results" / "gradients.md").read_text(encoding="utf-8").split())
    assert "0.94 at T = 5, 0.93 at T = 20 and 0.83 at T = 50, where it is 1.5 times too long" in page
    assert "at b = 0.05 and T = 20 it is 0.24" in page
    assert "1.2e-13 is its largest relative error" in page
    assert "off by 1.3e-6 at T = 1 and by 3.6e-2 at T = 50" in page
