"""`compare.statistics`: against SciPy's values, and against what intervals and tests promise on simulated numbers."""

import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from dcbench_tesla.compare import statistics
from dcbench_tesla.compare.statistics import Networks, all_pairs, compare, corrected, interval, seeds_needed, standings

SEEDS = [[0.70, 0.72], [0.74, 0.75, 0.76], [0.69, 0.71]]  # of 0.71, 0.75 and 0.70


def test_an_interval_over_seeds_is_student_t_of_their_means() -> None:
    found = interval(SEEDS)
    assert found is not None
    low, high = stats.t.interval(0.95, 2, loc=0.72, scale=stats.sem([0.71, 0.75, 0.70]))
    assert (found.mean, found.low, found.high) == pytest.approx((0.72, low, high))
    assert found.low == pytest.approx(0.72 - 4.3027 * 0.0264575 / 3**0.5, abs=1e-5)  # by hand
    assert (found.unit, found.count) == ("seeds", 3)
    assert found.about == "over the means of 3 seeds"


def test_an_interval_of_one_seed_speaks_of_its_set() -> None:
    found = interval([[0.7, 0.71, 0.75]])
    assert found is not None
    assert (found.unit, found.count) == ("networks", 3)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 0.72, stats.sem([0.7, 0.71, 0.75])))
    assert found.about.endswith("it speaks of this set only")


def test_the_bounds_of_an_interval() -> None:
    assert interval([[0.7]]) is None  # one value
    wide = interval([[0.9, 1.0]])  # 12.7 standard errors of 5 points: cut to what an accuracy can be
    assert wide is not None
    assert wide.low == pytest.approx(0.95 - 12.7062 * 0.05, abs=1e-4)
    assert wide.high == 1.0
    for by in ("t", "percentile", "BCa"):
        same = interval([[0.7, 0.7, 0.7]], by=by)
        assert same is not None
        assert (same.low, same.high) == (0.7, 0.7)


@pytest.mark.parametrize("by", ["percentile", "BCa"])
def test_bootstraps_are_those_of_scipy(by: str) -> None:
    values = [0.70, 0.71, 0.75, 0.78]
    found, again = (interval([values], by=by) for _ in range(2))  # type: ignore[arg-type]
    wanted = stats.bootstrap((values,), np.mean, method=by, random_state=np.random.default_rng(0))
    assert found is not None
    assert (found.low, found.high) == tuple(wanted.confidence_interval)
    assert found == again


def test_the_interval_holds_the_mean_in_95_of_100_simulations() -> None:
    """Three seeds of two networks: both levels vary, and the interval over seeds holds the method's mean."""
    draw = np.random.default_rng(1)
    sets = 0.7 + draw.normal(0, 0.02, (1000, 3, 1)) + draw.normal(0, 0.01, (1000, 3, 2))
    found = [interval(values) for values in sets.tolist()]
    held = sum(one is not None and one.low <= 0.7 <= one.high for one in found)
    assert 930 <= held <= 970
    of_a_set = [interval([values[0]]) for values in sets.tolist()]  # networks of one set do not show how sets vary
    assert sum(one is not None and one.low <= 0.7 <= one.high for one in of_a_set) < 900


def test_seeds_are_paired_where_several_are_shared() -> None:
    ours, theirs = {0: [0.71, 0.73], 1: [0.74], 3: [0.9]}, {0: [0.70, 0.70], 1: [0.71], 2: [0.1]}
    found = compare(ours, theirs)
    wanted = stats.ttest_rel([0.72, 0.74], [0.70, 0.71])
    assert (found.p, found.difference, found.spread) == pytest.approx((wanted.pvalue, 0.025, 0.01 / 2**0.5))
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert (found.unit, found.pairs) == ("seeds", 2)
    assert found.verdict() == "not decisive: -3.9 to +8.9 points"


def test_networks_are_paired_where_one_seed_is_shared() -> None:
    found = compare({0: [0.71, 0.73, 0.72], 1: [0.5]}, {0: [0.70, 0.71, 0.71, 0.9]})
    wanted = stats.ttest_rel([0.71, 0.73, 0.72], [0.70, 0.71, 0.71])
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.unit, found.pairs) == ("networks", 3)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ({0: [0.5, 0.6]}, {0: [0.5, 0.6]}, "equal in all 2 networks"),
        ({0: [0.5], 1: [0.6]}, {0: [0.5], 1: [0.6]}, "equal in all 2 seeds"),
        ({0: [0.5]}, {0: [0.6]}, "not testable: lower by 10.0 points in the one pair there is"),
        ({0: [0.8, 0.9]}, {0: [0.7, 0.8]}, "not testable: higher by 10.0 points in each of 2 networks"),
        ({0: [0.5, 0.6]}, {1: [0.5, 0.6]}, "not comparable: no seed in common"),
        ({0: [0.71, 0.72, 0.74]}, {0: [0.61, 0.61, 0.64]}, "higher by 8.9 to 11.8 points"),
        ({0: [0.61, 0.61, 0.64]}, {0: [0.71, 0.72, 0.74]}, "lower by 8.9 to 11.8 points"),
    ],
)
def test_a_verdict_is_words(ours: Networks, theirs: Networks, told: str) -> None:
    assert compare(ours, theirs).verdict() == told
    assert compare(theirs, ours).turned().verdict() == told


def test_a_corrected_p_decides_the_verdict() -> None:
    found = compare({0: [0.71, 0.72, 0.74]}, {0: [0.61, 0.61, 0.64]})
    assert found.verdict(p=0.06) == "not decisive: +8.9 to +11.8 points"


def test_the_correction_is_that_of_scipy_and_leaves_out_what_was_not_tested() -> None:
    assert corrected([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])  # by hand: p m / rank
    found = [0.001, 0.02, 0.03, 0.5]
    assert corrected(found) == pytest.approx(list(stats.false_discovery_control(found, method="bh")))
    assert corrected([None]) == [None]


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_p_is_corrected_as_by_scipy(count: int) -> None:
    p = np.random.default_rng(count).uniform(0, 0.2, count).round(2).tolist()  # with ties
    wanted = stats.false_discovery_control(p, method="bh") if p else []
    assert corrected([*p, None]) == [*(pytest.approx(value, rel=1e-12) for value in wanted), None]


def test_the_power_is_that_of_the_noncentral_t() -> None:
    """Cohen's table: 34 pairs decide half a standard deviation with 80 %; a tenth needs 787."""
    assert seeds_needed(0.01, 0.02) == 34
    assert seeds_needed(0.01, 0.1) == 787
    assert statistics.power(33, 0.01, 0.02) < 0.8 <= statistics.power(34, 0.01, 0.02)
    assert statistics.power(10, 0.0, 0.02) == pytest.approx(0.05)
    assert statistics.power(10, 0.1, 0.02) == pytest.approx(1)  # its lower tail is too small for SciPy, which says NaN
    assert seeds_needed(0.0, 0.01) == seeds_needed(0.001, 0.1) == math.inf
    assert seeds_needed(0.07, 0.01) == 3  # SciPy has NaN for two seeds, which decide it with 56 % only
    assert seeds_needed(0.01, 0.0) == seeds_needed(-0.5, 0.001) == 2


def simulated(difference: float, seeds: int, times: int) -> list[statistics.Comparison]:
    """Return comparisons of two methods with as many seeds, whose differences vary by 2.4 points."""
    draw = np.random.default_rng(2)
    shared = draw.normal(0, 0.03, (times, seeds, 1))  # of the seed, in both methods: pairs take it out
    first, second = (shared + 0.7 + draw.normal(0, 0.017, (times, seeds, 1)) for _ in range(2))
    values = [dict(enumerate(own)) for method in ((first + difference), second) for own in method.tolist()]
    return [compare(values[i], values[times + i]) for i in range(times)]


def test_a_planted_difference_is_found_with_as_many_seeds_as_the_tool_says() -> None:
    seeds = seeds_needed(0.03, 0.017 * 2**0.5)
    assert seeds == 8
    found = simulated(0.03, int(seeds), 1000)
    decided = [c for c in found if c.p is not None and statistics.decided(c.p)]
    assert 0.77 <= len(decided) / 1000 <= 0.88  # 80 %, and what whole seeds add
    assert all(c.verdict().startswith("higher by") for c in decided)
    few = simulated(0.03, 3, 1000)
    assert sum(c.p is not None and statistics.decided(c.p) for c in few) < 350


def test_none_is_found_where_there_is_none() -> None:
    decided = sum(c.p is not None and statistics.decided(c.p) for c in simulated(0.0, 8, 1000))
    assert 35 <= decided <= 65  # 5 %


def test_of_many_equal_methods_none_is_decidedly_worse_than_the_best() -> None:
    """The best of eight is high by luck; in 5 % of the tables at most is anything else decided."""
    draw = np.random.default_rng(3)
    tables = 0.7 + draw.normal(0, 0.02, (300, 1, 5, 1)) + draw.normal(0, 0.02, (300, 8, 5, 1))
    wrong = 0
    for table in tables.tolist():
        found = standings([dict(enumerate(own)) for own in table])
        wrong += any(one.level is False for one in found)
    assert wrong <= 0.05 * 300 + 2 * (0.05 * 0.95 * 300) ** 0.5


def test_one_seed_is_neither_the_best_nor_level_with_it_where_others_have_several() -> None:
    """Its networks speak of one set: they neither set the marks of the others nor count among the comparisons."""
    best = {0: [0.80, 0.81], 1: [0.82, 0.83], 2: [0.81, 0.80]}
    near = {0: [0.81, 0.80], 1: [0.81, 0.82], 2: [0.81, 0.81]}
    far = {0: [0.60, 0.61], 1: [0.63, 0.60], 2: [0.61, 0.62]}
    alone, apart = {0: [0.90, 0.91]}, {2: [0.10, 0.11], 3: [0.95, 0.95]}  # apart shares one seed with the others
    found = standings([alone, near, best, apart, far])
    three = standings([near, best, far])
    assert [found[i] for i in (1, 2, 4)] == three
    assert [one.level for one in three] == [True, True, False]
    assert [found[i].level for i in (0, 3)] == [None, None]
    assert [found[i].p for i in (0, 3)] == [None, None]


def test_where_methods_stand_beside_the_best() -> None:
    best = {0: [0.80, 0.82, 0.81, 0.83]}
    near = {0: [0.80, 0.80, 0.82, 0.82]}
    far = {0: [0.61, 0.60, 0.60, 0.62]}
    found = standings([near, best, far, {0: [0.7]}])
    assert [one.level for one in found] == [True, True, False, None]
    assert found[1].behind is None
    p = [pair.p for pair in all_pairs([near, best, far]).values()]
    assert [found[0].p, found[2].p] == pytest.approx([corrected(p)[0], corrected(p)[2]])
    assert found[0].behind is not None
    assert found[0].behind.difference == pytest.approx(-0.005)
    assert found[0].behind.low == pytest.approx(compare(near, best).low)
    spread = float(np.std([0.0, 0.02, -0.01, 0.01], ddof=1))
    assert found[0].seeds_needed == seeds_needed(0.005, spread / 2)  # at least: of the mean of four networks
    assert found[2].seeds_needed is None
    assert [one.level for one in standings([{0: [0.5]}, {0: [0.6]}])] == [None, None]  # nothing was tested
    equal = standings([best, dict(best)])
    assert [one.level for one in equal] == [True, True]
    assert [one.seeds_needed for one in equal] == [None, None]
