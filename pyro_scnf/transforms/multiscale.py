"""The multi-scale architecture, which factors channels out, as one bijection onto a vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast, overload

import torch
from torch import Tensor, nn

from pyro_scnf._numbers import check_whole
from pyro_scnf.transforms.base import ConditionalFlowTransform, FlowTransform
from pyro_scnf.transforms.bijection import Bijection
from pyro_scnf.transforms.compose import (
    Layer,
    all_unconditional,
    check_layers,
    common_context_dim,
    context_of,
    sum_ladjs,
)

__all__ = ["ConditionalMultiScale", "MultiScale", "kept_channels", "multi_scale"]


def kept_channels(channels: int) -> int:
    """How many of ``channels`` a factor-out keeps: half of them, rounded down to an even number.

    The number is even so that the next coupling can halve it: of 98 channels 50 are sent out and 48 are
    kept. Of 2 or 3 channels one is kept.

    :raises ValueError: for a single channel, which cannot be split.
    """
    half = check_whole("channels", channels, 2) // 2
    return half - half % 2 if half > 1 else half


class _Scales(Bijection):
    """Runs the stages, with or without a context."""

    stages: Sequence[Layer]  # an ``nn.ModuleList``

    @staticmethod
    def _check_stages(stages: Sequence[Layer]) -> None:
        check_layers(stages, "stages", "MultiScale")
        for deeper, stage in pairwise(stages):
            out = stage.base_shape
            if out[0] < 2:
                raise ValueError(
                    f"stages: a stage ending in {tuple(out)} has one channel, and factoring out needs 2"
                )
            expected = (kept_channels(out[0]),) + tuple(out[1:])
            if tuple(deeper.event_shape) != expected:
                raise ValueError(
                    f"stages: a stage ending in {tuple(out)} passes {expected} on, but the next one "
                    f"takes {tuple(deeper.event_shape)}"
                )

    def _set_stages(self, stages: Sequence[Layer], latent_dim: int | None) -> None:
        self.stages = cast("Sequence[Layer]", nn.ModuleList(stages))
        self._latent_shape = self._shape_of_latent(stages[0].base_shape, latent_dim)

    def _shape_of_latent(self, deepest: torch.Size, latent_dim: int | None) -> torch.Size:
        total = self.base_shape.numel()
        if latent_dim is None:
            return deepest
        latent_dim = check_whole("latent_dim", latent_dim, 1, total)
        channels, rest = divmod(latent_dim, deepest[1:].numel())
        whole = rest == 0 and channels <= deepest[0]
        return torch.Size((channels,)) + deepest[1:] if whole else torch.Size((latent_dim,))

    @property
    def latent_shape(self) -> torch.Size:
        return self._latent_shape

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        pieces, ladjs = [], []
        for depth, stage in enumerate(reversed(self.stages)):
            x, ladj = stage._inverse_ladj(x, *context_of(stage, context))
            ladjs.append(ladj)
            if depth < len(self.stages) - 1:
                out, x = self._factor_out(x, stage.base_shape)
                pieces.append(out)
        pieces.append(x.flatten(-len(self.stages[0].base_shape)))
        total = sum_ladjs(ladjs)
        # A piece from an unconditional stage may lack the batch dimensions that the context adds later.
        return torch.cat([piece.expand(total.shape + piece.shape[-1:]) for piece in pieces], -1), total

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        *pieces, deepest = z.split(self._piece_sizes(), -1)
        shape = self.stages[0].base_shape
        x, ladjs = deepest.reshape(deepest.shape[:-1] + shape), []
        for i, stage in enumerate(self.stages):
            if i:
                x = self._join(pieces[-i], x, stage.base_shape)
            x, ladj = stage._forward_ladj(x, *context_of(stage, context))
            ladjs.append(ladj)
        return x, sum_ladjs(ladjs)

    def _initialize(self, x: Tensor, *context: Tensor) -> Tensor:
        pieces = []
        for depth, stage in enumerate(reversed(self.stages)):
            x = stage._initialize(x, *context_of(stage, context))
            if depth < len(self.stages) - 1:
                out, x = self._factor_out(x, stage.base_shape)
                pieces.append(out)
        return torch.cat([*pieces, x.flatten(-len(self.stages[0].base_shape))], -1)

    def _piece_sizes(self) -> list[int]:
        """Lengths of the pieces of the base vector, in their order there."""
        outer = [stage.base_shape for stage in reversed(self.stages)][:-1]
        sizes = [(s[0] - kept_channels(s[0])) * s[1:].numel() for s in outer]
        return [*sizes, self.stages[0].base_shape.numel()]

    def _factor_out(self, x: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Cut the output of a stage into the part that is sent out, flattened, and the part that is kept."""
        keep = kept_channels(shape[0])
        out, kept = x.split([shape[0] - keep, keep], -len(shape))
        return out.flatten(-len(shape)), kept

    def _join(self, out: Tensor, kept: Tensor, shape: torch.Size) -> Tensor:
        """Undo :meth:`_factor_out`. ``out`` may lack batch dimensions that ``kept`` has from a context."""
        kept_batch = kept.shape[: kept.dim() - len(shape)]
        out = out.reshape(out.shape[:-1] + (shape[0] - kept_channels(shape[0]),) + shape[1:])
        out = out.expand(kept_batch + out.shape[out.dim() - len(shape) :])
        return torch.cat([out, kept], -len(shape))


class MultiScale(_Scales, FlowTransform):
    r"""Multi-scale flow: data on one side, a vector on the latent side.

    From data to latent, each stage but the deepest keeps the *last* channels of its output and sends the
    *first* ones out; :func:`kept_channels` gives the number it keeps. The base is the vector
    :math:`[z_{aux,1}, \dots, z_{aux,L-1}, z_{deepest}]`. The pieces stand in the order in which they are
    factored out, each flattened row-major, so the deepest components come last.

    :param stages: layers, usually :class:`Compose`, in generative order: the deepest first.
    :param int latent_dim: number of the deepest components that form :math:`z_f`; by default the whole
        deepest map. ``latent_shape`` is an image if ``latent_dim`` is a whole number of channels of that
        map, else a vector.
    :raises ValueError: if two stages do not fit, a stage is conditional, or ``latent_dim`` is out of range.

    Reference: Dinh et al., *Real NVP*, 2017, section 3.6; Atanov et al., 2019, section 3.2.
    """

    def __init__(self, stages: Sequence[FlowTransform], latent_dim: int | None = None) -> None:
        self._check_stages(stages)
        if not all_unconditional(stages):
            raise ValueError("MultiScale: a stage is conditional, use ConditionalMultiScale (or multi_scale)")
        super().__init__(stages[-1].event_shape, stages[-1].event_shape.numel())
        self._set_stages(stages, latent_dim)


class ConditionalMultiScale(_Scales, ConditionalFlowTransform):
    """:class:`MultiScale` with at least one conditional stage. All conditional stages see the same context.

    See :class:`MultiScale` for the parameters.

    :raises ValueError: if two stages do not fit, no stage is conditional, ``latent_dim`` is out of range, or
        two conditional stages expect contexts of different lengths.
    """

    def __init__(self, stages: Sequence[Layer], latent_dim: int | None = None) -> None:
        self._check_stages(stages)
        context_dim = common_context_dim(stages)
        if context_dim is None:
            raise ValueError("ConditionalMultiScale: no stage is conditional, use MultiScale")
        super().__init__(stages[-1].event_shape, context_dim, stages[-1].event_shape.numel())
        self._set_stages(stages, latent_dim)


@overload
def multi_scale(stages: Sequence[FlowTransform], latent_dim: int | None = None) -> MultiScale: ...
@overload
def multi_scale(
    stages: Sequence[Layer], latent_dim: int | None = None
) -> MultiScale | ConditionalMultiScale: ...
def multi_scale(stages: Sequence[Layer], latent_dim: int | None = None) -> MultiScale | ConditionalMultiScale:
    """:class:`ConditionalMultiScale` if any stage is conditional, else :class:`MultiScale`.

    See :class:`MultiScale` for the parameters.
    """
    check_layers(stages, "stages", "multi_scale")
    if all_unconditional(stages):
        return MultiScale(stages, latent_dim)
    return ConditionalMultiScale(stages, latent_dim)
