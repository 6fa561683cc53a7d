"""Draws from predictive distributions, as Pyro's ``Predictive`` returns them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scnf.posterior.chains import as_tensors
from pyro_scnf.posterior.draws import Site, count_draws, data_plates, over_plates, plate_axes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["PredictiveReader"]


class PredictiveReader:
    """Reads draws of the sites of a model.

    :param sites: the sites of a run on the observed data.
    :param drawn: draws of the posterior.
    :param observed: the values of the observed sites.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        drawn: Mapping[str, Tensor],
        observed: Mapping[str, Tensor],
        nesting: int,
    ) -> None:
        self.sites, self.drawn, self.observed, self.nesting = sites, drawn, observed, nesting

    def __call__(
        self, owner: str, given: Mapping[str, ArrayLike] | None, shape: torch.Size | None = None
    ) -> dict[str, Tensor]:
        """Draws ``(S, *plates, *event)`` of the latents, the data and the labels.

        Factors, and functions of other sites, are left out.

        :param owner: the argument of the user, for messages.
        :param shape: chains and draws of the posterior to which these draws belong. The latents are left out
            then, after a look whether they are those of the posterior.
        :raises ValueError: for unknown names, for other numbers of draws or of rows, for draws of another
            posterior, and if nothing was drawn. A part of the data may be given, such as known labels.
        """
        if given is None:
            return {}
        tensors = {name: value for name, value in as_tensors(given, owner).items() if name != "_RETURN"}
        if not tensors:
            raise ValueError(f"{owner}: no draws; give what Predictive(model, ...)(...) returns")
        unknown = sorted(tensors.keys() - self.sites.keys())
        if unknown:
            raise ValueError(f"{owner}: no such sites {unknown}; the model has {list(self.sites)}")
        count = count_draws(tensors, owner)
        if shape is not None and count != shape.numel():
            raise ValueError(
                f"{owner}: {count} draws, but {shape.numel()} in posterior, {shape[0]} chains of {shape[1]}; "
                "give one for each, chain after chain, as Predictive(model, draws)(...) returns them"
            )
        found = {}
        for name, values in tensors.items():
            if self._is_function(name):
                continue
            values = self._over_plates(owner, name, values)
            if name in self.drawn and shape is not None:
                self._check_same_draws(owner, name, values)
                continue
            found[name] = values
        predicted = [name for name in found if name in self.observed]
        varied = any(len(self.observed[name].unique()) > 1 for name in predicted)
        if varied and all(self._is_the_data(name, found[name]) for name in predicted):
            raise ValueError(
                f"{owner}: all draws of {', '.join(map(repr, predicted))} are the observed data, because "
                "Predictive ran the model on them; let it draw them, as in Predictive(model, draws)(None)"
            )
        return found

    def _is_function(self, name: str) -> bool:
        """Whether a site holds no draws of its own, or is a part of a label that ``obs_mask`` has split."""
        site = self.sites[name]
        if site["infer"].get("_deterministic"):
            return f"{name}_unobserved" not in self.sites
        whole = self.sites.get(name.removesuffix("_unobserved").removesuffix("_observed"))
        is_part = whole is not None and whole is not site and bool(whole["infer"].get("_deterministic"))
        return is_part or isinstance(site["fn"], dist.Unit)

    def _over_plates(self, owner: str, name: str, values: Tensor) -> Tensor:
        """Draws with one dimension for each plate of a site. Other dimensions of the draws have size 1."""
        site = self.sites[name]
        event_dim = site["fn"].event_dim
        batch = values.shape[1 : values.dim() - event_dim]
        plates, axes = data_plates(site), plate_axes(site, len(batch))
        event = site["fn"].event_shape
        for plate, axis in zip(plates, axes or [], strict=bool(axes)):
            if plate.size > 0 and batch[axis] != plate.size:
                raise ValueError(
                    f"{owner}: draws of {name!r} have {batch[axis]} rows along plate {plate.name!r}, which "
                    f"has {plate.size} here; predict these rows"
                )
        if (
            axes is None
            or any(batch[dim] > 1 for dim in set(range(-len(batch), 0)) - set(axes))
            or values.shape[values.dim() - event_dim :] != event
        ):
            expected = [f"{plate.size} ({plate.name})" for plate in plates]
            raise ValueError(
                f"{owner}: draws of {name!r} have shape {tuple(values.shape)}, expected "
                f"({', '.join([str(len(values)), *expected, *map(str, event)])})"
            )
        return values.reshape(values.shape[:1] + tuple(batch[axis] for axis in axes) + event)

    def _check_same_draws(self, owner: str, name: str, values: Tensor) -> None:
        posterior = self.drawn[name]
        if values.numel() != posterior.numel() or not torch.allclose(
            values.to(posterior), posterior.reshape(values.shape)
        ):
            raise ValueError(
                f"{owner}: its draws of {name!r} are not those of posterior, so the predictions belong to "
                "other draws; give Predictive the draws of posterior"
            )

    def _is_the_data(self, name: str, values: Tensor) -> bool:
        """Whether all draws of a site are the data, because the model was given them."""
        site = self.sites[name]
        data = over_plates(self.observed[name], site, self.nesting, site["fn"].event_dim)[0]
        same = (values == data.to(values.device)) | data.isnan().to(values.device)
        return bool(same.all())
