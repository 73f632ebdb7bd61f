"""The transformer goes where a transformer of scikit-learn goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import (
    estimator_checks_generator,
    parametrize_with_checks,
)
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


def test_arrays_of_images_have_the_shape_that_it_was_fitted_to(tmp_path: Path) -> None:
    fitted = AutoencoderTransformer(**SMALL).fit(IMAGES)
    with pytest.raises(
        ValueError, match=r"shape \(16, 32, 3\) are given, and it was fitted to \(32, 32, 3\)"
    ):
        fitted.transform(IMAGES[:, :16])
    Image.fromarray(IMAGES[0]).resize((30, 20)).save(tmp_path / "a.png")
    assert fitted.transform([tmp_path / "a.png"]).shape == (1, 4)  # files are read at that size


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
    """The same, with any table of numbers made images: of images alone, scikit-learn knows hardly a check."""

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags

    @staticmethod
    def _images(rows: Any) -> Any:  # noqa: ANN401
        images = np.zeros((len(rows), 16, 16))
        images[:, 0, : rows.shape[1]] = rows / (1 + rows)  # below 1, as images are
        return images


TINY = SMALL | {"code_size": 2, "size": 16, "settings": {"widths": (2,), "batch_size": 256}}

# Checks of scikit-learn that are expected to fail, with the reason of each.
EXPECTED_FAILURES: dict[str, str] = {}


@parametrize_with_checks([OfTables(**TINY)], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_the_checks_of_scikit_learn_pass(estimator: Any, check: Any) -> None:  # noqa: ANN401
    check(estimator)


def test_scikit_learn_checks_tables_more_than_it_checks_images() -> None:
    checks = [check.func.__name__ for _, check in estimator_checks_generator(OfTables(**TINY))]
    assert len(checks) > 40
    for name in ("check_estimators_nan_inf", "check_fit_idempotent", "check_methods_subset_invariance"):
        assert name in checks


@pytest.mark.parametrize("kind", ["list", "frame", "array", "tensor"])
def test_rows_of_values_are_images_in_any_container(kind: str) -> None:
    rows = np.random.default_rng(0).uniform(0, 1, (6, 256)).round(3)
    given = {
        "list": rows.tolist,
        "frame": lambda: pytest.importorskip("pandas").DataFrame(rows, columns=map(str, range(256))),
        "array": lambda: rows,
        "tensor": lambda: torch.from_numpy(rows),
    }[kind]()
    made = AutoencoderTransformer(**TINY).fit(given)
    assert made.n_features_in_ == 256
    np.testing.assert_allclose(made.transform(given), made.transform(rows.reshape(6, 16, 16)), atol=1e-6)
    with pytest.raises(ValueError, match="X has 100 features, but AutoencoderTransformer is expecting 256"):
        AutoencoderTransformer(**TINY).fit(rows).transform(rows[:, :100])


def test_paths_in_a_data_frame_or_a_list_are_images_too(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for path, pixels in zip(paths, IMAGES, strict=False):
        Image.fromarray(pixels).save(path)
    made = AutoencoderTransformer(**TINY).fit(pandas.DataFrame({"path": paths}))
    assert made.transform(paths).shape == (6, 2)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_codes_come_as_the_table_that_is_asked_for(container: str) -> None:
    pytest.importorskip(container)
    made = AutoencoderTransformer(**TINY).set_output(transform=container)
    codes = made.fit_transform(IMAGES)
    assert list(codes.columns) == ["autoencodertransformer0", "autoencodertransformer1"]
    assert list(codes.columns) == list(made.get_feature_names_out())
    plain = made.set_output(transform="default").transform(IMAGES)
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(codes), plain)


def test_grids_are_searched_in_parallel_by_joblib() -> None:
    grid = {"code_size": [1, 2]}
    search, alone = (GridSearchCV(AutoencoderTransformer(**TINY), grid, cv=2, n_jobs=jobs) for jobs in (2, 1))
    with joblib.parallel_config("threading"):  # processes of "loky" import torch for seconds, and pass too
        search.fit(IMAGES)
    expected = alone.fit(IMAGES).cv_results_["mean_test_score"]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected, rtol=1e-4)


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
