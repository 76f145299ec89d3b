"""Links that leave ``docs/``: pages link to files of the repository as a code host wants it, ``../results/x.md``.

MyST offers a file outside for download, unless its name looks like a page's (``.md``); here those are offered too. A
folder, for which a site that knows no repository has no address, becomes plain text. What does not exist stays a
warning.
"""

import os
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def _target(app: Sphinx, link: addnodes.pending_xref) -> Path | None:
    """Return the file or folder outside the pages that ``link`` leads to, if there is one."""
    if link["refdomain"] is None:
        path = Path(app.env.relfn2path(link["reftarget"])[1])
        return path if path.is_dir() else None
    if link["refdomain"] != "doc" or link["reftarget"] in app.env.found_docs:
        return None
    path = Path(app.srcdir, f"{link['reftarget']}.md")
    return path if path.is_file() else None


def _replace(app: Sphinx, doctree: nodes.document) -> None:
    for link in list(doctree.findall(addnodes.pending_xref)):
        target = _target(app, link) if link["reftype"] == "myst" else None
        if target is None:
            continue
        if target.is_dir():
            link.replace_self(link.children)
            continue
        here = Path(app.env.doc2path(app.env.docname)).parent
        attributes = {**link.attributes, "refdomain": None, "reftarget": os.path.relpath(target, here)}
        link.replace_self(addnodes.download_reference("", "", *link.children, **attributes))


def setup(app: Sphinx) -> dict[str, bool]:
    """Take over the links before Sphinx collects the files for download."""
    app.connect("doctree-read", _replace, priority=100)
    return {"parallel_read_safe": True}
