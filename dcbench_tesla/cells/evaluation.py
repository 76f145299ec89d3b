"""The accuracy of networks trained on a distilled set, and the three names a cell's accuracy has.

``last``: after the last epoch, on the last distilled set. ``best_on_validation``: the set that the validation images
choose among all evaluated ones. ``best_on_test``: the set that the test images themselves choose; it is what the
papers of MTT and TESLA print, and no honest estimate. All three are test accuracies, as fractions.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcbench_tesla import registry
from dcbench_tesla.compute.seeds import seed_for
from dcbench_tesla.config import EvaluationSettings
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.errors import DivergedError
from dcbench_tesla.interface import DistilledSet, Evaluator, Settings
from dcbench_tesla.records.progress import Bar
from dcbench_tesla.records.store import read_json, write_json

STATISTICS = ("last", "best_on_validation", "best_on_test")
_BATCH = 512


@torch.no_grad()
def accuracy(network: nn.Module, images: LabelledImages) -> float:
    """Return the share of ``images`` whose most likely class is right."""
    network.eval()
    right = torch.zeros((), dtype=torch.long, device=images.device)
    for indices in torch.arange(len(images)).split(_BATCH):
        predicted = network(images.inputs(indices)).argmax(1)
        right += (predicted == images.labels[indices].to(images.device)).sum()
    return int(right) / len(images)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Test accuracy over networks, as fractions: mean and population standard deviation, as the papers give them."""

    mean: float
    std: float
    values: tuple[float, ...]
    iteration: int

    @classmethod
    def of(cls, values: Sequence[float], iteration: int) -> "Accuracy":
        """Summarise the test accuracies of several networks trained on the distilled set of one iteration."""
        return cls(
            mean=statistics.fmean(values), std=statistics.pstdev(values), values=tuple(values), iteration=iteration
        )

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{100 * self.mean:.1f} % (n=1)"
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The networks trained on the distilled set of one iteration: their accuracies as fractions, in order.

    ``diverged`` of them ended in NaN; they stand there with the accuracy of chance.
    """

    iteration: int
    test: Sequence[float] = ()
    validation: Sequence[float] = ()
    diverged: int = 0

    def with_network(self, test: float, validation: float | None, *, diverged: bool = False) -> "Evaluated":
        """Return the record with one more network; ``validation`` is ``None`` where no images were held out."""
        held_out = () if validation is None else (validation,)
        return Evaluated(
            iteration=self.iteration,
            test=(*self.test, test),
            validation=(*self.validation, *held_out),
            diverged=self.diverged + diverged,
        )


def train_and_test(
    evaluator: Evaluator, distilled: DistilledSet, seed: int, test: LabelledImages, validation: LabelledImages | None
) -> tuple[float, float | None, str]:
    """Train one network; return its test accuracy, its validation accuracy, and why it diverged (empty: it did not).

    A diverged network is a finding about the set, not the end of a run: it counts with the accuracy of chance.
    """
    try:
        (network,) = evaluator.train(distilled, [seed], test.device)
    except DivergedError as error:
        chance = 1 / test.classes
        return chance, chance if validation else None, str(error)
    return accuracy(network, test), accuracy(network, validation) if validation else None, ""


def summarise(evaluated: Sequence[Evaluated]) -> dict[str, Accuracy | None]:
    """Return ``last``, ``best_on_validation`` (``None`` without validation images) and ``best_on_test``.

    ``evaluated``: one entry an evaluated distilled set, the last one last. Of equals the later wins.
    """
    last = evaluated[-1]
    best = max(evaluated, key=lambda e: (statistics.fmean(e.test), e.iteration))
    chosen = None
    if last.validation:
        chosen = max(evaluated, key=lambda e: (statistics.fmean(e.validation), e.iteration))
    return {
        "last": Accuracy.of(last.test, last.iteration),
        "best_on_validation": Accuracy.of(chosen.test, chosen.iteration) if chosen else None,
        "best_on_test": Accuracy.of(best.test, best.iteration),
    }


def network_count(settings: Settings, evaluation: EvaluationSettings) -> int:
    """Return how many networks test the last set: as the evaluator's settings say, else those of the evaluation."""
    return int(getattr(settings, "networks", 0)) or evaluation.networks


def records_name(evaluator: str, key: str) -> str:
    """Return the name of the folder of an evaluation's records; an evaluator's own may hold a colon."""
    return f"{evaluator.replace(':', '-')}-{key}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluator on the distilled sets of one condensation: whom it tests on, and where its records lie.

    ``seed``: that of the cell; network i of every set gets the same one. ``validation``: held-out images, if any.
    ``records``: a folder with a file a distilled set, written after every network, so that a killed process loses one
    network. ``tell``: takes what a user should hear of on the way.
    """

    name: str
    settings: Any
    seed: int
    test: LabelledImages
    validation: LabelledImages | None
    records: Path
    tell: Callable[[str], None]

    def run(self, sets: Sequence[tuple[int, int, Callable[[], DistilledSet]]], shown: Bar) -> dict[str, Any]:
        """Train and test what is not on record of ``sets``, and return the columns of the evaluation's row.

        ``sets``: the iteration, the number of networks and how to load the set, for every set, the last one last.
        """
        evaluator = registry.load_evaluator(self.name)(self.settings)
        start = time.perf_counter()
        found = [self._test(evaluator, iteration, networks, load, shown) for iteration, networks, load in sets]
        return {
            "evaluator": self.name,
            "evaluator_version": evaluator.version,
            "recipe": evaluator.recipe,
            "settings": dataclasses.asdict(self.settings),
            "networks": sets[-1][1],
            "validation_images": len(self.validation) if self.validation else 0,
            "test_images": len(self.test),
            "evaluate_seconds": round(time.perf_counter() - start, 3),
            "accuracy": {n: dataclasses.asdict(a) if a else None for n, a in summarise(found).items()},
            "diverged_networks": sum(e.diverged for e in found),
            "evaluated": [dataclasses.asdict(e) for e in found],
        }

    def _test(
        self, evaluator: Evaluator, iteration: int, networks: int, load: Callable[[], DistilledSet], shown: Bar
    ) -> Evaluated:
        """Train and test the networks of one distilled set, going on after those already on record."""
        path = self.records / f"{iteration:06d}.json"
        done = Evaluated(**read_json(path)) if path.exists() else Evaluated(iteration=iteration)
        shown.advance(len(done.test))
        if len(done.test) >= networks:
            return done
        distilled = load()
        for i in range(len(done.test), networks):
            seed = seed_for(self.seed, "evaluation network", i)
            test, held_out, reason = train_and_test(evaluator, distilled, seed, self.test, self.validation)
            if reason:
                self.tell(f"iteration {iteration}: {reason}")
            done = done.with_network(test, held_out, diverged=bool(reason))
            write_json(path, dataclasses.asdict(done))
            shown.advance(note=f"iteration {iteration}: {Accuracy.of(done.test, iteration)}")
        return done
