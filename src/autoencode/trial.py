"""A network in an ONNX file, tried in a process apart before this one loads it.

onnxruntime is compiled code that parses a stranger's file, and runs what is in it: a forged one may crash it,
never end, or ask for more memory than there is. Such a file ends a worker instead of the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoencode.data import workers
from autoencode.errors import ModelFileError

SECONDS = 120.0  # of processor time; a vision transformer of 300 million weights takes 5
_USUAL_PX = 224


def check_onnx(path: Path) -> None:
    """Load a network and run it on one image, in a worker with limits on its time and memory.

    What is missing or merely unusable is no error here: whoever loads the file next says what is wrong.

    Raises:
        ModelFileError: the worker crashed, took too long, or had too little memory.
    """
    if not path.is_file():
        return
    worker: workers.PersistentWorker[str, str] = workers.PersistentWorker(
        _tried, seconds=SECONDS, memory_bytes=int(min(0.8 * workers.free_bytes(), 2**40))
    )
    try:
        tried = worker.call(str(path.absolute()))
    finally:
        worker.close()
    reason = tried.reason if isinstance(tried, workers.Lost) else tried
    if reason:
        raise ModelFileError(
            f"{path} cannot be used: its network, loaded for a trial, {reason}. Give another ONNX file."
        )


def _tried(path: str) -> str:
    """Return why a network must not be loaded, or nothing; runs in a worker."""
    try:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = {one.name: np.zeros(_shape(one.shape), _TYPES[one.type]) for one in session.get_inputs()}
        session.run(None, given)
    except MemoryError:
        return "needed more memory than is free"
    except Exception as err:  # onnxruntime has no common base for its errors
        # Its allocator says so in words alone.
        return "needed more memory than is free" if "bad_alloc" in str(err) or "allocat" in str(err) else ""
    return ""


_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def _shape(stated: list[Any]) -> list[int]:
    """Return the shape of an input for one image; a side that is not stated is a usual one."""
    first, *sides = stated or [1]
    return [first if isinstance(first, int) else 1, *(s if isinstance(s, int) else _USUAL_PX for s in sides)]
