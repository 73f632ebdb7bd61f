"""A study: the experiments of the paper, trained on one folder of images and kept.

    DIR/images.pack        the images, decoded once
    DIR/limited/           links to the images taken, if --limit takes some of them
    DIR/runs/NAME/         a run folder for each experiment

A run with the settings and images asked for is kept, or continued; any other is trained anew. A study can be
moved and continued where it is. All experiments share one pack, one split and one seed.
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
from autoencode.data.manifest import PackSettings, is_pack, read_settings, write_settings
from autoencode.data.pack import Pack, pack_folder
from autoencode.data.sources import find_images
from autoencode.errors import DivergedError, RunError
from autoencode.generation import fit_prior
from autoencode.models.model_file import MODEL_NAME, load_model, save_model
from autoencode.paper.experiments import Experiment, changes, chosen_experiments, scaled_settings
from autoencode.training.loop import Loop
from autoencode.training.perceptual import COST
from autoencode.training.run import RunSettings, is_run, read_metrics, read_run, write_run
from autoencode.training.runtime import choose_runtime
from autoencode.training.train import train

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.training.progress import TrainProgress

PACK_NAME, LIMITED_NAME, RUNS_NAME = "images.pack", "limited", "runs"
TIMED_STEPS = 4  # the announced time is right to a tenth, and measured in seconds


@dataclass(frozen=True)
class Trained:
    """A finished experiment.

    Attributes:
        experiment: the experiment.
        folder: its run folder.
        failure: the reason why it has no model, or None.
    """

    experiment: Experiment
    folder: Path
    failure: str | None = None


@dataclass(frozen=True)
class Plan:
    """The experiments of a study, and how long each is trained.

    Attributes:
        out: the folder of the study.
        pack: the images.
        experiments: the experiments to train, in order.
        budget: factor of the paper's epochs.
        seed: seed of every random choice.
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
        """Return the settings that the run of an experiment is started with."""
        model, config = scaled_settings(experiment, self.budget, self.seed)
        runtime = choose_runtime()
        images = self.pack.preprocessing, str(self.pack.path.resolve()), self.pack.fingerprint
        computed = runtime.device.type, runtime.bf16, runtime.channels_last
        return RunSettings(model, config, *images, *computed)

    def with_finished(self) -> Plan:
        """Return this plan with all finished experiments, so that none disappears from the page."""
        kept = [
            one
            for one in chosen_experiments(())
            if one in self.experiments or self.epochs_done(one) == self.settings(one).train.all_epochs
        ]
        return replace(self, experiments=kept)

    def epochs_done(self, experiment: Experiment) -> int:
        """Return the number of finished epochs of an experiment; 0 if its run has other settings."""
        folder = self.folder(experiment)
        if not is_run(folder) or not _as_asked(read_run(folder), self.settings(experiment)):
            return 0
        return len(read_metrics(folder))


@contextlib.contextmanager
def writing(out: Path, source: Path | None = None) -> Iterator[None]:
    """Lock the study in `out`, made if missing for readers of `source`, and remove temporary files of a kill.

    Raises:
        RunError: `out` is not a study, or another process is writing it.
        OutputError: `out` cannot be written.
    """
    _reject_other_contents(out)
    busy = f"Another process is writing {out}. Wait until it is done, or choose another --out."
    with exclusive(out, busy, RunError, source):
        for folder in (out, *out.iterdir()):
            if folder.name not in (
                PACK_NAME,
                LIMITED_NAME,
                RUNS_NAME,
            ):  # packing and training lock and clear their own folders
                remove_temporaries(folder)
        yield


def _reject_other_contents(out: Path) -> None:
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
    progress: Progress | None = None,
) -> Pack:
    """Pack the images of a study, or update its pack.

    Args:
        folder: the folder of images.
        out: the folder of the study, made here.
        preprocessing: size and resize mode of the images.
        limit: the most images to take, drawn at random by `seed`; None for all.
        seed: seed of that draw.
        limits: the largest files and images to accept.
        progress: called with (files done, files to read).

    Raises:
        RunError: `out` is not a study, is one of some images of another folder, or was made with `limit` and
            is continued without it, or the other way round.
        ImageFolderError: `folder` holds no usable image.
        PackError: `out` holds a study of another folder, or with other preprocessing.
        OutputError: `out` cannot be written.
    """
    _reject_other_contents(out)
    make_folder(out, folder)
    packed, links = out / PACK_NAME, out / LIMITED_NAME
    # Before packing: a pack of other images would take their place, and all runs would be trained anew.
    if is_pack(packed):
        _reject_another_choice(read_settings(packed), links, limit)
    source = folder
    if limit is not None:
        source = _limited(folder, links, limit, seed)
        if is_pack(packed):  # the study may have been moved since its links were made
            write_settings(packed, replace(read_settings(packed), folder=links.resolve()))
    return pack_folder(source, packed, preprocessing, limits=limits, progress=progress)


def _reject_another_choice(pack: PackSettings, links: Path, limit: int | None) -> None:
    """Reject a study that was made with a limit and is continued without one, and the reverse."""
    has_some = pack.folder.name == LIMITED_NAME and links.is_dir()
    if has_some and limit is None:
        some = f"{links.parent} is a study of some images of a folder."
        raise RunError(f"{some} Add --limit, or choose another --out.")
    if limit is not None and not has_some:
        every = f"{links.parent} is a study of all images of {pack.folder}."
        raise RunError(f"{every} Leave --limit out, or choose another --out.")


def _limited(folder: Path, links: Path, limit: int, seed: int) -> Path:
    """Return a folder of links to some of the images, with their sub-folders, which are the labels."""
    paths = find_images(folder)
    _reject_links_to_another(folder, links)
    # The seed and the sorted paths decide, so that the same call takes the same images again.
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
    """Reject the links of a study of another folder: none of them leads to an image of this one."""
    made = [path for path in links.rglob("*") if path.is_symlink()] if links.is_dir() else []
    if made and not any(path.readlink() == (folder / path.relative_to(links)).resolve() for path in made):
        other = f"{links.parent} is a study of other images, such as {made[0].readlink()}, not of {folder}."
        raise RunError(f"{other} Choose another --out.")


def seconds_needed(plan: Plan) -> float:
    """Estimate the seconds to train the missing epochs, from a few real steps of each kind of network."""
    an_epoch: dict[str, float] = {}
    total = 0.0
    for experiment in plan.experiments:
        run = plan.settings(experiment)
        done, first = plan.epochs_done(experiment), run.train.total_epochs
        # An epoch of the second phase takes as long as several of the first.
        missing = max(0, first - done) + COST * (run.train.all_epochs - max(first, done))
        if missing <= 0:
            continue
        # Experiments that differ in neither take as long per step, whatever their losses.
        kind = f"{run.model} {run.train.batch_size} {run.train.optimizer} {run.train.corrupt}"
        if kind not in an_epoch:
            an_epoch[kind] = _seconds_an_epoch(run, plan.pack)
        total += missing * an_epoch[kind]
    return total


def train_all(
    plan: Plan,
    progress: Callable[[Experiment, TrainProgress], None] | None = None,
    started: Callable[[Experiment], None] | None = None,
) -> list[Trained]:
    """Train the missing epochs; a model that diverges is noted and does not stop the others.

    Args:
        plan: the experiments to train.
        progress: called after each step and epoch.
        started: called before each unfinished experiment.

    Raises:
        OutputError: the disk is full or not writable.
        KeyboardInterrupt: on Ctrl-C; finished epochs are kept.
    """
    done = []
    for experiment in plan.experiments:
        folder, run = plan.folder(experiment), plan.settings(experiment)
        if plan.epochs_done(experiment) < run.train.all_epochs and started:
            started(experiment)
        failure = None
        try:
            _train(plan, experiment, run, functools.partial(progress, experiment) if progress else None)
            if run.model.kind != "restorer":  # which has no codes to draw samples of
                _keep_prior(folder, plan.pack)
        except DivergedError as err:  # a finding about its settings, which the page reports
            failure = str(err)
        done.append(Trained(experiment, folder, failure))
    return done


def _train(
    plan: Plan, experiment: Experiment, run: RunSettings, progress: Callable[[TrainProgress], None] | None
) -> None:
    folder = plan.folder(experiment)
    resume = is_run(folder) and _as_asked(read_run(folder), run)
    if folder.exists() and not resume:  # a run with other settings, which could not be continued
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if resume:
        write_run(folder, replace(read_run(folder), pack=plan.pack.location))  # the study may have been moved
        train(plan.pack.path, folder, resume=True, progress=progress)
        return
    # The preset is given, so that the run folder names it and its command can be repeated.
    changed = changes(experiment, plan.budget, plan.seed)
    train(plan.pack.path, folder, preset=experiment.preset, progress=progress, **changed)


def _as_asked(found: RunSettings, asked: RunSettings) -> bool:
    return (found.model, found.train, found.fingerprint) == (asked.model, asked.train, asked.fingerprint)


def _keep_prior(folder: Path, pack: Pack) -> None:
    model = load_model(folder)
    # Samples of an autoencoder need a mixture, and those of a VAE are compared with one.
    if model.prior is None:
        fit_prior(model, pack)
        save_model(folder / MODEL_NAME, model, model.provenance)


def _seconds_an_epoch(run: RunSettings, pack: Pack) -> float:
    """Estimate the seconds of an epoch from a few steps, without the first, which warms up."""
    # In a folder of its own: the timed steps change weights that no run may keep.
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(Path(folder), run, pack, choose_runtime(), lambda _: None)
        return loop.seconds_an_epoch(TIMED_STEPS)
