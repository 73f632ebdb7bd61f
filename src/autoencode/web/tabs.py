"""The registry of the tabs of the page, and the replies they share.

A tab NAME is a line in `TABS`, the module NAME.py beside this one, and the script static/NAME.js. The module
has a `router`, and optionally

- `NEEDS`: by the name of a function of the page, a callable that returns what is missing for it, or None;
- `facts(workspace)`: facts that the script needs at the start, as JSON can hold them.

The script exports `mount(root)`, which returns the optional handlers show, hide, take and key.
"""

from __future__ import annotations

import importlib
import io
import shlex
from pathlib import Path
from types import ModuleType
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


class Tab(NamedTuple):
    """A tab of the page: its `name` in addresses and file names, and its `title` for people."""

    name: str
    title: str

    @property
    def module(self) -> ModuleType:
        """The module that serves the tab."""
        return importlib.import_module(f"autoencode.web.{self.name}")


# In the order of the page. A new tab is a line here, a module and a script.
TABS = (
    Tab("overview", "Overview"),
    Tab("search", "Search"),
    Tab("morph", "Morph"),
    Tab("generate", "Generate"),
    Tab("restore", "Restore"),
    Tab("outliers", "Outliers"),
    Tab("map", "Map"),
)


def _workspace(request: Request) -> Workspace:
    workspace: Workspace = request.app.state.workspace
    return workspace


OpenWorkspace = Annotated[Workspace, Depends(_workspace)]


def png(pixels: NDArray[np.uint8], *, keeps: bool = False) -> Response:
    """Return pixels (H, W, 3) as a PNG file; `keeps` if the same address always shows the same picture."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    headers = {"Cache-Control": "private, max-age=3600"} if keeps else {}
    return Response(file.getvalue(), media_type="image/png", headers=headers)


def download(content: bytes, name: str, media_type: str) -> Response:
    """Return a file to save."""
    disposition = f"attachment; filename*=UTF-8''{quote(name)}"
    return Response(content, media_type=media_type, headers={"Content-Disposition": disposition})


def unfinished(job: Job[Any]) -> Response:
    """Return the progress of a job: 202 while it runs, 409 with the reason if it failed."""
    progress = job.progress()
    return JSONResponse(progress, 409 if progress["state"] == "failed" else 202)


def in_shell(path: Path) -> str:
    """Return a path quoted for a shell command."""
    return readable(shlex.quote(str(path)))


class Missing(NamedTuple):
    """Something that must exist before a function of the page works, and the commands that make it."""

    error: str
    commands: tuple[str, ...] = ()

    def answer(self) -> Response:
        """Return it as a reply; the page knows it from `/api/workspace` and does not ask."""
        return JSONResponse(self._asdict(), 409)
