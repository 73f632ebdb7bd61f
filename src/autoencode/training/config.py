"""How to train: TrainConfig and RuntimeConfig, and which of their settings fit together.

Settings have one namespace: a field of `ModelConfig`, `TrainConfig`, `Preprocessing`, `Limits` or
`RuntimeConfig` has the same name in Python, in a file of settings and after --set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from autoencode.configuration import (
    Loss,
    Precision,
    check_fields,
    unknown_setting,
)
from autoencode.data.corruptions import CORRUPTIONS, example, parse_corruptions
from autoencode.errors import ConfigError, any_of
from autoencode.models.networks import ModelConfig
from autoencode.pixels import SIGMA2_FLOOR

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Preprocessing

Optimizer = Literal["adamax", "adamw", "muon"]
Schedule = Literal["constant", "cosine"]

_FASTEST = 1e30


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        epochs: passes over the training images, after those of `kl_warmup`.
        batch_size: images per step, of all processes together.
        accumulate: micro-batches that a step is computed in, one after the other, which takes less memory.
            Gradients are summed, so that nothing changes but rounding. Not with batch normalisation.
        loss: "mse" or "mae" is the mean error of a pixel value; "log_mse" the mean logarithm of the squared
            error of an image, by which little and much damaged images count the same; "gaussian" the
            likelihood that a VAE needs, with variance `sigma2`.
        sigma2: variance of the Gaussian likelihood, or "auto" to learn the maximum-likelihood one.
        beta: weight of the KL divergence in the objective of a VAE.
        kl_warmup: epochs over which `beta` rises linearly from 0, before `epochs` begins.
        kl_warmup_cycles: how often `beta` rises from 0 within `epochs`, instead of `kl_warmup`.
        optimizer: "adamax", "adamw", or "muon", which turns the steps of matrices into rotations.
        learning_rate: step size of the optimizer.
        schedule: learning rate: "constant", or "cosine", a short rise and then down to 0 at the last step.
        grad_clip: largest norm of the gradient, as a multiple of the loss a run starts from; 0 for no limit.
        patch: side in pixels of the square of each image that a step of a restorer learns from, at a random
            place; 0 for the whole image. An epoch has as many of each image as cover it. Patches of larger
            images are averaged from up to four times the side, which makes soft photographs sharp.
        horizontal_flip: mirror each image left to right half of the time, which acts like more images.
        shift: the largest random shift of an image in pixels, in each direction, which acts like more images.
        ema: decay per step of the average of the weights that becomes the model; 0 keeps the last weights.
        corrupt: corruptions of the images that the model sees, which it learns to undo.
        early_stopping: epochs without a lower validation loss after which training ends; the model is that of
            the epoch with the lowest. 0 trains to the last epoch, which is then the model.
        self_supervised: learn to remove noise from images that are all noisy themselves, instead of adding
            damage to clean ones; for white noise, and a restorer only.
        perceptual: steps of a second phase, as a share of those before it, in which a second, sharp decoder
            learns to match features of a pretrained network and to deceive a critic; 0 for no such decoder.
        adversarial: train a discriminator beside a VAE, and the VAE on its features (VAE/GAN).
        seed: seed of every random choice.

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
    patch: int = 0
    horizontal_flip: bool = False
    shift: int = 0
    ema: float = 0.0
    corrupt: tuple[str, ...] = field(default=(), metadata={"entries": lambda: map(example, CORRUPTIONS)})
    early_stopping: int = 0
    self_supervised: bool = False
    perceptual: float = 0.0
    adversarial: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("epochs", "batch_size", "accumulate"):
            _check_at_least(name, getattr(self, name), 1)
        for name in (
            "kl_warmup",
            "kl_warmup_cycles",
            "beta",
            "grad_clip",
            "early_stopping",
            "patch",
            "shift",
            "perceptual",
        ):
            _check_at_least(name, getattr(self, name), 0)
        # An optimiser divides it by 0.1 in its first step, and torch has no one-line error for a step beyond
        # fp32; a rate below the limit ends as a diverged run, which says what to try.
        if not 0 < self.learning_rate <= _FASTEST:
            raise ConfigError(
                f"learning_rate is {self.learning_rate:g}; it must be above 0, and at most {_FASTEST:g}."
            )
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema:g}; it must be at least 0 and below 1.")
        if self.sigma2 != "auto" and not SIGMA2_FLOOR <= self.sigma2 < math.inf:
            raise ConfigError(
                f"sigma2 is {self.sigma2!r}; it must be 'auto' or at least {SIGMA2_FLOOR:.2g}, the variance "
                "of rounding to 8 bits."
            )
        if self.kl_warmup and self.kl_warmup_cycles:
            raise ConfigError("Set either kl_warmup or kl_warmup_cycles, not both.")
        parse_corruptions(self.corrupt)

    def patches_of(self, preprocessing: Preprocessing) -> int:
        """Return the number of patches of each image in an epoch, at least 1."""
        area = preprocessing.height * preprocessing.width
        return max(1, round(area / self.patch**2)) if self.patch else 1

    @property
    def total_epochs(self) -> int:
        """Epochs of the warm-up and those after it."""
        return self.kl_warmup + self.epochs

    @property
    def all_epochs(self) -> int:
        """Epochs of both phases; the last may be shorter than the others."""
        return self.total_epochs + self.perceptual_steps(self.total_epochs)

    def perceptual_steps(self, steps: int) -> int:
        """Return the steps, or epochs begun, of the perceptual phase after so many of the first."""
        return math.ceil(self.perceptual * steps - 1e-6)  # without the rounding of the product

    @property
    def fixes_epochs(self) -> str | None:
        """The setting that spans all epochs, so that more would change steps already taken, or None."""
        if self.kl_warmup_cycles:
            return "the cycles of its beta span all epochs"
        return "its discriminator joins at half of them" if self.adversarial else None

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


@dataclass(frozen=True)
class RuntimeConfig:
    """How a run computes on its machine; the model differs by rounding at most.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps".
        precision: of convolutions: "auto" (bf16 where the hardware multiplies it), "fp32" or "bf16".
        channels_last: images lie in memory with their channels innermost, which is faster.
        keep_memory: keep the memory that a step frees for the next step: faster, for up to 1 GB more.
        checkpoint_every: steps between checkpoints, besides the one at the end of each epoch; 0 for none.

    Raises:
        ConfigError: a value has another type, or is none of the choices.
    """

    device: str = "auto"
    precision: Precision = "auto"
    channels_last: bool = True
    keep_memory: bool = True
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_at_least("checkpoint_every", self.checkpoint_every, 0)


def changed(
    model: ModelConfig, config: TrainConfig, values: Mapping[str, Any]
) -> tuple[ModelConfig, TrainConfig]:
    """Return both with the fields of either that `values` names replaced.

    Raises:
        ConfigError: neither has such a field, or a value that cannot be used.
    """
    of_model, of_train = ({field.name for field in fields(one)} for one in (model, config))
    # Sorted, as the first is named: the error must not depend on the hash of a set.
    for name in sorted(values.keys() - of_model - of_train):
        raise unknown_setting(name, of_model | of_train)
    return (
        replace(model, **{name: values[name] for name in values.keys() & of_model}),
        replace(config, **{name: values[name] for name in values.keys() & of_train}),
    )


def check_shift(shift: int, side: int) -> None:
    """Reject a shift of images by more than half of their shorter side, both in pixels.

    Raises:
        ConfigError: it is too large; the message has the largest that is not.
    """
    if 2 * shift > side:
        raise ConfigError(
            f"A shift of {shift} pixels is more than half of images of {side} pixels. "
            f"Use {side // 2} at most."
        )


def check_fit(model: ModelConfig, config: TrainConfig, given: Iterable[str] = ()) -> None:
    """Reject settings that would silently do nothing.

    Args:
        model: the network.
        config: how it is trained.
        given: names of the settings that were asked for. Those of a VAE may be given for an autoencoder where
            they have their defaults, as a whole file of settings does.

    Raises:
        ConfigError: a setting of a VAE's objective for an autoencoder, or micro-batches where the whole batch
            is needed.
    """
    if config.accumulate > 1 and (model.batch_norm or config.adversarial):
        needs = "Batch normalisation" if model.batch_norm else "Adversarial training"
        raise ConfigError(f"{needs} needs the whole batch at once. Leave accumulate at 1.")
    # Only what was asked for: a preset of a VAE may set what another setting then makes useless.
    default = TrainConfig()
    asked = {name for name in given if getattr(config, name, None) != getattr(default, name, None)}
    if config.patch and model.kind != "restorer":
        raise ConfigError("A code is of a whole image. Leave patch at 0, or use --preset restore.")
    if config.self_supervised and model.kind != "restorer":
        raise ConfigError("Only a restorer is trained self-supervised. Use --preset restore.")
    if config.self_supervised and config.corrupt:
        raise ConfigError(
            "Self-supervised training uses images as they are. Leave corrupt out, or self_supervised."
        )
    if config.self_supervised and config.shift:
        # Noise that is repeated along a border is not independent of its neighbours, as the loss assumes.
        raise ConfigError("Self-supervised training does not shift images. Leave shift at 0.")
    if config.perceptual and model.kind == "restorer":
        raise ConfigError("A restorer has no second decoder. Leave perceptual at 0.")
    if config.perceptual and (model.batch_norm or config.adversarial):
        other = "batch_norm" if model.batch_norm else "adversarial"
        raise ConfigError(f"Set either perceptual or {other}, not both.")
    if model.kind == "restorer" and model.code_size != ModelConfig.code_size:
        raise ConfigError("A restorer has no code. Leave code_size out.")
    if model.kind == "vae":
        if config.loss != "gaussian" and "sigma2" in asked:
            raise ConfigError(
                "sigma2 belongs to the gaussian loss. Set loss to gaussian, or leave sigma2 out."
            )
        return
    if config.loss == "gaussian":
        raise ConfigError("The gaussian loss is a VAE's likelihood. Use --kind vae, or set loss to mse.")
    if config.adversarial:
        raise ConfigError("Only a VAE is trained adversarially. Use --kind vae, or leave adversarial out.")
    if useless := sorted({"sigma2", "beta", "kl_warmup", "kl_warmup_cycles"} & asked):
        raise ConfigError(f"Only a VAE has {any_of(useless)}. Use --kind vae, or leave it out.")


def _check_at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ConfigError(f"{name} is {value:g}; it must be at least {least}.")
