"""FlowGMM's flow, networks and presets, against its released code as counted and described."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import perturb, relative
from torch import Tensor, nn
from torch.nn import functional as F

import pyro_scnf as scnf
from pyro_scnf import flows, presets
from pyro_scnf import nn as snn
from pyro_scnf import transforms as T
from pyro_scnf.datasets import toy
from pyro_scnf.nn.residual import ResidualBlock

F64 = torch.float64


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- sizes -----------------------------------------------------------------------------------------
def size_in_the_code(flow: nn.Module) -> int:
    """How many parameters the released code has for the same image flow.

    Weight norm gives every output channel of a convolution, and every gain of a scale function, a norm of its
    own. The first convolution of a residual block has no bias.
    """
    modules = list(flow.modules())
    convs = [m for m in modules if isinstance(m, nn.Conv2d)]
    gains = [m.gain for m in modules if isinstance(m, T.scale.TanhScale)]
    first = [m.body[2] for m in modules if isinstance(m, ResidualBlock)]
    norms = sum(conv.out_channels for conv in convs) + sum(gain.numel() for gain in gains)
    return size(flow) + norms - sum(conv.bias.numel() for conv in first)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 19_552_008), ({"widths": (64, 64, 64), "blocks": 4}, 5_144_664)],
    ids=["RealNVP", "RealNVPMNIST"],
)
def test_parameters_of_the_image_flows(options, parameters):
    """They were counted in the released code."""
    flow = presets.flowgmm_mnist(**options)
    assert size_in_the_code(flow.transform) == parameters
    assert flow.aux is None  # the prior covers all latents
    assert flow.latent_shape == (784,)


def test_parameters_of_the_flow_of_colour_images():
    nets = [f"skip-conv:width={width},blocks=8" for width in (64, 128)]
    assert size_in_the_code(flows.realnvp((3, 32, 32), net=nets, logit=0.1)) == 19_631_640


def vector_size_in_the_code(flow: nn.Module, columns: int, width: int) -> int:
    """The same for vectors. There, networks see all columns, with zeros, and have outputs for all of them.

    Each column has a gain, with a norm.
    """
    total = size(flow)
    for layer in flow.modules():
        if isinstance(layer, T.AffineCoupling):
            total += (columns - layer.split) * width + 2 * layer.split * (width + 1)
            total += 2 * columns - layer.changed
    return total


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        (presets.FLOWGMM_TOY_PAPER, 1_331_240),
        (presets.flowgmm_table(21), 822_600),
        (presets.flowgmm_table(50), 1_046_480),
    ],
    ids=["toy", "hepmass", "miniboone"],
)
def test_parameters_of_the_vector_flows(preset, parameters):
    flow = preset.flow("gmm", 2).transform
    assert vector_size_in_the_code(flow, preset.flow.columns, preset.flow.width) == parameters


def test_the_scale_functions_and_the_order_of_the_couplings():
    """Of a vector the trailing half changes first. Of an image the top-left pixel does."""
    flow = presets.flowgmm_table(5, couplings=3).flow("gmm", 2).transform
    layers = [m for m in flow.modules() if isinstance(m, T.AffineCoupling)][::-1]
    assert [(m.flip, m.split) for m in layers] == [(False, 2), (True, 3), (False, 2)]
    flow = presets.flowgmm_mnist(widths=(2, 3), blocks=0).transform
    scales = [m.scale for m in flow.modules() if hasattr(m, "scale")]
    assert {type(scale) for scale in scales} == {T.scale.TanhScale}
    assert len(scales) == 10
    nets = [m for m in flow.modules() if isinstance(m, snn.SkipConvNet)]
    assert [net.last.in_channels for net in nets] == 4 * [3] + 3 * [3] + 3 * [2]  # the deepest first


# -- the flow, written once more -------------------------------------------------------------------
def turned(x: Tensor) -> Tensor:
    """Images by half a turn, with their channels in reverse order."""
    return x.flip(-3, -2, -1)


class Reference:
    """FlowGMM's Real NVP, from its description, with the networks of a flow of this package.

    It keeps the leading channels at a factor-out. Its networks see turned images.
    """

    def __init__(self, flow: T.Compose) -> None:
        layers = [m for m in flow.modules() if isinstance(m, T.MaskedAffineCoupling | T.AffineCoupling)]
        self.layers = layers[::-1]  # from the data on
        self.ladj = torch.zeros(())

    def scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layers.pop(0)
        raw, shift = map(turned, layer.net(turned(x)).chunk(2, 1))
        return turned(layer.scale.gain) * torch.tanh(raw), shift

    def change(self, x: Tensor, log_scale: Tensor, shift: Tensor) -> Tensor:
        self.ladj = self.ladj + log_scale.flatten(1).sum(1)
        return (x + shift) * log_scale.exp()

    def checkerboard(self, x: Tensor, reverse: bool) -> Tensor:
        height, width = x.shape[-2:]
        kept = ((torch.arange(height)[:, None] + torch.arange(width)) % 2 == int(not reverse)).to(x)
        log_scale, shift = self.scale_and_shift(kept * x)
        return self.change(x, (1 - kept) * log_scale, (1 - kept) * shift)

    def channels(self, x: Tensor, reverse: bool) -> Tensor:
        first, second = x.chunk(2, 1)
        if reverse:
            return torch.cat([first, self.change(second, *self.scale_and_shift(first))], 1)
        return torch.cat([self.change(first, *self.scale_and_shift(second)), second], 1)

    def __call__(self, x: Tensor, levels: int) -> list[Tensor]:
        p = ((2 * x - 1) * 0.9 + 1) / 2
        x = (p / (1 - p)).log()
        self.ladj = (0.9 / (p * (1 - p))).log().flatten(1).sum(1)
        pieces = []
        for _ in range(levels - 1):
            for reverse in (False, True, False):
                x = self.checkerboard(x, reverse)
            x = F.pixel_unshuffle(x, 2)  # to channel 4c + 2dy + dx
            for reverse in (False, True, False):
                x = self.channels(x, reverse)
            x, out = x.chunk(2, 1)
            pieces.append(out)
        for reverse in (False, True, False, True):
            x = self.checkerboard(x, reverse)
        assert not self.layers
        return [*pieces, x]


@pytest.mark.parametrize(("shape", "levels"), [((1, 8, 8), 2), ((2, 8, 8), 3)])
def test_the_image_flow_is_that_of_flowgmm(shape, levels):
    """Up to a half turn of the images, which also puts the channels in reverse order."""
    torch.manual_seed(0)
    nets = [f"skip-conv:width={width},blocks=1" for width in (4, 3, 5)][:levels]
    flow = perturb(flows.realnvp(shape, levels=levels, net=nets, logit=0.1), 0.3).double()
    x = torch.rand(3, *shape, dtype=F64)
    z, ladj = flow.inverse_and_ladj(turned(x))
    reference = Reference(flow)
    pieces = reference(x, levels)
    assert relative(z, torch.cat([turned(piece).flatten(1) for piece in pieces], 1)) < 1e-12
    assert relative(ladj, reference.ladj) < 1e-12


def test_log_determinant_and_draws_of_the_image_flow():
    """The log-determinant is that of autograd, and the inverse undoes the contraction before the logit."""
    torch.manual_seed(0)
    nets = ["skip-conv:width=3,blocks=1", "skip-conv:width=4,blocks=1"]
    transform = perturb(flows.realnvp((1, 4, 4), net=nets, logit=0.1, latent_dim=16), 0.3)
    flow = scnf.SemiConditionalFlow(transform, "flowgmm", 3).double()
    x = torch.rand(1, 4, 4, dtype=F64)
    ladj = transform.inverse_and_ladj(x)[1]
    jacobian = torch.autograd.functional.jacobian(lambda v: transform.inverse_and_ladj(v)[0], x)
    assert relative(ladj, torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet) < 1e-10
    ends = torch.stack([torch.zeros(1, 4, 4, dtype=F64), torch.ones(1, 4, 4, dtype=F64)])
    assert relative(transform.call_and_ladj(transform.inverse_and_ladj(ends)[0])[0], ends) < 1e-10
    draws = flow.sample(torch.tensor([0, 1, 2]), sample_shape=(200,))
    margin = 0.05 / 0.9  # the support reaches that far beyond the unit interval
    assert draws.min() > -margin - 1e-12
    assert draws.max() < 1 + margin + 1e-12
    assert draws.min() < 0.0  # without that step it could not be


# -- the network of the images ---------------------------------------------------------------------
def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    margin = layer.kernel_size[0] // 2
    return F.conv2d(F.pad(x, (margin,) * 4, mode="reflect"), layer.weight, layer.bias)


def normed(norm: snn.ChannelNorm, x: Tensor) -> Tensor:
    return (x - norm.loc) / norm.log_scale.exp()


def test_the_network_adds_up_its_input_and_all_blocks():
    torch.manual_seed(0)
    net = perturb(snn.SkipConvNet(2, 6, width=5, blocks=2, context_dim=3), 0.3).double()
    x, context = torch.randn(4, 2, 5, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    norm, _, into = net.first
    signed = normed(norm, x)
    h = conv(into, torch.cat([signed, -signed], 1).relu()) + (context @ net.context.weight.T)[..., None, None]
    accumulator, last_norm, _ = net.body
    total = conv(accumulator.skips[0], h)
    for block, skip in zip(accumulator.blocks, list(accumulator.skips)[1:], strict=True):
        norm1, _, conv1, norm2, _, conv2 = block.body
        h = h + conv(conv2, normed(norm2, conv(conv1, normed(norm1, h).relu())).relu())
        total = total + conv(skip, h)
    expected = conv(net.last, normed(last_norm, total).relu())
    assert relative(net(x, context), expected) < 1e-12
    sides = [conv.kernel_size[0] for conv in (into, conv1, conv2, accumulator.skips[0], skip, net.last)]
    assert sides == [3, 3, 3, 1, 1, 1]


def test_all_norms_of_the_network_are_set_from_data():
    """Each sees the output of those before it, so what goes into the next layer is standardised."""
    torch.manual_seed(0)
    net = snn.SkipConvNet(2, 6, width=5, blocks=2)
    x = 3 + 2 * torch.randn(64, 2, 6, 6)
    net.initialize(x)
    norms = [m for m in net.modules() if isinstance(m, snn.ChannelNorm)]
    seen = []
    hooks = [norm.register_forward_hook(lambda m, args, out: seen.append(out)) for norm in norms]
    net(x)
    assert len(seen) == len(norms) == 2 + 2 * 2
    for out in seen:
        assert out.mean((0, 2, 3)).abs().max() < 1e-4
        assert (out.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-2
    for hook in hooks:
        hook.remove()


def test_rows_of_a_batch_do_not_depend_on_each_other():
    """They would with batch norm, whose state would also change."""
    net = perturb(snn.SkipConvNet(1, 2, width=4, blocks=1)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(6, 1, 4, 4)
    assert relative(net(x)[:2], net(x[:2])) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# -- dropout ---------------------------------------------------------------------------------------
def flow_with_dropout(dropout: float = 0.5, num_classes: int = 2) -> scnf.SemiConditionalFlow:
    torch.manual_seed(0)
    net = {"name": "mlp", "hidden": (8, 8), "dropout": dropout}
    transform = perturb(flows.realnvp((3,), couplings=3, net=net), 0.5)
    return scnf.SemiConditionalFlow(transform, "gmm", num_classes).double()


def test_where_dropout_is():
    """As in the released code: after the first of two hidden layers, and not after the last one."""
    kinds = [type(m) for m in snn.MLP(2, 4, hidden=(8, 8), dropout=0.5).body]
    assert kinds == [nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU]
    assert snn.MLP(2, 4, hidden=(8, 8, 8), dropout=0.25).body[4].p == 0.25
    assert not any(isinstance(m, nn.Dropout) for m in snn.MLP(2, 4, hidden=(8, 8)).modules())
    with pytest.raises(ValueError, match=r"dropout=0.5: it acts between hidden layers, and hidden=\(8,\) is"):
        snn.MLP(2, 4, hidden=(8,), dropout=0.5)


def test_dropout_does_nothing_in_evaluation_mode():
    flow, plain = flow_with_dropout(0.5).eval(), flow_with_dropout(0.0)
    plain.load_state_dict(
        dict(zip(plain.state_dict(), flow.state_dict().values(), strict=True))  # layers have other numbers
    )
    x = torch.randn(5, 3, dtype=F64)
    assert torch.equal(flow.log_prob(x), plain.log_prob(x))
    assert relative(flow.decode(*reversed(flow.encode(x)[:2])), x) < 1e-10


def test_in_training_the_log_determinant_belongs_to_the_mask_drawn():
    transform = flow_with_dropout().transform.train()
    x = torch.randn(3, dtype=F64)
    outcomes = []
    for seed in range(4):
        torch.manual_seed(seed)
        z, ladj = transform.inverse_and_ladj(x)

        def encoded(v: Tensor, seed: int = seed) -> Tensor:
            torch.manual_seed(seed)
            return transform.inverse_and_ladj(v)[0]

        jacobian = torch.autograd.functional.jacobian(encoded, x)
        assert relative(ladj, torch.linalg.slogdet(jacobian).logabsdet) < 1e-10
        outcomes.append(z.detach())
    assert len({tuple(z.tolist()) for z in outcomes}) == 4  # the masks differ


@pytest.mark.parametrize("guide", ["exact", "em"])
def test_one_mask_in_a_step(guide):
    """Model, guide and terms see one draw, because the loss encodes each data tensor once."""
    flow = flow_with_dropout().train()
    model = scnf.SemiSupervisedModel(flow)
    loss = scnf.elbo(model, scnf.make_guide(guide, model), ["classification", "consistency"])
    masks = []
    for layer in flow.modules():
        if isinstance(layer, nn.Dropout):
            layer.register_forward_hook(lambda m, args, out: masks.append(out))
    x, y, others = torch.randn(4, 3, dtype=F64), torch.tensor([0, 1, 0, 1]), torch.randn(6, 3, dtype=F64)
    torch.manual_seed(1)
    value = loss(x, y, others, view=others + 0.1)
    assert [len(mask) for mask in masks] == 3 * [16]  # one pass through three couplings, all rows in it
    # The same numbers, from one encoding by hand.
    torch.manual_seed(1)
    with torch.no_grad():
        z, ladj = flow.transform.inverse_and_ladj(torch.cat([x, others, others + 0.1]))
        table = flow.prior.class_log_prob(z) + ladj[:, None]
    labelled, unlabelled, view = table.split([4, 6, 6])
    own = labelled[torch.arange(4), y]
    label = unlabelled.argmax(-1)
    expected = 4 * torch.tensor(2.0, dtype=F64).log() - own.sum()
    expected = expected - (unlabelled.logsumexp(-1) - torch.tensor(2.0, dtype=F64).log()).sum()
    expected = expected + (labelled.logsumexp(-1) - own).sum() - view[torch.arange(6), label].sum()
    if guide == "exact":
        assert relative(value, expected) < 1e-10


def test_dropout_under_vmap():
    net = snn.MLP(2, 4, hidden=(8, 8), dropout=0.5).train()
    nn.init.normal_(net.last.weight)
    x = torch.ones(5, 2)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(net)(x)
    out = torch.vmap(net, randomness="different")(x)
    assert len({tuple(row.tolist()) for row in out}) > 1


# -- presets ---------------------------------------------------------------------------------------
def test_the_presets_train(tmp_path):
    """A table with dropout, and the points of the plane, for a few steps."""
    data = toy("moons", num_train=60, num_test=20)
    for preset in (presets.FLOWGMM_TOY, presets.FLOWGMM_TOY_PAPER, presets.flowgmm_table(2)):
        preset = replace(preset, steps=3, validate_every=3, batch_size=20)
        model = preset.make_model(data)
        loc = model.flow.prior.loc.clone()
        assert preset.fit(model, data, progress=False).steps == 3
        assert torch.equal(model.flow.prior.loc, loc)  # fixed means
        assert not any(p.requires_grad for p in model.flow.prior.parameters())


def test_means_of_the_tables():
    for classes, norm in ((2, 3.75), (4, 0.56 * 20**0.5)):
        torch.manual_seed(0)
        preset = presets.flowgmm_table(20, classes)
        prior = preset.flow(preset.prior, classes).prior
        assert prior.loc.shape == (classes, 20)
        assert torch.allclose(
            prior.loc.norm(dim=-1), torch.full((classes,), norm), rtol=0.3 * (classes > 2) + 1e-4
        )
    assert presets.flowgmm_table(20, labelled_weight=5.0).model.labelled_weight == 5.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: presets.flowgmm_mnist(widths=()), r"widths=\(\): expected one to three"),
        (lambda: presets.flowgmm_mnist(widths=(2, 2, 2, 2)), r"widths=\(2, 2, 2, 2\): expected one to three"),
        (lambda: presets.flowgmm_mnist(widths=(0, 2)), r"widths=\(0, 2\): expected one to three widths"),
        (lambda: presets.flowgmm_mnist(blocks=-1), "blocks=-1"),
        (lambda: presets.flowgmm_mnist(latent_dim=785), "latent_dim=785: expected 1 to 784"),
        (lambda: presets.flowgmm_table(1), "columns=1"),
        (lambda: presets.flowgmm_table(3, 0), "num_classes=0"),
        (lambda: presets.flowgmm_table(3, couplings=0), "couplings=0"),
        (lambda: presets.flowgmm_table(3, labelled_weight=0), "labelled_weight=0"),
    ],
)
def test_options_that_are_refused(make, message):
    with pytest.raises(ValueError, match="^" + message):
        make()


def test_the_preset_of_the_images_trains():
    """With small networks, and all latents under the prior."""
    torch.manual_seed(0)
    x, y = torch.randint(256, (70, 1, 28, 28)), torch.arange(70) % 10
    y = torch.where(torch.arange(70) < 20, y, scnf.UNLABELLED)
    data = scnf.datasets.SemiSupervisedData(x, y, x[:4], torch.arange(4), 10)
    small = presets.izmailov2020.ImageRealNVP(widths=(2, 3), blocks=1)
    preset = replace(
        presets.FLOWGMM_MNIST_PAPER, flow=small, steps=2, validate_every=2, labelled_batch_size=8
    )
    model = preset.make_model(data)
    assert (model.labelled_weight, model.flow.latent_shape) == (3.0, (784,))
    assert preset.fit(model, data, progress=False).steps == 2
    assert replace(preset, terms=()).fit(model, data, progress=False).steps == 2
