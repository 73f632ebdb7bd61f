"""Search: the images of the index most similar to a picture."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fastapi import APIRouter, Query
from fastapi.responses import Response

from autoencode.configuration import Distance
from autoencode.csv_files import csv_bytes
from autoencode.data.decoders import UntrustedDecoder
from autoencode.index.base import Neighbours
from autoencode.pixels import to_float
from autoencode.web.tabs import Missing, OpenWorkspace, download, in_shell, require
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from autoencode.index.base import Neighbour
    from autoencode.web.pictures import Vectors

Count = Annotated[int, Query(ge=1, le=200)]

router = APIRouter()


@router.get("/api/search")
async def search(
    workspace: OpenWorkspace, picture: str, k: Count = 24, distance: Distance | None = None
) -> dict[str, Any]:
    """Return the nearest images, nearest first, with their scores."""
    found = await _found(workspace, picture, k, distance)
    neighbours = []
    for near in found.neighbours:
        more = {"score": near.score, "percentile": near.percentile, "gone": near.is_gone}
        assert near.position is not None
        neighbours.append(workspace.describe(workspace.of_index(near.position), **more))
    return {
        "query": workspace.describe(picture),
        "neighbours": neighbours,
        "similarity": found.distance != "l2",
        "nothing_close": Neighbours(None, tuple(found.neighbours)).nothing_close,
    }


@router.get("/api/search.csv")
async def table(
    workspace: OpenWorkspace, picture: str, k: Count = 24, distance: Distance | None = None
) -> Response:
    """Return the nearest images as a table."""
    found = await _found(workspace, picture, k, distance)
    rows: list[list[Any]] = [["path", "score", "percentile", "label"]]
    for near in found.neighbours:
        percentile = "" if near.percentile is None else f"{near.percentile:.4g}"
        rows.append([near.path, f"{near.score:.6g}", percentile, near.label or ""])
    return download(csv_bytes(rows), "neighbours.csv", "text/csv")


class _Nearest(NamedTuple):
    distance: Distance
    neighbours: list[Neighbour]


async def _found(workspace: Workspace, picture: str, k: int, distance: Distance | None) -> _Nearest:
    """Return the nearest images, without the picture itself."""
    require(needs(workspace))
    on_index = functools.partial(asyncio.get_running_loop().run_in_executor, workspace.searching)
    vector, own = await on_index(_indexed, workspace, picture)
    query = await workspace.on_model(_encoded, workspace, picture) if vector is None else vector
    return await on_index(_nearest, workspace, query, own, k, distance)


def _nearest(
    workspace: Workspace, query: Vectors | Tensor, own: int | None, k: int, distance: Distance | None
) -> _Nearest:
    assert workspace.index is not None
    distance = distance or workspace.index.distance
    if distance not in workspace.compared:
        workspace.compared[distance] = workspace.index.with_distance(distance)
    # One more than asked for, as the picture is its own nearest. By position: copies of it stay.
    [result] = workspace.compared[distance].search(query, k + 1).results
    return _Nearest(distance, [near for near in result.found if near.position != own][:k])


def _indexed(workspace: Workspace, picture: str) -> tuple[Vectors | None, int | None]:
    """Return the vector (1, D) and the position of an indexed image, which is not read again; else None."""
    assert workspace.index is not None
    own = workspace.indexed(picture)
    if own is None:
        return None, None
    return workspace.index.codes[workspace.index.entries[own].row][None], own


def _encoded(workspace: Workspace, picture: str) -> Vectors | Tensor:
    """Return what the index is searched with for a picture: its code (1, D), or the image (1, 3, H, W)."""
    index = workspace.index
    assert index is not None
    if index.embedding == "code":
        return workspace.code(picture)[None].numpy()
    workspace.index_decoder = workspace.index_decoder or UntrustedDecoder(index.preprocessing)
    return to_float(workspace.resized(picture, workspace.index_decoder, workspace.pixels(picture))[None])


def needs(workspace: Workspace) -> Missing | None:
    """Return what is missing for a search; None if nothing is."""
    if workspace.index is not None:
        return None
    source = "PHOTOS" if workspace.training is None else in_shell(workspace.training.folder)
    run = "RUN" if workspace.path is None else in_shell(workspace.folder if workspace.run else workspace.path)
    return Missing(
        "Search needs an index of your images. Make one, then start the page with it.",
        (f"autoencode index {source} --out index", f"autoencode app {run} --index index"),
        in_page=True,
    )


NEEDS = {"search": needs}


def facts(workspace: Workspace) -> dict[str, Any]:
    """Return the size and distance of the index and what compares its images, or None."""
    index = workspace.index
    if index is None:
        return {"index": None}
    about = {"images": len(index), "distance": index.distance, "compared": workspace.index_name}
    return {"index": about}
