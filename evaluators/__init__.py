"""The evaluators that come with the harness, one file each, and the training loop they share (``training``)."""

if __name__ != "dcbench_tesla.evaluators":
    # two copies of a module make two copies of every class, and they are never equal
    raise ImportError(f"import this package as dcbench_tesla.evaluators, not as {__name__}")
