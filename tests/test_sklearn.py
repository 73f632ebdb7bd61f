"""The transformer goes where a transformer of scikit-learn goes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import SkipTest

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from tests.conftest import blobs

from autoencode import ConfigError
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


class OfTables(AutoencoderTransformer):
    """The same, but checked as if it took tables: of images, scikit-learn knows hardly a check."""

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


CHECKS = [
    pytest.param(estimator, check, id=f"{number}-{getattr(check, 'func', check).__name__}")
    for number, (estimator, check) in enumerate(estimator_checks_generator(OfTables(**SMALL)))
]
NO_IMAGES = (
    r"no square images|values from|no source of images|is no image|has no pixels|Complex data|sparse|NaN|"
    r"feature|holds no image|unexpectedly|n_samples|SCIPY_ARRAY_API"
)


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_the_checks_of_scikit_learn_pass_or_give_it_no_images(estimator: Any, check: Any) -> None:  # noqa: ANN401
    try:
        check(estimator)
    except (AssertionError, ConfigError, SkipTest) as err:
        assert re.search(NO_IMAGES, str(err)), err  # tables of numbers, which one line rejects


def test_the_checks_that_need_no_images_pass() -> None:
    passed = {"check_estimator_cloneable", "check_get_params_invariance", "check_set_params"}
    passed |= {"check_parameters_default_constructible", "check_estimators_unfitted", "check_mixin_order"}
    passed |= {"check_no_attributes_set_in_init", "check_valid_tag_types", "check_transformers_unfitted"}
    for parameter in CHECKS:
        estimator, check = parameter.values
        if (name := check.func.__name__) in passed:
            check(estimator)
            passed.remove(name)
    assert not passed


def test_data_sets_of_scikit_learn_go_through_a_pipeline() -> None:
    digits = load_digits().data[:40]
    made = make_pipeline(MinMaxScaler(clip=True), AutoencoderTransformer(**SMALL, size=16)).fit(digits)
    assert made.transform(digits).shape == (40, 4)
    assert made.named_steps["autoencodertransformer"].inverse_transform(np.zeros((1, 4))).shape == (
        1,
        16,
        16,
        3,
    )
    with pytest.raises(ConfigError, match="Rows of 62 values are no square images"):
        AutoencoderTransformer(**SMALL).fit(np.zeros((3, 62)))
