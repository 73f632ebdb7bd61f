"""The command restore."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoencode.cli import options
from autoencode.cli.options import MaxPixels, about, add_command
from autoencode.cli.progress import (
    counted,
    counting,
    fail_if_named,
    said_when_stopped,
    say,
    show_result,
    show_skipped,
)
from autoencode.errors import ConfigError
from autoencode.training.config import RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from autoencode.data.pack import Progress
    from autoencode.restoration.results import Restoration


def restore(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Image files, and folders of them, to restore. A restorer before them, its run folder or "
            "model file, is used in place of the bundled one.",
            metavar="[MODEL] IMAGES",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. Run again to go on after a stop. Default: results/restore-NAME."
        ),
    ] = None,
    scale: Annotated[
        int,
        typer.Option(help="Enlarge each side by this factor; needs a model trained with downscale.", min=1),
    ] = 1,
    amount: Annotated[
        # Without the bounds of Typer, which take "nan" and say that it is to be less than 1.
        float, typer.Option(help="How much of the damage is removed, from 0 to 1.")
    ] = 1.0,
    clean: Annotated[
        Path | None, typer.Option(help="The image, or a folder of them, without damage, to measure against.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw each image before and after, with a part at 1:1.")
    ] = False,
    max_pixels: MaxPixels = None,
    device: Annotated[
        str,
        typer.Option(
            help=about(RuntimeConfig, "device", "auto"), show_default=False, rich_help_panel=options.MACHINE
        ),
    ] = "auto",
) -> None:
    """Remove noise and other damage from images, each at its full size into a file of its kind."""
    options.reject_image_name(out)  # here, before what takes seconds to load
    from autoencode import restoration as application
    from autoencode.models.bundled import BUNDLED_PATH, path_of_model
    from autoencode.models.model_file import holds_model
    from autoencode.restoration.results import COMPARISONS_NAME, TABLE_NAME
    from autoencode.training.run import is_run

    has_model = holds_model(paths[0]) or is_run(paths[0])
    if not has_model:
        _check_is_no_mistyped_model(paths)
    model, images = (path_of_model(paths[0]), paths[1:]) if has_model else (BUNDLED_PATH, paths)
    if not images:
        raise ConfigError(f"{paths[0]} is a model. Give the images that it is to restore, too.")
    options.note_unfinished(model)
    out = options.out_or_default(out, "restore", images, continues=True)
    with _counting() as progress:
        made = application.restore(
            model,
            images,
            out,
            scale=scale,
            amount=amount,
            clean=clean,
            compare=compare,
            limits=options.limits(max_pixels),
            device=device,
            progress=progress,
        )
    show_skipped(made.skipped, table=out / TABLE_NAME)
    _print_results(made.results, made.kept)
    _print_losses(made.results)
    if model == BUNDLED_PATH:
        say(
            "by the bundled restorer, which is for noise. For your kind of images, or other damage: "
            "autoencode train IMAGES --preset restore"
        )
    say(f"images: {out / made.results[0].file if len(made.results) == 1 else out}")
    if compare:
        say(f"before and after: {out / COMPARISONS_NAME}")
    show_result(made)
    # Last: the images that can be used are restored before the command fails for the others.
    fail_if_named(made.skipped, images)


def _check_is_no_mistyped_model(paths: Sequence[Path]) -> None:
    """Reject images before which a model may have been meant: the bundled one would restore them instead.

    Raises:
        ConfigError: a model is not the first argument, or the first of several is no image.
    """
    from autoencode.data.folders import EXTENSIONS
    from autoencode.data.sources import is_list
    from autoencode.models.model_file import holds_model
    from autoencode.training.run import is_run

    first, *others = paths
    if model := next((one for one in others if holds_model(one) or is_run(one)), None):
        raise ConfigError(f"{model} is a model. Give it first: autoencode restore {model} IMAGES.")
    if not others:
        return
    if not first.exists():
        raise ConfigError(f"There is no {first}. Give a model or images that exist.")
    if first.is_dir():
        if runs := sorted(str(one) for one in first.iterdir() if is_run(one)):
            raise ConfigError(f"{first} holds runs. Give one of them as the model: {', '.join(runs)}.")
    elif first.suffix.lower() not in EXTENSIONS and not is_list(first):
        run = f" Did you mean {first.parent}?" if is_run(first.parent) else ""
        raise ConfigError(f"{first} is neither a model nor an image.{run}")


@contextmanager
def _counting() -> Iterator[Progress]:
    """Show the progress and, if the user stops the work, how much of it is done."""
    at = 0, 0
    with counting("restoring") as progress:

        def show(done: int, total: int) -> None:
            nonlocal at
            at = done, total
            progress(done, total)

        with said_when_stopped(
            lambda: f"{at[0]:,} of {counted(at[1], 'image')} done; run the same command again to go on"
        ):
            yield show


def _print_results(results: Sequence[Restoration], kept: int) -> None:
    from statistics import median

    done = f", {kept:,} of them by an earlier run" if kept else ""
    removed = median(one.removed_rms for one in results)
    say(
        f"restored: {counted(len(results), 'image')}{done}. Removed in the median image: {removed:.4f} "
        f"({removed * 255:.1f} of 255 levels, root mean square; for noise its standard deviation)"
    )
    # Medians: the PSNR of a single flat image is so high that it would decide a mean.
    pairs = [
        (one.corrupted_psnr_db, one.psnr_db)
        for one in results
        if one.corrupted_psnr_db is not None and one.psnr_db is not None
    ]
    if pairs:
        before, after = (_decibels(median(values)) for values in zip(*pairs, strict=True))
        similarities = [one.ssim for one in results if one.ssim is not None]
        similarity = f", SSIM {median(similarities):.3f}" if similarities else ""
        say(f"against the clean images: median PSNR {before} before, {after} after{similarity}")


def _decibels(psnr_db: float) -> str:
    return f"{psnr_db:.2f} dB" if math.isfinite(psnr_db) else "infinite (identical images)"


def _print_losses(results: Sequence[Restoration]) -> None:
    """Print what of the files is not in the results."""
    if several := sum(one.has_more_frames for one in results):
        has = "has" if several == 1 else "have"
        say(f"note: {counted(several, 'file')} {has} more pages or frames; only the first was restored")
    if deep := sum(one.was_16_bit_colour for one in results):
        say(f"note: {counted(deep, 'file')} of 16-bit colour became 8-bit")


def add_to(program: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(
        program,
        restore,
        "autoencode restore night.jpg --amount 0.7 --compare",
        "autoencode restore runs/restore scans --out restored",
    )
