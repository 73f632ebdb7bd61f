"""What the tabs share: the workspace of a request, pictures as bytes, work that is not done yet."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np
from fastapi import Depends, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from PIL import Image

from autoencode.web.jobs import Job
from autoencode.web.workspace import Workspace, readable

Result = TypeVar("Result")


def _workspace(request: Request) -> Workspace:
    workspace: Workspace = request.app.state.workspace
    return workspace


Space = Annotated[Workspace, Depends(_workspace)]


def png(pixels: NDArray[np.uint8], *, keeps: bool = False) -> Response:
    """Answer with pixels (H, W, 3) as a PNG file; `keeps` where the same address always shows the same."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    headers = {"Cache-Control": "private, max-age=3600"} if keeps else {}
    return Response(file.getvalue(), media_type="image/png", headers=headers)


def download(content: bytes, name: str, media_type: str) -> Response:
    """Answer with a file to save."""
    disposition = f"attachment; filename*=UTF-8''{quote(name)}"
    return Response(content, media_type=media_type, headers={"Content-Disposition": disposition})


def unfinished(job: Job[Any]) -> Response:
    """Answer how far a job is: 202 while it runs, 409 with the reason where it failed."""
    progress = job.progress()
    return JSONResponse(progress, 409 if progress["state"] == "failed" else 202)


def in_shell(path: Path) -> str:
    """Return a path as a word of a command."""
    return readable(shlex.quote(str(path)))


class Missing(NamedTuple):
    """What has to be made before something works, in words, and the commands that make it."""

    error: str
    commands: tuple[str, ...] = ()

    def answer(self) -> Response:
        """Answer that it has to be made first; a page knows it already, and does not ask."""
        return JSONResponse(self._asdict(), 409)
