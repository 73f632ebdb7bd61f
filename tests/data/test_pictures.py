"""A file written back is the file that was read: format, mode, bit depth, alpha, profile, orientation."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from tests.data.pictures import picture

from autoencode.data.decoding import upright
from autoencode.data.pictures import Picture, read_picture
from autoencode.data.preprocessing import Limits
from autoencode.errors import ImageError, OutputError
from torture import seeds

COLOURS = picture(30, 44)
GREY = COLOURS[..., 0]
DEEP = GREY.astype(np.uint16) * 251
ALPHA = np.tile(np.arange(44, dtype=np.uint8) * 5, (30, 1))
FOUR = np.dstack([COLOURS, ALPHA])
CMYK = Image.frombytes("CMYK", (44, 30), FOUR.tobytes())
LA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])

# name of the file, image, and the mode it has afterwards
EXACT = [
    ("grey.png", Image.fromarray(GREY), "L"),
    ("colour.png", Image.fromarray(COLOURS), "RGB"),
    ("alpha.png", Image.fromarray(FOUR), "RGBA"),
    ("grey-alpha.png", LA, "LA"),
    ("deep.png", Image.fromarray(DEEP), "I;16"),
    ("deep.tif", Image.fromarray(DEEP), "I;16"),
    ("deep.ppm", Image.fromarray(DEEP), "I;16"),
    ("cmyk.tif", CMYK, "CMYK"),
    ("alpha.tiff", Image.fromarray(FOUR), "RGBA"),
    ("colour.bmp", Image.fromarray(COLOURS), "RGB"),
    ("bits.png", Image.fromarray(GREY).convert("1"), "L"),
    ("palette.png", Image.fromarray(COLOURS).quantize(16), "RGB"),
]


@pytest.mark.parametrize(("name", "image", "mode"), EXACT)
def test_a_lossless_file_comes_back_as_it_was(
    name: str, image: Image.Image, mode: str, tmp_path: Path
) -> None:
    image.save(tmp_path / name)
    read = read_picture(tmp_path / name)
    assert read.name_of(tmp_path / name) == name
    assert read.mode == mode
    read.save(tmp_path / "out" / name)
    with Image.open(tmp_path / name) as before, Image.open(tmp_path / "out" / name) as after:
        assert after.format == before.format
        wanted = before if before.mode.startswith("I") else before.convert(mode)
        assert np.array_equal(np.asarray(after).astype(int), np.asarray(wanted).astype(int))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("colour.jpg", Image.fromarray(COLOURS)),
        ("grey.jpeg", Image.fromarray(GREY)),
        ("cmyk.jpg", CMYK),
        ("colour.webp", Image.fromarray(COLOURS)),
        ("alpha.avif", Image.fromarray(FOUR)),
    ],
)
def test_a_lossy_file_comes_back_in_its_format_and_mode_with_more_than_40_db(
    name: str, image: Image.Image, tmp_path: Path
) -> None:
    image.save(tmp_path / name, quality=90)
    read = read_picture(tmp_path / name)
    read.save(tmp_path / "out" / name)
    again = read_picture(tmp_path / "out" / name)
    assert (again.format, again.mode) == (read.format, read.mode)
    error = np.square(again.levels.astype(float) - read.levels).mean() / 255**2
    assert error < 1e-4


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_with_the_orientation_the_resolution_and_the_profile_are_kept(name: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(COLOURS).save(tmp_path / name, exif=exif, icc_profile=profile, dpi=(300, 300))
    read_picture(tmp_path / name).save(tmp_path / "out" / name)
    with Image.open(tmp_path / name) as before, Image.open(tmp_path / "out" / name) as after:
        assert after.size == before.size == (44, 30)
        assert dict(after.getexif()) == dict(before.getexif()) == {0x0112: 6, 0x010F: "camera"}
        assert after.info["icc_profile"] == profile
        assert after.info.get("dpi") == before.info.get("dpi")


def test_metadata_that_cannot_be_written_again_are_left_out_but_for_the_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40_000
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=exif)
    content = (tmp_path / "a.jpg").read_bytes()
    start = content.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
    (tmp_path / "a.jpg").write_bytes(content[:end] + content[start:end] + content[end:])  # read as one block
    picture = read_picture(tmp_path / "a.jpg")
    assert len(picture.info["exif"]) > 65_535
    picture.save(tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as after:
        assert dict(after.getexif()) == {0x0112: 6}
        assert after.size == (44, 30)


def test_a_tiff_is_turned_upright_as_it_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", exif=exif)
    read_picture(tmp_path / "a.tif").save(tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as after:
        assert after.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(after), np.rot90(COLOURS, -1))


def test_a_tiff_keeps_the_tags_that_describe_it_and_none_of_how_its_pixels_lay(tmp_path: Path) -> None:
    texts = {0x010F: "camera", 0x0132: "2026:11:30 12:00:00", 0x8298: "(c) me", 0x010E: "µ".encode()}
    xmp = b'<x tiff:Orientation="6" dc:title="mine"/>'
    exif = Image.Exif()
    exif.update({**texts, 0x02BC: xmp, 0x9C9B: b"t\0\0\0", 0x0112: 6})
    exif.update({0x0116: 7, 0x0100: 44, 0x014A: 8, 0x0201: 8, 0x0202: 99})  # strips, size, folders, thumbnail
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", exif=exif, dpi=(300, 300))
    read_picture(tmp_path / "a.tif").save(tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as after:
        kept = dict(after.tag_v2)
        assert after.size == (30, 44)
        assert after.info["compression"] == "tiff_lzw"
        assert after.info["dpi"] == (300, 300)
        assert np.array_equal(np.asarray(after), np.rot90(COLOURS, -1))
    assert {tag: kept[tag] for tag in texts} == {**texts, 0x010E: "µ".encode().decode("latin-1")}
    assert (kept[0x9C9B], kept[0x0112]) == (b"t\0\0\0", 1)
    assert kept[0x02BC] == b'<x  dc:title="mine"/>'
    assert not {0x014A, 0x0201, 0x0202} & set(kept)


def test_a_tiff_keeps_the_camera_and_place_of_its_exif_block(tmp_path: Path) -> None:
    exif = Image.Exif()
    camera = {0x9003: "2026:11:30 12:00:00", 0xA433: "Lens", 0x829A: 0.25}
    place = {1: "N", 2: (10.0, 20.0, 30.0)}
    exif.get_ifd(0x8769).update({**camera, 0xA002: 44, 0xA003: 30})
    exif.get_ifd(0x8825).update(place)
    Image.fromarray(DEEP).save(tmp_path / "a.tif", exif=exif.tobytes())
    read_picture(tmp_path / "a.tif").save(tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as after:
        found = after.getexif()
        assert found.get_ifd(0x8769) == camera
        assert found.get_ifd(0x8825) == place
        assert np.array_equal(np.asarray(after), DEEP)


@pytest.mark.parametrize(
    ("image", "space", "is_kept"),
    [
        (Image.fromarray(COLOURS).convert("LAB"), b"Lab ", False),
        (Image.fromarray(COLOURS).convert("LAB"), b"RGB ", True),
        (Image.fromarray(COLOURS).quantize(16), b"RGB ", True),
        (Image.fromarray(GREY).convert("1"), b"RGB ", False),
        (Image.frombytes("I;16B", (20, 30), bytes(1200)), b"GRAY", True),
        (Image.fromarray(COLOURS), b"Lab ", True),  # as the file has it: nothing was converted
    ],
)
def test_pixels_that_are_converted_lose_a_profile_of_other_colours(
    image: Image.Image, space: bytes, is_kept: bool, tmp_path: Path
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile[:16] + space + profile[20:]
    image.save(tmp_path / "a.tif", icc_profile=profile)
    read_picture(tmp_path / "a.tif").save(tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as after:
        assert after.info.get("icc_profile") == (profile if is_kept else None)


def test_what_its_format_cannot_hold_is_written_as_png_or_tiff(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.gif")
    read = read_picture(tmp_path / "a.gif")
    assert read.name_of(tmp_path / "a.gif") == "a.png"
    assert Picture(np.zeros((2, 2, 4), np.uint8), format="BMP").name_of(Path("x.bmp")) == "x.tif"
    # The ending is that of the content, whatever the file was called.
    Image.fromarray(GREY).save(tmp_path / "wrong.jpg", "PNG")
    assert read_picture(tmp_path / "wrong.jpg").name_of(tmp_path / "wrong.jpg") == "wrong.png"


def test_alpha_grows_with_the_picture() -> None:
    read = Picture(COLOURS, ALPHA)
    larger = read.with_levels(np.zeros((60, 88, 3), np.uint8))
    assert larger.alpha is not None
    assert larger.alpha.shape == (60, 88)
    assert np.abs(larger.alpha[::2, ::2].astype(int) - ALPHA).max() <= 4


def test_people_see_a_picture_on_white_in_eight_bits() -> None:
    shown = np.asarray(Picture(COLOURS, np.zeros_like(ALPHA)).image())
    assert (shown == 255).all()
    deep = np.asarray(Picture(DEEP[..., None]).image())
    assert np.array_equal(deep[..., 0], DEEP >> 8)


@pytest.mark.parametrize("values", [np.float32(GREY), np.int32(GREY) * 70_000])
def test_values_without_a_stated_range_are_rejected(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="32-bit values"):
        read_picture(tmp_path / "a.tif")


def test_a_file_that_is_no_image_or_too_large_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_picture(tmp_path / "a.png")
    Image.fromarray(COLOURS).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="44x30 pixels are more than the limit of 100"):
        read_picture(tmp_path / "b.png", Limits(max_pixels=100))


def test_a_picture_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OutputError):
        Picture(COLOURS).save(tmp_path / "folder" / "a.png")
    assert (tmp_path / "folder").read_text() == "a file"


@pytest.mark.parametrize("stored", range(1, 9))
@pytest.mark.parametrize("wanted", range(1, 9))
def test_the_pixels_are_given_as_a_file_of_another_orientation_has_them(stored: int, wanted: int) -> None:
    levels = picture(5, 7)
    found = Picture(levels, turn=stored).levels_in(wanted)
    assert found.flags.c_contiguous
    seen = [upright(Image.fromarray(one), turn) for one, turn in ((levels, stored), (found, wanted))]
    assert np.array_equal(*seen)


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
def test_a_picture_knows_that_its_file_has_more_pages_or_frames(file_format: str) -> None:
    frames = [Image.new("RGB", (20, 16), colour) for colour in ("red", "blue")]
    several, one = io.BytesIO(), io.BytesIO()
    frames[0].save(several, file_format, save_all=True, append_images=frames[1:])
    frames[0].save(one, file_format)
    assert read_picture(several.getvalue()).has_more_frames
    assert not read_picture(one.getvalue()).has_more_frames


def test_a_picture_knows_that_its_file_has_16_bit_colour() -> None:
    rows = b"".join(b"\0" + bytes(range(200, 200 + 6 * 4)) for _ in range(3))
    assert read_picture(seeds.png(4, 3, 16, 2, zlib.compress(rows))).was_16_bit_colour
    grey = b"".join(b"\0" + bytes(range(200, 200 + 2 * 4)) for _ in range(3))
    assert not read_picture(seeds.png(4, 3, 16, 0, zlib.compress(grey))).was_16_bit_colour
