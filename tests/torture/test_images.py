"""Hostile images: pixels or a plain reason, whatever the bytes; the quick part of `make torture`."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torture.seeds import chunk, damaged, encoded, picture, seeds, tiff, with_right_checksums

from autoencode.data.preprocessing import Preprocessing, read_image
from autoencode.errors import ImageError

Torture = Callable[..., str]

SIZE = Preprocessing(16, 32)
SOUND = seeds()
PHOTOMETRIC, YCBCR = 262, 6  # of TIFF
TIFF_ENTRIES = [
    (tag, 4, 1, value)
    for tag, value in {256: 9, 257: 9, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 9, 279: 81}.items()
]


def read(content: bytes) -> None:
    try:
        pixels = read_image(content, SIZE)
    except ImageError as err:
        assert str(err)
        assert "\n" not in str(err)
    else:
        assert (pixels.shape, pixels.dtype) == ((16, 32, 3), np.uint8)


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_every_sound_seed_is_read(number: int) -> None:
    content = SOUND[number][1]
    with Image.open(io.BytesIO(content)) as image:
        tags = getattr(image, "tag_v2", {})
        is_raw_ycbcr = (tags.get(PHOTOMETRIC), image.info.get("compression")) == (YCBCR, "raw")
    if is_raw_ycbcr and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip(
            "Pillow before 13 takes its own uncompressed YCbCr for cut short (python-pillow/Pillow#9770)"
        )
    assert read_image(content, SIZE).shape == (16, 32, 3)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, len(SOUND) - 1), st.integers(0, len(SOUND) - 1), st.integers(0, 2**32 - 1))
def test_a_damaged_file_gives_pixels_or_a_reason(sound: int, other: int, seed: int) -> None:
    read(damaged(SOUND[sound][1], SOUND[other][1], np.random.default_rng(seed)))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, len(SOUND) - 1), st.integers(0, 40), st.binary(max_size=300))
def test_a_header_with_anything_behind_it_gives_pixels_or_a_reason(
    sound: int, length: int, rest: bytes
) -> None:
    read(SOUND[sound][1][:length] + rest)


def test_damaged_files_and_files_made_to_hurt_are_packed_or_skipped(torture: Torture) -> None:
    assert torture("images", "--cases", "120").split()[2] == "0"


def test_odd_folders_do_no_harm(torture: Torture) -> None:
    assert torture("folders", "--cases", "300").split()[1:3] == ["321", "0"]


@pytest.mark.parametrize(
    ("file_format", "before", "part"),
    [
        ("JPEG", 2, b"\xff"),
        ("JPEG", 2, b"\xff\xd0"),
        ("JPEG", 2, b"\xff\xfe\0\2"),
        ("PNG", 33, chunk(b"tEXt", b"a\0b")),
        ("PPM", 2, b" "),
        ("PPM", 3, b"#\n"),
        ("GIF", 13 + 3 * 256, b"!\xfe\1a\0"),
        ("JPEG2000", 32, b"\0\0\0\x08free"),
    ],
)
def test_a_header_of_half_a_million_parts_is_skipped_at_once_and_one_of_some_is_not(
    file_format: str, before: int, part: bytes
) -> None:
    content = encoded(picture(), file_format)
    started = time.process_time()
    with pytest.raises(ImageError, match="parts, which would take long to read"):
        read_image(content[:before] + part * 600_000 + content[before:], SIZE)
    assert time.process_time() - started < 2.5  # one of 256 MB took a minute and more
    assert read_image(content[:before] + part * 500 + content[before:], SIZE).shape == (16, 32, 3)


FRACTIONS = 600_000  # each of them an object in Python: 25 MB, in a tag that Pillow reads, took 6.6 s


def in_parts(content: bytes, exif: bytes) -> bytes:
    """Return a JPEG with a long EXIF block, in segments as long as they may be."""
    blocks = [b"Exif\0\0" + exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    segments = (b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in blocks)
    return content[:2] + b"".join(segments) + content[2:]


@pytest.mark.parametrize("kind", [5, 10])
@pytest.mark.parametrize("file_format", ["TIFF", "PNG", "WEBP", "AVIF", "JPEG", "resolution of a JPEG"])
def test_fractions_without_end_in_a_tag_are_not_read(file_format: str, kind: int) -> None:
    tag = 296 if "resolution" in file_format else 274
    other = tiff([(40_000, 1, 8 * FRACTIONS, 26)]), tiff([(tag, kind, FRACTIONS, 26)])
    exif, image = other[1] + b"\1" * (8 * FRACTIONS), picture()
    if file_format == "TIFF":
        content = tiff([*TIFF_ENTRIES, (282, kind, FRACTIONS, 160)]) + exif
    elif file_format == "JPEG":
        content = in_parts(encoded(image, "JPEG"), exif)
    elif "resolution" in file_format:
        content = in_parts(b"\xff\xd8" + encoded(image, "JPEG")[20:], exif)
    else:  # Pillow would read the tag as it writes it
        content = encoded(image, file_format, exif=exif.replace(*reversed(other))).replace(*other)
        content = with_right_checksums(content) if file_format == "PNG" else content
    started = time.process_time()
    read(content)
    assert time.process_time() - started < 0.5


def test_a_jpeg_of_endless_scans_is_skipped_at_once_and_one_with_data_behind_it_is_not() -> None:
    content = encoded(picture(), "JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 100 scans"):
        read_image(content[:start] + content[start:-2] * 200 + content[-2:], SIZE)
    # What begins a scan may be padded, hide behind a marker without a length, or follow endless empty parts.
    scan, head, end = content[start:-2], content[:start], content[-2:]
    for more in (
        b"\xff".join([b"", scan]) * 200,
        b"\xff\x01" + scan * 200,
        b"\xff\xfe\x00\x02" * 2**19 + scan * 200,
    ):
        with pytest.raises(ImageError, match="more than 100 scans"):
            read_image(head + scan + more + end, SIZE)
    # A film behind the picture, as telephones write it, holds such bytes by chance.
    assert read_image(content + b"\xff\xda" * 200, SIZE).shape == (16, 32, 3)


MEASURED = """
import resource, sys
from autoencode.data.preprocessing import Preprocessing, read_image
from torture.seeds import png, zeros
content = png(6000, 6000, 16, 0, zeros(6000 * 12001))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_image(content, Preprocessing(16, 16))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="memory is counted in another unit")
def test_sixteen_bit_pixels_take_no_more_than_a_few_times_their_memory() -> None:
    ended = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 4 * 6000 * 6000 * 2 / 1024**2


def test_files_that_a_fuzzer_grows_give_pixels_or_a_reason(torture: Torture) -> None:
    pytest.importorskip("atheris", reason="pip install atheris")
    assert torture("guided", "--cases", "500").split()[1:3] == ["500", "0"]
