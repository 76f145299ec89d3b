"""The trained network that ``herding``, ``k-center`` and ``rded`` look at real images with: expert 0."""

from torch.nn.utils import vector_to_parameters

from dcbench_tesla.compute.networks import Network
from dcbench_tesla.interface import Problem


def trained_network(problem: Problem, epochs: int) -> Network:
    """Return expert 0 after ``epochs`` epochs of training on the real images, in evaluation mode on the device."""
    assert problem.experts is not None, "the core provides the experts a method requests"
    network = problem.build_network().to(problem.device).eval()
    vector_to_parameters(problem.experts.snapshot(0, epochs), network.parameters())
    return network
