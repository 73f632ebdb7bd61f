"""Transfer end to end: what is compared, what is kept, and what it was measured on."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencode import (
    Autoencoder,
    ConfigError,
    MissingExtraError,
    ModelConfig,
    ModelFileError,
    OutputError,
    Preprocessing,
    Run,
    classify,
    load_classifier,
    load_model,
    transfer,
    transfer_learning,
)
from autoencode.data.entries import split_of
from autoencode.embedding import BF16_CODES, EMBEDDINGS, PRETRAINED_LARGE
from autoencode.errors import ImageFolderError
from autoencode.metrics.statistics import wilson_interval
from autoencode.models.backbones import BACKBONE
from autoencode.transfer_learning import fine_tuning, probe
from autoencode.transfer_learning.methods import METHODS, Features, Method, Task


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a moment, and no pretrained features unless a test asks for them."""
    monkeypatch.setattr(fine_tuning, "LEAST_STEPS", 10)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 2)

    def missing(_: object) -> str:
        raise MissingExtraError("", "Pretrained features")

    monkeypatch.setattr(type(BACKBONE), "digest", property(missing))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red, green and blue noise, 20 images each: any encoder distinguishes them."""
    folder = tmp_path_factory.mktemp("colours") / "labelled"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 120, (20, 20, 3), np.uint8)
            pixels[..., channel] += 130
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    torch.manual_seed(0)
    config = ModelConfig(code_size=6, widths=(4, 8))
    return Autoencoder(config, Preprocessing(16, 16)).eval().requires_grad_(False)


def test_a_classifier_that_stands_alone_is_left_with_what_it_was_compared_with(
    model: Autoencoder, colours: Path, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    out = tmp_path / "deep" / "out"
    made = transfer(model, colours, out, progress=lambda *at: seen.append(at))
    assert made.kept in ("code", "layer")
    assert {one.method for one in made.comparison} == {"code", "layer", "from scratch", "pixels", "pca"}
    assert {one.labels_per_class for one in made.comparison} == {10, None}
    assert any("50 labels per class" in note for note in made.notes)
    assert any("Install it: pip install" in note for note in made.notes)
    assert sorted(path.name for path in out.iterdir()) == [
        "classifier.safetensors",
        "comparison.csv",
        "confusion.csv",
        "confusion.png",
    ]
    results = classify(load_classifier(out), colours).results
    assert np.mean([result.label == result.path.parent.name for result in results]) > 0.9
    assert made.classifier.digest == load_classifier(out).digest
    assert {what for what, done, total in seen if done == total} >= {"packing", "encoding"}


def test_the_numbers_are_those_of_the_held_out_images(
    model: Autoencoder, colours: Path, tmp_path: Path
) -> None:
    import hashlib

    made = transfer(model, colours, tmp_path / "out")
    paths = [
        path
        for path in sorted(colours.rglob("*.png"))
        if split_of(hashlib.sha256(path.read_bytes()).hexdigest()) != "train"
    ]
    assert made.held_out_images == len(paths)
    assert made.learned_images == 60 - len(paths)
    names = made.classifier.classes
    expected = np.zeros((3, 3), int)
    for result in classify(made.classifier, paths).results:
        expected[names.index(result.path.parent.name), names.index(result.label)] += 1
    np.testing.assert_array_equal(made.confusion, expected)
    (kept,) = (one for one in made.comparison if one.method == made.kept and one.labels_per_class is None)
    assert kept.accuracy == pytest.approx(expected.trace() / len(paths))
    assert kept.interval == wilson_interval(int(expected.trace()), len(paths))
    with (tmp_path / "out" / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == list(names)
    assert [[int(value) for value in row[1:]] for row in rows[1:]] == expected.tolist()


def test_held_out_images_have_no_say_in_what_is_learned(
    model: Autoencoder, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their labels turned round, the classifier is the same to the last bit."""
    honest = transfer(model, colours)

    def turned(source: Path, pack: object) -> probe.Labelled:
        data = original(source, pack)  # type: ignore[arg-type]
        labels = np.where(data.learned, data.labels, 2 - data.labels)
        return probe.Labelled(**{**vars(data), "labels": labels})

    original = probe._labelled
    monkeypatch.setattr(probe, "_labelled", turned)
    turned_round = transfer(model, colours)
    np.testing.assert_array_equal(turned_round.classifier.probe.weights, honest.classifier.probe.weights)
    assert turned_round.classifier.features == honest.classifier.features
    assert turned_round.confusion.tolist() != honest.confusion.tolist()


def test_a_new_method_takes_one_entry(
    model: Autoencoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean_colour(task: Task) -> Features:
        pixels = task.data.pack.pixels(task.data.rows)
        return {"mean colour": pixels.mean(axis=(1, 2), dtype=np.float32)}

    entry = Method("colour", "linear probe on the mean colour", mean_colour, uses_model=False)
    monkeypatch.setitem(METHODS, entry.name, entry)
    (compared,) = (
        one
        for one in transfer(model, colours).comparison
        if one.method == "colour" and one.labels_per_class is None
    )
    assert (compared.accuracy, compared.features) == (1, "mean colour")


def test_every_method_has_features_or_a_training_and_says_what_it_is() -> None:
    # Codes rounded to bf16 are for an index; the size of pretrained features follows from the images.
    kinds = {None, *EMBEDDINGS} - {BF16_CODES, PRETRAINED_LARGE}
    assert {method.kept_for for method in METHODS.values()} == kinds
    for name, method in METHODS.items():
        assert method.name == name
        assert (method.features is None) != (method.trains is None)
        assert 10 < len(method.summary) < 90


def test_a_fine_tuned_encoder_is_kept_whole(model: Autoencoder, colours: Path, tmp_path: Path) -> None:
    made = transfer(model, colours, tmp_path / "out", finetune=True)
    assert made.kept == "fine-tuned"
    assert "fine-tuned" in {one.method for one in made.comparison}
    images = model.read(sorted(colours.rglob("*.png"))[:6])
    assert not torch.equal(made.classifier.model.encode(images), model.encode(images))
    assert made.classifier.provenance["method"] == "fine-tuned"
    again = transfer(model, colours, finetune=True)
    np.testing.assert_array_equal(
        again.classifier.probabilities(images), load_classifier(tmp_path / "out").probabilities(images)
    )


def test_pretrained_features_are_compared_where_they_are_installed_and_kept_when_asked_for(
    model: Autoencoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(fine_tuning, "LEAST_STEPS", 5)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    made = transfer(model, colours, embedding="pretrained")
    assert made.kept == made.classifier.features == "pretrained"
    assert made.confusion.trace() > 0.9 * made.held_out_images


def test_larger_images_are_described_at_224_pixels_and_classified_so(
    model: Autoencoder, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    large = Path(shutil.copytree(colours, tmp_path / "large"))
    for path in large.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((180, 200)).save(path)
    monkeypatch.setattr(transfer_learning, "METHODS", {"pretrained": METHODS["pretrained"]})
    made = transfer(model, large, tmp_path / "out", embedding="pretrained")
    assert (made.kept, made.classifier.features) == ("pretrained", "pretrained-224")
    classifier = load_classifier(tmp_path / "out")
    assert (classifier.preprocessing.height, classifier.preprocessing.width) == (224, 224)
    results = classify(classifier, large).results
    assert np.mean([result.label == result.path.parent.name for result in results]) > 0.9


def test_a_vae_and_few_unequal_classes_are_taken(trained_vae: Run, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "labelled")
    for path in sorted((tmp_path / "labelled" / "night").iterdir())[6:]:
        path.unlink()
    made = transfer(load_model(trained_vae.model_path), tmp_path / "labelled")
    assert any("labels of night: all of them are used" in note for note in made.notes)
    assert made.confusion.shape == (3, 3)


def test_wrong_use_is_rejected_before_the_work(
    model: Autoencoder, colours: Path, trained: Run, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Only the model's own encoder can be fine-tuned"):
        transfer(model, colours, embedding="pretrained", finetune=True)
    with pytest.raises(ConfigError, match="Unknown embedding 'clip'"):
        transfer(model, colours, embedding="clip")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="holds no earlier classifier"):
        transfer(load_model(trained.model_path), photos, photos)
    with pytest.raises(ImageFolderError, match="does not exist"):
        transfer(model, tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match="No classifier file"):
        load_classifier(tmp_path)


def test_the_best_embedding_is_kept_unless_one_is_asked_for(
    model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the pretrained features are there
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    # Stripes of two directions at random phases: an untrained code cannot tell their equal means apart.
    for axis, name in enumerate(("across", "down")):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        for number in range(24):
            phase, period = np.random.default_rng([axis, number]).uniform((0, 5), (6.3, 9))
            wave = 127 * (1 + np.sin(phase + 2 * np.pi * np.indices((64, 64))[axis] / period))
            pixels = np.repeat(wave[..., None], 3, 2).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "labelled" / name / f"{number}.png")
    made = transfer(model, tmp_path / "labelled", tmp_path / "out")
    assert made.kept == "pretrained"
    again = classify(load_classifier(tmp_path / "out"), tmp_path / "labelled")
    assert np.mean([result.label == result.path.parent.name for result in again.results]) > 0.9
    assert transfer(model, tmp_path / "labelled", embedding="code").kept in ("code", "layer")
