"""The command that finds copies of images: duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoencode.cli import options
from autoencode.cli.options import MaxPixels, add_command
from autoencode.cli.progress import counted, fail_if_named, one_line, say, show_result, show_skipped, stages
from autoencode.configuration import Keep
from autoencode.errors import ConfigError

if TYPE_CHECKING:
    from autoencode.duplicates import DuplicateFile, Duplicates

SHOWN = 20  # the groups one looks through on a screen; --out has all


def duplicates(
    images: Annotated[
        list[Path],
        typer.Argument(help="Folders of images and image files, or an index from `autoencode index`."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the results, JSON and a table, and for what was computed: run again, the "
            "command goes on where it was, and reads only new files."
        ),
    ] = None,
    keep: Annotated[
        Keep | None,
        typer.Option(
            help="Choose the file of each group that stays: the one with most pixels, without a border, "
            "of equals no lossless copy of a JPEG, and then the oldest; the oldest; or the first by path. "
            "Write into --out the list of the others and a script that moves them. Nothing is deleted."
        ),
    ] = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Find copies: saved again, resized, cropped, mirrored, turned, recoloured or edited."""
    if keep is not None and out is None:
        raise ConfigError("--keep writes a list and a script into the folder of the results: give --out.")
    from autoencode.duplicates import find_duplicates
    from autoencode.duplicates.output import write_results

    with stages() as progress:
        found = find_duplicates(
            images if len(images) > 1 else images[0],
            keep=keep or "largest",
            cache=out,
            limits=options.limits(max_pixels),
            progress=progress,
        )
    _print(found, "kept" if keep else "reference")
    show_result(found)
    for path in write_results(found, out, keep) if out is not None else []:
        say(f"written: {path}", err=True)
    fail_if_named(found.skipped, images)


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        duplicates,
        "autoencode duplicates photos",
        "autoencode duplicates photos --out copies --keep largest",
        keeps_memory=True,
    )


def _print(found: Duplicates, first: str) -> None:
    from autoencode.duplicates.verdict import LEAST

    show_skipped(found.skipped, err=True)
    if found.links:
        link, target = found.links[0]
        say(
            one_line(
                f"{counted(len(found.links), 'link')} left out, as what they point to is compared: "
                f"{link} is {target}"
            ),
            err=True,
        )
    for group in found.groups[:SHOWN]:
        for file in group.files:
            say(_line(file, first, group.files[0].path))
        say("")
    if len(found.groups) > SHOWN:
        say(f"and {counted(len(found.groups) - SHOWN, 'more group')}; --out lists all")
    say(
        f"duplicates: {counted(found.redundant, 'copy').replace('copys', 'copies')} in "
        f"{counted(len(found.groups), 'group')}, of {counted(found.images, 'image')}"
    )
    changed = f", edited ones in {found.threshold:.2f}" if found.threshold > LEAST else ""
    say(f"called copies: pairs that agree in {LEAST:.2f} of their structure or more{changed}")
    if found.possible:
        say(
            f"possible: {counted(len(found.possible), 'pair')} more, the likeliest first; edited, changed in "
            "several ways, or with too little detail to tell:"
        )
        for pair in found.possible[:SHOWN]:
            say(one_line(f"  {pair.agreement:.3f}  {pair.first}  {pair.second}"))
    # Nobody should take a missing copy for proof that there is none.
    if found.overlaps:
        say(
            f"In this folder different images agree up to {found.different:.2f}, as far as edited copies do: "
            "look at the possible pairs."
        )


def _line(file: DuplicateFile, first: str, kept: Path) -> str:
    kinds = ", ".join(file.kinds) if file.kinds else first
    other = f"  (as {file.like})" if file.like not in (None, kept) else ""
    return one_line(f"{file.width:6}x{file.height:<6}{file.bytes:12,}  {kinds:24}  {file.path}{other}")
