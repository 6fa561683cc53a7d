"""Results of a trained model as tensors and numbers: errors, likelihoods, data under swapped labels.

All functions use the model in evaluation mode, and leave each part of it in the mode in which it was.
:mod:`pyro_scnf.plots` draws them.
"""

from pyro_scnf.analysis.calibration import Reliability, calibration, reliability
from pyro_scnf.analysis.curves import read_log
from pyro_scnf.analysis.evaluate import evaluate
from pyro_scnf.analysis.label_probs import label_log_probs, opinion_pool
from pyro_scnf.analysis.latent_plane import LatentPlane, latent_plane
from pyro_scnf.analysis.latents import SwapsLabels, reconstruct, swap_labels
from pyro_scnf.analysis.plane import Plane, evaluate_plane
from pyro_scnf.analysis.separation import boundary_distance
from pyro_scnf.analysis.temperature import Calibration, fit_temperature, temperature_from_training

__all__ = [
    "Calibration",
    "LatentPlane",
    "Plane",
    "Reliability",
    "SwapsLabels",
    "boundary_distance",
    "calibration",
    "evaluate",
    "evaluate_plane",
    "fit_temperature",
    "label_log_probs",
    "latent_plane",
    "opinion_pool",
    "read_log",
    "reconstruct",
    "reliability",
    "swap_labels",
    "temperature_from_training",
]
