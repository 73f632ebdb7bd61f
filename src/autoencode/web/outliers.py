"""Outliers: the images, most anomalous first, and the decisions of a person about them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel

from autoencode.outliers.calibration import DEFAULT_FPR, fit_reference, reference_name
from autoencode.outliers.review import Decision, Ranking, decided_files, decisions_table, rank_pack
from autoencode.web.collection import Found, readable
from autoencode.web.jobs import Job
from autoencode.web.tabs import Missing, OpenWorkspace, download, finished, require
from autoencode.web.workspace import GoneError, Workspace

if TYPE_CHECKING:
    from autoencode.data.pack import StageProgress

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
) -> dict[str, Any]:
    """Return part of the queue, most anomalous first, and the number of images that a rate flags."""
    ranking = _ranking(workspace)
    # In a thread: of a million images, all may be decided.
    undecided = await asyncio.to_thread(_first_undecided, workspace, ranking)
    smallest = ranking.smallest_fpr
    # Raised to what the calibration images allow, not rejected: with few of them the default is below it.
    rate = max(DEFAULT_FPR if rate is None else rate, smallest)
    measured = ranking.validation_fpr(rate)
    part = ranking.order[offset : offset + limit]
    return {
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
        "queue": [_row(workspace, ranking, int(position)) for position in part],
    }


@router.post("/api/decisions")
async def decide(workspace: OpenWorkspace, decided: Decided) -> dict[str, Any]:
    """Write down a decision."""
    # On the event loop, a millisecond each: in threads, two quick decisions could be written in the other
    # order, and undo would take back the first.
    found = _reviewed(workspace, decided.picture)
    workspace.decisions.decide(
        found.collection.pack, found.collection.entry(found.position), decided.decision
    )
    return {"counts": _counts(workspace)}


@router.post("/api/decisions/undo")
async def undo(workspace: OpenWorkspace) -> dict[str, Any]:
    """Take back the last standing decision."""
    taken = None if workspace.review is None else workspace.decisions.undo(workspace.review.pack)
    return {"undone": None if taken is None else readable(taken), "counts": _counts(workspace)}


@router.get("/api/outliers.csv")
async def table(workspace: OpenWorkspace) -> Response:
    """Return every image with its score and the decision about it."""
    ranking = _ranking(workspace)
    assert workspace.review is not None
    content = await asyncio.to_thread(decisions_table, workspace.decisions, workspace.review.pack, ranking)
    return download(content, "outliers.csv", "text/csv")


@router.get("/api/decisions/{decision}.txt")
async def files(workspace: OpenWorkspace, decision: Literal["keep", "drop"]) -> Response:
    """Return the files with this decision, one per line, to move or copy them."""
    if workspace.review is None:
        raise GoneError("No images are under review.")
    content = await asyncio.to_thread(decided_files, workspace.decisions, workspace.review.pack, decision)
    return download(content, f"{decision}.txt", "text/plain")


def _counts(workspace: Workspace) -> Mapping[Decision, int]:
    return {} if workspace.review is None else workspace.decisions.counts(workspace.review.pack)


def ranking_job(workspace: Workspace) -> Job[Ranking]:
    """Return the job that scores the images under review."""
    # In the queue of the quick evaluation of the overview, which is open first: each alone uses all cores.
    return workspace.measuring.job("ranking", functools.partial(_rank, workspace))


def known_ranking(workspace: Workspace) -> Ranking | None:
    """Return the ranking if it is done already; starts no work."""
    job = ranking_job(workspace)
    return job.result() if job.state == "done" else None


def _ranking(workspace: Workspace) -> Ranking:
    require(needs(workspace))
    return finished(ranking_job(workspace))


def _rank(workspace: Workspace, report: StageProgress) -> Ranking:
    assert workspace.training is not None
    assert workspace.review is not None
    # The file that `autoencode outliers` keeps beside the model, too: whichever runs second finds it fitted.
    reference = fit_reference(
        workspace.model,
        workspace.training,
        workspace.folder / reference_name("code"),
        progress=lambda done, total: report("learning from normal images", done, total),
    )
    return rank_pack(
        workspace.model,
        workspace.review.pack,
        reference,
        lambda done, total: report("scoring images", done, total),
    )


def _first_undecided(workspace: Workspace, ranking: Ranking) -> int | None:
    """Return the index in the queue of the first undecided image; None if all are decided."""
    assert workspace.review is not None
    pack, entry, of = workspace.review.pack, workspace.review.entry, workspace.decisions.of
    queue = enumerate(ranking.order)
    return next((at for at, position in queue if of(pack, entry(int(position))) is None), None)


def _row(workspace: Workspace, ranking: Ranking, position: int) -> dict[str, Any]:
    assert workspace.review is not None
    return workspace.describe(
        f"{workspace.review.letter}{position}",
        score=float(ranking.scores[position]),
        p_value=float(ranking.p_values[position]),
        decision=workspace.decisions.of(workspace.review.pack, workspace.review.entry(position)),
    )


def _reviewed(workspace: Workspace, name: str) -> Found:
    found = workspace.find(name)
    # An upload or sample has no file that could be kept or dropped.
    if not isinstance(found, Found) or found.collection is not workspace.review:
        raise GoneError("Decisions are about images under review only.")
    return found


def needs(workspace: Workspace) -> Missing | None:
    """Return what is missing for outlier scores; None if nothing is."""
    if workspace.review is not None and workspace.training is not None:
        return None
    return Missing(
        "Outliers are measured against the images the model was trained on, and those were not found. Open "
        "the run folder, with its pack where training left it.",
        ("autoencode app RUN", "autoencode app RUN --images PHOTOS"),
    )


NEEDS = {"outliers": needs}
