"""Show the blocks that click prints as they stand (``\\b``) as literal blocks, where sphinx-click makes verses of them.

A block's first line is its title if it ends with a colon; the others are shown in monospace.
"""

import inspect
import re
from collections.abc import Iterator

import click
from sphinx.application import Sphinx

_CODE = re.compile(r"`([^`]+)`")


def _block(lines: list[str]) -> Iterator[str]:
    if lines[0].endswith(":"):
        yield from (lines.pop(0), "")
    yield from (".. code-block:: text", "", *(f"   {line}" for line in inspect.cleandoc("\n" + "\n".join(lines)).splitlines()), "")


def as_rst(text: str) -> Iterator[str]:
    """Return a help text as reStructuredText: paragraphs, and literal blocks behind ``\\b``."""
    for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(text)):
        lines = paragraph.splitlines()
        if lines[0].strip() == "\b":
            yield from _block(lines[1:])
        else:
            yield from (*(_CODE.sub(r"``\1``", line) for line in lines), "")


def _describe(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    lines[:] = as_rst(ctx.command.help or "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Take over what sphinx-click makes of a command's help."""
    app.connect("sphinx-click-process-description", _describe)
    return {"parallel_read_safe": True}
