"""The Pyro model of partly labelled data, and what belongs to it."""

from pyro_scnf.models.em import Expected, LearnsByEM, expected_labels
from pyro_scnf.models.exact_em import fit_by_em
from pyro_scnf.models.guides import GUIDES, EMGuide, exact_guide, make_guide
from pyro_scnf.models.label_marginal import LabelMarginal
from pyro_scnf.models.reparam import FlowSitesReparam
from pyro_scnf.models.semi_supervised import SemiSupervisedModel
from pyro_scnf.models.updates import Updates, update_after_step

__all__ = [
    "GUIDES",
    "EMGuide",
    "Expected",
    "FlowSitesReparam",
    "LabelMarginal",
    "LearnsByEM",
    "SemiSupervisedModel",
    "Updates",
    "exact_guide",
    "expected_labels",
    "fit_by_em",
    "make_guide",
    "update_after_step",
]
