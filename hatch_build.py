"""The parts of the package's metadata that follow from the address of its repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def description(readme: str, base: str) -> str:
    """Return a README as the package index shows it, which knows none of the files beside it.

    Args:
        readme: Markdown, with links relative to the repository.
        base: where the repository shows one version, such as `https://github.com/owner/name`; with "" for no
            address yet, links become their text, and paragraphs that begin with an image are left out.
    """
    if not base:
        paragraphs = readme.split("\n\n")
        readme = "\n\n".join(text for text in paragraphs if not (m := LINK.match(text)) or not m[1])
    return LINK.sub(lambda link: _absolute(*link.groups(), base=base), readme)


def _absolute(image: str, text: str, target: str, *, base: str) -> str:
    if not base:
        return text
    # `raw` is the file itself, which an image needs; `blob` is the page about it.
    return f"{image}[{text}]({base.format(kind='raw' if image else 'blob')}/{target})"


class CustomMetadataHook(MetadataHookInterface):
    """Fills in `readme` and `urls`, with `repository` of pyproject.toml as the one place of the address."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add to the metadata what depends on the address."""
        repository = self.config["repository"].rstrip("/")
        base = f"{repository}/{{kind}}/v{metadata['version']}" if repository else ""
        text = description((Path(self.root) / "README.md").read_text(encoding="utf-8"), base)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {}
        if repository:
            metadata["urls"] = {
                "Repository": repository,
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
