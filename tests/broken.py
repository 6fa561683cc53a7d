"""Members with one fault each, and the checks that must find it."""

from __future__ import annotations

import math
import pickle
from abc import ABC

import pyro.distributions as dist
import torch
from third_party import ContextShift, LaplacePrior, LinearPrior, Tails
from torch import nn
from torch.distributions import constraints

import pyro_scnf as scnf
from pyro_scnf.testing import Case, PriorCase

SHAPE, CONTEXT, CLASSES = (3,), 2, 3


# -- values and log-determinants -------------------------------------------------------------------------
class WrongSign(Tails):
    """Both log-determinants have the wrong sign, so that they still cancel."""

    def _inverse_ladj(self, x, *context):
        z, ladj = super()._inverse_ladj(x)
        return z, -ladj

    def _forward_ladj(self, z, *context):
        x, ladj = super()._forward_ladj(z)
        return x, -ladj


class MissingFactor(Tails):
    """Both log-determinants lack a factor of two."""

    def _inverse_ladj(self, x, *context):
        z, ladj = super()._inverse_ladj(x)
        return z, ladj / 2

    def _forward_ladj(self, z, *context):
        x, ladj = super()._forward_ladj(z)
        return x, ladj / 2


class WrongWayBack(Tails):
    """The log-determinant of the forward direction is that of the inverse."""

    def _forward_ladj(self, z, *context):
        x, ladj = super()._forward_ladj(z)
        return x, -ladj


class NoInverse(Tails):
    """The forward direction forgets the scale."""

    def _forward_ladj(self, z, *context):
        u = z.sinh()
        return u, self._sum(u.square().log1p() / 2)


class SinglePrecision(Tails):
    """It computes in float32, whatever it is given."""

    def _inverse_ladj(self, x, *context):
        return super()._inverse_ladj(x.float())


class DoublePrecision(Tails):
    """A constant in float64 makes float64 of float32."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.one = torch.ones(event_shape, dtype=torch.float64)

    def _inverse_ladj(self, x, *context):
        return super()._inverse_ladj(x * self.one)


class OneBatchDimension(Tails):
    """It sums over dimension 1, wherever the event is."""

    def _sum(self, each):
        return each.sum(1)


class BatchStatistics(Tails):
    """An event's latent depends on the rest of its batch."""

    def _inverse_ladj(self, x, *context):
        z, ladj = super()._inverse_ladj(x)
        return z + x.reshape(-1, *self.event_shape).mean(0), ladj


class NeedsAnEvent(Tails):
    """It takes a maximum, which an empty batch has not."""

    def _inverse_ladj(self, x, *context):
        z, ladj = super()._inverse_ladj(x)
        return z + 0 * x.detach().max(), ladj


class BranchesOnData(Tails):
    """It reads the values of its input."""

    def _inverse_ladj(self, x, *context):
        z, ladj = super()._inverse_ladj(x)
        return (z, ladj) if x.abs().max() < 1e6 else (z * 1, ladj)


class WrongShape(scnf.transforms.FlowTransform):
    """It flattens images, and does not say so."""

    def _inverse_ladj(self, x, *context):
        return x.flatten(-3), x.new_zeros(x.shape[:-3])

    def _forward_ladj(self, z, *context):
        return z.unflatten(-1, self.event_shape), z.new_zeros(z.shape[:-1])


# -- gradients -------------------------------------------------------------------------------------------
class UnusedParameter(Tails):
    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.spare = nn.Parameter(torch.zeros(2))


class DetachedLogDeterminant(Tails):
    """The parameter learns from the value alone."""

    def _inverse_ladj(self, x, *context):
        z, ladj = super()._inverse_ladj(x)
        return z, ladj.detach()


class NoGradient(Tails):
    @torch.no_grad()
    def _inverse_ladj(self, x, *context):
        return super()._inverse_ladj(x)


# -- Pyro's protocol -------------------------------------------------------------------------------------
class WrongJacobian(Tails):
    """It gives Pyro the log-determinant of the other direction."""

    def log_abs_det_jacobian(self, z, x):
        return -super().log_abs_det_jacobian(z, x)


class TwoPasses(Tails):
    """It computes the log-determinant anew when Pyro asks for it."""

    def log_abs_det_jacobian(self, z, x):
        return -self.inverse_and_ladj(x)[1]


class StaleLogDeterminant(Tails):
    """It keeps the first log-determinant, as a cache does, and with it the latents."""

    def _inverse(self, x):
        z, ladj = self.inverse_and_ladj(x)
        self.kept = (z, -ladj)
        return z

    def log_abs_det_jacobian(self, z, x):
        return self.kept[1] if hasattr(self, "kept") else -self.inverse_and_ladj(x)[1]


class PublicMethodsOnly(scnf.transforms.FlowTransform):
    """It overrides the methods that a user calls, and a chain calls others."""

    def inverse_and_ladj(self, x):
        return x / 2, x.new_full(x.shape[:-1], -3 * math.log(2))

    def call_and_ladj(self, z):
        return 2 * z, z.new_full(z.shape[:-1], 3 * math.log(2))


class WrongEventDim(Tails):
    codomain = constraints.real


class WrongSupport(Tails):
    """It takes any real number, and claims to take positive ones only."""

    codomain = constraints.independent(constraints.positive, 1)


class UnstatedSupport(scnf.transforms.Logit):
    """Its data lie in the unit interval, and it does not say so."""

    codomain = constraints.real_vector


# -- state -----------------------------------------------------------------------------------------------
class CountsCalls(Tails):
    """A buffer changes in the forward pass."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.register_buffer("calls", torch.zeros(()))

    def _inverse_ladj(self, x, *context):
        self.calls += 1
        return super()._inverse_ladj(x)


class InitialisesItself(Tails):
    """The first forward pass sets the parameter."""

    ready = False

    def _inverse_ladj(self, x, *context):
        if not self.ready:
            self.ready = True
            self.log_scale.data.copy_(x.detach().flatten(1).abs().mean().log())
        return super()._inverse_ladj(x)


class KeepsTheBatch(Tails):
    """It keeps its last result."""

    def _inverse_ladj(self, x, *context):
        self.last = super()._inverse_ladj(x)[0]
        return super()._inverse_ladj(x)


class ChangesItsInput(Tails):
    def _inverse_ladj(self, x, *context):
        out = super()._inverse_ladj(x)
        x.data.mul_(2)
        return out


class KeepsTheScale(Tails):
    """It computes its scale once: no update reaches it, and its graph serves one backward pass."""

    def _inverse_ladj(self, x, *context):
        if not hasattr(self, "scale"):
            self.scale = self.log_scale.exp()
        u = x / self.scale
        return self.scale * u.asinh(), -self._sum(u.square().log1p() / 2)


class KeepsTheFirstResult(Tails):
    """It keeps the first result for each tensor. It does not see that the data changed or need a gradient."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.kept = {}

    def _inverse_ladj(self, x, *context):
        if id(x) not in self.kept:
            self.kept[id(x)] = (x, *super()._inverse_ladj(x))
        return self.kept[id(x)][1:]


class WrongLatentsOfInitialize(Tails):
    def _initialize(self, x, *context):
        return x


class HiddenConstant(Tails):
    """A random constant is missing in the state dict."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.factor = float(torch.rand(()) + 1)

    def _inverse_ladj(self, x, *context):
        z, ladj = super()._inverse_ladj(x / self.factor)
        return z, ladj - self.event_shape.numel() * math.log(self.factor)

    def _forward_ladj(self, z, *context):
        x, ladj = super()._forward_ladj(z)
        return self.factor * x, ladj + self.event_shape.numel() * math.log(self.factor)


class Lambda(Tails):
    """A lambda cannot be pickled."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.exp = lambda value: value.exp()


class CopiesAreTheSame(Tails):
    def __deepcopy__(self, memo):
        return self


class CopiesByPickle(Tails):
    """A pickle does not take the weak references that Pyro puts on parameters."""

    def __getstate__(self):
        return dict(vars(self))

    def __deepcopy__(self, memo):
        return pickle.loads(pickle.dumps(self))


class Dropout(Tails):
    def _inverse_ladj(self, x, *context):
        z, ladj = super()._inverse_ladj(x)
        return nn.functional.dropout(z, 0.5, self.training), ladj


class ConstantOnTheCPU(Tails):
    """A tensor that is no buffer does not move with the module."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.one = torch.ones(event_shape)

    def _inverse_ladj(self, x, *context):
        return super()._inverse_ladj(x * self.one)


class Abstract(Tails, ABC):
    """The metaclass of ``ABC`` is not that of ``PyroModule``."""


# -- conditional transforms --------------------------------------------------------------------------------
class NoBroadcast(ContextShift):
    """It expects one context for each event."""

    def _inverse_ladj(self, x, context):
        both = torch.cat([x, context], -1)
        return super()._inverse_ladj(both[..., : x.shape[-1]], both[..., x.shape[-1] :])


class NoBroadcastOfLatents(ContextShift):
    """It expects one context for each latent."""

    def _forward_ladj(self, z, context):
        both = torch.cat([z, context], -1)
        return super()._forward_ladj(both[..., : z.shape[-1]], both[..., z.shape[-1] :])


class FirstContextOnly(ContextShift):
    """It uses the first of the contexts for all events."""

    def _inverse_ladj(self, x, context):
        return super()._inverse_ladj(x, context.reshape(-1, self.context_dim)[0].expand_as(context))

    def _forward_ladj(self, z, context):
        return super()._forward_ladj(z, context.reshape(-1, self.context_dim)[0].expand_as(context))


class IgnoresTheContext(ContextShift):
    def _inverse_ladj(self, x, context):
        return super()._inverse_ladj(x, torch.ones_like(context))

    def _forward_ladj(self, z, context):
        return super()._forward_ladj(z, torch.ones_like(context))


class DetachesTheContext(ContextShift):
    def _inverse_ladj(self, x, context):
        return super()._inverse_ladj(x, context.detach())


class OtherContextForPyro(ContextShift):
    """``condition`` does not do what ``inverse_and_ladj`` does."""

    def condition(self, context):
        return super().condition(-context)


class ScaleOfOneNumber(ContextShift):
    """The log-determinant counts one number of the event."""

    def _inverse_ladj(self, x, context):
        z, ladj = super()._inverse_ladj(x, context)
        return z, ladj / self.event_shape[0]

    def _forward_ladj(self, z, context):
        x, ladj = super()._forward_ladj(z, context)
        return x, ladj / self.event_shape[0]


class KeepsTheContext(ContextShift):
    def _inverse_ladj(self, x, context):
        self.context = context
        return super()._inverse_ladj(x, context)


# -- priors ------------------------------------------------------------------------------------------------
class IgnoresTheLabel(LaplacePrior):
    def condition(self, y, temperature=1.0):
        return super().condition(torch.zeros_like(y), temperature)


class WrongBatchShape(LaplacePrior):
    """It drops the dimensions of enumeration."""

    def condition(self, y, temperature=1.0):
        return super().condition(y.squeeze(), temperature)


class NoEvent(LaplacePrior):
    """Its distribution has no event dimensions."""

    def condition(self, y, temperature=1.0):
        return super().condition(y, temperature).base_dist


class NotPyros(LaplacePrior):
    """A distribution of PyTorch's has no enumeration."""

    def condition(self, y, temperature=1.0):
        base = torch.distributions.Laplace(self.loc[y], temperature * self.log_scale[y].exp())
        return torch.distributions.Independent(base, len(self.event_shape))


class NoTemperature(LaplacePrior):
    def condition(self, y, temperature=1.0):
        return super().condition(y)


class Scaled(dist.Laplace):
    """Draws are twice as wide as the density."""

    def rsample(self, sample_shape=()):
        return self.loc + 2 * (super().rsample(torch.Size(sample_shape)) - self.loc)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class WideDraws(LaplacePrior):
    def condition(self, y, temperature=1.0):
        scale = temperature * self.log_scale[y].exp()
        return Scaled(self.loc[y], scale).to_event(len(self.event_shape))


class Wider(dist.Laplace):
    """Draws are a tenth wider than the density."""

    def rsample(self, sample_shape=()):
        return self.loc + 1.1 * (super().rsample(torch.Size(sample_shape)) - self.loc)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class WiderDraws(LaplacePrior):
    def condition(self, y, temperature=1.0):
        scale = temperature * self.log_scale[y].exp()
        return Wider(self.loc[y], scale).to_event(len(self.event_shape))


class FarDraws(LaplacePrior):
    """Draws lie far from where the density is."""

    def condition(self, y, temperature=1.0):
        scale = temperature * self.log_scale[y].exp()
        return Shifted(self.loc[y], scale).to_event(len(self.event_shape))


class Shifted(dist.Laplace):
    def rsample(self, sample_shape=()):
        return super().rsample(torch.Size(sample_shape)) + 100 * self.scale

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class Unnormalised(dist.Laplace):
    """The density lacks the constant of the scale."""

    def log_prob(self, value):
        return super().log_prob(value) + self.scale.log()


class NoConstant(LaplacePrior):
    def condition(self, y, temperature=1.0):
        scale = temperature * self.log_scale[y].exp()
        return Unnormalised(self.loc[y], scale).to_event(len(self.event_shape))


class Detached(dist.Laplace):
    def rsample(self, sample_shape=()):
        return super().rsample(torch.Size(sample_shape)).detach()


class DetachedDraws(LaplacePrior):
    def condition(self, y, temperature=1.0):
        scale = temperature * self.log_scale[y].exp()
        return Detached(self.loc[y], scale).to_event(len(self.event_shape))


class ReversedClasses(LaplacePrior):
    def class_log_prob(self, z_f):
        return super().class_log_prob(z_f).flip(-1)


class DetachedClasses(LaplacePrior):
    """The shared evaluation forgets the gradient of the scales."""

    def class_log_prob(self, z_f):
        labels = torch.arange(self.num_classes, device=z_f.device).reshape((-1,) + (1,) * (z_f.dim() - 1))
        d = dist.Laplace(self.loc[labels], self.log_scale[labels].exp().detach())
        return d.to_event(1).log_prob(z_f).movedim(0, -1)


class OneHotOfLabels(LaplacePrior):
    """``one_hot`` takes labels in int64 only."""

    def condition(self, y, temperature=1.0):
        weights = nn.functional.one_hot(y, self.num_classes).to(self.loc)
        loc, scale = (weights[..., None] * self.loc).sum(-2), temperature * self.log_scale[y].exp()
        return dist.Laplace(loc, scale).to_event(1)


class SummedByProduct(dist.Laplace):
    """Autocast does a product in bfloat16."""

    def log_prob(self, value):
        return super().log_prob(value) @ torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)


class LowPrecision(LaplacePrior):
    def condition(self, y, temperature=1.0):
        return SummedByProduct(self.loc[y], temperature * self.log_scale[y].exp()).to_event(1)


class MeansOfClasses(LaplacePrior):
    """A class without a label has no mean."""

    @torch.no_grad()
    def initialize(self, z_f, y):
        for k in range(self.num_classes):
            self.loc[k] = z_f[y == k].mean(0)


class MeansWithoutUnlabelled(LaplacePrior):
    """It takes no label of -1."""

    @torch.no_grad()
    def initialize(self, z_f, y):
        weights = nn.functional.one_hot(y, self.num_classes).to(z_f)
        self.loc.copy_(weights.T @ z_f / weights.sum(0)[:, None].clamp(min=1))


class Argmax(LaplacePrior):
    """It takes class weights for the label of the largest."""

    def condition(self, y, temperature=1.0):
        return super().condition(y.argmax(-1) if y.is_floating_point() else y, temperature)


class ReversedWeights(LaplacePrior):
    def condition(self, y, temperature=1.0):
        if not y.is_floating_point():
            return super().condition(y, temperature)
        loc, log_scale = y.flip(-1) @ self.loc, y.flip(-1) @ self.log_scale
        return dist.Laplace(loc, temperature * log_scale.exp()).to_event(1)


class UnusedInPrior(LaplacePrior):
    def __init__(self, event_shape, num_classes):
        super().__init__(event_shape, num_classes)
        self.spare = nn.Parameter(torch.zeros(2))


class LambdaInPrior(LaplacePrior):
    def __init__(self, event_shape, num_classes):
        super().__init__(event_shape, num_classes)
        self.exp = lambda value: value.exp()


class TableIsNoBuffer(LaplacePrior):
    """Random means that are neither parameter nor buffer."""

    def __init__(self, event_shape, num_classes):
        super().__init__(event_shape, num_classes)
        del self.loc
        self.loc = torch.randn(num_classes, *event_shape)


class IgnoresCovariates(LinearPrior):
    def condition(self, y, temperature=1.0, covariates=None):
        return super().condition(y, temperature, 0 * covariates)


class FirstCovariatesOnly(LinearPrior):
    """It takes the covariates of the first row for those of all rows."""

    def condition(self, y, temperature=1.0, covariates=None):
        first = covariates.reshape(-1, self.covariates)[0]
        return super().condition(y, temperature, first.expand_as(covariates))


class DetachesCovariates(LinearPrior):
    def condition(self, y, temperature=1.0, covariates=None):
        return super().condition(y, temperature, covariates.detach())


# -- which checks find what --------------------------------------------------------------------------------
FOUND_BY_ONE: dict[type[nn.Module], str] = {
    WrongSign: "log_determinant",
    MissingFactor: "log_determinant",
    NeedsAnEvent: "empty_batch",
    WrongShape: "kind",
    UnusedParameter: "every_parameter_learns",
    TwoPasses: "one_pass",
    WrongSupport: "data_in_codomain",
    UnstatedSupport: "support",
    CountsCalls: "scoring_changes_nothing",
    WrongLatentsOfInitialize: "initializes",
    CopiesAreTheSame: "deepcopies",
    CopiesByPickle: "copies_from_the_param_store",
    ConstantOnTheCPU: "meta_device",
    Abstract: "becomes_a_pyro_module",
    ScaleOfOneNumber: "log_determinant",
    IgnoresTheLabel: "label_matters",
    NotPyros: "kind",
    NoTemperature: "temperature",
    WideDraws: "draws_follow_the_density",
    WiderDraws: "draws_follow_the_density",
    FarDraws: "draws_follow_the_density",
    DetachedDraws: "draws_with_gradients",
    OneHotOfLabels: "integer_labels",
    LowPrecision: "autocast",
    MeansOfClasses: "initializes_without_labels",
    Argmax: "relaxed_labels",
    UnusedInPrior: "every_parameter_learns",
    DetachesCovariates: "covariates_learn",
}
"""The one check that each of these fails."""

FOUND_BY_SEVERAL: dict[type[nn.Module], set[str]] = {
    WrongWayBack: {"round_trip_float32", "round_trip_float64", "log_determinant", "pyro_protocol"},
    NoInverse: {"round_trip_float32", "round_trip_float64", "initializes"},
    SinglePrecision: {"round_trip_float64"},
    DoublePrecision: {"round_trip_float32"},
    OneBatchDimension: {"batch_shapes", "vmap"},
    BatchStatistics: {"batch_shapes"},
    BranchesOnData: {"vmap", "meta_device"},
    DetachedLogDeterminant: {"gradients_by_differences"},
    NoGradient: {"every_parameter_learns", "gradients_by_differences"},
    WrongJacobian: {"pyro_protocol", "transformed_distribution"},
    StaleLogDeterminant: {"log_determinant_is_current", "log_determinant_has_its_gradient"},
    PublicMethodsOnly: {"in_a_chain"},
    WrongEventDim: {"predicted_shapes"},
    InitialisesItself: {"scoring_changes_nothing"},
    KeepsTheBatch: {"scoring_changes_nothing", "files_hold_no_data"},
    ChangesItsInput: {"scoring_changes_nothing"},
    KeepsTheScale: {"update_is_seen", "second_backward", "scoring_changes_nothing"},
    KeepsTheFirstResult: {"update_is_seen", "change_of_data_is_seen"},
    HiddenConstant: {"state_dict_restores"},
    Lambda: {"pickles", "saves"},
    Dropout: {"training_mode"},
    NoBroadcast: {"contexts_broadcast"},
    NoBroadcastOfLatents: {"contexts_broadcast_over_latents"},
    FirstContextOnly: {"contexts_broadcast"},
    IgnoresTheContext: {"context_matters", "context_learns"},
    DetachesTheContext: {"context_learns"},
    OtherContextForPyro: {"conditional_distribution", "conditional_compose"},
    KeepsTheContext: {"scoring_changes_nothing", "files_hold_no_data"},
    WrongBatchShape: {"batch_shapes", "enumerated_labels", "enumeration"},
    NoEvent: {"batch_shapes"},
    NoConstant: {"density_integrates_to_one"},
    ReversedClasses: {"class_log_prob", "enumeration"},
    DetachedClasses: {"gradients_of_batched_labels"},
    MeansWithoutUnlabelled: {"initializes"},
    ReversedWeights: {"one_hot_labels"},
    LambdaInPrior: {"pickles", "saves"},
    TableIsNoBuffer: {"state_dict_restores", "meta_device"},
    FirstCovariatesOnly: {"covariates_broadcast"},
    IgnoresCovariates: {"covariates_matter", "covariates_learn", "every_parameter_learns"},
}
"""Checks that must be among those that each of these fails."""


def case_of(cls: type[nn.Module]) -> Case | PriorCase:
    """What each of them claims to be."""
    if issubclass(cls, LinearPrior):
        return PriorCase(lambda: cls(SHAPE, CLASSES, 2), SHAPE, CLASSES)
    if issubclass(cls, LaplacePrior):
        return PriorCase(lambda: cls(SHAPE, CLASSES), SHAPE, CLASSES, cls in (Argmax, ReversedWeights))
    if issubclass(cls, ContextShift):
        return Case(lambda: cls(SHAPE, CONTEXT), SHAPE, context_dim=CONTEXT)
    if cls is WrongShape:
        return Case(lambda: cls((2, 2, 2)), (2, 2, 2), (8,))
    return Case(lambda: cls(SHAPE), SHAPE, data="unit" if cls is UnstatedSupport else "real")
