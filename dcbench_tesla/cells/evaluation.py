"""The accuracy of networks trained on a distilled set, by three rules for choosing the set.

``last`` is the final distilled set. ``best_on_validation`` is the one of all evaluated sets with the best accuracy on
the validation images. ``best_on_test`` is the one with the best accuracy on the test images themselves; the papers of
MTT and TESLA print it, but it is not an honest estimate. Each value is the accuracy of that set's networks, after their
last epoch, on the test images, as a fraction.
"""

import dataclasses
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcbench_tesla import registry
from dcbench_tesla.compute.seeds import seed_for
from dcbench_tesla.config import HARD_LABELS, OWN_LABELS, TEACHER_LABELS, EvaluationSettings
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.errors import CorruptFileError, DivergedError
from dcbench_tesla.experts.teacher import teacher_facts
from dcbench_tesla.interface import DistilledSet, Evaluator, Settings, Teacher
from dcbench_tesla.presets.recipes import AUTHORS, authors_recipe
from dcbench_tesla.records.progress import Bar
from dcbench_tesla.records.store import content_key, read_json, write_json

NEAR = 0.05
"""How close to its teacher's accuracy a set's own is said to be held back by it, as a fraction."""

_BATCH = 512
_LONGEST_NAME = 100


@torch.no_grad()
def accuracy(network: nn.Module, images: LabelledImages) -> float:
    """Return the fraction of ``images`` that ``network`` classifies correctly."""
    network.eval()
    right = torch.zeros((), dtype=torch.long, device=images.device)
    for indices in torch.arange(len(images)).split(_BATCH):
        predicted = network(images.inputs(indices)).argmax(1)
        right += (predicted == images.labels[indices].to(images.device)).sum()
    return int(right) / len(images)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Test accuracies of several networks as fractions, with their mean and population standard deviation."""

    mean: float
    std: float
    values: tuple[float, ...]
    iteration: int

    @classmethod
    def of(cls, values: Sequence[float], iteration: int) -> "Accuracy":
        """Summarise the test accuracies of networks trained on the distilled set of one iteration."""
        return cls(
            mean=statistics.fmean(values), std=statistics.pstdev(values), values=tuple(values), iteration=iteration
        )

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{100 * self.mean:.1f} % (n=1)"
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The accuracies, as fractions, of the networks trained on the distilled set of one iteration.

    ``diverged`` counts the networks whose training ended in NaN or infinity; they have the accuracy of chance.
    """

    iteration: int
    test: Sequence[float] = ()
    validation: Sequence[float] = ()
    diverged: int = 0

    def with_network(self, test: float, validation: float | None, *, diverged: bool = False) -> "Evaluated":
        """Return the record with one more network; ``validation`` is ``None`` if no images are held out."""
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
    """Train one network; return its test accuracy, its validation accuracy, and why it diverged (empty if it did not).

    Divergence is a property of the distilled set and does not end the run; the network gets the accuracy of chance.
    """
    try:
        (network,) = evaluator.train(evaluator.given(distilled), [seed], test.device)
    except DivergedError as error:
        chance = 1 / test.classes
        return chance, chance if validation else None, str(error)
    return accuracy(network, test), accuracy(network, validation) if validation else None, ""


def summarise(evaluated: Sequence[Evaluated]) -> dict[str, Accuracy | None]:
    """Return ``last``, ``best_on_validation`` (``None`` without validation images) and ``best_on_test``.

    Args:
        evaluated: one entry per evaluated distilled set, the final set last. Of equally good sets the later one wins.
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


def network_count(evaluator: str, settings: Settings, evaluation: EvaluationSettings) -> int:
    """Return how many networks test the final set: the evaluator's own setting, else that of the evaluation.

    An evaluator whose networks do not depend on their seed has one.
    """
    if not registry.load_evaluator(evaluator).uses_seed(settings):
        return 1
    return int(getattr(settings, "networks", 0)) or evaluation.networks


def settings_on_record(settings: Settings) -> dict[str, Any]:
    """Return all settings by name, without those marked ``later`` that have their default: earlier rows lack them."""
    fields = dataclasses.fields(settings)
    later = {f.name for f in fields if f.metadata.get("later") and getattr(settings, f.name) == f.default}
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in later}


def authors_content(settings: Settings, evaluation_recipe: str) -> dict[str, Any]:
    """Return what of the authors' recipe defines an evaluation that follows it; empty for one that does not."""
    if getattr(settings, "recipe", "") != AUTHORS or not evaluation_recipe:
        return {}
    return {"authors": authors_recipe(evaluation_recipe).content}


def labels_content(evaluation: EvaluationSettings, teacher: str = "") -> dict[str, Any]:
    """Return what of the labels defines an evaluation, for its key and its row; empty for the set's own labels.

    Args:
        evaluation: the settings of the evaluation.
        teacher: the key of the teacher's recipe, if there is one.
    """
    if evaluation.labels == OWN_LABELS:
        return {}
    taught = teacher_facts(evaluation, teacher) if evaluation.labels == TEACHER_LABELS else {}
    return {"regime": evaluation.labels, **taught}


OTHER_LABELS = {OWN_LABELS: HARD_LABELS, HARD_LABELS: OWN_LABELS}
"""The regime that is the same for sets whose labels are classes."""

SAME_LABELS = "its labels are classes already, so set and hard are the same: the evaluation on record is taken"


def is_hard(distilled: DistilledSet) -> bool:
    """Return whether the labels of a set are classes."""
    return distilled.labels.ndim == 1


def as_regime(row: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an evaluation as that of another regime with the same labels, whose content is ``labels``."""
    columns = {name: value for name, value in row.items() if name not in ("stage", "key", "labels")}
    return {**columns, **({"labels": dict(labels)} if labels else {})}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels that networks are trained with, by their regime.

    Args:
        content: that of :func:`labels_content`.
        teacher: the teacher, if the regime has one.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    teacher: Teacher | None = None

    def of(self, distilled: DistilledSet) -> DistilledSet:
        """Return the set with its labels of the regime; a teacher leaves them as they are."""
        return distilled.with_hard_labels() if self.content.get("regime") == HARD_LABELS else distilled

    def taught(self, evaluator: Evaluator) -> Evaluator:
        """Return the evaluator, with the teacher if there is one."""
        return evaluator if self.teacher is None else evaluator.with_teacher(self.teacher)


def records_name(evaluator: str, key: str) -> str:
    """Return the name of the folder of an evaluation's records, without colons and slashes (``timm:hf_hub:x/y``)."""
    name = re.sub(r"[^\w.-]+", "-", evaluator)[:_LONGEST_NAME]
    return f"{name}-{key}"


def notes_on(last: Accuracy | None, classes: int, images: int) -> list[str]:
    """Return a note if the mean accuracy is at most 1/K + 2 s for K classes, with its standard error s.

    s^2 = p (1 - p) / N + v / n for chance p = 1/K, N test images, and the variance v of n networks (0 for one).

    Args:
        last: the accuracy of the final set.
        classes: K.
        images: N.
    """
    if last is None:
        return []
    chance, n = 1 / classes, len(last.values)
    spread = statistics.variance(last.values) / n if n > 1 else 0.0
    limit = chance + 2 * math.sqrt(chance * (1 - chance) / images + spread)
    if last.mean > limit:
        return []
    return [
        f"at the level of chance: {100 * last.mean:.1f} % is not more than {100 * limit:.1f} %, which is 1/{classes} "
        "and two standard errors"
    ]


def notes_on_teacher(last: Accuracy | None, teacher: float | None) -> list[str]:
    """Return a note if networks come within :data:`NEAR` of the accuracy of their teacher: it cannot lift them further.

    Args:
        last: the accuracy of the final set.
        teacher: that of the teacher, as a fraction; ``None`` if there is none.
    """
    if last is None or teacher is None or last.mean < teacher - NEAR:
        return []
    return [
        f"the teacher itself is right on {100 * teacher:.1f} % of the test images: it holds back sets that come close "
        "to that, and evaluation.teacher_epochs trains it longer"
    ]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluator for the distilled sets of one condensation.

    Args:
        name: name of the evaluator.
        settings: its settings.
        seed: seed of the cell. Network i has the same seed for every distilled set.
        test: the test images.
        validation: the held-out images, or ``None``.
        records: a folder with one file per distilled set. It is written after every network, so a killed process loses
            one network at most.
        tell: called with messages for the user.
        evaluation_recipe: the recipe of the authors that the sets name, or empty.
        labels: the labels to train with.
    """

    name: str
    settings: Any
    seed: int
    test: LabelledImages
    validation: LabelledImages | None
    records: Path
    tell: Callable[[str], None]
    evaluation_recipe: str = ""
    labels: Labels = Labels()

    def run(self, sets: Sequence[tuple[int, int, Callable[[], DistilledSet]]], shown: Bar) -> dict[str, Any]:
        """Train and test the networks that ``records`` lacks; return the columns of the evaluation's row.

        Args:
            sets: iteration, number of networks and a function that loads the set, for each set; the final set last.
            shown: the progress bar.
        """
        evaluator = self.labels.taught(registry.load_evaluator(self.name)(self.settings))
        tested = [self._test(evaluator, iteration, networks, load, shown) for iteration, networks, load in sets]
        found = [done for done, _ in tested]
        summary = summarise(found)
        taught = self._of_the_teacher()
        notes = [
            *notes_on(summary["last"], self.test.classes, len(self.test)),
            *notes_on_teacher(summary["last"], taught.get("teacher_test")),
        ]
        for note in notes:
            self.tell(f"{self.name}: note: {note}")
        return {
            "evaluator": self.name,
            "evaluator_version": evaluator.version,
            "recipe": evaluator.recipe_of(self.evaluation_recipe),
            "settings": settings_on_record(self.settings),
            **({"labels": dict(self.labels.content)} if self.labels.content else {}),
            **taught,
            "networks": sets[-1][1],
            "validation_images": len(self.validation) if self.validation else 0,
            "test_images": len(self.test),
            "evaluate_seconds": round(sum(seconds for _, seconds in tested), 3),
            "accuracy": {n: dataclasses.asdict(a) if a else None for n, a in summary.items()},
            "diverged_networks": sum(e.diverged for e in found),
            "evaluated": [dataclasses.asdict(e) for e in found],
            **({"notes": notes} if notes else {}),
        }

    def _of_the_teacher(self) -> dict[str, float]:
        """Return the teacher's own accuracy on the test images, if there is a teacher."""
        teacher = self.labels.teacher
        return {} if teacher is None else {"teacher_test": accuracy(teacher.network, self.test)}

    def _signed(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record with a digest of its content and of the evaluation that it belongs to."""
        return {**record, "digest": content_key([self.records.name, record])}

    def _recorded(self, path: Path, iteration: int, networks: int) -> tuple[Evaluated, float]:
        """Read the record of one distilled set, which tests at most ``networks`` networks, and how long they took.

        Raises:
            CorruptFileError: it is damaged, or belongs to another set or evaluation.
        """
        remedy = "Delete it: the same command tests these networks again."
        content = read_json(path, "evaluation record", remedy=remedy)
        record = {name: value for name, value in content.items() if name != "digest"}
        values = {name: value for name, value in record.items() if name != "seconds"}
        seconds = record.get("seconds", 0.0)  # records of earlier versions have none
        done = Evaluated(**values) if values.keys() == {f.name for f in dataclasses.fields(Evaluated)} else None
        sound = (
            done is not None
            and content in (self._signed(record), record)  # records of earlier versions have no digest
            and done.iteration == iteration
            and 0 < len(done.test) <= networks
            and len(done.validation) == (len(done.test) if self.validation else 0)
            and done.diverged <= len(done.test)
        )
        if done is None or not sound:
            whose = f"the record of {self.name} for iteration {iteration}"
            raise CorruptFileError(f"{path} is not {whose}, or its values were changed. {remedy}")
        return done, seconds

    def _test(
        self, evaluator: Evaluator, iteration: int, networks: int, load: Callable[[], DistilledSet], shown: Bar
    ) -> tuple[Evaluated, float]:
        """Train and test the networks of one distilled set, after those that are recorded already.

        Returns:
            their accuracies, and the seconds that all of them took.
        """
        path = self.records / f"{iteration:06d}.json"
        done, seconds = (
            self._recorded(path, iteration, networks) if path.exists() else (Evaluated(iteration=iteration), 0)
        )
        shown.advance(len(done.test))
        if len(done.test) >= networks:
            return done, seconds
        distilled = self.labels.of(load())
        for i in range(len(done.test), networks):
            start, seed = time.perf_counter(), seed_for(self.seed, "evaluation network", i)
            test, held_out, reason = train_and_test(evaluator, distilled, seed, self.test, self.validation)
            if reason:
                self.tell(f"iteration {iteration}: {reason}")
            done = done.with_network(test, held_out, diverged=bool(reason))
            seconds += time.perf_counter() - start
            write_json(path, self._signed({**dataclasses.asdict(done), "seconds": round(seconds, 3)}))
            shown.advance(note=f"iteration {iteration}: {Accuracy.of(done.test, iteration)}")
        return done, seconds
