"""The layer that gives every entry a standard normal marginal."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

import pyro_scnf as scnf
from pyro_scnf.transforms import MarginalGaussianization, dequantize

F64 = torch.float64


def skewed(rows=4000, cells=8):
    """Grey levels, most of them 0."""
    return (cells * torch.rand(rows, 3) ** 4).long().clamp(max=cells - 1)


def test_its_density_is_the_histogram():
    """Standard normal latents make the density of x exactly the height of its cell."""
    levels = skewed(200)
    layer = MarginalGaussianization((3,), cells=8).double()
    layer.initialize(dequantize(levels, 8).double())
    counts = torch.bincount(levels.flatten(), minlength=8).double() + 1
    height = (8 * counts / counts.sum()).log()
    density = dist.TransformedDistribution(dist.Normal(torch.zeros(3, dtype=F64), 1).to_event(1), [layer])
    x = dequantize(skewed(500), 8).double()
    assert torch.allclose(density.log_prob(x), height[(8 * x).long()].sum(-1), rtol=1e-9)


def test_the_batch_that_sets_it_is_standard_normal():
    layer = MarginalGaussianization((3,), cells=8)
    z = layer.initialize(dequantize(skewed(), 8)).detach().flatten().double()
    probs = torch.linspace(0.01, 0.99, 50, dtype=F64)
    assert torch.allclose(z.quantile(probs), dist.Normal(0.0, 1.0).icdf(probs), atol=0.05)


def test_it_does_nothing_but_normal_quantiles_before_that():
    x = torch.rand(10, 3)
    z, _ = MarginalGaussianization((3,)).inverse_and_ladj(x)
    assert torch.allclose(z, dist.Normal(0.0, 1.0).icdf(x), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_both_tails_are_as_exact_as_their_numbers(dtype):
    """A distribution function near 1 would be rounded, so the upper tail is computed from above."""
    layer = MarginalGaussianization((1,), cells=4)
    layer.initialize(torch.cat([0.25 * torch.rand(1000, 1), 1 - 0.25 * torch.rand(1000, 1)]))
    layer = layer.to(dtype)
    z = torch.linspace(-3.5, 3.5, 29, dtype=dtype)[:, None]
    back, _ = layer.inverse_and_ladj(layer(z))
    assert torch.allclose(back, z, atol=2e-3 if dtype == torch.float32 else 1e-9)
    reflected, _ = layer.inverse_and_ladj(1 - layer(z))
    assert torch.allclose(reflected, -z, atol=2e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("direction", [1, -1])
def test_faint_cells_in_a_tail(direction):
    """Cells of a mass below the rounding of 1, beside cells of nearly all the mass."""
    layer = MarginalGaussianization((1,), cells=8)
    with torch.no_grad():
        layer.log_weights.copy_(torch.tensor([0.0, 0, 0, 0, -18, -20, -22, -17][::direction]))
    x = torch.linspace(0.01, 0.99, 98)[:, None]  # no end of a cell among them
    z, ladj = layer.inverse_and_ladj(x)
    back, forward = layer.call_and_ladj(z)
    assert (back - x).abs().max() < 1e-3
    assert (ladj + forward).abs().max() < 1e-3
    exact, exact_ladj = layer.double().inverse_and_ladj(x.double())
    assert (z - exact).abs().max() < 1e-4
    assert (ladj - exact_ladj).abs().max() < 1e-3


def test_learning_finds_the_masses():
    """The loss of data is least where the masses are the frequencies."""
    torch.manual_seed(0)
    x = dequantize(skewed(), 8)
    layer = MarginalGaussianization((3,), cells=8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(300):
        z, ladj = layer.inverse_and_ladj(x)
        loss = -(dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + ladj).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    share = torch.bincount((8 * x).long().flatten(), minlength=8) / x.numel()
    assert torch.allclose(layer.log_weights.softmax(0), share, atol=2e-3)


@pytest.mark.parametrize("flow", [scnf.flows.glow, scnf.flows.realnvp])
def test_flows_take_it_next_to_the_data(flow):
    shape = (1, 8, 8)
    made = flow(shape, levels=1, width=4, blocks=1, gaussianize=17)
    layers = [m for m in made.modules() if isinstance(m, MarginalGaussianization)]
    assert [(layer.cells, tuple(layer.event_shape)) for layer in layers] == [(17, shape)]
    z = made.initialize(torch.rand(20, *shape))
    assert math.isfinite(z.sum())
    with pytest.raises(ValueError, match=r"logit.*gaussianize takes its place"):
        flow(shape, levels=1, width=4, blocks=1, gaussianize=17, logit=0.1)
