"""Results of `restore`, and their table, which says what decided each so that a finished one is kept."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from autoencode.atomic import append_line, parse_json
from autoencode.untrusted import TEXT_BYTES, read_file

TABLE_NAME = "restored.jsonl"


@dataclass(frozen=True)
class Restoration:
    """How one image was restored.

    Attributes:
        path: the image file.
        file: name of the result in the folder.
        removed_rms: root mean square of what was removed, in [0, 1]. For an image whose damage is noise it is
            about the standard deviation of the noise.
        psnr_db: peak signal-to-noise ratio against the clean image in dB, infinite for equal images; None
            without a clean image.
        ssim: structural similarity to the clean image, at most 1; None without one, and for an image smaller
            than the window of SSIM.
        corrupted_psnr_db: the same ratio before restoring.
        has_more_frames: whether the file has more pages or frames; only the first was restored.
        was_16_bit_colour: whether the file has colours of 16 bits a channel; the result has 8.
    """

    path: Path
    file: str
    removed_rms: float
    psnr_db: float | None = None
    ssim: float | None = None
    corrupted_psnr_db: float | None = None
    has_more_frames: bool = False
    was_16_bit_colour: bool = False


def create_table(folder: Path) -> None:
    """Begin the table if there is none: a folder that a kill leaves behind is then known as one of ours."""
    if not (folder / TABLE_NAME).exists():
        append_line(folder / TABLE_NAME, "")


def read_results(folder: Path) -> dict[str, Restoration]:
    """Return the results that the table lists, by the key they were appended with."""
    found: dict[str, Restoration] = {}
    try:
        content = read_file(folder / TABLE_NAME, TEXT_BYTES)
    except FileNotFoundError:
        return found
    for line in content.decode(errors="replace").splitlines():
        try:
            value = parse_json(line)
            stored = value["restored"]
            numbers = {name: _number(stored[name]) for name in ("psnr_db", "ssim", "corrupted_psnr_db")}
            removed_rms = float(stored["removed_rms"])
            lost = {name: stored[name] is True for name in ("has_more_frames", "was_16_bit_colour")}
            result = Restoration(Path(stored["path"]), str(stored["file"]), removed_rms, **numbers, **lost)
            found[str(value["key"])] = result
        except (ValueError, KeyError, TypeError, OverflowError):  # cut short by a crash
            continue
    return found


def append_result(folder: Path, key: str, result: Restoration) -> None:
    """Add a line to the table: a result, and all that decided it as `key`."""
    values = {
        # JSON has no infinity, which is the PSNR of equal images.
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(result).items()
    }
    line = {"key": key, "restored": {**values, "path": str(result.path)}}
    append_line(folder / TABLE_NAME, json.dumps(line))


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)
