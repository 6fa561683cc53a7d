"""What follows from a model and draws of its latents: labels, probabilities, ArviZ's groups."""

from pyro_scnf.posterior.inference_data import to_inference_data
from pyro_scnf.posterior.labels import enumerate_labels, sample_labels

__all__ = ["enumerate_labels", "sample_labels", "to_inference_data"]
