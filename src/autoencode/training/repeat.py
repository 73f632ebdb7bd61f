"""A run's settings for people: as the file that repeats the run, and in words."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from autoencode.models.networks import NETWORKS
from autoencode.training.config import RuntimeConfig, settings_file

if TYPE_CHECKING:
    from pathlib import Path

    from autoencode.data.pack import Pack
    from autoencode.training.run import RunSettings

CONFIG_NAME = "run.toml"


def run_file(run: RunSettings) -> str:
    """Return the settings of a run as a file that `autoencode train --config` takes."""
    runtime = RuntimeConfig(run.device, "bf16" if run.bf16 else "fp32", run.channels_last)
    title = "Settings of the run in this folder. Changing them here does not change the run."
    return settings_file(title, (run.model, run.train, run.preprocessing, runtime))


def command(folder: Path, pack: Pack) -> str:
    """Return the command line that trains the run in a folder again, on the images of its pack."""
    config = str(folder / CONFIG_NAME)
    return shlex.join(["autoencode", "train", str(pack.folder), "--config", config, "--out", "again"])


def in_words(run: RunSettings) -> list[tuple[str, str]]:
    """Return (setting, value) pairs that a reader of the page understands without the code."""
    model, config = run.model, run.train
    found = [
        ("model", "variational autoencoder" if model.kind == "vae" else "autoencoder"),
        ("network", f"{NETWORKS[model.network].summary}; channels {', '.join(map(str, model.widths))}"),
        ("code", f"{model.code_size} dimensions"),
        ("batch normalisation", "after each convolution" if model.batch_norm else "none"),
        ("images", f"{run.preprocessing.height}x{run.preprocessing.width}, {run.preprocessing.resize_mode}"),
        ("loss", _loss(run)),
        ("epochs", _epochs(run)),
        ("optimiser", f"{config.optimizer}, rate {config.learning_rate:g}, {config.schedule}"),
        ("batch", f"{config.batch_size} images"),
    ]
    if config.corrupt:
        found.append(("what the encoder sees", ", ".join(config.corrupt)))
    if config.horizontal_flip:
        found.append(("horizontal flip", "half of the time"))
    found.append(("seed", str(config.seed)))
    return found


def _loss(run: RunSettings) -> str:
    config = run.train
    if run.model.kind != "vae":
        return {"mse": "mean squared error", "mae": "mean absolute error"}.get(config.loss, config.loss)
    likelihood = {
        "mse": "squared errors summed over an image, a Gaussian likelihood with sigma2 0.5",
        "mae": "absolute errors summed over an image, a Laplace likelihood of scale 1",
    }.get(config.loss, f"Gaussian likelihood, sigma2 {config.sigma2}")
    return f"{likelihood}, and {config.beta:g} times the KL"


def _epochs(run: RunSettings) -> str:
    config = run.train
    if config.kl_warmup:
        return f"{config.kl_warmup} of warm-up and {config.epochs}"
    cycles = f", {config.kl_warmup_cycles} cycles of warm-up" if config.kl_warmup_cycles else ""
    return f"{config.epochs}{cycles}"
