"""Names of the dimensions of all variables of an export, and their values along them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_scnf.posterior.draws import Site, data_plates, over_plates, plate_axes
from pyro_scnf.posterior.named_arrays import SAMPLE, Groups, Variable, name_dims
from pyro_scnf.posterior.rows import SeenRows, blank, cells

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Names"]


class Names:
    """Names of dimensions: ``datum``, ``class``, those of plates, and the user's."""

    def __init__(
        self,
        labels: Mapping[str, Site],
        dims: Mapping[str, Sequence[str]],
        numbers: Mapping[str, Tensor],
        nesting: int,
    ) -> None:
        self.dims, self.nesting = dims, nesting
        sizes = {plate.name: plate.size for label in labels.values() for plate in data_plates(label)}
        self.datum = {plate: "datum" if len(sizes) == 1 else plate for plate in sizes}
        self.sizes = {self.datum[plate]: size for plate, size in sizes.items()}
        self.rows = SeenRows({self.datum.get(plate, plate): rows for plate, rows in numbers.items()})
        self.leads = list({tuple(self.plates(label)): None for label in labels.values()})
        hidden = [name for name, label in labels.items() if "_enumerate_dim" in label["infer"]]
        self.classes: dict[str, tuple[str, Tensor]] = {
            name: ("class" if len(hidden) == 1 else f"{name}_class", _support(labels[name]))
            for name in hidden
        }

    def check_sites(
        self, latents: Collection[str], others: Collection[str], sites: Mapping[str, Site]
    ) -> None:
        """Raise if two variables would have one name, or if a variable or a plate has that of a dimension.

        :param latents: the sites with draws.
        :param others: the other sites to export.
        """
        for name in self.classes:
            if f"{name}_prob" in {*latents, *others}:
                raise ValueError(
                    f"site {name + '_prob'!r} has the name of the class probabilities of the label {name!r}; "
                    "rename the site"
                )
        classes = {dim: len(values) for dim, values in self.classes.values()}
        for name in [*latents, *others]:
            in_posterior = name in latents or name in self.classes
            if name in {*SAMPLE, *self.sizes} or (name in classes and in_posterior):
                raise ValueError(f"site {name!r} has the name of a dimension of the export; rename the site")
            for plate in data_plates(sites[name]):
                dim = self.datum.get(plate.name, plate.name)
                is_other = plate.name not in self.datum and dim in self.sizes
                if dim in SAMPLE or is_other or classes.get(dim, plate.size) != plate.size:
                    raise ValueError(
                        f"plate {plate.name!r} has the name of a dimension of the export; rename the plate"
                    )

    def __call__(self, name: str, values: Tensor, lead: Sequence[str], inner: Sequence[str] = ()) -> Variable:
        return self.rows.select(name_dims(name, values, lead, inner, self.dims))

    def of_data(self, name: str, site: Site, values: Tensor, lead: Sequence[str] = ()) -> Variable:
        """Values ``(*lead, *plates, *event)`` of an observed site, NaN where they are masked."""
        dims, event_dim = self.plates(site), site["fn"].event_dim
        mask = cells(site, self.nesting).to(values.device)
        mask = mask.expand(values.shape[len(lead) : values.dim() - event_dim])
        if not self.rows.select((dims, mask.cpu().numpy()))[1].all():
            values = blank(values, mask, event_dim)
        return self(name, values, [*lead, *dims])

    def observed(self, name: str, site: Site) -> Variable:
        """The observed values of a site."""
        return self.of_data(
            name, site, over_plates(site["value"], site, self.nesting, site["fn"].event_dim)[0]
        )

    def plates(self, site: Site) -> list[str]:
        """Names of the dimensions of a site's plates."""
        return [self.datum.get(plate.name, plate.name) for plate in data_plates(site)]

    def of_latent(self, name: str, site: Site, draws: Tensor, shape: torch.Size) -> Variable:
        """Draws ``(S, *batch, *event)`` of a latent, with one dimension for each plate of its site.

        Pyro gives them further dimensions of size 1, where the site has no plate. They are left out.

        :param shape: numbers of chains and of draws.
        """
        start = max(draws.dim() - site["fn"].event_dim, 1)
        count, batch, event = draws.shape[:1], draws.shape[1:start], draws.shape[start:]
        axes = plate_axes(site, len(batch))
        if axes is None or any(batch[dim] > 1 for dim in set(range(-len(batch), 0)) - set(axes)):
            return self(name, draws.unflatten(0, shape), SAMPLE)  # dimensions that no plate declares
        draws = draws.reshape(count + tuple(batch[axis] for axis in axes) + event)
        sizes = tuple(
            max(plate.size, batch[axis]) for plate, axis in zip(data_plates(site), axes, strict=True)
        )
        return self(name, draws.expand(count + sizes + event).unflatten(0, shape), SAMPLE, self.plates(site))

    def row_dims(self, values: Tensor) -> list[str]:
        """Names of a label's plates, if an array begins with their sizes and no other label's fit too."""
        leads = [d for d in self.leads if values.shape[: len(d)] == tuple(self.sizes[k] for k in d)]
        return list(leads[0]) if len(leads) == 1 else []

    def class_coords(self, class_names: Sequence[str] | None) -> dict[str, ArrayLike]:
        """The names of the classes along each dimension of classes.

        :raises ValueError: if they are no names, or more or fewer than a label has values, or if no label is
            hidden.
        """
        if class_names is None:
            return {}
        given = None if isinstance(class_names, str) else list(class_names)
        if given is None or not all(isinstance(name, str) for name in given) or len(set(given)) < len(given):
            raise ValueError(f"class_names={class_names!r}: expected a different word for each class")
        if not self.classes:
            raise ValueError("class_names: no label is hidden, so no variable has a dimension of classes")
        for label, (dim, values) in self.classes.items():
            if len(values) != len(given):
                raise ValueError(
                    f"class_names: {len(given)} names, but the label {label!r} has {len(values)} values. For "
                    f"labels of several kinds, give names by dimension, coords={{{dim!r}: names}}"
                )
        return {dim: given for dim, _ in self.classes.values()}

    def check(self, groups: Groups) -> None:
        """Raise if the user named dimensions of variables that do not exist, or an array like a dimension."""
        for owner, taken in (("constant_data", [*self.sizes]), ("sample_stats", SAMPLE)):
            for name in groups[owner].keys() & set(taken):
                raise ValueError(
                    f"{owner}: {name!r} is the name of a dimension of the export; give the array another name"
                )
        variables = {name for group in groups.values() for name in group}
        unknown = sorted(self.dims.keys() - variables)
        if unknown:
            raise ValueError(f"dims: no such variables {unknown}; there are {sorted(variables)}")


def _support(label: Site) -> Tensor:
    """The values of an enumerated label, ``(K,)``: 0 to K - 1 if a value is not a scalar."""
    value, dim = label["value"], label["infer"]["_enumerate_dim"] - label["fn"].event_dim
    count = value.shape[dim]
    return value.flatten().cpu() if value.numel() == count else torch.arange(count)
