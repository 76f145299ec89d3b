"""Every registered method and evaluator keeps its contract, and the checks catch those that do not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from dcbench_tesla import registry
from dcbench_tesla.cli import main
from dcbench_tesla.conformance import check_evaluator, check_method
from dcbench_tesla.errors import DcbenchError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", registry.names("methods"))
def test_registered_method_keeps_the_contract(name: str) -> None:
    outcomes = list(check_method(name))
    assert len(outcomes) >= 8
    assert {outcome.name: outcome.problem for outcome in outcomes if outcome.problem} == {}


def test_points_have_names_of_their_own() -> None:
    names = [outcome.name for outcome in check_method("random")]
    assert len(set(names)) == len(names)


# A sound method in few lines; a broken one overrides a part of it.
SOUND = '''
from dataclasses import dataclass, replace
from typing import Any
import torch
from dcbench_tesla.interface import Condenser, IterationRecord, Settings


@dataclass(frozen=True, kw_only=True)
class NudgeSettings(Settings):
    """Settings of Sound."""

    iterations: int = 5
    rate: float = 0.1


class Sound(Condenser):
    """Moves real images a little, at random."""

    Settings = NudgeSettings

    def setup(self, problem):
        self.problem = problem
        self.images = problem.train.inputs(problem.draw_real("start")).clone()
        self.velocity = torch.zeros_like(self.images)

    def noise(self, iteration):
        return torch.randn(self.images.shape, generator=self.problem.generator("noise", iteration))

    def iterate(self, iteration):
        self.velocity.mul_(0.5).add_(self.noise(iteration))
        self.images.add_(self.settings.rate * self.velocity)
        return IterationRecord(loss=float(self.images.square().mean()))

    def state_dict(self):
        return {"images": self.images, "velocity": self.velocity}

    def load_state_dict(self, state):
        self.images.copy_(state["images"])
        self.velocity.copy_(state["velocity"])

    def distilled(self):
        return self.problem.distilled(self.images, self.problem.hard_labels())
'''

REPEATABLE = "the same seed gives the same bytes, whatever the global generator's state"
RESUMABLE = "going on from its state gives the bytes of an uninterrupted run"
SNAPSHOT = "a distilled set it handed over does not change when it goes on"
COMPLETE = "its distilled set is complete and of the right size, before the first iteration and later"
RECORDS = "every iteration reports a finite loss and plain numbers"
SETTINGS = "its settings are a frozen, keyword-only dataclass of plain values"
CLASS = "it is a documented Condenser with a version"
PROBE = "its probe for estimates gives settings of its own kind that run"
MEMORY_PROBE = "its probe for predicting memory gives settings of its own kind, with the same peak"

# what is overridden, and the points that catch it
BROKEN: dict[str, tuple[str, set[str]]] = {
    "global-noise": (
        """
    def noise(self, iteration):
        return torch.randn(self.images.shape)
""",
        {REPEATABLE, RESUMABLE},
    ),
    "forgets-momentum": (
        """
    def state_dict(self):
        return {"images": self.images}

    def load_state_dict(self, state):
        self.images.copy_(state["images"])
""",
        {RESUMABLE},
    ),
    "counts-by-itself": (
        """
    count = 0

    def iterate(self, iteration):
        self.count += 1
        return super().iterate(self.count)
""",
        {RESUMABLE},
    ),
    "does-not-load": (
        """
    def load_state_dict(self, state):
        pass
""",
        {RESUMABLE},
    ),
    "hands-over-its-own-images": (
        """
    def distilled(self):
        return replace(super().distilled(), images=self.images)
""",
        {SNAPSHOT},
    ),
    "hands-over-its-own-labels": (
        """
    def setup(self, problem):
        super().setup(problem)
        self.soft = torch.nn.functional.one_hot(problem.hard_labels(), 3).float()

    def iterate(self, iteration):
        self.soft.mul_(0.9).add_(0.1 / 3)
        return super().iterate(iteration)

    def state_dict(self):
        return {**super().state_dict(), "soft": self.soft}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.soft.copy_(state["soft"])

    def distilled(self):
        return replace(super().distilled(), labels=self.soft)
""",
        {SNAPSHOT},
    ),
    "one-image-too-few": (
        """
    def distilled(self):
        made = super().distilled()
        return made.choose(torch.arange(1, len(made)))
""",
        {COMPLETE},
    ),
    "negative-rate": (
        """
    def distilled(self):
        return replace(super().distilled(), lr=-0.1)
""",
        {COMPLETE},
    ),
    "loss-is-nan": (
        """
    def iterate(self, iteration):
        return replace(super().iterate(iteration), loss=float("nan"))
""",
        {RECORDS},
    ),
    "tensor-as-metric": (
        """
    def iterate(self, iteration):
        return replace(super().iterate(iteration), metrics={"norm": self.images.norm()})
""",
        {RECORDS},
    ),
    "raises": (
        """
    def iterate(self, iteration):
        raise ZeroDivisionError("by zero")
""",
        {RECORDS, REPEATABLE, RESUMABLE},
    ),
    "odd-probe": (
        """
    @classmethod
    def probe(cls, settings):
        return {"rate": 0.1}, 1.0
""",
        {PROBE},
    ),
    "odd-memory-probe": (
        """
    @classmethod
    def memory_probe(cls, settings, ipc):
        return {"rate": 0.1}
""",
        {MEMORY_PROBE},
    ),
    "smaller-memory-probe": (
        """
    @classmethod
    def memory_probe(cls, settings, ipc):
        return replace(settings, iterations=1)

    def iterate(self, iteration):
        copies = [self.images.clone() for _ in range(self.settings.iterations)]
        return super().iterate(iteration)
""",
        {MEMORY_PROBE},
    ),
    "no-version": (
        """
    version = "one"
""",
        {CLASS},
    ),
}

EVERYWHERE = {"negative-rate", "raises"}  # caught by these points, and by every other that runs the method

WHOLE: dict[str, tuple[str, set[str]]] = {
    "no-docstring": ("class Broken(Sound):\n    pass\n", {CLASS}),
    "mutable-settings": (
        '''
class Loose:
    """No dataclass at all."""


class Broken(Sound):
    """Its settings are no settings."""

    Settings = Loose
''',
        {SETTINGS},
    ),
    "setting-without-default": (
        '''
@dataclass(frozen=True, kw_only=True)
class Demanding(Settings):
    """Nobody can resolve it."""

    rate: float


class Broken(Sound):
    """Its settings have no defaults."""

    Settings = Demanding
''',
        {SETTINGS},
    ),
    "no-condenser": (
        '''
class Broken:
    """Something else altogether."""
''',
        {CLASS},
    ),
}


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Register a plugin as an installed package of its own would."""

    def write(name: str, code: str, kind: str = "methods", sound: str = SOUND) -> None:
        module = f"{name.replace('-', '_').replace(':', '')}_{kind}_for_dcbench_tests"
        (tmp_path / f"{module}.py").write_text(sound + code)
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[dcbench.{kind}]\n{name} = {module}:Broken\n")
        monkeypatch.syspath_prepend(tmp_path)
        registry._points.cache_clear()

    yield write
    registry._points.cache_clear()


def problems(name: str) -> dict[str, str]:
    return {outcome.name: outcome.problem for outcome in check_method(name) if outcome.problem}


def test_sound_method_passes(install: Install) -> None:
    install("sound", '\n\nclass Broken(Sound):\n    """Not broken at all."""\n')
    assert problems("sound") == {}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_method_is_caught_on_the_right_point(name: str, install: Install) -> None:
    code, points = BROKEN[name]
    install(name, f'\n\nclass Broken(Sound):\n    """Broken on purpose."""\n{code}')
    found = problems(name)
    assert found.keys() >= points if name in EVERYWHERE else found.keys() == points


@pytest.mark.parametrize("name", WHOLE)
def test_broken_class_is_caught_and_not_fatal(name: str, install: Install) -> None:
    code, points = WHOLE[name]
    install(name, f"\n\n{code}")
    assert points <= problems(name).keys()


def test_error_of_a_method_is_its_problem(install: Install) -> None:
    install("raises", f'\n\nclass Broken(Sound):\n    """Broken on purpose."""\n{BROKEN["raises"][0]}')
    assert problems("raises")[RECORDS] == "ZeroDivisionError: by zero"


def test_method_that_is_not_there_or_cannot_be_imported(install: Install) -> None:
    with pytest.raises(UsageError, match="unknown method 'nothing'"):
        list(check_method("nothing"))
    install("unimportable", "\nimport no_such_module_anywhere\n")
    with pytest.raises(DcbenchError, match=r"'unimportable' is registered .* cannot be imported: ModuleNotFoundError"):
        list(check_method("unimportable"))


# ---------------------------------------------------------------------------------------------------------- evaluators

EVALUATORS = [name for name in registry.names("evaluators") if ":" not in name] + ["timm:mobilenetv3_small_050"]


@pytest.mark.parametrize("name", EVALUATORS)
def test_registered_evaluator_keeps_the_contract(name: str) -> None:
    outcomes = list(check_evaluator(name))
    assert len({outcome.name for outcome in outcomes}) == 12
    assert {outcome.name: outcome.problem for outcome in outcomes if outcome.problem} == {}


# A sound evaluator in few lines: a linear classifier, its seed driving its initialisation.
SOUND_EVALUATOR = '''
from dataclasses import dataclass, field, replace
import random
import numpy
import torch
from torch import nn
from dcbench_tesla.interface import Evaluator, Settings
from dcbench_tesla.compute.networks import cross_entropy, seeded


@dataclass(frozen=True, kw_only=True)
class LinearSettings(Settings):
    """Settings of Sound."""

    epochs: int = 4
    lr: float = 0.01


class Sound(Evaluator):
    """A linear classifier."""

    Settings = LinearSettings

    @property
    def recipe(self):
        return f"{self.settings.epochs} steps"

    def cost(self, distilled):
        return self.settings.epochs

    @classmethod
    def probe(cls, settings):
        return replace(settings, epochs=min(2, settings.epochs))

    def head(self):
        return ()

    def train(self, distilled, seeds, device):
        networks = []
        for seed in seeds:
            with seeded(seed):
                features = distilled.images[0].numel()
                network = nn.Sequential(nn.Flatten(), nn.Linear(features, len(distilled.class_names)), *self.head())
            network.to(device)
            optimiser = torch.optim.SGD(network.parameters(), lr=self.settings.lr)
            for _ in range(self.settings.epochs):
                optimiser.zero_grad()
                cross_entropy(network(distilled.inputs(device)), distilled.labels.to(device)).backward()
                optimiser.step()
            networks.append(network.eval())
        return networks
'''

BATCHES = "an image's logits do not depend on the other images of its batch"
DOCUMENTED = "it is a documented Evaluator with a version"
COST = "its cost is a positive number of steps"
INNOCENT = "it leaves the global random numbers and the distilled set as they were"
LOGITS = "its logits are (N, K), finite and different between images, whatever the set"
NETWORKS = "it returns a network a seed, in evaluation mode, on the device"
SHORT = "its probe for estimates gives settings of its own kind that take no more steps"
RECIPE = "its recipe has a name"
SAME = "the same seed gives the same network, whatever was drawn or trained before; another seed another, if used"
WITHOUT_EFFECT = "its settings without effect are settings"

HEADS = """

class Layer(nn.Module):
    def forward(self, x):
        return self.change(x)


class Constant(Layer):
    def change(self, x):
        return x * 0 + 1


class Centred(Layer):
    def change(self, x):
        return x - x.mean(0) / 2


class Undefined(Layer):
    def change(self, x):
        return x / 0


class Narrow(Layer):
    def change(self, x):
        return x if self.training else x[:, :2]
"""

# what is overridden, and the points that catch it
BROKEN_EVALUATORS: dict[str, tuple[str, set[str]]] = {
    "no-version": ("    version = 0", {DOCUMENTED}),
    "empty-recipe": ("    recipe = ' '", {RECIPE}),
    "recipe-method": ("    def recipe(self):\n        return 'a method'", {RECIPE}),
    "cost-nothing": ("    def cost(self, distilled):\n        return 0", {COST}),
    "cost-fraction": ("    def cost(self, distilled):\n        return 2.5", {COST}),
    "odd-probe": (
        "    @classmethod\n    def probe(cls, settings):\n"
        "        return type('Other', (), {'epochs': 2, 'lr': 0.01})()",
        {SHORT},
    ),
    "long-probe": (
        "    @classmethod\n    def probe(cls, settings):\n        return replace(settings, epochs=9)",
        {SHORT},
    ),
    "strangers": (
        "    @classmethod\n    def without_effect(cls, settings, *, learned_lr):\n"
        "        return {'momentum': 'none'} if learned_lr else {}",
        {WITHOUT_EFFECT},
    ),
    "one-network": (
        "    def train(self, distilled, seeds, device):\n        return super().train(distilled, seeds, device)[-1:]",
        {NETWORKS, SAME},
    ),
    "training-mode": (
        "    def train(self, *given):\n        return [network.train() for network in super().train(*given)]",
        {NETWORKS},
    ),
    "half-in-training-mode": (
        "    def train(self, *given):\n        networks = super().train(*given)\n"
        "        networks[0][1].train()\n        return networks",
        {NETWORKS},
    ),
    "elsewhere": (
        "    def train(self, *given):\n        return [network.to('meta') for network in super().train(*given)]",
        {NETWORKS, LOGITS, BATCHES, SAME},
    ),
    "no-modules": (
        "    def train(self, *given):\n        return [network.forward for network in super().train(*given)]",
        {NETWORKS},
    ),
    "constant": ("    def head(self):\n        return (Constant(),)", {LOGITS, SAME}),
    "narrow": ("    def head(self):\n        return (Narrow(),)", {LOGITS}),
    "undefined": ("    def head(self):\n        return (Undefined(),)", {LOGITS, SAME, BATCHES}),
    "batch-statistics": ("    def head(self):\n        return (Centred(),)", {BATCHES}),
    "hard-labels-only": (
        "    def train(self, distilled, seeds, device):\n"
        "        return super().train(replace(distilled, labels=distilled.labels.reshape(6)), seeds, device)",
        {LOGITS, BATCHES, SAME, INNOCENT},
    ),
    "grey-only": (
        "    def train(self, distilled, seeds, device):\n        assert distilled.images.shape[1] == 1, 'grey only'\n"
        "        return super().train(distilled, seeds, device)",
        {LOGITS, BATCHES, SAME, INNOCENT},
    ),
    "real-images-as-they-are": (
        "    def train(self, distilled, seeds, device):\n"
        "        assert distilled.images.dtype == torch.float32, 'network space only'\n"
        "        return super().train(distilled, seeds, device)",
        {LOGITS, BATCHES, SAME, INNOCENT},
    ),
    "one-seed-for-all": (
        "    def train(self, distilled, seeds, device):\n"
        "        return super().train(distilled, [0] * len(seeds), device)",
        {SAME},
    ),
    "seed-of-the-first": (
        "    def train(self, distilled, seeds, device):\n"
        "        return super().train(distilled, [seeds[0] + i for i in range(len(seeds))][::-1], device)",
        {SAME},
    ),
    "global-torch": (
        "    def train(self, distilled, seeds, device):\n"
        "        return super().train(distilled, [int(torch.randint(99, ())) for _ in seeds], device)",
        {SAME, INNOCENT},
    ),
    "global-seed": (
        "    def train(self, *given):\n        torch.manual_seed(given[1][0])\n        return super().train(*given)",
        {INNOCENT},
    ),
    "global-numpy": ("    def head(self):\n        numpy.random.rand()\n        return ()", {INNOCENT}),
    "global-random": ("    def head(self):\n        random.random()\n        return ()", {INNOCENT}),
    "writes-images": (
        "    def train(self, distilled, seeds, device):\n        distilled.images.neg_()\n"
        "        return super().train(distilled, seeds, device)",
        {INNOCENT},
    ),
    "writes-labels": (
        "    def train(self, distilled, seeds, device):\n        distilled.labels.copy_(distilled.labels.flip(0))\n"
        "        return super().train(distilled, seeds, device)",
        {INNOCENT},
    ),
}
SIDE_EFFECTS = {"writes-images", "writes-labels"}  # they spoil the sets for other points too

BROKEN_SETTINGS: dict[str, str] = {
    "thawed": "@dataclass(kw_only=True)\nclass Bad:\n    epochs: int = 4\n    lr: float = 0.1\n",
    "positional": "@dataclass(frozen=True)\nclass Bad(Settings):\n    epochs: int = 4\n    lr: float = 0.1\n",
    "demanding": "@dataclass(frozen=True, kw_only=True)\nclass Bad(LinearSettings):\n    width: int\n",
    "unreachable": ("@dataclass(frozen=True, kw_only=True)\nclass Bad(LinearSettings):\n    epochs: int | None = 4\n"),
    "no-dataclass": "class Bad(LinearSettings):\n    pass\n",
}


def evaluator_problems(name: str) -> dict[str, str]:
    return {outcome.name: outcome.problem for outcome in check_evaluator(name) if outcome.problem}


def test_sound_evaluator_passes(install: Install) -> None:
    code = '\n\nclass Broken(Sound):\n    """Not broken at all."""\n'
    install("sound-one", code, "evaluators", SOUND_EVALUATOR)
    assert evaluator_problems("sound-one") == {}


@pytest.mark.parametrize("name", BROKEN_EVALUATORS)
def test_broken_evaluator_is_caught_on_the_right_point(name: str, install: Install) -> None:
    code, points = BROKEN_EVALUATORS[name]
    broken = f'{HEADS}\n\nclass Broken(Sound):\n    """Broken on purpose."""\n\n{code}\n'
    install(name, broken, "evaluators", SOUND_EVALUATOR)
    found = evaluator_problems(name)
    assert found.keys() >= points if name in SIDE_EFFECTS else found.keys() == points, found


@pytest.mark.parametrize("name", BROKEN_SETTINGS)
def test_settings_of_a_broken_evaluator_are_caught(name: str, install: Install) -> None:
    broken = f'\n\n{BROKEN_SETTINGS[name]}\n\nclass Broken(Sound):\n    """Broken."""\n\n    Settings = Bad\n'
    install(name, broken, "evaluators", SOUND_EVALUATOR)
    assert SETTINGS in evaluator_problems(name)


@pytest.mark.parametrize("code", ["class Broken(Sound):\n    pass\n", 'class Broken:\n    """No evaluator."""\n'])
def test_broken_class_of_an_evaluator_is_caught(code: str, install: Install) -> None:
    install("no-class", f"\n\n{code}", "evaluators", SOUND_EVALUATOR)
    assert DOCUMENTED in evaluator_problems("no-class")


def test_the_command_tells_what_is_broken_and_fails(install: Install) -> None:
    code = '\n\nclass Broken(Sound):\n    """Broken on purpose."""\n\n    recipe = ""\n'
    install("nameless", code, "evaluators", SOUND_EVALUATOR)
    result = CliRunner().invoke(main, ["check-evaluator", "nameless"])
    assert result.exit_code == 1
    assert f"FAIL  {RECIPE}: the recipe is ''" in result.stdout.splitlines()
    assert f"ok    {LOGITS}" in result.stdout.splitlines()
    assert "evaluator nameless breaks the contract in 1 points." in result.stderr
    unknown = CliRunner().invoke(main, ["check-evaluator", "convent"])
    assert unknown.exit_code == 2
    assert "unknown evaluator 'convent'. Did you mean 'convnet'?" in unknown.stderr


# ------------------------------------------------------------------------------------------------------------ families

FAMILY = '''

class Broken:
    """Linear classifiers by their number of steps."""

    version = 1
    Settings = LinearSettings
    made = {}

    @classmethod
    def member(cls, name):
        if name == "none":
            return 1 / 0
        doc = f"A linear classifier of {name}."
        return cls.made.setdefault(name, type("Member", (Sound,), {"version": 2, "__doc__": doc}))
'''


def test_a_family_makes_plugins_by_name(install: Install) -> None:
    install("linear:", FAMILY, "evaluators", SOUND_EVALUATOR)
    assert "linear:<name>" in registry.names("evaluators")
    (listed,) = (p for p in registry.describe("evaluators") if p.name == "linear:<name>")
    assert listed.summary == "Linear classifiers by their number of steps."
    assert registry.has("evaluators", "linear:four")
    assert not any(registry.has("evaluators", name) for name in ("linear", "linear:", "linear:<name>", "lin:four"))
    assert registry.load_evaluator("linear:four") is registry.load_evaluator("linear:four")
    registry.check_names("evaluators", ["linear:four", "convnet"])
    assert evaluator_problems("linear:four") == {}
    for name in ("linear", "linear:", "linear:<name>"):
        assert registry.family("evaluators", name) is not None
        with pytest.raises(UsageError, match="unknown evaluator"):
            registry.check_names("evaluators", [name])
    for name in ("convnet", "lin", "linear:four"):
        assert registry.family("evaluators", name) is None
    with pytest.raises(DcbenchError, match=r"evaluator 'linear:none' cannot be made: ZeroDivisionError"):
        registry.load_evaluator("linear:none")
    shown = CliRunner().invoke(main, ["info", "linear:four"]).stdout
    assert "evaluator, version 2: A linear classifier of four." in shown
    assert "linear:four.epochs" in shown
