"""Uniform dequantisation: discrete values as draws from a density."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dequantize", "quantize"]


def dequantize(x: Tensor, bins: int = 256, generator: torch.Generator | None = None) -> Tensor:
    r"""Spread integers over the unit interval: :math:`(x + u) / \text{bins}`, :math:`u \sim U[0, 1)`.

    Any density of the result bounds the probability of ``x`` from below, which makes
    :func:`pyro_scnf.bits_per_dim` comparable between models (Theis et al., 2016).

    :param x: integers ``0 .. bins - 1``, of any dtype and shape.
    :param int bins: number of grey levels.
    :raises ValueError: if a value lies outside ``0 .. bins - 1``.

    >>> dequantize(torch.tensor([0, 255])).floor()
    tensor([0., 0.])
    """
    if x.numel() and (x.min() < 0 or x.max() > bins - 1):
        raise ValueError(f"x: expected integers in 0..{bins - 1}, got {x.min().item()}..{x.max().item()}")
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    u = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
    # Rounding may carry (bins - 1 + u) / bins to 1, outside the half-open interval.
    return ((x + u) / bins).clamp(max=1 - torch.finfo(dtype).eps / 2)


def quantize(x: Tensor, bins: int = 256) -> Tensor:
    """Integers ``0 .. bins - 1`` of values in the unit interval; undoes :func:`dequantize`."""
    return (x * bins).floor().clamp(0, bins - 1).long()
