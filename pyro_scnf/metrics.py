"""Units of likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["bits_per_dim"]


def bits_per_dim(log_prob: Tensor, event_shape: Sequence[int], bins: int = 256) -> Tensor:
    r"""Bits per dimension of dequantised data in the unit interval.

    .. math:: \log_2 \text{bins} - \frac{\log p(x)}{D \ln 2}

    where :math:`\log p(x)` is the density of ``dequantize(x, bins)`` in nats, with the Jacobian of
    any preprocessing (a logit) inside the flow. The uniform density gives :math:`\log_2` ``bins``.

    :param log_prob: nats, any shape.
    :param event_shape: shape of one x; D is its number of entries.
    :param int bins: number of grey levels.

    >>> bits_per_dim(torch.zeros(()), (1, 28, 28))
    tensor(8.)
    """
    return math.log2(bins) - log_prob / (math.prod(event_shape) * math.log(2))
