"""Where the means of a mixture start: at random, in a pattern, at given points, or at labelled latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._numbers import check_word
from pyro_scnf._shapes import at_least_single, in_double
from pyro_scnf._warn import warn

__all__ = ["Means", "MeansWord", "around_the_circle", "check_labelled", "initial_means", "means_of_rows"]

MeansWord = Literal["auto", "random", "antipodal", "circle", "blocks", "latents", "clusters"]
"""The ways to place means, by name."""

Means = MeansWord | Tensor | Sequence[object]
"""A word, or the means themselves, ``(K, *event_shape)``."""

BY_LABELS = ("auto", "latents", "clusters")
"""The words for means that labelled rows set. They are random until then."""

MOST_ROWS = 2000
"""Of more unlabelled rows, so many are compared to find those of classes without labels."""


def initial_means(means: Means, count: int, event_shape: torch.Size, separation: float) -> Tensor:
    """Means of ``count`` components, ``(count, *event_shape)``.

    :param means: a word, or ``count`` points as a tensor or nested lists.
    :param float separation: the scale of random means, the norm of antipodal means and of those on a circle,
        the height of blocks, and a factor on given means.
    :raises ValueError: for another word, a pattern that has no room for so many components, or points of
        another shape or that are not finite.
    """
    if not isinstance(means, str):
        return separation * _given_means(means, torch.Size((count,)) + event_shape)
    check_word("means", means, get_args(MeansWord))
    if means in PATTERNS:
        return separation * PATTERNS[means](count, event_shape)
    return separation * torch.randn((count, *event_shape))


def _given_means(means: Tensor | Sequence[object], shape: torch.Size) -> Tensor:
    try:
        given = torch.as_tensor(means, dtype=torch.get_default_dtype()).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"means={means!r}: expected a word, or numbers of shape {tuple(shape)}") from error
    if given.shape != shape:
        raise ValueError(f"means has shape {tuple(given.shape)}, expected {tuple(shape)}")
    if not bool(given.isfinite().all()):
        raise ValueError("means holds NaN or infinity, expected finite numbers")
    return given.clone()


# -- patterns of unit size -------------------------------------------------------------------------
def _antipodal(count: int, event_shape: torch.Size) -> Tensor:
    """Two opposite points in a random direction."""
    if count != 2:
        raise ValueError(f"means='antipodal' needs 2 components, got {count}")
    direction = torch.randn(event_shape)
    direction = direction / direction.norm()
    return torch.stack([direction, -direction])


def _circle(count: int, event_shape: torch.Size) -> Tensor:
    """Points at equal distances on a circle in the plane of the first two numbers."""
    dim = event_shape.numel()
    if dim < 2:
        raise ValueError(
            f"means='circle' needs 2 numbers or more, event_shape={tuple(event_shape)} has {dim}"
        )
    angles = 2 * math.pi * torch.arange(count) / count
    flat = torch.zeros(count, dim)
    flat[:, 0], flat[:, 1] = angles.cos(), angles.sin()
    return flat.reshape(count, *event_shape)


def around_the_circle(means: Tensor, z_f: Tensor, y: Tensor) -> Tensor:
    """Means on a circle, in the order in which the labelled latents of the classes lie around their middle.

    A flow that keeps the orientation of the plane cannot turn one cyclic order into another.

    :param means: ``(K, J, *event_shape)`` for J components of each class.
    :return: the same means in another order of classes. All stay where they are if there are two classes,
        which have one cyclic order, or if a class has no labelled row.
    """
    classes, known = len(means), y != UNLABELLED
    if classes < 3 or len(y[known].unique()) < classes:
        return means
    latents = in_double(z_f).flatten(1)[:, :2]
    centers = torch.stack([latents[y == k].mean(0) for k in range(classes)])
    away = normalize(centers - centers.mean(0), dim=-1)
    points = in_double(means).flatten(2)[..., :2].mean(1)
    classes_around, points_around = (torch.atan2(p[:, 1], p[:, 0]).argsort() for p in (away, points))
    turns = [classes_around.roll(turn) for turn in range(classes)]
    best = max(turns, key=lambda turn: float((away[turn] * points[points_around]).sum()))
    return means[points_around[best.argsort()]]


def _blocks(count: int, event_shape: torch.Size) -> Tensor:
    """Ones in a block of numbers of its own for each component, and zeros elsewhere."""
    dim = event_shape.numel()
    if dim < count:
        raise ValueError(
            f"means='blocks' needs a number for each of {count} components, event_shape="
            f"{tuple(event_shape)} has {dim}"
        )
    owner = torch.arange(dim) * count // dim
    return (owner == torch.arange(count)[:, None]).to(torch.get_default_dtype()).reshape(count, *event_shape)


PATTERNS: dict[str, Callable[[int, torch.Size], Tensor]] = {
    "antipodal": _antipodal,
    "circle": _circle,
    "blocks": _blocks,
}


# -- means of rows ---------------------------------------------------------------------------------
def check_labelled(means: str, y: Tensor, classes: int) -> None:
    """Raise if ``means`` needs a labelled row of each class, and ``y`` has none of some."""
    missing = [k for k in range(classes) if not bool((y == k).any())]
    if means == "latents" and missing:
        raise ValueError(f"means='latents': no labelled example of class {missing} in y")


def means_of_rows(means: str, before: Tensor, z_f: Tensor, y: Tensor, separation: float) -> Tensor:
    """The means of classes at the latents of their rows.

    :param means: one of :data:`BY_LABELS`, whose labels :func:`check_labelled` has seen.
    :param before: the means so far, ``(K, J, *event_shape)`` for J components of each class.
    :param z_f: latents ``(B, *event_shape)``.
    :param y: their labels, -1 where unknown.
    :return: ``(K, J, *event_shape)``. Where there are fewer different rows than components, the other
        components keep their means.
    """
    classes, components = before.shape[:2]
    known = [k for k in range(classes) if bool((y == k).any())]
    missing = [k for k in range(classes) if k not in known]
    if means == "auto" and known and missing:
        warn(
            f"means='auto': y has no labelled row of class {missing}, so their means stay random, while "
            "those of the other classes start at their labelled latents. Give initialize a labelled row "
            "of each class; or means='clusters', which starts classes without labels among unlabelled "
            "rows; or means='random', which starts all means alike"
        )
    placed = before.clone()
    for k in known:
        own = _spread_out(z_f[y == k], components)
        placed[k, : len(own)] = separation * own
    unlabelled = z_f[y == UNLABELLED]
    if means == "clusters" and known and missing and not len(unlabelled):
        warn(
            f"means='clusters': the means of class {missing} stay random, because y has no labelled row of "
            "them, and no unlabelled row either. Give initialize unlabelled rows too"
        )
    if means == "clusters" and missing and len(unlabelled):
        # Not at equal distances: the classes of the rows may come in turns.
        drawn = torch.randperm(len(unlabelled), generator=torch.Generator().manual_seed(0))[:MOST_ROWS]
        some = unlabelled[drawn.sort().values]
        groups = _groups(some, z_f[y != UNLABELLED], len(missing), math.ceil(len(some) / classes))
        for k, group in zip(missing, groups, strict=False):
            own = _spread_out(group, components)
            placed[k, : len(own)] = separation * own
    return placed


def _groups(rows: Tensor, labelled: Tensor, count: int, most: int) -> list[Tensor]:
    """``count`` groups of unlabelled ``rows`` that lie close together and have no labelled row among them.

    Among many neighbours of a row there is a labelled one, unless the class of the row has no label. Each row
    is the center of a ball, which grows until it meets a labelled row, a row of an earlier group, or has
    ``most`` rows. One ball may be large by chance, so the sizes are averaged over neighbouring rows. The
    group is the inner half of the ball with the largest average, or of the smallest such ball. The outer half
    may be of other classes.

    :return: fewer groups if the rows are too few, or equal to those taken.
    """
    free, known = at_least_single(rows).flatten(1), at_least_single(labelled).flatten(1)
    apart = _distances(free, free)
    # Of many labelled rows, distances to all at once would not fit in memory.
    parts = [pad(_distances(free, part), (0, 1), value=math.inf).amin(1) for part in known.split(MOST_ROWS)]
    reach = torch.stack(parts).amin(0)
    groups: list[Tensor] = []
    while len(rows) and len(groups) < count:
        near = apart.topk(min(most, len(rows)), largest=False)
        sizes = (near.values < reach[:, None]).sum(1)
        average = in_double(sizes.float())[near.indices[:, : math.ceil(most / 10)]].mean(1)
        if not sizes.any():
            break
        radii = near.values.gather(1, (sizes[:, None] - 1).clamp(min=0))[:, 0]
        best = radii.masked_fill((sizes == 0) | (average < average[sizes > 0].max()), math.inf).argmin()
        inner = near.indices[best, : math.ceil(int(sizes[best]) / 2)]
        groups.append(rows[inner])
        reach = torch.minimum(reach, apart[:, inner].amin(1))
        left = torch.ones(len(rows), dtype=torch.bool, device=rows.device).index_fill(0, inner, False)
        rows, reach, apart = rows[left], reach[left], apart[left][:, left]
    return groups


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Exact distances. By products, a row would lie at a distance from itself."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _spread_out(rows: Tensor, count: int) -> Tensor:
    """``count`` points among ``rows`` ``(B, *event)``: their mean alone, or rows far from one another."""
    center = rows.mean(0, keepdim=True)
    first = rows[:0] if count == 1 else _farthest(rows, center, 1)
    return torch.cat([first, _farthest(rows, first, count - 1)]) if len(first) else center


def _farthest(rows: Tensor, points: Tensor, count: int) -> Tensor:
    """``count`` rows, each the farthest from ``points`` and from those that were chosen before it.

    Among many rows the farthest ones are outliers. One row in twenty is therefore passed over. No row equals
    an earlier one, because equal components would stay equal in training. So there may be fewer.
    """
    flat, chosen = at_least_single(rows).flatten(1), at_least_single(points).flatten(1)
    picked = []
    for _ in range(count):
        distance = _distances(flat, chosen).amin(1)
        different = (distance > 0).nonzero()[:, 0]
        if not len(different):
            break
        order = different[distance[different].argsort()]
        farthest = flat[order[math.ceil(0.95 * len(order)) - 1]]
        picked.append(farthest)
        chosen = torch.cat([chosen, farthest[None]])
    return torch.stack(picked).reshape(-1, *rows.shape[1:]) if picked else rows[:0]
