"""Open: from nothing to a page of one's pictures, by folders, runs and indexes under one folder.

Training and indexing are the commands themselves, in processes of their own: what they make can be used
without the page, and goes on where it was when it was stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from PIL import Image, ImageOps
from pydantic import BaseModel

from autoencode.data.folders import EXTENSIONS, is_result
from autoencode.data.pack import open_pack
from autoencode.errors import AutoencodeError, ConfigError, ImageError
from autoencode.figures import contact_sheet
from autoencode.index.memory import FileIndex, FileStore
from autoencode.models.model_file import MODEL_NAME, load_model
from autoencode.pixels import to_float, to_pixels
from autoencode.training.run import is_run, read_run
from autoencode.untrusted import TEXT_BYTES, read_file
from autoencode.web.commands import Starter, Work, index_of, made_in
from autoencode.web.overview import progress_of_run
from autoencode.web.pictures import readable
from autoencode.web.tabs import Missing, OpenWorkspace, in_shell, png, require
from autoencode.web.workspace import Workspace, open_workspace

MOST_COUNTED, COUNTING_SECONDS = 200_000, 2.0
PREVIEWED = 6
# Advice that a command prints for its user; in the page, buttons do the same.
KEYBOARD = re.compile(r"[;:,]? (?:Ctrl-C again skips it|run it again with --resume)(?=[.;]|$)")
CHANGES = re.compile(
    r"codes: (?P<encoded>[\d,]+) encoded.*?, (?P<kept>[\d,]+) kept, (?P<removed>[\d,]+) removed"
)
COMMANDS = ("next:", "report:", "model:")  # lines that end a log, and say what to type or where files are
SAMPLED, SAMPLE_SIDE, SAMPLE_GAP = 8, 160, 4  # images shown of a folder, in pixels
MOST_SAMPLED = 5_000

router = APIRouter()


class Chosen(BaseModel):
    """A folder, relative to the root."""

    folder: str


@router.get("/api/start")
async def folders(
    request: Request, workspace: OpenWorkspace, folder: Annotated[str, Query(max_length=4096)] = ""
) -> dict[str, Any]:
    """Return what is in a folder: its folders, how many images, and runs and indexes."""
    require(needs(workspace))
    starter: Starter = request.app.state.starter
    path = starter.inside(folder)
    return await asyncio.to_thread(_listed, starter, path, workspace.index)


def _listed(starter: Starter, path: Path, opened: FileIndex | None) -> dict[str, Any]:
    assert starter.root is not None
    inner = []
    with contextlib.suppress(OSError):
        inner = sorted(one.name for one in path.iterdir() if not one.name.startswith(".") and _is_open(one))
    images, is_all = _count(path)
    relative = path.relative_to(starter.root)
    # Runs and indexes of a folder seldom lie in it: all of them are listed, the folder's own first.
    made = [*made_in(starter.root, path), *made_in(starter.root, starter.root)]
    index = index_of(starter.root, path, opened)
    return {
        "root": readable(str(starter.root)),
        "folder": "" if path == starter.root else readable(relative.as_posix()),
        "folders": [readable(name) for name in inner],
        "images": images,
        "is_all": is_all,
        "made": list({one["path"]: one for one in made}.values()),
        "index": None if index is None else readable(index[0].relative_to(starter.root).as_posix()),
    }


def _is_open(path: Path) -> bool:
    """Return whether a path is a folder that may hold images: packs and indexes are none, runs are opened."""
    if not path.is_dir() or FileStore().holds(path):
        return False
    with contextlib.suppress(OSError):
        return not is_result(os.listdir(path), is_given=True)  # noqa: PTH208 - names alone
    return True  # what is wrong with it is said once it is opened


def _count(path: Path) -> tuple[int, bool]:
    """Return how many images are in a folder, and whether all of it was looked through."""
    count, seen, until = 0, 0, time.monotonic() + COUNTING_SECONDS
    for folder, inner, names in os.walk(path):
        if is_result([*inner, *names], is_given=folder == str(path)):
            inner.clear()  # its figures are not listed by the commands, either
            continue
        count += sum(name.lower().endswith(EXTENSIONS) for name in names)
        seen += len(names) + 1
        if seen > MOST_COUNTED or time.monotonic() > until:
            return count, False
    return count, True


def _some(path: Path) -> list[Path]:
    """Return a few images of a folder, spread over it, none of which lies elsewhere by a link."""
    found: list[Path] = []
    for folder, inner, names in os.walk(path):
        if is_result([*inner, *names], is_given=folder == str(path)):
            inner.clear()
            continue
        inner.sort()
        found += [Path(folder, name) for name in sorted(names) if name.lower().endswith(EXTENSIONS)]
        if len(found) > MOST_SAMPLED:
            break
    spread = found[:: max(1, len(found) // SAMPLED)][:SAMPLED]
    return [one for one in spread if one.resolve().is_relative_to(path)]


@router.get("/api/start/sample")
async def sample(
    request: Request, workspace: OpenWorkspace, folder: Annotated[str, Query(max_length=4096)] = ""
) -> Response:
    """Show a few images of a folder side by side; those that cannot be read are left out."""
    require(needs(workspace))
    starter: Starter = request.app.state.starter
    tiles = []
    for path in await asyncio.to_thread(_some, starter.inside(folder)):
        with contextlib.suppress(ImageError):
            # Drawn apart and encoded anew, as every picture is: only that is decoded here.
            shown = await workspace.originals.shown(path, SAMPLE_SIDE)
            drawn = Image.open(io.BytesIO(shown.content)).convert("RGB")
            tiles.append(ImageOps.fit(drawn, (SAMPLE_SIDE, SAMPLE_SIDE)))
    # Between the tiles it is clear: what is behind them is light or dark as the page is.
    step = SAMPLE_SIDE + SAMPLE_GAP
    strip = Image.new("RGBA", (max(1, step * len(tiles) - SAMPLE_GAP), SAMPLE_SIDE))
    for number, tile in enumerate(tiles):
        strip.paste(tile, (step * number, 0))
    return png(np.asarray(strip))


@router.post("/api/start/open")
async def open_other(request: Request, workspace: OpenWorkspace, chosen: Chosen) -> dict[str, Any]:
    """Open another run or index in this page, in place of what is open."""
    require(needs(workspace))
    path = request.app.state.starter.inside(chosen.folder)
    opened = await asyncio.to_thread(open_workspace, path)
    opened.can_start = True
    request.app.state.workspace = opened
    await asyncio.to_thread(workspace.close)
    return {"name": opened.name}


@router.post("/api/start/{kind}")
async def begin(
    request: Request, workspace: OpenWorkspace, kind: Literal["train", "index"], chosen: Chosen
) -> dict[str, Any]:
    """Start to train on the images of a folder, or to index them; an index that there is of it is updated."""
    require(needs(workspace))
    starter: Starter = request.app.state.starter
    await asyncio.to_thread(starter.begin, kind, starter.inside(chosen.folder), workspace.index)
    return await work(request, workspace)


@router.post("/api/start/work/stop")
async def stop(request: Request, workspace: OpenWorkspace) -> dict[str, Any]:
    """Stop the command; what it made so far is kept."""
    require(needs(workspace))
    request.app.state.starter.stop()
    return await work(request, workspace)


@router.get("/api/start/work")
async def work(request: Request, workspace: OpenWorkspace) -> dict[str, Any]:
    """Return how far the command is that was started from the page."""
    require(needs(workspace))
    starter: Starter = request.app.state.starter
    if starter.work is None:
        return {"kind": None}
    return await asyncio.to_thread(_progress, starter, starter.work)


def _progress(starter: Starter, of: Work) -> dict[str, Any]:
    assert starter.root is not None
    code = of.process.poll()
    log = read_file(of.log, TEXT_BYTES)[-4000:].decode(errors="replace") if of.log.is_file() else ""
    # A progress line replaces itself: what a terminal shows is what follows the last carriage return.
    lines = [line.rsplit("\r", 1)[-1].strip() for line in log.rstrip().splitlines()]
    about: dict[str, Any] = {
        "kind": of.kind,
        "source": readable(of.source.name),
        "out": readable(of.out.relative_to(starter.root).as_posix()),
        "running": code is None,
        "failed": code not in (None, 0, 130) and not (of.out / MODEL_NAME).is_file(),
        "stopped": code == 130,
        "updates": of.is_update,
        "changes": changes(lines) if code == 0 and of.is_update else None,
        "line": last_line(lines),
        "ready": (of.out / MODEL_NAME).is_file() if of.kind == "train" else FileStore().holds(of.out),
    }
    if of.kind == "train" and is_run(of.out):
        with contextlib.suppress(AutoencodeError):
            about |= progress_of_run(of.out, read_run(of.out).train)
    return about


def last_line(lines: Sequence[str]) -> str:
    """Return the last line of a log that says how far the work is, or how it ended."""
    line = next((line for line in reversed(lines) if line and not line.startswith(COMMANDS)), "")
    return KEYBOARD.sub("", line)


def changes(lines: Sequence[str]) -> dict[str, int] | None:
    """Return how many images an update of an index encoded, kept and removed, from the lines of its log."""
    found = next((one for one in map(CHANGES.match, reversed(lines)) if one), None)
    return found and {name: int(count.replace(",", "")) for name, count in found.groupdict().items()}


@router.get("/api/start/preview")
async def preview(request: Request, workspace: OpenWorkspace) -> Response:
    """Show held-out images beside what the model makes of them after its last epoch."""
    require(needs(workspace))
    of = request.app.state.starter.work
    if of is None or of.kind != "train":
        raise ConfigError("Nothing is being trained.")

    def drawn() -> Response:
        pack, model = open_pack(read_run(of.out).pack), load_model(of.out)
        pixels = pack.pixels(pack.held_out().rows[:PREVIEWED])
        made = to_pixels(model.reconstruct(to_float(pixels)))
        return png(contact_sheet([("before", pixels), ("after", made)], rows_per_block=1))

    return await workspace.on_model(drawn)


def needs(workspace: Workspace) -> Missing | None:
    """Return why nothing can be opened from the page; None if it can."""
    if workspace.can_start:
        return None
    return Missing(
        "On a page for other machines, folders are chosen by the one who starts it.",
        (f"autoencode app {in_shell(workspace.folder)}",),
    )


NEEDS = {"start": needs}
