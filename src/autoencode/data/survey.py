"""Survey a sample of a folder's images, and choose the preprocessing that suits them.

Only headers are read, and the values of images of more than 8 bits, in a worker: a hostile file costs itself
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.data import decoding, workers
from autoencode.data.preprocessing import SIZE_MULTIPLE, Limits, Preprocessing
from autoencode.errors import ImageError
from autoencode.untrusted import read_head

SAMPLE = 100  # files: the median of their sizes is then known to a few per cent
_USUAL = 128 * 128  # pixels: more make training on a CPU slow, and a code of 256 numbers keeps no more detail
# A photograph of 3:2 loses a third to a square, at its edges; with more, the subject itself is cut.
_MOST_CUT = 0.4
# Shapes that differ by less than this factor are one shape: nobody sees that they were stretched to it.
_SAME_SHAPE = 1.15
# Files of these types may have more than one page or frame; of others, such as photographs, none is opened.
_WITH_FRAMES = (".tif", ".tiff", ".gif", ".webp", ".apng", ".avifs")


class Extent(NamedTuple):
    """Height and width of an image in pixels, upright."""

    height: int
    width: int


class Values(NamedTuple):
    """The values of an image of more than 8 bits, but for one in a thousand at each end: hot pixels."""

    low: float
    high: float
    is_whole: bool


@dataclass(frozen=True)
class Survey:
    """The sample.

    Attributes:
        extents: of the files that could be read.
        values: of those with more than 8 bits.
    """

    extents: tuple[Extent, ...]
    values: tuple[Values, ...] = ()

    def value_range(self) -> tuple[tuple[float, ...], str]:
        """Return the range of values of the files of more than 8 bits, and the reason; empty without any.

        It is one for all: a range of its own for each image would make a dark frame look like a bright one.
        """
        if not self.values:
            return (), ""
        low, high = min(one.low for one in self.values), max(one.high for one in self.values)
        if all(one.is_whole for one in self.values) and low >= 0:
            bits = next((bits for bits in (8, 10, 12, 14) if high < 2**bits), 16 if high < 2**16 else 32)
            full = (0.0, float(2**bits - 1))
            used = f"{bits}-bit values"
        else:
            usual = next((r for r in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)) if _fits(low, high, r)), None)
            full, used = usual or (low, high), "values"
        if high - low < (full[1] - full[0]) / 4:  # most of 256 levels would be empty
            margin = 0.05 * (high - low) or 0.5
            full = (low - margin, high + margin)
        return full, f"{used} from {low:g} to {high:g} become {full[0]:g}:{full[1]:g}"

    def preprocessing(self, given: Mapping[str, Any] | None = None) -> tuple[Preprocessing, str]:
        """Return the preprocessing that suits these images, and the reason in a few words.

        Args:
            given: fields of `Preprocessing` that were asked for; only the others are chosen.

        Raises:
            ConfigError: what was asked for cannot be used.
        """
        given = dict(given or {})
        if not self.extents:
            return Preprocessing(**given), "no image could be read"
        sides = np.array(self.extents, np.float64)
        shapes = sides[:, 1] / sides[:, 0]
        shape = float(np.median(shapes))
        low, high = np.quantile(shapes, (0.05, 0.95))
        is_one_shape = high / low <= _SAME_SHAPE
        if "height" not in given:
            kept = shape if is_one_shape and _differs(shape, 1) else 1.0
            height, width = np.median(sides, 0)
            area = min(_USUAL, height * width)
            given["height"] = _multiple(math.sqrt(area / kept))
            given["width"] = _multiple(math.sqrt(area * kept))
        target = given["width"] / given["height"]
        found = f"images of {_range(sides[:, 1])}x{_range(sides[:, 0])} pixels, width by height"
        if "resize_mode" in given:
            return Preprocessing(**given), found
        cut = 1 - np.minimum(shapes / target, target / shapes)  # the part of each image that a crop loses
        usual, most = float(np.median(cut)), float(np.quantile(cut, 0.75))
        if most >= 0.01 and is_one_shape and not _differs(shape, target):
            given["resize_mode"], found = "stretch", f"{found}, of one shape, which is kept"
        elif most <= _MOST_CUT:
            given["resize_mode"] = "crop"
            found += f", of which it loses {usual:.0%}" if usual >= 0.01 else ""
        else:
            given["resize_mode"], found = "pad", f"{found}, of which a crop would lose {usual:.0%}"
        return Preprocessing(**given), found


def sampled(paths: Sequence[Path]) -> list[Path]:
    """Return a sample of the files, spread evenly over them."""
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).round().astype(np.int64))
    return [paths[int(index)] for index in chosen]


def survey(paths: Sequence[Path], limits: Limits | None = None) -> Survey:
    """Look at a sample of the files, spread evenly over them.

    Raises:
        AutoencodeError: no worker could be started.
    """
    seen = _looked_at(sampled(paths), limits or Limits())
    return Survey(
        tuple(one.extent for one in seen), tuple(one.values for one in seen if one.values is not None)
    )


def value_range_of(paths: Sequence[Path], limits: Limits | None = None) -> tuple[float, ...]:
    """Return the range of values that suits files of more than 8 bits; empty if there are none.

    Raises:
        AutoencodeError: no worker could be started.
    """
    # Photographs are not opened for it.
    return survey(paths, limits).value_range()[0] if any(map(may_be_wide, sampled(paths))) else ()


def remarks(
    paths: Sequence[Path], value_range: tuple[float, ...] = (), limits: Limits | None = None
) -> list[str]:
    """Return sentences on what a sample shows is not used of the files: further pages, values out of range.

    Raises:
        AutoencodeError: no worker could be started.
    """
    sample = [path for path in sampled(paths) if may_be_wide(path) or path.suffix.lower() in _WITH_FRAMES]
    if not sample:
        return []
    seen, found = _looked_at(sample, limits or Limits(), value_range), []
    among = f"of {len(sample):,} files looked at"
    if several := sum(one.frames > 1 for one in seen):
        found.append(f"{several:,} {among} have several pages or frames, of which the first is taken")
    if pairs := sum(one.has_two_channels for one in seen):
        found.append(f"{pairs:,} {among} have two channels, of which the second is taken for transparency")
    if clipped := [one.clipped for one in seen if one.clipped]:
        low, high = value_range
        share = max(float(np.mean(clipped)), 1e-4)  # a hot pixel is the least there is
        found.append(
            f"{len(clipped):,} {among} have values beyond {low:g}:{high:g}, {share:.2%} of theirs"
            f"{' or less' if share == 1e-4 else ''}, which are clipped"
        )
    return found


class _Seen(NamedTuple):
    """The findings in a file; `clipped` is the fraction of its values that are beyond a range."""

    extent: Extent
    values: Values | None
    frames: int
    has_two_channels: bool
    clipped: float


def _looked_at(sample: Sequence[Path], limits: Limits, value_range: tuple[float, ...] = ()) -> list[_Seen]:
    look = _Look(limits, value_range)
    seen = dict(workers.run(look, sample, seconds=limits.seconds_per_file, workers=1))
    # In the order of the files: which come first must not change what is chosen.
    found = [seen[index] for index in sorted(seen)]
    return [one for one in found if isinstance(one, _Seen)]


@dataclass(frozen=True)
class _Look:
    """Runs in a worker: returns what is found in a file; None if it cannot be used."""

    limits: Limits
    value_range: tuple[float, ...]

    def __call__(self, path: Path) -> _Seen | None:
        try:
            content = decoding.read_bytes(path, self.limits.max_bytes)
            with decoding.pillow_limited_to(self.limits.max_pixels):
                image = decoding.open_image(content)
                width, height = decoding.shown_size(image)
                small = 0 < image.width * image.height <= self.limits.max_pixels
                frames = getattr(image, "n_frames", 1) if path.suffix.lower() in _WITH_FRAMES else 1
                pair = image.format == "TIFF" and image.mode in ("LA", "La")
                values, clipped = None, 0.0
                if decoding.is_wide(image) and small:
                    pixels = np.asarray(image)
                    values, clipped = _values(pixels), _clipped(pixels, self.value_range)
        except ImageError:
            return None
        except Exception:  # Pillow raises almost anything at a damaged file; packing gives the reason
            return None
        if not (width and height):
            return None
        return _Seen(Extent(height, width), values, frames, pair, clipped)


def _clipped(pixels: NDArray[Any], value_range: tuple[float, ...]) -> float:
    if not value_range:
        return 0.0
    low, high = value_range
    return float(((pixels < low) | (pixels > high)).mean())


def _values(pixels: NDArray[Any]) -> Values | None:
    pixels = pixels[np.isfinite(pixels)]
    if not pixels.size:
        return None
    low, high = np.quantile(pixels, (0.001, 0.999), method="nearest")
    return Values(float(low), float(high), pixels.dtype.kind in "iu")


def _fits(low: float, high: float, usual: tuple[float, float]) -> bool:
    slack = 0.05 * (usual[1] - usual[0])  # what resampling and noise go beyond
    return usual[0] - slack <= low and high <= usual[1] + slack


def may_be_wide(path: Path) -> bool:
    """Whether a file can have more than 8 bits a value, without decoding it."""
    if path.suffix.lower() != ".png":
        return path.suffix.lower() in (".tif", ".tiff", ".pgm", ".pnm", ".pfm", ".jp2", ".j2k")
    return read_head(path, 25)[24:] == b"\x10"  # the bit depth in its header


def _differs(shape: float, other: float) -> bool:
    return max(shape / other, other / shape) > _SAME_SHAPE


def _multiple(side: float) -> int:
    # Up, so that small images keep all their pixels; a little down, so that 129 is not 144.
    return max(SIZE_MULTIPLE, math.ceil((side - 4) / SIZE_MULTIPLE) * SIZE_MULTIPLE)


def _range(sides: NDArray[np.float64]) -> str:
    low, high = int(sides.min()), int(sides.max())
    return f"{low}" if low == high else f"{low}-{high}"
