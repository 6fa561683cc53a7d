"""What a preset is: a model, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pyro_scnf.class_probs import ClassProbs
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.datasets.augment import Augment
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.priors import PriorSpec
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.training.options import Optimisation

if TYPE_CHECKING:
    from pyro_scnf.training import FitResult

__all__ = ["MakeFlow", "ModelOptions", "Preset"]


class MakeFlow(Protocol):
    """Builds the flow of a preset."""

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        """A flow with the prior ``prior`` over ``latent_dim`` components (by default those of the preset)."""


@dataclass(frozen=True)
class ModelOptions:
    """Options of :class:`~pyro_scnf.SemiSupervisedModel` that do not depend on the data.

    :ivar class_probs: ``"uniform"``, ``"learnable"``, or ``"empirical"``: the frequencies of the labels.
    :ivar bool scaled: whether batches are scaled up to the sizes of the data set.
    """

    class_probs: Literal["uniform", "learnable", "empirical"] = "uniform"
    scaled: bool = False
    labelled_weight: float = 1.0
    classification_weight: float = 0.0
    agreement_weight: float = 0.0
    balance_weight: float = 0.0
    final_term_share: float = 1.0


@dataclass(frozen=True)
class Preset:
    """A model and how it is trained; options given to the methods come on top.

    :ivar flow: builds the semi-conditional flow.
    :ivar augment: what is done to rows on their way into training.
    :ivar optimisation: how parameters move.
    :ivar int steps: optimiser steps.
    :ivar int batch_size: unlabelled rows a step.
    :ivar labelled_batch_size: labelled rows a step; ``None`` for all.
    :ivar int validate_every: steps between validations and checkpoints.
    :ivar model: options of the model around the flow.
    :ivar int initial_rows: rows from which data-dependent parameters are set; 0 for all.
    :ivar str split: how labels are chosen, one of :data:`~pyro_scnf.datasets.SPLITS`.
    :ivar int neighbours: number of nearest rows that are taken to share a row's label; 0 for none.
    :ivar int held_out: unlabelled rows to hold out for validation; without any, the last weights are kept.
    :ivar int draws: dequantisations of every test row.
    """

    flow: MakeFlow
    augment: Augment
    optimisation: Optimisation
    steps: int
    batch_size: int
    labelled_batch_size: int | None = None
    validate_every: int = 50
    model: ModelOptions = ModelOptions()
    initial_rows: int = 0
    split: Literal["balanced", "stratified"] = "balanced"
    neighbours: int = 0
    held_out: int = 0
    draws: int = 1

    def make_model(
        self,
        data: SemiSupervisedData,
        prior: PriorSpec = "flow",
        *,
        latent_dim: int | None = None,
        classification_weight: float | None = None,
    ) -> SemiSupervisedModel:
        """A model for ``data``, initialised from them.

        :param prior: :math:`p(z_f \\mid y)`, see :func:`~pyro_scnf.make_prior`; ``"flow"`` is the preset's
            own conditional flow.
        :param latent_dim: number of components of :math:`z_f`, instead of the preset's.
        :param classification_weight: instead of the preset's.
        """
        options = self.model
        if classification_weight is not None:
            options = replace(options, classification_weight=classification_weight)
        probs: Any = options.class_probs
        if probs == "empirical":
            probs = ClassProbs.from_labels(data.y, data.num_classes)
        model = SemiSupervisedModel(
            self.flow(prior, data.num_classes, latent_dim),
            probs,
            num_labelled=len(data.labelled[0]) if options.scaled else None,
            num_unlabelled=len(data.unlabelled) if options.scaled else None,
            labelled_weight=options.labelled_weight,
            classification_weight=options.classification_weight,
            agreement_weight=options.agreement_weight,
            balance_weight=options.balance_weight,
            final_term_share=options.final_term_share,
        )
        rows = slice(self.initial_rows or None)
        model.initialize(self.augment.prepare(data.x[rows]), data.y[rows])
        return model

    def fit(self, model: SemiSupervisedModel, data: SemiSupervisedData, **options: Any) -> FitResult:
        """Train ``model`` as the preset says (extra ``train``).

        :param options: of :func:`pyro_scnf.training.fit`, instead of the preset's.
        """
        from pyro_scnf.training import fit

        own = {
            "augment": self.augment,
            "optimisation": self.optimisation,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "labelled_batch_size": self.labelled_batch_size,
            "validate_every": self.validate_every,
        }
        return fit(model, data, **{**own, **options})
