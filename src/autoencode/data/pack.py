"""An image folder decoded once: pixels of one size, splits, labels, and what was skipped and why.

    P/pack.json          constant settings: the folder, the preprocessing, rows per shard
    P/manifest.jsonl     one line per file of the folder; replacing it changes the pack
    P/shards/00000.u8    rows of raw pixels, (H, W, 3) uint8; written once, never changed

Raw shards beside a text manifest need no library to read, are mapped rather than loaded, and an update adds
files without touching old ones. A pack shows its folder as of the last `pack_folder`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.cluster import joined_cluster
from autoencode.data import manifest, packing
from autoencode.data.decoders import decode_here, decode_on
from autoencode.data.listing import Listing
from autoencode.data.manifest import is_pack
from autoencode.data.preprocessing import Limits, Preprocessing, Size, fields_asked_for
from autoencode.data.remote import files_at
from autoencode.data.shards import PackFiles, ShardReader
from autoencode.data.sources import listed
from autoencode.data.survey import may_be_wide, remarks, sampled, survey
from autoencode.errors import ConfigError, PackError
from autoencode.storage import is_url

if TYPE_CHECKING:
    from autoencode.configuration import Split

Progress = Callable[[int, int], None]  # called with (done, total)
StageProgress = Callable[[str, int, int], None]  # called with (stage, done, total)


class HeldOut(NamedTuple):
    """Images to measure a model on: their `rows` (N,), N at least 1, and the `split` they are of."""

    rows: NDArray[np.int64]
    split: Split


class Pack:
    """The images of a pack. Any thread may read from it.

    Attributes:
        path: the folder of the pack; for a pack in storage, the folder of its lists in the cache.
        location: the text that opens this pack again: its URL, or its absolute path.
        folder: the image folder it was made from, which may no longer exist.
        origin: the table or list it was made from instead; "" for the folder.
        note: what was recognised there, such as folders that are splits; "" for nothing.
        preprocessing: how its images became pixels.
        entries: the usable images, a sequence of `Entry` ordered by (sha256, path): the order depends on the
            content alone, not on the order in which images were added.
        skipped: the files that could not be used, ordered by path, with the reason.
        rows_per_shard: rows stored together, in the order of their numbers.
        window: rows that can be in use at once, a whole number of shards; 0 for all of them.
    """

    def __init__(self, files: PackFiles) -> None:
        """Open a pack; see `open_pack`."""
        if isinstance(files, str | Path):
            raise ConfigError(f"A pack is opened by open_pack({str(files)!r}).")
        settings = manifest.read_settings(files.folder)
        entries = manifest.read_manifest(files.folder)
        if entries is None:
            again = f"autoencode pack {settings.folder} --out {files}"
            raise PackError(f"The pack {files} is not finished. Run again: {again}")
        self.path, self.location = files.folder, files.location
        self._has_given = settings.has_given_splits or bool(settings.origin)
        self.folder, self.origin, self.note = settings.folder, settings.origin, settings.note
        self.preprocessing = settings.preprocessing
        # The manifest is ordered by path, and a stable sort keeps that order among copies.
        self.entries = entries.packed.take(np.argsort(entries.packed.digests, kind="stable"))
        self.skipped = list(entries.take(entries.rows < 0))
        self._rows = self.entries.rows.copy()  # contiguous: in the entries, rows are 68 bytes apart
        shards = files.shards(settings)
        self.window = shards.window * shards.rows_per_shard
        self.rows_per_shard = shards.rows_per_shard
        # A window over all rows would only make the order of training depend on the size of the cache.
        if self.window >= self._rows.max(initial=-1) + 1:
            self.window = 0
        self._reader = ShardReader(shards, self._rows)

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], str, str]:
        """Return the pixels (H, W, 3), the label, "" for none, and the path of an image: a torch Dataset.

        Raises:
            IndexError: there is no such image.
        """
        entry = self.entries[range(len(self))[index]]
        assert entry.row is not None
        return self.pixels(np.array([entry.row]))[0], entry.label or "", entry.path

    def __repr__(self) -> str:
        """Return the number and size of the images, and where they came from."""
        size = f"{self.preprocessing.height}x{self.preprocessing.width}"
        return f"Pack({len(self):,} images of {size}, from {self.origin or self.folder})"

    def rows(self, split: Split | None = None) -> NDArray[np.int64]:
        """Return the rows (N,) of a split, or of all, in the order of `entries`; copies share a row."""
        if split is None:
            return self._rows.copy()  # a copy, because callers may shuffle it in place
        return self._rows[self.entries.in_split(split)]

    def training_rows(self) -> NDArray[np.int64]:
        """Return the rows (N,) to learn from: of the training split, or of all images if it is empty."""
        rows = self.rows("train")
        return rows if len(rows) else self.rows()

    def held_out(self, wanted: Literal["validation", "test"] = "test") -> HeldOut:
        """Return the images to measure on.

        A pack of few images may have none in the split that is wanted. Then the other held-out split is
        returned or, if it is empty as well, the training images.
        """
        order: tuple[Split, ...] = (wanted, "validation", "test", "train")
        split = next((split for split in order if len(self.rows(split))), None)
        if split is None:
            raise PackError(f"The pack {self.location} has no usable image.")
        return HeldOut(self.rows(split), split)

    def reading_order(self, rows: NDArray[np.int64], window: int | None = None) -> NDArray[np.int64]:
        """Return `rows` as given, or sorted if the cache cannot hold all shards: each is then fetched once.

        Args:
            rows: (N,).
            window: the window to assume, such as that of a run; by default that of this pack.
        """
        return np.sort(rows) if (self.window if window is None else window) else rows

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Begin to fetch the shards of `rows`, in that order, from storage."""
        self._reader.prefetch(rows)

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pixels (B, H, W, 3) in 0..255, sRGB, of some of the `rows` (B,).

        Raises:
            PackError: another process has changed the pack meanwhile, and it no longer has these rows.
        """
        return self._reader.pixels(np.asarray(rows, np.int64))

    @functools.cached_property
    def labels(self) -> list[str]:
        """The names of the first sub-folders that have usable images, sorted."""
        return sorted({entry.label for entry in self.entries if entry.label is not None})

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the preprocessing and of the content and path of every image, whatever the history."""
        digest = hashlib.sha256(json.dumps(self.preprocessing.to_json(), sort_keys=True).encode())
        for entry in self.entries:
            # The path counts as well: labels come from it.
            digest.update(f"\n{entry.sha256} {entry.path}".encode("utf-8", "surrogateescape"))
            if self._has_given:
                digest.update(f"\n{entry.label} {entry.split}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def open_pack(path: str | Path) -> Pack:
    """Open a pack.

    Args:
        path: the folder of the pack, or its URL in storage (s3://bucket/pack; extra `storage`). Shards in
            storage are fetched when they are needed, and kept while the cache has room for them: the
            variables AUTOENCODE_CACHE and AUTOENCODE_CACHE_GB (20) are its folder and its size.

    Raises:
        PackError: the pack is missing, not finished, damaged, or made by another version.
        StorageError: the storage cannot be reached.
    """
    return Pack(files_at(path))


def open_known_pack(location: str, fingerprint: str, folder: Path) -> Pack:
    """Open the pack of a run or model, also if it was moved together with that.

    Args:
        location: where it was.
        fingerprint: of its images.
        folder: of the run or model; packs in it and beside it are looked at, too.

    Raises:
        PackError: it is not there, and no pack beside it has this fingerprint; or it is damaged.
        StorageError: the storage cannot be reached.
    """
    if location and (is_url(location) or is_pack(Path(location))):
        return open_pack(location)
    folder = folder.absolute()
    for place in (folder, folder.parent):
        for path in sorted(place.iterdir()):
            if is_pack(path):
                with contextlib.suppress(PackError):  # another one, not finished or damaged
                    if (pack := open_pack(path)).fingerprint == fingerprint:
                        return pack
    was = f"was at {location}, and is not there or beside {folder}" if location else f"is not beside {folder}"
    raise PackError(f"The pack of the training {was}. Put it there, or pack the same images there again.")


def pack_to_measure(images: Any, preprocessing: Preprocessing, out: Path) -> Pack:  # noqa: ANN401
    """Pack images that a model has not seen, as test images; for errors see `pack_folder`."""
    listing = listed(images)
    return pack_folder(replace(listing, splits=["test"] * len(listing.names)), out, preprocessing)


def pack_folder(
    folder: Any,  # noqa: ANN401 - see `sources`
    out: str | Path,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    *,
    size: Size | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    workers: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Pack:
    """Decode every image under `folder` once into the pack `out`, or update that pack to the folder.

    Only new and changed files are decoded. A kill, a crash or a full disk at any moment leaves the old pack
    whole. The result is the same whatever the number of workers and the order in which files were added.

    Args:
        folder: images, in sub-folders or not; the first sub-folder is the label. Also several folders and
            files, or a table, see `listed`. Folders train, val and test are splits.
        out: the pack: a folder, whose parents are made, or a URL in storage (s3://bucket/pack; extra
            `storage`), to which each shard goes when it is full. If several processes pack to one URL, one
            succeeds and the others are rejected.
        preprocessing: the size of the images and how they are resized to it, or some of its fields by name.
            Other fields are those of an existing pack, or are chosen by the images, see `suited`.
        size: instead, the size alone: 128 (square), "96x160" or (96, 160), height first.
        include, exclude: patterns of names, see `listed`.
        limits: the largest file, image and time to accept. A change does not affect images that are packed;
            files that were skipped are tried again every time.
        workers: number of processes; by default as many as there are cores.
        ray: instead, the address of a Ray cluster that decodes, on all its CPUs; this machine must be one of
            its nodes, and every node must see the folder. The pack is written by this process, and is the
            same. See `joined_cluster`.
        progress: called with (files done, files to read), from this thread.

    Raises:
        ConfigError: `size` cannot be used, or was given beside `preprocessing`; `workers` were given beside
            `ray`, or are fewer than 1.
        MissingExtraError: a cluster needs the optional part `ray`.
        RunError: no cluster answers at the address, a node does not see the folder, or the cluster failed.
        ImageFolderError: the folder is missing, or has no usable image.
        StorageError: the storage cannot be reached.
        PackError: `out` is neither empty nor a pack; or it is a pack of another folder or with other
            preprocessing, is damaged, or is being written by another process.
        OutputError: the pack could not be written, for instance because the disk is full.
    """
    files = files_at(out, must_exist=False)
    asked = fields_asked_for(size, preprocessing)
    if ray is not None and workers is not None:
        raise ConfigError("A Ray cluster decodes on all its CPUs. Leave workers out.")
    with joined_cluster(ray, "Packing on a cluster") as cluster:
        decode = decode_on(cluster) if cluster else decode_here(workers)
        before = preprocessing_of(out)
        listing = folder if isinstance(folder, Listing) else listed(folder, include, exclude, _beside(out))
        if before is None:
            chosen = suited(listing, asked, limits)[0]
            said = [*filter(None, [listing.note]), *remarks(listing.paths, chosen.value_range, limits)]
            listing = replace(listing, note="; ".join(said))
        else:
            chosen = replace(before, **asked)
            listing = replace(listing, note=note_of(out) or listing.note)
        packing.update(listing, files, chosen, limits or Limits(), decode, progress)
    return open_pack(out)


def _beside(out: str | Path) -> Path | None:
    """Return the folder that keeps images given in memory: beside their pack, but not in storage."""
    return None if is_url(out) else Path(out).absolute().parent


def suited(
    listing: Listing, asked: Mapping[str, Any] | None = None, limits: Limits | None = None
) -> tuple[Preprocessing, str]:
    """Return the preprocessing that suits the images, and the reason in a few words.

    Args:
        listing: the images.
        asked: fields of `Preprocessing` that are not to be chosen.
        limits: the largest files and images to look at.

    Raises:
        ConfigError: what was asked for cannot be used.
    """
    asked, paths = dict(asked or {}), listing.paths
    open_fields = {field.name for field in fields(Preprocessing)} - asked.keys()
    if open_fields == {"value_range"} and not any(map(may_be_wide, sampled(paths))):
        open_fields = set()
    if not open_fields:
        return Preprocessing(**asked), ""
    found = survey(paths, limits)
    value_range, said = found.value_range()
    chosen, reason = found.preprocessing({"value_range": value_range, **asked})
    if said and "value_range" in asked:
        said = (
            "{:g}:{:g} is black to white, as given".format(*chosen.value_range) if chosen.value_range else ""
        )
    return chosen, f"{reason}; {said}" if said else reason


def preprocessing_of(location: str | Path) -> Preprocessing | None:
    """Return the preprocessing of a pack, finished or not; None if there is no pack at `location`.

    Raises:
        PackError: the pack is damaged, or made by another version.
        StorageError: the storage cannot be reached.
    """
    folder = files_at(location, must_exist=False).folder
    return manifest.read_settings(folder).preprocessing if is_pack(folder) else None


def note_of(location: str | Path) -> str:
    """Return the note about the images of a pack that was written when it was made; see `Pack.note`."""
    return manifest.read_settings(files_at(location, must_exist=False).folder).note


def local_folder(location: str | Path) -> Path:
    """Return the local folder of a pack or of images; for a URL, the cache folder that opens it.

    Raises:
        PackError: there is no pack at the URL.
        StorageError: the storage cannot be reached.
    """
    return files_at(location).folder


def location_of(folder: Path) -> str:
    """Return the location of a folder that `local_folder` returned: its URL, or its absolute path."""
    return files_at(folder).location
