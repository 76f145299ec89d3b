"""The configuration of a cell: its settings from the defaults, a preset, a file and the command line, in that order.

A *cell* is (method, data set, IPC, seed) with a value for every setting. Settings are grouped in sections::

    steps=20                a setting of the method
    data.validation=0.1     how the data set is split and preprocessed            (DataSettings)
    network.width=64        the network of the experts and of matching            (NetworkSettings)
    experts.count=10        the expert trajectories                               (ExpertSettings)
    evaluation.networks=3   when to evaluate, and with how many networks          (EvaluationSettings)
    convnet.epochs=300      a setting of the evaluator ``convnet``
"""

import dataclasses
import inspect
import json
import math
import re
import reprlib
import shlex
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from dcbench_tesla import registry
from dcbench_tesla.data.settings import DataSettings
from dcbench_tesla.errors import CorruptFileError, UsageError, require, unknown_name
from dcbench_tesla.presets import Rule, rules_of
from dcbench_tesla.presets.recipes import AUTHORS, PUBLISHED, authors_recipe, names
from dcbench_tesla.presets.released import in_released_code
from dcbench_tesla.records.regular import regular_file

if TYPE_CHECKING:
    from dcbench_tesla.compute.networks import Network

UNPUBLISHED = "defaults"
BASELINE = "random"
"""The method that all others are compared with."""

OWN_LABELS, HARD_LABELS, TEACHER_LABELS = "set", "hard", "teacher"
"""The label regimes: the set's own labels, its classes, or those of a teacher for every augmented batch."""
REGIMES = (OWN_LABELS, HARD_LABELS, TEACHER_LABELS)
_OF_THE_TEACHER = ("evaluation.teacher_epochs", "evaluation.temperature")
_CHANGED = ", changed: "
_SETS = re.compile(r", (\d+) of (\d+) sets")
_TUNED = re.compile(r", tuned \(\d+ trials\)")
_NORMS = ("auto", "instance", "batch", "group", "none")
_BEYOND = 1 << 62  # whole numbers are counted in 64 bits
_MOST_TOML = 1 << 20  # bytes
_MOST_SNAPSHOTS = 100_000  # each is a file, and networks are trained on each


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The network of the experts and of matching.

    Args:
        name: ``convnet``, ``lenet``, ``alexnet-cifar``, ``frepo`` or another registered network (``dcbench list
            networks``).
        width: filters per convolution; of the first one where the width changes.
        depth: number of blocks; 0 stands for ``log2(side) - 2``.
        norm: ``instance``, ``batch``, ``group`` or ``none``; ``auto`` is that of the published network: ``instance``
            for ``convnet``, ``batch`` for ``frepo``.
    """

    name: str = "convnet"
    width: int = 128
    depth: int = 0
    norm: str = "auto"

    def __post_init__(self) -> None:
        if self.norm not in _NORMS:
            raise unknown_name("network.norm", self.norm, _NORMS)
        require(self.width >= 1, f"network.width must be at least 1, not {self.width}.")
        require(self.depth >= 0, f"network.depth must be 0 (by image size) or more, not {self.depth}.")

    def options(self) -> dict[str, Any]:
        """Return the options that the network has, with its own norm in place of ``auto``.

        Raises:
            UsageError: there is no network of this name.
            DcbenchError: it cannot be imported.
        """
        taken = inspect.signature(registry.load_network(self.name)).parameters
        found = {name: getattr(self, name) for name in ("width", "depth", "norm") if name in taken}
        return found if self.norm != "auto" or "norm" not in found else {**found, "norm": taken["norm"].default}

    def facts(self, side: int) -> dict[str, Any]:
        """Return what identifies the network for images of ``side`` pixels: name and options, with the actual depth.

        The norm counts only if it is not the network's own, and the version only above 1, so that networks on record
        keep their keys.

        Raises:
            UsageError: there is no network of this name, or the images are too small for it.
        """
        kind, found = registry.load_network(self.name), self.options()
        if "depth" in found:
            found["depth"] = found["depth"] or kind.default_depth(side)
        if found.get("norm") == dataclasses.replace(self, norm="auto").options().get("norm"):
            found.pop("norm", None)
        return {"name": self.name, **found} | ({"version": kind.version} if kind.version > 1 else {})

    def build(self, channels: int, classes: int, side: int) -> "Network":
        """Return a freshly initialised network for images ``(N, channels, side, side)`` of ``classes`` classes.

        Raises:
            UsageError: there is no network of this name, or it does not take such images or options.
        """
        return registry.load_network(self.name)(channels, classes, side, **self.options())


@dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """The expert trajectories: networks trained by SGD on the real images, plain or with GSAM (flat experts).

    As in the published recipe there is no momentum, weight decay or learning-rate schedule. An expert can therefore be
    trained further from its last snapshot.

    Args:
        count: number of experts. With ``imported`` the default is all that were imported.
        lr: learning rate.
        batch_size: images per step.
        gsam_rho: radius of the adaptive GSAM steps that make flat experts, as FTD and DATM use them; 0: plain SGD. A
            step then takes two gradients, and twice the time.
        gsam_alpha: weight of GSAM's second term, the part of the gradient that is orthogonal to the perturbed one.
        imported: use the experts that ``dcbench import experts`` imported under this key, beginning of a key or name,
            and train none.
        micro_batch: images in a network at once, for less memory; 0: all. It changes experts by rounding only, and is
            no part of their key.
    """

    count: int = 100
    lr: float = 0.01
    batch_size: int = 256
    gsam_rho: float = 0.0
    gsam_alpha: float = 0.0
    imported: str = ""
    micro_batch: int = field(default=0, metadata={"execution": True})

    def __post_init__(self) -> None:
        require(self.micro_batch >= 0, f"experts.micro_batch must be 0 (all) or more, not {self.micro_batch}.")
        for name in ("gsam_rho", "gsam_alpha"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"experts.{name} must be finite and not negative, not {value}.")
        require(self.count >= 1, f"experts.count must be at least 1, not {self.count}.")
        require(0 < self.lr < math.inf, f"experts.lr must be positive and finite, not {self.lr}.")
        require(self.batch_size >= 1, f"experts.batch_size must be at least 1, not {self.batch_size}.")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """When distilled sets are evaluated, and with how many freshly initialised networks.

    Args:
        networks: networks that are trained on the final distilled set.
        every: iterations between snapshots of the distilled set, which are evaluated as well; 0 evaluates the final
            set only.
        networks_on_the_way: networks that are trained on each of these snapshots.
        sets: sets that are condensed, with as many seeds from that of the run on: ``dcbench run`` makes a cell of each.
        labels: the labels that networks are trained with: ``set`` for the set's own, ``hard`` for the most likely class
            of each image, or ``teacher`` for those of a trained network on every augmented batch.
        teacher_epochs: the teacher is expert 0 after so many epochs of plain SGD on the real images.
        temperature: t of the loss ``t^2 KL(softmax(teacher / t) || softmax(network / t))``.
    """

    networks: int = 5
    every: int = 0
    networks_on_the_way: int = 5
    sets: int = 1
    labels: str = field(default=OWN_LABELS, metadata={"later": True})
    teacher_epochs: int = field(default=20, metadata={"later": True})
    temperature: float = field(default=1.0, metadata={"later": True})

    def __post_init__(self) -> None:
        require(self.networks >= 1, f"evaluation.networks must be at least 1, not {self.networks}.")
        require(self.every >= 0, f"evaluation.every must be 0 (only at the end) or more, not {self.every}.")
        require(self.networks_on_the_way >= 1, "evaluation.networks_on_the_way must be at least 1.")
        require(self.sets >= 1, f"evaluation.sets must be at least 1, not {self.sets}.")
        if self.labels not in REGIMES:
            raise unknown_name("evaluation.labels", self.labels, REGIMES)
        require(self.teacher_epochs >= 1, f"evaluation.teacher_epochs must be at least 1, not {self.teacher_epochs}.")
        told = f"evaluation.temperature must be positive and finite, not {self.temperature}."
        require(0 < self.temperature < math.inf, told)


SECTIONS: Mapping[str, type] = {
    "data": DataSettings,
    "network": NetworkSettings,
    "experts": ExpertSettings,
    "evaluation": EvaluationSettings,
}


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """The resolved configuration of one cell: everything that defines its result, and the name of its protocol.

    ``protocol`` starts with the name of the preset. Where the preset is ``paper`` but nobody published settings for
    this cell, it says whose settings were taken (``paper, settings of MTT``), or ``defaults`` for those of the code.
    The settings that a file or the command line changed follow. ``condense_protocol`` is the same without changes of
    the evaluation, which do not affect the distilled set. Both label rows and are part of no key.
    """

    method: str
    dataset: str
    ipc: int
    seed: int
    protocol: str
    condense_protocol: str
    source: str
    settings: Any
    data: DataSettings
    network: NetworkSettings
    experts: ExpertSettings
    evaluation: EvaluationSettings
    evaluators: Mapping[str, Any]
    command: str = ""
    preset: str = ""
    changed: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as values that JSON can hold."""
        return dataclasses.asdict(self)

    @property
    def changes(self) -> dict[str, str]:
        """The settings that were changed, with their values as text."""
        return {label: as_text(self.value(label)) for label in self.changed}

    def value(self, label: str) -> Any:
        """Return the value of a setting by the name users write, whether or not it was changed."""
        section, _, name = label.rpartition(".")
        of_evaluator = self.evaluators.get(section)
        return getattr(of_evaluator or getattr(self, section or "settings"), name)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "CellConfig":
        """Return the configuration that :meth:`as_dict` wrote. All settings come from ``content``, none from a preset.

        Raises:
            UsageError: a plugin is not installed, or its settings are not those of ``content``.
        """
        kinds = _kinds(content["method"], content["evaluators"])
        if wrong := wrong_setting(content):
            raise UsageError(f"the configuration was written by another version of dcbench ({wrong}).")
        try:
            return cls(
                **{
                    **content,
                    **{section: kinds[section](**content[section]) for section in ("settings", *SECTIONS)},
                    "evaluators": {name: kinds[name](**given) for name, given in content["evaluators"].items()},
                    "changed": tuple(content["changed"]),
                }
            )
        except TypeError as error:
            raise UsageError(f"the configuration was written by another version of dcbench ({error}).") from error


@dataclass(frozen=True)
class Override:
    """One setting given in a file or on the command line: ``section.name = value``.

    The section of the method's own settings is ``settings``.
    """

    section: str
    name: str
    value: Any

    @property
    def label(self) -> str:
        """The name as users write it, without ``settings.`` for a setting of the method."""
        return self.name if self.section == "settings" else f"{self.section}.{self.name}"


@dataclass(frozen=True)
class Tuned:
    """The settings that a search chose: the number of its trials, and the values by the names users write."""

    trials: int
    values: Mapping[str, Any]

    @property
    def words(self) -> str:
        """The search as protocols name it."""
        return f", tuned ({self.trials} trials)"


def tuned_in(protocol: str) -> str:
    """Return the part of a protocol that names a search, ``, tuned (20 trials)``, or an empty text."""
    found = _TUNED.search(protocol.partition(_CHANGED)[0])
    return found[0] if found else ""


def parse_set(text: str) -> Override:
    """Parse the ``key=value`` of ``--set``. The value stays text until :func:`resolve` knows its type.

    Raises:
        UsageError: there is no ``=``, or no key before it.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UsageError(f"--set takes key=value, for instance steps=20 or network.width=64, not {text!r}.")
    section, dot, name = key.rpartition(".")
    return Override(section if dot else "settings", name, value.strip())


def overrides_from(settings: Mapping[str, Any]) -> list[Override]:
    """Return settings given as ``{"steps": 20, "network.width": 64}`` as overrides, which :func:`resolve_all` takes."""
    found = []
    for key, value in settings.items():
        section, dot, name = key.rpartition(".")
        found.append(Override(section if dot else "settings", name, value))
    return found


def read_config_file(path: Path) -> tuple[dict[str, Any], list[Override]]:
    """Read a TOML file; return its top-level options (method, dataset, ipc, ...) and its settings as overrides.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    try:
        text = regular_file(path, most_bytes=_MOST_TOML, remedy="Name a TOML file.").read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except CorruptFileError as error:
        raise UsageError(f"cannot read the configuration: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}.") from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deep: it may hold options, and sections of settings.") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    options = {key: value for key, value in content.items() if not isinstance(value, dict)}
    sections = ((s, v) for s, v in content.items() if isinstance(v, dict))
    return options, [_from_file(section, name, value) for section, v in sections for name, value in v.items()]


def _from_file(section: str, name: str, value: Any) -> Override:
    """Return the override for an entry of a file; ``"convnet.epochs" = 300`` under ``[settings]`` works as well."""
    if section == "settings" and "." in name:
        section, _, name = name.rpartition(".")
    return Override(section, name, value)


def _coerce(override: Override, kind: type, known: Iterable[str]) -> Any:
    """Return an override's value in the type of its field: parse text from the command line, check TOML values."""
    types = get_type_hints(kind)
    if override.name not in types:
        raise _unknown_setting(override.label, known)
    wanted, value = types[override.name], override.value
    try:
        if wanted is bool:
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            return words[str(value).lower()]
        if wanted is int and isinstance(value, (int, str)) and not isinstance(value, bool):
            number = int(value)
            if abs(number) < _BEYOND:
                return number
        if wanted is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
        if wanted is str and isinstance(value, str):
            return value
    except (ValueError, KeyError, OverflowError):
        pass
    name = getattr(wanted, "__name__", str(wanted))
    raise UsageError(f"{override.label} takes a value of type {name}, not {reprlib.repr(value)}.")


def value_in(kind: type, override: Override) -> Any:
    """Return an override's value in the type of its field of the dataclass ``kind``.

    Raises:
        UsageError: there is no such field, or the value is of another type.
    """
    return _coerce(override, kind, get_type_hints(kind))


def _unknown_setting(label: str, known: Iterable[str]) -> UsageError:
    names = list(known)
    return in_released_code(label, names) or unknown_name("setting", label, names)


def _kinds(method: str, evaluators: Iterable[str]) -> dict[str, type]:
    """Return every section of a cell's settings with its dataclass."""
    kinds: dict[str, type] = {"settings": registry.load_method(method).Settings, **SECTIONS}
    return kinds | {name: registry.load_evaluator(name).Settings for name in evaluators}


def wrong_setting(stored: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the first stored setting whose value is not of its type; unknown names pass.

    Args:
        stored: what :meth:`CellConfig.as_dict` returned, read from a file.

    Raises:
        UsageError: a plugin is not installed.
    """
    from dcbench_tesla.records import schema  # pydantic is needed by what reads results, and by nothing else

    kinds = _kinds(stored["method"], stored["evaluators"])
    values = {name: stored[name] for name in ("settings", *SECTIONS)} | dict(stored["evaluators"])
    faults = ((section, schema.fault(kind, json.dumps(values[section]))) for section, kind in kinds.items())
    return next((f"{section}.{told}" for section, told in faults if told), None)


def setting_value(config: CellConfig, label: str, value: Any) -> Any:
    """Return a value in the type of a cell's setting, by the name that ``--set`` takes.

    Raises:
        UsageError: there is no such setting, or the value is of another type.
    """
    (override,) = overrides_from({label: value})
    kinds, known = _kinds(config.method, config.evaluators), setting_names(config.method, config.evaluators)
    if override.section not in kinds:
        raise _unknown_setting(label, known)
    return _coerce(override, kinds[override.section], known)


def setting_names(method: str, evaluators: Iterable[str]) -> list[str]:
    """Return every name that ``--set`` takes for ``method`` and ``evaluators``."""
    return [
        f.name if section == "settings" else f"{section}.{f.name}"
        for section, kind in _kinds(method, evaluators).items()
        for f in dataclasses.fields(kind)
    ]


def _unused_sections(method: str, settings: Any) -> dict[str, str]:
    """Return the sections that have no effect on ``method`` with these settings, each with the reason."""
    condenser = registry.load_method(method)
    unused = {}
    if condenser.expert_request(settings) is None:
        unused["experts"] = f"method {method} uses no experts"
    if not condenser.uses_network:
        unused["network"] = f"method {method} uses no network (the evaluators have a width of their own)"
    return unused


def resolve(
    method: str,
    dataset: str,
    ipc: int,
    *,
    seed: int = 0,
    preset: str = "paper",
    evaluators: Iterable[str] = ("convnet",),
    overrides: Iterable[Override] = (),
    leave_out: bool = False,
    learned_lr: bool | None = None,
    evaluation_recipe: str | None = None,
    tuned: Tuned | None = None,
) -> CellConfig:
    """Resolve one cell's configuration: overrides take precedence over the preset, and the preset over the defaults.

    Args:
        method: name of the method.
        dataset: name of the data set.
        ipc: images per class.
        seed: seed of the run.
        preset: name of the preset.
        evaluators: names of the evaluators.
        overrides: settings that take precedence over the preset.
        leave_out: ignore overrides that the method does not know or that have no effect on it, in place of raising.
            ``changed`` of the result lists the overrides that were used.
        learned_lr: whether the distilled set to be evaluated carries a learned learning rate; by default the method
            says so.
        evaluation_recipe: the recipe of its authors that the distilled set to be evaluated names; by default the
            method's.
        tuned: settings that a search chose; the protocol names the search in place of them.

    Raises:
        UsageError: a name is unknown, a value has the wrong type or is out of range, or a setting has no effect.
    """
    searched = tuned.values if tuned else {}
    evaluators = tuple(evaluators)
    overrides = (*(o for o in overrides if o.label not in searched), *overrides_from(searched))
    kinds = _kinds(method, evaluators)
    rules = [rule for rule in rules_of(preset) if rule.fits(method, family(dataset), ipc)]
    known = setting_names(method, evaluators)
    if leave_out:
        overrides = tuple(o for o in overrides if o.label in known)
    built = _build(kinds, rules, overrides, known)
    _check_snapshots(registry.load_method(method)(built["settings"]).iterations, built["evaluation"].every)
    inert = _without_effect(method, built, learned_lr)
    inert |= {f"data.{name}": why for name, why in built["data"].without_effect(dataset).items()}
    inert["evaluation.sets"] = "a cell is one set, and dcbench run makes a cell of each"
    recipe = registry.load_method(method).evaluation_recipe if evaluation_recipe is None else evaluation_recipe
    inert |= _without_authors(built, method, recipe)
    _check_taught(built, recipe)
    idle = [o for o in overrides if o.label in inert]
    if idle and leave_out:
        overrides = tuple(o for o in overrides if o not in idle)
        built = _build(kinds, rules, overrides, known)
    elif idle:
        raise UsageError(f"setting {idle[0].label} has no effect: {inert[idle[0].label]}. Leave it out.")
    changed = tuple(sorted({override.label for override in overrides}))
    beside = {"evaluation", *evaluators, *_unused_sections(method, built["settings"])}
    of_the_set = tuple(sorted({o.label for o in overrides if o.section not in beside}))
    named = partial(_protocol, preset, method, rules, tuned=tuned)
    return CellConfig(
        method=method,
        dataset=dataset,
        ipc=ipc,
        seed=seed,
        preset=preset,
        protocol=named(changed),
        condense_protocol=named(of_the_set),
        source="; ".join(dict.fromkeys(rule.source for rule in rules if rule.source)),
        settings=built["settings"],
        evaluators={name: built[name] for name in evaluators},
        changed=changed,
        command=_command(method, dataset, ipc, seed, preset, evaluators, overrides, tuned),
        **{section: built[section] for section in SECTIONS},
    )


def _check_snapshots(iterations: int, every: int) -> None:
    count = iterations // every if every else 0
    if count > _MOST_SNAPSHOTS:
        raise UsageError(
            f"evaluation.every={every} asks for {count} snapshots in {iterations} iterations, each of which is stored "
            f"and evaluated; at most {_MOST_SNAPSHOTS} are possible. Raise evaluation.every (0: only at the end)."
        )


def resolve_all(
    methods: Sequence[str],
    datasets: Sequence[str],
    ipcs: Sequence[int],
    seeds: Sequence[int],
    *,
    preset: str = "paper",
    evaluators: Sequence[str] = ("convnet",),
    overrides: Sequence[Override] = (),
) -> list[CellConfig]:
    """Return the configuration of every combination of method, data set, IPC and seed.

    Where there are several methods, each takes those overrides that have an effect on it. ``evaluation.sets`` adds as
    many seeds after each seed.

    Args:
        methods: names of registered methods.
        datasets: names of data sets.
        ipcs: numbers of images per class.
        seeds: the cells' seeds.
        preset: ``paper``, ``quick`` or ``smoke``.
        evaluators: the networks to train on the distilled sets.
        overrides: what differs from the preset.

    Raises:
        UsageError: a name is unknown, or an override has a wrong value or no effect on any of the methods.
    """
    lenient = len(methods) > 1
    sets, overrides = _number_of_sets(overrides)
    seeds = list(dict.fromkeys(seed + i for seed in seeds for i in range(sets)))
    configs = [
        resolve(
            method,
            dataset,
            ipc,
            seed=seed,
            preset=preset,
            evaluators=evaluators,
            overrides=overrides,
            leave_out=lenient,
        )
        for dataset, ipc, seed, method in product(datasets, ipcs, seeds, methods)
    ]
    taken = {label for config in configs for label in config.changed}
    for idle in (o for o in overrides if o.label not in taken):  # no method uses it: resolving it raises the reason
        resolve(methods[0], datasets[0], ipcs[0], preset=preset, evaluators=evaluators, overrides=[idle])
    return configs


def _number_of_sets(overrides: Sequence[Override]) -> tuple[int, list[Override]]:
    """Return the number of sets that the last of ``overrides`` to name it asks for, and the others."""
    asked = [o for o in overrides if o.label == "evaluation.sets"]
    numbers = [EvaluationSettings(sets=value_in(EvaluationSettings, o)).sets for o in asked]
    return [1, *numbers][-1], [o for o in overrides if o not in asked]


def resolved_again(
    config: CellConfig,
    overrides: Sequence[Override] = (),
    *,
    without: Collection[str] = (),
    tuned: Tuned | None = None,
) -> CellConfig:
    """Return a cell with further settings changed, with those that have an effect on it.

    Args:
        config: the cell.
        overrides: the settings to change.
        without: changed settings that get the preset's value again.
        tuned: settings that a search chose.

    Raises:
        UsageError: a setting has a wrong value.
    """
    dropped = {*without, *(o.label for o in overrides)}
    return resolve(
        config.method,
        config.dataset,
        config.ipc,
        seed=config.seed,
        preset=config.preset,
        evaluators=tuple(config.evaluators),
        overrides=[*overrides_from({n: config.value(n) for n in config.changed if n not in dropped}), *overrides],
        leave_out=True,
        tuned=tuned,
    )


def resolved_with(configs: Sequence[CellConfig], overrides: Sequence[Override]) -> list[CellConfig]:
    """Return cells with further settings changed, each with those that have an effect on it.

    Raises:
        UsageError: a setting has a wrong value, or no effect on any of the cells.
    """
    if not overrides:
        return list(configs)
    found = [resolved_again(c, overrides) for c in configs]
    taken = {label for c in found for label in c.changed}
    for idle in (o for o in overrides if o.label not in taken):  # resolving it raises the reason
        resolve(configs[0].method, configs[0].dataset, configs[0].ipc, preset=configs[0].preset, overrides=[idle])
    return found


def shared_changes(configs: Sequence[CellConfig]) -> dict[str, str]:
    """Return the changed settings that have one value in all cells that have them changed."""
    values: dict[str, set[str]] = {}
    for c in configs:
        for label, value in c.changes.items():
            values.setdefault(label, set()).add(value)
    return {label: found.pop() for label, found in values.items() if len(found) == 1}


def short_names(configs: Sequence[CellConfig]) -> list[str]:
    """Return for every cell what tells it from the others in few words, such as ``tesla, ipc 10``."""
    several = {name: len({getattr(c, name) for c in configs}) > 1 for name in ("dataset", "seed")}
    labels: dict[str, set[str]] = {}
    for c in configs:
        labels.setdefault(c.method, set()).update(c.changed)
    values = {(c.method, label): set[str]() for c in configs for label in labels[c.method]}
    for c in configs:
        for label in labels[c.method]:
            values[c.method, label].add(as_text(c.value(label)))

    def name(c: CellConfig) -> str:
        words = [c.method, shown_dataset(c.dataset) if several["dataset"] else ""]
        words += [f"ipc {c.ipc}" if registry.load_method(c.method).uses_ipc else ""]
        words += [f"seed {c.seed}" if several["seed"] else ""]
        words += [f"{label}={value}" for label, value in c.changes.items() if len(values[c.method, label]) > 1]
        return ", ".join(filter(None, words))

    return [name(c) for c in configs]


def baseline_of(config: CellConfig) -> CellConfig:
    """Return the ``random`` cell to compare ``config`` with: same data, preprocessing, IPC, seed and evaluators.

    The evaluators follow the preset's recipe for ``random``, with the user's changes to evaluation and evaluators. A
    recipe that belongs to another method's sets (DC's 300 epochs without augmentation) does not apply to the baseline.
    """
    c = config
    what: dict[str, Any] = {"seed": c.seed, "preset": c.preset, "evaluators": tuple(c.evaluators)}
    plain = resolve(BASELINE, c.dataset, c.ipc, **what)
    changes = [
        Override(section, name, getattr(getattr(c, section) if section in SECTIONS else c.evaluators[section], name))
        for section, _, name in (label.rpartition(".") for label in c.changed)
        if section == "evaluation" or section in c.evaluators
    ]
    own = resolve(BASELINE, c.dataset, c.ipc, **what, overrides=changes, leave_out=True)
    labels = (plain.evaluation.labels, plain.evaluation.networks)
    as_given = (plain.data, plain.evaluators, *labels) == (
        c.data,
        own.evaluators,
        c.evaluation.labels,
        c.evaluation.networks,
    )
    if c.evaluation.labels == TEACHER_LABELS:  # the same teacher
        own = dataclasses.replace(own, network=c.network, experts=c.experts)
    beside = f"data and evaluation as {c.method}"
    return dataclasses.replace(
        own,
        data=c.data,
        evaluation=dataclasses.replace(c.evaluation, every=0),
        changed=(),
        protocol=plain.protocol if as_given else f"{plain.protocol}, {beside}",
        condense_protocol=plain.protocol if plain.data == c.data else f"{plain.protocol}, data as {c.method}",
        command=plain.command if as_given else c.command,
    )


def restored(
    stored: Mapping[str, Any], evaluators: Iterable[str] = (), overrides: Iterable[Override] = ()
) -> CellConfig:
    """Return the configuration of a cell that was condensed earlier.

    Stored settings are kept, whatever the presets contain today. Only an evaluator that the cell was not run with
    takes its settings from the preset.

    Args:
        stored: what :meth:`CellConfig.as_dict` returned.
        evaluators: names of the evaluators; by default the stored ones.
        overrides: settings of the evaluation and of the evaluators that replace the stored ones.

    Raises:
        UsageError: the method is not installed, its settings have changed since, or an override is invalid or has no
            effect.
    """
    evaluators, overrides = tuple(evaluators) or tuple(stored["evaluators"]), tuple(overrides)
    own, given = {"evaluation", *evaluators}, {o.label for o in overrides}
    untaught = any(o.label == "evaluation.labels" and o.value != TEACHER_LABELS for o in overrides)
    labels = [label for label in stored["changed"] if not (untaught and label in _OF_THE_TEACHER)]
    kept = [o for o in (_stored(stored, label) for label in labels) if o.section in own]
    what = (stored["method"], stored["dataset"], stored["ipc"])
    about: dict[str, Any] = {"seed": stored["seed"], "preset": stored["preset"], "evaluators": evaluators}
    fresh = resolve(*what, **about, overrides=[*(o for o in kept if o.label not in given), *overrides])
    sections = {name: kind for name, kind in SECTIONS.items() if name != "evaluation"}
    try:
        return dataclasses.replace(
            fresh,
            settings=type(fresh.settings)(**stored["settings"]),
            **{name: kind(**stored[name]) for name, kind in sections.items()},
            evaluation=_changed("evaluation", dataclasses.replace(fresh.evaluation, **stored["evaluation"]), overrides),
            evaluators={
                name: _changed(name, type(settings)(**stored["evaluators"].get(name, vars(settings))), overrides)
                for name, settings in fresh.evaluators.items()
            },
            changed=tuple(sorted({*labels, *given})),
            protocol=_with_changes(stored["protocol"], given),
            condense_protocol=stored["condense_protocol"],
        )
    except TypeError as error:
        raise UsageError(
            f"method {stored['method']} or its evaluators have other settings than when the cell was made ({error}): "
            "run it again."
        ) from error


def _stored(stored: Mapping[str, Any], label: str) -> Override:
    """Return the override for a setting that was changed, with its stored value."""
    section, _, name = label.rpartition(".")
    section = section or "settings"
    values = stored["evaluators"] if section in stored["evaluators"] else stored
    return Override(section, name, values[section][name])


def _changed(section: str, settings: Any, overrides: Iterable[Override]) -> Any:
    """Return the settings of ``section`` with the overrides of that section."""
    given = [o for o in overrides if o.section == section]
    known = [f"{section}.{f.name}" for f in dataclasses.fields(settings)]
    return dataclasses.replace(settings, **{o.name: _coerce(o, type(settings), known) for o in given})


def _with_changes(protocol: str, labels: Collection[str]) -> str:
    """Return the name of a protocol with ``labels`` added to its list of changed settings."""
    name, _, before = protocol.partition(_CHANGED)
    changed = sorted({*(label for label in before.split(", ") if label), *labels})
    return f"{name}{_CHANGED}{', '.join(changed)}" if changed else name


def family(dataset: str) -> str:
    """Return the name that presets use: ``npz:`` or ``folder:`` for the user's own data, without the path."""
    return dataset.partition(":")[0] + ":" if ":" in dataset else dataset


def _build(
    kinds: Mapping[str, type], rules: Iterable[Rule], overrides: Iterable[Override], known: Iterable[str]
) -> dict[str, Any]:
    """Return the settings of every section, made from the rules of the preset and the overrides."""
    values: dict[str, dict[str, Any]] = {section: {} for section in kinds}
    for rule in rules:
        for section, given in rule.values.items():
            # a rule may be for several methods or evaluators: each takes the settings that it has
            fields = {f.name for f in dataclasses.fields(kinds[section])} if section in kinds else set()
            values.setdefault(section, {}).update({k: v for k, v in given.items() if k in fields})
    for override in overrides:
        if override.section not in kinds:
            raise _unknown_section(override, known)
        values[override.section][override.name] = _coerce(override, kinds[override.section], known)
    return {section: kind(**values[section]) for section, kind in kinds.items()}


def _unknown_section(override: Override, known: Iterable[str]) -> UsageError:
    """Build the error for a setting of an evaluator that is not in the run, or of nothing that exists."""
    name = override.section
    if not registry.has("evaluators", name):
        return _unknown_setting(override.label, known)
    return UsageError(
        f"setting {override.label} is one of evaluator {name}, which is not in this run: add --evaluator {name}, or "
        "leave the setting out."
    )


def _without_effect(method: str, built: Mapping[str, Any], learned_lr: bool | None) -> dict[str, str]:
    """Return the settings that have no effect given the other settings, by the name users write, with the reason."""
    inert = dict(built["settings"].inert())
    taught = built["evaluation"].labels == TEACHER_LABELS
    for section, reason in {} if taught else _unused_sections(method, built["settings"]).items():
        inert |= {f"{section}.{f.name}": reason for f in dataclasses.fields(SECTIONS[section])}
    if not built["data"].zca:
        inert["data.whitening"] = "data.zca is false: images are standardised"
    condenser = registry.load_method(method)
    if condenser.uses_network or taught:
        has = {"name", *built["network"].options()}
        reason = f"network {built['network'].name} has no such option"
        inert |= {f"network.{f.name}": reason for f in dataclasses.fields(NetworkSettings) if f.name not in has}
    request = condenser.expert_request(built["settings"])
    if request and request.count:
        inert["experts.count"] = f"method {method} always reads {request.count}"
    if not taught:
        why = f"evaluation.labels is {built['evaluation'].labels}: there is no teacher"
        inert |= dict.fromkeys(_OF_THE_TEACHER, why)
    elif not request:
        inert["experts.count"] = "the teacher is expert 0"
        plain = "the teacher is trained by plain SGD"
        inert |= {"experts.gsam_rho": plain, "experts.gsam_alpha": plain}
    if (request or taught) and built["experts"].imported:
        trained = ("lr", "batch_size", "gsam_rho", "gsam_alpha")
        inert |= {f"experts.{name}": "imported experts are not trained here" for name in trained}
    elif not built["experts"].gsam_rho:
        inert.setdefault("experts.gsam_alpha", "experts.gsam_rho is 0: experts are trained by plain SGD")
    for section in built.keys() - SECTIONS.keys() - {"settings"}:
        evaluator = registry.load_evaluator(section)
        learns = condenser.learns_lr if learned_lr is None else learned_lr
        idle = evaluator.without_effect(built[section], learned_lr=learns)
        inert |= {f"{section}.{name}": reason for name, reason in idle.items()}
    if condenser(built["settings"]).iterations == 0:
        inert["evaluation.every"] = f"method {method} has no iterations"
        inert["evaluation.networks_on_the_way"] = f"method {method} has no iterations"
    elif built["evaluation"].every == 0:
        inert["evaluation.networks_on_the_way"] = "evaluation.every is 0: nothing is evaluated on the way"
    return inert


def _without_authors(built: Mapping[str, Any], method: str, recipe: str) -> dict[str, str]:
    """Return the settings ``recipe`` that ask for an authors' recipe that there is not, with the reason."""
    lacking = authors_recipe(recipe).lacking if recipe in names() else ""
    if recipe and not lacking:
        return {}
    common = f"{method} names no recipe of its own: its authors follow the common one, {PUBLISHED}"
    reason = f"the recipe {recipe} cannot be followed: {lacking}" if recipe else common
    asking = (section for section, settings in built.items() if getattr(settings, "recipe", "") == AUTHORS)
    return {f"{section}.recipe": reason for section in asking}


def _check_taught(built: Mapping[str, Any], recipe: str) -> None:
    """Check that every evaluator can learn from a teacher, where one gives the labels.

    Raises:
        UsageError: one cannot, or its recipe has a loss of other labels.
    """
    if built["evaluation"].labels != TEACHER_LABELS:
        return
    for section in built.keys() - SECTIONS.keys() - {"settings"}:
        if not registry.load_evaluator(section).learns_from_teacher:
            raise UsageError(
                f"evaluation.labels=teacher cannot be used with evaluator {section}, which does not learn from a "
                "teacher: choose another evaluator, or evaluation.labels=hard."
            )
        authors = getattr(built[section], "recipe", "") == AUTHORS and recipe in names()
        if authors and authors_recipe(recipe).loss == "mse":
            raise UsageError(
                f"evaluation.labels=teacher cannot be used with {section}.recipe=authors of {recipe}, whose loss is of "
                "centred labels: leave one of them out."
            )


def _protocol(preset: str, method: str, rules: list[Rule], changed: tuple[str, ...], tuned: Tuned | None = None) -> str:
    name = preset
    if preset == "paper":
        lenders = [rule.settings_of for rule in rules if rule.settings_of]
        borrowed = f"paper, settings of {lenders[-1]}" if lenders else UNPUBLISHED
        own = [rule for rule in rules if method in rule.published]
        name = with_sets(preset, 1, max(rule.sets for rule in own)) if own else borrowed
    if tuned is not None:
        return _with_changes(name + tuned.words, [label for label in changed if label not in tuned.values])
    return _with_changes(name, changed)


def with_sets(protocol: str, sets: int, published: int = 0) -> str:
    """Return a protocol that says if it has fewer condensed sets than published: ``paper, 1 of 5 sets``.

    Args:
        protocol: the protocol, which may say it already, for another number.
        sets: the number of sets.
        published: the published number; 0: the one that the protocol names.
    """
    known = _SETS.search(protocol)
    published = published or (int(known[2]) if known else 1)
    name, changed, rest = _SETS.sub("", protocol).partition(_CHANGED)
    return f"{name}{f', {sets} of {published} sets' if sets < published else ''}{changed}{rest}"


def shown_dataset(dataset: str) -> str:
    """Return a data set's name with only the last part of its path, so that no folder of this machine shows."""
    prefix, colon, path = dataset.partition(":")
    return f"{prefix}:{Path(path).name}" if colon else dataset


def _command(
    method: str,
    dataset: str,
    ipc: int,
    seed: int,
    preset: str,
    evaluators: tuple[str, ...],
    overrides: tuple[Override, ...],
    tuned: Tuned | None,
) -> str:
    """Return the command that makes the cell, without any path of this machine."""
    words = [
        "dcbench run",
        f"--method {method}",
        f"--dataset {shlex.quote(shown_dataset(dataset))}",
        f"--ipc {ipc}",
        f"--preset {preset}",
    ]
    words += [f"--seed {seed}"] if seed else []
    words += [f"--evaluator {name}" for name in evaluators if evaluators != ("convnet",)]
    words += [f"--tuned {tuned.trials}"] if tuned else []
    words += [set_word(o) for o in overrides]
    return " ".join(words)


def set_word(override: Override) -> str:
    """Return the ``--set`` option for an override, quoted for the shell."""
    return f"--set {shlex.quote(f'{override.label}={override.value}')}"


def settings_given(command: str) -> dict[str, str]:
    """Return the settings of a stored command as the user wrote them: ``{"steps": "20"}``."""
    return dict(text.split("=", 1) for text in flags_given(command, "--set") if "=" in text)


def flags_given(command: str, flag: str) -> tuple[str, ...]:
    """Return the values of the option ``flag`` in a stored command."""
    try:
        words = shlex.split(command)
    except ValueError:  # early versions of dcbench did not quote values
        words = command.split()
    return tuple(value for name, value in pairwise(words) if name == flag)


def settled(label: str, text: str) -> str:
    """Return one spelling for equal values of a setting in :data:`SECTIONS`: ``true`` for ``True``, ``yes`` and ``1``.

    Other settings, whose type is not known here, are returned unchanged.
    """
    section, _, name = label.rpartition(".")
    try:
        return as_text(_coerce(Override(section, name, text), SECTIONS[section], ()))
    except (KeyError, UsageError):
        return text


def as_text(value: Any) -> str:
    """Return a setting's value as protocols show it: ``true`` and ``false`` in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)
