"""A Pyro model of partly labelled data."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_scnf._checks import LOG_ZERO, UNLABELLED, check_labels
from pyro_scnf._labels import check_label_log_prior
from pyro_scnf._numbers import check_at_least, check_flag, check_number, refuse_unused
from pyro_scnf._random import drawing_from
from pyro_scnf._shapes import check_event, reference_tensor
from pyro_scnf._state import Parts
from pyro_scnf.class_probs import Categorical, ClassProbs, ClassProbsWord, categorical, check_class_probs
from pyro_scnf.models.arguments import check_draws, check_flow, check_ready_class_probs, check_weights
from pyro_scnf.models.guard import computes_loss, conditioned, guard_child, guard_data_site, guard_label_site
from pyro_scnf.models.plates import PartlyKnown, data_plate, weigh
from pyro_scnf.models.sizes import Sizes
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.sharing import carried
from pyro_scnf.terms import Scored

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
    * ``model(n=5)``: nothing is observed, and the model draws five rows. ``model(y=y)`` draws x alone.

    :param SemiConditionalFlow flow: :math:`p(x \mid y)`.
    :param class_probs: :math:`p(y)`: ``"uniform"``, ``"learnable"``, ``"em"``, a tensor of class weights or
        a :class:`ClassProbs`.
    :param int num_labelled: size of the labelled data set. Give it if a batch is only a part of the data
        set: the plate then scales the batch up to that size. A batch in one plate needs the size for each
        kind of row that it has; with both sizes it is scaled up to their sum.
    :param int num_unlabelled: likewise for the unlabelled data set.
    :param float labelled_weight: weight of :math:`\log p(x, y)` of the labelled batch.
    :param bool balanced_labels: whether the labelled rows were chosen by class, equally many of each. Their
        labels then are uniform, and tell nothing of :math:`p(y)`, which unlabelled rows alone determine.
    :raises ValueError: for a weight or size out of range, or if ``class_probs`` and ``flow`` have different
        numbers of classes or different dtypes.

    The model is :math:`p(x, y)` and nothing else. What only training minimises is a
    :class:`~pyro_scnf.terms.TrainingTerm`.

    Train it with :func:`pyro_scnf.elbo`, or with ``SVI`` and ``TraceEnum_ELBO(max_plate_nesting=1)``. It
    works with ``infer_discrete``, ``Predictive``, ``compute_marginals`` and effect handlers like any other
    Pyro model.

    In these cases Pyro would be wrong without a warning, and this model raises ``RuntimeError``: nothing sums
    out an unobserved label (``Trace_ELBO`` and others would draw it from :math:`p(y)`); a guide samples an
    observed label (the loss would be off by the guide's entropy); ``TransformReparam`` is applied to an
    observed x (it leaves out the log-determinant); Pyro's store holds parameters of an earlier model under
    the same names (``SVI`` would train those); ``poutine.lift`` or ``poutine.substitute`` names a parameter
    of the flow or of p(y) (it would have no effect).
    """

    def __init__(
        self,
        flow: SemiConditionalFlow,
        class_probs: ClassProbsWord | Tensor | ClassProbs = "uniform",
        *,
        num_labelled: int | None = None,
        num_unlabelled: int | None = None,
        labelled_weight: float = 1.0,
        balanced_labels: bool = False,
    ) -> None:
        super().__init__()
        check_flag(balanced_labels=balanced_labels)
        check_flow(flow, type(self).__name__)
        labelled_weight = check_number("labelled_weight", labelled_weight, above=0)
        self.flow = flow
        for name, size in (("num_labelled", num_labelled), ("num_unlabelled", num_unlabelled)):
            check_at_least(1, **{name: 1 if size is None else size})
        if not isinstance(class_probs, ClassProbs):
            check_class_probs(class_probs, flow.num_classes, "class_probs")
            # Give p(y) the flow's dtype and device, because Pyro cannot contract terms of different ones.
            class_probs = ClassProbs(flow.num_classes, class_probs).to(reference_tensor(flow))
        check_ready_class_probs(class_probs, flow.num_classes, flow)
        self.class_probs = class_probs
        self.num_labelled, self.num_unlabelled = num_labelled, num_unlabelled
        self.labelled_weight, self.balanced_labels = labelled_weight, bool(balanced_labels)

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
            guard_child(fullname, child)
        return child

    # -- the generative process ----------------------------------------------------------------
    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        x_unlabelled: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        label_log_prior: Tensor | None = None,
        n: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""Run the model. The class describes the ways to call it.

        :param x: data ``(B, *event_shape)``.
        :param y: integer labels ``(B,)``, -1 where unknown.
        :param x_unlabelled: unlabelled data ``(B', *event_shape)`` for the two-plate form.
        :param weights: weight of each unlabelled row, ``(B',)``; in the one-plate form, of each row,
            ``(B,)``. Rows of weight 0 are left out. If the *model* enumerates the label, Pyro cannot weigh
            its rows one by one. Use an :class:`~pyro_scnf.EMGuide` then, and give it the same weights.
        :param label_log_prior: evidence about the labels of single rows: normalised log-probabilities that
            take the place of :math:`\log p(y)` in these rows, ``(B, K)``. In the two-plate form it is that
            of the unlabelled rows, ``(B', K)``, or of all rows, ``(B + B', K)``, the labelled ones first.
        :param int n: number of rows to draw if nothing is observed.
        :param generator: source of what the model draws if x is not given; PyTorch's global one by default.
        :return: x; in the two-plate form, ``x`` and ``x_unlabelled``.
        :raises ValueError: for arguments of a wrong shape or type, or arguments that do not go together.
        :raises RuntimeError: if Pyro would compute a wrong loss, see above.
        """
        y, weights = self.check_batch(x, y, x_unlabelled, weights, n, generator)
        for part in (self.flow.prior, self.class_probs):
            if isinstance(part, PyroModule):  # others have no random parameters
                Parts.of((part,)).read_random()  # before the plate
        if x_unlabelled is None:
            given = x if x is not None else y
            rows = len(given) if given is not None else n
            if rows is None:
                raise ValueError(
                    f"{type(self).__name__}: nothing observed; give n, the number of rows to draw"
                )
            evidence = None if label_log_prior is None else self.check_evidence(label_log_prior, rows)
            in_loss = computes_loss()  # Predictive conditions on draws, which are no labelled rows
            scored = x is not None or (in_loss and conditioned("x"))
            if in_loss and scored and y is None and conditioned("y"):
                refuse_unused(
                    "labels come from poutine.condition; give them as an argument, model(x, y)",
                    num_labelled=self.num_labelled,
                    num_unlabelled=self.num_unlabelled,
                    labelled_weight=None if self.labelled_weight == 1 else self.labelled_weight,
                    balanced_labels=self.balanced_labels or None,
                )
            size = self.sizes.of_batch(rows, y, drawn=not scored)
            with drawing_from(generator, self.class_probs.logits.device):
                return self._rows("", "data", size, rows, x, y, weights, evidence)
        assert x is not None  # check_batch raises otherwise
        first, second = self.split_evidence(label_log_prior, len(x), len(x_unlabelled))
        size, rows = self.sizes.of_labelled(len(x)), len(x_unlabelled)
        size_unlabelled = self.sizes.of_unlabelled(rows)
        with carried():
            self.flow.encode_together(x, x_unlabelled)
            labelled = self._rows("", "labelled", size, len(x), x, y, None, first)
            unlabelled = self._rows(
                "_unlabelled", "unlabelled", size_unlabelled, rows, x_unlabelled, None, weights, second
            )
        return labelled, unlabelled

    def _rows(
        self,
        suffix: str,
        plate: str,
        size: int | None,
        rows: int,
        x: Tensor | None,
        y: Tensor | None,
        weights: Tensor | None,
        evidence: Tensor | None,
    ) -> Tensor:
        """The sites of one plate."""
        known = None if y is None else y != UNLABELLED
        labelled = known is not None and bool(known.all())
        site, scored = f"y{suffix}", x is not None or conditioned(f"x{suffix}")
        guard_label_site(site, observed=labelled, scored=scored, weighted=weights is not None)
        prior = self.class_probs() if evidence is None else Categorical(logits=evidence)
        if self.balanced_labels and known is not None and evidence is None:
            prior = Categorical(logits=torch.where(known[:, None], self.uniform_log_probs, prior.logits))
        with data_plate(plate, size, rows, prior.logits.device), ExitStack() as scales:
            weigh(scales, weights)
            if labelled:
                if self.labelled_weight != 1.0:
                    scales.enter_context(poutine.scale(scale=self.labelled_weight))
                label = pyro.sample(site, prior, obs=y)
            elif y is None or known is None:
                label = pyro.sample(site, prior, infer={"enumerate": "parallel"})
            else:
                label = pyro.sample(site, PartlyKnown.of(prior, y, known), infer={"enumerate": "parallel"})
                self._observe_some(site, label, y, known)
            given_label = self.flow.condition(label)
            guard_data_site(f"x{suffix}", given_label, observed=x is not None)
            out: Tensor = pyro.sample(f"x{suffix}", given_label, obs=x)
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

    @property
    def uniform_log_probs(self) -> Tensor:
        """The log-probabilities of labels that were chosen by class, ``(K,)``."""
        logits = self.class_probs.logits
        return torch.full_like(logits, -math.log(len(logits)), requires_grad=False)

    # -- scores under every label --------------------------------------------------------------
    def score(self, x: Tensor, *, label_log_prior: Tensor | None = None, scale: float = 1.0) -> Scored:
        r"""Rows of data scored under every label, for training terms.

        :param x: ``(B, *event_shape)``.
        :param label_log_prior: evidence that takes the place of :math:`\log p(y)`, ``(B, K)``.
        :param float scale: how many rows of the data set each row stands for.
        :raises ValueError: for evidence of a wrong shape or type, or that is not normalised, or a scale that
            is not positive.
        """
        check_number("scale", scale, above=0)
        log_prior = log_class_probs = self.class_probs.log_probs
        if label_log_prior is not None:
            log_prior = self.check_evidence(label_log_prior, len(x))
        ((given, common),) = self.flow.scores(x)
        return Scored(common, given, log_prior, scale, log_class_probs)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""The marginal :math:`\log p(x)` under this model's class probabilities, ``(*batch,)``, in nats."""
        return self.flow.log_prob(x, self.class_probs)

    def posterior(self, x: Tensor, *, label_log_prior: Tensor | None = None) -> dist.Categorical:
        r"""The label posterior :math:`p(y \mid x)`, a ``Categorical`` of batch ``(*batch,)``.

        :param label_log_prior: evidence about the labels, normalised log-probabilities ``(*batch, K)``. It
            takes the place of :math:`\log p(y)`.
        :raises ValueError: for evidence of a wrong shape or type, or that is not normalised.
        """
        if label_log_prior is None:
            return self.flow.posterior(x, self.class_probs)
        batch = check_event(x, self.flow.event_shape, "x", type(self).__name__)
        evidence = self.check_evidence(label_log_prior, *batch)
        return categorical((self.flow.class_table(x) + evidence).log_softmax(-1))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Set every data-dependent parameter from a batch, see :meth:`SemiConditionalFlow.initialize`."""
        self.flow.initialize(x, y)

    # -- checks --------------------------------------------------------------------------------
    def check_batch(
        self,
        x: Tensor | None,
        y: Tensor | None,
        x_unlabelled: Tensor | None,
        weights: Tensor | None,
        n: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Raise ``ValueError`` for a call that this model cannot answer.

        :return: the labels as int64, and the weights in the dtype of the model.
        """
        owner = type(self).__name__
        check_draws({"x": x, "y": y, "x_unlabelled": x_unlabelled}, weights, n, generator, owner)
        for name, value in (("x", x), ("x_unlabelled", x_unlabelled)):
            if value is not None:
                self.flow.check_data(value, name, owner)
                batch = value.shape[: value.dim() - len(self.flow.event_shape)]
                if len(batch) != 1:
                    raise ValueError(
                        f"{owner}: {name} has batch shape {tuple(batch)}, expected one dimension"
                    )
        if y is not None:
            y = check_labels(y, self.flow.num_classes, "y", owner, unlabelled=x_unlabelled is None)
            if y.dim() != 1 or (x is not None and len(x) != len(y)):
                rows = "B" if x is None else len(x)
                raise ValueError(f"{owner}: y has shape {tuple(y.shape)}, expected ({rows},)")
        if x_unlabelled is not None and (x is None or y is None or len(y) == 0):
            raise ValueError(
                f"{owner}: the labelled batch is empty; give x and y, or model(x) for unlabelled data alone"
            )
        for name, value in (("x", x), ("x_unlabelled", x_unlabelled), ("y", y)):
            if value is not None and len(value) == 0:
                raise ValueError(f"{owner}: {name} is empty, expected at least one row")
        target = x if x_unlabelled is None else x_unlabelled
        if weights is not None and target is not None:
            weights = check_weights(weights, len(target), self.class_probs.logits, owner)
        return y, weights

    def check_evidence(self, label_log_prior: Tensor, *batch: int) -> Tensor:
        """Raise ``ValueError`` unless there are log-probabilities for each row of a batch. Return them."""
        logits, owner = self.class_probs.logits, type(self).__name__
        return check_label_log_prior(label_log_prior, batch, self.flow.num_classes, logits, owner)

    def split_evidence(
        self, label_log_prior: Tensor | None, labelled: int, unlabelled: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """The evidence about labelled and about unlabelled rows in the two-plate form, both checked."""
        if label_log_prior is None:
            return None, None
        given = label_log_prior.shape if isinstance(label_log_prior, Tensor) else ()
        if given[:1] == (labelled + unlabelled,):
            evidence = self.check_evidence(label_log_prior, labelled + unlabelled)
            return evidence[:labelled], evidence[labelled:]
        return None, self.check_evidence(label_log_prior, unlabelled)

    @property
    def options(self) -> dict[str, Any]:
        """The sizes of the data and what is said of labelled rows, by the names of the arguments."""
        return {
            "num_labelled": self.num_labelled,
            "num_unlabelled": self.num_unlabelled,
            "labelled_weight": self.labelled_weight,
            "balanced_labels": self.balanced_labels,
        }

    @property
    def sizes(self) -> Sizes:
        """The sizes of the labelled and the unlabelled data set, as far as they are given."""
        return Sizes(self.num_labelled, self.num_unlabelled)
