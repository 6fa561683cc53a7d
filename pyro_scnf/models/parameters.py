"""The parameters of a model and a guide, also of those that are functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Self, cast

import pyro
import torch
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch._C import _functorch as functorch

from pyro_scnf._warn import warn
from pyro_scnf.models.guides import exact_guide

__all__ = ["SiteParameters"]


class SiteParameters(nn.Module):
    """The parameters that a model and a guide name by ``pyro.param`` and ``pyro.module`` while they run.

    It holds those that the model and the guide do not hold as modules. They are known after the first run.
    Before it, every reading of the parameters raises an error: an optimiser made too early would lack them
    without a word. A parameter that comes after they were read raises an error once.

    :param owners: the model and the guide.
    """

    def __init__(self, *owners: object) -> None:
        super().__init__()
        self.owners = owners
        self._forget()

    def _forget(self) -> None:
        """Begin as if nothing had run."""
        self.has_run = self.has_graph = False
        self.unnamed: list[Tensor] = []  # trainable, but neither in a module nor named by a site
        self.seen: dict[int, Tensor] = {}
        self.idle: dict[int, Tensor] = {}  # in Pyro's store, but not what a module computes with
        self.read: dict[int, Tensor] | None = None  # what the latest reading gave
        self.before: tuple[set[int], set[str]] = set(), set()  # held by modules, and in Pyro's store
        # PyTorch reads parameters with items(), for this module and for every module above it.
        self._parameters = _Noticed(self._before_reading)

    @property
    def complete(self) -> bool:
        """Whether all parameters are known."""
        return self.has_run or all(map(_holds_all, self.owners))

    def before_run(self) -> None:
        """Note what there is before the first run."""
        if not self.has_run:
            self.before = set(_held(self.owners)), set(pyro.get_param_store().keys())

    def take_up(self, sites: Iterable[Message], loss: Tensor) -> None:
        """Take up the parameters of a run.

        :param sites: the sites of the run, of every type.
        :param loss: what the run gave.
        :raises RuntimeError: if a parameter is new, and the parameters were read before.
        """
        if functorch.is_functorch_wrapped_tensor(loss):
            return  # sites then hold tensors that stand for parameters
        sites = [site for site in sites if site["type"] == "param"]
        if not self.has_run:
            self._warn_of_old_values(sites)
        self.has_run, late = True, []
        expected = self.seen if self.read is None else self.read
        leaves = functools.cache(lambda: _leaves(loss))
        for site in sites:
            if site["value"] is site["args"][-1] and id(site["value"]) in expected:
                continue
            parameter = self._used(site, leaves)
            if parameter is not None and self._is_late(str(site["name"]), parameter):
                late.append(str(site["name"]))
        if not self.has_graph and loss.requires_grad:
            self.has_graph = True
            known = self._known()
            self.unnamed = [
                p for p in leaves().values() if isinstance(p, nn.Parameter) and id(p) not in known
            ]
        if late:
            raise RuntimeError(
                f"the parameter {late[0]!r} is new: it has come since the parameters of the loss were read, "
                "so an optimiser made from those does not train it. Now they hold it: make the optimiser "
                f"anew, or add the parameter to it ({len(late)} in all: {', '.join(late[:5])})"
            )

    def _warn_of_old_values(self, sites: Iterable[Message]) -> None:
        """Warn if a module that makes its parameters when it runs has found them in Pyro's store instead."""
        held, stored = self.before
        new = _held(self.owners).keys() - held
        old = [str(site["name"]) for site in sites if id(_unconstrained(site["value"])) in new]
        old = [name for name in old if name in stored]
        if old:
            warn(
                f"a guide or model begins with values of {old[0]!r} that were in Pyro's parameter store "
                f"({len(old)} in all: {', '.join(old[:5])}). If an earlier one of the same name made them, "
                "the two share them. For a new start, call pyro.clear_param_store() before the first run, "
                "and do not run the earlier one again"
            )

    def _used(self, site: Message, leaves: Callable[[], dict[int, Tensor]]) -> Tensor | None:
        """The tensor by which a site's parameter is trained.

        Pyro's store may hold another tensor of that name, from an earlier module. A module goes on computing
        with its own, while ``pyro.param`` gives what is in the store. The graph tells which it was.
        """
        stored = _unconstrained(site["value"])
        given = site["args"][1] if len(site["args"]) > 1 else None
        own = given if isinstance(given, nn.Parameter) else None
        if own is None or own is stored:
            return stored
        if stored is None or id(stored) in self.idle:
            return own
        if id(stored) in leaves():
            return stored
        if id(own) in leaves():
            self.idle[id(stored)] = stored
            return own
        return stored if id(stored) in self.seen else own

    def _is_late(self, name: str, parameter: Tensor) -> bool:
        """Take up ``parameter``, if it is new. Return whether a reading has missed it."""
        if id(parameter) not in self.seen:
            held = _held(self.owners)
            if id(parameter) in held and not isinstance(parameter, nn.Parameter):
                return False  # torch.func.functional_call has put it there for this call
            self.seen.update(held)
            if id(parameter) not in held:
                parameter._is_param = True  # type: ignore[attr-defined]  # PyTorch then takes it for one
                self.register_parameter(name.replace(".", "/"), cast(nn.Parameter, parameter))
            self.seen[id(parameter)] = parameter
        if self.read is None or id(parameter) in self.read or not torch.is_grad_enabled():
            return False
        self.read[id(parameter)] = parameter
        return True

    def _known(self) -> dict[int, Tensor]:
        """All parameters: those here, and those of the modules."""
        return _held(self.owners) | {id(p): p for p in self._parameters.values() if p is not None}

    def _before_reading(self) -> None:
        if not self.complete:
            raise RuntimeError(
                "the parameters of the loss are not known yet, because its model or guide is a function, or "
                "a guide that makes its parameters when it runs: call the loss once first, loss(x), then "
                "make the optimiser"
            )
        unnamed = [p for p in self.unnamed if p.requires_grad]
        if unnamed:
            shapes = ", ".join(str(tuple(p.shape)) for p in unnamed[:3])
            raise RuntimeError(
                f"the loss depends on {len(unnamed)} parameters that neither model nor guide names (of "
                f"shapes {shapes}, ...), so its optimiser would not train them: call pyro.module('name', "
                "module) in the model for each module that it uses, or freeze them with "
                "module.requires_grad_(False)"
            )
        self.read = self._known()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuse to convert parameters without the buffers of their modules, which no site names."""
        for name, parameter in dict.items(self._parameters):
            if parameter is None:
                continue
            with torch.no_grad():
                converted = fn(parameter)
            if (converted.dtype, converted.device) != (parameter.dtype, parameter.device):
                raise RuntimeError(
                    f"the loss cannot be converted, because its model or guide is a function, which uses "
                    f"{name!r}: convert the modules of the function themselves, module.to(...), before the "
                    "first call"
                )
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The copy of a function is the function itself, with the same parameters. So a copy of this module
        # begins anew, and finds them when it runs.
        return {"owners": self.owners}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SiteParameters.__init__(self, *state["owners"])


class _Noticed(dict[str, nn.Parameter | None]):
    """The parameters of a module. It calls ``before`` whenever they are read."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self.before = before

    def items(self):  # type: ignore[no-untyped-def]
        self.before()
        return super().items()


def _holds_all(owner: object) -> bool:
    """Whether a model or guide holds all of its parameters before it runs, as far as can be seen.

    Pyro's guides that set themselves up in their first run have a ``prototype_trace``.
    """
    if owner is exact_guide:
        return True
    return isinstance(owner, nn.Module) and all(
        getattr(part, "prototype_trace", part) is not None for part in owner.modules()
    )


def _held(owners: Iterable[object]) -> dict[int, Tensor]:
    """The parameters of those owners that are modules."""
    modules = (part for owner in owners if isinstance(owner, nn.Module) for part in owner.modules())
    return {id(p): p for part in modules for p in part._parameters.values() if p is not None}


def _unconstrained(value: object) -> Tensor | None:
    """The leaf behind the value of a parameter's site."""
    if not isinstance(value, Tensor):
        return None
    subsampled = getattr(value, "_pyro_unconstrained_param", None)
    leaf = subsampled if subsampled is not None else getattr(value, "unconstrained", lambda: value)()
    return leaf if isinstance(leaf, Tensor) and leaf.is_leaf and leaf.requires_grad else None


def _leaves(loss: Tensor) -> dict[int, Tensor]:
    """The tensors at the ends of the graph of ``loss``, by their ids."""
    found: dict[int, Tensor] = {}
    stack, visited = [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        stack += [following for following, _ in node.next_functions]
    return found
