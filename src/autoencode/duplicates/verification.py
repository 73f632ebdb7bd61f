"""Verification of candidates: most are rejected by thumbnails; the others are registered and compared.

Pairs that were compared before are remembered, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoencode.atomic import atomic_file
from autoencode.duplicates.agreement import Agreement, agreements, grey_of
from autoencode.duplicates.features import DAMAGED, read_arrays
from autoencode.duplicates.registration import (
    coarse_maps,
    contrast,
    framed_maps,
    refined,
    shifted_maps,
    turned,
)
from autoencode.errors import ImageError
from autoencode.pixels import to_float

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.duplicates.candidates import Candidates
    from autoencode.duplicates.features import Sketches

Pairs = NDArray[np.int64]
Read = Callable[[int], NDArray[np.uint8]]

# Changed when pairs are compared in another way: those compared before count no more.
_VERSION = 3
_BATCH = 64  # pairs
_SCREENED = 256  # pairs; thumbnails are small
_BLOCK = 2048  # pairs kept at once: what a kill can cost
_KEPT_IMAGES = 2000  # decoded images at hand, 100 MB
# Correlations below these were reached by no copy.
_LEAST_COARSE, _LEAST_SHIFTED = 0.4, 0.25
# Correlations of thumbnails by a guess as it is, and after a few steps: of copies one in 30 is below, all of
# surfaces without contrast, and of other pairs 24 in 25.
_LEAST_GUESSED, _LEAST_LIKELY = 0.1, 0.45
_ASKEW = 3.0  # degrees
_UPRIGHT = 0.005  # by how much more a mirrored or turned map has to correlate


@dataclass(frozen=True)
class Match:
    """Two images that were registered.

    Attributes:
        first, second: rows of the sketches.
        map: (2, 3), from points of the first to those of the second, see `registration`.
        agreement: how far they are one picture.
    """

    first: int
    second: int
    map: NDArray[np.float32]
    agreement: Agreement


class Verifier:
    """Registers and compares pairs of images.

    Args:
        sketches: of the images.
        read: returns the pixels (S, S, 3) of a row; raises ImageError if its file is gone or changed.
        is_thorough: whether pairs whose outlines do not match are still looked at for a part that was cut
            out: pages and parts fill their frames alike. It takes 5 ms a pair, too long for large folders.
    """

    def __init__(self, sketches: Sketches, read: Read, *, is_thorough: bool) -> None:
        self.sketches, self.is_thorough, self._read = sketches, is_thorough, read
        self._kept: OrderedDict[int, NDArray[np.uint8] | None] = OrderedDict()

    def screened(self, candidates: Candidates) -> Pairs:
        """Return the pairs whose thumbnails agree, (P, 2), for folders in which there is no time for all.

        A guess is followed for a few steps, which takes a tenth of a millisecond. A pair that has none is
        looked for upright, in half of one.
        """
        pairs, guessed = candidates.pairs, candidates.guessed
        scores = np.full(len(pairs), -1, np.float32)
        alone = np.flatnonzero(np.bincount(guessed, minlength=len(pairs)) == 0)
        with torch.inference_mode():
            for start in range(0, len(guessed), _SCREENED):
                rows = guessed[start : start + _SCREENED]
                maps = torch.from_numpy(candidates.guesses[start : start + _SCREENED])
                np.maximum.at(scores, rows, _followed(*self._thumbnails(pairs[rows]), maps))
            for start in range(0, len(alone), _SCREENED):
                rows = alone[start : start + _SCREENED]
                one, other = self._thumbnails(pairs[rows])
                maps = coarse_maps(one, other, self._stretch(pairs[rows]), upright=True)
                scores[rows] = _followed(one, other, maps[:, 0])
        return pairs[scores >= _LEAST_LIKELY]

    def verify(self, pairs: Pairs) -> list[Match | None]:
        """Return a match for each of the pairs (P, 2); None where they could not be registered."""
        found: list[Match | None] = []
        with torch.inference_mode():
            for start in range(0, len(pairs), _BATCH):
                found += self._verify_batch(pairs[start : start + _BATCH])
        return found

    def _verify_batch(self, pairs: Pairs) -> list[Match | None]:
        maps, scores = self._coarse(pairs)
        likely = scores[:, 0] >= _LEAST_COARSE
        passed = torch.ones_like(likely) if self.is_thorough else likely
        rows = [
            row
            for row in passed.nonzero()[:, 0].tolist()
            if all(self._pixels(image) is not None for image in pairs[row].tolist())
        ]
        results: list[Match | None] = [None] * len(pairs)
        if rows:
            for row, match in zip(rows, self._fine(pairs[rows], maps[rows], likely[rows]), strict=True):
                results[row] = match
        return results

    def look_closely(self, matches: Sequence[Match], read: Read) -> list[Match | None]:
        """Return matches compared again at `SHARP_SIDE` pixels; None where a file is gone.

        Args:
            matches: from `verify`.
            read: returns the pixels (S, S, 3) of a row at that size; raises ImageError like that of `verify`.
        """
        found: list[Match | None] = []
        with torch.inference_mode():
            for match in matches:
                try:
                    first, second = (to_float(read(row)[None]) for row in (match.first, match.second))
                except ImageError:
                    found.append(None)
                    continue
                best = torch.from_numpy(match.map)[None]
                grey = [grey_of(image) for image in (first, second)]
                for reduced in (2, 1):
                    sides = [contrast(F.avg_pool2d(side[None], reduced)[0]) for side in grey]
                    best, _ = refined(sides[0], sides[1], best, 2)
                rows = np.array([[match.first, match.second]])
                box = torch.from_numpy(self.sketches.boxes[rows[:, 1]])
                [agreement] = agreements(first, second, best, *self._sizes(rows), box)
                found.append(Match(match.first, match.second, best[0].numpy(), agreement))
        return found

    def _coarse(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the two best maps (P, 2, 2, 3) by thumbnails, and their scores (P, 2)."""
        one, other = self._thumbnails(pairs)
        first_box, second_box = (torch.from_numpy(self.sketches.boxes[rows]) for rows in pairs.T)
        maps = coarse_maps(one, other, self._stretch(pairs))
        framed = framed_maps(first_box, second_box)
        _, scores = refined(_each(one, 8), _each(other, 8), framed.flatten(0, 1), 0)
        best = (scores.view(-1, 8) + _UPRIGHT * (torch.arange(8) == 0)).argmax(1)
        # A scan that is a little askew: from a straight start, lines of text lead to other lines.
        first_size, _ = self._sizes(pairs)
        aspect = first_size[:, 0] / first_size[:, 1]
        askew = [turned(angle, aspect) for angle in (-_ASKEW, 0, _ASKEW)]
        maps = torch.cat([maps, framed[torch.arange(len(best)), best][:, None], torch.stack(askew, 1)], 1)
        likely, _ = _best(one, other, maps, 3, 3)
        return _best(one, other, likely, 4, 2)

    def _fine(self, pairs: Pairs, maps: Tensor, likely: Tensor) -> list[Match | None]:
        images = [torch.cat([to_float(self._at_hand(row)) for row in rows.tolist()]) for rows in pairs.T]
        sizes = self._sizes(pairs)
        grey = [grey_of(side) for side in images]
        full = [contrast(side) for side in grey]
        shifted = shifted_maps(grey[0], grey[1], *sizes)
        _, shifted_score = refined(full[0], full[1], shifted, 0)
        chosen = (likely | (shifted_score >= _LEAST_SHIFTED)).nonzero()[:, 0]
        results: list[Match | None] = [None] * len(pairs)
        if not len(chosen):
            return results
        half = [contrast(F.avg_pool2d(side[chosen, None], 2)[:, 0]) for side in grey]
        every = torch.cat([maps[chosen], shifted[chosen][:, None]], 1)
        # Two to the end, as lines of text or of a grid fit in several places until they are seen sharply.
        two, _ = _best(half[0], half[1], every, 3, 2)
        two, _ = _best(half[0], half[1], two, 3, 2)
        full = [side[chosen] for side in full]
        final, _ = _best(full[0], full[1], two, 0, 1)
        final, _ = _best(full[0], full[1], final, 5, 1)
        boxes = torch.from_numpy(self.sketches.boxes[pairs[chosen.numpy(), 1]])
        first, second = (side[chosen] for side in images)
        found = agreements(first, second, final[:, 0], sizes[0][chosen], sizes[1][chosen], boxes)
        for row, map_, agreement in zip(chosen.tolist(), final[:, 0], found, strict=True):
            if agreement.overlap:
                one, other = pairs[row].tolist()
                results[row] = Match(one, other, map_.numpy(), agreement)
        return results

    def _thumbnails(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the thumbnails of both images of pairs, (P, 32, 32) each, normalised by their contrast."""
        thumbnails = self.sketches.thumbnails
        first, second = (contrast(torch.from_numpy(thumbnails[rows]).float() / 255) for rows in pairs.T)
        return first, second

    def _stretch(self, pairs: Pairs) -> Tensor:
        """Return width over height of the second image, over that of the first, (P,)."""
        first, second = (size[:, 0] / size[:, 1] for size in self._sizes(pairs))
        stretch: Tensor = second / first
        return stretch

    def _sizes(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        first, second = (torch.from_numpy(self.sketches.sizes[rows]).float() for rows in pairs.T)
        return first, second

    def _pixels(self, row: int) -> NDArray[np.uint8] | None:
        if row not in self._kept:
            try:
                self._kept[row] = self._read(row)
            except ImageError:  # gone since it was sketched
                self._kept[row] = None
            while len(self._kept) > _KEPT_IMAGES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(row)
        return self._kept[row]

    def _at_hand(self, row: int) -> NDArray[np.uint8]:
        pixels = self._pixels(row)
        assert pixels is not None  # a batch has fewer images than are kept
        return pixels[None]


def _followed(first: Tensor, second: Tensor, maps: Tensor) -> NDArray[np.float32]:
    """Return the correlation (P,) that thumbnails reach from maps (P, 2, 3), or have if it is very low."""
    _, scores = refined(first, second, maps, 0)
    near = (scores >= _LEAST_GUESSED).nonzero()[:, 0]
    _, scores[near] = refined(first[near], second[near], maps[near], 3)
    found: NDArray[np.float32] = scores.numpy()
    return found


def _each(images: Tensor, count: int) -> Tensor:
    return images[:, None].expand(-1, count, -1, -1).flatten(0, 1)


def _best(first: Tensor, second: Tensor, maps: Tensor, steps: int, kept: int) -> tuple[Tensor, Tensor]:
    """Refine maps (P, H, 2, 3); return the best few, (P, kept, 2, 3), and their scores (P, kept)."""
    count = maps.shape[1]
    refined_maps, scores = refined(_each(first, count), _each(second, count), maps.flatten(0, 1), steps)
    refined_maps, scores = refined_maps.view(-1, count, 2, 3), scores.view(-1, count)
    # A symmetrical picture is its own mirror image, and nobody mirrored it.
    size = refined_maps[..., :2].abs()
    upright = refined_maps[..., :2].diagonal(dim1=-2, dim2=-1).amin(-1) > torch.maximum(
        size[..., 0, 1], size[..., 1, 0]
    )
    which = (scores + _UPRIGHT * upright).topk(kept, 1).indices
    chosen = refined_maps.gather(1, which[..., None, None].expand(-1, -1, 2, 3))
    return chosen, scores.gather(1, which)


def remembered(
    verify: Callable[[Pairs], list[Match | None]],
    pairs: Pairs,
    digests: NDArray[np.uint8],
    name: str,
    folder: Path | None,
    progress: Progress | None,
) -> list[Match]:
    """Return the matches among pairs (P, 2), in their order; those in the folder are not compared again.

    Args:
        verify: compares pairs.
        pairs: of rows.
        digests: (N, 32), of the files.
        name: of the way in which they are compared.
        folder: of pairs compared before, which takes the new ones; None keeps none.
        progress: called with (pairs done, pairs in all).

    Raises:
        OutputError: the folder cannot be written.
    """
    keys = [digests[pair].tobytes() for pair in pairs]
    known: dict[bytes, NDArray[np.float32]] = {}
    blocks = 0
    if folder is not None:
        for path in sorted(folder.glob(f"{name}-{_VERSION}-*.npz")):
            blocks += 1
            with contextlib.suppress(*DAMAGED):
                arrays = read_arrays(path, folder)
                compared, measured = arrays["digests"], arrays["values"]
                if measured.shape != (len(compared), len(_values(None))) or measured.dtype != np.float32:
                    raise ValueError("values of another shape")
                known.update(zip((key.tobytes() for key in compared), measured, strict=True))
    missing = [row for row, key in enumerate(keys) if key not in known]
    done = len(keys) - len(missing)
    for start in range(0, len(missing), _BLOCK):
        rows = missing[start : start + _BLOCK]
        values = []
        for part in range(0, len(rows), _BATCH):
            values += [_values(match) for match in verify(pairs[rows[part : part + _BATCH]])]
            if progress:
                progress(done + start + len(values), len(keys))
        known.update({keys[row]: value for row, value in zip(rows, values, strict=True)})
        if folder is not None:
            with atomic_file(folder / f"{name}-{_VERSION}-{blocks:05}.npz") as file:
                np.savez(file, digests=digests[pairs[rows]].reshape(len(rows), -1), values=np.stack(values))
            blocks += 1
    matches = (_match(pair, known[key]) for pair, key in zip(pairs.tolist(), keys, strict=True))
    return [match for match in matches if match is not None]


def _values(match: Match | None) -> NDArray[np.float32]:
    values = np.full(17, np.nan, np.float32)
    if match is not None:
        agreement = match.agreement
        values[:6] = match.map.ravel()
        values[6:13] = (
            *(agreement.one_sided, agreement.mutual, agreement.overlap, agreement.detail),
            *(agreement.gain, agreement.offset, agreement.chroma),
        )
        if agreement.differs is not None:
            values[13:] = agreement.differs
    return values


def _match(pair: list[int], values: NDArray[np.float32]) -> Match | None:
    if np.isnan(values[0]):
        return None
    numbers = [float(value) for value in values[6:]]
    differs = None if np.isnan(numbers[7]) else (numbers[7], numbers[8], numbers[9], numbers[10])
    return Match(pair[0], pair[1], values[:6].reshape(2, 3), Agreement.of(numbers[:7], differs))
