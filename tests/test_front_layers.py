"""Layers next to the data of tables: quantile splines and principal components."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import pyro_scnf as scnf
from pyro_scnf.transforms import PrincipalComponents, QuantileSpline

F64 = torch.float64


def skewed(rows=2000, seed=0):
    """Columns of many units and shapes: log-normal, of heavy tails, bimodal, far from 0."""
    e = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    sides = torch.where(torch.arange(rows) % 3 > 0, 4.0, -4.0).to(F64)
    return torch.stack([1000 * e[:, 0].exp(), e[:, 1] ** 3, e[:, 2] + sides, 1e4 + e[:, 3]], 1)


def normal_quantiles(z):
    """The distance of the ordered latents of each column from those of a normal distribution."""
    shares = (torch.arange(len(z), dtype=F64) + 0.5) / len(z)
    expected = torch.distributions.Normal(0.0, 1.0).icdf(shares)
    inner = (shares > 0.02) & (shares < 0.98)
    return (z.double().sort(0).values - expected[:, None])[inner].abs().max()


# -- quantile spline -------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_columns_become_normal_whatever_their_unit(dtype):
    x = skewed().to(dtype)
    layer = QuantileSpline(4).to(dtype)
    z = layer.initialize(x)
    assert torch.equal(z, layer.inverse_and_ladj(x)[0])
    assert normal_quantiles(z) < 0.15
    assert normal_quantiles(layer.inverse_and_ladj(skewed(seed=1).to(dtype))[0]) < 0.3


def test_one_far_value_leaves_the_others_alone():
    """A bin may not be narrower than a share of the spread. An outlier may not widen it."""
    x = skewed()
    x[0] = 1e9
    z = QuantileSpline(4).double().initialize(x)
    assert normal_quantiles(z[1:]) < 0.15
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_values_that_repeat_have_a_finite_density(share):
    x = torch.randn(500, 1, dtype=F64, generator=torch.Generator().manual_seed(0)).abs()
    x[: int(share * 500)] = 0.0
    layer = QuantileSpline(1, bins=16).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialize warns of such values
        layer.initialize(x)
    spread = 1.0 if share == 1.0 else float(x.sort(0).values[420] - x.sort(0).values[80])
    z, log_slope = layer.inverse_and_ladj(x)
    assert torch.isfinite(z).all()
    assert log_slope.exp().max() <= 2 * 7 / 16 * 1000 / max(spread, 1e-3) * 16
    assert torch.allclose(layer.call_and_ladj(z)[0], x, atol=1e-9)


@given(
    below=st.integers(0, 600),
    share=st.floats(0.2, 0.9),
    seed=st.integers(0, 20),
    bins=st.sampled_from([16, 32]),
)
@settings(max_examples=30, deadline=None)
def test_a_value_of_many_rows_gets_the_mean_of_their_ranks(below, share, seed, bins):
    """Wherever it lies, so that the column keeps its shape. Before, it got the lowest of their ranks."""
    alone = torch.randn(1000, 1, dtype=F64, generator=torch.Generator().manual_seed(seed)).sort(0).values
    value = alone[below, 0]
    same = round(share / (1 - share) * 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialize warns of such values
        z = QuantileSpline(1, bins).double().initialize(torch.cat([alone, value.expand(same, 1)]))
    rank = (below + same / 2) / (1000 + same)
    found = torch.special.ndtr(z[-1, 0]).item()
    assert found == pytest.approx(rank, abs=2.5 / bins)


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_far_value_leaves_the_ranks_of_the_others_alone(far, dtype):
    """Half of the others are equal. Single precision rounds the far value to more than their spread."""
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).clamp(min=0.0)
    layer = QuantileSpline(1).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialize warns of such values
        z = layer.initialize(torch.cat([x, torch.full((1, 1), far)]).to(dtype))[:-1, 0]
    order = torch.tensor(rankdata(x[:, 0].numpy()) / 2001)
    assert (torch.special.ndtr(z.double()) - order).square().mean().sqrt() < 0.05
    assert layer.x_knots.diff(dim=1).min() > 0


@given(seed=st.integers(0, 50), rows=st.integers(2, 60), bins=st.integers(4, 40))
@settings(max_examples=30, deadline=None)
def test_it_is_monotone_smooth_and_straight_beyond_the_data(seed, rows, bins):
    x = skewed(rows, seed)
    layer = QuantileSpline(4, bins).double()
    layer.initialize(x)
    knots = layer.x_knots + layer.center[:, None]
    low, high = knots[:, 0], knots[:, -1]
    width = high - low
    assert (low <= x.amin(0) + 1e-9 * width).all()
    assert (x.amax(0) <= high + 1e-9 * width).all()
    grid = low + torch.linspace(-1, 2, 400, dtype=F64)[:, None] * width
    z, _ = layer.inverse_and_ladj(grid)
    assert (z.diff(dim=0) > 0).all()
    back, _ = layer.call_and_ladj(z)
    assert ((back - grid).abs() < 1e-7 * (width + grid.abs())).all()
    outside = z[grid[:, 0] < low[0], 0].diff()
    assert torch.allclose(outside, outside[0].expand_as(outside), rtol=1e-6)
    step = 1e-7 * layer.x_knots.diff(dim=1).amin(1)
    for k in range(bins + 1):
        knot = knots[:, k]
        slopes = [layer.inverse_and_ladj(torch.diag(knot + side * step))[1] for side in (-1, 1)]
        assert torch.allclose(*slopes, atol=1e-3)


def test_it_is_the_identity_at_first_and_training_leaves_it_alone():
    layer = QuantileSpline((3,), bins=8)
    x = 10 * torch.randn(20, 3)
    z, ladj = layer.inverse_and_ladj(x)
    assert torch.allclose(z, x, rtol=1e-5)
    assert ladj.abs().max() < 1e-5
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e6])
def test_a_large_offset_rounds_nothing(offset):
    x = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0)) + offset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # single precision makes some rows equal
        z = QuantileSpline(1).initialize(x)
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02


def test_gradients_are_slopes_also_at_knots():
    x = torch.tensor([[0.0], [1.0], [2.5], [4.0]], dtype=F64)
    layer = QuantileSpline(1, bins=4).double()
    layer.initialize(x)
    for points in (x, layer.x_knots.T + layer.center):
        points = points.clone().requires_grad_()
        z, log_slope = layer.inverse_and_ladj(points)
        (slope,) = torch.autograd.grad(z.sum(), points)
        assert torch.allclose(slope[:, 0].log(), log_slope, atol=1e-6)
        latents = z.detach().requires_grad_()
        back, log_slope = layer.call_and_ladj(latents)
        (slope,) = torch.autograd.grad(back.sum(), latents)
        assert torch.allclose(slope[:, 0].log(), log_slope, atol=1e-6)


@pytest.mark.parametrize("flow", [scnf.flows.glow, scnf.flows.realnvp, scnf.flows.ffjord])
def test_flows_take_it_next_to_the_data(flow):
    made = flow((4,), quantiles=9)
    assert [layer.bins for layer in made.modules() if isinstance(layer, QuantileSpline)] == [9]
    assert math.isfinite(made.initialize(skewed(100).float()).sum())
    with pytest.raises(ValueError, match=r"logit=0.1: it would have no effect, because quantiles takes its"):
        flow((4,), quantiles=9, logit=0.1)
    with pytest.raises(ValueError, match=r"quantiles=9, event_shape=\(1, 4, 4\): only for vectors"):
        flow((1, 4, 4), quantiles=9)


# -- principal components --------------------------------------------------------------------------
def test_latents_are_uncorrelated_and_the_last_one_varies_most():
    mix = torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = 100 + torch.randn(3000, 5, dtype=F64, generator=torch.Generator().manual_seed(1)) @ mix
    layer = PrincipalComponents(5).double()
    z = layer.initialize(x)
    assert torch.allclose(torch.cov(z.T, correction=0), torch.eye(5, dtype=F64), atol=1e-9)
    assert torch.allclose(z.mean(0), torch.zeros(5, dtype=F64), atol=1e-9)
    variances = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    assert torch.allclose((2 * layer.log_spread).exp(), variances)
    assert (layer.log_spread.diff() >= 0).all()


@pytest.mark.parametrize("rows", [2, 50])
def test_columns_that_follow_from_others_have_a_finite_density(rows):
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    layer = PrincipalComponents(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialize warns of such columns
        layer.initialize(torch.cat([x, x.sum(1, keepdim=True)], 1))
    assert layer.log_spread[0] == pytest.approx(float(layer.log_spread[-1]) + math.log(1e-3), abs=1e-5)
    new = torch.randn(7, 3)
    assert torch.allclose(layer.call_and_ladj(layer.inverse_and_ladj(new)[0])[0], new, atol=1e-3)


def test_images_have_neither():
    for layer in (QuantileSpline, PrincipalComponents):
        with pytest.raises(ValueError, match=r"event_shape=\(1, 2, 2\): expected \(D,\)"):
            layer((1, 2, 2))
