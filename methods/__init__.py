"""The methods that come with the harness, one file each, and what several of them share.

=====================  =========================================================================
``trajectory``         the three gradients of trajectory matching: the engine
``matching``           the condenser that ``mtt``, ``tesla`` and ``tesla-exact`` are settings of
``class_matching``     what ``dm``, ``dc`` and ``dsa`` share: real and synthetic batches by class
``gradient_matching``  what ``dc`` and ``dsa`` share: the distance of gradients, the two loops
``coreset``            what ``herding`` and ``k-center`` share: features of a trained network
``selection``          sets of real images
=====================  =========================================================================
"""

if __name__ != "dcbench_tesla.methods":
    # two copies of a module make two copies of every class, and they are never equal
    raise ImportError(f"import this package as dcbench_tesla.methods, not as {__name__}")
