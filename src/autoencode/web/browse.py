"""Browse: images by name, label, split, decision and tag; selections, and what is made of them."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from numpy.typing import NDArray
from pydantic import BaseModel

from autoencode.atomic import csv_bytes
from autoencode.errors import ConfigError
from autoencode.outliers.review import Decision, file_list
from autoencode.web.archive import zipped
from autoencode.web.pictures import Collection, readable
from autoencode.web.tabs import Missing, OpenWorkspace, download, require
from autoencode.web.workspace import GoneError, Workspace

if TYPE_CHECKING:
    from autoencode.data.entries import Entry

SELECTION_BYTES = 16 * 1024**2  # kept for their addresses; each takes a bit per image
UNDECIDED, UNTAGGED = "none", "-"

Sort = Literal["name", "date", "size", "score", "shuffled"]
Positions = NDArray[np.int64]
Text = Annotated[str, Query(max_length=200)]

router = APIRouter()


class Filter(NamedTuple):
    """Which images are asked for, and in which order; an empty text is no condition.

    `unusual` is the share of all images, the most anomalous, that are asked for; 0 is no condition.
    """

    text: str = ""
    label: str = ""
    split: str = ""
    decision: str = ""
    tag: str = ""
    unusual: float = 0
    sort: Sort = "name"
    down: bool = False


def _asked(
    text: Text = "",
    label: Text = "",
    split: Text = "",
    decision: Text = "",
    tag: Text = "",
    unusual: Annotated[float, Query(ge=0, le=1)] = 0,
    sort: Sort = "name",
    down: bool = False,
) -> Filter:
    return Filter(text, label, split, decision, tag, unusual, sort, down)


Asked = Annotated[Filter, Depends(_asked)]


class _Columns(NamedTuple):
    """The columns that all images are filtered and sorted by, (N,) each."""

    names: list[str]
    labels: NDArray[np.object_]
    dates: NDArray[np.int64]
    sizes: NDArray[np.int64]


class Tagged(BaseModel):
    """A tag for the images of a selection."""

    selection: str
    tag: str
    on: bool = True


class DecidedAll(BaseModel):
    """One decision about the images of a selection."""

    selection: str
    decision: Decision


@router.get("/api/browse")
async def browse(
    workspace: OpenWorkspace,
    asked: Asked,
    selection: Text = "",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 200,
) -> dict[str, Any]:
    """Return part of the images that are asked for, their number, and what there is to filter by."""
    review = _review(workspace)
    found = await asyncio.to_thread(positions, workspace, asked)
    if selection:
        found = found[np.isin(found, chosen_positions(workspace, selection))]
    return {
        "total": len(found),
        "offset": offset,
        "pictures": [described(workspace, int(position)) for position in found[offset : offset + limit]],
        "labels": [readable(name) for name in review.pack.labels],
        "tags": workspace.tags.counts(),
        "decisions": workspace.decisions.counts(review.pack),
        "scored": workspace.ranking is not None,
        "problem": review.without_folder(),
    }


@router.get("/api/browse/positions")
async def every(workspace: OpenWorkspace, asked: Asked) -> Response:
    """Return a bit for each image, set if it is asked for; the first image is the lowest bit."""
    found = await asyncio.to_thread(positions, workspace, asked)
    return Response(_bits(len(_review(workspace)), found), media_type="application/octet-stream")


def positions(workspace: Workspace, asked: Filter) -> Positions:
    """Return the positions of the images that are asked for, in the order asked for.

    Raises:
        ReplyError: there are no images.
    """
    review = _review(workspace)
    columns, is_asked = _columns(review), np.ones(len(review), np.bool_)
    if words := asked.text.casefold().split():
        # Every word, anywhere in the path: "tulip 17" finds tulip/0017.jpg.
        is_asked &= np.fromiter((all(word in name for word in words) for name in columns.names), np.bool_)
    if asked.label:
        is_asked &= columns.labels == asked.label
    if asked.split:
        is_asked &= review.pack.entries.in_split(asked.split)  # type: ignore[arg-type]  # unknown ones match none
    if asked.unusual and (ranking := workspace.ranking) is not None:
        first = ranking.order[: math.ceil(asked.unusual * len(review))]
        is_asked &= np.isin(np.arange(len(review)), first)
    found = np.flatnonzero(is_asked)
    if asked.decision:
        wanted = None if asked.decision == UNDECIDED else asked.decision
        decided = (workspace.decisions.of(review.pack, review.entry(int(at))) == wanted for at in found)
        found = found[np.fromiter(decided, np.bool_, len(found))]
    if asked.tag:
        tagged = (_has_tag(workspace, review.entry(int(at)), asked.tag) for at in found)
        found = found[np.fromiter(tagged, np.bool_, len(found))]
    return _sorted(workspace, found, asked.sort, asked.down)


def _sorted(workspace: Workspace, found: Positions, sort: Sort, down: bool) -> Positions:
    order = _order(workspace, _columns(_review(workspace)), sort)[found]
    # Negated, not reversed: equal ones keep their order, page after page.
    return found[np.argsort(-order if down else order, kind="stable")]


def _has_tag(workspace: Workspace, entry: Entry, tag: str) -> bool:
    tags = workspace.tags.of(entry)
    return not tags if tag == UNTAGGED else tag in tags


@functools.lru_cache(maxsize=4)
def _columns(review: Collection) -> _Columns:
    # Once: a pass over 100,000 entries takes half a second, too long for each letter that is typed.
    entries = review.pack.entries
    labels = np.array([None if (at := entry.label) is None else readable(at) for entry in entries], object)
    return _Columns(
        [readable(entry.path).casefold() for entry in entries],
        labels,
        np.array([entry.mtime for entry in entries], np.int64),
        np.array([entry.size for entry in entries], np.int64),
    )


def _order(workspace: Workspace, columns: _Columns, sort: Sort) -> NDArray[Any]:
    """Return a number for each image, (N,), that grows in the order asked for."""
    if sort == "date":
        return columns.dates
    if sort == "size":
        return columns.sizes
    if sort == "score" and (ranking := workspace.ranking) is not None:
        return ranking.scores
    if sort == "shuffled":
        return np.random.default_rng(int(workspace.launch, 16)).permutation(len(columns.names))
    places = np.empty(len(columns.names), np.int64)
    places[sorted(range(len(places)), key=columns.names.__getitem__)] = np.arange(len(places))
    return places


def described(workspace: Workspace, position: int) -> dict[str, Any]:
    """Return the facts about an image under review, with its decision, its tags and its score."""
    review = _review(workspace)
    entry, ranking = review.entry(position), workspace.ranking
    more: dict[str, Any] = {"decision": workspace.decisions.of(review.pack, entry)}
    if ranking is not None:
        more["score"] = float(ranking.scores[position])
    return workspace.describe(f"{review.letter}{position}", tags=workspace.tags.of(entry), **more)


@router.post("/api/selections")
async def select(workspace: OpenWorkspace, request: Request) -> dict[str, Any]:
    """Keep a selection under a hash; the body has one bit per image, lowest bit first."""
    # As numbers, 140,000 positions filled the 1 MB of a request; as bits, eight million images fit. Ranges
    # would not help: neighbours on the map are anywhere in the pack.
    review, content = _review(workspace), await request.body()
    if len(content) != -(-len(review) // 8):
        raise ConfigError(
            f"A selection of {len(review):,} images takes one bit per image, not {len(content):,} bytes."
        )
    name = hashlib.sha256(content).hexdigest()[:16]
    kept = workspace.selections
    kept[name] = content
    kept.move_to_end(name)
    while len(kept) > 1 and len(kept) * len(content) > SELECTION_BYTES:
        kept.popitem(last=False)
    return {"selection": name, "images": len(chosen_positions(workspace, name))}


@router.get("/api/selections/{name}")
async def selected(workspace: OpenWorkspace, name: str) -> Response:
    """Return the bits of a selection."""
    return Response(_kept(workspace, name), media_type="application/octet-stream")


@router.get("/api/selections/{name}/txt")
async def listed(workspace: OpenWorkspace, name: str, sort: Sort = "name", down: bool = False) -> Response:
    """Return the files of a selection, one per line, for a script."""
    entries = await asyncio.to_thread(_entries, workspace, name, sort, down)
    content = await asyncio.to_thread(file_list, _review(workspace).pack, entries)
    return download(content, "selected.txt", "text/plain")


@router.get("/api/selections/{name}/csv")
async def table(workspace: OpenWorkspace, name: str, sort: Sort = "name", down: bool = False) -> Response:
    """Return the images of a selection as a table."""
    # As on the page: before a training, the part that an image would be of means nothing.
    columns = ["path", "label", "split", "score", "decision", "tags"]
    if workspace.path is None:
        columns.remove("split")

    def rows() -> Iterator[list[object]]:
        folder = _review(workspace).pack.folder
        yield list(columns)
        for position in _sorted_selection(workspace, name, sort, down).tolist():
            about = described(workspace, position)
            score = "" if "score" not in about else f"{about['score']:.6g}"
            path = readable(str(folder / _review(workspace).entry(position).path))
            row = about | {"path": path, "score": score, "tags": " ".join(about["tags"])}
            yield [row[column] or "" for column in columns]

    return download(await asyncio.to_thread(lambda: csv_bytes(rows())), "selected.csv", "text/csv")


@router.get("/api/selections/{name}/files")
async def files(workspace: OpenWorkspace, name: str) -> dict[str, int]:
    """Return how many files a selection has, and how many of them are not there."""
    entries, folder = await asyncio.to_thread(_entries, workspace, name), _review(workspace).pack.folder

    def missing() -> int:
        return sum(not (folder / entry.path).is_file() for entry in entries)

    return {"files": len(entries), "missing": await asyncio.to_thread(missing)}


@router.get("/api/selections/{name}/zip")
async def archive(workspace: OpenWorkspace, name: str, sort: Sort = "name", down: bool = False) -> Response:
    """Return the files of a selection in one archive, made while it is sent."""
    folder = _review(workspace).pack.folder
    entries = await asyncio.to_thread(_entries, workspace, name, sort, down)
    content = zipped((readable(entry.path), folder / entry.path) for entry in entries)
    headers = {"Content-Disposition": 'attachment; filename="selected.zip"'}
    return StreamingResponse(content, media_type="application/zip", headers=headers)


@router.post("/api/tags")
async def tag(workspace: OpenWorkspace, asked: Tagged) -> dict[str, Any]:
    """Give the images of a selection a tag, or take it from them."""
    entries = await asyncio.to_thread(_entries, workspace, asked.selection)
    # On the event loop, as decisions are: in threads, an undo could come before what it takes back.
    changed = workspace.tags.set(asked.tag, entries, is_on=asked.on)
    return {"changed": changed, "tags": workspace.tags.counts()}


@router.post("/api/undo")
async def undo(workspace: OpenWorkspace) -> dict[str, Any]:
    """Take back the last change that stands, of tags or of decisions."""
    pack = _review(workspace).pack
    if workspace.decisions.last_at(pack) > workspace.tags.last_at():
        undone: str | None = None
        decided = len(workspace.decisions.undo(pack))
    else:
        undone, decided = workspace.tags.undo(), 0
    return {"undone": undone, "decided": decided, "tags": workspace.tags.counts()}


@router.post("/api/selections/decisions")
async def decide(workspace: OpenWorkspace, asked: DecidedAll) -> dict[str, Any]:
    """Write down one decision about each image of a selection."""
    review = _review(workspace)
    entries = await asyncio.to_thread(_entries, workspace, asked.selection)
    # Said afterwards, as it can be undone: how many other decisions this one replaces.
    replaced = workspace.decisions.opposed(review.pack, entries, asked.decision)
    changed = workspace.decisions.decide_all(review.pack, entries, asked.decision)
    counts = workspace.decisions.counts(review.pack)
    return {"counts": counts, "changed": changed, "replaced": replaced}


def _kept(workspace: Workspace, name: str) -> bytes:
    content = workspace.selections.get(name)
    if content is None:
        raise GoneError("This selection is no longer in memory. Select the images again.")
    return content


def chosen_positions(workspace: Workspace, name: str) -> Positions:
    """Return the positions of the images of a selection.

    Raises:
        GoneError: there is no such selection, or no longer.
    """
    bits = np.frombuffer(_kept(workspace, name), np.uint8)
    return np.flatnonzero(np.unpackbits(bits, count=len(_review(workspace)), bitorder="little"))


def _sorted_selection(workspace: Workspace, name: str, sort: Sort, down: bool) -> Positions:
    return _sorted(workspace, chosen_positions(workspace, name), sort, down)


def _entries(workspace: Workspace, name: str, sort: Sort = "name", down: bool = False) -> list[Entry]:
    """Return the images of a selection, in the order of the grid that shows them."""
    review = _review(workspace)
    return [review.entry(position) for position in _sorted_selection(workspace, name, sort, down).tolist()]


def _bits(count: int, chosen: Positions) -> bytes:
    is_chosen = np.zeros(count, np.bool_)
    is_chosen[chosen] = True
    return np.packbits(is_chosen, bitorder="little").tobytes()


def _review(workspace: Workspace) -> Collection:
    require(needs(workspace))
    assert workspace.review is not None
    return workspace.review


def needs(workspace: Workspace) -> Missing | None:
    """Return what is missing for browsing; None if nothing is."""
    if workspace.review is not None:
        return None
    return Missing(
        "There are no pictures to browse. Open the page with an index, a run folder, or a folder of images.",
        ("autoencode index PHOTOS", "autoencode app indexes/PHOTOS"),
        in_page=True,
    )


NEEDS = {"browse": needs}
