"""Map: every image as a point, images that look alike to the model near each other."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from autoencode.applications.codemap import CodeMap, Layout
from autoencode.applications.decisions import chosen_entries, file_list
from autoencode.interfaces.web.replies import Space, download, missing, unfinished
from autoencode.interfaces.web.workspace import SPLITS, Collection, Workspace, readable

MOST_CHOSEN = 200_000

router = APIRouter()


class Chosen(BaseModel):
    """Places of images."""

    positions: Annotated[list[int], Field(max_length=MOST_CHOSEN)]
    kind: Literal["names", "files"]


@router.get("/api/map")
async def about(space: Space, layout: Layout = "pca") -> Response:
    """Return what the map shows; `/api/map/points` has where."""
    if space.review is None:
        return _nothing()
    found = space.maps[layout].result()
    if found is None:
        return unfinished(space.maps[layout])
    return JSONResponse(
        {
            "letter": space.review.letter,
            "images": len(space.review),
            "explained": found.explained,
            "labels": [readable(label) for label in space.review.pack.labels],
            "splits": SPLITS,
            "scored": space.ranking.state == "done",
        }
    )


@router.get("/api/map/points")
async def points(space: Space, layout: Layout = "pca") -> Response:
    """Return the points as bytes, little-endian, one array after the other.

    x and y float32 (N,), score float32 (N,) or NaN, label int16 (N,) or -1, split int8 (N,).
    """
    if space.review is None:
        return _nothing()
    found = space.maps[layout].result()
    if found is None:
        return unfinished(space.maps[layout])
    content = await asyncio.to_thread(_bytes, space, space.review, found)
    return Response(content, media_type="application/octet-stream")


@router.post("/api/map/chosen")
async def chosen(space: Space, asked: Chosen) -> Response:
    """Return chosen images: the names of the first of them to show, or the files of all."""
    if space.review is None:
        return _nothing()
    pack = space.review.pack
    entries = await asyncio.to_thread(chosen_entries, pack, asked.positions)
    if asked.kind == "files":
        return download(await asyncio.to_thread(file_list, pack, entries), "chosen.txt", "text/plain")
    return JSONResponse([space.describe(f"{space.review.letter}{place}") for place in asked.positions[:500]])


def _bytes(space: Workspace, review: Collection, found: CodeMap) -> bytes:
    pack, ranking = review.pack, space.ranking.result() if space.ranking.state == "done" else None
    scores: Any = np.full(len(review), np.nan) if ranking is None else ranking.scores
    number = {label: place for place, label in enumerate(pack.labels)}
    labels = [number.get(entry.label or "", -1) for entry in pack.entries]
    parts = [
        found.plane[:, 0].astype("<f4"),
        found.plane[:, 1].astype("<f4"),
        scores.astype("<f4"),
        np.array(labels, "<i2"),
        review.splits,
    ]
    return b"".join(part.tobytes() for part in parts)


def _nothing() -> Response:
    return missing(
        "The map shows your images. Start the page with an index, a run folder, or a folder of images.",
        "autoencode app RUN --index index",
        "autoencode app RUN --images PHOTOS",
    )
