r"""The models M1 and M2 of Kingma et al. (2014) as Pyro programs.

M1 is a variational autoencoder of all rows. M2 is a generative model of the codes :math:`z_1` of M1, given
the label y and a style :math:`z_2`. Its guide :math:`q(y \mid z_1)` is the classifier.

Reference: Kingma, Mohamed, Rezende and Welling, *Semi-supervised Learning with Deep Generative Models*, 2014.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_scnf._checks import check_data
from pyro_scnf._copies import PortableModule
from pyro_scnf._numbers import check_at_least, check_scale
from pyro_scnf._shapes import as_event_shape, reference_tensor
from pyro_scnf.models.plates import data_plate
from pyro_scnf.nn import MLP

__all__ = ["M1", "M2"]

UNIT = dist.constraints.unit_interval


def _normal(parameters: Tensor) -> dist.Independent:
    """The normal distribution whose mean and scale a network gives side by side. Its scale begins at 1."""
    loc, scale = parameters.chunk(2, -1)
    return dist.Normal(loc, F.softplus(scale + 0.5413) + 1e-4).to_event(1)


def _standard_normal(like: Tensor, size: int) -> dist.Independent:
    return dist.Normal(like.new_zeros(size), 1).to_event(1)


def _network(inputs: int, outputs: int, hidden: Sequence[int]) -> MLP:
    """An MLP whose output varies with its input from the first step.

    The last layer of an MLP begins at zero, as in a flow. A variational autoencoder learns more slowly from
    there, because its codes say nothing about their rows at first.
    """
    network = MLP(inputs, outputs, hidden)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.xavier_normal_(network.last.weight)
    return network


class M1(PortableModule, PyroModule):
    """A variational autoencoder: codes of rows that lie in the unit interval, such as grey levels.

    :param event_shape: ``(D,)`` or ``(C, H, W)``.
    :param int latent_dim: length of a code.
    :param hidden: widths of the hidden layers of the encoder. The decoder has them in reverse.
    :raises ValueError: for sizes that are no positive whole numbers.
    """

    def __init__(
        self, event_shape: Sequence[int], latent_dim: int = 50, hidden: Sequence[int] = (500, 500)
    ) -> None:
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        check_at_least(1, latent_dim=latent_dim)
        self.latent_dim, pixels = int(latent_dim), self.event_shape.numel()
        self.encoder = _network(pixels, 2 * self.latent_dim, hidden)
        self.decoder = _network(self.latent_dim, pixels, tuple(hidden)[::-1])

    def encode(self, x: Tensor) -> dist.Independent:
        r""":math:`q(z_1 \mid x)`, a normal distribution of batch ``(B,)`` and event ``(latent_dim,)``.

        :param x: rows ``(B, *event_shape)`` in the unit interval.
        :raises ValueError: for rows of another shape or dtype, or outside of the unit interval.
        """
        x = self.check(x)
        return _normal(self.encoder(2 * x.flatten(1) - 1))

    def check(self, x: Tensor, name: str = "x") -> Tensor:
        """Raise unless ``x`` holds rows as :meth:`encode` takes them. Return them in the dtype of M1.

        :param str name: the user's argument, for the message.
        """
        like = self.encoder.last.weight
        return check_data(x, self.event_shape, like, UNIT, type(self).__name__, name)

    @pyro_method
    def model(self, x: Tensor, size: int | None = None, kl_weight: float = 1.0) -> None:
        """Draw codes, and observe the rows given the codes.

        A grey level g counts as a pixel that is white with probability g. The loss is the mean over such
        pixels.

        :param x: rows ``(B, *event_shape)`` in the unit interval.
        :param size: rows of the whole data set, of which ``x`` is a batch.
        :param float kl_weight: weight of the Kullback-Leibler divergence of the codes.
        """
        x = self.check(x)
        with data_plate("rows", size, len(x), x.device):
            with poutine.scale(scale=kl_weight):
                z = pyro.sample("z1", _standard_normal(x, self.latent_dim))
            pixels = dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1)
            pyro.sample("x", pixels, obs=x.flatten(1))

    @pyro_method
    def guide(self, x: Tensor, size: int | None = None, kl_weight: float = 1.0) -> None:
        """Draw codes from the encoder. The arguments are those of :meth:`model`."""
        with data_plate("rows", size, len(x), x.device), poutine.scale(scale=kl_weight):
            pyro.sample("z1", self.encode(x))


class M2(PortableModule, PyroModule):
    r"""A generative model of vectors given their label and a style, and the classifier as its guide.

    Labels are uniform. The loss sums over the labels of unlabelled rows (``TraceEnum_ELBO`` with
    ``max_plate_nesting=1``).

    :param int features: length of a vector.
    :param int num_classes: number of labels K.
    :param int style_dim: length of the style.
    :param hidden: widths of the hidden layers of all three networks.
    :param float alpha: weight of the classification of labelled rows. As in the paper, their mean
        :math:`-\log q(y \mid z_1)` counts ``alpha`` times for each row of the data set.
    :raises ValueError: for sizes that are no positive whole numbers, or a weight that is not positive.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        style_dim: int = 50,
        hidden: Sequence[int] = (500,),
        alpha: float = 0.1,
    ) -> None:
        super().__init__()
        check_at_least(1, features=features, num_classes=num_classes, style_dim=style_dim)
        features, self.num_classes, self.style_dim = int(features), int(num_classes), int(style_dim)
        self.alpha = check_scale("alpha", alpha)
        self.classifier = MLP(features, self.num_classes, hidden)
        self.encoder = MLP(features, 2 * self.style_dim, hidden, context_dim=self.num_classes)
        self.decoder = MLP(self.style_dim, 2 * features, hidden, context_dim=self.num_classes)

    @pyro_method
    def model(
        self, z: Tensor, y: Tensor, z_unlabelled: Tensor, sizes: Sequence[int | None] = (None, None)
    ) -> None:
        """Observe labelled and unlabelled vectors.

        :param z: labelled vectors ``(B, features)``.
        :param y: their labels ``(B,)``.
        :param z_unlabelled: unlabelled vectors.
        :param sizes: numbers of labelled and unlabelled rows of the whole data set, of which these are
            batches. ``None`` means that they are all rows.
        """
        labelled, unlabelled = sizes
        num_labelled = labelled or len(z)
        rows = num_labelled + (unlabelled or len(z_unlabelled))
        with data_plate("labelled", labelled, len(z), z.device):
            pyro.sample("y", self._class_prior(z), obs=y)
            self._observe("labelled", z, y)
            with poutine.scale(scale=self.alpha * rows / num_labelled):
                pyro.sample("y_classified", self.classify(z), obs=y)
        with data_plate("unlabelled", unlabelled, len(z_unlabelled), z.device):
            label = pyro.sample("y_unlabelled", self._class_prior(z))
            self._observe("unlabelled", z_unlabelled, label)

    @pyro_method
    def guide(
        self, z: Tensor, y: Tensor, z_unlabelled: Tensor, sizes: Sequence[int | None] = (None, None)
    ) -> None:
        """Enumerate unknown labels and draw styles. The arguments are those of :meth:`model`."""
        labelled, unlabelled = sizes
        with data_plate("labelled", labelled, len(z), z.device):
            pyro.sample("z2_labelled", _normal(self.encoder(z, self._one_hot(y))))
        with data_plate("unlabelled", unlabelled, len(z_unlabelled), z.device):
            label = pyro.sample("y_unlabelled", self.classify(z_unlabelled), infer={"enumerate": "parallel"})
            pyro.sample("z2_unlabelled", _normal(self.encoder(z_unlabelled, self._one_hot(label))))

    def classify(self, z: Tensor) -> dist.Categorical:
        r""":math:`q(y \mid z_1)` of vectors ``(B, features)``."""
        return dist.Categorical(logits=self.classifier(z))

    def _observe(self, kind: str, z: Tensor, y: Tensor) -> None:
        style = pyro.sample(f"z2_{kind}", _standard_normal(z, self.style_dim))
        pyro.sample(f"z1_{kind}", _normal(self.decoder(style, self._one_hot(y))), obs=z)

    def _one_hot(self, y: Tensor) -> Tensor:
        return F.one_hot(y, self.num_classes).to(reference_tensor(self))

    def _class_prior(self, like: Tensor) -> dist.Categorical:
        return dist.Categorical(logits=like.new_zeros(self.num_classes))
