"""The stored form: decoding and encoding by hand, and as a setting of the methods that take it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcbench_tesla.cells.identity import hashed_settings
from dcbench_tesla.compute.networks import FlatNetwork
from dcbench_tesla.conformance import tiny_problem, tiny_sets
from dcbench_tesla.data.preprocessing import Preprocessing
from dcbench_tesla.distilled import Decoder
from dcbench_tesla.errors import UsageError
from dcbench_tesla.interface import Condenser, ExpertSource, Problem, Sizes
from dcbench_tesla.methods.classwise.dm import DM
from dcbench_tesla.methods.classwise.dsa import DSA
from dcbench_tesla.methods.classwise.idc import IDC
from dcbench_tesla.methods.stored import StoredForm
from dcbench_tesla.methods.trajectory.datm import DATM
from dcbench_tesla.methods.trajectory.ftd import FTD
from dcbench_tesla.methods.trajectory.matching import TrajectoryMatching
from dcbench_tesla.methods.trajectory.mtt import MTT
from dcbench_tesla.methods.trajectory.tesla import TESLA
from dcbench_tesla.methods.trajectory.tesla_exact import TESLAExact

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 5, "expert_epochs": 1, "max_start_epoch": 2, "last_epoch": 2}


def problem(side: int = 8) -> Problem:
    found = tiny_problem(request=True)
    return found if side == found.task.side else replace(found, task=replace(found.task, side=side))


def form(factor: int, side: int = 8) -> StoredForm:
    """A form whose grey is that of pixels which networks see as (pixel - 0.25) / 0.5."""
    found = problem(side)
    found.train.preprocessing = Preprocessing("standardise", torch.tensor([0.25]), torch.tensor([0.5]))
    return StoredForm(factor, found)


def test_decoding_by_hand() -> None:
    """A tile of 2 pixels becomes 4: at -1/4, 1/4, 3/4 and 5/4 of the way from the first to the second, held inside."""
    stored = torch.tensor([[0.0, 4.0, 1.0, 1.0], [8.0, 12.0, 1.0, 1.0], [0.0, 0.0, 8.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = form(2, 4).decode(stored.view(1, 1, 4, 4))
    assert found.shape == (4, 1, 4, 4)
    first = [[0.0, 1.0, 3.0, 4.0], [2.0, 3.0, 5.0, 6.0], [6.0, 7.0, 9.0, 10.0], [8.0, 9.0, 11.0, 12.0]]
    assert found[0, 0].tolist() == first
    assert found[1].unique().tolist() == [1.0]
    assert found[2].unique().tolist() == [0.0]
    fading = torch.tensor([1.0, 0.75, 0.25, 0.0])
    assert torch.equal(found[3, 0], 8 * fading[:, None] * fading)


def test_a_remainder_is_grey() -> None:
    """5 pixels in 2 x 2 tiles of 3: the last row and column of the grid are 0.5, here (0.5 - 0.25) / 0.5."""
    found = form(2, 5).decode(torch.zeros(1, 1, 5, 5))
    assert float(found[0].abs().max()) == 0
    for tile, lines in ((1, found[1, 0].T), (2, found[2, 0]), (3, found[3, 0])):
        assert lines[-1].tolist() == [0.5] * 5, tile  # the pixel at the border is the padded one
    assert found[3, 0, 0, 0] == 0


def test_encoding_takes_the_nearest_pixels_and_is_undone_where_images_are_flat() -> None:
    images = torch.arange(4 * 16.0).view(4, 1, 4, 4)
    stored = form(2, 4).encode(images)
    kept = [[0, 2], [8, 10]]  # of each image's pixels, 0 to 15
    rows = [
        [*(16 * a + n for n in kept[y]), *(16 * b + n for n in kept[y])] for a, b in ((0, 1), (2, 3)) for y in (0, 1)
    ]
    assert stored[0, 0].tolist() == rows
    flat = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 8, 8)
    for factor in (1, 2):
        assert torch.equal(form(factor).decode(form(factor).encode(flat)), flat)
    assert form(3).encode(torch.zeros(9, 1, 8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(("factor", "side"), [(1, 8), (2, 8), (3, 8), (2, 5)])
def test_the_gradient_is_pulled_back_by_the_adjoint(factor: int, side: int) -> None:
    """<back(g), d> = <g, decode(x + d) - decode(x)> for an affine map."""
    x, d = torch.randn(2, 2, 1, side, side, dtype=torch.float64)
    decode = form(factor, side).decode
    g = torch.randn(2 * factor**2, 1, side, side, dtype=torch.float64)
    along = float((g * (decode(x + d) - decode(x))).sum())
    assert float((form(factor, side).pull_back(g) * d).sum()) == pytest.approx(along, rel=1e-10)


def test_labels_go_with_their_images() -> None:
    two = form(2)
    assert two.repeated(torch.tensor([3, 5])).tolist() == [3] * 4 + [5] * 4
    values = torch.arange(8.0).view(8, 1)
    assert two.summed(values).tolist() == [[6.0], [22.0]]
    assert two.averaged(values).tolist() == [[1.5], [5.5]]
    assert form(1).averaged(values) is values


def test_more_start_images_are_drawn_and_a_small_class_gives_some_twice() -> None:
    found = tiny_problem(request=False)
    assert torch.equal(found.draw_real("start", per_class=2), found.draw_real("start"))
    many = found.draw_real("start", per_class=30).view(3, 30)
    for c, own in enumerate(many):
        assert own.unique().tolist() == found.train.members[c].tolist()
        assert own.bincount().max() == 3


# ---- as a setting ----------------------------------------------------------------------------------------------------


def started(kind: type[Condenser], **settings: Any) -> Any:
    trajectory = SHORT if issubclass(kind, TrajectoryMatching) else {"real_batch": 4}
    method = kind(kind.Settings(**{**trajectory, "factor": 2, **settings}))
    method.setup(tiny_problem(request=True))
    return method


@pytest.mark.parametrize("kind", [DM, DSA, IDC, MTT, TESLA, TESLAExact, FTD, DATM])
def test_a_set_holds_the_stored_images_and_decodes_to_what_was_trained_on(kind: type[Condenser]) -> None:
    method = started(kind, **({"rounds": 1} if kind is IDC else {}))
    method.iterate(0)
    distilled = method.distilled()
    assert (len(distilled), distilled.training_images, distilled.decoder) == (6, 24, Decoder(2))
    stored = distilled.images
    decode = (method.form if hasattr(method, "form") else method._form).decode
    assert torch.equal(distilled.decoded().images, decode(stored))
    plain = started(kind, factor=1).distilled()
    assert (plain.decoder, plain.version) == (None, 1)


def test_dm_matches_what_the_images_hold() -> None:
    method = started(DM, lr_images=0.5, momentum=0.0)
    stored = method.images.clone().requires_grad_()
    shown = F.interpolate(  # tiles by slices
        torch.cat([stored[n : n + 1, :, y : y + 4, x : x + 4] for n in range(6) for y in (0, 4) for x in (0, 4)]),
        size=(8, 8),
        mode="bilinear",
    )
    network, loss = method.fresh_network(0), torch.zeros(())
    for chunk in method.chunks(0):
        for c, draw in enumerate(chunk.draws):
            fake = network.features(method.augmentation(shown[8 * c : 8 * c + 8], draw)).mean(0)
            loss = loss + ((network.features(chunk.real[c]).mean(0).detach() - fake) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, stored)
    assert method.iterate(0).loss == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(method.images, stored.detach() - 0.5 * gradient, rtol=1e-4, atol=1e-6)


class Doubled:
    """Experts in float64."""

    def __init__(self, experts: ExpertSource) -> None:
        self._experts = experts

    def __len__(self) -> int:
        return len(self._experts)

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        return self._experts.snapshot(expert, epoch).double()


@pytest.mark.parametrize("kind", [MTT, TESLAExact])
def test_gradients_of_trajectory_matching_are_those_of_the_stored_images(kind: type[TrajectoryMatching]) -> None:
    method = started(kind, labels="learned", label_space="probabilities")
    assert method.problem.experts is not None
    method.problem = replace(method.problem, experts=Doubled(method.problem.experts))
    values = method._values = {name: value.double() for name, value in method._values.items()}
    _, found = method.gradients(0)
    for name in ("images", "labels"):
        start, way = values[name], torch.randn(values[name].shape, generator=torch.Generator().manual_seed(1)).double()
        assert found[name].shape == start.shape
        losses = []
        for step in (1e-6, -1e-6):
            values[name] = start + step * way
            losses.append(method.gradients(0)[0].loss)
        values[name] = start
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(float((found[name] * way).sum()), rel=1e-5)


def test_a_teacher_labels_what_an_image_holds() -> None:
    method = started(TESLA, labels="target")
    network, theta = FlatNetwork(method.problem.build_network), method._experts.snapshot(*method._teacher(0))
    shown = method.distilled().decoded()
    expected = network(theta, shown.images).softmax(1).view(6, 4, 3).mean(1)
    torch.testing.assert_close(method.distilled().labels, expected, rtol=1e-5, atol=1e-6)


def test_datm_starts_from_images_of_their_class_and_labels_of_all_four() -> None:
    method = started(DATM)
    assert method._values["labels"].shape == (6, 3)
    indices = method._start_indices()
    assert indices.shape == (24,)
    assert torch.equal(method.problem.train.labels[indices], torch.arange(3).repeat_interleave(8))
    shown = method._form.decode(method._values["images"])
    expected = method._start_logits(shown).view(6, 4, 3).mean(1)
    torch.testing.assert_close(method._values["labels"], expected)


def test_factor_1_is_in_no_key_but_that_of_idc() -> None:
    for kind in (DM, DSA, MTT, TESLA, TESLAExact, FTD, DATM):
        assert "factor" not in hashed_settings(kind.Settings(), ())
        assert hashed_settings(kind.Settings(factor=2), ())["factor"] == 2
    assert [hashed_settings(IDC.Settings(factor=f), ())["factor"] for f in (1, 2)] == [1, 2]


def test_micro_batches_are_of_training_images() -> None:
    sizes = Sizes(smallest_class=10, images=10, activation=5 * 2**20 // 4 // 8)
    for factor, batch in ((1, 5), (2, 8)):  # of 10 and 40 images, 8 of which fill the caches
        assert TESLA.for_device(TESLA.Settings(factor=factor), torch.device("cpu"), sizes).micro_batch == batch


def test_an_estimate_trains_on_as_many_images() -> None:
    real = tiny_sets()["real images (uint8)"]
    stand_in = DSA.stand_in(DSA.Settings(factor=2), real)
    assert (stand_in.training_images, len(stand_in)) == (24, 6)
    assert torch.equal(stand_in.images, real.inputs())
    assert DSA.stand_in(DSA.Settings(), real) is real


@pytest.mark.parametrize("factor", [0, 17])
def test_a_factor_that_cannot_be_is_refused(factor: int) -> None:
    for kind in (DSA, TESLA):
        with pytest.raises(UsageError, match=r"factor must be 1 \(images as they are\) to 16"):
            kind.Settings(factor=factor)


def test_images_too_small_for_a_factor_are_refused() -> None:
    with pytest.raises(UsageError, match="factor=9 cuts images of 8 pixels into 9 x 9: lower it"):
        started(DM, factor=9)
