"""The label summed inside one distribution."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_scnf._shapes import reference_tensor
from pyro_scnf.class_probs import ClassProbs, log_class_probs
from pyro_scnf.semi_conditional import SemiConditionalFlow

__all__ = ["LabelMarginal"]


class LabelMarginal(dist.TorchDistribution):
    r"""The marginal :math:`p(x) = \sum_k p(y = k)\, p(x \mid y = k)` as a distribution over x.

    For programs that do not want a label site: plain ``Trace_ELBO``, importance sampling, likelihoods.

    :param SemiConditionalFlow flow: :math:`p(x \mid y)`.
    :param class_probs: :math:`p(y)`: class weights ``(K,)`` or ``(*batch, K)``, which are normalised, or a
        :class:`~pyro_scnf.ClassProbs`; uniform by default.

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
    ) -> None:
        log_probs = torch.as_tensor(log_class_probs(class_probs, flow.num_classes))
        if class_probs is None:
            log_probs = log_probs.expand(flow.num_classes).to(reference_tensor(flow))
        self.flow, self.log_class_probs = flow, log_probs
        super().__init__(log_probs.shape[:-1], flow.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self.flow.transform.codomain

    def expand(self, batch_shape: Any, _instance: Any = None) -> LabelMarginal:
        new = self._get_checked_instance(LabelMarginal, _instance)
        batch_shape = torch.Size(batch_shape)
        new.flow = self.flow
        new.log_class_probs = self.log_class_probs.expand(batch_shape + self.log_class_probs.shape[-1:])
        super(LabelMarginal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """:math:`\\log p(x)` in nats."""
        return (self.flow.class_log_prob(value) + self.log_class_probs).logsumexp(-1)

    def posterior(self, value: Tensor) -> dist.Categorical:
        r"""The label posterior :math:`p(y \mid x)`, a ``Categorical``."""
        _, z_f, _ = self.flow.encode(value)
        joint = self.flow.prior.class_log_prob(z_f) + self.log_class_probs
        return dist.Categorical(logits=joint.log_softmax(-1))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            y = dist.Categorical(logits=self.log_class_probs).sample(torch.Size(sample_shape))
            return self.flow.sample(y)
