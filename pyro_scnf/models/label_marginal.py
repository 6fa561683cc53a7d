"""The marginal distribution of x, with the label summed out inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.distributions import constraints

from pyro_scnf._copies import Portable
from pyro_scnf._random import drawing_from
from pyro_scnf._shapes import check_event, common_batch, reference_tensor
from pyro_scnf._state import Parts
from pyro_scnf.class_probs import ClassProbs, categorical, log_class_probs
from pyro_scnf.distributions import check_expansion
from pyro_scnf.models.arguments import check_flow
from pyro_scnf.semi_conditional import SemiConditionalFlow

__all__ = ["LabelMarginal"]


class LabelMarginal(Portable, dist.TorchDistribution):
    r"""The marginal :math:`p(x) = \sum_k p(y = k)\, p(x \mid y = k)` as a distribution over x.

    Use it where a label site would be in the way: with plain ``Trace_ELBO``, in importance sampling, or as a
    likelihood.

    :param SemiConditionalFlow flow: :math:`p(x \mid y)`.
    :param class_probs: :math:`p(y)`, as non-negative class weights ``(K,)`` or ``(*batch, K)``, which need
        not sum to 1, or as a :class:`~pyro_scnf.ClassProbs`. It is uniform by default.
    :param covariates: ``(*batch, D)``, if the prior of the flow has any. The marginal is then
        :math:`p(x \mid c) = \sum_k p(y = k)\, p(x \mid y = k, c)`.

    >>> flow = SemiConditionalFlow(pyro_scnf.flows.glow((2,), steps=1), "gmm", 3)
    >>> LabelMarginal(flow).sample((5,)).shape
    torch.Size([5, 2])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        flow: SemiConditionalFlow,
        class_probs: ClassProbs | Tensor | None = None,
        validate_args: bool | None = None,
        *,
        covariates: Tensor | None = None,
    ) -> None:
        check_flow(flow, type(self).__name__)
        if am_i_wrapped():
            # Pyro scores a site after the model has returned. A PyroSample read at that time is drawn again,
            # and a parameter is not registered.
            parts = Parts.of((flow,))
            if parts.are_random:
                raise ValueError(
                    "flow: a parameter is a PyroSample, which a LabelMarginal cannot score in a Pyro "
                    "program; give the model a label site and flow.condition(y)"
                )
            parts.read_parameters()
        like, given = reference_tensor(flow), log_class_probs(class_probs, flow.num_classes)
        log_probs = torch.as_tensor(given, dtype=like.dtype, device=like.device)
        if not log_probs.dim():  # uniform
            log_probs = log_probs.expand(flow.num_classes)
        self.flow, self.log_class_probs, self.covariates = flow, log_probs, covariates
        batch = log_probs.shape[:-1]
        for c in flow.prior.check_covariates(covariates).values():
            expected, rows = "class weights for each row of covariates", c.shape[:-1]
            batch = common_batch(type(self).__name__, expected, class_probs=batch, covariates=rows)
        super().__init__(batch, flow.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self.flow.transform.codomain

    def expand(self, batch_shape: Sequence[int], _instance: LabelMarginal | None = None) -> LabelMarginal:
        new: LabelMarginal = self._get_checked_instance(LabelMarginal, _instance)
        check_expansion(self, batch_shape)
        batch_shape = torch.Size(batch_shape)
        new.flow, new.covariates = self.flow, self.covariates
        new.log_class_probs = self.log_class_probs.expand(batch_shape + self.log_class_probs.shape[-1:])
        super(LabelMarginal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """:math:`\\log p(x)`, ``(*batch,)``, in nats.

        :raises ValueError: for data that the flow refuses, or batches that do not broadcast.
        """
        batch = self._check_batch(value)
        ((table, common),) = self.flow.scores(value, covariates=self.covariates)
        log_prob = common + (table + self.log_class_probs).logsumexp(-1)
        return log_prob.expand(batch)

    def posterior(self, value: Tensor) -> dist.Categorical:
        r"""The label posterior :math:`p(y \mid x)`, a ``Categorical`` of batch ``(*batch,)``.

        :raises ValueError: for data that the flow refuses, or batches that do not broadcast.
        """
        batch = self._check_batch(value)
        joint = self.flow.class_table(value, covariates=self.covariates) + self.log_class_probs
        return categorical(joint.log_softmax(-1).expand(batch + joint.shape[-1:]))

    def sample(
        self, sample_shape: Sequence[int] = torch.Size(), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws of x, ``(*sample_shape, *batch_shape, *event_shape)``.

        :param generator: source of randomness; PyTorch's global one by default.
        """
        batch = torch.Size(sample_shape) + self.batch_shape
        logits, c = self.log_class_probs.expand(self.batch_shape + (-1,)), self.covariates
        with torch.no_grad(), drawing_from(generator, logits.device):
            if batch.numel():
                y = categorical(logits).sample(torch.Size(sample_shape))
            else:  # PyTorch cannot draw no labels
                y = torch.zeros(batch, dtype=torch.int64, device=logits.device)
            # In rows, because labels of several dimensions may look like one-hot rows of integers.
            rows = None if c is None else c.expand(batch + c.shape[-1:]).reshape(-1, c.shape[-1])
            x = self.flow.sample(y.flatten(), covariates=rows)
            return x.reshape(batch + self.event_shape)

    def _check_batch(self, value: Tensor) -> torch.Size:
        """The batch shape of a result for ``value``."""
        given = check_event(value, self.event_shape, "x", type(self).__name__)
        try:
            return torch.broadcast_shapes(given, self.batch_shape)
        except RuntimeError:
            names = "class_probs" if self.covariates is None else "class_probs and covariates"
            raise ValueError(
                f"{type(self).__name__}: x has batch shape {tuple(given)} and {names} "
                f"{tuple(self.batch_shape)}, which do not broadcast"
            ) from None

    def __getstate__(self) -> dict[str, object]:
        # A copy or a file holds no graph of the class probabilities and covariates.
        given = {"log_class_probs": self.log_class_probs, "covariates": self.covariates}
        return {**self.__dict__, **{name: None if t is None else t.detach() for name, t in given.items()}}
