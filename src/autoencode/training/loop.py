"""The training loop: stopped and resumed at any step, with the same weights as if it had never stopped.

Several processes run it side by side (see `distributed`): each computes its local batch, and sums are taken
over all of them. A single process computes the whole batch.

Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.corruptions import corrupt, horizontal_flip, parse_corruptions, random_patch, recorrupted
from autoencode.data.loader import (
    LocalBatch,
    epoch_order,
    local_batches,
    random_seed,
    steps_per_epoch,
)
from autoencode.errors import VERSION, DivergedError, RunError
from autoencode.metrics.latents import RunningVariance, active_units, bits_per_dimension, merged
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.model_file import MODEL_NAME, save_model
from autoencode.training.adversarial import ratio_at
from autoencode.training.distributed import ALONE, Processes, set_counted
from autoencode.training.losses import Terms, beta_at, terms, update_sigma2
from autoencode.training.progress import TrainProgress, advice, constant_image_mse, epochs_since_best
from autoencode.training.run import (
    CHECKPOINT_NAME,
    Record,
    RunSettings,
    append_metrics,
    keep_metrics_up_to,
    read_metrics,
)
from autoencode.training.state import (
    all_finite,
    clip_gradient,
    initial_state,
    learning_rate_at,
    load_checkpoint,
    save_checkpoint,
    start_from_images,
    start_from_model,
    update_average,
)

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.models.image_model import ImageModel, Output
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
        self.corruptions = parse_corruptions(self.config.corrupt)
        self.images = pack.training_rows()
        # As many patches of each image as cover it make an epoch.
        self.train_rows = np.repeat(self.images, run.train.patches_of(run.preprocessing))
        self.validation_rows = pack.reading_order(pack.held_out("validation").rows, run.window)
        self.steps = steps_per_epoch(len(self.train_rows), self.config.batch_size)
        self.total_steps = self.steps * self.config.total_epochs
        self.state = initial_state(run, runtime, processes)
        if (out / CHECKPOINT_NAME).exists():
            load_checkpoint(out, self.state)
        elif processes.is_first and run.init:
            start_from_model(self.state, self.runtime, self.config, Path(run.init))
        elif processes.is_first:
            start_from_images(self.state, self.runtime, self.config, pack, self._order(0))
        self._start_together()
        # A kill may have come between the metrics and the checkpoint of an epoch.
        if processes.is_first:
            keep_metrics_up_to(out, self.state.step)
        self.records, self.warned = read_metrics(out), False

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
        return local_batches(self.pack, rows, self.config.batch_size, rank, count, start=start, stop=stop)

    def run(self, checkpoint_every: int | None, interrupted: threading.Event) -> None:
        """Train to the last epoch, or until the patience of `early_stopping` ends.

        Args:
            checkpoint_every: steps between checkpoints, in addition to the one at the end of each epoch.
            interrupted: when set, the state is saved after the current step.

        Raises:
            DivergedError: the loss is no longer finite.
            KeyboardInterrupt: `interrupted` was set.
        """
        state = self.state
        while state.step < self.total_steps and not self._has_stopped():
            epoch, first = divmod(state.step, self.steps)
            order = self._order(epoch)
            started = time.perf_counter()
            for images, local in self._local_batches(order, start=first):
                state.waited += time.perf_counter() - started
                self._step(images, local)
                state.seconds += time.perf_counter() - started
                in_epoch = state.step - epoch * self.steps
                if in_epoch == self.steps:
                    self._end_epoch(epoch)
                elif self.processes.is_first:
                    self.progress(self._progress(epoch, in_epoch))
                # One process may get the signal before the others: all stop after the same step.
                stop = self.processes.any_true(interrupted.is_set())
                due = stop or (checkpoint_every and in_epoch % checkpoint_every == 0)
                if due and in_epoch < self.steps and self.processes.is_first:
                    self._save()
                if stop and state.step < self.total_steps:
                    raise KeyboardInterrupt
                started = time.perf_counter()

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
            times.append(time.perf_counter() - started)
        # The least time: other work on the machine can only lengthen a step.
        return self.steps * min(times[1:] or times)

    def _step(self, images: Tensor, local: LocalBatch) -> None:
        """One optimiser step: a function of the state, the images of the batch and the seed."""
        state, config, begun = self.state, self.config, self.settings.extended_at
        rate = learning_rate_at(config, state.step - begun, self.total_steps - begun)
        for group in state.optimizer.param_groups:
            group["lr"] = group["scale"] * rate
        clean = self.runtime.to_device(images)
        state.model.train()
        set_counted(state.model, bool(local.counted))
        state.optimizer.zero_grad(set_to_none=True)
        # In fp64: an epoch adds thousands of batches, and resumed sums must be the same bits.
        sums = torch.zeros(4, dtype=torch.float64)
        for micro in local.micro_batches(config.accumulate):
            images = clean[micro.first - local.first : micro.end - local.first]
            sums += self._backward(images, micro)
        # Before the gradients are applied: a step that diverged must not reach the weights.
        measured = self.processes.total(sums)
        if not math.isfinite(measured[0]):
            raise self._diverged(state.step)
        self.processes.sum_gradients(state.model.parameters())
        clip_gradient(state.model, config.grad_clip)
        state.optimizer.step()
        if config.sigma2 == "auto" and state.model.is_vae:
            mse = (measured[3] / local.batch_size).to(state.model.sigma2)
            update_sigma2(state.model.sigma2, mse, state.step)
        if state.averaged is not state.model:
            update_average(state.averaged, state.model, config.ema, state.step)
        state.sums += measured
        state.step += 1

    def _backward(self, clean: Tensor, local: LocalBatch) -> Tensor:
        """Add the gradient of a micro-batch, weighted as in the whole batch; return its `_measured` sums."""
        state = self.state
        result, output, clean = self._forward(state.model, clean, local, training=True, draw=state.step)
        ratio = ratio_at(state.step, self.total_steps) if state.adversary else 0.0
        if state.adversary and ratio:
            assert isinstance(state.model, Autoencoder)
            seed = random_seed("samples", self.config.seed, state.step)
            state.adversary.step(state.model, clean, output.images, result.loss, seed, ratio)
        else:
            (local.weight * result.loss).backward()  # type: ignore[no-untyped-call]
        return result.measured() * local.counted

    def _forward(
        self, model: ImageModel, clean: Tensor, local: LocalBatch, *, training: bool, draw: int
    ) -> tuple[Terms, Output, Tensor]:
        """The objective of a local or micro-batch, the output, and the images it should have been.

        Noise, corruptions and flips depend only on the seed, `draw` and the position in the batch.
        """
        purpose = "train" if training else "validation"
        seed = random_seed(purpose, self.config.seed, draw)
        # A generator for each step, not one for the run: a resumed run needs no random state.
        generator = torch.Generator(clean.device).manual_seed(seed)
        if training and self.config.patch:
            clean = random_patch(clean, self.config.patch, generator, local)
        if training and self.config.horizontal_flip:
            clean = horizontal_flip(clean, generator, local)
        if self.config.self_supervised:
            seen, clean = recorrupted(clean, generator, local)
        else:
            seen = corrupt(clean, self.corruptions, generator, training=training, local=local)
        noise = None
        if model.is_vae:
            # Drawn for the whole batch, so that its noise is the same for any number of processes.
            shape = (local.batch_size, model.config.code_size)
            noise = torch.randn(shape, generator=generator, device=clean.device)[local.positions]
        with self.runtime.autocast():
            output = model(seen, noise)
        sigma2 = model.sigma2 if self.config.sigma2 == "auto" and model.is_vae else self.config.sigma2
        if sigma2 == "auto":
            sigma2 = 1.0
        beta = self._beta(self.state.step if training else self.state.step - 1)
        return terms(self.config.loss, clean, output, beta, sigma2), output, clean

    @torch.inference_mode()
    def _validate(self) -> Record:
        """Measure the model that would be saved now on validation images."""
        model = self.state.averaged
        model.eval()
        sums, means = torch.zeros(5, dtype=torch.float64), RunningVariance()
        for index, (images, local) in enumerate(self._local_batches(self.validation_rows)):
            clean = self.runtime.to_device(images)
            result, output, _ = self._forward(model, clean, local, training=False, draw=index)
            decoded = output.images
            if isinstance(model, Autoencoder) and output.posterior and model.is_vae:
                with self.runtime.autocast():
                    decoded = model.decoder(output.posterior.mean)
                if local.counted:  # an image that stands in for an empty local batch must not count twice
                    means.add(output.posterior.mean)
            # The reconstruction a user gets: the decoded mean, without noise, clipped to the range of pixels.
            squared_error = (decoded.float().clamp(0, 1) - clean).square().mean().cpu().double()
            sums += torch.cat([result.measured(), squared_error[None]]) * local.counted
        sums, means = self.processes.total(sums), merged(self.processes.gather(means))
        loss, reconstruction, kl, _, val_mse = (sums / len(self.validation_rows)).tolist()
        measured: Record = {"val_loss": loss, "val_mse": val_mse}
        if not model.is_vae:
            return measured
        measured |= {
            "val_reconstruction": reconstruction,
            "val_kl": kl,
            "active_units": active_units(means.variance),
        }
        if self.config.loss == "gaussian":  # the other losses lack the constant of a likelihood
            bits = bits_per_dimension(reconstruction + kl, model.values_per_image)
            measured["val_bits_per_dimension"] = bits
        return measured

    def _end_epoch(self, epoch: int) -> None:
        state, images = self.state, len(self.train_rows)
        loss, reconstruction, kl, _ = (state.sums / images).tolist()
        record: Record = {"epoch": epoch + 1, "step": state.step, "train_loss": loss}
        if state.model.is_vae:
            record |= {
                "train_reconstruction": reconstruction,
                "train_kl": kl,
                "beta": self._beta(state.step - 1),
            }
            record["sigma2"] = float(state.model.sigma2)
        if state.adversary:
            record |= state.adversary.take_measures()
        record |= self._validate()
        # A weight or a moment can be infinite while the loss is still finite.
        if not (math.isfinite(record["val_loss"]) and all_finite(state)):
            raise self._diverged(state.step - 1)
        record["images_per_second"] = images / max(state.seconds, 1e-9)
        record["seconds"] = state.seconds
        record["input_wait"] = state.waited / max(state.seconds, 1e-9)
        record["learning_rate"] = float(state.optimizer.param_groups[0]["lr"])
        self.records.append(record)
        last = self._progress(epoch, self.steps, record, self._warning() if self.processes.is_first else None)
        state.sums.zero_()
        state.seconds = state.waited = 0.0
        if self.processes.is_first:
            self._keep(record)
            self.progress(last)

    def _keep(self, record: Record) -> None:
        """Save the model, the metrics and the checkpoint of an epoch."""
        # In this order a kill between two of them only repeats work: a resumed run drops the lines of steps
        # after its checkpoint and writes the model again.
        if not self.config.early_stopping or not epochs_since_best(self.records):
            save_model(self.out / MODEL_NAME, self.state.averaged, self._provenance(record))
        append_metrics(self.out, record)
        save_checkpoint(self.out, self.state)

    def _has_stopped(self) -> bool:
        """Whether as many epochs as `early_stopping` allows have brought no lower validation loss."""
        patience = self.config.early_stopping
        since = sum(record["step"] > self.settings.extended_at for record in self.records)
        # Only the first process is sure to have read the records that it kept.
        waited = min(since, epochs_since_best(self.records)) if patience else 0
        return self.processes.any_true(self.processes.is_first and 0 < patience <= waited)

    def _save(self) -> None:
        try:
            save_checkpoint(self.out, self.state)
        except DivergedError as err:
            raise self._diverged(self.state.step - 1) from err

    def _warning(self) -> str | None:
        """The advice on the run, the first time there is any."""
        if self.warned:
            return None

        def constant_mse() -> float:
            return constant_image_mse(self.pack, self.images, self.validation_rows)

        found = advice(self.records, self.config, constant_mse)
        self.warned = found is not None
        return found

    def _provenance(self, record: Record) -> dict[str, Any]:
        """Provenance of the weights, without times or paths, so that the same run writes the same file."""
        metrics = {name: value for name, value in record.items() if name.startswith(("val_", "train_"))}
        return {
            "autoencode": VERSION,
            "torch": str(torch.__version__),
            "data": self.pack.fingerprint,
            "images": {"train": len(self.images), "validation": len(self.validation_rows)},
            "train": self.config.to_json(),
            "epoch": record["epoch"],
            "metrics": metrics,
        }

    def _progress(
        self, epoch: int, in_epoch: int, record: Record | None = None, warning: str | None = None
    ) -> TrainProgress:
        state = self.state
        seen = len(self.train_rows) if in_epoch == self.steps else in_epoch * self.config.batch_size
        seconds_left = state.seconds / in_epoch * (self.total_steps - state.step)
        return TrainProgress(
            epoch=epoch + 1,
            epochs=self.config.total_epochs,
            step=in_epoch,
            steps=self.steps,
            loss=float(state.sums[0]) / seen,
            images_per_second=seen / max(state.seconds, 1e-9),
            seconds_left=seconds_left,
            record=record,
            warning=warning,
        )

    def _beta(self, step: int) -> float:
        config = self.config
        warmup_steps = config.kl_warmup * self.steps
        return beta_at(step, self.total_steps, warmup_steps, config.kl_warmup_cycles, config.beta)

    def _diverged(self, step: int) -> DivergedError:
        epoch, in_epoch = divmod(step, self.steps)
        kept = f"The last good model, of epoch {epoch}, is {self.out / MODEL_NAME}."
        return DivergedError(
            f"The loss is no longer finite at epoch {epoch + 1}, step {in_epoch + 1}. "
            f"{kept if epoch else 'No epoch was finished, so there is no model yet.'} Try again"
            f"{' in a new folder' if epoch else ''} with a lower learning rate "
            f"(it was {self.config.learning_rate:g})"
            f"{', a larger sigma2' if self.config.loss == 'gaussian' else ''}"
            f"{' or --set precision=fp32' if self.runtime.bf16 else ''}."
        )
