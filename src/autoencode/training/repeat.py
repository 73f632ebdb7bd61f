"""The command that trains a run again, and its settings in words."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from autoencode.models.networks import NETWORKS
from autoencode.training.config import PRESETS, settings

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.training.run import RunSettings

# Where the option is not named as the setting is.
_OPTIONS = {"kl_warmup_cycles": "kl_warmup"}


def command(run: RunSettings, pack: Pack) -> str:
    """Return the command line that trains this run again, from the preset nearest to it."""
    preset, changed = _nearest_preset(run)
    words = ["autoencode", "train", str(pack.folder), "--out", "again", "--preset", preset]
    words += _preprocessing_options(run)
    for name, value in changed.items():
        words += _option(name, value)
    return shlex.join(words)


def in_words(run: RunSettings) -> list[tuple[str, str]]:
    """Return (what, how) pairs that a reader of the page understands without the code."""
    model, config = run.model, run.train
    found = [
        ("model", "variational autoencoder" if model.kind == "vae" else "autoencoder"),
        ("network", f"{NETWORKS[model.network].summary}; channels {', '.join(map(str, model.widths))}"),
        ("code", f"{model.code_size} values an image"),
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
        found.append(("mirrored images", "half of the time"))
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


def _nearest_preset(run: RunSettings) -> tuple[str, dict[str, Any]]:
    asked = {**run.model.to_json(), **run.train.to_json()}
    found = {}
    for name in PRESETS:
        model, config = settings(name)
        known = {**model.to_json(), **config.to_json()}
        found[name] = {key: asked[key] for key in asked if asked[key] != known[key]}
    name = min(found, key=lambda name: len(found[name]))
    return name, found[name]


def _option(name: str, value: Any) -> list[str]:  # noqa: ANN401
    option = "--" + _OPTIONS.get(name, name).replace("_", "-")
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    if name == "widths":
        return [option, ",".join(map(str, value))]
    if name == "corrupt":
        return [word for one in value for word in (option, one)]
    return [option, f"cyclic:{value}" if name == "kl_warmup_cycles" else str(value)]


def _preprocessing_options(run: RunSettings) -> list[str]:
    preprocessing = run.preprocessing
    words = [
        "--size",
        f"{preprocessing.height}x{preprocessing.width}",
        "--resize-mode",
        preprocessing.resize_mode,
    ]
    if tuple(preprocessing.background) != (255, 255, 255):
        words += ["--background", "#{:02x}{:02x}{:02x}".format(*preprocessing.background)]
    return words
