"""Processes that end together with the process that started them."""

import os
import signal
import threading
import time
from contextlib import suppress

GRACE_S = 30.0
"""Seconds between SIGTERM, on which a process writes its checkpoint, and SIGKILL."""


def tell_parent(answer: int, text: str) -> None:
    """Write a line to the pipe ``answer``; if the process at the other end is gone, nobody reads it."""
    with suppress(BrokenPipeError):
        rest = f"{text}\n".encode()
        while rest:
            rest = rest[os.write(answer, rest) :]


def stop_with_stdin() -> None:
    """Stop this process, first by SIGTERM, when its standard input ends.

    Standard input ends when the process at the other end of the pipe is gone, even after ``kill -9``.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
