"""Files that lie: models, indexes, classifiers, checkpoints, runs, packs, and what is kept beside results.

A changed byte is nearly always caught by the digest in the file, so that half of the cases are forged with
their digest made right again: what a file that someone made on purpose would be. Each is opened and used in a
process of its own; it works, or is rejected in one line, in bounded memory and time.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from autoencode.data.pack import open_pack, pack_folder
from autoencode.description import describe
from autoencode.duplicates import find_duplicates
from autoencode.errors import AutoencodeError
from autoencode.generation import fit_prior, generate
from autoencode.index import build_index, open_index
from autoencode.index.inverted_lists import InvertedLists
from autoencode.index.memory import read_index, write_index
from autoencode.index.rounding import Rounding
from autoencode.index.sheet import neighbours_sheet
from autoencode.models.model_file import load_model, read_tensors, save_model, write_tensors
from autoencode.outliers.calibration import fit_reference
from autoencode.outliers.find import find_outliers
from autoencode.outliers.inspection import inspect_images
from autoencode.outliers.normal import fit_normal, load_normal
from autoencode.report.pictures import curves
from autoencode.restoration import restore
from autoencode.training.run import read_metrics, read_run
from autoencode.training.train import train
from autoencode.transfer_learning import transfer
from autoencode.transfer_learning.classifier import classify, load_classifier
from autoencode.web.results import KIND as PAGE_RESULT
from torture import kept
from torture.changes import change_json, change_tensor, lie_about_tensors
from torture.commands import HAS_LANCE, NO_LANCE, SIZE, TINY, make_images
from torture.outcome import Outcome
from torture.processes import Ended, run
from torture.seeds import damaged

MEMORY_MB = 512  # above what the sound file takes
CPU_SECONDS = 20  # then the kernel ends it
IMAGES = 24

Generator = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the kind.
        make: makes all that `use` needs in a folder.
        file: the file to change, in that folder; a folder means any file in it.
        use: opens the file and does with it what it is for.
        signed: what it calls itself, where it is a tensor file; else "".
    """

    name: str
    file: str
    use: Callable[[Path], object]
    signed: str = ""


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Change each kind of file in so many ways, and use it.

    Args:
        cases: changes of each kind.
        seed: of the changes.
        folder: to work in.
        names: the kinds; of none, all.
    """
    outcome = Outcome()
    sound, work = folder / "sound", folder / "work"  # made and used in one place: packs know where images are
    ended = run(lambda: _make(work, with_all=not names or "classifier" in names))
    if not outcome.check(ended.code == 0, f"nothing to forge: {ended}"):
        return outcome
    work.rename(sound)
    most = 0.0
    for kind in (kind for kind in KINDS if kind.name in names or not names):
        if kind.name == "tables" and not HAS_LANCE:
            outcome.notes.append(NO_LANCE)
            continue
        base = _used(kind, shutil.copytree(sound, work))
        shutil.rmtree(work)
        outcome.check(base.code == 0, f"{kind.name}: the sound one cannot be used: {base}")
        for case in range(cases):
            shutil.copytree(sound, work)
            generator = np.random.default_rng([seed, case, *kind.name.encode()])
            what = _forge(kind, _file(work / kind.file, generator), case, generator)
            ended = _used(kind, work)
            outcome.cases += 1
            _judge(f"{kind.name}, seed {seed}, case {case}: {what}", ended, base, outcome)
            most = max(most, ended.most_memory_mb)
            shutil.rmtree(work)
    outcome.notes.append(f"at most {most:,.0f} MB")
    return outcome


def _file(path: Path, generator: Generator) -> Path:
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return files[int(generator.integers(len(files)))]


def _used(kind: Kind, folder: Path) -> Ended:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        kind.use(folder)

    return run(limited)


def _judge(name: str, ended: Ended, base: Ended, outcome: Outcome) -> None:
    if outcome.check(ended.code in (0, REJECTED), f"{name}: {ended}"):
        # A panic of LanceDB, which is Rust, writes what it has to say before our line.
        is_one_line = (
            ended.code == 0
            or "\n" not in ended.errors.strip()
            or (name.startswith("tables,") and "panicked at" in ended.errors)
        )
        outcome.check(is_one_line, f"{name}: several lines: {ended}")
    outcome.check(
        ended.most_memory_mb < base.most_memory_mb + MEMORY_MB, f"{name}: {ended.most_memory_mb:,.0f} MB"
    )


REJECTED = 3


def _rejecting(use: Callable[[Path], object], file: str) -> Callable[[Path], None]:
    """Ask what a file is, and use it; let one of our errors end the process with a code and its message."""

    def used(folder: Path) -> None:
        with contextlib.suppress(AutoencodeError):
            describe(folder / Path(file).parts[0])
        try:
            use(folder)
        except AutoencodeError as err:
            print(err, file=sys.stderr)
            raise SystemExit(REJECTED) from err

    return used


def _make(folder: Path, with_all: bool) -> None:
    """Make one of each kind of file, the classifier only with all."""
    images = make_images(folder / "images", IMAGES)
    pack = pack_folder(images, folder / "images.pack", SIZE, workers=1)
    for name, settings in {"plain": {}, "vae": {"kind": "vae"}, "best": {"preset": "best-vae"}}.items():
        tiny = {**TINY, **settings}
        train(pack.path, folder / name, epochs=2, keep_memory=False, **tiny)
        fit_prior(model := load_model(folder / name), pack)
        save_model(folder / name / "model.safetensors", model, model.provenance)
    judging = load_model(folder / "vae")
    fit_reference(judging, pack, keep=True)
    save_model(folder / "judging.safetensors", judging, judging.provenance)
    model = load_model(folder / "plain")
    build_index(images, folder / "index", folder / "plain", embedding="code")
    _with_lists(folder / "index", folder / "listed")
    train(pack.path, folder / "restorer", preset="restore", epochs=1, widths=(4, 8), keep_memory=False)
    fit_normal(images).save(folder / "normal.safetensors")
    find_duplicates(images, cache=folder / "copies")
    kept.make(folder, pack)
    if HAS_LANCE:
        build_index(images, folder / "tables", folder / "plain", embedding="code", store="lance")
    fit_reference(model, pack, folder / "outliers.safetensors")
    if with_all:  # it takes as long as all others together
        transfer(model, images, folder / "classifier", embedding="code")


def _with_lists(index: Path, out: Path) -> None:
    """Give a small index the inverted lists of a large one."""
    stored = read_index(index)
    count, size = stored.codes.shape
    levels = np.tile(np.arange(16, dtype=np.float32), (4, 1))
    lists = InvertedLists(
        Rounding(np.zeros(size, np.float32), np.eye(size, 4, dtype=np.float32), levels),
        centroids=stored.codes[:3, :4].copy(),
        assignment=np.arange(count) % 3,
        packed=np.zeros((count, 2), np.uint8),
        lengths=np.ones(count, np.float32),
        nprobe=2,
        candidates=60,
        recall=0.9,
    )
    out.mkdir()
    write_index(out, replace(stored, lists=lists))


def _use_model(path: Path) -> None:
    model = load_model(path)
    images = torch.rand(2, 3, model.preprocessing.height, model.preprocessing.width)
    model.decode(model.encode(images))
    generate(model, 2)


def _use_index(path: Path, folder: Path) -> None:
    index = open_index(path, model=folder / "plain")
    found = index.search(sorted((folder / "images").rglob("*.png"))[:2], 3)
    neighbours_sheet(found.results, SIZE)


def _use_tables(folder: Path) -> None:
    index = open_index(folder / "tables", model=folder / "plain")
    index.search(sorted((folder / "images").rglob("*.png"))[:2], 3, label="class 1")
    build_index(folder / "images", folder / "tables", folder / "plain", embedding="code", store="lance")


def _use_classifier(folder: Path) -> None:
    classify(load_classifier(folder / "classifier"), folder / "images" / "class 0", folder / "classes.json")


def _use_reference(folder: Path) -> None:
    model = load_model(folder / "plain")
    reference = fit_reference(model, open_pack(folder / "images.pack"), folder / "outliers.safetensors")
    find_outliers(model, folder / "images" / "class 0", reference)


def _use_judging(folder: Path) -> None:
    find_outliers(load_model(folder / "judging.safetensors"), folder / "images" / "class 0")


def _use_normal(folder: Path) -> None:
    inspect_images(load_normal(folder / "normal.safetensors"), folder / "images" / "class 0")


def _use_run(folder: Path) -> None:
    read_run(folder / "plain")
    (folder / "plain" / "model.safetensors").unlink(missing_ok=True)
    train(folder / "images.pack", folder / "plain", resume=True, epochs=3, keep_memory=False)


def _use_metrics(folder: Path) -> None:
    curves(read_metrics(folder / "plain"), "", "", "")


def _use_pack(folder: Path) -> None:
    pack = open_pack(folder / "images.pack")
    pack.pixels(pack.rows())
    _ = pack.labels, pack.fingerprint, pack.held_out()
    pack_folder(folder / "images", folder / "images.pack", SIZE, workers=1)


KINDS = tuple(
    Kind(kind.name, kind.file, _rejecting(kind.use, kind.file), kind.signed)
    for kind in (
        Kind("model", "plain/model.safetensors", lambda f: _use_model(f / "plain"), "model"),
        Kind("best model", "best/model.safetensors", lambda f: _use_model(f / "best"), "model"),
        Kind("VAE", "vae/model.safetensors", lambda f: _use_model(f / "vae"), "model"),
        Kind("model with its normal images", "judging.safetensors", _use_judging, "model"),
        Kind("index", "index/index.safetensors", lambda f: _use_index(f / "index", f), "search-index"),
        Kind(
            "index of inverted lists",
            "listed/index.safetensors",
            lambda f: _use_index(f / "listed", f),
            "search-index",
        ),
        Kind("tables", "tables", _use_tables),
        Kind("classifier", "classifier/classifier.safetensors", _use_classifier, "classifier"),
        Kind("outlier reference", "outliers.safetensors", _use_reference, "outlier reference"),
        Kind("normal images", "normal.safetensors", _use_normal, "normal images"),
        Kind(
            "restorer",
            "restorer/model.safetensors",
            lambda f: restore(f / "restorer", f / "images", f / "anew"),
            "model",
        ),
        Kind("restored.jsonl", "restored/restored.jsonl", kept.use_restored),
        Kind("reconstructions.csv", "reconstructed/reconstructions.csv", kept.use_reconstructed),
        Kind("watched.csv", "watched.csv", kept.use_watched),
        Kind("page results", "page-results", kept.use_page, PAGE_RESULT),
        Kind("tags.jsonl", "tags.jsonl", kept.use_logs),
        Kind("decisions.jsonl", "decisions.jsonl", kept.use_logs),
        Kind("sketches", "copies", lambda f: find_duplicates(f / "images", cache=f / "copies")),
        Kind("checkpoint", "plain/checkpoint.safetensors", _use_run, "checkpoint"),
        Kind("run.json", "plain/run.json", _use_run),
        Kind("metrics.jsonl", "plain/metrics.jsonl", _use_run),
        Kind("metrics drawn", "plain/metrics.jsonl", _use_metrics),
        Kind("pack.json", "images.pack/pack.json", _use_pack),
        Kind("manifest.jsonl", "images.pack/manifest.jsonl", _use_pack),
        Kind("shard", "images.pack/shards/00000.u8", _use_pack),
    )
)


def _forge(kind: Kind, path: Path, case: int, generator: Generator) -> str:
    """Change a file; return what was done."""
    content = path.read_bytes()
    path.unlink()
    if case % 2 and kind.signed:
        path.write_bytes(content)
        return _forge_signed(kind, path, generator)
    if case % 2 and path.suffix in (".json", ".jsonl"):
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        number = int(generator.integers(len(lines)))
        value = json.loads(lines[number])
        what = change_json(value, generator)
        lines[number] = json.dumps(value).encode()
        path.write_bytes(b"\n".join(lines) + b"\n")
        return f"line {number}: {what}"
    if case % 8 == 0 and kind.signed:
        return lie_about_tensors(path, content, generator)
    path.write_bytes(damaged(content, bytes(generator.bytes(500)), generator))
    return f"bytes of {path.name}"


def _forge_signed(kind: Kind, path: Path, generator: Generator) -> str:
    with safe_open(path, framework="pt") as file:
        version = json.loads(file.metadata()["autoencode"])["version"]
    tensors, content, _ = read_tensors(path, kind.signed, version, AutoencodeError)
    content = {name: value for name, value in content.items() if name not in ("kind", "version")}
    is_of_json = generator.random() < 0.5 or not tensors
    what = change_json(content, generator) if is_of_json else change_tensor(tensors, generator)
    try:
        write_tensors(path, kind.signed, version, tensors, content)
    except (
        ValueError,
        TypeError,
        RuntimeError,
    ):  # JSON or safetensors cannot hold it: nor can a forger write it
        return "nothing"
    return what
