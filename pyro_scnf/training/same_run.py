"""Whether a checkpoint is of the same run: of the same model, trained in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_scnf._shapes import in_double
from pyro_scnf.class_probs import ClassProbs
from pyro_scnf.training.folder import is_checkpoint

__all__ = ["check_same_run", "trainable"]


def trainable(module: nn.Module) -> dict[str, bool]:
    """Whether each parameter is trained, by its name."""
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


_OF_MODEL = ("guide", "transform", "prior", "class_probs")
"""Settings that say what the model and its guide are."""


def check_same_run(
    checkpoint: Mapping[str, Any],
    settings: Mapping[str, object],
    class_probs: ClassProbs,
    source: str,
    *,
    best: bool = False,
) -> None:
    """Raise unless a run with these settings can go on from the checkpoint.

    A run that has taken all its steps may be given more.

    :param ClassProbs class_probs: those of the model. If they are not trained, their values are compared,
        which no setting tells.
    :param str source: what the message calls the checkpoint.
    :param bool best: whether it is the checkpoint of the best step, whose run may have become longer since.
    """
    if not is_checkpoint(checkpoint):
        raise ValueError(f"{source} is no checkpoint of training")
    before = dict(checkpoint["settings"])
    ended = checkpoint["global_step"] >= before["steps"]
    if best or (ended and _longer(before, settings)):
        before["steps"] = settings["steps"]
    now = dict(settings)
    frozen = _refrozen(before.pop("requires_grad", None), now.pop("requires_grad", None))
    changed = [*_differences(before, now), *frozen]
    saved = checkpoint["state_dict"].get("model.class_probs.logits")
    if before.get("class_probs") == now["class_probs"] == {"probs": "uniform"} and saved is not None:
        changed += _other_values(saved, class_probs.logits)
    if not changed:
        return
    other = "another run"
    if any(change.startswith(_OF_MODEL) for change in changed):
        other = "another model, and so of another run"
    hint = "Give the same settings"
    if _longer(before, settings):
        hint += "; a run can get more steps once it has taken all it was given"
    raise ValueError(f"{source} is of {other}: {'; '.join(changed)}. {hint}")


def _longer(before: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a run has more steps than before."""
    return bool(settings["steps"] > before["steps"])


def _differences(before: Mapping[str, object], now: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """``name before -> now`` for each plain value in which two runs differ."""
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} {old!r} -> {new!r}"


def _refrozen(before: object, now: object) -> Iterator[str]:
    """Which parameters were trained before and are not now, and the other way round."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return  # older checkpoints do not tell
    for old in (True, False):
        names = [
            name.removeprefix("model.")
            for name in before
            if name in now and before[name] is old and now[name] is not old
        ]
        if names:
            more = f" and of {len(names) - 3} more" if len(names) > 3 else ""
            yield f"requires_grad {old} -> {not old} of {', '.join(names[:3])}{more}"


def _other_values(saved: Tensor, here: Tensor) -> Iterator[str]:
    """The first class with another probability, and how many more there are."""
    if saved.shape != here.shape:
        return  # it is a model of another number of classes, which the parameters tell
    old, new = (in_double(logits.detach().cpu()).softmax(-1) for logits in (saved, here))
    other = (~torch.isclose(old, new, rtol=1e-5, atol=0.0)).nonzero()[:, 0].tolist()
    if other:
        more = f" and of {len(other) - 1} more" if len(other) > 1 else ""
        yield f"class_probs of class {other[0]} {old[other[0]]:.4g} -> {new[other[0]]:.4g}{more}"
