"""Restore: a picture at its full size by a restorer, or its reconstruction, corrupted first if asked for.

The restorer is the model of the page, if it is one, and otherwise the one that comes with the package.
"""

from __future__ import annotations

import asyncio
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response

from autoencode.data.corruptions import CORRUPTIONS
from autoencode.data.preprocessing import Limits
from autoencode.models.model_file import load_restorer
from autoencode.reconstruction import Restored, restore
from autoencode.restoration.picture import RestoredPicture, restore_picture
from autoencode.web.jobs import Job
from autoencode.web.originals import SIDES
from autoencode.web.pictures import Held
from autoencode.web.tabs import (
    Missing,
    OpenWorkspace,
    download,
    finished,
    needs_model,
    picture_file,
    png,
)
from autoencode.web.workspace import GoneError, Workspace

if TYPE_CHECKING:
    from autoencode.data.pack import StageProgress
    from autoencode.models.restorer import Restorer

Amount = Annotated[float, Query(ge=0, le=1)]
Chain = Annotated[str, Query(max_length=1000)]  # corruptions in their order, with commas between them

# Before and after are in memory at once, and those of the last pictures with them.
_LIMITS = Limits(max_pixels=64_000_000)

router = APIRouter()


@router.get("/api/restore")
async def numbers(
    workspace: OpenWorkspace, picture: str, clean: str = "", corrupt: Chain = "", seed: int = 0
) -> dict[str, Any]:
    """Return PSNR before and after, and SSIM, against the clean picture."""
    made = await workspace.on_model(_restored, workspace, picture, clean, corrupt, seed)
    return {
        "psnr_db": _finite(made.psnr_db[0]),
        "ssim": _finite(made.ssim[0]),
        "seen_psnr_db": None if made.seen_psnr_db is None else _finite(made.seen_psnr_db[0]),
    }


@router.get("/api/restore/whole")
async def whole(workspace: OpenWorkspace, picture: str, amount: Amount = 1.0) -> dict[str, Any]:
    """Return the size of a restored picture and what was removed, or the progress of restoring it."""
    # Drawn once, small, by a process of its own: a file that hangs or crashes a decoder stops here.
    if (path := workspace.file(picture)) is not None:
        await workspace.originals.shown(path, SIDES[0])
    made = finished(_whole_job(workspace, picture, amount))
    height, width = made.after.levels.shape[:2]
    return {"width": width, "height": height, "removed_rms": made.removed_rms}


@router.get("/api/restore/whole/{side}")
async def part_of_whole(
    workspace: OpenWorkspace, side: Literal["before", "after", "file"], picture: str, amount: Amount = 1.0
) -> Response:
    """Show a restored picture before or after, or return its file."""
    made = finished(_whole_job(workspace, picture, amount))
    if side == "file":
        name = made.after.name_of(Path(workspace.describe(picture)["name"]))
        content = await asyncio.to_thread(made.after.encoded)
        return download(content, f"restored-{name}", "application/octet-stream")
    content = await asyncio.to_thread((made.before if side == "before" else made.after).shown)
    return picture_file(content, "image/png" if content.startswith(b"\x89PNG") else "image/jpeg")


def _whole_job(workspace: Workspace, picture: str, amount: float) -> Job[RestoredPicture]:
    work = functools.partial(_restore_whole, workspace, picture, amount)
    return workspace.restoring.job((picture, amount), work)


def _restore_whole(
    workspace: Workspace, picture: str, amount: float, report: StageProgress
) -> RestoredPicture:
    found, source = workspace.find(picture), workspace.file(picture)
    content = b""
    if isinstance(found, Held):
        # As it was given: it was decoded apart when it came. What is shown of it may be smaller.
        if found.given is None:
            raise GoneError("This picture is no longer in memory at its full size. Add it again.")
        content = found.given

    def tiles(done: int, total: int) -> None:
        report("restoring, parts", done, total)

    model = workspace.restorer or _bundled()
    return restore_picture(model, source or content, amount=amount, limits=_LIMITS, progress=tiles)


@functools.cache
def _bundled() -> Restorer:
    return load_restorer()


@router.get("/api/restore/{side}")
async def shown(
    workspace: OpenWorkspace, side: str, picture: str, corrupt: Chain = "", seed: int = 0
) -> Response:
    """Show one side: for "seen" the input of the model, else its output."""
    made = await workspace.on_model(_restored, workspace, picture, "", corrupt, seed)
    return png((made.seen if side == "seen" else made.restored)[0])


def _restored(workspace: Workspace, picture: str, clean: str, corrupt: str, seed: int) -> Restored:
    # Computed anew for each reply instead of held: with the same seed the damage is the same.
    return restore(
        workspace.model,
        workspace.pixels(picture)[None],
        clean=workspace.pixels(clean)[None] if clean else None,
        corruptions=corrupt.split(",") if corrupt else [],
        seed=seed,
    )


def _finite(value: float) -> float | None:
    # The PSNR of equal pictures is infinite, which JSON cannot hold.
    return value if math.isfinite(value) else None


def facts(workspace: Workspace) -> dict[str, Any]:
    """Return the corruptions the model was trained against, and those the tab offers."""
    offers = [
        (f"{name}:{amount:g}", words)
        for name, kind in CORRUPTIONS.items()
        for amount, words in kind.page_choices
    ]
    trained = workspace.model.training_corruptions if workspace.has_model else ()
    return {"corrupt": trained, "corruptions": offers}


def _needs_code(workspace: Workspace) -> Missing | None:
    return None if workspace.has_model else needs_model(workspace)


NEEDS = {"code": _needs_code}
