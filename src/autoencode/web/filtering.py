"""Which images under review are asked for, by name, label, decision, tag and more, and in which order."""

from __future__ import annotations

import fnmatch
import functools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.web.missing import missing
from autoencode.web.pictures import Collection, readable
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from autoencode.data.entries import Entry

UNDECIDED, UNTAGGED = "none", "-"

Sort = Literal["name", "date", "size", "score", "shuffled"]
Positions = NDArray[np.int64]


class Filter(NamedTuple):
    """Which images are asked for, and in which order; an empty text is no condition.

    `unusual` is the share of all images, the most anomalous, that are asked for; 0 is no condition.
    `gone` asks for images whose files are not there any more.
    """

    text: str = ""
    label: str = ""
    split: str = ""
    decision: str = ""
    tag: str = ""
    unusual: float = 0
    gone: bool = False
    sort: Sort = "name"
    down: bool = False


class _Columns(NamedTuple):
    """The columns that all images are filtered and sorted by, (N,) each."""

    names: list[str]
    labels: NDArray[np.object_]
    dates: NDArray[np.int64]
    sizes: NDArray[np.int64]


def positions(workspace: Workspace, review: Collection, asked: Filter) -> Positions:
    """Return the positions of the images under review that are asked for, in the order asked for."""
    columns, is_asked = _columns(review), np.ones(len(review), np.bool_)
    if words := asked.text.casefold().split():
        # Every word, anywhere in the path: "tulip 17" finds tulip/0017.jpg.
        tests = [_finder(word) for word in words]
        is_asked &= np.fromiter((all(test(name) for test in tests) for name in columns.names), np.bool_)
    if asked.label:
        is_asked &= columns.labels == asked.label
    if asked.split:
        is_asked &= review.pack.entries.in_split(asked.split)  # type: ignore[arg-type]  # unknown ones match none
    if asked.unusual and (ranking := workspace.ranking) is not None:
        first = ranking.order[: math.ceil(asked.unusual * len(review))]
        is_asked &= np.isin(np.arange(len(review)), first)
    if asked.gone:
        is_asked &= missing(review)
    found = np.flatnonzero(is_asked)
    if asked.decision:
        wanted = None if asked.decision == UNDECIDED else asked.decision
        decided = (workspace.decisions.of(review.pack, review.entry(int(at))) == wanted for at in found)
        found = found[np.fromiter(decided, np.bool_, len(found))]
    if asked.tag:
        tagged = (_has_tag(workspace, review.entry(int(at)), asked.tag) for at in found)
        found = found[np.fromiter(tagged, np.bool_, len(found))]
    return in_order(workspace, review, found, asked.sort, asked.down)


def _finder(word: str) -> Callable[[str], bool]:
    """Return a test whether a path has a word in it; with * or ?, whether it, or its name, is like that."""
    if not re.search(r"[*?]", word):
        return lambda name: word in name
    # A bracket is one: names have them, and nobody writes a class of letters here.
    like = re.compile(fnmatch.translate(word.replace("[", "[[]"))).match
    return lambda name: bool(like(name) or like(name.rpartition("/")[2]))


def in_order(workspace: Workspace, review: Collection, found: Positions, sort: Sort, down: bool) -> Positions:
    """Return positions in an order."""
    order = _order(workspace, _columns(review), sort)[found]
    # Negated, not reversed: equal ones keep their order, page after page.
    return found[np.argsort(-order if down else order, kind="stable")]


def _has_tag(workspace: Workspace, entry: Entry, tag: str) -> bool:
    tags = workspace.tags.of(entry)
    return not tags if tag == UNTAGGED else tag in tags


@functools.lru_cache(maxsize=4)
def _columns(review: Collection) -> _Columns:
    # Once: a pass over 100,000 entries takes half a second, too long for each letter that is typed.
    entries = review.pack.entries
    labels = np.array([None if (at := entry.label) is None else readable(at) for entry in entries], object)
    return _Columns(
        [readable(entry.path).casefold() for entry in entries],
        labels,
        np.array([entry.mtime for entry in entries], np.int64),
        np.array([entry.size for entry in entries], np.int64),
    )


def _order(workspace: Workspace, columns: _Columns, sort: Sort) -> NDArray[Any]:
    """Return a number for each image, (N,), that grows in the order asked for."""
    if sort == "date":
        return columns.dates
    if sort == "size":
        return columns.sizes
    if sort == "score" and (ranking := workspace.ranking) is not None:
        return ranking.scores
    if sort == "shuffled":
        return np.random.default_rng(int(workspace.launch, 16)).permutation(len(columns.names))
    places = np.empty(len(columns.names), np.int64)
    places[sorted(range(len(places)), key=columns.names.__getitem__)] = np.arange(len(places))
    return places


def described(workspace: Workspace, review: Collection, position: int, *, is_gone: bool) -> dict[str, Any]:
    """Return the facts about an image under review, with its decision, its tags and its score."""
    entry, ranking = review.entry(position), workspace.ranking
    more: dict[str, Any] = {"decision": workspace.decisions.of(review.pack, entry)}
    if ranking is not None:
        more["score"] = float(ranking.scores[position])
    if is_gone:
        more["gone"] = True
    return workspace.describe(f"{review.letter}{position}", tags=workspace.tags.of(entry), **more)
