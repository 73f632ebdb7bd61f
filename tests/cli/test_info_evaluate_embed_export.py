"""The commands evaluate and export, end to end on a trained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from autoencode import (
    ConfigError,
    Estimate,
    Interval,
    OutputError,
    Pack,
    Run,
    describe,
    export,
    reconstruct,
)
from autoencode import evaluation as application
from autoencode.cli import info_evaluate_embed_export
from autoencode.cli.main import app
from autoencode.evaluation.sets import JUDGES


def autoencode(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for judge in JUDGES:
        monkeypatch.setattr(judge, "pooled", lambda pixels: pixels.mean(axis=(1, 2), dtype=np.float32) / 255)
    monkeypatch.setattr(application, "LEAST_KID_IMAGES", 3)


@pytest.mark.usefixtures("fast")
def test_evaluate_prints_a_table_and_writes_what_it_shows(
    trained_vae: Run, tiny_pack: Pack, tmp_path: Path
) -> None:
    result = autoencode("evaluate", trained_vae.folder, "--out", tmp_path / "evaluation.json")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["pack"] == tiny_pack.fingerprint
    lines = result.stdout.splitlines()
    assert lines[0].split("  ")[0] == f"{written['images']} test images"
    for row in ("PSNR dB", "SSIM", "MSE", "MAE", "sharpness ratio", "bits per dimension", "active units"):
        assert any(line.startswith(row) for line in lines), row
    psnr = next(line for line in lines if line.startswith("PSNR dB"))
    assert float(psnr.split()[2]) == pytest.approx(written["reconstruction"]["psnr_db"]["value"], abs=0.1)
    for heading in ("KID (EfficientNet-Lite0)", "KID (open_nsfw)", "precision", "nearer to training images"):
        assert heading in result.output
    assert "samples from N(0, I)" in result.output
    named = autoencode("evaluate", trained_vae.model_path, tiny_pack.path)
    assert named.stdout.splitlines()[:6] == lines[:6]


def test_a_model_without_its_run_needs_its_pack_named(trained: Run, tmp_path: Path) -> None:
    alone = tmp_path / "model.safetensors"
    alone.write_bytes(trained.model_path.read_bytes())
    result = autoencode("evaluate", alone)
    assert isinstance(result.exception, ConfigError)
    assert "Give it: evaluate MODEL PACK, or images to measure it on" in str(result.exception)


@pytest.mark.usefixtures("fast")
def test_a_model_alone_is_measured_on_any_images(trained_vae: Run, photos: Path, tmp_path: Path) -> None:
    shutil.copy(trained_vae.model_path, tmp_path / "m.safetensors")
    out = tmp_path / "e.json"
    result = autoencode("evaluate", tmp_path / "m.safetensors", photos / "coast", "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert (found["images"], found["split"]) == (16, "test")
    assert "PCA, " not in result.output  # of the images themselves: it would restore them exactly
    assert found["pca"] is None
    assert "PCA is left out" in result.output
    measured = reconstruct(trained_vae.model_path, photos / "coast").results
    mean = np.mean([one.psnr_db for one in measured])
    assert found["reconstruction"]["psnr_db"]["value"] == pytest.approx(mean, abs=0.01)


@pytest.mark.usefixtures("fast")
def test_a_run_that_was_moved_with_its_pack_needs_nothing_named(
    trained: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained.folder, moved / "run")
    settings = moved / "run" / "run.json"
    settings.write_text(settings.read_text().replace(str(trained.pack_path), str(tmp_path / "gone")))
    assert "was at" in str(autoencode("evaluate", moved / "run").exception)
    shutil.copytree(trained.pack_path, moved / "photos.pack")
    image = next(photos.rglob("*.png"))
    for command in (
        ("evaluate", moved / "run"),
        ("evaluate", moved / "run" / "model.safetensors"),
        ("outliers", moved / "run", image),
        ("report", moved / "run"),
        ("train", moved / "photos.pack", "--out", moved / "run", "--resume"),
    ):
        result = autoencode(*command)
        assert result.exit_code == 0, (command, result.exception)
    assert describe(moved / "run").images == f"48 images of {photos}"


def test_what_evaluate_cannot_write_is_rejected_before_it_measures(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(application, "evaluate")
    before = (trained.folder / "run.json").read_bytes()
    (tmp_path / "file").touch()
    for out, error in (
        (tmp_path / "x.png", ConfigError),
        (trained.folder / "run.json", ConfigError),
        (tmp_path / "file" / "x.json", OutputError),
    ):
        result = autoencode("evaluate", trained.folder, "--out", out)
        assert isinstance(result.exception, error), result.exception
    assert (trained.folder / "run.json").read_bytes() == before


def test_export_prints_what_it_wrote_and_how_far_it_is_from_torch(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_exported", lambda *arguments: b"network")
    monkeypatch.setattr(export, "_compared", lambda *arguments: (1.5e-6, 1.0))
    result = autoencode("export", trained.folder, "--out", tmp_path / "onnx")
    assert result.exit_code == 0, result.output
    assert [path.name for path in sorted((tmp_path / "onnx").iterdir())] == [
        *("autoencoder.onnx", "decoder.onnx", "encoder.onnx")
    ]
    assert "encoder.onnx: images to code; differs from torch by at most 1.5e-06" in result.output


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(20.2134, Interval(20.0812, 20.3377), 9), "20.21 (20.08 to 20.34)"),
        (Estimate(0.010512, Interval(0.01025, 0.01075), 9), "0.01051 (0.01025 to 0.01075)"),
        (Estimate(12345.6, Interval(12000.2, 12700.9), 9), "12346 (12000 to 12701)"),
        (Estimate(1.0, Interval(1.0, 1.0), 9), "1.0000 (1.0000 to 1.0000)"),
        (Estimate(0.25, None, 1), "0.25"),
        (None, "-"),
    ],
)
def test_a_value_has_as_many_decimals_as_its_interval_makes_sense_of(
    estimate: Estimate | None, text: str
) -> None:
    assert info_evaluate_embed_export._cell(estimate) == text


def test_export_of_normal_images_writes_the_graph_that_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, good = np.random.default_rng(0), tmp_path / "good"
    good.mkdir()
    for name in range(10):
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(good / f"{name}.png")
    saved = autoencode("outliers", good, "--save", tmp_path / "good.safetensors")
    assert saved.exit_code == 0, saved.output
    monkeypatch.setattr(export, "_exported", lambda *arguments: b"network")
    monkeypatch.setattr(export, "_compared", lambda *arguments: (1.5e-6, 1.0))
    result = autoencode("export", tmp_path / "good.safetensors", "--out", tmp_path / "onnx")
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["outliers.onnx"]
    assert "small, large to score, p_value, heat; differs from torch by at most 1.5e-06" in result.output
