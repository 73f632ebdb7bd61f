"""How to train: TrainConfig, RuntimeConfig, the presets, and files of settings.

Settings have one namespace: a field of `ModelConfig`, `TrainConfig`, `Preprocessing`, `Limits` or
`RuntimeConfig` has the same name in Python, in a file of settings and after --set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from autoencode.configuration import (
    Loss,
    Precision,
    check_fields,
    read_assignment,
    read_toml,
    toml_lines,
    types_of,
    unknown_setting,
)
from autoencode.data.corruptions import CORRUPTIONS, example, parse_corruptions
from autoencode.errors import ConfigError, any_of, check_choice
from autoencode.models.networks import ModelConfig
from autoencode.pixels import SIGMA2_FLOOR

if TYPE_CHECKING:
    from pathlib import Path

    from autoencode.data.pack import Pack
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
            place; 0 for the whole image. An epoch has as many of each image as cover it.
        horizontal_flip: mirror each image left to right half of the time, which acts like more images.
        ema: decay per step of the average of the weights that becomes the model; 0 keeps the last weights.
        corrupt: corruptions of the images that the model sees, which it learns to undo.
        early_stopping: epochs without a lower validation loss after which training ends; the model is that of
            the epoch with the lowest. 0 trains to the last epoch, which is then the model.
        self_supervised: learn to remove noise from images that are all noisy themselves, instead of adding
            damage to clean ones; for white noise, and a restorer only.
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
    ema: float = 0.0
    corrupt: tuple[str, ...] = field(default=(), metadata={"entries": lambda: map(example, CORRUPTIONS)})
    early_stopping: int = 0
    self_supervised: bool = False
    adversarial: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("epochs", "batch_size", "accumulate"):
            _check_at_least(name, getattr(self, name), 1)
        for name in ("kl_warmup", "kl_warmup_cycles", "beta", "grad_clip", "early_stopping", "patch"):
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
    def fixes_epochs(self) -> str | None:
        """What spans all epochs, so that more would change the steps already taken; None for nothing."""
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


class Preset(NamedTuple):
    """Settings with a name.

    Attributes:
        summary: its purpose, in one line.
        changes: the settings that differ from `ModelConfig()` and `TrainConfig()`, the paper's.
        adapts: whether the images decide `code_size` and `epochs` where nobody else does; see `adapted`.
    """

    summary: str
    changes: dict[str, Any]
    adapts: bool = False


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
_RESTORE = {
    "kind": "restorer",
    "network": "restore",
    "widths": (32, 64, 128),
    "epochs": 20,
    "batch_size": 16,
    "loss": "log_mse",
    "optimizer": "muon",
    "learning_rate": 0.02,
    "schedule": "cosine",
    "grad_clip": 1.0,
    "patch": 64,
    "horizontal_flip": True,
    # More of little noise, which images have more often and which takes longer to learn.
    "corrupt": ("gaussian:0-0.2/gaussian:0-0.6/camera-noise:0-0.3",),
}
_BEST_VAE = {**_BEST, "kind": "vae", "loss": "gaussian", "sigma2": "auto"}
_PAPER_VAE = {"kind": "vae", "loss": "gaussian", "sigma2": 0.01, "epochs": 200}
_PAPER_VAE_WARMUP = {**_PAPER_VAE, "batch_norm": True, "kl_warmup": 40}

PRESETS = {
    "best": Preset("the lowest error; the default", _BEST, adapts=True),
    "best-vae": Preset("the same as a VAE, which can generate", _BEST_VAE, adapts=True),
    "restore": Preset("removes noise and other damage from images of any size", _RESTORE, adapts=True),
    "paper-ae": Preset("the paper's autoencoder", {}),
    "paper-denoise": Preset("the paper's, trained to remove noise", {"corrupt": ("gaussian:0.3",)}),
    "paper-dropout": Preset("the paper's, trained to fill in lost values", {"corrupt": ("dropout:0.3",)}),
    "paper-vae": Preset("the paper's VAE, 200 epochs", _PAPER_VAE),
    "paper-vae-warmup": Preset("with KL warm-up and batch normalisation, 240 epochs", _PAPER_VAE_WARMUP),
}
DEFAULT_PRESET = "best"

# Steps that a folder of any size gets. On 150 photographs of flowers the error on new images was .0161 after
# 40 steps, .0149 after 200 and .0186 after 600; on 150 parts .00538, .00536 and no less. The most are hours.
LEAST_STEPS, MOST_STEPS = 250, 40_000
_LEAST_RESTORER_STEPS = 3_000
_MOST_EPOCHS = 200  # each is validated and saved


def settings(preset: str = DEFAULT_PRESET, **overrides: Any) -> tuple[ModelConfig, TrainConfig]:  # noqa: ANN401
    """Return a preset with some settings changed.

    Args:
        preset: a name in `PRESETS`.
        **overrides: fields of `ModelConfig` and `TrainConfig`. Where a VAE is asked for and no loss, the
            loss is "gaussian".

    Raises:
        ConfigError: no such preset or setting, a value that cannot be used, or values that do not fit.
    """
    check_choice("preset", preset, PRESETS)
    values = PRESETS[preset].changes | overrides
    # --kind vae alone has to work, and only the Gaussian loss is the likelihood that a VAE needs.
    if values.get("kind") == "vae":
        values = {"loss": "gaussian"} | values
    if values.get("self_supervised") and "corrupt" not in overrides:
        values = values | {"corrupt": ()}
    model, config = changed(ModelConfig(), TrainConfig(), values)
    check_fit(model, config, given=overrides.keys())
    return model, config


def adapted(
    preset: str, model: ModelConfig, config: TrainConfig, pack: Pack, given: Iterable[str]
) -> tuple[ModelConfig, TrainConfig, list[str]]:
    """Return the settings with the code size and the number of epochs that suit the images.

    Args:
        preset: the name of the preset that they come from; most keep their numbers whatever the images.
        model, config: the settings.
        pack: the images.
        given: names of the settings that were asked for, which are kept.

    Returns:
        Both, and a few words on each choice.
    """
    chosen: list[str] = []
    if not PRESETS[preset].adapts:
        return model, config, chosen
    images = len(pack.training_rows())
    counted = f"{images:,} training image{'' if images == 1 else 's'}"
    if model.kind != "restorer" and "code_size" not in given:
        # A linear code has no more dimensions than images. On 117 photographs of flowers the error on new
        # ones is .0153 with 48 dimensions, .0107 with 112 and .0105 with 256.
        most = min(images, 3 * pack.preprocessing.height * pack.preprocessing.width // 12)
        model = replace(model, code_size=min(model.code_size, max(16, most // 16 * 16)))
        chosen.append(f"code {model.code_size}")
    if "epochs" not in given:
        steps = -(-images * config.patches_of(pack.preprocessing) // config.batch_size)
        fewest = max(1, min(config.epochs, MOST_STEPS // steps))
        # An image with other damage is another image to a restorer, which few images suffice to train longer.
        least = _LEAST_RESTORER_STEPS if model.kind == "restorer" else LEAST_STEPS
        config = replace(config, epochs=max(fewest, min(_MOST_EPOCHS, -(-least // steps))))
        chosen.append(f"{config.epochs} epochs")
    return model, config, [f"{' and '.join(chosen)}: {counted}"] if chosen else []


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


def train_arguments(
    file: Path | None, assignments: Iterable[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `train` that a command line asks for.

    Args:
        file: a file of settings; what follows overrides it.
        assignments: NAME=VALUE each, as given to --set.
        given: settings that have options of their own, by name.

    Raises:
        ConfigError: the file or an assignment cannot be read, a setting is unknown or has another type, or
            one is given twice.
    """
    from autoencode.data.preprocessing import Limits, Preprocessing

    known: dict[str, Any] = {"preset": str}
    for section in _sections().values():
        known |= types_of(type(section))
    values = {} if file is None else read_toml(file, known)
    assigned: dict[str, Any] = {}
    for name, value in (read_assignment(text, known) for text in assignments):
        if name in assigned or name in given:
            # --size is two settings: somebody who typed it may not know their names.
            option = "--size" if name in ("height", "width") else f"--{name.replace('_', '-')}"
            other = f", by --set and {option}" if name in given else ""
            raise ConfigError(f"{name} is given twice{other}. Leave one of the two out.")
        assigned[name] = value
    values |= {**assigned, **given}
    # `train` takes these one by one, so that their types are checked here.
    RuntimeConfig(**{name: values[name] for name in types_of(RuntimeConfig) if name in values})
    for argument, kind in (("preprocessing", Preprocessing), ("limits", Limits)):
        own = {name: values.pop(name) for name in types_of(kind) if name in values}
        if own:  # otherwise the images, the pack or the run that is continued decide
            checked = kind(**own)
            values[argument] = checked if kind is Limits else own
    return values


def preset_file(name: str) -> str:
    """Return a preset as a file of settings; those that no preset decides are comments with their defaults.

    Raises:
        ConfigError: no such preset.
    """
    chosen = settings(name)
    return settings_file(f"Preset {name}: {PRESETS[name].summary}.", chosen)


def settings_file(title: str, chosen: Iterable[Any]) -> str:
    """Return a file of settings that --config takes.

    Args:
        title: its first line.
        chosen: the settings to write, instances of their classes. The settings of other classes are comments
            with their defaults.
    """
    by_kind = {type(one): one for one in chosen}
    parts = [f"# {title}\n# autoencode train IMAGES --config THIS-FILE --out RUN\n"]
    for heading, default in _sections().items():
        lines = toml_lines(by_kind.get(type(default), default), active=type(default) in by_kind)
        parts.append(f"\n# ---- {heading} ----\n\n{lines}")
    return "\n".join(parts)


def _sections() -> dict[str, Any]:
    """Return all settings with their defaults, by the heading of each class in a file."""
    # Imported here, as it imports NumPy, which --help has no time for.
    from autoencode.data.preprocessing import Limits, Preprocessing

    return {
        "Model": ModelConfig(),
        "Training": TrainConfig(),
        "Images": Preprocessing(),
        "Limits on image files": Limits(),
        "This machine": RuntimeConfig(),
    }


def _check_at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ConfigError(f"{name} is {value:g}; it must be at least {least}.")
