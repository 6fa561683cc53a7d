"""Bad input raises an error that names the argument, the value given and the value expected."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import CONDITIONAL_TRANSFORMS, PRIORS, TRANSFORMS, conv_net, mlp
from helpers import image_flow, toy_flow
from pyro import poutine

import pyro_scnf as scnf
from pyro_scnf import nn as snn
from pyro_scnf import transforms as T
from pyro_scnf.distributions import BaseNormal
from pyro_scnf.priors import ConditionalFlowPrior, GaussianMixturePrior, StudentTMixturePrior, make_prior

NAN, INF = float("nan"), float("inf")


def raises(match: str, kind: type[Exception] = ValueError):
    return pytest.raises(kind, match=match)


# -- shapes at every transform -----------------------------------------------------------------
@pytest.mark.parametrize("name", TRANSFORMS)
def test_wrong_event_shape_of_a_transform(name):
    layer = TRANSFORMS[name].build()
    event, base = tuple(layer.event_shape), tuple(layer.base_shape)
    owner = type(layer).__name__
    for bad in (event[:-1] + (event[-1] + 1,), (event[0] + 1,) + event[1:], event[1:]):
        with raises(rf"{owner}: x has shape .* expected \(\*batch, {', '.join(map(str, event))}"):
            layer.inverse_and_ladj(torch.rand(bad))
        with raises(rf"{owner}: x has shape"):
            layer.inv(torch.rand(bad))
    with raises(rf"{owner}: z has shape .* expected \(\*batch, {', '.join(map(str, base))}"):
        layer.call_and_ladj(torch.rand(base[:-1] + (base[-1] + 1,)))
    with raises(f"{owner}: shape .* does not end in"):
        layer.forward_shape(torch.Size((base[0] + 1, *base[1:])))
    with raises("needs a batch dimension"):
        layer.initialize(torch.rand(event))


@pytest.mark.parametrize("name", CONDITIONAL_TRANSFORMS)
def test_wrong_input_of_a_conditional_transform(name):
    layer = CONDITIONAL_TRANSFORMS[name].build()
    event, c = tuple(layer.event_shape), torch.randn(4, layer.context_dim)
    owner = type(layer).__name__
    x = torch.rand((4, *event))
    with raises(f"{owner}: x has shape"):
        layer.inverse_and_ladj(x[..., :-1], c)
    with raises(f"{owner}: z has shape"):
        layer.condition(c)(torch.rand((4, *layer.base_shape[:-1], layer.base_shape[-1] + 1)))
    with raises(rf"{owner}: context has shape \(4, {layer.context_dim + 1}\)"):
        layer.condition(torch.randn(4, layer.context_dim + 1))
    with raises(f"{owner}: context has dtype torch.int64"):
        layer.condition(torch.arange(layer.context_dim))
    with raises(rf"{owner}: batch shapes of x \(4,\) and context \(3,\) do not broadcast"):
        layer.inverse_and_ladj(x, c[:3])
    with raises(f"{owner}.initialize: x has shape"):
        layer.initialize(x[..., :-1], c)
    with raises("needs a batch dimension"):
        layer.initialize(x[0], c[0])


@pytest.mark.parametrize("shape", [(2, 3), (), (1, 2, 3, 4), (0,), (2, 0, 2)])
def test_event_shapes_are_vectors_or_images(shape):
    for make in (T.ActNorm, T.InvertibleConv1x1, T.Flip, T.Logit, scnf.flows.glow, scnf.flows.realnvp):
        with raises(r"event_shape=\(.*\): expected \(D,\) for vectors or \(C, H, W\)"):
            make(shape)


def test_initialize_needs_more_than_one_value_a_channel():
    with raises("x needs at least two values a channel"):
        T.ActNorm((3,)).initialize(torch.randn(1, 3))
    with raises("x needs at least two values a channel"):
        toy_flow().initialize(torch.randn(1, 2))


# -- options of the layers -----------------------------------------------------------------------
def net(*args, **kwargs):
    return mlp(*args, **kwargs)


LAYER_ERRORS = {
    "conv parameterization": (lambda: T.InvertibleConv1x1((2,), "qr"), "parameterization='qr'"),
    "conv init": (lambda: T.InvertibleConv1x1((2,), init="zeros"), "init='zeros'"),
    "coupling odd": (lambda: T.AffineCoupling((3,), mlp(1, 2)), r"event_shape=\(3,\).*halves.*got 3"),
    "coupling odd image": (lambda: T.AffineCoupling((1, 4, 4), conv_net(1, 2)), "halves the channels, got 1"),
    "conditional coupling odd": (
        lambda: T.ConditionalAffineCoupling((3,), mlp(1, 2, 3), context_dim=3),
        "halves the channels, got 3",
    ),
    "coupling split": (lambda: T.AffineCoupling((4,), mlp(4, 0 + 2), split=4), "split=4: expected 1 to 3"),
    "coupling split 0": (lambda: T.AffineCoupling((4,), mlp(1, 2), split=0), "split=0: expected 1 to 3"),
    "coupling scale": (lambda: T.AffineCoupling((4,), mlp(2, 4), scale="exp"), "scale='exp'.*'sigmoid'"),
    "masked scale": (lambda: T.MaskedAffineCoupling((4,), mlp(4, 8), scale="exp"), "scale='exp'"),
    "mask values": (
        lambda: T.MaskedAffineCoupling((2,), mlp(2, 4), mask=torch.tensor([0.5, 1.0])),
        "mask of shape.*zeros and ones",
    ),
    "mask shape": (
        lambda: T.MaskedAffineCoupling((2,), mlp(2, 4), mask=torch.ones(3)),
        r"mask of shape \(3,\).*event_shape=\(2,\)",
    ),
    "mask rank": (
        lambda: T.MaskedAffineCoupling((2,), mlp(2, 4), mask=torch.ones(5, 2)),
        r"mask of shape \(5, 2\)",
    ),
    "context_dim": (
        lambda: T.ConditionalAffineCoupling((2,), mlp(1, 2), context_dim=0),
        "context_dim=0: expected at least 1",
    ),
    "squeeze odd": (lambda: T.Squeeze((1, 3, 4)), "even H and W"),
    "squeeze vector": (lambda: T.Squeeze((4,)), "event_shape"),
    "squeeze order": (lambda: T.Squeeze((1, 2, 2), "rows"), "order='rows'"),
    "permute twice": (lambda: T.Permute((3,), torch.tensor([0, 0, 1])), "permutation"),
    "permute short": (lambda: T.Permute((3,), torch.tensor([1, 0])), "permutation"),
    "logit 1": (lambda: T.Logit((2,), 1.0), "alpha=1.0: expected a finite number of at least 0 and below 1"),
    "logit negative": (lambda: T.Logit((2,), -0.1), "alpha=-0.1"),
    "compose empty": (lambda: T.Compose([]), "Compose: layers is empty"),
    "compose mismatch": (
        lambda: T.Compose([T.ActNorm((2,)), T.ActNorm((3,))]),
        r"ActNorm gives \(2,\) but the next layer, ActNorm, takes \(3,\)",
    ),
    "compose foreign": (lambda: T.Compose([torch.nn.Linear(2, 2)]), "layers must be FlowTransform.*Linear"),
    "compose conditional": (
        lambda: T.Compose([CONDITIONAL_TRANSFORMS["coupling-vector"].build()]),
        "use ConditionalCompose",
    ),
    "conditional compose": (lambda: T.ConditionalCompose([T.ActNorm((2,))]), "use Compose"),
    "two contexts": (
        lambda: T.compose(
            [
                T.ConditionalAffineCoupling((2,), mlp(1, 2, 3), context_dim=3),
                T.ConditionalAffineCoupling((2,), mlp(1, 2, 4), context_dim=4),
            ]
        ),
        r"layers.*different lengths \[3, 4\]",
    ),
    "multiscale empty": (lambda: T.MultiScale([]), "stages is empty"),
    "multiscale mismatch": (
        lambda: T.MultiScale([T.ActNorm((3,)), T.ActNorm((4,))]),
        r"stages: a stage ending in \(4,\) passes \(2,\) on, but the next one takes \(3,\)",
    ),
    "multiscale foreign": (lambda: T.MultiScale([torch.nn.Linear(2, 2)]), "stages"),
    "multiscale conditional": (
        lambda: T.MultiScale([CONDITIONAL_TRANSFORMS["coupling-vector"].build()]),
        "ConditionalMultiScale",
    ),
    "conditional multiscale": (lambda: T.ConditionalMultiScale([T.ActNorm((2,))]), "use MultiScale"),
    "multiscale one channel": (
        lambda: T.MultiScale([T.ActNorm((1, 2, 2)), T.ActNorm((1, 2, 2))]),
        r"stages: a stage ending in \(1, 2, 2\) has one channel",
    ),
    "latent_dim 0": (lambda: T.MultiScale([T.ActNorm((4,))], 0), "latent_dim=0: expected 1 to 4"),
    "latent_dim 5": (lambda: T.MultiScale([T.ActNorm((4,))], 5), "latent_dim=5: expected 1 to 4"),
    "dequantize high": (
        lambda: T.dequantize(torch.tensor([256])),
        r"x holds 256\.\.256, expected integers in 0\.\.255",
    ),
    "dequantize low": (
        lambda: T.dequantize(torch.tensor([-1])),
        r"x holds -1\.\.-1, expected integers in 0\.\.255",
    ),
    "mlp hidden": (lambda: snn.MLP(2, 2, hidden=()), "hidden is empty"),
    "net norm": (lambda: snn.ResidualMLP(2, 2, norm="batch"), "norm='batch'"),
    "net kernel": (lambda: snn.ConvNet(2, 2, kernel_size=2), "kernel_size=2"),
    "net width": (lambda: snn.ResidualMLP(2, 2, width=0), "width=0"),
    "net blocks": (lambda: snn.ResidualConvNet(2, 2, blocks=-1), "blocks=-1"),
    "base scale": (lambda: BaseNormal((2,), "fixed"), "scale='fixed'"),
    "base init": (lambda: BaseNormal((2,), init_scale=0.0), "init_scale=0.0"),
}


@pytest.mark.parametrize("name", LAYER_ERRORS)
def test_options_of_layers(name):
    make, match = LAYER_ERRORS[name]
    with raises(match):
        make()


FLOW_ERRORS = {
    "coupling": ({"coupling": "triple"}, "coupling='triple'"),
    "levels": ({"levels": 0}, "levels=0"),
    "steps": ({"steps": 0}, "steps=0"),
    "half a step": ({"steps": 2.0}, r"steps=2.0: expected a whole number of at least 1"),
    "scale": ({"scale": "exp"}, "scale='exp'"),
    "conv": ({"conv": "qr"}, "^conv='qr': expected 'lu' or 'plain'"),
    "logit": ({"logit": 1.5}, "^logit=1.5: expected a finite number of at least 0"),
    "latent_dim": ({"latent_dim": 99}, "latent_dim=99: expected 1 to 16"),
    "context_dim": ({"context_dim": -1}, "context_dim=-1"),
    "too many levels": ({"levels": 4}, r"levels=4, event_shape=\(1, 4, 4\): .* it can be halved 2 times"),
    "width": ({"width": 0}, "width=0"),
    "blocks": ({"blocks": -1}, "blocks=-1"),
}


@pytest.mark.parametrize("name", FLOW_ERRORS)
def test_options_of_glow(name):
    options, match = FLOW_ERRORS[name]
    with raises(match):
        scnf.flows.glow((1, 4, 4), **{"steps": 1, "width": 4, **options})


def test_glow_of_one_feature():
    with raises("a channel coupling needs 2 channels or more"):
        scnf.flows.glow((1,))
    with raises(
        r"levels=2, event_shape=\(2,\): a channel coupling needs 2 channels or more, and level 2 has 1"
    ):
        scnf.flows.glow((2,), levels=2, steps=1)


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((4,), {"levels": 2}, "levels=2: a vector flow has one scale"),
        ((4,), {"couplings": 0}, "couplings=0"),
        ((1, 4, 4), {"couplings": 3}, "couplings=3: only for vectors"),
        ((1, 4, 4), {"levels": 0}, "levels=0"),
        ((1, 3, 3), {"levels": 2}, r"levels=2, event_shape=\(1, 3, 3\): .* halved 0 times"),
        ((4,), {"scale": "exp"}, "scale='exp'"),
        ((1,), {}, "needs 2 channels or more"),
        ((4,), {"latent_dim": 5}, "latent_dim=5: expected 1 to 4"),
    ],
)
def test_options_of_realnvp(shape, options, match):
    with raises(match):
        scnf.flows.realnvp(shape, width=4, **options)


@pytest.mark.parametrize("latent_dim", [0, -3, 785])
def test_latent_dim_of_the_preset(latent_dim):
    with raises(f"latent_dim={latent_dim}: expected 1 to 784"):
        scnf.presets.scnf_mnist(latent_dim=latent_dim)


# -- labels, wherever they come in -----------------------------------------------------------------
BAD_LABELS = {
    "too large": (torch.tensor([0, 3]), r"y holds labels 0\.\.3, expected 0\.\.2"),
    "negative": (torch.tensor([0, -1]), r"y holds labels -1\.\.0, expected 0\.\.2"),
    "bool": (torch.tensor([True, False]), r"y has dtype torch.bool, expected integer class labels 0\.\.2"),
    "complex": (torch.zeros(2, dtype=torch.cfloat), "y has dtype torch.complex64"),
    "float": (torch.tensor([0.0, 1.0]), r"y is a floating tensor of shape \(2,\); expected integer labels"),
    "scalar float": (torch.tensor(1.0), "y is a floating tensor of shape"),
    "relaxed of another K": (torch.rand(2, 4), r"y is a floating tensor.*\(\*batch, 3\)"),
    "relaxed NaN": (
        torch.tensor([[NAN, 0.5, 0.5]]),
        r"y is floating and holds the row \[nan, 0.5, 0.5\], which adds up to nan",
    ),
}


@pytest.mark.parametrize("label", BAD_LABELS)
@pytest.mark.parametrize("prior", ["flow", "gmm", "gmm-full", "student-t"])
def test_labels_given_to_a_prior(prior, label):
    y, match = BAD_LABELS[label]
    with raises(match):
        PRIORS[prior].build().condition(y)


@pytest.mark.parametrize("label", BAD_LABELS)
def test_labels_given_to_the_flow(label):
    y, match = BAD_LABELS[label]
    flow = toy_flow()
    for use in (flow.condition, flow.sample):
        with raises(match):
            use(y)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (torch.tensor([0, 3]), r"y holds labels 0\.\.3, expected -1\.\.2"),
        (torch.tensor([0, -2]), r"y holds labels -2\.\.0"),
        (torch.tensor([0.0, 1.0]), "y has dtype torch.float32"),
        (torch.tensor([True, False]), "y has dtype torch.bool"),
        (torch.tensor([0, 1, 2]), r"y has shape \(3,\), expected \(2,\)"),
        (torch.tensor([[0], [1]]), r"y has shape \(2, 1\), expected \(2,\)"),
        (torch.tensor(0), r"y has shape \(\), expected \(2,\)"),
    ],
)
def test_labels_given_to_the_model(y, match):
    model, x = scnf.SemiSupervisedModel(toy_flow()), torch.randn(2, 2)
    for use in (model, scnf.elbo(model), scnf.EMGuide(model)):
        with raises(match):
            use(x, y)


def test_unlabelled_rows_in_the_labelled_batch():
    model, x = scnf.SemiSupervisedModel(toy_flow()), torch.randn(2, 2)
    with raises(r"y holds labels -1\.\.0, expected 0\.\.2"):
        model(x, torch.tensor([0, -1]), x)


def test_labels_of_frequencies():
    with raises("ClassProbs.from_labels: y holds labels"):
        scnf.ClassProbs.from_labels(torch.tensor([0, 5]), 3)
    with raises("ClassProbs.from_labels: y holds no label, expected at least one of 0..2"):
        scnf.ClassProbs.from_labels(torch.tensor([-1, -1]), 3)


# -- data --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [toy_flow, image_flow])
@pytest.mark.parametrize("bad", ["shape", "nan", "inf"])
def test_data_given_to_the_flow(make, bad):
    flow = make()
    x = torch.randn((3, *flow.event_shape))
    if bad == "shape":
        x, match = x[..., :-1], "SemiConditionalFlow: x has shape"
    else:
        x.view(-1)[1] = NAN if bad == "nan" else INF
        match = "SemiConditionalFlow: x holds 1 NaN or infinite values"
    for use in (flow.encode, flow.log_prob, flow.class_log_prob, flow.posterior):
        with raises(match):
            use(x)
    with raises(match.replace("SemiConditionalFlow", "(LabelMarginal|SemiConditionalFlow)")):
        scnf.LabelMarginal(flow).log_prob(x)
    with raises("x"):
        flow.initialize(x)
    model = scnf.SemiSupervisedModel(flow)
    for use in (model, scnf.elbo(model), scnf.EMGuide(model)):
        with raises(match.replace("SemiConditionalFlow", "SemiSupervisedModel")):
            use(x)
    with raises("x_unlabelled"):
        model(torch.zeros((1, *flow.event_shape)), torch.tensor([0]), x)


def test_data_given_to_the_distribution():
    d = toy_flow().condition(torch.tensor([0, 1, 2]))
    with raises("x has shape|event_shape"):
        d.log_prob(torch.randn(3, 5))
    with raises("x|support"):
        d.log_prob(torch.tensor([[NAN, 1.0]]))
    with raises("value|broadcast|shape"):
        d.log_prob(torch.randn(4, 2))


def test_checks_of_values_may_be_turned_off():
    flow, x = toy_flow(), torch.full((2, 2), NAN)
    with pyro.validation_enabled(False):
        assert torch.isnan(flow.log_prob(x)).all()
        with raises("x has shape"):  # checks of shapes cost nothing and stay on
            flow.encode(torch.randn(2, 3))


def test_batches_of_the_model():
    model, x = scnf.SemiSupervisedModel(toy_flow()), torch.randn(4, 2)
    y = torch.tensor([0, 1, 2, 0])
    with raises("nothing observed; give n"):
        model()
    with raises(r"x has batch shape \(2, 2\), expected one dimension"):
        model(x.reshape(2, 2, 2))
    with raises("the labelled batch is empty"):
        model(x[:0], y[:0], x)
    with raises("the labelled batch is empty"):
        model(x, None, x)
    with raises("x_unlabelled has batch shape"):
        model(x, y, x[0])
    for empty in ((x[:0],), (x[:0], y[:0]), (x, y, x[:0])):
        with raises("empty|no rows"):
            model(*empty)
    with raises(r"weights has shape \(3,\), expected \(4,\)"):
        model(x, weights=torch.ones(3))
    with raises(r"weights has shape \(4,\), expected \(2,\)"):
        model(x, y, x[:2], weights=torch.ones(4))
    for bad in (-1.0, NAN, INF):
        with raises("weights has negative or infinite entries"):
            model(x, y, weights=torch.full((4,), bad))


@pytest.mark.parametrize("sizes", [{"num_labelled": 2}, {"num_unlabelled": 3}])
def test_batches_larger_than_their_data_set(sizes):
    model, x = scnf.SemiSupervisedModel(toy_flow(), **sizes), torch.randn(4, 2)
    with raises(r"num_\w+=\d: the batch has 4 (un)?labelled rows, more than the data set"):
        model(x, torch.tensor([0, 1, 2, 0]), x)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labelled_weight": 0.0}, "labelled_weight=0.0"),
        ({"labelled_weight": -1.0}, "labelled_weight=-1.0"),
        ({"class_probs": "flat"}, "class_probs='flat': expected 'uniform', 'learnable'"),
        ({"class_probs": torch.ones(4)}, r"class_probs has shape \(4,\), expected \(3,\)"),
        (
            {"class_probs": torch.tensor([1.0, -1.0, 1.0])},
            "class_probs: expected 3 finite, non-negative weights",
        ),
        ({"class_probs": torch.zeros(3)}, "positive sum"),
        (
            {"class_probs": torch.tensor([1.0, NAN, 1.0])},
            "class_probs: expected 3 finite, non-negative weights",
        ),
        ({"class_probs": scnf.ClassProbs(4)}, "class_probs: 4 classes, but the flow has 3"),
        (
            {"class_probs": scnf.ClassProbs(3, "learnable").double()},
            r"class_probs: dtype torch.float64, and the flow has torch.float32; give class_probs.to\(torch.f",
        ),
        ({"num_labelled": 0}, "num_labelled=0"),
        ({"num_unlabelled": -5}, "num_unlabelled=-5"),
    ],
)
def test_options_of_the_model(options, match):
    with raises(match):
        scnf.SemiSupervisedModel(toy_flow(), **options)


# -- flow, prior, labels together ------------------------------------------------------------------
def test_flow_and_prior_must_fit():
    flow = scnf.flows.glow((2,), steps=1, width=4)
    with raises(r"prior: its event_shape \(3,\) is not that of the latents, \(2,\)"):
        scnf.SemiConditionalFlow(flow, GaussianMixturePrior((3,), 2))
    with raises("num_classes=5, but the prior has 2"):
        scnf.SemiConditionalFlow(flow, GaussianMixturePrior((2,), 2), 5)
    with raises("num_classes: needed to build the prior"):
        scnf.SemiConditionalFlow(flow, "gmm")
    with raises("transform: expected a FlowTransform .*got ConditionalMultiScale"):
        scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=4, context_dim=3), "gmm", 2)
    with raises("transform: expected a FlowTransform .*got Linear"):
        scnf.SemiConditionalFlow(torch.nn.Linear(2, 2), "gmm", 2)
    with raises("^aux_scale='wide'"):
        scnf.SemiConditionalFlow(
            scnf.flows.glow((1, 4, 4), steps=1, width=4, latent_dim=8), "gmm", 2, aux_scale="wide"
        )


@pytest.mark.parametrize("k", [0, -2])
def test_number_of_classes(k):
    for make in (GaussianMixturePrior, StudentTMixturePrior, ConditionalFlowPrior, scnf.ClassProbs):
        with raises(f"num_classes={k}: expected at least 1"):
            make(*(() if make is scnf.ClassProbs else ((2,),)), k)


def test_class_probs():
    flow, x = toy_flow(), torch.randn(4, 2)
    for use in (flow.log_prob, flow.posterior, lambda x, probs: scnf.LabelMarginal(flow, probs)):
        with raises(r"class_probs has shape \(2,\), expected \(\*batch, 3\)"):
            use(x, torch.ones(2))
        for wrong in ([-1.0, 0.5, 0.5], [torch.inf, 1.0, 1.0], [torch.nan, 1.0, 1.0], [0.0, 0.0, 0.0]):
            with raises("class_probs holds negative or infinite weights, or only zeros"):
                use(x, torch.tensor(wrong))


def test_decode():
    flow = image_flow()
    _, z_f, _ = flow.encode(torch.randn(2, 1, 4, 4))
    with raises("z_aux='mean'"):
        flow.decode(z_f, "mean")
    with raises(r"decode: z_aux has shape \(2, 7\), expected \(\*batch, 8\)"):
        flow.decode(z_f, torch.zeros(2, 7))
    with raises("decode: z_f has shape"):
        flow.decode(z_f[..., :0])
    for z_aux in ("zero", "sample", torch.zeros(2, 8)):
        with raises("^temperature=-7.0: expected a finite number above 0"):
            flow.decode(z_f, z_aux, temperature=-7.0)
    for z_aux in ("zero", torch.zeros(2, 8)):
        with raises("^temperature=0.5: it would have no effect, because z_aux is not 'sample'"):
            flow.decode(z_f, z_aux, temperature=0.5)
        with raises("^generator=.*: it would have no effect, because z_aux is not 'sample'"):
            flow.decode(z_f, z_aux, generator=torch.Generator())


@pytest.mark.parametrize("value", [-1.0, NAN])
def test_temperatures(value):
    flow = toy_flow()
    for use in (flow.condition, flow.sample, flow.prior.condition):
        with raises(f"temperature={value}"):
            use(torch.tensor([0]), temperature=value)


# -- priors --------------------------------------------------------------------------------------------
def flow_prior(**options):
    return ConditionalFlowPrior((4,), 3, **{"steps": 1, "width": 4, **options})


def own_prior(flow):
    return ConditionalFlowPrior((4,), 3, flow=flow)


PRIOR_ERRORS = {
    "covariance": (lambda: GaussianMixturePrior((2,), 2, covariance="diag"), "covariance='diag'.*'diagonal'"),
    "means": (lambda: GaussianMixturePrior((2,), 2, means="kmeans"), "means='kmeans'"),
    "antipodal": (
        lambda: GaussianMixturePrior((2,), 3, means="antipodal"),
        "means='antipodal' needs 2 components, got 3",
    ),
    "scale": (lambda: GaussianMixturePrior((2,), 2, scale=0.0), "scale=0.0"),
    "separation": (lambda: StudentTMixturePrior((2,), 2, separation=-1.0), "separation=-1.0"),
    "df": (lambda: StudentTMixturePrior((2,), 2, df=2.0), "df=2.0: expected a finite number above 2"),
    "event": (lambda: GaussianMixturePrior((2, 2), 2), r"event_shape=\(2, 2\)"),
    "flow scale": (lambda: flow_prior(scale="exp"), "scale='exp'"),
    "flow base": (lambda: flow_prior(base="normal"), "^base='normal': expected 'learnable' or 'unit'"),
    "flow base_scale": (lambda: flow_prior(base_scale=-1.0), "^base_scale=-1.0: expected a finite number"),
    "flow embedding": (lambda: flow_prior(embedding_dim=0), "^embedding_dim=0"),
    "flow covariates": (lambda: flow_prior(covariates=-1), "^covariates=-1"),
    "flow levels": (lambda: flow_prior(levels=0), "levels=0"),
    "own flow of another context": (
        lambda: own_prior(scnf.flows.glow((4,), steps=1, width=4, context_dim=7)),
        r"flow: expected a conditional transform of event_shape \(4,\) and context_dim 3, got \(4,\) and 7",
    ),
    "own flow of another shape": (
        lambda: own_prior(scnf.flows.glow((5,), steps=1, width=4, context_dim=3)),
        r"flow: expected a conditional transform of event_shape \(4,\)",
    ),
    "own flow unconditional": (
        lambda: own_prior(scnf.flows.glow((4,), steps=1, width=4)),
        "flow: expected a conditional transform",
    ),
    "unknown word": (lambda: make_prior("gmmm", (2,), 2), "prior='gmmm': expected one of 'flow', 'gmm'"),
    "unknown import": (lambda: make_prior("torch.NoSuchPrior", (2,), 2), "prior='torch.NoSuchPrior'"),
    "unknown option": (lambda: make_prior("gmm:colour=red", (2,), 2), "prior='gmm:colour=red'.*colour"),
    "malformed option": (lambda: make_prior("gmm:full", (2,), 2), "prior option 'full': expected key=value"),
    "no name": (lambda: make_prior({"scale": 1.0}, (2,), 2), "expected a key 'name'"),
    "not a prior": (lambda: make_prior(3, (2,), 2), "prior=3"),
    "no classes": (lambda: make_prior("gmm", (2,), None), "num_classes: needed to build the prior 'gmm'"),
}


@pytest.mark.parametrize("name", PRIOR_ERRORS)
def test_options_of_priors(name):
    make, match = PRIOR_ERRORS[name]
    with raises(match):
        make()


@pytest.mark.parametrize("name", PRIORS)
def test_latents_given_to_a_prior(name):
    prior = PRIORS[name].build()
    shape = tuple(prior.event_shape)
    with raises(r"z_f has shape .* expected \(\*batch"):
        prior.class_log_prob(torch.randn((3, *shape[:-1], shape[-1] + 1)))


def test_means_of_latents_need_every_class():
    prior = GaussianMixturePrior((2,), 3, means="latents")
    with raises(r"means='latents': no labelled example of class \[2\] in y"):
        prior.initialize(torch.randn(4, 2), torch.tensor([0, 1, 1, -1]))
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=4), prior)
    with raises(r"no labelled example of class \[0, 1, 2\]"):
        flow.initialize(torch.randn(4, 2))


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (torch.tensor([0, 1, 2, 3]), r"y holds labels 0\.\.3, expected -1\.\.2"),
        (torch.tensor([0, 1, 2]), r"y has shape \(3,\), expected \(4,\)"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), "y has dtype torch.float32"),
    ],
)
def test_labels_given_to_initialize(y, match):
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, width=4), "gmm:means=latents", 3)
    for owner in (flow, scnf.SemiSupervisedModel(flow)):
        with raises(match):
            owner.initialize(torch.randn(4, 2), y)


# -- guides, label enumeration, reparametrisation -------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"estep": "soft"}, "estep='soft': expected 'enumerate', 'sample' or 'hard'"),
        ({"decay": 1.0}, "decay=1.0: expected a finite number of at least 0 and below 1"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"temperature": 0.0}, "temperature=0.0: expected a finite number above 0"),
    ],
)
def test_options_of_the_em_guide(options, match):
    with raises(match):
        scnf.EMGuide(scnf.SemiSupervisedModel(toy_flow()), **options)


def test_guides_by_name():
    with raises("guide='svi': expected one of 'exact', 'em'"):
        scnf.make_guide("svi", scnf.SemiSupervisedModel(toy_flow()))


def test_enumerate_labels():
    model, x = scnf.SemiSupervisedModel(toy_flow()), torch.randn(4, 2)
    with raises(r"site='label': no such site; the model has .*'y', 'x'"):
        scnf.enumerate_labels(model, (x,), site="label")
    with raises(r"posterior: numbers of draws differ, \{'a': 2, 'b': 3\}"):
        scnf.enumerate_labels(model, (x,), {"a": torch.randn(2), "b": torch.randn(3)})


@pytest.mark.parametrize("temperature", [-1.0, NAN])
def test_temperature_of_label_draws(temperature):
    with raises("temperature="):
        scnf.sample_labels(torch.randn(2, 3, 4), temperature)


def test_reparametrising_another_distribution():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    rewritten = poutine.reparam(model, config={"x": scnf.FlowSitesReparam()})
    with raises("FlowSitesReparam: site 'x' is a Normal, expected the distribution that"):
        rewritten()


def test_a_conditioner_of_the_wrong_width_is_refused():
    layer = scnf.transforms.AffineCoupling((4,), scnf.nn.MLP(2, 2))
    with pytest.raises(ValueError, match="net: gives 2 channels, expected 4"):
        layer.inverse_and_ladj(torch.zeros(3, 4))


def test_a_conditioner_that_would_ignore_the_label_is_refused():
    def deaf(in_channels, out_channels, context_dim=0):
        return scnf.nn.MLP(in_channels, out_channels)

    flow = scnf.SemiConditionalFlow(
        scnf.flows.glow((4,), steps=1), {"name": "flow", "steps": 1, "net": deaf}, 3
    )
    with pytest.raises(ValueError, match="built without context_dim"):
        flow.posterior(torch.zeros(2, 4))
