"""The commands train and config."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoencode.cli import options
from autoencode.cli.options import (
    MACHINE,
    Exclude,
    Include,
    Ray,
    Resize,
    Size,
    Source,
    ValueRange,
    about,
    add_command,
    one_or_all,
)
from autoencode.cli.progress import (
    STOPPED,
    counting,
    say,
    show_lines,
    show_result,
    training,
    warn,
)
from autoencode.cli.results import print_pack, say_finished, show_run, show_stopped
from autoencode.configuration import Kind
from autoencode.errors import ConfigError, check_choice
from autoencode.models.networks import ModelConfig
from autoencode.training.config import RuntimeConfig, TrainConfig
from autoencode.training.presets import DEFAULT_PRESET, PRESETS
from autoencode.training.process import end_with_launcher, is_first, keep_freed_memory, own_ranks, run_workers
from autoencode.training.settings import preset_file, train_arguments

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.training.progress import TrainProgress
    from autoencode.training.train import Run


# Options take a preset as text, not as a choice: the list in their help says what each is for.
PRESET_LIST = ", ".join(f"{name} ({preset.summary})" for name, preset in PRESETS.items())


OF_PRESET = "the preset's"

PresetName = Annotated[
    str | None, typer.Option(help=f"Settings to start from: {PRESET_LIST}. Default: {DEFAULT_PRESET}.")
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(help="A file of settings, as `autoencode config` prints it, or the run.toml of a run."),
]
EarlyStopping = Annotated[
    int | None,
    typer.Option(
        help="Stop after so many epochs without a lower validation loss; keep the best. Default: never; "
        "best and best-vae, on fewer than 9,600 images: a third of the epochs, 25 at most.",
        min=1,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any setting of such a file, for instance learning_rate=3e-4. Repeatable.",
    ),
]


def train(
    source: Source,
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/NAME.")] = None,
    preset: PresetName = None,
    config: SettingsFile = None,
    assignments: Assignments = None,
    kind: Annotated[Kind | None, typer.Option(help=about(ModelConfig, "kind", OF_PRESET))] = None,
    epochs: Annotated[int | None, typer.Option(help=about(TrainConfig, "epochs", OF_PRESET))] = None,
    corrupt: Annotated[
        list[str] | None,
        typer.Option(help=f"{about(TrainConfig, 'corrupt', OF_PRESET)} Repeatable."),
    ] = None,
    perceptual: Annotated[
        float | None, typer.Option(help=about(TrainConfig, "perceptual", OF_PRESET), metavar="SHARE")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=about(TrainConfig, "seed", "0"))] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    early_stopping: EarlyStopping = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from this model, or 'random'. Default: for a restorer, the bundled one.",
            metavar="MODEL",
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Also log for tensorboard or mlflow (extras of these names), offline. Repeatable."),
    ] = None,
    size: Size = None,
    resize_mode: Resize = None,
    values: ValueRange = None,
    include: Include = None,
    exclude: Exclude = None,
    device: Annotated[
        str | None, typer.Option(help=about(RuntimeConfig, "device", "auto"), rich_help_panel=MACHINE)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes on this machine; each computes its part of every batch. Default: 1. With --ray, "
            "processes on the cluster; default: one for each GPU or, without GPUs, for each node.",
            min=1,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    ray: Ray = None,
) -> None:
    """Train a model. The images decide the settings that are not given."""
    # Before the settings are read: each process that is started reads them again.
    if workers is not None and ray is None and _start(workers):
        return
    given = {
        "preset": preset,
        "kind": kind,
        "epochs": epochs,
        "corrupt": tuple(corrupt) if corrupt else None,
        "perceptual": perceptual,
        "seed": seed,
        "early_stopping": early_stopping,
        "init": init,
        "include": include,
        "exclude": exclude,
        **options.sides(size),
        "resize_mode": resize_mode,
        **options.value_range(values),
        "device": device,
    }
    # None is an option that was not given: a file, a preset, the images or the run that is continued decide.
    asked = {name: value for name, value in given.items() if value is not None}
    arguments = train_arguments(config, assignments or (), asked)
    train_and_show(
        one_or_all(source), out, ray=ray, workers=workers, loggers=log or (), resume=resume, **arguments
    )


def config(
    preset: Annotated[str, typer.Argument(help=f"One of {PRESET_LIST}.", metavar="PRESET")] = DEFAULT_PRESET,
) -> None:
    """Print the settings of a preset with their meaning: a file to edit and to give to train --config."""
    text = preset_file(preset)
    show_lines(text.splitlines())
    show_result(tomllib.loads(text))


def _start(workers: int) -> bool:
    """Run the command in `workers` processes, unless this is one of them; return whether it was run.

    Raises:
        ConfigError: another program, such as torchrun, has started another number of processes.
        typer.Exit: a process failed, and has printed its error.
    """
    count = own_ranks().world_size
    if count == workers:
        end_with_launcher()  # without its launcher, a process would wait for the others for ever
        return False
    if count > 1:
        raise ConfigError(
            f"There are {count} processes already, not --workers {workers}. Leave --workers out."
        )
    # The same command line, as with torchrun: a run is the same whichever program starts its processes.
    if code := run_workers(workers, [sys.executable, "-m", "autoencode", *sys.argv[1:]], warn=warn):
        raise typer.Exit(code)
    return True


def train_and_show(
    source: str | Path | list[str],
    out: Path | None = None,
    *,
    ray: str | None = None,
    workers: int | None = None,
    loggers: Collection[str] = (),
    **arguments: Any,  # noqa: ANN401
) -> None:
    """Train with a progress display, then draw the curves and reconstructions of validation images.

    Only the first of several processes prints and draws. With `ray`, the address of a Ray cluster, `workers`
    processes of the cluster train, and this one prints and draws.
    """
    if arguments.get("keep_memory", True):
        keep_freed_memory()  # it has its full effect only before torch is imported
    from autoencode.training.callbacks import MLflow, TensorBoard
    from autoencode.training.run import is_run
    from autoencode.training.train import run_folder_for, train

    known = {"tensorboard": TensorBoard, "mlflow": MLflow}
    for name in loggers:
        check_choice("log", name, known)
    out = run_folder_for(source) if out is None else out
    start: Callable[..., Run] = train
    if ray is not None:
        from autoencode.training.ray import train_on_ray

        start = partial(train_on_ray, ray, workers=workers, restarting=_warn_of_restart)
    # A finished run reports no progress, and its pictures are not drawn again.
    trained = shown = False
    with counting("packing") as packing_progress, training() as show:

        def progress(at: TrainProgress) -> None:
            nonlocal trained
            trained = True
            show(at)

        def packed(pack: Pack) -> None:
            nonlocal shown
            shown = True
            print_pack(pack)
            if len(pack) == 1:
                warn(
                    "This is a single image, which a model can only learn by heart. To train, give a folder "
                    "of images; to put a trained model to use: autoencode reconstruct MODEL IMAGE"
                )

        try:
            if ray is None:
                arguments |= {"packed": packed, "chosen": lambda text: say(f"chosen: {text}")}
            arguments["callbacks"] = [known[name](out) for name in dict.fromkeys(loggers)]
            run = start(source, out, progress=progress, packing_progress=packing_progress, **arguments)
        except KeyboardInterrupt:
            if not is_run(out):  # stopped while packing
                raise
            if is_first():
                # A launcher ends processes that outlive the others.
                show_stopped(out, complete=own_ranks().world_size == 1)
            raise typer.Exit(STOPPED) from None
    if is_first():
        if not trained:
            say_finished(run)
        show_run(run, trained, shown)
        show_result(run)


def _warn_of_restart(restarts: int) -> None:
    warn(f"A process was lost. All processes start again from the last checkpoint (restart {restarts}).")


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    add_command(
        program,
        train,
        "autoencode train photos",
        "autoencode train photos --preset best-vae --size 64 --out runs/vae",
        "autoencode train photos --config run.toml --set learning_rate=3e-4 --out runs/slower",
        "autoencode train photos --epochs 20 --resume",
    )
    add_command(program, config, "autoencode config best > run.toml")
