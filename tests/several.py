"""Training runs for one process or several. ``torchrun several.py FOLDER`` starts several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trainee import BY_EM, EVERY_TERM, PAIRED, grouped, make_data, make_model

from pyro_scnf.datasets import Augment
from pyro_scnf.terms import Balance, Classification, Energy
from pyro_scnf.training import fit


class Views(Augment):
    """Two fixed views of unlabelled rows, in turn.

    Random views would not do, because the noise of each process is its own.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls % 2 else 0.9 * x + 0.1 * x.flip(-1)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def labelled(self, x: Tensor) -> Tensor:
        return x


CASES: dict[str, dict[str, Any]] = {
    "gmm": {},
    "flow": {"prior": {"name": "flow", "steps": 1, "width": 6, "blocks": 1}},
    "scaled": {"sizes": True},
    "em-ema": {"guide": "em-ema"},
    "unaveraged": {"ema_decay": None},
    "in pieces": {"minutes": 1e-9},
    "pairs": {"batch_size": 18, "linked": True, "terms": PAIRED},
    "evidence": {"evidence": 0, "terms": (Classification(2.0),)},
    "taught by evidence": {"evidence": 0, "sizes": True, "terms": (Classification(2.0, targets="evidence"),)},
    "all sums over rows": {
        "batch_size": 18,
        "linked": True,
        "evidence": 0,
        "sizes": True,
        "guide": "em",
        "terms": tuple(term for term in EVERY_TERM if not term.per_process),
    },
    "balance": {"terms": (Balance(20.0),)},
    "energy": {"continuous": True, "sizes": True, "terms": (Energy(0.1),)},
    "mixture by EM": {"prior": BY_EM, "class_probs": "em", "sizes": True},
    "no folder": {"out": None, "log": None},
}


def train(
    folder: Path,
    seed: int,
    devices: int,
    prior: Any = "gmm",
    sizes: bool = False,
    linked: bool = False,
    evidence: int | None = None,
    class_probs: str = "learnable",
    continuous: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The weights and the result of a run of eleven steps, on this process."""
    data = make_data(validated=True, linked=linked, evidence=evidence)
    known = {"num_labelled": len(data.labelled[0]), "num_unlabelled": len(data.unlabelled)} if sizes else {}
    model = make_model(data, prior, continuous, class_probs=class_probs, **known)
    augment = Views() if any("view" in term.needs for term in options.get("terms", ())) else None
    options = {"out": folder, "log": "csv", "batch_size": 16, **options}
    with torch.no_grad():  # ranks begin with different weights; those of rank 0 must win
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    result = None
    while result is None or not result.finished:
        result = fit(
            model,
            data,
            steps=11,
            labelled_batch_size=6,
            validate_every=4,
            augment=augment,
            progress=False,
            resume="minutes" in options,
            **grouped(devices=devices, **options),
        )
    return {"weights": model.state_dict(), **vars(result)}


def main(folder: Path, devices: int, rank: int = 0) -> None:
    # In double precision a different order of sums makes no visible difference.
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    for name, options in CASES.items():
        found = train(folder / name, seed=rank, devices=devices, **options)
        torch.save(found, folder / f"{name}.{found['rank']}.pt")


if __name__ == "__main__":
    import os

    main(Path(sys.argv[1]), devices=2, rank=int(os.environ["RANK"]))
