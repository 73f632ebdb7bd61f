"""Duplicates: groups of copies, what was done to each, and which file of each stays. Nothing is deleted."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel

from autoencode.configuration import Keep
from autoencode.duplicates import (
    DuplicateFile,
    DuplicateGroup,
    Duplicates,
    PossiblePair,
    find_duplicates,
)
from autoencode.duplicates.output import others_of, to_json
from autoencode.errors import ConfigError
from autoencode.models.backbones import BACKBONE
from autoencode.web.choices import CHOICES_NAME, Choices
from autoencode.web.jobs import Job
from autoencode.web.pictures import readable
from autoencode.web.results import Form, Saved, key_of, state_of
from autoencode.web.tabs import Missing, OpenWorkspace, download, file_name, finished, recall_all, require
from autoencode.web.tags import TAGS_NAME
from autoencode.web.workspace import Workspace

if TYPE_CHECKING:
    from autoencode.data.entries import Entry
    from autoencode.data.pack import StageProgress
    from autoencode.duplicates.agreement import Box

MOST_IDENTICAL = 50  # groups that are shown while the search goes on
CACHE_NAME = "duplicates"  # beside the decisions: found again at once after a restart
_STAGES = {"reading": "reading files", "comparing": "comparing pairs that look alike"}

router = APIRouter()


@router.get("/api/duplicates")
async def groups(
    workspace: OpenWorkspace,
    keep: Keep = "largest",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Return part of the groups with the file of each that stays, or the progress of finding them."""
    found, position = _found(workspace), _positions(workspace)
    others = set(_others(workspace, found, keep, position))
    pairs = [
        [workspace.describe(f"{_letter(workspace)}{position[path]}") for path in (pair.first, pair.second)]
        for pair in found.possible[:limit]
    ]
    part = found.groups[offset : offset + limit]
    return {
        **_summary(found, others, position),
        "images": found.images,
        "total": len(found.groups),
        "offset": offset,
        "groups": [_described(workspace, group, others, position) for group in part],
        "possible": pairs if offset == 0 else [],
    }


class Chosen(BaseModel):
    """A file that stays of its group of copies; with `all` the others do, too, or no longer if not `on`."""

    picture: str
    keep: Keep = "largest"
    all: bool = False
    on: bool = True


@router.post("/api/duplicates/choices")
async def choose(workspace: OpenWorkspace, chosen: Chosen) -> dict[str, Any]:
    """Write down what stays of the group of a file; return the group, and what could go of all."""
    found, position = _found(workspace), _positions(workspace)
    path = workspace.file(chosen.picture)
    group = next((one for one in found.groups if any(file.path == path for file in one.files)), None)
    if group is None or path is None:
        raise ConfigError("This picture is in no group of copies.")
    entries = _entries(workspace, group, position)
    if chosen.all:
        _choices(workspace).keep_all(entries, is_on=chosen.on)
    else:
        _choices(workspace).choose(entries, [file.path for file in group.files].index(path))
    others = set(_others(workspace, found, chosen.keep, position))
    return {**_summary(found, others, position), "group": _described(workspace, group, others, position)}


def _summary(found: Duplicates, others: Set[Path], position: Mapping[Path, int]) -> dict[str, Any]:
    """Return how many files could go, their bytes and their positions."""
    return {
        "redundant": len(others),
        "bytes": sum(file.bytes for group in found.groups for file in group.files if file.path in others),
        "others": sorted(position[path] for path in others),
    }


def _described(
    workspace: Workspace, group: DuplicateGroup, others: Set[Path], position: Mapping[Path, int]
) -> list[dict[str, Any]]:
    return [
        workspace.describe(
            f"{_letter(workspace)}{position[file.path]}",
            width=file.width,
            height=file.height,
            bytes=file.bytes,
            time=file.time,
            kinds=file.kinds,
            stays=file.path not in others,
        )
        for file in group.files
    ]


def _others(workspace: Workspace, found: Duplicates, keep: Keep, position: Mapping[Path, int]) -> list[Path]:
    """Return the files that could go: by the rule, but where a person chose."""
    choices = _choices(workspace)
    chosen = dict[int, set[Path]]()
    for number, group in enumerate(found.groups):
        entries = _entries(workspace, group, position)
        if choices.keeps_all(entries):
            chosen[number] = {file.path for file in group.files}
        elif (at := choices.stays(entries)) is not None:
            chosen[number] = {group.files[at].path}
    return others_of(found, keep, chosen)


def _entries(workspace: Workspace, group: DuplicateGroup, position: Mapping[Path, int]) -> list[Entry]:
    assert workspace.review is not None
    return [workspace.review.entry(position[file.path]) for file in group.files]


def _choices(workspace: Workspace) -> Choices:
    # Beside the tags, and apart for two models in one folder as those are.
    tags = workspace.tags.path
    return _log(tags.with_name(tags.name.removesuffix(TAGS_NAME) + CHOICES_NAME))


@functools.lru_cache(maxsize=4)
def _log(path: Path) -> Choices:
    return Choices(path)


@router.get("/api/duplicates/identical")
async def identical(workspace: OpenWorkspace) -> dict[str, Any]:
    """Return groups of files with the same bytes, which are known without any search."""
    require(needs(workspace))
    assert workspace.review is not None
    entries = workspace.review.pack.entries
    _, inverse, counts = np.unique(entries.digests, return_inverse=True, return_counts=True)
    groups = defaultdict[int, list[int]](list)
    for position in np.flatnonzero(counts[inverse] > 1).tolist():
        groups[int(inverse[position])].append(position)
    found = sorted(groups.values())

    def described(position: int) -> dict[str, Any]:
        entry = entries[position]
        more = {"bytes": entry.size, "time": entry.mtime / 1e9, "kinds": []}
        return workspace.describe(f"{_letter(workspace)}{position}", **more)

    return {"total": len(found), "groups": [list(map(described, group)) for group in found[:MOST_IDENTICAL]]}


@router.get("/api/duplicates/known")
async def known(workspace: OpenWorkspace) -> dict[str, bool]:
    """Return whether copies were looked for already, now or at an earlier start."""
    await recall_all(workspace)
    return {"known": workspace.comparing.known("duplicates") is not None}


@router.get("/api/duplicates.txt")
async def listed(workspace: OpenWorkspace, keep: Keep = "largest") -> Response:
    """Return the files that could go, one per line."""
    paths = _others(workspace, _found(workspace), keep, _positions(workspace))
    # A path with a line break would read as two, perhaps of other files.
    lines = b"".join(os.fsencode(path) + b"\n" for path in paths if "\n" not in str(path))
    assert workspace.review is not None
    folder = readable(workspace.review.pack.folder.name)
    return download(lines, f"{file_name(folder, 'copies')}.txt", "text/plain")


@router.post("/api/duplicates/cancel")
async def cancel(workspace: OpenWorkspace) -> None:
    """Stop looking for copies; what was found so far is kept for the next time."""
    duplicates_job(workspace).stop()


def duplicates_job(workspace: Workspace) -> Job[Duplicates]:
    """Return the job that looks for copies."""
    return workspace.comparing.job("duplicates", functools.partial(_find, workspace))


def _found(workspace: Workspace) -> Duplicates:
    require(needs(workspace))
    return finished(duplicates_job(workspace))


def _find(workspace: Workspace, report: StageProgress) -> Duplicates:
    def named(stage: str, done: int, total: int) -> None:
        report(_STAGES.get(stage, stage), done, total)

    paths = list(_positions(workspace))

    def work() -> Duplicates:
        return find_duplicates(paths, cache=workspace.folder / CACHE_NAME, progress=named)

    return workspace.results.kept("duplicates", _key(paths), form_of(paths), work)


def recall(workspace: Workspace) -> None:
    """Bring back the copies that an earlier start found, if the files are as they were."""
    if needs(workspace) is None:
        paths = list(_positions(workspace))
        found = workspace.results.known("duplicates", _key(paths), form_of(paths))
        if found is not None:
            workspace.comparing.put("duplicates", found)


def _key(paths: list[Path]) -> str:
    return key_of(state_of(paths), BACKBONE.weights)


def form_of(paths: list[Path]) -> Form[Duplicates]:
    """Return how copies among files are saved."""

    def load(saved: Saved) -> Duplicates:
        found, known = _from_json(saved.content["result"]), set(paths)
        files = [file.path for group in found.groups for file in group.files]
        if not known.issuperset(
            files + [path for pair in found.possible for path in (pair.first, pair.second)]
        ):
            raise ValueError("it is about other files")
        if not all(group.files for group in found.groups):
            raise ValueError("a group has no files")
        return found

    return Form(lambda found: Saved({}, {"result": to_json(found)}), load)


def _from_json(content: Mapping[str, Any]) -> Duplicates:
    """Return the results that `to_json` was given; see `Form` for its errors."""
    return Duplicates(
        groups=[DuplicateGroup(tuple(map(_file_from, files))) for files in content["groups"]],
        possible=[
            PossiblePair(
                Path(pair["first"]), Path(pair["second"]), float(pair["agreement"]), _texts(pair["kinds"])
            )
            for pair in content["possible"]
        ],
        images=int(content["images"]),
        threshold=float(content["threshold"]),
        copies=None if content["copies_agree"] is None else float(content["copies_agree"]),
        different=float(content["different_agree"]),
        skipped=[(Path(one["path"]), str(one["reason"])) for one in content["skipped"]],
        links=[(Path(one["path"]), Path(one["like"])) for one in content["links"]],
    )


def _file_from(content: Mapping[str, Any]) -> DuplicateFile:
    like, differs = content["like"], content["differs"]
    return DuplicateFile(
        Path(content["path"]),
        int(content["width"]),
        int(content["height"]),
        int(content["bytes"]),
        float(content["time"]),
        int(content["picture"]),
        bool(content["decoded"]),
        _texts(content["kinds"]),
        None if like is None else Path(like),
        None if differs is None else _box(*map(float, differs)),
    )


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(str, values))


def _box(left: float, top: float, right: float, bottom: float) -> Box:
    return left, top, right, bottom


def _positions(workspace: Workspace) -> dict[Path, int]:
    """Return the position of each file under review."""
    assert workspace.review is not None
    folder = workspace.review.pack.folder
    return {folder / entry.path: at for at, entry in enumerate(workspace.review.pack.entries)}


def _letter(workspace: Workspace) -> str:
    return "" if workspace.review is None else workspace.review.letter


def needs(workspace: Workspace) -> Missing | None:
    """Return what is missing for finding copies; None if nothing is."""
    review = workspace.review
    if review is not None and review.path(0) is not None and review.pack.folder.is_dir():
        return None
    if review is not None:
        return Missing(
            f"Copies are found in the files, and the folder {review.pack.folder} is not there. "
            "Put it back, then load the page again."
        )
    return Missing(
        "There are no pictures to compare. Open the page with an index, a run folder, or a folder of images.",
        ("autoencode index PHOTOS", "autoencode app indexes/PHOTOS"),
        in_page=True,
    )


NEEDS = {"duplicates": needs}
