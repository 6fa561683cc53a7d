"""Save models to files and load them. A file holds the arguments that built the model, and its parameters.

A checkpoint of :func:`pyro_scnf.training.fit` holds them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from pyro_scnf._files import read_plain, write_plain
from pyro_scnf._spec import as_plain, describe
from pyro_scnf._state import Parts
from pyro_scnf.class_probs import ClassProbs
from pyro_scnf.flows import FLOWS
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.nn import NETS
from pyro_scnf.priors import PRIORS
from pyro_scnf.semi_conditional import SemiConditionalFlow

__all__ = ["describe_model", "load", "misfits", "save"]

FORMAT = 4
"""Version of the file's layout."""

_WITHIN = "model."
"""Names of the model's parameters begin with this in a checkpoint of training."""


class _Description(TypedDict):
    """The arguments that built a model, as plain values."""

    transform: dict[str, object]
    prior: dict[str, object]
    num_classes: int
    aux_scale: Literal["learnable", "unit"]
    class_probs: dict[str, Any]
    options: dict[str, Any]


def save(model: SemiSupervisedModel, path: str | Path) -> None:
    """Write ``model`` to ``path``, so that :func:`load` rebuilds it from that file alone.

    The file holds the arguments that built the model, as plain values, and its ``state_dict``. It holds no
    code. It replaces an older file only when it is complete.

    :param model: a model whose flow is one of :data:`pyro_scnf.flows.FLOWS` and whose prior was named by
        a word, a dict or an import path.
    :raises ValueError: if a part was built in another way, or if one of another class or shape has taken its
        place. Then save ``model.state_dict()``, and rebuild the model in your own code.
    :raises OSError: if the file cannot be written. An older file stays.
    """
    content = {**describe_model(model), "state_dict": model.state_dict()}
    write_plain(content, path)


def describe_model(model: SemiSupervisedModel) -> dict[str, object]:
    """All that a file says of ``model`` besides its parameters: ``format``, and ``model`` in plain values.

    :raises ValueError: if a part was built in a way that plain values do not tell.
    """
    if type(model) is not SemiSupervisedModel:
        raise ValueError(f"model: expected a SemiSupervisedModel itself, got a {type(model).__name__}")
    if Parts.of((model,)).are_random:
        raise ValueError("model: a parameter is a PyroSample, for which a file has no values")
    flow = model.flow
    description: _Description = {
        "transform": _described(flow.transform, "flow.transform", "pyro_scnf.flows"),
        "prior": _described(flow.prior, "flow.prior", "make_prior, by a word, a dict or an import path"),
        "num_classes": flow.num_classes,
        "aux_scale": "unit" if flow.aux is not None and flow.aux.raw_scale is None else "learnable",
        "class_probs": model.class_probs.options,
        "options": model.options,
    }
    _check_as_built(model, description)
    return {"format": FORMAT, "model": as_plain(description)}


def _check_as_built(model: SemiSupervisedModel, description: _Description) -> None:
    """Raise if a part of ``model`` has another class or shape than ``description`` builds.

    Changed numbers and switches of a part are not noticed, and neither is a new order of parts of one class.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            built = _build(description)
    except Exception as error:
        raise ValueError(f"model: the arguments that built it cannot build it again: {error!r}") from error
    parts, expected = (dict(one.named_modules()) for one in (model, built))
    for name in {**expected, **parts}:
        part, other = parts.get(name), expected.get(name)
        if other is None or not isinstance(part, type(other)):  # Pyro makes subclasses of its own
            found = "missing" if part is None else f"a {type(part).__name__}"
            wanted = "no such part" if other is None else f"a {type(other).__name__}"
            raise _changed(f"{name} is {found}, expected {wanted}")
    state, own = model.state_dict(), built.state_dict()
    for name in {**own, **state}:
        shape, wanted_shape = (tuple(one[name].shape) if name in one else None for one in (state, own))
        if shape != wanted_shape:
            found = "is missing" if shape is None else f"has shape {shape}"
            wanted = "no such tensor" if wanted_shape is None else f"shape {wanted_shape}"
            raise _changed(f"{name} {found}, expected {wanted}")


def _changed(what: str) -> ValueError:
    return ValueError(
        "model: a part was changed after the model was built, and a file holds only the arguments that built "
        f"it: {what}. Save model.state_dict(), and rebuild the model in your own code"
    )


def _described(part: nn.Module, name: str, source: str) -> dict[str, object]:
    """The arguments that built ``part``, which is ``name`` of the model and should be made by ``source``."""
    description = describe(part)
    if description is None:
        raise ValueError(
            f"{name}: how it was built is not known in plain values, so a file cannot say it. Build it with "
            f"{source} (networks named by a word, not by a function), or save model.state_dict() and "
            "rebuild the model in your own code"
        )
    return description


def load(
    path: str | Path,
    *,
    into: SemiSupervisedModel | None = None,
    trust: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> SemiSupervisedModel:
    """The model in the file ``path``, each parameter in the dtype in which it was saved.

    The file was written by :func:`save`, or is a checkpoint of training: ``best.ckpt`` or ``last.ckpt`` of
    :func:`pyro_scnf.training.fit`. From a checkpoint come the averaged weights, if training averaged them.

    Only tensors and plain values are read (``weights_only=True``), so the file cannot run code. The state of
    the global random generator does not change. Parameters that were frozen when the model was saved are
    trainable again. A model that is built anew is in evaluation mode.

    :param into: a model of the same architecture, which takes the parameters from the file and is returned.
        Give it if the file does not say how its model was built, because a part of the model is your own.
    :param trust: import paths of your own classes (``"my_package.MyPrior"``) that the file may name. Any
        other import path in the file is refused and not imported.
    :param device: where to put the model. By default, a model that is built anew is on the CPU, and ``into``
        stays where it is.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged, is of another kind, or names a class that is not trusted; if
        it does not say how its model was built, and there is no ``into``; if ``into`` has another
        architecture or dtype, and then it is left as it was.
    """
    content = read_plain(path, "a file that scnf.save or training wrote")
    state = _state_in(path, content)
    if into is None:
        model = _rebuild(path, content, state, {trust} if isinstance(trust, str) else set(trust)).eval()
    else:
        model, wrong = into, misfits(state, into)
        if wrong:
            raise ValueError(f"into: {path} is of another model, with another architecture or dtype: {wrong}")
        into.load_state_dict(state)
    return model if device is None else model.to(device)


def misfits(state: Mapping[str, Tensor], module: nn.Module) -> str:
    """The first few parameters that do not fit ``module``, in words; an empty string if all fit."""
    own = module.state_dict()
    wrong = []
    for name in {**own, **state}:
        if name not in state or name not in own:
            wrong.append(f"{name} is only in the {'file' if name in state else 'model'}")
            continue
        saved, here = state[name], own[name]
        if saved.shape != here.shape:
            wrong.append(f"{name} has shape {tuple(saved.shape)} in the file and {tuple(here.shape)} here")
        elif saved.dtype != here.dtype:
            wrong.append(f"{name} has dtype {saved.dtype} in the file and {here.dtype} here")
    more = [f"and {len(wrong) - 3} more"] if len(wrong) > 3 else []
    return "; ".join([*wrong[:3], *more])


def _state_in(path: str | Path, content: object) -> dict[str, Tensor]:
    """The parameters in the file, by their names in the model."""
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise ValueError(f"{path}: it holds no model; expected a file that scnf.save or training wrote")
    state = content["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: its parameters do not fit the model; expected tensors by name")
    if "pytorch-lightning_version" not in content:
        return dict(state)
    return {name.removeprefix(_WITHIN): value for name, value in state.items() if name.startswith(_WITHIN)}


def _rebuild(
    path: str | Path, content: Mapping[str, Any], state: dict[str, Tensor], trusted: set[str]
) -> SemiSupervisedModel:
    """The model that the file describes, with the parameters ``state``."""
    if not {"format", "model"} <= content.keys():
        raise ValueError(
            f"{path}: it does not say how its model was built, because a part of the model is your own, or "
            "another program wrote it; build the model and give it as load(path, into=model)"
        )
    if content["format"] != FORMAT:
        raise ValueError(f"{path}: it has format {content['format']}, this version reads format {FORMAT}")
    description: _Description = content["model"]
    try:
        foreign = set(_foreign_names(description)) - trusted
    except Exception as error:
        raise ValueError(f"{path}: what it says of the model cannot be read: {error!r}") from error
    if foreign:
        raise ValueError(
            f"{path}: it names {', '.join(map(repr, sorted(foreign)))}, which pyro_scnf has no word for; if "
            f"you trust that code, give trust={sorted(foreign)}"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            model = _build(description)
    except Exception as error:
        raise ValueError(f"{path}: the model that it describes cannot be built: {error!r}") from error
    try:
        model.to(dtype=next((value.dtype for value in state.values() if value.is_floating_point()), None))
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in state:  # parts may differ in dtype
                tensor.data = tensor.data.to(state[name].dtype)
        model.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"{path}: its parameters do not fit the model that it describes: {error}") from error
    return model


def _foreign_names(description: _Description) -> Iterator[str]:
    """The names in the description that are not the package's own, those of networks included."""
    parts: tuple[tuple[dict[str, object], Mapping[str, object]], ...] = (
        (description["transform"], FLOWS),
        (description["prior"], PRIORS),
    )
    for part, known in parts:
        if part["name"] not in known:
            yield str(part["name"])
        nets = part.get("net")
        for net in nets if isinstance(nets, list | tuple) else [nets]:
            word = net.get("name") if isinstance(net, Mapping) else net
            if word is not None and str(word).partition(":")[0] not in NETS:
                yield str(word).partition(":")[0]


def _build(description: _Description) -> SemiSupervisedModel:
    transform = dict(description["transform"])
    name = str(transform.pop("name"))
    flow = SemiConditionalFlow(
        FLOWS[name](**transform),
        description["prior"],
        description["num_classes"],
        aux_scale=description["aux_scale"],
    )
    class_probs = ClassProbs(flow.num_classes, **description["class_probs"])
    return SemiSupervisedModel(flow, class_probs, **description["options"])
