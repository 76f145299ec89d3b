"""``python -m tests.campaign``: see the package's docstring."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before anything starts threads, which a fork would lose
    os.environ[_name] = "1"
os.environ |= {"COLUMNS": "300", "MPLBACKEND": "agg", "GIT_OPTIONAL_LOCKS": "0"}

import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import click  # noqa: E402

from tests.campaign.findings import Tally  # noqa: E402
from tests.campaign.kills import Kills  # noqa: E402
from tests.campaign.kinds import KINDS  # noqa: E402
from tests.campaign.mutations import Mutations  # noqa: E402
from tests.campaign.processes import preload  # noqa: E402
from tests.campaign.scenes import Scenes  # noqa: E402


@click.command()
@click.option("--seed", type=int, default=0, show_default=True, help="All trials follow from it.")
@click.option("--minutes", type=float, default=10.0, show_default=True, help="Time for both halves together.")
@click.option("--only", type=click.Choice(["kills", "mutations"]), help="One half.")
@click.option("--kind", "kinds", multiple=True, help="Only kinds of files, or stages, whose names begin so.")
@click.option("--operator", "operators", multiple=True, help="Only these operators.")
@click.option("--repeat", help="One trial, by its name in findings.jsonl.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where findings go.  [default: a temporary folder]")
def main(
    seed: int,
    minutes: float,
    only: str | None,
    kinds: tuple[str, ...],
    operators: tuple[str, ...],
    repeat: str | None,
    folder: Path | None,
) -> None:
    """Kill and damage, and say what fell; exit code 1 if anything did."""
    folder = (folder or Path(tempfile.mkdtemp(prefix="campaign-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    preload()
    scenes, tally = Scenes(folder / "scenes"), Tally(folder)
    mutations, kills = (Mutations(seed, scenes, folder / "work", tally), Kills(seed, scenes, folder / "work", tally))
    began, budget = time.monotonic(), 60 * minutes
    if repeat:
        name, operator, number = repeat.split("/")
        found = [kind for kind in KINDS if kind.name == name]
        said = mutations.trial(found[0], operator, int(number)) if found else kills.trial(name, operator, int(number))
        click.echo("\n".join(said) or "nothing fell")
    else:
        if only != "kills":
            chosen = [kind.only(operators) for kind in KINDS if kind.name.startswith(kinds or ("",))]
            mutations.run(chosen, began + budget * (1.0 if only else 0.5))
        if only != "mutations":
            kills.run(kinds, began + budget)
        click.echo(tally.table())
    click.echo(f"{sum(tally.tried.values())} trials in {time.monotonic() - began:.0f} s, seed {seed}")
    if tally.fell:
        click.echo(f"What fell, each with what repeats it: {tally.file}")
    sys.exit(bool(tally.fell))


main()
