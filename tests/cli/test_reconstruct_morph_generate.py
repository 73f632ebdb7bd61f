"""The commands reconstruct, morph and generate, end to end on a trained model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from tests.cli.conftest import Command, assert_one_line
from typer.testing import CliRunner

from autoencode import (
    ConfigError,
    Pack,
    Run,
    fit_prior,
    load_model,
    save_model,
)
from autoencode.cli.main import app


def test_reconstruct_writes_a_sheet_a_table_and_the_images(
    autoencode: Command, trained: Run, photos: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(photos / "coast", tmp_path / "images")
    (images / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    result = autoencode("reconstruct", trained.folder, images, "--out", out, "--corrupt", "gaussian:0.1")
    assert (result.code, result.err) == (0, "")
    assert "of 16 images" in result.out
    assert "corrupted:      median PSNR 20." in result.out or "median PSNR 19.9" in result.out
    assert f"skipped {images / 'broken.png'}: " in result.out
    assert len(list((out / "images").iterdir())) == 16
    assert (out / "reconstructions.csv").exists()
    assert np.asarray(Image.open(out / "reconstructions.png")).std() > 0


def test_a_file_asked_for_by_name_that_is_skipped_fails_the_command_after_the_others_are_done(
    autoencode: Command, trained: Run, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = (photos / "coast" / "000.png", tmp_path / "broken.png", tmp_path / "none.png")
    result = autoencode("reconstruct", trained.folder, *images, "--out", tmp_path / "out")
    assert_one_line(result, "2 files asked for by name", tmp_path / "broken.png", tmp_path / "none.png")
    assert "of 1 image\n" in result.out
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["000.png"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def with_mixture(trained: Run, tiny_pack: Pack, tmp_path: Path) -> Path:
    """A plain autoencoder that carries a mixture."""
    model = load_model(trained.model_path)
    fit_prior(model, tiny_pack)
    save_model(tmp_path / "model.safetensors", model, model.provenance)
    return tmp_path / "model.safetensors"


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_writes_the_same_bytes(with_mixture: Path, tmp_path: Path) -> None:
    for out, seed in (("a", 7), ("b", 7), ("c", 8)):
        folder = tmp_path / out
        result = invoke(
            "generate", with_mixture, "-n", 5, "--seed", seed, "--out", folder, "--walk", folder / "walk.gif"
        )
        assert result.exit_code == 0, result.output
        assert "from the mixture prior" in result.output
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
    assert len(list((tmp_path / "a" / "images").iterdir())) == 5
    settings = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert settings == {
        "count": 5,
        "prior": "mixture",
        "model": load_model(with_mixture).digest,
        "temperature": 1.0,
        "seed": 7,
        "decoder": "faithful",  # the only one of this model
    }


def test_a_vae_draws_from_either_prior(trained_vae: Run, tmp_path: Path) -> None:
    result = invoke(
        "generate", trained_vae.model_path, "--prior", "normal", "-n", 2, "--out", tmp_path / "out"
    )
    assert "from the normal prior" in result.output
    alone = shutil.copy(trained_vae.model_path, tmp_path)
    result = invoke("generate", alone, "--prior", "mixture", "--out", tmp_path / "other")
    assert isinstance(result.exception, ConfigError)
    assert "--resume" in str(result.exception)
    assert not (tmp_path / "other").exists()


def test_training_ends_with_a_mixture_and_resuming_a_finished_run_gives_the_same_file(
    tiny_pack: Pack, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ("--set", "widths=4,8", "--set", "code_size=4", "--epochs", "1", "--out", run)
    assert invoke("train", tiny_pack.path, *settings).exit_code == 0
    first = load_model(run)
    assert first.prior is not None
    # What is left of a run that was killed before its mixture was fitted.
    first.prior = None
    save_model(run / "model.safetensors", first, first.provenance)
    assert invoke("train", tiny_pack.path, *settings, "--resume").exit_code == 0
    assert load_model(run).digest == first.digest


def test_a_morph_is_written_in_the_format_its_name_asks_for(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    images = sorted(photos.rglob("*.png"))[:3]
    for name, frames in (("morph.gif", 59), ("strip.png", 17)):
        result = invoke("morph", trained.model_path, *images, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert f"({frames} frames)" in result.output
    with Image.open(tmp_path / "morph.gif") as animation:
        assert animation.format == "GIF"
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width == 17 * strip.height


def test_wrong_use_is_told(trained: Run, photos: Path, tmp_path: Path) -> None:
    image = next(photos.rglob("*.png"))
    result = invoke("morph", trained.model_path, image, "--out", tmp_path / "m.gif")
    assert isinstance(result.exception, ConfigError)
    assert invoke("morph", trained.model_path, image, image, "--interpolation", "cubic").exit_code == 2
    assert invoke("generate", trained.model_path, "-n", 0, "--out", tmp_path / "g").exit_code == 2
    walk = invoke("generate", trained.model_path, "--out", tmp_path / "g", "--walk", tmp_path / "w.mp4")
    assert "ends in" in str(walk.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_morph_never_overwrites_its_images(trained: Run, photos: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(next(photos.rglob("*.png")).read_bytes())
    before = image.read_bytes()
    result = invoke("morph", trained.model_path, image, image, "--out", image)
    assert isinstance(result.exception, ConfigError)
    assert image.read_bytes() == before
