"""The commands that find images: index and search."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from autoencode.cli import options
from autoencode.cli.options import MaxPixels, Ray, add_command
from autoencode.cli.progress import (
    console,
    counted,
    counting,
    fail_if_named,
    one_line,
    say,
    show_skipped,
)
from autoencode.configuration import Distance, Split, Store
from autoencode.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from autoencode.data.preprocessing import Limits
    from autoencode.index.base import Index, SearchResults
    from autoencode.index.duplicates import NearDuplicates


LINES_SHOWN = 50  # the groups and pairs one looks through on a screen; --out has more
NEIGHBOURS = 10  # not the default of -k, which has to tell whether it was given


def index(
    folder: Annotated[str, typer.Argument(help="A folder of images, or a pack by its folder or URL.")],
    out: Annotated[
        str,
        typer.Option(
            help="The index; run again to update it. With --store lance also a URL, s3://bucket/index."
        ),
    ],
    store: Annotated[
        Store | None,
        typer.Option(
            help="file is searched in memory; lance (LanceDB, extra lance) may be larger than memory, hold "
            "several folders, and be in object storage. Default: file; an index keeps its store."
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.onnx",
            help="What images are compared by: pretrained (EfficientNet-Lite0), code (of --model), or an "
            "image encoder in an ONNX file (extra onnx). Default: code with --model, else pretrained; an "
            "index keeps its embedding.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model whose codes are compared: a model file or a run folder.")
    ] = None,
    distance: Annotated[
        Distance | None,
        typer.Option(
            help="whitened (angle, with all directions of the codes weighted alike), cosine (angle) or l2. "
            "Default: whitened, or cosine for pretrained features; an index keeps its distance."
        ),
    ] = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove",
            help="Remove the images of FOLDER from a LanceDB index instead of adding them.",
        ),
    ] = False,
    max_pixels: MaxPixels = None,
    ray: Ray = None,
) -> None:
    """Encode the images of a folder, to search among them."""
    if remove:
        # An option without effect would look as if it chose what is removed.
        if any(given is not None for given in (store, embedding, model, distance, max_pixels, ray)):
            raise ConfigError("--remove takes no other option than --out.")
        from autoencode.index import remove_source

        say(f"{counted(remove_source(out, folder), 'image')} removed from {out}")
        return
    from autoencode.index import build_index

    # Two bars: a folder is packed before it is encoded, and a pack only encoded.
    with counting("packing") as packing_progress, counting("encoding") as progress:
        made = build_index(
            folder,
            out,
            model,
            embedding=embedding,
            distance=distance,
            store=store,
            limits=options.limits(max_pixels),
            ray=ray,
            progress=progress,
            packing_progress=packing_progress,
        )
    _print_index(made)


def search(
    index: Annotated[str, typer.Argument(help="An index from `autoencode index`: a path or a URL.")],
    queries: Annotated[
        list[Path] | None, typer.Argument(help="Image files, and folders of them.", show_default=False)
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="Neighbours of each query. Default: 10.", min=1)] = None,
    label: Annotated[
        str | None, typer.Option(help="Search only the images whose first sub-folder has this name.")
    ] = None,
    split: Annotated[Split | None, typer.Option(help="Search only the images of this split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON (.json).")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw each query beside its neighbours (.png, .jpg, ...).")
    ] = None,
    near_duplicates: Annotated[
        bool,
        typer.Option(
            "--near-duplicates", help="List copies and pairs that look the same instead of searching."
        ),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Score from which a pair is a near-duplicate. Default: the score that 95 % of images reach "
            "with a copy of themselves that is slightly cropped, smaller and saved as JPEG."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model that the index was made with, if it was moved.")
    ] = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Find the images of an index that look most like given images, or like each other."""
    # BadParameter prints the usage too: without either there is nothing that the command could do.
    if bool(queries) == near_duplicates:
        raise typer.BadParameter("give images to look for, or --near-duplicates", param_hint="QUERIES")
    if threshold is not None and not near_duplicates:
        raise typer.BadParameter("goes with --near-duplicates", param_hint="--threshold")
    if near_duplicates and (k, label, split) != (None, None, None):
        raise ConfigError("-k, --label and --split belong to a search for images, not to --near-duplicates.")
    from autoencode.atomic import check_output
    from autoencode.data.preprocessing import WRITABLE
    from autoencode.index import open_index

    opened = open_index(index, model)
    # Here and below, notes go to stderr: a program reads the results on stdout.
    for source in opened.unfinished:
        say(f"Not all images of {source} are in the index yet: {opened.update_command}", err=True)
    limits = options.limits(max_pixels)
    # Before the work, which may take minutes.
    for result, endings in ((out, (".json",)), (sheet, WRITABLE)):
        if result is not None:
            check_output(result, endings, _read(opened, queries or [], result))
    if near_duplicates:
        _show_duplicates(opened, opened.near_duplicates(threshold), out, sheet, limits)
        return
    k = NEIGHBOURS if k is None else k
    with counting("searching") as progress:
        found = opened.search(queries or [], k, label=label, split=split, limits=limits, progress=progress)
    # Fewer results than -k asks for would look like an error.
    if k > (count := opened.count(label, split)):
        noun = "image" if label is None and split is None else "such image"
        say(f"The index holds {counted(count, noun)}; all of them are listed.", err=True)
    _show_neighbours(opened, found, out, sheet, limits)
    # Last: the queries that can be used are answered before the command fails for the others.
    fail_if_named(found.skipped, queries or [])


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        index,
        "autoencode index photos --out photos.index",
        "autoencode index s3://bucket/photos.pack --store lance --out s3://bucket/index",
        keeps_memory=True,
    )
    add_command(
        program,
        search,
        "autoencode search photos.index photos/a.jpg -k 5 --sheet found.png",
        "autoencode search photos.index --near-duplicates --out duplicates.json",
    )


def _read(opened: Index, queries: list[Path], result: Path) -> Iterator[Path]:
    """Yield the files that a search may read, those of the index last, as they may be many."""
    from autoencode.data.sources import expanded

    yield from expanded(queries)
    yield from opened.files(like=result)


def _print_index(made: Index) -> None:
    update = made.update
    assert update is not None  # only an index that was opened, not made, has none
    show_skipped([(Path(entry.path), entry.reason or "") for entry in update.skipped])
    rate = f" at {update.encoded / update.seconds:,.0f} images/s" if update.encoded else ""
    say(f"codes: {update.encoded:,} encoded{rate}, {update.kept:,} kept, {update.removed:,} removed")
    # Nobody should take an approximate index for an exact one: its recall was measured when it was made.
    how = "every code is compared" if made.is_exact else f"recall {made.recall:.3f} of the ten nearest"
    say(f"index: {made.path}: {counted(len(made), 'image')}, {made.encoder_name}, {made.distance}, {how}")


def _show_neighbours(
    opened: Index, found: SearchResults, out: Path | None, sheet: Path | None, limits: Limits
) -> None:
    from autoencode.index.base import score_text

    show_skipped(found.skipped, err=True)
    _note_gone(opened, {near.path for result in found.results for near in result.found if near.is_gone})
    for result in found.results:
        say(one_line(result.query))
        _print_table(
            opened,
            [(score_text(near, "\t"), (f"{near.path}{' (gone)' * near.is_gone}",)) for near in result.found],
        )
        if result.nothing_close:
            say(
                f"Nothing in the index is close to {one_line(result.query)}: "
                "99 % of its images are nearer to their own nearest neighbour.",
                err=True,
            )
    if out is not None:
        _write(out, _neighbours_json(opened, found))
    if sheet is not None:
        from autoencode.index.base import neighbours_sheet

        _draw(sheet, neighbours_sheet(found.results, opened.preprocessing, limits))


def _note_gone(opened: Index, gone: Collection[Path]) -> None:
    if gone:
        say(
            f"{len(gone):,} of the images found no longer exist. Update the index: {opened.update_command}",
            err=True,
        )


def _neighbours_json(opened: Index, found: SearchResults) -> dict[str, Any]:
    queries = [
        {
            "query": str(result.query),
            "nothing_close": result.nothing_close,
            "neighbours": [
                {
                    "path": str(near.path),
                    "score": near.score,
                    "percentile": near.percentile,
                    "label": near.label,
                    "gone": near.is_gone,
                }
                for near in result.found
            ],
        }
        for result in found.results
    ]
    skipped = [{"query": str(path), "reason": reason} for path, reason in found.skipped]
    return {
        "embedding": opened.embedding,
        "distance": opened.distance,
        "queries": queries,
        "skipped": skipped,
    }


def _show_duplicates(
    opened: Index, found: NearDuplicates, out: Path | None, sheet: Path | None, limits: Limits
) -> None:
    _note_gone(opened, found.gone)
    total = len(found.near) + found.more
    say(
        f"exact copies: {found.redundant:,}; "
        f"pairs that look the same ({found.threshold:.4f} or nearer): {total:,}"
    )
    groups, pairs = found.head(LINES_SHOWN)
    rows = [("same bytes", _marked(group, found)) for group in groups]
    rows += [(f"{pair.score:.4f}", _marked((pair.first, pair.second), found)) for pair in pairs]
    if rows:
        _print_table(opened, rows)
    hidden = len(found.exact) - len(groups), total - len(pairs)
    if any(hidden):
        say(
            f"{hidden[0]:,} more groups of copies and {hidden[1]:,} more pairs are not shown; "
            f"--out lists every group and up to {len(found.near):,} pairs.",
            err=True,
        )
    if out is not None:
        _write(out, _duplicates_json(opened, found))
    # Without an error: a folder without duplicates is the good result, and a script goes on.
    if sheet is not None and not rows:
        say("There is no pair to draw: no sheet is written.", err=True)
    elif sheet is not None:
        from autoencode.index.duplicates import duplicates_sheet

        _draw(sheet, duplicates_sheet(found, opened.preprocessing, limits))


def _marked(paths: Sequence[Path], found: NearDuplicates) -> tuple[str, ...]:
    return tuple(f"{path}{' (gone)' * (path in found.gone)}" for path in paths)


def _duplicates_json(opened: Index, found: NearDuplicates) -> dict[str, Any]:
    return {
        "embedding": opened.embedding,
        "distance": opened.distance,
        "threshold": found.threshold,
        "exact": [_group_json(group, found) for group in found.exact],
        "near": [
            {**_group_json((pair.first, pair.second), found), "score": pair.score} for pair in found.near
        ],
        "more": found.more,
    }


def _group_json(paths: Sequence[Path], found: NearDuplicates) -> dict[str, Any]:
    # "gone", so that a program that deletes copies keeps one that is there.
    return {"paths": list(map(str, paths)), "gone": [str(path) for path in paths if path in found.gone]}


def _print_table(opened: Index, rows: list[tuple[str, tuple[str, ...]]]) -> None:
    lines = [(score, [one_line(path) for path in paths]) for score, paths in rows]
    if console.is_terminal:
        heading = "distance" if opened.distance == "l2" else "similarity"
        columns = ("percentile",) * (bool(lines) and "\t" in lines[0][0])
        table = Table(heading, *columns, "image", box=None, pad_edge=False)
        for score, paths in lines:
            table.add_row(*score.split("\t"), "\n".join(paths))
        console.print(table)
    else:
        # A program reads these lines: tabs between the fields, and no path wrapped.
        for score, paths in lines:
            typer.echo("\t".join([score, *paths]))


def _write(out: Path, value: dict[str, Any]) -> None:
    from autoencode.atomic import write_json

    write_json(out, value)
    say(f"results: {out}", err=True)


def _draw(sheet: Path, pixels: NDArray[np.uint8]) -> None:
    from autoencode.data.preprocessing import save_image

    save_image(sheet, pixels)
    say(f"sheet: {sheet}", err=True)
