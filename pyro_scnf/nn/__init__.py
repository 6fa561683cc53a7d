"""Networks that parameterise the layers."""

from pyro_scnf.nn.conditioners import (
    MLP,
    ChannelNorm,
    Conditioner,
    ConvNet,
    ResidualConvNet,
    ResidualMLP,
)

__all__ = ["MLP", "ChannelNorm", "Conditioner", "ConvNet", "ResidualConvNet", "ResidualMLP"]
