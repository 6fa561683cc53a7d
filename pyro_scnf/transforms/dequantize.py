"""Uniform dequantisation: discrete values as draws from a density."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dequantize", "quantize"]


def dequantize(x: Tensor, bins: int = 256, generator: torch.Generator | None = None) -> Tensor:
    r"""Spread integers over the unit interval: :math:`(x + u) / \text{bins}`, :math:`u \sim U[0, 1)`.

    For any density p of the result, :math:`\mathbb E_u[\log p] - D \log \text{bins}` is a lower bound on the
    log-probability of an ``x`` with D entries (Theis et al., 2016). This makes
    :func:`pyro_scnf.bits_per_dim` comparable between models.

    :param x: integers ``0 .. bins - 1``, of any dtype and shape.
    :param int bins: number of grey levels.
    :param generator: source of the noise; PyTorch's global one by default.
    :return: values in [0, 1), of the dtype of ``x`` if that is floating, else of the default dtype.
    :raises ValueError: if a value lies outside ``0 .. bins - 1``.

    >>> dequantize(torch.tensor([0, 255])).floor()
    tensor([0., 0.])
    """
    if x.numel() and (x.min() < 0 or x.max() > bins - 1):
        raise ValueError(f"x: expected integers in 0..{bins - 1}, got {x.min().item()}..{x.max().item()}")
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    u = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
    # Clamp, because rounding may carry (bins - 1 + u) / bins to 1, which is outside the interval.
    return ((x + u) / bins).clamp(max=1 - torch.finfo(dtype).eps / 2)


def quantize(x: Tensor, bins: int = 256) -> Tensor:
    """Undo :func:`dequantize`: from values in the unit interval to integers ``0 .. bins - 1``, int64.

    Values outside the unit interval count as its nearest end.
    """
    return (x * bins).floor().clamp(0, bins - 1).long()
