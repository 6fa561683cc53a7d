"""Complete models of the literature, with their sizes and initial values."""

from pyro_scnf.presets.atanov2019 import scnf_mnist

__all__ = ["scnf_mnist"]
