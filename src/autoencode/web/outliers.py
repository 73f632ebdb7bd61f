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
from autoencode.web.tabs import Missing, OpenWorkspace, download, unfinished
from autoencode.web.workspace import Found, GoneError, Workspace, readable

router = APIRouter()


class Decided(BaseModel):
    """A decision about one image."""

    picture: str
    decision: Decision


@router.get("/api/outliers")
async def queue(
    workspace: OpenWorkspace,
    rate: Annotated[float | None, Query(gt=0, lt=1)] = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Return part of the queue, most anomalous first, and what a false positive rate flags."""
    ranking = _ranking(workspace)
    if not isinstance(ranking, Ranking):
        return ranking
    undecided = await asyncio.to_thread(_first_undecided, workspace, ranking)
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
            "counts": _counts(workspace),
            "undecided": undecided,
            "offset": offset,
            "queue": [
                _row(workspace, ranking, int(place)) for place in ranking.order[offset : offset + limit]
            ],
        }
    )


@router.post("/api/decisions")
async def decide(workspace: OpenWorkspace, decided: Decided) -> dict[str, Any]:
    """Write down a decision; not in a thread, so that one follows another."""
    found = _reviewed(workspace, decided.picture)
    workspace.decisions.decide(
        found.collection.pack, found.collection.entry(found.position), decided.decision
    )
    return {"counts": _counts(workspace)}


@router.post("/api/decisions/undo")
async def undo(workspace: OpenWorkspace) -> dict[str, Any]:
    """Take back the last decision that stands."""
    taken = None if workspace.review is None else workspace.decisions.undo(workspace.review.pack)
    return {"undone": None if taken is None else readable(taken), "counts": _counts(workspace)}


@router.get("/api/outliers.csv")
async def table(workspace: OpenWorkspace) -> Response:
    """Return every image with its score and what was decided."""
    ranking = _ranking(workspace)
    if not isinstance(ranking, Ranking):
        return ranking
    assert workspace.review is not None
    content = await asyncio.to_thread(decisions_table, workspace.decisions, workspace.review.pack, ranking)
    return download(content, "outliers.csv", "text/csv")


@router.get("/api/decisions/{decision}.txt")
async def files(workspace: OpenWorkspace, decision: Literal["keep", "drop"]) -> Response:
    """Return the files that a decision stands for, one a line, to move or copy them."""
    if workspace.review is None:
        raise GoneError("No images are under review.")
    content = await asyncio.to_thread(decided_files, workspace.decisions, workspace.review.pack, decision)
    return download(content, f"{decision}.txt", "text/plain")


def _counts(workspace: Workspace) -> Mapping[Decision, int]:
    return {} if workspace.review is None else workspace.decisions.counts(workspace.review.pack)


def _ranking(workspace: Workspace) -> Ranking | Response:
    if lacking := needs(workspace):
        return lacking.answer()
    found = workspace.ranking.result()
    return unfinished(workspace.ranking) if found is None else found


def _first_undecided(workspace: Workspace, ranking: Ranking) -> int | None:
    """The place in the queue of the first image that nothing is decided about."""
    assert workspace.review is not None
    pack, entry = workspace.review.pack, workspace.review.entry
    places = enumerate(ranking.order)
    return next((at for at, place in places if workspace.decisions.of(pack, entry(int(place))) is None), None)


def _row(workspace: Workspace, ranking: Ranking, place: int) -> dict[str, Any]:
    assert workspace.review is not None
    return workspace.describe(
        f"{workspace.review.letter}{place}",
        score=float(ranking.scores[place]),
        p_value=float(ranking.p_values[place]),
        decision=workspace.decisions.of(workspace.review.pack, workspace.review.entry(place)),
    )


def _reviewed(workspace: Workspace, name: str) -> Found:
    found = workspace.find(name)
    if not isinstance(found, Found) or found.collection is not workspace.review:
        raise GoneError("Only images under review are decided about.")
    return found


def needs(workspace: Workspace) -> Missing | None:
    """What has to be there before images can be scored; None where they can."""
    if workspace.review is not None and workspace.training is not None:
        return None
    return Missing(
        "Normal images are those the model was trained on, and they were not found. Open "
        "the run folder, with its pack where the training left it.",
        ("autoencode app RUN", "autoencode app RUN --images PHOTOS"),
    )


NEEDS = {"outliers": needs}
