"""Choose the file that stays, of several names of one file and of several files that show one picture."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from autoencode.data import decoding
from autoencode.data.listing import Paths
from autoencode.errors import ImageError

if TYPE_CHECKING:
    from autoencode.configuration import Keep
    from autoencode.data.preprocessing import Limits
    from autoencode.duplicates import DuplicateFile
    from autoencode.duplicates.verification import Match

# The content of a border is found to a pixel of the square that is compared; icons are registered to a few.
_MOST_OFF, _OFF_OF_BORDER, _BEYOND = 0.08, 0.5, 0.05
_JPEG, _LOSSLESS = (".jpg", ".jpeg"), (".png", ".bmp", ".tif", ".tiff", ".ppm")
_DECODED = 4  # levels of 255 by which decoders of one JPEG differ
_SAME_PIXELS = 0.05  # what the place of a border is off by, in pixels of the picture inside


def _largest(file: DuplicateFile) -> tuple[Any, ...]:
    # A lossless copy of a JPEG is many times as large and has nothing more in it.
    return -file.picture, file.decoded, file.time, -file.bytes, file.path


def _oldest(file: DuplicateFile) -> tuple[Any, ...]:
    return file.time, file.path


def _first(file: DuplicateFile) -> tuple[Any, ...]:
    return (file.path,)


RULES: dict[Keep, Callable[[DuplicateFile], tuple[Any, ...]]] = {
    "largest": _largest,
    "oldest": _oldest,
    "first": _first,
}


def staying(files: Sequence[DuplicateFile], keep: Keep) -> DuplicateFile:
    """Return the file that stays of those that show one picture.

    A link stays only among links: what it points to may go with another folder.

    Args:
        files: one at least.
        keep: "largest", the most pixels of the picture, among equals one that is no lossless copy of a
            JPEG, and of those the oldest; "oldest" by date; or "first" by path.
    """
    return min(files, key=lambda file: (file.path.is_symlink(), *RULES[keep](file)))


def decoded_jpegs(
    pairs: Iterable[tuple[int, int]], path_of: Callable[[int], Path], sizes: NDArray[np.int64], limits: Limits
) -> set[int]:
    """Return which images are lossless files that hold what a JPEG file of a pair decodes to.

    Args:
        pairs: numbers of images that are copies of each other.
        path_of: returns the file of an image.
        sizes: (N, 2), width and height of each image.
        limits: the largest files and pictures to read.
    """
    found = set[int]()
    for pair in pairs:
        for jpeg, other in (pair, pair[::-1]):
            endings = [path_of(image).suffix.lower() for image in (jpeg, other)]
            is_mixed = endings[0] in _JPEG and endings[1] in _LOSSLESS and other not in found
            if is_mixed and (sizes[jpeg] == sizes[other]).all():
                with contextlib.suppress(ImageError, OSError):  # one that is gone by now
                    one, two = (_pixels(path_of(image), limits) for image in (jpeg, other))
                    if np.asarray(ImageChops.difference(one, two)).max() <= _DECODED:
                        found.add(other)
    return found


def _pixels(path: Path, limits: Limits) -> Image.Image:
    """Return all pixels of a file, upright."""
    with decoding.reading(limits.max_pixels):
        image = decoding.open_image(decoding.read_bytes(path, limits.max_bytes))
        decoding.check_pixels(image, limits.max_pixels)
        turn = decoding.orientation(image)
        image.load()
        return decoding.upright(image.convert("RGB"), turn)


def without_links(paths: Paths) -> tuple[Paths, list[tuple[Path, Path]]]:
    """Return each file once, and its other names, symbolic and hard links, each with the name taken.

    The path that leads over no link is taken, the first of several.
    """
    first: dict[tuple[int, int], int] = {}
    repeated: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        try:
            status = path.stat()
        except OSError:  # reading it gives the reason
            continue
        # Some file systems number no files.
        if status.st_ino and first.setdefault((status.st_dev, status.st_ino), row) != row:
            repeated[status.st_dev, status.st_ino].append(row)
    links: dict[int, Path] = {}
    for file, rows in repeated.items():
        names = [first[file], *rows]
        taken = min(names, key=lambda row: (*_is_link(paths[row]), paths[row]))
        links.update({row: paths[taken] for row in names if row != taken})
    once = Paths(str(paths[row]) for row in range(len(paths)) if row not in links) if links else paths
    return once, [(paths[row], target) for row, target in sorted(links.items()) if paths[row] != target]


def _is_link(path: Path) -> tuple[bool, bool]:
    """Return whether a path is a link, and whether one of its folders is."""
    return path.is_symlink(), os.path.realpath(path) != os.path.abspath(path)  # noqa: PTH100 - `resolve` follows


def picture_in_border(
    match: Match, boxes: NDArray[np.float32], sizes: NDArray[np.int64]
) -> tuple[int, int] | None:
    """Return which image of a pair shows the other in a plain border, and the pixels of the picture inside.

    Args:
        match: the pair.
        boxes: (2, 4), where the content of either is inside a plain border, from -1 to 1.
        sizes: (2, 2), width and height of both in pixels.

    Returns:
        None if neither does, or the registration does not tell: a picture with a margin of its own on a
        copy of it is the whole frame on the whole frame.
    """
    corners = np.array([[-1, -1], [1, 1]], np.float64)
    linear, offset = match.map[:, :2].astype(np.float64), match.map[:, 2]
    first_in_second = corners @ linear.T + offset
    second_in_first = (corners - offset) @ np.linalg.inv(linear).T
    pixels = sizes.prod(1)
    for image, framed, bare, seen in (
        (match.second, 1, 0, first_in_second),
        (match.first, 0, 1, second_in_first),
    ):
        ends, box = np.concatenate([seen.min(0), seen.max(0)]), boxes[framed].astype(np.float64)
        border = (1 - abs(box)).max()
        # The part beyond the picture inside was cut off: the other one is a crop.
        is_crop = (abs(box) - abs(ends)).max() > _BEYOND
        if abs(ends - box).max() < min(_MOST_OFF, _OFF_OF_BORDER * border) and not is_crop:
            inside = float((box[2:] - box[:2]).prod() / 4 * pixels[framed])
            is_same = abs(inside / pixels[bare] - 1) <= _SAME_PIXELS
            return image, int(pixels[bare]) if is_same else round(inside)
    return None
