import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from autoencode import ConfigError, OutputError
from autoencode.figures import (
    Pixels,
    contact_sheet,
    image_grid,
    is_animation,
    save_frames,
    strip,
    write_animation,
)


def noise_images(count: int, height: int, width: int, seed: int = 0) -> Pixels:
    """Images so varied that each occurs once in a sheet, or not at all."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def places(sheet: Pixels, tile: Pixels) -> list[tuple[int, int]]:
    """Every (y, x) where `tile` occurs in `sheet`, pixel for pixel."""
    height, width, _ = tile.shape
    corners = (sheet[: -height or None, : -width or None] == tile[0, 0]).all(axis=-1)
    return [
        (int(y), int(x))
        for y, x in np.argwhere(corners)
        if np.array_equal(sheet[y : y + height, x : x + width], tile)
    ]


def only_place(sheet: Pixels, tile: Pixels) -> tuple[int, int]:
    found = places(sheet, tile)
    assert len(found) == 1
    return found[0]


def enlarged(image: Pixels, factor: int) -> Pixels:
    return np.kron(image, np.ones((factor, factor, 1), dtype=np.uint8))


def ink(sheet: Pixels) -> int:
    """How many pixels are dark, as text is."""
    return int((sheet.max(axis=-1) < 100).sum())


def test_every_image_of_a_contact_sheet_is_shown_once_exactly_beside_its_other_versions() -> None:
    originals, restored = noise_images(24, 96, 96), noise_images(24, 96, 96, seed=1)
    sheet = contact_sheet([("original", originals), ("reconstruction", restored)], scale=1)
    assert sheet.dtype == np.uint8
    for original, reconstruction in zip(originals, restored, strict=True):
        (y, x), (other_y, other_x) = only_place(sheet, original), only_place(sheet, reconstruction)
        assert other_y == y
        assert x + 96 <= other_x < x + 96 + 40


def test_a_contact_sheet_reads_down_a_block_and_then_on_to_the_next() -> None:
    images = noise_images(5, 64, 64)
    sheet = contact_sheet([("original", images)], rows_per_block=2, scale=1)
    corners = [only_place(sheet, image) for image in images]
    ys, xs = zip(*corners, strict=True)
    assert ys[0] == ys[2] == ys[4] < ys[1] == ys[3]
    assert xs[0] == xs[1] < xs[2] == xs[3] < xs[4]


@pytest.mark.parametrize("count", [6, 24, 60])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_contact_sheet_is_about_square(count: int, columns: int) -> None:
    named = [(str(number), noise_images(count, 32, 32)) for number in range(columns)]
    height, width, _ = contact_sheet(named, captions=["28.1 dB"] * count).shape
    assert 0.5 < width / height < 2


@pytest.mark.parametrize(("size", "factor"), [(16, 7), (28, 4), (32, 4), (64, 2), (96, 1), (256, 1)])
def test_small_images_are_enlarged_by_a_whole_factor_without_smoothing(size: int, factor: int) -> None:
    images = noise_images(2, size, size)
    sheet = contact_sheet([("original", images)])
    for image in images:
        only_place(sheet, enlarged(image, factor))


def test_an_image_too_large_for_a_screen_is_reduced_by_a_whole_factor_to_the_mean_of_its_pixels() -> None:
    images = noise_images(1, 600, 900)
    means = images[0].reshape(300, 2, 450, 2, 3).mean(axis=(1, 3))
    assert np.abs(strip(images) - means).max() <= 0.51
    only_place(image_grid(images, scale=1), images[0])


def test_headings_captions_and_title_add_text_and_leave_the_images_alone() -> None:
    images = noise_images(2, 128, 128)
    plain = image_grid(images)
    captioned = image_grid(images, captions=["28.1 dB  0.91", "é σ² ×"])
    titled = image_grid(images, title="Neighbours")
    assert ink(plain) < ink(captioned)
    assert ink(plain) < ink(titled)
    for sheet in (plain, captioned, titled):
        assert all(len(places(sheet, image)) == 1 for image in images)


def test_a_caption_too_long_for_its_image_stays_within_it() -> None:
    images = np.full((3, 112, 112, 3), 255, dtype=np.uint8)
    sheet = image_grid(images, captions=["", "a very long file name indeed.jpg" * 3, ""], columns=3)
    dark = np.flatnonzero((sheet.max(axis=-1) < 100).any(axis=0))
    left = 18 + 112 + 6
    assert left <= dark.min()
    assert dark.max() < left + 112


def test_a_small_sheet_is_widened_for_its_title() -> None:
    image = noise_images(1, 96, 96)
    assert image_grid(image, title="Neighbours of one image").shape[1] > image_grid(image).shape[1]


def test_the_highlight_frames_the_first_image_alone_and_covers_nothing() -> None:
    images = noise_images(4, 96, 96)
    sheet = image_grid(images, columns=2, highlight_first=True)
    y, x = only_place(sheet, images[0])
    frame = np.array([0x00, 0x72, 0xB2])
    assert (sheet[y - 3 : y, x : x + 96] == frame).all()
    assert (sheet[y : y + 96, x + 96 : x + 99] == frame).all()
    for image in images[1:]:
        y, x = only_place(sheet, image)
        assert not (sheet[y : y + 96, x + 96] == frame).all()


def test_a_grid_fills_rows_from_left_to_right_and_is_no_wider_than_its_images() -> None:
    images = noise_images(5, 96, 64)
    corners = [only_place(image_grid(images, columns=3, scale=1), image) for image in images]
    assert corners == sorted(corners)
    assert len({y for y, _ in corners}) == 2
    one = image_grid(images[:1], columns=4, scale=1)
    assert one.shape[1] < 2 * 96


def test_a_strip_is_its_frames_side_by_side() -> None:
    frames = noise_images(5, 48, 32)
    assert np.array_equal(strip(frames, scale=1), np.concatenate(list(frames), axis=1))
    assert np.array_equal(strip(frames, scale=3), enlarged(np.concatenate(list(frames), axis=1), 3))


def test_a_sheet_says_what_it_cannot_draw() -> None:
    images = noise_images(3, 32, 32)
    with pytest.raises(ConfigError, match="got none"):
        contact_sheet([])
    with pytest.raises(ConfigError, match="one shape"):
        contact_sheet([("a", images), ("b", images[:2])])
    with pytest.raises(ConfigError, match="as many captions"):
        contact_sheet([("a", images)], captions=["one"])
    with pytest.raises(ConfigError, match="at least one image"):
        image_grid(images[:0])
    with pytest.raises(ConfigError, match="uint8"):
        strip(images.astype(np.float32))
    with pytest.raises(ConfigError, match="at least 1"):
        strip(images, scale=0)
    with pytest.raises(ConfigError, match="at least 1"):
        image_grid(images, columns=0)
    with pytest.raises(ConfigError, match="at least 1"):
        contact_sheet([("a", images)], rows_per_block=-1)


@pytest.fixture
def frames() -> np.ndarray:
    """Five smooth frames of 112x112, which are shown as they are."""
    ramp = np.linspace(0, 200, 112)
    frame = np.stack([np.tile(ramp, (112, 1)), np.tile(ramp[:, None], (1, 112)), np.full((112, 112), 90)], 2)
    return np.stack([(frame + 10 * index).round().astype(np.uint8) for index in range(5)])


@pytest.mark.parametrize(("suffix", "error"), [(".gif", 8), (".webp", 4), (".GIF", 8)])
def test_an_animation_shows_every_frame_for_its_time_and_repeats(
    frames: np.ndarray, tmp_path: Path, suffix: str, error: float
) -> None:
    path = tmp_path / f"moving{suffix}"
    save_frames(path, frames, frames_per_second=20)
    with Image.open(path) as animation:
        shown = [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(animation)]
        assert animation.info["loop"] == 0
        assert animation.info["duration"] == 50
    assert np.abs(np.stack(shown) - frames).mean() < error


@pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
def test_writing_reports_how_many_frames_it_has_taken(frames: np.ndarray, file_format: str) -> None:
    seen: list[int] = []
    write_animation(io.BytesIO(), frames, 20, file_format, seen.append)  # type: ignore[arg-type]
    assert seen == [0, 1, 2, 3, 4]


def test_small_frames_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    save_frames(tmp_path / "moving.gif", frames, 10)
    with Image.open(tmp_path / "moving.gif") as animation:
        width, height = animation.size
    assert width % 48 == height % 32 == 0
    assert width > 48


def test_the_same_frames_give_the_same_bytes(frames: np.ndarray, tmp_path: Path) -> None:
    for name in ("a.gif", "b.gif"):
        save_frames(tmp_path / name, frames, 20)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_other_images_show_the_frames_side_by_side(frames: np.ndarray, tmp_path: Path) -> None:
    save_frames(tmp_path / "strip.png", frames, 20)
    with Image.open(tmp_path / "strip.png") as strip:
        np.testing.assert_array_equal(np.asarray(strip), np.concatenate(list(frames), axis=1))
    assert not is_animation(tmp_path / "strip.png")


def test_what_cannot_be_written_is_rejected_and_leaves_nothing(frames: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one frame"):
        save_frames(tmp_path / "none.gif", frames[:0], 20)
    with pytest.raises(ConfigError, match=r"Cannot write a\.mp4"):
        save_frames(tmp_path / "a.mp4", frames, 20)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        save_frames(tmp_path / "file" / "a.gif", frames, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
