"""Exported networks in onnxruntime against the model, and what is skipped."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from autoencode import (
    Autoencoder,
    ConfigError,
    MissingExtraError,
    ModelConfig,
    ModelFileError,
    OutputError,
    Preprocessing,
    export,
    export_onnx,
)
from autoencode.models.detail import Refinement

SIZE = Preprocessing(16, 32, "pad", (1, 2, 3))
IMAGES = torch.rand(5, 3, 16, 32, generator=torch.Generator().manual_seed(7))


def build(kind: str, network: str, batch_norm: bool) -> Autoencoder:
    torch.manual_seed(0)
    config = ModelConfig(kind, 5, network, (4, 8), batch_norm)  # type: ignore[arg-type]
    model = Autoencoder(config, SIZE)
    for parameter in model.parameters():  # what starts at zero would hide that something is missing
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def run(path: Path, **inputs: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {k: v.numpy() for k, v in inputs.items()}), strict=True))


@pytest.mark.parametrize(
    ("kind", "network", "batch_norm"), [("autoencoder", "paper", False), ("vae", "residual", True)]
)
def test_exported_networks_do_what_the_model_does(
    kind: str, network: str, batch_norm: bool, tmp_path: Path
) -> None:
    model = build(kind, network, batch_norm)
    model.digest = "abc"
    files = export_onnx(model, tmp_path / "onnx")
    assert [file.path.name for file in files] == ["encoder.onnx", "decoder.onnx", "autoencoder.onnx"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(file.path for file in files)
    encoder, decoder, both = (file.path for file in files)

    mean, log_variance = model.encode_distribution(IMAGES)
    encoded = run(encoder, images=IMAGES)
    assert list(encoded) == (["code"] if kind == "autoencoder" else ["mean", "log_variance"])
    for found, expected in zip(encoded.values(), (mean, log_variance), strict=False):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    codes = 30 * torch.randn(2, 5, generator=torch.Generator().manual_seed(1))  # far outside, to be clipped
    decoded = run(decoder, code=codes)["images"]
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    np.testing.assert_allclose(decoded, model.decode(codes), atol=1e-4)
    np.testing.assert_allclose(
        run(both, images=IMAGES)["reconstruction"], model.reconstruct(IMAGES), atol=1e-5
    )
    assert max(file.largest_difference for file in files) < 1e-4

    proto = onnx.load(encoder)
    onnx.checker.check_model(proto)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["model_sha256"] == "abc"
    assert Preprocessing.from_json(json.loads(metadata["preprocessing"])) == SIZE
    assert metadata["images"].startswith("RGB, float32, 0 to 1")


@pytest.mark.parametrize("detail", [None, (0.6, 0.2)])
def test_either_decoder_is_exported_as_the_model_decodes(
    detail: tuple[float, float] | None, tmp_path: Path
) -> None:
    model = build("autoencoder", "residual", False)
    model.sharp_decoder = copy.deepcopy(model.decoder)
    model.sharp_decoder.last_weight.data.mul_(3)
    if detail is not None:
        model.sharp_decoder.detail = torch.tensor(detail)
        model.sharp_decoder.refinement = refinement = Refinement().eval()
        torch.nn.init.normal_(refinement.last.weight, std=0.1)
    decoded = []
    for name in ("sharp", "faithful"):
        export_onnx(model, tmp_path / name, decoder=name)  # type: ignore[arg-type]
        decoded.append(run(tmp_path / name / "autoencoder.onnx", images=IMAGES)["reconstruction"])
        np.testing.assert_allclose(decoded[-1], model.reconstruct(IMAGES, name), atol=1e-5)  # type: ignore[arg-type]
    assert np.abs(decoded[0] - decoded[1]).max() > 0.01


def test_a_file_that_differs_from_the_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("autoencoder", "paper", False)
    right = export._exported

    def wrong(
        network: export.NamedNetwork, example: tuple[torch.Tensor, ...], metadata: dict[str, str]
    ) -> bytes:
        other = type(network)(build("autoencoder", "paper", False))
        other.model.to_mean.bias.data.add_(0.01)
        return right(other, example, metadata)

    monkeypatch.setattr(export, "_exported", wrong)
    with pytest.raises(ModelFileError, match=r"encoder.onnx would differ from the model by 0.01"):
        export_onnx(model, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnxscript", "onnxruntime"])
def test_without_the_optional_part_the_command_that_installs_it_is_named(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(torch.onnx, "export", pytest.fail)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[onnx\]'"):
        export_onnx(build("autoencoder", "paper", False), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_name_and_a_network_too_large_for_onnx_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("autoencoder", "paper", False)
    with pytest.raises(ConfigError, match="but three files are written"):
        export_onnx(model, tmp_path / "model.onnx")
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="up to 2 GB"):
        export_onnx(model, tmp_path / "onnx")


def test_a_folder_of_other_files_is_rejected(tmp_path: Path, photos: Path) -> None:
    model = build("autoencoder", "paper", False)
    with pytest.raises(OutputError, match="holds other files"):
        export_onnx(model, photos)
    export_onnx(model, tmp_path / "onnx")
    export_onnx(model, tmp_path / "onnx")  # over its own files
