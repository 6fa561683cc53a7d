"""Models with the settings that train them: published, light, and recommended for data of one's own."""

from pyro_scnf.presets.atanov2019 import MNIST_PAPER, MNIST_PAPER_SMALL_H, scnf_mnist
from pyro_scnf.presets.base import GraphOptions, ModelOptions, Preset
from pyro_scnf.presets.choice import recommended
from pyro_scnf.presets.components import ComponentsFlow, LeadingComponents
from pyro_scnf.presets.izmailov2020 import (
    FLOWGMM_MNIST_CPU,
    FLOWGMM_MNIST_PAPER,
    FLOWGMM_TOY,
    FLOWGMM_TOY_PAPER,
    flowgmm_mnist,
    flowgmm_table,
)
from pyro_scnf.presets.light import DIGITS, MNIST_CPU, MNIST_CPU_HOUR, MNIST_FAST, MNIST_LIGHT, TOY, ToyFlow

__all__ = [
    "DIGITS",
    "FLOWGMM_MNIST_CPU",
    "FLOWGMM_MNIST_PAPER",
    "FLOWGMM_TOY",
    "FLOWGMM_TOY_PAPER",
    "MNIST_CPU",
    "MNIST_CPU_HOUR",
    "MNIST_FAST",
    "MNIST_LIGHT",
    "MNIST_PAPER",
    "MNIST_PAPER_SMALL_H",
    "PRESETS",
    "TOY",
    "ComponentsFlow",
    "GraphOptions",
    "LeadingComponents",
    "ModelOptions",
    "Preset",
    "ToyFlow",
    "flowgmm_mnist",
    "flowgmm_table",
    "recommended",
    "scnf_mnist",
]

PRESETS: dict[str, Preset] = {
    "toy": TOY,
    "digits": DIGITS,
    "mnist-cpu": MNIST_CPU,
    "mnist-cpu-hour": MNIST_CPU_HOUR,
    "mnist-fast": MNIST_FAST,
    "mnist-light": MNIST_LIGHT,
    "mnist-paper": MNIST_PAPER,
    "mnist-paper-small-h": MNIST_PAPER_SMALL_H,
    "flowgmm-toy": FLOWGMM_TOY,
    "flowgmm-toy-paper": FLOWGMM_TOY_PAPER,
    "flowgmm-mnist-cpu": FLOWGMM_MNIST_CPU,
    "flowgmm-mnist-paper": FLOWGMM_MNIST_PAPER,
}
"""Presets by name."""
