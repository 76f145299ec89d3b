"""Herding and k-center against brute force on 30 points."""

import itertools

import pytest
import torch

from dcbench_tesla.methods.subset.herding import Herding
from dcbench_tesla.methods.subset.k_center import KCenter


@pytest.fixture(params=range(5))
def points(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.randn(30, 3, generator=torch.Generator().manual_seed(request.param))


def test_herding_takes_the_best_next_image(points: torch.Tensor) -> None:
    chosen = Herding.choose(points, 8).tolist()
    assert len(set(chosen)) == 8
    for k in range(8):
        distances = {
            i: float((points[[*chosen[:k], i]].mean(0) - points.mean(0)).norm())
            for i in range(30)
            if i not in chosen[:k]
        }
        assert distances[chosen[k]] == pytest.approx(min(distances.values()), abs=1e-6)


def test_k_center_takes_the_farthest_image(points: torch.Tensor) -> None:
    chosen = KCenter.choose(points, 8).tolist()
    assert len(set(chosen)) == 8
    assert chosen[0] == int((points - points.mean(0)).norm(dim=1).argmin())
    for k in range(1, 8):
        nearest = [min(float((points[i] - points[c]).norm()) for c in chosen[:k]) for i in range(30)]
        assert nearest[chosen[k]] == pytest.approx(max(nearest), abs=1e-6)


def test_k_center_is_within_twice_the_optimum(points: torch.Tensor) -> None:
    few = points[:12]

    def radius(centers: list[int]) -> float:
        return float(torch.cdist(few, few[centers]).amin(1).max())

    optimum = min(radius(list(c)) for c in itertools.combinations(range(12), 3))
    assert radius(KCenter.choose(few, 3).tolist()) <= 2 * optimum + 1e-6
