"""The commands that find images: index and search."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from autoencode.cli import options
from autoencode.cli.options import Commands, MaxBytes, MaxPixels, Model, Ray
from autoencode.cli.progress import console, counted, counting, fail_if_named, notes, one_line, show_skipped
from autoencode.configuration import Distance, Embedding, Split, Store
from autoencode.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from autoencode.index.base import Index, SearchResults
    from autoencode.index.duplicates import NearDuplicates


LINES_SHOWN = 50
NEIGHBOURS = 10


def index(
    model: Model,
    folder: Annotated[str, typer.Argument(help="Images, in sub-folders or not; or a pack, also by its URL.")],
    out: Annotated[
        str,
        typer.Option(
            help="The index; run again to take in what changed. For --store lance also a URL, s3://bucket/index."
        ),
    ],
    store: Annotated[
        Store | None,
        typer.Option(
            help="file (searched in memory) or lance (LanceDB, extra lance: larger than memory, of several "
            "folders, in storage too). Default: file, or as before."
        ),
    ] = None,
    embedding: Annotated[
        Embedding | None,
        typer.Option(
            help="Compare codes of the model, or pretrained ImageNet features (extra eval). "
            "Default: code, or as before."
        ),
    ] = None,
    distance: Annotated[
        Distance | None,
        typer.Option(
            help="whitened (angle, every direction of the codes weighs the same), cosine (angle), or l2. "
            "Default: whitened, cosine for pretrained features, or as before."
        ),
    ] = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Take the images of FOLDER out of an index that LanceDB keeps, instead."
        ),
    ] = False,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
    ray: Ray = None,
) -> None:
    """Encode the images of a folder once, to search among them."""
    if remove:
        if any(given is not None for given in (store, embedding, distance, max_pixels, max_bytes, ray)):
            raise ConfigError("--remove goes with no other option than --out.")
        from autoencode.index import remove_source

        console.print(f"{counted(remove_source(out, folder), 'image')} removed from {out}", soft_wrap=True)
        return
    from autoencode.training.process import keep_freed_memory

    keep_freed_memory()
    from autoencode.index import build_index

    with counting("packing") as packing_progress, counting("encoding") as progress:
        made = build_index(
            model,
            folder,
            out,
            embedding=embedding,
            distance=distance,
            store=store,
            limits=options.limits(max_pixels, max_bytes),
            ray=ray,
            progress=progress,
            packing_progress=packing_progress,
        )
    _print_index(made)


def search(
    index: Annotated[str, typer.Argument(help="What `autoencode index` made; or its URL in storage.")],
    queries: Annotated[
        list[Path] | None, typer.Argument(help="Image files, and folders of them.", show_default=False)
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="Neighbours of each query. Default: 10.", min=1)] = None,
    label: Annotated[
        str | None, typer.Option(help="Look among the images of this first sub-folder alone.")
    ] = None,
    split: Annotated[Split | None, typer.Option(help="Look among those of this split alone.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write what was found as JSON (.json).")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw it, each query before its neighbours (.png, .jpg, ...).")
    ] = None,
    near_duplicates: Annotated[
        bool,
        typer.Option("--near-duplicates", help="List copies, and pairs that look the same, in the index."),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Score from which a pair is a near-duplicate. Default: what 95 % of images reach with a "
            "copy that is slightly cropped, smaller, a JPEG."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model the index was made with, if it was moved.")
    ] = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
) -> None:
    """Find the images of an index that look most like others, or like each other."""
    if bool(queries) == near_duplicates:
        raise typer.BadParameter("give images to look for, or --near-duplicates", param_hint="QUERIES")
    if threshold is not None and not near_duplicates:
        raise typer.BadParameter("goes with --near-duplicates", param_hint="--threshold")
    if k is not None and near_duplicates:
        raise ConfigError(
            "-k is for images to look for; the number of near-duplicates depends on --threshold."
        )
    if near_duplicates and (label, split) != (None, None):
        raise ConfigError("--label and --split are for images to look for, not for --near-duplicates.")
    from autoencode.atomic import check_output
    from autoencode.data.preprocessing import WRITABLE
    from autoencode.index import open_index

    opened = open_index(index, model)
    for source in opened.unfinished:
        notes.print(
            f"Not all images of {source} are in the index yet: {opened.update_command}", soft_wrap=True
        )
    limits = options.limits(max_pixels, max_bytes)
    if out is not None:
        check_output(out, (".json",), _read(opened, queries or [], out))
    if sheet is not None:
        check_output(sheet, WRITABLE, _read(opened, queries or [], sheet))
    if near_duplicates:
        pairs = opened.near_duplicates(threshold)
        _print_duplicates(opened, pairs)
        if out is not None:
            _write(out, _duplicates_json(opened, pairs))
        if sheet is not None and not (pairs.exact or pairs.near):
            notes.print("There is no pair to draw: no sheet is written.")
        elif sheet is not None:
            from autoencode.index.duplicates import duplicates_sheet

            _draw(sheet, duplicates_sheet(pairs, opened.preprocessing, limits))
        return
    k = NEIGHBOURS if k is None else k
    with counting("searching") as progress:
        found = opened.search(queries or [], k, label=label, split=split, limits=limits, progress=progress)
    if k > (count := opened.count(label, split)):
        noun = "image" if label is None and split is None else "such image"
        notes.print(f"The index holds {counted(count, noun)}; all of them are listed.")
    _print_neighbours(opened, found)
    if out is not None:
        _write(out, _neighbours_json(opened, found))
    if sheet is not None:
        from autoencode.index.base import neighbours_sheet

        _draw(sheet, neighbours_sheet(found.results, opened.preprocessing, limits))
    fail_if_named(found.skipped, queries or [])


COMMANDS: Commands = {
    index: [
        "autoencode index runs/photos photos --out photos.index",
        "autoencode index runs/photos s3://bucket/photos.pack --store lance --out s3://bucket/index",
    ],
    search: [
        "autoencode search photos.index photos/a.jpg -k 5 --sheet found.png",
        "autoencode search photos.index --near-duplicates --out duplicates.json",
    ],
}


def _read(opened: Index, queries: list[Path], result: Path) -> Iterator[Path]:
    """Files that a search may read, those of the index last, as they may be many."""
    from autoencode.data.sources import expanded

    yield from expanded(queries)
    yield from opened.files(like=result)


def _print_index(made: Index) -> None:
    update = made.update
    assert update is not None
    show_skipped([(Path(entry.path), entry.reason or "") for entry in update.skipped])
    rate = f" at {update.encoded / update.seconds:,.0f} images/s" if update.encoded else ""
    console.print(
        f"codes: {update.encoded:,} encoded{rate}, {update.kept:,} kept, {update.removed:,} removed"
    )
    how = "every code is compared" if made.is_exact else f"recall {made.recall:.3f} of the ten nearest"
    kind = f"{made.embedding} embedding, {made.distance}"
    console.print(f"index: {made.path}: {counted(len(made), 'image')}, {kind}, {how}", soft_wrap=True)


def _print_neighbours(opened: Index, found: SearchResults) -> None:
    show_skipped(found.skipped, notes)
    _note_gone(opened, {near.path for result in found.results for near in result.found if near.is_gone})
    for result in found.results:
        console.print(one_line(result.query), soft_wrap=True)
        _print_table(
            opened,
            [(f"{near.score:.4f}", (f"{near.path}{' (gone)' * near.is_gone}",)) for near in result.found],
        )


def _note_gone(opened: Index, gone: Collection[Path]) -> None:
    if gone:
        notes.print(
            f"{len(gone):,} of the images found are no longer there. Update it: {opened.update_command}",
            soft_wrap=True,
        )


def _neighbours_json(opened: Index, found: SearchResults) -> dict[str, Any]:
    queries = [
        {
            "query": str(result.query),
            "neighbours": [
                {"path": str(near.path), "score": near.score, "label": near.label, "gone": near.is_gone}
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


def _print_duplicates(opened: Index, found: NearDuplicates) -> None:
    _note_gone(opened, found.gone)
    total = len(found.near) + found.more
    console.print(
        f"exact copies: {found.redundant:,}; "
        f"pairs that look the same ({found.threshold:.4f} or nearer): {total:,}"
    )
    groups, pairs = found.first(LINES_SHOWN)
    rows = [("same bytes", _marked(group, found)) for group in groups]
    rows += [(f"{pair.score:.4f}", _marked((pair.first, pair.second), found)) for pair in pairs]
    if rows:
        _print_table(opened, rows)
    hidden = len(found.exact) - len(groups), total - len(pairs)
    if any(hidden):
        notes.print(
            f"{hidden[0]:,} more groups of copies and {hidden[1]:,} more pairs are not shown; "
            f"--out lists every group and up to {len(found.near):,} pairs."
        )


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
    return {"paths": list(map(str, paths)), "gone": [str(path) for path in paths if path in found.gone]}


def _print_table(opened: Index, rows: list[tuple[str, tuple[str, ...]]]) -> None:
    """Print scores and the paths they are of; where lines are read by a program, tabs are between them."""
    lines = [(score, [one_line(path) for path in paths]) for score, paths in rows]
    if console.is_terminal:
        heading = "distance" if opened.distance == "l2" else "similarity"
        table = Table(heading, "image", box=None, pad_edge=False)
        for score, paths in lines:
            table.add_row(score, "\n".join(paths))
        console.print(table)
    else:
        # Where lines are read by a program, a path is not cut into two.
        for score, paths in lines:
            typer.echo("\t".join([score, *paths]))


def _write(out: Path, value: dict[str, Any]) -> None:
    from autoencode.atomic import write_json

    write_json(out, value)
    notes.print(f"results: {out}", soft_wrap=True)


def _draw(sheet: Path, pixels: NDArray[np.uint8]) -> None:
    from autoencode.data.preprocessing import save_image

    save_image(sheet, pixels)
    notes.print(f"sheet: {sheet}", soft_wrap=True)
