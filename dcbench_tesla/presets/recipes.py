"""The recipes by which methods' authors evaluate, as data: ``recipes.toml``, one section a recipe."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

from dcbench_tesla.errors import unknown_name

AUTHORS = "authors"
"""The value of an evaluator's setting ``recipe`` that takes the recipe which the set names."""

PUBLISHED = "published"
"""The value that takes the recipe that all sets have in common."""


@dataclass(frozen=True, kw_only=True)
class AuthorsRecipe:
    """How a method's authors train a network on its sets.

    Attributes:
        name: the recipe's name.
        source: where it is published.
        loss: ``cross-entropy``, or ``mse`` (half the squared distance to the centred labels, mean over images).
        optimiser: ``sgd`` or ``adam``.
        lr: learning rate; 0: the evaluator's setting ``lr``.
        learned_lr: whether the set's learned rate takes the place of ``lr``, if there is one.
        momentum: momentum of SGD.
        weight_decay: weight decay.
        batch_size: images per step, at most all.
        epochs: passes over the set, where ``steps`` is empty.
        steps: optimiser steps by number of training images.
        set_steps: whether the set's ``training_steps`` take the place of ``steps``, if it has them.
        schedule: ``halves``, ``fifths``, ``released``, ``constant``, ``cosine`` or ``learned``, as ``recipes.toml``
            explains.
        warm_up: steps of linear warm-up of ``cosine``.
        floor: the last rate of ``cosine`` as a share of ``lr``.
        augmentation: whether the set's DSA strategy is used.
        strategy: a strategy in its place, of those operations that the set's has; empty: the set's.
        cutmix: probability of CutMix for a batch.
        augmented_epochs: epochs where the set has a DSA strategy; 0: ``epochs``.
        average: decay of a moving average of the weights, which is tested in their place; 0: the last weights are.
        width: width of the ConvNet; 0: the evaluator's own.
        network: which network the evaluator ``convnet`` trains: ``convnet``, or ``frepo`` with its doubling widths.
        norm: the norm of that network; empty: its own.
        not_theirs: in which the evaluators differ from the authors, as text.
        lacking: why no evaluator can follow the recipe; empty if they can.
    """

    name: str
    source: str
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.0
    learned_lr: bool = False
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    epochs: int = 0
    steps: Mapping[str, int] = field(default_factory=dict)
    set_steps: bool = field(default=False, metadata={"later": True})
    schedule: Literal["halves", "fifths", "released", "constant", "cosine", "learned"] = "halves"
    warm_up: int = 0
    floor: float = 0.0
    augmentation: bool = True
    strategy: str = field(default="", metadata={"later": True})
    cutmix: float = field(default=0.0, metadata={"later": True})
    augmented_epochs: int = field(default=0, metadata={"later": True})
    average: float = field(default=0.0, metadata={"later": True})
    width: int = 0
    network: Literal["convnet", "frepo"] = field(default="convnet", metadata={"later": True})
    norm: str = field(default="", metadata={"later": True})
    not_theirs: str = ""
    lacking: str = ""

    def steps_for(self, images: int, of_the_set: int = 0) -> int:
        """Return the steps for ``images`` training images: those of the nearest listed number, by ratio; 0: epochs.

        ``of_the_set`` is the set's own number, or 0; a recipe with ``set_steps`` takes it.
        """
        if self.set_steps and of_the_set:
            return of_the_set
        if not self.steps:
            return 0
        return self.steps[min(self.steps, key=lambda listed: abs(math.log(int(listed) / images)))]

    @property
    def content(self) -> dict[str, Any]:
        """What defines a network that is trained by it; part of the key of such an evaluation.

        What was added when results existed counts only where it differs from its default.
        """
        left_out = {"source", "not_theirs", "lacking"}
        for about in dataclasses.fields(self):
            if about.metadata.get("later") and getattr(self, about.name) == about.default:
                left_out.add(about.name)
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}

    def __str__(self) -> str:
        """Return the recipe in one line, for rows and tables."""
        augmented = f" ({self.augmented_epochs} with DSA)" if self.augmented_epochs else ""
        length = "steps by size" if self.steps else f"{self.epochs} epochs{augmented}"
        length = "the set's steps" if self.set_steps else length
        mixed = f", CutMix {self.cutmix:g}" if self.cutmix else ""
        how = "the learned steps" if self.schedule == "learned" else f"batch {self.batch_size}, {length}{mixed}"
        theirs = f"; not theirs: {self.not_theirs}" if self.not_theirs else ""
        return f"{self.name}: {self.loss}, {self.optimiser}, {how}{theirs}"


@cache
def _all() -> dict[str, AuthorsRecipe]:
    text = resources.files("dcbench_tesla.presets").joinpath("recipes.toml").read_text(encoding="utf-8")
    return {name: AuthorsRecipe(name=name, **values) for name, values in tomllib.loads(text).items()}


def names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(_all())


def authors_recipe(name: str) -> AuthorsRecipe:
    """Return the recipe called ``name``.

    Raises:
        UsageError: there is no such recipe.
    """
    if name not in _all():
        raise unknown_name("evaluation recipe", name, names())
    return _all()[name]
