"""A Pyro model of partly labelled data."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from pyro_scnf._checks import LOG_ZERO, UNLABELLED, check_at_least, check_finite, check_labels, validating
from pyro_scnf._shapes import check_event, reference_tensor
from pyro_scnf.class_probs import ClassProbs, log_certainty
from pyro_scnf.models.guard import guard_label_site
from pyro_scnf.models.plates import PartlyKnown, count_rows, data_plate, training_term, weigh
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.sharing import share_encoding
from pyro_scnf.terms.agreement import check_pairs, log_agreement
from pyro_scnf.terms.balance import imbalance

__all__ = ["SemiSupervisedModel"]


class SemiSupervisedModel(PyroModule):
    r"""The generative model of data of which some are labelled.

    .. math:: y_n \sim p(y), \qquad x_n \sim p(x \mid y_n)

    with :math:`y_n` observed, or summed out exactly by parallel enumeration. Call it with

    * ``model(x, y)``: one batch in one plate ``data``, sites ``y`` and ``x``. Entries of -1 in ``y``
      are unlabelled; ``y=None`` means all of them. Every row costs K evaluations of the prior
      unless all are labelled.
    * ``model(x, y, x_unlabelled)``: a labelled and an unlabelled batch in plates ``labelled`` and
      ``unlabelled``, sites ``y``, ``x``, ``y_unlabelled`` and ``x_unlabelled``. The flow runs once
      on both.
    * ``model(n=5)``: nothing observed, five draws from the model.

    :param SemiConditionalFlow flow: :math:`p(x \mid y)`.
    :param class_probs: :math:`p(y)`: ``"uniform"``, ``"learnable"``, a tensor of class weights or a
        :class:`ClassProbs`.
    :param int num_labelled: size of the labelled data set, if batches are parts of it: the plate
        then scales the batch up to it.
    :param int num_unlabelled: likewise for the unlabelled data set.
    :param float labelled_weight: weight of :math:`\log p(x, y)` of the labelled batch.
    :param float classification_weight: weight of an extra term :math:`\log p(y \mid x)` of the
        labelled rows, the classification loss of the SCNF paper.
    :param float agreement_weight: weight of an extra term for ``pairs`` of rows that probably share a
        label, :func:`~pyro_scnf.terms.log_agreement`. It is scaled as unlabelled rows are.
    :param float balance_weight: weight of a term that keeps unlabelled posteriors at :math:`p(y)` on
        average, :func:`~pyro_scnf.terms.imbalance`, for every unlabelled row.
    :param float purity: probability that a pair does share its label.
    :param float final_term_share: share of their weights that the three extra terms (classification,
        agreement, balance) still have at the end of training. The weights fall along half a cosine, by the
        progress that :meth:`set_progress` is told.

    Use it with :func:`pyro_scnf.elbo`, or with ``SVI`` and ``TraceEnum_ELBO(max_plate_nesting=1)``,
    ``infer_discrete``, ``Predictive``, ``compute_marginals`` and effect handlers like any model.

    Two silent traps of Pyro raise ``RuntimeError`` here: an unobserved label that nothing sums out
    (plain ``Trace_ELBO`` would draw it from the prior), and a guide that samples an observed label
    (the loss would be off by the guide's entropy).
    """

    def __init__(
        self,
        flow: SemiConditionalFlow,
        class_probs: Literal["uniform", "learnable"] | Tensor | ClassProbs = "uniform",
        *,
        num_labelled: int | None = None,
        num_unlabelled: int | None = None,
        labelled_weight: float = 1.0,
        classification_weight: float = 0.0,
        agreement_weight: float = 0.0,
        balance_weight: float = 0.0,
        purity: float = 0.98,
        final_term_share: float = 1.0,
    ) -> None:
        super().__init__()
        if labelled_weight <= 0 or classification_weight < 0:
            raise ValueError(
                f"labelled_weight={labelled_weight}, classification_weight={classification_weight}: "
                "expected a positive and a non-negative number"
            )
        if agreement_weight < 0 or balance_weight < 0 or not 0 < purity < 1:
            raise ValueError(
                f"agreement_weight={agreement_weight}, balance_weight={balance_weight}, purity={purity}: "
                "expected two non-negative numbers and a probability"
            )
        if not 0 <= final_term_share <= 1:
            raise ValueError(f"final_term_share={final_term_share}: expected a share of 1")
        self.flow = flow
        for name, size in (("num_labelled", num_labelled), ("num_unlabelled", num_unlabelled)):
            check_at_least(1, **{name: 1 if size is None else size})
        if not isinstance(class_probs, ClassProbs):
            # Of the flow's dtype and device: Pyro contracts terms of one only.
            class_probs = ClassProbs(flow.num_classes, class_probs).to(reference_tensor(flow))
        self.class_probs = class_probs
        if self.class_probs.num_classes != flow.num_classes:
            raise ValueError(
                f"class_probs: {self.class_probs.num_classes} classes, but the flow has {flow.num_classes}"
            )
        self.num_labelled, self.num_unlabelled = num_labelled, num_unlabelled
        self.labelled_weight = labelled_weight
        self.classification_weight = classification_weight
        self.agreement_weight, self.balance_weight = agreement_weight, balance_weight
        self.purity, self.final_term_share = purity, final_term_share
        self._terms_scale = 1.0

    def __getattr__(self, name: str) -> Any:
        """As in every ``PyroModule``, reading a child module registers its parameters with Pyro; here at
        the first access of a call only, since hundreds of parameters cost milliseconds each time."""
        child = self.__dict__.get("_modules", {}).get(name)
        if child is None or not self._pyro_context.active:
            return super().__getattr__(name)
        fullname = self._pyro_get_fullname(name)
        if self._pyro_context.get(fullname) is not child:
            self._pyro_context.set(fullname, super().__getattr__(name))
        return child

    # -- the generative process ----------------------------------------------------------------
    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        x_unlabelled: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        pairs: Tensor | None = None,
        n: int | None = None,
    ) -> Any:
        r"""Run the model; see the class for the ways to call it.

        :param x: data ``(B, *event_shape)``.
        :param y: integer labels ``(B,)``, -1 where unknown.
        :param x_unlabelled: unlabelled data ``(B', *event_shape)`` for the two-plate form.
        :param weights: weight of each unlabelled row (of each row, in the one-plate form). Pyro
            cannot weigh rows of a label that the *model* enumerates: an
            :class:`~pyro_scnf.EMGuide` is needed, given the same weights.
        :param pairs: rows that probably share their label ``(P, 2)``, by their numbers in the two-plate
            form, labelled rows first.
        :param int n: number of rows to draw when nothing is observed.
        :return: x (a pair, labelled and unlabelled, in the two-plate form).
        """
        y = self.check_batch(x, y, x_unlabelled, weights)
        if x_unlabelled is None:
            if pairs is not None:
                raise ValueError(f"{type(self).__name__}: pairs are for model(x, y, x_unlabelled)")
            return self._rows("", "data", self.num_data, x, y, weights, n)
        with share_encoding():
            self.flow.encode_together(x, x_unlabelled)  # type: ignore[arg-type]
            labelled = self._rows("", "labelled", self.num_labelled, x, y, None, None)
            joined: tuple[Any, Any] | None = None
            if self.balance_weight or (self.agreement_weight and pairs is not None):
                joined = y, pairs
                if weights is not None:
                    raise ValueError(f"{type(self).__name__}: weights do not go with pairs or balance_weight")
            size = self.num_unlabelled
            unlabelled = self._rows(
                "_unlabelled", "unlabelled", size, x_unlabelled, None, weights, None, joined
            )  # type: ignore[arg-type]
        return labelled, unlabelled

    def _rows(
        self,
        suffix: str,
        plate: str,
        size: int | None,
        x: Tensor | None,
        y: Tensor | None,
        weights: Tensor | None,
        n: int | None,
        joined: tuple[Any, Any] | None = None,
    ) -> Any:
        known = None if y is None else y != UNLABELLED
        labelled = known is not None and bool(known.all())
        rows = count_rows(x, y, n)
        site = f"y{suffix}"
        guard_label_site(site, observed=labelled, scored=x is not None, weighted=weights is not None)
        prior = self.class_probs()
        with data_plate(plate, size, rows, prior.logits.device), ExitStack() as scales:
            weigh(scales, weights)
            if labelled:
                if self.labelled_weight != 1.0:
                    scales.enter_context(poutine.scale(scale=self.labelled_weight))
                label = pyro.sample(site, prior, obs=y)
            else:
                if y is not None:
                    prior = PartlyKnown(prior, y, known)
                label = pyro.sample(site, prior, infer={"enumerate": "parallel"})
                if y is not None:
                    self._observe_some(site, label, y, known)
            out = pyro.sample(f"x{suffix}", self.flow.condition(label), obs=x)
            if self.classification_weight and y is not None and x is not None:
                self._classify(x, y, known)
            if joined is not None:
                self._join(x, *joined)  # type: ignore[arg-type]
        return out

    def _observe_some(self, site: str, label: Tensor, y: Tensor, known: Any) -> None:
        if self.labelled_weight != 1.0:
            raise ValueError(
                "labelled_weight needs the labelled rows in a batch of their own: model(x, y, x_unlabelled)"
            )
        zero = self.class_probs.logits.new_zeros(())  # of the model's dtype: Pyro contracts terms of one
        ruled_out = torch.where(known & (label != y), zero + LOG_ZERO, zero)
        pyro.factor(f"{site}_observed", ruled_out, has_rsample=False)

    def _classify(self, x: Tensor, y: Tensor, known: Any) -> None:
        posterior = self.flow.posterior(x, self.class_probs)
        log_prob = posterior.log_prob(y.clamp(min=0)) * known
        # Its weight stands beside that of log p(x, y), not under it.
        weight = self.classification_weight / (self.labelled_weight if bool(known.all()) else 1.0)
        training_term("classification", self._terms_scale * weight * log_prob)

    def _join(self, x_unlabelled: Tensor, y: Tensor, pairs: Tensor | None) -> None:
        """What rows say of each other's labels: part of the unlabelled plate, and scaled with it."""
        rows = len(x_unlabelled)
        log_prior = self.class_probs.log_probs
        log_posterior = self.flow.posterior(x_unlabelled, self.class_probs).logits
        if self.balance_weight:
            # A learned p(y) is not to follow the posteriors: one label for all would suit it.
            balance = imbalance(log_posterior, log_prior.detach())
            training_term("balance", (-self._terms_scale * self.balance_weight * balance).expand(rows))
        if pairs is not None and self.agreement_weight:
            check_pairs(pairs, len(y) + rows, type(self).__name__)
            known = log_certainty(y, self.flow.num_classes, log_posterior)
            agreement = log_agreement(torch.cat([known, log_posterior]), pairs, self.purity).sum() / rows
            training_term("agreement", (self._terms_scale * self.agreement_weight * agreement).expand(rows))

    def set_progress(self, progress: float) -> None:
        """Say how much of training is done, 0 to 1, for the extra terms that fall with it.

        :func:`pyro_scnf.training.fit` does at every step, and says 0 when it is done. At 0, where a new
        model is, they count fully.

        :raises ValueError: for a number out of range.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress={progress}: expected a share of training, 0 to 1")
        self._terms_scale = self.final_term_share + (1 - self.final_term_share) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )

    # -- checks --------------------------------------------------------------------------------
    def check_batch(
        self, x: Tensor | None, y: Tensor | None, x_unlabelled: Tensor | None, weights: Tensor | None
    ) -> Tensor | None:
        """Raise for a batch this model cannot take; return the labels as int64."""
        owner = type(self).__name__
        for name, value in (("x", x), ("x_unlabelled", x_unlabelled)):
            if value is not None:
                batch = check_event(value, self.flow.event_shape, name, owner)
                if len(batch) != 1:
                    raise ValueError(
                        f"{owner}: {name} has batch shape {tuple(batch)}, expected one dimension"
                    )
                check_finite(value, name, owner)
        if y is not None:
            y = check_labels(y, self.flow.num_classes, "y", owner, unlabelled=x_unlabelled is None)
            if y.dim() != 1 or (x is not None and len(x) != len(y)):
                rows = "B" if x is None else len(x)
                raise ValueError(f"{owner}: y has shape {tuple(y.shape)}, expected ({rows},)")
        if x_unlabelled is not None and (x is None or y is None or len(y) == 0):
            raise ValueError(
                f"{owner}: the labelled batch is empty; give x and y, or model(x) for unlabelled data alone"
            )
        for name, value in (("x", x), ("x_unlabelled", x_unlabelled)):
            if value is not None and len(value) == 0:
                raise ValueError(f"{owner}: {name} is empty, expected at least one row")
        if weights is not None:
            if validating() and not ((weights >= 0) & torch.isfinite(weights)).all():
                raise ValueError(f"{owner}: weights has negative or infinite entries, expected 0 or more")
            target = x if x_unlabelled is None else x_unlabelled
            if target is not None and weights.shape != (len(target),):
                raise ValueError(
                    f"{owner}: weights has shape {tuple(weights.shape)}, expected ({len(target)},)"
                )
        return y

    @property
    def num_data(self) -> int | None:
        """Size of the whole data set, labelled and unlabelled, if given."""
        if self.num_labelled is None or self.num_unlabelled is None:
            return None
        return self.num_labelled + self.num_unlabelled

    # -- conveniences --------------------------------------------------------------------------
    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Set every data-dependent parameter from a batch, see :meth:`SemiConditionalFlow.initialize`."""
        self.flow.initialize(x, y)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""The marginal :math:`\log p(x)` under this model's class probabilities, ``(*batch,)``, nats."""
        return self.flow.log_prob(x, self.class_probs)

    def posterior(self, x: Tensor) -> Any:
        r"""The label posterior :math:`p(y \mid x)`, a ``Categorical`` of batch ``(*batch,)``."""
        return self.flow.posterior(x, self.class_probs)
