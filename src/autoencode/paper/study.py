"""The experiments of Kovenko & Bogach 2020, those it leaves open, and a study that trains them all.

    DIR/images.pack        the images, decoded once
    DIR/limited/           links to the images taken, if --limit takes some of them
    DIR/runs/NAME/         a run folder for each experiment

A run with the settings and images asked for is kept, or continued; any other is trained anew. A study can be
moved and continued where it is. All experiments share one pack, one split and one seed.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoencode.atomic import exclusive, make_folder, names_in, remove_temporaries
from autoencode.data.loader import random_seed
from autoencode.data.manifest import PackSettings, is_pack, read_settings, write_settings
from autoencode.data.pack import Pack, pack_folder
from autoencode.data.sources import find_images
from autoencode.errors import ConfigError, DivergedError, RunError
from autoencode.generation import fit_prior
from autoencode.models.model_file import MODEL_NAME, load_model, save_model
from autoencode.training.loop import Loop
from autoencode.training.presets import settings
from autoencode.training.run import RunSettings, is_run, read_metrics, read_run, write_run
from autoencode.training.runtime import choose_runtime
from autoencode.training.train import train

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.models.networks import ModelConfig
    from autoencode.training.config import TrainConfig
    from autoencode.training.progress import TrainProgress

PACK_NAME, LIMITED_NAME, RUNS_NAME = "images.pack", "limited", "runs"
TIMED_STEPS = 4  # the announced time is right to a tenth, and measured in seconds
LEAST_EPOCHS = 2  # a curve of one point shows nothing


@dataclass(frozen=True)
class Experiment:
    """One model to train.

    Attributes:
        name: name of its run folder.
        preset: the preset it starts from.
        shows: its purpose, in a few words.
        overrides: settings that differ from the preset.
        paper: whether the paper has it, or leaves it open.
    """

    name: str
    preset: str
    shows: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    paper: bool = True


_BN = {"batch_norm": True}
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("ae", "paper-ae", "reconstruction, morphing, features, neighbours"),
    Experiment("denoise", "paper-denoise", "removing Gaussian noise of standard deviation 0.3"),
    Experiment("dropout", "paper-dropout", "filling in after a dropout layer of rate 0.3"),
    Experiment("vae-0.1", "paper-vae", "a likelihood too wide", {"sigma2": 0.1}),
    Experiment("vae-0.01", "paper-vae", "the paper's choice of sigma2; outliers"),
    Experiment("vae-0.001", "paper-vae", "a likelihood too narrow", {"sigma2": 0.001}),
    Experiment("vae-warmup", "paper-vae-warmup", "warm-up and batch normalisation together"),
    # The paper changes warm-up and batch normalisation together. These separate the two, for as many epochs.
    Experiment("vae-long", "paper-vae", "neither, for as many epochs", {"epochs": 240}, paper=False),
    Experiment("vae-only-warmup", "paper-vae", "warm-up alone", {"kl_warmup": 40}, paper=False),
    Experiment(
        "vae-only-batch-norm", "paper-vae", "batch normalisation alone", {**_BN, "epochs": 240}, paper=False
    ),
    # The paper chooses sigma2 by hand; its maximum-likelihood value can be learned.
    Experiment("vae-auto", "paper-vae", "sigma2 learned", {"sigma2": "auto"}, paper=False),
    Experiment("best", "best", "a network that starts as PCA", paper=False),
    Experiment("best-vae", "best-vae", "the same as a VAE", paper=False),
)

# Experiments that one figure or claim compares, by the name for `--only`.
GROUPS: dict[str, tuple[str, ...]] = {
    "ae": ("ae", "best"),
    "denoise": ("ae", "denoise", "dropout"),
    "vae-sigma": ("vae-0.1", "vae-0.01", "vae-0.001", "vae-auto"),
    "vae-warmup": ("vae-long", "vae-only-batch-norm", "vae-only-warmup", "vae-warmup"),
    "best": ("ae", "best", "best-vae"),
}


def chosen_experiments(only: Sequence[str]) -> tuple[Experiment, ...]:
    """Return the experiments of the groups or names given; all if none is given.

    Raises:
        ConfigError: a name is that of no group and no experiment.
    """
    names = {experiment.name for experiment in EXPERIMENTS}
    wanted: set[str] = set()
    for name in only:
        if name not in GROUPS and name not in names:
            listed = ", ".join(sorted({*GROUPS, *names}))
            raise ConfigError(f"There is no experiment {name!r}. There are: {listed}.")
        wanted |= set(GROUPS.get(name, (name,)))
    return tuple(experiment for experiment in EXPERIMENTS if not only or experiment.name in wanted)


def changes(experiment: Experiment, budget: float, seed: int) -> dict[str, Any]:
    """Return the settings that differ from the preset, with the epochs, warm-up included, scaled by a budget.

    Args:
        experiment: one of `EXPERIMENTS`.
        budget: 1 for the paper's own epochs. No experiment gets fewer than two.
        seed: seed of every random choice.

    Raises:
        ConfigError: the budget is not above 0.
    """
    if not 0 < budget < math.inf:
        raise ConfigError(f"The budget is {budget:g}; it must be above 0, and is 1 for the paper's epochs.")
    _, config = settings(experiment.preset, **experiment.overrides)
    total = max(LEAST_EPOCHS, round(config.total_epochs * budget))
    changed: dict[str, Any] = {**experiment.overrides, "epochs": total, "seed": seed}
    if config.kl_warmup:
        # The warm-up keeps its share and the total stays, so that compared runs are equally long.
        warmup = max(1, round(total * config.kl_warmup / config.total_epochs))
        changed |= {"kl_warmup": warmup, "epochs": total - warmup}
    return changed


def scaled_settings(experiment: Experiment, budget: float, seed: int) -> tuple[ModelConfig, TrainConfig]:
    """Return the settings of an experiment; see `changes`."""
    return settings(experiment.preset, **changes(experiment, budget, seed))


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
            if one in self.experiments or self.epochs_done(one) == self.settings(one).train.total_epochs
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
    # By the seed and the sorted paths, so that the same call takes the same images again.
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
        missing = run.train.total_epochs - plan.epochs_done(experiment)
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
        if plan.epochs_done(experiment) < run.train.total_epochs and started:
            started(experiment)
        failure = None
        try:
            _train(plan, experiment, run, functools.partial(progress, experiment) if progress else None)
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
    # By the preset, so that the run folder names it and its command can be given again.
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
