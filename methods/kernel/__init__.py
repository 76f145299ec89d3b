"""Ridge regression with kernels on the synthetic images: :mod:`.kip` and :mod:`.frepo`."""
