"""`dcbench run` and `dcbench experts`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcbench_tesla.cli.common import (
    Failure,
    backend_options,
    compile_option,
    config_option,
    data_dir_option,
    device_option,
    json_option,
    log_option,
    options,
    out_option,
    preset_option,
    set_option,
    terminal_width,
    verbosity_options,
)
from dcbench_tesla.cli.completion import DATASETS, EVALUATORS, METHODS
from dcbench_tesla.cli.shown.planned import measured, show_plan
from dcbench_tesla.cli.shown.results import emit_results, show_results
from dcbench_tesla.errors import UsageError

if TYPE_CHECKING:
    from dcbench_tesla.backends.base import Backend, Job, Outcome
    from dcbench_tesla.cells.cell import Cell
    from dcbench_tesla.cells.result import CellResult
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.config import CellConfig, Override
    from dcbench_tesla.reports.plan import PlannedCell


@click.command()
@options(
    click.option(
        "--method", "methods", multiple=True, help="A method; may be given several times.", shell_complete=METHODS
    ),
    click.option(
        "--dataset", "datasets", multiple=True, help="A data set.  [default: digits]", shell_complete=DATASETS
    ),
    click.option("--ipc", "ipcs", multiple=True, type=int, help="Images per class.  [default: 1]"),
    click.option(
        "--evaluator",
        "evaluators",
        multiple=True,
        help="A network to evaluate with.  [default: convnet]",
        shell_complete=EVALUATORS,
    ),
    click.option("--seed", "seeds", multiple=True, type=int, help="A seed.  [default: 0]"),
    preset_option,
    set_option,
    config_option,
    click.option(
        "--tuned",
        metavar="TRIALS",
        help="Take the settings that a search of so many trials chose (dcbench tune); the protocol says so.",
    ),
    device_option,
    data_dir_option,
    out_option,
    click.option(
        "--memory-budget",
        metavar="SIZE",
        help="Start no cell predicted to need more memory, for instance 40GiB; memory that is left saves time.",
    ),
    *backend_options,
    log_option,
    compile_option,
    click.option(
        "--energy", is_flag=True, help="Record the condensation's energy, where the machine has counters of it."
    ),
    click.option("--force", is_flag=True, help="Start over, even if cells are finished."),
    click.option("--no-baseline", is_flag=True, help="Do not run the random selection to compare with."),
    click.option("--dry-run", is_flag=True, help="Show the cells, with estimated time and memory; run nothing."),
    json_option,
    *verbosity_options,
)
def run(
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    ipcs: tuple[int, ...],
    evaluators: tuple[str, ...],
    seeds: tuple[int, ...],
    preset: str | None,
    assignments: tuple[str, ...],
    config_file: Path | None,
    tuned: str | None,
    device: str,
    data_dir: Path | None,
    out: Path,
    memory_budget: str | None,
    backend: str,
    at_once: int | None,
    timeout: str | None,
    backend_settings: tuple[str, ...],
    logs: tuple[str, ...],
    compile: str,
    energy: bool,
    force: bool,
    no_baseline: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train experts, condense, evaluate.

    Continues interrupted cells, skips finished ones, and retries failed ones.

    \b
    Examples:
      dcbench run --method tesla --dataset digits --ipc 1 --preset smoke
      dcbench run --method tesla --method random --dataset fashion-mnist --ipc 1 --ipc 10 --preset quick
      dcbench run --method tesla-exact --dataset cifar10 --ipc 10 --device cuda --memory-budget 40GiB
      dcbench run --method mtt --dataset npz:my_images.npz --set steps=20 --set data.zca=true
      dcbench run --config experiment.toml
      dcbench run --method dm --method tesla --ipc 1 --ipc 10 --seed 0 --seed 1 --backend local --jobs 4 --timeout 2h
      dcbench run --method tesla --dataset cifar10 --backend slurm --device cuda --backend-option partition=gpu
      dcbench run --method tesla --dataset digits --log tensorboard    (tensorboard --logdir runs/cells shows it)

    \b
    A configuration file (options on the command line take precedence):
      method = ["tesla", "mtt"]
      dataset = "fashion-mnist"
      preset = "quick"
      [settings]
      steps = 20
      [convnet]
      epochs = 300
    """
    options = {
        "method": methods,
        "dataset": datasets,
        "ipc": ipcs,
        "evaluator": evaluators,
        "seed": seeds,
        "preset": preset,
    }
    from dcbench_tesla.records.live import check_logs

    wanted_logs = check_logs(logs)
    configs = resolve_options(options, assignments, config_file)
    from dcbench_tesla.backends.base import Job
    from dcbench_tesla.cells.budget import parse_size
    from dcbench_tesla.cells.session import Session

    if out == Path():
        raise UsageError("--out is empty: name a folder.")
    budget = None if memory_budget is None else parse_size(memory_budget)
    where = backend_of(
        device=device, out=out, backend=backend, at_once=at_once, timeout=timeout, backend_settings=backend_settings
    )
    execution = replace(where.execution, logs=wanted_logs, compile=compile, energy=energy)
    if energy:
        _check_energy(where)
    session = Session(out, data_dir=data_dir, execution=execution, keep_times=not dry_run)
    configs = configs if tuned is None else _with_tuned(configs, session, tuned)
    cells = [session.cell(config, from_scratch=force, report_later=True) for config in configs]
    to_do = force or _anything_to_do(cells)
    if not dry_run and to_do:
        session.workspace.check_writable()
    session.tell_decisions(cells if to_do else ())
    refused: list[Outcome] = []
    if budget is not None:
        cells, refused = _within_budget(cells, budget, force=force)
    baselines = {} if no_baseline else session.baselines(cells)
    forced = {cell.key for cell in cells} if force else set()
    everything = (Job(c, force=c.key in forced, data_dir=data_dir) for c in (*cells, *baselines.values()))
    jobs = list({job.id: job for job in everything}.values())
    if not dry_run:
        if baselines and _anything_to_do(list(baselines.values())):
            session.workspace.check_writable()
        run_jobs(jobs, where, session, baselines=baselines, refused=refused, as_json=as_json)
        return
    show_plan(measured(jobs), session.execution, as_json=as_json)
    _end_with(refused, len(jobs) + len(refused))


def _check_energy(backend: "Backend") -> None:
    """Say that no energy is measured where this machine, which will compute, has no counter of it."""
    from dcbench_tesla.profilers.energy import check_installed, counters_for
    from dcbench_tesla.records.progress import say

    check_installed()
    if not backend.elsewhere and not counters_for(backend.execution.device):
        say("energy is not measured: this machine shows no counter (RAPL of the processor, NVML of a GPU)")


def _with_tuned(configs: "Sequence[CellConfig]", session: "Session", tuned: str) -> "list[CellConfig]":
    """Return the cells with the settings that searches under ``--out`` chose for them."""
    from dcbench_tesla.tuning import chosen

    asked = chosen.Asked.parse(tuned)
    return [chosen.tuned(config, session.dataset(config.dataset), session.workspace, asked) for config in configs]


def _anything_to_do(cells: "Sequence[Cell]") -> bool:
    """Return whether a cell is not finished or its files are damaged. Else nothing is written: results can be shown."""
    from dcbench_tesla.errors import CorruptFileError

    try:
        return any(cell.pending() for cell in cells)
    except (CorruptFileError, UsageError):
        return True


def backend_of(
    *,
    device: str,
    out: Path,
    backend: str,
    at_once: int | None,
    timeout: str | None,
    backend_settings: tuple[str, ...],
) -> "Backend":
    """Return the backend that a command's options select."""
    from dcbench_tesla.backends import make_backend
    from dcbench_tesla.records.progress import parse_duration

    return make_backend(
        backend,
        device=device,
        out=out,
        jobs=at_once,
        timeout_s=None if timeout is None else parse_duration(timeout),
        options=_backend_settings(backend_settings),
    )


def _backend_settings(assignments: tuple[str, ...]) -> dict[str, Any]:
    """Parse ``KEY=VALUE``; a value that is valid JSON (a number, ``true``) is converted."""
    import json
    from contextlib import suppress

    settings: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--backend-option takes KEY=VALUE, for instance partition=gpu, not {text!r}.")
        settings[key] = value
        with suppress(ValueError):
            settings[key] = json.loads(value)
    return settings


def resolve_options(
    options: dict[str, Any], assignments: tuple[str, ...], config_file: Path | None
) -> "list[CellConfig]":
    """Resolve all cells from the configuration file and the command line, which takes precedence."""
    from dcbench_tesla import registry
    from dcbench_tesla.config import parse_set, read_config_file
    from dcbench_tesla.datasets import check_dataset_name
    from dcbench_tesla.errors import unknown_name
    from dcbench_tesla.presets import PRESETS

    from_file: dict[str, Any] = {}
    overrides: list[Override] = []
    if config_file:
        from_file, overrides = read_config_file(config_file)
        _check_options(config_file, from_file, options)
    overrides += [parse_set(text) for text in assignments]

    def several(name: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
        given = options[name] or from_file.get(name, default)
        return tuple(given) if isinstance(given, (list, tuple)) else (given,)

    methods, datasets = several("method", ()), several("dataset", ("digits",))
    evaluators = several("evaluator", ("convnet",))
    preset = options["preset"] or from_file.get("preset", "paper")
    if not methods:
        raise UsageError(f"no method: give --method NAME. Known: {', '.join(registry.names('methods'))}.")
    registry.check_names("methods", methods)
    registry.check_names("evaluators", evaluators)
    for dataset in datasets:
        check_dataset_name(dataset)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    ipcs, seeds = several("ipc", (1,)), several("seed", (0,))
    for name, least, values in (("ipc", 1, ipcs), ("seed", 0, seeds)):
        for value in values:
            if value < least:
                raise UsageError(f"--{name} must be at least {least}, not {value}.")
    from dcbench_tesla.config import resolve_all

    return resolve_all(methods, datasets, ipcs, seeds, preset=preset, evaluators=evaluators, overrides=overrides)


def _check_options(file: Path, given: dict[str, Any], known: dict[str, Any]) -> None:
    """Check the names and the types of the top-level options of a configuration file."""
    for name, value in given.items():
        if name not in known:
            raise _unknown_option(file, name, known)
        kind = int if name in ("ipc", "seed") else str
        values = value if isinstance(value, list) and name != "preset" else [value]
        if not values or any(type(v) is not kind for v in values):
            raise UsageError(f"{file}: {name} takes values of type {kind.__name__}, not {value!r}.")


def _unknown_option(file: Path, name: str, known: dict[str, Any]) -> UsageError:
    """Return the error for a top-level option of a file, which says where it stands if it is a setting."""
    from dcbench_tesla.errors import unknown_name
    from dcbench_tesla.presets.released import OURS, meaning

    def written(own: str) -> str:
        if own.startswith("--"):
            return own[2:] if own[2:] in known else f"{own} on the command line"
        section, _, setting = own.rpartition(".")
        return f"{setting} under [{section or 'settings'}]"

    told = f"It is a setting: {written(name)}." if name in OURS else meaning(name, OURS, written)
    if told is None:
        return unknown_name(f"option in {file}:", name, known)
    return UsageError(f"unknown option in {file}: {name!r}. {told}")


def _within_budget(cells: "list[Cell]", budget: int, *, force: bool) -> "tuple[list[Cell], list[Outcome]]":
    """Predict and print every cell's memory; return the cells that fit, as they will run, and outcomes of the others.

    Nothing is computed for a cell that does not fit, nor for a baseline that only this cell needs.
    """
    from dcbench_tesla.backends.base import Outcome
    from dcbench_tesla.cells.budget import fitted
    from dcbench_tesla.profilers.memory import PredictedMeter
    from dcbench_tesla.records.progress import bar, complain, say

    say("predicting how much memory is needed ...")
    meter, fitting, refused = PredictedMeter(), [], []
    cells = list({cell.key: cell for cell in cells}.values())
    with bar("memory", len(cells), unit="cell") as shown:
        for cell in cells:
            try:
                stages = cell.stages_from_scratch() if force else cell.pending()
                fitting.append(fitted(cell, budget, meter, stages))
            except Exception as error:
                refused.append(Outcome.of(error, cell.place.folder / "error.txt"))
                if len(cells) > 1:
                    complain(f"{cell.name}: {refused[-1].reason}")
            shown.advance()
    return fitting, refused


def run_jobs(
    jobs: "list[Job]",
    backend: "Backend",
    session: "Session",
    *,
    baselines: "Mapping[str, Cell]",
    refused: "Sequence[Outcome]" = (),
    as_json: bool = False,
) -> None:
    """Run all jobs, even if some fail, and show the results of finished cells beside their baselines.

    Args:
        jobs: the jobs.
        backend: runs them.
        session: released before the cells run in other processes.
        baselines: the baseline of a cell, by the cell's key.
        refused: outcomes of cells that the memory budget refused, which count as failures.
        as_json: print JSON instead of the table.

    Raises:
        Failure: a cell failed.
    """
    from dcbench_tesla.backends.sweep import sweep
    from dcbench_tesla.cells.result import CellResult
    from dcbench_tesla.reports.plan import host_memory_bytes

    total = len(jobs) + len(refused)
    planned = _tell_estimates(jobs, backend)
    if backend.elsewhere:
        needed = [host_memory_bytes(job.cell, found.peak_bytes) for job, found in zip(jobs, planned, strict=True)]
        jobs = [replace(job, memory_bytes=memory) for job, memory in zip(jobs, needed, strict=True)]
    if not backend.in_process:
        session.release()  # frees memory that estimating took, for the workers
    outcomes = sweep(jobs, backend, among=total)
    results = [CellResult(job.cell) for job, outcome in zip(jobs, outcomes, strict=True) if outcome.ok]
    if as_json:
        emit_results([(job.cell, outcome) for job, outcome in zip(jobs, outcomes, strict=True)], baselines)
    else:
        show_results(results, baselines)
    if not backend.in_process:  # else they were told when they were made
        _tell_notes(results)
    _end_with([*refused, *outcomes], total)


def _end_with(outcomes: "Sequence[Outcome]", total: int) -> None:
    """Raise :class:`Failure` if a cell failed: with the reason if it is the only cell, else with the count."""
    failures = [outcome for outcome in outcomes if not outcome.ok]
    if failures and total == 1:
        raise Failure(failures[0].reason, failures[0].exit_code)
    if failures:
        others = "; the others are done" if len(outcomes) > len(failures) else ""
        raise Failure(f"{len(failures)} of {total} cells failed, see above{others}. The same command retries.", 1)


def _tell_estimates(jobs: "list[Job]", backend: "Backend") -> "list[PlannedCell]":
    """Print the stages to run and how long they will take on this machine, measured on the first steps.

    For a backend on other machines, predict the memory instead, which is requested from that backend.
    """
    from dcbench_tesla.cells.estimate import LONG_S
    from dcbench_tesla.compare.table import wrapped
    from dcbench_tesla.config import short_names
    from dcbench_tesla.profilers.memory import PredictedMeter
    from dcbench_tesla.records.progress import bar, detail, duration, say
    from dcbench_tesla.reports.plan import machine, plan

    planned: list[PlannedCell] = []
    meter = PredictedMeter() if backend.elsewhere else None
    names = short_names([job.cell.config for job in jobs])
    for line in wrapped(_shared_protocol(jobs), terminal_width()):
        say(line)
    if not backend.elsewhere:
        say("measuring a few steps, to say how long it will take ...")
    with bar("measuring", len(jobs), unit="cell") as shown:
        for name, found in zip(names, plan(jobs, measure=not backend.elsewhere, meter=meter), strict=True):
            planned.append(found)
            shown.advance(note=name)
            say(_told(name, found, elsewhere=backend.elsewhere))
            detail(f"  {found.name} ({found.config.protocol})")
    total = sum(found.estimate.total for found in planned if found.estimate) / min(backend.at_once or 1, len(jobs) or 1)
    if total:
        at_once = f", {backend.at_once} cells at a time" if not backend.in_process else ""
        say(f"All together about {duration(total)} ({machine(jobs[0].cell.execution)}{at_once}).")
    if total > LONG_S and any(job.cell.config.preset == "paper" for job in jobs):
        say("That is more than a day. --preset quick takes minutes, and its results are marked as such.")
    return planned


def _shared_protocol(jobs: "Sequence[Job]") -> str:
    """Return what was asked for, once for all cells: the protocol and the changed settings."""
    from dcbench_tesla.compare.changes import in_words, own_protocol
    from dcbench_tesla.config import shared_changes

    configs = [job.cell.config for job in jobs]
    changes = shared_changes(configs)
    protocols = "; ".join(dict.fromkeys(own_protocol(c.protocol) for c in configs))
    return f"protocol {protocols}" + (f", changed: {in_words(changes)}" if changes else "")


def _told(name: str, found: "PlannedCell", *, elsewhere: bool) -> str:
    """Return a line about a planned cell: what is to be done, and how long it takes."""
    if found.done:
        return f"{name}: done already (--force does it again)"
    if found.estimate:
        return f"{name}: {found.estimate}"
    stages = ", ".join(found.stages or ())
    why = f"{'memory not predicted' if elsewhere else 'not estimated'}: {found.reason}" if found.reason else ""
    return f"{name}: {'; '.join(filter(None, [stages, why]))}"


def _tell_notes(results: "list[CellResult]") -> None:
    """Say what the rows of cells note, which the cells' processes said in their logs."""
    from dcbench_tesla.records.progress import say

    for result in results:
        condensed = result.cell.workspace.row("condense", result.cell.key) or {}
        evaluated = {f"{result.cell.config.method}, {name}": row for name, row in result.rows.items()}
        for named, row in ({result.cell.config.method: condensed} | evaluated).items():
            for note in row.get("notes", ()):
                say(f"{named}: note: {note}")


@click.command()
@options(
    click.option("--dataset", default="digits", show_default=True, help="A data set.", shell_complete=DATASETS),
    click.option("--count", type=int, help="Number of experts.  [default: the preset's]"),
    click.option("--epochs", type=int, help="Epochs of each.  [default: those that --method's preset uses]"),
    click.option(
        "--method", default="tesla", show_default=True, help="The method whose preset is used.", shell_complete=METHODS
    ),
    click.option("--ipc", type=int, default=1, show_default=True, help="The IPC whose preset is used."),
    preset_option,
    set_option,
    device_option,
    data_dir_option,
    out_option,
    compile_option,
)
def experts(
    dataset: str,
    count: int | None,
    epochs: int | None,
    method: str,
    ipc: int,
    preset: str | None,
    assignments: tuple[str, ...],
    device: str,
    data_dir: Path | None,
    out: Path,
    compile: str,
) -> None:
    """Train expert trajectories, for `dcbench run` to use.

    Experts are networks trained on the real images, saved after every epoch. All methods and seeds share them, and
    `dcbench run` trains those that it lacks. On a CPU several experts are trained at the same time if training takes
    long. Several processes, or machines with a shared disk, may run this command at the same time to share the work.

    \b
    Examples:
      dcbench experts --dataset digits --count 10 --epochs 5
      dcbench experts --dataset cifar10 --ipc 10 --device cuda
    """
    options = {"method": (method,), "dataset": (dataset,), "ipc": (ipc,), "evaluator": (), "seed": (), "preset": preset}
    if count is not None:
        assignments = (*assignments, f"experts.count={count}")
    (config,) = resolve_options(options, assignments, None)
    from dcbench_tesla.cells.estimate import compilation_decided
    from dcbench_tesla.cells.execution import Execution
    from dcbench_tesla.cells.session import Session
    from dcbench_tesla.cells.stages import train_experts

    session = Session(out, data_dir=data_dir, execution=replace(Execution.resolve(device), compile=compile))
    session.workspace.check_writable()
    cell = session.cell(config, from_scratch=True)
    if cell.materials.expert_request is None:
        raise UsageError(f"method {method} uses no experts.")
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs must be at least 1, not {epochs}.")
    session.tell_decisions([cell])
    epochs = epochs or cell.materials.expert_request.epochs
    cell = compilation_decided(cell, ["experts"], expert_epochs=cell.materials.expert_count * epochs)
    train_experts(cell, cell.materials.expert_count, epochs)
    click.echo(f"{cell.materials.expert_count} experts of {epochs} epochs: {cell.materials.expert_store.folder}")
