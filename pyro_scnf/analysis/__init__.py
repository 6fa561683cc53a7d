"""Results of a trained model as tensors and numbers: errors, likelihoods, data under swapped labels.

:mod:`pyro_scnf.plots` draws them.
"""

from pyro_scnf.analysis.curves import read_log
from pyro_scnf.analysis.evaluate import evaluate
from pyro_scnf.analysis.latents import SwapsLabels, reconstruct, swap_labels
from pyro_scnf.analysis.plane import Plane, evaluate_plane

__all__ = ["Plane", "SwapsLabels", "evaluate", "evaluate_plane", "read_log", "reconstruct", "swap_labels"]
