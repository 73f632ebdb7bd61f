"""Reports of a run while it trains: progress, and a warning where it does not learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.atomic import is_locked
from autoencode.data.loader import batches
from autoencode.errors import DivergedError
from autoencode.training.run import read_metrics, read_run

if TYPE_CHECKING:
    from pathlib import Path

    from autoencode.data.pack import Pack
    from autoencode.training.config import TrainConfig
    from autoencode.training.run import Record, RunSettings
    from autoencode.training.runtime import Runtime

# Epochs without progress before a warning: a third of all, and at least 3, since a run may start slowly.
PATIENT_SHARE, PATIENT_EPOCHS = 1 / 3, 3

# Ratio of validation to training error above which the likelihood is overconfident.
OVERCONFIDENT = 4

# Images that the mean image is computed from; more would move it by less than a level of 255.
MEAN_IMAGES, MEAN_BATCH = 5_000, 64


@dataclass(frozen=True)
class TrainProgress:
    """The progress of a run, given to the `progress` argument of `train` after each step and each epoch.

    Attributes:
        epoch: the current epoch of its phase, from 1.
        epochs: number of epochs in this phase, at most.
        step: steps taken in this epoch.
        steps: steps in an epoch.
        loss: mean training loss of this epoch so far.
        images_per_second: training speed of this epoch so far, waiting for images included.
        seconds_left: estimate for the training steps left.
        record: the line just written to metrics.jsonl, at the end of an epoch; else None.
        warning: what is wrong with the run and what to try, given once when it is first found; else None.
        phase: "sharp decoder" in the perceptual phase, which follows the epochs that were asked for; else "".
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float
    record: Record | None = None
    warning: str | None = None
    phase: str = ""


def advice(records: Sequence[Record], config: TrainConfig, constant_mse: Callable[[], float]) -> str | None:
    """Return what is wrong with a run and what to try; None if nothing is, or if it is too early to tell.

    Args:
        records: the lines of metrics.jsonl so far.
        config: how the run is trained.
        constant_mse: returns `constant_image_mse`; called only when needed, because it reads images.
    """
    sigma2 = records[-1].get("sigma2") if records and config.loss == "gaussian" else None
    if config.sigma2 == "auto" and sigma2 and (error := records[-1]["val_mse"]) > OVERCONFIDENT * sigma2:
        return (
            f"Validation mse {error:.5f} is far above sigma2 {sigma2:.5f}, the error of training images: "
            "the model has memorised them. Use a smaller code_size, or more images."
        )
    patience = max(PATIENT_EPOCHS, math.ceil(PATIENT_SHARE * config.total_epochs))
    if len(records) < patience:
        return None
    last = records[-1]
    slower = f"Try a lower learning rate (it is {config.learning_rate:g})"
    if last["val_mse"] >= (constant := constant_mse()):
        weight = "sigma2" if config.loss == "gaussian" else "beta"
        narrower = f", a smaller {weight} or a warm-up" if "val_kl" in last else ""
        return (
            f"After {len(records)} epochs the model is no better than one constant image: validation mse "
            f"{last['val_mse']:.5f}, of the mean image {constant:.5f}. {slower}{narrower}."
        )
    if (waited := epochs_since_best(records)) < patience:
        return None
    best = records[len(records) - 1 - waited]
    learning = last["train_loss"] < best["train_loss"]
    if learning and config.early_stopping:  # which keeps the best epoch
        return None
    return f"Validation has not improved for {waited} epochs, since epoch {best['epoch']:.0f}. " + (
        "The model improves only on its training images: use fewer epochs, or more images."
        if learning
        else f"{slower}."
    )


def diverged(
    position: tuple[int, int], model: Path, config: TrainConfig, runtime: Runtime, phase: object
) -> DivergedError:
    """Return the error of a run whose loss is no longer finite: where, what is kept, and what to try.

    Args:
        position: epoch and step in it, each counted from 0, after which it was found.
        model: path of the last good model, if an epoch was finished.
        config: how the run is trained.
        runtime: of the run.
        phase: the perceptual phase, if the run was in it.
    """
    epoch, step = position
    unseen = step % runtime.steps_between_looks
    when = f"one of the steps {step + 1 - unseen} to {step + 1}" if unseen else f"step {step + 1}"
    kept = f"The last good model, of epoch {epoch}, is {model}."
    tries = f"with a lower learning rate (it was {config.learning_rate:g})"
    if phase:
        tries = "with --perceptual 0, without a sharp decoder,"
    elif config.loss == "gaussian":
        tries += ", a larger sigma2"
    return DivergedError(
        f"The loss is no longer finite at epoch {epoch + 1}, {when}. "
        f"{kept if epoch else 'No epoch was finished, so there is no model yet.'} Try again"
        f"{' in a new folder' if epoch else ''} {tries}{' or --set precision=fp32' if runtime.bf16 else ''}."
    )


def epochs_since_best(records: Sequence[Record]) -> int:
    """Number of epochs since the one with the least validation loss; 0 if it is the last, or none was."""
    if not records:
        return 0
    # While the weight of the KL changes, the losses of two epochs belong to different objectives.
    beta = records[-1].get("beta")
    losses = [record["val_loss"] if record.get("beta") == beta else math.inf for record in records]
    return len(losses) - 1 - losses.index(min(losses))


def epochs_counted(records: Sequence[Record]) -> tuple[int, int]:
    """Return the number of epochs, and that of the sharp decoder, which follow those that were asked for."""
    first = sum("val_loss" in record for record in records)
    return first, len(records) - first


def epochs_waited(run: RunSettings, records: Sequence[Record]) -> int:
    """Number of epochs without a lower validation loss, of those since more epochs were last asked for.

    Args:
        run: its settings.
        records: of its epochs, without those of the sharp decoder.
    """
    since = sum(record["step"] > run.extended_at for record in records)
    return min(since, epochs_since_best(records))


def has_ended(run: RunSettings, records: Sequence[Record]) -> bool:
    """Whether a run has taken all its epochs, or stopped early as it was asked to; not if it was interrupted.

    Args:
        run: its settings.
        records: of all its epochs.
    """
    config, (done, sharp) = run.train, epochs_counted(records)
    first = records[:done]
    is_done = done >= config.total_epochs
    if config.early_stopping:
        is_done = is_done or epochs_waited(run, first) >= config.early_stopping
    return is_done and sharp >= config.all_epochs - config.total_epochs


def read_training(
    folder: Path,
) -> tuple[RunSettings, list[Record], Literal["running", "interrupted", "ended"]]:
    """Read a run, the records of its epochs, and whether it is being trained, can be continued or has ended.

    Raises:
        RunError: the folder holds no run, or a damaged one.
    """
    # Asked first: a run that ends in between has then ended, and was not interrupted.
    is_running = is_locked(folder)
    run, records = read_run(folder), read_metrics(folder)
    if has_ended(run, records):
        return run, records, "ended"
    return run, records, "running" if is_running else "interrupted"


def epochs_in_words(run: RunSettings, records: Sequence[Record]) -> str:
    """Return how many epochs a run has taken and which its model is of: "61 of 200, ..."."""
    config, first = run.train, [record for record in records if "val_loss" in record]
    sharp = epochs_counted(records)[1]
    text = f"{len(first)} of {config.total_epochs}"
    if config.early_stopping and first:
        if len(first) < config.total_epochs and epochs_waited(run, first) >= config.early_stopping:
            text += f", as the last {epochs_waited(run, first)} brought nothing better"
        text += f"; the model is of epoch {first[-1 - epochs_since_best(first)]['epoch']:.0f}"
    planned = config.all_epochs - config.total_epochs
    if not sharp:
        return text
    text += f"; then {f'{sharp} of {planned}' if sharp < planned else sharp} of the sharp decoder"
    if not records[-1].get("sharp_is_kept", 1):  # runs of earlier versions lack it
        text += f", left out{' so far' if sharp < planned else ''}, as its perceptual distance on validation "
        text += "images is not below the faithful one's"
    return text


def constant_image_mse(
    pack: Pack, train_rows: NDArray[np.int64], validation_rows: NDArray[np.int64]
) -> float:
    """Mean squared error per value, on validation images, of the mean training image."""
    return float(constant_image_errors(pack, train_rows, validation_rows[:MEAN_IMAGES]).mean())


def constant_image_errors(
    pack: Pack, train_rows: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean squared error per value (N,) of the mean training image, for each image of `rows` (N,)."""
    total, count = torch.zeros(1), 0
    for images in batches(pack, train_rows[:MEAN_IMAGES], MEAN_BATCH):
        total, count = total + images.double().sum(0), count + len(images)
    mean = total / count
    errors = [(images - mean).square().flatten(1).mean(1) for images in batches(pack, rows, MEAN_BATCH)]
    return torch.cat(errors).double().numpy()
