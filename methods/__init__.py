"""The methods that come with the harness: families in folders, one file a method.

==============  ==================================================================================================
``inner``       no method: the gradient of what a network becomes when it is trained, which ``trajectory`` is built on
``trajectory``  ``mtt``, ``tesla``, ``tesla-exact``; in ``matching`` the condenser that they are settings of
``classwise``   ``dc``, ``dsa``, ``dm``; in ``matching`` what they share, in ``gradient_matching`` what two of them do
``subset``      ``random``, ``whole``, ``herding``, ``k-center``; in ``selection`` and ``coreset`` what they share
==============  ==================================================================================================
"""

if __name__ != "dcbench_tesla.methods":
    # two copies of a module make two copies of every class, and they are never equal
    raise ImportError(f"import this package as dcbench_tesla.methods, not as {__name__}")
