"""The contracts: Condenser, Evaluator, and the DistilledSet that passes between them.

A *condenser* owns one iteration (one update of the images); the core owns the loop, and with it progress,
checkpoints, the evaluation schedule, seeds and the guard against NaN. An *evaluator* owns one network and the recipe
that trains it on a distilled set. Neither knows the other.

Shapes: N synthetic images, C channels, H = W = side, K classes, P parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dcbench_tesla.compute.networks import ConvNet
from dcbench_tesla.compute.seeds import generator, seed_for
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import DistilledSet

__all__ = [
    "Condenser",
    "DistilledSet",
    "Evaluator",
    "ExpertRequest",
    "ExpertSource",
    "IterationRecord",
    "Problem",
    "Settings",
    "Task",
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of a plugin's hyper-parameters: a frozen, keyword-only dataclass of int, float, bool and str fields.

    ``--set name=value`` reaches the fields by name. A subclass checks its values in ``__post_init__`` and raises
    :class:`~dcbench_tesla.errors.UsageError` with the remedy.
    """

    def inert(self) -> Mapping[str, str]:
        """Return the fields that have no effect as the others stand, with the reason; setting one is an error."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ExpertRequest:
    """What a condenser reads of the expert trajectories: epochs 0 .. ``epochs``, a snapshot each.

    ``count``: of so many experts, where the method and not the setting ``experts.count`` says how many.
    """

    epochs: int
    count: int | None = None


class ExpertSource(Protocol):
    """Expert trajectories: networks trained on the real training set, a flat parameter vector an epoch."""

    def __len__(self) -> int:
        """Return the number of experts."""
        ...

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return the parameters ``(P,)`` of one expert after ``epoch`` epochs, float32 on the run's device."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every network of a run sees: the images' shape, the classes, the preprocessing and the augmentation."""

    dataset: str
    fingerprint: str
    channels: int
    side: int
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    augmentation: Augmentation
    redistributable: bool = False

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a condenser is given: the training images, how many to make of them, and the means.

    ``build_network()`` returns a freshly initialised network of the run on the CPU; under
    :func:`~dcbench_tesla.compute.networks.seeded` it is reproducible. ``experts`` is there where the condenser asked
    for them. ``compile``: whether the condenser is to compile what it repeats, if it can (``Condenser.compiles``).
    """

    task: Task
    train: LabelledImages
    ipc: int
    seed: int
    device: torch.device
    build_network: Callable[[], ConvNet]
    experts: ExpertSource | None = None
    compile: bool = False

    def seed_for(self, role: str, *repetition: int) -> int:
        """Derive a seed from the run's seed, the role of the numbers and their repetition."""
        return seed_for(self.seed, role, *repetition)

    def generator(self, role: str, *repetition: int) -> torch.Generator:
        """Return a CPU generator for one role and repetition (an iteration, a class): nothing to save to resume."""
        return generator(self.seed, role, *repetition)

    def draw_real(self, role: str, *repetition: int) -> Tensor:
        """Draw IPC training images of every class without replacement; return their indices, class-major ``(N,)``."""
        rng = self.generator(role, *repetition)
        chosen = (members[torch.randperm(len(members), generator=rng)[: self.ipc]] for members in self.train.members)
        return torch.cat(list(chosen))

    def hard_labels(self) -> Tensor:
        """Return the class-major hard labels ``(N,)``: IPC times 0, IPC times 1, ..."""
        return torch.arange(self.task.classes).repeat_interleave(self.ipc)

    def distilled(self, images: Tensor, labels: Tensor, lr: float | None = None) -> DistilledSet:
        """Bundle ``images`` and ``labels`` with everything of the task that a user of the set will need."""
        return DistilledSet(
            images=images.detach().clone().cpu(),
            labels=labels.detach().clone().cpu(),
            lr=lr,
            class_names=self.task.class_names,
            preprocessing=self.task.preprocessing,
            augmentation=self.task.augmentation.strategy,
            max_value=self.train.max_value,
        )


@dataclass(frozen=True, kw_only=True)
class IterationRecord:
    """What one iteration reports: its loss (checked for NaN by the core), and any further named numbers."""

    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


class Condenser(ABC):
    """A method of dataset condensation: settings, one iteration, its state, and the set it would hand over now.

    A subclass is registered in the entry-point group ``dcbench.methods``. Its class docstring is its documentation:
    the first line is shown in listings. ``version`` is raised whenever the same settings give another result.
    ``uses_ipc``, ``uses_network``, ``learns_lr``: whether IPC and the network matter to it, and whether its sets carry
    a learned learning rate. ``compiles``: whether it heeds ``Problem.compile``. A baseline without iterations leaves
    ``iterations`` out of its settings.
    """

    version: ClassVar[int] = 1
    uses_ipc: ClassVar[bool] = True
    uses_network: ClassVar[bool] = True
    learns_lr: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def compiled(self) -> bool:
        """Whether what it repeats runs compiled, once it was set up."""
        return False

    @property
    def iterations(self) -> int:
        """Number of iterations the core is to run: the setting of that name, 0 where there is none."""
        return int(getattr(self.settings, "iterations", 0))

    @classmethod
    def expert_request(cls, settings: Any) -> ExpertRequest | None:
        """Return what the method reads of the expert trajectories, or ``None`` where it uses none."""
        return None

    @classmethod
    def for_device(cls, settings: Any, device: torch.device, smallest_class: int) -> Any:
        """Return settings with those of execution that are left to the device chosen: how many classes at once, say.

        ``smallest_class``: how many training images the smallest class has.
        """
        return settings

    @classmethod
    def probe(cls, settings: Any) -> tuple[Any, float]:
        """Return settings an iteration of which takes ``1 / factor`` of the time, and the factor: for estimates."""
        return settings, 1.0

    @classmethod
    def memory_probe(cls, settings: Any, ipc: int) -> Any:
        """Return settings whose iteration needs the same memory at its peak, but is shorter: for predictions."""
        return settings

    @abstractmethod
    def setup(self, problem: Problem) -> None:
        """Take the problem and make the state before iteration 0; a resumed run then calls ``load_state_dict``."""

    def iterate(self, iteration: int) -> IterationRecord:
        """Make iteration number ``iteration`` (from 0): one update of the images.

        Every random number comes from ``problem.generator(role, iteration, ...)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no iterations")

    def gradients(self, iteration: int) -> tuple[IterationRecord, Mapping[str, Tensor]]:
        """Return what iteration ``iteration`` would descend along, by the name of what is learned; change nothing.

        Optional. With it ``dcbench compare gradient`` holds a method of trajectory matching against ``mtt``; it may be
        asked with images and experts in float64, and then answers in float64.
        """
        raise NotImplementedError(f"{type(self).__name__} does not show its gradient")

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything iterations change, as named tensors; with it and the settings a run can be resumed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {', '.join(state)}")

    def notes(self) -> list[str]:
        """Return what a user should know of the finished condensation: told at the end and kept with the result."""
        return []

    @abstractmethod
    def distilled(self) -> DistilledSet:
        """Return the distilled set as it stands, complete, on the CPU."""


class Evaluator(ABC):
    """One network and the recipe that trains it on a distilled set.

    Registered in the entry-point group ``dcbench.evaluators``. ``version`` is raised whenever the same settings give
    another result. ``on_the_way``: whether it also tests the sets of iterations on the way (``evaluation.every``), or
    only the last one. ``compiles``: whether a run that compiles what it can compiles its training
    (:class:`~dcbench_tesla.compute.compiling.TrainingStep`). Settings with a field ``networks`` say how many it trains;
    0: as ``evaluation.networks`` says.
    """

    version: ClassVar[int] = 1
    on_the_way: ClassVar[bool] = True
    compiles: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def recipe(self) -> str:
        """The recipe's name, a column of every row: ``published``, ``quick``, ``learned-lr`` ..."""

    @abstractmethod
    def cost(self, distilled: DistilledSet) -> int:
        """Return how many SGD steps training one network on ``distilled`` takes: for estimates."""

    @classmethod
    def probe(cls, settings: Any) -> Any:
        """Return settings whose training takes few steps, each as long as with ``settings``: for estimates."""
        return settings

    @classmethod
    def without_effect(cls, settings: Any, *, learned_lr: bool) -> Mapping[str, str]:
        """Return the settings without effect, with the reason, on sets that have (not) a ``learned_lr``."""
        inert: Mapping[str, str] = settings.inert()
        return inert

    @abstractmethod
    def train(self, distilled: DistilledSet, seeds: Sequence[int], device: torch.device) -> list[nn.Module]:
        """Train a fresh network for every seed on ``distilled``; return them in evaluation mode on ``device``."""
