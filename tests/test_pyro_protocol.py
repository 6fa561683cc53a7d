"""What Pyro asks of conditional and plain transforms, for every layer: inverses, chains and distributions.

The checks are those of Pyro's own suite for its transforms, and of the documentation of its classes.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import CONDITIONAL_TRANSFORMS, PRIORS, TRANSFORMS
from helpers import perturb
from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransform,
    ConditionalTransformedDistribution,
    ConditionalTransformModule,
)
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.nn.module import PyroModule, to_pyro_module_
from torch import Tensor, nn

import pyro_scnf as scnf
from pyro_scnf import transforms as T
from pyro_scnf.testing import Case

F64 = torch.float64
BATCHES: list[tuple[int, ...]] = [(), (3,), (2, 3)]
COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "save": lambda thing: _through_a_file(thing),
}

conditional = pytest.mark.parametrize("case", CONDITIONAL_TRANSFORMS.values(), ids=CONDITIONAL_TRANSFORMS)
unconditional = pytest.mark.parametrize("case", TRANSFORMS.values(), ids=TRANSFORMS)
copies = pytest.mark.parametrize("clone", COPIES.values(), ids=COPIES)


def _through_a_file(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def data_base(case: Case, batch: tuple[int, ...] = ()) -> Any:
    """A distribution over data, for flows that run from data to latent."""
    zero = torch.zeros(batch + case.event_shape, dtype=F64)
    base = dist.Normal(zero, 1.0) if case.data == "real" else dist.Uniform(zero + 0.05, zero + 0.95)
    return base.to_event(len(case.event_shape))


def latent_base(case: Case, batch: tuple[int, ...] = ()) -> Any:
    zero = torch.zeros(batch + case.base_shape, dtype=F64)
    return dist.Normal(zero, 1.0).to_event(len(case.base_shape))


def log_det(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The log-determinant at one event, from its Jacobian by automatic differentiation."""
    size = value.numel()
    jacobian = torch.autograd.functional.jacobian(function, value, vectorize=True)
    return torch.linalg.slogdet(jacobian.reshape(size, size))[1]


def steps(parameters: list[Tensor], loss: Callable[[], Tensor]) -> None:
    """Three steps of Adam. Every loss is finite, and the last is below the first."""
    adam = torch.optim.Adam(parameters, 1e-3)
    losses = []
    for _ in range(4):
        adam.zero_grad()
        losses.append(loss())
        losses[-1].backward()
        adam.step()
    assert all(value.isfinite() for value in losses)
    assert losses[-1] < losses[0]


# -- the inverse of a conditional layer ------------------------------------------------------------
@conditional
class TestConditionalInverse:
    def test_kind(self, case):
        layer = case.member()
        for thing in (layer, layer.inv, layer.inv.inv.inv):
            assert isinstance(thing, ConditionalTransformModule)
            assert isinstance(thing, ConditionalTransform)
            assert isinstance(thing, nn.Module)
        assert isinstance(layer.inv, T.ConditionalInverse)
        assert layer.inv.inv is layer

    @pytest.mark.parametrize("batch", BATCHES)
    def test_maps_back(self, case, batch):
        layer = case.member()
        (c,) = case.contexts(batch)
        x, there, back = case.values(batch), layer.condition(c), layer.inv.condition(c)
        assert isinstance(back, torch.distributions.Transform)
        z = back(x)
        close(z, there.inv(x))
        close(back.inv(z), x)
        close(there(z), x)
        ladj = back.log_abs_det_jacobian(x, z)
        assert ladj.shape == batch
        close(ladj, layer.inverse_and_ladj(x, c)[1])
        close(there.log_abs_det_jacobian(z.clone(), x.clone()), -ladj)
        close(back.log_abs_det_jacobian(x.clone(), z.clone()), ladj)
        close(back.inv.log_abs_det_jacobian(z, x), -ladj)

    def test_names_its_domains_and_shapes(self, case):
        layer = case.member()
        (c,) = case.contexts()
        there, back = layer.condition(c), layer.inv.condition(c)
        assert back.domain.event_dim == len(case.event_shape)
        assert back.codomain.event_dim == len(case.base_shape)
        assert back.domain.check(case.values((3,))).all()
        assert back.codomain.check(case.latents((3,))).all()
        assert back.bijective
        assert there.bijective
        event, base = torch.Size((3, *case.event_shape)), torch.Size((3, *case.base_shape))
        assert back.forward_shape(event) == base
        assert back.inverse_shape(base) == event

    def test_has_the_log_determinant_of_its_jacobian(self, case):
        layer = case.member()
        (c,) = case.contexts()
        back, x = layer.inv.condition(c), case.values()
        close(back.log_abs_det_jacobian(x, back(x)), log_det(back, x))
        z = case.latents()
        close(back.inv.log_abs_det_jacobian(z, back.inv(z)), log_det(back.inv, z))

    def test_owns_the_parameters_of_its_layer(self, case):
        layer = case.member()
        turned = layer.inv
        assert set(turned.parameters()) == set(layer.parameters())
        fresh = case.build().double().inv
        fresh.load_state_dict(turned.state_dict())
        (c,), x = case.contexts((3,)), case.values((3,))
        close(fresh.condition(c)(x), turned.condition(c)(x))
        turned.float()
        assert all(p.dtype == torch.float32 for p in layer.parameters())

    def test_contexts_broadcast(self, case):
        layer = case.member()
        (c,), x = case.contexts((2, 1)), case.values((3,))
        back = layer.inv.condition(c)
        z = back(x)
        assert z.shape == (2, 3, *case.base_shape)
        assert back.log_abs_det_jacobian(x, z).shape == (2, 3)
        for k in range(2):
            close(z[k], layer.inv.condition(c[k, 0])(x))

    @copies
    def test_copies(self, case, clone):
        layer = case.member()
        (c,), x = case.contexts((3,)), case.values((3,))
        turned = layer.inv
        back = turned.condition(c)
        z = back(x)  # used, so that it holds a log-determinant
        for twin in (clone(turned), clone(layer).inv):
            close(twin.condition(c)(x), z)
            assert twin.inv.inv.inv is twin.inv
        close(clone(back)(x), z)
        close(clone(back.inv)(z.detach()), x)
        twin = clone(turned)
        perturb(layer)
        close(twin.condition(c)(x), z)

    def test_becomes_a_pyro_module(self, case):
        turned = case.member().inv
        (c,), x = case.contexts((3,)), case.values((3,))
        z, names = turned.condition(c)(x), {name for name, _ in turned.named_parameters()}
        to_pyro_module_(turned)
        assert isinstance(turned, PyroModule)
        assert isinstance(turned, ConditionalTransformModule)
        assert {name for name, _ in turned.named_parameters()} == names
        close(turned.condition(c)(x), z)

    def test_registers_with_pyro(self, case):
        turned = case.member().inv
        pyro.module("turned", turned.train(False))
        names = {f"turned$$${name}" for name, p in turned.named_parameters() if p.requires_grad}
        assert set(pyro.get_param_store().keys()) == names
        assert names


# -- conditional distributions ---------------------------------------------------------------------
@conditional
class TestConditionalDistribution:
    @pytest.mark.parametrize("batch", [(3,), (3, 4), (2, 3, 4)])
    def test_draws_of_any_batch(self, case, batch):
        """Pyro conditions on a context of batch (1,), which broadcasts."""
        layer = case.member()
        (c,) = case.contexts((1,))
        for base, transform, shape in (
            (latent_base(case, batch), layer, case.event_shape),
            (data_base(case, batch), layer.inv, case.base_shape),
        ):
            flow = ConditionalTransformedDistribution(base, [transform]).condition(c)
            assert flow.batch_shape == batch
            assert flow.event_shape == shape
            drawn = flow.sample()
            assert drawn.shape == batch + shape
            assert flow.rsample((2,)).shape == (2, *batch, *shape)
            assert flow.log_prob(drawn).shape == batch
            assert flow.log_prob(drawn).isfinite().all()

    def test_scores_both_ways(self, case):
        layer = case.member()
        (c,), x = case.contexts((3,)), case.values((3,))
        z, ladj = layer.inverse_and_ladj(x, c)
        there = ConditionalTransformedDistribution(latent_base(case), [layer])
        close(there.condition(c).log_prob(x), latent_base(case).log_prob(z) + ladj)
        back = ConditionalTransformedDistribution(data_base(case), [layer.inv])
        close(back.condition(c).log_prob(z), data_base(case).log_prob(x) - ladj)
        back.clear_cache()

    def test_a_base_without_batch_gets_that_of_the_contexts(self, case):
        """Each context has noise of its own. Equal contexts would otherwise have equal draws."""
        layer = case.member()
        (c,) = case.contexts()
        contexts = c.expand(2, 3, -1)
        for base, transform, shape in (
            (latent_base(case), layer, case.event_shape),
            (data_base(case), layer.inv, case.base_shape),
        ):
            flow = ConditionalTransformedDistribution(base, [transform]).condition(contexts)
            assert flow.batch_shape == (2, 3)
            drawn = flow.sample().reshape(6, -1)
            assert drawn.shape == (6, torch.Size(shape).numel())
            assert not (drawn[1:] - drawn[0]).abs().sum(-1).lt(1e-6).any()
            assert flow.expand((4, 2, 3)).sample().shape == (4, 2, 3, *shape)
            with pytest.raises(ValueError, match=r"batch shapes of . \(4,\) and context \(2, 3\)"):
                flow.expand((4,))

    def test_there_and_back_is_the_base(self, case):
        layer = case.member()
        (c,), x = case.contexts((3,)), case.values((3,))
        base = data_base(case)
        both = ConditionalTransformedDistribution(base, [layer.inv, layer]).condition(c)
        close(both.log_prob(x), base.log_prob(x))

    def test_learns_in_both_directions(self, case):
        layer = case.member()
        (c,), x, z = case.contexts((5,)), case.values((5,)), case.latents((5,))
        there = ConditionalTransformedDistribution(latent_base(case), [layer])
        steps(list(layer.parameters()), lambda: -there.condition(c).log_prob(x).mean())
        base = dist.Normal(torch.zeros(case.event_shape, dtype=F64), 1.0).to_event(len(case.event_shape))
        turned = layer.inv
        back = ConditionalTransformedDistribution(base, [turned])
        steps(list(turned.parameters()), lambda: -back.condition(c).log_prob(z).mean())


@conditional
class TestConditionalCompose:
    def chain(self, case: Case, cache_size: int = 0) -> tuple[ConditionalComposeTransformModule, Any]:
        """A layer, its inverse, the layer, an unconditional layer of ours, and a transform of PyTorch."""
        layer = case.member()
        actnorm = perturb(T.ActNorm(case.event_shape)).double()
        affine = torch.distributions.AffineTransform(1.0, 2.0, event_dim=len(case.event_shape))
        parts = [layer, layer.inv, layer, actnorm, affine]
        return ConditionalComposeTransformModule(parts, cache_size=cache_size), (layer, actnorm)

    def test_parameters(self, case):
        chain, (layer, actnorm) = self.chain(case)
        assert set(chain.parameters()) == {*layer.parameters(), *actnorm.parameters()}

    @pytest.mark.parametrize("cache_size", [0, 1])
    @pytest.mark.parametrize("batch", BATCHES)
    def test_values(self, case, cache_size, batch):
        chain, (layer, actnorm) = self.chain(case, cache_size)
        (c,), z = case.contexts(batch), case.latents(batch)
        inner, ladj = layer.call_and_ladj(z, c)
        outer, more = actnorm.call_and_ladj(inner)
        t = chain.condition(c)
        assert isinstance(t, ComposeTransformModule)
        x = t(z)
        close(x, 1 + 2 * outer)
        scale = torch.tensor(2.0, dtype=F64).log() * torch.Size(case.event_shape).numel()
        close(t.log_abs_det_jacobian(z, x), ladj + more + scale)
        close(t.inv(x), z)
        base = latent_base(case)
        flow = ConditionalTransformedDistribution(base, [chain]).condition(c)
        close(flow.log_prob(x), base.log_prob(z) - ladj - more - scale)
        assert flow.sample().shape == batch + case.event_shape

    def test_inverse_of_a_chain(self, case):
        chain, _ = self.chain(case)
        (c,), z = case.contexts((3,)), case.latents((3,))
        t = chain.condition(c)
        x = t(z)
        turned = chain.inv
        assert turned.inv is chain
        assert set(turned.parameters()) == set(chain.parameters())
        close(turned.condition(c)(x), z)
        close(turned.condition(c).log_abs_det_jacobian(x, z), -t.log_abs_det_jacobian(z, x))

    @copies
    def test_copies(self, case, clone):
        chain, (layer, _) = self.chain(case)
        (c,), z = case.contexts((3,)), case.latents((3,))
        x = chain.condition(c)(z)
        twin = clone(chain)
        perturb(layer)
        close(twin.condition(c)(z), x)
        t = chain.condition(c)
        x = t(z)  # used, so that its parts hold log-determinants
        close(clone(t)(z), x)

    def test_state_dict(self, case):
        chain, _ = self.chain(case)
        other, _ = self.chain(case)
        other.load_state_dict(chain.state_dict())
        (c,), z = case.contexts((3,)), case.latents((3,))
        close(other.condition(c)(z), chain.condition(c)(z))

    def test_in_a_pyro_module(self, case):
        """A ``PyroModule`` that holds chains registers their parameters, and trains them by SVI."""

        class Model(PyroModule):
            def __init__(self, chain: nn.Module) -> None:
                super().__init__()
                self.chain = chain

            def forward(self, x: Tensor, c: Tensor) -> None:
                flow = ConditionalTransformedDistribution(latent_base(case), [self.chain])
                with pyro.plate("data", len(x)):
                    pyro.sample("x", flow.condition(c), obs=x)

        chain, (layer, _) = self.chain(case)
        (c,), x = case.contexts((5,)), 1 + 2 * case.values((5,))
        before = [p.clone() for p in layer.parameters() if p.requires_grad]
        svi = pyro.infer.SVI(
            Model(chain), lambda *_: None, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()
        )
        assert all(torch.tensor(svi.step(x, c)).isfinite() for _ in range(2))
        after = [p for p in layer.parameters() if p.requires_grad]
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


# -- unconditional layers --------------------------------------------------------------------------
@unconditional
class TestUnconditional:
    @pytest.mark.parametrize("batch", BATCHES)
    def test_inverse_as_a_flow(self, case, batch):
        layer, base = case.member(), data_base(case, batch)
        flow = dist.TransformedDistribution(base, [layer.inv])
        assert flow.batch_shape == batch
        assert flow.event_shape == case.base_shape
        z = flow.sample()
        assert z.shape == batch + case.base_shape
        x, ladj = layer.call_and_ladj(z)
        close(flow.log_prob(z), base.log_prob(x) + ladj, 1e-6)

    def test_chain_of_pyro(self, case):
        layer = case.member()
        actnorm = perturb(T.ActNorm(case.event_shape)).double()
        chain = ComposeTransformModule([layer, layer.inv, layer, actnorm])
        assert set(chain.parameters()) == {*layer.parameters(), *actnorm.parameters()}
        z = case.latents((3,))
        inner, ladj = layer.call_and_ladj(z)
        outer, more = actnorm.call_and_ladj(inner)
        x = chain(z)
        close(x, outer, 1e-6)
        close(chain.log_abs_det_jacobian(z, x), ladj + more, 1e-6)
        close(chain.inv(x), z, 1e-6)
        close(chain.with_cache(1)(z), outer, 1e-6)
        flow = dist.TransformedDistribution(latent_base(case), [chain])
        close(flow.log_prob(x), latent_base(case).log_prob(z) - ladj - more, 1e-6)

    @copies
    def test_copies_of_chain_and_inverse(self, case, clone):
        layer, x = case.member(), case.values((3,))
        z = layer.inv(x).detach()  # the layer holds a log-determinant with a graph
        close(clone(layer).inv(x), z)
        close(clone(layer.inv)(x), z)
        chain = ComposeTransformModule([layer])
        chain.inv(x)
        close(clone(chain).inv(x), z)
        close(clone(chain.inv)(x), z)

    def test_state_dict_of_a_chain(self, case):
        chain, other = ComposeTransformModule([case.member()]), ComposeTransformModule([case.member()])
        other.load_state_dict(chain.state_dict())
        z = case.latents((3,))
        close(other(z), chain(z))


# -- expand ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", PRIORS.values(), ids=PRIORS)
def test_expand_takes_possible_shapes_and_refuses_others(case):
    prior = case.member(torch.float32)
    flow = scnf.SemiConditionalFlow(T.ActNorm(case.event_shape), prior)
    k, y = case.num_classes, torch.arange(3) % case.num_classes
    weights = torch.full((3, k), 1 / k)
    for given in (
        flow.condition(y),
        flow.condition(weights),
        flow.condition(y).mask(torch.ones(3, dtype=torch.bool)),
        flow.base(y),
        prior.condition(y),
        scnf.LabelMarginal(flow, weights),
    ):
        event = given.event_shape
        wide = given.expand((2, 3))
        assert wide.batch_shape == (2, 3)
        x = wide.sample()
        assert x.shape == (2, 3, *event)
        assert wide.log_prob(x).shape == (2, 3)
        close(wide.log_prob(x), given.log_prob(x), 1e-5)
        assert wide.expand((4, 2, 3)).sample((5,)).shape == (5, 4, 2, 3, *event)
        for shape in ((5,), (), (3, 2), (3, 1)):
            with pytest.raises((ValueError, RuntimeError)):
                given.expand(shape)
