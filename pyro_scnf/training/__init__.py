"""Training partly labelled models with Lightning, on one device or many (extra ``train``).

Options and batches need no extra. The names that need Lightning are imported on first use.
"""

from typing import TYPE_CHECKING

from pyro_scnf._lazy import lazy
from pyro_scnf.training.batches import Batch, StepBatches
from pyro_scnf.training.options import Machine, Optimisation
from pyro_scnf.training.schedules import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule

if TYPE_CHECKING:
    from pyro_scnf.training.checkpoint import AtomicCheckpointIO
    from pyro_scnf.training.fitting import FitResult, fit
    from pyro_scnf.training.flow_matching import match_flow
    from pyro_scnf.training.task import SemiSupervisedTask

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AtomicCheckpointIO",
    "Batch",
    "FitResult",
    "Machine",
    "Optimisation",
    "SemiSupervisedTask",
    "StepBatches",
    "fit",
    "make_optimizer",
    "make_schedule",
    "match_flow",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AtomicCheckpointIO": "pyro_scnf.training.checkpoint",
        "FitResult": "pyro_scnf.training.fitting",
        "SemiSupervisedTask": "pyro_scnf.training.task",
        "fit": "pyro_scnf.training.fitting",
        "match_flow": "pyro_scnf.training.flow_matching",
    },
    __all__,
)
