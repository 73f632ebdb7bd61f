"""Compute and keep the digest, size, thumbnail and pretrained features of each file.

Files are decoded once, in processes that may hang or crash alone; a sketch takes 4 KB. With a folder for
them, sketches are kept in blocks, so that a run that was killed goes on, and one on a folder that changed
reads only what is new.

Shapes: N files, F features.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from autoencode.atomic import atomic_file, parse_json
from autoencode.data import workers
from autoencode.data.decoders import WholeReader
from autoencode.data.preprocessing import Preprocessing
from autoencode.duplicates.agreement import SIDE, content_box
from autoencode.models.backbones import BACKBONE
from autoencode.models.efficientnet import LAST
from autoencode.pixels import to_float
from autoencode.untrusted import open_file

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Limits

THUMBNAIL = 32
SQUARE = Preprocessing(SIDE, SIDE, "stretch")
_BLOCK = 2048  # files that are kept at once, and so at most lost by a kill
_BATCH = 32  # images of the network at once
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Sketches:
    """Sketches of files, in their order.

    Attributes:
        names: (N,) the paths.
        bytes: (N,) size of the files.
        times: (N,) when they were changed, in ns.
        digests: (N, 32) uint8, sha256.
        sizes: (N, 2) width and height in pixels, upright; 0 for a file that cannot be used.
        thumbnails: (N, 32, 32) uint8, grey, the whole image stretched to a square.
        boxes: (N, 4) where the content is inside a plain border, see `content_box`.
        features: (N, F) float16.
        reasons: (N,) why a file cannot be used; "" for others.
    """

    names: list[str]
    bytes: NDArray[np.int64]
    times: NDArray[np.int64]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    thumbnails: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    features: NDArray[np.float16]
    reasons: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> Sketches:
        """Return the sketches of these rows, in that order."""
        chosen = np.asarray(rows, np.int64)
        arrays = {name: value[chosen] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(
            self,
            names=[self.names[row] for row in rows],
            reasons=[self.reasons[row] for row in rows],
            **arrays,
        )


def sketch_files(
    paths: Sequence[Path], limits: Limits, kept_in: Path | None, progress: Progress | None
) -> Sketches:
    """Return the sketches of files, in their order; files that cannot be used have a reason.

    Args:
        paths: the files.
        limits: the largest files and pictures to accept.
        kept_in: the folder of sketches made before, which takes the new ones; None keeps none.
        progress: called with (files done, files in all).

    Raises:
        OutputError: the sketches cannot be written.
    """
    named = [_described(path) for path in paths]
    blocks = list(kept_blocks(kept_in))
    known: dict[tuple[str, int, int], tuple[int, int]] = {}
    for number, block in enumerate(blocks):
        for row, (name, size, time) in enumerate(
            zip(block.names, block.bytes.tolist(), block.times.tolist(), strict=True)
        ):
            known[name, size, time] = number, row
    missing = [file for file in named if file not in known]
    done = len(named) - len(missing)
    # A block that cannot be read keeps its number.
    files = len(list(kept_in.glob("sketches-*.npz"))) if kept_in is not None else 0
    for start in range(0, len(missing), _BLOCK):
        part = missing[start : start + _BLOCK]

        def report(count: int, before: int = done + start) -> None:
            if progress:
                progress(before + count, len(named))

        block = _sketched(part, limits, report)
        if kept_in is not None:
            _write_block(kept_in / f"sketches-{files:05}.npz", block)
            files += 1
        known.update({file: (len(blocks), row) for row, file in enumerate(part)})
        blocks.append(block)
    starts = np.cumsum([0, *map(len, blocks)])
    whole = blocks[0] if len(blocks) == 1 else _joined(blocks)
    return whole.take([int(starts[number]) + row for number, row in (known[file] for file in named)])


def sketch_pixels(pixels: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Sketches:
    """Return sketches of images that are no files; they hold only what registration needs.

    Args:
        pixels: (N, S, S, 3), the whole image stretched to a square.
        sizes: (N, 2), width and height in pixels.
    """
    made = replace(_empty([(str(number), 0, 0) for number in range(len(pixels))]), sizes=sizes)
    _describe(made, list(range(len(pixels))), pixels, with_features=False)
    return made


def _described(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:  # reading it gives the reason
        return str(path), 0, 0
    return str(path), status.st_size, status.st_mtime_ns


def _empty(files: Sequence[tuple[str, int, int]]) -> Sketches:
    count = len(files)
    return Sketches(
        names=[name for name, _, _ in files],
        bytes=np.array([size for _, size, _ in files], np.int64),
        times=np.array([time for _, _, time in files], np.int64),
        digests=np.zeros((count, 32), np.uint8),
        sizes=np.zeros((count, 2), np.int64),
        thumbnails=np.zeros((count, THUMBNAIL, THUMBNAIL), np.uint8),
        boxes=np.tile(np.array([-1, -1, 1, 1], np.float32), (count, 1)),
        features=np.zeros((count, BACKBONE.block_channels[LAST]), np.float16),
        reasons=[""] * count,
    )


def _sketched(
    files: Sequence[tuple[str, int, int]], limits: Limits, report: Callable[[int], None]
) -> Sketches:
    made, count = _empty(files), len(files)
    waiting: list[tuple[int, NDArray[np.uint8]]] = []
    reads = workers.run(
        WholeReader(SQUARE, limits),
        made.names,
        seconds=limits.seconds_per_file,
        workers=workers.available_cores(),
    )
    for number, (row, read) in enumerate(reads, 1):
        if isinstance(read, workers.Lost):
            made.reasons[row] = read.reason
        else:
            made.digests[row] = np.frombuffer(read.digest, np.uint8)
            made.sizes[row] = read.width, read.height
            made.reasons[row] = read.reason
            if read.pixels is not None:
                waiting.append((row, read.pixels))
        if len(waiting) == _BATCH or (number == count and waiting):
            rows = [row for row, _ in waiting]
            _describe(made, rows, np.stack([pixels for _, pixels in waiting]))
            waiting.clear()
        report(number)
    return made


@torch.inference_mode()
def _describe(
    made: Sketches, rows: list[int], pixels: NDArray[np.uint8], *, with_features: bool = True
) -> None:
    images = to_float(pixels)
    if with_features:
        # The mean over the whole image, as places are not kept: a copy may be mirrored, turned or cropped.
        [maps] = BACKBONE.feature_maps(images, (LAST,))
        made.features[rows] = maps.float().mean((2, 3)).numpy()
    made.boxes[rows] = content_box(images).numpy()
    grey = torch.from_numpy(pixels.astype(np.float32) @ _GREY)[:, None]
    small = F.avg_pool2d(grey, SIDE // THUMBNAIL)[:, 0]
    made.thumbnails[rows] = small.round_().clamp_(0, 255).to(torch.uint8).numpy()


def _joined(blocks: Sequence[Sketches]) -> Sketches:
    fields = vars(blocks[0])
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        if isinstance(value, np.ndarray)
        else [item for block in blocks for item in getattr(block, name)]
        for name, value in fields.items()
    }
    return Sketches(**joined)


def _write_block(path: Path, block: Sketches) -> None:
    arrays: dict[str, Any] = {
        name: value for name, value in vars(block).items() if isinstance(value, np.ndarray)
    }
    texts = json.dumps({"made_by": BACKBONE.weights, "names": block.names, "reasons": block.reasons})
    with atomic_file(path) as file:
        np.savez(file, texts=np.frombuffer(texts.encode(), np.uint8), **arrays)


def kept_blocks(folder: Path | None) -> Iterator[Sketches]:
    """Yield the blocks that can be read; others are made again."""
    if folder is None:
        return
    for path in sorted(folder.glob("sketches-*.npz")):
        with contextlib.suppress(*DAMAGED):
            arrays: dict[str, Any] = read_arrays(path, folder)
            texts = parse_json(arrays.pop("texts").tobytes())
            if texts.pop("made_by") == BACKBONE.weights:
                block = Sketches(**texts, **arrays)
                _check(block)
                yield block


# Errors that reading a damaged or forged file raises.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, BadZipFile, EOFError)


def read_arrays(path: Path, folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file that `numpy.savez` wrote into a folder.

    Raises:
        OSError, ValueError, BadZipFile, ...: it is no such file, see `DAMAGED`.
    """
    with open_file(path, inside=folder) as opened:
        # `savez` compresses nothing: a compressed array is forged, to be larger than memory.
        if any(member.compress_type != ZIP_STORED for member in ZipFile(opened).infolist()):
            raise ValueError("compressed")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def _check(block: Sketches) -> None:
    """Reject arrays of another shape or type than those of so many files.

    Raises:
        ValueError: there is one.
    """
    texts = [*block.names, *block.reasons]
    expected = vars(_empty([(name, 0, 0) for name in block.names]))
    for name, wanted in expected.items():
        found = getattr(block, name)
        is_array = isinstance(wanted, np.ndarray)
        if is_array and (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(f"{name} of another shape or type")
        if len(found) != len(wanted):
            raise ValueError(f"another number of {name}")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names that are no text")
    if not np.isfinite(block.boxes).all() or not np.isfinite(block.features).all():
        raise ValueError("values that are not finite")
