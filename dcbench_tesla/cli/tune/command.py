"""`dcbench tune`: search a method's settings on held-out training images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcbench_tesla.cli.common import (
    Failure,
    backend_options,
    compile_option,
    data_dir_option,
    device_option,
    failure,
    json_option,
    options,
    out_option,
    preset_option,
    set_option,
    verbosity_options,
)
from dcbench_tesla.cli.completion import DATASETS, EVALUATORS, METHODS, SETTINGS
from dcbench_tesla.errors import UsageError

if TYPE_CHECKING:
    from dcbench_tesla.cli.tune.shown import Searched
    from dcbench_tesla.config import CellConfig
    from dcbench_tesla.tuning.running import Running
    from dcbench_tesla.tuning.trials import Search

_BATCH = 4


@click.command()
@options(
    click.argument("methods", metavar="METHOD...", nargs=-1, required=True, shell_complete=METHODS),
    click.option("--dataset", default="digits", show_default=True, help="A data set.", shell_complete=DATASETS),
    click.option("--ipc", type=int, default=1, show_default=True, help="Images per class."),
    click.option("--trials", type=int, default=20, show_default=True, help="Trials of each method; may be raised."),
    click.option(
        "--search",
        "searched",
        multiple=True,
        metavar="NAME=LOW:HIGH[:log]",
        shell_complete=SETTINGS,
        help="Search a setting in this range, or among choices (NAME=A,B).  [default: the method's ranges]",
    ),
    click.option(
        "--evaluator",
        default="convnet",
        show_default=True,
        help="The network that trials are judged by.",
        shell_complete=EVALUATORS,
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="The seed of the search and of its trials."),
    click.option(
        "--batch",
        type=int,
        default=_BATCH,
        show_default=True,
        help="Trials that are drawn before the results of any of them are known, and may run at the same time.",
    ),
    preset_option,
    set_option,
    device_option,
    data_dir_option,
    out_option,
    *backend_options,
    compile_option,
    json_option,
    *verbosity_options,
)
def tune(
    methods: tuple[str, ...],
    dataset: str,
    ipc: int,
    trials: int,
    searched: tuple[str, ...],
    evaluator: str,
    seed: int,
    batch: int,
    preset: str | None,
    assignments: tuple[str, ...],
    device: str,
    data_dir: Path | None,
    out: Path,
    backend: str,
    at_once: int | None,
    timeout: str | None,
    backend_settings: tuple[str, ...],
    compile: str,
    as_json: bool,
) -> None:
    """Search settings of methods on held-out training images.

    Every method gets the same number of trials. A trial condenses with other settings and trains networks, which are
    judged by the held-out images; it has no test images. The same command goes on after an interruption, computes
    nothing twice, and draws the same trials with the same seed, on any backend; --trials may be raised later. Settings
    that --set gives are not searched.

    \b
    Examples:
      dcbench tune dm --dataset digits --preset smoke --trials 10
      dcbench tune dm tesla --dataset fashion-mnist --ipc 10 --preset quick --backend local --jobs 2
      dcbench tune kip --preset smoke --search lr_images=0.001:0.1:log --search labels=hard,learned
      dcbench run --method dm --dataset digits --preset smoke --tuned 10    (with the settings that were chosen)
    """
    from dcbench_tesla.cli.run import backend_of, resolve_options
    from dcbench_tesla.tuning.draws import check_installed

    check_installed()
    for name, value in (("--trials", trials), ("--batch", batch)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    methods = tuple(dict.fromkeys(methods))
    given = {"method": methods, "dataset": (dataset,), "ipc": (ipc,), "evaluator": (evaluator,), "seed": (seed,)}
    configs = resolve_options({**given, "preset": preset}, assignments, None)
    if len(configs) > len(methods):
        raise UsageError("evaluation.sets has no effect on a search: every trial condenses one set. Leave it out.")
    where = backend_of(
        device=device, out=out, backend=backend, at_once=at_once, timeout=timeout, backend_settings=backend_settings
    )
    from dcbench_tesla.records.workspace import Workspace
    from dcbench_tesla.tuning.running import Running

    running = Running(results=Workspace(out), backend=where, data_dir=data_dir, compile=compile)
    searches = _searches(configs, running, searched, trials, batch)
    running.results.check_writable()
    _end(_run(searches, trials, running), trials, out, as_json=as_json)


def _searches(
    configs: "Sequence[CellConfig]", running: "Running", texts: Sequence[str], trials: int, batch: int
) -> "list[Search]":
    """Return the search of every method, so that all of them are known to be right before the first begins."""
    from dcbench_tesla.tuning.running import search_for
    from dcbench_tesla.tuning.space import shared_out

    found: list[Search] = []
    for config, asked in zip(configs, shared_out(configs, texts), strict=True):
        command = _command(config, asked, texts, trials, batch)
        dataset = found[0].dataset if found else None  # all have the same
        found.append(search_for(config, running, asked, batch=batch, command=command, dataset=dataset))
    return found


def _command(config: "CellConfig", asked: Mapping[str, Any], texts: Sequence[str], trials: int, batch: int) -> str:
    """Return the command that makes the trials of one method, without any path of this machine."""
    import shlex

    from dcbench_tesla.config import overrides_from, set_word, shown_dataset

    c, (evaluator,) = config, config.evaluators
    words = [f"dcbench tune {c.method} --dataset {shlex.quote(shown_dataset(c.dataset))} --ipc {c.ipc}"]
    words += [f"--preset {c.preset} --trials {trials}"]
    words += [f"--seed {c.seed}"] if c.seed else []
    words += [f"--batch {batch}"] if batch != _BATCH else []
    words += [f"--evaluator {evaluator}"] if evaluator != "convnet" else []
    words += [set_word(o) for o in overrides_from(c.changes)]
    words += [f"--search {shlex.quote(text)}" for text in texts if text.partition("=")[0].strip() in asked]
    return " ".join(words)


def _run(searches: "Sequence[Search]", trials: int, running: "Running") -> "list[Searched]":
    """Run the searches one after another; one that fails does not stop the others."""
    from dcbench_tesla.cli.tune.shown import Searched
    from dcbench_tesla.records.progress import complain, say
    from dcbench_tesla.tuning.running import run_search

    found = []
    for search in searches:
        told = ", ".join(f"{label} {space}" for label, space in search.space.items())
        say(f"{search.config.method}: {trials} trials of {told}")
        try:
            found.append(Searched(search, run_search(search, trials, running)))
        except Exception as error:
            shown = failure(error)
            if shown is None or len(searches) == 1:
                raise
            found.append(Searched(search, (), shown.format_message()))
            complain(shown.format_message())
    return found


def _end(found: "Sequence[Searched]", trials: int, out: Path, *, as_json: bool) -> None:
    """Print what was found, and fail if a search did."""
    from dcbench_tesla.cli.tune.shown import emit_searches, show_searches

    if as_json:
        emit_searches(found, trials)
    else:
        show_searches([each for each in found if each.rows], trials, out)
    if failed := [each for each in found if each.reason]:
        raise Failure(f"{len(failed)} of {len(found)} searches failed, see above. The same command goes on.", 1)
