"""Which clean image each restored one is measured against."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoencode.data.sources import expanded
from autoencode.errors import ImageError


class CleanImages:
    """The images without damage.

    Args:
        clean: one file for all images, or a folder of files with the names of the images.
        folders: the folders of images that are restored, by which names of files in sub-folders are compared.
    """

    def __init__(self, clean: Path, folders: Sequence[Path] = ()) -> None:
        self._clean, self._folders = clean, folders

    def of(self, path: Path) -> Path:
        """Return the clean file of an image.

        That is the file of the same path within the folders given; otherwise the only one whose name and
        folder are the image's; otherwise the only one of its name. Where no file has its name, all this holds
        of names without their endings: of a JPEG the clean image may be a PNG.

        Raises:
            ImageError: no clean file has its name, or several have and none is closer than the others.
        """
        if not self._clean.is_dir():
            return self._clean
        named = self._by_name.get(path.name) or self._by_stem.get(path.stem, [])
        inner = next((path.relative_to(one) for one in self._folders if path.is_relative_to(one)), path.name)
        place = (self._clean / inner).with_suffix("")
        exact = [one for one in named if one.with_suffix("") == place]
        for found in (exact, [one for one in named if one.parent.name == path.parent.name], named):
            if len(found) > 1:
                raise ImageError(
                    f"{len(found)} clean images could be its own, such as {found[0]} and {found[1]}"
                )
            if found:
                return found[0]
        raise ImageError(f"no clean image of its name is in {self._clean}")

    @functools.cached_property
    def _by_name(self) -> Mapping[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for path in expanded(self._clean):
            files.setdefault(path.name, []).append(path)
        return files

    @functools.cached_property
    def _by_stem(self) -> Mapping[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for path in itertools.chain.from_iterable(self._by_name.values()):
            files.setdefault(path.stem, []).append(path)
        return files
