"""Image files as they are: drawn at the size asked for, apart, upright, and without what else was in them."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from autoencode.data.decoding import ORIENTATION_TAG
from autoencode.data.preprocessing import Limits, Preprocessing
from autoencode.errors import ImageError
from autoencode.web.originals import SIDES, Originals, draw
from autoencode.web.workspace import Workspace

from .conftest import in_a_loop


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def photo(width: int, height: int, **options: object) -> bytes:
    """A picture that is red on the left and blue on the right, as JPEG."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(1500, 400), (300, 900), (200, 100), (40, 30)])
def test_a_picture_is_as_large_as_asked_and_never_enlarged(width: int, height: int) -> None:
    shown = draw(photo(width, height), 320, Preprocessing(), Limits())
    image = opened(shown.content)
    assert (shown.width, shown.height) == (width, height)
    assert max(image.size) == min(320, max(width, height))
    assert image.width / image.height == pytest.approx(width / height, rel=0.02)
    left, right = image.getpixel((1, 1)), image.getpixel((image.width - 2, 1))
    assert left[0] > 200 > 60 > left[2]  # type: ignore[index]
    assert right[2] > 200 > 60 > right[0]  # type: ignore[index]


def test_a_small_picture_keeps_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    shown = draw(file.getvalue(), 320, Preprocessing(), Limits())
    assert shown.media_type == "image/png"
    np.testing.assert_array_equal(np.asarray(opened(shown.content)), pixels)


def test_a_picture_is_upright_and_says_nothing_of_where_it_was_taken() -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    exif[0x010E] = "taken at home"
    shown = draw(photo(600, 300, exif=exif), 640, Preprocessing(), Limits())
    assert (shown.width, shown.height) == opened(shown.content).size == (300, 600)
    assert b"home" not in shown.content
    assert not opened(shown.content).getexif()


def test_transparency_shows_the_background_of_the_model() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(file, "PNG")
    shown = draw(file.getvalue(), 160, Preprocessing(background=(10, 200, 30)), Limits())
    assert opened(shown.content).getpixel((3, 3)) == (10, 200, 30)


def test_what_was_drawn_is_kept_until_the_file_changes_or_memory_is_needed(tmp_path: Path) -> None:
    path, other = tmp_path / "one.jpg", tmp_path / "other.jpg"
    path.write_bytes(photo(900, 600))
    other.write_bytes(photo(800, 600))
    originals = Originals(
        Preprocessing(), cache_bytes=len(draw(path.read_bytes(), 640, Preprocessing(), Limits()).content) + 10
    )
    try:
        first = in_a_loop(originals.shown(path, 500))
        assert max(opened(first.content).size) == 640  # the next of the sides that are made
        assert in_a_loop(originals.shown(path, 640)) is first
        path.write_bytes(photo(400, 900))
        os.utime(path, ns=(1, 1))
        changed = in_a_loop(originals.shown(path, 640))
        assert (changed.width, changed.height) == (400, 900)
        in_a_loop(originals.shown(other, 640))
        assert in_a_loop(originals.shown(path, 640)) is not changed
        path.unlink()
        with pytest.raises(ImageError, match="No such file"):
            in_a_loop(originals.shown(path, 640))
    finally:
        originals.close()


def test_a_file_that_is_no_image_says_so_and_the_next_is_drawn(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.jpg", tmp_path / "good.jpg"
    bad.write_bytes(photo(400, 300)[:900])
    good.write_bytes(photo(400, 300))
    originals = Originals(Preprocessing())
    try:
        with pytest.raises(ImageError):
            in_a_loop(originals.shown(bad, 640))
        assert in_a_loop(originals.shown(good, 640)).width == 400
    finally:
        originals.close()


def test_the_page_shows_files_and_says_what_became_of_them(
    open_page: Callable[..., TestClient], run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    client = open_page(run_folder, images=folder)
    picture = client.get("/api/pictures?count=1").json()[0]
    path = folder / picture["name"]
    about = client.get(f"/api/pictures/{picture['id']}/file").json()
    assert (about["path"], about["bytes"], about["problem"]) == (str(path), path.stat().st_size, None)
    assert (about["width"], about["height"]) == opened(path.read_bytes()).size
    address = f"/images/{picture['id']}/original?side={SIDES[0]}"
    np.testing.assert_array_equal(
        np.asarray(opened(client.get(address).content)), np.asarray(opened(path.read_bytes()).convert("RGB"))
    )
    Image.new("RGB", (50, 20), "red").save(path)
    assert "has changed" in client.get(f"/api/pictures/{picture['id']}/file").json()["problem"]
    path.unlink()
    assert "is gone" in client.get(f"/api/pictures/{picture['id']}/file").json()["problem"]
    assert opened(client.get(address).content).size == (32, 32)  # as it was packed
    for side in (0, SIDES[-1] + 1, "x"):
        assert client.get(f"/images/{picture['id']}/original?side={side}").status_code == 422
    assert client.get("/images/../original").status_code == 404


def test_an_upload_is_shown_larger_than_the_model_sees_it(client: TestClient, workspace: Workspace) -> None:
    picture = client.post("/api/uploads", content=photo(900, 500)).json()
    shown = client.get(f"/images/{picture['id']}/original?side=1280")
    assert opened(shown.content).size == (900, 500)
    assert client.get(f"/api/pictures/{picture['id']}/file").json() == {"path": None, "problem": None}
