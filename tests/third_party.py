"""Members as a third party writes them. Some are examples of the documentation."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import nn

import pyro_scnf as scnf
from pyro_scnf.terms import TrainingTerm


class Tails(scnf.transforms.FlowTransform):
    r"""Elementwise :math:`z = s \operatorname{asinh}(x / s)`, s per channel."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        channels, *space = self.event_shape
        self.log_scale = nn.Parameter(torch.zeros(channels, *(1 for _ in space)))

    def _sum(self, each):
        return each.flatten(-len(self.event_shape)).sum(-1)

    def _inverse_ladj(self, x, *context):
        scale = self.log_scale.exp()
        u = x / scale
        return scale * u.asinh(), -self._sum(u.square().log1p() / 2)

    def _forward_ladj(self, z, *context):
        scale = self.log_scale.exp()
        u = (z / scale).sinh()
        return scale * u, self._sum(u.square().log1p() / 2)


class ContextShift(scnf.transforms.ConditionalFlowTransform):
    r""":math:`z = (x - t(c))\, e^{-s(c)}` with linear t and s, for vectors."""

    def __init__(self, event_shape, context_dim):
        super().__init__(event_shape, context_dim)
        self.net = nn.Linear(context_dim, 2 * self.event_shape[0])

    def _inverse_ladj(self, x, context):
        log_scale, shift = self.net(context).chunk(2, -1)
        return (x - shift) * (-log_scale).exp(), -log_scale.sum(-1)

    def _forward_ladj(self, z, context):
        log_scale, shift = self.net(context).chunk(2, -1)
        return z * log_scale.exp() + shift, log_scale.sum(-1)


class LaplacePrior(scnf.priors.ClassConditionalPrior):
    """Independent Laplace components, with locations and scales for each class."""

    def __init__(self, event_shape, num_classes, spread=1.0):
        super().__init__(event_shape, num_classes)
        table = (num_classes, *self.event_shape)
        self.loc = nn.Parameter(spread * torch.randn(table))
        self.log_scale = nn.Parameter(torch.zeros(table))

    def condition(self, y, temperature=1.0):
        scale = temperature * self.log_scale[y].exp()
        return dist.Laplace(self.loc[y], scale).to_event(len(self.event_shape))


class LinearPrior(scnf.priors.ClassConditionalPrior):
    """One normal distribution for each class. Its mean is linear in the covariates."""

    def __init__(self, event_shape, num_classes, covariates=1):
        super().__init__(event_shape, num_classes, covariates)
        self.loc = nn.Parameter(torch.randn(num_classes, *self.event_shape))
        self.slope = nn.Parameter(torch.randn(covariates, *self.event_shape))

    def condition(self, y, temperature=1.0, covariates=None):
        loc = self.loc[y] + covariates @ self.slope
        return dist.Normal(loc, temperature).to_event(1)


class StudentTPrior(LaplacePrior):
    """Independent Student-t components. With one degree of freedom they are Cauchy, and have no mean."""

    def __init__(self, event_shape, num_classes, df=1.0):
        super().__init__(event_shape, num_classes)
        self.df = df

    def condition(self, y, temperature=1.0):
        scale = temperature * self.log_scale[y].exp()
        return dist.StudentT(self.df, self.loc[y], scale).to_event(len(self.event_shape))


class ModesPrior(LaplacePrior):
    """A mixture of Gaussians inside each class, with means about ten scales apart."""

    def __init__(self, event_shape, num_classes, modes=3, spread=10.0):
        super().__init__(event_shape, num_classes)
        table = (num_classes, modes, *self.event_shape)
        self.logits = nn.Parameter(torch.zeros(num_classes, modes))
        self.loc = nn.Parameter(spread * torch.randn(table))
        self.log_scale = nn.Parameter(torch.zeros(table))

    def condition(self, y, temperature=1.0):
        scale = temperature * self.log_scale[y].exp()
        modes = dist.Normal(self.loc[y], scale).to_event(len(self.event_shape))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits[y]), modes)


@dataclass(frozen=True)
class Entropy(TrainingTerm):
    """Entropy of the label posteriors of unlabelled rows."""

    needs = frozenset({"unlabelled"})

    def nats(self, step):
        rows = step.unlabelled
        log_p = rows.log_posterior.clamp(min=-1e4)
        return -rows.scale * (log_p.exp() * log_p).sum()


@dataclass(frozen=True)
class ViewLikelihood(TrainingTerm):
    """Minus the log-likelihood of the second view, tempered."""

    temperature: float = 1.0

    needs = frozenset({"view"})

    def nats(self, step):
        rows = step.view
        joint = (rows.given + rows.log_prior) / self.temperature
        return -rows.scale * (rows.common + joint.logsumexp(-1)).sum()
