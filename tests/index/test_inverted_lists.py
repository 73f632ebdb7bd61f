"""Inverted lists against the comparison of every code."""

import dataclasses

import numpy as np
import pytest

from autoencode.configuration import Distance
from autoencode.index import inverted_lists as module
from autoencode.index.inverted_lists import InvertedLists, fit_inverted_lists
from autoencode.index.neighbours import (
    Floats,
    NearestNeighbours,
    VectorSpace,
    exact_neighbours,
    fit_vector_space,
)

DISTANCES: tuple[Distance, ...] = ("whitened", "cosine", "l2")


def clustered(count: int, size: int) -> Floats:
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(200, size))
    return (centres[generator.integers(200, size=count)] + 0.4 * generator.normal(size=(count, size))).astype(
        np.float32
    )


def test_inverted_lists_of_200000_codes_find_99_percent_of_the_true_neighbours() -> None:
    known = clustered(200_000, 16)
    space = fit_vector_space(known, "whitened")
    lists = fit_inverted_lists(space, known)
    assert lists is not None
    assert lists.nprobe < len(lists.centroids) / 4
    queries = known[:100] + np.float32(0.05)
    found = NearestNeighbours(space, known, lists).search(queries, 10)
    exact = NearestNeighbours(space, known, None).search(queries, 10)
    recall = np.mean([np.isin(e.rows, f.rows).mean() for e, f in zip(exact, found, strict=True)])
    assert recall >= 0.99
    assert lists.recall >= 0.99


def test_inverted_lists_give_all_neighbours_that_are_asked_for() -> None:
    known = clustered(3_000, 8)
    space = fit_vector_space(known, "cosine")
    lists = fit_inverted_lists(space, known, exact_limit=1_000)
    assert lists is not None
    found = NearestNeighbours(space, known, lists).search(known[:2], 5_000)
    assert [sorted(near.rows) for near in found] == [list(range(3_000))] * 2


def test_up_to_the_limit_there_are_no_inverted_lists() -> None:
    known = clustered(50, 6)
    assert fit_inverted_lists(fit_vector_space(known, "l2"), known, exact_limit=50) is None


@pytest.mark.parametrize("distance", ["whitened", "cosine", "l2"])
def test_inverted_lists_lose_no_neighbour_to_their_bytes(distance: Distance) -> None:
    """With every list scanned, only the bytes can lose a neighbour."""
    known = clustered(2_000, 8)
    space = fit_vector_space(known, distance)
    lists = fit_inverted_lists(space, known, exact_limit=1_000)
    rough, exact = NearestNeighbours(space, known, lists), NearestNeighbours(space, known, None)
    rough.scanner.nprobe = len(lists.centroids)
    for wanted, found in zip(exact.search(known[:50], 10), rough.search(known[:50], 10), strict=True):
        assert found.rows.tolist() == wanted.rows.tolist()
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)


def test_a_list_that_holds_too_few_codes_sends_a_query_to_every_list() -> None:
    known = clustered(2_000, 8)
    space = fit_vector_space(known, "l2")
    lists = fit_inverted_lists(space, known, exact_limit=1_000)
    assert lists is not None
    nearest = NearestNeighbours(space, known, dataclasses.replace(lists, nprobe=1))
    counts = np.bincount(lists.assignment)
    exact = NearestNeighbours(space, known, None)
    for number in np.flatnonzero(counts)[:10]:
        code = known[np.flatnonzero(lists.assignment == number)[:1]]
        k = int(counts[number]) + 1
        [found], [wanted] = nearest.search(code, k), exact.search(code, k)
        assert found.rows.tolist() == wanted.rows.tolist()


@pytest.mark.parametrize("enough", [1, 2, 7, 37, 100, 500])
@pytest.mark.parametrize("first", [1, 8])
def test_the_smallest_nprobe_is_found_to_within_a_sixteenth(enough: int, first: int) -> None:
    tried: list[int] = []

    def recall_with(nprobe: int) -> float:
        tried.append(nprobe)
        return 0.999 if nprobe >= enough else 0.9

    nprobe, recall = module.smallest_nprobe(recall_with, 500, first)
    least = max(enough, first)
    assert least <= nprobe <= least * 17 / 16 + 1
    assert recall == 0.999
    assert len(tried) == len(set(tried)) < 28


def test_every_list_is_scanned_where_fewer_are_not_enough() -> None:
    assert module.smallest_nprobe(lambda nprobe: 0.9, 50) == (50, 0.9)


def lists_of(space: VectorSpace, known: Floats) -> InvertedLists:
    lists = fit_inverted_lists(space, known, exact_limit=1_000)
    assert lists is not None
    return lists


def as_recall(found: NearestNeighbours, queries: Floats, k: int) -> float:
    exact = NearestNeighbours(found.space, found.codes, None).search(queries, k)
    both = zip(exact, found.search(queries, k), strict=True)
    return float(np.mean([np.isin(true.rows, near.rows).mean() for true, near in both]))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", [7, 150])
def test_recall_of_queries_that_are_not_in_the_index_is_as_measured(distance: Distance, size: int) -> None:
    drawn = clustered(6_200, size)
    known, queries = drawn[:6_000], drawn[6_000:]
    space = fit_vector_space(known, distance)
    lists = lists_of(space, known)
    lists.check(len(known), size)
    assert lists.recall >= module.RECALL_SOUGHT
    for k in (1, 10):
        assert as_recall(NearestNeighbours(space, known, lists), queries, k) >= 0.98


def test_directions_that_nearest_neighbours_do_not_need_are_dropped() -> None:
    known = clustered(4_000, 20) @ np.random.default_rng(3).normal(size=(20, 300)).astype(np.float32)
    space = fit_vector_space(known, "cosine")
    assert lists_of(space, known).rounding.projection.shape == (300, 32)
    alike = np.random.default_rng(4).normal(size=(4_000, 100)).astype(np.float32)
    space = fit_vector_space(alike, "cosine")
    assert lists_of(space, alike).rounding.projection.shape[1] >= 96


def test_values_are_rounded_to_the_nearest_level_and_packed_in_pairs() -> None:
    known = clustered(3_000, 8)
    space = fit_vector_space(known, "l2")
    lists = lists_of(space, known)
    reduced = lists.rounding.apply(known)
    nearest = np.abs(reduced[:, :, None] - lists.rounding.levels).argmin(-1)
    np.testing.assert_array_equal(lists.packed, nearest[:, ::2] + 16 * nearest[:, 1::2])
    # All directions are kept: reduced vectors are as far from each other as the codes.
    assert lists.rounding.projection.shape == (8, 8)
    between, wanted = (np.linalg.norm(np.diff(one, axis=0), axis=1) for one in (reduced, known))
    np.testing.assert_allclose(between, wanted, rtol=1e-4)


def test_the_same_codes_give_the_same_lists() -> None:
    known = clustered(3_000, 8)
    space = fit_vector_space(known, "cosine")
    one, other = lists_of(space, known), lists_of(space, known)
    arrays, numbers = one.to_content()
    again, others = other.to_content()
    assert numbers == others
    assert set(arrays) == set(again)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name])


def test_lists_of_some_codes_find_these_alone() -> None:
    known = clustered(4_000, 8)
    space = fit_vector_space(known, "whitened")
    lists = lists_of(space, known)
    rows = np.arange(0, 4_000, 3)
    some = NearestNeighbours(space, known[rows], lists.of(rows))
    lists.of(rows).check(len(rows), 8)
    assert as_recall(some, known[1:100], 10) >= 0.98


def test_equal_scores_are_ordered_by_row() -> None:
    known = np.repeat(clustered(1_500, 8), 2, axis=0)
    space = fit_vector_space(known, "cosine")
    [found] = NearestNeighbours(space, known, lists_of(space, known)).search(known[40:41], 4)
    assert found.rows[:2].tolist() == [40, 41]
    assert (found.rows[2:] == np.sort(found.rows[2:])).all()


def test_a_query_that_is_no_number_finds_nothing_in_lists() -> None:
    known = clustered(2_000, 6)
    space = fit_vector_space(known, "cosine")
    nearest = NearestNeighbours(space, known, lists_of(space, known))
    nothing, found = nearest.search(np.stack([np.full(6, np.nan, np.float32), known[3]]), 2)
    assert len(nothing.rows) == 0
    assert found.rows[0] == 3


@pytest.mark.parametrize("distance", DISTANCES)
def test_exact_neighbours_are_those_of_the_whole_index(distance: Distance) -> None:
    known = clustered(2_500, 12)
    space = fit_vector_space(known, distance)
    rows = np.array([3, 77, 2_499])
    wanted = NearestNeighbours(space, known, None).others(rows, 10)
    for near, one in zip(exact_neighbours(space, known, rows, 10), wanted, strict=True):
        np.testing.assert_array_equal(near.rows, one)


def test_lists_are_the_same_after_they_were_stored() -> None:
    known = clustered(2_000, 6)
    space = fit_vector_space(known, "l2")
    lists = lists_of(space, known)
    again = InvertedLists.from_content(*lists.to_content())
    for one, other in ((lists, again), (lists.rounding, again.rounding)):
        for field in dataclasses.fields(one):
            if field.name != "rounding":
                np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
