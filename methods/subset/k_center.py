"""k-center: a coreset for which no image of a class is far from a chosen one."""

import torch
from torch import Tensor

from .coreset import Coreset


class KCenter(Coreset):
    """Real images chosen greedily so that no image of the class is far from a chosen one.

    Sener, Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018.
    """

    @staticmethod
    def choose(features: Tensor, count: int) -> Tensor:
        """Choose the image nearest to the mean, then repeatedly the image farthest from all chosen ones."""
        chosen = [(features - features.mean(0)).square().sum(1).argmin()]
        nearest = (features - features[chosen[0]]).square().sum(1)
        while len(chosen) < count:
            chosen.append(nearest.argmax())
            nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
        return torch.stack(chosen)
