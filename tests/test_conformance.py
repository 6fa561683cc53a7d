"""What holds for every transform: the checks of ``pyro_scnf.testing`` on the tables of ``cases.py``.

Below them, layers of sizes that Hypothesis picks.
"""

from __future__ import annotations

import torch
from cases import (
    CONDITIONAL_SOLVED_TRANSFORMS,
    CONDITIONAL_TRANSFORMS,
    SOLVED_TRANSFORMS,
    TRANSFORMS,
    mlp,
)
from helpers import each, perturb, relative
from hypothesis import given
from hypothesis import strategies as st

from pyro_scnf import transforms as T
from pyro_scnf.testing import TRANSFORM_CHECKS

CONDITIONAL = {**CONDITIONAL_TRANSFORMS, **CONDITIONAL_SOLVED_TRANSFORMS}
CASES = {**TRANSFORMS, **SOLVED_TRANSFORMS, **{f"conditional-{k}": v for k, v in CONDITIONAL.items()}}
F64 = torch.float64


@each(TRANSFORM_CHECKS, CASES)
def test_conformance(name, check):
    TRANSFORM_CHECKS[check](CASES[name])


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
