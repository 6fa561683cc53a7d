"""Light models that train in minutes on a CPU: toys, 8×8 digits, MNIST."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pyro_scnf._numbers import check_word
from pyro_scnf.datasets import ImageAugment, Jitter
from pyro_scnf.flows import ffjord, glow, realnvp
from pyro_scnf.presets.base import GraphOptions, ModelOptions, Preset
from pyro_scnf.priors import PriorSpec
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.terms import Classification
from pyro_scnf.training.options import Optimisation
from pyro_scnf.transforms.compose import Layer

__all__ = ["DIGITS", "MNIST_CPU", "MNIST_CPU_HOUR", "MNIST_FAST", "MNIST_LIGHT", "TOY", "ToyFlow"]


# -- two-dimensional toys --------------------------------------------------------------------------
@dataclass(frozen=True)
class ToyFlow:
    """A flow of the plane, and a prior.

    The networks are small and smooth. A thousand points are too few to tell a sharp bend from noise. The
    priors ``"flow"`` and ``"ffjord"`` are flows themselves, so :math:`f_w` is smaller beside them. All models
    have 9,000 to 12,500 parameters.

    :ivar str kind: ``"glow"``, ``"realnvp"`` or ``"ffjord"`` (extra ``ode``).
    :raises ValueError: for another word.
    """

    kind: Literal["glow", "realnvp", "ffjord"] = "glow"

    def __post_init__(self) -> None:
        check_word("kind", self.kind, ("glow", "realnvp", "ffjord"))

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        if latent_dim not in (None, 2):
            raise ValueError(f"latent_dim={latent_dim}: the toys are two-dimensional, expected 2")
        own: dict[str, dict[str, object]] = {
            "flow": {"name": "flow", "steps": 6, "coupling": "alternate", "scale": "clamp", "net": _SMOOTH},
            "ffjord": {"name": "ffjord", "hidden": (64, 64)},
        }
        if isinstance(prior, str) and prior in own:
            return SemiConditionalFlow(self._transform(small=True), own[prior], num_classes)
        return SemiConditionalFlow(self._transform(small=False), prior, num_classes)

    def _transform(self, small: bool) -> Layer:
        """The flow of all labels; a small one beside a prior that is a flow."""
        if self.kind == "ffjord":
            return ffjord(2, hidden=(64, 64) if small else (64, 64, 64))
        if self.kind == "realnvp":
            return realnvp(2, couplings=4 if small else 10, scale="clamp", net=_SMOOTH)
        return glow(2, steps=4 if small else 10, coupling="alternate", scale="clamp", net=_SMOOTH)


_SMOOTH: Mapping[str, object] = {"name": "mlp", "hidden": (32, 32), "activation": "tanh"}


TOY = Preset(
    flow=ToyFlow(),
    augment=Jitter(0.05),  # half the noise in the data
    optimisation=Optimisation(),
    steps=1500,
    batch_size=256,
    model=ModelOptions(scaled=True),
    terms=(Classification(20.0),),
    held_out=100,
)
"""Points of the plane, a few of them labelled.

Jitter and averaged weights keep the model from learning a thousand points by heart. Ten labels have to decide
the class of whole clusters. The classification term makes them count, without bending the density towards the
labelled points.
"""


# -- 8×8 digits ------------------------------------------------------------------------------------
def _digits_flow(prior: PriorSpec, num_classes: int, latent_dim: int | None = None) -> SemiConditionalFlow:
    """A Glow of two levels. By default the 32 deepest of 64 components depend on the label."""
    flow = glow(
        (1, 8, 8),
        levels=2,
        steps=4,
        scale="clamp",
        gaussianize=17,
        latent_dim=latent_dim,
        net={"name": "conv", "width": 96, "last_kernel_size": 1},
    )
    own = {"name": "flow", "steps": 4, "width": 64, "scale": "clamp"}
    return SemiConditionalFlow(flow, own if prior == "flow" else prior, num_classes)


DIGITS = Preset(
    flow=_digits_flow,
    augment=ImageAugment(bins=17, jitter=0.03),  # a grey level is 1/17
    optimisation=Optimisation(learning_rate=2e-3, schedule="cosine", warmup=0.05, gradient_clip=100.0),
    steps=600,
    batch_size=128,
    labelled_batch_size=16,
    validate_every=100,
    model=ModelOptions(labelled_weight=0.1),
    terms=(Classification(20.0, targets="evidence"),),
    draws=8,
    graph=GraphOptions("hog", neighbours=7),
    without_graph={"terms": (Classification(10.0),)},
)
"""scikit-learn's handwritten digits, a hundred of them labelled.

A graph of neighbours gives evidence about the other labels, as in :data:`MNIST_CPU`. A flow could learn a
thousand small images by heart. So training adds noise of half a grey level and averages the weights, and
labelled rows have a small weight in the density.
"""


# -- MNIST -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _SqueezedFlow:
    """A Glow that begins with a squeeze, so no network sees 28×28 pixels. Each level has its own width.

    :ivar int latent_dim: number of components of :math:`z_f`, if no other number is asked for.
    """

    steps: tuple[int, int]
    widths: tuple[int, int]
    latent_dim: int = 98

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        nets: list[Mapping[str, object]] = [
            {"name": "conv", "width": width, "last_kernel_size": 1} for width in self.widths
        ]
        flow = glow(
            (1, 28, 28),
            levels=2,
            steps=self.steps,
            scale="clamp",
            gaussianize=256,
            latent_dim=self.latent_dim if latent_dim is None else latent_dim,
            net=nets,
        )
        own = {"name": "flow", "steps": 4, "width": 96, "scale": "clamp"}
        return SemiConditionalFlow(flow, own if prior == "flow" else prior, num_classes)


_WITHOUT_GRAPH: Mapping[str, Any] = {
    "batch_size": 86,
    "labelled_batch_size": 42,  # a third
    "model": ModelOptions(class_probs="empirical"),
    "terms": (),
}
"""The loss of the SCNF paper. It had fewer errors than training terms and a small weight of labelled rows."""

MNIST_CPU = Preset(
    flow=_SqueezedFlow(steps=(4, 6), widths=(48, 96)),
    augment=ImageAugment(shift=1),
    optimisation=Optimisation(
        learning_rate=4e-3,
        schedule="cosine",
        warmup=0.05,
        gradient_clip=1e4,
        ema_decay=0.998,
    ),
    steps=2500,
    batch_size=128,
    labelled_batch_size=4,
    validate_every=500,
    model=ModelOptions(labelled_weight=0.1),
    terms=(Classification(100.0, start=0.1, targets="evidence"),),
    initial_rows=512,
    draws=4,
    features="deskew",
    graph=GraphOptions("hog", components=80, method="poisson"),
    without_graph=_WITHOUT_GRAPH,
)
"""MNIST on two CPU cores.

A graph of neighbours says how probable each label of each image is. This evidence takes the place of
:math:`p(y)` in the likelihood, and the classification term takes it as its target. The term rises from a
small weight, so that the density decides what the latents mean. Under a larger weight, fewer images have a
wrong label, but samples of a class show any class.
"""

MNIST_CPU_HOUR = replace(
    MNIST_CPU, steps=14_000, terms=(Classification(50.0, start=0.05, targets="evidence"),)
)
""":data:`MNIST_CPU` with more steps, and half the weight of the classification term."""

MNIST_FAST = replace(
    MNIST_CPU_HOUR,
    flow=_SqueezedFlow(steps=(8, 12), widths=(96, 192)),
    steps=20_000,
    batch_size=480,
    labelled_batch_size=32,
    without_graph={**_WITHOUT_GRAPH, "batch_size": 344, "labelled_batch_size": 168},
)
"""A larger :data:`MNIST_CPU_HOUR`, for a GPU."""

MNIST_LIGHT = replace(
    MNIST_CPU.with_graph(None),
    flow=_SqueezedFlow(steps=(4, 6), widths=(48, 96), latent_dim=196),
    split="stratified",
)
"""The flow of :data:`MNIST_CPU` with the loss of :data:`MNIST_PAPER`, without a graph and without terms."""
