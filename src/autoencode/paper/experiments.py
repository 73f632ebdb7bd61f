"""The experiments of Kovenko & Bogach 2020 as data, and beside them those the paper leaves open.

Epochs are the paper's own; a budget scales them (see `scaled`). All share one pack, one split and one seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoencode.errors import ConfigError
from autoencode.training.config import TrainConfig, settings

if TYPE_CHECKING:
    from autoencode.models.networks import ModelConfig

LEAST_EPOCHS = 2


@dataclass(frozen=True)
class Experiment:
    """One model to train.

    Attributes:
        name: of its run folder.
        preset: the settings it starts from.
        shows: what it is there for.
        overrides: what differs from the preset.
        paper: whether the paper has it; the others are what it leaves open.
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
    Experiment("vae-long", "paper-vae", "neither, for as many epochs", {"epochs": 240}, paper=False),
    Experiment("vae-only-warmup", "paper-vae", "warm-up alone", {"kl_warmup": 40}, paper=False),
    Experiment(
        "vae-only-batch-norm", "paper-vae", "batch normalisation alone", {**_BN, "epochs": 240}, paper=False
    ),
    Experiment("vae-auto", "paper-vae", "sigma2 learned", {"sigma2": "auto"}, paper=False),
    Experiment("best", "best", "a network that starts as PCA", paper=False),
    Experiment("best-vae", "best-vae", "the same as a VAE", paper=False),
)

GROUPS: dict[str, tuple[str, ...]] = {
    "ae": ("ae", "best"),
    "denoise": ("ae", "denoise", "dropout"),
    "vae-sigma": ("vae-0.1", "vae-0.01", "vae-0.001", "vae-auto"),
    "vae-warmup": ("vae-long", "vae-only-batch-norm", "vae-only-warmup", "vae-warmup"),
    "best": ("ae", "best", "best-vae"),
}


def chosen(only: Sequence[str]) -> tuple[Experiment, ...]:
    """Return the experiments of the groups or names given; of none, all.

    Raises:
        ConfigError: there is no such group or experiment.
    """
    names = {experiment.name for experiment in EXPERIMENTS}
    wanted: set[str] = set()
    for name in only:
        if name not in GROUPS and name not in names:
            listed = ", ".join(sorted({*GROUPS, *names}))
            raise ConfigError(f"There is no experiment {name!r}. There are: {listed}.")
        wanted |= set(GROUPS.get(name, (name,)))
    return tuple(experiment for experiment in EXPERIMENTS if not only or experiment.name in wanted)


def parse_budget(text: str) -> float:
    """Read "full" or a share of the paper's epochs.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return 1.0 if text == "full" else float(text)
    except ValueError as err:
        raise ConfigError(f"The budget is {text!r}; it must be full, or a number such as 0.05.") from err


def changes(experiment: Experiment, budget: float, seed: int) -> dict[str, Any]:
    """Return what differs from the preset, with the epochs, warm-up included, scaled by a budget.

    Args:
        experiment: one of `EXPERIMENTS`.
        budget: 1 for the paper's own epochs. No experiment gets fewer than two.
        seed: of every random choice.

    Raises:
        ConfigError: a budget that is not above 0.
    """
    if not 0 < budget < math.inf:
        raise ConfigError(f"The budget is {budget:g}; it must be above 0, and is 1 for the paper's epochs.")
    _, config = settings(experiment.preset, **experiment.overrides)
    total = max(LEAST_EPOCHS, round(config.total_epochs * budget))
    changed: dict[str, Any] = {**experiment.overrides, "epochs": total, "seed": seed}
    if config.kl_warmup:
        # The share of the warm-up is kept, and so is the sum: runs that are compared are equally long.
        warmup = max(1, round(total * config.kl_warmup / config.total_epochs))
        changed |= {"kl_warmup": warmup, "epochs": total - warmup}
    return changed


def scaled(experiment: Experiment, budget: float, seed: int) -> tuple[ModelConfig, TrainConfig]:
    """Return the settings of an experiment; see `changes`."""
    return settings(experiment.preset, **changes(experiment, budget, seed))
