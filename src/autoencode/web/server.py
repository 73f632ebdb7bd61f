"""The server of the page: its files, its tabs, and replies to errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from autoencode.data.decoders import UPLOAD_LIMITS
from autoencode.errors import AutoencodeError
from autoencode.web import pictures
from autoencode.web.security import Guard, Trust
from autoencode.web.tabs import TABS, OpenWorkspace
from autoencode.web.workspace import GoneError, Workspace

STATIC = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

router = APIRouter()


@router.get("/api/workspace")
async def about(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return the model, the tabs, what each of them offers and what is missing for it."""
    model, found = workspace.model, dict[str, Any]()
    needs = {}
    for tab in TABS:
        if hasattr(tab.module, "facts"):
            found |= tab.module.facts(workspace)
        for name, missing in getattr(tab.module, "NEEDS", {}).items():
            if lacking := missing(workspace):
                needs[name] = lacking._asdict()
    return {
        "name": workspace.name,
        "launch": workspace.launch,
        "tabs": [tab._asdict() for tab in TABS],
        "kind": "variational autoencoder" if model.is_vae else "autoencoder",
        "height": model.preprocessing.height,
        "width": model.preprocessing.width,
        "code_size": model.config.code_size,
        "images": 0 if workspace.review is None else len(workspace.review),
        "upload_bytes": UPLOAD_LIMITS.max_bytes,
        "needs": needs,
        **found,
    }


def make_app(workspace: Workspace, trust: Trust | None = None) -> FastAPI:
    """Return the page as an ASGI application.

    Args:
        workspace: what it works on; closed with the application.
        trust: who may talk to it; the default is this machine, with a new token.
    """
    trust = trust or Trust()

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        workspace.close()

    # No pages about the interface: they load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.state.workspace = workspace
    _add_static(app)
    app.include_router(router)
    for module in (pictures, *(tab.module for tab in TABS)):
        app.include_router(module.router)
    app.add_exception_handler(GoneError, _gone)
    app.add_exception_handler(AutoencodeError, _rejected)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_middleware(Guard, trust=trust)
    return app


def _add_static(app: FastAPI) -> None:
    # Read once, by name: there is no path in a request that could lead elsewhere.
    files = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in _TYPES}
    page = (STATIC / "index.html").read_text()

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        media_type = _TYPES[Path(name).suffix]
        return Response(files[name], media_type=media_type, headers={"Cache-Control": "no-cache"})


async def _gone(_: Request, err: Exception) -> Response:
    return JSONResponse({"error": str(err)}, 404)


async def _rejected(_: Request, err: Exception) -> Response:
    text = str(err)
    return JSONResponse({"error": text[:1].upper() + text[1:]}, 422)


async def _not_understood(_: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    problems = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in err.errors()[:3])
    return JSONResponse({"error": f"The request cannot be used. {problems}."}, 422)


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; a window closed while it sent a picture is no fault


async def _http(_: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    return JSONResponse({"error": "There is nothing here."}, err.status_code)
