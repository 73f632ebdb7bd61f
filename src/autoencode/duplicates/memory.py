"""Pairs that were compared before, so that a run that was killed goes on where it was."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import atomic_file
from autoencode.duplicates.agreement import Agreement
from autoencode.duplicates.verification import Match, Verifier
from autoencode.untrusted import open_file

if TYPE_CHECKING:
    from autoencode.data.pack import Progress

# Changed when pairs are compared in another way: those compared before count no more.
_VERSION = 1
_BLOCK = 2048  # pairs


def verified(
    verifier: Verifier, pairs: NDArray[np.int64], folder: Path | None, progress: Progress | None
) -> list[Match]:
    """Return the matches among pairs (P, 2), in their order; those in the folder are not compared again.

    Raises:
        OutputError: the folder cannot be written.
    """
    digests = verifier.sketches.digests
    keys = [digests[pair].tobytes() for pair in pairs]
    # How far apart two images may be depends on how thoroughly was looked.
    folder_name = f"pairs-{_VERSION}{'t' * verifier.is_thorough}"
    known: dict[bytes, NDArray[np.float32]] = {}
    blocks = 0
    if folder is not None:
        for path in sorted(folder.glob(f"{folder_name}-*.npz")):
            blocks += 1
            with (
                contextlib.suppress(OSError, ValueError, KeyError, BadZipFile),
                open_file(path, inside=folder) as opened,
                np.load(opened, allow_pickle=False) as file,
            ):
                known.update(zip((key.tobytes() for key in file["digests"]), file["values"], strict=True))
    missing = [row for row, key in enumerate(keys) if key not in known]
    done = len(keys) - len(missing)
    for start in range(0, len(missing), _BLOCK):
        rows = missing[start : start + _BLOCK]
        values = []
        for part in range(0, len(rows), 64):
            values += [_values(match) for match in verifier.verify(pairs[rows[part : part + 64]])]
            if progress:
                progress(done + start + len(values), len(keys))
        known.update({keys[row]: value for row, value in zip(rows, values, strict=True)})
        if folder is not None:
            with atomic_file(folder / f"{folder_name}-{blocks:05}.npz") as file:
                np.savez(file, digests=digests[pairs[rows]].reshape(len(rows), -1), values=np.stack(values))
            blocks += 1
    matches = (_match(pair, known[key]) for pair, key in zip(pairs.tolist(), keys, strict=True))
    return [match for match in matches if match is not None]


def _values(match: Match | None) -> NDArray[np.float32]:
    values = np.full(16, np.nan, np.float32)
    if match is not None:
        agreement = match.agreement
        values[:6] = match.map.ravel()
        values[6:12] = (
            *(agreement.one_sided, agreement.mutual, agreement.overlap),
            *(agreement.gain, agreement.offset, agreement.chroma),
        )
        if agreement.differs is not None:
            values[12:] = agreement.differs
    return values


def _match(pair: list[int], values: NDArray[np.float32]) -> Match | None:
    if np.isnan(values[0]):
        return None
    numbers = [float(value) for value in values[6:]]
    differs = None if np.isnan(values[12]) else (numbers[6], numbers[7], numbers[8], numbers[9])
    return Match(pair[0], pair[1], values[:6].reshape(2, 3), Agreement.of(numbers[:6], differs))
