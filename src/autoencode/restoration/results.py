"""Results of `restore`: their names, the log that says what decided each, and a table of them all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath

from autoencode.atomic import append_line, parse_json, write_csv
from autoencode.data.file_names import FileNames
from autoencode.untrusted import TEXT_BYTES, read_file

LOG_NAME = "restored.jsonl"
TABLE_NAME = "restored.csv"
COMPARISONS_NAME = "comparisons"


@dataclass(frozen=True)
class Restoration:
    """How one image was restored.

    Attributes:
        path: the image file.
        file: name of the result in the folder, with its sub-folders and "/" between.
        removed_rms: root mean square of what was removed, in [0, 1]. For an image whose damage is noise it is
            about the standard deviation of the noise.
        psnr_db: peak signal-to-noise ratio against the clean image in dB, infinite for equal images; None
            without a clean image.
        ssim: structural similarity to the clean image, at most 1; None without one, and for an image smaller
            than the window of SSIM.
        corrupted_psnr_db: the same ratio before restoring.
        has_more_frames: whether the file has more pages or frames; only the first was restored.
        was_16_bit_colour: whether the file has colours of 16 bits a channel; the result has 8.
        comparison: name of the picture before and after in the folder; None for none.
    """

    path: Path
    file: str
    removed_rms: float
    psnr_db: float | None = None
    ssim: float | None = None
    corrupted_psnr_db: float | None = None
    has_more_frames: bool = False
    was_16_bit_colour: bool = False
    comparison: str | None = None


class ResultNames:
    """Names of results: those of the images, with the sub-folders that these have in a folder given.

    Args:
        paths: the images.
        folders: those given. If there are several, their names are sub-folders, too.
        taken: names that results have already.
    """

    def __init__(self, paths: Iterable[Path], folders: Sequence[Path], taken: Iterable[str]) -> None:
        self._parents = {path: _inner_folder(path, folders) for path in paths}
        of_images = ((parent / path.name).as_posix() for path, parent in self._parents.items())
        self._names = FileNames(taken, reserved=of_images)

    @property
    def folders(self) -> set[PurePosixPath]:
        """The sub-folders, relative to the folder of the results."""
        return set(self._parents.values())

    def take(self, path: Path, name: str) -> str:
        """Return a free name of the result of an image, which is `name` if it can be.

        An image that cannot be written in its format gets the name of no other image, so same.gif becomes
        same-2.png beside same.png.
        """
        wanted = (self._parents[path] / name).as_posix()
        return self._names.own(wanted) if name == path.name else self._names.free(wanted)

    def take_comparison(self, name: str) -> str:
        """Return a free name of the picture before and after of the result called `name`."""
        ending = "" if name.lower().endswith(".png") else ".png"
        return self._names.free(f"{COMPARISONS_NAME}/{name}{ending}")


def _inner_folder(path: Path, folders: Sequence[Path]) -> PurePosixPath:
    for folder in folders:
        if path.is_relative_to(folder):
            inner = path.relative_to(folder).parent
            if ".." not in inner.parts:  # which is relative to "." as well
                several = folder.resolve().name if len(folders) > 1 else ""
                return PurePosixPath(several, inner.as_posix())
    return PurePosixPath()


def create_log(folder: Path) -> None:
    """Begin the log if there is none: a folder that a kill leaves behind is then known as one of ours."""
    if not (folder / LOG_NAME).exists():
        append_line(folder / LOG_NAME, json.dumps({"about": "images restored by autoencode, one a line"}))


def write_table(folder: Path, results: Iterable[Restoration], skipped: Iterable[tuple[Path, str]]) -> None:
    """Write a row for each image, and last for each that was skipped, with the reason."""
    names = [field.name for field in fields(Restoration)][2:]
    rows = [[str(one.path), one.file, *(getattr(one, name) for name in names), ""] for one in results]
    rows += [[str(path), "", *("" for _ in names), reason] for path, reason in skipped]
    header = ["original", "result", *names, "skipped"]
    write_csv(folder / TABLE_NAME, [header, *rows])


def read_results(folder: Path) -> dict[str, Restoration]:
    """Return the results that the log lists and the folder still has, by the key they were appended with.

    Of results that were written under one name, the file is the last.
    """
    found: dict[str, Restoration] = {}
    keys: dict[str, str] = {}  # of the last result of each name
    try:
        content = read_file(folder / LOG_NAME, TEXT_BYTES)
    except FileNotFoundError:
        return found
    for line in content.decode(errors="replace").splitlines():
        try:
            value = parse_json(line)
            stored = value["restored"]
            numbers = {name: _number(stored[name]) for name in ("psnr_db", "ssim", "corrupted_psnr_db")}
            removed_rms = float(stored["removed_rms"])
            result = Restoration(
                Path(stored["path"]),
                str(stored["file"]),
                removed_rms,
                **numbers,
                has_more_frames=stored["has_more_frames"] is True,
                was_16_bit_colour=stored["was_16_bit_colour"] is True,
                comparison=_name_in(folder, stored.get("comparison")),
            )
            if _name_in(folder, result.file):
                key = json.dumps(value["key"])
                found.pop(keys.get(result.file, key), None)
                found[key], keys[result.file] = result, key
        except (ValueError, KeyError, TypeError, OverflowError):  # cut short by a crash
            continue
    return found


def append_result(folder: Path, key: str, result: Restoration) -> None:
    """Add a line to the log: a result, and all that decided it as `key`, which is JSON."""
    values = {
        # JSON has no infinity, which is the PSNR of equal images.
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(result).items()
    }
    line = {"key": parse_json(key), "restored": {**values, "path": str(result.path)}}
    append_line(folder / LOG_NAME, json.dumps(line))


def _name_in(folder: Path, name: str | None) -> str | None:
    """Return the name if it is that of a file in the folder; the log may have been forged."""
    if name is None:
        return None
    inner = PurePosixPath(name)
    is_inside = not inner.is_absolute() and ".." not in inner.parts
    return name if is_inside and (folder / inner).is_file() else None


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)
