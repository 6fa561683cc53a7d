"""From columns in any units to standard normal marginals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scnf._numbers import check_whole
from pyro_scnf._shapes import at_least_single, in_double
from pyro_scnf.transforms.base import FlowTransform

__all__ = ["QuantileSpline"]

OUTERMOST = 3.0
"""The inner knots lie between these normal quantiles, 0.13 % and 99.87 %, or less far out for few rows."""

NARROWEST = 1e-3
"""No bin is narrower than this share of a column's spread, so values that repeat have a finite density."""


class _Bin(NamedTuple):
    """The bin of each entry: where it begins, its sizes, and its slopes in units of its mean slope."""

    x: Tensor
    z: Tensor
    width: Tensor
    height: Tensor
    left: Tensor
    right: Tensor


class QuantileSpline(FlowTransform):
    r"""Every column through a smooth monotone spline, from its quantiles to normal quantiles.

    From data to latent, :math:`z_d = s_d(x_d)`. The spline :math:`s_d` consists of rational quadratics
    between knots :math:`(x_{dk}, z_{dk})` with slopes :math:`\delta_{dk}`, and of straight lines beyond the
    outermost knots. It is continuously differentiable. The lines rise by at most 1 in a spread of the column,
    so values beyond all that were seen are no further out than in the unit of the column. Within a bin of
    width w and height h, of mean slope :math:`s = h / w`, with :math:`\theta = (x - x_k) / w`,
    :math:`a = \delta_k / s`, :math:`b = \delta_{k+1} / s`,

    .. math::

        z = z_k + h\, \frac{\theta^2 + a\, \theta (1 - \theta)}{1 + (a + b - 2)\, \theta (1 - \theta)}.

    **The layer is the identity** until :meth:`initialize` is called. ``initialize(x)`` sets the knots to the
    quantiles of the columns of ``x``, among them the smallest and the largest value. The columns are then
    about standard normal, whatever their unit, skew and tails. The knots are buffers: training leaves them
    alone.

    A value that many rows share exactly goes to the normal quantile of their mean rank. Values that repeat
    have no density, so spread them before (``TableNoise`` does). Otherwise the density there is limited by
    the narrowest bin, which is a thousandth of the spread of the column wide.

    :param event_shape: ``(D,)``.
    :param int bins: number of bins between the outermost knots, 4 or more.
    :raises ValueError: for images, or fewer bins.

    The log-determinant from data to latent is the sum of the logarithms of the slopes at x, in nats.

    >>> x = torch.randn(1000, 2).exp() * torch.tensor([1.0, 1000.0])
    >>> layer = QuantileSpline(2)
    >>> z = layer.initialize(x)
    >>> bool(z.mean().abs() < 0.05), bool((z.std(0) - 1).abs().max() < 0.1)
    (True, True)

    Reference: Durkan, Bekasov, Murray and Papamakarios, *Neural spline flows*, 2019; Gregory and Delbourgo,
    *Piecewise rational quadratic interpolation to monotonic data*, 1982.
    """

    center: Tensor
    x_knots: Tensor
    z_knots: Tensor
    log_slopes: Tensor

    def __init__(self, event_shape: Sequence[int] | int, bins: int = 32) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise ValueError(f"event_shape={tuple(self.event_shape)}: expected (D,), the columns of a table")
        self.bins = check_whole("bins", bins, 4)
        knots = torch.linspace(-1, 1, self.bins + 1).expand(*self.event_shape, -1)
        self.register_buffer("center", torch.zeros(self.event_shape))
        # The knots are less the centre, so that a large offset rounds nothing.
        self.register_buffer("x_knots", knots.clone())
        self.register_buffer("z_knots", knots.clone())
        self.register_buffer("log_slopes", torch.zeros_like(knots))

    def _bin(self, value: Tensor, knots: Tensor) -> _Bin:
        """The bin that each entry of ``value`` ``(*batch, D)`` lies in, or is nearest to."""
        inner = _count_below(value, knots[:, 1:-1])[..., None]

        def at(table: Tensor, place: Tensor) -> Tensor:
            table = at_least_single(table).expand(*place.shape[:-1], -1)
            return table.gather(-1, place)[..., 0]

        x, z = at(self.x_knots, inner), at(self.z_knots, inner)
        width, height = at(self.x_knots, inner + 1) - x, at(self.z_knots, inner + 1) - z
        mean = height / width
        slopes = at_least_single(self.log_slopes).exp()
        return _Bin(x, z, width, height, at(slopes, inner) / mean, at(slopes, inner + 1) / mean)

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        dtype, x = x.dtype, at_least_single(x) - at_least_single(self.center)
        b = self._bin(x, self.x_knots)
        share = (x - b.x) / b.width
        inside = _between_0_and_1(share)
        rise, log_slope = _rational_quadratic(inside, b)
        beyond = share - inside  # on the straight line that goes on from the nearer end
        z = b.z + b.height * (rise + beyond * torch.where(beyond < 0, b.left, b.right))
        return z.to(dtype), log_slope.sum(-1).to(dtype)

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        dtype, z = z.dtype, at_least_single(z)
        b = self._bin(z, self.z_knots)
        rise = (z - b.z) / b.height
        inside = _between_0_and_1(rise)
        bend = inside * (b.left + b.right - 2)
        half = b.left - bend  # the positive root of (1 - left + bend) share² + half share = inside
        share = 2 * inside / (half + (half.square() + 4 * inside * (1 - b.left + bend)).clamp(min=0).sqrt())
        beyond = rise - inside
        log_slope = _rational_quadratic(share, b)[1]
        x = b.x + b.width * (share + beyond / torch.where(beyond < 0, b.left, b.right))
        return (x + at_least_single(self.center)).to(dtype), -log_slope.sum(-1).to(dtype)

    @torch.no_grad()
    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        ordered = in_double(x).flatten(0, -2).sort(0).values
        self.center.copy_(ordered[len(ordered) // 2])
        ordered = ordered - in_double(self.center)
        spread = _spread(ordered)[:, None]
        x_knots, z_knots = _quantiles(ordered, spread, self.bins, torch.finfo(self.x_knots.dtype).eps)
        means = z_knots.diff(dim=1).log() - x_knots.diff(dim=1).log()
        inner = (means[:, 1:] + means[:, :-1]) / 2
        self.x_knots.copy_(x_knots)
        self.z_knots.copy_(z_knots)
        first, last = (torch.minimum(end, -spread.log()) for end in (means[:, :1], means[:, -1:]))
        self.log_slopes.copy_(torch.cat([first, inner, last], 1))
        return self._inverse_ladj(x)[0]


def _count_below(value: Tensor, knots: Tensor) -> Tensor:
    """How many knots ``(D, K)`` of its column, in order, are no larger than each entry of ``(*batch, D)``.

    One knot after the other, because a table of all comparisons would take 8 K bytes for each entry.
    """
    count = torch.zeros_like(value, dtype=torch.long)
    for knot in knots.unbind(-1):
        count = count + (value >= knot)
    return count


def _between_0_and_1(share: Tensor) -> Tensor:
    """``share`` clamped to the unit interval. Unlike ``clamp``, it has the gradient 1 at both ends."""
    return torch.where(share < 0, torch.zeros_like(share), torch.where(share > 1, 1.0, share))


def _rational_quadratic(share: Tensor, b: _Bin) -> tuple[Tensor, Tensor]:
    """How far the spline has risen after this share of a bin, as a share of its height, and its log-slope."""
    rest = 1 - share
    below = 1 + (b.left + b.right - 2) * share * rest
    rise = share * (share + b.left * rest) / below
    slope = b.right * share.square() + 2 * share * rest + b.left * rest.square()
    return rise, b.height.log() - b.width.log() + slope.log() - 2 * below.log()


def _spread(ordered: Tensor) -> Tensor:
    """A spread ``(D,)`` of ordered columns, which outliers leave alone; 1 for a constant column.

    It is half the distance between the quantiles 0.16 and 0.84, or between outer ones where that is 0.
    """
    spread = torch.ones_like(ordered[0])
    for share in (0.0, 0.025, 0.16):  # the narrowest range that is no point
        last = len(ordered) - 1
        around = ordered[round((1 - share) * last)] - ordered[round(share * last)]
        spread = torch.where(around > 0, around / 2, spread)
    return spread


def _quantiles(ordered: Tensor, spread: Tensor, bins: int, eps: float) -> tuple[Tensor, Tensor]:
    """Knots ``(D, bins + 1)`` of ordered columns ``(N, D)``, and their normal quantiles.

    :param spread: ``(D, 1)``, see :func:`_spread`.
    :param float eps: the relative rounding of the dtype that stores them.
    """
    n = len(ordered)
    normal = torch.distributions.Normal(ordered.new_zeros(()), 1.0)
    extreme = normal.icdf(ordered.new_tensor(n / (n + 0.5))).clamp(min=0.5)  # of the largest of n values
    outermost = min(OUTERMOST, float(extreme) * (1 - 2 / bins))
    inner = torch.linspace(-outermost, outermost, bins - 1, dtype=ordered.dtype, device=ordered.device)
    z = torch.cat([-extreme[None], inner, extreme[None]])
    place = (normal.cdf(inner) * n - 0.5).clamp(0, n - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=n - 1)
    between = torch.lerp(ordered[low], ordered[high], (place - low)[:, None])
    knots = torch.cat([ordered[:1], between, ordered[-1:]]).T
    z = z.expand(len(knots), -1)
    size = torch.maximum(knots[:, 1:].abs(), knots[:, :-1].abs())
    narrowest = torch.maximum(NARROWEST * spread, 16 * eps * size)  # no bin is of rounding alone
    knots = knots + _around_ties(knots, z) * torch.maximum(NARROWEST * spread, 16 * eps * knots.abs())
    least = torch.cat([torch.zeros_like(spread), narrowest.cumsum(1)], 1)
    return (knots - least).cummax(1).values + least, z


def _around_ties(knots: Tensor, z: Tensor) -> Tensor:
    """How many bins each knot ``(D, K)`` moves, so that a value of many rows gets the mean of their ranks.

    The knots at such a value are equal. They are spread around it. In other places nothing moves.
    """
    run = torch.cat([torch.zeros_like(knots[:, :1]), knots.diff(dim=1) > 0], 1).cumsum(1).long()
    normal = torch.distributions.Normal(knots.new_zeros(()), 1.0)

    def of_run(how: str) -> Tensor:
        table = torch.zeros_like(z).scatter_reduce(1, run, z, how, include_self=False)
        return normal.cdf(table.gather(1, run))

    middle = normal.icdf((of_run("amin") + of_run("amax")) / 2)
    alone = of_run("amin") == of_run("amax")
    return torch.where(alone, 0.0, (z - middle) / z.diff(dim=1).amin())
