"""Ctrl-C and SIGTERM: say what is kept, and how to go on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyro_scnf._extras import require

if TYPE_CHECKING:
    from lightning.pytorch.utilities import exceptions
else:
    exceptions = require("lightning.pytorch.utilities.exceptions", "train")

__all__ = ["telling"]


@contextmanager
def telling(what_is_kept: Callable[[], str]) -> Iterator[None]:
    """Let an interrupted run end with ``KeyboardInterrupt`` and a message. Lightning ends it without a word.

    After SIGTERM the message goes to stderr, and the process ends with the usual status, if nothing catches
    ``SystemExit``.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"training was interrupted: {what_is_kept()}") from None
    except exceptions.SIGTERMException:
        print(f"training was ended by SIGTERM: {what_is_kept()}", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(f"training was interrupted: {what_is_kept()}") from None
