"""The page of a run: a verdict, then pictures, then curves, measurements and settings."""

from __future__ import annotations

import functools
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoencode.data.pack import Pack, open_known_pack
from autoencode.errors import RunError
from autoencode.evaluation import Evaluation, evaluate
from autoencode.models.model_file import MODEL_NAME, load_model
from autoencode.outliers.calibration import NAME, fit_reference, reference_rows
from autoencode.outliers.scores import default_score
from autoencode.report import pictures
from autoencode.report.page import (
    Block,
    Command,
    Section,
    Table,
    Text,
    evaluation_blocks,
    write_page,
)
from autoencode.training.run import RunSettings, read_metrics, read_run, repeating_command, settings_in_words

if TYPE_CHECKING:
    from autoencode.data.pack import StageProgress
    from autoencode.models.autoencoder import Autoencoder

REPORT_NAME = "report.html"
SKIPPED_SHOWN = 20  # a folder may hold thousands of other files; all are in the manifest of the pack
_EQUAL = 0.03  # a difference of errors that nobody would see
QUICK_IMAGES = 1_000  # of each kind: the page at the end of training then takes seconds on a CPU


@dataclass(frozen=True)
class _Run:
    folder: Path
    settings: RunSettings
    model: Autoencoder
    pack: Pack
    quick: bool
    progress: StageProgress

    def at_most(self, images: int) -> int:
        """Return the number of images to use for a full page's `images`: fewer for a quick page."""
        return min(images, QUICK_IMAGES) if self.quick else images


def write_report(run: str | Path, *, quick: bool = False, progress: StageProgress | None = None) -> Path:
    """Write the page of a run into its folder, as one file.

    Args:
        run: a run folder with a model in it.
        quick: measure on samples of images and leave out KID: seconds instead of minutes on a CPU. The page
            says so.
        progress: called with (stage, images done, images in all).

    Returns:
        The page.

    Raises:
        RunError: `run` is not a run folder, or its images have changed since.
        ModelFileError: there is no model yet, or it is damaged.
        PackError: the pack of its images is missing or damaged.
        OutputError: the page cannot be written.
    """
    return report_and_evaluate(run, quick=quick, progress=progress)[0]


def report_and_evaluate(
    run: str | Path, *, quick: bool = False, progress: StageProgress | None = None
) -> tuple[Path, Evaluation]:
    """Return the page of a run and what was measured for it; arguments and errors as `write_report`."""
    folder = Path(run)
    settings = read_run(folder)
    pack = open_known_pack(settings.pack, settings.fingerprint, folder)
    # Held-out images of another pack may have been trained on.
    if pack.fingerprint != settings.fingerprint:
        raise RunError(f"The images of {pack.location} are not those that {folder} was trained on.")
    model = load_model(folder / MODEL_NAME)
    of = _Run(folder, settings, model, pack, quick, progress or (lambda stage, done, total: None))
    found = evaluate(
        model,
        pack,
        kid=not of.quick,
        most_images=QUICK_IMAGES if of.quick else None,
        progress=of.progress,
    )
    # Pictures before numbers: an error such as 0.02 says little to a reader who has not seen the images.
    sections = [
        Section("Before and after", _reconstructions(of)),
        Section("Images", [pictures.data_sheet(pack, "Data sheet")]),
        Section("New images", _samples(of)),
        Section("Most and least anomalous", _outliers(of)),
        Section("Neighbours", _neighbours(of)),
        Section("Map of the codes", [_code_map(of)]),
        Section("Training", _curves(of)),
        Section("Measurements", evaluation_blocks(found.to_json())),
        Section("Files", _files(of)),
        Section("Settings", _settings(of)),
    ]
    path = folder / REPORT_NAME
    write_page(path, f"Run {folder.resolve().name}", f"{verdict(found)} {_lead(of)}", sections)
    return path, found


def verdict(found: Evaluation) -> str:
    """Return in one sentence whether a model is worth its training: against PCA of the same size."""
    gain = found.error_saved
    if gain is None:
        return "Too few images were held out to say how good the model is."
    pca = f"PCA of {found.pca_components} components"
    if abs(gain) < _EQUAL:
        return f"It restores held-out images as well as {pca}, which needs no training."
    return (
        f"It restores held-out images with {abs(gain):.0%} {'less' if gain > 0 else 'more'} error than {pca}."
    )


def _lead(of: _Run) -> str:
    kind = "A variational autoencoder" if of.model.is_vae else "An autoencoder"
    lead = (
        f"{kind} of {len(of.pack):,} images from {of.pack.folder}, "
        f"with a code of {of.model.config.code_size} dimensions per image."
    )
    if not of.quick:
        return lead
    # A reader must not take the numbers of a sample for those of all images.
    return (
        f"{lead} This page was written at the end of training: it measures on samples of {QUICK_IMAGES:,} "
        f"images at most, without KID. For all of them: autoencode report {shlex.quote(str(of.folder))}"
    )


def _settings(of: _Run) -> list[Block]:
    table = Table(("setting", "value"), settings_in_words(of.settings))
    return [table, Text("To train the same run again:"), Command(repeating_command(of.folder, of.pack))]


def _files(of: _Run) -> list[Block]:
    pack = of.pack
    counts = [(split, f"{len(pack.rows(split)):,}") for split in ("train", "validation", "test")]
    blocks: list[Block] = [
        Table(
            ("split", "images"), counts, "Images are split by content: copies of one image are in one split."
        ),
    ]
    if pack.skipped:
        shown = [(entry.path, entry.reason or "") for entry in pack.skipped[:SKIPPED_SHOWN]]
        rest = len(pack.skipped) - len(shown)
        more = f", {rest} more in manifest.jsonl of the pack" if rest else ""
        blocks.append(
            Table(("file", "reason"), shown, f"Files that could not be used: {len(pack.skipped):,}{more}.")
        )
    return blocks


def _curves(of: _Run) -> list[Block]:
    caption = (
        "Every term of the loss by epoch, on training and validation images. A training loss far below the "
        "validation loss shows overfitting."
    )
    return [pictures.curves(read_metrics(of.folder), "Curves", of.folder.resolve().name, caption)]


def _reconstructions(of: _Run) -> list[Block]:
    rows = _held_out(of, 1_000)  # the worst of fewer would not be typical of the worst
    blocks: list[Block] = [pictures.best_median_worst(of.model, of.pack, rows, "Reconstructions")]
    for corruption in of.settings.train.corrupt:
        caption = "Clean images, the corrupted input of the model, and its output."
        blocks.append(
            pictures.restored(
                {"restored": of.model.reconstruct},
                of.pack,
                rows[:8],
                corruption,
                f"Restored from {corruption}",
                caption,
            )
        )
    return blocks


def _samples(of: _Run) -> list[Block]:
    blocks: list[Block] = []
    # The mixture first: its samples are the better ones, the normal ones are those of the paper.
    if of.model.prior is not None:
        caption = "Decoded from a Gaussian mixture fitted to the codes of the training images."
        blocks.append(pictures.samples(of.model, "mixture", "From the mixture", caption))
    if of.model.is_vae:
        caption = "Decoded from the standard normal prior, as the paper does."
        blocks.append(pictures.samples(of.model, "normal", "From N(0, I)", caption))
    return blocks or [
        Text(f"This model has no prior yet. Fit one: autoencode generate {of.folder} --out new")
    ]


def _code_map(of: _Run) -> Block:
    return pictures.code_map(of.model, of.pack, _held_out(of, pictures.MAP_IMAGES), "Map")


def _neighbours(of: _Run) -> list[Block]:
    queries = pictures.some(of.pack.held_out().rows, 4, 0)
    searched = pictures.some(of.pack.rows(), of.at_most(pictures.MOST_SEARCHED), 1)
    searched = np.setdiff1d(searched, queries)  # a query would find itself first
    if not len(searched):
        return [Text("There are too few images to search among.")]
    encoders = {"codes": functools.partial(pictures.codes_of, of.model, of.pack)}
    caption = f"Held-out images and the nearest of {len(searched):,} by the angle between codes."
    return [pictures.neighbours(encoders, of.pack, queries, searched, "Neighbours", caption)]


def _outliers(of: _Run) -> list[Block]:
    most = QUICK_IMAGES if of.quick else None
    looked_at = reference_rows(of.pack, most)
    rows = looked_at["test"]
    # Fewer would be ranked among hardly any others, and the outlier score needs two images to fit.
    if len(rows) < 8 or len(looked_at["train"]) < 2:
        return [Text("There are too few held-out images to rank.")]
    # Kept beside the model, where `autoencode outliers` finds it.
    reference = fit_reference(
        of.model,
        of.pack,
        of.folder / NAME,
        most=most,
        progress=functools.partial(of.progress, "fitting to normal images"),
    )
    scores = reference.calibration[default_score()]
    order = np.argsort(-scores, kind="stable")
    highest = "Held-out images with the highest outlier scores: look here for bad files."
    lowest = "Held-out images with the lowest outlier scores."
    return [
        pictures.scored(of.pack, rows[picked], scores[picked], title, caption)
        for title, picked, caption in (
            ("Most anomalous", order[:12], highest),
            ("Least anomalous", order[::-1][:12], lowest),
        )
    ]


def _held_out(of: _Run, most: int) -> pictures.Rows:
    return pictures.some(of.pack.held_out().rows, of.at_most(most), 2)
