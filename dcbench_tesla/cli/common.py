"""The shared parts of the commands: how errors are shown, and the options that several commands take."""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import click

from dcbench_tesla.cli.completion import DATASETS, METHODS, PRESETS, SETTINGS
from dcbench_tesla.errors import UsageError, explained
from dcbench_tesla.records.workspace import DEFAULT_OUT, Workspace, with_shipped

_COMPLETE = "_DCBENCH_COMPLETE"  # what shells set to ask for completions
_F = TypeVar("_F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """An error with its exit code, shown as one message."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.__dict__["exit_code"] = exit_code  # click declares exit_code on the class; here each failure has its own


def failure(error: BaseException) -> Failure | None:
    """Return the message and exit code for the user, or ``None`` for a bug, whose traceback should be shown."""
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted. What was done is kept: the same command goes on.", 130)
    message = explained(error)
    return None if message is None else Failure(message, getattr(error, "exit_code", 1))


def unwritten(error: OSError | ValueError) -> None:
    """Say that standard output could not be written; a reader who had enough of it (``| head``) knows."""
    if not isinstance(error, BrokenPipeError):
        reason = getattr(error, "strerror", None) or error
        Failure(f"standard output cannot be written: {reason}. What was done is kept.", 1).show()


@contextmanager
def damaged_rows_told(workspace: Workspace, stages: Sequence[str]) -> Iterator[None]:
    """Report the damaged row files of ``stages``, run the body with the other rows, and fail if there were any.

    Raises:
        Failure: after the body, if a row file is damaged.
    """
    from dcbench_tesla.records.progress import complain
    from dcbench_tesla.records.rows import damaged_rows

    damaged = damaged_rows(workspace, stages)
    for text in damaged:
        complain(text)
    yield
    if damaged:
        what = "a file among the rows is" if len(damaged) == 1 else f"{len(damaged)} files among the rows are"
        raise Failure(f"{what} left out, see above.", 1)


@contextmanager
def short_lived() -> Iterator[None]:
    """Leave cyclic garbage to the end of a command that imports much and ends soon: the search would cost a 20th."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # else another caller's objects would be released
            gc.freeze()
            gc.unfreeze()  # into the oldest generation: the next search, of the youngest, does not go through all
        if was_on:
            gc.enable()


def workspace_of(out: Path, *, shipped: bool) -> Workspace:
    """Return the workspace at ``--out``, with the repository's committed results added if ``--shipped`` is given."""
    return with_shipped(out) if shipped else Workspace(out)


@overload
def terminal_width(otherwise: int = 160) -> int: ...
@overload
def terminal_width(otherwise: None) -> int | None: ...
def terminal_width(otherwise: int | None = 160) -> int | None:
    """Return the columns of the terminal, or those of ``$COLUMNS``; ``otherwise`` where standard output is neither."""
    if "COLUMNS" not in os.environ and not sys.stdout.isatty():
        return otherwise
    return max(shutil.get_terminal_size().columns, 40)


def _named_here(error: click.NoSuchOption) -> click.UsageError | None:
    """Return the error that names the setting or option which an unknown one is here; ``None`` if it is none.

    Hyper-parameters are options of released code, and ``--set`` takes them here.
    """
    from dcbench_tesla.presets.released import OURS, meaning

    there = {text for option in error.ctx.command.params for text in option.opts} if error.ctx else set()

    def written(own: str) -> str:
        return own if own.startswith("--") else f"--set {own}=VALUE"

    known = [own for own in OURS if (own if own.startswith("--") else "--set") in there]
    name = error.option_name.lstrip("-").replace("-", "_")
    told = f"It is a setting: {written(name)}." if name in known else meaning(name, known, written)
    return click.UsageError(f"no such option: {error.option_name}. {told}", error.ctx) if told else None


class Group(click.Group):
    """A group of commands whose errors end in one message and an exit code: 2 for invalid usage, 1 for failures.

    Work does not stop where nobody can read about it. Output that could not be written makes a command fail at its end.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line with streams that can be closed, full, or limited to ASCII."""
        from dcbench_tesla.records.progress import NORMAL, speak
        from dcbench_tesla.records.streams import lasting_streams

        if _COMPLETE in os.environ:  # a shell is answered in bytes, and by a reader that stays
            return super().main(*args, **extra)
        with lasting_streams() as streams:
            try:
                return super().main(*args, **extra)
            except SystemExit as ended:
                if ended.code or streams.output.error is None:
                    raise
                unwritten(streams.output.error)
                raise SystemExit(1) from None
            finally:
                speak(NORMAL)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and turn every error but a bug into a message."""
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.NoSuchOption as error:
            if (told := _named_here(error)) is None:
                raise
            raise told from error
        except click.ClickException:
            raise
        except (Exception, KeyboardInterrupt) as error:
            shown = failure(error)
            if shown is None:
                raise
            raise shown from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their whole summaries, which click would cut to one line."""
        shown = [(name, command.get_short_help_str(limit=200)) for name, command in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(shown)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command.

        Raises:
            click.UsageError: the command is unknown; the message suggests the most similar name.
        """
        from dcbench_tesla.errors import unknown_name

        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(str(unknown_name("command", args[0], self.commands)))
        return super().resolve_command(ctx, args)


def options(*wanted: Callable[[Any], Any]) -> Callable[[_F], _F]:
    """Return one decorator that adds several options, in order."""

    def decorate(function: _F) -> _F:
        for option in reversed(wanted):
            function = option(function)
        return function

    return decorate


out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=Path(DEFAULT_OUT), show_default=True, help="Folder for results."
)
shipped_option = click.option(
    "--shipped", is_flag=True, help="Add the repository's committed results, marked (shipped); yours take precedence."
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the data sets.  [default: $DCBENCH_DATA, or the platform's cache folder]",
)
device_option = click.option("--device", default="auto", show_default=True, help="Device: auto, cpu, cuda, cuda:1.")


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; the manual describes its fields.")


def _say_as_asked(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    from dcbench_tesla.records.progress import QUIET, VERBOSE, speak

    if value:
        speak(QUIET if option.name == "quiet" else VERBOSE)


verbosity_options = (
    click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_say_as_asked, help="Say nothing but errors."
    ),
    click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_say_as_asked, help="Say more of what is done."
    ),
)


def _not_empty(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise UsageError(f"{option.opts[0]} is empty: give paper, quick or smoke, or leave it out.")
    return value


preset_option = click.option(
    "--preset",
    callback=_not_empty,
    shell_complete=PRESETS,
    help="Hyper-parameters: paper (published), quick (minutes) or smoke (seconds).  [default: paper]",
)
part_options = (
    click.option(
        "--dataset", "datasets", multiple=True, help="Only this data set.  [default: all]", shell_complete=DATASETS
    ),
    click.option("--ipc", "ipcs", multiple=True, type=int, help="Only this IPC.  [default: all]"),
    click.option(
        "--method", "methods", multiple=True, help="Only this method.  [default: all]", shell_complete=METHODS
    ),
    preset_option,
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=SETTINGS,
    help="Change a setting: steps=20, network.width=64, convnet.epochs=300 (dcbench info METHOD lists them).",
)
backend_options = (
    click.option(
        "--backend",
        default="serial",
        show_default=True,
        help="Where cells run: serial (in this process), local (each in its own process), slurm (on a cluster).",
    ),
    click.option(
        "--jobs",
        "at_once",
        type=int,
        help="Cells that run at a time.  [default: local: one per GPU, or cores / OMP_NUM_THREADS; slurm: its limits]",
    ),
    click.option("--timeout", help="Time limit of a cell: 90s, 30min, 2h, 1.5d (local, slurm).  [default: none]"),
    click.option(
        "--backend-option",
        "backend_settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of sbatch: partition=gpu, account=lab, cpus_per_task=8, mem=32G.",
    ),
)
compile_option = click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compile matching steps of tesla and tesla-exact and the training of experts and ConvNets (auto: long runs).",
)
log_option = click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="NAME",
    help="Send metrics to tensorboard, trackio or wandb, in addition to the cell's metrics.jsonl.",
)
config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="A TOML file with options and settings."
)
