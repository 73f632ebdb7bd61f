"""The training loop: stopped and resumed at any step, with the same weights as if it had never stopped.

Several processes run it side by side (see `distributed`): each computes its local batch, and sums are taken
over all of them. A single process computes the whole batch.

Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.loader import LocalBatch, epoch_order, local_batches, random_seed, steps_per_epoch
from autoencode.errors import DivergedError, RunError
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.bundled import RANDOM
from autoencode.models.model_file import MODEL_NAME, save_model
from autoencode.training.adversarial import ratio_at
from autoencode.training.checkpoint import (
    all_finite,
    initial_state,
    load_checkpoint,
    save_checkpoint,
    start_from_images,
    start_from_model,
    start_perceptual,
)
from autoencode.training.distributed import ALONE, Processes, set_counted
from autoencode.training.losses import update_sigma2
from autoencode.training.objective import Objective, Views
from autoencode.training.optim import largest_gradient, learning_rate_at, set_rate, update_average
from autoencode.training.perceptual import COST
from autoencode.training.progress import (
    TrainProgress,
    advice,
    constant_image_mse,
    diverged,
    epochs_since_best,
    epochs_waited,
)
from autoencode.training.run import (
    CHECKPOINT_NAME,
    Record,
    RunSettings,
    append_metrics,
    keep_metrics_up_to,
    provenance,
    read_metrics,
)
from autoencode.training.validation import validate, validate_decoder

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.training.capture import CapturedStep
    from autoencode.training.runtime import Runtime


class Loop:
    """The training loop of one process.

    Args:
        out: the run folder, locked by the caller; continues from the checkpoint in it if there is one.
        run: the settings.
        pack: the images.
        runtime: the device and how to use it.
        progress: called after each step and epoch, in process 0 only.
        processes: the processes that train this model.

    Raises:
        RunError: the checkpoint is damaged, of another network, or not seen by every process.
    """

    def __init__(
        self,
        out: Path,
        run: RunSettings,
        pack: Pack,
        runtime: Runtime,
        progress: Callable[[TrainProgress], None],
        processes: Processes = ALONE,
    ) -> None:
        self.out, self.settings, self.pack, self.runtime, self.progress = out, run, pack, runtime, progress
        self.processes = processes
        self.config = run.train
        self.images = pack.training_rows()
        # As many patches of each image as cover it make an epoch.
        self.train_rows = np.repeat(self.images, run.train.patches_of(run.preprocessing))
        self.validation_rows = pack.reading_order(pack.held_out("validation").rows, run.window)
        self.steps = steps_per_epoch(len(self.train_rows), self.config.batch_size)
        self.total_steps = self.steps * self.config.total_epochs
        self.perceptual_steps = self.config.perceptual_steps(self.total_steps)
        has_start = run.init != RANDOM
        self.objective = Objective(
            self.config, runtime, self.steps, self.total_steps, starts_trained=has_start
        )
        self.state = initial_state(run, runtime, processes)
        if (out / CHECKPOINT_NAME).exists():
            load_checkpoint(out, self.state, self.config, runtime)
        elif processes.is_first and has_start:
            start_from_model(self.state, self.runtime, self.config, run.init)
        elif processes.is_first:
            start_from_images(
                self.state, self.runtime, self.config, pack, self._order(0), self.validation_rows
            )
        self._start_together()
        self.largest_gradient = largest_gradient(self.state.model, self.config.grad_clip)
        self.on_device = runtime.images_of(pack, np.concatenate([self.images, self.validation_rows]))
        # A step of an adversary changes with its ratio, and one of several processes waits for the others.
        plain = self.config.accumulate == 1 and not self.config.adversarial and processes.world_size == 1
        self.captured = runtime.captured(self._learn_recorded) if plain else None
        # A kill may have come between the metrics and the checkpoint of an epoch.
        if processes.is_first:
            keep_metrics_up_to(out, self.state.taken)
        # Epochs of the perceptual phase change neither the objective nor its validation.
        self.records = [record for record in read_metrics(out) if "val_loss" in record]
        self.warned = False

    def _order(self, epoch: int) -> NDArray[np.int64]:
        rows_per_shard, window = self.pack.rows_per_shard, self.settings.window
        return epoch_order(self.train_rows, self.config.seed, epoch, rows_per_shard, window)

    def _start_together(self) -> None:
        """Copy the weights of process 0 to all: another machine may have rounded its PCA differently."""
        if len(set(self.processes.gather(self.state.step))) > 1:
            raise RunError(
                f"Not every process sees the checkpoint in {self.out}. Put the run on a disk that all share."
            )
        for model in (self.state.model, self.state.averaged):
            self.processes.copy_from_first(model.state_dict().values())

    def _local_batches(
        self, rows: NDArray[np.int64], *, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, LocalBatch]]:
        """Yield what this process computes of each batch of `rows`."""
        rank, count = self.processes.rank, self.processes.world_size
        size, device = self.config.batch_size, self.on_device
        return local_batches(self.pack, rows, size, rank, count, start=start, stop=stop, device=device)

    def run(self, checkpoint_every: int | None, interrupted: threading.Event) -> None:
        """Train to the last epoch, or until the patience of `early_stopping` ends.

        Args:
            checkpoint_every: steps between checkpoints, in addition to the one at the end of each epoch.
            interrupted: when set, the state is saved after the current step.

        Raises:
            DivergedError: the loss is no longer finite.
            KeyboardInterrupt: `interrupted` was set.
        """
        with self.runtime.repeatable():
            self._run(checkpoint_every, interrupted)

    def _run(self, checkpoint_every: int | None, interrupted: threading.Event) -> None:
        state = self.state
        while steps := self._steps_of_epoch():
            epoch, first = divmod(state.taken, self.steps)
            order = self._order(epoch)
            started = time.perf_counter()
            for images, local in self._local_batches(order, start=first, stop=steps):
                state.waited += time.perf_counter() - started
                (self._perceptual_step if state.perceptual else self._step)(images, local)
                in_epoch = state.taken - epoch * self.steps
                looks = in_epoch % self.runtime.steps_between_looks == 0
                if looks or in_epoch == steps:
                    self._look()
                state.seconds += time.perf_counter() - started
                if in_epoch == steps:
                    self._end_epoch(epoch, steps)
                elif looks and self.processes.is_first:
                    self.progress(self._progress(epoch, in_epoch, steps))
                # One process may get the signal before the others: all stop after the same step.
                stop = self.processes.any_true(interrupted.is_set())
                due = stop or (checkpoint_every and in_epoch % checkpoint_every == 0)
                if due and in_epoch < steps and self.processes.is_first:
                    self._save()
                if stop and (in_epoch < steps or self._steps_of_epoch()):
                    raise KeyboardInterrupt
                started = time.perf_counter()

    def _steps_of_epoch(self) -> int:
        """Steps of the epoch that the next step belongs to, at most; 0 if no step is left.

        Begins the perceptual phase where the first has ended, and drops it where more epochs were asked for.
        """
        state = self.state
        if state.step < self.total_steps and not self._has_stopped():
            if state.perceptual and self.processes.is_first:
                keep_metrics_up_to(self.out, state.step)
            state.perceptual = None
            return self.steps
        if self.perceptual_steps and state.perceptual is None:
            start_perceptual(state, self.out, self.config, self.runtime)
        left = self.perceptual_steps - state.perceptual.step if state.perceptual else 0
        return min(self.steps, state.taken % self.steps + left) if left > 0 else 0

    def seconds_an_epoch(self, steps: int) -> float:
        """Estimate the training time of an epoch from a few steps, which change the weights.

        Args:
            steps: number of timed steps, after one to warm up.
        """
        order = self._order(0)
        times = []
        for images, local in self._local_batches(order, stop=min(self.steps, steps + 1)):
            started = time.perf_counter()
            self._step(images, local)
            self._look()
            times.append(time.perf_counter() - started)
        # The least time: other work on the machine can only lengthen a step.
        return self.steps * min(times[1:] or times)

    def _step(self, images: Tensor, local: LocalBatch) -> None:
        """One optimiser step: a function of the state, the images of the batch and the seed."""
        state, config, begun = self.state, self.config, self.settings.extended_at
        rate = learning_rate_at(config, state.step - begun, self.total_steps - begun)
        set_rate(state.optimizer, rate)
        self.objective.choose_teacher(state)
        clean = self.runtime.to_device(images)
        state.model.train()
        set_counted(state.model, bool(local.counted))
        if self.captured and local.counted == config.batch_size:
            measured = self._replayed(self.captured, clean, local)
        else:
            parts = self._parts("train", clean, local, state.step)
            measured = self._learn(parts, self.objective.beta(state.step))
        if config.sigma2 == "auto" and state.model.is_vae:
            mse = (measured[3] / local.batch_size).to(state.model.sigma2)
            update_sigma2(state.model.sigma2, mse, state.step)
        if state.averaged is not state.model:
            update_average(state.averaged, state.model, config.ema, state.step)
        state.sums += measured
        state.step += 1

    def _perceptual_step(self, images: Tensor, local: LocalBatch) -> None:
        """Steps of the second decoder: a function of the state, the images of the batch and the seed."""
        phase, clean = self.state.perceptual, self.runtime.to_device(images)
        assert phase
        parts = partial(self._parts, "perceptual")
        self.state.sums += phase.learn(clean, local, parts, self.perceptual_steps, self.processes)

    def _parts(
        self, purpose: str, clean: Tensor, local: LocalBatch, draw: int
    ) -> Iterator[tuple[Views, LocalBatch]]:
        """The views of each micro-batch, made when they are asked for."""
        model = self.state.model
        for micro in local.micro_batches(self.config.accumulate):
            images = clean[micro.first - local.first : micro.end - local.first]
            yield self.objective.views(model, images, micro, purpose, draw), micro

    def _learn(self, parts: Iterable[tuple[Views, LocalBatch]], beta: float | Tensor) -> Tensor:
        """Take the optimiser's step on a batch in parts; return the sums of what was measured."""
        state = self.state
        state.optimizer.zero_grad(set_to_none=True)
        # In fp64: an epoch adds thousands of batches, and resumed sums must be the same bits.
        sums = self.runtime.zeros(4)
        for views, micro in parts:
            sums += self._backward(views, micro, beta)
        measured = self.processes.total(sums)
        # Before the gradients are applied, a step that diverged must not reach the weights. A GPU is not
        # waited for: `_look` finds it before anything is saved.
        if not self.runtime.runs_ahead and not math.isfinite(measured[0]):
            raise self._diverged(state.step)
        self.processes.sum_gradients(state.model.parameters())
        if math.isfinite(self.largest_gradient):
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.largest_gradient)
        state.optimizer.step()
        return measured

    def _replayed(self, captured: CapturedStep, clean: Tensor, local: LocalBatch) -> Tensor:
        """`_learn` on a whole batch, as a CUDA graph."""
        views = self.objective.views(self.state.model, clean, local, "train", self.state.step)
        beta = torch.full((), self.objective.beta(self.state.step), device=clean.device)
        return captured([beta, views.seen, views.target, *([] if views.noise is None else [views.noise])])

    def _learn_recorded(self, inputs: Sequence[Tensor]) -> Tensor:
        """`_learn` as a function of tensors alone."""
        beta, seen, target, *noise = inputs
        size = self.config.batch_size
        views = Views(seen, target, noise[0] if noise else None)
        return self._learn([(views, LocalBatch(0, size, size, size))], beta)

    def _look(self) -> None:
        """Wait for the device, and see whether the loss is finite so far: no sum becomes finite again."""
        if not math.isfinite(self.state.sums[0]):
            raise self._diverged(self.state.taken - 1)

    def _backward(self, views: Views, local: LocalBatch, beta: float | Tensor) -> Tensor:
        """Add the gradient of a micro-batch, weighted as in the whole batch; return its `_measured` sums."""
        state = self.state
        result, output = self.objective.terms(state.model, views, beta)
        ratio = ratio_at(state.step, self.total_steps) if state.adversary else 0.0
        if state.adversary and ratio:
            assert isinstance(state.model, Autoencoder)
            seed = random_seed("samples", self.config.seed, state.step)
            state.adversary.step(state.model, views.target, output.images, result.loss, seed, ratio)
        else:
            (local.weight * result.loss).backward()  # type: ignore[no-untyped-call]
        return result.measured() * local.counted

    def _end_epoch(self, epoch: int, steps: int) -> None:
        state, phase = self.state, self.state.perceptual
        images = min(len(self.train_rows), steps * self.config.batch_size)
        record: Record = {"epoch": epoch + 1, "step": state.taken}
        means, optimizer = state.sums / images, phase.optimizer if phase else state.optimizer
        record |= phase.measures(means) if phase else self.objective.measures(means, state.model, state.step)
        if state.adversary:
            record |= state.adversary.take_measures()
        record |= self._validate()
        # A weight or a moment can be infinite while the loss is still finite.
        if not (math.isfinite(record["val_perceptual" if phase else "val_loss"]) and all_finite(state)):
            raise self._diverged(state.taken - 1)
        record["images_per_second"] = images / max(state.seconds, 1e-9)
        record["seconds"] = state.seconds
        record["input_wait"] = state.waited / max(state.seconds, 1e-9)
        record["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        if phase is None:
            self.records.append(record)
        warning = self._warning() if self.processes.is_first and phase is None else None
        last = self._progress(epoch, steps, steps, record, warning)
        state.sums.zero_()
        state.seconds = state.waited = 0.0
        if self.processes.is_first:
            self._keep(record)
            self.progress(last)

    def _validate(self) -> Record:
        """Measure on validation images what would be saved now."""
        state, count = self.state, len(self.validation_rows)
        batches = partial(self._local_batches, self.validation_rows)
        if state.perceptual:
            counts = count, len(self.images)
            return validate_decoder(state.perceptual, self.objective, batches, *counts, self.processes)
        return validate(state.averaged, self.objective, batches(), count, state.step - 1, self.processes)

    def _keep(self, record: Record) -> None:
        """Save the model, the metrics and the checkpoint of an epoch."""
        # In this order a kill between two of them only repeats work: a resumed run drops the lines of steps
        # after its checkpoint and writes the model again.
        phase, waited = self.state.perceptual, epochs_since_best(self.records)
        early, model = self.config.early_stopping, phase.model if phase else self.state.averaged
        kept = self.records[-1 - waited if early else -1]
        if phase or not (early and waited):
            counts = {"train": len(self.images), "validation": len(self.validation_rows)}
            save_model(self.out / MODEL_NAME, model, provenance(self.settings, counts, {**kept, **record}))
        append_metrics(self.out, record)
        save_checkpoint(self.out, self.state)

    def _has_stopped(self) -> bool:
        """Whether the last `early_stopping` epochs have brought no lower validation loss."""
        patience = self.config.early_stopping
        # Only the first process is sure to have read the records that it kept.
        waited = epochs_waited(self.settings, self.records) if patience else 0
        return self.processes.any_true(self.processes.is_first and 0 < patience <= waited)

    def _save(self) -> None:
        try:
            save_checkpoint(self.out, self.state)
        except DivergedError as err:
            raise self._diverged(self.state.taken - 1) from err

    def _warning(self) -> str | None:
        """The advice on the run, the first time there is any."""
        if self.warned:
            return None
        constant_mse = partial(constant_image_mse, self.pack, self.images, self.validation_rows)
        found = advice(self.records, self.config, constant_mse)
        self.warned = found is not None
        return found

    def _progress(
        self, epoch: int, done: int, steps: int, record: Record | None = None, warning: str | None = None
    ) -> TrainProgress:
        state, phase, before = self.state, self.state.perceptual, 0
        seen = min(len(self.train_rows), done * self.config.batch_size)
        epochs, left = self.config.total_epochs, self.perceptual_steps - (phase.step if phase else 0)
        if phase is None:
            left = self.total_steps - state.step + round(COST * left)
        else:  # it begins with an epoch
            before, epochs = state.step // self.steps, -(-self.perceptual_steps // self.steps)
        rates = float(state.sums[0]) / seen, seen / max(state.seconds, 1e-9), state.seconds / done * left
        name = "sharp decoder" if phase else ""
        return TrainProgress(epoch + 1 - before, epochs, done, steps, *rates, record, warning, name)

    def _diverged(self, step: int) -> DivergedError:
        """The error of a loss that was found not to be finite after a step, or when it was last looked at."""
        position = divmod(step, self.steps)
        return diverged(position, self.out / MODEL_NAME, self.config, self.runtime, self.state.perceptual)
