"""One picture restored in memory: what a page shows, and what it offers to keep."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.pictures import picture
from tests.restoration.test_restoration import restorer

from autoencode import ConfigError, ImageError, restore, restore_picture
from autoencode.data.preprocessing import Limits
from autoencode.restoration import tiles


def content_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def test_a_picture_in_memory_becomes_the_file_that_restore_writes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(50, 70)).save(tmp_path / "in" / "a.jpg", quality=95, dpi=(300, 300))
    made = restore(restorer(), tmp_path / "in", tmp_path / "out", device="cpu")
    file = tmp_path / "in" / "a.jpg"
    for given in (file, str(file), file.read_bytes()):
        found = restore_picture(restorer(), given)
        assert found.after.encoded() == (tmp_path / "out" / "a.jpg").read_bytes()
        assert found.removed_rms == made.results[0].removed_rms


def test_both_sides_are_shown_upright_on_white_in_the_size_of_the_file() -> None:
    transparent = np.dstack([picture(30, 44), np.zeros((30, 44), np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    found = restore_picture(restorer(), content_of(Image.fromarray(transparent), exif=exif))
    for side in (found.before, found.after):
        with Image.open(io.BytesIO(side.shown("png"))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (30, 44))
            assert np.asarray(image).min() == 255
        with Image.open(io.BytesIO(side.shown())) as image:
            assert (image.format, image.size) == ("JPEG", (30, 44))


def test_the_png_that_is_shown_has_the_restored_pixels() -> None:
    found = restore_picture(restorer(), content_of(Image.fromarray(picture(40, 56))))
    with Image.open(io.BytesIO(found.after.shown("png"))) as image:
        assert np.array_equal(np.asarray(image), found.after.levels)
    assert not np.array_equal(found.before.levels, found.after.levels)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_progress_counts_every_tile_once_and_can_stop_the_work(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE", 32)
    content = content_of(Image.fromarray(picture(70, 90)).convert(mode), "TIFF")
    calls: list[tuple[int, int]] = []
    restore_picture(restorer(), content, progress=lambda done, total: calls.append((done, total)))
    count = 9 * (2 if mode == "CMYK" else 1)  # three by three; black ink needs a pass of its own
    assert calls == [(done, count) for done in range(1, count + 1)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_picture(restorer(), content, progress=stop)


def test_what_cannot_be_restored_is_rejected_with_the_reason() -> None:
    content = content_of(Image.fromarray(picture(40, 56)))
    with pytest.raises(ImageError, match="pixels"):
        restore_picture(restorer(), content, limits=Limits(max_pixels=100))
    with pytest.raises(ImageError):
        restore_picture(restorer(), content[:50])
    with pytest.raises(ConfigError, match="was not trained to enlarge"):
        restore_picture(restorer(), content, scale=2)
