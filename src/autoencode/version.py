"""The version of this package, and how more of it is installed; a module of its own, for any layer."""

from __future__ import annotations

VERSION = "0.1.0"


def install_command(extra: str) -> str:
    """Return the command that adds an optional part to this installation, which may be of a checkout.

    Where a package came from stands in its direct_url.json (PEP 610), unless it came from an index.
    """
    import json
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    try:
        origin = json.loads(metadata.distribution("autoencode").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    url = urlsplit(origin.get("url", ""))
    if url.scheme != "file":
        return f"pip install 'autoencode[{extra}]'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}'{unquote(url.path)}[{extra}]'"
