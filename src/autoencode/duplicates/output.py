"""The results of a search for duplicates as files: JSON, a table, and a script that moves the copies away."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoencode.atomic import csv_bytes, write_bytes, write_json
from autoencode.errors import check_choice

if TYPE_CHECKING:
    from autoencode.configuration import Keep
    from autoencode.duplicates import DuplicateFile, DuplicateGroup, Duplicates

JSON_NAME, TABLE_NAME = "duplicates.json", "duplicates.csv"
OTHERS_NAME, SCRIPT_NAME = "others.txt", "move-others.sh"
COLUMNS = ("group", "path", "width", "height", "bytes", "kind", "like")

# The path comes first as it is, then where it goes: a name may hold anything but a zero byte.
_SCRIPT = """\
#!/bin/sh
# Moves {count} copies into a folder; the files that stay are not touched, and nothing is deleted.
# Usage: sh {name} FOLDER
set -eu
target=${{1:?give the folder that takes the copies}}
move() {{
    if [ -e "$target/$2/$3" ]; then
        echo "not moved, as it is there already: $1" >&2
    else
        mkdir -p -- "$target/$2"
        mv -- "$1" "$target/$2/$3"
    fi
}}
"""


def write_results(found: Duplicates, folder: Path, keep: Keep | None = None) -> list[Path]:
    """Write the results into a folder; return the files written.

    Args:
        found: from `find_duplicates`.
        folder: made if missing.
        keep: which file of each group stays: the "largest" in pixels, the "oldest", or the "first" by path.
            The others are listed, and a script that moves them is written. None writes neither.

    Raises:
        ConfigError: `keep` is unknown.
        OutputError: a file cannot be written; an earlier one is unchanged.
    """
    if keep is not None:
        check_choice("keep", keep, _KEPT)
    written = [folder / JSON_NAME, folder / TABLE_NAME]
    write_json(written[0], to_json(found))
    write_bytes(written[1], csv_bytes([COLUMNS, *_rows(found)]))
    if keep is not None:
        others = others_of(found, keep)
        written += [folder / OTHERS_NAME, folder / SCRIPT_NAME]
        write_bytes(written[2], b"".join(os.fsencode(path) + b"\n" for path in others))
        write_bytes(written[3], _script(others))
    return written


def others_of(found: Duplicates, keep: Keep) -> list[Path]:
    """Return the files of all groups but the one that stays of each, in the order of the groups."""
    stays = [_KEPT[keep](group) for group in found.groups]
    return [
        file.path
        for group, kept in zip(found.groups, stays, strict=True)
        for file in group.files
        if file != kept
    ]


def _largest(group: DuplicateGroup) -> DuplicateFile:
    return group.files[0]


def _oldest(group: DuplicateGroup) -> DuplicateFile:
    return min(group.files, key=lambda file: (file.time, file.path))


def _first(group: DuplicateGroup) -> DuplicateFile:
    return min(group.files, key=lambda file: file.path)


_KEPT = {"largest": _largest, "oldest": _oldest, "first": _first}


def to_json(found: Duplicates) -> dict[str, Any]:
    """Return the results as plain JSON values, for the page and for programs."""
    return {
        "images": found.images,
        "threshold": found.threshold,
        "copies_agree": found.copies,
        "different_agree": found.different,
        "groups": [[_file_json(file) for file in group.files] for group in found.groups],
        "possible": [
            {**asdict(pair), "first": str(pair.first), "second": str(pair.second)} for pair in found.possible
        ],
        "skipped": [{"path": str(path), "reason": reason} for path, reason in found.skipped],
    }


def _file_json(file: DuplicateFile) -> dict[str, Any]:
    return {**asdict(file), "path": str(file.path), "like": None if file.like is None else str(file.like)}


def _rows(found: Duplicates) -> list[tuple[object, ...]]:
    return [
        (
            *(number, file.path, file.width, file.height, file.bytes, " ".join(file.kinds)),
            file.like or "",
        )
        for number, group in enumerate(found.groups, 1)
        for file in group.files
    ]


def _script(paths: list[Path]) -> bytes:
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - resolve() would follow links
    lines = [os.fsencode(_SCRIPT.format(count=len(paths), name=SCRIPT_NAME))]
    common = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    for path in absolute:
        inner = path.parent.relative_to(common)
        # Through surrogates, as a name need not be text; a quoted name ends at no character but its quote.
        lines.append(
            os.fsencode(f"move {' '.join(shlex.quote(str(part)) for part in (path, inner, path.name))}\n")
        )
    return b"".join(lines)
