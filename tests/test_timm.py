"""``timm:<name>``: real models of timm on small images, those that are refused, and the names on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner, Result
from torch import nn

from dcbench_tesla import registry
from dcbench_tesla.cli import main
from dcbench_tesla.compute.networks import seeded
from dcbench_tesla.config import parse_set, read_config_file, resolve
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import UsageError
from dcbench_tesla.evaluators.timm_models import TimmModel, keep_resolution, plan_for, problem_of
from dcbench_tesla.evaluators.training import TrainingSet

# what adapting to 32 pixels takes from a model's parameters, for three channels
SMALLER = {
    "resnet18": 64 * 3 * (7 * 7 - 3 * 3),
    "resnet26d": 0,  # a stem of three 3 x 3 convolutions
    "mobilenetv3_small_050": 0,
    "convnext_atto": 40 * 3 * (4 * 4 - 3 * 3),
    "deit_tiny_patch16_224": 192 * 3 * (16 * 16 - 4 * 4) + 192 * (14 * 14 - 8 * 8),
    "densenet121": 64 * 3 * (7 * 7 - 3 * 3),
}
CHEAP = ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "deit_tiny_patch16_224", "regnety_002"]
REFUSED = {
    "levit_128s": r"with img_size 32, patch_size 4 or .*unexpected keyword argument 'patch_size'",
    "shvit_s1": r"with its first strided convolution with .*: its last feature map has 1 pixels, but needs 2 x 2",
    "test_coatnet": r"with img_size 32, patch_size 4 or .*TypeError",
}


pytestmark = pytest.mark.usefixtures("one_thread")


def load(name: str, **settings: object) -> TimmModel:
    kind = registry.load_evaluator(f"timm:{name}")
    made = kind(kind.Settings(**settings))
    assert isinstance(made, TimmModel)
    return made


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def dcbench(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


# ---------------------------------------------------------------------------------------------------------- the models


@pytest.mark.parametrize("name", SMALLER)
def test_a_model_keeps_its_parameters_but_for_stem_and_positions(name: str) -> None:
    with torch.device("meta"):
        native = count(timm.create_model(name, num_classes=10))
    made = load(name).build(3, 10, 32)
    assert count(made) == native - SMALLER[name]


def test_resnet18_has_as_many_parameters_as_the_papers() -> None:
    assert count(load("resnet18").build(3, 10, 32)) == 11_173_962


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHEAP)
def test_logits_differ_between_images_of_every_size(name: str, channels: int) -> None:
    for side in (8, 28, 32, 64):
        with seeded(0):
            network = load(name).build(channels, 7, side).eval()
            images = torch.randn(3, channels, side, side)
        logits = network(images)
        assert logits.shape == (3, 7)
        assert float(logits.detach().std(0).min()) > 1e-4 * float(logits.detach().abs().max())


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("resnet10t", {32: 16, 64: 64}),
        ("mobilenetv3_small_050", {32: 4, 64: 16}),
        ("convnext_atto", {32: 16, 36: 16, 64: 64}),
        ("deit_tiny_patch16_224", {32: 64 + 1, 36: 81 + 1, 64: 64 + 1}),  # and the class token
        ("swin_s3_tiny_224", {32: 16}),
    ],
)
def test_pixels_and_tokens_that_are_left(name: str, positions: dict[int, int]) -> None:
    for side, expected in positions.items():
        network = load(name).build_for(3, 10, side).eval()
        with torch.no_grad():
            maps = network.forward_features(torch.randn(1, 3, side, side))  # type: ignore[operator]
        assert maps.numel() // int(network.num_features) == expected  # type: ignore[arg-type]


def test_the_evaluators_of_the_papers_and_this_one_build_the_same_resnet18() -> None:
    """Layer by layer, but for the norms: instance norm there, timm's batch norm here."""
    ours = load("resnet18").build_for(3, 10, 32)
    theirs = registry.load_evaluator("resnet18")
    papers = theirs(theirs.Settings()).build_for(3, 10, 32)  # type: ignore[attr-defined]

    def convolutions(network: nn.Module) -> dict[str, tuple[object, ...]]:
        convs = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
        return {n: (m.weight.shape, m.stride, m.padding) for n, m in convs.items()}

    assert convolutions(ours) == convolutions(papers)
    assert isinstance(ours.maxpool, nn.Identity)


def test_only_the_stem_is_touched() -> None:
    network = timm.create_model("densenet121", num_classes=10)
    before = {n: m for n, m in network.named_modules() if not list(m.children())}
    after = {n: m for n, m in keep_resolution(network).named_modules() if not list(m.children())}
    assert {n for n in before if after[n] is not before[n]} == {"features.conv0", "features.pool0"}


class OnePixel(nn.Module):
    """An instance norm over one pixel: the same logits for all images; the defect that the trial is for."""

    def __init__(self, pixels: int, least: float = 0.0) -> None:
        super().__init__()
        self.pool, self.norm = nn.AdaptiveAvgPool2d(pixels), nn.GroupNorm(3, 3)
        self.head, self.num_features, self.factor = nn.Linear(3, 5), 3, least

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.pool(images)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.forward_features(images).mean((2, 3)))
        return logits / self.factor if self.factor else logits


def test_the_trial_finds_what_is_wrong() -> None:
    with seeded(0):
        assert problem_of(OnePixel(4), 3, 5, 32, 2) == ""
        assert "has 1 pixels, but needs 2 x 2" in problem_of(OnePixel(1), 3, 5, 32, 2)
        assert "almost the same for all images" in problem_of(OnePixel(1), 3, 5, 32, 1)
        assert "no logits (N, K)" in problem_of(OnePixel(4), 3, 6, 32, 2)
        assert "not finite" in problem_of(OnePixel(4, 1e-45), 3, 5, 32, 2)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_adapted_is_refused_with_what_was_tried(name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"timm's {name} cannot be adapted to images of 32 x 32\. Tried {REFUSED[name]}"
    ):
        registry.load_evaluator(f"timm:{name}")


def test_a_plan_does_not_touch_the_global_random_numbers() -> None:
    plan_for.cache_clear()
    before = torch.get_rng_state()
    load("mobilenetv3_small_050")
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------------------------------ training


def five_images() -> DistilledSet:
    return DistilledSet(
        images=torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(5),
        class_names=tuple("abcde"),
        preprocessing=Preprocessing("standardise", torch.zeros(1), torch.ones(1)),
        augmentation="none",
    )


def test_training_learns_what_it_is_shown() -> None:
    distilled = five_images()
    (network,) = load("mobilenetv3_small_050", epochs=120).train(distilled, [0], torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(network(distilled.images).argmax(1), distilled.labels)


@pytest.mark.parametrize(("batch_size", "batches"), [(2, [2, 3]), (4, [5]), (5, [5]), (3, [3, 2])])
def test_no_batch_has_one_image(batch_size: int, batches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    batch = TrainingSet.batch

    def counted(self: TrainingSet, indices: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(indices))
        return batch(self, indices, rng)

    monkeypatch.setattr(TrainingSet, "batch", counted)
    made = load("mobilenetv3_small_050", epochs=2, batch_size=batch_size)
    made.train(five_images(), [0], torch.device("cpu"))
    assert sizes == 2 * batches
    assert made.cost(five_images()) == len(sizes)


def test_one_image_is_too_few() -> None:
    with pytest.raises(UsageError, match="batch_size must be at least 2"):
        load("mobilenetv3_small_050", batch_size=1)
    made = load("mobilenetv3_small_050", epochs=1)
    with pytest.raises(UsageError, match="cannot train on one image"):
        made.train(five_images().choose(torch.tensor([0])), [0], torch.device("cpu"))


# --------------------------------------------------------------------------------------------------------------- names


def test_unknown_names_get_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match=r"timm \S+ has no model 'resnt26d'\. Similar: resnet26d, "):
        registry.load_evaluator("timm:resnt26d")
    with pytest.raises(UsageError, match=r"has no model 'hf-hub:somebody/something'"):
        registry.check_names("evaluators", ["timm:hf-hub:somebody/something"])
    with pytest.raises(UsageError, match=r"unknown evaluator 'timm'\. Did you mean 'timm:<name>'"):
        registry.check_names("evaluators", ["timm"])


def test_a_tag_is_refused_because_nothing_is_downloaded() -> None:
    with pytest.raises(UsageError, match=r"pretrained weights 'bt_in1k'.*nothing is downloaded.* timm:resnet26d\.$"):
        registry.load_evaluator("timm:resnet26d.bt_in1k")


def test_listing_and_help_import_neither_torch_nor_timm() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom dcbench_tesla.cli import main\n"
        "for words in (['list', 'evaluators'], ['run', '--help'], ['check-evaluator', '--help']):\n"
        "    shown = CliRunner().invoke(main, words)\n    assert shown.exit_code == 0\n    print(shown.stdout)\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert sum(line.startswith("timm:<name> Any classification model of timm") for line in shown) == 1
    assert "dcbench check-evaluator timm:resnet26d" in done.stdout


def test_info_of_the_family_and_of_a_member() -> None:
    for name in ("timm", "timm:", "timm:<name>"):
        shown = dcbench("info", name).stdout
        assert shown.startswith("family of evaluators, version 1: Any classification model of timm")
        assert "timm:<name>.epochs        = 300" in shown
    shown = dcbench("info", "timm:mobilenetv3_small_050").stdout
    assert "mobilenetv3_small_050 of timm" in shown
    assert "578,474 parameters for ten classes" in shown
    assert "timm:mobilenetv3_small_050.lr            = 0.001" in shown
    unknown = dcbench("info", "timm:mobilenet")
    assert unknown.exit_code == 2
    assert "Similar: mobilenet" in unknown.stderr


def test_settings_by_set_and_by_file(tmp_path: Path) -> None:
    name = "timm:mobilenetv3_small_050"
    config = resolve("random", "digits", 1, evaluators=[name], overrides=[parse_set(f"{name}.epochs=20")])
    assert config.evaluators[name].epochs == 20
    assert config.evaluators[name].recipe == "adam-cosine"
    assert config.changed == (f"{name}.epochs",)
    assert f"--evaluator {name} --set {name}.epochs=20" in config.command
    file = tmp_path / "experiment.toml"
    file.write_text(f'evaluator = "{name}"\n["{name}"]\nepochs = 30\n[settings]\n"{name}.lr" = 0.01\n')
    options, overrides = read_config_file(file)
    settings = resolve("random", "digits", 1, evaluators=[options["evaluator"]], overrides=overrides).evaluators[name]
    assert (settings.epochs, settings.lr) == (30, 0.01)
    with pytest.raises(UsageError, match=rf"unknown setting '{name}\.epoch'\. Did you mean '{name}\.epochs'"):
        resolve("random", "digits", 1, evaluators=[name], overrides=[parse_set(f"{name}.epoch=20")])


def test_a_run_from_the_command_line(tmp_path: Path) -> None:
    name = "timm:mobilenetv3_small_050"
    words = ["run", "--method", "random", "--dataset", "digits", "--ipc", 1, "--preset", "smoke", "--evaluator", name]
    words += ["--set", f"{name}.epochs=2", "--set", "evaluation.networks=1", "--set", "data.train_images=100"]
    result = dcbench(*words, "--device", "cpu", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (row,) = (json.loads(path.read_text()) for path in (tmp_path / "rows").glob("evaluate-*.json"))
    assert row["evaluator"] == name
    assert row["recipe"] == "adam-cosine, 2 epochs, lr 0.001"
    assert row["settings"]["epochs"] == 2
    assert 0 <= row["accuracy"]["last"]["mean"] <= 1
    refused = dcbench("run", "--method", "random", "--evaluator", "timm:levit_128s", "--out", tmp_path)
    assert refused.exit_code == 2
    assert "cannot be adapted to images of 32 x 32" in refused.stderr
