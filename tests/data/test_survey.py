"""Images of more than 8 bits have one range of values a folder: that of the bits in use, or that given."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from autoencode import ConfigError, ImageError, Pack, Preprocessing, load_model, open_pack, pack_folder, train
from autoencode.data.pack import suited
from autoencode.data.preprocessing import read_image
from autoencode.data.sources import listed

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)


def folder_of(folder: Path, images: list[NDArray[np.generic]], kind: str = ".tif") -> Path:
    folder.mkdir()
    for number, values in enumerate(images):
        Image.fromarray(values).save(folder / f"{number}{kind}")
    return folder


def rows(pack: Pack) -> dict[str, NDArray[np.uint8]]:
    order = sorted(pack.entries, key=lambda entry: entry.path)
    return {entry.path: pack.pixels(np.array([entry.row]))[0][..., 0] for entry in order}


@pytest.mark.parametrize(("bits", "kind"), [(10, ".tif"), (12, ".png"), (12, ".pgm"), (16, ".png")])
def test_the_bits_in_use_become_all_levels(bits: int, kind: str, tmp_path: Path) -> None:
    bright = (RAMP * (2**bits - 1)).astype(np.uint16)
    pack = pack_folder(folder_of(tmp_path / "i", [bright, bright // 2], kind), tmp_path / "p", size=32)
    assert pack.preprocessing.value_range == (0, 2**bits - 1)
    found = list(rows(pack).values())
    expected = np.rint(bright * (255 / (2**bits - 1)))
    assert np.array_equal(found[0], expected)
    # The dark frame stays half as bright: each image with a range of its own, they would be alike.
    assert np.abs(found[1].astype(int) - expected / 2).max() <= 1
    assert open_pack(tmp_path / "p").preprocessing == pack.preprocessing


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.001, (0, 1)), (-1.0, 1.0, (-1, 1)), (0.0, 255.0, (0, 255)), (0.0, 3000.0, (0, 3000))],
)
def test_floats_have_one_range_too(
    low: float, high: float, expected: tuple[float, float], tmp_path: Path
) -> None:
    values = (low + RAMP * (high - low)).astype(np.float32)
    pack = pack_folder(folder_of(tmp_path / "i", [values]), tmp_path / "p", size=32)
    assert pack.preprocessing.value_range == pytest.approx(expected, abs=5e-3 * high)
    assert len(np.unique(rows(pack)["0.tif"])) > 250


def test_a_hot_pixel_blackens_nothing_and_a_narrow_band_is_spread(tmp_path: Path) -> None:
    narrow = (10_000 + RAMP * 1_000).astype(np.uint16)
    hot = narrow.copy()
    hot[0, 0] = 65_535
    pack = pack_folder(folder_of(tmp_path / "i", [narrow, hot]), tmp_path / "p", size=32)
    low, high = pack.preprocessing.value_range
    assert 9_900 < low < 10_001 < 10_999 < high < 11_100
    plain, other = rows(pack).values()
    assert (plain != other).sum() == 1
    assert other[0, 0] == 255
    assert re.search(
        r"1 of 2 files looked at have values beyond \S+, 0\.\d\d% of theirs( or less)?, which are", pack.note
    )


def test_a_range_that_was_asked_for_is_said_to_be(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "i", [(RAMP * 4095).astype(np.uint16)])
    assert suited(listed(folder))[1].endswith(" become 0:4095")
    assert suited(listed(folder), {"value_range": (0, 4095)})[1].endswith(
        "; 0:4095 is black to white, as given"
    )


def test_a_range_that_is_given_is_kept_in_pack_and_model(tmp_path: Path) -> None:
    values = [(RAMP * 3_000 + number).astype(np.uint16) for number in range(6)]
    folder = folder_of(tmp_path / "i", values)
    asked = {"height": 32, "width": 32, "value_range": (0, 6_000)}
    run = train(folder, tmp_path / "run", preprocessing=asked, widths=(4, 8), epochs=1)
    model = load_model(run.model_path)
    assert model.preprocessing.value_range == open_pack(run.pack_path).preprocessing.value_range == (0, 6_000)
    assert (model.read(folder / "0.tif") * 255).max().round() == 128
    with pytest.raises(ConfigError, match="not a low and a higher value"):
        Preprocessing(value_range=(2, 1))


def test_photographs_have_no_range_and_the_fingerprint_they_had(tiny_pack: Pack) -> None:
    assert tiny_pack.preprocessing.value_range == ()
    assert "value_range" not in tiny_pack.preprocessing.to_json()


def test_a_planar_tiff_of_16_bits_is_rejected_as_it_would_be_read_wrongly(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 2**16, (3, 32, 32), np.uint16)
    strip, end = planes[0].nbytes, 8 + planes.nbytes
    # (tag, values), each value after the pixels where it does not fit its entry.
    tags = {256: [32], 257: [32], 258: [16] * 3, 259: [1], 262: [2], 273: [8, 8 + strip, 8 + 2 * strip]}
    tags |= {277: [3], 278: [32], 279: [strip] * 3, 284: [2]}
    extra, entries = b"", b""
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += content if len(content) == 4 else struct.pack("<I", end + len(extra))
        extra += content if len(content) > 4 else b""
    head = b"II*\0" + struct.pack("<I", end + len(extra))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + planes.tobytes() + extra + directory)
    with pytest.raises(ImageError, match="planar TIFF of 16-bit channels"):
        read_image(tmp_path / "a.tif", Preprocessing(32, 32))


def test_what_is_not_taken_of_files_is_said_once_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    page, other = Image.fromarray(np.full((20, 20), 9, np.uint8)), Image.new("L", (20, 20))
    page.save(folder / "pages.tif", save_all=True, append_images=[other])
    page.save(folder / "frames.gif", save_all=True, append_images=[other])
    Image.merge("LA", (page, other.point(lambda _: 255))).save(folder / "pair.tif")
    wide = np.full((20, 20), 500, np.uint16)
    wide[:5] = 4000
    Image.fromarray(wide).save(folder / "wide.png")
    page.save(folder / "plain.jpg")
    pack = pack_folder(folder, tmp_path / "pack", {"value_range": (0, 1000)})
    assert pack.note == (
        "2 of 4 files looked at have several pages or frames, of which the first is taken; "
        "1 of 4 files looked at have two channels, of which the second is taken for transparency; "
        "1 of 4 files looked at have values beyond 0:1000, 25.00% of theirs, which are clipped"
    )
    assert pack_folder(folder, tmp_path / "pack").note == pack.note
    (folder / "wide.png").unlink()
    for name in ("pages.tif", "frames.gif", "pair.tif"):
        (folder / name).unlink()
    assert pack_folder(folder, tmp_path / "other").note == ""
