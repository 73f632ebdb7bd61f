"""Browse: images by name, label, split, decision and tag; selections, and what is made of them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from autoencode.web import selections
from autoencode.web.filtering import Filter, Positions, Sort, described, positions
from autoencode.web.missing import missing
from autoencode.web.pictures import readable
from autoencode.web.selections import Text, chosen_positions
from autoencode.web.tabs import OpenWorkspace, needs_review, review_of

router = APIRouter()
router.include_router(selections.router)


def _asked(
    text: Text = "",
    label: Text = "",
    split: Text = "",
    decision: Text = "",
    tag: Text = "",
    unusual: Annotated[float, Query(ge=0, le=1)] = 0,
    gone: bool = False,
    sort: Sort = "name",
    down: bool = False,
) -> Filter:
    return Filter(text, label, split, decision, tag, unusual, gone, sort, down)


Asked = Annotated[Filter, Depends(_asked)]


@router.get("/api/browse")
async def browse(
    workspace: OpenWorkspace,
    asked: Asked,
    selection: Text = "",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 200,
) -> dict[str, Any]:
    """Return part of the images that are asked for, their number, and what there is to filter by."""
    review = review_of(workspace)
    found = await asyncio.to_thread(positions, workspace, review, asked)
    if selection:
        found = found[np.isin(found, chosen_positions(workspace, selection))]
    gone = await asyncio.to_thread(missing, review)
    return {
        "total": len(found),
        "offset": offset,
        "pictures": [
            described(workspace, review, position, is_gone=bool(gone[position]))
            for position in found[offset : offset + limit].tolist()
        ],
        "labels": [readable(name) for name in review.pack.labels],
        "tags": workspace.tags.counts(),
        "decisions": workspace.decisions.counts(review.pack),
        "missing": int(gone.sum()),
        "scored": workspace.ranking is not None,
        "problem": review.without_folder(),
    }


@router.get("/api/browse/positions")
async def every(workspace: OpenWorkspace, asked: Asked) -> Response:
    """Return a bit for each image, set if it is asked for; the first image is the lowest bit."""
    review = review_of(workspace)
    found = await asyncio.to_thread(positions, workspace, review, asked)
    return Response(_bits(len(review), found), media_type="application/octet-stream")


def _bits(count: int, chosen: Positions) -> bytes:
    is_chosen = np.zeros(count, np.bool_)
    is_chosen[chosen] = True
    return np.packbits(is_chosen, bitorder="little").tobytes()


NEEDS = {"browse": needs_review}
