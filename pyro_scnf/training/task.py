"""Training and validation steps, as a Lightning module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_scnf._extras import require
from pyro_scnf._spec import describe
from pyro_scnf.datasets.augment import as_augment
from pyro_scnf.metrics import bits_per_dim
from pyro_scnf.models import SemiSupervisedModel, make_guide, update_after_step
from pyro_scnf.objective import elbo
from pyro_scnf.terms import Terms, active, needs_of
from pyro_scnf.training.batches import Batch, derive_seed
from pyro_scnf.training.diagnosis import first_bad_part, first_bad_term, is_finite
from pyro_scnf.training.options import Optimisation, differences, plain
from pyro_scnf.training.schedules import make_optimizer, make_schedule

if TYPE_CHECKING:
    import lightning.pytorch as lightning
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
else:
    lightning = require("lightning.pytorch", "train")

__all__ = ["SemiSupervisedTask"]


class SemiSupervisedTask(lightning.LightningModule):
    """A model and its guide as a ``LightningModule``, for a ``Trainer`` of your own.

    :func:`~pyro_scnf.training.fit` consists of this task, batches and a trainer. The task takes the batches
    of :class:`~pyro_scnf.training.StepBatches`. The noise of a step depends only on ``seed`` and the number
    of the step, so a resumed run gives the result of an uninterrupted one. The task logs ``loss`` (nats per
    example), the parts of the loss if there are training terms, and ``grad_norm``. On validation data it logs
    ``val_nll``, ``val_error`` (per cent) if the labels are known, and ``val_bits_per_dim`` if ``augment`` has
    ``bins``.

    :param model: an initialised model.
    :param guide: a word of :data:`pyro_scnf.GUIDES`, or a guide of your own.
    :param terms: training terms, see :func:`~pyro_scnf.terms.make_terms`.
    :param Optimisation optimisation: optimiser and schedule. Clipping and averaging are set in the trainer.
    :param int steps: length of the run, for the schedule.
    :param augment: see :class:`~pyro_scnf.datasets.Augment`.
    :param int seed: seed of all noise.
    :param settings: further settings, by name. A run resumes from a checkpoint only if it has the same ones.
    :raises RuntimeError: in training, if the loss or its gradient is NaN or infinite. The message names
        the step and the term.
    """

    def __init__(
        self,
        model: SemiSupervisedModel,
        guide: str | Callable[..., object] = "exact",
        optimisation: Optimisation | None = None,
        *,
        terms: Terms = (),
        steps: int,
        augment: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.guide = make_guide(guide, model) if isinstance(guide, str) else guide
        # Keep it in a list. As a submodule it would put model and guide into state_dict a second time.
        self.objective = [elbo(model, self.guide, terms)]
        self.optimisation = Optimisation() if optimisation is None else optimisation
        self.steps, self.seed = steps, seed
        self.augment = as_augment(augment)
        flow = model.flow
        compared: dict[str, object] = {
            "guide": guide,
            "terms": {name: repr(term) for name, term in self.objective[0].terms.items()},
            "steps": steps,
            "optimisation": self.optimisation,
            "seed": seed,
            # The options of a function are not known, so it is not compared.
            "augment": augment if augment is None or is_dataclass(augment) else "a function",
            "transform": describe(flow.transform) or type(flow.transform),
            "prior": describe(flow.prior) or type(flow.prior),
            "learn_class_probs": model.class_probs.learnable,
            **model.options,
            **(settings or {}),
        }
        self.settings = {name: plain(value) for name, value in compared.items()}

    # -- steps ---------------------------------------------------------------------------------
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(derive_seed(self.seed, "noise", batch.step, self.global_rank))
        objective, progress = self.objective[0], min(1.0, batch.step / self.steps)
        x = None if batch.x is None else self.augment.labelled(batch.x)
        x_unlabelled = None if batch.x_unlabelled is None else self.augment(batch.x_unlabelled)
        arguments = [a for a in (x, batch.y, x_unlabelled) if a is not None]
        options = {"pairs": batch.pairs, "label_log_prior": batch.label_log_prior}
        if batch.x_unlabelled is not None and "view" in needs_of(active(objective.terms, progress)):
            options["view"] = self.augment(batch.x_unlabelled)
        given = {name: value for name, value in options.items() if value is not None}
        try:
            loss: Tensor = objective(*arguments, **given, progress=progress)
        except ValueError as error:
            term = first_bad_term(self.model, x, x_unlabelled)
            if term is None:
                raise
            raise self._stopped("scoring failed", term) from error  # Pyro refuses NaN and infinity
        examples = self._examples(x, x_unlabelled)
        loss = loss / examples
        if not torch.isfinite(loss):
            term = first_bad_term(self.model, x, x_unlabelled) or first_bad_part(objective.parts)
            raise self._stopped(f"the loss is {loss.item()}", term)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=1, sync_dist=True)
        if objective.terms:
            for name, part in objective.parts.items():
                self.log(name, part / examples, batch_size=1, sync_dist=True)
        return loss

    def _examples(self, x: Tensor | None, x_unlabelled: Tensor | None) -> int:
        """How many examples the loss counts: those of the data set if it is scaled up, else of the batch."""
        model = self.model
        if x is not None and x_unlabelled is not None:
            return (model.num_labelled or len(x)) + (model.num_unlabelled or len(x_unlabelled))
        return model.num_data or sum(len(rows) for rows in (x, x_unlabelled) if rows is not None)

    def _stopped(self, cause: str, term: str) -> RuntimeError:
        """The error that ends training, with the step and the term."""
        return RuntimeError(
            f"training stopped at step {self.global_step}: {cause}; the first term that is not finite is "
            f"{term}. Lower learning_rate or gradient_clip"
        )

    def on_validation_epoch_start(self) -> None:
        self._validated: list[Tensor] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, *labels = batch
        # Dequantise the same way at every validation.
        torch.manual_seed(derive_seed(self.seed, "validation", batch_idx, self.global_rank))
        x = self.augment.prepare(x)
        joint = self.model.flow.class_log_prob(x) + self.model.class_probs.log_probs
        sums = [-joint.logsumexp(-1).double().sum()]
        if labels:
            sums.append((joint.argmax(-1) != labels[0]).double().sum())
        self._validated.append(torch.stack([torch.full_like(sums[0], len(x)), *sums]))

    def on_validation_epoch_end(self) -> None:
        # Reduce sums, not means. Lightning would round the mean number of rows a process to an integer.
        total = self.trainer.strategy.reduce(torch.stack(self._validated).sum(0), reduce_op="sum")
        nll, *error = cast(Tensor, total)[1:] / cast(Tensor, total)[0]
        measured = {"val_nll": nll}
        if self.augment.bins is not None:
            measured["val_bits_per_dim"] = bits_per_dim(-nll, self.model.flow.event_shape, self.augment.bins)
        if error:
            measured["val_error"] = 100 * error[0]
        self.log_dict(measured, prog_bar=True, batch_size=1, sync_dist=True)

    # -- optimiser -----------------------------------------------------------------------------
    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.optimisation
        optimizer = make_optimizer(
            options.optimizer,
            [p for p in self.model.parameters() if p.requires_grad],
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            betas=options.betas,
        )
        schedule = make_schedule(options.schedule, optimizer, steps=self.steps, warmup=options.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        if not torch.isfinite(norm):
            names = [name for name, gradient in gradients.items() if not is_finite(gradient)]
            raise RuntimeError(
                f"training stopped at step {self.global_step}: the loss is finite, but not the gradient of "
                f"{', '.join(names[:3]) or 'all parameters together'}; lower learning_rate"
            )
        if gradient_clip_val is not None:
            parameters = [p for p in self.model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        self.log("grad_norm", norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        update_after_step(self.model, self.guide)

    # -- checkpoints ---------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        before = cast("dict[str, object]", checkpoint.get("settings", {}))
        changed = list(differences(before, self.settings))
        if changed:
            raise ValueError(
                f"resume: the checkpoint is of another run: {'; '.join(changed)}. Give the same settings, or "
                "start anew in another folder"
            )
