"""Copies and files of what users hold: without graphs, and without Pyro's marks on parameters."""

from __future__ import annotations

import copy
from typing import Self

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

__all__ = ["Portable", "PortableModule"]


class Portable:
    """A distribution or transform that can be deep-copied, pickled and sent to another process at any time.

    PyTorch deep-copies no tensor that has a graph, and sends none to another process. A deepcopy or a file
    therefore holds the values alone. ``copy.copy`` shares the tensors, graphs and all.
    """

    def __getstate__(self) -> dict[str, object]:
        copies: dict[int, object] = {}
        return {name: _without_graphs(value, copies) for name, value in self._whole_state().items()}

    def __copy__(self) -> Self:
        new = object.__new__(type(self))
        new.__dict__.update(self._whole_state())
        return new

    def _whole_state(self) -> dict[str, object]:
        """The attributes of a copy, whose tensors may have graphs."""
        return dict(vars(self))


def _without_graphs(value: object, copies: dict[int, object]) -> object:
    """``value``, or a shallow copy of it in which no tensor has a graph. Modules stay as they are.

    :param copies: those made so far, by the id of the original. Distributions may refer to themselves.
    """
    if isinstance(value, Tensor):
        return value.detach() if value.grad_fn is not None else value
    if isinstance(value, dict):
        return {key: _without_graphs(entry, copies) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_graphs(entry, copies) for entry in value]
    if type(value) is tuple:  # no subclass, such as torch.Size
        return tuple(_without_graphs(entry, copies) for entry in value)
    if not isinstance(value, Distribution | Transform) or isinstance(value, Portable | nn.Module):
        return value
    if id(value) not in copies:
        new = copies[id(value)] = copy.copy(value)
        for name, entry in list(vars(new).items()):
            vars(new)[name] = _without_graphs(entry, copies)
    return copies[id(value)]


class PortableModule(nn.Module):
    """A module that can be pickled after ``pyro.module`` and steps of ``SVI``, as Pyro's own modules can.

    Pyro's store puts a weak reference on each parameter whenever it hands it out. Nothing can pickle it.
    """

    def __getstate__(self) -> dict[str, object]:
        for module in self.modules():  # a loss may not know its parameters yet, and then refuses to list them
            for parameter in module._parameters.values():
                if parameter is not None:
                    vars(parameter).pop("unconstrained", None)
        return dict(super().__getstate__())  # type: ignore[call-overload]
