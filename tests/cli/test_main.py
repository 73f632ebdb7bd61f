"""The program: its help, its version, and one line about what is wrong, with exit code 1 or 2."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import Command, Result, assert_one_line
from typer.main import get_command

from autoencode import (
    PRESETS,
    AutoencodeError,
    ConfigError,
    MissingExtraError,
    ModelConfig,
    Pack,
    Preprocessing,
    Restorer,
    Run,
    TrainConfig,
    __version__,
    evaluation,
    fit_prior,
    load_model,
    open_pack,
    save_model,
    settings,
)
from autoencode.cli import demo_pack, main
from autoencode.cli.progress import show_result
from autoencode.configuration import Embedding, documentation
from autoencode.models.backbones import BACKBONE


def test_the_help_lists_the_choices_that_the_library_has(
    autoencode: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoencode.outliers.scores import SCORES

    monkeypatch.setenv("COLUMNS", "300")
    for command, option, choices in (
        ("outliers", "--score", SCORES),
        ("transfer", "--embedding", get_args(Embedding)),
    ):
        lines = autoencode(command, "--help").out.splitlines()
        (line,) = [line for line in lines if line.lstrip("│ *").startswith(f"{option} ")]
        assert f"{'|'.join(choices)}" in line
    for command in ("train", "config"):
        said = " ".join(autoencode(command, "--help").out.replace("│", " ").split())
        for name, preset in PRESETS.items():
            assert f"{name} ({preset.summary})" in said


def test_the_help_of_a_setting_is_what_its_class_says(
    autoencode: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    said = autoencode("train", "--help").out
    for kind, name in ((TrainConfig, "epochs"), (TrainConfig, "corrupt"), (ModelConfig, "kind")):
        assert documentation(kind)[name][1:] in said


def test_the_examples_of_every_command_are_calls_it_takes() -> None:
    for name, command in get_command(main.app).commands.items():  # type: ignore[attr-defined]
        heading, *examples = command.epilog.split("\n\n")
        assert heading == "Examples:"
        assert examples
        for example in examples:
            words = shlex.split(example.partition(" > ")[0])
            assert words[:2] == ["autoencode", name]
            command.make_context(name, words[2:])


def test_every_file_of_the_command_line_is_a_group_named_after_its_commands() -> None:
    commands = list(get_command(main.app).commands)  # type: ignore[attr-defined]
    assert "_".join(main.GROUPS) == "_".join(commands)
    files = {path.stem for path in Path(main.__file__).parent.glob("*.py")}
    shared = {"__init__", "main", "options", "progress", "results", "verdicts"}
    assert files - shared == set(main.GROUPS)


def test_no_help_holds_brackets_which_the_terminal_takes_for_styles() -> None:
    for name, command in get_command(main.app).commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            assert "[" not in (getattr(parameter, "help", None) or ""), f"{name} {parameter.name}"


def test_the_version_is_printed(autoencode: Command) -> None:
    assert autoencode("--version") == autoencode("-V") == Result(0, f"autoencode {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("trian",),
        ("train",),
        ("pack",),
        ("reconstruct", "model", "--out", "x"),
        ("train", "x", "--out", "y", "--epochs", "many"),
        ("train", "x", "--out", "y", "--kind", "gan"),
        ("train", "x", "--out", "y", "--loss", "mse"),
        ("train", "x", "--out", "y", "--workers", "0"),
        ("pack", "x", "--out", "y", "--workers", "0"),
        ("pack", "x", "--out", "y", "--resize-mode", "squeeze"),
    ],
)
def test_wrong_usage_exits_with_2(
    autoencode: Command, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = autoencode(*arguments)
    assert_one_line(result, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("outliers x y --score nope", "Invalid value for '--score': 'nope' is not one of 'auto', "),
        ("search x y -k 0", "Invalid value for '-k': it must be at least 1. See autoencode search --help"),
        ("search x y -k many", "Invalid value for '-k': it must be a whole number. See "),
        ("outliers x y --fpr low", "Invalid value for '--fpr': it must be a number. See "),
        ("my-photos", "No such command 'my-photos'. See autoencode --help"),
        ("trian", "No such command 'trian'. Did you mean 'train', 'transfer'?\n"),
        ("denoise noisy.jpg", "No such command 'denoise'. Did you mean 'restore'?\n"),
        ("train x --self-supervised", "No such option: --self-supervised. Write --set self_supervised=true. "
         "See autoencode train --help\n"),
        ("train x --learning-rate 1", "No such option: --learning-rate. Write --set learning_rate=VALUE. "
         "See autoencode train --help\n"),
        ("train x --epoch 2", "No such option: --epoch. Did you mean --epochs?\n"),
        ("search x", "Missing argument 'queries'. For example: autoencode search photos photos/a.jpg "),
        ("demo x", "Got unexpected extra argument(s) (x). See autoencode demo --help\n"),
        ("'my photos'", "No such command 'my photos'. To train on a folder: autoencode train 'my photos'. To "
         "search in it: autoencode index 'my photos'. To find copies: autoencode "
         "duplicates 'my photos'\n"),
        ("a.jpg", "No such command 'a.jpg'. To see what a model, a pack or an index is: "),
        ("info -no.jpg", "No such option or file: -no.jpg. See autoencode info --help\n"),
    ],
)  # fmt: skip
def test_wrong_usage_is_named_in_the_words_of_the_user(
    autoencode: Command, arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # a command in it can be copied from the narrowest terminal
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    (tmp_path / "a.jpg").touch()
    result = autoencode(*shlex.split(arguments))
    assert_one_line(result, message, code=2)


def test_the_words_of_other_programs_lead_to_commands() -> None:
    commands = get_command(main.app).commands  # type: ignore[attr-defined]
    words = [word for known in main.OTHER_WORDS.values() for word in known.split()]
    assert main.OTHER_WORDS.keys() <= commands.keys()
    assert len(words) == len(set(words))
    assert not commands.keys() & set(words)


def test_help_and_version_are_understood_without_dashes(autoencode: Command) -> None:
    assert autoencode("help") == autoencode() == autoencode("--help")
    assert autoencode("help", "info") == autoencode("info", "-h")
    assert autoencode("help", "info").code == 0
    assert autoencode("version") == autoencode("-v") == autoencode("-V")


def _commands(photos: Path, run: Path, work: Path) -> dict[str, tuple[object, ...]]:
    """A call of each command that ends in seconds; classify and search need those before them."""
    image, few = next(photos.rglob("*.png")), photos / "coast"
    return {
        "pack": (photos, "--out", work / "pack", "--size", 32),
        "train": (few, "--out", work / "run", "--epochs", 1, "--size", 16, "--set", "widths=[4]"),
        "config": ("best",),
        "reconstruct": (run, few, "--out", work / "reconstructed"),
        "morph": (run, image, few / "000.png", "--out", work / "morph.png"),
        "generate": (run, "--out", work / "new", "-n", 2),
        "index": (few, "--model", run, "--out", work / "index"),
        "search": (work / "index", image, "-k", 2),
        "duplicates": (few,),
        "outliers": (few, image),
        "features": (run, image, "--out", work / "features"),
        "transfer": (run, photos, "--out", work / "classifier", "--embedding", "code"),
        "classify": (work / "classifier", image),
        "info": (run,),
        "evaluate": (run,),
        "embed": (run, few, "--out", work / "codes.csv"),
    }


def test_every_command_prints_its_result_as_json_and_nothing_else(
    autoencode: Command, photos: Path, trained_vae: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(trained_vae.folder, tmp_path / "vae"))
    monkeypatch.setattr(BACKBONE, "pooled", lambda pixels: pixels.mean(axis=(1, 2), dtype=np.float32) / 255)
    monkeypatch.setattr(evaluation, "LEAST_KID_IMAGES", 1000)  # distances take half of the time
    model = load_model(run)
    fit_prior(model, open_pack(trained_vae.pack_path))
    save_model(run / "model.safetensors", model, model.provenance)
    found: dict[str, Any] = {}
    for command, arguments in _commands(photos, run, tmp_path).items():
        result = autoencode(command, *arguments, "--json")
        assert result.code == 0, (command, result)
        found[command] = json.loads(result.out)
    assert found["pack"]["images"] == len(open_pack(tmp_path / "pack")) == 48
    assert found["train"]["folder"] == str(tmp_path / "run")
    assert found["train"]["metrics"][0]["epoch"] == 1
    assert found["config"]["epochs"] == settings("best")[1].epochs
    assert [set(one) >= {"path", "psnr_db"} for one in found["reconstruct"]["results"]] == [True] * 16
    assert found["morph"]["frames"] == len(found["morph"]["alphas"])
    assert found["index"]["update"]["encoded"] == found["index"]["images"] == 16
    assert len(found["search"]["queries"][0]["neighbours"]) == 2
    assert found["outliers"]["images"][0].keys() >= {"path", "p_value", "outlier"}
    assert "heat" not in found["outliers"]["images"][0]  # maps go to files
    assert found["classify"]["results"][0]["label"] in found["transfer"]["classes"]
    assert found["info"]["kind"] == "run"
    assert found["embed"] == {
        "path": str(tmp_path / "codes.csv"), "images": 16, "dimensions": 8, "skipped": [],
    }  # fmt: skip
    assert found["evaluate"]["reconstruction"]["psnr_db"]["value"] > 0
    assert found.keys() | _OTHERS.keys() == set(get_command(main.app).commands)  # type: ignore[attr-defined]
    # What is text itself is a result, and printed; all else is progress.
    printed = set[str]()
    for command, arguments in _commands(photos, run, tmp_path).items():
        anew = arguments if command != "train" else (*arguments[:2], tmp_path / "quiet", *arguments[3:])
        result = autoencode(command, *anew, "--quiet")
        assert (result.code, result.err) == (0, ""), (command, result)
        printed |= {command} if result.out else set()
    assert printed == {"config", "info", "search", "evaluate"}


# The part that takes minutes, another program or a browser is done by something else in a test.
_OTHERS = {
    "demo": ("--out", "demo"),
    "restore": ("restorer", "a.png", "--out", "restored"),
    "export": ("vae", "--out", "onnx"),
    "report": ("vae",),
    "paper": (".", "--out", "paper"),
    "app": ("--no-browser", "--port", 0),
}


@pytest.fixture
def without_the_long_part(
    trained_vae: Run, tiny_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_vae.folder, "vae")
    shutil.copy(next(tiny_pack.folder.rglob("*.png")), "a.png")
    restorer = Restorer(ModelConfig(kind="restorer", network="gated", widths=(4, 6)), Preprocessing(32, 32))
    save_model(Path("restorer"), restorer, {})
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    monkeypatch.setattr("autoencode.export.export_onnx", lambda *_, **__: [])
    monkeypatch.setattr("autoencode.report.write_report", lambda run, **_: Path(run) / "report.html")
    monkeypatch.setattr(demo_pack, "digits_folder", lambda *_: tiny_pack.folder)
    monkeypatch.setattr(demo_pack, "train_and_show", lambda *_, **__: show_result({}))
    monkeypatch.setattr("autoencode.paper.study.train_all", lambda *_, **__: {})
    monkeypatch.setattr("autoencode.paper.study.seconds_needed", lambda _: 1.0)
    monkeypatch.setattr("autoencode.paper.results.seconds_to_measure", lambda _: 1.0)
    monkeypatch.setattr("autoencode.paper.results.measure_all", lambda *_: None)
    monkeypatch.setattr("autoencode.paper.page.write_paper", lambda _: Path("page.html"))


@pytest.mark.usefixtures("without_the_long_part")
@pytest.mark.parametrize("command", _OTHERS)
def test_the_commands_that_take_long_have_these_options_too(autoencode: Command, command: str) -> None:
    shown = autoencode(command, *_OTHERS[command], "--json")
    assert shown.code == 0, shown
    assert isinstance(json.loads(shown.out), dict)
    assert autoencode(command, *_OTHERS[command], "--quiet") == Result(0, "", "")


def test_quiet_prints_results_alone(autoencode: Command, photos: Path, trained: Run, tmp_path: Path) -> None:
    image = photos / "coast" / "000.png"
    (tmp_path / "notes.mp4").touch()
    for quiet in ("--quiet", "-q"):
        made = autoencode("pack", photos, "--out", tmp_path / quiet / "pack", "--size", 32, quiet)
        assert made == Result(0, "", "")
    assert "48 images" in autoencode("pack", photos, "--out", tmp_path / "-q" / "pack", "--size", 32).out
    assert autoencode("reconstruct", trained.folder, image, "--out", tmp_path / "r", "-q") == (0, "", "")
    assert autoencode("config", "best", "-q") == autoencode("config", "best")
    index = ("index", photos, "--out", tmp_path / "i")
    assert autoencode(*index, "-q") == (0, "", "")
    found = autoencode("search", tmp_path / "i", image, "-k", 2, "-q")
    assert (len(found.out.splitlines()), found.err) == (3, "")
    assert_one_line(autoencode("reconstruct", trained.folder, "none.jpg", "--out", tmp_path / "s", "-q"))


def test_an_error_is_an_object_on_standard_output_where_the_result_would_be(
    autoencode: Command, photos: Path, trained: Run, tmp_path: Path
) -> None:
    for arguments, code in (
        (("info", tmp_path / "none"), 2),
        (("generate", tmp_path / "none"), 1),
        (("trian", "photos"), 2),
    ):
        plain, as_json = autoencode(*arguments), autoencode(*arguments, "--json")
        assert (plain.out, plain.code) == ("", code)
        assert (as_json.code, as_json.err) == (plain.code, plain.err)
        found = json.loads(as_json.out)
        assert found == {"error": plain.err.removeprefix("error: ").rstrip("\n"), "exit_code": code}
    # A result that was printed before a file that was named failed stays the only one.
    given = ("reconstruct", trained.folder, photos / "coast" / "000.png", "none.png", "--out", tmp_path / "r")
    failed = autoencode(*given, "--json")
    assert failed.code == 1
    assert len(json.loads(failed.out)["results"]) == 1


def test_options_of_every_command_are_taken_before_its_name_too(autoencode: Command, trained: Run) -> None:
    after = autoencode("info", trained.folder, "--json")
    assert autoencode("--json", "info", trained.folder) == after
    assert autoencode("-q", "--json", "info", trained.folder) == after
    assert after.code == 0


@pytest.mark.parametrize("command", ["reconstruct", "generate"])
def test_what_is_no_model_is_named_by_what_it_is(
    command: str, autoencode: Command, tiny_pack: Pack, tmp_path: Path
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "classifier.safetensors").touch()
    given = ["a.jpg"] if command == "reconstruct" else []
    pack = tiny_pack.path
    said = f"{pack} is a pack, not a model. Train on it first: autoencode train {pack}"
    assert_one_line(autoencode(command, pack, *given), said)
    said = f"{tmp_path / 'c'} is a classifier, not a model. It is for: autoencode classify {tmp_path / 'c'}"
    assert_one_line(autoencode(command, tmp_path / "c", *given), said)


def test_further_pages_are_said_where_files_are_read(
    autoencode: Command, photos: Path, trained: Run, tmp_path: Path
) -> None:
    (tmp_path / "odd").mkdir()
    page = Image.open(photos / "coast" / "000.png").convert("RGB")
    page.save(tmp_path / "odd" / "pages.tif", save_all=True, append_images=[page])
    page.save(tmp_path / "odd" / "a.png")
    said = "note: 1 of 1 files looked at have several pages or frames, of which the first is taken"
    made = autoencode("reconstruct", trained.folder, tmp_path / "odd", "--out", tmp_path / "r")
    assert said in made.out
    made = autoencode(
        "index", tmp_path / "odd", "--model", trained.folder, "--embedding", "code", "--out", tmp_path / "i"
    )
    assert said in made.out
    shutil.copy(tmp_path / "odd" / "a.png", tmp_path / "odd" / "b.png")
    made = autoencode(
        "index", tmp_path / "odd", "--model", trained.folder, "--embedding", "code", "--out", tmp_path / "j"
    )
    assert "codes: 2 encoded (1 more file byte for byte the same as another)" in made.out
    assert "3 images" in made.out


def test_a_file_whose_name_begins_with_a_dash_is_a_file(
    autoencode: Command, photos: Path, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-dash.png", "-n", "--out"):
        shutil.copy(photos / "coast" / "000.png", name)
    result = autoencode("reconstruct", trained.folder, "-dash.png", "--out", "r")
    assert (result.code, "of 1 image" in result.out) == (0, True)
    assert autoencode("generate", trained.folder, "--help").code == 0
    assert "-n" not in autoencode("morph", trained.folder, "-n", "-dash.png", "--out", "m.png").err


def test_searching_in_a_folder_of_images_says_how_to_index_it(
    autoencode: Command, photos: Path, tmp_path: Path
) -> None:
    found = autoencode("search", photos, "x.jpg")
    assert_one_line(found, f"No index at {photos}. ", f"index it first: autoencode index {photos}")


def test_ctrl_c_is_one_line(
    autoencode: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autoencode.index.build_index", stop)
    stopped = autoencode("index", photos, "--out", tmp_path / "index")
    assert stopped == (130, "", "stopped: files are whole or absent.\n")
    assert autoencode("index", photos, "--out", tmp_path / "index", "--quiet") == (130, "", "")
    as_json = autoencode("index", photos, "--out", tmp_path / "index", "--json")
    assert (as_json.code, as_json.out) == (130, "")


def test_an_index_that_was_not_finished_is_said_to_be_that(
    autoencode: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "indexes" / photos.name / "pack").mkdir(parents=True)
    found = autoencode("search", photos, photos / "coast" / "000.png")
    assert_one_line(found, f"The index of {photos} was not finished. ", f": autoencode index {photos}")


def test_ctrl_c_while_the_commands_are_loaded_ends_without_a_traceback() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["autoencode"].split(":")
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"from {module} import {function}\n"
        f"{function}()"
    )
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (stopped.returncode, stopped.stderr) == (130, "")


def test_shells_complete_commands(tmp_path: Path) -> None:
    environment = {**os.environ, "_AUTOENCODE_COMPLETE": "complete_bash", "COMP_WORDS": "autoencode tr"}
    code = "import sys; sys.argv[0] = 'autoencode'\nfrom autoencode.cli.main import main\nmain()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"COMP_CWORD": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.split() == ["train", "transfer"]


@pytest.mark.parametrize("command", ["pack", "train"])
def test_a_source_that_cannot_be_used_is_named(autoencode: Command, command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    for name, part in (
        ("none", "does not exist. Give a folder of images"),
        ("empty", "No images in"),
        ("broken", "can be used, of 1 found"),
    ):
        result = autoencode(command, tmp_path / name, "--out", tmp_path / "out")
        assert_one_line(result, tmp_path / name, part)
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(error, 2 if error is ConfigError else 1) for error in AutoencodeError.__subclasses__()],
)
def test_a_setting_that_cannot_be_used_is_a_wrong_call_and_nothing_else_is(
    autoencode: Command, error: type[AutoencodeError], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error("extra", "purpose") if error is MissingExtraError else error("what happened")

    monkeypatch.setattr(main, "app", fail)
    assert_one_line(autoencode(), "extra" if error is MissingExtraError else "what happened", code=code)


def test_a_folder_of_images_in_place_of_a_model_leads_to_the_model(
    autoencode: Command, photos: Path, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    untrained = "No model in photos. If it is a folder of images, train on it first: autoencode train photos"
    for command in ("generate", "evaluate", "export"):
        assert_one_line(autoencode(command, "photos"), untrained)
    assert_one_line(
        autoencode("app", "photos"),
        "photos is not a run folder. Leave it out, and choose a folder in the page",
    )
    shutil.copytree(trained.folder, Path("runs") / "photos")
    for command in ("generate", "evaluate"):
        assert_one_line(autoencode(command, "photos"), "No model in photos. Did you mean runs/photos?")
    assert_one_line(autoencode("outliers", "phots", "new"), "phots does not exist. Give a folder of normal ")
    assert_one_line(autoencode("outliers", "phots"), "phots does not exist. Give a folder of normal ")


def test_outputs_that_are_not_ours_are_left_alone(
    autoencode: Command, photos: Path, trained: Run, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for command, part in (
        (("train", photos, "--size", 32), "not empty and not a run of ours. Choose another --out"),
        (("pack", photos), "is not a pack, and not empty"),
        (("reconstruct", trained.folder, photos), "holds no earlier reconstructions. Choose another --out"),
    ):
        assert_one_line(autoencode(*command, "--out", tmp_path), tmp_path, part)
        assert_one_line(autoencode(*command, "--out", tmp_path / "thesis.txt"), "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_model_file_that_is_not_one_is_named(autoencode: Command, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name, part in (
        ("text", "is not a model file, or is cut short or damaged"),
        ("folder", f"No model in {tmp_path / 'folder'}. If"),
        ("none", f"No model file at {tmp_path / 'none'}"),
    ):
        result = autoencode("reconstruct", tmp_path / name, photos, "--out", tmp_path / "out")
        assert_one_line(result, part)
    assert not (tmp_path / "out").exists()


def test_an_error_is_printed_as_it_is_whatever_its_path_holds(autoencode: Command, tmp_path: Path) -> None:
    folder = tmp_path / "[red]:smile:[/red] 100 %"
    assert_one_line(autoencode("pack", folder, "--out", tmp_path / "p"), folder)


def test_names_that_are_not_unicode_are_printed_escaped(photos: Path, tmp_path: Path) -> None:
    images = shutil.copytree(photos / "night", tmp_path / "images")
    try:
        (images / "caf\udce9.jpg").write_bytes(b"no image")
    except (OSError, UnicodeError):
        pytest.skip("this file system has Unicode names only")
    arguments = ["pack", str(images), "--out", str(tmp_path / "p"), "--size", "32"]
    code = f"import sys; sys.argv[1:] = {arguments!r}\nfrom autoencode.cli.main import main\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert rb"caf\udce9.jpg: " in result.stdout
