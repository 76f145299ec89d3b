"""What a notebook shows: whether there is one, and areas of HTML in it that can change."""

import sys
from typing import Any


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class Area:
    """An area of the present cell's output; every text replaces the one before. Only for a notebook."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, html: str) -> None:
        """Show ``html`` in the area."""
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(html), display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(HTML(html))  # type: ignore[no-untyped-call]
