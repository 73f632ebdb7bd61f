"""What to tell of a run that learns nothing, while there is time to stop it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.data.batches import batches
from autoencode.data.pack import Pack
from autoencode.training.config import TrainConfig
from autoencode.training.runlog import Record

# Epochs without progress before something is said: this share of all, and no fewer than this.
PATIENT_SHARE, PATIENT_EPOCHS = 1 / 3, 3

# Validation error so many times that of training images means a likelihood that is far too sure.
OVERCONFIDENT = 4

# Images that the mean image is measured on; more would move it by less than a level in 255.
MEAN_IMAGES, MEAN_BATCH = 5_000, 64


def advice(records: Sequence[Record], config: TrainConfig, constant_mse: Callable[[], float]) -> str | None:
    """Say what is wrong and what to try, or None where nothing is, or it is too early to say.

    Args:
        records: the lines of metrics.jsonl so far.
        config: how the run is trained.
        constant_mse: gives what `constant_image_mse` measures; asked only once it matters.
    """
    sigma2 = records[-1].get("sigma2") if records and config.loss == "gaussian" else None
    if config.sigma2 == "auto" and sigma2 and (error := records[-1]["val_mse"]) > OVERCONFIDENT * sigma2:
        return (
            f"Validation mse {error:.5f} is far above sigma2 {sigma2:.5f}, the error of training images: "
            "they are known by heart. Use a smaller --code-size, or more images."
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
    # While the weight of the KL changes, losses of two epochs are not of one objective.
    alike = [record for record in records if record.get("beta") == last.get("beta")]
    best = min(alike, key=lambda record: record["val_loss"])
    if (waited := len(alike) - 1 - alike.index(best)) < patience:
        return None
    learning = last["train_loss"] < best["train_loss"]
    return f"Validation has not got better for {waited} epochs, since epoch {best['epoch']:.0f}. " + (
        "The model still gets better on its training images alone: use fewer epochs, or more images."
        if learning
        else f"{slower}."
    )


def constant_image_mse(
    pack: Pack, train_rows: NDArray[np.int64], validation_rows: NDArray[np.int64]
) -> float:
    """Mean squared error a value, on validation images, of the mean of training images."""
    return float(constant_image_errors(pack, train_rows, validation_rows[:MEAN_IMAGES]).mean())


def constant_image_errors(
    pack: Pack, train_rows: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean squared error a value (N,) of the mean of training images, for each image of `rows` (N,)."""
    total, count = torch.zeros(1), 0
    for images in batches(pack, train_rows[:MEAN_IMAGES], MEAN_BATCH):
        total, count = total + images.double().sum(0), count + len(images)
    mean = total / count
    errors = [(images - mean).square().flatten(1).mean(1) for images in batches(pack, rows, MEAN_BATCH)]
    return torch.cat(errors).double().numpy()
