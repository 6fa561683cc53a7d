"""Work that a part of a model does after each optimiser step."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pyro_scnf.models.em import Expected, learns_by_em
from pyro_scnf.models.semi_supervised import SemiSupervisedModel

__all__ = ["Updates", "update_after_step"]


@runtime_checkable
class Updates(Protocol):
    """A guide, a prior or class probabilities with an ``update`` of their own.

    An :class:`~pyro_scnf.EMGuide` advances its average. Keep what an update changes in buffers, so that
    checkpoints hold it.
    """

    def update(self) -> None:
        """Called once after each optimiser step."""


def update_after_step(model: SemiSupervisedModel, guide: object, expected: Expected | None = None) -> None:
    """Update the guide, the prior and the class probabilities, if they are :class:`Updates`.

    :func:`pyro_scnf.training.fit` calls this after each optimiser step. Call it in a loop of your own too.

    :param expected: the E-step of the batch, ``loss.expected`` of :func:`pyro_scnf.elbo`, or
        :func:`~pyro_scnf.models.expected_labels` of the arguments of the model.
    :raises ValueError: if EM trains a part of the model, and ``expected`` is missing.
    """
    if expected is not None:
        expected.accumulate(model)
    elif learns_by_em(model):
        raise ValueError(
            "expected: EM trains a part of the model, and needs the label posteriors of the batch; give "
            "update_after_step(model, guide, loss.expected) with loss = pyro_scnf.elbo(model, guide)"
        )
    for part in (guide, model.flow.prior, model.class_probs):
        if isinstance(part, Updates):
            part.update()
