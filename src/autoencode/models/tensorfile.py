"""Tensors and JSON in one safetensors file with a digest: the format of model files and checkpoints.

Reading never unpickles. safetensors checks that every tensor lies within the file; a flipped byte it would
not notice, so the file also carries the sha256 of all it holds, checked on every read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from autoencode.errors import AutoencodeError
from autoencode.files import atomic_file, parse_json

# The types of what is written; of others not every operation is there, and none is expected.
_TYPES = (torch.float32, torch.float64, torch.int64, torch.uint8)


def write_tensors(
    path: Path, kind: str, version: int, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> str:
    """Write a file of this kind, whole or not at all.

    Args:
        path: where to.
        kind: what the file is, for instance "model"; checked when it is read.
        version: version of the format of `tensors` and `content`.
        tensors: the tensors by name, any device.
        content: whatever else belongs in it, as JSON can hold it.

    Returns:
        The sha256 of kind, version, tensors and content, which is also kept in the file.

    Raises:
        OutputError: it cannot be written; what was there before is unchanged.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**content, "kind": kind, "version": version}
    digest = _digest(described, stored)
    # One key only: safetensors writes several in no fixed order, and equal models are equal files.
    metadata = {"autoencode": _text({**described, "sha256": digest})}
    with atomic_file(path) as file:
        try:
            safetensors.torch.save_file(
                stored, file.name, metadata
            )  # unlike save(), without a copy in memory
        except safetensors.SafetensorError as err:  # the system's refusal, in its words
            raise OSError(str(err)) from err
    return digest


def read_tensors(
    path: Path, kind: str, version: int, error: type[AutoencodeError], advice: str = "Restore it from a copy."
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read what `write_tensors` wrote.

    Args:
        path: the file.
        kind: what it must be.
        version: the newest version this code understands.
        error: the class to raise.
        advice: what to do where the file is damaged.

    Returns:
        The tensors, the content, and the digest.

    Raises:
        AutoencodeError: of class `error`: no such file, not of this kind, damaged, or newer than `version`.
    """
    if not path.is_file():
        raise error(f"No {kind} file at {path}.")
    if not os.access(path, os.R_OK):
        raise error(f"Could not read {path}: permission denied. Let its owner open it to you.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError, ValueError) as err:
        raise error(f"{path} is not a {kind} file, or is cut short or damaged ({err}). {advice}") from err
    content = _content(path, kind, metadata, error)
    if content["version"] > version:
        raise error(
            f"{path} was written by a newer autoencode (format {content['version']}, this one reads up to "
            f"{version}). Upgrade: pip install --upgrade autoencode"
        )
    if odd := [name for name, tensor in tensors.items() if tensor.dtype not in _TYPES]:
        raise error(f"{path} is not a {kind} file: {odd[0]} is of type {tensors[odd[0]].dtype}.")
    stated = content.pop("sha256", None)
    digest = _digest(content, tensors)
    if digest != stated:
        raise error(f"{path} is damaged: its content does not match its sha256. {advice}")
    return tensors, content, digest


def _content(
    path: Path, kind: str, metadata: Mapping[str, str], error: type[AutoencodeError]
) -> dict[str, Any]:
    try:
        content = parse_json(metadata["autoencode"])
        found, version = content["kind"], content["version"]
    except (KeyError, TypeError, ValueError) as err:
        raise error(f"{path} is a safetensors file, but not one that autoencode wrote.") from err
    if found != kind or not isinstance(version, int):
        raise error(f"{path} is a {found} file; a {kind} file is needed here.")
    return content  # type: ignore[no-any-return]


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False)


def _digest(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(_text(content).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()
