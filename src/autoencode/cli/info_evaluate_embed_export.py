"""The commands that say what a result is, measure a model and use it elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from math import floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoencode.cli import options
from autoencode.cli.options import Decoder, Exclude, Include, MaxPixels, Model, Source, add_command
from autoencode.cli.progress import (
    counted,
    counting,
    one_line,
    say,
    show_lines,
    show_result,
    show_skipped,
    stages,
)
from autoencode.cli.results import fit_missing_prior
from autoencode.errors import ConfigError
from autoencode.storage import is_url

if TYPE_CHECKING:
    from autoencode.evaluation import Evaluation
    from autoencode.evaluation.sets import SetQuality
    from autoencode.metrics.statistics import Estimate


# Fields of the evaluation by their names in the field, in the order of the rows.
LABELS = {"recall_at_10": "recall@10", "mean_average_precision": "mAP", "knn_accuracy": "10-NN accuracy"}


def info(
    path: Annotated[
        str,
        typer.Argument(
            help="A run, a model file, a pack, an index, a classifier, normal images, or a folder of these."
        ),
    ],
    settings: Annotated[
        Path | None,
        typer.Option(help="Write the settings of a model or run to a file for train --config (.toml)."),
    ] = None,
) -> None:
    """Say what a file or folder of autoencode is, of which images, how good, and how to make it again."""
    from autoencode.atomic import check_output, write_bytes
    from autoencode.description import describe

    if settings is not None:
        check_output(settings, (".toml",))
    found = describe(path)
    show_lines(one_line(line) for line in str(found).splitlines())
    if settings is not None:
        if not found.settings:
            raise ConfigError(f"{path} has no settings of a training. Leave --settings out.")
        write_bytes(settings, found.settings.encode())
        say(f"settings: {settings}")
    show_result(found)


def evaluate(
    model: Model,
    pack: Annotated[
        str | None,
        typer.Argument(
            help="The pack the model was trained on, or other images to measure it on. Default: the run's "
            "pack, or one beside the model with the same images.",
        ),
    ] = None,
    ood: Annotated[
        Path | None,
        typer.Option(
            help="A folder of out-of-distribution images, to measure how well the outlier score separates "
            "them from held-out images."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write every number with its interval as JSON (.json).")
    ] = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Measure a model on held-out images, in comparison with PCA of the same code size."""
    from autoencode import evaluation as application
    from autoencode.atomic import check_output, write_json
    from autoencode.data.manifest import is_pack
    from autoencode.data.pack import open_pack, pack_to_measure

    loaded = options.loaded_model(model)
    with tempfile.TemporaryDirectory(prefix="autoencode-") as folder, stages() as progress:
        if pack is None:
            packed = options.pack_of(model, "evaluate MODEL PACK, or images to measure it on")
        elif is_url(pack) or is_pack(Path(pack)):
            packed = open_pack(pack)
        else:
            packed = pack_to_measure(pack, loaded.preprocessing, Path(folder) / "pack")
        if out is not None:  # before the work, which may take minutes
            check_output(out, (".json",), options.settings_files(model, packed))
        if loaded.prior is None:
            fit_missing_prior(loaded, model)
        limits = options.limits(max_pixels)
        found = application.evaluate(loaded, packed, ood=ood, limits=limits, progress=progress)
    # Printed before they are written: on a full disk the numbers are not lost.
    show_lines(table(found))
    for note in found.notes:
        say(f"note: {note}")
    if out is not None:
        write_json(out, found.to_json())
        say(f"json: {out}")
    show_result(found)


def embed(
    model: Model,
    images: Source,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The table: .parquet (extra tables), .npz or .csv. Default: results/embed-NAME.npz."
        ),
    ] = None,
    embedding: Annotated[
        str, typer.Option(help="code (of the model), pretrained features, or an ONNX file of an encoder.")
    ] = "code",
    include: Include = None,
    exclude: Exclude = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Write the vector of each image, with its path, label and split, for other programs."""
    from autoencode.vectors import embed as application

    options.note_unfinished(model)
    out = options.out_or_default(out, "embed", images, ".npz")
    with counting("encoding") as progress:
        limits = options.limits(max_pixels)
        source = options.with_patterns(images, include, exclude)
        found = application(source, model, out, embedding=embedding, limits=limits, progress=progress)
    show_skipped(found.skipped)
    count, size = found.vectors.shape
    say(f"vectors: {out} ({counted(count, 'image')}, {size} dimensions)")
    show_result({"path": out, "images": count, "dimensions": size, "skipped": found.skipped})


def export(
    model: Annotated[
        Path,
        typer.Argument(help="A run folder, a model file, or a file of normal images from outliers --save."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for encoder.onnx, decoder.onnx and autoencoder.onnx, or for outliers.onnx of normal "
            "images. Default: results/export-NAME."
        ),
    ] = None,
    decoder: Decoder = "sharp",
) -> None:
    """Write a model, or normal images, as ONNX files, for programs without torch."""
    from autoencode.export import CHECKED_BATCHES, export_onnx
    from autoencode.models.model_file import kind_of
    from autoencode.outliers.export import export_normal
    from autoencode.outliers.normal import KIND, load_normal

    # Named, as a graph that was traced with one batch size may be wrong for another.
    batches = " and ".join(map(str, CHECKED_BATCHES))
    out = options.out_or_default(out, "export", model)
    if model.is_file() and kind_of(model) == KIND:
        files = [export_normal(load_normal(model), out)]
    else:
        files = export_onnx(options.loaded_model(model), out, decoder=decoder)
    for file in files:
        say(
            f"{file.path}: {', '.join(file.inputs)} to {', '.join(file.outputs)}; differs from torch by at "
            f"most {file.largest_difference:.1e} (batches of {batches})"
        )
    show_result({"files": files})


def table(found: Evaluation) -> Iterator[str]:
    """Yield the measurements as lines of text, in tables."""
    from autoencode.evaluation.quality import gap_in_words
    from autoencode.metrics.images import MEASURES

    held_out = f"{found.images} {found.split} images"
    columns = {"model": found.reconstruction}
    if found.sharp is not None:
        columns["its sharp decoder"] = found.sharp
    if found.pca is not None:
        columns[f"PCA, {found.pca_components} components"] = found.pca
    if found.corrupted is not None:
        columns["corrupted"] = found.corrupted
    yield from _block(
        held_out,
        list(columns),
        [
            (measure.label, [_cell(getattr(c, field)) for c in columns.values()])
            for field, measure in MEASURES.items()
        ],
    )
    if found.sets:
        yield from _sets_table(found.sets, found.split)
    if code := found.code:
        yield ""
        rows = [
            ("ELBO, nats per image", _cell(code.elbo_nats)),
            ("bits per dimension", _cell(code.bits_per_dimension)),
            ("KL, nats per image", _cell(code.kl_nats)),
            ("active units", f"{code.active_units} of {found.code_size}"),
            ("prior gap", gap_in_words(code.prior_gap_nats)),
        ]
        yield from _block(held_out, ["code"], [(name, [cell]) for name, cell in rows])
    if found.labels:
        yield ""
        count = next(iter(found.labels.values())).images
        yield from _block(
            f"{count} labelled images",
            list(found.labels),
            [
                (name, [_cell(getattr(q, field)) for q in found.labels.values()])
                for field, name in LABELS.items()
            ],
        )
    if detection := found.detection:
        yield ""
        row = (f"{detection.images} images of {detection.folder}", [_cell(detection.auroc)])
        yield from _block(held_out, [f"AUROC by {detection.score}"], [row])


def _sets_table(sets: dict[str, SetQuality], split: str) -> Iterator[str]:
    """Yield one table for each network that judges, and one for what needs none."""
    from autoencode.evaluation.sets import SETS

    first = next(iter(sets.values()))
    for judge, likeness in first.by.items():
        found = {SETS[name]: one.by[judge] for name, one in sets.items()}
        yield ""
        yield from _block(
            f"{likeness.kid.count} {split} images",
            [f"KID ({judge})", "precision", "recall"],
            [(name, list(map(_cell, (a.kid, a.precision, a.recall)))) for name, a in found.items()],
        )
    yield ""
    yield from _block(
        f"{likeness.kid.count} {split} images",
        ["sharpness", "nearer to training images"],
        [(SETS[name], [_cell(one.sharpness), _cell(one.memorised)]) for name, one in sets.items()],
    )


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        info,
        "autoencode info runs/photos",
        "autoencode info model.safetensors --settings again.toml",
        "autoencode info photos.index --json",
    )
    add_command(
        program,
        evaluate,
        "autoencode evaluate runs/photos --out quality.json",
        "autoencode evaluate runs/photos --ood other-photos",
        keeps_memory=True,
    )
    add_command(
        program,
        embed,
        "autoencode embed runs/photos photos --out codes.csv",
        "autoencode embed runs/photos photos --out codes.parquet",
        keeps_memory=True,
    )
    add_command(program, export, "autoencode export runs/photos --out onnx")


def _block(corner: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    # Plain text, not a table of rich: it is the same in a log and a file, and columns can be cut out of it.
    lines = [[corner, *columns], *([name, *cells] for name, cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _cell(estimate: Estimate | None) -> str:
    """Return a value with its interval, rounded so that the width of the interval keeps two digits."""
    if estimate is None:
        return "-"
    value, interval = estimate.value, estimate.interval
    if interval is None:
        return f"{value:.4g}"
    width = interval.high - interval.low
    # Images that are all alike give an interval without a width: there is no digit to keep.
    decimals = max(0, 1 - floor(log10(width))) if width > 0 else 4
    return f"{value:.{decimals}f} ({interval.low:.{decimals}f} to {interval.high:.{decimals}f})"
