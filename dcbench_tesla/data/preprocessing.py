"""Preprocessing of pixels before a network sees them: channel standardisation or one of three ZCA whitenings.

Synthetic images are in preprocessed space, so a distilled set is useless without its preprocessing. A preprocessing is
stored as named tensors and a few facts, and identified by a hash of its content.

Shapes: N images, C channels, H = W = side, D = C H W. Input pixels are in [0, 1].
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dcbench_tesla.data.dataset import Dataset
from dcbench_tesla.errors import CorruptFileError, UsageError, unknown_name

if TYPE_CHECKING:
    from dcbench_tesla.data.dataset import Pixels

ZCA_EPS = 0.1  # added to the variances before their inverse square root, for pixels in [0, 1]
ZCA_SIDE_LIMIT = 64  # images of this side and larger are refused
_CHUNK = 2048  # images counted at a time
_LEAST_NORM = 1e-6
ZCA_SHARE = 0.1  # KIP and FrePo add this share of the mean variance to the variances
TENSORS = {
    "standardise": ("mean", "std"),
    "zca": ("mean", "matrix", "inverse_matrix"),
    "normalised-zca": ("mean", "std", "matrix", "inverse_matrix"),
}
"""The kinds of preprocessing, with the tensors of each."""


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """A fitted, invertible map from [0, 1] pixels to network inputs.

    ``kind="standardise"`` maps x to (x - mean) / std, both (C,). ``kind="zca"`` maps a flattened image x to
    (x - mean) W with ``mean`` (D,) and W = ``matrix`` (D, D); ``inverse_matrix`` (D, D) undoes it, and ``eps`` is the
    value it was fitted with. ``kind="normalised-zca"`` is KIP's: u = (x - mean) / std with ``mean`` and ``std`` (D,),
    then u minus its own mean, over its norm, then times W. Mean and norm of an image are lost; its inverse gives all
    images the mean norm of the training images, which ``inverse_matrix`` contains. All tensors are float32.

    Raises:
        UsageError: ``kind`` is another one.
    """

    kind: str
    mean: Tensor
    std: Tensor | None = None
    matrix: Tensor | None = None
    inverse_matrix: Tensor | None = None
    eps: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in TENSORS:
            raise unknown_name("preprocessing", self.kind, TENSORS)
        size = len(self.mean)
        for name, tensor in self._tensors().items():
            assert tensor.shape == ((size, size) if "matrix" in name else (size,)), name

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in TENSORS[self.kind]}

    def _facts(self) -> dict[str, Any]:
        return {"kind": self.kind, "eps": self.eps}

    def forward(self, pixels: Tensor) -> Tensor:
        """Map [0, 1] ``pixels`` (N, C, H, W) to network inputs of the same shape."""
        if self.kind == "standardise":
            return (pixels - _per_channel(self.mean, pixels)) / _per_channel(self.std, pixels)
        centred = pixels.flatten(1) - self.mean.to(pixels.dtype)
        if self.kind == "normalised-zca":
            centred = normalised(centred / _given(self.std).to(pixels.dtype))
        return (centred @ _given(self.matrix).to(pixels.dtype)).view(pixels.shape)

    def inverse(self, images: Tensor) -> Tensor:
        """Map network inputs ``images`` (N, C, H, W) back to pixels, which are not clamped to [0, 1]."""
        if self.kind == "standardise":
            return images * _per_channel(self.std, images) + _per_channel(self.mean, images)
        flat = images.flatten(1) @ _given(self.inverse_matrix).to(images.dtype)
        if self.kind == "normalised-zca":
            flat = flat * _given(self.std).to(images.dtype)
        return (flat + self.mean.to(images.dtype)).view(images.shape)

    def to(self, device: torch.device | str) -> "Preprocessing":
        """Return the same map with its tensors on ``device``."""
        return self.from_state({name: tensor.to(device) for name, tensor in self._tensors().items()}, self._facts())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return named CPU tensors and JSON facts, from which :meth:`from_state` rebuilds the map."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        return tensors, self._facts()

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> "Preprocessing":
        """Rebuild a map from the result of :meth:`state`; other tensors are ignored.

        Raises:
            CorruptFileError: the kind is unknown, or a tensor is missing.
        """
        kind = meta.get("kind")
        if kind not in TENSORS:
            raise CorruptFileError(f"stored preprocessing of unknown kind {kind!r}; known: {', '.join(TENSORS)}")
        missing = [name for name in TENSORS[kind] if name not in tensors]
        if missing:
            raise CorruptFileError(f"stored {kind} preprocessing lacks {', '.join(missing)}; fit and store it again")
        return cls(kind, **{name: tensors[name] for name in TENSORS[kind]}, eps=meta.get("eps"))

    @cached_property
    def key(self) -> str:
        """SHA-256 (first 16 hex digits) of kind, shapes and content; the device does not matter.

        Two ZCA fits on different machines differ in their last bits, and therefore in their keys.
        """
        tensors, _ = self.state()
        digest = hashlib.sha256(self.kind.encode())
        for name, tensor in tensors.items():
            digest.update(f"/{name}{list(tensor.shape)}".encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return small JSON facts: kind and key, with the mean and std per channel, or the size and ``eps`` of ZCA."""
        if self.kind != "standardise":
            return {"kind": self.kind, "key": self.key, "dimensions": len(self.mean), "eps": self.eps}
        return {"kind": self.kind, "key": self.key, "mean": self.mean.tolist(), "std": _given(self.std).tolist()}


def fit_standardise(dataset: Dataset, pixels: "Pixels | None" = None) -> Preprocessing:
    """Return the standardisation by the published mean and std of ``dataset``, or else by those of ``pixels``.

    The computed std is the population std of ``pixels / max_value``; a constant channel gets std 1.

    Args:
        dataset: the data set.
        pixels: the images used for training, uint8 (N, C, H, W); by default ``dataset.x_train``.
    """
    mean, std = dataset.mean, dataset.std
    if mean is None or std is None:
        mean, std = _channel_moments(dataset.x_train if pixels is None else pixels, dataset.max_value)
    return Preprocessing("standardise", torch.tensor(mean), torch.tensor(std))


def fit_zca(pixels: "Pixels", max_value: int, eps: float = ZCA_EPS) -> Preprocessing:
    """Fit ZCA whitening on uint8 ``pixels`` (N, C, H, W) with kornia, on raw [0, 1] values like MTT and TESLA.

    With covariance U S U^T (divided by N - 1): W = U (S + eps)^(-1/2) U^T, W^-1 = U (S + eps)^(1/2) U^T. Fitting holds
    the images twice in float32 (1.2 GB for CIFAR).

    Raises:
        UsageError: the images have 64 pixels a side or more.
    """
    check_zca_size(*pixels.shape[1:])
    from kornia.enhance import ZCAWhitening  # slow to import, and needed only here

    images = torch.from_numpy(pixels).float().div_(max_value)
    zca = ZCAWhitening(eps=float(eps), compute_inv=True, detach_transforms=True).fit(images)
    return Preprocessing(
        "zca", zca.mean_vector.flatten(), matrix=zca.transform_matrix, inverse_matrix=zca.transform_inv, eps=float(eps)
    )


def fit_share_zca(pixels: "Pixels", max_value: int, *, normalise: bool = False) -> Preprocessing:
    """Fit the ZCA whitening of FrePo or, with ``normalise``, of KIP on uint8 ``pixels`` (N, C, H, W).

    Channels are standardised by the moments of ``pixels``. FrePo then subtracts the mean image; KIP instead subtracts
    from each image its own mean and divides it by its norm. With second moments U S U^T (divided by N) and
    e = 0.1 tr(S) / D: W = U (S + e)^(-1/2) U^T.

    Raises:
        UsageError: the images have 64 pixels a side or more.
    """
    check_zca_size(*pixels.shape[1:])
    area = pixels.shape[2] * pixels.shape[3]
    mean, std = (torch.tensor(m).repeat_interleave(area) for m in _channel_moments(pixels, max_value))
    total, moments, norms = torch.zeros(len(mean)).double(), torch.zeros(len(mean), len(mean)).double(), 0.0
    for start in range(0, len(pixels), _CHUNK):
        flat = torch.from_numpy(pixels[start : start + _CHUNK]).flatten(1).double() / max_value
        flat = (flat - mean) / std
        if normalise:
            norms += float((flat - flat.mean(1, keepdim=True)).norm(dim=1).sum())
            flat = normalised(flat)
        total += flat.sum(0)
        moments += flat.T @ flat
    centre = total / len(pixels) * (not normalise)
    values, vectors = torch.linalg.eigh(moments / len(pixels) - centre[:, None] * centre)
    variances = values.clamp(min=0) + ZCA_SHARE * values.mean()
    matrix, inverse = ((vectors * variances.pow(power)) @ vectors.T for power in (-0.5, 0.5))
    eps = ZCA_SHARE * float(values.mean())
    if normalise:
        tensors = {"mean": mean, "std": std, "matrix": matrix, "inverse_matrix": inverse * norms / len(pixels)}
        return Preprocessing("normalised-zca", **{name: t.float() for name, t in tensors.items()}, eps=eps)
    tensors = {"mean": mean + std * centre, "matrix": matrix / std[:, None], "inverse_matrix": inverse * std}
    return Preprocessing("zca", **{name: t.float() for name, t in tensors.items()}, eps=eps)


WHITENINGS: Mapping[str, Callable[["Pixels", int], Preprocessing]] = {
    "mtt": fit_zca,
    "frepo": fit_share_zca,
    "kip": partial(fit_share_zca, normalise=True),
}
"""The whitenings by name, each fitted to pixels and their largest value."""


def normalised(flat: Tensor) -> Tensor:
    """Return images ``(N, D)``, each minus its own mean and divided by its norm; constant ones are zero."""
    centred = flat - flat.mean(1, keepdim=True)
    found: Tensor = centred / centred.norm(dim=1, keepdim=True).clamp(min=_LEAST_NORM)
    return found


def check_zca_size(channels: int, height: int, width: int) -> None:
    """Check that images are small enough for ZCA whitening.

    Raises:
        UsageError: they have 64 pixels a side or more; the message gives the reason.
    """
    if height < ZCA_SIDE_LIMIT:
        return
    size = channels * height * width
    raise UsageError(
        f"ZCA is not offered for {height} x {width} images: its matrix would be {size} x {size}, "
        f"{4 * size**2 / 1e6:.0f} MB in float32 with several of that size held while fitting, and its singular value "
        f"decomposition {(size / 3072) ** 3:.0f} times the work of one at 3 x 32 x 32. Use standardisation."
    )


def _channel_moments(pixels: "Pixels", max_value: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population std of ``pixels / max_value`` per channel, from exact histograms."""
    counts = np.zeros((pixels.shape[1], 256), dtype=np.int64)
    for start in range(0, len(pixels), _CHUNK):
        for channel, count in enumerate(counts):
            count += np.bincount(pixels[start : start + _CHUNK, channel].ravel(), minlength=256)
    weights = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / max_value
    mean = weights @ values
    std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(axis=1))
    std[std == 0] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())


def _per_channel(values: Tensor | None, images: Tensor) -> Tensor:
    return _given(values).to(images.dtype).view(-1, 1, 1)


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "checked when the preprocessing was made"
    return tensor
