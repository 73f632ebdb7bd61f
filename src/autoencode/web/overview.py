"""The overview: what the model is, how good it is, how its training goes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from autoencode.atomic import is_locked
from autoencode.evaluation.quality import CheckUp, gap_in_words
from autoencode.metrics.statistics import Estimate
from autoencode.models.autoencoder import Autoencoder
from autoencode.training.run import METRICS_NAME, Record, read_metrics, repeating_command, settings_in_words
from autoencode.web.tabs import Missing, OpenWorkspace, unfinished
from autoencode.web.workspace import Workspace, readable

SHOWN = 8

router = APIRouter()


@router.get("/api/overview")
async def overview(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return the settings of the run in words, its images and some held-out ones to look at."""
    pack, review = workspace.training, workspace.review
    shown: list[dict[str, Any]] = []
    if review is not None:
        # Held-out ones where there are any; entries are in the order of their digests, so by chance.
        order = np.argsort(-await asyncio.to_thread(lambda: review.splits), kind="stable")
        shown = [workspace.describe(f"{review.letter}{position}") for position in order[:SHOWN]]
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
        "shown": shown,
    }


@router.get("/api/health")
async def health(workspace: OpenWorkspace) -> Response:
    """Return how good the model is on held-out images, or how far measuring that is."""
    if lacking := needs(workspace):
        return lacking.answer()
    found = workspace.check_up.result()
    return (
        unfinished(workspace.check_up) if found is None else JSONResponse(_findings(workspace.model, found))
    )


@router.get("/api/run/state")
async def state(workspace: OpenWorkspace, known: str = "") -> Response:
    """Return the lines of metrics of the run, and whether it trains; 204 where that is what is known.

    Asked for again and again: a stream of events would hold one of the six connections that a browser opens
    to a program, for each of its windows.
    """
    epochs = 0 if workspace.run is None else workspace.run.train.total_epochs
    found = await asyncio.to_thread(_state, workspace.folder, epochs)
    tag = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
    return Response(status_code=204) if tag == known else JSONResponse({"tag": tag, **found})


def needs(workspace: Workspace) -> Missing | None:
    """What has to be there before the model can be measured; None where it can."""
    if workspace.training is not None:
        return None
    return Missing(
        "How good it is, is measured on images held out of its training. Open the run folder, with its "
        "pack where the training left it.",
        ("autoencode app RUN",),
    )


def _state(folder: Path, epochs: int) -> dict[str, Any]:
    records = read_metrics(folder)
    is_training = bool(epochs) and is_locked(folder)
    return {
        "records": records,
        "epochs": epochs,
        "training": is_training,
        "seconds_left": _seconds_left(folder, records, epochs) if is_training else None,
    }


def _seconds_left(folder: Path, records: list[Record], epochs: int) -> float | None:
    """Seconds that the epochs left will take at the pace of the last one, as of its end; None before that."""
    if not records or (pace := records[-1].get("seconds")) is None:
        return None
    left = pace * (epochs - records[-1]["epoch"])
    try:
        since = time.time() - (folder / METRICS_NAME).stat().st_mtime
    except OSError:
        return None
    # In steps, so that not every look is news.
    return max(0.0, math.ceil((left - since) / 5) * 5.0)


def _settings(workspace: Workspace) -> list[tuple[str, str]]:
    if workspace.run is not None:
        return settings_in_words(workspace.run)
    config, preprocessing = workspace.model.config, workspace.model.preprocessing
    return [
        ("model", "variational autoencoder" if workspace.model.is_vae else "autoencoder"),
        ("code", f"{config.code_size} dimensions"),
        ("images", f"{preprocessing.height}x{preprocessing.width}, {preprocessing.resize_mode}"),
        ("epochs", str(workspace.model.provenance.get("epoch", "unknown"))),
    ]


def _findings(model: Autoencoder, found: CheckUp) -> dict[str, Any]:
    """Numbers with what they mean; `fair` is False where one of them asks for something to be done."""
    quality = found.quality
    rows = [
        _finding("PSNR", quality.psnr_db, 1, " dB", "how close reconstructions are; higher is closer"),
        _finding("SSIM", quality.ssim, 3, "", "how alike in structure; 1 is equal"),
        _finding("Sharpness", quality.sharpness, 2, "", "detail of a reconstruction; below 1 it is blurred"),
    ]
    warning = None
    if (code := found.code) is not None:
        size = model.config.code_size
        warning = code.warning
        rows += [
            {
                "name": "Active values",
                "value": f"{code.active_units} of {size}",
                "means": "how much of the code carries information",
            },
            {
                "name": "Prior gap",
                "value": gap_in_words(code.prior_gap_nats),
                "means": "how far the codes are from N(0, I), where samples are drawn; 0 is best",
            },
        ]
    return {"images": found.images, "split": found.split, "findings": rows, "warning": warning}


def _finding(name: str, found: Estimate | None, digits: int, unit: str, means: str) -> dict[str, str]:
    return {
        "name": name,
        "value": "–" if found is None else f"{found.value:.{digits}f}{unit}",
        "means": means,
    }


NEEDS = {"health": needs}
