"""The command that trains, and what is shown of a run. Heavy imports are inside, as in `cli`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoencode.cli import options
from autoencode.cli.options import (
    MACHINE,
    VAE,
    Background,
    Kind,
    Loss,
    MaxBytes,
    MaxPixels,
    Network,
    Precision,
    Ray,
    ResizeModeOption,
    Size,
)
from autoencode.cli.progress import console, counted, counting, stages, training, warn
from autoencode.errors import ConfigError
from autoencode.training.process import end_with_launcher, is_first, own_ranks, run_workers

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.training.progress import Progress
    from autoencode.training.train import Run


BY_PRESET = "Default: by the preset; paper-ae"


def train(
    source: Annotated[str, typer.Argument(help="A folder of images, or a pack, also by its URL.")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings to start from: best, best-vae, paper-ae, paper-denoise, paper-dropout, paper-vae, "
            "paper-vae-warmup. Default: paper-ae."
        ),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help=f"autoencoder, or vae (it can generate). {BY_PRESET} autoencoder.")
    ] = None,
    network: Annotated[
        Network | None,
        typer.Option(help=f"paper, or residual (starts as PCA). {BY_PRESET} paper."),
    ] = None,
    code_size: Annotated[int | None, typer.Option(help=f"Values in a code. {BY_PRESET} 256.")] = None,
    widths: Annotated[
        str | None, typer.Option(help=f"Channels of the convolutions. {BY_PRESET} 32,64,128,256.")
    ] = None,
    batch_norm: Annotated[
        bool | None,
        typer.Option("--batch-norm/--no-batch-norm", help=f"Batch normalisation. {BY_PRESET} no."),
    ] = None,
    loss: Annotated[
        Loss | None, typer.Option(help=f"mse or mae; gaussian for a VAE. {BY_PRESET} mse.")
    ] = None,
    corrupt: Annotated[list[str] | None, typer.Option(help=f"{options.CORRUPTED} {BY_PRESET} none.")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"Passes over the images. {BY_PRESET} 10.")] = None,
    batch_size: Annotated[int | None, typer.Option(help=f"Images a step. {BY_PRESET} 128.")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"adamax or adamw. {BY_PRESET} adamax.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help=f"Step size. {BY_PRESET} 0.002.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"Learning rate: constant or cosine. {BY_PRESET} constant.")
    ] = None,
    grad_clip: Annotated[
        float | None,
        typer.Option(
            help=f"Largest gradient, in units of the loss a run starts from; 0 for no limit. {BY_PRESET} 0."
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Compute each step in so many pieces, for less memory. Default: 1.", min=1),
    ] = None,
    horizontal_flip: Annotated[
        bool | None,
        typer.Option(
            "--horizontal-flip/--no-horizontal-flip", help=f"Mirror half of the images. {BY_PRESET} no."
        ),
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help=f"Decay of the average of the weights; 0 for none. {BY_PRESET} 0.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Every random choice follows from it. Default: 0.")] = None,
    sigma2: Annotated[
        str | None,
        typer.Option(
            help=f"Variance of the likelihood: a number or auto. {BY_PRESET} auto.", rich_help_panel=VAE
        ),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help=f"Weight of the KL. {BY_PRESET} 1.", rich_help_panel=VAE)
    ] = None,
    kl_warmup: Annotated[
        str | None,
        typer.Option(
            help=f"Epochs over which beta rises from 0, before --epochs; or cyclic:N. {BY_PRESET} 0.",
            rich_help_panel=VAE,
        ),
    ] = None,
    adversarial: Annotated[
        bool | None,
        typer.Option(
            "--adversarial/--no-adversarial",
            help=f"VAE/GAN: in the second half, also train on what a discriminator sees. {BY_PRESET} no.",
            rich_help_panel=VAE,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. Default: an epoch.", min=1)
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    size: Size = None,
    resize_mode: ResizeModeOption = None,
    background: Background = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
    device: Annotated[
        str,
        typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps.", rich_help_panel=MACHINE),
    ] = "auto",
    precision: Annotated[
        Precision,
        typer.Option(help="auto: bf16 where the hardware multiplies it.", rich_help_panel=MACHINE),
    ] = Precision.auto,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--channels-first",
            help="Memory format. Default: channels last; of a run continued, its own.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes on this machine, each with its share of every batch. Default: 1. With --ray on "
            "the cluster; default: one for each GPU or, without GPUs, each node.",
            min=1,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    ray: Ray = None,
    keep_memory: Annotated[
        bool,
        typer.Option(
            "--keep-memory/--return-memory",
            help="Keep freed memory for the next step: faster, up to 1 GB more.",
            rich_help_panel=MACHINE,
        ),
    ] = True,
) -> None:
    """Train a model. By default it is the paper's autoencoder; --preset best is what to use."""
    if workers is not None and ray is None and _start(workers):
        return
    given = {
        "kind": kind and kind.value,
        "network": network and network.value,
        "code_size": code_size,
        "widths": None if widths is None else options.whole_numbers(widths),
        "batch_norm": batch_norm,
        "loss": loss and loss.value,
        "corrupt": tuple(corrupt) if corrupt else None,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "grad_clip": grad_clip,
        "horizontal_flip": horizontal_flip,
        "ema": ema,
        "seed": seed,
        "sigma2": None if sigma2 is None else options.sigma2(sigma2),
        "beta": beta,
        "adversarial": adversarial,
        "accumulate": accumulate,
        **options.kl_warmup(kl_warmup),
    }
    train_and_show(
        source,
        out,
        ray=ray,
        workers=workers,
        keep_memory=keep_memory,
        tensorboard=tensorboard,
        preset=preset,
        preprocessing=options.preprocessing(size, resize_mode, background),
        limits=options.limits(max_pixels, max_bytes),
        resume=resume,
        checkpoint_every=checkpoint_every,
        device=device,
        precision=precision.value,
        channels_last=channels_last,
        **{name: value for name, value in given.items() if value is not None},
    )


def _start(workers: int) -> bool:
    """Run the command in that many processes, unless this is one of them; return whether that was done.

    Raises:
        ConfigError: something else has started another number of processes.
        typer.Exit: one of them failed; it has said why.
    """
    count = own_ranks().world_size
    if count == workers:
        end_with_launcher()
        return False
    if count > 1:
        raise ConfigError(
            f"There are {count} processes already, not --workers {workers}. Leave --workers out."
        )
    if code := run_workers(workers, [sys.executable, "-m", "autoencode", *sys.argv[1:]], warn=warn):
        raise typer.Exit(code)
    return True


def add_to(app: typer.Typer) -> None:
    """Make the command of this module a command of the program."""
    app.command()(train)


def train_and_show(
    source: str | Path,
    out: Path,
    *,
    ray: str | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Train with progress, then draw the curves and what became of validation images.

    Of several processes the first alone shows and draws. With the address of a Ray cluster, `workers` of its
    processes train, and this one shows and draws.
    """
    from autoencode.training.process import keep_freed_memory

    if settings.get("keep_memory", True):
        keep_freed_memory()  # before anything imports torch
    from autoencode.training.run import is_run
    from autoencode.training.train import train

    start: Callable[..., Run] = train
    if ray is not None:
        from autoencode.training.ray import train_on_ray

        start = partial(train_on_ray, ray, workers=workers, restarting=_warn_of_restart)
    trained = False
    with counting("packing") as packing_progress, training() as show:
        if tensorboard:
            from autoencode.training.progress import logging_to

            show = logging_to(out, show)

        def progress(at: Progress) -> None:
            nonlocal trained
            trained = True
            show(at)

        try:
            run = start(source, out, progress=progress, packing_progress=packing_progress, **settings)
        except KeyboardInterrupt:
            if is_run(out) and is_first():
                console.print(f"Stopped. {out} keeps its state: run it again with --resume.", soft_wrap=True)
            raise
    if not is_first():
        return
    if not trained:
        console.print(
            f"finished: {out} has all its {counted(len(run.metrics), 'epoch')}, nothing to do. "
            "Ask for more with --epochs, where the learning rate is constant.",
            soft_wrap=True,
        )
    _fit_prior(run)
    _print_pictures(run, anew=trained)
    _print_loss(run)
    _print_health(run)
    _write_report(run, anew=trained)
    console.print(f"model:  {run.model_path}", soft_wrap=True)


def _warn_of_restart(restarts: int) -> None:
    warn(f"A process was lost. All start again from the last checkpoint (restart {restarts}).")


def _print_loss(run: Run) -> None:
    """Say which likelihood a VAE's loss amounts to, where its name does not."""
    from autoencode.training.repeat import in_words
    from autoencode.training.run import read_run

    settings = read_run(run.folder)
    if settings.model.kind == "vae" and settings.train.loss != "gaussian":
        console.print(f"loss:   {dict(in_words(settings))['loss']}", soft_wrap=True)


def _fit_prior(run: Run) -> None:
    """Give the trained model the mixture that `generate` draws from, if it has none yet."""
    from autoencode.data.pack import open_pack
    from autoencode.generation import fit_prior
    from autoencode.models.model_file import load_model, save_model

    model = load_model(run.model_path)
    if model.prior is not None:
        return
    with counting("fitting the prior") as progress:
        fit_prior(model, open_pack(run.pack_path), progress=progress)
    save_model(run.model_path, model, model.provenance)


def _print_pictures(run: Run, *, anew: bool) -> None:
    """Draw the pictures, those missing or all `anew`, and say where they are."""
    from autoencode.data.pack import open_pack
    from autoencode.data.preprocessing import save_image
    from autoencode.figures.plots import loss_curves
    from autoencode.models.model_file import load_model
    from autoencode.reconstruction import SHEET_NAME, sheet_of_rows

    model, packed = load_model(run.model_path), open_pack(run.pack_path)
    print_pack(packed)
    curves, sheet = run.folder / "curves.png", run.folder / SHEET_NAME
    if anew or not curves.exists():
        loss_curves(run.metrics, curves, f"{run.folder.name}: {counted(len(packed), 'image')}")
    console.print(f"curves: {curves}", soft_wrap=True)
    if anew or not sheet.exists():
        save_image(sheet, sheet_of_rows(model, packed))
    console.print(f"sheet:  {sheet}", soft_wrap=True)


def _write_report(run: Run, *, anew: bool) -> None:
    """Write the page of the run, where it is missing or `anew`; in seconds."""
    from autoencode.report import REPORT_NAME, write_report

    page = run.folder / REPORT_NAME
    if anew or not page.exists():
        with stages() as progress:
            write_report(run.folder, quick=True, progress=progress)
    console.print(f"report: {page}", soft_wrap=True)


def _print_health(run: Run) -> None:
    from autoencode.data.loader import batches
    from autoencode.data.pack import open_pack
    from autoencode.evaluation.quality import code_health, gap_in_words
    from autoencode.models.model_file import load_model

    model, packed = load_model(run.model_path), open_pack(run.pack_path)
    if not model.is_vae:
        return
    rows = packed.held_out("validation").rows
    health = code_health(model, batches(packed, rows, 128))
    gap = gap_in_words(health.prior_gap_nats)
    console.print(
        f"code:   {health.active_units} of {model.config.code_size} values active, "
        f"KL {health.kl_nats.sum():.1f} nats an image, distance from its prior {gap}",
        soft_wrap=True,
    )
    if health.warning:
        warn(health.warning)


def print_pack(packed: Pack) -> None:
    """Say what is in a pack, and what was skipped."""
    splits = ", ".join(f"{len(packed.rows(split))} {split}" for split in ("train", "validation", "test"))
    shape = f"{packed.preprocessing.height}x{packed.preprocessing.width}"
    console.print(
        f"pack:   {packed.location}: {counted(len(packed), 'image')} of {shape} ({splits})", soft_wrap=True
    )
    if not len(packed.rows("validation")):
        # Without a training split, all images are trained on.
        held_out = len(packed.rows("test")) and len(packed.rows("train"))
        console.print(
            "note:   too few images for a validation split; what is called validation was measured on "
            f"{'the test images' if held_out else 'the training images themselves'}",
            soft_wrap=True,
        )
    if packed.skipped:
        listed = packed.path / "manifest.jsonl"
        console.print(
            f"skipped {counted(len(packed.skipped), 'file')}, with the reason in {listed}:", soft_wrap=True
        )
        for entry in packed.skipped[:5]:
            console.print(f"  {entry.path}: {entry.reason}", soft_wrap=True)
