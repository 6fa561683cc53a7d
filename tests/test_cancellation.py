"""What decides between labels survives float32: against float64 of the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import PRIORS
from helpers import perturb

import pyro_scnf as scnf
from pyro_scnf.priors import GaussianMixturePrior

NATS = 1e-2


def identity(dim):
    """A flow that leaves data as they are. A new actnorm does so."""
    return scnf.transforms.ActNorm((dim,))


def error(flow, x):
    """The largest error of the log-odds between two labels, in nats, and the largest log-odds."""

    def log_odds(flow, x):
        logits = flow.posterior(x).logits.double()
        return logits[:, :, None] - logits[:, None, :]

    exact = log_odds(copy.deepcopy(flow).double(), x.double())
    near = exact.abs() < 1e4  # beyond that, one label is certain, and float32 holds fewer digits than nats
    return ((log_odds(flow, x) - exact).abs() * near).max().item()


@pytest.mark.parametrize("covariance", ["shared", "diagonal", "isotropic", "full"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_log_odds_of_far_latents_under_nearly_equal_components(covariance, offset):
    prior = GaussianMixturePrior((64,), 3, covariance=covariance)
    with torch.no_grad():
        prior.loc.copy_(offset * torch.randn(64) + 0.05 * torch.randn(3, 64))
        prior.log_scale.mul_(0).add_(0.1 * torch.randn(64) if covariance == "shared" else 0.0)
    flow = scnf.SemiConditionalFlow(identity(64), prior)
    assert error(flow, 100 * torch.randn(50, 64)) < NATS


@pytest.mark.parametrize("prior", ["gmm", "gmm:covariance=full", "flowgmm", "student-t"])
def test_labels_of_a_point_at_the_end_of_float32(prior):
    flow = scnf.SemiConditionalFlow(identity(2), prior, 3)
    for size in (1e4, 1e10, 1e18):
        x = size * torch.randn(20, 2)
        exact = copy.deepcopy(flow).double().posterior(x.double()).probs
        assert torch.allclose(flow.posterior(x).probs.double(), exact, atol=1e-3)
        assert flow.posterior(x).probs.isfinite().all()


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_scores_in_two_parts_that_add_up(name):
    case = PRIORS[name]
    prior = case.member(torch.float64)
    z = case.latents((5,), torch.float64)
    shared, rest = prior.class_scores(z)
    assert shared.shape == (5,)
    assert rest.shape == (5, case.num_classes)
    assert torch.allclose(shared[:, None] + rest, prior.class_log_prob(z), rtol=1e-12)
    assert torch.equal(rest.amax(-1), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("prior", ["flow:steps=2,width=16", "gmm", "gmm:covariance=shared", "student-t"])
def test_all_who_decide_between_labels_agree_far_from_the_data(prior):
    """The posterior of flow and model, the EM guide's and that which training terms see."""
    flow = scnf.SemiConditionalFlow(identity(32), prior, 3)
    perturb(flow, 0.02)
    model, x = scnf.SemiSupervisedModel(flow), 300 * torch.randn(10, 32)
    assert flow.class_log_prob(x).abs().min() > 500  # its rounding alone would be more than the bound below
    logits = flow.posterior(x).logits
    guide = scnf.EMGuide(model)._log_posterior(x, None)
    for other in (model.posterior(x).logits, guide, model.score(x).log_posterior):
        assert torch.allclose(other, logits, atol=1e-3)
    assert error(flow, x) < (1.0 if prior.startswith("flow") else NATS)  # its networks run in float32


@pytest.mark.parametrize("parallel", [True, False])
def test_enumerated_labels_are_as_good_as_the_posterior(parallel):
    prior = GaussianMixturePrior((196,), 2, covariance="shared")
    flow = scnf.SemiConditionalFlow(identity(196), prior)
    with torch.no_grad():
        prior.loc.copy_(100 * torch.randn(196) + 0.05 * torch.randn(2, 196))
    model, x = scnf.SemiSupervisedModel(flow), 100 * torch.randn(50, 196)
    joint = scnf.enumerate_labels(model, (x,), parallel=parallel)[0]
    exact = copy.deepcopy(flow).double().posterior(x.double()).logits
    odds, found = (value[:, 1] - value[:, 0] for value in (exact, joint))
    assert joint.dtype == torch.float64
    assert (found - odds).abs().max() < NATS
    assert torch.allclose(joint.logsumexp(-1).float(), model.log_prob(x))


def test_the_marginal_is_that_of_float64():
    flow = scnf.SemiConditionalFlow(identity(196), "gmm:covariance=shared", 10)
    x = 100 * torch.randn(20, 196)
    exact = copy.deepcopy(flow).double().log_prob(x.double())
    assert torch.allclose(flow.log_prob(x).double(), exact, rtol=2e-7)
    weights = torch.rand(10)
    exact = scnf.LabelMarginal(copy.deepcopy(flow).double(), weights.double()).log_prob(x.double())
    assert torch.allclose(scnf.LabelMarginal(flow, weights).log_prob(x).double(), exact, rtol=2e-7)
