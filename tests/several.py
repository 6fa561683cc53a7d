"""Training runs for one process or several. ``torchrun several.py FOLDER`` starts several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from trainee import PAIRED, grouped, make_data, make_model

from pyro_scnf.training import fit

CASES: dict[str, dict[str, Any]] = {
    "gmm": {},
    "flow": {"prior": {"name": "flow", "steps": 1, "width": 6, "blocks": 1}},
    "scaled": {"sizes": True},
    "em-ema": {"guide": "em-ema"},
    "unaveraged": {"ema_decay": None},
    "in pieces": {"minutes": 1e-9},
    "pairs": {"batch_size": 18, "linked": True},
    "no folder": {"out": None, "log": None},
}


def train(
    folder: Path,
    seed: int,
    devices: int,
    prior: Any = "gmm",
    sizes: bool = False,
    linked: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The weights and the result of a run of eleven steps, on this process."""
    data = make_data(validated=True, linked=linked)
    known = {"num_labelled": len(data.labelled[0]), "num_unlabelled": len(data.unlabelled)} if sizes else {}
    model = make_model(data, prior, class_probs="learnable", **known, **(PAIRED if linked else {}))
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
