"""Make sphinx-click show a command as its ``--help`` does.

Blocks that click prints as they stand (``\\b``) become literal blocks, where sphinx-click makes verses of them; a
first line that ends with a colon is such a block's title. Options show the kind of their value, not its name in the
code.
"""

import inspect
import re
from collections.abc import Iterator

import click
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

_SPECIAL = re.compile(r"`([^`]+)`|([*_|\\])")


def _block(lines: list[str]) -> Iterator[str]:
    if lines[0].endswith(":"):
        yield from (lines.pop(0), "")
    block = inspect.cleandoc("\n" + "\n".join(lines)).splitlines()
    yield from (".. code-block:: text", "", *(f"   {line}" for line in block), "")


def _inline(line: str) -> str:
    """Return a line of a paragraph with `code` as reStructuredText marks it, and nothing else marked up."""
    return _SPECIAL.sub(lambda found: f"``{found[1]}``" if found[1] else f"\\{found[2]}", line)


def as_rst(text: str) -> Iterator[str]:
    """Return a help text as reStructuredText: paragraphs, and literal blocks behind ``\\b``."""
    for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(text)):
        lines = paragraph.splitlines()
        if lines[0].strip() == "\b":
            yield from _block(lines[1:])
        else:
            yield from (*map(_inline, lines), "")


def _describe(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    lines[:] = as_rst(ctx.command.help or "")


def _metavars(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    names = {f" <{option.name}>": f" <{option.make_metavar(ctx).strip('[]')}>" for option in ctx.command.params}
    for number, line in enumerate(lines):
        if line.startswith(".. option::"):
            head, bracket, name = line.partition(" <")
            lines[number] = head + names.get(bracket + name, bracket + name)


def _link_sections(app: Sphinx, doctree: nodes.document) -> None:
    """Let Markdown links lead to the sections of commands on the same page, of which MyST does not know."""
    sections = {name for section in doctree.findall(nodes.section) for name in section["ids"]}
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["reftype"] == "myst" and link["refdomain"] is None and link["reftarget"] in sections:
            link.replace_self(nodes.reference("", "", *link.children, refid=link["reftarget"], internal=True))


def setup(app: Sphinx) -> dict[str, bool]:
    """Take over what sphinx-click makes of a command's help and options, and links to it."""
    app.connect("sphinx-click-process-description", _describe)
    app.connect("sphinx-click-process-options", _metavars)
    app.connect("doctree-read", _link_sections)
    return {"parallel_read_safe": True}
