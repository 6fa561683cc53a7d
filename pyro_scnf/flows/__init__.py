"""Ready-made flows :math:`f_w`."""

from collections.abc import Callable

from pyro_scnf.flows.atanov2019 import atanov2019_mnist
from pyro_scnf.flows.ffjord import ffjord
from pyro_scnf.flows.glow import glow
from pyro_scnf.flows.leading_components import leading_components
from pyro_scnf.flows.realnvp import realnvp
from pyro_scnf.transforms.compose import Layer

__all__ = ["FLOWS", "atanov2019_mnist", "ffjord", "glow", "leading_components", "realnvp"]

FLOWS: dict[str, Callable[..., Layer]] = {
    "atanov2019_mnist": atanov2019_mnist,
    "ffjord": ffjord,
    "glow": glow,
    "leading_components": leading_components,
    "realnvp": realnvp,
}
"""Flows by name. Saved models name their flow in this way."""
