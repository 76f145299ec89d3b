"""How Sphinx builds the site: ``uv run --group docs sphinx-build -W -q -b html docs site``."""

import os
import sys
from functools import partialmethod
from importlib.metadata import version as installed
from pathlib import Path

from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "dcbench"
author = "The dcbench authors"
copyright = author
release = version = installed("dcbench-tesla")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "command_line",
    "outside_links",
]
exclude_patterns = ["_ext", "_static"]

# --- pages: Markdown ---------------------------------------------------------------------------------------------
myst_enable_extensions = ["colon_fence", "deflist", "html_image"]
myst_heading_anchors = 3
highlight_language = "text"  # blocks of no named language are formulas
smartquotes = False  # `--out` is no dash

# --- examples: run at every build, in a folder of their own; a cell that fails fails the build ---------------------
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"
# the cells call the `dcbench` of this environment; one thread, so that their figures do not depend on the cores
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ["OMP_NUM_THREADS"] = "1"
KernelManager.transport_encryption.default_value = "auto"  # or every kernel warns that it talks unencrypted
# or what a command prints is shown in pieces
NotebookClient.__init__ = partialmethod(NotebookClient.__init__, coalesce_streams=True)

# --- reference: docstrings in Google style -------------------------------------------------------------------------
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # as compact as parameters
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# --- looks ---------------------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"dcbench {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "default"


def setup(app: Sphinx) -> None:
    """Show a default that is made anew for each object as ``...``: ``<factory>`` is no Python, and is not marked up."""

    def readable(
        app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returned: str | None
    ) -> tuple[str | None, str | None]:
        return (signature and signature.replace("<factory>", "..."), returned)

    app.connect("autodoc-process-signature", readable)
