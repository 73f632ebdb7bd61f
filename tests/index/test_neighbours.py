"""FAISS against brute force, and the map of each distance against its formula."""

from typing import Any

import numpy as np
import pytest

from autoencode import ConfigError
from autoencode.configuration import Distance
from autoencode.index import neighbours as module
from autoencode.index.neighbours import Floats, NearestNeighbours, OwnScores, fit_vector_space

DISTANCES: tuple[Distance, ...] = ("whitened", "cosine", "l2")


def codes(count: int, size: int = 6, seed: int = 0) -> Floats:
    """Codes away from zero, with directions of very different variance."""
    generator = np.random.default_rng(seed)
    spread = np.geomspace(0.05, 3, size)
    return (generator.normal(size=(count, size)) * spread + 1).astype(np.float32)


def brute_force(queries: Floats, known: Floats, distance: Distance) -> np.ndarray[Any, Any]:
    """Scores (Q, R) by their formulas, in fp64; the whitened one through the inverse of the covariance."""
    q, x = queries.astype(np.float64), known.astype(np.float64)
    if distance == "l2":
        return np.linalg.norm(q[:, None] - x, axis=2)
    metric = np.eye(x.shape[1])
    if distance == "whitened":
        q, x = q - x.mean(0), x - x.mean(0)
        count, size = x.shape
        weight = size / (size + count)
        covariance = x.T @ x / count
        covariance = (1 - weight) * covariance + weight * np.trace(covariance) / size * np.eye(size)
        metric = np.linalg.inv(covariance)
    lengths = [np.sqrt(np.einsum("ij,jk,ik->i", side, metric, side)) for side in (q, x)]
    return (q @ metric @ x.T) / np.outer(*lengths)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_nearest_are_those_of_brute_force(distance: Distance) -> None:
    known, queries = codes(300), codes(20, seed=9)
    found = NearestNeighbours(fit_vector_space(known, distance), known, None).search(queries, 10)
    scores = brute_force(queries, known, distance)
    order = np.argsort(scores if distance == "l2" else -scores, axis=1)[:, :10]
    for near, rows, line in zip(found, order, scores, strict=True):
        assert near.rows.tolist() == rows.tolist()
        np.testing.assert_allclose(near.scores, line[rows], atol=2e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_code_is_nearest_to_itself_and_its_scores_do_not_depend_on_company(distance: Distance) -> None:
    known = codes(200)
    nearest = NearestNeighbours(fit_vector_space(known, distance), known, None)
    together, alone = nearest.search(known, 3), nearest.search(known[7:8], 3)[0]
    assert [near.rows[0] for near in together] == list(range(200))
    np.testing.assert_allclose(together[7].scores, alone.scores, atol=1e-6)
    assert alone.scores[0] == pytest.approx(0 if distance == "l2" else 1, abs=1e-6)


def test_few_codes_or_directions_without_variance_are_not_blown_up() -> None:
    known = np.zeros((3, 5), np.float32)
    known[:, 0] = [0, 1, 2]
    for few in (known, known[:1]):
        space = fit_vector_space(few, "whitened")
        assert np.isfinite(space.vectors(few)).all()
        assert np.isfinite(NearestNeighbours(space, few, None).search(few, 5)[0].scores).all()


@pytest.mark.parametrize("count", [1, 5])
def test_equal_codes_are_equal_and_others_are_not(count: int) -> None:
    known = np.tile(codes(1), (count, 1))
    space = fit_vector_space(known, "whitened")
    (found,) = NearestNeighbours(space, known, None).search(known[:1], 10)
    np.testing.assert_allclose(found.scores, np.ones(count), atol=1e-6)
    moved = known[:1] + np.float32([1, -1, 1, -1, 1, -1])
    assert np.isfinite(space.vectors(moved)).all()
    assert NearestNeighbours(space, known, None).search(moved, 1)[0].scores[0] < 0.99


def test_a_code_of_zeros_is_at_a_right_angle_to_every_other() -> None:
    known = codes(10)
    found = NearestNeighbours(fit_vector_space(known, "cosine"), known, None).search(
        np.zeros((1, 6), np.float32), 10
    )[0]
    np.testing.assert_array_equal(found.scores, 0)
    assert found.rows.tolist() == list(range(10))


def test_the_others_of_a_code_are_as_many_as_asked_for_and_never_itself() -> None:
    known = np.repeat(codes(10), 2, axis=0)
    nearest = NearestNeighbours(fit_vector_space(known, "l2"), known, None)
    for row, near in enumerate(nearest.others(np.arange(20), 3)):
        assert len(near) == 3
        assert row not in near
        assert near[0] == row ^ 1  # its copy


def test_an_unknown_distance_is_rejected() -> None:
    with pytest.raises(ConfigError, match="Unknown distance 'l1'"):
        fit_vector_space(codes(5), "l1")  # type: ignore[arg-type]


def test_a_query_that_is_no_number_finds_nothing() -> None:
    known = codes(20)
    nearest = NearestNeighbours(fit_vector_space(known, "cosine"), known, None)
    nothing, found = nearest.search(np.stack([np.full(6, np.nan, np.float32), known[3]]), 2)
    assert len(nothing.rows) == 0
    assert found.rows[0] == 3


@pytest.mark.parametrize("distance", ["whitened", "cosine", "l2"])
def test_many_queries_at_once_find_what_each_finds_alone(distance: Distance) -> None:
    known, queries = codes(3000), codes(400, seed=5)
    found = NearestNeighbours(fit_vector_space(known, distance), known, None)
    assert queries.size > module._MATRIX_THRESHOLD > queries.shape[1]
    for query, together in zip(queries, found.search(queries, 5), strict=True):
        alone = found.search(query[None], 5)[0]
        assert together.rows.tolist() == alone.rows.tolist()
        np.testing.assert_allclose(together.scores, alone.scores, rtol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_percentile_is_the_share_of_images_whose_nearest_is_no_nearer(distance: Distance) -> None:
    known = codes(300)
    scores = brute_force(known, known, distance)
    sign = -1 if distance == "l2" else 1
    np.fill_diagonal(scores, -sign * np.inf)
    best = (sign * scores).max(1)
    own = OwnScores.of(fit_vector_space(known, distance), known)
    own.check()
    for score in (best.min() - 0.01, *(np.sort(best)[[3, 50, 150]] + 1e-4), best.max() + 0.01):
        wanted = 100 * (1 + (best <= score).sum()) / 301
        assert own.percentile(sign * float(score)) == pytest.approx(wanted)


def test_images_like_those_of_the_index_seldom_have_nothing_close_and_others_do() -> None:
    space = fit_vector_space(known := codes(3_000), "l2")
    own, nearest = OwnScores.of(space, known), NearestNeighbours(space, known, None)

    def share_far(queries: Floats) -> float:
        best = [own.percentile(float(near.scores[0])) or 0 for near in nearest.search(queries, 1)]
        return float(np.mean(np.array(best) <= 1))

    assert 0 < share_far(codes(3_000, seed=8)) <= 0.02
    assert share_far(codes(200, seed=9) + np.float32(5)) > 0.95


def test_one_image_has_no_percentile() -> None:
    one = codes(1)
    assert OwnScores.of(fit_vector_space(one, "cosine"), one).percentile(0.5) is None
