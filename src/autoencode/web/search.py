"""Search: the images of the index that look most like a picture."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response

from autoencode.atomic import csv_bytes
from autoencode.configuration import Distance
from autoencode.index.base import Neighbour
from autoencode.pixels import to_float
from autoencode.web.tabs import Missing, OpenWorkspace, download, in_shell
from autoencode.web.uploads import Held
from autoencode.web.workspace import Workspace

Count = Annotated[int, Query(ge=1, le=200)]

router = APIRouter()


@router.get("/api/search")
async def search(
    workspace: OpenWorkspace, picture: str, k: Count = 24, distance: Distance | None = None
) -> Response:
    """Return the nearest images, nearest first, with their scores."""
    if lacking := needs(workspace):
        return lacking.answer()
    assert workspace.index is not None
    found = await workspace.on_model(_nearest, workspace, picture, k, distance or workspace.index.distance)
    neighbours = [
        workspace.describe(f"i{near.position}", score=near.score, gone=near.is_gone) for near in found
    ]
    return JSONResponse(
        {
            "query": workspace.describe(picture),
            "neighbours": neighbours,
            "similarity": (distance or workspace.index.distance) != "l2",
        }
    )


@router.get("/api/search.csv")
async def table(
    workspace: OpenWorkspace, picture: str, k: Count = 24, distance: Distance | None = None
) -> Response:
    """Return the same as a table."""
    if lacking := needs(workspace):
        return lacking.answer()
    assert workspace.index is not None
    found = await workspace.on_model(_nearest, workspace, picture, k, distance or workspace.index.distance)
    rows = ([near.path, f"{near.score:.6g}", near.label or ""] for near in found)
    return download(csv_bytes([["path", "score", "label"], *rows]), "neighbours.csv", "text/csv")


def _nearest(workspace: Workspace, picture: str, k: int, distance: Distance) -> list[Neighbour]:
    """The nearest images, without the picture itself; the code of one that stays is known already."""
    index = workspace.compared_by(distance)
    found = workspace.find(picture)
    own = -1
    if not isinstance(found, Held) and found.collection.letter == "i":
        own = found.position
    query: Any
    if own >= 0:
        query = index.codes[index.entries[own].row][None]
    elif index.embedding == "code":
        query = workspace.code(picture)[None]
    else:
        query = to_float(workspace.pixels(picture)[None])
    [result] = index.search(query, k + 1).results
    return [near for near in result.found if near.position != own][:k]


def needs(workspace: Workspace) -> Missing | None:
    """What has to be made before images can be searched; None where they can."""
    if workspace.index is not None:
        return None
    source = "PHOTOS" if workspace.training is None else in_shell(workspace.training.folder)
    run = in_shell(workspace.path if workspace.run is None else workspace.folder)
    return Missing(
        "Search needs an index of your images. Make one, then start the page with it.",
        (f"autoencode index {run} {source} --out index", f"autoencode app {run} --index index"),
    )


NEEDS = {"search": needs}


def facts(workspace: Workspace) -> dict[str, Any]:
    """Return the size and distance of the index, or None."""
    index = workspace.index
    return {"index": None if index is None else {"images": len(index), "distance": index.distance}}
