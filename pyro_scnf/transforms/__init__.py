"""Bijections. Every layer is a Pyro transform; its forward direction goes from latent to data."""

from pyro_scnf.transforms.actnorm import ActNorm
from pyro_scnf.transforms.base import ConditionalFlowTransform, ConditionalInverse, FlowTransform
from pyro_scnf.transforms.compose import Compose, ConditionalCompose, compose
from pyro_scnf.transforms.conv1x1 import InvertibleConv1x1
from pyro_scnf.transforms.coupling import (
    AffineCoupling,
    ConditionalAffineCoupling,
    ConditionalMaskedAffineCoupling,
    MaskedAffineCoupling,
    checkerboard_mask,
)
from pyro_scnf.transforms.dequantize import dequantize, quantize
from pyro_scnf.transforms.gaussianization import MarginalGaussianization
from pyro_scnf.transforms.logit import Logit
from pyro_scnf.transforms.multiscale import ConditionalMultiScale, MultiScale, kept_channels, multi_scale
from pyro_scnf.transforms.scale import SCALES
from pyro_scnf.transforms.shape import Flatten, Flip, Permute, Squeeze

__all__ = [
    "SCALES",
    "ActNorm",
    "AffineCoupling",
    "Compose",
    "ConditionalAffineCoupling",
    "ConditionalCompose",
    "ConditionalFlowTransform",
    "ConditionalInverse",
    "ConditionalMaskedAffineCoupling",
    "ConditionalMultiScale",
    "Flatten",
    "Flip",
    "FlowTransform",
    "InvertibleConv1x1",
    "Logit",
    "MarginalGaussianization",
    "MaskedAffineCoupling",
    "MultiScale",
    "Permute",
    "Squeeze",
    "checkerboard_mask",
    "compose",
    "dequantize",
    "kept_channels",
    "multi_scale",
    "quantize",
]
