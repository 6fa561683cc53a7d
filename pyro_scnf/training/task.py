"""Training and validation steps, as a Lightning module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_scnf._checks import UNLABELLED
from pyro_scnf._extras import require
from pyro_scnf._numbers import check_kinds
from pyro_scnf._spec import describe
from pyro_scnf.datasets.augment import as_augment, changed_rows
from pyro_scnf.metrics import bits_per_dim
from pyro_scnf.models import Expected, SemiSupervisedModel, make_guide, update_after_step
from pyro_scnf.objective import elbo
from pyro_scnf.saving import describe_model
from pyro_scnf.terms import Terms, active, needs_of
from pyro_scnf.training.batches import Batch, as_batch, as_rows, derive_seed, going_on
from pyro_scnf.training.diagnosis import first_bad_part, first_bad_term, is_finite
from pyro_scnf.training.options import Optimisation, plain
from pyro_scnf.training.same_run import check_same_run, trainable
from pyro_scnf.training.schedules import make_optimizer, make_schedule
from pyro_scnf.training.surroundings import noise
from pyro_scnf.transforms import SolverError

if TYPE_CHECKING:
    import lightning.pytorch as lightning
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
else:
    lightning = require("lightning.pytorch", "train")

__all__ = ["SemiSupervisedTask"]


class SemiSupervisedTask(lightning.LightningModule):
    """A model and its guide as a ``LightningModule``, for a ``Trainer`` of your own.

    :func:`~pyro_scnf.training.fit` consists of this task, batches and a trainer. A loader for training gives
    the batches of :class:`~pyro_scnf.training.StepBatches`, or x, ``(x,)`` or ``(x, y)``. A label of -1 marks
    an unlabelled row. The noise of a batch depends only on ``seed`` and the number of the batch, counted over
    all epochs. The global random generators are left as they were. The task logs ``loss`` (nats per example),
    the parts of the loss if there are training terms, and ``grad_norm``.

    With ``DataLoader(StepBatches(...), batch_size=None)`` each epoch goes on with the steps after the last
    one. So does a resumed run, which gives the result of an uninterrupted one (if gradients accumulate, from
    the checkpoint of a step only). Other loaders start anew: resume at an epoch's end, and do not shuffle.

    ``Trainer.validate`` and ``Trainer.test`` take loaders of x, ``(x,)`` or ``(x, y)``. They log ``val_nll``,
    ``val_error`` (per cent of the labelled rows) if there are any, and ``val_bits_per_dim`` if ``augment``
    has ``bins``, and the same under ``test_``. ``Trainer.predict`` takes the same loaders, and gives the
    label probabilities ``(B, K)`` of each batch.

    A model in evaluation mode is put into training mode for training. Parts in evaluation mode stay so if the
    model itself is in training mode.

    Its checkpoints describe the model. :func:`pyro_scnf.load` makes the model from such a file.

    :param model: an initialised model.
    :param guide: a word of :data:`pyro_scnf.GUIDES`, or a guide of your own.
    :param terms: training terms, see :func:`~pyro_scnf.terms.make_terms`.
    :param Optimisation optimisation: optimiser and schedule. Clipping and averaging are set in the trainer.
    :param int steps: optimiser steps of the run, for the schedule and for the weights of terms.
    :param augment: see :class:`~pyro_scnf.datasets.Augment`.
    :param int seed: seed of all noise.
    :param settings: further settings, by name. A run resumes from a checkpoint only if it has the same ones.
    :raises RuntimeError: in training, if the loss or its gradient is NaN or infinite, or if the solver of a
        continuous layer cannot go on. The message names the step, and the term or the layer. In validation,
        and for the adjoint equation, it is the message of the solver alone.
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
        check_kinds(model=(model, SemiSupervisedModel))
        self.model = model
        self.guide = make_guide(guide, model) if isinstance(guide, str) else guide
        # Keep it in a list. As a submodule it would put model and guide into state_dict a second time.
        self.objective = [elbo(model, self.guide, terms)]
        self.optimisation = Optimisation() if optimisation is None else optimisation
        self.steps, self.seed = steps, seed
        self.augment = as_augment(augment)
        self._rows = "x" if augment is None else "augment(x)"  # for messages
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
            "class_probs": model.class_probs.options,
            "requires_grad": trainable(self),
            **model.options,
            **(settings or {}),
        }
        self.settings = {name: plain(value) for name, value in compared.items()}
        self._done, self._lengthened, self._has_run = 0, False, False
        self._expected: dict[int, Expected] = {}  # by the batches since the latest optimiser step

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.model.training:
            self.train()  # Lightning would leave it in evaluation mode, and dropout would do nothing
        self.settings["requires_grad"] = trainable(self)  # parts may have been frozen since

    # -- steps ---------------------------------------------------------------------------------
    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        given = as_batch(self._going_on(batch, number), number, self.model.flow.num_classes)
        with noise(derive_seed(self.seed, "noise", number, self.global_rank), self.device):
            loss = self._loss(given)
        expected = self.objective[0].expected
        if expected is not None:
            self._expected[number] = expected
        return loss

    def _going_on(self, batch: object, number: int) -> object:
        """The batch number ``number`` of a run over ``StepBatches``, and of any other loader ``batch``."""
        trainer = self.trainer
        right = going_on(batch, trainer.train_dataloader, number)
        if right is batch or getattr(trainer, "overfit_batches", False):
            return batch
        right = trainer.precision_plugin.convert_input(right)  # as Lightning does with those of a loader
        return trainer.strategy.batch_to_device(right, self.device)

    def _loss(self, batch: Batch) -> Tensor:
        """The loss of a batch, in nats per example."""
        objective, progress = self.objective[0], min(1.0, self.global_step / self.steps)
        x = None if batch.x is None else changed_rows(self.augment.labelled, batch.x)
        x_unlabelled = None if batch.x_unlabelled is None else changed_rows(self.augment, batch.x_unlabelled)
        arguments = [a for a in (x, batch.y, x_unlabelled) if a is not None]
        options = {"pairs": batch.pairs, "label_log_prior": batch.label_log_prior}
        if batch.x_unlabelled is not None and "view" in needs_of(active(objective.terms, progress)):
            options["view"] = changed_rows(self.augment, batch.x_unlabelled)
        given = {name: value for name, value in options.items() if value is not None}
        try:
            loss: Tensor = objective(*arguments, **given, progress=progress)
        except SolverError as error:
            with suppress(SolverError):  # that of the search
                term = first_bad_term(self.model, x, x_unlabelled)
                if term is not None:
                    raise self._stopped("scoring failed", term) from error
            raise self._stopped_by_solver(error) from error
        except ValueError as error:
            self._check_changed(x, x_unlabelled)
            term = first_bad_term(self.model, x, x_unlabelled)
            if term is None:
                raise
            raise self._stopped("scoring failed", term) from error  # Pyro refuses NaN and infinity
        if not self._has_run:
            self._has_run = True
            self._check_trained()
        examples = self._examples(x, batch.y, x_unlabelled)
        loss = loss / examples
        if not torch.isfinite(loss):
            term = first_bad_term(self.model, x, x_unlabelled) or first_bad_part(objective.parts)
            raise self._stopped(f"the loss is {loss.item()}", term)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=1, sync_dist=True)
        if objective.terms:
            for name, part in objective.parts.items():
                self.log(name, part / examples, batch_size=1, sync_dist=True)
        return loss

    def _check_changed(self, *batches: Tensor | None) -> None:
        """Raise if the model cannot take rows because of their shape, dtype or support."""
        for rows in batches:
            if rows is not None and is_finite(rows):
                self.model.flow.check_data(rows, self._rows, type(self).__name__)

    def _check_trained(self) -> None:
        """Raise if the loss has parameters that the optimiser lacks, as those of a function may be."""
        own = {id(parameter) for parameter in self.parameters()}
        objective = self.objective[0].named_parameters()
        others = [name for name, p in objective if id(p) not in own and p.requires_grad]
        if others:
            raise ValueError(
                f"guide: nothing would train its parameters {', '.join(others[:3])}, since a function has "
                "them in Pyro's parameter store; make the guide a PyroModule that holds them"
            )

    def _examples(self, x: Tensor | None, y: Tensor | None, x_unlabelled: Tensor | None) -> int:
        """How many examples the loss counts: those of the data set if it is scaled up, else of the batch."""
        sizes = self.model.sizes
        if x is not None and x_unlabelled is not None:
            labelled, unlabelled = len(x), len(x_unlabelled)
            return (sizes.of_labelled(labelled) or labelled) + (sizes.of_unlabelled(unlabelled) or unlabelled)
        rows = len(cast(Tensor, x_unlabelled if x is None else x))
        return sizes.of_batch(rows, None if x is None else y) or rows

    def _stopped(self, cause: str, term: str) -> RuntimeError:
        """The error that ends training, with the step and the term."""
        return RuntimeError(
            f"training stopped at step {self.global_step}: {cause}; the first term that is not finite is "
            f"{term}. Lower learning_rate or gradient_clip"
        )

    def _stopped_by_solver(self, error: SolverError) -> SolverError:
        """The error that ends training, with the step and the layer."""
        while error.layer is None and isinstance(error.__cause__, SolverError):
            error = error.__cause__  # Pyro raises a new error, with the shapes of all sites
        names = {module: name for name, module in self.model.named_modules()}
        layer = f"{names[error.layer]}, " if error.layer in names else ""
        return SolverError(f"training stopped at step {self.global_step}: {layer}{error}")

    # -- held-out rows -------------------------------------------------------------------------
    def on_validation_epoch_start(self) -> None:
        self._scored: list[Tensor] = []

    def validation_step(self, batch: object, batch_idx: int) -> None:
        self._score("validation", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_start(self) -> None:
        self._scored = []

    def test_step(self, batch: object, batch_idx: int) -> None:
        self._score("test", batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def predict_step(self, batch: object, batch_idx: int) -> Tensor:
        x, _ = as_rows(batch, self.model.flow.num_classes)
        with self._same_noise("predict", batch_idx):
            probs: Tensor = self.model.posterior(changed_rows(self.augment.prepare, x)).probs
        return probs

    def _same_noise(self, kind: str, batch_idx: int) -> AbstractContextManager[None]:
        """A block in which a batch of held-out rows meets the same noise each time.

        Rows are dequantised by it, and a flow may estimate its log-determinant.
        """
        return noise(derive_seed(self.seed, kind, batch_idx, self.global_rank), self.device)

    def _score(self, kind: str, batch: object, batch_idx: int) -> None:
        x, y = as_rows(batch, self.model.flow.num_classes)
        with self._same_noise(kind, batch_idx):
            x = changed_rows(self.augment.prepare, x)
            ((table, common),) = self.model.flow.scores(x)
        # Decide by the table alone. In a sum with what all labels share, rounding could hide the differences.
        joint = table + self.model.class_probs.log_probs
        known = torch.zeros(len(x), dtype=torch.bool, device=x.device) if y is None else y != UNLABELLED
        wrong = known if y is None else known & (joint.argmax(-1) != y)
        nll = -(common.double() + joint.logsumexp(-1).double()).sum()
        self._scored.append(torch.stack([torch.full_like(nll, len(x)), nll, known.sum(), wrong.sum()]))

    def _log_scores(self, prefix: str) -> None:
        # Reduce sums, not means. Lightning would round the mean number of rows a process to an integer.
        total = self.trainer.strategy.reduce(torch.stack(self._scored).sum(0), reduce_op="sum")
        rows, nll, known, wrong = cast(Tensor, total)
        measured = {f"{prefix}_nll": nll / rows}
        if self.augment.bins is not None:
            bits = bits_per_dim(-nll / rows, self.model.flow.event_shape, self.augment.bins)
            measured[f"{prefix}_bits_per_dim"] = bits
        if known:
            measured[f"{prefix}_error"] = 100 * wrong / known
        self.log_dict(measured, prog_bar=True, batch_size=1, sync_dist=True)

    # -- optimiser -----------------------------------------------------------------------------
    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.optimisation
        trained = [p for p in self.parameters() if p.requires_grad]  # those of the guide included
        if not trained:
            raise ValueError("model: no parameter has requires_grad=True, so there is nothing to train")
        optimizer = make_optimizer(
            options.optimizer,
            trained,
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
        gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        if not torch.isfinite(norm):
            names = [n.removeprefix("model.") for n, g in gradients.items() if not is_finite(g)]
            raise RuntimeError(
                f"training stopped at step {self.global_step}: the loss is finite, but not the gradient of "
                f"{', '.join(names[:3]) or 'all parameters together'}; lower learning_rate"
            )
        if gradient_clip_val is not None:
            parameters = [p for p in self.parameters() if p.grad is not None]
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
        expected = list(self._expected.values())
        self._expected.clear()
        update_after_step(self.model, self.guide, expected)

    # -- checkpoints ---------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["settings"] = self.settings
        with suppress(ValueError):  # a part of the model is the user's own
            checkpoint.update(describe_model(self.model))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None or not self._trainer.training:
            return  # it is read for its parameters alone
        check_same_run(checkpoint, self.settings, self.model.class_probs, "the checkpoint")
        self._done = int(checkpoint["global_step"])
        self._lengthened = checkpoint["settings"]["steps"] != self.steps

    def on_train_start(self) -> None:
        if not self._lengthened:
            return
        # The schedule in the checkpoint has come to its end. Take the one of the longer run at this step.
        options, schedule = self.optimisation, cast(LRScheduler, self.lr_schedulers())
        optimizer = cast("LightningOptimizer", self.optimizers()).optimizer
        longer = make_schedule(
            options.schedule, optimizer, steps=self.steps, warmup=options.warmup, done=self._done
        )
        schedule.load_state_dict(longer.state_dict())
