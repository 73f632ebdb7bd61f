"""Results of long work, kept in files: a page that is started again shows at once what it found before.

A result has a key, made of all that it depends on: the files, the model, the version. A file with another key
is of something else, and the next result replaces it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.atomic import make_folder
from autoencode.errors import VERSION, ModelFileError, OutputError
from autoencode.models.model_file import read_tensors, write_tensors

FOLDER_NAME = "page-results"
KIND, FORMAT_VERSION = "page result", 1
MOST_BYTES = 256 * 1024**2  # a larger file is not read, and nothing as large is written

Result = TypeVar("Result")


class Saved(NamedTuple):
    """A result as a file holds it: arrays of float64, int64 or uint8, and what JSON can hold."""

    arrays: Mapping[str, NDArray[Any]]
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Form(Generic[Result]):
    """How results of a kind are saved.

    Attributes:
        save: returns a result as a file holds it.
        load: the inverse; raises any of `_UNFIT` for what `save` cannot have returned.
    """

    save: Callable[[Result], Saved]
    load: Callable[[Saved], Result]


PLAIN: Form[Any] = Form(lambda result: Saved({}, {"result": result}), lambda saved: saved.content["result"])

# Errors that numbers and shapes of another kind raise; ArithmeticError: an integer too large for a float.
_UNFIT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class Results:
    """Results in a folder that this user alone can read.

    Args:
        folder: made with the first result.

    Attributes:
        are_recalled: whether the page has looked for results of an earlier start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.are_recalled = False

    def known(self, name: str, key: str, form: Form[Result]) -> Result | None:
        """Return a result that was kept; None without one, or if it is of something else or damaged."""
        path = self._path(name)
        if not _is_own(path):
            return None
        try:
            tensors, content, _ = read_tensors(path, KIND, FORMAT_VERSION, ModelFileError)
            if content["key"] != key:
                return None
            return form.load(Saved({name: one.numpy() for name, one in tensors.items()}, content))
        except (ModelFileError, *_UNFIT):
            return None  # the work is done again

    def kept(self, name: str, key: str, form: Form[Result], work: Callable[[], Result]) -> Result:
        """Return the result that was kept under a key, or do the work and keep its result."""
        found = self.known(name, key, form)
        if found is not None:
            return found
        made = work()
        arrays, content = form.save(made)
        if sum(array.nbytes for array in arrays.values()) < MOST_BYTES:
            # A page in a folder that cannot be written, or on a full disk, works until it is closed.
            with contextlib.suppress(OutputError):
                make_folder(self._folder, is_private=True)
                tensors = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in arrays.items()}
                write_tensors(self._path(name), KIND, FORMAT_VERSION, tensors, {**content, "key": key})
        return made

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _is_own(path: Path) -> bool:
    """Whether a file may be believed: its digest says that it is whole, and not who wrote it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    is_private = not hasattr(os, "geteuid") or (
        status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
    )
    return stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES and is_private


def key_of(*parts: str) -> str:
    """Return the key of a result that depends on these, and on the version."""
    return hashlib.sha256("\0".join((VERSION, *parts)).encode("utf-8", "surrogateescape")).hexdigest()


def state_of(paths: Iterable[Path]) -> str:
    """Return a digest of paths, sizes and times of files; a file that is missing counts as such."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{path}\0{state}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
