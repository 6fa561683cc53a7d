"""A named check, and running all that apply to a member."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Generic, TypeVar

import pyro
import torch

from pyro_scnf.testing.case import AnyCase, Trait

__all__ = ["Check", "ConformanceError", "applicable", "run_all", "table"]

C = TypeVar("C", bound=AnyCase[object])
D = TypeVar("D", bound=AnyCase[object])


class ConformanceError(AssertionError):
    """A member failed one or several checks.

    :ivar str member: the member in words.
    :ivar dict failures: the reason by name of check.
    """

    def __init__(self, member: str, failures: dict[str, str]) -> None:
        super().__init__(member, failures)
        self.member, self.failures = member, failures

    def __str__(self) -> str:
        lines = [f"{name}: {reason}" for name, reason in self.failures.items()]
        if len(lines) == 1:
            return f"{self.member} fails the check {lines[0]}"
        return "\n  ".join([f"{self.member} fails {len(lines)} checks:", *lines])


@dataclass(frozen=True)
class Check(Generic[C]):
    """One named check: call it with a case.

    A check that does not apply to the case returns at once, see :func:`applicable`. A call leaves the random
    number generators, the default dtype, Pyro's validation flags and its parameter store as they were.

    :param body: a function of the case. It raises an error if the member fails.
    :param needs: what the member must have for the check to apply.
    :param bool gate: whether the other checks are left out after this one has failed.
    :raises ConformanceError: if the member fails.
    """

    body: Callable[[C], None]
    needs: frozenset[Trait] = frozenset()
    gate: bool = False

    @property
    def name(self) -> str:
        """Name of the check: the name of its function."""
        return self.body.__name__

    def __call__(self, case: C) -> None:
        __tracebackhide__ = True
        with isolated((zlib.crc32(self.name.encode()) + case.seed) % 2**32):
            if self.name in case.skip or not all(case.has(trait) for trait in self.needs):
                return
            try:
                self.body(case)
            except Exception as error:
                raise ConformanceError(_describe(case), {self.name: _reason(error)}) from error

    def seen_as(self, view: Callable[[D], C]) -> Check[D]:
        """The same check for cases of another kind. ``view`` translates them."""

        def body(case: D) -> None:
            self.body(view(case))

        body.__name__, body.__doc__ = self.name, self.body.__doc__
        return Check(body, self.needs, self.gate)


def table(*checks: Check[C]) -> dict[str, Check[C]]:
    """Checks by name."""
    return {check.name: check for check in checks}


def applicable(checks: Mapping[str, Check[C]], case: C) -> list[str]:
    """Names of the checks in a table that apply to ``case``.

    Checks of contexts apply to conditional transforms only, and checks of parameters apply to members with
    parameters only. Checks named in ``case.skip`` do not apply.

    :raises ValueError: if ``case.skip`` names a check that the table does not hold.
    """
    unknown = sorted(set(case.skip) - set(checks))
    if unknown:
        raise ValueError(f"skip={unknown}: expected names of checks, {', '.join(checks)}")
    with isolated(case.seed):
        needed = {trait for check in checks.values() for trait in check.needs}
        traits = {trait for trait in needed if case.has(trait)}
    return [name for name, check in checks.items() if check.needs <= traits and name not in case.skip]


def run_all(checks: Mapping[str, Check[C]], case: C) -> None:
    """Run every check of a table that applies to ``case``, in order. Stop after a gate that fails.

    :raises ConformanceError: if checks fail. Its message holds the reason of each.
    """
    __tracebackhide__ = True
    errors = []
    for name in applicable(checks, case):
        try:
            checks[name](case)
        except ConformanceError as error:
            errors.append(error)
            if checks[name].gate:
                break
    if errors:
        failures = {name: reason for error in errors for name, reason in error.failures.items()}
        raise ConformanceError(errors[0].member, failures) from errors[0].__cause__


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Set a known global state inside, and restore the former one afterwards.

    Inside, random numbers start at ``seed``, the default dtype is float32, gradients and Pyro's validation
    are on, and Pyro's parameter store is empty.
    """
    dtype, state = torch.get_default_dtype(), pyro.util.get_rng_state()
    devices = range(torch.cuda.device_count())
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        pyro.validation_enabled(True),
        pyro.get_param_store().scope(),
    ):
        try:
            torch.set_default_dtype(torch.float32)
            pyro.set_rng_seed(seed)
            yield
        finally:
            torch.set_default_dtype(dtype)
            pyro.util.set_rng_state(state)


def _describe(case: AnyCase[object]) -> str:
    try:
        return case.describe()
    except Exception:
        return "The member"  # ``build`` fails, and the reason of the check says why


def _reason(error: Exception) -> str:
    """What went wrong, on one line, since some errors of Pyro have hundreds of lines."""
    text = shorten(str(error), 500)
    return text if text and isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
