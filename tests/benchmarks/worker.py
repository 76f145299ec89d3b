"""``python -m tests.benchmarks.worker NAME [--count]``: a process of its own for one piece of work of :mod:`.work`.

For every line on standard input it runs the work once, and answers with a line of JSON: ``seconds`` on the wall,
``cpu_seconds`` of the process, ``peak_resident_bytes`` so far, and the ``rate`` where the work found one. Ours runs as
a cell does (:class:`Execution`), ``plain`` as a script does: nothing is set but the number of threads.

With ``--count`` it answers with the number of operations of one run, and ends: a compiled step is run uncompiled for
that, the same functions; training runs uncompiled under a dispatch mode by itself.
"""

import json
import os
import resource
import sys
import time
from unittest import mock

import torch

from dcbench_tesla.cells.execution import Execution
from dcbench_tesla.methods.inner.step import CompiledStep
from tests.benchmarks.limit import Operations
from tests.benchmarks.turns import THREADS
from tests.benchmarks.work import WORK


def main() -> None:
    """Make ready, then run when asked."""
    name = sys.argv[1]
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        torch.set_num_threads(THREADS)
        if not name.endswith("plain"):
            Execution("cpu", THREADS).apply()
        if "--count" in sys.argv:
            print(operations(name), file=answers)
            return
        run = WORK[name]()
        for _ in sys.stdin:
            wall, cpu = time.perf_counter(), time.process_time()
            found = run()
            took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            rate = found if isinstance(found, float) else None
            print(json.dumps({**took, "peak_resident_bytes": peak, "rate": rate}), file=answers, flush=True)


def operations(name: str) -> int:
    """Return the operations of one run of a piece of work."""
    with mock.patch.object(CompiledStep, "_run", lambda _self, _what, function, *given: function(*given)):
        run = WORK[name]()
        counted = Operations()
        with counted:
            run()
    return counted.count


if __name__ == "__main__":
    main()
