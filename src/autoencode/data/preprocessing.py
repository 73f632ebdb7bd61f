"""What is asked of images: one size for all, how each comes to it, and what a file may cost."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from autoencode.errors import ConfigError

ResizeMode = Literal["crop", "pad", "stretch"]
Size = int | str | tuple[int, int]
_MULTIPLE = 16
_BYTES_PER_LIMIT = (
    100_000_000  # 200 million pixels with alpha, a PNG of 243 MB, took 3 s; other machines are slower
)
_MOST = 16_384  # pixels a side: a forged size must not ask for terabytes


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any size becomes pixels of one size.

    Attributes:
        height: rows of the result in pixels, a positive multiple of 16.
        width: columns of the result in pixels, a positive multiple of 16.
        resize_mode: "crop" keeps the centre of the right shape, "pad" keeps the whole image with
            `background` around it, "stretch" changes the shape.
        background: red, green, blue in 0..255, seen through transparency and beside padded images.

    Raises:
        ConfigError: a value is out of range.
    """

    height: int = 128
    width: int = 128
    resize_mode: ResizeMode = "crop"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            size = getattr(self, name)
            if not _is_int(size) or size < _MULTIPLE or size % _MULTIPLE:
                nearest = _either(_nearest_sizes(size)) if _is_int(size) else "128"
                raise ConfigError(
                    f"The {name} {size!r} is not a positive multiple of {_MULTIPLE}. Nearest: {nearest}."
                )
            if size > _MOST:
                raise ConfigError(f"The {name} {size} is above {_MOST}, the largest that is taken.")
        if self.resize_mode not in get_args(ResizeMode):
            raise ConfigError(
                f"Unknown resize_mode {self.resize_mode!r}. Choose one of: {', '.join(get_args(ResizeMode))}."
            )
        colour = self.background
        if not (
            isinstance(colour, tuple)
            and len(colour) == 3
            and all(_is_int(c) and 0 <= c <= 255 for c in colour)
        ):
            raise ConfigError(f"The background {colour!r} is not three whole numbers from 0 to 255.")

    def __str__(self) -> str:
        """Return it in words, for people."""
        colour = "#" + bytes(self.background).hex()
        return f"{self.height}x{self.width} pixels (resize mode {self.resize_mode}, background {colour})"

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes, of plain JSON values."""
        return {**asdict(self), "background": list(self.background)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Preprocessing:
        """Return the settings saved by `to_json`.

        Raises:
            ConfigError: it is something else.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) != names or not isinstance(value["background"], list):
            raise ConfigError(
                f"Not saved preprocessing settings (needs {', '.join(sorted(names))}): {value!r}."
            )
        return cls(**{**value, "background": tuple(value["background"])})


@dataclass(frozen=True)
class Limits:
    """What a single file may cost before it is skipped.

    Attributes:
        max_pixels: width times height of the image as stored.
        max_bytes: size of the file.
        seconds_per_file: longest processor time that reading, and then decoding, may take when packing or in
            the page, and as much again for each 100 MB of the file; by the clock six times as long.

    Raises:
        ConfigError: a limit is not positive.
    """

    max_pixels: int = 200_000_000
    max_bytes: int = 256 * 1024**2
    seconds_per_file: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(
                    f"The limit {field.name} must be above 0, not {getattr(self, field.name)!r}."
                )

    def seconds_for(self, size: int) -> float:
        """Return the seconds that a file of `size` bytes may take to decode."""
        return self.seconds_per_file * (1 + size / _BYTES_PER_LIMIT)


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels from "128" or "96x160".

    Raises:
        ConfigError: it is neither, or a side is no positive multiple of 16.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:[xX×]\s*([0-9]{1,6})\s*)?", text)
    if match is None:
        raise ConfigError(f"The size {text!r} is not understood. Write 128, or HEIGHTxWIDTH such as 96x160.")
    height = int(match[1])
    width = int(match[2] or height)
    if all(side > 0 and side % _MULTIPLE == 0 for side in (height, width)):
        return height, width
    nearest: list[object] = [*_nearest_sizes(height)]
    if match[2] is not None:
        nearest = [f"{h}x{w}" for h, w in zip(nearest, _nearest_sizes(width), strict=True)]
    raise ConfigError(
        f"The size {text.strip()} is not a positive multiple of {_MULTIPLE}. Nearest: {_either(nearest)}."
    )


def sized(size: Size | None, preprocessing: Preprocessing | None) -> Preprocessing | None:
    """Return the preprocessing that one of two ways of asking for it asks for, or None if neither does.

    Args:
        size: 128, "128", "96x160" or (96, 160): a side, or height and width, in pixels.
        preprocessing: everything at once.

    Raises:
        ConfigError: both were given, or a size that cannot be used.
    """
    if size is None:
        return preprocessing
    if preprocessing is not None:
        raise ConfigError(f"Give either size={size!r} or preprocessing, not both.")
    if isinstance(size, str):
        return Preprocessing(*parse_size(size))
    if isinstance(size, tuple | list):
        if len(size) != 2:
            raise ConfigError(f"The size {size!r} is not understood. Give a side, or (height, width).")
        return Preprocessing(*size)
    return Preprocessing(size, size)


def region(
    extent: tuple[float, float], preprocessing: Preprocessing
) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """Return the (width, height) to resize to, and the box (left, top, right, bottom) to resize from.

    Args:
        extent: (width, height) of the upright image in pixels.
        preprocessing: what is asked for. With "pad" the result can be smaller than that, in one direction.
    """
    width, height = extent
    target = (preprocessing.width, preprocessing.height)
    if preprocessing.resize_mode == "crop":
        scale = min(width / target[0], height / target[1])
        left, top = (max(0.0, (side - scale * want) / 2) for side, want in zip(extent, target, strict=True))
        return target, (left, top, width - left, height - top)
    if preprocessing.resize_mode == "pad":
        scale = max(width / target[0], height / target[1])
        target = (max(1, round(width / scale)), max(1, round(height / scale)))
    return target, (0.0, 0.0, width, height)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _nearest_sizes(size: int) -> tuple[int, int]:
    """Return the closest valid sizes, not above and not below `size` where there is one."""
    below = max(_MULTIPLE, size // _MULTIPLE * _MULTIPLE)
    return below, max(_MULTIPLE, -(-size // _MULTIPLE) * _MULTIPLE)


def _either(choices: Iterable[object]) -> str:
    return " or ".join(dict.fromkeys(map(str, choices)))
