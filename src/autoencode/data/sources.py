"""What can be given as images: folders, files, lists of them, tables, and images in memory.

Every command and function takes the same: `listed` turns it into files under one folder for a pack, and
`expanded` into paths. Files are recognised as images by their name; their content is checked when they are
read. No file is left out silently: what is not read is listed with the reason.

A table is a CSV or Parquet file, or a data frame, with a column `path` and, if wanted, `label`, `split` and
`mask`; paths are relative to the folder of the table. A text file has one path a line.
"""

from __future__ import annotations

import atexit
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from autoencode.data import decoding
from autoencode.data.folders import IS_MASK, Skipped, by_type, files_under, not_read
from autoencode.data.memory import is_path, write_images
from autoencode.data.tables import LISTS, TABLES, lines_of, rows_of, rows_of_frame
from autoencode.errors import ConfigError, ImageFolderError, any_of

if TYPE_CHECKING:
    from autoencode.configuration import Split

_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MASKS = frozenset(("ground_truth", "groundtruth", "masks", "mask"))
_COLUMNS = ("path", "label", "split", "mask")


class Paths(Sequence[Path]):
    """Paths that become objects on demand, in a fifth of the memory of a list of them.

    Attributes:
        skipped: the files beside them that are not read, with the reason.
    """

    def __init__(self, paths: Iterable[str | Path] = (), skipped: Iterable[tuple[Path, str]] = ()) -> None:
        self._names = [os.fspath(path) for path in paths]
        self.skipped = list(skipped)

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


@dataclass(frozen=True)
class Listing:
    """Images as files under one folder.

    Attributes:
        folder: the folder.
        names: of the images, relative to it, with "/"; bytes that are not UTF-8 as surrogates, as in
            `os.fsdecode`. Sorted.
        skipped: names of files that are not read, with the reason. Sorted.
        labels: the label of each image, or None; None for all of them means the first sub-folder.
        splits: the split of each image, or None for an image of no split; None for all of them means that
            the content decides.
        masks: the file with the mask of an image, by the name of the image, relative to the folder.
        origin: what was given, in words that recognise it.
        note: what was recognised in it, for people; "" for nothing.
    """

    folder: Path
    names: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    labels: list[str | None] | None = None
    splits: list[Split | None] | None = None
    masks: dict[str, str] = field(default_factory=dict)
    origin: str = ""
    note: str = ""

    @property
    def paths(self) -> Paths:
        """The paths of the images."""
        skipped = ((self.folder / name, reason) for name, reason in self.skipped)
        return Paths((self.folder / name for name in self.names), skipped)


def listed(
    given: Any,  # noqa: ANN401 - see the module
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    beside: Path | None = None,
) -> Listing:
    """Return the images that were given, as files under one folder.

    Args:
        given: a folder, a file, a table, a data frame, several folders and files; or images in memory, see
            `memory`, which are written to files.
        include: patterns such as "*.png" or "good/*"; only names that one of them matches are taken.
        exclude: patterns; names that one of them matches are not taken.
        beside: where images in memory are written, in a folder named after their content. By default they
            are gone at the end of the process.

    Raises:
        ImageFolderError: a folder or table is missing, cannot be read, or has no image.
        ConfigError: nothing of the kind can be read, or a table lacks its column `path`.
        MissingExtraError: a Parquet file needs pyarrow.
    """
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.is_file():
            return _kept(_with_splits(_of_folder(path)), include, exclude)
        if path.suffix.lower() in TABLES:
            return _kept(
                _of_table(rows_of(path), path.resolve().parent, str(path.resolve())), include, exclude
            )
        if path.suffix.lower() in LISTS:
            return _kept(_of_several(lines_of(path), str(path.resolve())), include, exclude)
        given = [path]
    if (rows := rows_of_frame(given)) is not None:
        return _kept(_of_table(rows, Path.cwd(), "a data frame"), include, exclude)
    given = list(given) if isinstance(given, Iterator) else given
    if not isinstance(given, dict) and (several := paths_given(given)) is not None:
        return _kept(_of_several(several, ""), include, exclude)
    return _kept(_written(given, beside), include, exclude)


def _written(given: Any, beside: Path | None) -> Listing:  # noqa: ANN401
    """Write images in memory to files, which all commands can read and show."""
    if beside is None:
        beside = Path(tempfile.mkdtemp(prefix="autoencode-"))
        atexit.register(shutil.rmtree, beside, ignore_errors=True)
    folder, labels = write_images(given, beside)
    names = [f"{number:06}.png" for number in range(len(labels))]
    return Listing(folder, names, labels=labels, origin=str(folder.resolve()), note="images given in memory")


def expanded(images: Any) -> Paths:  # noqa: ANN401 - see `listed`
    """Return the image files in the files, folders and tables given, each once, in the order given.

    Images in memory become files that are gone at the end of the process, named by their position.

    Raises:
        ImageFolderError: a folder cannot be read or has no image. Files are not checked.
        AutoencodeError: an error of `listed` about a table.
    """
    images = list(images) if isinstance(images, Iterator) else images
    given = paths_given(images)
    if given is None:
        return listed(images).paths
    found: dict[str, None] = {}
    skipped: Skipped = []
    for path in given:
        if path.is_dir() or path.suffix.lower() in (*TABLES, *LISTS):
            paths = listed(path).paths
            found.update(dict.fromkeys(paths._names))
            skipped += paths.skipped
        else:
            found[os.fspath(path)] = None
    return Paths(found, skipped)


def find_images(folder: Path) -> Paths:
    """Return the path of every image under `folder`; see `listed`."""
    return _of_folder(folder).paths


def _of_folder(folder: Path) -> Listing:
    """Return every image under a folder, and every other file with the reason why it is not one.

    Hidden files and folders, and folders of our own results, are left out. A folder reached twice, through
    a link, is listed once, under its own name and not the link's.
    """
    prefix = os.path.join(folder, "")  # noqa: PTH118 - Path objects triple the time for a large folder
    names, others = list[str](), list[str]()
    for path in files_under(os.fspath(folder)):
        # On Windows os.sep is a backslash, which is part of a name on other systems.
        name = path.removeprefix(prefix).replace(os.sep, "/")
        (names if name.lower().endswith(decoding.EXTENSIONS) else others).append(name)
    skipped = sorted((name, not_read(name)) for name in others)
    if not names:
        line, _ = by_type(skipped)
        passed = f"It has {line}. " if line else ""
        raise ImageFolderError(
            f"No images in {folder}/. {passed}Looked for {', '.join(decoding.EXTENSIONS)}; "
            "sub-folders are searched too."
        )
    return Listing(folder, sorted(names), skipped, origin=str(folder.resolve()))


def _with_splits(listing: Listing) -> Listing:
    """Return a listing whose first sub-folders are called train, val or test with these as splits.

    The label is then the next sub-folder, and masks are no images. A folder `train` beside others, such as
    `plane` and `ship`, is a label.
    """
    tops = {name.partition("/")[0].lower() for name in listing.names if "/" in name}
    are_splits = "train" in {_SPLITS.get(top) for top in tops} and len(tops) > 1
    if not are_splits or not tops <= _SPLITS.keys() | _MASKS or not all("/" in n for n in listing.names):
        return listing
    held_out = {_SPLITS.get(top) for top in tops}
    names: list[str] = []
    labels: list[str | None] = []
    splits: list[Split | None] = []
    skipped = list(listing.skipped)
    for name in listing.names:
        top, _, rest = name.partition("/")
        if top.lower() in _MASKS:
            skipped.append((name, IS_MASK))
            continue
        label, inner, _ = rest.partition("/")
        names.append(name)
        labels.append(label if inner else None)
        splits.append(_SPLITS[top.lower()])
    # Defects of a test folder, say, are no new images like those of the training.
    known = {label for label, split in zip(labels, splits, strict=True) if split == "train"}
    pairs = list(zip(labels, splits, strict=True))
    splits = [split if label in known else None for label, split in pairs]
    foreign = sum(split is None for split in splits)
    note = f"the folders {', '.join(sorted({name.partition('/')[0] for name in names}))} are the splits"
    note += f", without {foreign:,} images of labels that training lacks" if foreign else ""
    if "validation" not in held_out:
        note += "; validation is a part of the training images"
    order = sorted(skipped)
    return Listing(listing.folder, names, order, labels, splits, origin=listing.origin, note=note)


def _of_several(given: Sequence[Path], origin: str) -> Listing:
    """Return the images of several folders, and several files."""
    if not given:
        raise ImageFolderError("No image was given.")
    found: dict[Path, str | None] = {}
    skipped: Skipped = []
    parents = {path.parent for path in given if not path.is_dir()}
    for path in given:
        if path.is_dir():
            inside = _of_folder(path)
            for name in inside.names:
                top, inner, _ = name.partition("/")
                found[path / name] = top if inner else path.name
            skipped += inside.paths.skipped
        elif path.name.lower().endswith(decoding.EXTENSIONS) or path.is_file():
            found[path] = path.parent.name if len(parents) > 1 else None
        else:
            raise ImageFolderError(f"{path} does not exist. Give image files, and folders of them.")
    return _under_one_folder(found, skipped, origin)


def _under_one_folder(
    found: Mapping[Path, str | None],
    skipped: Skipped,
    origin: str,
    splits: Mapping[Path, Split | None] | None = None,
) -> Listing:
    labels = {Path(os.path.abspath(path)): label for path, label in found.items()}  # noqa: PTH100 - links stay
    root = Path(os.path.commonpath([path.parent for path in labels]))
    order = sorted(labels, key=lambda path: path.relative_to(root).as_posix())
    names = [path.relative_to(root).as_posix() for path in order]
    beside = [
        (os.path.relpath(path.absolute(), root).replace(os.sep, "/"), reason) for path, reason in skipped
    ]
    return Listing(
        root,
        names,
        sorted(one for one in beside if not one[0].startswith("..")),
        [labels[path] for path in order],
        None if splits is None else [splits[path] for path in order],
        origin=origin or f"{len(names):,} files under {root}",
    )


def _of_table(rows: Iterable[Mapping[str, Any]], beside: Path, origin: str) -> Listing:
    """Return the images of a table; paths are relative to the folder `beside` it."""
    found: dict[Path, str | None] = {}
    splits: dict[Path, Split | None] = {}
    masks: dict[Path, Path] = {}
    has_splits = False
    for number, row in enumerate(rows, 1):
        cells = {str(name).strip().lower(): cell for name, cell in row.items() if name is not None}
        text = {name: "" if _is_empty(cells.get(name)) else str(cells[name]) for name in _COLUMNS}
        if not text["path"]:
            columns = ", ".join(map(str, row)) or "none"
            raise ConfigError(
                f"Row {number} of {origin} has no path. Name the columns path and, if wanted, label, split "
                f"and mask; its columns: {columns}."
            )
        path = Path(os.path.abspath(beside / text["path"]))  # noqa: PTH100 - links stay
        found[path] = text["label"] or None
        if text["split"]:
            has_splits = True
            if text["split"].lower() not in _SPLITS:
                raise ConfigError(
                    f"Row {number} of {origin} has the split {text['split']!r}. Write {any_of(_SPLITS)}."
                )
        splits[path] = _SPLITS.get(text["split"].lower())
        if text["mask"]:
            masks[path] = beside / text["mask"]
    if not found:
        raise ImageFolderError(f"{origin} names no image.")
    listing = _under_one_folder(found, [], origin, splits if has_splits else None)
    of_image = {
        path.relative_to(listing.folder).as_posix(): os.path.relpath(mask, listing.folder)
        for path, mask in masks.items()
    }
    return replace(listing, masks=of_image, note="splits are those of the table" if has_splits else "")


def _is_empty(cell: object) -> bool:
    return cell is None or cell == "" or cell != cell


def _kept(listing: Listing, include: Sequence[str], exclude: Sequence[str]) -> Listing:
    """Return a listing of the names that one of the patterns includes and none excludes."""
    if not include and not exclude:
        return listing
    chosen = [
        index
        for index, name in enumerate(listing.names)
        if (not include or any(fnmatch.fnmatch(name, pattern) for pattern in include))
        and not any(fnmatch.fnmatch(name, pattern) for pattern in exclude)
    ]
    if not chosen:
        raise ImageFolderError(
            f"None of the {len(listing.names):,} images in {listing.folder} is left by "
            f"include={list(include)} and exclude={list(exclude)}. The first is {listing.names[0]}."
        )
    patterns = "".join([*(f" +{one}" for one in include), *(f" -{one}" for one in exclude)])
    return replace(
        listing,
        names=[listing.names[index] for index in chosen],
        labels=None if listing.labels is None else [listing.labels[index] for index in chosen],
        splits=None if listing.splits is None else [listing.splits[index] for index in chosen],
        origin=f"{listing.origin}{patterns}",
    )


def read_beside(images: Any, sheet: Path) -> Paths:  # noqa: ANN401
    """Return `expanded(images)` without the `sheet` that an earlier call left in one of the folders.

    A sheet that was given by name stays.
    """
    images = list(images) if isinstance(images, Iterator) else images
    given = paths_given(images)
    if given is None:
        return expanded(images)
    paths = expanded(given)
    return Paths((path for path in paths if path in given or not _is_same(path, sheet)), paths.skipped)


def paths_given(images: Any) -> list[Path] | None:  # noqa: ANN401
    """Return the paths that were given, one or several; None for images in memory."""
    if is_path(images):
        return [Path(images)]
    if not isinstance(images, list | tuple | set | dict | Paths) or not all(map(is_path, images)):
        return None
    return list(map(Path, images))


def _is_same(path: Path, other: Path) -> bool:
    # The name first, to avoid a stat call per file.
    return path.name == other.name and (path == other or (other.exists() and path.samefile(other)))
