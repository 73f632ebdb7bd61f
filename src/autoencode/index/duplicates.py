"""Near-duplicates: the same picture saved again, in another size or quality, or cropped a little.

Shapes: B images, D code size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.pixels import to_float

if TYPE_CHECKING:
    from autoencode.data.manifest import Entry
    from autoencode.data.pack import Pack
    from autoencode.embedding import ImageEncoder
    from autoencode.index.neighbours import Floats, Nearest, Space

SAMPLE = 128  # images copied to see how far their codes move
QUALITY, SHRINK, BORDER = 50, 0.75, 0.02
FOUND_SHARE = 0.95

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
    """What `Index.near_duplicates` found.

    Attributes:
        exact: groups of files with the same bytes, each of at least two, ordered by the first path.
        near: pairs of different bytes, nearest first. Of exact copies only one takes part.
        more: further pairs that were found and left out, as there were too many.
        threshold: the score at which pairs were listed.
        gone: those of the files that are no longer there.
    """

    exact: list[list[Path]]
    near: list[NearPair]
    more: int
    threshold: float
    gone: frozenset[Path] = frozenset()

    def first(self, count: int) -> tuple[list[list[Path]], list[NearPair]]:
        """Return so many groups and pairs in all: half of each kind, and what one leaves for the other."""
        groups = self.exact[: max(count // 2, count - len(self.near))]
        return groups, self.near[: count - len(groups)]

    @property
    def copies(self) -> int:
        """How many of the files of the same bytes could go, so that one of each is left."""
        return sum(max(0, sum(path not in self.gone for path in group) - 1) for group in self.exact)


def copy_threshold(
    encoder: ImageEncoder, space: Space, codes: Floats, rows: NDArray[np.int64], pack: Pack
) -> float:
    """Return the score that 95 % of pictures reach with a copy of themselves.

    The copy lost a border of 2 % on every side and was saved again at three quarters of the size as a JPEG of
    quality 50, as sites and messengers make them.

    Args:
        encoder: what the codes were made with.
        space: how codes are compared.
        codes: (R, D).
        rows: (R,), the row of the pack that each code is of.
        pack: the images.
    """
    # Codes are in the order of a hash of their images: the first ones are a random sample.
    codes, pixels = codes[:SAMPLE], pack.pixels(rows[:SAMPLE])
    copies = encoder.encode(to_float(np.stack([_copied(picture) for picture in pixels])))
    scores = space.scores(space.vectors(codes), space.vectors(copies))
    return float(np.quantile(scores, 1 - FOUND_SHARE if space.is_similarity else FOUND_SHARE))


def exact_copies(entries: Sequence[Entry], folder: Path) -> list[list[Path]]:
    """Return the groups of files with the same bytes, ordered by their first path."""
    groups: dict[str | None, list[Path]] = {}
    for entry in entries:
        groups.setdefault(entry.sha256, []).append(folder / entry.path)
    return sorted(group for group in groups.values() if len(group) > 1)


def nearest_pairs(nearest: Nearest, threshold: float, limit: int) -> tuple[list[tuple[int, int, float]], int]:
    """Return up to `limit` pairs (row, row, score) at least that near, nearest first, and how many more."""
    kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    total = 0
    for block in nearest.pairs(threshold):
        total += len(block[0])
        first, second, scores = (np.concatenate(parts) for parts in zip(kept, block, strict=True))
        order = np.lexsort((second, first, -scores if nearest.space.is_similarity else scores))[:limit]
        kept = (first[order], second[order], scores[order])
    pairs = list(zip(*(part.tolist() for part in kept), strict=True))
    return pairs, total - len(pairs)


def _copied(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    width, height = picture.size
    box = (BORDER * width, BORDER * height, (1 - BORDER) * width, (1 - BORDER) * height)
    size = (max(1, round(width * SHRINK)), max(1, round(height * SHRINK)))
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC, box).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file).resize(picture.size, Image.Resampling.BICUBIC))
