"""A network of a stranger ends a process of its own, not the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoencode import trial
from autoencode.embedding import find_encoder
from autoencode.errors import ModelFileError

onnx = pytest.importorskip("onnx", reason="the optional part `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the optional part `onnx` is not installed")
make = onnx.helper
FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def saved(path: Path, nodes: list[Any], constants: list[Any]) -> Path:
    """Write a network of one image of 8x8 pixels, whose output is "out"."""
    graph = make.make_graph(
        nodes,
        "graph",
        [make.make_tensor_value_info("in", FLOAT, [1, 3, 8, 8])],
        [make.make_tensor_value_info("out", FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8), path)
    return path


def of_means(path: Path) -> Path:
    axes = ("axes", np.array([2, 3]))
    return saved(path, [make.make_node("ReduceMean", ["in", "axes"], ["out"], keepdims=0)], [axes])


def endless(path: Path) -> Path:
    body = make.make_graph(
        [make.make_node("Identity", ["go"], ["still"]), make.make_node("Cos", ["value"], ["next"])],
        "body",
        [
            make.make_tensor_value_info("number", INT64, []),
            make.make_tensor_value_info("go", BOOL, []),
            make.make_tensor_value_info("value", FLOAT, [1, 3, 8, 8]),
        ],
        [
            make.make_tensor_value_info("still", BOOL, []),
            make.make_tensor_value_info("next", FLOAT, [1, 3, 8, 8]),
        ],
    )
    loop = make.make_node("Loop", ["count", "go on", "in"], ["out"], body=body)
    return saved(path, [loop], [("count", np.array(2**62)), ("go on", np.array(True))])


def huge(path: Path) -> Path:
    # A terabyte, of a shape that is an input of the graph so that nothing is folded when it is loaded.
    nodes = [
        make.make_node("ReduceSum", ["in"], ["zero"], keepdims=0),
        make.make_node("Cast", ["zero"], ["number"], to=INT64),
        make.make_node("Add", ["number", "sides"], ["shape"]),
        make.make_node("ConstantOfShape", ["shape"], ["out"]),
    ]
    return saved(path, nodes, [("sides", np.array([2**19, 2**19]))])


def test_a_sound_network_is_used(tmp_path: Path) -> None:
    path = of_means(tmp_path / "sound.onnx")
    trial.check_onnx(path)
    assert find_encoder(str(path)).size == 3


def test_a_network_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    with pytest.raises(ModelFileError, match=r"endless.onnx cannot be used: .* took longer than \d"):
        find_encoder(str(endless(tmp_path / "endless.onnx")))


def test_a_network_that_asks_for_a_terabyte_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"huge.onnx cannot be used: .* needed more memory than is free"):
        find_encoder(str(huge(tmp_path / "huge.onnx")))


def test_what_is_no_network_is_said_by_who_loads_it(tmp_path: Path) -> None:
    path = of_means(tmp_path / "sound.onnx")
    for content in (b"", b"no network", path.read_bytes()[:50]):
        (tmp_path / "bad.onnx").write_bytes(content)
        trial.check_onnx(tmp_path / "bad.onnx")
        with pytest.raises(ModelFileError, match=r"bad.onnx cannot be"):
            find_encoder(str(tmp_path / "bad.onnx"))
