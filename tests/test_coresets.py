"""Herding and k-center against brute force on 30 points, and RDED on 30 images."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resize

from dcbench_tesla.compute.networks import ConvNet, flatten_parameters, seeded
from dcbench_tesla.data.augmentation import Augmentation
from dcbench_tesla.data.images import LabelledImages
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Problem, Task
from dcbench_tesla.methods.subset.herding import Herding
from dcbench_tesla.methods.subset.k_center import KCenter
from dcbench_tesla.methods.subset.rded import RDED, RDEDSettings, put_together


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


# ---- rded ------------------------------------------------------------------------------------------------------------


def thirty(side: int = 8) -> Problem:
    """Thirty images of three classes, and a teacher: a random network, far from its initial weights."""
    rng = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (30, 2, side, side), generator=rng, dtype=torch.uint8)
    preprocessing = Preprocessing("standardise", torch.tensor([0.4, 0.6]), torch.tensor([0.3, 0.2]))
    task = Task(
        dataset="toy",
        fingerprint="toy",
        channels=2,
        side=side,
        class_names=tuple("abc"),
        preprocessing=preprocessing,
        augmentation=Augmentation("none"),
    )
    train = LabelledImages(
        pixels, torch.arange(30) % 3, classes=3, max_value=255, preprocessing=preprocessing, device=torch.device("cpu")
    )

    class Teacher:
        def __len__(self) -> int:
            return 1

        def snapshot(self, expert: int, epoch: int) -> Tensor:
            assert (expert, epoch) == (0, 7)
            with seeded(4):
                return flatten_parameters(ConvNet(2, 3, side, width=4)) * 3

    return Problem(
        task=task,
        train=train,
        ipc=2,
        seed=0,
        device=torch.device("cpu"),
        build_network=lambda: ConvNet(2, 3, side, width=4),
        experts=Teacher(),
    )


def shrunk(pixels: Tensor, size: int) -> Tensor:
    """An image (C, h, w) with ``size`` pixels a side."""
    found: Tensor = resize(pixels, [size, size], antialias=True)
    return found


def best_crops(problem: Problem, teacher: nn.Module, c: int, settings: RDEDSettings, tile: int) -> list[Tensor]:
    """The best crop of every image of the pool, with the least loss first, one crop and one image at a time."""
    rng, side = problem.generator("pool", c), problem.task.side
    members = [i for i in range(30) if i % 3 == c]
    pool = [members[i] for i in torch.randperm(10, generator=rng)[: settings.pool or 10].tolist()]
    found = []
    with seeded(problem.seed_for("crops", c)):
        for i in pool:
            image = problem.train.pixels[i].float() / 255
            of_image = []
            for _ in range(settings.crops):
                y, x, h, w = RandomResizedCrop.get_params(image, [settings.least_area, 1.0], [3 / 4, 4 / 3])
                crop = shrunk(image[:, y : y + h, x : x + w], tile)
                inputs = problem.task.preprocessing.forward(shrunk(crop, side)[None])
                loss = -teacher(inputs).log_softmax(1)[0, c].item()
                of_image.append((loss, crop))
            found.append(min(of_image, key=lambda pair: pair[0]))
    return [crop for _, crop in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize(("grid", "pool"), [(0, 0), (2, 0), (1, 6), (2, 3)])
def test_rded_against_brute_force(grid: int, pool: int) -> None:
    settings = RDEDSettings(teacher_epochs=7, pool=pool, crops=4, grid=grid, temperature=2.0)
    problem = thirty()
    method = RDED(settings)
    method.setup(problem)
    found = method.distilled()
    teacher = ConvNet(2, 3, 8, width=4).eval()
    assert problem.experts is not None
    nn.utils.vector_to_parameters(problem.experts.snapshot(0, 7), teacher.parameters())
    f = grid or 1
    wanted = []
    with torch.no_grad():
        for c in range(3):
            asked = replace(settings, pool=max(pool, 2 * f * f) if pool else 0)
            crops = best_crops(problem, teacher, c, asked, 8 // f)[: 2 * f * f]
            for k in range(2):
                own = crops[k * f * f : (k + 1) * f * f]
                rows = [torch.cat(own[r * f : (r + 1) * f], 2) for r in range(f)]
                wanted.append(problem.task.preprocessing.forward(torch.cat(rows, 1)[None]))
        images = torch.cat(wanted)
        torch.testing.assert_close(found.images, images, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.labels, (teacher(images) / 2).softmax(1), rtol=1e-4, atol=1e-5)


def test_rded_with_hard_labels_and_its_errors() -> None:
    method = RDED(RDEDSettings(teacher_epochs=7, labels="hard", pool=5, crops=1))
    method.setup(thirty())
    assert method.distilled().labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert RDEDSettings(labels="hard").inert() == {"temperature": "labels are hard"}
    with pytest.raises(UsageError, match=r"class a has 10 training images, and rded needs 18, 3 x 3 for each of 2"):
        RDED(RDEDSettings(teacher_epochs=7, grid=3)).setup(thirty())
    with pytest.raises(UsageError, match="grid=9 leaves less than a pixel of 8"):
        RDED(RDEDSettings(teacher_epochs=7, grid=9)).setup(thirty())
    with pytest.raises(UsageError, match=r"unknown kind of labels 'sfot'\. Did you mean 'soft'"):
        RDEDSettings(labels="sfot")
    assert [RDED(RDEDSettings())._grid(side) for side in (28, 32, 64, 128)] == [1, 1, 2, 2]


def test_a_side_that_the_crops_do_not_divide_is_cut() -> None:
    tiles = torch.arange(4.0)[:, None, None, None].expand(4, 1, 3, 3)
    made = put_together(tiles, 2, 5)
    assert made.shape == (1, 1, 5, 5)
    assert made[0, 0, :, 0].tolist() == [0, 0, 0, 2, 2]
    assert made[0, 0, 0].tolist() == [0, 0, 0, 1, 1]
