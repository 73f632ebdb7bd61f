"""Generate: new pictures from a prior, and variations of any picture."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from autoencode.atomic import is_locked
from autoencode.configuration import PriorName
from autoencode.generation import Samples, generate, priors, vary
from autoencode.web.tabs import Missing, OpenWorkspace, in_shell
from autoencode.web.uploads import Held
from autoencode.web.workspace import Workspace

Count = Annotated[int, Field(ge=1, le=128)]
Seed = Annotated[int, Field(ge=0, le=2**53)]

router = APIRouter()


class Asked(BaseModel):
    """A grid of samples."""

    count: Count = 24
    temperature: Annotated[float, Field(ge=0, le=4)] = 1.0
    seed: Seed = 0
    prior: PriorName | None = None


class AskedNear(BaseModel):
    """Variations of a picture."""

    picture: str
    count: Count = 12
    amount: Annotated[float, Field(ge=0, le=1)] = 0.3
    seed: Seed = 0
    prior: PriorName | None = None


@router.post("/api/generate")
async def new(workspace: OpenWorkspace, asked: Asked) -> Response:
    """Draw samples."""
    if lacking := needs(workspace):
        return lacking.answer()

    def drawn() -> Samples:
        return generate(
            workspace.model, asked.count, prior=asked.prior, temperature=asked.temperature, seed=asked.seed
        )

    return JSONResponse(_held(workspace, await workspace.on_model(drawn), f"sample {asked.seed}"))


@router.post("/api/vary")
async def near(workspace: OpenWorkspace, asked: AskedNear) -> Response:
    """Draw variations of a picture."""
    if lacking := needs(workspace):
        return lacking.answer()

    def drawn() -> Samples:
        return vary(
            workspace.model,
            workspace.code(asked.picture),
            asked.count,
            amount=asked.amount,
            prior=asked.prior,
            seed=asked.seed,
        )

    return JSONResponse(_held(workspace, await workspace.on_model(drawn), "variation"))


def _held(workspace: Workspace, made: Samples, name: str) -> dict[str, Any]:
    """Hold samples, so that each can be searched for, varied and morphed like any other picture."""
    pictures = [
        workspace.describe(workspace.uploads.put(Held(pixels, code, f"{name}-{number}", "sample")))
        for number, (pixels, code) in enumerate(zip(made.pixels, made.codes, strict=True), start=1)
    ]
    return {"pictures": pictures, "prior": made.prior}


def needs(workspace: Workspace) -> Missing | None:
    """What has to be made before samples can be drawn; None where they can."""
    if priors(workspace.model):
        return None
    if workspace.run is not None and is_locked(workspace.folder):
        return Missing(
            "This model carries no prior to draw from. Its training, which goes on, fits one at its end. "
            "Start the page again then.",
            (f"autoencode app {in_shell(workspace.folder)}",),
        )
    source = "PHOTOS" if workspace.training is None else in_shell(workspace.training.folder)
    run = "RUN" if workspace.run is None else in_shell(workspace.folder)
    return Missing(
        "This model carries no prior to draw from. Give its training command again, to the end: it fits one.",
        (f"autoencode train {source} --out {run} --resume",),
    )


NEEDS = {"generate": needs}


def facts(workspace: Workspace) -> dict[str, Any]:
    """Return the priors that samples can be drawn from."""
    return {"priors": priors(workspace.model)}
