"""M1, M2 and M1+M2: losses and gradients against hand computations, training, accuracy, files, refusals."""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import replace

import pyro
import pytest
import torch
from helpers import perturb
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch.nn import functional as F

from pyro_scnf.baselines import M1, M1M2, M2
from pyro_scnf.datasets import ImageAugment, SemiSupervisedData, digits

ENUMERATE = {"max_plate_nesting": 1}
SMALL = {"latent_dim": 4, "style_dim": 3, "hidden": (8,), "style_hidden": (8,)}
GREY = ImageAugment(bins=17)


def normal(parameters):
    loc, scale = parameters.chunk(2, -1)
    return torch.distributions.Normal(loc, F.softplus(scale + 0.5413) + 1e-4)


def standard_normal(z):
    return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)


def same_gradients(module, found, expected):
    """Whether two losses and their gradients at all parameters are equal, and no gradient is zero."""
    parameters = list(module.parameters())
    ours = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    assert all(bool(gradient.any()) for gradient in ours)
    assert torch.allclose(found, expected)
    return all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(ours, theirs, strict=True))


# -- losses ----------------------------------------------------------------------------------------
def test_loss_of_m1_is_that_by_hand():
    model, x = M1((1, 2, 3), 2, (5, 4)).double(), torch.rand(7, 1, 2, 3).double()
    perturb(model)
    torch.manual_seed(1)
    found = TraceMeanField_ELBO().differentiable_loss(model.model, model.guide, x, 70, 0.3)
    torch.manual_seed(1)
    flat = x.flatten(1)
    code = normal(model.encoder(2 * flat - 1))
    divergence = 0.5 * (code.loc**2 + code.scale**2 - 1) - code.scale.log()
    probs = torch.sigmoid(model.decoder(code.rsample()))
    white = (flat * probs.log() + (1 - flat) * (1 - probs).log()).sum(-1)
    assert same_gradients(model, found, 10 * (0.3 * divergence.sum(-1) - white).sum())


def test_untrained_networks_of_m1_depend_on_their_input():
    """From a last layer of zeros, a variational autoencoder learns more slowly."""
    torch.manual_seed(0)
    model = M1((1, 8, 8), 6, (64, 64))
    code = model.encode(torch.rand(500, 1, 8, 8))
    assert code.base_dist.loc.std(0).min() > 0.1
    assert 0.3 < model.decoder(torch.randn(500, 6)).std(0).mean() < 3


@pytest.mark.parametrize(("sizes", "scales", "rows"), [((None, None), (1, 1), 8), ((6, 40), (2, 8), 46)])
def test_loss_of_m2_is_that_by_hand(sizes, scales, rows):
    """The sum over unknown labels, the classification of known ones, and the scales of both plates."""
    model = M2(4, 3, 2, (5,), alpha=0.2).double()
    perturb(model)
    z, y, others = torch.randn(3, 4).double(), torch.tensor([0, 2, 2]), torch.randn(5, 4).double()
    torch.manual_seed(1)
    elbo = TraceEnum_ELBO(**ENUMERATE)
    found = elbo.differentiable_loss(model.model, model.guide, z, y, others, sizes)

    def joint(z, label):
        """log p(y, z2, z1) - log q(z2), ``(K, B)`` or ``(B,)``."""
        label = F.one_hot(label, 3).double()
        q = normal(model.encoder(z, label))
        style = q.rsample()
        entropy = -q.log_prob(style).sum(-1)
        given = normal(model.decoder(style, label)).log_prob(z).sum(-1)
        return given + standard_normal(style) + entropy - math.log(3)

    torch.manual_seed(1)
    known = joint(z, y)
    table = joint(others, torch.arange(3)[:, None])
    log_q = model.classifier(others).log_softmax(-1).T
    unknown = (log_q.exp() * (table - log_q)).sum(0)
    classified = model.classifier(z).log_softmax(-1)[torch.arange(3), y].mean()
    expected = -scales[0] * known.sum() - scales[1] * unknown.sum() - 0.2 * rows * classified
    assert same_gradients(model, found, expected)


def test_a_class_without_labels_keeps_its_share_of_the_prior():
    model = M2(4, 3, 2, (5,))
    trace = pyro.poutine.trace(model.model).get_trace(
        torch.randn(2, 4), torch.tensor([0, 1]), torch.randn(5, 4)
    )
    assert torch.allclose(trace.nodes["y_unlabelled"]["fn"].probs, torch.full((3,), 1 / 3))


def test_both_models_can_be_trained_by_svi_and_pickled_afterwards():
    """Ordinary Pyro: the store learns all parameters of the networks."""
    x, y = torch.rand(30, 6), torch.randint(2, (10,))
    m1, m2 = M1((6,), 2, (5,)), M2(6, 2, 2, (5,))
    elbo = TraceEnum_ELBO(**ENUMERATE)
    for module, loss, batch in ((m1, Trace_ELBO(), (x,)), (m2, elbo, (x[:10], y, x[10:]))):
        pyro.clear_param_store()
        before = [p.detach().clone() for p in module.parameters()]
        svi = SVI(module.model, module.guide, pyro.optim.Adam({"lr": 0.03}), loss)
        first = svi.step(*batch)
        losses = [svi.step(*batch) for _ in range(60)]
        assert sum(losses[-10:]) / 10 < first
        assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
        pickle.loads(pickle.dumps(module))


# -- training --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fitted():
    data = digits()
    torch.manual_seed(0)
    options = {"latent_dim": 16, "style_dim": 8, "hidden": (64,), "style_hidden": (64,)}
    model = M1M2((1, 8, 8), 10, **options)
    model.fit(data, steps=400, m1_lr=5e-3, augment=GREY)
    return model, data


def accuracy(posterior, y):
    return float((posterior.probs.argmax(-1) == y).double().mean())


def test_accuracy_on_digits(fitted):
    model, data = fitted
    assert accuracy(model.posterior(GREY.prepare(data.x_test)), data.y_test) > 0.8


def test_codes_are_standardised(fitted):
    model, data = fitted
    codes = model.codes(GREY.prepare(data.x)).sample()
    assert torch.allclose(codes.mean(0), torch.zeros(16), atol=0.1)
    assert torch.allclose(codes.std(0), torch.ones(16), atol=0.1)


def test_files_and_copies_give_the_same_posterior(fitted):
    model, data = fitted
    x = GREY.prepare(data.x_test)
    torch.manual_seed(5)
    empty = M1M2((1, 8, 8), 10, latent_dim=16, style_dim=8, hidden=(64,), style_hidden=(64,))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    empty.load_state_dict(torch.load(file))
    for copy in (empty, pickle.loads(pickle.dumps(model))):
        assert torch.equal(copy.posterior(x).logits, model.posterior(x).logits)


def vectors(missing: int | None = None) -> SemiSupervisedData:
    """Three clusters in the unit square, of which one may have no label."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    corners = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]])
    x = (corners[y] + 0.05 * torch.randn(300, 2, generator=generator)).clamp(0, 1)
    shown = torch.where(torch.arange(300) < 30, y, -1)
    if missing is not None:
        shown = torch.where(y == missing, -1, shown)
    return SemiSupervisedData(x, shown, x, y, 3)


def trained(seed: int = 0, **options) -> M1M2:
    torch.manual_seed(0)
    model = M1M2((2,), 3, **SMALL)
    model.fit(vectors(), seed=seed, **{"steps": 3, **options})
    return model


def equal(a, b) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_runs_of_a_seed_are_equal_and_leave_no_trace():
    pyro.get_param_store().setdefault("m1.encoder$$$first.weight", torch.ones(2))  # of another program
    names = set(pyro.get_param_store().keys())
    first = trained()
    after = torch.get_rng_state()
    torch.manual_seed(0)
    M1M2((2,), 3, **SMALL)
    assert torch.equal(after, torch.get_rng_state())  # fit drew nothing
    assert set(pyro.get_param_store().keys()) == names
    assert equal(first, trained())
    assert not equal(first, trained(seed=1))


def test_training_changes_every_parameter_and_the_scale_of_codes():
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in M1M2((2,), 3, **SMALL).state_dict().items()}
    after = trained().state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_a_run_of_minutes_ends_by_the_clock():
    model = trained(steps=None, minutes=0.005)
    assert model.posterior(vectors().x).probs.isfinite().all()


def test_augment_changes_labelled_and_unlabelled_rows_by_its_own_methods():
    class Marked(ImageAugment):
        seen: list[str] = []  # noqa: RUF012

        def __call__(self, x):
            self.seen.append("call")
            return x

        def labelled(self, x):
            self.seen.append("labelled")
            return x

        def prepare(self, x):
            self.seen.append("prepare")
            return x

    trained(augment=Marked(), steps=1)
    assert Marked.seen == ["prepare", "call", "prepare", "labelled", "call"]


def test_a_class_without_labels_can_be_predicted():
    torch.manual_seed(0)
    model = M1M2((2,), 3, **SMALL)
    data = vectors(missing=2)
    model.fit(data, steps=20)
    assert model.posterior(data.x).probs.shape == (300, 3)


# -- refusals --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"steps=None, minutes=None: give one of them"),
        ({"steps": 1, "minutes": 1}, r"steps=1, minutes=1: give one of them"),
        ({"steps": 0}, "steps=0"),
        ({"minutes": 0}, "minutes=0"),
        ({"steps": 1, "batch_size": 0}, "batch_size=0"),
        ({"steps": 1, "labelled_batch_size": 0}, "labelled_batch_size=0"),
        ({"steps": 1, "m1_lr": 0}, "m1_lr=0"),
        ({"steps": 1, "m2_lr": 0}, "m2_lr=0"),
        ({"steps": 1, "seed": -1}, "seed=-1"),
        ({"steps": 1, "augment": 3}, "augment=3"),
    ],
)
def test_wrong_options_of_fit(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        M1M2((2,), 3, **SMALL).fit(vectors(), **options)


def test_wrong_data():
    data, model = vectors(), M1M2((2,), 3, **SMALL)
    some = torch.where(data.y < 0, 0, data.y)
    wrong = [
        (data.x, "data is of type Tensor, expected a SemiSupervisedData"),
        (replace(data, num_classes=4), "data has num_classes=4, expected 3"),
        (replace(data, y=torch.full_like(data.y, -1)), "data has 0 labelled rows of 300"),
        (replace(data, y=some), "data has 300 labelled rows of 300"),
        (replace(data, x=data.x * 3), r"M1: data\.x holds \d+ values outside \[0, 1\]"),
        (replace(data, x=data.x[:, :1], x_test=data.x[:, :1]), r"M1: data\.x has shape \(300, 1\)"),
        (replace(data, x=data.x.double(), x_test=data.x.double()), r"M1: data\.x has dtype torch.float64"),
    ]
    for given, message in wrong:
        with pytest.raises(ValueError, match=f"^{message}"):
            model.fit(given, steps=1)
    with pytest.raises(ValueError, match=r"^M1: x has shape \(3, 4\), expected \(\*batch, 2\)"):
        model.posterior(torch.rand(3, 4))


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_loss_that_is_no_number_ends_the_run():
    torch.manual_seed(0)
    model = M1M2((2,), 3, **SMALL)
    with torch.no_grad():
        model.m1.decoder.last.bias.fill_(math.nan)
    with pytest.raises(RuntimeError, match=r"^the loss of M1 is nan; give a smaller m1_lr"):
        model.fit(vectors(), steps=1)
