"""Semi-conditional normalizing flows for Pyro.

One exact generative model of labelled and unlabelled data, inside your own Pyro program.
"""

from typing import TYPE_CHECKING

from pyro_scnf import distributions, flows, models, nn, posterior, priors, terms, transforms
from pyro_scnf._checks import UNLABELLED
from pyro_scnf._lazy import lazy
from pyro_scnf.class_probs import ClassProbs
from pyro_scnf.metrics import bits_per_dim
from pyro_scnf.models import (
    GUIDES,
    EMGuide,
    FlowSitesReparam,
    LabelMarginal,
    SemiSupervisedModel,
    exact_guide,
    fit_by_em,
    make_guide,
)
from pyro_scnf.objective import elbo, with_terms
from pyro_scnf.posterior import enumerate_labels, sample_labels, to_inference_data
from pyro_scnf.priors import PRIORS, make_prior
from pyro_scnf.saving import load, save
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.sharing import share_encoding
from pyro_scnf.terms import TERMS, make_terms

if TYPE_CHECKING:
    from pyro_scnf import analysis, baselines, datasets, plots, presets, testing, training

__version__ = "0.1.0"

__all__ = [
    "GUIDES",
    "PRIORS",
    "TERMS",
    "UNLABELLED",
    "ClassProbs",
    "EMGuide",
    "FlowSitesReparam",
    "LabelMarginal",
    "SemiConditionalFlow",
    "SemiSupervisedModel",
    "analysis",
    "baselines",
    "bits_per_dim",
    "datasets",
    "distributions",
    "elbo",
    "enumerate_labels",
    "exact_guide",
    "fit_by_em",
    "flows",
    "load",
    "make_guide",
    "make_prior",
    "make_terms",
    "models",
    "nn",
    "plots",
    "posterior",
    "presets",
    "priors",
    "sample_labels",
    "save",
    "share_encoding",
    "terms",
    "testing",
    "to_inference_data",
    "training",
    "transforms",
    "with_terms",
]


# Import these on first use, because they may need extras.
_LAZY = dict.fromkeys(("analysis", "baselines", "datasets", "plots", "presets", "testing", "training"), "")

__getattr__, __dir__ = lazy(__name__, _LAZY, __all__)
