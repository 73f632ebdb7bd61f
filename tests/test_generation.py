"""Generation: what is drawn, that it is reproducible, and what is skipped."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.kid import maximum_mean_discrepancy

from autoencode import (
    Autoencoder,
    ConfigError,
    MissingExtraError,
    ModelConfig,
    OutputError,
    Pack,
    Preprocessing,
    fit_prior,
    generate,
    generation,
    load_model,
    pack_folder,
    save_model,
    walk,
)
from autoencode.generation import LIKENESS, likeness, priors, vary
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_pixels

SIZE = Preprocessing(32, 32)


def build(kind: str = "vae") -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(ModelConfig(kind=kind, code_size=4, widths=(4, 8)), SIZE).eval()  # type: ignore[arg-type]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    (tmp_path / "images").mkdir()
    for seed in range(60):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((32, 32)).save(tmp_path / "images" / f"{seed}.png")
    return pack_folder(tmp_path / "images", tmp_path / "pack", SIZE, workers=1)


def test_images_are_the_decoded_codes_and_the_same_seed_gives_the_same() -> None:
    model = build()
    made = generate(model, 5, seed=3)
    assert made.prior == "normal"
    np.testing.assert_array_equal(made.pixels, to_pixels(model.decode(made.codes)))
    assert torch.equal(generate(model, 5, seed=3).codes, made.codes)
    assert not torch.equal(generate(model, 5, seed=4).codes, made.codes)


def test_images_are_of_the_decoder_that_was_asked_for(tmp_path: Path) -> None:
    model = build()
    model.sharp_decoder = build().decoder
    with torch.no_grad():
        model.sharp_decoder.last_weight.add_(0.1)
    for draw in (partial(generate, model, 5, tmp_path / "out"), partial(walk, model, frames=5)):
        for name in ("sharp", "faithful"):
            made = draw(decoder=name)
            np.testing.assert_array_equal(made.pixels, to_pixels(model.decode(made.codes, name)))
        assert not np.array_equal(made.pixels, draw().pixels)
    with pytest.raises(ConfigError, match="decoder"):
        generate(model, 1, tmp_path / "none", decoder="soft")  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["autoencoder", "vae"])
def test_a_fitted_mixture_is_the_default_and_survives_the_model_file(
    kind: str, pack: Pack, tmp_path: Path
) -> None:
    model = build(kind)
    mixture = fit_prior(model, pack)
    save_model(tmp_path / "model.safetensors", model, {})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.prior is not None
    assert torch.equal(loaded.prior.means, mixture.means)
    made = generate(loaded, 6)
    assert made.prior == "mixture"
    assert torch.equal(made.codes, generate(model, 6).codes)


def test_the_mixture_of_a_plain_autoencoder_lies_on_its_codes(pack: Pack) -> None:
    model = build("autoencoder")
    fit_prior(model, pack)
    codes = model.encode(torch.from_numpy(pack.pixels(pack.rows())).permute(0, 3, 1, 2) / 255)
    drawn = generate(model, 2000).codes
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.5 * codes.std().item())


def test_files_are_written_and_a_second_smaller_result_leaves_none_of_the_first(tmp_path: Path) -> None:
    generate(build(), 5, tmp_path / "out")
    generate(build(), 3, tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3
    assert (tmp_path / "out" / "grid.png").exists()


def test_a_walk_is_an_animation_of_decoded_codes(tmp_path: Path) -> None:
    made = walk(build(), tmp_path / "walk.gif", frames=12)
    assert made.pixels.shape == (12, 32, 32, 3)
    with Image.open(tmp_path / "walk.gif") as animation:
        assert animation.format == "GIF"


def test_what_cannot_be_generated_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain autoencoder"):
        generate(build("autoencoder"), prior="normal")
    with pytest.raises(ConfigError, match="has no mixture"):
        generate(build("autoencoder"))
    with pytest.raises(ConfigError, match="temperature"):
        generate(build(), temperature=-1)
    with pytest.raises(ConfigError, match="at least 1"):
        generate(build(), 0)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="Choose another"):
        generate(build(), 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_variations_are_decoded_codes_around_the_one_given() -> None:
    model = build()
    code = generate(model, 1, prior="normal").codes[0]
    made = vary(model, code, 3, amount=0.2, prior="normal", seed=1)
    np.testing.assert_array_equal(made.pixels, to_pixels(model.decode(made.codes)))
    again = vary(model, code, 3, amount=0.2, prior="normal", seed=1)
    assert torch.equal(made.codes, again.codes)
    assert not torch.equal(made.codes, vary(model, code, 3, amount=0.2, prior="normal", seed=2).codes)
    torch.testing.assert_close(vary(model, code, 2, amount=0.0, prior="normal").codes, code.expand(2, -1))
    for wrong in ({"count": 0}, {"amount": 1.5}):
        with pytest.raises(ConfigError, match="Variations need"):
            vary(model, code, **wrong)  # type: ignore[arg-type]


def test_a_model_has_the_priors_it_can_generate_from() -> None:
    assert priors(build("autoencoder")) == []
    assert priors(build())[-1] == "normal"
    for name in priors(build()):
        assert generate(build(), 1, prior=name).prior == name


def test_the_distance_of_samples_is_a_multiple_of_that_of_reconstructions(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def colours(images: torch.Tensor) -> np.ndarray:
        vectors = torch.cat([torch.ones(len(images), 1), images.mean((2, 3))], dim=1)
        return torch.nn.functional.normalize(vectors).numpy()

    monkeypatch.setattr(BACKBONE, "descriptors", colours)
    monkeypatch.setattr(generation, "_LEAST_LIKENESS_IMAGES", 4)
    monkeypatch.setattr(generation, "_LEAST_DISTANCE", 1e-3)
    model = build("autoencoder")
    monkeypatch.setattr(model, "reconstruct", lambda images: 0.2 * images)
    fit_prior(model, pack)
    real = torch.from_numpy(pack.pixels(pack.rows("test"))).permute(0, 3, 1, 2) / 255
    made = torch.from_numpy(generate(model, len(real)).pixels).permute(0, 3, 1, 2) / 255

    def apart(images: torch.Tensor) -> float:
        # Twice as long: 2 is the root of 4 values.
        a, b = (torch.from_numpy(2 * colours(one)).double() for one in (real, images))
        return float(maximum_mean_discrepancy(*((x @ y.T / 4 + 1) ** 3 for x, y in ((a, a), (a, b), (b, b)))))

    restored = apart(0.2 * real)
    assert restored > 1e-3
    assert model.provenance[LIKENESS] == {"mixture": pytest.approx(apart(made) / restored, rel=1e-3)}
    # Reconstructions that are nearer than `_LEAST_DISTANCE` are no measure for samples.
    monkeypatch.setattr(generation, "_LEAST_DISTANCE", 2 * restored)
    assert likeness(model, pack) == {"mixture": pytest.approx(apart(made) / (2 * restored), rel=1e-3)}


def test_a_model_that_has_not_learned_enough_says_so_with_every_sample() -> None:
    model = build()
    assert generate(model, 2).note is None
    model.provenance = {LIKENESS: {"normal": 1.9}}
    assert generate(model, 2).note is None
    model.provenance = {LIKENESS: {"normal": 8.0}}
    note = generate(model, 2).note
    assert note is not None
    assert "has not learned enough to generate from N(0, I): its samples are 8.0 times as far" in note


def test_a_prior_is_fitted_where_the_network_that_judges_it_is_not_installed(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(images: object) -> None:
        raise MissingExtraError("", "Features")

    monkeypatch.setattr(BACKBONE, "descriptors", missing)
    monkeypatch.setattr(generation, "_LEAST_LIKENESS_IMAGES", 4)
    model = build()
    fit_prior(model, pack)
    assert model.prior is not None
    assert LIKENESS not in model.provenance
