"""Ready-made flows :math:`f_w`."""

from pyro_scnf.flows.atanov2019 import atanov2019_mnist
from pyro_scnf.flows.glow import glow
from pyro_scnf.flows.realnvp import realnvp

__all__ = ["atanov2019_mnist", "glow", "realnvp"]
