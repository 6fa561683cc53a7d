"""Log-scale functions of affine couplings. They keep the raw output of a network in bounds."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_scnf._numbers import check_scale, check_word

__all__ = ["SCALES", "ClampScale", "ScaleName", "SigmoidScale", "TanhScale", "make_scale"]

ScaleName = Literal["sigmoid", "tanh", "clamp"]


class SigmoidScale(nn.Module):
    r""":math:`\log S = \log\sigma(\tilde s + 2)`, at most 0; :math:`S = 0.88` for :math:`\tilde s = 0`.

    Reference: the released code of Kingma and Dhariwal (2018) and of Atanov et al. (2019).
    """

    def __init__(self, channels: int, event_dim: int) -> None:
        super().__init__()

    def forward(self, raw: Tensor) -> Tensor:
        return F.logsigmoid(raw + 2.0)


class TanhScale(nn.Module):
    r""":math:`\log S = w \odot \tanh \tilde s` with one learnable gain ``w`` per channel, initially 1.

    Reference: Dinh et al., *Real NVP*, 2017; Izmailov et al., *FlowGMM*, 2020.
    """

    def __init__(self, channels: int, event_dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones((channels,) + (1,) * (event_dim - 1)))

    def forward(self, raw: Tensor) -> Tensor:
        return self.gain * torch.tanh(raw)


class ClampScale(nn.Module):
    r""":math:`\log S = c \tanh(\tilde s / c)`, which lies in :math:`(-c, c)`.

    For small values it is nearly :math:`\tilde s`, the log-scale of the papers.

    :param float bound: the bound c, above 0.
    """

    settings: ClassVar[tuple[str, ...]] = ("bound",)

    def __init__(self, channels: int, event_dim: int, bound: float = 3.0) -> None:
        super().__init__()
        self.bound = check_scale("bound", bound)

    def forward(self, raw: Tensor) -> Tensor:
        return self.bound * torch.tanh(raw / self.bound)


SCALES: dict[str, type[nn.Module]] = {"sigmoid": SigmoidScale, "tanh": TanhScale, "clamp": ClampScale}


def make_scale(name: str, channels: int, event_dim: int) -> nn.Module:
    """The scale function ``name``, one of ``SCALES``.

    :raises ValueError: for an unknown name.
    """
    check_word("scale", name, SCALES)
    return SCALES[name](channels, event_dim)
