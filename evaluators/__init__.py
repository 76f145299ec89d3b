"""The evaluators that come with the harness, one file each, and the modules that they share.

``training`` holds the training loop, ``cross_architecture`` the image sizes and recipes of all but ``convnet``.
"""

if __name__ != "dcbench_tesla.evaluators":
    # imported under two names, every class would exist twice, and the two would not be equal
    raise ImportError(f"import this package as dcbench_tesla.evaluators, not as {__name__}")
