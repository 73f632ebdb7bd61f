"""Normal images as an ONNX file: onnxruntime and what `NormalImages.measure` says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.outliers.test_normal import COLUMNS, ROWS, normal, part, parts  # noqa: F401 - fixtures

from autoencode import ConfigError, NormalImages, OutputError, export_normal
from autoencode.data.preprocessing import Limits
from autoencode.models.backbones import BACKBONE
from autoencode.outliers.export import Judge
from autoencode.outliers.patches import Picture, read_in_shape, seen_sizes
from autoencode.pixels import to_float


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let normal images be measured in fp32, as the file does, on any hardware."""
    monkeypatch.setattr(BACKBONE, "_fast", {torch.device("cpu"): BACKBONE.network})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(4):
        part(5000 + seed, scratched=seed % 2 == 1).save(folder / f"{seed}.png")
    return [read_in_shape(path, Limits()) for path in sorted(folder.iterdir())]


def inputs(pictures: list[Picture]) -> list[torch.Tensor]:
    return [to_float(np.stack(scale)) for scale in zip(*(one.pixels for one in pictures), strict=True)]


@pytest.mark.parametrize("alike", [True, False])
# Patches in and beyond whole numbers, and an image of over a megapixel, which has a finer grid.
@pytest.mark.parametrize("size", [(ROWS, COLUMNS), (150, 210), (1600, 1000)])
def test_the_graph_judges_as_python_does(
    normal: NormalImages,  # noqa: F811
    pictures: list[Picture],
    size: tuple[int, int],
    alike: bool,
) -> None:
    combination = dataclasses.replace(normal.combination, alike=np.array(float(alike)))
    normal = dataclasses.replace(normal, combination=combination)
    sizes = seen_sizes(*size)
    if size != (ROWS, COLUMNS):
        noise = np.random.default_rng(0)
        pictures = [
            Picture(*size, tuple(noise.integers(0, 256, (*one, 3), np.uint8) for one in sizes))
            for _ in range(2)
        ]
    expected = [normal.measure(one) for one in pictures]
    with torch.inference_mode():
        score, p_value, heat = Judge(normal, sizes)(*inputs(pictures))
    np.testing.assert_allclose(score, [one for one, _ in expected], atol=2e-3, rtol=1e-4)
    np.testing.assert_allclose(heat, [one for _, one in expected], atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(p_value, normal.p_values(score.double().numpy()), atol=1e-6)


def test_the_file_gives_the_same_in_onnxruntime(
    normal: NormalImages,  # noqa: F811
    pictures: list[Picture],
    tmp_path: Path,
) -> None:
    file = export_normal(normal, tmp_path / "onnx")
    assert file.path == tmp_path / "onnx" / "outliers.onnx"
    assert file.largest_difference < 0.01
    assert file.path.stat().st_size < 30e6
    session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    given = {name: one.numpy() for name, one in zip(("small", "large"), inputs(pictures), strict=True)}
    score, p_value, heat = session.run(["score", "p_value", "heat"], given)
    expected = [normal.measure(one) for one in pictures]
    np.testing.assert_allclose(score, [one for one, _ in expected], atol=2e-3, rtol=1e-4)
    np.testing.assert_allclose(heat, [one for _, one in expected], atol=1e-3, rtol=1e-3)
    metadata = {entry.key: entry.value for entry in onnx.load(file.path).metadata_props}
    assert json.loads(metadata["image_height_width"]) == [ROWS, COLUMNS]
    assert json.loads(metadata["small_and_large_height_width"]) == [
        list(one.shape[2:]) for one in inputs(pictures)
    ]
    assert (
        (score > float(metadata["threshold"])) == (p_value <= float(metadata["false_positive_rate"]))
    ).all()
    assert list(score > float(metadata["threshold"])) == [False, True, False, True]
    (tmp_path / "onnx" / "mine.txt").touch()
    with pytest.raises(OutputError, match="holds other files"):
        export_normal(normal, tmp_path / "onnx")


def test_a_size_of_no_image_is_rejected(normal: NormalImages, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="no images of 0x20 pixels"):
        export_normal(normal, tmp_path / "onnx", (0, 20))
