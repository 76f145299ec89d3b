"""Verifies a distilled set: is its accuracy the claimed one, and if not, which single change closes the gap?

``dcbench verify`` trains networks on a set by the recipe that its authors publish, and tests them. Where the claim does
not hold, it changes one thing at a time that files of sets often lack or say wrongly: the augmentation, the learned
rate, the preprocessing, the labels. Every evaluation leaves an ordinary row, and is not repeated.

The claim holds where a Welch t test does not decide the difference at 5 %. A printed number stands for all that round
to it, so that the nearest of them is tested. A few networks, or widely spread ones, hardly decide any difference: where
its interval reaches further than :data:`TOLERANCE` to either side, the claim is not judged.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from dcbench_tesla import registry
from dcbench_tesla.cells.evaluation import network_count
from dcbench_tesla.cells.saved import config_of, evaluate_saved
from dcbench_tesla.compare.statistics import LEVEL, MOST_SEEDS, Interval, interval
from dcbench_tesla.compare.table import aligned
from dcbench_tesla.config import CellConfig, Override
from dcbench_tesla.data.augmentation import NO_STRATEGY, Augmentation
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.data.preprocessing import WHITENINGS, ZCA_SIDE_LIMIT, Preprocessing, fit_standardise
from dcbench_tesla.datasets import PREFIXES, load_dataset
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.errors import UsageError
from dcbench_tesla.presets.recipes import AUTHORS, authors_recipe
from dcbench_tesla.records.workspace import Workspace

RATES = (0.001, 0.003, 0.03, 0.1)
"""The learned rates that are tried; without one, the recipe's own rate is used."""

TOLERANCE = 5.0
"""The half-width, in points, of the interval of a difference up to which what is not decided counts as consistent."""

_FOLDER = "verify"
Outcome = Literal["consistent", "undecided", "below", "above"]
_SIDES: dict[Outcome, str] = {
    "consistent": "consistent with the claim",
    "undecided": "undecided, the measurement is too coarse to judge the claim",
    "below": "below the claim",
    "above": "above the claim",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claimed test accuracy in percent, as it is printed.

    Args:
        printed: the mean, such as ``71.6``; its last digit says how it was rounded.
        std: its standard deviation; ``None`` if none is printed.
        networks: the number of networks that this is over.

    Raises:
        UsageError: it is no percentage.
    """

    printed: str
    std: float | None = None
    networks: int = 5

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{1,3}(\.\d+)?", self.printed) or not 0 <= self.mean <= 100:
            raise UsageError(f"--claim takes an accuracy in percent, such as 71.6, not {self.printed!r}.")
        if self.std is not None and not 0 <= self.std < math.inf:
            raise UsageError(f"--std must be finite and not negative, not {self.std:g}.")
        if self.networks < 2:
            raise UsageError(f"--claim-networks must be at least 2, not {self.networks}.")

    @property
    def mean(self) -> float:
        """The claimed mean in percent."""
        return float(self.printed)

    def nearest(self, mean: float) -> float:
        """Return what is nearest to ``mean`` of all numbers that round to the printed one."""
        half = 0.5 * 10.0 ** -len(self.printed.partition(".")[2])
        return min(max(mean, self.mean - half), self.mean + half)

    def __str__(self) -> str:
        return f"{self.printed}{'' if self.std is None else f' ± {self.std:g}'} %"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The accuracies that networks trained on a set reach, as fractions, and the recipe by which they were trained."""

    values: Sequence[float]
    recipe: str

    @property
    def mean(self) -> float:
        """The mean in percent."""
        return 100 * fmean(self.values)

    @property
    def interval(self) -> Interval | None:
        """The interval of the mean by Student t, as fractions; ``None`` for one network."""
        return interval([self.values])

    def outcome(self, claim: Claim) -> Outcome:
        """Return whether the claim holds, cannot be judged, or on which side of it the accuracy is.

        What Welch's test does not decide is ``consistent`` where :meth:`half_width` is at most :data:`TOLERANCE`, or
        the mean lies within the claim's own standard deviation; else ``undecided``.
        """
        nearest = claim.nearest(self.mean)
        if not self._same(nearest, claim):
            return "below" if self.mean < nearest else "above"
        within = abs(self.mean - nearest) <= (claim.std or 0.0)
        return "consistent" if within or self.half_width(claim) <= TOLERANCE else "undecided"

    def half_width(self, claim: Claim, networks: int | None = None) -> float:
        """Return half of the interval of the difference to the claim, in points.

        By Welch it is t sqrt(s^2 / n + S^2 / N), for the standard deviation s of the n networks here and S of the N
        claimed ones (0 if none is printed), and Welch's degrees of freedom. ``networks`` stands for n where it is
        given: what as many networks of the same spread would give.
        """
        from scipy import special  # type: ignore[import-untyped]

        n = networks or len(self.values)
        own, theirs = (100 * stdev(self.values)) ** 2 / n, (claim.std or 0.0) ** 2 / claim.networks
        if own + theirs == 0:
            return 0.0
        freedom = (own + theirs) ** 2 / (own**2 / (n - 1) + theirs**2 / (claim.networks - 1))
        return float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(own + theirs)

    def needed(self, claim: Claim) -> int | None:
        """Return how many networks of this spread judge the claim; ``None`` if its own spread lets no number do so."""
        counts = range(len(self.values) + 1, MOST_SEEDS + 1)
        return next((n for n in counts if self.half_width(claim, n) <= TOLERANCE), None)

    def _same(self, claimed: float, claim: Claim) -> bool:
        from scipy import stats

        own = [100 * value for value in self.values]
        if stdev(own) == 0 and not claim.std:
            return math.isclose(self.mean, claimed, abs_tol=1e-9)
        if claim.std is None:
            return float(stats.ttest_1samp(own, claimed).pvalue) > 1 - LEVEL
        both = (self.mean, stdev(own), len(own), claimed, claim.std, claim.networks)
        return float(stats.ttest_ind_from_stats(*both, equal_var=False).pvalue) > 1 - LEVEL

    def __str__(self) -> str:
        found = self.interval
        ends = f" [{100 * found.low:.1f}, {100 * found.high:.1f}]" if found else ""
        return f"{self.mean:.1f}{ends}"


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One change of a set: a name for files, what it is in words, the remedy if it is the reason, and the set with it.

    ``made`` returns the set, which is not made before it is needed.
    """

    name: str
    told: str
    remedy: str
    made: Callable[[], DistilledSet]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found of a claim.

    Attributes:
        claim: the claim.
        measured: the accuracy of the set as it is.
        tried: every change with its accuracy; empty where the claim holds or cannot be judged.
    """

    claim: Claim
    measured: Measured
    tried: Sequence[tuple[Suspect, Measured]] = ()

    @property
    def outcome(self) -> Outcome:
        """Whether the claim holds for the set as it is, if that can be judged."""
        return self.measured.outcome(self.claim)

    @property
    def closing(self) -> Suspect | None:
        """The change with which the claim holds; of several the one that comes nearest, ``None`` if none does."""
        holding = self._with("consistent")
        return min(holding, key=lambda pair: abs(pair[1].mean - self.claim.mean))[0] if holding else None

    def _with(self, outcome: Outcome) -> list[tuple[Suspect, Measured]]:
        """Return the changes of one outcome."""
        return [(suspect, found) for suspect, found in self.tried if found.outcome(self.claim) == outcome]

    def lines(self) -> list[str]:
        """Return the verdict in lines of Markdown."""
        n = len(self.measured.values)
        about = f"{self.measured} % over {n} networks; claimed: {self.claim}"
        decided = self.outcome in ("below", "above")
        gap = f" by {abs(self.measured.mean - self.claim.mean):.1f} points" if decided else ""
        lines = [f"{_SIDES[self.outcome]}{gap}: {about}", f"recipe: {self.measured.recipe}"]
        if self.outcome == "undecided":
            width = self.measured.half_width(self.claim)
            told = f"the difference is known to ± {width:.1f} points only, more than ± {TOLERANCE:g}"
            lines.append(f"{told}: {self._more([self.measured])}")
        if not self.tried:
            return lines
        body = [
            [suspect.told, str(found), f"{found.mean - self.claim.mean:+.1f}", found.outcome(self.claim)]
            for suspect, found in self.tried
        ]
        lines += ["", *aligned(["changed", "test accuracy, %", "to the claim", "verdict"], body), ""]
        if coarse := [found for _, found in self._with("undecided")]:
            lines.append(f"too coarse to judge: {len(coarse)} of {len(body)} changes; {self._more(coarse)}")
        if self.closing is None:
            return [*lines, f"none of these {len(body)} changes closes the gap"]
        several = len(self._with("consistent"))
        nearest = f"closes the gap: {self.closing.told}"
        if several > 1:
            nearest = f"{several} of {len(body)} changes close the gap, and nearest comes: {self.closing.told}"
        return [*lines, f"{nearest}. {self.closing.remedy}"]

    def _more(self, coarse: Sequence[Measured]) -> str:
        """Return how measurements that are too coarse get finer."""
        counts = [count for found in coarse if (count := found.needed(self.claim)) is not None]
        if counts:
            return f"train more networks, about --networks {max(counts)}"
        return "the claim's own spread is too wide for any number of networks"


def suspects(distilled: DistilledSet, dataset: Dataset) -> Iterator[Suspect]:
    """Yield the changes to try, one at a time: augmentation, learned rate, preprocessing, labels."""
    changed = partial(replace, distilled)
    augmented = distilled.augmentation != NO_STRATEGY
    other = NO_STRATEGY if augmented else Augmentation.for_dataset(dataset.flippable).strategy
    told = "without augmentation" if augmented else f"with augmentation ({other})"
    yield Suspect(
        name="no-augmentation" if augmented else "augmentation",
        told=told,
        remedy=f"Import the set with --augmentation {other}.",
        made=partial(changed, augmentation=other),
    )
    if distilled.steps is None:
        yield from _rates(distilled)
    for name, fit in _fits(dataset).items():
        if (fitted := fit()).key != distilled.preprocessing.key:
            yield Suspect(
                name=name,
                told=f"preprocessing {name}",
                remedy=f"Its images went through another preprocessing than the file says: {name}.",
                made=partial(changed, preprocessing=fitted),
            )
    if distilled.labels.ndim == 2:
        told = "hard labels (the most likely classes)"
        remedy = "The claim is of hard labels: --set evaluation.labels=hard."
        yield Suspect(name="hard-labels", told=told, remedy=remedy, made=distilled.with_hard_labels)


def _rates(distilled: DistilledSet) -> Iterator[Suspect]:
    if distilled.lr is not None:
        told, remedy = "without the learned rate", "Import the set with --no-lr."
        yield Suspect(name="no-lr", told=told, remedy=remedy, made=partial(replace, distilled, lr=None))
    for rate in RATES:
        if distilled.lr is None or not math.isclose(rate, distilled.lr, rel_tol=0.1):
            yield Suspect(
                name=f"lr-{rate:g}",
                told=f"learned rate {rate:g}",
                remedy=f"The file {'lacks the' if distilled.lr is None else 'has another'} learned rate: import the "
                f"set with the published one, near --lr {rate:g}.",
                made=partial(replace, distilled, lr=rate),
            )


def _fits(dataset: Dataset) -> dict[str, Callable[[], Preprocessing]]:
    """Return the preprocessings that are tried, by name."""
    found: dict[str, Callable[[], Preprocessing]] = {"standardise": partial(fit_standardise, dataset)}
    if dataset.side < ZCA_SIDE_LIMIT:
        for name, fit in WHITENINGS.items():
            found["zca" if name == "mtt" else f"zca-{name}"] = partial(fit, dataset.x_train, dataset.max_value)
    return found


def verify(
    path: Path,
    claim: Claim,
    *,
    evaluator: str = "convnet",
    overrides: Sequence[Override] = (),
    networks: int | None = None,
    dataset: str | None = None,
    preset: str = "paper",
    seed: int = 0,
    out: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    tell: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Evaluate the set in the file ``path``, compare it with the claim, and try changes where that does not hold.

    Args:
        path: the file of a distilled set.
        claim: the claim.
        evaluator: the network.
        overrides: settings of the evaluation and of the evaluator.
        networks: networks to train; by default those of the settings.
        dataset: data set to test on; by default the one the set was made from.
        preset: preset of the evaluator's settings.
        seed: seed of the evaluation.
        out: the results folder.
        data_dir: the folder of the data sets' files.
        device: PyTorch's name of the device, or ``auto``.
        tell: called with a line before every change that is tried.

    Raises:
        UsageError: the data set is not known or does not match the set, a setting does not belong to the evaluation,
            or one network only would be trained.
        CorruptFileError: the file is damaged or not a distilled set.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}: give that of a distilled set; dcbench import set makes one.")
    made = DistilledSet.load(path)
    named = dataset or str(made.provenance.get("dataset") or "")
    if not named or (dataset is None and named.startswith(PREFIXES)):
        raise UsageError(f"{path} was made from {named or 'an unknown data set'}: give the files by --dataset.")
    how = [*_of_authors(made, evaluator, overrides), *overrides]
    how += _of_networks(config_of(made, named, [evaluator], how, preset=preset, seed=seed), networks)
    about: dict[str, Any] = {"dataset": dataset, "preset": preset, "seed": seed, "data_dir": data_dir, "device": device}

    def measured(file: Path) -> Measured:
        row = evaluate_saved(file, [evaluator], overrides=how, out=out, **about)[evaluator]
        return Measured(values=row["accuracy"]["last"]["values"], recipe=row["recipe"])

    found = Verdict(claim=claim, measured=measured(path))
    if found.outcome in ("consistent", "undecided"):
        return found
    tried, folder = [], Workspace(out).root / _FOLDER / path.stem
    for suspect in suspects(made, load_dataset(named, data_dir)):
        tell(f"trying: {suspect.told}")
        file = folder / f"{path.stem}.{suspect.name}.safetensors"
        suspect.made().save(file)
        tried.append((suspect, measured(file)))
    return replace(found, tried=tried)


def _of_networks(config: CellConfig, networks: int | None) -> list[Override]:
    """Return the settings by which ``networks`` are trained; none where ``None`` leaves their number to ``config``.

    Raises:
        UsageError: it is one.
    """
    ((evaluator, settings),) = config.evaluators.items()
    if not registry.load_evaluator(evaluator).uses_seed(settings):
        raise UsageError(
            f"{evaluator} cannot be verified: its networks do not depend on a seed, and one says nothing of a claim. "
            f"These can: {', '.join(_with_seed())}."
        )
    if (networks or network_count(evaluator, settings, config.evaluation)) < 2:
        raise UsageError("one network says nothing of a claim: give --networks 2 or more.")
    if networks is None:
        return []
    sections = ["evaluation"]
    if getattr(settings, "networks", 0):  # such as a preset's, which would hold in place of the evaluation's
        sections.append(evaluator)
    return [Override(section, "networks", networks) for section in sections]


def _with_seed() -> list[str]:
    """Return the installed evaluators, and families of them, whose networks depend on a seed by default."""
    installed = [plugin.name for plugin in registry.describe("evaluators") if not plugin.problem]
    return [name for name in installed if registry.family("evaluators", name) or _depends_on_seed(name)]


def _depends_on_seed(evaluator: str) -> bool:
    kind = registry.load_evaluator(evaluator)
    return kind.uses_seed(kind.Settings())


def _of_authors(made: DistilledSet, evaluator: str, overrides: Sequence[Override]) -> list[Override]:
    """Return the setting by which the recipe of the set's authors is followed, if there is one that can be."""
    fields = registry.load_evaluator(evaluator).Settings.__dataclass_fields__
    given = any(o.label == f"{evaluator}.recipe" for o in overrides)
    if given or not made.evaluation_recipe or "recipe" not in fields or authors_recipe(made.evaluation_recipe).lacking:
        return []
    return [Override(evaluator, "recipe", AUTHORS)]
