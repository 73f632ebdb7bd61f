"""Several processes train what one trains: the same losses, no image lost or seen twice, one writer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoencode import Pack, RunError, pack_folder, train
from autoencode.training.process import run_workers

# A constant rate: another number of epochs would be another schedule.
TINY: dict[str, Any] = {
    "preset": "paper-ae",
    "widths": (4, 8),
    "code_size": 8,
    "batch_size": 6,
    "epochs": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "autoencoder": {},
    "denoiser": {
        "corrupt": ("gaussian:0.3", "rotate:15", "dropout:0.2"),
        "horizontal_flip": True,
        "shift": 2,
    },
    "vae": {"kind": "vae", "sigma2": "auto"},
    "vae with batch norm and an average": {"kind": "vae", "batch_norm": True, "ema": 0.9},
    # Smaller steps than its own: what they make of rounding is on some processors more than what is compared.
    "best": {"preset": "best", "learning_rate": 1e-4},
    "best with batch norm": {"preset": "best", "batch_norm": True, "learning_rate": 1e-4},
}
# Of times alone it may not be expected that they are the same.
MEASURED = {"images_per_second", "seconds", "input_wait"}

TRAIN = """
import json, os, signal, sys
from pathlib import Path
from autoencode import AutoencodeError, train
from autoencode.training.loop import Loop

rank, restart = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
cases, marks = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).parent
event = json.loads(sys.argv[2]) if len(sys.argv) > 2 else None
written = []

def audit(name, arguments):
    if name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(str(arguments[0]))

sys.addaudithook(audit)
step = Loop._step

def stepped(loop, *arguments):
    if event and rank == 1 and restart == "0" and loop.state.step == event["step"]:
        os.kill(os.getpid(), event["signal"])
    step(loop, *arguments)

Loop._step = stepped
said = []
for case in cases:
    sources, out, settings = case["sources"], case["out"], case["settings"]
    try:
        train(sources[rank % len(sources)], out, precision="fp32", **settings)
        said.append(None)
    except AutoencodeError as err:
        said.append(f"{type(err).__name__}: {err}")
    except KeyboardInterrupt:
        sys.exit(130)
threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
# A thread of gloo that is left when the interpreter ends may abort the process.
assert not [name for name in threads if "gloo" in name], threads
(marks / f"said-{rank}.json").write_text(json.dumps(said))
(marks / f"written-{rank}.json").write_text(json.dumps(written))
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def write_cases(folder: Path, cases: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    return path


def in_processes(count: int, folder: Path, cases: list[dict[str, Any]]) -> list[list[str | None]]:
    """Train each case in `count` processes; return the error, if any, that each process raised in each."""
    shared = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-c", TRAIN, str(write_cases(folder, cases))]
    # Each starts by itself: threads of torch do not survive a fork.
    started = [subprocess.Popen(command, env=shared | {"RANK": str(rank)}) for rank in range(count)]
    assert [process.wait(timeout=300) for process in started] == [0] * count
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(count)]


def records(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def together(tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant trained by three processes; the last batch of an epoch has two images for them."""
    assert len(tiny_pack.training_rows()) % 6 == 2
    folder = tmp_path_factory.mktemp("together")
    cases = [
        {"sources": [str(tiny_pack.path)], "out": str(folder / name), "settings": TINY | settings}
        for name, settings in VARIANTS.items()
    ]
    assert in_processes(3, folder, cases) == [[None] * len(cases)] * 3
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_the_losses_of_three_processes_are_those_of_one(
    name: str, together: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    alone = train(tiny_pack.path, tmp_path / "alone", precision="fp32", **(TINY | VARIANTS[name]))
    found, expected = records(together / name), records(alone.folder)
    # `best` has a third line, of the perceptual phase, whose features are in bf16.
    assert len(found) == len(expected) == 2 + (name == "best")
    for ours, theirs in zip(found, expected, strict=True):
        if "val_perceptual" in theirs:
            # Decided at a threshold, which a rounding can cross.
            ours["sharp_is_kept"] = theirs["sharp_is_kept"]
            assert ours == pytest.approx(theirs, rel=1e-2)
            continue
        assert ours == pytest.approx(theirs, rel=1e-3)
        # Adam makes a step of a gradient that is zero but for rounding, as some of `best` are at its start.
        for loss in ("train_loss", "val_loss"):
            assert ours[loss] == pytest.approx(theirs[loss], rel=1e-4)
    assert len({record["train_loss"] for record in found[:2]}) == 2, (
        "a loss that does not move proves nothing"
    )


def test_only_the_first_process_writes(together: Path) -> None:
    written = [json.loads((together / f"written-{rank}.json").read_text()) for rank in range(3)]
    runs = [
        [path for path in paths if path.startswith(tuple(str(together / n) for n in VARIANTS))]
        for paths in written
    ]
    assert runs[0]
    assert runs[1:] == [[], []]


def test_a_run_records_how_many_trained_it_and_goes_on_with_another_number(
    together: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    folder = together / "autoencoder"
    assert json.loads((folder / "run.json").read_text())["runtime"]["processes"] == 3
    train(tiny_pack.path, folder, resume=True, epochs=3)
    assert json.loads((folder / "run.json").read_text())["runtime"]["processes"] == 1
    alone = train(tiny_pack.path, tmp_path / "alone", precision="fp32", **(TINY | {"epochs": 3}))
    assert records(folder)[2] == pytest.approx(records(alone.folder)[2], rel=1e-4)


SETTINGS = TINY | VARIANTS["vae with batch norm and an average"]


@pytest.fixture(scope="module")
def pair(photos: Path, tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run of two processes, then what is rejected, each in the next call on the same port; the messages."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(photos / "coast", folder / "few")
    other = pack_folder(folder / "few", folder / "few.pack", tiny_pack.preprocessing)
    pack = str(tiny_pack.path)
    asked: list[tuple[list[str], dict[str, Any]]] = [
        ([pack], SETTINGS),
        ([pack, str(other.path)], TINY),
        ([pack], TINY | {"batch_size": 1}),
        ([pack], TINY | {"kind": "vae", "adversarial": True}),
        ([pack, str(folder / "missing")], TINY),
        ([pack], SETTINGS),
    ]
    cases = [
        {"sources": sources, "out": str(folder / f"run-{number}"), "settings": settings}
        for number, (sources, settings) in enumerate(asked)
    ]
    return folder, in_processes(2, folder, cases)


@pytest.fixture(scope="module")
def undisturbed(pair: tuple[Path, list[Any]]) -> Path:
    return pair[0] / "run-0"


def disturbed(pack: Pack, folder: Path, number: signal.Signals) -> list[str]:
    """The command of a run whose process 1 sends itself a signal in the second epoch, the first time."""
    case = {"sources": [str(pack.path)], "out": str(folder / "run"), "settings": SETTINGS}
    event = json.dumps({"step": 10, "signal": number})
    return [sys.executable, "-c", TRAIN, str(write_cases(folder, [case])), event]


def test_a_killed_process_is_replaced_and_the_weights_are_those_of_a_run_without_that(
    undisturbed: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    said: list[str] = []
    assert run_workers(2, disturbed(tiny_pack, tmp_path, signal.SIGKILL), warn=said.append) == 0
    assert len(said) == 1
    assert "Process 1 was killed (SIGKILL)" in said[0]
    assert digest(tmp_path / "run") == digest(undisturbed)
    assert records(tmp_path / "run") == records(undisturbed)


@pytest.mark.scale
def test_torchrun_replaces_a_killed_process_as_well(
    undisturbed: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    script, cases, event = disturbed(tiny_pack, tmp_path, signal.SIGKILL)[2:]
    (tmp_path / "script.py").write_text(script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    # Without this, torch 2.13 may wait for ever after a restart.
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [*torchrun, str(tmp_path / "script.py"), cases, event]
    subprocess.run(command, env=environment, check=True, timeout=600, capture_output=True)
    assert digest(tmp_path / "run") == digest(undisturbed)


def test_ctrl_c_at_one_process_stops_all_of_them_and_loses_no_step(
    undisturbed: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    command = disturbed(tiny_pack, tmp_path, signal.SIGINT)
    assert run_workers(2, command) == 130
    assert not (tmp_path / "said-0.json").exists()
    train(tiny_pack.path, tmp_path / "run", resume=True)
    for ours, theirs in zip(records(tmp_path / "run"), records(undisturbed), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


REJECTED = [
    "PackError: Process 1 has other images than process 0.",
    "ConfigError: 2 processes cannot share batches of 1 images.",
    "ConfigError: Adversarial training needs one process.",
    # Of what ends the second alone the first must hear.
    "PackError: Process 1 does not see",
]


def test_what_processes_cannot_do_together_is_rejected_by_all_of_them(pair: tuple[Path, list[Any]]) -> None:
    folder, (first, second) = pair
    for number, expected in enumerate(REJECTED, 1):
        assert (first[number] or "").startswith(expected), first
        assert second[number] is not None
        assert not (folder / f"run-{number}" / "run.json").exists()


def test_one_run_after_another_in_the_same_processes_is_as_the_first(pair: tuple[Path, list[Any]]) -> None:
    folder, said = pair
    assert [words[-1] for words in said] == [None, None]
    assert digest(folder / "run-5") == digest(folder / "run-0")


def test_a_process_that_nobody_meets_says_so(tiny_pack: Pack, tmp_path: Path) -> None:
    with socket.socket() as taken, pytest.MonkeyPatch.context() as patch:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in ({"WORLD_SIZE": "2", "RANK": "0"} | where).items():
            patch.setenv(name, value)
        with pytest.raises(RunError, match=r"The 2 processes did not meet.*port is taken"):
            train(tiny_pack.path, tmp_path / "run", **TINY)
