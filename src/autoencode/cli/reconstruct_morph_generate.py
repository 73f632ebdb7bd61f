"""The commands that make images: reconstruct, morph and generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autoencode.cli import options
from autoencode.cli.options import Corrupt, Decoder, Images, MaxPixels, Model, add_command
from autoencode.cli.progress import (
    counted,
    counting,
    fail_if_named,
    say,
    show_remarks,
    show_result,
    show_skipped,
    warn,
)
from autoencode.cli.results import fit_missing_prior
from autoencode.configuration import Interpolation, PriorName


def reconstruct(
    model: Model,
    images: Images,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the sheet, the table and the images. Default: results/reconstruct-NAME."
        ),
    ] = None,
    corrupt: Corrupt = None,
    seed: Annotated[int, typer.Option(help="Seed of the random corruptions.")] = 0,
    decoder: Decoder = "sharp",
    max_pixels: MaxPixels = None,
) -> None:
    """Reconstruct images, each beside its original, with PSNR and SSIM."""
    from statistics import median

    from autoencode import reconstruction as application

    loaded, out = options.loaded_model(model), options.out_or_default(out, "reconstruct", model)
    with counting("reconstructing") as progress:
        made = application.reconstruct(
            loaded,
            images,
            out,
            corruptions=corrupt or (),
            seed=seed,
            decoder=decoder,
            limits=options.limits(max_pixels),
            progress=progress,
        )
    show_skipped(made.skipped)
    # Medians: the PSNR of a single flat image is so high that it would decide a mean.
    show_remarks(images)
    before = [result.corrupted_psnr_db for result in made.results if result.corrupted_psnr_db is not None]
    if before:  # what a denoiser gains is the difference of this line and the next
        say(f"corrupted:      median PSNR {median(before):.2f} dB")
    psnr_db, ssim = (
        median(values) for values in zip(*((r.psnr_db, r.ssim) for r in made.results), strict=True)
    )
    say(
        f"reconstruction: median PSNR {psnr_db:.2f} dB, SSIM {ssim:.3f}, "
        f"of {counted(len(made.results), 'image')}"
    )
    say(f"sheet: {out / application.SHEET_NAME}")
    say(f"table: {out / application.TABLE_NAME}")
    show_result(made)
    # Last: the images that can be used are reconstructed before the command fails for the others.
    fail_if_named(made.skipped, images)


def morph(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Two or more image files, in order.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="An animation (.gif, .webp) or a strip (.png, ...). Default: results/morph-NAME.gif."
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Frames from one image to the next, both included. Default: 9, or 30 in an animation.", min=2
        ),
    ] = None,
    interpolation: Annotated[
        Interpolation, typer.Option(help="Along a line between two codes, or along an arc.")
    ] = "linear",
    ping_pong: Annotated[bool, typer.Option("--ping-pong", help="Go back to the first image.")] = False,
    decoder: Decoder = "sharp",
    max_pixels: MaxPixels = None,
) -> None:
    """Turn one image into another, by decoding the codes between theirs."""
    from autoencode import morphing as application

    loaded, out = options.loaded_model(model), options.out_or_default(out, "morph", model, ".gif")
    made = application.morph(
        loaded,
        images,
        out,
        frames=frames,
        interpolation=interpolation,
        ping_pong=ping_pong,
        decoder=decoder,
        limits=options.limits(max_pixels),
    )
    say(f"morph: {out} ({len(made.pixels)} frames)")
    show_result({"path": out, "frames": len(made.pixels), "alphas": made.alphas})


def generate(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the grid and the images. Default: results/generate-NAME."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Images to make.", min=1)] = 64,
    prior: Annotated[
        PriorName | None,
        typer.Option(
            help="mixture (Gaussians fitted to the codes of training images) or normal (a VAE only). "
            "Default: mixture."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Below 1: more typical images; above: more unusual ones.", min=0)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0,
    walk: Annotated[
        Path | None,
        typer.Option(
            help="Also a smooth closed walk through the prior: an animation (.gif, .webp) or a strip (.png)."
        ),
    ] = None,
    decoder: Decoder = "sharp",
) -> None:
    """Generate new images like those the model was trained on."""
    from autoencode import generation as application
    from autoencode.atomic import check_output
    from autoencode.data.preprocessing import WRITABLE

    if walk is not None:
        check_output(walk, WRITABLE)  # before the images are made, not after
    loaded, out = options.loaded_model(model), options.out_or_default(out, "generate", model)
    if loaded.prior is None and prior != "normal":
        fit_missing_prior(loaded, model)
    drawn: dict[str, Any] = {"prior": prior, "temperature": temperature, "seed": seed, "decoder": decoder}
    made = application.generate(loaded, count, out, **drawn)
    say(f"images: {out / application.IMAGES_NAME}, from the {made.prior} prior")
    say(f"grid:   {out / application.GRID_NAME}")
    if made.note:
        warn(made.note)
    # With the same seed, but after the images: asking for a walk must not change them.
    if walk is not None:
        application.walk(loaded, walk, **drawn)
        say(f"walk:   {walk}")
    found = {"folder": out, "images": count, "prior": made.prior, "seed": seed, "walk": walk}
    show_result(found | {"note": made.note})


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        reconstruct,
        "autoencode reconstruct runs/photos photos/a.jpg --out restored --corrupt gaussian:0.1",
        keeps_memory=True,
    )
    add_command(program, morph, "autoencode morph runs/photos photos/a.jpg photos/b.jpg --out morph.gif")
    add_command(program, generate, "autoencode generate runs/photos --out new -n 16 --walk walk.gif")
