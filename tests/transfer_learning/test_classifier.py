"""A classifier in one file, and what it says of images."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoencode import (
    Classifier,
    ConfigError,
    ImageFolderError,
    ModelFileError,
    Run,
    classify,
    load_classifier,
    load_model,
    save_classifier,
)
from autoencode.feature_maps import trace
from autoencode.models.backbones import BACKBONE
from autoencode.models.model_file import read_tensors, write_tensors
from autoencode.transfer_learning.classifier import FORMAT_VERSION
from autoencode.transfer_learning.probe import LinearProbe

CLASSES = ("coast", "forest", "night")


def probe(size: int, classes: int = 3) -> LinearProbe:
    generator = np.random.default_rng(0)
    shapes = ((size,), (size,), (size, classes), (classes,))
    mean, scale, weights, bias = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    return LinearProbe(mean, np.abs(scale) + 1, weights / np.sqrt(size).astype(np.float32), bias)


@pytest.fixture(params=["code", "1x1", "4x4"])
def classifier(request: pytest.FixtureRequest, trained: Run) -> Classifier:
    model = load_model(trained.model_path)
    if request.param == "code":
        return Classifier(model, "code", CLASSES, probe(8), {"accuracy": 0.5})
    name = f"{trace(model, torch.rand(1, 3, 32, 32)).layers[1].name} {request.param}"
    return Classifier(model, name, CLASSES, probe(16 if request.param == "1x1" else 256), {"accuracy": 0.5})


def test_a_classifier_comes_back_whole_without_the_model_it_was_made_from(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.safetensors"
    digest = save_classifier(path, classifier)
    for place in (path, tmp_path):
        again = load_classifier(place)
        assert (again.classes, again.features, again.digest) == (CLASSES, classifier.features, digest)
        assert again.provenance == {"accuracy": 0.5}
        images = again.model.read(sorted(photos.rglob("*.png"))[:5])
        np.testing.assert_array_equal(again.probabilities(images), classifier.probabilities(images))
    assert save_classifier(tmp_path / "again", again) == digest


def test_probabilities_are_the_softmax_of_the_pooled_features(classifier: Classifier, photos: Path) -> None:
    images = classifier.model.read(sorted(photos.rglob("*.png"))[:4])
    if classifier.features == "code":
        features = classifier.model.encode(images)
    else:
        maps = trace(classifier.model, images).layers[1].maps  # (4, 8, 8, 8)
        side = 8 if classifier.features.endswith("1x1") else 2
        parts_of_maps = maps.unfold(2, side, side).unfold(3, side, side).flatten(4)
        features = torch.cat([parts_of_maps.mean(4), parts_of_maps.std(4, correction=0)], 1).flatten(1)
    parts = {name: torch.from_numpy(part) for name, part in vars(classifier.probe).items()}
    scores = (features - parts["mean"]) / parts["scale"] @ parts["weights"] + parts["bias"]
    np.testing.assert_allclose(classifier.probabilities(images), scores.softmax(1), rtol=1e-3)
    assert classifier.probabilities(images[:0]).shape == (0, 3)


def test_results_come_as_a_table_json_and_a_sheet_and_rejected_files_are_listed(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos / "coast", folder)
    (folder / "broken.jpg").write_bytes(b"no image")
    made = classify(classifier, folder, tmp_path / "out.csv")
    assert [path.name for path, _ in made.skipped] == ["broken.jpg"]
    assert len(made.results) == 16
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(result.path) for result in made.results]
    for row, result, probabilities in zip(rows, made.results, made.probabilities, strict=True):
        assert row["class"] == result.label == CLASSES[probabilities.argmax()]
        assert float(row["probability"]) == pytest.approx(probabilities.max(), rel=1e-5)
    with Image.open(tmp_path / "out-sheet.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), made.sheet)
    classify(classifier, [folder, folder / "broken.jpg"], tmp_path / "out.json")
    read = json.loads((tmp_path / "out.json").read_text())
    assert [image["class"] for image in read["images"]] == [result.label for result in made.results]
    assert all(sum(image["probabilities"].values()) == pytest.approx(1) for image in read["images"])
    assert len(read["skipped"]) == 1
    again = classify(classifier, tmp_path / "mixed", folder / "out.csv")
    assert len(again.results) == len(classify(classifier, folder, folder / "out.csv").results)


def test_what_is_no_classifier_is_told(
    classifier: Classifier, trained: Run, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match="No classifier file at"):
        load_classifier(tmp_path)
    with pytest.raises(ModelFileError, match="is a model file; a classifier file is needed here"):
        load_classifier(trained.model_path)
    with pytest.raises(ModelFileError, match="is not a classifier file"):
        load_classifier(next(photos.rglob("*.png")))
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, classifier)
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ModelFileError, match="damaged"):
        load_classifier(path)
    with pytest.raises(ConfigError, match=r"ends in \.csv or \.json"):
        classify(classifier, photos, tmp_path / "out.txt")
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ImageFolderError, match="No image could be used"):
        classify(classifier, tmp_path / "no.png", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_classifier_of_an_earlier_version_is_rejected_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    write_tensors(path, "classifier", 1, {"probe/bias": torch.zeros(2)}, {"classes": ["a", "b"]})
    with pytest.raises(ModelFileError, match=r"earlier version .*format 1.* anew with autoencode") as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_together_are_rejected(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, classifier)
    tensors, content, _ = read_tensors(path, "classifier", FORMAT_VERSION, ModelFileError)
    content = {name: value for name, value in content.items() if name not in ("kind", "version")}
    for spoiled in (
        {**content, "classes": ["one"]},
        {**content, "classes": [[name] for name in content["classes"]]},
        {**content, "features": "pretrained"},
        {**content, "features": "decoder.layers.1"},
        {**content, "model": {}},
    ):
        write_tensors(path, "classifier", FORMAT_VERSION, tensors, spoiled)
        with pytest.raises(ModelFileError, match="does not hold a usable"):
            load_classifier(path)
    tensors["probe/bias"] = tensors["probe/bias"] * float("nan")
    write_tensors(path, "classifier", FORMAT_VERSION, tensors, content)
    with pytest.raises(ModelFileError, match="not finite"):
        load_classifier(path)


def test_numbers_too_large_for_probabilities_are_rejected(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    mean = classifier.probe.mean
    probe = replace(classifier.probe, mean=np.full_like(mean, 3e38), scale=np.full_like(mean, 1e-30))
    with pytest.raises(ModelFileError, match="not finite"):
        classify(replace(classifier, probe=probe), photos, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_pretrained_features_are_those_they_were_learned_on(
    trained: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(trained.model_path)
    save_classifier(tmp_path / "c", Classifier(model, "pretrained", CLASSES, probe(BACKBONE.size), {}))
    assert len(classify(load_classifier(tmp_path / "c"), next(photos.rglob("*.png"))).results) == 1
    monkeypatch.setattr(type(BACKBONE), "digest", property(lambda _: "another 2"))
    with pytest.raises(ModelFileError, match="other pretrained features than those installed"):
        load_classifier(tmp_path / "c")
