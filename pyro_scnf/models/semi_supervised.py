"""A Pyro model of partly labelled data."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

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
    r"""The generative model of partly labelled data.

    .. math:: y_n \sim p(y), \qquad x_n \sim p(x \mid y_n)

    where :math:`y_n` is observed, or summed out exactly by parallel enumeration. There are three ways to
    call it:

    * ``model(x, y)``: one batch in the plate ``data``, with the sites ``y`` and ``x``. An entry of -1 in
      ``y`` marks an unlabelled row, and with ``y=None`` all rows are unlabelled. Unless all rows are
      labelled, each of them costs K evaluations of the prior.
    * ``model(x, y, x_unlabelled)``: a labelled and an unlabelled batch in the plates ``labelled`` and
      ``unlabelled``, with the sites ``y``, ``x``, ``y_unlabelled`` and ``x_unlabelled``. The flow runs
      once for both.
    * ``model(n=5)``: nothing is observed, and the model draws five rows.

    :param SemiConditionalFlow flow: :math:`p(x \mid y)`.
    :param class_probs: :math:`p(y)`: ``"uniform"``, ``"learnable"``, a tensor of class weights or a
        :class:`ClassProbs`.
    :param int num_labelled: size of the labelled data set. Give it if a batch is only a part of the data
        set: the plate then scales the batch up to that size.
    :param int num_unlabelled: likewise for the unlabelled data set.
    :param float labelled_weight: weight of :math:`\log p(x, y)` of the labelled batch.
    :param float classification_weight: weight of an extra term :math:`\log p(y \mid x)` of the
        labelled rows, the classification loss of the SCNF paper.
    :param float agreement_weight: weight of an extra term for ``pairs`` of rows that probably share a
        label, :func:`~pyro_scnf.terms.log_agreement`. It is scaled in the same way as unlabelled rows.
    :param float balance_weight: weight, per unlabelled row, of an extra term that keeps the mean of the
        unlabelled posteriors near :math:`p(y)`, :func:`~pyro_scnf.terms.imbalance`.
    :param float purity: probability that the two rows of a pair share their label.
    :param float final_term_share: share of their weights that the three extra terms (classification,
        agreement, balance) have at the end of training. The weights fall to it along half a cosine, as
        :meth:`set_progress` reports the progress of training.
    :raises ValueError: for a weight, share or size out of range, or if ``class_probs`` and ``flow`` have
        different numbers of classes.

    Train it with :func:`pyro_scnf.elbo`, or with ``SVI`` and ``TraceEnum_ELBO(max_plate_nesting=1)``. It
    works with ``infer_discrete``, ``Predictive``, ``compute_marginals`` and effect handlers like any other
    Pyro model.

    Pyro would compute a wrong loss without a warning in two cases, in which this model raises
    ``RuntimeError``: if nothing sums out an unobserved label (plain ``Trace_ELBO`` would draw it from
    :math:`p(y)`), and if a guide samples an observed label (the loss would be off by the guide's entropy).
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
            raise ValueError(f"final_term_share={final_term_share}: expected a share, 0 to 1")
        self.flow = flow
        for name, size in (("num_labelled", num_labelled), ("num_unlabelled", num_unlabelled)):
            check_at_least(1, **{name: 1 if size is None else size})
        if not isinstance(class_probs, ClassProbs):
            # Give p(y) the flow's dtype and device, because Pyro cannot contract terms of different ones.
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

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """Register a child module's parameters with Pyro at its first access in a call of the model.

        ``PyroModule`` does so at every access. With hundreds of parameters, each time costs milliseconds.
        """
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
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""Run the model. The class describes the ways to call it.

        :param x: data ``(B, *event_shape)``.
        :param y: integer labels ``(B,)``, -1 where unknown.
        :param x_unlabelled: unlabelled data ``(B', *event_shape)`` for the two-plate form.
        :param weights: weight of each unlabelled row, ``(B',)``; in the one-plate form, of each row,
            ``(B,)``. If the *model* enumerates the label, Pyro cannot weigh its rows one by one. Use an
            :class:`~pyro_scnf.EMGuide` then, and give it the same weights.
        :param pairs: pairs of rows that probably share their label, ``(P, 2)``, for the two-plate form only.
            Rows are numbered from 0 through both batches, the labelled one first.
        :param int n: number of rows to draw if nothing is observed.
        :return: x; in the two-plate form, ``x`` and ``x_unlabelled``.
        :raises ValueError: for arguments of a wrong shape or type, or arguments that do not go together.
        :raises RuntimeError: if Pyro would compute a wrong loss, see above.
        """
        y = self.check_batch(x, y, x_unlabelled, weights)
        if x_unlabelled is None:
            if pairs is not None:
                raise ValueError(f"{type(self).__name__}: pairs are for model(x, y, x_unlabelled)")
            return self._rows("", "data", self.num_data, x, y, weights, n)
        assert x is not None  # check_batch raises otherwise
        assert y is not None
        with share_encoding():
            self.flow.encode_together(x, x_unlabelled)
            labelled = self._rows("", "labelled", self.num_labelled, x, y, None, None)
            joined: tuple[Tensor, Tensor | None] | None = None
            if self.balance_weight or (self.agreement_weight and pairs is not None):
                joined = y, pairs
                if weights is not None:
                    raise ValueError(f"{type(self).__name__}: weights do not go with pairs or balance_weight")
            size = self.num_unlabelled
            unlabelled = self._rows(
                "_unlabelled", "unlabelled", size, x_unlabelled, None, weights, None, joined
            )
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
        joined: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """The sites of one plate.

        :param joined: labels of the labelled batch and pairs, for the terms that need both batches.
        """
        known = None if y is None else y != UNLABELLED
        labelled = known is not None and bool(known.all())
        rows = count_rows(x, y, n)
        site = f"y{suffix}"
        guard_label_site(site, observed=labelled, scored=x is not None, weighted=weights is not None)
        prior: dist.Categorical = self.class_probs()
        with data_plate(plate, size, rows, prior.logits.device), ExitStack() as scales:
            weigh(scales, weights)
            if labelled:
                if self.labelled_weight != 1.0:
                    scales.enter_context(poutine.scale(scale=self.labelled_weight))
                label = pyro.sample(site, prior, obs=y)
            elif y is None or known is None:
                label = pyro.sample(site, prior, infer={"enumerate": "parallel"})
            else:
                label = pyro.sample(site, PartlyKnown(prior, y, known), infer={"enumerate": "parallel"})
                self._observe_some(site, label, y, known)
            out = pyro.sample(f"x{suffix}", self.flow.condition(label), obs=x)
            if self.classification_weight and x is not None and y is not None and known is not None:
                self._classify(x, y, known)
            if joined is not None and x is not None:
                self._join(x, *joined)
        return out

    def _observe_some(self, site: str, label: Tensor, y: Tensor, known: Tensor) -> None:
        """Rule out, by a factor, the labels that known rows do not have."""
        if self.labelled_weight != 1.0:
            raise ValueError(
                "labelled_weight needs the labelled rows in a batch of their own: model(x, y, x_unlabelled)"
            )
        # Take the model's dtype, because Pyro cannot contract terms of different dtypes.
        zero = self.class_probs.logits.new_zeros(())
        ruled_out = torch.where(known & (label != y), zero + LOG_ZERO, zero)
        pyro.factor(f"{site}_observed", ruled_out, has_rsample=False)

    def _classify(self, x: Tensor, y: Tensor, known: Tensor) -> None:
        """The classification term of the known rows."""
        posterior = self.flow.posterior(x, self.class_probs)
        log_prob = posterior.log_prob(y.clamp(min=0)) * known
        # If all rows are labelled, labelled_weight scales every term in the plate. Undo that for this one.
        weight = self.classification_weight / (self.labelled_weight if bool(known.all()) else 1.0)
        training_term("classification", self._terms_scale * weight * log_prob)

    def _join(self, x_unlabelled: Tensor, y: Tensor, pairs: Tensor | None) -> None:
        """The balance and agreement terms. They are part of the unlabelled plate and scaled with it."""
        rows = len(x_unlabelled)
        log_prior = self.class_probs.log_probs
        log_posterior = self.flow.posterior(x_unlabelled, self.class_probs).logits
        if self.balance_weight:
            # Detach p(y). A learned p(y) would follow the posteriors, and the term would then be small even
            # if all rows had one label.
            balance = imbalance(log_posterior, log_prior.detach())
            training_term("balance", (-self._terms_scale * self.balance_weight * balance).expand(rows))
        if pairs is not None and self.agreement_weight:
            check_pairs(pairs, len(y) + rows, type(self).__name__)
            known = log_certainty(y, self.flow.num_classes, log_posterior)
            agreement = log_agreement(torch.cat([known, log_posterior]), pairs, self.purity).sum() / rows
            training_term("agreement", (self._terms_scale * self.agreement_weight * agreement).expand(rows))

    def set_progress(self, progress: float) -> None:
        """Report how much of training is done. The weights of the extra terms depend on it.

        :func:`pyro_scnf.training.fit` calls this at every step, and with 0 at the end. At 0, as in a new
        model, the extra terms have their full weights.

        :param float progress: share of training that is done, 0 to 1.
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
        """Raise ``ValueError`` for a batch that this model cannot take. Return the labels as int64."""
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
    def options(self) -> dict[str, float | None]:
        """The numbers that make the loss, by the names of the arguments: sizes, weights, purity."""
        return {
            "num_labelled": self.num_labelled,
            "num_unlabelled": self.num_unlabelled,
            "labelled_weight": self.labelled_weight,
            "classification_weight": self.classification_weight,
            "agreement_weight": self.agreement_weight,
            "balance_weight": self.balance_weight,
            "purity": self.purity,
            "final_term_share": self.final_term_share,
        }

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
        r"""The marginal :math:`\log p(x)` under this model's class probabilities, ``(*batch,)``, in nats."""
        return self.flow.log_prob(x, self.class_probs)

    def posterior(self, x: Tensor) -> dist.Categorical:
        r"""The label posterior :math:`p(y \mid x)`, a ``Categorical`` of batch ``(*batch,)``."""
        return self.flow.posterior(x, self.class_probs)
