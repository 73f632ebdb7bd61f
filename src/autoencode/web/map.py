"""Map: every image as a point, images that the model finds similar near each other."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.util
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from autoencode.data.loader import batches
from autoencode.errors import MissingExtraError
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.outliers.review import Ranking
from autoencode.projection import (
    CodeMap,
    Groups,
    Layout,
    Metric,
    neighbour_map,
    principal_map,
    scaled_by_effect,
    similar_groups,
)
from autoencode.web.jobs import Job, run_apart
from autoencode.web.pictures import SPLITS, Collection, Vectors, readable
from autoencode.web.results import Form, Saved, key_of
from autoencode.web.tabs import Missing, OpenWorkspace, finished, require
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from autoencode.data.pack import StageProgress
    from autoencode.duplicates import Duplicates
    from autoencode.projection import Array

MOST_NAMED = 500
GROUPS = "groups"  # of similar images, beside the layouts: all layouts show the same

router = APIRouter()


class Selected(BaseModel):
    """Positions of images."""

    positions: Annotated[list[int], Field(max_length=MOST_NAMED)]


@router.get("/api/map")
async def about(workspace: OpenWorkspace, layout: Layout = "pca") -> dict[str, Any]:
    """Return the facts of the map; `/api/map/points` has the positions."""
    review = _review(workspace)
    found = finished(map_job(workspace, layout))
    return {
        "letter": review.letter,
        "images": len(review),
        "explained": found.explained,
        "by": "codes of the model" if workspace.vectors() is None else workspace.index_name,
        "labels": [readable(label) for label in review.pack.labels],
        "splits": SPLITS,
        "groups": await asyncio.to_thread(_described, workspace, review),
        "known": [
            *([] if workspace.ranking is None else ["score"]),
            *([] if workspace.comparing.known("duplicates") is None else ["copies"]),
        ],
    }


@router.get("/api/map/points")
async def points(workspace: OpenWorkspace, layout: Layout = "pca") -> Response:
    """Return the points as bytes, little-endian, one array after the other.

    x and y float32 (N,), score float32 (N,) or NaN, label int16 (N,) or -1, split int8 (N,), copies int8 (N,)
    that is 1 for those that have copies, 0 for the others, -1 before anyone looked, group int8 (N,).
    """
    # Not JSON: 100,000 points are 1.5 MB, which the browser uses as arrays without reading them.
    review, found = _review(workspace), finished(map_job(workspace, layout))
    copies = await asyncio.to_thread(_with_copies, workspace)
    groups: Groups = workspace.layouts.known(GROUPS)
    content = await asyncio.to_thread(_bytes, review, found, workspace.ranking, copies, groups)
    return Response(content, media_type="application/octet-stream")


@router.post("/api/map/cancel")
async def cancel(workspace: OpenWorkspace, layout: Layout) -> None:
    """Stop computing a layout."""
    map_job(workspace, layout).stop()


@router.post("/api/map/chosen")
async def selected(workspace: OpenWorkspace, asked: Selected) -> list[dict[str, Any]]:
    """Return the facts about selected images."""
    review = _review(workspace)
    return [workspace.describe(f"{review.letter}{position}") for position in asked.positions]


def map_job(workspace: Workspace, layout: Layout) -> Job[CodeMap]:
    """Return the job that lays out the images under review.

    Raises:
        ReplyError: there are no images, or UMAP is not installed.
    """
    review = _review(workspace)
    if layout == "umap":
        require(needs_umap())
    work = _by_neighbours if layout == "umap" else _by_components
    return workspace.layouts.job(layout, functools.partial(work, workspace, review))


def _by_components(workspace: Workspace, review: Collection, report: StageProgress) -> CodeMap:
    return principal_map(_grouped(workspace, _centred(workspace, review, report)))


def _by_neighbours(workspace: Workspace, review: Collection, report: StageProgress) -> CodeMap:
    # Apart: UMAP reports nothing while it finds neighbours, for half a minute in which no thread could be
    # stopped. Loading its libraries anew costs 15 s.
    centred = _grouped(workspace, _centred(workspace, review, report))

    def rounds(done: int, total: int) -> None:
        report("laying out images, rounds" if total else "finding neighbours", done, total)

    metric: Metric = "euclidean" if workspace.vectors() is None else "cosine"
    key = key_of(metric, hashlib.sha256(np.ascontiguousarray(centred).data).hexdigest())
    return workspace.results.kept(
        "map-umap",
        key,
        Form(_saved, functools.partial(_loaded, len(review))),
        lambda: run_apart(functools.partial(neighbour_map, metric=metric), centred, report=rounds),
    )


def _saved(found: CodeMap) -> Saved:
    return Saved({"plane": found.plane}, {})


def _loaded(count: int, saved: Saved) -> CodeMap:
    plane = saved.arrays["plane"]
    if plane.shape != (count, 2) or not np.isfinite(plane).all():
        raise ValueError("the layout is not one of the images")
    return CodeMap(plane, None)


def _grouped(workspace: Workspace, centred: Array) -> Array:
    """Find groups of similar images, once, and return what they were found by."""
    if workspace.layouts.known(GROUPS) is None:
        workspace.layouts.put(GROUPS, similar_groups(centred))
    return centred


def _described(workspace: Workspace, review: Collection) -> list[dict[str, Any]]:
    """Return for each group its number of images, a picture typical of it, and the label of most, if any."""
    groups: Groups = workspace.layouts.known(GROUPS)
    labels = np.array([entry.label or "" for entry in review.pack.entries])
    described = []
    for group, position in enumerate(groups.typical.tolist()):
        names, counts = np.unique(labels[groups.members == group], return_counts=True)
        is_named = 2 * counts.max() > counts.sum() and names[counts.argmax()]
        described.append(
            {
                "images": int(counts.sum()),
                "position": position,
                "picture": workspace.describe(f"{review.letter}{position}"),
                "label": readable(str(names[counts.argmax()])) if is_named else None,
            }
        )
    return described


def _centred(workspace: Workspace, review: Collection, report: StageProgress) -> Array:
    """Return what images are placed by, (N, D) about its mean: the vectors of the index, else the codes.

    Vectors of the index come first if it was made without the model: they tell kinds of pictures apart, where
    codes tell colours and shapes.
    """
    vectors = workspace.vectors()
    if vectors is not None:
        centred: Array = vectors.astype(np.float64) - vectors.mean(0, np.float64)
        return centred
    return scaled_by_effect(workspace.model, codes_of(workspace.model, review, report))


def codes_of(model: Autoencoder, review: Collection, report: StageProgress) -> Vectors:
    """Return the codes (N, D) of the images, computed once: both layouts run in one thread."""
    if review.codes is None:
        # Copies of a file share a row of pixels, and one encoding.
        rows, positions = np.unique(review.rows, return_inverse=True)
        codes = np.empty((len(rows), model.config.code_size), np.float32)
        done = 0
        for images in batches(review.pack, rows, INFERENCE_BATCH):
            codes[done : done + len(images)] = model.encode(images).numpy()
            done += len(images)
            report("encoding images", done, len(rows))
        review.codes = codes[positions]
    return review.codes


def _with_copies(workspace: Workspace) -> NDArray[np.bool_] | None:
    """Return which of the images have copies, (N,); None if nobody has looked for any."""
    found: Duplicates | None = workspace.comparing.known("duplicates")
    if found is None:
        return None
    pack = _review(workspace).pack
    have = {file.path for group in found.groups for file in group.files}
    return np.array([pack.folder / entry.path in have for entry in pack.entries])


def _bytes(
    review: Collection,
    found: CodeMap,
    ranking: Ranking | None,
    copies: NDArray[np.bool_] | None,
    groups: Groups,
) -> bytes:
    scores: Any = np.full(len(review), np.nan) if ranking is None else ranking.scores
    number = {label: place for place, label in enumerate(review.pack.labels)}
    labels = [number.get(entry.label or "", -1) for entry in review.pack.entries]
    # The widest types first, as an array in the browser has to begin at a multiple of its type's size.
    parts = [
        found.plane[:, 0].astype("<f4"),
        found.plane[:, 1].astype("<f4"),
        scores.astype("<f4"),
        np.array(labels, "<i2"),
        review.splits,
        np.full(len(review), -1, np.int8) if copies is None else copies.astype(np.int8),
        groups.members.astype(np.int8),
    ]
    return b"".join(part.tobytes() for part in parts)


def _review(workspace: Workspace) -> Collection:
    require(needs(workspace))
    assert workspace.review is not None
    return workspace.review


def needs(workspace: Workspace) -> Missing | None:
    """Return what is missing for a map; None if nothing is."""
    if workspace.review is not None and (workspace.has_model or workspace.vectors() is not None):
        return None
    return Missing(
        "The map shows your images. Start the page with an index, a run folder, or a folder of images.",
        ("autoencode app RUN --index index", "autoencode app RUN --images PHOTOS"),
        in_page=True,
    )


def needs_umap() -> Missing | None:
    """Return what is missing for a map by UMAP; None if nothing is."""
    # Not imported, which takes seconds, and every opening of the page asks.
    if importlib.util.find_spec("umap") is not None:
        return None
    return Missing(str(MissingExtraError("map", "A map by UMAP")))


NEEDS = {"map": needs, "umap": lambda _: needs_umap()}
