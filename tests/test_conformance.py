"""What holds for every transform: inverses, log-determinants, batch shapes, Pyro's protocol.

All checks run at random parameters; the tables of ``cases.py`` say on what.
"""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from cases import CONDITIONAL_TRANSFORMS, TRANSFORMS, mlp
from helpers import BATCHES, bind, build, context, data, perturb, relative
from hypothesis import given
from hypothesis import strategies as st
from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransformedDistribution,
    ConditionalTransformModule,
)
from pyro.distributions.torch_transform import TransformModule
from torch.distributions import constraints

from pyro_scnf import transforms as T

CASES = {**TRANSFORMS, **{f"conditional-{k}": v for k, v in CONDITIONAL_TRANSFORMS.items()}}
F64 = torch.float64

every = pytest.mark.parametrize("name", CASES)
learnable = pytest.mark.parametrize(
    "name", [k for k, case in CASES.items() if list(case.build().parameters())]
)
every_conditional = pytest.mark.parametrize("name", CONDITIONAL_TRANSFORMS)


def setup(name, batch=(), dtype=F64):
    """A transform (conditioned if conditional) and data for it."""
    case = CASES[name]
    layer = build(case, dtype)
    return case, layer, bind(layer, context(case, (), dtype)), data(case, batch, dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (F64, 1e-9)])
@every
def test_round_trip(name, dtype, tolerance):
    _, _, t, x = setup(name, (16,), dtype)
    z, ladj = t.inverse_and_ladj(x)
    again, back = t.call_and_ladj(z)
    assert z.dtype == ladj.dtype == again.dtype == back.dtype == dtype
    assert relative(again, x) <= tolerance
    assert relative(back, -ladj) <= tolerance * 10
    assert relative(t.inverse_and_ladj(again)[0], z) <= tolerance


def log_det(function, value):
    """log|det| of the Jacobian of ``function`` at one event, by autograd."""
    jacobian = torch.autograd.functional.jacobian(function, value, vectorize=True)
    return torch.linalg.slogdet(jacobian.reshape(value.numel(), value.numel()))[1]


@every
def test_log_determinant_is_that_of_the_autograd_jacobian(name):
    _, _, t, x = setup(name, (2,))
    z, ladj = t.inverse_and_ladj(x)
    assert ladj.shape == (2,)
    back = t.call_and_ladj(z)[1]
    for i in range(2):
        inverse = log_det(lambda value: t.inverse_and_ladj(value)[0], x[i])
        forward = log_det(lambda value: t.call_and_ladj(value)[0], z[i].detach())
        assert abs(ladj[i] - inverse) <= 1e-8
        assert abs(back[i] - forward) <= 1e-8


@learnable
def test_random_parameters_make_a_difference(name):
    """Guards the suite itself: a perturbed layer is not what it was when built."""
    _, layer, t, x = setup(name, (4,))
    with torch.no_grad():
        before = t.inverse_and_ladj(x)[0]
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        assert (t.inverse_and_ladj(x)[0] - before).abs().max() > 1e-3


@pytest.mark.parametrize("batch", BATCHES)
@every
def test_batch_shapes(name, batch):
    case, _, t, x = setup(name, batch)
    z, ladj = t.inverse_and_ladj(x)
    assert z.shape == batch + case.base_shape
    assert ladj.shape == batch
    again, back = t.call_and_ladj(z)
    assert again.shape == batch + case.event_shape
    assert back.shape == batch
    flat_x = x.reshape((-1,) + case.event_shape)
    for row, (one, one_z) in enumerate(zip(flat_x, z.reshape((-1,) + case.base_shape), strict=True)):
        alone, alone_ladj = t.inverse_and_ladj(one)
        assert relative(alone, one_z) < 1e-10
        assert relative(alone_ladj, ladj.reshape(-1)[row]) < 1e-10


@every
def test_empty_batch(name):
    case, _, t, x = setup(name, (0,))
    z, ladj = t.inverse_and_ladj(x)
    assert z.shape == (0,) + case.base_shape
    assert ladj.shape == (0,)
    assert t.call_and_ladj(z)[0].shape == x.shape


@every
def test_pyro_protocol_agrees_with_the_one_pass_methods(name):
    _, _, t, x = setup(name, (3,))
    z, ladj = t.inverse_and_ladj(x)
    assert torch.equal(t.inv(x), z)
    assert relative(t(z), x) < 1e-9
    fresh_z, fresh_x = z.clone(), x.clone()
    for call in (t.log_abs_det_jacobian(fresh_z, fresh_x), t.log_abs_det_jacobian(t.inv(x), x)):
        assert relative(call, -ladj) < 1e-9
    out = t(fresh_z)
    assert relative(t.log_abs_det_jacobian(fresh_z, out), -ladj) < 1e-9
    assert relative(t.inv.log_abs_det_jacobian(x, z), ladj) < 1e-9
    assert t.inv.inv is t


@every
def test_transformed_distribution(name):
    case, _, t, x = setup(name, (3,))
    base = dist.Normal(torch.zeros(case.base_shape, dtype=F64), 1.0).to_event(len(case.base_shape))
    flow = dist.TransformedDistribution(base, [t])
    assert flow.event_shape == case.event_shape
    assert flow.batch_shape == ()
    z, ladj = t.inverse_and_ladj(x)
    assert relative(flow.log_prob(x), base.log_prob(z) + ladj) < 1e-9
    drawn = flow.rsample((3,))
    assert drawn.shape == (3,) + case.event_shape
    assert torch.isfinite(flow.log_prob(drawn)).all()


@every
def test_one_pass_per_log_prob(name):
    """The log-determinant comes with the value: a density costs one run of the layer."""
    case, layer, t, x = setup(name, (3,))
    base = dist.Normal(torch.zeros(case.base_shape, dtype=F64), 1.0).to_event(len(case.base_shape))
    flow, runs, original = dist.TransformedDistribution(base, [t]), [], layer._inverse_ladj
    object.__setattr__(layer, "_inverse_ladj", lambda *args: runs.append(1) or original(*args))
    flow.log_prob(x)
    assert len(runs) == 1


@every
def test_shapes_are_predicted(name):
    case, _, t, _ = setup(name)
    for batch in BATCHES:
        base, event = torch.Size(batch + case.base_shape), torch.Size(batch + case.event_shape)
        assert t.forward_shape(base) == event
        assert t.inverse_shape(event) == base
        assert t.inv.forward_shape(event) == base
    assert t.domain.event_dim == len(case.base_shape)
    assert t.codomain.event_dim == len(case.event_shape)


@every
def test_data_lie_in_the_codomain(name):
    case, _, t, x = setup(name, (3,))
    assert t.codomain.check(x).all()
    assert t.codomain.check(t(torch.randn((3,) + case.base_shape, dtype=F64))).all()
    if case.unit_interval:
        assert not t.codomain.check(x + 2).any()
    else:
        assert t.codomain.base_constraint is constraints.real


@learnable
def test_every_parameter_gets_a_gradient(name):
    _, layer, t, x = setup(name, (5,))
    z, ladj = t.inverse_and_ladj(x)
    (z.square().flatten(1).sum(-1) - ladj).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        # The strict triangles of a 1×1 matrix are empty: nothing to learn there.
        empty = key.endswith(("lower", "upper")) and parameter.numel() == 1
        assert empty or parameter.grad.abs().sum() > 0, key


@every
def test_gradients_reach_the_data_and_the_latents(name):
    _, _, t, x = setup(name, (3,))
    x.requires_grad_()
    z, ladj = t.inverse_and_ladj(x)
    (gradient,) = torch.autograd.grad(z.sum() + ladj.sum(), x)
    assert torch.isfinite(gradient).all()
    z = z.detach().requires_grad_()
    out, back = t.call_and_ladj(z)
    (gradient,) = torch.autograd.grad(out.sum() + back.sum(), z)
    assert torch.isfinite(gradient).all()


# -- conditional transforms ----------------------------------------------------
@pytest.mark.parametrize("batch", [(), (1,), (4,), (3, 1), (3, 4), (3, 1, 1), (2, 3, 4)])
@every_conditional
def test_contexts_broadcast_as_a_loop_over_them(name, batch):
    """Values of batch (4,); contexts alone, equal, and enumerated, as Pyro hands them in."""
    case = CONDITIONAL_TRANSFORMS[name]
    layer, x = build(case, F64), data(case, (4,), F64)
    (c,) = context(case, batch, F64)
    out = torch.broadcast_shapes(batch, (4,))
    z, ladj = layer.inverse_and_ladj(x, c)
    assert z.shape == out + case.base_shape
    assert ladj.shape == out
    again, back = layer.call_and_ladj(z, c)
    assert again.shape == out + case.event_shape
    wide_x, wide_c = x.expand(out + case.event_shape), c.expand(out + c.shape[-1:])
    assert relative(again, wide_x) < 1e-9
    assert relative(back, -ladj) < 1e-9
    for index in torch.cartesian_prod(*map(torch.arange, out)).reshape(-1, len(out)).tolist():
        i = tuple(index)
        one, one_ladj = layer.inverse_and_ladj(wide_x[i], wide_c[i])
        assert relative(one, z[i]) < 1e-10
        assert relative(one_ladj, ladj[i]) < 1e-10


@every_conditional
def test_forward_contexts_broadcast_over_latents(name):
    case = CONDITIONAL_TRANSFORMS[name]
    layer, z = build(case, F64), torch.randn((4,) + case.base_shape, dtype=F64)
    (c,) = context(case, (3, 1), F64)
    x, ladj = layer.call_and_ladj(z, c)
    assert x.shape == (3, 4) + case.event_shape
    for k in range(3):
        one, one_ladj = layer.condition(c[k, 0]).call_and_ladj(z)
        assert relative(one, x[k]) < 1e-10
        assert relative(one_ladj, ladj[k]) < 1e-10


@every_conditional
def test_context_matters(name):
    case = CONDITIONAL_TRANSFORMS[name]
    layer, x = build(case, F64), data(case, (4,), F64)
    (c,) = context(case, (2, 1), F64)
    z, _ = layer.inverse_and_ladj(x, c)
    assert (z[0] - z[1]).abs().max() > 1e-4


@every_conditional
def test_context_gets_a_gradient(name):
    case = CONDITIONAL_TRANSFORMS[name]
    layer, x = build(case, F64), data(case, (4,), F64)
    c = context(case, (4,), F64)[0].requires_grad_()
    z, ladj = layer.inverse_and_ladj(x, c)
    (gradient,) = torch.autograd.grad(z.square().sum() + ladj.sum(), c)
    assert gradient.abs().sum() > 0


@every_conditional
def test_pyro_takes_it_for_a_conditional_transform_module(name):
    case = CONDITIONAL_TRANSFORMS[name]
    layer, x = build(case, F64), data(case, (4,), F64)
    (c,) = context(case, (4,), F64)
    assert isinstance(layer, ConditionalTransformModule)
    base = dist.Normal(torch.zeros((4,) + case.base_shape, dtype=F64), 1.0).to_event(len(case.base_shape))
    flow = ConditionalTransformedDistribution(base, [layer]).condition(c)
    z, ladj = layer.inverse_and_ladj(x, c)
    assert flow.batch_shape == (4,)
    assert relative(flow.log_prob(x), base.log_prob(z) + ladj) < 1e-9


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in CONDITIONAL_TRANSFORMS.items()
        if case.event_shape == (4,) and not case.unit_interval
    ],
)
def test_pyros_own_conditional_compose_takes_it(name):
    case = CONDITIONAL_TRANSFORMS[name]
    layers = [build(case, F64), build(TRANSFORMS["actnorm-vector"], F64)]
    x, (c,) = data(case, (3,), F64), context(case, (), F64)
    chain = ConditionalComposeTransformModule(layers).condition(c)
    expected = layers[0].inverse_and_ladj(layers[1].inverse_and_ladj(x)[0], c)[0]
    assert relative(chain.inv(x), expected) < 1e-10
    assert len(list(ConditionalComposeTransformModule(layers).parameters())) == sum(
        len(list(layer.parameters())) for layer in layers
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_is_a_pyro_transform_module(name):
    layer = TRANSFORMS[name].build()
    assert isinstance(layer, TransformModule)
    assert layer.with_cache(1) is layer


# -- shapes at random ----------------------------------------------------------
batches = st.lists(st.integers(1, 3), max_size=3).map(tuple)


def check(layer, x, *contexts):
    z, ladj = layer.inverse_and_ladj(x, *contexts)
    again, back = layer.call_and_ladj(z, *contexts)
    assert ladj.shape == x.shape[: x.dim() - len(layer.event_shape)]
    assert relative(again, x) < 1e-9
    assert relative(back, -ladj) < 1e-9


@given(dim=st.integers(2, 9), split=st.integers(1, 8), flip=st.booleans(), batch=batches)
def test_vector_couplings_of_any_size(dim, split, flip, batch):
    split = min(split, dim - 1)
    net = torch.nn.Linear(split, 2 * (dim - split))
    layer = T.AffineCoupling((dim,), net, flip=flip, split=split).double()
    check(layer, torch.randn((*batch, dim), dtype=F64))


@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    batch=batches,
    order=st.sampled_from(["space-major", "channel-major"]),
)
def test_squeeze_of_any_size(channels, height, width, batch, order):
    layer = T.Squeeze((channels, 2 * height, 2 * width), order)
    check(layer, torch.randn((*batch, channels, 2 * height, 2 * width), dtype=F64))


@given(channels=st.integers(1, 6), sides=st.tuples(st.integers(1, 4), st.integers(1, 4)), batch=batches)
def test_convolution_of_any_size(channels, sides, batch):
    for kind in ("lu", "plain"):
        layer = T.InvertibleConv1x1((channels, *sides), kind).double()
        check(layer, torch.randn((*batch, channels, *sides), dtype=F64))


@given(
    dim=st.integers(2, 6),
    value=st.lists(st.integers(1, 3), max_size=2),
    extra=st.integers(0, 2),
    data=st.data(),
)
def test_conditional_coupling_under_any_broadcast(dim, value, extra, data):
    """Contexts with more, fewer or 1-sized batch dimensions than the value."""
    shape = [data.draw(st.sampled_from([1, n])) for n in value][data.draw(st.integers(0, len(value))) :]
    if extra:
        shape = [2] * extra + [1] * (len(value) - len(shape)) + shape
    net = perturb(mlp(1, 2 * (dim - 1), 2))
    layer = T.ConditionalAffineCoupling((dim,), net, context_dim=2, split=1).double()
    x, c = torch.randn((*value, dim), dtype=F64), torch.randn((*shape, 2), dtype=F64)
    out = torch.broadcast_shapes(tuple(value), tuple(shape))
    z, ladj = layer.inverse_and_ladj(x, c)
    assert z.shape == (*out, dim)
    assert ladj.shape == out
    wide = layer.inverse_and_ladj(x.expand((*out, dim)), c.expand((*out, 2)))
    assert relative(z, wide[0]) < 1e-10
    assert relative(ladj, wide[1]) < 1e-10
