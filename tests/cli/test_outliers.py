"""The command end to end, and what is said when something is wrong: one line, exit code 1."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from autoencode import Pack, Run, pack_folder
from autoencode.cli import main
from autoencode.cli.outliers import SCORE_HELP, ScoreName
from autoencode.outliers.calibration import NAME
from autoencode.outliers.overlays import draw
from autoencode.outliers.scores import SCORES

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def outliers(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process: exit code, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autoencode", "outliers", *map(str, arguments)])
        capfd.readouterr()
        try:
            main.main()
            code: object = 0
        except SystemExit as err:
            code = err.code or 0
        assert isinstance(code, int)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def run_folder(trained_vae: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_vae.folder, tmp_path / "run"))


def test_a_run_folder_is_all_it_needs(
    outliers: Command, run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found.csv"
    code, said, complaint = outliers(run_folder, photos, "--fpr", "0.3", "--heatmaps", "--out", out)
    assert code == 0, complaint
    assert " of 48 images, by auto" in said
    assert "on average at most 30.00 % of normal images are called outliers, calibrated on" in said
    assert "with 99 % confidence at most" in said
    assert "validation images flagged, 95 % interval" in said
    assert str(out) in said
    assert str(tmp_path / "found-worst.png") in said
    assert (run_folder / NAME).is_file()
    assert len(out.read_text().splitlines()) == 49


def test_the_papers_rule_says_that_it_flags_half(outliers: Command, run_folder: Path, photos: Path) -> None:
    code, said, _ = outliers(run_folder, photos, "--rule", "paper")
    assert code == 0
    assert "it calls half of normal images outliers" in said


def test_few_images_need_no_option_and_hear_what_can_be_promised(
    outliers: Command, run_folder: Path, photos: Path
) -> None:
    code, said, complaint = outliers(run_folder, photos)
    assert code == 0, complaint
    assert re.search(
        r"at most \d+\.\d\d % of normal images .* on \d test images\..* A rate of 1 % takes 99 or more",
        said,
    )


def test_a_model_file_alone_needs_its_pack_once(
    outliers: Command, trained: Run, tiny_pack: Pack, photos: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copy(trained.model_path, tmp_path / "model.safetensors"))
    code, _, complaint = outliers(model, photos, "--fpr", "0.3")
    assert code == 2
    assert complaint.count("\n") == 1
    assert "--pack PACK" in complaint
    assert outliers(model, photos, "--fpr", "0.3", "--pack", tiny_pack.path)[0] == 0
    # From now on what was learned from the pack is beside the model, and enough.
    code, said, complaint = outliers(model, photos, "--fpr", "0.3")
    assert code == 0, complaint
    assert "rule:     on average at most" in said


def test_a_model_that_was_trained_on_few_images_judges_where_only_its_file_is(
    outliers: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "few").mkdir()
    for path in sorted(photos.rglob("*.png"))[:20]:
        shutil.copy(path, tmp_path / "few")
    options = ["--preset", "paper-ae", "--epochs", "1", "--size", "32", "--set", "widths=[4, 8]"]
    command = [
        "autoencode",
        "train",
        str(tmp_path / "few"),
        "--out",
        str(tmp_path / "runs" / "few"),
        *options,
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    model = Path(shutil.copy(tmp_path / "runs" / "few" / "model.safetensors", tmp_path))
    shutil.rmtree(tmp_path / "runs")
    code, said, complaint = outliers(model, photos)
    assert code == 0, complaint
    assert " of 48 images, by auto" in said


def test_images_of_another_pack_are_noted(
    outliers: Command, trained: Run, tiny_pack: Pack, photos: Path, tmp_path: Path
) -> None:
    other = pack_folder(photos / "coast", tmp_path / "pack", tiny_pack.preprocessing, workers=1)
    out = tmp_path / "found.json"
    model = Path(shutil.copy(trained.model_path, tmp_path / "model.safetensors"))
    for pack, noted in ((other, 1), (tiny_pack, 0)):
        code, said, complaint = outliers(model, photos, "--pack", pack.path, "--fpr", 0.9, "--out", out)
        assert code == 0, complaint
        assert said.count("note: These are not the images the model was trained on") == noted
        assert len(json.loads(out.read_text())["notes"]) == noted


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--heatmaps",), "give --out"),
        (("--score", "kl", "--fpr", "0.3"), "needs a VAE"),
        (("--fpr", "0.01"), "needs 99 test images to calibrate on"),
    ],
)
def test_what_cannot_be_is_one_line(
    outliers: Command, trained: Run, photos: Path, arguments: tuple[str, ...], part: str
) -> None:
    code, _, complaint = outliers(trained.folder, photos, *arguments)
    assert code == 2
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert part in complaint


def test_the_command_offers_every_score(outliers: Command) -> None:
    assert get_args(ScoreName) == tuple(SCORES)
    code, said, _ = outliers("--help")
    assert code == 0
    assert all(f"{score}:" in said for score in SCORES)
    assert all(f"{score.name}: {score.summary}" in SCORE_HELP for score in SCORES.values())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty grey images with grain: parts that are all alike."""
    folder = tmp_path_factory.mktemp("parts") / "good"
    folder.mkdir()
    for seed in range(20):
        grain = np.random.default_rng(seed).normal(120, 9, (64, 96)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grain).save(folder / f"{seed}.png")
    return folder


def test_a_folder_of_normal_images_judges_others_without_training(
    outliers: Command, good: Path, photos: Path, tmp_path: Path
) -> None:
    kept, table = tmp_path / "good.safetensors", tmp_path / "found.csv"
    code, said, complaint = outliers(
        good, photos, "--out", table, "--save", kept, "--maps", tmp_path / "maps"
    )
    assert code == 0, complaint
    assert "outliers: 48 of 48 images, by patches of EfficientNet-Lite0" in said
    assert "on average at most 5.00 % of normal images are called outliers" in said
    assert "calibrated on 20 normal images" in said
    assert len(table.read_text().splitlines()) == 49
    assert len(list((tmp_path / "maps").glob("*.png"))) == 96
    assert said.count("\nOUTLIER") == 10
    assert "\nand 38 more images, 38 of them outliers\n" in said
    again = outliers(kept, photos, "--fail-on-outlier")
    assert again[0] == 1
    assert "outliers: 48 of 48 images" in again[1]
    assert outliers(kept, next(good.iterdir()), "--fail-on-outlier")[0] == 0


def test_the_first_ten_are_printed_and_those_that_are_outliers_marked(
    outliers: Command, good: Path, photos: Path, tmp_path: Path
) -> None:
    kept, strange = tmp_path / "good.safetensors", next(photos.rglob("*.png"))
    _, said, _ = outliers(good, *sorted(good.iterdir())[:15], strange, "--save", kept)
    lines = [line for line in said.splitlines() if line.startswith(("OUTLIER ", "normal "))]
    assert len(lines) == 10
    assert lines[0].startswith("OUTLIER ") and str(strange) in lines[0]
    assert lines[-1].startswith("normal ")
    # One that is named has its score, also if it is none.
    _, said, _ = outliers(kept, good / "3.png")
    assert re.search(rf"^normal +-?\d+\.\d\d  p [\d.]+  {good / '3.png'}", said, re.MULTILINE)


def test_ctrl_c_says_what_is_written_and_the_next_run_replaces_it(
    outliers: Command, good: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, table, kept = tmp_path / "maps", tmp_path / "found.csv", tmp_path / "good.safetensors"
    assert outliers(good, "--save", kept)[0] == 0
    named = sorted(photos.rglob("*.png"))[:5]
    drawn = []

    def twice_after_three(*args: object) -> None:
        if len(drawn) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        drawn.append(args)
        draw(*args)  # type: ignore[arg-type]

    # Started in the background of a shell, Python leaves SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr("autoencode.outliers.inspection.draw", twice_after_three)
            code, _, complaint = outliers(kept, *named, "--maps", maps, "--out", table)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "stopped: 3 of 5 maps written; the table" in complaint
    assert complaint.count("\n") == 1
    assert len(table.read_text().splitlines()) == 6
    assert len(list(maps.glob("*-overlay.png"))) == 3
    assert outliers(kept, *named[:2], "--maps", maps)[0] == 0
    assert len(list(maps.glob("*-overlay.png"))) == 2


def test_an_image_that_cannot_be_judged_is_counted_and_not_passed(
    outliers: Command, good: Path, tmp_path: Path
) -> None:
    new, table = tmp_path / "new", tmp_path / "found.csv"
    new.mkdir()
    shutil.copy(good / "0.png", new)
    (new / "cut.png").write_bytes((good / "1.png").read_bytes()[:200])
    (new / "notes.txt").touch()
    code, said, complaint = outliers(good, new, "--out", table)
    assert code == 0, complaint
    assert "outliers: 0 of 1 image, by" in said
    assert "unread:   1 image could not be judged" in said
    assert len(table.read_text().splitlines()) == 3
    assert outliers(good, new, "--fail-on-outlier")[0] == 1
    (new / "cut.png").unlink()
    code, said, _ = outliers(good, new, "--fail-on-outlier")
    assert code == 0
    assert "unread" not in said


def test_masks_that_a_table_of_images_names_are_compared_without_an_option(
    outliers: Command, good: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    mask = tmp_path / "mask.png"
    Image.fromarray(np.eye(64, 96, dtype=np.uint8) * 255).save(mask)
    paths = sorted(map(str, good.iterdir()))[:3]
    table = pytest.importorskip("pyarrow").table({"path": paths, "mask": [str(mask), "", None]})
    parquet.write_table(table, tmp_path / "parts.parquet")
    code, said, complaint = outliers(good, tmp_path / "parts.parquet")
    assert code == 0, complaint
    assert "masks:    1 image with a defect, 2 without" in said
    code, said, complaint = outliers(good, good, "--masks", tmp_path / "parts.parquet")
    assert "masks:    1 image with a defect" in said, complaint


def test_a_data_set_of_defects_is_read_as_one(outliers: Command, good: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(good, parts / "train" / "good")
    for kind in ("good", "crack"):
        (parts / "test" / kind).mkdir(parents=True)
    for seed in range(100, 106):
        grain = np.random.default_rng(seed).normal(120, 9, (64, 96)).clip(0, 255).astype(np.uint8)
        if seed > 102:
            grain[20:40, 30:60] = 255
            mask = np.zeros((64, 96), np.uint8)
            mask[20:40, 30:60] = 255
            (parts / "ground_truth" / "crack").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(parts / "ground_truth" / "crack" / f"{seed}_mask.png")
        Image.fromarray(grain).save(parts / "test" / ("crack" if seed > 102 else "good") / f"{seed}.png")
    code, said, complaint = outliers(parts)
    assert code == 0, complaint
    assert f"read as: train is normal, test is judged, of {parts}" in said
    assert " of 6 images" in said
    assert "calibrated on 20 normal images" in said
    assert "masks:    3 images with a defect, 3 without; AUROC of images 1.000" in said
    # Other images are judged by the normal ones alone, too.
    code, said, _ = outliers(parts, next(good.iterdir()))
    assert "calibrated on 20 normal images" in said
    assert "of 1 image, by" in said
    # A table says the same.
    rows = ["path,split,mask"]
    for path in sorted(parts.rglob("*.png")):
        if "ground_truth" not in path.parts:
            mask = parts / "ground_truth" / "crack" / f"{path.stem}_mask.png"
            rows.append(f"{path},{path.parts[-3]},{mask if mask.exists() else ''}")
    table = tmp_path / "parts.csv"
    table.write_text("\n".join(rows))
    code, said, complaint = outliers(table)
    assert code == 0, complaint
    assert f"read as: train is normal, test is judged, of {table}" in said
    assert "calibrated on 20 normal images" in said
    assert "masks:    3 images with a defect, 3 without; AUROC of images 1.000" in said


def test_patterns_choose_among_the_normal_images_and_those_to_judge(
    outliers: Command, good: Path, tmp_path: Path
) -> None:
    shutil.copytree(good, tmp_path / "all" / "good")
    (tmp_path / "all" / "good" / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (96, 64), "white").save(tmp_path / "all" / "good" / "0_mask.png")
    table = tmp_path / "found.csv"
    code, said, complaint = outliers(
        tmp_path / "all", tmp_path / "all", "--exclude", "*_mask.png", "--out", table
    )
    assert code == 0, complaint  # the broken file was found in a folder, and not asked for by its name
    assert "calibrated on 20 normal images" in said
    assert "of 20 images" in said
    assert "_mask" not in table.read_text()
    broken = tmp_path / "all" / "good" / "broken.png"
    code, _, complaint = outliers(good, broken, good, "--exclude", "*_mask.png")
    assert code == 1
    assert "1 file asked for by name could not be used" in complaint
    code, said, complaint = outliers(tmp_path / "all", "--include", "*_mask.png")
    assert code == 2
    assert "10 or more normal images" in complaint
    code, said, complaint = outliers(good, "--watch", good, "--out", table, "--include", "a*")
    assert code == 2
    assert "Leave --include and --exclude out" in complaint


def test_normal_images_may_be_a_list(outliers: Command, good: Path, tmp_path: Path) -> None:
    names = tmp_path / "good.txt"
    names.write_text("\n".join(str(path) for path in sorted(good.iterdir())))
    code, said, complaint = outliers(names, good / sorted(path.name for path in good.iterdir())[0])
    assert code == 0, complaint
    assert "calibrated on 20 normal images" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("0.png", "."), "is an image. Give a folder of normal images: "),
        ((".", "nothing"), "nothing does not exist. Give image files, and folders of them."),
        ((".", "../empty"), "No images in "),
    ],
)
def test_a_slip_costs_no_time(
    given: tuple[str, str], message: str, outliers: Command, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good.parent / "empty").mkdir(exist_ok=True)
    monkeypatch.setattr("autoencode.outliers.normal.fit_normal", lambda *_, **__: pytest.fail("it learned"))
    code, _, complaint = outliers(*(good / name for name in given))
    assert code in (1, 2)
    assert message in complaint
    assert complaint.count("\n") == 1


def test_normal_images_alone_are_judged_by_each_other(outliers: Command, good: Path) -> None:
    code, said, complaint = outliers(good)
    assert code == 0, complaint
    assert " of 20 images, by patches" in said
    assert "at 5.00 %, at most 0 of 20 images that judge each other can be called outliers" in said


def test_files_are_judged_as_they_come_until_an_outlier_stops_it(
    outliers: Command, good: Path, photos: Path, tmp_path: Path
) -> None:
    table = tmp_path / "today.csv"
    code, said, complaint = outliers(good, "--watch", photos, "--out", table, "--fail-on-outlier")
    assert code == 1, complaint
    assert "OUTLIER" in said
    assert len(table.read_text().splitlines()) == 2


def test_options_of_the_other_kind_are_rejected(
    outliers: Command, good: Path, run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    for arguments, message in (
        (
            (good, photos, "--score", "knn"),
            "--score goes with a model, not with normal images.",
        ),
        ((good, photos, "--heatmaps"), "--heatmaps goes with a model, not with normal images."),
        ((run_folder, photos, "--maps", tmp_path), "--maps goes with a folder of normal images"),
        ((good, "--watch", photos), "give --out TABLE.csv"),
        ((good, photos, "--only-outliers"), "give a folder for them"),
        ((run_folder, photos, "--masks", tmp_path), "--masks goes with a folder of normal images"),
        ((run_folder,), "Give the images to judge after the model"),
        ((good, photos, "--fpr", "0.01"), "needs 99 normal images; there are 20"),
    ):
        code, _, complaint = outliers(*arguments)
        assert code == 2
        assert message in complaint
        assert complaint.count("\n") == 1
