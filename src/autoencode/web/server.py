"""The server of the page: its files, its tabs, the pictures, and replies to errors.

Every picture is shown by its id, never by a path, and encoded anew: neither a place in the file system nor
what else a file holds leaves the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
import torch
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from autoencode.errors import AutoencodeError, ConfigError, ImageError
from autoencode.outliers.measurements import coloured, heat_maps
from autoencode.pixels import to_float
from autoencode.web.commands import Starter
from autoencode.web.filtering import described
from autoencode.web.missing import missing
from autoencode.web.originals import SIDES, UPLOAD_SIDE
from autoencode.web.pictures import Held, Pixels, is_position, readable
from autoencode.web.security import Guard, Trust, Uploads
from autoencode.web.tabs import TABS, OpenWorkspace, ReplyError, picture_file, png, recall_all
from autoencode.web.workspace import GoneError, Workspace

STATIC = Path(__file__).parent / "static"
MOST_TILES, SHEET_COLUMNS = 256, 16  # of a sheet of thumbnails; static/map.js cuts it by the same 16

# For a person who typed an address; the paths of the page are `/` alone, all else is after its "#".
_NOTHING = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Nothing here · autoencode</title>
<link rel="stylesheet" href="/static/app.css">
<main>
<h1>Nothing here</h1>
<p class="lead">There is nothing at this address. <a href="/">Open the page</a>.</p>
</main>
</html>
"""

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

router = APIRouter()


def make_app(workspace: Workspace, trust: Trust | None = None, root: Path | None = None) -> FastAPI:
    """Return the page as an ASGI application.

    Args:
        workspace: its model and images; closed with the application.
        root: the folder under which runs may be opened and trainings started; None for neither.
        trust: who may use it; the default is this machine, with a new token.
    """

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.starter.close()
        app.state.workspace.close()  # that which is open now, perhaps another

    # No pages about the interface: they load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.state.workspace, app.state.uploads, app.state.starter = workspace, Uploads(), Starter(root)
    workspace.can_start = root is not None
    _add_static(app)
    app.include_router(router)
    for tab in TABS:
        app.include_router(tab.module.router)
    app.add_exception_handler(ReplyError, _reply)
    app.add_exception_handler(GoneError, _gone)
    app.add_exception_handler(AutoencodeError, _rejected)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_middleware(Guard, trust=trust or Trust(), upload_bytes=workspace.decoder.limits.max_bytes)
    return app


@router.get("/api/workspace")
async def about(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return the model, the tabs, their facts, and what is missing for each function of the page."""
    await recall_all(workspace)
    facts, needs = dict[str, Any](), dict[str, Any]()
    for tab in TABS:
        if hasattr(tab.module, "facts"):
            facts |= tab.module.facts(workspace)
        for name, needed in getattr(tab.module, "NEEDS", {}).items():
            if lacking := needed(workspace):
                needs[name] = lacking._asdict()
    return {
        "name": workspace.name,
        "launch": workspace.launch,
        "tabs": [tab._asdict() for tab in TABS],
        "kind": _kind(workspace),
        "height": workspace.preprocessing.height,
        "width": workspace.preprocessing.width,
        "code_size": workspace.model.config.code_size if workspace.has_model else 0,
        "images": 0 if workspace.review is None else len(workspace.review),
        "folder": None if workspace.review is None else readable(workspace.review.pack.folder.name),
        "letter": None if workspace.review is None else workspace.review.letter,
        "upload_bytes": workspace.decoder.limits.max_bytes,
        "needs": needs,
        **facts,
    }


def _kind(workspace: Workspace) -> str | None:
    if workspace.has_model:
        return "variational autoencoder" if workspace.model.is_vae else "autoencoder"
    return "restorer" if workspace.restorer is not None else None


@router.post("/api/uploads")
async def upload(request: Request, workspace: OpenWorkspace) -> Response:
    """Take in one image file, the body of the request."""
    # Before the body is read: a rejected upload costs nothing.
    uploads: Uploads = request.app.state.uploads
    wait = math.ceil(uploads.wait())
    if wait:
        text = f"Too many images at once. Try again in {wait} s."
        return JSONResponse({"error": text}, 429, {"Retry-After": f"{wait}"})
    with uploads.one():
        content = await request.body()
        # One after the other: files that are slow to decode would stop the pictures, which come from the same
        # processes.
        async with uploads.turn:
            # In processes with bounds: the file may be made to crash or fill a decoder.
            pixels = await asyncio.to_thread(workspace.decoder.decode, content)
            larger = await workspace.originals.redrawn(content, UPLOAD_SIDE)
    code = torch.zeros(0)
    if workspace.has_model:
        code = (await workspace.on_model(workspace.model.encode, to_float(pixels[None])))[0]
    # A name is shown beside messages: control characters and a megabyte of text are not.
    name = "".join(filter(str.isprintable, unquote(request.headers.get("x-name", ""))))[:200]
    return JSONResponse(
        workspace.hold(Held(pixels, code, name or "upload", "upload", larger.content, content))
    )


@router.get("/api/pictures")
async def some(
    workspace: OpenWorkspace,
    seed: Annotated[int, Query(ge=0)] = 0,
    count: Annotated[int, Query(ge=1, le=200)] = 24,
) -> list[dict[str, Any]]:
    """Return a random choice of the images."""
    if workspace.review is None:
        return []
    chosen = np.random.default_rng(seed).permutation(len(workspace.review))[:count]
    return [workspace.describe(f"{workspace.review.letter}{position}") for position in chosen]


@router.get("/api/pictures/{name}")
async def one(workspace: OpenWorkspace, name: str) -> dict[str, Any]:
    """Return the facts about a picture; of one under review also its tags, its decision and its score."""
    found = workspace.find(name)
    if not isinstance(found, Held) and found.collection is workspace.review:
        gone = await asyncio.to_thread(missing, found.collection)
        return described(workspace, found.collection, found.position, is_gone=bool(gone[found.position]))
    return workspace.describe(name)


@router.get("/api/pictures/{name}/file")
async def file_facts(workspace: OpenWorkspace, name: str) -> dict[str, Any]:
    """Return the path, size, date and dimensions of the file of a picture, or why it cannot be shown."""
    path = workspace.file(name)
    if path is None:
        return {"path": None, "problem": None}
    about: dict[str, Any] = {"path": readable(str(path)), "problem": None}
    try:
        status = await asyncio.to_thread(path.stat)
        shown = await workspace.originals.shown(path, SIDES[0])
    except OSError as err:
        way_out = "You see what was packed. Put it back, or index its folder again."
        return {**about, "problem": f"The file is gone ({err.strerror}). {way_out}"}
    except ImageError as err:
        return {**about, "problem": f"The file {err}. You see what was packed."}
    found = workspace.find(name)
    assert not isinstance(found, Held)  # a picture in memory has no path
    entry = found.collection.entry(found.position)
    if (entry.size, entry.mtime) != (status.st_size, status.st_mtime_ns):
        about["problem"] = (
            "The file has changed since it was packed. Scores and neighbours are of the old one."
        )
    return {
        **about,
        "width": shown.width,
        "height": shown.height,
        "bytes": status.st_size,
        "modified": status.st_mtime,
    }


# Pictures are read and encoded in threads of their own: the first touch of a page of the pack waits for the
# disk, and the event loop would wait with it.


@router.get("/images/{name}")
async def image(workspace: OpenWorkspace, name: str) -> Response:
    """Show a picture."""
    return await asyncio.to_thread(lambda: png(workspace.pixels(name), is_constant=True))


@router.get("/images/{name}/original")
async def original(
    workspace: OpenWorkspace, name: str, side: Annotated[int, Query(ge=16, le=SIDES[-1])] = SIDES[1]
) -> Response:
    """Show a picture as its file has it, at about `side` pixels; without a file, as the model sees it."""
    path, held = workspace.file(name), workspace.find(name)
    if isinstance(held, Held) and held.file is not None:
        return picture_file(held.file, "image/png" if held.file.startswith(b"\x89PNG") else "image/jpeg")
    # Not an error that a browser would log: the window of the picture says what happened to the file.
    with contextlib.suppress(ImageError):
        if path is not None:
            shown = await workspace.originals.shown(path, side)
            return picture_file(shown.content, shown.media_type)
    return await asyncio.to_thread(lambda: png(workspace.pixels(name), is_constant=True))


@router.get("/images/{name}/reconstruction")
async def reconstruction(workspace: OpenWorkspace, name: str) -> Response:
    """Show the reconstruction of a picture."""
    # From the code: that of a sample was drawn, and is not the one its picture would be encoded to.
    [code] = await workspace.encoding([name])
    return png(await workspace.decoding(code), is_constant=True)


@router.get("/images/{name}/difference")
async def difference(workspace: OpenWorkspace, name: str) -> Response:
    """Show where a picture and its reconstruction differ, as a heat map."""

    def drawn() -> Response:
        maps = heat_maps(workspace.model, to_float(workspace.pixels(name)[None]))
        return png(coloured(maps)[0], is_constant=True)

    return await workspace.on_model(drawn)


@router.get("/sheets/{letter}")
async def sheet(
    workspace: OpenWorkspace, letter: str, positions: str, side: Annotated[int, Query(ge=8, le=128)] = 48
) -> Response:
    """Show images of a collection as one sheet of square tiles, 16 per row, in the order given."""
    # One request for up to 256 thumbnails of the map, as a browser makes six at a time.
    parts = positions.split(",")
    if letter not in workspace.collections or len(parts) > MOST_TILES or not all(map(is_position, parts)):
        raise ConfigError(f"A sheet shows 1 to {MOST_TILES} images of one collection.")
    collection, chosen = workspace.collections[letter], [int(part) for part in parts]
    if max(chosen) >= len(collection):
        raise ConfigError(f"The collection has {len(collection):,} images.")
    return await asyncio.to_thread(lambda: png(_sheet(collection.pixels(chosen), side), is_constant=True))


def _sheet(pixels: Pixels, side: int) -> Pixels:
    rows = -(-len(pixels) // SHEET_COLUMNS)
    canvas = Image.new("RGB", (side * min(len(pixels), SHEET_COLUMNS), side * rows))
    for number, one_image in enumerate(pixels):
        tile = Image.fromarray(one_image).resize((side, side), Image.Resampling.BOX)
        canvas.paste(tile, (number % SHEET_COLUMNS * side, number // SHEET_COLUMNS * side))
    return np.asarray(canvas)


def _add_static(app: FastAPI) -> None:
    # Read once, by name: no path in a request can lead to another file.
    files = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in _TYPES}
    page = (STATIC / "index.html").read_text()

    # no-cache: a browser asks each time, or it would run the scripts of the version before an update.
    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        # Named here: what a system knows as the type of .js varies, and with nosniff a wrong one is not run.
        media_type = _TYPES[Path(name).suffix]
        return Response(files[name], media_type=media_type, headers={"Cache-Control": "no-cache"})


async def _reply(_: Request, err: Exception) -> Response:
    assert isinstance(err, ReplyError)
    return JSONResponse(err.content, err.status)


async def _gone(_: Request, err: Exception) -> Response:
    return JSONResponse({"error": str(err)}, 404)


async def _rejected(_: Request, err: Exception) -> Response:
    text = str(err)
    return JSONResponse({"error": text[:1].upper() + text[1:]}, 422)


async def _not_understood(_: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    # Without the input, which FastAPI's own reply repeats.
    problems = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in err.errors()[:3])
    return JSONResponse({"error": f"The request cannot be used. {problems}."}, 422)


async def _http(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    is_missing = err.status_code in (404, 405)
    text = "There is nothing at this address." if is_missing else "The request is not JSON."
    if "text/html" in request.headers.get("accept", ""):  # a person typed it
        return HTMLResponse(_NOTHING, err.status_code)
    return JSONResponse({"error": text}, err.status_code)


async def _left(_: Request, __: Exception) -> Response:
    # A window that closes while it sends a picture is no fault of the server, and no traceback in its log.
    return Response(status_code=499)
