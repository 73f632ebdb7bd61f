"""PRESETS: settings with a name, and how the number and size of images change them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from autoencode.errors import MissingExtraError, check_choice
from autoencode.models.networks import ModelConfig
from autoencode.training.config import TrainConfig, changed, check_fit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from autoencode.data.pack import Pack


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
    "shift": 2,
    "perceptual": 0.125,
}


_RESTORE = {
    "kind": "restorer",
    "network": "gated",
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
    # More of little noise, which images have more often and which takes longer to learn. Dead pixels cost the
    # other kinds little: they are told from detail at once.
    "corrupt": (
        "gaussian:0-0.2/gaussian:0-0.6/clipped-noise:0-0.6/camera-noise:0-0.2/salt-and-pepper:0-0.3",
    ),
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


# Steps that a folder gets at least, by its number of images: few are learnt by heart, and a first try with
# 300 is to end in two minutes on two cores; more are learnt from for longer. 1,418 emoji have an error of
# 0.00551 after 1,000 steps and of 0.00499 after 3,000; 2,992 faces of 0.00721 and 0.00698.
LEAST_STEPS, STEPS_PER_IMAGE, ENOUGH_STEPS = 1_000, 3, 3_000


MOST_STEPS = 40_000  # which take hours


# Side of the images that they are for: a step of larger ones takes longer. 400 steps instead of 200 of 237
# photographs at 128 pixels lower the error by 1 %.
_STEPS_SIDE = 64


# Epochs without a lower error after which the training of few images ends. With 20 to 67 of them the kept
# epoch is the same for 200 faces, 40 photographs, 150 digits and 100 emoji; with 15 that of emoji is worse.
_PATIENCE = 25


_LEAST_RESTORER_STEPS = 3_000


# Batches of the perceptual phase: of few images, for a first try, of many, as a critic has to learn first,
# and in proportion between. Reconstructions of emoji had a KID of 0.323 after 320 batches, 0.238 after 640
# and 0.245 after 1,208. Up to so few images a sharp decoder may learn them by heart: KID by a network that
# trained nothing agrees with the perceptual distance of new images for folders of 44 to 230 images, of two
# kinds; with 730 photographs it falls where that distance rises (docs/results.md).
FEW_IMAGES, _BATCHES_OF_FEW = 300, 200
_MANY_IMAGES, _BATCHES_OF_MANY = 1_000, 640
_LEAST_OF_LARGE = 320  # of many large images: after fewer, a critic has hardly begun to distinguish


_MOST_EPOCHS = 200  # each is validated and saved


# Learning rate when a restorer starts from trained weights; 0.01 is 0.15 dB worse on the folder, 0.2 dB
# elsewhere.
RESTORER_RATE = 0.005


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
    if values.get("self_supervised"):
        # Targets are noisy: two epochs of 6,000 noisy faces end at 20.3 dB with a rate of 0.02, at 21.6 with
        # 0.01 and at 21.2 with 0.005 (docs/log.md).
        values = values | {"corrupt": (), "learning_rate": 0.01} | overrides
    # Settings that a preset adds give way to settings that were asked for and exclude them.
    if values.get("batch_norm") or values.get("adversarial") or values.get("kind") == "restorer":
        values = values | {"perceptual": overrides.get("perceptual", 0.0)}
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

    Raises:
        MissingExtraError: a sharp decoder was asked for, and the pretrained network is not installed.
    """
    # Here, as it imports torch, which --help has no time for.
    from autoencode.models.efficientnet import has_weights

    chosen: list[str] = []
    can_sharpen = not config.perceptual or has_weights()
    if not can_sharpen and "perceptual" in given:
        raise MissingExtraError("", "A sharp decoder")
    if not PRESETS[preset].adapts:
        return model, config, chosen
    images = len(pack.training_rows())
    counted = f"{images:,} training image{'' if images == 1 else 's'}"
    if model.kind != "restorer" and "code_size" not in given:
        # A linear code has no more dimensions than images. On 117 photographs of flowers the error on new
        # ones is 0.0153 with 48 dimensions, 0.0107 with 112 and 0.0105 with 256.
        most = min(images, 3 * pack.preprocessing.height * pack.preprocessing.width // 12)
        model = replace(model, code_size=min(model.code_size, max(16, most // 16 * 16)))
        chosen.append(f"code {model.code_size}")
    if "epochs" not in given:
        steps = -(-images * config.patches_of(pack.preprocessing) // config.batch_size)
        fewest = max(1, min(config.epochs, MOST_STEPS // steps))
        # An image with other damage is another image to a restorer, which few images suffice to train longer.
        side = math.sqrt(pack.preprocessing.height * pack.preprocessing.width)
        smaller = min(1.0, _STEPS_SIDE / side)
        enough = min(max(LEAST_STEPS, STEPS_PER_IMAGE * images), ENOUGH_STEPS)
        least = _LEAST_RESTORER_STEPS if model.kind == "restorer" else round(enough * smaller)
        epochs = max(fewest, min(_MOST_EPOCHS, -(-least // steps)))
        if epochs > fewest and model.kind != "restorer" and "early_stopping" not in given:
            # More epochs than usual show few images so often that a model learns these by heart. Of 150
            # diverse images the error on new ones was least after 36 epochs, and 6 % higher after 99.
            config = replace(config, early_stopping=min(-(-epochs // 3), _PATIENCE))
        config = replace(config, epochs=epochs)
        chosen.append(f"{epochs} epochs{' at most' if config.early_stopping else ''}")
        if config.perceptual and "perceptual" not in given:
            many = min(1.0, max(0.0, (images - FEW_IMAGES) / (_MANY_IMAGES - FEW_IMAGES)))
            batches = _BATCHES_OF_FEW + many * (_BATCHES_OF_MANY - _BATCHES_OF_FEW)
            batches = max(smaller * batches, many * _LEAST_OF_LARGE)
            share = batches / (steps * config.epochs)
            config = replace(config, perceptual=round(max(config.perceptual, min(1.0, share)), 3))
    if not can_sharpen:
        config = replace(config, perceptual=0.0)
        chosen.append("no sharp decoder, as the weights of EfficientNet-Lite0 are not installed")
    return model, config, [f"{' and '.join(chosen)}: {counted}"] if chosen else []
