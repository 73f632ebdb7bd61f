"""What commands and the page keep beside results: tables, logs, and results of an earlier start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from autoencode.data.pack import Pack, open_pack
from autoencode.duplicates import Duplicates, find_duplicates
from autoencode.duplicates.output import others_of, to_json
from autoencode.outliers.inspection import watch_images
from autoencode.outliers.normal import load_normal
from autoencode.outliers.review import Decisions, decided_files
from autoencode.reconstruction import reconstruct
from autoencode.restoration import restore
from autoencode.web import duplicates as copies
from autoencode.web import inspection, overview
from autoencode.web.results import Form, Results
from autoencode.web.tags import Tags


def make(folder: Path, pack: Pack) -> None:
    """Make them in a folder that has a run, a restorer and normal images."""
    restore(folder / "restorer", folder / "images", folder / "restored")
    reconstruct(folder / "plain", folder / "images" / "class 0", folder / "reconstructed")
    use_watched(folder)
    for name, form, result in (
        ("scores", inspection.form_of(len(pack)), lambda: _inspected(folder, pack)),
        ("copies", _form_of_copies(pack), lambda: find_duplicates(inspection.files_of(pack))),
        (
            "examples",
            overview.form_of_examples(len(pack)),
            lambda: {n: [(0, 0.5)] for n in overview.EXAMPLES},
        ),
    ):
        Results(folder / "page-results").kept(name, "key", form, result)
    tags, decisions = Tags(folder / "tags.jsonl"), Decisions(folder / "decisions.jsonl")
    for entry in list(pack.entries)[:6]:
        tags.set("odd", [entry], is_on=True)
        decisions.decide(pack, entry, "drop")
    tags.undo()
    decisions.undo(pack)


def _inspected(folder: Path, pack: Pack) -> inspection.Inspected:
    everything = np.ones(len(pack), bool)
    return inspection.inspect_pack(pack, everything, lambda *_: None)


def _form_of_copies(pack: Pack) -> Form[Duplicates]:
    return copies.form_of(inspection.files_of(pack))


def use_page(folder: Path) -> None:
    """Read the results that the page kept, as the tabs do."""
    pack, results = open_pack(folder / "images.pack"), Results(folder / "page-results")
    for path in (folder / "page-results").iterdir():
        path.chmod(0o600)  # of any other, nothing is read
    scores = results.known("scores", "key", inspection.form_of(len(pack)))
    if scores is not None:
        scores.ranking.flagged(scores.ranking.smallest_fpr)
        [inspection.overlay(heat) for heat in scores.heats.values()]
    found = results.known("copies", "key", _form_of_copies(pack))
    if found is not None:
        json.dumps(to_json(found), allow_nan=False)
        others_of(found, "largest")
    results.known("examples", "key", overview.form_of_examples(len(pack)))


def use_logs(folder: Path) -> None:
    """Read tags and decisions, and go on with both."""
    pack = open_pack(folder / "images.pack")
    tags, decisions = Tags(folder / "tags.jsonl"), Decisions(folder / "decisions.jsonl")
    json.dumps(tags.counts())
    [tags.of(entry) for entry in pack.entries]
    decided_files(decisions, pack, "drop")
    tags.undo()
    decisions.undo(pack)
    tags.set("more", [pack.entries[0]], is_on=True)


def use_restored(folder: Path) -> None:
    """Restore again into a folder of results."""
    restore(folder / "restorer", folder / "images", folder / "restored")


def use_reconstructed(folder: Path) -> None:
    """Reconstruct again into a folder of results."""
    reconstruct(folder / "plain", folder / "images" / "class 0", folder / "reconstructed")


def use_watched(folder: Path) -> None:
    """Judge a watched folder, going on after the table."""
    normal, table = load_normal(folder / "normal.safetensors"), folder / "watched.csv"
    for _ in watch_images(normal, folder / "images" / "class 0", table, interval_s=0, most_rounds=2):
        pass
