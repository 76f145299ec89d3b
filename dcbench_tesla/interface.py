"""The contracts: Condenser, Evaluator, and the DistilledSet that passes between them.

A *condenser* owns one iteration (one update of the images); the core owns the loop, and with it progress,
checkpoints, the evaluation schedule, seeds and the guard against NaN. An *evaluator* owns one network and the recipe
that trains it on a distilled set. Neither knows the other.

Shapes: N synthetic images, C channels, H = W = side, K classes, P parameters.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from dcbench_tesla.compute.networks import Network
from dcbench_tesla.compute.seeds import generator, seed_for
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import PROBABILITIES, Decoder, DistilledSet, Steps
from dcbench_tesla.errors import UsageError

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
    "Teacher",
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of a plugin's hyper-parameters: a frozen, keyword-only dataclass of int, float, bool and str fields.

    ``--set name=value`` sets the field of that name; every field has a default. A subclass checks its values in
    ``__post_init__`` and raises :class:`~dcbench_tesla.errors.UsageError`, which says what to give instead.
    """

    def inert(self) -> Mapping[str, str]:
        """Return the fields that have no effect given the values of the others, each with the reason.

        A user who sets such a field gets a :class:`~dcbench_tesla.errors.UsageError` with that reason.
        """
        return {}


@dataclass(frozen=True, kw_only=True)
class ExpertRequest:
    """What a condenser reads of the expert trajectories.

    Attributes:
        epochs: the last epoch that is read; experts are trained for so many epochs, with a snapshot at the start and
            after each of them.
        count: how many experts the method reads; ``None``: as many as the setting ``experts.count`` says.
        asked_by: the settings that make ``epochs`` so large, for the message where imported experts have fewer.
    """

    epochs: int
    count: int | None = None
    asked_by: tuple[str, ...] = ()


class ExpertSource(Protocol):
    """Expert trajectories: networks trained on the real images, each with a flat parameter vector for every epoch."""

    def __len__(self) -> int:
        """Return the number of experts."""
        ...

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return one expert's parameters after ``epoch`` epochs: ``(P,)``, float32, on the run's device.

        The parameters stand in the order of ``network.parameters()``; epoch 0 is the initialisation.

        Args:
            expert: number of the expert, from 0.
            epoch: number of epochs it was trained, from 0.

        Raises:
            CorruptFileError: the snapshot's file is damaged.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every network of a run sees: the images' shape, the classes, the preprocessing and the augmentation.

    Attributes:
        dataset: name of the data set.
        fingerprint: hash of its images and labels, 16 hex digits.
        channels: number of colour channels C.
        side: height and width of the images in pixels, H = W.
        class_names: names of the K classes, in the order of the labels.
        preprocessing: the fitted map from pixels in [0, 1] to what networks see.
        augmentation: the differentiable augmentation (DSA) that networks are trained with.
        redistributable: whether the images may be passed on.
    """

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
    """What a condenser is given: the training images, how many images to make of them, and what it needs for that.

    Attributes:
        task: shape, classes, preprocessing and augmentation of the data.
        train: the training images without those held out for validation; it makes batches of network inputs, float32
            ``(B, C, H, W)``, on the run's device.
        ipc: synthetic images per class; N = IPC x K.
        seed: the cell's seed, from which :meth:`seed_for` derives all others.
        device: where to compute.
        build_network: returns a freshly initialised network of the run, on the CPU; inside
            :func:`dcbench_tesla.compute.networks.seeded` its initialisation can be repeated.
        experts: the expert trajectories; ``None`` unless the condenser asked for them by
            :meth:`Condenser.expert_request`.
        compile: whether the condenser is to compile what it repeats, if it can (``Condenser.compiles``).
    """

    task: Task
    train: LabelledImages
    ipc: int
    seed: int
    device: torch.device
    build_network: Callable[[], Network]
    experts: ExpertSource | None = None
    compile: bool = False

    def seed_for(self, role: str, *repetition: int) -> int:
        """Return the seed for one role of random numbers ("start images") and its repetition (an iteration, a class).

        It is derived from the cell's seed and never from the clock, so that a run can be repeated.
        """
        return seed_for(self.seed, role, *repetition)

    def generator(self, role: str, *repetition: int) -> torch.Generator:
        """Return a CPU generator seeded by :meth:`seed_for`.

        A generator for every iteration, not one for the run: then a resumed run draws the same numbers, and no
        generator's state needs to be saved.
        """
        return generator(self.seed, role, *repetition)

    def draw_real(self, role: str, *repetition: int, per_class: int = 0) -> Tensor:
        """Draw training images of every class at random, none of them twice before all of its class are drawn.

        Args:
            role: the role of the random numbers.
            repetition: its repetition.
            per_class: images of a class; 0: IPC.

        Returns:
            Their indices into ``train``, int64, ordered by class.
        """
        rng, count = self.generator(role, *repetition), per_class or self.ipc
        orders = [members[torch.randperm(len(members), generator=rng)] for members in self.train.members]
        return torch.cat([order.repeat(-(-count // len(order)))[:count] for order in orders])

    def hard_labels(self) -> Tensor:
        """Return the hard labels of N images ordered by class, int64 ``(N,)``: IPC times 0, IPC times 1, ..."""
        return torch.arange(self.task.classes).repeat_interleave(self.ipc)

    def distilled(
        self,
        images: Tensor,
        labels: Tensor,
        lr: float | None = None,
        *,
        steps: Steps | None = None,
        label_space: str = PROBABILITIES,
        decoder: Decoder | None = None,
        training_steps: int = 0,
    ) -> DistilledSet:
        """Return ``images`` and ``labels`` as a distilled set, with what its users need to know of the task.

        The tensors are copied to the CPU, so that later iterations do not change the set.

        Args:
            images: float32 ``(N, C, H, W)`` in network space, or uint8 pixels of chosen real images.
            labels: int64 ``(N,)``, or float32 ``(N, K)`` in ``label_space``.
            lr: the learning rate that was learned for training on the set, if any.
            steps: the training steps, if a rate was learned for each of them; ``lr`` is then left out.
            label_space: ``probabilities`` or ``centred``.
            decoder: how ``images`` become the images to train on, if they are a stored form.
            training_steps: the number of optimiser steps that was found best for training on the set, if one was.

        Raises:
            UsageError: shapes or types do not fit together.
            DivergedError: a number is not finite.
        """
        return DistilledSet(
            images=images.detach().clone().cpu(),
            labels=labels.detach().clone().cpu(),
            lr=lr,
            steps=None if steps is None else Steps(*(t.detach().clone().cpu() for t in (steps.rates, steps.batches))),
            label_space=label_space,
            decoder=decoder,
            training_steps=training_steps,
            class_names=self.task.class_names,
            preprocessing=self.task.preprocessing,
            augmentation=self.task.augmentation.strategy,
            max_value=self.train.max_value,
        )


@dataclass(frozen=True, kw_only=True)
class IterationRecord:
    """What one iteration reports.

    Attributes:
        loss: the loss before the update; the core ends a run whose loss is not finite by
            :class:`~dcbench_tesla.errors.DivergedError`.
        metrics: further numbers by name, which go to ``metrics.jsonl`` and the live logs.
    """

    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes from which a method chooses the settings that depend on the device.

    Args:
        smallest_class: number of training images of the smallest class.
        images: number of synthetic images N.
        activation: numbers in the network's largest activation for one image.
        coupled: whether the network's output for an image depends on the others of its batch (batch norm).
    """

    smallest_class: int
    images: int
    activation: int
    coupled: bool = False


class Condenser(ABC):
    """A method of dataset condensation: its settings, one iteration, its state, and its distilled set.

    A subclass is registered in the entry-point group ``dcbench.methods``; the first line of its docstring is shown in
    listings. A method without iterations, such as a selection of real images, has no setting ``iterations``.

    Attributes:
        settings: the method's settings, an instance of its ``Settings``.
        version: whole number, to be raised whenever the same settings give another result; part of a cell's key.
        uses_ipc: whether the number of images per class matters.
        uses_network: whether the network of the run matters.
        learns_lr: whether its distilled sets carry a learned learning rate.
        compiles: whether it compiles what it repeats where ``Problem.compile`` asks for it.
        divides_batch_norm: whether its setting ``micro_batch`` leaves the result as it is for networks with batch norm
            too, so that a memory budget may choose it.
        evaluation_recipe: the name of the recipe by which its authors train networks on its sets, one of
            :func:`dcbench_tesla.presets.recipes.names`; empty where they use none of their own. The core writes it into
            every set.
        Settings: the class of its settings.
    """

    version: ClassVar[int] = 1
    uses_ipc: ClassVar[bool] = True
    uses_network: ClassVar[bool] = True
    learns_lr: ClassVar[bool] = False
    divides_batch_norm: ClassVar[bool] = False
    evaluation_recipe: ClassVar[str] = ""
    compiles: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def compiled(self) -> bool:
        """Whether what it repeats does run compiled; known after :meth:`setup`."""
        return False

    @property
    def iterations(self) -> int:
        """Number of iterations that the core runs; the setting of that name, or 0 where there is none."""
        return int(getattr(self.settings, "iterations", 0))

    @classmethod
    def expert_request(cls, settings: Any) -> ExpertRequest | None:
        """Return what the method reads of the expert trajectories, or ``None`` where it uses none."""
        return None

    @classmethod
    def for_device(cls, settings: Any, device: torch.device, sizes: Sizes) -> Any:
        """Return the settings with those filled in that depend on the device, such as how many images at once.

        Only settings that change the result by rounding at most may be chosen here: those marked ``execution``.

        Args:
            settings: the settings as the user gave them.
            device: where the run computes.
            sizes: what a chunk of images amounts to.
        """
        return settings

    @classmethod
    def refuses_batch_norm(cls, settings: Any) -> str:
        """Return why the method cannot use a network with batch norm, or an empty text if it can.

        While such a network trains, its outputs for an image depend on the other images of the batch; afterwards they
        depend on running statistics, which the experts' snapshots do not hold. A method that allows for both returns an
        empty text.
        """
        return "it takes the outputs for an image to depend on that image and the parameters only"

    @classmethod
    def probe(cls, settings: Any) -> tuple[Any, float]:
        """Return settings with a shorter iteration, and how many times longer one with ``settings`` takes.

        Estimates of a run's time measure the shorter iteration and multiply.
        """
        return settings, 1.0

    @classmethod
    def memory_probe(cls, settings: Any, ipc: int) -> Any:
        """Return settings with a shorter iteration that has the same peak of memory; predictions of memory use them.

        Args:
            settings: the settings to predict for.
            ipc: images per class.
        """
        return settings

    @classmethod
    def stand_in(cls, settings: Any, distilled: DistilledSet) -> DistilledSet:
        """Return ``distilled``, a set of real images, with what else a set of the method has; estimates evaluate it.

        A method overrides this if its sets have learned steps, a decoder or centred labels.

        Args:
            settings: the method's settings.
            distilled: IPC real images a class, as uint8 pixels, with the method's evaluation recipe.
        """
        return distilled

    @abstractmethod
    def setup(self, problem: Problem) -> None:
        """Take the problem and make the state before iteration 0; a resumed run calls :meth:`load_state_dict` next.

        Raises:
            UsageError: this device or this problem does not allow the settings.
        """

    def iterate(self, iteration: int) -> IterationRecord:
        """Make iteration number ``iteration`` (from 0): one update of the images.

        Every random number comes from ``problem.generator(role, iteration, ...)``. The loss and the state need not be
        checked for NaN: the core does that.

        Raises:
            NotImplementedError: the method has no iterations.
        """
        raise NotImplementedError(f"{type(self).__name__} has no iterations")

    def gradients(self, iteration: int) -> tuple[IterationRecord, Mapping[str, Tensor]]:
        """Return the record and the gradients of one iteration without making it.

        Optional: ``dcbench compare gradient`` uses it to compare a method of trajectory matching with ``mtt``. Where
        images and experts are float64, so are the gradients.

        Returns:
            The iteration's record, and the gradient of everything that is learned, by name and in its shape, for
            instance ``images`` ``(N, C, H, W)``.

        Raises:
            NotImplementedError: the method does not show its gradients.
        """
        raise NotImplementedError(f"{type(self).__name__} does not show its gradient")

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that iterations change, as named tensors; a checkpoint consists of them.

        Names, shapes and types are those after :meth:`setup` throughout: a checkpoint is held to them.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` returned; the next iteration then gives what it would have given.

        Raises:
            ValueError: there is a state, but the method keeps none.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {', '.join(state)}")

    def notes(self) -> list[str]:
        """Return sentences on what a user should know of the finished condensation; printed, and kept in its row."""
        return []

    @abstractmethod
    def distilled(self) -> DistilledSet:
        """Return the distilled set as it is now: images ``(N, C, H, W)`` and labels, on the CPU.

        Raises:
            DivergedError: a number is not finite.
        """


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network that labels the batches on which an evaluator trains another one.

    Attributes:
        network: the network, in evaluation mode; it maps ``(B, C, H, W)`` in network space to logits ``(B, K)``.
        temperature: t.
    """

    network: nn.Module
    temperature: float = 1.0

    @torch.no_grad()
    def labels(self, images: Tensor) -> Tensor:
        """Return ``softmax(network(images) / t)``, ``(B, K)``."""
        logits: Tensor = self.network(images)
        return (logits / self.temperature).softmax(1)


class Evaluator(ABC):
    """One network and the recipe that trains it on a distilled set.

    A subclass is registered in the entry-point group ``dcbench.evaluators``; the first line of its docstring is shown
    in listings. Where its settings have a field ``networks``, that is how many networks are trained; 0 means as many
    as ``evaluation.networks`` says.

    Attributes:
        settings: the evaluator's settings, an instance of its ``Settings``.
        version: whole number, to be raised whenever the same settings give another result; part of an evaluation's
            key.
        on_the_way: whether it tests the sets that ``evaluation.every`` keeps too, not only the last one.
        compiles: whether its training is compiled in a run that compiles
            (:class:`dcbench_tesla.compute.compiling.TrainingStep`).
        whole_sets: whether it is given sets as they are. Otherwise the core hands over
            :meth:`~dcbench_tesla.distilled.DistilledSet.plain` ones: decoded, without centred labels and learned steps.
        learns_from_teacher: whether it can train by a teacher's labels for every augmented batch
            (:meth:`with_teacher`).
        teacher: the teacher to train by; ``None``: the labels of the set count.
        Settings: the class of its settings.
    """

    version: ClassVar[int] = 1
    on_the_way: ClassVar[bool] = True
    compiles: ClassVar[bool] = False
    whole_sets: ClassVar[bool] = False
    learns_from_teacher: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = Settings

    teacher: Teacher | None = None

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def with_teacher(self, teacher: Teacher) -> Self:
        """Return this evaluator with a teacher, by whose labels :meth:`train` trains in place of those of the set.

        The teacher labels each batch as the network sees it, augmented. With p the teacher's labels and z the network's
        logits, the loss is ``t^2 KL(p || softmax(z / t))``, mean over the images of the batch.

        Raises:
            UsageError: the evaluator does not learn from a teacher.
        """
        if not self.learns_from_teacher:
            raise UsageError(f"{type(self).__name__} does not learn from a teacher: give it the labels of the set.")
        other = copy.copy(self)
        other.teacher = teacher
        return other

    @classmethod
    def uses_seed(cls, settings: Any) -> bool:
        """Return whether networks of different seeds differ; otherwise the core trains one and no more."""
        return True

    @classmethod
    def for_networks(cls, name: str, build: Callable[[int, int, int], nn.Module]) -> "type[Evaluator]":
        """Return an evaluator that trains other networks by this one's settings and recipe.

        Args:
            name: the name of its class.
            build: returns a freshly initialised network, called with channels, classes and the images' side in pixels.

        Raises:
            NotImplementedError: this evaluator's recipe is for its own network only.
        """
        raise NotImplementedError(f"{cls.__name__} trains its own network only")

    def given(self, distilled: DistilledSet) -> DistilledSet:
        """Return the set as :meth:`train` and :meth:`cost` take it, whole or plain."""
        return distilled if self.whole_sets else distilled.plain()

    def recipe_of(self, evaluation_recipe: str) -> str:
        """Return the recipe's name in rows for sets whose authors evaluate by ``evaluation_recipe`` (may be empty)."""
        return self.recipe

    @property
    @abstractmethod
    def recipe(self) -> str:
        """The recipe's name in rows and tables, such as ``published`` or ``learned-lr``."""

    @abstractmethod
    def cost(self, distilled: DistilledSet) -> int:
        """Return how many optimiser steps training one network on ``distilled`` takes; estimates use it."""

    @classmethod
    def probe(cls, settings: Any) -> Any:
        """Return settings whose training takes few steps, each as long as with ``settings``; estimates use them."""
        return settings

    @classmethod
    def without_effect(cls, settings: Any, *, learned_lr: bool) -> Mapping[str, str]:
        """Return the settings that have no effect, each with the reason.

        Args:
            settings: the evaluator's settings.
            learned_lr: whether the sets to be evaluated carry a learned learning rate.
        """
        inert: Mapping[str, str] = settings.inert()
        return inert

    @abstractmethod
    def train(self, distilled: DistilledSet, seeds: Sequence[int], device: torch.device) -> list[nn.Module]:
        """Train a freshly initialised network for every seed on a distilled set.

        Args:
            distilled: the set, with images ``(N, C, H, W)`` and K classes; it must not be changed.
            seeds: one for each network; the same seed gives the same network.
            device: where to compute.

        Returns:
            The networks, in the order of the seeds, in evaluation mode on ``device``. Each maps inputs
            ``(B, C, H, W)`` in network space to logits ``(B, K)``.

        Raises:
            UsageError: the network cannot take such images.
            DivergedError: training ended in NaN; the network counts with the accuracy of chance.
        """
