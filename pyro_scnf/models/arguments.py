"""Checks of arguments of a model that are neither data nor labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyro_scnf._checks import UNLABELLED, check_alike, validating
from pyro_scnf._numbers import check_at_least
from pyro_scnf._shapes import check_tensor, first_tensor
from pyro_scnf._state import Parts
from pyro_scnf.class_probs import ClassProbs

__all__ = ["check_draws", "check_flow", "check_possible", "check_ready_class_probs", "check_weights"]


def check_flow(flow: object, owner: str) -> None:
    """Raise unless ``flow`` scores data under labels, as a :class:`~pyro_scnf.SemiConditionalFlow` does."""
    if not hasattr(flow, "num_classes") or not hasattr(flow, "scores"):
        raise ValueError(f"{owner}: flow is a {type(flow).__name__}, expected a SemiConditionalFlow")


def check_ready_class_probs(class_probs: ClassProbs, num_classes: int, flow: nn.Module) -> None:
    """Raise unless ``class_probs`` have the classes and the dtype of ``flow``.

    Pyro cannot contract terms of different dtypes.
    """
    if class_probs.num_classes != num_classes:
        raise ValueError(f"class_probs: {class_probs.num_classes} classes, but the flow has {num_classes}")
    given, expected = first_tensor(class_probs), first_tensor(flow)
    if given is not None and expected is not None and given.dtype != expected.dtype:
        raise ValueError(
            f"class_probs: dtype {given.dtype}, and the flow has {expected.dtype}; give "
            f"class_probs.to({expected.dtype})"
        )


def check_possible(class_probs: ClassProbs, balanced: bool, y: Tensor, name: str) -> None:
    """Raise if a row is labelled with a class of probability 0, because its likelihood would be 0.

    :param bool balanced: whether labels were chosen by class. Then labelled rows do not depend on p(y).
    :param y: labels, -1 where unknown.
    """
    if balanced or Parts.of((class_probs,)).are_random:
        return
    impossible = class_probs.log_probs.isneginf().to(y.device)
    rows = ((y != UNLABELLED) & impossible[y.clamp(min=0)]).nonzero()[:, 0]
    if len(rows):
        raise ValueError(
            f"{name}: row {rows[0].item()} has the label {y[rows[0]].item()}, whose class probability in "
            "the model is 0; expected one above 0 for every class with labelled rows. Change class_probs, or "
            "hide these labels with -1"
        )


def check_draws(
    given: Mapping[str, Tensor | None],
    weights: Tensor | None,
    n: int | None,
    generator: torch.Generator | None,
    owner: str,
) -> None:
    """Raise for arguments that would be ignored, because the model draws x or because it does not.

    :param given: the arguments that hold rows, by name.
    """
    if n is not None:
        check_at_least(1, n=n)
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{owner}: n={n} is a number of rows to draw, and {name} says how many there are; leave "
                    "out one of them"
                )
    if weights is not None and given["x"] is None:
        raise ValueError(f"{owner}: weights are for rows of data; give x too, or leave them out")
    if generator is not None and given["x"] is not None:
        raise ValueError(f"{owner}: generator is for draws of x, and x is given; leave it out")


def check_weights(weights: Tensor, rows: int, like: Tensor, owner: str) -> Tensor:
    """The weights of ``rows`` rows, in the dtype of ``like``. Lower precision and integers are converted.

    :raises ValueError: unless there is a finite weight of at least 0 for each row.
    """
    check_tensor(weights, "weights", owner)
    if not (weights.is_floating_point() or weights.is_complex()):
        weights = weights.to(like.dtype)
    weights = check_alike(weights, like, owner, "weights")
    if validating(weights) and not ((weights >= 0) & torch.isfinite(weights)).all():
        raise ValueError(f"{owner}: weights has negative or infinite entries, expected 0 or more")
    if weights.shape != (rows,):
        raise ValueError(f"{owner}: weights has shape {tuple(weights.shape)}, expected ({rows},)")
    return weights
