"""Work that a part of a model does after each optimiser step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pyro_scnf.models.em import Expected, learns_by_em
from pyro_scnf.models.guides import EMGuide
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


def update_after_step(
    model: SemiSupervisedModel, guide: object, expected: Expected | Sequence[Expected] | None = None
) -> None:
    """Update the prior, the class probabilities and the guide, if they are :class:`Updates`.

    :func:`pyro_scnf.training.fit` calls this after each optimiser step. Call it in a loop of your own too.

    :param expected: the E-step of the batch, ``loss.expected`` of :func:`pyro_scnf.elbo`, or
        :func:`~pyro_scnf.models.expected_labels` of the arguments of the model. If the step had gradients of
        several batches, a list of theirs.
    :raises ValueError: if EM trains a part of the model, and ``expected`` is missing; for an
        :class:`~pyro_scnf.EMGuide` of another model.
    """
    batches = [expected] if isinstance(expected, Expected) else expected or []
    if isinstance(guide, EMGuide):
        guide.check_model(model)
    if learns_by_em(model) and not batches:
        raise ValueError(
            "expected: EM trains a part of the model, and needs the label posteriors of the batch; give "
            "update_after_step(model, guide, loss.expected) with loss = pyro_scnf.elbo(model, guide); for "
            "another loss, give pyro_scnf.models.expected_labels(model, ...) of the arguments of the model"
        )
    for batch in batches:
        batch.accumulate(model)
    # The guide comes last, because it may copy or average the tables of the others.
    for part in (model.flow.prior, model.class_probs, guide):
        if isinstance(part, Updates):
            part.update()
