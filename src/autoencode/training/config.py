"""How to train, and the presets: the paper's settings, and better ones, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from autoencode.configuration import Loss, check_fields
from autoencode.data.corruptions import parse_corruptions
from autoencode.errors import ConfigError
from autoencode.models.networks import ModelConfig
from autoencode.pixels import SIGMA2_FLOOR

Optimizer = Literal["adamax", "adamw"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        epochs: passes over the training images (after the warm-up, where there is one).
        batch_size: images a step.
        accumulate: pieces that a step is computed in, one after the other, which takes less memory; the
            gradients are summed, and nothing changes but rounding. Not with batch normalisation.
        loss: "mse" or "mae" an image value; "gaussian": a VAE's likelihood with variance `sigma2`.
        sigma2: variance of the Gaussian likelihood, or "auto": the maximum-likelihood one, learned.
        beta: weight of the KL of a VAE.
        kl_warmup: epochs over which that weight rises linearly from 0, before `epochs` begins.
        kl_warmup_cycles: instead, this many rises from 0 spread over `epochs`.
        optimizer: "adamax" or "adamw".
        learning_rate: its step size.
        schedule: "constant", or "cosine": a short rise, then down to 0 at the last step.
        grad_clip: largest norm of the gradient, as a multiple of the loss a run starts from; 0 for no limit.
        horizontal_flip: show each image mirrored half of the time, which is as good as more images.
        ema: decay a step of the average of the weights that becomes the model; 0 for the last weights.
        corrupt: what is done to the images the encoder sees, such as ("gaussian:0.3",).
        adversarial: train a discriminator beside a VAE, and the VAE on what it sees (see `adversarial`).
        seed: every random choice follows from it.

    Raises:
        ConfigError: a value that cannot be used.
    """

    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    loss: Loss = "mse"
    sigma2: float | Literal["auto"] = "auto"
    beta: float = 1.0
    kl_warmup: int = 0
    kl_warmup_cycles: int = 0
    optimizer: Optimizer = "adamax"
    learning_rate: float = 2e-3
    schedule: Schedule = "constant"
    grad_clip: float = 0.0
    horizontal_flip: bool = False
    ema: float = 0.0
    corrupt: tuple[str, ...] = ()
    adversarial: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, choices in (("loss", Loss), ("optimizer", Optimizer), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"Unknown {name} {getattr(self, name)!r}. Choose {_or(get_args(choices))}.")
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("accumulate", self.accumulate, 1)
        _at_least("kl_warmup", self.kl_warmup, 0)
        _at_least("kl_warmup_cycles", self.kl_warmup_cycles, 0)
        _at_least("beta", self.beta, 0)
        _at_least("grad_clip", self.grad_clip, 0)
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate:g}; it must be above 0.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema:g}; it must be at least 0 and below 1.")
        fixed = math.nan if isinstance(self.sigma2, str) else self.sigma2
        if self.sigma2 != "auto" and not SIGMA2_FLOOR <= fixed < math.inf:
            raise ConfigError(
                f"sigma2 is {self.sigma2!r}; it must be 'auto' or at least {SIGMA2_FLOOR:.2g}, the variance "
                "of rounding to 8 bits."
            )
        if self.kl_warmup and self.kl_warmup_cycles:
            raise ConfigError("Give either a warm-up in epochs or a number of cycles, not both.")
        parse_corruptions(self.corrupt)

    @property
    def total_epochs(self) -> int:
        """Epochs of the warm-up and those after it."""
        return self.kl_warmup + self.epochs

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Rebuild from `to_json`.

        Raises:
            ConfigError: a value cannot be used.
        """
        return cls(**values)


_BEST = {
    "network": "residual",
    "widths": (32, 64, 128),
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "grad_clip": 1.0,
    "horizontal_flip": True,
}
_PAPER_VAE = {"kind": "vae", "loss": "gaussian", "sigma2": 0.01, "epochs": 200}

# What differs from ModelConfig() and TrainConfig(), whose defaults are the paper's autoencoder.
PRESETS: dict[str, dict[str, Any]] = {
    "paper-ae": {},
    "paper-denoise": {"corrupt": ("gaussian:0.3",)},
    "paper-dropout": {"corrupt": ("dropout:0.3",)},
    "paper-vae": _PAPER_VAE,
    "paper-vae-warmup": {**_PAPER_VAE, "batch_norm": True, "kl_warmup": 40},
    "best": _BEST,
    "best-vae": {**_BEST, "kind": "vae", "loss": "gaussian", "sigma2": "auto"},
}
DEFAULT_PRESET = "paper-ae"


def settings(preset: str = DEFAULT_PRESET, **overrides: Any) -> tuple[ModelConfig, TrainConfig]:  # noqa: ANN401
    """Return a preset with some settings changed.

    Args:
        preset: a name in `PRESETS`, or "paper", short for "paper-ae".
        **overrides: fields of `ModelConfig` and `TrainConfig`. Where a VAE is asked for and no loss, the
            loss is "gaussian".

    Raises:
        ConfigError: no such preset or setting, a value that cannot be used, or values that do not fit.
    """
    preset = DEFAULT_PRESET if preset == "paper" else preset
    if preset not in PRESETS:
        raise ConfigError(f"Unknown preset {preset!r}. Choose {_or(PRESETS)}.")
    values = PRESETS[preset] | overrides
    if values.get("kind") == "vae":
        values = {"loss": "gaussian"} | values
    model, config = changed(ModelConfig(), TrainConfig(), values)
    check_fit(model, config, given=overrides.keys())
    return model, config


def changed(
    model: ModelConfig, config: TrainConfig, values: Mapping[str, Any]
) -> tuple[ModelConfig, TrainConfig]:
    """Return both with the fields of either that `values` names replaced.

    Raises:
        ConfigError: neither has such a field, or a value that cannot be used.
    """
    model_names = {field.name for field in fields(ModelConfig)}
    train_names = {field.name for field in fields(TrainConfig)}
    if unknown := sorted(values.keys() - model_names - train_names):
        known = ", ".join(sorted(model_names | train_names))
        raise ConfigError(f"Unknown setting {', '.join(unknown)}. There are: {known}.")
    return (
        replace(model, **{name: values[name] for name in values.keys() & model_names}),
        replace(config, **{name: values[name] for name in values.keys() & train_names}),
    )


def check_fit(model: ModelConfig, config: TrainConfig, given: Any = ()) -> None:  # noqa: ANN401
    """Reject settings that would silently do nothing.

    Raises:
        ConfigError: a setting of a VAE's objective for a model that is none, or pieces of a batch that needs
            to be whole.
    """
    if config.accumulate > 1 and (model.batch_norm or config.adversarial):
        needs = "Batch normalisation" if model.batch_norm else "Adversarial training"
        raise ConfigError(f"{needs} needs the whole batch at once. Leave --accumulate out.")
    if model.kind == "vae":
        if config.loss != "gaussian" and "sigma2" in given:
            raise ConfigError("sigma2 belongs to the gaussian loss. Use --loss gaussian, or leave it out.")
        return
    if config.loss == "gaussian":
        raise ConfigError("The gaussian loss is a VAE's likelihood. Use --kind vae, or --loss mse.")
    if config.adversarial:
        raise ConfigError("Only a VAE is trained adversarially. Add --kind vae, or leave --adversarial out.")
    if useless := sorted({"sigma2", "beta", "kl_warmup", "kl_warmup_cycles"} & set(given)):
        raise ConfigError(f"Only a VAE has {_or(useless)}. Add --kind vae, or leave it out.")


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ConfigError(f"{name} is {value:g}; it must be at least {least}.")


def _or(names: Any) -> str:  # noqa: ANN401
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
