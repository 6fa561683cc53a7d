"""Models in files: every preset and prior comes back from the file alone, and nothing else is read."""

from __future__ import annotations

import sys
from io import BytesIO
from types import ModuleType

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import perturb
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

import pyro_scnf as scnf
from pyro_scnf.datasets import digits, enlarged_digits, toy
from pyro_scnf.presets import PRESETS

F64 = torch.float64


def round_trip(model, path, **options):
    """The model read back, after checks that it is the same model."""
    scnf.save(model, path)
    loaded = scnf.load(path, **options)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)
    x = torch.rand(4, *model.flow.event_shape, dtype=next(model.parameters()).dtype)
    assert torch.equal(loaded.eval().log_prob(x), model.eval().log_prob(x))
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == trainable
    return loaded


def small_model(prior="gmm", shape=(2,), **options):
    transform = scnf.flows.glow(shape, steps=1, width=6, blocks=1)
    return scnf.SemiSupervisedModel(perturb(scnf.SemiConditionalFlow(transform, prior, 3)), **options)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name, tmp_path):
    data = toy("pinwheel") if "toy" in name else digits() if name == "digits" else enlarged_digits()
    preset = PRESETS[name]
    model = preset.make_model(data)
    loaded = round_trip(model, tmp_path / "model.pt")
    assert (loaded.num_labelled, loaded.labelled_weight) == (model.num_labelled, model.labelled_weight)


@pytest.mark.parametrize(
    "prior",
    [
        *scnf.PRIORS,
        "gmm:covariance=full,means=latents",
        "student-t:df=3.0,fit_df=gradient",
        {"name": "flow", "steps": 1, "net": {"name": "mlp", "hidden": (6,), "activation": "tanh"}},
        {"name": "flow", "steps": 1, "width": 6, "embedding_dim": 2},
    ],
)
@pytest.mark.parametrize("probs", ["uniform", "learnable", torch.tensor([0.2, 0.3, 0.5])])
def test_every_prior_and_kind_of_class_probabilities(prior, probs, tmp_path):
    options = {"num_labelled": 7, "num_unlabelled": 90, "labelled_weight": 0.5}
    loaded = round_trip(small_model(prior, class_probs=probs, **options), tmp_path / "model.pt")
    assert {name: getattr(loaded, name) for name in options} == options


@pytest.mark.parametrize(
    "transform",
    [
        lambda: scnf.flows.realnvp((5,), couplings=2, net="mlp:hidden=(4, 4)"),
        lambda: scnf.flows.glow((1, 4, 4), levels=2, steps=(1, 2), net=["conv:width=4", "residual-conv"]),
        lambda: scnf.flows.glow(event_shape=torch.Size((2, 4, 4)), logit=0.05, latent_dim=5, width=4),
        lambda: scnf.flows.leading_components(5, latent_dim=2, couplings=1, width=4),
    ],
)
def test_every_flow(transform, tmp_path):
    flow = scnf.SemiConditionalFlow(transform(), "gmm", 2, aux_scale="unit")
    round_trip(scnf.SemiSupervisedModel(perturb(flow)), tmp_path / "model.pt")


def test_precision_and_default_dtype_do_not_matter(tmp_path):
    model = small_model("flow").double()
    round_trip(model, tmp_path / "double.pt")
    single = small_model("flow")
    torch.set_default_dtype(F64)
    round_trip(single, tmp_path / "single.pt")


def test_loading_draws_nothing_from_the_generator(tmp_path):
    scnf.save(small_model(), tmp_path / "model.pt")
    state = torch.get_rng_state()
    scnf.load(tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_model_is_in_evaluation_mode_unless_it_was_there_before(tmp_path):
    model = small_model()
    scnf.save(model, tmp_path / "model.pt")
    assert model.training
    assert not any(module.training for module in scnf.load(tmp_path / "model.pt").modules())
    assert scnf.load(tmp_path / "model.pt", into=model).training


def test_a_trained_and_copied_model_is_saved_as_well(tmp_path):
    import copy

    model = small_model("flow")
    scnf.elbo(model)(torch.randn(5, 2)).backward()
    round_trip(copy.deepcopy(model), tmp_path / "model.pt")


def test_it_replaces_the_old_file_only_when_it_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "model.pt"
    scnf.save(small_model(), path)
    before = path.read_bytes()

    def broken(content, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="no space left"):
        scnf.save(small_model(), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


# -- what cannot be saved --------------------------------------------------------------------------
def own_net(inputs, outputs, context_dim=0):
    return scnf.nn.MLP(inputs, outputs, (4,), context_dim=context_dim)


@pytest.mark.parametrize(
    ("flow", "name"),
    [
        (lambda: scnf.SemiConditionalFlow(scnf.transforms.ActNorm((2,)), "gmm", 2), "flow.transform"),
        (
            lambda: scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, net=own_net), "gmm", 2),
            "flow.transform",
        ),
        (
            lambda: scnf.SemiConditionalFlow(
                scnf.flows.glow((2,), steps=1, width=4), scnf.priors.GaussianMixturePrior, 2
            ),
            "flow.prior",
        ),
    ],
)
def test_parts_of_unknown_origin_are_named(flow, name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: how it was built is not known"):
        scnf.save(scnf.SemiSupervisedModel(flow()), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_parts_of_another_dtype_keep_it(tmp_path, monkeypatch):
    model = small_model()
    model.flow.prior.double()
    monkeypatch.setenv("HOME", str(tmp_path))
    scnf.save(model, "~/model.pt")
    loaded = scnf.load(tmp_path / "model.pt").state_dict()
    assert {name: value.dtype for name, value in loaded.items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }
    assert {value.dtype for value in loaded.values()} >= {torch.float32, torch.float64}


def test_only_models_are_saved(tmp_path):
    with pytest.raises(ValueError, match="expected a SemiSupervisedModel itself, got a SemiConditionalFlow"):
        scnf.save(small_model().flow, tmp_path / "model.pt")


# -- what is not read ------------------------------------------------------------------------------
@pytest.fixture
def own_package(monkeypatch):
    """An importable module with a prior of one's own."""
    module = ModuleType("their_package")

    class TheirPrior(scnf.priors.GaussianMixturePrior):
        pass

    module.TheirPrior = TheirPrior
    monkeypatch.setitem(sys.modules, "their_package", module)
    return module


def test_a_class_of_ones_own_is_built_only_if_trusted(own_package, tmp_path, monkeypatch):
    model = small_model("their_package.TheirPrior:scale=0.5")
    path = tmp_path / "model.pt"
    loaded = round_trip(model, path, trust=["their_package.TheirPrior"])
    assert type(loaded.flow.prior) is own_package.TheirPrior
    monkeypatch.setitem(sys.modules, "their_package", None)  # importing it now would be an error
    with pytest.raises(ValueError, match=r"names 'their_package.TheirPrior', which"):
        scnf.load(path)


NOT_OURS = "a_module_that_must_not_be_imported.Net"


@pytest.mark.parametrize("part", ["transform", "prior"])
@pytest.mark.parametrize(
    "change",
    [
        {"name": NOT_OURS},
        {"net": NOT_OURS},
        {"net": f"{NOT_OURS}:width=3"},
        {"net": {"name": NOT_OURS}},
        {"net": {"name": f"{NOT_OURS}:width=3"}},
        {"net": ["mlp", NOT_OURS]},
    ],
)
def test_no_name_in_a_file_is_imported_unless_trusted(part, change, tmp_path):
    path = tmp_path / "model.pt"
    scnf.save(small_model("flow"), path)
    content = torch.load(path, weights_only=True)
    content["model"][part] |= change
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"names '{NOT_OURS}', which pyro_scnf has no word for"):
        scnf.load(path)


def test_a_network_of_ones_own_is_built_if_trusted(own_package, tmp_path):
    own_package.net = own_net
    flow = scnf.SemiConditionalFlow(scnf.flows.glow((2,), steps=1, net="their_package.net"), "gmm", 2)
    round_trip(scnf.SemiSupervisedModel(flow), tmp_path / "model.pt", trust=["their_package.net"])


def change(path, **changes):
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError):
        scnf.load(path)
    scnf.save(small_model(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.pt: it is damaged"):
        scnf.load(path)
    loc = torch.load(BytesIO(whole), weights_only=True)["state_dict"]["flow.prior.loc"]
    at = whole.index(loc.numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])  # PyTorch would read it
    with pytest.raises(ValueError, match=r"model.pt: it is damaged.*checksum"):
        scnf.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.pt: it is damaged"):
        scnf.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"model.pt: it is damaged"):
        scnf.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="does not say how its model was built"):
        scnf.load(path)
    torch.save({"a": nn.Linear(1, 1)}, path)
    with pytest.raises(ValueError, match=r"model.pt: it is damaged, or not a file"):
        scnf.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "what it says of the model cannot be read"),
        ({"model": {"transform": {"name": "glow"}}}, "what it says of the model cannot be read"),
        ({"state_dict": 3}, "its parameters do not fit"),
        ({"transform": {"name": "glow", "event_shape": (2,), "depth": 3}}, "cannot be built"),
        ({"transform": {"name": "glow"}}, "cannot be built"),
        ({"prior": {"name": "flow", "flow": "x"}}, "cannot be built"),
        ({"num_classes": "many"}, "cannot be built"),
        ({"options": {"weight": 1.0}}, "cannot be built"),
    ],
)
def test_descriptions_that_make_no_model(change, message, tmp_path):
    path = tmp_path / "model.pt"
    scnf.save(small_model(), path)
    content = torch.load(path, weights_only=True)
    (content if next(iter(change)) in content else content["model"]).update(change)
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"model.pt: .*{message}"):
        scnf.load(path)


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    transform = scnf.flows.glow((np.int64(2),), steps=1, width=6, blocks=1)
    flow = scnf.SemiConditionalFlow(transform, {"name": "gmm", "scale": np.float64(0.5)}, np.int64(3))
    model = scnf.SemiSupervisedModel(flow, num_labelled=np.int64(7), labelled_weight=np.float64(0.5))
    round_trip(model, tmp_path / "model.pt")


def test_a_description_is_a_copy(tmp_path):
    nets = ["conv:width=4", {"name": "conv", "width": 4}]
    transform = scnf.flows.glow((1, 4, 4), levels=2, steps=1, net=nets)
    nets[1]["width"] = 9
    nets.append("conv")
    round_trip(scnf.SemiSupervisedModel(scnf.SemiConditionalFlow(transform, "gmm", 2)), tmp_path / "model.pt")


def test_a_model_that_is_more_than_its_arguments_is_refused(tmp_path):
    class Larger(scnf.SemiSupervisedModel):
        pass

    with pytest.raises(ValueError, match="expected a SemiSupervisedModel itself, got a Larger"):
        scnf.save(Larger(small_model().flow), tmp_path / "model.pt")
    model = small_model()
    to_pyro_module_(model.flow)
    del model.flow.prior.loc
    model.flow.prior.loc = PyroSample(dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    with pytest.raises(ValueError, match="a parameter is a PyroSample"):
        scnf.save(model, tmp_path / "model.pt")


def _coupling(model):
    return next(m for m in model.modules() if isinstance(m, scnf.transforms.AffineCoupling))


def _other_activation(model):
    residual = _coupling(model).net.body[0]
    residual.body[0] = nn.Tanh()


def _other_net(model):
    _coupling(model).net = nn.Linear(1, 2)


def _other_size(model):
    _coupling(model).net.body[0].body[1] = nn.Linear(6, 7)


def _weight_norm(model):
    nn.utils.parametrizations.weight_norm(_coupling(model).net.body[0].body[1])


@pytest.mark.parametrize("change", [_other_activation, _other_net, _other_size, _weight_norm])
def test_a_part_that_was_changed_after_the_model_was_built_is_refused(change, tmp_path):
    model = small_model()
    change(model)
    with pytest.raises(
        ValueError, match=r"changed after the model was built.* flow\.transform\..*\.net.*expected"
    ):
        scnf.save(model, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_model_whose_parts_pyro_has_made_its_own_is_saved(tmp_path):
    model, x = small_model(), torch.randn(4, 2)
    to_pyro_module_(model)
    scnf.save(model.eval(), tmp_path / "model.pt")
    assert torch.equal(scnf.load(tmp_path / "model.pt").log_prob(x), model.log_prob(x))


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "link.pt").symlink_to(tmp_path / "model.pt")
    scnf.save(small_model(), tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert (tmp_path / "model.pt").is_file()


def test_files_of_other_versions_or_models(tmp_path):
    path = tmp_path / "model.pt"
    scnf.save(small_model(), path)
    change(path, format=99)
    with pytest.raises(ValueError, match="it has format 99, this version reads format 4"):
        scnf.load(path)
    scnf.save(small_model(), path)
    change(path, state_dict=small_model("student-t").state_dict())
    with pytest.raises(ValueError, match="parameters do not fit the model"):
        scnf.load(path)
