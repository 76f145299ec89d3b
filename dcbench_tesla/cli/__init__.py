"""The command line. Heavy imports are inside the commands, so that help and listings do not import torch."""

import click

from dcbench_tesla.cli.clean import clean
from dcbench_tesla.cli.common import Group, options, verbosity_options
from dcbench_tesla.cli.compare import compare
from dcbench_tesla.cli.evaluate import evaluate, verify
from dcbench_tesla.cli.exchange import export, import_
from dcbench_tesla.cli.merge import merge
from dcbench_tesla.cli.new import new
from dcbench_tesla.cli.plan import plan
from dcbench_tesla.cli.report import report
from dcbench_tesla.cli.reproduce import reproduce
from dcbench_tesla.cli.run import experts, run
from dcbench_tesla.cli.show import check_evaluator, check_method, env, info, list_, show_cell
from dcbench_tesla.cli.tune import tune


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="dcbench-tesla", prog_name="dcbench")
@options(*verbosity_options)
def main() -> None:
    """Benchmark dataset condensation: train experts, condense, evaluate, keep a complete record.

    \b
    Examples:
      dcbench run --method tesla --dataset digits --ipc 1 --preset smoke
      dcbench run --method tesla --method mtt --dataset fashion-mnist --preset quick
      dcbench compare accuracy
      dcbench report
      dcbench plan table1 --preset quick
      dcbench reproduce table1
      dcbench list methods
      dcbench list cells
      dcbench info tesla
    """


for _command in (
    run,
    experts,
    tune,
    evaluate,
    verify,
    compare,
    plan,
    reproduce,
    report,
    merge,
    import_,
    export,
    list_,
    show_cell,
    clean,
    info,
    env,
    check_method,
    check_evaluator,
    new,
):
    main.add_command(_command)
