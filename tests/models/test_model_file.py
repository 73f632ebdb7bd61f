"""One file holds the model; whatever else it is given is skipped in one line."""

import copy
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from autoencode import (
    Autoencoder,
    ConfigError,
    GaussianMixture,
    ModelConfig,
    ModelFileError,
    Pack,
    Preprocessing,
    Run,
    load_model,
    save_model,
)
from autoencode.models.detail import Refinement
from autoencode.models.model_file import FORMAT_VERSION, as_model, read_tensors, write_tensors


def build(kind: str = "vae") -> Autoencoder:
    torch.manual_seed(0)
    config = ModelConfig(kind=kind, code_size=6, widths=(4, 8), batch_norm=True)  # type: ignore[arg-type]
    return Autoencoder(config, Preprocessing(32, 48, resize_mode="pad", background=(1, 2, 3))).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_model(tmp_path / "model.safetensors", build(), {"data": "abc"})
    return tmp_path / "model.safetensors"


def test_a_loaded_model_computes_what_the_saved_one_did(path: Path) -> None:
    images = torch.rand(3, 3, 32, 48)
    loaded, saved = load_model(path), build()
    assert (loaded.config, loaded.preprocessing) == (saved.config, saved.preprocessing)
    assert loaded.provenance == {"data": "abc"}
    torch.testing.assert_close(loaded.reconstruct(images), saved.reconstruct(images))
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_a_run_folder_stands_for_the_model_in_it(path: Path) -> None:
    assert load_model(path.parent).digest == load_model(path).digest


def test_a_path_stands_for_its_model_and_what_is_neither_is_rejected(path: Path) -> None:
    model = load_model(path)
    assert as_model(model) is model
    for given in (path, str(path), path.parent):
        assert as_model(given).digest == model.digest
    with pytest.raises(ConfigError, match=r"A Pack is no model\. Give one from load_model, or its path"):
        as_model(Pack.__new__(Pack))  # type: ignore[arg-type]


def test_the_digest_depends_on_the_content_alone(tmp_path: Path) -> None:
    first = save_model(tmp_path / "a", build(), {"data": "abc"})
    assert save_model(str(tmp_path / "b"), build(), {"data": "abc"}) == first
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert save_model(tmp_path / "c", build(), {"data": "abd"}) != first


def test_any_flipped_byte_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(ModelFileError):
            load_model(path)


@pytest.mark.parametrize("length", [0, 5, 8, 100, -1])
def test_a_file_cut_short_is_rejected(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelFileError, match="cut short or damaged"):
        load_model(path)


def test_a_missing_file_a_picture_and_a_pickle_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"No model file at .*none\. Give a model file or a run"):
        load_model(tmp_path / "none")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle")
    with pytest.raises(ModelFileError):
        load_model(tmp_path / "pickle")


def test_a_safetensors_file_of_somebody_else_is_rejected(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "theirs")
    with pytest.raises(ModelFileError, match="not one that autoencode wrote"):
        load_model(tmp_path / "theirs")


def parts_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the content of a model file, as `write_tensors` takes them."""
    tensors, content, _ = read_tensors(path, "model", FORMAT_VERSION, ModelFileError)
    return tensors, {name: value for name, value in content.items() if name not in ("kind", "version")}


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (FORMAT_VERSION + 1, "a newer version of autoencode .*Upgrade: pip install --upgrade autoencode$"),
        (
            1,
            r"an earlier version of autoencode \(format 1; this one reads format \d\)\. Train again\.$",
        ),
    ],
)
def test_a_file_of_another_version_is_rejected_with_what_to_do(
    version: int, message: str, path: Path
) -> None:
    tensors, content = parts_of(path)
    write_tensors(path, "model", version, tensors, content)
    with pytest.raises(ModelFileError, match=f"^{path} was written by {message}"):
        load_model(path)


def test_a_checkpoint_is_not_a_model(tmp_path: Path) -> None:
    write_tensors(tmp_path / "c", "checkpoint", 1, {"a": torch.zeros(1)}, {})
    with pytest.raises(ModelFileError, match="is a checkpoint file; a model file is needed"):
        load_model(tmp_path / "c")


def test_a_configuration_that_names_a_huge_network_is_rejected_before_it_takes_memory(path: Path) -> None:
    tensors, content = parts_of(path)
    content["config"]["code_size"] = 10**9
    write_tensors(path, "model", FORMAT_VERSION, tensors, content)
    with pytest.raises(ModelFileError, match="usable model"):
        load_model(path)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(path: Path) -> None:
    tensors, content = parts_of(path)
    tensors["to_mean.bias"][0] = float("nan")
    write_tensors(path, "model", FORMAT_VERSION, tensors, content)
    with pytest.raises(ModelFileError, match="not finite"):
        load_model(path)
    before, model = path.read_bytes(), build()
    torch.nn.init.constant_(model.to_mean.bias, float("inf"))
    with pytest.raises(ModelFileError, match="not finite"):
        save_model(path, model, {})
    assert path.read_bytes() == before


def test_a_prior_is_kept_and_one_of_other_codes_is_rejected(tmp_path: Path) -> None:
    model, path = build(), tmp_path / "model.safetensors"
    model.prior = GaussianMixture(torch.ones(1), torch.arange(6.0)[None], 2 * torch.eye(6)[None])
    assert save_model(path, model, {}) != save_model(tmp_path / "without", build(), {})
    loaded = load_model(path).prior
    assert loaded is not None
    assert torch.equal(loaded.means, model.prior.means)
    assert torch.equal(loaded.factors, model.prior.factors)
    assert load_model(tmp_path / "without").prior is None
    model.prior = GaussianMixture(torch.ones(1), torch.zeros(1, 5), torch.eye(5)[None])
    save_model(path, model, {})
    with pytest.raises(ModelFileError, match="prior is of codes of 5 values, not 6"):
        load_model(path)


def test_a_prior_with_a_part_missing_is_rejected(tmp_path: Path) -> None:
    model, path = build(), tmp_path / "model.safetensors"
    model.prior = GaussianMixture(torch.ones(1), torch.zeros(1, 6), torch.eye(6)[None])
    save_model(path, model, {})
    tensors, content = parts_of(path)
    del tensors["prior/means"]
    write_tensors(path, "model", FORMAT_VERSION, tensors, content)
    with pytest.raises(ModelFileError, match="usable model"):
        load_model(path)


def test_the_metadata_is_readable_with_safetensors_alone(path: Path) -> None:
    with safetensors.safe_open(path, framework="np") as file:
        content = json.loads(file.metadata()["autoencode"])
    assert content["config"]["code_size"] == 6


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_weights_of_another_type_are_rejected(kind: torch.dtype, path: Path) -> None:
    tensors, content = parts_of(path)
    tensors["to_mean.bias"] = tensors["to_mean.bias"].to(kind)
    write_tensors(path, "model", FORMAT_VERSION, tensors, content)
    with pytest.raises(ModelFileError, match=r"to_mean\.bias is of type"):
        load_model(path)


def test_a_model_file_is_open_to_those_who_may_read_other_new_files(trained: Run, tmp_path: Path) -> None:
    for mode in (0o755, 0o700):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        (folder / "other").write_bytes(b"")
        save_model(folder / "model.safetensors", load_model(trained.model_path), {})
        given = stat.S_IMODE((folder / "model.safetensors").stat().st_mode)
        assert given == stat.S_IMODE((folder / "other").stat().st_mode) & mode & 0o666 | given & 0o600


def test_a_model_file_that_may_not_be_read_is_not_called_damaged(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ModelFileError, match=r"Could not read .*: permission denied"):
        load_model(trained.model_path)


def test_a_sharp_decoder_is_kept_and_a_file_of_the_version_before_is_one_without(tmp_path: Path) -> None:
    model = Autoencoder(ModelConfig(code_size=4, widths=(4, 8)), Preprocessing(16, 16)).eval()
    codes = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    plain = tmp_path / "plain.safetensors"
    save_model(plain, model, {})
    tensors, content = parts_of(plain)
    write_tensors(plain, "model", 2, tensors, content)
    before = load_model(plain)
    assert before.sharp_decoder is None
    assert torch.equal(before.decode(codes), model.decode(codes))
    model.sharp_decoder = copy.deepcopy(model.decoder)
    with torch.no_grad():
        model.sharp_decoder.last_weight.mul_(2)
    save_model(tmp_path / "sharp.safetensors", model, {})
    loaded = load_model(tmp_path / "sharp.safetensors")
    # A file without it is from before a part of the detail could be drawn: all of it is.
    assert loaded.sharp_decoder is not None
    assert loaded.sharp_decoder.detail is None
    assert torch.equal(loaded.decode(codes), loaded.sharp_decoder(codes).clamp(0, 1))
    model.sharp_decoder.detail = torch.tensor([0.25, 0.1])
    save_model(tmp_path / "part.safetensors", model, {})
    part = load_model(tmp_path / "part.safetensors")
    assert not torch.equal(part.decode(codes), loaded.decode(codes))
    assert torch.equal(part.decode(codes), model.decode(codes))
    tensors, content = parts_of(tmp_path / "part.safetensors")
    write_tensors(tmp_path / "before.safetensors", "model", 4, tensors, content)
    assert torch.equal(load_model(tmp_path / "before.safetensors").decode(codes), part.decode(codes))
    model.sharp_decoder.refinement = refinement = Refinement()
    torch.nn.init.normal_(refinement.last.weight, std=0.1)
    save_model(tmp_path / "refined.safetensors", model, {})
    refined = load_model(tmp_path / "refined.safetensors")
    assert not torch.equal(refined.decode(codes), part.decode(codes))
    torch.testing.assert_close(refined.decode(codes), model.decode(codes))
    tensors, content = parts_of(tmp_path / "refined.safetensors")
    del tensors["sharp_decoder.refinement.middle.bias"]
    write_tensors(tmp_path / "damaged.safetensors", "model", FORMAT_VERSION, tensors, content)
    with pytest.raises(ModelFileError, match="does not hold a usable model"):
        load_model(tmp_path / "damaged.safetensors")
    model.sharp_decoder.detail = model.sharp_decoder.refinement = None
    for decoder in ("faithful", "sharp"):
        assert torch.equal(loaded.decode(codes, decoder), model.decode(codes, decoder))
    assert not torch.equal(loaded.decode(codes, "faithful"), loaded.decode(codes, "sharp"))


def test_a_model_says_what_it_is_in_one_line(trained_vae: Run) -> None:
    model = load_model(trained_vae.model_path)
    weights = sum(one.numel() for one in model.parameters())
    assert repr(model) == (
        f"<variational autoencoder: images of 32x32, code of 8, {weights:,} weights, trained on 38 images>"
    )
    assert "Linear" in repr(model.to_mean)  # its parts are those of torch
