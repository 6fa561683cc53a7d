"""``enumerate_labels`` with labels in nested plates, compared with sums over all their values."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import relative, toy_flow
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex

import pyro_scnf as scnf

F64 = torch.float64
SHIFT = torch.tensor([-0.5, 1.0], dtype=F64)


def double(*values):
    return torch.tensor(values, dtype=F64)


def regimes(flow, x, w=None, y=None, mask=None, known=None):
    """Groups with a regime r, which says how common each class is among their members."""
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2, 3, dtype=F64)).to_event(1))
    with pyro.plate("groups", len(x), dim=-2):
        r = pyro.sample("r", dist.Categorical(double(0.3, 0.7)))
        if w is not None:
            pyro.sample("w", dist.Normal(SHIFT[r], 1.0), obs=w[:, None])
        with pyro.plate("members", x.shape[1], dim=-1):
            rows = Vindex(shares)[..., r, :]
            with poutine.mask(mask=torch.tensor(True) if mask is None else mask):
                y = pyro.sample("y", dist.Categorical(rows), obs=y, obs_mask=known)
                pyro.sample("x", flow.condition(y), obs=x)


def sum_by_hand(model, draws, *sizes):
    """log p of the data of one group and of every value of its discrete sites: a dimension for each of them.

    :param sizes: pairs of the name of a site and its number of values. ``("y", (3, 4))`` has 4 members.
    """
    shapes = [(name, *((k, ()) if isinstance(k, int) else (k[0], k[1:]))) for name, k in sizes]
    axes = [k for _, k, members in shapes for _ in range(math.prod(members))]
    joint = torch.zeros(axes, dtype=F64)
    for values in itertools.product(*map(range, axes)):
        rest, given = list(values), {}
        for name, _, members in shapes:
            count = math.prod(members)
            given[name] = torch.tensor(rest[:count]).reshape(1, count if members else 1)
            rest = rest[count:]
        trace = poutine.trace(poutine.condition(model, {**given, **draws})).get_trace()
        trace.compute_log_prob(lambda name, site: name not in draws)
        joint[values] = sum(
            site["log_prob_sum"] for name, site in trace.nodes.items() if "log_prob_sum" in site
        )
    return joint


def without(joint, *axes):
    return joint.logsumexp([axis for axis in range(joint.dim()) if axis not in axes])


@pytest.fixture
def flow():
    return toy_flow("gmm", dtype=F64)


@pytest.fixture
def x():
    return torch.randn(2, 3, 2, dtype=F64)


@pytest.fixture
def w():
    return torch.randn(2, dtype=F64)


@pytest.fixture
def shares():
    return dist.Dirichlet(torch.ones(3, dtype=F64)).sample((2, 2))


def by_hand(flow, x, w, shares):
    """For each draw and group, log p(x, w, r, y_1, y_2, y_3 | shares)."""
    for s, g in itertools.product(range(len(shares)), range(len(x))):

        def model(g=g):
            regimes(flow, x[g : g + 1], w[g : g + 1])

        yield s, g, sum_by_hand(model, {"shares": shares[s]}, ("r", 2), ("y", (3, 3)))


class TestRegimes:
    def test_the_regime_of_a_group(self, flow, x, w, shares):
        def model(x, w):
            regimes(flow, x, w)

        options = {"max_plate_nesting": 2}
        r = scnf.enumerate_labels(model, (x, w), {"shares": shares}, site="r", **options)
        y = scnf.enumerate_labels(model, (x, w), {"shares": shares}, site="y", **options)
        assert r.shape == (2, 2, 2)
        assert y.shape == (2, 2, 3, 3)
        for s, g, joint in by_hand(flow, x, w, shares):
            assert relative(r[s, g], without(joint, 0)) < 1e-9
            for member in range(3):  # the data of the whole group, all other labels summed out
                assert relative(y[s, g, member], without(joint, 1 + member)) < 1e-9

    def test_pyro_has_the_same_probabilities(self, flow, x, w, shares):
        model = config_enumerate(poutine.condition(regimes, {"shares": shares[0]}))
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
        theirs = elbo.compute_marginals(model, lambda *args: None, flow, x, w)
        for site in ("r", "y"):
            joint = scnf.enumerate_labels(
                lambda: regimes(flow, x, w), (), {"shares": shares[:1]}, site=site, max_plate_nesting=2
            )
            ours, expected = joint.log_softmax(-1)[0], theirs[site].logits.log_softmax(-1)
            assert relative(ours, expected.reshape(ours.shape)) < 1e-9

    def test_labels_that_are_known_in_some_rows(self, flow, x, w, shares):
        y, known = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.tensor([[1, 0, 0], [0, 1, 1]]).bool()

        def model(x, w):
            regimes(flow, x, w, y, known=known)

        options = {"max_plate_nesting": 2}
        r = scnf.enumerate_labels(model, (x, w), {"shares": shares}, site="r", **options)
        each = scnf.enumerate_labels(model, (x, w), {"shares": shares}, site="y", **options)
        for s, g, joint in by_hand(flow, x, w, shares):
            rows = [y[g, n : n + 1] if known[g, n] else torch.arange(3) for n in range(3)]
            some = joint[torch.meshgrid(torch.arange(2), *rows, indexing="ij")]
            assert relative(r[s, g], without(some, 0)) < 1e-9
            for n in range(3):
                assert relative(each[s, g, n][rows[n]], without(some, 1 + n)) < 1e-9
                assert (each[s, g, n].softmax(-1)[rows[n]].sum() - 1).abs() < 1e-12

    def test_labels_that_are_all_known(self, flow, x, w, shares):
        y = torch.tensor([[0, 1, 2], [2, 2, 0]])

        def model(x, w):
            regimes(flow, x, w, y)

        options = {"max_plate_nesting": 2}
        r = scnf.enumerate_labels(model, (x, w), {"shares": shares}, site="r", **options)
        each = scnf.enumerate_labels(model, (x, w), {"shares": shares}, site="y", **options)
        assert each.shape == (2, 2, 3, 1)
        for s, g, joint in by_hand(flow, x, w, shares):
            some = joint[:, y[g, 0], y[g, 1], y[g, 2]]
            assert relative(r[s, g], some) < 1e-9
            assert relative(each[s, g, :, 0], some.logsumexp(0).expand(3)) < 1e-9

    def test_groups_of_different_sizes(self, flow, x, w, shares):
        """Members that a mask leaves out play no part, nor do their labels."""
        mask = torch.tensor([[True, True, False], [True, False, False]])

        def model(x, w):
            regimes(flow, x, w, mask=mask)

        def alone(g):
            return lambda: regimes(flow, x[g : g + 1, : 2 - g], w[g : g + 1])

        r = scnf.enumerate_labels(model, (x, w), {"shares": shares}, site="r", max_plate_nesting=2)
        y = scnf.enumerate_labels(model, (x, w), {"shares": shares}, site="y", max_plate_nesting=2)
        assert torch.equal(y.isnan().any(-1), ~mask.expand(2, -1, -1))
        for s, g in itertools.product(range(2), range(2)):
            joint = sum_by_hand(alone(g), {"shares": shares[s]}, ("r", 2), ("y", (3, 2 - g)))
            assert relative(r[s, g], without(joint, 0)) < 1e-9
            assert relative(y[s, g, 0], without(joint, 1)) < 1e-9

    def test_draws_of_a_latent_that_depends_on_the_regime(self):
        r"""The joint is :math:`p(x, r \mid z)` then, with z as it was drawn."""
        x, z, odds = torch.randn(2, 3, dtype=F64), torch.randn(5, 2, 1, dtype=F64), double(0.3, 0.7)

        def model():
            with pyro.plate("groups", 2, dim=-2):
                r = pyro.sample("r", dist.Categorical(odds))
                z = pyro.sample("z", dist.Normal(SHIFT[r], 1.0))
                with pyro.plate("members", 3, dim=-1):
                    y = pyro.sample("y", dist.Bernoulli(double(0.2, 0.8)[r]))
                    pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

        prior = odds.log() + dist.Normal(SHIFT, 1.0).log_prob(z)  # (S, groups, R)
        label = torch.stack([1 - double(0.2, 0.8), double(0.2, 0.8)], -1).log()  # (R, K)
        each = dist.Normal(z[..., None] + double(0, 1), 1.0).log_prob(x[..., None])  # (S, groups, members, K)
        members = (each[..., None, :] + label).logsumexp(-1)  # (S, groups, members, R)
        hand = members.sum(2) + prior.log_softmax(-1)
        options = {"max_plate_nesting": 2}
        assert relative(scnf.enumerate_labels(model, (), {"z": z}, site="r", **options), hand) < 1e-9
        rest = hand[:, :, None] - members  # all of the group but one member
        hand = (rest[..., None] + each[..., None, :] + label).logsumexp(-2)
        assert relative(scnf.enumerate_labels(model, (), {"z": z}, site="y", **options), hand) < 1e-9
        whole = scnf.enumerate_labels(model, (), {"z": z}, site="x", **options)
        assert relative(whole[..., 0], hand.logsumexp(-1)) < 1e-9

    @pytest.mark.parametrize("sizes", [*itertools.product([1, 2], repeat=5)])
    def test_dimensions_of_size_one(self, sizes):
        draws, groups, members, kinds, classes = sizes
        x = torch.randn(groups, members, dtype=F64)
        weights = torch.rand(draws, classes, dtype=F64) + 0.1
        loc = torch.randn(kinds, classes, dtype=F64)

        def model():
            weight = pyro.sample("weight", dist.Dirichlet(torch.ones(classes, dtype=F64)))
            with pyro.plate("groups", groups, dim=-2):
                r = pyro.sample("r", dist.Categorical(torch.ones(kinds, dtype=F64)))
                with pyro.plate("members", members, dim=-1):
                    y = pyro.sample("y", dist.Categorical(weight))
                    pyro.sample("x", dist.Normal(loc[r, y], 1.0), obs=x)

        each = dist.Normal(loc, 1.0).log_prob(x[..., None, None])  # (groups, members, R, K)
        each = each + (weights / weights.sum(-1, keepdim=True)).log()[:, None, None, None]
        group = each.logsumexp(-1).sum(2) - math.log(kinds)  # (S, groups, R)
        posterior = {"weight": weights / weights.sum(-1, keepdim=True)}
        options = {"max_plate_nesting": 2}
        r = scnf.enumerate_labels(model, (), posterior, site="r", **options)
        assert r.shape == (draws, groups, kinds)
        assert relative(r, group) < 1e-6
        y = scnf.enumerate_labels(model, (), posterior, site="y", **options)
        assert y.shape == (draws, groups, members, classes)
        rest = group[:, :, None] - each.logsumexp(-1)
        if kinds == 1:  # members share nothing then, so each of them is a row of its own
            rest = torch.zeros_like(rest)
        assert relative(y, (rest[..., None] + each).logsumexp(-2)) < 1e-6


def test_a_label_that_all_data_share():
    """It lies in no plate, so all data are part of every row."""
    x = torch.randn(3, dtype=F64)

    def model():
        switch = pyro.sample("switch", dist.Bernoulli(double(0.5)[0]))
        with pyro.plate("data", 3):
            y = pyro.sample("y", dist.Bernoulli(0.2 + 0.6 * switch))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)
        with pyro.plate("others", 2):
            pyro.sample("w", dist.Normal(switch, 1.0), obs=x[:2])
            pyro.sample("v", dist.Normal(double(0.0)[0], 1.0), obs=x[:2])

    label = torch.stack([1 - double(0.2, 0.8), double(0.2, 0.8)], -1).log()  # (switch, K)
    each = dist.Normal(double(0, 1), 1.0).log_prob(x[:, None, None]) + label  # (N, switch, K)
    others = dist.Normal(double(0, 1), 1.0).log_prob(x[:2, None]).sum(0) - math.log(2)
    others = others + dist.Normal(double(0), 1.0).log_prob(x[:2]).sum()
    rest = each.logsumexp(-1).sum(0) - each.logsumexp(-1) + others
    hand = (rest[..., None] + each).logsumexp(-2)
    assert relative(scnf.enumerate_labels(model)[0], hand) < 1e-9
    with pytest.raises(ValueError, match="plate of data"):
        scnf.enumerate_labels(model, site="switch")


def test_three_levels():
    """A site in each of three nested plates."""
    x = torch.randn(2, 2, 2, dtype=F64)
    table = torch.rand(2, 2, 2, dtype=F64)  # p(c = 1 | a, b)

    def model():
        with pyro.plate("one", 2, dim=-3):
            a = pyro.sample("a", dist.Bernoulli(double(0.4)[0]))
            with pyro.plate("two", 2, dim=-2):
                b = pyro.sample("b", dist.Bernoulli(0.3 + 0.5 * a))
                with pyro.plate("three", 2, dim=-1):
                    c = pyro.sample("c", dist.Bernoulli(table[a.long(), b.long(), 0]))
                    pyro.sample("x", dist.Normal(a + 2 * b + 4 * c, 1.0), obs=x)

    joints = []
    for one in range(2):
        joint = torch.zeros([2] * 7, dtype=F64)  # a, b of two, c of four
        for values in itertools.product(range(2), repeat=7):
            a, b, c = values[0], torch.tensor(values[1:3]), torch.tensor(values[3:]).reshape(2, 2)
            terms = [
                dist.Bernoulli(double(0.4)[0]).log_prob(double(a)[0]),
                dist.Bernoulli(double(0.3 + 0.5 * a)[0]).log_prob(b.double()).sum(),
                dist.Bernoulli(table[a, b, 0][:, None]).log_prob(c.double()).sum(),
                dist.Normal(a + 2 * b[:, None] + 4.0 * c, 1.0).log_prob(x[one]).sum(),
            ]
            joint[values] = sum(terms)
        joints.append(joint)
    for site, axes in (("a", 0), ("b", [1, 2]), ("c", [[3, 4], [5, 6]])):
        found = scnf.enumerate_labels(model, site=site, max_plate_nesting=3)[0]
        for one in range(2):
            axes_of_cells = torch.tensor(axes)
            for cell in itertools.product(*map(range, axes_of_cells.shape)):
                assert relative(found[(one, *cell)], without(joints[one], int(axes_of_cells[cell]))) < 1e-7


def test_observations_that_disagree_by_thousands_of_nats():
    """Pyro's own sum over such a label is log(0), since each term underflows by itself."""
    values = double(0.0, -3000.0), double(-2000.0, 0.0)

    def model():
        with pyro.plate("groups", 1, dim=-2):
            r = pyro.sample("r", dist.Bernoulli(double(0.5)[0]))
            with pyro.plate("members", 2, dim=-1):
                y = pyro.sample("y", dist.Bernoulli(double(0.5)[0])).long()
                for name, table in zip("ab", values, strict=True):
                    pyro.sample(name, dist.Unit(Vindex(table)[y] + r).mask(True), obs=torch.zeros(0))

    r = scnf.enumerate_labels(model, site="r", max_plate_nesting=2)[0, 0]
    hand = 2 * (-2000.0 - math.log(2) + 2 * double(0, 1)) - math.log(2)
    assert relative(r, hand) < 1e-12


@pytest.mark.parametrize("site", ["y", "z_0", "z_7", "z_14"])
@pytest.mark.parametrize("kind", ["star", "chain"])
def test_many_labels_of_a_row(kind, site):
    """A table of all of them would have 3**16 entries for each row."""
    x, table = torch.randn(4, 15, dtype=F64), torch.rand(3, 3, dtype=F64)
    table = table / table.sum(-1, keepdim=True)

    def model():
        data = pyro.plate("data", 4)
        with data:
            y = before = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
        for t in range(15):
            with data:
                z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(table)[..., before, :]))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])
            before = y if kind == "star" else z

    each = dist.Normal(double(0, 1, 2), 1.0).log_prob(x[..., None]).exp()  # (N, steps, K)
    start = torch.full((4, 3), 1 / 3, dtype=F64)
    if kind == "star":
        step = int(site[2:] or 0) if site != "y" else None
        beside = [each[:, t] @ table.T for t in range(15) if t != step]
        joint = start * torch.stack(beside).prod(0)
        joint = joint if step is None else (joint @ table) * each[:, step]
    else:
        forward, backward, step = (
            [start],
            [torch.ones(4, 3, dtype=F64)],
            0 if site == "y" else int(site[2:]) + 1,
        )
        for t in range(15):
            forward.append((forward[-1] @ table) * each[:, t])
            backward.append((backward[-1] * each[:, 14 - t]) @ table.T)
        joint = forward[step] * backward[15 - step]
    assert relative(scnf.enumerate_labels(model, site=site)[0], joint.log()) < 1e-9


def test_labels_in_plates_that_cross():
    x = torch.randn(2, 3, dtype=F64)

    def model():
        rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows:
            r = pyro.sample("r", dist.Bernoulli(double(0.5)[0]))
        with columns:
            c = pyro.sample("c", dist.Bernoulli(double(0.5)[0]))
        with rows, columns:
            pyro.sample("x", dist.Normal(r + c, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"\['c', 'r', 'x'\] depend on labels in plates that cross"):
        scnf.enumerate_labels(model, site="r", max_plate_nesting=2)
