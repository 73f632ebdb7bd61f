"""Small real-looking images, a pack of them and a model trained on it, made once for all tests."""

from __future__ import annotations

import os

# Before torch is loaded, here and in child processes: tiny networks gain nothing from threads, and threads
# that wait for each other make a busy machine slow.
os.environ["OMP_NUM_THREADS"] = "1"

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.clusters import LocalCluster, local_cluster

from autoencode import Pack, Preprocessing, Run, pack_folder, train

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# On a busy machine examples are drawn slowly, which says nothing of what is tested.
hypothesis.settings.register_profile("any machine", suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
CLASSES = ("coast", "forest", "night")

# The files that take longest, half of all the time. A process that began with one late would end last.
LONGEST = (
    *("test_docs.py", "web/test_page.py", "torture/test_processes.py", "training/test_train.py"),
    *("cli/test_main.py", "test_inputs.py", "outliers/test_normal.py", "cli/test_demo_pack_train_config.py"),
    *("test_benchmarks.py", "cli/test_outliers.py", "cli/test_report_paper_app.py"),
    *("transfer_learning/test_transfer_learning.py", "test_export.py", "training/test_distributed.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def blobs(seed: int, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """A smooth picture (height, width, 3): three soft spots of colour over a gradient."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    picture = np.outer(y.ravel(), generator.uniform(0, 0.6, 3)).reshape(height, width, 3)
    for _ in range(3):
        centre_y, centre_x, spread = generator.uniform((0, 0, 0.1), (1, 1, 0.4))
        spot = np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * spread**2))
        picture += spot[..., None] * generator.uniform(-0.3, 0.7, 3)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def make_photos(folder: Path, count: int = 48) -> Path:
    """Write `count` pictures: colour in three classes, every tenth grey, every tenth half transparent."""
    for number in range(count):
        pixels = blobs(number, 36 + number % 5, 40 + number % 7)
        image = Image.fromarray(pixels)
        if number % 10 == 3:
            image = image.convert("L")
        if number % 10 == 7:
            image.putalpha(128)
        path = folder / CLASSES[number % 3] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 pictures of about 40x44 in three sub-folders. Do not change it."""
    return make_photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="session")
def tiny_size() -> Preprocessing:
    return Preprocessing(32, 32)


@pytest.fixture(scope="session")
def tiny_pack(photos: Path, tiny_size: Preprocessing, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The pictures at 32x32. Do not change it."""
    return pack_folder(photos, tmp_path_factory.mktemp("packs") / "photos.pack", tiny_size)


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Settings of a network that trains in a moment: about five steps per epoch."""
    return {"preset": "paper-ae", "widths": (4, 8), "code_size": 8, "batch_size": 8}


@pytest.fixture(scope="session")
def trained(tiny_pack: Pack, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An autoencoder after two epochs. Do not change it."""
    return train(tiny_pack.path, tmp_path_factory.mktemp("runs") / "autoencoder", epochs=2, **tiny)


@pytest.fixture(scope="session")
def trained_vae(tiny_pack: Pack, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A VAE after two epochs. Do not change it."""
    return train(tiny_pack.path, tmp_path_factory.mktemp("runs") / "vae", epochs=2, kind="vae", **tiny)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[LocalCluster]:
    """Two Ray nodes on this machine, of one CPU each. Do not kill them."""
    pytest.importorskip("ray.train", reason="the optional part `ray` is not installed")
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster_to_lose() -> Iterator[LocalCluster]:
    """Two such nodes of one test, which may kill them."""
    pytest.importorskip("ray.train", reason="the optional part `ray` is not installed")
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, without a window; what needs it is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A server that speaks S3, where one is installed."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'autoencode[storage]'")
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder in a bucket of that server, and the variables that lead there."""
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    given = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_ENDPOINT_URL": endpoint}
    given |= {"AWS_CONFIG_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
    given |= {"AWS_DEFAULT_REGION": "us-east-1", "AUTOENCODE_CACHE": str(tmp_path / "cache")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    storage = s3fs.S3FileSystem()
    storage.mkdir("images")
    yield "s3://images/photos.pack"
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(key="any", secret="any", endpoint_url=endpoint).rm("images", recursive=True)


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def holds(sheet: NDArray[np.uint8], picture: NDArray[np.uint8]) -> bool:
    """Whether the enlarged picture is somewhere on the sheet."""
    height, width = picture.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (height, width))
    corner = windows[:, :, :: height - 1, :: width - 1] == picture[:: height - 1, :: width - 1, 0]
    return any(
        (windows[y, x] == picture[..., 0]).all() for y, x in zip(*np.nonzero(corner.all((2, 3))), strict=True)
    )


def change_some(folder: Path) -> None:
    """Delete an image, replace one, add one, move one and copy one."""
    paths = sorted(folder.rglob("*.png"))
    paths[0].unlink()
    Image.new("RGB", (40, 40), "red").save(paths[1])
    Image.new("RGB", (40, 40), "blue").save(folder / "new.png")
    paths[2].rename(folder / "moved.png")
    shutil.copy(paths[3], folder / "copy.png")
