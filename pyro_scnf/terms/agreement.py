r"""Data that probably share a label: neighbours, or views of one datum."""

from __future__ import annotations

from torch import Tensor

from pyro_scnf._checks import validating

__all__ = ["check_pairs", "log_agreement"]


def log_agreement(log_posterior: Tensor, pairs: Tensor, purity: float) -> Tensor:
    r"""What is gained, in nats, by knowing that the rows of a pair share their label with probability
    ``purity``:

    .. math:: \log \sum_{k, l} p(k \mid x)\, A_{kl}\, p(l \mid x'), \qquad
        A_{kk} = \rho, \quad A_{kl} = \frac{1 - \rho}{K - 1}.

    Added to :math:`\log p(x) + \log p(x')` it makes the exact log-likelihood of the pair when classes
    are equally probable and labels are joined by :math:`A`, less the constant :math:`\log K`.

    :param log_posterior: :math:`\log p(k \mid x_n)`, ``(B, K)``; a known label is one-hot.
    :param pairs: rows that belong together, ``(P, 2)``.
    :param float purity: :math:`\rho` above, in (0, 1).
    :return: ``(P,)``, at most 0.

    >>> certain = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).log()
    >>> log_agreement(certain, torch.tensor([[0, 1], [0, 2]]), purity=0.9).exp()
    tensor([0.9000, 0.1000])
    """
    first, second = log_posterior[pairs[:, 0]], log_posterior[pairs[:, 1]]
    other = (1 - purity) / max(1, log_posterior.shape[-1] - 1)
    same = (first + second).logsumexp(-1).exp()
    # One sum over labels instead of two: A is a multiple of the identity plus a constant.
    return (other + (purity - other) * same).log()


def check_pairs(pairs: Tensor, rows: int, owner: str) -> None:
    """Raise unless ``pairs`` are two row numbers each."""
    if pairs.is_floating_point() or pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(
            f"{owner}: pairs has shape {tuple(pairs.shape)} and dtype {pairs.dtype}, expected (P, 2) "
            "row numbers"
        )
    if validating() and pairs.numel() and (pairs.min() < 0 or pairs.max() >= rows):
        raise ValueError(
            f"{owner}: pairs holds {int(pairs.min())}..{int(pairs.max())}, expected rows 0..{rows - 1}"
        )
