"""The command that finds anomalous images: outliers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from autoencode.cli import options
from autoencode.cli.options import MaxPixels, Ray, add_command
from autoencode.cli.progress import (
    counting,
    fail_if_named,
    one_line,
    say,
    show_result,
    show_skipped,
    stages,
    warn,
)
from autoencode.configuration import Embedding, Rule
from autoencode.errors import ConfigError
from autoencode.outliers.scores import SCORES, default_score

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Limits
    from autoencode.outliers.find import Outliers
    from autoencode.outliers.inspection import Inspection

    ScoreName = str
else:
    ScoreName = Literal[tuple(SCORES)]  # typer makes choices of a Literal; mypy wants it spelled out

SHOWN = 10  # the worst; the table has all
SCORE_HELP = (
    "; ".join(
        f"{score.name}: {score.summary}{' (VAE only)' if score.needs_vae else ''}"
        for score in SCORES.values()
    )
    + f". Default: {default_score('code')}; for pretrained features {default_score('pretrained')}."
)


def outliers(
    normal: Annotated[
        Path,
        typer.Argument(
            help="Normal images: a folder of them, a file from --save, or the run folder or file of a model."
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, and folders of them. Default: the normal images, each judged by the others.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a table, .csv or .json; with a model also a sheet of the most anomalous images."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(help="A folder for two pictures of each image: with its heat map over it, and the map."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Keep what was learned from the normal images in a file, to judge others later."),
    ] = None,
    fail_on_outlier: Annotated[
        bool, typer.Option("--fail-on-outlier", help="Exit with 1 if an image is an outlier.")
    ] = False,
    score: Annotated[
        ScoreName | None,
        typer.Option(help=SCORE_HELP),
    ] = None,
    embedding: Annotated[
        Embedding | None,
        typer.Option(help="With a model: score by it (code, the default), or by pretrained features alone."),
    ] = None,
    fpr: Annotated[
        float | None,
        typer.Option(
            help="False positive rate: at most this share of normal images is flagged. Default: 0.01, or the "
            "smallest that the test images of the pack allow."
        ),
    ] = None,
    rule: Annotated[
        Rule | None,
        typer.Option(
            help="With a model: conformal (the default) keeps to --fpr; paper flags a KL above the median."
        ),
    ] = None,
    heatmaps: Annotated[
        bool,
        typer.Option("--heatmaps", help="With a model: add maps of the reconstruction error to the sheet."),
    ] = False,
    pack: Annotated[
        str | None,
        typer.Option(help="The pack the model was trained on: a folder or a URL. Default: the run's."),
    ] = None,
    max_pixels: MaxPixels = None,
    ray: Ray = None,
) -> None:
    """Find images, and defects in them, unlike normal images."""
    from autoencode.outliers.normal import holds_normal

    limits, asked = options.limits(max_pixels), {"score": score, "embedding": embedding, "rule": rule}
    if holds_normal(normal):
        of_model = {**asked, "pack": pack, "ray": ray, "heatmaps": heatmaps or None}
        if given := [name for name, value in of_model.items() if value is not None]:
            raise ConfigError(f"--{given[0]} goes with a model, not with normal images. Leave it out.")
        any_outlier = _by_normal_images(normal, images or [], out, maps, save, fpr, limits)
    else:
        if maps is not None or save is not None:
            raise ConfigError("--maps and --save go with a folder of normal images, not with a model.")
        settings = {"fpr": fpr, "heatmaps": heatmaps, "ray": ray, "embedding": "code", "rule": "conformal"}
        settings |= {name: value for name, value in asked.items() if value is not None}
        any_outlier = _by_model(normal, images or [], out, pack, limits, settings)
    if fail_on_outlier and any_outlier:
        raise typer.Exit(1)


def _by_model(
    model: Path,
    images: list[Path],
    out: Path | None,
    pack: str | None,
    limits: Limits | None,
    settings: dict[str, Any],
) -> bool:
    """Judge images by a model, and return whether one is an outlier."""
    from autoencode.atomic import TABLES, check_output
    from autoencode.data.pack import open_pack
    from autoencode.models.model_file import load_model
    from autoencode.outliers.calibration import reference_name
    from autoencode.outliers.find import find_outliers, sheet_path

    if not images:
        raise ConfigError("Give the images to judge after the model: files, or folders of them.")
    if settings["heatmaps"] and out is None:
        raise ConfigError("--heatmaps adds to the sheet, which is written beside the table: give --out.")
    loaded = load_model(model)
    run = model if model.is_dir() else model.parent
    packed = open_pack(pack) if pack else options.pack_of(model, "--pack PACK")
    if out is not None:  # before the work, which may take minutes
        check_output(out, TABLES, options.settings_files(model, packed))
    # Kept beside the model: the reference is the same for all images, and may take longer than they.
    cache = run / reference_name(settings["embedding"])
    with stages() as progress:
        found = find_outliers(
            loaded, images, packed, out, cache=cache, limits=limits, progress=progress, **settings
        )
    _print(found)
    show_result({name: value for name, value in vars(found).items() if name != "reference"})
    if out is not None:
        say(f"table: {out}")
        say(f"sheet: {sheet_path(out)}")
    # Last: the images that can be used are judged before the command fails for the others.
    fail_if_named(found.skipped, images)
    return any(image.outlier for image in found.images)


def _by_normal_images(
    normal: Path,
    images: list[Path],
    out: Path | None,
    maps: Path | None,
    save: Path | None,
    fpr: float | None,
    limits: Limits | None,
) -> bool:
    """Judge images by a folder or file of normal ones, and return whether one is an outlier."""
    from autoencode.atomic import TABLES, check_output
    from autoencode.outliers.inspection import inspect_images
    from autoencode.outliers.normal import fit_normal, load_normal

    for path, endings in ((out, TABLES), (save, (".safetensors",))):
        if path is not None:  # before the work, which may take minutes
            check_output(path, endings)
    if normal.is_dir():
        with counting("learning what is normal") as progress:
            learned = fit_normal(normal, limits=limits, progress=progress)
        show_skipped(list(learned.skipped))
        if save is not None:
            learned.save(save)
            say(f"saved: {save}: judges images where {normal} is not")
    else:
        learned = load_normal(normal)
    if not images and save is not None:
        show_result({"saved": save, "images": len(learned.calibration), "skipped": learned.skipped})
        return False
    with counting("judging") as progress:
        found = inspect_images(
            learned, images or None, out, fpr=fpr, maps=maps, limits=limits, progress=progress
        )
    _print_inspection(found)
    show_result(found)
    for name, path in (("table", out), ("maps", maps)):
        if path is not None:
            say(f"{name}: {path}")
    fail_if_named(found.skipped, images)
    return any(verdict.outlier for verdict in found.verdicts)


def _print_inspection(found: Inspection) -> None:
    show_skipped(found.skipped)
    flagged = [verdict for verdict in found.verdicts if verdict.outlier]
    for one in flagged[:SHOWN]:
        where = "" if one.box is None else "  at {},{} {}x{}".format(*one.box)
        say(one_line(f"{one.score:8.2f}  p {one.p_value:.3g}  {one.path}{where}"))
    if len(flagged) > SHOWN:
        say(f"and {len(flagged) - SHOWN} more")
    by = "the normal images are alike" if found.are_alike else "content and style too, as normal images vary"
    say(f"outliers: {len(flagged)} of {len(found.verdicts)} images, by patches of EfficientNet-Lite0; {by}")
    say(
        f"rule:     on average at most {found.fpr:.2%} of normal images, and with 95 % confidence at most "
        f"{found.fpr_bound:.2%}; calibrated on {found.calibration_images:,} normal images, each measured "
        "against others"
    )
    for name in found.passing:
        warn(f"An image that is {name} would be called normal.")


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        outliers,
        "autoencode outliers good-parts new-parts --out outliers.csv --maps maps",
        "autoencode outliers good-parts --save good.safetensors",
        "autoencode outliers good.safetensors new-parts --fail-on-outlier",
        "autoencode outliers runs/photos new-photos --out outliers.csv",
    )


def _print(found: Outliers) -> None:
    show_skipped(found.skipped)
    for note in found.notes:
        say(f"note: {note}")
    flagged = [image for image in found.images if image.outlier]
    for image in flagged[:SHOWN]:
        # The p-value too, as the scores have no unit that could be compared.
        line = f"{image.score:12.5g}  p {image.p_value:.3g}  {image.path}"
        say(one_line(line))
    if len(flagged) > SHOWN:
        say(f"and {len(flagged) - SHOWN} more")
    say(f"outliers: {len(flagged)} of {len(found.images)} images, by {found.score} of {found.embedding}")
    say(f"rule:     {_rule(found)}")
    # Measured on images that calibrated nothing, so that one need not believe the rule.
    if found.validation_fpr is not None:
        rate, (low, high), images = found.validation_fpr
        say(
            f"measured: {rate:.2%} of {images} validation images flagged, "
            f"95 % interval {low:.2%} to {high:.2%}"
        )


def _rule(found: Outliers) -> str:
    from autoencode.outliers.calibration import DEFAULT_FPR, images_needed
    from autoencode.outliers.find import PAPER_NOTE

    if found.fpr is None:
        return PAPER_NOTE
    images = found.reference.calibration_images
    text = f"at most {found.fpr:.2%} of normal images, calibrated on {images} test images"
    # Somebody who expects the default has to see that the pack is too small for it, and by how much.
    if found.fpr == 1 / (images + 1) > DEFAULT_FPR:
        text += f"; {DEFAULT_FPR:.0%} needs {images_needed(DEFAULT_FPR)}"
    return text
