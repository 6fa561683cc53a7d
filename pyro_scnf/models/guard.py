"""Errors for programs in which Pyro would silently compute a wrong loss.

Only this module reads Pyro's private handler stack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import cast

import pyro
from pyro.infer.reparam import TransformReparam
from pyro.infer.traceenum_elbo import BackwardSampleMessenger
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name, user_param_name
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.lift_messenger import LiftMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK, Message
from pyro.poutine.substitute_messenger import SubstituteMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_scnf._during import during
from pyro_scnf.models.traces import NO_JACOBIAN, is_discrete, is_subsample

__all__ = [
    "computes_loss",
    "conditioned",
    "enumerates",
    "guard_child",
    "guard_data_site",
    "guard_label_site",
    "guarded",
]

HIDDEN = (
    "{} is hidden from the loss by poutine.block: it would be drawn once from its prior instead of summed "
    "out. Give the loss the model without that block; a block is for guides"
)


def enumerates() -> bool:
    """Whether a program runs with discrete sites enumerated, each along a dimension of its own."""
    return any(isinstance(m, EnumMessenger) for m in _PYRO_STACK)


def computes_loss() -> bool:
    """Whether a loss runs the program, and not ``Predictive`` or a tracer that looks at it."""
    return any(isinstance(m, EnumMessenger) or _replays(m) for m in _PYRO_STACK)


def conditioned(site: str) -> bool:
    """Whether a ``poutine.condition`` around the program gives the value of a site."""
    return any(_conditions(m, site) for m in _PYRO_STACK)


# -- the ready model, under any loss of Pyro ------------------------------------------------------
def guard_label_site(site: str, *, observed: bool, scored: bool, weighted: bool) -> None:
    """Raise an error if the loss that Pyro is about to compute would be wrong for the label ``site``.

    Every ELBO runs the model under a replay handler, which holds the guide's trace. The trace tells whether
    the guide sampled the label. A run inside a block handler only inspects the model and computes no loss, so
    a label that nothing sums out is no error there. A block handler inside the replay handler, in contrast,
    hides the label from the loss.

    :param bool observed: whether all labels are given.
    :param bool scored: whether x is given.
    :param bool weighted: whether the rows have weights.
    :raises RuntimeError: if the guide samples an observed label, or nothing sums out an unobserved one.
    :raises ValueError: for weights of rows whose label the model enumerates.
    """
    stack = list(_PYRO_STACK)
    start = next((i for i, m in enumerate(stack) if _replays(m)), None)
    replay = None if start is None else stack[start].trace  # type: ignore[attr-defined]
    node = replay.nodes.get(site) if replay is not None else None
    in_guide = node is not None and not node["is_observed"]
    observed = observed or conditioned(site)
    # TraceEnum_ELBO.sample_posterior has summed labels out before, and now draws them given x.
    enumerated = any(isinstance(m, EnumMessenger | BackwardSampleMessenger) for m in stack)
    if observed and in_guide:
        raise RuntimeError(
            f"the guide samples the label {site!r}, which is observed: the loss would be off by the guide's "
            "entropy. Let the guide skip observed labels, as EMGuide does."
        )
    if observed or in_guide or not scored:
        return
    if weighted and enumerated:
        raise ValueError(
            "weights: rows of a label that the model enumerates cannot be weighed one by one; use an EMGuide "
            "and give it the same weights"
        )
    if start is None or any(isinstance(m, BlockMessenger) for m in stack[:start]):
        return
    msg = cast(Message[..., Tensor], {"type": "sample", "name": site, "is_observed": False})
    if _hides(stack[start:], msg):
        raise RuntimeError(HIDDEN.format(f"the label {site!r}"))
    if not enumerated:
        raise RuntimeError(
            f"the label {site!r} is neither enumerated nor in the guide: it would be drawn once from p(y) "
            "instead of summed out. Use TraceEnum_ELBO (or pyro_scnf.elbo), or an EMGuide."
        )


def guard_data_site(site: str, fn: object, *, observed: bool) -> None:
    """Raise an error if a reparametriser of Pyro's would leave out the log-determinant of the data ``site``.

    :param fn: the distribution of the data.
    :param bool observed: whether the data are given.
    :raises RuntimeError: if so.
    """
    if not observed and not conditioned(site):
        return
    msg = cast(Message[..., Tensor], {"name": site, "fn": fn, "is_observed": True, "value": None})
    for handler in _PYRO_STACK:
        if isinstance(handler, ReparamMessenger):
            config = handler.config
            chosen = config.get(site) if isinstance(config, dict) else config(msg)
            if isinstance(chosen, TransformReparam):
                raise RuntimeError(NO_JACOBIAN.format(site))


def guard_child(name: str, module: nn.Module) -> None:
    """Raise an error if a module of the ready model computes with other parameters than Pyro thinks.

    :param str name: the name of the module in Pyro's store.
    :raises RuntimeError: if so.
    """
    _guard_parameters(name, module)
    _guard_store(name, module)


def _guard_store(name: str, module: nn.Module) -> None:
    """Raise an error if ``SVI`` would train other tensors than those with which ``module`` computes.

    ``SVI`` trains what Pyro's store holds. That is another tensor if an earlier module had this name, if the
    store was loaded from a file, or if a parameter is not contiguous, which the store copies.
    """
    tracers = [m for m in _PYRO_STACK if isinstance(m, TraceMessenger) and m.param_only]
    if not tracers:
        return
    store = dict(pyro.get_param_store().named_parameters())
    for site, parameter, constrained in _named(name, module):
        stored = (
            parameter if constrained else store.get(site, parameter)
        )  # a PyroParam computes with the stored one
        if stored is not parameter and parameter.requires_grad and not _trained(parameter, tracers):
            raise RuntimeError(
                f"Pyro's store holds another tensor for {_readable(site)} than the model, and SVI would "
                "train that one, not the model: call pyro.clear_param_store() before a new model is trained, "
                "and load the model's state_dict rather than the store. If a program runs two models, call "
                "pyro.module('name', model) for each of them first. (The store also copies parameters in "
                "other memory formats than the contiguous one.)"
            )


def _guard_parameters(name: str, module: nn.Module) -> None:
    """Raise an error if ``poutine.lift`` or ``poutine.substitute`` would replace a parameter in vain.

    A module computes with the tensor that it holds, whatever a handler gives Pyro in its place. A
    ``PyroParam`` is replaced, but not in the transform of a flow, which Pyro scores without the handlers.
    """
    stack = list(_PYRO_STACK)
    for i, handler in enumerate(stack):
        if not isinstance(handler, LiftMessenger | SubstituteMessenger):
            continue
        for site, _, constrained in _named(name, module):
            msg = cast(Message[..., Tensor], {"type": "param", "name": site, "is_observed": False})
            in_vain = not constrained or site.startswith(f"{name}.transform.")
            if in_vain and _replaces(handler, site) and not _hides(stack[i + 1 :], msg):
                verb = "lift" if isinstance(handler, LiftMessenger) else "substitute"
                raise RuntimeError(
                    f"poutine.{verb} would replace the parameter {_readable(site)} in vain: the model "
                    "computes with the tensor that it holds. To make a parameter of the prior or of p(y) "
                    "random, use a PyroSample, see 'Bayesian class means' in the documentation (composing). "
                    "To change a value, write it into the parameter"
                )


def _named(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """The parameters of ``module`` that Pyro sees, by Pyro's names, and whether each is a ``PyroParam``.

    ``pyro.module`` leaves out those that are frozen.
    """
    if not isinstance(module, PyroModule):
        for inner, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield param_with_module_name(name, inner), parameter, False
        return
    for inner, own in module._parameters.items():
        public = inner.removesuffix("_unconstrained")
        constrained = public in module._pyro_params
        if own is not None:
            yield f"{name}.{public if constrained else inner}", own, constrained
    for inner, child in module._modules.items():
        if child is not None:
            yield from _named(f"{name}.{inner}", child)


def _readable(site: str) -> str:
    """The name of a parameter, without Pyro's mark between a module and what is inside it."""
    return site.replace("$$$", ".")


def _replaces(handler: LiftMessenger | SubstituteMessenger, site: str) -> bool:
    """Whether a handler gives a parameter another value. A single prior of ``poutine.lift`` is for all."""
    if isinstance(handler, SubstituteMessenger):
        return user_param_name(site) in handler.data
    return not isinstance(handler.prior, dict) or user_param_name(site) in handler.prior


def _trained(parameter: Tensor, tracers: list[TraceMessenger]) -> bool:
    """Whether the program has named a parameter before, by a ``pyro.module`` of its own."""
    nodes = (node for tracer in tracers for node in tracer.trace.nodes.values())
    values = (node["value"] for node in nodes if node["type"] == "param")
    return any(value is not None and value.unconstrained() is parameter for value in values)


def _replays(handler: Messenger) -> bool:
    """Whether a handler replays a guide.

    Pyro also runs the guide itself under such a handler, with a trace that is empty. An autoguide runs the
    model there once, to look at it.
    """
    return isinstance(handler, ReplayMessenger) and bool(handler.trace)


def _hides(handlers: list[Messenger], msg: Message) -> bool:
    """Whether one of ``handlers`` hides a site."""
    return any(isinstance(m, BlockMessenger) and m.hide_fn(msg) for m in handlers)


def _conditions(handler: Messenger, site: str) -> bool:
    """Whether a handler is a ``poutine.condition`` on ``site``."""
    if not isinstance(handler, ConditionMessenger):
        return False
    data = handler.data
    return site in (data.nodes if isinstance(data, Trace) else data)


# -- any model, under the loss of this package ------------------------------------------------------
_START: ContextVar[int | None] = ContextVar("pyro_scnf_start", default=None)
"""Where the handlers of the model begin on Pyro's stack, while a loss runs it."""


def guarded(model: Callable[..., object]) -> Callable[..., object]:
    """``model``, which raises an error if it hides a discrete latent from the loss."""

    @functools.wraps(model, updated=())
    def run(*args: object, **kwargs: object) -> object:
        with during(_START, len(_PYRO_STACK)):
            return model(*args, **kwargs)

    return run


@BlockMessenger.register(type="sample", post=True)
def _notice_hidden(msg: Message) -> None:
    """Called by Pyro for each site that comes to a block handler, at any time.

    A hidden site is in no trace, so this is the only place that sees it. Outside of :func:`guarded` this does
    nothing. Hidden continuous sites are left alone. They are noise that is meant to stay out of the loss.
    """
    start = _START.get()
    if start is None or msg["is_observed"] or is_subsample(msg) or not is_discrete(msg["fn"]):
        return
    if _hides(_PYRO_STACK[start:], msg):
        raise RuntimeError(HIDDEN.format(f"the discrete site {msg['name']!r}"))
