"""Read whatever can be given as images: folders, files, lists of them, tables, and images in memory.

Every command and function takes the same: `listed` turns it into files under one folder for a pack, and
`expanded` into paths. Files are recognised as images by their name; their content is checked when they are
read. No file is left out silently: what is not read is listed with the reason.

A table is a CSV or Parquet file, or a data frame, with a column `path` and, if wanted, `label`, `split` and
`mask`; paths are relative to the folder of the table. A text file has one path a line.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.PngImagePlugin import PngInfo

from autoencode.atomic import TEMPORARY_SUFFIX, make_folder
from autoencode.data import decoding
from autoencode.data.folders import EXTENSIONS
from autoencode.data.listing import (
    SPLITS,
    Listing,
    Paths,
    kept,
    of_folder,
    train_and_test_of,
    under_one_folder,
    with_splits,
)
from autoencode.data.memory import given_images, is_path
from autoencode.data.preprocessing import Limits, Preprocessing, read_image
from autoencode.data.tables import LISTS, TABLES, Row, checked_rows, lines_of, rows_in, rows_of_frame
from autoencode.errors import ConfigError, ImageError, ImageFolderError, OutputError, any_of
from autoencode.storage import is_url

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from autoencode.configuration import Split
    from autoencode.data.folders import Skipped

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_BESIDE = "autoencode-"  # begins the name of a temporary folder of images in memory
_MOST_NAMED = 8  # paths that name a source of several; more are named by their digest


def listed(
    given: Any,  # noqa: ANN401 - see the module
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    beside: Path | None = None,
) -> Listing:
    """Return the images that were given, as files under one folder.

    Args:
        given: a folder, a file, a table, a data frame, several folders and files; images in memory, see
            `memory`, which are written to files; or an earlier listing.
        include: patterns such as "*.png" or "good/*"; only names that one of them matches are taken.
        exclude: patterns; names that one of them matches are not taken.
        beside: where images in memory are written, in a folder named after their content. By default they
            are gone at the end of the process.

    Raises:
        ImageFolderError: a folder or table is missing, cannot be read, or has no image.
        ConfigError: nothing of the kind can be read, or a table lacks its column `path`.
        MissingExtraError: a Parquet file needs pyarrow.
    """
    return kept(_listed(given, beside), include, exclude)


def _listed(given: Any, beside: Path | None) -> Listing:  # noqa: ANN401
    if isinstance(given, Listing):
        return given
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.is_file():
            return with_splits(of_folder(path))
        if path.suffix.lower() in TABLES:
            return _of_table(rows_in(path), str(path.resolve()), beside=path.resolve().parent)
        if path.suffix.lower() in LISTS:
            return _of_several(lines_of(path), str(path.resolve()))
        given = [path]
    if (rows := rows_of_frame(given)) is not None:
        return _of_table(checked_rows(rows, Path.cwd(), "a data frame"), "a data frame")
    given = list(given) if isinstance(given, Iterator) else given
    if not isinstance(given, dict) and (several := paths_given(given)) is not None:
        return _of_several(several)
    return _written(given, beside)


def _written(given: Any, beside: Path | None) -> Listing:  # noqa: ANN401
    """Write images in memory to files, which all commands can read and show."""
    if beside is None:
        beside = Path(tempfile.mkdtemp(prefix=_BESIDE))
        atexit.register(shutil.rmtree, beside, ignore_errors=True)
    folder, labels = _write_images(given, beside)
    names = [f"{number:06}.png" for number in range(len(labels))]
    return Listing(folder, names, labels=labels, origin=str(folder.resolve()), note="images given in memory")


def name_of(given: Any) -> str:  # noqa: ANN401
    """Return what results can be called that are made of this: the name of its folder or file.

    Args:
        given: a path or URL of images, a pack, a table, a model; "images" is the name of what has none.
    """
    if not isinstance(given, str | Path):
        return "images"
    name = str(given).rstrip("/").rpartition("/")[2] if is_url(given) else Path(given).resolve().name
    for ending in (".pack", ".safetensors", *TABLES, *LISTS):
        name = name.removesuffix(ending)
    return name or "images"


def was_in_memory(path: Path) -> bool:
    """Whether a path is one that images in memory are given here, in this process or another."""
    top = Path(tempfile.gettempdir())
    return path.is_relative_to(top) and path.relative_to(top).as_posix().startswith(_BESIDE)


def expanded(images: Any) -> Paths:  # noqa: ANN401 - see `listed`
    """Return the image files in the files, folders and tables given, each once, in the order given.

    Images in memory become files that are gone at the end of the process, named by their position.

    Raises:
        ImageFolderError: a folder cannot be read or has no image. Files are not checked.
        AutoencodeError: an error of `listed` about a table.
    """
    if isinstance(images, Listing):
        return images.paths
    images = list(images) if isinstance(images, Iterator) else images
    if (rows := rows_of_frame(images)) is not None:
        return Paths(dict.fromkeys(row.path for row in checked_rows(rows, Path.cwd(), "a data frame")))
    given = paths_given(images)
    if given is None:
        return listed(images).paths
    skipped: Skipped = []
    return Paths(dict.fromkeys(os.fspath(one) for path in given for one in _files_of(path, skipped)), skipped)


def _files_of(path: Path, skipped: Skipped, *, of_list: bool = False) -> Iterable[Path]:
    """Return the files of a folder, a table or a list in their order; or the path itself.

    A table or list that is named in a list is one of its files: it could name itself.
    """
    if path.is_dir():
        paths = with_splits(of_folder(path)).paths
        skipped += paths.skipped
        return paths
    if path.suffix.lower() in TABLES and not of_list:
        return (row.path for row in rows_in(path))
    if path.suffix.lower() in LISTS and not of_list:
        return (one for line in lines_of(path) for one in _files_of(line, skipped, of_list=True))
    return [path]


def is_list(path: Path) -> bool:
    """Whether a path is a table or a list of images, by its name."""
    return path.suffix.lower() in (*TABLES, *LISTS) and not path.is_dir()


def train_and_test(given: Path) -> tuple[Path | list[Path], list[Path]] | None:
    """Return the images to learn from, and those to judge, of a data set that has both; None for any other.

    Args:
        given: a folder with `train` and `test` (or `val`), or a table whose column `split` has them.

    Raises:
        AutoencodeError: an error of `listed` about a table.
    """
    if given.is_dir():
        folders = train_and_test_of(given)
        return folders and (folders[0], [folders[1]])
    if given.suffix.lower() not in TABLES:
        return None
    of_split: dict[Split | None, list[Path]] = {}
    for row in rows_in(given):
        of_split.setdefault(SPLITS.get(row.split), []).append(row.path)
    held_out = of_split.get("test", of_split.get("validation"))
    return None if held_out is None or "train" not in of_split else (of_split["train"], held_out)


def find_images(folder: Path) -> Paths:
    """Return the path of every image under `folder`; see `listed`."""
    return of_folder(folder).paths


def _of_several(given: Sequence[Path], origin: str = "") -> Listing:
    """Return the images of several folders, and several files, by default known by their paths."""
    if not given:
        raise ImageFolderError("No image was given.")
    found: dict[Path, str | None] = {}
    skipped: Skipped = []
    parents = {path.parent for path in given if not path.is_dir()}
    for path in given:
        if path.is_dir():
            inside = with_splits(of_folder(path))
            tops = [name.partition("/")[0] if "/" in name else path.name for name in inside.names]
            for name, label in zip(inside.names, inside.labels or tops, strict=True):
                found[path / name] = label
            skipped += inside.paths.skipped
        elif path.name.lower().endswith(EXTENSIONS) or path.is_file():
            found[path] = path.parent.name if len(parents) > 1 else None
        else:
            raise ImageFolderError(f"{path} does not exist. Give image files, and folders of them.")
    return under_one_folder(found, skipped, origin or _names(given))


def _names(given: Sequence[Path]) -> str:
    names = [str(path.resolve()) for path in given]
    if len(names) <= _MOST_NAMED:
        return shlex.join(names)
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{len(names):,} files ({digest[:8]})"


def _of_table(rows: Iterable[Row], origin: str, beside: Path | None = None) -> Listing:
    """Return the images of a table, under one folder with its own folder `beside` them."""
    found: dict[Path, str | None] = {}
    splits: dict[Path, Split | None] = {}
    masks: dict[Path, Path] = {}
    for row in rows:
        found[row.path] = row.label or None
        if row.split not in ("", *SPLITS):
            raise ConfigError(
                f"Row {row.number} of {origin} has the split {row.split!r}. Write {any_of(SPLITS)}."
            )
        splits[row.path] = SPLITS.get(row.split)
        if row.mask:
            masks[row.path] = row.mask
    if not found:
        raise ImageFolderError(f"{origin} names no image.")
    has_splits = any(splits.values())
    listing = under_one_folder(found, [], origin, splits if has_splits else None, beside)
    of_image = {
        path.relative_to(listing.folder).as_posix(): os.path.relpath(mask, listing.folder)
        for path, mask in masks.items()
    }
    return replace(listing, masks=of_image, note="splits are those of the table" if has_splits else "")


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
    if isinstance(images, dict) and any(one is not None for one in images.values()):
        return None  # keys alone are paths without repetition
    if not isinstance(images, list | tuple | set | dict | Paths) or not all(map(is_path, images)):
        return None
    return list(map(Path, images))


def _is_same(path: Path, other: Path) -> bool:
    # The name first, to avoid a stat call per file.
    return path.name == other.name and (path == other or (other.exists() and path.samefile(other)))


def read_batches(
    given: Any,  # noqa: ANN401 - see the module
    size: int,
    preprocessing: Preprocessing,
    limits: Limits | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield images as pixels (B, H, W, 3) in 0..255, sRGB, of the size that `preprocessing` asks for.

    Args:
        given: whatever `listed` takes. Files come in the order given, those of a folder in that of their
            names, and those of a table in that of its rows.
        size: B at most.
        preprocessing, limits: as for `read_image`.

    Raises:
        ImageError: an image cannot be used; the message names it and the reason.
        ImageFolderError: a folder is missing or has no image.
        ConfigError: something is given that no image can be made of.
    """
    pixels: list[NDArray[np.uint8]] = []
    for number, (name, image) in enumerate(_images_of(given)):
        try:
            pixels.append(read_image(image, preprocessing, limits))
        except ImageError as err:
            raise ImageError(f"{name or f'image {number}'}: {err}") from err
        if len(pixels) == size:
            yield np.stack(pixels)
            pixels = []
    if pixels:
        yield np.stack(pixels)


def _images_of(given: Any) -> Iterator[tuple[Path | None, Any]]:  # noqa: ANN401
    """Yield each image and, if it is a file, its path."""
    given = list(given) if isinstance(given, Iterator) else given
    if (rows := rows_of_frame(given)) is not None:
        yield from ((row.path, row.path) for row in checked_rows(rows, Path.cwd(), "a data frame"))
        return
    if (paths := paths_given(given)) is not None:
        yield from ((one, one) for path in paths for one in _files_of(path, []))
        return
    for one in given_images(given):
        yield one.image if isinstance(one.image, Path) else None, one.image


def _kept_info(image: Image.Image) -> PngInfo | None:
    """Return what the file of an array says, so that it is not read otherwise than the array."""
    if decoding.NEEDS_RANGE not in image.info:
        return None
    kept = PngInfo()
    kept.add_text(decoding.NEEDS_RANGE, image.info[decoding.NEEDS_RANGE])
    return kept


def _decoded(content: bytes) -> Image.Image:
    limit = Limits().max_pixels
    with decoding.reading(limit):
        image = decoding.open_image(content)
        decoding.check_pixels(image, limit)
        image.load()
        return image


def _write_images(given: Any, beside: Path) -> tuple[Path, list[str | None]]:  # noqa: ANN401
    """Write images as PNG files named by their position, and return their folder and their labels.

    Args:
        given: the images.
        beside: where the folder is made; its name says what is in it, so that the same images are not
            written twice.

    Raises:
        ConfigError: something is given that no image can be made of.
        ImageFolderError: no image is given.
        ImageError: the content of a file is no image.
        OutputError: a file cannot be written.
    """
    make_folder(beside)
    labels: list[str | None] = []
    digest = hashlib.sha256()
    unfinished = Path(tempfile.mkdtemp(prefix="images-", suffix=TEMPORARY_SUFFIX, dir=beside))
    try:
        for number, one in enumerate(given_images(given)):
            if isinstance(one.image, Path):
                raise ConfigError(
                    f"{one.image} is a path among images in memory. Give one kind or the other."
                )
            try:
                image = _decoded(one.image) if isinstance(one.image, bytes) else one.image
                # Decoded again at once: fast compression is better than small files.
                (image if image.mode in _PNG_MODES else image.convert("RGB")).save(
                    unfinished / f"{number:06}.png", compress_level=1, pnginfo=_kept_info(image)
                )
            except OSError as err:
                raise OutputError(f"Could not write to {beside}: {err.strerror or err}.") from err
            digest.update((unfinished / f"{number:06}.png").read_bytes() + str(one.label).encode())
            labels.append(one.label)
        if not labels:
            raise ImageFolderError("No image was given.")
        folder = beside / f"images-{digest.hexdigest()[:12]}"
        if not folder.exists():  # the same images were given before
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder, labels
