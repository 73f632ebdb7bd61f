"""The commands that use the features of an encoder: features, transfer and classify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoencode.cli import options
from autoencode.cli.options import Images, MaxPixels, Model, add_command
from autoencode.cli.progress import counting, fail_if_named, one_line, say, show_result, show_skipped, stages
from autoencode.configuration import Embedding

if TYPE_CHECKING:
    from autoencode.transfer_learning import Accuracy, Transfer


SHOWN = 20  # a screen; the table has all


def features(
    model: Model,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a grid of maps of each layer, a sheet of all layers, and a table. Default: "
            "results/features-NAME."
        ),
    ] = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Draw the feature maps of an image in each convolution layer of the encoder."""
    from autoencode import feature_maps as application

    loaded, out = options.loaded_model(model), options.out_or_default(out, "features", model)
    made = application.features(loaded, image, out, limits=options.limits(max_pixels))
    for number, layer in enumerate(made.layers, 1):
        channels, height, width = layer.maps.shape
        field = "x".join(map(str, layer.receptive_field_px))
        say(
            f"layer {number}: {channels} channels of {height}x{width}, receptive field {field} pixels "
            f"({layer.name})"
        )
    say(f"sheet: {out / application.SHEET_NAME}")
    say(f"table: {out / application.TABLE_NAME}")
    show_result(made)


def transfer(
    model: Model,
    labelled: Annotated[Path, typer.Argument(help="A folder with a sub-folder of images for each class.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the classifier and the comparison. Default: results/transfer-NAME."),
    ] = None,
    embedding: Annotated[
        Embedding | None,
        typer.Option(
            help="Keep the classifier on features of this encoder (code), or of EfficientNet-Lite0 "
            "(pretrained). Default: the best in cross-validation."
        ),
    ] = None,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Also train the encoder itself on the labels.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the choice of labels and of training.")] = 0,
    max_pixels: MaxPixels = None,
) -> None:
    """Learn a classifier from a few labelled images, and compare it with others on the same labels."""
    from autoencode import transfer_learning as application
    from autoencode.transfer_learning.classifier import CLASSIFIER_NAME

    loaded, out = options.loaded_model(model), options.out_or_default(out, "transfer", labelled)
    with stages() as progress:
        made = application.transfer(
            loaded,
            labelled,
            out,
            embedding=embedding,
            finetune=finetune,
            seed=seed,
            limits=options.limits(max_pixels),
            progress=progress,
        )
    _print_comparison(made)
    say(f"classifier: {out / CLASSIFIER_NAME}")
    say(f"comparison: {out / application.COMPARISON_NAME}")
    say(f"confusion:  {out / application.CONFUSION_NAME}, {out / application.PICTURE_NAME}")
    found = {name: value for name, value in vars(made).items() if name != "classifier"}
    show_result({"classifier": out / CLASSIFIER_NAME, "classes": made.classifier.classes, **found})


def classify(
    classifier: Annotated[Path, typer.Argument(help="The folder that `autoencode transfer` wrote.")],
    images: Images,
    out: Annotated[
        Path | None, typer.Option(help="Write a table, .csv or .json, and a sheet of the images beside it.")
    ] = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Predict the class of each image."""
    from collections import Counter

    from autoencode.transfer_learning import classifier as application

    loaded = application.load_classifier(classifier)
    with counting("classifying") as progress:
        made = application.classify(loaded, images, out, limits=options.limits(max_pixels), progress=progress)
    show_skipped(made.skipped)
    for result in made.results[:SHOWN]:
        # The label may be any text: it is the name of a folder.
        line = f"{result.probability:6.1%}  {result.label}  {result.path}"
        say(one_line(line))
    if len(made.results) > SHOWN:
        # With more images than a screen holds, the size of each class says more than its images.
        counts = Counter(result.label for result in made.results)
        listed = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        say(f"and {len(made.results) - SHOWN} more; in total {listed}")
    if out is not None:
        say(f"table: {out}")
        say(f"sheet: {application.sheet_path(out)}")
    show_result(made)
    # Last: the images that can be used are classified before the command fails for the others.
    fail_if_named(made.skipped, images)


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(program, features, "autoencode features runs/photos photos/a.jpg --out features")
    add_command(
        program, transfer, "autoencode transfer runs/photos labelled --out classifier", keeps_memory=True
    )
    add_command(program, classify, "autoencode classify classifier photos --out classes.csv")


def _print_comparison(made: Transfer) -> None:
    show_skipped(made.skipped)
    for note in made.notes:
        say(f"note: {note}")
    say(
        f"accuracy on {made.held_out_images} held-out images in %, with 95 % intervals; "
        f"learned from at most {made.learned_images}:"
    )
    levels = list(dict.fromkeys(one.labels_per_class for one in made.comparison))
    heads = ["all labels" if level is None else f"{level} a class" for level in levels]
    say(f"{'':14}" + "".join(f"{head:>20}" for head in heads))
    methods: dict[str, dict[int | None, Accuracy]] = {}
    for one in made.comparison:
        methods.setdefault(one.method, {})[one.labels_per_class] = one
    for method, at in methods.items():
        cells = [_cell(at[level]) for level in levels]
        mark = "  <- kept" if method == made.kept else ""
        say(f"{method:14}" + "".join(f"{cell:>20}" for cell in cells) + mark)


def _cell(one: Accuracy) -> str:
    low, high = one.interval
    return f"{100 * one.accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"
