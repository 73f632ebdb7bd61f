"""The registry of the tabs of the page, and the replies they share.

A tab NAME is a line in `TABS`, the module NAME.py beside this one, and the script static/NAME.js. The module
has a `router`, and optionally

- `NEEDS`: a callable for each function of the page, by name, that returns what is missing for it, or None;
- `facts(workspace)`: facts that the script needs at its start, as JSON can hold them.
- `recall(workspace)`: brings back results of an earlier start, if all that they depend on is as it was.

The script exports `mount(root)`, which returns the optional handlers show, hide, take and key.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.responses import Response
from PIL import Image

from autoencode.web.pictures import Collection, Pixels, readable
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from autoencode.web.jobs import Job

Result = TypeVar("Result")


class Tab(NamedTuple):
    """A tab of the page: its `name` in addresses and file names, and its `title` for people."""

    name: str
    title: str

    @property
    def module(self) -> ModuleType:
        """The module that serves the tab."""
        # Imported by name: the modules of the tabs import this one.
        return importlib.import_module(f"autoencode.web.{self.name}")


# In the order of the page. A new tab is a line here, a module and a script.
TABS = (
    Tab("overview", "Overview"),
    Tab("browse", "Browse"),
    Tab("map", "Map"),
    Tab("search", "Search"),
    Tab("duplicates", "Duplicates"),
    Tab("outliers", "Outliers"),
    Tab("restore", "Restore"),
    Tab("morph", "Morph"),
    Tab("sliders", "Sliders"),
    Tab("generate", "Generate"),
    Tab("start", "Open"),
)


async def recall_all(workspace: Workspace) -> None:
    """Bring back the results of an earlier start, the first time that the page asks for anything."""
    if not workspace.results.are_recalled:
        workspace.results.are_recalled = True
        for tab in TABS:
            if hasattr(tab.module, "recall"):
                # In a thread: all files are looked at.
                await asyncio.to_thread(tab.module.recall, workspace)


def _workspace(request: Request) -> Workspace:
    workspace: Workspace = request.app.state.workspace
    return workspace


OpenWorkspace = Annotated[Workspace, Depends(_workspace)]


class ReplyError(Exception):
    """Ends a request with a reply other than its result.

    Args:
        status: of HTTP.
        content: what JSON can hold.
    """

    def __init__(self, status: int, content: dict[str, Any]) -> None:
        super().__init__(status, content)
        self.status, self.content = status, content


class Missing(NamedTuple):
    """What is missing for a function of the page, and the commands that make it.

    `in_page` if the tab Open does what the commands do.
    """

    error: str
    commands: tuple[str, ...] = ()
    in_page: bool = False


def require(missing: Missing | None) -> None:
    """End the request with 409 if something is missing.

    The page knows from `/api/workspace` and does not ask; this is for other clients.
    """
    if missing is not None:
        raise ReplyError(409, missing._asdict())


def needs_model(workspace: Workspace) -> Missing | None:
    """Return what is missing on a page without an autoencoder; None if there is one."""
    if workspace.has_model:
        return None
    source = "PHOTOS" if workspace.review is None else in_shell(workspace.review.pack.folder)
    return Missing(
        "This needs a model trained on your images. Train one, then start the page with it.",
        (f"autoencode train {source} --out runs/mine", "autoencode app runs/mine"),
        in_page=True,
    )


def needs_review(workspace: Workspace) -> Missing | None:
    """Return what is missing for browsing; None if nothing is."""
    if workspace.review is not None:
        return None
    return Missing(
        "There are no pictures to browse. Open the page with an index, a run folder, or a folder of images.",
        ("autoencode index PHOTOS", "autoencode app indexes/PHOTOS"),
        in_page=True,
    )


def review_of(workspace: Workspace) -> Collection:
    """Return the images under review.

    Raises:
        ReplyError: there are none.
    """
    require(needs_review(workspace))
    assert workspace.review is not None
    return workspace.review


def without_training_images(use: str) -> Missing:
    """Return what is missing for a use of the training's images: "Quality is measured on images ..."."""
    return Missing(
        f"{use}, and those were not found. Open the run folder, with its pack where training left it.",
        ("autoencode app RUN",),
    )


def finished(job: Job[Result]) -> Result:
    """Return the result of a job, or end the request with its progress: 202 while it runs, 409 if it failed.

    The page asks again. A request that waited would hold one of the six connections that a browser opens.
    """
    result = job.result()
    if result is None:
        progress = job.progress()
        raise ReplyError(409 if progress["state"] == "failed" else 202, progress)
    return result


def png(pixels: Pixels, *, is_constant: bool = False) -> Response:
    """Return pixels (H, W, 3) as a PNG file; `is_constant` if the address always shows the same picture."""
    file = io.BytesIO()
    # Level 1: a sheet of 256 tiles takes 169 ms instead of 285 at the default 6 and is 13 % larger, which a
    # connection within one machine does not notice.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    if is_constant:
        return picture_file(file.getvalue(), "image/png")
    return Response(file.getvalue(), media_type="image/png")


def picture_file(content: bytes, media_type: str) -> Response:
    """Return a picture whose address always shows the same, for the browser to keep."""
    # Private, and an hour only: no proxy keeps pictures of a person, and the next launch has other addresses.
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(content, media_type=media_type, headers=headers)


def download(content: bytes, name: str, media_type: str) -> Response:
    """Return a file to save."""
    return Response(content, media_type=media_type, headers=attachment(name))


def attachment(name: str) -> dict[str, str]:
    """Return the headers of a file to save under a name."""
    # The form of RFC 5987, as a plain file name in a header can only be Latin-1.
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}


def file_name(*words: str) -> str:
    """Return words as the name of a file, without what a file system or a shell takes for something else."""
    parts = (re.sub(r"[^\w.]+", "-", word).strip("-.") for word in words)
    return "-".join(part for part in parts if part)[:100] or "pictures"


def in_shell(path: Path) -> str:
    """Return a path quoted for a shell command."""
    return readable(shlex.quote(str(path)))
