"""The commands features, transfer and classify, end to end on a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from autoencode import ImageFolderError, ModelFileError, Run
from autoencode.cli.main import app
from autoencode.transfer_learning import fine_tuning


def autoencode(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_features_are_written_and_each_layer_is_named(trained: Run, photos: Path, tmp_path: Path) -> None:
    image = next(photos.rglob("*.png"))
    result = autoencode("features", trained.folder, image, "--out", tmp_path / "features")
    assert result.exit_code == 0, result.output
    assert "layer 2: 8 channels of 8x8, receptive field 10x10 pixels" in result.output
    assert (tmp_path / "features" / "layer-02.png").exists()


def test_a_classifier_is_learned_and_used(
    trained: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "LEAST_STEPS", 5)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    out = tmp_path / "classifier"
    result = autoencode("transfer", trained.folder, photos, "--out", out, "--finetune")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    (kept,) = (line for line in lines if line.endswith("<- kept"))
    assert kept.startswith("fine-tuned")
    assert any("10 a class" in line and "all labels" in line for line in lines)
    assert any(line.startswith("from scratch") for line in lines)
    (photos_again := tmp_path / "some").mkdir()
    (photos_again / "broken.png").write_bytes(b"no image")
    result = autoencode("classify", out, photos, photos_again, "--out", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert f"skipped {photos_again / 'broken.png'}: " in result.output
    assert "and 28 more; in total" in result.output
    assert (tmp_path / "found-sheet.png").exists()


def test_wrong_use_is_one_line(trained: Run, photos: Path, tmp_path: Path) -> None:
    result = autoencode("transfer", trained.folder, photos / "coast", "--out", tmp_path / "out")
    assert isinstance(result.exception, ImageFolderError)
    assert "has no sub-folders" in str(result.exception)
    result = autoencode("classify", trained.model_path, photos)
    assert isinstance(result.exception, ModelFileError)
    assert "a classifier file is needed here" in str(result.exception)
