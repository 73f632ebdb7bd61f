"""On a Ray cluster the processes of a run are those of `--workers`, started by another: the same weights."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.clusters import LocalCluster

from autoencode import ConfigError, Pack, Preprocessing, pack_folder
from autoencode.cluster import Node
from autoencode.training.ray import Mailbox, Resources, resources_for, train_on_ray

# A denoising VAE whose steps depend on the state, the batch and the seed: nothing lost goes unnoticed.
SETTINGS = ["--preset", "paper-vae", "--epochs", "30", "--seed", "3"]
for setting in ("code_size=8", "widths=4,8", "checkpoint_every=1", "precision=fp32"):
    SETTINGS += ["--set", setting]
PATIENCE_S = 300


def test_the_gpus_or_without_gpus_the_cpus_of_a_cluster_are_divided_among_the_processes() -> None:
    small, large, gpus = Node("a", "a", 4, 0), Node("b", "b", 16, 0), Node("c", "c", 8, 2)
    assert resources_for(None, [small, small]) == Resources(2, 4, gpu=False)
    assert resources_for(None, [small, large]) == Resources(2, 8, gpu=False)
    assert resources_for(20, [small, large]) == Resources(20, 1, gpu=False)
    assert resources_for(3, [small, small]) == Resources(3, 2, gpu=False)
    assert resources_for(None, [small, gpus]) == Resources(2, 1, gpu=True)
    assert resources_for(None, [small, gpus], "cpu") == Resources(2, 4, gpu=False)
    with pytest.raises(ConfigError, match="21 processes need a CPU each, and the cluster has 20"):
        resources_for(21, [small, large])
    with pytest.raises(ConfigError, match="3 processes need a GPU each, and the cluster has 2"):
        resources_for(3, [small, gpus])


def test_the_mailbox_keeps_messages_in_order_and_says_when_to_stop() -> None:
    mailbox = Mailbox()
    assert mailbox.start() == 0
    assert not mailbox.put("packing", 1, 2)
    assert mailbox.start() == 1
    mailbox.stop()
    assert mailbox.put("packing", 2, 2)
    assert mailbox.take() == [("packing", 1, 2), ("restarts", 1), ("packing", 2, 2)]
    assert mailbox.take() == []


def test_a_process_among_others_does_not_ask_ray_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="without torchrun"):
        train_on_ray("auto", tmp_path / "photos", tmp_path / "run")


def command(pack: Path | str, out: Path, *options: str) -> list[str]:
    if not any("batch_size" in option for option in options):
        options = ("--set", "batch_size=6", *options)
    return [sys.executable, "-m", "autoencode", "train", str(pack), "--out", str(out), *SETTINGS, *options]


def started(pack: Path | str, out: Path, *options: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(pack, out, *options), cwd=out.parent, **pipes)


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output, errors


def await_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not (run / "checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline, finished(process)
        time.sleep(0.02)


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def by_workers(tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("workers") / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        command(tiny_pack.path, out, "--workers", "2"), env=environment, check=True, capture_output=True
    )
    return out


@pytest.mark.scale
def test_two_nodes_train_the_weights_of_two_processes_and_ray_says_nothing(
    ray_cluster: LocalCluster, by_workers: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, output, errors = finished(started(tiny_pack.path, out, "--ray", ray_cluster.address))
    assert (code, errors) == (0, "")
    assert output.startswith("epoch 1/30") and "\nepoch 30/30" in output
    assert "ray" not in output.replace(str(out), "").lower()
    assert weights(out) == weights(by_workers)


@pytest.mark.scale
def test_a_killed_process_is_replaced_and_the_weights_are_those_of_a_run_without_that(
    ray_cluster: LocalCluster, by_workers: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started(tiny_pack.path, out, "--ray", ray_cluster.address)
    await_checkpoint(out, process)
    os.kill(ray_cluster.processes(title="ray::RayTrainWorker")[-1], signal.SIGKILL)
    code, output, errors = finished(process)
    assert (code, errors) == (0, "")
    assert "A process was lost. All processes start again from the last checkpoint (restart 1)." in output
    assert weights(out) == weights(by_workers)


@pytest.mark.scale
def test_ctrl_c_at_the_driver_keeps_the_state_and_resume_ends_where_the_run_would_have(
    ray_cluster: LocalCluster, by_workers: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started(tiny_pack.path, out, "--ray", ray_cluster.address)
    await_checkpoint(out, process)
    process.send_signal(signal.SIGINT)
    code, output, errors = finished(process)
    assert (code, errors) == (130, ""), output
    assert f"Stopped. {out} keeps its state: run it again with --resume." in output
    assert finished(started(tiny_pack.path, out, "--ray", ray_cluster.address, "--resume"))[0] == 0
    assert weights(out) == weights(by_workers)


@pytest.mark.scale
def test_what_a_cluster_cannot_do_is_one_line(
    ray_cluster: LocalCluster, photos: Path, tiny_pack: Pack, tmp_path: Path
) -> None:
    def said(pack: Path | str, *options: str) -> str:
        code, output, errors = finished(
            started(pack, tmp_path / "run", "--ray", ray_cluster.address, *options)
        )
        assert code in (1, 2) and not output
        assert not list((tmp_path / "run").glob("model*"))
        return errors

    assert said(tiny_pack.path, "--workers", "3") == (
        "error: 3 processes need a CPU each, and the cluster has 2. Ask for fewer.\n"
    )
    assert said(tiny_pack.path, "--set", "batch_size=1").startswith(
        "error: 2 processes cannot share batches of 1"
    )
    # Each process sees its own node's folder under this name.
    folders = [path for path in ray_cluster.folder.iterdir() if path.name.startswith(ray_cluster.mark)]
    for folder, images in zip(folders, (photos, photos / "coast"), strict=True):
        pack_folder(images, folder / "own.pack", Preprocessing(32, 32))
    errors = said("/proc/self/cwd/own.pack")
    assert errors.startswith("error: Process 1 has other images than process 0.") and errors.count("\n") == 1
    errors = said("/proc/self/cwd/none.pack")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    for folder in folders:
        shutil.rmtree(folder / "own.pack")


@pytest.mark.scale
def test_a_node_that_leaves_ends_the_run_in_one_line_and_the_rest_can_go_on(
    cluster_to_lose: LocalCluster, tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    leaving = cluster_to_lose.start_node()
    process = started(tiny_pack.path, out, "--ray", cluster_to_lose.address, "--workers", "3")
    await_checkpoint(out, process)
    cluster_to_lose.kill(leaving)
    code, _, errors = finished(process)
    assert code == 1
    assert errors.startswith("error: The cluster had no room within 60 s for 3 processes"), errors
    assert "It has now nodes: 2, CPUs: 2" in errors and errors.count("\n") == 1
    options = ("--ray", cluster_to_lose.address, "--workers", "2", "--resume")
    assert finished(started(tiny_pack.path, out, *options))[0] == 0


@pytest.mark.scale
def test_a_head_node_that_is_lost_ends_the_run_in_one_line_and_keeps_its_state(
    cluster_to_lose: LocalCluster, tiny_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started(tiny_pack.path, out, "--ray", cluster_to_lose.address, "--epochs", "3000")
    await_checkpoint(out, process)
    cluster_to_lose.kill()
    code, _, errors = finished(process)
    assert code == 1 and errors.count("\n") == 1
    # Ray may notice before we do, and then has a reason of its own.
    assert re.match(
        f"error: The (head node of the )?cluster at {cluster_to_lose.address} is gone[.:]", errors
    )
    assert (out / "checkpoint.safetensors").exists() and not (out / "model.safetensors").exists()
