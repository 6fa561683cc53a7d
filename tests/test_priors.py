"""Class-conditional priors: the checks of ``pyro_scnf.testing``, then what is special to each."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import CONTEXT, COVARIATE_PRIORS, PRIORS, mlp, own_flow_prior
from helpers import each, perturb, relative, toy_flow
from pyro.infer import Predictive
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

import pyro_scnf as scnf
from pyro_scnf.priors import ConditionalFlowPrior, GaussianMixturePrior, StudentTMixturePrior, make_prior
from pyro_scnf.testing import PRIOR_CHECKS

F64 = torch.float64
every = pytest.mark.parametrize("name", PRIORS)


WITH_COVARIATES = {f"covariates-{name}": case for name, case in COVARIATE_PRIORS.items()}


@each(PRIOR_CHECKS, PRIORS | WITH_COVARIATES)
def test_conformance(name, check):
    PRIOR_CHECKS[check]((PRIORS | WITH_COVARIATES)[name])


# -- labels --------------------------------------------------------------------
@every
def test_labels_of_one_byte(name):
    """PyTorch takes uint8 indices for a mask, and refuses int8. The priors of this package take both."""
    prior, z = PRIORS[name].member(), PRIORS[name].latents((2,))
    reference = prior.condition(torch.tensor([0, 1])).log_prob(z)
    for dtype in (torch.uint8, torch.int8):
        assert torch.equal(prior.condition(torch.tensor([0, 1], dtype=dtype)).log_prob(z), reference)


def test_relaxed_labels_interpolate_the_parameters_of_a_mixture():
    prior = GaussianMixturePrior((2,), 2, separation=3.0)
    with torch.no_grad():
        prior.log_scale[1] += 1.0
    d = prior.condition(torch.tensor([0.25, 0.75])).base_dist
    assert torch.allclose(d.loc, 0.25 * prior.loc[0] + 0.75 * prior.loc[1])
    assert torch.allclose(d.scale.log(), torch.full((2,), 0.75))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", ["gmm", "student-t", "flow"])
def test_class_weights_of_another_precision(spec, own, dtype):
    flow = toy_flow(spec, dtype=own)
    x = torch.randn(4, 2, dtype=own)
    y = torch.tensor([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]] * 2)  # without rounding in any dtype
    found = flow.condition(y.to(dtype)).log_prob(x)
    assert found.dtype == own
    assert relative(found, flow.condition(y.to(own)).log_prob(x)) < 1e-6
    assert flow.sample(y.to(dtype)).dtype == own


def test_class_weights_keep_their_digits_under_autocast():
    prior = toy_flow("flow").prior
    weights = torch.rand(50, 3).softmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prior.context(weights)
    assert found.dtype == torch.float32
    assert relative(found, prior.context(weights)) < 1e-6


# -- draws ---------------------------------------------------------------------
@every
def test_temperature_is_a_factor_on_the_noise(name):
    """At temperature T base noise is T times as wide."""
    prior, y = PRIORS[name].member(), torch.zeros(4000, dtype=torch.long)
    with torch.no_grad():
        pyro.set_rng_seed(0)
        warm = prior.condition(y).sample()
        pyro.set_rng_seed(0)
        cold = prior.condition(y, temperature=0.25).sample()
    if isinstance(prior, ConditionalFlowPrior):
        noise = [prior.encode(z, y).std(0) for z in (warm, cold)]
        assert relative(noise[1], 0.25 * noise[0]) < 1e-6
        return
    means = prior.loc[0].reshape(prior.components, 1, *prior.event_shape)
    off = (cold - means) - 0.25 * (warm - means)  # about the mean of the component that a row came from
    assert off.flatten(2).abs().amax(-1).amin(0).max() < 1e-9


# -- covariances, against torch.distributions ----------------------------------
@pytest.mark.parametrize("event_shape", [(4,), (2, 1, 2)])
@pytest.mark.parametrize("covariance", ["diagonal", "shared", "isotropic", "full"])
def test_covariances(covariance, event_shape):
    prior = perturb(GaussianMixturePrior(event_shape, 3, covariance=covariance, scale=0.8), 0.4).double()
    z = torch.randn((7,) + event_shape, dtype=F64)
    for k in range(3):
        loc = prior.loc[k].flatten()
        if covariance == "full":
            tril = prior.off_diagonal[k].tril(-1) + torch.diag(prior.log_scale[k].exp())
        else:
            scale = {
                "diagonal": lambda k=k: prior.log_scale[k].flatten(),
                "shared": lambda: prior.log_scale.flatten(),
                "isotropic": lambda k=k: prior.log_scale[k].expand(4),
            }[covariance]()
            tril = torch.diag(scale.exp())
        reference = torch.distributions.MultivariateNormal(loc, scale_tril=tril)
        assert (
            relative(prior.condition(torch.tensor(k)).log_prob(z), reference.log_prob(z.flatten(1))) < 1e-10
        )


def test_sizes_of_the_covariances():
    sizes = {
        c: sum(p.numel() for p in GaussianMixturePrior((4,), 3, covariance=c, fit_means="fixed").parameters())
        for c in ("diagonal", "shared", "isotropic", "full")
    }
    assert sizes == {"diagonal": 12, "shared": 4, "isotropic": 3, "full": 12 + 48}


@pytest.mark.parametrize(("shape", "components"), [((3,), 1), ((1, 2, 2), 1), ((3,), 2)])
def test_a_full_student_t_is_pyros(shape, components):
    spec = f"student-t:covariance=full,df=3.5,components={components}"
    prior = perturb(make_prior(spec, shape, 4)).double()
    z, y = torch.randn(5, *shape).double(), torch.tensor([0, 1, 2, 3, 1])
    tril = torch.diag_embed(prior.log_scale.exp()) + prior.off_diagonal.tril(-1)
    theirs = dist.MultivariateStudentT(torch.tensor(3.5).double(), prior.loc.flatten(-len(shape))[y], tril[y])
    flat = z.flatten(1) if components == 1 else z.flatten(1)[:, None]
    expected = theirs.log_prob(flat)
    if components > 1:
        expected = (expected + prior.log_weights.log_softmax(-1)[y]).logsumexp(-1)
    assert torch.allclose(prior.condition(y).log_prob(z), expected)
    assert prior.condition(y, temperature=0.5).sample((7,)).shape == (7, 5, *shape)


def test_a_full_student_t_of_many_degrees_of_freedom_is_the_gaussian():
    t = perturb(make_prior("student-t:covariance=full,df=1e8", (3,), 2))
    gaussian = make_prior("gmm:covariance=full", (3,), 2)
    gaussian.load_state_dict({name: value for name, value in t.state_dict().items() if name != "raw_df"})
    z, y = torch.randn(6, 3), torch.arange(6) % 2
    assert torch.allclose(t.condition(y).log_prob(z), gaussian.condition(y).log_prob(z), atol=1e-4)


def test_student_t_has_unit_location_and_scale_tables_and_heavier_tails():
    prior = StudentTMixturePrior((3,), 2, df=5.0, scale=0.5).double()
    z = torch.randn(6, 3, dtype=F64)
    reference = torch.distributions.StudentT(5.0, prior.loc[1], torch.tensor(0.5, dtype=F64))
    assert relative(prior.condition(torch.tensor(1)).log_prob(z), reference.log_prob(z).sum(-1)) < 1e-6
    far = prior.loc[1] + 50
    normal = torch.distributions.Normal(prior.loc[1], 0.5)
    assert prior.condition(torch.tensor(1)).log_prob(far) > normal.log_prob(far).sum() + 100
    learnt = StudentTMixturePrior((3,), 2, df=3.0, fit_df="gradient")
    assert learnt.df.item() == pytest.approx(3.0)
    assert learnt.raw_df.requires_grad


def test_fixed_tables_are_buffers():
    prior = GaussianMixturePrior((3,), 2, fit_means="fixed", fit_scales="fixed")
    assert list(prior.parameters()) == []
    assert set(prior.state_dict()) == {"loc", "log_scale"}
    assert prior.double().loc.dtype == F64


# -- initial values ------------------------------------------------------------
def test_random_means_are_separation_times_normal():
    loc = GaussianMixturePrior((2000,), 2, separation=3.0).loc
    assert loc.std().item() == pytest.approx(3.0, rel=0.1)


def test_antipodal_means():
    loc = GaussianMixturePrior((5,), 2, means="antipodal", separation=3.75).loc
    assert torch.allclose(loc[0], -loc[1])
    assert loc[0].norm().item() == pytest.approx(3.75)


@pytest.mark.parametrize("cls", [GaussianMixturePrior, StudentTMixturePrior])
def test_means_of_labelled_latents(cls):
    prior = cls((2, 1, 1), 3, means="latents")
    z, y = torch.randn(30, 2, 1, 1), torch.arange(30) % 4 - 1
    prior.initialize(z, y)
    for k in range(3):
        assert torch.allclose(prior.loc[k], z[y == k].mean(0))
    by_default = cls((2, 1, 1), 3)
    by_default.initialize(z, y)
    assert torch.equal(by_default.loc, prior.loc)


@pytest.mark.parametrize(
    "spec",
    ["flowgmm", "gmm:means=random", "gmm:fit_means=fixed", "student-t:means=random", "gmm:means=antipodal"],
)
def test_means_that_labels_leave_alone(spec):
    """Fixed means, and means that an option asks for, are not those of the labelled latents."""
    prior = make_prior(spec, (3,), 2)
    before = prior.loc.clone()
    prior.initialize(5 + torch.randn(30, 3), torch.arange(30) % 3 - 1)
    assert torch.equal(prior.loc, before)


@pytest.mark.parametrize("name", ["gmm", "student-t"])
def test_means_where_some_classes_have_no_labelled_row(name, recwarn):
    """Learned means of the other classes are set, and a warning names those that stay random."""
    z, y = 5 + torch.randn(30, 2), torch.arange(30) % 3 - 1
    prior = make_prior(name, (2,), 4)
    before = prior.loc.clone()
    with pytest.warns(UserWarning, match=r"no labelled row of class \[2, 3\], so their means stay random"):
        prior.initialize(z, y)
    for k in range(2):
        assert torch.allclose(prior.loc[k], z[y == k].mean(0))
    assert torch.equal(prior.loc[2:], before[2:])
    prior = make_prior(name, (2,), 4)
    before = prior.loc.clone()
    recwarn.clear()
    prior.initialize(z, torch.full((30,), -1))  # nothing is labelled: all start alike
    assert torch.equal(prior.loc, before)
    assert not recwarn.list


def test_means_that_are_a_random_site_are_not_set():
    """No data can set them: the default leaves them alone, and means="latents" says so."""
    z, y = torch.randn(30, 2), torch.arange(30) % 2
    priors = [make_prior(spec, (2,), 2) for spec in ("gmm", "gmm:means=latents")]
    for prior in priors:
        to_pyro_module_(prior)
        del prior.loc
        prior.loc = PyroSample(dist.Normal(0.0, 3.0).expand([2, 2]).to_event(2))
    priors[0].initialize(z, y)
    with pytest.raises(ValueError, match="means='latents': loc is a random site"):
        priors[1].initialize(z, y)


def test_a_flow_prior_normalises_its_latents_when_initialised():
    prior = ConditionalFlowPrior((3,), 2, steps=1, width=6, blocks=1)
    z, y = 4 + 3 * torch.randn(200, 3), torch.arange(200) % 3 - 1  # some of them unlabelled
    before = prior.class_log_prob(z).mean()
    prior.initialize(z, y)
    h = prior.encode(z, y.clamp(min=0))
    assert prior.class_log_prob(z).mean() > before
    assert h.std(0).max() < 1.5
    assert h.mean(0).abs().max() < 1.0


def test_the_label_embedding_starts_one_hot_unless_its_length_says_otherwise():
    assert torch.equal(ConditionalFlowPrior((2,), 3, steps=1, width=4).embedding.weight, torch.eye(3))
    assert ConditionalFlowPrior((2,), 3, steps=1, width=4, embedding_dim=5).embedding.weight.shape == (3, 5)


def test_base_scale():
    prior = ConditionalFlowPrior((4,), 2, steps=1, width=4, base_scale=math.log(2))
    assert torch.allclose(prior.base().base_dist.scale, torch.full((4,), math.log(2)))
    assert torch.equal(prior.base.raw_scale, torch.zeros(4))
    unit = ConditionalFlowPrior((4,), 2, steps=1, width=4, base="unit")
    assert torch.equal(unit.base().base_dist.scale, torch.ones(4))
    assert not any("raw_scale" in name for name, _ in unit.named_parameters())


# -- names ---------------------------------------------------------------------
@pytest.mark.parametrize(
    "spec",
    [
        "gmm:covariance=full,scale=0.5,fit_means=fixed",
        " gmm:covariance = full , scale = 0.5 , learn_means = false ".strip(),
        {"name": "gmm", "covariance": "full", "scale": 0.5, "fit_means": "fixed"},
        {"name": "gmm:covariance=full,scale=9.0", "scale": 0.5, "fit_means": "fixed"},  # the mapping wins
        "pyro_scnf.priors.GaussianMixturePrior:covariance=full,scale=0.5,fit_means=fixed",
        lambda shape, k: GaussianMixturePrior(shape, k, covariance="full", scale=0.5, fit_means="fixed"),
    ],
)
def test_ways_to_name_the_same_prior(spec):
    prior = make_prior(spec, (2, 1, 1), 3)
    assert type(prior) is GaussianMixturePrior
    assert (prior.covariance, prior.num_classes, prior.event_shape) == ("full", 3, (2, 1, 1))
    assert not prior.loc.requires_grad
    assert torch.allclose(prior.log_scale, torch.tensor(0.5).log())


@pytest.mark.parametrize(
    ("options", "means", "scales"),
    [
        ("", "fixed", "fixed"),
        (":learn_means=True", "gradient", "fixed"),
        (":learn_means=False", "fixed", "fixed"),
        (":fit_scales=em", "fixed", "em"),
        (":fit_means=None,fit_scales=None", "fixed", "fixed"),
    ],
)
def test_options_replace_the_defaults_of_flowgmm(options, means, scales):
    prior = make_prior(f"flowgmm{options}", (3,), 2)
    assert prior.fits == {"fit_means": means, "fit_scales": scales}
    assert (prior.covariance, prior.means) == ("isotropic", "random")
    with pytest.raises(ValueError, match=r"no option 'width', expected one of covariance, components"):
        make_prior("flowgmm:width=3", (3,), 2)


def test_ready_modules_and_classes():
    prior = GaussianMixturePrior((3,), 4)
    assert make_prior(prior, (3,), None) is prior
    assert type(make_prior(StudentTMixturePrior, (3,), 2)) is StudentTMixturePrior
    assert make_prior(own_flow_prior, (3,), 2).flow.context_dim == CONTEXT


def test_every_word_of_the_table_is_a_name():
    for word in scnf.PRIORS:
        assert make_prior(word, (2,), 2).event_shape == (2,)
    fixed = make_prior("flowgmm", (2,), 2)
    assert list(fixed.parameters()) == []
    assert fixed.covariance == "isotropic"


class Laplace(scnf.priors.ClassConditionalPrior):
    """A prior a user might write: nothing but ``condition``."""

    def __init__(self, event_shape, num_classes, spread=1.0):
        super().__init__(event_shape, num_classes)
        self.loc = nn.Parameter(torch.randn(num_classes, *self.event_shape))
        self.spread = spread

    def condition(self, y, temperature=1.0):
        return dist.Laplace(self.loc[self._check(y)], self.spread * temperature).to_event(1)


def test_a_users_own_prior():
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=6), Laplace, 3)
    assert flow.class_log_prob(torch.randn(4, 2)).shape == (4, 3)
    by_path = make_prior(f"{Laplace.__module__}.Laplace:spread=0.5", (2,), 3)
    assert type(by_path).__name__ == "Laplace"
    assert by_path.spread == 0.5
    x = torch.randn(5, 2)
    assert scnf.elbo(scnf.SemiSupervisedModel(flow))(x).item() == pytest.approx(
        -flow.log_prob(x).sum().item(), rel=1e-5
    )


class OneForAll(scnf.priors.ClassConditionalPrior):
    """A wrong prior: its distribution lacks the batch shape of y."""

    def __init__(self, event_shape, num_classes):
        super().__init__(event_shape, num_classes)
        self.loc = nn.Parameter(torch.zeros(2))

    def condition(self, y, temperature=1.0):
        return dist.Normal(self.loc, temperature).to_event(1)


def test_a_prior_that_ignores_the_shape_of_its_labels():
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=6), OneForAll, 3)
    with pytest.raises(ValueError, match=r"^OneForAll: log_prob .* has shape \(4,\) .* \(3, 4\)"):
        flow.log_prob(torch.randn(4, 2))


def test_a_start_that_fails_changes_nothing():
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=6), "gmm:means=latents", 3)
    before = copy.deepcopy(flow.state_dict())
    with pytest.raises(ValueError, match=r"no labelled example of class \[2\] in y"):
        flow.initialize(torch.randn(4, 2), torch.tensor([0, 1, -1, -1]))
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


# -- Bayesian class means ------------------------------------------------------
class BayesianMeans(PyroModule):
    """Class means with a prior of their own, sampled outside the plate."""

    def __init__(self, covariance: str = "diagonal") -> None:
        super().__init__()
        prior = PyroModule[GaussianMixturePrior]((2,), 3, covariance=covariance)
        del prior.loc
        prior.loc = PyroSample(dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        flow = scnf.flows.realnvp((2,), couplings=2, net=mlp)
        self.flow = PyroModule[scnf.SemiConditionalFlow](flow, prior)

    def forward(self, x):
        _ = self.flow.prior.loc  # touched before the plate: one set of means, not one a row
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            return pyro.sample("x", self.flow.condition(y), obs=x)


@pytest.mark.parametrize("covariance", ["diagonal", "shared", "isotropic", "full"])
def test_posterior_draws_of_class_means_in_one_run(covariance):
    model, x = BayesianMeans(covariance), torch.randn(6, 2)
    draws = torch.randn(5, 3, 2)
    joint = scnf.enumerate_labels(model, (x,), {"flow.prior.loc": draws})
    assert joint.shape == (5, 6, 3)
    for s in range(5):
        with torch.no_grad():
            hand = GaussianMixturePrior((2,), 3, covariance=covariance)
            hand.load_state_dict({**model.flow.prior.state_dict(), "loc": draws[s]})
            flow = scnf.SemiConditionalFlow(model.flow.transform, hand)
            assert relative(joint[s], flow.class_log_prob(x) - math.log(3)) < 1e-5


def test_class_means_are_a_site_of_the_model():
    model, x = BayesianMeans(), torch.randn(6, 2)
    trace = pyro.poutine.trace(model).get_trace(x)
    assert trace.nodes["flow.prior.loc"]["fn"].event_shape == (3, 2)
    assert trace.nodes["flow.prior.loc"]["fn"].batch_shape == ()
    draws = Predictive(model, num_samples=4)(x)
    assert draws["flow.prior.loc"].shape[-2:] == (3, 2)


def test_relaxed_labels_under_a_drawn_table():
    prior = PyroModule[GaussianMixturePrior]((2,), 3)
    del prior.loc
    prior.loc = torch.randn(5, 1, 3, 2)  # five draws, in the place a plate of draws gives them
    weights = torch.randn(4, 3).softmax(-1)
    expected = torch.einsum("nk,skd->snd", weights, prior.loc[:, 0])
    assert relative(prior.condition(weights).base_dist.loc, expected) < 1e-5


RANDOM = {  # a prior, and a table of it that is drawn anew for each posterior draw
    "means": ("gmm", "loc", 2),
    "means of components": ("gmm:components=2", "loc", 3),
    "weights": ("gmm:components=2", "log_weights", 2),
    "shared scales": ("gmm:covariance=shared", "log_scale", 1),
    "shared scales of components": ("gmm:covariance=shared,components=2", "log_scale", 1),
    "degrees of freedom": ("student-t:fit_df=gradient", "raw_df", 0),
    "degrees of freedom of components": ("student-t:fit_df=gradient,components=2", "raw_df", 0),
    "degrees of freedom of full covariances": ("student-t:fit_df=gradient,covariance=full", "raw_df", 0),
    "embedding": ("flow", "weight", 2),
    "scale of the noise": ("flow", "raw_scale", 1),
    "scale of the noise of images": ("flow:steps=1,width=6", "raw_scale", 1),
}


@pytest.mark.parametrize("by_condition", [True, False], ids=["condition", "class_log_prob"])
@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("draws", [3, 5, 6])  # as many as classes, other, as many as rows
def test_draws_of_a_random_table_broadcast(name, draws, by_condition):
    spec, table, dims = RANDOM[name]
    shape = (1, 2, 2) if "images" in name else (2,)
    flow = scnf.SemiConditionalFlow(scnf.flows.glow(shape, levels=1, steps=1, width=6), spec, 3).double()
    owners = {"weight": "embedding", "raw_scale": "base"}
    owner = getattr(flow.prior, owners[table]) if table in owners else flow.prior
    value = getattr(owner, table).detach()
    assert value.dim() == dims
    drawn = value + torch.randn(draws, *value.shape, dtype=torch.float64)
    x, y = torch.randn(6, *shape, dtype=torch.float64), torch.arange(3)[:, None, None]

    def put(new):
        owner._parameters.pop(table, None)
        owner._buffers.pop(table, None)
        object.__setattr__(owner, table, new)

    expected = []
    for one in drawn:
        put(one)
        expected.append(flow.class_log_prob(x))
    put(drawn[:, None])  # a plate of draws, to the left of that of the rows
    found = flow.condition(y).log_prob(x).movedim(0, -1) if by_condition else flow.class_log_prob(x)
    assert relative(found, torch.stack(expected)) < 1e-9
    assert flow.class_log_prob(x[:0]).shape == (draws, 0, 3)
    assert flow.prior.condition(torch.arange(3)[:, None, None]).sample().shape == (
        3,
        draws,
        1,
        *flow.latent_shape,
    )
