"""Mixtures and class probabilities that expectation-maximisation trains, against brute force."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from helpers import counting, image_flow, perturb, relative, toy_flow
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from sklearn.mixture import GaussianMixture

import pyro_scnf as scnf
from pyro_scnf.models import expected_labels, update_after_step
from pyro_scnf.priors import GaussianMixturePrior, StudentTMixturePrior, initial_means, make_prior
from pyro_scnf.priors.moments import Moments

F64 = torch.float64
EM = "fit_means=em,fit_scales=em"


def model_of(prior, num_classes=3, **options):
    return scnf.SemiSupervisedModel(toy_flow(prior, num_classes, F64), **options)


def blobs(rows=300, classes=3, seed=0, scale=1.0):
    """Rows around three points, and their labels, of which one in four is known."""
    generator = torch.Generator().manual_seed(seed)
    centers = 4 * torch.tensor([[0.0, 1.0], [1.0, -0.5], [-1.0, -0.5]], dtype=F64)[:classes]
    y = torch.randint(classes, (rows,), generator=generator)
    x = centers[y] + scale * torch.randn(rows, 2, generator=generator, dtype=F64)
    return x, torch.where(torch.rand(rows, generator=generator) < 0.25, y, -1), y


# -- sufficient statistics -------------------------------------------------------------------------
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_statistics_in_pieces_are_those_of_all_rows(full, offset):
    """Also far from 0, where a plain sum of squares in float32 would lose every digit of the scatter."""
    z, q = offset + torch.randn(60, 3, dtype=F64), torch.rand(60, 4, dtype=F64)
    moments = Moments(4, 3, full)
    for rows, weights in zip(z.split(7), q.split(7), strict=True):
        moments.add(rows, weights)
    mean = (q.T @ z) / q.sum(0)[:, None]
    away = z[:, None] - mean
    scatter = torch.einsum("bp,bpi,bpj->pij", q, away, away)
    assert relative(moments.count, q.sum(0)) < 1e-6
    assert (moments.mean - mean).abs().max() <= 1e-6 * max(1.0, offset)
    found = moments.scatter if full else torch.diag_embed(moments.scatter)
    expected = scatter if full else torch.diag_embed(scatter.diagonal(dim1=-2, dim2=-1))
    # Where the means are far from 0, their own rounding in float32 bounds what can be known.
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max() * (1 + offset**2 * 1e-9)


def test_scatter_about_other_points_and_forgetting():
    z, q = torch.randn(50, 2, dtype=F64), torch.rand(50, 3, dtype=F64)
    moments = Moments(3, 2, False).double()
    moments.add(z, q)
    loc = torch.randn(3, 2, dtype=F64)
    about = torch.einsum("bp,bpd->pd", q, (z[:, None] - loc).square())
    assert relative(moments.about(loc), about) < 1e-12
    moments.forget(0.25)
    assert relative(moments.about(loc), 0.25 * about) < 1e-12
    more, weights = torch.randn(20, 2, dtype=F64), torch.rand(20, 3, dtype=F64)
    moments.add(more, weights)
    together = 0.25 * about + torch.einsum("bp,bpd->pd", weights, (more[:, None] - loc).square())
    assert relative(moments.about(loc), together) < 1e-12
    moments.forget(0.0)
    assert not moments.count.any()


# -- exact EM, against other implementations -------------------------------------------------------
@pytest.mark.parametrize(
    ("covariance", "theirs"),
    [
        ("diagonal", "diag"),
        ("full", "full"),
        ("isotropic", "spherical"),
        ("full,pooled=1", "tied"),
        ("full,pooled=0.3", "both"),
    ],
)
def test_one_iteration_is_that_of_scikit_learn(covariance, theirs):
    if theirs == "both":
        own, shared = one_iteration_of("full", "full"), one_iteration_of("full,pooled=1", "tied")
        assert relative(one_iteration_of(covariance), 0.7 * own + 0.3 * shared) < 1e-9
    else:
        one_iteration_of(covariance, theirs)


def one_iteration_of(covariance, theirs=None):
    """The covariances after an iteration, compared with those of scikit-learn if it has the kind."""
    torch.manual_seed(0)
    model = model_of(f"gmm:covariance={covariance},{EM}", class_probs="em")
    x, _, _ = blobs()
    with torch.no_grad():
        z = model.flow.encode(x)[1]
        model.flow.prior.loc.copy_(z[:3])
    scale = model.flow.prior.log_scale.exp()
    if model.flow.prior.full:
        tril = torch.diag_embed(scale) + model.flow.prior.off_diagonal.tril(-1)
        precisions = torch.linalg.inv(tril @ tril.mT)
        precisions = precisions[0] if theirs == "tied" else precisions
    else:
        precisions = scale.pow(-2)
    if theirs is None:
        scnf.models.fit_by_em(model, x, iterations=1)
        return covariances_of(model.flow.prior)
    reference = GaussianMixture(
        3,
        covariance_type=theirs,
        max_iter=1,
        reg_covar=0.0,
        means_init=model.flow.prior.loc.numpy(),
        weights_init=model.class_probs.log_probs.exp().numpy(),
        precisions_init=precisions.numpy(),
    )
    with pytest.warns(UserWarning, match="did not converge"):
        reference.fit(z.numpy())
    scnf.models.fit_by_em(model, x, iterations=1)
    prior = model.flow.prior
    assert relative(prior.loc, torch.from_numpy(reference.means_)) < 1e-9
    assert relative(model.class_probs.log_probs.exp(), torch.from_numpy(reference.weights_)) < 1e-9
    expected = torch.from_numpy(reference.covariances_)
    assert relative(covariances_of(prior), expected.expand_as(covariances_of(prior))) < 1e-9
    return covariances_of(prior)


def covariances_of(prior):
    """The covariances of the components; variances unless they are full."""
    scale = prior.log_scale.exp()
    if not prior.full:
        return scale.square()
    tril = torch.diag_embed(scale) + prior.off_diagonal.tril(-1)
    return tril @ tril.mT


def test_one_iteration_with_multivariate_student_t_is_that_of_peel_and_mclachlan():
    """Row by row, with the weights (df + D) / (df + d²) of Mahalanobis distances d."""
    model = model_of(f"student-t:covariance=full,df=4.0,{EM}")
    prior, (x, y, _) = model.flow.prior, blobs(60)
    with torch.no_grad():
        z = model.flow.encode(x)[1]
        prior.loc.copy_(z[:3])
        prior.off_diagonal.copy_(0.3 * torch.ones(3, 2, 2))
    tril = torch.diag_embed(prior.log_scale.exp()) + prior.off_diagonal.tril(-1)
    loc, scale = prior.loc.clone(), tril @ tril.mT
    means, scatters = torch.zeros(3, 2, dtype=F64), torch.zeros(3, 2, 2, dtype=F64)
    counts, weights, rows = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64), []
    for row, label in zip(z, y, strict=True):
        squared = [(row - m) @ torch.linalg.solve(s, row - m) for m, s in zip(loc, scale, strict=True)]
        tails = [3 * (1 + d / 4).log() for d in squared]
        log_probs = [-0.5 * torch.logdet(s) - tail for s, tail in zip(scale, tails, strict=True)]
        q = torch.stack(log_probs).softmax(0) if label < 0 else torch.eye(3, dtype=F64)[label]
        u = torch.stack([6 / (4 + d) for d in squared])
        counts, weights = counts + q, weights + q * u
        means = means + (q * u)[:, None] * row
        rows.append((row, q * u))
    means = means / weights[:, None]
    for row, w in rows:
        away = row - means
        scatters = scatters + w[:, None, None] * away[:, :, None] * away[:, None, :]
    scnf.models.fit_by_em(model, x, y, iterations=1)
    assert relative(prior.loc, means) < 1e-9
    tril = torch.diag_embed(prior.log_scale.exp()) + prior.off_diagonal.tril(-1)
    assert relative(tril @ tril.mT, scatters / counts[:, None, None]) < 1e-9


SPECS = st.sampled_from(
    [
        f"gmm:{EM}",
        f"gmm:covariance=shared,{EM}",
        f"gmm:covariance=isotropic,{EM}",
        f"gmm:covariance=full,{EM}",
        f"gmm:covariance=full,pooled=1,{EM}",
        "gmm:fit_means=em,fit_scales=fixed",
        "gmm:fit_means=fixed,fit_scales=em",
        "gmm:covariance=full,fit_means=gradient,fit_scales=em",
        f"gmm:components=2,fit_weights=em,{EM}",
        f"gmm:components=2,fit_weights=fixed,covariance=shared,{EM}",
        f"gmm:components=3,fit_weights=em,covariance=full,{EM}",
        f"student-t:df=3.0,{EM}",
        f"student-t:covariance=full,df=3.0,{EM}",
        f"student-t:covariance=full,pooled=1,df=3.0,{EM}",
        f"student-t:components=2,covariance=full,fit_weights=em,{EM}",
        "student-t:components=2,fit_weights=em,fit_means=em,fit_scales=fixed",
    ]
)


@given(
    spec=SPECS,
    class_probs=st.sampled_from(["uniform", "em"]),
    seed=st.integers(0, 99),
    weight=st.sampled_from([1.0, 3.0]),
    balanced=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_em_never_decreases_the_likelihood(spec, class_probs, seed, weight, balanced):
    """The likelihood that it returns is the loss of the model, and no iteration decreases it."""
    torch.manual_seed(seed)
    model = model_of(spec, class_probs=class_probs, labelled_weight=weight, balanced_labels=balanced)
    x, y, _ = blobs(60, seed=seed)
    known = y >= 0

    def likelihood():
        with torch.no_grad():
            return -scnf.elbo(model)(x[known], y[known], x[~known]).item() / len(x)

    before = likelihood()
    found = scnf.models.fit_by_em(model, x, y, iterations=15, tolerance=0.0, batch_size=17)
    assert found[0] == pytest.approx(before, rel=1e-9)
    assert found[-1] == pytest.approx(likelihood(), rel=1e-9)
    gains = torch.tensor(found).diff()
    assert gains.min() > -1e-9
    assert found[-1] > found[0]


def test_em_with_pooled_covariances_goes_on_where_the_likelihood_falls():
    """It ends where nothing changes any more, not at the first step of less likelihood."""
    torch.manual_seed(1)
    model = model_of(f"gmm:covariance=full,components=2,fit_weights=em,pooled=0.5,{EM}")
    x, y, _ = blobs(60, seed=1)
    found = scnf.models.fit_by_em(model, x, y, iterations=400, tolerance=1e-10)
    gains = torch.tensor(found, dtype=F64).diff()
    assert gains.min() < -1e-5
    assert abs(gains[-1]) < 1e-10
    assert len(gains) < 400


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
@pytest.mark.parametrize("covariance", ["diagonal", "shared", "isotropic", "full"])
def test_em_and_gradient_reach_the_same_likelihood(covariance):
    """From the same start, with the same flow, both end within 1e-3 nats per row."""
    x, y, _ = blobs()
    ends = {}
    for fit in ("em", "gradient"):
        torch.manual_seed(0)
        class_probs = "em" if fit == "em" else "learnable"
        model = model_of(
            f"gmm:covariance={covariance},fit_means={fit},fit_scales={fit}", class_probs=class_probs
        )
        with torch.no_grad():
            z = model.flow.encode(x)[1]
            for k in range(3):
                model.flow.prior.loc[k].copy_(z[y == k].mean(0))
        if fit == "em":
            ends[fit] = scnf.models.fit_by_em(model, x, y, iterations=300, tolerance=1e-9)[-1]
            continue
        model.flow.transform.requires_grad_(False)
        loss = scnf.elbo(model)
        free = [p for p in model.parameters() if p.requires_grad]
        lbfgs = torch.optim.LBFGS(free, max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def closure(loss=loss, lbfgs=lbfgs):
            lbfgs.zero_grad()
            value = loss(x[y >= 0], y[y >= 0], x[y < 0]) / len(x)
            value.backward()
            return value

        lbfgs.step(closure)
        ends[fit] = -closure().item()
    assert ends["em"] == pytest.approx(ends["gradient"], abs=1e-3)


def test_a_component_of_equal_rows_keeps_a_positive_scale():
    model = model_of(f"gmm:{EM}")
    x, y = torch.ones(20, 2, dtype=F64), torch.arange(20) % 2
    scnf.models.fit_by_em(model, x, y, iterations=3)
    scales = model.flow.prior.log_scale.exp()
    assert torch.allclose(scales[:2], torch.full_like(scales[:2], 1e-4))
    assert torch.isfinite(scales).all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_component_without_rows_stays(covariance):
    model = model_of(f"gmm:covariance={covariance},{EM}")
    x, y = torch.randn(30, 2, dtype=F64), torch.arange(30) % 2
    before = model.flow.prior.loc[2].clone(), model.flow.prior.log_scale[2].clone()
    scnf.models.fit_by_em(model, x, y, iterations=3)
    assert torch.equal(model.flow.prior.loc[2], before[0])
    assert torch.equal(model.flow.prior.log_scale[2], before[1])


def test_exact_em_changes_nothing_but_its_tables():
    model = model_of("gmm:fit_means=em", class_probs="uniform")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scnf.models.fit_by_em(model, *blobs()[:2], iterations=2)
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed <= {"flow.prior.loc", "flow.prior.moments.mean"}
    assert "flow.prior.loc" in changed
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_exact_em_refuses_what_it_cannot_do():
    x = torch.randn(5, 2, dtype=F64)
    with pytest.raises(ValueError, match=r"model: EM trains nothing of it; give the prior fit_means='em'"):
        scnf.models.fit_by_em(model_of("gmm"), x)
    model = model_of("gmm:fit_means=em")
    with pytest.raises(ValueError, match=r"fit_by_em: x has shape \(0, 2\)"):
        scnf.models.fit_by_em(model, x[:0])
    with pytest.raises(ValueError, match="iterations=0"):
        scnf.models.fit_by_em(model, x, iterations=0)
    with pytest.raises(ValueError, match=r"y has shape \(4,\)"):
        scnf.models.fit_by_em(model, x, torch.zeros(4, dtype=torch.long))


def test_exact_em_refuses_a_label_whose_class_has_probability_zero():
    x, y = torch.randn(5, 2, dtype=F64), torch.tensor([0, -1, 2, 1, -1])
    probs = torch.tensor([0.5, 0.5, 0.0])
    with pytest.raises(
        ValueError, match=r"^y: row 2 has the label 2, whose class probability in the model is"
    ):
        scnf.models.fit_by_em(model_of("gmm:fit_means=em", class_probs=probs), x, y)
    hidden = torch.where(y == 2, -1, y)
    balanced = model_of("gmm:fit_means=em", class_probs=probs, balanced_labels=True)
    for model, labels in ((model_of("gmm:fit_means=em", class_probs=probs), hidden), (balanced, y)):
        found = scnf.models.fit_by_em(model, x, labels, iterations=3)
        assert all(map(math.isfinite, found))


# -- the E-step of a batch -------------------------------------------------------------------------
def brute_force(model, x, y, evidence=None):
    with torch.no_grad():
        joint = model.flow.class_log_prob(x) + (model.class_probs.log_probs if evidence is None else evidence)
        hard = torch.nn.functional.one_hot(y.clamp(min=0), model.flow.num_classes).double()
        return torch.where((y >= 0)[:, None], hard, joint.softmax(-1))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("evidence", [False, True])
def test_the_e_step_of_both_forms_of_a_batch(balanced, evidence):
    model = model_of("gmm:fit_means=em", class_probs=torch.tensor([1.0, 2.0, 3.0]), balanced_labels=balanced)
    x, y, _ = blobs(20)
    known = y >= 0
    given = torch.randn(20, 3, dtype=F64).log_softmax(-1) if evidence else None
    q = brute_force(model, x, y, given)
    one = expected_labels(model, x, y, label_log_prior=given)
    order = torch.cat([known.nonzero()[:, 0], (~known).nonzero()[:, 0]])
    assert relative(one.weights, q[order]) < 1e-9
    assert relative(one.z_f, model.flow.encode(x)[1][order].detach()) < 1e-9
    two = expected_labels(
        model, x[known], y[known], x[~known], label_log_prior=None if given is None else given[~known]
    )
    assert relative(two.weights, one.weights) < 1e-9
    telling = torch.ones_like(known)  # rows whose likelihood has p(y) in it
    if evidence:
        telling = known  # evidence is given for the others alone
    if balanced:
        telling = telling & ~known
    assert relative(two.class_weights.sum(0), q[telling].sum(0)) < 1e-9
    assert len(two.class_weights) == telling.sum()
    assert len(one.class_weights) == (0 if evidence else telling.sum())  # evidence is given for all rows
    assert not two.weights.requires_grad
    assert not two.z_f.requires_grad


@pytest.mark.parametrize("form", ["one plate", "two plates"])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("evidence", [False, True])
def test_class_probabilities_by_em_and_by_gradient_learn_from_the_same_rows(form, balanced, evidence):
    """The gradient of the likelihood in the logits is the counts of the E-step less their expectation."""
    x, y, _ = blobs(20)
    known = y >= 0
    given = torch.randn(20, 3, dtype=F64).log_softmax(-1) if evidence else None
    args = (x, y) if form == "one plate" else (x[known], y[known], x[~known])
    if evidence and form == "two plates":
        given = given[~known]
    model = model_of("gmm:fit_means=em", class_probs="learnable", balanced_labels=balanced)
    loss = scnf.elbo(model)
    value = loss(*args, label_log_prior=given)
    (gradient,) = torch.autograd.grad(value, model.class_probs.logits, allow_unused=True)
    gradient = torch.zeros(3, dtype=F64) if gradient is None else gradient
    counts = loss.expected.class_weights.sum(0)
    expected = counts - counts.sum() * model.class_probs.log_probs.exp().detach()
    assert torch.allclose(-gradient, expected, atol=1e-9)


def test_the_e_step_weighs_rows_as_the_loss_does():
    model = model_of(
        "gmm:fit_means=em", num_labelled=10, num_unlabelled=100, labelled_weight=0.5, class_probs="em"
    )
    x, _, y = blobs(9)
    weights = torch.rand(5, dtype=F64)
    found = expected_labels(model, x[:4], y[:4], x[4:], weights=weights)
    q = brute_force(model, x, torch.where(torch.arange(9) < 4, y, -1))
    scale = torch.cat([torch.full((4,), 0.5 * 10 / 4, dtype=F64), 100 / 5 * weights])
    assert relative(found.weights, scale[:, None] * q) < 1e-9


def test_the_loss_holds_the_e_step_at_no_pass_of_the_flow():
    flow = image_flow("gmm:fit_means=em")
    model = scnf.SemiSupervisedModel(flow)
    loss, x, y = scnf.elbo(model), torch.randn(6, 1, 4, 4), torch.tensor([0, 1, 2])
    with (
        counting(flow.transform, "inverse_and_ladj") as passes,
        counting(flow.prior, "class_scores") as tables,
    ):
        loss(x[:3], y, x[3:])
    assert passes.calls == 1
    assert tables.calls <= 2
    assert loss.expected.weights.shape == (6, 3)
    plain = scnf.elbo(scnf.SemiSupervisedModel(image_flow("gmm")))
    plain(x[:3], y, x[3:])
    assert plain.expected is None


def test_a_step_updates_the_tables():
    """The M-step after a step is that of the rows of the batch, if the statistics forget at once."""
    model = model_of(f"gmm:em_decay=0.0,{EM}", class_probs="em")
    x, y, _ = blobs(50)
    loss = scnf.elbo(model)
    loss(x[y >= 0], y[y >= 0], x[y < 0])
    q, z = loss.expected.weights, loss.expected.z_f
    with pytest.raises(ValueError, match="expected: EM trains a part of the model"):
        update_after_step(model, scnf.exact_guide)
    before = model.flow.prior.loc.clone()
    update_after_step(model, scnf.exact_guide, loss.expected)
    mean = (q.T @ z) / q.sum(0)[:, None]
    assert relative(model.flow.prior.loc, mean) < 1e-9
    assert not torch.equal(before, model.flow.prior.loc)
    away = (z[:, None] - mean).square()
    assert (
        relative(
            model.flow.prior.log_scale.exp().square(), torch.einsum("bk,bkd->kd", q, away) / q.sum(0)[:, None]
        )
        < 1e-9
    )
    model.class_probs.restart()


def test_a_step_of_several_batches_updates_by_all_of_them():
    """Each batch is scored before the tables change, and the M-step is that of all rows together."""
    x, y, _ = blobs(50)
    models = [model_of(f"gmm:{EM}", class_probs="em") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    update_after_step(models[0], scnf.exact_guide, expected_labels(models[0], x, y))
    parts = [expected_labels(models[1], x[rows], y[rows]) for rows in (slice(0, 20), slice(20, 50))]
    update_after_step(models[1], scnf.exact_guide, parts)
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert relative(other.double(), one.double()) < 1e-9
    with pytest.raises(ValueError, match=r"for another loss, give pyro_scnf\.models\.expected_labels"):
        update_after_step(models[1], scnf.exact_guide, [])


def test_a_guide_without_lag_has_the_tables_after_the_m_step():
    model = model_of(f"gmm:{EM}", class_probs="em")
    guide = scnf.EMGuide(model, decay=0.0)
    x, y, _ = blobs(50)
    before = model.flow.prior.loc.clone()
    update_after_step(model, guide, expected_labels(model, x, y))
    old = guide.old.module.state_dict()
    assert all(torch.equal(old[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(model.flow.prior.loc, before)


def test_em_refuses_tables_that_are_random():
    """It would take one draw of the table for the model, without a warning."""
    model = model_of("gmm:fit_scales=em")
    pyro.nn.module.to_pyro_module_(model)
    normal = pyro.distributions.Normal(torch.zeros(3, 2, dtype=F64), 1.0).to_event(2)
    model.flow.prior.loc = pyro.nn.PyroSample(normal)
    x = blobs(10)[0]
    for run in (scnf.models.fit_by_em, expected_labels):
        with pytest.raises(ValueError, match="model: EM trains a part of it, and the prior"):
            run(model, x)


def test_exact_em_leaves_each_part_in_its_mode():
    model = model_of("gmm:fit_means=em")
    model.train()
    model.flow.transform.eval()
    scnf.models.fit_by_em(model, blobs(10)[0], iterations=1)
    assert model.training
    assert not model.flow.transform.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_exact_in_half_precision(dtype):
    """Float16 ends at 65,504 rows, and bfloat16 adds no small batch to a large count."""
    model = scnf.SemiSupervisedModel(toy_flow(f"gmm:components=2,fit_weights=em,{EM}", 3), "em").to(dtype)
    prior, probs = model.flow.prior, model.class_probs
    assert prior.loc.dtype == probs.logits.dtype == dtype
    assert {value.dtype for value in prior.moments.buffers()} == {probs.counts.dtype} == {torch.float32}
    z, q = torch.randn(40, *prior.event_shape, dtype=dtype), torch.rand(40, 3).softmax(-1)
    for part in (prior, probs):
        part.begun.fill_(True)  # the tables as they are do not count
    for _ in range(3):
        prior.accumulate(z, 5e4 * q)
        probs.accumulate(5e4 * q)
        prior.update()
        probs.update()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert torch.allclose(probs.log_probs.exp().float(), q.mean(0), atol=1e-2)
    assert model.double().flow.prior.moments.count.dtype == F64


def test_components_share_the_weight_of_their_class():
    """EM of a mixture in each class equals EM of one mixture of all components, if no label is known."""
    torch.manual_seed(0)
    nested = model_of(f"gmm:components=2,fit_weights=em,{EM}", class_probs="em")
    flat = model_of(f"gmm:{EM}", num_classes=6, class_probs="em")
    flat.flow.transform.load_state_dict(nested.flow.transform.state_dict())
    flat.flow.prior.loc.copy_(nested.flow.prior.loc.reshape(6, 2))
    flat.flow.prior.log_scale.copy_(nested.flow.prior.log_scale.reshape(6, 2))
    joint = nested.class_probs.log_probs[:, None] + nested.flow.prior.log_weights.log_softmax(-1)
    flat.class_probs.logits.copy_(joint.flatten())
    x = blobs()[0]
    ours, theirs = (scnf.models.fit_by_em(m, x, iterations=5, tolerance=0.0) for m in (nested, flat))
    assert relative(torch.tensor(ours), torch.tensor(theirs)) < 1e-9
    assert relative(nested.flow.prior.loc.reshape(6, 2), flat.flow.prior.loc) < 1e-6


# -- class probabilities ---------------------------------------------------------------------------
def test_class_probabilities_by_em_are_the_frequencies_of_the_counts():
    probs = scnf.ClassProbs(3, "em", em_decay=0.5)
    probs.update()
    assert torch.allclose(probs.log_probs.exp(), torch.full((3,), 1 / 3))  # no counts, no change
    probs.accumulate(torch.tensor([[1.0, 0.0, 3.0]]))
    probs.update()  # the probabilities before count as one more batch of four rows
    found = probs.log_probs.exp()
    assert torch.allclose(found, torch.tensor([1 + 4 / 3, 4 / 3, 3 + 4 / 3]) / 8, atol=1e-5)
    probs.accumulate(torch.tensor([[0.0, 2.0, 0.0]]))
    probs.update()  # half of the earlier counts are forgotten
    expected = torch.tensor([7 / 6, 2 / 3 + 2, 13 / 6]) / 6
    assert torch.allclose(probs.log_probs.exp(), expected, atol=1e-5)
    alone = scnf.ClassProbs(3, "em", em_decay=0.0)
    alone.accumulate(torch.tensor([[1.0, 0.0, 3.0]]))
    alone.update()
    assert torch.allclose(alone.log_probs.exp(), torch.tensor([0.25, 0.0, 0.75]), atol=1e-5)
    assert torch.isfinite(alone.log_probs).all()


@pytest.mark.parametrize(
    "spec",
    [
        f"gmm:{EM}",
        f"gmm:covariance=shared,{EM}",
        f"gmm:covariance=isotropic,{EM}",
        f"gmm:covariance=full,components=2,fit_weights=em,{EM}",
        f"student-t:{EM}",
        f"student-t:covariance=full,{EM}",
    ],
)
def test_the_first_steps_of_stepwise_em_move_little(spec):
    """The tables count as the batches that the statistics would hold. Their own statistics change nothing."""
    prior = perturb(make_prior(f"{spec},em_decay=0.75", (2,), 3)).double()
    tables, before = ("loc", "log_scale", "log_weights", "off_diagonal"), prior.loc.clone()
    z, q = 5 + torch.randn(4, 2, dtype=F64), torch.eye(3, dtype=F64)[torch.arange(4) % 3]
    prior.accumulate(z, q)
    own = prior.moments.count.sum().clone()
    moments, rows = prior.moments, prior.moments.mean.shape
    prior.update()
    assert moments.count.sum().item() == pytest.approx(0.75 * (own + 3 * own).item())
    moved = (prior.loc - before).reshape(rows).norm(dim=-1)
    assert (moved > 0).any()
    assert (moved < 0.6 * (z.mean(0) - before.reshape(rows)).norm(dim=-1)).all()
    again = perturb(make_prior(spec, (2,), 3)).double()
    again.moments.add_components(again.loc.reshape(rows), again._covariances(), again._shares())
    kept = {name: value.clone() for name, value in again.named_buffers() if name in tables}
    again.maximise()
    for name, value in kept.items():
        found = dict(again.named_buffers())[name]
        if name == "log_weights":
            value, found = value.log_softmax(-1), found.log_softmax(-1)
        if name == "off_diagonal":
            value, found = value.tril(-1), found.tril(-1)
        assert relative(found, value) < 1e-9, name


def test_labels_chosen_by_class_tell_nothing_of_the_class_probabilities():
    x, _, y = blobs(12)
    y = y % 2
    model = model_of("gmm", num_classes=2, class_probs="learnable", balanced_labels=True)
    with torch.no_grad():
        model.class_probs.logits.copy_(torch.tensor([1.0, -1.0]))
    given = model.flow.class_log_prob(x)
    own = given.gather(-1, y[:, None])[:, 0]
    loss = scnf.elbo(model)(x, y)
    assert loss.item() == pytest.approx((-own + math.log(2)).sum().item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, model.class_probs.logits, allow_unused=True)
    assert gradient is None or not gradient.any()
    both = scnf.elbo(model)(x[:4], y[:4], x[4:])
    expected = (-own[:4] + math.log(2)).sum() - (given[4:] + model.class_probs.log_probs).logsumexp(-1).sum()
    assert both.item() == pytest.approx(expected.item(), rel=1e-9)
    mixed = torch.where(torch.arange(12) < 4, y, -1)
    assert scnf.elbo(model)(x, mixed).item() == pytest.approx(expected.item(), rel=1e-9)
    # The classification term sees the labelled rows under the frequencies that they were chosen with.
    terms = scnf.elbo(model, terms="classification")
    terms(x[:4], y[:4], x[4:])
    cross_entropy = -given[:4].log_softmax(-1).gather(-1, y[:4, None]).sum()
    assert terms.parts["classification"].item() == pytest.approx(cross_entropy.item(), rel=1e-9)


def test_labels_chosen_by_class_are_uniform_in_the_trace():
    model = model_of("gmm", class_probs=torch.tensor([1.0, 2.0, 3.0]), balanced_labels=True)
    x, _, y = blobs(6)
    trace = poutine.trace(model).get_trace(x, y)
    assert torch.allclose(trace.nodes["y"]["fn"].probs, torch.tensor(1 / 3, dtype=F64))
    drawn = poutine.trace(model).get_trace(n=4).nodes["y"]["fn"].probs  # nothing was chosen
    assert torch.allclose(drawn, torch.tensor([1.0, 2.0, 3.0], dtype=F64) / 6)


# -- initial means ---------------------------------------------------------------------------------
def test_patterns_of_means():
    circle = make_prior("gmm:means=circle,separation=3.5", (2,), 4).loc
    assert torch.allclose(circle, 3.5 * torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6)
    blocks = make_prior("gmm:means=blocks,separation=2.0", (7,), 3).loc
    assert torch.equal(blocks.bool().sum(0), torch.ones(7, dtype=torch.long))
    assert sorted(blocks.bool().sum(1).tolist()) == [2, 2, 3]
    assert set(blocks.unique().tolist()) == {0.0, 2.0}
    points = torch.randn(3, 2, 1, 1)
    given = GaussianMixturePrior((2, 1, 1), 3, means=points, separation=2.0)
    assert torch.equal(given.loc, 2 * points)
    assert given.loc.data_ptr() != points.data_ptr()


@pytest.mark.parametrize(("classes", "components"), [(3, 1), (5, 1), (4, 2)])
@pytest.mark.parametrize("fit", ["fixed", "em"])
def test_classes_lie_around_the_circle_as_their_labelled_latents_do(classes, components, fit):
    """Whatever the order of their numbers, the turn that moves them least is taken, also the second time."""
    prior = make_prior(
        f"gmm:means=circle,separation=2.0,components={components},fit_means={fit}", (1, 3, 1), classes
    )
    ring = prior.loc.clone()
    generator = torch.Generator().manual_seed(classes)
    for _ in range(3):
        order = torch.randperm(classes, generator=generator)
        centers = ring.reshape(classes, components, 1, 3, 1).mean(1)[order]
        y = torch.arange(classes).repeat(20)
        z = 5 + centers[y] + 0.1 * torch.randn(len(y), 1, 3, 1, generator=generator)
        z, y = torch.cat([z, 100 * torch.ones(3, 1, 3, 1)]), torch.cat([y, -torch.ones(3, dtype=torch.long)])
        prior.initialize(z, y)
        assert torch.equal(prior.loc, ring[order])


@pytest.mark.parametrize("prior", ["gmm", "gmm:means=circle", "student-t", "flow"])
def test_latents_that_are_not_finite_set_no_means(prior):
    prior = make_prior(prior, (2,), 3)
    z, y = torch.randn(6, 2), torch.arange(6) % 3
    z[4, 1] = math.nan
    with pytest.raises(ValueError, match=r"initialize: z_f holds 1 NaN or infinite values"):
        prior.initialize(z, y)


def test_two_classes_and_classes_without_labels_stay_where_they_are_on_the_circle():
    for classes, labels in ((2, 2), (3, 2)):
        prior = make_prior("gmm:means=circle", (2,), classes)
        before = prior.loc.detach().clone()
        y = torch.arange(20) % labels
        prior.initialize(torch.randn(20, 2) - 5 * before[y], y)
        assert torch.equal(prior.loc, before)


@pytest.mark.parametrize(
    ("means", "shape", "classes", "message"),
    [
        ("circle", (1,), 3, "means='circle' needs 2 numbers or more"),
        ("blocks", (2,), 3, "means='blocks' needs a number for each of 3 components"),
        ("antipodal", (2,), 3, "means='antipodal' needs 2 components, got 3"),
        (torch.zeros(2, 2), (2,), 3, r"means has shape \(2, 2\), expected \(3, 2\)"),
        ([[math.nan, 1.0]], (2,), 1, "means holds NaN or infinity"),
        ("around", (2,), 3, "means='around'"),
    ],
)
def test_means_that_have_no_room(means, shape, classes, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixturePrior(shape, classes, means=means)


def test_means_of_labelled_latents_are_scaled_by_the_separation():
    z, y = torch.randn(30, 2), torch.arange(30) % 3
    prior = make_prior("gmm:means=latents,separation=2.5", (2,), 3)
    prior.initialize(z, y)
    for k in range(3):
        assert torch.allclose(prior.loc[k], 2.5 * z[y == k].mean(0))


def test_a_cluster_starts_where_no_row_is_labelled():
    """The class without labels lies between the others. Farther rows are few, and of no class."""
    torch.manual_seed(0)
    hidden = torch.tensor([1.0, 2.0]) + 0.5 * torch.randn(60, 2)
    others = torch.tensor([[-4.0, 0.0], [6.0, 0.0]]).repeat(60, 1) + 0.5 * torch.randn(120, 2)
    outliers = 30 * torch.nn.functional.normalize(torch.randn(20, 2))
    z = torch.cat([others, hidden, outliers])
    y = torch.full((200,), -1)
    y[:20] = torch.arange(20) % 2
    prior = make_prior("gmm:means=clusters", (2,), 3)
    prior.initialize(z, y)
    assert (prior.loc[2] - hidden.mean(0)).norm() < 0.4
    prior = make_prior("gmm:means=clusters,components=2", (2,), 3)
    prior.initialize(z, y)
    own = torch.cdist(prior.loc[2].detach(), hidden).min(1)
    assert own.values.max() < 1e-5
    assert len(set(own.indices.tolist())) == 2


def test_clusters_start_in_different_groups_if_no_row_is_labelled():
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]])
    z = centers.repeat(30, 1) + torch.randn(120, 2)
    prior = make_prior("gmm:means=clusters,separation=2", (2,), 4)
    prior.initialize(z, torch.full((120,), -1))
    distance = torch.cdist(prior.loc.detach() / 2, centers)
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2, 3]
    assert distance.amin(1).max() < 1


def test_a_large_cluster_does_not_take_two_classes():
    torch.manual_seed(0)
    z = torch.cat([torch.randn(60, 2), torch.randn(120, 2) + 20, torch.randn(40, 2) - 20])
    y = torch.full((220,), -1)
    y[:10] = 0
    prior = make_prior("gmm:means=clusters", (2,), 3)
    prior.initialize(z, y)
    assert (prior.loc[1] - 20).abs().max() < 1
    assert (prior.loc[2] + 20).abs().max() < 1


def test_one_gap_between_labelled_rows_is_no_cluster():
    """The ball in the middle of the gap has 29 rows, more than the class without labels."""
    known, hidden = 0.1 * torch.arange(200.0), 40 + 0.01 * torch.arange(25.0)
    labelled = (torch.arange(200) % 5 == 0) & ((torch.arange(200) - 100).abs() > 13)
    y = torch.full((225,), -1)
    y[:200][labelled] = 0
    prior = make_prior("gmm:means=clusters", (1,), 2)
    prior.initialize(torch.cat([known, hidden])[:, None], y)
    assert prior.loc[1].item() == pytest.approx(40.12, abs=0.1)


def test_of_very_many_unlabelled_rows_some_are_compared():
    """Distances between all of them would not fit in memory. Those compared are of all parts of the data."""
    hidden = torch.arange(200_000) >= 150_000
    z = torch.where(hidden, 5.0, 0.0)[:, None] + torch.rand(200_000, 1)
    y = torch.where(torch.arange(200_000) % 100 == 0, 0, -1).where(~hidden, -1)
    prior = make_prior("gmm:means=clusters", (1,), 2)
    prior.initialize(z, y)
    assert prior.loc[1].item() == pytest.approx(5.5, abs=0.3)


def test_many_labelled_rows_are_compared_in_parts_and_once(monkeypatch):
    """Four classes have no label. Of 1,200 unlabelled rows, which come in turns, 100 are compared."""
    sizes, real = [], initial_means._distances

    def counted(a, b):
        sizes.append(len(a) * len(b))
        return real(a, b)

    monkeypatch.setattr(initial_means, "_distances", counted)
    monkeypatch.setattr(initial_means, "MOST_ROWS", 100)
    torch.manual_seed(0)
    truth = torch.arange(1800) % 6
    z = 9.0 * truth[:, None] + torch.rand(1800, 1)
    y = torch.where(truth < 2, truth, -1)
    prior = make_prior("gmm:means=clusters", (1,), 6)
    prior.initialize(z, y)
    assert sorted(prior.loc[2:, 0].div(9).floor().tolist()) == [2, 3, 4, 5]
    assert max(sizes) <= 100 * 100
    assert sum(sizes) == 100 * (100 + 600)


def test_clusters_start_far_from_the_classes_that_have_labels():
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    truth = torch.arange(200) % 4
    z = centers[truth] + 0.5 * torch.randn(200, 2)
    y = torch.where(truth < 2, truth, -1)
    prior = make_prior("gmm:means=clusters", (2,), 4)
    prior.initialize(z, y)
    distance = torch.cdist(prior.loc.detach(), centers)
    assert distance.argmin(1)[:2].tolist() == [0, 1]
    assert sorted(distance.argmin(1)[2:].tolist()) == [2, 3]
    assert distance.amin(1).max() < 3


def test_components_of_a_class_start_at_rows_of_it_far_from_one_another():
    torch.manual_seed(0)
    z = torch.cat([torch.randn(50, 2) - 8, torch.randn(50, 2) + 8])
    prior = make_prior("gmm:components=2", (2,), 1)
    prior.initialize(z, torch.zeros(100, dtype=torch.long))
    assert sorted(prior.loc[0].mean(-1).sign().tolist()) == [-1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_components_of_a_class_with_few_rows_differ(rows, dtype):
    """Equal components would stay equal in training, by EM as by gradient."""
    prior = make_prior("gmm:components=3", (2,), 1).to(dtype)
    points = (100 + 8 * torch.arange(rows)[:, None]).expand(-1, 2).to(dtype)
    z = points if rows == 1 else points.repeat(40, 1)  # many copies do not count
    prior.initialize(z, torch.zeros(len(z)).long())
    loc = prior.loc[0].detach().float()
    assert torch.pdist(loc).min() > 0
    assert (loc.mean(-1) > 50).sum() == rows  # the others stay where they were


def test_clusters_with_few_unlabelled_rows_differ():
    z, y = torch.randn(3, 2), torch.tensor([0, 1, -1])
    prior = make_prior("gmm:means=clusters", (2,), 4)
    prior.initialize(z, y)
    assert torch.pdist(prior.loc.detach()).min() > 0
    prior.initialize(torch.ones(6, 2), torch.tensor([0, 1, -1, -1, -1, -1]))  # rows equal to labelled ones
    assert (prior.loc[2:] != 1).all()
    with pytest.warns(UserWarning, match=r"means='clusters': the means of class \[2, 3\] stay random"):
        prior.initialize(z[:2], y[:2])


def test_statistics_start_anew_with_the_means():
    prior = make_prior("gmm:fit_means=em", (2,), 2)
    y = torch.arange(20) % 2
    prior.accumulate(torch.randn(20, 2), torch.ones(20, 2))
    prior.update()
    prior.initialize(100 + torch.randn(20, 2), y)
    assert not prior.moments.count.any()
    prior.accumulate(100 + torch.randn(20, 2), torch.ones(20, 2))
    prior.update()
    assert (prior.loc - 100).abs().max() < 5
    prior.accumulate(torch.full((2, 2), 1e30), torch.ones(2, 2))  # whose scatter is infinite
    prior.restart()
    prior.accumulate(torch.ones(2, 2), torch.ones(2, 2))
    prior.maximise()
    assert torch.allclose(prior.loc, torch.ones(2, 2))


@pytest.mark.parametrize("means", ["random", "blocks", "circle"])
def test_statistics_start_anew_though_the_means_stay(means):
    """They are of latents of the flow before it was initialised."""
    prior = make_prior(f"gmm:means={means},fit_scales=em,learn_means=False", (2,), 2)
    z, y = torch.randn(20, 2), torch.arange(20) % 2
    prior.accumulate(z, torch.ones(20, 2))
    prior.update()
    before = prior.loc.clone()
    prior.initialize(z, y)
    assert torch.equal(prior.loc, before)
    assert not prior.moments.count.any()
    assert not prior.begun


def test_a_mixture_of_one_class_is_a_density():
    """K = 1 with several components: labels say nothing, and the density is that of the mixture."""
    model = model_of("gmm:components=3", num_classes=1)
    x = blobs(20)[0]
    loss = scnf.elbo(model)(x)
    prior, (_, z, ladj) = model.flow.prior, model.flow.encode(x)
    normal = torch.distributions.Normal(prior.loc[0], prior.log_scale[0].exp())
    scores = normal.log_prob(z[:, None]).sum(-1) + prior.log_weights[0].log_softmax(-1)
    assert loss.item() == pytest.approx(-(scores.logsumexp(-1) + ladj).sum().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit_weights": "em"}, "fit_weights='em'"),
        ({"em_decay": 0.5}, "em_decay=0.5"),
        ({"fit_means": "em", "em_decay": 1.0}, "em_decay=1.0"),
        ({"learn_means": True, "fit_means": "em"}, "learn_means=True and fit_means='em'"),
        ({"fit_scales": "adam"}, "fit_scales='adam'"),
        ({"components": 0}, "components=0"),
    ],
)
@pytest.mark.parametrize("cls", [GaussianMixturePrior, StudentTMixturePrior])
def test_options_that_nothing_would_use(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls((2,), 3, **options)


def test_svi_steps_with_a_mixture_by_em():
    """The loop of a user of Pyro's own: a step of SVI, then the E-step, then the update."""
    model = scnf.SemiSupervisedModel(perturb(toy_flow(f"gmm:{EM}", 3)), class_probs="em")
    x, y, _ = blobs(40)
    x, before = x.float(), model.flow.prior.loc.clone()
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, scnf.exact_guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    svi.step(x, y)
    update_after_step(model, scnf.exact_guide, expected_labels(model, x, y))
    assert not torch.equal(before, model.flow.prior.loc)


# -- class probabilities with a posterior ----------------------------------------------------------
def test_the_posterior_of_class_probabilities_over_a_frozen_flow():
    """NUTS with a Dirichlet prior and enumerated labels agrees with a quadrature over the one free number."""
    torch.manual_seed(0)
    flow = toy_flow("gmm:separation=1.5", 2, F64).requires_grad_(False).eval()
    x = flow.sample((torch.arange(40) % 4 == 0).long())

    def frequencies(x):
        probs = pyro.sample("probs", pyro.distributions.Dirichlet(torch.ones(2, dtype=F64)))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", pyro.distributions.Categorical(probs), infer={"enumerate": "parallel"})
            pyro.sample("x", flow.condition(y), obs=x)

    pyro.set_rng_seed(0)
    with counting(flow.transform, "inverse_and_ladj") as passes, scnf.share_encoding():
        mcmc = pyro.infer.MCMC(
            pyro.infer.NUTS(frequencies, max_plate_nesting=1, max_tree_depth=3), 100, 40, disable_progbar=True
        )
        mcmc.run(x)
    draws = mcmc.get_samples()["probs"][:, 0]
    assert passes.calls <= 3  # however many gradients there are
    p = torch.linspace(0, 1, 2001, dtype=F64)[1:-1]
    table = flow.class_log_prob(x)
    log_density = (table + torch.stack([p, 1 - p], -1).log()[:, None]).logsumexp(-1).sum(-1)
    density = log_density.softmax(0)
    mean = (density * p).sum()
    std = ((density * p.square()).sum() - mean.square()).sqrt()
    assert abs(draws.mean() - mean) < 0.5 * std
    assert 0.65 * std < draws.std() < 1.45 * std
