"""Generate: new pictures drawn from a prior, and variations of any picture."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from autoencode.atomic import is_locked
from autoencode.configuration import PriorName
from autoencode.generation import Samples, generate, priors, vary
from autoencode.projection import effect_sizes
from autoencode.web.map import codes_of
from autoencode.web.pictures import Collection, Held, Vectors
from autoencode.web.tabs import (
    Missing,
    OpenWorkspace,
    finished,
    in_shell,
    needs_model,
    require,
    without_training_images,
)
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from autoencode.data.pack import StageProgress

Count = Annotated[int, Field(ge=1, le=128)]
Seed = Annotated[int, Field(ge=0, le=2**53)]  # the whole numbers that JavaScript holds exactly

router = APIRouter()


class SampleRequest(BaseModel):
    """A grid of samples."""

    count: Count = 24
    temperature: Annotated[float, Field(ge=0, le=4)] = 1.0
    seed: Seed = 0
    prior: PriorName | None = None


class VariationRequest(BaseModel):
    """Variations of a picture."""

    picture: str
    count: Count = 12
    amount: Annotated[float, Field(ge=0, le=1)] = 0.3
    seed: Seed = 0
    prior: PriorName | None = None


@router.post("/api/generate")
async def new(workspace: OpenWorkspace, asked: SampleRequest) -> dict[str, Any]:
    """Draw samples."""
    require(needs(workspace))
    made = await workspace.on_model(
        generate,
        workspace.model,
        asked.count,
        prior=asked.prior,
        temperature=asked.temperature,
        seed=asked.seed,
    )
    return _held(workspace, made, f"sample {asked.seed}")


@router.post("/api/vary")
async def near(workspace: OpenWorkspace, asked: VariationRequest) -> dict[str, Any]:
    """Draw variations of a picture."""
    require(needs(workspace))

    def drawn() -> Samples:
        return vary(
            workspace.model,
            workspace.code(asked.picture),
            asked.count,
            amount=asked.amount,
            prior=asked.prior,
            seed=asked.seed,
        )

    return _held(workspace, await workspace.on_model(drawn), "variation")


@router.get("/api/generate/nearest")
async def nearest(
    workspace: OpenWorkspace, picture: str, k: Annotated[int, Query(ge=1, le=100)] = 12
) -> dict[str, Any]:
    """Return the images nearest to a sample by their codes, or the progress of encoding them."""
    require(needs_images(workspace))
    review = workspace.review
    assert review is not None
    codes, effect = finished(workspace.sliding.job("codes", functools.partial(_codes, workspace, review)))

    def found() -> NDArray[np.int64]:
        distances = (((codes - workspace.code(picture).numpy()) * effect) ** 2).sum(1)
        return np.argsort(distances, kind="stable")[:k]

    order = await workspace.on_model(found)
    return {"neighbours": [workspace.describe(f"{review.letter}{position}") for position in order]}


def _codes(
    workspace: Workspace, review: Collection, report: StageProgress
) -> tuple[Vectors, NDArray[np.float64]]:
    """Return the codes (N, D) of the images, and the effect (D,) of each dimension on a decoded image."""
    codes = codes_of(workspace.model, review, report)
    # A dimension that changes no pixel makes no two images different.
    return codes, effect_sizes(workspace.model, codes)


def _held(workspace: Workspace, made: Samples, name: str) -> dict[str, Any]:
    """Hold samples, so that each can be searched for, varied and morphed like any other picture."""
    # With their codes: encoding a decoded picture gives another code, and a variation of it would drift.
    pictures = [
        workspace.hold(Held(pixels, code, f"{name}-{number}", "sample"))
        for number, (pixels, code) in enumerate(zip(made.pixels, made.codes, strict=True), start=1)
    ]
    return {"pictures": pictures, "prior": made.prior}


def needs(workspace: Workspace) -> Missing | None:
    """Return what is missing for samples; None if nothing is."""
    if (missing := needs_model(workspace)) or priors(workspace.model):
        return missing
    if workspace.run is not None and is_locked(workspace.folder):
        return Missing(
            "This model has no prior to draw samples from yet. Training is still running and fits one at its "
            "end. Start the page again then.",
            (f"autoencode app {in_shell(workspace.folder)}",),
        )
    source = "PHOTOS" if workspace.training is None else in_shell(workspace.training.folder)
    run = "RUN" if workspace.run is None else in_shell(workspace.folder)
    return Missing(
        "This model has no prior to draw samples from. Run its training to the end, which fits one.",
        (f"autoencode train {source} --out {run} --resume",),
    )


def needs_images(workspace: Workspace) -> Missing | None:
    """Return what is missing to compare samples with images; None if nothing is."""
    if missing := needs(workspace):
        return missing
    if workspace.review is not None:
        return None
    return without_training_images("Samples are compared with the images that the model was trained on")


NEEDS = {"generate": needs, "nearest": needs_images}


def facts(workspace: Workspace) -> dict[str, Any]:
    """Return the priors that samples can be drawn from."""
    return {"priors": priors(workspace.model) if workspace.has_model else []}
