"""Encoding and decoding: shapes, ranges, batches, and what is skipped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencode import Autoencoder, ConfigError, ImageError, ModelConfig, Preprocessing

SIZE = Preprocessing(32, 48)


def build(kind: str = "autoencoder", **settings: object) -> Autoencoder:
    torch.manual_seed(0)
    config = ModelConfig(kind=kind, code_size=6, widths=(4, 8), **settings)  # type: ignore[arg-type]
    return Autoencoder(config, SIZE).eval()


@pytest.mark.parametrize("network", ["paper", "residual"])
@pytest.mark.parametrize("kind", ["autoencoder", "vae"])
@pytest.mark.parametrize("count", [0, 1, 130])
def test_codes_are_float32_vectors_and_decode_to_images_in_range(kind: str, network: str, count: int) -> None:
    model = build(kind, network=network)
    codes = model.encode(torch.rand(count, 3, 32, 48))
    assert (codes.shape, codes.dtype) == ((count, 6), torch.float32)
    images = model.decode(100 * codes)
    assert (images.shape, images.dtype) == ((count, 3, 32, 48), torch.float32)
    assert count == 0 or (images.min() >= 0 and images.max() <= 1)


def test_encoding_in_batches_gives_what_encoding_one_by_one_gives() -> None:
    model, images = build("vae", batch_norm=True), torch.rand(200, 3, 32, 48)
    one_by_one = torch.cat([model.encode(image[None]) for image in images])
    torch.testing.assert_close(model.encode(images), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["paper", "residual"])
def test_pieces_that_fit_the_cache_give_what_one_pass_gives(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = build("vae", network=network), torch.rand(20, 3, 32, 48)
    for parameter in model.parameters():  # residual networks start at zero
        parameter.data = 0.1 * torch.randn_like(parameter)
    passes: list[int] = []
    model.encoder.register_forward_hook(lambda module, given, made: passes.append(len(given[0])))
    model.decoder.register_forward_hook(lambda module, given, made: passes.append(len(given[0])))
    widest = 4 * 32 * 48 // (16 if network == "residual" else 1)
    monkeypatch.setattr("autoencode.models.autoencoder.CPU_LAYER_VALUES", 8 * widest)
    found = model.encode_distribution(images)
    decoded = model.decode(found.mean)
    assert passes == [8, 8, 4, 8, 8, 4]
    with torch.inference_mode():
        output = model(images)
    torch.testing.assert_close(found.mean, output.posterior.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.log_variance, output.posterior.log_variance, rtol=0, atol=1e-4)
    torch.testing.assert_close(decoded, output.images.clamp(0, 1), rtol=0, atol=1e-4)


def test_noise_moves_the_code_by_its_standard_deviations() -> None:
    model, images = build("vae"), torch.rand(2, 3, 32, 48)
    noise = torch.randn(2, 6)
    mean, log_variance = model.encode_distribution(images)
    assert log_variance is not None
    expected = model.decoder(mean + log_variance.exp().sqrt() * noise)
    torch.testing.assert_close(model(images, noise).images, expected)


def test_a_plain_code_has_no_variance_and_a_gaussian_one_has() -> None:
    images = torch.rand(1, 3, 32, 48)
    assert build().encode_distribution(images).log_variance is None
    assert build("vae").encode_distribution(images).log_variance is not None


def test_reconstruct_is_decode_of_encode() -> None:
    model, images = build(), torch.rand(3, 3, 32, 48)
    assert torch.equal(model.reconstruct(images), model.decode(model.encode(images)))


def test_files_are_read_at_the_size_of_the_model(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = build().read([tmp_path / "a.png", str(tmp_path / "a.png")])
    assert torch.equal(images[1], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    assert build().read([]).shape == (0, 3, 32, 48)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.png"):
        build().read(tmp_path / "a.png")


@pytest.mark.parametrize(
    "images",
    [torch.rand(1, 3, 48, 32), torch.rand(1, 1, 32, 48), torch.rand(2, 32, 48, 3)],
)
def test_images_of_another_shape_or_type_are_rejected(images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"float \(B, 3, 32, 48\)"):
        build().encode(images)


def test_codes_of_another_size_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"\(B, 6\)"):
        build().decode(torch.zeros(1, 7))


def test_a_size_that_cannot_be_halved_often_enough_is_rejected_with_the_multiple_needed() -> None:
    with pytest.raises(ConfigError, match="multiple of 32"):
        Autoencoder(ModelConfig(widths=(4,) * 5), Preprocessing(48, 48))


@pytest.mark.parametrize("wrong", [{"kind": "gan"}, {"code_size": 0}, {"widths": ()}, {"widths": (8, 0)}])
def test_a_network_that_cannot_be_built_is_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ModelConfig(**wrong)  # type: ignore[arg-type]


def test_a_configuration_survives_json() -> None:
    config = ModelConfig("vae", 12, "residual", (3, 5), True)
    assert ModelConfig.from_json(config.to_json() | {"widths": [3, 5]}) == config
