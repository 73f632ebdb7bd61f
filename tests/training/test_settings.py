"""Files of settings hold every setting, and --set and options override them."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from autoencode import PRESETS, ConfigError, Limits, ModelConfig, Preprocessing, TrainConfig, settings
from autoencode.configuration import documentation
from autoencode.training.config import RuntimeConfig
from autoencode.training.settings import preset_file, settings_file, train_arguments

CLASSES = (ModelConfig, TrainConfig, Preprocessing, Limits, RuntimeConfig)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_file_of_a_preset_sets_what_the_preset_does(preset: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(preset_file(preset))
    asked = train_arguments(file, (), {})
    assert settings(**asked) == settings(preset)
    model, config = settings(preset)
    assert asked.keys() == model.to_json().keys() | config.to_json().keys()


def test_the_file_of_a_preset_says_every_setting_with_its_meaning_and_its_default() -> None:
    lines = preset_file("best").splitlines()
    assert PRESETS["best"].summary in lines[0]
    for kind in CLASSES:
        for field in dataclasses.fields(kind):
            (at,) = [
                n for n, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{field.name} = ")
            ]
            meaning = documentation(kind)[field.name].split()[0]
            assert lines[at - 1].startswith("# ")
            assert any(meaning.lower() in line.lower() for line in lines[at - 4 : at])
    commented = "\n".join(line.removeprefix("# ") for line in lines if " = " in line)
    assert tomllib.loads(commented)["max_pixels"] == Limits().max_pixels


def test_files_hold_whatever_settings_can_be(tmp_path: Path) -> None:
    chosen = (
        ModelConfig("vae", 7, "residual", (4, 8), True),
        TrainConfig(2, loss="gaussian", sigma2=1e-5, learning_rate=1e22, corrupt=("rotate:5", "dropout:0.1")),
        Preprocessing(32, 64, "pad", (1, 2, 3)),
        Limits(10, 20, 0.25),
        RuntimeConfig("cuda:1", "bf16", False, False, 3),
    )
    (tmp_path / "all.toml").write_text(settings_file("All.", chosen))
    asked = train_arguments(tmp_path / "all.toml", (), {})
    assert (Preprocessing(**asked.pop("preprocessing")), asked.pop("limits")) == (chosen[2], chosen[3])
    runtime = {name: asked.pop(name) for name in dataclasses.asdict(chosen[4])}
    assert RuntimeConfig(**runtime) == chosen[4]
    assert settings(**asked) == chosen[:2]


def test_options_override_a_file_and_nothing_is_given_twice(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "best"\nepochs = 3\nseed = 4\nheight = 64\n')
    asked = train_arguments(file, ["epochs=5", "width=32"], {"seed": 6})
    assert asked == {"preset": "best", "epochs": 5, "seed": 6, "preprocessing": {"height": 64, "width": 32}}
    for assignments, given, message in (
        (["epochs=5", "epochs=6"], {}, "epochs is given twice. Leave one of the two out."),
        (["epochs=5"], {"epochs": 5}, "epochs is given twice, by --set and --epochs. Leave"),
        (["height=32"], {"height": 64, "width": 64}, "height is given twice, by --set and --size. Leave"),
        (["resize_mode=pad"], {"resize_mode": "crop"}, "by --set and --resize-mode. Leave"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_arguments(file, assignments, given)
