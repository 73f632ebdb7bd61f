"""Pictures made of images: sheets, strips and animations. Curves and histograms are in `plots`.

Images and frames are uint8 RGB (N, H, W, 3), and so is a sheet (height, width, 3). Pixels are shown as they
are, or enlarged by a whole factor without smoothing.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from autoencode.atomic import atomic_file
from autoencode.data.preprocessing import save_image
from autoencode.errors import ConfigError
from autoencode.figures.plots import BLUE, INK

Pixels = NDArray[np.uint8]

PAPER, FAINT = "#ffffff", "#d9d9d9"
TEXT_PX, TITLE_PX = 14, 18
NARROWEST_TITLE_PX = 480
GAP_PX, BLOCK_GAP_PX, MARGIN_PX = 6, 28, 18
# A digit of 28 px is too small to judge on today's screens; above 512 px few images fit beside each other.
COMFORTABLE_TILE_PX, LARGEST_TILE_PX = 112, 512

SHEET_IMAGES = 24  # of the sheet of a command: nobody looks through a longer one

ANIMATED = (".gif", ".webp")
WIDEST_STRIP_PX = 65_500  # the limit of a JPEG
MOST_FRAMES = 2_400  # two minutes at 20 per second; they are all in memory at once


def contact_sheet(
    columns: Sequence[tuple[str, Pixels]],
    *,
    captions: Sequence[str] | None = None,
    title: str | None = None,
    rows_per_block: int | None = None,
    scale: int | None = None,
) -> Pixels:
    """Lay versions of the same images side by side, one row per image, wrapped into blocks.

    Args:
        columns: heading and images (N, H, W, 3) of each version, such as "original" and "reconstruction".
        captions: a line under each row, N of them; too long a line is cut at an ellipsis.
        title: a line above the sheet.
        rows_per_block: rows before the next block starts; None makes the sheet about square.
        scale: whole factor of enlargement; None brings small images to about 112 px.

    Returns:
        The sheet, (height, width, 3).

    Raises:
        ConfigError: no image, columns of different shapes, captions that do not match the rows, or a number
            below 1.
    """
    if not columns or any(images.shape != columns[0][1].shape for _, images in columns):
        shapes = ", ".join(f"{heading} {images.shape}" for heading, images in columns)
        raise ConfigError(f"The columns of a contact sheet need images of one shape; got {shapes or 'none'}.")
    _check_at_least_one("rows_per_block", rows_per_block)
    tiles = [_tiles(images, scale) for _, images in columns]
    count, tile_height, tile_width, _ = tiles[0].shape
    _check_captions(captions, count)
    pitch = GAP_PX + max(tile_width, *(_text_width(heading) for heading, _ in columns))
    row_width = pitch * len(columns) - GAP_PX
    row_height = tile_height + _caption_height(captions) + GAP_PX
    rows = rows_per_block or _squarest(count, row_width + BLOCK_GAP_PX, row_height)
    heading_height = TEXT_PX + GAP_PX
    blocks = math.ceil(count / rows)
    sheet = _Sheet(
        blocks * (row_width + BLOCK_GAP_PX) - BLOCK_GAP_PX,
        heading_height + min(rows, count) * row_height - GAP_PX,
        title,
    )
    for block in range(blocks):
        for column, (heading, _) in enumerate(columns):
            x = block * (row_width + BLOCK_GAP_PX) + column * pitch
            sheet.text(heading, x, 0, pitch - GAP_PX)
    for index in range(count):
        x, y = index // rows * (row_width + BLOCK_GAP_PX), heading_height + index % rows * row_height
        for column, images in enumerate(tiles):
            sheet.tile(images[index], x + column * pitch + (pitch - GAP_PX - tile_width) // 2, y)
        if captions:
            sheet.text(captions[index], x, y + tile_height + GAP_PX, row_width)
    return sheet.pixels()


def image_grid(
    images: Pixels,
    *,
    captions: Sequence[str] | None = None,
    title: str | None = None,
    columns: int | None = None,
    scale: int | None = None,
    highlight_first: bool = False,
) -> Pixels:
    """Lay images out in a grid, row by row.

    Args:
        images: (N, H, W, 3).
        captions: a line under each image, N of them; too long a line is cut at an ellipsis.
        title: a line above the grid.
        columns: images in a row; None makes the grid about square.
        scale: whole factor of enlargement; None brings small images to about 112 px.
        highlight_first: frame the first image, such as the query of a search.

    Returns:
        The grid, (height, width, 3).

    Raises:
        ConfigError: no image, captions that do not match the images, or a number below 1.
    """
    _check_at_least_one("columns", columns)
    tiles = _tiles(images, scale)
    count, tile_height, tile_width, _ = tiles.shape
    _check_captions(captions, count)
    cell_width, cell_height = tile_width + GAP_PX, tile_height + GAP_PX + _caption_height(captions)
    per_row = min(count, columns or math.ceil(count / _squarest(count, cell_width, cell_height)))
    sheet = _Sheet(per_row * cell_width - GAP_PX, math.ceil(count / per_row) * cell_height - GAP_PX, title)
    for index, tile in enumerate(tiles):
        x, y = index % per_row * cell_width, index // per_row * cell_height
        sheet.tile(tile, x, y, highlight=highlight_first and index == 0)
        if captions:
            sheet.text(captions[index], x, y + tile_height + GAP_PX, tile_width)
    return sheet.pixels()


def strip(frames: Pixels, *, scale: int | None = None) -> Pixels:
    """Lay the frames of a morph in one row without gaps.

    Args:
        frames: (N, H, W, 3), first to last.
        scale: whole factor of enlargement; None brings small images to about 112 px.

    Returns:
        The strip, (scaled H, N * scaled W, 3).

    Raises:
        ConfigError: no frame.
    """
    return np.concatenate(list(_tiles(frames, scale)), axis=1)


def png(pixels: Pixels) -> bytes:
    """Return pixels (height, width, 3) as the content of a PNG file, which a notebook shows."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def is_animation(path: Path) -> bool:
    """Whether `save_frames` plays the frames one after the other under this name."""
    return path.suffix.lower() in ANIMATED


def check_frames(path: Path, count: int, height: int, width: int) -> None:
    """Reject more frames than fit, before they are made.

    Args:
        path: the file that `save_frames` will write.
        count: F, frames in all.
        height, width: of a frame.

    Raises:
        ConfigError: there are more frames than fit; the message names the limit.
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
        path: the file to write.
        frames: (F, H, W, 3), at least one.
        frames_per_second: speed of an animation; a GIF keeps time in steps of 10 ms.

    Raises:
        ConfigError: no frame, or no image format goes by that extension.
        OutputError: the file cannot be written; an earlier one is unchanged.
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
            # A strip of one frame is that frame at a comfortable size. One by one: enlarged all at once,
            # frames of 28 px would take 16 times their memory.
            yield Image.fromarray(strip(frame[None]))

    made = images()
    # GIF counts in 10 ms, and browsers take 0 for a default of a tenth of a second.
    timing = {"duration": max(10, round(1000 / frames_per_second)), "loop": 0}
    quality = {"quality": 90} if file_format == "WEBP" else {}
    next(made).save(file, file_format, save_all=True, append_images=made, **timing, **quality)


class _Sheet:
    """A white page with a margin and a title; coordinates count from the corner below the title."""

    def __init__(self, width_px: int, height_px: int, title: str | None) -> None:
        self._top = MARGIN_PX + (TITLE_PX + 2 * GAP_PX if title else 0)
        # A small sheet is widened for its title, within reason.
        width = max(width_px, min(_text_width(title, TITLE_PX), NARROWEST_TITLE_PX) if title else 0)
        self._image = Image.new("RGB", (width + 2 * MARGIN_PX, height_px + self._top + MARGIN_PX), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        if title:
            self._write(_cut(title, width, TITLE_PX), MARGIN_PX, MARGIN_PX, TITLE_PX, "lt")

    def tile(self, pixels: Pixels, x: int, y: int, *, highlight: bool = False) -> None:
        left, top = x + MARGIN_PX, y + self._top
        right, bottom = left + pixels.shape[1], top + pixels.shape[0]
        # Outside the tile: a white image stays visible on white, and no pixel of it is covered.
        reach, colour = (3, BLUE) if highlight else (1, FAINT)
        self._draw.rectangle((left - reach, top - reach, right + reach - 1, bottom + reach - 1), fill=colour)
        self._image.paste(Image.fromarray(pixels), (left, top))

    def text(self, text: str, x: int, y: int, width: int) -> None:
        """Write one line, centred in `width` from `x`, cut if it is longer."""
        self._write(_cut(text, width, TEXT_PX), x + MARGIN_PX + width / 2, y + self._top, TEXT_PX, "mt")

    def _write(self, text: str, x: float, y: float, size_px: int, anchor: str) -> None:
        # Aligned by the top of a capital letter, so that lines with and without descenders agree.
        ascent = _font(size_px).getbbox("H", anchor="ls")[1]
        self._draw.text((x, y - ascent), text, fill=INK, font=_font(size_px), anchor=f"{anchor[0]}s")

    def pixels(self) -> Pixels:
        return np.asarray(self._image)


@functools.cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font has no é, σ, × or dash; Matplotlib's has. Imported late, as it takes a while.
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def _text_width(text: str, size_px: int = TEXT_PX) -> int:
    return math.ceil(_font(size_px).getlength(text))


def _cut(text: str, width: int, size_px: int) -> str:
    """Return `text` as one line of at most `width` px, its middle left out if it is longer."""
    # The middle, as file names differ at their ends. A line break in a name would leave the line.
    text = "".join(character if character.isprintable() else " " for character in text)
    shown = text
    kept = len(text)
    while kept and _text_width(shown, size_px) > width:
        kept -= 1
        shown = f"{text[: math.ceil(kept / 2)]}…{text[len(text) - kept // 2 :]}"
    return shown


def _tiles(images: Pixels, scale: int | None) -> Pixels:
    """Return the images as they are shown: enlarged, or reduced where they would not fit a screen."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or 0 in images.shape:
        raise ConfigError(
            "A sheet needs at least one image, as uint8 of shape (N, H, W, 3); "
            f"got {images.dtype} of shape {images.shape}."
        )
    _check_at_least_one("scale", scale)
    shorter, longer = sorted(images.shape[1:3])
    if scale is None:
        scale = max(1, min(round(COMFORTABLE_TILE_PX / shorter), 2 * COMFORTABLE_TILE_PX // longer))
        if longer > LARGEST_TILE_PX:
            # A whole factor and the mean of its squares: no pixel counts more than another.
            factor = math.ceil(longer / LARGEST_TILE_PX)
            return np.stack([np.asarray(Image.fromarray(image).reduce(factor)) for image in images])
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def _check_captions(captions: Sequence[str] | None, count: int) -> None:
    if captions is not None and len(captions) != count:
        raise ConfigError(f"A sheet of {count} rows needs as many captions; got {len(captions)}.")


def _check_at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"The {name} of a sheet must be at least 1; got {value}.")


def _caption_height(captions: Sequence[str] | None) -> int:
    return TEXT_PX + 2 * GAP_PX if captions else 0


def _squarest(count: int, block_width: int, row_height: int) -> int:
    """Return how many rows a block needs for `count` rows in blocks side by side to be about square."""

    # In logarithms, so that twice as wide is as bad as twice as high; and no last block that is nearly empty.
    def unevenness(rows: int) -> float:
        blocks = math.ceil(count / rows)
        empty = (blocks * rows - count) / count
        return abs(math.log(blocks * block_width / (rows * row_height))) + empty

    return min(range(1, count + 1), key=unevenness)
