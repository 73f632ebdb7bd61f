"""The images of a pack, most anomalous first, and the decisions of a person about them.

Lengths: N entries of the pack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from autoencode.csv_files import csv_bytes
from autoencode.data.loader import batches
from autoencode.errors import check_choice
from autoencode.outliers.calibration import OutlierReference, scorer
from autoencode.outliers.conformal import FalsePositiveRate, attainable_fpr, false_positive_rate
from autoencode.outliers.scores import SCORES, default_score
from autoencode.shared_log import SharedLog

if TYPE_CHECKING:
    from autoencode.data.entries import Entry
    from autoencode.data.pack import Pack, Progress
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.outliers.find import Box

BATCH = 64

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """How anomalous each image of a pack is.

    Attributes:
        score: name of the score.
        scores: (N,) in the order of the pack's entries; larger is more anomalous.
        p_values: (N,) conformal p-values, in (0, 1]: how rarely a normal image scores as high.
        order: (K,) positions of the entries that are looked through, most anomalous first: all N, or those
            that are not known to be normal; see `without`.
        calibration_images: held-out images behind the p-values.
        validation_p_values: (M,) of the validation images of the training, all of them normal.
    """

    score: str
    scores: Array
    p_values: Array
    order: NDArray[np.int64]
    calibration_images: int
    validation_p_values: Array

    @property
    def smallest_fpr(self) -> float:
        """The smallest false positive rate that the calibration images allow.

        Raises:
            ConfigError: there are no calibration images.
        """
        attainable_fpr(self.calibration_images)
        return 1 / (self.calibration_images + 1)

    def flagged(self, fpr: float) -> int:
        """Return the number of images, from the start of `order`, that are outliers at a false positive rate.

        Raises:
            ConfigError: there are too few calibration images for the rate.
        """
        return int((self.p_values[self.order] <= attainable_fpr(self.calibration_images, fpr)).sum())

    def without(self, is_left_out: NDArray[np.bool_]) -> Ranking:
        """Return the ranking of those images that are not left out, which (N,) are."""
        return replace(self, order=self.order[~is_left_out[self.order]])

    @property
    def standing_out(self) -> int:
        """The number of images, from the start of `order`, whose scores exceed the normal fit of the rest.

        Chauvenet's criterion: if the scores were normally distributed with this median and upper half, fewer
        than half a score would be expected as high. A rate flags its fraction of any folder; this number is 0
        where the scores fall off as those of normal images do.
        """
        scores = self.scores[self.order]
        if not len(scores):
            return 0
        # The 84th percentile is one standard deviation up, and is not moved by one outlier in ten.
        middle, upper = np.quantile(scores, [0.5, norm.cdf(1)])
        most = middle + (upper - middle) * norm.isf(0.5 / len(scores))
        return int((scores > most).sum())

    def validation_fpr(self, fpr: float) -> FalsePositiveRate | None:
        """Return the false positive rate on the validation images; None if there are none."""
        return false_positive_rate(self.validation_p_values <= fpr)


def rank_pack(
    model: Autoencoder,
    pack: Pack,
    reference: OutlierReference,
    progress: Progress | None = None,
) -> Ranking:
    """Score every image of a pack with the default score of codes.

    Args:
        model: from `load_model`.
        pack: the images, of the model's size; copies of one are scored once.
        reference: the result of `fit_reference` for this model.
        progress: called with (images scored, images in all).

    Raises:
        ConfigError: the images of the pack have another size.
    """
    model.check_preprocessing(pack.preprocessing, pack.path)
    score = SCORES[default_score()]
    scoring = scorer(reference, score.name, model)
    # Entries that are copies share a row of pixels.
    rows, positions = np.unique(pack.rows(), return_inverse=True)
    parts = [scoring(images) for images in batches(pack, rows, BATCH, progress=progress)]
    scores = np.concatenate([np.zeros(0), *parts])[positions]
    scores = reference.cross_scored(score.name, scores, [entry.sha256 for entry in pack.entries])
    validation = reference.validation.get(score.name, np.zeros(0))
    return Ranking(
        score.name,
        scores,
        reference.p_values(score.name, scores),
        np.argsort(-scores, kind="stable"),  # equal scores keep the order of the pack, page after page
        reference.calibration_images,
        reference.p_values(score.name, validation),
    )


Decision = Literal["keep", "drop"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)

_BOX = ("left", "top", "width", "height")


class _Key(NamedTuple):
    """One content under one path: another picture saved under the same name is undecided."""

    folder: str
    path: str
    sha256: str


class _Change(NamedTuple):
    """One step of decisions: the earlier decision about each image, and the time (seconds, Unix time)."""

    before: Mapping[_Key, Decision | None]
    at: float

    def is_about(self, folder: str) -> bool:
        return next(iter(self.before)).folder == folder


class Decisions(SharedLog):
    """The decisions in one log, and those that are made from now on.

    A line decides about one image, or about several of a folder in one step, or undoes such a step.

    Attributes:
        revision: grows with each change, as long as this object lives: of two answers that reach a window of
            the page in another order than they were given, the one of the larger revision stands.
    """

    revision: int = 0

    def _forget(self) -> None:
        self._state: dict[_Key, Decision] = {}
        self._history: list[_Change] = []

    def of(self, pack: Pack, entry: Entry) -> Decision | None:
        """Return the decision about an image, or None."""
        return self._state.get(_key(pack, entry))

    def decide(self, pack: Pack, entry: Entry, decision: Decision) -> None:
        """Write down a decision about an image.

        Raises:
            ConfigError: the decision is neither keep nor drop.
            OutputError: the log cannot be written; the decision does not count then.
        """
        # Values come from a web page; one that no line may hold would make the log unreadable.
        check_choice("decision", decision, DECISIONS)
        with self._writing():
            self._append({**_key(pack, entry)._asdict(), "decision": decision})

    def decide_all(self, pack: Pack, entries: Iterable[Entry], decision: Decision) -> int:
        """Write down one decision about several images, as one step; return how many it changed.

        Raises:
            ConfigError: the decision is neither keep nor drop.
            OutputError: the log cannot be written; the decision does not count then.
        """
        check_choice("decision", decision, DECISIONS)
        with self._writing():
            keys = dict.fromkeys(_key(pack, entry) for entry in entries)
            changed = [key[1:] for key in keys if self._state.get(key) != decision]
            if changed:
                self._append({"folder": str(pack.folder), "images": changed, "decision": decision})
        return len(changed)

    def opposed(self, pack: Pack, entries: Iterable[Entry], decision: Decision) -> int:
        """Return about how many images another decision stands than this one."""
        found = (self._state.get(key) for key in {_key(pack, entry) for entry in entries})
        return sum(one not in (None, decision) for one in found)

    def undo(self, pack: Pack) -> list[str]:
        """Take back the last step that stands in this folder; return the paths it was about, if any."""
        with self._writing():
            last = self._last(pack)
            if last is None:
                return []
            # One more line, because a written line is never changed.
            if len(last.before) > 1:
                self._append({"folder": str(pack.folder), "undo": True})
            else:
                ((key, before),) = last.before.items()
                self._append({**key._asdict(), "decision": before, "undo": True})
        return [key.path for key in last.before]

    def last_at(self, pack: Pack) -> float:
        """Return when the last step that stands in this folder was taken (Unix time); 0 without one."""
        last = self._last(pack)
        return 0.0 if last is None else last.at

    def _last(self, pack: Pack) -> _Change | None:
        return next((made for made in reversed(self._history) if made.is_about(str(pack.folder))), None)

    def counts(self, pack: Pack) -> dict[Decision, int]:
        """Return how many images of this folder each decision stands for."""
        standing = [made for key, made in self._state.items() if key.folder == str(pack.folder)]
        return {decision: standing.count(decision) for decision in DECISIONS}

    def _take(self, record: Mapping[str, Any]) -> None:
        folder, decision = record["folder"], record.get("decision")
        if decision not in (None, *DECISIONS):
            raise ValueError(decision)
        if "path" in record:
            images = [(record["path"], record["sha256"])]
        else:
            images = [(path, sha256) for path, sha256 in record.get("images", ())]
        keys = [_Key(folder, path, sha256) for path, sha256 in images]
        if record.get("undo"):
            # A step of several images is named by its folder alone: it is the last that stands there.
            steps = [
                number
                for number, made in enumerate(self._history)
                if (list(made.before) == keys if keys else made.is_about(folder))
            ]
            self._restore(self._history.pop(steps[-1]).before)
        elif decision is None or not keys:
            raise ValueError(record)
        else:
            before = {key: self._state.get(key) for key in keys}
            self._history.append(_Change(before, float(record.get("at", 0))))
            self._restore(dict.fromkeys(keys, decision))
        self.revision += 1

    def _restore(self, decisions: Mapping[_Key, Decision | None]) -> None:
        for key, decision in decisions.items():
            if decision is None:
                self._state.pop(key, None)
            else:
                self._state[key] = decision


def decisions_table(
    decisions: Decisions,
    pack: Pack,
    ranking: Ranking,
    boxes: Mapping[int, Box | None] | None = None,
    *,
    has_splits: bool = True,
) -> bytes:
    """Return images of a pack as CSV, most anomalous first, with the decision about each.

    Args:
        decisions, pack, ranking: of the images.
        boxes: around the most anomalous region, by position; None where no place is known.
        has_splits: whether a model was trained on the pack, to which its splits mean something.
    """
    split = ("split",) if has_splits else ()
    place = () if boxes is None else _BOX
    rows: list[Iterable[object]] = [("path", "name", "score", "p_value", *split, *place, "decision")]
    for position in ranking.order.tolist():
        entry = pack.entries[position]
        box = (boxes or {}).get(position) or ("",) * len(place)
        rows.append(
            [
                *(pack.folder / entry.path, entry.path),
                *(f"{of[position]:.6g}" for of in (ranking.scores, ranking.p_values)),
                *(entry.split for _ in split),
                *box,
                decisions.of(pack, entry) or "",
            ]
        )
    return csv_bytes(rows)


def decided_files(decisions: Decisions, pack: Pack, decision: Decision) -> bytes:
    """Return the files of a pack about which this decision was made, one per line."""
    return file_list(pack, (entry for entry in pack.entries if decisions.of(pack, entry) == decision))


def file_list(pack: Pack, entries: Iterable[Entry]) -> bytes:
    """Return the paths of entries, one per line, as programs such as xargs take them.

    A path with a line break is left out: it would read as two paths, perhaps of other files.
    """
    paths = (str(pack.folder / entry.path) for entry in entries)
    lines = (f"{path}\n" for path in paths if "\n" not in path)
    # surrogateescape: a name whose bytes are not text comes out as the same bytes, and names the same file.
    return "".join(lines).encode(errors="surrogateescape")


def _key(pack: Pack, entry: Entry) -> _Key:
    return _Key(str(pack.folder), entry.path, str(entry.sha256))
