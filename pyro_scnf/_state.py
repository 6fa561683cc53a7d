"""What the values of modules depend on, and whether that has changed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch._C import _functorch as functorch  # PyTorch has no public way to tell that a transform is running

__all__ = ["Contents", "Parts", "State", "contents_of", "refuse_stray", "state_of", "state_with_data"]


class Parts(NamedTuple):
    """What modules consist of.

    :ivar inner: all modules within them, themselves included.
    :ivar foreign: those of ``inner`` that belong neither to this package nor to PyTorch.
    :ivar adjustable: those of ``inner`` that belong to this package and have ``settings``.
    :ivar tensors: the parameters and buffers of each of ``modules``.
    """

    modules: tuple[nn.Module, ...]
    inner: list[nn.Module]
    foreign: list[nn.Module]
    adjustable: list[nn.Module]
    tensors: list[list[Tensor]]

    @classmethod
    def of(cls, modules: tuple[nn.Module, ...]) -> Parts:
        """The parts of ``modules``. ``Module.modules()`` and ``parameters()`` take several times as long."""
        inner: list[nn.Module] = []
        foreign: list[nn.Module] = []
        adjustable: list[nn.Module] = []
        tensors: list[list[Tensor]] = []
        for module in modules:
            own: list[Tensor | None] = []
            stack: list[nn.Module | None] = [module]
            while stack:
                part = stack.pop()
                if part is not None:
                    inner.append(part)
                    own += part._parameters.values()
                    own += part._buffers.values()
                    stack += part._modules.values()
                    kind = _KINDS.get(type(part)) or _kind_of(type(part))
                    if kind.foreign:
                        foreign.append(part)
                    elif kind.settings:
                        adjustable.append(part)
            tensors.append([t for t in own if t is not None])
        return cls(modules, inner, foreign, adjustable, tensors)

    @property
    def are_random(self) -> bool:
        """Whether a parameter is a ``PyroSample``, which has another value at each use."""
        return any(module.__dict__.get("_pyro_samples") for module in self.foreign)

    def read_random(self) -> None:
        """Read each ``PyroSample``. In a call of its ``PyroModule`` it becomes a site there and then."""
        for module in self.foreign:
            for name in module.__dict__.get("_pyro_samples", ()):
                getattr(module, name)

    def read_parameters(self) -> None:
        """Read each trainable parameter of a ``PyroModule`` that is in a call, which then registers it.

        A frozen one is left alone, because Pyro would make it trainable.
        """
        for module in self.foreign:
            if isinstance(module, PyroModule) and module._pyro_context.active:
                once = f"{id(module)} read by pyro_scnf"  # in a call
                if module._pyro_context.get(once) is module:
                    continue
                module._pyro_context.set(once, cast(Tensor, module))
                for name, parameter in list(module._parameters.items()):
                    if parameter is not None and parameter.requires_grad:
                        constrained = name.removesuffix("_unconstrained")
                        getattr(module, constrained if constrained in module._pyro_params else name)

    @property
    def are_stray(self) -> bool:
        """Whether a ``PyroSample`` is read outside of a call of its ``PyroModule``.

        Each reading is then another draw from its prior, and no site.
        """
        return any(map(_is_stray, self.foreign))


def _is_stray(module: nn.Module) -> bool:
    return bool(module.__dict__.get("_pyro_samples")) and not module.__dict__["_pyro_context"].active


def refuse_stray(module: nn.Module, *modules: nn.Module) -> Parts:
    """Raise for a ``PyroSample`` that is read outside of a call of its ``PyroModule``.

    :param module: the message names the ``PyroSample`` as this module does.
    :param modules: those within ``module`` that are read, by default all of it.
    :return: their parts.
    """
    parts = Parts.of(modules or (module,))
    if not parts.are_stray:
        return parts
    stray = (
        f"{name}.{sample}".lstrip(".")
        for name, part in module.named_modules()
        if _is_stray(part)
        for sample in part.__dict__["_pyro_samples"]
    )
    raise ValueError(
        f"{next(stray)} is a PyroSample, and is read outside of a call of its PyroModule, where each use "
        "draws it anew from its prior, and it becomes no site. In a Pyro program, write the model as the "
        "forward of a PyroModule, all of whose members are PyroModules (to_pyro_module_(flow)), and read the "
        "parameter there, before the plate of the data. For labels and likelihoods given posterior draws, "
        "call pyro_scnf.enumerate_labels(model, args, draws)"
    )


class _Kind(NamedTuple):
    """What is known of a class of modules.

    :ivar bool foreign: whether it belongs to others. A ``PyroModule`` does, whatever it is made from.
    :ivar settings: names of the attributes on which values depend, which a class of this package lists.
        Reading all attributes of each of its modules would take longer than all else.
    """

    foreign: bool
    settings: tuple[str, ...]


_KINDS: dict[type[nn.Module], _Kind] = {}


def _kind_of(kind: type[nn.Module]) -> _Kind:
    package = kind.__module__.partition(".")[0]
    foreign = package not in ("pyro_scnf", "torch") or issubclass(kind, PyroModule)
    settings = getattr(kind, "settings", ()) if package == "pyro_scnf" else ()
    known = _KINDS[kind] = _Kind(foreign, settings)
    return known


class State:
    """All that the values of modules depend on, as far as can be seen without reading tensors.

    These are the modules, their tensors, where these lie and their versions, the settings of modules of this
    package, and all attributes of foreign ones. The state at another time is equal if nothing has changed.
    """

    def __init__(self, parts: Parts, *more: object) -> None:
        self.parts = parts  # kept alive, so that nothing else gets their ids
        tensors = [t for some in parts.tensors for t in some]
        self.seen = [  # lists are quicker than one tuple for each tensor
            *more,
            list(map(id, tensors)),
            [t._version for t in tensors],
            [t.data_ptr() for t in tensors],
            [t.requires_grad for t in tensors],
            list(map(id, parts.inner)),
            [module.training for module in parts.inner],
            [_settings_of(module) for module in parts.adjustable],
            [_attributes_of(module) for module in parts.foreign],
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.seen == other.seen


def state_of(parts: Parts, *more: object) -> State | None:
    """The state of modules, and of ``more``. ``None`` if it cannot be seen.

    That is so if a module is random (a ``PyroSample``), or if a tensor lies nowhere because it is inside
    ``torch.func``.
    """
    if parts.are_random:
        return None
    try:
        return State(parts, *more)
    except RuntimeError:
        return None


def state_with_data(parts: Parts, x: Tensor, *more: Tensor) -> State | None:
    """The state of modules, of their data and of the modes of computation. ``None`` if it cannot be seen.

    An inference tensor has no version. Inside ``torch.func``, whatever is computed belongs to that call, even
    if neither the data nor the parameters do.
    """
    if functorch.peek_interpreter_stack() is not None:
        return None
    try:
        return state_of(
            parts,
            x._version,
            x.data_ptr(),
            x.requires_grad,
            torch.is_autocast_enabled(x.device.type),
            torch.get_autocast_dtype(x.device.type),
            torch.is_inference_mode_enabled(),
            *((t._version, t.data_ptr(), t.requires_grad) for t in more),
        )
    except RuntimeError:
        return None


class _Is:
    """An object that is equal only to itself. It is kept alive, so that no other object gets its id."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and self.thing is other.thing


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _attributes_of(module: nn.Module) -> dict[str, object]:
    """What a module has besides what every module has."""
    return {name: _seen(value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _settings_of(module: nn.Module) -> list[object]:
    own = vars(module)
    return [_seen(own.get(name)) for name in _KINDS[type(module)].settings]


def _seen(value: object) -> object:
    """A plain value itself, and all else by identity."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return (_Is(value), value._version) if isinstance(value, Tensor) else _Is(value)


# -- the values of tensors -------------------------------------------------------------------------
class Contents:
    """The values that tensors had.

    It keeps a view of each tensor, made once, because hundreds of small calls would take longer than the
    comparison. The view shows what is in the memory of its tensor now.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        views: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self.places = self._places(tensors)
        self.strided: list[Tensor] = []
        for t in map(Tensor.detach, tensors):
            if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last):
                t = t.permute(0, 2, 3, 1)  # the order in memory
            if t.is_contiguous():
                views.setdefault((t.dtype, t.device), []).append(t.view(-1))
            else:
                self.strided.append(t)
        self.views = list(views.values())
        self.values = [t.clone() for t in self._now()]

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` lie where those of the beginning lay, and hold what these held."""
        return self.places == self._places(tensors) and all(map(_equal, self.values, self._now()))

    @staticmethod
    def _places(tensors: Sequence[Tensor]) -> list[object]:
        # Lists are quicker than one tuple for each tensor.
        return [[t.data_ptr() for t in tensors], [t.shape for t in tensors], [t.stride() for t in tensors]]

    def _now(self) -> list[Tensor]:
        return [*(torch.cat(v) if len(v) > 1 else v[0] for v in self.views), *self.strided]


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one kind hold the same. NumPy compares several times faster than PyTorch."""
    if a.device.type == "cpu" and a.dtype != torch.bfloat16:  # NumPy has no such numbers
        return np.array_equal(a.numpy(), b.numpy())
    return torch.equal(a, b)


_RECENT: weakref.WeakValueDictionary[int, Contents] = weakref.WeakValueDictionary()


def contents_of(module: nn.Module, tensors: Sequence[Tensor]) -> Contents:
    """The contents of ``tensors``, which are those of ``module``.

    All who ask share one copy while the values stay the same, because it takes as much memory as the module.
    """
    recent = _RECENT.get(id(module))
    if recent is None or not recent.same(tensors):
        recent = _RECENT[id(module)] = Contents(tensors)
    return recent
