"""Morph: two to four pictures mixed through their codes."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from torch import Tensor

from autoencode.configuration import Interpolation
from autoencode.errors import ConfigError
from autoencode.figures import write_animation
from autoencode.morphing import FRAMES_PER_SECOND, between, in_square, interpolated
from autoencode.pixels import to_pixels
from autoencode.web.pictures import Pixels
from autoencode.web.tabs import OpenWorkspace, download, finished, needs_model, png
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from autoencode.data.pack import StageProgress

LEG_FRAMES = 24  # from one picture to the next: 1.2 s at the 20 frames per second of `autoencode morph`
CHUNK_FRAMES = 8  # decoded between two reports, so that a cancelled animation ends within a moment

Kind = Literal["gif", "webp"]
Share = Annotated[float, Query(ge=0, le=1)]

router = APIRouter()


@router.get("/api/morph/frame")
async def frame(
    request: Request,
    workspace: OpenWorkspace,
    pictures: str,
    x: Share = 0.0,
    y: Share = 0.0,
    interpolation: Interpolation = "linear",
) -> Response:
    """Return a mixture: of two or three pictures at x along the way, of four at (x, y) in their square."""
    names = _names(pictures)
    # A slider aborts the request for the position it has left; decoding that would delay the next.
    if await request.is_disconnected():
        return Response(status_code=499)
    codes = await workspace.encoding(names)
    code = (
        in_square(codes, x, y, interpolation)
        if len(codes) == 4
        else between(codes, x * (len(codes) - 1), interpolation)
    )
    return png(await workspace.decoding(code))


@router.get("/api/morph/animation")
async def animation(
    workspace: OpenWorkspace, pictures: str, interpolation: Interpolation = "linear", kind: Kind = "gif"
) -> Response:
    """Return a loop through all pictures and back to the first, or the progress of making it."""
    names = _names(pictures)
    # Now, not in the job: a sample that is pushed out of memory meanwhile is in the animation all the same.
    codes = await workspace.encoding(names)
    work = functools.partial(_animated, workspace, codes, interpolation, kind)
    job = workspace.animations.job((*names, interpolation, kind), work)
    return download(finished(job), f"morph.{kind}", f"image/{kind}")


@router.post("/api/morph/animation/cancel")
async def cancel(
    workspace: OpenWorkspace, pictures: str, interpolation: Interpolation = "linear", kind: Kind = "gif"
) -> None:
    """Stop making an animation."""
    workspace.animations.forget((*_names(pictures), interpolation, kind))


def _names(pictures: str) -> list[str]:
    names = pictures.split(",")
    if not 2 <= len(names) <= 4:
        raise ConfigError("A morph needs two to four pictures.")
    return names


def _animated(
    workspace: Workspace, codes: Tensor, interpolation: Interpolation, kind: Kind, report: StageProgress
) -> bytes:
    frames, file = _loop(workspace, codes, interpolation, report), io.BytesIO()
    write_animation(
        file,
        frames,
        FRAMES_PER_SECOND,
        "GIF" if kind == "gif" else "WEBP",
        lambda done: report("writing frames", done, len(frames)),
    )
    return file.getvalue()


def _loop(workspace: Workspace, codes: Tensor, interpolation: Interpolation, report: StageProgress) -> Pixels:
    path, _ = interpolated(torch.cat([codes, codes[:1]]), LEG_FRAMES, interpolation)
    path = path[:-1]  # the first picture again, which the repetition shows
    chunks: list[Pixels] = []
    for part in torch.split(path, CHUNK_FRAMES):
        report("decoding frames", CHUNK_FRAMES * len(chunks), len(path))
        chunks.append(to_pixels(workspace.model.decode(part)))
    return np.concatenate(chunks)


NEEDS = {"morph": needs_model}
