"""The semi-conditional flow as a distribution: exact densities, samples, latents, posteriors."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import PRIORS
from helpers import counting, gradient_error, gradients, image_flow, perturb, relative, toy_flow
from pyro.distributions.conditional import ConditionalDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import SVI, Trace_ELBO
from pyro.nn.module import PyroModule, to_pyro_module_
from pyro.optim import Adam

import pyro_scnf as scnf
from pyro_scnf import transforms as T

F64 = torch.float64
PLANE = {name: case for name, case in PRIORS.items() if len(case.event_shape) == 1}


def plane_flow(prior: str, seed: int = 0) -> scnf.SemiConditionalFlow:
    """A random flow over the plane, with nothing factored out."""
    torch.manual_seed(seed)
    specs = {
        "flow": {"name": "flow", "steps": 2, "width": 6, "blocks": 1},
        "gmm-full": "gmm:covariance=full,separation=2.0",
        "gmm-shared": "gmm:covariance=shared",
        "flowgmm": "flowgmm",
        "student-t": "student-t",
    }
    flow = scnf.flows.glow(
        (2,), steps=2, width=6, blocks=1, scale="tanh" if prior == "gmm-full" else "sigmoid"
    )
    return perturb(scnf.SemiConditionalFlow(flow, specs[prior], 3)).double().requires_grad_(False)


def split_flow(seed: int = 0) -> scnf.SemiConditionalFlow:
    """A random flow over the plane with one number factored out, so the density has an auxiliary part."""
    torch.manual_seed(seed)
    flow = scnf.flows.glow((2,), levels=1, steps=2, width=6, blocks=1, latent_dim=1)
    return perturb(scnf.SemiConditionalFlow(flow, "gmm", 3)).double().requires_grad_(False)


FLOWS = {
    **{
        name: lambda name=name: plane_flow(name)
        for name in ("flow", "gmm-full", "gmm-shared", "flowgmm", "student-t")
    },
    "auxiliary": split_flow,
}
densities = pytest.mark.parametrize("name", FLOWS)


class Quadrature:
    """A grid over the plane with sinh spacing: fine in the middle and wide at the edges."""

    def __init__(self, samples: torch.Tensor, points: int = 350, reach: float = 5.0) -> None:
        u = torch.linspace(-reach, reach, points, dtype=F64)
        centre, spread = samples.median(0).values, samples.std(0) / 4
        axes = [centre[i] + spread[i] * u.sinh() for i in range(2)]
        steps = [spread[i] * u.cosh() * (u[1] - u[0]) for i in range(2)]
        self.x = torch.cartesian_prod(*axes)
        self.area = torch.cartesian_prod(*steps).prod(-1)

    def integrate(self, values: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(self.area, values, 1)


# -- exact densities --------------------------------------
@densities
def test_every_density_integrates_to_one(name):
    flow = FLOWS[name]()
    grid = Quadrature(flow.sample(torch.arange(3).repeat(500)))
    labels = torch.arange(3)
    per_class = grid.integrate(flow.class_log_prob(grid.x).exp())
    assert relative(per_class, torch.ones(3, dtype=F64)) < 2e-3
    conditioned = flow.condition(labels[:, None]).log_prob(grid.x)
    assert relative(conditioned, flow.class_log_prob(grid.x).T) < 1e-10
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    marginals = [flow.log_prob(grid.x), scnf.LabelMarginal(flow, weights).log_prob(grid.x)]
    for log_prob in marginals:
        assert abs(grid.integrate(log_prob.exp()) - 1) < 2e-3
    mixture = (per_class * weights).sum()
    assert abs(grid.integrate(marginals[1].exp()) - mixture) < 1e-12
    relaxed = flow.condition(weights[None]).log_prob(grid.x)
    assert abs(grid.integrate(relaxed.exp()) - 1) < 2e-3


@densities
def test_samples_match_the_density(name):
    """Entropy, mean and a share of the mass agree between quadrature and draws."""
    flow = FLOWS[name]()
    n = 20_000
    for k in range(3):
        d = flow.condition(torch.tensor(k))
        x = d.sample((n,))
        grid, log_prob = Quadrature(x), d.log_prob(x)
        on_grid = d.log_prob(grid.x)
        negative_entropy = grid.integrate(on_grid.exp() * on_grid)
        assert abs(log_prob.mean() - negative_entropy) < 5 * log_prob.std() / math.sqrt(n) + 2e-3
        mean = grid.integrate(on_grid.exp()[:, None] * grid.x)
        assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / math.sqrt(n) + 1e-2 * x.std(0)).all()
        half = grid.integrate(on_grid.exp() * (grid.x[:, 0] < mean[0]))
        share = (x[:, 0] < mean[0]).double().mean()
        assert abs(share - half) < 5 * 0.5 / math.sqrt(n) + 5e-3


def test_samples_of_the_marginal_match_it():
    flow = FLOWS["flow"]()
    marginal = scnf.LabelMarginal(flow, torch.tensor([0.7, 0.2, 0.1], dtype=F64))
    x = marginal.sample((20_000,))
    grid, log_prob = Quadrature(x), marginal.log_prob(x)
    on_grid = marginal.log_prob(grid.x)
    expected = grid.integrate(on_grid.exp() * on_grid)
    assert abs(log_prob.mean() - expected) < 5 * log_prob.std() / math.sqrt(len(x)) + 2e-3


def test_samples_of_the_marginal_are_of_every_class():
    flow = toy_flow("gmm:separation=20.0", dtype=F64)
    weights = torch.tensor([0.7, 0.2, 0.1], dtype=F64)
    x = scnf.LabelMarginal(flow, weights).sample((3000,))
    shares = flow.posterior(x, weights).probs.mean(0)
    assert (shares - weights).abs().max() < 5 * 0.5 / math.sqrt(3000)


@pytest.mark.parametrize("make", [toy_flow, image_flow])
def test_log_prob_is_the_formula(make):
    """log p(x | y) is log|det| of f_w, taken by autograd, plus the normal of z_aux and the prior of z_f."""
    flow = make("gmm", dtype=F64)
    x = torch.randn((3,) + tuple(flow.event_shape), dtype=F64)
    z_aux, z_f, ladj = flow.encode(x)
    for i in range(3):
        size = x[i].numel()
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.transform.inverse_and_ladj(v)[0], x[i])
        assert abs(torch.linalg.slogdet(jacobian.reshape(size, size))[1] - ladj[i]) < 1e-8
    expected = ladj + flow.prior.condition(torch.tensor([0, 1, 2])).log_prob(z_f)
    if flow.aux is not None:
        scale = torch.nn.functional.softplus(flow.aux.raw_scale)
        expected = expected + torch.distributions.Normal(0.0, scale).log_prob(z_aux).sum(-1)
    assert relative(flow.condition(torch.tensor([0, 1, 2])).log_prob(x), expected) < 1e-12


# -- shapes ---------------------------------------------------
@pytest.mark.parametrize("make", [toy_flow, image_flow])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (3, 1), (3, 1, 1)])
def test_batch_and_event_shapes(make, batch):
    flow = make("flow")
    event = tuple(flow.event_shape)
    for y in (torch.zeros(batch, dtype=torch.long), torch.rand(batch + (3,)).softmax(-1)):
        d = flow.condition(y)
        assert isinstance(d, TorchDistributionMixin)
        assert d.batch_shape == batch
        assert d.event_shape == event
        assert d.sample().shape == batch + event
        assert d.rsample((4,)).shape == (4,) + batch + event
        assert d.log_prob(torch.randn(batch + event)).shape == batch
        rows = torch.randn((5,) + (1,) * len(batch) + event)
        assert d.log_prob(rows).shape == (5,) + batch
        assert d.expand((2,) + batch).batch_shape == (2,) + batch
        assert d.support.event_dim == len(event)
    assert flow.sample(torch.zeros(batch, dtype=torch.long), sample_shape=(2,)).shape == (2,) + batch + event


def test_draws_of_one_batch_are_independent():
    """The base distribution has the batch shape of the label, so rows do not share their noise."""
    x = toy_flow("flow").sample(torch.zeros(6, dtype=torch.long))
    assert len({tuple(row.tolist()) for row in x}) == 6
    enumerated = toy_flow().sample(torch.arange(3)[:, None].expand(3, 4))
    assert len({tuple(row.tolist()) for row in enumerated.reshape(-1, 2)}) == 12


def test_expanded_distribution_draws_and_scores():
    flow = image_flow("flow")
    d = flow.condition(torch.tensor([0, 2])).expand((3, 2))
    x = d.sample()
    assert x.shape == (3, 2, 1, 4, 4)
    assert len({tuple(row.flatten().tolist()) for row in x.reshape(-1, 1, 4, 4)}) == 6
    assert relative(d.log_prob(x), flow.condition(torch.tensor([0, 2])).log_prob(x)) < 1e-5


def test_support_is_that_of_the_data():
    flow = image_flow("gmm", logit=0.05)
    d = flow.condition(torch.tensor(0))
    assert d.support.check(torch.full((1, 4, 4), 0.5))
    assert not d.support.check(torch.full((1, 4, 4), 1.5))
    assert d.support.check(d.sample((10,))).all()


@pytest.mark.parametrize("shape", [(2, 2, 2), (3,)])
def test_a_flow_whose_base_is_an_image_is_flattened(shape):
    flow = scnf.SemiConditionalFlow(T.Compose([T.ActNorm(shape), T.Flip(shape)]), "gmm", 2)
    assert flow.transform.base_shape == (math.prod(shape),)
    assert flow.latent_shape == shape
    x = torch.randn(4, *shape)
    assert relative(flow.encode(x)[1], x.flip(1)) < 1e-6


# -- latents ----------------------------------------------------
@pytest.mark.parametrize("latent_dim", [None, 1, 5, 8, 12, 16])
def test_encode_and_decode(latent_dim):
    flow = image_flow("gmm", dtype=F64, latent_dim=latent_dim)
    x = torch.randn(2, 3, 1, 4, 4, dtype=F64)
    z_aux, z_f, ladj = flow.encode(x)
    size = 8 if latent_dim is None else latent_dim
    assert z_f.shape == (2, 3) + tuple(flow.latent_shape)
    assert z_f[0, 0].numel() == size
    assert z_aux.shape == (2, 3, 16 - size)
    assert ladj.shape == (2, 3)
    assert (flow.aux is None) == (size == 16)
    assert relative(flow.decode(z_f, z_aux), x) < 1e-9
    flat, _ = flow.encode_flat(x)
    assert torch.equal(torch.cat([z_aux, z_f.flatten(2)], -1), flat)


def test_latents_of_another_precision_are_named():
    flow = image_flow("gmm")
    z_aux, z_f, _ = flow.encode(torch.randn(2, *flow.event_shape))
    assert torch.equal(flow.decode(z_f.half(), z_aux), flow.decode(z_f.half().float(), z_aux))
    for latents in ({"z_f": z_f.double()}, {"z_f": z_f, "z_aux": z_aux.double()}):
        name = list(latents)[-1]
        with pytest.raises(ValueError, match=rf"decode: {name} has dtype torch.float64 .*{name}\.to\("):
            flow.decode(**latents)


def test_decode_without_the_auxiliary_part():
    flow = image_flow("gmm", dtype=F64)
    z_f = flow.prior.condition(torch.tensor([0, 1])).sample()
    zero = torch.zeros(2, 8, dtype=F64)
    assert torch.equal(flow.decode(z_f), flow.decode(z_f, zero))
    assert torch.equal(flow.decode(z_f, "zero"), flow.decode(z_f, zero))
    one, other = flow.decode(z_f, "sample"), flow.decode(z_f, "sample")
    assert not torch.equal(one, other)
    assert relative(flow.encode(one)[1], z_f) < 1e-9
    assert relative(flow.decode(z_f, "sample", temperature=1e-12), flow.decode(z_f)) < 1e-9
    with torch.no_grad():
        flow.aux.raw_scale.fill_(math.log(math.expm1(3.0)))
    wide = flow.encode(flow.decode(z_f.expand((500,) + z_f.shape), "sample"))[0]
    assert wide.std().item() == pytest.approx(3.0, rel=0.05)


def test_sampling_uses_the_learnt_scales_and_the_temperature():
    flow = image_flow("gmm", dtype=F64)
    with torch.no_grad():
        flow.aux.raw_scale.fill_(math.log(math.expm1(0.2)))
    y = torch.zeros(2000, dtype=torch.long)
    z_aux, z_f, _ = flow.encode(flow.sample(y))
    assert z_aux.std().item() == pytest.approx(0.2, rel=0.05)
    z_aux, cold, _ = flow.encode(flow.sample(y, temperature=0.5))
    assert z_aux.std().item() == pytest.approx(0.1, rel=0.05)
    assert relative(cold.std(0), 0.5 * z_f.std(0)) < 0.1
    assert not flow.sample(y).requires_grad


@pytest.mark.parametrize(
    ("shape", "expected"), [(5, (5,)), ((5,), (5,)), ([2, 3], (2, 3)), ((), ()), (0, (0,))]
)
def test_shape_of_samples(shape, expected):
    flow, y = image_flow(), torch.tensor([0, 1])
    assert flow.sample(y, sample_shape=shape).shape == (*expected, 2, 1, 4, 4)


@pytest.mark.parametrize("shape", [-1, 2.0, "5", (2, -3), True, None])
def test_shapes_that_are_none(shape):
    with pytest.raises(
        ValueError, match=r"^sample_shape=.*: expected sizes, all whole numbers of at least 0"
    ):
        image_flow().sample(torch.tensor([0, 1]), sample_shape=shape)


@pytest.mark.parametrize(("scale", "init"), [("learnable", 0.7), ("unit", 1.0)])
def test_scale_of_the_auxiliary_part(scale, init):
    flow = scnf.SemiConditionalFlow(
        scnf.flows.glow((1, 4, 4), levels=2, steps=1, width=4), "gmm", 2, aux_scale=scale, init_aux_scale=init
    )
    assert torch.allclose(flow.aux().base_dist.scale, torch.full((8,), init))
    assert sum(p.numel() for p in flow.aux.parameters()) == (8 if scale == "learnable" else 0)


# -- labels ----------------------------------------------------------
@pytest.mark.parametrize("name", PLANE)
def test_labels_summed_by_hand(name):
    """class_log_prob, log_prob, posterior and LabelMarginal agree with a loop over labels and Bayes' rule."""
    case, tolerance = PLANE[name], PLANE[name].tolerances.batching
    flow = scnf.flows.realnvp(case.event_shape, couplings=2, width=6, blocks=1)
    flow = perturb(scnf.SemiConditionalFlow(flow, case.build())).double()
    assert flow.num_classes == case.num_classes
    x = torch.randn((4,) + case.event_shape, dtype=F64)
    joint = torch.stack(
        [flow.condition(torch.full((4,), k)).log_prob(x) for k in range(flow.num_classes)], -1
    )
    assert relative(flow.class_log_prob(x), joint) < tolerance
    for logits in (
        None,
        torch.randn(flow.num_classes, dtype=F64),
        torch.randn(4, flow.num_classes, dtype=F64),
    ):
        probs = None if logits is None else logits.softmax(-1)
        weighted = joint + (torch.zeros_like(joint) if logits is None else logits).log_softmax(-1)
        assert relative(flow.log_prob(x, probs), weighted.logsumexp(-1)) < tolerance
        posterior = flow.posterior(x, probs)
        assert relative(posterior.probs, weighted.softmax(-1)) < tolerance
        assert relative(posterior.probs.sum(-1), torch.ones(4, dtype=F64)) < 1e-12
        if logits is not None:
            marginal = scnf.LabelMarginal(flow, probs)
            assert relative(marginal.log_prob(x), weighted.logsumexp(-1)) < tolerance
            assert relative(marginal.posterior(x).probs, weighted.softmax(-1)) < tolerance


def test_posterior_keeps_its_digits_under_large_log_determinants():
    """A term of thousands of nats that all labels share does not round the posterior."""
    torch.manual_seed(0)
    prior = scnf.priors.GaussianMixturePrior((2,), 3)

    class Shifted(T.FlowTransform):
        """The identity, which claims a huge constant log-determinant."""

        def _inverse_ladj(self, x, *context):
            return x, x.new_full(x.shape[:-1], -7e6)

    flow = scnf.SemiConditionalFlow(Shifted((2,)), prior)
    x = torch.randn(50, 2)
    assert relative(flow.posterior(x).probs, prior.class_log_prob(x).softmax(-1)) < 1e-6


def test_gradients_of_drawn_data():
    """log_prob of a distribution's own draw has the full gradient. With cached transforms it has none."""
    flow = toy_flow("flow", dtype=F64)
    d = flow.condition(torch.tensor([0, 1]))
    x = d.sample()
    own = gradients(flow, d.log_prob(x).sum())
    again = gradients(flow, flow.condition(torch.tensor([0, 1])).log_prob(x.clone()).sum())
    assert gradient_error(own, again) < 1e-12
    assert sum(g.abs().sum() for g in own.values()) > 0


def test_relaxed_labels_carry_gradients_to_the_label():
    flow = toy_flow("flow", dtype=F64)
    logits = torch.zeros(4, 3, dtype=F64, requires_grad=True)
    x = torch.randn(4, 2, dtype=F64)
    d = dist.RelaxedOneHotCategorical(torch.tensor(0.5, dtype=F64), logits=logits)
    flow.condition(d.rsample()).log_prob(x).sum().backward()
    assert (logits.grad != 0).any(-1).all()


# -- as part of Pyro -----------------------------------------------------
def test_it_is_a_conditional_distribution_and_becomes_a_pyro_module():
    flow = image_flow("flow")
    x = torch.randn(3, 1, 4, 4)
    before = flow.log_prob(x)
    assert isinstance(flow, ConditionalDistribution)
    to_pyro_module_(flow)
    assert isinstance(flow, PyroModule)
    assert isinstance(flow, ConditionalDistribution)
    assert torch.equal(flow.log_prob(x), before)
    built = PyroModule[scnf.SemiConditionalFlow](scnf.flows.glow((2,), steps=1), "flow", 2)
    assert built.log_prob(torch.randn(3, 2)).shape == (3,)


def test_initialize_reaches_flow_and_prior():
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=2, width=6), "gmm:means=latents", 3)
    x, y = 5 + 2 * torch.randn(60, 2), torch.arange(60) % 4 - 1
    before = flow.log_prob(x).mean()
    flow.initialize(x, y)
    _, z_f, _ = flow.encode(x)
    for k in range(3):
        assert torch.allclose(flow.prior.loc[k], z_f[y == k].mean(0), atol=1e-5)
    assert flow.log_prob(x).mean() > before
    image = image_flow("flow")
    image.initialize(torch.randn(20, 1, 4, 4))  # all labels unknown
    assert torch.isfinite(image.log_prob(torch.randn(3, 1, 4, 4))).all()


# -- the label summed inside one distribution -------------------------------
class TestLabelMarginal:
    def test_shapes_and_expansion(self):
        flow = image_flow()
        d = scnf.LabelMarginal(flow, torch.rand(4, 3))
        assert (d.batch_shape, d.event_shape) == ((4,), (1, 4, 4))
        wide = d.expand((2, 4))
        x = wide.sample()
        assert x.shape == (2, 4, 1, 4, 4)
        assert relative(wide.log_prob(x), d.log_prob(x)) < 1e-6
        assert wide.expand((3, 2, 4)).batch_shape == (3, 2, 4)
        assert scnf.LabelMarginal(flow).sample((5,)).shape == (5, 1, 4, 4)

    def test_one_run_of_the_flow(self):
        flow = toy_flow("flow")
        with counting(flow.transform, "inverse_and_ladj") as counter:
            scnf.LabelMarginal(flow).log_prob(torch.randn(6, 2))
        assert counter.calls == 1

    def test_plain_elbo_takes_it(self):
        """A program without a label site gets the exact marginal from plain Trace_ELBO."""
        flow, x = toy_flow("flow"), torch.randn(7, 2)

        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", scnf.LabelMarginal(flow), obs=x)

        loss = Trace_ELBO().differentiable_loss(model, lambda x: None, x)
        assert loss.item() == pytest.approx(-flow.log_prob(x).sum().item(), rel=1e-5)

    def test_learns_its_weights_by_svi(self):
        flow = toy_flow()
        x = flow.sample(torch.zeros(200, dtype=torch.long))
        flow.requires_grad_(False)

        def model(x):
            logits = pyro.param("logits", torch.zeros(3))
            with pyro.plate("data", len(x)):
                pyro.sample("x", scnf.LabelMarginal(flow, logits.softmax(-1)), obs=x)

        svi = SVI(model, lambda x: None, Adam({"lr": 0.1}), Trace_ELBO())
        losses = [svi.step(x) for _ in range(30)]
        assert losses[-1] < losses[0]
        assert pyro.param("logits").argmax() == 0


@pytest.mark.parametrize("make", [toy_flow, image_flow])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_flow_and_prior_give_the_same_and_leave_copies_alone(make):
    """With ``fullgraph`` neither pass may fall back to Python."""
    flow = make("flow")
    x = torch.randn(5, *flow.event_shape)
    plain = flow.class_log_prob(x)
    expected = gradients(flow, plain.sum())
    flow.compile(backend="aot_eager", fullgraph=True)
    compiled = flow.class_log_prob(x)
    assert relative(compiled, plain) < 1e-5
    compiled.sum().backward()
    assert gradient_error({name: p.grad for name, p in flow.named_parameters()}, expected) < 1e-5
    assert flow.transform._compiled is not None
    assert flow.prior.flow._compiled is not None
    copied = copy.deepcopy(flow)
    assert copied.transform._compiled is None
    assert pickle.loads(pickle.dumps(flow.transform))._compiled is None


def test_class_probs_of_other_rows():
    flow = toy_flow()
    for score in (flow.log_prob, flow.posterior):
        with pytest.raises(ValueError, match=r"x \(4,\) and class_probs \(2,\) do not broadcast"):
            score(torch.randn(4, 2), torch.ones(2, 3))
    assert flow.log_prob(torch.randn(4, 2), torch.ones(3, dtype=torch.float64)).dtype == torch.float32
