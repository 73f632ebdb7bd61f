"""Near-duplicates: the same picture saved again, in another size or quality, or cropped a little.

Shapes: R distinct contents, D code dimensions. Pixels are (H, W, 3) in 0..255.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.errors import ConfigError
from autoencode.index.base import picture_of
from autoencode.pixels import to_float

if TYPE_CHECKING:
    from autoencode.data.manifest import Entries, Entry
    from autoencode.data.pack import Pack
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.embedding import ImageEncoder
    from autoencode.index.neighbours import Floats, NearestNeighbours, VectorSpace

# An altered copy as sites and messengers make them, and the share of such copies that the threshold finds.
QUALITY, SHRINK, BORDER = 50, 0.75, 0.02
FOUND_SHARE = 0.95
SAMPLE = 128  # images altered to see how far their codes move
_MOST_PAIRS_DRAWN = 48  # nobody looks through a longer sheet

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class NearPair:
    """Two images of different content that look the same to the model.

    Attributes:
        first, second: the files.
        score: how near they are, as in a search.
    """

    first: Path
    second: Path
    score: float


@dataclass(frozen=True)
class NearDuplicates:
    """The results of `Index.near_duplicates`.

    Attributes:
        exact: groups of at least two files with the same bytes, ordered by the first path.
        near: pairs of different bytes, nearest first; one file of each group of exact duplicates takes part.
        more: number of further pairs, left out because of the limit.
        threshold: the score from which pairs were listed.
        gone: the files listed that are no longer there.
    """

    exact: list[list[Path]]
    near: list[NearPair]
    more: int
    threshold: float
    gone: frozenset[Path] = frozenset()

    def head(self, count: int) -> tuple[list[list[Path]], list[NearPair]]:
        """Return up to `count` groups and pairs in all, half of each kind unless there are fewer of one."""
        groups = self.exact[: max(count // 2, count - len(self.near))]
        return groups, self.near[: count - len(groups)]

    @property
    def redundant(self) -> int:
        """How many files could be deleted and leave one file of each group of exact duplicates."""
        return sum(max(0, sum(path not in self.gone for path in group) - 1) for group in self.exact)


def near_duplicate_threshold(
    encoder: ImageEncoder, space: VectorSpace, codes: Floats, rows: NDArray[np.int64], pack: Pack
) -> float:
    """Return the score that 95 % of images reach with an altered copy of themselves.

    The copy lost a border of 2 % on every side and was saved at three quarters of the size as a JPEG of
    quality 50.

    Args:
        encoder: what the codes were made with.
        space: how codes are compared.
        codes: (R, D).
        rows: (R,), the row of each code in the pack.
        pack: the images.
    """
    # Codes are in the order of a hash of their images: the first ones are a random sample.
    codes, pixels = codes[:SAMPLE], pack.pixels(rows[:SAMPLE])
    altered = encoder.encode(to_float(np.stack([_altered(picture) for picture in pixels])))
    scores = space.scores(space.vectors(codes), space.vectors(altered))
    return float(np.quantile(scores, 1 - FOUND_SHARE if space.is_similarity else FOUND_SHARE))


def find_near_duplicates(
    nearest: NearestNeighbours, entries: Entries, folder: Path, threshold: float, limit: int
) -> NearDuplicates:
    """Find exact and near-duplicates; see `Index.near_duplicates`.

    Args:
        nearest: the codes of the distinct contents.
        entries: the images, ordered by content; `row` of each is its row of the codes.
        folder: what the paths of the entries are relative to.
        threshold: the score from which a pair is listed.
        limit: the most pairs to list.

    Raises:
        ConfigError: the threshold is no score of the distance, or the limit is below 1.
    """
    space = nearest.space
    if not (-1 <= threshold <= 1 if space.is_similarity else 0 <= threshold < float("inf")):
        wanted = "from -1 to 1" if space.is_similarity else "from 0"
        raise ConfigError(
            f"The threshold is {threshold}; a score of the distance {space.distance} lies {wanted}."
        )
    if limit < 1:
        raise ConfigError(f"The limit of pairs is {limit}; it must be at least 1.")
    starts = np.searchsorted(entries.rows, np.arange(len(nearest.codes) + 1))

    def file_of(row: int) -> Path:
        """Return the first file of a content that is still there, or the first of all."""
        paths = [folder / entries[index].path for index in range(starts[row], starts[row + 1])]
        return next((path for path in paths if path.is_file()), paths[0])

    pairs, more = nearest_pairs(nearest, threshold, limit)
    near = [NearPair(file_of(one), file_of(other), score) for one, other, score in pairs]
    exact = exact_duplicates(entries, folder)
    listed = {*itertools.chain(*exact), *(path for pair in near for path in (pair.first, pair.second))}
    gone = frozenset(path for path in listed if not path.is_file())
    return NearDuplicates(exact, near, more, threshold, gone)


def exact_duplicates(entries: Sequence[Entry], folder: Path) -> list[list[Path]]:
    """Return the groups of files with the same bytes, ordered by their first path."""
    groups: dict[str | None, list[Path]] = {}
    for entry in entries:
        groups.setdefault(entry.sha256, []).append(folder / entry.path)
    return sorted(group for group in groups.values() if len(group) > 1)


def nearest_pairs(
    nearest: NearestNeighbours, threshold: float, limit: int
) -> tuple[list[tuple[int, int, float]], int]:
    """Return up to `limit` pairs (row, row, score) within the threshold, nearest first, and how many more."""
    kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    total = 0
    for block in nearest.pairs(threshold):
        total += len(block[0])
        # Cut at the limit block by block: all pairs of many equal images would not fit in memory.
        first, second, scores = (np.concatenate(parts) for parts in zip(kept, block, strict=True))
        order = np.lexsort((second, first, -scores if nearest.space.is_similarity else scores))[:limit]
        kept = (first[order], second[order], scores[order])
    pairs = list(zip(*(part.tolist() for part in kept), strict=True))
    return pairs, total - len(pairs)


def _altered(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    width, height = picture.size
    box = (BORDER * width, BORDER * height, (1 - BORDER) * width, (1 - BORDER) * height)
    size = (max(1, round(width * SHRINK)), max(1, round(height * SHRINK)))
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC, box).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file).resize(picture.size, Image.Resampling.BICUBIC))


def duplicates_sheet(
    found: NearDuplicates, preprocessing: Preprocessing, limits: Limits | None = None
) -> Pixels:
    """Draw up to 48 pairs side by side: two files of each group of exact duplicates, then the nearest pairs.

    Raises:
        ConfigError: there is no pair.
    """
    from autoencode.figures import contact_sheet  # loads Matplotlib, which a search without a sheet is spared

    groups, near = found.head(_MOST_PAIRS_DRAWN)
    # Prefer files that still exist.
    exact = [sorted(group, key=lambda path: path in found.gone)[:2] for group in groups]
    pairs = [((first, second), "same bytes") for first, second in exact]
    pairs += [((pair.first, pair.second), f"{pair.score:.4f}") for pair in near]
    if not pairs:
        raise ConfigError("There is no pair to draw.")
    columns = [
        (heading, np.stack([picture_of(files[side], preprocessing, limits)[0] for files, _ in pairs]))
        for side, heading in enumerate(("first", "second"))
    ]
    captions = [f"{text}{' (gone)' * bool({*files} & found.gone)}" for files, text in pairs]
    return contact_sheet(columns, captions=captions)
