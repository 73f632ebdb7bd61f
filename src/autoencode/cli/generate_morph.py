"""The commands that make new images: morph and generate. Heavy imports are inside, as in `cli`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from autoencode.cli import options
from autoencode.cli.options import MaxBytes, MaxPixels, Model
from autoencode.cli.progress import console


class Interpolation(StrEnum):
    """How two codes are mixed."""

    linear = "linear"
    spherical = "spherical"


class PriorName(StrEnum):
    """Where codes are drawn from."""

    mixture = "mixture"
    normal = "normal"


def morph(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Two or more image files, in order.")],
    out: Annotated[Path, typer.Option(help="An animation (.gif, .webp) or a strip (.png, ...).")],
    frames: Annotated[
        int | None,
        typer.Option(
            help="From one image to the next, both included. Default: 9, 30 for an animation.", min=2
        ),
    ] = None,
    interpolation: Annotated[
        Interpolation, typer.Option(help="Mix codes along a line, or turn from one to the other.")
    ] = (Interpolation.linear),
    ping_pong: Annotated[bool, typer.Option("--ping-pong", help="Go back to the first image.")] = False,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
) -> None:
    """Turn one image into another, through the code."""
    from autoencode import morphing as application
    from autoencode.models.model_file import load_model

    made = application.morph(
        load_model(model),
        images,
        out,
        frames=frames,
        interpolation=interpolation.value,
        ping_pong=ping_pong,
        limits=options.limits(max_pixels, max_bytes),
    )
    console.print(f"morph: {out} ({len(made.pixels)} frames)", soft_wrap=True)


def generate(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the grid and the images.")],
    count: Annotated[int, typer.Option("--count", "-n", help="Images to make.", min=1)] = 64,
    prior: Annotated[
        PriorName | None,
        typer.Option(
            help="mixture (fitted to the training images) or normal (a VAE only). Default: mixture."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Below 1: more ordinary images; above: stranger ones.", min=0)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    walk: Annotated[
        Path | None,
        typer.Option(
            help="Also a smooth closed walk through the prior: an animation (.gif, .webp) or a strip (.png)."
        ),
    ] = None,
) -> None:
    """Make new images of the kind the model was trained on."""
    from autoencode import generation as application
    from autoencode.atomic import check_output
    from autoencode.data.preprocessing import WRITABLE
    from autoencode.models.model_file import load_model

    if walk is not None:
        check_output(walk, WRITABLE)
    loaded = load_model(model)
    name: Literal["mixture", "normal"] | None = None if prior is None else prior.value
    made = application.generate(loaded, count, out, prior=name, temperature=temperature, seed=seed)
    console.print(f"images: {out / application.IMAGES_NAME}, from the {made.prior} prior", soft_wrap=True)
    console.print(f"grid:   {out / application.GRID_NAME}", soft_wrap=True)
    if walk is not None:
        application.walk(loaded, walk, prior=name, temperature=temperature, seed=seed)
        console.print(f"walk:   {walk}", soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    """Make the commands of this module commands of the program."""
    app.command()(morph)
    app.command()(generate)
