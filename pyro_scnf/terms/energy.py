"""Energy: continuous flows should move the data along short, straight paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyro_scnf._numbers import LARGEST
from pyro_scnf.terms.base import Part, Step, TrainingTerm

__all__ = ["Energy"]


@dataclass(frozen=True)
class Energy(TrainingTerm):
    r"""The energy of the paths that the rows take through the continuous layers of a flow,

    .. math:: \sum_n T \int_0^T \lVert f \rVert^2 + \lambda \Bigl\lVert \frac{\partial f}{\partial z}
        \Bigr\rVert_F^2 \, dt.

    The factor T makes it a property of the paths, whatever the time T that they take. Short, straight paths
    need few steps of the solver. In the layers of a prior, each row has a path for each label, and their mean
    counts.

    :param float jacobian: the factor :math:`\lambda`, 1 by default, 0 or more.
    :raises ValueError: for a number out of range.

    Reference: Finlay et al., *How to Train Your Neural ODE*, 2020, where T is 1, and both factors are 0.01
    for images.
    """

    jacobian: float = 1.0

    needs: ClassVar[frozenset[Part]] = frozenset({"energy"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_number("jacobian", at_least=0, at_most=LARGEST)

    def nats(self, step: Step) -> Tensor:
        assert step.energy is not None
        kinetic, jacobian = step.energy
        return kinetic + self.jacobian * jacobian
