"""What follows from a model and draws of its latents: labels, probabilities, ArviZ's groups."""

from pyro_scnf.posterior.ecdf_band import RankBand
from pyro_scnf.posterior.inference_data import to_inference_data
from pyro_scnf.posterior.labels import enumerate_labels, sample_labels
from pyro_scnf.posterior.sbc import sbc
from pyro_scnf.posterior.sbc_result import SBCResult

__all__ = ["RankBand", "SBCResult", "enumerate_labels", "sample_labels", "sbc", "to_inference_data"]
