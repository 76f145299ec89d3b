"""Where a piece of work spends its time: ``python -m tests.benchmarks.profile "pass 2, exact, compiled"``.

It prints the share of each kind of kernel: convolutions forwards and backwards, matrix products, the pointwise and
reduction kernels that the compiler fused, and the rest.
"""

import sys
from collections import Counter

import torch
import torch._inductor.config as inductor
from torch.profiler import ProfilerActivity, profile

from dcbench_tesla.cells.execution import Execution
from tests.benchmarks.turns import THREADS
from tests.benchmarks.work import WORK

_REPETITIONS = 5
_KINDS = {  # beginnings of names of kernels
    "convolution, forward": ("aten::mkldnn_convolution", "mkldnn::_convolution", "aten::convolution_overrideable"),
    "convolution, backward": ("aten::convolution_backward", "aten::mkldnn_convolution_backward"),
    "matrix product": ("aten::mm", "aten::addmm", "aten::bmm", "mkl::"),
    "fused kernels": ("graph_", "cpp_fused"),
}


def shares(name: str) -> dict[str, float]:
    """Return the share of each kind of kernel in the time of a piece of work, without its first run."""
    inductor.cpp.enable_kernel_profile = True  # or the profiler does not see fused kernels
    Execution("cpu", THREADS).apply()
    run = WORK[name]()
    run()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(_REPETITIONS):
            run()
    took = Counter[str]()
    for event in recorded.key_averages():
        took[_kind(event.key)] += event.self_cpu_time_total
    return {kind: us / took.total() for kind, us in took.most_common()}


def _kind(kernel: str) -> str:
    return next((kind for kind, starts in _KINDS.items() if kernel.startswith(starts)), "the rest")


def main() -> None:
    """Print the shares."""
    torch.set_num_threads(THREADS)
    for kind, share in shares(sys.argv[1]).items():
        print(f"{kind:24}{100 * share:5.1f} %")


if __name__ == "__main__":
    main()
