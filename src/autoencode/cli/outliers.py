"""The command that finds anomalous images: outliers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from autoencode.cli import options
from autoencode.cli.options import Exclude, Include, MaxPixels, Ray, add_command
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
from autoencode.cli.verdicts import marked, show_verdicts, stopping, warn_of_passing
from autoencode.configuration import Rule
from autoencode.errors import AutoencodeError, ConfigError, ImageFolderError
from autoencode.outliers.scores import SCORES, default_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autoencode.data.preprocessing import Limits
    from autoencode.outliers.normal import NormalImages

    ScoreName = str
else:
    ScoreName = Literal[tuple(SCORES)]  # typer makes choices of a Literal; mypy wants it spelled out

SCORE_HELP = (
    "; ".join(
        f"{score.name}: {score.summary}{' (VAE only)' if score.needs_vae else ''}"
        for score in SCORES.values()
    )
    + f". Default: {default_score()}."
)


NormalImagesOrModel = Annotated[
    Path,
    typer.Argument(
        help="Normal images: a folder, table or list of them, a file from --save, or the run folder or "
        "file of a model. In a folder or table with train and test, train is normal and test is judged."
    ),
]
ImagesToJudge = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Image files, and folders of them. Default: the normal images, each judged by the others.",
        show_default=False,
    ),
]
Table = Annotated[
    Path | None,
    typer.Option(
        help="Write a table, .csv or .json; with a model also a sheet of the most anomalous images."
    ),
]
Maps = Annotated[
    Path | None,
    typer.Option(help="A folder for two pictures of each image: with its heat map over it, and the map."),
]
OnlyOutliers = Annotated[bool, typer.Option("--only-outliers", help="Leave other images out of --maps.")]
Masks = Annotated[
    Path | None,
    typer.Option(
        help="Masks of the defects, to measure how well they are found: a folder, or a table with columns "
        "path and mask. Default: the table of images, if it has such a column, or ground_truth beside them.",
        show_default=False,
    ),
]
Watch = Annotated[
    Path | None,
    typer.Option(help="Judge the files of this folder as they come, each once, into the table --out."),
]
Save = Annotated[
    Path | None,
    typer.Option(help="Keep what was learned from the normal images in a file, to judge others later."),
]
FailOnOutlier = Annotated[
    bool,
    typer.Option("--fail-on-outlier", help="Exit with 1 if an image is an outlier or cannot be judged."),
]
ScoreChoice = Annotated[ScoreName | None, typer.Option(help=SCORE_HELP)]
Fpr = Annotated[
    float | None,
    typer.Option(
        help="False positive rate: at most this share of normal images is flagged, on average. Default: "
        "3 / (N + 1) for N normal images, from 0.05 to 0.01; 1 / (N + 1) with N < 19."
    ),
]
RuleChoice = Annotated[
    Rule | None,
    typer.Option(
        help="With a model: conformal (the default) keeps to --fpr; paper flags a KL above the median."
    ),
]
Heatmaps = Annotated[bool, typer.Option("--heatmaps", help="With a model: add error maps to the sheet.")]
PackOf = Annotated[
    str | None,
    typer.Option(help="The pack the model was trained on: a folder or a URL. Default: the run's."),
]


def outliers(
    normal: NormalImagesOrModel,
    images: ImagesToJudge = None,
    out: Table = None,
    maps: Maps = None,
    only_outliers: OnlyOutliers = False,
    masks: Masks = None,
    watch: Watch = None,
    save: Save = None,
    fail_on_outlier: FailOnOutlier = False,
    score: ScoreChoice = None,
    fpr: Fpr = None,
    rule: RuleChoice = None,
    heatmaps: Heatmaps = False,
    pack: PackOf = None,
    include: Include = None,
    exclude: Exclude = None,
    max_pixels: MaxPixels = None,
    ray: Ray = None,
) -> None:
    """Find images, and defects in them, unlike normal images."""
    from autoencode.data.sources import listed, train_and_test
    from autoencode.data.tables import masks_in
    from autoencode.models.model_file import kind_of
    from autoencode.outliers.conformal import check_fpr
    from autoencode.outliers.ground_truth import beside
    from autoencode.outliers.normal import holds_normal

    _check_paths(normal, images or [])
    if fpr is not None:
        check_fpr(fpr)  # before the work, not after it
    source: Any = normal
    if (layout := train_and_test(normal)) is not None:
        source, held_out = layout
        if judges := not images and watch is None and save is None:
            images = held_out
            masks = masks or (normal if normal.is_file() and masks_in(normal) else None)
        say(f"read as: train is normal{', test is judged' if judges else ''}, of {normal}")
    limits, asked, is_failed = options.limits(max_pixels), {"score": score, "rule": rule}, False
    of_model = {**asked, "pack": pack, "ray": ray, "heatmaps": heatmaps or None}
    of_normal = {"maps": maps, "save": save, "masks": masks, "watch": watch}
    by_normal = source is not normal or holds_normal(normal)
    if given := [name for name, value in (of_model if by_normal else of_normal).items() if value is not None]:
        kinds = ("a model", "normal images") if by_normal else ("a folder of normal images", "a model")
        raise ConfigError(f"--{given[0]} goes with {kinds[0]}, not with {kinds[1]}. Leave it out.")
    if only_outliers and maps is None:
        raise ConfigError("--only-outliers is about the pictures of --maps: give a folder for them.")
    judged: Sequence[Path] = (named := images or [])
    if include or exclude:
        if watch is not None:
            raise ConfigError("--watch judges all files of its folder. Leave --include and --exclude out.")
        if by_normal and not kind_of(normal):
            source = listed(source, include or (), exclude or ()).paths
        judged = named and listed(named, include or (), exclude or ()).paths
    if by_normal:
        how: dict[str, Any] = {"fpr": fpr, "maps": maps, "only_outliers": only_outliers, "limits": limits}
        learned = _learned(source, out, save, limits)
        if images or watch is not None or save is not None:  # judged by each other, they come with the result
            show_skipped(list(learned.skipped))
        if watch is not None:
            is_failed = _watch(learned, watch, judged, out, fail_on_outlier=fail_on_outlier, **how)
        elif not images and save is not None:
            if learned.note is not None:
                say(one_line(f"note: {learned.note}"))
            warn_of_passing(learned.passing)
            show_result({"saved": save, "images": len(learned.calibration), "skipped": learned.skipped})
        else:
            how |= {"masks": masks or beside(named)}
            is_failed = _by_normal_images(learned, judged, named, out, how)
    else:
        own = {name: value for name, value in asked.items() if value is not None}
        settings = {"fpr": fpr, "heatmaps": heatmaps, "ray": ray, "rule": "conformal", **own}
        is_failed = _by_model(normal, judged, named, out, pack, limits, settings)
    if fail_on_outlier and is_failed:
        raise typer.Exit(1)


def _check_paths(normal: Path, images: list[Path]) -> None:
    """Reject paths that cannot be meant, before normal images are learned for minutes."""
    from autoencode.data.folders import EXTENSIONS
    from autoencode.data.sources import expanded

    if not normal.exists():
        raise ImageFolderError(
            f"{normal} does not exist. Give a folder of normal images, a file from --save, or a model."
        )
    if normal.is_file() and normal.name.lower().endswith(EXTENSIONS):
        raise ConfigError(f"{normal} is an image. Give a folder of normal images: {normal.parent}")
    if images and not any(path.exists() for path in images):
        raise ImageFolderError(f"{images[0]} does not exist. Give image files, and folders of them.")
    expanded(images)


def _by_model(
    model: Path,
    images: Sequence[Path],
    named: list[Path],
    out: Path | None,
    pack: str | None,
    limits: Limits | None,
    settings: dict[str, Any],
) -> bool:
    """Judge images by a model, and return whether one is an outlier or could not be judged."""
    from autoencode.atomic import TABLES, check_output
    from autoencode.data.pack import Pack, open_pack
    from autoencode.outliers.calibration import NAME, OutlierReference, load_reference
    from autoencode.outliers.find import find_outliers, sheet_path

    if not images:
        raise ConfigError("Give the images to judge after the model: files, or folders of them.")
    if settings["heatmaps"] and out is None:
        raise ConfigError("--heatmaps adds to the sheet, which is written beside the table: give --out.")
    loaded = options.loaded_model(model)
    run = model if model.is_dir() else model.parent
    # Kept beside the model: the reference is the same for all images, and may take longer than they.
    cache = run / NAME
    reference: Pack | OutlierReference
    try:
        reference = open_pack(pack) if pack else options.pack_of(model, "--pack PACK")
    except AutoencodeError as err:
        if pack:
            raise
        try:
            reference = load_reference(loaded, cache)  # the model was moved to a machine without the images
        except ConfigError:
            raise err from None
    if out is not None:  # before the work, which may take minutes
        kept = options.settings_files(model, reference) if isinstance(reference, Pack) else []
        check_output(out, TABLES, kept)
    with stages() as progress:
        found = find_outliers(
            loaded, images, reference, out, cache=cache, limits=limits, progress=progress, **settings
        )
    show_verdicts(found, found.score, "test images")
    show_result(found)
    if out is not None:
        say(f"table: {out}")
        say(f"sheet: {sheet_path(out)}")
    # Last: the images that can be used are judged before the command fails for the others.
    fail_if_named(found.skipped, named)
    return bool(found.flagged or found.unread)


def _learned(source: Any, out: Path | None, save: Path | None, limits: Limits | None) -> NormalImages:  # noqa: ANN401
    from autoencode.atomic import TABLES, check_output
    from autoencode.data.sources import is_list
    from autoencode.outliers.normal import fit_normal, load_normal

    for path, endings in ((out, TABLES), (save, (".safetensors",))):
        if path is not None:  # before the work, which may take minutes
            check_output(path, endings)
    if isinstance(source, Path) and not source.is_dir() and not is_list(source):
        return load_normal(source)
    with stopping(), counting("learning what is normal") as progress:
        learned = fit_normal(source, limits=limits, progress=progress)
    if save is not None:
        learned.save(save)
        say(f"saved: {save}: judges images where the normal ones are not")
    return learned


def _by_normal_images(
    normal: NormalImages, images: Sequence[Path], named: list[Path], out: Path | None, how: dict[str, Any]
) -> bool:
    """Judge images by normal ones, and return whether one is an outlier or could not be judged."""
    from autoencode.outliers.inspection import curves_path, inspect_images

    with stopping(), counting("judging") as progress:
        found = inspect_images(normal, images or None, out, progress=progress, **how)
    alike = "the normal images are alike" if found.are_alike else "content and statistics too, as they vary"
    show_verdicts(
        found, f"patches of EfficientNet-Lite0; {alike}", "normal images, each measured against others"
    )
    show_result(found)
    curves = curves_path(out) if out is not None and found.agreement is not None else None
    for name, path in (("table", out), ("curves", curves), ("maps", how["maps"])):
        if path is not None:
            say(f"{name}: {path}")
    if how["maps"] is not None:
        say("In the overlays, red and a box are beyond what is normal; blue is the most unusual within it.")
    fail_if_named(found.skipped, named)
    return bool(found.flagged or found.unread)


def _watch(
    normal: NormalImages,
    folder: Path,
    images: Sequence[Path],
    out: Path | None,
    *,
    fail_on_outlier: bool,
    **how: Any,  # noqa: ANN401 - the options of `watch_images`
) -> bool:
    """Judge files as they come until the user stops it; return whether one was an outlier or unreadable."""
    from autoencode.outliers.inspection import watch_images

    if out is None:
        raise ConfigError("--watch adds a line for each file to a table: give --out TABLE.csv.")
    if images:
        raise ConfigError("--watch judges the files of its folder. Leave the other images out.")
    say(f"watching {folder}: every new image is judged, until you press Ctrl-C")
    is_failed = False
    with contextlib.suppress(KeyboardInterrupt):
        for found in watch_images(normal, folder, out, **how):
            if isinstance(found, tuple):
                warn(one_line(f"{found[0]} cannot be judged: {found[1]}"))
            else:
                say(one_line(marked(found)))
            is_failed |= isinstance(found, tuple) or found.outlier
            if fail_on_outlier and is_failed:
                break
    say(f"table: {out}")
    return is_failed


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        outliers,
        "autoencode outliers good-parts new-parts --out outliers.csv --maps maps",
        "autoencode outliers good-parts --save good.safetensors",
        "autoencode outliers good.safetensors new-parts --fail-on-outlier",
        "autoencode outliers good.safetensors --watch camera --out today.csv",
        "autoencode outliers runs/photos new-photos --out outliers.csv",
    )
