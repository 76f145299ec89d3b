"""What all tests share: Ctrl-C is heard, and each page of examples, which writes results, runs in its own folder."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.doctest import DoctestItem


@pytest.fixture(autouse=True, scope="session")
def _hear_ctrl_c() -> Iterator[None]:
    """A shell's background ignores SIGINT, which processes inherit: then no test of Ctrl-C could pass."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_thread() -> None:
    """PyTorch computes with one thread, as in every process whose bytes are compared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, DoctestItem):
        monkeypatch.chdir(tmp_path)
