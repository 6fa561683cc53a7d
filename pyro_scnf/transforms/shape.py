"""Volume-preserving rearrangements: squeeze, flatten, permute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pyro_scnf._numbers import check_word
from pyro_scnf._shapes import as_event_shape, check_tensor
from pyro_scnf.transforms.base import FlowTransform

__all__ = ["Flatten", "Flip", "Permute", "Squeeze"]


class Rearrangement(FlowTransform):
    """A bijection that only moves entries. Its log-determinant is 0."""

    def _to_data(self, z: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _to_data")

    def _to_base(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _to_base")

    def _forward_ladj(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        return self._to_data(z), z.new_zeros(z.shape[: z.dim() - len(self.base_shape)])

    def _inverse_ladj(self, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        return self._to_base(x), x.new_zeros(x.shape[: x.dim() - len(self.event_shape)])


class Squeeze(Rearrangement):
    r"""Space to depth: every 2×2 block of a ``(C, H, W)`` image becomes 4 channels.

    The latent side is ``(4C, H/2, W/2)``.

    :param order: where channel ``c`` of the pixel at row ``dy`` and column ``dx`` of a block goes.
        ``"space-major"``: to channel ``(2 dy + dx) C + c``, so that the first half of the channels is the top
        row of each block, as in the SCNF code. ``"channel-major"``: to channel ``4 c + 2 dy + dx``, as in
        Real NVP and FlowGMM.
    :raises ValueError: if the height or width is odd.
    """

    def __init__(
        self, event_shape: Sequence[int], order: Literal["space-major", "channel-major"] = "space-major"
    ) -> None:
        shape = as_event_shape(event_shape)
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            raise ValueError(f"event_shape={tuple(shape)}: Squeeze needs (C, H, W) with even H and W")
        check_word("order", order, ("space-major", "channel-major"))
        super().__init__(shape, (4 * shape[0], shape[1] // 2, shape[2] // 2))
        self.order = order

    def _to_base(self, x: Tensor) -> Tensor:
        channels, height, width = self.event_shape
        blocks = x.reshape(x.shape[:-3] + (channels, height // 2, 2, width // 2, 2))
        # The axes of `blocks` are (c, h, dy, w, dx). Bring them to (dy, dx, c, h, w) or (c, dy, dx, h, w).
        axes = (2, 4, 0, 1, 3) if self.order == "space-major" else (0, 2, 4, 1, 3)
        return self._move(blocks, axes).reshape(x.shape[:-3] + self.base_shape)

    def _to_data(self, z: Tensor) -> Tensor:
        channels, height, width = self.event_shape
        space = (height // 2, width // 2)
        if self.order == "space-major":
            blocks, axes = z.reshape(z.shape[:-3] + (2, 2, channels) + space), (2, 3, 0, 4, 1)
        else:
            blocks, axes = z.reshape(z.shape[:-3] + (channels, 2, 2) + space), (0, 3, 1, 4, 2)
        return self._move(blocks, axes).reshape(z.shape[:-3] + self.event_shape)

    @staticmethod
    def _move(blocks: Tensor, axes: tuple[int, ...]) -> Tensor:
        batch = blocks.dim() - 5
        return blocks.permute(*range(batch), *(batch + axis for axis in axes))


class Flatten(Rearrangement):
    """An image ``(C, H, W)``, flattened row-major to a vector ``(C H W,)`` on the latent side."""

    def __init__(self, event_shape: Sequence[int] | int) -> None:
        super().__init__(event_shape, as_event_shape(event_shape).numel())

    def _to_base(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[: x.dim() - len(self.event_shape)] + self.base_shape)

    def _to_data(self, z: Tensor) -> Tensor:
        return z.reshape(z.shape[:-1] + self.event_shape)


class Permute(Rearrangement):
    """Fixed permutation of the channels, or of the features of a vector: ``z[i] = x[permutation[i]]``.

    :param permutation: a permutation of ``0 .. C-1``; a random one by default.
    :raises ValueError: if it is not a permutation.
    """

    permutation: Tensor

    def __init__(self, event_shape: Sequence[int] | int, permutation: Tensor | None = None) -> None:
        super().__init__(event_shape)
        channels = self.event_shape[0]
        if permutation is None:
            permutation = torch.randperm(channels)
        check_tensor(permutation, "permutation", type(self).__name__)
        whole = not (permutation.is_floating_point() or permutation.is_complex())
        if permutation.dim() != 1 or not whole or sorted(permutation.tolist()) != list(range(channels)):
            raise ValueError(
                f"permutation: expected the integers 0..{channels - 1} in some order, got {permutation}"
            )
        self.register_buffer("permutation", permutation.long())

    def _to_base(self, x: Tensor) -> Tensor:
        return x.index_select(-len(self.event_shape), self.permutation)

    def _to_data(self, z: Tensor) -> Tensor:
        return z.index_select(-len(self.event_shape), self.permutation.argsort())


class Flip(Permute):
    """Reverse the order of the channels."""

    def __init__(self, event_shape: Sequence[int] | int) -> None:
        super().__init__(event_shape, torch.arange(as_event_shape(event_shape)[0]).flip(0))
