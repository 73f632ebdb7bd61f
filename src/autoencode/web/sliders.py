"""Sliders: a picture moved along directions of the code: those that change most, and those of labels."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from fastapi import APIRouter, Query
from fastapi.responses import Response
from numpy.typing import NDArray

from autoencode.errors import ConfigError
from autoencode.pixels import to_pixels
from autoencode.projection import effect_sizes
from autoencode.web.map import codes_of
from autoencode.web.pictures import readable
from autoencode.web.selections import chosen_positions
from autoencode.web.tabs import Missing, OpenWorkspace, finished, needs_model, png, require
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from autoencode.data.pack import StageProgress

LEADING, MOST_LABELS = 8, 12
STEPS = 7  # of a strip, from one end of a slider to the other
REACH = 2.5  # ends of a slider, in standard deviations, or in distances between the two sets of a label

Text = Annotated[str, Query(max_length=600)]

router = APIRouter()


class Directions(NamedTuple):
    """Directions in the space of codes: (K, D), a step each, with their names."""

    names: tuple[str, ...]
    steps: NDArray[np.float32]


@router.get("/api/sliders")
async def directions(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return the names of the directions, or the progress of finding them."""
    found = _directions(workspace)
    return {"names": found.names, "reach": REACH}


@router.get("/api/sliders/frame")
async def frame(workspace: OpenWorkspace, picture: str, at: Text = "", selection: Text = "") -> Response:
    """Return a picture moved along the directions: "0.5,0,-1" by half a step of the first and back by one."""
    moved = torch.from_numpy(_moved(workspace, at, selection)).float()
    [code] = await workspace.encoding([picture])
    return png(await workspace.decoding(code + moved))


@router.get("/api/sliders/strip")
async def strip(
    workspace: OpenWorkspace,
    picture: str,
    along: Annotated[int, Query(ge=0)],
    across: Annotated[int | None, Query(ge=0)] = None,
    at: Text = "",
    selection: Text = "",
) -> Response:
    """Return seven steps along one direction as one picture, or seven by seven of two, `across` downwards.

    The other directions are as they are set.
    """
    found = _directions(workspace)
    steps = [*found.steps, *([_attribute(workspace, selection)] if selection else [])]
    chosen = [along] if across is None else [across, along]
    if max(chosen) >= len(steps) or along == across:
        raise ConfigError(f"There are {len(steps)} directions, and a grid shows two of them.")
    moved = _moved(workspace, at, selection)[None]
    for one in chosen:
        shares = np.linspace(-REACH, REACH, STEPS) - _numbers(at)[one : one + 1].sum()
        moved = (moved[:, None] + shares[None, :, None] * steps[one]).reshape(-1, moved.shape[-1])
    decoded = to_pixels(await workspace.on_model(_decoded, workspace, picture, moved))
    count, height, width, _ = decoded.shape
    # Edge to edge: steps are compared with their neighbours, and a press on the square finds its picture.
    tiled = decoded.reshape(count // STEPS, STEPS, height, width, 3).swapaxes(1, 2)
    return png(tiled.reshape(count // STEPS * height, STEPS * width, 3))


def _decoded(workspace: Workspace, picture: str, moved: NDArray[np.float32]) -> torch.Tensor:
    return workspace.model.decode(workspace.code(picture)[None] + torch.from_numpy(moved).float())


def _numbers(text: str) -> NDArray[np.float32]:
    try:
        values = np.array([float(part) for part in text.split(",") if part], np.float32)
    except ValueError as err:
        raise ConfigError("Positions of sliders are numbers, divided by commas.") from err
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > 2 * REACH:
        raise ConfigError(f"A slider goes from -{REACH:g} to {REACH:g}.")
    return values


def _moved(workspace: Workspace, at: str, selection: str) -> NDArray[np.float32]:
    """Return what is added to a code, (D,)."""
    found, values = _directions(workspace), _numbers(at)
    steps = found.steps
    if selection:
        steps = np.vstack([steps, _attribute(workspace, selection)])
    if len(values) > len(steps):
        raise ConfigError(f"There are {len(steps)} directions.")
    moved: NDArray[np.float32] = values @ steps[: len(values)]
    return moved


def _directions(workspace: Workspace) -> Directions:
    require(needs(workspace))
    return finished(workspace.sliding.job("directions", functools.partial(_find, workspace)))


def _find(workspace: Workspace, report: StageProgress) -> Directions:
    assert workspace.review is not None
    codes = codes_of(workspace.model, workspace.review, report)
    # In units of their effect on an image: the scale of a code dimension alone means nothing.
    effect = np.maximum(effect_sizes(workspace.model, codes), 1e-12)
    scaled = (codes - codes.mean(0, np.float64)) * effect
    variances, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    count = min(LEADING, len(variances))
    leading = vectors[:, ::-1][:, :count].T * np.sqrt(variances[::-1][:count].clip(0))[:, None] / effect
    names = [f"direction {number}" for number in range(1, count + 1)]
    steps = [*leading.astype(np.float32)]
    labels = workspace.review.pack.labels
    if 2 <= len(labels) <= MOST_LABELS:
        of = np.array([entry.label for entry in workspace.review.pack.entries], object)
        for label in labels:
            names.append(f"more {readable(label)}")
            steps.append(_between(codes, of == label))
    return Directions(tuple(names), np.stack(steps))


def _attribute(workspace: Workspace, selection: str) -> NDArray[np.float32]:
    """Return the way from all other images to those of a selection."""
    assert workspace.review is not None
    codes = codes_of(workspace.model, workspace.review, lambda *_: None)
    is_chosen = np.zeros(len(codes), np.bool_)
    is_chosen[chosen_positions(workspace, selection)] = True
    if is_chosen.all() or not is_chosen.any():
        raise ConfigError("Select some of the pictures, not all of them.")
    return _between(codes, is_chosen)


def _between(codes: NDArray[np.float32], is_one: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.asarray(codes[is_one].mean(0) - codes[~is_one].mean(0), np.float32)


def needs(workspace: Workspace) -> Missing | None:
    """Return what is missing for sliders; None if nothing is."""
    if missing := needs_model(workspace):
        return missing
    if workspace.review is not None and len(workspace.review) > 1:
        return None
    return Missing(
        "Directions are found among pictures. Start the page with a run folder, or with a folder of images.",
        ("autoencode app RUN --images PHOTOS",),
        in_page=True,
    )


NEEDS = {"sliders": needs}
