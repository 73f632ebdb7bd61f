"""Codes laid out in a plane by principal components or UMAP, in units of their effect on an image; in groups.

Principal components take a moment and keep distances as well as a plane can; UMAP takes longer and keeps
neighbours together. Groups of similar images do not depend on the layout, and name its regions.

Shapes: N images, D code size. Codes are (N, D).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.errors import MissingExtraError

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.models.autoencoder import Autoencoder

Layout = Literal["pca", "umap"]
Metric = Literal["cosine", "euclidean"]

NEIGHBOURS = 15  # images that UMAP keeps near each; its own default
FEWEST = 5  # with fewer images UMAP has no neighbourhoods to keep
MOST_GROUPS = 12  # as many as there are colours that can be distinguished on a map
GROUP_IMAGES = 20  # on average at least, in a group
FITTED_IMAGES = 10_000  # more move the means of twelve groups little, and take longer
COMPARED_IMAGES = 1000  # of a group, to find a typical one
ALIKE = 1 / 4  # share of a group that is like a typical image: ten strays of one kind are less

Vectors = NDArray[np.float32]
Array = NDArray[np.float64]


class CodeMap(NamedTuple):
    """A layout of codes.

    Attributes:
        plane: (N, 2) float64. Principal components are centred, and the first column varies most.
        explained: fraction of the variance of the codes in the plane, in [0, 1]; None for UMAP.
    """

    plane: Array
    explained: float | None


class Groups(NamedTuple):
    """Images in groups of similar ones, the largest group first.

    Attributes:
        members: (N,) int64, the group of each image.
        typical: (G,) int64, the position of an image of each group that many of the group are like.
    """

    members: NDArray[np.int64]
    typical: NDArray[np.int64]


def code_map(model: Autoencoder, codes: Vectors) -> CodeMap:
    """Lay out codes (N, D), N at least 1, by principal component analysis."""
    return principal_map(scaled_by_effect(model, codes))


def neighbour_map(
    centred: Array, progress: Progress | None = None, *, metric: Metric = "euclidean"
) -> CodeMap:
    """Lay out codes by UMAP (McInnes, Healy & Melville 2018), starting at their principal plane.

    Equal codes give equal maps. Fewer than `FEWEST` images stay in their principal plane. No model is needed,
    so that the work can be done in another process.

    Args:
        centred: (N, D), N at least 1, about their mean; codes from `scaled_by_effect`.
        progress: called with (rounds done, rounds in total) once the neighbours are known.
        metric: what neighbours are near by. Descriptors of an index need the cosine: an image unlike all
            others has a short vector there, and by the Euclidean distance it is the nearest to each of them.

    Raises:
        MissingExtraError: UMAP needs the optional part `map`.
    """
    umap = _umap()
    start = principal_map(centred).plane
    if len(centred) < FEWEST:
        return CodeMap(start, None)
    # With a little noise: a direction in which all codes are equal has no scale.
    start = 10 * start / max(np.abs(start).max(), 1e-12)
    start += np.random.default_rng(0).normal(0, 1e-4, start.shape)
    layout = umap.UMAP(
        n_neighbors=min(NEIGHBOURS, len(centred) - 1),
        init=start.astype(np.float32),
        metric=metric,
        random_state=0,
        n_jobs=1,
        tqdm_kwds={"disable": progress is None, "file": _Rounds(progress), "bar_format": "{n} {total}\n"},
    )
    with _same_threads():
        return CodeMap(layout.fit_transform(centred.astype(np.float32)).astype(np.float64), None)


def similar_groups(centred: Array) -> Groups:
    """Divide images into at most `MOST_GROUPS` groups of similar ones by k-means.

    Equal vectors give equal groups.

    Args:
        centred: (N, D), N at least 1.
    """
    from sklearn.cluster import KMeans  # half a second that a layout alone is spared

    # At random: every third of all could be of one kind.
    some = np.random.default_rng(0).permutation(len(centred))[:FITTED_IMAGES]
    fitted = centred[some].astype(np.float32)
    different = len(np.unique(fitted, axis=0))
    wanted = max(1, min(MOST_GROUPS, len(centred) // GROUP_IMAGES, different))
    found = KMeans(wanted, n_init=4, random_state=0).fit(fitted).predict(centred.astype(np.float32))
    _, found, sizes = np.unique(found, return_inverse=True, return_counts=True)
    members = np.argsort(np.argsort(-sizes, kind="stable"))[found]
    return Groups(
        members, np.array([_typical(centred, np.flatnonzero(members == at)) for at in range(len(sizes))])
    )


def _typical(vectors: Array, inside: NDArray[np.int64]) -> int:
    """Return the position of the image, of those `inside` a group, whose neighbours are the nearest."""
    # Not the image nearest to the mean: the mean lies between the kinds that a group holds, where strays are.
    some = np.random.default_rng(0).permutation(inside)[:COMPARED_IMAGES]
    # Compared by angle: an image unlike the others has a short vector in dimensions in which they differ, and
    # would be nearer to each than they are to each other: an anime face was typical of 270 flowers.
    lengths = np.linalg.norm(vectors[some], axis=1, keepdims=True)
    directions = vectors[some] / np.maximum(lengths, 1e-12)
    distances = -directions @ directions.T
    near = int(ALIKE * len(some))
    return int(some[np.partition(distances, near, axis=1)[:, near].argmin()])


@contextmanager
def _same_threads() -> Iterator[None]:
    """Restore torch's number of threads: UMAP sets that of the process, and the bits of sums depend on it."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Rounds:
    """The file UMAP writes its progress to. An exception raised by `progress` ends the work."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def write(self, text: str) -> None:
        done, _, total = text.strip().partition(" ")
        if self._progress and done.isdecimal() and total.isdecimal():
            self._progress(int(done), int(total))

    def flush(self) -> None:
        """Do nothing: `write` reports at once."""


def _umap() -> Any:  # noqa: ANN401 - it has no types
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # UMAP warns that TensorFlow is missing
            import umap
    except ImportError as err:
        raise MissingExtraError("map", "A map by UMAP") from err
    return umap


def scaled_by_effect(model: Autoencoder, codes: Vectors) -> Array:
    """Return codes (N, D) about their mean, each dimension in units of its effect on an image."""
    centred: Array = (codes - codes.mean(0, np.float64)) * effect_sizes(model, codes)
    return centred


def principal_map(centred: Array) -> CodeMap:
    """Lay out vectors (N, D) about their mean, N at least 1, by principal component analysis."""
    # From the covariance, (D, D) for any number of images; decomposing the codes would take (N, D).
    variances, directions = np.linalg.eigh(centred.T @ centred)
    variances, kept = variances[::-1].clip(min=0), directions[:, ::-1][:, :2]
    plane = np.zeros((len(centred), 2))
    # The largest value of each direction is made positive, so that equal codes give equal maps.
    signs = np.sign(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])])
    plane[:, : kept.shape[1]] = centred @ (kept * signs)
    return CodeMap(plane, float(variances[:2].sum() / max(variances.sum(), 1e-12)))


def effect_sizes(model: Autoencoder, codes: Vectors) -> Array:
    """Return how much a unit of each code dimension (D,) changes the image, at the mean of codes (N, D).

    Codes can be scaled without changing the function of a model (those of `best` all have variance 1), so
    their own variances mean nothing.
    """
    wide = codes.astype(np.float64)
    mean, spread = wide.mean(0), np.maximum(wide.std(0), 1e-6)
    moved = torch.from_numpy(mean + np.diag(spread)).float()
    centre = torch.from_numpy(mean)[None].float()
    changes = model.decode(moved, "faithful") - model.decode(centre, "faithful")
    found: Array = changes.flatten(1).norm(dim=1).double().numpy() / spread
    return found
