"""Frames as one file: an animation that plays in any browser, or a strip.

Frames are uint8 RGB (F, H, W, 3), first to last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.atomic import atomic_file
from autoencode.data.preprocessing import save_image
from autoencode.errors import ConfigError
from autoencode.figures import strip

ANIMATED = (".gif", ".webp")

WIDEST_STRIP_PX = 65_500  # that a JPEG can be
MOST_FRAMES = 2_400  # two minutes at 20 a second; they are all in memory at once

Pixels = NDArray[np.uint8]


def is_animation(path: Path) -> bool:
    """Whether `save_frames` plays the frames one after the other under this name."""
    return path.suffix.lower() in ANIMATED


def check_frames(path: Path, count: int, height: int, width: int) -> None:
    """Reject more frames than fit, before they are made.

    Args:
        path: where `save_frames` is to write them.
        count: F, frames in all.
        height, width: of a frame.

    Raises:
        ConfigError: says how many fit.
    """
    if is_animation(path):
        most = MOST_FRAMES
    else:
        most = WIDEST_STRIP_PX // strip(np.zeros((1, height, width, 3), np.uint8)).shape[1]
    if count > most:
        kind = "an animation" if is_animation(path) else "a strip"
        raise ConfigError(
            f"{count:,} frames do not fit into {kind} of this size; {most:,} do. Ask for fewer."
        )


def save_frames(path: Path, frames: Pixels, frames_per_second: float) -> None:
    """Write frames: .gif and .webp play them without end, any other image shows them side by side.

    Small frames are enlarged by a whole factor. A GIF has 256 colours, chosen for each frame.

    Args:
        path: where to.
        frames: (F, H, W, 3), at least one.
        frames_per_second: speed of an animation; a GIF keeps time in steps of 10 ms.

    Raises:
        ConfigError: no frame, or no image format goes by that extension.
        OutputError: it cannot be written; what was there before is unchanged.
    """
    if not is_animation(path):
        save_image(path, strip(frames))
        return
    with atomic_file(path) as file:
        write_animation(file, frames, frames_per_second, "GIF" if path.suffix.lower() == ".gif" else "WEBP")


def write_animation(
    file: IO[bytes],
    frames: Pixels,
    frames_per_second: float,
    file_format: Literal["GIF", "WEBP"],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write frames that play without end into an open file; see `save_frames`.

    `progress` is called with the number of frames taken so far, before each.

    Raises:
        ConfigError: no frame.
    """
    if not len(frames):
        raise ConfigError("An animation needs at least one frame.")

    def images() -> Iterator[Image.Image]:
        for done, frame in enumerate(frames):
            if progress:
                progress(done)
            # A strip of one is the frame at the size at which it is comfortable to look at.
            yield Image.fromarray(strip(frame[None]))

    made = images()
    timing = {"duration": max(10, round(1000 / frames_per_second)), "loop": 0}
    quality = {"quality": 90} if file_format == "WEBP" else {}
    next(made).save(file, file_format, save_all=True, append_images=made, **timing, **quality)
