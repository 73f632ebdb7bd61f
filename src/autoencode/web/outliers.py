"""Outliers: the images, most anomalous first, and what a person decides about them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from autoencode.outliers.calibration import DEFAULT_FPR
from autoencode.outliers.review import Decision, Ranking, decided_files, decisions_table
from autoencode.web.replies import Missing, Space, download, unfinished
from autoencode.web.workspace import Found, GoneError, Workspace, readable

router = APIRouter()


class Decided(BaseModel):
    """A decision about one image."""

    picture: str
    decision: Decision


@router.get("/api/outliers")
async def queue(
    space: Space,
    rate: Annotated[float | None, Query(gt=0, lt=1)] = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Return part of the queue, most anomalous first, and what a false positive rate flags."""
    ranking = _ranking(space)
    if not isinstance(ranking, Ranking):
        return ranking
    undecided = await asyncio.to_thread(_first_undecided, space, ranking)
    smallest = ranking.smallest_fpr
    rate = max(DEFAULT_FPR if rate is None else rate, smallest)
    measured = ranking.validation_fpr(rate)
    return JSONResponse(
        {
            "score": ranking.score,
            "images": len(ranking.order),
            "calibration_images": ranking.calibration_images,
            "rate": rate,
            "smallest_rate": smallest,
            "flagged": ranking.flagged(rate),
            "measured": None
            if measured is None
            else {"share": measured.value, "low": measured.interval.low, "high": measured.interval.high},
            "counts": _counts(space),
            "undecided": undecided,
            "offset": offset,
            "queue": [_row(space, ranking, int(place)) for place in ranking.order[offset : offset + limit]],
        }
    )


@router.post("/api/decisions")
async def decide(space: Space, decided: Decided) -> dict[str, Any]:
    """Write down a decision; not in a thread, so that one follows another."""
    found = _reviewed(space, decided.picture)
    space.decisions.decide(found.collection.pack, found.collection.entry(found.position), decided.decision)
    return {"counts": _counts(space)}


@router.post("/api/decisions/undo")
async def undo(space: Space) -> dict[str, Any]:
    """Take back the last decision that stands."""
    taken = None if space.review is None else space.decisions.undo(space.review.pack)
    return {"undone": None if taken is None else readable(taken), "counts": _counts(space)}


@router.get("/api/outliers.csv")
async def table(space: Space) -> Response:
    """Return every image with its score and what was decided."""
    ranking = _ranking(space)
    if not isinstance(ranking, Ranking):
        return ranking
    assert space.review is not None
    content = await asyncio.to_thread(decisions_table, space.decisions, space.review.pack, ranking)
    return download(content, "outliers.csv", "text/csv")


@router.get("/api/decisions/{decision}.txt")
async def files(space: Space, decision: Literal["keep", "drop"]) -> Response:
    """Return the files that a decision stands for, one a line, to move or copy them."""
    if space.review is None:
        raise GoneError("No images are under review.")
    content = await asyncio.to_thread(decided_files, space.decisions, space.review.pack, decision)
    return download(content, f"{decision}.txt", "text/plain")


def _counts(space: Workspace) -> Mapping[Decision, int]:
    return {} if space.review is None else space.decisions.counts(space.review.pack)


def _ranking(space: Workspace) -> Ranking | Response:
    if lacking := needs(space):
        return lacking.answer()
    found = space.ranking.result()
    return unfinished(space.ranking) if found is None else found


def _first_undecided(space: Workspace, ranking: Ranking) -> int | None:
    """The place in the queue of the first image that nothing is decided about."""
    assert space.review is not None
    pack, entry = space.review.pack, space.review.entry
    places = enumerate(ranking.order)
    return next((at for at, place in places if space.decisions.of(pack, entry(int(place))) is None), None)


def _row(space: Workspace, ranking: Ranking, place: int) -> dict[str, Any]:
    assert space.review is not None
    return space.describe(
        f"{space.review.letter}{place}",
        score=float(ranking.scores[place]),
        p_value=float(ranking.p_values[place]),
        decision=space.decisions.of(space.review.pack, space.review.entry(place)),
    )


def _reviewed(space: Workspace, name: str) -> Found:
    found = space.find(name)
    if not isinstance(found, Found) or found.collection is not space.review:
        raise GoneError("Only images under review are decided about.")
    return found


def needs(space: Workspace) -> Missing | None:
    """What has to be there before images can be scored; None where they can."""
    if space.review is not None and space.training is not None:
        return None
    return Missing(
        "Normal images are those the model was trained on, and they were not found. Open "
        "the run folder, with its pack where the training left it.",
        ("autoencode app RUN", "autoencode app RUN --images PHOTOS"),
    )
