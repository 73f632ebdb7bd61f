"""Duplicates: copies of images in a folder, whatever was done to them, and what to keep of them.

Candidates are found by thumbnails and by features of a pretrained network (`candidates`); each is registered
and compared on pixels (`registration`, `verification`, `agreement`), which gives the kind of copy; and the
threshold between copies and images that only look alike is set from the folder itself (`verdict`).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoencode.atomic import claim_folder, exclusive, make_folder, write_json
from autoencode.data.preprocessing import Limits, read_image
from autoencode.data.sources import expanded
from autoencode.duplicates.candidates import find_candidates
from autoencode.duplicates.output import JSON_NAME
from autoencode.duplicates.sketches import SQUARE, Sketches, sketch_files
from autoencode.duplicates.verdict import Groups, copies_agreement, judge, kinds_of
from autoencode.duplicates.verification import Match, Verifier, verified
from autoencode.errors import ImageFolderError, OutputError
from autoencode.index import open_index
from autoencode.index.memory import FileStore, in_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from autoencode.data.pack import StageProgress
    from autoencode.duplicates.agreement import Box

MOST_POSSIBLE = 1000  # nobody looks through more
_THOROUGH_PAIRS = 20_000


@dataclass(frozen=True)
class DuplicateFile:
    """A file of a group of copies.

    Attributes:
        path: the file.
        width, height: in pixels, upright.
        bytes: its size.
        time: when it was last changed, in seconds since 1970.
        kinds: how it differs from `like`: "identical" bytes; "re-encoded", the same picture saved again; or
            one or more of "mirrored", "rotated", "cropped" (or framed), "resized", "recoloured" and "edited".
            Empty for the first file of a group.
        like: the file it was compared with; None for the first file of a group.
        differs: left, top, right and bottom of what was edited, as shares of the frame of `like`.
    """

    path: Path
    width: int
    height: int
    bytes: int
    time: float
    kinds: tuple[str, ...] = ()
    like: Path | None = None
    differs: Box | None = None


@dataclass(frozen=True)
class DuplicateGroup:
    """Files that show the same picture, the largest one first."""

    files: tuple[DuplicateFile, ...]


@dataclass(frozen=True)
class PossiblePair:
    """Two files that agree as far as different images of this folder do too.

    Attributes:
        first, second: the files.
        agreement: share of the structure of the one that the other has too.
        kinds: what was done to the first, if it is the same picture; see `DuplicateFile`.
    """

    first: Path
    second: Path
    agreement: float
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Duplicates:
    """The results of `find_duplicates`.

    Attributes:
        groups: ordered by the path of their first file.
        possible: pairs below the threshold, the likeliest first, at most 1,000; empty where copies and
            different images are far apart.
        images: number of files compared.
        threshold: the agreement, from 0 to 1, from which pairs that were edited, or changed in several ways,
            are called copies.
        copies: the agreement that 95 % of a sample of the images reach with a copy of themselves that is
            slightly cropped, smaller and saved as JPEG; None if the sample could not be read.
        different: the highest agreement of a pair that is not called a copy; 0 if none comes near.
        skipped: files that could not be used, with the reason.
    """

    groups: list[DuplicateGroup]
    possible: list[PossiblePair]
    images: int
    threshold: float
    copies: float | None
    different: float
    skipped: list[tuple[Path, str]]

    @property
    def redundant(self) -> int:
        """How many files could go and leave one of each group."""
        return sum(len(group.files) - 1 for group in self.groups)

    @property
    def overlaps(self) -> bool:
        """Whether some different images agree as far as copies may."""
        return bool(self.possible)


def find_duplicates(
    images: str | Path | Iterable[str | Path],
    *,
    cache: str | Path | None = None,
    limits: Limits | None = None,
    progress: StageProgress | None = None,
) -> Duplicates:
    """Find copies among images: saved again, resized, cropped, framed, mirrored, turned, recoloured, edited.

    Nothing is changed or deleted. Memory grows by 4 KB an image.

    Args:
        images: folders and files, or one index from `build_index`, whose files are compared.
        cache: a folder that keeps what was computed: after a kill the work goes on, and later only new files
            are read. It is made if missing.
        limits: the largest files and pictures to accept.
        progress: called with (stage, done, in all): "reading" counts files and "comparing" pairs.

    Raises:
        ImageFolderError: a folder is missing or has no image, or no file could be used.
        ImageIndexError: the index is damaged.
        ConfigError: the index is not held in memory.
        OutputError: the cache cannot be written, holds something else, or is in use.
    """
    limits, paths = limits or Limits(), _files(images)
    if cache is None:
        return _found(paths, None, limits, progress)
    folder = Path(cache)
    make_folder(folder, is_private=True)
    claim_folder(folder, JSON_NAME, "search for duplicates")
    with exclusive(folder, f"Another process is searching for duplicates in {folder}.", OutputError):
        if not (folder / JSON_NAME).exists():
            write_json(folder / JSON_NAME, {})
        return _found(paths, folder, limits, progress)


def _files(images: str | Path | Iterable[str | Path]) -> Sequence[Path]:
    if isinstance(images, str | Path) and FileStore().holds(Path(images)):
        index = in_memory(open_index(images), "Finding duplicates")
        return list(index.files(Path()))
    return expanded(images)


def _found(
    paths: Sequence[Path], folder: Path | None, limits: Limits, progress: StageProgress | None
) -> Duplicates:
    def stage(name: str) -> functools.partial[None] | None:
        return functools.partial(progress, name) if progress else None

    every = sketch_files(paths, limits, folder, stage("reading"))
    skipped = [
        (Path(name), reason) for name, reason in zip(every.names, every.reasons, strict=True) if reason
    ]
    same = _same_bytes(every)
    if not same:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
        raise ImageFolderError(f"No image could be used, of {len(paths)} given. {reasons}.")
    sketches = every.take([rows[0] for rows in same])

    def read(row: int) -> NDArray[np.uint8]:
        return read_image(Path(sketches.names[row]), SQUARE, limits)

    pairs = find_candidates(sketches)
    verifier = Verifier(sketches, read, is_thorough=len(pairs) <= _THOROUGH_PAIRS)
    matches = verified(verifier, pairs, folder, stage("comparing"))
    verdict = judge(matches, sketches.sizes)
    return Duplicates(
        groups=_described(every, same, verdict.copies),
        possible=[_possible(sketches, match) for match in verdict.possible[:MOST_POSSIBLE]],
        images=len(every) - len(skipped),
        threshold=verdict.threshold,
        copies=copies_agreement(sketches, read),
        different=verdict.different,
        skipped=skipped,
    )


def _same_bytes(sketches: Sketches) -> list[list[int]]:
    """Return the rows of each content that can be used, in the order of their first files."""
    contents: dict[bytes, list[int]] = defaultdict(list)
    for row, (digest, reason) in enumerate(zip(sketches.digests, sketches.reasons, strict=True)):
        if not reason:
            contents[digest.tobytes()].append(row)
    return list(contents.values())


def _described(every: Sketches, same: list[list[int]], copies: Sequence[Match]) -> list[DuplicateGroup]:
    groups = Groups(len(same))
    best: dict[tuple[int, int], Match] = {}
    linked: dict[int, list[Match]] = defaultdict(list)
    for match in copies:
        groups.join(match.first, match.second)
        best[match.first, match.second] = match
        linked[match.first].append(match)
        linked[match.second].append(match)
    results = []
    alone = [[content] for content, rows in enumerate(same) if len(rows) > 1 and content not in linked]
    for contents in [*groups.members(), *alone]:
        first = _largest(every, same, contents, linked)
        files = []
        for content in [first, *(one for one in contents if one != first)]:
            own = same[content]
            if content == first:
                files.append(_file(every, own[0]))
            else:
                match = best.get((min(first, content), max(first, content))) or max(
                    linked[content], key=lambda match: match.agreement.one_sided
                )
                files.append(_copy(every, same, content, match))
            files += [
                replace(_file(every, row), kinds=("identical",), like=Path(every.names[own[0]]))
                for row in own[1:]
            ]
        results.append(DuplicateGroup(tuple(files)))
    return sorted(results, key=lambda group: group.files[0].path)


def _largest(
    every: Sketches, same: list[list[int]], contents: list[int], linked: dict[int, list[Match]]
) -> int:
    """Return the content with the most pixels; of nearly as large ones, that most like the others."""

    def pixels(content: int) -> float:
        row = same[content][0]
        left, top, right, bottom = every.boxes[row].tolist()
        # A border adds pixels, and none of the picture.
        width, height = every.sizes[row].tolist()
        return float(width * height * (right - left) * (bottom - top)) / 4

    most = max(map(pixels, contents))

    def rank(content: int) -> tuple[float, int, int]:
        likeness = sum(match.agreement.mutual for match in linked[content])
        return likeness, int(every.bytes[same[content][0]]), -content

    return max((one for one in contents if pixels(one) >= 0.95 * most), key=rank)


def _file(every: Sketches, row: int) -> DuplicateFile:
    width, height = every.sizes[row].tolist()
    return DuplicateFile(
        Path(every.names[row]), width, height, int(every.bytes[row]), int(every.times[row]) / 1e9
    )


def _copy(every: Sketches, same: list[list[int]], content: int, match: Match) -> DuplicateFile:
    other = match.first if match.second == content else match.second
    row, like = same[content][0], same[other][0]
    sizes = every.sizes[[same[match.first][0], same[match.second][0]]]
    return replace(
        _file(every, row),
        kinds=kinds_of(match, sizes[0], sizes[1]),
        like=Path(every.names[like]),
        differs=match.agreement.differs if other == match.first else _mapped(match),
    )


def _mapped(match: Match) -> Box | None:
    """Return where a pair differs, as shares of the frame of the second image."""
    if match.agreement.differs is None:
        return None
    corners = np.array(match.agreement.differs).reshape(2, 2) * 2 - 1
    points = np.array([(x, y) for x in corners[:, 0] for y in corners[:, 1]])
    seen = (points @ match.map[:, :2].T + match.map[:, 2]).clip(-1, 1) / 2 + 0.5
    left, top, right, bottom = (round(float(end), 3) for end in (*seen.min(0), *seen.max(0)))
    return left, top, right, bottom


def _possible(sketches: Sketches, match: Match) -> PossiblePair:
    sizes = sketches.sizes[[match.first, match.second]]
    return PossiblePair(
        Path(sketches.names[match.first]),
        Path(sketches.names[match.second]),
        round(match.agreement.one_sided, 4),
        kinds_of(match, sizes[0], sizes[1]),
    )
