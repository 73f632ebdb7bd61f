"""The commands that write pages: paper and report. Heavy imports are inside, as in `cli`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoencode.cli import options
from autoencode.cli.options import MaxBytes, MaxPixels, ResizeModeOption, Size
from autoencode.cli.progress import console, counting, duration, stages, training

if TYPE_CHECKING:
    from autoencode.paper.experiments import Experiment
    from autoencode.training.progress import Progress


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Write the page of a run: settings, curves, reconstructions, samples, outliers, numbers."""
    from autoencode.report import write_report
    from autoencode.training.process import keep_freed_memory

    keep_freed_memory()
    with stages() as progress:
        page = write_report(run, progress=progress)
    console.print(f"report: {page}", soft_wrap=True)


def paper(
    folder: Annotated[Path, typer.Argument(help="Images; sub-folders are searched too.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, its figures, numbers and models.")],
    budget: Annotated[
        str, typer.Option(help="full for the paper's own epochs, or a share of them, such as 0.05.")
    ] = "full",
    limit: Annotated[
        int | None, typer.Option(help="Take only so many images, chosen by chance.", min=2)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="An experiment, or a group: ae, denoise, vae-sigma, vae-warmup, best. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Every random choice follows from it.")] = 0,
    size: Size = None,
    resize_mode: ResizeModeOption = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
) -> None:
    """Run every experiment of the paper on a folder of images, and lay them out as its figures."""
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.paper.claims import measure_all
    from autoencode.paper.experiments import chosen, parse_budget
    from autoencode.paper.page import write_paper
    from autoencode.paper.study import Plan, open_study, seconds_needed, train_all, writing
    from autoencode.training.process import keep_freed_memory, stopped_by_sigterm

    keep_freed_memory()
    experiments, share = chosen(only or ()), parse_budget(budget)
    preprocessing = options.preprocessing(size, resize_mode, None) or Preprocessing()
    with stopped_by_sigterm(), writing(out):
        with counting("packing") as progress:
            pack = open_study(
                folder,
                out,
                preprocessing,
                limit,
                seed,
                limits=options.limits(max_pixels, max_bytes),
                progress=progress,
            )
        plan = Plan(out, pack, experiments, share, seed).with_finished()
        seconds = seconds_needed(plan)
        console.print(
            f"{len(plan.experiments)} experiments, {len(pack):,} images: about {duration(seconds)} to train; "
            "measuring the models comes on top",
            soft_wrap=True,
        )
        with _training_each() as (started, show):
            trained = train_all(plan, show, started)
        with stages() as progress_of_stage:
            results = measure_all(plan, trained, progress_of_stage)
            page = write_paper(results)
    console.print(f"page: {page}", soft_wrap=True)


@contextlib.contextmanager
def _training_each() -> Iterator[tuple[Callable[[Experiment], None], Callable[[Experiment, Progress], None]]]:
    """Say which experiment begins, and show the progress of the one at work."""
    with training() as show:

        def started(experiment: Experiment) -> None:
            console.print(f"{experiment.name}: {experiment.shows}")

        yield started, lambda _, at: show(at)


def add_to(app: typer.Typer) -> None:
    """Make the commands of this module commands of the program."""
    app.command()(paper)
    app.command()(report)
