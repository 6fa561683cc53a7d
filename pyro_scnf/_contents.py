"""The values that tensors had, to notice a change that PyTorch does not count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Contents"]


class Contents:
    """The values that tensors had, and views of the tensors to compare them with.

    A view shows what is in the memory of its tensor now. It is made once, because hundreds of small calls
    would take longer than the comparison. The caller checks that no tensor has moved to other memory since.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        views: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self.places = self._places(tensors)
        self.strided = [t.detach() for t in tensors if not t.is_contiguous()]
        for t in tensors:
            if t.is_contiguous():
                views.setdefault((t.dtype, t.device), []).append(t.detach().view(-1))
        self.views = list(views.values())
        self.values = [t.clone() for t in self._now()]

    def same(self) -> bool:
        """Whether the tensors still have the values that they had."""
        return all(map(torch.equal, self.values, self._now()))

    def of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the contents of ``tensors``, and they still have them."""
        return self.places == self._places(tensors) and self.same()

    @staticmethod
    def _places(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
        return [(id(t), t.data_ptr(), t.shape, t.stride()) for t in tensors]

    def _now(self) -> list[Tensor]:
        return [*(torch.cat(v) if len(v) > 1 else v[0] for v in self.views), *self.strided]
