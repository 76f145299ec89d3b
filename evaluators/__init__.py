"""The evaluators that come with the harness, one file each, and what they share.

``training``: the training loop; ``cross_architecture``: image sizes and recipes of all but ``convnet``.
"""

if __name__ != "dcbench_tesla.evaluators":
    # two copies of a module make two copies of every class, and they are never equal
    raise ImportError(f"import this package as dcbench_tesla.evaluators, not as {__name__}")
