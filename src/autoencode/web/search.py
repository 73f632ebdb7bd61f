"""Search: the images of the index most similar to a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fastapi import APIRouter, Query
from fastapi.responses import Response

from autoencode.atomic import csv_bytes
from autoencode.configuration import Distance
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
    found = await workspace.on_model(_nearest, workspace, picture, k, distance)
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
    found = await workspace.on_model(_nearest, workspace, picture, k, distance)
    rows: list[list[Any]] = [["path", "score", "percentile", "label"]]
    for near in found.neighbours:
        percentile = "" if near.percentile is None else f"{near.percentile:.4g}"
        rows.append([near.path, f"{near.score:.6g}", percentile, near.label or ""])
    return download(csv_bytes(rows), "neighbours.csv", "text/csv")


class _Nearest(NamedTuple):
    distance: Distance
    neighbours: list[Neighbour]


def _nearest(workspace: Workspace, picture: str, k: int, distance: Distance | None) -> _Nearest:
    """Return the nearest images, without the picture itself."""
    require(needs(workspace))
    index, own = workspace.compared_by(distance), workspace.indexed(picture)
    # One more than asked for, as the picture is its own nearest. By position: copies of it stay.
    [result] = index.search(_query(workspace, picture), k + 1).results
    return _Nearest(index.distance, [near for near in result.found if near.position != own][:k])


def _query(workspace: Workspace, picture: str) -> Vectors | Tensor:
    """Return what the index is searched with for a picture: its vector (1, D), or images (1, 3, H, W)."""
    index = workspace.index
    assert index is not None
    if (position := workspace.indexed(picture)) is not None:
        # Its vector is there: no image is read and encoded when a person goes from image to image.
        return index.codes[index.entries[position].row][None]
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
