"""The commands that find images: index and search."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from autoencode.cli import options
from autoencode.cli.options import Exclude, Images, Include, MaxPixels, Ray, Source, add_command
from autoencode.cli.progress import (
    console,
    counted,
    counting,
    fail_if_named,
    one_line,
    say,
    show_lines,
    show_remarks,
    show_result,
    show_skipped,
)
from autoencode.configuration import Distance, Split, Store
from autoencode.errors import ConfigError, ImageIndexError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from autoencode.data.preprocessing import Limits
    from autoencode.index.base import Index, SearchResults


NEIGHBOURS = 10  # not the default of -k, which has to tell whether it was given


def index(
    folder: Source,
    out: Annotated[
        str | None,
        typer.Option(
            help="The index; run again to update it. With --store lance also a URL, s3://bucket/index. "
            "Default: indexes/NAME."
        ),
    ] = None,
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
            help="What images are compared by: pretrained or pretrained-224 (EfficientNet-Lite0 at 128 "
            "or 224 pixels), code (of --model), code-bf16 (in about two thirds of the time on AMD and on "
            "Intel with AMX, if neighbours stay), or an image encoder in an ONNX file (extra onnx). "
            "Default: auto, that of the index there is, or else pretrained, at 224 pixels where most images "
            "are larger.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="The model whose codes --embedding code compares: a model file or a run folder. Without "
            "--embedding only an index of codes uses it."
        ),
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
        typer.Option("--remove", help="Remove the images of FOLDER from a LanceDB index, and add none."),
    ] = False,
    include: Include = None,
    exclude: Exclude = None,
    max_pixels: MaxPixels = None,
    ray: Ray = None,
) -> None:
    """Encode the images of a folder, to search among them."""
    if out is None:
        out = str(_default_index(folder[0]))
    if remove:
        # An option without effect would look as if it chose what is removed.
        if any(
            given is not None
            for given in (store, embedding, model, distance, include, exclude, max_pixels, ray)
        ):
            raise ConfigError("--remove takes no other option than --out.")
        _remove(folder, out)
        return
    from autoencode.index import build_index

    # Two bars: a folder is packed before it is encoded, and a pack only encoded.
    with counting("packing") as packing_progress, counting("encoding") as progress:
        made = build_index(
            options.with_patterns(folder, include, exclude),
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
    show_remarks(folder)
    _print_index(made, model)


def search(
    index: Annotated[str, typer.Argument(help="An index from `autoencode index`: a path or a URL.")],
    queries: Images,
    k: Annotated[int | None, typer.Option("-k", help="Neighbours of each query. Default: 10.", min=1)] = None,
    label: Annotated[
        str | None, typer.Option(help="Search only the images whose first sub-folder has this name.")
    ] = None,
    split: Annotated[Split | None, typer.Option(help="Search only the images of this split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON (.json).")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw each query beside its neighbours (.png, .jpg, ...).")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL|FILE.onnx",
            help="The model or ONNX file that the index was made with, if it was moved.",
        ),
    ] = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Find the images of an index that look most like given images.

    Prints a line for each image it finds: score, percentile and path. The score is a similarity of at most 1
    or, for l2, a distance. The percentile says how usual it is to be that far: at 1 %, only one in a hundred
    indexed images is as far from the image nearest to it.
    """
    from autoencode.atomic import check_output
    from autoencode.data.preprocessing import WRITABLE
    from autoencode.index import open_index

    opened = open_index(_index_of(index), model)
    # Here and below, notes go to stderr: a program reads the results on stdout.
    for source in opened.unfinished:
        say(f"Not all images of {source} are in the index yet: {opened.update_command}", err=True)
    limits = options.limits(max_pixels)
    # Before the work, which may take minutes.
    for result, endings in ((out, (".json",)), (sheet, WRITABLE)):
        if result is not None:
            check_output(result, endings, _read(opened, queries, result))
    k = NEIGHBOURS if k is None else k
    with counting("searching") as progress:
        found = opened.search(queries, k, label=label, split=split, limits=limits, progress=progress)
    # Fewer results than -k asks for would look like an error.
    if k > (count := opened.count(label, split)):
        noun = "image" if label is None and split is None else "such image"
        say(f"The index holds {counted(count, noun)}; all of them are listed.", err=True)
    _show_neighbours(opened, found, out, sheet, limits)
    # Last: the queries that can be used are answered before the command fails for the others.
    fail_if_named(found.skipped, queries)


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        index,
        "autoencode index photos",
        "autoencode index s3://bucket/photos.pack --store lance --out s3://bucket/index",
        keeps_memory=True,
    )
    add_command(
        program,
        search,
        "autoencode search photos photos/a.jpg -k 5 --sheet found.png",
    )


def _remove(folder: Source, out: str) -> None:
    if len(folder) > 1:
        raise ConfigError("--remove takes one folder at a time.")
    from autoencode.index import remove_source

    removed = remove_source(out, folder[0])
    say(f"{counted(removed, 'image')} removed from {out}")
    show_result({"path": out, "removed": removed})


def _index_of(given: str) -> str:
    """Return an index as it was given or, for a folder of images, the one that `index` made of it.

    Raises:
        ImageIndexError: that was stopped before it was whole.
    """
    from autoencode.index import store_at

    made = _default_index(given)
    if not (Path(given).is_dir() and made.is_dir() and store_at(Path(given)) is None):
        return given
    if store_at(made) is None:
        again = f"autoencode index {shlex.quote(given)}"
        raise ImageIndexError(f"The index of {given} was not finished. Give its command again: {again}")
    return str(made)


def _default_index(source: str) -> Path:
    from autoencode.data.sources import name_of

    return Path("indexes") / name_of(source)


def _read(opened: Index, queries: list[Path], result: Path) -> Iterator[Path]:
    """Yield the files that a search may read, those of the index last, as they may be many."""
    from autoencode.data.sources import expanded

    yield from expanded(queries)
    yield from opened.files(like=result)


def _print_index(made: Index, model: Path | None) -> None:
    from autoencode.embedding import BF16_CODES

    update = made.update
    assert update is not None  # only an index that was opened, not made, has none
    show_skipped([(Path(entry.path), entry.reason or "") for entry in update.skipped])
    copies = 0 if update.kept or update.removed else len(made) - update.encoded
    alike = f" ({counted(copies, 'more file')} byte for byte the same as another)" if copies > 0 else ""
    rate = f" at {update.encoded / update.seconds:,.0f} images/s" if update.encoded else ""
    say(f"codes: {update.encoded:,} encoded{alike}{rate}, {update.kept:,} kept, {update.removed:,} removed")
    # Nobody should take an approximate index for an exact one: its recall was measured when it was made.
    how = "every code is compared" if made.is_exact else f"recall {made.recall:.3f} of the ten nearest"
    say(f"index: {made.path}: {counted(len(made), 'image')}, {made.encoder_name}, {made.distance}, {how}")
    if model is not None and made.embedding in ("code", BF16_CODES):
        options.note_unfinished(model)
    elif model is not None:  # whoever gives it may expect that it is what compares
        say(
            "The model is not used: pretrained features find more images of a kind than codes do. "
            "To compare its codes, make a new index with --embedding code."
        )
    show_result(
        {
            "path": made.path,
            "images": len(made),
            "embedding": made.embedding,
            "distance": made.distance,
            "recall": made.recall,
            "update": made.update,
        }
    )


def _show_neighbours(
    opened: Index, found: SearchResults, out: Path | None, sheet: Path | None, limits: Limits
) -> None:

    show_skipped(found.skipped, err=True)
    show_result(_neighbours_json(opened, found))
    _note_gone(opened, {near.path for result in found.results for near in result.found if near.is_gone})
    for result in found.results:
        show_lines([one_line(result.query)])
        _print_table(
            opened,
            [(near.score_text("\t"), (f"{near.path}{' (gone)' * near.is_gone}",)) for near in result.found],
        )
        if result.nothing_close:
            say(
                f"Nothing in the index is close to {one_line(result.query)}: "
                "at most 1 % of its images are as far from their nearest, or from the mean of all.",
                err=True,
            )
    if out is not None:
        _write(out, _neighbours_json(opened, found))
    if sheet is not None:
        from autoencode.index.sheet import neighbours_sheet

        _draw(sheet, neighbours_sheet(found.results, opened.preprocessing, limits))


def _note_gone(opened: Index, gone: Collection[Path]) -> None:
    if not gone:
        return
    from autoencode.storage import is_url

    noun, advice = counted(len(gone), "image"), f"Update the index: {opened.update_command}"
    # An update reads what was indexed, and an index of one folder never becomes one of another.
    if not any(is_url(source) or Path(source).exists() for source in opened.sources):
        advice = (
            f"{', '.join(opened.sources)} is not there either. Index the folder that the images are in now: "
            "autoencode index NEW-FOLDER --out ANOTHER"
        )
    say(f"{noun} found no longer {'exists' if len(gone) == 1 else 'exist'}. {advice}", err=True)


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


def _print_table(opened: Index, rows: list[tuple[str, tuple[str, ...]]]) -> None:
    lines = [(score, [one_line(path) for path in paths]) for score, paths in rows]
    if console.is_terminal and not console.quiet:
        heading = "distance" if opened.distance == "l2" else "similarity"
        columns = ("percentile",) * (bool(lines) and "\t" in lines[0][0])
        table = Table(heading, *columns, "image", box=None, pad_edge=False)
        for score, paths in lines:
            table.add_row(*score.split("\t"), "\n".join(paths))
        console.print(table)
    else:
        # A program reads these lines: tabs between the fields, and no path wrapped.
        show_lines("\t".join([score, *paths]) for score, paths in lines)


def _write(out: Path, value: dict[str, Any]) -> None:
    from autoencode.atomic import write_json

    write_json(out, value)
    say(f"results: {out}", err=True)


def _draw(sheet: Path, pixels: NDArray[np.uint8]) -> None:
    from autoencode.data.preprocessing import save_image

    save_image(sheet, pixels)
    say(f"sheet: {sheet}", err=True)
