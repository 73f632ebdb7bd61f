"""The files under a folder, without hidden ones and our own results, and those of types that are not read."""

from __future__ import annotations

import os
import re
import warnings
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
# Restored images are images to go on with: they are listed where their folder is given, but not in a folder
# around it, whose images they were made of.
_RESTORED, _COMPARISONS = "restored.jsonl", "comparisons"
_MARKS = frozenset((_RESTORED, *(name for marks in _OURS for name in marks)))
# Reasons that are counted by type of file rather than printed one by one.
_NOT_READ, IS_MASK = " files are not read", "a mask, not an image"
_HIDDEN = "hidden, as its name begins with a dot"
_HIDDEN_FOLDER = "a hidden folder"
_NOT_FOLLOWED = "a link to a folder that holds the one given, not followed"
_NO_FILES = {
    _HIDDEN_FOLDER: "hidden folder{s}",
    _NOT_FOLLOWED: "link{s} to a folder that holds the one given, not followed",
}
_OF_A_TYPE = re.compile(rf"(.*){_NOT_READ}(?: without (autoencode\[\w+\]))?")

Skipped = list[tuple[Path, str]]


class LinksWarning(UserWarning):
    """Links lead out of a folder of images; the command line prints it in one line."""


def files_under(root: str, left_out: list[tuple[str, str]] | None = None) -> Iterator[str]:
    """Yield the path of every file under a folder, in no particular order.

    A folder reached twice, through a link, is visited once, under its own name and not the link's. Links to
    folders elsewhere are followed, with a warning; a link to a folder that holds `root` is not.

    Args:
        root: the folder.
        left_out: takes (path, reason) of the hidden images and folders, of the sub-folders that cannot be
            read, and of the links that are not followed. It is complete after the last file.

    Raises:
        ImageFolderError: the folder is missing, is not a folder, or cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    left_out = [] if left_out is None else left_out
    leading_out = list[str]()
    # Links come last, sorted: the name under which a folder is listed must not depend on the file system.
    folders, links = [root], list[str]()
    while folders or links:
        is_link = not folders
        current = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(current)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            files, inner, linked, hidden = _scan(current, is_given=current == root)
        except OSError as err:
            if current == root:
                raise _unreadable(root, err) from err
            # One folder of another user must not cost the images of all others.
            left_out.append((current, f"this folder cannot be read: {err.strerror or err}"))
            continue
        if is_link and not _is_within(current, root):
            if _is_within(root, current):  # such as a link to /, which would list the whole machine
                left_out.append((current, _NOT_FOLLOWED))
                continue
            leading_out.append(current)
        left_out += hidden
        yield from files
        folders += inner
        links = sorted(links + linked)
    if leading_out:
        warnings.warn(_followed(leading_out, root), LinksWarning, stacklevel=2)


def _unreadable(folder: str, err: OSError) -> ImageFolderError:
    if isinstance(err, FileNotFoundError):
        return ImageFolderError(f"The folder {folder} does not exist. Give a folder of images.")
    if isinstance(err, NotADirectoryError):
        return ImageFolderError(f"{folder} is a file. Give a folder of images.")
    return ImageFolderError(f"Could not read the folder {folder}: {err.strerror or err}.")


def _is_within(path: str, folder: str) -> bool:
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return inner == outer or inner.startswith(os.path.join(outer, ""))  # noqa: PTH118 - "/" stays one


def _followed(links: list[str], root: str) -> str:
    first = f"{os.path.relpath(links[0], root)} -> {os.path.realpath(links[0])}"
    if len(links) == 1:
        return f"a link leads out of {root} and is followed: {first}"
    return f"{len(links):,} links lead out of {root} and are followed, the first {first}"


def _scan(folder: str, *, is_given: bool) -> tuple[list[str], list[str], list[str], list[tuple[str, str]]]:
    """Return the files, folders and links to folders directly in `folder`, and (path, reason) of hidden ones.

    Hidden files that are no images by their name, such as .DS_Store, are in none of them.
    """
    files, folders, links = list[str](), list[str](), list[str]()
    hidden = list[tuple[str, str]]()
    marks = set[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                if _is_folder(entry):
                    hidden.append((entry.path, _HIDDEN_FOLDER))
                elif entry.name.lower().endswith(EXTENSIONS):
                    hidden.append((entry.path, _HIDDEN))
                continue
            if entry.name in _MARKS:
                marks.add(entry.name)
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                files.append(entry.path)
    if is_result(marks, is_given=is_given):
        return [], [], [], []
    if _RESTORED in marks:
        folders = [path for path in folders if os.path.basename(path) != _COMPARISONS]  # noqa: PTH119
    return files, folders, links, hidden


def is_result(names: Collection[str], *, is_given: bool = False) -> bool:
    """Return whether a folder that holds these names is a result of ours, whose images are not listed.

    Args:
        names: those in the folder.
        is_given: whether it was given itself and not found in another: restored images are then listed.
    """
    return any(of.issubset(names) for of in _OURS) or (_RESTORED in names and not is_given)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; reading it gives the reason
        return False


def by_type(skipped: Iterable[tuple[object, str]]) -> tuple[str, Skipped]:
    """Return a line that counts what was never to be read, by its type, and the other files with reasons.

    Hidden images, hidden folders and links that are not followed are types, too. The line is "" without any;
    "9 files: 5 .heic (install autoencode[heif]), 4 .mp4; 1 hidden folder" is one.
    """
    counts: Counter[str] = Counter()
    no_files: Counter[str] = Counter()
    others: Skipped = []
    for path, reason in skipped:
        if match := _OF_A_TYPE.fullmatch(reason):
            counts[match[1] + (f" (install {match[2]})" if match[2] else "")] += 1
        elif reason == IS_MASK:
            counts["masks"] += 1
        elif reason == _HIDDEN:
            counts["hidden"] += 1
        elif reason in _NO_FILES:
            no_files[reason] += 1
        else:
            others.append((Path(str(path)), reason))
    lines = [f"{count:,} {_NO_FILES[one].format(s='s'[: count > 1])}" for one, count in no_files.items()]
    if counts:
        total = sum(counts.values())
        listed_types = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
        lines.insert(0, f"{total:,} file{'' if total == 1 else 's'}: {listed_types}")
    return "; ".join(lines), others


def not_read(name: str) -> str:
    """Return the reason why a file of this name is not read, which `by_type` counts."""
    suffix = Path(name).suffix.lower()
    extra = " without autoencode[heif]" if suffix in HEIF_EXTENSIONS else ""
    return f"{suffix or 'other'}{_NOT_READ}{extra}"
