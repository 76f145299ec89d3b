"""The settings that a search chose, for ``dcbench run --tuned``: read from the rows of its trials."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcbench_tesla import registry
from dcbench_tesla.config import CellConfig, Tuned, as_text, resolved_again, setting_value
from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.errors import UsageError
from dcbench_tesla.records.workspace import Workspace
from dcbench_tesla.tuning.trials import Row, base_key, best_first, searches


@dataclass(frozen=True)
class Asked:
    """What ``--tuned`` asks for: the settings that the first ``trials`` of a search chose; ``key`` begins its key."""

    trials: int
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> "Asked":
        """Parse ``20``, or ``20:3f2a`` for the search whose key begins so.

        Raises:
            UsageError: the text is neither.
        """
        number, _, key = text.partition(":")
        if not number.isdecimal() or not int(number):
            raise UsageError(f"--tuned takes the number of trials, for instance 20, not {text!r}.")
        return cls(int(number), key)


def tuned(config: CellConfig, dataset: Dataset, workspace: Workspace, asked: Asked) -> CellConfig:
    """Return a cell with the settings that a search for it chose; its protocol names the search.

    A method without iterations that was not searched, such as ``random``, stays as it is.

    Raises:
        UsageError: no search, or more than one, has so many trials; or a searched setting is given and is another.
    """
    found = [rows for rows in searches(workspace) if _is_for(rows, config, dataset)]
    whole = [rows for rows in found if len(rows) >= asked.trials and rows[0]["search"].startswith(asked.key)]
    if not found and not registry.load_method(config.method)(config.settings).iterations:
        return config
    if not whole:
        raise UsageError(_lacking(config, found, asked))
    if len(whole) > 1:
        several = ", ".join(f"{asked.trials}:{rows[0]['search'][:6]} (seed {rows[0]['seed']})" for rows in whole)
        raise UsageError(f"{config.method} was searched {len(whole)} times here; --tuned names one: {several}.")
    best = best_first(whole[0][: asked.trials])[0]
    for label in set(config.changed) & set(best["values"]):
        given, chosen = config.value(label), setting_value(config, label, best["values"][label])
        if given != chosen:
            raise UsageError(
                f"--tuned: the search chose {label}={as_text(chosen)}, and --set gives {as_text(given)}: leave out one."
            )
    return resolved_again(config, tuned=Tuned(asked.trials, best["values"]))


def _is_for(rows: Sequence[Row], config: CellConfig, dataset: Dataset) -> bool:
    """Return whether a search was made for a cell: the same but for seed, evaluators and what was searched."""
    first = rows[0] if rows else {}
    ipc = config.ipc if registry.load_method(config.method).uses_ipc else None
    same = {"method": config.method, "ipc": ipc, "preset": config.preset}
    if any(first.get(name) != value for name, value in same.items()):
        return False
    if first["train_fingerprint"] != dataset.train_fingerprint:
        return False
    return base_key(resolved_again(config, without=tuple(first["space"])), dataset) == str(first["base"])


def _lacking(config: CellConfig, found: Sequence[Sequence[Row]], asked: Asked) -> str:
    most = max(map(len, found), default=0)
    have = f"{most} of {asked.trials} trials" if most else "no trials with these settings"
    return (
        f"--tuned {asked.trials}: {config.method} has {have} on {dataset_words(config)}: dcbench tune {config.method} "
        f"--trials {asked.trials}, with the same data set, IPC, preset and --set, makes them."
    )


def dataset_words(config: CellConfig) -> str:
    """Return data set, IPC and preset in words."""
    from dcbench_tesla.config import shown_dataset

    return f"{shown_dataset(config.dataset)}, IPC {config.ipc}, preset {config.preset}"
