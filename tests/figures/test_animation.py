"""Frames as files: read back with Pillow, they are the frames."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from autoencode import ConfigError, OutputError
from autoencode.figures.animation import is_animation, save_frames, write_animation


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
def test_writing_tells_how_many_frames_it_has_taken(frames: np.ndarray, file_format: str) -> None:
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
