"""Pictures: taking them in, and showing them. Every one goes by its id and is encoded anew."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from autoencode.data.loader import random_seed
from autoencode.errors import ConfigError
from autoencode.outliers.measurements import coloured, heat_maps
from autoencode.pixels import to_float, to_pixels
from autoencode.web.tabs import OpenWorkspace, png
from autoencode.web.uploads import Held
from autoencode.web.workspace import Pixels, Workspace

MOST_TILES, SHEET_COLUMNS = 256, 16

router = APIRouter()


@router.post("/api/uploads")
async def upload(request: Request, workspace: OpenWorkspace) -> Response:
    """Take in one image file, the body of the request."""
    wait = math.ceil(workspace.allowance.take())
    if wait:
        text = f"Too many images at once. Try again in {wait} s."
        return JSONResponse({"error": text}, 429, {"Retry-After": f"{wait}"})
    content = await request.body()
    pixels = await asyncio.to_thread(workspace.decoder.decode, content)
    code = (await workspace.on_model(workspace.model.encode, to_float(pixels[None])))[0]
    name = "".join(filter(str.isprintable, unquote(request.headers.get("x-name", ""))))[:200]
    return JSONResponse(
        workspace.describe(workspace.uploads.put(Held(pixels, code, name or "upload", "upload")))
    )


@router.get("/api/pictures")
async def some(
    workspace: OpenWorkspace, seed: int = 0, count: Annotated[int, Query(ge=1, le=200)] = 24
) -> list[dict[str, Any]]:
    """Return some of the images, chosen by chance."""
    if workspace.review is None:
        return []
    generator = np.random.default_rng(random_seed("page", seed))
    chosen = generator.permutation(len(workspace.review))[:count]
    return [workspace.describe(f"{workspace.review.letter}{position}") for position in chosen]


@router.get("/api/pictures/{name}")
async def one(workspace: OpenWorkspace, name: str) -> dict[str, Any]:
    """Return what is known of a picture."""
    return workspace.describe(name)


@router.get("/images/{name}")
async def image(workspace: OpenWorkspace, name: str) -> Response:
    """Show a picture."""
    return await asyncio.to_thread(lambda: png(workspace.pixels(name), keeps=True))


@router.get("/images/{name}/reconstruction")
async def reconstruction(workspace: OpenWorkspace, name: str) -> Response:
    """Show what the model makes of it."""
    return await workspace.on_model(lambda: png(_decoded(workspace, name), keeps=True))


@router.get("/images/{name}/difference")
async def difference(workspace: OpenWorkspace, name: str) -> Response:
    """Show where the two differ, as a heat-map."""

    def drawn() -> Response:
        maps = heat_maps(workspace.model, to_float(workspace.pixels(name)[None]))
        return png(coloured(maps)[0], keeps=True)

    return await workspace.on_model(drawn)


@router.get("/sheets/{letter}")
async def sheet(
    workspace: OpenWorkspace, letter: str, positions: str, side: Annotated[int, Query(ge=8, le=128)] = 48
) -> Response:
    """Show many images of a collection as one sheet of square tiles, 16 a row, in the order given."""
    chosen = _positions(workspace, letter, positions)
    return await asyncio.to_thread(
        lambda: png(_sheet(workspace.collections[letter].pixels(chosen), side), keeps=True)
    )


def _decoded(workspace: Workspace, name: str) -> Pixels:
    pixels: Pixels = to_pixels(workspace.model.decode(workspace.code(name)[None]))[0]
    return pixels


def _positions(workspace: Workspace, letter: str, text: str) -> list[int]:
    parts = text.split(",")
    if letter not in workspace.collections or len(parts) > MOST_TILES or not all(map(_is_place, parts)):
        raise ConfigError(f"A sheet shows 1 to {MOST_TILES} images of one collection.")
    chosen = [int(part) for part in parts]
    if max(chosen) >= len(workspace.collections[letter]):
        raise ConfigError("There are not so many images.")
    return chosen


def _is_place(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _sheet(pixels: Pixels, side: int) -> Pixels:
    rows = -(-len(pixels) // SHEET_COLUMNS)
    canvas = Image.new("RGB", (side * min(len(pixels), SHEET_COLUMNS), side * rows))
    for place, one in enumerate(pixels):
        tile = Image.fromarray(one).resize((side, side), Image.Resampling.BOX)
        canvas.paste(tile, (place % SHEET_COLUMNS * side, place // SHEET_COLUMNS * side))
    return np.asarray(canvas)
