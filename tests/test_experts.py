"""Expert trajectories: what a snapshot is, extension, resumption, sharing between processes, and a plain reference."""

import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dcbench_tesla.cells import expert_processes
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import train_experts
from dcbench_tesla.compute.networks import flatten_parameters, seeded
from dcbench_tesla.compute.seeds import generator, seed_for
from dcbench_tesla.config import ExpertSettings, parse_set, resolve
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.errors import CorruptFileError, DcbenchError, DivergedError
from dcbench_tesla.experts.store import ExpertStore, StoredExperts
from dcbench_tesla.experts.training import train_epoch
from dcbench_tesla.records.store import load_tensors, read_json

TINY = ("data.train_images=200", "network.width=4", "experts.batch_size=50")


class Ticks:
    """Counts finished epochs, and calls ``then`` after each."""

    def __init__(self, then: Callable[[int], None] = lambda done: None) -> None:
        self.done, self._then = 0, then

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        self._then(self.done)


def cell(out: Path, *assignments: str, method: str = "tesla", seed: int = 0) -> Cell:
    torch.set_num_threads(1)
    overrides = [parse_set(text) for text in (*TINY, *assignments)]
    config = resolve(method, "digits", 1, seed=seed, preset="smoke", overrides=overrides)
    return Session(out, device="cpu", quiet=True).cell(config)


def ensure(of: Cell, count: int, epochs: int, ticks: Ticks | None = None) -> ExpertStore:
    of.materials.expert_store.ensure(count, epochs, of.splits.train, ticks or Ticks())
    return of.materials.expert_store


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """A cell with two experts of three epochs."""
    made = cell(tmp_path_factory.mktemp("experts"))
    ensure(made, 2, 3)
    return made


# -------------------------------------------------------------------------------------------------------- snapshots


def test_a_snapshot_an_epoch_none_an_alias_of_another(shared: Cell) -> None:
    for expert in range(2):
        snapshots = [shared.materials.expert_store.snapshot(expert, epoch) for epoch in range(4)]
        for i, a in enumerate(snapshots):
            assert a.shape == (sum(p.numel() for p in shared.materials.build_network().parameters()),)
            assert a.dtype == torch.float32
            assert not any(torch.equal(a, b) for b in snapshots[:i])


def test_epoch_0_is_a_fresh_network(shared: Cell) -> None:
    for expert in range(2):
        with seeded(seed_for(0, "expert initialisation", expert)):
            fresh = shared.materials.build_network()
        assert torch.equal(shared.materials.expert_store.snapshot(expert, 0), flatten_parameters(fresh))


def test_experts_differ_and_learn(shared: Cell) -> None:
    store = shared.materials.expert_store
    assert not torch.equal(store.snapshot(0, 0), store.snapshot(1, 0))
    losses = [load_tensors(store.path(0, epoch))[1]["train_loss"] for epoch in (1, 2, 3)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1.5  # about the logarithm of ten: a mean over images, not a sum


def test_file_says_what_it_is(shared: Cell) -> None:
    store = shared.materials.expert_store
    _, meta = load_tensors(store.path(1, 2))
    assert (meta["format"], meta["expert"], meta["epoch"]) == ("dcbench expert snapshot", 1, 2)
    assert meta["identity"] == read_json(store.folder / "recipe.json") == store.recipe.identity


def test_counting(shared: Cell) -> None:
    store = shared.materials.expert_store
    assert (store.missing_epochs(2, 3), store.missing_epochs(3, 3), store.missing_epochs(2, 5)) == (0, 3, 4)
    assert store.complete(2, 3)
    assert store.complete(1, 2)
    assert not store.complete(3, 3)
    assert not store.complete(2, 4)
    assert store.trained(0, 5) == 3


def test_source_of_a_run(shared: Cell) -> None:
    experts = StoredExperts(shared.materials.expert_store, 2, torch.device("cpu"))
    assert len(experts) == 2
    assert torch.equal(experts.snapshot(1, 2), shared.materials.expert_store.snapshot(1, 2))


# --------------------------------------------------------------------------------------------------------- identity


def test_experts_are_shared_by_methods_seeds_counts_and_devices(tmp_path: Path) -> None:
    folder = cell(tmp_path).materials.expert_store.folder
    others = [
        cell(tmp_path, seed=3),
        cell(tmp_path, method="mtt"),
        cell(tmp_path, "experts.count=7"),
        cell(tmp_path, "max_start_epoch=9"),
        cell(tmp_path, "convnet.epochs=9"),
    ]
    assert {other.materials.expert_store.folder for other in others} == {folder}


def test_key_of_the_experts_stays() -> None:
    """A setting that is added must not change it where it is not set: experts that were trained would be orphans."""
    made = Session("results", device="cpu", quiet=True).cell(resolve("tesla", "digits", 1, preset="smoke"))
    assert made.materials.expert_store.recipe.key == "f9c927dd991996f6"


@pytest.mark.parametrize(
    "assignment",
    [
        "experts.lr=0.02",
        "experts.batch_size=51",
        "network.width=5",
        "network.depth=2",
        "data.train_images=210",
        "data.validation=0.2",
        "data.zca=true",
        "data.augmentation=none",
    ],
)
def test_experts_of_another_recipe_lie_elsewhere(assignment: str, tmp_path: Path) -> None:
    assert cell(tmp_path, assignment).materials.expert_store.folder != cell(tmp_path).materials.expert_store.folder


# --------------------------------------------------------------------------------------------- extending and resuming


def test_extension_equals_training_longer_at_once(shared: Cell, tmp_path: Path) -> None:
    made = cell(tmp_path)
    ensure(made, 1, 1)
    ticks = Ticks()
    ensure(made, 2, 3, ticks)
    assert ticks.done == 5
    assert contents(made.materials.expert_store.folder) == contents(shared.materials.expert_store.folder)


def test_what_is_there_is_not_trained_again(shared: Cell) -> None:
    before = {p: p.stat().st_mtime_ns for p in shared.materials.expert_store.folder.rglob("*.safetensors")}
    ticks = Ticks()
    ensure(shared, 2, 2, ticks)
    ensure(shared, 1, 3, ticks)
    assert ticks.done == 0
    assert {p: p.stat().st_mtime_ns for p in shared.materials.expert_store.folder.rglob("*.safetensors")} == before


@pytest.mark.parametrize("after", [1, 2, 4])
def test_interrupted_training_goes_on_inside_the_expert(after: int, shared: Cell, tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    made, ticks = cell(tmp_path), Ticks()
    with pytest.raises(KeyboardInterrupt):
        ensure(made, 2, 3, Ticks(interrupt))
    ensure(made, 2, 3, ticks)
    assert ticks.done == 6 - after
    assert contents(made.materials.expert_store.folder) == contents(shared.materials.expert_store.folder)


# ------------------------------------------------------------------------------------------------ several processes


def _train_at_a_signal(out: str, report: str) -> None:
    """Run in a process of its own: wait for the others, train, and report the number of epochs trained here."""
    made = cell(Path(out))
    images, ticks = made.splits.train, Ticks()
    (Path(report) / f"ready-{os.getpid()}").touch()
    while len(list(Path(report).glob("ready-*"))) < 2:
        time.sleep(0.005)
    made.materials.expert_store.ensure(3, 4, images, ticks)
    assert made.materials.expert_store.complete(3, 4)
    (Path(report) / f"trained-{os.getpid()}").write_text(str(ticks.done))


def test_two_processes_want_the_same_experts_at_once(tmp_path: Path) -> None:
    report, out = tmp_path / "report", tmp_path / "out"
    report.mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcbench_tesla.api", "sklearn.datasets"])  # torch is imported once
    processes = [context.Process(target=_train_at_a_signal, args=(str(out), str(report))) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    exits = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert exits == [0, 0]
    trained = [int(path.read_text()) for path in report.glob("trained-*")]
    assert sum(trained) == 12  # each of three experts of four epochs once
    alone = cell(tmp_path / "alone")
    ensure(alone, 3, 4)
    assert contents(tmp_path / "alone") == contents(out)


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_processes, "_MANY_IMAGES", 1)


def with_threads(out: Path, threads: int, *assignments: str) -> Cell:
    made = cell(out, *assignments)
    made.execution = replace(made.execution, threads=threads)
    return made


def test_experts_side_by_side_are_those_of_one_process(tmp_path: Path, side_by_side: None) -> None:
    made = with_threads(tmp_path / "both", 2, "experts.count=2")
    assert expert_processes.processes(made, 2, 3) == 2
    train_experts(made, 2, 3)
    (row,) = [read_json(path) for path in (tmp_path / "both" / "rows").iterdir()]
    assert (row["processes"], row["trained_epochs"], row["environment"]["threads"]) == (2, 6, 2)
    train_experts(with_threads(tmp_path / "alone", 1, "experts.count=2"), 2, 3)
    assert contents(tmp_path / "alone") == contents(tmp_path / "both")
    assert expert_processes.processes(made, 2, 3) == 1  # they are there


def test_when_experts_are_trained_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_threads(tmp_path, 4)
    assert expert_processes.processes(made, 2, 3) == 1  # too short
    monkeypatch.setattr(expert_processes, "_MANY_IMAGES", 1)
    assert [expert_processes.processes(made, count, 3) for count in (1, 2, 3, 5)] == [1, 2, 3, 4]
    assert expert_processes.processes(with_threads(tmp_path, 1), 5, 3) == 1
    assert expert_processes.processes(made.planned({}, {"memory_budget_bytes": 1}), 5, 3) == 1
    ensure(made, 1, 3)
    assert expert_processes.processes(made, 3, 3) == 2  # one is there
    monkeypatch.setattr(expert_processes, "free_bytes", lambda device: 1000)
    assert expert_processes.processes(made, 5, 3) == 1  # no room for two


def test_experts_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    wide = ("network.width=32", "experts.batch_size=128")
    for threads in (1, 2):
        train_experts(with_threads(tmp_path / str(threads), threads, *wide), 1, 2)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_an_expert_that_diverges_beside_others_is_told(tmp_path: Path, side_by_side: None) -> None:
    made = with_threads(tmp_path, 2, "experts.lr=1e30", "experts.count=2")
    with pytest.raises(DivergedError, match=r"expert \d diverged in epoch \d+: lower experts\.lr"):
        train_experts(made, 2, 2)


def test_a_process_that_is_killed_is_told(tmp_path: Path, side_by_side: None, monkeypatch: pytest.MonkeyPatch) -> None:
    start = expert_processes._start

    def killed(command: list[str], environment: dict[str, str], log: Path) -> "subprocess.Popen[str]":
        worker = start(command, environment, log)
        worker.kill()
        return worker

    monkeypatch.setattr(expert_processes, "_start", killed)
    with pytest.raises(DcbenchError, match="was killed"):
        train_experts(with_threads(tmp_path, 2, "experts.count=2"), 2, 2)


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_damaged_snapshot_is_named_and_can_be_mended(shared: Cell, tmp_path: Path) -> None:
    made = cell(tmp_path)
    ensure(made, 1, 2)
    path = made.materials.expert_store.path(0, 2)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=rf"{path} is damaged\. Delete it and run the same command again"):
        ensure(made, 1, 3)
    path.unlink()
    ensure(made, 1, 3)
    assert path.read_bytes() == shared.materials.expert_store.path(0, 2).read_bytes()


def test_snapshot_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"epoch_001\.safetensors is gone\. Run the same command again"):
        cell(tmp_path).materials.expert_store.snapshot(0, 1)


def test_hole_in_the_middle_is_filled(shared: Cell, tmp_path: Path) -> None:
    made = cell(tmp_path)
    store = made.materials.expert_store
    ensure(made, 1, 3)
    store.path(0, 0).unlink()
    store.path(0, 2).unlink()
    assert not store.complete(1, 3)
    ensure(made, 1, 3)
    for epoch in range(4):
        assert store.path(0, epoch).read_bytes() == shared.materials.expert_store.path(0, epoch).read_bytes()


def test_divergence_is_one_message_and_no_snapshot(tmp_path: Path) -> None:
    made = cell(tmp_path, "experts.lr=1e30")
    with pytest.raises(DivergedError, match=r"expert 0 diverged in epoch \d+: lower experts\.lr"):
        ensure(made, 1, 3)
    store = made.materials.expert_store
    kept = [store.snapshot(0, epoch) for epoch in range(4) if store.path(0, epoch).exists()]
    assert all(torch.isfinite(theta).all() for theta in kept)


def test_row_of_the_stage(tmp_path: Path) -> None:
    made = cell(tmp_path)
    train_experts(made, 1, 2)
    (row,) = (read_json(path) for path in (tmp_path / "rows").iterdir())
    assert (row["stage"], row["experts"], row["epochs"], row["trained_epochs"]) == ("experts", 1, 2, 2)
    assert row["train_seconds"] > 0
    assert row["dataset_fingerprint"] == made.dataset.fingerprint


# --------------------------------------------------------------------------------------------------- plain reference


@pytest.mark.parametrize("strategy", ["none", "color_crop_cutout_scale_rotate"])
def test_epoch_equals_plain_sgd_written_out(strategy: str, shared: Cell) -> None:
    settings, augmentation = ExpertSettings(lr=0.1, batch_size=30), Augmentation(strategy)
    train, expert, epoch = shared.splits.train, 3, 5
    torch.manual_seed(0)
    network, reference = shared.materials.build_network(), shared.materials.build_network()
    reference.load_state_dict(network.state_dict())
    loss = train_epoch(network, train, settings, augmentation, expert, epoch)

    rng, total = generator(0, "expert epoch", expert, epoch), 0.0
    parameters: list[Any] = list(reference.parameters())
    order = torch.randperm(len(train), generator=rng)
    for start in range(0, len(train), 30):
        chunk = order[start : start + 30]
        images = shared.materials.preprocessing.forward(train.pixels[chunk].float() / 16)
        images = augmentation(images, augmentation.draw(len(chunk), 8, rng))
        batch_loss = -reference(images).log_softmax(1)[range(len(chunk)), train.labels[chunk]].mean()
        total += batch_loss.item() * len(chunk)
        gradients = torch.autograd.grad(batch_loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= 0.1 * g
    assert torch.allclose(flatten_parameters(network), flatten_parameters(reference), atol=1e-6)
    assert loss == pytest.approx(total / len(train), rel=1e-5)
