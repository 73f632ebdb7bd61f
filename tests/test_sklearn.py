"""The transformer goes where a transformer of scikit-learn goes."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from tests.conftest import blobs

from autoencode.sklearn import AutoencoderTransformer

IMAGES = np.stack([blobs(number, 32, 32) for number in range(12)])
SMALL = {"epochs": 1, "code_size": 4, "settings": {"widths": (4, 8)}}


def test_it_encodes_decodes_and_scores() -> None:
    made = AutoencoderTransformer(**SMALL).fit(IMAGES)
    codes = made.transform(IMAGES)
    assert codes.shape == (12, 4)
    decoded = made.inverse_transform(codes)
    assert decoded.shape == (12, 32, 32, 3)
    errors = np.square(decoded - IMAGES / 255).mean((1, 2, 3))
    np.testing.assert_allclose(made.score_samples(IMAGES), -errors, rtol=1e-4)
    assert made.score(IMAGES) == pytest.approx(-errors.mean(), rel=1e-4)


def test_it_is_cloned_kept_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    made = AutoencoderTransformer(**SMALL).fit(IMAGES)
    joblib.dump(made, tmp_path / "made")
    np.testing.assert_array_equal(joblib.load(tmp_path / "made").transform(IMAGES), made.transform(IMAGES))
    again = clone(made)
    assert again.get_params() == made.get_params()
    with pytest.raises(NotFittedError):
        again.transform(IMAGES)
    np.testing.assert_array_equal(again.fit(IMAGES).transform(IMAGES), made.transform(IMAGES))


def test_it_goes_through_a_pipeline_and_a_grid_search() -> None:
    labels = np.arange(12) % 2
    pipeline = make_pipeline(AutoencoderTransformer(**SMALL), LogisticRegression())
    assert pipeline.fit(IMAGES, labels).predict(IMAGES).shape == (12,)
    search = GridSearchCV(AutoencoderTransformer(**SMALL), {"code_size": [2, 4]}, cv=2).fit(IMAGES)
    assert search.best_params_["code_size"] in (2, 4)
