"""The losses of FlowGMM: values and gradients against a computation by hand, in double precision.

The paper weighs the joint likelihood of labelled rows. The released code adds cross-entropy to the likelihood
of all rows. Both may have a consistency term of either kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import relative
from torch import Tensor

import pyro_scnf as scnf
from pyro_scnf.terms import Classification, Consistency

F64 = torch.float64
K = 3
PRIORS = {
    "fixed": "gmm:covariance=isotropic,means=circle,separation=3.5,fit_means=fixed,fit_scales=fixed",
    "trained": "gmm:covariance=isotropic,means=circle,separation=3.5",
}


class Planar:
    """A flow on the plane, its mixture, and class probabilities, written out.

    Two couplings with linear networks. Each coupling is :math:`z = (x + t) e^s` with
    :math:`s = w \\tanh(a x' + b)` and :math:`t = c x' + d`, where x' is the other number. The first one
    changes the second number.
    """

    def __init__(self, prior: str) -> None:
        torch.manual_seed(0)
        transform = scnf.flows.realnvp(
            (2,), couplings=2, net=lambda inputs, outputs, context_dim=0: torch.nn.Linear(inputs, outputs)
        )
        flow = scnf.SemiConditionalFlow(transform, prior, K).double()
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter.copy_(torch.randn_like(parameter))
        weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
        self.model = scnf.SemiSupervisedModel(flow, weights)
        self.log_probs = weights.log()
        self.couplings = [m for m in transform.modules() if hasattr(m, "net")][::-1]
        self.prior = flow.prior

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())

    def table(self, x: Tensor) -> Tensor:
        """:math:`\\log p(x_n \\mid k)`, ``(B, K)``."""
        columns, ladj = list(x.unbind(-1)), x.new_zeros(len(x))
        for changed, coupling in zip((1, 0), self.couplings, strict=True):
            (a, c), (b, d) = coupling.net.weight[:, 0], coupling.net.bias
            given = columns[1 - changed]
            s = coupling.scale.gain * torch.tanh(a * given + b)
            columns[changed] = (columns[changed] + c * given + d) * s.exp()
            ladj = ladj + s
        z, scale = torch.stack(columns, -1), self.scales
        squares = (z[:, None] - self.prior.loc).square().sum(-1)
        return ladj[:, None] - squares / (2 * scale.square()) - 2 * scale.log() - math.log(2 * math.pi)

    @property
    def scales(self) -> Tensor:
        """Scale of each class, ``(K,)``, as a function of the prior's parameters."""
        base = self.prior.condition(torch.arange(K))
        return base.variance.sqrt()[:, 0]

    def joint(self, x: Tensor) -> Tensor:
        """:math:`\\log p(x_n, k)`, ``(B, K)``."""
        return self.table(x) + self.log_probs


def labelled_rows(planar: Planar, x: Tensor, y: Tensor) -> Tensor:
    """:math:`\\log p(x_n, y_n)`."""
    return planar.joint(x)[torch.arange(len(y)), y]


def paper(planar: Planar, x: Tensor, y: Tensor, others: Tensor, weight: float) -> Tensor:
    """The weighted joint likelihood of the paper."""
    marginal = planar.joint(others).exp().sum(-1).log()
    return -weight * labelled_rows(planar, x, y).sum() - marginal.sum()


def code(planar: Planar, x: Tensor, y: Tensor, others: Tensor, weight: float) -> Tensor:
    """The cross-entropy and marginal likelihood of the released code."""
    posterior = planar.joint(x).softmax(-1)[torch.arange(len(y)), y]
    marginal = planar.joint(torch.cat([x, others])).exp().sum(-1).log()
    return -weight * posterior.log().sum() - marginal.sum()


def consistency_of_likelihoods(planar: Planar, others: Tensor, view: Tensor) -> Tensor:
    """Equation 7: the likelihood of one view under the label of the other."""
    label = planar.joint(others).argmax(-1)
    return -planar.table(view)[torch.arange(len(view)), label].sum()


def consistency_of_probabilities(planar: Planar, others: Tensor, view: Tensor) -> Tensor:
    """Equation 6: the squared distance of the posteriors of both views."""
    first, second = (planar.joint(rows).softmax(-1) for rows in (others, view))
    return (first - second).square().sum()


def rows(seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labelled rows, their labels, unlabelled rows, and a second view of these."""
    generator = torch.Generator().manual_seed(seed)
    x, others, noise = (torch.randn(n, 2, generator=generator, dtype=F64) for n in (5, 7, 7))
    return x, torch.arange(5) % K, others, others + 0.3 * noise


def same_loss(planar: Planar, ours: Tensor, by_hand: Tensor) -> None:
    """Compare values and the gradients of all parameters."""
    assert relative(ours, by_hand) < 1e-10
    for loss in (ours, by_hand):
        assert torch.isfinite(loss)
    wanted = torch.autograd.grad(by_hand, planar.parameters)
    found = torch.autograd.grad(ours, planar.parameters)
    for one, other in zip(found, wanted, strict=True):
        assert relative(one, other) < 1e-9
    assert sum(float(gradient.abs().sum()) for gradient in wanted) > 1


@pytest.fixture(params=PRIORS)
def planar(request: pytest.FixtureRequest) -> Planar:
    return Planar(PRIORS[request.param])


def test_the_density_by_hand_is_that_of_the_flow(planar):
    x = rows()[0]
    assert relative(planar.table(x), planar.model.flow.class_log_prob(x)) < 1e-12
    assert (planar.prior.loc.norm(dim=-1) - 3.5).abs().max() < 1e-6
    mean_is_trained = any(p is planar.prior.loc for p in planar.model.parameters())
    assert mean_is_trained == (len(planar.parameters) > 6)


# -- two plates: labelled_weight and terms -----------------------------------------------------------
@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("guide", ["exact", "em"])
def test_the_loss_of_the_paper(planar, weight, guide):
    """The guide of EM has the exact posterior, so its bound is tight."""
    x, y, others, _ = rows()
    planar.model.labelled_weight = weight
    ours = scnf.elbo(planar.model, scnf.make_guide(guide, planar.model))(x, y, others)
    same_loss(planar, ours, paper(planar, x, y, others, weight))


@pytest.mark.parametrize("weight", [1.0, 3.0, 20.0])
def test_the_loss_of_the_code(planar, weight):
    """Cross-entropy of weight w is the joint likelihood with a classification term of weight w - 1."""
    x, y, others, _ = rows()
    ours = scnf.elbo(planar.model, terms=Classification(weight - 1))(x, y, others)
    same_loss(planar, ours, code(planar, x, y, others, weight))


VARIANTS: dict[str, Callable[[Planar, Tensor, Tensor], Tensor]] = {
    "likelihood": consistency_of_likelihoods,
    "probabilities": consistency_of_probabilities,
}


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("of_the_code", [False, True])
def test_with_consistency(planar, kind, of_the_code):
    x, y, others, view = rows()
    consistency = Consistency(0.7, kind=kind)
    if of_the_code:
        ours = scnf.elbo(planar.model, terms=[Classification(2.0), consistency])
        expected = code(planar, x, y, others, 3.0)
    else:
        planar.model.labelled_weight = 3.0
        ours = scnf.elbo(planar.model, terms=consistency)
        expected = paper(planar, x, y, others, 3.0)
    expected = expected + 0.7 * VARIANTS[kind](planar, others, view)
    same_loss(planar, ours(x, y, others, view=view), expected)


@pytest.mark.parametrize("kind", VARIANTS)
def test_views_that_disagree_are_among_the_rows(planar, kind):
    """So the label of one view is not simply that of the other one, and the term has something to say."""
    _, _, others, view = rows()
    labels = planar.joint(others).argmax(-1), planar.joint(view).argmax(-1)
    assert (labels[0] != labels[1]).any()
    assert len(labels[0].unique()) > 1
    assert VARIANTS[kind](planar, others, view) > 0


def test_the_ramp_of_the_consistency_term(planar):
    """The weight rises from 0 over a share of the run and then stays."""
    x, y, others, view = rows()
    loss = scnf.elbo(planar.model, terms=Consistency(1.0, start=0.0, until=0.25))
    for progress, weight in ((0.0, 0.0), (0.125, 0.5), (0.25, 1.0), (0.9, 1.0)):
        ours = loss(x, y, others, view=view, progress=progress)
        added = consistency_of_likelihoods(planar, others, view)
        same_loss(planar, ours, paper(planar, x, y, others, 1.0) + weight * added)


# -- one plate ---------------------------------------------------------------------------------------
def test_the_loss_of_the_code_in_one_plate(planar):
    """Labelled and unlabelled rows in one batch, where the label -1 marks the latter."""
    x, y, others, _ = rows()
    both = torch.cat([x, others]), torch.cat([y, torch.full((7,), scnf.UNLABELLED)])
    ours = scnf.elbo(planar.model, terms=Classification(2.0))(*both)
    same_loss(planar, ours, code(planar, x, y, others, 3.0))
    ours = scnf.elbo(planar.model)(*both)
    same_loss(planar, ours, paper(planar, x, y, others, 1.0))
