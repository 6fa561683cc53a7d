"""Plain conditioner networks: linear layers for vectors, three convolutions for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from pyro_scnf._numbers import check_at_least, check_number, check_word
from pyro_scnf.nn.conditioners import Conditioner, check_hidden, check_sizes
from pyro_scnf.nn.convolutions import make_conv

__all__ = ["MLP", "ConvNet"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
}
"""Activations by name."""


class MLP(Conditioner):
    """A plain network of linear layers, for vectors. It is lighter than :class:`ResidualMLP`.

    :param int in_channels: input features.
    :param int out_channels: output features.
    :param hidden: widths of the hidden layers.
    :param activation: module class of the activations, or its name: ``"relu"``, ``"tanh"``, ``"silu"``,
        ``"gelu"`` or ``"elu"``.
    :param int context_dim: length of the context vector, 0 for none.
    :param float dropout: share of features, in [0, 1), that training sets to zero after every hidden
        activation but the last, as in the released code of FlowGMM. The others grow by ``1 / (1 - dropout)``.
    :raises ValueError: for an unknown activation, no hidden width, or ``dropout`` with one hidden layer.

    In training mode, each call with ``dropout`` draws a mask of its own for each row. Within one call, the
    log-determinant of a coupling belongs to the mask drawn. :func:`~pyro_scnf.elbo` encodes each data tensor
    once, so model, guide and terms see the same draw. Two calls differ, so encoding and decoding undo each
    other only in evaluation mode (``flow.eval()``), where dropout does nothing. ``torch.func.vmap`` needs
    ``randomness="different"``.

    Reference: Izmailov et al., *Semi-Supervised Learning with Normalizing Flows*, 2020 (dropout).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: Sequence[int] = (64, 64),
        activation: str | Callable[[], nn.Module] = nn.ReLU,
        context_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        check_sizes(in_channels, out_channels, context_dim)
        hidden = check_hidden(hidden)
        if isinstance(activation, nn.Module) or not callable(activation):
            check_word("activation", activation, ACTIVATIONS)
            activation = ACTIVATIONS[str(activation)]
        dropout = check_number("dropout", dropout, at_least=0, below=1)
        if dropout and len(hidden) == 1:
            raise ValueError(
                f"dropout={dropout}: it acts between hidden layers, and hidden={tuple(hidden)} is one layer; "
                "give two or more widths, such as (64, 64)"
            )
        body: list[nn.Module] = [activation()]
        for before, after in pairwise(hidden):
            body += [nn.Dropout(dropout)] if dropout else []
            body += [nn.Linear(before, after), activation()]
        super().__init__(
            nn.Linear(in_channels, hidden[0]),
            nn.Sequential(*body),
            nn.Linear(hidden[-1], out_channels),
            hidden[0],
            1,
            context_dim,
        )


class ConvNet(Conditioner):
    """Three convolutions, 3×3, 1×1 and 3×3, for images, as in Glow.

    It is lighter than :class:`ResidualConvNet`. With a last convolution of 1×1 it is lighter still, because
    small convolutions of many channels to few take most of the time.

    :param int in_channels: input channels.
    :param int out_channels: output channels.
    :param int width: channels between the layers.
    :param int context_dim: length of the context vector, 0 for none.
    :param int kernel_size: kernel size of the first and the last convolution, an odd number. Images that are
        one pixel high or wide need 1.
    :param last_kernel_size: kernel size of the last convolution, if it is another one.
    :raises ValueError: for a size out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        context_dim: int = 0,
        kernel_size: int = 3,
        last_kernel_size: int | None = None,
    ) -> None:
        check_sizes(in_channels, out_channels, context_dim)
        check_at_least(1, width=width)
        super().__init__(
            make_conv(in_channels, width, kernel_size),
            nn.Sequential(nn.ReLU(), make_conv(width, width, 1), nn.ReLU()),
            make_conv(width, out_channels, kernel_size)
            if last_kernel_size is None
            else make_conv(width, out_channels, last_kernel_size, "last_kernel_size"),
            width,
            3,
            context_dim,
        )
