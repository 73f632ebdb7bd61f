"""Sets of images beside the held-out ones: what a perfect, a blurred, a copying model is found to be."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import laplace
from torch import Tensor

from autoencode import Autoencoder, Estimate, Interval, Pack, Run, fit_prior, generate, load_model
from autoencode.data.loader import random_seed
from autoencode.evaluation.quality import HeldOutImages
from autoencode.evaluation.sets import JUDGES, SETS, Likeness, SetQuality, sampling_note, set_qualities
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_float, to_pixels


def brightness(pixels: np.ndarray) -> np.ndarray:
    """Stands in for the pretrained networks, which take long."""
    means = pixels.mean(axis=(1, 2)) / 255
    return np.concatenate([means, pixels.std(axis=(1, 2)) / 255], axis=1).astype(np.float32)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased MMD² under (x·y / F + 1)³, term by term."""
    k = lambda a, b: (a.astype(float) @ b.T.astype(float) / a.shape[1] + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    within_x, within_y = (k(a, a).sum() - np.trace(k(a, a)) for a in (x, y))
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * k(x, y).mean()


pretrained = BACKBONE.pooled


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for judge in JUDGES:
        monkeypatch.setattr(judge, "pooled", brightness)


@pytest.fixture
def model(trained_vae: Run) -> Autoencoder:
    return load_model(trained_vae.model_path)


def measured(
    model: Autoencoder, pack: Pack, restore: object = None, training: bool = True
) -> dict[str, SetQuality]:
    images = HeldOutImages(pack, pack.rows("test"), ())
    rows = pack.training_rows() if training else None
    restorers = {"reconstructions": restore or model.reconstruct}
    found = set_qualities(
        model,
        images,
        rows,
        restorers,  # type: ignore[arg-type]
        ["normal"],
        [],
        lambda stage, total: lambda done: None,
    )
    assert found is not None
    return found


def test_a_perfect_model_has_every_image_among_the_real_ones(model: Autoencoder, tiny_pack: Pack) -> None:
    found = measured(model, tiny_pack, lambda images: images)["reconstructions"]
    for likeness in found.by.values():
        assert (likeness.precision.value, likeness.recall.value) == (1, 1)
        assert likeness.kid.value < 0
    assert found.sharpness is not None
    assert found.sharpness.value == 1


def test_sharpness_is_the_ratio_of_the_median_variances_of_scipys_laplacian(
    model: Autoencoder, tiny_pack: Pack
) -> None:
    faded = measured(model, tiny_pack, lambda images: images / 2)["reconstructions"]
    pixels = tiny_pack.pixels(tiny_pack.rows("test"))

    def usual(images: np.ndarray) -> float:
        grey = images.mean(axis=3, dtype=np.float64) / 255
        return float(np.median([laplace(one)[1:-1, 1:-1].var() for one in grey]))

    expected = usual(to_pixels(to_float(pixels) / 2)) / usual(pixels)
    assert faded.sharpness is not None
    assert faded.sharpness.value == pytest.approx(expected, rel=1e-4)
    assert expected < 0.5


def test_distances_are_those_between_the_sets_they_name(trained_vae: Run, tiny_pack: Pack) -> None:
    model, images = (
        load_model(trained_vae.model_path),
        HeldOutImages(tiny_pack, tiny_pack.rows("train")[:12], ()),
    )
    fit_prior(model, tiny_pack)
    done: dict[str, list[int]] = {}
    others = tiny_pack.rows("train")[12:24]
    restorers = {"reconstructions": model.reconstruct}

    def counter(stage: str, total: int) -> Callable[[int], None]:
        done[stage] = [total]
        return done[stage].append

    found = set_qualities(model, images, others, restorers, ("normal", "mixture"), [], counter)
    assert found is not None
    assert list(found) == ["training_images", "reconstructions", "samples_normal", "samples_mixture"]
    assert all(total == sum(parts) for total, *parts in done.values())
    clean = tiny_pack.pixels(images.rows)
    seed = random_seed("evaluate", 0)
    sets = {
        "training_images": tiny_pack.pixels(others),
        "reconstructions": to_pixels(model.reconstruct(to_float(clean))),
        "samples_normal": generate(model, 12, prior="normal", seed=seed).pixels,
        "samples_mixture": generate(model, 12, prior="mixture", seed=seed).pixels,
    }
    for name, pixels in sets.items():
        expected = kernel_distance(brightness(clean), brightness(pixels))
        for judge in JUDGES:
            kid = found[name].by[judge.name].kid
            assert kid.value == pytest.approx(expected, rel=1e-6, abs=1e-9)
            assert kid.count == 12
    without = set_qualities(model, images, None, {}, (), [], counter)
    assert without == {}


def test_the_features_of_a_distance_are_those_of_the_pretrained_network(
    model: Autoencoder, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BACKBONE, "pooled", pretrained)
    images = HeldOutImages(tiny_pack, tiny_pack.rows("train")[:6], ())
    restorers = {"reconstructions": model.reconstruct}
    found = set_qualities(model, images, None, restorers, (), [], lambda stage, total: lambda done: None)
    assert found is not None
    clean = tiny_pack.pixels(images.rows)
    expected = kernel_distance(pretrained(clean), pretrained(to_pixels(model.reconstruct(to_float(clean)))))
    kid = found["reconstructions"].by["EfficientNet-Lite0"].kid
    assert kid.value == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_model_that_copies_its_training_images_is_found_to(
    model: Autoencoder, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(tiny_pack.rows("test"))
    copies = tiny_pack.pixels(tiny_pack.training_rows()[:count])

    def pixels_as_codes(images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 8).flatten(1)

    monkeypatch.setattr(model, "encode", pixels_as_codes)

    drawn = [copies]
    monkeypatch.setattr(model, "decode", lambda codes, decoder="sharp": to_float(drawn[0]))
    found = measured(model, tiny_pack, lambda images: images)
    memorised = found["samples_normal"].memorised
    assert memorised is not None
    assert memorised.value == 1
    assert found["reconstructions"].memorised is None
    # Held-out images in place of samples are as near as held-out images are.
    drawn[0] = tiny_pack.pixels(tiny_pack.rows("test"))
    again = measured(model, tiny_pack, lambda images: images)["samples_normal"].memorised
    assert again is not None
    assert again.value == 0.5
    alone = measured(model, tiny_pack, lambda images: images, training=False)
    assert alone["samples_normal"].memorised is None


def quality(kid: float, reach: float = 0.01) -> SetQuality:
    share = Estimate(0.5, Interval(0.4, 0.6), 9)
    distance = Estimate(kid, Interval(kid - reach, kid + reach), 9)
    return SetQuality({"judge": Likeness(distance, share, share)}, None, None)


def test_samples_much_further_from_real_images_than_reconstructions_are_said_to_be() -> None:
    def note(samples: float, reach: float = 0.01, restored: float = 0.2) -> str | None:
        found = {"reconstructions": quality(restored, reach), "samples_normal": quality(samples)}
        return sampling_note(found, "normal")

    assert note(0.3) is None
    assert "has not learned enough to generate from N(0, I): its samples are 4.0 times as far" in str(
        note(0.8)
    )
    assert note(0.8, reach=0.3) is None
    # Reconstructions that are next to nothing away are no measure for samples.
    assert note(0.15, restored=0.02) is None
    assert "3.0 times as far" in str(note(0.3, restored=0.02))
    assert "8.0 times as far" in str(note(0.8, reach=0.03, restored=0.02))


def test_what_the_sharp_decoder_makes_is_compared_beside_what_the_faithful_one_makes(
    model: Autoencoder, tiny_pack: Pack
) -> None:
    alone = measured(model, tiny_pack, lambda images: model.reconstruct(images, "faithful"))
    model.sharp_decoder = copy.deepcopy(model.decoder)
    with torch.no_grad():
        model.sharp_decoder.last_weight.mul_(2)
    images = HeldOutImages(tiny_pack, tiny_pack.rows("test"), ())
    restorers = {
        "reconstructions": lambda images: model.reconstruct(images, "faithful"),
        "reconstructions_sharp": model.reconstruct,
    }
    rows, notes = tiny_pack.training_rows(), list[str]()
    found = set_qualities(
        model, images, rows, restorers, ["normal"], notes, lambda stage, total: lambda done: None
    )
    assert found is not None
    assert found["samples_normal"] == alone["samples_normal"]
    codes = generate(model, len(images.rows), prior="normal", seed=random_seed("evaluate", 0)).codes
    real, made = (
        brightness(pixels) for pixels in (tiny_pack.pixels(images.rows), to_pixels(model.decode(codes)))
    )
    kid = found["samples_normal_sharp"].by["open_nsfw"].kid
    assert kid.value == pytest.approx(kernel_distance(real, made), rel=1e-6)
    assert found["samples_normal_sharp"].memorised is not None
    assert set(SETS) > set(found)
