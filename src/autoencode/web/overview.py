"""The overview: the model, its quality, and the progress of its training."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from autoencode.evaluation import evaluate, reconstruction_errors
from autoencode.evaluation.quality import QuickEvaluation, gap_in_words, quick_evaluation
from autoencode.metrics.images import MEASURES
from autoencode.training.run import repeating_command, settings_in_words, state_of_run
from autoencode.web.missing import missing
from autoencode.web.pictures import readable
from autoencode.web.results import PLAIN, Form, Saved, key_of, state_of
from autoencode.web.tabs import (
    Missing,
    OpenWorkspace,
    finished,
    needs_model,
    recall_all,
    require,
    without_training_images,
)
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from autoencode.data.pack import StageProgress
    from autoencode.duplicates import Duplicates
    from autoencode.metrics.images import Measure
    from autoencode.metrics.statistics import Estimate
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.training.config import TrainConfig

MOSAIC = 96  # fills three rows of a wide screen
SHOWN = 4  # of the best, the median and the worst each
COMPARED_IMAGES = 1000  # with PCA, fitted to four times as many: of fewer it looks worse than it is
EXAMPLES = ("best", "median", "worst")
CHECKED_IMAGES = 512  # enough for a first impression; `evaluate` measures all, with intervals

router = APIRouter()


@router.get("/api/overview")
async def overview(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return the settings of the run in words, its images, and a few held-out ones to show."""
    await recall_all(workspace)
    pack, review = workspace.training, workspace.review
    mosaic: list[dict[str, Any]] = []
    if review is not None:
        # The same all day, and another at the next start: a person comes to know the folder.
        order = np.random.default_rng(int(workspace.launch, 16)).permutation(len(review))[:MOSAIC]
        mosaic = [workspace.describe(f"{review.letter}{position}") for position in order]
    return {
        "settings": _settings(workspace),
        "command": None
        if workspace.run is None or pack is None
        else readable(repeating_command(workspace.folder, pack)),
        "folder": None if pack is None else readable(str(pack.folder)),
        "splits": {}
        if pack is None
        else {split: len(pack.rows(split)) for split in ("train", "validation", "test")},
        "skipped": 0 if pack is None else len(pack.skipped),
        "mosaic": mosaic,
        "known": _known(workspace),
        "problem": None if review is None else review.without_folder(),
        "missing": 0 if review is None else await asyncio.to_thread(lambda: int(missing(review).sum())),
    }


def _known(workspace: Workspace) -> dict[str, int | None]:
    """Return how many groups of copies and unusual images there are, as far as they were looked for."""
    copies: Duplicates | None = workspace.comparing.known("duplicates")
    ranking = workspace.ranking
    return {
        "copies": None if copies is None else len(copies.groups),
        "unusual": None if ranking is None else ranking.standing_out,
    }


@router.get("/api/health")
async def health(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return the quality of the model on held-out images, or the progress of measuring it."""
    require(needs(workspace))
    return finished(
        workspace.measuring.job(
            "quality", functools.partial(_kept, workspace, _evaluate_quickly, form=_NUMBERS)
        )
    )


@router.get("/api/examples")
async def examples(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return held-out images with the best, the median and the worst reconstructions, or the progress."""
    require(needs(workspace))
    assert workspace.training is not None
    form = form_of_examples(len(workspace.training))
    found = finished(
        workspace.measuring.job("examples", functools.partial(_kept, workspace, _examples, form=form))
    )
    return {
        name: [workspace.describe(f"t{position}", error=error) for position, error in group]
        for name, group in found.items()
    }


@router.get("/api/verdict")
async def verdict(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return how much better than PCA of the same size the model is, or the progress of measuring it."""
    require(needs(workspace))
    # Not in the queue of the outlier scores, which a person waits for: PCA takes longer than both.
    return finished(
        workspace.comparing.job("verdict", functools.partial(_kept, workspace, _compare, form=_NUMBERS))
    )


def _kept(
    workspace: Workspace,
    work: Callable[[Workspace, StageProgress], dict[str, Any]],
    report: StageProgress,
    form: Form[dict[str, Any]],
) -> dict[str, Any]:
    """Return a measurement of the model, JSON, from an earlier start if it was made then."""
    assert workspace.path is not None
    assert workspace.training is not None
    key = key_of(state_of([workspace.path]), workspace.training.fingerprint)
    name = f"overview{work.__name__}"
    return workspace.results.kept(name, key, form, lambda: work(workspace, report))


def _examples(workspace: Workspace, report: StageProgress) -> dict[str, list[tuple[int, float]]]:
    """Return (position, error) of images of the training, by how well they are reconstructed."""
    pack = workspace.training
    assert pack is not None
    positions = np.flatnonzero(pack.entries.in_split(pack.held_out().split))[:CHECKED_IMAGES]
    rows = pack.rows()[positions]

    def advance(done: int, total: int) -> None:
        report("reconstructing held-out images", done, total)

    errors = reconstruction_errors(workspace.model, pack, rows, advance)
    order, middle = np.argsort(errors, kind="stable"), max(0, (len(errors) - SHOWN) // 2)
    groups = zip(EXAMPLES, (order[:SHOWN], order[middle:][:SHOWN], order[::-1][:SHOWN]), strict=True)
    return {name: [(int(positions[at]), float(errors[at])) for at in group] for name, group in groups}


def _numbers(saved: Saved) -> dict[str, Any]:
    found = PLAIN.load(saved)
    if not isinstance(found, dict):
        raise TypeError("it is not a table of numbers")
    return found


_NUMBERS = Form(PLAIN.save, _numbers)


def form_of_examples(count: int) -> Form[dict[str, Any]]:
    """Return how examples among `count` images are saved."""

    def load(saved: Saved) -> dict[str, Any]:
        found = _numbers(saved)
        groups = {name: [(int(at), float(error)) for at, error in found[name]] for name in EXAMPLES}
        if not all(
            0 <= at < count and math.isfinite(error) for group in groups.values() for at, error in group
        ):
            raise ValueError("it is about other images")
        return groups

    return Form(PLAIN.save, load)


def _compare(workspace: Workspace, report: StageProgress) -> dict[str, Any]:
    assert workspace.training is not None
    found = evaluate(
        workspace.model, workspace.training, kid=False, most_images=COMPARED_IMAGES, progress=report
    )
    return {
        "gain": found.error_saved,
        "components": found.pca_components,
        "images": found.images,
        "split": found.split,
    }


@router.get("/api/run/state")
async def state(workspace: OpenWorkspace, known: str = "") -> Response:
    """Return the metrics of the run, and whether it is training; 204 if `known` is the tag of the same."""
    # Polled: a stream of events holds one of the six connections that a browser opens to a host, and with
    # streams the seventh window never loaded. An unchanged state is an empty reply.
    train = None if workspace.run is None else workspace.run.train
    found = await asyncio.to_thread(progress_of_run, workspace.folder, train)
    tag = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
    return Response(status_code=204) if tag == known else JSONResponse({"tag": tag, **found})


def progress_of_run(folder: Path, train: TrainConfig | None) -> dict[str, Any]:
    """Return the metrics of a run, whether it is training, and its epochs: those with a code, and all."""
    all_epochs = 0 if train is None else train.all_epochs
    epochs = 0 if train is None else train.total_epochs
    return {**state_of_run(folder, all_epochs), "epochs": epochs, "all_epochs": all_epochs}


def _evaluate_quickly(workspace: Workspace, report: StageProgress) -> dict[str, Any]:
    assert workspace.training is not None
    done, total = 0, min(CHECKED_IMAGES, len(workspace.training.held_out().rows))

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report("measuring held-out images", done, total)

    return _findings(
        workspace.model, quick_evaluation(workspace.model, workspace.training, CHECKED_IMAGES, advance)
    )


def needs(workspace: Workspace) -> Missing | None:
    """Return what is missing for a measurement of the model; None if nothing is."""
    if missing := needs_model(workspace):
        return missing
    if workspace.training is not None:
        return None
    return without_training_images("Quality is measured on images held out of training")


def _settings(workspace: Workspace) -> list[tuple[str, str]]:
    if workspace.run is not None:
        return settings_in_words(workspace.run)
    if not workspace.has_model:
        return []
    config, preprocessing = workspace.model.config, workspace.model.preprocessing
    return [
        ("model", "variational autoencoder" if workspace.model.is_vae else "autoencoder"),
        ("code", f"{config.code_size} dimensions"),
        ("images", f"{preprocessing.height}x{preprocessing.width}, {preprocessing.resize_mode}"),
        ("epochs", str(workspace.model.provenance.get("epoch", "unknown"))),
    ]


def _findings(model: Autoencoder, found: QuickEvaluation) -> dict[str, Any]:
    """Return the numbers with their meaning in words, and a warning if the code has collapsed."""
    quality = found.quality
    rows = [_finding(MEASURES[field], getattr(quality, field)) for field in ("psnr_db", "ssim", "sharpness")]
    warning = None
    if (code := found.code) is not None:
        size = model.config.code_size
        warning = code.warning
        rows += [
            {
                "name": "Active dimensions",
                "value": f"{code.active_units} of {size}",
                "means": "dimensions of the code that carry information",
            },
            {
                "name": "Prior gap",
                "value": gap_in_words(code.prior_gap_nats),
                "means": "how far the codes are from N(0, I), where samples are drawn; 0 is best",
            },
        ]
    sharpness = None if quality.sharpness is None else quality.sharpness.value
    return {
        "images": found.images,
        "split": found.split,
        "findings": rows,
        "warning": warning,
        "sharpness": sharpness,
    }


def _finding(measure: Measure, found: Estimate | None) -> dict[str, str]:
    return {
        "name": measure.label[:1].upper() + measure.label[1:],
        "value": "–" if found is None else f"{found.value:.{measure.digits}f}",
        "means": measure.meaning,
    }


NEEDS = {"health": needs}
