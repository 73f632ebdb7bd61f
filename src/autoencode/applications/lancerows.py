"""What is in the tables of an index that LanceDB keeps: rows, columns, and names as text.

Shapes: D values in a vector.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autoencode.applications.indexsettings import AGAIN, IndexSettings, Place, check_settings, settings_of
from autoencode.errors import ConfigError, ImageIndexError
from autoencode.models.tensorfile import read_tensors, write_tensors

SETTINGS, SOURCES, IMAGES, PACKS = "settings", "sources", "images", "packs"
TABLE_NAMES = tuple(f"{name}.lance" for name in (SETTINGS, SOURCES, IMAGES))
ID_BYTES = 32  # hexadecimal digits
UPDATING = "updating"
SOURCE_COLUMNS = ("source", "folder", "folder_from_index", "fingerprint")

_KIND, _VERSION = "lance-index-settings", 1
_KEY = "lance-schema:unenforced-primary-key"
# A byte that is no text, and the sign that stands before its number.
_ODD, _NUMBERED = re.compile("[%\udc80-\udcff]"), re.compile("%(25|[89A-F][0-9A-F])")


@dataclass(frozen=True)
class Cells:
    """How an approximate search is done; see `nearest.Cells`. Without cells every vector is compared."""

    cells: int = 0
    probes: int = 0
    recall: float = 1.0


@dataclass(frozen=True)
class Source:
    """A folder or pack whose images are in the index.

    Attributes:
        name: its absolute path, or its URL.
        folder: the image folder that the paths of its images are relative to.
        fingerprint: of its images, see `Pack.fingerprint`; "" until all of them were there for once, and
            `UPDATING` while some are taken in or out.
    """

    name: str
    folder: Place
    fingerprint: str

    @property
    def is_whole(self) -> bool:
        """Whether all its images are there, and no others."""
        return self.fingerprint not in ("", UPDATING)


class Row(NamedTuple):
    """One image: of which source, where it is in that folder, its label and the digest of its content."""

    source: str
    path: str
    label: str | None
    sha256: str


def filter_of(values: Iterable[tuple[str, str | None]]) -> str | None:
    """Return what selects the images whose columns have these values, where one is given; None for all."""
    wanted = [f"{column} = {quoted(value)}" for column, value in values if value is not None]
    return " AND ".join(wanted) or None


def settings_bytes(settings: IndexSettings) -> bytes:
    """Return settings as the content of a file that has its digest."""
    arrays, content = settings.to_content()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SETTINGS
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(path, _KIND, _VERSION, tensors, content)
        return path.read_bytes()


def settings_from(place: Path | str, content: bytes, size: int) -> IndexSettings:
    """Read settings of codes of `size` values from `settings_bytes`.

    Raises:
        ImageIndexError: it is damaged, forged, or of a newer version.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SETTINGS
        path.write_bytes(content)
        try:
            tensors, stated, _ = read_tensors(path, _KIND, _VERSION, ImageIndexError, advice=AGAIN)
            settings = IndexSettings(
                **settings_of({name: tensor.numpy() for name, tensor in tensors.items()}, stated)
            )
            check_settings(settings, size)
        except ImageIndexError as err:
            raise ImageIndexError(str(err).replace(str(path), f"The table of settings of {place}")) from err
        except (ConfigError, KeyError, TypeError, ValueError) as err:
            raise ImageIndexError(f"{place} does not hold a usable index ({err}). {AGAIN}") from err
    return settings


def images_schema(size: int) -> Any:  # noqa: ANN401
    """Return the columns of the images, with vectors of `size` values."""
    import pyarrow as pa

    # By its key LanceDB notices that two writers, neither of whom sees the other, add the same image.
    key = pa.field("id", pa.string(), nullable=False, metadata={_KEY: "true"})
    texts = [pa.field(name, pa.string()) for name in ("source", "path", "label", "split", "sha256")]
    return pa.schema([key, *texts, pa.field("vector", pa.list_(pa.float32(), size))])


def sources_schema() -> Any:  # noqa: ANN401
    """Return the columns of the sources."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in SOURCE_COLUMNS])


def text_of(path: str) -> str:
    """Return a path as text that is UTF-8: what is none is written as %FF, and % as %25."""
    return _ODD.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", path)


def read_text(text: Any) -> Any:  # noqa: ANN401 - None stays None
    """Return what `text_of` was given."""
    if not isinstance(text, str):
        return text
    return _NUMBERED.sub(lambda found: "%" if found[1] == "25" else chr(0xDC00 + int(found[1], 16)), text)


def quoted(text: str) -> str:
    """Return a name as it stands in a condition."""
    return "'" + text_of(text).replace("'", "''") + "'"


def listed(texts: Sequence[str]) -> str:
    """Return names as they stand in a condition on one of them."""
    return f"({', '.join(map(quoted, texts))})"
