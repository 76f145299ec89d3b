"""Workloads to measure: one iteration of any method, or of training experts, without data files.

The images are noise and the experts are random. Neither memory nor time depends on their values; reports of such
measurements say that the inputs were synthetic.

Shapes: N images, C channels, H = W = side, K classes, P parameters.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dcbench_tesla import registry
from dcbench_tesla.compute.networks import Network, flatten_parameters, has_batch_norm, largest_activation, seeded
from dcbench_tesla.config import ExpertSettings, NetworkSettings
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.errors import UsageError, unknown_name
from dcbench_tesla.experts.training import train_epoch
from dcbench_tesla.interface import Condenser, Problem, Sizes, Task
from dcbench_tesla.profilers.memory import Prepare
from dcbench_tesla.profilers.origins import origin

_REAL_PER_CLASS = 256  # real images of a class in a batch, in the published settings
_EXPERTS = 2
_MOVE_PER_EPOCH = 0.001  # relative change of a stand-in expert's parameters per epoch
_AUGMENTATION = Augmentation()
_MEAN, _STD = 0.5, 0.25  # approximately those of uniform noise


@dataclass(frozen=True)
class Shape:
    """The shape of a data set's images, ``channels`` x ``side`` x ``side``, and its number of ``classes``."""

    name: str
    channels: int
    side: int
    classes: int

    @classmethod
    def of(cls, dataset: str) -> Self:
        """Return the shape of a registered data set; its files are not needed.

        Raises:
            UsageError: no data set of that name is registered.
        """
        source = registry.load_source(dataset)
        return cls(source.name, source.channels, source.side, source.classes)


def workload(
    method: str,
    shape: Shape,
    *,
    ipc: int = 1,
    steps: int | None = None,
    batch_size: int | None = None,
    width: int = 128,
    depth: int = 0,
    network: NetworkSettings | None = None,
    device: torch.device | str,
    settings: Mapping[str, Any] | None = None,
    augmentation: Augmentation = _AUGMENTATION,
    per_class: int | None = None,
    shortened: bool = False,
    compile: bool = False,
    chosen_for: torch.device | None = None,
) -> Prepare:
    """Return a function that sets up a condenser and returns its iteration 0, which can be run repeatedly.

    Stand-ins for things outside the method (the training set, which a real run may or may not keep on its device, and
    the experts' files) are made here, before a meter counts.

    Args:
        method: a registered method.
        shape: the images and classes.
        ipc: synthetic images per class.
        steps: matching steps T; ``None``: the method's default. Ignored by methods without this setting.
        batch_size: synthetic images per matching step, likewise.
        width: filters of the ConvNet.
        depth: blocks of the ConvNet; 0: by image size.
        network: the network, in place of a ConvNet of that width and depth.
        device: where the tensors are; that of the meter.
        settings: further settings of the method, by name.
        augmentation: augmentation of matching.
        per_class: training images of every class; ``None``: enough for the method's real batch.
        shortened: use the shorter iteration with the same peak memory that the method offers
            (:meth:`~dcbench_tesla.interface.Condenser.memory_probe`).
        compile: compile the steps of a method that supports it.
        chosen_for: the device for which device-dependent settings are chosen; ``None``: ``device``.

    Raises:
        UsageError: the method is unknown, has no iterations or lacks a setting; ``ipc`` is less than 1; or the
            network does not fit the images.
    """
    kind = registry.load_method(method)
    chosen = _settings(method, kind, {"steps": steps, "batch_size": batch_size}, settings or {})
    if not kind(chosen).iterations:
        raise UsageError(f"{method} has no iterations to measure.")
    if ipc < 1:
        raise UsageError(f"ipc must be at least 1, not {ipc}.")
    per_class = per_class or _real_per_class(chosen, ipc)
    build = _network(shape, network or NetworkSettings(width=width, depth=depth))
    with torch.device("meta"):
        skeleton = build()
    activation = largest_activation(skeleton, shape.channels, shape.side)
    coupled = has_batch_norm(skeleton)
    sizes = Sizes(smallest_class=per_class, images=ipc * shape.classes, activation=activation, coupled=coupled)
    chosen = kind.for_device(chosen, chosen_for or torch.device(device), sizes)
    if shortened:
        chosen = kind.memory_probe(chosen, ipc)
    train = _Noise(shape, per_class, torch.device(device))
    problem = _problem(kind, chosen, shape, ipc, build, train, augmentation, compile)

    def prepare() -> Callable[[], object]:
        condenser = kind(chosen)
        with origin("inputs"):
            condenser.setup(problem)

        def run() -> object:
            with origin("graph"):
                return condenser.iterate(0)

        return run

    return prepare


def expert_workload(
    shape: Shape,
    settings: ExpertSettings,
    *,
    network: NetworkSettings,
    device: torch.device | str,
    augmentation: Augmentation = _AUGMENTATION,
) -> Prepare:
    """Return a function that sets up an expert's network and returns one epoch of one batch, like :func:`workload`.

    The arguments are those of :func:`workload`; ``settings.batch_size`` is the number of images in the batch.
    """
    device = torch.device(device)
    train = _Noise(dataclasses.replace(shape, classes=1), settings.batch_size, device)  # the class does not matter
    build = _network(shape, network)

    def prepare() -> Callable[[], object]:
        with seeded(0), origin("parameters"):
            expert = build().to(device)

        def run() -> object:
            with origin("graph"):
                return train_epoch(expert, train, settings, augmentation, 0, 0)

        return run

    return prepare


def _settings(method: str, kind: type[Condenser], asked: Mapping[str, int | None], further: Mapping[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(kind.Settings)}
    for name in further:
        if name not in known:
            raise unknown_name(f"setting of {method}", name, known)
    heeded = {name: value for name, value in asked.items() if name in known and value is not None}
    return kind.Settings(**{**heeded, **further})


def _network(shape: Shape, settings: NetworkSettings) -> Callable[[], Network]:
    def build() -> Network:
        with origin("parameters"):
            return settings.build(shape.channels, shape.classes, shape.side)

    def build_or_sketch() -> Network:
        if torch.get_default_device().type != "meta":
            return build()
        with _disable_current_modes():  # a skeleton has no memory, even where meta tensors stand for real ones
            return build()

    return build_or_sketch


def _real_per_class(settings: Any, ipc: int) -> int:
    return max(ipc, int(getattr(settings, "real_batch", _REAL_PER_CLASS)))


def _problem(
    kind: type[Condenser],
    settings: Any,
    shape: Shape,
    ipc: int,
    build: Callable[[], Network],
    train: LabelledImages,
    augmentation: Augmentation,
    compile: bool,
) -> Problem:
    with seeded(0):
        experts = _StandIns(flatten_parameters(build()), train.device)
    return Problem(
        task=Task(
            dataset=shape.name,
            fingerprint="",
            channels=shape.channels,
            side=shape.side,
            class_names=tuple(map(str, range(shape.classes))),
            preprocessing=train.preprocessing,
            augmentation=augmentation,
        ),
        train=train,
        ipc=ipc,
        seed=0,
        device=train.device,
        build_network=build,
        experts=experts if kind.expert_request(settings) is not None else None,
        compile=compile,
    )


class _Noise(LabelledImages):
    """``per_class`` images of every class on the device, as overlapping windows of one strip of noise.

    Each image starts one pixel after the one before, so even a thousand classes take one byte per image. The real
    training set, which would be on the device if it fits, does not count as memory of the method.
    """

    def __init__(self, shape: Shape, per_class: int, device: torch.device) -> None:
        statistics = torch.full((shape.channels,), _MEAN), torch.full((shape.channels,), _STD)
        count, area = per_class * shape.classes, shape.side**2
        size = (count, shape.channels, shape.side, shape.side)
        strides = (1, area, shape.side, 1)
        rng = torch.Generator().manual_seed(0)
        strip = torch.randint(0, 256, (count + shape.channels * area,), generator=rng, dtype=torch.uint8)
        super().__init__(
            strip.as_strided(size, strides),
            torch.arange(shape.classes).repeat_interleave(per_class),
            classes=shape.classes,
            max_value=255,
            preprocessing=Preprocessing("standardise", *statistics),
            device=device,
        )
        values = (strip.float() / 255 - _MEAN) / _STD
        self._prepared = values.to(device).as_strided(size, strides)
        self.members = torch.arange(count).chunk(shape.classes)  # computed lazily elsewhere, and then metered


class _StandIns:
    """Experts that were never trained: one freshly initialised network, changed a little per expert and epoch."""

    def __init__(self, start: Tensor, device: torch.device) -> None:
        self._start, self._device = start, device

    def __len__(self) -> int:
        return _EXPERTS

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        with origin("parameters"):
            return (self._start * (1 + _MOVE_PER_EPOCH * (expert + epoch))).to(self._device)
