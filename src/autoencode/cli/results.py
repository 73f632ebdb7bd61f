"""Print the images of a run before it begins, and write, complete and print its results at the end."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autoencode.cli.options import pack_of
from autoencode.cli.progress import SHOWN, counted, counting, one_line, say, stages, warn
from autoencode.errors import AutoencodeError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from autoencode.data.pack import Pack
    from autoencode.evaluation import Evaluation
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.training.train import Run

# Fewer show a model too little to be ahead of PCA on new ones; and the least gain that anybody sees.
FEW_IMAGES, NOTICEABLE = 300, 0.03


def fit_missing_prior(model: Autoencoder, path: Path) -> None:
    """Fit the mixture of a model whose training ended before it was fitted, if its images are at hand.

    Without them the command says how a model gets one.
    """
    from autoencode.generation import fit_prior

    with suppress(AutoencodeError):
        packed = pack_of(path, "generate MODEL")
        with counting("fitting the prior") as progress:
            fit_prior(model, packed, progress=progress)
        say(f"note: the model had no prior; it was fitted to the images of {packed.location}", err=True)


def print_pack(packed: Pack) -> None:
    """Print the contents of a pack, and the first files that were skipped."""
    from autoencode.data.folders import by_type

    splits = ", ".join(f"{len(packed.rows(split))} {split}" for split in ("train", "validation", "test"))
    shape = f"{packed.preprocessing.height}x{packed.preprocessing.width}"
    say(f"pack:   {packed.location}: {counted(len(packed), 'image')} of {shape} ({splits})")
    if not len(packed.rows("validation")):
        # Without a training split, all images are trained on, and there is nothing else to measure with.
        held_out = len(packed.rows("test")) and len(packed.rows("train"))
        say(
            "note:   too few images for a validation split; the validation numbers are those of "
            f"{'the test images' if held_out else 'the training images themselves'}"
        )
    elif not len(packed.rows("train")):
        say(
            "note:   too few images for a training split; a model learns all of them, the validation images "
            "too, whose numbers then say nothing about new images"
        )
    if packed.note:
        say(f"note:   {packed.note}")
    types, others = by_type((entry.path, entry.reason or "") for entry in packed.skipped)
    if types:
        say(f"skipped {types}")
    if others:
        say(f"skipped {counted(len(others), 'file')}, with the reason in {packed.path / 'manifest.jsonl'}:")
        for path, reason in others[:SHOWN]:
            say(one_line(f"  {path}: {reason}"))


def show_run(run: Run, trained: bool, shown: bool) -> None:
    """Fit the prior, draw and write what is missing in the run, or all after training, and print where."""
    from autoencode import reconstruction, restoration
    from autoencode.data.pack import open_pack
    from autoencode.models.model_file import load_model, load_restorer
    from autoencode.report import REPORT_NAME, report_and_evaluate
    from autoencode.training.progress import epochs_in_words
    from autoencode.training.run import read_run

    packed, settings = open_pack(run.pack_path), read_run(run.folder)
    if not shown:
        print_pack(packed)
    say(f"epochs: {epochs_in_words(settings, run.metrics)}")
    if settings.model.kind == "restorer":
        # Validation images clean, damaged and restored.
        _draw(
            run,
            packed,
            restoration.SHEET_NAME,
            lambda: restoration.validation_sheet(load_restorer(run.model_path), packed),
            anew=trained,
        )
        say(f"model:  {run.model_path}")
        return
    model = load_model(run.model_path)
    _complete(run, model, packed)
    _draw(
        run,
        packed,
        reconstruction.SHEET_NAME,
        lambda: reconstruction.validation_sheet(model, packed),
        anew=trained,
    )
    if model.is_vae:
        _print_health(run, model, packed)
    page = run.folder / REPORT_NAME
    found: Evaluation | None = None
    if trained or not page.exists():
        with stages() as progress:
            # The full report measures for minutes; `autoencode report` writes it when somebody wants it.
            page, found = report_and_evaluate(run.folder, quick=True, progress=progress)
    say(f"report: {page}")
    size = run.model_path.stat().st_size / 1e6
    say(f"model:  {run.model_path} ({size:.1f} MB: all that another machine needs)")
    if found is not None:
        _say_quality(found, len(packed.training_rows()))
    say(f"next:   {_next(run, packed)}")


def show_stopped(out: Path, *, complete: bool) -> None:
    """Say how to go on with a run, and with `complete`, do first what the end of a training does."""
    from autoencode.data.pack import open_known_pack
    from autoencode.models.model_file import MODEL_NAME
    from autoencode.training.run import read_metrics, read_run
    from autoencode.training.train import Run

    last = f"Stopped. {out} keeps its state: run it again with --resume."
    if not (out / MODEL_NAME).exists():
        say(f"{last} It has no model before the end of its first epoch.")
        return
    if not complete:
        say(last)
        return
    settings = read_run(out)
    say("Stopping: what the model needs to be used is fitted; Ctrl-C again skips it.")
    try:
        pack = open_known_pack(settings.pack, settings.fingerprint, out)
        run = Run(out, out / MODEL_NAME, pack.path, read_metrics(out))
        show_run(run, trained=True, shown=True)
    except (KeyboardInterrupt, AutoencodeError) as err:
        why = f": {err}" if isinstance(err, AutoencodeError) else "."
        warn(one_line(f"The model file alone does not generate or judge yet{why}"))
    say(last)


def say_finished(run: Run) -> None:
    """Say that a run has no epoch left, and how to continue it."""
    from autoencode.training.progress import epochs_counted
    from autoencode.training.run import read_run

    train = read_run(run.folder).train
    advice = f"To continue it, give --epochs above {train.epochs}."
    if train.fixes_epochs:
        advice = f"More epochs cannot be added: {train.fixes_epochs}. Train anew with more --epochs."
    first, sharp = epochs_counted(run.metrics)
    has = (
        "has all its" if first >= train.total_epochs else f"stopped early, of {train.total_epochs}, after its"
    )
    epochs = counted(first, "epoch") + (f", and {sharp} of the sharp decoder" if sharp else "")
    say(f"finished: {run.folder} {has} {epochs}, nothing to do. {advice}")


def _complete(run: Run, model: Autoencoder, packed: Pack) -> None:
    """Fit what `generate` draws from and `outliers` compares with, if it is missing, and save the model."""
    # Now, as the pack may be gone when somebody wants them: then the model file has to be enough.
    from autoencode.generation import fit_prior
    from autoencode.models.model_file import save_model
    from autoencode.outliers.calibration import fit_reference

    if model.prior is not None and model.reference is not None:
        return
    if model.prior is None:
        with counting("fitting the prior") as progress:
            fit_prior(model, packed, progress=progress)
    try:
        with counting("fitting to normal images") as progress:
            fit_reference(model, packed, keep=True, progress=progress)
    except ConfigError as err:
        say(f"note:   the model judges no other images: {err}")
    model.digest = save_model(run.model_path, model, model.provenance)


def _draw(
    run: Run, packed: Pack, name: str, sheet_of: Callable[[], NDArray[np.uint8]], *, anew: bool
) -> None:
    """Draw the curves and the sheet `name`, or those that are missing, and print where they are."""
    from autoencode.data.preprocessing import save_image
    from autoencode.figures.plots import loss_curves

    curves, sheet = run.folder / "curves.png", run.folder / name
    if anew or not curves.exists():
        loss_curves(run.metrics, curves, f"{run.folder.name}: {counted(len(packed), 'image')}")
    say(f"curves: {curves}")
    if anew or not sheet.exists():
        save_image(sheet, sheet_of())
    say(f"sheet:  {sheet}")


def _print_health(run: Run, model: Autoencoder, packed: Pack) -> None:
    """Print how much information a VAE's code carries and, unless it is gaussian, the meaning of its loss."""
    from autoencode.data.loader import batches
    from autoencode.evaluation.quality import code_health, gap_in_words
    from autoencode.training.run import read_run, settings_in_words

    settings = read_run(run.folder)
    if settings.train.loss != "gaussian":
        say(f"loss:   {dict(settings_in_words(settings))['loss']}")
    rows = packed.held_out("validation").rows
    health = code_health(model, batches(packed, rows, 128))
    gap = gap_in_words(health.prior_gap_nats)
    say(
        f"code:   {health.active_units} of {model.config.code_size} dimensions active, "
        f"KL {health.kl_nats.sum():.1f} nats per image, distance from its prior {gap}"
    )
    if health.warning:
        warn(health.warning)


def _say_quality(found: Evaluation, images: int) -> None:
    """Say how good a model of so many training images is, beside PCA, and whether they were enough."""
    own, pca = found.reconstruction.psnr_db, found.pca and found.pca.psnr_db
    if own is None:
        return
    text = f"PSNR {own.value:.1f} dB on {counted(found.images, f'{found.split} image')}"
    if found.sharp and found.sharp.psnr_db:
        text += f" by the faithful decoder, {found.sharp.psnr_db.value:.1f} by the sharp one"
    if pca:
        text += f", PCA of the same size {pca.value:.1f}"
    if images < FEW_IMAGES:
        text += f"; {counted(images, 'training image')} {'is' if images == 1 else 'are'} few, more help most"
    elif pca and found.error_saved is not None and found.error_saved < NOTICEABLE:
        text += "; training longer may help: --resume --epochs"
    say(f"quality: {text}")


def _next(run: Run, packed: Pack) -> str:
    source = packed.origin or str(packed.folder)
    folder, images = shlex.quote(str(run.folder)), shlex.quote(source)
    there = f", autoencode reconstruct {folder} {images}" if Path(source).exists() else ""
    return f"autoencode generate {folder}{there}"
