"""Properties of single layers besides being bijections: conventions, orders, initial values."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CONDITIONAL_TRANSFORMS, CONTEXT, TRANSFORMS, conv_net, mlp
from helpers import build, context, data, perturb, relative
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pyro_scnf as scnf
from pyro_scnf import nn as snn
from pyro_scnf import transforms as T
from pyro_scnf.transforms.actnorm import channel_statistics

F64 = torch.float64


# -- actnorm and initialisation ------------------------------------------------
def test_actnorm_is_the_identity_until_initialised():
    layer, x = T.ActNorm((2, 3, 3)), 5 + 2 * torch.randn(7, 2, 3, 3)
    z, ladj = layer.inverse_and_ladj(x)
    assert torch.equal(z, x)
    assert torch.equal(ladj, torch.zeros(7))
    layer.initialize(x)
    z, ladj = layer.inverse_and_ladj(x)
    assert relative(z.mean((0, 2, 3)), torch.zeros(2)) < 1e-6
    assert relative(z.transpose(0, 1).flatten(1).std(1), torch.ones(2)) < 1e-5
    spread = x.transpose(0, 1).flatten(1).std(1)
    assert relative(ladj, (-9 * spread.log().sum()).expand(7)) < 1e-4


class Recorder:
    """Records the output of every normalisation layer of a module, from data to latent."""

    def __init__(self, module: nn.Module) -> None:
        self.seen: list[tuple[torch.Tensor, int]] = []
        for layer in module.modules():
            if isinstance(layer, T.ActNorm):
                self._watch(layer)
            elif isinstance(layer, snn.ChannelNorm):
                layer.register_forward_hook(lambda norm, _, out: self.seen.append((out, norm.event_dim)))

    def _watch(self, layer: T.ActNorm) -> None:
        original = layer._inverse_ladj

        def watched(x: torch.Tensor, *contexts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out = original(x, *contexts)
            self.seen.append((out[0], len(layer.event_shape)))
            return out

        object.__setattr__(layer, "_inverse_ladj", watched)

    def check(self) -> None:
        assert self.seen
        for value, event_dim in self.seen:
            mean, std = channel_statistics(value, event_dim)
            dead = std < 1e-3  # a constant channel has no spread to normalise
            assert mean.abs().max() < 1e-6
            assert relative(std[~dead], torch.ones_like(std[~dead])) < 1e-3


def normalising(table):
    kinds = (T.ActNorm, snn.ChannelNorm)
    return [name for name, case in table.items() if any(isinstance(m, kinds) for m in case.build().modules())]


@pytest.mark.parametrize("name", normalising(TRANSFORMS))
def test_initialize_normalises_every_actnorm_and_channel_norm(name):
    case = TRANSFORMS[name]
    layer, x = build(case, F64), data(case, (40,), F64)
    z = layer.initialize(x)
    recorder = Recorder(layer)
    again, _ = layer.inverse_and_ladj(x)
    assert torch.equal(again, z)
    recorder.check()


@pytest.mark.parametrize("name", normalising(CONDITIONAL_TRANSFORMS))
def test_initialize_of_conditional_layers(name):
    case = CONDITIONAL_TRANSFORMS[name]
    layer, x, c = build(case, F64), data(case, (40,), F64), *context(case, (40,), F64)
    z = layer.initialize(x, c)
    recorder = Recorder(layer)
    again, _ = layer.inverse_and_ladj(x, c)
    assert torch.equal(again, z)
    recorder.check()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_initialize_needs_no_gradient_and_keeps_it_a_bijection(name):
    case = TRANSFORMS[name]
    layer, x = build(case, F64), data(case, (20,), F64)
    z = layer.initialize(x)
    assert not z.requires_grad
    assert relative(layer(z), x) < 1e-9
    assert all(p.requires_grad for p in layer.parameters())


def test_initialize_survives_a_constant_channel():
    layer, x = T.ActNorm((2,)), torch.randn(10, 2)
    x[:, 1] = 3.0
    z = layer.initialize(x)
    assert torch.isfinite(z).all()
    assert torch.isfinite(layer.inverse_and_ladj(x)[1]).all()


# -- 1x1 convolution -----------------------------------------------------------
@pytest.mark.parametrize("kind", ["lu", "plain"])
@pytest.mark.parametrize("init", ["orthogonal", "identity"])
def test_convolution_is_a_dense_matrix_on_channels(kind, init):
    layer = perturb(T.InvertibleConv1x1((3, 2, 4), kind, init)).double()
    eye = torch.eye(3, dtype=F64)[:, :, None, None].expand(3, 3, 2, 4)
    weight = layer.inverse_and_ladj(eye)[0][:, :, 0, 0].T  # the images of the unit vectors
    x = torch.randn(5, 3, 2, 4, dtype=F64)
    z, ladj = layer.inverse_and_ladj(x)
    assert relative(z, torch.einsum("ij,bjhw->bihw", weight, x)) < 1e-12
    assert relative(ladj, (8 * torch.linalg.slogdet(weight)[1]).expand(5)) < 1e-12
    if kind == "plain":
        assert torch.equal(weight, layer.weight)


@pytest.mark.parametrize("kind", ["lu", "plain"])
def test_convolution_starts_as_asked(kind):
    x = torch.randn(4, 3, 2, 2)
    z, ladj = T.InvertibleConv1x1((3, 2, 2), kind, "identity").inverse_and_ladj(x)
    assert torch.equal(z, x)
    assert ladj.abs().max() == 0
    z, ladj = T.InvertibleConv1x1((3, 2, 2), kind, "orthogonal").inverse_and_ladj(x)
    assert relative(z.norm(dim=1), x.norm(dim=1)) < 1e-5
    assert ladj.abs().max() < 1e-5


def test_lu_and_plain_agree_and_the_determinant_is_taken_in_double():
    torch.manual_seed(3)
    lu = perturb(T.InvertibleConv1x1((6,), "lu"))
    plain = T.InvertibleConv1x1((6,), "plain")
    with torch.no_grad():
        plain.weight.copy_(lu.inverse_and_ladj(torch.eye(6))[0].T)
    x = torch.randn(9, 6)
    assert relative(plain.inverse_and_ladj(x)[0], lu.inverse_and_ladj(x)[0]) < 1e-5
    assert relative(plain.inverse_and_ladj(x)[1], lu.inverse_and_ladj(x)[1]) < 1e-5
    exact = torch.linalg.slogdet(plain.weight.double())[1]
    assert float(plain.inverse_and_ladj(x)[1][0].detach()) == pytest.approx(float(exact.detach()), abs=1e-7)


def test_only_the_triangles_of_lu_are_read():
    layer, x = perturb(T.InvertibleConv1x1((4,), "lu")), torch.randn(3, 4)
    before = layer.inverse_and_ladj(x)[0]
    with torch.no_grad():
        layer.lower.add_(torch.ones(4, 4).triu())
        layer.upper.add_(torch.ones(4, 4).tril())
    assert torch.equal(layer.inverse_and_ladj(x)[0], before)


# -- couplings -----------------------------------------------------------------
class Constant(nn.Module):
    """A conditioner with a constant output. It remembers its last input."""

    def __init__(self, *value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.value.reshape((-1,) + (1,) * (x.dim() - 2)).expand((len(x), -1) + x.shape[2:])


@pytest.mark.parametrize(
    ("scale", "log_scale"),
    [
        ("sigmoid", lambda raw: math.log(1 / (1 + math.exp(-raw - 2)))),
        ("tanh", math.tanh),
        ("clamp", lambda raw: 3 * math.tanh(raw / 3)),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_coupling_shifts_then_scales_the_other_half(scale, log_scale, flip):
    layer = T.AffineCoupling((2,), Constant(0.7, -1.5), scale=scale, flip=flip)
    x = torch.randn(6, 2)
    z, ladj = layer.inverse_and_ladj(x)
    changed, fixed = (0, 1) if flip else (1, 0)
    assert torch.equal(layer.net.seen, x[:, [fixed]])
    assert torch.equal(z[:, fixed], x[:, fixed])
    assert torch.allclose(z[:, changed], (x[:, changed] - 1.5) * math.exp(log_scale(0.7)))
    assert torch.allclose(ladj, torch.tensor(log_scale(0.7)))


@pytest.mark.parametrize("scale", ["sigmoid", "tanh", "clamp"])
def test_scales_are_bounded(scale):
    function = T.scale.make_scale(scale, 1, 1)
    raw = torch.linspace(-1e4, 1e4, 101)[:, None]
    bound = {"sigmoid": 0.0, "tanh": 1.0, "clamp": 3.0}[scale]
    out = function(raw)
    assert torch.isfinite(out).all()
    assert out.max() <= bound
    assert (out[1:] >= out[:-1]).all()
    if scale != "sigmoid":
        assert out.min() >= -bound


def test_the_gain_of_tanh_is_learnt_per_channel():
    layer = T.AffineCoupling((3, 2, 2), conv_net(1, 4), scale="tanh", split=1)
    assert layer.scale.gain.shape == (2, 1, 1)
    masked = T.MaskedAffineCoupling((3, 2, 2), conv_net(3, 6), scale="tanh")
    assert masked.scale.gain.shape == (3, 1, 1)


def test_a_new_coupling_shrinks_by_a_constant_only():
    """The last layer of a conditioner starts at zero, so scale and shift do not depend on the input."""
    x = torch.randn(5, 4)
    for scale, factor in (("sigmoid", torch.sigmoid(torch.tensor(2.0))), ("tanh", 1.0), ("clamp", 1.0)):
        layer = T.AffineCoupling((4,), mlp(2, 4), scale=scale)
        assert torch.allclose(layer.inverse_and_ladj(x)[0][:, 2:], x[:, 2:] * factor)


def test_checkerboard_pattern():
    mask = T.checkerboard_mask((2, 3, 3))
    assert torch.equal(mask, torch.tensor([[[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]]))
    assert torch.equal(T.checkerboard_mask((2, 3, 3), invert=True), 1 - mask)
    assert torch.equal(T.checkerboard_mask((4,)), torch.tensor([0.0, 1, 0, 1]))
    assert T.checkerboard_mask((1, 7, 7)).sum() == 24


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_masked_coupling_leaves_the_mask_alone_and_does_not_look_at_the_rest(shape, invert):
    make = mlp if len(shape) == 1 else conv_net
    layer = perturb(T.MaskedAffineCoupling(shape, make(shape[0], 2 * shape[0]), invert=invert))
    mask = T.checkerboard_mask(shape, invert).expand(shape)
    x = torch.randn(4, *shape)
    z, ladj = layer.inverse_and_ladj(x)
    assert torch.equal(z[:, mask == 1], x[:, mask == 1])
    assert (z[:, mask == 0] != x[:, mask == 0]).all()
    moved = layer.inverse_and_ladj(x + (1 - mask) * torch.randn_like(x))
    assert torch.equal(moved[1], ladj)


def test_masks_of_other_dtypes():
    x = torch.randn(3, 4)
    reference = perturb(T.MaskedAffineCoupling((4,), mlp(4, 8), mask=torch.tensor([1.0, 0, 0, 1])))
    for mask in (torch.tensor([1, 0, 0, 1]), torch.tensor([True, False, False, True])):
        layer = T.MaskedAffineCoupling((4,), mlp(4, 8), mask=mask)
        layer.load_state_dict(reference.state_dict())
        assert torch.equal(layer.inverse_and_ladj(x)[0], reference.inverse_and_ladj(x)[0])
        inverted = T.MaskedAffineCoupling((4,), mlp(4, 8), mask=mask, invert=True)
        assert torch.equal(inverted.mask, torch.tensor([0.0, 1, 1, 0]))


def test_double_coupling_changes_both_halves_the_second_given_the_first():
    build = scnf.flows.builder.CouplingBuilder(6, 1, "sigmoid")
    first, second = build.double(torch.Size((4,)))[::-1]  # in the order from data to latent
    assert (first.flip, second.flip) == (True, False)
    odd = build.double(torch.Size((5,)))
    assert {layer.split for layer in odd} == {2, 3}


# -- conditioners --------------------------------------------------------------
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (snn.MLP(2, 6, (5, 4), context_dim=CONTEXT), (2,)),
        (snn.ResidualMLP(2, 6, 5, 2, "blocks", CONTEXT), (2,)),
        (snn.ConvNet(2, 6, 5, CONTEXT), (2, 3, 4)),
        (snn.ResidualConvNet(2, 6, 5, 2, "final", CONTEXT), (2, 3, 4)),
        (snn.ResidualConvNet(2, 6, 5, 1, "none", CONTEXT, kernel_size=1), (2, 1, 1)),
        (snn.SkipConvNet(2, 6, 5, 2, CONTEXT), (2, 3, 4)),
        (snn.SkipConvNet(2, 6, 5, 0, CONTEXT, kernel_size=1), (2, 1, 1)),
        (snn.PooledConvNet(2, 6, 5, 2, CONTEXT), (2, 3, 4)),
        (snn.PooledConvNet(2, 6, 5, 0, CONTEXT, kernel_size=1), (2, 1, 1)),
    ],
)
class TestConditioners:
    def test_starts_at_zero(self, net, shape):
        out = type(net).forward(net, torch.randn(3, *shape), torch.randn(4, 1, CONTEXT))
        assert out.shape == (4, 3, 6, *shape[1:])
        fresh_zero = [p for name, p in net.named_parameters() if name.startswith("last.")]
        assert all((p == 0).all() for p in fresh_zero)
        assert (out == 0).all()

    def test_what_does_not_see_the_context_is_computed_once(self, net, shape):
        rows = {"first": [], "last": []}
        hooks = [
            getattr(net, name).register_forward_hook(
                lambda m, args, out, name=name: rows[name].append(len(out))
            )
            for name in rows
        ]
        net(torch.randn(7, *shape), torch.randn(10, 1, CONTEXT))
        for hook in hooks:
            hook.remove()
        assert rows == {"first": [7], "last": [70]}

    def test_the_context_is_as_if_concatenated(self, net, shape):
        """``first(x) + V c`` is a first layer on ``x`` with ``c`` appended as constant channels."""
        x, c = torch.randn(3, *shape), torch.randn(3, CONTEXT)
        first = net.first
        if isinstance(net, snn.SkipConvNet):  # the context joins the input of the convolution
            *before, first = net.first
            seen = nn.Sequential(*before)(x)
        else:
            seen = x
        wide = torch.cat([seen, c.reshape(c.shape + (1,) * (x.dim() - 2)).expand(-1, -1, *shape[1:])], 1)
        if x.dim() == 2:
            joint = nn.functional.linear(wide, torch.cat([first.weight, net.context.weight], 1), first.bias)
        else:
            # A constant channel stays constant when padded by reflection, so its whole weight may sit in the
            # centre of the kernel.
            side = first.kernel_size[0]
            kernel = torch.zeros(net.context.weight.shape + (side, side))
            kernel[:, :, side // 2, side // 2] = net.context.weight.detach()
            pad = nn.functional.pad(wide, (side // 2,) * 4, mode="reflect")
            joint = nn.functional.conv2d(pad, torch.cat([first.weight, kernel], 1), first.bias)
        expected = net.last(net.body(joint))
        with torch.no_grad():
            saved = net.last.weight.clone()
            net.last.weight.normal_()
            assert relative(net(x, c), net.last(net.body(joint))) < 1e-5
            net.last.weight.copy_(saved)
        assert (expected == 0).all()


def test_norms_of_a_residual_net_are_really_attached():
    counts = {
        norm: sum(isinstance(m, snn.ChannelNorm) for m in snn.ResidualMLP(2, 2, 4, 3, norm).modules())
        for norm in ("none", "final", "blocks")
    }
    assert counts == {"none": 0, "final": 1, "blocks": 7}


# -- rearrangements ------------------------------------------------------------
def test_squeeze_orders():
    """Channel c of pixel (2i + dy, 2j + dx) goes to the channel that the documentation states."""
    x = torch.arange(3 * 4 * 2, dtype=F64).reshape(3, 4, 2)
    for order, index in (
        ("space-major", lambda c, dy, dx: (2 * dy + dx) * 3 + c),
        ("channel-major", lambda c, dy, dx: 4 * c + 2 * dy + dx),
    ):
        z = T.Squeeze((3, 4, 2), order).inverse_and_ladj(x)[0]
        for c in range(3):
            for i in range(2):
                for dy in range(2):
                    for dx in range(2):
                        assert z[index(c, dy, dx), i, 0] == x[c, 2 * i + dy, dx]


def test_space_major_puts_the_top_row_of_each_block_first():
    x = torch.tensor([[[1.0, 2], [3, 4]]])
    assert T.Squeeze((1, 2, 2)).inv(x).flatten().tolist() == [1, 2, 3, 4]
    two = torch.cat([x, 10 * x])
    assert T.Squeeze((2, 2, 2), "space-major").inv(two).flatten().tolist() == [1, 10, 2, 20, 3, 30, 4, 40]
    assert T.Squeeze((2, 2, 2), "channel-major").inv(two).flatten().tolist() == [1, 2, 3, 4, 10, 20, 30, 40]


def test_permute_flip_and_flatten():
    x = torch.randn(2, 3, 1, 2)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(T.Permute((3, 1, 2), order).inv(x), x[:, order])
    assert torch.equal(T.Flip((3, 1, 2)).inv(x), x.flip(1))
    assert torch.equal(T.Flatten((3, 1, 2)).inv(x), x.flatten(1))


def test_a_random_permutation_is_restored_with_its_inverse():
    torch.manual_seed(0)
    one, other = T.Permute((8,)), T.Permute((8,))
    assert not torch.equal(one.permutation, other.permutation)
    other.load_state_dict(one.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(other.inv(x), one.inv(x))
    assert torch.equal(other(one.inv(x)), x)


# -- factoring out -------------------------------------------------------------
@given(st.integers(2, 1000))
def test_kept_channels_is_the_lower_half_made_even(channels):
    kept = T.kept_channels(channels)
    assert 1 <= kept <= channels // 2
    assert kept % 2 == 0 or channels in (2, 3)
    assert channels // 2 - kept <= 1


def test_factor_out_sends_the_first_channels_out_and_keeps_the_deepest_last():
    stages = [
        T.Flatten((2, 1, 2)),
        T.Permute((4, 1, 2), torch.arange(4)),
        T.Permute((8, 1, 2), torch.arange(8)),
    ]
    # Of (8, 1, 2) 4 channels are kept, of (4, 1, 2) 2.
    flow = T.MultiScale(stages)
    x = torch.arange(16.0).reshape(8, 1, 2)
    assert torch.equal(flow.inv(x), x.flatten())
    assert flow.latent_shape == (4,)
    assert flow.aux_dim == 12
    mixed = T.MultiScale([T.Flip((4, 1, 2)), T.Flip((8, 1, 2))])
    z = mixed.inv(x).reshape(8, 1, 2)
    assert z[:4].flatten(1)[:, 0].tolist() == [14, 12, 10, 8]  # sent out: the first channels after the flip
    assert z[4:].flatten(1)[:, 0].tolist() == [0, 2, 4, 6]  # kept, and flipped once more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0, "factor_out": False}, "steps=0: no level has a step of flow"),
        ({"steps": (0, 0), "factor_out": False}, r"steps=\(0, 0\): no level has a step of flow"),
        ({"steps": (0, 1)}, "steps=0: expected at least 1"),
    ],
)
def test_a_glow_has_a_step_of_flow(options, message):
    with pytest.raises(ValueError, match=message):
        scnf.flows.glow((1, 8, 8), levels=2, width=4, **options)


@pytest.mark.parametrize(
    ("latent_dim", "shape"),
    [(None, (8, 1, 1)), (8, (8, 1, 1)), (5, (5, 1, 1)), (12, (12,)), (16, (16,)), (1, (1, 1, 1))],
)
def test_latent_shape_of_one_pixel(latent_dim, shape):
    flow = scnf.flows.glow((1, 4, 4), levels=2, steps=1, width=4, blocks=1, latent_dim=latent_dim)
    assert flow.latent_shape == shape
    assert flow.aux_dim == 16 - math.prod(shape)


@pytest.mark.parametrize(
    ("latent_dim", "shape"), [(None, (2, 2, 2)), (8, (2, 2, 2)), (4, (1, 2, 2)), (5, (5,)), (12, (12,))]
)
def test_latent_shape_is_an_image_of_whole_channels_where_it_can(latent_dim, shape):
    flow = T.MultiScale([T.ActNorm((2, 2, 2)), T.Squeeze((1, 4, 4))], latent_dim)
    assert flow.latent_shape == shape
    assert T.Compose([flow, T.Flip((1, 4, 4))]).latent_shape == shape


def test_chains_run_every_layer_once_per_pass():
    layers = [T.ActNorm((4,)) for _ in range(6)]
    runs = []
    for layer in layers:
        original = layer._inverse_ladj
        object.__setattr__(
            layer,
            "_inverse_ladj",
            lambda x, original=original, layer=layer: runs.append(layer) or original(x),
        )
    chain = T.Compose([T.Compose(layers[:3]), T.Compose(layers[3:])])
    chain.inverse_and_ladj(torch.randn(2, 4))
    assert [id(layer) for layer in runs] == [id(layer) for layer in reversed(layers)]


# -- the logit, dequantisation, bits per dimension -----------------------------
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05, 0.5])
def test_logit_is_its_formula(alpha):
    x = torch.rand(20, 3, dtype=F64)
    z, ladj = T.Logit((3,), alpha).inverse_and_ladj(x)
    p = (1 - alpha) * x + alpha / 2
    assert relative(z, torch.logit(p)) < 1e-12
    assert relative(ladj, (-p.log() - (1 - p).log() + math.log(1 - alpha)).sum(-1)) < 1e-12


def test_logit_is_exact_at_both_ends_of_the_unit_interval():
    """With a contraction the latents of the pixels 0 and 1 are finite."""
    x = torch.tensor([[0.0, 1.0, 0.5]])
    layer = T.Logit((3,), 0.05)
    z = layer.inv(x)
    assert torch.isfinite(z).all()
    assert torch.allclose(layer(z), x, atol=1e-6)


@given(bins=st.integers(2, 300), seed=st.integers(0, 1000))
def test_quantize_undoes_dequantize(bins, seed):
    torch.manual_seed(seed)
    x = torch.randint(bins, (50,))
    u = scnf.transforms.dequantize(x, bins)
    assert (u >= 0).all()
    assert (u < 1).all()
    assert torch.equal(scnf.transforms.quantize(u, bins), x)


def test_dequantised_values_stay_below_one_however_they_round():
    """In float32, ``2**20 - 1 + u`` is often rounded up to ``2**20``."""
    x = torch.full((5000,), 2**20 - 1)
    u = scnf.transforms.dequantize(x, 2**20)
    assert (u < 1).all()
    assert torch.equal(scnf.transforms.quantize(u, 2**20), x)
    assert scnf.transforms.dequantize(torch.full((3,), 255.0).half()).dtype == torch.half


def test_dequantisation_is_uniform_within_a_bin_and_follows_its_generator():
    x = torch.full((4000,), 3)
    u = scnf.transforms.dequantize(x, 8, torch.Generator().manual_seed(0)) * 8 - 3
    grid = torch.linspace(0, 1, 4000)
    assert (u.sort().values - grid).abs().max() < 1.63 / math.sqrt(4000)  # Kolmogorov–Smirnov, 1 %
    again = scnf.transforms.dequantize(x, 8, torch.Generator().manual_seed(0)) * 8 - 3
    assert torch.equal(u, again)
    assert scnf.transforms.dequantize(x.double()).dtype == F64
    assert scnf.transforms.dequantize(x.byte()).dtype == torch.float32


def test_bits_per_dim():
    shape = (1, 28, 28)
    assert scnf.bits_per_dim(torch.zeros(3), shape).tolist() == [8.0, 8.0, 8.0]
    assert scnf.bits_per_dim(torch.zeros(()), (2, 4, 4), bins=16) == 4
    # One nat more per dimension is 1 / ln 2 bits less.
    assert scnf.bits_per_dim(torch.tensor(784.0), shape) == pytest.approx(8 - 1 / math.log(2))


def test_bits_per_dim_of_a_uniform_density_through_a_logit():
    """A logistic base under the logit is the uniform density only if the Jacobian of the logit counts."""
    layer = T.Logit((1, 2, 2), alpha=0.0)
    x = scnf.transforms.dequantize(torch.randint(256, (6, 1, 2, 2))).double().clamp(1e-6, 1 - 1e-6)
    z, ladj = layer.inverse_and_ladj(x)
    logistic = (-z - 2 * nn.functional.softplus(-z)).flatten(1).sum(-1)
    assert relative(scnf.bits_per_dim(logistic + ladj, (1, 2, 2)), torch.full((6,), 8.0, dtype=F64)) < 1e-9


# -- ready-made flows ----------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 8, 8), 3), ((3, 32, 32), 3), ((1, 4, 6), 1), ((5,), 1), ((1, 3, 3), 0)]
)
def test_default_levels_of_glow(shape, levels):
    if levels == 0:
        with pytest.raises(ValueError, match="even H and W"):
            scnf.flows.glow(shape, steps=1, width=4, blocks=1)
        return
    flow = scnf.flows.glow(shape, steps=1, width=4, blocks=1)
    assert sum(isinstance(m, T.Squeeze) for m in flow.modules()) == (levels if len(shape) == 3 else 0)
    assert len(flow.stages) == levels


@pytest.mark.parametrize(
    ("coupling", "flips"), [("alternate", [False, True, False]), ("double", 3 * [True, False])]
)
def test_couplings_of_glow(coupling, flips):
    """From data to latent, the halves take turns, or both change in every step."""
    flow = scnf.flows.glow((4,), steps=3, width=4, blocks=1, coupling=coupling)
    layers = [m for m in flow.modules() if isinstance(m, T.AffineCoupling)][::-1]
    assert [layer.flip for layer in layers] == flips


def test_couplings_of_realnvp_alternate():
    flow = scnf.flows.realnvp((4,), couplings=4, width=4, blocks=1)
    layers = [m for m in flow.modules() if isinstance(m, T.AffineCoupling)][::-1]
    assert [layer.flip for layer in layers] == [False, True, False, True]
    image = scnf.flows.realnvp((1, 4, 4), levels=2, width=4, blocks=1)
    masks = [m for m in image.modules() if isinstance(m, T.MaskedAffineCoupling)][::-1]
    assert [int(m.mask[0, 0, 0]) for m in masks] == [0, 1, 0, 0, 1, 0, 1]
    halves = [m for m in image.modules() if isinstance(m, T.AffineCoupling)][::-1]
    assert [m.flip for m in halves] == [False, True, False]  # the channels that go on change twice


def test_flows_take_the_users_own_conditioners():
    asked = []

    def net(inputs: int, outputs: int, context_dim: int = 0) -> nn.Module:
        asked.append((inputs, outputs, context_dim))
        return mlp(inputs, outputs, context_dim)

    scnf.flows.realnvp((5,), couplings=2, net=net)
    scnf.flows.glow((4,), steps=1, net=net, context_dim=3)
    assert asked[:2] == [(2, 6, 0), (3, 4, 0)]
    assert {context_dim for _, _, context_dim in asked[2:]} == {3}


def test_sampling_and_scoring_run_under_autocast_in_full_precision():
    flow = perturb(scnf.flows.glow((1, 4, 4), levels=1, steps=2, width=8, blocks=1))
    x = torch.randn(6, 1, 4, 4)
    exact, ladj = flow.inverse_and_ladj(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, low = flow.inverse_and_ladj(x)
        again, _ = flow.call_and_ladj(z)
    assert z.dtype == low.dtype == again.dtype == torch.float32
    assert relative(low, ladj) < 0.05
    assert relative(z, exact) < 0.05


def test_steps_for_each_level_of_a_glow():
    flow = scnf.flows.glow((1, 8, 8), levels=2, steps=(1, 3), width=4, blocks=1)
    assert [sum(isinstance(m, T.ActNorm) for m in stage.layers) for stage in flow.stages] == [3, 1]
    with pytest.raises(ValueError, match="steps: a list of 3 values for levels=2, expected one for each"):
        scnf.flows.glow((1, 8, 8), levels=2, steps=(1, 2, 3))
