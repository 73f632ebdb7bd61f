"""Images come out in the size asked for, and what cannot be asked for is rejected."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tests.data.pictures import EXTENSIONS, SAME, encoded, picture

from autoencode.data.preprocessing import (
    Limits,
    Preprocessing,
    ResizeMode,
    fields_asked_for,
    parse_size,
    read_chunks,
    read_image,
    save_image,
)
from autoencode.errors import ConfigError, ImageError, OutputError


@pytest.mark.parametrize("resize_mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_decoded_small_looks_like_one_decoded_whole(
    resize_mode: ResizeMode, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(picture(603, 901)), "JPEG", quality=95, exif=exif.tobytes())
    preprocessing = Preprocessing(64, 48, resize_mode)
    with Image.open(io.BytesIO(content)) as image:
        whole = read_image(ImageOps.exif_transpose(image).convert("RGB"), preprocessing)
    difference = np.abs(read_image(content, preprocessing).astype(int) - whole)
    # "pad" may differ by a row of the picture against the background
    assert np.quantile(difference, 0.99) <= 3
    assert difference.mean() < 1


def decoded_size(content: bytes, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The side lengths at which a square file comes out of the JPEG decoder."""
    sides: list[int] = []
    resize = Image.Image.resize

    def remember(image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:  # noqa: ANN401
        sides.append(image.width)
        return resize(image, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", remember)
        read_image(content, preprocessing)
    return sides


@pytest.mark.parametrize(
    ("side", "decoded"),
    [
        (128, 128),
        (247, 247),
        (249, 125),
        (250, 125),
        (256, 128),
        (500, 250),
        (992, 496),
        (993, 249),
        (2048, 256),
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_needed(
    side: int, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(Image.fromarray(picture(side, side)), "JPEG")
    assert decoded_size(content, Preprocessing(128, 128), monkeypatch) == [decoded]


@pytest.mark.parametrize("side", [250, 256, 300, 500, 1000, 2100])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_a_photograph_decoded_small_looks_like_one_decoded_whole(name: str, side: int) -> None:
    data = pytest.importorskip("skimage.data")
    photograph = Image.fromarray(getattr(data, name)()[:300, :300]).resize(
        (side, side), Image.Resampling.LANCZOS
    )
    content = encoded(photograph, "JPEG", quality=90)
    with Image.open(io.BytesIO(content)) as image:
        whole = np.asarray(image.resize((128, 128), Image.Resampling.LANCZOS), np.float64)
    error = np.mean((read_image(content, Preprocessing(128, 128)) - whole) ** 2)
    assert 10 * np.log10(255**2 / error) > 35


def test_crop_keeps_the_centre_of_the_right_shape() -> None:
    wide = picture(64, 200)
    truth = Image.fromarray(wide[:, 68:132]).resize((32, 32), Image.Resampling.BICUBIC)
    read = read_image(Image.fromarray(wide), Preprocessing(32, 32))
    # the cut edge sees its neighbours here and not in the crop made first
    np.testing.assert_allclose(read[:, 4:-4].astype(int), np.asarray(truth)[:, 4:-4], atol=2)


def test_pad_keeps_the_whole_image_and_centres_it() -> None:
    wide = Image.fromarray(picture(32, 96))
    read = read_image(wide, Preprocessing(48, 48, "pad", (1, 2, 3)))
    np.testing.assert_array_equal(read[16:32], np.asarray(wide.resize((48, 16), Image.Resampling.BICUBIC)))
    assert (read[:16] == (1, 2, 3)).all()
    assert (read[32:] == (1, 2, 3)).all()


def test_a_window_is_the_middle_of_the_image_pixel_by_pixel() -> None:
    image = picture(61, 90)
    read = read_image(encoded(Image.fromarray(image), "PNG"), Preprocessing(32, 48, "window"))
    assert np.array_equal(read, image[14:46, 21:69])
    content = encoded(Image.fromarray(picture(600, 800)), "JPEG", quality=95)
    with Image.open(io.BytesIO(content)) as whole:
        assert np.array_equal(
            read_image(content, Preprocessing(64, 64, "window")), np.asarray(whole)[268:332, 368:432]
        )


def test_a_window_continues_a_smaller_image_by_its_mirror_image() -> None:
    image = picture(10, 40)
    read = read_image(encoded(Image.fromarray(image), "PNG"), Preprocessing(32, 32, "window"))
    middle = image[:, 4:36]
    assert np.array_equal(read, np.concatenate([middle, middle[::-1], middle, middle[:-9:-1]])[:32])


def test_stretch_resizes_both_sides() -> None:
    image = Image.fromarray(picture(50, 90))
    read = read_image(image, Preprocessing(32, 48, "stretch"))
    np.testing.assert_array_equal(read, np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)))


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.sampled_from([(16, 16), (32, 16), (16, 48)]),
    resize_mode=st.sampled_from(["crop", "pad", "stretch", "window"]),
)
def test_any_shape_comes_out_in_the_size_asked_for(
    height: int, width: int, size: tuple[int, int], resize_mode: ResizeMode
) -> None:
    read = read_image(
        Image.new("RGB", (width, height), (9, 8, 7)), Preprocessing(*size, resize_mode, (9, 8, 7))
    )
    assert read.shape == (*size, 3)
    assert (read == (9, 8, 7)).all()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_what_is_saved_reads_back(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"picture{extension}"
    if extension == ".ppm":
        with pytest.raises(ConfigError, match=r"use one of \.jpg"):
            save_image(path, picture())
        return
    save_image(path, picture())
    lossless = extension in (".png", ".bmp", ".tif")
    difference = np.abs(read_image(path, SAME).astype(int) - picture())
    assert difference.mean() <= (0 if lossless else 6)


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(path, picture())
    before = path.read_bytes()
    with pytest.raises(ImageError, match="Not pixels"):
        save_image(path, picture()[..., 0])
    with pytest.raises(OutputError, match="Could not write"):
        save_image(path / "b.png", picture())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_sizes_are_height_by_width() -> None:
    assert parse_size("128") == (128, 128)
    assert parse_size("96x160") == (96, 160)
    assert parse_size(" 96 X 160 ") == (96, 160)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100", "Nearest: 96 or 112"),
        ("96x100", "Nearest: 96x96 or 96x112"),
        ("0", "Nearest: 16"),
        ("-16", "Write 128"),
        ("big", "Write 128"),
        ("1e3", "Write 128"),
        ("9" * 5000, "Write 128"),
    ],
)
def test_a_wrong_size_names_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fields_asked_for(text, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 100},
        {"width": 0},
        {"width": -16},
        {"height": 32.0},
        {"height": True},
        {"resize_mode": "zoom"},
        {"background": (0, 0)},
        {"background": (0, 0, 256)},
        {"background": "white"},
    ],
)
def test_preprocessing_that_cannot_be_used_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Preprocessing(**wrong)


def test_preprocessing_survives_json() -> None:
    settings = Preprocessing(96, 160, "pad", (1, 2, 3))
    assert Preprocessing.from_json(settings.to_json()) == settings
    for wrong in ({}, {**settings.to_json(), "extra": 1}, {**settings.to_json(), "height": 7}):
        with pytest.raises(ConfigError):
            Preprocessing.from_json(wrong)


@pytest.mark.parametrize("wrong", [{"max_pixels": 0}, {"max_bytes": -1}, {"seconds_per_file": float("nan")}])
def test_limits_are_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Limits(**wrong)


def test_preprocessing_is_told_in_words() -> None:
    told = str(Preprocessing(64, 96, "pad", (0, 128, 255)))
    assert told == "64x96 pixels (resize mode pad, background #0080ff)"


def test_images_that_would_not_fit_in_memory_are_rejected_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="more than 16,777,216 pixels"):
        Preprocessing(16384, 2048)
    assert Preprocessing(16384, 1024).width == 1024
    monkeypatch.setattr("autoencode.data.workers.free_bytes", lambda: 5.0 * 4 * 2048**2 * 3)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png"] * 5
    with pytest.raises(ConfigError, match=r"not enough memory for 5 images of 2048x2048 .*0 GB are free"):
        next(read_chunks(paths, 64, Preprocessing(2048, 2048), Limits(), []))
    [read] = [read for read, _ in read_chunks(paths[:4], 64, Preprocessing(2048, 2048), Limits(), [])]
    assert read == paths[:4]
