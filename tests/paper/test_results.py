"""What stands beside the models of a study: a median filter, and networks without a code."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio

from autoencode import Pack, load_restorer
from autoencode.paper import results
from autoencode.paper.experiments import Experiment, chosen_experiments
from autoencode.paper.page import write_paper
from autoencode.paper.results import _corrupted, _median_filter, measure_all, seconds_to_measure
from autoencode.paper.study import Plan, train_all

TINY = {"widths": (4, 6), "batch_size": 8, "patch": 16}


def test_the_median_filter_is_measured_on_the_images_that_the_model_restores(tiny_pack: Pack) -> None:
    found = _median_filter(tiny_pack, ["gaussian:0.3"], seed=0)
    # Nine values, the median of which has a variance of 1.5 / 9 of theirs, and less the detail it blurs.
    assert -10 * np.log10(0.09) < found["value"] < -10 * np.log10(0.09 / 25)


class SlowJudge:
    """Takes a hundredth of a second an image."""

    def pooled(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(0.01 * len(pixels))
        return np.zeros((len(pixels), 1), np.float32)


def test_the_time_to_measure_is_that_of_the_judges_for_models_not_measured_yet(
    tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "JUDGES", (SlowJudge(), SlowJudge()))
    monkeypatch.setattr(results, "LEAST_KID_IMAGES", 3)
    plan = Plan(tmp_path, tiny_pack, chosen_experiments(["dropout", "restore-noise", "vae-auto"]), 0.1, 0)
    images = len(np.unique(tiny_pack.held_out().rows))
    # Two models of three are compared with sets of images: two of them, in .7 of the time.
    expected = 2 * images * 2 * 0.01 * 2 / 0.7
    assert expected * 0.99 < seconds_to_measure(plan) < expected * 4
    for name in ("dropout", "vae-auto"):
        (tmp_path / "measured").mkdir(exist_ok=True)
        (tmp_path / "measured" / f"{name}.json").write_text("{}")
    assert seconds_to_measure(plan) == 0


def test_a_study_of_a_restorer_is_measured_on_the_same_damage(tiny_pack: Pack, tmp_path: Path) -> None:
    name = "restore-noise"
    experiment = Experiment(name, "restore", "", {**TINY, "corrupt": ("gaussian:0.3",)}, paper=False)
    plan = Plan(tmp_path, tiny_pack, [experiment], 0.1, 0)
    found = measure_all(plan, train_all(plan))
    assert (dict(found.models), list(found.restorers), found.has(name)) == ({}, [name], True)
    model = load_restorer(plan.folder(experiment))
    clean, seen = _corrupted(tiny_pack, ["gaussian:0.3"], 0)
    each = [
        peak_signal_noise_ratio(one.numpy(), model.restore(other[None])[0].numpy(), data_range=1)
        for one, other in zip(clean, seen, strict=True)
    ]
    assert found.restored[name]["value"] == pytest.approx(np.mean(each), abs=0.02)
    assert found.digest(name) == model.digest
    assert write_paper(found).exists()
