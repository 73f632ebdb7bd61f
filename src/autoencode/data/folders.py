"""The files under a folder, without hidden ones and without our own results."""

from __future__ import annotations

import os
from collections.abc import Iterator

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
    if any(of <= marks for of in _OURS):
        return [], [], []
    return files, folders, links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; reading it gives the reason
        return False
