"""Training a partly labelled model with Lightning (extra ``train``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf._shapes import reference_tensor
from pyro_scnf.datasets import SemiSupervisedData
from pyro_scnf.guides import EMGuide, make_guide
from pyro_scnf.model import SemiSupervisedModel
from pyro_scnf.objective import elbo

lightning = require("lightning.pytorch", "train")
callbacks = require("lightning.pytorch.callbacks", "train")

__all__ = ["FitResult", "fit", "keep_data"]


def keep_data(x: Tensor) -> Tensor:
    """The default ``augment``: data as they are."""
    return x


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` did.

    :ivar int best_step: step whose averaged weights had the lowest validation NLL; the model has them.
    :ivar float best_nll: that NLL, nats per example.
    :ivar int steps: optimiser steps taken in all.
    :ivar float seconds: wall-clock time of this call.
    """

    best_step: int
    best_nll: float
    steps: int
    seconds: float


class _Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """One training step: labelled and unlabelled rows, drawn by the number of the step."""

    def __init__(
        self,
        model: SemiSupervisedModel,
        guide: str,
        data: SemiSupervisedData,
        *,
        steps: int,
        batch_size: int,
        labelled_batch_size: int | None,
        learning_rate: float,
        weight_decay: float,
        augment: Callable[[Tensor], Tensor],
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.guide = make_guide(guide, model)
        # Not a submodule: it holds nothing but the two above, which state_dict would name twice.
        self.objective = [elbo(model, self.guide)]
        self.steps, self.seed, self.augment = steps, seed, augment
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.rows = (labelled_batch_size, batch_size)
        x_labelled, y_labelled = data.labelled
        # Not buffers, which weight averaging would copy at every step.
        self.tensors: dict[str, Any] = {
            "x": x_labelled,
            "y": y_labelled,
            "x_unlabelled": data.unlabelled,
            "x_val": data.x_val,
        }

    def on_fit_start(self) -> None:
        self.tensors = {name: value.to(self.device) for name, value in self.tensors.items()}

    @staticmethod
    def _choose(x: Tensor, rows: int | None) -> Tensor | slice:
        if rows is None or rows >= len(x):
            return slice(None)
        return torch.randperm(len(x), device=x.device)[:rows]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # What is drawn depends on the step alone, so that a resumed run goes on as if never stopped.
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)
        labelled = self._choose(self.tensors["x"], self.rows[0])
        unlabelled = self._choose(self.tensors["x_unlabelled"], self.rows[1])
        x, y = self.augment(self.tensors["x"][labelled]), self.tensors["y"][labelled]
        x_unlabelled = self.augment(self.tensors["x_unlabelled"][unlabelled])
        try:
            loss = self.objective[0](x, y, x_unlabelled)
        except ValueError as error:  # Pyro refuses to score what has become NaN
            cause = str(error).splitlines()[0]
            raise RuntimeError(f"training stopped at step {self.global_step}: {cause}") from error
        loss = loss / ((self.model.num_labelled or len(x)) + (self.model.num_unlabelled or len(x_unlabelled)))
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"training stopped at step {self.global_step}: the loss is {loss.item()}; lower "
                "learning_rate or gradient_clip"
            )
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(x))
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        if isinstance(self.guide, EMGuide):
            self.guide.update()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.seed)  # the same dequantisation every time
        nll = -self.model.log_prob(self.augment_val(self.tensors["x_val"])).mean()
        self.log("val_nll", nll, prog_bar=True, batch_size=len(self.tensors["x_val"]))

    def augment_val(self, x: Tensor) -> Tensor:
        """Validation data are only prepared, not perturbed."""
        prepare = getattr(self.augment, "prepare", keep_data)
        return prepare(x)

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.99),
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            self.learning_rate,
            total_steps=self.steps,
            pct_start=max(0.1, 1.5 / self.steps),  # a rise of one step would divide by its length, 0
        )
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Bar(callbacks.TQDMProgressBar):  # type: ignore[misc, name-defined]
    """One bar over all steps; validations show in it as a number."""

    def init_validation_tqdm(self) -> Any:
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar


def fit(
    model: SemiSupervisedModel,
    data: SemiSupervisedData,
    *,
    guide: str = "exact",
    steps: int = 1000,
    batch_size: int = 256,
    labelled_batch_size: int | None = None,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    ema_decay: float = 0.995,
    gradient_clip: float = 5.0,
    augment: Callable[[Tensor], Tensor] = keep_data,
    validate_every: int = 50,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    device: str = "cpu",
) -> FitResult:
    r"""Train ``model`` in place; it ends with the averaged weights of the best validation NLL.

    Data stay on the device; batches are drawn by step number, so a run that was killed and is
    resumed goes on exactly as it would have. AdamW, one-cycle schedule, exponential moving average
    of the weights, gradient clipping, checkpoints every ``validate_every`` steps.

    :param model: an initialised model (``model.initialize``).
    :param data: with ``x_val`` held out (:meth:`~pyro_scnf.datasets.SemiSupervisedData.hold_out`).
    :param guide: one of :data:`pyro_scnf.GUIDES`.
    :param int steps: optimiser steps.
    :param int batch_size: unlabelled rows a step.
    :param labelled_batch_size: labelled rows a step; all by default.
    :param augment: applied to every training batch, for example jitter or dequantisation; where
        validation data need preparing too, it has a method ``prepare`` for that.
    :param out: folder of the checkpoints ``last.ckpt`` and ``best.ckpt``; a temporary one by default.
    :param bool resume: go on from ``out/last.ckpt`` if there is one.
    :param bool progress: show a progress bar.
    :param str device: ``"cpu"`` or ``"cuda"``.
    :raises ValueError: without held-out data.
    :raises RuntimeError: if the loss becomes NaN or infinite; ``out`` keeps the last checkpoints.
    """
    if data.x_val is None:
        raise ValueError("data: no x_val; hold some unlabelled rows out with data.hold_out(size)")
    started, home = time.perf_counter(), reference_tensor(model).device
    task = _Task(
        model,
        guide,
        data,
        steps=steps,
        batch_size=batch_size,
        labelled_batch_size=labelled_batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        augment=augment,
        seed=seed,
    )
    with TemporaryDirectory() as scratch:
        folder = Path(scratch if out is None else out)
        checkpoint = callbacks.ModelCheckpoint(
            folder, "best", monitor="val_nll", save_last=True, enable_version_counter=False
        )
        average = callbacks.EMAWeightAveraging(
            device=device, decay=ema_decay, update_starting_at_step=min(steps // 10, 100), use_buffers=False
        )
        bar = [_Bar(refresh_rate=10)] if progress else []
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            callbacks=[checkpoint, average, *bar],
            logger=False,
            gradient_clip_val=gradient_clip,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            val_check_interval=min(validate_every, steps),
        )
        last = folder / "last.ckpt"
        numbers: Any = range(steps)  # in place of batches: the task knows what is in which
        trainer.fit(
            task,
            torch.utils.data.DataLoader(numbers, batch_size=None),
            torch.utils.data.DataLoader(numbers[:1], batch_size=None),
            ckpt_path=last if resume and last.exists() else None,
        )
        best = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)
        prefix = "model."
        model.load_state_dict(
            {k.removeprefix(prefix): v for k, v in best["state_dict"].items() if k.startswith(prefix)}
        )
        model.to(home)  # Lightning leaves it on the CPU
        assert checkpoint.best_model_score is not None
        return FitResult(
            best_step=int(best["global_step"]),
            best_nll=float(checkpoint.best_model_score),
            steps=int(trainer.global_step),
            seconds=time.perf_counter() - started,
        )
