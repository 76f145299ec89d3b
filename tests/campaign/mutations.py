"""Mutations: one file damaged, one command that reads it, judged."""

import itertools
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from tests.campaign.findings import Finding, Tally
from tests.campaign.judge import Results, Trial, results, symptoms
from tests.campaign.kinds import Kind
from tests.campaign.processes import LIMIT_S, run
from tests.campaign.scenes import Scenes


class Mutations:
    """Trials of mutations.

    Args:
        seed: all of a trial follows from it and the trial's name.
        scenes: the folders to begin with.
        work: a folder for the running trial.
        tally: where findings go.
    """

    def __init__(self, seed: int, scenes: Scenes, work: Path, tally: Tally) -> None:
        self._seed, self._scenes, self._work, self._tally = seed, scenes, work, tally
        self._expected: dict[tuple[str, ...], Results] = {}

    def run(self, kinds: Sequence[Kind], deadline: float) -> None:
        """Go round all kinds and operators until ``deadline``; one round is always finished."""
        for number in itertools.count():
            if number:
                click.echo(f"round {number}: {self._tally}", err=True)
            for kind, operator in _pairs(kinds):
                if number and time.monotonic() > deadline:
                    return
                self.trial(kind, operator, number)

    def trial(self, kind: Kind, operator: str, number: int) -> list[str]:
        """Damage one file and run one command; return what went wrong."""
        name = f"{kind.name}/{operator}/{number}"
        generator = random.Random(f"{self._seed}/{name}")
        scene = self._scenes.copy(kind.scene, self._work / "trial")
        path = generator.choice(kind.choose(scene))
        which = generator.randrange(len(kind.commands))
        expected = self._undamaged(kind, which, path.relative_to(scene))
        before, old = path.read_bytes(), results(scene)
        done = kind.operators[operator](path, generator, kind.others(scene, path))
        trial = Trial(
            folder=scene,
            damaged=str(path.relative_to(scene)),
            before=old,
            expected=expected,
            free=kind.is_free(operator, before, path),
            named=operator not in kind.unnamed and not kind.is_free(operator, before, path),
            fewer=operator == "dangling link",
        )
        ran = run(kind.to_do(which, path), scene, limit_s=LIMIT_S + 4 * expected.seconds)
        self._tally.passed(kind.name, operator)
        found = symptoms(trial, ran)
        if found:
            command = " ".join(kind.command(which, path))
            end = ran.text[-1500:]
            finding = Finding(name, self._seed, trial.damaged, done, command, found, ran.code, end)
            self._tally.add(kind.name, operator, finding, scene)
        return found

    def _undamaged(self, kind: Kind, which: int, path: Path) -> Results:
        """Return what a command leaves and shows where nothing is damaged; ``path`` is relative to the scene."""
        command = kind.command(which, path)
        key = (kind.scene, *command, path.name if kind.work else "")
        if key not in self._expected:
            folder = self._scenes.copy(kind.scene, self._work / "undamaged")
            ran = run(kind.to_do(which, folder / path), folder, limit_s=120)
            if ran.code:
                raise RuntimeError(f"{kind.name}: {' '.join(command)} fails undamaged:\n{ran.text}")
            self._expected[key] = results(folder, ran)
            shutil.rmtree(folder)
        return self._expected[key]


def _pairs(kinds: Sequence[Kind]) -> Iterator[tuple[Kind, str]]:
    return ((kind, operator) for kind in kinds for operator in kind.operators)
