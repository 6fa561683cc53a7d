"""Semi-conditional normalizing flows for Pyro.

One exact generative model of labelled and unlabelled data, inside your own Pyro program.
"""

import importlib
from types import ModuleType

from pyro_scnf import flows, nn, presets, priors, transforms
from pyro_scnf._checks import UNLABELLED
from pyro_scnf.class_probs import ClassProbs
from pyro_scnf.metrics import bits_per_dim
from pyro_scnf.models import (
    GUIDES,
    EMGuide,
    FlowSitesReparam,
    LabelMarginal,
    SemiSupervisedModel,
    exact_guide,
    make_guide,
)
from pyro_scnf.objective import elbo
from pyro_scnf.posterior import enumerate_labels, sample_labels, to_inference_data
from pyro_scnf.priors import PRIORS, make_prior
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.sharing import share_encoding

__version__ = "0.1.0"

__all__ = [
    "GUIDES",
    "PRIORS",
    "UNLABELLED",
    "ClassProbs",
    "EMGuide",
    "FlowSitesReparam",
    "LabelMarginal",
    "SemiConditionalFlow",
    "SemiSupervisedModel",
    "bits_per_dim",
    "elbo",
    "enumerate_labels",
    "exact_guide",
    "flows",
    "make_guide",
    "make_prior",
    "nn",
    "presets",
    "priors",
    "sample_labels",
    "share_encoding",
    "to_inference_data",
    "transforms",
]


def __getattr__(name: str) -> ModuleType:
    """``datasets`` and ``training`` on first use: they may need extras."""
    if name in ("datasets", "training"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
