"""Labels and covariates together as the context of the conditional prior: p(x | y, c)."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import counting, gradient_error, gradients, perturb, relative
from pyro import poutine
from pyro.infer import Predictive, TraceEnum_ELBO, infer_discrete
from pyro.nn.module import to_pyro_module_
from torch.nn.functional import one_hot

import pyro_scnf as scnf
from pyro_scnf.priors import ConditionalFlowPrior, GaussianMixturePrior

F64 = torch.float64
K, D, B = 3, 2, 5
SPEC = f"flow:covariates={D},steps=1,width=6,blocks=1"


def make(spec=SPEC, num_classes=K, dtype=F64) -> scnf.SemiConditionalFlow:
    """A flow with an auxiliary part and random parameters."""
    f_w = scnf.flows.glow((4,), levels=2, steps=1, width=6, blocks=1)
    return perturb(scnf.SemiConditionalFlow(f_w, spec, num_classes)).to(dtype)


@pytest.fixture
def flow() -> scnf.SemiConditionalFlow:
    torch.manual_seed(0)
    return make()


@pytest.fixture
def data(flow) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(B, 4, dtype=F64), torch.randn(B, D, dtype=F64)


def by_hand(flow, x, covariates) -> torch.Tensor:
    """log p(x | y = k, c) row by row and label by label, from parts that know nothing of covariates."""
    prior, joint = flow.prior, []
    for row, c in zip(x, covariates, strict=True):
        z_aux, z_f, ladj = flow.encode(row)
        for k in range(flow.num_classes):
            context = torch.cat([prior.embedding.weight[k], c])
            noise, inner = prior.flow.inverse_and_ladj(z_f, context)
            joint.append(ladj + flow.aux_log_prob(z_aux) + prior.base().log_prob(noise) + inner)
    return torch.stack(joint).reshape(len(x), flow.num_classes)


# -- densities -------------------------------------------------------------------------------------
def test_every_density_is_that_by_hand(flow, data):
    x, c = data
    expected = by_hand(flow, x, c)
    assert expected.std(1).min() > 1e-3  # labels matter
    assert relative(expected, by_hand(flow, x, c.roll(1, 0))) > 1e-3  # so do covariates
    assert relative(flow.class_log_prob(x, covariates=c), expected) < 1e-10
    assert relative(flow.condition(torch.arange(K)[:, None], covariates=c).log_prob(x).T, expected) < 1e-10
    y = torch.arange(B) % K
    assert relative(flow.condition(y, covariates=c).log_prob(x), expected[torch.arange(B), y]) < 1e-10
    weights = one_hot(y, K).to(F64)
    assert relative(flow.condition(weights, covariates=c).log_prob(x), expected[torch.arange(B), y]) < 1e-10
    share = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    joint = expected + share.log()
    assert relative(flow.log_prob(x, share, covariates=c), joint.logsumexp(-1)) < 1e-10
    assert relative(flow.posterior(x, share, covariates=c).probs, joint.softmax(-1)) < 1e-10
    parts = flow.class_table(x, covariates=c) + flow.common_log_prob(x, covariates=c)[:, None]
    assert relative(parts, expected) < 1e-10


def test_gradients_are_those_by_hand(flow, data):
    x, c = data
    together = gradients(flow, flow.log_prob(x, covariates=c).sum())
    alone = gradients(flow, (by_hand(flow, x, c) - math.log(K)).logsumexp(-1).sum())
    assert gradient_error(together, alone) < 1e-10
    c.requires_grad_()
    (together,) = torch.autograd.grad(flow.log_prob(x, covariates=c).sum(), c)
    (alone,) = torch.autograd.grad((by_hand(flow, x, c) - math.log(K)).logsumexp(-1).sum(), c)
    assert relative(together, alone) < 1e-10


def test_draws_of_covariates_are_a_leading_dimension(flow, data):
    x, _ = data
    draws = torch.randn(7, B, D, dtype=F64)
    expected = torch.stack([by_hand(flow, x, c) for c in draws])
    assert relative(flow.class_log_prob(x, covariates=draws), expected) < 1e-10
    labels = torch.arange(K).reshape(K, 1, 1)
    for shared in (False, True):  # by the distribution, and out of a class table
        with scnf.sharing.evaluation() if shared else torch.no_grad():
            given = flow.condition(labels, covariates=draws)
            assert given.batch_shape == (K, 7, B)
            assert relative(given.log_prob(x).movedim(0, -1), expected) < 1e-10


def test_a_label_and_an_enumerated_covariate(flow, data):
    """Two enumerated sites, in both orders of their dimensions."""
    x, _ = data
    categories = torch.eye(D, dtype=F64)
    expected = torch.stack([by_hand(flow, x, c.expand(B, D)) for c in categories], -1)  # (B, K, D)
    with scnf.share_encoding():
        inner = flow.condition(torch.arange(K)[:, None], covariates=categories.reshape(D, 1, 1, D))
        outer = flow.condition(torch.arange(K).reshape(K, 1, 1), covariates=categories.reshape(D, 1, D))
        assert relative(inner.log_prob(x).permute(2, 1, 0), expected) < 1e-10
        assert relative(outer.log_prob(x).permute(2, 0, 1), expected) < 1e-10


def test_one_label_leaves_the_covariates_alone(data):
    x, c = data
    flow = make(num_classes=1)
    assert relative(flow.log_prob(x, covariates=c), by_hand(flow, x, c)[:, 0]) < 1e-10
    given = flow.condition(torch.tensor(0), covariates=c)
    assert given.batch_shape == (B,)
    assert relative(given.log_prob(x), by_hand(flow, x, c)[:, 0]) < 1e-10


def test_draws_follow_the_covariates(flow, data):
    """Each row is drawn under its own covariates: under these alone, its noise is that of the seed."""
    c, y = data[1], torch.arange(B) % K

    def noise(drawn_under: torch.Tensor, seen_under: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        drawn = flow.sample(y, 1.0, (4,), covariates=drawn_under, generator=generator)
        return flow.prior.encode(flow.encode(drawn)[1], y, seen_under)

    expected = noise(torch.zeros_like(c), torch.zeros_like(c))
    assert expected.shape == (4, B, 2)
    assert relative(noise(c, c), expected) < 1e-6
    assert relative(noise(c, c.roll(1, 0)), expected) > 1e-2
    z_f = torch.randn(B, 2, dtype=F64)
    assert relative(flow.prior.decode(flow.prior.encode(z_f, y, c), y, c), z_f) < 1e-8


def test_the_marginal_as_a_distribution(flow, data):
    x, c = data
    share = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    marginal = scnf.LabelMarginal(flow, share, covariates=c)
    joint = by_hand(flow, x, c) + share.log()
    assert marginal.batch_shape == (B,)
    assert relative(marginal.log_prob(x), joint.logsumexp(-1)) < 1e-10
    assert relative(marginal.expand((2, B)).posterior(x).probs[1], joint.softmax(-1)) < 1e-10
    assert marginal.sample((4,)).shape == (4, B, 4)
    again = pickle.loads(pickle.dumps(marginal))
    assert torch.equal(again.log_prob(x), marginal.log_prob(x))


def test_initialize_sets_the_actnorms_of_the_prior(data):
    flow = make("flow:covariates=2,steps=1,width=6,blocks=1,base=unit")
    torch.manual_seed(0)
    x, c = 3 + 2 * torch.randn(200, 4, dtype=F64), torch.randn(200, D, dtype=F64)
    flow.initialize(x, torch.arange(200) % K, c)
    first = next(m for m in flow.prior.modules() if isinstance(m, scnf.transforms.ActNorm))
    assert first.log_scale.abs().max() > 1e-3
    assert torch.isfinite(flow.log_prob(x, covariates=c)).all()


# -- inside Pyro -----------------------------------------------------------------------------------
def model_of(flow):
    def model(x, c, y=None):
        pyro.module("flow", flow)
        with pyro.plate("data", len(c)):
            label = pyro.sample("y", dist.Categorical(torch.ones(K, dtype=F64)), obs=y, infer=PARALLEL)
            return pyro.sample("x", flow.condition(label, covariates=c), obs=x)

    return model


PARALLEL = {"enumerate": "parallel"}


def test_enumeration_is_the_sum_by_hand_in_one_pass(flow, data):
    x, c = data
    model, expected = model_of(flow), -(by_hand(flow, x, c) - math.log(K)).logsumexp(-1).sum()
    plain, ours = TraceEnum_ELBO(max_plate_nesting=1), scnf.elbo(model)
    ours(x, c)  # the first call runs the model once more, to find its parameters
    for loss in (lambda: plain.differentiable_loss(model, lambda *_: None, x, c), lambda: ours(x, c)):
        with (
            counting(flow.transform, "inverse_and_ladj") as f_w,
            counting(flow.prior.flow, "inverse_and_ladj") as prior,
        ):
            value = loss()
        assert (f_w.calls, f_w.rows, prior.calls) == (1, [B], 1)
        assert abs(value.item() / expected.item() - 1) < 1e-10
        assert gradient_error(gradients(flow, value), gradients(flow, expected)) < 1e-10


def test_all_ways_to_ask_for_labels_agree(flow, data):
    x, c = data
    model, joint = model_of(flow), by_hand(flow, x, c) - math.log(K)
    assert relative(scnf.enumerate_labels(model, (x, c))[0], joint) < 1e-10
    found = infer_discrete(model, first_available_dim=-2, temperature=0)
    label = poutine.trace(found).get_trace(x, c).nodes["y"]["value"]
    assert torch.equal(label, joint.argmax(-1))
    drawn = Predictive(model, num_samples=6, parallel=True)(None, c)
    assert drawn["x"].reshape(6, B, 4).shape == (6, B, 4)
    latent = poutine.reparam(model, {"x": scnf.FlowSitesReparam()})
    assert relative(scnf.elbo(latent)(x, c), scnf.elbo(model)(x, c)) < 1e-10


def test_a_latent_covariate_has_draws(flow, data):
    """Draws (S, B) of a covariate, by enumerate_labels in one run, are those one by one."""
    x, c = data

    def model(x, known):
        with pyro.plate("data", len(x)):
            age = pyro.sample("age", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            both = torch.stack(torch.broadcast_tensors(known, age), -1)
            label = pyro.sample("y", dist.Categorical(torch.ones(K, dtype=F64)), infer=PARALLEL)
            pyro.sample("x", flow.condition(label, covariates=both), obs=x)

    ages = torch.randn(4, B, dtype=F64)
    with counting(flow.transform, "inverse_and_ladj") as f_w:
        joint = scnf.enumerate_labels(model, (x, c[:, 0]), {"age": ages})
    assert f_w.calls == 1
    each = [by_hand(flow, x, torch.stack([c[:, 0], age], -1)) - math.log(K) for age in ages]
    assert relative(joint, torch.stack(each)) < 1e-10


def test_in_a_pyro_module(flow, data):
    x, c = data
    expected = flow.class_log_prob(x, covariates=c)
    to_pyro_module_(flow)
    assert torch.equal(flow.class_log_prob(x, covariates=c), expected)


# -- what is shared --------------------------------------------------------------------------------
def test_covariates_are_never_mixed_up(flow, data):
    """The encoding is shared. A table serves the same covariates alone, and while they do not change."""
    x, c = data
    other = torch.randn_like(c)
    flow.requires_grad_(False)
    labels = torch.arange(K)[:, None]
    with (
        scnf.share_encoding(),
        counting(flow.transform, "inverse_and_ladj") as f_w,
        counting(flow.prior.flow, "inverse_and_ladj") as prior,
    ):
        for given in (c, other, c, other):
            assert relative(flow.class_log_prob(x, covariates=given), by_hand(flow, x, given)) < 1e-10
            assert (
                relative(flow.condition(labels, covariates=given).log_prob(x).T, by_hand(flow, x, given))
                < 1e-10
            )
        by_label = flow.condition(torch.zeros(B, dtype=torch.long), covariates=other)
        assert relative(by_label.log_prob(x), by_hand(flow, x, other)[:, 0]) < 1e-10
        assert prior.calls - 9 * B * K == 2  # besides those by hand, one table for each
        assert f_w.calls - 9 * B == 1
        waiting = flow.condition(labels, covariates=c)
        before = by_hand(flow, x, c)
        c.add_(1)
        assert relative(flow.class_log_prob(x, covariates=c), by_hand(flow, x, c)) < 1e-10
        assert relative(waiting.log_prob(x).T, before) < 1e-10
        c.data.add_(1)  # a write that PyTorch does not count
        assert relative(flow.class_log_prob(x, covariates=c), by_hand(flow, x, c)) < 1e-10


def test_new_covariates_at_the_same_place_in_memory(flow, data):
    """Python may give a new tensor the id of one that is gone."""
    x, _ = data
    flow.requires_grad_(False)
    with scnf.share_encoding():
        for _ in range(5):
            c = torch.randn(B, D, dtype=F64)
            assert relative(flow.class_log_prob(x, covariates=c), by_hand(flow, x, c)) < 1e-10
            del c


def test_relaxed_labels_take_no_row_of_a_table(data):
    """As many rows as classes, so that weights (K, K) have the shape of two batch dimensions."""
    flow, x, c = make(), torch.randn(K, 4, dtype=F64), torch.randn(2, K, D, dtype=F64)
    weights = torch.rand(K, K, dtype=F64).softmax(-1)
    expected = flow.condition(weights, covariates=c).log_prob(x)
    flow.requires_grad_(False)
    with scnf.share_encoding():
        flow.class_log_prob(x, covariates=c)
        assert relative(flow.condition(weights, covariates=c).log_prob(x), expected) < 1e-10


# -- copies and files ------------------------------------------------------------------------------
def test_copies_and_files(flow, data, tmp_path):
    x, c = data
    expected = flow.class_log_prob(x, covariates=c)
    for again in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(again.class_log_prob(x, covariates=c), expected)
    scnf.save(scnf.SemiSupervisedModel(flow), tmp_path / "model.pt")
    again = scnf.load(tmp_path / "model.pt").flow
    assert (again.prior.covariates, again.prior.context_dim) == (D, K + D)
    assert torch.equal(again.class_log_prob(x, covariates=c), expected)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        {"name": "flow", "covariates": D, "steps": 1, "width": 6},
        f"ffjord:covariates={D},hidden=[6]",
        lambda shape, k: ConditionalFlowPrior(
            shape, k, covariates=D, flow=scnf.flows.glow(shape, steps=1, width=6, context_dim=K + D)
        ),
    ],
    ids=["word", "dict", "ffjord", "own flow"],
)
def test_names(spec):
    prior = scnf.make_prior(spec, (2,), K)
    assert (prior.covariates, prior.context_dim) == (D, K + D)
    assert prior.class_log_prob(torch.randn(B, 2), torch.randn(B, D)).shape == (B, K)


# -- errors ----------------------------------------------------------------------------------------
BAD = {
    "missing": (
        None,
        r"covariates are missing.* built with covariates=2; give covariates=c .*\(\*batch, 2\)",
    ),
    "length": (torch.zeros(B, 3, dtype=F64), r"covariates has shape \(5, 3\), expected \(\*batch, 2\)"),
    "no vector": (torch.zeros(B, dtype=F64), r"covariates has shape \(5,\), expected \(\*batch, 2\)"),
    "rows": (torch.zeros(4, D, dtype=F64), r"covariates.* \(4,"),
    "nan": (torch.full((B, D), math.nan, dtype=F64), "covariates holds 10 NaN"),
    "integers": (torch.zeros(B, D, dtype=torch.long), r"covariates has dtype torch.int64.*covariates.to\("),
    "a list": ([[0.0, 1.0]] * B, "covariates is of type list, expected a tensor"),
}
USES = {
    "condition": lambda flow, x, c: flow.condition(torch.zeros(B, dtype=torch.long), covariates=c).log_prob(
        x
    ),
    "class_log_prob": lambda flow, x, c: flow.class_log_prob(x, covariates=c),
    "posterior": lambda flow, x, c: flow.posterior(x, covariates=c),
    "sample": lambda flow, x, c: flow.sample(torch.zeros(B, dtype=torch.long), covariates=c),
    "initialize": lambda flow, x, c: flow.initialize(x, None, c),
    "LabelMarginal": lambda flow, x, c: scnf.LabelMarginal(flow, covariates=c).log_prob(x),
    "prior.class_log_prob": lambda flow, x, c: flow.prior.class_log_prob(x[:, :2], c),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", BAD)
def test_bad_covariates_are_told(flow, data, use, fault):
    c, match = BAD[fault]
    with pytest.raises(ValueError, match=match):
        USES[use](flow, data[0], c)


@pytest.mark.parametrize("use", USES)
def test_covariates_that_nothing_would_use(data, use):
    flow = make("gmm")
    with pytest.raises(ValueError, match=r"GaussianMixturePrior: got covariates, and the prior takes none"):
        USES[use](flow, *data)


def test_double_precision_is_not_cut_off(data):
    flow = make(dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"covariates has dtype torch.float64.*covariates.to\(torch.float32\)"
    ):
        flow.class_log_prob(data[0].float(), covariates=data[1])
    exact = flow.class_log_prob(data[0].float(), covariates=data[1].half().float())
    assert torch.equal(flow.class_log_prob(data[0].float(), covariates=data[1].half()), exact)


def test_other_faults(flow, data):
    x, c = data
    with pytest.raises(ValueError, match=r"y \(4,\) and covariates \(5,\) do not broadcast"):
        flow.condition(torch.arange(4) % K, covariates=c)
    with pytest.raises(ValueError, match="covariates are those of one batch x, and there are 2"):
        flow.scores(x, x, covariates=c)
    with pytest.raises(
        ValueError, match=r"covariates has shape \(2,\), expected \(5, 2\), a row for each datum"
    ):
        flow.initialize(x, None, c[0])
    with pytest.raises(ValueError, match=r"class_probs \(4,\) and covariates \(5,\) do not broadcast"):
        scnf.LabelMarginal(flow, torch.ones(4, K), covariates=c)
    with pytest.raises(ValueError, match=r"class_probs and covariates \(5,\), which do not broadcast"):
        scnf.LabelMarginal(flow, covariates=c).log_prob(x[:4])
    with pytest.raises(
        ValueError, match=r"covariates are missing.*A SemiSupervisedModel has none to pass on"
    ):
        scnf.elbo(scnf.SemiSupervisedModel(flow))(x)
    with pytest.raises(TypeError, match="covariates"):
        GaussianMixturePrior((2,), 3, covariates=2)


# -- the example -----------------------------------------------------------------------------------
class TestExample:
    def test_its_model_sums_out_what_is_missing(self, load_example):
        """With each known or unknown: the label, the scanner, and the age, of which there are draws."""
        defined = load_example("covariates")
        flow = make(f"flow:covariates={K},steps=1,width=6,blocks=1", dtype=torch.float32)
        x, y = torch.randn(4, 4), torch.tensor([1, -1, -1, 2])
        age, scanner = torch.tensor([0.5, -0.5, math.nan, math.nan]), torch.tensor([0, -1, 1, -1])
        ages = torch.randn(3, 2)
        found = scnf.enumerate_labels(defined["model"], (flow, x, y, age, scanner), {"age": ages})
        for s in range(3):
            filled = torch.cat([age[:2], ages[s]])
            given = [defined["covariates"](filled, torch.tensor(g)) for g in (0, 1)]
            both = torch.stack([flow.class_log_prob(x, covariates=c) for c in given]).double()
            mean = both.logsumexp(0) - math.log(2)
            by_scanner = [both[0, 0], mean[1], both[1, 2], mean[3]]
            normal = torch.where(age.isnan(), 0, -age.square() / 2 - math.log(2 * math.pi) / 2)
            for n, (row, label) in enumerate(zip(by_scanner, y.tolist(), strict=True)):
                expected = row + normal[n] - (math.log(K) if label < 0 else 0)
                keep = slice(None) if label < 0 else [label]
                assert relative(found[s, n, keep], expected[keep]) < 1e-5
                assert label < 0 or found[s, n].argmax() == label

    def test_it_runs(self, smoke):
        metrics, _ = smoke("covariates")
        lengths = {len(values) for values in metrics["estimates"]["age"].values()}
        assert len(lengths) == 1
        assert {"error_pct", "error_pct_without_covariates", "p_true_scanner"} <= set(metrics)
