"""The teacher of the label regime ``teacher``: expert 0 of a data set, which labels the batches of an evaluation.

It is trained by plain SGD, whatever the experts of the cell's method are, so that methods have the same teacher.
Snapshots do not hold the running statistics of batch norm: in place of a network that has it the teacher is a ConvNet
of the same width and depth.
"""

from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils import vector_to_parameters

from dcbench_tesla.compute.networks import Network, has_batch_norm
from dcbench_tesla.config import EvaluationSettings, ExpertSettings, NetworkSettings
from dcbench_tesla.experts.store import ExpertStore
from dcbench_tesla.interface import Teacher

EXPERT = 0
"""The number of the expert that is the teacher."""

_LOSS = "kl"


def teacher_network(network: NetworkSettings, skeleton: Network) -> NetworkSettings:
    """Return the network of the teacher in a cell that has ``network``, of which ``skeleton`` is one without values."""
    return NetworkSettings(width=network.width, depth=network.depth) if has_batch_norm(skeleton) else network


def teacher_training(experts: ExpertSettings) -> ExpertSettings:
    """Return how the teacher is trained in a cell whose experts are trained by ``experts``."""
    return replace(experts, gsam_rho=0.0, gsam_alpha=0.0)


def teacher_facts(evaluation: EvaluationSettings, experts: str) -> dict[str, Any]:
    """Return what of a teacher defines an evaluation; ``experts`` is the key of its recipe."""
    about = {"expert": EXPERT, "epochs": evaluation.teacher_epochs, "experts": experts}
    return {**about, "temperature": evaluation.temperature, "loss": _LOSS}


def teacher_of(store: ExpertStore, evaluation: EvaluationSettings, device: torch.device) -> Teacher:
    """Return the teacher from its snapshot in ``store``.

    Raises:
        CorruptFileError: the snapshot is damaged or gone.
    """
    network = store.recipe.build_network().to(device).eval().requires_grad_(False)
    vector_to_parameters(store.snapshot(EXPERT, evaluation.teacher_epochs).to(device), network.parameters())
    return Teacher(network=network.requires_grad_(False), temperature=evaluation.temperature)
