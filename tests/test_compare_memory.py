"""`dcbench compare memory`: what its rows hold, how they are kept, and what the paper's claim comes to."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.cli import main
from dcbench_tesla.compare.files import merge_csv, read_csv
from dcbench_tesla.compare.memory import KEY, measure, measure_here, pivot
from dcbench_tesla.compare.points import Point, labelled, points
from dcbench_tesla.config import parse_set
from dcbench_tesla.errors import CorruptFileError, UsageError
from dcbench_tesla.profilers.memory import PredictedMeter, memory_meter

SMALL: dict[str, Any] = {"batch_size": 10, "width": 8}


def test_points_vary_steps_only_where_there_are_steps() -> None:
    found = points(["mtt", "dm"], ["digits"], steps=(1, 5), batch_sizes=(10,), width=8)
    assert [(p.method, p.matching_steps, p.batch_size) for p in found] == [
        ("mtt", 1, 10),
        ("mtt", 5, 10),
        ("dm", None, None),
    ]


def test_unrolled_grows_and_the_others_are_flat() -> None:
    """The unrolled graph grows linearly in T, TESLA's does not grow, the exact one by its weight vectors."""
    table = measure(
        points(["mtt", "tesla", "tesla-exact"], ["cifar10"], steps=(2, 4, 6), batch_sizes=(10,), width=8), "predicted"
    )
    peak = {method: list(rows["peak_bytes"]) for method, rows in table.groupby("method")}
    first, second, third = peak["mtt"]
    assert second - first > 0.3 * first
    assert third - second == pytest.approx(second - first, rel=0.01)
    assert max(peak["tesla"]) <= 1.01 * min(peak["tesla"])
    parameters = sum(p.numel() for p in _convnet_parameters())
    growth = peak["tesla-exact"][2] - peak["tesla-exact"][1]
    assert growth == pytest.approx(2 * 4 * parameters, rel=0.1)
    origins = [
        name for name in table.columns if name.endswith("_bytes") and name not in ("peak_bytes", "reserved_bytes")
    ]
    assert list(table[origins].fillna(0).sum(axis=1)) == list(table["peak_bytes"])
    assert set(table["hardware"]) == {"none: predicted"}
    assert set(table["inputs"]) == {"synthetic"}


def _convnet_parameters() -> list[torch.Tensor]:
    from dcbench_tesla.compute.networks import ConvNet

    return list(ConvNet(3, 10, 32, 8, 0).parameters())


def test_a_measured_point_has_a_process_of_its_own_and_agrees_with_one_here() -> None:
    point = Point(method="tesla", dataset="digits", matching_steps=2, ipc=1, **SMALL)
    (row,) = measure([point], "allocated").to_dict("records")
    assert row["peak_bytes"] == measure_here(point, memory_meter("allocated"))["peak_bytes"]
    assert (row["meter"], row["status"]) == ("allocated", "ok")
    assert row["hardware"] != "none: predicted"


def test_a_second_run_replaces_equal_rows_and_keeps_the_others(tmp_path: Path) -> None:
    def table(**changes: Any) -> pd.DataFrame:
        row = {"method": "mtt", "dataset": "cifar100", "matching_steps": 5, "ipc": 1, "batch_size": 100, "width": 128}
        row |= {"depth": 0, "meter": "predicted", "hardware": "none: predicted", "peak_bytes": 1}
        return pd.DataFrame([{**row, **changes}])

    path = tmp_path / "memory.csv"
    merge_csv(path, table(), KEY)
    merge_csv(path, table(method="dm", matching_steps=None, batch_size=None, peak_bytes=7), KEY)
    merge_csv(path, table(matching_steps=10, peak_bytes=2), KEY)
    merge_csv(path, table(peak_bytes=3), KEY)
    merge_csv(path, table(method="dm", matching_steps=None, batch_size=None, peak_bytes=8), KEY)
    merge_csv(path, table(hardware="a GPU", meter="cuda", peak_bytes=4), KEY)
    found = pd.read_csv(path)
    assert sorted(found["peak_bytes"]) == [2, 3, 4, 8]
    assert path.read_text().splitlines()[0].startswith("method,dataset,matching_steps,ipc,batch_size")


def test_a_row_that_says_the_same_again_changes_nothing(tmp_path: Path) -> None:
    path, row = tmp_path / "memory.csv", {**dict.fromkeys(KEY, 1), "method": "mtt", "torch": "2.9.0", "note": None}
    merge_csv(path, pd.DataFrame([{**row, "peak_bytes": 1, "commit": "aaaa"}]), KEY)
    before = path.read_bytes()
    merge_csv(path, pd.DataFrame([{**row, "peak_bytes": 1, "commit": "bbbb"}]), KEY)
    assert path.read_bytes() == before
    merge_csv(path, pd.DataFrame([{**row, "peak_bytes": 2, "commit": "bbbb"}]), KEY)
    assert list(pd.read_csv(path)["commit"]) == ["bbbb"]


def test_a_foreign_table_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(CorruptFileError, match=r"is another table: .*\. Move it away\."):
        merge_csv(path, pd.DataFrame([dict.fromkeys(KEY, 1)]), KEY)
    assert path.read_text() == "a,b\n1,2\n"


def test_the_table_shows_flat_methods_in_every_line_and_where_memory_ran_out() -> None:
    rows = [
        {"method": "mtt", "matching_steps": 1, "peak_bytes": 2**20, "status": "ok"},
        {"method": "mtt", "matching_steps": 5, "peak_bytes": 3 * 2**30, "status": "out of memory"},
        {"method": "dm", "matching_steps": None, "peak_bytes": 2**21, "status": "ok"},
    ]
    table = pd.DataFrame(rows).astype({"matching_steps": "Int64"})
    assert pivot(table, "matching_steps") == [
        ["matching steps", "mtt", "dm"],
        ["1", "1.0 MiB", "2.0 MiB"],
        ["5", "out of memory (at 3.00 GiB)", "2.0 MiB"],
    ]


def test_the_table_shows_settings_and_how_many_times_as_much_mtt_needs() -> None:
    rows = [
        {"method": "mtt", "settings": "", "matching_steps": 5, "peak_bytes": 40 * 2**20, "status": "ok"},
        {"method": "tesla", "settings": "", "matching_steps": 5, "peak_bytes": 2**20, "status": "ok"},
        {"method": "tesla", "settings": "micro_batch=2", "matching_steps": 5, "peak_bytes": 2**19, "status": "ok"},
    ]
    assert pivot(pd.DataFrame(rows), "matching_steps") == [
        ["matching steps", "mtt", "tesla", "tesla, micro_batch=2"],
        ["5", "40.0 MiB", "1.0 MiB (40x)", "0.5 MiB (80x)"],
    ]
    other = pd.DataFrame(rows).assign(meter=["cuda", "predicted", "cuda"], hardware="a GPU")
    assert pivot(other, "matching_steps")[1][2:] == ["1.0 MiB", "0.5 MiB (80x)"]  # two meters make no ratio


def test_settings_go_to_the_methods_that_have_them() -> None:
    overrides = [parse_set("weights=host"), parse_set("micro_batch=010")]
    found = points(["mtt", "tesla", "tesla-exact"], ["digits"], steps=(2,), overrides=overrides)
    assert [p.settings for p in found] == ["", "micro_batch=10", "micro_batch=10 weights=host"]
    assert list(labelled(pd.DataFrame(map(vars, found)))["method"]) == [
        "mtt",
        "tesla, micro_batch=10",
        "tesla-exact, micro_batch=10 weights=host",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("micro_batches=3", "unknown setting of mtt, tesla 'micro_batches'"),
        ("weights=host", "unknown setting of mtt, tesla 'weights'"),
        ("convnet.epochs=3", "unknown setting of mtt, tesla 'convnet.epochs'"),
        ("steps=3", "give --steps in place of --set steps"),
        ("network.width=3", "give --width in place of --set network.width"),
        ("micro_batch=few", "micro_batch takes a value of type int, not 'few'"),
    ],
)
def test_settings_that_no_method_has_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        points(["mtt", "tesla"], ["digits"], steps=(2,), overrides=[parse_set(text)])


def test_rows_with_settings_stand_beside_those_without_and_old_files_have_none(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    plain = Point(method="tesla", dataset="digits", matching_steps=1, ipc=1, batch_size=100)
    row = {**vars(plain), "meter": "predicted", "hardware": "none: predicted", "peak_bytes": 9, "status": "ok"}
    old = pd.DataFrame([row]).drop(columns="settings")
    path.write_text(old.to_csv(index=False), encoding="utf-8")
    assert list(read_csv(path, KEY)["settings"]) == [""]
    for peak in (5, 6):
        merge_csv(path, pd.DataFrame([{**row, "settings": "micro_batch=10", "peak_bytes": peak}]), KEY)
    merge_csv(path, pd.DataFrame([{**row, "peak_bytes": 8}]), KEY)
    found = read_csv(path, KEY)
    assert dict(zip(found["settings"], found["peak_bytes"], strict=True)) == {"": 8, "micro_batch=10": 6}


def test_micro_batches_make_memory_flat_in_the_batch() -> None:
    """Besides the images, their gradient and their momentum; every micro-batch is walked through."""
    meter, shape = PredictedMeter(round_to=1), Shape("small", 3, 16, 10)

    def besides_images(ipc: int, **settings: Any) -> int:
        images = ipc * shape.classes
        settings |= {"steps": 3, "batch_size": images, "weights": "host"}
        made = workload("tesla-exact", shape, ipc=ipc, width=64, device=meter.device, settings=settings)
        return meter.measure(made).peak_bytes - 3 * 4 * images * shape.channels * shape.side**2

    few, many = (besides_images(ipc, micro_batch=10) for ipc in (10, 100))  # 100 and 1,000 images in a step
    assert many == pytest.approx(few, rel=0.02)
    assert besides_images(100) > 50 * many


def test_the_command_writes_rows_and_plots(tmp_path: Path) -> None:
    words = ["compare", "memory", "--method", "tesla", "--method", "dm", "--dataset", "digits", "--steps", "1"]
    words += ["--steps", "2", "--width", "4", "--batch-size", "10", "--meter", "predicted", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "| matching steps |" in result.stdout
    figures = tmp_path / "figures"
    assert {path.name for path in figures.iterdir()} == {
        "memory.csv",
        "memory-steps-digits.png",
        "memory-steps-digits.svg",
    }
    assert (figures / "memory-steps-digits.png").read_bytes().startswith(b"\x89PNG")
    before = (figures / "memory-steps-digits.svg").read_bytes()
    assert CliRunner().invoke(main, words).exit_code == 0
    assert len(pd.read_csv(figures / "memory.csv")) == 3
    assert b"<svg" in before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "tesl"], "Did you mean 'tesla'"),
        (["--dataset", "cifar1000"], "cifar100"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--meter", "predict"], "predicted"),
        (["--ipc", "1", "--ipc", "2"], "several --ipc need --against ipc"),
        (["--device", "foo"], "device 'foo' is not supported: cpu and cuda are"),
        (["--method", "random"], "random has no iterations to measure"),
    ],
)
def test_what_cannot_be_is_told(words: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["compare", "memory", "--steps", "1", "--out", str(tmp_path), *words])
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_the_papers_claim_at_its_own_size() -> None:
    """CIFAR-100, batch 100: unrolled linear in T, TESLA flat; ImageNet-1K: many times less (the paper: about 6)."""
    table = measure(points(["mtt", "tesla"], ["cifar100"], steps=(1, 5, 10, 20, 50)), "predicted")
    mtt = table[table["method"] == "mtt"]
    steps, peak = (mtt[name].to_numpy(dtype=float) for name in ("matching_steps", "peak_bytes"))
    assert np.corrcoef(steps, peak)[0, 1] ** 2 > 0.999
    tesla = table[table["method"] == "tesla"].set_index("matching_steps")["peak_bytes"]
    assert tesla[50] == pytest.approx(tesla[5], rel=0.01)
    large = measure(points(["mtt", "tesla"], ["imagenet1k-64"], steps=(50,)), "predicted")
    unrolled, streamed = large["peak_bytes"]
    assert unrolled > 15 * streamed


def test_rows_are_handed_over_as_they_come() -> None:
    kept: list[pd.DataFrame] = []
    table = measure(
        points(["tesla"], ["digits"], steps=(1, 2), batch_sizes=(10,), width=8), "predicted", keep=kept.append
    )
    pd.testing.assert_frame_equal(pd.concat(kept, ignore_index=True), table)
