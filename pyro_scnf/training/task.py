"""One training step, as Lightning wants it told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_scnf._extras import require
from pyro_scnf.metrics import bits_per_dim
from pyro_scnf.models.guides import EMGuide, make_guide
from pyro_scnf.models.semi_supervised import SemiSupervisedModel
from pyro_scnf.objective import elbo
from pyro_scnf.training.batches import Batch, derive_seed
from pyro_scnf.training.schedules import make_optimizer, make_schedule

lightning = require("lightning.pytorch", "train")

__all__ = ["SemiSupervisedTask", "keep_data"]

TERMS = (
    "num_labelled",
    "num_unlabelled",
    "labelled_weight",
    "classification_weight",
    "agreement_weight",
    "balance_weight",
    "purity",
    "final_term_share",
)
"""What of a model makes its loss, besides the parameters."""


def keep_data(x: Tensor) -> Tensor:
    """The default ``augment``: data as they are."""
    return x


class SemiSupervisedTask(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A model and its guide as a ``LightningModule``, for a ``Trainer`` of your own.

    :func:`~pyro_scnf.training.fit` is this, batches and a trainer. Batches are those of
    :class:`~pyro_scnf.training.StepBatches`; noise, too, is drawn by the number of the step, so that a
    run which goes on from a checkpoint is the run that was never stopped. Logged are ``loss`` (nats
    per example), ``grad_norm`` and, on validation data, ``val_nll``, ``val_bits_per_dim`` where ``bins``
    is given, and ``val_error`` (per cent) where their labels are known.

    :param model: an initialised model.
    :param guide: one of :data:`pyro_scnf.GUIDES`, or a guide.
    :param int steps: length of the run, for the schedule.
    :param augment: applied to every training batch; its method ``prepare``, if it has one, to
        validation data.
    :param augment_labelled: applied to labelled rows instead.
    :param bins: grey levels of dequantised data, to report bits per dimension.
    :param settings: other things that a resumed run must have in common with this one.
    :raises RuntimeError: in training, if the loss or its gradient is NaN or infinite; the message names
        the step and the term.
    """

    def __init__(
        self,
        model: SemiSupervisedModel,
        guide: str | Callable[..., Any] = "exact",
        *,
        steps: int,
        optimizer: str = "adamw",
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        schedule: str = "one-cycle",
        warmup: float = 0.0,
        augment: Callable[[Tensor], Tensor] = keep_data,
        augment_labelled: Callable[[Tensor], Tensor] | None = None,
        bins: int | None = None,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.guide = make_guide(guide, model) if isinstance(guide, str) else guide
        # Not a submodule: it holds nothing but the two above, which state_dict would name twice.
        self.objective = [elbo(model, self.guide)]
        self.augment, self.augment_labelled = augment, augment_labelled or augment
        self.bins, self.seed = bins, seed
        self.prepare = getattr(augment, "prepare", keep_data)
        self.optimizer_options: dict[str, Any] = {
            "name": optimizer,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "betas": betas,
        }
        self.schedule_options: dict[str, Any] = {"name": schedule, "steps": steps, "warmup": warmup}
        self.settings = {
            "guide": guide if isinstance(guide, str) else getattr(guide, "__name__", type(guide).__name__),
            "steps": steps,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "betas": list(betas),
            "schedule": schedule,
            "warmup": warmup,
            "seed": seed,
            "augment": _describe(augment),
            "augment_labelled": _describe(self.augment_labelled),
            **{name: getattr(model, name) for name in TERMS},
            **(settings or {}),
        }

    # -- steps ---------------------------------------------------------------------------------
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(derive_seed(self.seed, "noise", batch.step, self.global_rank))
        self.model.set_progress(min(1.0, batch.step / self.schedule_options["steps"]))
        x = None if batch.x is None else self.augment_labelled(batch.x)
        x_unlabelled = None if batch.x_unlabelled is None else self.augment(batch.x_unlabelled)
        arguments = [a for a in (x, batch.y, x_unlabelled) if a is not None]
        options = {} if batch.pairs is None else {"pairs": batch.pairs}
        try:
            loss = self.objective[0](*arguments, **options)
        except ValueError as error:
            term = self._first_bad_term(x, x_unlabelled)
            if term is None:
                raise
            raise self._stopped("scoring failed", term) from error  # Pyro refuses NaN and infinity
        loss = loss / self._examples(x, x_unlabelled)
        if not torch.isfinite(loss):
            term = self._first_bad_term(x, x_unlabelled) or "their sum"
            raise self._stopped(f"the loss is {loss.item()}", term)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=1, sync_dist=True)
        return loss

    def _examples(self, x: Tensor | None, x_unlabelled: Tensor | None) -> int:
        """How many examples the batch stands for, so that the loss is nats per example."""
        model = self.model
        if x is None or x_unlabelled is None:
            return model.num_data or len(x if x_unlabelled is None else x_unlabelled)  # type: ignore[arg-type]
        return (model.num_labelled or len(x)) + (model.num_unlabelled or len(x_unlabelled))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, *labels = batch
        # The same dequantisation every time.
        torch.manual_seed(derive_seed(self.seed, "validation", batch_idx, self.global_rank))
        x = self.prepare(x)
        joint = self.model.flow.class_log_prob(x) + self.model.class_probs.log_probs
        sums = [-joint.logsumexp(-1).double().sum()]
        if labels:
            sums.append((joint.argmax(-1) != labels[0]).double().sum())
        self._validated.append(torch.stack([torch.full_like(sums[0], len(x)), *sums]))

    def on_validation_epoch_start(self) -> None:
        self._validated: list[Tensor] = []

    def on_validation_epoch_end(self) -> None:
        # Lightning would round the mean number of rows a process to an integer.
        total = self.trainer.strategy.reduce(torch.stack(self._validated).sum(0), reduce_op="sum")
        nll, *error = total[1:] / total[0]
        measured = {"val_nll": nll}
        if self.bins is not None:
            measured["val_bits_per_dim"] = bits_per_dim(-nll, self.model.flow.event_shape, self.bins)
        if error:
            measured["val_error"] = 100 * error[0]
        self.log_dict(measured, prog_bar=True, batch_size=1, sync_dist=True)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])  # type: ignore[misc]
        if not torch.isfinite(norm):
            names = [name for name, p in self.model.named_parameters() if not _finite(p.grad)]
            raise RuntimeError(
                f"training stopped at step {self.global_step}: the loss is finite, but not the gradient of "
                f"{', '.join(names[:3]) or 'all parameters together'}; lower learning_rate"
            )
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        self.log("grad_norm", norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if isinstance(self.guide, EMGuide):
            self.guide.update()

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = make_optimizer(parameters=trained, **self.optimizer_options)
        schedule = make_schedule(optimizer=optimizer, **self.schedule_options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- checkpoints ---------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        before = checkpoint.get("settings", {})
        changed = [
            f"{name} {before.get(name)!r} -> {value!r}"
            for name, value in self.settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"resume: the checkpoint is of another run: {'; '.join(changed)}. Give the same settings, or "
                "start anew in another folder"
            )

    # -- what went wrong -----------------------------------------------------------------------
    def _stopped(self, cause: str, term: str) -> RuntimeError:
        return RuntimeError(
            f"training stopped at step {self.global_step}: {cause}; the first term that is not finite is "
            f"{term}. Lower learning_rate or gradient_clip"
        )

    @torch.no_grad()
    def _first_bad_term(self, x: Tensor | None, x_unlabelled: Tensor | None) -> str | None:
        flow = self.model.flow
        for name, parameter in self.model.named_parameters():
            if not _finite(parameter):
                return f"the parameter {name}"
        for kind, rows in (("labelled", x), ("unlabelled", x_unlabelled)):
            if rows is None:
                continue
            if not _finite(rows):
                return f"the {kind} data themselves, after augment"
            z, log_det = flow.transform.inverse_and_ladj(rows)
            z_aux, z_f = z.split([flow.transform.aux_dim, flow.transform.latent_dim], -1)
            if not _finite(log_det):
                return f"the log-determinant of the flow on {kind} data"
            if not _finite(z):
                return f"the latents of {kind} data"
            if flow.aux is not None and not _finite(flow.aux().log_prob(z_aux)):
                return f"log p(z_aux) of {kind} data"
            if not _finite(flow.prior.class_log_prob(z_f.reshape(len(z_f), *flow.latent_shape))):
                return f"log p(z_f | y) of {kind} data"
            if not _finite(self.model.posterior(rows).logits):
                return f"log p(y | x) of {kind} data"
        return None


def _describe(function: Any) -> str:
    """The options of a data class; of another function nothing is known."""
    return repr(function) if is_dataclass(function) else "a function"


def _finite(value: Tensor | None) -> bool:
    return value is None or bool(torch.isfinite(value).all())
