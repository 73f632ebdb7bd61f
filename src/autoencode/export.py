"""A model as ONNX files that other programs run, each checked against torch before it is written.

Shapes: B batch, D code size. Images are (B, 3, H, W) in [0, 1], codes (B, D); B is free.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from torch import Tensor, nn

from autoencode.atomic import check_output, make_folder, names_in, write_bytes
from autoencode.configuration import DecoderName
from autoencode.errors import (
    VERSION,
    ConfigError,
    MissingExtraError,
    ModelFileError,
    OutputError,
    check_choice,
)
from autoencode.models.model_file import as_model

if TYPE_CHECKING:
    from onnx import ModelProto

    from autoencode.models.autoencoder import Autoencoder


OPSET = 18  # understood by every runtime since the end of 2022
CHECKED_BATCHES = (1, 3)  # the exporter may treat a batch of 1 as a constant

# Largest difference allowed, relative to the largest value if that is above 1: ten times the effect of
# summing in another order, and far below one level of an 8-bit image.
TOLERANCE = 1e-4

MOST_BYTES = 2**31 - 1  # largest size of a protobuf message


@dataclass(frozen=True)
class OnnxFile:
    """One exported network.

    Attributes:
        path: the file.
        inputs: names of its inputs.
        outputs: names of its outputs.
        largest_difference: largest absolute difference from torch's outputs, over the batches checked.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    largest_difference: float


def export_onnx(
    model: Autoencoder | str | Path, folder: str | Path, *, decoder: DecoderName = "sharp"
) -> list[OnnxFile]:
    """Write a model as encoder.onnx, decoder.onnx and autoencoder.onnx.

    | file | inputs | outputs |
    | --- | --- | --- |
    | encoder.onnx | images (B, 3, H, W) | code (B, D); for a VAE mean and log_variance (B, D) |
    | decoder.onnx | code (B, D) | images (B, 3, H, W) |
    | autoencoder.onnx | images (B, 3, H, W) | reconstruction (B, 3, H, W); for a VAE that of the mean |

    Images are RGB, float32 in [0, 1]. The metadata of each file describes this, and how an image is resized.
    Each network is run in onnxruntime on 1 and on 3 images and compared with torch.

    Args:
        model: from `load_model`, or its path.
        folder: the output; made here.
        decoder: the decoder of decoder.onnx and autoencoder.onnx, see `Autoencoder.decode`.

    Raises:
        MissingExtraError: the optional part `onnx` is not installed.
        ConfigError: `folder` is named like a file, or the network does not fit into an ONNX file.
        ModelFileError: the outputs of a network in onnxruntime and in torch differ by more than TOLERANCE.
            Nothing is written.
        OutputError: the folder holds other files, or cannot be written to.
    """
    model = as_model(model)
    folder = Path(folder)
    if folder.suffix.lower() == ".onnx":
        raise ConfigError(f"{folder} is named like a file, but three files are written. Give a folder.")
    check_output(folder / f"{_Both.name}.onnx", (".onnx",))
    if names_in(folder) - {f"{network.name}.onnx" for network in (_Encoder, _Decoder, _Both)}:
        raise OutputError(f"{folder} holds other files. Choose another folder for the ONNX files.")
    check_installed()
    # A copy: the caller's model may be on a GPU, or in training.
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    check_choice("decoder", decoder, get_args(DecoderName))
    if decoder == "faithful":
        model.sharp_decoder = None
    size = sum(4 * value.numel() for value in model.state_dict().values())
    if size > MOST_BYTES:
        raise ConfigError(f"This network takes {size / 1e9:.1f} GB; an ONNX file holds up to 2 GB.")
    generator = torch.Generator().manual_seed(0)
    shape = (max(CHECKED_BATCHES), 3, model.preprocessing.height, model.preprocessing.width)
    images = torch.rand(shape, generator=generator)
    codes = model.encode(images)
    exported: list[tuple[OnnxFile, bytes]] = []
    for network, example in ((_Encoder(model), images), (_Decoder(model), codes), (_Both(model), images)):
        exported.append(exported_and_checked(network, (example,), folder, _metadata(model)))
    make_folder(folder)
    for file, content in exported:
        write_bytes(file.path, content)
    return [file for file, _ in exported]


def check_installed() -> None:
    """Reject the export where what it needs is missing.

    Raises:
        MissingExtraError: the optional part `onnx` is not installed.
    """
    if not all(_installed(name) for name in ("onnx", "onnxruntime", "onnxscript")):  # torch needs the last
        raise MissingExtraError("onnx", "Export to ONNX")


def exported_and_checked(
    network: NamedNetwork, examples: tuple[Tensor, ...], folder: Path, metadata: dict[str, str]
) -> tuple[OnnxFile, bytes]:
    """Return a network as the ONNX file to write into a folder, after a comparison with torch.

    Args:
        network: in fp32 on the CPU.
        examples: its inputs, a batch of 3 each.
        folder: where the file will be.
        metadata: what the file says of itself.

    Raises:
        ModelFileError: the outputs in onnxruntime and in torch differ by more than TOLERANCE.
    """
    content = _exported(network, examples, metadata)
    path = folder / f"{network.name}.onnx"
    difference, largest = _compared(network, content, examples)
    if not difference <= TOLERANCE * max(1.0, largest):
        raise ModelFileError(
            f"{path} would differ from the model by {difference:.2g}, in values up to {largest:.2g}. "
            "Nothing was written. Try another version of torch or onnxruntime."
        )
    return OnnxFile(path, network.inputs, network.outputs, difference), content


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


class NamedNetwork(nn.Module):
    """A network to export, with the names of its file, its inputs and its outputs."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _OfModel(NamedNetwork):
    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model


class _Encoder(_OfModel):
    name, inputs = "encoder", ("images",)

    def __init__(self, model: Autoencoder) -> None:
        super().__init__(model)
        self.outputs = ("mean", "log_variance") if model.is_vae else ("code",)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        mean, log_variance = self.model.posterior(images)
        return mean if log_variance is None else (mean, log_variance)


class _Decoder(_OfModel):
    name, inputs, outputs = "decoder", ("code",), ("images",)

    def forward(self, codes: Tensor) -> Tensor:
        return self.model.images_of(codes, "sharp").clamp(0, 1)


class _Both(_OfModel):
    name, inputs, outputs = "autoencoder", ("images",), ("reconstruction",)

    def forward(self, images: Tensor) -> Tensor:
        return self.model.images_of(self.model.posterior(images).mean, "sharp").clamp(0, 1)


def _exported(network: NamedNetwork, examples: tuple[Tensor, ...], metadata: dict[str, str]) -> bytes:
    """Return the network as the content of an ONNX file."""
    from onnx.helper import set_model_props

    with _quiet():
        program = torch.onnx.export(
            network,
            examples,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},) * len(examples),
        )
    assert program is not None
    proto: ModelProto = program.model_proto
    set_model_props(proto, metadata)
    content: bytes = proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide messages for torch's own developers, and the one about the absence of torchvision."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _metadata(model: Autoencoder) -> dict[str, str]:
    return {
        "autoencode": VERSION,
        "model_sha256": model.digest,
        "kind": model.config.kind,
        "code_size": str(model.config.code_size),
        "preprocessing": json.dumps(model.preprocessing.to_json()),
        "images": "RGB, float32, 0 to 1, batch x 3 x height x width",
    }


def _compared(network: NamedNetwork, content: bytes, examples: tuple[Tensor, ...]) -> tuple[float, float]:
    """Return the largest difference between torch and onnxruntime, and the largest value, both absolute."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = largest = np.float32(0)
    for size in CHECKED_BATCHES:
        batches = [example[:size] for example in examples]
        with torch.inference_mode():
            expected = network(*batches)
        tensors: Sequence[Tensor] = [expected] if isinstance(expected, Tensor) else expected
        found = session.run(
            list(network.outputs), dict(zip(network.inputs, (one.numpy() for one in batches), strict=True))
        )
        for ours, theirs in zip((tensor.numpy() for tensor in tensors), found, strict=True):
            # np.maximum keeps a NaN, which must fail the check; Python's max may drop it.
            difference = np.maximum(difference, np.abs(ours - theirs).max())
            largest = np.maximum(largest, np.abs(ours).max())
    return float(difference), float(largest)
