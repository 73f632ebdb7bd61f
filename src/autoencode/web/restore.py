"""Restore: a picture and its reconstruction, corrupted first if asked for."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response

from autoencode.data.corruptions import CORRUPTIONS
from autoencode.reconstruction import Restored, restore
from autoencode.web.tabs import OpenWorkspace, needs_model, png
from autoencode.web.workspace import Workspace

Text = Annotated[str, Query(max_length=200)]

router = APIRouter()


@router.get("/api/restore")
async def numbers(
    workspace: OpenWorkspace, picture: str, clean: str = "", corrupt: Text = "", seed: int = 0
) -> dict[str, Any]:
    """Return PSNR before and after, and SSIM, against the clean picture."""
    made = await workspace.on_model(_restored, workspace, picture, clean, corrupt, seed)
    return {
        "psnr_db": _finite(made.psnr_db[0]),
        "ssim": _finite(made.ssim[0]),
        "seen_psnr_db": None if made.seen_psnr_db is None else _finite(made.seen_psnr_db[0]),
    }


@router.get("/api/restore/{side}")
async def shown(
    workspace: OpenWorkspace, side: str, picture: str, corrupt: Text = "", seed: int = 0
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
        corruptions=[corrupt] if corrupt else [],
        seed=seed,
    )


def _finite(value: float) -> float | None:
    # The PSNR of equal pictures is infinite, which JSON cannot hold.
    return value if math.isfinite(value) else None


def facts(workspace: Workspace) -> dict[str, Any]:
    """Return the corruptions the model was trained against, and those the tab offers."""
    offers = [
        (f"{name}:{amount:g}", words) for name, kind in CORRUPTIONS.items() for amount, words in kind.offers
    ]
    trained = workspace.model.training_corruptions if workspace.has_model else ()
    return {"corrupt": trained, "corruptions": offers}


NEEDS = {"restore": needs_model}
