"""Models of other authors, to compare with: semi-supervised classifiers that are no normalizing flows."""

from pyro_scnf.baselines.kingma2014 import M1, M2
from pyro_scnf.baselines.stacked import M1M2

__all__ = ["M1", "M1M2", "M2"]
