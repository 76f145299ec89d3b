"""The comparisons of ``dcbench compare``: of finished cells, and of the memory, time and gradients of methods."""
