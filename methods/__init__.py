"""The methods that come with the harness, one file each, and what several of them share.

================  ==============================================================================
``trajectory``    the three gradients of trajectory matching: the engine
``matching``      the condenser that ``mtt``, ``tesla`` and ``tesla-exact`` are settings of
``selection``     what ``random`` and ``whole`` share: sets of real images
================  ==============================================================================
"""

if __name__ != "dcbench_tesla.methods":
    # two copies of a module make two copies of every class, and they are never equal
    raise ImportError(f"import this package as dcbench_tesla.methods, not as {__name__}")
