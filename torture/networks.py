"""ONNX files made to hurt who loads and runs them, and the settings that lie beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS_NAME = "preprocessor_config.json"
SIDE = 32

Made = tuple[str, Callable[[Path], object], bool]


def _saved(
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]],
    constants: dict[str, Any] | None = None,
    shape: tuple[Any, ...] = (1, 3, SIDE, SIDE),
    **more: Any,  # noqa: ANN401 - of the file's head
) -> Callable[[Path], None]:
    """Return a function that writes a network with the input "in" and the output "out"."""

    def written(path: Path) -> None:
        import onnx
        from onnx import helper, numpy_helper

        kind = more.get("type", onnx.TensorProto.FLOAT)
        graph = helper.make_graph(
            [helper.make_node(name, taken, given, **settings) for name, taken, given, settings in nodes],
            "graph",
            [helper.make_tensor_value_info(name, kind, list(shape)) for name in more.get("inputs", ("in",))],
            [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", more.get("opset", 18))],
            ir_version=more.get("ir_version", 8),
        )
        if "external" in more:
            [weights] = [tensor for tensor in model.graph.initializer if tensor.name == "weights"]
            weights.ClearField("raw_data")
            weights.data_location = onnx.TensorProto.EXTERNAL
            for key, value in more["external"].items():
                weights.external_data.add(key=key, value=str(value))
        path.write_bytes(model.SerializeToString())

    return written


_MEAN = ("ReduceMean", ["in", "axes"], ["out"], {"keepdims": 0})
_AXES = {"axes": np.array([2, 3])}
sound = _saved([_MEAN], _AXES)


def _with_data(location: str, **more: Any) -> Callable[[Path], None]:  # noqa: ANN401
    """Return a function that writes a network whose weights are in another file."""
    nodes = [
        ("ReduceMean", ["in", "axes"], ["mean"], {"keepdims": 0}),
        ("Add", ["mean", "weights"], ["out"], {}),
    ]
    constants = {**_AXES, "weights": np.zeros((1, 3), np.float32)}
    return _saved(nodes, constants, external={"location": location, **more})


def made_to_hurt() -> Iterator[Made]:
    """Yield (name, what makes it, whether it must be rejected); the first is sound."""
    yield "sound", sound, False
    for name, location in {
        "above": "../secret",
        "absolute": "/etc/passwd",
        "a device": "/dev/zero",
        "a pipe": "pipe.png",
        "a folder": "images",
        "nowhere": "nowhere",
        "itself": "given.onnx",
        "far above": "../" * 500 + "etc/passwd",
    }.items():
        # Its own bytes are weights, too, and finite ones perhaps.
        yield f"weights in {name}", _with_data(location), name != "itself"
    yield "weights by a link", _weights_by_link, True
    yield "weights of a terabyte", _with_data("given.onnx", length=2**40), True
    yield "weights before the file", _with_data("given.onnx", offset=-(2**40)), True
    yield "an unknown operator", _saved([("Explode", ["in"], ["out"], {})]), True
    yield "a later opset", _saved([_MEAN], _AXES, opset=999), True
    yield "a later format", _saved([_MEAN], _AXES, ir_version=999), True
    yield "no node", _saved([]), True
    yield "no input", _saved([_MEAN], _AXES, inputs=()), True
    yield "two inputs", _saved([_MEAN], _AXES, inputs=("in", "more")), True
    yield "whole numbers", _saved([_MEAN], _AXES, type=7), True
    yield "text", _saved([("Identity", ["in"], ["out"], {})], type=8), True
    for side in (0, -1, 1_000, 30_000, 2**31, 2**62):
        sizes = 1, 3, side, side
        yield f"sides of {side}", _saved([_MEAN], _AXES, sizes), side not in (-1, 1_000)  # -1 is any
    yield "a batch of 2**40", _saved([_MEAN], _AXES, (2**40, 3, SIDE, SIDE)), True
    yield "a batch of none", _saved([_MEAN], _AXES, (0, 3, SIDE, SIDE)), True
    yield "two dimensions", _saved([_MEAN], _AXES, (1, 3)), True
    yield "named sides", _saved([_MEAN], _AXES, ("b", 3, "h", "w")), False
    yield "a number for each image", _saved([("ReduceMean", ["in"], ["out"], {"keepdims": 0})]), True
    yield (
        "not finite",
        _saved(
            [
                ("ReduceMean", ["in", "axes"], ["mean"], {"keepdims": 0}),
                ("Div", ["mean", "zero"], ["out"], {}),
            ],
            {**_AXES, "zero": np.zeros((1, 3), np.float32)},
        ),
        True,
    )
    yield (
        "a long vector",
        _saved(
            [("ReduceMean", ["in"], ["mean"], {"keepdims": 0}), ("Expand", ["mean", "size"], ["out"], {})],
            {"size": np.array([1, 2**33])},
        ),
        True,
    )
    yield (
        "a loop of nodes",
        _saved([("Add", ["in", "other"], ["out"], {}), ("Add", ["out", "in"], ["other"], {})]),
        True,
    )
    yield (
        "many nodes",
        _saved(
            [("Identity", [f"n{n}" if n else "in"], [f"n{n + 1}"], {}) for n in range(20_000)]
            + [("ReduceMean", ["n20000", "axes"], ["out"], {"keepdims": 0})],
            _AXES,
        ),
        False,
    )


def _weights_by_link(path: Path) -> None:
    link = path.with_name("weights.bin")
    link.unlink(missing_ok=True)
    link.symlink_to("/dev/zero")
    _with_data("weights.bin", length=12)(path)


def settings_made_to_hurt() -> Iterator[Made]:
    """Yield settings of the images of a network, likewise."""
    sound_one = {"size": {"height": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for name, content in {
        "sound": sound_one,
        "no spread": {**sound_one, "image_std": [0, 0, 0]},
        "negative": {**sound_one, "image_std": [-1, 1, 1]},
        "huge": {**sound_one, "size": 10**9},
        "text": {**sound_one, "image_mean": "abc"},
        "a list": [],
        "many": {**sound_one, "image_mean": [0.5] * 10**6},
        "not finite": {**sound_one, "image_std": [1e400, 1, 1]},
        "far": {**sound_one, "image_mean": [1e308] * 3},
    }.items():
        yield name, lambda path, content=content: path.write_text(json.dumps(content)), name != "sound"  # type: ignore[misc]
    yield "deep", lambda path: path.write_text("[" * 10**6), True
    yield "a device", lambda path: path.symlink_to("/dev/zero"), False  # no file, and so none beside it
    yield "a pipe", os.mkfifo, False
