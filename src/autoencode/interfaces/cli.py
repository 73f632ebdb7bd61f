"""The command line: one thin command a verb. Heavy imports are inside the commands, so --help is instant."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from autoencode.errors import AutoencodeError
from autoencode.interfaces import create, find, inspect, measure, options
from autoencode.interfaces.options import (
    MACHINE,
    VAE,
    Background,
    Corrupt,
    FitOption,
    Kind,
    Loss,
    MaxBytes,
    MaxPixels,
    Precision,
    Size,
)
from autoencode.interfaces.progress import console, counting, training
from autoencode.version import VERSION

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.training.train import Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train an autoencoder on your own folder of images, and put it to use. Nothing leaves the machine.",
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(f"autoencode {VERSION}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images, the pack and the run.")] = Path(
        "autoencode-demo"
    ),
) -> None:
    """Train on 5,000 real handwritten digits and show what comes out. Takes under two minutes."""
    from autoencode.data.images import Preprocessing
    from autoencode.interfaces.demo import digits_folder

    with counting("writing digits") as progress:
        folder = digits_folder(out / "digits", progress)
    run = out / "run"
    resume = (run / "run.json").is_file()
    size = Preprocessing(32, 32)
    _train_and_show(folder, run, preset="best", epochs=5, code_size=64, preprocessing=size, resume=resume)
    console.print("\nTry next:")
    for command in (
        ["autoencode", "reconstruct", str(run), str(folder / "7"), "--out", str(out / "sevens")],
        [
            "autoencode",
            "train",
            str(folder),
            "--size",
            "32",
            "--preset",
            "best-vae",
            "--out",
            str(out / "vae"),
        ],
        ["autoencode", "train", "YOUR-PHOTOS", "--preset", "best", "--out", "runs/photos"],
    ):
        console.print(f"  {shlex.join(command)}", soft_wrap=True)


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(help="Images; sub-folders are searched too.")],
    out: Annotated[Path, typer.Option(help="The pack; run again to take in what changed.")],
    size: Size = None,
    fit: FitOption = None,
    background: Background = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes. [default: all cores]", min=1, rich_help_panel=MACHINE)
    ] = None,
) -> None:
    """Decode every image of a folder once, for fast training."""
    from autoencode.data.images import Preprocessing
    from autoencode.data.pack import is_pack, open_pack, pack_folder

    preprocessing = options.preprocessing(size, fit, background)
    if preprocessing is None:
        # Run again without options: as it was packed before.
        preprocessing = open_pack(out).preprocessing if is_pack(out) else Preprocessing()
    with counting("packing") as progress:
        made = pack_folder(
            folder,
            out,
            preprocessing,
            limits=options.limits(max_pixels, max_bytes),
            workers=workers,
            progress=progress,
        )
    _print_pack(made)


@app.command()
def train(
    source: Annotated[Path, typer.Argument(help="A folder of images, or a pack.")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings to start from: best, best-vae, paper-ae, paper-denoise, paper-dropout, paper-vae, "
            "paper-vae-warmup. [default: paper-ae]"
        ),
    ] = None,
    model: Annotated[Kind | None, typer.Option(help="autoencoder, or vae (it can generate).")] = None,
    code_size: Annotated[int | None, typer.Option(help="Values in a code. [default: 256]")] = None,
    widths: Annotated[
        str | None, typer.Option(help="Channels of the convolutions. [default: 32,64,128,256]")
    ] = None,
    batch_norm: Annotated[
        bool | None, typer.Option("--batch-norm/--no-batch-norm", help="Batch normalisation.")
    ] = None,
    loss: Annotated[Loss | None, typer.Option(help="mse or mae; gaussian for a VAE.")] = None,
    corrupt: Corrupt = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images. [default: 10]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step. [default: 128]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamax or adamw.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Step size. [default: 0.002]")] = None,
    schedule: Annotated[str | None, typer.Option(help="Learning rate: constant or cosine.")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the average of the weights; 0 for none.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Every random choice follows from it. [default: 0]")
    ] = None,
    sigma2: Annotated[
        str | None, typer.Option(help="Variance of the likelihood: a number or auto.", rich_help_panel=VAE)
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Weight of the KL. [default: 1]", rich_help_panel=VAE)
    ] = None,
    warmup: Annotated[
        str | None,
        typer.Option(
            help="Epochs over which beta rises from 0, before --epochs; or cyclic:N.", rich_help_panel=VAE
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. [default: an epoch]", min=1)
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    size: Size = None,
    fit: FitOption = None,
    background: Background = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MACHINE)
    ] = "auto",
    precision: Annotated[Precision, typer.Option(rich_help_panel=MACHINE)] = Precision.auto,
    channels_last: Annotated[
        bool, typer.Option("--channels-last/--channels-first", help="Memory format.", rich_help_panel=MACHINE)
    ] = True,
    keep_memory: Annotated[
        bool,
        typer.Option(
            "--keep-memory/--return-memory",
            help="Keep freed memory for the next step: faster, up to 1 GB more.",
            rich_help_panel=MACHINE,
        ),
    ] = True,
) -> None:
    """Train a model. The defaults are the paper's autoencoder."""
    given = {
        "kind": model and model.value,
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
        "ema": ema,
        "seed": seed,
        "sigma2": None if sigma2 is None else options.sigma2(sigma2),
        "beta": beta,
        **options.warmup(warmup),
    }
    _train_and_show(
        source,
        out,
        keep_memory=keep_memory,
        tensorboard=tensorboard,
        preset=preset,
        preprocessing=options.preprocessing(size, fit, background),
        limits=options.limits(max_pixels, max_bytes),
        resume=resume,
        checkpoint_every=checkpoint_every,
        device=device,
        precision=precision.value,
        channels_last=channels_last,
        **{name: value for name, value in given.items() if value is not None},
    )


@app.command()
def reconstruct(
    model: Annotated[Path, typer.Argument(help="A run folder or a model file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the sheet, the table and the images.")],
    corrupt: Corrupt = None,
    seed: Annotated[int, typer.Option(help="Of the corruptions.")] = 0,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
) -> None:
    """Pass images through a model: original beside reconstruction, PSNR and SSIM of each."""
    from statistics import median

    from autoencode.training.allocator import keep_freed_memory

    keep_freed_memory()
    from autoencode.applications import reconstruct as application
    from autoencode.models.modelfile import load_model

    loaded = load_model(model)
    with counting("reconstructing") as progress:
        made = application.reconstruct(
            loaded,
            images,
            out,
            corruptions=corrupt or (),
            seed=seed,
            limits=options.limits(max_pixels, max_bytes),
            progress=progress,
        )
    for path, reason in made.refused:
        console.print(f"refused {path}: {reason}", soft_wrap=True)
    before = [result.corrupted_psnr_db for result in made.results if result.corrupted_psnr_db is not None]
    if before:
        console.print(f"corrupted:      median PSNR {median(before):.2f} dB")
    psnr_db, ssim = (
        median(values) for values in zip(*((r.psnr_db, r.ssim) for r in made.results), strict=True)
    )
    console.print(
        f"reconstruction: median PSNR {psnr_db:.2f} dB, SSIM {ssim:.3f}, of {len(made.results)} images"
    )
    console.print(f"sheet: {out / application.SHEET_NAME}", soft_wrap=True)
    console.print(f"table: {out / application.TABLE_NAME}", soft_wrap=True)


create.add_to(app)
find.add_to(app)
inspect.add_to(app)
measure.add_to(app)


def _train_and_show(source: Path, out: Path, *, tensorboard: bool = False, **settings: Any) -> None:  # noqa: ANN401
    """Train with progress, then draw the curves and what became of validation images."""
    from autoencode.training.allocator import keep_freed_memory

    if settings.get("keep_memory", True):
        keep_freed_memory()  # before anything imports torch
    from autoencode.training.runlog import is_run
    from autoencode.training.train import train

    with counting("packing") as packing_progress, training() as progress:
        if tensorboard:
            from autoencode.interfaces.tensorboard import logging_to

            progress = logging_to(out, progress)
        try:
            run = train(source, out, progress=progress, packing_progress=packing_progress, **settings)
        except KeyboardInterrupt:
            if is_run(out):
                console.print(f"Stopped. {out} keeps its state: run it again with --resume.", soft_wrap=True)
            raise
    _fit_prior(run)
    _print_pictures(run)
    _print_health(run)
    console.print(f"model:  {run.model_path}", soft_wrap=True)


def _fit_prior(run: Run) -> None:
    """Give the trained model the mixture that `generate` draws from."""
    from autoencode.applications.generate import fit_prior
    from autoencode.data.pack import open_pack
    from autoencode.models.modelfile import load_model, save_model

    model = load_model(run.model_path)
    with counting("fitting the prior") as progress:
        fit_prior(model, open_pack(run.pack_path), progress=progress)
    save_model(run.model_path, model, model.provenance)


def _print_pictures(run: Run) -> None:
    from autoencode.applications.reconstruct import SHEET_NAME, sheet_of_rows
    from autoencode.data.images import save_image
    from autoencode.data.pack import open_pack
    from autoencode.evaluation.figures import loss_curves
    from autoencode.models.modelfile import load_model

    model, packed = load_model(run.model_path), open_pack(run.pack_path)
    _print_pack(packed)
    loss_curves(run.metrics, run.folder / "curves.png", f"{run.folder.name}: {len(packed)} images")
    console.print(f"curves: {run.folder / 'curves.png'}", soft_wrap=True)
    save_image(run.folder / SHEET_NAME, sheet_of_rows(model, packed))
    console.print(f"sheet:  {run.folder / SHEET_NAME}", soft_wrap=True)


def _print_health(run: Run) -> None:
    from autoencode.applications.codehealth import code_health
    from autoencode.data.batches import batches
    from autoencode.data.pack import open_pack
    from autoencode.models.modelfile import load_model

    model, packed = load_model(run.model_path), open_pack(run.pack_path)
    if not model.is_vae:
        return
    health = code_health(model, batches(packed, packed.held_out("validation").rows, 128))
    console.print(
        f"code:   {health.active_units} of {model.config.code_size} values active, "
        f"KL {health.kl_nats.sum():.1f} nats an image, {health.prior_gap_nats:.1f} nats from its prior",
        soft_wrap=True,
    )
    if health.warning:
        console.print(Text.assemble(("warning:", "yellow"), f" {health.warning}"), soft_wrap=True)


def _print_pack(packed: Pack) -> None:
    splits = ", ".join(f"{len(packed.rows(split))} {split}" for split in ("train", "validation", "test"))
    shape = f"{packed.preprocessing.height}x{packed.preprocessing.width}"
    console.print(f"pack:   {packed.path}: {len(packed)} images of {shape} ({splits})", soft_wrap=True)
    if not len(packed.rows("validation")):
        console.print(
            "note:   too few images for a validation split; what is called validation was measured on "
            f"{'the test images' if len(packed.rows('test')) else 'the training images themselves'}",
            soft_wrap=True,
        )
    if packed.refused:
        listed = packed.path / "manifest.jsonl"
        console.print(f"refused {len(packed.refused)} files, with the reason in {listed}:", soft_wrap=True)
        for entry in packed.refused[:5]:
            console.print(f"  {entry.path}: {entry.reason}", soft_wrap=True)


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(Text.assemble(("error:", "red"), f" {message}"), soft_wrap=True)
    sys.exit(1)


def main() -> None:
    """Run the command line; our errors are one line on stderr and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    try:
        app()
    except AutoencodeError as err:
        _fail(str(err))
    except OSError as err:  # the system refused a path before any of our code could say more
        _fail(f"{err.filename or 'The system'}: {err.strerror or err}.")
    except KeyboardInterrupt:
        sys.exit(130)
