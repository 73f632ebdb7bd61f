"""Columns give back the entries they were made of, and take a fraction of their memory."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoencode.data import entries
from autoencode.data.entries import Entries, Entry, packed_entry, skipped_entry

WHOLE = st.integers(0, 2**63 - 1)
PATHS = st.binary(min_size=1, max_size=20).map(os.fsdecode)
DIGESTS = st.binary(min_size=32, max_size=32).filter(any)
SHA256 = st.one_of(DIGESTS, DIGESTS.map(lambda digest: digest[:-2] + b"\0\0").filter(any)).map(bytes.hex)
PACKED = st.builds(packed_entry, PATHS, WHOLE, st.integers(-(2**63), 2**63 - 1), SHA256, WHOLE)
SKIPPED = st.builds(skipped_entry, PATHS, WHOLE, WHOLE, st.none() | SHA256, st.text())


def test_what_is_skipped_keeps_what_is_known_of_it() -> None:
    entry = skipped_entry("a/b.png", 7, 8, "ab" * 32, "too large")
    assert (entry.path, entry.size, entry.mtime, entry.sha256) == ("a/b.png", 7, 8, "ab" * 32)
    assert (entry.status, entry.reason, entry.label) == ("skipped", "too large", "a")
    assert entry.row is entry.split is None


@given(st.lists(PACKED | SKIPPED, max_size=12))
def test_entries_come_back_as_they_went_in(listed: list[Entry]) -> None:
    entries = Entries(listed)
    assert list(entries) == listed
    assert [entries[i] for i in range(len(listed))] == [entries[i - len(listed)] for i in range(len(listed))]
    assert list(entries[1::2]) == listed[1::2]
    assert list(reversed(entries)) == listed[::-1]
    assert list(entries.packed) == [entry for entry in listed if entry.status == "packed"]
    assert entries == Entries(listed)
    assert not listed or entries != Entries(listed[1:])
    assert entries.rows.tolist() == [-1 if entry.row is None else entry.row for entry in listed]


@given(st.lists(PACKED, min_size=1, max_size=12), st.randoms())
def test_a_selection_in_any_order_is_that_of_a_list(listed: list[Entry], random: object) -> None:
    order = np.random.default_rng(0).integers(0, len(listed), 5)
    assert list(Entries(listed).take(order)) == [listed[i] for i in order]
    moved = Entries(listed)
    moved.set_rows(np.arange(len(listed)))
    assert [entry.row for entry in moved] == list(range(len(listed)))
    for split in ("train", "validation", "test"):
        assert Entries(listed).in_split(split).tolist() == [entry.split == split for entry in listed]


@given(st.lists(PACKED | SKIPPED, min_size=1, max_size=12))
def test_unread_entries_become_what_is_found_in_their_files(listed: list[Entry]) -> None:
    entries = Entries(skipped_entry(entry.path, entry.size, entry.mtime) for entry in listed)
    assert not len(entries.packed)
    half = np.arange(0, len(listed), 2)
    for index in range(1, len(listed), 2):
        sha256 = listed[index].sha256
        entries.set_content(index, bytes.fromhex(sha256) if sha256 else None, listed[index].reason)
    rows = np.array([-1 if entry.row is None else entry.row for entry in listed])
    entries.set_rows(rows)
    entries.copy_content(half, Entries(listed).take(half))
    known = [entry for index, entry in enumerate(listed) if index % 2 or entry.status == "packed"]
    assert [entry for index, entry in enumerate(entries) if index % 2 or entry.status == "packed"] == known
    skipped_here = [index % 2 == 1 and entry.reason is not None for index, entry in enumerate(listed)]
    assert entries.has_reason.tolist() == skipped_here


def test_an_index_too_large_ends_the_sequence() -> None:
    with pytest.raises(IndexError):
        Entries()[0]


def test_a_value_that_fits_no_column_is_rejected() -> None:
    with pytest.raises(ValueError, match="out of range"):
        Entries([packed_entry("a", 2**70, 0, "0" * 64, 0)])
    with pytest.raises(ValueError, match="has 2 bytes"):
        Entries([packed_entry("a", 0, 0, "00ff" + " " * 60, 0)])


def test_an_entry_takes_less_than_150_bytes() -> None:
    tracemalloc.start()
    entries = Entries(
        packed_entry(f"class/{i:06}.jpg", i, i << 32, f"{i + 1:064x}", i) for i in range(10_000)
    )
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(entries) == 10_000
    assert used < 150 * 10_000


@pytest.mark.parametrize("path", ["/etc/passwd.png", "../up.png", "a/../../up.png", "a\0b.png"])
def test_a_path_that_leaves_the_folder_is_rejected(path: str) -> None:
    value = packed_entry("a..b/c.png", 1, 2, "0" * 64, 3).to_json()
    assert Entry.from_json(value).path == "a..b/c.png"
    with pytest.raises(ValueError, match="inside the folder"):
        Entry.from_json({**value, "path": path})


@pytest.mark.parametrize(
    "path", ["C:/a.png", "C:a.png", "a\\..\\..\\up.png", "\\\\host\\share\\a.png", "//host/a.png"]
)
def test_a_path_that_leaves_the_folder_on_windows_is_rejected_there(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = packed_entry("a..b/c.png", 1, 2, "0" * 64, 3).to_json()
    monkeypatch.setattr(entries, "_ON_WINDOWS", True)
    assert Entry.from_json(value).path == "a..b/c.png"
    with pytest.raises(ValueError, match="inside the folder"):
        Entry.from_json({**value, "path": path})
