from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from autoencode.data.images import read_bytes, read_image, save_image
from autoencode.data.preprocessing import Limits, Preprocessing, ResizeMode, parse_size
from autoencode.errors import ConfigError, ImageError, OutputError

SAME = Preprocessing(32, 48)  # of the pictures below, so that nothing is resized
EXTENSIONS = [".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".avif", ".ppm"]


def picture(height: int = 32, width: int = 48, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth coloured picture without any symmetry."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    waves = [np.sin(5 * x + 3 * y * (c + 1) + seed + c) for c in range(3)]
    return np.asarray(127.5 + 120 * np.stack(waves, -1), np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def over_white(image: Image.Image) -> NDArray[np.uint8]:
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB"))


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_a_mode_without_alpha_reads_as_pillow_converts_it(mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    np.testing.assert_array_equal(read_image(image, SAME), pixels(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_a_mode_with_alpha_reads_as_pillow_lays_it_over_the_background(mode: str) -> None:
    image = Image.fromarray(picture()).convert("LA" if mode in ("LA", "La") else "RGBA")
    image.putalpha(Image.fromarray(picture(seed=1)[..., 0]))
    truth = over_white(image)
    if mode == "PA":
        image = Image.merge("PA", (image.convert("RGB").quantize(64), image.getchannel("A")))
        truth = over_white(image)
    else:
        image = image.convert(mode)
    # Premultiplied 8-bit colour has lost up to 255 / alpha, which the background hides in proportion.
    np.testing.assert_allclose(read_image(image, SAME).astype(int), truth, atol=2 if mode[-1] == "a" else 1)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_every_format_reads_as_pillow_reads_it(file_format: str) -> None:
    content = encoded(Image.fromarray(picture()), file_format)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(read_image(content, SAME), pixels(image))


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "GIF", {}),
        ("1", "TIFF", {"compression": "group4"}),
        ("CMYK", "JPEG", {}),
        ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
        ("LAB", "TIFF", {}),
        ("L", "JPEG", {"progressive": True}),
    ],
)
def test_every_mode_reads_from_files_as_pillow_reads_it(
    mode: str, file_format: str, options: dict[str, Any]
) -> None:
    content = encoded(Image.fromarray(picture()).convert(mode), file_format, **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(read_image(content, SAME), pixels(image))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_transparent_colour_shows_the_background(mode: str) -> None:
    black_left = picture()
    black_left[:, :24] = 0
    image = Image.fromarray(black_left).convert(mode)
    key = image.getpixel((0, 0))
    content = encoded(image, "PNG", transparency=key)
    read = read_image(content, Preprocessing(32, 48, background=(10, 200, 30)))
    transparent = np.reshape(np.asarray(image) == key, (32, 48, -1)).all(-1)
    np.testing.assert_array_equal(read[transparent], np.broadcast_to((10, 200, 30), (transparent.sum(), 3)))
    np.testing.assert_array_equal(read[~transparent], pixels(image)[~transparent])


def test_half_transparent_palette_entries_are_mixed_with_the_background() -> None:
    image = Image.new("P", (48, 32))
    image.putpalette([200, 100, 0])
    read = read_image(encoded(image, "PNG", transparency=bytes([128])), SAME)
    np.testing.assert_allclose(read[0, 0], np.array([200, 100, 0]) * 128 / 255 + 127, atol=1)


def test_sixteen_bit_grey_keeps_its_range_in_files_and_arrays() -> None:
    deep = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    truth = np.repeat(np.rint(deep / 257)[..., None], 3, -1)
    for content in (encoded(Image.fromarray(deep), "PNG"), encoded(Image.fromarray(deep), "TIFF")):
        np.testing.assert_array_equal(read_image(content, SAME), truth)
    big_endian = Image.frombytes("I;16B", (48, 32), deep.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(big_endian, SAME), truth)


def test_sixteen_bit_pgm_is_not_taken_for_a_dark_eight_bit_one() -> None:
    deep = np.full((32, 48), 200, ">u2")
    assert (read_image(b"P5 48 32 65535\n" + deep.tobytes(), SAME) == 1).all()


def test_a_sixteen_bit_transparent_grey_shows_the_background() -> None:
    deep = np.full((32, 48), 40000, np.uint16)
    deep[:, 24:] = 1000
    read = read_image(encoded(Image.fromarray(deep), "PNG", transparency=1000), SAME)
    assert (read[:, :24] == round(40000 / 257)).all()
    assert (read[:, 24:] == 255).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.2, 255.0], [0, 100, 255]),
        ([-3.0, 0.0, 3.0], [0, 128, 255]),
        ([1000.0, 1500.0, 2000.0], [0, 128, 255]),
        ([7000.0, 7000.0, 7000.0], [0, 0, 0]),
    ],
)
def test_floating_point_is_read_by_its_range(values: list[float], expected: list[int]) -> None:
    row = np.repeat(np.array(values, np.float32), 16)
    content = encoded(Image.fromarray(np.tile(row, (32, 1))), "TIFF")
    np.testing.assert_array_equal(read_image(content, SAME)[0, ::16, 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 7, 255], [0, 7, 255]), ([0, 257, 65535], [0, 1, 255]), ([-100_000, 0, 100_000], [0, 128, 255])],
)
def test_thirty_two_bit_integers_are_read_by_their_range(values: list[int], expected: list[int]) -> None:
    row = np.repeat(np.array(values, np.int32), 16)
    content = encoded(Image.fromarray(np.tile(row, (32, 1))), "TIFF")
    np.testing.assert_array_equal(read_image(content, SAME)[0, ::16, 0], expected)


def test_values_that_are_not_finite_are_skipped() -> None:
    with pytest.raises(ImageError, match="not finite"):
        read_image(Image.fromarray(np.full((32, 48), np.nan, np.float32)), SAME)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
def test_of_many_frames_the_first_is_read(file_format: str) -> None:
    first, second = Image.new("RGB", (48, 32), (200, 0, 0)), Image.new("RGB", (48, 32), (0, 0, 200))
    content = encoded(first, file_format, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 2
    red, _, blue = read_image(content, SAME)[16, 24]
    assert red > 150
    assert blue < 50


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(picture()), file_format, exif=exif.tobytes())
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
    same_size = Preprocessing(upright.height, upright.width)
    np.testing.assert_array_equal(read_image(content, same_size), pixels(upright))


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


def test_a_damaged_exif_block_does_not_skip_the_picture() -> None:
    image = Image.fromarray(picture())
    content = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f\x00")
    np.testing.assert_array_equal(read_image(content, SAME), read_image(encoded(image, "JPEG"), SAME))


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


def test_stretch_resizes_both_sides() -> None:
    image = Image.fromarray(picture(50, 90))
    read = read_image(image, Preprocessing(32, 48, "stretch"))
    np.testing.assert_array_equal(read, np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)))


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.sampled_from([(16, 16), (32, 16), (16, 48)]),
    resize_mode=st.sampled_from(["crop", "pad", "stretch"]),
)
def test_any_shape_comes_out_in_the_size_asked_for(
    height: int, width: int, size: tuple[int, int], resize_mode: ResizeMode
) -> None:
    read = read_image(
        Image.new("RGB", (width, height), (9, 8, 7)), Preprocessing(*size, resize_mode, (9, 8, 7))
    )
    assert read.shape == (*size, 3)
    assert (read == (9, 8, 7)).all()


def wide_gamut_profile() -> bytes:
    """An RGB profile that is sRGB with red and green exchanged: easy to tell from doing nothing."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    for index in range(struct.unpack(">I", profile[128:132])[0]):
        signature, *place = struct.unpack(">4sII", profile[132 + 12 * index : 144 + 12 * index])
        tags[signature] = place
    (red, length), (green, _) = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + length], profile[green : green + length] = (
        profile[green : green + length],
        profile[red : red + length],
    )
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def test_an_embedded_colour_profile_is_converted_to_srgb() -> None:
    image = Image.fromarray(picture())
    content = encoded(image, "PNG", icc_profile=wide_gamut_profile())
    np.testing.assert_allclose(read_image(content, SAME).astype(int), picture()[..., [1, 0, 2]], atol=3)


@pytest.mark.parametrize("kind", ["damaged", "LAB"])
def test_a_damaged_or_unfitting_colour_profile_is_ignored(kind: str) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profile = lab if kind == "LAB" else b"not a profile"
    content = encoded(Image.fromarray(picture()), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(read_image(content, SAME), picture())


def test_the_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(Image.fromarray(picture()), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(read_image(content, SAME), picture())


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return body + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize("size", [(30_000, 4_000), (15_000, 15_000), (60_000, 60_000)])
def test_too_many_pixels_are_skipped_by_the_header_alone_and_without_warnings(size: tuple[int, int]) -> None:
    limits = Limits(max_pixels=100_000_000)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match="more than the limit of 100,000,000"):
            read_image(png_header(*size), SAME, limits)
    assert time.perf_counter() - started < 1
    assert not caught


def test_the_pixel_limit_and_not_pillows_own_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for file_format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "AVIF"):
        content = encoded(Image.fromarray(picture()), file_format)
        assert read_image(content, Preprocessing(16, 16)).shape == (16, 16, 3)
        with pytest.raises(ImageError, match="48x32 pixels are more than the limit of 1,535"):
            read_image(content, SAME, Limits(max_pixels=32 * 48 - 1))
    assert Image.MAX_IMAGE_PIXELS == 500


def test_reading_changes_no_global_setting_and_not_the_image_given() -> None:
    filters = list(warnings.filters)
    image = Image.fromarray(picture()).convert("LA")
    before = image.tobytes()
    read_image(image, Preprocessing(16, 16))
    assert (image.mode, image.tobytes()) == ("LA", before)
    assert warnings.filters == filters


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_damage_anywhere_gives_an_image_or_a_plain_reason(file_format: str) -> None:
    whole = encoded(Image.fromarray(picture()), file_format)
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole[: generator.integers(0, len(whole) + 1)])
        for place in generator.integers(0, max(1, len(damaged)), 3):
            if damaged:
                damaged[place] = generator.integers(256)
        try:
            assert read_image(bytes(damaged), SAME).shape == (32, 48, 3)
        except ImageError as err:
            assert str(err)
            assert "\n" not in str(err)
            assert "BytesIO" not in str(err)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am not an image", "known format"),
        (encoded(Image.fromarray(picture()), "PNG")[:300], "(?i)truncated"),
        (encoded(Image.fromarray(picture()), "JPEG")[:600], "(?i)truncated"),
    ],
)
def test_a_broken_file_gives_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_image(content, SAME)


def test_a_file_is_decoded_by_what_it_holds_and_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(Image.fromarray(picture()), "PNG"))
    np.testing.assert_array_equal(read_image(path, SAME), picture())


def test_a_pipe_a_missing_file_and_a_large_file_are_skipped_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").write_bytes(bytes(1001))
    for name, reason in (
        ("pipe.png", "not a regular file"),
        ("none.png", "No such file"),
        ("large.png", "1,001 bytes are more"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name, SAME, Limits(max_bytes=1000))


def test_a_pipe_that_takes_the_place_of_a_file_is_skipped_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"file")
    os.mkfifo(tmp_path / "b.png")
    before = (tmp_path / "a.png").stat()
    monkeypatch.setattr("autoencode.data.images.os.stat", lambda path: before)
    with pytest.raises(ImageError, match="not a regular file"):
        read_bytes(tmp_path / "b.png", Limits())


def test_no_more_than_the_limit_is_read_of_a_file_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"short")
    fstat = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        with path.open("ab") as file:
            file.truncate(10**7)
        return status

    monkeypatch.setattr("autoencode.data.images.os.fstat", grow)
    tracemalloc.start()
    with pytest.raises(ImageError, match="more bytes than the limit of 1,000"):
        read_bytes(path, Limits(max_bytes=1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6
    assert len(read_bytes(path, Limits())) == 10**7


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_gives_its_reason(tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch(mode=0)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(tmp_path / "secret.png", SAME)


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
        parse_size(text)


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
