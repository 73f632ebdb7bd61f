"""Candidates: pairs of images that may be copies, found without comparing every image with every other.

There are three searches: by thumbnails, where an image asks for itself in eight orientations and for 27
windows of itself, so that a mirrored, turned or cropped copy is found; by the middle of thumbnails, whitened,
where it asks for itself askew, without its border, and for windows again, so that copies are found where
images are as like each other as pages of text; and by features of a pretrained network, for crops that are no
such window. A thumbnail is compared by its lowest frequencies.

A view by which a pair is found is a guess of where the one image is in the other: a map, see `registration`.

Shapes: N images, B of a block, D dimensions, P pairs, M guesses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh

from autoencode.duplicates.features import THUMBNAIL, Sketches
from autoencode.duplicates.registration import inverse, onto_box, orientations, turned, warped
from autoencode.index.neighbours import VectorSpace, configure_faiss, fit_vector_space

FREQUENCIES = 8  # of each direction
# Similarities below these were not reached by copies of any kind but by chance (docs/results.md).
LEAST_THUMBNAIL, LEAST_WHITENED, LEAST_FEATURES, LEAST_WINDOW = 0.85, 0.5, 0.5, 0.35
_CROPS = 2  # of an image
# From here on, a query is compared with the vectors of the nearest lists only: a copy is in the nearest ones.
_EXACT_LIMIT, _PROBED = 5000, 12
_EVERY_VIEW = 500  # images up to which each view has neighbours of its own
_PRINCIPAL = 128
_SAMPLE = 20_000
_BLOCK = 8192
# Left, top and share of a side.
_WINDOWS = [
    (x * (1 - share), y * (1 - share), share)
    for share in (0.9, 0.8, 0.7)
    for x in (0.0, 0.5, 1.0)
    for y in (0.0, 0.5, 1.0)
]
_CENTRED = [((1 - share) / 2, (1 - share) / 2, share) for share in (0.95, 0.85, 0.75)]
_WHOLE = (0.0, 0.0, 1.0)
_MIDDLE = 0.8  # share of a side that is still all image when a copy is askew or lost a little at its edges
_ANGLES = (-4.5, -3.0, -1.5, 1.5, 3.0, 4.5)  # degrees: half a step moves a corner by a quarter of a pixel

Floats = NDArray[np.float32]
Pairs = NDArray[np.int64]
Found = tuple[Pairs, Floats]


@dataclass(frozen=True)
class Candidates:
    """Pairs of images that may be copies.

    Attributes:
        pairs: (P, 2) rows, each pair once, the lower row first, in order.
        guessed: (M,) which pair each guess is of, in order; pairs found by features alone have none.
        guesses: (M, 2, 3) maps from the first image of the pair to the second.
    """

    pairs: Pairs
    guessed: NDArray[np.int64]
    guesses: Floats


def find_candidates(sketches: Sketches) -> Candidates:
    """Return the pairs that may be copies, with guesses of where the one image is in the other."""
    count = len(sketches)
    if count < 2:
        return _candidates([(np.zeros((0, 2), np.int64), np.zeros((0, 2, 3), np.float32))])
    # Few images have few neighbours that only look alike, and each pair costs 10 ms.
    k = min(count - 1, 16 if count <= _EVERY_VIEW else 8 if count <= 5000 else 6 if count <= 20_000 else 4)
    codes = np.concatenate([_codes(thumbs, *_full()) for thumbs in _blocks(sketches.thumbnails)])
    found = [_neighbours(codes, fit_vector_space(codes, "cosine"), _views(sketches), k, LEAST_THUMBNAIL)]
    # Parts on one background differ in what is left after whitening.
    whole = _views(sketches, windows=False)
    found.append(_neighbours(codes, fit_vector_space(codes, "whitened"), whole, k // 2, LEAST_WHITENED))
    middle = np.concatenate([_codes(thumbs, *_middle(_WHOLE)) for thumbs in _blocks(sketches.thumbnails)])
    space = fit_vector_space(middle, "whitened")
    found.append(_neighbours(middle, space, _middle_views(sketches), k // 2, LEAST_WHITENED))
    features, nowhere = _principal(sketches.features), np.full((2, 3), np.nan, np.float32)
    own = ((start, features[start : start + _BLOCK], nowhere) for start in range(0, count, _BLOCK))
    # Where an image has many likes, what features alone find is seldom a copy.
    k = k if count <= _EXACT_LIMIT else k // 2
    found.append(_neighbours(features, fit_vector_space(features, "cosine"), own, k, LEAST_FEATURES))
    if count <= _EVERY_VIEW:
        found.append(_crops(sketches, codes))
    return _candidates(found)


def _crops(sketches: Sketches, codes: Floats) -> Found:
    """Return pairs of images and their likeliest crops, with maps, as `_neighbours` does; N x N are compared.

    Each window is whitened by itself: what tells one page of text from others is not what tells a part of it
    from other pages, and crops of pages are as like each other as pages are.

    Args:
        sketches: of a small folder.
        codes: (N, D) of the whole images.
    """
    windows = (*_WINDOWS, *_CENTRED)
    best, which = np.full((len(codes), len(codes)), -1, np.float32), np.zeros((len(codes),) * 2, np.intp)
    [thumbs] = _blocks(sketches.thumbnails)
    for number, (x, y, share) in enumerate(windows):
        seen = _codes(thumbs, _basis(y, share), _basis(x, share))
        space = fit_vector_space(seen, "whitened")
        scores = space.vectors(seen) @ space.vectors(codes).T
        which[scores > best] = number
        np.maximum(best, scores, out=best)
    np.fill_diagonal(best, -1)
    rows = np.argsort(-best, axis=1, kind="stable")[:, :_CROPS]
    one, rank = np.nonzero(np.take_along_axis(best, rows, 1) >= LEAST_WINDOW)
    other = rows[one, rank]
    maps = np.stack([_window(*window) for window in windows])
    return np.stack([one, other], 1), maps[which[one, other]]


def _candidates(found: list[Found]) -> Candidates:
    """Join what searches found: pairs (P, 2), maps (P, 2, 3) from the second to the first, NaN if unknown."""
    pairs, maps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    is_turned = pairs[:, 0] > pairs[:, 1]
    pairs = np.sort(pairs, axis=1)
    count = int(pairs.max(initial=0)) + 1
    keys, which = np.unique(pairs @ [count, 1], return_inverse=True)
    order = np.argsort(which, kind="stable")
    order = order[np.isfinite(maps[order, 0, 0])]
    guesses = torch.from_numpy(maps[order])
    guesses = torch.where(torch.from_numpy(is_turned[order])[:, None, None], guesses, inverse(guesses))
    return Candidates(np.stack(np.divmod(keys, count), 1), which[order], guesses.numpy())


def _neighbours(
    codes: Floats, space: VectorSpace, queries: Iterator[tuple[int, Floats, Floats]], k: int, least: float
) -> Found:
    """Return pairs of rows (P, 2), and maps (P, 2, 3) from the second to the first, see `_views`.

    The second images are those most similar to any view of the first.

    Args:
        codes: (N, D).
        space: in which they are compared.
        queries: (first row, codes, maps) of blocks of views.
        k: neighbours of a view; of a large folder, of all views of an image together.
        least: similarity of a pair.
    """
    index = _index(space.vectors(codes))
    best: dict[int, tuple[NDArray[Any], ...]] = {}
    for start, view, maps in queries:
        scores, rows = index.search(space.vectors(view), k + 1)
        own = np.arange(start, start + len(view))[:, None]
        scores = np.where((rows >= 0) & (rows != own), scores, -1).astype(np.float32)
        every = np.broadcast_to(maps[..., None, :, :], (*rows.shape, 2, 3))
        both = [*([best[start]] if start in best else []), (scores, rows, every)]
        joined = tuple(np.concatenate(parts, axis=1) for parts in zip(*both, strict=True))
        best[start] = joined if len(codes) <= _EVERY_VIEW else _most_similar(joined, k)
    pairs, where = [], []
    for start, (scores, rows, every) in best.items():
        one, rank = np.nonzero(scores >= least)
        pairs.append(np.stack([one + start, rows[one, rank]], 1))
        where.append(every[one, rank])
    return np.concatenate(pairs), np.concatenate(where)


def _most_similar(found: tuple[NDArray[Any], ...], k: int) -> tuple[NDArray[Any], ...]:
    """Return the k highest of each row of scores (B, n), with their different neighbours and maps."""
    scores, rows, maps = found
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    # One row of the folder may be near several views: its highest score counts.
    again = (rows[:, :, None] == rows[:, None, :]) & np.tri(rows.shape[1], k=-1, dtype=np.bool_)
    scores = np.where(again.any(2), -1, scores)
    last = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(order, last, 1)[..., None, None]
    kept = np.take_along_axis(scores, last, 1), np.take_along_axis(rows, last, 1)
    return *kept, np.take_along_axis(maps, chosen, 1)


def _index(vectors: Floats) -> Any:  # noqa: ANN401 - FAISS has no types
    """Return vectors (N, D) of length 1, ready to be searched by their inner product."""
    configure_faiss()
    count, size = vectors.shape
    index: Any = faiss.IndexFlatIP(size)
    if count > _EXACT_LIMIT:
        lists = round(2 * count**0.5)
        index = faiss.IndexIVFFlat(index, size, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(vectors[:: max(1, count // (40 * lists))]))
        index.nprobe = _PROBED
    index.add(vectors)
    return index


def _blocks(thumbnails: NDArray[np.uint8]) -> Iterator[Floats]:
    for start in range(0, len(thumbnails), _BLOCK):
        yield thumbnails[start : start + _BLOCK].astype(np.float32)


def _basis(start: float, share: float) -> Floats:
    """Return the lowest cosines on a window of a side, (FREQUENCIES, THUMBNAIL): weights of the pixels."""
    edges = np.arange(THUMBNAIL + 1) / THUMBNAIL
    low, high = np.maximum(edges[:-1], start), np.minimum(edges[1:], start + share)
    place = ((low + high) / 2 - start) / share
    weight = np.maximum(high - low, 0) / share
    basis = weight * np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * place)
    basis[1:] *= np.sqrt(2)
    weights: Floats = basis.astype(np.float32)
    return weights


def _full() -> tuple[Floats, Floats]:
    return _basis(0, 1), _basis(0, 1)


def _codes(thumbnails: Floats, rows: Floats, columns: Floats) -> Floats:
    """Return the frequencies of thumbnails without the mean, (N, D) of length 1."""
    values = (rows @ thumbnails @ columns.T).reshape(len(thumbnails), -1)[:, 1:]
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    codes: Floats = (values / np.maximum(lengths, 1e-6)).astype(np.float32)
    return codes


def _views(sketches: Sketches, *, windows: bool = True) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield (first row, codes, map) of blocks of images: in eight orientations, then by windows.

    The map, (2, 3) or (B, 2, 3), takes points of the view to points of the image.
    """
    bases = [(_basis(y, share), _basis(x, share), _window(x, y, share)) for x, y, share in _WINDOWS]
    turns = np.pad(orientations().numpy(), ((0, 0), (0, 0), (0, 1)))
    for number, thumbs in enumerate(_blocks(sketches.thumbnails)):
        start = number * _BLOCK
        for base, four in ((thumbs, turns[:4]), (thumbs.transpose(0, 2, 1), turns[4:])):
            views = (base, base[:, :, ::-1], base[:, ::-1], base[:, ::-1, ::-1])
            for seen, turn in zip(views, four, strict=True):
                yield start, _codes(seen, *_full()), turn
        for rows, columns, window in bases if windows else []:
            yield start, _codes(thumbs, rows, columns), window


def _window(x: float, y: float, share: float) -> Floats:
    """Return the map (2, 3) from a window of an image, given in shares of its sides, to its frame."""
    window: Floats = onto_box(torch.tensor([[x, y, x + share, y + share]]) * 2 - 1)[0].numpy()
    return window


def _middle(window: tuple[float, float, float]) -> tuple[Floats, Floats]:
    """Return the bases of rows and columns for the middle of a window of an image."""
    x, y, share = window
    edge = share * (1 - _MIDDLE) / 2
    return _basis(y + edge, share * _MIDDLE), _basis(x + edge, share * _MIDDLE)


def _middle_views(sketches: Sketches) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield views like those of `_views`: of the middle, of windows, askew, and without a border."""
    windows = [(*_middle(window), _window(*window)) for window in (_WHOLE, *_CENTRED, *_WINDOWS)]
    for number, thumbs in enumerate(_blocks(sketches.thumbnails)):
        start = number * _BLOCK
        for rows, columns, window in windows:
            yield start, _codes(thumbs, rows, columns), window
        sizes = torch.from_numpy(sketches.sizes[start : start + _BLOCK]).float().clamp(min=1)
        aspect = sizes[:, 0] / sizes[:, 1]
        for angle in _ANGLES:
            turn = turned(angle, aspect)
            askew, _ = warped(torch.from_numpy(thumbs)[:, None], turn, THUMBNAIL)
            yield start, _codes(askew[:, 0].numpy(), *_middle(_WHOLE)), turn.numpy()
        # A border is as wide as it is: each image has a window of its own.
        onto = onto_box(torch.from_numpy(sketches.boxes[start : start + _BLOCK])).numpy()
        boxes = (sketches.boxes[start : start + _BLOCK] + 1) / 2
        framed = np.flatnonzero((boxes != [0, 0, 1, 1]).any(1))
        content = _codes(thumbs, *_middle(_WHOLE))
        for row in framed.tolist():
            (left, top), (width, height) = boxes[row, :2], boxes[row, 2:] - boxes[row, :2]
            edge = (1 - _MIDDLE) / 2
            bases = (
                _basis(top + edge * height, _MIDDLE * height),
                _basis(left + edge * width, _MIDDLE * width),
            )
            content[row] = _codes(thumbs[row : row + 1], *bases)[0]
        if len(framed):
            yield start, content, onto


def _principal(features: NDArray[np.float16]) -> Floats:
    """Return features less their mean, in their principal directions, (N, at most 128)."""
    rows = np.linspace(0, len(features) - 1, min(len(features), _SAMPLE)).astype(int)
    sample = features[rows].astype(np.float32)
    mean = sample.mean(0)
    centred = sample - mean
    size = features.shape[1]
    # In fp64: of equal images the covariance is zero but for rounding.
    covariance = (centred.T @ centred).astype(np.float64)
    _, directions = eigh(covariance, subset_by_index=(size - _PRINCIPAL, size - 1))
    kept = directions.astype(np.float32)
    blocks = (features[start : start + _BLOCK] for start in range(0, len(features), _BLOCK))
    return np.concatenate([(block.astype(np.float32) - mean) @ kept for block in blocks])
