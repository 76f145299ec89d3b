"""Named networks of condensation: their layers by hand, their options, their keys, and what is refused."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcbench_tesla import registry
from dcbench_tesla.api import run
from dcbench_tesla.cells.budget import fit, predicted_expert_peak, predicted_peak
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.estimate import _compiles
from dcbench_tesla.cells.identity import CellIdentity, ExpertsRead
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cells.workload import Shape, workload
from dcbench_tesla.compute.compiling import compiles_training
from dcbench_tesla.compute.named_networks import AlexNetCifar, FrePoNet, LeNet
from dcbench_tesla.compute.networks import ConvNet, FlatNetwork, Network, flatten_parameters, why_unfit
from dcbench_tesla.config import NetworkSettings, overrides_from, resolve
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.errors import UsageError
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.profilers.memory import PredictedMeter

ROWS = Path(__file__).resolve().parents[1] / "results" / "rows"
SMALL = {"data.train_images": 100, "evaluation.networks": 1, "convnet.epochs": 2, "convnet.width": 4}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def kinds(network: Network) -> list[str]:
    return [type(module).__name__ for module in network.features.children()]


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "channels", "side", "parameters"),
    [
        (LeNet, 1, 28, (25 + 1) * 6 + (6 * 25 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10),
        (LeNet, 3, 32, (75 + 1) * 6 + (6 * 25 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10),
        (AlexNetCifar, 3, 32, (75 + 1) * 64 + (64 * 25 + 1) * 64 + 4097 * 384 + 385 * 192 + 193 * 10),
        (
            FrePoNet,  # no norm before the first convolution, two parameters a channel before the others
            *(3, 32),
            (27 + 1) * 128 + 2 * 128 + (128 * 9 + 1) * 256 + 2 * 256 + (256 * 9 + 1) * 512 + (512 * 16 + 1) * 10,
        ),
    ],
)
def test_parameters_are_those_counted_by_hand(
    build: Callable[..., Network], channels: int, side: int, parameters: int
) -> None:
    assert count(build(channels, 10, side)) == parameters


def test_parameters_that_docstrings_and_papers_tell() -> None:
    assert "61,706" in str(LeNet.__doc__)
    assert count(LeNet(1, 10, 28)) == 61_706
    assert f"{count(AlexNetCifar(3, 10, 32)):,}" in str(AlexNetCifar.__doc__)
    assert round(count(FrePoNet(3, 1000, 64)) / 1e6, 1) == 22.6  # FrePo's Conv-4 on ImageNet-1K


@pytest.mark.parametrize(
    ("build", "channels", "side"),
    [(LeNet, 1, 28), (LeNet, 3, 32), (AlexNetCifar, 3, 32), (FrePoNet, 1, 28), (FrePoNet, 3, 16), (FrePoNet, 1, 8)],
)
def test_logits_are_the_classifier_on_flat_features(build: Callable[..., Network], channels: int, side: int) -> None:
    torch.manual_seed(0)
    network, images = build(channels, 7, side), torch.randn(5, channels, side, side)
    features = network.features(images)
    assert features.ndim == 2
    logits = network(images)
    assert logits.shape == (5, 7)
    assert torch.equal(logits, network.classifier(features))
    assert (torch.pdist(logits) > 1e-4).all()


def test_lenet_sees_28_pixels_padded_to_32() -> None:
    small, large = LeNet(1, 10, 28), LeNet(1, 10, 32)
    large.load_state_dict(small.state_dict())
    images = torch.randn(4, 1, 28, 28)
    assert torch.allclose(small(images), large(nn.functional.pad(images, (2, 2, 2, 2))), atol=1e-6)


def test_layers_of_alexnet_stand_in_the_published_order() -> None:
    network = AlexNetCifar(3, 10, 32)
    first = ["Conv2d", "ReLU", "MaxPool2d", "LocalResponseNorm"]
    second = ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]
    assert kinds(network) == [*first, *second, "Flatten", "Linear", "ReLU", "Linear", "ReLU"]


def test_frepos_blocks_begin_with_their_norm_and_double_the_width() -> None:
    network = FrePoNet(1, 10, 28)
    block = ["Conv2d", "ReLU", "AvgPool2d"]
    assert kinds(network) == [*block, "BatchNorm2d", *block, "BatchNorm2d", *block, "Flatten"]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [128, 256, 512]
    assert [m.padding for m in convolutions] == [(3, 3), (1, 1), (1, 1)]
    assert "BatchNorm2d" not in kinds(FrePoNet(1, 10, 28, norm="none"))


def test_frepos_weights_are_drawn_by_fan_in() -> None:
    torch.manual_seed(0)
    network = FrePoNet(3, 100, 32)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            std = 1 / math.sqrt(module.weight[0].numel())
            assert module.weight.std().item() == pytest.approx(std, rel=0.03)
            assert module.weight.abs().max() <= 2 * std / 0.8796
            assert module.bias is not None
            assert not module.bias.any()


def test_norms_of_the_convnet() -> None:
    assert kinds(ConvNet(3, 10, 32, norm="none")) == ["Conv2d", "ReLU", "AvgPool2d"] * 3 + ["Flatten"]
    assert "BatchNorm2d" in kinds(ConvNet(3, 10, 32, norm="batch"))
    groups = [m.num_groups for m in ConvNet(3, 10, 32, norm="group").modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [4, 4, 4]
    with pytest.raises(UsageError, match="width 6 is not a multiple of 4"):
        ConvNet(3, 10, 32, width=6, norm="group")
    with pytest.raises(UsageError, match=r"network.norm 'instanz'. Did you mean 'instance'"):
        ConvNet(3, 10, 32, norm="instanz")


@pytest.mark.parametrize(
    ("build", "side", "fitting"), [(LeNet, 8, "28 x 28 or 32 x 32"), (AlexNetCifar, 28, "32 x 32")]
)
def test_other_sizes_get_one_message(build: Callable[..., Network], side: int, fitting: str) -> None:
    with pytest.raises(UsageError, match=f"takes images of {fitting} pixels, not {side} x {side}: choose network.name"):
        build(1, 10, side)


# ---- as a function of one vector -------------------------------------------------------------------------------------


def test_batch_norm_takes_the_statistics_of_the_batch_and_leaves_the_running_ones() -> None:
    def build() -> Network:
        return FrePoNet(3, 4, 16, width=3)

    flat, network, images = FlatNetwork(build), build(), torch.randn(6, 3, 16, 16)
    theta = flatten_parameters(network)
    with torch.no_grad():
        assert torch.allclose(flat(theta, images), network.train()(images), atol=1e-6)
        assert not torch.allclose(flat(theta, images[:3]), flat(theta, images)[:3], atol=1e-3)  # images are coupled
    assert flat.parameter_count == count(network)


def test_the_exact_gradient_through_batch_norm_is_that_of_autograd() -> None:
    found: dict[str, Tensor] = {}
    for method in ("mtt", "tesla-exact"):
        torch.manual_seed(0)
        condenser, problem = _set_up(method, NetworkSettings(name="frepo", width=3))
        condenser.setup(problem)
        _, gradients = condenser.gradients(0)
        found[method] = gradients["images"]
    assert found["mtt"].norm() > 0
    assert torch.allclose(found["mtt"], found["tesla-exact"], rtol=1e-3, atol=1e-5 * float(found["mtt"].abs().max()))


def _set_up(method: str, network: NetworkSettings) -> tuple[Any, Any]:
    from dcbench_tesla.cells.workload import _network, _Noise, _problem

    shape, device = Shape("noise", 3, 16, 3), torch.device("cpu")
    kind = registry.load_method(method)
    settings = kind.Settings(steps=3, batch_size=6)  # type: ignore[call-arg]
    train = _Noise(shape, 8, device)
    build = _network(shape, network)
    return kind(settings), _problem(kind, settings, shape, 2, build, train, Augmentation("none"), False)


@pytest.mark.parametrize("method", ["tesla", "dm", "dc", "dsa"])
@pytest.mark.parametrize(("name", "side"), [("lenet", 28), ("alexnet-cifar", 32)])
def test_methods_differentiate_through_every_layer(method: str, name: str, side: int) -> None:
    few: dict[str, Any] = {"tesla": {"steps": 2}, "dm": {}}.get(method, {"outer": 2, "inner": 1})
    shape, network = Shape("noise", 1 if side == 28 else 3, side, 2), NetworkSettings(name=name)
    record = workload(method, shape, ipc=1, network=network, device="cpu", per_class=4, settings=few)()()
    assert isinstance(record.loss, float)  # type: ignore[attr-defined]
    assert record.loss > 0  # type: ignore[attr-defined]


def test_networks_without_state_have_compiled_training_and_others_none() -> None:
    assert compiles_training(LeNet(1, 10, 28))
    assert compiles_training(ConvNet(1, 10, 8, width=4, norm="none"))
    assert not compiles_training(ConvNet(1, 10, 8, width=4, norm="batch"))
    assert not compiles_training(nn.Linear(2, 2))


# ---- settings and keys -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Data:
    """The facts about a data set that an identity needs, as a committed row has them."""

    name: str
    fingerprint: str
    side: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    flippable: bool


def committed(**wanted: str) -> Iterator[dict[str, Any]]:
    for path in sorted(ROWS.glob("condense-*.json")):
        row = json.loads(path.read_text())
        if all(row[name] == value for name, value in wanted.items()):
            yield row


def test_committed_cells_keep_their_keys() -> None:
    found = 0
    for row in committed(dataset="fashion-mnist", protocol="quick"):
        facts = row["identity"]["data"]
        mean, std = _tuple(facts["mean"]), _tuple(facts["std"])
        data = Data("fashion-mnist", facts["fingerprint"], 28, mean, std, flippable=True)
        config = resolve(row["method"], "fashion-mnist", row["ipc"] or 1, seed=row["seed"], preset="quick")
        experts = row["identity"]["experts"]
        identity = CellIdentity(config, data, ExpertsRead(**experts) if experts else None)
        assert identity.key == row["key"], row["cell"]
        assert not experts or _expert_key(row, config) == experts["key"]
        found += 1
    assert found >= 22


def _tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _expert_key(row: dict[str, Any], config: Any) -> str:
    network = config.network.facts(28)
    assert network == row["identity"]["network"]
    return ExpertRecipe(
        facts={"data": row["identity"]["data"], "network": network},
        settings=config.experts,
        augmentation=Augmentation(row["identity"]["augmentation"]),
        build_network=lambda: ConvNet(1, 10, 28),
    ).key


def test_every_committed_network_is_told_as_before() -> None:
    networks = [row["identity"]["network"] for row in committed() if row["identity"]["network"]]
    assert networks
    for network in networks:
        settings = NetworkSettings(name=network["name"], width=network["width"], depth=network["depth"])
        assert settings.facts(64) == network


def test_the_norm_counts_where_it_is_not_the_networks_own() -> None:
    plain = {"name": "convnet", "width": 128, "depth": 3}
    assert NetworkSettings().facts(32) == NetworkSettings(norm="instance").facts(28) == plain
    assert NetworkSettings(norm="batch", width=1024).facts(32) == {**plain, "width": 1024, "norm": "batch"}
    assert NetworkSettings(name="frepo").facts(64) == {"name": "frepo", "width": 128, "depth": 4}
    assert NetworkSettings(name="frepo", norm="batch").facts(64) == NetworkSettings(name="frepo").facts(64)
    assert NetworkSettings(name="frepo", norm="none").facts(32)["norm"] == "none"
    assert NetworkSettings(name="lenet", width=32).facts(28) == {"name": "lenet"}


def test_what_a_network_does_not_have_is_refused_and_presets_pass_by() -> None:
    def settings(**given: Any) -> NetworkSettings:
        changes = overrides_from({f"network.{name}": value for name, value in given.items()})
        return resolve("dm", "fashion-mnist", 1, preset="quick", overrides=changes).network

    assert settings(name="lenet").facts(28) == {"name": "lenet"}  # though the preset has a width
    assert settings(name="frepo").options() == {"width": 32, "depth": 0, "norm": "batch"}
    for option in ({"width": 8}, {"depth": 2}, {"norm": "none"}):
        with pytest.raises(UsageError, match=r"has no effect: network lenet has no such option. Leave it out"):
            settings(name="lenet", **option)
    with pytest.raises(UsageError, match=r"unknown network 'lenett'. Did you mean 'lenet'"):
        settings(name="lenett")
    with pytest.raises(UsageError, match=r"unknown network.norm 'batsh'. Did you mean 'batch'"):
        settings(norm="batsh")
    with pytest.raises(UsageError, match="method random uses no network"):
        resolve("random", "digits", 1, overrides=overrides_from({"network.name": "lenet"}))


# ---- cells -----------------------------------------------------------------------------------------------------------

Make = Callable[..., Cell]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def cell(method: str, dataset: str = "digits", **changes: Any) -> Cell:
        overrides = overrides_from({name.replace("__", "."): value for name, value in changes.items()})
        config = resolve(method, dataset, 1, preset="smoke", overrides=overrides)
        return Session(tmp_path, device="cpu", quiet=True).cell(config)

    return cell


@pytest.mark.parametrize("method", ["dm", "dc", "herding", "k-center"])
def test_batch_norm_is_refused_before_anything_is_computed(method: str, make: Make) -> None:
    with pytest.raises(UsageError, match=f"method {method} cannot be used with the batch norm of network frepo: it"):
        make(method, network__name="frepo", network__depth=2)
    make(method, network__name="frepo", network__depth=2, network__norm="none")


def test_batch_norm_is_refused_where_a_teacher_labels(make: Make) -> None:
    with pytest.raises(UsageError, match="labels=last asks a teacher, whose running statistics the experts' snapshots"):
        make("tesla", network__norm="batch", labels="last", last_epoch=1)
    make("tesla", network__norm="batch", labels="learned")


def test_images_of_another_size_are_refused_before_anything_is_computed(make: Make) -> None:
    with pytest.raises(UsageError, match="network lenet takes images of 28 x 28 or 32 x 32 pixels, not 8 x 8"):
        make("dm", network__name="lenet")


def test_keys_of_cells_and_experts_tell_networks_apart(make: Make) -> None:
    plain = make("tesla")
    others: list[dict[str, Any]] = [
        {"norm": "group"},
        {"norm": "batch"},
        {"norm": "none"},
        {"name": "frepo"},
        {"width": 4},
    ]
    cells = [plain, *(make("tesla", **{f"network__{k}": v for k, v in other.items()}) for other in others)]
    assert len({cell.key for cell in cells}) == len(cells)
    assert len({cell.materials.expert_store.recipe.key for cell in cells}) == len(cells)
    assert make("tesla", network__norm="instance", network__name="convnet").key == plain.key


def test_memory_is_predicted_for_the_named_network(make: Make) -> None:
    meter = PredictedMeter(round_to=1)
    plain = make("tesla", network__depth=2, network__width=8)
    wide = make("tesla", network__depth=2, network__width=8, network__name="frepo", network__norm="instance")
    assert predicted_expert_peak(wide, meter, batch_size=64) != predicted_expert_peak(plain, meter, batch_size=64)
    assert predicted_peak(wide, meter) != predicted_peak(plain, meter)
    bare = make("tesla", network__depth=2, network__width=8, network__norm="none")
    assert predicted_peak(bare, meter) < predicted_peak(plain, meter)


def test_only_what_can_be_narrower_shall_be(make: Make, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "toy.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    cell = make("dm", f"npz:{tmp_path / 'toy.npz'}", network__name="lenet")
    found = str(fit(cell, 1000, PredictedMeter(), ["condense"]))
    assert "network.width" not in found
    assert "smaller batches suffice: lower data.train_images." in found


def test_training_that_cannot_be_compiled_is_not_promised(make: Make) -> None:
    assert _compiles(make("tesla"), "experts")
    assert not _compiles(make("tesla", network__norm="batch"), "experts")


@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("tesla", {"name": "frepo", "depth": 2, "width": 4}),
        ("tesla-exact", {"norm": "group"}),
        ("dm", {"name": "frepo", "depth": 2, "width": 4, "norm": "none"}),
        ("herding", {"norm": "none"}),
    ],
)
def test_a_smoke_cell_with_another_network(method: str, network: dict[str, Any], tmp_path: Path) -> None:
    settings = {**SMALL, **{f"network.{name}": value for name, value in network.items()}}
    result = run(method, dataset="digits", preset="smoke", settings=settings, out=tmp_path, device="cpu", quiet=True)
    (row,) = [json.loads(p.read_text()) for p in (tmp_path / "rows").glob("condense-*.json")]
    depth = network.get("depth", 1)
    assert row["identity"]["network"] == {"name": "convnet", "width": 16, **network, "depth": depth}
    assert "network." in row["protocol"]
    assert result.accuracy() is not None
    rows = sorted((tmp_path / "rows").iterdir())
    run(method, dataset="digits", preset="smoke", settings=settings, out=tmp_path, device="cpu", quiet=True)
    assert sorted((tmp_path / "rows").iterdir()) == rows  # it is found by its key


# ---- of other packages -----------------------------------------------------------------------------------------------


class Flat(Network):
    """One Linear layer after one of ``width`` units."""

    version = 2

    def __init__(self, channels: int, classes: int, side: int, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, width), nn.Tanh())
        self.classifier = nn.Linear(width, classes)


class Dropping(Flat):
    """It draws random numbers."""

    def __init__(self, channels: int, classes: int, side: int, width: int = 8) -> None:
        super().__init__(channels, classes, side, width)
        self.features = nn.Sequential(self.features, nn.Dropout(0.5))


class Counting(Flat):
    """It has a state besides its parameters."""

    def __init__(self, channels: int, classes: int, side: int, width: int = 8) -> None:
        super().__init__(channels, classes, side, width)
        self.register_buffer("seen", torch.zeros(()))


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"flat": Flat, "dropping": Dropping, "counting": Counting, "bare": nn.Identity}
    known = dict(registry._points("networks"))
    for name, kind in here.items():
        point = EntryPoint(name, f"{__name__}:{kind.__name__}", "dcbench.networks")
        monkeypatch.setattr(EntryPoint, "load", _load_from(here))
        known[name] = point
    original = registry._points
    monkeypatch.setattr(registry, "_points", lambda kind: known if kind == "networks" else original(kind))


def _load_from(here: dict[str, Any]) -> Callable[[EntryPoint], Any]:
    original = EntryPoint.load

    def load(point: EntryPoint) -> Any:
        return here[point.name] if point.module == __name__ else original(point)

    return load


@pytest.mark.usefixtures("others")
def test_a_network_of_another_package_is_one_class(make: Make, tmp_path: Path) -> None:
    network = make("tesla", network__name="flat", network__width=5)
    assert network.identity.content["network"] == {"name": "flat", "width": 5, "version": 2}
    with pytest.raises(UsageError, match="network flat has no such option"):
        make("tesla", network__name="flat", network__norm="none")
    settings = {**SMALL, "network.name": "flat"}
    result = run("dm", dataset="digits", preset="smoke", settings=settings, out=tmp_path, device="cpu", quiet=True)
    assert result.distilled.images.shape == (10, 1, 8, 8)


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dropping", r"it has dropout \(features.1\), so the same parameters and images"),
        ("counting", r"it has a buffer \(seen\) besides its parameters"),
        ("bare", "Identity is no subclass of dcbench_tesla.compute.networks.Network"),
    ],
)
def test_networks_that_do_not_repeat_themselves_are_refused(name: str, why: str, make: Make) -> None:
    with pytest.raises(UsageError, match=f"network {name} cannot be used for condensation: {why}"):
        make("dm", network__name=name)


def test_instance_norm_of_pytorch_has_no_state() -> None:
    network = Flat(1, 2, 8)
    network.features = nn.Sequential(nn.InstanceNorm2d(1), network.features)
    assert why_unfit(network) == ""
