"""Settings: their choices, types and documentation, and the TOML files that keep them.

A setting is a field of a frozen dataclass. The class declares its type and default, and the docstring of the
class its meaning; help texts, files of settings and the reference are derived from them.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import math
import numbers
import re
import reprlib
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from autoencode.errors import ConfigError, any_of
from autoencode.untrusted import read_file

# The choices of settings and options. They are here, not in the modules that implement them, because
# `autoencode --help` lists them and must not wait two seconds for torch; tests compare them with the
# registries.
Kind = Literal["autoencoder", "vae", "restorer"]
Loss = Literal["mse", "mae", "gaussian", "log_mse"]
Precision = Literal["auto", "fp32", "bf16"]
Split = Literal["train", "validation", "test"]
Embedding = Literal["code", "pretrained"]
Store = Literal["file", "lance"]
ResizeMode = Literal["crop", "pad", "stretch", "window"]
Distance = Literal["whitened", "cosine", "l2"]
Rule = Literal["conformal", "paper"]
Interpolation = Literal["linear", "spherical"]
DecoderName = Literal["sharp", "faithful"]
Keep = Literal["largest", "oldest", "first"]
PriorName = Literal["mixture", "normal"]

# Larger numbers overflow in torch, which computes in fp32, and in JSON readers of other languages, each with
# an error of its own.
_LARGEST: dict[Any, int | float] = {int: 2**63 - 1, float: 3.4e38}

FILE_BYTES = 1 << 16  # a file of settings has 3 KB; /dev/zero has no end
# tomllib keeps each beginning of a key of tables, a.b.c: memory grows with the square of its length, to 10 GB
# for one of 100 KB.
_DOTS = 64  # in a line; sentences of comments have some
COMMENT_WIDTH = 100

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_fields(settings: Any) -> None:  # noqa: ANN401 - any dataclass
    """Give each field of a frozen dataclass the type it is declared with, or reject its value.

    Raises:
        ConfigError: a value has another type, or is not a choice of its field; the message names the field.
    """
    for name, hint in types_of(type(settings)).items():
        object.__setattr__(settings, name, typed(name, getattr(settings, name), hint))


def types_of(settings: type) -> dict[str, Any]:
    """Return the declared type of each field of a dataclass, in order."""
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in fields(settings)}


def typed(name: str, value: Any, hint: Any) -> Any:  # noqa: ANN401
    """Return a value as the declared type has it.

    Numbers of other libraries become Python's, lists become tuples. Nothing else is converted: "3" is not
    a number, and True is not 1.

    Raises:
        ConfigError: the value has another type, is not a choice, or is too large: a whole number beyond
            64 bits, or a number beyond 3.4e38, the range of fp32.
    """
    try:
        return _as(value, hint)
    except TypeError as err:
        raise ConfigError(f"{name} is {reprlib.repr(value)}; it must be {_described(hint)}.") from err
    except OverflowError as err:
        raise ConfigError(f"{name} is too large; the largest number is {err}.") from err


def _as(value: Any, hint: Any) -> Any:  # noqa: ANN401
    """Return `value` as `hint`, or raise TypeError or OverflowError."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        for choice in get_args(hint):
            with contextlib.suppress(TypeError):
                return _as(value, choice)
        raise TypeError
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError
        return tuple(_as(item, get_args(hint)[0]) for item in value)
    if origin is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise TypeError
        return value
    if isinstance(value, bool) != (hint is bool):  # True is an int in Python
        raise TypeError
    accepted = {int: numbers.Integral, float: numbers.Real}.get(hint, hint)
    if not isinstance(value, accepted):
        raise TypeError
    # Before the conversion: that of a whole number of 400 digits raises an OverflowError of Python's.
    if (limit := _LARGEST.get(hint)) and limit < abs(value) < math.inf:
        raise OverflowError(f"{limit:,}")
    return hint(value)


def _described(hint: Any) -> str:  # noqa: ANN401
    origin = get_origin(hint)
    if origin is Literal:
        return any_of(map(repr, get_args(hint)))
    if origin in (Union, UnionType):
        return any_of(map(_described, get_args(hint)))
    if origin is tuple:
        lists = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}
        return lists[get_args(hint)[0]]
    return _NAMES[hint]


def unknown_setting(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not a setting: it suggests the nearest one, or the help."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    advice = (
        f"Did you mean {near[0]}?" if near else "`autoencode config` lists the settings and explains them."
    )
    return ConfigError(f"Unknown setting {name}. {advice}")


def documentation(settings: type) -> dict[str, str]:
    """Return the description of each field in the Args or Attributes section of a dataclass's docstring.

    A field whose choices are the entries of a registry has the metadata "entries", a function to list them.
    """
    section = re.search(
        r"^(?:Args|Attributes):\n((?: .*\n|\n)*)", f"{inspect.getdoc(settings)}\n", re.MULTILINE
    )
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    lists = {f.name: f.metadata.get("entries") for f in fields(settings)} if is_dataclass(settings) else {}
    meaning = {name: " ".join(text.split()) for name, text in entries}
    return {
        name: f"{text} Choices: {', '.join(entries_of())}." if (entries_of := lists.get(name)) else text
        for name, text in meaning.items()
    }


def read_toml(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Read a file of settings: NAME = VALUE lines in TOML, without tables.

    Args:
        path: the file.
        known: the type of each setting.

    Raises:
        ConfigError: the file cannot be read or is not TOML, or a setting is unknown, is a table, or has
            another type; the message names the file and the setting.
    """
    example = "`autoencode config best` prints such a file."
    try:
        text = read_file(path, FILE_BYTES).decode()
        if any(line.count(".") > _DOTS for line in text.split("\n")):
            raise ConfigError(f"{path} has a line of more than {_DOTS} dots. Settings are not in tables.")
        values = tomllib.loads(text)
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror or err}. Give a file of settings; {example}") from err
    except (ValueError, RecursionError) as err:
        if isinstance(err, ConfigError):
            raise
        if isinstance(err, UnicodeDecodeError):
            raise ConfigError(f"{path} is not a text file. Give a file of settings; {example}") from err
        # For 4,300 digits or a thousand brackets Python raises an error about its own limits.
        has_own_reason = isinstance(err, tomllib.TOMLDecodeError)
        reason = err if has_own_reason else "it has a number or a nesting of thousands of characters"
        raise ConfigError(
            f"{path} is not TOML: {reason}. Write one NAME = VALUE on each line; {example}"
        ) from err
    try:
        return {name: _of_file(name, value, known) for name, value in values.items()}
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from err


def _of_file(name: str, value: Any, known: Mapping[str, Any]) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        raise ConfigError(f"Settings are not in tables: remove the line [{name}].")
    if name not in known:
        raise unknown_setting(name, known)
    return typed(name, value, known[name])


def read_assignment(text: str, known: Mapping[str, Any]) -> tuple[str, Any]:
    """Read NAME=VALUE, with the value in TOML; text may lack its quotes, and a list its brackets.

    Raises:
        ConfigError: there is no "=", the setting is unknown, or the value has another type.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"--set {text} has no value. Write NAME=VALUE, such as --set learning_rate=3e-4.")
    if name not in known:
        raise unknown_setting(name, known)
    is_list = get_origin(known[name]) is tuple
    value = re.sub(r"^([+-]?)\.", r"\g<1>0.", value)  # .001 is not a number in TOML
    found = _toml_value(f"[{value}]" if is_list and not value.startswith("[") else value)
    if found is None:
        found = [part.strip() for part in value.split(",")] if is_list else value
    return name, typed(name, found, known[name])


def _toml_value(text: str) -> Any:  # noqa: ANN401
    """Return the value of a text read as TOML, or None if it is not TOML."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return None
    return values["value"] if len(values) == 1 else None  # a line break would begin another setting


def toml_lines(settings: Any, *, active: bool = True) -> str:  # noqa: ANN401 - any dataclass
    """Return the settings of a dataclass as lines of TOML, each under a comment with its meaning.

    Args:
        settings: a dataclass that has a value for every field.
        active: False writes the lines as comments, which show the defaults and set nothing.
    """
    meaning = documentation(type(settings))
    lines = []
    for field in fields(settings):
        text = meaning.get(field.name, "")
        lines += [f"# {line}" for line in textwrap.wrap(text[:1].upper() + text[1:], COMMENT_WIDTH)]
        lines.append(f"{'' if active else '# '}{field.name} = {_toml(getattr(settings, field.name))}\n")
    return "\n".join(lines)


def _toml(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    # TOML writes true, numbers and the escapes of a text as JSON does, except for the character DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
