"""Presets are the paper's settings, and settings that cannot be used are rejected."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from autoencode import PRESETS, ConfigError, Limits, ModelConfig, Preprocessing, TrainConfig, settings
from autoencode.configuration import documentation
from autoencode.errors import any_of
from autoencode.training.config import RuntimeConfig

CLASSES = (ModelConfig, TrainConfig, Preprocessing, Limits, RuntimeConfig)


def test_the_default_is_the_best_preset() -> None:
    assert settings() == settings("best")
    assert settings()[0].network == "residual"


def test_the_first_preset_of_the_paper_is_its_autoencoder() -> None:
    model, config = settings("paper-ae")
    assert (model.kind, model.code_size, model.widths) == ("autoencoder", 256, (32, 64, 128, 256))
    assert not model.batch_norm
    assert (config.epochs, config.batch_size, config.optimizer) == (10, 128, "adamax")
    assert (config.loss, config.corrupt, config.schedule) == ("mse", (), "constant")
    assert (config.learning_rate, config.ema, config.kl_warmup) == (2e-3, 0, 0)
    assert (Preprocessing().height, Preprocessing().width) == (128, 128)
    assert settings("paper-ae") == (ModelConfig(), TrainConfig())


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper-denoise", {"kind": "autoencoder", "corrupt": ("gaussian:0.3",), "epochs": 10}),
        ("paper-dropout", {"kind": "autoencoder", "corrupt": ("dropout:0.3",), "epochs": 10}),
        (
            "paper-vae",
            {
                "kind": "vae",
                "loss": "gaussian",
                "sigma2": 0.01,
                "beta": 1,
                "kl_warmup": 0,
                "batch_norm": False,
            },
        ),
        (
            "paper-vae-warmup",
            {"kind": "vae", "sigma2": 0.01, "kl_warmup": 40, "epochs": 200, "batch_norm": True},
        ),
    ],
)
def test_presets_hold_the_values_of_the_paper(preset: str, expected: dict[str, Any]) -> None:
    model, config = settings(preset)
    found = model.to_json() | config.to_json()
    assert {name: found[name] for name in expected} == expected
    assert (config.optimizer, config.batch_size, config.schedule) == ("adamax", 128, "constant")
    assert (model.widths, model.code_size) == ((32, 64, 128, 256), 256)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_used_and_survives_json(preset: str) -> None:
    model, config = settings(preset)
    assert ModelConfig.from_json(json.loads(json.dumps(model.to_json()))) == model
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_given_change_the_preset() -> None:
    model, config = settings("paper-vae", code_size=64, epochs=3, sigma2="auto")
    assert (model.kind, model.code_size) == ("vae", 64)
    assert (config.epochs, config.sigma2, config.total_epochs) == (3, "auto", 3)
    assert settings("paper-vae-warmup")[1].total_epochs == 240


def test_a_vae_has_the_gaussian_loss_unless_another_is_asked_for() -> None:
    assert settings(kind="vae")[1].loss == "gaussian"
    assert settings(kind="vae", loss="mae")[1].loss == "mae"
    assert settings()[1].loss == "mse"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"learning_rate": 0}, "learning_rate is 0; it must be above 0, and at most 1e+30"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"learning_rate": 2e30}, "learning_rate is 2e+30"),
        ({"learning_rate": 1e300}, "learning_rate is too large; the largest number is 3.4e+38"),
        ({"sigma2": 1e300}, "sigma2 is too large; the largest number is 3.4e+38"),
        ({"ema": 1.0}, "below 1"),
        ({"kl_warmup": -1}, "kl_warmup is -1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"sigma2": 0}, "at least 1.3e-06, the variance of rounding"),
        ({"sigma2": float("nan")}, "sigma2 is nan"),
        ({"kl_warmup": 1, "kl_warmup_cycles": 2}, "either kl_warmup or kl_warmup_cycles, not both"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; it must be 'adamax', 'adamw' or 'muon'"),
        ({"loss": "huber"}, "loss is 'huber'; it must be 'mse', 'mae', 'gaussian' or 'log_mse'"),
        ({"schedule": "step"}, "schedule is 'step'; it must be 'constant' or 'cosine'"),
        ({"corrupt": ("haze:2",)}, "Cannot corrupt by haze:2"),
        ({"corrupt": ("gaussian",)}, "gaussian:STANDARD_DEVIATION"),
    ],
)
def test_values_that_cannot_be_used_are_rejected(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**wrong)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("epochs", 2.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("epochs", "3", "a whole number"),
        ("batch_size", None, "a whole number"),
        ("learning_rate", "0.1", "a number"),
        ("learning_rate", True, "a number"),
        ("horizontal_flip", 1, "true or false"),
        ("sigma2", "wide", None),
        ("sigma2", None, "a number or 'auto'"),
        ("corrupt", "gaussian:0.3", "a list of texts"),
        ("corrupt", (0.3,), "a list of texts"),
        ("loss", 1, "'mse', 'mae', 'gaussian' or 'log_mse'"),
        ("code_size", 8.0, "a whole number"),
        ("widths", (4, 8.5), "a list of whole numbers"),
        ("widths", 4, "a list of whole numbers"),
        ("batch_norm", "yes", "true or false"),
    ],
)
def test_a_value_of_another_type_is_rejected_by_name(name: str, value: object, kind: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        settings("best-vae", **{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is {value!r}; it must be {kind or ''}")
    assert "\n" not in message


def test_lists_and_numbers_of_numpy_become_what_is_declared() -> None:
    given: dict[str, Any] = {"widths": [4, np.int64(8)], "corrupt": ["rotate:5"], "epochs": np.int32(3)}
    model, config = settings("paper-ae", **given, learning_rate=1, seed=np.uint8(7))
    assert model == ModelConfig(widths=(4, 8))
    assert config == TrainConfig(epochs=3, corrupt=("rotate:5",), learning_rate=1.0, seed=7)
    json.dumps([model.to_json(), config.to_json()])
    assert hash(model) == hash(ModelConfig(widths=(4, 8)))


@pytest.mark.parametrize(
    "useless", [{"sigma2": 0.1}, {"beta": 2.0}, {"kl_warmup": 3}, {"kl_warmup_cycles": 3}]
)
def test_settings_of_a_vae_are_rejected_for_what_is_none(useless: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Only a VAE has {next(iter(useless))}. Use --kind vae"):
        settings(**useless)
    settings(kind="vae", **useless)


def test_a_likelihood_is_rejected_for_a_plain_code() -> None:
    with pytest.raises(ConfigError, match="Use --kind vae, or set loss to mse"):
        settings(loss="gaussian")


def test_unknown_presets_and_settings_are_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=f"Unknown preset 'papr'. Choose {any_of(PRESETS)}."):
        settings("papr")
    with pytest.raises(ConfigError, match=r"^Unknown setting epoch\. Did you mean epochs\?$"):
        settings(epoch=3)
    with pytest.raises(ConfigError, match=r"^Unknown setting zzz\. `autoencode config` lists the settings"):
        settings(zzz=3)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"preset": "paper-vae-warmup"}, "Batch normalisation needs the whole batch"),
        ({"preset": "best-vae", "adversarial": True}, "Adversarial training needs the whole batch"),
    ],
)
def test_settings_that_need_the_whole_batch_reject_micro_batches(needs: dict[str, Any], message: str) -> None:
    settings(**needs)
    with pytest.raises(ConfigError, match=message):
        settings(accumulate=2, **needs)


def test_settings_of_a_vae_may_have_their_defaults_in_the_settings_of_an_autoencoder() -> None:
    settings(sigma2="auto", beta=1.0, kl_warmup=0, kl_warmup_cycles=0)
    with pytest.raises(ConfigError, match="Only a VAE has beta"):
        settings(sigma2="auto", beta=1.5)


def test_a_name_is_of_one_setting_and_every_setting_says_what_it_means() -> None:
    names = [field.name for kind in CLASSES for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names))
    for kind in CLASSES:
        assert list(documentation(kind)) == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(
    ("preset", "setting", "message"),
    [
        ("best", {"patch": 32}, "A code is of a whole image. Leave patch at 0, or use --preset restore."),
        ("best", {"self_supervised": True}, "Only a restorer is trained self-supervised."),
        ("restore", {"self_supervised": True, "shift": 2}, "Self-supervised training does not shift images."),
        ("restore", {"code_size": 8}, "A restorer has no code. Leave code_size out."),
        (
            "restore",
            {"self_supervised": True, "corrupt": ("jpeg:10",)},
            "uses images as they are. Leave corrupt",
        ),
        ("restore", {"loss": "gaussian"}, "The gaussian loss is a VAE's likelihood"),
        ("restore", {"beta": 2}, "Only a VAE has beta"),
        ("restore", {"patch": -1}, "patch is -1; it must be at least 0"),
    ],
)
def test_settings_that_would_do_nothing_to_a_kind_of_model_are_rejected(
    preset: str, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(preset, **setting)


def test_self_supervised_training_damages_nothing() -> None:
    assert settings("restore")[1].corrupt
    assert settings("restore", self_supervised=True)[1].corrupt == ()
    # Noisy targets need smaller steps, unless others are asked for.
    rates = [settings("restore", self_supervised=on)[1].learning_rate for on in (False, True)]
    assert rates == [0.02, 0.01]
    assert settings("restore", self_supervised=True, learning_rate=0.03)[1].learning_rate == 0.03


def test_an_epoch_has_as_many_patches_of_an_image_as_cover_it() -> None:
    config = TrainConfig(patch=64)
    counts = [
        config.patches_of(Preprocessing(*size)) for size in ((64, 64), (128, 128), (128, 192), (32, 32))
    ]
    assert counts == [1, 4, 6, 1]
    assert TrainConfig().patches_of(Preprocessing(512, 512)) == 1
