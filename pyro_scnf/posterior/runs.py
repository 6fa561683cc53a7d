"""Runs of a model for posterior draws: for all of them at once, or draw by draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyro_scnf._warn import warn
from pyro_scnf.posterior.draws import count_draws
from pyro_scnf.posterior.tables import LabelTable, tabulate

__all__ = ["Runs"]

ERRORS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
"""What a model may raise because of its batch shapes."""


class Runs:
    """Runs of one model.

    :param parallel: whether it runs for all draws at once; ``None`` if it is to be tried.
    """

    def __init__(
        self,
        model: Callable[..., object],
        args: Sequence[object],
        nesting: int,
        parallel: bool | None,
    ) -> None:
        self.model, self.args, self.nesting, self.parallel = model, args, nesting, parallel
        self.compared = set[tuple[str, int]]()

    def tables(self, draws: Mapping[str, Tensor], site: str) -> list[LabelTable]:
        """The tables of a label from all draws: one, or one for each draw.

        :raises ValueError: if runs with the same draws differ, and wherever the model raises it.
        """
        failure = ""
        if self.parallel is None and count_draws(draws) > 2:
            table, failure = self._try_all(draws, site)
            if table is not None:
                return [table]
            self.parallel = False
        if self.parallel:
            return [self._run(draws, site, parallel=True)]
        tables = [self._run_one(draws, site, draw) for draw in range(count_draws(draws))]
        first = tables[0].observed
        if any(first.differs(table.observed) for table in tables):  # because of the draws, or by chance?
            first.check_repeated(self._run_one(draws, site, 0).observed)
        if failure:  # if the run of a single draw has failed too, its error is the one to see
            warn(
                f"the model {self._name!r} does not broadcast over posterior draws ({failure}), so it ran "
                "draw by draw, which takes longer. A label should pick from the last dimensions of a table: "
                "Vindex(loc)[..., y], not loc[y]. parallel=False runs it draw by draw without this warning"
            )
        return tables

    def _try_all(self, draws: Mapping[str, Tensor], site: str) -> tuple[LabelTable | None, str]:
        """The table of all draws, or ``None`` and the reason why not.

        A model may broadcast to a wrong result without an error, where numbers of draws, rows and labels
        agree. The first and the last draw are compared with runs of their own, because ``loc[0]`` is right
        for the first draw, and ``loc[-1]`` for the last.
        """
        last = count_draws(draws) - 1
        try:
            table = self._run(draws, site, parallel=True)
        except torch.OutOfMemoryError:
            raise
        except ERRORS as error:
            return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if (site, last) in self.compared:
            return table, ""
        for draw in (0, last):
            alone = self._run_one(draws, site, draw)
            if difference := table.difference(draw, alone):
                self._check_repeated(alone, self._run_one(draws, site, draw))
                return None, f"for one draw by itself, the results differ by {difference:.3g} nats"
        self.compared.add((site, last))
        return table, ""

    def _run(self, draws: Mapping[str, Tensor], site: str, parallel: bool) -> LabelTable:
        return tabulate(self.model, self.args, draws, site, self.nesting, parallel)

    def _run_one(self, draws: Mapping[str, Tensor], site: str, draw: int) -> LabelTable:
        one = {name: values[draw : draw + 1] for name, values in draws.items()}
        return self._run(one, site, parallel=False)

    def _check_repeated(self, first: LabelTable, second: LabelTable) -> None:
        """Raise if two runs with the same draw differ."""
        first.observed.check_repeated(second.observed)
        if first.difference(0, second):
            raise ValueError(
                f"model: {self._name!r} gives other log-probabilities in another run with the same draws, "
                "because it draws numbers itself; draw them once, outside of the model, or make them sites. "
                "parallel=True takes one run for all draws as it is"
            )

    @property
    def _name(self) -> str:
        return getattr(self.model, "__name__", type(self.model).__name__)
