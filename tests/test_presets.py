"""The models of the literature, at their published sizes."""

from __future__ import annotations

import inspect
import math
import pickle
from dataclasses import replace

import pytest
import torch
from helpers import perturb, relative

import pyro_scnf as scnf
from pyro_scnf import transforms as T
from pyro_scnf.datasets import (
    SemiSupervisedData,
    digits,
    enlarged_digits,
    label_evidence,
    link_neighbours,
    neighbour_graph,
    toy,
)
from pyro_scnf.presets import ComponentsFlow, GraphOptions, LeadingComponents, recommended
from pyro_scnf.presets.base import FitOptions
from pyro_scnf.presets.choice import column_spreads, standardise_columns
from pyro_scnf.saving import describe_model


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def preset() -> scnf.SemiConditionalFlow:
    torch.manual_seed(0)
    return scnf.presets.scnf_mnist()


def test_parameters_of_the_published_model(preset):
    """Parameters of f_w, of the conditional flow with its embedding, and of the base scales.

    The numbers were counted in the released code.
    """
    h = size(preset.prior.flow) + size(preset.prior.embedding)
    assert size(preset.transform) == 6_299_987
    assert h == 9_574_676
    assert size(preset.prior.base) + size(preset.aux) == 784
    assert size(preset) == 15_875_447


def test_parameters_of_single_parts(preset):
    nets = [layer.net for layer in preset.transform.modules() if isinstance(layer, T.MaskedAffineCoupling)]
    assert [size(net) for net in nets] == 3 * [302_536] + 3 * [299_076] + 3 * [297_346]
    halves = [layer for layer in preset.transform.modules() if isinstance(layer, T.AffineCoupling)]
    assert [size(layer) for layer in halves] == 4 * [598_152 // 2] + 4 * [605_072 // 2] + 4 * [598_152 // 2]
    convs = [layer for layer in preset.transform.modules() if isinstance(layer, T.InvertibleConv1x1)]
    norms = [layer for layer in preset.transform.modules() if isinstance(layer, T.ActNorm)]
    assert (sum(map(size, convs)), sum(map(size, norms))) == (255, 106)


def conditional_flow_size(latent_dim: int, width: int, num_classes: int = 10) -> int:
    """Number of parameters of two levels with four steps each, double couplings and four residual blocks."""
    total, channels = num_classes * num_classes, latent_dim
    for _ in range(2):
        half = channels // 2
        net = (half + num_classes) * width + width + 8 * (width * width + width) + 2 * width
        net += width * 2 * half + 2 * half
        total += 4 * (2 * net + channels * channels + 2 * channels)
        channels = half - half % 2
    return total


@pytest.mark.parametrize(
    ("latent_dim", "shape"), [(48, (48,)), (98, (2, 7, 7)), (196, (4, 7, 7)), (392, (392,)), (784, (784,))]
)
def test_latent_dims_of_the_paper(latent_dim, shape):
    flow = scnf.presets.scnf_mnist(latent_dim=latent_dim, prior_width=32)
    assert flow.latent_shape == shape
    assert flow.transform.aux_dim == 784 - latent_dim
    assert flow.prior.event_shape == shape
    h = size(flow.prior.flow) + size(flow.prior.embedding)
    assert h == conditional_flow_size(latent_dim, 32)
    assert size(flow) == 6_299_987 + h + 784


def test_the_width_of_the_papers_text(preset):
    narrow = scnf.presets.scnf_mnist(prior_width=64)
    h = size(narrow.prior.flow) + size(narrow.prior.embedding)
    assert h == conditional_flow_size(196, 64)
    assert conditional_flow_size(196, 256) == size(preset.prior.flow) + size(preset.prior.embedding)
    assert size(narrow) == 6_299_987 + h + 784


def test_shapes_through_the_published_flow(preset):
    """As in the released code, the flow factors out 392 numbers, then 196, and keeps 196."""
    scales = preset.transform.layers[0]
    assert [tuple(stage.event_shape) for stage in scales.stages] == [(4, 7, 7), (2, 14, 14), (1, 28, 28)]
    assert [tuple(stage.base_shape) for stage in scales.stages] == [(4, 7, 7), (8, 7, 7), (4, 14, 14)]
    assert preset.latent_shape == (4, 7, 7)
    assert preset.transform.aux_dim == 392 + 196
    assert all(m.order == "space-major" for m in preset.transform.modules() if isinstance(m, T.Squeeze))
    levels = preset.prior.flow.layers[0].stages
    assert [tuple(level.event_shape) for level in levels] == [(98,), (196,)]


def test_order_of_a_step(preset):
    """From the data on, a step of f_w is 1×1 convolution, coupling, actnorm.

    A step of the prior is actnorm, convolution, two couplings.
    """
    names = [type(m).__name__ for m in preset.transform.layers[0].stages[-1].layers][::-1]
    step = ["InvertibleConv1x1", "MaskedAffineCoupling", "ActNorm"]
    double = ["InvertibleConv1x1", "AffineCoupling", "AffineCoupling", "ActNorm"]
    assert names == 3 * step + ["Squeeze"] + 2 * double
    masks = [m.mask[0, 0, 0] for m in preset.transform.layers[0].stages[-1].layers if hasattr(m, "mask")]
    assert masks == [0, 1, 0]  # the top-left pixel changes first
    names = [type(m).__name__ for m in preset.prior.flow.layers[0].stages[-1].layers][::-1]
    coupling = "ConditionalAffineCoupling"
    assert names == 4 * ["ActNorm", "InvertibleConv1x1", coupling, coupling]


def test_initial_values(preset):
    """Base scales start at ln 2 and the convolutions at the identity."""
    for base in (preset.aux, preset.prior.base):
        assert torch.allclose(base().base_dist.scale, torch.tensor(math.log(2)))
    for layer in preset.modules():
        if isinstance(layer, T.InvertibleConv1x1):
            assert torch.equal(layer.weight, torch.eye(len(layer.weight)))
    assert torch.equal(preset.prior.embedding.weight, torch.eye(10))


def test_it_runs(preset):
    x = scnf.transforms.dequantize(torch.randint(256, (2, 1, 28, 28)))
    with torch.no_grad():
        z_aux, z_f, _ = preset.encode(x)
        assert relative(preset.decode(z_f, z_aux), x) < 1e-4
        log_prob = preset.class_log_prob(x)
    assert log_prob.shape == (2, 10)
    # New couplings ignore the label, so all classes are equally likely.
    assert relative(log_prob, log_prob[:, :1].expand(2, 10)) < 1e-5
    bits = scnf.bits_per_dim(preset.log_prob(x), (1, 28, 28))
    assert (bits > 0).all()
    assert preset.sample(torch.tensor([3])).shape == (1, 1, 28, 28)


@pytest.mark.parametrize("prior", ["gmm", "student-t", {"name": "gmm", "covariance": "isotropic"}])
def test_other_priors_on_the_published_flow(prior):
    flow = perturb(scnf.presets.scnf_mnist(prior, latent_dim=98), 0.01)
    assert flow.prior.event_shape == (2, 7, 7)
    if prior == "gmm":
        assert size(flow.prior) == 10 * 98 + 98
        assert (flow.prior.covariance, flow.prior.means) == ("shared", "random")  # as released


# -- presets with their settings -------------------------------------------------------------------
@pytest.fixture
def moons():
    return toy("moons", num_train=120, num_test=20, seed=0).hold_out(20)


def test_a_preset_makes_the_model_that_it_says(moons):
    preset = scnf.presets.TOY
    model = preset.make_model(moons)
    assert (model.num_labelled, model.num_unlabelled) == (10, 90)
    assert type(preset.make_model(moons, "student-t:df=4.0").flow.prior).__name__ == "StudentTMixturePrior"
    actnorm = next(m for m in model.flow.transform.modules() if isinstance(m, T.ActNorm))
    assert actnorm.center.abs().sum() > 0  # initialised from the data
    with pytest.raises(ValueError, match="latent_dim=1: the toys are two-dimensional"):
        preset.make_model(moons, latent_dim=1)


def test_class_probabilities_from_the_labels():
    data = enlarged_digits(labels=100, split="stratified")
    preset = replace(scnf.presets.MNIST_PAPER, flow=scnf.presets.MNIST_CPU.flow, initial_rows=20)
    shares = data.labelled[1].bincount(minlength=10) / 100
    assert torch.allclose(preset.make_model(data).class_probs().probs, shares)
    model = preset.make_model(data, latent_dim=49)
    assert model.flow.transform.latent_dim == 49


def test_a_preset_trains_as_it_says_and_options_come_on_top(moons, tmp_path):
    preset = replace(scnf.presets.TOY, steps=6, validate_every=3, batch_size=32)
    model = preset.make_model(moons)
    result = preset.fit(model, moons, out=tmp_path, progress=False)
    settings = torch.load(tmp_path / "last.ckpt", weights_only=True)["settings"]
    assert (result.steps, settings["batch_size"], settings["validate_every"]) == (6, 32, 3)
    assert settings["augment"] == {"type": "Jitter", "scale": 0.05, "bins": None}
    assert settings["optimisation"]["optimizer"] == "adamw"
    assert settings["terms"] == {"classification": repr(scnf.terms.Classification(20.0))}
    assert preset.fit(model, moons, steps=2, guide="em", progress=False).steps == 2
    preset.fit(model, moons, terms=(), out=tmp_path, progress=False)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["settings"]["terms"] == {}


@pytest.mark.parametrize(
    ("own", "given", "rows"),
    [
        (None, {}, 12),
        (None, {"batch_size": 7}, 7),
        (5, {}, 5),
        (5, {"batch_size": 7}, 7),
        (5, {"batch_size": 7, "labelled_batch_size": 3}, 3),
    ],
)
def test_a_preset_trains_on_rows_that_all_have_labels(own, given, rows, monkeypatch):
    x = torch.randn(40, 2)
    data = SemiSupervisedData(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long(), 2)
    preset = replace(scnf.presets.TOY, batch_size=12, labelled_batch_size=own, steps=1)
    seen, score = [], scnf.SemiSupervisedModel.forward
    noted = lambda self, x, *rest, **more: seen.append(len(x)) or score(self, x, *rest, **more)  # noqa: E731
    monkeypatch.setattr(scnf.SemiSupervisedModel, "forward", noted)
    assert preset.fit(preset.make_model(data), data, progress=False, **given).steps == 1
    assert seen == [rows]


def test_what_is_recommended_trains_on_rows_that_all_have_labels():
    x = torch.randn(90, 2)
    data = SemiSupervisedData(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long(), 2)
    preset = recommended(data)
    assert preset.fit(preset.make_model(data), data, steps=2, progress=False).finished


def test_the_presets_of_one_paper_differ_in_h_alone():
    wide, narrow = scnf.presets.MNIST_PAPER, scnf.presets.MNIST_PAPER_SMALL_H
    assert replace(narrow, flow=wide.flow) == wide
    assert (wide.flow.prior_width, narrow.flow.prior_width) == (256, 64)


@pytest.mark.parametrize("name", scnf.presets.PRESETS)
def test_the_options_of_a_preset_reach_its_model(name):
    preset = replace(scnf.presets.PRESETS[name], initial_rows=20)  # enough, and quick
    data = toy("moons") if "toy" in name else digits() if name == "digits" else enlarged_digits()
    model = preset.make_model(data)
    found = model.options
    assert found["labelled_weight"] == preset.model.labelled_weight
    assert found["num_labelled"] == (len(data.labelled[0]) if preset.model.scaled else None)
    assert found["num_unlabelled"] == (len(data.unlabelled) if preset.model.scaled else None)
    assert model.class_probs.learnable == (preset.model.class_probs == "learnable")
    assert describe_model(model)["model"]["transform"]["name"] in scnf.flows.FLOWS  # it can be saved


@pytest.mark.parametrize("size", [0, 10, 25])
def test_so_many_rows_initialise_as_the_preset_says(moons, size):
    """The layer nearest the data has the mean of the rows that it saw: labelled ones, then first others."""
    transform = replace(scnf.presets.TOY, initial_rows=size).make_model(moons).flow.transform
    nearest = [m for m in transform.modules() if isinstance(m, T.ActNorm)][-1]
    (x, _), others = moons.labelled, moons.unlabelled
    seen = torch.cat([x, others[: size - len(x)]]) if size else moons.x
    assert len(seen) == (size or 100)
    assert torch.allclose(nearest.loc + nearest.center, seen.mean(0), atol=1e-5)


@pytest.mark.parametrize("order", ["by class", "in turns"])
def test_of_many_labelled_rows_some_of_each_class_initialise(order):
    """Also if the rows that initialise, evenly spaced in the data, would all be of one class."""
    data = toy("moons", num_train=120, labels_per_class=40, seed=0)
    rows = data.y.argsort(stable=True)[-80:]
    rows = rows.reshape(2, 40).T.flatten() if order == "in turns" else rows
    data = replace(data, x=data.x[rows], y=data.y[rows])
    flow = replace(scnf.presets.TOY, initial_rows=20).make_model(data, "gmm").flow
    x, y = (torch.cat([t[data.y == k][::4] for k in range(2)]) for t in (data.x, data.y))
    z_f = flow.encode(x)[1].detach()
    for k in range(2):
        assert torch.allclose(flow.prior.loc[k], z_f[y == k].mean(0), atol=1e-5)


def test_of_many_labelled_rows_half_initialise_if_a_class_has_no_label():
    """The other half are unlabelled rows, among which the class without a label starts."""
    data = toy("moons", num_train=120, labels_per_class=40, seed=0)
    hidden = replace(data, y=torch.where(data.y == 1, -1, data.y))
    flow = replace(scnf.presets.TOY, initial_rows=20).make_model(hidden, "gmm:means=clusters").flow
    known = flow.encode(hidden.labelled[0][torch.arange(10) * 40 // 10])[1].detach()
    assert torch.allclose(flow.prior.loc[0], known.mean(0), atol=1e-5)
    z_f = torch.cat([known, flow.encode(hidden.unlabelled[:10])[1].detach()])
    again = scnf.make_prior("gmm:means=clusters", (2,), 2)
    again.initialize(z_f, torch.arange(20) // 10 * -1)
    assert torch.allclose(flow.prior.loc, again.loc, atol=1e-5)


def test_a_class_of_digits_without_labels_is_found_as_a_cluster():
    """The settings are those of ``benchmarks/accuracy/clusters.py``, with a third of the training."""
    metrics = pytest.importorskip("sklearn.metrics")
    data = digits(labels_per_class=[0 if k == 3 else 10 for k in range(10)])
    torch.manual_seed(0)
    preset = scnf.presets.DIGITS.with_graph(None)
    model = preset.make_model(data, "gmm:means=clusters", latent_dim=64)
    preset.fit(model, data, steps=40, progress=False)
    with torch.no_grad():
        found = model.posterior(preset.augment.prepare(data.x_test)).probs.argmax(-1)
    assert metrics.adjusted_rand_score(data.y_test == 3, found == 3) >= 0.6
    assert metrics.adjusted_rand_score(data.y_test, found) >= 0.6


@pytest.mark.parametrize("prior", ["gmm", "student-t"])
def test_the_means_of_a_preset_start_at_the_labelled_latents(prior):
    """The preset initialises from few rows, in which the labelled rows of all classes are."""
    data = enlarged_digits()
    preset = replace(scnf.presets.MNIST_CPU, initial_rows=120, augment=scnf.datasets.Augment())
    data = replace(data, x=data.x / 256 + 0.5 / 256, x_test=data.x_test / 256 + 0.5 / 256)
    flow = preset.make_model(data, prior).flow
    x, y = data.labelled
    z_f = flow.encode(x)[1].detach()
    for k in range(10):
        assert torch.allclose(flow.prior.loc[k], z_f[y == k].mean(0), atol=1e-4)


def test_pairs_and_evidence_that_a_preset_trains_on_must_be_there():
    data, preset = enlarged_digits(), scnf.presets.MNIST_CPU
    model = preset.make_model(data)
    message = r"terms: agreement needs pairs of rows: give pairs, or link_neighbours\(data\)"
    with pytest.raises(ValueError, match=message):
        preset.fit(model, data, steps=1, terms="agreement")
    with pytest.raises(ValueError, match="terms: classification needs evidence about the unlabelled rows"):
        preset.fit(model, data, steps=1)
    for preset in scnf.presets.PRESETS.values():
        assert preset.neighbours > 0  # a term of the command line may use pairs


@pytest.mark.parametrize("name", ["digits", "mnist-cpu", "mnist-paper", "flowgmm-mnist-paper"])
def test_no_latent_components_are_none(name):
    with pytest.raises(ValueError, match="latent_dim=0: expected 1 to"):
        scnf.presets.PRESETS[name].flow("gmm", 10, 0)


def test_presets_are_found_by_name_and_can_be_pickled():
    for preset in scnf.presets.PRESETS.values():
        assert pickle.loads(pickle.dumps(preset)) == preset


def test_presets_take_every_option_of_fit():
    options = set(inspect.signature(scnf.training.fit).parameters) - {"model", "data"}
    assert set(FitOptions.__annotations__) == options


# -- evidence from a graph ---------------------------------------------------------------------------
def test_a_preset_with_a_graph_prepares_its_evidence():
    data, preset = digits(labels_per_class=5), scnf.presets.DIGITS
    told = preset.prepare(data)
    graph = neighbour_graph(data.x, 7, "hog")
    assert torch.equal(told.label_log_prior, label_evidence(graph, data.y, 10).log_probs)
    assert preset.prepare(told) is told  # what the data have already stays
    assert preset.with_graph(None).prepare(data) is data
    options = {"method": "poisson", "shares": (2.0, *(1.0,) * 9)}
    other = replace(preset, graph=replace(preset.graph, **options)).prepare(data)
    assert torch.equal(other.label_log_prior, label_evidence(graph, data.y, 10, **options).log_probs)


def test_the_graph_of_a_preset_is_exchanged():
    preset = scnf.presets.MNIST_CPU
    other = preset.with_graph("pixels")
    assert other.graph == replace(preset.graph, features="pixels")
    assert other.terms == preset.terms
    longer = replace(preset, steps=7)
    assert longer.with_graph(None) == replace(longer, graph=None, **preset.without_graph)
    assert longer.with_graph(None) != replace(longer, graph=None)
    assert scnf.presets.TOY.with_graph("pixels").graph == GraphOptions("pixels")
    for other in scnf.presets.PRESETS.values():
        if other.graph is None:
            assert other.with_graph(None) is other  # it keeps its terms


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "nonsense"}, "features='nonsense': expected 'pixels', 'deskew' or 'hog'"),
        ({"features": None}, "features=None: expected 'pixels'"),
        ({"features": "hog", "neighbours": 0}, "neighbours=0: expected at least 1"),
        ({"features": "hog", "components": 0}, "components=0: expected at least 1"),
        ({"features": "hog", "method": "laplace"}, "method='laplace': expected 'spreading' or 'poisson'"),
    ],
)
def test_options_of_a_graph_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GraphOptions(**options)


def test_a_graph_is_trusted_little_where_nothing_checks_it():
    """Cross-validation hides labels. It cannot hide the only one of a class."""
    data = digits(labels_per_class=1)
    found = GraphOptions("hog", neighbours=7).evidence(data)
    assert (found.sharpness, found.mix) == (1.0, 0.1)
    rows = (data.y == scnf.UNLABELLED).nonzero()[:, 0]
    assert found.log_probs[rows].exp().amax() < 0.95


# -- recommended for data of one's own ---------------------------------------------------------------
def table(rows: int = 60, labelled: int = 12, *, seed: int = 0) -> SemiSupervisedData:
    """Three classes along column 0. The other column has another unit, and no news of the label."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % 3
    x = torch.stack(
        [6.0 * y + torch.randn(rows, generator=generator), 1e4 * torch.randn(rows, generator=generator)], -1
    )
    shown = torch.where(torch.arange(rows) < labelled, y, scnf.UNLABELLED)
    return SemiSupervisedData(x, shown, x, y, 3)


def test_what_is_recommended_for_a_table():
    """Units play no part: noise has the scale of each column, and neighbours are nearest in its spread."""
    data = table()
    preset = recommended(data)
    spreads = torch.tensor(preset.augment.scales) / 0.3
    assert torch.allclose(spreads, torch.tensor([5.5, 1e4]), rtol=0.4)
    in_other_units = recommended(replace(data, x=data.x * 1000, x_test=data.x_test * 1000))
    assert torch.allclose(torch.tensor(in_other_units.augment.scales), 300 * spreads)
    assert preset.features is standardise_columns
    for word in ("table of 60 rows and 2 columns", "12 of them", "gmm:covariance=shared", "their spread"):
        assert word in preset.why
    model = preset.make_model(data)
    assert (model.flow.prior.covariance, model.options["num_unlabelled"]) == ("shared", 48)
    linked = preset.prepare(data)
    assert torch.equal(linked.neighbours, link_neighbours(data, 5, standardise_columns).neighbours)
    assert preset.prepare(linked) is linked
    assert pickle.loads(pickle.dumps(preset)) == preset


def test_what_is_recommended_trains_and_tells_classes_apart():
    data = table(90)
    preset = recommended(data)
    torch.manual_seed(0)
    model = preset.make_model(data)
    preset.fit(model, preset.prepare(data), steps=100, progress=False)
    found = model.posterior(preset.augment.prepare(data.x_test)).probs.argmax(-1)
    assert (found == data.y_test).double().mean() > 0.95


def clouds(rows=6000, seed=0):
    """Two long clouds in four of eight columns, one turned against the other; four columns of noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % 2
    z = torch.randn(rows, 8, generator=generator) * torch.tensor([3.0, 0.4, 3.0, 0.4, 0.1, 0.1, 0.1, 0.1])
    z = torch.where(y[:, None] > 0, z[:, [1, 0, 3, 2, 4, 5, 6, 7]], z) + 0.5 * y[:, None]
    z[:, 7] = (10 * z[:, 7]).round()  # whole numbers
    x = torch.cat([100 * z[:, :4].exp().log1p(), z[:, 4:]], 1)
    shown = torch.where(torch.arange(rows) < 20, y, scnf.UNLABELLED)
    return SemiSupervisedData(x, shown, x[-1000:], y[-1000:], 2)


@pytest.mark.parametrize(
    ("rows", "classes", "known", "components", "weight"),
    [
        (5000, 10, 10, 10, 30),
        (5000, 10, 75, 15, 30),
        (5000, 10, 400, 20, 25),  # all labelled rows count twice as much as all rows
        (20_000, 100, 600, 8, 60),
        (5000, 200, 200, 1, 30),
        (5000, 10, 5000, 20, 1),
    ],
)
def test_labels_and_rows_set_what_is_recommended(rows, classes, known, components, weight):
    """How many components tell the classes, and how much a labelled row counts."""
    x, y = torch.randn(rows, 40, generator=torch.Generator().manual_seed(0)), torch.arange(rows) % classes
    shown = torch.where(torch.arange(rows) < known, y, scnf.UNLABELLED)
    assert LeadingComponents(x).leading > 20
    preset = recommended(SemiSupervisedData(x, shown, x, y, classes))
    assert preset.flow.leading == components
    assert preset.model.labelled_weight == weight
    assert (f"counts {weight} times" in preset.why) == (known < rows)


def test_what_is_recommended_for_many_columns():
    """Few labels and some rows tell classes in 384 columns, such as those of embeddings."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(1000) % 2
    z = torch.randn(1000, 384, generator=generator) * torch.linspace(1, 3, 384) + 2.0 * y[:, None]
    x = z @ torch.linalg.qr(torch.randn(384, 384, generator=generator)).Q
    data = SemiSupervisedData(x, torch.where(torch.arange(1000) < 20, y, scnf.UNLABELLED), x, y, 2)
    preset = recommended(data)
    assert preset.flow == ComponentsFlow(384, 10, couplings=0)
    assert "No couplings" in preset.why
    torch.manual_seed(0)
    model = preset.make_model(data)
    preset.fit(model, data, steps=30, progress=False)
    assert (model.posterior(x).probs.argmax(-1) == y).double().mean() > 0.95
    with pytest.warns(UserWarning, match="384 columns and 767 rows, too few"):
        few = recommended(replace(data, x=data.x[:767], y=data.y[:767]))
    assert not isinstance(few.flow, ComponentsFlow)


def test_what_is_recommended_for_many_rows(tmp_path):
    """Classes are clouds of principal components, whose shape all rows tell. A few labels name them."""
    data = clouds()
    state = torch.get_rng_state()
    preset = recommended(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert preset.flow == ComponentsFlow(8, preset.flow.leading)
    assert preset.augment.widths[7] == 1.0
    assert not any(preset.augment.widths[:7])
    for word in ("table of 6000 rows and 8 columns, 20 of them", "full covariance", "values repeat: 1"):
        assert word in preset.why
    # Of 3000 rows of a class, 200 for each component count as of the pooled covariance.
    pooled = 200 * preset.flow.leading / (200 * preset.flow.leading + 3000)
    assert preset.prior.endswith(f",pooled={pooled:.2f}")
    assert f"{pooled:.0%} of that of each" in preset.why
    assert preset.model.labelled_weight == 30
    assert "counts 30 times" in preset.why
    assert pickle.loads(pickle.dumps(preset)) == preset
    torch.manual_seed(0)
    model = preset.make_model(data)
    preset.fit(model, data, steps=60, batch_size=512, progress=False)
    error = (model.posterior(preset.augment.prepare(data.x_test)).probs.argmax(-1) != data.y_test).double()
    assert error.mean() < 0.05
    few = recommended(replace(data, x=data.x[:4999], y=data.y[:4999]))
    assert not isinstance(few.flow, ComponentsFlow)
    rows = preset.augment.prepare(data.x_test)
    for each, made in ((preset, model), (few, few.make_model(data))):
        scnf.save(made, tmp_path / "model.pt")
        assert torch.equal(scnf.load(tmp_path / "model.pt").log_prob(rows), made.eval().log_prob(rows)), each


@pytest.mark.parametrize("columns", [2, 5])
def test_many_rows_without_a_leading_component_train_too(columns):
    """All components lead if none explains more than others. Then nothing but the prior learns."""
    x = torch.randn(5000, columns, generator=torch.Generator().manual_seed(0))
    y = torch.where(torch.arange(5000) < 20, torch.arange(5000) % 2, scnf.UNLABELLED)
    data = SemiSupervisedData(x, y, x[:4], y[:4], 2)
    preset = recommended(data)
    assert preset.flow.leading == columns
    assert preset.fit(preset.make_model(data), data, steps=1, batch_size=64, progress=False).steps == 1
    wide = SemiSupervisedData(x.double(), y, x[:4].double(), y[:4], 2)
    with pytest.raises(ValueError, match=r"data.x has dtype torch.float64"):
        preset.make_model(wide)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: LeadingComponents(torch.randn(5, 3, 2)), r"x has shape \(5, 3, 2\), expected rows"),
        (lambda: LeadingComponents(torch.randn(1, 3)), "x has 1 rows, expected two or more"),
        (lambda: LeadingComponents(torch.full((5, 2), torch.nan)), "x holds"),
        (lambda: LeadingComponents(torch.randn(50, 3))(torch.randn(4, 2)), "x has 2 columns, expected 3"),
    ],
)
def test_rows_without_components(use, message):
    with pytest.raises(ValueError, match=message):
        use()


def test_labels_are_a_matter_of_the_leading_components_alone():
    """Couplings change the others, so training them leaves every label posterior as it is."""
    torch.manual_seed(0)
    flow = ComponentsFlow(7, 3, couplings=3)("student-t:covariance=full", 2)
    x = torch.randn(200, 7).cumsum(1)
    flow.initialize(x, torch.arange(200) % 2)
    before, (aux, leading, _) = flow.posterior(x).logits, flow.encode(x)
    for name, parameter in flow.transform.named_parameters():
        assert "net" in name or "scale" in name
        torch.nn.init.normal_(parameter, std=0.3)
    after, found = flow.posterior(x).logits, flow.encode(x)
    assert torch.allclose(before, after, atol=1e-5)
    assert torch.equal(found[1], leading)
    assert ((found[0] - aux).abs().amax(0) > 0.01).all()


def test_features_of_a_graph_are_leading_components():
    data = clouds()
    features = LeadingComponents(data.x)
    found = features(data.x_test)
    assert found.shape == (1000, features.leading)
    assert torch.equal(features(data.x_test[3:5]), found[3:5])  # fitted once, not to the rows of a call
    assert (found.std(0).diff() > 0).all()


def test_neighbours_that_share_no_label_are_not_used():
    data = table(90, 60)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    preset = recommended(replace(data, x=data.x[order]))
    assert not preset.uses_pairs
    assert "Neighbours: not used, because only so many" in preset.why
    assert recommended(data).uses_pairs


@pytest.mark.parametrize("labelled", [3, 55, 58, 60])
def test_batches_that_are_recommended_fit_the_data(labelled):
    """Also if there are few unlabelled rows, an odd number of them, or none."""
    data = table(60, labelled)
    preset = recommended(data)
    model = preset.make_model(data)
    assert preset.fit(model, preset.prepare(data), steps=1, progress=False).steps == 1


def test_a_spread_that_outliers_and_constant_columns_leave_alone():
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:20, 1] = 1e6
    x[:, 2] = 7.0
    x[:, 3] = (torch.arange(1000) < 50).double()  # most values are equal
    spreads = column_spreads(x)
    assert torch.allclose(spreads[:2], torch.ones(2, dtype=torch.float64), rtol=0.1)
    assert spreads[2] == 1
    assert spreads[3] == pytest.approx(x[:, 3].std().item())
    features = standardise_columns(x)
    assert features.abs().max() == 4
    assert torch.allclose(features[:, 0].std(), torch.ones(()).double(), rtol=0.1)


@pytest.mark.parametrize(
    ("scale", "dtype", "bins"),
    [(1.0, torch.uint8, 17), (1.0, torch.float32, 17), (1 / 16, torch.float32, None)],
)
def test_what_is_recommended_for_images(scale, dtype, bins):
    """Whole numbers are grey levels, whatever their dtype; others are taken as they are."""
    data = digits()
    data = replace(data, x=(data.x * scale).to(dtype), x_test=(data.x_test * scale).to(dtype))
    preset = recommended(data)
    assert preset.augment.bins == bins
    assert preset.augment.scale == pytest.approx(0.4 * data.x.double().std().item() / (bins or 1))
    assert "8 by 8 pixels" in preset.why
    model = preset.make_model(data)
    assert preset.fit(model, preset.prepare(data), steps=1, progress=False).steps == 1
    assert model.posterior(preset.augment.prepare(data.x_test[:3])).probs.shape == (3, 10)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((1,), "needs two"),
        ((1, 7, 8), "pad images"),
        ((8, 8), r"x\[:, None\]"),
        ((8, 8, 3), r"channels come last.*x.transpose\(0, 3, 1, 2\)"),
        ((1, 1, 1), "pad images"),
    ],
)
def test_data_for_which_nothing_is_recommended(shape, remedy):
    x, y = torch.rand(9, *shape), torch.arange(9) % 3
    data = SemiSupervisedData(x, y, x, y, 3)
    message = r"x has rows of shape .* expected two or more columns, or images.*" + remedy
    with pytest.raises(ValueError, match=message):
        recommended(data)
    with pytest.raises(ValueError, match="y has no labelled row"):
        recommended(table(labelled=0))


def test_channels_that_seem_to_come_last_bring_a_warning():
    x, y = torch.randint(0, 256, (9, 8, 8, 4)), torch.arange(9) % 3
    with pytest.warns(UserWarning, match="8 channels of 8 by 4 pixels; if they are 4 channels of 8 by 8"):
        recommended(SemiSupervisedData(x, y, x, y, 3))


@pytest.mark.parametrize("rows", [60, 5000])
def test_a_column_of_too_large_numbers_is_named(rows):
    data = table(rows)
    data = replace(data, x=torch.stack([data.x[:, 0], (torch.arange(rows) % 3) * 1e17], -1))
    with pytest.raises(ValueError, match=r"^data: column 1 of x would get noise .* use a larger unit"):
        recommended(data)
    with pytest.raises(ValueError, match=r"^data: 'b' of x would get noise .*, and 1e\+15 is the most"):
        recommended(replace(data, column_names=("a", "b")))


def test_integer_images_that_are_no_grey_levels_are_refused_by_name():
    x, y = torch.randint(0, 4000, (9, 1, 8, 8)), torch.arange(9) % 3
    with pytest.raises(ValueError, match=r"^data: x has dtype torch.int64 and values from .* x.float\(\)"):
        recommended(SemiSupervisedData(x, y, x, y, 3))


def test_a_model_of_data_in_double_precision_is_refused_by_the_name_of_the_data():
    data = table()
    double = replace(data, x=data.x.double(), x_test=data.x_test.double())
    with pytest.raises(ValueError, match=r"^make_model: data.x has dtype torch.float64 .* data.x.to\("):
        recommended(double).make_model(double)


# -- flows of the plane --------------------------------------------------------
def test_toy_flows_have_about_as_many_parameters():
    """The SCNF paper compares flows and priors of roughly the same size."""
    sizes = {}
    for kind in ("glow", "realnvp", "ffjord"):
        for prior in ("flow", "gmm", "student-t", "ffjord"):
            flow = scnf.presets.ToyFlow(kind)(prior, 2)
            sizes[kind, prior] = sum(p.numel() for p in flow.parameters() if p.requires_grad)
            assert flow.log_prob(torch.randn(3, 2)).isfinite().all()
    assert max(sizes.values()) <= 1.5 * min(sizes.values()), sizes


def test_toy_flows_refuse_other_kinds_and_latents():
    with pytest.raises(ValueError, match="kind='maf': expected 'glow', 'realnvp' or 'ffjord'"):
        scnf.presets.ToyFlow("maf")
    with pytest.raises(ValueError, match="latent_dim=1: the toys are two-dimensional"):
        scnf.presets.ToyFlow()("flow", 2, 1)
