"""Networks that parameterise the layers."""

from pyro_scnf.nn.conditioners import (
    MLP,
    ChannelNorm,
    Conditioner,
    ConvNet,
    ResidualConvNet,
    ResidualMLP,
)
from pyro_scnf.nn.spec import NETS, NetFactory, NetSpec, make_net

__all__ = [
    "MLP",
    "NETS",
    "ChannelNorm",
    "Conditioner",
    "ConvNet",
    "NetFactory",
    "NetSpec",
    "ResidualConvNet",
    "ResidualMLP",
    "make_net",
]
