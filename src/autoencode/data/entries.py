"""The entries of a pack, one for each of its files, kept together as columns.

60,000 entries take 5 MB, and would take 40 MB as objects.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from autoencode.configuration import Split


Status = Literal["packed", "skipped"]


_ON_WINDOWS = os.name == "nt"


def split_of(sha256: str) -> Split:
    """Return the split of a file, by its content alone: copies share one, and no file ever moves.

    Args:
        sha256: digest of the file's content, 64 hexadecimal digits. Read as a fraction, below 0.75 is train,
            below 0.90 validation, and the rest test.
    """
    fraction = int(sha256[:16], 16) / 2**64
    return "train" if fraction < 0.75 else "validation" if fraction < 0.90 else "test"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the manifest: one file of the image folder.

    Attributes:
        path: relative to the folder, with "/"; bytes that are not UTF-8 as surrogates, as in `os.fsdecode`.
        size: bytes.
        mtime: nanoseconds since 1970, within 292 years of it.
        sha256: digest of the content; None if it could not be read.
        status: "packed", or "skipped" for a file that cannot be used.
        reason: why it was skipped.
        row: where its pixels are; files of the same content share a row.
        label: the first sub-folder, if it is in one; or the label that was given.
        split: see `split_of`; or the split that was given. None for an image of no split.
    """

    path: str
    size: int
    mtime: int
    sha256: str | None
    status: Status
    reason: str | None
    row: int | None
    label: str | None
    split: Split | None

    def to_json(self) -> dict[str, Any]:
        """Return the line as a JSON object."""
        return {name: getattr(self, name) for name in _ENTRY_FIELDS}

    @classmethod
    def from_json(cls, value: dict[str, Any], *, has_given_splits: bool = False) -> Entry:
        """Return the entry saved by `to_json`.

        Args:
            value: what it returned.
            has_given_splits: whether splits were given; otherwise the content decides them.

        Raises:
            ValueError, TypeError: `value` was not saved by `to_json`.
        """
        entry = cls(**value)
        if not isinstance(entry.path, str) or entry.status not in get_args(Status):
            raise ValueError("no path or no status")
        check_inside(entry.path)
        if entry.status == "packed":
            if not isinstance(entry.row, int) or entry.row < 0:
                raise ValueError("no row")
            if not isinstance(entry.sha256, str) or len(entry.sha256) != 64:
                raise ValueError("no sha256")
            # With a forged split, a model could be evaluated on its training images.
            if not has_given_splits and entry.split != split_of(entry.sha256):
                raise ValueError("not the split of its sha256")
            if entry.split not in (None, *_SPLITS) or not isinstance(entry.label, str | None):
                raise ValueError("no split or no label")
        elif not isinstance(entry.reason, str):
            raise ValueError("no reason")
        return entry


def check_inside(path: str) -> None:
    """Reject a path that leads out of the folder it is relative to.

    Raises:
        ValueError: the path is absolute, or has a part "..".
    """
    parts = path.split("/")
    if _ON_WINDOWS and (PureWindowsPath(path).anchor or "\\" in path):  # C:a.png, \\host\share, a\..\..\b
        raise ValueError("not a path inside the folder")
    if "\0" in path or not parts[0] or ".." in parts:
        raise ValueError("not a path inside the folder")


_ENTRY_FIELDS = tuple(field.name for field in fields(Entry))


def packed_entry(path: str, size: int, mtime: int, sha256: str, row: int) -> Entry:
    """Return the entry of a file whose pixels are in `row`."""
    return Entry(path, size, mtime, sha256, "packed", None, row, _label(path), split_of(sha256))


def skipped_entry(
    path: str, size: int, mtime: int, sha256: str | None = None, reason: str | None = None
) -> Entry:
    """Return the entry of a file that cannot be used; without a reason, of one that is still to be read."""
    return Entry(path, size, mtime, sha256, "skipped", reason, None, _label(path), None)


def _label(path: str) -> str | None:
    first, separator, _ = path.partition("/")
    return first if separator else None


# start: offset of the path in all paths joined. length: its bytes. None is stored as -1, or as zeros for a
# digest.
_RECORD = np.dtype(
    [
        ("start", "<i8"),
        ("length", "<u4"),
        ("size", "<i8"),
        ("mtime", "<i8"),
        ("row", "<i8"),
        ("sha256", "S32"),
        ("label", "<i4"),
        ("split", "i1"),
    ]
)


_pack_record = struct.Struct("<qIqqq32sib").pack  # takes a third of the time of writing a NumPy record


_NO_DIGEST = bytes(32)


# The code of a label: the first sub-folder, none, or from 0 on an index in the labels given. The code of a
# split: by the content, none, training or validation by the content, or from 0 on an index in _SPLITS.
_PARTED, _DERIVED, _NONE = -3, -2, -1


_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Entries(Sequence[Entry]):
    """N entries in columns; an entry becomes an object when it is asked for."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        """Copy `entries` into columns.

        Raises:
            ValueError: a value does not fit its column, for instance a digest of another length.
        """
        # Bytes that grow: the number of entries is unknown, and a list of entries would hold objects again.
        paths, records = bytearray(), bytearray()
        reasons: dict[int, str] = {}
        labels: dict[str, int] = {}
        for entry in entries:
            path = entry.path.encode("utf-8", "surrogateescape")
            if entry.reason is not None:
                reasons[len(paths)] = entry.reason
            row = -1 if entry.row is None else entry.row
            digest = _NO_DIGEST if entry.sha256 is None else bytes.fromhex(entry.sha256)
            if len(digest) != len(_NO_DIGEST):
                raise ValueError(f"the sha256 of {entry.path} has {len(digest)} bytes")
            try:
                codes = _label_code(entry, labels), _split_code(entry)
                records += _pack_record(len(paths), len(path), entry.size, entry.mtime, row, digest, *codes)
            except struct.error as err:
                raise ValueError(f"a value of the entry of {entry.path} is out of range: {err}") from err
            paths += path
        self._fill(paths, np.frombuffer(records, _RECORD), reasons, list(labels))

    def _fill(
        self, paths: bytearray, records: NDArray[np.void], reasons: dict[int, str], labels: list[str]
    ) -> None:
        self._paths, self._records, self._reasons, self._labels = paths, records, reasons, labels

    def give(
        self,
        labels: Sequence[str | None] | None,
        splits: Sequence[Split | None] | None,
        *,
        holds_out_validation: bool = False,
    ) -> None:
        """Set the labels (N,) and splits (N,) that were given; None leaves those of the path or the content.

        With `holds_out_validation` the content decides which of the training images are for validation.
        """
        if labels is not None:
            self._labels = sorted({label for label in labels if label is not None})
            codes = {label: code for code, label in enumerate(self._labels)}
            self._records["label"] = [_NONE if label is None else codes[label] for label in labels]
        if splits is not None:
            codes_of: dict[Split | None, int] = {split: code for code, split in enumerate(_SPLITS)}
            codes_of[None] = _NONE
            if holds_out_validation:
                codes_of["train"] = _PARTED
            self._records["split"] = [codes_of[split] for split in splits]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row (N,) of each; -1 for a skipped file."""
        rows: NDArray[np.int64] = self._records["row"]
        return rows

    @property
    def digests(self) -> NDArray[np.bytes_]:
        """The SHA-256 (N,) of each: 32 bytes, without the zeros that NumPy drops at the end; or empty."""
        digests: NDArray[np.bytes_] = self._records["sha256"]
        return digests

    @property
    def packed(self) -> Entries:
        """The entries of usable files."""
        usable = self.rows >= 0
        return self if usable.all() else self.take(usable)

    @property
    def has_reason(self) -> NDArray[np.bool_]:
        """Whether each (N,) has a reason to be skipped."""
        return np.isin(self._records["start"], list(self._reasons))

    def in_split(self, split: Split) -> NDArray[np.bool_]:
        """Return whether each (N,) is in that split."""
        return np.array([self._split(index) == split for index in range(len(self))], np.bool_)

    def with_label(self, label: str) -> NDArray[np.bool_]:
        """Return whether each (N,) has that label."""
        if (self._records["label"] != _DERIVED).any():
            return np.array([self._label(index) == label for index in range(len(self))], np.bool_)
        start = f"{label}/".encode("utf-8", "surrogateescape")
        positions = zip(self._records["start"].tolist(), self._records["length"].tolist(), strict=True)
        return np.array(
            [self._paths.startswith(start, at, at + length) for at, length in positions], np.bool_
        )

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Entries:
        """Return the entries at these indices, in that order, or those for which a mask (N,) is true."""
        # Paths are shared, not copied, so that the entries of a split cost 68 bytes each.
        taken = Entries()
        taken._fill(self._paths, self._records[chosen], self._reasons, self._labels)
        return taken

    def path(self, index: int) -> str:
        """Return the path of an entry."""
        start, length, *_ = self._records[index].item()
        return self._paths[start : start + length].decode("utf-8", "surrogateescape")

    def set_content(self, index: int, digest: bytes | None, reason: str | None) -> None:
        """Record the result of reading a file: its digest of 32 bytes, and a reason if it is skipped."""
        self._records["sha256"][index] = digest or b""
        if reason is not None:
            self._reasons[int(self._records["start"][index])] = reason

    def set_rows(self, rows: NDArray[np.int64]) -> None:
        """Set the row (N,) of each; see `rows`."""
        self._records["row"] = rows

    def copy_content(self, chosen: NDArray[np.int64], others: Entries) -> None:
        """Copy digests and rows of M entries `others` to the entries at the indices `chosen` (M,)."""
        for column in ("sha256", "row"):
            self._records[column][chosen] = others._records[column]

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Entries: ...

    def __getitem__(self, index: int | slice) -> Entry | Entries:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        start, _, size, mtime, row, *_ = self._records[index].item()
        path, sha256 = self.path(index), self._sha256(index)
        if row >= 0 and sha256 is not None:
            label, split = self._label(index), self._split(index)
            return Entry(path, size, mtime, sha256, "packed", None, row, label, split)
        skipped = skipped_entry(path, size, mtime, sha256, self._reasons.get(start))
        return replace(skipped, label=self._label(index))

    def _label(self, index: int) -> str | None:
        code = int(self._records["label"][index])
        return _label(self.path(index)) if code == _DERIVED else None if code == _NONE else self._labels[code]

    def _split(self, index: int) -> Split | None:
        code, sha256 = int(self._records["split"][index]), self._sha256(index)
        if code in (_DERIVED, _PARTED):
            split = None if sha256 is None else split_of(sha256)
            return "train" if code == _PARTED and split == "test" else split
        return None if code == _NONE else _SPLITS[code]

    def _sha256(self, index: int) -> str | None:
        digest = self._records["sha256"][index : index + 1 or None].tobytes()
        return digest.hex() if any(digest) else None

    def __iter__(self) -> Iterator[Entry]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entries):
            return NotImplemented
        return len(self) == len(other) and all(map(Entry.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # `set_content` and `set_rows` change them


def _label_code(entry: Entry, labels: dict[str, int]) -> int:
    if entry.label == _label(entry.path):
        return _DERIVED
    return _NONE if entry.label is None else labels.setdefault(entry.label, len(labels))


def _split_code(entry: Entry) -> int:
    if entry.status == "skipped" or entry.sha256 is None or entry.split == split_of(entry.sha256):
        return _DERIVED
    return _NONE if entry.split is None else _SPLITS.index(entry.split)
