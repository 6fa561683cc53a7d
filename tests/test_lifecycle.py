"""What every module of the package survives: copies, files, dtypes, devices, repeated use.

A subject is a module with a score, a tensor of one number a row that depends on its parameters. What
holds here is what Pyro's cached transforms break: stale values after an optimiser step, a freed graph,
a batch that ends up in a file.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import CONDITIONAL_TRANSFORMS, GUIDES, PRIORS, TRANSFORMS, Case, PriorCase
from helpers import context, data, image_flow, perturb, relative, toy_flow
from pyro.nn.module import PyroModule, to_pyro_module_
from torch import Tensor, nn

import pyro_scnf as scnf
from pyro_scnf.models.guides import EMGuide

F64 = torch.float64


class Subject(NamedTuple):
    """How to build a module, inputs for it (first the data), and how it scores them."""

    build: Callable[[], Any]
    inputs: Callable[[], tuple[Tensor, ...]]
    score: Callable[..., Tensor]


def transform_subject(case: Case) -> Subject:
    def score(layer: Any, x: Tensor, *contexts: Tensor) -> Tensor:
        t = layer.condition(*contexts) if contexts else layer
        zero = torch.zeros(case.base_shape, dtype=x.dtype, device=x.device)
        base = dist.Normal(zero, 1.0, validate_args=False).to_event(len(case.base_shape))
        return dist.TransformedDistribution(base, [t], validate_args=False).log_prob(x)

    return Subject(case.build, lambda: (data(case, (5,)), *context(case, (5,))), score)


def prior_subject(case: PriorCase) -> Subject:
    def inputs() -> tuple[Tensor, ...]:
        return torch.randn((5,) + case.event_shape), torch.arange(5) % case.num_classes

    return Subject(case.build, inputs, lambda prior, z, y: prior.condition(y).log_prob(z))


def flow_subject(make: Callable[[], Any], shape: tuple[int, ...]) -> Subject:
    def score(flow: Any, x: Tensor) -> Tensor:
        return flow.log_prob(x) + flow.condition(
            torch.zeros(len(x), dtype=torch.long, device=x.device)
        ).log_prob(x)

    return Subject(make, lambda: (torch.randn((5,) + shape),), score)


class Guided(nn.Module):
    """A model and a guide, as one would train them."""

    def __init__(self, guide: str) -> None:
        super().__init__()
        self.model = scnf.SemiSupervisedModel(toy_flow(), "learnable")
        self.guide = GUIDES[guide](self.model)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        # Drawn labels are drawn anew each time; the seed makes the loss a function again.
        pyro.set_rng_seed(1)
        return scnf.elbo(self.model, self.guide)(x, y)[None]


def guide_subject(name: str) -> Subject:
    return Subject(
        lambda: Guided(name),
        lambda: (torch.randn(5, 2), torch.tensor([0, -1, 2, -1, -1])),
        lambda guided, x, y: guided(x, y),
    )


SUBJECTS: dict[str, Subject] = {
    **{name: transform_subject(case) for name, case in TRANSFORMS.items()},
    **{f"conditional-{name}": transform_subject(case) for name, case in CONDITIONAL_TRANSFORMS.items()},
    **{f"prior-{name}": prior_subject(case) for name, case in PRIORS.items()},
    "semi-conditional-flow": flow_subject(lambda: toy_flow("flow"), (2,)),
    "semi-conditional-gmm-image": flow_subject(image_flow, (1, 4, 4)),
    **{f"guide-{name}": guide_subject(name) for name in GUIDES},
}


def with_parameters() -> list[str]:
    return [name for name, subject in SUBJECTS.items() if list(subject.build().parameters())]


every = pytest.mark.parametrize("name", SUBJECTS)
learnable = pytest.mark.parametrize("name", with_parameters())


def setup(name: str) -> tuple[Subject, Any, tuple[Tensor, ...]]:
    subject = SUBJECTS[name]
    return subject, perturb(subject.build()), subject.inputs()


def to(inputs: tuple[Tensor, ...], target: Any) -> tuple[Tensor, ...]:
    """Move inputs; a dtype only concerns floating ones."""
    return tuple(
        v.to(target) if v.is_floating_point() or not isinstance(target, torch.dtype) else v for v in inputs
    )


# -- files and copies ----------------------------------------------------------
@every
def test_state_dict_restores_a_fresh_instance(name):
    subject, module, inputs = setup(name)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = subject.build()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(subject.score(fresh, *inputs), subject.score(module, *inputs))


@every
def test_pickle(name):
    subject, module, inputs = setup(name)
    before = subject.score(module, *inputs)
    assert torch.equal(subject.score(pickle.loads(pickle.dumps(module)), *inputs), before)


@every
def test_torch_save_of_the_module(name):
    subject, module, inputs = setup(name)
    before = subject.score(module, *inputs)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(subject.score(torch.load(file, weights_only=False), *inputs), before)


@every
def test_a_file_does_not_hold_the_last_batch(name):
    subject, module, inputs = setup(name)
    size = len(pickle.dumps(module))
    if not name.startswith("guide"):
        inputs = tuple(v.repeat((200,) + (1,) * (v.dim() - 1)) for v in inputs)
    subject.score(module, *inputs)
    if name in TRANSFORMS:
        module(torch.randn((200,) + TRANSFORMS[name].base_shape))
    assert len(pickle.dumps(module)) <= size + 200


@every
def test_deepcopy_after_a_gradient(name):
    subject, module, inputs = setup(name)
    before = subject.score(module, *inputs)
    if before.requires_grad:
        before.sum().backward()
    if name in TRANSFORMS:
        module.inv(inputs[0])  # leaves a memo behind that nobody asks for
    twin = copy.deepcopy(module)
    assert torch.equal(subject.score(twin, *inputs), before)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in module.parameters()}
    perturb(module)
    assert torch.equal(subject.score(twin, *inputs), before)


# -- repeated use on the same tensor -------------------------------------------
@learnable
def test_second_backward_on_the_same_tensor(name):
    subject, module, inputs = setup(name)
    grads = []
    for _ in range(2):
        module.zero_grad()
        subject.score(module, *inputs).sum().backward()
        grads.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    assert grads[0]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@learnable
def test_no_stale_value_after_an_update_in_place(name):
    subject, module, inputs = setup(name)
    before = subject.score(module, *inputs)
    perturb(module)
    after = subject.score(module, *inputs)
    assert not torch.equal(after, before)
    fresh = subject.build()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(subject.score(fresh, *inputs), after)


@every
def test_no_stale_value_after_a_change_of_the_data(name):
    subject, module, inputs = setup(name)
    before = subject.score(module, *inputs)
    inputs[0].mul_(0.9)
    after = subject.score(module, *inputs)
    assert torch.equal(after, subject.score(module, inputs[0].clone(), *inputs[1:]))
    # Rearrangements alone score by the base, which sees the change as well.
    assert not torch.equal(after, before)


@learnable
def test_gradients_after_a_call_without(name):
    subject, module, inputs = setup(name)
    with torch.no_grad():
        value = subject.score(module, *inputs)
    assert not value.requires_grad
    again = subject.score(module, *inputs)
    assert again.requires_grad
    assert relative(again, value) < 1e-5
    again.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name in with_parameters()])
class TestMemo:
    """What ``inv`` leaves for ``log_abs_det_jacobian`` is taken once, and only if it will do."""

    def test_a_log_determinant_without_gradient_is_not_taken_for_one_with(self, name):
        _, module, (x,) = setup(name)
        with torch.no_grad():
            z = module.inv(x)
        assert module.log_abs_det_jacobian(z, x).requires_grad == module.inverse_and_ladj(x)[1].requires_grad
        with torch.no_grad():
            out = module(z)
        assert module.log_abs_det_jacobian(z, out).requires_grad == module.call_and_ladj(z)[1].requires_grad

    def test_it_is_taken_once(self, name):
        _, module, (x,) = setup(name)
        z = module.inv(x)
        first = module.log_abs_det_jacobian(z, x)
        assert module._memo is None
        perturb(module)
        again = module.log_abs_det_jacobian(z, x)
        assert torch.equal(again, -module.inverse_and_ladj(x)[1])
        assert not torch.equal(again, first)

    def test_it_holds_neither_data_nor_latents(self, name):
        _, module, (x,) = setup(name)
        z = module.inv(x)
        seen = weakref.ref(z)
        del z
        gc.collect(0)
        assert seen() is None


@every
def test_nothing_is_changed_by_scoring(name):
    subject, module, inputs = setup(name)
    module.train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    saved = [v.clone() for v in inputs]
    subject.score(module, *inputs)
    if name in TRANSFORMS:
        module(torch.randn((4,) + TRANSFORMS[name].base_shape))
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(a, b) for a, b in zip(saved, inputs, strict=True))


@every
def test_training_mode_makes_no_difference(name):
    subject, module, inputs = setup(name)
    assert torch.equal(subject.score(module.train(), *inputs), subject.score(module.eval(), *inputs))


# -- dtypes and devices --------------------------------------------------------
@every
def test_float64(name):
    subject, module, inputs = setup(name)
    single = subject.score(module, *inputs)
    double = subject.score(module.double(), *to(inputs, F64))
    assert double.dtype == F64
    assert all(v.dtype == F64 for v in module.state_dict().values() if v.is_floating_point())
    assert relative(single.double(), double) < 1e-4
    assert torch.equal(subject.score(module.float(), *inputs), single)


@pytest.mark.parametrize("name", [name for name in SUBJECTS if not name.startswith("guide")])
def test_meta_device(name):
    """Shapes without arithmetic: nothing in a module stays behind on the CPU."""
    subject, module, inputs = setup(name)
    shape = subject.score(module, *inputs).shape
    pyro.enable_validation(False)
    out = subject.score(module.to("meta"), *to(inputs, "meta"))
    assert out.device.type == "meta"
    assert out.shape == shape
    if name in TRANSFORMS:
        assert module(torch.empty((2,) + TRANSFORMS[name].base_shape, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", SUBJECTS if torch.cuda.is_available() else [])  # else one skip
def test_cuda(name):
    subject, module, inputs = setup(name)
    before = subject.score(module, *inputs)
    after = subject.score(module.to("cuda"), *to(inputs, "cuda"))
    assert after.device.type == "cuda"
    if name not in ("guide-em-sample", "guide-em-copy"):  # these draw labels, on each device others
        assert relative(after.cpu(), before) < 1e-3
    assert torch.equal(subject.score(module.to("cpu"), *inputs), before)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_vmap_over_events(name):
    case, layer = TRANSFORMS[name], perturb(TRANSFORMS[name].build()).double()
    x = data(case, (4,), F64)
    z, ladj = layer.inverse_and_ladj(x)
    mapped = torch.func.vmap(layer.inverse_and_ladj)(x)
    assert relative(mapped[0], z) < 1e-10
    assert relative(mapped[1], ladj) < 1e-10


# -- Pyro's parameter store and modules ----------------------------------------
@pytest.mark.parametrize("name", [name for name in SUBJECTS if not name.startswith("guide")])
def test_becomes_a_pyro_module(name):
    subject, module, inputs = setup(name)
    before, names = subject.score(module, *inputs), {key for key, _ in module.named_parameters()}
    to_pyro_module_(module)
    assert isinstance(module, PyroModule)
    assert {key for key, _ in module.named_parameters()} == names
    assert torch.equal(subject.score(module, *inputs), before)


@learnable
def test_copies_after_pyro_module(name):
    """Parameters in Pyro's store carry a weak reference; copies and state dicts must not mind."""
    subject, module, inputs = setup(name)
    before = subject.score(module, *inputs)
    pyro.module("subject", module.eval())  # in training mode it warns of what is frozen
    assert torch.equal(subject.score(copy.deepcopy(module), *inputs), before)
    fresh = subject.build()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(subject.score(fresh, *inputs), before)


def test_a_lagged_copy_starts_equal_and_follows():
    guide = EMGuide(scnf.SemiSupervisedModel(toy_flow()), decay=0.5)
    old = {key: value.clone() for key, value in guide.old.module.named_parameters()}
    new = dict(guide.model.named_parameters())
    assert all(torch.equal(old[key], new[key]) for key in new)
    guide.update()  # the first call of an average copies
    perturb(guide.model)
    before = {key: value.clone() for key, value in guide.old.module.named_parameters()}
    guide.update()
    for key, value in guide.old.module.named_parameters():
        assert torch.allclose(value, 0.5 * before[key] + 0.5 * new[key])
        assert not value.requires_grad


@pytest.mark.parametrize("name", GUIDES)
def test_a_lagging_parameter_copy_is_left_out_of_training(name):
    """What an optimiser is given are the parameters of the current model, each once."""
    guided = Guided(name)
    trainable = {id(p) for p in guided.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in guided.model.parameters()}
