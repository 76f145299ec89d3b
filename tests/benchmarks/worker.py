"""``python -m tests.benchmarks.worker NAME``: a process of its own for one piece of work of :mod:`.work`.

For every line on standard input it runs the work once, and answers with a line of JSON: ``seconds`` on the wall,
``cpu_seconds`` of the process, ``peak_resident_bytes`` so far. Ours runs as a cell does (:class:`Execution`), ``plain``
as a script does: nothing is set but the number of threads.
"""

import json
import os
import resource
import sys
import time

import torch

from dcbench_tesla.cell import Execution
from tests.benchmarks.work import WORK


def main() -> None:
    """Make ready, then run when asked."""
    name = sys.argv[1]
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        torch.set_num_threads(1)
        if not name.endswith("plain"):
            Execution("cpu", 1).apply()
        run = WORK[name]()
        for _ in sys.stdin:
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({**took, "peak_resident_bytes": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
