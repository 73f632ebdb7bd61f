"""The commands index and search, end to end on a trained model."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from autoencode import ConfigError, ImageError, ImageIndexError, Run
from autoencode.cli.main import app
from autoencode.web.workspace import open_workspace


def autoencode(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def index(trained: Run, folder: Path, tmp_path: Path) -> Path:
    result = autoencode(
        "index", folder, "--model", trained.folder, "--embedding", "code", "--out", tmp_path / "i"
    )
    assert result.exit_code == 0, result.output
    return tmp_path / "i"


def test_index_says_what_it_did_and_what_it_rejected(trained: Run, folder: Path, tmp_path: Path) -> None:
    command = ("index", folder, "--model", trained.folder, "--embedding", "code", "--out", tmp_path / "i")
    first = autoencode(*command)
    assert "skipped broken.png: not an image" in first.stdout
    assert "codes: 48 encoded at" in first.stdout
    assert "48 images, compared by codes of a model, whitened, every code is compared" in first.stdout
    next(folder.rglob("0*.png")).unlink()
    assert "codes: 0 encoded, 47 kept, 1 removed" in autoencode(*command, "--distance", "cosine").stdout
    assert "cosine" in autoencode(*command).stdout


def test_patterns_choose_what_is_indexed_and_embedded(trained: Run, folder: Path, tmp_path: Path) -> None:
    of_folder = [path for path in folder.rglob("*.png") if path.name != "broken.png"]
    chosen = [path for path in of_folder if path.name.startswith("00") and not path.name.endswith("3.png")]
    assert 0 < len(chosen) < len(of_folder)
    patterns = ("--include", "*00*.png", "--exclude", "*3.png")
    coded = ("--model", trained.folder, "--embedding", "code", "--out", tmp_path / "i")
    assert f"codes: {len(chosen)} encoded" in autoencode("index", folder, *coded, *patterns).stdout
    out = tmp_path / "codes.csv"
    assert autoencode("embed", trained.folder, folder, "--out", out, *patterns).exit_code == 0
    names = {Path(line.split(",")[0]).name for line in out.read_text().splitlines()[1:]}
    assert names == {path.name for path in chosen}
    nothing = autoencode("index", folder, *coded, "--include", "*.bmp")
    assert "None of the" in str(nothing.exception)


def test_a_model_compares_only_if_its_codes_are_asked_for_and_index_says_so(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    command = ("index", folder, "--model", trained.folder, "--out")
    given = autoencode(*command, tmp_path / "i").stdout
    assert "compared by EfficientNet-Lite0 at 128 pixels, cosine" in given
    assert "The model is not used" in given and "--embedding code" in given
    assert "not used" not in autoencode("index", folder, "--out", tmp_path / "i").stdout
    # An index of codes goes on being one.
    autoencode(*command, tmp_path / "j", "--embedding", "code")
    again = autoencode(*command, tmp_path / "j").stdout
    assert "codes: 0 encoded, 48 kept" in again and "not used" not in again


def test_search_prints_a_line_a_neighbour_and_writes_json_and_a_sheet(
    index: Path, folder: Path, tmp_path: Path
) -> None:
    query = sorted(folder.rglob("0*.png"))[0]
    out, sheet = tmp_path / "found.json", tmp_path / "found.png"
    result = autoencode(
        "search", index, query, folder / "broken.png", "-k", 3, "--out", out, "--sheet", sheet
    )
    assert isinstance(result.exception, ImageError)  # once the other query is answered
    written = json.loads(out.read_text())
    (answer,) = written["queries"]
    assert answer["query"] == str(query)
    lines = [
        f"{near['score']:.4f}\t{near['percentile']:.1f}%\t{near['path']}" for near in answer["neighbours"]
    ]
    assert result.stdout.splitlines() == [str(query), *lines]
    assert len(lines) == 3
    assert [skipped["query"] for skipped in written["skipped"]] == [str(folder / "broken.png")]
    assert "broken.png: not an image" in result.stderr
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 128


def test_search_says_where_images_are_gone_or_fewer_than_asked_for(index: Path, folder: Path) -> None:
    query, gone = sorted(folder.rglob("0*.png"))[:2]
    gone.unlink()
    result = autoencode("search", index, query, "-k", 100)
    assert result.exit_code == 0
    assert "The index holds 48 images; all of them are listed" in result.stderr
    assert f"1 image found no longer exists. Update the index: autoencode index {folder} --out {index}" in (
        result.stderr
    )
    assert f"{gone} (gone)" in result.stdout
    moved = folder.rename(folder.with_name("moved"))
    result = autoencode("search", index, moved / query.relative_to(folder), "-k", 3)
    assert result.exit_code == 0
    assert (
        f"3 images found no longer exist. {folder} is not there either. Index the folder that the images "
        "are in now: autoencode index NEW-FOLDER --out ANOTHER"
    ) in result.stderr
    assert "Update" not in result.stderr


def test_questions_that_are_none_are_rejected(index: Path, folder: Path, tmp_path: Path) -> None:
    query = next(folder.rglob("0*.png"))
    assert "Missing argument" in autoencode("search", index).stderr
    result = autoencode("search", tmp_path / "none", query)
    assert isinstance(result.exception, ImageIndexError)


def test_results_never_overwrite_images(index: Path, folder: Path, tmp_path: Path) -> None:
    query, other = sorted(folder.rglob("0*.png"))[:2]
    before = query.read_bytes(), other.read_bytes()
    for option, path in (("--out", query), ("--sheet", query), ("--sheet", other)):
        assert isinstance(autoencode("search", index, query, option, path).exception, ConfigError)
        assert isinstance(autoencode("search", index, folder, option, path).exception, ConfigError)
    assert (query.read_bytes(), other.read_bytes()) == before


def test_a_label_and_a_split_choose_among_the_images(index: Path, folder: Path, tmp_path: Path) -> None:
    query, out = next(folder.rglob("0*.png")), tmp_path / "found.json"
    result = autoencode(
        "search", index, query, "-k", 99, "--label", "night", "--split", "train", "--out", out
    )
    assert result.exit_code == 0, result.output
    (answer,) = json.loads(out.read_text())["queries"]
    assert {near["label"] for near in answer["neighbours"]} == {"night"}
    assert 0 < len(answer["neighbours"]) < 16
    assert f"The index holds {len(answer['neighbours'])} such images; all of them are listed" in result.stderr
    none = autoencode("search", index, query, "--label", "nigh")
    assert isinstance(none.exception, ConfigError)
    assert str(none.exception) == f"No image of {index} has the label 'nigh'. Its labels: night, and 2 more."
    unlike = autoencode("search", index, query, "--label", "zzz")
    assert str(unlike.exception).endswith("the label 'zzz'. Its labels: coast, forest, night.")
    assert "'tset' is not one of" in autoencode("search", index, query, "--split", "tset").stderr


def test_an_index_kept_by_lancedb_says_and_finds_what_one_in_a_file_does(
    trained: Run, index: Path, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install 'autoencode[lance]'")
    other = tmp_path / "j"
    codes = ("index", folder, "--model", trained.folder, "--embedding", "code", "--out", other)
    made = autoencode(*codes, "--store", "lance")
    assert made.exit_code == 0, made.output
    assert "codes: 48 encoded at" in made.stdout
    assert "48 images, compared by codes of a model, whitened, every code is compared" in made.stdout
    query, gone = sorted(folder.rglob("0*.png"))[:2]
    gone.unlink()
    out, sheet = tmp_path / "found.json", tmp_path / "found.png"
    options = (query, "-k", 5, "--out", out, "--sheet", sheet)
    results = [autoencode("search", place, *options, "--label", "coast") for place in (index, other)]
    assert [result.exit_code for result in results] == [0, 0]
    assert results[0].stdout == results[1].stdout
    assert sheet.is_file()
    every = autoencode("search", other, query, "-k", 99)
    assert f"{gone} (gone)" in every.stdout
    assert f"autoencode index FOLDER --out {other}" in every.stderr
    assert "codes: 0 encoded, 47 kept, 1 removed" in autoencode(*codes).stdout
    for path in (query, sorted(folder.rglob("0*.png"))[3]):
        rejected = autoencode("search", other, query, "--sheet", path)
        assert isinstance(rejected.exception, ConfigError)
        assert "would overwrite" in str(rejected.exception)
    assert isinstance(autoencode("duplicates", other).exception, ConfigError)
    wrong = autoencode("index", folder, "--out", other, "--remove", "--store", "lance")
    assert "--remove takes no other option than --out" in str(wrong.exception)
    with pytest.raises(ConfigError, match="The page needs an index that is held in memory"):
        open_workspace(trained.folder, other)
    removed = autoencode("index", folder, "--out", other, "--remove")
    assert f"47 images removed from {other}" in removed.stdout


def test_an_index_in_storage_is_asked_for_by_its_store(trained: Run, folder: Path) -> None:
    file = autoencode(
        "index",
        folder,
        "--model",
        trained.folder,
        "--out",
        "s3://bucket/i",
        "--store",
        "file",
    )
    assert isinstance(file.exception, ConfigError)
    assert "Add --store lance" in str(file.exception)
    other = autoencode(
        "index",
        folder,
        "--model",
        trained.folder,
        "--out",
        "ftp://host/i",
        "--store",
        "lance",
    )
    assert isinstance(other.exception, ConfigError)
    assert "Give a folder, or a URL of s3://, gs://, az://." in str(other.exception)


def channel_means(path: Path) -> Path:
    """An ONNX file of a network that gives the means of the channels of images of 16x24 pixels."""
    onnx = pytest.importorskip("onnx", reason="the optional part `onnx` is not installed")
    pytest.importorskip("onnxruntime", reason="the optional part `onnx` is not installed")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = (
        make.make_tensor_value_info("a", kind, ["n", 3, 16, 24]),
        make.make_tensor_value_info("b", kind, ["n", 3]),
    )
    node = make.make_node("ReduceMean", ["a", "sides"], ["b"], keepdims=0)
    sides = make.make_tensor("sides", onnx.TensorProto.INT64, [2], [2, 3])
    graph = make.make_graph([node], "g", ends[:1], ends[1:], [sides])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_a_network_in_an_onnx_file_is_described_and_named_where_it_was_moved(
    folder: Path, tmp_path: Path
) -> None:
    network = channel_means(tmp_path / "means.onnx")
    made = autoencode("index", folder, "--embedding", network, "--out", tmp_path / "i")
    assert "48 images, compared by means at 32x16 pixels, 3 dimensions, cosine" in made.stdout
    moved, query = network.rename(tmp_path / "away.onnx"), next(folder.rglob("0*.png"))
    lost = autoencode("search", tmp_path / "i", query)
    assert f"is not at {network}. Give the network it was made with (--model means.onnx)" in str(
        lost.exception
    )
    found = autoencode("search", tmp_path / "i", query, "-k", 3, "--model", moved)
    assert (found.exit_code, len(found.stdout.splitlines())) == (0, 4)
    wrong = autoencode("search", tmp_path / "i", query, "--model", folder)
    assert str(wrong.exception) == (
        f"{tmp_path / 'i'} compares by an ONNX file, like means.onnx. Give that file."
    )


def test_a_network_whose_name_begins_like_codes_is_none(
    trained: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel_means(tmp_path / "code.onnx")
    monkeypatch.chdir(tmp_path)
    made = autoencode("index", folder, "--embedding", "code.onnx", "--model", trained.folder, "--out", "i")
    assert "The model is not used" in made.stdout
