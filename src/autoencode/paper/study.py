"""The models of a study: trained one after another on one pack, each kept and picked up where it was left.

    DIR/images.pack        the images, decoded once
    DIR/limited/           links to the images taken, where only some are
    DIR/runs/NAME/         a run folder for each experiment

A run whose settings or images are still the ones asked for is kept, or continued; another is trained anew. A
study can be moved and continued where it is.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoencode.atomic import exclusive, make_folder, names_in, remove_temporaries
from autoencode.data.loader import random_seed
from autoencode.data.manifest import Settings, is_pack, read_settings, write_settings
from autoencode.data.pack import Pack, pack_folder
from autoencode.data.sources import find_images
from autoencode.errors import DivergedError, RunError
from autoencode.generation import fit_prior
from autoencode.models.model_file import MODEL_NAME, load_model, save_model
from autoencode.paper.experiments import Experiment, changes, chosen, scaled
from autoencode.training.loop import Loop
from autoencode.training.run import RunSettings, is_run, read_metrics, read_run, write_run
from autoencode.training.runtime import choose_runtime
from autoencode.training.train import train

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.training.progress import Progress

PACK_NAME, LIMITED_NAME, RUNS_NAME = "images.pack", "limited", "runs"
TIMED_STEPS = 4


@dataclass(frozen=True)
class Trained:
    """An experiment that is done.

    Attributes:
        experiment: which.
        folder: its run folder.
        failure: why there is no model, or None.
    """

    experiment: Experiment
    folder: Path
    failure: str | None = None


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        out: the folder of the study.
        pack: the images.
        experiments: in order.
        budget: scales the epochs; 1 is the paper's.
        seed: of every random choice.
    """

    out: Path
    pack: Pack
    experiments: Sequence[Experiment]
    budget: float
    seed: int

    def folder(self, experiment: Experiment) -> Path:
        """Return the run folder of an experiment."""
        return self.out / RUNS_NAME / experiment.name

    def settings(self, experiment: Experiment) -> RunSettings:
        """Return what the run of an experiment is to be started with."""
        model, config = scaled(experiment, self.budget, self.seed)
        runtime = choose_runtime()
        return RunSettings(
            model,
            config,
            self.pack.preprocessing,
            pack=str(self.pack.path.resolve()),
            fingerprint=self.pack.fingerprint,
            device=runtime.device.type,
            bf16=runtime.bf16,
            channels_last=runtime.channels_last,
        )

    def with_finished(self) -> Plan:
        """Return this plan with the experiments that are done already, so that none leaves the page."""
        kept = [
            one
            for one in chosen(())
            if one in self.experiments or self.epochs_done(one) == self.settings(one).train.total_epochs
        ]
        return replace(self, experiments=kept)

    def epochs_done(self, experiment: Experiment) -> int:
        """Return how many epochs the run of an experiment has behind it."""
        folder = self.folder(experiment)
        if not is_run(folder) or not _as_asked(read_run(folder), self.settings(experiment)):
            return 0
        return len(read_metrics(folder))


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Hold the study in `out`, made if missing, from packing to page, and clear what a kill left there.

    Raises:
        RunError: `out` is something else, or another process is at work on it.
        OutputError: it cannot be written.
    """
    _reject_what_is_not_ours(out)
    busy = f"Another process is at work on {out}. Wait until it is done, or choose another --out."
    with exclusive(out, busy, RunError):
        for folder in (out, *out.iterdir()):
            if folder.name not in (PACK_NAME, LIMITED_NAME, RUNS_NAME):  # these look after themselves
                remove_temporaries(folder)
        yield


def _reject_what_is_not_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Choose another --out.")
    names = names_in(out)
    if names and not names & {PACK_NAME, LIMITED_NAME}:
        raise RunError(f"{out} is not empty and not a study of ours. Choose another --out.")


def open_study(
    folder: Path,
    out: Path,
    preprocessing: Preprocessing,
    limit: int | None,
    seed: int,
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """Pack the images of a study, or bring its pack in step with the folder.

    Args:
        folder: of images.
        out: the folder of the study; made here.
        preprocessing: the size of the images and how they come to it.
        limit: take so many images at most, chosen by chance but the same for the same seed; None for all.
        seed: of that choice.
        limits: what a single file may cost.
        progress: called with (files done, files to read).

    Raises:
        RunError: `out` is something else, or a study of some images of another folder, or of all images
            where `limit` asks for some, or the other way round.
        ImageFolderError: `folder` holds no usable image.
        PackError: `out` holds a study of another folder, or with other preprocessing.
        OutputError: it cannot be written.
    """
    _reject_what_is_not_ours(out)
    make_folder(out)
    packed, links = out / PACK_NAME, out / LIMITED_NAME
    if is_pack(packed):
        _reject_another_choice(read_settings(packed), links, limit)
    source = folder
    if limit is not None:
        source = _limited(folder, links, limit, seed)
        if is_pack(packed):  # whose links may have been made where the study was before
            write_settings(packed, replace(read_settings(packed), folder=links.resolve()))
    return pack_folder(source, packed, preprocessing, limits=limits, progress=progress)


def _reject_another_choice(pack: Settings, links: Path, limit: int | None) -> None:
    """Reject all images where the study has some, and some where it has all.

    Raises:
        RunError: so it is.
    """
    has_some = pack.folder.name == LIMITED_NAME and links.is_dir()
    if has_some and limit is None:
        raise RunError(
            f"{links.parent} is a study of some images of a folder. Add --limit, or choose another --out."
        )
    if limit is not None and not has_some:
        raise RunError(
            f"{links.parent} is a study of all images of {pack.folder}. Leave --limit out, or choose another "
            "--out."
        )


def _limited(folder: Path, links: Path, limit: int, seed: int) -> Path:
    """Return a folder of links to some of the images, sub-folders kept: they are the labels."""
    paths = find_images(folder)
    _reject_links_to_another(folder, links)
    order = np.random.default_rng(random_seed("limit", seed)).permutation(len(paths))[:limit]
    wanted = {paths[index].relative_to(folder): paths[index] for index in order}
    if links.is_dir():
        for path in links.rglob("*"):
            if path.is_symlink() and path.relative_to(links) not in wanted:
                path.unlink()
    for name, path in wanted.items():
        link = links / name
        if not link.is_symlink():
            make_folder(link.parent)
            link.symlink_to(path.resolve())
    return links


def _reject_links_to_another(folder: Path, links: Path) -> None:
    """Reject links of which none is to an image of this folder: all of them were made for another.

    Raises:
        RunError: they were.
    """
    made = [path for path in links.rglob("*") if path.is_symlink()] if links.is_dir() else []
    if made and not any(path.readlink() == (folder / path.relative_to(links)).resolve() for path in made):
        raise RunError(
            f"{links.parent} is a study of other images, such as {made[0].readlink()}, not of {folder}. "
            "Choose another --out."
        )


def seconds_needed(plan: Plan) -> float:
    """Estimate the time to train what is missing, from a few real steps of each kind of network."""
    an_epoch: dict[str, float] = {}
    total = 0.0
    for experiment in plan.experiments:
        run = plan.settings(experiment)
        missing = run.train.total_epochs - plan.epochs_done(experiment)
        if missing <= 0:
            continue
        kind = f"{run.model} {run.train.batch_size} {run.train.optimizer} {run.train.corrupt}"
        if kind not in an_epoch:
            an_epoch[kind] = _seconds_an_epoch(run, plan.pack)
        total += missing * an_epoch[kind]
    return total


def train_all(
    plan: Plan,
    progress: Callable[[Experiment, Progress], None] | None = None,
    started: Callable[[Experiment], None] | None = None,
) -> list[Trained]:
    """Train what is missing; a model that diverges is noted and does not stop the others.

    Args:
        plan: what to train.
        progress: called after each step and epoch.
        started: called before each experiment that is not done.

    Raises:
        OutputError: the disk is full or not writable.
        KeyboardInterrupt: on Ctrl-C; what was trained is kept.
    """
    done = []
    for experiment in plan.experiments:
        folder, run = plan.folder(experiment), plan.settings(experiment)
        if plan.epochs_done(experiment) < run.train.total_epochs and started:
            started(experiment)
        failure = None
        try:
            _train(plan, experiment, run, functools.partial(progress, experiment) if progress else None)
            _keep_prior(folder, plan.pack)
        except DivergedError as err:
            failure = str(err)
        done.append(Trained(experiment, folder, failure))
    return done


def _train(
    plan: Plan, experiment: Experiment, run: RunSettings, progress: Callable[[Progress], None] | None
) -> None:
    folder = plan.folder(experiment)
    resume = is_run(folder) and _as_asked(read_run(folder), run)
    if folder.exists() and not resume:
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if resume:
        write_run(folder, replace(read_run(folder), pack=plan.pack.location))  # it may have been moved
        train(plan.pack.path, folder, resume=True, progress=progress)
        return
    changed = changes(experiment, plan.budget, plan.seed)
    train(plan.pack.path, folder, preset=experiment.preset, progress=progress, **changed)


def _as_asked(found: RunSettings, asked: RunSettings) -> bool:
    return (found.model, found.train, found.fingerprint) == (asked.model, asked.train, asked.fingerprint)


def _keep_prior(folder: Path, pack: Pack) -> None:
    model = load_model(folder)
    if model.prior is None:
        fit_prior(model, pack)
        save_model(folder / MODEL_NAME, model, model.provenance)


def _seconds_an_epoch(run: RunSettings, pack: Pack) -> float:
    """Seconds of an epoch, from the time of a few steps; the first, which warms up, is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(Path(folder), run, pack, choose_runtime(), lambda _: None)
        return loop.seconds_an_epoch(TIMED_STEPS)
