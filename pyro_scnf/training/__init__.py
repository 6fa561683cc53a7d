"""Training partly labelled models with Lightning, on one device or many (extra ``train``)."""

from pyro_scnf.training.batches import StepBatches
from pyro_scnf.training.checkpoint import AtomicCheckpointIO
from pyro_scnf.training.fit import FitResult, fit
from pyro_scnf.training.schedules import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from pyro_scnf.training.task import SemiSupervisedTask, keep_data

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AtomicCheckpointIO",
    "FitResult",
    "SemiSupervisedTask",
    "StepBatches",
    "fit",
    "keep_data",
    "make_optimizer",
    "make_schedule",
]
