"""What the commands share: how an error is shown, and the options that several of them take."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from dcbench_tesla.errors import UsageError, explained
from dcbench_tesla.records.workspace import DEFAULT_OUT, Workspace, with_shipped

_F = TypeVar("_F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """An error with its exit code, shown as one message."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.__dict__["exit_code"] = exit_code  # click declares it for the class; here every failure has its own


def failure(error: BaseException) -> Failure | None:
    """Return how an error is shown to a user; ``None`` for a defect of the program, which deserves its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted. What was done is kept: the same command goes on.", 130)
    message = explained(error)
    return None if message is None else Failure(message, getattr(error, "exit_code", 1))


@contextmanager
def damaged_rows_told(workspace: Workspace, stages: Sequence[str]) -> Iterator[None]:
    """Tell which files among the rows of ``stages`` are none; fail for them when all is made of the others."""
    from dcbench_tesla.records.progress import say
    from dcbench_tesla.records.rows import damaged_rows

    damaged = damaged_rows(workspace, stages)
    for text in damaged:
        say(f"Error: {text}")
    yield
    if damaged:
        what = "a file among the rows is" if len(damaged) == 1 else f"{len(damaged)} files among the rows are"
        raise Failure(f"{what} left out, see above.", 1)


def workspace_of(out: Path, *, shipped: bool) -> Workspace:
    """Return the workspace at ``--out``, with the repository's results beside its own if ``--shipped`` is given."""
    return with_shipped(out) if shipped else Workspace(out)


class Group(click.Group):
    """A group of commands whose errors end in one message and an exit code: 2 for usage, 1 for failure."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and turn what a user can meet into a message."""
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.ClickException:
            raise
        except (Exception, KeyboardInterrupt) as error:
            shown = failure(error)
            if shown is None:
                raise
            raise shown from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with its whole summary: click cuts them to a line."""
        shown = [(name, command.get_short_help_str(limit=200)) for name, command in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl(shown)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command; an unknown one gets the nearest name."""
        from dcbench_tesla.errors import unknown_name

        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(str(unknown_name("command", args[0], self.commands)))
        return super().resolve_command(ctx, args)


def options(*wanted: Callable[[Any], Any]) -> Callable[[_F], _F]:
    """Stack several options into one decorator."""

    def decorate(function: _F) -> _F:
        for option in reversed(wanted):
            function = option(function)
        return function

    return decorate


out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=Path(DEFAULT_OUT), show_default=True, help="Where results go."
)
shipped_option = click.option(
    "--shipped", is_flag=True, help="Add the repository's committed results, marked (shipped); own ones count first."
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Where data sets lie.  [default: $DCBENCH_DATA, or the platform's cache folder]",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")


def _not_empty(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise UsageError(f"{option.opts[0]} is empty: paper, quick or smoke, or leave it out.")
    return value


preset_option = click.option(
    "--preset",
    callback=_not_empty,
    help="Hyper-parameters: paper (published), quick (minutes) or smoke (seconds).  [default: paper]",
)
part_options = (
    click.option("--dataset", "datasets", multiple=True, help="Only this data set.  [default: all]"),
    click.option("--ipc", "ipcs", multiple=True, type=int, help="Only this IPC.  [default: all]"),
    click.option("--method", "methods", multiple=True, help="Only this method.  [default: all]"),
    preset_option,
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting: steps=20, network.width=64, convnet.epochs=300 (dcbench info METHOD lists them).",
)
backend_options = (
    click.option(
        "--backend",
        default="serial",
        show_default=True,
        help="Where cells run: serial (in this process), local (in processes of their own), slurm (on a cluster).",
    ),
    click.option(
        "--jobs",
        "at_once",
        type=int,
        help="How many cells at a time.  [default: local: one a GPU, or cores / OMP_NUM_THREADS; slurm: its limits]",
    ),
    click.option("--timeout", help="How long a cell may take: 90s, 30min, 2h, 1.5d (local, slurm).  [default: any]"),
    click.option(
        "--backend-option",
        "backend_settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="What to ask Slurm for, as sbatch names it: partition=gpu, account=lab, cpus_per_task=8, mem=32G.",
    ),
)
compile_option = click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compile matching steps of tesla and tesla-exact, and ConvNet's training (auto: where a run is long enough).",
)
log_option = click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="NAME",
    help="Where metrics go besides the cell's metrics.jsonl: tensorboard, wandb.",
)
config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="A TOML file with options and settings."
)
