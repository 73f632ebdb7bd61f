"""Morph: two to four pictures mixed through their codes."""

from __future__ import annotations

import io
from typing import Annotated, Literal

import torch
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from autoencode.applications.morph import FRAMES_PER_SECOND, How, between, in_square, mixed
from autoencode.data.batches import to_pixels
from autoencode.errors import ConfigError
from autoencode.evaluation.animation import write_animation
from autoencode.interfaces.web.replies import Space, download, png
from autoencode.interfaces.web.workspace import Pixels, Workspace

LEG_FRAMES = 24  # from one picture to the next

Share = Annotated[float, Query(ge=0, le=1)]

router = APIRouter()


@router.get("/api/morph/frame")
async def frame(
    request: Request, space: Space, pictures: str, x: Share = 0.0, y: Share = 0.0, how: How = "linear"
) -> Response:
    """Return one mixture: of two or three pictures at x along the way, of four at (x, y) in their square."""
    names = _names(pictures)

    async def is_wanted() -> bool:
        return not await request.is_disconnected()

    if not await is_wanted():
        return Response(status_code=499)
    return png(await space.on_model(_mixture, space, names, x, y, how))


@router.get("/api/morph/animation")
async def animation(
    space: Space, pictures: str, how: How = "linear", kind: Literal["gif", "webp"] = "gif"
) -> Response:
    """Return the way through all pictures and back to the first, without a cut."""
    frames = await space.on_model(_loop, space, _names(pictures), how)
    file = io.BytesIO()
    write_animation(file, frames, FRAMES_PER_SECOND, "GIF" if kind == "gif" else "WEBP")
    return download(file.getvalue(), f"morph.{kind}", f"image/{kind}")


def _names(pictures: str) -> list[str]:
    names = pictures.split(",")
    if not 2 <= len(names) <= 4:
        raise ConfigError("A morph is of two to four pictures.")
    return names


def _mixture(space: Workspace, names: list[str], x: float, y: float, how: How) -> Pixels:
    codes = space.codes(names)
    code = in_square(codes, x, y, how) if len(codes) == 4 else between(codes, x * (len(codes) - 1), how)
    pixels: Pixels = to_pixels(space.model.decode(code[None]))[0]
    return pixels


def _loop(space: Workspace, names: list[str], how: How) -> Pixels:
    codes = space.codes(names)
    way, _ = mixed(torch.cat([codes, codes[:1]]), LEG_FRAMES, how)
    return to_pixels(space.model.decode(way[:-1]))
