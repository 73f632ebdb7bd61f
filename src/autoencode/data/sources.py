"""The image files in a folder, or in several files and folders.

Files are recognised as images by their name; their content is checked when they are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from autoencode.data import decoding
from autoencode.errors import ImageFolderError

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


class Paths(Sequence[Path]):
    """Paths that become objects on demand, in a fifth of the memory of a list of them."""

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self._names = [os.fspath(path) for path in paths]

    def take(self, chosen: Iterable[int]) -> Paths:
        """Return the paths at these indices, in that order."""
        return Paths(map(self._names.__getitem__, chosen))

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> Paths: ...

    def __getitem__(self, index: int | slice) -> Path | Paths:
        return Paths(self._names[index]) if isinstance(index, slice) else Path(self._names[index])


def find_images(folder: Path) -> Paths:
    """Return the path of every image under `folder`; see `image_names`."""
    return Paths(folder / name for name in image_names(folder))


def image_names(folder: Path) -> list[str]:
    """Return every file under `folder` whose name says it is an image, sorted.

    Hidden files and folders, and folders of our own results, are left out. A folder reached twice, through
    a link, is listed once, under its own name and not the link's.

    Returns:
        Paths relative to `folder`, with "/"; bytes that are not UTF-8 as surrogates, as in `os.fsdecode`.

    Raises:
        ImageFolderError: `folder` is missing, is not a folder, cannot be read, or has no image.
    """
    prefix = os.path.join(folder, "")  # noqa: PTH118 - Path objects triple the time for a large folder
    # On Windows os.sep is a backslash, which is part of a name on other systems.
    found = sorted(path.removeprefix(prefix).replace(os.sep, "/") for path in _walk(os.fspath(folder)))
    if not found:
        looked_for = ", ".join(decoding.EXTENSIONS)
        raise ImageFolderError(
            f"No images in {folder}/. Looked for {looked_for}; sub-folders are searched too."
        )
    return found


def _walk(root: str) -> Iterator[str]:
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


def expanded(images: str | Path | Iterable[str | Path]) -> Paths:
    """Return the image files in the files and folders given, each once, in the order given.

    Raises:
        ImageFolderError: a folder cannot be read or has no image. Files are not checked.
    """
    found: dict[str, None] = {}
    for path in map(Path, [images] if isinstance(images, str | Path) else images):
        found.update(dict.fromkeys(find_images(path)._names if path.is_dir() else [os.fspath(path)]))
    return Paths(found)


def read_beside(images: str | Path | Iterable[str | Path], sheet: Path) -> Paths:
    """Return `expanded(images)` without the `sheet` that an earlier call left in one of the folders.

    A sheet that was given by name stays.
    """
    given = [Path(path) for path in ([images] if isinstance(images, str | Path) else images)]
    return Paths(path for path in expanded(given) if path in given or not _is_same(path, sheet))


def _is_same(path: Path, other: Path) -> bool:
    # The name first, to avoid a stat call per file.
    return path.name == other.name and (path == other or (other.exists() and path.samefile(other)))


def _scan(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Return the images, the folders and the links to folders directly in `folder`."""
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
            elif entry.name.lower().endswith(decoding.EXTENSIONS):
                files.append(entry.path)
    if any(of <= marks for of in _OURS):
        return [], [], []
    return files, folders, links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; reading it gives the reason
        return False
