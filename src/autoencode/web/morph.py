"""Morph: two to four pictures mixed through their codes."""

from __future__ import annotations

import io
from typing import Annotated, Literal

import numpy as np
import torch
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from torch import Tensor

from autoencode.configuration import Interpolation
from autoencode.errors import ConfigError
from autoencode.figures.animation import write_animation
from autoencode.morphing import FRAMES_PER_SECOND, between, in_square, mixed
from autoencode.pixels import to_pixels
from autoencode.web.jobs import Report
from autoencode.web.tabs import OpenWorkspace, download, png, unfinished
from autoencode.web.workspace import Pixels, Workspace

LEG_FRAMES = 24  # from one picture to the next
PIECE = 8  # frames decoded between two words on how far it is

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
    """Return one mixture: of two or three pictures at x along the way, of four at (x, y) in their square."""
    names = _names(pictures)

    async def is_wanted() -> bool:
        return not await request.is_disconnected()

    if not await is_wanted():
        return Response(status_code=499)
    return png(await workspace.on_model(_mixture, workspace, names, x, y, interpolation))


@router.get("/api/morph/animation")
async def animation(
    workspace: OpenWorkspace, pictures: str, interpolation: Interpolation = "linear", kind: Kind = "gif"
) -> Response:
    """Return the way through all pictures and back to the first, without a cut, or how far that is."""
    names = _names(pictures)
    codes = await workspace.on_model(workspace.codes, names)
    job = workspace.animation(
        (*names, interpolation, kind), lambda report: _animated(workspace, codes, interpolation, kind, report)
    )
    found = job.result()
    return unfinished(job) if found is None else download(found, f"morph.{kind}", f"image/{kind}")


@router.post("/api/morph/animation/cancel")
async def cancel(
    workspace: OpenWorkspace, pictures: str, interpolation: Interpolation = "linear", kind: Kind = "gif"
) -> None:
    """Make an animation no further."""
    workspace.forget_animation((*_names(pictures), interpolation, kind))


def _names(pictures: str) -> list[str]:
    names = pictures.split(",")
    if not 2 <= len(names) <= 4:
        raise ConfigError("A morph is of two to four pictures.")
    return names


def _mixture(
    workspace: Workspace, names: list[str], x: float, y: float, interpolation: Interpolation
) -> Pixels:
    codes = workspace.codes(names)
    code = (
        in_square(codes, x, y, interpolation)
        if len(codes) == 4
        else between(codes, x * (len(codes) - 1), interpolation)
    )
    pixels: Pixels = to_pixels(workspace.model.decode(code[None]))[0]
    return pixels


def _animated(
    workspace: Workspace, codes: Tensor, interpolation: Interpolation, kind: Kind, report: Report
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


def _loop(workspace: Workspace, codes: Tensor, interpolation: Interpolation, report: Report) -> Pixels:
    way, _ = mixed(torch.cat([codes, codes[:1]]), LEG_FRAMES, interpolation)
    pieces: list[Pixels] = []
    for part in torch.split(way[:-1], PIECE):
        report("decoding frames", PIECE * len(pieces), len(way) - 1)
        pieces.append(to_pixels(workspace.model.decode(part)))
    return np.concatenate(pieces)
