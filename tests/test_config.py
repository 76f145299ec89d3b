"""How a cell's configuration is resolved, what the presets hold, and what a cell's key depends on."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from dcbench_tesla import registry
from dcbench_tesla.cells.cell import Cell
from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.cells.identity import describe_data
from dcbench_tesla.cells.session import Session
from dcbench_tesla.cli import main
from dcbench_tesla.config import (
    CellConfig,
    Override,
    overrides_from,
    parse_set,
    read_config_file,
    resolve,
    resolve_all,
    setting_names,
    settings_given,
    with_sets,
)
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.datasets import load_dataset
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.workspace import Workspace


def given(*assignments: str) -> list[Override]:
    return [parse_set(text) for text in assignments]


def smoke(method: str, *assignments: str, ipc: int = 1, seed: int = 0) -> CellConfig:
    return resolve(method, "digits", ipc, seed=seed, preset="smoke", overrides=given(*assignments))


# ------------------------------------------------------------------------------------------------ resolution order


def dry_run(*words: str) -> list[dict[str, Any]]:
    """Return the configurations that ``dcbench run --dry-run`` shows."""
    result = CliRunner().invoke(main, ["run", "--dry-run", "--json", "--no-baseline", "--device", "cpu", *words])
    assert result.exit_code == 0, result.output
    return [cell["config"] for cell in json.loads(result.stdout)["cells"]]


def test_default_then_preset_then_file_then_set(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('method = "tesla"\npreset = "smoke"\n[settings]\nsteps = 7\nlr_images = 3\n[network]\nwidth = 4\n')
    plain = resolve("tesla", "digits", 1, preset="smoke")
    (config,) = dry_run("--config", str(file), "--set", "steps=5", "--out", str(tmp_path / "out"))
    assert config["settings"]["momentum"] == 0.5  # the method's default, in no preset
    assert config["settings"]["batch_size"] == plain.settings.batch_size != 0  # the preset's
    assert config["settings"]["lr_images"] == 3.0 != plain.settings.lr_images  # the file's
    assert config["network"]["width"] == 4
    assert config["settings"]["steps"] == 5  # --set goes over the file
    assert not (tmp_path / "out").exists()


def test_command_line_options_go_over_the_files(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('method = ["tesla", "mtt"]\nipc = 2\nseed = [3, 4]\npreset = "smoke"\n')
    configs = dry_run("--config", str(file), "--ipc", "1")
    cells = {(c["method"], c["ipc"], c["seed"]) for c in configs}
    assert cells == {("tesla", 1, 3), ("tesla", 1, 4), ("mtt", 1, 3), ("mtt", 1, 4)}


def test_last_set_of_a_name_wins() -> None:
    assert smoke("tesla", "steps=5", "steps=6").settings.steps == 6


def test_defaults_without_a_rule_for_the_cell() -> None:
    config = resolve("tesla", "npz:/somewhere/mine.npz", 3)
    assert config.settings.steps == registry.load_method("tesla").Settings().steps  # type: ignore[attr-defined]
    assert config.data.validation == 0.1


# ----------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("assignment", "section", "name", "value"),
    [
        ("steps=5", "settings", "steps", 5),
        (" steps = 5 ", "settings", "steps", 5),
        ("lr_images=1e3", "settings", "lr_images", 1000.0),
        ("lr_images=3", "settings", "lr_images", 3.0),
        ("labels=target", "settings", "labels", "target"),
        ("data.zca=true", "data", "zca", True),
        ("data.zca=No", "data", "zca", False),
        ("network.width=8", "network", "width", 8),
        ("experts.lr=0.5", "experts", "lr", 0.5),
        ("evaluation.networks=1", "evaluation", "networks", 1),
        ("convnet.epochs=3", "convnet", "epochs", 3),
    ],
)
def test_text_becomes_the_fields_type(assignment: str, section: str, name: str, value: object) -> None:
    config = smoke("tesla", assignment)
    settings = config.evaluators["convnet"] if section == "convnet" else getattr(config, section)
    found = getattr(settings, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("steps=many", "int"),
        ("steps=1.5", "int"),
        ("steps=", "int"),
        ("lr_images=fast", "float"),
        ("data.zca=maybe", "bool"),
        ("network.width=8.0", "int"),
        ("convnet.epochs=ten", "int"),
    ],
)
def test_wrong_type_is_refused(assignment: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=rf"{assignment.partition('=')[0]} takes a value of type {wanted}, not "):
        smoke("tesla", assignment)


@pytest.mark.parametrize(
    "settings", [{"steps": True}, {"steps": 1.5}, {"steps": [1]}, {"lr_images": False}, {"labels": 3}, {"data.zca": 7}]
)
def test_wrong_type_in_a_file_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="takes a value of type"):
        resolve("tesla", "digits", 1, preset="smoke", overrides=overrides_from(settings))


@pytest.mark.parametrize("text", ["steps", "=5", "", " = 3"])
def test_set_without_key_or_value(text: str) -> None:
    with pytest.raises(UsageError, match="--set takes key=value"):
        parse_set(text)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("data.train_images=-1", "data.train_images must be 0"),
        ("data.validation=1", r"data.validation must be a share in \[0, 1\)"),
        ("data.validation=nan", "data.validation"),
        ("network.width=0", "network.width must be at least 1"),
        ("network.depth=-1", "network.depth"),
        ("experts.count=0", "experts.count must be at least 1"),
        ("experts.lr=0", "experts.lr must be positive"),
        ("experts.lr=nan", "experts.lr must be positive"),
        ("experts.batch_size=0", "experts.batch_size"),
        ("evaluation.networks=0", "evaluation.networks must be at least 1"),
        ("evaluation.every=-1", "evaluation.every"),
        ("evaluation.networks_on_the_way=0", "evaluation.networks_on_the_way"),
        ("convnet.epochs=0", "convnet.epochs"),
        ("convnet.lr=-1", "convnet.lr must be positive"),
        ("convnet.momentum=-0.1", "convnet.momentum"),
    ],
)
def test_value_out_of_range_is_refused(assignment: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        smoke("tesla", assignment)


# ----------------------------------------------------------------------------------------------- names and effects


@pytest.mark.parametrize(
    ("assignment", "near"),
    [
        ("stpes=5", "steps"),
        ("network.widht=5", "network.width"),
        ("convnet.epoch=5", "convnet.epochs"),
        ("netwrk.width=5", "network.width"),
        ("width=5", "network.width"),
    ],
)
def test_unknown_setting_gets_the_nearest_name(assignment: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown setting '{assignment[:-2]}'. Did you mean '{near}'"):
        smoke("tesla", assignment)


def test_unknown_setting_lists_all() -> None:
    with pytest.raises(
        UsageError, match=r"unknown setting 'qqq'\. Known: batch_size, .*, convnet\.batch_size, .* steps"
    ):
        smoke("tesla", "qqq=1")


def test_unknown_preset_method_and_evaluator() -> None:
    with pytest.raises(UsageError, match=r"unknown preset 'papre'\. Did you mean 'paper'"):
        resolve("tesla", "digits", 1, preset="papre")
    with pytest.raises(UsageError, match=r"unknown method 'tesl'\. Did you mean 'tesla'"):
        resolve("tesl", "digits", 1)
    with pytest.raises(UsageError, match=r"unknown evaluator 'convnets'\. Did you mean 'convnet'"):
        resolve("tesla", "digits", 1, evaluators=["convnets"])


@pytest.mark.parametrize(
    ("method", "assignments"),
    [
        ("random", ["experts.count=3"]),
        ("random", ["network.width=8"]),
        ("whole", ["experts.lr=0.1"]),
        ("whole", ["network.depth=1"]),
        ("tesla", ["label_space=logits"]),
        ("tesla", ["lr_labels=2"]),
        ("tesla", ["last_epoch=3"]),
        ("tesla", ["labels=target", "last_epoch=3"]),
        ("tesla", ["labels=learned", "last_epoch=3"]),
        ("tesla", ["labels=last", "label_space=probabilities"]),
        ("random", ["evaluation.every=1"]),  # there is nothing on the way of a method without iterations
        ("tesla", ["evaluation.every=0", "evaluation.networks_on_the_way=2"]),
        ("tesla", ["convnet.lr=0.1"]),  # the learned rate is used
        ("random", ["convnet.learned_lr=false"]),
    ],
)
def test_setting_without_effect_is_refused(method: str, assignments: list[str]) -> None:
    name = assignments[-1].partition("=")[0]
    with pytest.raises(UsageError, match=f"setting {name} has no effect"):
        smoke(method, *assignments)


@pytest.mark.parametrize(
    "assignments", [["labels=last", "last_epoch=3"], ["labels=learned", "label_space=probabilities", "lr_labels=2"]]
)
def test_setting_with_effect_is_taken(assignments: list[str]) -> None:
    for order in (assignments, assignments[::-1]):
        assert smoke("tesla", *order).settings.labels == assignments[0].partition("=")[2]


def test_setting_names_are_what_set_takes() -> None:
    names = setting_names("tesla-exact", ["convnet"])
    assert {"steps", "weights", "data.zca", "network.width", "experts.count", "convnet.epochs"} <= set(names)
    for name in names:
        with pytest.raises(UsageError, match=rf"{name}(\b|$)"):  # known, but takes no dictionary
            resolve("tesla-exact", "digits", 1, overrides=overrides_from({name: {}}))


# ------------------------------------------------------------------------------------------------------- protocols


@pytest.mark.parametrize(
    ("method", "dataset", "preset", "assignments", "protocol"),
    [
        ("mtt", "cifar10", "paper", [], "paper"),
        ("random", "cifar10", "paper", [], "paper"),
        ("tesla", "cifar10", "paper", [], "paper, settings of MTT"),  # TESLA publishes none for this cell
        ("tesla-exact", "cifar10", "paper", [], "paper, settings of MTT"),  # ours: nobody publishes it
        ("tesla", "digits", "paper", [], "defaults"),
        ("tesla", "npz:mine.npz", "paper", [], "defaults"),
        ("tesla", "cifar10", "quick", [], "quick"),
        ("tesla", "digits", "smoke", [], "smoke"),
        ("tesla", "cifar10", "quick", ["steps=5"], "quick, changed: steps"),
        ("mtt", "cifar10", "paper", ["steps=5", "network.width=8"], "paper, changed: network.width, steps"),
        ("tesla", "digits", "paper", ["steps=5"], "defaults, changed: steps"),
    ],
)
def test_protocol(method: str, dataset: str, preset: str, assignments: list[str], protocol: str) -> None:
    assert resolve(method, dataset, 10, preset=preset, overrides=given(*assignments)).protocol == protocol


def test_ipc_without_publication_is_no_paper_protocol() -> None:
    assert resolve("mtt", "cifar10", 7).protocol == "defaults"


ALL = 0  # batch_size: all images
# protocols.md, section 5: T, M, max start, lr_img, lr of b, b at start, inner batch, ZCA
PUBLISHED: dict[tuple[str, str, int], tuple[int, int, int, float, float, float, int, bool]] = {
    ("mtt", "cifar10", 1): (50, 2, 2, 100, 1e-7, 0.01, ALL, True),
    ("tesla", "cifar10", 1): (50, 2, 5, 500, 1e-7, 0.01, ALL, False),  # published 1000, halved
    ("mtt", "cifar10", 10): (30, 2, 20, 100, 1e-5, 0.001, ALL, True),
    ("tesla", "cifar10", 10): (30, 2, 20, 100, 1e-5, 0.001, ALL, True),  # not published: MTT's
    ("mtt", "cifar10", 50): (30, 2, 40, 1000, 1e-5, 0.001, ALL, False),
    ("tesla", "cifar10", 50): (30, 2, 40, 1000, 1e-5, 0.001, ALL, False),
    ("mtt", "cifar100", 1): (20, 3, 20, 1000, 1e-5, 0.01, ALL, True),
    ("tesla", "cifar100", 1): (20, 3, 20, 1000, 1e-5, 0.01, ALL, True),
    ("mtt", "cifar100", 10): (20, 2, 20, 1000, 1e-5, 0.01, ALL, False),
    ("tesla", "cifar100", 10): (20, 2, 20, 1000, 1e-5, 0.01, ALL, False),
    ("mtt", "cifar100", 50): (80, 2, 40, 1000, 1e-5, 0.01, 125, True),
    ("tesla", "cifar100", 50): (80, 2, 40, 500, 1e-5, 0.01, 125, True),  # published 1000, halved
    ("mtt", "tiny-imagenet", 1): (10, 2, 10, 1e4, 1e-4, 0.01, ALL, False),
    ("mtt", "tiny-imagenet", 10): (20, 2, 40, 1e4, 1e-4, 0.01, 200, False),
    ("mtt", "tiny-imagenet", 50): (20, 2, 40, 1e4, 1e-4, 0.01, 300, False),
    ("tesla", "tiny-imagenet", 50): (20, 2, 40, 1e4, 1e-4, 0.01, 300, False),
    ("tesla", "imagenet1k-64", 1): (10, 3, 10, 5000, 1e-4, 0.01, 100, False),  # published 1e4, halved
}


@pytest.mark.parametrize(("method", "dataset", "ipc"), PUBLISHED)
def test_paper_preset_holds_the_published_values(method: str, dataset: str, ipc: int) -> None:
    config = resolve(method, dataset, ipc)
    s = config.settings
    matching = (s.steps, s.expert_epochs, s.max_start_epoch, s.lr_images, s.lr_student_lr, s.student_lr, s.batch_size)
    assert (*matching, config.data.zca) == PUBLISHED[method, dataset, ipc]
    assert (s.momentum, config.network.width, config.network.depth) == (0.5, 128, 0)
    assert s.labels == ("target" if dataset == "imagenet1k-64" else "hard")
    assert config.data.validation == 0  # the papers train on everything
    own = method == "mtt" or (dataset, ipc) in (("cifar10", 1), ("cifar100", 50), ("imagenet1k-64", 1))
    assert config.protocol == ("paper" if own else "paper, settings of MTT")
    assert config.source


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tiny-imagenet"])
def test_the_exact_gradient_takes_mtts_image_rate(dataset: str) -> None:
    for ipc in (1, 10, 50):
        mtt, exact = (dataclasses.asdict(resolve(m, dataset, ipc).settings) for m in ("mtt", "tesla-exact"))
        assert exact.items() >= mtt.items()


def test_paper_preset_holds_the_published_experts_and_evaluation() -> None:
    config = resolve("mtt", "cifar10", 10)
    assert (config.experts.count, config.experts.lr, config.experts.batch_size) == (100, 0.01, 256)
    convnet = config.evaluators["convnet"]
    assert (convnet.epochs, convnet.lr, convnet.batch_size, convnet.momentum) == (1000, 0.01, 256, 0.9)
    assert (convnet.weight_decay, convnet.width, convnet.learned_lr) == (5e-4, 128, True)
    assert config.evaluation.networks == 5
    assert config.settings.iterations == 5000


def test_published_exceptions() -> None:
    imagenet = resolve("tesla", "imagenet1k-64", 1)
    assert (imagenet.settings.iterations, imagenet.experts.count) == (1500, 50)
    assert resolve("whole", "cifar10", 1).evaluators["convnet"].epochs == 60


def test_paper_preset_follows_the_released_code_of_each_method() -> None:
    for method in ("dc", "dsa", "dm", "mtt", "tesla", "ftd", "datm", "random"):
        assert resolve(method, "cifar10", 10).evaluators["convnet"].schedule == "released"
    assert resolve("whole", "cifar10", 1).evaluators["convnet"].schedule == "halves"
    assert resolve("dc", "mnist", 1).evaluators["convnet"].augmentation == "each"
    assert resolve("dc", "mnist", 1).evaluators["convnet"].epochs == 1000
    assert resolve("dc", "svhn", 1).evaluators["convnet"].epochs == 300
    batches = {(m, i): resolve(m, "tiny-imagenet", i).settings.short_batch for m in ("mtt", "tesla") for i in (10, 50)}
    assert batches == {("mtt", 10): "last", ("mtt", 50): "first", ("tesla", 10): "last", ("tesla", 50): "first"}
    assert [resolve(m, "cifar10", 1).evaluation.networks for m in ("dc", "dsa", "dm", "ld")] == [20, 20, 5, 20]


@pytest.mark.parametrize(
    ("method", "dataset", "mean", "std"),
    [
        ("dc", "cifar100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("dsa", "cifar100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("dm", "cifar100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("mtt", "cifar100", (0.5,), (0.25,)),
        ("dm", "cifar10", (0.5,), (0.25,)),
        ("ld", "cifar10", (125.3 / 255, 123 / 255, 113.9 / 255), (63 / 255, 62.1 / 255, 66.7 / 255)),
    ],
)
def test_mean_and_std_follow_the_method_and_the_key_follows_them(
    method: str, dataset: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    data = SimpleNamespace(name=dataset, fingerprint="0", side=32, mean=(0.5,), std=(0.25,), flippable=True)
    facts = describe_data(data, resolve(method, dataset, 10).data)
    assert (facts["mean"], facts["std"]) == (mean, std)


@pytest.mark.parametrize(
    ("dataset", "given", "message"),
    [
        ("svhn", "data.statistics=dc", "data.statistics has no effect: dc has no statistics of its own for svhn"),
        ("cifar10", "data.statistics=ld", "data.statistics has no effect: data.zca whitens, and does not standardise"),
        ("cifar100", "data.statistics=dcc", "unknown data.statistics 'dcc'. Did you mean 'dc'"),
        ("cifar100", "evaluation.sets=2", "evaluation.sets has no effect: a cell is one set"),
        ("cifar100", "convnet.schedule=half", "unknown schedule 'half'. Did you mean 'halves'"),
        ("cifar100", "convnet.augmentation=eech", "unknown augmentation 'eech'. Did you mean 'each'"),
        ("cifar100", "short_batch=frist", "unknown place of the shorter batch 'frist'. Did you mean 'first'"),
        ("cifar100", "convnet.recipe=authors", "mtt names no recipe of its own: its authors follow the common one"),
    ],
)
def test_what_follows_released_code_is_checked(dataset: str, given: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve("mtt", dataset, 10, overrides=[parse_set(given)])


def test_a_recipe_that_cannot_be_followed_is_refused_before_anything_runs() -> None:
    asked = [parse_set("convnet.recipe=authors")]
    with pytest.raises(UsageError, match="the recipe rded cannot be followed: its loss is the KL divergence"):
        resolve("rded", "digits", 1, overrides=asked)
    assert resolve("ld", "digits", 1, overrides=asked).evaluators["convnet"].recipe == "authors"


def test_sets_are_cells_of_as_many_seeds_and_fewer_are_told() -> None:
    sets = [parse_set("evaluation.sets=3")]
    found = resolve_all(["dm"], ["cifar10"], [10], [0, 7], overrides=sets)
    assert [c.seed for c in found] == [0, 1, 2, 7, 8, 9]
    assert {c.protocol for c in found} == {"paper, 1 of 5 sets"}
    assert [c.changed for c in found] == [()] * 6
    assert with_sets("paper, 1 of 5 sets, changed: steps", 4) == "paper, 4 of 5 sets, changed: steps"
    assert with_sets("paper, 1 of 5 sets", 5) == "paper"
    assert with_sets("quick", 3) == "quick"
    assert resolve("dm", "digits", 10).protocol == "defaults"
    with pytest.raises(UsageError, match=r"evaluation\.sets must be at least 1"):
        resolve_all(["dm"], ["cifar10"], [10], [0], overrides=[parse_set("evaluation.sets=0")])


# ----------------------------------------------------------------------------------- several methods share one --set


def shared(methods: Sequence[str], *assignments: str) -> dict[str, CellConfig]:
    configs = resolve_all(methods, ["digits"], [1], [0], preset="smoke", overrides=given(*assignments))
    return {config.method: config for config in configs}


def test_each_method_takes_what_has_an_effect_on_it() -> None:
    configs = shared(
        ["tesla", "tesla-exact", "random"], "steps=5", "network.width=8", "weights=host", "evaluation.networks=2"
    )
    assert configs["tesla"].changed == ("evaluation.networks", "network.width", "steps")
    assert configs["tesla-exact"].changed == ("evaluation.networks", "network.width", "steps", "weights")
    assert configs["random"].changed == ("evaluation.networks",)


def test_what_no_method_takes_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"unknown setting 'stpes'\. Did you mean 'steps'"):
        shared(["tesla", "mtt"], "stpes=5")
    with pytest.raises(UsageError, match="has no effect"):
        shared(["tesla", "mtt"], "last_epoch=3")
    with pytest.raises(UsageError, match="has no effect"):
        shared(["random", "whole"], "network.width=3")


@pytest.mark.parametrize(
    "assignments",
    [
        ["labels=last", "last_epoch=3"],
        ["last_epoch=3", "labels=last"],
        ["student_lr=0.2", "min_student_lr=0.1"],
        ["min_student_lr=0.1", "student_lr=0.2"],
    ],
)
def test_sharing_does_not_depend_on_the_order(assignments: list[str]) -> None:
    for config in shared(["tesla", "mtt"], *assignments).values():
        assert len(config.changed) == 2


@pytest.mark.parametrize("methods", [["tesla", "random"], ["random", "tesla"], ["tesla", "tesla-exact", "random"]])
def test_a_wrong_value_is_named_whatever_the_order_of_methods(methods: list[str]) -> None:
    with pytest.raises(UsageError, match="steps takes a value of type int"):
        shared(methods, "steps=many")
    with pytest.raises(UsageError, match="steps must be at least 1"):
        shared(methods, "steps=0")


# ------------------------------------------------------------------------------------------------------ TOML files


def test_config_file_is_split_into_options_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('method = "tesla"\nipc = [1, 10]\n[settings]\nsteps = 7\n[data]\nzca = true\n')
    options, overrides = read_config_file(file)
    assert options == {"method": "tesla", "ipc": [1, 10]}
    assert overrides == [Override("settings", "steps", 7), Override("data", "zca", True)]


def test_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the configuration .*none.toml: No such file"):
        read_config_file(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot read the configuration"):
        read_config_file(tmp_path)
    for content in (b"method = ", b"\xff\xfe", b"[settings]\nsteps = 1\nsteps = 2\n"):
        (tmp_path / "a.toml").write_bytes(content)
        with pytest.raises(UsageError, match="is not valid TOML"):
            read_config_file(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("methods = 'tesla'", "Did you mean 'method'"),
        ("method = 3", "method"),
        ("method = 'tesla'\nipc = 'ten'", "ipc"),
        ("method = 'tesla'\nipc = 1.5", "ipc"),
        ("method = 'tesla'\nipc = true", "ipc"),
        ("method = 'tesla'\nipc = []", "ipc"),
        ("method = 'tesla'\nseed = 'a'", "seed"),
        ("method = 'tesla'\npreset = 3", "preset"),
        ("method = 'tesla'\ndataset = 3", "dataset|data set"),
        ("method = 'tesla'\npreset = 'smoke'\n[settings]\nstpes = 5", "Did you mean 'steps'"),
        ("method = 'tesla'\npreset = 'smoke'\n[settings]\nsteps = 'many'", "steps takes a value of type int"),
        ("method = 'tesla'\npreset = 'smoke'\n[netwrok]\nwidth = 5", "Did you mean 'network.width'"),
    ],
)
def test_wrong_config_file_is_a_usage_error(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(content + "\n")
    result = CliRunner().invoke(main, ["run", "--dry-run", "--config", str(file)])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert any(word in result.stderr for word in words.split("|")), result.stderr


# ----------------------------------------------------------------------------------------------------------- keys


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def key(
    digits: Dataset,
    *assignments: str,
    method: str = "tesla-exact",
    ipc: int = 1,
    seed: int = 0,
    threads: int = 1,
    out: str = "/nowhere",
    **labels: Any,
) -> str:
    config = dataclasses.replace(smoke(method, *assignments, ipc=ipc, seed=seed), **labels)
    return Cell(config, digits, Workspace(Path(out)), Execution("cpu", threads), quiet=True).key


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 2},
        {"out": "/elsewhere"},
        {"protocol": "paper"},
        {"preset": "quick"},
        {"source": "another"},
        {"command": "another"},
        {"changed": ("steps",)},
    ],
)
def test_key_does_not_depend_on_labels_and_places(digits: Dataset, changes: dict[str, Any]) -> None:
    assert key(digits, **changes) == key(digits)


def test_key_does_not_depend_on_the_device(digits: Dataset) -> None:
    config, workspace = smoke("tesla"), Workspace(Path("/nowhere"))
    keys = {Cell(config, digits, workspace, Execution(d, 1)).key for d in ("cpu", "cpu:0", "cuda", "cuda:1")}
    assert len(keys) == 1


@pytest.mark.parametrize("place", ["device", "host", "restep"])
def test_key_does_not_depend_on_where_weights_are_kept(digits: Dataset, place: str) -> None:
    assert key(digits, f"weights={place}") == key(digits)


@pytest.mark.parametrize("assignment", ["convnet.epochs=7", "evaluation.networks=1", "convnet.width=4"])
def test_evaluation_changes_only_the_evaluations_key(digits: Dataset, assignment: str) -> None:
    assert key(digits, assignment) == key(digits)
    plain, changed = (
        Cell(smoke("tesla", *a), digits, Workspace(Path("/nowhere")), Execution("cpu", 1)).identity
        for a in ([], [assignment])
    )
    assert plain.evaluation_key("convnet") != changed.evaluation_key("convnet")


@pytest.mark.parametrize("method", ["tesla", "random"])
def test_key_does_not_depend_on_the_preset_the_values_came_from(method: str, tmp_path: Path) -> None:
    config = smoke(method)
    values = {f"{s}.{k}": v for s in ("data", "network", "experts") for k, v in vars(getattr(config, s)).items()}
    # without effect: cannot be given
    idle = {"convnet.lr" if method == "tesla" else "convnet.learned_lr", "convnet.most_steps"}
    for name in ("experts.gsam_alpha", "data.whitening", "data.statistics"):  # gsam_rho is 0; zca is false; no CIFAR
        values.pop(name)
    convnet = {f"convnet.{k}": v for k, v in vars(config.evaluators["convnet"]).items()}
    values |= {k: v for k, v in convnet.items() if k not in idle}
    values |= {"evaluation.networks": config.evaluation.networks}
    if method == "random":
        values = {k: v for k, v in values.items() if not k.startswith(("network.", "experts."))}
    values |= {k: v for k, v in vars(config.settings).items() if k not in config.settings.inert()}
    session = Session(tmp_path, device="cpu")
    keys = {
        session.cell(resolve(method, "digits", 1, preset=preset, overrides=overrides_from(values))).key
        for preset in ("smoke", "quick", "paper")
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    "assignment",
    [
        "steps=5",
        "iterations=5",
        "lr_images=5",
        "labels=target",
        "data.train_images=200",
        "data.validation=0.2",
        "data.augmentation=none",
        "network.width=8",
        "network.depth=2",
        "experts.count=5",
        "experts.lr=0.02",
        "experts.batch_size=64",
    ],
)
def test_key_depends_on_settings(digits: Dataset, assignment: str) -> None:
    assert key(digits, assignment) != key(digits)


def test_key_depends_on_method_ipc_and_seed(digits: Dataset) -> None:
    keys = {key(digits), key(digits, method="mtt"), key(digits, ipc=2), key(digits, seed=1)}
    assert len(keys) == 4


def test_key_depends_on_the_images(digits: Dataset) -> None:
    x_test = digits.x_test.copy()
    x_test[0, 0, 0, 0] += 1
    assert key(dataclasses.replace(digits, x_test=x_test)) != key(digits)
    assert key(dataclasses.replace(digits, name="renamed")) == key(digits)


def test_key_depends_on_the_methods_version(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(digits)
    method = registry.load_method("tesla-exact")
    monkeypatch.setattr(method, "version", method.version + 1)
    assert key(digits) != before


def test_key_of_a_selection_knows_neither_experts_nor_network(digits: Dataset) -> None:
    config = smoke("random")
    other = dataclasses.replace(config, network=dataclasses.replace(config.network, width=99))
    other = dataclasses.replace(other, experts=dataclasses.replace(config.experts, count=99))
    cells = [Cell(c, digits, Workspace(Path("/nowhere")), Execution("cpu", 1)) for c in (config, other)]
    assert cells[0].key == cells[1].key
    assert key(digits, method="whole", ipc=1) == key(digits, method="whole", ipc=5)


def test_the_stored_command_is_what_a_shell_takes() -> None:
    overrides = [parse_set("experts.imported=my own"), parse_set("steps=20")]
    command = resolve("tesla", "npz:/a/my images.npz", 1, preset="quick", overrides=overrides).command
    assert command == (
        "dcbench run --method tesla --dataset 'npz:my images.npz' --ipc 1 --preset quick "
        "--set 'experts.imported=my own' --set steps=20"
    )
    assert settings_given(command) == {"experts.imported": "my own", "steps": "20"}
    assert settings_given("dcbench run --set steps=20 --set name=it's") == {"steps": "20", "name": "it's"}
