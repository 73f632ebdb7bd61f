"""The files under a folder, without hidden ones and our own results, and those of types that are not read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from autoencode.errors import ImageFolderError

# Names of files that are read as images; their content is checked when they are.
HEIF_EXTENSIONS = (".heic", ".heics", ".heif", ".heifs", ".hif")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".tga"),
    *(HEIF_EXTENSIONS if find_spec("pillow_heif") else ()),
)

# Names that mark our own results, whose images must not be listed.
_OURS = (
    {"pack.json", "shards"},
    {"run.json", "metrics.jsonl"},
    {"reconstructions.csv", "images"},
    {"layers.csv", "layers.png"},
    {"classifier.safetensors", "confusion.csv"},
    {"samples.json", "images"},
)
_MARKS = frozenset(name for marks in _OURS for name in marks)
# Reasons that are counted by type of file rather than printed one by one.
_NOT_READ, IS_MASK = " files are not read", "a mask, not an image"
_OF_A_TYPE = re.compile(rf"(.*){_NOT_READ}(?: without (autoencode\[\w+\]))?")

Skipped = list[tuple[Path, str]]


def files_under(root: str) -> Iterator[str]:
    """Yield the path of every file under a folder, in no particular order.

    A folder reached twice, through a link, is visited once, under its own name and not the link's.

    Raises:
        ImageFolderError: a folder is missing, is not a folder, or cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    # Links come last, sorted: the name under which a folder is listed must not depend on the file system.
    folders, links = [root], list[str]()
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(current)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            files, inner, linked = _scan(current)
        except FileNotFoundError as err:
            raise ImageFolderError(f"The folder {current} does not exist. Give a folder of images.") from err
        except NotADirectoryError as err:
            raise ImageFolderError(f"{current} is a file. Give a folder of images.") from err
        except OSError as err:
            raise ImageFolderError(f"Could not read the folder {current}: {err.strerror or err}.") from err
        yield from files
        folders += inner
        links = sorted(links + linked)


def _scan(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Return the files, the folders and the links to folders directly in `folder`."""
    files, folders, links = list[str](), list[str](), list[str]()
    marks = set[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name in _MARKS:
                marks.add(entry.name)
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                files.append(entry.path)
    if is_result(marks):
        return [], [], []
    return files, folders, links


def is_result(names: Collection[str]) -> bool:
    """Return whether a folder that holds these names is a result of ours, whose images are not listed."""
    return any(of.issubset(names) for of in _OURS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; reading it gives the reason
        return False


def by_type(skipped: Iterable[tuple[object, str]]) -> tuple[str, Skipped]:
    """Return a line that counts files of types that are not read, and the other files with their reasons.

    The line is "" without such files; "9 files: 5 .heic (install autoencode[heif]), 4 .mp4" is one.
    """
    counts: Counter[str] = Counter()
    others: Skipped = []
    for path, reason in skipped:
        if match := _OF_A_TYPE.fullmatch(reason):
            counts[match[1] + (f" (install {match[2]})" if match[2] else "")] += 1
        elif reason == IS_MASK:
            counts["masks"] += 1
        else:
            others.append((Path(str(path)), reason))
    if not counts:
        return "", others
    total = sum(counts.values())
    listed_types = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    return f"{total:,} file{'' if total == 1 else 's'}: {listed_types}", others


def not_read(name: str) -> str:
    """Return the reason why a file of this name is not read, which `by_type` counts."""
    suffix = Path(name).suffix.lower()
    extra = " without autoencode[heif]" if suffix in HEIF_EXTENSIONS else ""
    return f"{suffix or 'other'}{_NOT_READ}{extra}"
