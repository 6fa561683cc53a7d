"""Errors for programs in which Pyro would silently compute a wrong loss.

Only this module reads Pyro's private handler stack.
"""

from __future__ import annotations

from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_struct import Trace

__all__ = ["guard_label_site"]


def guard_label_site(site: str, *, observed: bool, scored: bool, weighted: bool) -> None:
    """Raise an error if the loss that Pyro is about to compute would be wrong for the label ``site``.

    Every ELBO runs the model under a replay handler, which holds the guide's trace. The trace tells whether
    the guide sampled the label. A run under a block handler only inspects the model and computes no loss, so
    a label that nothing sums out is no error there.

    :param bool observed: whether all labels are given.
    :param bool scored: whether x is given.
    :param bool weighted: whether the rows have weights.
    :raises RuntimeError: if the guide samples an observed label, or nothing sums out an unobserved one.
    :raises ValueError: for weights of rows whose label the model enumerates.
    """
    stack = list(_PYRO_STACK)
    replay = next((m.trace for m in stack if isinstance(m, ReplayMessenger) and m.trace is not None), None)
    node = replay.nodes.get(site) if replay is not None else None
    in_guide = node is not None and not node["is_observed"]
    observed = observed or any(_conditions(m, site) for m in stack)
    enumerated = any(isinstance(m, EnumMessenger) for m in stack)
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
    blocked = any(isinstance(m, BlockMessenger) for m in stack)
    if replay is not None and not enumerated and not blocked:
        raise RuntimeError(
            f"the label {site!r} is neither enumerated nor in the guide: it would be drawn once from p(y) "
            "instead of summed out. Use TraceEnum_ELBO (or pyro_scnf.elbo), or an EMGuide."
        )


def _conditions(handler: Messenger, site: str) -> bool:
    """Whether a handler is a ``poutine.condition`` on ``site``."""
    if not isinstance(handler, ConditionMessenger):
        return False
    data = handler.data
    return site in (data.nodes if isinstance(data, Trace) else data)
