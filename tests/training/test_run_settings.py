"""The file in a run folder and the command on a page: they ask for the settings of the run."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from autoencode import Preprocessing, Run
from autoencode.cli import main
from autoencode.cli import train_config as train
from autoencode.models.bundled import BUNDLED, RANDOM
from autoencode.training.presets import settings
from autoencode.training.run import (
    RunSettings,
    read_metrics,
    read_run,
    repeating_command,
    run_file,
    settings_in_words,
    write_run,
)


def run_of(preset: str, preprocessing: Preprocessing, **overrides: object) -> RunSettings:
    model, config = settings(preset, **overrides)
    return RunSettings(model, config, preprocessing, "pack", "fingerprint", "cpu", False, True)


@pytest.mark.parametrize(
    ("preset", "init", "words"),
    [
        ("restore", RANDOM, ["--init", "random"]),
        ("restore", BUNDLED, ["--init", "bundled"]),
        ("best", RANDOM, []),
    ],
)
def test_the_command_starts_from_the_same_weights(
    tmp_path: Path, preset: str, init: str, words: list[str]
) -> None:
    write_run(tmp_path, replace(run_of(preset, Preprocessing()), init=init))
    command = shlex.split(repeating_command(tmp_path, SimpleNamespace(folder=Path("photos"))))
    start = command.index("--init") if "--init" in command else len(command)
    assert command[start : start + 2] == words


def test_a_run_without_a_word_on_its_first_weights_had_random_ones(tmp_path: Path) -> None:
    write_run(tmp_path, run_of("best", Preprocessing()))
    content = json.loads((tmp_path / "run.json").read_text())
    for old in ({}, {"init": ""}):  # as earlier versions wrote it
        del content["init"]
        (tmp_path / "run.json").write_text(json.dumps(content | old))
        assert read_run(tmp_path).init == RANDOM
        content["init"] = RANDOM


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
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    preset: str,
    preprocessing: Preprocessing,
    overrides: dict[str, object],
) -> None:
    run = run_of(preset, preprocessing, **overrides)
    write_run(tmp_path, replace(run, init="models/first weights"))
    asked = {}
    monkeypatch.setattr(train, "train_and_show", lambda source, out, **given: asked.update(given))
    words = shlex.split(repeating_command(tmp_path, SimpleNamespace(folder=Path("my photos"))))
    assert words[:3] == ["autoencode", "train", "my photos"]
    result = CliRunner().invoke(main.app, words[1:])
    assert result.exit_code == 0, result.output
    names = {*run.model.to_json(), *run.train.to_json()}
    again = settings(**{name: value for name, value in asked.items() if name in names})
    assert again == (run.model, run.train)
    assert asked["init"] == "models/first weights"
    assert Preprocessing(**asked["preprocessing"]) == preprocessing
    assert (asked["device"], asked["precision"], asked["channels_last"]) == ("cpu", "fp32", True)


def test_the_file_of_a_run_trains_the_same_weights_again(trained: Run, tmp_path: Path) -> None:
    run = read_run(trained.folder)
    assert (trained.folder / "run.toml").read_text() == run_file(run)
    out = str(tmp_path / "again")
    words = ["train", run.pack, "--config", str(trained.folder / "run.toml"), "--out", out]
    assert CliRunner().invoke(main.app, words).exit_code == 0
    again = read_run(tmp_path / "again")
    assert again == run
    first, second = (read_metrics(folder) for folder in (trained.folder, tmp_path / "again"))
    assert [line["train_loss"] for line in first] == [line["train_loss"] for line in second]


def test_words_say_what_matters() -> None:
    said = dict(settings_in_words(run_of("paper-vae-warmup", Preprocessing())))
    assert said["epochs"] == "40 of warm-up and 200"
    assert "sigma2 0.01" in said["loss"]
    assert said["batch normalisation"] == "after each convolution"


@pytest.mark.parametrize(("loss", "likelihood"), [("mse", "sigma2 0.5"), ("mae", "Laplace")])
def test_words_say_which_likelihood_a_summed_error_is(loss: str, likelihood: str) -> None:
    run = run_of("paper-vae", Preprocessing())
    run = replace(run, train=replace(run.train, loss=loss))
    assert likelihood in dict(settings_in_words(run))["loss"]
