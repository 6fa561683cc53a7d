"""``enumerate_labels`` on users' models: unmarked labels, latents in plates, masks, several labels."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import counting, relative, toy_flow
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from pyro.ops.indexing import Vindex

import pyro_scnf as scnf

F64 = torch.float64


@pytest.fixture
def flow():
    return toy_flow("gmm", dtype=F64)


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=F64)


def prevalence(flow, x):
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(shares))
        pyro.sample("x", flow.condition(y), obs=x)


def draw_shares(count):
    return dist.Dirichlet(torch.ones(3, dtype=F64)).sample((count,))


def joint_by_hand(flow, x, shares):
    return flow.class_log_prob(x) + shares.log()[:, None]


def mixture(x):
    """The mixture of many tutorials, in which the label indexes parameters from a plate of components."""
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 3.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
        pyro.sample("x", dist.Normal(loc[y], 1.0), obs=x)


def broadcasting_mixture(x):
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 3.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
        pyro.sample("x", dist.Normal(Vindex(loc.unsqueeze(-2))[..., y], 1.0), obs=x)


def mixture_by_hand(x, loc):
    return dist.Normal(loc[:, None], torch.ones((), dtype=F64)).log_prob(x[:, None]) - torch.tensor(3.0).log()


class TestDraws:
    def test_an_unmarked_label_is_enumerated(self, flow, x):
        shares = draw_shares(4)
        joint = scnf.enumerate_labels(lambda x: prevalence(flow, x), (x,), {"shares": shares})
        assert relative(joint, joint_by_hand(flow, x, shares)) < 1e-10

    @pytest.mark.parametrize("rows", [1, 3, 5])
    @pytest.mark.parametrize("count", [1, 3, 5])
    def test_latents_in_plates(self, rows, count):
        x, loc = torch.randn(rows, dtype=F64), torch.randn(count, 3, dtype=F64)
        hand = mixture_by_hand(x, loc)
        assert relative(scnf.enumerate_labels(broadcasting_mixture, (x,), {"loc": loc}), hand) < 1e-6
        assert relative(scnf.enumerate_labels(mixture, (x,), {"loc": loc}, parallel=False), hand) < 1e-6

    @pytest.mark.parametrize("rows", [3, 5])
    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_a_model_that_does_not_broadcast_is_told_what_to_do(self, rows, count):
        """The hint also comes if the numbers of draws, rows and components agree by chance."""
        x, loc = torch.randn(rows, dtype=F64), torch.randn(count, 3, dtype=F64)
        with pytest.raises((ValueError, RuntimeError, IndexError)) as caught:
            scnf.enumerate_labels(mixture, (x,), {"loc": loc}, parallel=True)
        assert "parallel=False" in caught.value.__notes__[0]

    def test_draws_of_nuts_go_in_as_they_come(self):
        x = torch.cat([torch.randn(8, dtype=F64) - 4, torch.randn(8, dtype=F64) + 4])
        mcmc = MCMC(NUTS(mixture), num_samples=20, warmup_steps=20, disable_progbar=True)
        mcmc.run(x)
        draws = mcmc.get_samples()
        joint = scnf.enumerate_labels(mixture, (x,), draws, parallel=False)
        assert relative(joint, mixture_by_hand(x, draws["loc"])) < 1e-6

    def test_draws_of_an_autoguide_go_in_as_they_come(self, flow, x):
        """An autoguide gives the draws of a global site dimensions for plates around other sites."""

        def model(x):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(shares), infer={"enumerate": "parallel"})
                shift = pyro.sample("shift", dist.Normal(torch.zeros((), dtype=F64), 1.0))
                pyro.sample("x", flow.condition(y), obs=x)
                pyro.sample("t", dist.Normal(shift + y, 1.0), obs=x[:, 0])

        guide = AutoNormal(pyro.poutine.block(model, expose=["shares", "shift"]))
        guide(x)
        draws = Predictive(guide, num_samples=5, parallel=True)(x)
        draws = {name: draws[name] for name in ("shares", "shift")}
        assert draws["shares"].shape == (5, 1, 3)
        assert draws["shift"].shape == (5, 6)
        joint = scnf.enumerate_labels(model, (x,), draws)
        means = draws["shift"][..., None] + torch.arange(3.0, dtype=F64)
        hand = joint_by_hand(flow, x, draws["shares"][:, 0]) + dist.Normal(means, 1.0).log_prob(x[:, :1])
        assert relative(joint, hand) < 1e-10

    def test_draw_by_draw_is_the_same_and_runs_the_flow_once(self, flow, x):
        shares = draw_shares(5)
        with counting(flow.transform, "inverse_and_ladj") as counter:
            joint = scnf.enumerate_labels(
                lambda x: prevalence(flow, x), (x,), {"shares": shares}, parallel=False
            )
        assert counter.calls == 1
        assert relative(joint, joint_by_hand(flow, x, shares)) < 1e-10

    def test_two_plates_run_the_flow_once(self, flow, x):
        model = scnf.SemiSupervisedModel(flow)
        with counting(flow.transform, "inverse_and_ladj") as counter:
            scnf.enumerate_labels(model, (x[:2], torch.tensor([0, 1]), x[2:]), site="y_unlabelled")
        assert counter.calls == 1

    def test_local_latents(self):
        """Draws of a continuous latent of each datum lie along the plate of the data."""
        x, z = torch.randn(5, dtype=F64), torch.randn(4, 5, dtype=F64)

        def model(x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=F64)))
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
                pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

        joint = scnf.enumerate_labels(model, (x,), {"z": z})
        prior = torch.tensor([0.7, 0.3], dtype=F64).log()
        means = z[..., None] + torch.arange(2.0, dtype=F64)
        assert relative(joint, prior + dist.Normal(means, 1.0).log_prob(x[:, None])) < 1e-6

    def test_deterministic_draws_are_recomputed(self, flow, x):
        def model(x):
            scale = pyro.sample("scale", dist.Gamma(torch.tensor(2.0, dtype=F64), 1.0))
            pyro.deterministic("double", 2 * scale)
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
                pyro.deterministic("shifted", y + scale)
                pyro.sample("x", flow.condition(y), obs=x)

        scale = torch.rand(4, dtype=F64)
        joint = scnf.enumerate_labels(model, (x,), {"scale": scale, "double": 2 * scale})
        expected = joint_by_hand(flow, x, torch.full((4, 3), 1 / 3, dtype=F64))
        assert relative(joint, expected) < 1e-6

    def test_errors(self, flow, x):
        def model(x):
            return prevalence(flow, x)

        shares = draw_shares(4)
        for posterior, site, message in (
            ({}, "y", r"no draws of \['shares'\]"),
            ({"shares": shares, "other": shares}, "y", r"no such sites \['other'\]"),
            ({"shares": shares, "y": torch.zeros(4, 6, dtype=torch.long)}, "y", "holds draws of the label"),
            ({"shares": shares[:0]}, "y", "expected draws"),
            ({"shares": torch.tensor(0.5)}, "y", "expected draws"),
            ({"shares": shares[:, 0]}, "y", "draws of 'shares' have shape"),
            ({"shares": shares[:, None, None, None]}, "y", "at most 1 plates"),
            ({"shares": shares}, "z", "no such site"),
        ):
            with pytest.raises(ValueError, match=message):
                scnf.enumerate_labels(model, (x,), posterior, site=site)
        with pytest.raises(ValueError, match=r"no draws of \['x'\]"):  # x is not observed
            scnf.enumerate_labels(lambda: scnf.SemiSupervisedModel(flow)(n=3))


class TestOuterPlates:
    """Draws of a latent in an outer plate, in the forms in which users have them."""

    def model(self, x):
        probs = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
        with pyro.plate("groups", len(x), dim=-2):
            shift = pyro.sample("shift", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            with pyro.plate("members", x.shape[1], dim=-1):
                y = pyro.sample("y", dist.Categorical(probs))
                pyro.sample("x", dist.Normal(shift + 2 * y, 1.0), obs=x)

    def by_hand(self, x, shift):
        probs, means = torch.tensor([0.5, 0.3, 0.2], dtype=F64), 2 * torch.arange(3.0, dtype=F64)
        return dist.Normal(shift[:, :, None, None] + means, 1.0).log_prob(x[..., None]) + probs.log()

    @pytest.mark.parametrize("parallel", [None, True, False])
    @pytest.mark.parametrize("members", [3, 5])
    def test_each_group_has_its_own_draws(self, members, parallel):
        """Also where the sizes of the two plates agree, so that a wrong reading raises no error."""
        x, shift = torch.randn(3, members, dtype=F64), torch.randn(4, 3, dtype=F64)
        hand = self.by_hand(x, shift)
        for draws in (shift, shift[:, :, None]):
            found = scnf.enumerate_labels(
                self.model, (x,), {"shift": draws}, max_plate_nesting=2, parallel=parallel
            )
            assert relative(found, hand) < 1e-10

    @pytest.mark.parametrize("shape", [(4,), (4, 1, 3), (4, 1, 5), (4, 3, 5)])
    def test_other_shapes_are_refused(self, shape):
        x, draws = torch.randn(3, 5, dtype=F64), torch.randn(shape, dtype=F64)
        with pytest.raises(ValueError, match=r"'shift' have shape .*, expected \(S, 3, 1\)"):
            scnf.enumerate_labels(self.model, (x,), {"shift": draws}, max_plate_nesting=2)

    def test_a_wrong_number_of_groups_is_refused(self):
        x, draws = torch.randn(3, 5, dtype=F64), torch.randn(4, 2, dtype=F64)
        with pytest.raises(ValueError, match="'shift' have 2 rows along plate 'groups', which has 3"):
            scnf.enumerate_labels(self.model, (x,), {"shift": draws}, max_plate_nesting=2)

    def test_events_are_kept(self):
        """Draws of a vector for each group."""
        x, shift = torch.randn(3, 5, 2, dtype=F64), torch.randn(4, 3, 2, dtype=F64)

        def model(x):
            with pyro.plate("groups", 3, dim=-2):
                shift = pyro.sample("shift", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
                with pyro.plate("members", 5, dim=-1):
                    y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
                    pyro.sample("x", dist.Normal(shift + y[..., None], 1.0).to_event(1), obs=x)

        for parallel in (True, False):
            options = {"max_plate_nesting": 2, "parallel": parallel}
            compact = scnf.enumerate_labels(model, (x,), {"shift": shift}, **options)
            hand = dist.Normal(shift[:, :, None], 1.0).log_prob(x).sum(-1) - torch.tensor(2.0).log()
            assert relative(compact[..., 0], hand) < 1e-6


def test_a_site_set_by_do_is_still_drawn(flow, x):
    """``poutine.do`` leaves the site in the model. The message says how to set it."""
    shares = draw_shares(1)[0]
    done = poutine.do(lambda x: prevalence(flow, x), {"shares": shares})
    with pytest.raises(ValueError, match=r"no draws of \['shares'\].*poutine\.do leaves.*or hide it"):
        scnf.enumerate_labels(done, (x,))
    hand = joint_by_hand(flow, x, shares[None])
    for mended in (poutine.block(done, hide=["shares"]), poutine.condition(done, {"shares": shares})):
        assert relative(scnf.enumerate_labels(mended, (x,)), hand) < 1e-10


class TestSites:
    def test_a_partly_observed_label(self, flow, x):
        """For Pyro's ``obs_mask``, which splits the label into two sites."""
        y, known = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([True, False, True, False, False, True])

        def model(x):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=F64)))
            with pyro.plate("data", len(x)):
                label = pyro.sample("y", dist.Categorical(shares), obs=y, obs_mask=known)
                pyro.sample("x", flow.condition(label), obs=x)

        shares = draw_shares(4)
        hand = joint_by_hand(flow, x, shares)
        joint = scnf.enumerate_labels(model, (x,), {"shares": shares})
        assert relative(joint[:, ~known], hand[:, ~known]) < 1e-10
        assert relative(joint.logsumexp(-1)[:, known], hand[:, torch.arange(6), y][:, known]) < 1e-10
        one_hot = torch.nn.functional.one_hot(y[known], 3).to(F64)
        assert torch.equal(joint.softmax(-1)[:, known], one_hot.expand(4, -1, -1))
        result = joint.logsumexp(-1).sum(-1)
        prior = dist.Dirichlet(torch.ones(3, dtype=F64)).log_prob(shares)
        for s in range(4):
            conditioned = pyro.poutine.condition(model, {"shares": shares[s]})
            loss = scnf.elbo(pyro.infer.config_enumerate(conditioned))(x)
            assert -loss.item() == pytest.approx(float(result[s] + prior[s]), rel=1e-10)

    def test_a_second_label_of_the_datum_is_summed_out(self, x):
        """A component within each class."""
        means = torch.randn(3, 2, 2, dtype=F64)
        weights = torch.tensor([0.2, 0.8], dtype=F64)

        def model(x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
                component = pyro.sample("component", dist.Categorical(weights))
                pyro.sample("x", dist.Normal(Vindex(means)[y, component], 1.0).to_event(1), obs=x)

        each = dist.Normal(means, 1.0).to_event(1).log_prob(x[:, None, None]) + weights.log()
        expected = each.logsumexp(-1) - torch.tensor(3.0, dtype=F64).log()
        assert relative(scnf.enumerate_labels(model, (x,))[0], expected) < 1e-6
        other = each.logsumexp(-2) - torch.tensor(3.0, dtype=F64).log()
        assert relative(scnf.enumerate_labels(model, (x,), site="component")[0], other) < 1e-6
        both = scnf.enumerate_labels(model, (x,), site="x")
        assert relative(both[0, :, 0], expected.logsumexp(-1)) < 1e-6

    def test_a_site_that_ties_labels_together(self, x):
        def model(x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
            pyro.sample("total", dist.Normal(y.sum(-1, keepdim=True), 1.0), obs=torch.zeros(1, dtype=F64))

        with pytest.raises(ValueError, match="'total' depends on the label"):
            scnf.enumerate_labels(model, (x,))

    def test_labels_in_a_sequential_plate(self, x):
        def model(x):
            for n in pyro.plate("data", len(x)):
                y = pyro.sample(f"y_{n}", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
                pyro.sample(f"x_{n}", dist.Normal(y, 1.0), obs=x[n, 0])

        with pytest.raises(ValueError, match="vectorised"):
            scnf.enumerate_labels(model, (x,), site="y_0")

    @pytest.mark.parametrize("outer", ["data", "time"])
    @pytest.mark.parametrize("parallel", [True, False])
    def test_sequential_plates_have_a_site_for_each_step(self, outer, parallel):
        """Each datum has hidden states and measurements, which the model makes in a loop."""
        x = torch.randn(6, 3, dtype=F64)
        odds = torch.tensor([0.3, 0.7], dtype=F64)

        def steps(x, y, t):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(torch.tensor(0.4, dtype=F64)))
            pyro.sample(f"x_{t}", dist.Normal(y + 2 * z, 1.0), obs=x[:, t])

        def model(x):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2, dtype=F64)))
            data = pyro.plate("data", len(x))
            with data:
                y = pyro.sample("y", dist.Categorical(shares))
                if outer == "data":
                    for t in pyro.plate("time", 3):
                        steps(x, y, t)
            if outer == "time":
                for t in pyro.plate("time", 3):
                    with data:
                        steps(x, y, t)

        shares = torch.stack([odds, 1 - odds, odds.flip(0)])
        means = torch.arange(2.0, dtype=F64) + 2 * torch.arange(2.0, dtype=F64)[:, None]  # (z, y)
        prior = torch.tensor([0.6, 0.4], dtype=F64).log()[:, None]
        each = (dist.Normal(means, 1.0).log_prob(x[..., None, None]) + prior).logsumexp(-2)
        hand = each.sum(1) + shares.log()[:, None]
        joint = scnf.enumerate_labels(model, (x,), {"shares": shares}, parallel=parallel)
        assert relative(joint, hand) < 1e-6

    def test_draws_of_the_unobserved_part_of_a_label(self, x):
        """Pyro names the unobserved part ``y_unobserved``. Draws of that name are refused too."""
        y, known = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([True, False, True, False, False, True])

        def model(x):
            with pyro.plate("data", len(x)):
                label = pyro.sample("y", dist.Categorical(torch.ones(3)), obs=y, obs_mask=known)
                pyro.sample("x", dist.Normal(label, 1.0), obs=x[:, 0])

        with pytest.raises(ValueError, match="draws of the label 'y_unobserved' itself"):
            scnf.enumerate_labels(model, (x,), {"y_unobserved": torch.zeros(4, 6, dtype=torch.long)})

    @pytest.mark.parametrize("parallel", [None, True, False])
    def test_draws_of_observed_data_do_not_replace_them(self, flow, x, parallel):
        model = scnf.SemiSupervisedModel(flow)
        with pytest.raises(ValueError, match="posterior holds draws of 'x', which the model observes"):
            scnf.enumerate_labels(model, (x,), {"x": torch.randn(4, *x.shape, dtype=F64)}, parallel=parallel)

    def test_draws_of_a_reparametrised_site_say_nothing_new(self, flow, x):
        """Predictive returns them beside those of the site that took its place."""

        def model(x):
            shift = pyro.sample("shift", dist.Normal(torch.ones((), dtype=F64), 2.0))
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
                pyro.sample("x", flow.condition(y), obs=x - shift)

        rewritten = poutine.reparam(model, config={"shift": LocScaleReparam(0.0)})
        raw = torch.randn(4, dtype=F64)
        alone = scnf.enumerate_labels(rewritten, (x,), {"shift_decentered": raw})
        both = scnf.enumerate_labels(rewritten, (x,), {"shift_decentered": raw, "shift": 1 + 2 * raw})
        assert torch.equal(alone, both)
        assert relative(both, scnf.enumerate_labels(model, (x,), {"shift": 1 + 2 * raw})) < 1e-12

    @pytest.mark.parametrize("y", [[0, 1, 2, 0, 1, 2], [0, -1, 2, -1, -1, 1]])
    def test_training_terms_are_no_likelihood(self, flow, x, y):
        y = torch.tensor(y)
        model = scnf.SemiSupervisedModel(flow)
        with_terms = scnf.with_terms(model, "classification:weight=5")
        assert "classification" in poutine.trace(with_terms).get_trace(x, y).nodes
        found = scnf.enumerate_labels(with_terms, (x, y))
        assert torch.allclose(found, scnf.enumerate_labels(model, (x, y)), rtol=1e-12)


def test_label_draws_follow_their_generator():
    joint = torch.randn(20, 30, 3)

    def draw(seed):
        return scnf.sample_labels(joint, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
