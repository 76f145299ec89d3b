"""Runs the stages of a cell: training experts, condensation, and one evaluation per evaluator.

A finished stage leaves a row (``rows/<stage>-<key>.json``) and is not repeated, whichever run made it. An interrupted
stage continues where it stopped: experts after the last epoch, the condensation after the last checkpoint, evaluations
after the last network.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import torch

from dcbench_tesla import registry
from dcbench_tesla.cells.cell import EVALUATE, TEACHER, Cell
from dcbench_tesla.cells.estimate import compilation_decided
from dcbench_tesla.cells.evaluation import SAME_LABELS, Evaluation, Labels, as_regime
from dcbench_tesla.cells.execution import record_begun
from dcbench_tesla.cells.expert_processes import processes, threads_of_each, train_at_once
from dcbench_tesla.cells.identity import execution_settings
from dcbench_tesla.cells.loop import CondenseLoop
from dcbench_tesla.cells.place import KEPT_RESULT, LOCK, alone, discard, exchange_began, settle, take_over
from dcbench_tesla.cells.result import CellResult
from dcbench_tesla.compute.compiling import training_is_compiled
from dcbench_tesla.distilled import DistilledSet
from dcbench_tesla.experts.imported import ImportedStore
from dcbench_tesla.experts.recipe import ExpertRecipe
from dcbench_tesla.interface import Condenser
from dcbench_tesla.profilers.energy import EnergyMeter, counters_for
from dcbench_tesla.records.live import MetricLog, open_log
from dcbench_tesla.records.pictures import write_png
from dcbench_tesla.records.progress import bar
from dcbench_tesla.records.rows import drop_settled_failure, stage_rows
from dcbench_tesla.records.store import content_key, write_json


def run_cell(cell: Cell, *, force: bool = False, evaluate_again: bool = False) -> CellResult:
    """Run the stages of a cell that are not finished and return its results.

    The row of an earlier failure is removed, unless it names an evaluation that is not finished.

    Args:
        cell: the cell.
        force: start over and run all stages; an existing result stays until the new one is finished.
        evaluate_again: repeat the evaluations; the existing rows stay until they are replaced.

    Raises:
        DivergedError: a loss became NaN or infinite.
        CorruptFileError: a checkpoint or an expert is damaged.
        DcbenchError: a folder cannot be written.
    """
    if force or evaluate_again or cell.pending():
        with alone(cell.place, cell.name, cell.say):
            settle(cell.place, cell.workspace)
            if force:
                _start_over(cell)
            else:
                _go_on(cell.as_begun(), evaluate_again=evaluate_again)
    drop_failure(cell)
    return CellResult(cell)


def drop_failure(cell: Cell) -> None:
    """Remove the row of a cell's earlier failure, if there is one and it names no evaluation that is not finished."""
    if (cell.workspace.rows / f"failed-{cell.key}.json").exists():  # else nothing is written: it may be read-only
        drop_settled_failure(cell.workspace, cell.key)


def _go_on(cell: Cell, *, evaluate_again: bool) -> None:
    """Run the stages that are not finished; the cell's lock must be held."""
    stages = cell.pending()
    if evaluate_again:
        stages = cell.evaluations(cell.config.evaluators)
        for name in cell.config.evaluators:
            shutil.rmtree(cell.place.records(name), ignore_errors=True)
    _run_stages(cell, stages)


def _start_over(cell: Cell) -> None:
    """Run all stages again; a result that exists stays until the new one is finished. The lock must be held."""
    if not cell.place.has_result():
        _forget(cell)
        _run_stages(cell, cell.pending())
        return
    try:
        fresh = cell.staged()
        _run_stages(fresh, fresh.pending())
        take_over(cell.place, cell.workspace)
    except BaseException:
        if not exchange_began(cell.place):
            discard(cell.place)
            cell.say(f"{cell.name}: {KEPT_RESULT}")
        raise


def _forget(cell: Cell) -> None:
    """Delete what a run left that had no result yet."""
    for path in cell.place.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _run_stages(cell: Cell, stages: Sequence[str]) -> None:
    cell.execution.apply()
    cell = compilation_decided(cell, stages)
    cell.execution.apply()
    _record_start(cell)
    for stage in stages:
        _run_stage(cell, stage)


def _record_start(cell: Cell) -> None:
    condensed = cell.workspace.row("condense", cell.key) if cell.place.condensed() else None
    settings = execution_settings(cell.config.settings)
    if condensed is not None:  # the settings that the set was made with, whatever this command says
        settings = {name: condensed["settings"].get(name, value) for name, value in settings.items()}
    record_begun(cell.place.execution, cell.execution, settings, cell.memory_facts)
    if condensed is not None:  # keep the record of the condensation; an evaluation's row has its own environment
        return
    images = cell.materials.decided(fit=True).facts()
    configuration = {"key": cell.key, "identity": cell.identity.content, "images": images, **cell.config.as_dict()}
    write_json(cell.place.folder / "config.json", configuration)
    write_json(cell.place.folder / "environment.json", cell.environment)


def _run_stage(cell: Cell, stage: str) -> None:
    if stage == "experts":
        assert cell.materials.expert_request is not None, "only a method that requests experts has this stage"
        train_experts(cell, cell.materials.expert_count, cell.materials.expert_request.epochs)
    elif stage == TEACHER:
        train_teacher(cell)
    elif stage == "condense":
        _record_found_experts(cell)
        _condense(cell)
    else:
        _evaluate(cell, stage.removeprefix(EVALUATE))


def _data_facts(cell: Cell) -> dict[str, Any]:
    """Return the columns about data and protocol that the rows of all stages share."""
    return {
        "dataset": cell.dataset.name,
        "dataset_fingerprint": cell.dataset.fingerprint,
        "protocol": cell.config.protocol,
        "protocol_source": cell.config.source,
        "preset": cell.config.preset,
    }


def _where(cell: Cell) -> dict[str, Any]:
    environment = cell.environment
    return {"hardware": environment["hardware"], "environment": environment}


def _compiled(was: bool) -> dict[str, bool]:
    """Return the column ``compiled`` for a row that compiled code computed; other rows do not have it."""
    return {"compiled": True} if was else {}


def cell_facts(cell: Cell) -> dict[str, Any]:
    """Return the columns that all rows of a cell share, apart from hardware and environment."""
    c = cell.config
    own = {"cell": cell.name, "method": c.method, "seed": c.seed, "command": c.command}
    return {**_data_facts(cell), **own, "ipc": c.ipc if cell.method.uses_ipc else None}


def train_experts(cell: Cell, count: int, epochs: int) -> None:
    """Train the first ``count`` experts of a cell's recipe up to ``epochs``, and write a row when they are finished."""
    cell.execution.apply()
    store, total = cell.materials.expert_store, count * epochs
    done = total - store.missing_epochs(count, epochs)
    at_once = processes(cell, count, epochs)
    with bar("experts", total, done=done, unit="epoch", quiet=cell.quiet) as shown:
        if at_once > 1:
            seconds = train_at_once(cell, count, epochs, at_once, shown)
        else:
            with threads_of_each(cell):
                seconds = store.ensure(count, epochs, cell.splits.train, shown)
    trained: dict[str, Any] = {"trained_epochs": shown.done - done, "train_seconds": round(seconds, 3)}
    trained |= {"processes": at_once} if at_once > 1 else {}
    _record_experts(cell, store.recipe, count, epochs, {**trained, **_compiled(training_is_compiled())})


def train_teacher(cell: Cell) -> None:
    """Train the teacher of a cell's evaluations, and write a row when it is finished."""
    cell.execution.apply()
    store, epochs = cell.materials.teacher_store, cell.config.evaluation.teacher_epochs
    done = epochs - store.missing_epochs(1, epochs)
    with bar("teacher", epochs, done=done, unit="epoch", quiet=cell.quiet) as shown, threads_of_each(cell):
        seconds = store.ensure(1, epochs, cell.splits.train, shown)
    trained = {"trained_epochs": shown.done - done, "train_seconds": round(seconds, 3)}
    _record_experts(cell, store.recipe, 1, epochs, {**trained, **_compiled(training_is_compiled())})


def _record_experts(cell: Cell, recipe: ExpertRecipe, count: int, epochs: int, trained: Mapping[str, Any]) -> None:
    """Write the row of a cell's finished experts, unless there is one."""
    key = content_key({"experts": recipe.key, "count": count, "epochs": epochs})
    if cell.workspace.row("experts", key) is None:
        facts = {"identity": recipe.identity, "experts": count, "epochs": epochs}
        cell.workspace.write_row("experts", key, {**_data_facts(cell), **_where(cell), **facts, **trained})


def _record_found_experts(cell: Cell) -> None:
    """Write the row of experts that no row tells of: the process that trained them was killed before it wrote it."""
    request, store = cell.materials.expert_request, cell.materials.expert_store
    if request is None or isinstance(store, ImportedStore):
        return
    rows = stage_rows(cell.workspace.home, "experts")
    count, own = cell.materials.expert_count, [r for r in rows if content_key(r.get("identity")) == store.recipe.key]
    if not any(r.get("experts", 0) >= count and r.get("epochs", 0) >= request.epochs for r in own):
        _record_experts(cell, store.recipe, count, request.epochs, {"trained_epochs": 0, "train_seconds": 0.0})


def _condense(cell: Cell) -> None:
    done = CondenseLoop.iterations_done(cell.place.folder)
    cell.place.check_snapshots(min(done, cell.identity.iterations - 1))
    condenser = cell.method(cell.config.settings)
    condenser.setup(cell.problem(cell.materials.experts(cell.device)))
    metered = not condenser.compiled  # the meter cannot see into compiled code
    with ExitStack() as stack:
        names = cell.execution.logs if done < cell.identity.iterations else ()
        logs = [stack.enter_context(closing(_open_log(cell, name, start=done))) for name in names]
        loop = CondenseLoop(
            condenser,
            cell.place.folder,
            label=cell.config.method,
            key=cell.key,
            snapshots=cell.identity.snapshots,
            keep_snapshot=lambda iteration: _keep(cell, condenser, iteration),
            logs=logs,
            metered=metered,
            kept=cell.place.kept,
            quiet=cell.quiet,
        )
        energy = stack.enter_context(_energy(cell, done))
        loop.run(cell.device)
    final = _keep(cell, condenser, cell.identity.iterations)
    _picture(cell, final)
    for note in condenser.notes():
        cell.say(f"{cell.config.method}: note: {note}")
    row = {
        **cell_facts(cell),
        **_where(cell),
        "protocol": cell.config.condense_protocol,
        "settings": dataclasses.asdict(cell.config.settings),
        "identity": cell.identity.content,
        "iterations": cell.identity.iterations,
        "condense_seconds": round(loop.seconds, 3),
        "peak_bytes": loop.peak_bytes,
        **_compiled(condenser.compiled),
        **cell.memory_facts,
        **energy,
        "learned_lr": final.lr,
        "distilled_images": len(final),
        "train_images": cell.materials.train_images,
        "final_loss": loop.last_loss,
        "notes": condenser.notes(),
        "images_may_be_passed_on": cell.dataset.redistributable,
    }
    cell.workspace.write_row("condense", cell.key, row)


@contextmanager
def _energy(cell: Cell, done: int) -> Iterator[dict[str, Any]]:
    """Measure the energy of a block, if that was asked for; yield its columns, which are there when it has ended.

    A condensation that goes on after ``done`` iterations has none: that of the others is not known.
    """
    columns: dict[str, Any] = {}
    whole = cell.execution.energy and not done and cell.identity.iterations
    with EnergyMeter(counters_for(cell.execution.device) if whole else ()) as meter:
        yield columns
    if meter.energy is not None:
        columns |= {"energy_joules": meter.energy.joules, "energy_by": meter.energy.by}


def _picture(cell: Cell, final: DistilledSet) -> None:
    """Write the picture into the cell's folder, and beside the rows, which may be committed, if it may be passed on."""
    picture, shared = final.picture(), cell.workspace.sheets / f"{cell.name}.png"
    for path in (cell.place.folder / "sheet.png", *([shared] if cell.dataset.redistributable else [])):
        write_png(picture, path)


def _open_log(cell: Cell, name: str, *, start: int) -> MetricLog:
    folder, results = cell.place.folder, cell.workspace.home.root
    return open_log(name, folder, cell.name, cell.config.as_dict(), key=cell.key, results=results, start=start)


def _keep(cell: Cell, condenser: Condenser, iteration: int) -> DistilledSet:
    """Write and return the distilled set after ``iteration`` iterations, with its provenance."""
    made = dataclasses.replace(condenser.distilled(), evaluation_recipe=cell.method.evaluation_recipe)
    distilled = made.with_provenance(
        method=cell.config.method,
        dataset=cell.dataset.name,
        dataset_fingerprint=cell.dataset.fingerprint,
        ipc=cell.config.ipc if cell.method.uses_ipc else None,
        seed=cell.config.seed,
        protocol=cell.config.condense_protocol,
        iteration=iteration,
        key=cell.key,
        redistributable=cell.dataset.redistributable,
    )
    distilled.save(cell.place.snapshot(iteration), embed_preprocessing=not cell.config.data.zca)
    return distilled


def labels_of(cell: Cell, device: torch.device | None = None) -> Labels:
    """Return the labels of a cell's evaluations; a teacher that is not trained yet is trained now.

    ``device``: where the teacher is to be, by default where the cell computes.
    """
    if not cell.materials.teacher_complete:
        train_teacher(cell)
    return Labels(content=cell.identity.labels, teacher=cell.materials.teacher(device or cell.device))


def _evaluate(cell: Cell, name: str) -> None:
    twin = None if cell.place.evaluated(name) else cell.place.twin(name)  # one that is repeated trains its networks
    if twin is not None:
        cell.say(f"{cell.config.method}: {SAME_LABELS}")
        row = as_regime(twin, cell.identity.labels) | cell_facts(cell)
    else:
        row = _trained_and_tested(cell, name)
    cell.workspace.write_row("evaluate", cell.identity.evaluation_key(name), row)


def _trained_and_tested(cell: Cell, name: str) -> dict[str, Any]:
    """Train and test the networks of an evaluation; return its row."""
    evaluation = Evaluation(
        name=name,
        settings=cell.config.evaluators[name],
        seed=cell.config.seed,
        test=cell.splits.test,
        validation=cell.splits.validation,
        records=cell.place.records(name),
        tell=lambda text: cell.say(f"{cell.config.method}, {text}"),
        evaluation_recipe=cell.method.evaluation_recipe,
        labels=labels_of(cell),
    )
    schedule = cell.identity.schedule(name)
    total = sum(networks for _, networks in schedule)
    with bar(f"{cell.config.method}: evaluate by {name}", total, unit="network", quiet=cell.quiet) as shown:
        sets = [(i, networks, partial(cell.distilled_set, i)) for i, networks in schedule]
        columns = evaluation.run(sets, shown)
    compiled = _compiled(registry.load_evaluator(name).compiles and training_is_compiled())
    return {**cell_facts(cell), **_where(cell), "condense_key": cell.key, **columns, **compiled}
