"""Requests of one who has the token and sends anything: to every address of the page, with odd values.

Addresses and the names of their parameters are those that the app has, so that a new one is attacked at once.
None answers with an error of the server or a page of more than one line, or takes long.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from autoencode.index import build_index
from autoencode.training.train import train
from autoencode.web.security import Trust
from autoencode.web.server import make_app
from autoencode.web.workspace import open_workspace
from torture.commands import TINY, make_images
from torture.outcome import Outcome

SECONDS = 10.0
ADDRESS = "http://127.0.0.1:7860"
LEFT_OUT = "/api/start/"  # would start work on folders
IMAGES = 24

# Half of the values mean something, so that the others get past the first check.
_PLAIN: tuple[str, ...] = ("i0", "t1", "i3,i4", "0", "1", "2", "0.5", "all", "i", "keep", "score", "label")
_ODD: tuple[str, ...] = (
    *("", " ", "-1", "1e999", "nan", "inf", "-inf", "9" * 400, "1_0", "+1", "0x10", "\u0661", "null", "true"),
    *(
        "i-1",
        "i99999999",
        "i" + "9" * 30,
        "u",
        "u" + "a" * 16,
        "x0",
        "i0,",
        ",",
        "i0" + ",i0" * 300,
        "i\u0661",
    ),
    *("../../etc/passwd", "..%2f..%2fetc/passwd", "/dev/zero", "C:\\x", "\0", "\n", "\r\nX: y", "\x1b[2J"),
    *("\ud7ff", "\U0001f600", "a" * 20_000, "'\"><script>", "${7*7}", "{0}", "%s", "=1+1", "[]", "{}"),
)
_JSON: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**63,
        10**300,
        0.5,
        1e308,
        "",
        "i0",
        "keep",
        "x" * 10_000,
        "\ud7ff",
        "\0",
        "../x",
    ),
    *([], [0], ["i0"], [[0]], [-1], [10**9] * 9, [1] * 5000, {}, {"a": 1}, ["i0", "i1", "t0"]),
)

Generator = np.random.Generator


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Send so many requests to each address.

    Args:
        cases: requests to each.
        seed: of their values.
        folder: to work in.
        names: addresses; of none, all.
    """
    outcome = Outcome()
    images = make_images(folder / "images", IMAGES)
    train(images, folder / "run", size=16, epochs=1, kind="vae", keep_memory=False, **TINY)
    build_index(images, folder / "index", folder / "run", embedding="code")
    workspace, trust = open_workspace(folder / "run", folder / "index"), Trust()
    app = make_app(workspace, trust)
    headers = {"Authorization": f"Bearer {trust.token}"}
    client = TestClient(app, base_url=ADDRESS, headers=headers, raise_server_exceptions=False)
    longest, taken = 0.0, 0
    try:
        for route in _routes(app):
            if names and route.path not in names:
                continue
            for case in range(cases):
                generator = np.random.default_rng([seed, case, *route.path.encode()])
                seconds, is_taken = _send(client, route, generator, outcome, f"seed {seed}, case {case}")
                longest, taken = max(longest, seconds), taken + is_taken
    finally:
        workspace.close()
    outcome.notes.append(f"{taken:,} were answered with a result; the longest took {longest:.1f} s")
    return outcome


def _routes(app: Any) -> list[APIRoute]:  # noqa: ANN401 - an app or a router inside it
    found: list[APIRoute] = []
    for route in app.routes:
        if isinstance(route, APIRoute):
            found.append(route)
        elif hasattr(route, "original_router"):  # FastAPI keeps a router that was included as one
            found += _routes(route.original_router)
    return [route for route in found if not route.path.startswith(LEFT_OUT)]


def _send(
    client: TestClient, route: APIRoute, generator: Generator, outcome: Outcome, case: str
) -> tuple[float, bool]:
    method = next(iter(route.methods))
    path = route.path
    for parameter in route.dependant.path_params:
        path = path.replace(f"{{{parameter.alias}}}", quote(_text(generator), safe="") or "x")
    query = {one.alias: _text(generator) for one in route.dependant.query_params if generator.random() < 0.7}
    content = _body(route, generator) if method != "GET" else None
    kind = {"Content-Type": "application/json"} if route.path != "/api/uploads" else {}
    started = time.monotonic()
    answer = client.request(method, path, params=query, content=content, headers=kind)
    seconds = time.monotonic() - started
    outcome.cases += 1
    what = f"{method} {route.path}, {case}: {str(query)[:200]} {(content or b'')[:200]!r}"
    outcome.check(answer.status_code < 500, f"{what}: {answer.status_code}: {answer.text[:300]}")
    if 400 <= answer.status_code < 500 and outcome.check(_is_json(answer.content), f"{what}: no JSON"):
        error = answer.json().get("error", "")
        outcome.check(bool(error) and "\n" not in error, f"{what}: {answer.status_code}: {error[:300]!r}")
    outcome.check(seconds < SECONDS, f"{what}: took {seconds:.1f} s")
    return seconds, answer.status_code < 300


def _text(generator: Generator) -> str:
    values = _PLAIN if generator.random() < 0.5 else _ODD
    return values[int(generator.integers(len(values)))]


def _body(route: APIRoute, generator: Generator) -> bytes:
    how = generator.random()
    if how < 0.1:
        return generator.bytes(200)
    if how < 0.2:
        return b"[" * 20_000
    names = [
        name
        for one in route.dependant.body_params
        for name in getattr(_model(one), "model_fields", {"x": None})
    ]
    value: Any = {name: _JSON[int(generator.integers(len(_JSON)))] for name in names or ["x"]}
    if how < 0.3:
        value = _JSON[int(generator.integers(len(_JSON)))]
    return json.dumps(value).encode()


def _model(parameter: Any) -> Any:  # noqa: ANN401 - FastAPI's own class of parameters
    return parameter.field_info.annotation


def _is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False
