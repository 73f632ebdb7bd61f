"""Every kind of image file reads as Pillow reads it; damage is a plain reason."""

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
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tests.data.pictures import SAME, encoded, over_white, picture, pixels

from autoencode.data.decoding import read_bytes
from autoencode.data.preprocessing import (
    Limits,
    Preprocessing,
    read_image,
)
from autoencode.errors import ImageError


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


def test_a_damaged_exif_block_does_not_skip_the_picture() -> None:
    image = Image.fromarray(picture())
    content = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f\x00")
    np.testing.assert_array_equal(read_image(content, SAME), read_image(encoded(image, "JPEG"), SAME))


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
    filters, loaders = list(warnings.filters), dict(ImageFileDirectory_v2._load_dispatch)
    image = Image.fromarray(picture()).convert("LA")
    before = image.tobytes()
    read_image(image, Preprocessing(16, 16))
    assert (image.mode, image.tobytes()) == ("LA", before)
    assert warnings.filters == filters
    assert loaders == ImageFileDirectory_v2._load_dispatch


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
        ("pipe.png", "is a pipe, not a file"),
        ("none.png", "No such file"),
        ("large.png", "has 1,001 bytes, more"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name, SAME, Limits(max_bytes=1000))


def test_a_pipe_that_takes_the_place_of_a_file_is_skipped_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"file")
    os.mkfifo(tmp_path / "b.png")
    before = (tmp_path / "a.png").stat()
    monkeypatch.setattr("autoencode.untrusted.os.stat", lambda path: before)
    with pytest.raises(ImageError, match="is a pipe, not a file"):
        read_bytes(tmp_path / "b.png", Limits().max_bytes)


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

    monkeypatch.setattr("autoencode.untrusted.os.fstat", grow)
    tracemalloc.start()
    with pytest.raises(ImageError, match="more bytes than the limit of 1,000"):
        read_bytes(path, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6
    assert len(read_bytes(path, 10**8)) == 10**7


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_gives_its_reason(tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch(mode=0)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(tmp_path / "secret.png", SAME)


def deep_png(values: NDArray[np.uint16]) -> bytes:
    """A PNG file of 16-bit colours (H, W, 3), which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_16_bit_colour_is_right_or_rejected() -> None:
    values = np.random.default_rng(0).integers(0, 65_536, (32, 32, 3)).astype(np.uint16)
    size = Preprocessing(32, 32)
    found = read_image(deep_png(values), size).astype(np.float64)
    assert np.abs(found - values / 257).max() <= 1
    for bits in (10, 12, 14):
        with pytest.raises(ImageError, match=r"16-bit colour of fewer bits, .*: save it with 8 bits"):
            read_image(deep_png(values >> (16 - bits)), size)


def test_a_damaged_tiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        file, "TIFF", compression="tiff_lzw"
    )
    content = bytearray(file.getvalue())
    content[200:9000] = bytes(8800)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.tif", Preprocessing(16, 16))
    assert capfd.readouterr().err == ""
