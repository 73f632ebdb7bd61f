"""Changes in a file: of a place in its JSON, of a tensor, of the header that says where tensors are."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Generator = np.random.Generator
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 16, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, -0.0),
    *("", "x", "vae", "../../etc/passwd", "/dev/zero", "\0", "\ud800", "\n", "a" * 10_000),
    *([], {}, [[]], [0], [-1], [10**9], ["x"], [1] * 10_000, {"x": 1}),
)
_DTYPES = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.complex64),
)


def change_json(value: Any, generator: Generator) -> str:  # noqa: ANN401 - any JSON
    """Change one place somewhere in a JSON object."""
    if not (places := _places(value)):  # an empty list or object
        return "nothing"
    holder, key = places[int(generator.integers(len(places)))]
    new = copy.deepcopy(_VALUES[int(generator.integers(len(_VALUES)))])
    how = generator.integers(5)
    if how == 0:
        del holder[key]
        return f"without {key!r}"
    if how == 1:
        other, name = places[int(generator.integers(len(places)))]
        new = copy.deepcopy(other[name])
    if how == 2 and isinstance(holder, dict):
        holder[f"{key} more"] = new
        return f"with {key} more"
    holder[key] = new
    return f"{key!r} is {str(new)[:60]!r}"


def _places(value: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in _places(value[key])]


def change_tensor(tensors: dict[str, torch.Tensor], generator: Generator) -> str:
    """Change or remove a tensor; return what was done."""
    name = sorted(tensors)[int(generator.integers(len(tensors)))]
    tensor = tensors[name]
    changes: dict[str, Callable[[], torch.Tensor]] = {
        "all NaN": lambda: torch.full_like(tensor, float("nan")),
        "one infinite": lambda: _with_one(tensor, float("inf")),
        "one huge": lambda: _with_one(tensor, 3e38),
        "one far negative": lambda: _with_one(tensor, -(2**62)),
        "zeros": lambda: torch.zeros_like(tensor),
        "negated": lambda: -tensor,
        "flat": lambda: tensor.flatten(),
        "one more axis": lambda: tensor[None],
        "half": lambda: tensor[: len(tensor) // 2] if tensor.ndim else tensor,
        "doubled": lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
        "transposed": lambda: tensor.T.contiguous() if tensor.ndim == 2 else tensor.flip(0),
        "empty": lambda: tensor.flatten()[:0],
        "a scalar": lambda: tensor.flatten()[0].clone(),
        "another type": lambda: tensor.to(_DTYPES[int(generator.integers(len(_DTYPES)))]),
        "large": lambda: torch.zeros(1000, 1000, dtype=tensor.dtype),
    }
    what = sorted(changes)[int(generator.integers(len(changes)))]
    if generator.random() < 0.1:
        del tensors[name]
        return f"without {name}"
    try:
        tensors[name] = changes[what]()
    except (RuntimeError, IndexError):  # a scalar has no half, and a byte is not infinite
        return "nothing"
    return f"{name} {tensors[name].dtype} {what}"


def _with_one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = value if tensor.is_floating_point() else int(min(value, 2.0**62)) % 251
    return changed


def lie_about_tensors(path: Path, content: bytes, generator: Generator) -> str:
    """Change the header that says where tensors are, as to claim ten gigabytes; its length is right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    names = sorted(set(header) - {"__metadata__"})
    # A file of JSON alone gets a tensor that is not there.
    names = names or ["none"]
    entry = header.setdefault(names[int(generator.integers(len(names)))], {"dtype": "F32"})
    how = int(generator.integers(7))
    if how == 0:
        entry["shape"] = [50_000, 50_000]
    elif how == 1:
        entry["shape"], entry["data_offsets"] = [50_000, 50_000], [0, 10**10]
    elif how == 2:
        entry["data_offsets"] = [2**63, 2**64 - 1]
    elif how == 3:
        entry["shape"] = [2**32, 2**32, 4]
    elif how == 4:
        entry["dtype"] = str(generator.choice(["F64", "I8", "BOOL", "F8_E4M3", "X", ""]))
    elif how == 5:
        entry["data_offsets"] = [0, entry.get("data_offsets", (0, 10**10))[1]]
    lied = json.dumps(header).encode()
    size = 2**62 if how == 6 else len(lied)
    path.write_bytes(struct.pack("<Q", size) + lied + content[8 + length :])
    return f"header lies in way {how}"
