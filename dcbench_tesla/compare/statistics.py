"""Intervals of mean accuracies, paired comparisons and numbers of seeds, by SciPy's distributions.

Accuracies have two levels, ``values[seed][network]``: networks trained on one distilled set, and sets made with several
seeds. Networks of one set tell nothing of the next set that the method would make, so a statement about a *method* is
one over seeds, whose means are the independent values; what networks of a single seed say holds of that *set* only.

Network i of a seed has the same seed for every method, so that methods are compared in pairs.

Distributions are those of ``scipy.special``: importing ``scipy.stats`` takes longer than all else that a table of
accuracies needs. Tests hold every number to the function of ``scipy.stats`` that is named beside it.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev
from typing import Literal

LEVEL = 0.95
"""The level of intervals; a difference is decided at 1 - LEVEL."""

POWER = 0.8
"""The probability with which :func:`seeds_needed` decides a difference."""

MOST_SEEDS = 1000

Unit = Literal["seeds", "networks"]
How = Literal["t", "percentile", "BCa"]
NAMES: Mapping[How, str] = {"t": "Student t", "percentile": "bootstrap (percentiles)", "BCa": "bootstrap (BCa)"}
Networks = Mapping[int, Sequence[float]]
"""Accuracies of a method as fractions: those of the networks, in order, by the seed."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval of a mean accuracy, as fractions: of the method over ``seeds``, or of one set over its ``networks``.

    ``count`` is the number of values of that unit.
    """

    mean: float
    low: float
    high: float
    unit: Unit
    count: int

    @property
    def about(self) -> str:
        """What the interval speaks of, in words."""
        if self.unit == "seeds":
            return f"over the means of {self.count} seeds"
        return f"over {self.count} networks of one set: it speaks of this set only"


def interval(values: Sequence[Sequence[float]], *, level: float = LEVEL, by: How = "t") -> Interval | None:
    """Return the interval of a mean accuracy, or ``None`` for one value, which has none.

    By Student t (``scipy.stats.t.interval``) it is m ± t s / sqrt(n), for the mean m and the standard deviation s
    (n - 1) of the n seeds' means, or of the networks where there is one seed; cut to [0, 1], where accuracies lie. The
    bootstraps assume no distribution; of a handful of values they are too narrow (three values: about 75 % in place of
    95 %).

    Args:
        values: accuracies as fractions, ``values[seed][network]``.
        level: the share of intervals that hold the true mean.
        by: ``t``, or a bootstrap of ``scipy.stats.bootstrap``: ``percentile`` or ``BCa``.
    """
    means = [fmean(networks) for networks in values]
    unit: Unit = "seeds" if len(means) > 1 else "networks"
    independent = means if len(means) > 1 else list(values[0])
    if len(independent) < 2:
        return None
    low, high = _ends(independent, level, by)
    return Interval(mean=fmean(means), low=max(low, 0.0), high=min(high, 1.0), unit=unit, count=len(independent))


def _ends(values: Sequence[float], level: float, by: How) -> tuple[float, float]:
    if max(values) == min(values):  # without spread there is nothing to resample, nor a t
        return values[0], values[0]
    if by == "t":
        mean, half = fmean(values), _half_width(values, level)
        return mean - half, mean + half
    import numpy as np
    from scipy import stats  # type: ignore[import-untyped]

    given = {"confidence_level": level, "method": by, "random_state": np.random.default_rng(0)}
    low, high = stats.bootstrap((values,), np.mean, **given).confidence_interval
    return float(low), float(high)


def _half_width(values: Sequence[float], level: float) -> float:
    """Return t s / sqrt(n), half of the interval of a mean by Student t."""
    from scipy import special

    return float(special.stdtrit(len(values) - 1, (1 + level) / 2)) * stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference of two methods in pairs: of seeds' means, or of networks where one seed is shared.

    Attributes:
        difference: the mean of first - second over the pairs, as a fraction; NaN without a pair.
        low: lower end of its interval by Student t; NaN where there is none.
        high: upper end.
        p: p of the paired t test (``scipy.stats.ttest_rel``); ``None`` where the pairs cannot be tested.
        unit: what a pair is.
        pairs: their number n.
        spread: standard deviation (n - 1) of the differences; NaN for fewer than two.
    """

    difference: float
    low: float
    high: float
    p: float | None
    unit: Unit
    pairs: int
    spread: float

    @property
    def equal(self) -> bool:
        """Whether both have the same accuracy in each of several pairs."""
        return self.pairs > 1 and self.difference == 0 and self.spread == 0

    def turned(self) -> "Comparison":
        """Return the comparison of the second method with the first."""
        return replace(self, difference=-self.difference, low=-self.high, high=-self.low)

    def verdict(self, p: float | None = None) -> str:
        """Return what the comparison says of the first method, in words and points of accuracy.

        Args:
            p: p after the correction for many comparisons; by default that of this comparison alone.
        """
        if self.pairs == 0:
            return "not comparable: no seed in common"
        if self.equal:
            return f"equal in all {self.pairs} {self.unit}"
        points = f"{abs(100 * self.difference):.1f} points"
        if self.p is None:
            where = "in the one pair there is" if self.pairs == 1 else f"in each of {self.pairs} {self.unit}"
            return f"not testable: {_side(self.difference)} by {points} {where}"
        if not decided(self.p if p is None else p):
            return f"not decisive: {100 * self.low:+.1f} to {100 * self.high:+.1f} points"
        near, far = sorted((abs(100 * self.low), abs(100 * self.high)))
        return f"{_side(self.difference)} by {near:.1f} to {far:.1f} points"

    def seeds_needed(self) -> float:
        """Return how many seeds would decide a difference as large as this one (:func:`seeds_needed`).

        Pairs of networks do not show how far sets of several seeds lie apart. That is at least what their own mean
        varies by, s / sqrt(n), so that the number is then the least that can be hoped for.
        """
        spread = self.spread if self.unit == "seeds" else self.spread / math.sqrt(max(self.pairs, 1))
        return seeds_needed(self.difference, spread)


def _side(difference: float) -> str:
    return "higher" if difference > 0 else "lower"


def decided(p: float) -> bool:
    """Return whether a (corrected) p decides a difference at :data:`LEVEL`."""
    return p <= 1 - LEVEL


def compare(first: Networks, second: Networks) -> Comparison:
    """Return the paired comparison of two methods on the seeds and networks that both have."""
    return all_pairs([first, second])[0, 1]


def all_pairs(methods: Sequence[Networks]) -> dict[tuple[int, int], Comparison]:
    """Return the paired comparison of every two of several methods, by their numbers i < j."""
    pairs = combinations(range(len(methods)), 2)
    return {(i, j): _tested(*_paired(methods[i], methods[j])) for i, j in pairs}


def _paired(first: Networks, second: Networks) -> tuple[Unit, list[float], list[float]]:
    """Return what pairs are of, and the values of both: means of shared seeds, or shared networks of one seed."""
    seeds = sorted(set(first) & set(second))
    shared = [list(zip(first[seed], second[seed], strict=False)) for seed in seeds]  # networks that both have
    if len(shared) == 1:
        return "networks", [a for a, _ in shared[0]], [b for _, b in shared[0]]
    return "seeds", [fmean(a for a, _ in pairs) for pairs in shared], [fmean(b for _, b in pairs) for pairs in shared]


def _tested(unit: Unit, first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Return the comparison of paired values, with the p of |t| = d sqrt(n) / s for the n differences' mean d."""
    from scipy import special

    own, pairs = [_rounded(a - b) for a, b in zip(first, second, strict=True)], len(first)
    difference = fmean(own) if own else math.nan
    spread = stdev(own) if pairs > 1 else math.nan
    half, p = math.nan, None
    if spread > 0:
        half = _half_width(own, LEVEL)
        p = 2 * float(special.stdtr(pairs - 1, -abs(difference) * math.sqrt(pairs) / spread))
    return Comparison(
        difference=difference,
        low=difference - half,
        high=difference + half,
        p=p,
        unit=unit,
        pairs=pairs,
        spread=spread,
    )


def _rounded(difference: float) -> float:
    """Return a difference of accuracies without the rounding of floats, which is no spread."""
    return round(difference, 12)


def corrected(values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number, by Benjamini and Hochberg (``scipy.stats.false_discovery_control``).

    The i-th smallest of m becomes the least of p_j m / j over j >= i, where p_j is the j-th smallest.
    Of the differences that are then decided at 5 %, on average at most 5 % are none; where all methods are equal, that
    is the probability of finding any. The procedure holds for p values that rise and fall together, as those of methods
    compared with one another do. Its variant for any dependence (Benjamini and Yekutieli) and the control of a single
    false finding (Holm) would with three seeds decide next to nothing. ``None`` was not tested and stays.
    """
    falling = sorted(((p, i) for i, p in enumerate(values) if p is not None), reverse=True)
    found: list[float | None] = [None] * len(values)
    least = 1.0
    for j, (p, i) in zip(range(len(falling), 0, -1), falling, strict=True):
        found[i] = least = min(least, p * len(falling) / j)
    return found


def power(seeds: int, difference: float, spread: float) -> float:
    """Return the probability that the paired t test decides a difference, by the noncentral t (``scipy.stats.nct``).

    Args:
        seeds: the number n of pairs.
        difference: the true mean difference d.
        spread: the standard deviation s of the differences; the noncentrality is d sqrt(n) / s.
    """
    from scipy import special

    limit = special.stdtrit(seeds - 1, (1 + LEVEL) / 2)
    noncentrality = abs(difference) / spread * math.sqrt(seeds)
    below, above = (float(special.nctdtr(seeds - 1, noncentrality, end)) for end in (-limit, limit))
    return 1 - above + (0 if math.isnan(below) else below)  # NaN where it is too small for a float


def seeds_needed(difference: float, spread: float) -> float:
    """Return the number of seeds at which :func:`power` reaches :data:`POWER`; infinity for over :data:`MOST_SEEDS`.

    It is that of a test of two methods alone; among many, the correction asks for more.

    Args:
        difference: the difference to be decided.
        spread: the standard deviation of the differences of seeds' means.
    """
    if not abs(difference) > 0 or math.isnan(spread):
        return math.inf
    if spread == 0 or abs(difference) / spread > 100:  # where two seeds decide it
        return 2
    counts = range(2, MOST_SEEDS + 1)
    place = bisect.bisect_left(counts, POWER, key=lambda seeds: power(seeds, difference, spread))
    return counts[place] if place < len(counts) else math.inf


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a method stands beside the best of several.

    Attributes:
        behind: the paired comparison of the method with the best one; ``None`` for the best itself.
        p: its p, corrected for all pairs of the methods; ``None`` where it cannot be tested.
        level: whether the method is the best or no difference from it is decided; ``None`` where nothing was tested, or
            where it has one seed and others have several.
    """

    behind: Comparison | None
    p: float | None
    level: bool | None

    @property
    def seeds_needed(self) -> float | None:
        """How many seeds would decide between the method and the best; ``None`` where that is decided or untested."""
        return self.behind.seeds_needed() if self.behind and self.level and not self.behind.equal else None


def standings(methods: Sequence[Networks]) -> list[Standing]:
    """Return where each of several methods stands beside the best, which has the highest mean over its seeds' means.

    Which one is the best is seen only after the fact, and the highest of many equal methods is high by luck. All pairs
    are therefore tested and corrected for (:func:`corrected`), and those with the best are read from them.

    Where methods have several seeds, the best is one of these and pairs are of seeds: a method of one seed is neither
    the best nor level with it, because networks of one set say nothing of a method. Where none has, all pairs are of
    networks, and speak of these sets.
    """
    unit: Unit = "seeds" if any(len(method) > 1 for method in methods) else "networks"
    judged = [i for i, method in enumerate(methods) if len(method) > 1 or unit == "networks"]
    best = max(judged, key=lambda i: fmean(map(fmean, methods[i].values())))
    pairs = all_pairs(methods)
    tested = {key: pair for key, pair in pairs.items() if pair.unit == unit and {*key} <= {*judged}}
    after = dict(zip(tested, corrected([pair.p for pair in tested.values()]), strict=True))
    found = []
    for i in range(len(methods)):
        if i == best:
            known = any(after[key] is not None or pair.equal for key, pair in tested.items() if best in key)
            found.append(Standing(behind=None, p=None, level=True if known else None))
            continue
        key = (min(i, best), max(i, best))
        behind, p = pairs[key] if i < best else pairs[key].turned(), after.get(key)
        level = not decided(p) if p is not None else True if behind.equal and key in tested else None
        found.append(Standing(behind=behind, p=p, level=level))
    return found
