"""Batches are a function of (seed, epoch, step): every image once an epoch, from any step on."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch

from autoencode import Pack
from autoencode.data.loader import batches, epoch_order, random_seed, steps_per_epoch, to_float, to_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), np.uint8)


def test_pixels_become_floats_of_their_255th_channels_first() -> None:
    images = to_float(PIXELS)
    assert (images.shape, images.dtype) == ((5, 3, 16, 32), torch.float32)
    expected = PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert np.array_equal(images.numpy(), expected)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_pixels_survive_the_way_there_and_back() -> None:
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_pixels(to_float(every_value)), every_value)
    assert np.array_equal(to_pixels(to_float(PIXELS)), PIXELS)


def test_values_outside_the_range_are_clipped_and_the_others_rounded_to_the_nearest() -> None:
    values = torch.tensor([-1.0, 0.0019, 0.0021, 0.5, 0.9999, 2.0])
    pixels = to_pixels(values.reshape(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]


def test_seeds_depend_on_every_part_and_are_the_same_on_every_machine() -> None:
    assert random_seed("order", 0, 0) == 2639891785492693593
    parts = itertools.product(["train", "validation"], range(5), range(5))
    seeds = {random_seed(*part) for part in parts}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert random_seed(1, 12) != random_seed(11, 2)


@pytest.mark.parametrize(
    ("images", "size", "steps"),
    [(0, 8, 0), (1, 8, 1), (8, 8, 1), (9, 8, 1), (10, 8, 2), (16, 8, 2), (17, 8, 2), (17, 1, 17), (1, 1, 1)],
)
def test_the_last_batch_counts_as_a_step_unless_it_is_a_single_image(
    images: int, size: int, steps: int
) -> None:
    assert steps_per_epoch(images, size) == steps


def test_the_order_is_a_permutation_that_depends_on_the_seed_and_the_epoch_alone() -> None:
    rows = np.arange(100, 160)
    orders = {}
    for seed, epoch in itertools.product(range(3), range(3)):
        np.random.default_rng(epoch)  # any other generator changes nothing
        order = epoch_order(rows, seed, epoch)
        assert sorted(order) == rows.tolist()
        assert np.array_equal(order, epoch_order(rows, seed, epoch))
        orders[tuple(order)] = (seed, epoch)
    assert len(orders) == 9
    assert np.array_equal(rows, np.arange(100, 160))


@pytest.mark.parametrize("count", [24, 25, 29])
@pytest.mark.parametrize("size", [1, 7, 8, 100])
def test_every_image_comes_once_in_the_order_given(tiny_pack: Pack, size: int, count: int) -> None:
    rows = epoch_order(tiny_pack.rows("train"), 3, 1)[:count]
    read = list(batches(tiny_pack, rows, size))
    assert [len(batch) for batch in read[:-1]] == [size] * (len(read) - 1)
    assert len(read[-1]) > 1 or size == 1
    assert len(read) == steps_per_epoch(len(rows), size)
    assert torch.equal(torch.cat(read), to_float(tiny_pack.pixels(rows)))


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, None), (1, 3), (3, 3), (5, 5), (5, 4)])
def test_an_epoch_can_start_and_stop_at_any_step(tiny_pack: Pack, start: int, stop: int | None) -> None:
    rows = tiny_pack.rows("train")
    whole = list(batches(tiny_pack, rows, 8))
    part = list(batches(tiny_pack, rows, 8, start=start, stop=stop))
    assert len(part) == max(0, (len(whole) if stop is None else stop) - start)
    for found, expected in zip(part, whole[start:], strict=False):
        assert torch.equal(found, expected)


def test_batches_left_in_the_middle_leave_no_thread(tiny_pack: Pack) -> None:
    reading = batches(tiny_pack, tiny_pack.rows(), 4)
    next(reading)
    assert any(thread.name.startswith("batches") for thread in threading.enumerate())
    reading.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_an_error_of_the_pack_arrives_at_the_reader(tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_rows: object) -> None:
        raise RuntimeError("gone")

    monkeypatch.setattr(tiny_pack, "pixels", fail)
    with pytest.raises(RuntimeError, match="gone"):
        list(batches(tiny_pack, tiny_pack.rows(), 4))
