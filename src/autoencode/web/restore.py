"""Restore: a picture at its full size by a restorer, or its reconstruction, corrupted first if asked for.

The restorer is the model of the page if that is one, and otherwise the bundled restorer.
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
from autoencode.errors import ImageError
from autoencode.models.model_file import load_restorer
from autoencode.reconstruction import ReconstructedPixels, reconstruct_pixels
from autoencode.restoration.picture import RestoredPicture, factors_of, restore_picture
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
_MOST_SCALE = 16
Scale = Annotated[int, Query(ge=1, le=_MOST_SCALE)]
Chain = Annotated[str, Query(max_length=1000)]  # corruptions in their order, with commas between them

# Before and after are in memory at once, and those of the last pictures with them.
_MOST_PIXELS = 64_000_000

router = APIRouter()


@router.get("/api/restore")
async def reconstruction_quality(
    workspace: OpenWorkspace, picture: str, clean: str = "", corrupt: Chain = "", seed: int = 0
) -> dict[str, Any]:
    """Return PSNR before and after, and SSIM, against the clean picture."""
    made = await workspace.on_model(_reconstruct, workspace, picture, clean, corrupt, seed)
    before = made.corrupted_psnr_db
    return {
        "psnr_db": _finite(made.psnr_db[0]),
        "ssim": _finite(made.ssim[0]),
        "corrupted_psnr_db": None if before is None else _finite(before[0]),
    }


@router.get("/api/restore/whole")
async def restored_picture(
    workspace: OpenWorkspace, picture: str, amount: Amount = 1.0, scale: Scale = 1
) -> dict[str, Any]:
    """Return the upright size of a restored picture and what was removed, or the progress of restoring it."""
    # Drawn once, small, by a process of its own: a file that hangs or crashes a decoder stops here.
    if (path := workspace.file(picture)) is not None:
        await workspace.originals.shown(path, SIDES[0])
    made = finished(_restoring_job(workspace, picture, amount, scale))
    width, height = made.after.shown_size
    return {"width": width, "height": height, "removed_rms": made.removed_rms}


@router.get("/api/restore/whole/file")
async def restored_file(
    workspace: OpenWorkspace, picture: str, amount: Amount = 1.0, scale: Scale = 1
) -> Response:
    """Return the file of a restored picture, to keep."""
    made = finished(_restoring_job(workspace, picture, amount, scale))
    name = made.after.name_of(Path(workspace.describe(picture)["name"]))
    content = await asyncio.to_thread(made.after.encoded)
    return download(content, f"restored-{name}", "application/octet-stream")


@router.get("/api/restore/whole/{side}")
async def restored_side(
    workspace: OpenWorkspace,
    side: Literal["before", "after"],
    picture: str,
    amount: Amount = 1.0,
    scale: Scale = 1,
) -> Response:
    """Show a restored picture before or after."""
    made = finished(_restoring_job(workspace, picture, amount, scale))
    content = await asyncio.to_thread((made.before if side == "before" else made.after).shown)
    return picture_file(content, "image/png" if content.startswith(b"\x89PNG") else "image/jpeg")


def _restoring_job(workspace: Workspace, picture: str, amount: float, scale: int) -> Job[RestoredPicture]:
    work = functools.partial(_restore_whole, workspace, picture, amount, scale)
    return workspace.restoring.job((picture, amount, scale), work)


def _restore_whole(
    workspace: Workspace, picture: str, amount: float, scale: int, report: StageProgress
) -> RestoredPicture:
    def tiles(done: int, total: int) -> None:
        report("restoring, parts", done, total)

    return restore_picture(
        workspace.restorer or _bundled(),
        _full_size(workspace, picture),
        scale=scale,
        amount=amount,
        limits=Limits(max_pixels=_MOST_PIXELS),
        progress=tiles,
    )


def _full_size(workspace: Workspace, picture: str) -> Path | bytes:
    """Return the file of a picture, or the content of one that is in memory.

    Raises:
        GoneError: the picture is no longer in memory as it was given.
        ImageError: the picture is in object storage.
    """
    found = workspace.find(picture)
    if isinstance(found, Held):
        # As it was given: it was decoded apart when it came. What is shown of it may be smaller.
        if found.given is None:
            raise GoneError("This picture is no longer in memory at its full size. Add it again.")
        return found.given
    if (path := workspace.file(picture)) is None:
        raise ImageError("its file is in object storage. Download it, and add it to the page")
    return path


@functools.cache
def _bundled() -> Restorer:
    return load_restorer()


@router.get("/api/restore/{side}")
async def reconstruction_side(
    workspace: OpenWorkspace,
    side: Literal["corrupted", "reconstructed"],
    picture: str,
    corrupt: Chain = "",
    seed: int = 0,
) -> Response:
    """Show what the model was given, or its reconstruction."""
    made = await workspace.on_model(_reconstruct, workspace, picture, "", corrupt, seed)
    return png((made.corrupted if side == "corrupted" else made.reconstructed)[0])


def _reconstruct(
    workspace: Workspace, picture: str, clean: str, corrupt: str, seed: int
) -> ReconstructedPixels:
    # Computed anew for each reply instead of held: with the same seed the corruption is the same.
    return reconstruct_pixels(
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
    """Return the corruptions of the model's training, those the tab offers, and factors of enlargement."""
    choices = [
        (f"{name}:{amount:g}", words)
        for name, kind in CORRUPTIONS.items()
        for amount, words in kind.page_choices
    ]
    trained = workspace.model.training_corruptions if workspace.has_model else ()
    factors = factors_of(workspace.restorer) if workspace.restorer else []
    scales = [factor for factor in factors if factor <= _MOST_SCALE]
    return {"corrupt": trained, "corruptions": choices, "scales": scales}


def _needs_code(workspace: Workspace) -> Missing | None:
    return None if workspace.has_model else needs_model(workspace)


NEEDS = {"code": _needs_code}
