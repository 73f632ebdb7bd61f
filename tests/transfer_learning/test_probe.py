"""The linear probe against scikit-learn's own pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autoencode.transfer_learning.probe import (
    FOLDS,
    STRENGTHS,
    Floats,
    Labels,
    choose_strength,
    fit_probe,
    some_of_each,
)


def clusters(count: int, features: int, classes: int, spread: float = 1.5) -> tuple[Floats, Labels]:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = generator.normal(size=(classes, features))
    values = centres[labels] + spread * generator.normal(size=(count, features))
    return (values * generator.uniform(0.1, 10, features) + 3).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("features", [5, 90], ids=["narrow", "wider than there are images"])
def test_probabilities_are_those_of_scikit_learn(classes: int, features: int) -> None:
    values, labels = clusters(60, features, classes)
    probe = fit_probe(values, labels, 0.1)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000))
    reference.fit(values, labels)
    expected = reference.predict_proba(values)
    np.testing.assert_allclose(probe.probabilities(values), expected, atol=5e-3)
    assert (probe.predict(values) == reference.predict(values)).all()


def test_the_strength_is_the_one_that_cross_validates_best() -> None:
    values, labels = clusters(120, 6, 3, spread=2.5)
    fitted = choose_strength(values, labels, seed=1)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=1)
    standard = StandardScaler().fit_transform(values)
    scores = {
        strength: cross_val_score(
            LogisticRegression(C=strength, max_iter=300), standard, labels, cv=folds
        ).mean()
        for strength in STRENGTHS
    }
    assert scores[fitted.strength] == pytest.approx(max(scores.values()), abs=0.01)
    assert fitted.accuracy == pytest.approx(scores[fitted.strength], abs=0.01)


def test_a_feature_that_never_varies_and_two_images_of_a_class_do_no_harm() -> None:
    values, labels = clusters(6, 4, 3)
    values[:, 2] = 7
    probe = fit_probe(values, labels, choose_strength(values, labels).strength)
    assert np.isfinite(probe.probabilities(values)).all()
    np.testing.assert_allclose(probe.probabilities(values).sum(axis=1), 1)


def test_many_images_are_chosen_on_a_part_that_keeps_rare_classes() -> None:
    values, labels = clusters(5000, 3, 2)
    labels[:] = 0
    labels[-3:] = 1
    values[-3:] += 100
    assert choose_strength(values, labels).accuracy == 1


def test_some_of_each_class_are_chosen_by_seed() -> None:
    labels = np.array([0] * 30 + [1] * 5 + [2] * 2)
    chosen = some_of_each(labels, lambda _: 10, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [10, 5, 2]
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == some_of_each(labels, lambda _: 10, seed=3).tolist()
    assert chosen.tolist() != some_of_each(labels, lambda _: 10, seed=4).tolist()


def test_images_that_are_all_the_same_are_given_the_commonest_class() -> None:
    features = np.full((6, 20), 0.5, np.float32)
    labels = np.array([0, 1, 1, 0, 1, 1])
    probe = fit_probe(features, labels, choose_strength(features, labels).strength)
    assert np.isfinite(probe.probabilities(features)).all()
    assert probe.predict(features).tolist() == [1] * 6
