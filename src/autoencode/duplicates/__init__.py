"""Duplicates: find the copies of images in a folder, whatever was done to them, and choose what stays.

Candidates are found by thumbnails and by features of a pretrained network (`candidates`); each is registered
and compared on pixels (`registration`, `verification`, `agreement`), which gives the kind of copy; and the
threshold between copies and images that only look alike is set from the folder itself (`verdict`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoencode import notebook
from autoencode.atomic import claim_folder, exclusive, make_folder, remove_temporaries, write_json
from autoencode.data.listing import Paths
from autoencode.data.preprocessing import Limits, Preprocessing, read_image
from autoencode.data.sources import expanded
from autoencode.duplicates.agreement import SHARP_SIDE, SIDE
from autoencode.duplicates.candidates import find_candidates
from autoencode.duplicates.features import SQUARE, Sketches, sketch_files
from autoencode.duplicates.output import JSON_NAME, MARK_NAME, busy
from autoencode.duplicates.staying import RULES, decoded_jpegs, picture_in_border, staying, without_links
from autoencode.duplicates.verdict import LEAST, LEAST_MUTUAL, Groups, copies_agreement, judge, kinds_of
from autoencode.duplicates.verification import Match, Verifier, remembered
from autoencode.errors import ImageFolderError, OutputError, check_choice
from autoencode.index import STORES, open_index
from autoencode.index.memory import in_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from autoencode.configuration import Keep
    from autoencode.data.pack import StageProgress
    from autoencode.duplicates.agreement import Box

MOST_POSSIBLE = 1000  # nobody looks through more
_THOROUGH_PAIRS = 20_000
_MOST_CLOSE = 5000  # pairs of large files compared again at full size: each takes a tenth of a second
Files = Callable[[int], "list[DuplicateFile]"]  # of a content, the one that stays first
_SHARP = Preprocessing(SHARP_SIDE, SHARP_SIDE, "stretch")


@dataclass(frozen=True)
class DuplicateFile:
    """A file of a group of copies.

    Attributes:
        path: the file.
        width, height: in pixels, upright.
        bytes: its size.
        time: when it was last changed, in seconds since 1970.
        picture: its pixels, without a plain border around what another file of the group shows.
        decoded: whether it is a lossless file of what a JPEG file of the group decodes to.
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
    picture: int
    decoded: bool = False
    kinds: tuple[str, ...] = ()
    like: Path | None = None
    differs: Box | None = None


@dataclass(frozen=True)
class DuplicateGroup:
    """Files that show the same picture, the one that stays first."""

    files: tuple[DuplicateFile, ...]


@dataclass(frozen=True)
class PossiblePair:
    """Two files that agree as copies do, and are not called copies.

    They were edited or changed in several ways as far as different images of this folder agree, or show too
    little detail to tell.

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
        possible: pairs that agree as copies do and may be none, the likeliest first, at most 1,000; empty
            where copies and different images are far apart.
        images: number of files compared.
        threshold: the agreement, from 0 to 1, from which pairs that were edited, or changed in several ways,
            are called copies.
        copies: the agreement that 95 % of a sample of the images reach with a copy of themselves that is
            slightly cropped, smaller and saved as JPEG; None if the sample could not be read.
        different: the highest agreement of a pair that has detail enough and is not called a copy; 0 if
            none comes near.
        skipped: files that could not be used, with the reason.
        links: other names of a file, symbolic and hard links, each with the name that was taken. A file and
            its links are one.
    """

    groups: list[DuplicateGroup]
    possible: list[PossiblePair]
    images: int
    threshold: float
    copies: float | None
    different: float
    skipped: list[tuple[Path, str]]
    links: list[tuple[Path, Path]] = field(default_factory=list)

    def _repr_html_(self) -> str:
        title = f"{len(self.groups):,} groups of copies among {self.images:,} files"
        files = [(number, one) for number, group in enumerate(self.groups, 1) for one in group.files]
        rows = ((number, ", ".join(one.kinds) or "stays", one.path) for number, one in files)
        return notebook.table(title, ("group", "", "path"), rows)

    @property
    def redundant(self) -> int:
        """How many files could go and leave one of each group."""
        return sum(len(group.files) - 1 for group in self.groups)

    @property
    def overlaps(self) -> bool:
        """Whether some different images agree as far as copies may."""
        return self.different >= LEAST


def find_duplicates(
    images: str | Path | Iterable[str | Path],
    *,
    keep: Keep = "largest",
    cache: str | Path | None = None,
    limits: Limits | None = None,
    progress: StageProgress | None = None,
) -> Duplicates:
    """Find copies among images: saved again, resized, cropped, framed, mirrored, turned, recoloured, edited.

    Nothing is changed or deleted. Memory grows by 4 KB an image.

    Args:
        images: folders and files, or one index from `build_index`, whose files are compared.
        keep: the file of each group that stays: the "largest", which has most pixels of the picture and
            among equals is no lossless copy of a JPEG, and then the oldest; the "oldest" by date; or the
            "first" by path. The others are compared with it.
        cache: a folder that keeps what was computed: after a kill the work goes on, and later only new files
            are read. It is made if missing.
        limits: the largest files and pictures to accept.
        progress: called with (stage, done, in all): "reading" counts files and "comparing" pairs.

    Raises:
        ImageFolderError: a folder is missing or has no image, or no file could be used.
        ImageIndexError: the index is damaged.
        ConfigError: the index is not held in memory, or `keep` is unknown.
        OutputError: the cache cannot be written, holds something else, or is in use.
    """
    check_choice("keep", keep, RULES)
    limits, paths = limits or Limits(), _files(images)
    if cache is None:
        return _found(paths, None, limits, progress, keep)
    folder = Path(cache)
    make_folder(folder, is_private=True)
    mark = next((name for name in (MARK_NAME, JSON_NAME) if (folder / name).exists()), MARK_NAME)
    claim_folder(folder, mark, "search for duplicates")
    with exclusive(folder, busy(folder), OutputError):
        remove_temporaries(folder)
        if not (folder / mark).exists():
            write_json(folder / mark, {"what": "search for duplicates"})
        return _found(paths, folder, limits, progress, keep)


def _files(images: str | Path | Iterable[str | Path]) -> Paths:
    if isinstance(images, str | Path) and any(store.holds(Path(images)) for store in STORES.values()):
        index = in_memory(open_index(images), "Finding duplicates")
        return Paths(index.files(Path()))
    return expanded(images)


def _found(
    paths: Paths, folder: Path | None, limits: Limits, progress: StageProgress | None, keep: Keep
) -> Duplicates:
    def stage(name: str) -> partial[None] | None:
        return partial(progress, name) if progress else None

    once, links = without_links(paths)
    every = sketch_files(once, limits, folder, stage("reading"))
    skipped = [
        (Path(name), reason) for name, reason in zip(every.names, every.reasons, strict=True) if reason
    ]
    same = _same_bytes(every, keep)
    if not same:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
        raise ImageFolderError(f"No image could be used, of {len(paths)} given. {reasons}.")
    sketches = every.take([rows[0] for rows in same])

    def read(row: int, wanted: Preprocessing = SQUARE) -> NDArray[np.uint8]:
        return read_image(Path(sketches.names[row]), wanted, limits)

    candidates, digests = find_candidates(sketches), sketches.digests
    verifier = Verifier(sketches, read, is_thorough=len(candidates.pairs) <= _THOROUGH_PAIRS)
    pairs = candidates.pairs if verifier.is_thorough else verifier.screened(candidates)
    # How far apart two images may be depends on how thoroughly was looked.
    name = "thorough" if verifier.is_thorough else "likely"
    matches = remembered(verifier.verify, pairs, digests, name, folder, stage("comparing"))
    large, known = sketches.sizes.min(1) > SIDE, {(match.first, match.second): match for match in matches}

    def look(pairs: NDArray[np.int64]) -> list[Match | None]:
        coarse = [known[first, second] for first, second in pairs.tolist()]
        return verifier.look_closely(coarse, partial(read, wanted=_SHARP))

    def look_at(matches: Iterable[Match]) -> None:
        """Replace matches of images in which there is more to see, the least alike first."""
        some = sorted(matches, key=lambda match: match.agreement.mutual)
        close = [(match.first, match.second) for match in some if large[[match.first, match.second]].all()]
        pairs = np.array(close[:_MOST_CLOSE], np.int64).reshape(-1, 2)
        for match in remembered(look, pairs, digests, "close", folder, None):
            known[match.first, match.second] = match

    verdict = judge(matches, sketches.sizes)
    # Pages in one layout are alike until their words are seen.
    look_at(verdict.copies)
    verdict = judge(list(known.values()), sketches.sizes)
    pictures = _pictures(every, same, verdict.copies)
    decoded = decoded_jpegs(
        [(match.first, match.second) for match in verdict.copies],
        lambda content: Path(sketches.names[content]),
        sketches.sizes,
        limits,
    )

    def files(content: int) -> list[DuplicateFile]:
        return [_file(every, row, int(pictures[content]), content in decoded) for row in same[content]]

    groups = _grouped(verdict.copies, same, files, keep)
    # Not every pair of a large group is a candidate, and each copy is described by the file that stays.
    direct = {(match.first, match.second) for match in verdict.copies}
    kept = [tuple(sorted((group[0], one))) for group in groups for one in group[1:]]
    apart = np.array([pair for pair in kept if pair not in direct], np.int64).reshape(-1, 2)
    linked = [
        match
        for match in remembered(verifier.verify, apart, digests, name, folder, None)
        if match.agreement.mutual >= LEAST_MUTUAL
    ]
    known.update({(match.first, match.second): match for match in linked})
    look_at(linked)
    direct.update((match.first, match.second) for match in linked)
    return Duplicates(
        groups=_described(every, same, groups, [known[pair] for pair in sorted(direct)], files),
        possible=[_possible(sketches, match) for match in verdict.possible[:MOST_POSSIBLE]],
        images=len(every) - len(skipped),
        threshold=verdict.threshold,
        copies=copies_agreement(sketches, read),
        different=verdict.different,
        skipped=[*skipped, *paths.skipped],
        links=links,
    )


def _same_bytes(every: Sketches, keep: Keep) -> list[list[int]]:
    """Return the rows of each content that can be used, the one that stays first."""
    contents: dict[bytes, list[int]] = defaultdict(list)
    for row, (digest, reason) in enumerate(zip(every.digests, every.reasons, strict=True)):
        if not reason:
            contents[digest.tobytes()].append(row)
    for rows in contents.values():
        if len(rows) > 1:
            stays = staying([_file(every, row, 0) for row in rows], keep).path
            rows.sort(key=lambda row: Path(every.names[row]) != stays)
    return list(contents.values())


def _pictures(every: Sketches, same: list[list[int]], copies: Sequence[Match]) -> NDArray[np.int64]:
    """Return the pixels of the picture of each content, (N,): those of a border are none."""
    pictures: NDArray[np.int64] = every.sizes[[rows[0] for rows in same]].prod(1)
    for match in copies:
        rows = [same[match.first][0], same[match.second][0]]
        if (inside := picture_in_border(match, every.boxes[rows], every.sizes[rows])) is not None:
            content, seen = inside
            pictures[content] = min(pictures[content], seen)
    return pictures


def _grouped(copies: Sequence[Match], same: list[list[int]], files: Files, keep: Keep) -> list[list[int]]:
    """Return the contents of each group, the one that stays first."""
    groups = Groups(len(same))
    for match in copies:
        groups.join(match.first, match.second)
    linked = {content for match in copies for content in (match.first, match.second)}
    alone = [[content] for content, rows in enumerate(same) if len(rows) > 1 and content not in linked]
    results = []
    for contents in [*groups.members(), *alone]:
        heads = {content: files(content)[0] for content in contents}
        stays = staying(list(heads.values()), keep)
        results.append(sorted(contents, key=lambda content: heads[content] is not stays))
    return results


def _described(
    every: Sketches, same: list[list[int]], groups: list[list[int]], matches: Sequence[Match], files: Files
) -> list[DuplicateGroup]:
    """Return the files of groups of contents, each compared with the first of its group if it could be."""
    linked: dict[int, dict[int, Match]] = defaultdict(dict)
    for match in matches:
        linked[match.first][match.second] = linked[match.second][match.first] = match
    results = []
    for contents in groups:
        described = []
        for content in contents:
            (own, *equal), others = files(content), linked[content]
            if content != contents[0]:
                best = max(others.values(), key=lambda match: match.agreement.one_sided)
                own = _copy(every, same, own, content, others.get(contents[0], best))
            described.append(own)
            described += [replace(file, kinds=("identical",), like=own.path) for file in equal]
        results.append(DuplicateGroup(tuple(described)))
    return sorted(results, key=lambda group: group.files[0].path)


def _file(every: Sketches, row: int, picture: int, decoded: bool = False) -> DuplicateFile:
    width, height = every.sizes[row].tolist()
    size, time = int(every.bytes[row]), int(every.times[row]) / 1e9
    return DuplicateFile(Path(every.names[row]), width, height, size, time, picture, decoded)


def _copy(
    every: Sketches, same: list[list[int]], file: DuplicateFile, content: int, match: Match
) -> DuplicateFile:
    other = match.first if match.second == content else match.second
    sizes = every.sizes[[same[match.first][0], same[match.second][0]]]
    return replace(
        file,
        kinds=kinds_of(match, sizes[0], sizes[1]),
        like=Path(every.names[same[other][0]]),
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
