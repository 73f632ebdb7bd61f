"""Map: every image as a point, images that look alike to the model near each other."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from autoencode.errors import ConfigError, MissingExtraError
from autoencode.outliers.review import chosen_entries, file_list
from autoencode.projection import CodeMap, Layout
from autoencode.web.tabs import Missing, OpenWorkspace, download, unfinished
from autoencode.web.workspace import SPLITS, Collection, Workspace, readable

MOST_NAMED = 500

router = APIRouter()


class Chosen(BaseModel):
    """Places of images."""

    positions: Annotated[list[int], Field(max_length=MOST_NAMED)]


@router.get("/api/map")
async def about(workspace: OpenWorkspace, layout: Layout = "pca") -> Response:
    """Return what the map shows; `/api/map/points` has where."""
    if lacking := needs(workspace) or _lacks(layout):
        return lacking.answer()
    assert workspace.review is not None
    found = workspace.maps[layout].result()
    if found is None:
        return unfinished(workspace.maps[layout])
    return JSONResponse(
        {
            "letter": workspace.review.letter,
            "images": len(workspace.review),
            "explained": found.explained,
            "labels": [readable(label) for label in workspace.review.pack.labels],
            "splits": SPLITS,
            "scored": workspace.ranking.state == "done",
        }
    )


@router.get("/api/map/points")
async def points(workspace: OpenWorkspace, layout: Layout = "pca") -> Response:
    """Return the points as bytes, little-endian, one array after the other.

    x and y float32 (N,), score float32 (N,) or NaN, label int16 (N,) or -1, split int8 (N,).
    """
    if lacking := needs(workspace) or _lacks(layout):
        return lacking.answer()
    assert workspace.review is not None
    found = workspace.maps[layout].result()
    if found is None:
        return unfinished(workspace.maps[layout])
    content = await asyncio.to_thread(_bytes, workspace, workspace.review, found)
    return Response(content, media_type="application/octet-stream")


@router.post("/api/map/cancel")
async def cancel(workspace: OpenWorkspace, layout: Layout) -> None:
    """Lay out no further."""
    workspace.maps[layout].stop()


@router.post("/api/map/chosen")
async def chosen(workspace: OpenWorkspace, asked: Chosen) -> Response:
    """Return what is known of chosen images, to show them."""
    if lacking := needs(workspace):
        return lacking.answer()
    assert workspace.review is not None
    return JSONResponse(
        [workspace.describe(f"{workspace.review.letter}{place}") for place in asked.positions]
    )


@router.post("/api/map/chosen.txt")
async def files(workspace: OpenWorkspace, request: Request) -> Response:
    """Return the files of chosen images, one a line.

    The body has a bit for each image, the first the lowest of its byte: however many are chosen, eight
    million images fit into what a request may carry.
    """
    if lacking := needs(workspace):
        return lacking.answer()
    assert workspace.review is not None
    pack, content = workspace.review.pack, await request.body()
    if len(content) != -(-len(workspace.review) // 8):
        raise ConfigError(f"Chosen images are {len(workspace.review):,} bits, not {len(content):,} bytes.")
    places = np.flatnonzero(np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little"))
    entries = await asyncio.to_thread(chosen_entries, pack, places)
    return download(await asyncio.to_thread(file_list, pack, entries), "chosen.txt", "text/plain")


def _bytes(workspace: Workspace, review: Collection, found: CodeMap) -> bytes:
    pack, ranking = review.pack, workspace.ranking.result() if workspace.ranking.state == "done" else None
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


def needs(workspace: Workspace) -> Missing | None:
    """What has to be there before there is a map; None where there is one."""
    if workspace.review is not None:
        return None
    return Missing(
        "The map shows your images. Start the page with an index, a run folder, or a folder of images.",
        ("autoencode app RUN --index index", "autoencode app RUN --images PHOTOS"),
    )


def _lacks(layout: Layout) -> Missing | None:
    return needs_umap() if layout == "umap" else None


def needs_umap() -> Missing | None:
    """What has to be installed before UMAP can lay out a map; None where it is."""
    if importlib.util.find_spec("umap") is not None:
        return None
    return Missing(str(MissingExtraError("map", "A map by UMAP")))


NEEDS = {"map": needs, "umap": lambda _: needs_umap()}
