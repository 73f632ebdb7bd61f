"""The commands that leave something lasting, on images so few and small that each takes a moment.

A command here is a function of (the images, where its result goes), and `result` is what must be the same
however the command was interrupted: digests of all that does not tell the time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoencode.data.manifest import is_pack
from autoencode.data.pack import open_pack, pack_folder
from autoencode.data.pictures import read_picture
from autoencode.data.preprocessing import Preprocessing
from autoencode.duplicates import find_duplicates
from autoencode.duplicates.output import JSON_NAME, OTHERS_NAME, SCRIPT_NAME, TABLE_NAME, write_results
from autoencode.errors import AutoencodeError
from autoencode.index import build_index
from autoencode.models.model_file import load_model
from autoencode.paper.page import write_paper
from autoencode.paper.results import measure_all
from autoencode.paper.study import Experiment, Plan, open_study, train_all, writing
from autoencode.restoration import restore
from autoencode.training.run import is_run, read_metrics
from autoencode.training.train import train
from torture.outcome import Outcome
from torture.processes import run
from torture.seeds import picture

SIZE = Preprocessing(16, 16)
TINY: dict[str, Any] = {"widths": (4, 8), "code_size": 4, "batch_size": 8}
# The same, as they are typed.
TINY_OPTIONS = (
    *("--set", "widths=4,8", "--set", "code_size=4", "--set", "batch_size=8"),
    *("--epochs", "2", "--size", "16"),
)
EXPERIMENTS = (
    Experiment("ae", "paper-ae", "", TINY),
    Experiment("vae-0.01", "paper-vae", "", {**TINY, "epochs": 10}),
)
_TIMES = ("seconds", "images_per_second", "input_wait", "seconds_an_image")


def make_images(folder: Path, count: int, first: int = 0) -> Path:
    """Write so many small pictures in three sub-folders."""
    for number in range(first, first + count):
        path = folder / f"class {number % 3}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(20 + number % 5, 24, seed=number).save(path)
    return folder


def pack(images: Path, out: Path, workers: int | None = 1) -> None:
    """Pack a folder."""
    pack_folder(images, out, SIZE, workers=workers)


def fit(images: Path, out: Path) -> None:
    """Train a model, or go on with it where there is a run."""
    pack(images, out.with_suffix(".pack"))
    train(
        out.with_suffix(".pack"),
        out,
        epochs=3,
        kind="vae",
        resume=is_run(out),
        checkpoint_every=2,
        keep_memory=False,
        **TINY,
    )


def index(images: Path, out: Path) -> None:
    """Index a folder by the model beside it."""
    build_index(images, out, images.parent / "model.safetensors", embedding="code")


def lance(images: Path, out: Path) -> None:
    """Index a folder by the model beside it, in the tables of LanceDB."""
    build_index(images, out, images.parent / "model.safetensors", embedding="code", store="lance")


def paper(images: Path, out: Path) -> None:
    """Run two experiments of the paper and write the page."""
    with writing(out):
        plan = Plan(out, open_study(images, out, SIZE, None, 0), EXPERIMENTS, 0.2, 0)
        write_paper(measure_all(plan, train_all(plan)))


def restored(images: Path, out: Path) -> None:
    """Restore a folder by the restorer beside it."""
    restore(images.parent / "restorer.safetensors", images, out)


def duplicates(images: Path, out: Path) -> None:
    """Look for copies in a folder, which has two."""
    copy = images / "copy.png"
    if not copy.exists():
        shutil.copy(sorted(images.rglob("*.png"))[0], copy)
    write_results(find_duplicates(images, cache=out), out, "first")


def result_of_pack(out: Path) -> str:
    """Digest of the entries and of the pixels of each."""
    made = open_pack(out)
    entries = [dataclasses.replace(e, row=0) if e.status == "packed" else e for e in made.entries]
    lines = [json.dumps({**entry.to_json(), "mtime": 0}) for entry in [*entries, *made.skipped]]
    return _digest(made.fingerprint, *lines, made.pixels(made.rows()).tobytes())


def result_of_run(out: Path) -> str:
    """Digest of the model and of what was logged."""
    records = [{k: v for k, v in r.items() if k not in _TIMES} for r in read_metrics(out)]
    return _digest((out / "model.safetensors").read_bytes(), json.dumps(records))


def result_of_index(out: Path) -> str:
    """Digest of the file."""
    return _digest((out / "index.safetensors").read_bytes())


def result_of_lance(out: Path) -> str:
    """Digest of what is known of each image, its vector among it."""
    told = out.with_suffix(".digest")

    def tell() -> None:
        from lancedb import connect

        from autoencode.index.lance.tables import IMAGES

        lines = connect(out).open_table(IMAGES).to_arrow().to_pylist()
        told.write_text(_digest(*sorted(map(repr, lines))))

    # In a process of its own: the threads of LanceDB would not outlive the next fork.
    ended = run(tell)
    if ended.code:
        raise AssertionError(str(ended))
    return told.read_text()


def result_of_paper(out: Path) -> str:
    """Digest of the models, the numbers and the figures."""
    results = _without_times(json.loads((out / "results.json").read_text()))
    runs = [result_of_run(folder) for folder in sorted((out / "runs").iterdir()) if is_run(folder)]
    figures = [path.read_bytes() for path in sorted((out / "figures").iterdir())]
    return _digest(*runs, json.dumps(results, sort_keys=True), *figures)


def result_of_restored(out: Path) -> str:
    """Digest of the images."""
    files = sorted(path for path in out.iterdir() if path.suffix == ".png")
    return _digest(*(path.name for path in files), *(path.read_bytes() for path in files))


def result_of_duplicates(out: Path) -> str:
    """Digest of what was found, and of the script."""
    return _digest(*((out / name).read_bytes() for name in (JSON_NAME, TABLE_NAME, OTHERS_NAME, SCRIPT_NAME)))


def whole_pack(out: Path) -> bool:
    """Whether there is nothing, something known to be unfinished, or a pack whose pixels can all be read."""
    if not is_pack(out):
        return True
    try:
        made = open_pack(out)
    except AutoencodeError as err:
        return "is not finished" in str(err)
    return len(made.pixels(made.rows())) == len(made)


def whole_run(out: Path) -> bool:
    """Whether a model that is there can be loaded, and what was logged can be read."""
    if (out / "model.safetensors").exists():
        load_model(out)
    read_metrics(out)
    return whole_pack(out.with_suffix(".pack"))


def whole_index(out: Path) -> bool:
    """Whether an index that is there can be searched."""
    if (out / "index.safetensors").exists():
        from autoencode.index import open_index

        open_index(out, model=out.parent / "model.safetensors")
    return whole_pack(out / "pack")


def whole_lance(out: Path) -> bool:
    """Whether an index that is there can be searched, or is known to be unfinished."""
    from autoencode.index import open_index

    try:
        open_index(out)
    except AutoencodeError as err:
        # Its settings are written before its first image.
        is_begun = "No index at" in str(err) and not any((out / "images.lance").glob("data/*"))
        return is_begun or "is not finished" in str(err)
    return all(map(whole_pack, (out / "packs").iterdir()))


def whole_paper(out: Path) -> bool:
    """Whether every run is whole, and each page and table that is there ends as it should."""
    runs = sorted((out / "runs").iterdir()) if (out / "runs").is_dir() else []
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    pages = [path.read_text() for path in out.rglob("*.html")]
    return all(map(whole_run, runs)) and all(page.rstrip().endswith("</html>") for page in pages)


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: its name.
        run: does it, with (the images, where to).
        result: of what it left, a digest that does not tell the time.
        is_whole: whether what a killed one left is whole, or is known not to be; may raise.
    """

    name: str
    run: Callable[[Path, Path], None]
    result: Callable[[Path], str]
    is_whole: Callable[[Path], bool]


def whole_restored(out: Path) -> bool:
    """Whether every image that is there can be read, and has the size of its original."""
    return all(read_picture(path).levels.ndim == 3 for path in out.glob("*.png")) if out.exists() else True


def whole_duplicates(out: Path) -> bool:
    """Whether what is there is JSON, and a script that ends as one does."""
    if (out / JSON_NAME).exists():
        json.loads((out / JSON_NAME).read_text())
    return not (out / SCRIPT_NAME).exists() or (out / SCRIPT_NAME).read_bytes().endswith(b'moved"\n')


COMMANDS = (
    Command("pack", pack, result_of_pack, whole_pack),
    Command("train", fit, result_of_run, whole_run),
    Command("index", index, result_of_index, whole_index),
    Command("lance", lance, result_of_lance, whole_lance),
    Command("restore", restored, result_of_restored, whole_restored),
    Command("duplicates", duplicates, result_of_duplicates, whole_duplicates),
    Command("paper", paper, result_of_paper, whole_paper),
)


NO_LANCE = "no index of LanceDB: pip install 'autoencode[lance]'"
HAS_LANCE = importlib.util.find_spec("lancedb") is not None


def chosen(names: Sequence[str], outcome: Outcome) -> list[Command]:
    """Return the commands of these names, or all that can be run here; what cannot is noted."""
    if not names and not HAS_LANCE:
        outcome.notes.append(NO_LANCE)
    return [
        command
        for command in COMMANDS
        if command.name in names or (not names and (HAS_LANCE or command.name != "lance"))
    ]


def make_model(folder: Path, images: Path) -> None:
    """Train what `index` and `restore` take, as `folder`/model.safetensors and restorer.safetensors."""
    run = train(images, folder / "first", size=16, epochs=1, keep_memory=False, **TINY)
    os.link(run.model_path, folder / "model.safetensors")
    small: dict[str, Any] = {"preset": "restore", "widths": (4, 8), "size": 16, "epochs": 1}
    run = train(images, folder / "second", keep_memory=False, **small)
    os.link(run.model_path, folder / "restorer.safetensors")


def prepared(folder: Path, images: int, names: Sequence[str]) -> tuple[Outcome, Path, list[Command]]:
    """Make so many images and the model that `index` takes; return them with the commands of these names."""
    outcome, made = Outcome(), make_images(folder / "images", images)
    ended = run(lambda: make_model(folder, made))
    outcome.check(ended.code == 0, f"no model: {ended}")
    return outcome, made, chosen(names, outcome)


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(b"%d " % len(content) + content)
    return digest.hexdigest()


def _without_times(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {name: _without_times(inner) for name, inner in value.items() if name not in _TIMES}
    if isinstance(value, list):
        return [_without_times(inner) for inner in value]
    return value
