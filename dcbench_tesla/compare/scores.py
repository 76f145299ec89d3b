"""Scores of distilled sets beside real images, from the rows of finished cells (``dcbench compare scores``).

Accuracies are fractions of the test set throughout: means over seeds of the means over networks, ``last``. Formulas of
LRS, ARS, HLR and IOR are those of DD-Ranking (Li et al. 2025, arXiv 2505.13300), whose released code puts percents into
them. A score whose rows are missing is empty, and the command that makes them is told.
"""

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from dcbench_tesla.compare.accuracy import Wanted, evaluations, labelled, letters, networks_of, summary
from dcbench_tesla.compare.changes import ROUNDING
from dcbench_tesla.compare.statistics import LEVEL, Networks, compare
from dcbench_tesla.compare.table import bullet, in_widths, paragraph
from dcbench_tesla.config import BASELINE, settings_given
from dcbench_tesla.data.augmentation import NO_STRATEGY
from dcbench_tesla.errors import DcbenchError
from dcbench_tesla.presets.recipes import AUTHORS
from dcbench_tesla.records.store import content_key
from dcbench_tesla.records.text import on_one_line
from dcbench_tesla.records.workspace import Workspace

WHOLE = "whole"
_HARD = "hard"
_OWN = "set"  # the set's own labels, or its own augmentation
_NETWORKS = ("width", "depth")
_MOST_COMMANDS = 4  # that are told for one score
_FEWEST_NETWORKS = 4  # of a rank correlation: three have no interval
# methods without a setting of their labels, which are classes; of others, a row says so
_CLASSES = (BASELINE, WHOLE, "herding", "k-center", "class-means", "dm", "dc", "dsa", "idc", "cafe", "dd")


# ---- formulas --------------------------------------------------------------------------------------------------------


def normalised(value: float) -> float:
    """Return (e^x - e^-1) / (e - e^-1), which maps [-1, 1] to [0, 1]; no difference, x = 0, has 0.269."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust_score(ior: float, hlr: float, weight: float = 0.5) -> float:
    """Return LRS, DD-Ranking's label-robust score: of w IOR - (1 - w) HLR, :func:`normalised`.

    Args:
        ior: improvement over random: acc(set) - acc(random images), each with its own labels, as a fraction.
        hlr: hard-label recovery: acc(all real images) - acc(set with hard labels), as a fraction.
        weight: w.
    """
    return normalised(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """Return ARS, DD-Ranking's augmentation-robust score: of g a + (1 - g) b, :func:`normalised`.

    Args:
        augmented: a = acc(set) - acc(random images), both trained with augmentation, as a fraction.
        plain: b, the same without.
        weight: g.
    """
    return normalised(weight * augmented + (1 - weight) * plain)


class Images(NamedTuple):
    """A number of random images per class; ``bound`` is ``<`` or ``>`` where it lies outside of what was run."""

    per_class: float
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.bound}{' ' if self.bound else ''}{self.per_class:.3g}"


def random_images(accuracy: float, of_random: Mapping[int, float]) -> Images | None:
    """Return how many random images per class reach an accuracy; ``None`` for fewer than two numbers of images.

    Between the numbers of images that were run, accuracy is linear in the logarithm of the number, after isotonic
    regression (``sklearn.isotonic``): more images are not worse.

    Args:
        accuracy: the accuracy to be reached, as a fraction.
        of_random: the accuracy of random images, by their number per class.
    """
    import numpy as np
    from sklearn.isotonic import isotonic_regression

    if len(of_random) < 2:
        return None
    counts = sorted(of_random)
    rising = isotonic_regression([of_random[count] for count in counts])
    if accuracy < rising[0]:
        return Images(counts[0], "<")
    if accuracy > rising[-1]:
        return Images(counts[-1], ">")
    return Images(math.exp(float(np.interp(accuracy, rising, np.log(counts)))))


class Correlation(NamedTuple):
    """Spearman's rank correlation over several networks, with its interval at 95 %, which full agreement lacks."""

    value: float
    low: float | None
    high: float | None
    networks: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation | None:
    """Return Spearman's correlation of the accuracies of the same networks on two sets; ``None`` for fewer than four.

    It is ``scipy.stats.spearmanr``; its interval is Fisher's, of Pearson's correlation of the ranks.
    """
    from scipy import stats  # type: ignore[import-untyped]

    if len(first) < _FEWEST_NETWORKS or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    value = float(stats.spearmanr(first, second).statistic)
    if math.isclose(abs(value), 1):
        return Correlation(value, None, None, len(first))
    ends = stats.pearsonr(stats.rankdata(first), stats.rankdata(second)).confidence_interval(LEVEL)
    return Correlation(value, float(ends.low), float(ends.high), len(first))


# ---- evaluations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tested:
    """The evaluation of a method's sets by one evaluator with one recipe, over all seeds."""

    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def columns(self) -> Mapping[str, Any]:
        """Its tidy row, as in ``compare accuracy``."""
        return summary(self.rows)

    @property
    def first(self) -> Mapping[str, Any]:
        """One of its rows, for what they share."""
        return self.rows[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the evaluator."""
        found: Mapping[str, Any] = self.first["settings"]
        return found

    @property
    def accuracy(self) -> float:
        """The mean over seeds of the means over networks."""
        return fmean(fmean(own) for own in self.networks.values())

    @cached_property
    def networks(self) -> Networks:
        """The accuracies of its networks by seed."""
        return networks_of(self.rows, "last")

    def of_seeds(self, seeds: Collection[int]) -> "_Tested | None":
        """Return it with its rows of some seeds only; ``None`` without any of them."""
        rows = [row for row in self.rows if networks_of([row], "last").keys() & set(seeds)]
        return _Tested(rows) if rows else None

    @property
    def labels(self) -> str:
        """The regime of its labels."""
        return str((self.first.get("labels") or {}).get("regime", _OWN))

    @property
    def augmentation(self) -> str:
        """The augmentation that was set, or that of the set."""
        return str(self.settings.get("augmentation", _OWN))

    @property
    def network(self) -> tuple[Any, ...]:
        """What is varied of the network: width and depth."""
        return tuple(self.settings.get(name) for name in _NETWORKS)

    @property
    def data(self) -> tuple[Any, ...]:
        """What it was tested on and by: two methods are compared only if these agree."""
        names = ("dataset", "preset", "data", "evaluator")
        return (*(self.columns[name] for name in names), self.first.get("evaluator_version", 1))

    @property
    def rest(self) -> str:
        """A key of the settings of the network that are not varied, without those that change results by rounding."""
        left_out = (*_NETWORKS, "augmentation", *ROUNDING)
        return content_key({name: value for name, value in self.settings.items() if name not in left_out})

    @property
    def line(self) -> tuple[Any, ...]:
        """A key of the set and of how it is tested, without what is varied."""
        of_set = (self.first["ipc"], self.columns["condensation"], self.first.get("origin"))
        return (*self.data, *of_set, self.rest)

    @property
    def own_labels_are_hard(self) -> bool:
        """Whether the labels of the sets themselves are classes; not known of files."""
        made = self.first["made"]
        if made is None:
            return False
        return bool(made["settings"].get("labels", _HARD if self.first["method"] in _CLASSES else "") == _HARD)

    @property
    def is_by_authors(self) -> bool:
        """Whether the recipe is of the method's authors: random images have none, and it brings its augmentation."""
        return bool(self.settings.get("recipe") == AUTHORS)

    @property
    def own_augmentation(self) -> str:
        """The strategy that networks on the set are trained with unless another is given."""
        made = self.first["made"]
        return str(made["identity"].get("augmentation", _OWN)) if made else _OWN

    @property
    def is_changed(self) -> bool:
        """Whether its command changed the network."""
        given = settings_given(self.first["command"])
        return any(f"{self.first['evaluator']}.{name}" in given for name in _NETWORKS)


class _All:
    """All evaluations, and the one that a score needs."""

    def __init__(self, groups: Iterable[Sequence[Mapping[str, Any]]]) -> None:
        self.tested = [_Tested(rows) for rows in groups]
        self._lines: dict[tuple[Any, ...], list[_Tested]] = defaultdict(list)
        for one in self.tested:
            self._lines[one.line].append(one)
        plain = (one for one in self.tested if (one.labels, one.augmentation) == (_OWN, _OWN))
        self._common = Counter((*one.data, one.network) for one in plain)

    def own(self) -> Iterator[_Tested]:
        """Yield the evaluation of every set with its own labels, augmentation and the network that most have."""
        for found in self._lines.values():
            plain = [one for one in found if (one.labels, one.augmentation) == (_OWN, _OWN)]
            if plain and plain[0].first["method"] != WHOLE:
                yield min(plain, key=self._rank)

    def _rank(self, one: _Tested) -> tuple[Any, ...]:
        fullest = (-len(one.rows), -one.first["networks"], -len(one.first["evaluated"]))
        return (one.is_changed, -self._common[*one.data, one.network], one.network, *fullest)

    def varied(self, own: _Tested, **asked: Any) -> _Tested | None:
        """Return the evaluation of the same set with other labels, augmentation or network."""
        return self._best(self._lines[own.line], own, **asked)

    def hard(self, own: _Tested) -> _Tested | None:
        """Return the evaluation of the same set with hard labels on all seeds of its own; its own, if they are hard."""
        if own.own_labels_are_hard:
            return own
        found = self.varied(own, labels=_HARD)
        found = found and found.of_seeds(own.networks)
        return found if found is not None and len(found.networks) == len(own.networks) else None

    def random(self, own: _Tested, ipc: int, **asked: Any) -> _Tested | None:
        """Return the evaluation of random images that a set is compared with, on the seeds that both have."""
        found = self._random(own, ipc, **asked)
        return found and found.of_seeds(own.networks)

    def _random(self, own: _Tested, ipc: int, **asked: Any) -> _Tested | None:
        """Return the evaluation of random images like that of a set, on all seeds.

        It has the recipe of the set, or where nothing was changed of the preset that of random images; of a recipe of
        the method's authors there is none.
        """
        if own.is_by_authors:
            return None
        found = [one for one in self.tested if one.first["method"] == BASELINE and one.data == own.data]
        found = [one for one in found if one.first["ipc"] == ipc]
        alike = [one for one in found if one.rest == own.rest]
        return self._best(alike or [one for one in found if _as_preset(one) and _as_preset(own)], own, **asked)

    def whole(self, own: _Tested, **asked: Any) -> _Tested | None:
        """Return the evaluation of all real images by that evaluator, on the set's seeds if it has them all."""
        found = [one for one in self.tested if one.first["method"] == WHOLE and one.data == own.data]
        best = self._best(found, own, **asked)
        return best.of_seeds(own.networks) if best and own.networks.keys() <= best.networks.keys() else best

    def counts(self, own: _Tested) -> dict[int, float]:
        """Return the accuracy of random images by their number per class, over all of their seeds."""
        found = {one.first["ipc"] for one in self.tested if one.first["method"] == BASELINE}
        tested = {ipc: self._random(own, ipc) for ipc in found}
        return {ipc: one.accuracy for ipc, one in tested.items() if one is not None}

    def _best(
        self,
        found: Iterable[_Tested],
        own: _Tested,
        *,
        labels: str = _OWN,
        augmentation: str = _OWN,
        network: tuple[Any, ...] | None = None,
    ) -> _Tested | None:
        """Return the evaluation with the labels, augmentation and network asked for that has most of a set's seeds.

        Of several it is the fullest.
        """
        asked = (labels, augmentation, own.network if network is None else network)
        fit = [one for one in found if (one.labels, one.augmentation, one.network) == asked]

        def order(one: _Tested) -> tuple[Any, ...]:
            """Return what sorts the same origin first, then most of the set's seeds, then the fullest."""
            shared = len(one.networks.keys() & own.networks.keys())
            return (one.first.get("origin") != own.first.get("origin"), -shared, *self._rank(one))

        return min(fit, key=order, default=None)

    def augmentations(self, own: _Tested) -> dict[str, float]:
        """Return the accuracy of a set by augmentation, its own first."""
        found = [one for one in self._lines[own.line] if (one.labels, one.network) == (_OWN, own.network)]
        names = sorted({one.augmentation for one in found}, key=lambda name: (name != _OWN, name))
        tested = ((name, self.varied(own, augmentation=name)) for name in names)
        return {name: one.accuracy for name, one in tested if one is not None}

    def pairs(self, own: _Tested) -> list[tuple[float, float]]:
        """Return the accuracies of networks of other widths and depths on the set, and on all real images."""
        tried = sorted({one.network for one in self._lines[own.line]}, key=str)
        both = ((self.varied(own, network=n), self.whole(own, network=n)) for n in tried)
        return [(one.accuracy, whole.accuracy) for one, whole in both if one is not None and whole is not None]


def _as_preset(one: _Tested) -> bool:
    """Return whether nothing was changed of the preset."""
    return ", changed: " not in one.first["protocol"] and " as " not in one.first["protocol"]


# ---- the table -------------------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """The scores of sets, and what is missing for others, each with the command that makes it."""

    table: pd.DataFrame
    missing: Sequence[str]


def scores(workspace: Workspace, wanted: Wanted) -> Scores:
    """Return one tidy row for every set, over all seeds that were run, with how it was made and its scores.

    All accuracies and differences are fractions. What cannot be computed is empty. The columns:

    - ``accuracy``, ``random``, ``ior``, ``ior_low``, ``ior_high``, ``ior_unit``: that of the set over all of its seeds,
      of random images by the same recipe over those of them that they have, and the difference in pairs of what both
      have (:func:`~dcbench_tesla.compare.statistics.compare`) with its interval, and of what the pairs are.
    - ``whole``, ``hard``, ``hlr``, ``hlr_low``, ``hlr_high``, ``hlr_unit``: that of all real images, of the set with
      hard labels over all of its seeds, and the difference: in pairs, if all real images have these seeds, else of the
      two means, without an interval. ``lrs``: :func:`label_robust_score`.
    - ``plain``, ``random_plain``, ``ars``: those without augmentation, and :func:`augmentation_robust_score` of the
      differences in pairs of the seeds that all four evaluations have.
    - ``random_images``, ``bound``, ``compression``: how many random images per class reach the accuracy
      (:func:`random_images`), whether that is a bound, and their number for each image of the set.
    - ``augmentations``, ``lowest``, ``highest``: the augmentations tried, and the range of accuracies.
    - ``rank_correlation``, ``rank_low``, ``rank_high``, ``rank_networks``: :func:`rank_correlation` with the accuracies
      of the same networks on all real images.

    Args:
        workspace: the results folder.
        wanted: the sets; the rows that they are compared with are found whatever their method and IPC.

    Raises:
        DcbenchError: no finished evaluation is among the wanted ones.
    """
    beside = Wanted(datasets=wanted.datasets, evaluators=wanted.evaluators, presets=wanted.presets)
    found = _All(evaluations(workspace, beside))
    sets = [one for one in found.own() if wanted.has(dict(one.first))]
    if not sets:
        raise DcbenchError(
            f"no finished evaluation under {workspace.root} matches: dcbench list cells shows those that exist, "
            "dcbench run and dcbench evaluate add more; in a checkout, --shipped adds the committed ones."
        )
    table = pd.DataFrame([_columns(found, one) for one in sets])
    table["ipc"] = table["ipc"].astype("Int64")
    by = [*_SECTION, "evaluator", "recipe", "accuracy", "method", "condensation"]
    return Scores(table.sort_values(by, ignore_index=True), _commands(_lacking(found, one) for one in sets))


_SECTION = ["dataset", "ipc", "preset", "data"]
_MADE = ("method", "settings", "condensation", "protocol", "evaluator", "recipe", "evaluator_settings")
_OF_SUMMARY = (*_SECTION, *_MADE, "networks", "seeds", "command", "origin")


def _columns(found: _All, own: _Tested) -> dict[str, Any]:
    """Return the columns of a set."""
    random = own if own.first["method"] == BASELINE else found.random(own, own.first["ipc"])
    hard, whole = found.hard(own), found.whole(own)
    ior, hlr = _difference("ior", own, random), _recovery(whole, hard)
    images = random_images(own.accuracy, found.counts(own))
    correlation = rank_correlation(*zip(*pairs, strict=True)) if (pairs := found.pairs(own)) else None
    tried = found.augmentations(own)
    return {
        **{name: own.columns[name] for name in _OF_SUMMARY if name in own.columns},
        "accuracy": own.accuracy,
        "random": random.accuracy if random else None,
        **ior,
        "whole": whole.accuracy if whole else None,
        "hard": hard.accuracy if hard else None,
        **hlr,
        "lrs": None if ior["ior"] is None or hlr["hlr"] is None else label_robust_score(ior["ior"], hlr["hlr"]),
        **_augmented(found, own),
        "random_images": images.per_class if images else None,
        "bound": images.bound if images else "",
        "compression": images.per_class / own.first["ipc"] if images else None,
        "augmentations": " ".join(tried),
        "lowest": min(tried.values()),
        "highest": max(tried.values()),
        "rank_correlation": correlation.value if correlation else None,
        "rank_low": correlation.low if correlation else None,
        "rank_high": correlation.high if correlation else None,
        "rank_networks": len(pairs),
    }


def _difference(name: str, first: _Tested | None, second: _Tested | None) -> dict[str, Any]:
    """Return the columns of a difference of accuracies in pairs."""
    if first is None or second is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_unit"))
    pair = compare(first.networks, second.networks)
    low, high = (None, None) if pair.p is None else (pair.low, pair.high)
    return {name: pair.difference, f"{name}_low": low, f"{name}_high": high, f"{name}_unit": pair.unit}


def _recovery(whole: _Tested | None, hard: _Tested | None) -> dict[str, Any]:
    """Return the columns of HLR: in pairs, or where all real images lack seeds of the set, the difference of means."""
    columns = _difference("hlr", whole, hard)
    if whole is None or hard is None or whole.networks.keys() == hard.networks.keys():
        return columns
    return {**dict.fromkeys(columns), "hlr": whole.accuracy - hard.accuracy}


def _with_and_without(found: _All, own: _Tested) -> tuple[str, str]:
    """Return the augmentations that ARS compares: one that changes images, and none."""
    if own.own_augmentation != NO_STRATEGY:
        return _OWN, NO_STRATEGY
    others = [name for name in found.augmentations(own) if name not in (_OWN, NO_STRATEGY)]
    return (others or [""])[0], _OWN


def _augmented(found: _All, own: _Tested) -> dict[str, Any]:
    """Return the columns of ARS, whose two differences are in pairs of the same seeds."""
    names = _with_and_without(found, own)
    tested = [found.varied(own, augmentation=name) for name in names]
    random = tested
    if own.first["method"] != BASELINE:
        random = [found.random(own, own.first["ipc"], augmentation=name) for name in names]
    there = [one for one in (*tested, *random) if one is not None]
    seeds = set(own.networks).intersection(*(one.networks for one in there))
    augmented, plain, theirs, random_plain = (one and one.of_seeds(seeds) for one in (*tested, *random))
    score = None
    if augmented is not None and theirs is not None and plain is not None and random_plain is not None:
        pairs = (compare(augmented.networks, theirs.networks), compare(plain.networks, random_plain.networks))
        score = augmentation_robust_score(*(pair.difference for pair in pairs))
    return {
        "plain": plain.accuracy if plain else None,
        "random_plain": random_plain.accuracy if random_plain else None,
        "ars": score,
    }


# ---- as text ---------------------------------------------------------------------------------------------------------

_HEAD = ("method", "accuracy", "IOR", "HLR", "LRS", "ARS", "random images", "augmentations", "ranks")
_ABOUT = (
    "Test accuracy `last` in %, and what it is worth. IOR: points over random images of the same seeds; HLR: points "
    "that the set with hard labels lacks to all real images; [interval, 95 %] in pairs of seeds, or of networks where "
    "one seed is shared. LRS and ARS: DD-Ranking's scores, of which 0.269 is no difference, and more is better. Random "
    "images: how many per class reach the same accuracy. Augmentations: the range of accuracies, and how many were "
    "tried. Ranks: Spearman's correlation, over networks, with the accuracies on all real images."
)


def markdown(table: pd.DataFrame, *, width: int | None = None) -> str:
    """Return the ``table`` of :func:`scores` as Markdown; one wider than ``width`` is broken into several."""
    texts = ["\n".join([*paragraph(_ABOUT), ""])]
    for key, rows in labelled(table).sort_index().groupby([*_SECTION, "column"], dropna=False, sort=True):
        dataset, ipc, preset, data, column = map(str, key)
        title = ", ".join([dataset, f"IPC {ipc}", f"preset {preset}", *([data] if data else [])])
        lines = (_line(row) for row in rows.sort_values("accuracy").to_dict("records"))
        head, *body = _without_empty([_HEAD, *lines])
        parts = in_widths(head, body, sys.maxsize if width is None else width)
        shown = [line for part in parts for line in (*part, "")]
        recipes = dict.fromkeys(f"{column}: {row['recipe']}" for row in rows.to_dict("records"))
        notes = [line for note in (*recipes, *letters(rows)) for line in bullet(note)]
        texts.append("\n".join([f"### {on_one_line(title)}: {column}", "", *shown, *notes, ""]))
    return "\n".join(texts)


def _without_empty(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the lines of a table, its head first, without columns that are empty in all others."""
    kept = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    return [[line[i] for i in kept] for line in lines]


def _line(row: Mapping[Any, Any]) -> list[str]:
    images = "" if pd.isna(row["random_images"]) else str(Images(row["random_images"], row["bound"]))
    count = len(row["augmentations"].split())
    over = f"{100 * row['lowest']:.1f} to {100 * row['highest']:.1f} ({count})" if count > 1 else ""
    ranks = "" if pd.isna(row["rank_correlation"]) else f"{row['rank_correlation']:.2f}"
    if ranks and not pd.isna(row["rank_low"]):
        ranks += f" [{row['rank_low']:.2f}, {row['rank_high']:.2f}]"
    return [
        row["line"],
        f"{100 * row['accuracy']:.1f}",
        _points(row, "ior"),
        _points(row, "hlr"),
        *("" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in ("lrs", "ars")),
        images,
        over,
        ranks + (f" ({row['rank_networks']})" if ranks else ""),
    ]


def _points(row: Mapping[Any, Any], name: str) -> str:
    if pd.isna(row[name]):
        return ""
    ends = "" if pd.isna(row[f"{name}_low"]) else f" [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"
    return f"{100 * row[name]:+.1f}{ends}"


# ---- what is missing -------------------------------------------------------------------------------------------------


def _lacking(found: _All, own: _Tested) -> dict[str, str]:
    """Return the commands that make what a set's scores lack, by the names of the scores; none for random images."""
    evaluator, ipc = own.first["evaluator"], own.first["ipc"]
    lacking: dict[str, str] = {}
    if own.first["method"] == BASELINE:
        return lacking
    if found.random(own, ipc) is None and not own.is_by_authors:
        lacking["IOR, LRS, ARS"] = _command(own, method=BASELINE)
    if found.whole(own) is None:
        lacking["HLR, LRS"] = _command(own, method=WHOLE)
    if found.hard(own) is None:
        lacking["HLR, LRS (hard labels)"] = _command(own, "evaluation.labels=hard")
    if len(found.counts(own)) < 2 and not own.is_by_authors:
        lacking["random images"] = _command(own, method=BASELINE, ipcs=(1, 10, 50))
    if evaluator != "convnet":  # only its augmentation, width and depth can be set
        return lacking
    if not own.is_by_authors:
        lacking |= _lacking_augmentation(found, own)
    if len(found.pairs(own)) < _FEWEST_NETWORKS:
        lacking["ranks (four or more of W and D)"] = _command(own, "convnet.width=W", "convnet.depth=D", also=WHOLE)
    return lacking


def _lacking_augmentation(found: _All, own: _Tested) -> dict[str, str]:
    """Return the command that makes what a set's ARS lacks, by the names of the scores."""
    augmentation = NO_STRATEGY if own.own_augmentation != NO_STRATEGY else "color_crop_cutout_flip_scale_rotate"
    change = f"convnet.augmentation={augmentation}"
    if found.varied(own, augmentation=augmentation) is None:
        return {"ARS, augmentations": _command(own, change)}
    if found.random(own, own.first["ipc"], augmentation=augmentation) is None:
        return {"ARS": _command(own, change, method=BASELINE)}
    return {}


def _command(own: _Tested, *changes: str, method: str = "", ipcs: Sequence[int] = (), also: str = "") -> str:
    """Return the command that makes an evaluation like that of a set.

    Args:
        own: the evaluation.
        changes: the settings to change, as ``name=value``.
        method: the method in place of its own; it then takes the settings of data and evaluation only.
        ipcs: the numbers of images in place of its own.
        also: a further method.
    """
    first = own.first
    command, _, again = str(first["command"]).partition(" && ")
    given = {**settings_given(command), **settings_given(again)}
    if method:
        sections = ("data", "evaluation", first["evaluator"])
        given = {name: value for name, value in given.items() if name.rpartition(".")[0] in sections}
    if method and own.is_by_authors:  # which no other method has
        evaluator = first["evaluator"]
        given = {n: value for n, value in given.items() if n not in (f"{evaluator}.recipe", f"{evaluator}.most_steps")}
    words = [f"--method {name}" for name in (method or first["method"], also) if name]
    words += [f"--dataset {_given(command, 'dataset', first['dataset'])}"]
    words += [] if method == WHOLE else [f"--ipc {ipc}" for ipc in ipcs or (first["ipc"],)]
    words += [f"--seed {seed}" for seed in sorted(own.networks)] if sorted(own.networks) != [0] else []
    words += [f"--preset {first['preset']}", f"--evaluator {first['evaluator']}"]
    words += [f"--set {name}={value}" for name, value in given.items()]
    return " ".join(["dcbench run", *words, *(f"--set {change}" for change in changes)])


def _given(command: str, option: str, otherwise: str) -> str:
    """Return the value of an option in a stored command."""
    named = re.search(rf"--{option} (\S+)", command)
    return named[1] if named else otherwise


def _commands(lacking: Iterable[Mapping[str, str]]) -> list[str]:
    """Return what is missing with the commands that make it, each once; those that differ in their method are one."""
    found: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for names, command in (item for own in lacking for item in own.items()):
        method, rest = command.removeprefix("dcbench run --method ").split(" ", 1)
        found[names][rest][method] = None
    told = []
    for names, commands in found.items():
        several = [f"dcbench run {' '.join(f'--method {m}' for m in own)} {rest}" for rest, own in commands.items()]
        told += [f"{names}: {command}" for command in several[:_MOST_COMMANDS]]
        if len(several) > _MOST_COMMANDS:
            told.append(f"{names}: {len(several) - _MOST_COMMANDS} more such commands, for sets with other settings")
    return told
