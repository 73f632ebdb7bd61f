"""What is made of selected images: tags, decisions, lists, tables and archives."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from autoencode.csv_files import csv_bytes
from autoencode.errors import ConfigError
from autoencode.outliers.review import Decision, file_list
from autoencode.web.archive import zipped
from autoencode.web.filtering import Positions, Sort, described, in_order
from autoencode.web.pictures import readable
from autoencode.web.tabs import OpenWorkspace, attachment, download, file_name, review_of
from autoencode.web.workspace import GoneError, Workspace

if TYPE_CHECKING:
    from autoencode.data.entries import Entry

SELECTION_BYTES = 16 * 1024**2  # kept for their addresses; each takes a bit per image

Text = Annotated[str, Query(max_length=200)]

router = APIRouter()


class Shown(NamedTuple):
    """How the images of a selection were shown: their order, and what they were found by, in words."""

    sort: Sort = "name"
    down: bool = False
    of: str = ""

    def named(self, workspace: Workspace, ending: str) -> str:
        """Return the name of a file about them: that of their folder and what they were found by."""
        folder = readable(review_of(workspace).pack.folder.name)
        return f"{file_name(folder, self.of or 'selected')}.{ending}"


def _shown(sort: Sort = "name", down: bool = False, of: Text = "") -> Shown:
    return Shown(sort, down, of)


ShownAs = Annotated[Shown, Depends(_shown)]


class Tagged(BaseModel):
    """A tag for the images of a selection."""

    selection: str
    tag: str
    on: bool = True


class DecidedAll(BaseModel):
    """One decision about the images of a selection."""

    selection: str
    decision: Decision


@router.post("/api/selections")
async def select(workspace: OpenWorkspace, request: Request) -> dict[str, Any]:
    """Keep a selection under a hash; the body has one bit per image, lowest bit first."""
    # As numbers, 140,000 positions filled the 1 MB of a request; as bits, eight million images fit. Ranges
    # would not help: neighbours on the map are anywhere in the pack.
    review, content = review_of(workspace), await request.body()
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
async def listed(workspace: OpenWorkspace, name: str, shown: ShownAs) -> Response:
    """Return the files of a selection that are there, one per line, for a script."""

    def content() -> bytes:
        entries = _entries(workspace, name, shown)
        # Where all are gone, as where their disk is not connected, the names are all that can be had.
        there = [
            entry for entry, is_gone in zip(entries, _gone(workspace, entries), strict=True) if not is_gone
        ]
        return file_list(review_of(workspace).pack, there or entries)

    return download(await asyncio.to_thread(content), shown.named(workspace, "txt"), "text/plain")


@router.get("/api/selections/{name}/csv")
async def table(workspace: OpenWorkspace, name: str, shown: ShownAs) -> Response:
    """Return the images of a selection as a table; a column says whose files are gone, if any is."""
    # As on the page: before a training, the part that an image would be of means nothing.
    columns = ["path", "label", "split", "score", "decision", "tags"]
    if workspace.path is None:
        columns.remove("split")

    def rows() -> Iterator[list[object]]:
        review = review_of(workspace)
        places = _sorted_selection(workspace, name, shown).tolist()
        gone = _gone(workspace, [review.entry(place) for place in places])
        named = [*columns, "gone"] if any(gone) else columns
        yield list(named)
        for position, is_gone in zip(places, gone, strict=True):
            about = described(workspace, review, position, is_gone=is_gone)
            score = "" if "score" not in about else f"{about['score']:.6g}"
            path = readable(str(review.pack.folder / review.entry(position).path))
            row = about | {"path": path, "score": score, "tags": " ".join(about["tags"])}
            row["gone"] = "yes" if is_gone else ""
            yield [row[column] or "" for column in named]

    content = await asyncio.to_thread(lambda: csv_bytes(rows()))
    return download(content, shown.named(workspace, "csv"), "text/csv")


@router.get("/api/selections/{name}/files")
async def files(workspace: OpenWorkspace, name: str) -> dict[str, int]:
    """Return how many files a selection has, and how many of them are not there."""
    entries = await asyncio.to_thread(_entries, workspace, name)
    return {"files": len(entries), "missing": sum(await asyncio.to_thread(_gone, workspace, entries))}


@router.get("/api/selections/{name}/zip")
async def archive(workspace: OpenWorkspace, name: str, shown: ShownAs) -> Response:
    """Return the files of a selection in one archive, made while it is sent."""
    folder = review_of(workspace).pack.folder
    entries = await asyncio.to_thread(_entries, workspace, name, shown)
    content = zipped((readable(entry.path), folder / entry.path) for entry in entries)
    headers = attachment(shown.named(workspace, "zip"))
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
    pack = review_of(workspace).pack
    if workspace.decisions.last_at(pack) > workspace.tags.last_at():
        undone: str | None = None
        decided = len(workspace.decisions.undo(pack))
    else:
        undone, decided = workspace.tags.undo(), 0
    return {"undone": undone, "decided": decided, "tags": workspace.tags.counts()}


@router.post("/api/selections/decisions")
async def decide(workspace: OpenWorkspace, asked: DecidedAll) -> dict[str, Any]:
    """Write down one decision about each image of a selection."""
    review = review_of(workspace)
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
    return np.flatnonzero(np.unpackbits(bits, count=len(review_of(workspace)), bitorder="little"))


def _sorted_selection(workspace: Workspace, name: str, shown: Shown) -> Positions:
    chosen = chosen_positions(workspace, name)
    return in_order(workspace, review_of(workspace), chosen, shown.sort, shown.down)


def _entries(workspace: Workspace, name: str, shown: Shown = Shown()) -> list[Entry]:  # noqa: B008 - a constant
    """Return the images of a selection, in the order of the grid that shows them."""
    review = review_of(workspace)
    return [review.entry(position) for position in _sorted_selection(workspace, name, shown).tolist()]


def _gone(workspace: Workspace, entries: Sequence[Entry]) -> list[bool]:
    """Return whether the file of each entry is not there."""
    folder = review_of(workspace).pack.folder
    return [not (folder / entry.path).is_file() for entry in entries]
