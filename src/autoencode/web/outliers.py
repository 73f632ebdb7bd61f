"""Outliers: the images, most anomalous first, and the decisions of a person about them.

Images are judged by what the model learned from its training images, by all images under review, or by those
of one label. The latter two compare patches by a pretrained network, which needs no model and shows where an
image differs.

Shape: N images.
"""

from __future__ import annotations

import asyncio
import functools
import io
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from autoencode.models.backbones import BACKBONE
from autoencode.outliers.calibration import NAME, fit_reference
from autoencode.outliers.conformal import attainable_fpr
from autoencode.outliers.normal import FORMAT_VERSION
from autoencode.outliers.review import Decision, Ranking, decided_files, decisions_table, rank_pack
from autoencode.web.inspection import Inspected, files_of, form_of, inspect_pack, overlay
from autoencode.web.jobs import Job, JobQueue
from autoencode.web.pictures import Found, readable
from autoencode.web.results import key_of, state_of
from autoencode.web.tabs import Missing, OpenWorkspace, download, finished, picture_file, require
from autoencode.web.workspace import GoneError, Workspace

if TYPE_CHECKING:
    from autoencode.data.pack import Pack, StageProgress

MODEL, ALL, LABEL = "model", "all", "label:"
Basis = Annotated[str, Query(max_length=300)]  # MODEL, ALL, or LABEL and a label
FORM = "2"  # of what is kept of scores; another one is worked out again
BINS = 60
# The rate where images are compared with all others: anomalous ones count as normal, too, so 1 % would flag a
# hundredth of the images however many are anomalous. 5 % of 2,000 images are 100, a few minutes of looking.
ALL_RATE = 0.05
FEWEST_NORMAL = 10  # that `fit_normal` takes
GOOD_LABELS = frozenset({"good", "normal", "ok", "okay", "fine", "pass", "healthy"})

router = APIRouter()


class Decided(BaseModel):
    """A decision about one image."""

    picture: str
    decision: Decision


@router.get("/api/outliers")
async def queue(
    workspace: OpenWorkspace,
    by: Basis = MODEL,
    rate: Annotated[float | None, Query(gt=0, lt=1)] = None,
    threshold: float | None = None,
    normal: bool = False,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Return part of the queue, most anomalous first, and the number of images that a rate flags.

    The images of a label that the others are compared with are left out, unless `normal` asks for them.
    """
    ranking = _looked_through(workspace, by, normal)
    # In a thread: of a million images, all may be decided.
    undecided = await asyncio.to_thread(_first_undecided, workspace, ranking)
    smallest = ranking.smallest_fpr
    if threshold is not None and math.isfinite(threshold):
        rate = rate_at(ranking, threshold)
    # Raised to what the calibration images allow, not rejected: with few of them the default is below it.
    rate = max(default_rate(by, ranking) if rate is None else rate, smallest)
    measured = ranking.validation_fpr(rate)
    flagged = ranking.flagged(rate)
    if threshold is not None:
        # As dragged: with few calibration images, a rate has few steps, and a line would jump between them.
        flagged = int((ranking.scores[ranking.order] >= threshold).sum())
    part = ranking.order[offset : offset + limit]
    return {
        "score": ranking.score,
        "images": len(ranking.order),
        "left_out": len(ranking.scores) - len(ranking.order),
        "calibration_images": ranking.calibration_images,
        "rate": rate,
        "smallest_rate": smallest,
        "flagged": flagged,
        "standing_out": {
            "images": ranking.standing_out,
            "threshold": _between(ranking, ranking.standing_out),
        },
        # Between the last image that is flagged and the first that is not.
        "threshold": _between(ranking, flagged) if threshold is None else threshold,
        "histogram": _histogram(ranking),
        "measured": None
        if measured is None
        else {"share": measured.value, "low": measured.interval.low, "high": measured.interval.high},
        **_counts(workspace),
        "undecided": undecided,
        "offset": offset,
        "has_maps": by != MODEL,
        "queue": [_row(workspace, by, ranking, int(position)) for position in part],
    }


@router.get("/api/outliers/flagged")
async def flagged_images(
    workspace: OpenWorkspace, by: Basis, threshold: float, normal: bool = False
) -> Response:
    """Return a bit for each image, set if its score reaches the threshold; the first is the lowest bit."""
    ranking = _looked_through(workspace, by, normal)
    is_flagged = np.zeros(len(ranking.scores), np.bool_)
    is_flagged[ranking.order] = ranking.scores[ranking.order] >= threshold
    content = np.packbits(is_flagged, bitorder="little").tobytes()
    return Response(content, media_type="application/octet-stream")


def default_rate(by: Basis, ranking: Ranking) -> float:
    """Return the rate at which images are flagged before a person has chosen one: that of the command.

    Among all images it is that of the 5 % most unlike the others.
    """
    images = ranking.calibration_images
    if by != ALL:
        return attainable_fpr(images)
    # The most anomalous of N has p = 2 / (N + 1), as it is one of those that it is compared with.
    return min((math.ceil(ALL_RATE * images) + 1.5) / (images + 1), 0.99)


def rate_at(ranking: Ranking, threshold: float) -> float:
    """Return the false positive rate at which the images from a score on are flagged, and no others."""
    flagged = int((ranking.scores[ranking.order] >= threshold).sum())
    return float(ranking.p_values[ranking.order[flagged - 1]]) if flagged else ranking.smallest_fpr


def _between(ranking: Ranking, flagged: int) -> float:
    ordered = ranking.scores[ranking.order]
    edges = ordered[max(0, flagged - 1) : flagged + 1]
    return float(edges.mean()) if len(edges) else 0.0


def _histogram(ranking: Ranking) -> dict[str, Any]:
    """Return how many images have a score in each of 60 equal ranges, and the ends of all of them."""
    scores = ranking.scores[ranking.order]
    low, high = float(scores.min(initial=0)), float(scores.max(initial=0))
    counts, _ = np.histogram(scores, BINS, (low, high if high > low else low + 1))
    return {"low": low, "high": high if high > low else low + 1, "counts": counts.tolist()}


@router.get("/images/{name}/heat")
async def heat(workspace: OpenWorkspace, name: str, by: Basis) -> Response:
    """Show where an image differs from normal ones, as a picture to lay over its file."""
    found = _reviewed(workspace, name)
    inspected = finished(ranking_job(workspace, by))
    shown, place = inspected.heats.get(found.position), inspected.places.get(found.position)
    if shown is None or place is None:
        raise GoneError("There is no heat map of this image: its file could not be used.")

    def drawn() -> bytes:
        file = io.BytesIO()
        Image.fromarray(overlay(shown, place)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    return picture_file(await asyncio.to_thread(drawn), "image/png")


@router.post("/api/outliers/cancel")
async def cancel(workspace: OpenWorkspace, by: Basis) -> None:
    """Stop comparing images."""
    ranking_job(workspace, by).stop()


@router.post("/api/decisions")
async def decide(workspace: OpenWorkspace, decided: Decided) -> dict[str, Any]:
    """Write down a decision."""
    # On the event loop, a millisecond each: in threads, two quick decisions could be written in the other
    # order, and undo would take back the first.
    found = _reviewed(workspace, decided.picture)
    workspace.decisions.decide(
        found.collection.pack, found.collection.entry(found.position), decided.decision
    )
    return _counts(workspace)


@router.post("/api/decisions/undo")
async def undo(workspace: OpenWorkspace) -> dict[str, Any]:
    """Take back the last standing decision, about one image or about those of a selection."""
    taken = [] if workspace.review is None else workspace.decisions.undo(workspace.review.pack)
    undone = readable(taken[0]) if taken else None
    return {"undone": undone, "images": len(taken), **_counts(workspace)}


@router.get("/api/outliers.csv")
async def table(workspace: OpenWorkspace, by: Basis = MODEL) -> Response:
    """Return every image with its score and the decision about it."""
    ranking = _ranking(workspace, by)
    assert workspace.review is not None
    places = finished(ranking_job(workspace, by)).places
    content = await asyncio.to_thread(
        decisions_table,
        workspace.decisions,
        workspace.review.pack,
        ranking,
        None if by == MODEL else {position: place.box for position, place in places.items()},
        has_splits=workspace.path is not None,
    )
    return download(content, "outliers.csv", "text/csv")


@router.get("/api/decisions/{decision}.txt")
async def files(workspace: OpenWorkspace, decision: Literal["keep", "drop"]) -> Response:
    """Return the files with this decision, one per line, to move or copy them."""
    if workspace.review is None:
        raise GoneError("No images are under review.")
    content = await asyncio.to_thread(decided_files, workspace.decisions, workspace.review.pack, decision)
    return download(content, f"{decision}.txt", "text/plain")


def _counts(workspace: Workspace) -> dict[str, Any]:
    """Return how many images each decision stands for, and of which revision of the decisions that is."""
    counts = {} if workspace.review is None else workspace.decisions.counts(workspace.review.pack)
    return {"counts": counts, "revision": workspace.decisions.revision}


def ranking_job(workspace: Workspace, by: Basis) -> Job[Inspected]:
    """Return the job that judges the images under review by the model, or by all or some of them.

    Raises:
        ReplyError: what it needs is missing.
    """
    require(needs(workspace) if by == MODEL else needs_images(workspace))
    return _queue(workspace, by).job(("ranking", by), functools.partial(_rank, workspace, by))


def _queue(workspace: Workspace, by: Basis) -> JobQueue:
    # That of the model in the queue of the quick evaluation of the overview, which is open first: each alone
    # uses all cores.
    return workspace.measuring if by == MODEL else workspace.comparing


def _ranking(workspace: Workspace, by: Basis) -> Ranking:
    workspace.ranking = finished(ranking_job(workspace, by)).ranking
    return workspace.ranking


def _looked_through(workspace: Workspace, by: Basis, has_normal: bool) -> Ranking:
    """Return the ranking of all images, or of those that the others are not compared with."""
    ranking = _ranking(workspace, by)
    if has_normal or not by.startswith(LABEL):
        return ranking
    assert workspace.review is not None
    others = ranking.without(_are_normal(workspace.review.pack, by))
    return others if len(others.order) else ranking  # where all are of the label, they are looked through


def _rank(workspace: Workspace, by: Basis, report: StageProgress) -> Inspected:
    assert workspace.review is not None
    pack = workspace.review.pack

    def work() -> Inspected:
        if by == MODEL:
            return Inspected(_rank_by_model(workspace, pack, report), {}, {})
        return inspect_pack(pack, _are_normal(pack, by), report)

    return workspace.results.kept(_name_of(by), _key_of(workspace, by), form_of(len(pack)), work)


def _rank_by_model(workspace: Workspace, pack: Pack, report: StageProgress) -> Ranking:
    assert workspace.training is not None
    # The file that `autoencode outliers` keeps beside the model, too: whichever runs second finds it fitted.
    reference = fit_reference(
        workspace.model,
        workspace.training,
        workspace.folder / NAME,
        progress=lambda done, total: report("learning from normal images", done, total),
    )
    return rank_pack(
        workspace.model, pack, reference, lambda done, total: report("scoring images", done, total)
    )


def _are_normal(pack: Pack, by: Basis) -> NDArray[np.bool_]:
    """Return which images of a pack (N,) the others are compared with."""
    label = by.removeprefix(LABEL)
    return np.array([by == ALL or readable(entry.label or "") == label for entry in pack.entries])


def _name_of(by: Basis) -> str:
    # One file for all labels: for each of a thousand it would be too much on the disk.
    return f"outliers-{by if by in (MODEL, ALL) else 'label'}"


def _key_of(workspace: Workspace, by: Basis) -> str:
    assert workspace.review is not None
    pack = workspace.review.pack
    if by == MODEL:
        assert workspace.path is not None
        assert workspace.training is not None
        return key_of(state_of([workspace.path]), pack.fingerprint, workspace.training.fingerprint)
    # Files are read as they are now, and not as they were packed.
    normal = np.packbits(_are_normal(pack, by)).tobytes().hex()
    return key_of(state_of(files_of(pack)), normal, BACKBONE.weights, str(FORMAT_VERSION), FORM)


def recall(workspace: Workspace) -> None:
    """Bring back the scores of an earlier start, if all that they depend on is as it was."""
    for by in (by for by, _ in facts(workspace)["bases"] if by in (MODEL, ALL)):
        assert workspace.review is not None
        form = form_of(len(workspace.review))
        found = workspace.results.known(_name_of(by), _key_of(workspace, by), form)
        if found is not None:
            _queue(workspace, by).put(("ranking", by), found)
            workspace.ranking = workspace.ranking or found.ranking


def _first_undecided(workspace: Workspace, ranking: Ranking) -> int | None:
    """Return the index in the queue of the first undecided image; None if all are decided."""
    assert workspace.review is not None
    pack, entry, of = workspace.review.pack, workspace.review.entry, workspace.decisions.of
    queue = enumerate(ranking.order)
    return next((at for at, position in queue if of(pack, entry(int(position))) is None), None)


def _row(workspace: Workspace, by: Basis, ranking: Ranking, position: int) -> dict[str, Any]:
    inspected = finished(ranking_job(workspace, by))
    place = inspected.places.get(position) if position in inspected.heats else None
    assert workspace.review is not None
    return workspace.describe(
        f"{workspace.review.letter}{position}",
        stands_out=None if place is None else place.box is not None,
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


def needs_images(workspace: Workspace) -> Missing | None:
    """Return what is missing for comparing files with each other; None if nothing is."""
    review = workspace.review
    if review is not None and not review.pack.folder.is_dir():
        return Missing(
            "Outliers are looked for in the files, and the folder "
            f"{readable(str(review.pack.folder))} is not there. Put it back, then load the page again."
        )
    if review is not None and len(review) >= FEWEST_NORMAL:
        return None
    return Missing(
        f"Outliers are looked for among {FEWEST_NORMAL} pictures or more, in their files. Open the page with "
        "an index, a run folder, or a folder of images, where its pictures are.",
        ("autoencode index PHOTOS", "autoencode app indexes/PHOTOS"),
        in_page=True,
    )


NEEDS = {"outliers": needs, "inspection": needs_images}


def facts(workspace: Workspace) -> dict[str, Any]:
    """Return what images can be compared with, the default first: (name, words) each."""
    bases: list[tuple[str, str]] = []
    if needs(workspace) is None:
        bases.append((MODEL, "what the model learned"))
    if needs_images(workspace) is None:
        assert workspace.review is not None
        labels = [readable(label) for label in workspace.review.pack.labels]
        named = [(f"{LABEL}{label}", f"pictures labelled {label}") for label in labels]
        # Folders of parts: "good" beside the kinds of defects.
        good = [one for one in named if one[0].removeprefix(LABEL).casefold() in GOOD_LABELS]
        bases = [*good, *bases, (ALL, "the other pictures"), *(one for one in named if one not in good)]
        # Results of an earlier start are shown first: nobody waits for the others.
        bases.sort(key=lambda base: _queue(workspace, base[0]).known(("ranking", base[0])) is None)
    return {"bases": bases}
