"""Which files of a collection are not there any more."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from autoencode.web.pictures import Collection

SECONDS = 3.0  # that an answer is believed: a grid of 2,000 pictures asks ten times as one scrolls

_known: WeakKeyDictionary[Collection, tuple[float, NDArray[np.bool_]]] = WeakKeyDictionary()
_lock = threading.Lock()


def missing(of: Collection) -> NDArray[np.bool_]:
    """Return which files of a collection are gone, (N,).

    None of them is where only the pack is at hand, and where their folder as a whole is not there: a disk
    that is not connected has lost nothing.
    """
    if of.path(0) is None or not of.pack.folder.is_dir():
        return np.zeros(len(of), np.bool_)
    with _lock:
        at, found = _known.get(of, (-SECONDS, np.zeros(0, np.bool_)))
        if time.monotonic() - at >= SECONDS:
            found = _looked(of)
            _known[of] = time.monotonic(), found
    return found


def _looked(of: Collection) -> NDArray[np.bool_]:
    # By folder: to ask for 100,000 files one by one takes a second, and minutes on a disk of a network.
    folders: dict[str, list[int]] = defaultdict(list)
    names = []
    for position, entry in enumerate(of.pack.entries):
        folder, _, name = entry.path.rpartition("/")
        folders[folder].append(position)
        names.append(name)
    gone = np.zeros(len(of), np.bool_)
    for folder, positions in folders.items():
        there = _names_in(of.pack.folder / folder)
        for position in positions:
            # A link that leads nowhere is listed, too; opening the picture says so.
            gone[position] = names[position] not in there
    return gone


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - names alone
    except OSError:
        return set()
