"""Messages that name what is wrong: an expert's file, an evaluator that is not in the run, a device."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.stages import run_cell
from dcbench_tesla.cli import main
from dcbench_tesla.config import Override, parse_set, resolve, resolve_all, restored
from dcbench_tesla.errors import CorruptFileError, DivergedError, UsageError
from dcbench_tesla.experts import store as expert_store
from dcbench_tesla.experts.imported import ImportedStore
from dcbench_tesla.records.store import load_tensors, save_tensors

SMALL = ["data.train_images=100", "network.width=4", "experts.count=1", "steps=1", "iterations=2", "evaluation.every=0"]


def tesla(out: Path, *assignments: str) -> Cell:
    torch.set_num_threads(1)
    overrides = [parse_set(text) for text in (*SMALL, "convnet.width=4", "convnet.epochs=1", *assignments)]
    config = resolve("tesla", "digits", 1, preset="smoke", overrides=overrides)
    return Session(out, device="cpu", quiet=True).cell(config)


@pytest.fixture
def trained(tmp_path: Path) -> Cell:
    """A cell whose expert is trained."""
    cell = tesla(tmp_path)
    request = cell.materials.expert_request
    assert request is not None

    class Silent:
        def advance(self, amount: int = 1) -> None: ...

    cell.materials.expert_store.ensure(1, request.epochs, cell.splits.train, Silent())
    return cell


DAMAGE: dict[str, tuple[Callable[[Tensor], Tensor] | None, str]] = {
    "nan": (lambda theta: torch.full_like(theta, torch.nan), "holds parameters that are NaN or infinite"),
    "one infinity": (
        lambda theta: torch.cat([theta[:-1], torch.tensor([torch.inf])]),
        "holds parameters that are NaN or infinite",
    ),
    "short": (
        lambda theta: theta[:-1],
        r"holds torch\.float32 \(\d+,\), but the network of this run has \d+ parameters",
    ),
    "matrix": (lambda theta: theta[None], r"holds torch\.float32 \(1, \d+\), but the network"),
    "double": (lambda theta: theta.double(), r"holds torch\.float64 \(\d+,\), but the network"),
    "nothing": (None, "is not a snapshot of an expert"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_expert_that_cannot_be_used_is_named(kind: str, trained: Cell) -> None:
    damage, message = DAMAGE[kind]
    store = trained.materials.expert_store
    for epoch in range(10):
        path = store.path(0, epoch)
        if path.exists():
            tensors, meta = load_tensors(path)
            damaged = {} if damage is None else {"theta": damage(tensors["theta"])}
            save_tensors(path, damaged, meta)
    with pytest.raises(CorruptFileError, match=rf"epoch_00\d\.safetensors {message}.* Delete it and run the same"):
        run_cell(tesla(trained.workspace.root))


def test_whole_expert_is_read_to_the_bit(trained: Cell) -> None:
    store = trained.materials.expert_store
    assert torch.equal(store.snapshot(0, 1), load_tensors(store.path(0, 1))[0]["theta"])


def test_imported_expert_says_to_import_again(trained: Cell) -> None:
    made = trained.materials.expert_store
    made.write(0, 1, torch.full((made.parameters,), torch.nan), {})
    imported = ImportedStore(made.folder.parent, made.recipe, [1])
    with pytest.raises(CorruptFileError, match=r"epoch_001\.safetensors holds .*NaN.* and import the experts again"):
        imported.snapshot(0, 1)


def test_no_expert_with_nan_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ruin(network: torch.nn.Module, *_: object) -> float:  # the last step of an epoch can do it, behind the loss
        with torch.no_grad():
            next(network.parameters()).fill_(torch.nan)
        return 1.0

    monkeypatch.setattr(expert_store, "train_epoch", ruin)
    with pytest.raises(DivergedError, match=r"expert 0 diverged in epoch 1: lower experts\.lr"):
        run_cell(tesla(tmp_path))
    assert not list(tmp_path.rglob("epoch_001.safetensors"))


# ------------------------------------------------------------------------------------------- settings of an evaluator


@pytest.mark.parametrize(
    ("methods", "assignment"),
    [(["random"], "resnet18.epochs=3"), (["dm", "tesla"], "vit.epochs=3"), (["dm"], "timm:resnet26d.epochs=3")],
)
def test_setting_of_an_evaluator_that_is_not_in_the_run(methods: list[str], assignment: str) -> None:
    name = assignment.partition(".")[0]
    message = rf"setting {name}\.epochs is one of evaluator {name}, which is not in this run: add --evaluator {name}"
    with pytest.raises(UsageError, match=message):
        resolve_all(methods, ["digits"], [1], [0], preset="smoke", overrides=[parse_set(assignment)])
    resolve_all(methods, ["digits"], [1], [0], preset="smoke", evaluators=["convnet"])


def test_setting_of_an_evaluator_that_is_not_evaluated_now() -> None:
    stored = resolve("random", "digits", 1, preset="smoke").as_dict()
    with pytest.raises(UsageError, match=r"which is not in this run: add --evaluator resnet18"):
        restored(stored, ["convnet"], [Override("resnet18", "epochs", "3")])


def test_setting_of_nothing_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"unknown setting 'convent\.epochs'\. Did you mean 'convnet\.epochs'\?"):
        resolve("random", "digits", 1, preset="smoke", overrides=[parse_set("convent.epochs=3")])


# -------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("device", ["mps", "mps:0", "meta", "xla", "gpu", "", "CPU"])
def test_device_that_is_not_supported_is_one_short_line(device: str) -> None:
    with pytest.raises(UsageError) as refused:
        Execution.resolve(device)
    assert str(refused.value) == f"device {device!r} is not supported: cpu and cuda are."


def test_device_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match=r"device 'cpu:x' cannot be used here; try cpu"):
        Execution.resolve("cpu:x")


# ------------------------------------------------------------------------------------------- names of released code


RELEASED = {
    "lr_teacher": ("student_lr", "experts.lr"),
    "lr-img": ("lr_images",),
    "syn_steps": ("steps",),
    "num_eval": ("evaluation.networks",),
    "zca": ("data.zca",),
}


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("form", ["--{} 0.1", "--{}=0.1"])
def test_option_by_its_name_in_released_code(name: str, form: str) -> None:
    ran = CliRunner().invoke(main, ["run", "--method", "tesla", *form.format(name).split()])
    assert ran.exit_code == 2
    told = ran.stderr.splitlines()[-1]
    assert told.startswith(
        f"Error: no such option: --{name}. What released code calls {name.replace('-', '_')} is here"
    )
    assert all(f"--set {own}=VALUE" in told for own in RELEASED[name])


def test_option_of_released_code_that_is_one_here(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["run", "--model", "ConvNet"])
    assert ran.stderr.splitlines()[-1].endswith("is here --evaluator (for other networks in the evaluation).")
    ran = CliRunner().invoke(main, ["list", "--model", "ConvNet"])  # which has no --evaluator
    assert "released code" not in ran.stderr


def test_setting_that_is_given_as_an_option() -> None:
    ran = CliRunner().invoke(main, ["run", "--steps", "3"])
    assert (ran.exit_code, ran.stderr.splitlines()[-1]) == (
        2,
        "Error: no such option: --steps. It is a setting: --set steps=VALUE.",
    )


def test_option_that_is_nothing_is_told_by_the_command_line() -> None:
    ran = CliRunner().invoke(main, ["run", "--methd", "tesla"])
    assert "No such option '--methd'" in ran.stderr
    assert "--method" in ran.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "lr_teacher = 0.1",
            "is here student_lr under [settings] (in distill.py) or lr under [experts] (in buffer.py).",
        ),
        ("num_eval = 3", "What released code calls num_eval is here networks under [evaluation]."),
        ("model = 'ConvNet'", "is here evaluator (for other networks in the evaluation)."),
        ("save_path = 'x'", "What released code calls save_path is here --out on the command line."),
        ("steps = 3", "It is a setting: steps under [settings]."),
        ("methd = 'tesla'", "Did you mean 'method'?"),
    ],
)
def test_top_level_option_of_a_file_that_is_none(line: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(f"method = 'tesla'\n{line}\n")
    ran = CliRunner().invoke(main, ["run", "--config", str(file)])
    assert ran.exit_code == 2
    (message,) = ran.stderr.splitlines()
    assert message.startswith(f"Error: unknown option in {file}: {line.split()[0]!r}.") or "Did you mean" in told
    assert told in message
