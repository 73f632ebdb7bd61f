"""Experiments are comparable at any budget, and chosen by name or by group."""

from __future__ import annotations

import pytest

from autoencode import ConfigError
from autoencode.cli.report_paper_app import parse_budget
from autoencode.paper.experiments import EXPERIMENTS, GROUPS, chosen_experiments, scaled_settings

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


def test_the_full_budget_is_the_papers() -> None:
    epochs = {name: scaled_settings(experiment, 1.0, 0)[1] for name, experiment in BY_NAME.items()}
    assert epochs["ae"].total_epochs == epochs["denoise"].total_epochs == epochs["dropout"].total_epochs == 10
    for name, sigma2 in (("vae-0.1", 0.1), ("vae-0.01", 0.01), ("vae-0.001", 0.001)):
        assert (epochs[name].epochs, epochs[name].sigma2, epochs[name].kl_warmup) == (200, sigma2, 0)
    assert (epochs["vae-warmup"].kl_warmup, epochs["vae-warmup"].epochs) == (40, 200)
    model, _ = scaled_settings(BY_NAME["vae-warmup"], 1.0, 0)
    assert model.batch_norm


@pytest.mark.parametrize("budget", [1.0, 0.05, 0.013, 1e-6])
def test_runs_that_are_compared_are_equally_long_at_any_budget(budget: float) -> None:
    for group in ("vae-sigma", "vae-warmup"):
        totals = {scaled_settings(BY_NAME[name], budget, 0)[1].total_epochs for name in GROUPS[group]}
        assert len(totals) == 1
        assert totals.pop() >= 2
    warm = scaled_settings(BY_NAME["vae-warmup"], budget, 0)[1]
    assert warm.kl_warmup >= 1
    assert warm.epochs >= 1


def test_the_seed_is_that_of_the_study() -> None:
    assert all(scaled_settings(experiment, 0.1, 5)[1].seed == 5 for experiment in EXPERIMENTS)


def test_groups_and_names_are_chosen_in_the_papers_order() -> None:
    assert chosen_experiments([]) == EXPERIMENTS
    assert [one.name for one in chosen_experiments(["vae-sigma", "ae"])] == [
        "ae",
        "vae-0.1",
        "vae-0.01",
        "vae-0.001",
        "vae-auto",
        "best",
    ]
    assert [one.name for one in chosen_experiments(["dropout"])] == ["dropout"]
    with pytest.raises(ConfigError, match="no experiment 'gan'"):
        chosen_experiments(["gan"])


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "some"])
def test_a_budget_that_is_not_a_positive_number_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="budget"):
        scaled_settings(BY_NAME["ae"], parse_budget(text), 0)
