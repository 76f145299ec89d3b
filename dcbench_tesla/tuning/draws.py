"""Drawing the settings of trials: optuna's tree-structured Parzen estimator, with a seed for every batch.

What is drawn depends on the seed, the space and the trials before the batch, and on nothing else: not on the process,
on the order in which trials end, or on how many come later. A search that goes on draws what it would have drawn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dcbench_tesla.compute.seeds import seed_for
from dcbench_tesla.errors import UsageError
from dcbench_tesla.tuning.space import Choices, Range, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Values = Mapping[str, Any]
"""The values of the searched settings in one trial."""


class Told(NamedTuple):
    """A finished trial: its values and its score, which is to be large."""

    values: Values
    score: float


def check_installed() -> None:
    """Check that optuna can be imported.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna  # noqa: F401 (the name itself is not needed)
    except ImportError as error:
        raise UsageError("dcbench tune needs optuna: pip install 'dcbench-tesla[tune]'.") from error


def draw(space: Space, told: Sequence[Told], count: int, seed: int, first: Values | None) -> list[dict[str, Any]]:
    """Draw the next trials of a search, all before any of them is known.

    Args:
        space: what is searched.
        told: all trials before these, in order.
        count: how many to draw; of two numbers the smaller one draws the first trials of the larger one.
        seed: the seed of the search.
        first: the values of the search's very first trial; ``None`` draws them too.

    Returns:
        Their values, in order.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed_for(seed, "search", len(told)) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {label: _distribution(found) for label, found in space.items()}
    for values, score in told:
        study.add_trial(optuna.trial.create_trial(params=dict(values), distributions=distributions, value=score))
    if first is not None and not told:
        study.enqueue_trial(dict(first))
    drawn = [study.ask(distributions).params for _ in range(count)]
    found = [{label: space[label].nearest(values[label]) for label in space} for values in drawn]
    return found if first is None or told else [dict(first), *found[1:]]


def _distribution(found: Range | Choices) -> "BaseDistribution":
    from optuna import distributions as d

    if isinstance(found, Choices):
        return d.CategoricalDistribution(found.values)
    if isinstance(found.low, int) and isinstance(found.high, int):
        return d.IntDistribution(found.low, found.high, log=found.log)
    return d.FloatDistribution(found.low, found.high, log=found.log)
