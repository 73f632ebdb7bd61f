"""Batches are a function of (seed, epoch, step): every image once an epoch, from any step on."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch

from autoencode import Pack
from autoencode.data.loader import (
    DeviceImages,
    batches,
    epoch_order,
    local_batch,
    local_batches,
    random_seed,
    steps_per_epoch,
)
from autoencode.pixels import to_float


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


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("whole", [1, 2, 6, 7, 128])
def test_local_batches_are_the_batch_and_differ_by_one_image(whole: int, count: int) -> None:
    parts = [local_batch(whole, rank, count) for rank in range(count)]
    counted = [local for local in parts if local.counted]
    assert [i for local in counted for i in range(local.first, local.end)] == list(range(whole))
    assert sum(local.weight for local in parts) == pytest.approx(1)
    sizes = [local.counted for local in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(local.end > local.first for local in parts), "every process must have something to compute"


@pytest.mark.parametrize("count", [1, 3, 200])
@pytest.mark.parametrize("whole", [1, 7, 128])
def test_micro_batches_are_all_of_the_local_batch(whole: int, count: int) -> None:
    for local in (local_batch(whole, rank, 2) for rank in range(2)):
        micros = local.micro_batches(count)
        assert sum(micro.weight for micro in micros) == pytest.approx(local.weight)
        assert [i for p in micros for i in range(p.first, p.end)] == list(range(local.first, local.end))
        assert len(micros) == max(1, min(count, local.counted))
        sizes = {micro.counted for micro in micros}
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("whole", [1, 2, 7, 32])
def test_strided_parts_are_each_so_manieth_image_of_the_batch(whole: int, count: int, processes: int) -> None:
    batch = list(range(whole))
    for number in range(min(count, whole)):
        wanted, found = batch[number::count], []
        for rank in range(processes):
            local = local_batch(whole, rank, processes)
            indices, chosen = local.strided(number, count)
            images = batch[local.positions][indices]
            assert chosen.batch_size == len(wanted)
            assert len(images) == chosen.end - chosen.first, "every process must have something to compute"
            assert chosen.counted in (0, len(images))
            if chosen.counted:
                assert images == wanted[chosen.positions]
                found += images
        assert found == wanted


@pytest.mark.parametrize("count", [2, 3])
def test_processes_see_together_what_one_sees(count: int, tiny_pack: Pack) -> None:
    rows = tiny_pack.rows()
    assert len(rows) % 10
    parts = [list(local_batches(tiny_pack, rows, 10, rank, count)) for rank in range(count)]
    for step, batch in enumerate(batches(tiny_pack, rows, 10)):
        seen = [images for images, local in (part[step] for part in parts) if local.counted]
        assert torch.equal(torch.cat(seen), batch)


@pytest.mark.parametrize("room", [0, 2**30], ids=["copied for each batch", "kept on the device"])
def test_batches_on_a_device_are_those_of_the_cpu(room: int, tiny_pack: Pack) -> None:
    rows = np.random.default_rng(0).permutation(tiny_pack.rows())
    images = DeviceImages(tiny_pack, np.concatenate([rows, rows[:5]]), torch.device("cpu"), room)
    assert images.is_resident is bool(room)
    usual = list(local_batches(tiny_pack, rows, 10, 1, 2, start=1))
    found = list(local_batches(tiny_pack, rows, 10, 1, 2, start=1, device=images))
    assert len(usual) == len(found) > 1
    for (expected, where), (batch, place) in zip(usual, found, strict=True):
        assert torch.equal(batch, expected)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert place == where


def test_images_that_do_not_fit_are_not_kept_on_the_device(tiny_pack: Pack) -> None:
    rows = tiny_pack.rows()
    size = len(np.unique(rows)) * tiny_pack.preprocessing.height * tiny_pack.preprocessing.width * 3
    assert DeviceImages(tiny_pack, rows, torch.device("cpu"), size).is_resident
    assert not DeviceImages(tiny_pack, rows, torch.device("cpu"), size - 1).is_resident
