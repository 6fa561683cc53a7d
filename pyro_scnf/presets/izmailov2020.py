r"""FlowGMM of Izmailov et al. (2020): Real NVP, a Gaussian for each class, and the settings that train it.

*The paper's loss* weighs the likelihood of labelled rows, with :math:`\lambda` = 3 on images:

.. math:: -\lambda \sum_{n \in L} \log p(x_n, y_n) - \sum_{n \in U} \log p(x_n)

It is ``labelled_weight=3`` without a term. *The released code* for images adds cross-entropy of weight w to
the likelihood of all rows, also of labelled ones without their labels:

.. math:: -w \sum_{n \in L} \log p(y_n \mid x_n) - \sum_{n \in L \cup U} \log p(x_n)

Because :math:`\log p(x) = \log p(x, y) - \log p(y \mid x)`, it is ``labelled_weight=1`` with
``Classification(w - 1)``. Both take a :class:`~pyro_scnf.terms.Consistency` beside them (FlowGMM-cons). It
looks at the unlabelled rows; that of the code looks at labelled ones too, with the labels that the model
predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import as_sizes
from pyro_scnf.datasets import ImageAugment, Jitter
from pyro_scnf.flows import glow, realnvp
from pyro_scnf.presets.base import ModelOptions, Preset
from pyro_scnf.priors import PriorSpec
from pyro_scnf.semi_conditional import SemiConditionalFlow
from pyro_scnf.terms import Classification, Consistency
from pyro_scnf.training.options import Optimisation
from pyro_scnf.transforms.scale import ScaleName

__all__ = [
    "FLOWGMM_MNIST_CPU",
    "FLOWGMM_MNIST_PAPER",
    "FLOWGMM_TOY",
    "FLOWGMM_TOY_PAPER",
    "flowgmm_mnist",
    "flowgmm_table",
]


# -- vectors ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class VectorRealNVP:
    """Real NVP of vectors, with networks of two hidden layers.

    :ivar int columns: length D of a vector.
    :ivar int couplings: couplings, which change the two halves in turns.
    :ivar int width: width of both hidden layers.
    :ivar float dropout: dropout between the hidden layers.
    :ivar scale: scale function of the couplings.
    """

    columns: int
    couplings: int
    width: int
    dropout: float = 0.0
    scale: ScaleName = "tanh"

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        flow = realnvp(
            (self.columns,),
            couplings=self.couplings,
            scale=self.scale,
            latent_dim=latent_dim,
            net={"name": "mlp", "hidden": (self.width, self.width), "dropout": self.dropout},
        )
        return SemiConditionalFlow(flow, prior, num_classes)


_FIXED = "fit_means=fixed,fit_scales=fixed"

FLOWGMM_TOY_PAPER = Preset(
    flow=VectorRealNVP(columns=2, couplings=5, width=512),
    augment=Jitter(0.0),
    optimisation=Optimisation(
        optimizer="adam",
        learning_rate=1e-4,
        betas=(0.9, 0.999),
        weight_decay=1e-2,
        schedule="two-drops",
        ema_decay=None,
        gradient_clip=None,
    ),
    steps=5000,
    batch_size=10,
    prior=f"gmm:covariance=isotropic,means=circle,separation=3.5,{_FIXED}",
)
"""Points of the plane, with the settings of the released notebooks.

A batch has all labelled rows and ten others. The notebook of the moons takes 2,000 steps, the others 5,000.
"""


FLOWGMM_TOY = Preset(
    flow=VectorRealNVP(columns=2, couplings=8, width=64, scale="clamp"),
    augment=Jitter(0.025),  # half the noise in the data
    optimisation=Optimisation(learning_rate=5e-3),
    steps=2000,
    batch_size=256,
    model=ModelOptions(scaled=True),
    terms=(Classification(200.0, end=0.1),),
    prior=FLOWGMM_TOY_PAPER.prior,
)
"""Points of the plane, for accurate classes and densities in a minute or two on one thread.

The flow has to cut the outer of two circles open. Networks with ``relu`` can make such a cut narrow. Jitter
and averaged weights keep them from learning a thousand points by heart. A few labels decide where the cut is,
so the classification term begins strong. It falls during training, so that the density decides in the end.
The circle has room for two classes. Give more of them a larger one, as the paper does: for the five arms of a
pinwheel ``prior="flowgmm:means=circle,separation=5.5"``.
"""


def flowgmm_table(
    columns: int, num_classes: int = 2, *, couplings: int = 10, labelled_weight: float = 1.0
) -> Preset:
    r"""FlowGMM for the rows of a table, with the flow and the prior of the released code.

    The networks have two hidden layers of 256, with dropout of one half between them. The means are fixed: at
    antipodal points of norm 3.75 for two classes, random for more. Batches and the length of training are
    those of the paper for UCI data. Standardise the columns first.

    :param int columns: number of columns D.
    :param int num_classes: number of labels K.
    :param int couplings: couplings of the flow: 10 in the released code, 7 in the paper's text.
    :param float labelled_weight: weight of a labelled row. The code adds the mean of n labelled rows and a
        times the mean of the 2,000 others of a batch. That is the weight ``2000 / (a * n)``.
    :raises ValueError: for a number out of range.
    """
    columns, num_classes = check_whole("columns", columns, 2), check_whole("num_classes", num_classes, 1)
    means = "antipodal,separation=3.75" if num_classes == 2 else "random,separation=0.56"
    return Preset(
        flow=VectorRealNVP(columns, check_whole("couplings", couplings, 1), width=256, dropout=0.5),
        augment=Jitter(0.0),
        optimisation=Optimisation(
            optimizer="adamw",
            learning_rate=3e-4,
            betas=(0.9, 0.999),
            weight_decay=1e-5,
            schedule="cosine",
            ema_decay=None,
            gradient_clip=None,
        ),
        steps=3500,  # 50 passes through 140,000 rows
        batch_size=2000,
        validate_every=100,
        model=ModelOptions(labelled_weight=labelled_weight),
        prior=f"gmm:covariance=isotropic,means={means},scale=1.3133,{_FIXED}",
    )


# -- images ----------------------------------------------------------------------------------------
def flowgmm_mnist(
    prior: PriorSpec = "flowgmm",
    *,
    widths: Sequence[int] = (64, 128),
    blocks: int = 8,
    latent_dim: int = 784,
    num_classes: int = 10,
) -> SemiConditionalFlow:
    """FlowGMM for MNIST: a Real NVP whose prior covers all latents, also those that are factored out.

    The defaults are the ``RealNVP`` of the released code: three checkerboard couplings at 28×28, a squeeze,
    three couplings of channels, a factor-out and four checkerboard couplings at 14×14, ten in all. Its
    smaller ``RealNVPMNIST`` is ``widths=(64, 64, 64), blocks=4``. The networks are
    :class:`~pyro_scnf.nn.SkipConvNet`; that class says how they differ from those of the code.

    :param prior: see :func:`~pyro_scnf.priors.make_prior`.
    :param widths: width of the networks at each size of the image, the full size first: one to three numbers.
    :param int blocks: residual blocks of the networks.
    :param int latent_dim: number of components of :math:`z_f`, the deepest ones.
    :param int num_classes: number of labels K.
    :raises ValueError: for options out of range.
    """
    widths = as_sizes(widths, "widths", "one to three widths")
    if not 1 <= len(widths) <= 3:
        raise ValueError(f"widths={tuple(widths)}: expected one to three, because 28 pixels halve twice")
    blocks = check_whole("blocks", blocks, 0)
    flow = realnvp(
        (1, 28, 28),
        levels=len(widths),
        net=[{"name": "skip-conv", "width": width, "blocks": blocks} for width in widths],
        scale="tanh",
        logit=0.1,  # contracts to [0.05, 0.95]
        latent_dim=latent_dim,
    )
    return SemiConditionalFlow(flow, prior, num_classes)


@dataclass(frozen=True)
class ImageRealNVP:
    """:func:`flowgmm_mnist` with networks of certain sizes.

    :ivar widths: width of the networks at each size of the image.
    :ivar int blocks: residual blocks of the networks.
    """

    widths: tuple[int, ...]
    blocks: int

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        latent_dim = 784 if latent_dim is None else latent_dim
        return flowgmm_mnist(
            prior, widths=self.widths, blocks=self.blocks, latent_dim=latent_dim, num_classes=num_classes
        )


FLOWGMM_MNIST_PAPER = Preset(
    flow=ImageRealNVP(widths=(64, 128), blocks=8),
    augment=ImageAugment(shift=4),
    optimisation=Optimisation(
        optimizer="adam",
        learning_rate=1e-4,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        schedule="constant",
        ema_decay=None,
        gradient_clip=100.0,
    ),
    steps=93_750,  # 3,000 passes through 1,000 labelled rows
    batch_size=32,
    labelled_batch_size=32,
    validate_every=500,
    model=ModelOptions(labelled_weight=3.0),
    terms=(Consistency(1.0, start=0.0, until=1 / 30),),  # rises over the first 100 passes
    initial_rows=512,
    prior="flowgmm",
)
"""FlowGMM-cons for MNIST with 1,000 labels: the flow of the released code, trained as the paper says.

Training shifts images by up to four pixels. Without its term it is the FlowGMM of the paper.
"""


@dataclass(frozen=True)
class SmallGlow:
    """A Glow at 16×7×7, whose prior covers all 784 latents. No network sees a larger image.

    :ivar int steps: steps of flow.
    :ivar int width: width of the networks.
    """

    steps: int
    width: int

    def __call__(
        self, prior: PriorSpec, num_classes: int, latent_dim: int | None = None
    ) -> SemiConditionalFlow:
        flow = glow(
            (1, 28, 28),
            levels=2,
            steps=(0, self.steps),
            factor_out=False,
            coupling="alternate",
            scale="clamp",
            logit=0.05,
            latent_dim=latent_dim,
            net={"name": "pooled-conv", "width": self.width},
        )
        return SemiConditionalFlow(flow, prior, num_classes)


FLOWGMM_MNIST_CPU = Preset(
    flow=SmallGlow(steps=4, width=96),
    augment=ImageAugment(shift=2, rotate=15.0, zoom=0.2, shear=0.2),
    optimisation=Optimisation(
        learning_rate=4e-3,
        schedule="cosine",
        warmup=0.1,
        gradient_clip=1e5,
        ema_decay=0.99,
    ),
    steps=850,
    batch_size=64,
    labelled_batch_size=64,
    validate_every=250,
    terms=(Classification(1e5),),
    initial_rows=512,
    held_out=0,
    draws=4,
    prior="flowgmm:separation=0.2",
)
"""FlowGMM for MNIST with a thousand labels, in minutes on one CPU core.

Random means at a fifth of the usual distance leave room for doubt between classes. An image has thousands of
nats of density, and its label a few. In minutes, a small flow cannot learn both. So the classification term
has a weight that outweighs the density: this preset is for labels, and its density is worse than a uniform
one. For a density, take a smaller weight and more time, or :data:`pyro_scnf.presets.MNIST_CPU`.
"""
