"""Restore: a picture beside what the model makes of it, corrupted first if asked for."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response

from autoencode.reconstruction import Restored, restore
from autoencode.web.replies import Space, png
from autoencode.web.workspace import Workspace

Text = Annotated[str, Query(max_length=200)]

router = APIRouter()


@router.get("/api/restore")
async def numbers(space: Space, picture: str, clean: str = "", corrupt: Text = "", seed: int = 0) -> Response:
    """Return how close the restored picture is to the clean one: PSNR, before and after, and SSIM."""
    made = await space.on_model(_restored, space, picture, clean, corrupt, seed)
    return JSONResponse(
        {
            "psnr_db": _finite(made.psnr_db[0]),
            "ssim": _finite(made.ssim[0]),
            "seen_psnr_db": None if made.seen_psnr_db is None else _finite(made.seen_psnr_db[0]),
        }
    )


@router.get("/api/restore/{side}")
async def shown(space: Space, side: str, picture: str, corrupt: Text = "", seed: int = 0) -> Response:
    """Show one side: "seen" is what the model was given, any other what it made of that."""
    made = await space.on_model(_restored, space, picture, "", corrupt, seed)
    return png((made.seen if side == "seen" else made.restored)[0])


def _restored(space: Workspace, picture: str, clean: str, corrupt: str, seed: int) -> Restored:
    return restore(
        space.model,
        space.pixels(picture)[None],
        clean=space.pixels(clean)[None] if clean else None,
        corruptions=[corrupt] if corrupt else [],
        seed=seed,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
