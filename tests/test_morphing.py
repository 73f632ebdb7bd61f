"""Morphs against equation (3): mixtures of codes, decoded."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from autoencode import Autoencoder, ConfigError, ImageError, ModelConfig, Preprocessing, morph
from autoencode.configuration import Interpolation
from autoencode.morphing import INTERPOLATIONS, between, in_square, interpolated
from autoencode.pixels import to_pixels


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig(code_size=6, widths=(4, 8)), Preprocessing(32, 32)).eval()
    # Random weights hardly tell codes apart, and equal frames are stored as one.
    torch.nn.init.normal_(model.decoder.expand.weight, std=50)
    return model


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def test_the_middle_frame_is_the_decoded_mean_of_both_codes(model: Autoencoder, images: list[Path]) -> None:
    made = morph(model, images[:2], frames=5)
    codes = model.encode(model.read(images[:2]))
    assert made.alphas.tolist() == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_array_equal(made.pixels[2], to_pixels(model.decode(codes.mean(0, keepdim=True)))[0])


@pytest.mark.parametrize("interpolation", ["linear", "spherical"])
def test_the_ends_are_the_reconstructions(model: Autoencoder, images: list[Path], interpolation: str) -> None:
    made = morph(model, images, frames=4, interpolation=interpolation)  # type: ignore[arg-type]
    restored = to_pixels(model.reconstruct(model.read(images)))
    assert len(made.pixels) == 7
    difference = made.pixels[[0, 3, 6]].astype(int) - restored
    assert np.abs(difference).max() <= 1


def test_spherical_mixing_turns_at_constant_speed_and_keeps_the_length() -> None:
    codes = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    found, _ = interpolated(codes, 7, "spherical")
    torch.testing.assert_close(found.norm(dim=1), torch.full((7,), 2.0))
    angles = torch.atan2(found[:, 1], found[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, torch.pi / 2, 7))


@pytest.mark.parametrize("second", [[4.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
def test_codes_that_span_no_plane_are_mixed_linearly(second: list[float]) -> None:
    codes = torch.tensor([[2.0, 0.0], second])
    assert torch.equal(interpolated(codes, 5, "spherical")[0], interpolated(codes, 5, "linear")[0])


def test_ping_pong_returns_to_the_first_image(model: Autoencoder, images: list[Path]) -> None:
    made = morph(model, images[:2], frames=4, ping_pong=True)
    assert made.alphas.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0])
    assert (made.pixels[0] == made.pixels[-1]).all()


def test_more_frames_than_fit_are_rejected_and_the_number_that_fits_is_not(
    model: Autoencoder, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.png"
    with pytest.raises(ConfigError, match="100,000 frames do not fit into a strip"):
        morph(model, images[:2], out, frames=100_000)
    with pytest.raises(ConfigError, match=r"599 frames do not fit into a strip.*; 511 do"):
        morph(model, images[:2], out, frames=300, ping_pong=True)
    with pytest.raises(ConfigError, match="2,401 frames do not fit into an animation"):
        morph(model, images[:3], tmp_path / "m.gif", frames=1201)
    assert not out.exists()
    morph(model, images[:2], out, frames=511)
    with Image.open(out) as strip:
        assert strip.width == 511 * 128


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_has_every_frame_and_loops(
    model: Autoencoder, images: list[Path], tmp_path: Path, suffix: str
) -> None:
    morph(model, images[:2], tmp_path / f"m{suffix}", frames=6)
    with Image.open(tmp_path / f"m{suffix}") as animation:
        assert animation.n_frames == 6  # type: ignore[attr-defined]
        assert animation.info["loop"] == 0


def test_a_strip_is_one_picture_and_nothing_else_is_left(
    model: Autoencoder, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "made"
    morph(model, images[:2], out / "strip.png", frames=3)
    assert [path.name for path in out.iterdir()] == ["strip.png"]


def test_what_cannot_be_morphed_is_rejected(model: Autoencoder, images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        morph(model, images[:1])
    with pytest.raises(ConfigError, match="no room"):
        morph(model, images, frames=1)
    with pytest.raises(ConfigError, match="Unknown interpolation 'cubic'"):
        morph(model, images, interpolation="cubic")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="missing"):
        morph(model, [images[0], tmp_path / "missing.png"])


@pytest.mark.parametrize("interpolation", ["linear", "spherical"])
def test_a_place_on_the_way_is_the_frame_there(interpolation: str) -> None:
    codes = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    frames, alphas = interpolated(codes, 5, interpolation)  # type: ignore[arg-type]
    for frame, alpha in zip(frames, alphas, strict=True):
        torch.testing.assert_close(between(codes, float(alpha), interpolation), frame)  # type: ignore[arg-type]


def test_a_place_in_the_square_is_the_bilinear_mixture_of_its_corners() -> None:
    codes = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for corner, (x, y) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        torch.testing.assert_close(in_square(codes, x, y, "linear"), codes[corner])
    weights = torch.tensor([0.75 * 0.6, 0.25 * 0.6, 0.75 * 0.4, 0.25 * 0.4])
    torch.testing.assert_close(in_square(codes, 0.25, 0.4, "linear"), weights @ codes)


def test_every_interpolation_can_be_chosen() -> None:
    assert get_args(Interpolation) == tuple(INTERPOLATIONS)
