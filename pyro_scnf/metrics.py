"""Likelihoods in units that compare between models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import as_sizes

__all__ = ["bits_per_dim"]


def bits_per_dim(log_prob: Tensor, event_shape: Sequence[int] | int, bins: int = 256) -> Tensor:
    r"""Bits per dimension of dequantised data in the unit interval.

    .. math:: \log_2 \text{bins} - \frac{\log p(x)}{D \ln 2}

    where :math:`\log p(x)` is the log-density of ``dequantize(x, bins)`` in nats. Preprocessing, such as a
    logit, must be part of the flow, so that its Jacobian counts. The uniform density gives
    :math:`\log_2` ``bins``.

    :param log_prob: :math:`\log p(x)` in nats, any shape.
    :param event_shape: shape of one x, with D entries.
    :param int bins: number of grey levels.
    :return: bits per dimension, of the shape of ``log_prob``.
    :raises ValueError: for an ``event_shape`` or ``bins`` out of range.

    >>> bits_per_dim(torch.zeros(()), (1, 28, 28))
    tensor(8.)
    """
    size = as_sizes(event_shape).numel()
    return math.log2(check_whole("bins", bins, 1)) - log_prob / (size * math.log(2))
