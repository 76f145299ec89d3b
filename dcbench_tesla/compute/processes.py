"""Processes that end with the one that started them."""

import os
import signal
import threading
import time

GRACE_S = 30.0
"""Seconds from SIGTERM, upon which a process writes its checkpoint, to SIGKILL."""


def stop_with_stdin() -> None:
    """Stop as SIGTERM does when standard input ends: when whoever holds its other end is gone, even by ``kill -9``."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
