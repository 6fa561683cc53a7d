"""``elbo`` of models of a user's own: it trains all that they name, and its value is exact or an error."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import CONDITIONAL_TRANSFORMS, PRIORS, TRANSFORMS
from helpers import counting, image_flow, relative, toy_flow
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.nn.module import to_pyro_module_
from pyro.optim import Adam
from torch import nn
from torch.func import functional_call

import pyro_scnf as scnf

F64 = torch.float64
THIRD = torch.full((3,), 1 / 3, dtype=F64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
PARALLEL = {"enumerate": "parallel"}


@pytest.fixture
def flow():
    return toy_flow("gmm", dtype=F64)


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=F64)


def labelled_by(flow, **site):
    """A function with one label a row, which names the flow."""

    def model(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(THIRD.to(x.dtype)), **site)
            pyro.sample("x", flow.condition(y), obs=x)

    return model


def plain(flow):
    return labelled_by(flow, infer=PARALLEL)


def shares(flow):
    """A function with a latent and a parameter with a constraint besides the flow."""

    def model(x):
        pyro.module("flow", flow)
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3, dtype=F64)))
        rate = pyro.param("rate", torch.ones((), dtype=F64), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(share), infer=PARALLEL)
            pyro.sample("x", flow.condition(y), obs=x * rate)

    return model


def automatic(model, kind=AutoNormal):
    return kind(poutine.block(model, hide=["y"]))


class Methods(nn.Module):
    """Model and guide as methods of one module, as in Pyro's examples."""

    def __init__(self, flow) -> None:
        super().__init__()
        self.flow, self.net = flow, nn.Linear(2, 3).double()

    def model(self, x):
        plain(self.flow)(x)

    def guide(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.net(x).log_softmax(-1)), infer=PARALLEL)


def ids(parameters):
    return {id(p) for p in parameters}


# -- parameters of functions ----------------------------------------------------------------------
def both_parts(model):
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, hide=["y"])))
    guide.append(AutoDiscreteParallel(poutine.block(model, expose=["y"])))
    return guide


def function(flow):
    return plain(flow), scnf.exact_guide, flow.parameters()


def methods(flow):
    owner = Methods(flow)
    return owner.model, owner.guide, owner.parameters()


def wrapped_module(flow):
    model = scnf.SemiSupervisedModel(flow, "learnable")
    return config_enumerate(poutine.scale(model, scale=1.0)), scnf.exact_guide, model.parameters()


def with_autoguide(make):
    def build(flow):
        model = shares(flow)
        guide = make(model)
        return model, guide, lambda: [*flow.parameters(), *guide.parameters(), stored("rate")]

    return build


def stored(name):
    return pyro.param(name).unconstrained()


WAYS = {
    "function": function,
    "methods": methods,
    "wrapped module": wrapped_module,
    "autoguide": with_autoguide(automatic),
    "list of autoguides": with_autoguide(both_parts),
}
ways = pytest.mark.parametrize("way", WAYS)


@ways
def test_parameters_are_unknown_before_the_first_call_and_complete_after_it(way, flow, x):
    model, guide, expected = WAYS[way](flow)
    loss = scnf.elbo(model, guide)
    above = nn.ModuleDict({"loss": loss})  # as Lightning reads them
    for read in (loss.parameters, loss.state_dict, above.parameters, above.state_dict):
        with pytest.raises(RuntimeError, match=r"loss are not known yet.*call the loss once"):
            list(read())
    loss.zero_grad()  # changes nothing yet
    loss(x)
    expected = ids(expected() if callable(expected) else expected)
    assert ids(loss.parameters()) == ids(above.parameters()) == expected
    assert len(loss.state_dict()) >= len(expected)


@ways
def test_one_step_moves_every_parameter_as_pyros_gradient_says(way, flow, x):
    model, guide, _ = WAYS[way](flow)
    loss = scnf.elbo(model, guide)
    loss(x)
    parameters = list(loss.parameters())
    options = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
    pyro.set_rng_seed(3)
    value = loss(x)
    pyro.set_rng_seed(3)
    pyros = TraceEnum_ELBO(**options).differentiable_loss(model, guide, x)
    assert value.item() == pytest.approx(pyros.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(v, parameters, allow_unused=True) for v in (value, pyros))
    assert all(g is not None and torch.allclose(g, h, rtol=1e-9) for g, h in zip(ours, theirs, strict=True))
    before = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.Adam(parameters, 0.01)
    loss(x).backward()
    optimiser.step()
    assert not any(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


@pytest.mark.parametrize("guide", [None, "em", "em-sample", "em-ema"])
def test_modules_are_known_from_the_beginning(guide, flow):
    model = scnf.SemiSupervisedModel(flow)
    loss = scnf.elbo(model) if guide is None else scnf.elbo(model, scnf.make_guide(guide, model))
    assert ids(model.parameters()) <= ids(loss.parameters())


def test_a_first_call_without_gradient_finds_the_parameters(flow, x):
    loss = scnf.elbo(plain(flow))
    with torch.no_grad():
        loss(x)
    assert ids(loss.parameters()) == ids(flow.parameters())


def test_an_earlier_module_of_the_same_name_is_not_trained(flow, x):
    pyro.module("flow", toy_flow("gmm", dtype=F64))  # the cell that is run again
    for names in (
        plain(flow),
        lambda x: (pyro.module("flow", flow, update_module_params=True), plain(flow)(x)),
    ):
        loss = scnf.elbo(names)
        loss(x)
        assert ids(loss.parameters()) == ids(flow.parameters())
        with torch.no_grad():
            assert loss(x).item() == pytest.approx(-flow.log_prob(x).sum().item(), rel=1e-12)


def change_the_value():
    pyro.get_param_store()["rate"] = torch.tensor(3.0, dtype=F64)


def start_anew():
    pyro.clear_param_store()


@pytest.mark.parametrize("change", [change_the_value, start_anew])
def test_the_loss_stays_in_step_with_the_store(change, flow, x):
    model = shares(flow)
    loss = scnf.elbo(model, automatic(model))
    loss(x)
    before = ids(loss.parameters())
    change()
    with pytest.raises(RuntimeError, match=r"the parameter 'rate' is new.*make the optimiser anew"):
        loss(x)
    loss(x).backward()  # said once
    assert id(stored("rate")) in ids(loss.parameters()) - before
    assert stored("rate").grad is not None
    assert len(ids(loss.parameters())) == len(before)


def test_a_parameter_of_a_later_step_is_not_left_out(flow, x):
    def model(x):
        offset = pyro.param("late", torch.zeros(2, dtype=F64)) if len(x) > 3 else 0.0
        plain(flow)(x - offset)

    loss = scnf.elbo(model)
    loss(x[:3])
    loss(x)  # nothing has read the parameters
    assert id(stored("late")) in ids(loss.parameters())
    pyro.clear_param_store()
    early = scnf.elbo(model)
    early(x[:3])
    list(early.parameters())
    with pytest.raises(RuntimeError, match="the parameter 'late' is new"):
        early(x)


def test_a_guide_that_begins_with_values_of_an_earlier_one(flow, x):
    """Pyro gives guides of one name the same parameters, in a cell of a notebook that runs again too."""
    model = shares(flow)
    first = automatic(model)
    loss = scnf.elbo(model, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(x)  # it makes its own parameters
        loss(x)
        scnf.elbo(model, first)(x)  # it has them, and goes on
    message = r"begins with values of 'AutoNormal\.locs\.share'.*\(2 in all"
    for again in (automatic(model), copy.deepcopy(first)):
        loss = scnf.elbo(model, again)
        with pytest.warns(UserWarning, match=message):
            loss(x)
        assert again.locs.share is first.locs.share
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(x)  # said once
    pyro.clear_param_store()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scnf.elbo(model, automatic(model))(x)


def test_a_flow_put_in_after_the_optimiser_was_made(flow, x):
    model = scnf.SemiSupervisedModel(flow)
    loss = scnf.elbo(model)
    list(loss.parameters())
    loss(x)
    model.flow = toy_flow("gmm", dtype=F64)
    with pytest.raises(RuntimeError, match="is new: it has come since the parameters of the loss were read"):
        loss(x)


def test_a_store_that_overrides_the_parameters_of_a_pyro_module(flow, x):
    class Shifted(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = scnf.SemiSupervisedModel(flow)
            self.offset = PyroParam(torch.zeros(2, dtype=F64))

        def forward(self, x):
            return self.inner(x - self.offset)

    scnf.elbo(Shifted())(x)
    loss = scnf.elbo(Shifted())
    list(loss.parameters())
    with pytest.raises(RuntimeError, match="the parameter 'offset' is new"):
        loss(x)


def unnamed(flow):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(THIRD), infer=PARALLEL)
            pyro.sample("x", flow.condition(y), obs=x)

    return model


def test_a_module_that_nothing_names(flow, x):
    loss = scnf.elbo(unnamed(flow))
    assert loss(x).item() == pytest.approx(-flow.log_prob(x).sum().item(), rel=1e-12)
    count = len(list(flow.parameters()))
    with pytest.raises(RuntimeError, match=rf"depends on {count} parameters that neither .*pyro\.module"):
        list(loss.parameters())
    flow.requires_grad_(False)
    assert list(loss.parameters()) == []


def test_a_state_dict_goes_back_into_the_same_tensors(flow, x):
    model = shares(flow)
    loss = scnf.elbo(model, automatic(model))
    loss(x)
    kept = copy.deepcopy(loss.state_dict())
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(1)
    assert pyro.param("rate").item() != 1
    loss.load_state_dict(kept)
    assert pyro.param("rate").item() == pytest.approx(1)
    assert ids(flow.parameters()) <= ids(loss.parameters())


def test_a_copy_of_the_loss_of_a_function_finds_the_parameters_anew(flow, x):
    model = shares(flow)
    loss = scnf.elbo(model, automatic(model))
    loss(x).backward()
    again = copy.deepcopy(loss)
    with pytest.raises(RuntimeError, match="call the loss once first"):
        list(again.parameters())
    again(x)
    assert ids(flow.parameters()) <= ids(again.parameters())


def test_the_loss_of_a_module_is_copied_with_the_module(flow, x):
    loss = scnf.elbo(scnf.SemiSupervisedModel(flow))
    value = loss(x)
    value.backward()
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert not ids(again.parameters()) & ids(loss.parameters())
        assert again(x).item() == value.item()


def test_the_loss_of_a_function_cannot_be_converted_in_half(flow, x):
    loss = scnf.elbo(plain(flow))
    loss(x)
    assert loss.double() is loss
    with pytest.raises(RuntimeError, match=r"convert the modules of the function themselves"):
        loss.float()
    assert all(p.dtype == F64 for p in flow.parameters())


@pytest.mark.parametrize("table", [TRANSFORMS, CONDITIONAL_TRANSFORMS, PRIORS])
def test_every_parameter_is_contiguous(table):
    """Pyro's store copies other tensors, and its optimisers would train the copies."""
    strided = [
        (n, k)
        for n, case in table.items()
        for k, p in case.build().named_parameters()
        if not p.is_contiguous()
    ]
    assert strided == []


def test_pyros_optimiser_moves_every_parameter_of_an_image_flow():
    model = scnf.SemiSupervisedModel(image_flow("flow"))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    svi = SVI(model, scnf.exact_guide, Adam({"lr": 0.01}), elbo)
    for _ in range(3):
        svi.step(torch.randn(6, 1, 4, 4))
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []


def test_a_module_in_another_layout_is_trained_itself():
    flow = image_flow("flow").to(memory_format=torch.channels_last)
    assert not all(p.is_contiguous() for p in flow.parameters())
    loss = scnf.elbo(plain(flow))
    loss(torch.randn(6, 1, 4, 4))
    assert ids(loss.parameters()) == ids(flow.parameters())


def test_looking_for_parameters_and_plates_costs_no_pass_of_the_flow(flow, x):
    loss = scnf.elbo(plain(flow))
    for _ in range(3):
        with counting(flow.transform, "inverse_and_ladj") as counter:
            loss(x).backward()
        assert counter.calls == 1


# -- latents that nothing sums out ----------------------------------------------------------------
def drawn(name, distribution):
    """A model with a latent of one kind."""

    def build(flow):
        def model(x):
            pyro.module("flow", flow)
            with pyro.plate("data", len(x)):
                pyro.sample(name, distribution)
                pyro.sample("x", flow.condition(Y[: len(x)]), obs=x)

        return model

    return build


def hidden_inside(flow):
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.block(hide_fn=lambda msg: msg["name"] == "kind"):
                y = pyro.sample("kind", dist.Categorical(THIRD))
            pyro.sample("x", flow.condition(y), obs=x)

    return model


def masked_observation(flow):
    return labelled_by(flow, obs=Y, obs_mask=Y > 0, infer=PARALLEL)


def ready(flow):
    return scnf.SemiSupervisedModel(flow)


LATENTS = {
    "not marked": (labelled_by, "discrete site 'y' .*neither enumerated nor in the guide.*parallel"),
    "mark dropped": (masked_observation, "discrete site 'y_unobserved' .*neither enumerated"),
    "blocked": (lambda f: poutine.block(plain(f), hide=["y"]), "site 'y' is hidden from the loss"),
    "blocked type": (lambda f: poutine.block(plain(f), hide_types=["sample"]), "site 'y' is hidden"),
    "blocked ready": (lambda f: poutine.block(ready(f), hide=["y"]), "'y' is hidden from the loss"),
    "blocked, scaled": (
        lambda f: poutine.scale(poutine.block(ready(f), hide=["y"]), scale=2.0),
        "'y' is hidden",
    ),
    "blocked inside": (hidden_inside, "site 'kind' is hidden from the loss"),
    "bernoulli": (drawn("flip", dist.Bernoulli(THIRD[0])), "discrete site 'flip' .*neither enumerated"),
    "one-hot": (drawn("hot", dist.OneHotCategorical(THIRD)), "discrete site 'hot' .*neither enumerated"),
    "count": (drawn("count", dist.Poisson(THIRD[0])), "'count' is neither observed .*too many values"),
    "continuous": (
        drawn("shift", dist.Normal(THIRD[0], 1.0)),
        "'shift' is neither observed nor in the guide",
    ),
}


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_a_latent_that_nothing_sums_out_is_named(latent, flow, x):
    build, message = LATENTS[latent]
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=message) as raised:
            scnf.elbo(build(flow))(x)
        assert "site '" in str(raised.value).splitlines()[0] or "label '" in str(raised.value).splitlines()[0]


@pytest.mark.parametrize("given", [{"y": Y}, {"n": 4}])
def test_data_that_are_not_observed(given, flow):
    """A drawn x would count as if it had been observed."""
    with pytest.raises(RuntimeError, match="the site 'x' is neither observed nor in the guide"):
        scnf.elbo(scnf.SemiSupervisedModel(flow))(**given)


@pytest.mark.parametrize("build", [unnamed, hidden_inside])
def test_a_loss_inside_a_block_is_not_affected_by_it(build, flow, x):
    with poutine.block():
        if build is unnamed:
            assert scnf.elbo(build(flow))(x).item() == pytest.approx(-flow.log_prob(x).sum().item())
        else:
            with pytest.raises(RuntimeError, match="'kind' is hidden"):
                scnf.elbo(build(flow))(x)


def test_a_hidden_label_under_pyros_own_loss(flow, x):
    hidden = poutine.block(scnf.SemiSupervisedModel(flow), hide=["y"])
    for depth in ({"max_plate_nesting": 1}, {}):
        with pytest.raises(RuntimeError, match=r"the label 'y' is hidden from the loss by poutine\.block"):
            TraceEnum_ELBO(**depth).loss(hidden, scnf.exact_guide, x)


def test_a_guide_over_an_observed_site(flow, x):
    model = shares(flow)
    guide = automatic(model)
    fixed = poutine.condition(model, {"share": THIRD})
    with pytest.raises(RuntimeError, match="the guide samples the site 'share', which is observed"):
        scnf.elbo(fixed, guide)(x)


def amortised(x, weights=None, plate="data", **site):
    with pyro.plate(plate, len(x)):
        logits = torch.stack([x[:, 0], x[:, 1], 0 * x[:, 0]], -1).log_softmax(-1)
        pyro.sample("y", dist.Categorical(logits=logits), infer=PARALLEL)


MASK = torch.tensor([True, False, True, True, False, True])


def masked_by(flow, mask, x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(THIRD).mask(mask), infer=PARALLEL)
        pyro.sample("x", flow.condition(y), obs=x)


APART = {  # model, guide, arguments, what the message says
    "sizes": (lambda f: scnf.SemiSupervisedModel(f, num_unlabelled=60), amortised, {}, "scale"),
    "weights": (scnf.SemiSupervisedModel, amortised, {"weights": torch.rand(6)}, "scale"),
    "plate": (scnf.SemiSupervisedModel, partial(amortised, plate="rows"), {}, r"plates .*data.*rows"),
    "scale": (lambda f: poutine.scale(scnf.SemiSupervisedModel(f), scale=0.1), amortised, {}, "scale"),
    "mask": (lambda f: poutine.mask(scnf.SemiSupervisedModel(f), mask=MASK), amortised, {}, "mask"),
    "mask of the distribution": (
        lambda f: partial(masked_by, f, MASK),
        amortised,
        {},
        "mask",
    ),
    "mask of the guide": (scnf.SemiSupervisedModel, poutine.mask(amortised, mask=MASK), {}, "mask"),
}


@pytest.mark.parametrize("case", APART)
def test_a_guide_that_weighs_a_latent_in_another_way(case, flow, x):
    make, guide, options, what = APART[case]
    with pytest.raises(RuntimeError, match=rf"^the site 'y' differs between model and guide in {what}"):
        scnf.elbo(make(flow), guide)(x, **options)


def test_a_guide_under_the_handlers_of_the_model(flow, x):
    model = scnf.SemiSupervisedModel(flow)
    plain = scnf.elbo(model, amortised)(x).item()
    both = (poutine.scale(one, scale=0.1) for one in (model, amortised))
    assert scnf.elbo(*both)(x).item() == pytest.approx(0.1 * plain, rel=1e-10)
    both = (poutine.mask(one, mask=MASK) for one in (model, scnf.EMGuide(model)))
    assert scnf.elbo(*both)(x).item() == pytest.approx(-model.log_prob(x)[MASK].sum().item(), rel=1e-10)
    tempered = poutine.scale(shares(flow), scale=0.1)  # a point has no entropy, so the guide needs no scale
    assert scnf.elbo(tempered, automatic(shares(flow), AutoDelta))(x).isfinite()
    with pytest.raises(RuntimeError, match=r"the site 'share' differs .* in scale"):
        scnf.elbo(tempered, automatic(shares(flow), AutoNormal))(x)


def test_a_guide_with_a_site_that_the_model_lacks(flow, x):
    normal = dist.Normal(torch.zeros((), dtype=F64), 5.0)

    def guide(x, fn=normal, **site):
        pyro.sample("z", fn, **site)

    exact, refused = scnf.elbo(plain(flow))(x).item(), "the guide samples the site 'z', which the model lacks"
    point = dist.Delta(torch.zeros((), dtype=F64))
    dense = dist.Delta(torch.zeros((), dtype=F64), torch.tensor(-1.0, dtype=F64))
    for wrong in (guide, partial(guide, fn=dense)):
        with pytest.raises(RuntimeError, match=refused):
            scnf.elbo(plain(flow), wrong)(x)
    for harmless in (partial(guide, fn=point), poutine.mask(guide, mask=False)):
        assert scnf.elbo(plain(flow), harmless)(x).item() == pytest.approx(exact, rel=1e-12)
    scnf.elbo(plain(flow), partial(guide, infer={"is_auxiliary": True}))(x)


def test_points_with_a_density_weigh_like_what_they_were_drawn_from(flow, x):
    """As an autoguide makes them: with a density of their own, or beside an auxiliary site that has it."""

    def model(x, size=None):
        with pyro.plate("data", size or len(x), subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
            y = pyro.sample("y", dist.Categorical(THIRD), infer=PARALLEL)
            pyro.sample("x", flow.condition(y), obs=x - z)

    def guide(x, size=None):
        q = dist.Normal(torch.zeros(len(x), 2, dtype=F64), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = q.rsample()
            pyro.sample("z", dist.Delta(z, q.log_prob(z), event_dim=1))

    scnf.elbo(model, guide)(x)
    shown = poutine.block(model, hide=["y"])
    for each in (guide, AutoDiagonalNormal(shown)):
        with pytest.raises(RuntimeError, match="the site 'z' differs between model and guide in scale"):
            scnf.elbo(partial(model, size=60), each)(x)
    assert scnf.elbo(partial(model, size=60), AutoNormal(partial(shown, size=60)))(x).isfinite()
    both = AutoGuideList(with_two(flow))
    both.append(AutoDelta(poutine.block(with_two(flow), expose=["share"])))
    both.append(AutoNormal(poutine.block(with_two(flow), expose=["shift"])))
    assert scnf.elbo(with_two(flow), both)(x).isfinite()


def with_two(flow):
    """A share, whose density counts half, and a shift."""

    def model(x):
        with poutine.scale(scale=0.5):
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3, dtype=F64)))
        shift = pyro.sample("shift", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(share), infer=PARALLEL)
            pyro.sample("x", flow.condition(y), obs=x - shift)

    return model


class Unreparametrised(dist.Normal):
    has_rsample = False


@pytest.mark.parametrize("kind", [dist.Normal, Unreparametrised])
def test_plates_of_draws_without_a_gradient(kind, flow, x):
    """The score function needs them. Draws with a gradient do not."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=F64), 1.0))
            y = pyro.sample("y", dist.Categorical(THIRD), infer=PARALLEL)
            pyro.sample("x", flow.condition(y), obs=x - z[..., None])

    def guide(x, plate="data"):
        with pyro.plate(plate, len(x)):
            pyro.sample("z", kind(torch.zeros(len(x), dtype=F64), 1.0))

    assert scnf.elbo(model, guide)(x).isfinite()
    loss = scnf.elbo(model, partial(guide, plate="rows"))
    if kind is dist.Normal:
        assert loss(x).isfinite()
    else:
        with pytest.raises(RuntimeError, match=r"differs between model and guide in plates .*data.*rows"):
            loss(x)


@pytest.mark.parametrize("loops", [(True, False), (False, True), (True, True)])
def test_sequential_plates_are_no_dimensions(loops, flow, x):
    """A loop over a plate and a plain loop are the same to a guide that draws each label."""

    def each(in_plate):
        return pyro.plate("data", len(x)) if in_plate else range(len(x))

    def model(x):
        for i in each(loops[0]):
            y = pyro.sample(f"y_{i}", dist.Categorical(THIRD), infer=PARALLEL)
            pyro.sample(f"x_{i}", flow.condition(y), obs=x[i])

    def guide(x):
        for i in each(loops[1]):
            logits = (flow.class_log_prob(x[i]) + THIRD.log()).log_softmax(-1)
            pyro.sample(f"y_{i}", dist.Categorical(logits=logits), infer=PARALLEL)

    exact = scnf.elbo(plain(flow))(x).item()
    assert scnf.elbo(model, guide, max_plate_nesting=0)(x).item() == pytest.approx(exact, rel=1e-9)


def test_a_flat_prior_that_is_a_masked_density(flow, x):
    def model(x, flat):
        shift = pyro.sample("shift", flat)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(THIRD), infer=PARALLEL)
            pyro.sample("x", flow.condition(y), obs=x - shift)

    masked = dist.Normal(torch.zeros((), dtype=F64), 1.0).mask(False)
    improper = dist.ImproperUniform(dist.constraints.real, (), ())
    values = []
    for flat in (masked, improper):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        shown = poutine.block(partial(model, flat=masked), hide=["y"])
        values.append(scnf.elbo(partial(model, flat=flat), AutoNormal(shown))(x).item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (None, None, "model is a NoneType, expected a Pyro model, a function or module"),
        (lambda: None, None, "guide is a NoneType, expected a Pyro guide, a function or module"),
        (lambda: None, "em", r"guide='em': expected a guide; give pyro_scnf\.make_guide\('em', model\)"),
    ],
)
def test_model_and_guide_can_be_called(model, guide, message):
    with pytest.raises(ValueError, match=message):
        scnf.elbo(model, guide)


def test_a_subclass_of_the_ready_model_gets_its_own_arguments(flow, x):
    class Warmed(scnf.SemiSupervisedModel):
        def forward(self, *args, progress=0.0, **kwargs):
            with poutine.scale(scale=1.0 + progress):
                return super().forward(*args, **kwargs)

    plain = scnf.elbo(scnf.SemiSupervisedModel(flow))(x).item()
    assert scnf.elbo(Warmed(flow))(x, progress=0.5).item() == pytest.approx(1.5 * plain, rel=1e-10)
    with pytest.raises(ValueError, match="pairs: given, but no training term uses them"):
        scnf.elbo(Warmed(flow))(x[:2], Y[:2], x[2:], pairs=torch.tensor([[2, 3]]))


def test_arguments_of_a_model_of_ones_own_are_passed_on(flow, x):
    """Also those whose names training terms have."""

    def model(x, progress=0.0, view=None):
        pyro.factor("extra", -torch.as_tensor(progress, dtype=F64) - view.sum())
        plain(flow)(x)

    expected = scnf.elbo(plain(flow))(x).item() + 0.25 + 3
    found = scnf.elbo(model)(x, progress=0.25, view=torch.ones(3, dtype=F64))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_draws_that_are_meant(flow, x):
    """A label drawn by the guide, noise without a density, hidden noise, and what is not random."""
    single, rows = copy.deepcopy(flow).float(), x.float()  # Pyro's masked zeros have the default dtype
    exact = -single.condition(Y).log_prob(rows).sum().item()

    def set_noise(flow):
        return poutine.do(drawn("noise", dist.Normal(0.0, 1.0))(flow), {"noise": 0.5})

    for free in (
        drawn("noise", dist.Normal(0.0, 1.0).mask(False)),
        drawn("known", dist.Delta(torch.tensor(0.5))),
        lambda flow: poutine.block(drawn("noise", dist.Normal(0.0, 1.0))(flow), hide=["noise"]),
        lambda flow: poutine.block(set_noise(flow), hide=["noise"]),
    ):
        assert scnf.elbo(free(single))(rows).item() == pytest.approx(exact, rel=1e-6)
    with pytest.raises(RuntimeError, match=r"poutine\.do sets its value, hide the site that is left"):
        scnf.elbo(set_noise(single))(rows)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", flow.posterior(x))

    marginal = -flow.log_prob(x).sum().item()
    assert scnf.elbo(labelled_by(flow), guide)(x).item() == pytest.approx(marginal, rel=1e-12)
    done = -flow.condition(Y).log_prob(x).sum().item()
    assert scnf.elbo(poutine.do(plain(flow), {"y": Y}))(x).item() == pytest.approx(done, rel=1e-12)


# -- options --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("make", "terms"), [(ready, ()), (plain, ()), (ready, "balance")])
def test_a_frozen_model_has_a_value(make, terms, flow, x):
    flow.requires_grad_(False)
    loss = scnf.elbo(make(flow.eval()), terms=terms)
    value = loss(x)
    assert not value.requires_grad
    assert loss.parts["nll"].item() == pytest.approx(-flow.log_prob(x).sum().item(), rel=1e-12)


def bags(flow):
    """A label for each group."""

    def model(x):
        with pyro.plate("group", x.shape[1], dim=-1):
            y = pyro.sample("y", dist.Categorical(THIRD), infer=PARALLEL)
            with pyro.plate("member", x.shape[0], dim=-2):
                pyro.sample("x", flow.condition(y), obs=x)

    return model


def single(flow):
    """One datum, in no plate."""

    def model(x):
        y = pyro.sample("y", dist.Categorical(THIRD), infer=PARALLEL)
        pyro.sample("x", flow.condition(y), obs=x)

    return model


PARTICLES = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("nesting", [{}, {"max_plate_nesting": 2}, {"max_plate_nesting": 4}])
def test_the_depth_of_plates_is_found_out(particles, nesting, flow):
    bagged = torch.randn(5, 3, 2, dtype=F64)  # as many groups as labels
    expected = -(flow.class_log_prob(bagged).sum(0) - math.log(3)).logsumexp(-1).sum().item()
    assert scnf.elbo(bags(flow), **nesting, **particles)(bagged).item() == pytest.approx(expected, rel=1e-12)
    rows = bagged[0]
    for model in (plain(flow), scnf.SemiSupervisedModel(flow)):
        expected = -flow.log_prob(rows).sum().item()
        assert scnf.elbo(model, **nesting, **particles)(rows).item() == pytest.approx(expected, rel=1e-12)
    expected = -flow.log_prob(rows[0]).item()
    assert scnf.elbo(single(flow), **nesting, **particles)(rows[0]).item() == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("nesting", [0, 1])
def test_too_little_depth_names_what_is_needed(validate, particles, nesting, flow):
    pyro.enable_validation(validate)
    for bagged in torch.randn(2, 5, 3, 2, dtype=F64), torch.randn(1, 3, 4, 2, dtype=F64):
        with pytest.raises(ValueError, match=rf"max_plate_nesting={nesting}: .* 2 deep.*max_plate_nesting=2"):
            scnf.elbo(bags(flow), max_plate_nesting=nesting, **particles)(bagged[0])


def test_a_later_batch_with_deeper_plates(flow, x):
    def model(x):
        (bags if x.dim() == 3 else plain)(flow)(x)

    loss = scnf.elbo(model)
    loss(x)
    with pytest.raises(ValueError, match=r"max_plate_nesting=1: .*give elbo.*max_plate_nesting=2"):
        loss(x.reshape(3, 2, 2))


@pytest.mark.parametrize("nesting", [{}, {"max_plate_nesting": 0}, {"max_plate_nesting": 1}])
def test_rows_that_no_plate_declares(nesting, flow, x):
    """With as many rows as labels, the two would be mixed up."""
    loss = scnf.elbo(single(flow), **nesting)
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        loss(x[:3])
    assert loss(x[0]).item() == pytest.approx(-flow.log_prob(x[0]).item(), rel=1e-12)
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        loss(x[:3])


@pytest.mark.parametrize("vectorize", [False, True])
def test_particles_are_those_of_pyro(vectorize, flow, x):
    model = shares(flow)
    guide = automatic(model)
    options = {"num_particles": 4, "vectorize_particles": vectorize, "max_plate_nesting": 1}
    loss = scnf.elbo(model, guide, **options)
    loss(x)
    pyro.set_rng_seed(2)
    ours = loss(x)
    pyro.set_rng_seed(2)
    theirs = TraceEnum_ELBO(**options).differentiable_loss(model, guide, x)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    pyro.set_rng_seed(2)
    assert scnf.elbo(model, guide, max_plate_nesting=1)(x).item() != pytest.approx(ours.item(), rel=1e-6)


def test_particles_share_one_pass_of_the_flow(flow, x):
    model = scnf.SemiSupervisedModel(flow)
    for particles in PARTICLES:
        with counting(flow.transform, "inverse_and_ladj") as counter:
            scnf.elbo(model, scnf.EMGuide(model, "sample"), **particles)(x)
        assert counter.calls == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_particles": 0}, "num_particles=0: expected at least 1"),
        ({"num_particles": 1.5}, r"num_particles=1\.5: expected a whole number"),
        ({"max_plate_nesting": -1}, "max_plate_nesting=-1: expected at least 0"),
        ({"max_plate_nesting": math.inf}, "max_plate_nesting=inf: expected a whole number"),
        ({"vectorize_particles": "no"}, "vectorize_particles='no': expected True or False"),
    ],
)
def test_options_out_of_range(option, message, flow):
    with pytest.raises(ValueError, match=message):
        scnf.elbo(scnf.SemiSupervisedModel(flow), **option)


@pytest.mark.parametrize("nesting", [{}, {"max_plate_nesting": 1}])
def test_the_first_line_of_an_error_names_the_users_argument(nesting, flow, x):
    loss = scnf.elbo(plain(flow), **nesting)
    for wrong, message in ((x[:, :1], r"x has shape \(6, 1\)"), (x.where(x < 0, math.nan), "x holds .*NaN")):
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            loss(wrong)
        first, *rest = str(raised.value).splitlines()
        assert re.search(message, first)
        assert any("site 'x'" in line for line in rest)


# -- random parameters ----------------------------------------------------------------------------
def random_means():
    flow = toy_flow("gmm", dtype=F64)
    to_pyro_module_(flow)
    del flow.prior.loc
    flow.prior.loc = PyroSample(dist.Normal(torch.zeros(3, 2, dtype=F64), 1.0).to_event(2))
    return flow


class Inside(PyroModule):
    """The right place for a PyroSample."""

    def __init__(self, flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x):
        self.flow.prior.loc  # noqa: B018  # read before the plate
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(THIRD), infer=PARALLEL)
            pyro.sample("x", self.flow.condition(y), obs=x)


def marginal(flow):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", scnf.LabelMarginal(flow), obs=x)

    return model


@pytest.mark.parametrize(
    ("build", "name"), [(unnamed, r"prior\.loc"), (plain, r"prior\.loc"), (marginal, "flow")]
)
def test_a_random_parameter_outside_of_a_call_of_its_module(build, name, x):
    model = build(random_means())
    runs = (
        lambda: poutine.trace(model).get_trace(x),
        lambda: scnf.elbo(model)(x),
        lambda: SVI(model, scnf.exact_guide, Adam({}), TraceEnum_ELBO(max_plate_nesting=1)).step(x),
    )
    for run in runs:
        with pytest.raises(ValueError, match=rf"^{name}.* PyroSample"):
            run()


def test_random_means_of_a_ready_model_are_one_draw_for_all_rows(x):
    model = scnf.SemiSupervisedModel(random_means())
    for args in ((x,), (x[:3], Y[:3], x[3:])):
        trace = poutine.trace(model).get_trace(*args)
        assert trace.nodes["flow.prior.loc"]["value"].shape == (3, 2)
    assert scnf.elbo(model, automatic(model, AutoDelta))(x).isfinite()


def test_a_random_parameter_inside_of_a_call_of_its_module(x):
    model = Inside(random_means())
    trace = poutine.trace(model).get_trace(x)
    assert trace.nodes["flow.prior.loc"]["type"] == "sample"
    guide = automatic(model, AutoDelta)
    loss = scnf.elbo(model, guide)
    value = loss(x)
    means = guide.median()["flow.prior.loc"]
    fixed = toy_flow("gmm", dtype=F64)
    fixed.load_state_dict(model.flow.state_dict() | {"prior.loc": means})
    prior = dist.Normal(torch.zeros(3, 2, dtype=F64), 1.0).log_prob(means).sum()
    assert value.item() == pytest.approx((-fixed.log_prob(x).sum() - prior).item(), rel=1e-12)
    with pytest.raises(RuntimeError, match=r"'flow\.prior\.loc' is neither observed nor in the guide"):
        scnf.elbo(model)(x)


def test_a_call_with_other_parameters(x):
    """They stand in for one call, so nothing is missing from an optimiser."""
    model = scnf.SemiSupervisedModel(toy_flow("gmm", dtype=F64))
    loss = scnf.elbo(model)
    values = {name: p.detach().clone().requires_grad_() for name, p in loss.named_parameters()}
    found = functional_call(loss, values, (x,))
    expected = loss(x)
    assert relative(found, expected) < 1e-12
    ours = torch.autograd.grad(found, list(values.values()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(loss.parameters()), allow_unused=True)
    assert [g is None for g in ours] == [g is None for g in theirs]
    assert all(relative(a, b) < 1e-10 for a, b in zip(ours, theirs, strict=True) if a is not None)
    assert all(p is not v for p in loss.parameters() for v in values.values())
