"""Bijections. Every layer is a Pyro transform; its forward direction goes from latent to data."""

from pyro_scnf.transforms.actnorm import ActNorm
from pyro_scnf.transforms.base import ConditionalFlowTransform, ConditionalInverse, FlowTransform
from pyro_scnf.transforms.compose import Compose, ConditionalCompose, compose
from pyro_scnf.transforms.continuous import ConditionalContinuousFlow, ContinuousFlow
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
from pyro_scnf.transforms.principal_components import PrincipalComponents
from pyro_scnf.transforms.quantile_spline import QuantileSpline
from pyro_scnf.transforms.scale import SCALES
from pyro_scnf.transforms.shape import Flatten, Flip, Permute, Squeeze
from pyro_scnf.transforms.solver import (
    SOLVERS,
    Energies,
    Solver,
    SolveRecord,
    SolverError,
    record_solves,
)

__all__ = [
    "SCALES",
    "SOLVERS",
    "ActNorm",
    "AffineCoupling",
    "Compose",
    "ConditionalAffineCoupling",
    "ConditionalCompose",
    "ConditionalContinuousFlow",
    "ConditionalFlowTransform",
    "ConditionalInverse",
    "ConditionalMaskedAffineCoupling",
    "ConditionalMultiScale",
    "ContinuousFlow",
    "Energies",
    "Flatten",
    "Flip",
    "FlowTransform",
    "InvertibleConv1x1",
    "Logit",
    "MarginalGaussianization",
    "MaskedAffineCoupling",
    "MultiScale",
    "Permute",
    "PrincipalComponents",
    "QuantileSpline",
    "SolveRecord",
    "Solver",
    "SolverError",
    "Squeeze",
    "checkerboard_mask",
    "compose",
    "dequantize",
    "kept_channels",
    "multi_scale",
    "quantize",
    "record_solves",
]
