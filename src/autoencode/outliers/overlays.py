"""Heat maps as pictures: colours over an image with a box, and the folder of those of one run.

Shapes: h, w rows and columns of a heat map, H, W of the picture that it is drawn over.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import find_objects, label

from autoencode.atomic import atomic_file, cut_name, make_folder, write_bytes
from autoencode.data.preprocessing import save_image
from autoencode.errors import AutoencodeError, OutputError
from autoencode.outliers.find import Box, Verdict
from autoencode.untrusted import TEXT_BYTES, read_file

if TYPE_CHECKING:
    from autoencode.outliers.patches import Picture

LIST = "maps.json"  # in the folder: the names of the pictures that the last run wrote there
_PICTURE = re.compile(r"\d{5,}-.*-(overlay|map)\.png", re.DOTALL)
_HEAT_UNIT = 1 / 4096  # of a 16-bit map: 1, the upper end of normal patches, is 4096
# Red shows over dark and over bright parts, which are mostly grey; a ramp that begins with pink does not.
# Blue for the other meaning, as most people who cannot distinguish red from green see red from blue.
_BEYOND, _WITHIN = (235, 20, 30), (30, 90, 255)
_HOTTEST = 0.9  # the quantile of a map from which on an image is coloured that has no anomalous place


def region(heat: NDArray[np.floating[Any]], height: int, width: int) -> tuple[Box | None, float]:
    """Return the box around the hottest place of an image of so many pixels, and the share that is as hot."""
    if heat.max() <= 1:
        return None, 0.0
    # Halfway between the upper end of normal patches and the peak. The whole region beyond the end is much
    # larger than a defect: patches overlap. On 14 cracks of Kolektor the boxes had 3.8 times the area of
    # those around the masks, with a median IoU of 0.16; halfway they have 1.8 times the area and 0.24.
    hot = heat > (1 + heat.max()) / 2
    regions, _ = label(hot)
    rows, columns = find_objects(regions)[regions.flat[heat.argmax()] - 1]
    down, across = height / heat.shape[0], width / heat.shape[1]
    left, top = round(columns.start * across), round(rows.start * down)
    box = Box(left, top, round(columns.stop * across) - left, round(rows.stop * down) - top)
    return box, float(hot.mean())


def coloured(heat: NDArray[np.floating[Any]], height: int, width: int) -> NDArray[np.uint8]:
    """Return a heat map (h, w) as colours with alpha (H, W, 4), to lay over an image.

    Red is what lies beyond the upper end of normal patches, which is 1. Where nothing does, the hottest tenth
    of the image is blue: its most unusual places, each within what is normal.
    """
    plain = Image.fromarray(heat.astype(np.float32))
    values = np.asarray(plain.resize((width, height), Image.Resampling.BICUBIC))
    highest = float(heat.max())
    if highest > 1:
        # Clear up to the upper end of normal patches, so that what is normal stays visible.
        strength, colour = 0.65 * np.clip((values - 0.8) / 0.6, 0, 1), _BEYOND
    else:
        lowest = float(np.quantile(heat, _HOTTEST))
        strength, colour = 0.45 * np.clip((values - lowest) / max(highest - lowest, 1e-6), 0, 1), _WITHIN
    colours = np.empty((height, width, 4), np.uint8)
    colours[..., :3], colours[..., 3] = colour, (255 * strength).round()
    return colours


def with_box(pixels: NDArray[np.uint8], box: Box | None, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return pixels (H, W, 3 or 4) with a box drawn around a region; `box` is of an image of that size."""
    if box is None:
        return pixels
    height, width = pixels.shape[:2]
    down, across = height / size[0], width / size[1]
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(min(height, width) / 160))
    # Around the region, and white outside of red, which is seen on any ground.
    for grown, colour in ((2 * line, (255, 255, 255)), (line, _BEYOND)):
        left, top = max(0, round(box.left * across) - grown), max(0, round(box.top * down) - grown)
        right = min(width - 1, round((box.left + box.width) * across) - 1 + grown)
        bottom = min(height - 1, round((box.top + box.height) * down) - 1 + grown)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
    return np.asarray(drawn)


def picture_name(number: int, path: Path, root: Path) -> str:
    """Return the name of the pictures of an image: images of different folders may have one name."""
    absolute = path.absolute()
    parts = (
        absolute.relative_to(root.absolute()).parts[-3:] if absolute.is_relative_to(root.absolute()) else ()
    )
    return cut_name(f"{number:05d}-{Path('-'.join(parts) or path.name).stem}")


def overlay_name(name: str) -> str:
    """Return the name of the file with the overlay among the pictures of a name."""
    return f"{name}-overlay.png"


def _map_name(name: str) -> str:
    return f"{name}-map.png"


def draw(folder: Path, name: str, verdict: Verdict, picture: Picture) -> None:
    """Write NAME-overlay.png and NAME-map.png, both of the size of the image."""
    assert verdict.heat is not None
    make_folder(folder, verdict.path)
    pixels, size = picture.pixels[-1], (picture.width, picture.height)
    colours = coloured(verdict.heat, *pixels.shape[:2])
    strength = colours[..., 3:] / 255
    mixed = (pixels * (1 - strength) + colours[..., :3] * strength).round().astype(np.uint8)
    full = np.asarray(Image.fromarray(mixed).resize(size))
    shape = (picture.height, picture.width)
    save_image(folder / overlay_name(name), with_box(full, verdict.box, shape))
    heat = np.asarray(
        Image.fromarray(verdict.heat.astype(np.float32)).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    )
    levels = np.clip(heat / _HEAT_UNIT, 0, 65535).round().astype(np.uint16)
    deep = Image.fromarray(levels).resize(size, Image.Resampling.NEAREST)
    with atomic_file(folder / _map_name(name)) as file:
        deep.save(file, "PNG")


def earlier_pictures(folder: Path) -> list[Path]:
    """Return the pictures that the last run wrote to a folder, for the next to replace.

    Raises:
        OutputError: it is no folder, or holds pictures of yet another run: with --only-outliers, the folder
            is the list of rejected parts, and must not list those of another lot.
    """
    if not folder.exists():
        return []
    try:
        there = {path.name for path in folder.iterdir() if _PICTURE.fullmatch(path.name)}
    except OSError as err:
        raise OutputError.of(folder, err) from err
    listed = set[str]()
    # Without a list, or with one that somebody changed, nothing there is known to be ours.
    with contextlib.suppress(OSError, AutoencodeError, ValueError, TypeError):
        listed = {str(name) for name in json.loads(read_file(folder / LIST, TEXT_BYTES))}
    if others := sorted(there - listed):
        raise OutputError(
            f"{folder} holds pictures of another run, such as {others[0]}, which would be mixed with those "
            "of this one. Give another folder, or empty this one."
        )
    return [folder / name for name in sorted(there & listed)]


def begin_maps(folder: Path, names: Sequence[str], source: Path) -> None:
    """Remove the pictures of the last run from a folder, and list those that this one will write.

    Args:
        folder: made here.
        names: of the images drawn, from `picture_name`.
        source: one of the images.

    Raises:
        OutputError: see `earlier_pictures`; or the folder cannot be written to.
    """
    make_folder(folder, source)
    gone = earlier_pictures(folder)
    # Listed before they are there: a run that is killed leaves none that the next would not know.
    kept = [one.name for one in gone]
    new = [file for name in names for file in (overlay_name(name), _map_name(name))]
    write_bytes(folder / LIST, (json.dumps(sorted({*kept, *new}), indent=0) + "\n").encode())
    try:
        for path in gone:
            path.unlink(missing_ok=True)
    except OSError as err:
        raise OutputError.of(folder, err) from err
