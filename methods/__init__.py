"""The methods that come with the harness: one folder per family, one file per method.

==============  ======================================================================================================
``stored``      no method and no folder: the stored form of synthetic images, a setting of several families
``inner``       no method, but the gradient through a network's training, which ``trajectory`` and ``bilevel`` build on
``trajectory``  ``mtt``, ``tesla`` and ``tesla-exact``; ``matching`` holds the condenser that all three share.
                ``ftd`` and ``datm``, whose common base in ``successors`` is built on it
``bilevel``     ``dd`` and ``rat-bptt``; ``through_time`` holds the loop through fresh networks that both share
``kernel``      ``kip`` and ``frepo``, ridge regression; ``pool`` and ``lamb`` hold the networks and optimiser of FrePo
``classwise``   ``dc``, ``dsa``, ``dm``, ``idc`` and ``cafe``, with a common base in ``matching``; what matches
                gradients shares ``gradient_matching``
``subset``      ``random``, ``whole``, ``herding``, ``k-center``, ``class-means``; they share ``selection``, ``coreset``
==============  ======================================================================================================
"""

if __name__ != "dcbench_tesla.methods":
    # imported under two names, every class would exist twice, and the two would not be equal
    raise ImportError(f"import this package as dcbench_tesla.methods, not as {__name__}")
