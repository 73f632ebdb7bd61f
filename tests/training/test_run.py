"""run.json and metrics.jsonl: written whole, read back equal, rejected in one line."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from autoencode import ModelConfig, OutputError, Preprocessing, RunError, TrainConfig, atomic
from autoencode.training.run import (
    RunSettings,
    append_metrics,
    is_run,
    keep_metrics_up_to,
    read_metrics,
    read_run,
    write_run,
)

SETTINGS = RunSettings(
    ModelConfig("vae", 12, widths=(3, 5)),
    TrainConfig(sigma2=0.25, loss="gaussian", corrupt=("rotate:5", "dropout:0.1")),
    Preprocessing(32, 48, "pad", (1, 2, 3)),
    "/somewhere/p.pack",
    "abc",
    "cpu",
    True,
    False,
)


def test_settings_survive_the_file(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    write_run(tmp_path, SETTINGS)
    assert is_run(tmp_path)
    assert read_run(tmp_path) == SETTINGS


def test_a_file_instead_of_a_run_folder_is_named_in_the_error(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.touch()
    with pytest.raises(RunError, match=r"is a file\. Give the folder of the run\."):
        read_run(model)
    write_run(tmp_path, SETTINGS)
    with pytest.raises(RunError, match=f"Give the folder of the run: {tmp_path}"):
        read_run(model)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, "a newer version .*Upgrade: "),
        (1, "an earlier version .*format 1.* Start again in another"),
    ],
)
def test_a_run_of_another_version_is_rejected_with_what_to_do(
    version: int, message: str, tmp_path: Path
) -> None:
    write_run(tmp_path, SETTINGS)
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(content | {"format": version}))
    with pytest.raises(RunError, match=message) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"format": 2}', '{"format": "x"}', '{"format": 2, "model": {"code_size": 0}}'],
)
def test_a_damaged_run_is_rejected_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json is damaged") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("runtime", "device"), True),
        (("runtime", "device"), [4, 8]),
        (("runtime", "device"), "\ud800"),
        (("runtime", "device"), 10**30),
        (("runtime", "window"), "../../etc/passwd"),
        (("runtime", "window"), -1),
        (("runtime", "processes"), "2"),
        (("pack",), 1),
        (("preprocessing", "width"), 2**63),
    ],
)
def test_a_run_with_a_forged_value_is_rejected_in_one_line(
    tmp_path: Path, part: tuple[str, ...], value: object
) -> None:
    write_run(tmp_path, SETTINGS)
    content = json.loads((tmp_path / "run.json").read_text())
    inner = content
    for name in part[:-1]:
        inner = inner[name]
    assert inner[part[-1]] != value
    inner[part[-1]] = value
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"run\.json is damaged") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_lines_are_appended_and_read_back(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    records = [{"epoch": 1, "step": 5, "val_loss": 0.1}, {"epoch": 2, "step": 10, "val_loss": 1e-30}]
    for record in records:
        append_metrics(tmp_path, record)
    assert read_metrics(tmp_path) == records


def test_numbers_that_are_not_finite_become_null_so_that_any_reader_can_parse_the_line(
    tmp_path: Path,
) -> None:
    append_metrics(tmp_path, {"step": 1, "val_loss": float("nan"), "train_loss": float("inf")})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "val_loss": None, "train_loss": None}


def test_lines_after_a_step_are_dropped_with_whatever_a_crash_cut_short(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        append_metrics(tmp_path, {"epoch": step // 5, "step": step, "val_loss": 0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "step": 2')
    assert [record["step"] for record in read_metrics(tmp_path)] == [5, 10, 15]
    keep_metrics_up_to(tmp_path, 10)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10]


def test_a_full_disk_is_reported_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OutputError, match=r"metrics\.jsonl: No space left"):
        append_metrics(tmp_path, {"step": 1})


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"epoch": 1, "step": 5, "train_loss": 0.\xff5}',
        b'{"epoch": 1, "step": 5}',
        b'{"step": 5, "val_loss": 0.5}',
        b'{"epoch": [], "step": 5, "val_loss": 0.5}',
        b'{"epoch": null, "step": 5, "val_loss": 0.5}',
        b'{"epoch": 1, "step": 5, "val_loss": 0.5, "train_loss": "low"}',
        b'[["epoch", 1], ["step", 5]]',
        b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_record_is_named_unless_it_is_the_last(damaged: bytes, tmp_path: Path) -> None:
    append_metrics(tmp_path, {"epoch": 1, "step": 5, "val_loss": 0.5})
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + damaged)
    assert read_metrics(tmp_path) == [{"epoch": 1, "step": 5, "val_loss": 0.5}]
    path.write_bytes(damaged + b"\n" + whole)
    with pytest.raises(RunError, match=r"Line 1 of .*metrics\.jsonl is damaged"):
        read_metrics(tmp_path)
