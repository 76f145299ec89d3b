"""Selecting real images: `random`, `whole`, `herding` and `k-center`."""
