"""Errors list what can be chosen; the command that installs more works where the package came from."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import pytest

from autoencode.errors import ConfigError, any_of, check_choice, install_command


class Installed:
    """A distribution with this direct_url.json."""

    def __init__(self, origin: dict[str, Any] | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'autoencode[web]'"),
        ({"url": "file:///a%20b/c", "dir_info": {"editable": True}}, "pip install -e '/a b/c[web]'"),
        ({"url": "file:///a/c", "dir_info": {}}, "pip install '/a/c[web]'"),
        ({"url": "https://example.org/c.whl"}, "pip install 'autoencode[web]'"),
    ],
)
def test_it_is_of_where_the_package_came_from(
    origin: dict[str, Any] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
    assert install_command("web") == command
    assert install_command("") == command.replace("[web]", "")


def test_a_package_that_is_not_installed_is_taken_from_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Installed:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("web") == "pip install 'autoencode[web]'"


def test_a_list_of_choices_reads_as_one_says_it() -> None:
    assert [any_of("a"), any_of("ab"), any_of("abc")] == ["a", "a or b", "a, b or c"]


def test_a_choice_that_there_is_not_is_named_with_those_there_are() -> None:
    check_choice("store", "file", {"file": 1, "lance": 2})
    with pytest.raises(ConfigError, match=r"^Unknown store 'cloud'\. Choose file or lance\.$"):
        check_choice("store", "cloud", iter(["file", "lance"]))
