"""Networks that parameterise the layers."""

from pyro_scnf.nn.conditioners import ChannelNorm, Conditioner
from pyro_scnf.nn.dynamics import Dynamics
from pyro_scnf.nn.plain import MLP, ConvNet
from pyro_scnf.nn.residual import PooledConvNet, ResidualConvNet, ResidualMLP, SkipConvNet
from pyro_scnf.nn.spec import NETS, NetFactory, NetSpec, make_net

__all__ = [
    "MLP",
    "NETS",
    "ChannelNorm",
    "Conditioner",
    "ConvNet",
    "Dynamics",
    "NetFactory",
    "NetSpec",
    "PooledConvNet",
    "ResidualConvNet",
    "ResidualMLP",
    "SkipConvNet",
    "make_net",
]
