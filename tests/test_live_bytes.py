"""The meter of live tensor bytes against hand counts, and against the allocator's own count on the CPU."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from dcbench_tesla.compute.networks import ConvNet
from dcbench_tesla.profilers import LiveBytes

both = pytest.mark.parametrize("device", ["cpu", "meta"])


@both
def test_a_tensor_counts_while_it_lives(device: str) -> None:
    with LiveBytes() as meter:
        x = torch.zeros(100, device=device)
        y = torch.zeros(3, 5, dtype=torch.float64, device=device)
        assert meter.live_bytes(device) == 400 + 120
        del x
        assert meter.live_bytes(device) == 120
        z = torch.zeros(10, dtype=torch.uint8, device=device)
    assert meter.live_bytes(device) == 130
    del y, z  # releases are seen after the context too
    assert meter.live_bytes(device) == 0
    assert meter.peak_bytes(device) == 520


@both
def test_a_storage_counts_once_until_its_last_view_dies(device: str) -> None:
    with LiveBytes() as meter:
        x = torch.zeros(10, 10, device=device)
        row, other, same = x[3], x.t(), x.detach()
        x.add_(1)
        assert meter.live_bytes(device) == 400
        del x, other, same
        assert meter.live_bytes(device) == 400  # a row of ten keeps all hundred
        del row
    assert meter.live_bytes(device) == 0
    assert meter.peak_bytes(device) == 400


@both
def test_peak_of_a_chain_has_two_tensors(device: str) -> None:
    with LiveBytes() as meter:
        x = torch.zeros(1000, device=device)
        for _ in range(5):
            x = x + 1  # the old one dies when the new one is there
    assert meter.live_bytes(device) == 4000
    assert meter.peak_bytes(device) == 8000


@both
def test_saved_tensors_count_until_backward_frees_them(device: str) -> None:
    x = torch.zeros(1000, device=device, requires_grad=True)
    with LiveBytes() as meter:
        z = x.exp().sin().sum()  # exp saves its result, which is also sin's input; sin's result is not kept
        gc.collect()
        assert meter.live_bytes(device) == 4000 + 4  # no Python name holds the 4000
        assert meter.peak_bytes(device) == 8000 + 4
        z.backward()
        assert meter.live_bytes(device) == 4000 + 4  # x.grad, z
    x.grad = None
    assert meter.live_bytes(device) == 4


@both
def test_graphs_of_a_double_backward_count(device: str) -> None:
    x = torch.zeros(1000, device=device, requires_grad=True)
    with LiveBytes() as meter:
        (g,) = torch.autograd.grad(x.exp().sum(), x, create_graph=True)
        s = g.sum()  # g = 1 * exp(x): besides g and s, both factors are saved, the 1 as a view of one number
        assert meter.live_bytes(device) == 4000 + 4 + 4000 + 4
        del g
        (h,) = torch.autograd.grad(s, x)
        del s
        gc.collect()
        assert meter.live_bytes(device) == 4000
    del h
    assert meter.live_bytes(device) == 0


def test_tensors_from_before_count_only_where_handed_over() -> None:
    x, y = torch.zeros(100), torch.zeros(50)
    with LiveBytes() as meter:
        x.mul_(2)
        views = [x[:5], y.view(5, 10), torch.add(x, 1, out=x)]
        assert meter.live_bytes("cpu") == meter.peak_bytes("cpu") == 0
    del views
    with LiveBytes(count=[x, x[3:], y]) as meter:
        x.mul_(2)
        assert meter.live_bytes("cpu") == meter.peak_bytes("cpu") == 600
        del x
        assert meter.live_bytes("cpu") == 200


def test_every_device_type_has_its_own_count() -> None:
    with LiveBytes() as meter:
        x = torch.zeros(100)
        y = torch.zeros(25, device="meta")
        z = x.to("meta")
        assert (meter.live_bytes("cpu"), meter.live_bytes(torch.device("meta"))) == (400, 500)
        del z
    assert (meter.peak_bytes("cpu"), meter.peak_bytes("meta"), meter.peak_bytes("cuda")) == (400, 500, 0)
    assert y.is_meta


def test_rounding_is_a_storage_at_a_time() -> None:
    with LiveBytes(round_to=512) as meter:
        x = [torch.zeros(1), torch.zeros(128), torch.zeros(129), torch.zeros(0)]
        assert meter.live_bytes("cpu") == 512 + 512 + 1024 + 0
    del x
    assert meter.live_bytes("cpu") == 0
    with pytest.raises(ValueError, match="round_to must be at least 1"):
        LiveBytes(round_to=0)


@both
def test_sizes_changed_in_place(device: str) -> None:
    with LiveBytes() as meter:
        x = torch.empty(0, device=device)
        x.resize_(100)
        assert meter.live_bytes(device) == 400
        torch.add(torch.zeros(200, device=device), 1, out=x.resize_(0))
        assert meter.live_bytes(device) == 800
        x.untyped_storage().resize_(40)  # no operation, yet noticed when asked ...
        assert meter.live_bytes(device) == 40
        x.untyped_storage().resize_(800)
        x.zero_()  # ... and by the next operation on it
        assert meter.peak_bytes(device) == 1600
    del x
    assert meter.live_bytes(device) == 0


def test_tensors_made_from_data_count() -> None:
    with LiveBytes() as meter:
        x = torch.tensor([1.0, 2.0, 3.0])
        y = torch.as_tensor(0.5, dtype=torch.float64)
        assert meter.live_bytes("cpu") == 12 + 8
        x = x.to_sparse()  # has no storage of its own: not counted
    assert meter.live_bytes("cpu") == y.nbytes


def train_step(device: str) -> Tensor:
    """One training step of a small network: convolutions, normalisation, pooling, cross-entropy, backward."""
    with torch.device(device):
        net = ConvNet(3, 10, 16, width=16)
    images, labels = torch.zeros(8, 3, 16, 16, device=device), torch.zeros(8, dtype=torch.int64, device=device)
    loss = F.cross_entropy(net(images), labels)
    loss.backward()
    with torch.no_grad():
        for p in net.parameters():
            assert p.grad is not None
            p.sub_(0.1 * p.grad)
    return loss


def live_peak(run: Callable[[], object], device: str) -> int:
    with LiveBytes() as meter:
        run()
    gc.collect()
    assert meter.live_bytes(device) == 0
    return meter.peak_bytes(device)


def allocator_peak(run: Callable[[], object]) -> int:
    """The largest sum of allocations less releases that PyTorch's own CPU allocator reports."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += int(event.nbytes())
        peak = max(peak, live)
    return peak


def test_the_peak_is_the_one_the_allocator_reports() -> None:
    counted = live_peak(lambda: train_step("cpu"), "cpu")
    assert counted == pytest.approx(allocator_peak(lambda: train_step("cpu")), rel=1e-3)
    assert counted > 500_000


def test_meta_and_fake_tensors_have_the_same_peak_as_real_ones() -> None:
    real = live_peak(lambda: train_step("cpu"), "cpu")
    assert live_peak(lambda: train_step("meta"), "meta") == pytest.approx(real, rel=1e-2)
    with FakeTensorMode():
        assert live_peak(lambda: train_step("cpu"), "cpu") == real


def test_fake_tensors_count_under_the_device_they_pretend_to_be_on() -> None:
    with FakeTensorMode(), LiveBytes(round_to=512) as meter:
        x = torch.zeros(100, device="cuda")
        y = x + 1
        assert meter.live_bytes("cuda") == 1024
        assert meter.live_bytes("meta") == meter.live_bytes("cpu") == 0
        del y
    assert meter.live_bytes("cuda") == 512


def test_a_meter_can_be_entered_again_and_inside_another() -> None:
    outer, inner = LiveBytes(), LiveBytes()
    with outer:
        x = torch.zeros(10)
        with inner:
            y = torch.zeros(20)
    with outer:
        z = torch.zeros(30)
    assert (outer.live_bytes("cpu"), inner.live_bytes("cpu")) == (240, 80)
    del x, y, z
    assert (outer.live_bytes("cpu"), inner.live_bytes("cpu")) == (0, 0)
