"""The command line: one thin command a verb. Heavy imports are inside the commands, so --help is instant.

Exit codes: 0 done; 2 a wrong call, which is a usage that no command has or a setting that cannot be used
(every ConfigError); 1 anything else that went wrong; 130 Ctrl-C. An error is one line on stderr.
"""

from __future__ import annotations

import functools
import io
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from autoencode.atomic import reject_url
from autoencode.cli import app as web_page
from autoencode.cli import (
    evaluate_export,
    features_transfer_classify,
    generate_morph,
    index_search,
    options,
    outliers,
    report_paper,
    train,
)
from autoencode.cli.options import MACHINE, Background, Corrupt, MaxBytes, MaxPixels, ResizeModeOption, Size
from autoencode.cli.progress import console, counted, counting, fail_if_named, one_line, show_skipped
from autoencode.cli.train import print_pack, train_and_show
from autoencode.errors import VERSION, AutoencodeError, ConfigError
from autoencode.training.process import is_first

Function = TypeVar("Function", bound=Callable[..., Any])


class _Program(typer.Typer):
    """Its commands reject URLs where they take paths."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Function], Function]:  # noqa: ANN401
        """Make a function a command; see `typer.Typer.command`."""
        made = super().command(*arguments, **options)

        def register(function: Function) -> Function:
            made(_with_paths(function))
            return function

        return register


def _with_paths(function: Callable[..., Any]) -> Callable[..., Any]:
    """Reject a URL in place of a path, which it would become: s3:/bucket."""

    @functools.wraps(function)
    def checked(**given: Any) -> Any:  # noqa: ANN401
        for value in given.values():
            for one in value if isinstance(value, list) else (value,):
                if isinstance(one, Path):
                    reject_url(one)
        return function(**given)

    return checked


app = _Program(
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
    from autoencode.cli.demo import digits_folder
    from autoencode.data.preprocessing import Preprocessing

    with counting("writing digits") as progress:
        folder = digits_folder(out / "digits", progress)
    run = out / "run"
    resume = (run / "run.json").is_file()
    size = Preprocessing(32, 32)
    train_and_show(folder, run, preset="best", epochs=3, code_size=64, preprocessing=size, resume=resume)
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
    out: Annotated[str, typer.Option(help="The pack, or its URL; run again to take in what changed.")],
    size: Size = None,
    resize_mode: ResizeModeOption = None,
    background: Background = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes. Default: all cores.", min=1, rich_help_panel=MACHINE)
    ] = None,
) -> None:
    """Decode every image of a folder once, for fast training."""
    from autoencode.data.pack import pack_folder, preprocessing_of
    from autoencode.data.preprocessing import Preprocessing

    preprocessing = options.preprocessing(size, resize_mode, background)
    if preprocessing is None:
        # Run again without options: as it was packed before.
        preprocessing = preprocessing_of(out) or Preprocessing()
    limits = options.limits(max_pixels, max_bytes)
    with counting("packing") as progress:
        made = pack_folder(folder, out, preprocessing, limits=limits, workers=workers, progress=progress)
    print_pack(made)


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

    from autoencode.training.process import keep_freed_memory

    keep_freed_memory()
    from autoencode import reconstruction as application
    from autoencode.models.model_file import load_model

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
    show_skipped(made.skipped)
    before = [result.corrupted_psnr_db for result in made.results if result.corrupted_psnr_db is not None]
    if before:
        console.print(f"corrupted:      median PSNR {median(before):.2f} dB")
    psnr_db, ssim = (
        median(values) for values in zip(*((r.psnr_db, r.ssim) for r in made.results), strict=True)
    )
    console.print(
        f"reconstruction: median PSNR {psnr_db:.2f} dB, SSIM {ssim:.3f}, "
        f"of {counted(len(made.results), 'image')}"
    )
    console.print(f"sheet: {out / application.SHEET_NAME}", soft_wrap=True)
    console.print(f"table: {out / application.TABLE_NAME}", soft_wrap=True)
    fail_if_named(made.skipped, images)


train.add_to(app)
generate_morph.add_to(app)
evaluate_export.add_to(app)
index_search.add_to(app)
outliers.add_to(app)
features_transfer_classify.add_to(app)
report_paper.add_to(app)
web_page.add_to(app)


def _fail(message: str, code: int = 1) -> NoReturn:
    if is_first():  # of several processes that train one model, one says what went wrong
        Console(stderr=True).print(Text.assemble(("error:", "red"), f" {one_line(message)}"), soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Run the command line; our errors are one line on stderr and exit code 1 or 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    try:
        app()
    except ConfigError as err:
        _fail(str(err), 2)
    except AutoencodeError as err:
        _fail(str(err))
    except OSError as err:  # the system refused a path before any of our code could say more
        _fail(f"{err.filename or 'The system'}: {err.strerror or err}.")
    except KeyboardInterrupt:
        sys.exit(130)
