"""The experiments of Kovenko & Bogach 2020, and those it leaves open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoencode.errors import ConfigError
from autoencode.training.presets import settings

if TYPE_CHECKING:
    from autoencode.models.networks import ModelConfig
    from autoencode.training.config import TrainConfig

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
_NOISE, _DROPPED = {"corrupt": ("gaussian:0.3",)}, {"corrupt": ("dropout:0.3",)}
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("ae", "paper-ae", "reconstruction, morphing, features, neighbours"),
    Experiment("denoise", "paper-denoise", "removing Gaussian noise of standard deviation 0.3"),
    Experiment("dropout", "paper-dropout", "filling in after a dropout layer of rate 0.3"),
    # The paper removes noise with a code in between. These keep what no code holds, by skips around it.
    Experiment("restore-noise", "restore", "the same noise, with skips, no code", _NOISE, paper=False),
    Experiment("restore-dropout", "restore", "the same dropout, with skips, no code", _DROPPED, paper=False),
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
    "denoise": ("ae", "denoise", "dropout", "restore-noise", "restore-dropout"),
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
