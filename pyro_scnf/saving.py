"""Models in files: what built them, in plain values, and their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from zipfile import BadZipFile

import torch
from torch import nn

from pyro_scnf._files import replacing
from pyro_scnf._spec import describe
from pyro_scnf.flows import FLOWS
from pyro_scnf.models import SemiSupervisedModel
from pyro_scnf.priors import PRIORS
from pyro_scnf.semi_conditional import SemiConditionalFlow

__all__ = ["load", "save"]

FORMAT = 1
"""Version of the file's layout."""


def save(model: SemiSupervisedModel, path: str | Path) -> None:
    """Write ``model`` to ``path``, so that :func:`load` rebuilds it from that file alone.

    The file holds the arguments that built the model, as plain values, and its ``state_dict``. It holds no
    code. It replaces an older file only when it is complete.

    :param model: a model whose flow is one of :data:`pyro_scnf.flows.FLOWS` and whose prior was named by
        a word, a dict or an import path.
    :raises ValueError: if a part was built in another way. Save its ``state_dict`` then, and rebuild the
        model in your own code.
    """
    if not isinstance(model, SemiSupervisedModel):
        raise ValueError(f"model: expected a SemiSupervisedModel, got {type(model).__name__}")
    flow = model.flow
    description = {
        "transform": _described(flow.transform, "flow.transform", "pyro_scnf.flows"),
        "prior": _described(flow.prior, "flow.prior", "make_prior, by a word, a dict or an import path"),
        "num_classes": flow.num_classes,
        "aux_scale": "unit" if flow.aux is not None and flow.aux.raw_scale is None else "learnable",
        "learn_class_probs": isinstance(model.class_probs.logits, nn.Parameter),
        "options": model.options,
    }
    with replacing(path) as file:
        torch.save({"format": FORMAT, "model": description, "state_dict": model.state_dict()}, file)


def _described(part: nn.Module, name: str, source: str) -> dict[str, object]:
    description = describe(part)
    if description is None:
        raise ValueError(
            f"{name}: how it was built is not known in plain values, so no file can say it. Build it with "
            f"{source} (networks named by a word, not by a function), or save model.state_dict() and "
            "rebuild the model in your own code"
        )
    return description


def load(
    path: str | Path, *, trust: Sequence[str] = (), device: torch.device | str = "cpu"
) -> SemiSupervisedModel:
    """The model that :func:`save` wrote to ``path``, in the dtype in which it was saved.

    Reading takes tensors and plain values only (``weights_only=True``): the file cannot run code. The global
    random generator is left as it was.

    :param trust: import paths of your own classes (``"my_package.MyPrior"``) that the file may name. A name
        that is neither here nor one of the package's own is refused and not imported.
    :param device: where to put the model.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, not written by :func:`save`, or names a class that is not trusted.
    """
    content = _read(Path(path))
    description = content["model"]
    for name, known in ((description["transform"]["name"], FLOWS), (description["prior"]["name"], PRIORS)):
        if name not in known and name not in trust:
            raise ValueError(
                f"{path}: it names {name!r}, which is not part of pyro_scnf; if you trust that class, give "
                f"trust=[{name!r}]"
            )
    state = content["state_dict"]
    with torch.random.fork_rng(devices=[]):
        model = _build(description)
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
    model.to(dtype=dtype)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: its parameters do not fit the model that it describes: {error}") from error
    return model.to(device)


def _read(path: Path) -> dict[str, Any]:
    data = BytesIO(path.read_bytes())  # a file that is not there, or may not be read, is another error
    try:
        content: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        OSError,
        BadZipFile,
        UnpicklingError,
        ValueError,
        KeyError,
    ) as error:
        raise ValueError(f"{path}: it is damaged, or not a file that scnf.save wrote: {error}") from error
    if not isinstance(content, dict) or not {"format", "model", "state_dict"} <= content.keys():
        raise ValueError(
            f"{path}: it does not say how its model was built; expected a file that scnf.save wrote"
        )
    if content["format"] != FORMAT:
        raise ValueError(f"{path}: it has format {content['format']}, this version reads format {FORMAT}")
    return content


def _build(description: dict[str, Any]) -> SemiSupervisedModel:
    transform = dict(description["transform"])
    name = transform.pop("name")
    flow = SemiConditionalFlow(
        FLOWS[name](**transform),
        description["prior"],
        description["num_classes"],
        aux_scale=description["aux_scale"],
    )
    probs: Literal["learnable", "uniform"] = "learnable" if description["learn_class_probs"] else "uniform"
    return SemiSupervisedModel(flow, probs, **description["options"])
