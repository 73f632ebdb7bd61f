"""Settings: the choices they have, and their fields held to the types they are declared with."""

from __future__ import annotations

import contextlib
import numbers
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from autoencode.errors import ConfigError

# The choices that settings and options have. They stand here, and not beside what each of them does, because
# `autoencode --help` lists them and must not wait two seconds for torch; tests hold them to the registries.
Kind = Literal["autoencoder", "vae"]
Loss = Literal["mse", "mae", "gaussian"]
Precision = Literal["auto", "fp32", "bf16"]
Split = Literal["train", "validation", "test"]
Embedding = Literal["code", "pretrained"]
Store = Literal["file", "lance"]
ResizeMode = Literal["crop", "pad", "stretch"]
Distance = Literal["whitened", "cosine", "l2"]
Rule = Literal["conformal", "paper"]
Interpolation = Literal["linear", "spherical"]
PriorName = Literal["mixture", "normal"]

_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def check_fields(settings: Any) -> None:  # noqa: ANN401 - any dataclass
    """Give each field of a frozen dataclass the type it is declared with, or reject its value.

    Numbers of other libraries become Python's, lists become tuples. Nothing else is converted: "3" is no
    number, and True is not 1. Which text a field may have is left to the class itself.

    Raises:
        ConfigError: a value of another type; names the field.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        try:
            object.__setattr__(settings, field.name, _as(value, hints[field.name]))
        except TypeError as err:
            raise ConfigError(
                f"{field.name} is {value!r}; it must be {_described(hints[field.name])}."
            ) from err


def _as(value: Any, kind: Any) -> Any:  # noqa: ANN401
    """Return `value` as `kind`, or raise TypeError."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        for choice in get_args(kind):
            with contextlib.suppress(TypeError):
                return _as(value, choice)
        raise TypeError
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError
        return tuple(_as(item, get_args(kind)[0]) for item in value)
    if origin is Literal:
        kind = str
    if isinstance(value, bool) != (kind is bool):  # Python counts True among the whole numbers
        raise TypeError
    accepted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(value, accepted):
        raise TypeError
    return kind(value)


def _described(kind: Any) -> str:  # noqa: ANN401
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin in (Union, UnionType):
        return " or ".join(map(_described, get_args(kind)))
    if origin is tuple:
        return {int: "a list of whole numbers", str: "a list of texts"}[get_args(kind)[0]]
    return _NAMES[kind]
