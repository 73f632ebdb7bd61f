"""What stands beside the models of a study: a median filter, and networks without a code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from autoencode import Pack, load_restorer
from autoencode.paper.experiments import Experiment
from autoencode.paper.page import write_paper
from autoencode.paper.results import _corrupted, _median_filter, measure_all
from autoencode.paper.study import Plan, train_all

TINY = {"widths": (4, 6), "batch_size": 8, "patch": 16}


def test_the_median_filter_is_measured_on_the_images_that_the_model_restores(tiny_pack: Pack) -> None:
    found = _median_filter(tiny_pack, ["gaussian:0.3"], seed=0)
    # Nine values, the median of which has a variance of 1.5 / 9 of theirs, and less the detail it blurs.
    assert -10 * np.log10(0.09) < found["value"] < -10 * np.log10(0.09 / 25)


def test_a_study_of_a_restorer_is_measured_on_the_same_damage(tiny_pack: Pack, tmp_path: Path) -> None:
    name = "restore-noise"
    experiment = Experiment(name, "restore", "", {**TINY, "corrupt": ("gaussian:0.3",)}, paper=False)
    plan = Plan(tmp_path, tiny_pack, [experiment], 0.1, 0)
    results = measure_all(plan, train_all(plan))
    assert (dict(results.models), list(results.restorers), results.has(name)) == ({}, [name], True)
    model = load_restorer(plan.folder(experiment))
    clean, seen = _corrupted(tiny_pack, ["gaussian:0.3"], 0)
    each = [
        peak_signal_noise_ratio(one.numpy(), model.restore(other[None])[0].numpy(), data_range=1)
        for one, other in zip(clean, seen, strict=True)
    ]
    assert results.restored[name]["value"] == pytest.approx(np.mean(each), abs=0.02)
    assert results.digest(name) == model.digest
    assert write_paper(results).exists()
