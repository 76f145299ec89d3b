"""Herding: a coreset whose mean feature follows that of the class."""

import torch
from torch import Tensor

from .coreset import Coreset


class Herding(Coreset):
    """Real images whose mean feature is nearest to that of their class, chosen greedily.

    Welling, "Herding Dynamical Weights to Learn", ICML 2009; as a coreset in Rebuffi et al., iCaRL, CVPR 2017.
    """

    @staticmethod
    def choose(features: Tensor, count: int) -> Tensor:
        """Choose, one after another, the image that brings the mean of the chosen ones nearest to the mean of all."""
        mean, total = features.mean(0), torch.zeros_like(features[0])
        left = torch.ones(len(features), dtype=torch.bool, device=features.device)
        chosen = []
        for k in range(1, count + 1):
            distance = (mean - (total + features) / k).square().sum(1)
            best = distance.masked_fill(~left, torch.inf).argmin()
            left[best] = False
            total = total + features[best]
            chosen.append(best)
        return torch.stack(chosen)
