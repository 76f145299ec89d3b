"""Every registered method keeps the contract, and the checks catch methods that do not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dcbench_tesla import registry
from dcbench_tesla.conformance import check_method
from dcbench_tesla.errors import DcbenchError, UsageError


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Register a method as an installed package of its own would."""

    def write(name: str, code: str) -> None:
        module = f"{name.replace('-', '_')}_for_dcbench_tests"
        (tmp_path / f"{module}.py").write_text(SOUND + code)
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[dcbench.methods]\n{name} = {module}:Broken\n")
        monkeypatch.syspath_prepend(tmp_path)
        registry._points.cache_clear()

    yield write
    registry._points.cache_clear()


def problems(name: str) -> dict[str, str]:
    return {outcome.name: outcome.problem for outcome in check_method(name) if outcome.problem}


def test_sound_method_passes(install: Callable[[str, str], None]) -> None:
    install("sound", '\n\nclass Broken(Sound):\n    """Not broken at all."""\n')
    assert problems("sound") == {}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_method_is_caught_on_the_right_point(name: str, install: Callable[[str, str], None]) -> None:
    code, points = BROKEN[name]
    install(name, f'\n\nclass Broken(Sound):\n    """Broken on purpose."""\n{code}')
    found = problems(name)
    assert found.keys() >= points if name in EVERYWHERE else found.keys() == points


@pytest.mark.parametrize("name", WHOLE)
def test_broken_class_is_caught_and_not_fatal(name: str, install: Callable[[str, str], None]) -> None:
    code, points = WHOLE[name]
    install(name, f"\n\n{code}")
    assert points <= problems(name).keys()


def test_error_of_a_method_is_its_problem(install: Callable[[str, str], None]) -> None:
    install("raises", f'\n\nclass Broken(Sound):\n    """Broken on purpose."""\n{BROKEN["raises"][0]}')
    assert problems("raises")[RECORDS] == "ZeroDivisionError: by zero"


def test_method_that_is_not_there_or_cannot_be_imported(install: Callable[[str, str], None]) -> None:
    with pytest.raises(UsageError, match="unknown method 'nothing'"):
        list(check_method("nothing"))
    install("unimportable", "\nimport no_such_module_anywhere\n")
    with pytest.raises(DcbenchError, match=r"'unimportable' is registered .* cannot be imported: ModuleNotFoundError"):
        list(check_method("unimportable"))
