"""The table of what can be given as images is true: what it says is taken is, the rest gets one line."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import blobs

from autoencode import (
    AutoencodeError,
    Autoencoder,
    Classifier,
    ImageError,
    Index,
    ModelConfig,
    Pack,
    Preprocessing,
    Restorer,
    Run,
    build_index,
    classify,
    embed,
    evaluate,
    features,
    find_duplicates,
    find_outliers,
    generate,
    load_model,
    morph,
    pack_folder,
    reconstruct,
    restore,
    train,
    transfer,
)
from autoencode.index.sheet import neighbours_sheet
from autoencode.models import autoencoder
from autoencode.notebook import table

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "inputs.md"
ROWS = re.findall(rf"^\| (.*) \| {' . '.join(['(yes|no)'] * 5)} \|$", GUIDE.read_text(), re.M)
PIXELS = np.stack([blobs(number, 32, 32) for number in range(3)])


def forms(kind: str, folder: Path) -> list[Any]:
    """What a row of the table means."""
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(PIXELS):
        for half in ("one", "two"):
            (folder / half).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / half / f"{number}.png")
    names = [f"one/{number}.png" for number in range(3)]
    (folder / "paths.txt").write_text("\n".join(names))
    for name, separator in (("table.csv", ","), ("table.tsv", "\t")):
        lines = [f"path{separator}label", *(f"{path}{separator}a" for path in names)]
        (folder / name).write_text("\n".join(lines))
    content = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(content, "PNG")
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(PIXELS), torch.arange(3))
    return {
        "a folder": lambda: [folder / "one"],
        "image files, one or several": lambda: [folder / names[0], [folder / name for name in names]],
        "several folders": lambda: [[folder / "one", folder / "two"]],
        "a text file of paths, one a line": lambda: [folder / "paths.txt"],
        "a table: CSV, TSV, Parquet": lambda: [folder / "table.csv", folder / "table.tsv"],
        "a data frame": lambda: [_frame([str(folder / name) for name in names])],
        "a pack by its path": lambda: [pack_folder(folder / "one", folder / "pack", size=32).path],
        "a pack from `open_pack`": lambda: [pack_folder(folder / "one", folder / "pack", size=32)],
        "arrays, tensors": lambda: [PIXELS, PIXELS[0], torch.from_numpy(PIXELS)],
        "Pillow images, contents of files": lambda: [Image.fromarray(PIXELS[0]), content.getvalue()],
        "a torch or Hugging Face dataset": lambda: [tensors, *_hugging_face()],
        "anything else, such as a number": lambda: [3, {"path": "a.png"}, object(), np.zeros(5)],
    }[kind]()


def _frame(paths: list[str]) -> Any:  # noqa: ANN401
    return pytest.importorskip("pandas").DataFrame({"path": paths})


def _hugging_face() -> list[Any]:
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    return [datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))]


def commands(
    model: Autoencoder,
    pack: Pack,
    index: Index,
    restorer: Restorer,
    classifier: Classifier,
    folder: Path,
    settings: dict[str, Any],
) -> list[list[Callable[[Any], object]]]:
    """The functions of each column of the table."""
    return [
        [lambda given: pack_folder(given, folder / "p", size=32)],
        [
            lambda given: train(given, folder / "run", epochs=1, **settings),
            lambda given: build_index(given, folder / "i", model, embedding="code"),
            lambda given: evaluate(model, given, kid=False),
        ],
        [lambda given: embed(given, model), model.embed],
        [
            lambda given: reconstruct(model, given, folder / "r"),
            lambda given: find_outliers(model, given, pack),
            lambda given: restore(restorer, given, folder / "restored"),
            lambda given: classify(classifier, given),
            lambda given: index.search(given),
            find_duplicates,
        ],
        [model.read, model.encode, model.reconstruct],
    ]


@pytest.fixture(scope="module")
def index(trained: Run, tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index(tiny_pack, tmp_path_factory.mktemp("index") / "i", trained.folder, embedding="code")


@pytest.fixture(scope="module")
def classifier(trained: Run, photos: Path) -> Classifier:
    return transfer(trained.folder, photos, embedding="code").classifier


@pytest.mark.parametrize(("kind", "takes"), [(kind, takes) for kind, *takes in ROWS], ids=str)
def test_what_the_table_says_of_each_form_is_so(
    kind: str,
    takes: list[str],
    trained: Run,
    tiny_pack: Pack,
    index: Index,
    classifier: Classifier,
    tiny: dict[str, Any],
    tmp_path: Path,
) -> None:
    model = load_model(trained.model_path)
    restorer = Restorer(ModelConfig(kind="restorer", network="gated", widths=(4, 6)), Preprocessing(32, 32))
    for number, given in enumerate(forms(kind, tmp_path / "images")):
        work = tmp_path / str(number)
        work.mkdir()
        columns = commands(model, tiny_pack, index, restorer, classifier, work, tiny | {"size": 32})
        for taken, functions in zip(takes, columns, strict=True):
            for function in functions:
                if taken == "yes":
                    assert function(given) is not None
                else:
                    with pytest.raises(AutoencodeError) as caught:
                        function(given)
                    assert "\n" not in str(caught.value)


def test_the_table_is_read_by_this_test() -> None:
    assert len(ROWS) == 12


def test_codes_come_in_the_order_given(trained: Run, tmp_path: Path) -> None:
    model = load_model(trained.model_path)
    [table] = forms("a table: CSV, TSV, Parquet", tmp_path)[:1]
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[:0:-1]]))
    by_table, by_folder = model.encode(table), model.encode(tmp_path / "one")
    assert torch.equal(by_table, by_folder.flip(0))
    files = [tmp_path / "one" / f"{number}.png" for number in (1, 0)]
    assert torch.equal(model.encode(files), by_folder[[1, 0]])
    assert torch.equal(model.encode(iter(files)), by_folder[[1, 0]])
    assert torch.equal(model.reconstruct(table), model.decode(by_table))


def test_more_images_than_a_batch_are_read_in_parts(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(trained.model_path)
    whole = model.encode(PIXELS)
    monkeypatch.setattr(autoencoder, "INFERENCE_BATCH", 2)
    assert torch.allclose(model.encode(PIXELS), whole, atol=1e-6)
    assert model.read(PIXELS).shape == (3, 3, 32, 32)
    assert model.encode([]).shape == (0, 8)


def test_a_file_that_cannot_be_used_stops_encode_and_is_listed_by_embed(trained: Run, tmp_path: Path) -> None:
    [folder] = forms("a folder", tmp_path)
    (folder / "broken.png").write_bytes(b"no image")
    model = load_model(trained.model_path)
    with pytest.raises(ImageError, match=r"broken\.png: not an image"):
        model.encode(folder)
    found = model.embed(folder, tmp_path / "codes.npz")
    assert [path.name for path in found.paths] == ["0.png", "1.png", "2.png"]
    assert [path.name for path, _ in found.skipped] == ["broken.png"]
    assert np.array_equal(np.load(tmp_path / "codes.npz")["vector"], model.encode(PIXELS).numpy())


def test_an_index_of_a_table_is_updated_by_the_same_table(trained: Run, tmp_path: Path) -> None:
    [table] = forms("a table: CSV, TSV, Parquet", tmp_path / "images")[:1]
    first = build_index(table, tmp_path / "index", trained.folder, embedding="code")
    assert (len(first), first.sources) == (3, (str(table),))
    assert first.update_command == f"autoencode index {table} --out {tmp_path / 'index'}"
    with table.open("a") as file:
        file.write("\ntwo/0.png,b")
    again = build_index(table, tmp_path / "index", trained.folder, embedding="code")
    assert (len(again), again.update and again.update.encoded) == (4, 0)  # the same content as one/0.png
    assert again.count(label="b") == 1


def test_several_folders_are_packed_again_into_the_same_pack(tmp_path: Path) -> None:
    [[one, two]] = forms("several folders", tmp_path / "images")
    assert len(pack_folder([one, two], tmp_path / "pack", size=32)) == 6
    Image.fromarray(blobs(9, 32, 32)).save(two / "new.png")
    assert len(pack_folder([one, two], tmp_path / "pack", size=32)) == 7


def test_a_notebook_shows_pictures_of_results(trained_vae: Run, index: Index, tmp_path: Path) -> None:
    folder = forms("a folder", tmp_path)[0]
    files = [folder / f"{number}.png" for number in range(3)]
    reconstructed = reconstruct(trained_vae.folder, folder)
    found = index.search(files)
    sheet = neighbours_sheet(found.results, index.preprocessing)
    for shown, expected in (
        (reconstructed, reconstructed.sheet),
        (found, sheet),
        (morph(trained_vae.folder, files[:2], frames=3), None),
        (generate(trained_vae.folder, 4, prior="normal"), None),
    ):
        picture = np.asarray(Image.open(io.BytesIO(shown._repr_png_() or b"")))
        assert picture.shape[2] == 3
        assert expected is None or np.array_equal(picture, expected)
    assert index.search(np.zeros((1, 8)) + 0.1)._repr_png_() is None  # codes have no picture
    shown = features(trained_vae.folder, files[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown._repr_png_()))), shown.sheet)


def test_a_notebook_shows_tables_of_results(
    trained: Run, tiny_pack: Pack, classifier: Classifier, tmp_path: Path
) -> None:
    model = load_model(trained.model_path)
    [folder] = forms("a folder", tmp_path)
    found = find_outliers(model, folder, tiny_pack, fpr=0.3)
    table = found._repr_html_()
    assert table.startswith(
        f"<p>{len(found.flagged)} outliers of 3 images, by auto</p><table><tr><th>score</th>"
    )
    assert table.count("<tr>") == 4
    assert f"<td>{found.images[0].path}</td></tr>" in table
    (tmp_path / "a<b>").mkdir()
    for name in ("1.png", "2.png"):
        Image.fromarray(PIXELS[0]).save(tmp_path / "a<b>" / name)
    table = find_duplicates(tmp_path / "a<b>")._repr_html_()
    assert "1 groups of copies among 2 files" in table
    assert "a&lt;b&gt;/1.png</td>" in table and "identical" in table
    measured = evaluate(model, tiny_pack, kid=False)
    assert measured.reconstruction.psnr_db is not None
    assert f"<td>PSNR dB</td><td>{measured.reconstruction.psnr_db.value:.4g}</td>" in measured._repr_html_()
    restorer = Restorer(ModelConfig(kind="restorer", network="gated", widths=(4, 6)), Preprocessing(32, 32))
    assert (
        restore(restorer, folder, tmp_path / "restored")._repr_html_().startswith("<p>3 images restored</p>")
    )
    predicted = classify(classifier, folder)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(predicted._repr_png_()))), predicted.sheet)
    assert repr(trained) == f"Run({str(trained.folder)!r}, 2 epochs)"
    sharp = {"epoch": 3.0, "step": 9.0, "val_perceptual": 1.0}
    shown = repr(replace(trained, metrics=[*trained.metrics, sharp]))
    assert shown == f"Run({str(trained.folder)!r}, 2 epochs, then 1 of the sharp decoder)"


def test_a_long_table_is_cut_with_its_length() -> None:
    shown = table("title", ("number",), ([number] for number in range(25)))
    assert shown.count("<td>") == 20
    assert shown.endswith("</table><p>and 5 more</p>")
