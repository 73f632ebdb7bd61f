"""Files of settings and --set: what they may say, and one line about what they may not."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoencode.configuration import (
    check_fields,
    documentation,
    read_assignment,
    read_toml,
    toml_lines,
    types_of,
)
from autoencode.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """Settings of each type.

    Args:
        count: how often,
            on two lines: "quoted", 3.
        rate: how fast.
        flag: whether.
        name: what it is called.
        choice: one of two.
        sizes: some numbers.
        names: some names.
        either: a number, or "auto".

    Raises:
        ConfigError: a value that cannot be used.
    """

    count: int = 1
    rate: float = 0.5
    flag: bool = False
    name: str = "a"
    choice: Literal["left", "right"] = "left"
    sizes: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ()
    either: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)


KNOWN = types_of(Example)
FLOATS = st.floats(-3.4e38, 3.4e38) | st.sampled_from([float("inf"), float("-inf"), float("nan")])


def read(tmp_path: Path, text: str | bytes) -> dict[str, Any]:
    path = tmp_path / "a.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_toml(path, KNOWN)


def test_the_docstring_says_what_each_field_means() -> None:
    assert documentation(Example)["count"] == 'how often, on two lines: "quoted", 3.'
    assert list(documentation(Example)) == list(KNOWN)
    assert documentation(int) == {}


def test_a_field_lists_the_entries_of_its_registry() -> None:
    @dataclass(frozen=True)
    class Registered:
        """Settings.

        Args:
            one: a name.
        """

        one: str = field(default="a", metadata={"entries": lambda: iter(["a", "b"])})

    assert documentation(Registered)["one"] == "a name. Choices: a, b."


def test_lines_stand_under_what_they_mean() -> None:
    lines = toml_lines(Example()).splitlines()
    assert lines[:5] == [
        '# How often, on two lines: "quoted", 3.',
        "count = 1",
        "",
        "# How fast.",
        "rate = 0.5",
    ]
    assert all(line.startswith("# ") for line in toml_lines(Example(), active=False).splitlines() if line)


@given(
    st.builds(
        Example,
        st.integers(-(2**63) + 1, 2**63 - 1),
        FLOATS,
        st.booleans(),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(["left", "right"]),
        st.lists(st.integers(-(2**63) + 1, 2**63 - 1)).map(tuple),
        st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
        st.just("auto") | FLOATS,
    )
)
def test_whatever_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, one: Example) -> None:
    path = tmp_path_factory.getbasetemp() / "one.toml"
    path.write_text(toml_lines(one), newline="")
    assert repr(Example(**read_toml(path, KNOWN))) == repr(one)  # a NaN is not equal to itself


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count=3", 3),
        ("count = 1_000", 1000),
        ("count=1000000000", 10**9),
        ("rate=3e-4", 3e-4),
        ("rate=.001", 0.001),
        ("rate=-.5", -0.5),
        ("rate=2", 2.0),
        ("flag=true", True),
        ("name=a b", "a b"),
        ("name='a=b'", "a=b"),
        ('name="3"', "3"),
        ("choice=right", "right"),
        ("sizes=4,8", (4, 8)),
        ("sizes=[4, 8]", (4, 8)),
        ("sizes=4", (4,)),
        ("sizes=[]", ()),
        ("names=gaussian:0.3", ("gaussian:0.3",)),
        ("names=a:1, b:2", ("a:1", "b:2")),
        ('names=["a,b"]', ("a,b",)),
        ("either=auto", "auto"),
        ("either=1e-2", 0.01),
    ],
)
def test_an_assignment_is_read_as_its_type_has_it(text: str, expected: object) -> None:
    name, value = read_assignment(text, KNOWN)
    assert (name, value, type(value)) == (text.partition("=")[0].strip(), expected, type(expected))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count", "--set count has no value. Write NAME=VALUE, such as --set learning_rate=3e-4."),
        ("coutn=3", "Unknown setting coutn. Did you mean count?"),
        ("zz=3", "Unknown setting zz. `autoencode config` lists the settings and explains them."),
        ("count=2.5", "count is 2.5; it must be a whole number."),
        ("count=", "count is ''; it must be a whole number."),
        ("count=1" + "0" * 400, "count is too large; the largest number is 9,223,372,036,854,775,807."),
        ("rate=1" + "0" * 400, "rate is too large; the largest number is 3.4e+38."),
        ("rate=1e300", "rate is too large; the largest number is 3.4e+38."),
        ("either=-1e39", "either is too large; the largest number is 3.4e+38."),
        ("count=1" + "0" * 5000, "count is '100000000000...0000000000000'; it must be a whole number."),
        ("count=1\nrate=2", "count is '1\\nrate=2'; it must be a whole number."),
        ("flag=yes", "flag is 'yes'; it must be true or false."),
        ("flag=1", "flag is 1; it must be true or false."),
        ("name=3", "name is 3; it must be text."),
        ("choice=up", "choice is 'up'; it must be 'left' or 'right'."),
        ("sizes=4,x", "sizes is ['4', 'x']; it must be a list of whole numbers."),
        ("either=1979-05-27", "either is datetime.date(1979, 5, 27); it must be a number or 'auto'."),
        ("count=" + "[" * 9999, None),
    ],
)
def test_an_assignment_that_cannot_be_used_is_named_with_what_can(text: str, message: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read_assignment(text, KNOWN)
    assert message is None or str(caught.value) == message
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count = \n", "Invalid value (at line 1, column 9). Write one NAME = VALUE on each line"),
        ("count = 1\ncount = 2\n", "is not TOML: Cannot overwrite a value (at line 2, column 10)"),
        (b"count = \xff", "is not a text file. Give a file of settings; `autoencode config best` prints"),
        ("count = 1" + "0" * 5000, "is not TOML: it has a number or a nesting of thousands"),
        ("names = " + "[" * 9999, "is not TOML: it has a number or a nesting of thousands"),
        ("count = 1" + "0" * 400, ": count is too large; the largest number is"),
        ('count = "3"', ": count is '3'; it must be a whole number."),
        ("coutn = 3", ": Unknown setting coutn. Did you mean count?"),
        ("[train]\ncount = 3", ": Settings are not in tables: remove the line [train]."),
        ("a.count = 3", ": Settings are not in tables"),
        ("#" * (1 << 16) + "#", "bytes, more than the limit of 65,536"),
        ("a." * 30_000 + "b = 1", " has a line of more than 64 dots. Settings are not in tables."),
        ("a.\u2028." * 10_000 + "b = 1", " has a line of more than 64 dots. Settings are not in tables."),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_setting(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "a.toml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deep_table_in_a_file_takes_little_memory(tmp_path: Path) -> None:
    deepest = "\n".join(f"k{number}{'.a' * 64} = 1" for number in range(400))
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="Settings are not in tables"):
            read(tmp_path, deepest)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_file_that_is_not_there_is_named_with_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=r"Give a file of settings; `autoencode config best` prints"):
            read_toml(path, KNOWN)
