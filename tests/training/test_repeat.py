"""The command on a page: run, it asks for the same settings."""

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from autoencode import Preprocessing
from autoencode.cli import main, train
from autoencode.training.config import PRESETS, settings
from autoencode.training.repeat import command, in_words
from autoencode.training.run import RunSettings


def run_of(preset: str, preprocessing: Preprocessing, **overrides: object) -> RunSettings:
    model, config = settings(preset, **overrides)
    return RunSettings(model, config, preprocessing, "pack", "fingerprint", "cpu", False, True)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_recognised(preset: str) -> None:
    words = command(run_of(preset, Preprocessing()), SimpleNamespace(folder=Path("my photos")))
    assert shlex.split(words)[:7] == [
        "autoencode",
        "train",
        "my photos",
        "--out",
        "again",
        "--preset",
        preset,
    ]


@pytest.mark.parametrize(
    ("preset", "preprocessing", "overrides"),
    [
        (
            "best",
            Preprocessing(64, 96, "pad", (0, 16, 255)),
            {"code_size": 32, "epochs": 3, "horizontal_flip": False},
        ),
        ("paper-ae", Preprocessing(), {"corrupt": ("gaussian:0.3", "rotate:15"), "widths": (8, 16)}),
        ("paper-vae", Preprocessing(), {"sigma2": "auto", "kl_warmup": 4, "batch_norm": True, "seed": 7}),
        ("best-vae", Preprocessing(), {"kl_warmup_cycles": 2, "beta": 0.5, "learning_rate": 2e-4}),
    ],
)
def test_the_command_asks_for_the_same_settings(
    monkeypatch: pytest.MonkeyPatch, preset: str, preprocessing: Preprocessing, overrides: dict[str, object]
) -> None:
    run = run_of(preset, preprocessing, **overrides)
    asked = {}
    monkeypatch.setattr(train, "train_and_show", lambda source, out, **given: asked.update(given))
    words = shlex.split(command(run, SimpleNamespace(folder=Path("photos"))))[1:]
    result = CliRunner().invoke(main.app, words)
    assert result.exit_code == 0, result.output
    names = {*run.model.to_json(), *run.train.to_json()}
    again = settings(asked["preset"], **{name: value for name, value in asked.items() if name in names})
    assert again == (run.model, run.train)
    assert asked["preprocessing"] == preprocessing


def test_words_say_what_matters() -> None:
    said = dict(in_words(run_of("paper-vae-warmup", Preprocessing())))
    assert said["epochs"] == "40 of warm-up and 200"
    assert "sigma2 0.01" in said["loss"]
    assert said["batch normalisation"] == "after each convolution"


@pytest.mark.parametrize(("loss", "likelihood"), [("mse", "sigma2 0.5"), ("mae", "Laplace")])
def test_words_say_which_likelihood_a_summed_error_is(loss: str, likelihood: str) -> None:
    run = run_of("paper-vae", Preprocessing())
    run = replace(run, train=replace(run.train, loss=loss))
    assert likelihood in dict(in_words(run))["loss"]
