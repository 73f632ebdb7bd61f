"""Show results as tables in notebooks, and the progress of functions of the public API.

Progress is a line under the cell that changes. Elsewhere a function says nothing, unless it is given a
`progress`; so it is in a notebook if it is given one.
"""

from __future__ import annotations

import functools
import html
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_REPORTS = ("progress", "packing_progress")
_EVERY = 0.2  # seconds: a browser that draws each of thousand reports lags behind the work
_WIDTH = 20  # of the bar, in letters
_ROWS = 20  # of a table: nobody reads a longer one below a cell


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def with_progress(function: Any) -> Any:  # noqa: ANN401 - whatever the public API holds
    """Return a function that shows its progress, unless its caller passes a function to report it to.

    An object that takes no `progress`, such as a class, is returned as it is.
    """
    if not inspect.isfunction(function):
        return function
    signature = inspect.signature(function)
    reports = [name for name in _REPORTS if name in signature.parameters]
    if not reports:
        return function

    @functools.wraps(function)
    def shown(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # which the function itself raises, and names itself in
            return function(*args, **kwargs)
        line = _Line()
        try:
            return function(*args, **kwargs, **{name: line.show for name in reports if name not in given})
        finally:
            line.end()

    return shown


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return HTML of a title and a table of at most 20 rows, with the number of those left out."""

    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(_cell(one))}</{tag}>" for one in cells) + "</tr>"

    every = list(rows)
    shown = "".join(line("td", row) for row in every[:_ROWS])
    more = f"<p>and {len(every) - _ROWS:,} more</p>" if len(every) > _ROWS else ""
    return f"<p>{html.escape(title)}</p><table>{line('th', columns)}{shown}</table>{more}"


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


class _Line:
    """A line of output of a cell, which is replaced by the next."""

    def __init__(self) -> None:
        self._replace: Callable[[str], None] | None = None
        self._text, self._drawn_at = "", 0.0

    def show(self, *told: Any) -> None:  # noqa: ANN401 - of one of three forms
        """Show a report: (done, total), (stage, done, total) or a `TrainProgress`."""
        self._text = _in_words(*told)
        if time.monotonic() - self._drawn_at >= _EVERY:
            self._draw()

    def end(self) -> None:
        """Show the last report, which may have come too early to be shown."""
        if self._text:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        self._drawn_at = time.monotonic()
        content = {"text/plain": self._text}
        if self._replace is None:
            handle: Any = display(content, raw=True, display_id=True)
            self._replace = lambda text: handle.update({"text/plain": text}, raw=True)
        else:
            self._replace(self._text)


def _in_words(*told: Any) -> str:  # noqa: ANN401
    if len(told) == 1:
        (at,) = told
        done = at.epoch - 1 + at.step / at.steps
        text = f"{at.phase + ', ' if at.phase else ''}epoch {at.epoch} of {at.epochs}, loss {at.loss:.5g}"
        text += f", {at.seconds_left:,.0f} s left"
        return f"{_bar(done, at.epochs)} {text}{f'; {at.warning}' if at.warning else ''}"
    *stage, done, total = told
    return f"{_bar(done, total)} {''.join(f'{name}: ' for name in stage)}{done:,} of {total:,}"


def _bar(done: float, total: float) -> str:
    full = round(_WIDTH * min(1.0, done / max(total, 1)))
    return "█" * full + "░" * (_WIDTH - full)
