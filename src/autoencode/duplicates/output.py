"""The results of a search for duplicates as files: JSON, a table, and a script that moves the copies away."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoencode.atomic import exclusive, remove_temporaries, write_bytes, write_json
from autoencode.csv_files import csv_bytes
from autoencode.duplicates.staying import RULES, staying
from autoencode.errors import OutputError, check_choice

if TYPE_CHECKING:
    from autoencode.configuration import Keep
    from autoencode.duplicates import DuplicateFile, Duplicates

JSON_NAME, TABLE_NAME = "duplicates.json", "duplicates.csv"
MARK_NAME = "search.json"  # in a folder before its results: an interrupted search leaves none
OTHERS_NAME, SCRIPT_NAME = "others.txt", "move-others.sh"
COLUMNS = ("group", "path", "width", "height", "bytes", "kind", "like", "stays")

# The path comes first as it is, then where it goes: a name may hold anything but a zero byte. A file on
# another disk is copied under a name of its own first, as a move that was interrupted leaves part of it.
_SCRIPT = """\
#!/bin/sh
# Moves {count} copies into a folder; the files that stay are not touched, and nothing is deleted.
# Interrupted, it goes on when it is run again.
# Usage: sh {name} FOLDER
set -eu
target=${{1:?give the folder that takes the copies}}
number=0
moved=0
there() {{ [ -e "$1" ] || [ -L "$1" ]; }}
move() {{
    number=$((number + 1))
    part="$target/$2/.move-others.$number"
    if there "$target/$2/$3"; then
        if there "$1"; then
            printf 'not moved, as another file is there already: %s\\n' "$1" >&2
        else
            printf 'moved before: %s\\n' "$1" >&2
        fi
    elif there "$1"; then
        mkdir -p -- "$target/$2"
        mv -f -- "$1" "$part"
        mv -- "$part" "$target/$2/$3"
        moved=$((moved + 1))
    elif there "$part"; then
        mv -- "$part" "$target/$2/$3"
        moved=$((moved + 1))
    else
        printf 'gone: %s\\n' "$1" >&2
    fi
}}
"""


def write_results(found: Duplicates, folder: Path, keep: Keep | None = None) -> list[Path]:
    """Write the results into a folder; return the files written.

    Args:
        found: from `find_duplicates`.
        folder: made if missing.
        keep: which file of each group stays, see `find_duplicates`. The others are listed, and a script that
            moves them is written. None writes neither.

    Raises:
        ConfigError: `keep` is unknown.
        OutputError: a file cannot be written, or another process works in the folder; an earlier file is
            unchanged.
    """
    if keep is not None:
        check_choice("keep", keep, RULES)
    written = [folder / JSON_NAME, folder / TABLE_NAME]
    others = others_of(found, keep) if keep is not None else None
    with exclusive(folder, busy(folder), OutputError):
        remove_temporaries(folder)
        write_json(written[0], _with_stays(to_json(found), others))
        write_bytes(written[1], csv_bytes([COLUMNS, *_rows(found, others)]))
        if others is not None:
            written += [folder / OTHERS_NAME, folder / SCRIPT_NAME]
            write_bytes(written[2], b"".join(os.fsencode(path) + b"\n" for path in others))
            write_bytes(written[3], _script(others))
    return written


def busy(folder: Path) -> str:
    """Return the message of an error for when another process holds the lock of the folder."""
    return f"Another process is searching for duplicates in {folder}."


def others_of(
    found: Duplicates, keep: Keep, chosen: Mapping[int, Collection[Path]] | None = None
) -> list[Path]:
    """Return the files of all groups but the one that stays of each, in the order of the groups.

    Links stay where they are, and what they point to, so that none leads nowhere.

    Args:
        found: from `find_duplicates`.
        keep: the rule.
        chosen: what stays of groups, by their numbers in `found.groups`, in place of the rule.
    """
    chosen = chosen or {}
    linked = {target for link, target in found.links if link.is_symlink()}
    return [
        file.path
        for number, group in enumerate(found.groups)
        for stays in [chosen.get(number) or {staying(group.files, keep).path}]
        for file in group.files
        if file.path not in stays and file.path not in linked and not file.path.is_symlink()
    ]


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
        "links": [{"path": str(link), "like": str(file)} for link, file in found.links],
    }


def _file_json(file: DuplicateFile) -> dict[str, Any]:
    return {**asdict(file), "path": str(file.path), "like": None if file.like is None else str(file.like)}


def _with_stays(content: dict[str, Any], others: Collection[Path] | None) -> dict[str, Any]:
    """Return results as JSON values whose files say if they stay; as they are if nothing was chosen."""
    if others is not None:
        names = set(map(str, others))
        content["groups"] = [
            [{**file, "stays": file["path"] not in names} for file in files] for files in content["groups"]
        ]
    return content


def _rows(found: Duplicates, others: Collection[Path] | None) -> list[tuple[object, ...]]:
    moved = frozenset(others or ())

    def stays(file: DuplicateFile) -> str:
        return "" if others is None else "no" if file.path in moved else "yes"

    return [
        (
            *(number, file.path, file.width, file.height, file.bytes, " ".join(file.kinds)),
            *(file.like or "", stays(file)),
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
    lines.append(b'echo "moved: $moved"\n')
    return b"".join(lines)
