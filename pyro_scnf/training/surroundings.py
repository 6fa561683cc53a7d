"""State of the process that belongs to the user: random generators, signal handlers, threads and switches."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from pyro_scnf._checks import validation_kept
from pyro_scnf._param_store import param_store_kept
from pyro_scnf._random import seeded

__all__ = ["noise", "process_kept"]


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Leave the global generators of Python, NumPy, PyTorch's CPU and ``device`` as they were before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices, device_type="cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def noise(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch. Afterwards they are as they were before.

    Python and NumPy are seeded too, so that an ``augment`` which draws from them gives the same rows when a
    run is resumed.
    """
    with generators_kept(device), seeded(seed, device):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


@contextmanager
def process_kept(device: torch.device) -> Iterator[None]:
    """Put back whatever a run changes in the process.

    Lightning changes the current GPU, the number of threads and the handlers of signals, and switches
    gradients on. ``torch.compile`` switches the validation of distributions off. Loaders draw from the global
    generators. A loss puts the parameters of model and guide into Pyro's store.
    """
    threads = torch.get_num_threads()
    in_main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(torch.cuda.current_device()))
        stack.enter_context(generators_kept(device))
        stack.enter_context(validation_kept())
        stack.enter_context(param_store_kept())
        stack.enter_context(torch.enable_grad())
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            for number, handler in handlers.items():
                if in_main and handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
