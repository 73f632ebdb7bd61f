"""Models in files: one safetensors file with all that a model needs to be used on another machine.

That is weights, prior, the normal images of its training, settings, preprocessing and provenance.

`write_tensors` and `read_tensors` are the format of checkpoints and classifiers, too. Reading never
unpickles. safetensors checks that every tensor lies within the file but would not notice a flipped byte: the
file also has the sha256 of its content, which is checked on every read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from autoencode.atomic import atomic_file, parse_json
from autoencode.data.preprocessing import Preprocessing
from autoencode.errors import AutoencodeError, ConfigError, ModelFileError, other_version
from autoencode.models.autoencoder import Autoencoder, Kept
from autoencode.models.bundled import BUNDLED_PATH, path_of_model
from autoencode.models.detail import Refinement
from autoencode.models.networks import ModelConfig
from autoencode.models.priors import GaussianMixture
from autoencode.models.restorer import Restorer
from autoencode.untrusted import check_file

if TYPE_CHECKING:
    from autoencode.models.image_model import ImageModel

# Types that are written. Others are rejected: torch lacks operations for some of them.
_TYPES = (torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8)


def write_tensors(
    path: Path, kind: str, version: int, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> str:
    """Write a file, whole or not at all.

    Args:
        path: the file.
        kind: its kind, for instance "model"; checked when it is read.
        version: version of the format of `tensors` and `content`.
        tensors: tensors by name, on any device.
        content: values that JSON can hold.

    Returns:
        The sha256 of kind, version, tensors and content, which is also kept in the file.

    Raises:
        OutputError: the file cannot be written; an earlier one is unchanged.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**content, "kind": kind, "version": version}
    digest = _digest(described, stored)
    # One key only: safetensors writes several in no fixed order, and equal models are to be equal files.
    metadata = {"autoencode": _text({**described, "sha256": digest})}
    with atomic_file(path) as file:
        try:
            # Unlike save(), without a copy in memory.
            safetensors.torch.save_file(stored, file.name, metadata)
        except safetensors.SafetensorError as err:  # an error of the system, such as a full disk
            raise OSError(str(err)) from err
    return digest


def read_tensors(
    path: Path,
    kind: str,
    version: int,
    error: type[AutoencodeError],
    advice: str = "Restore it from a copy.",
    remake: str = "Train again.",
    earlier: Collection[int] = (),
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read a file that `write_tensors` wrote.

    Args:
        path: the file.
        kind: the kind it must have.
        version: the version it must have.
        error: the class of error to raise.
        advice: a sentence on what to do about a damaged file.
        remake: a sentence on what to do about a file of an earlier version.
        earlier: versions that can be read as well.

    Returns:
        The tensors, the content, and the digest.

    Raises:
        AutoencodeError: of class `error`: there is no such file, or it is of another kind, damaged, or of
            another version.
    """
    if not path.is_file():
        raise error(f"No {kind} file at {path}.")
    if not os.access(path, os.R_OK):
        raise error(f"Could not read {path}: permission denied. Let its owner open it to you.")
    try:
        check_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError, ValueError) as err:
        raise error(f"{path} is not a {kind} file, or is cut short or damaged ({err}). {advice}") from err
    content = _content(path, kind, metadata, error)
    # Before anything else is read: the names and types below are those of this version.
    if content["version"] not in (version, *earlier):
        raise error(other_version(path, content["version"], version, remake))
    if odd := [name for name, tensor in tensors.items() if tensor.dtype not in _TYPES]:
        raise error(f"{path} is not a {kind} file: {odd[0]} is of type {tensors[odd[0]].dtype}.")
    stated = content.pop("sha256", None)
    digest = _digest(content, tensors)
    if digest != stated:
        raise error(f"{path} is damaged: its content does not match its sha256. {advice}")
    return tensors, content, digest


def kind_of(path: Path) -> str | None:
    """Return the kind of a file that `write_tensors` wrote, unchecked; None for any other path."""
    try:
        check_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            kind = parse_json((file.metadata() or {})["autoencode"])["kind"]
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    return kind if isinstance(kind, str) else None


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
        flat = tensor.reshape(-1)
        # The only value of a tensor may have a stride of 0, which torch does not view as bytes.
        flat = flat.as_strided(flat.shape, (1,))
        digest.update(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under names with a prefix, by which several sets share a file."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, under their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


MODEL_NAME = "model.safetensors"
# Sharp decoders may be refined from 5 on; 4 may have normal images, 3 a sharp decoder, and a file of 2 is one
# without; 1 had other names for settings.
FORMAT_VERSION, _READABLE = 5, (2, 3, 4)
SHARP = "sharp_decoder."  # before the names of the weights of that decoder, where there is one
# Before the names of other tensors; no weight has a slash in its name.
PRIOR, REFERENCE = "prior/", "reference/"


# Files by which folders of other kinds are known, and what to do with those.
_OTHER_FOLDERS = {
    "pack.json": ("a pack", "Train on it first: autoencode train"),
    "classifier.safetensors": ("a classifier", "It is for: autoencode classify"),
}


def build_model(config: ModelConfig, preprocessing: Preprocessing) -> ImageModel:
    """Return a new model of the kind that its settings ask for, with weights of torch's random numbers.

    Raises:
        ConfigError: the images cannot have that size.
    """
    return (Restorer if config.kind == "restorer" else Autoencoder)(config, preprocessing)


def save_model(path: str | Path, model: ImageModel, provenance: Mapping[str, Any]) -> str:
    """Write a model to one file, whole or not at all, and return its sha256.

    Args:
        path: the file.
        model: the model, with its prior and its reference if it has them; every weight must be finite.
        provenance: its data, settings and results, as JSON can hold them.

    Raises:
        ModelFileError: a weight is not finite; nothing is written.
        OutputError: the file cannot be written; an earlier one is unchanged.
    """
    path = Path(path)
    weights, content = parts_of_model(path, model, provenance)
    if isinstance(model, Autoencoder) and model.reference is not None:
        weights |= with_prefix(REFERENCE, model.reference.tensors)
        content["reference"] = dict(model.reference.content)
    return write_tensors(path, "model", FORMAT_VERSION, weights, content)


def parts_of_model(
    path: Path, model: ImageModel, provenance: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the content of a model for a file at `path`, without its reference.

    `model_of_parts` is the inverse.

    Raises:
        ModelFileError: a weight is not finite.
    """
    weights = model.state_dict()
    if isinstance(model, Autoencoder) and model.prior is not None:
        weights = {**weights, **with_prefix(PRIOR, model.prior.tensors())}
    check_finite(path, weights)
    content = {
        "config": model.config.to_json(),
        "preprocessing": model.preprocessing.to_json(),
        "provenance": dict(provenance),
    }
    return weights, content


def load_model(
    path: str | Path, device: str | torch.device = "cpu", *, trainable: bool = False
) -> Autoencoder:
    """Load an autoencoder, ready to encode and decode.

    Args:
        path: a model file, or the run folder that holds one.
        device: for its weights: "cpu", "cuda", ...
        trainable: let gradients reach the weights, as for a head on `model.posterior(images).mean` that is
            trained with them. Otherwise the weights are frozen. Either way the model is in eval mode.

    Raises:
        ModelFileError: there is no such file, or it is no autoencoder, damaged, or of another version.
    """
    model = load_any(path, device)
    if not isinstance(model, Autoencoder):
        raise ModelFileError(
            f"{path} is a restorer: it restores images with `autoencode restore`, and has no codes. Give a "
            "model trained by another preset, such as best."
        )
    return model.requires_grad_(trainable)


def load_restorer(path: str | Path | None = None, device: str | torch.device = "cpu") -> Restorer:
    """Load a restorer, ready to restore images.

    Args:
        path: a model file, or the run folder that holds one. None and "bundled", if no file is so called,
            are the bundled restorer, which was trained on synthetic images (`benchmarks/drawn_images.py`).
        device: for its weights: "cpu", "cuda", ...

    Raises:
        ModelFileError: there is no such file, or it is no restorer, damaged, or of another version.
    """
    model = load_any(BUNDLED_PATH if path is None else path, device)
    if not isinstance(model, Restorer):
        raise ModelFileError(
            f"{path} is no restorer. Train one with `autoencode train IMAGES --preset restore`; the results "
            "of an autoencoder are written by `autoencode reconstruct`."
        )
    return model


def load_any(path: str | Path, device: str | torch.device = "cpu") -> ImageModel:
    """Load a model of any kind; arguments and errors are those of `load_restorer`."""
    path = path_of_model(path)
    if path.is_dir():
        folder, path = path, path / MODEL_NAME
        if not path.is_file():
            for name, (kind, use) in _OTHER_FOLDERS.items():
                if (folder / name).is_file():
                    raise ModelFileError(f"{folder} is {kind}, not a model. {use} {shlex.quote(str(folder))}")
            # The folder that was trained on, in place of the run, is the likeliest mistake.
            run = Path("runs") / folder.resolve().name
            text = "If it is a folder of images, train on it first: autoencode train"
            text = f"{text} {shlex.quote(str(folder))}"
            if (run / MODEL_NAME).is_file():
                text = f"Did you mean {run}?"
            raise ModelFileError(f"No model in {folder}. {text}")
    if not path.is_file():
        raise ModelFileError(f"No model file at {path}. Give a model file or a run folder of `train`.")
    weights, content, digest = read_tensors(path, "model", FORMAT_VERSION, ModelFileError, earlier=_READABLE)
    reference = without_prefix(REFERENCE, weights)
    own = {name: weight for name, weight in weights.items() if not name.startswith(REFERENCE)}
    model = model_of_parts(path, own, content)
    if isinstance(model, Autoencoder) and isinstance(kept := content.get("reference"), dict):
        model.reference = Kept(reference, kept)
    model.digest = digest
    return model.to(device)


def holds_model(path: str | Path) -> bool:
    """Whether a path is for `load_any`, which may reject it by name, and not one of images."""
    path = path_of_model(path)
    named = any((path / name).is_file() for name in (MODEL_NAME, *_OTHER_FOLDERS))
    return named or path.suffix == ".safetensors" or kind_of(path) is not None


def is_like_bundled(config: ModelConfig) -> bool:
    """Whether a network with these settings can start from the weights of the bundled restorer."""
    return config.kind == "restorer" and load_any(BUNDLED_PATH).config == config


def as_model(model: Autoencoder | str | Path) -> Autoencoder:
    """Return a model as it is, or load it from its path.

    Raises:
        ConfigError: the argument is neither a model nor a path.
        ModelFileError: the file cannot be loaded, see `load_model`.
    """
    if isinstance(model, Autoencoder):
        return model
    if not isinstance(model, str | Path):
        raise ConfigError(f"A {type(model).__name__} is no model. Give one from load_model, or its path.")
    return load_model(model)


def model_of_parts(path: Path, weights: Mapping[str, torch.Tensor], content: Mapping[str, Any]) -> ImageModel:
    """Return the model of parts read from `path`, on the CPU, ready to be used.

    Raises:
        ModelFileError: the parts do not fit together, or a value is not finite.
    """
    check_finite(path, weights)
    try:
        # Built without memory first: a file that claims a huge network is rejected by its shapes.
        with torch.device("meta"):
            model = build_model(
                ModelConfig.from_json(content["config"]), Preprocessing.from_json(content["preprocessing"])
            )
            if isinstance(model, Autoencoder) and any(name.startswith(SHARP) for name in weights):
                model.sharp_decoder = copy.deepcopy(model.decoder)
                if f"{SHARP}detail" in weights:  # files made before it existed draw all of it
                    model.sharp_decoder.detail = torch.ones(2)
                if any(name.startswith(f"{SHARP}refinement.") for name in weights):
                    model.sharp_decoder.refinement = Refinement()
        own = {name: weight for name, weight in weights.items() if not name.startswith(PRIOR)}
        _check_types(own, model.state_dict())
        model.load_state_dict(own, assign=True)
        if isinstance(model, Autoencoder):
            model.prior = _prior(without_prefix(PRIOR, weights), model.config.code_size)
        model.provenance = dict(content["provenance"])
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as err:
        raise ModelFileError(f"{path} does not hold a usable model: {err}".splitlines()[0]) from err
    model.requires_grad_(False)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval()


def _check_types(weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Reject weights of another type than the network's, which `load_state_dict(assign=True)` takes."""
    for name in weights.keys() & wanted.keys():
        if weights[name].dtype != wanted[name].dtype:
            raise ValueError(f"{name} is of type {weights[name].dtype}, not {wanted[name].dtype}")


def _prior(tensors: Mapping[str, torch.Tensor], code_size: int) -> GaussianMixture | None:
    if not tensors:
        return None
    prior = GaussianMixture(**tensors)
    if prior.code_size != code_size:
        raise ConfigError(f"its prior is of codes of {prior.code_size} values, not {code_size}.")
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise ConfigError("its prior is not of float32 values.")
    return prior


def check_finite(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Reject tensors of a file at `path` that hold values which are not finite.

    Raises:
        ModelFileError: there are some.
    """
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ModelFileError(f"{path}: {name} holds values that are not finite; the model is unusable.")
