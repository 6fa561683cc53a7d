"""The label summed inside one distribution."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_scnf._shapes import reference_tensor
from pyro_scnf.semi_conditional import SemiConditionalFlow

__all__ = ["LabelMarginal"]


class LabelMarginal(dist.TorchDistribution):
    r"""The marginal :math:`p(x) = \sum_k p(y = k)\, p(x \mid y = k)` as a distribution over x.

    For programs that do not want a label site: plain ``Trace_ELBO``, importance sampling, likelihoods.

    :param SemiConditionalFlow flow: :math:`p(x \mid y)`.
    :param class_logits: unnormalised :math:`\log p(y)`, ``(K,)`` or ``(*batch, K)``; uniform by default.

    >>> flow = SemiConditionalFlow(pyro_scnf.flows.glow((2,), steps=1), "gmm", 3)
    >>> LabelMarginal(flow).sample((5,)).shape
    torch.Size([5, 2])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        flow: SemiConditionalFlow,
        class_logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if class_logits is None:
            class_logits = torch.zeros(flow.num_classes).to(reference_tensor(flow))
        if class_logits.shape[-1:] != (flow.num_classes,):
            raise ValueError(
                f"class_logits has shape {tuple(class_logits.shape)}, expected (*batch, {flow.num_classes})"
            )
        self.flow, self.class_logits = flow, class_logits
        super().__init__(class_logits.shape[:-1], flow.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self.flow.flow.codomain

    def expand(self, batch_shape: Any, _instance: Any = None) -> LabelMarginal:
        new = self._get_checked_instance(LabelMarginal, _instance)
        batch_shape = torch.Size(batch_shape)
        new.flow = self.flow
        new.class_logits = self.class_logits.expand(batch_shape + self.class_logits.shape[-1:])
        super(LabelMarginal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """:math:`\\log p(x)` in nats."""
        return self.flow.log_prob(value, self.class_logits)

    def posterior(self, value: Tensor) -> Any:
        r"""The label posterior :math:`p(y \mid x)`, a ``Categorical``."""
        return self.flow.posterior(value, self.class_logits)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            y = dist.Categorical(logits=self.class_logits).sample(torch.Size(sample_shape))
            return self.flow.sample(y)
