"""Retrieval quality against scikit-learn and against counting by hand."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from autoencode import ConfigError, Run, build_index, evaluate_search, retrieval_quality
from autoencode.metrics.retrieval import average_precision


def labelled(count: int = 120) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    generator = np.random.default_rng(0)
    numbers = generator.integers(4, size=count)
    vectors = generator.normal(size=(4, 6))[numbers] + generator.normal(size=(count, 6))
    return vectors.astype(np.float32), np.array(["cat", "dog", "emu", "fox"])[numbers]


def test_quality_is_what_scikit_learn_says() -> None:
    vectors, labels = labelled()
    found = retrieval_quality(vectors, labels)
    assert (found.queries, found.images, found.classes) == (120, 120, 4)
    nearest = cross_val_score(KNeighborsClassifier(1), vectors, labels, cv=LeaveOneOut()).mean()
    assert found.recall_at_1.value == pytest.approx(nearest)
    distances = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors, axis=2)
    precisions, voted = [], []
    recalled: dict[int, list[bool]] = {1: [], 5: [], 10: []}
    for query, line in enumerate(distances):
        others = np.arange(len(line)) != query
        precisions.append(average_precision_score(labels[others] == labels[query], -line[others]))
        near = labels[np.argsort(line)[1:11]]
        for k, hits in recalled.items():
            hits.append(labels[query] in near[:k])
        counts = [(near == label).sum() for label in near]
        voted.append(near[int(np.argmax(counts))] == labels[query])
    assert found.mean_average_precision.value == pytest.approx(np.mean(precisions))
    for k, hits in recalled.items():
        assert getattr(found, f"recall_at_{k}").value == pytest.approx(np.mean(hits))
    assert found.knn_accuracy.value == pytest.approx(np.mean(voted))
    assert found.chance == pytest.approx(max(np.unique(labels, return_counts=True)[1]) / 120)
    low, high = found.mean_average_precision.interval
    assert low < found.mean_average_precision.value < high


def test_average_precision_follows_its_formula_and_agrees_with_scikit_learn() -> None:
    few = np.array([[True, False, True], [True, True, True], [False, False, True]])
    np.testing.assert_allclose(average_precision(few), [(1 / 1 + 2 / 3) / 2, 1.0, 1 / 3])
    hits = np.random.default_rng(0).random((12, 40)) < 0.3
    expected = [average_precision_score(row, -np.arange(40)) for row in hits]
    np.testing.assert_allclose(average_precision(hits), expected)


def test_queries_can_be_chosen_and_limited() -> None:
    vectors, labels = labelled()
    some = np.arange(0, 120, 3)
    assert retrieval_quality(vectors, labels, queries=some).queries == 40
    assert retrieval_quality(vectors, labels, most_queries=25).queries == 25
    assert retrieval_quality(vectors, labels, queries=some).images == 120


def test_a_label_that_one_image_has_is_no_query() -> None:
    vectors, labels = labelled()
    labels[0] = "gnu"
    assert retrieval_quality(vectors, labels).queries == 119


@pytest.mark.parametrize("labels", [["a"] * 5, ["a", "b", "c", "d", "e"]])
def test_labels_that_say_nothing_are_rejected(labels: list[str]) -> None:
    with pytest.raises(ConfigError, match="two or more sub-folders"):
        retrieval_quality(np.eye(5, dtype=np.float32), np.array(labels))
    with pytest.raises(ConfigError, match="two or more sub-folders"):
        retrieval_quality(np.zeros((0, 5), np.float32), np.array([], np.str_))


def test_an_index_is_measured_by_its_sub_folders(trained: Run, photos: Path, tmp_path: Path) -> None:
    index = build_index(photos, tmp_path / "i", trained.folder, embedding="code")
    found = evaluate_search(index)
    vectors = index.vector_space.vectors(index.codes)
    labels = np.array([entry.label for entry in index.entries])  # every content once, so in order of rows
    assert found == retrieval_quality(vectors, labels)
    assert (found.classes, found.images) == (3, 48)
    held_out = evaluate_search(index, split="test")
    assert held_out.queries == sum(entry.split == "test" for entry in index.entries)
