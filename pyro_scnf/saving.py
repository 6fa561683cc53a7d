"""Save models to files and load them. A file holds the arguments that built the model, and its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from pyro_scnf._files import replacing
from pyro_scnf._spec import as_plain, describe
from pyro_scnf._state import Parts
from pyro_scnf.flows import FLOWS
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.nn import NETS
from pyro_scnf.priors import PRIORS
from pyro_scnf.semi_conditional import SemiConditionalFlow

__all__ = ["load", "save"]

FORMAT = 2
"""Version of the file's layout."""


class _Description(TypedDict):
    """The arguments that built a model, as plain values."""

    transform: dict[str, object]
    prior: dict[str, object]
    num_classes: int
    aux_scale: Literal["learnable", "unit"]
    learn_class_probs: bool
    options: dict[str, Any]


class _Content(TypedDict):
    """All that a file holds."""

    format: int
    model: _Description
    state_dict: dict[str, Tensor]


def save(model: SemiSupervisedModel, path: str | Path) -> None:
    """Write ``model`` to ``path``, so that :func:`load` rebuilds it from that file alone.

    The file holds the arguments that built the model, as plain values, and its ``state_dict``. It holds no
    code. It replaces an older file only when it is complete.

    :param model: a model whose flow is one of :data:`pyro_scnf.flows.FLOWS` and whose prior was named by
        a word, a dict or an import path.
    :raises ValueError: if a part was built in another way. Then save ``model.state_dict()``, and rebuild
        the model in your own code.
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
        "learn_class_probs": model.class_probs.learnable,
        "options": model.options,
    }
    content = {"format": FORMAT, "model": as_plain(description), "state_dict": model.state_dict()}
    with replacing(path) as file:
        torch.save(content, file)


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
    path: str | Path, *, trust: Sequence[str] = (), device: torch.device | str = "cpu"
) -> SemiSupervisedModel:
    """The model that :func:`save` wrote to ``path``, in the dtype in which it was saved.

    Only tensors and plain values are read (``weights_only=True``), so the file cannot run code. The state of
    the global random generator does not change. Parameters that were frozen when the model was saved are
    trainable again.

    :param trust: import paths of your own classes (``"my_package.MyPrior"``) that the file may name. Any
        other import path in the file is refused and not imported.
    :param device: where to put the model.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged, was not written by :func:`save`, or names a class that is not
        trusted.
    """
    content, trusted = _read(Path(path)), {trust} if isinstance(trust, str) else set(trust)
    description, state = content["model"], content["state_dict"]
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
        model.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"{path}: its parameters do not fit the model that it describes: {error}") from error
    return model.to(device)


def _read(path: Path) -> _Content:
    """The content of the file. A file that is damaged or of another kind is a ``ValueError``."""
    data = BytesIO(path.read_bytes())  # outside the try block: a missing file has its own error
    try:
        content: _Content = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path}: it is damaged, or not a file that scnf.save wrote: {error}") from error
    if not isinstance(content, dict) or not {"format", "model", "state_dict"} <= content.keys():
        raise ValueError(
            f"{path}: it does not say how its model was built; expected a file that scnf.save wrote"
        )
    if content["format"] != FORMAT:
        raise ValueError(f"{path}: it has format {content['format']}, this version reads format {FORMAT}")
    return content


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
    probs: Literal["learnable", "uniform"] = "learnable" if description["learn_class_probs"] else "uniform"
    return SemiSupervisedModel(flow, probs, **description["options"])
