"""Images as files under one folder: their names, labels and splits, and the files that are not read.

No file is left out silently: what is not read is listed with the reason.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

from autoencode.data.folders import EXTENSIONS, IS_MASK, Skipped, by_type, files_under, not_read
from autoencode.errors import ImageFolderError

if TYPE_CHECKING:
    from autoencode.configuration import Split

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_GROUND_TRUTH = frozenset(("ground_truth", "groundtruth"))
_MASKS = _GROUND_TRUTH | {"masks", "mask"}


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


def of_folder(folder: Path) -> Listing:
    """Return every image under a folder, and every other file with the reason why it is not one.

    Folders of our own results are left out, and with a reason hidden images and folders, and sub-folders
    that cannot be read. A folder reached twice, through a link, is listed once, under its own name and not
    the link's.

    Raises:
        ImageFolderError: the folder is missing, cannot be read, or has no image.
    """
    prefix = os.path.join(folder, "")  # noqa: PTH118 - Path objects triple the time for a large folder

    def named(path: str) -> str:
        # On Windows os.sep is a backslash, which is part of a name on other systems.
        return path.removeprefix(prefix).replace(os.sep, "/")

    names, others, left_out = list[str](), list[str](), list[tuple[str, str]]()
    for path in files_under(os.fspath(folder), left_out):
        (names if path.lower().endswith(EXTENSIONS) else others).append(named(path))
    skipped = sorted(
        [*((name, not_read(name)) for name in others), *((named(path), reason) for path, reason in left_out)]
    )
    if not names:
        if (folder / "pack.json").is_file():
            raise ImageFolderError(f"{folder} is a pack. Give the folder of images that it was made of.")
        line, unread = by_type(skipped)
        passed = f"It has {line}. " if line else ""
        passed += f"{unread[0][0]}: {unread[0][1]}. " if unread else ""
        raise ImageFolderError(
            f"No images in {folder}/. {passed}Looked for {', '.join(EXTENSIONS)}; "
            "sub-folders are searched too."
        )
    return Listing(folder, sorted(names), skipped, origin=str(folder.resolve()))


def with_splits(listing: Listing) -> Listing:
    """Return a listing whose first sub-folders are called train, val or test with these as splits.

    The label is then the next sub-folder, and masks are no images. A folder `train` beside others, such as
    `plane` and `ship`, is a label; a folder `ground_truth` has masks beside any others.
    """
    tops = {name.partition("/")[0].lower() for name in listing.names if "/" in name}
    are_splits = "train" in {SPLITS.get(top) for top in tops} and len(tops) > 1
    if not are_splits or not tops <= SPLITS.keys() | _MASKS or not all("/" in n for n in listing.names):
        return _without_ground_truth(listing)
    held_out = {SPLITS.get(top) for top in tops}
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
        splits.append(SPLITS[top.lower()])
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


def _without_ground_truth(listing: Listing) -> Listing:
    names = [name for name in listing.names if name.partition("/")[0].lower() not in _GROUND_TRUTH]
    masks = sorted(set(listing.names) - set(names))
    if not names or not masks:  # a folder of masks alone was asked for
        return listing
    return replace(
        listing, names=names, skipped=sorted([*listing.skipped, *((one, IS_MASK) for one in masks)])
    )


def train_and_test_of(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders `train` and `test` (or `val`) of a data set; None for any other folder."""
    if not folder.is_dir():
        return None
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not {path.name.lower() for path in inner} <= SPLITS.keys() | _MASKS:
        return None
    of_split: dict[Split, Path] = {}
    for path in inner:
        if split := SPLITS.get(path.name.lower()):
            of_split.setdefault(split, path)
    held_out = of_split.get("test", of_split.get("validation"))
    return None if held_out is None or "train" not in of_split else (of_split["train"], held_out)


def under_one_folder(
    found: Mapping[Path, str | None],
    skipped: Skipped,
    origin: str,
    splits: Mapping[Path, Split | None] | None = None,
    beside: Path | None = None,
) -> Listing:
    """Return files of several folders as files under the one that holds them all.

    Args:
        found: the label of each image, or None.
        skipped: the files that are not read, with the reason.
        origin: what was given, in words that recognise it.
        splits: the split of each image; None if none were given.
        beside: a folder that the one that holds them all is to hold, too: it is then the same when other
            images are given.
    """
    labels = {Path(os.path.abspath(path)): label for path, label in found.items()}  # noqa: PTH100 - links stay
    folders = [path.parent for path in labels]
    root = Path(os.path.commonpath(folders if beside is None else [*folders, beside]))
    order = sorted(labels, key=lambda path: path.relative_to(root).as_posix())
    names = [path.relative_to(root).as_posix() for path in order]
    others = [
        (os.path.relpath(path.absolute(), root).replace(os.sep, "/"), reason) for path, reason in skipped
    ]
    return Listing(
        root,
        names,
        sorted(one for one in others if not one[0].startswith("..")),
        [labels[path] for path in order],
        None if splits is None else [splits[path] for path in order],
        origin=origin,
    )


def kept(listing: Listing, include: Sequence[str], exclude: Sequence[str]) -> Listing:
    """Return a listing of the names that one of the patterns includes and none excludes.

    Raises:
        ImageFolderError: no name is left.
    """
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
