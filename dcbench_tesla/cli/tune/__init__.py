"""`dcbench tune`: the command, and what it prints."""

from dcbench_tesla.cli.tune.command import tune

__all__ = ["tune"]
