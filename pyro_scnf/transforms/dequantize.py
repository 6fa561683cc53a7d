"""Uniform dequantisation: discrete values as draws from a density."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scnf._checks import validating
from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import at_least_single, check_tensor
from pyro_scnf._warn import warn

__all__ = ["check_levels", "dequantize", "quantize", "spread"]


def dequantize(x: Tensor, bins: int = 256, generator: torch.Generator | None = None) -> Tensor:
    r"""Spread integers over the unit interval: :math:`(x + u) / \text{bins}`, :math:`u \sim U[0, 1)`.

    For any density p of the result, :math:`\mathbb E_u[\log p] - D \log \text{bins}` is a lower bound on the
    log-probability of an ``x`` with D entries (Theis et al., 2016). This makes
    :func:`pyro_scnf.bits_per_dim` comparable between models.

    :param x: integers ``0 .. bins - 1``, of any dtype and shape.
    :param int bins: number of grey levels.
    :param generator: source of the noise; PyTorch's global one by default.
    :return: values in [0, 1), of the dtype of ``x`` if that is floating, else of the default dtype.
    :raises ValueError: if a value is no whole number, such as one that is scaled or dequantised already, or
        lies outside ``0 .. bins - 1``; for truth values; for ``bins`` below 1.

    >>> dequantize(torch.tensor([0, 255])).floor()
    tensor([0., 0.])
    """
    check_levels(x, bins, "dequantize")
    return spread(x, bins, generator)


def check_levels(x: Tensor, bins: int, owner: str) -> None:
    """Raise unless ``x`` holds whole numbers ``0 .. bins - 1``.

    Floating images of which all pixels are 0 or 1 may be scaled already. They count as the levels 0 and 1,
    with a warning.
    """
    check_at_least(1, bins=bins)
    check_tensor(x, "x", owner)
    expected = f"expected whole grey levels 0..{bins - 1}"
    if x.dtype == torch.bool or x.is_complex():
        raise ValueError(
            f"{owner}: x has dtype {x.dtype}, {expected}; give x.long(), with bins=2 for 0 and 1"
        )
    if not x.numel() or not validating(x):
        return
    low, high = (end.item() for end in x.aminmax())
    if low >= 0 and high <= bins - 1 and (not x.is_floating_point() or bool((x == x.floor()).all())):
        if high == 1 and bins > 2 and x.is_floating_point():
            warn(
                f"{owner}: x is floating and holds only 0 and 1, which count as the lowest two of {bins} "
                "grey levels. If x is scaled to the unit interval, give (x * (bins - 1)).round(), or bins=2"
            )
        return
    if x.is_floating_point() and not bool((x == x.floor()).all()):
        first = x[x != x.floor()][0].item()
        inside = low >= 0 and high <= 1
        remedy = (
            "x seems to be scaled or dequantised already: give it to the model as it is, or undo the scaling "
            "by (x * (bins - 1)).round()"
            if inside
            else "fill or drop the gaps"
            if first != first
            else "round x, or do not dequantise measurements"
        )
        raise ValueError(f"{owner}: x holds {first:.4g}, {expected}; {remedy}")
    raise ValueError(
        f"{owner}: x holds {low:.4g}..{high:.4g}, expected integers in 0..{bins - 1}; give `bins`"
    )


def spread(x: Tensor, bins: int, generator: torch.Generator | None = None) -> Tensor:
    """:func:`dequantize` without its checks."""
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    exact, half = torch.promote_types(dtype, torch.float32), torch.finfo(dtype).eps / 2
    u = torch.rand(x.shape, generator=generator, dtype=exact, device=x.device)
    values = (x.to(exact) + u) / bins
    if dtype != exact:  # round down, so that a value stays in its bin
        rounded = values.to(dtype)
        values = torch.where(rounded.to(exact) > values, rounded * (1 - half), rounded)
    # Clamp, because rounding may carry (bins - 1 + u) / bins to 1, which is outside the interval.
    return values.clamp(max=1 - half)


def quantize(x: Tensor, bins: int = 256) -> Tensor:
    """Undo :func:`dequantize`: from values in the unit interval to integers ``0 .. bins - 1``, int64.

    Values outside the unit interval count as its nearest end.

    :raises ValueError: for integers, NaN, or ``bins`` below 1.
    """
    check_at_least(1, bins=bins)
    check_tensor(x, "x", "quantize")
    if not x.is_floating_point():
        raise ValueError(
            f"quantize: x has dtype {x.dtype}, expected floating values in the unit interval; integers are "
            "grey levels already"
        )
    if validating(x) and bool(x.isnan().any()):
        raise ValueError(
            f"quantize: x holds {int(x.isnan().sum())} NaN, expected values in the unit interval"
        )
    return (at_least_single(x) * bins).floor().clamp(0, bins - 1).long()
