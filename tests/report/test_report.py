"""The page of a run: every part is there, for plain and Gaussian codes."""

import base64
import io
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from autoencode import ModelFileError, Run, RunError
from autoencode.report import write_report


def copied(run: Run, folder: Path) -> Path:
    return Path(shutil.copytree(run.folder, folder / "run"))


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


def test_a_plain_autoencoder_has_every_section(trained: Run, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    stages: set[str] = set()
    page = write_report(folder, quick=True, progress=lambda stage, done, total: stages.add(stage))
    assert page == folder / "report.html"
    html = page.read_text(encoding="utf-8")
    for title in ("Before and after", "Images", "Training", "Neighbours", "Measurements", "Settings"):
        assert f">{title}</h2>" in html
    assert "autoencode train" in html
    assert "mean squared error" in html
    assert len(pictures(html)) >= 5
    assert "comparing reconstructions" in stages


def test_a_vae_also_has_samples_and_measurements_of_its_code(trained_vae: Run, tmp_path: Path) -> None:
    html = write_report(copied(trained_vae, tmp_path), quick=True).read_text(encoding="utf-8")
    assert "From N(0, I)" in html
    assert "active code dimensions" in html


def test_the_same_run_gives_the_same_page(trained: Run, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    first = write_report(folder, quick=True).read_bytes()
    assert write_report(folder, quick=True).read_bytes() == first


def test_a_quick_page_takes_samples_says_so_and_keeps_no_reference(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoencode.report.QUICK_IMAGES", 3)
    folder = copied(trained, tmp_path)
    html = write_report(folder, quick=True).read_text(encoding="utf-8")
    assert "samples of 3 images at most, without KID" in html
    assert f"autoencode report {folder}" in html
    assert re.search(r"On 3 test images, with 95 % intervals\. PCA was fitted to 12 training images", html)
    assert not list(folder.glob("outliers-*"))


def test_a_folder_without_a_run_or_a_model_is_rejected(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError):
        write_report(tmp_path)
    folder = copied(trained, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError):
        write_report(folder)
    assert not (folder / "report.html").exists()
